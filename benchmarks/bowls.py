"""Regret of the answer where the truth is a formula: bowls whose optimum drifts with width, and noisy runs of them.

    python -m benchmarks.bowls --seeds 15

What a comparison on real networks needs an hour for, in minutes: to see what a change of the surrogate or the
acquisition does. Three hyperparameters on log ranges, one of them nearly flat; the place of the optimum, and the drift
of the learning rate (sd 0.2 per nat between width 32 and 256), differ from seed to seed; the drift follows log n,
n^-1/2 and n^-1 by turns. Curvature and noise are about those of the small transformer. Proxies cost 2 % and 8 % of a
target run. With --long the runs are long: what counts is lr x weight_decay, and the rate itself next to nothing.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

import tuner
from tuner.execution import settle_in
from tuner.methods import Method, method
from tuner.methods.direct import Direct
from tuner.scale import Scale
from tuner.space import Params

TARGET, PROXIES = Scale(width=256), (Scale(width=32), Scale(width=64))
CURVATURE = {"lr": 0.12, "weight_decay": 0.005, "init_scale": 0.08}  # loss per nat squared
LONG = {"lr": 0.01, "weight_decay": 0.08, "init_scale": 0.02}
NOISE = 0.015


def _course(seed: int, width: float) -> float:
    """Displacement from the target's optimum: 1 at width 32, 0 at 256."""
    power = (1e-6, 0.5, 1.0)[seed % 3]  # the first is log n
    return float((width**-power - 256**-power) / (32**-power - 256**-power))


@dataclass(frozen=True)
class Bowl:
    """loss = 1.5 + 2.5 width^-0.3 + sum_j c_j (ln v_j - ln best_j(width))^2 + noise; long: weight decay times lr.

    The optimum's drift per nat of width is of the order of `moves`.
    """

    seed: int
    long: bool = False
    moves: float = 0.2
    noise: float = NOISE
    parametrization = "mup-adamw"
    space = tuner.SearchSpace(
        {
            "lr": tuner.Float(5e-4, 5e-2, log=True),
            "weight_decay": tuner.Float(1e-3, 10.0, log=True),
            "init_scale": tuner.Float(0.1, 10.0, log=True),
        }
    )

    def cost(self, params: Params, scale: Scale) -> float:
        return float(scale["width"]) ** 1.8

    def excess(self, params: Params, width: float) -> float:
        """What a setting loses against the best at that width."""
        rng = np.random.default_rng(self.seed)
        total = 0.0
        for name, dimension in self.space.items():
            best = math.log(dimension.decode(rng.uniform(0.25, 0.75)))
            drift = self.moves * math.log(256 / 32) * rng.standard_normal() * (name == "lr")
            value = math.log(params[name])
            if self.long and name == "weight_decay":
                value += math.log(params["lr"] / self.space["lr"].decode(0.5))
            curvature = (LONG if self.long else CURVATURE)[name]
            total += curvature * (value - best - drift * _course(self.seed, width)) ** 2
        return total

    def __call__(self, params: Params, scale: Scale, seed: int) -> float:
        noise = self.noise * np.random.default_rng(seed).standard_normal()
        return self.best(scale["width"]) + self.excess(params, scale["width"]) + noise

    @staticmethod
    def best(width: float) -> float:
        return 1.5 + 2.5 * width**-0.3


METHODS: dict[str, Method] = {
    "transfer": method("transfer"),
    "copy": Direct("gp", PROXIES[0], direct=False),
    "optuna-gp": method("optuna-gp"),
}


def one(name: str, seed: int, budget: float, long: bool, timescale: bool) -> tuple[float, int, int]:
    """Regret, trials, and how many of them at the larger proxy."""
    bowl = Bowl(seed, long)
    with tuner.create_study(objective=bowl, target=TARGET, proxies=PROXIES, seed=seed, timescale=timescale) as study:
        study.method = METHODS[name]
        study.optimize(bowl, 16 if study.method.direct else budget)
        seen = study.observations
        answer = study.method.recommend(study.problem, seen, seed=seed)
    return bowl.excess(answer, 256), len(seen), sum(o.scale == PROXIES[1] for o in seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=0.5, help="of a search from below, in target runs")
    parser.add_argument("--long", action="store_true", help="runs that lr x weight_decay decides")
    parser.add_argument("--timescale", action="store_true", help="and a surrogate that looks along it")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    print(f"{chosen.budget} target runs, {chosen.seeds} seeds; a run's noise is {NOISE}")
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("forkserver"), initializer=settle_in) as pool:
        for name in chosen.methods.split(","):
            asked = (chosen.budget, chosen.long, chosen.timescale)
            jobs = [pool.submit(one, name, seed, *asked) for seed in range(chosen.seeds)]
            regret, trials, larger = np.array([job.result() for job in jobs]).T
            low, middle, high = np.quantile(regret, [0.25, 0.5, 0.75])
            print(
                f"{name:34} regret {middle:.4f} ({low:.4f} .. {high:.4f})   "
                f"trials {np.median(trials):g}, at width 64 {np.median(larger):g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
