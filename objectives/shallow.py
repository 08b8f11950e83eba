"""Networks on synthetic tasks of which theory says how their optimum moves with width: slow transfer, or a jump.

| symbol | meaning                              |
|--------|--------------------------------------|
| d, n   | inputs, width                        |
| B, T   | minibatch, steps; every batch is new |

| objective    | network, target                                         | known                                    |
|--------------|---------------------------------------------------------|------------------------------------------|
| `Ball`       | two-layer ReLU; x ~ N(0, I), y: |x|^2 above its median? | weak: beta / alpha about 0.52            |
| `Index`      | two-layer ReLU; x ~ N(0, 4 I / d), y the length of x in | two valleys: the optimum jumps far       |
|              | its first k directions, (d sum_{i<=k} x_i^2 / 4k)^1/2   | down, once                               |
| `DeepLinear` | L linear layers; y = b.x and noise                      | muP: the best rate has a limit, not zero |

The first two: Ghosh, Wu, Bietti 2025 (arXiv 2512.22768), section 3.2 and appendix D.1, with d = 64, B = 256, T = 2^14,
widths to 16384, cross-entropy and squared error, Adam at a constant rate; there the jump is at widths 5800 to 8192,
and dividing the second layer's rate by 50 repairs it. The third: Hayou 2025 (arXiv 2511.01734). The defaults are a size
for a processor; the papers' is `Ball(inputs=64, batch=256, steps=2**14)`, `Index(inputs=64, indices=15, ...)`. A first
layer's biases are the weights of a further input, which is one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from scipy.stats import chi2
from torch import Tensor, nn
from torch.nn import functional as F

from objectives.rules import Rules
from objectives.stacked import Dense, Members, Network, adamw, generator, normal
from objectives.training import DTYPES, Batch, TrainedObjective, device
from tuner.scale import Scale
from tuner.space import Float, SearchSpace

BETAS = (0.9, 0.999)  # Adam's own
HELD_OUT = 8192
BLOCK = 64  # steps of data drawn at a time


class Layers(Network):
    """d -> n -> ... -> n -> 1, with or without ReLU between."""

    def __init__(
        self, rules: Rules, members: Members, inputs: int, width: int, depth: int, bent: bool, readout_rate: float
    ) -> None:
        super().__init__(members)
        self.bent = bent
        self.first = Dense(rules.input(inputs), members, width, inputs)
        self.hidden = nn.ModuleList(Dense(rules.hidden(width), members, width, width) for _ in range(depth - 2))
        rule = rules.readout(width)
        self.readout = Dense(replace(rule, lr=rule.lr * readout_rate), members, 1, width)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, *self.hidden):
            x = layer(x)
            x = F.relu(x) if self.bent else x
        return self.readout(x)


@dataclass(frozen=True)
class Shallow(TrainedObjective):
    """Adam at a constant learning rate, the only hyperparameter, on inputs drawn anew for every step.

    Its betas are fixed: of a rule over batches only the rate is applied.

    Args:
        inputs: d.
        readout_rate: of the last layer, over that of the others.
    """

    steps: int = 2000
    inputs: int = 16
    readout_rate: float = 1.0

    bent: ClassVar[bool] = True  # ReLU between layers
    space = SearchSpace({"lr": Float(1e-4, 1.0, log=True)})

    @abstractmethod
    def task(self, normals: Tensor) -> Batch:
        """Inputs and targets from standard normal numbers (..., d)."""

    @property
    def depth(self) -> int:
        """Layers."""
        return 2

    def network(self, scale: Scale, members: Members) -> Network:
        width = int(scale["width"])
        return Layers(self.rules(scale), members, self.fan_in, width, self.depth, self.bent, self.readout_rate)

    @property
    def fan_in(self) -> int:
        """Inputs of the first layer, the one that is one counted."""
        return self.inputs + 1

    def course(self, step: int, steps: int) -> float:
        return 1.0

    def batches(self, seeds: Sequence[int], steps: int, size: int) -> Iterator[Batch]:
        streams = [generator(seed, "data") for seed in seeds]
        for start in range(0, steps, BLOCK):
            examples = min(BLOCK, steps - start) * size
            x, y = self._on_device(self.task(normal(streams, (examples, self.inputs))))
            yield from zip(x.split(size, dim=1), y.split(size, dim=1), strict=True)

    def held_out(self) -> Iterator[Batch]:
        yield self._on_device(self.task(torch.randn(HELD_OUT, self.inputs, generator=generator(1, "held out"))))

    def _on_device(self, batch: Batch) -> Batch:
        x, y = (part.to(device(), DTYPES[self.dtype]) for part in batch)
        return x, y

    def losses(self, network: Network, batch: Batch) -> Tensor:
        x, y = batch
        return network.member_mean((network(x) - y) ** 2)

    def flops(self, scale: Scale) -> float:
        n = scale["width"]
        forward = n * (self.fan_in + (self.depth - 2) * n + 1)
        return float(2 * self.size(scale) * (3 * forward - n * self.fan_in))

    def _optimizer(
        self, network: Network, scale: Scale, lr: Sequence[float], weight_decay: Sequence[float]
    ) -> torch.optim.AdamW:
        rates = [rate * self.rules(scale).over_data("lr") for rate in lr]
        return adamw(network, rates, weight_decay, BETAS)


def _and_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


@dataclass(frozen=True)
class Ball(Shallow):
    """Whether a point lies outside a ball that holds half of them, by cross-entropy."""

    def task(self, normals: Tensor) -> Batch:
        outside = normals.square().sum(-1, keepdim=True) > chi2.median(self.inputs)
        return _and_one(normals), outside.to(normals)

    def losses(self, network: Network, batch: Batch) -> Tensor:
        x, y = batch
        return network.member_mean(F.binary_cross_entropy_with_logits(network(x), y, reduction="none"))


@dataclass(frozen=True)
class Index(Shallow):
    """The length of a point in the first k of its directions.

    Args:
        indices: k.
    """

    indices: int = 4

    def task(self, normals: Tensor) -> Batch:
        x = normals * 2 / self.inputs**0.5
        y = (x[..., : self.indices].square().sum(-1, keepdim=True) * self.inputs / (4 * self.indices)).sqrt()
        return _and_one(x), y


@dataclass(frozen=True)
class DeepLinear(Shallow):
    """A linear function of the inputs, learned by a product of matrices.

    Args:
        layers: L. label_noise: deviation of the noise of the targets in training.
    """

    steps: int = 500
    layers: int = 3
    label_noise: float = 0.5

    bent = False

    @property
    def depth(self) -> int:
        return self.layers

    @property
    def fan_in(self) -> int:
        return self.inputs

    def task(self, normals: Tensor) -> Batch:
        return normals, normals.sum(-1, keepdim=True) / self.inputs**0.5

    def batches(self, seeds: Sequence[int], steps: int, size: int) -> Iterator[Batch]:
        streams = [generator(seed, "label noise") for seed in seeds]
        for x, y in super().batches(seeds, steps, size):
            yield x, y + self.label_noise * normal(streams, tuple(y.shape[1:])).to(y)
