"""Claims about the one loss that is too low to be true."""

from dataclasses import replace

import numpy as np
import pytest
from test_engine import PROXIES, SPACE, loss, problem, record

import tuner
from tuner import engine
from tuner.outlier import FEWEST, absurd, borne_out, too_low
from tuner.trial import Observation


def with_slip(runs, which, factor=0.7):
    return [replace(run, loss=factor * run.loss) if i == which else run for i, run in enumerate(runs)]


def test_a_slip_among_neighbours_is_found_left_out_and_told():
    asked = problem(tuner.SearchSpace({name: SPACE[name] for name in ("lr", "batch_size")}))
    runs = record(asked, 60)
    slip = int(np.square(asked.space.encode_all([run.params for run in runs]) - 0.5).sum(1).argmin())
    told = with_slip(runs, slip, -2)
    assert too_low(asked, runs) is None
    assert too_low(asked, told) == slip
    without = engine.recommend(asked, [run for i, run in enumerate(runs) if i != slip])
    answer = engine.recommend(asked, told)
    assert abs(answer.loss - without.loss) < 2 * without.loss_sd
    assert any(f"the loss {told[slip].loss:g} at {told[slip].scale}" in reason for reason in answer.reasons)
    assert not any("slip" in reason for reason in without.reasons)


@pytest.mark.parametrize("count", [14, 30])
def test_noise_is_hardly_ever_a_slip(count):
    rng = np.random.default_rng(0)
    middle = SPACE.decode(np.array([0.5, 0.5, 0.5]))
    doubted = [
        too_low(problem(), [Observation(middle, PROXIES[i % 2], x, 1.0) for i, x in enumerate(noise)]) is not None
        for noise in rng.standard_normal((300, count))
    ]
    assert np.mean(doubted) <= 0.01


def test_the_first_run_that_learns_is_no_slip_unless_its_neighbours_do_not():
    """On a plateau of 2.3: one run of 0.5, far from all others, then close to many."""
    asked, rng = problem(), np.random.default_rng(0)
    plateau = [
        Observation(SPACE.decode([0.1 + 0.3 * u, 0.2, 0.1]), PROXIES[0], 2.3 + 0.001 * e, 1.0)
        for u, e in zip(rng.random(20), rng.standard_normal(20), strict=True)
    ]
    learns = Observation(SPACE.decode([0.8, 0.8, 0.1]), PROXIES[0], 0.5, 1.0)
    assert too_low(asked, [*plateau, learns]) is None
    among = replace(learns, params=SPACE.decode([0.25, 0.2, 0.1]))
    assert too_low(asked, [*plateau, among]) == 20
    other_choice = replace(among, params={**among.params, "schedule": "constant"})
    assert too_low(asked, [*plateau, other_choice]) is None


def test_a_dearer_scale_may_be_far_better_than_its_few_other_runs():
    """Forty runs near the optimum of a cheap scale, six anywhere at a dearer one: what a search makes."""
    asked = problem(tuner.SearchSpace({name: SPACE[name] for name in ("lr", "batch_size")}))
    for seed in range(50):
        rng = np.random.default_rng(seed)
        places = [*np.clip(0.5 + 0.05 * rng.standard_normal((40, 2)), 0, 1), *rng.random((6, 2))]
        scales = [PROXIES[0]] * 40 + [PROXIES[1]] * 6
        params = [asked.space.decode(place) for place in places]
        losses = [
            loss(asked.to_raw(p, s), s) + 0.002 * rng.standard_normal() for p, s in zip(params, scales, strict=True)
        ]
        told = [Observation(*run, 1.0) for run in zip(params, scales, losses, strict=True)]
        assert too_low(asked, told) is None


def test_a_tie_that_is_broken_by_a_little_is_no_slip():
    middle = SPACE.decode(np.array([0.5, 0.5, 0.5]))
    errors = [0.25] * 19 + [0.249]
    assert too_low(problem(), [Observation(middle, PROXIES[0], error, 1.0) for error in errors]) is None


def test_nothing_is_said_of_few_runs_or_of_diverged_ones():
    asked, middle = problem(), SPACE.decode(np.array([0.5, 0.5, 0.5]))
    runs = [Observation(middle, PROXIES[0], 2.3 + 0.001 * i, 1.0) for i in range(FEWEST - 1)]
    slip = Observation(middle, PROXIES[0], 0.5, 1.0)
    assert too_low(asked, [*runs, slip]) == FEWEST - 1
    assert too_low(asked, [*runs[1:], slip]) is None
    assert too_low(asked, [replace(run, loss=float("inf")) for run in runs]) is None
    assert too_low(asked, []) is None


def runs_of(*scales):
    """At the middle of the space, losses a scale."""
    middle, widths = SPACE.decode(np.array([0.5, 0.5, 0.5])), (32, 64, 128, 256)
    return [
        Observation(middle, tuner.Scale(width=width), loss, 1.0)
        for width, losses in zip(widths, scales, strict=False)
        for loss in losses
    ]


NEARLY = 2 + 1e-4 * np.arange(9)


@pytest.mark.parametrize(
    ("scales", "counted"),
    [
        ([1 + 0.1 * np.arange(10), [1e12]], 1),
        ([1 + 0.1 * np.arange(10), [3.0] * 10], 0),  # half on a plateau, where nothing is learned
        ([[4.0] * 3, NEARLY, NEARLY], 0),  # a scale far from many runs that hardly differ
        ([np.array([4.0] * 3) - 2, NEARLY - 2, NEARLY - 1], 0),  # wherever nothing of a loss is
        ([NEARLY, NEARLY - 0.1, NEARLY - 0.2, [1e6] * 9], 9),  # a whole scale
        ([[0.0] * 9, [0.1] * 3], 0),  # most are perfect
        ([10 ** -np.linspace(0, 4, 30), [50.0]], 0),  # told apart by their logarithm
        ([[2.0]], 0),
        ([], 0),
    ],
)
def test_what_is_beyond_all_reason_counts_as_diverged_and_no_scale_for_being_cheap(scales, counted):
    runs = runs_of(*scales)
    assert sum(run.loss > absurd(runs) for run in runs) == counted
    assert [run.diverged for run in borne_out(problem(), runs)] == [run.loss > absurd(runs) for run in runs]


def test_an_answer_says_which_losses_count_as_diverged():
    asked = problem(tuner.SearchSpace({name: SPACE[name] for name in ("lr", "batch_size")}))
    runs = record(asked, 20)
    bent = [replace(run, loss=1e9) if i in (3, 7) else run for i, run in enumerate(runs)]
    broken = [replace(run, loss=float("inf")) if i in (3, 7) else run for i, run in enumerate(runs)]
    told, expected = engine.recommend(asked, bent), engine.recommend(asked, broken)
    assert told.params == expected.params
    assert [reason for reason in told.reasons if reason not in expected.reasons] == [
        f"losses above {absurd(bent):.3g}, far beyond what the others differ by, count as diverged: here 2"
    ]
