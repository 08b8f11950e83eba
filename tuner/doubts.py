"""What speaks against any verdict: too few runs, optima at an end of their range, scales without a loss, two basins.

Each is a sentence with its numbers and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from tuner.engine import RUNS_JUDGED, SCALES_JUDGED
from tuner.landscape import DRAWS, Landscape
from tuner.posterior import generator_of
from tuner.problem import Problem
from tuner.scale import Scale, by_scale
from tuner.space import Categorical
from tuner.surrogate.fit import Fit
from tuner.surrogate.optimum import Points
from tuner.theorem import SURE, Allowed, Span
from tuner.trial import Observation

FEWEST = SCALES_JUDGED  # scales: two optima can be joined by a line, and nothing bears out that it goes on
ENOUGH = RUNS_JUDGED  # runs with a finite loss at a scale: as many as a parabola has coefficients
EDGE = 0.02  # of a range: candidates scatter by 0.03 of it at least, so one that is best this near an end was cut there
WIDEN = 0.25  # of a range, beyond an end at which the optimum lies: room for the slope to turn, at a quarter more runs
WAY = 17  # points on the way between two optima


def too_few(problem: Problem, counts: Mapping[Scale, int]) -> str:
    """Why nothing can be said of transfer, and what would let it be."""
    known = ", ".join(f"{n} at {scale}" for scale, n in counts.items()) or "none"
    proxies = sorted(problem.proxies, key=problem.run_cost)
    few = [scale for scale in [*proxies, problem.target] if counts.get(scale, 0) < ENOUGH]
    do = f"run {ENOUGH - counts.get(few[0], 0)} at {few[0]}" if few else ""
    if len(proxies) + 1 < FEWEST or problem.target in few[:1]:
        do = "name another proxy"  # it costs less than runs at the target
    return (
        f"whether transfer holds takes {ENOUGH} runs with a finite loss at each of {FEWEST} scales, one more than a "
        f"line through their optima has ends; there are {known}: {do}"
    )


def at_the_border(problem: Problem, land: Landscape) -> Iterator[str]:
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


def all_diverged(observations: Sequence[Observation]) -> Iterator[str]:
    """That a scale has runs and no loss: what is said of it is the surrogate's guess."""
    for scale, members in by_scale(run.scale for run in observations).items():
        if len(members) >= ENOUGH and all(observations[i].diverged for i in members):
            yield (
                f"all {len(members)} runs at {scale} diverged, which tells of no optimum there: leave that scale out, "
                "or lower the ranges and run there again"
            )


def jumped(problem: Problem, fitted: Fit, land: Landscape, allowed: Allowed) -> Iterator[str]:
    """That between the optimum of the smallest scale and that of the target lies a wall: they are two basins.

    On the straight way between them; names are the target's on all of it.
    """
    first, last = land.pool[land.means[[0, -1]].argmin(-1)]
    named = [isinstance(dimension, Categorical) for dimension in problem.space.values()]
    between = last + np.linspace(1, 0, WAY)[:, None] * np.where(named, 0.0, first - last)
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


def renamed(problem: Problem, land: Landscape, allowed: Allowed) -> Iterator[str]:
    """That a name is best at the target that is best at no proxy, where it counts which: no run bears that out."""
    best = land.means.argmin(-1)
    *proxies, target = land.pool[best]
    lost = land.regret(int(best[-2]))
    for j, (name, dimension) in enumerate(problem.space.items()):
        if not isinstance(dimension, Categorical) or any(there[j] == target[j] for there in proxies):
            continue
        if (lost > allowed.loss).mean() >= SURE:
            before, after = dimension.decode(float(proxies[-1][j])), dimension.decode(float(target[j]))
            yield (
                f"{name} is to become {after} at the target where {before} is best at the largest proxy, whose setting "
                f"would lose {Span.of(lost)}, more than {allowed}: run {after} nearer to the target to see if it wins"
            )
