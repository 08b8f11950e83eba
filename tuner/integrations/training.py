"""A training run as a callback of its loop sees it; what `tuner.integrations.transformers` and `.lightning` share.

- A run diverged where a loss is not finite, or above a bound that its owner gave. Nothing else ends a run before its
  time, for early losses do not rank settings across scales.
- Its loss is that of the last evaluation; of a run without one, the mean training loss of its last tenth.
- Its cost is the FLOPs of forward and backward: counted in its second step, and multiplied by how much larger the whole
  run was. In the first, what is broken breaks, and not every loop tells its callbacks of an exception.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tuner.errors import BadInput, is_number
from tuner.space import suggestion
from tuner.trial import Result

Shape = tuple[int, ...]

COUNTED = 2  # the step whose FLOPs are counted


def _attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


ON_CPU = {  # which torch does not count by itself
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
_open = threading.local()  # counting that an exception left behind, in a loop that does not tell: the next run ends it


def _close() -> bool:
    """End the counting; whether there was any."""
    counting: ExitStack | None = vars(_open).pop("counting", None)
    if counting is not None:
        counting.close()
    return counting is not None


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts what is multiplied inside, where nothing runs compiled: of fused code, not all can be told."""
    mode = FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"), mode:
        warnings.filterwarnings("ignore", ".*when there are global hooks on modules")  # the mode's own
        yield mode


def flops(loss: Callable[[], Tensor]) -> int:
    """FLOPs of computing a loss and its gradient: matrix products, convolutions, attention.

    On the meta device this multiplies nothing, whatever the size: a study's `cost`, in the unit of what the callbacks
    hand back.
    """
    with counting() as mode:
        loss().backward()
    return mode.get_total_flops()


class Watch:
    """What a callback sees of one run.

    Args:
        metric: what the run is judged by; None: `usual`, where that is evaluated.
        usual: what the loop calls the loss of an evaluation.
        above: a training loss above this is a divergence too.

    Raises:
        BadInput: a bound that is no number.
    """

    def __init__(self, metric: str | None, usual: str, above: float) -> None:
        if not is_number(above) or math.isnan(above):
            raise BadInput(f"above: must be a number, got {above!r}; give a loss that no run which learns comes to")
        self.metric, self.usual, self.above = metric, usual, above
        self.begin()

    def begin(self, processes: int = 1) -> None:
        """A new run.

        Args:
            processes: that share its batches, each with a model of its own.
        """
        _close()
        self.processes = processes
        self.diverged = False
        self.losses: list[float] = []  # one a step
        self.evaluated: dict[str, float] = {}  # the last of each
        self.flops = 0  # of the counted step
        self.share = self.work = 0.0  # the size of its batches, and of all so far
        self._started, self._seconds = time.perf_counter(), 0.0

    def count(self) -> None:
        """Start counting, until `counted`."""
        _open.counting = ExitStack()
        self._mode = _open.counting.enter_context(counting())

    def counted(self) -> None:
        """Stop, where it was started."""
        if _close():
            self.flops = self._mode.get_total_flops()

    def grow(self, size: float) -> None:
        """By batches of a size; first after `counted`, by those that were counted."""
        self.work += size
        if self.flops and not self.share:
            self.share = size

    def tell(self, loss: float, steps: int = 1) -> None:
        """The mean training loss of the last steps."""
        self.losses += [loss] * steps
        self.diverged |= not (math.isfinite(loss) and loss <= self.above)

    def evaluate(self, metrics: dict[str, float]) -> None:
        self.evaluated |= metrics

    def end(self) -> None:
        self._seconds = time.perf_counter() - self._started

    def result(self) -> Result:
        """Of a run that is over.

        Raises:
            BadInput: it is not; `metric` was not evaluated; no loss at all was seen.
        """
        if not self._seconds:
            raise BadInput("result: the run is not over; ask for it after the training")
        loss = math.inf if self.diverged else self._loss()
        cost = self.flops * self.processes * self.work / self.share if self.share else None
        return Result(loss if math.isfinite(loss) else math.inf, cost, self._seconds)

    def _loss(self) -> float:
        name = self.metric or self.usual
        if name in self.evaluated:
            return self.evaluated[name]
        if self.metric is not None:
            raise BadInput(f"metric: {name!r} was not evaluated; {suggestion(name, sorted(self.evaluated))}")
        if not self.losses:
            raise BadInput(f"result: no loss was seen; evaluate {name}, or hand the training loss to the loop")
        last = self.losses[-math.ceil(len(self.losses) / 10) :]
        return math.fsum(last) / len(last)
