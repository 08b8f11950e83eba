"""A search algorithm of Ray Tune that tunes at small scales for a large one; what it was told is the record.

    searcher = TransferSearcher({"width": 4096}, "mup-adamw", metric="loss", mode="min")
    space = {"lr": tune.loguniform(1e-4, 1e-1), "width": tune.lograndint(64, 1025)}
    tune_config = tune.TuneConfig(search_alg=searcher, num_samples=60, max_concurrent_trials=4)
    tune.Tuner(train, param_space=space, tune_config=tune_config).fit()  # tune.report({"loss": ..., "cost": ...})
    searcher.recommend().params                                          # at width 4096

Needs the extra `ray`. A trial's last report is its run, diverged where the loss is not finite; one with an error or
without a loss is not made again. Use no scheduler that stops trials: early losses do not rank settings across scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner.errors import BadInput, is_number
from tuner.integrations.asked import Asked, Cost
from tuner.integrations.told import Run, Told, paid
from tuner.trial import Recommendation

try:
    from ray import cloudpickle
    from ray.tune.search import Searcher

    from tuner.integrations.domains import Domains
except ImportError as error:
    raise BadInput(f"ray: Ray Tune is needed, got {error}; pip install 'transfer-tuner[ray]'") from error


class TransferSearcher(Searcher):
    """Proposes small runs that teach most about the optimum of a large one, per unit of cost.

    Args:
        target, parametrization, base, roles: as of `tuner.integrations.optuna.TransferSampler`.
        cost: what a run cost: the name of a metric of its last report ("time_total_s" is Ray's own), or scale -> cost.
        seed: proposals depend on it and on the record alone.
        metric, mode: as of Ray's searchers; `tune.TuneConfig` may say them instead.

    Raises:
        BadInput (a ValueError): of what is given here; in use, of an axis that is no parameter, a parameter that is
            neither a range nor a choice, a loss or cost that is no number.
    """

    def __init__(
        self,
        target: Mapping[str, float] | None = None,
        parametrization: str = "none",
        cost: Cost = "cost",
        base: Mapping[str, float] | None = None,
        roles: Mapping[str, str] | None = None,
        seed: int = 0,
        metric: str | None = None,
        mode: str | None = None,
    ) -> None:
        super().__init__()  # what it checks itself it asserts
        self._asked, self._seed = Asked.of(target, parametrization, cost, base, roles), seed
        self._domains, self._metric, self._mode = Domains({}, {}), metric, mode
        self._suggested: dict[str, dict[str, Any]] = {}  # trial -> its parameters
        self._ended: dict[str, Run | None] = {}  # trial -> its run; None: it broke

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Take Ray's parameter space and objective."""
        had = self._domains, self._metric, self._mode
        found = Domains.of(config, self._asked.axes), metric or self._metric, mode or self._mode
        if self._suggested and found != had:
            raise BadInput("param_space: it, metric and mode must stay as the trials had them; restore them")
        self._domains, self._metric, self._mode = found
        _ = self._told.problem  # what cannot be is told before anything runs
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Raw hyperparameters and the scale to run them at; Ray adds its constants."""
        if trial_id not in self._suggested:
            waiting = [params for name, params in self._suggested.items() if self._ended.get(name) is None]
            self._suggested[trial_id] = self._domains.rounded(self._told.following(waiting))
        return dict(self._suggested[trial_id])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take a trial's last report. Raises BadInput of a loss or cost that is no number, and takes nothing."""
        if trial_id not in self._suggested:
            raise BadInput(f"trial: must be one that was suggested here, got {trial_id!r}; tell it to its own searcher")
        told = result if result and not error else {}
        if (loss := told.get(str(self._metric))) is None:
            self._ended.setdefault(trial_id, None)  # what was told once stays
            return
        if not is_number(loss):
            raise BadInput(f"{self._metric}: must be a number, got {loss!r}; report a float")
        signed = (-1.0 if self._mode == "max" else 1.0) * float(loss) if math.isfinite(loss) else math.inf
        run = Run(self._suggested[trial_id], signed, told.get(str(self._asked.cost)))
        paid(self._asked, run)
        self._ended[trial_id] = run

    def recommend(self) -> Recommendation:
        """The best at the target, as `TransferSampler` says it. Raises BadInput where no trial has a finite loss."""
        return self._told.answer()

    def save(self, checkpoint_path: str) -> None:
        """Write the record; Ray calls it."""
        state = self._domains, self._metric, self._mode, self._suggested, self._ended
        Path(checkpoint_path).write_bytes(cloudpickle.dumps(state))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a record; target, cost and seed are those that were given here."""
        state = cloudpickle.loads(Path(checkpoint_path).read_bytes())
        self._domains, self._metric, self._mode, self._suggested, self._ended = state

    @property
    def _told(self) -> Told:
        if not self._domains.space:
            raise BadInput("param_space: something to search is needed, got nothing; give it to tune.Tuner")
        named, which = self._metric, self._mode
        if not isinstance(named, str) or which not in ("min", "max"):
            raise BadInput(f"metric: one is needed, and mode min or max, got {named!r}, {which!r}; give them")
        runs = [run for name in self._suggested if (run := self._ended.get(name)) is not None]
        return Told(self._asked, self._domains.space, runs, self._seed)
