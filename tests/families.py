"""Small model families of the tests, one way of growing each."""

import torch
from torch import nn
from torch.nn import functional as F


class MLP(nn.Module):
    def __init__(self, width, readout=nn.Linear, bias=True):
        super().__init__()
        self.first, self.second = nn.Linear(12, width, bias=bias), nn.Linear(width, 2 * width, bias=bias)
        self.third, self.readout = nn.Linear(2 * width, width, bias=bias), readout(width, 5, bias=bias)

    def forward(self, x):
        return self.readout(torch.tanh(self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5
        self.norm, self.norm2 = nn.LayerNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)
        self.gate, self.up, self.down = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, 3 * width),
            nn.Linear(3 * width, width),
        )

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (m(h).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for m in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        x = x + self.project(mixed.transpose(-2, -3).flatten(-2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Transformer(nn.Module):
    def __init__(self, width, depth=2, readout=nn.Linear, tied=False, heads=2):
        super().__init__()
        self.embedding, self.position = nn.Embedding(11, width), nn.Embedding(6, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.readout = nn.LayerNorm(width), readout(width, 11, bias=False)
        if tied:
            self.readout.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[-1]]
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))


class ResNet(nn.Module):
    def __init__(self, width, readout=nn.Linear):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.wider, self.readout = nn.Conv2d(width, 2 * width, 1), readout(2 * width, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.two(F.relu(self.one(x)))
        return self.readout(self.wider(x).mean((-2, -1)))
