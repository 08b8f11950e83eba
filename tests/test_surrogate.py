"""Claims about the surrogate, against GPyTorch, autograd and closed forms."""

import math
from dataclasses import replace

import gpytorch
import numpy as np
import pytest
import torch

from tuner.surrogate.compression import compress, expand, log_slope
from tuner.surrogate.fit import MEMBERS, TOLERATED, climb, spread, starts
from tuner.surrogate.frame import DTYPE, Data, Frame
from tuner.surrogate.kernel import TransferKernel, _Covariance
from tuner.surrogate.mean import SMOOTH, Bowl, LossLaw, undrifted
from tuner.surrogate.optimum import Moments, Points
from tuner.surrogate.prior import Prior
from tuner.surrogate.process import ABOVE, Processes, _LogDensity
from tuner.surrogate.scaling import BASES, drift_bases, law_distance
from tuner.surrogate.tangent import Tangents


def frame(choices=(0, 0), reach=(-2.0,), sums=()):
    shape = (len(choices), len(reach))
    return Frame(
        torch.tensor(choices),
        torch.tensor(reach, dtype=DTYPE),
        torch.full(shape, -0.01, dtype=DTYPE),
        torch.full(shape, 0.02, dtype=DTYPE),
        torch.full(shape[1:], 0.6, dtype=DTYPE),
        sums,
    )


def inputs(shape: Frame, count: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, shape.dimensions, generator=generator, dtype=DTYPE)
    x[:, ~shape.numeric] = ((x[:, ~shape.numeric] * 3).floor() + 0.5) / 3
    steps = torch.randint(0, 3, (count, shape.axes), generator=generator) / 2
    return torch.cat([x, steps * shape.reach], 1)


def data(shape: Frame, count: int = 14, seed: int = 0) -> Data:
    x = inputs(shape, count, seed)
    away = x[:, : shape.dimensions] - 0.45 + 0.02 * x[:, shape.dimensions :].sum(1, keepdim=True)
    y = away.square().sum(1) - 0.1 * x[:, shape.dimensions :].sum(1)
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed + 1), dtype=DTYPE)
    return Data.of(shape, x, y + 0.01 * noise)


def processes(shape: Frame, members: int = 3, count: int = 14) -> Processes:
    """Two of the runs diverged."""
    finite = data(shape, count)
    runs = Data.of(shape, finite.inputs, finite.losses.index_fill(0, finite.losses.topk(2).indices, torch.inf))
    prior = Prior.of(shape, runs.spread)
    theta = 0.5 * torch.randn(members, prior.size, generator=torch.Generator().manual_seed(2), dtype=DTYPE)
    return Processes(shape, runs, prior, theta)


SHAPES = [frame(), frame((0, 3, 0), (-2.0, 1.5)), frame((0,), ()), frame(sums=((1, 0, 0.7),))]


class Reference(gpytorch.models.ExactGP):
    """Our mean and kernel inside GPyTorch's own exact inference."""

    def __init__(self, p: Processes) -> None:
        likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(p.scatter[0])
        excess = p.residual[0] + p.bowl(p.data.inputs)[0]
        super().__init__(p.data.inputs, excess, likelihood)
        one = Processes(p.frame, p.data, p.prior, p.theta[0])
        self.bowl, self.covar_module = one.bowl, one.kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.bowl(x), self.covar_module(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_posterior_and_likelihood_equal_gpytorchs(shape):
    p = processes(shape, members=1)
    reference = Reference(p)
    new = inputs(shape, 7, seed=5)
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        prior = reference.likelihood(reference(*reference.train_inputs))
        expected = prior.log_prob(reference.train_targets) + 7 * math.log(2 * math.pi)  # 14 runs
        posterior = reference.eval()(new)
        explained = p.explain(p.cross(new))
        ours = p.mean(new, p.cross(new))[0] - p.law(new)[0]
        log_posterior = p.log_posterior()[0]
        excess = p.data.losses - p.law(p.data.inputs)[0]
        slope = log_slope(excess, p.value["linear"][0])
        beliefs = -0.5 * (p.theta[0].square().sum() + (excess.min() / ABOVE).relu().square())
    torch.testing.assert_close(ours, posterior.mean, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(
        p.covariance(new, explained, new, explained)[0], posterior.covariance_matrix, atol=1e-8, rtol=1e-6
    )
    torch.testing.assert_close(p.variance(new, explained)[0], posterior.variance, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(log_posterior, expected + slope + beliefs, atol=1e-6, rtol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_the_log_posterior_equals_finite_differences(shape):
    p = processes(shape, members=1)

    def value(theta):
        return Processes(p.frame, p.data, p.prior, theta[None]).log_posterior()[0]

    theta = p.theta[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(theta), theta)
    step = 1e-5 * torch.eye(p.prior.size, dtype=DTYPE)
    with torch.no_grad():
        numeric = torch.stack([(value(p.theta[0] + s) - value(p.theta[0] - s)) / 2e-5 for s in step])
    # central differences of a value of order 100 at step 1e-5: rounding 1e-9, truncation 1e-8 of the third derivative
    torch.testing.assert_close(slope, numeric, atol=2e-4, rtol=1e-4)


def test_log_density_differentiates_like_torch():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 5, 5, generator=generator, dtype=DTYPE)
    covariance = (root @ root.mT + torch.eye(5, dtype=DTYPE)).requires_grad_()
    residual = torch.randn(2, 5, generator=generator, dtype=DTYPE, requires_grad=True)
    noise = torch.rand(2, 5, generator=generator, dtype=DTYPE, requires_grad=True)
    ours = torch.autograd.grad(_LogDensity.apply(covariance, noise, residual).sum(), (covariance, noise, residual))
    normal = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=DTYPE), covariance + torch.diag_embed(noise))
    theirs = torch.autograd.grad(normal.log_prob(residual).sum(), (covariance, noise, residual))
    torch.testing.assert_close(ours[0], 0.5 * (theirs[0] + theirs[0].mT))
    torch.testing.assert_close(ours[1:], theirs[1:])


def test_without_scale_the_kernel_is_gpytorchs_matern():
    shape = frame((0, 0), ())
    p, x = processes(shape, members=1), inputs(shape, 6)
    reference = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=2)).double()
    reference.base_kernel.lengthscale = p.value["length"]
    reference.outputscale = p.value["shared"][0] ** 2
    torch.testing.assert_close(p.kernel.forward(x, x)[0], reference(x).to_dense(), atol=1e-7, rtol=1e-7)


def test_another_category_is_one_cube_length_away():
    shape = frame((0, 3), ())
    p = processes(shape, members=1)
    x = torch.tensor([[0.5, (i + 0.5) / 3] for i in range(3)], dtype=DTYPE)
    r = math.sqrt(5) / p.value["length"][0, 1]
    apart = p.value["shared"][0] ** 2 * (1 + r + r**2 / 3) * (-r).exp()
    covariance = p.kernel.forward(x, x)[0]
    torch.testing.assert_close(covariance[~torch.eye(3, dtype=torch.bool)], apart.expand(6), atol=1e-12, rtol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_covariance_differentiates_like_finite_differences(shape):
    generator = torch.Generator().manual_seed(0)

    def drawn(*size):
        return torch.randn(size, generator=generator, dtype=DTYPE, requires_grad=True)

    z, v = [drawn(2, n, 2) for n in (4, 3)], [drawn(2, n, shape.axes) for n in (4, 3)]
    assert torch.autograd.gradcheck(_Covariance.apply, (*z, *v, *(drawn(2, 1, 1) for _ in range(3))))


def test_covariance_is_smooth_where_points_coincide():
    z = torch.zeros(1, 2, dtype=DTYPE, requires_grad=True)
    clock, one = torch.ones(1, 1, dtype=DTYPE), torch.ones(1, 1, dtype=DTYPE)
    (slope,) = torch.autograd.grad(_Covariance.apply(z, z.detach(), clock, clock, one, one, one).sum(), z)
    torch.testing.assert_close(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_symmetric_positive_definite_and_consistent(shape):
    p = processes(shape)
    x = inputs(shape, 20, seed=3)
    with torch.no_grad():
        full = p.kernel.forward(x, x.clone())
        torch.testing.assert_close(full, full.mT)
        torch.testing.assert_close(full.diagonal(dim1=-2, dim2=-1), p.kernel.forward(x, x, diag=True))
        assert torch.linalg.eigvalsh(full).min() > -1e-9


def test_every_course_of_drift_vanishes_at_the_target_and_agrees_at_the_reach():
    reach = torch.tensor([-3.0, 1.2], dtype=DTYPE)
    bases = drift_bases(torch.stack([torch.zeros(2, dtype=DTYPE), reach]), reach)
    torch.testing.assert_close(bases[0], torch.zeros(2, BASES, dtype=DTYPE))
    torch.testing.assert_close(bases[1], reach[:, None].expand(2, BASES))


def test_undrifted_moves_numeric_coordinates_only():
    shape = frame((0, 2), (-2.0,))
    drift = torch.full((2, 1, BASES), 0.1, dtype=DTYPE)
    x = torch.tensor([[0.5, 0.5, -2.0]], dtype=DTYPE)
    torch.testing.assert_close(undrifted(shape, drift, x)[0], torch.tensor([0.5 + 0.1 * 2 * 3, 0.5], dtype=DTYPE))


LEVEL, ALPHA = torch.tensor(0.2, dtype=DTYPE), torch.tensor([0.4, 0.6], dtype=DTYPE)
TWO_AXES = frame((0,), (-2.0, -3.0))


def law(shares: list[float], bend: float, height: float) -> LossLaw:
    """E = 0.2 + s bent, s = sum_a share_a (n_a^-alpha_a - 1)."""
    amplitude = torch.tensor(shares, dtype=DTYPE)
    rise = amplitude * torch.expm1(-ALPHA * TWO_AXES.reach)
    rounded = (amplitude.square() + SMOOTH**2).sqrt().sum() / amplitude.abs().sum()
    return LossLaw(TWO_AXES, LEVEL, rise, ALPHA, bend / rounded, height - float(LEVEL))


@pytest.fixture
def scales():
    """X of four scales, and n_a^-alpha_a there."""
    logs = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, -2.0], [-2.0, -3.0]], dtype=DTYPE)
    return torch.cat([torch.full((4, 1), 0.5, dtype=DTYPE), logs], 1), (-ALPHA * logs).exp()


def test_loss_law_adds_power_laws_where_its_power_is_one(scales):
    x, powers = scales
    expected = LEVEL + (powers - 1) @ torch.tensor([0.7, 0.3], dtype=DTYPE)
    torch.testing.assert_close(law([0.7, 0.3], bend=2.0, height=2.0)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("height", [2.0, math.inf])
def test_loss_law_is_kaplans_where_its_bend_is_one(scales, height):
    """z u^(1 / z) above E_target - z, u = 0.7 m^-a + 0.3 t^-b; without z, ln u."""
    x, powers = scales
    u = powers @ torch.tensor([0.7, 0.3], dtype=DTYPE)
    expected = LEVEL + (u.log() if math.isinf(height) else height * (u ** (1 / height) - 1))
    torch.testing.assert_close(law([0.7, 0.3], bend=1.0, height=height)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("bend", "height"), [(0.3, 0.5), (3.0, math.inf)])
def test_one_axis_has_a_power_law(scales, bend, height):
    one = frame((0,), (-2.0,))
    rise = 0.7 * torch.expm1(-ALPHA[:1] * one.reach)
    told = LossLaw(one, LEVEL, rise, ALPHA[:1], torch.tensor(bend, dtype=DTYPE), height)(scales[0][:, :2])
    torch.testing.assert_close(told, LEVEL + 0.7 * (scales[1][:, 0] - 1))


def test_a_loss_may_rise_with_scale(scales):
    up, down = law([-0.7, -0.3], 1.5, 4.0)(scales[0]), law([0.7, 0.3], 1.5, 4.0)(scales[0])
    torch.testing.assert_close(up - LEVEL, LEVEL - down)


@pytest.mark.parametrize("bend", [0.3, 3.0, 300.0])
def test_a_law_never_runs_away(scales, bend):
    """However large the bend against the height, it stays at or below the sum of its power laws."""
    x, powers = scales
    added = LEVEL + (powers - 1) @ torch.tensor([0.7, 0.3], dtype=DTYPE)
    assert (law([0.7, 0.3], bend, 0.5)(x) <= added + 1e-9).all()


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_climbs_may_leave_the_centre_of_the_prior(shape):
    """Where nothing rises with scale: the slope of the log posterior is that of central differences, and not zero."""
    runs = data(shape)
    prior = Prior.of(shape, runs.spread)
    centre = prior.near().requires_grad_()
    (slope,) = torch.autograd.grad(Processes(shape, runs, prior, centre[None]).log_posterior().sum(), centre)
    rises = prior.near(rise=torch.ones(shape.axes, dtype=DTYPE)).nonzero()[:, 0]
    for i in rises:
        step = 1e-5 * torch.eye(prior.size, dtype=DTYPE)[i]
        sides = torch.stack([prior.near() + step, prior.near() - step])
        ahead, behind = Processes(shape, runs, prior, sides).log_posterior()
        torch.testing.assert_close(slope[i], (ahead - behind) / 2e-5, rtol=1e-3, atol=1e-4)
        assert abs(slope[i]) > 0.1


def test_a_law_far_below_all_runs_is_unlikely_and_they_do_not_coincide_there():
    shape = frame()
    runs = data(shape)
    prior = Prior.of(shape, runs.spread)
    far = prior.near(level=torch.tensor(-60.0, dtype=DTYPE))[None]
    told = Processes(shape, runs, prior, far)
    best = float(told._excess.min())
    assert best > 50
    assert float(told.log_posterior()) < -0.5 * (best / ABOVE) ** 2
    tight = prior.near(level=torch.tensor(-60.0, dtype=DTYPE), linear=torch.tensor(0.05, dtype=DTYPE))[None]
    told = Processes(shape, runs, prior, tight)
    order, compressed = told._excess[0].argsort(), (told.residual + told.bowl(runs.inputs))[0]
    assert told._excess.min() > 100 * 0.05
    assert (compressed[order].diff() > 0).all()


def test_bowl_is_a_compressed_quadratic_with_its_bottom_where_it_says():
    shape = frame()
    zero = torch.zeros(2, 1, BASES, dtype=DTYPE)
    curvature, bottom = torch.tensor([2.0, 8.0], dtype=DTYPE), torch.tensor([0.3, 0.6], dtype=DTYPE)
    bowl = Bowl(shape, zero, curvature, bottom, torch.tensor(1.0, dtype=DTYPE))
    x = torch.tensor([[0.3, 0.6, 0.0], [0.4, 0.5, 0.0]], dtype=DTYPE)
    torch.testing.assert_close(bowl(x), torch.tensor([0.0, 0.5 * (2 * 0.01 + 8 * 0.01)], dtype=DTYPE))


def test_compression_is_linear_then_logarithmic():
    width = torch.tensor([0.5], dtype=DTYPE)
    excess = torch.tensor([-3.0, 0.2, 0.5, 5.0, 50.0, 1e6], dtype=DTYPE)
    far = [0.5 * (1 + math.log(ratio)) for ratio in (10, 100, 2e6)]
    expected = torch.tensor([-3.0, 0.2, 0.5, *far], dtype=DTYPE)
    torch.testing.assert_close(compress(excess, width), expected)
    torch.testing.assert_close(expand(expected[:5], width), excess[:5])


def test_jacobian_of_the_compression_is_the_log_of_its_slope():
    width = torch.tensor([0.5], dtype=DTYPE)
    excess = torch.tensor([0.1, 0.6, 20.0, 1e5], dtype=DTYPE, requires_grad=True)  # no loss that was told is cut off
    (slope,) = torch.autograd.grad(compress(excess, width).sum(), excess)
    torch.testing.assert_close(log_slope(excess, width).detach(), slope.log().sum())


def test_one_absurd_loss_moves_neither_centre_nor_unit():
    shape = frame()
    x = inputs(shape, 30)
    y = 1 + 0.1 * torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    absurd = y.clone()
    absurd[y.argmax()] = 1e12
    plain, bent = Data.of(shape, x, y), Data.of(shape, x, absurd)
    assert bent.centre == plain.centre
    assert bent.unit == pytest.approx(plain.unit, rel=0.5)


def fitted(losses):
    shape = frame()
    x = inputs(shape, 24, seed=9)
    away = x[:, :2] - torch.tensor([0.3, 0.6], dtype=DTYPE)
    y = away.square().sum(1) - 0.1 * x[:, 2]
    runs = Data.of(shape, x, losses(x, y))
    around = climb(shape, runs, starts(shape, runs))
    return spread(shape, runs, around, torch.Generator().manual_seed(0)), shape


def grid_minimum(fit):
    line = torch.linspace(0, 1, 21, dtype=DTYPE)
    x = torch.cartesian_prod(line, line)
    with torch.no_grad():
        mean = Points(fit, torch.cat([x, torch.zeros(len(x), 1, dtype=DTYPE)], 1)).mean
    return x[mean.argmin()], mean


def test_losses_that_span_decades_are_told_apart_by_their_logarithm():
    """A squared error from 1 to 1e-4: a factor is a factor at either end, and the way back is the exponential."""
    x = torch.rand(30, 2, dtype=DTYPE)
    losses = 10 ** -torch.linspace(0, 4, 30, dtype=DTYPE)
    data = Data.of(frame((0,)), x, losses)
    assert data.log
    torch.testing.assert_close(data.in_loss_units(data.losses), losses)
    steps = data.losses.diff()
    torch.testing.assert_close(steps, steps[:1].expand(29))
    assert data.deviation(1e-4, 0.1) == pytest.approx(1e-4 * 0.1 * data.unit)
    assert not Data.of(frame((0,)), x, losses + 1).log
    assert not Data.of(frame((0,)), x, losses - 0.5).log


def test_what_comes_after_a_fit_is_told_in_the_fit_s_units():
    x = torch.rand(12, 2, dtype=DTYPE)
    losses = torch.linspace(1, 2, 12, dtype=DTYPE)
    x, losses = torch.cat([x, x[:1]]), torch.cat([losses, torch.full((1,), 9.0, dtype=DTYPE)])
    losses[10:12] = torch.tensor([0.5, torch.inf])
    before, after = Data.of(frame((0,)), x[:10], losses[:10]), Data.of(frame((0,)), x, losses, settled=10)
    assert (after.centre, after.unit, after.spread) == (before.centre, before.unit, before.spread)
    torch.testing.assert_close(after.losses[:10], before.losses)
    assert after.losses[10] < 0
    assert after.diverged.tolist() == [False] * 11 + [True, False]
    assert after.losses[11] > after.losses[12]  # than any that was told, before or since
    blind = Data.of(frame((0,)), x, torch.cat([torch.full((10,), torch.inf, dtype=DTYPE), losses[:3]]), settled=10)
    assert blind.centre == losses[0]  # no unit before the first loss


@pytest.mark.parametrize("edge", [0.7, 0.35])
def test_diverged_runs_neither_wreck_the_fit_nor_are_thrown_away(edge):
    """Seven of 24, or fifteen, from next to the optimum on."""

    def cliff(x, y):
        return torch.where(x[:, 0] > edge, torch.inf, y)

    best, mean = grid_minimum(fitted(cliff)[0])
    np.testing.assert_allclose(best, [0.3, 0.6], atol=0.1)
    right = mean.reshape(21, 21)[17:].min()  # lr coordinate above 0.8: only diverged runs there
    assert right > mean.quantile(0.5)


def test_losses_beyond_all_reason_fall_back_on_the_prior_without_an_exception(caplog):
    shape = frame()
    x = inputs(shape, 10)
    broken = Data(x, torch.full((10,), torch.nan, dtype=DTYPE), torch.zeros(10, dtype=torch.bool), 0.0, 1.0, 1.0)
    fit = spread(shape, broken, None, torch.Generator().manual_seed(0))
    assert "could be fitted" in caplog.text
    assert float(fit.weights.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("wider", [1, 20])
def test_no_member_lies_far_below_the_mode(wider):
    """Even where the density that is drawn from is far wider than the posterior."""
    shape = SHAPES[0]
    runs = data(shape, 60)
    around = climb(shape, runs, starts(shape, runs))
    fit = spread(shape, runs, replace(around, root=wider * around.root), torch.Generator().manual_seed(0))
    fall = fit.middle.log_posterior() - fit.processes.log_posterior()
    # half a squared distance of p normals: p / 2 and six of its deviations, sqrt(p / 2)
    size = fit.processes.prior.size
    assert fall.max() < 0.5 * size + 6 * math.sqrt(size / 2) + TOLERATED
    assert len(fit.weights) > MEMBERS / 2


def test_moments_of_a_certain_theta_are_the_process_itself():
    fit, _ = fitted(lambda x, y: y)
    certain = replace(fit, around=replace(fit.around, root=torch.zeros_like(fit.around.root)))
    x = inputs(frame(), 5, seed=4)
    with torch.no_grad():
        moments = Moments(certain, x)
        explained = fit.middle.explain(fit.middle.cross(x))
        torch.testing.assert_close(moments.variance, fit.middle.variance(x, explained)[0])


def test_the_tangent_is_the_variance_of_the_mean_over_theta():
    """Delta method: exact where theta varies little, so a thousandth of the root is drawn from."""
    fit, _ = fitted(lambda x, y: y)
    little = replace(fit, around=replace(fit.around, root=1e-3 * fit.around.root))
    x = inputs(frame(), 5, seed=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        normals = torch.randn(4000, len(fit.around.mode), generator=generator, dtype=DTYPE)
        around = replace(fit.processes, theta=little.around.at(normals))
        drawn = around.mean(x, around.cross(x)).var(0)
        # the variance of 4000 draws has a relative standard error of sqrt(2 / 4000) = 2.2 %
        torch.testing.assert_close(Moments(little, x).tangent.square().sum(0), drawn, rtol=0.1, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_tangents_are_the_derivative_of_the_mean(shape):
    """Oracle: the means of whole processes a little to either side; on either side of the target, too."""
    middle = processes(shape, members=1)
    size = middle.prior.size
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(3), dtype=DTYPE) / size
    x = inputs(shape, 7, seed=5)
    x[:3, shape.dimensions :] *= -0.5
    with torch.no_grad():
        found = Tangents(middle, root).at(x, middle.cross(x)[0])
        ends = [replace(middle, theta=middle.theta + step * root.mT) for step in (1e-4, -1e-4)]
        ahead, behind = (end.mean(x, end.cross(x)) for end in ends)
    torch.testing.assert_close(found, (ahead - behind) / 2e-4, rtol=1e-4, atol=1e-6)


def test_a_climb_from_where_nothing_can_be_computed_finds_no_mode():
    shape = frame()
    x, told = inputs(shape, 10) * torch.nan, torch.zeros(10, dtype=torch.bool)
    broken = Data(x, torch.rand(10, dtype=DTYPE), told, 0.0, 1.0, 1.0)
    assert climb(shape, broken, starts(shape, broken)) is None


def test_the_correction_fades_as_the_distance_along_the_law_to_the_ratio():
    """At one point its standard deviation is |h|^(beta/alpha); what is left at the target is shared by all scales."""
    p = processes(frame(), members=3)
    x = inputs(frame(), 2)[:1].repeat(3, 1)
    x[:, -1] = torch.tensor([1.0, 0.5, 0.0], dtype=DTYPE) * frame().reach
    variance = p.kernel.forward(x, x, diag=True)
    v = {name: value[:, None] for name, value in p.value.items() if value.ndim == 1}
    h = law_distance(x[None, :, -1:], frame().reach, p.value["alpha"])[..., 0].abs()
    expected = v["shared"] ** 2 + h ** (2 * v["ratio"]) * (v["fading"] ** 2 + v["offset"] ** 2)
    torch.testing.assert_close(variance, expected)


def test_joint_draws_have_the_mean_and_spread_of_the_mixture():
    fit, _ = fitted(lambda x, y: y)
    x = inputs(frame(), 6, seed=8)
    with torch.no_grad():
        points = Points(fit, x)
        drawn, _ = points.draws(4000, torch.Generator().manual_seed(3))
        within = fit.processes.variance(x, fit.processes.explain(points.cross))
        sd = (fit.weights @ (within + (points.means - points.mean).square())).sqrt()
    # the mean of 4000 draws is within 4.5 standard errors in all six coordinates with probability 1 - 4e-5
    assert ((drawn.mean(0) - points.mean).abs() < 4.5 * sd / math.sqrt(4000)).all()
    torch.testing.assert_close(drawn.std(0), sd, rtol=0.1, atol=1e-6)


def test_kernel_can_serve_a_gpytorch_model_batched():
    p = processes(frame(), members=4)
    x = inputs(frame(), 5)
    assert isinstance(p.kernel, TransferKernel)
    assert p.kernel(x).to_dense().shape == (4, 5, 5)


def test_a_product_is_seen_in_place_of_one_of_its_factors():
    """Along lr x weight decay = constant nothing changes but with lr itself."""
    shape = frame(sums=((1, 0, 0.5),))
    x = torch.tensor([[0.2, 0.6, 0.0], [0.4, 0.5, 0.0]], dtype=DTYPE)  # 0.6 + 0.5 * 0.2 = 0.5 + 0.5 * 0.4
    still = torch.zeros(2, 1, BASES, dtype=DTYPE)
    seen = undrifted(shape, still, x)
    torch.testing.assert_close(seen[:, 0], x[:, 0])
    torch.testing.assert_close(seen[:, 1], torch.tensor([0.45, 0.45], dtype=DTYPE))
    assert shape != frame()
    assert hash(shape) != hash(frame())
