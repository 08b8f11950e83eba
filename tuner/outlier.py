"""A loss too low to be true.

One far too high is harmless: compression takes it for the wall of a valley. One far too low, a slip of the record,
would be taken for the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tuner.problem import Problem
from tuner.scale import by_scale
from tuner.trial import Observation

LEAST = 5  # runs with a finite loss at a scale
FEWEST = 12  # others at such scales
FAR = 3.0  # times what tuning gained
AROUND = 0.2  # root mean square over hyperparameters, cube lengths: runs that near are neighbours
NEIGHBOURS = 4  # that must have been made


def too_low(problem: Problem, observations: Sequence[Observation]) -> int | None:
    """Where the run stands that nothing around it bears out; None where there is none.

    Of the best of each scale, that which is furthest below the second. It is doubted where that is by three times more
    than tuning gained, the upper quartile of how far the other runs lie above the best of their scale. And where runs
    were made near it, none of which feels the valley it would lie in: the first run on a plateau that learns at all is
    no slip.
    """
    runs = [run for run in observations if not run.diverged]
    losses = np.array([run.loss for run in runs])
    groups = [np.array(group) for group in by_scale(run.scale for run in runs).values() if len(group) >= LEAST]
    if sum(map(len, groups)) <= FEWEST:
        return None
    gap, lowest = max((_gap(losses[group]), int(group[losses[group].argmin()])) for group in groups)
    others = [group[group != lowest] for group in groups]
    gained = np.quantile(np.concatenate([losses[group] - losses[group].min() for group in others]), 0.75)
    if gap <= FAR * gained or _neighbours(problem, runs, lowest) < NEIGHBOURS:
        return None
    return observations.index(runs[lowest])


def _gap(losses: NDArray[np.float64]) -> float:
    """How far the lowest is below the second."""
    lowest, second = np.sort(losses)[:2]
    return float(second - lowest)


def _neighbours(problem: Problem, runs: Sequence[Observation], which: int) -> int:
    """How many runs are near one of them; another choice of a category is one cube length away."""
    places: NDArray[np.float64] = problem.space.encode_all([run.params for run in runs])
    away, categories = places - places[which], ~problem.frame.numeric.numpy()
    away[:, categories] = away[:, categories] != 0
    return int((np.square(away).mean(1) <= AROUND**2).sum()) - 1
