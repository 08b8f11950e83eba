"""Claims about the knowledge gradient, against quadrature, conditioning and Monte Carlo."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from tuner.acquisition import Knowledge, _normals, expected_max_affine
from tuner.surrogate.fit import Fit, Gaussian
from tuner.surrogate.frame import DTYPE, Data, Frame
from tuner.surrogate.optimum import Moments
from tuner.surrogate.prior import Prior
from tuner.surrogate.process import Processes


def brute(a, b):
    def integrand(z):
        return (a + b * z).max() * norm.pdf(z)

    crossings = [(a[i] - a[j]) / (b[j] - b[i]) for i in range(len(a)) for j in range(i) if abs(b[i] - b[j]) > 1e-12]
    kinks = sorted({float(np.clip(c, -9, 9)) for c in crossings})
    return quad(integrand, -9, 9, points=kinks, limit=500, epsabs=1e-12)[0]


@pytest.mark.parametrize("seed", range(6))
def test_expected_maximum_of_affine_functions_equals_quadrature(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=8), rng.normal(size=(3, 8))
    b[1, 3] = b[1, 5]  # parallel lines
    b[2] = 0.0  # nothing moves
    expected = [brute(a, row) for row in b]
    np.testing.assert_allclose(expected_max_affine(a, b), expected, atol=1e-8)


def test_a_line_that_is_lower_everywhere_changes_nothing():
    a, b = np.array([0.0, 0.3]), np.array([[1.0, -0.5]])
    more = np.hstack([b, b[:, :1]])
    np.testing.assert_allclose(expected_max_affine(np.append(a, -0.1), more), expected_max_affine(a, b), rtol=1e-14)


@pytest.fixture(scope="module")
def known():
    """A process with fixed theta on 12 runs: two hyperparameters, one axis; theta is certain, so moments are exact."""
    frame = Frame(
        choices=torch.tensor([0, 0]),
        reach=torch.tensor([math.log(1 / 16)], dtype=DTYPE),
        drift_mean=torch.zeros(2, 1, dtype=DTYPE),
        drift_sd=torch.full((2, 1), 0.03, dtype=DTYPE),
        endless=torch.ones(1, dtype=DTYPE),
    )
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(12, 3, generator=generator, dtype=DTYPE)
    inputs[:, 2] = math.log(1 / 16)
    told = torch.zeros(12, dtype=torch.bool)
    data = Data(inputs, torch.rand(12, generator=generator, dtype=DTYPE), told, 0.0, 1.0, 2.0)
    return certain(frame, data)


def certain(frame, data):
    prior = Prior.of(frame, data.spread)
    theta = torch.zeros(prior.size, dtype=DTYPE)
    processes = Processes(frame, data, prior, theta[None])
    around = Gaussian(theta, torch.zeros(prior.size, prior.size, dtype=DTYPE))
    return Fit(processes, torch.ones(1, dtype=DTYPE), around)


def points(fit, count, log, seed):
    x = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    return Moments(fit, torch.cat([x, torch.full((count, 1), log, dtype=DTYPE)], 1))


def with_run(fit, run, loss):
    """The same process with one more run: the oracle of every conditional claim."""
    data = fit.processes.data
    inputs, losses = torch.cat([data.inputs, run]), torch.cat([data.losses, loss[None]])
    more = replace(data, inputs=inputs, losses=losses, diverged=torch.zeros(13, dtype=torch.bool))
    return certain(fit.processes.frame, more)


def test_the_mean_moves_by_the_shift_times_the_surprise(known):
    target, runs = points(known, 20, 0.0, 1), points(known, 3, math.log(1 / 16), 2)
    shift = Knowledge.of(target, runs).shifts[1]
    run, spread = runs.inputs[1:2], math.sqrt(float(runs.variance[1] + runs.noise[1]))
    # two standard deviations lower: inside the linear zone of the compression, where a loss is itself
    moved = Moments(with_run(known, run, runs.mean[1] - 2 * spread), target.inputs)
    np.testing.assert_allclose(moved.mean - target.mean, -2 * shift, atol=1e-9)


def test_a_pending_run_lowers_covariance_as_if_it_had_finished(known):
    target, runs = points(known, 15, 0.0, 3), points(known, 4, math.log(1 / 4), 4)
    waiting = Moments(known, runs.inputs[:1])
    finished = with_run(known, runs.inputs[:1], runs.mean[0])
    expected = Knowledge.of(Moments(finished, target.inputs), Moments(finished, runs.inputs)).shifts
    np.testing.assert_allclose(Knowledge.of(target, runs, waiting).shifts, expected, atol=1e-8)
    np.testing.assert_allclose(Knowledge.of(target, runs).given(0).shifts, expected, atol=1e-8)


def test_joint_knowledge_of_one_run_is_its_gradient(known):
    target, runs = points(known, 40, 0.0, 5), points(known, 6, math.log(1 / 16), 6)
    cross = float(target.mean.std()) * np.random.default_rng(0).normal(size=(40, 6))
    knowledge = replace(Knowledge.of(target, runs), cross=cross, among=np.eye(6), noise=np.zeros(6))
    one_by_one = [knowledge.joint(row[None]) for row in knowledge.shifts]
    # 256 antithetic points of one normal leave an error of about a percent in a piecewise linear integrand
    np.testing.assert_allclose(one_by_one, knowledge.gradient(np.arange(6)), rtol=0.02)


def test_the_best_run_is_the_best_of_all_computed_exactly(known):
    target, runs = points(known, 60, 0.0, 9), points(known, 200, math.log(1 / 4), 10)
    knowledge, costs = Knowledge.of(target, runs), np.random.default_rng(1).uniform(1, 3, 200)
    assert knowledge.best(costs) == (knowledge.gradient(np.arange(200)) / costs).argmax()
    costs[:190] = np.inf  # what the budget does not allow
    assert knowledge.best(costs) >= 190


def test_knowledge_grows_with_the_batch(known):
    target, runs = points(known, 40, 0.0, 7), points(known, 5, math.log(1 / 4), 8)
    knowledge = Knowledge.of(target, runs)
    first, second = knowledge.shifts[0], knowledge.given(0).shifts[1]
    assert knowledge.joint(np.array([first, second])) > knowledge.joint(first[None])


def test_quasi_random_normals_have_the_moments_of_normals():
    z = _normals(4)
    np.testing.assert_allclose(z.mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(4), atol=0.1)
