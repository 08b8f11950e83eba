"""Ax at the target, its default strategy: a centre, a Sobol sequence, then BoTorch's noisy expected improvement.

Needs the extra `ax`. The experiment is made anew from the record for every proposal, as Optuna's study is.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuner.errors import BadInput
from tuner.methods.direct import AtOneScale
from tuner.space import Categorical, Dimension, Int, Params, SearchSpace


@dataclass(frozen=True)
class Ax(AtOneScale):
    """With its defaults."""

    def ask(
        self, space: SearchSpace, told: Sequence[tuple[Params, float]], pending: Sequence[Params], seed: int, count: int
    ) -> list[Params]:
        try:
            from ax.api.client import Client
            from ax.utils.common.logger import set_ax_logger_levels
        except ImportError:
            raise BadInput("methods: 'ax' needs ax-platform; install transfer-tuner[ax]") from None
        set_ax_logger_levels(logging.ERROR)  # a line a trial
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own optimisers and storage
            client = Client(random_seed=seed % 2**31)
            client.configure_experiment([_parameter(name, d) for name, d in space.items()])
            client.configure_optimization(objective="-loss")
            # a strategy that begins at the centre never leaves its Sobol sequence on an experiment that has trials
            client.configure_generation_strategy(initialize_with_center=not told and not pending)
            for params, loss in told:
                client.complete_trial(client.attach_trial({**params}), raw_data={"loss": loss})
            for params in pending:
                client.attach_trial({**params})
            return list(client.get_next_trials(max_trials=count).values())


def _parameter(name: str, dimension: Dimension) -> Any:
    from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

    if isinstance(dimension, Categorical):
        choices: Any = list(dimension.choices)
        kind: Any = {bool: "bool", int: "int", float: "float"}.get(type(choices[0]), "str")
        return ChoiceParameterConfig(name, choices, kind, is_ordered=False)
    return RangeParameterConfig(
        name,
        (dimension.low, dimension.high),
        "int" if isinstance(dimension, Int) else "float",
        scaling="log" if dimension.log else "linear",
    )
