"""Seconds a proposal costs, fit included, on one thread; stock BoTorch in the same run, as a ratio.

    OMP_NUM_THREADS=1 python -m benchmarks.speed

Four dimensions: three hyperparameters and width. Ours is timed cold, as the first proposal after resuming, and within a
study: the median of the six proposals that follow (theta is climbed to again every 23rd part of the runs). Stock is
SingleTaskMultiFidelityGP with one-shot qMultiFidelityKnowledgeGradient (8 fantasies, 3 restarts) and an inverse cost
utility, up to 200 runs. The peak is that of the process's memory, all sizes so far.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
import warnings

import numpy as np
import torch
from linear_operator.utils.errors import NotPSDError

import tuner
from tuner import engine, posterior
from tuner.parametrization import applied
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.trial import Observation

WIDTHS = (32, 64, 128, 1024)
AFTER = 6  # proposals within a study
STOCK_UP_TO = 200  # runs


def problem() -> Problem:
    space = tuner.SearchSpace({name: tuner.Float(1e-3, 1.0, log=True) for name in ("lr", "weight_decay", "init_scale")})
    target, proxies = Scale(width=WIDTHS[-1]), tuple(Scale(width=w) for w in WIDTHS[:-1])
    return Problem(space, target, proxies, proxies[0], applied("mup-adamw"), lambda p, s: s["width"] ** 2 / 2**20)


def record(asked: Problem, count: int, seed: int) -> list[Observation]:
    """Runs of a smooth landscape whose optimum drifts, with noise and a cliff."""
    rng = np.random.default_rng(seed)
    runs = []
    for i in range(count):
        scale = asked.proxies[0 if i % 4 else 1 + i // 4 % 2]
        u = rng.random(3)
        away = u - 0.5 - 0.02 * math.log(scale["width"] / WIDTHS[-1])
        loss = 0.3 + 2 * scale["width"] ** -0.5 + 2 * away @ away + 0.005 * rng.standard_normal()
        loss = math.inf if away[0] > 0.4 else float(loss)
        params = asked.space.decode(u)
        runs.append(Observation(params, scale, loss, asked.cost(params, scale)))
    return runs


def ours(asked: Problem, runs: list[Observation], seed: int) -> tuple[float, float]:
    """Seconds cold, and the median of the proposals after it."""
    posterior._spread_of.cache_clear()
    posterior._around.cache_clear()
    seconds = []
    for known in range(len(runs) - AFTER, len(runs) + 1):
        start = time.perf_counter()
        engine.propose(asked, runs[:known], seed=seed)
        seconds.append(time.perf_counter() - start)
    return seconds[0], float(np.median(seconds[1:]))


def stock(asked: Problem, runs: list[Observation]) -> float:
    """Seconds; NaN where it ends with a matrix that is not positive definite."""
    start = time.perf_counter()
    try:
        _stock(asked, runs)
    except NotPSDError:
        print(f"stock BoTorch: NotPSDError at {len(runs)} runs; left out of its column")
        return math.nan
    return time.perf_counter() - start


def _stock(asked: Problem, runs: list[Observation]) -> None:
    from botorch import fit_gpytorch_mll
    from botorch.acquisition import PosteriorMean
    from botorch.acquisition.cost_aware import InverseCostWeightedUtility
    from botorch.acquisition.fixed_feature import FixedFeatureAcquisitionFunction
    from botorch.acquisition.knowledge_gradient import qMultiFidelityKnowledgeGradient
    from botorch.acquisition.utils import project_to_target_fidelity
    from botorch.exceptions.errors import ModelFittingError
    from botorch.models import SingleTaskMultiFidelityGP
    from botorch.models.cost import AffineFidelityCostModel
    from botorch.models.transforms import Standardize
    from botorch.optim import optimize_acqf
    from gpytorch.mlls import ExactMarginalLogLikelihood

    finite = [o for o in runs if not o.diverged]
    fidelity = {w: math.log(w / WIDTHS[0]) / math.log(WIDTHS[-1] / WIDTHS[0]) for w in WIDTHS}
    x = torch.tensor(np.array([[*asked.space.encode(o.params), fidelity[int(o.scale["width"])]] for o in finite]))
    y = -torch.tensor([[o.loss] for o in finite], dtype=torch.float64)
    bounds = torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64)
    model = SingleTaskMultiFidelityGP(x, y, data_fidelities=[3], outcome_transform=Standardize(1))
    try:
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    except ModelFittingError:
        print(f"stock BoTorch: ModelFittingError at {len(runs)} runs; timed as it stands")
    best = FixedFeatureAcquisitionFunction(PosteriorMean(model), d=4, columns=[3], values=[1.0])
    _, current = optimize_acqf(best, bounds[:, :3], q=1, num_restarts=3, raw_samples=64)
    kg = qMultiFidelityKnowledgeGradient(
        model,
        num_fantasies=8,
        current_value=current,
        cost_aware_utility=InverseCostWeightedUtility(AffineFidelityCostModel({3: 1.0}, fixed_cost=0.05)),
        project=lambda X: project_to_target_fidelity(X, {3: 1.0}, d=4),
    )
    optimize_acqf(kg, bounds, q=1, num_restarts=3, raw_samples=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    asked = problem()
    print("runs   within a study      cold                stock BoTorch       stock / ours        peak GB")
    for count in (50, 100, 200, 1000, 2000):
        sets = [record(asked, count + AFTER, seed) for seed in range(repeats if count <= STOCK_UP_TO else 1)]
        cold, within = np.array([ours(asked, runs, seed) for seed, runs in enumerate(sets)]).T
        columns = [within, cold]
        if count <= STOCK_UP_TO:
            columns.append(np.array([stock(asked, runs[:count]) for runs in sets]))
            columns.append(columns[2] / within)
        cells = [f"{np.nanmedian(c):5.2f} ({np.nanmin(c):.2f} .. {np.nanmax(c):.2f})" for c in columns]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{count:4}   {'   '.join(cells)}   {peak:.2f}", flush=True)


if __name__ == "__main__":
    main()
