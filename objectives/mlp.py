"""Two-hidden-layer ReLU networks: handwritten digits (real data) and a teacher network (endless data).

| symbol | meaning            |
|--------|--------------------|
| n      | width              |
| B      | minibatch          |
| d, c   | inputs, outputs    |

No biases: digits are standardised and the teacher has none. A step multiplies, forward, 2B(dn + n^2 + nc) FLOPs;
backward costs twice that, less the gradient of the inputs, which nobody needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from objectives.rules import Rules
from objectives.stacked import Dense, Members, Network, generator, normal
from objectives.training import DTYPES, Batch, TrainedObjective, device
from tuner.scale import Scale
from tuner.space import Float, SearchSpace

CLASSES = 10
HELD_OUT_DIGITS = 797  # of 1797
PIXEL_NOISE = 0.5  # in standard deviations of a pixel; without it a thousand images are soon known by heart
TEACHER_WIDTH = 16
TEACHER_INPUTS = 16
HELD_OUT_EXAMPLES = 8192
BLOCK = 64  # steps of data drawn at a time: few draws, little memory


class MLP(Network):
    """d -> n -> n -> c."""

    def __init__(self, rules: Rules, members: Members, inputs: int, width: int, outputs: int) -> None:
        super().__init__(members)
        self.first = Dense(rules.input(inputs), members, width, inputs)
        self.second = Dense(rules.hidden(width), members, width, width)
        self.readout = Dense(rules.readout(width), members, outputs, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(F.relu(self.second(F.relu(self.first(x)))))


def mlp_flops(batch: int, inputs: int, width: int, outputs: int) -> float:
    """Of one step, forward and backward."""
    forward = inputs * width + width * width + width * outputs
    return float(2 * batch * (3 * forward - inputs * width))


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 8x8 digits of scikit-learn, standardised: training and held-out images and labels, always the same split."""
    from sklearn.datasets import load_digits  # a second to import: only when it is used

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.from_numpy((images[order] - images.mean()) / images.std())
    y = torch.from_numpy(labels[order])
    return x[HELD_OUT_DIGITS:], y[HELD_OUT_DIGITS:], x[:HELD_OUT_DIGITS], y[:HELD_OUT_DIGITS]


@dataclass(frozen=True)
class DigitsMLP(TrainedObjective):
    """Held-out cross-entropy of an MLP on 1000 handwritten digits; order and pixel noise are the seed's."""

    steps: int = 300

    space = SearchSpace(
        {
            "lr": Float(1e-3, 3e-1, log=True),
            "weight_decay": Float(1e-2, 10.0, log=True),
            "init_scale": Float(0.1, 10.0, log=True),
        }
    )

    def network(self, scale: Scale, members: Members) -> Network:
        return MLP(self.rules(scale), members, digits()[0].shape[1], int(scale["width"]), CLASSES)

    def batches(self, seeds: Sequence[int], steps: int, size: int) -> Iterator[Batch]:
        x, y = (part.to(device()) for part in digits()[:2])
        x = x.to(DTYPES[self.dtype])
        streams = [generator(seed, "data") for seed in seeds]
        order = torch.stack([_epochs(stream, len(y), steps * size) for stream in streams])
        for block in order.to(device()).split(BLOCK * size, dim=1):  # (K, BLOCK B)
            noisy = x[block] + PIXEL_NOISE * normal(streams, (block.shape[1], x.shape[1])).to(x)
            yield from zip(noisy.split(size, dim=1), y[block].split(size, dim=1), strict=True)

    def losses(self, network: Network, batch: Batch) -> Tensor:
        x, y = batch
        return network.member_mean(F.cross_entropy(network(x).flatten(0, -2), y.flatten(), reduction="none"))

    def held_out(self) -> Iterator[Batch]:
        x, y = digits()[2:]
        yield x.to(device(), DTYPES[self.dtype]), y.to(device())

    def flops(self, scale: Scale) -> float:
        return mlp_flops(self.size(scale), digits()[0].shape[1], int(scale["width"]), CLASSES)


def _epochs(stream: torch.Generator, examples: int, length: int) -> Tensor:
    """`length` indices: one shuffled pass over the examples after another."""
    passes = -(-length // examples)
    return torch.cat([torch.randperm(examples, generator=stream) for _ in range(passes)])[:length]


@cache
def teacher() -> tuple[Tensor, Tensor, Tensor]:
    """A random ReLU network without biases, its last layer scaled to outputs of variance one."""
    stream = generator(0, "teacher")
    first, second, last = (
        torch.randn(rows, TEACHER_WIDTH, generator=stream, dtype=torch.float64) * (2 / TEACHER_WIDTH) ** 0.5
        for rows in (TEACHER_WIDTH, TEACHER_WIDTH, 1)
    )
    probe = torch.randn(HELD_OUT_EXAMPLES, TEACHER_INPUTS, generator=stream, dtype=torch.float64)
    return first, second, last / _taught(probe, first, second, last).std()


def _taught(x: Tensor, first: Tensor, second: Tensor, last: Tensor) -> Tensor:
    return F.relu(F.relu(x @ first.mT) @ second.mT) @ last.mT


@cache
def _teacher_test() -> Batch:
    x = torch.randn(HELD_OUT_EXAMPLES, TEACHER_INPUTS, generator=generator(1, "teacher"), dtype=torch.float64)
    y = _taught(x, *teacher())
    return x, y


@dataclass(frozen=True)
class TeacherMLP(TrainedObjective):
    """Held-out mean square error of an MLP on a fixed random teacher; every minibatch is new, drawn from the seed."""

    steps: int = 500

    space = SearchSpace(
        {
            "lr": Float(1e-3, 3e-1, log=True),
            "weight_decay": Float(1e-3, 10.0, log=True),
            "init_scale": Float(0.1, 10.0, log=True),
        }
    )

    def network(self, scale: Scale, members: Members) -> Network:
        return MLP(self.rules(scale), members, TEACHER_INPUTS, int(scale["width"]), 1)

    def batches(self, seeds: Sequence[int], steps: int, size: int) -> Iterator[Batch]:
        streams = [generator(seed, "data") for seed in seeds]
        weights = [w.to(device(), DTYPES[self.dtype]) for w in teacher()]
        for start in range(0, steps, BLOCK):
            examples = min(BLOCK, steps - start) * size
            x = normal(streams, (examples, TEACHER_INPUTS)).to(device(), DTYPES[self.dtype])
            y = _taught(x, *weights)
            yield from zip(x.split(size, dim=1), y.split(size, dim=1), strict=True)

    def losses(self, network: Network, batch: Batch) -> Tensor:
        x, y = batch
        return network.member_mean((network(x) - y) ** 2)

    def held_out(self) -> Iterator[Batch]:
        x, y = _teacher_test()
        yield x.to(device(), DTYPES[self.dtype]), y.to(device(), DTYPES[self.dtype])

    def flops(self, scale: Scale) -> float:
        return mlp_flops(self.size(scale), TEACHER_INPUTS, int(scale["width"]), 1)
