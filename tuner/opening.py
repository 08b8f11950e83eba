"""Opening a study: what is asked is checked whole before anything is written, then against the record it resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from tuner.errors import BadInput, is_number
from tuner.objective import ObjectiveSource
from tuner.parametrization import Parametrization, applied, preset
from tuner.problem import Problem, check_axes
from tuner.record import Record, exists
from tuner.runs import Table, read_table
from tuner.scale import Scale
from tuner.space import Dimension, Params, SearchSpace, suggestion
from tuner.study import Cost, Study, check_affords, priced
from tuner.studyfile import ObjectiveSection, RunsSection, StudyFile


def create_study(
    space: Mapping[str, Dimension] | None = None,
    *,
    target: Scale,
    proxies: Sequence[Scale],
    base: Scale | None = None,
    parametrization: str | None = None,
    exponents: Mapping[str, Mapping[str, float]] | None = None,
    timescale: bool | None = None,
    objective: Any = None,
    cost: Cost | Literal["flops"] | None = None,
    storage: str | None = None,
    name: str = "study",
    seed: int = 0,
    retries: int = 2,
    read_only: bool = False,
    budget: float | None = None,
) -> Study:
    """Create a study, or resume the one of that name in the storage.

    Args:
        space: ranges, raw at the base scale; None: the objective's own.
        target: the scale the answer is for. proxies: the scales that may be run, each cheaper than the target.
        base: where base and raw coordinates agree; None: the cheapest proxy.
        parametrization: a preset's name; None: what the objective declares that it applies itself, or "none".
        exponents: role or hyperparameter -> axis -> exponent, replacing the preset's.
        timescale: whether weight decay is seen as lr x weight_decay; None: where steps are an axis and runs are long
            (`tuner.problem.Problem`).
        objective: what trains, or an `ObjectiveSource` that names it; may bring space, cost and parametrization.
        cost: `(params, scale) -> cost`, raw hyperparameters; "seconds": measured, its power law learned from the
            trials; None or "flops": the objective's own.
        storage: an Optuna URL of SQLite (sqlite:///study.db), PostgreSQL, MySQL or MariaDB; None: in memory.
        retries: attempts a failed or lost trial gets beyond the first.
        read_only: look at a study of the storage, also while another process runs it; nothing is written.
        budget: that a search is going to have, in target runs: one that affords no run is refused here.

    Raises:
        BadInput: one line saying the law, the value and the remedy; nothing is written then.
    """
    source = objective if isinstance(objective, ObjectiveSource) else None
    objective = source.load() if source else objective
    _check_settings(name, seed, retries, timescale)
    space = SearchSpace(space if space is not None else _own(objective, "space"))
    unit = {"flops": "FLOPs", "seconds": "seconds"}.get(cost, "") if isinstance(cost, str) else ""
    cost = _cost(objective, cost)
    rule = _rule(objective, parametrization, exponents)
    _check_names(space, objective)
    _check_axes(space, target, proxies, base)
    _check_exponents(space, target, exponents or {})
    size = _size(cost, space.middle)
    proxies = tuple(sorted(dict.fromkeys(proxies), key=size))
    _check_costs(size, target, proxies)
    if budget is not None:
        check_affords(budget, min(map(size, proxies)) / size(target))
    spec: dict[str, Any] = {
        "space": {n: {"type": type(d).__name__, **asdict(d)} for n, d in space.items()},
        "target": dict(target),
        "proxies": [dict(p) for p in proxies],
        "base": dict(base or proxies[0]),
        "parametrization": {
            "preset": rule.name,
            "exponents": {r: dict(a) for r, a in rule.exponents.items()},
            **({} if timescale is None else {"timescale": timescale}),
        },
        "objective": {"call": source.call, "args": dict(source.args)} if source else None,
        "cost": "seconds" if cost == "seconds" else "function",
        "seed": seed,
    }
    spec = _plain(spec)
    asked = partial(Problem, space, target, proxies, base or proxies[0], rule, timescale=timescale)
    asked(lambda params, scale: size(scale))  # what it refuses is refused before anything is written
    record = Record(storage, name, read_only)
    try:
        _agree(record, spec)
        return Study(record, asked, cost, seed, objective, source, retries, unit)
    except BaseException:
        record.close()
        raise


def open_study(
    file: StudyFile,
    *,
    read_only: bool = False,
    in_memory: bool = False,
    seed: int | None = None,
    budget: float | None = None,
) -> Study:
    """The study of a study file: created, or resumed; in memory: beside its record, which is not opened.

    The runs of its table are in it (not in memory: there, methods are compared that find out for themselves). With no
    objective beside it the table is the record, and nothing is written.

    Args:
        seed: None: the study file's. budget: as in `create_study`.

    Raises:
        BadInput: as `create_study` and `read_table`.
    """
    seed = file.study.seed if seed is None else seed
    if file.objective is None:
        return _of_table(file, seed)
    if read_only or in_memory:
        return _tolerant(file, _live(file, file.objective, read_only, in_memory, seed, budget))
    return _with_table(file, file.objective, False, seed, budget)


def open_pilot(file: StudyFile) -> Study:
    """What is known of a study file: its record, for reading; before there is one, its table's runs, in memory.

    Raises:
        BadInput: as `open_study`.
    """
    if file.objective is None or exists(file.storage, file.study.name):
        return open_study(file, read_only=True)
    return _with_table(file, file.objective, True, file.study.seed, None)


def _with_table(file: StudyFile, trains: ObjectiveSection, in_memory: bool, seed: int, budget: float | None) -> Study:
    """Live training with the runs of its table, if it has one: read before anything is written."""
    rows = None if file.runs is None else _table(file, file.runs)
    study = _tolerant(file, _live(file, trains, False, in_memory, seed, budget))
    if rows is not None:
        table = rows.within(study.problem.space, study.problem.to_base)
        try:
            study.add(table.runs)
        except BaseException:
            study.close()
            raise
        study.dropped = table.dropped
    return study


def _of_table(file: StudyFile, seed: int) -> Study:
    table = recorded_table(file)
    others = [scale for scale in table.scales if scale != Scale(file.scale.target)]
    record = Record.of_table(file.study.name, table.runs)
    study = Study(record, recorded(file, others), table.cost, seed, None, None, file.budget.retries, "")
    study.dropped = table.dropped
    return _tolerant(file, study)


def _tolerant(file: StudyFile, study: Study) -> Study:
    """With the tolerance of its file, which the verdict puts up with."""
    given = file.budget.tolerance
    study.tolerance = None if given is None or isinstance(given, str) else float(given)
    return study


def recorded_table(file: StudyFile) -> Table:
    """The table of a study file that trains nothing.

    Raises:
        BadInput: as `read_table`.
    """
    assert file.runs is not None
    table, space = _table(file, file.runs), file.search_space
    assert space is not None
    table = table.within(space)
    table.check(space)
    return table


def _table(file: StudyFile, section: RunsSection) -> Table:
    if file.search_space is None:
        raise BadInput(f"{file.path.name}: [space] is needed with [runs], got none; add its columns and their ranges")
    return read_table(section, file.path.parent, file.search_space, file.scale)


def recorded(file: StudyFile, proxies: Sequence[Scale]) -> Callable[[Callable[[Params, Scale], float]], Problem]:
    """What a table is asked, of a cost. Base and raw coordinates agree at the target: its ranges are raw."""
    space, target = file.search_space, Scale(file.scale.target)
    assert space is not None
    if not proxies:
        raise BadInput(f"runs: a row at a scale other than the target ({target}) is needed, got none; add smaller runs")
    _check_axes(space, target, proxies, None)
    _check_exponents(space, target, file.parametrization.exponents)
    rule = preset(file.parametrization.preset or "none", file.parametrization.exponents)
    return partial(Problem, space, target, tuple(proxies), target, rule, timescale=file.parametrization.timescale)


def _live(
    file: StudyFile, trains: ObjectiveSection, read_only: bool, in_memory: bool, seed: int, budget: float | None
) -> Study:
    source = ObjectiveSource(trains.call, trains.args, (str(file.path.parent), "."))
    return create_study(
        file.search_space,
        target=Scale(file.scale.target),
        proxies=file.scale.proxy_scales(),
        base=Scale(file.scale.base) if file.scale.base else None,
        parametrization=file.parametrization.preset,
        exponents=file.parametrization.exponents,
        timescale=file.parametrization.timescale,
        objective=source,
        cost=trains.cost,
        storage=None if in_memory else file.storage,
        name=file.study.name,
        seed=seed,
        retries=file.budget.retries,
        read_only=read_only,
        budget=budget,
    )


def _plain(spec: dict[str, Any]) -> dict[str, Any]:
    """As the record gives it back."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(spec))
    except TypeError as error:
        raise BadInput(
            f"study: what it is made of must be plain data ({error}); correct the objective's args"
        ) from None
    return plain


def _check_settings(name: str, seed: int, retries: int, timescale: bool | None) -> None:
    if not (isinstance(name, str) and name):
        raise BadInput(f"study: name must be a text, got {name!r}; give it one")
    if not (timescale is None or isinstance(timescale, bool)):
        raise BadInput(f"timescale: must be True, False or None, got {timescale!r}; correct it")
    for what, value in (("seed", seed), ("retries", retries)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise BadInput(f"study: {what} must be a whole number, at least 0, got {value!r}; correct it")


def _own(objective: Any, attribute: str) -> Any:
    if not hasattr(objective, attribute):
        what = "the objective has none" if objective is not None else "there is no objective"
        instead = ', or cost="seconds"' if attribute == "cost" else ""
        raise BadInput(f"study: {attribute} is needed, {what}; give {attribute}{instead}")
    return getattr(objective, attribute)


def _cost(objective: Any, cost: Cost | Literal["flops"] | None) -> Cost:
    if not (cost in (None, "flops", "seconds") or callable(cost)):
        raise BadInput(f'cost: must be (params, scale) -> cost, "flops" or "seconds", got {cost!r}; correct it')
    if cost in (None, "flops"):
        own: Cost = _own(objective, "cost")
        return own
    return cost  # type: ignore[return-value]


def _rule(objective: Any, name: str | None, exponents: Mapping[str, Mapping[str, float]] | None) -> Parametrization:
    """The study's parametrization: applied by the objective, or by the tuner; never by both."""
    declared = getattr(objective, "parametrization", None)
    if not (declared is None or isinstance(declared, str)):
        raise BadInput(f"parametrization: an objective names a preset, got {declared!r}; correct its attribute")
    if declared is None:
        return preset(name or "none", exponents)
    if (name is not None and name != declared) or exponents:
        given = dict(exponents) if exponents else name
        raise BadInput(
            f"parametrization: the objective applies {declared!r} itself, the study configures "
            f"{given!r}; leave [parametrization] out or change the objective's argument"
        )
    return applied(declared)


def _check_names(space: SearchSpace, objective: Any) -> None:
    own = getattr(objective, "space", None)
    if own is None:
        return
    for name in space:
        if name not in own:
            raise BadInput(f"space: the objective has no hyperparameter {name!r}; {suggestion(name, own)}")
    for name in own:
        if name not in space:
            raise BadInput(f"space: the objective's hyperparameter {name!r} is missing; add it or leave [space] out")


def _size(cost: Cost, params: Params) -> Callable[[Scale], float]:
    """Cost of a scale before any run; without a cost function, the product of its axes."""
    return partial(priced, cost, params) if callable(cost) else lambda scale: math.prod(scale.values())


def _check_axes(space: SearchSpace, target: Scale, proxies: Sequence[Scale], base: Scale | None) -> None:
    for scale in (target, *proxies, *([base] if base else [])):
        if not isinstance(scale, Scale):
            raise BadInput(f"scale: must be a Scale, got {scale!r}; write for example Scale(width=64)")
    if both := sorted(set(space) & set(target)):
        raise BadInput(
            f"space: {both[0]!r} is an axis of the target's scale too, and a run can have one value; leave it out of "
            "the space or of the scale"
        )
    check_axes(target, proxies)
    check_axes(target, [base or target])


def _check_exponents(space: SearchSpace, target: Scale, exponents: Mapping[str, Mapping[str, float]]) -> None:
    known = {*space, *map(space.role, space)}
    for name, axes in exponents.items():
        if name not in known:
            raise BadInput(f"parametrization.exponents: no hyperparameter or role {name!r}; {suggestion(name, known)}")
        for axis, gamma in axes.items():
            if not (is_number(gamma) and math.isfinite(gamma)):
                raise BadInput(
                    f"parametrization.exponents.{name}.{axis}: must be a finite number, got {gamma!r}; correct it"
                )
            if axis not in target:
                raise BadInput(
                    f"parametrization.exponents.{name}: the scale has no axis {axis!r}; {suggestion(axis, target)}"
                )


def _check_costs(size: Callable[[Scale], float], target: Scale, proxies: Sequence[Scale]) -> None:
    dearest = max(proxies, key=size)
    if size(dearest) >= size(target):
        raise BadInput(
            f"scale: every proxy must cost less than the target ({target}), got one at {dearest}; raise the target or "
            "drop that proxy"
        )


def _agree(record: Record, spec: dict[str, Any]) -> None:
    """Refuse a study that differs from the record it would resume; let ranges widen."""
    known = record.spec
    if record.foreign:
        raise BadInput(f"resume: {record.name!r} has trials the tuner did not make; give the study a new name")
    if known is not None:
        for key in spec:
            if key != "space" and known.get(key) != spec[key]:
                raise BadInput(
                    f"resume: {key} was {known.get(key)!r} when the study was created, got {spec[key]!r}; "
                    "restore it or give the study a new name"
                )
        for name in {**known["space"], **spec["space"]}:
            _widens(name, known["space"].get(name), spec["space"].get(name))
    if known != spec and not record.read_only:
        record.spec = spec


def _widens(name: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
    def fixed(d: dict[str, Any] | None) -> Any:
        return d and {k: v for k, v in d.items() if k not in ("low", "high")}

    narrower = old and new and "low" in old and "low" in new and (new["low"] > old["low"] or new["high"] < old["high"])
    if fixed(old) != fixed(new) or narrower:
        raise BadInput(
            f"resume: space.{name} was {old} when the study was created, got {new}; ranges may only widen: restore it "
            "or give the study a new name"
        )
