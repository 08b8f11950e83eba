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
from typing import Any, NamedTuple

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
        variances = [v.reshape(v.shape + (1,) * (z1.ndim - v.ndim)) for v in self._variances]
        covariance: Tensor = _Covariance.apply(z1, z2, v1, v2, *variances)
        return covariance[..., 0, 0] if diag else covariance

    def slope(self, ahead: TransferKernel, behind: TransferKernel, x1: Tensor, x2: Tensor, pulls: Tensor) -> Tensor:
        """How sum_j k(x1, x2_j) pulls_j differs between p pairs of kernels around this one, to first order: (p, n1).

        What differs is small: places, clocks and amplitudes. The matrices between x1 and x2 are those of this kernel
        alone (of batch shape (1,)), and meet the differences in products.
        """
        (z1, v1), (z2, v2) = ((self._places(x)[0], self._clock(x)[0]) for x in (x1, x2))
        (dz1, dv1), (dz2, dv2) = (
            (ahead._places(x) - behind._places(x), ahead._clock(x) - behind._clock(x)) for x in (x1, x2)
        )
        shared, fading, offset = self._variances
        near = _Nearness.of(z1, z2, v1, v2)
        by_square, by_brownian = near.by_square(shared, fading) * pulls, near.by_brownian(fading, offset) * pulls
        moved = 2 * (dz1 * (by_square.sum(-1)[:, None] * z1 - by_square @ z2)).sum(-1)
        moved -= 2 * ((z1 * (by_square @ dz2)).sum(-1) - (z2 * dz2).sum(-1) @ by_square.mT)
        for a, b, da, db in zip(v1.unbind(-1), v2.unbind(-1), dv1.unbind(-1), dv2.unbind(-1), strict=True):
            apart = (a[:, None] - b).sign().mul_(by_brownian)
            moved += 0.5 * da * (by_brownian.sum(-1) * a.sign() - apart.sum(-1))
            moved += 0.5 * db @ (by_brownian * b.sign() + apart).mT
        shapes = (near.smooth, near.brownian * near.rough, near.brownian)
        for one, other, shape in zip(ahead._variances, behind._variances, shapes, strict=True):
            moved += (one - other)[:, None] * (shape * pulls).sum(-1)
        return moved

    @property
    def _variances(self) -> tuple[Tensor, Tensor, Tensor]:
        """sigma_f^2, sigma_g^2, sigma_e^2, (...) each."""
        return self.shared.square(), self.fading.square(), self.offset.square()

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


class _Nearness(NamedTuple):
    """What k is made of between two sets: r, exp(-r), m(r), m(2r) and B, (..., n, n') each."""

    r: Tensor
    decay: Tensor
    smooth: Tensor
    rough: Tensor
    brownian: Tensor

    @staticmethod
    def of(z1: Tensor, z2: Tensor, v1: Tensor, v2: Tensor) -> _Nearness:
        r = _square_distance(z1, z2).mul_(5).sqrt_()
        decay = (-r).exp_()
        smooth = torch.addcmul(r + 1, r, r, value=1 / 3).mul_(decay)
        rough = torch.addcmul(1 + ROUGHER * r, r, r, value=ROUGHER**2 / 3).mul_(decay**ROUGHER)
        brownian = torch.zeros_like(r[..., :1, :1])
        for a, b in zip(v1.unbind(-1), v2.unbind(-1), strict=True):
            for far1, far2 in ((a.relu(), b.relu()), ((-a).relu(), (-b).relu())):  # beyond the target, on either side
                if far1.any() and far2.any():  # min(|v|, |v'|) where both are on one side, else 0
                    brownian = brownian + torch.minimum(far1[..., :, None], far2[..., None, :])
        return _Nearness(r, decay, smooth, rough, brownian)

    def by_square(self, shared: Tensor, fading: Tensor) -> Tensor:
        """Derivative of k by |z - z'|^2."""
        slope = (shared * self.decay).mul_(1 + self.r)
        slope.add_((1 + ROUGHER * self.r).mul_(self.decay**ROUGHER).mul_(self.brownian).mul_(ROUGHER**2 * fading))
        return slope.mul_(-5 / 6)

    def by_brownian(self, fading: Tensor, offset: Tensor) -> Tensor:
        """Derivative of k by B."""
        return (fading * self.rough).add_(offset)


class _Covariance(torch.autograd.Function):
    """k from z (..., n, d'), v (..., n, a) of two sets and the variances sigma^2, (..., 1, 1) each.

    Its backward needs a third of the passes over (n, n') that automatic differentiation takes, and is smooth where two
    points coincide, unlike the square root.
    """

    @staticmethod
    def forward(
        ctx: Any, z1: Tensor, z2: Tensor, v1: Tensor, v2: Tensor, shared: Tensor, fading: Tensor, offset: Tensor
    ) -> Tensor:
        near = _Nearness.of(z1, z2, v1, v2)
        ctx.save_for_backward(z1, z2, v1, v2, shared, fading, offset, *near)
        return near.by_brownian(fading, offset).mul_(near.brownian).add_(shared * near.smooth)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        (slope,) = outputs
        z1, z2, v1, v2, shared, fading, offset, *parts = ctx.saved_tensors
        near = _Nearness(*parts)
        by_square = near.by_square(shared, fading).mul_(slope)
        dz1 = 2 * (by_square.sum(-1)[..., None] * z1 - by_square @ z2)
        dz2 = 2 * (by_square.sum(-2)[..., None] * z2 - by_square.mT @ z1)
        weighed = slope * near.brownian
        variances = [part.sum((-2, -1), keepdim=True) for part in (slope * near.smooth, weighed * near.rough, weighed)]
        by_brownian = near.by_brownian(fading, offset).mul_(slope)
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
