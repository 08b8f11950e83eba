"""From runs to a weighted set of processes: maximum a posteriori, then draws around it.

1. `climb`: L-BFGS on theta from several starts (see `starts`; or what was believed with fewer runs), in coordinates
   whitened by the start's covariance, then Laplace: theta ~ N(mode, H^-1), H from finite differences of the gradient.
2. `spread`, sampling importance resampling (Rubin 1987): many draws, those that fell off the posterior pulled back
   towards the mode, are weighed by posterior / Laplace density, tempered until they are worth as many equal ones as
   members are wanted (where that takes much, the set is Laplace's own), and resampled systematically.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from tuner.surrogate.frame import DTYPE, Data, Frame
from tuner.surrogate.prior import Prior
from tuner.surrogate.process import Processes, Singular
from tuner.surrogate.regression import regression
from tuner.surrogate.tangent import Tangents

logger = logging.getLogger(__name__)

MEMBERS = 24
DRAWS = 128
PART = 16  # processes evaluated at once: more no longer fit the cache
CLIMB = {"maxiter": 120, "ftol": 1e-5, "maxcor": 30}
LOW = -1e6  # log posterior of a draw whose covariance breaks down
STEP = 1e-4  # finite difference of the gradient, in prior standard deviations
TOLERATED = 150.0  # log units that a draw may lie below what Laplace's density says; some 30 runs leave at most 100
HALVINGS = 6  # of its distance from the mode
FLOOR = 0.5  # of the eigenvalues of H: a posterior wider than 1.4 priors is an artefact of the quadratic step


@dataclass(frozen=True, eq=False)
class Gaussian:
    """theta ~ N(mode, root root'): mode (p,), root (p, p)."""

    mode: Tensor
    root: Tensor

    def at(self, normals: Tensor) -> Tensor:
        """(..., p) -> (..., p)."""
        return self.mode + normals @ self.root.mT


@dataclass(frozen=True, eq=False)
class Fit:
    """A weighted set of processes, and the Gaussian they were drawn from.

    Args:
        processes: m draws of theta.
        weights: (m,), sum to one.
        around: the Gaussian of theta at its maximum a posteriori.
    """

    processes: Processes
    weights: Tensor
    around: Gaussian

    @cached_property
    def middle(self) -> Processes:
        """The process at the mode."""
        return replace(self.processes, theta=self.around.mode[None])

    @cached_property
    def tangents(self) -> Tangents:
        """How the mean moves along the columns of the root."""
        return Tangents(self.middle, self.around.root)


def climb(frame: Frame, data: Data, starts: Sequence[Gaussian]) -> Gaussian | None:
    """The Gaussian at the maximum a posteriori, the best over the starts; None where none can be optimised."""
    prior = Prior.of(frame, data.spread)
    found = [end for start in starts if (end := _climb(frame, data, prior, start)) is not None]
    if not found:
        return None
    mode, _ = max(found, key=lambda end: end[1])
    try:
        around = Gaussian(mode, _laplace(frame, data, prior, mode))
    except Singular:  # a neighbour of the mode breaks down: stay close to it
        return Gaussian(mode, 0.1 * torch.eye(prior.size, dtype=DTYPE))
    last = _climb(frame, data, prior, around)  # a few steps: its own curvature shows what the first climb left
    return replace(around, mode=mode if last is None else last[0])


def starts(frame: Frame, data: Data) -> list[Gaussian]:
    """The prior's centre, the belief that the bowl is all there is, and law and bowl by least squares.

    The posterior has a mode where the kernel explains everything and one where it is hardly needed; the climb from the
    prior's centre often ends in the first when the second is higher. With many runs it may also end where the law lies
    far below them all, so that their noise is compressed away: what a plain regression says is then a better start.
    """
    prior = Prior.of(frame, data.spread)
    best = frame.summed(frame.split(data.inputs)[0][data.losses.argmin()])
    little = torch.tensor(0.02, dtype=DTYPE)
    plain = prior.near(shared=little, fading=little, bottom=0.5 + 0.8 * (best - 0.5), noise=5 * little)
    modes = [prior.near(), plain]
    if (told := regression(frame, data)) is not None:
        modes.append(prior.near(shared=5 * little, fading=5 * little, **told))
    return [replace(_whole(prior), mode=mode) for mode in modes]


def spread(
    frame: Frame, data: Data, around: Gaussian | None, generator: torch.Generator, members: int = MEMBERS
) -> Fit:
    """The weighted set around a mode; draws of the prior, weighed by the data, where there is none."""
    prior = Prior.of(frame, data.spread)
    if around is None:
        logger.warning("no start could be fitted to %d runs; draws of the prior are weighed instead", len(data.losses))
        around = _whole(prior)
    return _resample(frame, data, prior, around, generator, members)


def _whole(prior: Prior) -> Gaussian:
    """The prior itself."""
    return Gaussian(torch.zeros(prior.size, dtype=DTYPE), torch.eye(prior.size, dtype=DTYPE))


def _log_posterior(frame: Frame, data: Data, prior: Prior, theta: Tensor) -> Tensor:
    return Processes(frame, data, prior, theta).log_posterior()


def _gradient(frame: Frame, data: Data, prior: Prior, theta: Tensor) -> tuple[Tensor, Tensor]:
    """log posterior (m,) and its gradient (m, p)."""
    theta = theta.detach().requires_grad_()
    value = _log_posterior(frame, data, prior, theta)
    (slope,) = torch.autograd.grad(value.sum(), theta)
    return value.detach(), slope


def _climb(frame: Frame, data: Data, prior: Prior, start: Gaussian) -> tuple[Tensor, float] | None:
    """Maximum a posteriori from one start, and its log posterior; None where the covariance breaks down."""

    def negative(normals: np.ndarray) -> tuple[float, np.ndarray]:
        try:
            value, slope = _gradient(frame, data, prior, start.at(torch.from_numpy(normals))[None])
        except Singular:
            return np.inf, np.zeros_like(normals)
        return -float(value), -(slope[0] @ start.root).numpy()

    found = minimize(negative, np.zeros(prior.size), jac=True, method="L-BFGS-B", options=CLIMB)
    return (start.at(torch.from_numpy(found.x)), -float(found.fun)) if np.isfinite(found.fun) else None


def _laplace(frame: Frame, data: Data, prior: Prior, mode: Tensor) -> Tensor:
    """A square root of H^-1 at the mode, (p, p)."""
    moved = mode + STEP * torch.eye(prior.size, dtype=DTYPE)
    parts = torch.cat([mode[None], moved]).split(PART)
    slopes = torch.cat([_gradient(frame, data, prior, part)[1] for part in parts])
    hessian = -(slopes[1:] - slopes[0]) / STEP
    values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.mT))
    return vectors * values.clamp(min=FLOOR).rsqrt()


def _resample(
    frame: Frame, data: Data, prior: Prior, around: Gaussian, generator: torch.Generator, members: int
) -> Fit:
    """`members` draws of theta with weights."""
    normals = torch.randn(DRAWS, prior.size, generator=generator, dtype=DTYPE)
    normals[0] = 0.0
    with torch.no_grad():
        normals, log_posterior = _pulled_back(frame, data, prior, around, normals)
        weights = _tempered(log_posterior + 0.5 * normals.square().sum(-1), members)
    points = (torch.arange(members) + torch.rand((), generator=generator)) / members
    chosen, counts = torch.searchsorted(weights.cumsum(0), points).clamp(max=DRAWS - 1).unique(return_counts=True)
    return Fit(Processes(frame, data, prior, around.at(normals[chosen])), counts.to(DTYPE) / members, around)


def _pulled_back(frame: Frame, data: Data, prior: Prior, around: Gaussian, normals: Tensor) -> tuple[Tensor, Tensor]:
    """The draws, the first of them the mode, and their log posterior (m,).

    Along a bent ridge Laplace's density reaches far off the posterior, where a draw is hundreds of log units below the
    mode: no tempering can mend a set of such draws. Their distance from the mode is halved until they are back.
    """

    def evaluated(some: Tensor) -> Tensor:
        return torch.cat([_each(frame, data, prior, part) for part in around.at(some).split(PART)])

    normals, log_posterior = normals.clone(), evaluated(normals)
    for _ in range(HALVINGS):
        fall = log_posterior[0] - log_posterior
        far = fall > 0.5 * normals.square().sum(-1) + TOLERATED
        if not far.any():
            break
        normals[far] *= 0.5
        log_posterior[far] = evaluated(normals[far])
    return normals, log_posterior


def _each(frame: Frame, data: Data, prior: Prior, theta: Tensor) -> Tensor:
    """Log posterior of every draw, (m,); very low for one whose covariance breaks down."""
    try:
        return _log_posterior(frame, data, prior, theta).nan_to_num(nan=LOW, neginf=LOW)
    except Singular:
        if len(theta) == 1:
            return torch.full((1,), LOW, dtype=DTYPE)
        return torch.cat([_each(frame, data, prior, one[None]) for one in theta])


def _tempered(log_weights: Tensor, wanted: int) -> Tensor:
    """Importance weights to the largest power <= 1 that leaves an effective sample size of `wanted`, by bisection."""

    def powered(power: float) -> tuple[Tensor, bool]:
        weights = torch.softmax(power * log_weights, 0)
        return weights, bool(1 / weights.square().sum() >= wanted)

    low, high = 0.0, 1.0
    if powered(high)[1]:
        return powered(high)[0]
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if powered(middle)[1] else (low, middle)
    return powered(low)[0]
