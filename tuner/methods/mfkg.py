"""A knowledge gradient over raw hyperparameters and scale, on a stock surrogate; BoTorch's.

Hyperparameters are raw: it knows no parametrization. They lie in the unit cube, and scale lies beside them in [0, 1],
1 at the target. The proposal is the run that can be made nearest to what the acquisition asks; a search begins, and
goes on where BoTorch's own fit or algebra breaks down, with random ones of the cheaper scales. An answer without a fit
is the best run at the largest scale.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
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
from tuner.scale import Scale
from tuner.space import Params
from tuner.trial import Observation, Proposal

FANTASIES, RESTARTS, SAMPLES, STEPS = 16, 4, 64, 50
BREAKDOWN = (ModelFittingError, NanError, NotPSDError)


class AcrossScales(Method):
    """A search below the target by whoever says where scales lie, what the losses are like, and what to run."""

    direct: bool = False

    @abstractmethod
    def heights(self, problem: Problem, scales: Sequence[Scale]) -> Tensor:
        """Where scales lie, (n, a) in [0, 1]: 1 at the target."""

    @abstractmethod
    def model(self, problem: Problem, places: Tensor, losses: Tensor) -> Any:
        """BoTorch's model of minus the losses (n,) at places (n, d + a)."""

    @abstractmethod
    def liked(self, problem: Problem, places: Tensor, losses: Tensor) -> Tensor:
        """The place that the acquisition likes best, (d + a,)."""

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
        away = (self._places(problem, options) - asked).square().sum(-1)
        return [options[int(away.argmin())]]

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Params:
        if len(observations) < 2:
            return problem.to_raw(best_run(observations).params, problem.target)
        best_run(observations)  # refuses a record where all diverged
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            try:
                model = self.model(problem, *self._told(problem, observations))
                at, _ = best_at_target(model, len(problem.space))
            except BREAKDOWN:
                largest = max(observations, key=lambda run: problem.run_cost(run.scale)).scale
                there = [run for run in observations if run.scale == largest and not run.diverged]
                return problem.to_raw(best_run(there or observations).params, problem.target)
        return problem.to_raw(problem.space.decode(at.tolist()), problem.target)

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
        """None where it breaks down."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its optimisers
            torch.manual_seed(seed * 100_003 + len(observations))
            try:
                return self.liked(problem, *self._told(problem, observations))
            except BREAKDOWN:
                return None

    def _told(self, problem: Problem, observations: Sequence[Observation]) -> tuple[Tensor, Tensor]:
        return self._places(problem, observations), torch.tensor(tamed(observations), dtype=torch.float64)

    def _places(self, problem: Problem, runs: Sequence[Observation] | Sequence[Proposal]) -> Tensor:
        """Raw hyperparameters in the cube, and heights: (n, d + a)."""
        rows = []
        for run in runs:
            raw = problem.to_raw(run.params, run.scale)
            base_at_target = problem.to_base(raw, problem.target)
            rows.append(torch.from_numpy(problem.space.encode(base_at_target)))
        return torch.cat([torch.stack(rows), self.heights(problem, [run.scale for run in runs])], 1)


@dataclass(frozen=True)
class KnowledgeGradient(AcrossScales):
    """BoTorch's SingleTaskMultiFidelityGP (Wu et al. 2019, arXiv 1903.04703) on the logarithm of every axis of scale,
    and qMultiFidelityKnowledgeGradient per unit of cost, optimised one-shot.

    With 16 fantasies, 4 restarts of 64 samples: fewer than BoTorch's defaults, because it is slow as it is.
    """

    def heights(self, problem: Problem, scales: Sequence[Scale]) -> Tensor:
        runs = [Proposal(problem.space.middle, scale) for scale in scales]
        return 1 - problem.located(runs)[:, len(problem.space) :] / problem.frame.reach

    def model(self, problem: Problem, places: Tensor, losses: Tensor) -> Any:
        from botorch.fit import fit_gpytorch_mll
        from botorch.models.gp_regression_fidelity import SingleTaskMultiFidelityGP
        from botorch.models.transforms.outcome import Standardize
        from gpytorch.mlls import ExactMarginalLogLikelihood

        model = SingleTaskMultiFidelityGP(
            places,
            -losses[:, None],
            data_fidelities=list(range(len(problem.space), places.shape[1])),
            outcome_transform=Standardize(1),
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        return model

    def liked(self, problem: Problem, places: Tensor, losses: Tensor) -> Tensor:
        from botorch.acquisition.cost_aware import InverseCostWeightedUtility
        from botorch.acquisition.knowledge_gradient import qMultiFidelityKnowledgeGradient
        from botorch.acquisition.utils import project_to_target_fidelity
        from botorch.models.deterministic import GenericDeterministicModel
        from botorch.optim.optimize import optimize_acqf

        d, size = len(problem.space), places.shape[1]
        model = self.model(problem, places, losses)
        targets = dict.fromkeys(range(d, size), 1.0)
        cost = GenericDeterministicModel(lambda x: self._cost(problem, x)[..., None])
        acquisition = qMultiFidelityKnowledgeGradient(
            model,
            num_fantasies=FANTASIES,
            current_value=best_at_target(model, d)[1],
            cost_aware_utility=InverseCostWeightedUtility(cost),
            project=lambda x: project_to_target_fidelity(x, targets, size),
        )
        bounds = torch.tensor([[0.0] * size, [1.0] * size], dtype=torch.float64)
        found, _ = optimize_acqf(acquisition, bounds, 1, RESTARTS, SAMPLES, options={"maxiter": STEPS})
        return found.detach()[0]

    def _cost(self, problem: Problem, x: Tensor) -> Tensor:
        """In target runs, of a point anywhere: a smooth blend of the scales around it."""
        scales = [*problem.proxies, problem.target]
        costs = torch.tensor([problem.run_cost(s) for s in scales], dtype=torch.float64)
        away = (x[..., None, len(problem.space) :] - self.heights(problem, scales)).square().sum(-1)
        weights = torch.softmax(-away / 0.01, -1)
        return (weights * (costs / costs[-1]).log()).sum(-1).exp()


def best_at_target(model: Any, d: int) -> tuple[Tensor, Tensor]:
    """Where a model's posterior mean at the target is largest, of d hyperparameters (d,), and that mean."""
    from botorch.acquisition.analytic import PosteriorMean
    from botorch.acquisition.fixed_feature import FixedFeatureAcquisitionFunction
    from botorch.optim.optimize import optimize_acqf

    size = model.train_inputs[0].shape[-1]
    mean = FixedFeatureAcquisitionFunction(PosteriorMean(model), size, list(range(d, size)), [1.0] * (size - d))
    bounds = torch.tensor([[0.0] * d, [1.0] * d], dtype=torch.float64)
    at, value = optimize_acqf(mean, bounds, 1, RESTARTS, SAMPLES, options={"maxiter": STEPS})
    return at.detach()[0], value.detach()  # type: ignore[union-attr]
