"""A character-level language model of Python's own documentation: decoder-only, pre-norm, causal.

| symbol | meaning                                                        |
|--------|----------------------------------------------------------------|
| n, L   | width, depth                                                   |
| T      | context                                                        |
| B      | windows in a minibatch                                         |
| h, V   | heads, characters in the vocabulary                            |
| d      | head size, n / h: the number of heads is fixed, heads grow     |
| *      | the members axis of a stack, `()` or `(K,)`                    |

The text is `pydoc_data.topics`, which every CPython carries (its length varies with the version of Python, so losses
compare within one version only). RMS norms without gains, which would spoil transfer (Lingle 2024), and no biases. A
step multiplies, forward, 2BT (L (4 n^2 + 2 r n^2 + 2 T n) + nV) FLOPs, r being the feed-forward layer's width over n;
backward costs twice that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from objectives.rules import Rules
from objectives.stacked import Dense, Embedding, Members, Network, generator
from objectives.training import Batch, TrainedObjective, device
from tuner.scale import Scale
from tuner.space import Float, SearchSpace

EXPANSION = 2  # feed-forward width / width
HELD_OUT_FRACTION = 0.1  # the end of the text
HELD_OUT_WINDOWS = 128
HELD_OUT_PARTS = 4


@cache
def text() -> tuple[Tensor, Tensor, int]:
    """Training and held-out characters as integers, and the size of the vocabulary: sorted characters of the text."""
    from pydoc_data.topics import topics

    characters = "\n".join(topics[name] for name in sorted(topics))
    vocabulary = sorted(set(characters))
    number = {character: i for i, character in enumerate(vocabulary)}
    tokens = torch.tensor([number[character] for character in characters], device="cpu")  # built on meta or not
    split = int(len(tokens) * (1 - HELD_OUT_FRACTION))
    return tokens[:split], tokens[split:], len(vocabulary)


def windows(tokens: Tensor, starts: Tensor, context: int) -> Batch:
    """Windows of text at (*, B) starts, and the characters that follow each of theirs: both (*, B, T)."""
    span = starts[..., None] + torch.arange(context + 1, device=starts.device)
    chosen = tokens[span]
    return chosen[..., :-1], chosen[..., 1:]


def rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


class Attention(nn.Module):
    """Causal self-attention: softmax(factor q.k) v."""

    def __init__(self, rules: Rules, members: Members, width: int, heads: int, base_width: int) -> None:
        super().__init__()
        self.heads, self.factor = heads, rules.attention(width / heads, base_width / heads)
        self.query = Dense(rules.query(width), members, width, width)
        self.key = Dense(rules.hidden(width), members, width, width)
        self.value = Dense(rules.hidden(width), members, width, width)
        self.out = Dense(rules.hidden(width), members, width, width)

    def forward(self, x: Tensor, context: int) -> Tensor:
        q, k, v = (self._heads(layer(x), context) for layer in (self.query, self.key, self.value))
        future = torch.full((context, context), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        mixed = (self.factor * q @ k.mT + future).softmax(-1) @ v  # (*, B, h, T, d)
        return self.out(mixed.transpose(-3, -2).reshape(x.shape))

    def _heads(self, x: Tensor, context: int) -> Tensor:
        """(*, BT, n) -> (*, B, h, T, d)."""
        return x.unflatten(-2, (-1, context)).unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class Block(nn.Module):
    """x + branch attention(norm x), then x + branch feed-forward(norm x)."""

    def __init__(self, rules: Rules, members: Members, width: int, heads: int, base_width: int) -> None:
        super().__init__()
        self.branch = rules.branch
        self.attention = Attention(rules, members, width, heads, base_width)
        self.up = Dense(rules.hidden(width), members, EXPANSION * width, width)
        self.down = Dense(rules.hidden(EXPANSION * width), members, width, EXPANSION * width)

    def forward(self, x: Tensor, context: int) -> Tensor:
        x = x + self.branch * self.attention(rms_norm(x), context)
        return x + self.branch * self.down(F.relu(self.up(rms_norm(x))))


class Transformer(Network):
    """Tokens (*, B, T) -> logits (*, BT, V)."""

    def __init__(self, rules: Rules, members: Members, shape: Shape) -> None:
        super().__init__(members)
        width, characters, context = shape.width, shape.characters, shape.context
        self.characters = Embedding(rules.embedding(), members, width, characters)
        self.positions = Embedding(rules.embedding(), members, width, context)
        blocks = (Block(rules, members, width, shape.heads, shape.base_width) for _ in range(shape.depth))
        self.blocks = nn.ModuleList(blocks)
        self.readout = Dense(rules.readout(width), members, characters, width)

    def forward(self, tokens: Tensor) -> Tensor:
        context = tokens.shape[-1]
        places = torch.arange(context, device=tokens.device).expand(tokens.shape)
        x = (self.characters(tokens) + self.positions(places)).flatten(-3, -2)  # (*, BT, n)
        for block in self.blocks:
            x = block(x, context)
        return self.readout(rms_norm(x))


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer."""

    width: int
    depth: int
    heads: int
    context: int
    characters: int
    base_width: int

    def flops(self, batch: int) -> float:
        """Of one step, forward and backward."""
        n = self.width
        block = (4 + 2 * EXPANSION) * n**2 + 2 * self.context * n
        return 3.0 * 2 * batch * self.context * (self.depth * block + n * self.characters)


@dataclass(frozen=True)
class CharTransformer(TrainedObjective):
    """Held-out nats per character of a small transformer on the end of the text, in fixed windows.

    Args:
        depth: number of blocks, where the scale has no "depth" axis.
        base_depth: the depth at which a residual branch has multiplier one.
        heads: number of attention heads; every width is a multiple of it.
        context: characters a prediction may look at.
    """

    steps: int = 800
    batch: int = 4
    depth: int = 2
    base_depth: int = 2
    heads: int = 4
    context: int = 32

    space = SearchSpace(
        {
            "lr": Float(5e-4, 5e-2, log=True),
            "weight_decay": Float(1e-3, 10.0, log=True),
            "init_scale": Float(0.1, 10.0, log=True),
        }
    )
    axes = ("width", "depth", "batch_size", "steps")

    def network(self, scale: Scale, members: Members) -> Network:
        shape = self.shape(scale)
        return Transformer(self.rules(scale, shape.depth / self.base_depth), members, shape)

    def batches(self, seeds: Sequence[int], steps: int, size: int) -> Iterator[Batch]:
        tokens = text()[0].to(device())
        shape, last = (steps, size), len(tokens) - self.context
        starts = torch.stack([torch.randint(last, shape, generator=generator(seed, "data")) for seed in seeds])
        for chosen in starts.to(device()).unbind(1):  # (K, B)
            yield windows(tokens, chosen, self.context)

    def losses(self, network: Network, batch: Batch) -> Tensor:
        tokens, following = batch
        logits = network(tokens).flatten(0, -2)
        return network.member_mean(F.cross_entropy(logits, following.flatten(), reduction="none"))

    def held_out(self) -> Iterator[Batch]:
        tokens = text()[1].to(device())
        starts = torch.linspace(0, len(tokens) - self.context - 1, HELD_OUT_WINDOWS).long().to(tokens.device)
        return (windows(tokens, part, self.context) for part in starts.chunk(HELD_OUT_PARTS))

    def flops(self, scale: Scale) -> float:
        return self.shape(scale).flops(self.size(scale))

    def shape(self, scale: Scale) -> Shape:
        """The network's sizes at a scale. Raises ValueError if the heads do not divide the width."""
        width, depth = int(scale["width"]), int(scale.get("depth", self.depth))
        if width % self.heads:
            raise ValueError(f"scale: width must be a multiple of {self.heads} heads, got {width}; round it")
        return Shape(width, depth, self.heads, self.context, text()[2], self.base_width)
