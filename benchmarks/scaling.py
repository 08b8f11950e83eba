"""How a study grows: real searches over a simulated cluster, whose trainings take as long as recorded runs took.

    TUNER_TABLES=... OMP_NUM_THREADS=1 python -m benchmarks.scaling --trials 100 1000 10000 --workers 10 100 1000 \
        --output scaling.json --figure benchmarks/figures/scaling.svg

The coordinator is the real one: its proposals, its record in SQLite, its loop. The cluster is not: a training (the
537M/50B table as `benchmarks.samplers` reads it, at four of its proxies; its FLOPs at 4e14 a second, give or take a
tenth) ends when a clock says so, which runs on by the seconds that the coordinator really takes, and jumps where it
would wait. A record of so many trials is there at the beginning; then all workers are given one, and `--window` trials
are waited for. The time until all had one is told apart, and is not counted as idleness. `--output` adds to what the
file holds, and the figure is of all that it holds.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from sqlalchemy import event

import tuner.study
from benchmarks.recorded import problem
from benchmarks.samplers import Recorded
from tuner.execution import Outcome
from tuner.opening import create_study
from tuner.record import RUNNING
from tuner.replay import Replay
from tuner.runs import Run
from tuner.study import Study
from tuner.trial import Result, Trial

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "transfer-tuner"  # the same bytes from the same numbers

PROBLEM, PROXIES = "537M/50B", 4
SPEED = 4e14  # FLOPs a second: a large accelerator at two fifths of its peak
SPREAD = 0.1  # of the logarithm of what a training takes


class Enough(Exception):
    """As many trials have ended as were asked for."""


class Simulated:
    """A cluster whose clock the coordinator's own seconds move, and its waiting.

    Attributes:
        idle: worker-seconds without work, after the first time that all had some.
        begun: when that was; None: not yet.
    """

    def __init__(self, table: Recorded, workers: int, trials: int, seed: int) -> None:
        self._table, self._workers, self._left = table, workers, trials
        self._rng = np.random.default_rng(seed)
        self._running: list[tuple[float, int, Future[list[Outcome]], list[Outcome]]] = []
        self._asked = False
        self.clock, self.idle, self.worked, self.begun = 0.0, 0.0, 0.0, math.nan
        self._last = time.perf_counter()

    def __enter__(self) -> Simulated:
        return self

    def __exit__(self, *exception: object) -> None: ...

    @property
    def capacity(self) -> int:
        """Asked for twice in a row, the coordinator is waiting: on to when the next training ends."""
        now = time.perf_counter()
        self._advance(now - self._last)
        waits = self._asked and self._running and not self._end()
        if waits:
            self._advance(self._running[0][0] - self.clock)
            self._end()
        self._asked, self._last = not waits, time.perf_counter()
        return self._workers

    def _advance(self, seconds: float) -> None:
        """Time passes; workers are busy until their training ends."""
        until = self.clock + seconds
        if not math.isnan(self.begun):
            busy = sum(min(end, until) - self.clock for end, *_ in self._running if end > self.clock)
            self.worked += busy
            self.idle += self._workers * seconds - busy
        self.clock = until

    def _end(self) -> int:
        ended = 0
        while self._running and self._running[0][0] <= self.clock:
            _, _, future, outcomes = heapq.heappop(self._running)
            future.set_result(outcomes)
            ended, self._left = ended + 1, self._left - len(outcomes)
        if self._left <= 0:
            raise Enough
        return ended

    def submit(self, trials: Sequence[Trial]) -> Future[list[Outcome]]:
        self._asked = False
        now = time.perf_counter()
        self._advance(now - self._last)
        [trial], future = trials, Future[list[Outcome]]()
        flops = self._table.share(trial.scale) * self._table.whole
        seconds = flops / SPEED * math.exp(SPREAD * self._rng.standard_normal())
        outcome: list[Outcome] = [Result(self._table.loss(trial.params, trial.scale), flops, seconds)]
        heapq.heappush(self._running, (self.clock + seconds, trial.number, future, outcome))
        if len(self._running) == self._workers and math.isnan(self.begun):
            self.begun = self.clock
        self._last = time.perf_counter()
        return future


def grown(table: Recorded, trials: int, url: str) -> Study:
    """A study with a record of so many runs, at the proxies by the inverse of their cost."""
    asked = table.replay.problem
    cheap = sorted(asked.proxies, key=table.share)
    proxies = [cheap[round(i)] for i in np.linspace(0, 0.5 * (len(cheap) - 1), PROXIES)]  # half an hour, and more
    study = create_study(
        asked.space,
        target=asked.target,
        proxies=proxies,
        parametrization="sp-adamw",
        cost=lambda params, scale: table.share(scale) * table.whole,
        storage=url,
    )
    missing = trials - len(study.entries)
    if missing > 0:
        rng = np.random.default_rng(len(study.entries))
        weights = np.array([1 / table.share(scale) for scale in proxies])
        runs = []
        for _ in range(missing):
            scale = proxies[rng.choice(len(weights), p=weights / weights.sum())]
            params = asked.space.decode(rng.random(len(asked.space)))
            loss = table.loss(params, scale) * (1 + 1e-3 * rng.standard_normal())
            runs.append(Run(params, scale, loss, table.share(scale) * table.whole))
        study.record.add(asked.space, runs)
    return study


def measured(study: Study, cluster: Simulated) -> dict[str, Any]:
    """What the coordinator does while so many trials more end."""
    writes = [0]
    engine = study.record._storage.engine

    def wrote(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        writes[0] += statement.lstrip()[:6].upper() in ("INSERT", "UPDATE")

    event.listen(engine, "after_cursor_execute", wrote)
    before, start, cpu = len(study.entries), time.perf_counter(), time.process_time()
    with suppress(Enough):
        study._search(cluster, 1e9, 1, None, lambda study: None)
    made = len(study.entries) - before
    return {
        "made": made,
        "seconds": (time.perf_counter() - start) / made,
        "cpu": (time.process_time() - cpu) / made,
        "thinking": sum(study.thought) / made,
        "proposals": made / max(len(study.thought), 1),
        "writes": writes[0] / made,
        "idle": cluster.idle / (cluster.idle + cluster.worked) if cluster.worked else None,
        "fill": cluster.begun,
        "hours": cluster.clock / 3600,
        "running": sum(e.state == RUNNING for e in study.entries),
    }


def figure(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """What a trial costs the coordinator, and how long workers are kept waiting, against the record's length."""
    shown, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    for workers in sorted({row["workers"] for row in rows}):
        of = sorted((row for row in rows if row["workers"] == workers), key=lambda row: row["trials"])
        x = [row["trials"] for row in of]
        left.plot(x, [row["seconds"] for row in of], "o-", label=f"{workers:,} workers")
        right.plot(x, [math.nan if row["idle"] is None else 100 * row["idle"] for row in of], "o-")
    for axes, what in ((left, "coordinator's seconds a trial"), (right, "workers kept waiting, %")):
        axes.set(xscale="log", xlabel="trials in the record", ylabel=what, ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    shown.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--window", type=int, default=100)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--figure", type=Path)
    chosen = parser.parse_args()
    rows = json.loads(chosen.output.read_text()) if chosen.output and chosen.output.exists() else []
    tuner.study.PATIENCE = 0.0  # the clock is ours
    print("| trials before | workers | trials made | coordinator's s a trial | of these proposing | trials a proposal "
          "| writes a trial | database MB | s until all workers have one | hours simulated | idle share |")  # fmt: skip
    print("|---" * 11 + "|")
    with tempfile.TemporaryDirectory() as folder:
        table = Recorded(Replay.of(problem(PROBLEM, Path(folder))))
        path = Path(folder) / "grown.db"
        for trials in chosen.trials:
            grown(table, trials, f"sqlite:///{path}").close()
            for workers in chosen.workers:
                copy = path.with_name("copy.db")
                shutil.copy(path, copy)
                with grown(table, trials, f"sqlite:///{copy}") as study:
                    cluster = Simulated(table, workers, chosen.window, seed=0)
                    told = {"trials": trials, "workers": workers, **measured(study, cluster)}
                rows.append(told)
                idle = "-" if told["idle"] is None else f"{100 * told['idle']:.2f} %"
                print(
                    f"| {trials} | {workers} | {told['made']} | {told['seconds']:.3f} | {told['thinking']:.3f} "
                    f"| {told['proposals']:.1f} | {told['writes']:.1f} | {os.path.getsize(copy) / 2**20:.1f} "
                    f"| {told['fill']:.0f} | {told['hours']:.2f} | {idle} |",
                    flush=True,
                )
                copy.unlink()
                if chosen.output:
                    chosen.output.write_text(json.dumps(rows))
    if chosen.figure:
        figure(rows, chosen.figure)


if __name__ == "__main__":
    main()
