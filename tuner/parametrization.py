"""How each hyperparameter moves with each axis of scale: base <-> raw, presets, and how far a preset is trusted.

    raw = base * prod_a (n_a / base n_a)^gamma_a          gamma: the exponents of one hyperparameter

A preset is two tables over (role, axis). `exponents` is what the tuner itself multiplies by. `theory` is what is
believed of the raw optimum of one global scalar, d ln(raw optimum) / d ln(axis), as a mean and a standard deviation.
The drift in base coordinates then has the prior mean theory - gamma. An objective that applies per-tensor rules itself
receives unscaled scalars (gamma = 0) whose optimum its rules claim to hold still: mean 0, the preset's own tight
standard deviation.

| preset    | exponents (width)           | source                                                                     |
|-----------|-----------------------------|----------------------------------------------------------------------------|
| none      | none                        | no theory: every prior is wide and centred at zero                         |
| limit     | none                        | only that the model has a limit at infinite width (random features)        |
| sp-adamw  | none; theory in the prior   | Everett et al. 2024 (lr ~ 1/n at full alignment); Step Law (lr in N, D)    |
| mup-sgd   | none: hidden lr is constant | Yang et al. 2022 (TP-V), Table 8                                           |
| mup-adam  | lr -1, eps -1               | TP-V, Table 8: hidden matrices; eps as gradients (TP-V, B.3)               |
| mup-adamw | the same, weight_decay +1   | TP-V, Table 8; independent weight decay (Wang & Aitchison 2024; CompleteP) |
| mup-lion  | lr -1, weight_decay +1      | the same: steps of a sign                                                  |
| mup-muon  | none: (fan_out/fan_in)^1/2  | Yang, Simon and Bernstein 2023, matrices that grow alike                   |

completep-adamw is mup-adamw over depth too, where but for eps -1 nothing moves if every residual branch is divided by
the depth (Dey et al. 2025, CompleteP, Table 1, alpha = 1); completedp-adamw also moves with batch_size and tokens: lr
and weight_decay +1/2 and -1/2, eps -1/2 and +1/2, 1 - beta (roles one_minus_beta1, one_minus_beta2) +1 and -1
(Mlodozeniec et al. 2025; over batch_size alone the square-root rule of Malladi et al. 2022). Where steps are an axis
and tokens are not, tokens are steps times batch_size.

The role lr_multiplier is that of a factor on the rate of some tensors (`Plan.param_groups`). Where an objective applies
its rules per tensor it stays, like the rate itself; one global rate moves it by what that tensor lacks, unknown here.

No parametrization moves what regularises by the data (REGULARISERS: dropout and its like): how much of it is best
depends on how large the model is for its data (TP-V, section 6). A study that tunes one across scale says so with its
answer.

Under muP, and wherever else a model has a limit at infinite width, its optimum comes to rest: a drift that goes on with
log n has a small share of the prior's variance there, ENDLESS_IN_LIMIT.

Batch and horizon: square-root rule for Adam (Malladi et al. 2022), linear for SGD (Goyal et al. 2017); weight decay by
the timescale 1 / (lr * weight decay * steps) (Wang & Aitchison 2024; Power Lines 2025); the best batch grows about as
the square root of the tokens (Step Law 2025: 0.57; Power Lines: 0.38). Published exponents of lr in tokens disagree in
sign (+0.31 to -0.35), so that entry is loose. `params` speaks for width only where width is not an axis itself: as its
square at a given depth. (Where depth grows with width and is no axis, width is the cube root: give the exponents of
params yourself, a third of those of width.) The standard deviations are judgements: the best learning rate under
muP moves by a tenth per nat of width or less where it is well kept, by 0.2 and more in some reports (mup issue 66;
Megatron-LM pull request 3058).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tuner.errors import BadInput
from tuner.scale import Scale
from tuner.space import Categorical, Int, Params, SearchSpace, Value, rounded, suggestion

Belief = tuple[float, float]  # mean and standard deviation of a drift, per nat of the axis
Table = Mapping[str, Mapping[str, float]]  # role or hyperparameter -> axis -> exponent

BESIDE_WIDTH: Belief = (0.0, 0.1)  # params where width is an axis too: next to nothing is left for it to say
UNKNOWN: Belief = (0.0, 0.5)  # a pair no preset knows: over 16x in scale the optimum may move 4x either way
SETTLING: Belief = (0.0, 0.4)  # such a pair where the model has a limit
ENDLESS, ENDLESS_IN_LIMIT = 2 / 3, 0.1  # share of a drift's variance that never comes to rest

Theory = Mapping[tuple[str, str], Belief]  # (role, axis) -> d ln(raw optimum) / d ln(axis)

_ADAM_HORIZON: Theory = {
    ("lr", "batch_size"): (0.5, 0.25),
    ("lr", "steps"): (-0.3, 0.35),
    ("lr", "tokens"): (0.0, 0.35),
    ("weight_decay", "batch_size"): (0.5, 0.3),
    ("weight_decay", "steps"): (-0.5, 0.35),
    ("weight_decay", "tokens"): (-0.5, 0.35),
    ("batch_size", "tokens"): (0.5, 0.2),
    ("batch_size", "width"): (0.0, 0.2),
    ("batch_size", "depth"): (0.0, 0.2),
    ("batch_size", "params"): (0.0, 0.15),
}
_SGD_HORIZON: Theory = {
    ("lr", "batch_size"): (1.0, 0.3),
    ("lr", "steps"): (-0.3, 0.4),
    ("lr", "tokens"): (-0.3, 0.4),
    ("batch_size", "tokens"): (0.5, 0.3),
}
_SP_ADAMW: Theory = {
    ("lr", "width"): (-0.8, 0.4),
    ("lr", "params"): (-0.5, 0.25),
    ("lr", "depth"): (-0.5, 0.4),
    ("init_scale", "width"): (0.0, 0.3),
    ("init_scale", "params"): (0.0, 0.2),
    ("weight_decay", "width"): (0.4, 0.5),
    ("weight_decay", "params"): (0.2, 0.3),
}
_MUP_SD = {  # how sure a maximal-update parametrization is of its own exponents
    ("lr", "width"): 0.12,
    ("lr", "params"): 0.06,
    ("lr", "depth"): 0.3,
    ("init_scale", "width"): 0.25,
    ("init_scale", "params"): 0.12,
    ("weight_decay", "width"): 0.2,
    ("weight_decay", "params"): 0.1,
    ("weight_decay", "depth"): 0.3,
    ("eps", "width"): 0.4,
    ("eps", "params"): 0.2,
    ("eps", "depth"): 0.4,
}


_PART_OF_WIDTH = {"params": 0.5, "depth": -0.5}  # d ln(width) / d ln(axis) where params = depth width^2
_PART_OF_TOKENS = {"steps": 1.0, "batch_size": 1.0}  # where tokens = steps batch_size


def _derives_width(axes: Iterable[str]) -> bool:
    return "params" in axes and "width" not in axes


def _derives_tokens(axes: Iterable[str]) -> bool:
    return "steps" in axes and "tokens" not in axes


@dataclass(frozen=True)
class Parametrization:
    """A table of exponents, and the theory of the raw optimum that its drift prior is read from.

    Args:
        name: of the preset it came from.
        exponents: role or hyperparameter -> axis -> gamma.
        theory: (role, axis) -> mean and standard deviation of d ln(raw optimum) / d ln(axis).
        limits: axes along which the model, and so its optimum, has a limit.
        claims: (role, axis) whose base values it claims to stay, by its exponents or by what the model does.
    """

    name: str = "none"
    exponents: Table = field(default_factory=dict)
    theory: Theory = field(default_factory=dict)
    limits: frozenset[str] = frozenset()
    claims: frozenset[tuple[str, str]] = frozenset()

    def exponent(self, space: SearchSpace, name: str, axis: str, axes: Iterable[str]) -> float:
        """gamma of one hyperparameter along one axis, in a study whose scales have these axes.

        Where width is no axis, params speak for it: params = depth width^2 makes width (params / depth)^(1/2), and its
        exponent passes to both; unless params have an exponent of their own. So do steps and batch size for tokens:
        an exponent in batch_size is meant at equal tokens.
        """
        table = self._table(space, name)
        through_width = 0.0 if "params" in table or not _derives_width(axes) else table.get("width", 0.0)
        through_tokens = 0.0 if "steps" in table or not _derives_tokens(axes) else table.get("tokens", 0.0)
        own = table.get(axis, 0.0)
        return own + _PART_OF_WIDTH.get(axis, 0.0) * through_width + _PART_OF_TOKENS.get(axis, 0.0) * through_tokens

    def _table(self, space: SearchSpace, name: str) -> Mapping[str, float]:
        """Exponents by axis; an entry under its own name goes before its role's."""
        return {**self.exponents.get(space.role(name), {}), **self.exponents.get(name, {})}

    def factor(self, space: SearchSpace, name: str, scale: Scale, base: Scale) -> float:
        """raw / base at a scale."""
        return math.prod(math.pow(r, self.exponent(space, name, axis, scale)) for axis, r in scale.ratio(base).items())

    def belief(self, space: SearchSpace, name: str, axis: str, axes: Iterable[str]) -> Belief:
        """Prior of d ln(optimum) / d ln(axis) in base coordinates, in a study whose scales have these axes."""
        if axis == "params" and "width" in axes:
            return BESIDE_WIDTH
        role = space.role(name)
        mean, sd = self.theory.get((role, axis), SETTLING if axis in self.limits else UNKNOWN)
        if axis == "depth" and _derives_width(axes):  # at fixed params a deeper network is narrower
            mean += _PART_OF_WIDTH["depth"] * self.theory.get((role, "width"), UNKNOWN)[0]
        if axis == "batch_size" and _derives_tokens(axes):  # at fixed steps a larger batch sees more tokens
            mean += self.theory.get((role, "steps"), UNKNOWN)[0]
        return mean - self.exponent(space, name, axis, axes), sd

    def carries(self, space: SearchSpace, name: str, axis: str, axes: Iterable[str]) -> bool:
        """Whether a hyperparameter's base value is meant to stay along an axis; if not, it is a raw one there."""
        claimed = (space.role(name), axis) in self.claims and self.belief(space, name, axis, axes)[0] == 0
        return claimed or self.exponent(space, name, axis, axes) != 0

    def endless(self, axis: str) -> float:
        """Share of a belief's variance that a drift without an end has."""
        return ENDLESS_IN_LIMIT if axis in self.limits else ENDLESS

    def to_raw(self, space: SearchSpace, params: Params, scale: Scale, base: Scale) -> dict[str, Value]:
        """Base values -> what the training function receives at a scale."""
        return {name: self._moved(space, name, v, self.factor(space, name, scale, base)) for name, v in params.items()}

    def to_base(self, space: SearchSpace, params: Params, scale: Scale, base: Scale) -> dict[str, Value]:
        """Raw values of a run at a scale -> base values; the inverse of `to_raw`, an integer may become a fraction."""
        factors = {name: self.factor(space, name, scale, base) for name in params}
        held = {n for n, factor in factors.items() if factor == 1 or isinstance(space[n], Categorical)}
        return {n: v if n in held else rounded(float(v) / factors[n]) for n, v in params.items()}

    @staticmethod
    def _moved(space: SearchSpace, name: str, value: Value, factor: float) -> Value:
        dimension = space[name]
        if isinstance(dimension, Categorical):
            return value
        if isinstance(dimension, Int):
            moved = round(float(value) * factor)
            return max(1, moved) if dimension.low >= 1 else moved  # a batch has at least one example
        return rounded(float(value) * factor) if factor != 1 else value


_WIDE = frozenset({"width", "params"})  # axes along which a network grows wider
MOVING_AVERAGES = frozenset({"momentum", "beta1", "beta2", "one_minus_beta1", "one_minus_beta2"})  # roles
_CARRIED = ("lr", "weight_decay", "init_scale", "eps", *MOVING_AVERAGES)  # roles that muP carries (TP-V, Table 1)

REGULARISERS = frozenset({"dropout", "stochastic_depth", "label_smoothing", "mixup", "augmentation"})  # roles


def _mup(name: str, exponents: Table, horizon: Theory) -> Parametrization:
    """Theory of a preset that claims its exponents: centred on them, as sure as muP is."""
    theory = {(r, a): (_claimed(exponents, r, a), sd) for (r, a), sd in _MUP_SD.items()}
    claims = frozenset((role, axis) for role in _CARRIED for axis in _WIDE)
    return Parametrization(name, exponents, {**horizon, **theory}, limits=_WIDE, claims=claims)


def _over_depth(name: str, exponents: Table, data: Theory) -> Parametrization:
    """A preset of muP that claims to hold over depth as well."""
    mup = _mup(name, exponents, {**_ADAM_HORIZON, **data})
    claims = mup.claims | {(role, "depth") for role in _CARRIED} | frozenset(data)
    return replace(mup, theory={**mup.theory, **_OVER_DEPTH, **data}, limits=_WIDE | {"depth"}, claims=claims)


def _beliefs(exponents: Table) -> Theory:
    """Theory that is centred on exponents in batch size and tokens; in steps they are those of tokens."""
    axes = {"batch_size": "batch_size", "tokens": "tokens", "steps": "tokens"}
    return {(role, axis): (table[of], _DATA_SD) for role, table in exponents.items() for axis, of in axes.items()}


def _claimed(exponents: Table, role: str, axis: str) -> float:
    """gamma along an axis while the others stand still; params move by what width does to them, steps by tokens."""
    table = exponents.get(role, {})
    through = {"params": _PART_OF_WIDTH["params"] * table.get("width", 0.0), "steps": table.get("tokens", 0.0)}
    return table.get(axis, through.get(axis, 0.0))


_LR: Table = {"lr": {"width": -1.0}}
_LR_DECAY: Table = {**_LR, "weight_decay": {"width": 1.0}}
_EPS: Table = {"eps": {"width": -1.0}}  # as the entries of gradients
_EPS_DEEP: Table = {"eps": {"width": -1.0, "depth": -1.0}}
_ADAM_DATA: Table = {
    "lr": {"batch_size": 0.5, "tokens": -0.5},
    "weight_decay": {"batch_size": 0.5, "tokens": -0.5},
    "eps": {"batch_size": -0.5, "tokens": 0.5},
    "one_minus_beta1": {"batch_size": 1.0, "tokens": -1.0},
    "one_minus_beta2": {"batch_size": 1.0, "tokens": -1.0},
}
DATA: Mapping[str, Table] = {"sgd": {"lr": {"batch_size": 1.0}}, "adam": _ADAM_DATA, "adamw": _ADAM_DATA}
_WITH_DATA: Table = {
    **_ADAM_DATA,
    "lr": {**_ADAM_DATA["lr"], **_LR_DECAY["lr"]},
    "weight_decay": {**_ADAM_DATA["weight_decay"], **_LR_DECAY["weight_decay"]},
    "eps": {**_ADAM_DATA["eps"], **_EPS_DEEP["eps"]},
}
_OVER_DEPTH = {(role, "depth"): (0.0, 0.12) for role in ("lr", "weight_decay", "init_scale")}
_DATA_SD = 0.2  # how sure the exponents in batch_size and tokens are, within the range where the rules hold

PRESETS: Mapping[str, Parametrization] = {
    "none": Parametrization("none"),
    "limit": Parametrization("limit", limits=_WIDE),
    "sp-adamw": Parametrization("sp-adamw", {}, {**_ADAM_HORIZON, **_SP_ADAMW}),
    "mup-sgd": _mup("mup-sgd", {}, _SGD_HORIZON),
    "mup-adam": _mup("mup-adam", {**_LR, **_EPS}, _ADAM_HORIZON),
    "mup-adamw": _mup("mup-adamw", {**_LR_DECAY, **_EPS}, _ADAM_HORIZON),
    "mup-lion": _mup("mup-lion", _LR_DECAY, _ADAM_HORIZON),
    "mup-muon": _mup("mup-muon", {}, _ADAM_HORIZON),
    "completep-adamw": _over_depth("completep-adamw", {**_LR_DECAY, **_EPS_DEEP}, {}),
    "completedp-adamw": _over_depth("completedp-adamw", _WITH_DATA, _beliefs(_WITH_DATA)),
}


def preset(name: str, exponents: Table | None = None) -> Parametrization:
    """A preset by name, with some exponents replaced; the drift prior keeps the preset's theory of the raw optimum.

    Raises:
        BadInput: no preset has that name.
    """
    if name not in PRESETS:
        raise BadInput(f"parametrization: no preset is named {name!r}; {suggestion(name, PRESETS)}")
    chosen = PRESETS[name]
    merged = {role: dict(axes) for role, axes in chosen.exponents.items()}
    for role, axes in (exponents or {}).items():
        merged[role] = {**merged.get(role, {}), **axes}
    return replace(chosen, exponents=merged)


def over_data(optimizer: str, role: str, scale: Scale, base: Scale) -> float:
    """What the batch and the tokens of a scale make of a hyperparameter, by DATA; 1 where they are no axes.

    Tokens that are no axis are steps times batch size where steps are one; else the batch is meant at equal tokens.
    """
    exponents, ratio = DATA[optimizer].get(role, {}), dict(scale.ratio(base))
    if _derives_tokens(ratio):
        ratio["tokens"] = ratio["steps"] * ratio.get("batch_size", 1.0)
    return math.prod(math.pow(ratio.get(axis, 1.0), exponent) for axis, exponent in exponents.items())


def applied(name: str) -> Parametrization:
    """The preset of an objective that applies it per tensor itself: nothing left to multiply, its drift prior kept."""
    chosen = preset(name)
    left = {(r, a): (mean - _claimed(chosen.exponents, r, a), sd) for (r, a), (mean, sd) in chosen.theory.items()}
    if chosen.limits:
        left |= {("lr_multiplier", axis): (0.0, sd) for (role, axis), (_, sd) in left.items() if role == "lr"}
    claims = chosen.claims | {("lr_multiplier", axis) for role, axis in chosen.claims if role == "lr"}
    return replace(chosen, exponents={}, theory=left, claims=claims)
