"""How the posterior mean moves with theta, to first order, along every column of the root of theta's covariance.

    mean(x) = m(x) + k(x, X) a,  a = S^-1 r        dmean = dm + dk a + k da,  da = S^-1 (dr - dS a)

Central differences of what is cheap (means, noise, residuals, and the places and clocks of the kernel), and the product
rule for what is not: one process's matrices instead of two for every column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tuner.surrogate.process import Processes

STEP = 1e-3  # of a standard deviation of theta, to either side


@dataclass(frozen=True, eq=False)
class Tangents:
    """Args: middle: one process. root: (p, p), theta moves along its columns."""

    middle: Processes
    root: Tensor

    @cached_property
    def _sides(self) -> tuple[Processes, Processes]:
        theta, steps = self.middle.theta, STEP * self.root.mT
        return replace(self.middle, theta=theta + steps), replace(self.middle, theta=theta - steps)

    def _slope(self, of: Callable[[Processes], Tensor]) -> Tensor:
        """Of something cheap, (p, ...)."""
        ahead, behind = self._sides
        return (of(ahead) - of(behind)) / (2 * STEP)

    def _kernel_slope(self, inputs: Tensor) -> Tensor:
        """dk(inputs, X) a, (p, c)."""
        runs, (ahead, behind) = self.middle.data.inputs, self._sides
        moved = self.middle.kernel.slope(ahead.kernel, behind.kernel, inputs, runs, self.middle.pulls[0])
        return moved / (2 * STEP)

    @cached_property
    def _pulls(self) -> Tensor:
        """da, (p, n)."""
        runs = self.middle.data.inputs
        noise = self._slope(lambda p: p.scatter) * self.middle.pulls
        moved = self._slope(lambda p: p.residual) - noise - self._kernel_slope(runs)
        return torch.cholesky_solve(moved.mT, self.middle.factor[0]).mT

    def at(self, inputs: Tensor, cross: Tensor) -> Tensor:
        """At inputs (c, d + a), whose covariance with the runs at the mode is cross (n, c): (p, c)."""
        law = self._slope(lambda p: p.law(inputs) + p.bowl(inputs))
        return law + self._kernel_slope(inputs) + self._pulls @ cross
