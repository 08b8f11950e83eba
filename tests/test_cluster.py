"""Claims about trials on executors of others: a real Dask scheduler and workers on this machine, killed for real."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import until

import tuner
from tuner.cluster import Borrowed, Cluster, Spread, _settle
from tuner.errors import BadInput
from tuner.execution import WorkerPool
from tuner.objective import ObjectiveSource
from tuner.opening import open_study
from tuner.record import FAILED, FINISHED, LOST, RUNNING
from tuner.scale import Scale
from tuner.studyfile import read
from tuner.trial import Failure, Result, Trial

pytest.importorskip("distributed", reason="no distributed: install the extra cluster")

# A connection that a killed process leaves open is closed by the collector.
pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.timeout(300)]

TRAIN = '''
import math, multiprocessing, os, signal, time
from pathlib import Path
from tuner.space import Float, SearchSpace

class Bowl:
    """Each start is a file named after the process that trains and Dask's worker above it."""

    space = SearchSpace({"lr": Float(1e-4, 1e-1, log=True)})

    def __init__(self, folder, sleep=0.0):
        if "NO_DISK" in os.environ:
            raise OSError("no disk here")
        self.folder, self.sleep = Path(folder), sleep

    def cost(self, params, scale):
        return float(scale["width"]) ** 2

    def __call__(self, params, scale, seed):
        above = getattr(multiprocessing.parent_process(), "pid", 0)
        (self.folder / f"{os.getpid()}-{above}-{time.time_ns()}").touch()
        if params.get("do") == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(params.get("sleep", self.sleep))
        return 1 + math.log(params["lr"] / 1e-2) ** 2 / 10 + 4 / scale["width"]

class Dies(Bowl):
    def __call__(self, params, scale, seed):
        os.kill(os.getpid(), signal.SIGKILL)
'''
STUDY = """
[study]
name = "bowl"
[objective]
call = "spread_bowl:Bowl"
args = {{ folder = "{folder}", sleep = {sleep} }}
[scale]
target = {{ width = 256 }}
proxies = {{ width = [32, 64] }}
[budget]
target_runs = {budget}
"""


def _started(*command, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", *command], stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    """A scheduler's file, two workers with a slot each, and how to replace one that was killed."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    serve = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(file)]
    processes = [_started("distributed.cli.dask_scheduler", *serve)]
    until(lambda: file.exists() and file.read_text())
    work = ["--scheduler-file", str(file), "--nthreads", "1", "--resources", "GPU=1", "--no-dashboard"]
    work += ["--host", "127.0.0.1", "--local-directory", str(folder), "--memory-limit", "0"]

    def worker(**environment):
        processes.append(_started("distributed.cli.dask_worker", *work, **environment))
        return processes[-1]

    worker(), worker()
    with Cluster(file=str(file)) as cluster:
        until(lambda: len(cluster.slots()) == 2)
    yield file, worker
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


@pytest.fixture
def source(tmp_path):
    (tmp_path / "spread_bowl.py").write_text(TRAIN)
    (tmp_path / "runs").mkdir()
    return ObjectiveSource("spread_bowl:Bowl", {"folder": str(tmp_path / "runs")}, (str(tmp_path),))


def trial(number=0, width=32, **params):
    return Trial(number, {"lr": 0.01, **params}, Scale(width=width), number)


def processes(folder):
    """(trains, its parent) of every start so far."""
    return [tuple(map(int, path.name.split("-")[:2])) for path in sorted(folder.iterdir())]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- groups


def test_groups_on_the_cluster_have_the_outcomes_of_a_local_pool(dask, source):
    groups = [[trial(0), trial(1)], [trial(2, lr=0.05)], [trial(3, width=64)]]
    with Cluster(file=str(dask[0])) as cluster, cluster.runner(source) as there, WorkerPool(source, 1) as here:
        assert there.capacity == 2
        for group in groups:
            one, other = there.submit(group).result(), here.submit(group).result()
            assert [o.loss for o in one] == [o.loss for o in other]
            assert all(isinstance(o, Result) and o.seconds > 0 for o in one)


def test_a_group_that_kills_its_process_costs_itself_alone(dask, source):
    with Cluster(file=str(dask[0])) as cluster, cluster.runner(source) as runner:
        broken, fine = runner.submit([trial(0, do="die")]), runner.submit([trial(1)])
        [failure] = broken.result()
        assert isinstance(failure, Failure)
        assert "Killed" in failure.error
        assert isinstance(fine.result()[0], Result)
        assert len(cluster.slots()) == 2  # Dask's own workers are well


def test_a_lost_worker_costs_its_group_one_attempt_and_nothing_runs_unseen(dask, source, tmp_path):
    file, replace = dask
    with Cluster(file=str(file)) as cluster, cluster.runner(source) as runner:
        waiting = runner.submit([trial(0, sleep=60.0)])
        until(lambda: processes(tmp_path / "runs"))
        [(child, worker)] = processes(tmp_path / "runs")
        for pid in (_parent(worker), worker):  # its nanny first, which would start another
            os.kill(pid, signal.SIGKILL)
        [failure] = waiting.result(120)
        assert isinstance(failure, Failure)
        assert "lost the worker" in failure.error
        until(lambda: not alive(child))
        replace()
        until(lambda: len(cluster.slots()) == 2)
        assert len(processes(tmp_path / "runs")) == 1


def _parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_what_nobody_waits_for_is_killed(dask, source, tmp_path):
    with Cluster(file=str(dask[0])) as cluster:
        with cluster.runner(source) as runner:
            runner.submit([trial(0, sleep=60.0)])
            until(lambda: processes(tmp_path / "runs"))
        [(child, _)] = processes(tmp_path / "runs")
        until(lambda: not alive(child))
        assert len(cluster.slots()) == 2


def test_the_resources_of_a_worker_bound_what_runs_at_once(dask, source):
    with Cluster(file=str(dask[0]), resources={"GPU": 1}) as cluster:
        assert len(cluster.slots()) == 2
        with cluster.runner(source) as runner:
            assert isinstance(runner.submit([trial()]).result()[0], Result)
    with Cluster(file=str(dask[0]), resources={"GPU": 2}) as none:
        assert none.slots() == {}
        assert Spread(none, b"").capacity == 1  # what waits for a worker that has it


def test_a_machine_where_nothing_starts_is_set_aside_and_costs_no_attempt(dask, source):
    broken = dask[1](NO_DISK="1")
    with Cluster(file=str(dask[0])) as cluster:
        until(lambda: len(cluster.slots()) == 3)
        with (
            cluster.runner(source) as runner,
            tuner.create_study(objective=source, target=Scale(width=256), proxies=[Scale(width=32)]) as study,
        ):
            waiting = [runner.submit([trial(number, sleep=1.0)]) for number in range(6)]
            assert all(isinstance(one.result(60)[0], Result) for one in waiting)
            assert runner.capacity == 2
            assert "no disk here" in next(iter(runner._unable.values()))
            study.optimize(budget=0.1, executor=cluster)
            assert {entry.state for entry in study.entries} == {FINISHED}
        broken.terminate()
        until(lambda: len(cluster.slots()) == 2)


def test_a_worker_with_another_tuner_is_refused(dask, source, monkeypatch):
    monkeypatch.setattr("tuner.cluster.versions", lambda: {"transfer-tuner": "9.9"})
    with (
        Cluster(file=str(dask[0])) as cluster,
        pytest.raises(BadInput, match=r"the coordinator's 9\.9; install .* so said .* and 1 more"),
        cluster.runner(source),
    ):
        pass


# ---- studies


def study_file(folder, budget, sleep=0.0):
    path = folder / "study.toml"
    path.write_text(STUDY.format(folder=folder / "runs", budget=budget, sleep=sleep))
    return path


def test_a_study_on_the_cluster_finishes_every_trial_once(dask, source, tmp_path):
    path = study_file(tmp_path, 0.2)
    command = [sys.executable, "-m", "tuner.cli", "run", str(path), "--scheduler-file", str(dask[0]), "--json"]
    told = subprocess.run([*command, "--resource", "GPU=1"], capture_output=True, text=True, timeout=200)
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert answer["ledger"]["verification"] is not None
    assert answer["ledger"]["search"]["target_runs"] <= 0.2 * (1 + 1e-9)
    assert answer["trials"] + 1 == len(processes(tmp_path / "runs"))


def test_a_coordinator_that_dies_takes_its_trials_along_and_they_are_made_again(dask, source, tmp_path):
    path = study_file(tmp_path, 0.07, sleep=3.0)
    command = [sys.executable, "-m", "tuner.cli", "run", str(path), "--scheduler-file", str(dask[0]), "--no-verify"]
    coordinator = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until(lambda: len(processes(tmp_path / "runs")) == 2)
    coordinator.kill()
    coordinator.wait()
    left = [child for child, _ in processes(tmp_path / "runs")]
    until(lambda: not any(map(alive, left)))
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=200)
    with open_study(read(path), read_only=True) as study:
        states = [entry.state for entry in study.entries]
        lost = [entry.trial.number for entry in study.entries if entry.state == LOST]
        assert len(lost) == 2
        assert not {RUNNING, FAILED} & set(states)
        assert sorted(e.retry_of for e in study.entries if e.retry_of is not None) == lost
        assert states.count(FINISHED) >= 2


def test_any_executor_runs_trials(source):
    for executor in (ThreadPoolExecutor(2), ProcessPoolExecutor(2)):
        with (
            executor,
            tuner.create_study(objective=source, target=Scale(width=256), proxies=[Scale(width=32)]) as study,
        ):
            study.optimize(budget=0.1, workers=2, executor=executor)
            assert len(study.observations) == 6
            assert all(math.isfinite(run.loss) for run in study.observations)


def test_an_executor_that_is_shut_down_is_an_error_and_the_record_stays(source):
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with tuner.create_study(objective=source, target=Scale(width=256), proxies=[Scale(width=32)]) as study:
        with pytest.raises(BadInput, match="takes no more work"):
            study.optimize(budget=0.1, executor=executor)
        assert [entry.state for entry in study.entries] == [LOST]
        study.optimize(budget=0.1)
        assert study.entries[1].retry_of == 0


def test_a_process_pool_that_breaks_fails_its_trial_and_then_says_that_it_is_broken(source):
    dies = replace(source, call="spread_bowl:Dies")
    with (
        ProcessPoolExecutor(1) as executor,
        tuner.create_study(objective=dies, target=Scale(width=256), proxies=[Scale(width=32)]) as study,
    ):
        with pytest.raises(BadInput, match="takes no more work"):
            study.optimize(budget=0.1, executor=executor)
        assert [entry.state for entry in study.entries] == [FAILED, LOST]
        assert "BrokenProcessPool" in study.entries[0].error
        assert study.entries[0].cost == study.cost({"lr": 0.01}, Scale(width=32))  # what was planned


def test_the_same_seed_proposes_the_same_trials_here_and_on_the_cluster(dask, source):
    def proposed(**where):
        with tuner.create_study(
            objective=source, target=Scale(width=256), proxies=[Scale(width=w) for w in (32, 64)], seed=3
        ) as study:
            study.optimize(budget=0.15, **where)
            return [(dict(e.trial.params), e.trial.scale, e.trial.seed, e.loss) for e in study.entries]

    with Cluster(file=str(dask[0])) as cluster, ThreadPoolExecutor(1) as threads:
        one = type("OneSlot", (Cluster,), {"slots": lambda self: {"": 1}})(file=str(dask[0]))
        with one:
            assert proposed() == proposed(executor=one) == proposed(executor=threads)
        assert len(cluster.slots()) == 2


# ---- bad input


@pytest.mark.parametrize(
    ("given", "law"),
    [
        ({"address": "nonsense://x"}, "unknown address scheme"),
        ({"address": "tcp://nobody.invalid:1"}, "Name or service not known|name resolution"),
        ({"file": "nowhere.json"}, "does not exist"),
        ({"address": "tcp://127.0.0.1:1", "file": "x"}, "an address or a file"),
        ({}, "an address or a file"),
        ({"address": "tcp://127.0.0.1:1", "resources": {"GPU": 0}}, "must be above zero"),
    ],
)
def test_a_cluster_that_cannot_be_had_is_refused(given, law):
    with pytest.raises(BadInput, match=law), Cluster(**given):
        pass


def test_a_scheduler_that_takes_the_connection_and_says_nothing_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BadInput, match=r"did not answer within 5 s .*; start it"), Cluster(address):
            pass


def test_what_broke_a_result_on_its_way_is_a_failure_and_no_wait_for_ever():
    class Gone(Future):
        def result(self, timeout=None):
            raise OSError("its machine is gone")

    task = Gone()
    outcomes = Future()
    task.set_result("never seen")
    _settle(outcomes, [trial(), trial()], task)
    assert [outcome.error for outcome in outcomes.result(5)] == ["OSError: its machine is gone"] * 2


def test_leaving_an_executor_cancels_what_waits(source):
    begin = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(begin.wait)
        with Borrowed(source, executor, 4) as runner:
            waiting = [runner.submit([trial(number)]) for number in range(4)]
        begin.set()
    assert all(isinstance(one.exception(5), BadInput) for one in waiting)


def test_threads_that_start_workers_at_once_do_not_disturb_each_other(source, tmp_path):
    code = (
        "import threading, tuner.execution as e\n"
        "barrier, broke = threading.Barrier(4), []\n"
        "def start():\n"
        "    barrier.wait()\n"
        "    try: e.start_server()\n"
        "    except BaseException as error: broke.append(error)\n"
        "threads = [threading.Thread(target=start) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert not broke, broke\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (["--scheduler", "tcp://127.0.0.1:1"], "did not answer within 5 s"),
        (["--resource", "GPU=1"], "name its --scheduler"),
        (["--scheduler", "tcp://127.0.0.1:1", "--resource", "GPU"], "must be NAME=AMOUNT"),
    ],
)
def test_on_the_command_line_that_is_one_line_and_nothing_is_written(source, tmp_path, arguments, law):
    path = study_file(tmp_path, 0.1)
    command = [sys.executable, "-m", "tuner.cli", "run", str(path), *arguments]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stderr.count("\n") == 1, told.stderr
    assert law in told.stderr
    assert not (tmp_path / "bowl.db").exists()


def test_an_objective_that_workers_cannot_make_is_refused_before_anything_is_spent(dask, source, tmp_path):
    path = study_file(tmp_path, 0.1)
    path.write_text(path.read_text().replace("sleep = 0.0", 'sleep = 0.0, color = "red"'))
    command = [sys.executable, "-m", "tuner.cli", "run", str(path), "--scheduler-file", str(dask[0])]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2
    assert "refuses args" in told.stderr


def test_a_scheduler_that_goes_away_ends_the_study_with_one_line(source, tmp_path):
    file = tmp_path / "scheduler.json"
    serve = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(file)]
    scheduler = _started("distributed.cli.dask_scheduler", *serve)
    until(lambda: file.exists() and file.read_text())
    told = []

    def search():
        with (
            Cluster(file=str(file)) as cluster,
            tuner.create_study(objective=source, target=Scale(width=256), proxies=[Scale(width=32)]) as study,
        ):
            with pytest.raises(BadInput) as refusal:
                study.optimize(budget=0.1, executor=cluster)
            told.append((str(refusal.value), [entry.state for entry in study.entries]))

    thread = threading.Thread(target=search)
    thread.start()
    time.sleep(3)
    scheduler.kill()
    scheduler.wait()
    thread.join(120)
    [(message, states)] = told
    assert "scheduler" in message
    assert set(states) == {LOST}
