"""The coordinate check: is a parametrization right? Measured on models of several sizes, trained for a few steps.

Under a right parametrization everything that training moves is moved by as much at every width (Yang et al. 2022,
Tensor Programs V, section 8 and appendix D.1): slopes of ln(size) in ln(width) are zero. Judged are

| quantity   | of            | power    | but                                                                  |
|------------|---------------|----------|----------------------------------------------------------------------|
| size       | an activation | 0        | what has no more entries at a larger width (a readout) may fall      |
| change     | an activation | 0        | since initialisation                                                 |
| both       | logits        | <= 0     | <= -1/2 at the start where heads grow: q and k are not aligned yet   |
| effect     | a tensor      | 0        | see `tuner.mup.probe`; one that does next to nothing is left out     |
| through    | a tensor      | <= 0     | its effect where other modules work on it: readouts begin unaligned  |
| decay      | a tensor      | 0        | lr x weight decay in the optimizer's groups: no few steps show it    |
| loss       | the model     | <= 0     | wider is better: a rising loss makes a pass undetermined             |
| norm       | a matrix      | any      | spectral, and of its change: shown, not judged; under muP of a square |
|            |               |          | hidden matrix both keep their size (Yang, Simon and Bernstein 2023)  |

Where depth is varied, only what is outside the blocks, and what a block gives out, is judged along it: a branch has a
right to shrink (CompleteP).

A wrong power of width is wrong by 1/2 at least, and narrow networks are not yet their limit: a slope fails if its 90 %
interval lies more than a quarter off what it may be, and passes if it is within a quarter itself and its interval
leaves out a half. The verdict is `fail` if one fails, `pass` if all pass, else `undetermined`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from tuner.errors import BadInput
from tuner.mup.plan import Plan, check_groups, plan
from tuner.mup.probe import LOGITS, around, effects, look, size
from tuner.mup.roles import OF_DATA, roles
from tuner.mup.slopes import Measured, Slope, slopes, varied
from tuner.objective import named, one_line
from tuner.problem import Problem
from tuner.scale import Scale

T = TypeVar("T")

POWER = 12  # iterations
ROUNDING = 1e-5  # a gradient below this share of the largest is rounding (a key's bias): Adam makes steps of noise
STEPS, SEEDS = 4, 4
SAID = 5  # slopes of a verdict that are said
RATES = tuple(2.0**-k for k in range(1, 15))
WEIGHT_DECAY = 0.1  # at the smallest scale, of a plan's optimizer
HELD_OUT = 1_000_003  # the seed of the batch that is looked at, beside those of training
WIDTHS = tuple(Scale(width=width) for width in (64, 128, 256, 512, 1024))
COUPLED = (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.RMSprop)


class Family(Protocol):
    """A model family; `optimizer(model, scale, lr)` and `scales` are optional."""

    def build(self, scale: Scale) -> nn.Module: ...

    def loss(self, model: nn.Module, seed: int) -> Tensor: ...


@dataclass(frozen=True)
class Coordinates:
    """The answer of a coordinate check.

    Args:
        verdict: pass, fail or undetermined. reasons: why.
        worst: the slope farthest from what it may be; of those that fail, of the first that the model computes.
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
    claims = getattr(objective, "parametrization", None) is not None and "width" in problem.parametrization.limits
    can = all(callable(getattr(objective, method, None)) for method in ("build", "loss")) and optimized(objective)
    if not (can and claims and "width" in problem.target):
        return None
    narrowest = min(problem.proxies, key=lambda proxy: proxy["width"])
    widths = [width for k in range(5) if (width := narrowest["width"] * 2**k) <= problem.target["width"]]
    scales = [Scale({**narrowest, "width": width}) for width in widths]
    return coordinate_check(objective, scales=scales) if len(scales) >= 3 else None


def optimized(family: Any) -> bool:
    """Whether a family has an optimizer of its own."""
    return callable(getattr(family, "optimizer", None))


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
        scales: at least three, different; default: the family's `scales`, else widths 64 to 1024.
        lr: at the smallest scale; default: the largest of a scan that gets half of the best one's progress there.
        options: of `tuner.mup.plan`, and `given` of `tuner.mup.roles`.

    Raises:
        BadInput: fewer than three scales, or scales that differ in what `loss(model, seed)` cannot see; no seeds or
            steps; a loss that is no finite scalar; an optimizer that leaves out a tensor; what roles and plan refuse.
    """
    scales = sorted(set(scales or getattr(family, "scales", None) or WIDTHS), key=lambda scale: sorted(scale.values()))
    seeds = tuple(seeds)
    if len(scales) < 3:
        raise BadInput(f"coordinate_check: a slope needs three different scales, got {len(scales)}; name more")
    if not seeds or steps < 1 or not (lr is None or 0 < lr < math.inf):
        raise BadInput(
            f"coordinate_check: needs a seed, a step and a learning rate above zero, got {len(seeds)} seeds, "
            f"{steps} steps, lr={lr}; correct them"
        )
    axes = varied(scales)
    if unseen := [axis for axis in axes if axis in OF_DATA]:
        raise BadInput(
            f"coordinate_check: loss(model, seed) cannot see {unseen[0]}, and the scales differ in it; leave it out"
        )
    runner = _Runner(family, _plans(family, parametrization, optimizer, scales, options), steps)
    lr = runner.rate(scales[0]) if lr is None else lr
    measured = tuple(m for scale in scales for seed in seeds for m in runner.measure(scale, seed, lr))
    return _judged(tuple(slopes(measured, axes)), measured, runner.unjudged(scales[0], lr), lr)


def _plans(
    family: Family, parametrization: str, optimizer: str, scales: Sequence[Scale], options: Mapping[str, Any]
) -> dict[Scale, Plan]:
    """The plan from the smallest scale to each; none for a family that has its own optimizer."""
    if optimized(family):
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
        if not math.isfinite(start):
            raise BadInput(f"coordinate_check: the loss at {scale} is {start} before training; check the family")
        ends = {lr: self._score(scale, lr) for lr in RATES}
        best = min((end for end in ends.values() if math.isfinite(end)), default=math.inf)
        if best >= start:
            raise BadInput(
                f"coordinate_check: no learning rate of {RATES[-1]:.2g} to {RATES[0]:.2g} lowers the loss of "
                f"{start:.4g} in {self.steps} steps at {scale}; check the loss, or name lr"
            )
        return max(lr for lr, end in ends.items() if end <= start - 0.5 * (start - best))

    def unjudged(self, scale: Scale, lr: float) -> list[str]:
        """The tensors that no module around them was called with: what training does to them is not seen."""
        model, _ = self._started(scale, 0, lr)
        seen = look(model, lambda: self._loss(model, HELD_OUT))
        return [
            name for name, tensor in model.named_parameters() if tensor.requires_grad and around(name, seen) is None
        ]

    def _score(self, scale: Scale, lr: float) -> float:
        model, optimizer = self._started(scale, 0, lr)
        self._train(model, optimizer, 0)
        with torch.no_grad():
            return math.fsum(float(self._loss(model, HELD_OUT + k)) for k in range(4)) / 4

    def _started(self, scale: Scale, seed: int, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = _asked(f"build({scale!r})", lambda: self.family.build(scale))
        if self.plans:
            planned = self.plans[scale]
            planned.init_(model)
            return model, _optimizer(planned, model, lr)
        what, own = f"optimizer(model, {scale!r}, {lr:g})", self.family.optimizer  # type: ignore[attr-defined]
        optimizer = _asked(what, lambda: own(model, scale, lr))
        if not all(hasattr(optimizer, part) for part in ("step", "zero_grad", "param_groups")):
            raise BadInput(f"coordinate_check: {what} must give an optimizer, got {type(optimizer).__name__}")
        check_groups(dict(model.named_parameters()), optimizer)
        return model, optimizer

    def _loss(self, model: nn.Module, seed: int) -> Tensor:
        torch.manual_seed(seed)
        loss = _asked(f"loss(model, {seed})", lambda: self.family.loss(model, seed))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise BadInput(f"coordinate_check: loss(model, seed) must give one number, got {type(loss).__name__}")
        return loss

    def _train(self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        def one(loss: Tensor) -> None:
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        for step in range(self.steps):
            optimizer.zero_grad()
            _asked("a training step", partial(one, self._loss(model, 1000 * seed + step)))

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
        for name, value, alone in effects(model, end, initial):
            if gradients.get(name, largest) > ROUNDING * largest:
                yield Measured(name, "effect" if alone else "effect through others", scale, value)
        yield from _decays(model, optimizer, scale)
        yield from _norms(model, initial, scale)
        yield Measured("the model", "loss", scale, end.loss)


def _asked(what: str, call: Callable[[], T]) -> T:
    """What the family gives when it is asked."""
    try:
        return call()
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"coordinate_check: {what} fails: {one_line(error)}; correct the family") from error


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
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


def _decays(model: nn.Module, optimizer: torch.optim.Optimizer, scale: Scale) -> Iterator[Measured]:
    """The rate at which steps shrink a tensor, lr x weight decay; Adam, unlike AdamW, divides it by the gradient."""
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    for group in optimizer.param_groups:
        coupled = isinstance(optimizer, COUPLED) and not group.get("decoupled_weight_decay", False)
        for tensor in group["params"]:
            decay = group["lr"] * group.get("weight_decay", 0.0)
            if coupled and decay and tensor.grad is not None:
                decay /= max(size(tensor.grad), 1e-300)
            if decay and id(tensor) in names:
                yield Measured(names[id(tensor)], "decay", scale, decay)


def _norms(model: nn.Module, initial: Mapping[str, Tensor], scale: Scale) -> Iterator[Measured]:
    """The spectral norms of matrices, and of how far training has moved them."""
    for name, tensor in model.named_parameters():
        if tensor.ndim == 2 and tensor.requires_grad:
            now = tensor.detach()
            yield Measured(name, "norm", scale, _spectral(now))
            yield Measured(name, "norm of change", scale, _spectral(now - initial[name]))


def _spectral(matrix: Tensor) -> float:
    """The largest singular value, by power iteration: a few percent too small where the next is near."""
    vector = torch.ones(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(POWER):
        vector = matrix.mT @ (matrix @ vector)
        vector = vector / vector.norm().clamp(min=1e-300)
    return float((matrix @ vector).norm())


def _judged(found: tuple[Slope, ...], measured: tuple[Measured, ...], unjudged: list[str], lr: float) -> Coordinates:
    diverged = sorted({str(m.scale) for m in measured if m.quantity == "loss" and not math.isfinite(m.value)})
    if diverged:
        worst = Slope("the model", "loss", "scale", math.inf, math.inf, math.inf, -math.inf, 0.0)
        reason = f"training at the learning rate {lr:.3g} of the smallest scale diverges at {', '.join(diverged)}"
        return Coordinates("fail", (reason,), worst, found, measured, lr)
    judged = [s for s in found if not s.quantity.startswith("norm")]
    by_verdict = {v: [s for s in judged if s.verdict == v] for v in ("fail", "undetermined", "pass")}
    verdict = next(v for v in by_verdict if by_verdict[v])
    candidates = by_verdict[verdict]
    if verdict == "fail":
        candidates = [s for s in candidates if s.name == candidates[0].name]
    worst = max(candidates, key=lambda s: s.wrong)
    if verdict == "pass":
        sentences = [f"{len(judged)} slopes are as they must be; the steepest: {worst}"]
    else:
        told = [worst, *(s for s in by_verdict[verdict] if s is not worst)]
        sentences = [*map(str, told[:SAID]), *([f"and {len(told) - SAID} more"] if len(told) > SAID else [])]
        if any(s.name.rpartition(".")[2] == LOGITS for s in told):
            sentences.append("logits: divide q.k by the width of a head and not by its root (tuner.mup.plan says it)")
    if unjudged:
        verdict = "undetermined" if verdict == "pass" else verdict
        sentences.append(f"not seen, as no module around them is called: {', '.join(unjudged)}")
    return Coordinates(verdict, tuple(sentences), worst, found, measured, lr)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
