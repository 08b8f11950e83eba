"""Loss against learning rate at several batch sizes, in coordinates rescaled by the square-root rule or the linear one.

    OMP_NUM_THREADS=1 python -m benchmarks.batch

CharTransformer of width 64 sees 6400 windows of text whatever the batch; the base batch has 16. AdamW by the
square-root rule (completedp-adamw), SGD with momentum 0.9 by the linear rule, and both at the same raw rates.

`apart` is how far the losses are from those of the base batch at equal base rates, root mean square over the rates
within a factor 4 of the best there; `noise` is how far seeds alone would take them. `steps` is the length of the run,
`B_simple` the gradient noise scale after training at the best rate with the base batch, tr(Sigma) / |G|^2 in windows
(McCandlish et al. 2018, appendix A.1; both by differences between gradients of 16 and of 256 windows).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from objectives.stacked import Network, trained
from objectives.transformer import CharTransformer
from tuner.parametrization import over_data
from tuner.scale import Scale
from tuner.space import Float, SearchSpace
from tuner.trial import Trial

WIDTH, BASE, STEPS = 64, 16, 400
BATCHES = (4, 8, 16, 32, 64, 128)
NEAR = math.log(4)  # of the best rate
DECAY = {"adamw": 0.1, "sgd": 1e-3}
DRAWS = 64  # of gradients

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BySGD(CharTransformer):
    """Trained by SGD with momentum; under completedp by the linear rule."""

    space = SearchSpace({**CharTransformer.space, "lr": Float(1e-3, 10.0, log=True)})

    def _optimizer(self, network: Network, scale: Scale, lr: Sequence[float], weight_decay: Sequence[float]):  # type: ignore[no-untyped-def]
        factor = 1.0
        if self.parametrization == "completedp-adamw":
            factor = over_data("sgd", "lr", Scale(batch_size=self.size(scale)), Scale(batch_size=self.batch))
        for layer in network.layers():
            layer.weight.grad = torch.zeros_like(layer.weight)
        groups = [
            {
                "params": [trained(layer.weight, network.members, k) for layer in network.layers()],
                "lr": rate * factor,
                "weight_decay": decay,
            }
            for k, (rate, decay) in enumerate(zip(lr, weight_decay, strict=True))
        ]
        return torch.optim.SGD(groups, momentum=0.9)


FAMILIES = {"adamw": CharTransformer, "sgd": BySGD}
RATES = {
    "adamw": tuple(2.0**k for k in np.arange(-10.5, -4.4, 0.75).tolist()),
    "sgd": tuple(2.0**k for k in np.arange(-7, 0.1, 0.75).tolist()),
}


def losses(objective: CharTransformer, optimizer: str, batch: int, seeds: int) -> Array:
    """Held-out losses (seeds, rates); infinite where training diverged."""
    rest, scale = {"weight_decay": DECAY[optimizer], "init_scale": 1.0}, Scale(width=WIDTH, batch_size=batch)
    told = [
        objective.train_many([Trial(0, {"lr": lr, **rest}, scale, seed) for lr in RATES[optimizer]])
        for seed in range(seeds)
    ]
    found = np.array([[result.loss for result in line] for line in told])
    return np.where(np.isfinite(found), found, np.inf)


def noise_scale(objective: CharTransformer, optimizer: str, lr: float) -> float:
    """B_simple at the end of a run at a rate, in windows."""
    scale, small, large = Scale(width=WIDTH), BASE, 16 * BASE
    params = {"lr": lr, "weight_decay": DECAY[optimizer], "init_scale": 1.0}
    network = objective._train(scale, [Trial(0, params, scale, 0)])
    squares = {}
    for size in (small, large):
        seen = []
        for batch in objective.batches([1], DRAWS, size):
            network.zero_grad(set_to_none=False)
            objective.losses(network, batch).sum().backward()
            seen.append(sum(float(layer.weight.grad.square().sum()) for layer in network.layers()))  # type: ignore[union-attr]
        squares[size] = float(np.mean(seen))
    signal = (large * squares[large] - small * squares[small]) / (large - small)
    spread = (squares[small] - squares[large]) / (1 / small - 1 / large)
    return spread / signal if signal > 0 else math.inf


def bottom(rates: Sequence[float], curve: Array) -> float:
    """ln of the best rate: of a parabola through the three lowest neighbours."""
    i = min(max(int(np.argmin(curve)), 1), len(curve) - 2)
    x, y = np.log(rates[i - 1 : i + 2]), curve[i - 1 : i + 2]
    if not np.isfinite(y).all():
        return float(x[int(np.argmin(y))])
    curved, tilted, _ = np.polyfit(x, y, 2)
    return float(np.clip(-tilted / (2 * curved), x[0], x[2])) if curved > 0 else float(x[int(np.argmin(y))])


def apart(rates: Sequence[float], found: Array, base: Array) -> tuple[float, float]:
    """Losses (seeds, rates) against those of the base batch: how far, and how far seeds would take them."""
    near = np.abs(np.log(rates) - bottom(rates, base.mean(0))) <= NEAR
    away = (found.mean(0) - base.mean(0))[near]
    noise = (found[:, near].var(0, ddof=1) + base[:, near].var(0, ddof=1)) / len(found)
    return float(np.sqrt(np.mean(away**2))), float(np.sqrt(noise.mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizers", default="adamw,sgd")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| | batch | steps | best base lr (range over seeds) | loss there | apart | noise |\n{'|---' * 7}|")
    for optimizer in chosen.optimizers.split(","):
        rates = RATES[optimizer]
        for rule in ("completedp-adamw", "mup-adamw"):
            objective = FAMILIES[optimizer](rule, batch=BASE, steps=STEPS)
            base = losses(objective, optimizer, BASE, chosen.seeds)
            for batch in BATCHES:
                found = base if batch == BASE else losses(objective, optimizer, batch, chosen.seeds)
                each = np.exp([bottom(rates, line) for line in found])
                best = math.exp(bottom(rates, found.mean(0)))
                steps = objective.length(Scale(width=WIDTH, batch_size=batch))
                away, noise = apart(rates, found, base)
                name = optimizer if rule == "completedp-adamw" else f"{optimizer}, raw rate"
                told = f"{best:.4f} ({each.min():.4f} .. {each.max():.4f})"
                cells = [f"{value:.3f}" for value in (found.mean(0).min(), away, noise)]
                print(f"| {name} | {batch} | {steps} | {told} | {' | '.join(cells)} |", flush=True)
            if rule == "completedp-adamw":
                best = math.exp(bottom(rates, base.mean(0)))
                print(f"| {optimizer} | B_simple {noise_scale(objective, optimizer, best):.0f} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
