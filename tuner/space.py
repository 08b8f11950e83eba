"""Hyperparameters and their ranges: named values <-> the unit cube.

One hyperparameter is one coordinate u in [0, 1]. Notation:

| symbol | meaning                                                              |
|--------|----------------------------------------------------------------------|
| v      | value, as the training function receives it                          |
| z      | v or ln v (log ranges): the line on which distance is measured       |
| u      | (z - z_low) / (z_high - z_low), in [0, 1] inside the range           |

An integer owns the interval [v - 1/2, v + 1/2], so every integer of a range has its share of the cube; choice i
of k categories owns [i/k, (i+1)/k]. `decode` rounds to 12 significant digits: `decode(encode(v)) == v` holds
exactly for every integer, every category and every float of at most 12 significant digits (on a linear range, counted
from the first digit of the larger bound: what is smaller is lost against it).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import BadInput

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = float | int | str | bool
Params = Mapping[str, Value]

SIGNIFICANT_DIGITS = 12


def rounded(value: float) -> float:
    """The value with 12 significant digits."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, for an error message."""
    known = list(known)
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(map(repr, known))}"


@dataclass(frozen=True)
class _Range:
    low: float
    high: float
    log: bool = False
    role: str | None = None

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for bound in (self.low, self.high):
            if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not math.isfinite(bound):
                raise BadInput(f"{kind}: bounds must be finite numbers, got {bound!r}; give low and high as numbers")
        if self.low >= self.high:
            raise BadInput(f"{kind}: low must be below high, got low={self.low}, high={self.high}; widen the range")
        if self.log and self.low <= 0:
            raise BadInput(f"{kind}: a log range must stay above zero, got low={self.low}; raise low or set log=false")

    def _line(self, value: float) -> float:
        return math.log(value) if self.log else float(value)

    @property
    def _ends(self) -> tuple[float, float]:
        return self._line(self.low), self._line(self.high)

    @property
    def nats(self) -> float:
        """Length of the range, in nats; a linear range has no natural unit and counts as 5 nats."""
        low, high = self._ends
        return high - low if self.log else 5.0

    def encode(self, value: Any) -> float:
        """Coordinate of a value; values outside the range land outside [0, 1]."""
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
            raise BadInput(f"a value must be a finite number, got {value!r}")
        if self.log and value <= 0:
            raise BadInput(f"a value of a log range must be above zero, got {value!r}")
        low, high = self._ends
        return (self._line(float(value)) - low) / (high - low)

    def encode_all(self, values: Sequence[Any]) -> NDArray[np.float64]:
        """The same of many good values, (n,)."""
        line = np.asarray(values, dtype=float)
        low, high = self._ends
        return ((np.log(line) if self.log else line) - low) / (high - low)

    def _value(self, u: float) -> float:
        low, high = self._ends
        z = low + min(max(u, 0.0), 1.0) * (high - low)
        return math.exp(z) if self.log else z


@dataclass(frozen=True)
class Float(_Range):
    """A real hyperparameter in [low, high], searched on a linear or a log line.

    Args:
        low, high: bounds, in raw units at the base scale.
        log: search ln(value).
        role: what it is to the parametrization ("lr", "weight_decay", ...); its name says it unless given.

    Raises:
        BadInput: low >= high, a bound not finite, or a log range that touches zero.
    """

    def decode(self, u: float) -> float:
        value = self._value(u)
        if not self.log:  # 1e-17 between -1 and 1 is rounding, and means 0
            value = round(value, SIGNIFICANT_DIGITS - math.floor(math.log10(max(abs(self.low), abs(self.high)))))
        return min(max(rounded(value), float(self.low)), float(self.high))


@dataclass(frozen=True)
class Int(_Range):
    """An integer hyperparameter in {low, ..., high}, searched on a linear or a log line.

    Between encode and decode an integer may be a fraction: in base coordinates a batch size of 48 at one scale can
    be 67.9 at another.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if int(self.low) != self.low or int(self.high) != self.high:
            raise BadInput(f"Int: bounds must be integers, got low={self.low}, high={self.high}; use Float for reals")

    @property
    def _ends(self) -> tuple[float, float]:
        return self._line(self.low - 0.5), self._line(self.high + 0.5)

    def decode(self, u: float) -> int:
        return int(min(max(round(self._value(u)), self.low), self.high))


@dataclass(frozen=True)
class Categorical:
    """One of finitely many choices (strings, numbers or booleans) without order.

    Raises:
        BadInput: fewer than two choices, or a choice given twice.
    """

    choices: tuple[Value, ...]
    role: str | None = None

    def __post_init__(self) -> None:
        plain = isinstance(self.choices, Iterable) and not isinstance(self.choices, str)
        if not (plain and all(isinstance(choice, (str, int, float)) for choice in self.choices)):
            raise BadInput(f"Categorical: choices must be texts, numbers or booleans, got {self.choices!r}; list them")
        object.__setattr__(self, "choices", tuple(self.choices))
        if len(self.choices) < 2:
            raise BadInput(
                f"Categorical: at least two choices are needed, got {list(self.choices)}; add one, or leave it to the "
                "objective"
            )
        if len(set(self.choices)) < len(self.choices):  # 1, 1.0 and True are one choice
            raise BadInput(f"Categorical: choices must differ, got {list(self.choices)}; remove the repeated one")

    def encode(self, value: Any) -> float:
        if value not in self.choices:
            raise BadInput(f"a value must be one of {list(self.choices)}, got {value!r}")
        return (self.choices.index(value) + 0.5) / len(self.choices)

    def encode_all(self, values: Sequence[Any]) -> NDArray[np.float64]:
        """The same of many good values, (n,)."""
        places = {choice: self.encode(choice) for choice in self.choices}
        return np.array([places[value] for value in values])

    def decode(self, u: float) -> Value:
        return self.choices[min(max(int(u * len(self.choices)), 0), len(self.choices) - 1)]


Dimension = Float | Int | Categorical


class SearchSpace(Mapping[str, Dimension]):
    """Named hyperparameters; iteration order is the order of the cube's coordinates.

    Raises:
        BadInput: no hyperparameter, or a value that is not Float, Int or Categorical.
    """

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        if not isinstance(dimensions, Mapping):
            raise BadInput(f"space: must map names to Float, Int or Categorical, got {dimensions!r}; correct it")
        if not dimensions:
            raise BadInput("space: at least one hyperparameter is needed, got none; add one")
        for name, dimension in dimensions.items():
            if not isinstance(dimension, (Float, Int, Categorical)):
                raise BadInput(f"space.{name}: must be Float, Int or Categorical, got {dimension!r}")
        self._dimensions = dict(dimensions)

    def __getitem__(self, name: str) -> Dimension:
        return self._dimensions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dimensions)

    def __len__(self) -> int:
        return len(self._dimensions)

    def __repr__(self) -> str:
        return f"SearchSpace({self._dimensions!r})"

    def role(self, name: str) -> str:
        """What a hyperparameter is to the parametrization."""
        return self[name].role or name

    @property
    def middle(self) -> dict[str, Value]:
        """The values at the centre of the cube."""
        return self.decode([0.5] * len(self))

    def check(self, params: Params) -> None:
        """Raise BadInput unless the names are exactly the space's and each value is of its kind."""
        for name in params:
            if name not in self._dimensions:
                raise BadInput(f"params: unknown hyperparameter {name!r}; {suggestion(name, self)}")
        for name, dimension in self._dimensions.items():
            if name not in params:
                raise BadInput(f"params: {name!r} is missing; every hyperparameter of the space needs a value")
            try:
                dimension.encode(params[name])
            except BadInput as error:
                raise BadInput(f"params.{name}: {error}") from None

    def encode(self, params: Params) -> NDArray[np.float64]:
        """Values -> coordinates (d,). Raises BadInput as `check` does."""
        self.check(params)
        return np.array([dimension.encode(params[name]) for name, dimension in self._dimensions.items()])

    def encode_all(self, many: Sequence[Params]) -> NDArray[np.float64]:
        """The same of many, (n, d), which must be known to be good."""
        columns = [self[name].encode_all([params[name] for params in many]) for name in self]
        return np.stack(columns, 1)

    def decode(self, u: Iterable[float]) -> dict[str, Value]:
        """Coordinates (d,) -> values inside the ranges; coordinates outside [0, 1] are moved to its edge."""
        return {name: d.decode(float(c)) for (name, d), c in zip(self._dimensions.items(), u, strict=True)}


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna names it."""
    from optuna import distributions  # half a second, which those who only name a space need not spend

    if isinstance(dimension, Categorical):
        return distributions.CategoricalDistribution(dimension.choices)
    if isinstance(dimension, Int):
        return distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def dimension(d: BaseDistribution, role: str | None = None) -> Dimension:
    """The inverse; a step is left to whoever rounds to it. Raises BadInput as the dimensions do."""
    from optuna import distributions

    if isinstance(d, distributions.CategoricalDistribution):
        return Categorical(d.choices, role)  # type: ignore[arg-type]
    if isinstance(d, distributions.IntDistribution):
        return Int(d.low, d.high, d.log, role)
    assert isinstance(d, distributions.FloatDistribution)
    return Float(d.low, d.high, d.log, role)
