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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tuner.errors import BadInput
from tuner.mup.plan import AtBase, Plan
from tuner.mup.rules import multipliers
from tuner.space import suggestion

CODE = '''"""Planned by transfer-tuner: {optimizer}, {parametrization}, from {base} to {target}."""

# name: (settings of its group, deviation and mean at the start or None: left as it is)
TENSORS = {{
{tensors}
}}
READOUTS = {readouts}  # module: factor of its input
BRANCHES = {branches}  # module: factor of its output
{heads}

def param_groups(model):
    """Groups for a torch optimizer; of Muon's plan some are AdamW's, as "optimizer" says."""
    groups = {{}}
    for name, tensor in model.named_parameters():
        settings, _ = TENSORS[name]
        if tensor.requires_grad:
            groups.setdefault(tuple(settings.values()), {{"params": [], **settings}})["params"].append(tensor)
    return list(groups.values())


def initialise(model):
    """Draws the weights."""
    for name, tensor in model.named_parameters():
        _, start = TENSORS[name]
        if tensor.requires_grad and start is not None:
            tensor.data.normal_(0.0, start[0]) if start[0] else tensor.data.fill_(start[1])
    for module in model.modules():
        if getattr(module, "padding_idx", None) is not None:
            module.weight.data[module.padding_idx].zero_()


def multiply(model):
    """Attaches the multipliers; once."""

    def scaled_input(factor):
        def hook(module, args, kwargs):
            if args:
                return (args[0] * factor, *args[1:]), kwargs
            first, *others = kwargs.items()
            return args, {{first[0]: first[1] * factor, **dict(others)}}

        return hook

    def scaled_output(factor):
        def hook(module, args, output):
            return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

        return hook

    for name, factor in READOUTS.items():
        model.get_submodule(name).register_forward_pre_hook(scaled_input(factor), with_kwargs=True)
    for name, factor in BRANCHES.items():
        model.get_submodule(name).register_forward_hook(scaled_output(factor))
'''


def export(
    plan: Plan,
    format: str,
    lr: float,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    init_scale: float = 1.0,
    betas: Sequence[float] | None = None,
    lr_multipliers: Mapping[str, float] | None = None,
    undecayed: Sequence[str] = (),
) -> str:
    """A plan with its hyperparameters at the base (see `tuner.mup.plan.AtBase`), as text in one of the formats above.

    Raises:
        BadInput: a format that is not known, or that cannot say what this plan says; hyperparameters that cannot be.
    """
    if format not in FORMATS:
        raise BadInput(f"export: no format is named {format!r}; {suggestion(format, list(FORMATS))}")
    at_base = AtBase(lr, weight_decay, eps, betas, lr_multipliers or {}, undecayed, init_scale)
    settings = {tensor.name: told for tensor, told in plan.settings(at_base)}
    return FORMATS[format](plan, at_base, settings)


Settings = Mapping[str, Mapping[str, Any]]  # by tensor


def _json(plan: Plan, at_base: AtBase, settings: Settings) -> str:
    tensors = [
        {
            "name": tensor.name,
            "also": dict(tensor.also),
            "shape": tensor.shape,
            **settings[tensor.name],
            "starts": None if start is None else {"std": start[0]} if start[0] else {"constant": start[1]},
            "multipliers": multipliers(tensor, plan.parametrization),
        }
        for tensor in plan.roles
        for start in [plan.start(tensor, at_base.init_scale)]
    ]
    head = {name: getattr(plan, name) for name in ("optimizer", "parametrization", "branches", "branch")}
    scales = {"base": dict(plan.roles.base), "target": dict(plan.roles.target)}
    heads = [{**asdict(head), "logits": head.base**0.5 / head.target} for head in plan.heads]
    return json.dumps({**head, **scales, "at_base": asdict(at_base), "heads": heads, "tensors": tensors}, indent=1)


def _python(plan: Plan, at_base: AtBase, settings: Settings) -> str:
    tensors = [
        f"    {tensor.name!r}: ({dict(settings[tensor.name])!r}, {plan.start(tensor, at_base.init_scale)!r}),"
        for tensor in plan.roles
    ]
    heads = [
        f"# the logits of {head.module} are q.k times {head.base**0.5 / head.target:.6g}, not {head.target**-0.5:.6g}\n"
        for head in plan.heads
    ]
    return CODE.format(
        optimizer=plan.optimizer,
        parametrization=plan.parametrization,
        base=plan.roles.base,
        target=plan.roles.target,
        tensors="\n".join(tensors),
        readouts=plan.readouts,
        branches=dict.fromkeys(plan.branch_modules, plan.branch),
        heads="".join(heads),
    )


def _mup(plan: Plan, at_base: AtBase, settings: Settings) -> str:
    """Base shapes of the mup package, YAML: the dimensions that grow at the base, null for the others."""
    if plan.parametrization not in ("mup", "completep", "depth-mup") or plan.branch != 1:
        raise BadInput(f"export: mup knows muP over width, got {plan.parametrization} and branches x {plan.branch:g}")
    lines = []
    for tensor in plan.roles:
        dimensions = [str(m) if n != m else "null" for n, m in zip(tensor.shape, tensor.narrow, strict=True)]
        lines.append(f"{tensor.name}: [{', '.join(dimensions)}]")
    return "\n".join(lines) + "\n"


def _granite(plan: Plan, at_base: AtBase, settings: Settings) -> str:
    """Settings of `transformers.GraniteConfig`, JSON."""
    if not plan.roles.heads:
        raise BadInput("export: granite needs the width of the heads, and no module says it; take python")
    growing = {head.module for head in plan.heads}
    heads = {head.base**0.5 / head.target if head.module in growing else head.target**-0.5 for head in plan.roles.heads}
    readouts = set(plan.readouts.values()) or {1.0}
    if len(heads) > 1 or len(readouts) > 1:
        raise BadInput(f"export: granite has one readout and one kind of head, got {readouts} and {heads}; take python")
    chosen = {
        "embedding_multiplier": 1.0,
        "residual_multiplier": plan.branch,
        "logits_scaling": 1 / readouts.pop(),
        "attention_multiplier": heads.pop(),
    }
    return json.dumps(chosen, indent=1)


def _megatron(plan: Plan, at_base: AtBase, settings: Settings) -> str:
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
        f"--init-method-std {at_base.init_scale * max(stds):.6g}",
        f"--lr {at_base.lr:g}",
        f"--adam-eps {at_base.eps:g}",
        f"--weight-decay {at_base.weight_decay:g}",
        f"# hidden matrices: weight decay stays {at_base.weight_decay:g} there, this plan has "
        f"{at_base.weight_decay * max(its.weight_decay for _, its in plan):g}",
    ]
    return "\n".join(lines) + "\n"


FORMATS: Mapping[str, Callable[[Plan, AtBase, Settings], str]] = {
    "json": _json,
    "python": _python,
    "mup": _mup,
    "granite": _granite,
    "megatron": _megatron,
}
