"""The problem: what is asked, as a value, and its geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuner.errors import BadInput
from tuner.parametrization import Parametrization
from tuner.scale import Scale
from tuner.space import Categorical, Float, Params, SearchSpace, Value
from tuner.surrogate.frame import DTYPE, Frame
from tuner.trial import Observation, Proposal

Array = NDArray[np.float64]

SLACK = 1 + 1e-9  # of a budget: three runs of 0.1 fit 0.3


def check_axes(target: Scale, others: Sequence[Scale]) -> None:
    """Raises BadInput unless there is another scale, and each names the target's axes."""
    if not others:
        raise BadInput("scale: at least one proxy is needed, got none; add a smaller scale")
    for scale in others:
        if set(scale) != set(target):
            raise BadInput(
                f"scale: every scale must name the target's axes {sorted(target)}, got {sorted(scale)}; name all"
            )


@dataclass(frozen=True)
class Problem:
    """What is asked.

    Args:
        space: hyperparameters, ranges in base coordinates.
        target: the scale the answer is for.
        proxies: the scales that may be run.
        base: where base and raw coordinates agree.
        parametrization: exponents and drift prior.
        cost: of a run, from base hyperparameters and a scale; in the study's unit.
    """

    space: SearchSpace
    target: Scale
    proxies: tuple[Scale, ...]
    base: Scale
    parametrization: Parametrization
    cost: Callable[[Params, Scale], float] = field(compare=False)

    def __post_init__(self) -> None:
        check_axes(self.target, (*self.proxies, self.base))

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The axes along which some proxy differs from the target."""
        return tuple(a for a in self.target if any(p[a] != self.target[a] for p in self.proxies))

    @cached_property
    def cheapest(self) -> Scale:
        """The proxy whose run, at the middle of the space, costs least."""
        return min(self.proxies, key=lambda scale: self.cost(self.space.middle, scale))

    @cached_property
    def frame(self) -> Frame:
        beliefs = [
            [self.parametrization.belief(self.space, name, axis, self.target) for axis in self.axes]
            for name in self.space
        ]
        table = torch.tensor(beliefs, dtype=DTYPE).reshape(len(self.space), len(self.axes), 2)
        nats = torch.tensor([self.nats(name) for name in self.space], dtype=DTYPE)[:, None]
        choices = torch.tensor([len(d.choices) if isinstance(d, Categorical) else 0 for d in self.space.values()])
        reach = [max((math.log(p[a] / self.target[a]) for p in self.proxies), key=abs) for a in self.axes]
        endless = torch.tensor([self.parametrization.endless(axis) for axis in self.axes], dtype=DTYPE)
        return Frame(choices, torch.tensor(reach, dtype=DTYPE), table[..., 0] / nats, table[..., 1] / nats, endless)

    def to_base(self, params: Params, scale: Scale) -> dict[str, Value]:
        """Raw hyperparameters of a run at a scale -> base."""
        return self.parametrization.to_base(self.space, params, scale, self.base)

    def to_raw(self, params: Params, scale: Scale) -> dict[str, Value]:
        """Base hyperparameters -> raw at a scale."""
        return self.parametrization.to_raw(self.space, params, scale, self.base)

    def nats(self, name: str) -> float:
        """Length of a hyperparameter's coordinate in nats; 1 for a category, which has none."""
        dimension = self.space[name]
        return 1.0 if isinstance(dimension, Categorical) else dimension.nats

    def inputs(self, points: Array, scale: Scale) -> Tensor:
        """Cube points (c, d) at one scale -> X (c, d + a)."""
        logs = [math.log(scale[a] / self.target[a]) for a in self.axes]
        return torch.cat([torch.from_numpy(points), torch.tensor(logs, dtype=DTYPE).expand(len(points), -1)], 1)

    def located(self, runs: Sequence[Observation] | Sequence[Proposal]) -> Tensor:
        """Runs -> X (n, d + a)."""
        points = self.space.encode_all([run.params for run in runs])
        logs = [[math.log(run.scale[a] / self.target[a]) for a in self.axes] for run in runs]
        return torch.from_numpy(np.hstack([points, np.reshape(logs, (len(runs), len(self.axes)))]))

    def nearest(self, point: Array, among: Sequence[Proposal]) -> Proposal:
        """Of some runs, the one whose hyperparameters are nearest to a cube point (d,)."""
        away = self.space.encode_all([run.params for run in among]) - point
        return among[int(np.square(away).sum(1).argmin())]

    def snapped(self, points: Array) -> Array:
        """The cube points that integers and categories can take, (c, d)."""
        columns = [
            points[:, j] if isinstance(d, Float) else np.array([d.encode(d.decode(float(u))) for u in points[:, j]])
            for j, d in enumerate(self.space.values())
        ]
        return np.clip(np.stack(columns, 1), 0.0, 1.0)
