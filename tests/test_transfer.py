"""Claims about the verdict: rates, gaps and the word, against landscapes whose truth is a formula."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tuner import engine, transfer
from tuner.doubts import _wider
from tuner.errors import BadInput
from tuner.landscape import DRAWS, Landscape, exponent
from tuner.parametrization import applied, preset
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.space import Categorical, Float, Int, SearchSpace
from tuner.theorem import Allowed, Law, Sizes
from tuner.transfer import _pace, _verdict, judge
from tuner.trial import Evidence, Observation

SPACE = SearchSpace({"lr": Float(1e-4, 1e-1, log=True)})
TARGET, WIDTHS = Scale(width=512), (32, 64, 128)
NOISE = 0.002


def study(drift=0.0, rule=None, widths=WIDTHS, runs=9, best=3e-3, around=None):
    """Runs spread over one hyperparameter, whose optimum at the target is `best` and goes as width^drift."""
    proxies = tuple(Scale(width=w) for w in widths)
    problem = Problem(SPACE, TARGET, proxies, TARGET, rule or applied("mup-adamw"), lambda p, s: s["width"] ** 2)
    rng = np.random.default_rng(0)
    observations = []
    for scale in proxies:
        ln_best = math.log(best) + drift * math.log(scale["width"] / TARGET["width"])
        for k in range(runs):
            lr = (around or math.exp(ln_best)) * math.exp(0.4 * (k - runs // 2))
            loss = 1 + scale["width"] ** -0.5 + 0.1 * (math.log(lr) - ln_best) ** 2 + NOISE * rng.standard_normal()
            observations.append(Observation({"lr": lr}, scale, loss, problem.cost({"lr": lr}, scale)))
    return problem, observations


def holds(span, truth, width):
    """Within three deviations, of which 90 % take 1.645: which one of ten intervals misses depends on rounding.

    And no wider than `width` times the truth: who says nothing is never wrong.
    """
    assert span.high - span.low < width * abs(truth)
    return abs(span.middle - truth) < 3 / 1.645 * (span.high - span.low) / 2


def told(problem, observations):
    answer = engine.recommend(problem, observations)
    return answer, judge(problem, observations, answer)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_an_exponent_is_that_of_gaps_relative_to_the_target(alpha):
    """Exactly, but for the grid of exponents, whose neighbours are 3.7 % apart."""
    ratios = np.array([1 / 16, 1 / 8, 1 / 4])
    gaps = 3.0 * np.tile((ratios**-alpha - 1)[:, None], (1, DRAWS))
    assert exponent(gaps, ratios) == pytest.approx(alpha, rel=0.02)


def test_a_draw_without_a_gap_at_any_scale_says_nothing_and_breaks_nothing():
    ratios, gaps = np.array([1 / 8, 1 / 4]), np.zeros((2, DRAWS))
    gaps[:, 1:] = (ratios**-1.0 - 1)[:, None]
    found = exponent(gaps, ratios)
    assert np.isfinite(found).all()
    assert found[1:] == pytest.approx(1.0, rel=0.02)


def test_transfer_is_fast_or_weak_by_where_the_interval_of_beta_over_alpha_lies():
    def pace(low, high, told=True):
        ratio = np.linspace(low, high, 201)
        ones = np.ones(201)
        return _pace(Law(ones, 1, 2.0, ones, ones, ones, ones, ratio, told))

    assert pace(0.55, 1.4) == "fast"
    assert pace(0.4, 0.7) == "weak"
    assert pace(0.4, 0.9) == "undetermined"
    assert pace(0.04, 0.5) == "undetermined"  # Proposition 2: never below 1/2 in the limit
    assert pace(0.55, 1.4, told=False) == "undetermined"


def test_an_optimum_that_stays_transfers_and_the_gaps_are_those_of_the_formula():
    _, judged = told(*study())
    assert judged.verdict == "transfer"
    for gap in judged.gaps:
        assert holds(gap.loss, gap.scale["width"] ** -0.5 - TARGET["width"] ** -0.5, width=2)
        assert gap.within > 0.9
        assert gap.rank > 0.9
    assert "unchanged in base coordinates, loses" in judged.reasons[0]


def test_a_drift_is_never_transfer_where_base_coordinates_are_raw():
    """By width^-1, as under the standard parametrization: at a quarter of the target's width a factor 4."""
    _, judged = told(*study(drift=-1.0, rule=preset("sp-adamw")))
    assert judged.verdict != "transfer"
    largest = judged.gaps[-1]
    assert largest.within < 0.1
    assert holds(largest.copied, 0.1 * math.log(4) ** 2, width=2)
    assert holds(largest.optimum, math.log(4), width=1)
    assert any("lr as width^-" in reason for reason in judged.reasons)


def test_two_scales_are_undetermined_and_the_run_that_is_missing_is_named():
    problem, observations = study(widths=(32, 64))
    _, judged = told(problem, observations)
    assert (judged.verdict, judged.gaps) == ("undetermined", ())
    assert "3 runs with a finite loss at each of 3 scales" in judged.reasons[0]
    assert "name another proxy" in judged.reasons[0]
    problem, observations = study()
    _, judged = told(problem, observations[:20])  # 9, 9 and 2
    assert "there are 9 at width 32, 9 at width 64, 2 at width 128: run 1 at width 128" in judged.reasons[0]


def test_an_optimum_at_the_end_of_the_range_says_which_bound_to_widen_and_to_what():
    _, judged = told(*study(best=0.5, around=0.1 * math.exp(-1.6)))
    assert judged.verdict == "undetermined"
    assert (
        "the optimum of lr lies at the high end of its range at every scale, 0.1: widen it to 0.562"
        in judged.reasons[0]
    )


def test_an_optimum_that_drifts_to_the_end_of_the_range_is_no_answer():
    """Best at 0.1 / 2^k below, so beyond the bound of 0.1 at the target."""
    _, judged = told(*study(drift=1.0, best=0.35))
    assert judged.verdict == "undetermined"
    assert any("the high end of its range at the target, 0.1: widen it to 0.562" in r for r in judged.reasons)


def test_the_bounds_of_integers_are_ends_and_nothing_is_the_natural_end_of_a_share():
    problem, observations = study()
    for extra, best, reason in (
        ({"layers": Int(1, 8)}, 8, "layers lies at the high end"),
        ({"dropout": Float(0.0, 0.5)}, 0, ""),
    ):
        [name] = extra
        space = SearchSpace({**SPACE, **extra})
        rng, runs = np.random.default_rng(1), []
        for run in observations * 2:
            params = {**run.params, name: space.decode(rng.random(2))[name]}
            worse = abs(params[name] - best) / (extra[name].high - extra[name].low)
            runs.append(replace(run, params=params, loss=run.loss + 0.1 * worse))
        _, judged = told(replace(problem, space=space), runs)
        border = [said for said in judged.reasons if "end of its range" in said]
        assert any(reason in said for said in border) if reason else not border


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_that_fewer_runs_know_less_is_no_contradiction(seed):
    """Nine random runs a scale and no drift, with a prior that expects one: without width 32 little is known."""
    rng, (problem, _) = np.random.default_rng(seed), study(rule=preset("sp-adamw"))
    runs = []
    for scale in problem.proxies:
        for _ in range(9):
            lr = float(SPACE.decode(rng.random(1))["lr"])
            away, noise = math.log(lr / 3e-3), NOISE * float(rng.standard_normal())
            loss = 1 + scale["width"] ** -0.5 + 0.1 * away**2 + noise
            runs.append(Observation({"lr": lr}, scale, loss, scale["width"] ** 2))
    _, judged = told(problem, runs)
    assert judged.verdict in ("transfer", "corrected")


def test_a_scale_where_everything_diverged_is_named():
    problem, observations = study(widths=(32, 64, 128, 256))
    observations = [replace(run, loss=math.inf) if run.scale["width"] == 128 else run for run in observations]
    _, judged = told(problem, observations)
    assert judged.verdict == "undetermined"
    assert any("all 9 runs at width 128 diverged" in reason for reason in judged.reasons)


def test_a_choice_among_names_can_be_judged_and_the_next_run_is_named():
    """Few, noisy runs: undetermined, with a reason that names values and a name."""
    problem, observations = study(runs=3)
    space = SearchSpace({**SPACE, "kind": Categorical(["plain", "fancy"])})
    problem = replace(problem, space=space)
    rng = np.random.default_rng(1)
    observations = [
        replace(o, params={**o.params, "kind": ["plain", "fancy"][k % 2]}, loss=o.loss + 0.1 * rng.standard_normal())
        for k, o in enumerate(observations)
    ]
    _, judged = told(problem, observations)
    assert judged.verdict == "undetermined"
    assert any("the run that would teach most is lr" in r and ("plain" in r or "fancy" in r) for r in judged.reasons)


def test_proxies_that_cost_the_same_are_judged_like_others():
    problem, observations = study()
    flat = replace(problem, cost=lambda params, scale: 16.0 if scale == TARGET else 1.0)
    answer = engine.recommend(flat, observations)
    assert judge(flat, observations, answer).verdict == "transfer"


def test_what_the_largest_proxys_setting_loses_is_put_up_with_where_the_tolerance_is_more():
    """At a quarter of the width a drift of -0.4 costs 0.1 (0.4 ln 4)^2 = 0.03 of a loss of 1.04."""
    problem, observations = study(drift=-0.4)
    answer = engine.recommend(problem, observations)
    strict, lenient = (judge(problem, observations, answer, tolerance=t) for t in (0.005, 0.5))
    assert strict.verdict != "transfer"
    assert lenient.verdict == "transfer"
    assert strict.allowed.name == lenient.allowed.name == "the tolerance"
    assert lenient.allowed.loss == pytest.approx(0.5 * abs(answer.loss))
    assert judge(problem, observations, answer, tolerance=1e-9).allowed.name == "a run's noise"


def test_runs_at_scales_that_a_study_does_not_list_are_judged_like_others():
    problem, observations = study()
    answer = engine.recommend(problem, observations)
    nearest, word = [], transfer._verdict
    for listed in (problem.proxies[:1], problem.proxies[1:], (Scale(width=48),), (Scale(width=256),)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transfer, "_verdict", lambda *args: nearest.append(args[-2]) or word(*args))
            judged = judge(replace(problem, proxies=listed), observations, answer)
        assert [gap.scale["width"] for gap in judged.gaps] == list(WIDTHS)
        assert judged.verdict == "transfer"
    assert nearest == [True, True, True, False]  # whether a larger proxy is to be had


def test_a_slip_of_the_record_is_not_what_was_measured():
    """Five runs at the target; without the slip the best of width 128 is 3e-3, and it was not run there."""
    problem, observations = study(runs=15)
    at_target = [
        replace(run, scale=TARGET, cost=TARGET["width"] ** 2)
        for run in observations
        if run.scale["width"] == 128 and run.params["lr"] > 6e-3
    ]
    first = next(i for i, run in enumerate(observations) if run.scale["width"] == 128 and run.params["lr"] > 6e-3)
    observations[first] = replace(observations[first], loss=-4.0)
    _, judged = told(problem, [*observations, *at_target])
    assert [gap.measured for gap in judged.gaps] == [None, None, None]


@pytest.mark.parametrize(
    ("dimension", "which", "wider"),
    [
        (Float(0.0, 0.5), "low", None),  # less than none is not to be had
        (Float(0.2, 0.5), "low", 0.125),
        (Float(0.1, 0.5), "low", 0.0),
        (Float(0.0, 1.0), "high", None),  # nor more of a share than all
        (Float(0.0, 0.5), "high", 0.625),
        (Float(-1.0, 1.0), "high", 1.5),
        (Float(-1.0, 1.0), "low", -1.5),
        (Float(-5.0, -1.0), "low", -6.0),
        (Int(-8, 8), "low", -12.0),
        (Float(1e-4, 1.0, log=True), "high", 10.0),
        (Int(1, 8), "low", None),
        (Int(2, 8), "low", 1.0),
        (Int(2, 8), "high", 10.0),
        (Int(16, 256, log=True), "low", 8.0),
    ],
)
def test_an_end_is_widened_by_a_quarter_of_the_range_but_not_beyond_what_there_is(dimension, which, wider):
    bound, beyond = (dimension.low, -1) if which == "low" else (dimension.high, 1)
    assert _wider(dimension, "", bound, beyond) == (None if wider is None else pytest.approx(wider))


@pytest.mark.parametrize(
    ("dimension", "wider"),
    [(Float(0.0, 0.9), 0.95), (Float(0.0, 0.2), 0.25), (Float(0.8, 0.999), 0.9995), (Float(0.1, 1.0, log=True), None)],
)
def test_a_share_has_an_end(dimension, wider):
    for role in ("dropout", "beta2"):
        assert _wider(dimension, role, dimension.high, 1) == (None if wider is None else pytest.approx(wider))


def test_a_scale_of_absurd_losses_is_one_of_diverged_runs():
    """Nine at width 128, of which no run is near what the others reach: nothing is known of an optimum there."""
    problem, observations = study(widths=(16, 32, 64, 128))
    for loss in (math.inf, 1e6):
        bad = [replace(run, loss=loss) if run.scale["width"] == 128 else run for run in observations]
        _, judged = told(problem, bad)
        assert [gap.scale["width"] for gap in judged.gaps] == [16, 32, 64]
        assert judged.verdict == "undetermined"
        assert "all 9 runs at width 128 diverged" in judged.reasons[0]


def test_runs_larger_than_the_target_are_no_proxies():
    problem, observations = study(widths=(32, 64, 128, 2048))
    _, judged = told(problem, observations)
    assert [gap.scale["width"] for gap in judged.gaps] == [32, 64, 128]
    listed = replace(problem, proxies=problem.proxies[:3])  # and what is left out does not make them so
    seen, best_of = [], transfer._best
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_best", lambda asked, runs, seed: seen.append(asked) or best_of(asked, runs, seed))
        told(listed, observations)
    assert [[scale["width"] for scale in asked.proxies] for asked in seen] == [[64, 128], [32, 64]]


def test_evidence_that_failed_leaves_nothing_certain():
    problem, observations = study()
    answer = engine.recommend(problem, observations)
    failed = judge(problem, observations, answer, evidence=[Evidence("check", "fail", "the readout grows")])
    assert failed.verdict == "undetermined"
    assert failed.reasons[0] == "check: fail; the readout grows"
    assert not any("would teach most" in reason for reason in failed.reasons)  # no run mends a parametrization
    with pytest.raises(BadInput, match="evidence: must be one of"):
        Evidence("check", "passed", "")


def landscape(pool, losses):
    """Of draws of the loss (scales, draws, k) over settings (k, d), of which the answer is the best at the target."""
    best = losses[-1].mean(0).argmin()
    pool, losses = np.vstack([pool[best], pool]), np.concatenate([losses[:, :, [best]], losses], 2)
    ranks = np.tile(np.arange(8.0), (len(losses), 1))
    return Landscape(("answer",), pool, losses, losses.mean(1), np.full(len(losses), NOISE), ranks, np.arange(DRAWS))


@pytest.mark.parametrize(("unknown", "expected"), [(0.1, "direct"), (0.0, "undetermined")])
def test_direct_tuning_pays_where_what_proxies_tell_leaves_more_than_is_allowed(unknown, expected):
    """A bowl whose place is unknown by 0.1 of the range: at the target alone, or everywhere alike, but for a shift.

    Where it is the same, who searched the proxies well would know it, at a 16th of the cost.
    """
    rng, pool = np.random.default_rng(0), np.linspace(0, 1, 401)[:, None]
    proxy = 0.45 + 0.1 * rng.standard_normal((DRAWS, 1))
    target = proxy + 0.05 + unknown * rng.standard_normal((DRAWS, 1))
    land = landscape(pool, np.array([10 * (pool[:, 0] - place) ** 2 for place in (proxy, target)]))
    problem, _ = study()
    sizes, allowed = Sizes.of(problem), Allowed(1e-4, "a run's noise")
    gap = land.gap(problem, 0, Scale(width=128), 9, allowed, None)
    ones = np.ones(DRAWS)
    law = Law(ones, 1, 2.0, 2.5 * ones, ones, ones, ones, ones)  # a direct search takes (2.5 / 1e-4)^(1/2) runs
    left = land.corrected()
    # a median of 512 draws of |e| is known to 5 % of it, of its square to 10
    assert np.median(left) == pytest.approx(10 * (0.6745 * unknown) ** 2, rel=0.3, abs=10 * (1 / 400) ** 2)
    verdict, said = _verdict(land, gap, law, sizes, (), True, allowed)
    assert verdict == expected
    assert _verdict(land, gap, law, sizes, (), False, allowed)[0] == "undetermined"  # a larger proxy was not tried
    assert any("takes 158 target runs of direct tuning" in text for text in said) == (expected == "direct")


def test_proxies_that_tell_all_leave_nothing_to_direct_tuning():
    """A drift of either of two courses, which three proxies tell apart; and three hyperparameters that move alike."""
    rng, pool = np.random.default_rng(0), np.linspace(0, 1, 1001)[:, None]
    target, far = 0.3 + 0.02 * rng.standard_normal((DRAWS, 1)), 0.6 + 0.05 * rng.standard_normal((DRAWS, 1))
    below = np.array([1 / 16, 1 / 8, 1 / 4])
    courses = np.log(1 / below) / np.log(16), (1 / below - 1) / 15
    proxies = target + far * np.where(rng.random((DRAWS, 1)) < 0.5, *courses)
    losses = [10 * (pool[:, 0] - place) ** 2 for place in (*proxies.T[:, :, None], target)]
    three = 0.45 + 0.05 * rng.standard_normal((DRAWS, 1, 3))
    around = np.vstack([c + 0.05 * rng.standard_normal((64, 3)) for c in (0.45, 0.5)])
    alike = [10 * np.square(around - place).sum(2) for place in (three, three, three + 0.05)]
    problem, _ = study()
    sizes, allowed, ones = Sizes.of(problem), Allowed(1e-4, "a run's noise"), np.ones(DRAWS)
    law = Law(ones, 1, 2.0, 2.5 * ones, ones, ones, ones, ones)
    for land in (landscape(pool, np.array(losses)), landscape(around, np.array(alike))):
        asked = replace(problem, space=SearchSpace({f"x{j}": SPACE["lr"] for j in range(land.pool.shape[1])}))
        gap = land.gap(asked, len(land.losses) - 2, Scale(width=128), 9, allowed, None)
        assert _verdict(land, gap, law, sizes, (), True, allowed)[0] == "undetermined"


def test_an_axis_that_a_preset_says_nothing_of_has_raw_coordinates():
    """Under muP the rate is carried over width; over steps it is what it is, and here goes as steps^-0.5."""
    rule, axes = applied("mup-adamw"), (100, 200, 400, 1600)
    assert [rule.carries(SPACE, "lr", axis, [axis]) for axis in ("width", "params", "steps")] == [True, True, False]
    assert preset("mup-sgd").carries(SPACE, "lr", "width", ["width"])  # by what the model does
    assert preset("completedp-adamw").carries(SPACE, "lr", "steps", ["steps"])
    assert not preset("sp-adamw").carries(SPACE, "lr", "width", ["width"])
    assert preset("mup-adamw").carries(SPACE, "lr", "depth", ["params", "depth"])  # whose width depth takes from
    others = SearchSpace({name: Float(0.0, 0.5) for name in ("dropout", "temperature", "beta2", "lr_multiplier")})
    rules = preset("mup-adamw"), applied("mup-adamw")
    held = {name: [rule.carries(others, name, "width", ["width"]) for rule in rules] for name in others}
    assert held == {"dropout": [0, 0], "temperature": [0, 0], "beta2": [1, 1], "lr_multiplier": [0, 1]}
    assert not preset("completedp-adamw").carries(others, "temperature", "tokens", ["tokens"])
    assert not preset("mup-adamw", {"lr": {"width": 0}}).carries(SPACE, "lr", "width", ["width"])  # as its owner says
    *proxies, target = (Scale(steps=n) for n in axes)
    problem = Problem(SPACE, target, tuple(proxies), target, rule, lambda p, s: s["steps"])
    rng, runs = np.random.default_rng(0), []
    for scale in proxies:
        ln_best = math.log(3e-3) - 0.5 * math.log(scale["steps"] / 1600)
        for k in range(9):
            lr = math.exp(ln_best + 0.4 * (k - 4))
            loss = 1 + scale["steps"] ** -0.5 + 0.1 * (math.log(lr) - ln_best) ** 2 + NOISE * rng.standard_normal()
            runs.append(Observation({"lr": lr}, scale, loss, scale["steps"]))
    answer = engine.recommend(problem, runs)
    judged = judge(problem, runs, answer, tolerance=0.5)  # so that copying would be put up with
    assert judged.gaps[-1].within > 0.9
    assert judged.verdict != "transfer"
    assert any("raw ones here, and the optimum moves in them: lr as steps^-0." in r for r in judged.reasons)


def test_two_basins_with_a_wall_between_them_are_told():
    """The valley at 0.05 wins at widths up to 64, the one at 0.0005 from 128 on, by a wall of 0.3."""
    proxies = tuple(Scale(width=w) for w in (32, 64, 128, 256))
    problem = Problem(SPACE, TARGET, proxies, TARGET, applied("mup-adamw"), lambda p, s: s["width"] ** 2)
    rng = np.random.default_rng(0)
    observations = []
    for scale in proxies:
        shift = 0.15 * math.log2(scale["width"] / 90)
        for lr in np.geomspace(1.2e-4, 9e-2, 13):
            away = [math.log(lr / best) / 1.2 for best in (5e-2, 5e-4)]
            valleys = [-0.3 * math.exp(-(away[0] ** 2)), -(0.3 + shift) * math.exp(-(away[1] ** 2))]
            loss = 1 + scale["width"] ** -0.5 + sum(valleys) + NOISE * rng.standard_normal()
            observations.append(Observation({"lr": float(lr)}, scale, loss, 1.0))
    _, judged = told(problem, observations)
    assert judged.verdict == "undetermined"
    assert any("the optimum jumps" in reason for reason in judged.reasons)


def test_what_the_best_small_setting_lost_is_measured_where_it_was_run():
    """Noise-free, on one grid at all scales, optimum as width^-0.5: the grid's own losses, by hand."""
    widths, rates = (32, 64, 128, 512), np.exp(np.linspace(math.log(2e-4), math.log(5e-2), 11))

    def risk(lr, width):
        return 1 + width**-0.5 + 0.1 * (math.log(lr / 3e-3) + 0.5 * math.log(width / 512)) ** 2

    problem = replace(study()[0], parametrization=preset("none"))
    runs = [
        Observation({"lr": float(lr)}, Scale(width=w), risk(lr, w) + NOISE * sign, 1.0)
        for w in widths
        for lr in rates
        for sign in (-1, 1)
    ]
    _, judged = told(problem, runs)
    at_target = [risk(lr, 512) for lr in rates]
    for gap in judged.gaps:
        copied = at_target[int(np.argmin([risk(lr, gap.scale["width"]) for lr in rates]))]
        assert gap.measured == pytest.approx(copied - min(at_target))
    assert any(reason.startswith("measured: the best run of width 32") for reason in judged.reasons)
    diverged = [replace(run, loss=math.inf) if run.scale == TARGET and run.params["lr"] > 4e-3 else run for run in runs]
    _, worst = told(problem, diverged)
    assert worst.gaps[0].measured == math.inf
    _, unmeasured = told(problem, [run for run in runs if run.scale != TARGET])
    assert [gap.measured for gap in unmeasured.gaps] == [None] * 3
