"""How near the answer is to a known optimum, as hyperparameters become more.

    OMP_NUM_THREADS=1 python -m benchmarks.dimensions --seeds 5

Quadratic bowls that drift with width, random runs at widths 32, 64 and 128 for 1024, as many at each as `--runs`, noise
of 0.001; no parametrization. Regret of the answer, what was predicted of it, and how many 90 % intervals hold the
optimum; median (largest) over seeds.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

import tuner
from tuner import engine
from tuner.parametrization import preset
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.trial import Observation

WIDTHS, TARGET, NOISE = (32, 64, 128), Scale(width=1024), 1e-3


def asked(dimensions: int) -> Problem:
    space = tuner.SearchSpace({f"x{j}": tuner.Float(1e-3, 1.0, log=True) for j in range(dimensions)})
    proxies = tuple(Scale(width=width) for width in WIDTHS)
    return Problem(space, TARGET, proxies, proxies[0], preset("none"), lambda p, s: s["width"] ** 2)


def answered(problem: Problem, runs: int, seed: int) -> tuple[float, float, float, float]:
    """True regret of the answer, predicted regret, share of intervals that hold, seconds."""
    d, rng = len(problem.space), np.random.default_rng(seed)
    best, drift, curvature = 0.3 + 0.4 * rng.random(d), 0.02 * rng.standard_normal(d), np.exp(rng.normal(0.7, 0.5, d))

    def above(u: np.ndarray, scale: Scale) -> float:
        away = u - best - drift * math.log(scale["width"] / TARGET["width"])
        return float(0.5 * curvature @ away**2)

    seen = []
    for scale in problem.proxies:
        for u in rng.random((runs, d)):
            loss = 1 + scale["width"] ** -0.5 + above(u, scale) + NOISE * float(rng.standard_normal())
            seen.append(Observation(problem.space.decode(u), scale, loss, problem.cost({}, scale)))
    start = time.perf_counter()
    rec = engine.recommend(problem, seen)
    seconds, truth = time.perf_counter() - start, problem.space.decode(best)
    held = [float(low) <= float(truth[name]) <= float(high) for name, (low, high) in rec.interval.items()]
    return above(problem.space.encode(rec.params), TARGET), rec.expected_regret, float(np.mean(held)), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    chosen = parser.parse_args()
    print("| hyperparameters | regret of the answer | predicted | intervals that hold | s |\n|---|---|---|---|---|")
    for d in chosen.dimensions:
        found = np.array([answered(asked(d), chosen.runs, seed) for seed in range(chosen.seeds)])
        regret, predicted, held, seconds = found.T
        spans = [f"{np.median(v):.1e} ({v.max():.1e})" for v in (regret, predicted)]
        print(f"| {d} | {' | '.join(spans)} | {held.mean():.2f} | {np.median(seconds):.1f} |", flush=True)


if __name__ == "__main__":
    main()
