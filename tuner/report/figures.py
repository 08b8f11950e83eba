"""The figures: the record and the posterior as plotly's plain data, one panel a hyperparameter, for the page to draw.

Colour is scale, sand (cheapest) to violet (target); so the posterior at the target is violet, and the answer is teal.
A trial stands where the parametrization moves it to at the target, so that panels compare like with like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.engine import landscape, optimum_path, recommend
from tuner.problem import Problem
from tuner.record import DIVERGED, FINISHED, Entry
from tuner.report.words import drift, number, prediction, text
from tuner.scale import Scale
from tuner.space import Categorical, Dimension, Params, Value
from tuner.study import Study
from tuner.theorem import Span
from tuner.transfer import Transfer
from tuner.trial import LEVEL, Observation, Recommendation

Array = NDArray[np.float64]
Trace = dict[str, Any]

SAND_TO_VIOLET = ((228, 164, 66), (217, 100, 78), (166, 62, 116), (62, 30, 110))
TARGET, TEAL, GRID = "rgb(62,30,110)", "rgb(13,122,117)", "#e7e5e0"
BAND, SPAN = "rgba(62,30,110,0.13)", "rgba(13,122,117,0.14)"
CHOICES = ("#2f6db3", "#c2571a", "#3d8b4f", "#8a4fa3", "#7a6a53", "#b03060")  # one a category, over scale
SLICE = 81  # points of a slice
PREFIXES = 8  # of the record, for its history
STOPS = 12  # scales along an axis, at most
Z = 1.645  # central 90 % of a normal
LEGEND = {"showlegend": True, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}}


@dataclass(frozen=True)
class Panel:
    """One plot: its heading and a line below it (text), and what plotly draws."""

    title: str
    note: str
    data: list[Trace]
    layout: dict[str, Any]


@dataclass(frozen=True)
class View:
    """A study as it stands: read once, so that every part of a page speaks of the same record.

    Args:
        answer: None where no run has a finite loss.
    """

    study: Study
    entries: Sequence[Entry]
    observations: Sequence[Observation]
    answer: Recommendation | None

    @staticmethod
    def of(study: Study) -> View:
        observations = study.observations
        known = any(not o.diverged for o in observations)
        return View(study, study.entries, observations, study.recommend() if known else None)

    @property
    def problem(self) -> Problem:
        return self.study.problem

    @cached_property
    def colours(self) -> dict[Scale, str]:
        """Every scale, cheapest first."""
        scales = dict.fromkeys([*self.problem.proxies, *(e.trial.scale for e in self.entries)])
        proxies = sorted((s for s in scales if s != self.problem.target), key=self.problem.run_cost)
        return {s: _colour(i / len(proxies)) for i, s in enumerate([*proxies, self.problem.target])}

    @property
    def runs(self) -> list[Entry]:
        """Trials that told something of the loss."""
        return [e for e in self.entries if e.state in (FINISHED, DIVERGED)]

    @property
    def losses(self) -> list[float]:
        return [e.loss for e in self.entries if e.loss is not None]

    def moved(self, name: str, params: Params, scale: Scale, to: Scale) -> Value:
        """A raw value at a scale, as the parametrization moves it to another."""
        p = self.problem
        base = p.parametrization.to_base(p.space, {name: params[name]}, scale, p.base)
        return p.parametrization.to_raw(p.space, base, to, p.base)[name]

    def raw(self, name: str, coordinates: Array, scale: Scale) -> list[Value]:
        """Base cube coordinates of one hyperparameter -> raw values at a scale."""
        p, decode = self.problem, self.problem.space[name].decode
        return [p.parametrization.to_raw(p.space, {name: decode(float(u))}, scale, p.base)[name] for u in coordinates]


def _colour(part: float) -> str:
    stops = np.array(SAND_TO_VIOLET)
    rgb = [np.interp(part, np.linspace(0, 1, len(stops)), stops[:, k]) for k in range(3)]
    return f"rgb({','.join(str(round(c)) for c in rgb)})"


# Loss against each hyperparameter


def loss_panels(view: View) -> list[Panel]:
    """One a hyperparameter: trials, the posterior at the target through the answer, and the answer's interval."""
    limits = _limits(view)
    return [_loss_panel(view, name, limits) for name in view.problem.space]


def _loss_panel(view: View, name: str, limits: tuple[float, float]) -> Panel:
    p, dimension, (low, high) = view.problem, view.problem.space[name], limits
    pad = 0.06 * (high - low)
    data = [] if view.answer is None else _slice(view, name, view.answer)
    for scale, colour in view.colours.items():
        runs = [e for e in view.runs if e.trial.scale == scale and e.feeds]
        data += _marks(view, name, runs, colour, high, high + pad)
    checks = [e for e in view.runs if e.purpose == "verification"]
    data += _marks(view, name, checks, TARGET, high, high + pad, star=True)
    ends = [] if isinstance(dimension, Categorical) else view.raw(name, np.array([0.0, 1.0]), p.target)
    moves = any(p.parametrization.factor(p.space, name, s, p.target) != 1 for s in p.proxies)
    x_axis = _axis(dimension, [*ends, *(x for t in data for x in t["x"])], "as moved to the target" if moves else "")
    y_axis = {"title": {"text": "loss"}, "range": [low, high + 2 * pad], "showticklabels": bool(view.losses)}
    layout = _layout(x_axis, y_axis)
    if view.answer is not None:
        layout["shapes"] = _answered(dimension, view.answer.params[name], view.answer.interval[name])
    return Panel(name, _note(view, name), data, layout)


def _limits(view: View) -> tuple[float, float]:
    """The losses worth an axis: the upper ones by quartile, not by the worst; and the prediction."""
    if not view.losses:
        return 0.0, 1.0
    best, middle, upper = np.quantile(view.losses, [0.0, 0.5, 0.75])
    high = min(max(view.losses), best + max(2.5 * (upper - best), 4 * (middle - best)))
    span = max(high - best, 1e-3 * abs(best), 1e-12)
    low, high = best - 0.05 * span, high + 0.05 * span
    if view.answer is not None:
        predicted, reach = view.answer.loss, Z * view.answer.loss_sd
        low, high = min(low, max(predicted - reach, low - span)), max(high, min(predicted + reach, high + span))
    return float(low), float(high)


def _marks(
    view: View, name: str, entries: Sequence[Entry], colour: str, high: float, top: float, star: bool = False
) -> list[Trace]:
    """Runs as points; those above the range and the diverged ones at its top edge, told apart by their marks."""
    groups: dict[str, list[Entry]] = {}
    for e in entries:
        kind = "x" if e.loss is None else "circle" if e.loss <= high else "triangle-up-open"
        groups.setdefault("star" if star and kind == "circle" else kind, []).append(e)
    size = {"star": 17, "x": 8, "triangle-up-open": 8}
    return [
        _points(
            [_abscissa(view, name, e) for e in group],
            [top if kind in ("x", "triangle-up-open") else e.loss for e in group],
            [_told(e, name) for e in group],
            {"symbol": kind, "size": size.get(kind, 8), "color": colour, "opacity": 1.0 if star else 0.85},
        )
        for kind, group in groups.items()
    ]


def _abscissa(view: View, name: str, entry: Entry) -> float:
    """Where a run stands; in a strip of choices, spread by its number so that marks do not hide each other."""
    dimension = view.problem.space[name]
    if isinstance(dimension, Categorical):
        return dimension.choices.index(entry.trial.params[name]) + 0.5 * ((entry.trial.number * 0.618034) % 1 - 0.5)
    return float(view.moved(name, entry.trial.params, entry.trial.scale, view.problem.target))


def _slice(view: View, name: str, answer: Recommendation) -> list[Trace]:
    """The posterior at the target along one hyperparameter, the others at the answer."""
    p, j = view.problem, list(view.problem.space).index(name)
    dimension = p.space[name]
    chosen = p.space.encode(p.parametrization.to_base(p.space, answer.params, p.target, p.base))
    count = len(dimension.choices) if isinstance(dimension, Categorical) else SLICE
    points = np.tile(chosen, (count, 1))
    points[:, j] = (np.arange(count) + 0.5) / count if isinstance(dimension, Categorical) else np.linspace(0, 1, count)
    points = np.unique(p.snapped(points), axis=0)
    mean, low, high = landscape(p, view.observations, points, p.target, seed=view.study.seed)
    if not isinstance(dimension, Categorical):
        return _curve([float(v) for v in view.raw(name, points[:, j], p.target)], mean, low, high)
    bars = {"type": "data", "array": (high - mean).tolist(), "arrayminus": (mean - low).tolist(), "color": TARGET}
    marker = {"symbol": "line-ew-open", "size": 30, "color": TARGET}
    return [{**_points(list(range(count)), mean, _bands(dimension.choices, mean, low, high), marker), "error_y": bars}]


def _answered(dimension: Dimension, value: Value, interval: Sequence[Value]) -> list[dict[str, Any]]:
    """The interval as a shaded span and the recommendation as a line; of choices, the likely ones shaded."""
    if isinstance(dimension, Categorical):
        at = dimension.choices.index
        return [*(_span(at(c) - 0.4, at(c) + 0.4) for c in interval), _edge(at(value) - 0.4, at(value) + 0.4)]
    return [_span(interval[0], interval[-1]), _edge(value, value)]


def _span(x0: Any, x1: Any) -> dict[str, Any]:
    return {**_edge(x0, x1), "fillcolor": SPAN, "line": {"width": 0}, "layer": "below"}


def _edge(x0: Any, x1: Any) -> dict[str, Any]:
    return {"type": "rect", "yref": "paper", "x0": x0, "x1": x1, "y0": 0, "y1": 1, "line": {"color": TEAL, "width": 2}}


# The path of the optimum over scale


def path_panels(view: View) -> list[Panel]:
    """One a hyperparameter and axis: where the optimum is at each scale along it, the other axes at the target."""
    panels = []
    for axis in view.problem.axes if view.answer else ():
        scales = _along(view.problem, axis)
        draws = optimum_path(view.problem, view.observations, scales, seed=view.study.seed)
        panels += [_path_panel(view, n, axis, scales, draws[:, :, j]) for j, n in enumerate(view.problem.space)]
    return panels


def _along(problem: Problem, axis: str) -> list[Scale]:
    """The proxies' values of an axis and the target's, with the middles of wide gaps between them."""
    values = sorted({p[axis] for p in problem.proxies} | {problem.target[axis]})
    middles = [math.sqrt(a * b) for a, b in pairwise(values) if b > 4 * a]
    stops = sorted([*values, *middles])
    kept = {stops[i] for i in np.linspace(0, len(stops) - 1, min(len(stops), STOPS)).round().astype(int)}
    return [Scale({**problem.target, axis: v}) for v in sorted(kept | {problem.target[axis]})]


def _path_panel(view: View, name: str, axis: str, scales: list[Scale], draws: Array) -> Panel:
    dimension, xs = view.problem.space[name], [float(s[axis]) for s in scales]
    title, x_axis = f"{name} over {axis}", _log_axis(xs, axis, _spaced([float(s[axis]) for s in view.colours]))
    if isinstance(dimension, Categorical):
        layout = _layout(x_axis, {"title": {"text": "probability of being best"}, "range": [-0.03, 1.03]})
        return Panel(title, "", _shares(dimension, xs, draws), layout | LEGEND)
    quantiles = np.quantile(draws, [0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    middle, low, high = (
        np.array([float(view.raw(name, q[i : i + 1], s)[0]) for i, s in enumerate(scales)]) for q in quantiles
    )
    data, note = _curve(xs, middle, low, high), ""
    if view.answer is not None:
        data += _at_target(view.answer, name, float(view.problem.target[axis]))
        note = f"drift {drift(view.answer, name, axis)}"
    data += _best_of_each(view, name, axis)
    ys = [y for trace in data for y in trace["y"]]
    return Panel(title, note, data, _layout(x_axis, _axis(dimension, ys, name)))


def _at_target(answer: Recommendation, name: str, x: float) -> list[Trace]:
    """The recommendation and its interval, as the answer states them."""
    value, low, high = (float(v) for v in (answer.params[name], answer.interval[name][0], answer.interval[name][-1]))
    told = f"recommended {number(value)}<br>90 % {number(low)} to {number(high)}"
    ends = _points(
        [x, x], [low, high], [told] * 2, {"size": 12, "symbol": "line-ew-open", "color": TEAL}, "lines+markers"
    )
    return [ends, _points([x], [value], [told], {"size": 9, "color": TEAL})]


def _spaced(values: Sequence[float]) -> list[float]:
    """Scales for labels: from the target down, each at least a factor of 1.5 from the last."""
    kept: list[float] = []
    reach = max(math.log(max(values) / min(values)) / 8, math.log(1.5))
    for value in sorted(values, reverse=True):
        if not kept or math.log(kept[-1] / value) >= reach:
            kept.append(value)
    return kept[::-1]


def _shares(dimension: Categorical, xs: list[float], draws: Array) -> list[Trace]:
    """How often each choice is the best one, over scale."""
    index = np.minimum((draws * len(dimension.choices)).astype(int), len(dimension.choices) - 1)
    return [
        {
            **_points(xs, (index == k).mean(1), [], {"size": 6, "color": CHOICES[k % len(CHOICES)]}, "lines+markers"),
            "name": text(choice),
            "hoverinfo": "name+y",
        }
        for k, choice in enumerate(dimension.choices)
    ]


def _best_of_each(view: View, name: str, axis: str) -> list[Trace]:
    """The best run seen at each scale, the verification run as a star."""
    traces = []
    for scale, colour in view.colours.items():
        runs = [e for e in view.runs if e.trial.scale == scale and e.loss is not None]
        if runs:
            e = min(runs, key=lambda e: e.loss or 0.0)
            mark = {"symbol": "star", "size": 17} if e.purpose == "verification" else {"symbol": "circle", "size": 9}
            value = float(view.moved(name, e.trial.params, scale, Scale({**view.problem.target, axis: scale[axis]})))
            traces.append(_points([float(scale[axis])], [value], [_told(e, name)], {**mark, "color": colour}))
    return traces


# Whether transfer holds


def transfer_panels(view: View) -> list[Panel]:
    """Losses at each scale's own and at the smallest scale's optimum; the gaps; what was put to the test."""
    told = view.study.transfer() if view.answer else None
    if told is None or not told.losses:
        return []
    return [_laws_panel(view, told), _gaps_panel(view, told), _tests_panel(told)]


def _size(told: Transfer, scale: Scale) -> float:
    return told.sizes(scale)


def _over(told: Transfer, xs: Sequence[float]) -> dict[str, Any]:
    return _log_axis(xs, f"{told.sizes.axis}, of the target's")


def _whiskers(spans: Sequence[Span]) -> dict[str, Any]:
    """Error bars to the ends of intervals."""
    up, down = [s.high - s.middle for s in spans], [s.middle - s.low for s in spans]
    return {"type": "data", "array": up, "arrayminus": down, "thickness": 1.2, "width": 4}


def _spans(
    name: str, xs: Sequence[float], spans: Sequence[Span], colour: str, symbol: str = "circle", line: bool = True
) -> Trace:
    marks = {"size": 9, "color": colour, "symbol": symbol}
    told = [f"{name}: {span}" for span in spans]
    trace = _points(xs, [s.middle for s in spans], list(map(text, told)), marks, "lines+markers" if line else "markers")
    return {**trace, "name": text(name), "error_y": {**_whiskers(spans), "color": colour}}


def _laws_panel(view: View, told: Transfer) -> Panel:
    """The loss law at either optimum, with E + A s^-alpha fitted to the medians."""
    xs = [_size(told, at.scale) for at in told.losses]
    smallest = told.losses[0].scale
    kinds = {
        "its own optimum": ([at.own for at in told.losses], TARGET, "circle"),
        f"the optimum of {smallest}": ([at.smallest for at in told.losses], CHOICES[1], "square-open"),
    }
    data, laws = [], []
    for name, (spans, colour, symbol) in kinds.items():
        data.append(_spans(name, xs, spans, colour, symbol, line=False))
        if (law := _power_law(xs, [s.middle for s in spans])) is not None:
            level, gain, alpha = law
            along = np.geomspace(min(xs), max(xs), SLICE)
            line = _points(along.tolist(), level + gain * along**-alpha, [], {"color": colour}, "lines")
            data.append({**line, "showlegend": False, "hoverinfo": "skip"})
            laws.append(f"{name}: {number(level)} + {number(gain)} s^-{number(alpha)}")
    layout = _layout(_over(told, xs), {"title": {"text": "loss"}}) | LEGEND
    return Panel("Loss law at either optimum", "; ".join(laws), data, layout)


def _above_zero(span: Span) -> Span:
    """For a logarithmic axis: what is below a thousandth of its upper end is drawn there."""
    least = 1e-3 * max(span.high, 1e-12)
    return Span(max(span.middle, least), max(span.low, least), max(span.high, least))


def _power_law(xs: Sequence[float], losses: Sequence[float]) -> tuple[float, float, float] | None:
    """(E, A, alpha) of E + A x^-alpha, least squares over a grid of alpha; None of fewer than four points."""
    if len(xs) < 4:
        return None
    fits = []
    for alpha in np.linspace(0.05, 3.0, 119):
        design = np.column_stack([np.ones(len(xs)), np.array(xs) ** -alpha])
        (level, gain), *_ = np.linalg.lstsq(design, np.array(losses))
        fits.append((float(np.square(design @ [level, gain] - losses).sum()), float(level), float(gain), float(alpha)))
    return min(fits)[1:]


def _gaps_panel(view: View, told: Transfer) -> Panel:
    """a, b and c over scale; transfer is fast where b falls faster than the square root of a."""
    xs = [_size(told, gap.scale) for gap in told.gaps]
    losses = [_above_zero(gap.loss) for gap in told.gaps]
    kinds = {
        "a, what a smaller model loses": (losses, TARGET, "circle"),
        "b, how far its optimum is away (nats)": ([_above_zero(g.optimum) for g in told.gaps], TEAL, "diamond"),
        "c, what its optimum loses at the target": ([_above_zero(g.regret) for g in told.gaps], CHOICES[1], "square"),
    }
    data = [_spans(name, xs, *drawn) for name, drawn in kinds.items()]
    if (
        told.law is not None and told.gaps[0].optimum.middle > 0
    ):  # b with beta = alpha / 2, from the smallest scale's on
        slow = np.array(xs) ** (-0.5 * float(np.median(told.law.alpha))) - 1
        fast = told.gaps[0].optimum.middle * slow / slow[0]
        line = _points(xs, fast, [], {"color": TEAL}, "lines", "dot")
        data.append({**line, "name": "b falls faster than this: fast", "hoverinfo": "skip"})
    ys = [y for trace in data for y in trace["y"]]
    ratio = f"beta / alpha {Span.of(told.law.ratio)}" if told.law and told.law.told else "beta is not told"
    note = f"{ratio}: {told.pace}"
    layout = _layout(_over(told, xs), {**_log_axis(ys, "gap"), "title": {"text": "gap to the target"}}) | LEGEND
    return Panel("Gaps", note, data, layout)


def _tests_panel(told: Transfer) -> Panel:
    """What the settings that were put to the test lose, against the noise of one run."""
    spans, rows = [Span.of(test.loses) for test in told.tests], list(range(len(told.tests)))
    hover = [text(test) for test in told.tests]
    marks = _points([s.middle for s in spans], rows, hover, {"size": 9, "color": TARGET})
    data = [{**marks, "error_x": {**_whiskers(spans), "color": TARGET}}]
    labels = {"tickvals": rows, "ticktext": [text(test.name) for test in told.tests], "range": [len(rows) - 0.5, -0.5]}
    layout = _layout({"title": {"text": "loses"}, "rangemode": "tozero"}, labels)
    noise = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": told.allowed.loss, "x1": told.allowed.loss}
    layout["shapes"] = [{**noise, "line": {"color": TEAL, "width": 1.5, "dash": "dash"}}]
    return Panel("Put to the test", f"dashed: {told.allowed}", data, layout)


# The answer as the record grew


def history_panels(view: View) -> list[Panel]:
    """Expected regret and predicted loss of the answer from geometric prefixes of the record, against their cost."""
    told = _history(view)
    if not told:
        return []
    costs, answers = [cost for cost, _, _ in told], [a for _, _, a in told]
    hover = [f"{n} trials, {number(c)} target runs<br>predicted loss {prediction(a)}"
             f"<br>expected regret {number(a.expected_regret)}" for c, n, a in told]  # fmt: skip
    regrets = np.array([a.expected_regret for a in answers])
    means, sds = np.array([a.loss for a in answers]), np.array([a.loss_sd for a in answers])
    losses = _curve(costs, means, means - Z * sds, means + Z * sds, hover, "lines+markers")
    measured = [e for e in view.entries if e.purpose == "verification" and e.loss is not None]
    losses += [_points([costs[0], costs[-1]], [e.loss] * 2, [_told(e, "")] * 2, {"color": TARGET}, "lines", "dot")
               for e in measured]  # fmt: skip
    x_axis = _log_axis(costs, "cost of the search (target runs)")
    y_axis = (
        _log_axis(list(regrets), "expected regret") if regrets.min() > 0 else {"title": {"text": "expected regret"}}
    )
    regret = [_points(costs, regrets, hover, {"size": 7, "color": TARGET}, "lines+markers")]
    note = "Dotted: measured by the verification run." if measured else ""
    return [
        Panel("Expected regret", "", regret, _layout(x_axis, y_axis)),
        Panel("Predicted loss at the target", note, losses, _layout(x_axis, {"title": {"text": "loss"}})),
    ]


def _history(view: View) -> list[tuple[float, int, Recommendation]]:
    """(target runs charged by then, trials, answer) of prefixes at powers of sqrt 2, which the engine fits anyway."""
    count = len(view.observations)
    sizes = sorted({int(2 ** (k / 2)) for k in range(4, 60) if 2 ** (k / 2) < count})
    kept = {sizes[i] for i in np.linspace(0, len(sizes) - 1, min(len(sizes), PREFIXES - 1)).round().astype(int)}
    searched = [e for e in view.entries if e.feeds]
    charged = np.cumsum([view.study.charge(e) for e in searched]) / view.study.target_cost
    ends = [c for c, e in zip(charged, searched, strict=True) if e.state in (FINISHED, DIVERGED)]
    known = {n: view.observations[:n] for n in sorted(kept)}
    told = [
        (float(ends[n - 1]), n, recommend(view.problem, runs, seed=view.study.seed))
        for n, runs in known.items()
        if any(not o.diverged for o in runs)
    ]
    return [*told, (float(charged[-1]), count, view.answer)] if view.answer else []


# What plotly is told


def _points(
    xs: Sequence[Any], ys: Any, told: Sequence[str], marker: dict[str, Any], mode: str = "markers", dash: str = "solid"
) -> Trace:
    line = {"color": marker["color"], "width": 2, "dash": dash}
    hover = {"hoverinfo": "text"} if told else {}
    edge = {"line": {"width": 1, "color": "white"}} if not str(marker.get("symbol", "")).endswith(("open", "x")) else {}
    return {"type": "scatter", "mode": mode, "x": list(xs), "y": [float(y) for y in ys], "text": list(told),
            "marker": {**edge, **marker}, "line": line, **hover}  # fmt: skip


def _curve(
    xs: list[float], middle: Array, low: Array, high: Array, told: Sequence[str] = (), mode: str = "lines"
) -> list[Trace]:
    """A line in its band."""
    band = {"type": "scatter", "mode": "lines", "x": [*xs, *xs[::-1]], "y": [*high.tolist(), *low[::-1].tolist()],
            "fill": "toself", "fillcolor": BAND, "line": {"width": 0}, "hoverinfo": "skip"}  # fmt: skip
    return [band, _points(xs, middle, told or _bands(xs, middle, low, high), {"size": 7, "color": TARGET}, mode)]


def _bands(xs: Sequence[Value], middle: Array, low: Array, high: Array) -> list[str]:
    rows = zip(xs, middle.tolist(), low.tolist(), high.tolist(), strict=True)
    return [f"at {text(number(x))}: {number(m)}<br>90 % {number(a)} to {number(b)}" for x, m, a, b in rows]


def _layout(x_axis: dict[str, Any], y_axis: dict[str, Any]) -> dict[str, Any]:
    plain = {"exponentformat": "power", "gridcolor": GRID, "zeroline": False, "automargin": True, "ticks": "outside",
             "tickcolor": GRID, "linecolor": "#b9b5ad", "showline": True}  # fmt: skip
    font = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "#33312d"}
    return {"xaxis": {**plain, **x_axis}, "yaxis": {**plain, **y_axis}, "font": font, "showlegend": False,
            "margin": {"l": 60, "r": 14, "t": 12, "b": 48}, "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)", "hovermode": "closest"}  # fmt: skip


def _axis(dimension: Dimension, values: Sequence[Any], title: str) -> dict[str, Any]:
    """The axis of a hyperparameter."""
    if isinstance(dimension, Categorical):
        choices = [text(c) for c in dimension.choices]
        ends, ticks = [-0.5, len(choices) - 0.5], {"tickvals": list(range(len(choices))), "ticktext": choices}
        return {"title": {"text": text(title)}, "range": ends, **ticks}
    if dimension.log:
        return _log_axis(values, title)
    pad = 0.04 * (max(values) - min(values)) or 1.0
    return {"title": {"text": text(title)}, "range": [min(values) - pad, max(values) + pad]}


def _log_axis(values: Sequence[float], title: str, ticks: Sequence[float] = ()) -> dict[str, Any]:
    """A log axis with at most about six plain labels; plotly's own put a bare 2 or 5 between decades."""
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = max(0.04 * (high - low), 0.02)
    shown_at = ticks or _log_ticks(low - pad, high + pad) or [min(values), max(values)]
    labels = {"tickvals": list(shown_at), "ticktext": [number(v) for v in shown_at]}
    return {"type": "log", "title": {"text": text(title)}, "range": [low - pad, high + pad], **labels}


def _log_ticks(low: float, high: float) -> list[float]:
    """The finest series of round numbers that leaves at most six between two powers of ten."""
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        series = [d * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for d in digits]
        ticks = [v for v in series if low <= math.log10(v) <= high]
        if len(ticks) <= 6:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 6)]


def _note(view: View, name: str) -> str:
    """The answer for one hyperparameter, in a line."""
    if view.answer is None:
        return ""
    value, interval = view.answer.params[name], view.answer.interval[name]
    if isinstance(view.problem.space[name], Categorical):
        return f"recommended {number(value)}; 90 %: {', '.join(map(number, interval))}"
    return f"recommended {number(value)}; 90 %: {number(interval[0])} to {number(interval[-1])}"


def _told(entry: Entry, name: str) -> str:
    """A run, when pointed at: its raw values, as they were."""
    what = "verification" if entry.purpose == "verification" else f"trial {entry.trial.number}"
    lines = [f"{what}, {entry.trial.scale}", *(f"{n} {number(v)}" for n, v in entry.trial.params.items())]
    loss = "diverged" if entry.loss is None else f"loss {number(entry.loss)}"
    return "<br>".join(map(text, [*lines, loss]))
