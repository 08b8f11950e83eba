"""The straight line through the best runs: what people fit by hand.

Runs are spread so that every scale costs the same, cheapest first, by Optuna's TPE at each. The best run of every scale
that has a few, in base coordinates, is regressed on the logarithms of the axes, and read off at the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuner.methods import Method
from tuner.methods.direct import Direct, best_run
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.space import Categorical, Params
from tuner.trial import Observation, Proposal

FEW = 4  # runs of a scale, before its best counts


@dataclass(frozen=True)
class ArgminLaw(Method):
    """Least squares; a category is that of most of the best."""

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
        spent = dict.fromkeys(problem.proxies if among is None else [choice.scale for choice in among], 0.0)
        made: list[Observation | Proposal] = [*observations, *pending]
        for run in made:
            if run.scale in spent:
                spent[run.scale] += problem.cost(run.params, run.scale)
        after = {scale: known + problem.run_cost(scale) for scale, known in spent.items()}
        if not after:
            return []
        search = Direct("tpe", min(after, key=lambda scale: after[scale]))
        there = [run for run in observations if run.scale == search.scale]
        return search.propose(problem, there, pending, seed=seed, budget=budget, count=count, among=among)

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Params:
        finite = [run for run in observations if not run.diverged]
        groups = [[run for run in finite if run.scale == scale] for scale in {run.scale for run in finite}]
        best = [best_run(group) for group in groups if len(group) >= FEW] or [best_run(finite)]
        logs = np.array([self._logs(problem, run.scale) for run in best])
        places = np.stack([problem.space.encode(run.params) for run in best])
        design = np.column_stack([np.ones(len(best)), logs])
        if np.linalg.matrix_rank(design) < design.shape[1]:  # too few scales for a line: their mean
            design = design[:, :1]
        at_target = np.linalg.lstsq(design, places, rcond=None)[0][0]
        for j, dimension in enumerate(problem.space.values()):
            if isinstance(dimension, Categorical):
                values, counts = np.unique(places[:, j], return_counts=True)
                at_target[j] = values[counts.argmax()]
        return problem.to_raw(problem.space.decode(at_target), problem.target)

    @staticmethod
    def _logs(problem: Problem, scale: Scale) -> list[float]:
        return [math.log(scale[axis] / problem.target[axis]) for axis in problem.axes]
