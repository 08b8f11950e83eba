"""The terminal: a live line while trials run, and the answer with its bill when they have."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tuner.breakeven import BreakEven
from tuner.engine import outlook
from tuner.ledger import Ledger
from tuner.mup.check import Coordinates
from tuner.record import RUNNING
from tuner.report.coordinates import rows
from tuner.report.versus import HEADINGS, lines
from tuner.report.words import bill, bill_headings, drift, number, prediction, span
from tuner.study import Study
from tuner.theorem import Span
from tuner.trial import Recommendation

console = Console(stderr=True, highlight=False)
EVERY = 5.0  # seconds between plain lines, off a terminal
SHOWN = 12  # slopes of a coordinate check


@contextmanager
def progress(budget: float) -> Iterator[Any]:
    """A callback for `Study.optimize`: a live bar on a terminal, plain lines on standard error elsewhere."""
    state = _State()
    if not console.is_terminal:
        yield _Lines(budget, state)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[spent]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=budget, spent="")

        def show(study: Study) -> None:
            spent = study.spent() / study.target_cost
            bar.update(task, completed=spent, description=state(study), spent=f"{spent:.3f} of {budget:g} target runs")

        yield show


class _Lines:
    def __init__(self, budget: float, state: _State) -> None:
        self.budget, self.state, self.last = budget, state, 0.0

    def __call__(self, study: Study) -> None:
        if time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            spent = study.spent() / study.target_cost
            print(f"{self.state(study)}, {spent:.3f} of {self.budget:g} target runs", file=sys.stderr, flush=True)


class _State:
    """Trials done and running, and the predicted loss; that is computed anew when the record has grown by a tenth."""

    def __init__(self) -> None:
        self.seen = 0
        self.predicted: float | None = None

    def __call__(self, study: Study) -> str:
        entries = [e for e in study.entries if e.purpose == "search"]
        running = sum(e.state == RUNNING for e in entries)
        finished = len(entries) - running
        if finished > 1.1 * self.seen:
            self.seen, self.predicted = finished, outlook(study.problem, study.observations, seed=study.seed)
        known = "" if self.predicted is None else f", predicted loss {number(self.predicted)}"
        return f"{finished} trials done, {running} running{known}"


def answer(study: Study, rec: Recommendation) -> Table:
    """The recommendation: value and 90 % interval of each hyperparameter, and its drift."""
    table = Table(title=f"Recommended at {study.problem.target}", title_justify="left")
    table.add_column("hyperparameter")
    table.add_column("value", justify="right")
    table.add_column("90 % interval", justify="right")
    for axis in study.problem.axes:
        table.add_column(f"drift in {axis} (90 %)", justify="right")
    for name, value in rec.params.items():
        bounds = span(study.problem.space[name], rec.interval[name])
        table.add_row(name, number(value), bounds, *(drift(rec, name, axis) for axis in study.problem.axes))
    return table


def expected(rec: Recommendation) -> str:
    """The predicted loss and regret, and the verdict with its reasons, a line each."""
    lines = [
        f"predicted loss   {prediction(rec)}",
        f"expected regret  {number(rec.expected_regret)} (noise of one run {number(rec.noise)})",
        f"verdict          {rec.verdict}",
    ]
    return "\n".join([*lines, *(f"  {reason}" for reason in rec.reasons)])


def unanswered(study: Study) -> str:
    """The verdict with its reasons where nothing can be recommended."""
    told = study.transfer()
    return "\n".join([f"Nothing can be recommended at {study.problem.target}: {told.verdict}", *told.reasons])


def paid(ledger: Ledger, rec: Recommendation | None, stopped: str) -> Table:
    """The ledger: what the search and the verification cost, predicted against measured."""
    table = Table(title="Ledger", title_justify="left")
    for column in bill_headings(ledger):
        table.add_column(column, justify="right" if column else "left")
    for line in bill(ledger, rec, stopped):
        table.add_row(*line)
    return table


def comparison(methods: Mapping[str, Any]) -> Table:
    """Loss and regret of each method's answers along its search; and the cost to reach a loss.

    Cost is that of the search, in target runs, plus one verification run for a method that searches below the target.
    The loss to reach is the best of the methods' median final losses, and 5 % more.
    """
    best = min(_median([_final(entry) for entry in told["seeds"]]) for told in methods.values())
    loss = best + 0.05 * abs(best)
    table = Table(title="The answer on fresh seeds at the target: median (quartiles)", title_justify="left")
    for column in ("method", "cost", "loss", "regret", f"cost to reach {number(loss)}"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for told in methods.values():
        verified = told["verification"]
        steps = min(len(entry["answers"]) for entry in told["seeds"])
        if not steps:
            table.add_row(told["variant"], *["-"] * 4, end_section=True)
        for step in range(-steps, 0):
            lines = [entry["answers"][step] for entry in told["seeds"]]
            spent = verified + statistics.median(line["target_runs"] for line in lines)
            cells = [_quartiles([line[key] for line in lines]) for key in ("loss", "regret")]
            reached = _quartiles([_cost_of(entry, loss, verified) for entry in told["seeds"]]) if step == -1 else ""
            name = told["variant"] if step == -steps else ""
            table.add_row(name, number(spent), *cells, reached, end_section=step == -1)
    return table


def checked(told: Coordinates) -> Table:
    """The verdict of a coordinate check, and the slopes that are not as they must be; of a pass the steepest."""
    table = Table(title=f"Coordinate check: {told.verdict}", title_justify="left")
    for column in ("quantity", "of", "along", "slope", "90 %", "says"):
        table.add_column(column)
    wrong = [slope for slope in told.slopes if slope.verdict != "pass"]
    for row in rows((wrong or sorted(told.slopes, key=lambda s: -s.wrong))[:SHOWN]):
        table.add_row(*row)
    table.caption = "; ".join(told.reasons)
    return table


def at_sizes(told: BreakEven) -> Table:
    """What a search at each proxy would lose, and a direct one that costs as much."""
    table = Table(title=f"{told.budget:g} target runs of search, and one run at {told.target}", title_justify="left")
    lost = "loses" if told.unit == "loss" else "loses, of the loss"
    for column in ("search at", "target runs a run", "runs", "by the bias of scale (90 %)", "by the search", lost):
        table.add_column(column, justify="left" if column == "search at" else "right")
    for line in told.lines:
        name = f"{line.scale}{' (best)' if line.scale == told.best else ''}"
        spans = [str(span).replace("inf", "no run") for span in (line.bias, line.error, line.loses)]
        table.add_row(name, number(line.cost), number(math.floor(line.runs)), *spans)
    table.add_row("the target", "1", number(math.floor(told.budget + 1)), "0", str(told.direct), str(told.direct))
    return table


def crossing(told: BreakEven) -> str:
    """Where direct tuning becomes the better one, a line each."""
    directly, below = (str(span).replace("inf", "never") for span in (told.directly, told.from_below))
    if math.isfinite(told.crossing.middle):
        overtaken = f"from {told.crossing} target runs in all on".replace("inf", "never")
    else:
        earliest = f"; 90 %: not before {told.crossing.low:.3g}" if math.isfinite(told.crossing.low) else ""
        overtaken = f"at no budget{earliest}"
    beta = "" if told.law.told else " (not told by the runs)"
    total, size = f"{told.budget + 1:g} target runs", f"the target's {told.axis}"
    lines = [
        f"direct tuning loses less {overtaken}",
        f"no more than {told.allowed} is lost after {directly} target runs of direct tuning, or {below} from below; "
        f"the share of that best left to the bias of scale is {told.split}",
        f"best size to search at, were any at hand: {told.size} of {size}",
        f"largest model worth training for {total}: {told.largest} of {size}",
        f"alpha {told.law.rates['alpha']}, beta {told.law.rates['beta']}{beta}, a run costs "
        f"{told.axis}^{told.law.r:.2f}, {Span.of(told.law.h)} hyperparameters that count; {told.origin}",
    ]
    return "\n".join(lines)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told (done, of all); off a terminal, a line now and then."""
    if console.is_terminal:
        with Progress(
            TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) as shown:
            task = shown.add_task(what, total=None)
            yield lambda done, of: shown.update(task, completed=done, total=of)
        return
    last = [0.0]

    def line(done: int, of: int) -> None:
        if done == of or time.monotonic() - last[0] >= EVERY:
            last[0] = time.monotonic()
            print(f"{what}: {done} of {of} searches done", file=sys.stderr, flush=True)

    yield line


def replayed(methods: Mapping[str, Any]) -> Table:
    """Regret of each method's answer along its budget, on a table."""
    shown = Table(title="At the target: median (quartiles) over seeds", title_justify="left")
    for column in HEADINGS:
        shown.add_column(column, justify="left" if column == "method" else "right")
    for line in lines(methods):
        shown.add_row(*line, end_section=bool(line[-1]))
    return shown


def _final(entry: Mapping[str, Any]) -> float | None:
    """Loss of a search's last answer."""
    loss: float | None = entry["answers"][-1]["loss"] if entry["answers"] else None
    return loss


def _cost_of(entry: Mapping[str, Any], loss: float, verified: float) -> float | None:
    """Target runs until an answer reached a loss; None: never."""
    reached = (line for line in entry["answers"] if line["loss"] is not None and line["loss"] <= loss)
    first = next(reached, None)
    return None if first is None else first["target_runs"] + verified


def _median(values: Sequence[float | None]) -> float:
    return statistics.median(math.inf if v is None else v for v in values)


def _quartiles(values: Sequence[float | None]) -> str:
    known = sorted(math.inf if v is None else v for v in values)
    if not any(map(math.isfinite, known)):
        return "-"
    low, middle, high = (known[min(int(q * len(known)), len(known) - 1)] for q in (0.25, 0.5, 0.75))
    return f"{number(middle)} ({number(low)} .. {number(high)})"
