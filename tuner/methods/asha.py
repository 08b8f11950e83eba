"""Asynchronous successive halving over scale (ASHA: Li et al. 2020, arXiv 1810.05934, algorithm 2).

The rungs are scales whose costs grow by the halving factor or more, cheapest first. A setting is promoted once it is
among the best third of its rung; where none can be, a new one is drawn at the lowest rung. The answer is the best run
of the highest rung that has any. (Hyperband runs brackets that start at higher rungs too; with a budget of less than
one run at the target those cost too much to fill.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tuner.methods import Method
from tuner.methods.direct import Direct, best_run
from tuner.problem import SLACK, Array, Problem
from tuner.scale import Scale
from tuner.space import Params
from tuner.trial import Observation, Proposal

ETA = 3  # the halving factor


@dataclass(frozen=True)
class Asha(Method):
    """Promotions move settings in base coordinates."""

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
        rungs = self._rungs(problem)
        for lower, upper in reversed(list(pairwise(rungs))):
            there = None if among is None else [run for run in among if run.scale == upper]
            for params in self._best_third(observations, lower):
                point = problem.space.encode(params)
                asked = Proposal(params, upper) if not there else problem.nearest(point, there)
                if there == [] or problem.cost(asked.params, upper) > SLACK * budget:
                    break
                if not self._taken(problem, point, asked, [*observations, *pending], upper):
                    return [asked]
        for rung in rungs:  # the lowest, as long as it has settings
            search, made = Direct("random", rung), [run for run in observations if run.scale == rung]
            if drawn := search.propose(problem, made, pending, seed=seed, budget=budget, count=1, among=among):
                return drawn
        return []

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Params:
        finite = [run for run in observations if not run.diverged] or observations
        highest = max((run.scale for run in finite), key=problem.run_cost)
        best = best_run([run for run in finite if run.scale == highest])
        return problem.to_raw(best.params, problem.target)

    @staticmethod
    def _rungs(problem: Problem) -> list[Scale]:
        middle = problem.space.middle
        rungs: list[Scale] = []
        for scale in sorted(problem.proxies, key=lambda s: problem.cost(middle, s)):
            if not rungs or problem.cost(middle, scale) >= ETA * problem.cost(middle, rungs[-1]):
                rungs.append(scale)
        return rungs

    @staticmethod
    def _best_third(observations: Sequence[Observation], rung: Scale) -> list[Params]:
        made = [run for run in observations if run.scale == rung]
        finite = sorted((run for run in made if not run.diverged), key=lambda run: run.loss)
        return [run.params for run in finite[: len(made) // ETA]]

    @staticmethod
    def _taken(
        problem: Problem, point: Array, asked: Proposal, runs: Sequence[Observation | Proposal], rung: Scale
    ) -> bool:
        """Whether a run of the rung is at least as near to a setting as the one that could be made."""
        there = [Proposal(run.params, rung) for run in runs if run.scale == rung]
        if not there:
            return False
        near = [problem.space.encode(run.params) - point for run in (problem.nearest(point, there), asked)]
        return bool(np.square(near[0]).sum() <= np.square(near[1]).sum() + 1e-12)
