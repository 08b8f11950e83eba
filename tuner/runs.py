"""Recorded runs: a table (CSV or Parquet) read row by row, as the study file names its columns.

A row is a run when nothing that it must say is missing and its hyperparameters lie inside the space; the others are
dropped and counted. A loss that is not finite, or that the study file says so of, is that of a diverged run.
"""

from __future__ import annotations

import csv
import math
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
from tuner.space import Categorical, Dimension, Int, Params, SearchSpace, Value

if TYPE_CHECKING:
    from tuner.studyfile import RunsSection, ScaleSection

SAME = 0.01  # relative: values of an axis that are one
EDGE = 1e-6  # of a range: a bound that was rounded when the table was written still holds its runs
FEWEST, MOST = 5, 100_000  # usable rows
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
        return CostLaw.fit([run.scale for run in self.runs], [run.cost for run in self.runs])

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
            if len(runs) > MOST:
                raise BadInput(f"runs: at most {MOST} usable rows are read, {path.name} has more; narrow runs.where")
    return Table(tuple(runs), dict(reader.dropped), reader.priced)


class _Reader:
    """Rows -> runs, by the columns and expressions of a study file."""

    def __init__(self, section: RunsSection, columns: list[str], space: SearchSpace, scale: ScaleSection) -> None:
        self.dropped: Counter[str] = Counter()
        self._space, self._target = space, Scale(scale.target)
        self._named = {name: _column("space", name, columns) for name in space}
        self._axes = {axis: _column("scale.target", axis, columns) for axis in self._target}
        self._written = {axis: scale.named(axis) for axis in self._target}
        self._loss = _column("runs.loss", section.loss, columns)
        self._cost = _column("runs.cost", section.cost, columns)
        self._where = section.where and _column("runs.where", section.where, columns)
        self._blown = section.diverged and _column("runs.diverged", section.diverged, columns)
        self.priced = self._cost if self._cost.columns <= set(self._target) else None

    def run(self, row: Row, number: int) -> Run | None:
        """The run that a row says; None where it is filtered out or dropped."""
        if self._where and not self._where(row):
            return None
        loss, cost = self._loss(row), self._cost(row)
        blown = self._blown(row) if self._blown else False
        axes = {axis: of(row) for axis, of in self._axes.items()}
        cells = {name: of(row) for name, of in self._named.items()}
        if any(_is_missing(cell) for cell in (cost, blown, *axes.values(), *cells.values())) or loss is None:
            self.dropped["with a missing value"] += 1
            return None
        if not is_number(loss):
            raise BadInput(f"runs.loss: must be a number, got {loss!r} in row {number}; name another column")
        at = self._scale(axes, number)
        params = {name: _value(self._space[name], cell) for name, cell in cells.items()}
        if any(value is None for value in params.values()):
            self.dropped["outside the space"] += 1
            return None
        return Run(
            params=params,  # type: ignore[arg-type]
            scale=at,
            loss=float(loss) if math.isfinite(float(loss)) and not blown else math.inf,
            cost=_above_zero(cost, self._cost, f"in row {number}"),
        )

    def _scale(self, axes: Mapping[str, Cell], number: int) -> Scale:
        """Where the study file names a value within 1 %, that one."""
        try:
            scale = Scale(axes)  # type: ignore[arg-type]
        except BadInput as error:
            raise BadInput(f"runs: row {number}: {error}") from None
        return Scale({axis: _matched(value, self._written[axis]) for axis, value in scale.items()})


def _matched(value: float, named: list[float]) -> float:
    nearest = min(named, key=lambda other: abs(other - value))
    return nearest if abs(nearest - value) <= SAME * abs(nearest) else value


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
        as_text = f"{cell:g}" if isinstance(cell, float) else str(cell)
        return next((c for c in dimension.choices if c == cell or (isinstance(c, str) and c == as_text)), None)
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
        columns = [*(reader.fieldnames or [])]
        if not columns:
            raise BadInput(f"runs.path: {str(path)!r} has no header; write the names of the columns in its first line")
        yield columns, ({name: _cell(text) for name, text in line.items()} for line in reader)


def _cell(text: Any) -> Cell:
    """Of a CSV file: empty is missing; what reads as a number or a truth value is one."""
    if not text or not isinstance(text, str):
        return None
    try:
        return float(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)


@contextmanager
def _parquet(path: Path) -> Iterator[tuple[list[str], Iterator[Row]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(BATCH)
            yield file.schema_arrow.names, (row for batch in batches for row in batch.to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise BadInput(f"runs.path: {str(path)!r} is not Parquet: {error}; correct it") from None
