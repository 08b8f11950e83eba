"""Compression of losses far above the best at their scale.

    T(e) = e                      e <= s          near the optimum: the loss itself
           s (1 + ln(e / s))      e >  s          far from it: only the order of magnitude

T is continuous with a continuous slope at s. The width s of the linear zone is learned with the rest of theta, which
needs the Jacobian of the warp in the likelihood (Snelson, Rasmussen and Ghahramani 2004, warped Gaussian processes).
So no loss that was told may be cut off: T would have no slope there, runs would coincide whatever they lost, and a law
a hundred times s below all of them, where they all coincide, would have a density without bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CAP = 100.0  # s: draws so far above the law are cut off where they are told as losses


def compress(excess: Tensor, linear: Tensor) -> Tensor:
    """T(e): excess (..., n) above the loss law, linear (..., 1) -> (..., n)."""
    ratio = excess / linear
    return linear * torch.where(ratio > 1, 1 + ratio.clamp(min=1).log(), ratio)


def log_slope(excess: Tensor, linear: Tensor) -> Tensor:
    """ln T'(e), summed over the runs: (..., n), (..., 1) -> (...)."""
    return -(excess / linear).clamp(min=1).log().sum(-1)


def expand(compressed: Tensor, linear: Tensor) -> Tensor:
    """The inverse of T, up to CAP."""
    ratio = (compressed / linear).clamp(max=1 + math.log(CAP))
    return linear * torch.where(ratio > 1, (ratio.clamp(min=1) - 1).exp(), ratio)
