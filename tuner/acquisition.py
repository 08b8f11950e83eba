"""What to run next: knowledge about the target's optimum per unit of cost.

The knowledge gradient of a run b (Frazier, Powell and Dayanik 2009) is how much lower the smallest posterior mean at
the target is expected to be after it. The mean at target points a moves by s_b(a) Z, Z ~ N(0, 1), so

    KG(b) = min_a mu(a) - E[ min_a mu(a) + s_b(a) Z ]          s_b(a) = cov(a, b) / sqrt(var(b) + noise(b))

an expected extremum of affine functions of one normal, in closed form. mu and cov are the first two moments of the
surrogate, drift and laws integrated out: a run that would settle the drift is worth much.
A pending run is conditioned on before its loss is known: it lowers covariances and leaves mu where it is.

The first run at a new scale teaches little alone, because the level of the loss there is unknown too; the second, on
the other side of the valley, teaches the drift. So scales are compared by batches: runs are added greedily by KG, and
the best rate of joint knowledge to cost over batch sizes 1, 2, 4 is what a scale is worth (KG of replicates, Frazier
and Powell 2010, for runs that differ).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import norm, qmc

from tuner.surrogate.optimum import Moments

Array = NDArray[np.float64]
CELLS = 32  # of the lower bound
EXACT = 16  # runs whose knowledge is computed exactly
SQRT_2PI = np.sqrt(2 * np.pi)


def expected_max_affine(intercepts: Array, slopes: Array) -> Array:
    """E[max_i intercepts_i + slopes_i Z], Z ~ N(0, 1), exactly; (c,) or (r, c), (r, c) -> (r,).

    Walks the upper envelope from Z = -inf: on line i, the next is the steeper line whose crossing comes first.
    """
    a, b = np.broadcast_arrays(intercepts, slopes)
    rows = np.arange(len(b))
    line = np.lexsort((-a, b))[:, 0]
    left, total = np.full(len(b), -np.inf), np.zeros(len(b))
    below, density = np.zeros(len(b)), np.zeros(len(b))  # of N(0, 1) at `left`
    while True:
        ai, bi = a[rows, line], b[rows, line]
        rise = b - bi[:, None]
        crossing = np.divide(ai[:, None] - a, rise, out=np.full_like(rise, np.inf), where=rise > 1e-12)
        following = crossing.argmin(1)
        right = np.maximum(crossing[rows, following], left)
        below_right, density_right = ndtr(right), np.exp(-0.5 * right**2) / SQRT_2PI
        total += ai * (below_right - below) + bi * (density - density_right)
        ended = np.isinf(right)
        if ended.all():
            return total
        line, left, below, density = np.where(ended, line, following), right, below_right, density_right


@dataclass(frozen=True)
class Knowledge:
    """What candidate runs (b) would teach about target points (a).

    Args:
        mean: (a,) at the target points. cross: (a, b). among: (b, b), covariances; of the latent function.
        noise: (b,) variance of a run's outcome around it.
    """

    mean: Array
    cross: Array
    among: Array
    noise: Array

    @staticmethod
    def of(target: Moments, runs: Moments, pending: Moments | None = None) -> Knowledge:
        """Given the runs under way, if any."""
        cross, among = target.covariance(runs).numpy(), runs.covariance(runs).numpy()
        if pending is not None:
            theirs = pending.covariance(pending).numpy() + np.diag(pending.noise.numpy())
            with_runs = pending.covariance(runs).numpy()
            known = np.linalg.solve(theirs, with_runs)
            cross = cross - target.covariance(pending).numpy() @ known
            among = among - with_runs.T @ known
        return Knowledge(target.mean.numpy(), cross, among, runs.noise.numpy())

    @cached_property
    def _outcome(self) -> Array:
        """Variance of the loss of each run, (b,)."""
        return np.maximum(np.diag(self.among), 0.0) + self.noise

    @cached_property
    def shifts(self) -> Array:
        """s_b(a): movement of the target's mean per standard deviation of a run's outcome, (b, a)."""
        shifts: Array = (self.cross / np.sqrt(self._outcome)).T
        return shifts

    def given(self, run: int) -> Knowledge:
        """The same with one more of the runs under way."""
        known = self.among[run] / self._outcome[run]
        cross = self.cross - np.outer(self.cross[:, run], known)
        return replace(self, cross=cross, among=self.among - np.outer(self.among[:, run], known))

    def gradient(self, runs: NDArray[np.intp]) -> Array:
        """KG of some of the runs (k,), in units of the data: (k,)."""
        return np.maximum(self.mean.min() + expected_max_affine(-self.mean, -self.shifts[runs]), 0.0)

    def best(self, costs: Array) -> int:
        """The run of finite cost with the most knowledge per cost: exactly, among those best by a lower bound.

        The bound is Jensen's: in a cell of Z, the minimum of affine functions is at most its value at the cell's mean.
        """
        weight, middle = _cells()
        possible = np.flatnonzero(np.isfinite(costs))
        least = weight @ (self.mean + middle[:, None, None] * self.shifts[possible]).min(-1)
        likely = possible[np.argsort((least - self.mean.min()) / costs[possible])[:EXACT]]
        return int(likely[(self.gradient(likely) / costs[likely]).argmax()])

    def joint(self, shifts: Array) -> float:
        """Knowledge from a batch whose successive conditional shifts are the rows (q, a), by quasi-Monte Carlo."""
        return float(self.mean.min() - (self.mean + _normals(len(shifts)) @ shifts).min(1).mean())


@lru_cache(maxsize=1)
def _cells() -> tuple[Array, Array]:
    """Cells of Z ~ N(0, 1) between -inf, -5, ..., 5, inf: probabilities, and E[Z | Z in cell]."""
    edges = np.concatenate([[-np.inf], np.linspace(-5, 5, CELLS - 1), [np.inf]])
    weight = np.diff(ndtr(edges))
    return weight, -np.diff(norm.pdf(edges)) / weight


@lru_cache(maxsize=8)
def _normals(dimensions: int) -> Array:
    """256 antithetic points of N(0, I), (256, q)."""
    uniform = qmc.Sobol(dimensions, rng=np.random.default_rng(0)).random(128)
    half = norm.ppf(np.clip(uniform, 1e-6, 1 - 1e-6))
    return np.vstack([half, -half])
