"""The posterior of the surrogate on a set of points: joint draws of the set, and its moments.

`Points` is the set itself, a mixture; the location of the optimum is sampled from it: a member, then a joint draw of
its process on all points.

`Moments` are mean and covariance with theta integrated out to first order around its mode,

    cov[phi(X), phi(X')] = cov_mode(X, X') + t(X) . t(X')          t_i = change of the mean, one sd of theta along i

so that what is not known of drift and laws is in every covariance without the sampling noise of a finite set: a dozen
draws correlate by chance, and a run would seem to teach what it cannot.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from tuner.surrogate.compression import expand
from tuner.surrogate.fit import Fit
from tuner.surrogate.frame import DTYPE


@dataclass(frozen=True)
class Points:
    """Posterior of a fitted set on inputs (c, d + a), in units of its data."""

    fit: Fit
    inputs: Tensor

    @cached_property
    def cross(self) -> Tensor:
        return self.fit.processes.cross(self.inputs)

    @cached_property
    def means(self) -> Tensor:
        """Mean of each member, (m, c)."""
        return self.fit.processes.mean(self.inputs, self.cross)

    @cached_property
    def mean(self) -> Tensor:
        """Mean of the mixture, (c,)."""
        return self.fit.weights @ self.means

    @property
    def noise(self) -> Tensor:
        """Variance of one run, (m, c)."""
        return self.fit.processes.noise(self.inputs)

    def draws(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Joint draws of the latent function (count, c) in units, and the member of each (count,)."""
        p = self.fit.processes
        explained = p.explain(self.cross)
        covariance = p.covariance(self.inputs, explained, self.inputs, explained)
        with warnings.catch_warnings():  # points that coincide: a little more jitter is no news
            warnings.simplefilter("ignore", NumericalWarning)
            factor = psd_safe_cholesky(covariance + 1e-8 * torch.eye(len(self.inputs), dtype=DTYPE))
        member = torch.multinomial(self.fit.weights, count, replacement=True, generator=generator)
        normals = torch.randn(count, len(self.inputs), generator=generator, dtype=DTYPE)
        drawn = torch.empty_like(normals)
        for m in member.unique():
            drawn[member == m] = self.means[m] + normals[member == m] @ factor[m].mT
        return drawn, member

    def losses(self, drawn: Tensor, member: Tensor) -> Tensor:
        """Draws in units (count, c) -> losses in loss units, the compression undone."""
        p = self.fit.processes
        law = p.law(self.inputs)[member]
        return p.data.in_loss_units(law + expand(drawn - law, p.value["linear"][member][:, None]))


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of the latent function on inputs (c, d + a), in units of the data."""

    fit: Fit
    inputs: Tensor

    @cached_property
    def cross(self) -> Tensor:
        return self.fit.middle.cross(self.inputs)

    @cached_property
    def explained(self) -> Tensor:
        return self.fit.middle.explain(self.cross)

    @cached_property
    def mean(self) -> Tensor:
        """(c,)."""
        return self.fit.middle.mean(self.inputs, self.cross)[0]

    @cached_property
    def tangent(self) -> Tensor:
        """t: (p, c), change of the mean along each column of the root of theta's covariance."""
        return self.fit.tangents.at(self.inputs, self.cross[0])

    @cached_property
    def variance(self) -> Tensor:
        """Noise excluded, (c,)."""
        return self.fit.middle.variance(self.inputs, self.explained)[0] + self.tangent.square().sum(0)

    @cached_property
    def noise(self) -> Tensor:
        """Variance of one run, (c,)."""
        return self.fit.middle.noise(self.inputs)[0]

    def covariance(self, other: Moments) -> Tensor:
        """(c, c')."""
        within = self.fit.middle.covariance(self.inputs, self.explained, other.inputs, other.explained)
        return within[0] + self.tangent.mT @ other.tangent
