"""One figure for each thing a run reveals about itself (`tuner.dynamics`), and a page of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.dynamics import CriticalBatch, Decomposition, Kappa, NoiseScale, Renewal, Updates
from tuner.report.figures import CHOICES, GRID, LEGEND, TARGET, TEAL, Panel
from tuner.report.page import assembled, written
from tuner.report.words import number, text

Numbers = Sequence[float] | NDArray[Any]
Lines = Mapping[str, tuple[Numbers, Numbers]]


def write(panels: Sequence[Panel], title: str, path: str | Path) -> None:
    """One self-contained HTML page. Raises BadInput where the path cannot be written."""
    written(path, assembled(title, [("What the run reveals", "", panels, "")]))


def trajectory(seen: Decomposition, k: int) -> Panel:
    """The loss at the averaged weights, and what its first k components and the others make of its change."""
    parts: Lines = {
        "loss, less that at the start": ([0.0, *seen.steps], seen.loss - seen.loss[0]),
        f"first {k} components": (seen.steps, seen.top(k)),
        "the others": (seen.steps, seen.residual(k)),
    }
    return _panel("Trajectory", f"{len(seen.steps)} looks", parts, "step", "change of the loss")


def invariance(at: NDArray[np.float64], found: Kappa, names: tuple[str, str], axis: str) -> Panel:
    """The part of the loss that two widths share, and what is left, over a hyperparameter."""
    lines: Lines = {
        f"{what}, {name}": (np.exp(at), curve)
        for what, curves in (("shared", found.top), ("left", found.residual))
        for name, curve in zip(names, curves, strict=True)
    }
    note = f"kappa {number(float(np.median(found.kappa)))} (median); the optima are at most {number(found.bound)} apart"
    return _panel("Top-kappa loss", note, lines, axis, "change of the loss", log_x=True)


def sharpnesses(steps: Sequence[float], values: Mapping[str, Sequence[float]], edge: float | None = None) -> Panel:
    """The largest curvature over training, one line a run, and the edge of stability."""
    lines: dict[str, tuple[Numbers, Numbers]] = {name: (steps, line) for name, line in values.items()}
    if edge is not None:
        lines["edge of stability"] = (steps, [edge] * len(steps))
    return _panel("Sharpness", "", lines, "step", "largest eigenvalue", log_y=True)


def noise(watched: NoiseScale) -> Panel:
    """|G|^2 and tr Sigma of each step; their smoothed ratio is in the note."""
    steps = list(range(1, len(watched.series) + 1))
    lines: Lines = {
        "|G|^2": (steps, [gradient for gradient, _ in watched.series]),
        "tr Sigma, of one example": (steps, [variance for _, variance in watched.series]),
    }
    return _panel("Gradient noise", f"noise scale {number(watched.scale)} examples", lines, "step", "", log_y=True)


def steps_to_target(batches: Sequence[float], steps: Sequence[float], fit: CriticalBatch) -> Panel:
    """Steps against batch size, with S = S_min (1 + B_crit / B)."""
    along = np.geomspace(min(batches), max(batches), 60)
    lines: Lines = {"measured": (batches, steps), "fitted": (along, fit.steps * (1 + fit.batch / along))}
    note = f"critical batch {number(fit.batch)} (deviation of its logarithm {number(fit.deviation)})"
    panel = _panel("Steps to one loss", note, lines, "batch size", "steps", log_x=True, log_y=True)
    panel.data[0]["mode"] = "markers"
    return panel


def renewals(watched: Renewal) -> Panel:
    """How often AdamW's average was renewed; from 1 on lr x weight_decay matters, before that lr."""
    renewed = np.cumsum(watched.rates)
    steps = list(range(1, len(renewed) + 1))
    lines: Lines = {"periods renewed": (steps, renewed), "one": (steps, [1.0] * len(steps))}
    return _panel("Regime", "below one lr matters, above it lr x weight_decay", lines, "step", "periods")


def updates(watched: Updates) -> Panel:
    """Relative size of a step, one line a tensor."""
    lines: Lines = {name: (watched.steps, sizes) for name, sizes in watched.sizes.items()}
    return _panel("Update sizes", "", lines, "step", "|dw| / |w|", log_y=True)


def _panel(title: str, note: str, lines: Lines, x: str, y: str, *, log_x: bool = False, log_y: bool = False) -> Panel:
    colours = (TARGET, TEAL, *CHOICES)
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": text(name),
            "x": [float(v) for v in xs],
            "y": [float(v) if np.isfinite(v) and (v > 0 or not log_y) else None for v in ys],
            "line": {"color": colours[i % len(colours)]},
        }
        for i, (name, (xs, ys)) in enumerate(lines.items())
    ]
    axes: dict[str, Any] = {
        "xaxis": {"title": {"text": x}, "gridcolor": GRID, **({"type": "log"} if log_x else {})},
        "yaxis": {"title": {"text": y}, "gridcolor": GRID, **({"type": "log"} if log_y else {})},
    }
    plain = {"margin": {"l": 70, "r": 10, "t": 10, "b": 50}, "paper_bgcolor": "rgba(0,0,0,0)"}
    return Panel(title, note, data, {**axes, **plain, "plot_bgcolor": "rgba(0,0,0,0)", **LEGEND})
