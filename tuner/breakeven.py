"""Does searching small pay, and at which scale? The bill of the theorem, from measured or assumed constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import BadInput, is_number
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.space import Categorical
from tuner.theorem import MODELS, SIZES, Allowed, Law, Proxy, Sizes, Span, searched

Array = NDArray[np.float64]

DRAWS = 512  # of what is assumed
RANGES = {
    "alpha": (0.01, 4.0),
    "ratio": (0.5, 2.0),
    "gap": (0.0, 1e6),
    "curvature": (1e-9, 1e6),
    "drift": (0.0, 1e3),
    "noise": (0.0, 1e6),
    "r": (0.01, 10.0),
}


@dataclass(frozen=True)
class Assumptions:
    """What is assumed of a study without runs. Losses are relative to the loss.

    Args:
        alpha: exponent of the loss gap. ratio: beta / alpha: at least 1/2 (Proposition 2), 1 if corrections are smooth.
        gap: B. curvature: what is lost a factor e from the optimum of one hyperparameter, above zero.
        drift: how far the optimum of the smallest proxy lies from the target's, nats; None: by the preset's prior.
        noise: deviation of one run at the target.
        r: exponent of the cost of a run; None: what the study's cost says.

    Raises:
        BadInput: a value outside of what it may be.
    """

    alpha: float = 0.5
    ratio: float = 0.75
    gap: float = 0.1
    curvature: float = 0.02
    drift: float | None = None
    noise: float = 0.002
    r: float | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (is_number(value) and low <= value <= high):
                raise BadInput(f"assume: {name} must be a number from {low:g} to {high:g}, got {value!r}; correct it")

    def __str__(self) -> str:
        own = {"drift": "the preset's prior", "r": "the study's cost"}
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return ", ".join(f"{name} {own[name] if value is None else value}" for name, value in given.items())

    @staticmethod
    def read(given: Sequence[str]) -> Assumptions:
        """From NAME=VALUE, each name once. Raises BadInput."""
        found: dict[str, float] = {}
        for item in given:
            name, _, value = item.partition("=")
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if name not in RANGES or name in found or math.isnan(number):
                raise BadInput(
                    f"assume: must be one of {', '.join(RANGES)}, each once, = and a number, got {item!r}; write for "
                    "example alpha=0.5"
                )
            found[name] = number
        return Assumptions(**found)

    def law(self, problem: Problem, sizes: Sizes) -> Law:
        """The constants that follow."""
        ones, beta = np.ones(DRAWS), self.ratio * self.alpha
        ranges = [problem.nats(name) for name, d in problem.space.items() if not isinstance(d, Categorical)]
        if not ranges:
            raise BadInput("assume: a numeric hyperparameter is needed, the space has none; run pilots instead")
        # of K points at random the nearest to the optimum: a ball about it of volume prod(L) / K holds one on average,
        # and the square of its radius is Gamma(1 + 2 / h) (prod(L) / (K ball))^(2/h) in expectation, far from the ends
        # of the ranges; with the optimum anywhere in them the expectation is more, by a third with four and 8 runs
        h, choices = searched(problem)
        search = self.curvature * math.gamma(1 + 2 / h) * (math.prod(ranges) / _ball(h)) ** (2 / h)
        drift = _drift(problem, problem.cheapest) if self.drift is None else self.drift * ones
        bias = self.curvature * drift**2 / (sizes(problem.cheapest) ** -beta - 1) ** 2
        constants = (search * ones, self.gap * ones, bias, self.alpha * ones, beta * ones)
        return Law(h * ones, choices, sizes.r if self.r is None else self.r, *constants)


def _ball(h: int) -> float:
    """The volume of the unit ball in h dimensions."""
    return float(math.pi ** (h / 2) / math.gamma(h / 2 + 1))


def _drift(problem: Problem, scale: Scale) -> Array:
    """Draws of how far the optimum at a scale lies from the target's by the preset's prior, nats, (draws,)."""
    rng = np.random.default_rng(0)
    moved = np.zeros((DRAWS, len(problem.space)))
    for j, (name, dimension) in enumerate(problem.space.items()):
        for axis in () if isinstance(dimension, Categorical) else problem.axes:
            mean, sd = problem.parametrization.belief(problem.space, name, axis, problem.target)
            moved[:, j] += rng.normal(mean, sd, DRAWS) * math.log(problem.target[axis] / scale[axis])
    found: Array = np.linalg.norm(moved, axis=1)
    return found


@dataclass(frozen=True)
class Line:
    """A search at one proxy.

    Args:
        cost: of a run, target runs. runs: that the budget affords.
        bias, error: what the proxy's optimum loses at the target, and what the search misses. loses: their sum.
    """

    scale: Scale
    cost: float
    runs: float
    bias: Span
    error: Span
    loses: Span

    @staticmethod
    def of(law: Law, scale: Scale, proxy: Proxy, budget: float) -> Line:
        runs = budget / proxy.cost
        bias, error = law.biased(proxy), law.missed(runs)
        return Line(scale, proxy.cost, runs, Span.of(bias), Span.of(error), Span.of(bias + error))


@dataclass(frozen=True)
class BreakEven:
    """What a budget buys from below and directly, where the two cross, and the model worth training.

    Args:
        budget: of the search, target runs; the run at the target is on top of it.
        lines: one a proxy, cheapest first. direct: what a direct search loses that costs as much in all.
        best: the proxy that loses least. size: the one that would, were any size at hand.
        crossing: target runs in all from which on direct tuning loses less; infinite: never.
        allowed: to be lost. directly, from_below: target runs in all to lose no more than that.
        split: share of that regret for the bias of scale.
        largest: size, relative to the target, of the model worth training where this is all there is to spend.
        law, axis: the constants, and what size means. origin: of the constants, in words.
        unit: of losses: "loss", or "relative" where they are shares of it.
    """

    target: Scale
    budget: float
    lines: tuple[Line, ...]
    direct: Span
    best: Scale
    size: Span
    crossing: Span
    allowed: Allowed
    directly: Span
    from_below: Span
    split: Span
    largest: Span
    law: Law
    axis: str
    origin: str
    unit: str

    @staticmethod
    def of(
        problem: Problem, law: Law, sizes: Sizes, budget: float, allowed: Allowed, origin: str, unit: str = "loss"
    ) -> BreakEven:
        """Raises BadInput where no proxy is smaller and cheaper than the target, or the budget affords no run."""
        scales = sizes.below(problem.proxies)
        if not scales:
            raise BadInput(f"scale: a proxy smaller than {problem.target} is needed, got none; add one")
        proxies = law.proxies(sizes, scales)
        if budget < proxies[0].cost:
            raise BadInput(
                f"budget: must afford a run, of {proxies[0].cost:.3g} target runs at least, got {budget:g}; raise it"
            )
        lines = tuple(Line.of(law, scale, proxy, budget) for scale, proxy in zip(scales, proxies, strict=True))
        directly, below = law.to_reach(allowed.loss, proxies)
        return BreakEven(
            target=problem.target,
            budget=budget,
            lines=lines,
            direct=Span.of(law.missed(budget + 1)),
            best=min(lines, key=lambda line: line.loses.middle).scale,
            size=Span.of(law.best_size(budget + 1), least=SIZES[0]),
            crossing=Span.of(law.break_even(proxies, allowed.loss)),
            allowed=allowed,
            directly=Span.of(directly),
            from_below=Span.of(below),
            split=Span.of(law.split(allowed.loss)),
            largest=Span.of(law.largest(budget + 1), MODELS[0], MODELS[-1]),
            law=law,
            axis=sizes.axis,
            origin=origin,
            unit=unit,
        )

    def as_json(self) -> dict[str, Any]:
        """Spans as {"median", "interval"}; null is what is infinite, never, or beyond what was looked at."""
        constants = {name: Span.of(getattr(self.law, name)) for name in ("h", "search", "gap", "bias")} | self.law.rates
        return {
            "target": dict(self.target),
            "budget": self.budget,
            "proxies": [
                {
                    "scale": dict(line.scale),
                    "cost": line.cost,
                    "runs": line.runs,
                    "bias": line.bias.as_json(),
                    "search_error": line.error.as_json(),
                    "regret": line.loses.as_json(),
                }
                for line in self.lines
            ],
            "direct": {"regret": self.direct.as_json()},
            "best_proxy": dict(self.best),
            "best_size": self.size.as_json(),
            "break_even": self.crossing.as_json(),
            "allowed": {"loss": self.allowed.loss, "of": self.allowed.name},
            "to_allowed": {"direct": self.directly.as_json(), "below": self.from_below.as_json()},
            "split": self.split.as_json(),
            "largest_model": self.largest.as_json(),
            "constants": {"r": self.law.r, **{name: span.as_json() for name, span in constants.items()}},
            "axis": self.axis,
            "origin": self.origin,
            "unit": self.unit,
        }
