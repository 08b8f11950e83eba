"""Tuning methods behind the engine's two functions, one file each: `propose` and `recommend` over the same problem.

A method is a frozen value. `direct` methods run at the target only; the others run at the proxies. All are charged for
every run they make.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from tuner.errors import BadInput
from tuner.problem import Problem
from tuner.space import Params, suggestion
from tuner.trial import Observation, Proposal, Recommendation


class Method(ABC):
    """`direct`: whether the budget is spent at the target."""

    direct: bool

    @abstractmethod
    def propose(
        self,
        problem: Problem,
        observations: Sequence[Observation],
        pending: Sequence[Proposal],
        *,
        seed: int,
        budget: float,
        count: int,
        among: Sequence[Proposal] | None = None,
    ) -> list[Proposal]:
        """The next runs, base coordinates, of one scale, within the budget; none when it is spent.

        Of `among`, where only some runs can be made.
        """

    @abstractmethod
    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Params:
        """What the method would train with, raw at the target. Raises BadInput while every run diverged."""

    def known(
        self, problem: Problem, observations: Sequence[Observation], *, seed: int, level: float
    ) -> Recommendation | None:
        """The recommendation with all that is known of it, intervals at `level`; None where nothing more is."""
        return None


_HOME: dict[str, tuple[str, dict[str, Any]]] = {
    "transfer": ("transfer:Transfer", {}),
    "optuna-tpe": ("direct:Direct", {"sampler": "tpe"}),
    "optuna-gp": ("direct:Direct", {"sampler": "gp"}),
    "ax": ("ax:Ax", {}),
    "random": ("direct:Direct", {"sampler": "random"}),
    "copy": ("copy:Copy", {"raw": False}),
    "copy-raw": ("copy:Copy", {"raw": True}),
    "copy-smallest": ("copy:Copy", {"raw": False}),
    "argmin-law": ("law:ArgminLaw", {}),
    "asha": ("asha:Asha", {}),
    "carbs": ("carbs:Carbs", {}),
    "botorch-mfkg": ("mfkg:KnowledgeGradient", {}),
    "ax-mfkg": ("ax_mfkg:AxKnowledgeGradient", {}),
}


def copies(name: str) -> bool:
    """Whether a method searches one proxy, which whoever compares must choose."""
    return name in ("copy", "copy-raw")


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
