"""The gaps between a proxy and the target, read off joint draws of the landscape at every scale.

With phi_n the loss at scale n in base coordinates x, x*(n) where it is smallest, and the target N in the place of
infinity (Ghosh, Wu and Bietti 2025, arXiv 2512.22768, definitions 1 to 3):

    a_n = phi_n(x*(n)) - phi_N(x*(N))        loss gap: what a smaller model loses
    b_n = |x*(n) - x*(N)|                    optimum gap, in nats
    c_n = phi_N(x*(n)) - phi_N(x*(N))        suboptimality gap: what its optimum loses at the target

    a_n ~ n^-alpha, b_n ~ n^-beta
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import comb
from scipy.stats import qmc, spearmanr

from tuner.posterior import SCREEN, candidates
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.space import Categorical
from tuner.surrogate.fit import Fit
from tuner.surrogate.optimum import Points
from tuner.theorem import EXPONENTS, SURE, Allowed, Law, Sizes, Span, searched

Array = NDArray[np.float64]

NEAR = 32  # points near where the optimum of a scale may be
DRAWS = 512  # of the landscape
TINY = 1e-3  # of a gap's mean: below it a logarithm means nothing
FILLING = 256  # space-filling points: what a search spreads is drawn from them
SPREAD = (8, 16, 32, 64)  # runs of a search that spreads them, by which its constants are told


@dataclass(frozen=True)
class Gap:
    """What sets a proxy apart from the target.

    Args:
        loss: a_n, signed, in loss units. optimum: b_n, in nats over the numeric hyperparameters. regret: c_n.
        copied: what the setting that seems best there, unchanged in base coordinates, loses at the target.
        within: the probability that no more than is allowed is to be expected of it.
        noise: deviation of one run there.
        rank: Spearman correlation of the posterior means there and at the target, over settings that fill the space.
        measured: c as runs at the target show it: what the best setting that was run there lost at the target, where
            that was run too, beside the best that was; None where it was not.
    """

    scale: Scale
    runs: int
    loss: Span
    optimum: Span
    regret: Span
    copied: Span
    within: float
    noise: float
    rank: float
    measured: float | None = None


@dataclass(frozen=True)
class AtScale:
    """Losses at a scale, of its own optimum and of the smallest scale's: the main visual test of transfer.

    Where the two fall alike, what is best small is best large (Ghosh, Wu and Bietti 2025, figure 6b).
    """

    scale: Scale
    own: Span
    smallest: Span


@dataclass(frozen=True)
class Landscape:
    """Joint draws of the noise-free loss over a pool of settings, at proxies and the target.

    Args:
        pool: (k, d) base cube points; those of `named` come first, in their order.
        losses: (scales, draws, k); the target is last. means: (scales, k), of the posterior.
        noises: (scales,) deviation of one run where the mean is lowest.
        spread: the same over settings that fill the space.
        members: (draws,) which process of the set each draw is of.
    """

    named: tuple[str, ...]
    pool: Array
    losses: Array
    means: Array
    noises: Array
    spread: Array
    members: NDArray[np.intp]

    @staticmethod
    def of(
        problem: Problem,
        fitted: Fit,
        scales: Sequence[Scale],
        settings: Mapping[str, Array],
        generator: torch.Generator,
    ) -> Landscape:
        with torch.no_grad():
            near = [candidates(problem, fitted, n, generator, rounds=2, count=NEAR)[-2 * NEAR :] for n in scales]
            pool = np.vstack([*settings.values(), *near])
            points = Points(fitted, torch.cat([problem.inputs(pool, scale) for scale in scales]))
            latent, members = points.draws(DRAWS, generator)
            losses = points.losses(latent, members).numpy()
            filling = candidates(problem, fitted, scales[-1], generator)[:SCREEN]
            spread = [Points(fitted, problem.inputs(filling, scale)).mean.numpy() for scale in scales]
        shape = (len(scales), len(pool))
        drawn, means = np.moveaxis(losses.reshape(DRAWS, *shape), 0, 1), points.mean.numpy().reshape(shape)
        sd = (fitted.weights @ points.noise.sqrt()).numpy().reshape(shape)
        lowest, data = means.argmin(1), fitted.processes.data
        noises = [data.deviation(float(drawn[s, :, k].mean()), float(sd[s, k])) for s, k in enumerate(lowest)]
        return Landscape(tuple(settings), pool, drawn, means, np.array(noises), np.array(spread), members.numpy())

    @cached_property
    def lowest(self) -> NDArray[np.intp]:
        """Where each draw is smallest: (scales, draws)."""
        found: NDArray[np.intp] = self.losses.argmin(-1)
        return found

    def regret(self, setting: str | int, scale: int = -1) -> Array:
        """What a setting of the pool loses at a scale: (draws,)."""
        k = self.named.index(setting) if isinstance(setting, str) else setting
        there = self.losses[scale]
        lost: Array = there[:, k] - there.min(-1)
        return lost

    def expected(self, lost: Array) -> Array:
        """What is to be expected where a draw's process is right: means over its draws, (draws,)."""
        sums, counts = np.bincount(self.members, lost), np.bincount(self.members)
        found: Array = (sums / np.maximum(counts, 1))[self.members]
        return found

    def excess(self, s: int) -> Array:
        """a: how far the optimum's loss at a scale lies above the target's, (draws,)."""
        above: Array = self.losses[s].min(-1) - self.losses[-1].min(-1)
        return above

    def at(self, s: int, scale: Scale) -> AtScale:
        """What its own optimum and that of the smallest scale reach at a scale."""
        return AtScale(scale, Span.of(self.losses[s].min(-1)), Span.of(self.losses[s][:, self.means[0].argmin()]))

    def carried(self, s: int) -> Array:
        """c: what the optimum at a scale loses at the target, (draws,)."""
        target = self.losses[-1]
        lost: Array = target[np.arange(len(target)), self.lowest[s]] - target.min(-1)
        return lost

    def corrected(self) -> Array:
        """What is lost at the target by who knows the optima of all proxies and all that they tell of it, (draws,).

        What this way of telling loses where the target's own optimum is among the known, for which there are too few
        draws and points, is no fault of the proxies: their losses are made smaller by that share. The recommendation
        stays where it is no worse.
        """
        lost, spared = self._told_by(range(len(self.losses) - 1)), self._told_by([-1])
        left = lost * max(0.0, 1 - spared.mean() / max(lost.mean(), np.finfo(float).tiny))
        return min(left, self.regret("answer"), key=lambda draws: float(draws.mean()))

    def _told_by(self, scales: Sequence[int]) -> Array:
        """What the best guess of the target's optimum from those of some scales loses, (draws,).

        Least squares, over half of the draws, of the target's losses on the places of the optima and their squares, by
        which the other half is corrected: all there is to tell where the landscape is a bowl and optima are normal.
        """
        places = self.pool[self.lowest[scales]].transpose(1, 0, 2).reshape(DRAWS, -1)
        known, target = np.hstack([np.ones((DRAWS, 1)), places, places**2]), self.losses[-1]
        chosen = np.empty(DRAWS, dtype=int)
        for told, asked in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
            expected = known[asked] @ np.linalg.lstsq(known[told], target[told], rcond=None)[0]
            chosen[asked] = expected.argmin(1)
        lost: Array = target[np.arange(DRAWS), chosen] - target.min(1)
        return lost

    def moved(self, problem: Problem, s: int) -> Array:
        """b: how far the optimum at a scale lies from the target's, nats, (draws,)."""
        nats = [0.0 if isinstance(d, Categorical) else problem.nats(name) for name, d in problem.space.items()]
        away: Array = np.linalg.norm((self.pool[self.lowest[s]] - self.pool[self.lowest[-1]]) * np.array(nats), axis=1)
        return away

    def gap(self, problem: Problem, s: int, scale: Scale, runs: int, allowed: Allowed, measured: float | None) -> Gap:
        copied = self.regret(int(self.means[s].argmin()))
        return Gap(
            scale,
            runs,
            loss=Span.of(self.excess(s)),
            optimum=Span.of(self.moved(problem, s)),
            regret=Span.of(self.carried(s)),
            copied=Span.of(copied),
            within=float((self.expected(copied) <= allowed.loss).mean()),
            noise=float(self.noises[s]),
            rank=float(spearmanr(self.spread[s], self.spread[-1]).statistic),
            measured=measured,
        )

    def law(self, problem: Problem, sizes: Sizes, scales: Sequence[Scale], search: tuple[Array, Array]) -> Law:
        """Exponents and constants of each draw's gaps; `search`: as of `search_error`."""
        ratios = np.array([sizes(scale) for scale in scales])
        excess = np.array([self.excess(s) for s in range(len(scales))])
        alpha, moved = exponent(excess, ratios), np.array([self.moved(problem, s) for s in range(len(scales))])
        beta = exponent(moved, ratios)
        told = bool((moved[0] > moved[-1]).mean() >= SURE) and not (_beyond(alpha) or _beyond(beta))
        if not told:  # what is seen is how little is known of the optima; theory has beta between alpha / 2 and alpha
            beta = alpha * np.linspace(0.5, 1.0, DRAWS)[np.random.default_rng(0).permutation(DRAWS)]
        below, regrets = ratios[:, None], np.array([self.carried(s) for s in range(len(scales))])
        # sums over proxies agree, so that the largest gaps count most: the small ones are mostly noise
        gap = np.maximum(excess.sum(0), 0.0) / (below**-alpha - 1).sum(0)
        bias = regrets.sum(0) / np.square(below**-beta - 1).sum(0)
        seen, choices = dict(zip(scales, regrets, strict=True)), searched(problem)[1]
        constant, h = search
        return Law(h, choices, sizes.r, constant, gap, bias, alpha, beta, told, seen)


def exponent(gaps: Array, ratios: Array) -> Array:
    """The exponent of each draw of gaps (scales, draws), least squares in logs over a grid of exponents: (draws,).

    Relative to a finite target gaps go as r^-exponent - 1.
    """
    gaps = np.maximum(gaps, np.maximum(TINY * np.abs(gaps).mean(0), np.finfo(float).tiny))  # none at all in a draw
    shapes = np.log(np.abs(ratios[:, None] ** -EXPONENTS - 1))  # (scales, exponents)
    misses = np.log(gaps)[:, :, None] - shapes[:, None, :]
    found: Array = EXPONENTS[misses.var(0).argmin(-1)]
    return found


def _beyond(exponents: Array) -> bool:
    """Whether half of the draws lie at an end of what was looked at: what lies beyond has no ratio."""
    return bool(np.isin(exponents, EXPONENTS[[0, -1]]).mean() > 0.5)


def search_error(problem: Problem, fitted: Fit, generator: torch.Generator) -> tuple[Array, Array]:
    """A and h: what a search that spreads K runs over the space loses at the target is A K^(-2/h); draws, (draws,).

    The expected least of K of the space-filling points' losses, over their subsets, less the least of all, by least
    squares in logs. h is how many hyperparameters count: one that is flat, or a valley, makes it less than there are.
    """
    (most, choices), d = searched(problem), len(problem.space)
    filling = problem.snapped(qmc.Sobol(d, rng=np.random.default_rng(0)).random(FILLING))
    pool = np.vstack([filling, candidates(problem, fitted, problem.target, generator)[SCREEN:]])
    with torch.no_grad():
        known = Points(fitted, problem.inputs(pool, problem.target))
        losses = known.losses(*known.draws(DRAWS, generator)).numpy()
    spread = np.sort(losses[:, :FILLING], axis=1)
    chances = [comb(np.arange(FILLING)[::-1], k - 1) / comb(FILLING, k) for k in SPREAD]
    lost = spread @ np.array(chances).T - losses.min(1)[:, None]  # (draws, K)
    logs, runs = np.log(np.maximum(lost, TINY * lost.mean(0))), np.log(np.array(SPREAD) / choices)
    away = runs - runs.mean()
    falls = np.clip(-(logs @ away) / (away @ away), 2 / most, 2.0)
    return np.exp(logs.mean(1) + falls * runs.mean()), 2 / falls
