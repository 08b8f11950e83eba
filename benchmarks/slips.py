"""One absurd row among recorded runs: whether it is found, and what it does to the answer.

    TUNER_TABLES=... OMP_NUM_THREADS=1 python -m benchmarks.slips --seeds 6

Rows at random from all cheaper cells of two language models that may be developed on; of one of them, at random, the
loss is made 30 % lower, or a million. Found: of that many draws of rows, those in which the low one was left out;
false alarms: those in which a true one was.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.recorded import LLM_DEV, lost, problem
from tuner import engine
from tuner.outlier import too_low
from tuner.replay import Replay
from tuner.trial import Observation

LOW, HIGH, DRAWS = 0.7, 1e6, 100


def drawn(replay: Replay, count: int, seed: int) -> tuple[list[Observation], int]:
    """Rows at random, and the one to spoil."""
    chance, asked = random.Random(seed), replay.problem
    rows = chance.sample([run for run in replay.table.runs if run.scale in asked.proxies], count)
    told = [Observation(asked.to_base(r.params, r.scale), r.scale, r.loss, r.cost) for r in rows]
    return told, chance.randrange(count)


def spoilt(runs: list[Observation], which: int, loss: float) -> list[Observation]:
    return [replace(run, loss=loss) if i == which else run for i, run in enumerate(runs)]


def regret(replay: Replay, runs: list[Observation], seed: int) -> float:
    """Of the answer, in percent."""
    return lost(replay.truth.score(engine.best(replay.problem, runs, seed=seed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    seeds = range(parser.parse_args().seeds)
    print(
        f"| target | rows | found of {DRAWS} | false alarms | regret % (worst) as recorded | 30 % too low | a million |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in LLM_DEV[:2]:
            replay = Replay.of(problem(name, Path(folder)))
            for count in (30, 100, 300):
                draws = [drawn(replay, count, seed) for seed in range(DRAWS)]
                doubts = [too_low(replay.problem, spoilt(runs, i, LOW * runs[i].loss)) == i for runs, i in draws]
                false = [too_low(replay.problem, runs) is not None for runs, _ in draws]
                found = [
                    [
                        regret(replay, told, seed=0)
                        for told in (runs, spoilt(runs, i, LOW * runs[i].loss), spoilt(runs, i, HIGH))
                    ]
                    for runs, i in (draws[seed] for seed in seeds)
                ]
                cells = [f"{np.median(r):.3f} ({max(r):.3f})" for r in zip(*found, strict=True)]
                print(f"| {' | '.join([name, str(count), str(sum(doubts)), str(sum(false)), *cells])} |", flush=True)


if __name__ == "__main__":
    main()
