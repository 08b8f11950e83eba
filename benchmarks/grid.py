"""Where the optimum of the small transformer lies at each width, from grids: the truth its searches are judged against.

    python -m benchmarks.grid --widths 32 64 256

Six learning rates by four initial scales (weight decay 0.1), averaged over 4, 3 and 1 seeds. A quadratic in the two
logarithms, fitted to the losses within NEAR of the smallest, gives optimum and curvature; its residual is printed too.
"""

from __future__ import annotations

import argparse
from itertools import product

import numpy as np
import torch

from objectives.transformer import CharTransformer
from tuner.scale import Scale
from tuner.trial import Trial

LR = (0.0025, 0.0035, 0.005, 0.007, 0.01, 0.014)
INIT = (0.3, 0.5, 0.8, 1.3)
SEEDS = {32: 4, 64: 3}  # one at other widths: the larger, the less seeds differ and the more a run costs
STACKED = 8
NEAR = 0.15  # nats per character


def losses(width: int) -> np.ndarray:
    """Mean over seeds, (learning rates, initial scales)."""
    seeds = SEEDS.get(width, 1)
    trials = [
        Trial(0, {"lr": lr, "weight_decay": 0.1, "init_scale": init}, Scale(width=width), seed)
        for lr, init, seed in product(LR, INIT, range(seeds))
    ]
    parts = [trials[i : i + STACKED] for i in range(0, len(trials), STACKED)]
    results = [result for part in parts for result in CharTransformer().train_many(part)]
    return np.array([r.loss for r in results]).reshape(len(LR), len(INIT), seeds).mean(-1)


def optimum(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Of a quadratic near the smallest loss: its place (ln lr, ln init_scale), Hessian, and rms residual."""
    places, values = np.log(list(product(LR, INIT))), grid.ravel()
    near = values < values.min() + NEAR
    x, y = places[near].T
    design = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)
    c = np.linalg.lstsq(design, values[near], rcond=None)[0]
    hessian = np.array([[2 * c[3], c[5]], [c[5], 2 * c[4]]])
    return -np.linalg.solve(hessian, c[1:3]), hessian, float(np.std(design @ c - values[near]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 256])
    torch.set_num_threads(1)
    for width in parser.parse_args().widths:
        grid = losses(width)
        place, hessian, residual = optimum(grid)
        print(f"width {width}: rows lr {LR}, columns init_scale {INIT}")
        print(np.round(grid, 3))
        print(
            "optimum lr {:.4f}, init_scale {:.2f}; ".format(*np.exp(place))
            + f"curvature in ln lr {hessian[0, 0]:.2f}, in ln init_scale {hessian[1, 1]:.2f}; residual {residual:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
