"""An Optuna sampler that tunes at small scales for a large one: the study's storage is the record, and all the state.

    sampler = TransferSampler(target={"width": 4096}, parametrization="mup-adamw")
    study = optuna.create_study(sampler=sampler)            # suggest_int("width", 64, 1024, log=True) in the objective
    study.optimize(objective, n_trials=60)                  # trial.set_user_attr("cost", flops) in it
    sampler.recommend(study).params                         # at width 4096

| trial                              | is to the tuner                                                           |
|------------------------------------|---------------------------------------------------------------------------|
| complete                           | a run; diverged where its value is infinite                               |
| pruned                             | a run that diverged: nothing else is worth pruning for, as early losses   |
|                                    | do not rank settings across scales                                        |
| failed                             | a run that broke, which is not proposed again; one that diverged where it |
|                                    | has the user attribute `diverged`. Optuna makes a loss that is no number  |
|                                    | a failure: raise TrialPruned instead                                      |
| running                            | pending                                                                   |

With a target the first trial that ends says what the hyperparameters are; their ranges may widen later on.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.engine import propose, recommend
from tuner.errors import BadInput, is_number
from tuner.parametrization import preset
from tuner.problem import Problem
from tuner.scale import CostLaw, Scale, grid, ladder
from tuner.space import Params, SearchSpace, dimension, suggestion
from tuner.study import priced
from tuner.transfer import judge
from tuner.trial import Observation, Proposal, Recommendation

Cost = str | Callable[[Scale], float]
Space = dict[str, BaseDistribution]

ALONE = Scale(scale=1)  # where no axis is named: a study of one scale
RUNGS = 32  # scales that are weighed, at most
ROUNDING = 1e-9  # relative


@dataclass(frozen=True)
class _Known:
    """What the storage says, read once.

    Args:
        runs: that finished with parameters, in their order; what broke is not among them.
        under_way: that run, or broke.
        older: how many run, are older than the trial that asks, and have no parameters yet.
        space: what every run had; a hyperparameter's range is as wide as it ever was.
    """

    runs: list[FrozenTrial]
    under_way: list[FrozenTrial]
    older: int
    space: Space

    @staticmethod
    def of(study: Study, axes: Sequence[str], asking: int | None = None) -> _Known:
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != asking]
        runs = [t for t in trials if t.params and (t.state in (TrialState.COMPLETE, TrialState.PRUNED) or _diverged(t))]
        space = {}
        for name in runs[0].distributions if runs else ():
            seen = [t.distributions[name] for t in runs if name in t.distributions]
            if axes or len(seen) == len(runs):  # of a study of one scale, parameters may depend on each other
                space[name] = _union(seen) if axes else seen[-1]
        waiting = [t for t in trials if t.state in (TrialState.RUNNING, TrialState.FAIL) and not _diverged(t)]
        under_way = [t for t in waiting if _has(t, space)]
        blank = [t for t in waiting if t.state == TrialState.RUNNING and not _has(t, space)]
        return _Known(runs, under_way, sum(asking is not None and t.number < asking for t in blank), space)


class TransferSampler(BaseSampler):
    """Proposes small runs that teach most about the optimum of a large one, per unit of cost.

    Args:
        target: axis -> its value at the scale the answer is for. The trial's parameters of these names, integers,
            floats or choices of numbers, are the scale; the others are hyperparameters. None: a study of one scale.
        parametrization: preset by which raw values move with scale (`tuner.parametrization`). Ranges are of base
            values, raw at `base`; elsewhere only those runs are made whose raw values the ranges allow too.
        cost: what a run cost: the name of a user attribute that every trial sets, "duration" for its seconds, or
            scale -> cost, which needs no attribute.
        base: the scale at which raw and base values agree; None: the smallest that trials may have.
        roles: hyperparameter -> what it is to the parametrization, where its name does not say so.
        seed: None: from the study's name, so that all workers agree.

    Raises:
        BadInput (a ValueError): of what is given here; in use, of a cost that is missing or not above zero, an axis
            that is no parameter, a hyperparameter that the first trial did not have, a range narrower than it was.
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
        for what, scale in (("target", target), ("base", base)):
            if not (scale is None or isinstance(scale, Mapping)):
                raise BadInput(f"{what}: must map axes to values, got {scale!r}; write for example {{'width': 4096}}")
        if not (isinstance(cost, str) or callable(cost)):
            raise BadInput(f'cost: must be an attribute\'s name, "duration" or scale -> cost, got {cost!r}; correct it')
        self._target = ALONE if target is None else Scale(target)
        self._axes = () if target is None else tuple(self._target)
        self._base = None if base is None else Scale(base)
        self._rule, self._cost, self._roles, self._seed = preset(parametrization), cost, dict(roles or {}), seed

    def reseed_rng(self) -> None:
        """For Optuna's workers. What is proposed depends on the storage and the seed alone, and stays."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """What all runs had."""
        self._raise_error_if_multi_objective(study)
        space = _Known.of(study, self._axes, trial.number).space
        return {name: d for name, d in space.items() if name in self._axes or _searchable(d)}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        """Raw hyperparameters and the scale to run them at; nothing where there is nothing to search yet."""
        self._raise_error_if_multi_objective(study)
        if not set(search_space) - set(self._axes):
            return {}
        known = _Known.of(study, self._axes, trial.number)
        space = {**known.space, **search_space}
        problem = self._problem(known, space)

        def cost(params: Params, scale: Scale) -> float:
            raw = problem.to_raw(params, scale)
            return problem.cost(params, scale) if all(_allows(space[n], v) for n, v in raw.items()) else math.inf

        runs, pending = self._observations(study, problem, known), [self._proposal(problem, t) for t in known.under_way]
        possible = replace(problem, cost=cost)
        chosen = propose(possible, runs, pending, seed=self._state(study), count=1 + known.older)
        if not chosen:
            return {}
        run = chosen[-1]  # the others are those of the workers who asked before
        raw = {**problem.to_raw(run.params, run.scale), **(run.scale if self._axes else {})}
        return {name: _inside(raw[name], d) for name, d in search_space.items() if name in raw}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random; an axis of scale at its smallest value, before anything is known of costs."""
        self._raise_error_if_multi_objective(study)
        if self._axes:
            self._check(_Known.of(study, self._axes, trial.number).space, param_name, param_distribution)
        if param_name in self._axes:
            return _inside(min(_values(param_name, param_distribution, math.inf, RUNGS)), param_distribution)
        seed = np.random.SeedSequence([self._state(study), trial.number, zlib.crc32(param_name.encode())])
        unknown = RandomSampler(seed=int(seed.generate_state(1)[0]))
        return unknown.sample_independent(study, trial, param_name, param_distribution)

    def recommend(self, study: Study) -> Recommendation:
        """The best hyperparameters at the target, raw, with what is known of them, and whether transfer holds.

        Of a study that maximises, losses are the values with the other sign.

        Raises:
            BadInput: no finished trial with a finite value.
        """
        self._raise_error_if_multi_objective(study)
        known = _Known.of(study, self._axes)
        if not known.runs:
            raise BadInput("recommend: a finished trial is needed, the study has none; run trials until one finishes")
        problem = self._problem(known, known.space)
        runs, seed = self._observations(study, problem, known), self._state(study)
        answer = recommend(problem, runs, seed=seed)
        aside = [f"{n}: drawn at random, as choices that are no text, number or boolean are" for n in known.space
                 if n not in problem.space and n not in self._axes and not known.space[n].single()]  # fmt: skip
        if lost := len(known.runs) - len(runs):
            aside.append(f"{lost} trials are left out: they lack a hyperparameter, or have a choice that is none now")
        answer = replace(answer, reasons=(*answer.reasons, *aside))
        if not problem.axes:
            return answer
        told = judge(problem, runs, answer, seed=seed)
        return replace(answer, verdict=told.verdict, reasons=(*told.reasons, *answer.reasons))

    # The study as a problem

    def _state(self, study: Study) -> int:
        return zlib.crc32(study.study_name.encode()) if self._seed is None else self._seed

    def _problem(self, known: _Known, space: Space) -> Problem:
        found = {
            n: dimension(d, self._roles.get(n)) for n, d in space.items() if n not in self._axes and _searchable(d)
        }
        for name in self._roles:
            if name not in space:
                raise BadInput(f"roles: no hyperparameter {name!r}; {suggestion(name, space)}")
        if not self._axes:
            return Problem(SearchSpace(found), ALONE, (ALONE,), ALONE, self._rule, lambda params, scale: 1.0)
        if missing := [axis for axis in self._axes if axis not in space]:
            raise BadInput(f"target: {missing[0]!r} must be a parameter of every trial; suggest it, or leave it out")
        most = max(2, int(RUNGS ** (1 / len(self._axes))))
        rungs = grid({axis: _values(axis, space[axis], self._target[axis], most) for axis in self._axes})
        price, base = self._price(known), self._base or rungs[0]
        proxies = tuple(scale for scale in rungs if scale != self._target)
        if callable(self._cost):
            proxies = tuple(scale for scale in proxies if price({}, scale) < price({}, self._target))
        if not proxies:
            raise BadInput(
                f"target: a scale that costs less than the target ({self._target}) is needed, the trials' ranges have "
                "none; raise the target, or lower the ranges of its axes in a new study"
            )
        return Problem(SearchSpace(found), self._target, proxies, base, self._rule, price)

    def _price(self, known: _Known) -> Callable[[Params, Scale], float]:
        if callable(self._cost):
            given = self._cost
            return lambda params, scale: priced(lambda params, scale: given(scale), params, scale)
        done = [t for t in known.runs if t.state == TrialState.COMPLETE and _has(t, self._axes)]
        if not done:
            return lambda params, scale: math.prod(scale.values())
        law = CostLaw.fit([self._scale(t) for t in done], [self._paid(t) for t in done])
        return lambda params, scale: law(scale)

    def _paid(self, trial: FrozenTrial) -> float:
        """What a trial that completed cost."""
        assert isinstance(self._cost, str)
        if self._cost == "duration":
            assert trial.duration is not None
            return max(trial.duration.total_seconds(), 1e-6)
        cost: Any = trial.user_attrs.get(self._cost)
        if not (is_number(cost) and 0 < cost < math.inf):
            raise BadInput(
                f"cost: the user attribute {self._cost!r} of trial {trial.number} must be a number above zero, got "
                f"{cost!r}; set it before a trial ends, or give cost= a function of the scale"
            )
        return float(cost)

    def _observations(self, study: Study, problem: Problem, known: _Known) -> list[Observation]:
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        runs = []
        for trial in known.runs:
            if not _has(trial, [*problem.space, *self._axes]) or not _chosen(trial, known.space):
                continue
            asked = self._proposal(problem, trial)
            complete = trial.state == TrialState.COMPLETE and not _diverged(trial)
            value = sign * trial.value if complete and trial.value is not None else math.inf
            exact = complete and self._axes and isinstance(self._cost, str)
            cost = self._paid(trial) if exact else problem.cost(asked.params, asked.scale)
            runs.append(Observation(asked.params, asked.scale, value if math.isfinite(value) else math.inf, cost))
        return runs

    def _proposal(self, problem: Problem, trial: FrozenTrial) -> Proposal:
        scale = self._scale(trial)
        return Proposal(problem.to_base({name: trial.params[name] for name in problem.space}, scale), scale)

    def _scale(self, trial: FrozenTrial) -> Scale:
        return Scale({axis: trial.params[axis] for axis in self._axes}) if self._axes else ALONE

    def _check(self, space: Space, name: str, d: BaseDistribution) -> None:
        """Before anything is trained: what is searched is what the first trial had, and no narrower than it was."""
        known = space.get(name)
        if space and known is None:
            raise BadInput(
                f"space: {name!r} is new, the study's first trial had {', '.join(space)}; leave it out, or start a new "
                "study"
            )
        if known is not None and _searchable(known) and _union([known, d]) != d:
            raise BadInput(f"space: {name!r} was {known} and is now {d}; a range may only widen: restore it")


def _diverged(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() and bool(trial.user_attrs.get("diverged"))


def _has(trial: FrozenTrial, names: Sequence[str] | Space) -> bool:
    return bool(names) and all(name in trial.params for name in names)


def _chosen(trial: FrozenTrial, space: Space) -> bool:
    """Whether its choices are among those there are; a number may lie outside of its range."""
    return all(trial.params.get(n, d.choices[0]) in d.choices for n, d in space.items()
               if isinstance(d, CategoricalDistribution))  # fmt: skip


def _searchable(d: BaseDistribution) -> bool:
    """Whether the tuner has a name for it: not what has one value, nor choices that are no text, number or boolean."""
    plain = not isinstance(d, CategoricalDistribution) or all(isinstance(c, (str, int, float)) for c in d.choices)
    return plain and not d.single()


def _union(ranges: Sequence[BaseDistribution]) -> BaseDistribution:
    """The last of some ranges, as wide as all of them; Optuna lets neither kind nor choices change."""
    last = ranges[-1]
    if not isinstance(last, (FloatDistribution, IntDistribution)):
        return last
    low, high = min(d.low for d in ranges), max(d.high for d in ranges)  # type: ignore[attr-defined]
    if (low, high) == (last.low, last.high):
        return last
    step = None if last.log else last.step
    if isinstance(last, IntDistribution):
        return IntDistribution(low, high, log=last.log, step=int(step or 1))
    return FloatDistribution(low, high, log=last.log, step=step)


def _values(axis: str, d: BaseDistribution, highest: float, most: int) -> list[float]:
    """Values that an axis of scale may have up to the target's: a factor of 2 apart or less, but at most `most`."""
    if isinstance(d, CategoricalDistribution):
        if not all(is_number(choice) and choice > 0 for choice in d.choices):  # type: ignore[operator]
            raise BadInput(f"target: choices of {axis!r} must be numbers above zero, got {d.choices}; correct them")
        rungs = sorted(float(choice) for choice in d.choices if choice <= highest)  # type: ignore[arg-type,operator]
    else:
        assert isinstance(d, (FloatDistribution, IntDistribution))
        if d.low <= 0:
            raise BadInput(f"target: {axis!r} must be above zero, got a range from {d.low}; raise it")
        high = min(float(d.high), highest)
        steps = ladder(float(d.low), high) if d.low < high else [float(d.low)] * (d.low <= high)
        rungs = sorted({float(_inside(value, d)) for value in steps})
    return [rungs[round(i)] for i in np.linspace(0, len(rungs) - 1, min(most, len(rungs)))]


def _allows(d: BaseDistribution, value: Any) -> bool:
    """Whether a raw value lies in a range, but for rounding; and the nearest integer or step, which it becomes."""
    if isinstance(d, CategoricalDistribution):
        return True
    assert isinstance(d, (FloatDistribution, IntDistribution))
    slack = ROUNDING * max(abs(d.low), abs(d.high)) + (0.5 if isinstance(d, IntDistribution) else 0.0)
    return bool(d.low - slack <= value <= d.high + slack)


def _inside(value: Any, d: BaseDistribution) -> Any:
    """The nearest value that a distribution has, as Python's own kind of number."""
    if isinstance(d, CategoricalDistribution):
        return next(choice for choice in d.choices if choice == value)  # 64, not 64.0
    assert isinstance(d, (FloatDistribution, IntDistribution))
    if d.step is not None:
        value = d.low + round((float(value) - d.low) / d.step) * d.step
    value = min(max(value, d.low), d.high)
    return round(value) if isinstance(d, IntDistribution) else float(value)
