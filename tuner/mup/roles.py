"""Roles: which dimensions of which tensors grow with the model, read off models built without memory.

A dimension is infinite if it grows with width, finite if not (Yang et al. 2022, Tensor Programs V, section 4):

| role   | from     | to       | examples                                                |
|--------|----------|----------|---------------------------------------------------------|
| input  | finite   | infinite | embeddings, the first layer, depthwise convolutions     |
| hidden | infinite | infinite | attention and feed-forward matrices                     |
| output | infinite | finite   | the readout                                             |
| vector |          | infinite | biases, gains of norms                                  |
| scalar |          |          | tensors of which nothing grows                          |

The model is built on the meta device, at the target and at the target with the width, and the depth, of the base; and
once for real at the base, which is small, to see how its tensors start. Nothing is kept on tensors: the table is a
value, and knows parameters by their names alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tuner.errors import BadInput
from tuner.mup import growth
from tuner.mup.growth import DEPTH, Build, Shape, pattern
from tuner.scale import Scale
from tuner.space import suggestion

ROLES = ("input", "hidden", "output", "vector", "scalar")
SCALES = ("scaling", "scale", "softmax_scale")  # what modules call the factor of their attention's logits
OF_DATA = frozenset({"batch_size", "steps", "tokens", "chinchilla"})  # axes that no tensor grows with


@dataclass(frozen=True)
class Role:
    """What is to be known of one tensor.

    Args:
        name: as in `named_parameters`.
        shape, narrow: at the target, and at the width of the base.
        role: see the table above.
        fan_in, fan_out: at the target; of an embedding, of which one row is read, fan_in is 1, as it is of a vector.
        wider_in, wider_out: how many times the base's they are.
        mean, std: of its entries where the base begins; std is 0 for a constant, and a mean that is neither zero nor
            a constant says that they follow a plan of their own.
        repeated: a deeper model has more of these.
        also: the role of the same tensor by its other names, where it is tied.
    """

    name: str
    shape: Shape
    narrow: Shape
    role: str
    fan_in: int
    fan_out: int
    wider_in: float
    wider_out: float
    mean: float
    std: float
    repeated: bool
    also: Mapping[str, str]

    @property
    def roles(self) -> dict[str, str]:
        """By each of its names."""
        return {self.name: self.role, **self.also}


@dataclass(frozen=True)
class Head:
    """The width of an attention head in one module, at the base and at the target."""

    module: str
    base: int
    target: int


@dataclass(frozen=True)
class Roles:
    """The roles of a model family between two scales; a value: equal, printable, saved as JSON.

    Args:
        heads: of attention, where a module says how wide they are; those that do not grow too.
        modules: the names of all modules at the target.
    """

    base: Scale
    target: Scale
    tensors: tuple[Role, ...]
    heads: tuple[Head, ...] = ()
    modules: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Role]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> Role:
        """By any of its names.

        Raises:
            BadInput: no tensor has that name.
        """
        for tensor in self.tensors:
            if name in tensor.roles:
                return tensor
        raise BadInput(f"roles: no tensor is named {name!r}; {suggestion(name, [t.name for t in self.tensors])}")

    @property
    def deeper(self) -> float:
        """Depth of the target / depth of the base; 1 where depth is no axis."""
        return self.target[DEPTH] / self.base[DEPTH] if DEPTH in self.target else 1.0

    def __str__(self) -> str:
        """One line for all tensors that differ in their place in the depth alone."""
        groups: dict[tuple[Any, ...], list[Role]] = {}
        for t in self:
            groups.setdefault((pattern(t.name), t.shape, t.role, t.wider_in, t.wider_out, t.repeated), []).append(t)
        lines: list[tuple[str, ...]] = [("tensor", "shape", "role", "fan in", "fan out", "starts at", "")]
        for (name, *_), (first, *others) in groups.items():
            tied = [f"tied to {other} ({role})" for other, role in first.also.items()]
            lines.append(
                (
                    f"{name} ({1 + len(others)})" if others else first.name,
                    " x ".join(map(str, first.shape)),
                    first.role,
                    *(_fan(n, r) for n, r in ((first.fan_in, first.wider_in), (first.fan_out, first.wider_out))),
                    f"{first.mean:.3g}" if first.std == 0 else f"sd {first.std:.3g}",
                    ", ".join(["repeated"] * first.repeated + tied),
                )
            )
        return aligned(lines)

    def as_json(self) -> str:
        """The table as text; `of_json` is its inverse."""
        told = {"base": dict(self.base), "target": dict(self.target)}
        return json.dumps(
            {
                **told,
                "tensors": [asdict(t) for t in self],
                "heads": [asdict(head) for head in self.heads],
                "modules": self.modules,
            }
        )

    @staticmethod
    def of_json(text: str) -> Roles:
        told = json.loads(text)
        shapes = [{name: tuple(tensor[name]) for name in ("shape", "narrow")} for tensor in told["tensors"]]
        tensors = tuple(Role(**{**tensor, **own}) for tensor, own in zip(told["tensors"], shapes, strict=True))
        heads = tuple(Head(**head) for head in told["heads"])
        return Roles(Scale(told["base"]), Scale(told["target"]), tensors, heads, tuple(told["modules"]))


def roles(build: Build, base: Scale, target: Scale, given: Mapping[str, str] | None = None) -> Roles:
    """The roles of the tensors of `build(scale) -> nn.Module`.

    Args:
        base: the scale at which base and raw hyperparameters agree; it is built for real once, with torch seeded.
        target: the scale to train.
        given: roles by name, `*` standing for any characters, where the shape does not tell: a plain parameter of
            which one dimension grows may take the width in or put it out.

    Raises:
        BadInput: scales that do not compare; a `build` that fails without memory, ignores its scale, or makes other
            parameters at another width; a tensor that grows by another ratio than the width; a role that shapes do not
            tell, or that is not one.
    """
    given = dict(given or {})
    _check(base, target, given)
    real = growth.real(build, base)
    axes = [axis for axis in target if axis not in OF_DATA and axis != DEPTH]
    grown = {axis: target[axis] / base[axis] for axis in axes}
    still = all(ratio == 1 for ratio in grown.values())
    probe = {axis: 4.0 if axis == "params" else 2.0 for axis in axes} if still else grown

    def pair(depth: Scale) -> tuple[nn.Module, nn.Module]:
        """Wide and narrow, as deep as a scale."""
        narrow = Scale({**depth, **{axis: base[axis] for axis in axes}})
        wide = Scale({**narrow, **{axis: narrow[axis] * ratio for axis, ratio in probe.items()}})
        return growth.pair(build, wide, narrow)

    large, small = pair(target)
    deep = growth.signatures(large, small)
    shallow = growth.signatures(*pair(base)) if target.get(DEPTH) != base.get(DEPTH) else deep
    starts, repeated = growth.Starts(real, shallow), growth.repeated(shallow, deep, base, target)
    names = growth.names(large)
    _check_given(given, [name for same in names.values() for name in same])
    tensors = []
    for first, same in names.items():
        told = _told(large, small, same, still, probe, given)
        mean, std = starts.of(first, deep[first], base)
        tensors.append(Role(first, **told, mean=mean, std=std, repeated=deep[first] in repeated))
    _check_used(grown, tensors)
    modules = tuple(name for name, _ in large.named_modules())
    heads = _heads(large, small)
    return Roles(
        base, target, tuple(tensors), tuple(replace(h, target=h.base) for h in heads) if still else heads, modules
    )


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _fan(fan: int, wider: float) -> str:
    return f"{fan} (x{wider:g})" if wider != 1 else str(fan)


def _check(base: Scale, target: Scale, given: Mapping[str, str]) -> None:
    if set(base) != set(target):
        raise BadInput(
            f"roles: base and target must name the same axes, got {sorted(base)} and {sorted(target)}; name all in both"
        )
    if not set(target) - OF_DATA - {DEPTH}:
        raise BadInput(
            f"roles: the scale must say how wide the model is, got {sorted(target)}; name the width in both, if only "
            "to hold it still"
        )
    for axis in set(target) - OF_DATA:
        if base[axis] > target[axis]:
            raise BadInput(
                f"roles: {axis} must not be larger at the base than at the target, got {base[axis]:g} and "
                f"{target[axis]:g}; choose a smaller base"
            )
    for name, role in given.items():
        if role not in ROLES:
            raise BadInput(f"roles: {role!r}, given for {name}, is no role; {suggestion(role, ROLES)}")


def _check_given(given: Mapping[str, str], names: Sequence[str]) -> None:
    for glob in given:
        if not any(fnmatchcase(name, glob) for name in names):
            raise BadInput(f"roles: given names {glob!r}, which is no tensor; {suggestion(glob, names)}")


def _check_used(grown: Mapping[str, float], tensors: Sequence[Role]) -> None:
    """That something grows by the ratio of every axis, or with others' by the product."""
    ratios = {n / m for t in tensors for n, m in zip(t.shape, t.narrow, strict=True)}
    for axis, ratio in grown.items():
        others = growth.products([r for other, r in grown.items() if other != axis])
        if ratio != 1 and axis != "params" and not any(math.isclose(r, ratio * o) for r in ratios for o in others):
            raise BadInput(
                f"roles: nothing in the model grows with {axis}, by {ratio:g}; let build use it, or name an axis of "
                f"the data as {', '.join(sorted(OF_DATA))}"
            )


def _told(
    large: nn.Module,
    small: nn.Module,
    names: Sequence[str],
    still: bool,
    grown: Mapping[str, float],
    given: Mapping[str, str],
) -> dict[str, Any]:
    """The fields of a role that shapes tell."""
    probed, narrow = (tuple(model.get_parameter(names[0]).shape) for model in (large, small))
    growth.check_ratio(names[0], probed, narrow, grown)
    grows = [n != m for n, m in zip(probed, narrow, strict=True)]
    role, *others = (_role(large, name, grows, given) for name in names)
    into, out = _fans(large, names[0], role, grows)
    ratios = {n / m for n, m in zip(probed, narrow, strict=True) if n != m}
    if role == "hidden" and len(ratios) > 1 and _dimensions(large, names[0]) is None:
        raise BadInput(
            f"roles: {names[0]} grows from {narrow} to {probed}, by two ratios, and nothing tells which side it takes "
            "in; make it the weight of a Linear, or let both sides grow alike"
        )
    shape = narrow if still else probed

    def fan(shape: Shape, dimensions: Iterable[int]) -> int:
        return math.prod(shape[i] for i in dimensions)

    return {
        "shape": shape,
        "narrow": narrow,
        "role": role,
        "fan_in": fan(shape, into),
        "fan_out": fan(shape, out),
        "wider_in": fan(shape, into) / fan(narrow, into),
        "wider_out": fan(shape, out) / fan(narrow, out),
        "also": dict(zip(names[1:], others, strict=True)),
    }


def _role(model: nn.Module, name: str, grows: Sequence[bool], given: Mapping[str, str]) -> str:
    """The role of a tensor by one of its names."""
    for glob, role in given.items():
        if fnmatchcase(name, glob):
            return role
    shape = tuple(model.get_parameter(name).shape)
    if not any(grows):
        return "scalar"
    if (known := _dimensions(model, name)) is not None:
        into, out = (any(grows[i] for i in dimensions) for dimensions in known)
        return "hidden" if into and out else "output" if into else "input"
    if sum(n > 1 for n in shape) <= 1:
        return "vector"
    if sum(grows) == 2:
        return "hidden"
    raise BadInput(
        f"roles: the shape {shape} of {name} does not tell whether it takes the width in or puts it out; "
        f'say which: given={{"{name}": "input"}}, or "output"'
    )


def _fans(model: nn.Module, name: str, role: str, grows: Sequence[bool]) -> tuple[Sequence[int], Sequence[int]]:
    """The dimensions that are summed over, and those that are put out."""
    everything = range(len(grows))
    if role in ("vector", "scalar"):
        return [], everything
    if (known := _dimensions(model, name)) is not None:
        return ([], known[1]) if isinstance(_owner(model, name), (nn.Embedding, nn.EmbeddingBag)) else known
    wide, narrow = [i for i in everything if grows[i]], [i for i in everything if not grows[i]]
    if role == "hidden":  # as in a linear layer; what does not grow counts matrices. By one ratio, either way is one
        return wide[1:], wide[:1]
    return (narrow, wide) if role == "input" else (wide, narrow)


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _dimensions(model: nn.Module, name: str) -> tuple[list[int], list[int]] | None:
    """Which dimensions of a matrix a module of torch, or of transformers, takes in, and which it puts out."""
    module, tensor = _owner(model, name), model.get_parameter(name)
    if tensor.ndim < 2:
        return None
    reversed_ = isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvTransposeNd))
    if reversed_ or type(module).__name__ == "Conv1D":  # of transformers
        return [0, *range(2, tensor.ndim)], [1]
    known = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
    return ([*range(1, tensor.ndim)], [0]) if isinstance(module, known) else None


def _heads(large: nn.Module, small: nn.Module) -> tuple[Head, ...]:
    """The modules that say how wide their attention's heads are."""
    narrow, wide = (
        {name: width for name, module in model.named_modules() if (width := _head(module)) is not None}
        for model in (small, large)
    )
    return tuple(Head(name, narrow[name], n) for name, n in wide.items() if name in narrow)


def _head(module: nn.Module) -> int | None:
    """How wide the heads are of a module that has matrices: its `head_dim`, or d where it scales logits by d^-1/2.

    Of modules inside one another the innermost that says so.
    """
    saying = [m for m in module.modules() if _said(m) is not None and any(p.ndim > 1 for p in m.parameters())]
    return _said(module) if saying == [module] else None


def _said(module: nn.Module) -> int | None:
    told = getattr(module, "head_dim", None)
    if isinstance(told, int):
        return told
    for name in SCALES:
        scale = getattr(module, name, None)
        if isinstance(scale, float) and 0 < scale < 1 and math.isclose(round(scale**-2) ** -0.5, scale):
            return round(scale**-2)
    return None
