"""The noisy quadratic model: how batch size and momentum move the best learning rate, in closed form.

Zhang et al. 2019 (arXiv 1907.04164): a loss L(w) = sum_i h_i w_i^2 / 2 with h_i = 1 / i, minimised by SGD with momentum
whose gradient has the covariance H / B. Every coordinate is a linear recursion driven by noise,

    v' = m v + h w + (h / B)^1/2 e,    w' = w - lr v',        e ~ N(0, 1)

so that its second moments (E w^2, E w v, E v^2) move by a constant 3x3 matrix and a constant shift: the risk after T
steps is a power of a 4x4 matrix, exact. From w = 1, v = 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.ridge import drawn
from tuner.scale import Scale
from tuner.space import Float, Params, SearchSpace
from tuner.trial import Result, Trial

AXES = ("batch_size", "steps", "width")


@dataclass(frozen=True)
class NoisyQuadratic:
    """The risk of the noisy quadratic model: exact, plus a little seeded noise.

    Args:
        dimension: coordinates, where the scale has no width. steps: where it has no steps.
        noise: relative deviation of the noise that a trial adds to the risk; 0: exact.
    """

    dimension: int = 1000
    steps: int = 400
    noise: float = 1e-3
    parametrization = "none"

    space = SearchSpace(
        {"lr": Float(1e-3, 10.0, log=True), "one_minus_momentum": Float(0.01, 1.0, log=True, role="momentum")}
    )

    def risk(self, lr: float, momentum: float, batch_size: float, steps: int, dimension: int) -> float:
        """Expected loss after some steps; infinite or enormous where the recursion is unstable."""
        h = 1.0 / np.arange(1, dimension + 1)
        with np.errstate(over="ignore", invalid="ignore"):
            moments = _powered(_step(h, lr, momentum, batch_size), steps) @ np.array([1.0, 0.0, 0.0, 1.0])
            total = 0.5 * float(h @ moments[:, 0])
        return total if math.isfinite(total) else math.inf

    def cost(self, params: Params, scale: Scale) -> float:
        """Examples times coordinates."""
        batch_size, steps, dimension = self._sizes(scale)
        return float(batch_size * steps * dimension)

    def __call__(self, params: Params, scale: Scale, seed: int) -> Result:
        started = time.perf_counter()
        self.space.check(params)
        lr, momentum = float(params["lr"]), 1 - float(params["one_minus_momentum"])
        sizes = self._sizes(scale)
        loss = self.risk(lr, momentum, *sizes) * (1 + self.noise * drawn(seed, lr, momentum, *sizes))
        return Result(loss, self.cost(params, scale), time.perf_counter() - started)

    def train_many(self, trials: Sequence[Trial]) -> list[Result]:
        return [self(trial.params, trial.scale, trial.seed) for trial in trials]

    def _sizes(self, scale: Scale) -> tuple[float, int, int]:
        if set(scale) - set(AXES):
            raise ValueError(f"scale: the axes are {', '.join(AXES)}, got {scale!r}; correct the axes")
        return (
            float(scale.get("batch_size", 1)),
            int(scale.get("steps", self.steps)),
            int(scale.get("width", self.dimension)),
        )


def _step(h: NDArray[np.float64], lr: float, m: float, batch_size: float) -> NDArray[np.float64]:
    """What a step does to (E w^2, E w v, E v^2, 1) of each coordinate: (d, 4, 4)."""
    zero, one = np.zeros_like(h), np.ones_like(h)
    noise = h / batch_size
    v2 = np.stack([h**2, 2 * m * h, m**2 * one, noise], -1)  # E v'^2
    wv = np.stack([h, m * one, zero, zero], -1)  # E w v'
    w2 = np.stack([one, zero, zero, zero], -1)
    rows = [w2 - 2 * lr * wv + lr**2 * v2, wv - lr * v2, v2, np.stack([zero, zero, zero, one], -1)]
    return np.stack(rows, 1)


def _powered(matrices: NDArray[np.float64], power: int) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.linalg.matrix_power(matrices, power)
    return found
