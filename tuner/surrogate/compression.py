"""Compression of losses far above the best at their scale.

    T(e) = e                      e <= s          near the optimum: the loss itself
           s (1 + ln(e / s))      e >  s          far from it: only the order of magnitude
           s (1 + ln 100)         e >= 100 s      and every diverged run: as bad as it gets

T is continuous with a continuous slope at s. The width s of the linear zone is learned with the rest of theta, which
needs the Jacobian of the warp in the likelihood (Snelson, Rasmussen and Ghahramani 2004, warped Gaussian processes).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CAP = 100.0
FAR = 1e9  # the excess of a diverged run, in units: beyond any cap, and finite so that gradients are


def compress(excess: Tensor, linear: Tensor) -> Tensor:
    """T(e): excess (..., n) above the loss law, linear (..., 1) -> (..., n)."""
    ratio = (excess / linear).clamp(max=CAP)
    return linear * torch.where(ratio > 1, 1 + ratio.clamp(min=1).log(), ratio)


def log_slope(excess: Tensor, linear: Tensor) -> Tensor:
    """ln T'(e), summed over the runs: (..., n), (..., 1) -> (...).

    Beyond the cap the logarithm's slope s / e goes on: its factor s is what makes a diverged run, whose place on the
    cap is proportional to s, say nothing about s.
    """
    return -(excess / linear).clamp(min=1).log().sum(-1)


def expand(compressed: Tensor, linear: Tensor) -> Tensor:
    """The inverse of T below its cap."""
    ratio = (compressed / linear).clamp(max=1 + math.log(CAP))
    return linear * torch.where(ratio > 1, (ratio.clamp(min=1) - 1).exp(), ratio)
