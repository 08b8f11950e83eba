"""Random-feature ridge regression: an oracle, whose loss and optimum at every width are known in closed form.

Inputs x ~ N(0, I_d), targets y = ReLU(<x, b>) + noise (ReLU centred and normalised), n features tanh(Wx) (normalised),
N samples; the hyperparameter is the ridge: the penalty on the squared weights divided by n. In the limit of large d, N
and n the risk is deterministic. Setting: Ghosh, Wu, Bietti 2025 (arXiv 2512.22768), Theorem 3 and appendix B.4.

| symbol   | meaning                                                                          |
|----------|----------------------------------------------------------------------------------|
| psi1     | N / d                                                                            |
| psi2     | n / d; infinite: the kernel limit                                                |
| a1, a2   | features: (E s')^2 and 1 - a1                                                    |
| b1, b2   | targets: (E f')^2 and 1 - b1                                                     |
| m1, m2   | solution of the coupled equations of Theorem 3; s = m1 / m2 - 1 > 0              |

The equations have the ridge as a parameter; read with s as the parameter instead, they are solved by hand. With
q = (a2 s + a1 s / (1 + s)) / a1, the second, less the first, and the first give

    m1 = s / (psi1 a1 (1 - q / psi2)),    ridge = (1 - q / psi1) / m1,    m2 = m1 / (1 + s).

The ridge falls from infinity to zero as s rises from zero to the s with q = min(psi1, psi2): one bracketed root, no
spurious branch. Derivatives by the ridge are ratios of derivatives by s, so the risk

    R = -((b2 + noise variance) m1' + b1 m2') / m1^2        (' = d / d ridge)

needs no differences.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from tuner.scale import Scale
from tuner.space import Float, Params, SearchSpace
from tuner.trial import Result, Trial

RELU_SLOPE_2 = 0.25 / (0.5 - 0.5 / math.pi)  # b1: (E ReLU')^2 / Var ReLU
SMALLEST_S = 1e-12


@cache
def tanh_slope_2() -> float:
    """a1 of tanh normalised: (E tanh')^2 / E tanh^2, by Gauss-Hermite quadrature; E tanh' = E x tanh(x) (Stein)."""
    x, weight = np.polynomial.hermite_e.hermegauss(100)
    weight = weight / weight.sum()
    return float((weight @ (x * np.tanh(x))) ** 2 / (weight @ np.tanh(x) ** 2))


@dataclass(frozen=True)
class _Curve:
    """m1, m2, the ridge and their derivatives along s, at one psi1 and psi2."""

    psi1: float
    psi2: float

    @cached_property
    def end(self) -> float:
        """The s at which the ridge is zero: q = min(psi1, psi2), a quadratic in s."""
        a1 = tanh_slope_2()
        a2, top = 1 - a1, a1 * min(self.psi1, self.psi2)
        linear = 1 - top  # a2 s^2 + (a1 + a2 - top) s - top = 0
        return (-linear + math.sqrt(linear**2 + 4 * a2 * top)) / (2 * a2)

    def at(self, s: float) -> tuple[float, float, float, float]:
        """m1, dm1/ds, ridge, d ridge/ds."""
        a1 = tanh_slope_2()
        q = ((1 - a1) * s + a1 * s / (1 + s)) / a1
        dq = ((1 - a1) + a1 / (1 + s) ** 2) / a1
        room = 1 - q / self.psi2
        m1 = s / (self.psi1 * a1 * room)
        dm1 = (1 / room + s * dq / self.psi2 / room**2) / (self.psi1 * a1)
        ridge = (1 - q / self.psi1) / m1
        return m1, dm1, ridge, -(dq / self.psi1 + ridge * dm1) / m1

    def solve(self, ridge: float) -> float:
        """The s of a ridge: one root, found in ln s."""
        low, high = math.log(SMALLEST_S), math.log(self.end * (1 - 1e-15))
        root = brentq(
            lambda z: math.log(max(self.at(math.exp(z))[2], 1e-300) / ridge), low, high, xtol=1e-14, rtol=1e-14
        )
        return math.exp(root)

    def risk(self, ridge: float, noise_variance: float) -> float:
        s = self.solve(ridge)
        m1, dm1, _, dridge = self.at(s)
        dm2 = dm1 / (1 + s) - m1 / (1 + s) ** 2
        return -((1 - RELU_SLOPE_2 + noise_variance) * dm1 + RELU_SLOPE_2 * dm2) / dridge / m1**2


@lru_cache(maxsize=1024)
def _optimum(psi1: float, psi2: float, noise_variance: float) -> tuple[float, float]:
    curve, bounds = _Curve(psi1, psi2), RandomFeatures.space["ridge"]
    assert isinstance(bounds, Float)
    found = minimize_scalar(
        lambda z: curve.risk(math.exp(z), noise_variance),
        bounds=(math.log(bounds.low), math.log(bounds.high)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return math.exp(found.x), float(found.fun)


@dataclass(frozen=True)
class RandomFeatures:
    """The risk of random-feature ridge regression: exact, plus a little seeded noise.

    The ridge is per feature, which is already the width's invariant: nothing is left to rescale.

    Args:
        dimension: d, so that psi2 = width / d.
        psi1: samples / d.
        label_noise: sd of the noise of the targets.
        noise: sd of the Gaussian noise that a trial adds to the risk; 0: exact.
    """

    dimension: int = 64
    psi1: float = 4.0
    label_noise: float = 0.25
    noise: float = 1e-3
    parametrization = "limit"

    space = SearchSpace({"ridge": Float(1e-2, 1e1, log=True)})

    def risk(self, ridge: float, width: float) -> float:
        """Expected squared error on new data, label noise included; width may be infinite."""
        return _Curve(self.psi1, width / self.dimension).risk(ridge, self.label_noise**2)

    def optimum(self, width: float) -> tuple[float, float]:
        """The best ridge at a width, inside the space, and its risk; width may be infinite."""
        return _optimum(self.psi1, width / self.dimension, self.label_noise**2)

    def cost(self, params: Params, scale: Scale) -> float:
        """FLOPs of forming the features' Gram matrix: 2 samples width^2."""
        return 2 * self.psi1 * self.dimension * scale["width"] ** 2

    def __call__(self, params: Params, scale: Scale, seed: int) -> Result:
        started = time.perf_counter()
        self.space.check(params)
        if set(scale) != {"width"}:
            raise ValueError(f"scale: the only axis is width, got {scale!r}; correct the axes")
        ridge, width = float(params["ridge"]), scale["width"]
        loss = self.risk(ridge, width) + self.noise * drawn(seed, ridge, width)
        return Result(loss, self.cost(params, scale), time.perf_counter() - started)

    def train_many(self, trials: Sequence[Trial]) -> list[Result]:
        return [self(trial.params, trial.scale, trial.seed) for trial in trials]


def drawn(seed: int, *point: float) -> float:
    """A standard normal number for a seed and a point: another at another point, as of another training run."""
    words = np.array(point, dtype=np.float64).view(np.uint32)
    return float(np.random.default_rng([seed, *map(int, words)]).standard_normal())
