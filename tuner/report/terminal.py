"""The terminal: a live line while trials run, and the answer with its bill when they have."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tuner.record import RUNNING
from tuner.study import Study
from tuner.trial import Recommendation

console = Console(stderr=True, highlight=False)
EVERY = 5.0  # seconds between plain lines, off a terminal


def number(value: Any) -> str:
    """Four significant digits; categories as they are, and integers that people write out."""
    if isinstance(value, int) and abs(value) < 1_000_000:
        return str(value)
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


@contextmanager
def progress(budget: float) -> Iterator[Any]:
    """A callback for `Study.optimize`: a live bar on a terminal, plain lines on standard error elsewhere."""
    if not console.is_terminal:
        yield _Lines(budget)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[spent]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=budget, spent="")

        def show(study: Study) -> None:
            spent = study.spent() / study.target_cost
            bar.update(task, completed=spent, description=_state(study), spent=f"{spent:.3f} of {budget:g} target runs")

        yield show


class _Lines:
    def __init__(self, budget: float) -> None:
        self.budget, self.last = budget, 0.0

    def __call__(self, study: Study) -> None:
        if time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            spent = study.spent() / study.target_cost
            print(f"{_state(study)}, {spent:.3f} of {self.budget:g} target runs", file=sys.stderr, flush=True)


def _state(study: Study) -> str:
    entries = [e for e in study.entries if e.purpose == "search"]
    running = sum(e.state == RUNNING for e in entries)
    losses = [e.loss for e in entries if e.loss is not None]
    best = f", best loss so far {number(min(losses))}" if losses else ""
    return f"{len(entries) - running} trials done, {running} running{best}"


def answer(study: Study, rec: Recommendation) -> Table:
    """The recommendation: value and 90 % interval of each hyperparameter, and its drift."""
    table = Table(title=f"Recommended at {study.problem.target}", title_justify="left")
    table.add_column("hyperparameter")
    table.add_column("value", justify="right")
    table.add_column("90 % interval", justify="right")
    for axis in study.problem.axes:
        table.add_column(f"drift in {axis} (90 %)", justify="right")
    for name, value in rec.params.items():
        bounds = " .. ".join(map(number, rec.interval[name]))
        table.add_row(name, number(value), bounds, *(_drift(rec, name, axis) for axis in study.problem.axes))
    return table


def _drift(rec: Recommendation, name: str, axis: str) -> str:
    if axis not in rec.drift.get(name, {}):
        return ""
    mean, low, high = rec.drift[name][axis]
    return f"{mean:+.2f} ({low:+.2f} .. {high:+.2f})"


def prediction(rec: Recommendation) -> str:
    """The predicted loss and regret, and the verdict, in one line each."""
    lines = [
        f"predicted loss   {number(rec.loss)} +- {number(rec.loss_sd)}",
        f"expected regret  {number(rec.expected_regret)}",
        f"verdict          {rec.verdict}",
    ]
    return "\n".join([*lines, *(f"  {reason}" for reason in rec.reasons)])


def bill(study: Study, ledger: Mapping[str, Any], rec: Recommendation) -> Table:
    """The ledger: what the search and the verification cost, predicted against measured."""
    table = Table(title="Ledger", title_justify="left")
    for column in ("", "cost", "target runs", "loss"):
        table.add_column(column, justify="right" if column else "left")
    search, check = ledger["search"], ledger["verification"]
    predicted = f"{number(rec.loss)} +- {number(rec.loss_sd)} predicted"
    table.add_row(
        f"search (stopped: {ledger['stopped']})", number(search["cost"]), number(search["target_runs"]), predicted
    )
    if check is not None:
        loss = "diverged" if check["loss"] is None else f"{number(check['loss'])} measured"
        table.add_row("verification", number(check["cost"]), number(check["cost"] / study.target_cost), loss)
    total = search["cost"] + (check["cost"] if check else 0.0)
    table.add_row("total", number(total), number(total / study.target_cost), "")
    direct = 16 * study.target_cost
    table.add_row(
        "direct tuning with 16 runs at the target", number(direct), "16", f"{direct / total:.1f} times the cost"
    )
    return table


def comparison(methods: Mapping[str, Any]) -> Table:
    """Median and quartiles over seeds of the loss of fresh runs at each method's answer, along its search."""
    table = Table(title="Loss of the answer on fresh seeds at the target: median (quartiles)", title_justify="left")
    table.add_column("method")
    table.add_column("target runs", justify="right")
    table.add_column("loss", justify="right")
    table.add_column("regret", justify="right")
    for told in methods.values():
        for part in (0.25, 0.5, 1.0):
            lines = [_at(entry["trace"], part) for entry in told["seeds"]]
            spent = statistics.median(line["target_runs"] for line in lines)
            cells = [_quartiles([line[key] for line in lines]) for key in ("loss", "regret")]
            table.add_row(told["variant"] if part == 1.0 else "", number(spent), *cells, end_section=part == 1.0)
    return table


def _at(trace: Sequence[Mapping[str, Any]], part: float) -> Mapping[str, Any]:
    """The line of a trace at a part of its final cost."""
    return next(line for line in trace if line["target_runs"] >= part * trace[-1]["target_runs"] * (1 - 1e-9))


def _quartiles(values: Sequence[float | None]) -> str:
    known = sorted(float("inf") if v is None else v for v in values)
    low, middle, high = (known[min(int(q * len(known)), len(known) - 1)] for q in (0.25, 0.5, 0.75))
    return f"{number(middle)} ({number(low)} .. {number(high)})"
