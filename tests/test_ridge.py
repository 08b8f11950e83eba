"""Random-feature ridge regression against the printed table, the equations it solves, and a simulation."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from objectives.ridge import RELU_SLOPE_2, RandomFeatures, _Curve, tanh_slope_2
from tuner.scale import Scale

EXACT = RandomFeatures(noise=0.0)

# psi2: best ridge, its risk, loss gap a, ridge gap b, regret c of the ridge in the limit of infinite width
TABLE = {
    2: ("0.34056", "0.496374", "7.53e-2", "7.3e-3", "3.6e-6"),
    4: ("0.37921", "0.452766", "3.17e-2", "3.13e-2", "6.4e-5"),
    8: ("0.38505", "0.435881", "1.48e-2", "3.72e-2", "9.0e-5"),
    16: ("0.37678", "0.428306", "7.22e-3", "2.89e-2", "5.5e-5"),
    32: ("0.36653", "0.424670", "3.58e-3", "1.87e-2", "2.3e-5"),
    64: ("0.35867", "0.422876", "1.79e-3", "1.08e-2", "7.7e-6"),
    128: ("0.35373", "0.421982", "8.94e-4", "5.85e-3", "2.3e-6"),
    256: ("0.35093", "0.421535", "4.47e-4", "3.05e-3", "6.2e-7"),
}


def last_digit(printed):
    """One unit in the last printed place: half of it is rounding, and the table's own numerics have the other half."""
    mantissa, _, exponent = printed.partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


@pytest.mark.parametrize("psi2", TABLE)
def test_the_optimum_and_the_three_gaps_are_those_of_the_table(psi2):
    ridge, risk = EXACT.optimum(psi2 * EXACT.dimension)
    limit_ridge, limit_risk = EXACT.optimum(math.inf)
    regret = EXACT.risk(ridge, math.inf) - limit_risk
    found = (ridge, risk, risk - limit_risk, abs(ridge - limit_ridge), regret)
    for value, printed in zip(found, TABLE[psi2], strict=True):
        assert value == pytest.approx(float(printed), abs=last_digit(printed))


def test_the_optimum_at_infinite_width_is_the_analytic_one():
    """lambda* = a1 (noise variance + b2) / b1 - a2; abs: a minimum is known to the square root of the precision."""
    a1, b1 = tanh_slope_2(), RELU_SLOPE_2
    ridge, risk = EXACT.optimum(math.inf)
    assert ridge == pytest.approx(a1 * (0.25**2 + 1 - b1) / b1 - (1 - a1), abs=1e-7)
    assert risk == pytest.approx(0.421088, abs=5e-7)


@pytest.mark.parametrize("ridge", [0.02, 0.3, 5.0])
def test_the_risk_at_infinite_width_is_the_analytic_one(ridge):
    a1, b1, psi1 = tanh_slope_2(), RELU_SLOPE_2, EXACT.psi1
    t = 1 + _Curve(psi1, math.inf).solve(ridge)
    assert a1 * psi1 / (t - 1) - a1 / t - (1 - a1) == pytest.approx(ridge, rel=1e-10)
    risk = psi1 * ((1 - b1 + 0.25**2) * t**2 + b1) / (psi1 * t**2 - (t - 1) ** 2)
    assert EXACT.risk(ridge, math.inf) == pytest.approx(risk, rel=1e-10)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 0.3, 10.0, 1e3])
@pytest.mark.parametrize("psi2", [0.5, 2.0, 4.0, 7.0, 300.0])
def test_the_solution_satisfies_the_coupled_equations(psi2, ridge):
    a1, psi1, curve = tanh_slope_2(), 4.0, _Curve(4.0, psi2)
    s = curve.solve(ridge)
    m1 = curve.at(s)[0]
    m2 = m1 / (1 + s)
    common = a1 * m1 * m2 * (ridge * m1 - 1)
    scale = a1 * m1 * m2 * (ridge * m1 + 1)
    first = (m1 - m2) * ((1 - a1) * m1 + a1 * m2) / psi1 + common
    second = psi2 / psi1 * (a1 * m1 * m2 + (m2 - m1) / psi1) + common
    assert m2 > 0
    assert [first / scale, second / scale] == pytest.approx([0, 0], abs=1e-8 * max(1, psi2))


@pytest.mark.parametrize("psi2", [0.5, 4.0, 64.0])
def test_the_ridge_falls_along_the_curve_at_the_rate_it_says(psi2):
    curve = _Curve(4.0, psi2)
    for s in curve.end * np.linspace(0.01, 0.99, 25):
        step = 1e-6 * s
        m1, dm1, ridge, dridge = curve.at(s)
        (m1_up, _, ridge_up, _), (m1_down, _, ridge_down, _) = curve.at(s + step), curve.at(s - step)
        assert ridge > 0 > dridge
        # central differences: rounding eps / 1e-6 ~ 1e-10 of the value, truncation of order 1e-12
        assert (m1_up - m1_down) / (2 * step) == pytest.approx(dm1, rel=1e-5, abs=1e-8 * m1 / s)
        assert (ridge_up - ridge_down) / (2 * step) == pytest.approx(dridge, rel=1e-5, abs=1e-8 * ridge / s)


def test_the_slopes_of_the_activations_match_direct_integration():
    square = quad(lambda x: np.tanh(x) ** 2 * norm.pdf(x), -12, 12)[0]
    slope = quad(lambda x: norm.pdf(x) / np.cosh(x) ** 2, -12, 12)[0]
    assert tanh_slope_2() == pytest.approx(slope**2 / square, abs=1e-8)
    assert abs(RELU_SLOPE_2 - 0.73347) < 5e-6


def simulated_risk(rng, d, psi1, psi2, ridge):
    """One data set and one draw of features, solved directly."""
    n, samples, fresh = int(psi2 * d), int(psi1 * d), 4000
    tanh_sd = math.sqrt(quad(lambda x: np.tanh(x) ** 2 * norm.pdf(x), -12, 12)[0])
    weights = rng.standard_normal((n, d)) / math.sqrt(d)

    def draw(size):
        x = rng.standard_normal((size, d))
        target = (np.maximum(x[:, 0], 0) - 1 / math.sqrt(2 * math.pi)) / math.sqrt(0.5 - 0.5 / math.pi)
        return np.tanh(x @ weights.T) / tanh_sd, target + 0.25 * rng.standard_normal(size)

    features, y = draw(samples)
    fitted = np.linalg.solve(features.T @ features + n * ridge * np.eye(n), features.T @ y)
    test_features, test_y = draw(fresh)
    return float(np.mean((test_y - test_features @ fitted) ** 2))


@pytest.mark.parametrize(("psi2", "ridge"), [(1.0, 0.1), (2.0, 0.34), (2.0, 3.0), (4.0, 0.05)])
def test_the_risk_is_that_of_a_simulation(psi2, ridge):
    """Within four standard errors and 2/d: corrections to the limit are of order 1/d."""
    d, rng = 80, np.random.default_rng(0)
    found = [simulated_risk(rng, d, 4.0, psi2, ridge) for _ in range(12)]
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert EXACT.risk(ridge, psi2 * EXACT.dimension) == pytest.approx(np.mean(found), abs=4 * error + 2 / d)


@pytest.mark.parametrize("width", [32, 64, 256, 4096])
def test_no_ridge_in_the_space_is_below_the_optimum(width):
    ridge, risk = EXACT.optimum(width)
    bounds = EXACT.space["ridge"]
    assert bounds.low < ridge < bounds.high
    assert min(EXACT.risk(float(r), width) for r in np.geomspace(bounds.low, bounds.high, 101)) >= risk


def test_the_noise_has_the_declared_size_and_belongs_to_the_seed_and_the_point():
    objective, scale = RandomFeatures(noise=0.1), Scale(width=128)
    noise = [objective({"ridge": 0.3}, scale, seed).loss - objective.risk(0.3, 128) for seed in range(400)]
    # the sd of a sample sd is sd / sqrt(2 (400 - 1)) = 3.5 % of it; four of these
    assert np.std(noise, ddof=1) == pytest.approx(0.1, rel=4 * 0.036)
    assert abs(np.mean(noise)) < 4 * 0.1 / 20
    assert objective({"ridge": 0.4}, scale, 0).loss - objective.risk(0.4, 128) != noise[0]
    assert EXACT({"ridge": 0.3}, scale, 0).loss == EXACT.risk(0.3, 128)
