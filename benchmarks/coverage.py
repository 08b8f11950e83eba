"""Does the 90 % interval hold the true optimum? The random-feature ridge of objectives/ridge.toml, whose
optimum at every width is known exactly.

    python -m benchmarks.coverage --seeds 20

Target: coverage of 80 to 100 % of the seeds; median interval at most a quarter of the search range, on a log line.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from objectives.ridge import RandomFeatures
from tuner.execution import settle_in
from tuner.opening import open_study
from tuner.studyfile import StudyFile, read


def one(file: StudyFile, seed: int) -> tuple[bool, float, float, float, int]:
    """Covered, interval as a share of the range, regret, expected regret, trials."""
    with open_study(file, in_memory=True, seed=seed) as study:
        study.optimize(None, file.budget.target_runs)
        rec, trials, problem = study.recommend(), len(study.observations), study.problem
    objective, width = RandomFeatures(**file.objective.args), int(problem.target["width"])
    optimum, least = objective.optimum(width)
    low, high = rec.interval["ridge"]
    share = math.log(float(high) / float(low)) / problem.nats("ridge")
    regret = objective.risk(float(rec.params["ridge"]), width) - least
    return float(low) <= optimum <= float(high), share, regret, rec.expected_regret, trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    chosen, file = parser.parse_args(), read("objectives/ridge.toml")
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("forkserver"), initializer=settle_in) as pool:
        jobs = [pool.submit(one, file, seed) for seed in range(chosen.seeds)]
        rows = [job.result() for job in jobs]
    covered, share, regret, expected, trials = (np.array(column) for column in zip(*rows, strict=True))
    quartiles = [0.25, 0.5, 0.75]
    print(f"{file.path.name}: {file.scale.target} from {file.scale.proxies}, {file.budget.target_runs} target runs")
    print(f"trials                          {np.quantile(trials, quartiles)}")
    print(f"optimum in the 90 % interval    {covered.mean():.0%}")
    print(f"interval as a share of range    {np.round(np.quantile(share, quartiles), 3)}")
    print(f"regret                          {np.round(np.quantile(regret, quartiles), 6)}")
    print(f"expected regret                 {np.round(np.quantile(expected, quartiles), 6)}")


if __name__ == "__main__":
    main()
