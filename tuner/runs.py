"""Recorded runs: a table (CSV or Parquet) read row by row, as the study file names its columns.

A row is a run when nothing that it must say is missing and its hyperparameters lie inside the space; the others are
dropped and counted. A loss that is not finite, or that the study file says so of, is that of a diverged run.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tuner.errors import BadInput, is_number
from tuner.expression import Cell, Expression, Row, parse
from tuner.scale import CostLaw, Scale
from tuner.space import Categorical, Dimension, Int, Params, SearchSpace, Value, suggestion

if TYPE_CHECKING:
    from tuner.studyfile import RunsSection, ScaleSection

SAME = 0.01  # relative: values of an axis that are one
EDGE = 1e-6  # of a range: a bound that was rounded when the table was written still holds its runs
FEWEST, LARGEST = 5, 100_000  # usable rows
MISSING = ("", "NA", "N/A", "null", "NULL")
BATCH = 10_000  # rows of a Parquet file that are held at once


@dataclass(frozen=True)
class Run:
    """One usable row: raw hyperparameters at a scale; loss: infinite when the run diverged; cost: above zero."""

    params: Params
    scale: Scale
    loss: float
    cost: float


@dataclass(frozen=True)
class Table:
    """The usable rows of a table, in its order.

    Args:
        dropped: why -> how many rows.
        priced: the cost expression where it reads nothing but axes; None where it reads more.
    """

    runs: tuple[Run, ...]
    dropped: Mapping[str, int]
    priced: Expression | None

    @cached_property
    def scales(self) -> tuple[Scale, ...]:
        """Those that rows have, by the cost of a run."""
        return tuple(sorted({run.scale for run in self.runs}, key=self.cost_at))

    @cached_property
    def _typical(self) -> dict[Scale, float]:
        costs: dict[Scale, list[float]] = {}
        for run in self.runs:
            costs.setdefault(run.scale, []).append(run.cost)
        return {scale: median(values) for scale, values in costs.items()}

    @cached_property
    def _law(self) -> CostLaw:
        return CostLaw.fit([run.scale for run in self.runs], [run.cost for run in self.runs], doubt=1e-6)

    def cost_at(self, scale: Scale) -> float:
        """Of a run at a scale: that of its rows, or what the expression says there, or a law fitted to the rows."""
        if scale in self._typical:
            return self._typical[scale]
        return _above_zero(self.priced(scale), self.priced, f"at {scale}") if self.priced else self._law(scale)

    def cost(self, params: Params, scale: Scale) -> float:
        """`cost_at`, of any hyperparameters."""
        return self.cost_at(scale)

    def within(self, space: SearchSpace, moved: Callable[[Params, Scale], Params] = lambda params, at: params) -> Table:
        """The rows whose hyperparameters lie inside the space; the others are dropped.

        Args:
            moved: raw hyperparameters at a scale -> those that the space is of.
        """
        inside = tuple(run for run in self.runs if _inside(space, moved(run.params, run.scale)))
        dropped = Counter(self.dropped)
        dropped["outside the space"] += len(self.runs) - len(inside)
        return replace(self, runs=inside, dropped=dict(+dropped))

    def check(self, space: SearchSpace) -> None:
        """Raises BadInput where there are fewer than 5 rows, or a hyperparameter is constant."""
        if len(self.runs) < FEWEST:
            why = "".join(f", {count} {reason}" for reason, count in self.dropped.items())
            raise BadInput(f"runs: at least {FEWEST} usable rows are needed, got {len(self.runs)}{why}; add runs")
        for name in space:
            if len({run.params[name] for run in self.runs}) == 1:
                raise BadInput(
                    f"space.{name}: a hyperparameter must vary, every usable row has {self.runs[0].params[name]!r}; "
                    "leave it out of [space] or add runs with other values"
                )


def _inside(space: SearchSpace, params: Params) -> bool:
    try:
        places = space.encode(params)
    except BadInput:  # zero on a log range
        return False
    return bool(((places >= -EDGE) & (places <= 1 + EDGE)).all())


def read_table(section: RunsSection, folder: Path, space: SearchSpace, scale: ScaleSection) -> Table:
    """The rows of a study file's [runs], wherever in the space they lie.

    Raises:
        BadInput: a file that cannot be read, a column that is not there, an expression outside the grammar, a cost
            that is not above zero, or more than 100 000 rows.
    """
    path = folder / section.path
    with _opened(path) as (columns, rows):
        reader = _Reader(section, columns, space, scale)
        runs = []
        for number, row in enumerate(rows, 1):
            run = reader.run(row, number)
            if run is not None:
                runs.append(run)
            if len(runs) > LARGEST:
                raise BadInput(f"runs: at most {LARGEST} usable rows are read, {path.name} has more; narrow runs.where")
    return Table(tuple(runs), dict(reader.dropped), reader.priced)


class _Reader:
    """Rows -> runs, by the columns and expressions of a study file."""

    def __init__(self, section: RunsSection, columns: list[str], space: SearchSpace, scale: ScaleSection) -> None:
        self.dropped: Counter[str] = Counter()
        self._space, self._target = space, Scale(scale.target)
        for key, axes in (("proxies", scale.proxies or {}), ("base", scale.base or {})):
            for axis in axes:
                if axis not in self._target:
                    raise BadInput(f"scale.{key}: the target has no axis {axis!r}; {suggestion(axis, self._target)}")
        for name in [*space, *self._target]:
            if name not in columns:
                raise BadInput(f"runs: the table has no column {name!r}; {suggestion(name, columns)}")
        self._known = {axis: sorted(scale.named(axis)) for axis in self._target}
        self._loss = _column("runs.loss", section.loss, columns)
        self._cost = _column("runs.cost", section.cost, columns)
        self._where = section.where and _column("runs.where", section.where, columns)
        self._blown = section.diverged and _column("runs.diverged", section.diverged, columns)
        self.priced = self._cost if self._cost.columns <= set(self._target) else None

    def run(self, row: Row, number: int) -> Run | None:
        """The run that a row says; None where it is filtered out or dropped."""
        kept = _flag("where", self._where, row, number) if self._where else True
        if kept is False:
            return None
        cost, blown = self._cost(row), _flag("diverged", self._blown, row, number) if self._blown else False
        if any(_is_missing(row[name]) for name in self._cost.columns):
            cost = None
        axes, cells = {a: row[a] for a in self._target}, {name: row[name] for name in self._space}
        loss = math.inf if blown else self._loss(row)
        missing = kept is None or blown is None or cost is None
        if missing or loss is None or any(map(_is_missing, (*axes.values(), *cells.values()))):
            self.dropped["with a missing value"] += 1
            return None
        if not is_number(loss):
            raise BadInput(f"runs.loss: must be a number, got {loss!r} in row {number}; name another column")
        params = {name: _value(self._space[name], cell) for name, cell in cells.items()}
        if any(value is None for value in params.values()):
            self.dropped["with a value that the space cannot have"] += 1
            return None
        return Run(
            params=params,  # type: ignore[arg-type]
            scale=self._scale(axes, number),
            loss=float(loss) if math.isfinite(float(loss)) else math.inf,
            cost=_above_zero(cost, self._cost, f"in row {number}"),
        )

    def _scale(self, axes: Mapping[str, Cell], number: int) -> Scale:
        """Of values within 1 % of each other, the one that the study file names, or else the first."""
        try:
            scale = Scale(axes)  # type: ignore[arg-type]
        except BadInput as error:
            raise BadInput(f"runs: row {number}: {error}") from None
        return Scale({axis: _matched(value, self._known[axis]) for axis, value in scale.items()})


def _matched(value: float, known: list[float]) -> float:
    """The nearest of the known values, in order, if it is one with this; which is known from now on if none is."""
    place = bisect(known, value)
    nearest = min(known[max(place - 1, 0) : place + 1], key=lambda other: abs(other - value))
    if abs(nearest - value) <= SAME * abs(nearest):
        return nearest
    known.insert(place, value)
    return value


def _flag(key: str, said: Expression, row: Row, number: int) -> bool | None:
    """Whether a row is so; None where a value is missing."""
    value = said(row)
    if _is_missing(value):
        return None
    if value in (0, 1):
        return bool(value)
    raise BadInput(
        f"runs.{key}: must be true or false (or 1 or 0), {said.text!r} is {value!r} in row {number}; write a comparison"
    )


def _column(key: str, text: str, columns: list[str]) -> Expression:
    try:
        return parse(text, columns)
    except BadInput as error:
        raise BadInput(f"{key}: {error}") from None


def _is_missing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _above_zero(cost: Cell, said: Expression, where: str) -> float:
    if not (is_number(cost) and 0 < cost < math.inf):  # type: ignore[operator]
        raise BadInput(f"runs.cost: must be a finite number above zero, {said.text!r} is {cost!r} {where}; correct it")
    return float(cost)  # type: ignore[arg-type]


def _value(dimension: Dimension, cell: Cell) -> Value | None:
    """A cell as a value of a hyperparameter; None where it cannot be one."""
    if isinstance(dimension, Categorical):
        said = getattr(cell, "text", str(cell))
        if said in dimension.choices:
            return said
        said = said.lower()
        return next((c for c in dimension.choices if (c.lower() == said if isinstance(c, str) else c == cell)), None)
    if not is_number(cell):
        return None
    value = float(cell)  # type: ignore[arg-type]
    if not isinstance(dimension, Int):
        return value
    return int(value) if value.is_integer() else None


# Files


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Iterator[Row]]]:
    """Columns and rows of a file, by its ending; rows are read as they are asked for."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise BadInput(f"runs.path: {str(path)!r} cannot be read: {error.strerror}; check the path") from None
    parquet = path.suffix.lower() in (".parquet", ".pq")
    try:
        with _parquet(path) if parquet else _csv(path) as opened:
            yield opened
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"runs.path: {str(path)!r} is not CSV in UTF-8: {error}; correct it") from None


@contextmanager
def _csv(path: Path) -> Iterator[tuple[list[str], Iterator[Row]]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        if not any(columns):
            raise BadInput(f"runs.path: {str(path)!r} has no header; write the names of the columns in its first line")
        if len(columns) == 1 and {";", "\t"} & set(columns[0]):
            raise BadInput(
                f"runs.path: {str(path)!r} must have commas between its columns, got {columns[0]!r}; write it so"
            )
        _check_names(path, columns)
        yield columns, ({name: _cell(text) for name, text in line.items()} for line in reader)


def _check_names(path: Path, columns: list[str]) -> None:
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise BadInput(
            f"runs.path: {str(path)!r} has {twice[0]!r} twice; every column needs a name of its own: rename one"
        )


class _Number(float):
    """A number of a CSV file, and how it is written there: a choice "01" is not 1."""

    text: str


def _cell(text: Any) -> Cell:
    """Of a CSV file: empty is missing; what reads as a number or a truth value is one."""
    if not isinstance(text, str) or (text := text.strip()) in MISSING:
        return None
    try:
        number = _Number(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)
    number.text = text
    return number


@contextmanager
def _parquet(path: Path) -> Iterator[tuple[list[str], Iterator[Row]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            _check_names(path, columns)
            yield columns, (row for batch in file.iter_batches(BATCH) for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"runs.path: {str(path)!r} is not Parquet: {error}; correct it") from None
