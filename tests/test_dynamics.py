"""Claims about what a run reveals, against dense Hessians, explicit spectra, and brute force over examples."""

import csv
import itertools
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tuner.dynamics import (
    NoiseScale,
    Renewal,
    Sharpness,
    Trajectory,
    Updates,
    adam_edge,
    adam_preconditioner,
    consistent,
    critical_batch,
    distance,
    kappa_hat,
    periods,
    regime,
    shared,
    sharpness,
    super_consistency,
)
from tuner.report import dynamics as drawn

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.sin(X.sum(1, keepdim=True))


def network(seed=0, width=7):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    ).double()


def loss(model):
    return F.mse_loss(model(X), Y)


def trained(model, steps=40, lr=0.02, watch=lambda: None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        watch()
    return optimizer


# the trajectory


def test_parts_add_up_to_the_linearised_change_and_that_is_nearly_the_change():
    model = network()
    path = Trajectory(model, loss, decay=0.9, every=1)
    start = loss(model).item()
    trained(model, 200, lr=0.003, watch=path.step)
    seen = path.result()
    parts = seen.vectors + seen.components.sum(1)
    np.testing.assert_allclose(parts, seen.linear, rtol=0, atol=1e-6 * np.abs(seen.linear).max())
    assert seen.loss[0] == pytest.approx(start)
    assert seen.linear.sum() == pytest.approx(seen.loss[-1] - seen.loss[0], rel=0.05)  # second order in a step
    np.testing.assert_allclose(seen.top(7) + seen.residual(7), np.cumsum(seen.linear), atol=1e-12)
    assert seen.totals[[0, -1]].tolist() == pytest.approx([seen.vectors.sum(), seen.linear.sum()])


def test_components_are_the_eigenvalues_of_the_symmetric_alignment_of_every_matrix():
    model = network(width=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = dict(zip(before, torch.autograd.grad(loss(model), list(model.parameters())), strict=True))
    path = Trajectory(model, loss, decay=0.0, every=1)
    trained(model, 1, watch=path.step)
    expected = np.zeros(5)
    for name, p in model.named_parameters():
        if p.dim() == 2 and 1 not in p.shape:
            g, moved = gradients[name], p.detach() - before[name]
            values = np.linalg.eigvalsh(((g.T @ moved + moved.T @ g) / 2).numpy())
            expected[: len(values)] += values[np.argsort(-np.abs(values))]
    np.testing.assert_allclose(path.result().components[0], expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


def test_to_be_watched_changes_nothing():
    alone, watched = network(), network()
    trained(alone)
    path, moves, curves = (
        Trajectory(watched, loss, every=3),
        Updates(watched, every=4),
        Sharpness(watched, loss, every=9),
    )
    trained(watched, watch=lambda: (path.step(), moves.step(), curves.step()))
    for p, q in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(p, q)
    assert path.result().steps.tolist() == list(range(3, 41, 3))


def test_a_stack_is_its_matrices_and_a_kernel_the_matrix_of_its_outputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stacked, self.kernel = nn.Parameter(torch.randn(2, 4, 3)), nn.Parameter(torch.randn(6, 1, 2, 2))

        def forward(self):
            return self.stacked.square().sum() + self.kernel.square().sum()

    model = Net().double()
    path = Trajectory(model, lambda m: m(), decay=0.0, every=1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)  # dW = -0.1 W and G = 2 W: S = -0.2 W'W
    path.step()
    matrices = [w.detach() / 0.9 for w in (*model.stacked, model.kernel.flatten(1))]
    expected = np.zeros(4)
    for w in matrices:
        values = np.sort(-0.2 * np.linalg.svd(w.numpy(), compute_uv=False) ** 2)
        expected[: len(values)] += values
    np.testing.assert_allclose(path.result().components[0], expected, rtol=1e-9)


def test_a_norm_in_training_and_a_gradient_that_is_not_finite_are_left_alone():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    path = Trajectory(model, loss, every=1)
    before = model[1].running_mean.clone()
    path.step()
    assert torch.equal(model[1].running_mean, before)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    path.step()
    path.step()
    assert np.isnan(path.result().linear[-1])


@pytest.mark.parametrize("given", [{"decay": 1.0}, {"decay": (0.9, -0.1)}, {"every": 0}, {"over": 0}])
def test_a_bad_average_is_refused(given):
    with pytest.raises(ValueError, match="trajectory: 0 <= decay"):
        Trajectory(network(), loss, **given)


def test_a_window_that_grows_is_the_average_by_hand():
    """1 / (1 - decay) from 2 to 10 in 8 steps, looks from every 2 to every 4 steps."""
    model = network()
    path, averages = Trajectory(model, loss, decay=(0.5, 0.9), every=(2, 4), over=8), [model[0].weight.detach().clone()]

    def watch():
        window = 2 + min(len(averages) - 1, 8)
        averages.append(averages[-1] + (model[0].weight.detach() - averages[-1]) / window)
        path.step()

    trained(model, 20, watch=watch)
    assert path.result().steps.tolist() == [2, 4, 7, 11, 15, 19]
    torch.testing.assert_close(path._average["model.0.weight"], averages[-1])


def test_sharpness_leaves_norms_and_random_numbers_alone_and_parameters_that_never_step_out():
    def end(watch):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), nn.Linear(7, 1)).double()
        model.register_parameter("unused", nn.Parameter(torch.zeros(3, dtype=torch.float64)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        seen = Sharpness(model, loss, every=2)
        for _ in range(6):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
            if watch:
                seen.step()
                Sharpness(model, loss, optimizer, every=1).step()
        return model.state_dict(), seen.values

    (alone, _), (watched, values) = end(False), end(True)
    for name, tensor in alone.items():
        assert torch.equal(tensor, watched[name])
    assert np.isfinite(values).all()


# kappa


AT = np.linspace(-1.0, 1.0, 9)


def planted(width, tilt=0.0, common=4):
    """The first `common` components are a bowl at 0.1 whatever the width; the others fall with width, tilted."""
    bowl = -2.0 + (AT - 0.1) ** 2
    first = bowl[:, None] * np.array([0.4, 0.3, 0.2, 0.1])[None, :common]
    rest = (-0.02 * width / 8 - tilt * AT)[:, None] * np.ones((1, width - common)) / (width - common)
    return np.concatenate([np.zeros((len(AT), 1)), np.cumsum(np.hstack([first, rest]), axis=1)], axis=1)


def test_kappa_finds_the_part_that_widths_share():
    small, large = planted(16), planted(64)
    found = kappa_hat(AT, small, large)
    assert found is not None
    assert np.abs(found.top[0] - found.top[1]).max() < np.abs(small[:, -1] - large[:, -1]).max() / 5
    assert found.residual.shape == (2, len(AT))
    np.testing.assert_allclose(found.top + found.residual, [small[:, -1], large[:, -1]])
    # by hand: mu of the shared bowl is 2, so that t_n = 2 (sup gap / 2)^1/2 + sum of slopes / mu of the whole
    gap, slopes = (
        np.abs(found.top[0] - found.top[1]).max(),
        np.abs(np.diff(found.residual, axis=1) / np.diff(AT)).max(1),
    )
    held = [np.diff(curve, 2).min() / 0.25**2 for curve in (*found.top, small[:, -1], large[:, -1])]
    assert found.bound == pytest.approx(2 * (gap / max(held[:2])) ** 0.5 + slopes[0] / held[2] + slopes[1] / held[3])


def test_kappa_finds_nothing_where_what_is_not_shared_moves_the_optimum():
    assert kappa_hat(AT, planted(16, tilt=0.0), planted(64, tilt=3.0), away=0.1) is None


def test_kappa_needs_three_values():
    with pytest.raises(ValueError, match="at least 3 increasing values"):
        kappa_hat(AT[:2], planted(16)[:2], planted(64)[:2])
    with pytest.raises(ValueError, match="totals must be finite"):
        kappa_hat(AT, planted(16) * np.where(AT > 0.9, np.nan, 1.0)[:, None], planted(64))


# sharpness


def dense(model):
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    sizes = [s.numel() for s in shapes]

    def of(vector):
        parts = {n: v.view(s) for n, v, s in zip(names, vector.split(sizes), shapes, strict=True)}
        return F.mse_loss(torch.func.functional_call(model, parts, (X,)), Y)

    return torch.func.hessian(of)(nn.utils.parameters_to_vector(model.parameters()).detach())


def test_sharpness_is_that_of_the_dense_hessian():
    model = network()
    expected = torch.linalg.eigvalsh(dense(model)).flip(0)[:3].numpy()
    np.testing.assert_allclose(sharpness(model, loss, 3, tolerance=1e-8), expected, rtol=1e-6)
    assert sharpness(model, loss)[0] == pytest.approx(expected[0], rel=2e-3)


def test_sharpness_under_adam_is_that_of_the_scaled_hessian():
    model = network()
    optimizer = trained(model, 20)
    diagonal = adam_preconditioner(optimizer)
    for p, found in diagonal.items():
        corrected = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**20)
        assert torch.equal(found, corrected.sqrt() + 1e-8)
    scale = torch.cat([diagonal[p].flatten() for p in model.parameters()]).rsqrt()
    expected = torch.linalg.eigvalsh(scale[:, None] * dense(model) * scale).max()
    assert sharpness(model, loss, preconditioner=diagonal, tolerance=1e-8)[0] == pytest.approx(float(expected))
    assert adam_edge(0.01) == pytest.approx(3800)


def test_sharpness_of_a_quadratic_of_two_numbers_is_its_curvature():
    model = nn.Linear(1, 1).double()
    quadratic = lambda m: 3 * m.weight.square().sum() + 0.5 * m.bias.square().sum()  # noqa: E731
    assert sharpness(model, quadratic).tolist() == pytest.approx([6.0])


def test_sharpness_refuses_what_it_cannot_find():
    with pytest.raises(ValueError, match="between 1 and"):
        sharpness(nn.Linear(1, 1), lambda m: m.weight.sum(), 2)
    with pytest.raises(ValueError, match="must be finite"):
        sharpness(network(), lambda m: loss(m) / 0)
    with pytest.raises(ValueError, match="lacks 6 of the parameters"):
        sharpness(network(), loss, preconditioner={})
    with pytest.raises(ValueError, match="take a step first"):
        adam_preconditioner(torch.optim.Adam(network().parameters()))


def test_super_consistency_is_the_largest_ratio():
    assert super_consistency([1.0, 2.0], [1.0, 2.2]) == pytest.approx(math.log(1.1))
    assert math.isnan(super_consistency([1.0, -1.0], [1.0, 1.0]))


def test_sharpness_is_watched_as_adam_sees_it():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    plain, preconditioned = Sharpness(model, loss, every=20), Sharpness(model, loss, optimizer, every=20)
    for _ in range(40):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        plain.step()
        preconditioned.step()
    now = sharpness(model, loss)[0], sharpness(model, loss, preconditioner=adam_preconditioner(optimizer))[0]
    assert plain.steps == preconditioned.steps == [20, 40]
    assert (plain.values[-1], preconditioned.values[-1]) == pytest.approx(now)
    broken = Sharpness(model, lambda m: loss(m) / 0, every=1)
    broken.step()
    assert math.isnan(broken.values[0])


def test_two_widths_that_train_alike_are_evidence_and_others_are_none():
    alike = consistent([1.0, 2.0], [1.0, 2.2])
    assert (alike.verdict, "factor of 1.1" in alike.reason) == ("pass", True)
    assert consistent([1.0], [2.0]).verdict == "undetermined"
    for broken in (-1.0, math.nan, math.inf):
        assert consistent([1.0, broken], [1.0, 1.1]).verdict == "undetermined"
        assert "or a run diverged" in consistent([broken, 1.0], [broken, 1.0]).reason
    found_split = kappa_hat(AT, planted(16), planted(64))
    assert shared(replace(found_split, bound=0.3)).verdict == "pass"
    nothing = [None, replace(found_split, bound=math.inf), replace(found_split, bound=2.0)]  # two nats: a factor 7
    assert {shared(found).verdict for found in nothing} == {"undetermined"}


# noise


def test_the_noise_scale_is_that_of_all_examples_gradients():
    """Brute force: one gradient an example; the estimate is a mean over steps, held to 4 of its standard errors."""
    model, steps, size, count = network(), 3000, 2, 4
    singly = [F.mse_loss(model(X[i : i + 1]), Y[i : i + 1]) for i in range(len(X))]
    each = torch.stack(
        [nn.utils.parameters_to_vector(torch.autograd.grad(one, list(model.parameters()))) for one in singly]
    )
    true_gradient = float(each.mean(0).square().sum())
    true_variance = float(each.var(0, correction=0).sum())
    watch = NoiseScale(model.parameters(), size, count, decay=0.999)
    drawn = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model.zero_grad()
        for _ in range(count):
            chosen = torch.randint(len(X), (size,), generator=drawn)
            (F.mse_loss(model(X[chosen]), Y[chosen]) / count).backward()
            watch.micro()
        watch.step()
    series = np.array(watch.series)
    errors = series.std(0) / np.sqrt(steps)
    np.testing.assert_array_less(np.abs(series.mean(0) - [true_gradient, true_variance]), 4 * errors)
    memory = np.sqrt(1 / 1999)  # standard error of an average with this decay, in deviations of a step
    assert abs(watch.variance - true_variance) < 4 * memory * series[:, 1].std() + 4 * errors[1]
    assert watch.scale == watch.variance / watch.gradient


def test_a_step_takes_all_its_micro_batches():
    watch = NoiseScale(network().parameters(), 2, 3)
    assert math.isnan(watch.gradient)
    watch.micro()
    with pytest.raises(ValueError, match="3 micro-batches make a step, got 1"):
        watch.step()
    with pytest.raises(ValueError, match="at least 2 micro-batches"):
        NoiseScale(network().parameters(), 2, 1)


def test_a_step_that_overflowed_is_in_no_average():
    parameter = torch.nn.Parameter(torch.zeros(2))
    watch = NoiseScale([parameter], 2, 2)
    assert math.isnan(watch.scale)
    for gradient in ([1.0, 0.0], [math.inf, 0.0], [0.0, 1.0]):
        parameter.grad = None
        for part in (1.0, 3.0):
            grown = 0.5 * part * torch.tensor(gradient)
            parameter.grad = grown if parameter.grad is None else parameter.grad + grown
            watch.micro()
        watch.step()
    assert (watch.gradient, watch.variance) == pytest.approx(
        (3.0, 4.0)
    )  # by the two equations, of |g_b|^2 5, |g_B|^2 4


@pytest.mark.parametrize(
    ("refused", "law"),
    [
        (lambda: regime(1e-3, 0.1, -5), "steps must not be negative"),
        (lambda: regime(1e-3, math.nan, 5), "must not be negative, got 0.001 and nan"),
        (lambda: adam_edge(0.0), "lr > 0"),
        (lambda: super_consistency([1.0], [1.0, 2.0]), "got 1 and 2 values"),
    ],
)
def test_what_a_diagnostic_cannot_take_is_one_line(refused, law):
    with pytest.raises(ValueError, match=law):
        refused()
    assert regime(np.float32(1e-3), 0.1, 5) == "lr"


def test_the_critical_batch_is_found_exactly_without_noise():
    batches = np.array([16, 64, 256, 1024])
    found = critical_batch(batches, 1000 * (1 + 200 / batches))
    assert (found.steps, found.batch) == (pytest.approx(1000), pytest.approx(200))
    assert found.examples == pytest.approx(200_000)
    assert found.misfit < 1e-6
    assert math.isinf(critical_batch(batches, 1e5 / batches).deviation)  # no batch is too large
    assert math.isinf(critical_batch(batches, [1000.0] * 4).deviation)  # all are
    with pytest.raises(ValueError, match="three batch sizes"):
        critical_batch([16, 64], [10, 5])


@pytest.mark.skipif("TUNER_TABLES" not in os.environ, reason="no recorded tables: set TUNER_TABLES")
def test_the_critical_batch_of_language_models_grows_with_their_size():
    """Data of Zhang et al. 2025 (arXiv 2410.21676), five sizes, whose data grow with them; slower than they do."""
    least: dict = {}
    with (Path(os.environ["TUNER_TABLES"]) / "steps_to_target.csv").open() as file:
        for row in csv.DictReader(file):
            cell = least.setdefault(float(row["params"]), {})
            batch, steps = float(row["batch_size"]), float(row["steps_to_target"])
            cell[batch] = min(steps, cell.get(batch, math.inf))
    found = {size: critical_batch(list(cell), list(cell.values())) for size, cell in least.items()}
    assert len(found) == 5
    assert all(fit.misfit < 0.1 for fit in found.values())
    sizes = sorted(found)
    for smaller, larger in itertools.pairwise(sizes):
        assert 1 < found[larger].batch / found[smaller].batch < larger / smaller


# regime, curves, updates


def test_the_regime_turns_when_the_average_was_renewed_once():
    assert periods(0.01, 0.1, 500) == pytest.approx(0.5)
    assert (regime(0.01, 0.1, 999), regime(0.01, 0.1, 1001)) == ("lr", "lr x weight_decay")
    assert periods([0.0, 0.01, 0.02], 0.5) == pytest.approx(0.015)
    with pytest.raises(ValueError, match="one rate needs a number of steps"):
        periods(0.01, 0.1)
    with pytest.raises(ValueError, match="must not be negative"):
        periods([-0.1], 0.1)


def test_renewal_is_read_off_the_optimizer_s_groups():
    """muP's groups, lr / m and weight_decay m, agree; a schedule is followed; SGD without decay renews nothing."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": first.parameters()}, {"params": second.parameters(), "lr": 0.005, "weight_decay": 0.4}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.2)
    watched = Renewal(optimizer)
    for step in range(1000):
        for group, peak in zip(optimizer.param_groups, (0.01, 0.005), strict=True):
            group["lr"] = peak * (1 - step / 1000)
        watched.step()
    assert watched.periods == pytest.approx(0.002 * 500.5)
    assert watched.regime == "lr x weight_decay"
    still = Renewal(torch.optim.SGD(first.parameters(), lr=0.1))
    still.step()
    assert (still.periods, still.regime) == (0.0, "lr")


def test_distance_is_relative_and_symmetric():
    assert distance([1.0, 2.0], [1.0, 2.0]) == 0
    with pytest.raises(ValueError, match="one length"):
        distance([1.0, 2.0], [1.0])
    assert distance([1.0, 1.0], [3.0, 3.0]) == distance([3.0, 3.0], [1.0, 1.0]) == pytest.approx(1.0)


def test_updates_are_the_relative_change_of_a_step():
    model = network()
    moves = Updates(model, every=5)
    sizes = []

    def watch():
        sizes.append({n: p.detach().clone() for n, p in model.named_parameters()})
        moves.step()

    trained(model, 12, watch=watch)
    assert moves.steps == [5, 10]
    for name, found in moves.sizes.items():
        for step, size in zip(moves.steps, found, strict=True):
            before, after = sizes[step - 2][name], sizes[step - 1][name]
            assert size == pytest.approx(float((after - before).norm() / before.norm()))


# figures


def test_every_diagnostic_has_a_figure_that_plotly_takes(tmp_path):
    model = network()
    path, moves = Trajectory(model, loss, every=5), Updates(model, every=5)
    watch = NoiseScale(model.parameters(), 4, 2)
    optimizer = trained(model, 20, watch=lambda: (path.step(), moves.step()))
    renewal = Renewal(optimizer)
    renewal.step()
    renewal.step()
    for _ in range(3):
        model.zero_grad()
        for part in (X[:4], X[4:8]):
            (model(part).square().mean() / 2).backward()
            watch.micro()
        watch.step()
    found = kappa_hat(AT, planted(16), planted(64))
    batches, steps = [16, 64, 256], [100.0, 40.0, 25.0]
    panels = [
        drawn.trajectory(path.result(), 2),
        drawn.invariance(AT, found, ("width 16", "width 64"), "lr"),
        drawn.sharpnesses([1, 2], {"width 16": [1.0, 2.0]}, 3.0),
        drawn.noise(watch),
        drawn.steps_to_target(batches, steps, critical_batch(batches, steps)),
        drawn.renewals(renewal),
        drawn.updates(moves),
    ]
    for panel in panels:
        figure = go.Figure(data=panel.data, layout=panel.layout)  # refuses what plotly does not know
        assert figure.data
        for trace in figure.data:
            assert len(trace.x) == len(trace.y) > 1
    last = panels[0].data[0]["y"][-1]
    assert last == pytest.approx(path.result().loss[-1] - path.result().loss[0])
    drawn.write(panels, "a run", tmp_path / "run.html")
    assert (tmp_path / "run.html").read_text().count("<figure>") == len(panels)


def test_the_readme_s_run_is_watched(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "tuner.dynamics" in block]
    said: dict = {}
    exec(code, said)
    seen = said["seen"]
    assert seen.top(4)[-1] + seen.residual(4)[-1] == pytest.approx(seen.linear.sum())
    assert capsys.readouterr().out.endswith("lr\n")  # 100 steps renew 0.03 of the average
    assert (tmp_path / "run.html").exists()
