"""The tuner itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner import engine
from tuner.methods import Method
from tuner.problem import Problem
from tuner.space import Params
from tuner.trial import Observation, Proposal, Recommendation


@dataclass(frozen=True)
class Transfer(Method):
    """The engine's two functions."""

    direct: bool = False

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
        return engine.propose(problem, observations, pending, seed=seed, budget=budget, count=count, among=among)

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Params:
        return engine.best(problem, observations, seed=seed)

    def known(
        self, problem: Problem, observations: Sequence[Observation], *, seed: int, level: float
    ) -> Recommendation | None:
        return engine.recommend(problem, observations, seed=seed, level=level)
