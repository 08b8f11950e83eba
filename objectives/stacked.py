"""Layers that hold one network or a stack of networks, and AdamW for either.

A stack is K networks of one shape, its members, trained side by side: every tensor has a leading axis of length K, so
one batched product replaces K small ones. `members` is `()` for a lone network, `(K,)` for a stack; the same code runs
both. Each member has its own seed, learning rate, weight decay and initial scale, and nothing passes between members:
a diverged member fills its own slices with NaN and the others never read them.

| symbol | meaning                              |
|--------|--------------------------------------|
| K      | number of members                    |
| B      | examples in a minibatch              |
| *      | the members axis, `()` or `(K,)`     |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from objectives.rules import Rule

Members = tuple[int, ...]

EPS = 1e-12  # small against any gradient, so that it needs no rule of its own (Everett et al. 2024)


class Ruled(nn.Module):
    """One weight tensor (*, out, in) and the rule it lives by."""

    def __init__(self, rule: Rule, members: Members, outputs: int, inputs: int) -> None:
        super().__init__()
        self.rule = rule
        self.weight = nn.Parameter(torch.zeros(*members, outputs, inputs))


class Dense(Ruled):
    """A linear layer without bias: (*, B, in) -> (*, B, out)."""

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.mT
        return y if self.rule.multiplier == 1 else y * self.rule.multiplier


class Embedding(Ruled):
    """A table of `inputs` vectors, looked up: (*, B) integers -> (*, B, out)."""

    def __init__(self, rule: Rule, members: Members, outputs: int, inputs: int) -> None:
        super().__init__(rule, members, inputs, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        *members, rows, _ = self.weight.shape
        offsets = torch.arange(0, rows * (members[0] if members else 1), rows, device=tokens.device)
        shifted = tokens + offsets.reshape(*members, *(1 for _ in tokens.shape[len(members) :]))
        return F.embedding(shifted, self.weight.flatten(0, -2))


class Network(nn.Module):
    """A network, or a stack of networks, made of `Ruled` layers."""

    def __init__(self, members: Members) -> None:
        super().__init__()
        self.members = members

    def layers(self) -> Iterator[Ruled]:
        return (module for module in self.modules() if isinstance(module, Ruled))

    def member_mean(self, values: Tensor) -> Tensor:
        """The mean of a member's values, one number a member: (*, ...) -> (*)."""
        return values.reshape(*self.members, -1).mean(-1)


def generator(seed: int, purpose: str) -> torch.Generator:
    """A stream of random numbers of its own for each seed and purpose ("weights", "data")."""
    state = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def normal(streams: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, each member's from its own stream: (K, *shape)."""
    return torch.stack([torch.randn(shape, generator=stream) for stream in streams])


def slices(tensor: Tensor, members: Members) -> Sequence[Tensor]:
    """Each member's own slice, as a view."""
    return tensor.detach().unbind(0) if members else [tensor]


@torch.no_grad()
def initialise(network: Network, seeds: Sequence[int], init_scale: Sequence[float]) -> None:
    """Draw the weights of member k from seeds[k]: the same numbers alone or in a stack, in any precision."""
    streams = [generator(seed, "weights") for seed in seeds]
    for layer in network.layers():
        for k, weight in enumerate(slices(layer.weight, network.members)):
            std = layer.rule.std * (init_scale[k] if layer.rule.rescaled else 1.0)
            weight.copy_(torch.randn(weight.shape, generator=streams[k]).double() * std)


def adamw(
    network: Network, lr: Sequence[float], weight_decay: Sequence[float], betas: tuple[float, float]
) -> torch.optim.AdamW:
    """PyTorch's fused AdamW, one group for each member and rule.

    Of a stack the optimizer holds slices, views of the weights and of their gradients. The gradients of a stack must
    therefore be zeroed in place, never replaced: `zero_grad(set_to_none=False)`.
    """
    if network.members:
        for layer in network.layers():
            layer.weight.grad = torch.zeros_like(layer.weight)
    groups: list[dict[str, Any]] = []
    for k in range(len(lr)):
        alike: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
        for layer in network.layers():
            alike[layer.rule.lr, layer.rule.weight_decay].append(trained(layer.weight, network.members, k))
        groups += [
            {"params": tensors, "lr": lr[k] * rate, "weight_decay": weight_decay[k] * decay}
            for (rate, decay), tensors in alike.items()
        ]
    return torch.optim.AdamW(groups, betas=betas, eps=EPS, fused=True)


def trained(weight: nn.Parameter, members: Members, k: int) -> Tensor:
    """What the optimizer updates: the parameter itself, or member k's view of it with its view of the gradient."""
    if not members:
        return weight
    assert weight.grad is not None
    view = weight.detach()[k]
    view.grad = weight.grad[k]
    return view
