"""Slopes: how what was measured of models goes with their scale, and what that says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tuner.errors import BadInput
from tuner.mup.growth import DEPTH, pattern
from tuner.mup.probe import LOGITS
from tuner.scale import Scale

WRONG = 0.5  # the smallest power that is wrong
TOLERANCE = WRONG / 2
LEVEL = 0.9  # of the intervals of slopes
OF_TENSORS = ("effect", "decay", "norm")
NEGLIGIBLE = 1e-3  # an effect below this share of its module's output at the smallest scale says nothing


@dataclass(frozen=True)
class Measured:
    """One number of one training run: `value` of a quantity, of a module or tensor (of so many entries), at a scale."""

    name: str
    quantity: str
    scale: Scale
    value: float
    entries: int = 0  # of the activation; of logits, of a query


@dataclass(frozen=True)
class Slope:
    """d ln(value) / d ln(axis), with its 90 % interval; what it may be, lowest to highest; and what that says."""

    name: str
    quantity: str
    axis: str
    slope: float
    low: float
    high: float
    lowest: float
    highest: float

    @property
    def wrong(self) -> float:
        """How far it is from what it may be."""
        return max(self.slope - self.highest, self.lowest - self.slope, 0.0)

    @property
    def verdict(self) -> str:
        if self.quantity == "loss":
            return "undetermined" if self.low > 0 else "pass"
        if self.low > self.highest + TOLERANCE or self.high < self.lowest - TOLERANCE:
            return "fail"
        settled = self.high < self.highest + WRONG and self.low > self.lowest - WRONG
        return "pass" if self.wrong <= TOLERANCE and settled else "undetermined"

    def __str__(self) -> str:
        ends = f"{self.low:.2f} .. {self.high:.2f}"
        must = f" and must fall as {self.axis}^{self.highest:g}" if self.highest < 0 else ""
        return f"{self.quantity} of {self.name} goes as {self.axis}^{self.slope:.2f} ({ends}){must}"


def varied(scales: Sequence[Scale]) -> list[str]:
    """The axes along which scales differ.

    Raises:
        BadInput: axes that only vary together.
    """
    axes = [axis for axis in scales[0] if len({scale[axis] for scale in scales}) > 1]
    logs = np.array([[1.0, *(math.log(scale[axis]) for axis in axes)] for scale in scales])
    if np.linalg.matrix_rank(logs) < logs.shape[1]:
        raise BadInput(f"coordinate_check: {' and '.join(axes)} vary together; vary each at one value of the others")
    return axes


def slopes(measured: Sequence[Measured], axes: Sequence[str]) -> Iterator[Slope]:
    """One for each name, quantity and axis, in the order in which the model computes."""
    repeated = _repeated(measured) if DEPTH in axes else set()
    groups: dict[tuple[str, str], list[Measured]] = {}
    for m in measured:
        groups.setdefault((common(m.name, repeated), m.quantity), []).append(m)
    place = {name: k for k, name in enumerate(dict.fromkeys(name for name, _ in groups))}
    sizes = {name: _at_smallest(found) for (name, quantity), found in groups.items() if quantity == "size"}
    for (name, quantity), found in sorted(groups.items(), key=lambda item: place[_owner(item[0], place)]):
        if quantity.startswith("effect") and _at_smallest(found) < NEGLIGIBLE * sizes.get(name.rpartition(".")[0], 0.0):
            continue
        for axis, (slope, low, high) in _fitted(found, axes).items():
            if axis != DEPTH or not _inside_a_block(name, quantity):
                yield Slope(name, quantity, axis, slope, low, high, *_allowed(name, quantity, axis, found))


def common(name: str, repeated: set[str]) -> str:
    """The name of all that is repeated over depth; of everything else its own."""
    return pattern(name) if pattern(name) in repeated else name


def _repeated(measured: Sequence[Measured]) -> set[str]:
    """The patterns of which deeper models have more."""
    found: dict[str, dict[float, set[str]]] = {}
    for m in measured:
        found.setdefault(pattern(m.name), {}).setdefault(m.scale[DEPTH], set()).add(m.name)
    return {name for name, depths in found.items() if len({len(names) for names in depths.values()}) > 1}


def _owner(key: tuple[str, str], place: Mapping[str, int]) -> str:
    """The module that a quantity is of: of a tensor, the one that has it."""
    name, quantity = key
    owner = name.rpartition(".")[0]
    return owner if quantity.startswith(OF_TENSORS) and owner in place else name


def _at_smallest(found: Sequence[Measured]) -> float:
    smallest = [m.value for m in found if m.scale == found[0].scale]
    return math.fsum(smallest) / len(smallest)


def _inside_a_block(name: str, quantity: str) -> bool:
    """What is repeated over depth, but for what a whole block gives out."""
    return "*." in name or (quantity.startswith(OF_TENSORS) and "*" in name)


def _fitted(found: Sequence[Measured], axes: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Least squares of ln(value) in ln(axes) together: slopes with intervals; none where too few values are positive.

    Params grow as the square of the width, whose power is wanted.
    """
    usable = [m for m in found if m.value > 0 and math.isfinite(m.value)]
    if len({m.scale for m in usable}) < 3:
        return {}
    x = np.array([[1.0, *((0.5 if a == "params" else 1.0) * math.log(m.scale[a]) for a in axes)] for m in usable])
    y = np.log([m.value for m in usable])
    if np.linalg.matrix_rank(x) < x.shape[1] or len(y) <= x.shape[1]:
        return {}
    inverse = np.linalg.inv(x.T @ x)
    fitted = inverse @ x.T @ y
    freedom = len(y) - x.shape[1]
    deviations = np.sqrt(np.square(y - x @ fitted).sum() / freedom * np.diag(inverse))
    reach = stats.t.ppf(0.5 + LEVEL / 2, freedom) * deviations
    ends = fitted, fitted - reach, fitted + reach
    return {axis: (float(ends[0][k]), float(ends[1][k]), float(ends[2][k])) for k, axis in enumerate(axes, 1)}


def _allowed(name: str, quantity: str, axis: str, found: Sequence[Measured]) -> tuple[float, float]:
    """The powers that are right, by the table above."""
    grows = len({m.entries for m in found}) > 1
    if name.rpartition(".")[2] == LOGITS:
        return -math.inf, -WRONG if grows and quantity == "size at the start" and axis != DEPTH else 0.0
    if quantity.startswith("norm"):
        return -math.inf, math.inf
    falls = quantity in ("loss", "effect through others") or (quantity.startswith("size") and not grows)
    return -math.inf if falls else 0.0, 0.0
