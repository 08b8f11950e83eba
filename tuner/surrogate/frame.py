"""Frame: the geometry of a study, and its observations as tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot

DTYPE = torch.float64
DECADE = 10.0  # median loss over the smallest, beyond which losses are told apart by their logarithm
WORSE = 3.0  # units above the worst loss that was told: where a diverged run is put


@dataclass(frozen=True, eq=False)
class Frame:
    """What the surrogate knows before any run; equal and hashed by value.

    Args:
        choices: (d,) how many choices a categorical coordinate has; 0 where it is numeric.
        reach: (a,) ln(cheapest proxy / target) along each axis that varies, nonzero.
        drift_mean: (d, a) prior mean of the optimum's movement, in cube lengths per nat of the axis.
        drift_sd: (d, a) its standard deviation.
        endless: (a,) the share of its variance that a drift without an end has: small where the model has a limit.
        sums: (j, i, ratio): coordinate j enters as x_j + ratio (x_i - 1/2), the logarithm of a product.
    """

    choices: Tensor
    reach: Tensor
    drift_mean: Tensor
    drift_sd: Tensor
    endless: Tensor
    sums: tuple[tuple[int, int, float], ...] = ()

    @cached_property
    def _key(self) -> str:
        tensors = (self.choices, self.reach, self.drift_mean, self.drift_sd, self.endless)
        return repr([*(t.tolist() for t in tensors), self.sums])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @cached_property
    def numeric(self) -> Tensor:
        """(d,) bool."""
        return self.choices == 0

    @property
    def dimensions(self) -> int:
        return self.choices.shape[0]

    @property
    def axes(self) -> int:
        return self.reach.shape[0]

    def split(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """X -> x, l."""
        return inputs[..., : self.dimensions], inputs[..., self.dimensions :]

    def summed(self, x: Tensor) -> Tensor:
        """x (..., d) as mean and kernel see it."""
        return self._added(x, 1.0)

    def parted(self, x: Tensor) -> Tensor:
        """The inverse of `summed`."""
        return self._added(x, -1.0)

    def _added(self, x: Tensor, sign: float) -> Tensor:
        if not self.sums:
            return x
        columns = list(x.unbind(-1))
        for j, i, ratio in self.sums:
            columns[j] = x[..., j] + sign * ratio * (x[..., i] - 0.5)
        return torch.stack(columns, -1)

    def corners(self, inputs: Tensor) -> dict[int, Tensor]:
        """The choice of each categorical coordinate, one-hot: (..., n, choices)."""
        return {
            j: one_hot((inputs[..., j] * k).long().clamp(0, k - 1), k).to(inputs)
            for j, k in enumerate(self.choices.tolist())
            if k
        }

    def cheapness(self, logs: Tensor) -> Tensor:
        """How far a scale is from the target: 0 there, 1 where every axis is at its reach. (..., n, a) -> (..., n)."""
        return (logs / self.reach).sum(-1) / max(self.axes, 1)


@dataclass(frozen=True)
class Data:
    """Finished runs, in units of the losses' own spread.

    Where positive losses span decades (a squared error that goes to zero), y = ln loss: what matters among the good is
    then a share of the best, which is nothing beside the spread of all. Otherwise y = loss.

    Args:
        inputs: (n, d + a) X.
        losses: (n,) (y - centre) / unit; of a diverged run, a little worse than the worst that was told.
        diverged: (n,) which they are.
        centre: y of the smallest loss seen.
        unit: the spread of y at one scale.
        spread: the spread of y over all scales, in units.
        log: whether y = ln loss.
    """

    inputs: Tensor
    losses: Tensor
    diverged: Tensor
    centre: float
    unit: float
    spread: float
    log: bool = False

    @staticmethod
    def of(frame: Frame, inputs: Tensor, losses: Tensor, settled: int | None = None) -> Data:
        """Standardise raw losses (n,), robustly: a single absurd loss moves neither centre nor unit.

        Units are those of the first `settled` runs, if one of them has a finite loss: what was learned in them holds.
        """
        finite = torch.isfinite(losses)
        if not finite.any():
            return Data(inputs, torch.full_like(losses, WORSE), ~finite, 0.0, 1.0, 1.0)
        first = finite & (torch.arange(len(losses)) < (len(losses) if settled is None else settled))
        first = first if first.any() else finite
        log = bool(losses[finite].min() > 0 and losses[first].median() > DECADE * losses[first].min())
        if log:
            losses = losses.log()
        y, middle = losses[first], losses[first].median()
        tame = y.clamp(max=float(middle + 3 * (middle - y.min())))
        level = _level(frame.split(inputs)[1] / frame.reach, first, tame)
        residual = tame - level[first]
        scale = float(tame.max() - tame.min()) or 0.1 * max(float(middle.abs()), 1e-6)  # one run shows no spread
        unit = max(float(residual.abs().median()), (0.1 if len(y) < 4 else 1e-3) * scale)
        worst = float((losses - level)[finite].max())
        y_of = torch.where(finite, losses, level + worst + WORSE * unit)
        return Data(inputs, (y_of - y.min()) / unit, ~finite, float(y.min()), unit, scale / unit, log)

    @property
    def height(self) -> float:
        """How far the smallest loss is above a loss of zero, in units; infinite where losses are not above zero."""
        return self.centre / self.unit if self.centre > 0 and not self.log else math.inf

    def in_loss_units(self, values: Tensor) -> Tensor:
        """Losses in units (...) -> losses (...)."""
        y = self.centre + self.unit * values
        return y.exp() if self.log else y

    def deviation(self, loss: float, sd: float) -> float:
        """The standard deviation `sd` in units, of a run whose loss is about `loss`, in loss units."""
        return self.unit * sd * (loss if self.log else 1.0)


def _level(reaches: Tensor, told: Tensor, y: Tensor) -> Tensor:
    """Mean loss at each scale (n,), from the runs `told`: linear in l, with a ridge of one pseudo-run an axis."""
    every = torch.cat([torch.ones_like(reaches[:, :1]), reaches], 1)
    design = every[told]
    ridge = torch.eye(design.shape[1], dtype=DTYPE) * torch.tensor([1e-9] + [1.0] * reaches.shape[1], dtype=DTYPE)
    return every @ torch.linalg.solve(design.mT @ design + ridge, design.mT @ y)
