"""How good an answer is from 26 recorded runs that cost little, and how far off the predicted loss is.

    TUNER_TABLES=... OMP_NUM_THREADS=1 python -m benchmarks.predictive --seeds 6

A quick check of the surrogate alone, without the acquisition: on the four language models that it may be developed on,
8 rows at random, 18 near the best of their cell, from cells that cost at most 8 % of a run at the target. z: the mean
loss of the target's rows within 1 % of its best, minus the mean predicted for them, over the predicted deviation.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.recorded import LLM_DEV, lost, problem
from tuner import engine
from tuner.replay import Replay
from tuner.runs import Run
from tuner.trial import Observation

CHEAP, NEAR_BELOW, NEAR_ABOVE = 0.08, 0.02, 0.01


def sample(replay: Replay, seed: int) -> list[Observation]:
    chance = random.Random(seed)
    cells: dict[object, list[Run]] = {}
    for run in replay.table.runs:
        if run.cost < CHEAP * replay.table.cost_at(replay.problem.target):
            cells.setdefault(run.scale, []).append(run)
    rows = [run for cell in cells.values() for run in cell]
    near = [run for cell in cells.values() for run in cell if run.loss < (1 + NEAR_BELOW) * min(r.loss for r in cell)]
    near.sort(key=lambda run: run.cost)
    half = len(near) // 2
    taken = [*chance.sample(rows, 8), *chance.sample(near[:half], 12), *chance.sample(near[half:], 6)]
    to_base = replay.problem.to_base
    return [Observation(to_base(run.params, run.scale), run.scale, run.loss, run.cost) for run in taken]


def check(replay: Replay, seed: int) -> list[float]:
    """z; covered, interval score (means over hyperparameters); regret and the one predicted, in percent."""
    asked, truth, runs = replay.problem, replay.truth, sample(replay, seed)
    rec = engine.recommend(asked, runs, seed=0)
    best = min(run.loss for run in truth.runs)
    top = [run for run in truth.runs if run.loss < (1 + NEAR_ABOVE) * best]
    places = asked.space.encode_all([asked.to_base(run.params, asked.target) for run in top])
    mean, low, high = engine.landscape(asked, runs, places, asked.target)
    sd = float(np.mean(high - low)) / (2 * 1.645)
    told = truth.told(rec.interval, 0.9)
    z = (np.mean([run.loss for run in top]) - mean.mean()) / sd
    regret = lost(truth.score(rec.params))
    predicted = 100 * rec.expected_regret / abs(best)
    covered, score = (float(np.mean(list(told[key].values()))) for key in ("covered", "interval_score"))
    return [z, covered, score, regret, predicted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    seeds = range(parser.parse_args().seeds)
    columns = ["target", "z, mean", "z, root mean square", "covered", "interval score", "regret %: median"]
    columns += ["90th percentile", "mean", "mean predicted"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    everything = []
    with tempfile.TemporaryDirectory() as folder:
        for name in LLM_DEV:
            replay = Replay.of(problem(name, Path(folder)))
            everything.append(np.array([check(replay, seed) for seed in seeds]))
            print(line(name, everything[-1]), flush=True)
    print(line("all", np.concatenate(everything)))


def line(name: str, checks: np.ndarray) -> str:
    z, covered, score, regret, predicted = checks.T
    told = [f"{z.mean():+.1f}", f"{np.sqrt(np.square(z).mean()):.1f}", f"{covered.mean():.2f}", f"{score.mean():.2f}"]
    regrets = [np.median(regret), np.quantile(regret, 0.9), regret.mean(), predicted.mean()]
    return f"| {' | '.join([name, *told, *(f'{value:.3f}' for value in regrets)])} |"


if __name__ == "__main__":
    main()
