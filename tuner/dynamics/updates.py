"""How much every tensor moves in a step, relative to its size: layers that hardly move, or that are thrown about.

Under AdamW in equilibrium a tensor's is (2 lr x weight_decay)^1/2, whatever its layer (Kosson et al. 2024), times
((1 - beta1) / (1 + beta1))^1/2 for the momentum.
"""

from __future__ import annotations

import torch
from torch import nn


class Updates:
    """Watches a model. Call `step` after each step of the optimizer; every so often it compares and keeps a copy.

    Attributes:
        steps: at which it looked. sizes: name -> |w_{t+1} - w_t| / |w_t| at each, root mean squares.
    """

    def __init__(self, model: nn.Module, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"updates: at least one step between looks is needed, got {every}; raise it")
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._every, self._count = every, 0
        self._before: dict[str, torch.Tensor] = {}
        self.steps: list[int] = []
        self.sizes: dict[str, list[float]] = {name: [] for name in self._live}
        self._keep()

    @torch.no_grad()
    def step(self) -> None:
        """Take the weights as they are after a step."""
        self._count += 1
        if self._before:
            self.steps.append(self._count)
            for name, p in self._live.items():
                before = self._before[name]
                size = float(before.norm())
                self.sizes[name].append(float((p - before).norm()) / size if size > 0 else float("nan"))
            self._before = {}
        self._keep()

    @torch.no_grad()
    def _keep(self) -> None:
        """A copy, if the next step is one to look at."""
        if (self._count + 1) % self._every == 0:
            self._before = {name: p.detach().clone() for name, p in self._live.items()}
