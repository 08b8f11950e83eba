"""Who looks on while a study runs: called by the coordinator with the study, after each change of the record."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tuner.objective import one_line

if TYPE_CHECKING:
    from tuner.study import Study

Callback = Callable[["Study"], None]


class Callbacks:
    """Several callbacks as one; one that breaks is warned of and told nothing more, for a study costs money."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = list(callbacks)

    def __call__(self, study: Study) -> None:
        for callback in list(self._callbacks):
            try:
                callback(study)
            except Exception as error:
                self._callbacks.remove(callback)
                name = getattr(callback, "__name__", type(callback).__name__)
                warnings.warn(f"callback {name} broke ({one_line(error)}); the study goes on without it", stacklevel=2)
