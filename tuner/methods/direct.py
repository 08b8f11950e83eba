"""Direct tuning: Optuna's samplers at one scale, by default the target; the answer is the best run seen."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from tuner.errors import BadInput
from tuner.methods import Method
from tuner.problem import SLACK, Problem
from tuner.scale import Scale
from tuner.space import Params, SearchSpace, distribution
from tuner.trial import Observation, Proposal


class AtOneScale(Method):
    """A search at `scale` (None: the target) by whoever answers `ask`; what is best is the best run seen."""

    scale: Scale | None = None
    direct: bool = True

    @abstractmethod
    def ask(
        self, space: SearchSpace, told: Sequence[tuple[Params, float]], pending: Sequence[Params], seed: int, count: int
    ) -> list[Params]:
        """The next `count` settings to run, base coordinates.

        Args:
            told: settings and losses; that of a diverged run is the worst finite one. pending: settings under way.
                All are what the space can say: base values may be fractions of an integer, or a rounding error beyond
                a bound.
            seed: below 2^32; of this proposal alone, so that the record is all the state there is.
        """

    def propose(
        self,
        problem: Problem,
        observations: Sequence[Observation],
        pending: Sequence[Proposal],
        *,
        seed: int,
        budget: float,
        count: int,
        among: Sequence[Proposal] | None = None,
    ) -> list[Proposal]:
        scale = self.scale or problem.target
        left = None if among is None else [run for run in among if run.scale == scale]
        state = int(np.random.SeedSequence([seed, len(observations) + len(pending)]).generate_state(1)[0])
        told = list(zip(_inside(problem.space, observations), tamed(observations), strict=True))
        chosen: list[Proposal] = []
        for params in self.ask(problem.space, told, _inside(problem.space, pending), state, count):
            asked = Proposal(params, scale)
            if left is not None:
                if not left:
                    break
                asked = problem.nearest(problem.space.encode(params), left)
                left.remove(asked)
            cost = problem.cost(asked.params, scale)
            if cost > SLACK * budget:
                break
            budget -= cost
            chosen.append(asked)
        return chosen

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Params:
        best = best_run(observations)
        return problem.to_raw(best.params, problem.target)


@dataclass(frozen=True)
class Direct(AtOneScale):
    """Optuna's `sampler`: "tpe", "gp" or "random", with its defaults but for the random runs that the GP begins with:
    as many as ours (2 more than hyperparameters) instead of 10, which few can afford at the target.
    """

    sampler: str
    scale: Scale | None = None
    direct: bool = True

    def ask(
        self, space: SearchSpace, told: Sequence[tuple[Params, float]], pending: Sequence[Params], seed: int, count: int
    ) -> list[Params]:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # a warning a proposal about optional packages
        study = optuna.create_study(sampler=self._sampler(len(space), seed))
        kinds = {name: distribution(d) for name, d in space.items()}
        for params, loss in told:
            study.add_trial(optuna.create_trial(params={**params}, distributions=kinds, value=loss))
        for params in pending:
            study.add_trial(optuna.create_trial(params={**params}, distributions=kinds, state=TrialState.RUNNING))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return [study.ask(kinds).params for _ in range(count)]

    def _sampler(self, dimensions: int, seed: int) -> BaseSampler:
        if self.sampler == "gp":
            return GPSampler(seed=seed, n_startup_trials=dimensions + 2)
        return TPESampler(seed=seed) if self.sampler == "tpe" else RandomSampler(seed=seed)


def best_run(observations: Sequence[Observation]) -> Observation:
    """The run with the smallest loss."""
    finite = [o for o in observations if not o.diverged]
    if not finite:
        raise BadInput(f"recommend: a run with a finite loss is needed, got {len(observations)}, all diverged")
    return min(finite, key=lambda o: o.loss)


def tamed(observations: Sequence[Observation]) -> list[float]:
    """Losses; that of a diverged run is the worst finite one."""
    worst = max((o.loss for o in observations if not o.diverged), default=1.0)
    return [worst if o.diverged else o.loss for o in observations]


def _inside(space: SearchSpace, runs: Sequence[Observation] | Sequence[Proposal]) -> list[Params]:
    return [space.decode(place) for place in space.encode_all([run.params for run in runs])]
