"""Ways to get a parametrization wrong, planted one by one: which of them the coordinate check names, by what evidence.

    OMP_NUM_THREADS=1 python -m benchmarks.planted wrong
    OMP_NUM_THREADS=1 python -m benchmarks.planted right --seeds 10

The model is `benchmarks.nanogpt`. Each family is right (muP by the plan, AdamW, independent weight decay) but for one
thing. `right` checks families that differ and are right, with other seeds each time: none may fail.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.nanogpt import Chars
from tuner.mup import Coordinates, Plan, coordinate_check, plan, roles
from tuner.mup.plan import ScaledInput
from tuner.scale import Scale

Groups = list[dict[str, Any]]
BRANCHES = ("blocks.*.attention.project", "blocks.*.down")
DEPTHS = tuple(Scale(width=width, depth=depth) for width in (64, 128) for depth in (2, 4, 8))


def unchanged(model: nn.Module, groups: Groups, planned: Plan, wider: float) -> None:
    """Right."""


@dataclass(frozen=True)
class Changed(Chars):
    """The right family, changed after the plan was applied.

    Args:
        change: of the model and its groups, in place, given the plan and width / smallest width.
        options: of the plan.
    """

    change: Callable[[nn.Module, Groups, Plan, float], None] = unchanged
    options: tuple[tuple[str, Any], ...] = ()
    over: tuple[Scale, ...] = Chars.scales

    def optimizer(self, model: nn.Module, scale: Scale, lr: float) -> torch.optim.Optimizer:
        planned = plan(roles(self.build, self.over[0], scale), **dict(self.options))
        planned.init_(model)
        groups = [
            {**group, "params": [tensor], "name": name}
            for group in planned.param_groups(model, lr, weight_decay=0.1)
            for tensor in group["params"]
            for name, its in model.named_parameters()
            if its is tensor
        ]
        self.change(model, groups, planned, scale["width"] / self.over[0]["width"])
        return torch.optim.AdamW(groups)


def rate(role: str, power: float, part: str = "") -> Callable[..., None]:
    """The rate of a role's tensors times a power of the width, its weight decay by the inverse."""

    def change(model: nn.Module, groups: Groups, planned: Plan, wider: float) -> None:
        for group in groups:
            if group["role"] == role and part in group["name"]:
                group["lr"] *= wider**power
                group["weight_decay"] *= wider**-power

    return change


def start(role: str, power: float) -> Callable[..., None]:
    """A role's tensors times a power of the width."""

    def change(model: nn.Module, groups: Groups, planned: Plan, wider: float) -> None:
        for group in groups:
            if group["role"] == role and group["name"].endswith("weight"):
                group["params"][0].data.mul_(wider**power)

    return change


def unattached(model: nn.Module, groups: Groups, planned: Plan, wider: float) -> None:
    """No multiplier reaches the forward pass."""
    for module in model.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()


def branches_unattached(model: nn.Module, groups: Groups, planned: Plan, wider: float) -> None:
    """Readouts keep theirs."""
    for module in model.modules():
        module._forward_hooks.clear()


def moved(model: nn.Module, groups: Groups, planned: Plan, wider: float) -> None:
    """Of hidden matrices: multiplier m^-½, deviation and rate m^½ times what they were; the same function, trained."""
    for group in groups:
        if group["role"] == "hidden":
            module = model.get_submodule(group["name"].rpartition(".")[0])
            module.register_forward_pre_hook(ScaledInput(wider**-0.5), with_kwargs=True)
            group["params"][0].data.mul_(wider**0.5)
            group["lr"] *= wider**0.5
            group["weight_decay"] *= wider**-0.5


def square_root(model: nn.Module, groups: Groups, planned: Plan, wider: float) -> None:
    for module in model.modules():
        if hasattr(module, "head_dim"):
            module.scale = module.head_dim**-0.5


def both(*changes: Callable[..., None]) -> Callable[..., None]:
    def change(*args: Any) -> None:
        for one in changes:
            one(*args)

    return change


def one_decay(model: nn.Module, groups: Groups, planned: Plan, wider: float) -> None:
    for group in groups:
        group["weight_decay"] = 0.1


@dataclass(frozen=True)
class Coupled(Changed):
    """Adam, whose weight decay is a part of the gradient."""

    def optimizer(self, model: nn.Module, scale: Scale, lr: float) -> torch.optim.Optimizer:
        adamw = super().optimizer(model, scale, lr)
        return torch.optim.Adam(
            [{"params": g["params"], "lr": g["lr"], "weight_decay": 0.01} for g in adamw.param_groups]
        )


@dataclass(frozen=True)
class Rebased(Changed):
    """Every width is its own base."""

    def optimizer(self, model: nn.Module, scale: Scale, lr: float) -> torch.optim.Optimizer:
        planned = plan(roles(self.build, scale, scale))
        planned.init_(model)
        return torch.optim.AdamW(planned.param_groups(model, lr, weight_decay=0.1))


DEEP = (("parametrization", "completep"), ("branches", BRANCHES))
WRONG: dict[str, Changed] = {
    "standard parametrization": Changed(options=(("parametrization", "sp"),)),
    "base taken anew at every width": Rebased(),
    "hidden rate not scaled": Changed(change=rate("hidden", 1)),
    "hidden rate scaled twice": Changed(change=rate("hidden", -1)),
    "hidden weights start as wide as the base's": Changed(change=start("hidden", 0.5)),
    "readout without its multiplier": Changed(change=unattached),
    "readout starts as in the standard parametrization": Changed(
        both(unattached, rate("output", -1), start("output", -0.5))
    ),
    "embedding with the hidden rate": Changed(change=rate("input", -1)),
    "embedding starts as a hidden matrix": Changed(change=start("input", -0.5)),
    "biases with the hidden rate": Changed(change=rate("vector", -1, "bias")),
    "gains with the hidden rate": Changed(change=rate("vector", -1, "norm")),
    "attention by 1/sqrt(d)": Changed(change=square_root),
    "weight decay not scaled with the rate": Changed(change=one_decay),
    "Adam with weight decay in the gradient": Coupled(),
    "tied embedding without the readout's multiplier": Changed(change=unattached, tied=True),
    "no residual multiplier in depth": Changed(change=branches_unattached, options=DEEP, over=DEPTHS),
}
RIGHT: dict[str, Changed] = {
    "mup, AdamW": Changed(),
    "mup, readout at zero": Changed(options=(("zero_readout", True),)),
    "mup, tied": Changed(tied=True),
    "spectral, AdamW": Changed(options=(("parametrization", "spectral"),)),
    "unit weights: multipliers of hidden matrices (as in u-muP)": Changed(change=moved),
    "completep, width and depth": Changed(options=DEEP, over=DEPTHS),
}


def checked(family: Changed, first: int) -> tuple[Coordinates, float]:
    began = time.perf_counter()
    told = coordinate_check(family, scales=family.over, seeds=range(first, first + 4))
    return told, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["wrong", "right"])
    parser.add_argument("--seeds", type=int, default=10, help="checks of each right family, of four runs a scale each")
    chosen = parser.parse_args()
    if chosen.what == "wrong":
        print("| planted | verdict | first evidence | s |\n|---|---|---|---|")
        for name, family in WRONG.items():
            told, seconds = checked(family, 0)
            print(f"| {name} | {told.verdict} | {told.worst} | {seconds:.0f} |", flush=True)
        return
    print("| right | pass | undetermined | fail | steepest slope of all | s |\n|---|---|---|---|---|---|")
    for name, family in RIGHT.items():
        found = [checked(family, 4 * k) for k in range(chosen.seeds)]
        counts = [sum(told.verdict == v for told, _ in found) for v in ("pass", "undetermined", "fail")]
        steepest = max((told.worst for told, _ in found), key=lambda slope: slope.wrong)
        cells = [name, *map(str, counts), str(steepest), f"{max(s for _, s in found):.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
