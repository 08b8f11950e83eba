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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner.engine import propose, recommend
from tuner.errors import BadInput, is_number
from tuner.integrations.asked import Asked, Cost, Price, Space, inside, possible, rungs_of, searchable
from tuner.problem import Problem
from tuner.scale import CostLaw
from tuner.transfer import judge
from tuner.trial import Observation, Recommendation


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
        self._asked, self._seed = Asked.of(target, parametrization, cost, base, roles), seed

    def reseed_rng(self) -> None:
        """For Optuna's workers. What is proposed depends on the storage and the seed alone, and stays."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """What all runs had."""
        self._raise_error_if_multi_objective(study)
        space = _Known.of(study, self._asked.axes, trial.number).space
        return {name: d for name, d in space.items() if name in self._asked.axes or searchable(d)}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        """Raw hyperparameters and the scale to run them at; nothing where there is nothing to search yet."""
        self._raise_error_if_multi_objective(study)
        if not set(search_space) - set(self._asked.axes):
            return {}
        known = _Known.of(study, self._asked.axes, trial.number)
        space = {**known.space, **search_space}
        problem = self._asked.problem(space, self._price(known))
        runs = self._observations(study, problem, known)
        pending = [self._asked.proposal(problem, t.params) for t in known.under_way]
        chosen = propose(possible(problem, space), runs, pending, seed=self._state(study), count=1 + known.older)
        if not chosen:
            return {}
        return self._asked.raw(problem, chosen[-1], search_space)  # the others are of workers who asked before

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random; an axis of scale at its smallest value, before anything is known of costs."""
        self._raise_error_if_multi_objective(study)
        if self._asked.axes:
            self._check(_Known.of(study, self._asked.axes, trial.number).space, param_name, param_distribution)
        if param_name in self._asked.axes:
            return inside(min(rungs_of(param_name, param_distribution)), param_distribution)
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
        known = _Known.of(study, self._asked.axes)
        if not known.runs:
            raise BadInput("recommend: a finished trial is needed, the study has none; run trials until one finishes")
        problem = self._asked.problem(known.space, self._price(known))
        runs, seed = self._observations(study, problem, known), self._state(study)
        answer = recommend(problem, runs, seed=seed)
        answer = replace(answer, params={n: _stepped(v, known.space[n]) for n, v in answer.params.items()})
        aside = [f"{n}: drawn at random, as choices that are no text, number or boolean are" for n in known.space
                 if n not in problem.space and n not in self._asked.axes and not known.space[n].single()]  # fmt: skip
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

    def _price(self, known: _Known) -> Price:
        if (given := self._asked.given) is not None:
            return given
        done = [t for t in known.runs if t.state == TrialState.COMPLETE and _has(t, self._asked.axes)]
        if not done or not self._asked.axes:
            return lambda params, scale: math.prod(scale.values())
        law = CostLaw.fit([self._asked.scale(t.params) for t in done], [self._paid(t) for t in done])
        return lambda params, scale: law(scale)

    def _paid(self, trial: FrozenTrial) -> float:
        """What a trial that completed cost."""
        assert isinstance(self._asked.cost, str)
        if self._asked.cost == "duration":
            assert trial.duration is not None
            return max(trial.duration.total_seconds(), 1e-6)
        cost: Any = trial.user_attrs.get(self._asked.cost)
        if not (is_number(cost) and 0 < cost < math.inf):
            raise BadInput(
                f"cost: the user attribute {self._asked.cost!r} of trial {trial.number} must be a number above zero, "
                f"got {cost!r}; set it before a trial ends, or give cost= a function of the scale"
            )
        return float(cost)

    def _observations(self, study: Study, problem: Problem, known: _Known) -> list[Observation]:
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        runs = []
        for trial in known.runs:
            if not _has(trial, [*problem.space, *self._asked.axes]) or not _chosen(trial, known.space):
                continue
            asked = self._asked.proposal(problem, trial.params)
            complete = trial.state == TrialState.COMPLETE and not _diverged(trial)
            value = sign * trial.value if complete and trial.value is not None else math.inf
            exact = complete and self._asked.axes and isinstance(self._asked.cost, str)
            cost = self._paid(trial) if exact else problem.cost(asked.params, asked.scale)
            runs.append(Observation(asked.params, asked.scale, value if math.isfinite(value) else math.inf, cost))
        return runs

    def _check(self, space: Space, name: str, d: BaseDistribution) -> None:
        """Before anything is trained: what is searched is what the first trial had, and no narrower than it was."""
        known = space.get(name)
        if space and known is None:
            raise BadInput(
                f"space: {name!r} is new, the study's first trial had {', '.join(space)}; leave it out, or start a new "
                "study"
            )
        if known is not None and searchable(known) and _union([known, d]) != d:
            raise BadInput(f"space: {name!r} was {known} and is now {d}; a range may only widen: restore it")


def _diverged(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() and bool(trial.user_attrs.get("diverged"))


def _has(trial: FrozenTrial, names: Sequence[str] | Space) -> bool:
    return bool(names) and all(name in trial.params for name in names)


def _chosen(trial: FrozenTrial, space: Space) -> bool:
    """Whether its choices are among those there are; a number may lie outside of its range."""
    return all(trial.params.get(n, d.choices[0]) in d.choices for n, d in space.items()
               if isinstance(d, CategoricalDistribution))  # fmt: skip


def _stepped(value: Any, d: BaseDistribution) -> Any:
    """The nearest value of a range that goes in steps; beyond its ends too, where raw values leave it."""
    if not isinstance(d, (FloatDistribution, IntDistribution)) or not d.step or d.log:
        return value
    return type(value)(d.low + round((value - d.low) / d.step) * d.step)


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
