"""BoTorch's multi-fidelity knowledge gradient: a stock surrogate over raw hyperparameters and scale.

SingleTaskMultiFidelityGP (Wu et al. 2019, arXiv 1903.04703) on hyperparameters in the unit cube and the logarithm of
every axis of scale in [0, 1], 1 at the target; qMultiFidelityKnowledgeGradient per unit of cost, optimised one-shot.
Hyperparameters are raw: it knows no parametrization. The proposal is the run that can be made nearest to what it asks;
it begins, and goes on where BoTorch's own fit or algebra breaks down, with random ones of the cheaper scales. An answer
without a fit is the best run at the largest scale.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from botorch.exceptions.errors import ModelFittingError
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from tuner.methods import Method
from tuner.methods.direct import best_run, tamed
from tuner.problem import SLACK, Problem
from tuner.space import Params
from tuner.trial import Observation, Proposal

FANTASIES, RESTARTS, SAMPLES = 16, 4, 64
BREAKDOWN = (ModelFittingError, NanError, NotPSDError)


@dataclass(frozen=True)
class KnowledgeGradient(Method):
    """With 16 fantasies, 4 restarts of 64 samples: fewer than BoTorch's defaults, because it is slow as it is."""

    direct: bool = False

    def propose(
        self,
        problem: Problem,
        observations: Sequence[Observation],
        pending: Sequence[Proposal],
        *,
        seed: int,
        budget: float,
        count: int,
        among: Sequence[Proposal] | None = None,
    ) -> list[Proposal]:
        number = len(observations) + len(pending)
        first = number < 2 * (len(problem.space) + 1) or all(run.diverged for run in observations)
        asked = None if first else self._asked(problem, observations, seed)
        if asked is None:
            return self._random(problem, number, seed, budget, among)
        d = len(problem.space)
        if among is None:
            raw = problem.to_raw(problem.space.decode(asked[:d].tolist()), problem.target)
            among = [Proposal(problem.to_base(raw, scale), scale) for scale in problem.proxies]
        options = [run for run in among if problem.cost(run.params, run.scale) <= SLACK * budget]
        if not options:
            return []
        away = (_places(problem, options) - asked).square().sum(-1)
        return [options[int(away.argmin())]]

    @staticmethod
    def _random(
        problem: Problem, number: int, seed: int, budget: float, among: Sequence[Proposal] | None
    ) -> list[Proposal]:
        """At random, of what a twentieth of what is left affords; of the cheapest where it affords none."""
        rng = np.random.default_rng([seed, number])
        if among is None:
            params = problem.space.decode(rng.random(len(problem.space)))
            among = [Proposal(params, scale) for scale in problem.proxies]
        costs = [problem.cost(run.params, run.scale) for run in among]
        most = min(max(0.05 * budget, min(costs, default=0.0)), budget) * SLACK
        options = [run for run, cost in zip(among, costs, strict=True) if cost <= most]
        return [options[rng.integers(len(options))]] if options else []

    def _asked(self, problem: Problem, observations: Sequence[Observation], seed: int) -> Tensor | None:
        """The point that its acquisition likes best, (d + a,); None where it breaks down."""
        try:
            return self._liked(problem, observations, seed)
        except BREAKDOWN:
            return None

    def _liked(self, problem: Problem, observations: Sequence[Observation], seed: int) -> Tensor:
        from botorch.acquisition.cost_aware import InverseCostWeightedUtility
        from botorch.acquisition.knowledge_gradient import qMultiFidelityKnowledgeGradient
        from botorch.acquisition.utils import project_to_target_fidelity
        from botorch.models.deterministic import GenericDeterministicModel
        from botorch.optim.optimize import optimize_acqf

        d, a = len(problem.space), len(problem.axes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its optimisers
            torch.manual_seed(seed * 100_003 + len(observations))
            model = self._model(problem, observations)
            targets = {d + k: 1.0 for k in range(a)}
            cost = GenericDeterministicModel(lambda x: _cost(problem, x)[..., None])
            acquisition = qMultiFidelityKnowledgeGradient(
                model,
                num_fantasies=FANTASIES,
                current_value=-self._best(problem, model)[1],
                cost_aware_utility=InverseCostWeightedUtility(cost),
                project=lambda x: project_to_target_fidelity(x, targets, d + a),
            )
            bounds = torch.tensor([[0.0] * (d + a), [1.0] * (d + a)], dtype=torch.float64)
            found, _ = optimize_acqf(acquisition, bounds, 1, RESTARTS, SAMPLES, options={"maxiter": 50})
        return found.detach()[0]

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Params:
        if len(observations) < 2:
            return problem.to_raw(best_run(observations).params, problem.target)
        best_run(observations)  # refuses a record where all diverged
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            try:
                at, _ = self._best(problem, self._model(problem, observations))
            except BREAKDOWN:
                largest = max(observations, key=lambda run: problem.cost(problem.space.middle, run.scale)).scale
                there = [run for run in observations if run.scale == largest and not run.diverged]
                return problem.to_raw(best_run(there or observations).params, problem.target)
        return problem.to_raw(problem.space.decode(at.tolist()), problem.target)

    @staticmethod
    def _model(problem: Problem, observations: Sequence[Observation]) -> Any:
        from botorch.fit import fit_gpytorch_mll
        from botorch.models.gp_regression_fidelity import SingleTaskMultiFidelityGP
        from botorch.models.transforms.outcome import Standardize
        from gpytorch.mlls import ExactMarginalLogLikelihood

        losses = torch.tensor(tamed(observations), dtype=torch.float64)[:, None]
        d, a = len(problem.space), len(problem.axes)
        model = SingleTaskMultiFidelityGP(
            _places(problem, observations),
            -losses,
            data_fidelities=list(range(d, d + a)),
            outcome_transform=Standardize(1),
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        return model

    @staticmethod
    def _best(problem: Problem, model: Any) -> tuple[Tensor, Tensor]:
        """Where the posterior mean at the target is largest (d,), and minus that mean."""
        from botorch.acquisition.analytic import PosteriorMean
        from botorch.acquisition.fixed_feature import FixedFeatureAcquisitionFunction
        from botorch.optim.optimize import optimize_acqf

        d, a = len(problem.space), len(problem.axes)
        mean = FixedFeatureAcquisitionFunction(PosteriorMean(model), d + a, list(range(d, d + a)), [1.0] * a)
        bounds = torch.tensor([[0.0] * d, [1.0] * d], dtype=torch.float64)
        at, value = optimize_acqf(mean, bounds, 1, RESTARTS, SAMPLES, options={"maxiter": 50})
        return at.detach()[0], -value.detach()  # type: ignore[union-attr]


def _places(problem: Problem, runs: Sequence[Observation] | Sequence[Proposal]) -> Tensor:
    """Raw hyperparameters in the cube, and axes in [0, 1]: (n, d + a)."""
    rows = []
    for run in runs:
        raw = problem.to_raw(run.params, run.scale)
        base_at_target = problem.to_base(raw, problem.target)
        rows.append(torch.from_numpy(problem.space.encode(base_at_target)))
    logs = problem.located(runs)[:, len(problem.space) :]
    return torch.cat([torch.stack(rows), 1 - logs / problem.frame.reach], 1)


def _cost(problem: Problem, x: Tensor) -> Tensor:
    """In target runs, of a point anywhere: a smooth blend of the scales around it."""
    d = len(problem.space)
    scales = [*problem.proxies, problem.target]
    middle = problem.space.middle
    places = _places(problem, [Proposal(middle, scale) for scale in scales])[:, d:]
    costs = torch.tensor([problem.cost(middle, scale) for scale in scales], dtype=torch.float64)
    away = (x[..., None, d:] - places).square().sum(-1)
    weights = torch.softmax(-away / 0.01, -1)
    return (weights * (costs / costs[-1]).log()).sum(-1).exp()
