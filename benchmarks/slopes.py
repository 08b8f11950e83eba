"""GPT-2 of two layers under seven parametrizations: the drift of the learning rate that `tuner predict` learns from the
smaller widths, beside the one that all widths show; and what its answer loses at width 2048, beside copying.

    TUNER_TABLES=... python -m benchmarks.slopes

The optimum of a width is that of a quadratic in ln lr through the best rate and two to either side; the known slope is
that between the widths 256 and 2048. The loss of an answer is read off straight lines between width 2048's own rates.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.recorded import GPT2_ALL, problem
from tuner.opening import open_study, recorded_table
from tuner.runs import Run

WIDTHS, TARGET = (256, 512, 1024), 2048


def optimum(runs: list[Run]) -> float:
    """ln lr of the best, between the grid's rates."""
    known = sorted((math.log(float(run.params["lr"])), run.loss) for run in runs)
    best = min(range(len(known)), key=lambda i: known[i][1])
    x, y = np.array(known[max(0, best - 2) : best + 3]).T
    curvature, slope, _ = np.polyfit(x, y, 2)
    return float(-slope / (2 * curvature))


def main() -> None:
    print("| parametrization | widths up to | known slope | learned (90 %) | regret % at 2048 | of copying the best |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in GPT2_ALL:
            file = problem(name, Path(folder))
            at = {w: [r for r in recorded_table(file).runs if r.scale["width"] == w] for w in (*WIDTHS, TARGET)}
            truth = sorted((math.log(float(run.params["lr"])), run.loss) for run in at[TARGET])
            grid, losses = np.array(truth).T
            known = (optimum(at[TARGET]) - optimum(at[WIDTHS[0]])) / math.log(TARGET / WIDTHS[0])
            for largest in WIDTHS[1:]:
                where = f"({file.runs.where}) and width <= {largest}"  # type: ignore[union-attr]
                below = file.model_copy(update={"runs": file.runs.model_copy(update={"where": where})})  # type: ignore[union-attr]
                with open_study(below) as study:
                    rec = study.recommend()
                mean, low, high = rec.drift["lr"]["width"]
                copied = min(at[largest], key=lambda run: run.loss).params["lr"]
                lost = [
                    100 * (np.interp(math.log(lr), grid, losses) / losses.min() - 1)
                    for lr in (rec.params["lr"], copied)
                ]
                missed = "" if low <= known <= high else " (missed)"
                print(
                    f"| {name} | {largest} | {known:+.2f} | {mean:+.2f} ({low:+.2f} .. {high:+.2f}){missed} "
                    f"| {lost[0]:.2f} | {lost[1]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
