"""The mean: a loss law in scale, and a compressed quadratic bowl in the hyperparameters."""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from tuner.surrogate.compression import compress
from tuner.surrogate.frame import Frame
from tuner.surrogate.scaling import drift_bases, law_distance

LEAST = 1e-6  # of what must not be zero
SMOOTH = 0.1  # units: |A| is rounded off at zero


def undrifted(frame: Frame, drift: Tensor, inputs: Tensor) -> Tensor:
    """x~ = x - Delta(n), (..., n, d + a) -> (..., n, d); drift is (..., d, a, 3), of products where x has `sums`."""
    x, logs = frame.split(inputs)
    bases = drift_bases(logs, frame.reach)
    return frame.summed(x) - (bases.flatten(-2) @ drift.flatten(-2).mT) * frame.numeric


class LossLaw(gpytorch.means.Mean):
    """E(n) = E_target + z ((1 + s / b)^(b / z) - 1),  s = sum_a A_a h_a(n),  b = bend sum_a |A_a c_a|. (..., n).

    h_a = c_a ((n_a / N_a)^-alpha_a - 1), so that with bend = 1 this is the power of a sum of power laws that Kaplan et
    al. 2020, eq. 1.5, found: the better one axis, the more another gives, and E_target is z above where the loss can
    fall. Where b = z, at the most, the gains of the axes add up, as a single axis's do: there nothing is combined, and
    what the loss falls towards is not zero but unknown. Without z, the power is its limit b ln(1 + s / b).
    Where s < 0 (the loss rises with scale, or a run lies beyond the target), the same below E_target: odd in s.

    Args:
        level: (...), E_target. rise, alpha: (..., a), A and alpha. bend: (...).
        height: how far a level of 0 is above a loss of zero; infinite where that means nothing.
    """

    def __init__(self, frame: Frame, level: Tensor, rise: Tensor, alpha: Tensor, bend: Tensor, height: float) -> None:
        super().__init__()
        self.frame, self.level, self.rise, self.alpha, self.bend, self.height = frame, level, rise, alpha, bend, height

    def forward(self, inputs: Tensor) -> Tensor:
        distances = law_distance(self.frame.split(inputs)[1], self.frame.reach, self.alpha)
        total = (distances * self.rise[..., None, :]).sum(-1)
        if self.frame.axes == 1:
            return self.level[..., None] + total
        side = torch.where(total < 0, -1.0, 1.0)  # not sign: its slope at zero, where climbs start, is none
        amplitude = (self.rise / torch.expm1(-self.alpha * self.frame.reach)).square().add(SMOOTH**2).sqrt().sum(-1)
        bend = (self.bend * amplitude + LEAST)[..., None]
        zero = (self.height + self.level).clamp(min=LEAST)[..., None]
        power = (bend / zero).clamp(LEAST, 1.0)
        return self.level[..., None] + side * bend / power * torch.expm1(power * (side * total / bend).log1p())


class Bowl(gpytorch.means.Mean):
    """T(sum_j c_j (x~_j - o_j)^2 / 2) over the numeric hyperparameters. (..., n)."""

    def __init__(self, frame: Frame, drift: Tensor, curvature: Tensor, bottom: Tensor, linear: Tensor) -> None:
        super().__init__()
        self.frame, self.drift = frame, drift
        self.curvature, self.bottom, self.linear = curvature, bottom, linear

    def forward(self, inputs: Tensor) -> Tensor:
        away = undrifted(self.frame, self.drift, inputs) - self.bottom[..., None, :]
        depth = (0.5 * self.frame.numeric * self.curvature[..., None, :] * away.square()).sum(-1)
        return compress(depth, self.linear[..., None])
