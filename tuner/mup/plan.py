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
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tuner.errors import BadInput
from tuner.mup.growth import pattern
from tuner.mup.roles import ROLES, SCALES, Head, Role, Roles, aligned
from tuner.mup.rules import BRANCHES, OPTIMIZERS, PARAMETRIZATIONS, Rule, multipliers, rule
from tuner.parametrization import DATA, over_data
from tuner.space import suggestion

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module")  # of torch.compile and FSDP, as parts of names


@dataclass(frozen=True)
class ScaledInput:
    """A forward pre-hook: a readout sees its input times a factor, so that its bias keeps its size."""

    factor: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (args[0] * self.factor, *args[1:]), kwargs
        first, *others = kwargs.items()
        return args, {first[0]: first[1] * self.factor, **dict(others)}


@dataclass(frozen=True)
class ScaledOutput:
    """A forward hook: what a residual branch adds, times a factor."""

    factor: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # as attention returns: what it puts out, and its weights
            return (output[0] * self.factor, *output[1:])
        return output * self.factor


@dataclass(frozen=True)
class AtBase:
    """Hyperparameters at the base.

    Args:
        eps: Adam's.
        betas: Adam's; None leaves them to the optimizer, unless the plan moves them.
        lr_multipliers: factors on lr by role, hyperparameters of their own.
        undecayed: roles that have no weight decay, as often ("vector", "scalar").
        init_scale: of the deviations that tensors start with.

    Raises:
        BadInput: a number that is not finite, or not above zero where it must be; a role that is none.
    """

    lr: float
    weight_decay: float = 0.0
    eps: float = 1e-8
    betas: Sequence[float] | None = None
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)
    undecayed: Sequence[str] = ()
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        for role in (*self.lr_multipliers, *self.undecayed):
            if role not in ROLES:
                raise BadInput(f"plan: {role!r} is no role; {suggestion(role, ROLES)}")
        multipliers = {f"lr_multipliers[{role!r}]": value for role, value in self.lr_multipliers.items()}
        for name, value in {"init_scale": self.init_scale, **multipliers}.items():
            if not 0 < value < math.inf:
                raise BadInput(f"plan: {name} must be a finite number above zero, got {value!r}; correct it")
        for name, value in {"lr": self.lr, "weight_decay": self.weight_decay, "eps": self.eps}.items():
            if not 0 <= value < math.inf:
                raise BadInput(f"plan: {name} must be a finite number, at least zero, got {value!r}; correct it")
        if self.betas is not None and not (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)):
            raise BadInput(f"plan: betas must be two numbers, at least 0 and below 1, got {self.betas!r}; correct them")


@dataclass(frozen=True)
class Plan:
    """What becomes of each tensor of a model family on its way from base to target.

    Args:
        roles: the tensors.
        optimizer, parametrization: see `tuner.mup.rules`.
        branches: modules whose output is added to the residual stream, `*` standing for any characters.
        own: modules, readouts or attention, that multiply by themselves.
        decay_exponent: of 1 / lr in the factor of weight decay.
        zero_readout: the readout starts at zero.
    """

    roles: Roles
    optimizer: str
    parametrization: str
    branches: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    decay_exponent: float = 1.0
    zero_readout: bool = False

    def __iter__(self) -> Iterator[tuple[Role, Rule]]:
        for tensor in self.roles:
            yield tensor, self.rule(tensor)

    def rule(self, tensor: Role) -> Rule:
        its = rule(tensor, self.optimizer, self.parametrization, self.roles.deeper, self.decay_exponent)
        moved = {name: getattr(its, name) * self.over_data(name) for name in ("lr", "weight_decay", "eps")}
        return replace(its, **moved)

    def over_data(self, role: str) -> float:
        """What batch and tokens make of a hyperparameter, one_minus_beta1 and one_minus_beta2 among them."""
        if self.parametrization != "completedp":
            return 1.0
        return over_data(self.optimizer, role, self.roles.target, self.roles.base)

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
        factor = self.over_data("one_minus_beta2")
        told += [f"1 - beta x {factor:.3g}"] if factor != 1 else []
        told += [f"logits of attention x {m**0.5 / n:.3g}, {m}^½ / {n}, in place of {n}^-½" for m, n in heads]
        return "\n".join([aligned([head, *lines]), *told])

    @property
    def readouts(self) -> dict[str, float]:
        """What the input of a module is multiplied by, where that is not 1."""
        return {
            name.rpartition(".")[0]: factor
            for tensor in self.roles
            for name, factor in multipliers(tensor, self.parametrization).items()
            if factor != 1 and not self._own(name.rpartition(".")[0])
        }

    @property
    def branch_modules(self) -> tuple[str, ...]:
        """The modules that `branches` stands for."""
        return tuple(m for m in self.roles.modules if any(fnmatchcase(m, glob) for glob in self.branches))

    @property
    def heads(self) -> Sequence[Head]:
        """Those whose logits are divided by d in place of d^½."""
        grown = [head for head in self.roles.heads if head.base != head.target and not self._own(head.module)]
        return () if self.parametrization == "sp" else grown

    def _own(self, module: str) -> bool:
        return any(fnmatchcase(module, glob) for glob in self.own)

    def std(self, tensor: Role) -> float:
        """Standard deviation of the entries at the start, before `init_scale`."""
        if self.zero_readout and tensor.role == "output":
            return 0.0
        return tensor.std * self.rule(tensor).std

    def start(self, tensor: Role, init_scale: float = 1.0) -> tuple[float, float] | None:
        """Deviation and mean of the entries at the start; None where a tensor follows a plan of its own."""
        if not tensor.std:
            return 0.0, tensor.mean
        return None if tensor.mean else (init_scale * self.std(tensor), 0.0)

    def init_(self, model: nn.Module, init_scale: float = 1.0) -> None:
        """Draws the tensors anew, normal with the planned deviation (constants as the base has them), and attaches.

        Left as they are: what does not train, and what starts neither at a constant nor around zero.

        Args:
            init_scale: multiplies the deviations.

        Raises:
            BadInput: as `attach_` does; nothing is drawn then.
        """
        AtBase(1.0, init_scale=init_scale)  # refuses what cannot be
        self.attach_(model)
        tensors = dict(_parameters(model))
        with torch.no_grad():
            for tensor in self.roles:
                drawn, start = tensors[tensor.name], self.start(tensor, init_scale)
                if not drawn.requires_grad or start is None:
                    continue
                drawn.normal_(0.0, start[0]) if start[0] else drawn.fill_(start[1])
                for owner in (_module(model, name) for name in tensor.roles):
                    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and owner.padding_idx is not None:
                        drawn[owner.padding_idx].zero_()

    def attach_(self, model: nn.Module) -> None:
        """The multipliers of readouts, residual branches and attention, in place of those of another plan.

        Not for a model that multiplies by itself (`own`); and before a compiled one first runs.

        Raises:
            BadInput: a model whose parameters are not those of the plan; a readout or a branch whose module cannot be
                multiplied from outside; heads that grow in a module whose scale of the logits is out of reach. Nothing
                is attached then.
        """
        self.check(model)
        readouts = [(_readout(_module(model, f"{name}.weight"), name, f), f) for name, f in self.readouts.items()]
        modules = dict(_modules(model))
        branches = [_branch(modules[name], name) for name in self.branch_modules]
        scales = [(_module(model, f"{head.module}.weight"), head) for head in self.heads]
        names = [_scale(module, head) for module, head in scales]
        for module in model.modules():
            _detach(module)
        for module, factor in readouts:
            module.register_forward_pre_hook(ScaledInput(factor), with_kwargs=True)
        for module in branches:
            module.register_forward_hook(ScaledOutput(self.branch))
        for (module, head), name in zip(scales, names, strict=True):
            setattr(module, name, head.base**0.5 / head.target)

    def param_groups(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        betas: Sequence[float] | None = None,
        lr_multipliers: Mapping[str, float] | None = None,
        undecayed: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Groups for a torch optimizer, from hyperparameters at the base; frozen tensors are in none.

        Args:
            lr, weight_decay, eps, betas, lr_multipliers, undecayed: see `AtBase`.

        Returns:
            Groups of one role and one rule each; `optimizer` says whose they are, for some of Muon's plan are AdamW's.

        Raises:
            BadInput: a model whose parameters are not those of the plan; what `AtBase` and `settings` refuse.
        """
        self.check(model)
        at_base = AtBase(lr, weight_decay, eps, betas, lr_multipliers or {}, undecayed)
        tensors = dict(_parameters(model))
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for tensor, settings in self.settings(at_base):
            if tensors[tensor.name].requires_grad:
                group = groups.setdefault(tuple(settings.values()), {"params": [], **settings})
                group["params"].append(tensors[tensor.name])
        return list(groups.values())

    def settings(self, at_base: AtBase) -> Iterator[tuple[Role, dict[str, Any]]]:
        """What each tensor is stepped with at the target.

        Raises:
            BadInput: weight decay for Adam, where it is a part of the gradient and so does not transfer; betas that
                are missing, or cannot be moved.
        """
        if self.optimizer == "adam" and at_base.weight_decay:
            raise BadInput(f"plan: Adam divides a weight decay of {at_base.weight_decay:g} away; plan for adamw")
        averaged = self._betas(at_base.betas)
        for tensor, its in self:
            yield (
                tensor,
                {
                    "role": tensor.role,
                    "optimizer": its.optimizer,
                    "lr": at_base.lr * its.lr * at_base.lr_multipliers.get(tensor.role, 1.0),
                    "weight_decay": 0.0
                    if tensor.role in at_base.undecayed
                    else at_base.weight_decay * its.weight_decay,
                    **({"eps": at_base.eps * its.eps, **averaged} if its.optimizer in ("adam", "adamw") else {}),
                },
            )

    def _betas(self, betas: Sequence[float] | None) -> dict[str, tuple[float, ...]]:
        """Adam's betas at the target, as a setting of a group: 1 - beta moves, and must stay below 1."""
        factor = self.over_data("one_minus_beta2")
        if betas is None:
            if factor != 1:
                raise BadInput(f"plan: this plan multiplies 1 - beta by {factor:g}; pass Adam's betas at the base")
            return {}
        if self.optimizer in ("sgd", "lion"):
            raise BadInput(f"plan: betas are Adam's, and this plan is for {self.optimizer}; leave them out")
        moved = tuple(1 - factor * (1 - beta) for beta in betas)
        for beta, there in zip(betas, moved, strict=True):
            if there < 0:
                raise BadInput(
                    f"plan: the batch takes a beta of {beta:g} to {there:g}, where the rule ends; take a larger beta "
                    "or a smaller batch"
                )
        return {"betas": moved}

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
            check_groups(theirs, optimizer)


def plan(
    roles: Roles,
    optimizer: str = "adamw",
    parametrization: str = "mup",
    branches: Sequence[str] | None = None,
    own: Sequence[str] = (),
    decay_exponent: float = 1.0,
    zero_readout: bool = False,
) -> Plan:
    """The plan of a model family.

    Args:
        optimizer: sgd, adam, adamw, lion, muon.
        parametrization: sp, mup, spectral, depth-mup, completep, completedp.
        branches: modules whose output is added to the residual stream, as ("*.attn.c_proj", "*.mlp.c_proj"); to be
            named where depth grows under a rule for it; () where the model multiplies them itself.
        own: readouts and attention that the model multiplies itself.
        decay_exponent: weight decay goes as lr^-this: 1 keeps lr weight_decay, 0 keeps weight_decay.
        zero_readout: the readout starts at zero, which drops what small networks have and large ones have not.

    Raises:
        BadInput: a name that is not known; depth without branches; a tied readout that shall start at zero, or be
            without a multiplier.
    """
    for name, known in ((optimizer, OPTIMIZERS), (parametrization, PARAMETRIZATIONS)):
        if name not in known:
            raise BadInput(f"plan: {name!r} is not known; {suggestion(name, known)}")
    if parametrization == "completedp" and optimizer not in DATA:
        raise BadInput(f"plan: completedp is known for {', '.join(DATA)}, got {optimizer}; take completep")
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
    planned = Plan(roles, optimizer, parametrization, named, tuple(own), decay_exponent, zero_readout)
    for what, globs in (("branches", branches or ()), ("own", own)):
        _check_globs(what, globs, roles.modules)
    for inner in planned.branch_modules:
        for outer in planned.branch_modules:
            if inner.startswith(f"{outer}.") or (outer == "" and inner):
                raise BadInput(
                    f"plan: branches name {inner} and {outer or 'the model'} around it, which would be multiplied "
                    "twice; name the one that ends the branch (* stands for dots too)"
                )
    return planned


def _inner(model: nn.Module) -> nn.Module:
    """What DDP holds."""
    return _inner(model.module) if isinstance(model, (DistributedDataParallel, nn.DataParallel)) else model


def _bare(name: str) -> str:
    """A name without the parts that wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """By the names they have without wrappers."""
    return ((_bare(name), tensor) for name, tensor in _inner(model).named_parameters())


def _module(model: nn.Module, name: str) -> nn.Module:
    """The module that owns a parameter, by the name that this has without wrappers."""
    owner = name.rpartition(".")[0]
    return next(module for other, module in _modules(model) if other == owner)


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """By the names they have without wrappers, and not the wrappers."""
    for name, module in _inner(model).named_modules():
        if not any(wrapper in module._modules for wrapper in WRAPPERS):
            yield _bare(name), module


def _check_globs(what: str, globs: Sequence[str], modules: Sequence[str]) -> None:
    if isinstance(globs, str):
        raise BadInput(f'plan: {what} is a sequence of names, got {globs!r}; write ("{globs}",)')
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in modules):
            raise BadInput(f"plan: {what} names {glob!r}, which is no module; {suggestion(glob, modules)}")


def _readout(module: nn.Module, name: str, factor: float) -> nn.Module:
    """A module of which it is known that its output is its weight times its input."""
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or type(module).__name__ == "Conv1D":
        return module
    where = name or "the model itself"
    raise BadInput(
        f"plan: {where} ({type(module).__name__}) reads out and cannot be multiplied from outside; multiply what it "
        f'puts out by {factor:g} there, and say so: own=("{name}",)'
    )


def _branch(module: nn.Module, name: str) -> nn.Module:
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):  # whose forward attention never calls
        owner = name.rpartition(".")[0]
        raise BadInput(
            f"plan: {name} is called by nothing, its attention uses its weight; name {owner!r} as the branch"
        )
    return module


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
        f'{wanted[1] / wanted[0]:g} and say so, own=("{head.module}",), or let the number of heads grow'
    )


def _detach(module: nn.Module) -> None:
    """Leaves no hook of an earlier plan."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, (ScaledInput, ScaledOutput))]:
            del hooks[key]


def check_groups(tensors: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """That an optimizer has every tensor that trains once.

    Raises:
        BadInput: naming the first that it has not, or more than once.
    """
    times = Counter(id(tensor) for group in optimizer.param_groups for tensor in group["params"])
    for name, tensor in tensors.items():
        if tensor.requires_grad and times[id(tensor)] != 1:
            count = times[id(tensor)]
            raise BadInput(f"plan: {name} is {count} times in the optimizer's groups; put it in one, or freeze it")


def _factors(its: Rule) -> list[str]:
    return [f"{its.lr:.3g}", f"{its.weight_decay:.3g}", f"{its.eps:.3g}", its.optimizer]
