"""What one model does on one batch: sizes of its activations, and what the training of each tensor changes.

An activation is what a module gives out, and what attention gives to its softmax (the logits). All sizes are root mean
squares of entries. The effect of a tensor is how far its module's output, on the same input, has moved because this one
tensor is no longer as it began: a tensor whose steps are too small or too large for its width shows there, whatever the
layers below have done meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Calls = dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]
SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
LOGITS = "logits"


@dataclass
class Seen:
    """One forward pass.

    Args:
        activations: by module, in the order they were made; a module that is called often counts once.
        calls: what each module was called with.
        heads: how many entries queries and keys have, by logits.
        loss: of the pass.
    """

    activations: dict[str, Tensor] = field(default_factory=dict)
    calls: Calls = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    loss: float = math.nan


class _Logits(TorchFunctionMode):
    """Sees what attention is taken over, under the name of the module that takes it."""

    def __init__(self, seen: Seen, inside: list[str]) -> None:
        super().__init__()
        self.seen, self.inside, self.multiplied = seen, inside, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = ".".join(part for part in (self.inside[-1] if self.inside else "", LOGITS) if part)
        if func is F.scaled_dot_product_attention:
            query, key = args[0], args[1]
            factor = kwargs.get("scale") or query.shape[-1] ** -0.5
            many = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3) if kwargs.get("enable_gqa") else key
            self.seen.activations.setdefault(name, (query @ many.mT * factor).detach())
            self.seen.heads.setdefault(name, query.shape[-1])
        elif func in SOFTMAX:
            self.seen.activations.setdefault(name, args[0].detach())
            self.seen.heads.setdefault(name, self.multiplied)
        elif func in PRODUCTS:  # the last one before a softmax made its logits
            self.multiplied = args[0].shape[-1]
        return func(*args, **kwargs)


def look(model: nn.Module, loss: Callable[[], Tensor]) -> Seen:
    """One forward pass without gradients; `loss` runs the model."""
    seen, inside = Seen(), []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inside.append(name)
            seen.calls.setdefault(name, (module, args, kwargs))

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            inside.pop()
            if (tensor := _tensor(output)) is not None:
                seen.activations.setdefault(name, tensor.detach().clone())

        return hook

    with ExitStack() as hooks, torch.no_grad(), _Logits(seen, inside):
        for name, module in model.named_modules():
            if name:
                first = module.register_forward_pre_hook(enter(name), prepend=True, with_kwargs=True)
                hooks.callback(first.remove)
                hooks.callback(module.register_forward_hook(leave(name)).remove)
        seen.loss = float(loss())
    return seen


def _tensor(output: Any) -> Tensor | None:
    """The activation in what a module gives out: itself, or the first of several."""
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


def size(activation: Tensor) -> float:
    """Root mean square of its finite entries: a mask writes others into logits."""
    finite = activation[activation.isfinite()].double()
    return float(finite.square().mean().sqrt()) if finite.numel() else math.nan


def effects(model: nn.Module, seen: Seen, initial: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    """The size of the effect of every tensor that a module of the pass owns; a tied tensor has one for each name.

    Args:
        initial: the tensors before training, by name.
    """
    for name, tensor in model.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        if owner in seen.calls and name in initial:
            module, args, kwargs = seen.calls[owner]
            trained = _output(module, args, kwargs)
            with _held(tensor, initial[name]):
                before = _output(module, args, kwargs)
            if trained is not None and before is not None:
                yield name, size(trained - before)


def _output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a module gives out, with the same dropout every time."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _tensor(module(*args, **kwargs))


@contextmanager
def _held(tensor: nn.Parameter, value: Tensor) -> Iterator[None]:
    kept = tensor.detach().clone()
    with torch.no_grad():
        tensor.copy_(value)
        try:
            yield
        finally:
            tensor.copy_(kept)
