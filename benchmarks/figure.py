"""The figure of the README: cost spent against the loss of the answer at the target, from saved comparisons.

    python -m benchmarks.figure benchmarks/results/digits*.json --output benchmarks/figures/headline.svg

A result is the standard output of `tuner compare ... --json`; methods of several are drawn together. Lines are medians
over seeds, bands quartiles. A method that searches below the target is charged its verification run there too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

mpl.use("svg")

NAMES = {"transfer": "transfer-tuner", "optuna-gp": "Optuna GP at the target", "optuna-tpe": "Optuna TPE at the target"}


def curve(entries: list[dict[str, Any]], verification: float) -> tuple[np.ndarray, np.ndarray]:
    """Cost in target runs, and quartiles of the loss over seeds, where an answer was scored: (k,), (k, 3)."""
    per_seed = [[(line["target_runs"] + verification, line["loss"]) for line in entry["answers"]] for entry in entries]
    grid = np.array(sorted({round(cost, 2) for seed in per_seed for cost, _ in seed}))
    reached = np.array([[_at(seed, cost) for cost in grid] for seed in per_seed])
    full = ~np.isnan(reached).any(0)
    return grid[full], np.quantile(reached[:, full], [0.25, 0.5, 0.75], axis=0).T


def _at(seed: list[tuple[float, float]], cost: float) -> float:
    past = [loss for spent, loss in seed if spent <= cost + 5e-3]
    return past[-1] if past else np.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    chosen = parser.parse_args()
    methods = {name: told for path in chosen.results for name, told in json.loads(path.read_text())["methods"].items()}
    mpl.rcParams["svg.hashsalt"] = "transfer-tuner"  # the same bytes from the same numbers
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, told in methods.items():
        cost, loss = curve(told["seeds"], told["verification"])
        (line,) = axes.plot(cost, loss[:, 1], marker="o", markersize=4, label=NAMES.get(name, told["variant"]))
        axes.fill_between(cost, loss[:, 0], loss[:, 2], alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set_xscale("log")
    axes.set_xlabel("cost in runs at the target, verification included")
    axes.set_ylabel("loss at the target, fresh seeds")
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(chosen.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
