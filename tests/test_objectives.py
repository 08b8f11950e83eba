"""Contracts that every objective keeps, and what is particular to those that train."""

import copy
import dataclasses
import importlib
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import objectives
from objectives import mlp, shallow, training, transformer
from objectives.mlp import DigitsMLP, TeacherMLP
from objectives.quadratic import NoisyQuadratic
from objectives.ridge import RandomFeatures
from objectives.shallow import Ball, DeepLinear, Index
from objectives.stacked import initialise
from objectives.training import schedule
from objectives.transformer import CharTransformer, text
from tuner.scale import Scale, grid
from tuner.trial import Result, Trial

TRAINED = {
    "digits": DigitsMLP(steps=12, batch=16),
    "teacher": TeacherMLP(steps=12, batch=16),
    "transformer": CharTransformer(steps=12, batch=2, context=16),
    "digits-sp": DigitsMLP("sp-adamw", steps=12, batch=16),
    "transformer-sp": CharTransformer("sp-adamw", steps=12, batch=2, context=16),
    "transformer-completedp": CharTransformer("completedp-adamw", steps=12, batch=2, context=16),
    "ball": Ball(steps=12, batch=16),
    "index": Index(steps=12, batch=16),
    "deep linear": DeepLinear(steps=12, batch=16),
}
ALL = {**TRAINED, "ridge": RandomFeatures(), "quadratic": NoisyQuadratic(steps=30)}
SMALL = Scale(width=16)
WIDER = Scale(width=32)

every_objective = pytest.mark.parametrize("objective", ALL.values(), ids=ALL.keys())
every_trained = pytest.mark.parametrize("objective", TRAINED.values(), ids=TRAINED.keys())


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def point(objective, u=0.5):
    """Hyperparameters at the same place of every range."""
    return objective.space.decode([u] * len(objective.space))


def trials(objective, places, scale=SMALL):
    return [Trial(i, point(objective, u), scale, seed=10 + i) for i, u in enumerate(places)]


# ---------------------------------------------------------------- every objective


@every_objective
def test_a_result_has_a_finite_loss_the_objectives_cost_and_the_time_taken(objective):
    result = objective(point(objective), SMALL, 0)
    assert isinstance(result, Result)
    assert math.isfinite(result.loss)
    assert result.cost == objective.cost(point(objective), SMALL)
    assert result.seconds > 0


@every_objective
def test_the_same_seed_gives_the_same_loss_to_the_last_bit_and_another_seed_another(objective):
    first, again, other = (objective(point(objective), SMALL, seed).loss for seed in (3, 3, 4))
    assert first == again
    assert first != other


@every_objective
def test_trials_trained_together_match_trials_trained_alone(objective):
    if objective in TRAINED.values():
        objective = dataclasses.replace(objective, dtype="float64")
    group = trials(objective, (0.3, 0.5, 0.7))
    together = [r.loss for r in objective.train_many(group)]
    alone = [objective(t.params, t.scale, t.seed).loss for t in group]
    assert together == pytest.approx(alone, abs=1e-5)


@every_objective
def test_cost_rises_with_width(objective):
    assert objective.cost(point(objective), WIDER) > objective.cost(point(objective), SMALL)


@every_objective
def test_an_objective_is_a_value(objective):
    assert copy.deepcopy(objective) == objective
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.noise = 1.0


@every_objective
def test_an_unknown_axis_or_hyperparameter_is_refused_in_one_line(objective):
    with pytest.raises(ValueError, match=r"^scale: .*hight.*correct.*$"):
        objective(point(objective), Scale(width=16, hight=2), 0)
    with pytest.raises(ValueError, match=r"^params: unknown hyperparameter 'momentum'.*$"):
        objective({**point(objective), "momentum": 0.9}, SMALL, 0)


@every_objective
def test_no_trials_train_to_no_results(objective):
    assert objective.train_many([]) == []


# ---------------------------------------------------------------- objectives that train


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@every_trained
def test_an_accelerator_and_the_processor_train_the_same_network(objective, monkeypatch):
    precise = dataclasses.replace(objective, dtype="float64")
    there = precise(point(precise), SMALL, 0)
    for module in (mlp, shallow, training, transformer):
        monkeypatch.setattr(module, "device", lambda: torch.device("cpu"))
    assert precise(point(precise), SMALL, 0).loss == pytest.approx(there.loss, rel=1e-6)


@every_trained
def test_a_diverged_member_is_reported_as_it_is_and_leaves_its_neighbours_unchanged(objective):
    healthy = trials(objective, (0.4, 0.5, 0.6))
    blown = dataclasses.replace(healthy[1], params={**healthy[1].params, "lr": 1e30})
    before = objective.train_many(healthy)
    after = objective.train_many([healthy[0], blown, healthy[2]])
    assert after[1].diverged
    assert not math.isfinite(after[1].loss)
    assert [after[0].loss, after[2].loss] == [before[0].loss, before[2].loss]


@every_trained
def test_the_closed_form_of_flops_is_what_one_step_multiplies(objective):
    """Exactly: the counter counts matrix products, and nothing else here is counted by either."""
    for scale in (SMALL, WIDER, Scale(width=16, batch_size=5)):
        network = objective.network(scale, (2,))
        batch = next(objective.batches([0, 1], 1, objective.size(scale)))
        with FlopCounterMode(display=False) as counter:
            objective.losses(network, batch).sum().backward()
        assert counter.get_total_flops() == 2 * objective.flops(scale)


@every_trained
def test_steps_come_from_the_scale_when_it_has_them(objective):
    params, twice = point(objective), Scale(width=16, steps=24)
    assert objective.cost(params, twice) == 2 * objective.cost(params, SMALL)
    assert objective(params, Scale(width=16, steps=12), 0).loss == objective(params, SMALL, 0).loss


@every_trained
def test_a_larger_batch_takes_fewer_steps_for_as_many_examples(objective):
    params, base = point(objective), Scale(width=16, batch_size=objective.batch)
    assert objective(params, base, 0).loss == objective(params, SMALL, 0).loss
    fourfold = Scale(width=16, batch_size=4 * objective.batch)
    assert objective.length(fourfold) == 3
    assert objective.cost(params, fourfold) == objective.cost(params, SMALL)
    assert objective.cost(params, Scale(fourfold, steps=12)) == 4 * objective.cost(params, SMALL)


@every_trained
def test_training_lowers_the_loss(objective):
    longer = objective(point(objective, 0.6), Scale(width=16, steps=100), 0).loss
    assert longer < objective(point(objective, 0.6), Scale(width=16, steps=2), 0).loss


@every_trained
def test_a_lone_network_is_the_stacks_member(objective):
    """The model family's network, loss and optimizer take the very step that training takes."""
    objective = dataclasses.replace(objective, dtype="float64", steps=1)
    middle = point(objective)
    trained = objective._train(SMALL, [Trial(0, middle, SMALL, seed=5)])
    lone = objective.build(SMALL)
    initialise(lone, [5], [middle.get("init_scale", 1.0)])
    optimizer = objective.optimizer(lone, SMALL, middle["lr"])
    objective.loss(lone, 5).backward()
    optimizer.step()
    for mine, theirs in zip(lone.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs[0], rtol=0, atol=1e-12)


@every_trained
def test_a_model_family_follows_torchs_seed_and_gives_a_scalar_loss(objective):
    torch.manual_seed(1)
    first = objective.build(SMALL)
    torch.manual_seed(1)
    again = objective.build(SMALL)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert objective.loss(first, 0).shape == ()
    assert all(tensor.ndim == 2 for tensor in first.parameters())


def test_trials_of_two_scales_are_refused():
    objective = TRAINED["digits"]
    mixed = trials(objective, (0.5,)) + trials(objective, (0.5,), WIDER)
    with pytest.raises(ValueError, match=r"train_many: trials must share one scale, got .*16.*32"):
        objective.train_many(mixed)


@pytest.mark.parametrize("objective", [DigitsMLP, TeacherMLP, CharTransformer])
def test_an_unknown_parametrization_or_precision_is_refused_with_the_known_ones(objective):
    with pytest.raises(ValueError, match="'mup-adamw', 'sp-adamw', 'completedp-adamw', got 'mup'"):
        objective(parametrization="mup")
    with pytest.raises(ValueError, match="float32, float64, got 'half'"):
        objective(dtype="half")


def test_a_width_that_is_no_whole_number_or_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"width must be a whole number, got 16\.5"):
        TRAINED["digits"].cost({}, Scale(width=16.5))
    with pytest.raises(ValueError, match="width must be a multiple of 4 heads, got 18"):
        TRAINED["transformer"].cost({}, Scale(width=18))


def test_the_learning_rate_warms_up_for_a_quarter_of_the_steps_and_decays_to_zero():
    rates = [schedule(step, 100) for step in range(101)]
    assert rates[:25] == pytest.approx(np.arange(1, 26) / 25)
    assert rates[25:] == pytest.approx(np.linspace(1, 0, 76))


# ---------------------------------------------------------------- parametrization


def rates(objective, width, lr=1.0):
    """(learning rate, weight decay) of every tensor of a lone network."""
    model = objective.build(Scale(width=width))
    names = {tensor: name for name, tensor in model.named_parameters()}
    groups = objective.optimizer(model, Scale(width=width), lr).param_groups
    return {names[tensor]: (g["lr"], g["weight_decay"]) for g in groups for tensor in g["params"]}


@pytest.mark.parametrize("objective", [DigitsMLP, TeacherMLP, CharTransformer])
def test_at_the_base_width_both_parametrizations_have_the_same_rates(objective):
    assert rates(objective(), 64) == rates(objective("sp-adamw"), 64)


@pytest.mark.parametrize("objective", [DigitsMLP, TeacherMLP, CharTransformer])
def test_mup_divides_the_rate_of_hidden_matrices_by_the_width_ratio_and_multiplies_their_decay(objective):
    base, wide = rates(objective(), 64), rates(objective(), 256)
    vector_like = {"first.weight", "readout.weight", "characters.weight", "positions.weight"}
    for name, (lr, decay) in wide.items():
        factor = 1 if name in vector_like else 4
        assert (lr * factor, decay / factor) == base[name], name


def test_completedp_moves_every_group_with_the_batch():
    """The square-root rule at 4 times the batch, by hand."""
    objective, scale = CharTransformer("completedp-adamw"), Scale(width=256, batch_size=16)
    moved = objective.optimizer(objective.build(scale), scale, 1.0)
    still = objective.optimizer(objective.build(scale), Scale(width=256), 1.0)
    for one, other in zip(moved.param_groups, still.param_groups, strict=True):
        assert one["lr"] == 2 * other["lr"]
        assert one["weight_decay"] == 2 * other["weight_decay"]
        assert (one["betas"], other["betas"]) == (pytest.approx((0.6, 0.8)), (0.9, 0.95))
    with pytest.raises(ValueError, match=r"a batch 16 times the base's.* beta1 from 0\.9 to -0\.6.*lower batch_size"):
        objective.cost(point(objective), Scale(width=16, batch_size=64))  # before anything is trained
    longer = objective.optimizer(objective.build(scale), Scale(scale, steps=3200), 1.0)  # 16 times the tokens
    assert [g["lr"] for g in longer.param_groups] == [g["lr"] / 2 for g in still.param_groups]


def change(objective, width, layer, lr):
    """Root mean square change of a layer's output on a fixed batch after four steps."""
    torch.manual_seed(0)
    scale = Scale(width=width)
    model, seen = objective.build(scale), []
    optimizer = objective.optimizer(model, scale, lr)
    model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
    objective.loss(model, 99)
    for seed in range(4):
        optimizer.zero_grad()
        objective.loss(model, seed).backward()
        optimizer.step()
    objective.loss(model, 99)
    return float((seen[-1] - seen[0]).square().mean().sqrt())


@pytest.mark.parametrize(
    ("family", "layer", "widths"),
    [
        (DigitsMLP(batch=16), "second", (64, 256, 1024)),
        (DigitsMLP(batch=16), "readout", (64, 256, 1024)),
        (TeacherMLP(batch=16), "second", (64, 256, 1024)),
        (CharTransformer(batch=4, context=16), "blocks.0.up", (64, 128, 256)),
        (CharTransformer(batch=4, context=16), "readout", (64, 128, 256)),
    ],
)
def test_activations_move_alike_at_every_width_under_mup_and_more_with_width_otherwise(family, layer, widths):
    """The slope of ln change against ln width: 0 under muP; under SP, full alignment gives 1, none 1/2.

    The learning rate is small: large steps of a wide SP network saturate its readout, which then changes no further.
    """

    def slope(parametrization):
        same = dataclasses.replace(family, parametrization=parametrization)
        moved = [change(same, width, layer, lr=1e-3) for width in widths]
        return np.polyfit(np.log(widths), np.log(moved), 1)[0]

    assert abs(slope("mup-adamw")) < 0.2
    assert slope("sp-adamw") > 0.4


@pytest.mark.parametrize("depth", [2, 4])
def test_a_residual_branch_shrinks_with_depth_under_mup_only(depth):
    scale = Scale(width=16, depth=depth)
    assert CharTransformer().build(scale).blocks[0].branch == 2 / depth
    assert CharTransformer("sp-adamw").build(scale).blocks[0].branch == 1


def test_attention_is_the_same_at_the_base_width_and_one_over_head_size_beyond():
    factor = {
        (name, width): CharTransformer(name).build(Scale(width=width)).blocks[0].attention.factor
        for name in ("mup-adamw", "sp-adamw")
        for width in (64, 256)
    }
    assert factor["mup-adamw", 64] == factor["sp-adamw", 64] == 16**-0.5
    assert factor["mup-adamw", 256] == pytest.approx(factor["mup-adamw", 64] / 4)
    assert factor["sp-adamw", 256] == pytest.approx(factor["sp-adamw", 64] / 2)


def test_a_prediction_does_not_see_the_characters_that_follow():
    objective = CharTransformer("sp-adamw", dtype="float64")
    model = objective.build(Scale(width=16))
    tokens = torch.arange(8).reshape(1, 8)
    later = tokens.clone()
    later[0, 5:] = 50
    torch.testing.assert_close(model(tokens)[:5], model(later)[:5])
    assert not torch.allclose(model(tokens)[5:], model(later)[5:])


def test_an_untrained_transformer_is_uniform_over_the_vocabulary():
    untrained = CharTransformer().loss(CharTransformer().build(SMALL), 0).item()
    assert untrained == pytest.approx(math.log(text()[2]), abs=1e-4)


# ---------------------------------------------------------------- families of which theory says something


def test_half_of_the_points_lie_outside_the_ball():
    """Held to 4 standard errors of 8192 coins."""
    (_, y), *_ = Ball().held_out()
    assert abs(float(y.mean()) - 0.5) < 4 * 0.5 / 8192**0.5


def test_the_index_is_the_root_mean_square_of_k_inputs_of_variance_4_over_d():
    """E y^2 = d / 4k * k * 4 / d = 1; the deviation of y^2 is (2 / k)^1/2."""
    objective = Index(inputs=16, indices=4)
    (x, y), *_ = objective.held_out()
    torch.testing.assert_close(y[:, 0] ** 2, x[:, :4].square().sum(1))  # d / 4k = 1
    assert abs(float(y.square().mean()) - 1) < 4 * (2 / 4) ** 0.5 / 8192**0.5
    assert float(x[:, -1].min()) == float(x[:, -1].max()) == 1  # what makes the first layer's biases


def test_the_last_layers_own_rate_multiplies_it_alone():
    own, shared = (rates(Index(readout_rate=r), 256) for r in (0.02, 1.0))
    assert own["first.weight"] == shared["first.weight"]
    assert own["readout.weight"][0] == pytest.approx(0.02 * shared["readout.weight"][0])


def test_without_momentum_the_noisy_quadratic_has_the_risk_of_a_geometric_sum():
    objective, lr, batch, steps, d = NoisyQuadratic(), 0.7, 8.0, 37, 50
    h = 1 / np.arange(1, d + 1)
    shrinks = (1 - lr * h) ** (2 * steps)
    settled = lr**2 * h / batch / (1 - (1 - lr * h) ** 2)
    assert objective.risk(lr, 0.0, batch, steps, d) == pytest.approx(0.5 * h @ (shrinks + (1 - shrinks) * settled))
    assert objective.risk(3.0, 0.0, batch, 4000, d) > 1e100  # lr above 2 / h: it diverges


def test_with_momentum_the_noisy_quadratic_is_what_a_simulation_gives():
    """20,000 runs of one coordinate set; the risk to 4 standard errors."""
    objective, lr, momentum, batch, steps, d = NoisyQuadratic(), 0.2, 0.8, 4.0, 25, 6
    rng, h = np.random.default_rng(0), 1 / np.arange(1, d + 1)
    w, v = np.ones((20_000, d)), np.zeros((20_000, d))
    for _ in range(steps):
        v = momentum * v + h * w + np.sqrt(h / batch) * rng.standard_normal(w.shape)
        w = w - lr * v
    risks = 0.5 * w**2 @ h
    assert objective.risk(lr, momentum, batch, steps, d) == pytest.approx(
        risks.mean(), abs=4 * risks.std() / 20_000**0.5
    )


def test_a_larger_batch_takes_a_larger_rate_until_curvature_holds_it():
    """At equal steps: the best rate of the noisy quadratic rises with the batch and ends near 1 / h."""
    objective, grid_of = NoisyQuadratic(), np.geomspace(1e-3, 3.0, 60)
    best = [grid_of[np.argmin([objective.risk(lr, 0.0, b, 200, 100) for lr in grid_of])] for b in (1, 16, 256, 4096)]
    assert best == sorted(best)
    assert best[1] > 2 * best[0]
    assert 0.5 < best[-1] < 2


# ---------------------------------------------------------------- the study files


@pytest.mark.parametrize("path", sorted(Path(objectives.__file__).parent.glob("*.toml")), ids=lambda path: path.name)
def test_a_study_file_names_an_objective_whose_proxies_are_cheaper_than_its_target(path):
    study = tomllib.loads(path.read_text())
    module, attribute = study["objective"]["call"].split(":")
    objective = getattr(importlib.import_module(module), attribute)(**study["objective"].get("args", {}))
    target = objective.cost(point(objective), Scale(study["scale"]["target"]))
    costs = [objective.cost(point(objective), proxy) for proxy in grid(study["scale"]["proxies"])]
    assert study["study"]["name"] == path.stem
    assert max(costs) < target
