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

from tuner.methods import Method
from tuner.methods.direct import Direct, best_run
from tuner.problem import SLACK, Problem
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
            if (promoted := self._promoted(problem, observations, pending, lower, upper)) is None:
                continue
            there = None if among is None else [run for run in among if run.scale == upper]
            if problem.cost(promoted, upper) <= SLACK * budget and there != []:
                point = problem.space.encode(promoted)
                return [Proposal(promoted, upper) if there is None else problem.nearest(point, there)]
        search = Direct("random", rungs[0])
        below = [run for run in observations if run.scale == rungs[0]]
        return search.propose(problem, below, pending, seed=seed, budget=budget, count=1, among=among)

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Params:
        finite = [run for run in observations if not run.diverged] or observations
        highest = max((run.scale for run in finite), key=lambda scale: problem.cost(problem.space.middle, scale))
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
    def _promoted(
        problem: Problem,
        observations: Sequence[Observation],
        pending: Sequence[Proposal],
        lower: Scale,
        upper: Scale,
    ) -> Params | None:
        """The best setting of the lower rung's best third whose place in the upper rung is not taken."""
        below = sorted((run for run in observations if run.scale == lower), key=lambda run: run.loss)
        above = sum(run.scale == upper for run in observations) + sum(run.scale == upper for run in pending)
        best = below[: len(below) // ETA]
        return best[above].params if above < len(best) else None
