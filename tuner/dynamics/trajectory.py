"""The trajectory decomposition: along which directions the path of the averaged weights lowers the loss.

With w_t an exponential moving average of the weights, looked at every few steps, the loss changes by about

    phi = sum_t <grad L(w_t), w_{t+1} - w_t>

A weight matrix (outputs, inputs) contributes the trace of S = (G' dW + dW' G) / 2, and its eigenvalues, ordered by
size, say how many directions of its inputs that takes. phi^k counts the first k of every matrix, and vectors whole
(Ghosh, Wu and Bietti 2025, arXiv 2512.22768, section 4). Averages, not the weights themselves: these oscillate at the
edge of stability, where a linearisation says nothing.

A tensor with three axes is a stack of matrices, one with more a kernel (outputs, everything else).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Decomposition:
    """Change of the loss along a path of T looks.

    Args:
        steps: (T,) the step of each look. loss: (T + 1,) at the averaged weights, the start first.
        linear: (T,) <G, dw> over all tensors. vectors: (T,) the part of those that are no matrices.
        components: (T, n) the part of the i-th eigenvalue by size, over all matrices.
    """

    steps: Array
    loss: Array
    linear: Array
    vectors: Array
    components: Array

    def top(self, k: int) -> Array:
        """phi^k so far, after each look: (T,)."""
        found: Array = np.cumsum(self.vectors + self.components[:, :k].sum(1))
        return found

    def residual(self, k: int) -> Array:
        """phi - phi^k so far, (T,)."""
        found: Array = np.cumsum(self.components[:, k:].sum(1))
        return found

    @property
    def totals(self) -> Array:
        """phi^k of the whole path for k = 0 .. n: (n + 1,)."""
        found: Array = self.vectors.sum() + np.concatenate([[0.0], self.components.sum(0).cumsum()])
        return found


class Trajectory:
    """Watches a model in training. Call `step` after each step of the optimizer, `result` at the end.

    A look costs a gradient at the averaged weights and an eigenvalue problem a matrix; in between, an average a step.
    Nothing of the model is changed. What is not finite is told as not a number.

    Args:
        loss: of a model, on a fixed held-out batch, as a scalar tensor; without dropout or the like.
        decay: of the average, or its first and its last. every: steps between looks, or the first and the last.
        over: steps in which the average's window, 1 / (1 - decay), and the steps between looks grow from first to last.
            The paper's: decay (0.98, 0.9995), every (2, 10), over 2000.

    Raises:
        ValueError: a decay outside [0, 1), or fewer than one step between looks.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module], Tensor],
        decay: float | tuple[float, float] = 0.99,
        every: int | tuple[int, int] = 10,
        over: int = 2000,
    ) -> None:
        self._decays = decay if isinstance(decay, tuple) else (decay, decay)
        self._between = every if isinstance(every, tuple) else (every, every)
        if not all(0 <= d < 1 for d in self._decays) or min(self._between) < 1 or over < 1:
            raise ValueError(
                f"trajectory: 0 <= decay < 1 <= every, and over >= 1 are needed, got {decay}, {every} and {over}; "
                "correct them"
            )
        self._of, self._over, self._next = _Of(model, loss), over, self._between[0]
        self._live = {name: p for name, p in self._of.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._live.items()}
        self._last = {name: p.clone() for name, p in self._average.items()}
        self._count = 0
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._linear: list[float] = []
        self._vectors: list[float] = []
        self._components: list[Array] = []

    @torch.no_grad()
    def step(self) -> None:
        """Take the weights as they are after a step."""
        grown = min(self._count / self._over, 1.0)
        first, last = (1 / (1 - decay) for decay in self._decays)
        for name, p in self._live.items():
            self._average[name].lerp_(p.detach(), 1 / (first + grown * (last - first)))
        self._count += 1
        if self._count == self._next:
            self._look()
            self._next += round(self._between[0] + grown * (self._between[1] - self._between[0]))

    def result(self) -> Decomposition:
        """What was seen so far."""
        with torch.no_grad():
            last = float(functional_call(self._of, {**self._buffers(), **self._last}, ()))
        width = max((len(c) for c in self._components), default=0)
        padded = [np.pad(c, (0, width - len(c))) for c in self._components]
        return Decomposition(
            np.array(self._steps, dtype=float),
            np.array([*self._losses, last]),
            np.array(self._linear),
            np.array(self._vectors),
            np.array(padded).reshape(len(padded), width),
        )

    def _look(self) -> None:
        loss, gradients = self._gradients()
        linear, vectors, components = 0.0, 0.0, np.zeros(0)
        for name, gradient in gradients.items():
            moved = (self._average[name] - self._last[name]).double()
            inner = float((gradient.double() * moved).sum())
            linear += inner
            values = _eigenvalues(gradient.double(), moved)
            if not len(values):
                vectors += inner
                continue
            width = max(len(values), len(components))
            components = np.pad(components, (0, width - len(components))) + np.pad(values, (0, width - len(values)))
        for name, last in self._last.items():
            last.copy_(self._average[name])
        self._steps.append(self._count)
        self._losses.append(loss)
        self._linear.append(linear)
        self._vectors.append(vectors)
        self._components.append(components)

    def _buffers(self) -> dict[str, Tensor]:
        """Copies, which a norm in training may move."""
        return {name: b.clone() for name, b in self._of.named_buffers()}

    def _gradients(self) -> tuple[float, dict[str, Tensor]]:
        """At the averaged weights of the last look."""
        leaves = {name: p.detach().requires_grad_() for name, p in self._last.items()}
        with torch.enable_grad():
            loss = functional_call(self._of, {**self._buffers(), **leaves}, ())
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(leaves, found, strict=True) if g is not None}
        return float(loss.detach()), gradients


class _Of(nn.Module):
    """A loss of a model as a module, so that its parameters can be replaced."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self) -> Tensor:
        return self._loss(self.model)


def _eigenvalues(gradient: Tensor, moved: Tensor) -> Array:
    """Of S, by size, summed over a stack; none where the tensor is a vector or a matrix of one row or column."""
    if gradient.dim() < 2:
        return np.zeros(0)
    g, d = (t if t.dim() == 3 else t.flatten(1)[None] for t in (gradient, moved))
    if 1 in g.shape[1:]:
        return np.zeros(0)
    inner = g.mT @ d
    if not torch.isfinite(inner).all():
        return np.full(g.shape[2], np.nan)
    values = torch.linalg.eigvalsh(0.5 * (inner + inner.mT)).cpu()
    found: Array = values.gather(1, values.abs().argsort(descending=True)).sum(0).numpy()
    return found
