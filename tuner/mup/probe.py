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
LOGITS, OUTPUT = "logits", "the output"  # of attention; of the whole model


@dataclass
class Seen:
    """One forward pass.

    Args:
        activations: by module, in the order they were made; a module that is called often counts once.
        calls: what each module was called with; the model itself has no name.
        heads: how many entries queries and keys have, by logits; 0 where that is not known.
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
        self.seen, self.inside, self.summed = seen, inside, (torch.Size(), 0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            query, key = (args[k] if k < len(args) else kwargs[name] for k, name in enumerate(("query", "key")))
            factor = kwargs.get("scale") or query.shape[-1] ** -0.5
            many = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3) if kwargs.get("enable_gqa") else key
            self._note(query @ many.mT * factor, query.shape[-1])
        elif func is F.multi_head_attention_forward and args[5] is not None:  # of torch's own module, batch second
            query, key, _, width, heads, weight, bias = args[:7]
            bias = torch.zeros(3 * width).to(weight) if bias is None else bias
            q, k = (
                F.linear(x, weight[part], bias[part]).reshape(*x.shape[:-1], heads, -1).movedim(0, -2)
                for x, part in ((query, slice(width)), (key, slice(width, 2 * width)))
            )
            self._note(q @ k.mT * q.shape[-1] ** -0.5, q.shape[-1])
        elif func in SOFTMAX:
            logits = args[0] if args else kwargs["input"]
            shape, summed = self.summed
            self._note(logits, summed if shape == logits.shape else 0)
        elif func in PRODUCTS:
            left = args[0] if args else kwargs["input"]
            self.summed = (found.shape, left.shape[-1])
        elif func is torch.einsum and isinstance(args[0], str) and "->" in args[0]:
            self.summed = (found.shape, _summed(*args))
        return found

    def _note(self, logits: Tensor, head: int) -> None:
        name = ".".join(part for part in (self.inside[-1] if self.inside else "", LOGITS) if part)
        self.seen.activations.setdefault(name, logits.detach())
        self.seen.heads.setdefault(name, head)


def _summed(equation: str, left: Tensor, *_: Any) -> int:
    """How many products an einsum adds up."""
    into, out = equation.replace(" ", "").split("->")
    sizes = dict(zip(into.split(",")[0], left.shape, strict=False))
    return math.prod(size for letter, size in sizes.items() if letter not in out)


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
                seen.activations.setdefault(name or OUTPUT, tensor.detach().clone())

        return hook

    with ExitStack() as hooks, torch.no_grad(), _Logits(seen, inside):
        for name, module in model.named_modules():
            first = module.register_forward_pre_hook(enter(name), prepend=True, with_kwargs=True)
            hooks.callback(first.remove)
            hooks.callback(module.register_forward_hook(leave(name)).remove)
        seen.loss = float(loss())
    return seen


def _tensor(output: Any) -> Tensor | None:
    """The activation in what a module gives out: itself, or the largest of several."""
    several = output.values() if isinstance(output, Mapping) else output
    several = several if isinstance(output, (Mapping, tuple, list)) else [output]
    found = [part for part in several if isinstance(part, Tensor) and part.is_floating_point()]
    return max(found, key=Tensor.numel) if found else None


def size(activation: Tensor) -> float:
    """Root mean square of its finite entries: a mask writes others into logits."""
    finite = activation[activation.isfinite()].double()
    return float(finite.square().mean().sqrt()) if finite.numel() else math.nan


def effects(model: nn.Module, seen: Seen, initial: Mapping[str, Tensor]) -> Iterator[tuple[str, float, bool]]:
    """The size of the effect of every tensor, on the innermost module around it that was called.

    A tied tensor has one for each name; a tensor in no module that was called has none. With it, whether it is the
    tensor's alone: not where other modules work inside the one that was called.

    Args:
        initial: the tensors before training, by name.
    """
    for name, tensor in model.named_parameters(remove_duplicate=False):
        owner = around(name, seen)
        if owner is not None and name in initial:
            module, args, kwargs = seen.calls[owner]
            trained = _output(module, args, kwargs)
            with _held(tensor, initial[name]):
                before = _output(module, args, kwargs)
            if trained is not None and before is not None:
                alone = owner == name.rpartition(".")[0] and not any(module.children())
                yield name, size(trained - before), alone


def around(name: str, seen: Seen) -> str | None:
    """The innermost module around a tensor that was called."""
    while name:
        name = name.rpartition(".")[0]
        if name in seen.calls:
            return name
    return None


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
