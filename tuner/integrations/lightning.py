"""A callback for the Trainer of Lightning: an objective of a study is a fit and two lines.

    watch = TrialCallback()
    Trainer(max_steps=..., callbacks=[watch]).fit(module, data)
    return watch.result()

Needs the extra `lightning`. The module's `configure_optimizers` steps by the plan's groups, and a scheduler keeps their
ratios: `return torch.optim.AdamW(plan.param_groups(self.model, lr=self.lr))`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tuner.errors import BadInput
from tuner.integrations.training import COUNTED, Watch
from tuner.trial import Result

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise BadInput("integrations: lightning is not installed; install transfer-tuner[lightning]") from error


class TrialCallback(Callback):
    """Ends a run that diverges, at the batch whose loss shows it, and hands back what a run came to.

    Args:
        metric: what the run is judged by, to be minimised, a name that the module logs in validation: its last value.
            None: "val_loss" where it is logged, or else the mean training loss of the last tenth of the batches.
        above: a training loss above this is a divergence too.

    Raises:
        BadInput: `above` is no number.
    """

    def __init__(self, metric: str | None = None, above: float = math.inf) -> None:
        self._watch = Watch(metric, "val_loss", above)

    def result(self) -> Result:
        """The loss, infinite of a run that diverged; the FLOPs of training, None of a single batch; the seconds.

        A study that charges what it is told has its `cost` in FLOPs too (`tuner.integrations.training.flops`).

        Raises:
            BadInput: the training is not over; `metric` was not logged; no loss at all was seen.
        """
        return self._watch.result()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.begin(trainer.world_size)
        self._batches = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batches += 1
        if self._batches == COUNTED:
            self._watch.count()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if pl_module.automatic_optimization:  # by hand, there may be more of the step to come
            self._watch.counted()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._watch.counted()
        self._watch.grow(sum(t.numel() for t in tree_leaves(batch) if isinstance(t, Tensor)) or 1)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return
        if pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches  # by which Lightning has divided it
        self._watch.tell(float(trainer.strategy.reduce(loss.detach(), reduce_op="mean")))
        trainer.should_stop |= self._watch.diverged

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.evaluate({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._watch.counted()
