"""The covariance of what the mean misses.

    k(X, X') = sigma_f^2 m(r) + B(n, n') [ sigma_e^2 + sigma_g^2 m(2 r) ]          r = sqrt(5) |z - z'|

m(r) = (1 + r + r^2 / 3) exp(-r) is the Matern-5/2 correlation. z are the drift-corrected hyperparameters x~ in lengths
of the kernel; a categorical coordinate is one cube length away from any other choice. What sets one scale apart is
rougher than what all share, half the length: with one length for both, runs on the walls of the valley seem to tell
where its bottom lies at that scale, and the intervals are too short (benchmarks/README.md, coverage).

B is the covariance of a two-sided Brownian motion whose clock is v = sign(h) |h|^(2 beta/alpha) of the law distance h,
summed over the axes,

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

ROUGHER = 2  # lengths of f, in lengths of g


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
        z1, v1 = self._places(x1), self._clock(x1)
        z2, v2 = (z1, v1) if x2 is x1 else (self._places(x2), self._clock(x2))
        if diag:  # every point is a set of its own
            z1, z2, v1, v2 = (t[..., None, :] for t in (z1, z2, v1, v2))
        variances = [
            amplitude.square().reshape(amplitude.shape + (1,) * (z1.ndim - amplitude.ndim))
            for amplitude in (self.shared, self.fading, self.offset)
        ]
        covariance: Tensor = _Covariance.apply(z1, z2, v1, v2, *variances)
        return covariance[..., 0, 0] if diag else covariance

    def _places(self, inputs: Tensor) -> Tensor:
        """z, where m is a function of distance: x~ in lengths of the kernel, and for every category a corner of a
        simplex whose corners are one cube length apart. (..., n, d').
        """
        frame = self.frame
        numeric = undrifted(frame, self.drift, inputs)[..., frame.numeric] / self.length[..., None, frame.numeric]
        corners = [
            corner * (math.sqrt(0.5) / self.length[..., None, j, None]) for j, corner in frame.corners(inputs).items()
        ]
        return torch.cat([numeric, *corners], -1) if corners else numeric

    def _clock(self, inputs: Tensor) -> Tensor:
        """v, (..., n, a)."""
        h = law_distance(self.frame.split(inputs)[1], self.frame.reach, self.alpha)
        return h.sign() * h.abs().clamp(min=1e-12) ** (2 * self.ratio[..., None, None])


class _Covariance(torch.autograd.Function):
    """k from z (..., n, d'), v (..., n, a) of two sets and the variances sigma^2, (..., 1, 1) each.

    Its backward needs a third of the passes over (n, n') that automatic differentiation takes, and is smooth where two
    points coincide, unlike the square root.
    """

    @staticmethod
    def forward(
        ctx: Any, z1: Tensor, z2: Tensor, v1: Tensor, v2: Tensor, shared: Tensor, fading: Tensor, offset: Tensor
    ) -> Tensor:
        r = _square_distance(z1, z2).mul_(5).sqrt_()
        decay = (-r).exp_()
        smooth = torch.addcmul(r + 1, r, r, value=1 / 3).mul_(decay)
        rough = torch.addcmul(1 + ROUGHER * r, r, r, value=ROUGHER**2 / 3).mul_(decay**ROUGHER)
        brownian = torch.zeros_like(r[..., :1, :1])
        for a, b in zip(v1.unbind(-1), v2.unbind(-1), strict=True):
            for far1, far2 in ((a.relu(), b.relu()), ((-a).relu(), (-b).relu())):  # beyond the target, on either side
                if far1.any() and far2.any():  # min(|v|, |v'|) where both are on one side, else 0
                    brownian = brownian + torch.minimum(far1[..., :, None], far2[..., None, :])
        ctx.save_for_backward(z1, z2, v1, v2, shared, fading, offset, r, decay, smooth, rough, brownian)
        return (fading * rough).add_(offset).mul_(brownian).add_(shared * smooth)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        (slope,) = outputs
        z1, z2, v1, v2, shared, fading, offset, r, decay, smooth, rough, brownian = ctx.saved_tensors
        by_square = (shared * decay).mul_(1 + r)  # -6/5 of the derivative by |z - z'|^2
        by_square.add_((1 + ROUGHER * r).mul_(decay**ROUGHER).mul_(brownian).mul_(ROUGHER**2 * fading))
        by_square.mul_(slope).mul_(-5 / 6)
        dz1 = 2 * (by_square.sum(-1)[..., None] * z1 - by_square @ z2)
        dz2 = 2 * (by_square.sum(-2)[..., None] * z2 - by_square.mT @ z1)
        weighed = slope * brownian
        variances = [part.sum((-2, -1), keepdim=True) for part in (slope * smooth, weighed * rough, weighed)]
        by_brownian = (fading * rough).add_(offset).mul_(slope)
        dv1, dv2 = torch.empty_like(v1), torch.empty_like(v2)
        for axis in range(v1.shape[-1]):
            a, b = v1[..., axis], v2[..., axis]
            apart = (a[..., :, None] - b[..., None, :]).sign_().mul_(by_brownian)
            dv1[..., axis] = 0.5 * (by_brownian.sum(-1) * a.sign() - apart.sum(-1))
            dv2[..., axis] = 0.5 * (by_brownian.sum(-2) * b.sign() + apart.sum(-2))
        return dz1, dz2, dv1, dv2, *variances


def _square_distance(z1: Tensor, z2: Tensor) -> Tensor:
    """|z - z'|^2 as one product: (..., n, d), (..., n', d) -> (..., n, n')."""
    one1, one2 = torch.ones_like(z1[..., :1]), torch.ones_like(z2[..., :1])
    left = torch.cat([-2 * z1, z1.square().sum(-1, keepdim=True), one1], -1)
    right = torch.cat([z2, one2, z2.square().sum(-1, keepdim=True)], -1)
    return (left @ right.mT).clamp_(min=0.0)
