"""The mean: a loss law in scale, and a compressed quadratic bowl in the hyperparameters."""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from tuner.surrogate.compression import compress
from tuner.surrogate.frame import Frame
from tuner.surrogate.scaling import drift_bases, law_distance

LEAST = 1e-6  # of the power, in place of its limit 0, and of the amplitude, in units


def undrifted(frame: Frame, drift: Tensor, inputs: Tensor) -> Tensor:
    """x~ = x - Delta(n), (..., n, d + a) -> (..., n, d); drift is (..., d, a, 3)."""
    x, logs = frame.split(inputs)
    bases = drift_bases(logs, frame.reach)
    return x - (bases.flatten(-2) @ drift.flatten(-2).mT) * frame.numeric


class LossLaw(gpytorch.means.Mean):
    """E(n) = E_target + z ((1 + s / b)^(b / z) - 1),  s = sum_a A_a h_a(n),  b = bend sum_a |A_a c_a|. (..., n).

    h_a = c_a ((n_a / N_a)^-alpha_a - 1), so that with bend = 1 this is the power of a sum of power laws that Kaplan et
    al. 2020, eq. 1.5, found: the better one axis, the more another gives, and the loss falls towards z below E_target.
    Where b = z the gains of the axes add up. Without z, the power is its limit b ln(1 + s / b). Odd in s: a loss may
    rise with scale.

    Args:
        level: (...), E_target. rise, alpha: (..., a), A and alpha. bend: (...).
        height: z, how far E_target is above a loss of zero; infinite where that means nothing.
    """

    def __init__(self, frame: Frame, level: Tensor, rise: Tensor, alpha: Tensor, bend: Tensor, height: float) -> None:
        super().__init__()
        self.frame, self.level, self.rise, self.alpha, self.bend, self.height = frame, level, rise, alpha, bend, height

    def forward(self, inputs: Tensor) -> Tensor:
        distances = law_distance(self.frame.split(inputs)[1], self.frame.reach, self.alpha)
        total = (distances * self.rise[..., None, :]).sum(-1)
        amplitude = (self.rise / torch.expm1(-self.alpha * self.frame.reach)).abs().sum(-1) + LEAST
        bend = (self.bend * amplitude)[..., None]
        power = (bend / self.height).clamp(min=LEAST)
        grown = bend / power * torch.expm1(power * (total.abs() / bend).log1p())
        return self.level[..., None] + total.sign() * grown


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
