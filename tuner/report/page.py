"""The page: one HTML file about a study, in the order of a person about to spend money on one training run.

Nothing in it comes from elsewhere: plotly.js is inlined once, figures and trials are JSON islands ('<' escaped), what
a trial says is only ever text, and a content policy forbids the page to fetch anything. A live page (live.py) may ask
who served it, and nobody else.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, TextIO

from plotly.offline import get_plotlyjs

from tuner.errors import BadInput
from tuner.record import DIVERGED, FAILED, FINISHED, LOST, RUNNING, Entry
from tuner.report.figures import Panel, View, history_panels, loss_panels, path_panels, transfer_panels
from tuner.report.words import bill, bill_headings, drift, number, prediction, span, text
from tuner.space import Params
from tuner.study import Study
from tuner.trial import Recommendation

VERDICTS = {
    "transfer": "the best setting of the largest proxy will do at the target as it is",
    "corrected": "the recommendation will do at the target; that the largest proxy's best setting would is not shown",
    "direct": "neither will do, and tuning the target itself is cheaper than coming closer from below",
    "undetermined": "the record does not say yet whether transfer can be trusted here",
}


def write(study: Study, path: str | Path) -> None:
    """Write the page about a study, whole or not at all.

    Raises:
        BadInput: the path cannot be written; what was there is left as it was.
    """
    written(path, page(study))


def written(path: str | Path, content: str) -> None:
    """Write a page, whole or not at all. Raises BadInput as `write`."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"report: the output must be a file, got {str(path)!r}; name an .html file")
        with _replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise BadInput(f"report: {str(path)!r} cannot be written: {error.strerror}; choose another path") from None


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A new file beside a path, which takes its place once it is whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8", errors="replace") as file:
            yield file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def page(study: Study, version: str | None = None) -> str:
    """The HTML.

    Args:
        version: of what is shown, on a live page: once its server tells of another, the page is loaded again.
    """
    view, drawn = View.of(study), list[Panel]()
    title = f"{study.record.name} at {study.problem.target}"
    sections = [
        _answer(view),
        _section("Loss against each hyperparameter", LOSS_HELP, _legend(view) + _plots(loss_panels(view), drawn)),
        _section("Path of the optimum over scale", PATH_HELP, _plots(path_panels(view), drawn)),
        _section("Whether transfer holds", TRANSFER_HELP, _plots(transfer_panels(view), drawn)),
        _section("The answer as the record grew", HISTORY_HELP, _plots(history_panels(view), drawn)),
        _section("Trials", TRIALS_HELP, '<div class="scroll"><table id="table"></table></div>'),
    ]
    islands = [
        _island("answer", view.answer.as_json() if view.answer else None),
        _island("figures", [{"data": p.data, "layout": p.layout} for p in drawn]),
        _island("trials", [_row(e, study.charge(e) / study.target_cost) for e in view.entries]),
    ]
    return _whole(title, sections, islands, ["plotly.js", "figures.js", "page.js"], version)


def waiting(title: str) -> str:
    """A live page before anything is drawn."""
    return _whole(title, ['<section><p class="lead">Reading the study ...</p></section>'], [], [], version="")


def assembled(title: str, sections: Sequence[tuple[str, str, Sequence[Panel], str]]) -> str:
    """A page of sections: heading, explanation, panels, and what follows them as HTML."""
    drawn: list[Panel] = []
    parts = [_section(text(head), text(told), _plots(panels, drawn) + after) for head, told, panels, after in sections]
    islands = [_island("figures", [{"data": p.data, "layout": p.layout} for p in drawn])]
    return _whole(title, parts, islands, ["plotly.js", "figures.js"])


def _whole(
    title: str, sections: Sequence[str], islands: Sequence[str], scripts: Sequence[str], version: str | None = None
) -> str:
    policy = POLICY
    if version is not None:
        policy, scripts = f"{POLICY}; connect-src 'self'", [*scripts, "live.js"]
        islands = [*islands, _island("version", version)]
    head = HEAD.format(title=text(title), policy=policy, style=_source("page.css"))
    code = [f"<script>{_source(name)}</script>" for name in scripts]
    return "\n".join([head, *sections, "</main>", *islands, *code, "</body></html>\n"])


def _source(name: str) -> str:
    """Plotly's script, or a file of this package."""
    if name == "plotly.js":
        return str(get_plotlyjs())
    return resources.files("tuner.report").joinpath(name).read_text(encoding="utf-8")


def _island(name: str, content: Any) -> str:
    """Data that no text inside can break out of; JSON has no infinity, so that is null."""
    told = json.dumps(_finite(content), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{told}</script>'


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _section(title: str, explained: str, content: str) -> str:
    return f'<section><h2>{title}</h2><p class="help">{explained}</p>{content}</section>' if content else ""


def _plots(panels: Sequence[Panel], drawn: list[Panel]) -> str:
    """Places for panels, each numbered as it will be in the island of figures."""
    places = []
    for panel in panels:
        heading = f"<h3>{text(panel.title)}</h3><p>{text(panel.note)}</p>"
        places.append(f'<figure>{heading}<div class="plot" id="plot-{len(drawn)}"></div></figure>')
        drawn.append(panel)
    return f'<div class="plots">{"".join(places)}</div>' if places else ""


def _legend(view: View) -> str:
    made = Counter(e.trial.scale for e in view.entries)
    swatches = [
        f'<span><i style="background:{c}"></i>{text(s)} <small>({made[s]} trial{"s"[: made[s] != 1]})</small></span>'
        for s, c in view.colours.items()
    ]
    return f'<p class="legend">{"".join(swatches)}</p>'


def _row(entry: Entry, target_runs: float) -> dict[str, Any]:
    trial = entry.trial
    return {
        "number": trial.number,
        "purpose": entry.purpose,
        "scale": dict(trial.scale),
        "params": dict(trial.params),
        "loss": entry.loss,
        "state": entry.state,
        "target_runs": target_runs,
        "seconds": entry.seconds,
        "seed": trial.seed,
        "error": entry.error,
    }


# The answer


def _answer(view: View) -> str:
    rec = view.answer
    said = [_unknown(view)] if rec is None else [*_advice(view, rec), _recommended(view, rec)]
    return "<section>" + "".join(said) + "<h2>Ledger</h2>" + _ledger(view) + "</section>"


def _advice(view: View, rec: Recommendation) -> Iterator[str]:
    """What to do, what to expect of it, and how far to trust it."""
    values = f"<b>{text(_params(rec.params))}</b>"
    regret = f"{number(rec.expected_regret)} above the best that is reachable there"
    yield (
        f'<p class="lead">Train at {text(view.problem.target)} with {values}. '
        f"Expect a loss of <b>{prediction(rec)}</b>, {regret}.</p>"
    )
    meaning = VERDICTS.get(rec.verdict, "")
    yield f'<p>Verdict: <b class="verdict">{text(rec.verdict)}</b>{meaning and f" &ndash; {meaning}"}.</p>'
    if rec.reasons:
        yield f"<ul>{''.join(f'<li>{text(reason)}</li>' for reason in rec.reasons)}</ul>"
    yield f"<p>{text(_checked(view, rec))} {text(_made(view))}</p>"


def _params(params: Params) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in params.items())


def _checked(view: View, rec: Recommendation) -> str:
    """What the verification run says of the prediction."""
    entry = view.study.verification(rec.params)
    if entry is None:
        others = [e for e in view.runs if e.purpose == "verification"]
        told = [f"{_params(e.trial.params)}: {'diverged' if e.loss is None else number(e.loss)}" for e in others]
        return f"No verification run of these values yet{', only of ' if told else ''}{'; '.join(told)}."
    if entry.loss is None:
        return "The verification run of these values diverged."
    away = (entry.loss - rec.loss) / rec.loss_sd if rec.loss_sd > 0 else math.inf
    side = "above" if away > 0 else "below"
    return f"The verification run measured a loss of {number(entry.loss)}, {abs(away):.1f} sd {side} the prediction."


def _made(view: View) -> str:
    """The trials so far, by state."""
    searched = [e.state for e in view.entries if e.purpose == "search"]
    recorded = sum(e.purpose == "recorded" for e in view.entries)
    if recorded and not searched:
        return f"{recorded} runs of a table; none was made for this."
    told = [f"{searched.count(s)} {s}" for s in (FINISHED, DIVERGED, FAILED, LOST, RUNNING) if s in searched]
    beside = f" It began with {recorded} runs of a table." if recorded else ""
    return f"The search has made {len(searched)} trials{': ' if told else ''}{', '.join(told)}.{beside}"


def _unknown(view: View) -> str:
    done = len(view.observations)
    why = f"all {done} finished runs diverged; lower the ranges of the space" if done else "no run has finished yet"
    return f'<p class="lead">Nothing can be recommended at {text(view.problem.target)}: {why}.</p><p>{_made(view)}</p>'


def _recommended(view: View, rec: Recommendation) -> str:
    axes = view.problem.axes
    rows = [
        [name, number(value), span(view.problem.space[name], rec.interval[name]), *(drift(rec, name, a) for a in axes)]
        for name, value in rec.params.items()
    ]
    head = ["hyperparameter", "value", "90 % interval", *(f"drift in {axis} (90 %)" for axis in axes)]
    return table(head, rows) + f'<p class="help">{DRIFT_HELP}</p>'


def _ledger(view: View) -> str:
    """What was charged, beside tuning the target itself."""
    rec = view.answer
    ledger = view.study.ledger(rec.params if rec else {})
    return table([*bill_headings(ledger)], list(bill(ledger, rec)))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="small"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


DRIFT_HELP = (
    "Values are raw, at the target. Drift is d ln(raw optimum) / d ln(scale): &minus;1 halves as scale doubles."
)
LOSS_HELP = (
    "Points are trials; a cross at the top edge diverged, an open triangle lies above the range, a star is the "
    "verification run. The line is the posterior at the target through the recommendation, with its 90 % band. The "
    "vertical line is the recommendation in the 90 % interval of the optimum. Point at anything for its numbers."
)
PATH_HELP = (
    "Where the optimum is at each scale, raw values: posterior median and 90 %, other axes at the target. Points are "
    "the best single run of each scale, which noise moves too; teal is the recommendation and its interval."
)
TRANSFER_HELP = (
    "Everything is read off joint draws of the landscape at every scale; bars are 90 %. Where the loss at the smallest "
    "scale's optimum falls like the loss at each scale's own, what is best small is best large. Put to the test: what "
    "the answer, the unchanged setting, and answers from a part of the runs would lose."
)
HISTORY_HELP = "The recommendation that the first trials alone would have given; bands are 90 %."
TRIALS_HELP = "Raw values, as they were trained. A click on a heading sorts."

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy"
 content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{style}</style></head>
<body><main><h1>{title}</h1>"""
