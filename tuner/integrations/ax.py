"""A generation node of Ax that tunes at small scales for a large one: the experiment is the record, and all the state.

    node = TransferNode(target={"width": 4096}, parametrization="mup-adamw")
    client.set_generation_strategy(GenerationStrategy(nodes=[node]))
    for index, params in client.get_next_trials(max_trials=2).items():
        client.complete_trial(index, raw_data={"loss": ..., "cost": ...})
    node.recommend(client).params                            # at width 4096

Needs the extra `ax`. A completed trial is a run, diverged where its value is infinite; one that was stopped early is a
run that diverged; one that failed or was abandoned is not made again; one that runs is pending. `fixed_parameters` are
kept. A node is saved and loaded with its strategy, once this module is imported.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ax.core.experiment import Experiment
from ax.core.parameter import ChoiceParameter, FixedParameter, Parameter, ParameterType, RangeParameter
from ax.core.trial_status import TrialStatus
from ax.generation_strategy.external_generation_node import ExternalGenerationNode
from ax.storage.json_store.registry import CORE_DECODER_REGISTRY, CORE_ENCODER_REGISTRY
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tuner.errors import BadInput
from tuner.integrations.asked import Asked, Cost
from tuner.integrations.told import Run, Told
from tuner.trial import Recommendation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ax.api.client import Client
    from ax.core.data import Data

FINISHED = (TrialStatus.COMPLETED, TrialStatus.EARLY_STOPPED)
BROKEN = (TrialStatus.FAILED, TrialStatus.ABANDONED)
SAVED = 10  # decimals of a metric that Ax keeps in its JSON: more would be another record once it is loaded


class TransferNode(ExternalGenerationNode):
    """Proposes small runs that teach most about the optimum of a large one, per unit of cost.

    Args:
        target: axis -> its value at the scale the answer is for; the parameters of these names are the scale. None: an
            experiment of one scale.
        parametrization, base, roles: as of `tuner.integrations.optuna.TransferSampler`.
        cost: what a run cost: the name of a metric that every completed trial reports, or scale -> cost (a node with
            one cannot be saved).
        seed: proposals depend on it and on the experiment alone.

    Raises:
        BadInput (a ValueError): of what is given here; in use, of an axis that is no parameter, a cost that is missing
            or not above zero, more than one objective.
    """

    def __init__(
        self,
        target: Mapping[str, float] | None = None,
        parametrization: str = "none",
        cost: Cost = "cost",
        base: Mapping[str, float] | None = None,
        roles: Mapping[str, str] | None = None,
        seed: int = 0,
        name: str = "Transfer",
    ) -> None:
        super().__init__(name=name, should_deduplicate=False)  # replicates teach too
        self._asked, self._seed = Asked.of(target, parametrization, cost, base, roles), seed
        self._given = {
            "target": target and dict(target),
            "parametrization": parametrization,
            "cost": cost,
            "base": base and dict(base),
            "roles": roles and dict(roles),
            "seed": seed,
            "name": name,
        }
        self._fixed: dict[str, Any] = {}

    def update_generator_state(self, experiment: Experiment, data: Data) -> None:
        """Read the experiment, once for the candidates that follow."""
        space = {name: _distribution(p) for name, p in experiment.search_space.parameters.items()}
        runs, self._broken = self._read(experiment, data)
        self._told = Told(self._asked, space, runs, self._seed)

    def get_next_candidate(self, pending_parameters: list[dict[str, Any]]) -> dict[str, Any]:
        """A run, of all the experiment's parameters."""
        found = self._told.following([*self._broken, *pending_parameters])
        return {name: self._fixed.get(name, value) for name, value in found.items()}

    def recommend(self, client: Client) -> Recommendation:
        """The best hyperparameters at the target, raw, with what is known of them, and whether transfer holds.

        Of an objective that is maximised, losses are its values with the other sign.

        Raises:
            BadInput: no finished trial with a finite value.
        """
        experiment = client._experiment
        self.update_generator_state(experiment, experiment.lookup_data())
        return self._told.answer()

    def _gen(self, experiment: Experiment, *args: Any, **kwargs: Any) -> Any:
        """Ax' own leaves out what is to be fixed."""
        features = kwargs.pop("fixed_features", None)
        self._fixed = dict(features.parameters) if features else {}
        return super()._gen(experiment, *args, **kwargs)

    def _read(self, experiment: Experiment, data: Data) -> tuple[list[Run], list[dict[str, Any]]]:
        """Every run; parameters of those that broke."""
        config = experiment.optimization_config
        if config is None:
            raise BadInput("objective: the experiment has none; configure its optimization")
        objective = config.objective
        if len(objective.metric_names) != 1:
            raise BadInput(f"objective: one metric is needed, got {', '.join(objective.metric_names)}; choose one")
        [metric], sign = objective.metric_names, 1.0 if objective.minimize else -1.0
        told: dict[tuple[str, str], float] = {}
        for row in data.df.itertuples():
            told[row.arm_name, row.metric_name] = float(row.mean)
        runs, broken = [], []
        for trial in experiment.trials.values():
            for arm in trial.arms:
                if trial.status in BROKEN:
                    broken.append(arm.parameters)
                elif trial.status in FINISHED:
                    complete = trial.status == TrialStatus.COMPLETED
                    value = round(sign * told.get((arm.name, metric), math.nan), SAVED) if complete else math.inf
                    cost = told.get((arm.name, str(self._asked.cost))) if complete else None
                    runs.append(Run(arm.parameters, value if math.isfinite(value) else math.inf, cost))
        return runs, broken


def _distribution(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, FixedParameter):
        return CategoricalDistribution([parameter.value])
    if isinstance(parameter, ChoiceParameter):
        return CategoricalDistribution(parameter.values)
    assert isinstance(parameter, RangeParameter)
    if parameter.parameter_type == ParameterType.INT:
        return IntDistribution(int(parameter.lower), int(parameter.upper), log=parameter.log_scale)
    return FloatDistribution(float(parameter.lower), float(parameter.upper), log=parameter.log_scale)


def _saved(node: TransferNode) -> dict[str, Any]:
    if callable(node._given["cost"]):
        raise BadInput("cost: a node whose cost is a function cannot be saved; name a metric instead")
    return {"__type": "TransferNode", **node._given}


CORE_ENCODER_REGISTRY[TransferNode] = _saved
CORE_DECODER_REGISTRY["TransferNode"] = TransferNode
