"""The plan in other hands: as JSON, as Python that needs no tuner, and as the settings of libraries that know muP.

| format   | is                                            | what it cannot say                                      |
|----------|-----------------------------------------------|---------------------------------------------------------|
| json     | every number                                  |                                                         |
| python   | functions that initialise, multiply and group | the scale of attention's logits, which it names         |
| mup      | base shapes, for `mup.set_base_shapes`        | depth, spectral, epsilon; read out with `mup.MuReadout` |
| granite  | a configuration of transformers' Granite      | rates and starts, which are by tensor: see python       |
| megatron | options of Megatron-LM's muP                  | weight decay, which it leaves as it is; several widths  |

What a format cannot say of this plan is refused, or stands as a comment where it is partial.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

from tuner.errors import BadInput
from tuner.mup.plan import Plan
from tuner.mup.rules import multipliers
from tuner.space import suggestion

CODE = '''"""Planned by transfer-tuner: {optimizer}, {parametrization}, from {base} to {target}."""

# name: (role, whose steps, lr, weight decay, epsilon, deviation at the start or the constant it starts at, is constant)
TENSORS = {{
{tensors}
}}
READOUTS = {readouts}  # module: factor of its input
BRANCHES = {branches}  # module: factor of its output
{heads}{betas}

def param_groups(model):
    """Groups for a torch optimizer; of Muon's plan some are AdamW's, as "optimizer" says."""
    groups = {{}}
    for name, tensor in model.named_parameters():
        role, optimizer, lr, weight_decay, eps, _, _ = TENSORS[name]
        settings = {{"role": role, "optimizer": optimizer, "lr": lr, "weight_decay": weight_decay}}
        if optimizer in ("adam", "adamw"):
            settings["eps"] = eps
        groups.setdefault(tuple(settings.values()), {{"params": [], **settings}})["params"].append(tensor)
    return list(groups.values())


def initialise(model):
    """Draws the weights."""
    for name, tensor in model.named_parameters():
        *_, start, constant = TENSORS[name]
        tensor.data.fill_(start) if constant else tensor.data.normal_(0.0, start)


def multiply(model):
    """Attaches the multipliers; once."""
    for name, factor in READOUTS.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, factor=factor: (args[0] * factor, *args[1:])
        )
    for name, factor in BRANCHES.items():
        model.get_submodule(name).register_forward_hook(lambda module, args, output, factor=factor: output * factor)
'''


def export(
    plan: Plan, format: str, lr: float, weight_decay: float = 0.0, eps: float = 1e-8, init_scale: float = 1.0
) -> str:
    """A plan with its hyperparameters at the base, as text in one of the formats above.

    Raises:
        BadInput: a format that is not known, or that cannot say what this plan says.
    """
    if format not in FORMATS:
        raise BadInput(f"export: no format is named {format!r}; {suggestion(format, list(FORMATS))}")
    return FORMATS[format](plan, {"lr": lr, "weight_decay": weight_decay, "eps": eps, "init_scale": init_scale})


Told = Mapping[str, float]


def _json(plan: Plan, told: Told) -> str:
    tensors = [
        {
            "name": tensor.name,
            "also": dict(tensor.also),
            "shape": tensor.shape,
            "role": tensor.role,
            "optimizer": its.optimizer,
            "lr": told["lr"] * its.lr,
            "weight_decay": told["weight_decay"] * its.weight_decay,
            "eps": told["eps"] * its.eps,
            "starts": {"std": told["init_scale"] * plan.std(tensor)} if tensor.std else {"constant": tensor.mean},
            "multipliers": multipliers(tensor, plan.parametrization),
        }
        for tensor, its in plan
    ]
    head = {name: getattr(plan, name) for name in ("optimizer", "parametrization", "branches", "branch")}
    head["one_minus_beta"] = plan.over_data("one_minus_beta2")  # a factor
    scales = {"base": dict(plan.roles.base), "target": dict(plan.roles.target)}
    heads = [{**asdict(head), "logits": head.base**0.5 / head.target} for head in plan.heads]
    return json.dumps({**head, **scales, "at_base": dict(told), "heads": heads, "tensors": tensors}, indent=1)


def _python(plan: Plan, told: Told) -> str:
    tensors = []
    for tensor, its in plan:
        rates = told["lr"] * its.lr, told["weight_decay"] * its.weight_decay, told["eps"] * its.eps
        start = told["init_scale"] * plan.std(tensor) if tensor.std else tensor.mean
        tensors.append(f"    {tensor.name!r}: {(tensor.role, its.optimizer, *rates, start, not tensor.std)!r},")
    heads = [
        f"# the logits of {head.module} are q.k times {head.base**0.5 / head.target:.6g}, not {head.target**-0.5:.6g}\n"
        for head in plan.heads
    ]
    factor = plan.over_data("one_minus_beta2")
    return CODE.format(
        optimizer=plan.optimizer,
        parametrization=plan.parametrization,
        base=plan.roles.base,
        target=plan.roles.target,
        tensors="\n".join(tensors),
        readouts=plan.readouts,
        branches=dict.fromkeys(plan.branch_modules, plan.branch),
        heads="".join(heads),
        betas=f"# 1 - beta of the optimizer is {factor:g} times the base's\n" if factor != 1 else "",
    )


def _mup(plan: Plan, told: Told) -> str:
    """Base shapes of the mup package, YAML: the dimensions that grow at the base, null for the others."""
    if plan.parametrization not in ("mup", "completep", "depth-mup") or plan.branch != 1:
        raise BadInput(f"export: mup knows muP over width, got {plan.parametrization} and branches x {plan.branch:g}")
    lines = []
    for tensor in plan.roles:
        dimensions = [str(m) if n != m else "null" for n, m in zip(tensor.shape, tensor.narrow, strict=True)]
        lines.append(f"{tensor.name}: [{', '.join(dimensions)}]")
    return "\n".join(lines) + "\n"


def _granite(plan: Plan, told: Told) -> str:
    """Settings of `transformers.GraniteConfig`, JSON."""
    heads = {head.base**0.5 / head.target for head in plan.heads}
    readouts = set(plan.readouts.values()) or {1.0}
    if len(heads) > 1 or len(readouts) > 1:
        raise BadInput(f"export: granite has one readout and one kind of head, got {readouts} and {heads}; take python")
    settings = {
        "embedding_multiplier": 1.0,
        "residual_multiplier": plan.branch,
        "logits_scaling": 1 / readouts.pop(),
        **({"attention_multiplier": heads.pop()} if heads else {}),
    }
    return json.dumps(settings, indent=1)


def _megatron(plan: Plan, told: Told) -> str:
    """Options of Megatron-LM (its pull request 3058), one a line; not tried against Megatron-LM itself."""
    if plan.parametrization != "mup" or plan.optimizer not in ("adam", "adamw") or "width" not in plan.roles.base:
        raise BadInput(
            f"export: Megatron-LM's muP is Adam's over one width, got {plan.parametrization} with {plan.optimizer} "
            f"over {', '.join(plan.roles.base)}; take python"
        )
    wider = {tensor.wider_in for tensor in plan.roles if tensor.role in ("hidden", "output")}
    if len(wider) > 1:
        raise BadInput(f"export: Megatron-LM's muP has one width, this plan's grow by {sorted(wider)}; take python")
    stds = {tensor.std for tensor in plan.roles if tensor.role == "hidden"}
    lines = [
        "--use-mup",
        f"--mup-base-hidden-size {plan.roles.base['width']:g}",
        *(f"--mup-base-head-dim {head.base}" for head in plan.heads[:1]),
        f"--init-method-std {told['init_scale'] * max(stds):.6g}",
        f"--lr {told['lr']:g}",
        f"--adam-eps {told['eps']:g}",
        f"--weight-decay {told['weight_decay']:g}",
        f"# hidden matrices: weight decay stays {told['weight_decay']:g} there, this plan has "
        f"{told['weight_decay'] * max(its.weight_decay for _, its in plan):g}",
    ]
    return "\n".join(lines) + "\n"


FORMATS: Mapping[str, Callable[[Plan, Told], str]] = {
    "json": _json,
    "python": _python,
    "mup": _mup,
    "granite": _granite,
    "megatron": _megatron,
}
