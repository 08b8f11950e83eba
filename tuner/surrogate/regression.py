"""A first guess at law, bowl and noise by least squares, on the runs near the bottom: where a climb may start.

    loss = E + sum_a A_a h_a(n) + sum_j (c_j x_j^2 / 2 + g_j x_j)         h_a at a given exponent alpha

is linear in E, A, c and g. It is fitted to all runs, then twice more to the half that lies lowest above the law found
before: walls are no parabola. Of the exponents tried, the one that fits best.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.surrogate.frame import DTYPE, Data, Frame
from tuner.surrogate.scaling import law_distance

ALPHAS = (0.25, 0.5, 1.0)
ROUNDS = 2  # of leaving out the upper half
SPARE = 3  # runs beyond the coefficients
CURVATURE = (2.0, 2000.0)  # units per cube length squared, of a bowl: four deviations of its prior
NOISE = (0.02, 1.5)  # units, of a run: its prior's


def regression(frame: Frame, data: Data) -> dict[str, Tensor] | None:
    """level, rise, alpha, curvature, bottom and noise, as blocks of theta; None where the runs are too few."""
    finite = ~data.diverged & torch.isfinite(data.inputs).all(1)
    x, logs = frame.split(data.inputs[finite])
    x, losses = frame.summed(x)[:, frame.numeric], data.losses[finite]
    fits = [fit for alpha in ALPHAS if (fit := _fit(frame, x, logs, losses, alpha)) is not None]
    return min(fits, key=lambda fit: float(fit["noise"])) if fits else None


def _fit(frame: Frame, x: Tensor, logs: Tensor, losses: Tensor, alpha: float) -> dict[str, Tensor] | None:
    d, a = x.shape[1], frame.axes
    alphas = torch.full((a,), alpha, dtype=DTYPE)
    law = torch.cat([torch.ones(len(x), 1, dtype=DTYPE), law_distance(logs, frame.reach, alphas)], 1)
    design = torch.cat([law, 0.5 * x.square(), x], 1)
    kept = torch.ones(len(x), dtype=torch.bool)
    for round_ in range(ROUNDS + 1):
        if int(kept.sum()) < design.shape[1] + SPARE:
            return None
        found = torch.linalg.lstsq(design[kept], losses[kept], driver="gelsd").solution
        curvature = found[1 + a : 1 + a + d].clamp(*CURVATURE)
        bottom = (-found[1 + a + d :] / curvature).clamp(0.0, 1.0)
        depth = (0.5 * curvature * (x - bottom).square()).sum(1)
        left = losses - depth
        base = torch.linalg.lstsq(law[kept], left[kept], driver="gelsd").solution  # the law beside that bowl
        above = losses - law @ base
        if round_ < ROUNDS:
            kept = above <= above[kept].median()
    noise = (left - law @ base)[kept].square().mean().sqrt().clamp(*NOISE)
    whole = {"curvature": torch.full((frame.dimensions,), 20.0, dtype=DTYPE)}
    whole["bottom"] = torch.full((frame.dimensions,), 0.5, dtype=DTYPE)
    whole["curvature"][frame.numeric], whole["bottom"][frame.numeric] = curvature, bottom
    return {"level": base[0], "rise": base[1:], "alpha": alphas, "noise": noise, **whole}
