"""How losses fall along two axes of scale at once: three laws fitted to the smallest loss of every cell.

    TUNER_TABLES=... python -m benchmarks.laws

On llm_lr_batch.csv, all cells of size and tokens with more than 15 rows: least squares, and the root mean square of
what each law misses. Then from the cells that cost at most 8 % of a run at the target: the error of the loss that each
predicts there; of the ten targets of benchmarks.recorded that leave enough such cells.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.predictive import CHEAP
from benchmarks.recorded import LLM_DEV, LLM_FINAL, problem
from tuner.replay import Replay
from tuner.scale import Scale, by_scale

Array = NDArray[np.float64]
AXES = ("params", "tokens")
FEWEST = 15  # rows of a cell
MOST = 5  # parameters of a law


def additive(p: Array, logs: Array) -> Array:
    """E + A m^-a + B t^-b (Hoffmann et al. 2022)."""
    return (
        p[0] + np.exp(p[1]) * np.expm1(-np.exp(p[3]) * logs[:, 0]) + np.exp(p[2]) * np.expm1(-np.exp(p[4]) * logs[:, 1])
    )


def power(p: Array, logs: Array) -> Array:
    """E0 (m^-a + w t^-b)^c (Kaplan et al. 2020, eq. 1.5)."""
    return p[0] * (np.exp(-np.exp(p[1]) * logs[:, 0]) + np.exp(p[2] - np.exp(p[3]) * logs[:, 1])) ** p[4]


def product(p: Array, logs: Array) -> Array:
    """E0 m^-a t^-b."""
    return p[0] * np.exp(-logs @ p[1:])


LAWS: dict[str, tuple[Callable[[Array, Array], Array], list[float]]] = {
    "additive": (additive, [2.0, -1, -1, -1, -1]),
    "product": (product, [2.0, 0.1, 0.1]),
    "power of a sum": (power, [2.0, -1, 0, -1, 0.2]),
}


def fit(law: Callable[[Array, Array], Array], start: list[float], logs: Array, losses: Array) -> Array:
    return least_squares(lambda p: law(p, logs) - losses, start, x_scale="jac", max_nfev=20_000).x


def cells(replay: Replay) -> tuple[list[Scale], Array, Array]:
    """Scales with enough rows, the target among them; their cost in target runs and smallest loss."""
    runs = replay.table.runs
    found = {scale: at for scale, at in by_scale(run.scale for run in runs).items() if len(at) > FEWEST}
    costs = np.array([runs[at[0]].cost for at in found.values()]) / replay.table.cost_at(replay.problem.target)
    return list(found), costs, np.array([min(runs[i].loss for i in at) for at in found.values()])


def main() -> None:
    print("| law | parameters | misses, all cells | error at the target from cheap cells: median | worst |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        replays = [Replay.of(problem(name, Path(folder))) for name in (*LLM_DEV, *LLM_FINAL)]
    for name, (law, start) in LAWS.items():
        errors = []
        for replay in replays:
            scales, costs, losses = cells(replay)
            logs = np.log([[scale[axis] / replay.problem.target[axis] for axis in AXES] for scale in scales])
            cheap = costs <= CHEAP
            if cheap.sum() > MOST:
                predicted = law(fit(law, start, logs[cheap], losses[cheap]), np.zeros((1, 2)))
                errors.append(float(predicted[0]) - losses[scales.index(replay.problem.target)])
        misses = np.sqrt(np.square(law(fit(law, start, logs, losses), logs) - losses).mean())
        told = [
            name,
            str(len(start)),
            f"{misses:.4f}",
            f"{np.median(np.abs(errors)):.3f}",
            f"{max(errors, key=abs):+.3f}",
        ]
        print(f"| {' | '.join(told)} |")


if __name__ == "__main__":
    main()
