"""The frozen records that pass between the rooms: Trial -> Result -> Observation -> Recommendation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tuner.errors import BadInput
from tuner.scale import Scale
from tuner.space import Params, Value

EVIDENCE = ("pass", "fail", "undetermined")
LEVEL = 0.9  # of an interval, unless said: wrong one time in ten where the surrogate is calibrated
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


@dataclass(frozen=True)
class Trial:
    """One training run to make: raw hyperparameters at a scale, with a seed."""

    number: int
    params: Params
    scale: Scale
    seed: int


def trial_seed(seed: int, number: int) -> int:
    """The seed of a trial, below 2^31: of a study's seed and the trial's number."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


@dataclass(frozen=True)
class Result:
    """What a training run returned.

    Args:
        loss: value to minimise; NaN or infinite: the training diverged.
        cost: of this run, in the study's unit; None: the study computes it.
        seconds: wall-clock time of the training.
    """

    loss: float
    cost: float | None = None
    seconds: float | None = None

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.loss)


@dataclass(frozen=True)
class Failure:
    """A run that broke for reasons that are not the training's: an exception, a killed process, no memory."""

    error: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Observation:
    """A finished run as the engine sees it: hyperparameters in base coordinates.

    Args:
        loss: infinite when the run diverged.
        cost: in the study's unit, above zero.
    """

    params: Params
    scale: Scale
    loss: float
    cost: float

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.loss)


@dataclass(frozen=True)
class Proposal:
    """A run worth making: hyperparameters in base coordinates, at a scale."""

    params: Params
    scale: Scale


@dataclass(frozen=True)
class Evidence:
    """What something measured beside the runs says of transfer: the coordinate check, `tuner.dynamics`, or a person.

    Args:
        name: of what was measured.
        verdict: "pass", "undetermined", or "fail": then nothing that the runs say of transfer is certain.
        reason: with its number.

    Raises:
        BadInput: another verdict.
    """

    name: str
    verdict: str
    reason: str

    def __post_init__(self) -> None:
        if self.verdict not in EVIDENCE:
            raise BadInput(f"evidence: must be one of {', '.join(EVIDENCE)}, got {self.verdict!r}; correct the word")

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}; {self.reason}"


@dataclass(frozen=True)
class Recommendation:
    """The answer at the target scale; hyperparameters are raw there.

    Args:
        params: the hyperparameters to train with.
        interval: central 90 % of the posterior of the optimum's location: (low, high), or, of a categorical, the
            choices that hold 90 %. Always contains `params`.
        loss: posterior mean of the noise-free loss at `params`.
        loss_sd: its standard deviation.
        expected_regret: expected loss at `params` minus the expected smallest loss, in loss units.
        noise: standard deviation of one run there, in loss units.
        drift: d ln(raw optimum) / d ln(axis), per hyperparameter and axis: (mean, low, high) of its 90 % interval.
        verdict: of `tuner.transfer`: "transfer", "corrected", "direct" or "undetermined".
        reasons: why, and what else is to be known of the answer.
    """

    params: Params
    interval: Mapping[str, tuple[Value, ...]]
    loss: float
    loss_sd: float
    expected_regret: float
    noise: float
    drift: Mapping[str, Mapping[str, tuple[float, float, float]]] = field(default_factory=dict)
    verdict: str = "undetermined"
    reasons: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The fields of the `--json` contract."""
        return {
            "recommendation": dict(self.params),
            "interval": {name: list(bounds) for name, bounds in self.interval.items()},
            "loss": {"mean": self.loss, "sd": self.loss_sd},
            "expected_regret": self.expected_regret,
            "noise": self.noise,
            "drift": {name: {a: list(d) for a, d in axes.items()} for name, axes in self.drift.items()},
            "verdict": self.verdict,
            "reasons": list(self.reasons),
        }
