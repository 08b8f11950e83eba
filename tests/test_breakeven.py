"""Claims about the break-even: the theorem's optima by brute force, and constants that are found again."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import tuner
from tuner import theorem
from tuner.breakeven import Assumptions, BreakEven
from tuner.parametrization import preset
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.space import Categorical, Float, SearchSpace
from tuner.theorem import EXPONENTS, NOISE, Allowed, Law, Proxy, Sizes, Span
from tuner.trial import Observation

SPACE = SearchSpace({"lr": Float(1e-4, 1e-1, log=True), "decay": Float(1e-3, 1.0, log=True)})


def law(h=3, r=2.0, search=1.0, gap=0.1, bias=0.02, alpha=0.5, beta=0.4, choices=1):
    one = np.ones(1)
    return Law(h * one, choices, r, search * one, gap * one, bias * one, alpha * one, beta * one)


def at(*sizes, r=2.0):
    return [Proxy(size, size**r) for size in sizes]


def asked(proxies=({"width": 64}, {"width": 256}), target=None, space=SPACE, cost=lambda p, s: s["width"] ** 2):
    target = Scale(target or {"width": 1024})
    scales = tuple(map(Scale, proxies))
    return Problem(space, target, scales, scales[0], preset("mup-adamw"), cost)


@pytest.mark.parametrize(("regret", "bias"), [(0.003, 0.02), (0.03, 0.02), (1e-3, 10.0)])
@pytest.mark.parametrize("h", [1, 4])
def test_the_split_of_a_tolerance_is_the_one_of_the_cheapest_search(h, regret, bias):
    """Over sizes: each is searched until bias and error are the regret; what of it is bias at the cheapest."""
    some = law(h=h, bias=bias)
    sizes = np.geomspace(1e-6, 0.9999, 200_001)
    lost = bias * (sizes**-0.4 - 1) ** 2
    left = regret - lost
    costs = np.where(left > 0, sizes**2 * np.where(left > 0, left, 1.0) ** (-h / 2), np.inf)
    step = theorem.SHARES[1] - theorem.SHARES[0]
    assert some.split(regret)[0] == pytest.approx(lost[costs.argmin()] / regret, abs=1.01 * step)


def test_far_below_the_target_the_split_is_the_theorems():
    assert law(h=2, bias=1e-12).split(0.01)[0] == pytest.approx(2 / (2 + 2 * 0.4), abs=2 / 500)


def test_the_best_size_goes_as_the_theorem_says_where_the_target_is_far():
    """s* = [beta h C / (r A)]^(h / 2 (r + h beta)) F^(1 / (r + h beta)); relative to a finite target, a little more."""
    far = law(h=2, beta=1.0, bias=1e-9, search=1.0)
    budget = 1e-4
    expected = (1.0 * 2 * 1e-9 / 2.0) ** (2 / (2 * (2.0 + 2))) * budget ** (1 / (2.0 + 2))
    assert expected < 0.01
    step = math.log(theorem.SIZES[1] / theorem.SIZES[0])
    assert math.log(far.best_size(1 + budget)[0] / expected) == pytest.approx(0, abs=2 * step)


def test_a_regret_is_reached_at_the_cost_of_the_error_that_the_bias_leaves():
    some = law(h=2)
    regret, sizes = 0.05, [0.1, 0.25, 0.5]
    directly, below = some.to_reach(regret, at(*sizes))
    assert directly == pytest.approx(1.0 / regret)
    costs = [s**2 * max(1.0 / (regret - b), 1.0) for s in sizes if (b := 0.02 * (s**-0.4 - 1) ** 2) < regret]
    assert below == pytest.approx(1 + min(costs))
    assert some.to_reach(1e-9, at(*sizes))[1] == math.inf


@pytest.mark.parametrize("h", [1, 2, 4])
def test_direct_tuning_loses_more_before_the_break_even_and_less_after(h):
    some, sizes = law(h=h), [0.1, 0.25]
    crossed = float(some.break_even(at(*sizes), 1e-9)[0])
    assert 1.1 < crossed < theorem.TOTALS[-1]
    for total, direct_wins in ((crossed * 1.05, True), (crossed / 1.05, False)):
        below = min(float(some.below(total, proxy)[0]) for proxy in at(*sizes))
        assert (float(some.missed(total)[0]) < below) == direct_wins
    floor = min(float(some.lost(s)[0]) for s in sizes)
    assert some.break_even(at(*sizes), 0.99 * floor) == pytest.approx(crossed)


def test_a_crossing_counts_only_what_is_more_than_a_runs_noise():
    """With c = 0.9 noise at half the size: direct tuning is ahead from 6.9 target runs until both are in the noise."""
    bias = 1.0 / (0.5**-0.4 - 1) ** 2
    some = law(h=2, bias=0.9 * 0.1137 * bias)
    noise = 0.1137
    crossed = float(some.break_even(at(0.5), noise)[0])
    step = theorem.TOTALS[1] / theorem.TOTALS[0]
    expected = 1.0  # A / F = c + A / ((F - 1) 4), solved for F by bisection
    low, high = 1.01, 100.0
    for _ in range(60):
        expected = (low * high) ** 0.5
        ahead = 1 / expected < 0.9 * noise + 1 / ((expected - 1) * 4)
        low, high = (low, expected) if ahead else (expected, high)
    assert 1 <= crossed / expected < 1.001 * step
    assert law(h=2, bias=0.0).break_even(at(0.1), 0.5) == math.inf  # from below it is in the noise sooner


def test_what_never_pays_and_what_always_does():
    assert law(bias=0.0).break_even(at(0.5), 1e-9) == math.inf
    assert law(bias=1e6).break_even(at(0.5), 1e-9) == pytest.approx(theorem.TOTALS[0])


def test_every_combination_of_choices_is_searched_by_itself():
    assert law(choices=6).missed(60) == pytest.approx(law().missed(10))
    assert law(choices=6).runs(np.array([0.01])) == pytest.approx(6 * law().runs(np.array([0.01])))
    space = SearchSpace({"lr": Float(1e-4, 1e-1, log=True), "a": Categorical(["x", "y"]), "b": Categorical([1, 2, 3])})
    assert theorem.searched(asked(space=space)) == (1, 6)


def test_sizes_are_of_the_axis_that_grows_and_else_of_the_cost():
    one = Sizes.of(asked(cost=lambda p, s: 5 * s["width"] ** 1.7))
    assert (one.axis, one(Scale(width=64))) == ("width", 1 / 16)
    assert one.r == pytest.approx(1.7)
    paid = [Observation({"lr": 1e-2, "decay": 0.1}, Scale(width=w), 1.0, w**1.3) for w in (64, 64, 256)]
    assert Sizes.of(asked(), paid).r == pytest.approx(1.3)
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
        s = m * theorem.SIZES
        lost = 0.02 * (s**-0.4 - m**-0.4) ** 2 + np.array([some.missed(k)[0] for k in (total - m**2) / s**2])
        losses[m] = lost.min() + 0.1 * m**-0.5
    assert found == pytest.approx(min(losses, key=losses.get), rel=0.06)
    assert found**2 < total


def test_assumptions_are_what_a_random_search_loses_and_where_its_optimum_lies():
    """Against 4,000 random searches of 200 runs whose optimum lies inside; their mean is known to a part in 60."""
    space = SearchSpace({**SPACE, "kind": Categorical(["a", "b"])})
    problem = asked(space=space)
    assumed = Assumptions(curvature=0.03, drift=0.5, ratio=1.0, alpha=0.6)
    found = assumed.law(problem, Sizes.of(problem))
    assert (found.h == 2).all()
    rng, lengths = np.random.default_rng(0), [math.log(1e3), math.log(1e3)]
    loses = [0.03 * np.square((rng.random((200, 2)) - 0.5) * lengths).sum(1).min() for _ in range(4000)]
    assert found.missed(2 * 200)[0] == pytest.approx(np.mean(loses), rel=4 / 60)
    assert found.lost(1 / 16)[0] == pytest.approx(0.03 * 0.25)


def test_the_bias_that_is_assumed_is_of_copying_what_a_preset_expects_to_move():
    """Sixteen times the width: under sp-adamw the rate's optimum goes as width^-0.8, give or take 0.4 a nat."""
    problem = replace(asked(space=SearchSpace({"lr": SPACE["lr"]})), parametrization=preset("sp-adamw"))
    lost = Assumptions(curvature=1.0).law(problem, Sizes.of(problem)).lost(1 / 16)
    assert np.mean(lost) == pytest.approx((0.8**2 + 0.4**2) * math.log(16) ** 2, rel=4 * math.sqrt(1 / len(lost)))


@pytest.mark.parametrize(
    "given", [["alpha"], ["alpha="], ["alpha=x"], ["alpha=nan"], ["beta=1"], ["=1"], ["r=1", "r=2"]]
)
def test_an_assumption_that_cannot_be_read_is_refused(given):
    with pytest.raises(tuner.BadInput, match="assume: must be one of alpha, ratio, gap"):
        Assumptions.read(given)


@pytest.mark.parametrize("given", [{"alpha": 0.0}, {"alpha": 1000}, {"ratio": 0.4}, {"drift": -1}, {"noise": "much"}])
def test_an_assumption_outside_of_what_it_may_be_is_refused(given):
    [name] = given
    with pytest.raises(tuner.BadInput, match=f"assume: {name} must be a number from"):
        Assumptions(**given)


def test_an_optimum_that_is_assumed_to_stay_has_no_bias():
    problem = asked()
    assert Assumptions(drift=0.0).law(problem, Sizes.of(problem)).lost(0.1).max() == 0


def test_a_space_of_choices_alone_has_nothing_to_assume():
    problem = asked(space=SearchSpace({"kind": Categorical(["a", "b"])}))
    with pytest.raises(tuner.BadInput, match="a numeric hyperparameter is needed"):
        Assumptions().law(problem, Sizes.of(problem))


def test_the_object_is_json_and_never_is_null():
    problem = asked()
    told = BreakEven.of(problem, law(h=2, bias=0.0), Sizes.of(problem), 0.5, Allowed(0.01, NOISE), "here")
    found = json.loads(json.dumps(told.as_json(), allow_nan=False))
    assert found["break_even"] == {"median": None, "interval": [None, None]}
    assert [line["scale"]["width"] for line in found["proxies"]] == [64, 256]
    assert found["proxies"][0]["cost"] == pytest.approx(1 / 256)
    assert found["proxies"][0]["runs"] == pytest.approx(128)
    assert found["best_proxy"] == {"width": 64}
    assert found["allowed"] == {"loss": 0.01, "of": "a run's noise"}
    assert str(Span.of(np.array([math.inf]))) == "inf"


def test_what_lies_at_an_end_of_what_was_looked_at_is_told_as_beyond():
    low, high = EXPONENTS[[0, -1]]
    told = Span.of(np.array([low, low, 1.0]), low, high)
    assert str(told) == "<=0.05 (<=0.05 .. 1)"
    assert told.as_json() == {"median": None, "interval": [None, 1.0]}
    assert str(Span.of(np.array([1.0, high]), low, high)).endswith(".. >=4)")


def test_no_smaller_proxy_is_refused():
    problem = asked([{"width": 2048}], cost=lambda p, s: 1.0)
    with pytest.raises(tuner.BadInput, match="a proxy smaller than width 1024 is needed"):
        BreakEven.of(problem, law(), Sizes.of(problem), 0.5, Allowed(0.01, NOISE), "here")


def test_a_budget_that_affords_no_run_is_refused():
    problem = asked()
    with pytest.raises(
        tuner.BadInput, match=r"budget: must afford a run, of 0\.00391 target runs at least, got 0\.001"
    ):
        BreakEven.of(problem, law(), Sizes.of(problem), 0.001, Allowed(0.01, NOISE), "here")
