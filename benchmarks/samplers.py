"""Optuna's samplers and ours on one objective: a table of recorded runs, between whose rows a spline is read.

    TUNER_TABLES=... OMP_NUM_THREADS=1 python -m benchmarks.samplers --seeds 10

The scale is a parameter of the trial, with values of which every combination is one of the table's proxies. TPE and
the GP minimise over it as over any other, and answer with the hyperparameters of their best trial; below the target all
have the same budget. "At the target" they tune the target itself. The spline is a thin-plate one through the
logarithms of the losses of a scale and a choice of the categories, in no place below their smallest: read at the
nearest row, a landscape is one of steps, as no training is. The tables are whole grids, so that nothing is read far
from all rows. Regret of the answer by the target's rows, in percent: median (quartiles).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from scipy.interpolate import RBFInterpolator

from benchmarks.recorded import lost, problem
from tuner.execution import settle_in
from tuner.integrations.optuna import TransferSampler
from tuner.replay import Replay
from tuner.scale import Scale
from tuner.space import Categorical, SearchSpace, distribution

Chosen = tuple[Any, ...]

PROBLEMS = ("protein", "naval", "mup_v0")
REFUSED = 8  # trials in a row that the rest of the budget does not pay for: none of these samplers knows of one
DIRECT = 8.0  # target runs of those who tune the target


class Recorded:
    """A replay's rows as an objective of Optuna's."""

    def __init__(self, replay: Replay) -> None:
        self.replay, self.target = replay, replay.problem.target
        self.space: SearchSpace = replay.problem.space
        self.whole = replay.table.cost_at(self.target)

    @cached_property
    def splines(self) -> dict[tuple[Scale, Chosen], tuple[RBFInterpolator, float]]:
        """ln loss over the numeric coordinates, of each scale and choice of the categories; and its least."""
        settings: dict[tuple[Scale, Chosen], dict[tuple[float, ...], list[float]]] = {}
        for run in self.replay.table.runs:
            if math.isfinite(run.loss):
                place, chosen = self.parted(run.params)
                settings.setdefault((run.scale, chosen), {}).setdefault(tuple(place), []).append(math.log(run.loss))
        told = {}
        for key, cell in settings.items():
            losses = [float(np.mean(same)) for same in cell.values()]
            told[key] = RBFInterpolator(np.array(list(cell)), losses), min(losses)
        return told

    def parted(self, params: Mapping[str, Any]) -> tuple[np.ndarray, Chosen]:
        """The numeric coordinates in the cube, and the choices."""
        named = [isinstance(dimension, Categorical) for dimension in self.space.values()]
        chosen = tuple(params[name] for name, category in zip(self.space, named, strict=True) if category)
        return self.space.encode(params)[~np.array(named)], chosen

    def share(self, scale: Scale) -> float:
        return self.replay.table.cost_at(scale) / self.whole

    @cached_property
    def axes(self) -> dict[str, list[float]]:
        """Values of the axes of which every combination is a proxy: all of the first, those it always has of others."""
        proxies = self.replay.problem.proxies
        first, *others = self.target
        values = {first: sorted({scale[first] for scale in proxies})}
        for axis in others:
            sets = [{s[axis] for s in proxies if s[first] == value} for value in values[first]]
            values[axis] = sorted(set.intersection(*sets))
        return values

    def run(self, trial: optuna.Trial, below: bool) -> float:
        params = {name: trial._suggest(name, distribution(d)) for name, d in self.space.items()}
        scale = self.target
        if below:
            scale = Scale({a: float(trial.suggest_categorical(a, values)) for a, values in self.axes.items()})
        trial.set_user_attr("cost", self.share(scale))
        return self.loss(params, scale)

    def loss(self, params: Mapping[str, Any], scale: Scale) -> float:
        """By the spline."""
        place, chosen = self.parted(params)
        spline, least = self.splines[scale, chosen]
        return math.exp(max(least, float(spline(place[None])[0])))


def searched(name: str, method: str, seed: int, budget: float) -> tuple[float, int]:
    """Relative regret of the answer, percent, and trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        file = problem(name, Path(folder))
        table = Recorded(Replay.of(file))
    kind, _, where = method.partition(" ")
    below = where != "at the target"
    made: Any = {
        "transfer": lambda: TransferSampler(table.target, file.parametrization.preset or "none", seed=seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
    }
    study = optuna.create_study(sampler=made[kind]())
    spent, left = 0.0, budget if below else DIRECT
    refused = 0
    while refused < REFUSED:
        trial = study.ask()
        loss = table.run(trial, below)
        cost = trial.user_attrs["cost"]
        if spent + cost > left * (1 + 1e-9):
            study.tell(trial, state=TrialState.FAIL)
            refused += 1
        else:
            spent, refused = spent + cost, 0
            study.tell(trial, loss)
    names = list(table.space)
    if kind == "transfer":
        params: Mapping[str, Any] = study.sampler.recommend(study).params
    else:
        params = {n: v for n, v in study.best_params.items() if n in names}
    return lost(table.replay.truth.score(params)), sum(t.state == TrialState.COMPLETE for t in study.trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=float, default=0.5, help="target runs")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    methods = ["transfer", "tpe", "gp", "tpe at the target", "gp at the target"]
    print(f"| problem | {' | '.join(methods)} | trials |\n{'|---' * (len(methods) + 2)}|")
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("forkserver"), initializer=settle_in) as pool:
        for name in chosen.problems.split(","):
            jobs = [
                [pool.submit(searched, name, method, seed, chosen.budget) for seed in range(chosen.seeds)]
                for method in methods
            ]
            found = [[job.result() for job in some] for some in jobs]
            cells = [name]
            for some in found:
                low, middle, high = np.quantile([regret for regret, _ in some], [0.25, 0.5, 0.75], method="nearest")
                cells.append(f"{middle:.3g} ({low:.3g} .. {high:.3g})")
            cells.append(" ".join(f"{np.median([n for _, n in some]):g}" for some in found))
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
