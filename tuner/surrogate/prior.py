"""theta: everything the surrogate does not know, as one whitened vector.

Each block of theta is an array of numbers a = loc + scale * theta, or exp of that where it must be positive. A priori
theta ~ N(0, I), so its log prior is -|theta|^2 / 2, a start is a draw of normals, and a Laplace step is well scaled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tuner.surrogate.frame import DTYPE, Frame
from tuner.surrogate.scaling import BASES


@dataclass(frozen=True)
class Block:
    """Some of theta: its values' shape, where they are centred, how wide, and whether on a log line."""

    loc: Tensor
    scale: Tensor
    positive: bool = False


def _normal(mean: float, sd: float, *shape: int) -> Block:
    return Block(torch.full(shape, mean, dtype=DTYPE), torch.full(shape, sd, dtype=DTYPE))


def _lognormal(median: float, sd: float, *shape: int) -> Block:
    """sd is that of the logarithm."""
    return Block(torch.full(shape, math.log(median), dtype=DTYPE), torch.full(shape, sd, dtype=DTYPE), positive=True)


def _drift(frame: Frame) -> Block:
    """Theory's mean is on the log n course; its deviation at the reach is shared by the three, in variance.

    A drift seen below may so go on, come to rest or turn. Where the model has a limit, coming to rest is the rule.
    """
    loc = torch.stack([frame.drift_mean, *[torch.zeros_like(frame.drift_mean)] * (BASES - 1)], -1)
    settling = (1 - frame.endless) / (BASES - 1)
    return Block(loc, frame.drift_sd[..., None] * torch.stack([frame.endless, settling, settling], -1).sqrt())


@dataclass(frozen=True)
class Prior:
    """The blocks of theta by name, in order."""

    blocks: Mapping[str, Block]

    @staticmethod
    def of(frame: Frame, spread: float) -> Prior:
        """Priors for losses that span `spread` units over all scales. d hyperparameters, a axes."""
        d, a = frame.dimensions, frame.axes
        return Prior(
            {
                "drift": _drift(frame),  # (d, a, 3) cube lengths per nat
                "level": _normal(0.0, 1.0 + spread),  # E at the target
                "rise": _normal(0.0, 1.0 + spread, a),  # s at the reach: about E there, above the target's
                "bend": _lognormal(1.5, 0.7),  # of the loss law
                "alpha": _lognormal(0.5, 0.5, a),  # exponent of the loss law
                "ratio": _lognormal(0.6, 0.25),  # beta/alpha: how fast g dies out
                "curvature": _lognormal(20.0, 1.0, d),  # of the bowl, units per cube length squared
                "bottom": _normal(0.5, 0.3, d),  # of the bowl, cube lengths
                "linear": _lognormal(0.5, 0.8),  # width s of the linear zone of T
                "length": _lognormal(0.25, 0.6, d),  # of the kernel, cube lengths
                "shared": _lognormal(0.3, 0.6),  # amplitude of f
                "fading": _lognormal(0.6, 0.5),  # amplitude of g at the reach
                "offset": _lognormal(0.2, 0.8),  # what the loss law misses, at the reach
                "noise": _lognormal(0.2, 0.7),  # standard deviation of a run at the target
                "noise_slope": _normal(0.0, 0.5),  # ln(noise at the reach / noise at the target)
            }
        )

    @cached_property
    def size(self) -> int:
        return len(self._flat[0])

    @cached_property
    def _flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """loc, scale and the mask of the positive ones, (p,) each."""
        blocks = self.blocks.values()
        positive = [torch.full((block.loc.numel(),), block.positive) for block in blocks]
        return (
            torch.cat([b.loc.flatten() for b in blocks]),
            torch.cat([b.scale.flatten() for b in blocks]),
            torch.cat(positive),
        )

    def near(self, **values: Tensor) -> Tensor:
        """theta (p,) of the prior's centre, with some blocks at values of their own."""
        whitened = []
        for name, block in self.blocks.items():
            line = values.get(name)
            if line is not None and block.positive:
                line = line.log()
            whitened.append(torch.zeros_like(block.loc) if line is None else (line - block.loc) / block.scale)
        return torch.cat([w.flatten() for w in whitened])

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """theta (..., p) -> values by name, (..., *shape)."""
        loc, scale, positive = self._flat
        line = loc + scale * theta
        values = torch.where(positive, torch.where(positive, line, 0.0).exp(), line)
        pieces = values.split([block.loc.numel() for block in self.blocks.values()], -1)
        return {
            name: piece.reshape(theta.shape[:-1] + block.loc.shape)
            for (name, block), piece in zip(self.blocks.items(), pieces, strict=True)
        }
