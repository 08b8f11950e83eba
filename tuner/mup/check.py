"""The coordinate check: is a parametrization right? Measured on models of several sizes, trained for a few steps.

Under a right parametrization everything that training moves is moved by as much at every width (Yang et al. 2022,
Tensor Programs V, section 8 and appendix D.1): slopes of ln(size) in ln(width) are zero. Judged are

| quantity   | of            | power    | but                                                                  |
|------------|---------------|----------|----------------------------------------------------------------------|
| size       | an activation | 0        | what has no more entries at a larger width (a readout) may fall      |
| change     | an activation | 0        | since initialisation                                                 |
| both       | logits        | <= 0     | <= -1/2 at the start where heads grow: q and k are not aligned yet   |
| effect     | a tensor      | 0        | see `tuner.mup.probe`; one that does next to nothing is left out     |
| decay      | a tensor      | 0        | lr x weight decay in the optimizer's groups: no few steps show it    |
| loss       | the model     | <= 0     | wider is better: a rising loss makes a pass undetermined             |

Where depth is varied, only what is outside the blocks, and what a block gives out, is judged along it: a branch has a
right to shrink (CompleteP).

A wrong power of width is wrong by 1/2 at least, and narrow networks are not yet their limit: a slope fails if its 90 %
interval lies more than a quarter off what it may be, and passes if it is within a quarter itself and its interval
leaves out a half. The verdict is `fail` if one fails, `pass` if all pass, else `undetermined`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from tuner.errors import BadInput
from tuner.mup.growth import DEPTH, pattern
from tuner.mup.plan import Plan, plan
from tuner.mup.probe import LOGITS, effects, look, size
from tuner.mup.roles import roles
from tuner.objective import named, one_line
from tuner.problem import Problem
from tuner.scale import Scale

WRONG = 0.5  # the smallest power that is wrong
TOLERANCE = WRONG / 2
LEVEL = 0.9  # of the intervals of slopes
NEGLIGIBLE = 1e-3  # an effect below this share of its module's output at the smallest scale says nothing
ROUNDING = 1e-5  # a gradient below this share of the largest is rounding (a key's bias): Adam makes steps of noise
STEPS, SEEDS = 4, 4
RATES = tuple(2.0**-k for k in range(1, 15))
HELD_OUT = 1_000_003  # the seed of the batch that is looked at, beside those of training
WIDTHS = tuple(Scale(width=width) for width in (64, 128, 256, 512, 1024))
WEIGHT_DECAY = 0.1  # at the smallest scale, of a plan's optimizer


class Family(Protocol):
    """A model family; `optimizer(model, scale, lr)` and `scales` are optional."""

    def build(self, scale: Scale) -> nn.Module: ...

    def loss(self, model: nn.Module, seed: int) -> Tensor: ...


@dataclass(frozen=True)
class Measured:
    """One number of one training run: `value` of a quantity, of a module or tensor (of so many entries), at a scale."""

    name: str
    quantity: str
    scale: Scale
    value: float
    entries: int = 0  # of the activation; of logits, of a query


@dataclass(frozen=True)
class Slope:
    """d ln(value) / d ln(axis), with its 90 % interval; what it may be, lowest to highest; and what that says."""

    name: str
    quantity: str
    axis: str
    slope: float
    low: float
    high: float
    lowest: float
    highest: float

    @property
    def wrong(self) -> float:
        """How far it is from what it may be."""
        return max(self.slope - self.highest, self.lowest - self.slope, 0.0)

    @property
    def verdict(self) -> str:
        if self.quantity == "loss":
            return "undetermined" if self.low > 0 else "pass"
        if self.low > self.highest + TOLERANCE or self.high < self.lowest - TOLERANCE:
            return "fail"
        settled = self.high < self.highest + WRONG and self.low > self.lowest - WRONG
        return "pass" if self.wrong <= TOLERANCE and settled else "undetermined"

    def __str__(self) -> str:
        ends = f"{self.low:.2f} .. {self.high:.2f}"
        must = f" and must fall as {self.axis}^{self.highest:g}" if self.highest < 0 else ""
        return f"{self.quantity} of {self.name} goes as {self.axis}^{self.slope:.2f} ({ends}){must}"


@dataclass(frozen=True)
class Coordinates:
    """The answer of a coordinate check.

    Args:
        verdict: pass, fail or undetermined. reasons: why.
        worst: the first slope that fails, in the order in which the model computes; else the one farthest from zero.
        slopes: all that were judged. measured: what they were fitted to. lr: the learning rate of the runs.
    """

    verdict: str
    reasons: tuple[str, ...]
    worst: Slope
    slopes: tuple[Slope, ...]
    measured: tuple[Measured, ...]
    lr: float

    def as_json(self) -> dict[str, Any]:
        worst = self.worst
        told = {"name": worst.name, "quantity": worst.quantity, "slope": _finite(worst.slope)}
        interval = [_finite(worst.low), _finite(worst.high)]
        return {"verdict": self.verdict, "worst": {**told, "interval": interval}, "reasons": list(self.reasons)}


def family_named(call: str) -> Family:
    """The model family that `module:attribute` names; a class is instantiated.

    Raises:
        BadInput: what `tuner.objective.named` raises; a family that cannot be made, or has no `build` or no `loss`.
    """
    found = named(call, [os.getcwd()])
    try:
        family: Family = found() if isinstance(found, type) else found
    except Exception as error:
        raise BadInput(f"check: {call} cannot be made ({one_line(error)}); give it defaults") from error
    for method in ("build", "loss"):
        if not callable(getattr(family, method, None)):
            raise BadInput(f"check: {call} has no {method}; a family has build(scale) and loss(model, seed)")
    return family


def claim_checked(objective: Any, problem: Problem) -> Coordinates | None:
    """The check of an objective that says which parametrization it applies, from a study's narrowest proxy on.

    None where there is nothing to hold it to: it cannot be built, or claims no limit in width (as sp-* do not), or the
    study spans fewer than three doublings of the width.
    """
    can = all(callable(getattr(objective, method, None)) for method in ("build", "loss", "optimizer"))
    claims = getattr(objective, "parametrization", None) is not None and "width" in problem.parametrization.limits
    if not (can and claims and "width" in problem.target):
        return None
    narrowest = min(proxy["width"] for proxy in problem.proxies)
    widths = [width for k in range(5) if (width := narrowest * 2**k) <= problem.target["width"]]
    scales = [Scale({**problem.target, "width": width}) for width in widths]
    return coordinate_check(objective, scales=scales) if len(scales) >= 3 else None


def coordinate_check(
    family: Family,
    parametrization: str = "mup",
    optimizer: str = "adamw",
    scales: Sequence[Scale] | None = None,
    seeds: Iterable[int] = range(SEEDS),
    steps: int = STEPS,
    lr: float | None = None,
    **options: Any,
) -> Coordinates:
    """Train a family at several scales for a few steps, and judge how what happens depends on scale.

    A family that has `optimizer(model, scale, lr)` is judged as it stands; to any other the plan of `parametrization`
    and `optimizer` is applied, from the smallest scale, and that is judged.

    Args:
        scales: at least three; default: the family's `scales`, else widths 64 to 1024.
        lr: at the smallest scale; default: the largest of a scan that gets half of the best one's progress there.
        options: of `tuner.mup.plan`, and `given` of `tuner.mup.roles`.

    Raises:
        BadInput: fewer than three scales; a loss that is no finite scalar; what roles and plan refuse.
    """
    scales = sorted(scales or getattr(family, "scales", None) or WIDTHS, key=lambda scale: sorted(scale.values()))
    if len(scales) < 3:
        raise BadInput(f"coordinate_check: a slope needs three scales, got {len(scales)}; name more")
    runner = _Runner(family, _plans(family, parametrization, optimizer, scales, options), steps)
    lr = runner.rate(scales[0]) if lr is None else lr
    measured = tuple(m for scale in scales for seed in seeds for m in runner.measure(scale, seed, lr))
    slopes = tuple(_slopes(measured, scales))
    return _judged(slopes, measured, lr)


def _plans(
    family: Family, parametrization: str, optimizer: str, scales: Sequence[Scale], options: Mapping[str, Any]
) -> dict[Scale, Plan]:
    """The plan from the smallest scale to each; none for a family that has its own optimizer."""
    if hasattr(family, "optimizer"):
        return {}
    given = {"given": options["given"]} if "given" in options else {}
    of_plan = {name: value for name, value in options.items() if name != "given"}
    return {
        scale: plan(roles(family.build, scales[0], scale, **given), optimizer, parametrization, **of_plan)
        for scale in scales
    }


@dataclass(frozen=True)
class _Runner:
    """Trains and looks."""

    family: Family
    plans: Mapping[Scale, Plan]
    steps: int

    def rate(self, scale: Scale) -> float:
        """The largest learning rate that gets half as far as the best one."""
        start = self._score(scale, 0.0)
        ends = {lr: self._score(scale, lr) for lr in RATES}
        best = min(end for end in ends.values() if math.isfinite(end))
        if best >= start:
            raise BadInput(
                f"coordinate_check: no learning rate of {RATES[-1]:.2g} to {RATES[0]:.2g} lowers the loss of "
                f"{start:.4g} in {self.steps} steps at {scale}; check the loss, or name lr"
            )
        return max(lr for lr, end in ends.items() if end <= start - 0.5 * (start - best))

    def _score(self, scale: Scale, lr: float) -> float:
        model, _ = self._trained(scale, 0, lr)
        with torch.no_grad():
            return math.fsum(float(self._loss(model, HELD_OUT + k)) for k in range(4)) / 4

    def _started(self, scale: Scale, seed: int, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = self.family.build(scale)
        if not self.plans:
            return model, self.family.optimizer(model, scale, lr)  # type: ignore[attr-defined]
        planned = self.plans[scale]
        planned.init_(model)
        return model, _optimizer(planned, model, lr)

    def _loss(self, model: nn.Module, seed: int) -> Tensor:
        torch.manual_seed(seed)
        loss = self.family.loss(model, seed)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise BadInput(f"coordinate_check: loss(model, seed) must give one number, got {type(loss).__name__}")
        return loss

    def _trained(self, scale: Scale, seed: int, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, optimizer = self._started(scale, seed, lr)
        self._train(model, optimizer, seed)
        return model, optimizer

    def _train(self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        for step in range(self.steps):
            optimizer.zero_grad()
            self._loss(model, 1000 * seed + step).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def measure(self, scale: Scale, seed: int, lr: float) -> Iterator[Measured]:
        """All numbers of one run."""
        model, optimizer = self._started(scale, seed, lr)
        batch = HELD_OUT + seed
        initial = {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False)}
        start = look(model, lambda: self._loss(model, batch))
        if not math.isfinite(start.loss):
            raise BadInput(f"coordinate_check: the loss at {scale} is {start.loss} before training; check the family")
        self._train(model, optimizer, seed)
        end = look(model, lambda: self._loss(model, batch))
        for name, now in end.activations.items():
            then = start.activations.get(name)
            entries = end.heads.get(name, now.numel())
            yield Measured(name, "size", scale, size(now), entries)
            if then is not None and then.shape == now.shape:
                yield Measured(name, "size at the start", scale, size(then), entries)
                yield Measured(name, "change", scale, size(now - then), entries)
        gradients = {name: 0.0 if p.grad is None else size(p.grad) for name, p in model.named_parameters()}
        largest = max(gradients.values())
        for name, value in effects(model, end, initial):
            if gradients.get(name, largest) > ROUNDING * largest:
                yield Measured(name, "effect", scale, value)
        yield from _decays(model, optimizer, scale)
        yield Measured("the model", "loss", scale, end.loss)


def _optimizer(planned: Plan, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Of a plan; of Muon's the two that it takes, as one."""
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "muon": torch.optim.Muon}
    groups = planned.param_groups(model, lr, 0.0 if planned.optimizer == "adam" else WEIGHT_DECAY)
    for group in groups:
        if group["optimizer"] not in kinds:
            raise BadInput(
                f"coordinate_check: torch has no {group['optimizer']}; give the family optimizer(model, scale, lr)"
            )
    parts = [
        kind([{k: v for k, v in g.items() if k != "optimizer"} for g in groups if g["optimizer"] == name])
        for name, kind in kinds.items()
        if any(g["optimizer"] == name for g in groups)
    ]
    return parts[0] if len(parts) == 1 else _Together(parts)


class _Together(torch.optim.Optimizer):
    """Several optimizers, each of its own groups."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


def _decays(model: nn.Module, optimizer: torch.optim.Optimizer, scale: Scale) -> Iterator[Measured]:
    """The rate at which steps shrink a tensor, lr x weight decay; Adam, unlike AdamW, divides it by the gradient."""
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    for group in optimizer.param_groups:
        coupled = isinstance(optimizer, torch.optim.Adam) and not group.get("decoupled_weight_decay", False)
        for tensor in group["params"]:
            decay = group["lr"] * group.get("weight_decay", 0.0)
            if coupled and decay and tensor.grad is not None:
                decay /= max(size(tensor.grad), 1e-300)
            if decay:
                yield Measured(names[id(tensor)], "decay", scale, decay)


def _slopes(measured: Sequence[Measured], scales: Sequence[Scale]) -> Iterator[Slope]:
    """One slope for each name, quantity and axis that varies, in the order in which the model computes."""
    axes = [axis for axis in scales[0] if len({scale[axis] for scale in scales}) > 1]
    deep = DEPTH in axes
    groups: dict[tuple[str, str], list[Measured]] = {}
    for m in measured:
        groups.setdefault((pattern(m.name) if deep else m.name, m.quantity), []).append(m)
    order = list(dict.fromkeys(name for name, _ in groups))
    place = {name: order.index(name) if name in order else len(order) for name in order}
    sizes = {name: _at_smallest(found) for (name, quantity), found in groups.items() if quantity == "size"}
    for (name, quantity), found in sorted(groups.items(), key=lambda item: place[_owner(item[0], place)]):
        if quantity == "effect" and _at_smallest(found) < NEGLIGIBLE * sizes.get(name.rpartition(".")[0], 0.0):
            continue
        for axis, (slope, low, high) in _fitted(found, axes).items():
            if axis != DEPTH or not _inside_a_block(name, quantity):
                yield Slope(name, quantity, axis, slope, low, high, *_allowed(name, quantity, axis, found))


def _owner(key: tuple[str, str], place: Mapping[str, int]) -> str:
    """The module that a quantity is of: of a tensor, the one that has it."""
    name, quantity = key
    owner = name.rpartition(".")[0]
    return owner if quantity in ("effect", "decay") and owner in place else name


def _at_smallest(found: Sequence[Measured]) -> float:
    smallest = [m.value for m in found if m.scale == found[0].scale]
    return math.fsum(smallest) / len(smallest)


def _inside_a_block(name: str, quantity: str) -> bool:
    """What is repeated over depth, but for what a whole block gives out."""
    return bool(re.search(r"(^|\.)\*\.", name)) or (quantity in ("effect", "decay") and "*" in name)


def _fitted(found: Sequence[Measured], axes: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Least squares of ln(value) in ln(axes) together: slopes with intervals; none where too few values are positive.

    Params grow as the square of the width, whose power is wanted.
    """
    usable = [m for m in found if m.value > 0 and math.isfinite(m.value)]
    if len({m.scale for m in usable}) < 3:
        return {}
    x = np.array([[1.0, *((0.5 if a == "params" else 1.0) * math.log(m.scale[a]) for a in axes)] for m in usable])
    y = np.log([m.value for m in usable])
    if np.linalg.matrix_rank(x) < x.shape[1] or len(y) <= x.shape[1]:
        return {}
    inverse = np.linalg.inv(x.T @ x)
    fitted = inverse @ x.T @ y
    freedom = len(y) - x.shape[1]
    deviations = np.sqrt(np.square(y - x @ fitted).sum() / freedom * np.diag(inverse))
    reach = stats.t.ppf(0.5 + LEVEL / 2, freedom) * deviations
    ends = fitted, fitted - reach, fitted + reach
    return {axis: (float(ends[0][k]), float(ends[1][k]), float(ends[2][k])) for k, axis in enumerate(axes, 1)}


def _allowed(name: str, quantity: str, axis: str, found: Sequence[Measured]) -> tuple[float, float]:
    """The powers that are right, by the table above."""
    grows = len({m.entries for m in found}) > 1
    if name.rpartition(".")[2] == LOGITS:
        return -math.inf, -WRONG if grows and quantity == "size at the start" and axis != DEPTH else 0.0
    falls = quantity == "loss" or (quantity.startswith("size") and not grows)
    return -math.inf if falls else 0.0, 0.0


def _judged(slopes: Sequence[Slope], measured: tuple[Measured, ...], lr: float) -> Coordinates:
    diverged = sorted({str(m.scale) for m in measured if m.quantity == "loss" and not math.isfinite(m.value)})
    if diverged:
        worst = Slope("the model", "loss", "scale", math.inf, math.inf, math.inf, -math.inf, 0.0)
        reasons = (f"training at the learning rate {lr:.3g} of the smallest scale diverges at {', '.join(diverged)}",)
        return Coordinates("fail", reasons, worst, tuple(slopes), measured, lr)
    by_verdict = {v: [s for s in slopes if s.verdict == v] for v in ("fail", "undetermined", "pass")}
    verdict = next(v for v in by_verdict if by_verdict[v])
    if verdict == "fail":
        first = by_verdict["fail"][0].name
        worst = max((s for s in by_verdict["fail"] if s.name == first), key=lambda s: s.wrong)
    else:
        worst = max(by_verdict[verdict], key=lambda s: s.wrong)
    told = [worst, *(s for s in by_verdict[verdict] if s is not worst)] if verdict != "pass" else []
    sentences = [str(s) for s in told[:5]]
    if len(told) > 5:
        sentences.append(f"and {len(told) - 5} more")
    if verdict == "pass":
        sentences.append(f"{len(slopes)} slopes are as they must be; the steepest: {worst}")
    return Coordinates(verdict, tuple(sentences), worst, tuple(slopes), measured, lr)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
