"""What a run reveals about itself: objects that watch any PyTorch training loop, each off unless it is made.

| name           | watches                                                                  | called                 |
|----------------|--------------------------------------------------------------------------|------------------------|
| Trajectory     | which directions of the averaged weights' path lower the loss            | after each step        |
| Updates        | how much each tensor moves, relative to its size                         | after each step        |
| NoiseScale     | the gradient's noise against the gradient: useful batch sizes            | after each micro-batch |
| sharpness      | the largest curvatures of the loss                                       | when wanted            |

`kappa_hat` reads from decompositions at two widths which part of the loss is the same at both; `critical_batch` fits
steps against batch size; `regime` says whether lr or lr x weight_decay matters yet; `distance` tells curves apart.
"""

from tuner.dynamics.components import Kappa, kappa_hat
from tuner.dynamics.noise import CriticalBatch, NoiseScale, critical_batch
from tuner.dynamics.regime import distance, periods, regime
from tuner.dynamics.sharpness import adam_edge, adam_preconditioner, sharpness, super_consistency
from tuner.dynamics.trajectory import Decomposition, Trajectory
from tuner.dynamics.updates import Updates

__all__ = [
    "CriticalBatch",
    "Decomposition",
    "Kappa",
    "NoiseScale",
    "Trajectory",
    "Updates",
    "adam_edge",
    "adam_preconditioner",
    "critical_batch",
    "distance",
    "kappa_hat",
    "periods",
    "regime",
    "sharpness",
    "super_consistency",
]
