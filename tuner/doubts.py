"""What speaks against any verdict: too few runs, optima at an end of their range, scales without a loss, two basins.

Each is a sentence with its numbers and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from tuner.engine import RUNS_JUDGED, SCALES_JUDGED
from tuner.landscape import DRAWS, Landscape
from tuner.parametrization import MOVING_AVERAGES, REGULARISERS
from tuner.posterior import generator_of
from tuner.problem import Problem
from tuner.scale import Scale, by_scale
from tuner.space import Categorical, Float, Int
from tuner.surrogate.fit import Fit
from tuner.surrogate.optimum import Points
from tuner.theorem import SURE, Allowed, Sizes, Span
from tuner.trial import Observation

EDGE = 0.01  # of a range: candidates scatter by 0.015 of it at least; the best this near an end was cut there
FEW = 4  # integers: fewer are choices, of which one is an end more often than not
WIDEN = 0.25  # of a range, beyond an end at which the optimum lies: room for the slope to turn, at a quarter more runs
SHARES = REGULARISERS | MOVING_AVERAGES  # roles of what lies between nothing and one
WAY = 17  # points on the way between two optima


def too_few(problem: Problem, sizes: Sizes, counts: Mapping[Scale, int]) -> str:
    """Why nothing can be said of transfer, and what would let it be."""
    known = ", ".join(f"{n} at {scale}" for scale, n in counts.items()) or "none"
    proxies = sizes.below(problem.proxies)
    few = [scale for scale in [*proxies, problem.target] if counts.get(scale, 0) < RUNS_JUDGED]
    do = f"run {RUNS_JUDGED - counts.get(few[0], 0)} at {few[0]}" if few else ""
    if len(proxies) + 1 < SCALES_JUDGED or problem.target in few[:1]:
        do = "name another proxy"  # it costs less than runs at the target
    return (
        f"whether transfer holds takes {RUNS_JUDGED} runs with a finite loss at each of {SCALES_JUDGED} scales, one "
        f"more than a line through their optima has ends; there are {known}: {do}"
    )


def at_the_border(problem: Problem, land: Landscape) -> Iterator[str]:
    """That a hyperparameter's optimum lies at an end of its range, at the target or everywhere: it may lie beyond."""
    best = land.pool[land.means.argmin(-1)]  # (scales, d)
    for j, (name, dimension) in enumerate(problem.space.items()):
        if isinstance(dimension, Categorical) or (
            isinstance(dimension, Int) and dimension.high - dimension.low < FEW - 1
        ):
            continue
        for bound, which, beyond in ((dimension.low, "low", -1), (dimension.high, "high", 1)):
            there = np.abs(best[:, j] - dimension.encode(bound)) < EDGE
            if not there[-1] or (wider := _wider(dimension, problem.space.role(name), bound, beyond)) is None:
                continue
            where = "every scale" if there.all() else "the target"
            yield (
                f"the optimum of {name} lies at the {which} end of its range at {where}, {bound:.3g}: "
                f"widen it to {wider:.4g}, by a quarter of the range"
            )


def _wider(dimension: Float | Int, role: str, bound: float, beyond: int) -> float | None:
    """An end of a range, moved out by WIDEN of it; None where there is nothing beyond.

    Of what has no sign nothing lies below nothing, of counts nothing below one, of shares nothing above one: their high
    end moves half of the way there at most.
    """
    if dimension.log:
        wider = bound * (dimension.high / dimension.low) ** (WIDEN * beyond)
    else:
        wider = bound + WIDEN * beyond * (dimension.high - dimension.low)
    if isinstance(dimension, Int):
        wider = float(math.floor(wider) if beyond < 0 else math.ceil(wider))
    if dimension.low >= 0:
        wider = max(wider, min(dimension.low, 1.0 if isinstance(dimension, Int) else 0.0))
        share = role in SHARES or (dimension.high == 1 and not dimension.log)
        wider = min(wider, (1 + bound) / 2) if share and bound <= 1 and beyond > 0 else wider
    return None if wider == bound else wider


def all_diverged(observations: Sequence[Observation]) -> Iterator[str]:
    """That a scale has runs and no loss: what is said of it is the surrogate's guess."""
    for scale, members in by_scale(run.scale for run in observations).items():
        if len(members) >= RUNS_JUDGED and all(observations[i].diverged for i in members):
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
