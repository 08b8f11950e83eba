"""Does the 90 % interval hold the true optimum? Random-feature ridge, whose optimum at every width is known exactly.

    python -m benchmarks.coverage --seeds 20                  objectives/ridge.toml
    python -m benchmarks.coverage --seeds 5 --problems tuning
    python -m benchmarks.coverage --seeds 5 --problems held-out

Target: coverage of 80 to 100 % of the seeds; median interval at most a quarter of the search range, on a log line. The
other problems have other numbers of samples and other noise of the labels, so other drifts: those for tuning may be
looked at while the surrogate is changed, the others were set aside before.
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

PROBLEMS: dict[str, list[dict[str, float]]] = {
    "ridge.toml": [{}],
    "tuning": [
        {"psi1": psi1, "label_noise": label_noise}
        for psi1, label_noise in ((1.0, 0.25), (2.0, 1.0), (4.0, 0.5), (8.0, 0.25), (16.0, 1.0))
    ],
    "held-out": [
        {"psi1": psi1, "label_noise": label_noise}
        for psi1, label_noise in ((1.0, 1.0), (2.0, 0.1), (4.0, 1.0), (8.0, 0.1), (16.0, 0.5))
    ],
}


def one(file: StudyFile, args: dict[str, float], seed: int) -> tuple[bool, float, float, float, int]:
    """Covered, interval as a share of the range, regret, expected regret, trials."""
    objective = file.objective.model_copy(update={"args": {**file.objective.args, **args}})
    with open_study(file.model_copy(update={"objective": objective}), in_memory=True, seed=seed) as study:
        study.optimize(None, file.budget.target_runs)
        rec, trials, problem = study.recommend(), len(study.observations), study.problem
    features, width = RandomFeatures(**objective.args), int(problem.target["width"])
    optimum, least = features.optimum(width)
    low, high = rec.interval["ridge"]
    share = math.log(float(high) / float(low)) / problem.nats("ridge")
    regret = features.risk(float(rec.params["ridge"]), width) - least
    return float(low) <= optimum <= float(high), share, regret, rec.expected_regret, trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--problems", choices=PROBLEMS, default="ridge.toml")
    parser.add_argument("--workers", type=int, default=2)
    chosen, file = parser.parse_args(), read("objectives/ridge.toml")
    print(f"{file.path.name}: {file.scale.target} from {file.scale.proxies}, {file.budget.target_runs} target runs")
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("forkserver"), initializer=settle_in) as pool:
        jobs = {
            str(args or chosen.problems): [pool.submit(one, file, args, seed) for seed in range(chosen.seeds)]
            for args in PROBLEMS[chosen.problems]
        }
        rows = {name: [job.result() for job in of_problem] for name, of_problem in jobs.items()}
    print("median (quartiles) over seeds; share: of the range that the interval takes")
    for name, outcomes in [*rows.items(), ("all", [row for of_problem in rows.values() for row in of_problem])]:
        covered, *columns = (np.array(column) for column in zip(*outcomes, strict=True))
        share, regret, expected, trials = (
            "{1:.2g} ({0:.2g} .. {2:.2g})".format(*np.quantile(column, [0.25, 0.5, 0.75])) for column in columns
        )
        print(
            f"{name:40} covered {covered.mean():4.0%}   share {share}   "
            f"regret {regret}   expected {expected}   trials {trials}"
        )


if __name__ == "__main__":
    main()
