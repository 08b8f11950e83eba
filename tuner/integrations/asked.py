"""What a study of somebody else's asks, as a problem: which of its parameters are the scale, and which runs it allows.

Parameters are told by Optuna's distributions, which all adapters translate to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tuner.errors import BadInput, is_number
from tuner.parametrization import Parametrization, preset
from tuner.problem import Problem
from tuner.scale import Scale, grid, ladder
from tuner.space import Params, SearchSpace, dimension, suggestion
from tuner.study import priced
from tuner.trial import Proposal

Space = dict[str, BaseDistribution]
Price = Callable[[Params, Scale], float]
Cost = str | Callable[[Scale], float]

ALONE = Scale(scale=1)  # where no axis is named: a study of one scale
RUNGS = 32  # scales that are weighed, at most
ROUNDING = 1e-9  # relative


@dataclass(frozen=True)
class Asked:
    """What the person says of a study.

    Args:
        target: the scale the answer is for; None: a study of one scale.
        rule: how raw values move with scale.
        base: where raw and base values agree; None: the smallest scale that runs may have.
        roles: hyperparameter -> what it is to the parametrization, where its name does not say so.
        cost: scale -> cost, or the name by which a run's is told.
    """

    target: Scale | None
    rule: Parametrization
    base: Scale | None
    roles: Mapping[str, str]
    cost: Cost

    @staticmethod
    def of(
        target: Mapping[str, float] | None,
        parametrization: str,
        cost: Cost,
        base: Mapping[str, float] | None,
        roles: Mapping[str, str] | None,
    ) -> Asked:
        """Raises BadInput of what cannot be."""
        for what, scale in (("target", target), ("base", base)):
            if not (scale is None or isinstance(scale, Mapping)):
                raise BadInput(f"{what}: must map axes to values, got {scale!r}; write for example {{'width': 4096}}")
        if not (isinstance(cost, str) or callable(cost)):
            raise BadInput(f"cost: must be the name it is told by, or scale -> cost, got {cost!r}; correct it")
        scales = (None if scale is None else Scale(scale) for scale in (target, base))
        return Asked(next(scales), preset(parametrization), next(scales), dict(roles or {}), cost)

    @property
    def axes(self) -> tuple[str, ...]:
        return () if self.target is None else tuple(self.target)

    def scale(self, params: Mapping[str, Any]) -> Scale:
        """Of a run's parameters. Raises BadInput where an axis is none of them."""
        self._check_axes(params)
        return Scale({axis: params[axis] for axis in self.axes}) if self.axes else ALONE

    def _check_axes(self, known: Mapping[str, Any]) -> None:
        if missing := [axis for axis in self.axes if axis not in known]:
            raise BadInput(f"target: {missing[0]!r} must be a parameter of every trial; suggest it, or leave it out")

    @property
    def given(self) -> Price | None:
        """The cost, where it is a function. In use it raises BadInput where that breaks, or says nothing above zero."""
        if not callable(self.cost):
            return None
        own = self.cost
        return lambda params, scale: priced(lambda params, scale: own(scale), params, scale)

    def problem(self, space: Space, price: Price) -> Problem:
        """Raises BadInput: a role or an axis that is no parameter; no scale below the target."""
        for name in self.roles:
            if name not in space:
                raise BadInput(f"roles: no hyperparameter {name!r}; {suggestion(name, space)}")
        named = {n: d for n, d in space.items() if n not in self.axes and searchable(d)}
        found = SearchSpace({n: dimension(d, self.roles.get(n)) for n, d in named.items()})
        if self.target is None:
            return Problem(found, ALONE, (ALONE,), ALONE, self.rule, lambda params, scale: 1.0)
        self._check_axes(space)
        most = max(2, int(RUNGS ** (1 / len(self.axes))))
        rungs = grid({axis: rungs_of(axis, space[axis], self.target[axis], most) for axis in self.axes})
        proxies = tuple(scale for scale in rungs if scale != self.target)
        if (known := self.given) is not None:
            proxies = tuple(scale for scale in proxies if known({}, scale) < known({}, self.target))
        if not proxies:
            raise BadInput(
                f"target: a scale that costs less than the target ({self.target}) is needed, the trials' ranges have "
                "none; raise the target, or lower the ranges of its axes in a new study"
            )
        return Problem(found, self.target, proxies, self.base or rungs[0], self.rule, price)

    def proposal(self, problem: Problem, params: Mapping[str, Any]) -> Proposal:
        """A run's raw parameters -> base."""
        scale = self.scale(params)
        return Proposal(problem.to_base({name: params[name] for name in problem.space}, scale), scale)

    def raw(self, problem: Problem, run: Proposal, space: Space) -> dict[str, Any]:
        """A run as the parameters of a trial, those of its scale too; each the nearest value that its range has."""
        told = {**problem.to_raw(run.params, run.scale), **(run.scale if self.axes else {})}
        return {name: inside(told[name], d) for name, d in space.items() if name in told}


def possible(problem: Problem, space: Space) -> Problem:
    """The same with an infinite cost of runs whose raw values the ranges do not allow."""

    def cost(params: Params, scale: Scale) -> float:
        raw = problem.to_raw(params, scale)
        return problem.cost(params, scale) if all(_allows(space[n], v) for n, v in raw.items()) else math.inf

    return replace(problem, cost=cost)


def searchable(d: BaseDistribution) -> bool:
    """Whether the tuner has a name for it: not what has one value, nor choices that are no text, number or boolean."""
    plain = not isinstance(d, CategoricalDistribution) or all(isinstance(c, (str, int, float)) for c in d.choices)
    return plain and not d.single()


def rungs_of(axis: str, d: BaseDistribution, highest: float = math.inf, most: int = RUNGS) -> list[float]:
    """Values that an axis of scale may have up to the target's: a factor of 2 apart or less, but at most `most`."""
    if isinstance(d, CategoricalDistribution):
        if not all(is_number(choice) and choice > 0 for choice in d.choices):  # type: ignore[operator]
            raise BadInput(f"target: choices of {axis!r} must be numbers above zero, got {d.choices}; correct them")
        rungs = sorted(float(choice) for choice in d.choices if choice <= highest)  # type: ignore[arg-type,operator]
    else:
        assert isinstance(d, (FloatDistribution, IntDistribution))
        if d.low <= 0:
            raise BadInput(f"target: {axis!r} must be above zero, got a range from {d.low}; raise it")
        high = min(float(d.high), highest)
        steps = ladder(float(d.low), high) if d.low < high else [float(d.low)] * (d.low <= high)
        rungs = sorted({float(inside(value, d)) for value in steps})
    return [rungs[round(i)] for i in np.linspace(0, len(rungs) - 1, min(most, len(rungs)))]


def inside(value: Any, d: BaseDistribution) -> Any:
    """The nearest value that a distribution has, as Python's own kind of number."""
    if isinstance(d, CategoricalDistribution):
        return next(choice for choice in d.choices if choice == value)  # 64, not 64.0
    assert isinstance(d, (FloatDistribution, IntDistribution))
    if d.step is not None:
        value = d.low + round((float(value) - d.low) / d.step) * d.step
    value = min(max(value, d.low), d.high)
    return round(value) if isinstance(d, IntDistribution) else float(value)


def _allows(d: BaseDistribution, value: Any) -> bool:
    """Whether a raw value lies in a range, but for rounding; and the nearest integer, which it becomes."""
    if isinstance(d, CategoricalDistribution):
        return True
    assert isinstance(d, (FloatDistribution, IntDistribution))
    slack = ROUNDING * max(abs(d.low), abs(d.high)) + (0.5 if isinstance(d, IntDistribution) else 0.0)
    return bool(d.low - slack <= value <= d.high + slack)
