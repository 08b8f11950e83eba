"""An Optuna sampler that tunes at small scales for a large one: the study's storage is the record, and all the state.

    sampler = TransferSampler(target={"width": 4096}, parametrization="mup-adamw")
    study = optuna.create_study(sampler=sampler)            # suggest_int("width", 64, 1024, log=True) in the objective
    study.optimize(objective, n_trials=60)                  # trial.set_user_attr("cost", flops) in it
    sampler.recommend(study).params                         # at width 4096

| trial                                            | is to the tuner                                             |
|--------------------------------------------------|-------------------------------------------------------------|
| complete                                         | a run; diverged where its value is infinite                 |
| pruned, or failed with the user attribute        | a run that diverged: nothing else is worth pruning for, as  |
| `diverged`                                       | early losses do not rank settings across scales             |
| failed                                           | nothing: it broke for reasons that are not the training's   |
| running                                          | pending                                                     |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.engine import propose, recommend
from tuner.errors import BadInput, is_number
from tuner.parametrization import preset
from tuner.problem import Problem
from tuner.scale import CostLaw, Scale, grid, ladder
from tuner.space import SearchSpace, dimension
from tuner.transfer import judge
from tuner.trial import Observation, Proposal, Recommendation

Cost = str | Callable[[Scale], float]
Space = dict[str, BaseDistribution]

DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
ALONE = Scale(scale=1)  # where no axis is named: a study of one scale


class TransferSampler(BaseSampler):
    """Proposes small runs that teach most about the optimum of a large one, per unit of cost.

    Args:
        target: axis -> its value at the scale the answer is for. The trial's parameters of these names, integers,
            floats or choices of numbers, are the scale; the others are hyperparameters. None: a study of one scale.
        parametrization: preset by which raw values move with scale (`tuner.parametrization`). Ranges are raw at `base`.
        cost: what a run cost: the name of a user attribute that every trial sets, "duration" for its seconds, or
            scale -> cost, which needs no attribute.
        base: the scale at which raw and base values agree; None: the smallest.
        roles: hyperparameter -> what it is to the parametrization, where its name does not say so.
        seed: None: drawn.

    Raises:
        BadInput (a ValueError): in use: hyperparameters or ranges that changed in mid-study, an axis that is no
            parameter, a cost that is missing or not above zero. The storage is left as it was.
    """

    def __init__(
        self,
        target: Mapping[str, float] | None = None,
        parametrization: str = "none",
        cost: Cost = "cost",
        base: Mapping[str, float] | None = None,
        roles: Mapping[str, str] | None = None,
        seed: int | None = None,
    ) -> None:
        self._target = ALONE if target is None else Scale(target)
        self._axes = () if target is None else tuple(self._target)
        self._base = None if base is None else Scale(base)
        self._rule, self._cost, self._roles = preset(parametrization), cost, dict(roles or {})
        self._seed, self._unknown = _seed(seed), RandomSampler(seed=seed)

    def reseed_rng(self) -> None:
        """For Optuna's workers. Proposals depend on the storage and the seed alone, and keep it."""
        self._unknown.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """What all finished trials had; of a study of one scale, as the last of them had it."""
        self._raise_error_if_multi_objective(study)
        done = _trials(study, DONE)
        names = [n for n in done[-1].distributions if all(n in t.distributions for t in done)] if done else []
        found = {name: done[-1].distributions[name] for name in names}
        if self._axes and done:
            self._check_unchanged(done, found)
        return {name: d for name, d in found.items() if name in self._axes or _searchable(d)}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        """Raw hyperparameters and the scale to run them at; nothing where there is nothing to search yet."""
        self._raise_error_if_multi_objective(study)
        if not set(search_space) - set(self._axes):
            return {}
        problem = self._problem(study, search_space)
        runs = self._runs(problem, study, search_space)
        others = [t for t in _trials(study, (TrialState.RUNNING,)) if t.number != trial.number]
        pending = [self._proposal(problem, t) for t in others if _contained(t, search_space)]
        before = sum(t.number < trial.number and not _contained(t, search_space) for t in others)
        chosen = propose(problem, runs, pending, seed=self._seed, count=1 + before)[-1]  # theirs are the first of these
        raw = {**problem.to_raw(chosen.params, chosen.scale), **{axis: chosen.scale[axis] for axis in self._axes}}
        return {name: _inside(raw[name], d) for name, d in search_space.items() if name in raw}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random; an axis of scale at its smallest value, before anything is known of costs."""
        self._raise_error_if_multi_objective(study)
        if param_name in self._axes:
            return _inside(min(_values(param_name, param_distribution, math.inf)), param_distribution)
        return self._unknown.sample_independent(study, trial, param_name, param_distribution)

    def recommend(self, study: Study) -> Recommendation:
        """The best hyperparameters at the target, raw, with what is known of them, and whether transfer holds.

        Of a study that maximises, losses are the values with the other sign.

        Raises:
            BadInput: no finished trial with a finite value.
        """
        space = self.infer_relative_search_space(study, None)  # type: ignore[arg-type]
        if not set(space) - set(self._axes):
            raise BadInput("recommend: a finished trial is needed, the study has none; run trials until one finishes")
        problem = self._problem(study, space)
        runs = self._runs(problem, study, space)
        answer = recommend(problem, runs, seed=self._seed)
        if not problem.axes:
            return answer
        told = judge(problem, runs, answer, seed=self._seed)
        return replace(answer, verdict=told.verdict, reasons=(*told.reasons, *answer.reasons))

    # The study as a problem

    def _problem(self, study: Study, space: Space) -> Problem:
        searched = SearchSpace({n: dimension(d, self._roles.get(n)) for n, d in space.items() if n not in self._axes})
        if not self._axes:
            return Problem(searched, ALONE, (ALONE,), ALONE, self._rule, lambda params, scale: 1.0)
        if missing := [axis for axis in self._axes if axis not in space]:
            raise BadInput(f"target: {missing[0]!r} must be a parameter of every trial; suggest it, or leave it out")
        price = self._price(study)
        rungs = grid({axis: _values(axis, space[axis], self._target[axis]) for axis in self._axes})
        proxies = [scale for scale in rungs if price(scale) < price(self._target)]
        if not proxies:
            raise BadInput(
                f"target: a scale that costs less than the target ({self._target}) is needed, the trials' ranges have "
                "none; lower those of its axes"
            )
        base = self._base or min(proxies, key=price)
        return Problem(searched, self._target, tuple(proxies), base, self._rule, lambda params, scale: price(scale))

    def _price(self, study: Study) -> Callable[[Scale], float]:
        if callable(self._cost):
            given = self._cost
            return lambda scale: _positive(given(scale), f"cost at {scale}")
        done = [(self._scale(t), cost) for t in _trials(study, DONE) if (cost := self._paid(t)) is not None]
        if not done:
            return lambda scale: math.prod(scale.values())
        return CostLaw.fit([scale for scale, _ in done], [cost for _, cost in done])

    def _paid(self, trial: FrozenTrial) -> float | None:
        """What a finished trial cost; None where one that did not complete does not say so."""
        what = f"cost of trial {trial.number}"
        if callable(self._cost):
            return _positive(self._cost(self._scale(trial)), what)
        if self._cost == "duration":
            return None if trial.duration is None else max(trial.duration.total_seconds(), 1e-6)
        told = trial.user_attrs.get(self._cost)
        if told is None and trial.state != TrialState.COMPLETE:
            return None
        return _positive(told, f"{what}, its user attribute {self._cost!r},")

    def _runs(self, problem: Problem, study: Study, space: Space) -> list[Observation]:
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        runs = []
        for trial in _trials(study, DONE):
            diverged = trial.state == TrialState.PRUNED or bool(trial.user_attrs.get("diverged"))
            if _contained(trial, space) and (diverged or trial.state == TrialState.COMPLETE):
                asked = self._proposal(problem, trial)
                value = math.inf if diverged or trial.value is None else sign * trial.value
                paid = self._paid(trial) if self._axes else 1.0
                cost = problem.cost(asked.params, asked.scale) if paid is None else paid
                runs.append(Observation(asked.params, asked.scale, value if math.isfinite(value) else math.inf, cost))
        return runs

    def _proposal(self, problem: Problem, trial: FrozenTrial) -> Proposal:
        scale = self._scale(trial)
        return Proposal(problem.to_base({name: trial.params[name] for name in problem.space}, scale), scale)

    def _scale(self, trial: FrozenTrial) -> Scale:
        return Scale({axis: trial.params[axis] for axis in self._axes}) if self._axes else ALONE

    def _check_unchanged(self, done: Sequence[FrozenTrial], last: Space) -> None:
        """A range that moved would move every coordinate of what is known."""
        for trial in done:
            for name, known in trial.distributions.items():
                if name not in last:
                    raise BadInput(f"space: {name!r} is not a parameter of every trial; suggest the same ones in each")
                if known != last[name]:
                    raise BadInput(
                        f"space: {name!r} was {known} in trial {trial.number}, and then {last[name]}; keep its range, "
                        "or start a new study"
                    )


def _seed(seed: int | None) -> int:
    return int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1) if seed is None else seed


def _trials(study: Study, states: tuple[TrialState, ...]) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states)


def _searchable(d: BaseDistribution) -> bool:
    """Whether the tuner has a name for it: not what has one value, nor choices that are no text, number or boolean."""
    plain = not isinstance(d, CategoricalDistribution) or all(isinstance(c, (str, int, float)) for c in d.choices)
    return plain and not d.single()


def _contained(trial: FrozenTrial, space: Space) -> bool:
    return all(n in trial.params and d._contains(d.to_internal_repr(trial.params[n])) for n, d in space.items())


def _values(axis: str, d: BaseDistribution, highest: float) -> list[float]:
    """The values an axis of scale may have up to the target's, a factor of 2 or less apart."""
    if isinstance(d, CategoricalDistribution):
        if not all(is_number(choice) and choice > 0 for choice in d.choices):  # type: ignore[operator]
            raise BadInput(f"target: choices of {axis!r} must be numbers above zero, got {d.choices}; correct them")
        return sorted(float(choice) for choice in d.choices if choice <= highest)  # type: ignore[arg-type,operator]
    assert isinstance(d, (FloatDistribution, IntDistribution))
    if d.low <= 0:
        raise BadInput(f"target: {axis!r} must be above zero, got a range from {d.low}; raise it")
    high = min(float(d.high), highest)
    rungs = ladder(float(d.low), high) if d.low < high else [float(d.low)]
    return sorted({float(_inside(value, d)) for value in rungs})


def _inside(value: Any, d: BaseDistribution) -> Any:
    """The nearest value that a distribution has, as Python's own kind of number."""
    if isinstance(d, CategoricalDistribution):
        return next(choice for choice in d.choices if choice == value)  # 64, not 64.0
    assert isinstance(d, (FloatDistribution, IntDistribution))
    if d.step is not None:
        value = d.low + round((float(value) - d.low) / d.step) * d.step
    value = min(max(value, d.low), d.high)
    return round(value) if isinstance(d, IntDistribution) else float(value)


def _positive(cost: Any, what: str) -> float:
    if not (is_number(cost) and 0 < cost < math.inf):
        raise BadInput(
            f"{what} must be a number above zero, got {cost!r}; set it, or give cost= a function of the scale"
        )
    return float(cost)
