"""The study file: TOML in, validated values out. Unknown keys are errors that name the nearest known one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tuner.errors import BadInput
from tuner.scale import Scale, grid, ladder
from tuner.space import Categorical, Dimension, Float, Int, SearchSpace, suggestion
from tuner.storage import sqlite_url


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadInput("must be a number")
    return value


def _tolerance(value: Any) -> Any:
    if value != "noise" and (isinstance(value, (bool, str)) or not isinstance(value, (int, float)) or value <= 0):
        raise BadInput('must be a relative regret above zero, or "noise"')
    return value


def _choice(value: Any) -> Any:
    if not isinstance(value, (str, bool, int, float)):
        raise BadInput("must be a string, a number or a boolean")
    return value


def _axis(value: Any) -> Any:
    numbers = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise BadInput("must be a number, a list of numbers, or { low = .., high = .. }")
    if isinstance(value, dict) and set(value) != {"low", "high"}:
        raise BadInput("a range has exactly low and high")
    return value


# One check before a union, so that a bad value gets one message and not one a member.
Number = Annotated[int | float, BeforeValidator(_number)]
Choice = Annotated[str | bool | int | float, BeforeValidator(_choice)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StudySection(_Section):
    name: str = Field(min_length=1)
    storage: str | None = None
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _on_disk(self) -> StudySection:
        if self.storage is not None and (self.storage == "sqlite://" or ":memory:" in self.storage):
            raise BadInput("storage must be on disk, so that the study can be resumed; name a file or leave it out")
        return self


class ObjectiveSection(_Section):
    call: str
    args: dict[str, Any] = {}
    cost: Literal["flops", "seconds"] = "flops"


class RunsSection(_Section):
    path: str
    loss: str = "loss"
    cost: str
    diverged: str | None = None
    where: str | None = None


class DimensionSection(_Section):
    low: Number | None = None
    high: Number | None = None
    log: bool = False
    type: Literal["float", "int"] = "float"
    choices: tuple[Choice, ...] | None = Field(None, strict=False)
    role: str | None = None

    @model_validator(mode="after")
    def _range_or_choices(self) -> DimensionSection:
        given = [name for name in ("low", "high", "choices") if getattr(self, name) is not None]
        if given not in (["low", "high"], ["choices"]):
            raise BadInput("give either low and high, or choices")
        if self.choices is not None and {"log", "type"} & self.model_fields_set:
            raise BadInput("log and type are of a range; leave them out beside choices")
        return self

    def dimension(self) -> Dimension:
        if self.choices is not None:
            return Categorical(self.choices, self.role)
        kind = Int if self.type == "int" else Float
        return kind(self.low, self.high, self.log, self.role)  # type: ignore[arg-type]


class RangeSection(_Section):
    low: Number
    high: Number


class ScaleSection(_Section):
    target: dict[str, Number]
    proxies: dict[str, Annotated[int | float | list[Number] | RangeSection, BeforeValidator(_axis)]] | None = None
    base: dict[str, Number] | None = None

    def proxy_scales(self) -> list[Scale]:
        """Every combination; an axis that only the target names stays at the target's value."""
        if not self.proxies:
            raise BadInput("scale.proxies: at least one axis is needed, got none; write for example { width = [64] }")
        axes: dict[str, list[float]] = {axis: [value] for axis, value in self.target.items()}
        for axis, value in self.proxies.items():
            if isinstance(value, RangeSection):
                axes[axis] = ladder(value.low, value.high)
            else:
                axes[axis] = list(value) if isinstance(value, list) else [value]
        return grid(axes)

    def named(self, axis: str) -> list[float]:
        """Every single value that the file writes for an axis."""
        proxies = (self.proxies or {}).get(axis, [])
        listed = proxies if isinstance(proxies, list) else [proxies] if isinstance(proxies, (int, float)) else []
        return [self.target[axis], *listed, *([self.base[axis]] if self.base and axis in self.base else [])]

    def is_proxy(self, scale: Scale) -> bool:
        """Whether `proxies` names a scale whose axes have the file's values; it names all where it is left out."""
        return self.proxies is None or all(
            0.99 * value.low <= scale[axis] <= 1.01 * value.high
            if isinstance(value := self.proxies.get(axis, self.target[axis]), RangeSection)
            else scale[axis] in (value if isinstance(value, list) else [value])
            for axis in scale
        )


class ParametrizationSection(_Section):
    preset: str | None = None
    exponents: dict[str, dict[str, Number]] = {}
    timescale: bool | None = None


class BudgetSection(_Section):
    target_runs: Annotated[Number, Field(gt=0)] = 0.25
    tolerance: Annotated[int | float | Literal["noise"], BeforeValidator(_tolerance)] | None = None
    retries: int = Field(2, ge=0)
    verify: bool = True


class StudyFile(_Section):
    """A whole study file. `path` is where it was read from; relative paths in it start there."""

    path: Path = Field(alias="<path>")  # no key that a file would have
    study: StudySection
    objective: ObjectiveSection | None = None
    runs: RunsSection | None = None
    space: dict[str, DimensionSection] | None = None
    scale: ScaleSection
    parametrization: ParametrizationSection = ParametrizationSection()
    budget: BudgetSection = Field(default_factory=lambda: BudgetSection.model_validate({}))

    @property
    def storage(self) -> str:
        """The record's URL: as given (a relative SQLite file is beside the study file), or `<name>.db` there."""
        given = self.study.storage
        if given is None:
            return sqlite_url(self.path.parent / f"{self.study.name}.db")
        if given.startswith("sqlite:///") and not given.startswith("sqlite:////"):
            return f"sqlite:///{self.path.parent / given.removeprefix('sqlite:///')}"
        return given

    @property
    def search_space(self) -> SearchSpace | None:
        """The [space] section; None: the objective's own."""
        return None if self.space is None else SearchSpace({name: s.dimension() for name, s in self.space.items()})


def read(path: str | Path) -> StudyFile:
    """Read a study file.

    Raises:
        BadInput: one line for the first thing that is wrong: a missing file, bad TOML, an unknown key, a bad value.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"study file: {str(path)!r} cannot be read: {error.strerror}; check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"study file: {str(path)!r} is not TOML: {error}; correct it") from None
    try:
        parsed = StudyFile.model_validate({**content, "<path>": path.resolve()})
    except ValidationError as error:
        raise BadInput(_first(error, path)) from None
    if parsed.objective is None and parsed.runs is None:
        raise BadInput(f"{path.name}: [objective] or [runs] is missing; add what trains, or a table of runs")
    for section in (parsed.space or {}).items():
        _named(section)
    return parsed


def _named(section: tuple[str, DimensionSection]) -> None:
    try:
        section[1].dimension()
    except BadInput as error:
        raise BadInput(f"space.{section[0]}: {error}") from None


def _first(error: ValidationError, path: Path) -> str:
    """The first problem of a validation, in one line."""
    problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a misspelt key is missing, too
    where = [str(part) for part in problem["loc"] if not str(part).endswith("Section")]
    dotted = ".".join(where)
    if problem["type"] == "extra_forbidden":
        return f"{path.name}: unknown key {dotted!r}; {suggestion(where[-1], _known(where[:-1]))}"
    if problem["type"] == "missing":
        return f"{path.name}: {dotted!r} is missing; add it"
    table = problem["type"] in ("model_type", "dict_type")
    message = "must be a table" if table else problem["msg"].removeprefix("Value error, ")
    return f"{path.name}: {dotted}: {message}, got {problem['input']!r}; correct it"


def _known(where: list[str]) -> list[str]:
    """The keys a section may have."""
    model: Any = StudyFile
    for part in where:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = {"space": DimensionSection}.get(part) or (field.annotation if field else model)
    fields: Mapping[str, Any] = getattr(model, "model_fields", {})
    return [name for name in fields if name != "path"]
