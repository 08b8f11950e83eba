"""The largest eigenvalues of the loss's Hessian: how large a step is stable, and whether two widths train alike.

Full-batch gradient descent settles where the largest is 2 / lr, Adam where that of P^-1/2 H P^-1/2 is
(2 + 2 beta1) / ((1 - beta1) lr), P = diag(v^1/2 + eps) with v bias-corrected (Cohen et al. 2021, 2022). Under muP the
curve of the largest over training is the same at every width (super consistency, Noci et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector

from tuner.trial import Evidence

Array = NDArray[np.float64]

ALIKE = 0.2  # nats of sharpness: the rate at the edge of stability goes as one over it, and grids of rates are coarser


def sharpness(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    count: int = 1,
    *,
    preconditioner: Mapping[nn.Parameter, Tensor] | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Array:
    """The `count` largest eigenvalues (count,), largest first, by Lanczos on products of the Hessian with a vector.

    Args:
        loss: of the model on a fixed batch, a scalar tensor that can be differentiated twice.
        preconditioner: P's diagonal for each parameter: eigenvalues of P^-1/2 H P^-1/2.
        tolerance: of an eigenvalue, relative.

    Raises:
        ValueError: the model has fewer trainable numbers than eigenvalues are asked for, a loss that is not finite, or
            a preconditioner that lacks a parameter.
        scipy.sparse.linalg.ArpackNoConvergence: Lanczos does not settle; ask for less precision.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    size = sum(p.numel() for p in parameters)
    if not 1 <= count < size:
        raise ValueError(f"sharpness: between 1 and {size - 1} eigenvalues can be found, got {count}; ask for fewer")
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
        value = loss(model)
        if not torch.isfinite(value):
            raise ValueError(
                f"sharpness: the loss must be finite, got {float(value.detach())}; look at an earlier step"
            )
        gradient = _flat(torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True))
        scale = torch.ones_like(gradient.detach())
        if preconditioner is not None:
            if missing := sum(p not in preconditioner for p in parameters):
                raise ValueError(f"sharpness: the preconditioner lacks {missing} of the parameters; step all of them")
            scale = _flat([preconditioner[p] for p in parameters]).rsqrt()

        def product(vector: Array) -> Array:
            along = scale * torch.from_numpy(np.ravel(vector)).to(gradient)
            found = torch.autograd.grad(gradient @ along, parameters, retain_graph=True, materialize_grads=True)
            told: Array = (scale * _flat(found)).double().cpu().numpy()
            return told

        if size <= 2 * count + 1:  # too small for Lanczos
            dense = np.stack([product(row) for row in np.eye(size)])
            return np.sort(np.linalg.eigvalsh(0.5 * (dense + dense.T)).astype(np.float64))[::-1][:count]
        start = np.random.default_rng(seed).standard_normal(size)
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        values = eigsh(operator, k=count, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)
    return np.sort(values)[::-1]


class Sharpness:
    """Watches a model. Call `step` after each step of the optimizer; every so often it looks at the largest curvature.

    Attributes:
        steps: at which it looked. values: the sharpness at each; not a number where the loss was not finite or Lanczos
            did not settle.

    Args:
        loss: of the model on a fixed batch, a scalar tensor that can be differentiated twice.
        optimizer: Adam or AdamW, to see the sharpness as it does; None: plain.
        every: steps between looks.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module], Tensor],
        optimizer: torch.optim.Optimizer | None = None,
        every: int = 50,
    ) -> None:
        if every < 1:
            raise ValueError(f"sharpness: at least one step between looks is needed, got {every}; raise it")
        self._model, self._loss, self._optimizer, self._every, self._count = model, loss, optimizer, every, 0
        self.steps: list[int] = []
        self.values: list[float] = []

    def step(self) -> None:
        """Take the weights as they are after a step."""
        self._count += 1
        if self._count % self._every:
            return
        self.steps.append(self._count)
        buffers = {name: b.clone() for name, b in self._model.named_buffers()}  # which a norm in training moves
        try:
            with torch.random.fork_rng({p.device.index for p in self._model.parameters() if p.is_cuda}):
                seen = None if self._optimizer is None else adam_preconditioner(self._optimizer)
                self.values.append(float(sharpness(self._model, self._loss, preconditioner=seen)[0]))
        except (ValueError, ArpackNoConvergence):  # a run that diverges ends its own way
            self.values.append(math.nan)
        finally:
            with torch.no_grad():
                for name, b in self._model.named_buffers():
                    b.copy_(buffers[name])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return parameters_to_vector([t.contiguous() for t in tensors])


def adam_preconditioner(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Tensor]:
    """P's diagonal of every parameter that Adam or AdamW has stepped.

    Raises:
        ValueError: it has not stepped yet, or keeps no second moments.
    """
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if "exp_avg_sq" not in state:  # frozen, or of no use
                continue
            corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            found[p] = corrected.sqrt() + group["eps"]
    if not found:
        raise ValueError("sharpness: Adam's second moments are needed, got none; take a step first")
    return found


def adam_edge(lr: float, beta1: float = 0.9) -> float:
    """The preconditioned sharpness beyond which Adam's steps are not stable: 38 / lr for beta1 = 0.9."""
    if not (lr > 0 and 0 <= beta1 < 1):
        raise ValueError(f"adam_edge: lr > 0 and 0 <= beta1 < 1 are needed, got {lr} and {beta1}; correct them")
    return (2 + 2 * beta1) / ((1 - beta1) * lr)


def super_consistency(small: Sequence[float], large: Sequence[float]) -> float:
    """max_t |ln s(t) - ln s'(t)| of two widths' sharpness at the same steps and base hyperparameters.

    Below ALIKE or so where the parametrization keeps the regime. Not a number where one is not above zero and finite.

    Raises:
        ValueError: series of different lengths.
    """
    if len(small) != len(large):
        law = "super_consistency: two series at the same steps are needed"
        raise ValueError(f"{law}, got {len(small)} and {len(large)} values; cut them")
    pairs = list(zip(small, large, strict=True))
    if not pairs or not all(0 < value < math.inf for pair in pairs for value in pair):
        return math.nan
    return max(abs(math.log(a / b)) for a, b in pairs)


def consistent(small: Sequence[float], large: Sequence[float]) -> Evidence:
    """`super_consistency` of two widths as evidence of transfer: for it where they train alike, else it says nothing.

    Sharpness that differs is none against it: an optimum can stay where curvature does not.
    """
    apart = super_consistency(small, large)
    if math.isnan(apart):
        return Evidence("super consistency", "undetermined", "a sharpness was not above zero, or a run diverged")
    said = f"the sharpness of two widths differs by a factor of {math.exp(apart):.3g} at most over training"
    return Evidence("super consistency", "pass" if apart < ALIKE else "undetermined", said)
