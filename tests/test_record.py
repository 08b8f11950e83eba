"""Claims about the record. The trusted library is Optuna itself, which reads the same storage."""

import math
import os
import socket
import sqlite3
from contextlib import closing

import optuna
import pytest

from tuner.record import DIVERGED, FAILED, FINISHED, LOST, RUNNING, Record, exists
from tuner.scale import Scale
from tuner.space import Categorical, Float, Int, SearchSpace
from tuner.trial import Failure, Result, Trial

SPACE = SearchSpace(
    {"lr": Float(1e-4, 1e-1, log=True), "batch_size": Int(8, 64, log=True), "act": Categorical(("relu", "tanh", 3))}
)
PARAMS = {"lr": 0.0123456789012, "batch_size": 24, "act": "tanh"}
SCALE = Scale(width=64, tokens=2.5e9)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An empty record, as bytes: making one takes Optuna half a second."""
    path = tmp_path_factory.mktemp("record") / "study.db"
    Record(f"sqlite:///{path}", "study").close()
    return path.read_bytes()


@pytest.fixture
def record(url, tmp_path, empty):
    (tmp_path / "study.db").write_bytes(empty)
    opened = Record(url, "study")
    yield opened
    opened.close()


def start(record, params=PARAMS, scale=SCALE, seed=7, **about):
    return record.start(SPACE, params, scale, seed, **{"cost": 5.0, **about})


def reopened(record):
    record.close()
    return Record(record.url, record.name)


def test_a_trial_is_written_running_with_all_that_it_was_given(record):
    trial = start(record, purpose="verification", attempt=2, retry_of=4)
    assert trial == Trial(0, PARAMS, SCALE, 7)
    [entry] = reopened(record).entries()
    assert (entry.trial, entry.state, entry.purpose) == (trial, RUNNING, "verification")
    assert (entry.attempt, entry.retry_of, entry.loss, entry.cost, entry.error) == (2, 4, None, 5.0, None)
    assert {name: type(value) for name, value in entry.trial.params.items()} == {
        "lr": float,
        "batch_size": int,
        "act": str,
    }


@pytest.mark.parametrize("act", ["relu", "tanh", 3])
def test_every_choice_comes_back_as_itself(record, act):
    start(record, {**PARAMS, "act": act})
    assert reopened(record).entries()[0].trial.params["act"] == act


@pytest.mark.parametrize(
    ("loss", "state", "kept"),
    [(0.1 + 0.2, FINISHED, 0.1 + 0.2), (-3.0, FINISHED, -3.0), (math.nan, DIVERGED, None), (math.inf, DIVERGED, None)],
)
def test_a_result_comes_back_to_the_last_digit(record, loss, state, kept):
    record.finish(start(record).number, Result(loss, seconds=1.5), 6.25)
    [entry] = reopened(record).entries()
    assert (entry.state, entry.loss, entry.cost, entry.seconds, entry.error) == (state, kept, 6.25, 1.5, None)


@pytest.mark.parametrize("state", [FAILED, LOST])
def test_what_broke_comes_back_with_its_error_and_its_charge(record, state):
    record.fail(start(record).number, Failure("RuntimeError: no\nline 2", 0.5), 4.0, state)
    [entry] = reopened(record).entries()
    assert (entry.state, entry.error, entry.loss) == (state, "RuntimeError: no\nline 2", None)
    assert (entry.cost, entry.seconds) == (4.0, 0.5)


def test_optuna_reads_the_same_trials(record, url):
    for loss in (0.5, math.nan):
        record.finish(start(record).number, Result(loss), 1.0)
    record.fail(start(record).number, Failure("broke"), 1.0)
    start(record)
    trials = optuna.load_study(study_name="study", storage=url).trials
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert trials[0].value == 0.5
    assert trials[0].params == {**PARAMS, **SCALE}


def test_a_result_written_without_its_state_is_a_trial_still_running(record, url):
    """A coordinator killed between the two writes: the trial is not finished, so it is not half of anything."""
    trial = start(record)
    storage = optuna.storages.RDBStorage(url)
    written = {"cost": 1.0, "seconds": 1.0, "state": FINISHED}
    storage.set_trial_user_attr(storage.get_trial_id_from_study_id_trial_number(1, trial.number), "result", written)
    [entry] = reopened(record).entries()
    assert (entry.state, entry.cost) == (RUNNING, 5.0)


def test_ranges_may_move_with_scale_and_widen(record):
    start(record, {**PARAMS, "lr": 3.0, "batch_size": 1})  # raw values, outside the ranges at the base
    start(record)
    wider = SearchSpace({**SPACE, "lr": Float(1e-6, 1.0, log=True)})
    record.start(wider, {**PARAMS, "lr": 1e-6}, SCALE, 0, cost=1.0)
    assert [e.trial.params["lr"] for e in reopened(record).entries()] == [3.0, PARAMS["lr"], 1e-6]


def test_numbers_count_up_from_zero_over_openings(record):
    numbers = [start(record).number, start(record).number]
    numbers.append(start(reopened(record)).number)
    assert numbers == [0, 1, 2]


def test_two_studies_of_one_file_do_not_see_each_other(record, url):
    start(record)
    record.close()
    other = Record(url, "other")
    assert other.entries() == []
    other.close()


def test_without_a_storage_the_record_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = Record(None, "study")
    record.finish(start(record).number, Result(1.0), 1.0)
    assert record.entries()[0].loss == 1.0
    record.close()
    assert list(tmp_path.iterdir()) == []


def test_the_spec_comes_back(record):
    assert record.spec is None
    record.spec = {"space": {"lr": [1, 2.5, "x"]}}
    assert reopened(record).spec == {"space": {"lr": [1, 2.5, "x"]}}


# ---- the lock


def test_a_second_coordinator_is_refused_with_the_holders_host_and_pid(record, url):
    with pytest.raises(
        ValueError, match=f"is held by process {socket.gethostname()}:{os.getpid()}; wait for it or stop it"
    ):
        Record(url, "study")


def test_a_closed_record_can_be_opened_again_and_leaves_one_file(record, url, tmp_path):
    start(record)
    record.close()
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]
    Record(url, "study").close()


def test_the_lock_of_a_dead_coordinator_is_taken_over(url, tmp_path):
    (tmp_path / "study.db.lock").touch()
    Record(url, "study").close()


def test_closing_twice_does_not_take_the_next_holders_lock(record, url):
    record.close()
    second = Record(url, "study")
    record.close()
    with pytest.raises(ValueError, match="is held by"):
        Record(url, "study")
    second.close()


@pytest.mark.parametrize("where", ["url", None])
def test_a_closed_record_is_read_but_not_written(url, where):
    record = Record(url if where else None, "study")
    trial = start(record)
    record.close()
    for write in (lambda: start(record), lambda: record.finish(trial.number, Result(1.0), 1.0)):
        with pytest.raises(ValueError, match=r"^record: the study is closed, it cannot be written; open it again$"):
            write()
    assert [entry.state for entry in record.entries()] == [RUNNING]


def test_names_that_a_database_takes_for_one_are_one_name(record, url, tmp_path):
    """MySQL does not tell upper case from lower; but the locks on two such names are two."""
    record.close()
    with closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as other:
        other.execute("DROP INDEX ix_studies_study_name")
        other.execute("ALTER TABLE studies RENAME COLUMN study_name TO name")
        other.execute("ALTER TABLE studies ADD COLUMN study_name TEXT COLLATE NOCASE")
        other.execute("UPDATE studies SET study_name = name")
    with pytest.raises(ValueError, match=r"^storage: 'Study' and 'study' are one name to this .*; write 'study'$"):
        Record(url, "Study")


# ---- what cannot be opened


def test_asking_whether_a_study_exists_creates_nothing(tmp_path, url):
    assert not exists(url, "study")
    assert list(tmp_path.iterdir()) == []


def test_a_study_exists_by_name(record, url):
    record.close()
    assert exists(url, "study")
    assert not exists(url, "other")


@pytest.mark.parametrize(
    "ask", [lambda url: Record(url, "study"), lambda url: exists(url, "study")], ids=["open", "ask"]
)
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("study.db", "must be a database URL, got 'study.db'; write sqlite:///study.db"),
        ("", "must be a database URL, got ''; write sqlite:///study.db"),
        ("postgresql+nodb://host/db", "cannot be opened: .*nodb; check the URL"),
        ("postgresql+pg8000://host/db", "cannot be opened: No module named 'pg8000'; install the database's driver"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/db", "cannot be opened: .*refused.*; check the URL"),
        ("sqlite:///notes.txt", "cannot be opened: file is not a database; check the URL"),
    ],
    ids=lambda text: text[:15],
)
def test_a_storage_that_cannot_be_opened_is_one_line_and_no_litter(tmp_path, monkeypatch, ask, url, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be read as the head of one\n" * 20)
    with pytest.raises(ValueError, match=f"^storage: .*{message}") as caught:
        ask(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_database_that_cannot_refuse_a_second_writer_is_refused():
    with pytest.raises(ValueError, match=r"^storage: must be SQLite, .* got 'oracle'; change the URL$"):
        Record("oracle://host/db", "study")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the folder '.*nowhere' does not exist; create it or change the URL"):
        Record(f"sqlite:///{tmp_path}/nowhere/study.db", "study")
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_says_so_in_one_line(record, tmp_path):
    trial = start(record)
    other = sqlite3.connect(tmp_path / "study.db")
    other.execute("PRAGMA query_only = 0")
    other.execute("DROP TABLE trial_user_attributes")
    other.close()
    with pytest.raises(ValueError, match=r"^record: cannot be written: no such table") as caught:
        record.finish(trial.number, Result(1.0), 1.0)
    assert "\n" not in str(caught.value)
