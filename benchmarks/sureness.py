"""How often a verdict's probability is right: what a recommendation loses, as it was told and as the target's rows say.

    TUNER_TABLES=... OMP_NUM_THREADS=1 python -m benchmarks.sureness --seeds 10

Runs as of `benchmarks.predictive`: 26 rows of the cheaper cells of the four language models that may be developed on.
Of every answer the probability that no more than a share of a run's noise is to be expected, for shares from 1/4 to 4,
and whether it lost no more. Two readings: the expectation of each process of the set, over the set (as the verdict has
it), and the loss itself, over all draws.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.predictive import sample
from benchmarks.recorded import LLM_DEV, lost, problem
from tuner import engine
from tuner.landscape import Landscape
from tuner.posterior import fit_of, generator_of
from tuner.replay import Replay

SHARES = (0.25, 0.5, 1.0, 2.0, 4.0)
BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0 + 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    told = []  # by expectation, by loss, whether it held
    with tempfile.TemporaryDirectory() as folder:
        for name in LLM_DEV:
            replay = Replay.of(problem(name, Path(folder)))
            best = min(run.loss for run in replay.truth.runs)
            for seed in seeds:
                runs = sample(replay, seed)
                answer = engine.recommend(replay.problem, runs, seed=seed)
                fitted, chance = fit_of(replay.problem, runs, seed), generator_of(seed, len(runs))
                place = replay.problem.space.encode(replay.problem.to_base(answer.params, replay.problem.target))
                land = Landscape.of(replay.problem, fitted, [replay.problem.target], {"answer": place}, chance)
                loses = land.regret("answer")
                realised = best * lost(replay.truth.score(answer.params)) / 100
                mays = [share * answer.noise for share in SHARES]
                told += [[(land.expected(loses) <= may).mean(), (loses <= may).mean(), realised <= may] for may in mays]
    found = np.array(told, dtype=float)
    print("| probability told | expectations: held (cases) | losses: held (cases) |\n|---|---|---|")
    for low, high in pairwise(BINS):
        cells = [found[(low <= found[:, k]) & (found[:, k] < high), 2] for k in (0, 1)]
        shown = [f"{cell.mean():.2f} ({len(cell)})" if len(cell) else "-" for cell in cells]
        print(f"| {low:g} to {min(high, 1):g} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
