"""The gradient's noise: which batch sizes are useful (McCandlish, Kaplan et al. 2018, arXiv 1812.06162).

With G the gradient and Sigma the covariance of one example's, B_simple = tr Sigma / |G|^2. From gradients of b examples
and their mean over B examples, without bias (appendix A.1)

    |G|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b)        tr Sigma = (|g_b|^2 - |g_B|^2) / (1/b - 1/B)

and their ratio is taken of averages over steps, never averaged. Steps S and examples E = S B to one loss obey
(S / S_min - 1) (E / E_min - 1) = 1, so S = S_min (1 + B_crit / B) with B_crit = E_min / S_min.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn


class NoiseScale:
    """Watches accumulated gradients: `micro` after each micro-batch's backward, `step` before the optimizer's.

    The gradient must accumulate the *mean* over micro-batches: each backward is of loss / count, as usual. Keeps one
    copy of the gradient.

    Args:
        size: examples in a micro-batch. count: micro-batches in a step, at least 2.
        decay: of the averages over steps.

    Raises:
        ValueError: fewer than two micro-batches, or a step that had another number.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], size: int, count: int, decay: float = 0.95) -> None:
        if count < 2 or size < 1 or not 0 <= decay < 1:
            raise ValueError(
                f"noise: at least 2 micro-batches of 1 example and 0 <= decay < 1 are needed, got {count} of {size} "
                f"and {decay}; correct them"
            )
        self._parameters = [p for p in parameters if p.requires_grad]
        self._size, self._count, self._decay = size, count, decay
        self._seen: list[Tensor | None] = [None] * len(self._parameters)
        self._small: list[float] = []
        self._means, self._weight = np.zeros(2), 0.0
        self.series: list[tuple[float, float]] = []

    @torch.no_grad()
    def micro(self) -> None:
        """Take the gradient that the last backward added."""
        total = 0.0
        for i, p in enumerate(self._parameters):
            if p.grad is None:
                continue
            seen = self._seen[i]
            total += float((p.grad if seen is None else p.grad - seen).double().square().sum())
            self._seen[i] = p.grad.clone()
        self._small.append(total * self._count**2)

    @torch.no_grad()
    def step(self) -> None:
        """Close a step: its gradient is whole."""
        if len(self._small) != self._count:
            raise ValueError(
                f"noise: {self._count} micro-batches make a step, got {len(self._small)}; call micro for each"
            )
        small, b, big = float(np.mean(self._small)), self._size, self._size * self._count
        whole = sum(float(g.double().square().sum()) for g in self._seen if g is not None)
        found = np.array([(big * whole - b * small) / (big - b), (small - whole) / (1 / b - 1 / big)])
        self.series.append((float(found[0]), float(found[1])))
        if np.isfinite(found).all():  # a step that overflowed would stay in the averages for good
            self._means = self._decay * self._means + (1 - self._decay) * found
            self._weight = self._decay * self._weight + (1 - self._decay)
        self._seen, self._small = [None] * len(self._parameters), []

    @property
    def gradient(self) -> float:
        """|G|^2, smoothed; not above zero where noise drowns it."""
        return float(self._means[0] / self._weight) if self._weight else math.nan

    @property
    def variance(self) -> float:
        """tr Sigma of one example, smoothed."""
        return float(self._means[1] / self._weight) if self._weight else math.nan

    @property
    def scale(self) -> float:
        """B_simple, examples; infinite where no gradient is left in the noise, not a number before the first step."""
        return math.inf if self.gradient <= 0 else self.variance / self.gradient


@dataclass(frozen=True)
class CriticalBatch:
    """S = steps (1 + batch / B).

    Args:
        steps: S_min, with any batch. batch: B_crit, examples; where the steps fall as 1 / B throughout it is above all
            batches, where they do not fall at all below, and not told: deviation, of ln B_crit, is then infinite.
        misfit: root mean square of ln S.
    """

    steps: float
    batch: float
    deviation: float
    misfit: float

    @property
    def examples(self) -> float:
        """E_min, with any number of steps."""
        return self.steps * self.batch


def critical_batch(batches: Sequence[float], steps: Sequence[float]) -> CriticalBatch:
    """Least squares in ln S of steps to one loss, each with its other hyperparameters tuned.

    Raises:
        ValueError: fewer than three different batches, or numbers that are not above zero.
    """
    b, s = np.asarray(batches, dtype=float), np.asarray(steps, dtype=float)
    if len(b) != len(s) or len(set(b.tolist())) < 3 or not (np.isfinite(b) & np.isfinite(s) & (b > 0) & (s > 0)).all():
        raise ValueError(
            f"critical_batch: steps above zero at three batch sizes or more are needed, got {list(b)} and {list(s)}; "
            "add runs"
        )

    def misses(log: np.ndarray) -> np.ndarray:
        return np.asarray(log[0] + np.log1p(np.exp(log[1]) / b) - np.log(s))

    middle = math.log(float(np.median(b)))
    found = least_squares(misses, [math.log(s.min()), middle])
    spare, rms = len(b) - 2, math.sqrt(float(np.mean(found.fun**2)))
    information = found.jac.T @ found.jac
    known = np.linalg.matrix_rank(information) == 2 and b.min() / 100 < math.exp(found.x[1]) < b.max() * 100
    variance = 2 * found.cost / spare * np.linalg.inv(information)[1, 1] if known else math.inf
    return CriticalBatch(math.exp(found.x[0]), math.exp(found.x[1]), math.sqrt(variance), rms)
