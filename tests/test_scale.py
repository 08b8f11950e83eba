"""Claims about scales, their grids and ladders, and the cost law; oracles are arithmetic and exact power laws."""

import math
import pickle
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tuner.scale import CostLaw, Scale, grid, ladder


def test_equality_and_hash_forget_the_order_of_axes_and_the_kind_of_number():
    a, b = Scale(width=64, depth=2), Scale({"depth": 2.0, "width": 64.0})
    assert a == b
    assert hash(a) == hash(b)
    assert a == {"width": 64, "depth": 2}
    assert len({a, b, Scale(width=65, depth=2)}) == 2


def test_whole_numbers_are_integers_and_others_stay():
    scale = Scale(width=64.0, tokens=2e9, growth=1.5)
    assert {axis: type(value) for axis, value in scale.items()} == {"growth": float, "tokens": int, "width": int}


def test_a_scale_survives_pickling():
    scale = Scale(width=64, tokens=2e9)
    assert pickle.loads(pickle.dumps(scale)) == scale


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "64", True, None], ids=repr)
def test_an_axis_that_is_not_a_finite_number_above_zero_is_refused(value):
    with pytest.raises(ValueError, match=r"Scale: width must be a finite number above zero, got .*; correct it"):
        Scale(width=value)


def test_a_scale_without_axes_is_refused():
    with pytest.raises(ValueError, match=r"at least one axis is needed, got none; write Scale\(width=1024\)"):
        Scale()


def test_the_ratio_divides_axis_by_axis():
    assert Scale(width=256, depth=2).ratio(Scale(width=64, depth=8)) == {"width": 4, "depth": 0.25}


def test_a_grid_is_every_combination_once():
    scales = grid({"width": [1, 2, 3], "depth": [4, 5]})
    assert len(scales) == len(set(scales)) == 6
    assert set(scales) == {Scale(width=w, depth=d) for w in (1, 2, 3) for d in (4, 5)}
    assert grid({"width": []}) == []


@given(st.floats(1e-3, 1e6), st.floats(1.001, 1e4))
def test_a_ladder_rises_from_low_to_high_by_equal_ratios_of_at_most_two(low, ratio):
    high = low * ratio
    assume(not (low.is_integer() and high.is_integer()))
    rungs = ladder(low, high)
    steps = [b / a for a, b in pairwise(rungs)]
    assert (rungs[0], rungs[-1]) == pytest.approx((low, high))
    assert max(steps) <= 2 * (1 + 1e-9)
    assert max(steps) == pytest.approx(min(steps))
    assert len(steps) == 1 or ratio > 2 ** (len(steps) - 1)  # no more rungs than needed


def test_a_ladder_between_whole_numbers_has_whole_rungs():
    assert ladder(32, 256) == [32, 64, 128, 256]
    assert ladder(100, 300) == [100, 173, 300]


@pytest.mark.parametrize(("low", "high"), [(4, 4), (4, 2), (0, 2), (-1, 2)])
def test_a_ladder_needs_an_increasing_range_above_zero(low, high):
    with pytest.raises(ValueError, match=f"0 < low < high, got low={low}, high={high}; correct it"):
        ladder(low, high)


def test_the_cost_law_of_one_run_is_proportional_to_every_axis():
    law = CostLaw.fit([Scale(width=32, steps=100)], [8.0])
    assert law(Scale(width=64, steps=100)) == pytest.approx(16.0)
    assert law(Scale(width=32, steps=300)) == pytest.approx(24.0)


def test_the_cost_law_of_many_runs_of_a_power_law_is_that_law():
    scales = [Scale(width=w, steps=s) for w in (16, 64, 256, 1024) for s in (10, 1000, 100_000)]
    costs = [3e-7 * s["width"] ** 2 * s["steps"] ** 1.1 for s in scales]
    law = CostLaw.fit(scales * 20, costs * 20)
    assert law.exponents == pytest.approx({"width": 2.0, "steps": 1.1}, abs=0.005)
    assert law(Scale(width=128, steps=500)) == pytest.approx(3e-7 * 128**2 * 500**1.1, rel=0.02)


def test_the_cost_law_weighs_one_pseudo_run_of_exponent_one_against_the_runs():
    # One axis: least squares with a ridge of one squared nat towards 1 has the closed form (Sxy + 1) / (Sxx + 1).
    logs = [0.0, math.log(4)]
    law = CostLaw.fit([Scale(width=math.exp(z)) for z in logs], [math.exp(2 * z) for z in logs])
    sxx = 2 * (math.log(4) / 2) ** 2
    assert law.exponents["width"] == pytest.approx((2 * sxx + 1) / (sxx + 1))
