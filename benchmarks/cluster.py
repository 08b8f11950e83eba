"""A study on a real Dask cluster of this machine, with its workers and its coordinator killed; and what a trial costs.

    OMP_NUM_THREADS=1 python -m benchmarks.cluster storm --trials 200
    OMP_NUM_THREADS=1 python -m benchmarks.cluster overhead

storm: a scheduler, two workers under nannies, and a coordinator (`tuner run`) in processes of their own; every few
seconds a worker is killed, three times the coordinator, which is started again. The record is then read: how often each
trial finished, what was lost, and whether anything ran that the record does not know of.

overhead: seconds from handing a group of one trial over to having its outcome, where training takes none: on the local
pool and on the cluster, in turns in one run; medians (quartiles).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from tuner.cluster import Cluster
from tuner.execution import WorkerPool
from tuner.objective import ObjectiveSource
from tuner.opening import open_study
from tuner.record import DIVERGED, FAILED, FINISHED, LOST, RUNNING
from tuner.scale import Scale
from tuner.studyfile import read
from tuner.trial import Trial

OBJECTIVE = '''
import os, time
from pathlib import Path
from tuner.space import Float, SearchSpace

class Bowl:
    """Writes down that it ended: number of the seed, process."""
    space = SearchSpace({"lr": Float(1e-4, 1e-1, log=True)})

    def __init__(self, folder, sleep):
        self.folder, self.sleep = Path(folder), sleep

    def cost(self, params, scale):
        return float(scale["width"])

    def __call__(self, params, scale, seed):
        import math
        time.sleep(self.sleep)
        (self.folder / f"{seed}-{os.getpid()}-{time.time_ns()}").touch()
        return 1 + math.log(params["lr"] / 1e-2) ** 2 / 10 + 4 / scale["width"]
'''
STUDY = """
[study]
name = "storm"
[objective]
call = "storm_bowl:Bowl"
args = {{ folder = "{runs}", sleep = {sleep} }}
[scale]
target = {{ width = 3200 }}
proxies = {{ width = [32, 33] }}
[budget]
target_runs = {budget}
retries = 20
"""


class Machines:
    """A scheduler and two workers, which are replaced as they are killed: as a queueing system would."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self._run("scheduler", "--port", "0", "--no-show", "--scheduler-file", str(self.file))
        while not self.file.exists():
            time.sleep(0.05)
        self.workers = [self._worker(), self._worker()]

    def _run(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--host", "127.0.0.1", "--no-dashboard"]
        return subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)

    def _worker(self) -> subprocess.Popen[bytes]:
        options = ["--scheduler-file", str(self.file), "--nthreads", "1", "--memory-limit", "0"]
        return self._run("worker", *options, "--local-directory", str(self.folder))

    def lose(self, which: int) -> None:
        """A machine: the nanny with all below it, and another comes."""
        everything = psutil.Process(self.workers[which].pid)
        for process in [everything, *everything.children(recursive=True)]:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.workers[which].wait()
        self.workers[which] = self._worker()


@contextmanager
def machines() -> Iterator[Machines]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "storm_bowl.py").write_text(OBJECTIVE)
        (Path(folder) / "runs").mkdir()
        try:
            yield Machines(Path(folder))
        finally:
            for child in psutil.Process().children(recursive=True):
                child.kill()


def storm(trials: int, sleep: float, every: float, seed: int) -> None:
    chance = random.Random(seed)
    with machines() as here:
        path, runs = here.folder / "study.toml", here.folder / "runs"
        path.write_text(STUDY.format(runs=runs, sleep=sleep, budget=trials / 100))
        command = [sys.executable, "-m", "tuner.cli", "run", str(path), "--scheduler-file", str(here.file)]
        start, killed, died = time.monotonic(), 0, []
        marks = [trials * share for share in (0.25, 0.5, 0.75)]
        coordinator = subprocess.Popen([*command, "--no-verify"], stderr=subprocess.DEVNULL)
        next_kill = time.monotonic() + every
        while coordinator.poll() is None:
            time.sleep(0.1)
            if time.monotonic() > next_kill:
                here.lose(chance.randrange(2))
                killed, next_kill = killed + 1, time.monotonic() + every * (0.5 + chance.random())
            if marks and len(list(runs.iterdir())) >= marks[0]:
                marks.pop(0)
                coordinator.kill()
                coordinator.wait()
                died.append(len(list(runs.iterdir())))
                coordinator = subprocess.Popen([*command, "--no-verify"], stderr=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        with open_study(read(path), read_only=True) as study:
            entries = study.entries
            states = Counter(entry.state for entry in entries)
            retried = {entry.retry_of for entry in entries}
            done = [e.trial.seed for e in entries if e.state in (FINISHED, DIVERGED)]
            open_ends = [e for e in entries if e.state in (FAILED, LOST) and e.trial.number not in retried]
            spent = study.spent() / study.target_cost
        ended = Counter(int(file.name.split("-")[0]) for file in runs.iterdir())
        unseen = ended.total() - len(done)
        twice = sum(count > 1 for count in Counter(done).values())
        told = {
            "trials finished": len(done),
            "twice": twice,
            "still running": states[RUNNING],
            "failed": states[FAILED],
            "lost": states[LOST],
            "neither retried nor done": len(open_ends),
            "target runs": f"{spent:.3f} of {trials / 100:g}",
            "trainings ended unrecorded": unseen,
            "workers killed": killed,
            "coordinators killed, after": ", ".join(map(str, died)),
            "seconds": f"{seconds:.0f}",
        }
        print(f"| {' | '.join(told)} |\n{'|---' * len(told)}|\n| {' | '.join(map(str, told.values()))} |")
        assert not twice
        assert not states[RUNNING]
        assert not open_ends or spent > 0.99 * trials / 100, "a lost trial is made again while the budget pays for it"
        assert not marks, "the study ended before the coordinator was killed three times"
        assert coordinator.returncode == 0


def overhead(groups: int) -> None:
    with machines() as here:
        source = ObjectiveSource("storm_bowl:Bowl", {"folder": str(here.folder / "runs"), "sleep": 0.0})
        source = ObjectiveSource(source.call, source.args, (str(here.folder),))
        took: dict[str, list[float]] = {"local pool": [], "cluster": []}
        with Cluster(file=str(here.file)) as cluster, cluster.runner(source) as there, WorkerPool(source, 1) as local:
            for runner in (there, local) * 2:  # every process is warm
                for future in [runner.submit([_trial(-1)]) for _ in range(4)]:
                    future.result()
            for number in range(groups):
                for name, runner in (("local pool", local), ("cluster", there)):
                    start = time.perf_counter()
                    runner.submit([_trial(number)]).result()
                    took[name].append(1e3 * (time.perf_counter() - start))
        print("| where | ms a trial |\n|---|---|")
        for name, values in took.items():
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            print(f"| {name} | {middle:.1f} ({low:.1f} .. {high:.1f}) |")


def _trial(number: int) -> Trial:
    return Trial(number, {"lr": 0.01}, Scale(width=32), number + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="what")
    storming = commands.add_parser("storm")
    storming.add_argument("--trials", type=int, default=200)
    storming.add_argument("--sleep", type=float, default=1.0, help="seconds that a training takes")
    storming.add_argument("--every", type=float, default=15.0, help="seconds between two killed workers")
    storming.add_argument("--seed", type=int, default=0)
    commands.add_parser("overhead").add_argument("--groups", type=int, default=100)
    chosen = vars(parser.parse_args())
    {"storm": storm, "overhead": overhead}[chosen.pop("what")](**chosen)


if __name__ == "__main__":
    main()
