"""The two functions of scale that warp the landscape: drift of the optimum, and distance along the power law.

Both vanish at the target, so what is learned of the landscape there is the answer itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASES = 3  # log n, n^-1/2, n^-1


def drift_bases(logs: Tensor, reach: Tensor) -> Tensor:
    """The three courses a drift may take, (..., n, a) -> (..., n, a, 3).

    log n never ends; n^-1/2 (Hayou 2025, deep linear nets) and n^-1 (random features) have a limit. Each is scaled to
    the displacement of the first between reach and target, so that one prior serves all.
    """
    return torch.stack([logs, _towards(logs, reach, 0.5), _towards(logs, reach, 1.0)], -1)


def _towards(logs: Tensor, reach: Tensor, power: float) -> Tensor:
    return reach * torch.expm1(-power * logs) / torch.expm1(-power * reach)


def law_distance(logs: Tensor, reach: Tensor, alpha: Tensor) -> Tensor:
    """h = ((n/N)^-alpha - 1) / |the same at the reach|: (..., n, a), (a,), (..., a) -> (..., n, a)."""
    alpha = alpha[..., None, :]
    return torch.expm1(-alpha * logs) / torch.expm1(-alpha * reach).abs()
