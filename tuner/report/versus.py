"""Methods side by side on a table: the lines that terminal and page share, and the page with its figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuner.report.figures import Panel
from tuner.report.page import assembled, table, written
from tuner.report.words import number

MARKS = (0.25, 0.5, 1.0)  # of what a method spent, at which its regret is shown
FLOOR = 1e-5  # a regret below it, relative, is drawn there: the axis is logarithmic
COLOURS = ("#3e1e6e", "#c2571a", "#2f6db3", "#3d8b4f", "#b03060", "#7a6a53", "#0d7a75", "#8a4fa3", "#d9644e", "#555555")
HEADINGS = ("method", "target runs", "trials", "regret %, nearest row", "smooth", "covered", "s / proposal")


def lines(methods: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """For each method a line at a quarter, half and all of what it spent: medians (quartiles) over seeds.

    The last of them says how often each 90 % interval held the optimum, and the time of a proposal.
    """
    for told in methods.values():
        entries = [entry for entry in told["seeds"] if entry["trace"]]
        if not entries:
            yield (told["variant"], *["-"] * (len(HEADINGS) - 1))
            continue
        spent = statistics.median(entry["trace"][-1]["target_runs"] for entry in entries)
        for part in MARKS:
            at = [_reached(entry["trace"], part * spent) for entry in entries]
            regrets = [_quartiles([line[k] for line in at]) for k in ("relative_regret", "smooth_relative_regret")]
            covered = ", ".join(f"{name} {share:.0%}" for name, share in told["summary"]["coverage"].items()) or "-"
            seconds = number(statistics.median(entry["seconds_per_proposal"] for entry in entries))
            runs, trials = (number(statistics.median(line[k] for line in at)) for k in ("target_runs", "trials"))
            ends = (covered, seconds) if part == 1 else ("", "")
            yield (told["variant"] if part == MARKS[0] else "", runs, trials, *regrets, *ends)


def _reached(trace: Sequence[Mapping[str, Any]], spent: float) -> Mapping[str, Any]:
    """The last line of a trace within a cost; its first, where that is dearer."""
    return next((line for line in reversed(trace) if line["target_runs"] <= spent * (1 + 1e-9)), trace[0])


def _quartiles(regrets: Sequence[float | None]) -> str:
    if all(regret is None for regret in regrets):
        return "-"
    values = [math.inf if regret is None else 100 * regret for regret in regrets]
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf")
    return f"{middle:.3g} ({low:.3g} .. {high:.3g})"


def write(methods: Mapping[str, Any], title: str, path: str | Path) -> None:
    """Write the page: regret against target runs, median and quartiles over seeds, and the table.

    Raises:
        BadInput: the path cannot be written.
    """
    panels = [_panel(methods, key, name) for key, name in (
        ("relative_regret", "Regret by the target's nearest row"),
        ("smooth_relative_regret", "Regret by a quadratic through the target's best rows"),
    )]  # fmt: skip
    head, *rows = HEADINGS, *lines(methods)
    drawn = [panel for panel in panels if panel.data]
    note = "Median over seeds; bands and brackets are quartiles. Searches below the target never saw its rows."
    written(
        path, assembled(title, [("Cost against regret", note, drawn, ""), ("In numbers", "", [], table(head, rows))])
    )


def _panel(methods: Mapping[str, Any], key: str, title: str) -> Panel:
    data: list[dict[str, Any]] = []
    for colour, told in zip(COLOURS * 9, methods.values(), strict=False):
        entries = [entry["trace"] for entry in told["seeds"] if entry["trace"]]
        costs = sorted({round(line["target_runs"], 6) for trace in entries for line in trace})
        known = [[_known(trace, cost, key) for trace in entries] for cost in costs]
        full = [(cost, values) for cost, values in zip(costs, known, strict=True) if values and None not in values]
        if not full:
            continue
        x = [cost for cost, _ in full]
        low, middle, high = np.quantile([values for _, values in full], [0.25, 0.5, 0.75], axis=1).clip(FLOOR).tolist()
        step = {"type": "scatter", "mode": "lines", "legendgroup": told["variant"], "x": x}
        edge = {**step, "line": {"shape": "hv", "width": 0}, "showlegend": False, "hoverinfo": "skip"}
        data.append({**edge, "y": low})
        data.append({**edge, "y": high, "fill": "tonexty", "fillcolor": f"{colour}26"})
        data.append({**step, "y": middle, "name": told["variant"], "line": {"shape": "hv", "color": colour}})
    axis = {"type": "log", "gridcolor": "#e7e5e0"}
    layout = {
        "xaxis": {**axis, "title": {"text": "cost of the search, target runs"}},
        "yaxis": {**axis, "title": {"text": "relative regret"}, "tickformat": ".3~%", "dtick": 1},
        "margin": {"l": 70, "r": 10, "t": 10, "b": 110},
        "legend": {"orientation": "h", "y": -0.3},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    return Panel(title, f"Below {FLOOR:.3%} drawn there.", data, layout)


def _known(trace: Sequence[Mapping[str, Any]], cost: float, key: str) -> float | None:
    """The regret once a cost is spent; None before the first answer."""
    reached = [line[key] for line in trace if line["target_runs"] <= cost * (1 + 1e-6)]
    regret: float | None = reached[-1] if reached else None
    return regret
