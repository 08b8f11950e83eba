"""Words and numbers that the terminal and the page share."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tuner.ledger import DIRECT, Ledger
from tuner.space import Categorical, Dimension, Value
from tuner.trial import Recommendation


def number(value: Any) -> str:
    """Four significant digits, 1.2e-5 and not 1.2e-05; categories as they are, and integers that people write out."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) and abs(value) < 1_000_000:
        return str(value)
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].strip('+')}{m[2]}", f"{value:.4g}")


def text(value: Any) -> str:
    """As HTML that a browser or plotly shows as it is; not for attributes."""
    return html.escape(str(value), quote=False)


def span(dimension: Dimension, interval: Sequence[Value]) -> str:
    """An interval; of a categorical, its choices."""
    ends = [number(value) for value in interval]
    return ", ".join(ends) if isinstance(dimension, Categorical) else f"{ends[0]} to {ends[-1]}"


def prediction(rec: Recommendation) -> str:
    """The predicted loss, and 90 % of where it may lie: 1.645 standard deviations to either side."""
    return f"{number(rec.loss)} ({number(rec.loss - 1.645 * rec.loss_sd)} .. {number(rec.loss + 1.645 * rec.loss_sd)})"


def bill_headings(ledger: Ledger) -> tuple[str, ...]:
    """Of the lines of `bill`; a range beside a loss is 90 %."""
    return "", f"cost ({ledger.unit})" if ledger.unit else "cost", "target runs", "loss"


def drift(rec: Recommendation, name: str, axis: str) -> str:
    """Drift of a hyperparameter along an axis: mean and 90 %; empty where it has no logarithm."""
    if axis not in rec.drift.get(name, {}):
        return ""
    mean, low, high = rec.drift[name][axis]
    return f"{mean:+.2f} ({low:+.2f} .. {high:+.2f})"


def bill(ledger: Ledger, rec: Recommendation | None, stopped: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Lines of the ledger: what, cost, target runs, and what it bought."""

    def line(what: str, cost: float, bought: str) -> tuple[str, str, str, str]:
        return what, number(cost), number(cost / ledger.target_run), bought

    why = f" (stopped: {stopped})" if stopped else ""
    yield line(f"search{why}", ledger.search, "" if rec is None else f"{prediction(rec)} predicted")
    if ledger.verification:
        loss = "diverged" if ledger.loss is None else f"{number(ledger.loss)} measured"
        yield line("verification", ledger.verification, loss if ledger.verified else "none of these values finished")
    yield line("total", ledger.total, "")
    saved = f"{number(ledger.direct / ledger.total)} times the total" if ledger.total > 0 else ""
    yield line(f"direct tuning with {DIRECT} runs at the target", ledger.direct, saved)
