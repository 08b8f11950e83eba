"""Does transfer hold here? The gaps and rates of the theory, read off the posterior, and the verdict.

With phi_n the loss at scale n in base coordinates x, x*(n) where it is smallest, and the target N in the place of
infinity (Ghosh, Wu and Bietti 2025, arXiv 2512.22768, definitions 1 to 3):

    a_n = phi_n(x*(n)) - phi_N(x*(N))        loss gap: what a smaller model loses
    b_n = |x*(n) - x*(N)|                    optimum gap, in nats
    c_n = phi_N(x*(n)) - phi_N(x*(N))        suboptimality gap: what its optimum loses at the target

    a_n ~ n^-alpha, b_n ~ n^-beta            fast: beta / alpha > 1/2, c_n falls faster than a_n

All of it is of joint draws of the landscape at every scale, never of grids' minima. What counts as lost at the target
is more than one run's noise there: less could not be told from nothing.

| verdict      | with probability SURE                                                                          |
|--------------|------------------------------------------------------------------------------------------------|
| transfer     | the setting that is best at the largest proxy, unchanged in base coordinates, loses nothing    |
| corrected    | the recommendation loses nothing; the unchanged setting does, or may                           |
| direct       | neither; and tuning the target itself to a run's noise costs less than from below (breakeven)  |
| undetermined | none of these, or the runs contradict each other, or are at fewer than three scales             |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import comb
from scipy.stats import spearmanr

from tuner.engine import RUNS_JUDGED, SCALES_JUDGED, propose
from tuner.parametrization import PRESETS
from tuner.posterior import SCREEN, answers, candidates, fit_of, generator_of, one_thread
from tuner.problem import Problem
from tuner.scale import Scale, by_scale
from tuner.space import Categorical
from tuner.surrogate.fit import Fit
from tuner.surrogate.optimum import Points
from tuner.theorem import SURE, TAILS, Law, Proxy, Sizes, Span, searched
from tuner.trial import Evidence, Observation, Recommendation

Array = NDArray[np.float64]

FEWEST = SCALES_JUDGED  # scales: two optima can be joined by a line, and nothing bears out that it goes on
ENOUGH = RUNS_JUDGED  # runs with a finite loss at a scale: as many as a parabola has coefficients
SCALES = 4  # proxies that are looked at
NEAR = 32  # points near where the optimum of a scale may be
DRAWS = 512  # of the landscape
SAME = 1e-6  # of a range: what rounding makes of one setting
EDGE = 0.02  # of a range: an optimum nearer to its end lies there
WIDEN = 0.25  # of a range, beyond an end at which the optimum lies
EXPONENTS = np.exp(np.linspace(np.log(0.05), np.log(4.0), 120))  # that a rate may have
TINY = 1e-3  # of a gap's mean: below it a logarithm means nothing
SPREAD = (4, 8, 16, 32)  # runs of a search that spreads them, by which its constant is told
FAST, WEAK = 0.5, 0.75  # beta / alpha: Proposition 2's worst case, and half way to smooth corrections, beta = alpha


TOLERANCE, BACKTEST, WITHOUT = "the tolerance", "the setting that smaller runs tell for", "the answer without"


@dataclass(frozen=True)
class Allowed:
    """What may be lost at the target: the noise of one run there, or the tolerance where that is more."""

    loss: float
    name: str

    @staticmethod
    def of(answer: Recommendation, tolerance: float | None) -> Allowed:
        put_up_with = 0.0 if tolerance is None else tolerance * abs(answer.loss)
        noisy = answer.noise >= put_up_with
        return Allowed(answer.noise, "a run's noise") if noisy else Allowed(put_up_with, TOLERANCE)

    def __str__(self) -> str:
        return f"{self.name} of {self.loss:.3g}"


@dataclass(frozen=True)
class Test:
    """What a setting loses where it is tested, draws (draws,), and what it may."""

    name: str
    loses: Array = field(repr=False)
    allowed: float

    def __str__(self) -> str:
        return f"{self.name} loses {Span.of(self.loses)} where {self.allowed:.3g} is allowed"


@dataclass(frozen=True)
class Gap:
    """What sets a proxy apart from the target.

    Args:
        loss: a_n, signed, in loss units. optimum: b_n, in nats over the numeric hyperparameters. regret: c_n.
        copied: what the setting that seems best there, unchanged in base coordinates, loses at the target.
        within: the probability that this is no more than is allowed.
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
class Transfer:
    """Whether transfer holds, and by what.

    Args:
        gaps: one a proxy that has runs enough, cheapest first.
        losses: at those proxies and the target.
        tests: what each setting that was put to the test loses.
        sizes: what the exponents of the law are in.
        law: draws of the exponents and constants of the gaps; None with too few runs.
        allowed: what may be lost at the target.
        verdict, reasons: one word, and why.
    """

    verdict: str
    reasons: tuple[str, ...]
    allowed: Allowed
    sizes: Sizes
    gaps: tuple[Gap, ...] = ()
    losses: tuple[AtScale, ...] = ()
    tests: tuple[Test, ...] = ()
    law: Law | None = None

    @property
    def pace(self) -> str:
        """fast, weak or undetermined."""
        return "undetermined" if self.law is None else _pace(self.law)


def _pace(law: Law) -> str:
    ratio = Span.of(law.ratio)
    if not law.told or _beyond_theory(law):
        return "undetermined"
    if ratio.low > FAST:
        return "fast"
    return "weak" if ratio.low <= FAST <= ratio.high < WEAK else "undetermined"


def _beyond_theory(law: Law) -> bool:
    """Whether beta is below alpha / 2, which no limit allows (Proposition 2): the scales are not in its regime yet."""
    return bool((law.ratio < FAST).mean() >= SURE)


@dataclass(frozen=True)
class _Landscape:
    """Joint draws of the noise-free loss over a pool of settings, at proxies and the target.

    Args:
        pool: (k, d) base cube points; those of `named` come first, in their order.
        losses: (scales, draws, k); the target is last. means: (scales, k), of the posterior.
        noises: (scales,) deviation of one run where the mean is lowest.
        spread: the same over settings that fill the space.
    """

    named: tuple[str, ...]
    pool: Array
    losses: Array
    means: Array
    noises: Array
    spread: Array

    @staticmethod
    def of(
        problem: Problem,
        fitted: Fit,
        scales: Sequence[Scale],
        settings: Mapping[str, Array],
        generator: torch.Generator,
    ) -> _Landscape:
        with torch.no_grad():
            near = [candidates(problem, fitted, n, generator, rounds=2, count=NEAR)[-2 * NEAR :] for n in scales]
            pool = np.vstack([*settings.values(), *near])
            points = Points(fitted, torch.cat([problem.inputs(pool, scale) for scale in scales]))
            losses = points.losses(*points.draws(DRAWS, generator)).numpy()
            filling = candidates(problem, fitted, scales[-1], generator)[:SCREEN]
            spread = [Points(fitted, problem.inputs(filling, scale)).mean.numpy() for scale in scales]
        shape = (len(scales), len(pool))
        drawn, means = np.moveaxis(losses.reshape(DRAWS, *shape), 0, 1), points.mean.numpy().reshape(shape)
        sd = (fitted.weights @ points.noise.sqrt()).numpy().reshape(shape)
        lowest, data = means.argmin(1), fitted.processes.data
        noises = [data.deviation(float(drawn[s, :, k].mean()), float(sd[s, k])) for s, k in enumerate(lowest)]
        return _Landscape(tuple(settings), pool, drawn, means, np.array(noises), np.array(spread))

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
            within=float((copied <= allowed.loss).mean()),
            noise=float(self.noises[s]),
            rank=float(spearmanr(self.spread[s], self.spread[-1]).statistic),
            measured=measured,
        )

    def law(self, problem: Problem, sizes: Sizes, scales: Sequence[Scale], search: Array) -> Law:
        """Exponents and constants of each draw's gaps, and of a search that loses `search` (draws,) with one run."""
        ratios = np.array([sizes(scale) for scale in scales])
        excess = np.array([self.excess(s) for s in range(len(scales))])
        alpha, moved = _exponent(excess, ratios), np.array([self.moved(problem, s) for s in range(len(scales))])
        told = bool((moved[0] > moved[-1]).mean() >= SURE)
        if told:
            beta = _exponent(moved, ratios)
        else:  # what is seen is how little is known of the optima; theory has beta between alpha / 2 and alpha
            beta = alpha * np.linspace(0.5, 1.0, DRAWS)[np.random.default_rng(0).permutation(DRAWS)]
        below, regrets = ratios[:, None], np.array([self.carried(s) for s in range(len(scales))])
        # sums over proxies agree, so that the largest gaps count most: the small ones are mostly noise
        gap = np.maximum(excess.sum(0), 0.0) / (below**-alpha - 1).sum(0)
        bias = regrets.sum(0) / np.square(below**-beta - 1).sum(0)
        return Law(*searched(problem), sizes.r, search, gap, bias, alpha, beta, told)


def _exponent(gaps: Array, ratios: Array) -> Array:
    """The exponent of each draw of gaps (scales, draws), least squares in logs over a grid of exponents: (draws,).

    Relative to a finite target gaps go as r^-exponent - 1.
    """
    gaps = np.maximum(gaps, np.maximum(TINY * np.abs(gaps).mean(0), np.finfo(float).tiny))  # none at all in a draw
    shapes = np.log(np.abs(ratios[:, None] ** -EXPONENTS - 1))  # (scales, exponents)
    misses = np.log(gaps)[:, :, None] - shapes[:, None, :]
    found: Array = EXPONENTS[misses.var(0).argmin(-1)]
    return found


@one_thread
def judge(
    problem: Problem,
    observations: Sequence[Observation],
    answer: Recommendation,
    *,
    seed: int = 0,
    tolerance: float | None = None,
    evidence: Sequence[Evidence] = (),
) -> Transfer:
    """Whether transfer holds, by the runs that led to an answer.

    Args:
        tolerance: relative regret that is put up with, where it is more than a run's noise.
        evidence: what was measured beside the runs.
    """
    allowed, sizes = Allowed.of(answer, tolerance), Sizes.of(problem, observations)
    runs = by_scale(run.scale for run in observations if not run.diverged)
    counts = {scale: len(group) for scale, group in runs.items()}
    told = [scale for scale in sizes.below(list(counts)) if counts[scale] >= ENOUGH]
    if len(told) + (counts.get(problem.target, 0) >= ENOUGH) < FEWEST:
        return Transfer("undetermined", (_too_few(problem, counts), *map(str, evidence)), allowed, sizes)
    proxies = [told[round(i)] for i in np.linspace(0, len(told) - 1, min(SCALES, len(told)))]
    settings = {"answer": problem.space.encode(problem.to_base(answer.params, problem.target))}
    left = _left_out(problem, observations, proxies, seed) if len(proxies) >= FEWEST else {}
    settings |= {name: place for name, (place, _) in left.items()}
    fitted, generator = fit_of(problem, observations, seed), generator_of(seed, len(observations))
    land = _Landscape.of(problem, fitted, [*proxies, problem.target], settings, generator)
    gaps = tuple(
        land.gap(problem, s, scale, counts[scale], allowed, _measured(problem, observations, scale))
        for s, scale in enumerate(proxies)
    )
    law = land.law(problem, sizes, proxies, _search_error(problem, fitted, generator))
    tests = _tests(land, proxies, gaps[-1], allowed, {name: most for name, (_, most) in left.items()})
    doubts = [*_at_the_border(problem, land), *_all_diverged(observations), *_contradicted(tests, proxies)]
    doubts += _jump(problem, fitted, land, allowed)
    verdict, said = _verdict(problem, land.regret("answer"), gaps[-1], law, sizes, answer, allowed)
    failed = [str(found) for found in evidence if found.verdict == "fail"]
    if doubts or verdict == "undetermined":
        said += _settling(problem, observations, seed)
    if doubts or failed:
        verdict = "undetermined"
    others = [str(found) for found in evidence if found.verdict != "fail"]
    reasons = [*failed, *doubts, *said, *_further(gaps, law, sizes, tests, answer), *others]
    losses = tuple(land.at(s, scale) for s, scale in enumerate([*proxies, problem.target]))
    return Transfer(verdict, tuple(reasons), allowed, sizes, gaps, losses, tests, law)


def _tests(
    land: _Landscape, proxies: Sequence[Scale], gap: Gap, allowed: Allowed, expected: Mapping[str, float]
) -> tuple[Test, ...]:
    """The settings that are put to the test. One that fewer runs tell for may lose what these say it may."""
    largest = len(proxies) - 1
    found = [
        Test("the recommendation", land.regret("answer"), allowed.loss),
        Test(f"the best of {gap.scale} as it is", land.regret(int(land.means[largest].argmin())), allowed.loss),
    ]
    if expected:
        there = max(gap.noise, allowed.loss if allowed.name == TOLERANCE else 0.0, expected["backtest"])
        without = max(allowed.loss, expected["without the smallest"])
        found.append(Test(f"{BACKTEST} {gap.scale}", land.regret("backtest", largest), there))
        found.append(Test(f"{WITHOUT} {proxies[0]}", land.regret("without the smallest"), without))
    return tuple(found)


def _measured(problem: Problem, observations: Sequence[Observation], scale: Scale) -> float | None:
    """c_{n -> N} from runs alone, means over replicates; None with fewer than ENOUGH settings at the target."""
    there, here = (_means(problem, observations, at) for at in (problem.target, scale))
    best, finite = min(here, key=lambda setting: here[setting]), [loss for loss in there.values() if np.isfinite(loss)]
    return there[best] - min(finite) if len(finite) >= ENOUGH and best in there else None


def _means(problem: Problem, observations: Sequence[Observation], scale: Scale) -> dict[tuple[float, ...], float]:
    """Base cube point, to SAME of a range -> mean loss of the runs of a scale; infinite where one diverged."""
    runs = [run for run in observations if run.scale == scale]
    losses: dict[tuple[float, ...], list[float]] = {}
    for run in runs:
        setting = np.round(problem.space.encode(run.params) / SAME)
        losses.setdefault(tuple(setting), []).append(run.loss)
    return {setting: float(np.mean(some)) for setting, some in losses.items()}


def _search_error(problem: Problem, fitted: Fit, generator: torch.Generator) -> Array:
    """A: what a search that spreads K runs over the space loses at the target is A K^(-2/h); draws, (draws,).

    The expected least of K of the space-filling points' losses, over their subsets, less the least of all.
    """
    with torch.no_grad():
        known = Points(fitted, problem.inputs(candidates(problem, fitted, problem.target, generator), problem.target))
        losses = known.losses(*known.draws(DRAWS, generator)).numpy()
    spread, (h, choices) = np.sort(losses[:, :SCREEN], axis=1), searched(problem)
    lost = []
    for k in SPREAD:
        chance = np.array([comb(SCREEN - 1 - i, k - 1) for i in range(SCREEN)]) / comb(SCREEN, k)
        found = spread @ chance - losses.min(1)
        lost.append(np.log(np.maximum(found, TINY * found.mean())) + 2 / h * np.log(max(k / choices, 1.0)))
    constant: Array = np.exp(np.mean(lost, axis=0))
    return constant


def _best(problem: Problem, observations: Sequence[Observation], seed: int) -> tuple[Array, float]:
    """The base cube point (d,) with the lowest posterior mean at the target, and what it is to lose there at most.

    At most: the upper end of a 90 % interval, by what these runs alone tell.
    """
    fitted, generator = fit_of(problem, observations, seed), generator_of(seed, len(observations))
    with torch.no_grad():
        points = answers(problem, fitted, generator)
        best = int(points.mean.argmin())
        losses = points.losses(*points.draws(DRAWS, generator)).numpy()
    place: Array = problem.frame.split(points.inputs)[0][best].numpy()
    return place, float(np.quantile(losses[:, best] - losses.min(1), TAILS[1]))


def _left_out(
    problem: Problem, observations: Sequence[Observation], proxies: Sequence[Scale], seed: int
) -> dict[str, tuple[Array, float]]:
    """What would have been answered without the smallest proxy; and, from the others, for the largest: as `_best`."""
    smallest, largest = proxies[0], proxies[-1]
    others = tuple(scale for scale in problem.proxies if scale != smallest)
    most = _cost(problem, largest)  # which others may share
    below = tuple(scale for scale in problem.proxies if scale != largest and _cost(problem, scale) <= most)
    return {
        "without the smallest": _best(
            replace(problem, proxies=others), [run for run in observations if run.scale != smallest], seed
        ),
        "backtest": _best(
            replace(problem, target=largest, proxies=below), [run for run in observations if run.scale in below], seed
        ),
    }


def _cost(problem: Problem, scale: Scale) -> float:
    return problem.cost(problem.space.middle, scale)


def _too_few(problem: Problem, counts: Mapping[Scale, int]) -> str:
    """Why nothing can be said of transfer, and what would let it be."""
    known = ", ".join(f"{n} at {scale}" for scale, n in counts.items()) or "none"
    proxies = sorted(problem.proxies, key=lambda scale: _cost(problem, scale))
    few = [scale for scale in [*proxies, problem.target] if counts.get(scale, 0) < ENOUGH]
    do = f"run {ENOUGH - counts.get(few[0], 0)} at {few[0]}" if few else ""
    if len(proxies) + 1 < FEWEST or problem.target in few[:1]:
        do = "name another proxy"  # it costs less than runs at the target
    return (
        f"whether transfer holds takes {ENOUGH} runs with a finite loss at each of {FEWEST} scales, one more than a "
        f"line through their optima has ends; there are {known}: {do}"
    )


def _at_the_border(problem: Problem, land: _Landscape) -> Iterator[str]:
    """That a hyperparameter's optimum lies at an end of its range, at the target or everywhere: it may lie beyond."""
    best = land.pool[land.means.argmin(-1)]  # (scales, d)
    for j, (name, dimension) in enumerate(problem.space.items()):
        if isinstance(dimension, Categorical):
            continue
        for bound, which, beyond in ((dimension.low, "low", -1), (dimension.high, "high", 1)):
            there = np.abs(best[:, j] - dimension.encode(bound)) < EDGE
            if not there[-1] or (beyond < 0 and bound == 0):  # less than none is not to be had
                continue
            if dimension.log:
                wider = bound * (dimension.high / dimension.low) ** (WIDEN * beyond)
            else:
                wider = bound + WIDEN * beyond * (dimension.high - dimension.low)
            where = "every scale" if there.all() else "the target"
            yield (
                f"the optimum of {name} lies at the {which} end of its range at {where}, {bound:.3g}: "
                f"widen it to {wider:.3g}, by a quarter of the range"
            )


def _all_diverged(observations: Sequence[Observation]) -> Iterator[str]:
    """That a scale has runs and no loss: what is said of it is the surrogate's guess."""
    for scale, members in by_scale(run.scale for run in observations).items():
        if len(members) >= ENOUGH and all(observations[i].diverged for i in members):
            yield (
                f"all {len(members)} runs at {scale} diverged, which tells of no optimum there: leave that scale out, "
                "or lower the ranges and run there again"
            )


def _contradicted(tests: Sequence[Test], proxies: Sequence[Scale]) -> Iterator[str]:
    """That runs contradict what is made of them: what was left out would have been predicted wrongly."""
    for test in tests:
        if (test.loses > test.allowed).mean() >= SURE:
            if test.name.startswith(BACKTEST):
                yield f"{test}: what held so far did not go on; run at more scales near the target"
            if test.name.startswith(WITHOUT):
                yield (
                    f"{test}: {proxies[0]} is too small to be of the same regime, or the others are too few; leave it "
                    "out, or run at another scale"
                )


def _jump(problem: Problem, fitted: Fit, land: _Landscape, allowed: Allowed) -> Iterator[str]:
    """That between the optimum of the smallest scale and that of the target lies a wall: they are two basins."""
    ends = land.pool[land.means[[0, -1]].argmin(-1)]
    if any(isinstance(d, Categorical) and a != b for d, a, b in zip(problem.space.values(), *ends, strict=True)):
        return
    between = ends[0] + np.linspace(0, 1, 17)[:, None] * (ends[1] - ends[0])
    with torch.no_grad():
        points = Points(fitted, problem.inputs(between, problem.target))
        losses = points.losses(*points.draws(DRAWS, generator_of(0, DRAWS))).numpy()
    walls = losses.max(1) - losses[:, [0, -1]].max(1)
    if (walls > allowed.loss).mean() >= SURE:
        yield (
            f"the optimum jumps: on the straight way from that of the smallest scale to that of the target the loss "
            f"rises by {Span.of(walls)}, more than {allowed}; two basins compete: run nearer to the target to see "
            "which wins there"
        )


def _verdict(
    problem: Problem,
    lost: Array,
    gap: Gap,
    law: Law,
    sizes: Sizes,
    answer: Recommendation,
    allowed: Allowed,
) -> tuple[str, list[str]]:
    """The word, and the numbers behind it."""
    within = float((lost <= allowed.loss).mean())
    said = [
        f"the best setting of {gap.scale}, unchanged in base coordinates, loses {gap.copied} at the target; that is "
        f"within {allowed} with probability {gap.within:.2f}",
        f"the recommendation loses {Span.of(lost)}; within the same with probability {within:.2f}",
    ]
    moved = _uncorrected(problem, answer)
    weak = _pace(law) == "weak"
    if gap.within >= SURE and not weak and not moved:
        return "transfer", said
    if gap.within >= SURE and weak:
        said.append("but transfer is weak: what the largest proxy's setting loses falls no faster than the loss itself")
    if moved:
        said.append(f"base coordinates are raw ones here, and the optimum moves in them: {', '.join(moved)}")
    if within >= SURE:
        return "corrected", said
    if max(within, gap.within) <= 1 - SURE:
        proxies = [Proxy(sizes(scale), sizes.cost(scale)) for scale in sizes.below(problem.proxies)]
        directly, below = law.to_reach(allowed.loss, proxies)
        if (directly < below).mean() >= SURE:
            said.append(
                f"to lose no more than {allowed} takes {Span.of(directly)} target runs of direct tuning, and more from "
                "below, even by a search that starts anew"
            )
            return "direct", said
    return "undetermined", said


def _settling(problem: Problem, observations: Sequence[Observation], seed: int) -> Iterator[str]:
    """The run that would teach most."""
    for run in propose(problem, observations, seed=seed):
        raw = problem.to_raw(run.params, run.scale)
        params = ", ".join(f"{name} {v if isinstance(v, str) else format(v, '.3g')}" for name, v in raw.items())
        share = problem.cost(run.params, run.scale) / problem.cost(run.params, problem.target)
        yield f"the run that would teach most is {params} at {run.scale}, for {share:.2g} target runs"


def _uncorrected(problem: Problem, answer: Recommendation) -> list[str]:
    """Hyperparameters whose raw optimum moves for certain, in a study whose parametrization moves nothing."""
    rule = problem.parametrization
    if rule.exponents or PRESETS[rule.name].exponents:
        return []
    return [told for told, (_, low, high) in _drifts(answer) if low > 0 or high < 0]


def _drifts(answer: Recommendation) -> Iterator[tuple[str, tuple[float, float, float]]]:
    for name, axes in answer.drift.items():
        for axis, (mean, low, high) in axes.items():
            yield f"{name} as {axis}^{mean:.2f} ({low:.2f} .. {high:.2f})", (mean, low, high)


def _further(
    gaps: Sequence[Gap], law: Law, sizes: Sizes, tests: Sequence[Test], answer: Recommendation
) -> Iterator[str]:
    """What else is known: tests that were passed, the ranks, the drift, and the rates."""
    for test in tests[2:]:
        yield f"{test}: {(test.loses > test.allowed).mean():.2f} is the probability that this is more"
    yield (
        f"settings rank at {gaps[0].scale} as at the target with a correlation of {gaps[0].rank:.2f}, at "
        f"{gaps[-1].scale} of {gaps[-1].rank:.2f}"
    )
    for gap in gaps:
        if gap.measured is not None:
            yield f"measured: the best run of {gap.scale}, unchanged, lost {gap.measured:.3g} at the target"
    if drifts := [told for told, _ in _drifts(answer)]:
        yield f"raw optima move: {', '.join(drifts)}"
    pace = {"fast": "fast", "weak": "weak", "undetermined": "fast or not cannot be told"}[_pace(law)]
    seen = f"beta {Span.of(law.beta)}, beta / alpha {Span.of(law.ratio)}" if law.told else "beta is not told"
    if law.told and _beyond_theory(law):
        seen += ", less than any limit allows: these scales are not in its regime yet"
    yield f"in {sizes.axis} alpha {Span.of(law.alpha)}, {seen}; transfer is fast above {FAST}: {pace}"
