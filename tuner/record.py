"""The record: every trial of a study, in an Optuna storage, written by one coordinator at a time.

A trial is created running, with its raw hyperparameters, scale and seed; its result is one attribute, and its state
is written last. So finished means recorded: a coordinator killed at any moment leaves whole trials, or running ones
that the next coordinator marks lost. Who holds the study's lock (tuner/lock.py) is named in the record.
"""

from __future__ import annotations

import math
import os
import platform
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
)
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import NullPool, create_engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from tuner.errors import BadInput
from tuner.lock import Held, Lock, take
from tuner.runs import Run
from tuner.scale import Scale
from tuner.space import Categorical, Dimension, Params, SearchSpace, distribution
from tuner.storage import shown, sqlite_path
from tuner.trial import Evidence, Failure, Result, Trial

RUNNING, FINISHED, DIVERGED, FAILED, LOST = "running", "finished", "diverged", "failed", "lost"


@dataclass(frozen=True)
class Entry:
    """One line of the record.

    Args:
        trial: number, raw hyperparameters, scale, seed.
        state: running, finished, diverged (the training blew up), failed (the code or machine broke) or lost (the
            coordinator died).
        purpose: "search", "verification", or "recorded" (a run from a table, which nobody here made or paid for).
        attempt: 1, or more when an earlier attempt failed or was lost; retry_of: the number of that attempt.
        loss: finite when finished. cost: what is charged, in the study's unit.
    """

    trial: Trial
    state: str
    purpose: str
    attempt: int
    retry_of: int | None
    loss: float | None
    cost: float
    seconds: float
    error: str | None

    @property
    def feeds(self) -> bool:
        """Whether the surrogate may learn from it. A verification run checks and never feeds."""
        return self.purpose != "verification"


class Record:
    """The trials of one study in a storage; holds the lock until closed.

    Args:
        read_only: a view of the record as it is now, without the lock: another process may be writing it.

    Raises:
        BadInput: the storage cannot be opened, another coordinator holds the study, or the record is written when it
            is read-only, closed, or its lock was lost.
    """

    def __init__(self, url: str | None, name: str, read_only: bool = False) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.url, self.name, self.read_only = url, name, read_only
        self._closed = False
        if read_only and not exists(str(url), name):
            raise BadInput(f"record: {shown(url)!r} has no study {name!r}; make it with tuner run")
        self._lock = Lock() if read_only else _locked(url, name)
        path = sqlite_path(url)
        new = path if path is not None and not path.exists() else None
        self._entries: list[Entry] | None = None
        self._storage: BaseStorage = InMemoryStorage()
        try:
            with _one_line(f"storage: {shown(url)!r} cannot be opened"):
                if url is not None:
                    self._storage = _database(url)
                self._id = _study_id(self._storage, name)
                if not read_only:
                    self._storage.set_study_user_attr(self._id, "holder", f"{socket.gethostname()}:{os.getpid()}")
        except BaseException:
            _disconnect(self._storage)
            if new is not None:
                _remove(new)
            self._lock.release()
            raise

    @staticmethod
    def of_table(name: str, runs: Sequence[Run]) -> Record:
        """The runs of a table, in memory, to be read only."""
        record = Record(None, name)
        record._entries = [
            Entry(
                trial=Trial(number, run.params, run.scale, 0),
                state=FINISHED if math.isfinite(run.loss) else DIVERGED,
                purpose="recorded",
                attempt=1,
                retry_of=None,
                loss=run.loss if math.isfinite(run.loss) else None,
                cost=run.cost,
                seconds=0.0,
                error=None,
            )
            for number, run in enumerate(runs)
        ]
        record.read_only = True
        return record

    @property
    def spec(self) -> dict[str, Any] | None:
        """What the study was created with; None in a new record."""
        spec: dict[str, Any] | None = self._storage.get_study_user_attrs(self._id).get("spec")
        return spec

    @spec.setter
    def spec(self, spec: Mapping[str, Any]) -> None:
        self._set("spec", spec)

    @property
    def evidence(self) -> list[Evidence]:
        """What was measured beside the runs, in the order it came."""
        known = self._storage.get_study_user_attrs(self._id).get("evidence", {})
        return [Evidence(name, *told) for name, told in known.items()]

    def add_evidence(self, found: Evidence) -> None:
        """It takes the place of what has the same name."""
        known = {each.name: [each.verdict, each.reason] for each in (*self.evidence, found)}
        self._set("evidence", known)

    def _set(self, name: str, value: Mapping[str, Any]) -> None:
        self._will_write()
        with _one_line("record: cannot be written"):
            self._storage.set_study_user_attr(self._id, name, dict(value))

    @property
    def foreign(self) -> bool:
        """Whether something else made this study, and its trials."""
        return self.spec is None and self._storage.get_n_trials(self._id) > 0

    def entries(self) -> list[Entry]:
        """All trials, by number; a new list after each write. Read once: only this coordinator writes."""
        if self._entries is None:
            with _one_line("record: cannot be read"):
                self._entries = [_entry(t) for t in self._storage.get_all_trials(self._id, deepcopy=False)]
        return self._entries

    def start(
        self,
        space: SearchSpace,
        params: Params,
        scale: Scale,
        seed: int,
        *,
        cost: float,
        purpose: str = "search",
        attempt: int = 1,
        retry_of: int | None = None,
    ) -> Trial:
        """Write a trial as running; `cost` is what it will be charged if it never returns."""
        about = {
            "seed": seed,
            "planned_cost": cost,
            "purpose": purpose,
            "attempt": attempt,
            "retry_of": retry_of,
            "versions": versions(),
        }
        number = self._create(space, params, scale, about, TrialState.RUNNING, None)
        return Trial(number, dict(params), scale, seed)

    def add(self, space: SearchSpace, runs: Iterable[Run]) -> None:
        """Write runs that were made elsewhere, each whole."""
        self._entries = None  # they may be many: read again, once
        for run in runs:
            diverged = not math.isfinite(run.loss)
            result = {"cost": run.cost, "seconds": 0.0, "state": DIVERGED if diverged else FINISHED}
            about = {"seed": 0, "purpose": "recorded", "attempt": 1, "retry_of": None, "result": result}
            state, value = (TrialState.PRUNED, None) if diverged else (TrialState.COMPLETE, run.loss)
            self._create(space, run.params, run.scale, about, state, value)

    def _create(
        self,
        space: SearchSpace,
        params: Params,
        scale: Scale,
        about: dict[str, Any],
        state: TrialState,
        value: float | None,
    ) -> int:
        values = {**params, **scale}
        template = optuna.trial.create_trial(
            state=state,
            value=value,
            params=values,
            distributions={name: _around(space.get(name), v) for name, v in values.items()},
            user_attrs={"scale": dict(scale), **about},
        )
        self._will_write()
        with _one_line("record: cannot be written"):
            return self._noted(self._storage.create_new_trial(self._id, template_trial=template))

    def finish(self, number: int, result: Result, cost: float) -> None:
        """Write a result: finished, or diverged when its loss is not finite."""
        written = {"cost": cost, "seconds": result.seconds or 0.0, "state": DIVERGED if result.diverged else FINISHED}
        if result.diverged:
            self._close_trial(number, written, TrialState.PRUNED, None)
        else:
            self._close_trial(number, written, TrialState.COMPLETE, [float(result.loss)])

    def fail(self, number: int, failure: Failure, cost: float, state: str = FAILED) -> None:
        """Write that a trial broke (failed) or that its coordinator died (lost)."""
        written = {"cost": cost, "seconds": failure.seconds, "state": state, "error": failure.error}
        self._close_trial(number, written, TrialState.FAIL, None)

    def _close_trial(self, number: int, written: dict[str, Any], state: TrialState, values: list[float] | None) -> None:
        self._will_write()
        with _one_line("record: cannot be written"):
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
            self._storage.set_trial_user_attr(trial_id, "result", written)
            self._storage.set_trial_state_values(trial_id, state, values)
            self._noted(trial_id)

    def _noted(self, trial_id: int) -> int:
        """Take over what was written of one trial; its number."""
        entry = _entry(self._storage.get_trial(trial_id))
        number = entry.trial.number
        if self._entries is not None:
            self._entries = [*self._entries[:number], entry, *self._entries[number + 1 :]]
        return number

    def _will_write(self) -> None:
        if self.read_only:
            raise BadInput("record: opened for reading, it cannot be written; open the study without read_only")
        if self._closed:  # so it no longer has the lock
            raise BadInput("record: the study is closed, it cannot be written; open it again")
        self._lock.check()

    def close(self) -> None:
        """Release the storage and the lock."""
        self._closed = True
        _disconnect(self._storage)
        self._lock.release()


def exists(url: str, name: str) -> bool:
    """Whether a storage has a study of that name; asking writes nothing, no tables in an empty database either."""
    path = sqlite_path(url)
    if path is not None:
        return path.exists() and _in_file(path, name)
    asked = text("SELECT 1 FROM studies WHERE study_name = :name")
    with (
        _one_line(f"storage: {shown(url)!r} cannot be opened"),
        create_engine(url, poolclass=NullPool).connect() as connection,
    ):
        made = inspect(connection).has_table("studies")
        return made and connection.execute(asked, {"name": name}).first() is not None


def _in_file(path: Path, name: str) -> bool:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
            return file.execute("SELECT 1 FROM studies WHERE study_name = ?", (name,)).fetchone() is not None
    except sqlite3.DatabaseError as error:
        if "no such" in str(error):  # table, or column: another program's file
            return False
        law = f"storage: {str(path)!r} cannot be opened"
        raise BadInput(f"{law}: {error}; check the URL and its permissions") from None


def _entry(trial: FrozenTrial) -> Entry:
    about = trial.user_attrs
    scale = Scale(about["scale"])
    params = {name: value for name, value in trial.params.items() if name not in scale}
    result = about.get("result", {}) if trial.state.is_finished() else {}
    return Entry(
        trial=Trial(trial.number, params, scale, about["seed"]),
        state=result.get("state", RUNNING),
        purpose=about["purpose"],
        attempt=about["attempt"],
        retry_of=about["retry_of"],
        loss=trial.value if trial.state == TrialState.COMPLETE else None,
        cost=result["cost"] if "cost" in result else about["planned_cost"],
        seconds=result.get("seconds", 0.0),
        error=result.get("error"),
    )


def _around(dimension: Dimension | None, value: Any) -> BaseDistribution:
    """A distribution that holds the value: ranges move with scale and widen on resume, which Optuna allows."""
    if dimension is None:  # an axis of scale
        return FloatDistribution(float(value), float(value), log=True)
    if isinstance(dimension, Categorical):
        return distribution(dimension)
    return distribution(replace(dimension, low=min(dimension.low, value), high=max(dimension.high, value)))


def versions() -> dict[str, str]:
    """Of what makes a trial."""
    found = {"python": platform.python_version()}
    for package in ("transfer-tuner", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _locked(url: str | None, name: str) -> Lock:
    """The study's lock, taken; or the refusal that names its holder."""
    with _one_line(f"storage: {shown(url)!r} cannot be opened"):
        try:
            return take(url, name)
        except Held:
            holder = _holder(str(url), name)
            raise BadInput(f"storage: {shown(url)!r} is held by {holder}; wait for it or stop it") from None


def _holder(url: str, name: str) -> str:
    try:
        storage = _database(url, skip_table_creation=True)  # the holder may be creating them right now
        try:
            attributes = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
        finally:
            _disconnect(storage)
        return f"process {attributes['holder']}"
    except Exception:
        return "another process"


def _database(url: str, skip_table_creation: bool = False) -> RDBStorage:
    if sqlite_path(url) is None:  # a server may have hung up during a long run: a connection is tried before its use
        return RDBStorage(url, {"pool_pre_ping": True}, skip_table_creation=skip_table_creation)
    storage = RDBStorage(url, skip_table_creation=skip_table_creation)
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    return storage


def _disconnect(storage: BaseStorage) -> None:
    storage.remove_session()
    if isinstance(storage, RDBStorage):
        storage.engine.dispose()


def _study_id(storage: BaseStorage, name: str) -> int:
    try:
        found = storage.get_study_id_from_name(name)
    except KeyError:
        return storage.create_new_study([StudyDirection.MINIMIZE], name)
    if (known := storage.get_study_name_from_id(found)) != name:  # so another lock: MySQL does not tell A from a
        raise BadInput(f"storage: {name!r} and {known!r} are one name to this database; write {known!r}")
    return found


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """A database's own error as one line: what failed, the cause, the remedy."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        cause = str(first).strip().splitlines()[0]
        raise BadInput(f"{what}: {cause}; {_remedy(cause, error)}") from error


def _remedy(cause: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        return "install the database's driver, or use sqlite:///study.db"
    return "free the disk" if "full" in cause or "disk I/O" in cause else "check the URL and its permissions"


def _remove(database: Path) -> None:
    """Take away a SQLite file that could not be made whole, and what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(OSError):
            os.unlink(f"{database}{suffix}")
