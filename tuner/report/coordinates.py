"""The page of a coordinate check: every size, change and effect against scale, and the slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuner.mup.check import Coordinates
from tuner.mup.growth import pattern
from tuner.mup.slopes import Measured, Slope
from tuner.report.figures import Panel
from tuner.report.page import assembled, table, written

COLOURS = {"fail": "#b03060", "undetermined": "#e4a442", "pass": "#9db4c0"}
QUANTITIES = {
    "size at the start": "Sizes of activations before training",
    "size": "Sizes after",
    "change": "How far training has moved them",
    "effect": "What each tensor's training does to its module's output",
    "effect through others": "The same, of tensors that others work on",
    "decay": "Learning rate times weight decay",
    "loss": "Loss",
    "norm": "Spectral norms of matrices (not judged)",
    "norm of change": "Spectral norms of what training changed (not judged)",
}
HEAD = ("", "of", "along", "slope", "90 %", "")


def rows(slopes: Sequence[Slope]) -> list[tuple[str, ...]]:
    """The slopes as lines under `HEAD`."""
    return [
        (s.quantity, s.name, s.axis, f"{s.slope:+.2f}", f"{s.low:+.2f} .. {s.high:+.2f}", s.verdict) for s in slopes
    ]


def write(checked: Coordinates, title: str, path: str | Path) -> None:
    """One self-contained HTML page.

    Raises:
        BadInput: the path cannot be written.
    """
    panels = [panel for quantity in QUANTITIES for axis in _axes(checked) if (panel := _panel(checked, quantity, axis))]
    said = f"{checked.verdict}: {'; '.join(checked.reasons)}. Learning rate {checked.lr:.3g} at the smallest scale."
    order = ("fail", "undetermined", "pass")
    ordered = sorted(checked.slopes, key=lambda s: order.index(s.verdict))
    sections = [("Against scale", said, panels, ""), ("Slopes", "", [], table(HEAD, rows(ordered)))]
    written(path, assembled(f"Coordinate check of {title}: {checked.verdict}", sections))


def _axes(checked: Coordinates) -> list[str]:
    return list(dict.fromkeys(slope.axis for slope in checked.slopes))


def _panel(checked: Coordinates, quantity: str, axis: str) -> Panel | None:
    """A line for each name whose slope is judged, the worst on top; geometric means over seeds and other axes."""
    judged = [s for s in checked.slopes if (s.quantity, s.axis) == (quantity, axis)]
    data = [_line(checked.measured, slope) for slope in sorted(judged, key=lambda s: s.wrong)]
    if not data:
        return None
    scales = sorted({m.scale[axis] for m in checked.measured})
    log = {"type": "log", "gridcolor": "#e7e5e0"}
    layout = {
        "xaxis": {**log, "title": {"text": axis}, "tickvals": scales, "ticktext": [f"{n:g}" for n in scales]},
        "yaxis": {**log, "title": {"text": quantity}, "exponentformat": "power"},
        "margin": {"l": 70, "r": 10, "t": 10, "b": 50},
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    bad = [s.name for s in judged if s.verdict != "pass"]
    note = f"Not as they must be: {', '.join(bad[:3])}{' and more' if len(bad) > 3 else ''}." if bad else "As must be."
    if quantity.startswith("norm"):
        note = "Under muP a square hidden matrix, and its change, keep their norm."
    return Panel(QUANTITIES[quantity], note, data, layout)


def _line(measured: Sequence[Measured], slope: Slope) -> dict[str, Any]:
    name = pattern if "*" in slope.name else str
    points: dict[float, list[float]] = {}
    for m in measured:
        if name(m.name) == slope.name and m.quantity == slope.quantity and m.value > 0 and math.isfinite(m.value):
            points.setdefault(m.scale[slope.axis], []).append(math.log(m.value))
    x = sorted(points)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": slope.name,
        "x": x,
        "y": [math.exp(math.fsum(points[n]) / len(points[n])) for n in x],
        "line": {"color": COLOURS[slope.verdict], "width": 1 if slope.verdict == "pass" else 2},
        "hovertemplate": f"{slope.name}: %{{y:.3g}}, slope {slope.slope:+.2f}<extra></extra>",
    }
