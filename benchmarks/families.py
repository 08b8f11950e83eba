"""Learning-rate curves of the synthetic families over width: the truth that verdicts are judged against.

    OMP_NUM_THREADS=1 python -m benchmarks.families ball index index-repaired deep-linear
    OMP_NUM_THREADS=1 python -m benchmarks.families index --set inputs=64 indices=15 batch=256 steps=16384

Rates in factors of 2, medians over seeds; every local minimum that is deeper than the seeds' spread is told, the lowest
first. `--set` changes the family's arguments, `--sp` its parametrization.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from objectives.shallow import Ball, DeepLinear, Index, Shallow
from tuner.execution import settle_in
from tuner.scale import Scale
from tuner.trial import Trial

FAMILIES = {
    "ball": (Ball, {}),
    "index": (Index, {}),
    "index-repaired": (Index, {"readout_rate": 0.02}),
    "deep-linear": (DeepLinear, {}),
}
RATES = tuple(2.0**k for k in range(-13, 1))
STACKED = 14


def curve(objective: Shallow, width: int, seed: int) -> list[float]:
    trials = [Trial(k, {"lr": lr}, Scale(width=width), seed) for k, lr in enumerate(RATES)]
    found = [r.loss for i in range(0, len(trials), STACKED) for r in objective.train_many(trials[i : i + STACKED])]
    return [loss if np.isfinite(loss) else np.inf for loss in found]


def valleys(losses: np.ndarray) -> list[tuple[float, float]]:
    """(rate, median loss) of each local minimum with a rise to both sides above the seeds' spread, lowest first."""
    middle = np.median(losses, axis=0)
    finite = np.isfinite(losses).all(0)
    spread = 2 * float(np.median(losses[:, finite].std(0))) / len(losses) ** 0.5
    found = []
    for i, value in enumerate(middle):
        walls = [_wall(middle[:i][::-1], value), _wall(middle[i + 1 :], value)]
        if np.isfinite(value) and value <= min(_beside(middle, i)) and all(w is None or w > spread for w in walls):
            found.append((RATES[i], float(value)))
    return sorted(found, key=lambda valley: valley[1])


def _beside(middle: np.ndarray, i: int) -> list[float]:
    return [float(middle[k]) for k in (i - 1, i + 1) if 0 <= k < len(middle)]


def _wall(side: np.ndarray, value: float) -> float | None:
    """How far the loss rises on one side before it falls below `value`; None where it never falls below."""
    lower = np.flatnonzero(side < value)
    return None if not len(lower) else float(side[: lower[0] + 1].max() - value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="+", choices=FAMILIES)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256, 512, 1024])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER")
    parser.add_argument("--sp", action="store_true", help="the standard parametrization")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    changed = {
        name: int(v) if float(v).is_integer() else float(v) for name, _, v in (s.partition("=") for s in chosen.set)
    }
    print("| family | width | best lr: valleys, lowest first (loss) | curve over lr = 2^-13 .. 1 | s |")
    print("|---|---|---|---|---|")
    with ProcessPoolExecutor(chosen.workers, initializer=settle_in) as pool:
        for name in chosen.families:
            made, arguments = FAMILIES[name]
            objective = made("sp-adamw" if chosen.sp else "mup-adamw", **{**arguments, **changed})
            for width in chosen.widths:
                began = time.perf_counter()
                jobs = [pool.submit(curve, objective, width, seed) for seed in range(chosen.seeds)]
                losses = np.array([job.result() for job in jobs])
                told = "; ".join(f"{rate:.2g} ({loss:.4f})" for rate, loss in valleys(losses))
                seconds = f"{time.perf_counter() - began:.0f}"
                print(f"| {' | '.join([name, f'{width}', told, shown(np.median(losses, 0)), seconds])} |", flush=True)


def shown(losses: Sequence[float]) -> str:
    return " ".join(f"{loss:.3g}" for loss in losses)


if __name__ == "__main__":
    main()
