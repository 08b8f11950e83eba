"""What every trained objective shares: the training loop, over a stack of members, and the contract built on it.

One trial is a stack of one, so there is one training loop. A subclass says what the network is, where its batches come
from, what a member's loss is and what a step costs; this module does the rest.

The learning rate rises linearly over the first quarter of the steps and falls linearly to zero over the others. The end
of such a run has little noise of its last steps; with a shorter rise some seeds of a small network lose many of their
units at the start, and the loss near the optimum has a heavy upper tail.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from objectives.rules import Rules, known
from objectives.stacked import Network, adamw, initialise
from tuner.scale import Scale
from tuner.space import Params, SearchSpace
from tuner.trial import Result, Trial

Batch = tuple[Tensor, Tensor]  # inputs (*, B, ...), targets (*, B, ...)

WARM_UP = 0.25  # fraction of the steps
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def device() -> torch.device:
    """Where training runs: a GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def schedule(step: int, steps: int) -> float:
    """Learning rate at a step, as a fraction of its peak."""
    rise = max(1, round(WARM_UP * steps))
    return min((step + 1) / rise, (steps - step) / max(1, steps - rise))


@dataclass(frozen=True)
class TrainedObjective(ABC):
    """A network trained on a task, as an objective and as a model family.

    Args:
        parametrization: "mup-adamw", "sp-adamw" or "completedp-adamw", applied here; nothing is left to rescale.
        steps: length of training at the base batch, where the scale has no "steps" axis.
        batch: the base batch: examples in a minibatch, where the scale has no "batch_size" axis. A larger batch takes
            fewer steps, so that training sees as many examples.
        base_width: the width at which all parametrizations give every tensor the same learning rate.
        dtype: "float32" or "float64".

    Raises:
        ValueError: an unknown parametrization or dtype.
    """

    parametrization: str = "mup-adamw"
    steps: int = 1000
    batch: int = 64
    base_width: int = 64
    dtype: str = "float32"

    space: ClassVar[SearchSpace]
    axes: ClassVar[tuple[str, ...]] = ("width", "batch_size", "steps")
    fixed: ClassVar[dict[str, float]] = {"weight_decay": 0.0, "init_scale": 1.0}  # where they are not searched

    def __post_init__(self) -> None:
        known(self.parametrization)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: must be one of {', '.join(DTYPES)}, got {self.dtype!r}; correct the name")

    @abstractmethod
    def network(self, scale: Scale, members: tuple[int, ...]) -> Network:
        """The network, or a stack of it, with weights not yet drawn."""

    @abstractmethod
    def batches(self, seeds: Sequence[int], steps: int, size: int) -> Iterator[Batch]:
        """`steps` minibatches of `size` for each seed, stacked: tensors (K, B, ...)."""

    @abstractmethod
    def losses(self, network: Network, batch: Batch) -> Tensor:
        """Each member's mean loss on a batch: (*)."""

    @abstractmethod
    def held_out(self) -> Iterator[Batch]:
        """The held-out data, in parts of one size, without members axis."""

    @abstractmethod
    def flops(self, scale: Scale) -> float:
        """FLOPs of one step at a scale, forward and backward; a product of (a, b) and (b, c) matrices has 2abc."""

    def __call__(self, params: Params, scale: Scale, seed: int) -> Result:
        return self.train_many([Trial(0, params, scale, seed)])[0]

    def cost(self, params: Params, scale: Scale) -> float:
        """Training FLOPs of the matrix products."""
        return self.length(scale) * self.flops(scale)

    def train_many(self, trials: Sequence[Trial]) -> list[Result]:
        """Train all trials, which must be of one scale, as one stack. A loss that is not finite diverged."""
        if not trials:
            return []
        scale = self._common_scale(trials)
        started = time.perf_counter()
        network = self._train(scale, trials)
        losses = self._evaluate(network)
        seconds = (time.perf_counter() - started) / len(trials)
        return [Result(loss, self.cost(t.params, scale), seconds) for t, loss in zip(trials, losses, strict=True)]

    def build(self, scale: Scale) -> Network:
        """A lone network: weights drawn by torch's global generator, initial scale from the middle of the space."""
        network = self.network(self._checked(scale), ()).to(device(), DTYPES[self.dtype])
        initialise(network, [int(torch.randint(2**31, ()))], [self._middle("init_scale")])
        return network

    def loss(self, model: Network, seed: int) -> Tensor:
        """Mean loss of a lone network on one fresh batch."""
        inputs, targets = next(self.batches([seed], 1, self.batch))
        return self.losses(model, (inputs[0], targets[0]))

    def optimizer(self, model: Network, scale: Scale, lr: float) -> torch.optim.Optimizer:
        """AdamW with the parametrization's rules, weight decay from the middle of the space."""
        return self._optimizer(model, scale, [lr], [self._middle("weight_decay")])

    def course(self, step: int, steps: int) -> float:
        """Learning rate at a step, as a fraction of its peak."""
        return schedule(step, steps)

    def size(self, scale: Scale) -> int:
        """Examples in a minibatch at a scale."""
        return int(scale.get("batch_size", self.batch))

    def length(self, scale: Scale) -> int:
        """Steps of a run at a scale."""
        at_equal_examples = max(1, round(self.steps * self.batch / self.size(scale)))
        return int(self._checked(scale).get("steps", at_equal_examples))

    def rules(self, scale: Scale, depth_ratio: float = 1.0) -> Rules:
        batch = self.size(scale) / self.batch
        tokens = scale["steps"] * batch / self.steps if "steps" in scale else 1.0
        return Rules(self.parametrization, scale["width"] / self.base_width, depth_ratio, batch, tokens)

    def _train(self, scale: Scale, trials: Sequence[Trial]) -> Network:
        members, seeds = (len(trials),), [t.seed for t in trials]
        settings = [{**self.fixed, **t.params} for t in trials]
        lr, decay, init_scale = ([float(s[n]) for s in settings] for n in ("lr", "weight_decay", "init_scale"))
        network = self.network(scale, members).to(device(), DTYPES[self.dtype])
        initialise(network, seeds, init_scale)
        optimizer = self._optimizer(network, scale, lr, decay)
        peaks = [group["lr"] for group in optimizer.param_groups]
        steps = self.length(scale)
        for step, batch in enumerate(self.batches(seeds, steps, self.size(scale))):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * self.course(step, steps)
            network.zero_grad(set_to_none=False)
            self.losses(network, batch).sum().backward()  # the gradient of a sum: each member has its own, unmixed
            optimizer.step()
        return network

    def _optimizer(
        self, network: Network, scale: Scale, lr: Sequence[float], weight_decay: Sequence[float]
    ) -> torch.optim.AdamW:
        rules = self.rules(scale)
        rates = [rate * rules.over_data("lr") for rate in lr]
        decays = [decay * rules.over_data("weight_decay") for decay in weight_decay]
        return adamw(network, rates, decays, rules.betas)

    @torch.no_grad()
    def _evaluate(self, network: Network) -> list[float]:
        means = [
            self.losses(network, (x.expand(*network.members, *x.shape), y.expand(*network.members, *y.shape)))
            for x, y in self.held_out()
        ]
        return torch.stack(means).double().mean(0).tolist()

    def _common_scale(self, trials: Sequence[Trial]) -> Scale:
        for trial in trials:
            self.space.check(trial.params)
            if trial.scale != trials[0].scale:
                raise ValueError(
                    f"train_many: trials must share one scale, got {trials[0].scale!r} and {trial.scale!r}; split them"
                )
        return self._checked(trials[0].scale)

    def _checked(self, scale: Scale) -> Scale:
        known_axes = ", ".join(self.axes)
        if "width" not in scale or set(scale) - set(self.axes):
            raise ValueError(f"scale: width is needed and the axes are {known_axes}, got {scale!r}; correct the axes")
        for axis, value in scale.items():
            if value != int(value):
                raise ValueError(f"scale: {axis} must be a whole number, got {value!r}; round it")
        _ = self.rules(scale).betas  # refused before anything is trained
        return scale

    def _middle(self, name: str) -> float:
        return float(self.space[name].decode(0.5)) if name in self.space else self.fixed[name]
