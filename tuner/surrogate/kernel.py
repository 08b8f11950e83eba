"""The covariance of what the mean misses.

    k(X, X') = sigma_f^2 m(x~, x~') + B(n, n') [ sigma_e^2 + sigma_g^2 m(x~, x~') ]

m is a Matern-5/2 correlation; a categorical coordinate is one cube length away from any other choice. B is the
covariance of a two-sided Brownian motion whose clock is v = sign(h) |h|^(2 beta/alpha) of the law distance h, summed
over the axes,

    B(n, n') = sum_a (|v_a| + |v'_a| - |v_a - v'_a|) / 2

so the standard deviation of the correction g is |h|^(beta/alpha): zero at the target, and far above it as n^-beta where
the loss falls as n^-alpha. Smooth corrections have beta = alpha; beta = alpha/2 is the worst there is (Ghosh, Wu and
Bietti 2025, Prop. 2). A scale near the target tells more of g than one far away. The misfit of the
law itself, sigma_e, takes the same clock, which is slower than theory has it (n^-alpha): wide rather than narrow.
"""

from __future__ import annotations

import math
from typing import Any

import gpytorch
import torch
from torch import Tensor

from tuner.surrogate.frame import Frame
from tuner.surrogate.mean import undrifted
from tuner.surrogate.scaling import law_distance

SQRT5 = math.sqrt(5.0)


class TransferKernel(gpytorch.kernels.Kernel):
    """k above; every argument may carry leading batch dimensions (..., ): one process each.

    Args:
        drift: (..., d, a, 3). alpha: (..., a). ratio: (...), beta/alpha. length: (..., d).
        shared, fading, offset: (...), the amplitudes sigma_f, sigma_g, sigma_e.
    """

    has_lengthscale = False

    def __init__(
        self,
        frame: Frame,
        drift: Tensor,
        alpha: Tensor,
        ratio: Tensor,
        length: Tensor,
        shared: Tensor,
        fading: Tensor,
        offset: Tensor,
    ) -> None:
        super().__init__(batch_shape=shared.shape)
        self.frame, self.drift, self.alpha, self.ratio, self.length = frame, drift, alpha, ratio, length
        self.shared, self.fading, self.offset = shared, fading, offset

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        similar = self._matern(x1, x2, diag)
        shared, fading, offset = (
            value.square().reshape(value.shape + (1,) * (similar.ndim - value.ndim))
            for value in (self.shared, self.fading, self.offset)
        )
        if self.frame.axes == 0:
            return shared * similar
        brownian = self._brownian(x1, x2, diag)
        return (shared + fading * brownian) * similar + offset * brownian

    def _matern(self, x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
        """Correlation of the drift-corrected hyperparameters: (..., n, n'), or (..., n) if diag."""
        z1 = self._scaled(x1)
        square = _square_distance(z1, z1 if x2 is x1 else self._scaled(x2), diag)
        return _Matern52.apply(square + self._mismatch(x1, x2, diag))

    def _scaled(self, inputs: Tensor) -> Tensor:
        """Numeric coordinates, drift removed, in lengths of the kernel: (..., n, d')."""
        numeric = self.frame.numeric
        return undrifted(self.frame, self.drift, inputs)[..., numeric] / self.length[..., None, numeric]

    def _mismatch(self, x1: Tensor, x2: Tensor, diag: bool) -> Tensor | float:
        """Squared distance of the categorical coordinates."""
        if self.frame.numeric.all():
            return 0.0
        c1, c2 = (self.frame.split(x)[0][..., ~self.frame.numeric] for x in (x1, x2))
        differs = (c1 - c2 if diag else c1[..., :, None, :] - c2[..., None, :, :]).abs() > 1e-9
        weight = self.length[..., ~self.frame.numeric].square().reciprocal()
        return (differs * (weight[..., None, :] if diag else weight[..., None, None, :])).sum(-1)

    def _brownian(self, x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
        v1 = self._clock(x1)
        v2 = v1 if x2 is x1 else self._clock(x2)
        total = v1.new_zeros(())
        for axis in range(self.frame.axes):
            a, b = v1[..., axis], v2[..., axis]
            a, b = (a, b) if diag else (a[..., :, None], b[..., None, :])
            total = total + 0.5 * (a.abs() + b.abs() - (a - b).abs())
        return total

    def _clock(self, inputs: Tensor) -> Tensor:
        h = law_distance(self.frame.split(inputs)[1], self.frame.reach, self.alpha)
        return h.sign() * h.abs().clamp(min=1e-12) ** (2 * self.ratio[..., None, None])


def _square_distance(z1: Tensor, z2: Tensor, diag: bool) -> Tensor:
    """|z - z'|^2: (..., n, d), (..., n', d) -> (..., n, n'), or pairwise (..., n) if diag."""
    if diag:
        return (z1 - z2).square().sum(-1)
    lengths = z1.square().sum(-1)[..., :, None] + z2.square().sum(-1)[..., None, :]
    return (lengths - 2 * z1 @ z2.mT).clamp(min=0.0)


class _Matern52(torch.autograd.Function):
    """(1 + r + r^2 / 3) exp(-r), r = sqrt(5 q), of the squared distance q; smooth at q = 0, unlike sqrt."""

    @staticmethod
    def forward(ctx: Any, square: Tensor) -> Tensor:
        r = SQRT5 * square.sqrt()
        decay = (-r).exp()
        ctx.save_for_backward(r, decay)
        return (1 + r + r.square() / 3) * decay

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Tensor:
        r, decay = ctx.saved_tensors
        return outputs[0] * (-5 / 6) * (1 + r) * decay
