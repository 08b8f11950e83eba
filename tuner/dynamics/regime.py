"""Whether the learning rate or its product with the weight decay matters: AdamW forgets at the rate lr x weight_decay.

Its weights are an average of its updates over the last 1 / (lr x weight_decay) steps (Wang and Aitchison 2024). Until
one such period has passed, runs of equal lr are alike, whatever their decay; from then on runs of equal lr x
weight_decay are (Li et al. 2025, arXiv 2509.25049).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def periods(rates: Sequence[float] | float, weight_decay: float, steps: int | None = None) -> float:
    """How many times the average was renewed: the sum of lr x weight_decay over the steps.

    Args:
        rates: of every step, or one for all of `steps`.

    Raises:
        ValueError: a rate, decay or number of steps that is below zero or none, or a single rate without steps.
    """
    if np.ndim(rates) == 0:
        if steps is None:
            raise ValueError("regime: one rate needs a number of steps, got none; give steps")
        if not steps >= 0:
            raise ValueError(f"regime: steps must not be negative, got {steps}; correct")
        total = float(rates) * steps  # type: ignore[arg-type]
        least = float(rates)  # type: ignore[arg-type]
    else:
        total, least = float(np.sum(rates)), float(np.min(rates)) if np.size(rates) else 0.0
    if not (least >= 0 and weight_decay >= 0):
        raise ValueError(
            f"regime: rates and weight decay must not be negative, got {least} and {weight_decay}; correct"
        )
    return total * weight_decay


def regime(rates: Sequence[float] | float, weight_decay: float, steps: int | None = None) -> str:
    """ "lr" while less than one period has passed, "lr x weight_decay" from then on."""
    return "lr" if periods(rates, weight_decay, steps) < 1 else "lr x weight_decay"


class Renewal:
    """Watches an optimizer with weight decay. Call `step` after each of its steps.

    Attributes:
        rates: lr x weight_decay of every step, of the group where it is largest. Independent weight decay, divided by
            the group's learning rate as AdamW wants it, gives all groups the same.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.rates: list[float] = []

    def step(self) -> None:
        """Take the rates as they are."""
        groups = self._optimizer.param_groups
        self.rates.append(max(float(group["lr"]) * float(group.get("weight_decay", 0.0)) for group in groups))

    @property
    def periods(self) -> float:
        """How many times the average of updates was renewed so far."""
        return periods(self.rates, 1.0)

    @property
    def regime(self) -> str:
        """Which hyperparameter counts so far."""
        return regime(self.rates, 1.0)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean distance of two curves at the same steps, relative to their mean size.

    Raises:
        ValueError: curves of different lengths, or none.
    """
    if len(one) != len(other) or not len(one):
        raise ValueError(f"distance: two curves of one length are needed, got {len(one)} and {len(other)}; cut them")
    a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    return float(np.abs(a - b).mean() / (0.5 * (np.abs(a) + np.abs(b)).mean()))
