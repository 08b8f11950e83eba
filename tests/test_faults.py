"""Claims about what dies, hangs up or fills up: real processes, real signals, a real full disk.

A fault may cost time and one attempt of what it hit. It never costs a finished trial, and nothing is counted twice.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from waiting import PATIENCE, until

from tuner.cli import main
from tuner.objective import ObjectiveSource
from tuner.opening import create_study
from tuner.record import FAILED, FINISHED, LOST, RUNNING, Record
from tuner.scale import Scale
from tuner.space import Float

TUNER = [sys.executable, "-m", "tuner.cli"]


def said(log, word):
    """The pids of the log's lines that start with the word."""
    return (
        [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith(word)] if log.exists() else []
    )


def gone(pids):
    def running(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return not any(map(running, pids))


def session(leader):
    """The processes of a session: field 6 of /proc/PID/stat."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def recorded(path):
    """The record as it lies there; opening a study would mark what was running as lost."""
    record = Record(f"sqlite:///{path.parent / 'bowl.db'}", "bowl")
    try:
        return record.entries()
    finally:
        record.close()


@contextmanager
def started(path, *arguments):
    """`tuner run` of a study file, leading a session of its own."""
    with (path.parent / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(
            [*TUNER, "run", path, *arguments], stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        )
    try:
        yield process
    finally:
        for pid in session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def slow(bowl, seconds):
    """The study file of a bowl that takes its time, and the log that it keeps."""
    path = bowl(('"bowl:Bowl"', f'"bowl:Bowl"\nargs = {{ sleep = {seconds}, log = "log.txt" }}'))
    return path, path.parent / "log.txt"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- a worker


def test_a_worker_killed_in_a_trial_costs_that_trial_one_attempt(bowl):
    log = bowl().parent / "log.txt"
    study = create_study(
        objective=ObjectiveSource("bowl:Bowl", {"sleep": 0.5, "log": "log.txt"}, (str(log.parent),)),
        target=Scale(width=256),
        proxies=[Scale(width=32)],
    )
    killer = threading.Thread(target=lambda: os.kill(until(lambda: said(log, "start"))[0], signal.SIGKILL))
    killer.start()
    study.optimize(budget=3 / 64, workers=1)
    killer.join()
    assert [e.state for e in study.entries] == [FAILED, FINISHED, FINISHED]
    first, again, _ = study.entries
    assert "signal 9" in first.error
    assert (again.retry_of, again.attempt, again.trial.params) == (0, 2, first.trial.params)
    assert study.spent() == 3 * 32**2
    assert len(study.observations) == 2


# ---- the coordinator


def test_a_killed_coordinator_loses_no_finished_trial_and_counts_none_twice(bowl):
    path, log = slow(bowl, 0.4)
    before = []
    for starts, workers in ((1, "1"), (3, "0")):  # killed in its first trial; then with one finished, in the next
        with started(path, "--workers", workers, "--budget", "0.09375") as process:
            until(lambda: len(said(log, "start")) >= starts)  # noqa: B023
            process.kill()
            process.wait()
            until(lambda: gone(said(log, "start")))  # no worker outlives its coordinator
        after = recorded(path)
        assert [e for e in after if e.state == FINISHED][: len(before)] == before
        assert [e.state for e in after if e.state != FINISHED][-1:] == [RUNNING]
        before = [e for e in after if e.state == FINISHED]

    done = CliRunner().invoke(
        main, ["run", str(path), "--workers", "0", "--budget", "0.09375", "--no-verify", "--json"]
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["spent"]["cost"] == 6 * 32**2  # the budget exactly, what was lost included
    assert json.loads(done.stdout)["trials"] == 4
    entries = recorded(path)
    finished = [e for e in entries if e.state == FINISHED]
    lost = [e for e in entries if e.state == LOST]
    assert finished[: len(before)] == before
    assert len(before) >= 1
    assert len(lost) == 2
    assert {e.cost for e in lost} == {32.0**2}
    assert len({(e.trial.params["lr"], e.trial.seed) for e in finished}) == len(finished) == 4
    for entry in lost:  # queued again, as it was
        [again] = [e for e in entries if e.retry_of == entry.trial.number]
        assert (again.trial.params, again.trial.seed) == (entry.trial.params, entry.trial.seed)


WRITER = """
import sys
from tuner.record import *
from tuner.space import Float, SearchSpace
from tuner.trial import Result
record = Record(sys.argv[1], "study")
for entry in record.entries():
    if entry.state == RUNNING:
        record.fail(entry.trial.number, Failure("lost"), entry.cost, LOST)
space, scale = SearchSpace({"lr": Float(0, 1)}), Scale(width=8)
while True:
    trial = record.start(space, {"lr": 0.5}, scale, 0, cost=2.0)
    record.finish(trial.number, Result(float(trial.number)), 1.0)
    print(trial.number, flush=True)
"""


def test_a_record_killed_at_any_moment_holds_whole_trials_and_all_that_were_acknowledged(tmp_path):
    url, acknowledged, kills = f"sqlite:///{tmp_path / 'study.db'}", [], 4
    for moment in range(kills):
        with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True) as writer:
            acknowledged += [int(writer.stdout.readline()) for _ in range(4)]
            time.sleep(moment * 0.004)  # a trial takes about 15 ms to write
            writer.kill()
            acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
        record = Record(url, "study")
        entries = record.entries()
        record.close()
        assert [e.trial.number for e in entries] == list(range(len(entries)))
        for entry in entries:
            expected = {FINISHED: (float(entry.trial.number), 1.0), RUNNING: (None, 2.0), LOST: (None, 2.0)}
            assert (entry.loss, entry.cost) == expected[entry.state]
        assert {e.trial.number for e in entries if e.state == FINISHED} >= set(acknowledged)
        assert len(entries) - len(acknowledged) <= moment + 1  # one unfinished trial a kill, at most


def test_a_second_process_is_refused_with_the_holder_and_ctrl_c_leaves_nothing_running(bowl):
    path, log = slow(bowl, 0.5)
    with started(path, "--workers", "2", "--budget", "0.5", "--json") as process:
        until(lambda: len(set(said(log, "start"))) == 2)
        done = CliRunner().invoke(main, ["run", str(path)])
        assert done.exit_code == 2
        assert f":{process.pid}; wait for it or stop it" in done.stderr
        assert len(done.stderr.splitlines()) == 1

        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the coordinator and all it started
        assert process.wait(PATIENCE) == 130
        until(lambda: not session(process.pid))
        assert process.stdout.read() == ""
    stderr = (path.parent / "stderr.txt").read_text()
    assert stderr.splitlines()[-1].startswith("interrupted; finished trials are recorded. To go on: tuner run ")
    assert stderr.splitlines()[-1].endswith(f"run {path} --workers 2 --budget 0.5 --json")
    assert "Traceback" not in stderr
    entries = recorded(path)
    assert {e.state for e in entries} <= {FINISHED, LOST}
    assert sum(e.state == FINISHED for e in entries) <= len(said(log, "end"))


# ---- the disk


def _tmpfs(folder):
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True)
    return mounted.returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A folder, and what fills it up for a while: a small file system, or a limit on the size of files."""
    folder = tmp_path / "disk"
    small = _tmpfs(folder)
    filler = folder / "filler"

    @contextmanager
    def full():
        if small:
            with filler.open("wb", buffering=0) as file, suppress(OSError):  # no space left
                while True:
                    file.write(b"x" * 512)
            yield
            filler.unlink()
        else:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (max(p.stat().st_size for p in folder.iterdir()), limits[1]))
            yield
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    yield folder, full
    if small:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_what_was_finished_is_there_when_it_has_room_again(disk):
    folder, full = disk

    def opened():
        return create_study(
            {"lr": Float(1e-4, 1e-1, log=True)},
            target=Scale(width=256),
            proxies=[Scale(width=32)],
            cost=lambda params, scale: float(scale["width"]),
            storage=f"sqlite:///{folder / 'study.db'}",
        )

    with opened() as study:
        study.tell(study.ask(), loss=1.0)
        waiting = study.ask()
        before = study.entries
        with full():
            with pytest.raises(ValueError, match=r"^record: cannot be written: [^\n]*; free the disk$"):
                study.tell(waiting, loss=2.0)
            assert study.entries == before
    with opened() as study:
        assert study.entries[0] == before[0]
        assert study.entries[1].state == LOST
        assert study.ask().params == waiting.params  # queued again


def test_a_study_that_has_no_room_to_be_made_leaves_nothing(disk):
    folder, full = disk
    (folder / "notes").write_text("x")
    with full():
        with pytest.raises(ValueError, match=r"^storage: .* cannot be opened: [^\n]*; free the disk$"):
            Record(f"sqlite:///{folder / 'study.db'}", "study")
        assert {path.name for path in folder.iterdir()} <= {"notes", "filler"}
    Record(f"sqlite:///{folder / 'study.db'}", "study").close()
