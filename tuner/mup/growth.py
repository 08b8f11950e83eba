"""What of a model grows: a family built without memory, at two widths and two depths, and for real at its base."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tuner.errors import BadInput
from tuner.objective import one_line
from tuner.scale import Scale

Build = Callable[[Scale], nn.Module]
Shape = tuple[int, ...]
Signature = tuple[str, tuple[bool, ...]]  # a name with its places left open, and which dimensions grow with width

DEPTH = "depth"
SIGMAS = 6.0  # of the error of a mean: beyond, it is not zero
FEW = 4  # entries a value, on average: nobody drew them


def pattern(name: str) -> str:
    """A name with its places in a list left open: `blocks.3.weight` is `blocks.*.weight`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def without_memory(build: Build, scale: Scale) -> nn.Module:
    """The model on the meta device."""
    with torch.device("meta"):
        return made(build, scale, " on the meta device")


def made(build: Build, scale: Scale, where: str) -> nn.Module:
    try:
        model = build(scale)
    except Exception as error:
        hint = "let it make its tensors on the default device, and look into none" if where else "correct it"
        raise BadInput(f"roles: build({scale!r}) fails{where}: {one_line(error)}; {hint}") from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"roles: build must return a torch.nn.Module, got {type(model).__name__}; return the model")
    for name, tensor in model.named_parameters():
        if isinstance(tensor, nn.UninitializedParameter):
            raise BadInput(f"roles: {name} has no shape before it is called; give its module its sizes")
    return model


def names(model: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter, by its first."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    return {same[0]: same for same in names.values()}


def pair(build: Build, wide: Scale, narrow: Scale) -> tuple[nn.Module, nn.Module]:
    """Models without memory, with the same parameters, equally tied, of different shapes."""
    large, small = without_memory(build, wide), without_memory(build, narrow)
    ours, theirs = names(large), names(small)
    if ours != theirs:
        first = next(iter([*(set(ours) ^ set(theirs)), *(n for n in ours if ours[n] != theirs.get(n))]))
        raise BadInput(
            f"roles: build makes other parameters at {wide} than at {narrow}, the first of them {first}; let the depth "
            "be an axis of its own, and the width change shapes alone"
        )
    if all(large.get_parameter(name).shape == small.get_parameter(name).shape for name in ours):
        raise BadInput(f"roles: build makes the same shapes at {wide} and {narrow}; let it use the scale it is given")
    return large, small


def signatures(large: nn.Module, small: nn.Module) -> dict[str, Signature]:
    """What tensors of one kind have in common, by name."""
    shapes = {n: (large.get_parameter(n).shape, small.get_parameter(n).shape) for n in names(large)}
    return {n: (pattern(n), tuple(i != j for i, j in zip(*both, strict=True))) for n, both in shapes.items()}


def repeated(
    shallow: Mapping[str, Signature], deep: Mapping[str, Signature], base: Scale, target: Scale
) -> set[Signature]:
    """What a deeper model has more of."""
    few, many = Counter(shallow.values()), Counter(deep.values())
    if target.get(DEPTH) != base.get(DEPTH) and few == many:
        raise BadInput(
            f"roles: build makes as many tensors at depth {base[DEPTH]:g} as at {target[DEPTH]:g}; let it use the depth"
        )
    return {signature for signature in many if many[signature] > few[signature]}


def real(build: Build, base: Scale) -> nn.Module:
    """The base for real, before any without memory: what build keeps for later is then real too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = made(build, base, "")
    for name, tensor in model.named_parameters():
        if not tensor.isfinite().all():
            raise BadInput(f"roles: {name} is not finite in build({base!r}); let build initialise what it makes")
    return model


@dataclass(frozen=True)
class Starts:
    """How the tensors of the base begin: each its own; what a deeper model adds, as those of its kind together."""

    base: nn.Module
    signatures: Mapping[str, Signature]

    def of(self, name: str, signature: Signature, base: Scale) -> tuple[float, float]:
        """Mean and standard deviation of the entries; a mean of zero where it cannot be told from that."""
        same = self.signatures.get(name) == signature
        alike = [name] if same else [n for n, other in self.signatures.items() if other == signature]
        if not alike:
            raise BadInput(
                f"roles: build makes {name} at the depth of the target and none like it at {base}; name both"
            )
        values = torch.cat([self.base.get_parameter(n).detach().double().flatten() for n in alike])
        if bool((values == values[0]).all()):
            return float(values[0]), 0.0
        mean, std = float(values.mean()), float(values.std(correction=0))
        planned = abs(mean) > SIGMAS * std / len(values) ** 0.5 or len(torch.unique(values)) <= len(values) / FEW
        return (mean, std) if planned else (0.0, math.hypot(mean, std))


def products(ratios: Sequence[float]) -> set[float]:
    """Of any of them, 1 being that of none."""
    found = {1.0}
    for ratio in ratios:
        found |= {ratio * other for other in found}
    return found


def check_ratio(name: str, after: Shape, before: Shape, grown: Mapping[str, float]) -> None:
    """Every dimension that grows does so with an axis: nothing is rounded, nothing has a constant part."""
    ratios = products(list(grown.values()))
    for n, m in zip(after, before, strict=True):
        exact = any(math.isclose(n, m * ratio) for ratio in ratios)
        if n != m and not (exact or ("params" in grown and n % m == 0)):
            told = " or ".join(f"{ratio:g}" for ratio in sorted(ratios - {1.0}))
            raise BadInput(
                f"roles: {name} grows from {before} to {after}, by {n / m:g} where the width grows by {told}; choose "
                "scales at which nothing is rounded"
            )
