"""Claims about base <-> raw and drift priors; oracles are exponents derived by hand from TP-V's Table 8."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.parametrization import (
    BESIDE_WIDTH,
    ENDLESS,
    ENDLESS_IN_LIMIT,
    PRESETS,
    SETTLING,
    UNKNOWN,
    applied,
    over_data,
    preset,
)
from tuner.scale import Scale
from tuner.space import Categorical, Float, Int, SearchSpace

SPACE = SearchSpace(
    {
        "lr": Float(1e-4, 1e-1, log=True),
        "wd": Float(1e-3, 1.0, log=True, role="weight_decay"),
        "batch_size": Int(8, 512, log=True),
        "momentum": Float(0.0, 0.99),
        "schedule": Categorical(("cosine", "constant")),
    }
)
BASE = Scale(width=64)


def raw(rule, params, scale, base=BASE):
    return rule.to_raw(SPACE, params, scale, base)


scaled = st.builds(lambda w: Scale(width=w), st.integers(1, 10**5))
points = st.lists(st.floats(0, 1), min_size=5, max_size=5).map(SPACE.decode)


@pytest.mark.parametrize("name", PRESETS)
@given(points, scaled)
def test_to_base_undoes_to_raw(name, params, scale):
    rule = preset(name)
    back = rule.to_base(SPACE, raw(rule, params, scale), scale, BASE)
    assert set(back) == set(params)
    for hyperparameter, value in params.items():  # two roundings to 12 significant digits
        assert back[hyperparameter] == (value if isinstance(value, str) else pytest.approx(value, rel=1.1e-11))


@pytest.mark.parametrize("name", PRESETS)
@given(points)
def test_at_the_base_raw_and_base_are_the_same(name, params):
    assert raw(preset(name), params, BASE) == params
    assert preset(name).to_base(SPACE, params, BASE, BASE) == params


@pytest.mark.parametrize(
    ("name", "lr", "decay"),  # the factors at 4x the width, by hand
    [
        ("none", 1.0, 1.0),
        ("sp-adamw", 1.0, 1.0),  # theory is in the prior
        ("mup-sgd", 1.0, 1.0),  # hidden lr Theta(1)
        ("mup-adam", 1 / 4, 1.0),  # hidden lr Theta(1/n)
        ("mup-adamw", 1 / 4, 4.0),  # lr * decay constant: independent weight decay
    ],
)
def test_presets_move_by_the_exponents_of_table_8(name, lr, decay):
    params = {"lr": 0.02, "wd": 0.1, "momentum": 0.9}
    assert raw(preset(name), params, Scale(width=256)) == {"lr": 0.02 * lr, "wd": 0.1 * decay, "momentum": 0.9}


def test_completed_p_moves_with_batch_and_tokens_too():
    """Mlodozeniec et al. 2025, by hand, at 4x the width, 2x the depth, 16x the batch and 4x the tokens."""
    names = ("lr", "weight_decay", "eps", "one_minus_beta1", "one_minus_beta2")
    space = SearchSpace({name: Float(1e-12, 1.0, log=True) for name in names})
    base = Scale(width=64, depth=2, batch_size=8, tokens=1e6)
    scale = Scale(width=256, depth=4, batch_size=128, tokens=4e6)
    rule = preset("completedp-adamw")
    moved = {name: rule.factor(space, name, scale, base) for name in names}
    assert moved == pytest.approx(
        {"lr": 2 / 4, "weight_decay": 2 * 4, "eps": 1 / (4 * 2 * 2), "one_minus_beta1": 4, "one_minus_beta2": 4}
    )
    # at equal tokens: Malladi et al. 2022, kappa = 16
    larger = Scale({**base, "batch_size": 128})
    assert [rule.factor(space, name, larger, base) for name in names] == pytest.approx([4, 4, 1 / 4, 16, 16])
    # tokens = steps x batch: a larger batch for as many steps sees more of them, and nothing moves
    at_steps, base = Scale(width=64, batch_size=128, steps=100), Scale(width=64, batch_size=8, steps=100)
    assert {rule.factor(space, name, at_steps, base) for name in names} == {1.0}
    assert {over_data("adamw", name, at_steps, base) for name in names} == {1.0}
    longer = Scale(base, steps=400)
    assert rule.factor(space, "lr", longer, base) == over_data("adamw", "lr", longer, base) == 0.5
    for name in names:
        for axis in ("width", "batch_size", "steps"):
            assert rule.belief(space, name, axis, base)[0] == pytest.approx(0)


def test_completep_is_sure_of_depth():
    for name in ("completep-adamw", "completedp-adamw"):
        assert preset(name).belief(SPACE, "lr", "depth", ("width", "depth")) == (0.0, 0.12)
        assert preset(name).endless("depth") == ENDLESS_IN_LIMIT
    assert preset("mup-adamw").endless("depth") == ENDLESS


def test_a_multiplier_of_one_roles_rate_stays_where_rules_are_per_tensor():
    space = SearchSpace({"lr_input": Float(0.1, 10.0, log=True, role="lr_multiplier")})
    axes = ("width", "depth")
    assert applied("mup-adamw").belief(space, "lr_input", "width", axes) == (0.0, 0.12)
    assert applied("completep-adamw").belief(space, "lr_input", "depth", axes) == (0.0, 0.12)
    assert applied("mup-adamw").belief(space, "lr_input", "batch_size", ("batch_size",))[0] == 0  # the rate moved
    assert preset("mup-adamw").belief(space, "lr_input", "width", axes) == SETTLING
    assert applied("sp-adamw").belief(space, "lr_input", "width", axes) == UNKNOWN


def test_params_count_for_width_squared_where_width_is_not_an_axis():
    base, scale = Scale(params=1e6), Scale(params=16e6)  # 16x the weights: 4x the width
    assert raw(preset("mup-adamw"), {"lr": 0.02, "wd": 0.1}, scale, base) == {"lr": 0.005, "wd": 0.4}


def test_params_and_depth_together_tell_the_width():
    base = Scale(params=1e6, depth=2)
    deeper, wider = Scale(params=4e6, depth=8), Scale(params=16e6, depth=2)  # the same width; 4x the width
    assert preset("mup-adam").factor(SPACE, "lr", deeper, base) == 1.0
    assert preset("mup-adam").factor(SPACE, "lr", wider, base) == 0.25
    for axis in ("params", "depth"):
        assert preset("mup-adam").belief(SPACE, "lr", axis, base)[0] == 0.0
        assert applied("mup-adam").belief(SPACE, "lr", axis, base)[0] == 0.0
    assert preset("sp-adamw").belief(SPACE, "lr", "depth", base)[0] == pytest.approx(-0.5 + 0.5 * 0.8)


def test_exponents_of_params_that_a_person_gives_are_obeyed():
    own = preset("mup-adam", {"lr": {"params": -1 / 3}})
    assert own.factor(SPACE, "lr", Scale(params=8e6, depth=4), Scale(params=1e6, depth=2)) == pytest.approx(0.5)
    beside = own.factor(SPACE, "lr", Scale(params=8e6, width=128), Scale(params=1e6, width=64))
    assert beside == pytest.approx(0.5 * 0.5)


def test_params_are_silent_where_width_is_an_axis():
    base, scale = Scale(width=64, params=1e6), Scale(width=256, params=99e6)
    assert raw(preset("mup-adam"), {"lr": 0.02}, scale, base) == {"lr": 0.005}
    assert preset("mup-adam").belief(SPACE, "lr", "params", scale) == BESIDE_WIDTH


def test_axes_multiply():
    rule = preset("none", {"lr": {"width": -1, "steps": -0.5}})
    base, scale = Scale(width=64, steps=100), Scale(width=128, steps=400)
    assert raw(rule, {"lr": 0.04}, scale, base) == {"lr": 0.04 / 2 / 2}


def test_an_override_by_role_moves_every_hyperparameter_of_that_role():
    rule = preset("mup-adamw", {"weight_decay": {"width": 0.5}})
    assert raw(rule, {"lr": 0.02, "wd": 0.1}, Scale(width=256)) == {"lr": 0.005, "wd": 0.2}


def test_an_override_by_name_goes_before_the_roles_and_leaves_other_axes():
    rule = preset("mup-adamw", {"weight_decay": {"width": 0.5, "steps": -1}, "wd": {"width": 0}})
    base, scale = Scale(width=64, steps=10), Scale(width=256, steps=20)
    assert raw(rule, {"wd": 0.1}, scale, base) == {"wd": 0.05}


def test_an_override_does_not_change_the_preset():
    preset("mup-adam", {"lr": {"width": 7}})
    assert preset("mup-adam").exponents["lr"]["width"] == -1


@given(st.integers(8, 512), st.integers(16, 1024))
def test_a_raw_integer_is_an_integer_of_at_least_one_and_its_base_comes_back_to_it(value, width):
    rule = preset("none", {"batch_size": {"width": 0.5}})
    scale = Scale(width=width)
    there = raw(rule, {"batch_size": value}, scale)["batch_size"]
    assert type(there) is int
    assert there == max(1, round(value * math.sqrt(width / 64)))
    back = rule.to_base(SPACE, {"batch_size": there}, scale, BASE)
    assert raw(rule, back, scale)["batch_size"] == there  # a run of the record is the run that was made


def test_a_category_stays_whatever_its_role_says():
    space = SearchSpace({"lr": Categorical((0.1, 0.01)), "wd": Float(0, 1)})
    rule, scale = preset("mup-adam"), Scale(width=256)
    assert rule.to_raw(space, {"lr": 0.1, "wd": 0.5}, scale, BASE) == {"lr": 0.1, "wd": 0.5}
    assert rule.to_base(space, {"lr": 0.1, "wd": 0.5}, scale, BASE) == {"lr": 0.1, "wd": 0.5}


# ---- beliefs


@pytest.mark.parametrize("name", ["mup-sgd", "mup-adam", "mup-adamw"])
@pytest.mark.parametrize("hyperparameter", ["lr", "wd"])
@pytest.mark.parametrize("axis", ["width", "params"])
def test_a_maximal_update_preset_expects_no_drift_and_is_surer_than_no_preset(name, hyperparameter, axis):
    mean, sd = preset(name).belief(SPACE, hyperparameter, axis, {axis})
    assert mean == 0
    assert 0 < sd < UNKNOWN[1]


def test_an_override_moves_the_belief_against_itself_because_theory_is_about_the_raw_optimum():
    assert preset("sp-adamw").belief(SPACE, "lr", "width", {"width"}) == (-0.8, 0.4)
    assert preset("sp-adamw", {"lr": {"width": -1}}).belief(SPACE, "lr", "width", {"width"}) == (
        pytest.approx(0.2),
        0.4,
    )


def test_what_a_preset_does_not_know_is_wide_and_centred():
    assert preset("mup-adamw").belief(SPACE, "lr", "heads", {"heads"}) == UNKNOWN
    assert preset("none").belief(SPACE, "lr", "width", {"width"}) == UNKNOWN


def test_where_the_model_has_a_limit_drifts_come_to_rest():
    for name, limited in (("mup-adamw", True), ("limit", True), ("none", False), ("sp-adamw", False)):
        rule = preset(name)
        assert rule.belief(SPACE, "momentum", "width", {"width"}) == (SETTLING if limited else UNKNOWN)
        assert rule.endless("width") == rule.endless("params") == (ENDLESS_IN_LIMIT if limited else ENDLESS)
        assert rule.endless("tokens") == rule.endless("batch_size") == ENDLESS


@pytest.mark.parametrize("name", PRESETS)
def test_an_applied_preset_multiplies_by_nothing_and_keeps_its_drift_prior(name):
    rule, whole = applied(name), preset(name)
    params = {"lr": 0.02, "wd": 0.1, "batch_size": 64, "momentum": 0.9, "schedule": "cosine"}
    assert rule.exponents == {}
    assert raw(rule, params, Scale(width=4096)) == params
    for hyperparameter in SPACE:
        for axis in ("width", "params", "depth", "steps", "tokens", "batch_size"):
            assert rule.belief(SPACE, hyperparameter, axis, {axis}) == whole.belief(SPACE, hyperparameter, axis, {axis})
            assert rule.endless(axis) == whole.endless(axis)


@pytest.mark.parametrize("make", [preset, applied])
def test_an_unknown_preset_names_the_nearest(make):
    with pytest.raises(ValueError, match="no preset is named 'mup-adamz'; did you mean 'mup-adam"):
        make("mup-adamz")


@pytest.mark.parametrize(("low", "moved"), [(-5, -6), (0, -6), (1, 1)])
def test_only_a_range_of_counts_stays_at_least_one(low, moved):
    space = SearchSpace({"shift": Int(low, 9)})
    rule = preset("none", {"shift": {"width": 1.0}})
    assert rule.to_raw(space, {"shift": -3}, Scale(width=64), Scale(width=32)) == {"shift": moved}
