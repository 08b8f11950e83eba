"""Claims about the break-even: the theorem's optima by brute force, and constants that are found again."""

import json
import math

import numpy as np
import pytest

import tuner
from tuner import breakeven
from tuner.breakeven import Assumptions, BreakEven, Law, Sizes, Span
from tuner.parametrization import preset
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.space import Categorical, Float, SearchSpace

SPACE = SearchSpace({"lr": Float(1e-4, 1e-1, log=True), "decay": Float(1e-3, 1.0, log=True)})


def law(h=3, r=2.0, search=1.0, gap=0.1, bias=0.02, alpha=0.5, beta=0.4):
    one = np.ones(1)
    return Law(h, r, search * one, gap * one, bias * one, alpha * one, beta * one)


def asked(proxies=({"width": 64}, {"width": 256}), target=None, space=SPACE, cost=lambda p, s: s["width"] ** 2):
    target = Scale(target or {"width": 1024})
    scales = tuple(map(Scale, proxies))
    return Problem(space, target, scales, scales[0], preset("mup-adamw"), cost)


@pytest.mark.parametrize("regret", [0.003, 0.03])
@pytest.mark.parametrize("h", [1, 4])
def test_the_split_of_a_tolerance_is_the_one_of_the_cheapest_search(h, regret):
    """Over sizes whose bias is C s^(-2 beta), the theorem's own, far below the target's size."""
    a, c, r, beta = 1.0, 0.02, 2.0, 0.4
    shares = np.linspace(1e-4, 1 - 1e-4, 100_001)
    cost = (a / ((1 - shares) * regret)) ** (h / 2) * (c / (shares * regret)) ** (r / (2 * beta))
    assert law(h=h, beta=beta).split() == pytest.approx(shares[cost.argmin()], abs=1e-4)


def test_the_best_size_goes_as_the_theorem_says_where_the_target_is_far():
    """s* = [beta h C / (r A)]^(h / 2 (r + h beta)) F^(1 / (r + h beta)); relative to a finite target, a little more."""
    far = law(h=2, beta=1.0, bias=1e-9, search=1.0)
    budget = 1e-4
    expected = (1.0 * 2 * 1e-9 / 2.0) ** (2 / (2 * (2.0 + 2))) * budget ** (1 / (2.0 + 2))
    assert expected < 0.01
    step = math.log(breakeven.SIZES[1] / breakeven.SIZES[0])
    assert math.log(far.best_size(1 + budget)[0] / expected) == pytest.approx(0, abs=2 * step)


def test_a_regret_is_reached_at_the_cost_of_the_error_that_the_bias_leaves():
    some = law(h=2)
    regret, sizes = 0.05, [0.1, 0.25, 0.5]
    directly, below = some.to_reach(regret, sizes)
    assert directly == pytest.approx(1.0 / regret)
    costs = [s**2 * max(1.0 / (regret - b), 1.0) for s in sizes if (b := 0.02 * (s**-0.4 - 1) ** 2) < regret]
    assert below == pytest.approx(1 + min(costs))
    assert some.to_reach(1e-9, sizes)[1] == math.inf


@pytest.mark.parametrize("h", [1, 2, 4])
def test_direct_tuning_loses_more_before_the_break_even_and_less_after(h):
    some, sizes = law(h=h), [0.1, 0.25]
    crossed = float(some.break_even(sizes, 1e-9)[0])
    assert 1.1 < crossed < breakeven.TOTALS[-1]
    for total, direct_wins in ((crossed * 1.05, True), (crossed / 1.05, False)):
        below = min(float(some.below(total, s)[0]) for s in sizes)
        assert (float(some.missed(total)[0]) < below) == direct_wins
    floor = min(float(some.lost(s)[0]) for s in sizes)
    assert some.break_even(sizes, 0.99 * floor) == pytest.approx(crossed)
    assert some.break_even(sizes, 2 * floor) == math.inf  # from below it is within the noise, sooner


def test_what_never_pays_and_what_always_does():
    assert law(bias=0.0).break_even([0.5], 1e-9) == math.inf
    assert law(bias=1e6).break_even([0.5], 1e-9) == pytest.approx(breakeven.TOTALS[0])


def test_constants_are_found_again_from_gaps_of_the_theorem():
    sizes = np.array([1 / 16, 1 / 8, 1 / 4])
    excess, regrets = 0.3 * (sizes**-0.5 - 1), 0.02 * (sizes**-0.4 - 1) ** 2
    one = np.ones(3)
    found = Law.of_gaps(2, 2.0, sizes, excess[:, None] * one, regrets[:, None] * one, one, 0.5 * one, 0.4 * one)
    assert found.gap == pytest.approx(0.3)
    assert found.bias == pytest.approx(0.02)


def test_sizes_are_of_the_axis_that_grows_and_else_of_the_cost():
    one = Sizes.of(asked(cost=lambda p, s: 5 * s["width"] ** 1.7))
    assert (one.axis, one(Scale(width=64))) == ("width", 1 / 16)
    assert one.r == pytest.approx(1.7)
    two = Sizes.of(
        asked(
            [{"width": 64, "steps": 10}], {"width": 128, "steps": 100}, cost=lambda p, s: s["width"] ** 2 * s["steps"]
        )
    )
    assert (two.axis, two.r) == ("cost", 1.0)
    assert two(Scale(width=64, steps=10)) == pytest.approx(1 / 40)


def test_the_largest_model_leaves_what_its_search_needs():
    """Brute force over models, and one size to search at for each."""
    some, total = law(), 4.0
    found = float(some.largest(total)[0])
    losses = {}
    for m in np.geomspace(0.1, 1.99, 200):
        s = m * breakeven.SIZES
        lost = 0.02 * (s**-0.4 - m**-0.4) ** 2 + np.array([some.missed(k)[0] for k in (total - m**2) / s**2])
        losses[m] = lost.min() + 0.1 * m**-0.5
    assert found == pytest.approx(min(losses, key=losses.get), rel=0.06)
    assert found**2 < total


def test_assumptions_are_what_a_grid_loses_and_where_its_optimum_lies():
    space = SearchSpace({"lr": Float(1e-4, 1e-1, log=True), "kind": Categorical(["a", "b"])})
    problem = asked(space=space)
    assumed = Assumptions(curvature=0.03, drift=0.5, ratio=1.0, alpha=0.6)
    found = assumed.law(problem, Sizes.of(problem))
    assert found.h == 1
    length = math.log(1e3)
    grid = (np.arange(8) + 0.5) / 8 * length
    optima = np.linspace(grid[0], grid[-1], 10_001)  # anywhere between the points of a grid
    loses = 0.03 * np.mean([np.square(grid - best).min() for best in optima])
    assert found.missed(8)[0] == pytest.approx(loses, rel=0.02)
    assert found.lost(1 / 16)[0] == pytest.approx(0.03 * 0.25)


@pytest.mark.parametrize("given", ["alpha", "alpha=", "alpha=x", "alpha=-1", "alpha=nan", "beta=1", "=1"])
def test_a_bad_assumption_is_refused(given):
    with pytest.raises(tuner.BadInput, match="assume: must be one of alpha, ratio, gap"):
        Assumptions.read([given])


def test_the_object_is_json_and_never_is_null():
    problem = asked()
    told = BreakEven.of(problem, law(h=2, bias=0.0), Sizes.of(problem), 0.5, 0.01, "here")
    found = json.loads(json.dumps(told.as_json(), allow_nan=False))
    assert found["break_even"] == {"median": None, "interval": [None, None]}
    assert [line["scale"]["width"] for line in found["proxies"]] == [64, 256]
    assert found["proxies"][0]["cost"] == pytest.approx(1 / 256)
    assert found["proxies"][0]["runs"] == pytest.approx(128)
    assert found["best_proxy"] == {"width": 64}
    assert str(Span.of(np.array([math.inf]))) == "never"


def test_no_smaller_proxy_is_refused():
    problem = asked([{"width": 2048}], cost=lambda p, s: 1.0)
    with pytest.raises(tuner.BadInput, match="a proxy smaller than width 1024 is needed"):
        BreakEven.of(problem, law(), Sizes.of(problem), 0.5, 0.01, "here")
