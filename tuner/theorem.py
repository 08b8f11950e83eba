"""The theorem of fast transfer, with its constants: what searches below the target and at it lose for their cost.

With s the size of a proxy over the target's (of widths; where scale has several axes, of costs, and r = 1), h
hyperparameters and K runs (Ghosh, Wu and Bietti 2025, arXiv 2512.22768, Theorem 2 and its proof in appendix B.3;
everything relative to the target, in the place of infinity):

    a run at s costs                      s^r                     target runs
    what a model of size s loses          a = B (s^-alpha - 1)
    what its optimum loses at the target  c = C (s^-beta - 1)^2
    what a search of K runs loses         e = A (K / choices)^(-2/h)

A direct search of F target runs loses A F^(-2/h); one at s, the target's own run paid first, c + A ((F-1) s^-r)^(-2/h).
The search is one that spreads its runs over the space and keeps the best; a cleverer one has a smaller A on both sides.
That the optimum of s is used as it is makes c an upper end for a search that corrects its drift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.problem import Problem
from tuner.scale import Scale, by_scale
from tuner.space import Categorical
from tuner.trial import LEVEL, TAILS, Observation, Recommendation

Array = NDArray[np.float64]

SURE = LEVEL  # the probability with which a verdict is right
NOISE, TOLERANCE = "a run's noise", "the tolerance"
EXPONENTS = np.exp(np.linspace(np.log(0.05), np.log(4.0), 120))  # that a rate may have
TOTALS = np.geomspace(1.001, 1e6, 600)  # target runs in which a break-even is looked for
SIZES = np.geomspace(1e-4, 1.0, 200)  # of proxies, beside the model that is trained
MODELS = np.geomspace(1e-2, 1e3, 300)  # worth training
SHARES = np.linspace(0.001, 0.999, 500)  # of a tolerated regret


@dataclass(frozen=True)
class Span:
    """Posterior median and central 90 %; an end may be infinite, and all are not numbers where nothing can be said.

    Args:
        ends: of where it was looked for: what is at one may lie beyond.
    """

    middle: float
    low: float
    high: float
    ends: tuple[float, float] = (-math.inf, math.inf)

    @staticmethod
    def of(draws: Array, least: float = -math.inf, most: float = math.inf) -> Span:
        low, middle, high = np.quantile(draws, [TAILS[0], 0.5, TAILS[1]], method="nearest")  # infinity is no number
        return Span(float(middle), float(low), float(high), (float(least), float(most)))

    def __str__(self) -> str:
        middle, low, high = (self._shown(v) for v in (self.middle, self.low, self.high))
        return middle if low == high else f"{middle} ({low} .. {high})"

    def _shown(self, value: float) -> str:
        if not math.isfinite(value):
            return "none" if math.isnan(value) else "inf"
        least, most = self.ends
        return f"{'<=' if value == least else '>=' if value == most else ''}{value:.3g}"

    def as_json(self) -> dict[str, Any]:
        """As null: infinity, what is no number, and what may lie beyond the grid it was looked for on."""
        told = (v if math.isfinite(v) and v not in self.ends else None for v in (self.middle, self.low, self.high))
        middle, low, high = told
        return {"median": middle, "interval": [low, high]}


@dataclass(frozen=True)
class Allowed:
    """What may be lost at the target: the noise of one run there, less than which nobody could tell from nothing; or
    the tolerance where that is more.
    """

    loss: float
    name: str

    @staticmethod
    def of(answer: Recommendation, tolerance: float | None) -> Allowed:
        put_up_with = 0.0 if tolerance is None else tolerance * abs(answer.loss)
        noisy = answer.noise >= put_up_with
        return Allowed(answer.noise, NOISE) if noisy else Allowed(put_up_with, TOLERANCE)

    def __str__(self) -> str:
        return f"{self.name} of {self.loss:.3g}"


@dataclass(frozen=True)
class Sizes:
    """How large a scale is for the theorem, relative to the target, and what its runs cost.

    Args:
        axis: whose ratio it is; "cost" where scale has several axes, or one that does not grow.
        r: exponent of the cost of a run: 2 for width at a fixed number of steps.
        cost: of a run at a scale, target runs.
    """

    problem: Problem = field(repr=False)
    axis: str
    r: float
    whole: float

    @staticmethod
    def of(problem: Problem, observations: Sequence[Observation] = ()) -> Sizes:
        """r from the costs that runs were charged, where they are at two scales and the target has one axis."""
        whole = problem.run_cost(problem.target)
        logs = [math.log(scale[axis] / problem.target[axis]) for scale in problem.proxies for axis in problem.axes]
        if len(problem.axes) != 1 or max(logs) >= 0:
            return Sizes(problem, "cost", 1.0, whole)
        [axis] = problem.axes
        costs = {s: [observations[i].cost for i in rows] for s, rows in by_scale(o.scale for o in observations).items()}
        if len(costs) > 1:
            widths = [math.log(scale[axis]) for scale in costs]
            paid = [math.log(float(np.median(some))) for some in costs.values()]
            return Sizes(problem, axis, float(np.polyfit(widths, paid, 1)[0]), whole)
        asked = [math.log(problem.run_cost(scale) / whole) for scale in problem.proxies]
        return Sizes(problem, axis, float(np.dot(logs, asked) / np.dot(logs, logs)), whole)  # through the target

    def __call__(self, scale: Scale) -> float:
        return self.cost(scale) if self.axis == "cost" else scale[self.axis] / self.problem.target[self.axis]

    def cost(self, scale: Scale) -> float:
        return self.problem.run_cost(scale) / self.whole

    def below(self, scales: Sequence[Scale]) -> list[Scale]:
        """Those that are smaller than the target and cost less, cheapest first."""
        return sorted((s for s in scales if self(s) < 1 and self.cost(s) < 1), key=lambda s: (self.cost(s), self(s)))


def searched(problem: Problem) -> tuple[int, int]:
    """h, the hyperparameters with a distance, at least one; and how many combinations the others have."""
    choices = [len(d.choices) for d in problem.space.values() if isinstance(d, Categorical)]
    return max(1, len(problem.space) - len(choices)), math.prod(choices)


@dataclass(frozen=True)
class Proxy:
    """A size to search at, and what a run there costs, target runs.

    Args:
        lost: c, where runs there tell it, (draws,); None: by the power law.
    """

    size: float
    cost: float
    lost: Array | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Law:
    """The constants, as draws: each an array (draws,), losses in the loss's units.

    Args:
        h: hyperparameters that are searched and count. choices: combinations of the categorical ones, each searched by
            itself.
        r: exponent of the cost of a run.
        search: A. gap: B. bias: C. alpha, beta: exponents.
        told: whether the runs tell beta; if not it is drawn between alpha / 2 and alpha, where theory has it.
        seen: c at scales where runs tell it, which the power law is only near to.
    """

    h: Array = field(repr=False)
    choices: int
    r: float
    search: Array = field(repr=False)
    gap: Array = field(repr=False)
    bias: Array = field(repr=False)
    alpha: Array = field(repr=False)
    beta: Array = field(repr=False)
    told: bool = True
    seen: Mapping[Scale, Array] = field(default_factory=dict, repr=False)

    @property
    def ratio(self) -> Array:
        """beta / alpha, (draws,)."""
        return self.beta / self.alpha

    @property
    def rates(self) -> dict[str, Span]:
        """alpha and beta."""
        least, *_, most = EXPONENTS
        return {"alpha": Span.of(self.alpha, least, most), "beta": Span.of(self.beta, least, most)}

    def lost(self, size: float) -> Array:
        """c: what the optimum of a size loses at the target, (draws,)."""
        found: Array = self.bias * (size**-self.beta - 1) ** 2
        return found

    def proxies(self, sizes: Sizes, scales: Sequence[Scale]) -> list[Proxy]:
        """Those of the scales to search at, cheapest first, with what runs tell of them."""
        return [Proxy(sizes(scale), sizes.cost(scale), self.seen.get(scale)) for scale in sizes.below(scales)]

    def biased(self, proxy: Proxy) -> Array:
        """c of a proxy, (draws,)."""
        return self.lost(proxy.size) if proxy.lost is None else proxy.lost

    def missed(self, runs: float | Array) -> Array:
        """e: what a search of some runs loses; infinite for less than one."""
        runs = np.asarray(runs, dtype=float)
        each = np.maximum(runs / self.choices, 1.0)
        found: Array = np.where(runs >= 1, self.search * each ** (-2 / self.h), np.inf)
        return found

    def below(self, total: float | Array, proxy: Proxy) -> Array:
        """Regret of a search at one proxy, the target's own run paid from the total."""
        return self.biased(proxy) + self.missed((np.asarray(total) - 1) / proxy.cost)

    def runs(self, regret: Array) -> Array:
        """How many a search needs to lose no more than that, (draws,); infinite where that is nothing."""
        found: Array = self.choices * np.maximum((self.search / np.where(regret > 0, regret, 1.0)) ** (self.h / 2), 1)
        return np.where(regret > 0, found, np.inf)

    def to_reach(self, regret: float, proxies: Sequence[Proxy]) -> tuple[Array, Array]:
        """Target runs to reach a regret, directly, and from the best of some proxies with the target's own run.

        (draws,) each. The best is the one with the smallest median; infinite where it is biased by more.
        """
        costs = [1 + proxy.cost * self.runs(regret - self.biased(proxy)) for proxy in proxies]
        return self.runs(np.full_like(self.search, regret)), min(costs, key=lambda c: float(np.median(c)))

    def break_even(self, proxies: Sequence[Proxy], allowed: float) -> Array:
        """Target runs from which on a direct search loses less than the best from below, (draws,); infinite: never.

        A loss within what is allowed counts as that: of two searches so good neither is ahead.
        """
        each = np.array([self.below(TOTALS[:, None], proxy) for proxy in proxies])  # (proxies, totals, draws)
        best = np.median(each, axis=2).argmin(0)
        below = np.maximum(each[best, np.arange(len(TOTALS))], allowed)
        direct = np.maximum(self.missed(TOTALS[:, None]), allowed)
        behind = direct > below
        first = np.where(behind.any(0), len(TOTALS) - behind[::-1].argmax(0), 0)  # after the last where it is behind
        ahead = np.append(direct < below, np.zeros((1, direct.shape[1]), dtype=bool), 0)
        later = np.cumsum(ahead[::-1], axis=0)[::-1] > 0  # whether it is ahead there or later
        crossed = np.append(TOTALS, np.inf)[np.where(later[first, np.arange(len(first))], first, len(TOTALS))]
        return np.asarray(crossed)

    def best_size(self, total: float) -> Array:
        """The size to search at, were any at hand, (draws,); not a number where no run can be paid."""
        lost = np.array([self.below(total, Proxy(size, size**self.r)) for size in SIZES])
        return np.where(np.isfinite(lost.min(0)), SIZES[lost.argmin(0)], np.nan)

    def split(self, regret: float) -> Array:
        """The share of a tolerated regret that is best left to the bias of scale, the rest to the search, (draws,).

        The t at which the size with c = t regret is searched to an error of (1 - t) regret for least; far below the
        target r / (r + h beta).
        """
        shares = SHARES[:, None]
        logs = np.log1p(np.sqrt(shares * regret / np.maximum(self.bias, np.finfo(float).tiny)))  # -beta ln s
        cost = -0.5 * self.h * np.log(1 - shares) - self.r / self.beta * logs
        return np.asarray(SHARES[cost.argmin(0)])

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
