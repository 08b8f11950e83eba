"""A batch of Gaussian processes, one for each row of theta, over the same data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tuner.surrogate.compression import compress, log_slope
from tuner.surrogate.frame import Data, Frame
from tuner.surrogate.kernel import TransferKernel
from tuner.surrogate.mean import Bowl, LossLaw
from tuner.surrogate.prior import Prior

Singular: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
JITTER = 1e-6  # variance added to a run's noise, in units squared
ABOVE = 3.0  # units: how far the best run may be above the law. Far below all runs, it would make compression idle


@dataclass(frozen=True)
class Processes:
    """m processes: theta (m, p) given the runs of `data`.

    `level` and below are in units of `data`, not in loss units; the latent function is compressed (see compression).
    """

    frame: Frame
    data: Data
    prior: Prior
    theta: Tensor

    @cached_property
    def value(self) -> dict[str, Tensor]:
        return self.prior.unpack(self.theta)

    @cached_property
    def law(self) -> LossLaw:
        v = self.value
        return LossLaw(self.frame, v["level"], v["rise"], v["alpha"], v["bend"], self.data.height)

    @cached_property
    def bowl(self) -> Bowl:
        v = self.value
        return Bowl(self.frame, v["drift"], v["curvature"], v["bottom"], v["linear"])

    @cached_property
    def kernel(self) -> TransferKernel:
        v = self.value
        names = ("drift", "alpha", "ratio", "length", "shared", "fading", "offset")
        return TransferKernel(self.frame, **{name: v[name] for name in names})

    def noise(self, inputs: Tensor) -> Tensor:
        """Variance of a run, (m, n): ln sd is linear in the distance from the target."""
        cheap = self.frame.cheapness(self.frame.split(inputs)[1])
        log_sd = self.value["noise"].log()[:, None] + self.value["noise_slope"][:, None] * cheap
        return (2 * log_sd).exp() + JITTER

    @cached_property
    def scatter(self) -> Tensor:
        """Variance of the runs about the latent function, (m, n).

        Where a diverged run stands is known to a factor e: any surer and theta would bend to have many of them there.
        """
        return self.noise(self.data.inputs) + self.data.diverged * self.value["linear"][:, None].square()

    @cached_property
    def residual(self) -> Tensor:
        """Compressed excess over the loss law, minus the bowl: (m, n), what the kernel must explain."""
        return compress(self._excess, self.value["linear"][:, None]) - self.bowl(self.data.inputs)

    @cached_property
    def _excess(self) -> Tensor:
        return self.data.losses - self.law(self.data.inputs)

    @cached_property
    def factor(self) -> Tensor:
        """Cholesky factor of the prior covariance of the noisy runs, (m, n, n)."""
        x = self.data.inputs
        covariance = self.kernel.forward(x, x)
        covariance.diagonal(dim1=-2, dim2=-1).add_(self.scatter)
        return torch.linalg.cholesky(covariance)

    @cached_property
    def pulls(self) -> Tensor:
        """K^-1 residual, (m, n): what each run adds to the mean, per covariance with it."""
        return torch.cholesky_solve(self.residual[..., None], self.factor)[..., 0]

    def log_posterior(self) -> Tensor:
        """ln p(losses | theta) + ln p(theta) up to a constant, (m,).

        Raises:
            Singular: theta is so extreme that the covariance is singular in float64.
        """
        x = self.data.inputs
        fit = _LogDensity.apply(self.kernel.forward(x, x), self.scatter, self.residual)
        slope = log_slope(self._excess, self.value["linear"][:, None])
        above = self._excess.amin(-1).relu() / ABOVE
        return fit + slope - 0.5 * self.theta.square().sum(-1) - 0.5 * above.square()

    def cross(self, inputs: Tensor) -> Tensor:
        """Prior covariance of the runs with the latent function at inputs, (m, n, c)."""
        return self.kernel.forward(self.data.inputs, inputs)

    def mean(self, inputs: Tensor, cross: Tensor) -> Tensor:
        """Posterior mean of the law plus the compressed excess above it, (m, c)."""
        return self.law(inputs) + self.bowl(inputs) + (self.pulls[..., None, :] @ cross)[..., 0, :]

    def explain(self, cross: Tensor) -> Tensor:
        """L^-1 k(runs, inputs): (m, n, c), from which every posterior covariance is a product."""
        return torch.linalg.solve_triangular(self.factor, cross, upper=False)

    def variance(self, inputs: Tensor, explained: Tensor) -> Tensor:
        """Posterior variance, (m, c)."""
        return (self.kernel.forward(inputs, inputs, diag=True) - explained.square().sum(-2)).clamp(min=1e-12)

    def covariance(self, x1: Tensor, explained1: Tensor, x2: Tensor, explained2: Tensor) -> Tensor:
        """Posterior covariance, (m, c1, c2)."""
        return self.kernel.forward(x1, x2) - explained1.mT @ explained2


class _LogDensity(torch.autograd.Function):
    """ln N(r; 0, S) + n/2 ln 2 pi, S = K + diag(noise), for K (m, n, n) and noise, r (m, n).

    Gradients: G = (a a' - S^-1) / 2 for K, its diagonal for noise, -a for r; a = S^-1 r (Rasmussen and Williams 2006,
    eq. 5.9): half the time of differentiating through the Cholesky factor.
    """

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, noise: Tensor, residual: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(covariance + torch.diag_embed(noise))
        solved = torch.cholesky_solve(residual[..., None], factor)[..., 0]
        ctx.save_for_backward(factor, solved)
        return -0.5 * (residual * solved).sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factor, solved = ctx.saved_tensors
        scale = outputs[0][..., None]
        slope = torch.cholesky_inverse(factor).neg_()
        slope.add_(solved[..., :, None] * solved[..., None, :]).mul_(0.5 * scale[..., None])
        return slope, slope.diagonal(dim1=-2, dim2=-1), -scale * solved
