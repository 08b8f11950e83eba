"""Tuning methods behind the engine's two functions, one file each: `propose` and `recommend` over the same problem.

A method is a frozen value. `direct` methods run at the target only; the others run at the proxies. All are charged for
every run they make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from tuner.errors import BadInput
from tuner.problem import Problem
from tuner.space import Params, Value, suggestion
from tuner.trial import Observation, Proposal


@dataclass(frozen=True)
class Answer:
    """Raw hyperparameters at the target, and their 90 % intervals where the method knows any."""

    params: Params
    interval: Mapping[str, tuple[Value, ...]] | None = None


class Method(Protocol):
    """`direct`: whether the budget is spent at the target."""

    direct: bool

    def propose(
        self,
        problem: Problem,
        observations: Sequence[Observation],
        pending: Sequence[Proposal],
        *,
        seed: int,
        budget: float,
        count: int,
    ) -> list[Proposal]:
        """The next runs, base coordinates, of one scale, within the budget; none when it is spent."""

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Answer:
        """What the method would train with. Raises BadInput while every run diverged."""


_HOME: dict[str, tuple[str, dict[str, Any]]] = {
    "transfer": ("transfer:Transfer", {}),
    "optuna-tpe": ("direct:Direct", {"sampler": "tpe"}),
    "optuna-gp": ("direct:Direct", {"sampler": "gp"}),
    "random": ("direct:Direct", {"sampler": "random"}),
    "copy": ("copy:Copy", {"raw": False}),
    "copy-raw": ("copy:Copy", {"raw": True}),
}


def method(name: str, **chosen: Any) -> Method:
    """A method by name; `chosen` completes it (the proxy of a copy).

    Raises:
        BadInput: no method has that name.
    """
    if name not in _HOME:
        raise BadInput(f"methods: no method is named {name!r}; {suggestion(name, _HOME)}")
    home, args = _HOME[name]
    module, _, attribute = home.partition(":")
    made: Method = getattr(import_module(f"tuner.methods.{module}"), attribute)(**args, **chosen)
    return made
