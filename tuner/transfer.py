"""Does transfer hold here? The verdict, by the gaps between proxies and target and by what speaks against it.

A proxy whose loss is a_n above the target's and whose optimum loses c_n there (`tuner.landscape`) transfers fast where
c_n falls faster than a_n: with a_n ~ n^-alpha and c_n ~ n^-(2 beta), for beta / alpha > 1/2 (Ghosh, Wu and Bietti 2025,
arXiv 2512.22768, Definition 3). What counts as lost at the target is more than one run's noise there, less than which
nobody could tell from nothing, or than the tolerance where that is more. What a setting loses is what is to be expected
of it by one process of the surrogate's set; probabilities are over the set.

| verdict      | with probability SURE                                                                          |
|--------------|------------------------------------------------------------------------------------------------|
| transfer     | the setting that is best at the largest proxy, unchanged in base coordinates, loses nothing;   |
|              | and transfer is not weak, and no optimum moves in coordinates that are raw ones                |
| corrected    | the recommendation loses nothing, and the verdict is not transfer                              |
| direct       | neither, the runs reach up to the largest proxy, and tuning the target itself costs less than   |
|              | from below, corrected as well as can be                                                        |
| undetermined | none of these, or the runs contradict each other, or are at fewer than three scales             |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tuner.doubts import all_diverged, at_the_border, jumped, too_few
from tuner.engine import RUNS_JUDGED, SCALES_JUDGED, propose
from tuner.landscape import DRAWS, AtScale, Gap, Landscape, search_error
from tuner.outlier import borne_out
from tuner.posterior import answers, fit_of, generator_of, one_thread
from tuner.problem import Problem
from tuner.scale import Scale, by_scale
from tuner.theorem import SURE, TOLERANCE, Allowed, Law, Sizes, Span
from tuner.trial import TAILS, Evidence, Observation, Recommendation

Array = NDArray[np.float64]

SCALES = 4  # proxies that are looked at
SAME = 1e-6  # of a range: what rounding makes of one setting
FAST, WEAK = 0.5, 0.75  # beta / alpha: Proposition 2's worst case, and half way to smooth corrections, beta = alpha


@dataclass(frozen=True)
class Test:
    """What a setting loses where it is tested, draws (draws,), and what it may.

    Args:
        expected: of the process of each draw.
        otherwise: what it would mean if it lost more for certain; of settings whose loss is the verdict's own, nothing.
    """

    name: str
    loses: Array = field(repr=False)
    expected: Array = field(repr=False)
    allowed: float
    otherwise: str = ""

    @property
    def more(self) -> float:
        """The probability that it loses more."""
        return float((self.loses > self.allowed).mean())

    def __str__(self) -> str:
        return f"{self.name} loses {Span.of(self.loses)} where {self.allowed:.3g} is allowed"


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
    believed = borne_out(problem, observations)
    runs = by_scale(run.scale for run in believed if not run.diverged)
    counts = {scale: len(group) for scale, group in runs.items()}
    told = [scale for scale in sizes.below(list(counts)) if counts[scale] >= RUNS_JUDGED]
    if len(told) + (counts.get(problem.target, 0) >= RUNS_JUDGED) < SCALES_JUDGED:
        why = (*all_diverged(believed), too_few(problem, sizes, counts), *map(str, evidence))
        return Transfer("undetermined", why, allowed, sizes)
    proxies = [told[round(i)] for i in np.linspace(0, len(told) - 1, min(SCALES, len(told)))]
    settings = {"answer": problem.space.encode(problem.to_base(answer.params, problem.target))}
    left = _left_out(problem, observations, sizes, proxies, seed) if len(proxies) >= SCALES_JUDGED else {}
    settings |= {name: place for name, (place, _) in left.items()}
    fitted, generator = fit_of(problem, observations, seed), generator_of(seed, len(observations))
    land = Landscape.of(problem, fitted, [*proxies, problem.target], settings, generator)
    gaps = tuple(
        land.gap(problem, s, scale, counts[scale], allowed, _measured(problem, believed, scale))
        for s, scale in enumerate(proxies)
    )
    law = land.law(problem, sizes, proxies, search_error(problem, fitted, generator))
    tests = _tests(land, proxies, gaps[-1], allowed, {name: most for name, (_, most) in left.items()})
    doubts = [*at_the_border(problem, land), *all_diverged(believed)]
    doubts += [f"{test}: {test.otherwise}" for test in tests if test.otherwise and test.more >= SURE]
    doubts += jumped(problem, fitted, land, allowed)
    moved = [told for told, (_, low, high), carried in _drifts(problem, answer) if low * high > 0 and not carried]
    nearest = not any(sizes(scale) > sizes(proxies[-1]) for scale in sizes.below(problem.proxies))
    verdict, said = _verdict(land, gaps[-1], law, sizes, moved, nearest, allowed)
    failed = [str(found) for found in evidence if found.verdict == "fail"]
    if doubts or verdict == "undetermined":
        said += _settling(problem, observations, seed)
    if doubts or failed:
        verdict = "undetermined"
    others = [str(found) for found in evidence if found.verdict != "fail"]
    reasons = [*failed, *doubts, *said, *_further(problem, gaps, law, sizes, tests, answer), *others]
    losses = tuple(land.at(s, scale) for s, scale in enumerate([*proxies, problem.target]))
    return Transfer(verdict, tuple(reasons), allowed, sizes, gaps, losses, tests, law)


def _tests(
    land: Landscape, proxies: Sequence[Scale], gap: Gap, allowed: Allowed, expected: Mapping[str, float]
) -> tuple[Test, ...]:
    """The settings that are put to the test. One that fewer runs tell for may lose what these say it may."""
    largest = len(proxies) - 1

    def of(name: str, setting: str | int, may: float, otherwise: str = "", scale: int = -1) -> Test:
        lost = land.regret(setting, scale)
        return Test(name, lost, land.expected(lost), may, otherwise)

    as_it_is = int(land.means[largest].argmin())
    found = [
        of("the recommendation", "answer", allowed.loss),
        of(f"the best of {gap.scale} as it is", as_it_is, allowed.loss),
    ]
    if expected:
        there = max(gap.noise, allowed.loss if allowed.name == TOLERANCE else 0.0, expected["backtest"])
        without = max(allowed.loss, expected["without the smallest"])
        backtest = f"the setting that smaller runs tell for {gap.scale}"
        went_wrong = "what held so far did not go on; run at more scales near the target"
        found.append(of(backtest, "backtest", there, went_wrong, largest))
        off_regime = (
            f"{proxies[0]} is too small to be of the same regime, or the others are too few; leave it out, or run at "
            "another scale"
        )
        found.append(of(f"the answer without {proxies[0]}", "without the smallest", without, off_regime))
    return tuple(found)


def _measured(problem: Problem, observations: Sequence[Observation], scale: Scale) -> float | None:
    """c_{n -> N} from runs alone, means over replicates; None with fewer than RUNS_JUDGED settings at the target."""
    there, here = (_means(problem, observations, at) for at in (problem.target, scale))
    best, finite = min(here, key=lambda setting: here[setting]), [loss for loss in there.values() if np.isfinite(loss)]
    return there[best] - min(finite) if len(finite) >= RUNS_JUDGED and best in there else None


def _means(problem: Problem, observations: Sequence[Observation], scale: Scale) -> dict[tuple[float, ...], float]:
    """Base cube point, to SAME of a range -> mean loss of the runs of a scale; infinite where one diverged."""
    runs = [run for run in observations if run.scale == scale]
    losses: dict[tuple[float, ...], list[float]] = {}
    for run in runs:
        setting = np.round(problem.space.encode(run.params) / SAME)
        losses.setdefault(tuple(setting), []).append(run.loss)
    return {setting: float(np.mean(some)) for setting, some in losses.items()}


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
    problem: Problem, observations: Sequence[Observation], sizes: Sizes, proxies: Sequence[Scale], seed: int
) -> dict[str, tuple[Array, float]]:
    """What would have been answered without the smallest proxy; and, from the others, for the largest: as `_best`."""
    smallest, largest = proxies[0], proxies[-1]
    scales = sizes.below(list(by_scale(run.scale for run in observations)))
    others = tuple(scale for scale in scales if scale != smallest)
    most = problem.run_cost(largest)  # which others may share
    below = tuple(scale for scale in scales if scale != largest and problem.run_cost(scale) <= most)
    return {
        "without the smallest": _best(
            replace(problem, proxies=others), [run for run in observations if run.scale != smallest], seed
        ),
        "backtest": _best(
            replace(problem, target=largest, proxies=below), [run for run in observations if run.scale in below], seed
        ),
    }


def _verdict(
    land: Landscape, gap: Gap, law: Law, sizes: Sizes, moved: Sequence[str], nearest: bool, allowed: Allowed
) -> tuple[str, list[str]]:
    """The word, and the numbers behind it.

    Args:
        gap: of the largest proxy that has runs. nearest: whether no larger one is to be had.
        moved: drifts in coordinates that are raw ones.
    """
    lost = land.regret("answer")
    within = float((land.expected(lost) <= allowed.loss).mean())
    said = [
        f"the best setting of {gap.scale}, unchanged in base coordinates, loses {gap.copied} at the target; no "
        f"more than {allowed} is to be expected with probability {gap.within:.2f}",
        f"the recommendation loses {Span.of(lost)}; no more than that is to be expected with probability {within:.2f}",
    ]
    weak = _pace(law) == "weak"
    if gap.within >= SURE and not weak and not moved:
        return "transfer", said
    if gap.within >= SURE and weak:
        said.append("but transfer is weak: what the largest proxy's setting loses falls no faster than the loss itself")
    if moved:
        said.append(f"base coordinates are raw ones here, and the optimum moves in them: {', '.join(moved)}")
    if within >= SURE:
        return "corrected", said
    if max(within, gap.within) <= 1 - SURE and nearest:
        # from below: a search at the largest proxy that corrects for the drift by all that proxies tell of it
        left = land.corrected()
        directly = law.runs(np.full(DRAWS, allowed.loss))
        below = 1 + sizes.cost(gap.scale) * law.runs(allowed.loss - left)
        if (directly < below).mean() >= SURE:
            said.append(
                f"to lose no more than {allowed} takes {Span.of(directly)} target runs of direct tuning, and more from "
                f"below: by all that the optima of the proxies tell of the target's, who knew them would still lose "
                f"{Span.of(left)}"
            )
            return "direct", said
    return "undetermined", said


def _settling(problem: Problem, observations: Sequence[Observation], seed: int) -> Iterator[str]:
    """The run that would teach most."""
    for run in propose(problem, observations, seed=seed):
        raw = problem.to_raw(run.params, run.scale)
        params = ", ".join(f"{name} {format(v, '.3g') if isinstance(v, float) else v}" for name, v in raw.items())
        share = problem.cost(run.params, run.scale) / problem.cost(run.params, problem.target)
        yield f"the run that would teach most is {params} at {run.scale}, for {share:.2g} target runs"


def _drifts(problem: Problem, answer: Recommendation) -> Iterator[tuple[str, tuple[float, float, float], bool]]:
    """In words, in numbers, and whether the parametrization carries that hyperparameter along that axis."""
    for name, axes in answer.drift.items():
        for axis, (mean, low, high) in axes.items():
            carried = problem.parametrization.carries(problem.space, name, axis, problem.target)
            yield f"{name} as {axis}^{mean:.2f} ({low:.2f} .. {high:.2f})", (mean, low, high), carried


def _further(
    problem: Problem, gaps: Sequence[Gap], law: Law, sizes: Sizes, tests: Sequence[Test], answer: Recommendation
) -> Iterator[str]:
    """What else is known: tests that were passed, the ranks, the drift, and the rates."""
    for test in tests:
        if test.otherwise and test.more < SURE:
            yield f"{test}: {test.more:.2f} is the probability that this is more"
    yield (
        f"settings rank at {gaps[0].scale} as at the target with a correlation of {gaps[0].rank:.2f}, at "
        f"{gaps[-1].scale} of {gaps[-1].rank:.2f}"
    )
    for gap in gaps:
        if gap.measured is not None:
            yield f"measured: the best run of {gap.scale}, unchanged, lost {gap.measured:.3g} at the target"
    if drifts := [told for told, *_ in _drifts(problem, answer)]:
        yield f"raw optima move: {', '.join(drifts)}"
    pace = {"fast": "fast", "weak": "weak", "undetermined": "fast or not cannot be told"}[_pace(law)]
    seen = "beta is not told"
    if law.told:
        seen = f"beta {law.rates['beta']}, beta / alpha {Span.of(law.ratio)}"
    if law.told and _beyond_theory(law):
        seen += ", less than any limit allows: these scales are not in its regime yet"
    yield f"in {sizes.axis} alpha {law.rates['alpha']}, {seen}; transfer is fast above {FAST}: {pace}"
