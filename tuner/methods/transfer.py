"""The tuner itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner import engine
from tuner.methods import Answer
from tuner.problem import Problem
from tuner.trial import Observation, Proposal


@dataclass(frozen=True)
class Transfer:
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
    ) -> list[Proposal]:
        return engine.propose(problem, observations, pending, seed=seed, budget=budget, count=count)

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Answer:
        rec = engine.recommend(problem, observations, seed=seed)
        return Answer(rec.params, rec.interval)
