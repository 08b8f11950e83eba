"""Losses that are not to be believed: one too low to be true, and those as high as if training had diverged.

One far too low, a slip of the record, would be taken for the optimum. High ones are harmless as such, for compression
takes them for the wall of a valley; but where every run of a scale ended so, nothing is known of its optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tuner.problem import Problem
from tuner.scale import by_scale
from tuner.surrogate.frame import DECADE
from tuner.trial import Observation

PER_SCALE = 5  # runs with a finite loss, for a scale to be looked at
FEWEST = 13  # runs at such scales
FAR = 3.0  # times what tuning gained
SHARE = 0.01  # of the loss itself: less is no slip
AROUND = 0.2  # root mean square over hyperparameters, cube lengths: runs that near are neighbours
NEIGHBOURS = 4  # that must speak against it
ABSURD = 100.0  # times as far above the median as that is above the smallest, and as scales are apart


def too_low(problem: Problem, observations: Sequence[Observation]) -> int | None:
    """Where the run stands that nothing around it bears out; None where there is none.

    Of the best of each scale, that which is furthest below the second. It is doubted where that is by three times more
    than tuning gained, the upper quartile of how far other runs lie above the best of their scale: of all scales, and
    of its own. And where neighbours speak against it: those at its scale, and those that are no better than most at
    theirs. So the first run on a plateau that learns at all is no slip. Rather too few are doubted than too many: one
    among few runs, among losses that span decades, or of two at once, passes.
    """
    runs = [run for run in observations if not run.diverged]
    losses = np.array([run.loss for run in runs])
    groups = [np.array(group) for group in by_scale(run.scale for run in runs).values() if len(group) >= PER_SCALE]
    if sum(map(len, groups)) < FEWEST:
        return None
    gap, lowest, its = max(((*_gap(losses, group), k) for k, group in enumerate(groups)))
    others = [group[group != lowest] for group in groups]
    above = [losses[group] - losses[group].min() for group in others]
    gained = max(np.quantile(np.concatenate(above), 0.75), np.quantile(above[its], 0.75))
    if gap <= max(FAR * gained, SHARE * abs(losses[lowest])):
        return None
    middle = np.median(np.concatenate(above))
    against = [group if k == its else group[above[k] >= middle] for k, group in enumerate(others)]
    near = _near(problem, runs[lowest], [runs[i] for i in np.concatenate(against)])
    return observations.index(runs[lowest]) if near >= NEIGHBOURS else None


def absurd(observations: Sequence[Observation]) -> float:
    """The loss above which a run is as good as diverged; infinite where losses span decades, or do not differ.

    A hundred times as far above the median as that is above the smallest loss, as scales are apart by their medians,
    and as a tenth of the median itself: a cheap scale is not absurd beside many runs that hardly differ.
    """
    runs = [run for run in observations if not run.diverged]
    losses = np.array([run.loss for run in runs])
    if not runs or 0 < DECADE * losses.min() < np.median(losses):
        return math.inf
    middle, apart = float(np.median(losses)), np.empty(len(runs))
    for group in by_scale(run.scale for run in runs).values():
        apart[group] = abs(np.median(losses[group]) - middle)
    spread = max(middle - float(losses.min()), float(np.median(apart)), 0.1 * abs(middle))
    return middle + ABSURD * spread if spread else math.inf


def borne_out(problem: Problem, observations: Sequence[Observation]) -> list[Observation]:
    """The runs without the one that is too low to be true; what is absurdly high counts as diverged."""
    slip, most = too_low(problem, observations), absurd(observations)
    kept = (run for i, run in enumerate(observations) if i != slip)
    return [replace(run, loss=math.inf) if run.loss > most else run for run in kept]


def _gap(losses: NDArray[np.float64], group: NDArray[np.int_]) -> tuple[float, int]:
    """How far the lowest of a scale is below the second, and which it is."""
    lowest, second = group[losses[group].argsort()[:2]]
    return float(losses[second] - losses[lowest]), int(lowest)


def _near(problem: Problem, run: Observation, others: Sequence[Observation]) -> int:
    """How many of the others are neighbours; another choice of a category is one cube length away."""
    places: NDArray[np.float64] = problem.space.encode_all([other.params for other in others])
    away, categories = places - problem.space.encode(run.params), ~problem.frame.numeric.numpy()
    away[:, categories] = away[:, categories] != 0
    return int((np.square(away).mean(1) <= AROUND**2).sum())
