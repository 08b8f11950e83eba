"""Does searching small pay, and at which scale? The theorem of fast transfer, with its constants.

With s the size of a proxy over the target's (of widths; where scale has several axes, of costs, and r = 1), h
hyperparameters and K runs (Ghosh, Wu and Bietti 2025, arXiv 2512.22768, Theorem 2 and its proof in appendix B.3;
everything relative to the target, in the place of infinity):

    a run at s costs                      s^r                     target runs
    what a model of size s loses          a = B (s^-alpha - 1)
    what its optimum loses at the target  c = C (s^-beta - 1)^2
    what a search of K runs loses         e = A K^(-2/h)

A direct search of F target runs loses A F^(-2/h); one at s, the run at the target set aside, c + A ((F-1) s^-r)^(-2/h).
The search is one that spreads its runs over the space and keeps the best; a cleverer one has a smaller A on both sides.
That the optimum of s is used as it is makes c an upper end for a search that corrects its drift.

The constants are measured from runs (`tuner.transfer`), or assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import BadInput
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.space import Categorical

Array = NDArray[np.float64]

SURE = 0.9  # the level of every interval here: what it says is wrong one time in ten where the surrogate is calibrated
TAILS = ((1 - SURE) / 2, (1 + SURE) / 2)
TOTALS = np.geomspace(1.001, 1e6, 600)  # target runs in which a break-even is looked for
SIZES = np.geomspace(1e-4, 1.0, 200)  # of proxies, and of models worth training
DRAWS = 512  # of what is assumed
MODELS = np.geomspace(1e-2, 1e3, 300)


@dataclass(frozen=True)
class Span:
    """Posterior median and central 90 %."""

    middle: float
    low: float
    high: float

    @staticmethod
    def of(draws: Array) -> Span:
        low, middle, high = np.quantile(draws, [TAILS[0], 0.5, TAILS[1]], method="nearest")  # infinity is no number
        return Span(float(middle), float(low), float(high))

    def __str__(self) -> str:
        low, middle, high = (f"{v:.3g}" if math.isfinite(v) else "never" for v in (self.low, self.middle, self.high))
        return middle if low == high else f"{middle} ({low} .. {high})"

    def as_json(self) -> dict[str, Any]:
        """Not a number and infinity as null."""
        middle, low, high = (v if math.isfinite(v) else None for v in (self.middle, self.low, self.high))
        return {"median": middle, "interval": [low, high]}


@dataclass(frozen=True)
class Sizes:
    """How large a scale is for the theorem, relative to the target, and the exponent r of what a run costs.

    Args:
        axis: whose ratio it is; "cost" where scale has several axes, or one that does not grow.
        target: the value there.
        costs: target runs of a run at each proxy.
    """

    axis: str
    r: float
    target: Scale
    costs: Mapping[Scale, float]

    @staticmethod
    def of(problem: Problem) -> Sizes:
        whole = problem.cost(problem.space.middle, problem.target)
        costs = {scale: problem.cost(problem.space.middle, scale) / whole for scale in problem.proxies}
        logs = [math.log(scale[axis] / problem.target[axis]) for scale in costs for axis in problem.axes]
        if len(problem.axes) > 1 or max(logs) >= 0:
            return Sizes("cost", 1.0, problem.target, costs)
        r = np.dot(logs, np.log(list(costs.values()))) / np.dot(logs, logs)  # least squares through the target
        return Sizes(problem.axes[0], float(r), problem.target, costs)

    def __call__(self, scale: Scale) -> float:
        return self.costs[scale] if self.axis == "cost" else scale[self.axis] / self.target[self.axis]


@dataclass(frozen=True)
class Law:
    """The constants, as draws: each an array (draws,), losses in the loss's units.

    Args:
        h: hyperparameters that are searched. r: exponent of the cost of a run.
        search: A. gap: B. bias: C. alpha, beta: exponents.
    """

    h: int
    r: float
    search: Array = field(repr=False)
    gap: Array = field(repr=False)
    bias: Array = field(repr=False)
    alpha: Array = field(repr=False)
    beta: Array = field(repr=False)

    @staticmethod
    def of_gaps(
        h: int, r: float, sizes: Array, excess: Array, regrets: Array, search: Array, alpha: Array, beta: Array
    ) -> Law:
        """From draws of a and c at proxies of some sizes (s,): arrays (s, draws).

        The sums over proxies agree, so that the largest gaps count most: the small ones are mostly noise.
        """
        below = sizes[:, None]
        gap = np.abs(excess.sum(0)) / (below**-alpha - 1).sum(0)
        bias = regrets.sum(0) / np.square(below**-beta - 1).sum(0)
        return Law(h, r, search, gap, bias, alpha, beta)

    @property
    def ratio(self) -> Array:
        """beta / alpha, (draws,)."""
        return self.beta / self.alpha

    def lost(self, size: float) -> Array:
        """c: what the optimum of a size loses at the target, (draws,)."""
        found: Array = self.bias * (size**-self.beta - 1) ** 2
        return found

    def missed(self, runs: float | Array) -> Array:
        """e: what a search of some runs loses; infinite for less than one."""
        runs = np.asarray(runs, dtype=float)
        found: Array = np.where(runs >= 1, self.search * np.maximum(runs, 1.0) ** (-2 / self.h), np.inf)
        return found

    def below(self, total: float | Array, size: float) -> Array:
        """Regret of a search at one size, with the target's own run paid from the total."""
        return self.lost(size) + self.missed((np.asarray(total) - 1) * size**-self.r)

    def to_reach(self, regret: float, sizes: Sequence[float]) -> tuple[Array, Array]:
        """Target runs to reach a regret, directly and from the best of some sizes with the target's own run: (draws,).

        Infinite from below where every size is biased by more.
        """

        def runs(left: Array) -> Array:
            found: Array = np.maximum((self.search / np.where(left > 0, left, 1.0)) ** (self.h / 2), 1.0)
            return np.where(left > 0, found, np.inf)

        below = [size**self.r * runs(regret - self.lost(size)) for size in sizes]
        return runs(np.full_like(self.search, regret)), 1 + np.min(below, axis=0)

    def break_even(self, sizes: Sequence[float], noise: float) -> Array:
        """Target runs from which on a direct search loses less than the best one from below, (draws,); inf: never.

        A loss within one run's noise counts as that noise: nobody could tell which of two such searches is ahead.
        """
        totals = TOTALS[:, None]
        below = np.maximum(np.min([self.below(totals, size) for size in sizes], axis=0), noise)
        behind = np.maximum(self.missed(totals), noise) >= below  # (totals, draws)
        last = len(TOTALS) - 1 - behind[::-1].argmax(0)
        crossed = np.append(TOTALS, np.inf)[np.where(behind.any(0), last + 1, 0)]
        return np.asarray(crossed)

    def best_size(self, total: float) -> Array:
        """The size to search at, whatever the proxies are, (draws,)."""
        lost = np.array([self.below(total, size) for size in SIZES])
        return np.asarray(SIZES[lost.argmin(0)])

    def split(self) -> Array:
        """The share of a tolerated regret that is best left to the bias of scale, the rest to the search.

        From minimising (A / (1 - t) d)^(h/2) (C / t d)^(r / 2 beta) over t.
        """
        return self.r / (self.r + self.h * self.beta)

    def largest(self, total: float) -> Array:
        """Size of the model that is best trained where the budget is all there is, its search included, (draws,)."""
        best, found = np.full_like(self.search, np.inf), np.full_like(self.search, np.nan)
        for model in MODELS[MODELS**self.r < total]:
            small = model * SIZES[:, None]
            lost = self.bias * (small**-self.beta - model**-self.beta) ** 2
            lost = lost + self.missed((total - model**self.r) * small**-self.r) + self.gap * model**-self.alpha
            least = lost.min(0)
            found, best = np.where(least < best, model, found), np.minimum(best, least)
        return found


@dataclass(frozen=True)
class Assumptions:
    """What is assumed of a study without runs. Losses are relative to the loss.

    Args:
        alpha: exponent of the loss gap. ratio: beta / alpha, from 1/2 (Proposition 2) to 1 (smooth corrections).
        gap: B. curvature: what is lost a factor e from the optimum of one hyperparameter.
        drift: how far the optimum of the smallest proxy lies from the target's, nats; None: by the preset's prior.
        noise: deviation of one run at the target.
    """

    alpha: float = 0.5
    ratio: float = 0.75
    gap: float = 0.1
    curvature: float = 0.02
    drift: float | None = None
    noise: float = 0.002

    def __str__(self) -> str:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        told = {**given, "drift": "the preset's prior" if self.drift is None else self.drift}
        return ", ".join(f"{name} {value}" for name, value in told.items())

    @staticmethod
    def read(given: Sequence[str]) -> Assumptions:
        """From NAME=VALUE. Raises BadInput."""
        names, found = [each.name for each in fields(Assumptions)], dict[str, float]()
        for item in given:
            name, _, value = item.partition("=")
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if name not in names or not 0 < number < math.inf:
                raise BadInput(
                    f"assume: must be one of {', '.join(names)}, = and a number above zero, got {item!r}; write for "
                    "example alpha=0.5"
                )
            found[name] = number
        return Assumptions(**found)

    def law(self, problem: Problem, sizes: Sizes) -> Law:
        """The constants that follow."""
        ones, beta = np.ones(DRAWS), self.ratio * self.alpha
        ranges = [problem.nats(name) for name, d in problem.space.items() if not isinstance(d, Categorical)]
        # a grid of K points has spacings L K^(-1/h), and the square of the distance to it is their twelfth on average
        search = self.curvature * np.square(ranges).sum() / 12
        smallest = problem.cheapest
        drift = _drift(problem, smallest) if self.drift is None else self.drift * ones
        bias = self.curvature * drift**2 / (sizes(smallest) ** -beta - 1) ** 2
        return Law(searched(problem), sizes.r, search * ones, self.gap * ones, bias, self.alpha * ones, beta * ones)


def searched(problem: Problem) -> int:
    """h: hyperparameters with a distance, at least one; a choice multiplies the runs instead."""
    return max(1, sum(not isinstance(d, Categorical) for d in problem.space.values()))


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
    def of(law: Law, scale: Scale, size: float, budget: float) -> Line:
        cost = size**law.r
        bias, error = law.lost(size), law.missed(budget / cost)
        return Line(scale, cost, budget / cost, Span.of(bias), Span.of(error), Span.of(bias + error))


@dataclass(frozen=True)
class BreakEven:
    """What a budget buys from below and directly, where the two cross, and the model worth training.

    Args:
        budget: of the search, target runs; the run at the target is on top of it.
        lines: one a proxy, cheapest first. direct: what a direct search loses that costs as much in all.
        best: the proxy that loses least. size: the one that would, were any size at hand.
        crossing: target runs in all from which on direct tuning loses less; infinite: never.
        noise: of one run. to_noise: target runs in all until direct tuning, and a search from below, lose no more.
        split: share of a tolerated regret for the bias of scale.
        largest: size, relative to the target, of the model worth training where this is all there is to spend.
        law, sizes: the constants, and what size means. origin: of the constants, in words.
    """

    target: Scale
    budget: float
    lines: tuple[Line, ...]
    direct: Span
    best: Scale
    size: Span
    crossing: Span
    noise: float
    to_noise: tuple[Span, Span]
    split: Span
    largest: Span
    law: Law
    sizes: Sizes
    origin: str

    @staticmethod
    def of(problem: Problem, law: Law, sizes: Sizes, budget: float, noise: float, origin: str) -> BreakEven:
        """Raises BadInput where no proxy is smaller than the target."""
        proxies = sorted((scale for scale in problem.proxies if sizes(scale) < 1), key=sizes.costs.__getitem__)
        if not proxies:
            raise BadInput(f"scale: a proxy smaller than {problem.target} is needed, got none; add one")
        lines = tuple(Line.of(law, scale, sizes(scale), budget) for scale in proxies)
        below = [sizes(scale) for scale in proxies]
        return BreakEven(
            target=problem.target,
            budget=budget,
            lines=lines,
            direct=Span.of(law.missed(budget + 1)),
            best=min(lines, key=lambda line: line.loses.middle).scale,
            size=Span.of(law.best_size(budget + 1)),
            crossing=Span.of(law.break_even(below, noise)),
            noise=noise,
            to_noise=(Span.of(law.to_reach(noise, below)[0]), Span.of(law.to_reach(noise, below)[1])),
            split=Span.of(law.split()),
            largest=Span.of(law.largest(budget + 1)),
            law=law,
            sizes=sizes,
            origin=origin,
        )

    def as_json(self) -> dict[str, Any]:
        """Spans as {"median", "interval"}; an infinite end, never, as null."""
        law = {name: getattr(self.law, name) for name in ("search", "gap", "bias", "alpha", "beta")}
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
            "noise": self.noise,
            "to_noise": {"direct": self.to_noise[0].as_json(), "below": self.to_noise[1].as_json()},
            "split": self.split.as_json(),
            "largest_model": self.largest.as_json(),
            "constants": {"h": self.law.h, "r": self.law.r, **{n: Span.of(d).as_json() for n, d in law.items()}},
            "axis": self.sizes.axis,
            "origin": self.origin,
        }
