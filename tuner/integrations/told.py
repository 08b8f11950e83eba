"""What a study of somebody else's has told, as the engine's record; and the engine's two answers, raw.

For adapters whose runs tell a loss and, by a metric, what they cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from tuner.engine import propose, recommend
from tuner.errors import BadInput, is_number
from tuner.integrations.asked import Asked, Price, Space, possible
from tuner.problem import Problem
from tuner.scale import CostLaw
from tuner.transfer import judge
from tuner.trial import Observation, Proposal, Recommendation


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        params: raw, those of its scale too.
        loss: infinite where it diverged.
        cost: as its metric says; None: nothing was said.
    """

    params: Mapping[str, Any]
    loss: float
    cost: Any = None


@dataclass(frozen=True)
class Told:
    """A record, read once.

    Args:
        runs: that finished, in the order in which they were proposed.
        seed: answers depend on it and on the record alone.
    """

    asked: Asked
    space: Space
    runs: Sequence[Run]
    seed: int

    def following(self, waiting: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """What to run next, of all the space; `waiting` are runs under way, and those that broke."""
        problem = self.problem
        pending = [self.asked.proposal(problem, params) for params in waiting if set(params) >= set(self.space)]
        [run] = propose(possible(problem, self.space), self.observations, pending, seed=self.seed) or [
            Proposal(problem.space.middle, problem.cheapest)
        ]
        raw = self.asked.raw(problem, run, self.space)
        return {name: raw.get(name, _single(d)) for name, d in self.space.items()}

    def answer(self) -> Recommendation:
        """The best hyperparameters at the target, raw, with what is known of them, and whether transfer holds.

        Raises:
            BadInput: no finished trial with a finite value.
        """
        if not self.runs:
            raise BadInput("recommend: a finished trial is needed, the record has none; complete one")
        answer = recommend(self.problem, self.observations, seed=self.seed)
        if not self.problem.axes:
            return answer
        told = judge(self.problem, self.observations, answer, seed=self.seed)
        return replace(answer, verdict=told.verdict, reasons=(*told.reasons, *answer.reasons))

    @cached_property
    def problem(self) -> Problem:
        return self.asked.problem(self.space, self._price)

    @cached_property
    def observations(self) -> list[Observation]:
        problem, found = self.problem, []
        for run in self.runs:
            proposal, cost = self.asked.proposal(problem, run.params), paid(self.asked, run)
            price = problem.cost(proposal.params, proposal.scale) if cost is None else cost
            found.append(Observation(proposal.params, proposal.scale, run.loss, price))
        return found

    @property
    def _price(self) -> Price:
        if (given := self.asked.given) is not None:
            return given
        costs = [(self.asked.scale(run.params), paid(self.asked, run)) for run in self.runs]
        known = [(scale, cost) for scale, cost in costs if cost is not None]
        if not known:
            return lambda params, scale: math.prod(scale.values())
        law = CostLaw.fit([scale for scale, _ in known], [cost for _, cost in known])
        return lambda params, scale: law(scale)


def paid(asked: Asked, run: Run) -> float | None:
    """What a run says that it cost; None where it need not: at one scale, by a function, or as it diverged."""
    if not asked.axes or callable(asked.cost) or (run.cost is None and math.isinf(run.loss)):
        return None
    if not (is_number(run.cost) and 0 < run.cost < math.inf):
        raise BadInput(
            f"cost: the metric {asked.cost!r} of a completed trial must be a number above zero, got {run.cost!r}; "
            "report it, or give cost= a function of the scale"
        )
    return float(run.cost)


def _single(d: BaseDistribution) -> Any:
    """The one value of a parameter that is not searched."""
    return d.choices[0] if isinstance(d, CategoricalDistribution) else d.low  # type: ignore[attr-defined]
