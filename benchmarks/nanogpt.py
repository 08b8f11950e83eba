"""A plain GPT on the characters of Python's own documentation, as its owner would write it: no parametrization in it.

`Chars` is a model family: `tuner check benchmarks.nanogpt:Chars`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from objectives.transformer import text, windows
from tuner.scale import Scale

CONTEXT, BATCH, HEADS = 16, 4, 4


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.head_dim = width // HEADS
        self.scale = self.head_dim**-0.5
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(-2, -3) for part in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.project(mixed.transpose(-2, -3).flatten(-2))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class GPT(nn.Module):
    def __init__(self, width: int, depth: int, characters: int, tied: bool = False) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(characters, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.readout = nn.LayerNorm(width), nn.Linear(width, characters, bias=False)
        if tied:
            self.readout.weight = self.characters.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.characters(tokens) + self.positions.weight[: tokens.shape[-1]]
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Chars:
    """The family; depth is an axis where the scale has it."""

    tied: bool = False
    scales: ClassVar[tuple[Scale, ...]] = tuple(Scale(width=width) for width in (64, 128, 256, 512))

    def build(self, scale: Scale) -> GPT:
        return GPT(int(scale["width"]), int(scale.get("depth", 2)), text()[2], self.tied)

    def loss(self, model: nn.Module, seed: int) -> Tensor:
        tokens, drawn = text()[0], torch.Generator().manual_seed(seed)
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH,), generator=drawn)
        inputs, targets = windows(tokens, starts, CONTEXT)
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
