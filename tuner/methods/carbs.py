"""CARBS: local search around the Pareto front of cost and loss (Fetterman et al. 2023, arXiv 2306.08055).

Written from the published algorithm, not its code. Hyperparameters and axes of scale are one vector in logarithms; the
loss is a Gaussian process on it (linear plus Matern-3/2, quantile-normalised outputs), the front another on log cost.
Candidates are perturbed members of the front; the best by expected improvement over the front at their cost, but at
least over the front at a cost drawn at random, and by how near the front they are. Every fifth run repeats a member of
the front. What it would use at a cost beyond its runs is the regression of the front's hyperparameters on log cost.

Costs are known here, so none is learned; a diverged run counts as the worst. It knows real numbers only: a category
is its place in the list.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, Matern, WhiteKernel
from sklearn.preprocessing import QuantileTransformer

from tuner.methods import Method
from tuner.methods.direct import best_run, tamed
from tuner.problem import SLACK, Problem
from tuner.space import Params
from tuner.trial import Observation, Proposal

Array = NDArray[np.float64]
FIRST = 4  # runs around the middle of the space, at the cheapest scale
RADIUS = 0.3  # of a perturbation, in nats, where any value can be had
REPEAT = 5  # every fifth run is of a member of the front
CANDIDATES = 100  # a dimension


@dataclass(frozen=True)
class Carbs(Method):
    """Its defaults."""

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
        rng = np.random.default_rng([seed, number])
        seen = _Front(problem, observations, among)
        if number < FIRST or len(seen.finite) < 2:
            asked = seen.middle + seen.radius * rng.standard_normal((1, len(seen.middle))) * seen.free
        elif number % REPEAT == 0:
            asked = seen.points[[min(seen.front, key=lambda i: seen.replicates[i])]]
        else:
            asked = seen.candidates(rng)
        possible = seen.made(asked) if among is None else among
        options = [run for run in possible if problem.cost(run.params, run.scale) <= SLACK * budget]
        if number % REPEAT:
            made = {(run.scale, *run.params.items()) for run in observations}
            options = [run for run in options if (run.scale, *run.params.items()) not in made] or options
        if options and among is not None:
            options = seen.nearest(asked, options)
        if len(options) < 2:
            return options
        return [options[int(seen.worth(options, rng).argmax())]]

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Params:
        best_run(observations)  # refuses a record where all diverged
        seen = _Front(problem, observations)
        d = len(problem.space)
        front = seen.points[seen.front]
        design = np.column_stack([np.ones(len(front)), seen.log_costs[seen.front]])
        if np.ptp(design[:, 1]) < 1e-9:
            design = design[:, :1]
        line = np.linalg.lstsq(design, front[:, :d], rcond=None)[0]
        cost = problem.run_cost(problem.target)
        there = np.array([1.0, math.log(cost)])[: design.shape[1]] @ line
        return problem.to_raw(problem.space.decode(there / seen.nats[:d]), problem.target)


class _Front:
    """The record as CARBS sees it: points (n, d + a) in nats, and which of them are on the front."""

    def __init__(
        self, problem: Problem, observations: Sequence[Observation], among: Sequence[Proposal] | None = None
    ) -> None:
        self.problem = problem
        self.nats = np.array([problem.nats(name) for name in problem.space] + [1.0] * len(problem.axes))
        self.finite = [run for run in observations if not run.diverged]
        self.losses = np.array(tamed(observations))
        self.log_costs = np.log([run.cost for run in observations])
        self.points = self._placed(observations)
        self.middle = self._placed([Proposal(problem.space.middle, problem.cheapest)])[0]
        self.radius = RADIUS * np.ones(len(self.middle)) if among is None else self._reach(among)
        self.free = np.array([1.0] * len(problem.space) + [0.0] * len(problem.axes))  # first runs keep to that scale

    def _placed(self, runs: Sequence[Observation] | Sequence[Proposal]) -> Array:
        return self.problem.located(runs).numpy() * self.nats

    def _reach(self, among: Sequence[Proposal]) -> Array:
        """Of a perturbation where only some runs can be made: at least half a step between their values."""
        steps = [np.diff(np.unique(column.round(9))) for column in self._placed(among).T]
        return np.array([max(RADIUS, 0.5 * float(np.median(step))) if len(step) else RADIUS for step in steps])

    @property
    def front(self) -> list[int]:
        """Runs that none of at most their cost betters."""
        least, front = math.inf, []
        for i in np.lexsort((self.losses, self.log_costs)).tolist():
            if self.losses[i] < least:
                least = self.losses[i]
                front.append(i)
        return front

    @property
    def replicates(self) -> Array:
        """How often each run was made, (n,)."""
        return (np.abs(self.points[:, None] - self.points).max(-1) < 1e-6).sum(1)

    def candidates(self, rng: np.random.Generator) -> Array:
        members = self.points[self.front]
        chosen = members[rng.integers(len(members), size=CANDIDATES * members.shape[1])]
        return chosen + self.radius * rng.standard_normal(chosen.shape)

    def made(self, asked: Array) -> list[Proposal]:
        """Runs of the space, each at the proxy whose axes are nearest."""
        d, space = len(self.problem.space), self.problem.space
        proxies = self._placed([Proposal(space.middle, scale) for scale in self.problem.proxies])[:, d:]
        at = np.abs(asked[:, None, d:] - proxies).sum(-1).argmin(1)
        values = [space.decode(point) for point in asked[:, :d] / self.nats[:d]]
        return [Proposal(params, self.problem.proxies[k]) for params, k in zip(values, at, strict=True)]

    def nearest(self, asked: Array, options: list[Proposal]) -> list[Proposal]:
        places = self._placed(options)
        kept = {int(np.square(places - point).sum(1).argmin()) for point in asked}
        return [options[i] for i in sorted(kept)]

    def worth(self, options: list[Proposal], rng: np.random.Generator) -> Array:
        """Expected improvement over the front, times the density of perturbations, (b,)."""
        scores = QuantileTransformer(n_quantiles=max(2, math.isqrt(len(self.losses))), output_distribution="normal")
        outcome = scores.fit_transform(-self.losses[:, None])[:, 0].clip(-3, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            d = self.points.shape[1]
            kernel = DotProduct() + ConstantKernel() * Matern([1.0] * d, nu=1.5) + WhiteKernel(1e-2)
            model = GaussianProcessRegressor(kernel, normalize_y=True).fit(self.points, outcome)
            front = self.front
            along = GaussianProcessRegressor(ConstantKernel() * RBF() + WhiteKernel(1e-2), normalize_y=True)
            along.fit(self.log_costs[front, None], outcome[front])
        places = self._placed(options)
        low, high = self.log_costs.min(), self.log_costs.max()
        costs = np.log([self.problem.cost(run.params, run.scale) for run in options]).clip(low, high)
        least = along.predict([[rng.uniform(low, high)]])[0]
        baseline = np.maximum(along.predict(costs[:, None]), least)
        mean, sd = model.predict(places, return_std=True)
        z = (mean - baseline) / np.maximum(sd, 1e-9)
        improvement = sd * (z * norm.cdf(z) + norm.pdf(z))
        away = np.square((places[:, None] - self.points[front]) / self.radius).sum(-1).min(1)
        worth: Array = np.maximum(improvement, 1e-12) * np.exp(-0.5 * away)
        return worth
