"""Claims about the first guess of law and bowl: it finds them where they are what they are assumed to be."""

import math

import pytest
import torch

from tuner.surrogate.fit import climb, starts
from tuner.surrogate.frame import DTYPE, Data, Frame
from tuner.surrogate.prior import Prior
from tuner.surrogate.regression import regression

REACH = math.log(1 / 32)


def runs(count, noise, seed=0, categories=0):
    """Losses in units: 0.5 at the target, 12 more at the reach, as n^-1; a bowl of curvatures 300 and 90; noise."""
    drawn = torch.Generator().manual_seed(seed)
    d = 2 + (categories > 0)
    x = torch.rand(count, d, generator=drawn, dtype=DTYPE)
    logs = REACH * torch.tensor([1.0, 1.0, 0.6, 0.4], dtype=DTYPE)[torch.arange(count) % 4]
    law = 0.5 + 12 * torch.expm1(-logs) / math.expm1(-REACH)
    bowl = 150 * (x[:, 0] - 0.4).square() + 45 * (x[:, 1] - 0.7).square()
    losses = law + bowl + noise * torch.randn(count, generator=drawn, dtype=DTYPE)
    zeros, choices = torch.zeros(d, 1, dtype=DTYPE), torch.tensor([0, 0] + [3] * (categories > 0))
    reach, endless = (torch.tensor([v], dtype=DTYPE) for v in (REACH, 0.1))
    frame = Frame(choices, reach, zeros, zeros + 0.02, endless)
    return frame, Data(torch.cat([x, logs[:, None]], 1), losses, torch.zeros(count, dtype=torch.bool), 0.0, 1.0, 20.0)


@pytest.mark.parametrize("categories", [0, 3])
def test_law_and_bowl_without_noise_are_found_exactly(categories):
    found = regression(*runs(60, 0.0, categories=categories))
    assert float(found["level"]) == pytest.approx(0.5, abs=1e-6)
    assert found["rise"].tolist() == pytest.approx([12], abs=1e-6)
    assert found["alpha"].tolist() == [1.0]
    assert found["curvature"][:2].tolist() == pytest.approx([300, 90], abs=1e-6)
    assert found["bottom"][:2].tolist() == pytest.approx([0.4, 0.7], abs=1e-9)
    assert float(found["noise"]) == 0.02  # the least it says


def test_the_noise_is_that_of_the_lower_part_and_what_diverged_is_left_out():
    frame, data = runs(400, 0.4)
    data.losses[::7], data.diverged[::7] = 1e3, True
    found = regression(frame, data)
    assert 0.1 < float(found["noise"]) < 0.4  # of the lowest quarter: less than of all
    assert found["bottom"].tolist() == pytest.approx([0.4, 0.7], abs=0.03)


def test_too_few_runs_say_nothing():
    assert regression(*runs(9, 0.1)) is None


@pytest.mark.parametrize("seed", range(3))
def test_many_noisy_runs_are_not_taken_for_a_law_far_below_them(seed):
    """From the other starts alone the climb ends there, with the noise compressed to a tenth."""
    frame, data = runs(160, 0.4, seed)
    around = climb(frame, data, starts(frame, data))
    values = Prior.of(frame, data.spread).unpack(around.mode)
    assert 0.2 < float(values["noise"]) < 0.8
    assert abs(float(values["level"]) - 0.5) < 2
