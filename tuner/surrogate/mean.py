"""The mean: a loss law in scale, and a compressed quadratic bowl in the hyperparameters."""

from __future__ import annotations

import gpytorch
from torch import Tensor

from tuner.surrogate.compression import compress
from tuner.surrogate.frame import Frame
from tuner.surrogate.scaling import drift_bases, law_distance


def undrifted(frame: Frame, drift: Tensor, inputs: Tensor) -> Tensor:
    """x~ = x - Delta(n), (..., n, d + a) -> (..., n, d); drift is (..., d, a, 3)."""
    x, logs = frame.split(inputs)
    bases = drift_bases(logs, frame.reach)
    return x - (bases.flatten(-2) @ drift.flatten(-2).mT) * frame.numeric


class LossLaw(gpytorch.means.Mean):
    """E(n) = E_target + sum_a A_a h_a(n): the power law of science, written around the target. (..., n)."""

    def __init__(self, frame: Frame, level: Tensor, rise: Tensor, alpha: Tensor) -> None:
        super().__init__()
        self.frame, self.level, self.rise, self.alpha = frame, level, rise, alpha

    def forward(self, inputs: Tensor) -> Tensor:
        logs = self.frame.split(inputs)[1]
        return self.level[..., None] + (law_distance(logs, self.frame.reach, self.alpha) * self.rise[..., None, :]).sum(
            -1
        )


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
