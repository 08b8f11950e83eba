"""Ax below the target, by the one path it has there: BoTorch's qMultiFidelityKnowledgeGradient over the model Ax fits.

Its default strategy breaks on an experiment with a fidelity, so the acquisition is named. Ax has one fidelity: however
many axes scale has, it is told the logarithm of what a run costs, 0 at the cheapest proxy and 1 at the target, and two
scales that cost the same are one to it. Its cost is a line in the fidelity, here through the cheapest and the dearest
proxy, between which it chooses. Its optimiser of this acquisition takes neither integers nor choices, so it is told
places in the unit cube. What Ax calls best is one of the runs; here it is where its model is best at the target.

Needs the extra `ax`. The experiment is made anew from the record for every proposal.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from tuner.errors import BadInput
from tuner.methods.mfkg import FANTASIES, RESTARTS, SAMPLES, STEPS, AcrossScales
from tuner.problem import Problem
from tuner.scale import Scale


@dataclass(frozen=True)
class AxKnowledgeGradient(AcrossScales):
    """With 16 fantasies, 4 restarts of 64 samples: fewer than the defaults, so that a proposal takes seconds."""

    def __post_init__(self) -> None:
        if find_spec("ax") is None:  # said before the first runs, which need none
            raise BadInput("methods: 'ax-mfkg' needs ax-platform; install transfer-tuner[ax]")

    def heights(self, problem: Problem, scales: Sequence[Scale]) -> Tensor:
        logs = _costs(problem, [*scales, problem.target]).log()
        return (logs[:-1] / logs[-1])[:, None]

    def model(self, problem: Problem, places: Tensor, losses: Tensor) -> Any:
        return self._adapter(problem, places, losses).generator.surrogate.model

    def liked(self, problem: Problem, places: Tensor, losses: Tensor) -> Tensor:
        options = {"num_restarts": RESTARTS, "raw_samples": SAMPLES, "options": {"maxiter": STEPS}}
        asked = self._adapter(problem, places, losses).gen(
            1,
            search_space=_cube(places.shape[1], self._dearest(problem)),
            model_gen_options={"optimizer_kwargs": options},
        )
        params = asked.arms[0].parameters
        return torch.tensor([params[name] for name in _names(places.shape[1])], dtype=torch.float64)

    def _dearest(self, problem: Problem) -> float:
        """Height of the dearest proxy; 1 where all cost the same."""
        return float(self.heights(problem, problem.proxies).max()) or 1.0

    def _adapter(self, problem: Problem, places: Tensor, losses: Tensor) -> Any:
        """What Ax calls a fitted model of an experiment."""
        from ax.adapter.registry import Generators
        from ax.api.client import Client
        from ax.core.experiment import Experiment
        from ax.utils.common.logger import set_ax_logger_levels
        from botorch.acquisition.knowledge_gradient import qMultiFidelityKnowledgeGradient

        set_ax_logger_levels(logging.ERROR)  # a line a trial
        experiment, client = Experiment(search_space=_cube(places.shape[1], 1.0)), Client()
        client.set_experiment(experiment)
        client.configure_optimization(objective="score")
        for place, loss in zip(places.tolist(), losses.tolist(), strict=True):
            arm = dict(zip(_names(len(place)), place, strict=True))
            client.complete_trial(client.attach_trial(arm), raw_data={"score": -loss})
        slope = float(_costs(problem, problem.proxies).max() - 1) / self._dearest(problem)
        return Generators.BOTORCH_MODULAR(
            experiment=experiment,
            data=experiment.lookup_data(),
            botorch_acqf_class=qMultiFidelityKnowledgeGradient,
            botorch_acqf_options={
                "num_fantasies": FANTASIES,
                "cost_intercept": 1.0,
                "fidelity_weights": {len(problem.space): slope},
            },
        )


def _costs(problem: Problem, scales: Sequence[Scale]) -> Tensor:
    """Of a run at each scale (n,), in runs of the cheapest proxy."""
    costs = [problem.run_cost(scale) for scale in [problem.cheapest, *scales]]
    return torch.tensor(costs[1:], dtype=torch.float64) / costs[0]


def _names(size: int) -> list[str]:
    return [f"x{j}" for j in range(size)]


def _cube(size: int, highest: float) -> Any:
    """Ax's search space: hyperparameters in the unit cube, and the fidelity up to `highest`."""
    from ax.core.parameter import ParameterType, RangeParameter
    from ax.core.search_space import SearchSpace

    *free, fidelity = _names(size)
    cube = [RangeParameter(name, ParameterType.FLOAT, 0.0, 1.0) for name in free]
    height = RangeParameter(fidelity, ParameterType.FLOAT, 0.0, highest, is_fidelity=True, target_value=1.0)
    return SearchSpace([*cube, height])
