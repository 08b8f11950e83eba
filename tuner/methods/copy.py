"""Copying: the whole budget at one proxy scale, its best setting moved to the target (muTransfer: Yang et al. 2022).

Moved in base coordinates the parametrization rescales it; moved raw it is used as it was. The two are one where the
objective applies its parametrization itself, because its raw values are base values. The search at the proxy is
Optuna's TPE, stronger than the random search of the paper. The proxy is chosen by whoever compares, in its favour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.methods import Method
from tuner.methods.direct import Direct, best_run
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.space import Params
from tuner.trial import Observation, Proposal


@dataclass(frozen=True)
class Copy(Method):
    """Args: raw: whether the setting is moved as it was. scale: the proxy that is searched; None: the cheapest."""

    raw: bool
    scale: Scale | None = None
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
        search = Direct("tpe", self.scale or problem.cheapest)
        return search.propose(problem, observations, pending, seed=seed, budget=budget, count=count, among=among)

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Params:
        best = best_run(observations)
        at = best.scale if self.raw else problem.target
        return problem.to_raw(best.params, at)
