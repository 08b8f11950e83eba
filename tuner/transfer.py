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
| undetermined | none of these, or the runs contradict each other (`_doubts`), or are at fewer than three scales |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import comb
from scipy.stats import spearmanr

from tuner.breakeven import SURE, Law, Sizes, Span, searched
from tuner.engine import propose
from tuner.parametrization import PRESETS
from tuner.posterior import SCREEN, candidates, fit_of, generator_of, one_thread
from tuner.problem import Problem
from tuner.scale import Scale, by_scale
from tuner.space import Categorical
from tuner.surrogate.fit import Fit
from tuner.surrogate.optimum import Points
from tuner.trial import Observation, Recommendation

Array = NDArray[np.float64]

FEWEST = 3  # scales: two optima can be joined by a line, and nothing bears out that it goes on
ENOUGH = 3  # runs with a finite loss at a scale: as many as a parabola has coefficients
SCALES = 4  # proxies that are looked at
NEAR = 32  # points near where the optimum of a scale may be
DRAWS = 512  # of the landscape
EDGE = 0.02  # of a range: an optimum nearer to its end lies there
WIDEN = 0.25  # of a range, beyond an end at which the optimum lies
EXPONENTS = np.exp(np.linspace(np.log(0.05), np.log(4.0), 120))  # that a rate may have
TINY = 1e-9  # a gap below which its logarithm means nothing
SPREAD = (4, 8, 16, 32)  # runs of a search that spreads them, by which its constant is told
FAST, WEAK = 0.5, 0.75  # beta / alpha: Proposition 2's worst case, and half way to smooth corrections, beta = alpha


@dataclass(frozen=True)
class Gap:
    """What sets a proxy apart from the target.

    Args:
        loss: a_n, signed, in loss units. optimum: b_n, in nats over the numeric hyperparameters. regret: c_n.
        copied: what the setting that seems best there, unchanged in base coordinates, loses at the target.
        within: the probability that this is no more than a run's noise.
        rank: Spearman correlation of the posterior means there and at the target, over settings that fill the space.
    """

    scale: Scale
    runs: int
    loss: Span
    optimum: Span
    regret: Span
    copied: Span
    within: float
    rank: float


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
        tests: what each setting that was put to the test loses, in words.
        sizes: what the exponents of the law are in.
        law: draws of the exponents and constants of the gaps; None where there is a single gap.
        noise: deviation of one run at the target.
        verdict, reasons: one word, and why.
    """

    verdict: str
    reasons: tuple[str, ...]
    noise: float
    sizes: Sizes
    gaps: tuple[Gap, ...] = ()
    losses: tuple[AtScale, ...] = ()
    tests: Mapping[str, Span] = field(default_factory=dict)
    law: Law | None = None

    @property
    def pace(self) -> str:
        """fast, weak or undetermined."""
        return "undetermined" if self.law is None else _pace(Span.of(self.law.ratio))


def _pace(ratio: Span) -> str:
    if ratio.low > FAST:
        return "fast"
    return "weak" if ratio.low <= FAST <= ratio.high < WEAK else "undetermined"


@dataclass(frozen=True)
class _Landscape:
    """Joint draws of the noise-free loss over a pool of settings, at proxies and the target.

    Args:
        pool: (k, d) base cube points; those of `named` come first, in their order.
        losses: (scales, draws, k); the target is last. means: (scales, k), of the posterior.
        spread: the same over settings that fill the space.
    """

    named: tuple[str, ...]
    pool: Array
    losses: Array
    means: Array
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
        drawn = np.moveaxis(losses.reshape(DRAWS, *shape), 0, 1)
        return _Landscape(tuple(settings), pool, drawn, points.mean.numpy().reshape(shape), np.array(spread))

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

    def gap(self, problem: Problem, s: int, scale: Scale, runs: int, noise: float) -> Gap:
        copied = self.regret(int(self.means[s].argmin()))
        return Gap(
            scale,
            runs,
            loss=Span.of(self.excess(s)),
            optimum=Span.of(self.moved(problem, s)),
            regret=Span.of(self.carried(s)),
            copied=Span.of(copied),
            within=float((copied <= noise).mean()),
            rank=float(spearmanr(self.spread[s], self.spread[-1]).statistic),
        )

    def law(self, problem: Problem, sizes: Sizes, scales: Sequence[Scale], search: Array) -> Law:
        """Exponents and constants of each draw's gaps, and of a search that loses `search` (draws,) with one run."""
        ratios = np.array([sizes(scale) for scale in scales])
        excess = np.array([self.excess(s) for s in range(len(scales))])
        alpha = _exponent(np.abs(excess), ratios)
        beta = _exponent(np.array([self.moved(problem, s) for s in range(len(scales))]), ratios)
        regrets = np.array([self.carried(s) for s in range(len(scales))])
        return Law.of_gaps(searched(problem), sizes.r, ratios, excess, regrets, search, alpha, beta)


def _exponent(gaps: Array, ratios: Array) -> Array:
    """The exponent of each draw of gaps (scales, draws), least squares in logs over a grid of exponents: (draws,)."""
    shapes = np.log(np.abs(ratios[:, None] ** -EXPONENTS - 1))  # (scales, exponents)
    misses = np.log(np.maximum(gaps, TINY))[:, :, None] - shapes[:, None, :]
    found: Array = EXPONENTS[misses.var(0).argmin(-1)]
    return found


@one_thread
def judge(problem: Problem, observations: Sequence[Observation], answer: Recommendation, *, seed: int = 0) -> Transfer:
    """Whether transfer holds, by the runs that led to an answer."""
    sizes = Sizes.of(problem)
    runs = by_scale(run.scale for run in observations if not run.diverged)
    counts = {scale: len(group) for scale, group in runs.items()}
    told = [scale for scale in _by_cost(problem, counts) if counts[scale] >= ENOUGH]
    if len(told) < FEWEST:
        return Transfer("undetermined", (_too_few(problem, counts),), answer.noise, sizes)
    proxies = [scale for scale in told if scale != problem.target]
    proxies = [proxies[round(i)] for i in np.linspace(0, len(proxies) - 1, min(SCALES, len(proxies)))]
    settings = {"answer": problem.space.encode(problem.to_base(answer.params, problem.target))}
    if len(proxies) >= FEWEST:
        settings |= _left_out(problem, observations, proxies, seed)
    fitted, generator = fit_of(problem, observations, seed), generator_of(seed, len(observations))
    land = _Landscape.of(problem, fitted, [*proxies, problem.target], settings, generator)
    gaps = tuple(land.gap(problem, s, scale, counts[scale], answer.noise) for s, scale in enumerate(proxies))
    law = None
    if len(gaps) > 1 and all(sizes(scale) < 1 for scale in proxies):
        law = land.law(problem, sizes, proxies, _search_error(problem, fitted, generator))
    doubts = [*_at_the_border(problem, land), *_doubts(problem, land, proxies, answer), *_jump(problem, fitted, land)]
    verdict, said = _verdict(problem, land.regret("answer"), gaps[-1], law, sizes, answer)
    if doubts:
        verdict = "undetermined"
    if verdict == "undetermined":
        said += _settling(problem, observations, seed)
    reasons = [*doubts, *said, *_further(gaps, law, sizes)]
    losses = tuple(land.at(s, scale) for s, scale in enumerate([*proxies, problem.target]))
    tests = {"recommendation": Span.of(land.regret("answer")), f"best of {gaps[-1].scale}, as it is": gaps[-1].copied}
    if "backtest" in land.named:
        tests[f"{proxies[-1]} as told from below (there)"] = Span.of(land.regret("backtest", len(proxies) - 1))
        tests[f"answer without {proxies[0]}"] = Span.of(land.regret("without the smallest"))
    return Transfer(verdict, tuple(reasons), answer.noise, sizes, gaps, losses, tests, law)


def _search_error(problem: Problem, fitted: Fit, generator: torch.Generator) -> Array:
    """A: what a search that spreads K runs over the space loses at the target is A K^(-2/h); draws, (draws,).

    The expected least of K of the space-filling points' losses, over their subsets, less the least of all.
    """
    with torch.no_grad():
        known = Points(fitted, problem.inputs(candidates(problem, fitted, problem.target, generator), problem.target))
        losses = known.losses(*known.draws(DRAWS, generator)).numpy()
    spread, h = np.sort(losses[:, :SCREEN], axis=1), searched(problem)
    lost = []
    for k in SPREAD:
        chance = np.array([comb(SCREEN - 1 - i, k - 1) for i in range(SCREEN)]) / comb(SCREEN, k)
        lost.append(np.log(np.maximum(spread @ chance - losses.min(1), TINY)) + 2 / h * np.log(k))
    found: Array = np.exp(np.mean(lost, axis=0))
    return found


def _by_cost(problem: Problem, scales: Iterable[Scale]) -> list[Scale]:
    return sorted(scales, key=lambda scale: _cost(problem, scale))


def _best(problem: Problem, observations: Sequence[Observation], seed: int) -> Array:
    """The base cube point (d,) with the lowest posterior mean at the target."""
    fitted, generator = fit_of(problem, observations, seed), generator_of(seed, len(observations))
    with torch.no_grad():
        points = candidates(problem, fitted, problem.target, generator, rounds=2)
        best: Array = points[int(Points(fitted, problem.inputs(points, problem.target)).mean.argmin())]
    return best


def _left_out(
    problem: Problem, observations: Sequence[Observation], proxies: Sequence[Scale], seed: int
) -> dict[str, Array]:
    """What would have been answered without the smallest proxy; and, from the others, for the largest."""
    smallest, largest = proxies[0], proxies[-1]
    others = tuple(scale for scale in problem.proxies if scale != smallest)
    below = tuple(scale for scale in problem.proxies if _cost(problem, scale) < _cost(problem, largest))
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
    missing = next((s for s in _by_cost(problem, problem.proxies) if counts.get(s, 0) < ENOUGH), problem.target)
    return (
        f"whether transfer holds takes {ENOUGH} runs with a finite loss at each of {FEWEST} scales, one more than a "
        f"line through their optima has ends; there are {known}: run {ENOUGH - counts.get(missing, 0)} at {missing}"
    )


def _at_the_border(problem: Problem, land: _Landscape) -> Iterator[str]:
    """That a hyperparameter's optimum lies at the same end of its range at every scale: it may lie beyond."""
    best = land.pool[land.means.argmin(-1)]  # (scales, d)
    for j, (name, dimension) in enumerate(problem.space.items()):
        if isinstance(dimension, Categorical):
            continue
        for end, which, away in ((0.0, "low", best[:, j]), (1.0, "high", 1 - best[:, j])):
            if (away < EDGE).all():
                beyond = WIDEN * (2 * end - 1)
                bound = float(dimension.decode(end))
                wider = (
                    bound * np.exp(problem.nats(name) * beyond)
                    if dimension.log
                    else bound + problem.nats(name) * beyond
                )
                yield (
                    f"the optimum of {name} lies at the {which} end of its range at every scale, {bound:.3g}: "
                    f"widen it to {wider:.3g}, by a quarter of the range"
                )


def _doubts(problem: Problem, land: _Landscape, proxies: Sequence[Scale], answer: Recommendation) -> Iterator[str]:
    """That runs contradict what is made of them: what was left out would have been predicted wrongly."""
    if "backtest" not in land.named:
        return
    lost = land.regret("backtest", len(proxies) - 1)
    if (lost > answer.noise).mean() >= SURE:
        yield (
            f"the optimum at {proxies[-1]} as predicted from below loses {Span.of(lost)} there, more than a run's "
            f"noise of {answer.noise:.3g}: what held so far did not go on; run at more scales near the target"
        )
    lost = land.regret("without the smallest")
    if (lost > answer.noise).mean() >= SURE:
        yield (
            f"without the runs at {proxies[0]} the answer would lose {Span.of(lost)} at the target: {proxies[0]} is "
            "too small to be of the same regime, or the others are too few; leave it out, or run at another scale"
        )


def _jump(problem: Problem, fitted: Fit, land: _Landscape) -> Iterator[str]:
    """That between the optimum of the smallest scale and that of the target lies a wall: they are two basins."""
    ends = land.pool[land.means[[0, -1]].argmin(-1)]
    if any(isinstance(d, Categorical) and a != b for d, a, b in zip(problem.space.values(), *ends, strict=True)):
        return
    between = ends[0] + np.linspace(0, 1, 17)[:, None] * (ends[1] - ends[0])
    with torch.no_grad():
        points = Points(fitted, problem.inputs(between, problem.target))
        mean, noise = points.mean.numpy(), float((fitted.weights @ points.noise).mean().sqrt())
    if mean.max() - max(mean[0], mean[-1]) > noise:
        top, end = fitted.processes.data.in_loss_units(torch.tensor([mean.max(), max(mean[0], mean[-1])])).tolist()
        yield (
            f"the optimum jumps: between that of the smallest scale and that of the target the loss rises by "
            f"{top - end:.3g}, more than a run's noise; two basins compete: run "
            "nearer to the target to see which wins there"
        )


def _verdict(
    problem: Problem, lost: Array, gap: Gap, law: Law | None, sizes: Sizes, answer: Recommendation
) -> tuple[str, list[str]]:
    """The word, and the numbers behind it."""
    within = float((lost <= answer.noise).mean())
    said = [
        f"the best setting of {gap.scale}, unchanged in base coordinates, loses {gap.copied} at the target; that is "
        f"within a run's noise of {answer.noise:.3g} with probability {gap.within:.2f}",
        f"the recommendation loses {Span.of(lost)}; within the noise with probability {within:.2f}",
    ]
    moved = _uncorrected(problem, answer)
    weak = law is not None and _pace(Span.of(law.ratio)) == "weak"
    if gap.within >= SURE and not weak and not moved:
        return "transfer", said
    if moved:
        said.append(f"base coordinates are raw ones here, and the optimum moves in them: {', '.join(moved)}")
    if within >= SURE:
        return "corrected", said
    if law is not None and within <= 1 - SURE:
        directly, below = law.to_reach(answer.noise, [sizes(scale) for scale in problem.proxies if sizes(scale) < 1])
        if (directly < below).mean() >= SURE:
            said.append(f"a run's noise is reached directly for {Span.of(directly)} target runs; from below for more")
            return "direct", said
    return "undetermined", said


def _settling(problem: Problem, observations: Sequence[Observation], seed: int) -> Iterator[str]:
    """The run that would teach most."""
    for run in propose(problem, observations, seed=seed):
        params = ", ".join(f"{name} {value:.3g}" for name, value in problem.to_raw(run.params, run.scale).items())
        share = problem.cost(run.params, run.scale) / _cost(problem, problem.target)
        yield f"the run that would teach most is {params} at {run.scale}, for {share:.2g} target runs"


def _uncorrected(problem: Problem, answer: Recommendation) -> list[str]:
    """Hyperparameters whose raw optimum moves for certain, in a study whose parametrization moves nothing."""
    rule = problem.parametrization
    if rule.exponents or PRESETS[rule.name].exponents:
        return []
    return [
        f"{name} as {axis}^{mean:.2f} ({low:.2f} .. {high:.2f})"
        for name, axes in answer.drift.items()
        for axis, (mean, low, high) in axes.items()
        if low > 0 or high < 0
    ]


def _further(gaps: Sequence[Gap], law: Law | None, sizes: Sizes) -> Iterator[str]:
    """What else is known: the ranks, and the rates."""
    yield (
        f"settings rank at {gaps[0].scale} as at the target with a correlation of {gaps[0].rank:.2f}, at "
        f"{gaps[-1].scale} of {gaps[-1].rank:.2f}"
    )
    if law is not None:
        ratio = Span.of(law.ratio)
        pace = {"fast": "fast", "weak": "weak", "undetermined": "fast or not cannot be told"}[_pace(ratio)]
        yield (
            f"in {sizes.axis} alpha {Span.of(law.alpha)}, beta {Span.of(law.beta)}, beta / alpha {ratio}: transfer is "
            f"fast above {FAST}; {pace}"
        )
