"""What runs that diverged do to an answer: recorded rows of which some are told as diverged.

    TUNER_TABLES=... OMP_NUM_THREADS=1 python -m benchmarks.diverged --seeds 5

Rows at random from the cheaper cells; as diverged count those whose learning rate is above a quantile of the drawn ones
("from a rate on", as training does), or whose loss is above that quantile of its scale's ("the worst"). Regret of the
answer in percent, median (worst) over draws.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.recorded import problem
from benchmarks.slips import drawn, regret
from tuner.replay import Replay
from tuner.scale import by_scale
from tuner.trial import Observation

PROBLEMS, ROWS, SHARES = ("429M/22.7B", "phoneme", "segment"), 60, (0.0, 0.2, 0.4, 0.6)


def from_a_rate_on(runs: list[Observation], share: float) -> list[Observation]:
    edge = np.quantile([float(run.params["lr"]) for run in runs], 1 - share)
    return [replace(run, loss=math.inf) if float(run.params["lr"]) > edge else run for run in runs]


def the_worst(runs: list[Observation], share: float) -> list[Observation]:
    told = list(runs)
    for members in by_scale(run.scale for run in runs).values():
        edge = np.quantile([runs[i].loss for i in members], 1 - share)
        for i in members:
            if runs[i].loss > edge:
                told[i] = replace(runs[i], loss=math.inf)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    print(f"| problem, {ROWS} rows | diverged | {' | '.join(f'{share:.0%}' for share in SHARES)} |")
    print(f"|---|---|{'---|' * len(SHARES)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in PROBLEMS:
            replay = Replay.of(problem(name, Path(folder)))
            draws = [drawn(replay, ROWS, seed)[0] for seed in seeds]
            for how in (from_a_rate_on, the_worst):
                lost = [[regret(replay, how(runs, share), seed) for share in SHARES] for seed, runs in enumerate(draws)]
                cells = [f"{np.median(r):.3g} ({max(r):.3g})" for r in zip(*lost, strict=True)]
                print(f"| {name} | {how.__name__.replace('_', ' ')} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
