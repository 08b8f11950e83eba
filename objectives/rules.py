"""How each tensor of a network moves with width: the per-tensor rules of muP and of the standard parametrization.

In ratio form, with m = width / base width, so that m = 1 leaves every rate unchanged. A tensor is `input` (finite to
infinite), `hidden` (infinite to infinite; `query` is one of these) or `readout` (infinite to finite). AdamW has
PyTorch's form, w -= lr (u + weight_decay w).

|               | role    | std        | multiplier | lr  | weight decay |
|---------------|---------|------------|------------|-----|--------------|
| `mup-adamw`   | input   | fan_in^-½  | 1          | 1   | 1            |
|               | hidden  | fan_in^-½  | 1          | 1/m | m            |
|               | query   | 0          | 1          | 1/m | m            |
|               | readout | 0          | 1/m        | 1   | 1            |
| `sp-adamw`    | all     | fan_in^-½  | 1          | 1   | 1            |

`completedp-adamw` is mup-adamw, and with a batch k times as large and t times the examples every lr and weight decay is
(k / t)^½ times as large and every 1 - beta k / t times (Mlodozeniec et al. 2025; over the batch alone the square-root
rule of Malladi et al. 2022).

Sources: Yang et al. 2022 (Tensor Programs V), Table 8; weight decay by independent scaling, which keeps
lr x weight decay, and so the time scale of the average over updates, the same at every width (Wang & Aitchison 2024;
CompleteP, Table 1). A readout and queries that start at zero drop terms of order width^-½ that small networks have and
large ones do not (README of the mup package).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tuner.parametrization import over_data
from tuner.scale import Scale

PARAMETRIZATIONS = ("mup-adamw", "sp-adamw", "completedp-adamw")
BETAS = (0.9, 0.95)  # of AdamW, at the base batch


@dataclass(frozen=True)
class Rule:
    """What a parametrization says about one tensor; lr and weight_decay are factors.

    Args:
        std: of the initial weights, before `init_scale`.
        multiplier: of what the layer gives out.
        rescaled: the hyperparameter `init_scale` multiplies std.
    """

    std: float
    multiplier: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    rescaled: bool = True


@dataclass(frozen=True)
class Rules:
    """The rules of a parametrization at one scale.

    Args:
        width_ratio: m, width / base width.
        depth_ratio: depth / base depth.
        batch_ratio: batch / base batch.
        tokens_ratio: examples seen in training / those at the base.
    """

    parametrization: str
    width_ratio: float
    depth_ratio: float = 1.0
    batch_ratio: float = 1.0
    tokens_ratio: float = 1.0

    @property
    def mup(self) -> bool:
        return self.parametrization != "sp-adamw"

    def over_data(self, role: str) -> float:
        """What the batch and the length of training make of a global hyperparameter."""
        if self.parametrization != "completedp-adamw":
            return 1.0
        here = Scale(batch_size=self.batch_ratio, tokens=self.tokens_ratio)
        return over_data("adamw", role, here, Scale(batch_size=1, tokens=1))

    @property
    def betas(self) -> tuple[float, float]:
        """Of AdamW. Raises ValueError where the batch is too large for the rule."""
        first, second = (1 - self.over_data(f"one_minus_beta{i}") * (1 - beta) for i, beta in enumerate(BETAS, 1))
        if min(first, second) < 0:
            raise ValueError(
                f"scale: a batch {self.batch_ratio:g} times the base's, for {self.tokens_ratio:g} times its examples, "
                f"takes beta1 from {BETAS[0]} to {first:.3g}, where the rule ends; lower batch_size or train for longer"
            )
        return first, second

    def input(self, fan_in: int) -> Rule:
        return Rule(fan_in**-0.5)

    def embedding(self) -> Rule:
        """An input of which one entry is one and the others are zero: as if fan_in were 1."""
        return Rule(1.0)

    def hidden(self, fan_in: int) -> Rule:
        m = self.width_ratio if self.mup else 1.0
        return Rule(fan_in**-0.5, lr=1 / m, weight_decay=m)

    def query(self, fan_in: int) -> Rule:
        """Hidden; at zero under muP, so that attention starts uniform at every width."""
        rule = self.hidden(fan_in)
        return replace(rule, std=0.0, rescaled=False) if self.mup else rule

    def readout(self, fan_in: int) -> Rule:
        if self.mup:
            return Rule(0.0, multiplier=1 / self.width_ratio, rescaled=False)
        return Rule(fan_in**-0.5, rescaled=False)

    @property
    def branch(self) -> float:
        """Multiplier of a residual branch: base depth / depth (CompleteP with alpha = 1, Table 1)."""
        return 1 / self.depth_ratio if self.mup else 1.0

    def attention(self, head: float, base_head: float) -> float:
        """Factor of q.k: sqrt(base head) / head, which is head^-½ at the base (Tensor Programs V, section 4)."""
        return base_head**0.5 / head if self.mup else head**-0.5


def known(parametrization: str) -> str:
    """The name, if it is one. Raises ValueError, naming the known ones."""
    if parametrization not in PARAMETRIZATIONS:
        names = ", ".join(map(repr, PARAMETRIZATIONS))
        raise ValueError(f"parametrization: must be one of {names}, got {parametrization!r}; correct the name")
    return parametrization
