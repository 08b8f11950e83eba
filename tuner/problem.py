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
LONG = 1.0  # a run as long as AdamW's average reaches back


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
        timescale: whether the surrogate sees weight decay as lr x weight_decay, the rate of AdamW's average over its
            updates, on which alone a long run depends (Wang and Aitchison 2024; Li et al. 2025); a short one depends on
            the two apart. None: where steps are an axis and the middle of the space has a target run of more than LONG
            times 1 / (lr x weight_decay).
    """

    space: SearchSpace
    target: Scale
    proxies: tuple[Scale, ...]
    base: Scale
    parametrization: Parametrization
    cost: Callable[[Params, Scale], float] = field(compare=False)
    timescale: bool | None = None

    def __post_init__(self) -> None:
        check_axes(self.target, (*self.proxies, self.base))
        listed = sorted(self.proxies, key=lambda scale: [scale[axis] for axis in self.target])
        object.__setattr__(self, "proxies", tuple(listed))  # in what order they are said must change no proposal
        if self.timescale and not self._rate_and_decay:
            raise BadInput(
                "timescale: needs one hyperparameter of role lr and one of role weight_decay, both on log ranges, got "
                f"{', '.join(self.space)}; add role= and log, or leave timescale out"
            )

    @property
    def _rate_and_decay(self) -> tuple[str, str] | None:
        """The names of the learning rate and the weight decay, if there is one of each and both have logarithms."""
        found = [[n for n in self.space if self.space.role(n) == role] for role in ("lr", "weight_decay")]
        if any(len(names) != 1 or not getattr(self.space[names[0]], "log", False) for names in found):
            return None
        return found[0][0], found[1][0]

    @cached_property
    def _sums(self) -> tuple[tuple[int, int, float], ...]:
        """Of the frame: weight decay as lr x weight_decay where that is what matters."""
        if self.timescale is False or self._rate_and_decay is None:
            return ()
        lr, decay = self._rate_and_decay
        if self.timescale is None:
            middle = self.to_raw(self.space.middle, self.target)
            if self.target.get("steps", 0.0) * float(middle[lr]) * float(middle[decay]) <= LONG:
                return ()
        names = list(self.space)
        return ((names.index(decay), names.index(lr), self.nats(lr) / self.nats(decay)),)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The axes along which some proxy differs from the target."""
        return tuple(a for a in self.target if any(p[a] != self.target[a] for p in self.proxies))

    def run_cost(self, scale: Scale) -> float:
        """Of a run at a scale, in the middle of the space."""
        return self.cost(self.space.middle, scale)

    @cached_property
    def cheapest(self) -> Scale:
        """The proxy whose run costs least."""
        return min(self.proxies, key=self.run_cost)

    @cached_property
    def frame(self) -> Frame:
        beliefs = [
            [self.parametrization.belief(self.space, name, axis, self.target) for axis in self.axes]
            for name in self.space
        ]
        table = torch.tensor(beliefs, dtype=DTYPE).reshape(len(self.space), len(self.axes), 2)
        for j, i, _ in self._sums:
            table[j, :, 0] += table[i, :, 0]  # a product moves by the sum of what is believed; as surely as its part
        nats = torch.tensor([self.nats(name) for name in self.space], dtype=DTYPE)[:, None]
        choices = torch.tensor([len(d.choices) if isinstance(d, Categorical) else 0 for d in self.space.values()])
        reach = [max((math.log(p[a] / self.target[a]) for p in self.proxies), key=abs) for a in self.axes]
        endless = torch.tensor([self.parametrization.endless(axis) for axis in self.axes], dtype=DTYPE)
        return Frame(
            choices, torch.tensor(reach, dtype=DTYPE), table[..., 0] / nats, table[..., 1] / nats, endless, self._sums
        )

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
