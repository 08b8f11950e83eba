"""The plan: the rule of every tensor, and how a model, an optimizer and a forward pass are made to follow it.

    plan = tuner.mup.plan(tuner.mup.roles(build, base, target))
    plan.init_(model)                                          # draws the weights, and attaches the multipliers
    optimizer = torch.optim.AdamW(plan.param_groups(model, lr=3e-3, weight_decay=0.1))

The plan is a value and stands outside the model: copies, checkpoints, torch.compile, DDP and FSDP leave it alone. The
multipliers are forward hooks, which copies of a module keep; a model whose weights are loaded wants `plan.attach_`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tuner.errors import BadInput
from tuner.mup.growth import pattern
from tuner.mup.roles import ROLES, Head, Role, Roles, aligned
from tuner.mup.rules import BRANCHES, OPTIMIZERS, PARAMETRIZATIONS, Rule, multipliers, rule
from tuner.space import suggestion

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")  # of DDP, torch.compile and FSDP, as parts of names
SCALES = ("scaling", "scale", "softmax_scale")  # what modules call the factor of their attention's logits


@dataclass(frozen=True)
class ScaledInput:
    """A forward pre-hook: a readout sees its input times a factor, so that its bias keeps its size."""

    factor: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * self.factor, *args[1:])


@dataclass(frozen=True)
class ScaledOutput:
    """A forward hook: what a residual branch adds, times a factor."""

    factor: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            raise BadInput(
                f"plan: {type(module).__name__} ends a residual branch and returns a {type(output).__name__}; name the "
                "last module inside it as the branch"
            )
        return output * self.factor


@dataclass(frozen=True)
class Plan:
    """What becomes of each tensor of a model family on its way from base to target.

    Args:
        roles: the tensors.
        optimizer, parametrization: see `tuner.mup.rules`.
        branches: modules whose output is added to the residual stream, `*` standing for any characters.
        decay_exponent: of 1 / lr in the factor of weight decay.
        zero_readout: the readout starts at zero.
    """

    roles: Roles
    optimizer: str
    parametrization: str
    branches: tuple[str, ...] = ()
    decay_exponent: float = 1.0
    zero_readout: bool = False

    def __iter__(self) -> Iterator[tuple[Role, Rule]]:
        for tensor in self.roles:
            yield tensor, self.rule(tensor)

    def rule(self, tensor: Role) -> Rule:
        return rule(tensor, self.optimizer, self.parametrization, self.roles.deeper, self.decay_exponent)

    @property
    def branch(self) -> float:
        """What a residual branch is multiplied by."""
        return float(self.roles.deeper ** -BRANCHES.get(self.parametrization, 0.0))

    def __str__(self) -> str:
        """One line for all tensors that have a rule in common but for their place in the depth."""
        seen: dict[tuple[Any, ...], int] = {}
        for tensor, its in self:
            start = f"{self.std(tensor):.3g}" if tensor.std else f"all {tensor.mean:g}"
            tied = multipliers(tensor, self.parametrization).values()
            line = (pattern(tensor.name), tensor.role, start, " and ".join(f"{m:.3g}" for m in tied), *_factors(its))
            seen[line] = seen.get(line, 0) + 1
        head = ("tensor", "role", "std", "multiplier", "lr", "weight decay", "eps", "optimizer")
        lines = [(f"{line[0]} ({n})" if n > 1 else line[0], *line[1:]) for line, n in seen.items()]
        told = [f"every residual branch ({', '.join(self.branches)}) x {self.branch:g}"] if self.branches else []
        heads = sorted({(head.base, head.target) for head in self.heads})
        told += [f"logits of attention x {m**0.5 / n:.3g}, {m}^½ / {n}, in place of {n}^-½" for m, n in heads]
        return "\n".join([aligned([head, *lines]), *told])

    @property
    def readouts(self) -> dict[str, float]:
        """What the input of a module is multiplied by, where that is not 1."""
        return {
            name.rpartition(".")[0]: factor
            for tensor in self.roles
            for name, factor in multipliers(tensor, self.parametrization).items()
            if factor != 1
        }

    @property
    def branch_modules(self) -> tuple[str, ...]:
        """The modules that `branches` stands for, of those that own a tensor."""
        owners = dict.fromkeys(name.rpartition(".")[0] for tensor in self.roles for name in tensor.roles)
        return tuple(owner for owner in owners if any(fnmatchcase(owner, glob) for glob in self.branches))

    @property
    def heads(self) -> Sequence[Head]:
        """Those whose logits are divided by d in place of d^½."""
        return () if self.parametrization == "sp" else self.roles.heads

    def std(self, tensor: Role) -> float:
        """Standard deviation of the entries at the start, before `init_scale`."""
        if self.zero_readout and tensor.role == "output":
            return 0.0
        return tensor.std * self.rule(tensor).std

    def init_(self, model: nn.Module, init_scale: float = 1.0) -> None:
        """Draws every tensor anew, normal with the planned deviation (constants as the base has them), and attaches.

        Args:
            init_scale: multiplies the deviations.

        Raises:
            BadInput: as `attach_` does; nothing is drawn then.
        """
        self.attach_(model)
        tensors = dict(_parameters(model))
        with torch.no_grad():
            for tensor, _ in self:
                drawn = tensors[tensor.name]
                std = init_scale * self.std(tensor)
                drawn.normal_(0.0, std) if tensor.std else drawn.fill_(tensor.mean)
                padding = getattr(_module(model, tensor.name), "padding_idx", None)
                if padding is not None:  # as torch.nn.Embedding begins
                    drawn[padding].zero_()

    def attach_(self, model: nn.Module) -> None:
        """The multipliers of readouts, residual branches and attention; again is as once.

        Not for a model that multiplies by itself.

        Raises:
            BadInput: a model whose parameters are not those of the plan; a branch that matches no module; heads that
                grow in a module whose scale of the logits is out of reach. Nothing is attached then.
        """
        self.check(model)
        readouts = [(_module(model, f"{name}.weight"), factor) for name, factor in self.readouts.items()]
        branches = [module for glob in self.branches for module in _matching(model, glob)]
        scales = [(_module(model, f"{h.module}.weight"), h) for h in self.heads]
        names = [_scale(module, head) for module, head in scales]
        for module, factor in readouts:
            _replace(module._forward_pre_hooks, ScaledInput)
            module.register_forward_pre_hook(ScaledInput(factor))
        for module in branches:
            _replace(module._forward_hooks, ScaledOutput)
            module.register_forward_hook(ScaledOutput(self.branch))
        for (module, head), name in zip(scales, names, strict=True):
            setattr(module, name, head.base**0.5 / head.target)

    def param_groups(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        lr_multipliers: Mapping[str, float] | None = None,
        undecayed: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Groups for a torch optimizer, from hyperparameters at the base; frozen tensors are in none.

        Args:
            eps: Adam's.
            lr_multipliers: factors on lr by role, hyperparameters of their own.
            undecayed: roles that have no weight decay, as often ("vector", "scalar").

        Returns:
            Groups of one role and one rule each; `optimizer` says whose they are, for some of Muon's plan are AdamW's.

        Raises:
            BadInput: a model whose parameters are not those of the plan; a role that is none; weight decay for Adam,
                where it is a part of the gradient and so does not transfer.
        """
        self.check(model)
        for role in (*(lr_multipliers or {}), *undecayed):
            if role not in ROLES:
                raise BadInput(f"param_groups: {role!r} is no role; {suggestion(role, ROLES)}")
        if self.optimizer == "adam" and weight_decay:
            raise BadInput(f"param_groups: Adam divides a weight decay of {weight_decay:g} away; plan for adamw")
        tensors = dict(_parameters(model))
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for tensor, its in self:
            if not tensors[tensor.name].requires_grad:
                continue
            settings = {
                "role": tensor.role,
                "optimizer": its.optimizer,
                "lr": lr * its.lr * (lr_multipliers or {}).get(tensor.role, 1.0),
                "weight_decay": 0.0 if tensor.role in undecayed else weight_decay * its.weight_decay,
                **({"eps": eps * its.eps} if its.optimizer in ("adam", "adamw") else {}),
            }
            group = groups.setdefault(tuple(settings.values()), {"params": [], **settings})
            group["params"].append(tensors[tensor.name])
        return list(groups.values())

    def check(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """That a model has the parameters of the plan, and each of those that train once in the optimizer.

        Raises:
            BadInput: naming the first that has not.
        """
        theirs, ours = dict(_parameters(model)), {t.name: t for t in self.roles}
        for name in sorted(set(ours) ^ set(theirs)):
            who = "the plan and not in the model" if name in ours else "the model and not in the plan"
            raise BadInput(f"plan: {name} is in {who}; plan again from the build that made the model")
        sharded = any("_fsdp_wrapped_module" in name for name, _ in model.named_parameters())  # local shapes
        for name, tensor in theirs.items():
            if tuple(tensor.shape) != ours[name].shape and not sharded:
                raise BadInput(
                    f"plan: {name} is {tuple(tensor.shape)} in the model and {ours[name].shape} in the plan; plan "
                    "again with the scale that the model was built at as target"
                )
        if optimizer is not None:
            _check_groups(theirs, optimizer)


def plan(
    roles: Roles,
    optimizer: str = "adamw",
    parametrization: str = "mup",
    branches: Sequence[str] | None = None,
    decay_exponent: float = 1.0,
    zero_readout: bool = False,
) -> Plan:
    """The plan of a model family.

    Args:
        optimizer: sgd, adam, adamw, lion, muon.
        parametrization: sp, mup, spectral, depth-mup, completep.
        branches: modules whose output is added to the residual stream, as ("*.attn.c_proj", "*.mlp.c_proj"); to be
            named where depth grows under a rule for it; () where the model multiplies them itself.
        decay_exponent: weight decay goes as lr^-this: 1 keeps lr weight_decay, 0 keeps weight_decay.
        zero_readout: the readout starts at zero, which drops what small networks have and large ones have not.

    Raises:
        BadInput: a name that is not known; depth without branches; a tied readout that shall start at zero, or be
            without a multiplier.
    """
    for name, known in ((optimizer, OPTIMIZERS), (parametrization, PARAMETRIZATIONS)):
        if name not in known:
            raise BadInput(f"plan: {name!r} is not known; {suggestion(name, known)}")
    if not 0 <= decay_exponent <= 1:
        raise BadInput(f"plan: decay_exponent must be between 0 and 1, got {decay_exponent:g}; 1 is independent decay")
    if parametrization in BRANCHES and roles.deeper != 1 and branches is None:
        factor = roles.deeper ** -BRANCHES[parametrization]
        raise BadInput(
            f"plan: {parametrization} multiplies every residual branch by {factor:g}; "
            'name the modules that end them, branches=("*.attn.c_proj", "*.mlp.c_proj"), or () if the model does it'
        )
    for tensor in roles:
        if len(set(tensor.roles.values())) > 1 and (zero_readout or parametrization == "spectral"):
            what = "a readout that starts at zero" if zero_readout else "spectral"
            other = next(iter(tensor.also))
            raise BadInput(f"plan: {tensor.name} is tied to {other}; untie them, {what} needs them apart")
    named = tuple(branches or ()) if parametrization in BRANCHES else ()
    return Plan(roles, optimizer, parametrization, named, decay_exponent, zero_readout)


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """By the names they have without wrappers."""
    for name, tensor in model.named_parameters():
        yield ".".join(part for part in name.split(".") if part not in WRAPPERS), tensor


def _module(model: nn.Module, name: str) -> nn.Module:
    """The module that owns a parameter, by the name that this has without wrappers."""
    module = model
    for part in name.split(".")[:-1]:
        module = getattr(_unwrapped(module), part) if part else module
    return _unwrapped(module)


def _unwrapped(module: nn.Module) -> nn.Module:
    for wrapper in WRAPPERS:
        if isinstance(inner := module._modules.get(wrapper), nn.Module) and len(module._modules) == 1:
            return _unwrapped(inner)
    return module


def _matching(model: nn.Module, glob: str) -> list[nn.Module]:
    """Modules by a glob on the names they have without wrappers."""
    names = {".".join(part for part in name.split(".") if part not in WRAPPERS): m for name, m in model.named_modules()}
    found = [module for name, module in names.items() if fnmatchcase(name, glob)]
    if not found:
        raise BadInput(f"plan: no module is named {glob!r}; {suggestion(glob, list(names))}")
    return found


def _scale(module: nn.Module, head: Head) -> str:
    """The attribute that scales the logits of a module's attention, at d^-½ or already at what it shall be."""
    wanted = head.target**-0.5, head.base**0.5 / head.target
    for name in SCALES:
        scale = getattr(module, name, None)
        if isinstance(scale, float) and any(math.isclose(scale, value) for value in wanted):
            return name
    raise BadInput(
        f"plan: {head.module} ({type(module).__name__}) has heads {head.base} wide at the base and {head.target} at "
        f"the target, and no {', '.join(SCALES)} of {wanted[0]:g} to set to {wanted[1]:g}; multiply its queries by "
        f"{wanted[1] / wanted[0]:g}, or let the number of heads grow"
    )


def _replace(hooks: dict[int, Any], kind: type) -> None:
    """Leaves no earlier hook of ours."""
    for key in [key for key, hook in hooks.items() if isinstance(hook, kind)]:
        del hooks[key]


def _check_groups(tensors: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    times = Counter(id(tensor) for group in optimizer.param_groups for tensor in group["params"])
    for name, tensor in tensors.items():
        if tensor.requires_grad and times[id(tensor)] != 1:
            count = times[id(tensor)]
            raise BadInput(f"plan: {name} is {count} times in the optimizer's groups; put it in one, with param_groups")


def _factors(its: Rule) -> list[str]:
    return [f"{its.lr:.3g}", f"{its.weight_decay:.3g}", f"{its.eps:.3g}", its.optimizer]
