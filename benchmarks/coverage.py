"""Does the 90 % interval hold the true optimum? Random-feature ridge, whose optimum at every width is known exactly.

    python -m benchmarks.coverage --seeds 20

Target: coverage of 80 to 100 % of the seeds; median interval at most a quarter of the search range, on a log line.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

import tuner
from objectives.ridge import RandomFeatures


def one(seed: int, budget: float, width: int) -> tuple[bool, float, float, float, int]:
    """Covered, interval as a share of the range, regret, expected regret, trials."""
    objective = RandomFeatures()
    proxies = [tuner.Scale(width=w) for w in (64, 128, 256)]
    optimum, least = objective.optimum(width)
    with tuner.create_study(objective=objective, target=tuner.Scale(width=width), proxies=proxies, seed=seed) as study:
        study.optimize(objective, budget)
        rec, trials = study.recommend(), len(study.observations)
    (low, high), ranged = rec.interval["ridge"], objective.space["ridge"]
    share = math.log(float(high) / float(low)) / ranged.nats
    regret = objective.risk(float(rec.params["ridge"]), width) - least
    return float(low) <= optimum <= float(high), share, regret, rec.expected_regret, trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("forkserver")) as pool:
        jobs = [pool.submit(one, seed, chosen.budget, chosen.width) for seed in range(chosen.seeds)]
        rows = [job.result() for job in jobs]
    covered, share, regret, expected, trials = (np.array(column) for column in zip(*rows, strict=True))
    quartiles = [0.25, 0.5, 0.75]
    print(f"target width {chosen.width}, proxies 64, 128, 256, {chosen.budget} target runs, {chosen.seeds} seeds")
    print(f"trials                          {np.quantile(trials, quartiles)}")
    print(f"optimum in the 90 % interval    {covered.mean():.0%}")
    print(f"interval as a share of range    {np.round(np.quantile(share, quartiles), 3)}")
    print(f"regret                          {np.round(np.quantile(regret, quartiles), 6)}")
    print(f"expected regret                 {np.round(np.quantile(expected, quartiles), 6)}")


if __name__ == "__main__":
    main()
