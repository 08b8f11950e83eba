"""What a run reveals about itself: objects that watch any PyTorch training loop, each off unless it is made.

| name           | watches                                                                  | called                 |
|----------------|--------------------------------------------------------------------------|------------------------|
| Trajectory     | which directions of the averaged weights' path lower the loss            | after each step        |
| Updates        | how much each tensor moves, relative to its size                         | after each step        |
| NoiseScale     | the gradient's noise against the gradient: useful batch sizes            | after each micro-batch |
| Sharpness      | the largest curvature of the loss, plain or as Adam sees it              | after each step        |
| Renewal        | how often the average of updates was renewed: lr or lr x weight_decay?   | after each step        |

`sharpness` finds several curvatures at once; `kappa_hat` reads from decompositions at two widths which part of the loss
is the same at both; `critical_batch` fits steps against batch size; `regime` says whether lr or lr x weight_decay
matters yet; `distance` tells curves apart. What two widths say of transfer, `consistent` and `shared` make `Evidence`
of, for `Study.add_evidence`.
"""

from tuner.dynamics.components import Kappa, kappa_hat, shared
from tuner.dynamics.noise import CriticalBatch, NoiseScale, critical_batch
from tuner.dynamics.regime import Renewal, distance, periods, regime
from tuner.dynamics.sharpness import (
    Sharpness,
    adam_edge,
    adam_preconditioner,
    consistent,
    sharpness,
    super_consistency,
)
from tuner.dynamics.trajectory import Decomposition, Trajectory
from tuner.dynamics.updates import Updates

__all__ = [
    "CriticalBatch",
    "Decomposition",
    "Kappa",
    "NoiseScale",
    "Renewal",
    "Sharpness",
    "Trajectory",
    "Updates",
    "adam_edge",
    "adam_preconditioner",
    "consistent",
    "critical_batch",
    "distance",
    "kappa_hat",
    "periods",
    "regime",
    "shared",
    "sharpness",
    "super_consistency",
]
