"""Standard parametrization against muP on the same objective: the drift that is reported, and where both end.

    python -m benchmarks.drift --seeds 5

Target: under SP the drift of lr in width is clearly below zero, under muP near zero, and both end near the same optimum
loss at the target. The drift is reported twice from the same runs: with the preset's prior, and with that of "none",
which is centred on no drift and wide, so that what the runs say is seen apart from what theory expects.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np

import tuner
from objectives.mlp import DigitsMLP
from tuner.engine import recommend
from tuner.execution import Serial, settle_in
from tuner.parametrization import preset
from tuner.trial import Result, Trial

FRESH = 5  # seeds on which a recommendation is measured, none of them seen by a search


def one(parametrization: str, seed: int, budget: float) -> tuple[float, ...]:
    """Drift of lr (mean, low, high) by two priors, the recommended raw lr, mean loss at the target on fresh seeds."""
    objective = DigitsMLP(parametrization=parametrization)
    proxies = [tuner.Scale(width=w) for w in (32, 64, 128)]
    with tuner.create_study(objective=objective, target=tuner.Scale(width=1024), proxies=proxies, seed=seed) as study:
        study.optimize(objective, budget)
        rec, target = study.recommend(), study.problem.target
        unbelieving = recommend(replace(study.problem, parametrization=preset("none")), study.observations, seed=seed)
    runs = Serial(objective).submit([Trial(i, rec.params, target, 10**9 + i) for i in range(FRESH)]).result()
    loss = float(np.mean([run.loss if isinstance(run, Result) else np.inf for run in runs]))
    return *rec.drift["lr"]["width"], *unbelieving.drift["lr"]["width"], float(rec.params["lr"]), loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    print(f"DigitsMLP, target width 1024, proxies 32, 64, 128, {chosen.budget} target runs, {chosen.seeds} seeds")
    print("medians; in brackets the 90 % interval of the drift, the range over seeds of the others")
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("forkserver"), initializer=settle_in) as pool:
        for name in ("sp-adamw", "mup-adamw"):
            jobs = [pool.submit(one, name, seed, chosen.budget) for seed in range(chosen.seeds)]
            rows = np.array([job.result() for job in jobs])
            preset_drift, free_drift = np.median(rows[:, :3], 0), np.median(rows[:, 3:6], 0)
            lr, loss = rows[:, 6], rows[:, 7]
            print(name)
            print("  drift of lr, preset's prior      {:+.2f} [{:+.2f}, {:+.2f}]".format(*preset_drift))
            print("  drift of lr, prior around zero   {:+.2f} [{:+.2f}, {:+.2f}]".format(*free_drift))
            print(f"  raw lr at width 1024             {np.median(lr):.4g} ({lr.min():.4g} .. {lr.max():.4g})")
            print(f"  loss there, fresh seeds          {np.median(loss):.4f} ({loss.min():.4f} .. {loss.max():.4f})")


if __name__ == "__main__":
    main()
