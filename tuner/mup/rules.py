"""Rules: how a tensor starts, is multiplied, and is stepped, by its role.

With i and o, how many times wider than the base's the tensor's fan_in and fan_out are (1 where they do not grow), and
d, how many times deeper the model is, factors on what the base has:

|            | mup        |      |          | spectral          |          | sp         |
| role       | multiplier | std  | gradient | std               | gradient | std        |
|------------|------------|------|----------|-------------------|----------|------------|
| input      | 1          | 1    | 1/o      | min(1, f_o/f_i)^½ | 1/o      | 1          |
| hidden     | 1          | i^-½ | 1/o      | times i^-½        | 1/o      | i^-½       |
| output     | 1/i        | 1    | 1/i      | for all three     | 1        | i^-½       |
| vector     | 1          | 1    | 1/o      | 1                 | 1/o      | 1          |
| scalar     | 1          | 1    | 1        | 1                 | 1        | 1          |

`gradient` is the size of its entries, which Adam's epsilon has to follow. The steps of sign-like optimizers (Adam,
Lion) and of orthogonalised ones have a size of their own; a step changes what the tensor puts out by as much as the
base's if

    lr = 1 / (i multiplier)                                  Adam, AdamW, Lion
    lr = 1 / (i multiplier gradient)                         SGD
    lr = (o / i)^½, less what torch.optim.Muon does itself   Muon: of hidden matrices; AdamW's of the rest

which is Table 8 of Tensor Programs V (Yang et al. 2022) for mup, its Table 3 for spectral (the condition of Yang, Simon
and Bernstein 2023, |W| and |dW| as (fan_out / fan_in)^½; no multiplier), and lr = 1 for sp.

In depth, every residual branch is multiplied by d^-a; the tensors that a deeper model has more of have gradients d^-a
and sign-like steps of d^(a-1) times the base's (Dey et al. 2025, CompleteP, Table 1): a = 1 is CompleteP, a = ½
depth-muP (Yang et al. 2023, Tensor Programs VI).

Weight decay in PyTorch's form, w -= lr weight_decay w, by independent scaling: its factor is lr^-1, which keeps
lr weight_decay, the rate of the average over updates, as it is at the base (Wang and Aitchison 2024; CompleteP). The
exponent may be chosen: with lr ~ 1/i, weight decay ~ i^½ keeps the gain of a sublayer (Fan et al. 2025).

completedp is completep and moves with batch and tokens as well (Mlodozeniec et al. 2025): every rate, decay, epsilon
and 1 - beta by the exponents of `tuner.parametrization.DATA`, the linear rule for SGD, the square-root rule for Adam.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuner.mup.roles import Role

OPTIMIZERS = ("sgd", "adam", "adamw", "lion", "muon")
PARAMETRIZATIONS = ("sp", "mup", "spectral", "depth-mup", "completep", "completedp")
BRANCHES = {"depth-mup": 0.5, "completep": 1.0, "completedp": 1.0}  # the exponent a of d


@dataclass(frozen=True)
class Rule:
    """What becomes of one tensor at the target; factors on what the base has.

    Args:
        std: of its entries at the start.
        multiplier: of what the tensor puts out.
        lr, weight_decay, eps: of its steps.
        optimizer: whose steps these are.
    """

    std: float
    multiplier: float
    lr: float
    weight_decay: float
    eps: float
    optimizer: str


def rule(tensor: Role, optimizer: str, parametrization: str, deeper: float = 1.0, decay_exponent: float = 1.0) -> Rule:
    """The rule of a tensor, by the table above."""
    stepped_by = "adamw" if optimizer == "muon" and not _orthogonalised(tensor) else optimizer
    if parametrization == "sp":
        narrowed = tensor.role in ("hidden", "output")
        return Rule(tensor.wider_in**-0.5 if narrowed else 1.0, 1.0, 1.0, 1.0, 1.0, stepped_by)
    i, o = tensor.wider_in, tensor.wider_out
    multiplier = multipliers(tensor, parametrization)[tensor.name]
    gradient = 1 / o if tensor.role in ("input", "hidden", "vector") else multiplier
    lr = _muon(tensor) if stepped_by == "muon" else 1 / (i * multiplier)
    if tensor.repeated:
        power = BRANCHES.get(parametrization, 0.0)
        gradient *= deeper**-power
        lr *= deeper ** (power - 1) if power else 1.0
    if stepped_by == "sgd":
        lr /= gradient
    return Rule(_std(tensor, parametrization), multiplier, lr, lr**-decay_exponent, gradient, stepped_by)


def multipliers(tensor: Role, parametrization: str) -> dict[str, float]:
    """Of what a tensor puts out, by each of its names: tied to a readout, an embedding has two."""
    wider = max(tensor.wider_in, tensor.wider_out) if parametrization not in ("sp", "spectral") else 1.0
    return {name: 1 / wider if role == "output" else 1.0 for name, role in tensor.roles.items()}


def _std(tensor: Role, parametrization: str) -> float:
    if parametrization == "spectral" and tensor.role in ("input", "hidden", "output"):
        fans = tensor.fan_out, tensor.fan_in
        at_base = fans[0] / tensor.wider_out, fans[1] / tensor.wider_in
        return float(tensor.wider_in**-0.5 * (min(1.0, fans[0] / fans[1]) / min(1.0, at_base[0] / at_base[1])) ** 0.5)
    return tensor.wider_in**-0.5 if tensor.role == "hidden" else 1.0


def _orthogonalised(tensor: Role) -> bool:
    """Muon takes hidden matrices; what a model embeds or reads out with is stepped by AdamW."""
    return tensor.role == "hidden" and len(tensor.shape) == 2


def _muon(tensor: Role) -> float:
    """(o / i)^½ without the max(1, rows / columns)^½ of torch.optim.Muon itself (`adjust_lr_fn="original"`)."""
    rows, columns = tensor.shape
    transposed = rows != tensor.fan_out
    grown = (tensor.wider_in, tensor.wider_out) if transposed else (tensor.wider_out, tensor.wider_in)
    own = max(1.0, rows / columns) / max(1.0, rows / grown[0] / (columns / grown[1]))
    return float((tensor.wider_out / tensor.wider_in / own) ** 0.5)
