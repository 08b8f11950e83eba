"""A callback for the Trainer of Hugging Face: an objective of a study is a Trainer and two lines.

    watch = TrialCallback()
    optimizer = torch.optim.AdamW(plan.param_groups(model, lr=params["lr"]))     # a scheduler keeps the groups' ratios
    Trainer(model, args, train_dataset=..., callbacks=[watch], optimizers=(optimizer, None)).train()
    return watch.result()

Needs the extra `transformers`. The Trainer's own count of FLOPs, 6 x tokens x parameters without embeddings, is no cost
to compare scales by: a readout tied to its embedding is left out, and most of what a small language model multiplies
is its readout; so is attention. It does say how large a batch is, and serves to go from one step to the run.
"""

from __future__ import annotations

import math
from typing import Any

from tuner.errors import BadInput
from tuner.integrations.training import COUNTED, Watch
from tuner.trial import Result

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise BadInput("integrations: transformers is not installed; install transfer-tuner[transformers]") from error

LOGS = 20  # of a run, at least: what the Trainer does not log, nobody sees


class TrialCallback(TrainerCallback):
    """Ends a run that diverges, and hands back what a run came to.

    The training loss is seen where it is logged. So the Trainer is made to log at least twenty times a run, and to log
    a loss that is not finite as it is (it would show a mean of earlier ones: `logging_nan_inf_filter`). A run ends at
    the first log that shows it to have diverged; with `logging_steps=1`, at the step.

    Args:
        metric: what the run is judged by, to be minimised, as "eval_rouge_loss": its last evaluation, after the
            training too. None: "eval_loss" where it is evaluated, or else the mean training loss of the last tenth of
            the steps.
        above: a training loss above this is a divergence too.

    Raises:
        BadInput: `above` is no number.
    """

    def __init__(self, metric: str | None = None, above: float = math.inf) -> None:
        self._watch = Watch(metric, "eval_loss", above)

    def result(self) -> Result:
        """The loss, infinite of a run that diverged; the FLOPs of training, None of a single step; the seconds.

        A study that charges what it is told has its `cost` in FLOPs too (`tuner.integrations.training.flops`).

        Raises:
            BadInput: the training is not over; `metric` was not evaluated.
        """
        return self._watch.result()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        args.logging_nan_inf_filter = False
        self._watch.begin(args.world_size)
        self._first = self._logged = state.global_step  # above 0 where a checkpoint is resumed
        self._worked = _work(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step + 1 == self._first + COUNTED:
            self._watch.count()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._watch.counted()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        due = step % max(1, state.max_steps // LOGS) == 0 or step == state.max_steps
        control.should_log |= due or step <= self._first + COUNTED  # whose size is the difference of two logs

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._watch.tell(logs["loss"], state.global_step - self._logged)
            self._logged = state.global_step
        elif "train_loss" in logs:  # the mean of a run that is over, steps that were not logged among them
            self._watch.tell(logs["train_loss"], 0)
        self._watch.grow(_work(state) - self._worked)
        self._worked = _work(state)
        self._halt(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._halt(control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._watch.losses:  # `eval_on_start` says nothing of the training
            self._watch.evaluate(metrics or {})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._watch.end()

    def _halt(self, control: TrainerControl) -> None:
        if self._watch.diverged:
            control.should_training_stop = True
            control.should_evaluate = control.should_save = False


def _work(state: TrainerState) -> float:
    """The size of all batches so far; of a model that does not tell the size of a batch, their number."""
    return state.total_flos or state.global_step
