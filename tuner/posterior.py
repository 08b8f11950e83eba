"""The surrogate of a record: its fit, as a pure function of the runs, and the points that are worth a look.

Randomness comes from the seed and the number of runs alone. The algebra runs on one thread: its matrices are small, and
an answer must not depend on how many threads the host has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from threading import RLock
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import qmc
from threadpoolctl import threadpool_limits
from torch import Tensor

from tuner.outlier import borne_out
from tuner.problem import Problem
from tuner.scale import Scale, by_scale
from tuner.space import Categorical
from tuner.surrogate.descent import lowest, minima
from tuner.surrogate.fit import Fit, Gaussian, climb, spread, starts
from tuner.surrogate.frame import DTYPE, Data, Frame
from tuner.surrogate.optimum import Points
from tuner.trial import Observation

Array = NDArray[np.float64]
P = ParamSpec("P")
R = TypeVar("R")

SCREEN = 64  # space-filling points of a candidate set
NEAR = 128  # points near where the optimum may be
MOST = 362  # runs that are fitted, and a checkpoint
CHECKPOINTS = 2  # an octave of runs, at which theta is looked for from nothing
REFITS = 16  # an octave of runs, at which theta is looked for again: at every run up to 23
SINCE = 64  # runs beyond the last climb, at most


ALONE = RLock()  # the number of threads is the process's: two that save and restore it at once would leave it at one


def one_thread(function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        with ALONE:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                with threadpool_limits(1):
                    return function(*args, **kwargs)
            finally:
                torch.set_num_threads(threads)

    return limited


def candidates(
    problem: Problem, fitted: Fit, scale: Scale, generator: torch.Generator, rounds: int = 1, count: int = NEAR
) -> Array:
    """Cube points worth a look at a scale: SCREEN space-filling ones, and in each round `count` near the optimum.

    Of the first round are the members' own minima; the others scatter about where joint draws have theirs.
    """
    rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    d = len(problem.space)
    filling = problem.snapped(qmc.Sobol(d, rng=rng).random(power_of_two(SCREEN))[:SCREEN])
    logs = problem.frame.split(problem.inputs(filling[:1], scale))[1][0]
    points = np.vstack([filling, np.unique(problem.snapped(minima(fitted, logs).numpy()), axis=0)])
    for round_ in range(rounds):
        wanted = SCREEN + (round_ + 1) * count - len(points)
        with torch.no_grad():
            known = Points(fitted, problem.inputs(points, scale))
            optima = points[known.draws(wanted - 1, generator)[0].argmin(1)]
            centres = np.vstack([points[int(known.mean.argmin())][None], optima])
        width = np.maximum(0.5 * centres.std(0), 0.03) / 2**round_
        moved = _mutated(problem, centres + width * rng.standard_normal(centres.shape), rng)
        points = np.vstack([points, problem.snapped(np.clip(moved, 0.0, 1.0))])
    return points


def answers(problem: Problem, fitted: Fit, generator: torch.Generator, count: int = NEAR) -> Points:
    """The points of the target that an answer is chosen from; the last is where descent from the best of them ends."""
    points = candidates(problem, fitted, problem.target, generator, rounds=2, count=count)
    best = points[int(Points(fitted, problem.inputs(points, problem.target)).mean.argmin())]
    bottom = problem.snapped(lowest(fitted, torch.from_numpy(best)).numpy()[None])
    return Points(fitted, problem.inputs(np.vstack([points, bottom]), problem.target))


def _mutated(problem: Problem, points: Array, rng: np.random.Generator) -> Array:
    """Categories do not move by a distance: a fifth of them are drawn anew."""
    for j, dimension in enumerate(problem.space.values()):
        if isinstance(dimension, Categorical):
            points[:, j] = np.where(rng.random(len(points)) < 0.2, rng.random(len(points)), points[:, j])
    return points


def fit_of(problem: Problem, observations: Sequence[Observation], seed: int) -> Fit:
    """The weighted set of processes: theta is climbed to when the runs are some more, and weighed anew at every run."""
    observations = borne_out(problem, observations)
    settled = _mark(len(observations), REFITS)
    if len(observations) - settled > SINCE:  # a long table: its last rows are thinned like the others
        settled = len(observations)
    told, since = _telling(problem, observations[:settled]), observations[settled:]
    runs = problem.located([*told, *since])
    losses = torch.tensor([math.inf if o.diverged else o.loss for o in (*told, *since)], dtype=DTYPE)
    return _spread_of(_Record.of(problem.frame, runs, losses), len(told), seed)


def _telling(problem: Problem, observations: Sequence[Observation]) -> Sequence[Observation]:
    """At most MOST runs, of each scale alike: the nearer to the middle of its best tenth, the likelier one is kept.

    The cost of the fit is cubic in the runs, and walls tell little: in the order of that distance, those at the squares
    of an even spacing are kept. Chosen by where they lie: by their loss, the lucky ones would be.
    """
    if len(observations) <= MOST:
        return observations
    places = problem.space.encode_all([run.params for run in observations])
    groups = by_scale(run.scale for run in observations).values()
    kept: list[int] = []
    for k, group in enumerate(sorted(groups, key=len)):
        share = min(len(group), (MOST - len(kept)) // (len(groups) - k))
        ranks = np.unique(((len(group) - 1) * np.linspace(0, 1, share) ** (2 if share < len(group) else 1)).round())
        best = sorted(group, key=lambda i: observations[i].loss)[: math.ceil(len(group) / 10)]
        away = np.square(places[group] - places[best].mean(0)).sum(1)
        kept += [group[i] for i in away.argsort(kind="stable")[ranks.astype(int)]]
    return [observations[i] for i in sorted(kept)]


@dataclass(frozen=True)
class _Record:
    """A record prefix as a value: what the cached fits are keyed by."""

    frame: Frame
    runs: tuple[tuple[float, ...], ...]
    losses: tuple[float, ...]

    @staticmethod
    def of(frame: Frame, runs: Tensor, losses: Tensor) -> _Record:
        return _Record(frame, tuple(map(tuple, runs.tolist())), tuple(losses.tolist()))

    def data(self, settled: int) -> Data:
        """In units of the first `settled` runs."""
        runs, losses = (torch.tensor(t, dtype=DTYPE) for t in (self.runs, self.losses))
        return Data.of(self.frame, runs, losses, settled)

    def first(self, count: int) -> _Record:
        return _Record(self.frame, self.runs[:count], self.losses[:count])


@lru_cache(maxsize=4)
def _spread_of(record: _Record, settled: int, seed: int) -> Fit:
    around = _around(record.first(settled))
    return spread(record.frame, record.data(settled), around, generator_of(seed, len(record.losses)))


@lru_cache(maxsize=64)
def _around(record: _Record) -> Gaussian | None:
    """Climbed to from what the last checkpoint said; at a checkpoint, from nothing."""
    count = len(record.losses)
    before, data = _mark(count, CHECKPOINTS), record.data(count)
    known = _around(record.first(before)) if before < count else None
    warm = None if known is None else climb(record.frame, data, [known])
    return climb(record.frame, data, starts(record.frame, data)) if warm is None else warm


def _mark(count: int, per_octave: int) -> int:
    """The largest power of 2^(1 / per_octave), rounded down, that is at most `count`: 4, 5, 8, 11, 16, ... for 2."""
    steps = math.ceil(per_octave * math.log2(count + 1) - 1e-9) - 1
    return count if count < 4 else int(2 ** (steps / per_octave))


def generator_of(seed: int, number: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def power_of_two(count: int) -> int:
    return 1 << max(count - 1, 1).bit_length()
