"""Scale: how large a training run is, as named positive numbers; and the cost law learned from runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from tuner.errors import BadInput

LARGEST = 1e100  # far above any network, and its square is a float


class Scale(Mapping[str, float]):
    """A frozen mapping of axes (width, depth, batch_size, steps, tokens, params, ...) to positive numbers.

    Equal whatever the order of the axes; hashable; whole numbers stay integers.

    Raises:
        BadInput: no axis, or a value that is not a finite number above zero.
    """

    __slots__ = ("_axes",)

    def __init__(self, axes: Mapping[str, float] | None = None, /, **named: float) -> None:
        axes = {**(axes or {}), **named}
        if not axes:
            raise BadInput("Scale: at least one axis is needed, got none; write Scale(width=1024)")
        for axis, value in axes.items():
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if not number or not 0 < value <= LARGEST:
                raise BadInput(f"Scale: {axis} must be a finite number above zero, got {value!r}; correct it")
        self._axes = {a: int(v) if float(v).is_integer() else float(v) for a, v in sorted(axes.items())}

    def __getitem__(self, axis: str) -> float:
        return self._axes[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._axes)

    def __len__(self) -> int:
        return len(self._axes)

    def __hash__(self) -> int:
        return hash(tuple(self._axes.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._axes == (other._axes if isinstance(other, Scale) else dict(other))

    def __repr__(self) -> str:
        return f"Scale({', '.join(f'{a}={v:g}' if v > 1e9 else f'{a}={v}' for a, v in self._axes.items())})"

    def __str__(self) -> str:
        return ", ".join(f"{a} {v:g}" if v > 1e6 else f"{a} {v}" for a, v in self._axes.items())

    def __reduce__(self) -> tuple[Any, ...]:
        return (Scale, (dict(self._axes),))

    def ratio(self, base: Scale) -> dict[str, float]:
        """axis / base axis, for every axis of this scale."""
        return {axis: value / base[axis] for axis, value in self._axes.items()}


def by_scale(scales: Iterable[Scale]) -> dict[Scale, list[int]]:
    """Where in a list each scale stands."""
    places: dict[Scale, list[int]] = {}
    for i, scale in enumerate(scales):
        places.setdefault(scale, []).append(i)
    return places


def grid(axes: Mapping[str, Sequence[float]]) -> list[Scale]:
    """Every combination of the values of the axes."""
    return [Scale(dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


def ladder(low: float, high: float) -> list[float]:
    """A range as a geometric ladder, low to high by steps of at most 2."""
    if not 0 < low < high:
        raise BadInput(f"scale: a range needs 0 < low < high, got low={low}, high={high}; correct it")
    rungs = math.ceil(math.log2(high / low) - 1e-9) + 1
    values = np.geomspace(low, high, rungs)
    return [float(round(v)) if low == round(low) and high == round(high) else float(v) for v in values]


@dataclass(frozen=True)
class CostLaw:
    """ln cost = c + sum_a r_a ln axis: cost of a run at a scale, learned from runs; r = 2 for width at fixed steps."""

    intercept: float
    exponents: Mapping[str, float]

    def __call__(self, scale: Mapping[str, float]) -> float:
        return math.exp(self.intercept + sum(r * math.log(scale[a]) for a, r in self.exponents.items()))

    @staticmethod
    def fit(scales: Sequence[Scale], costs: Sequence[float], doubt: float = 1.0) -> CostLaw:
        """Least squares in logs, each exponent shrunk to 1 by a pseudo-run `doubt` nats away: one scale is enough.

        1 because small networks are bound by overhead: their time grows slower than their arithmetic.
        """
        axes = list(scales[0])
        logs = np.array([[math.log(s[a]) for a in axes] for s in scales])
        target = np.log(np.asarray(costs, dtype=float))
        centre = logs.mean(0)
        left = np.vstack([logs - centre, doubt * np.eye(len(axes))])
        right = np.concatenate([target - target.mean(), doubt * np.ones(len(axes))])
        exponents = np.linalg.lstsq(left, right, rcond=None)[0]
        return CostLaw(float(target.mean() - centre @ exponents), dict(zip(axes, map(float, exponents), strict=True)))
