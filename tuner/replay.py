"""Replay: recorded runs as an objective. A method proposes rows, pays for them, and the target's rows score its answer.

A row is taken once; rows that agree in hyperparameters and scale are replicates, taken one at a time in the table's
order. A method that searches below the target is never given a row of the target.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.errors import BadInput
from tuner.methods import Method
from tuner.opening import recorded, recorded_table
from tuner.problem import SLACK, Problem
from tuner.runs import Run, Table
from tuner.scale import Scale
from tuner.space import Categorical, Params, SearchSpace, Value
from tuner.studyfile import StudyFile
from tuner.trial import Observation, Proposal

Array = NDArray[np.float64]
NEAR_BEST = 0.015  # relative loss: rows that the quadratic is fitted to
SPARE = 2  # rows beyond its coefficients that it needs


@dataclass(frozen=True)
class Quadratic:
    """L(u) in the cube's coordinates, with a minimum.

    Args:
        value: of the minimum. at: (d,) where it is. curvature: (d, d), positive definite.
    """

    value: float
    at: Array
    curvature: Array

    @staticmethod
    def fit(points: Array, losses: Array) -> Quadratic | None:
        """Least squares; None where the rows are too few, or have no minimum to show."""
        d = points.shape[1]
        pairs = list(combinations_with_replacement(range(d), 2))
        design = np.column_stack([np.ones(len(points)), points, *(points[:, i] * points[:, j] for i, j in pairs)])
        if len(points) < design.shape[1] + SPARE or np.linalg.matrix_rank(design) < design.shape[1]:
            return None
        level, *rest = np.linalg.lstsq(design, losses, rcond=None)[0]
        slope, curvature = np.array(rest[:d]), np.zeros((d, d))
        for (i, j), coefficient in zip(pairs, rest[d:], strict=True):
            curvature[i, j] += coefficient
            curvature[j, i] += coefficient
        if np.linalg.eigvalsh(curvature)[0] <= 0:
            return None
        at = -np.linalg.solve(curvature, slope)
        return Quadratic(float(level + 0.5 * slope @ at), at, curvature)

    def regret(self, point: Array) -> float:
        away = point - self.at
        return float(0.5 * away @ self.curvature @ away)


@dataclass(frozen=True)
class Truth:
    """What the target's rows say of an answer; only ever read to score. One run a setting: replicates are averaged."""

    space: SearchSpace
    runs: tuple[Run, ...]

    @staticmethod
    def of(space: SearchSpace, table: Table, target: Scale) -> Truth:
        """Raises BadInput where the target has no row with a finite loss."""
        settings: dict[tuple[Any, ...], list[Run]] = {}
        for run in table.runs:
            if run.scale == target and math.isfinite(run.loss):
                settings.setdefault(tuple(run.params.items()), []).append(run)
        if not settings:
            others = [scale for scale in table.scales if scale != target]
            raise BadInput(
                f"scale.target: rows at {target} are needed to score an answer, the table has none with a finite loss; "
                f"name a scale that it has{f', for example {others[-1]}' if others else ''}"
            )
        losses = [statistics.fmean(run.loss for run in same) for same in settings.values()]
        means = zip(settings.values(), losses, strict=True)
        return Truth(space, tuple(Run(same[0].params, target, loss, same[0].cost) for same, loss in means))

    @cached_property
    def _points(self) -> Array:
        return np.stack([self.space.encode(run.params) for run in self.runs])

    @cached_property
    def _losses(self) -> Array:
        return np.array([run.loss for run in self.runs])

    @cached_property
    def smooth(self) -> Quadratic | None:
        """Fitted to the rows near the best: a table's rows carry noise, which the nearest one inherits."""
        if any(isinstance(dimension, Categorical) for dimension in self.space.values()):
            return None
        best = self._losses.min()
        near = self._losses <= best + NEAR_BEST * abs(best)
        return Quadratic.fit(self._points[near], self._losses[near])

    def score(self, params: Params | None) -> dict[str, float | None]:
        """Regret of raw hyperparameters: by the nearest row, the same over the best loss, and by the quadratic."""
        if params is None:
            return dict.fromkeys(("regret", "relative_regret", "smooth_relative_regret"))
        point, best = self.space.encode(params), float(self._losses.min())
        regret = float(self._losses[np.square(self._points - point).sum(1).argmin()]) - best
        return {
            "regret": regret,
            "relative_regret": regret / abs(best) if best else None,
            "smooth_relative_regret": self.smooth.regret(point) / abs(self.smooth.value) if self.smooth else None,
        }

    @cached_property
    def _optimum(self) -> tuple[Array, Array]:
        """Where the quadratic's minimiser is, or else the best row, and how near is there: half a step of the grid.

        (d,) each. A minimiser outside the space counts as its edge.
        """
        if self.smooth is not None:
            numeric = (d for d in self.space.values() if not isinstance(d, Categorical))  # all are
            edges = np.array([d.encode_all([d.low, d.high]) for d in numeric])
            return self.smooth.at.clip(*edges.T), np.full(len(self.space), 1e-9)
        steps = [np.diff(np.unique(column.round(9))) for column in self._points.T]
        return self._points[self._losses.argmin()], np.array([0.5 * np.median(s) if len(s) else 0.0 for s in steps])

    def missed(self, interval: Mapping[str, Sequence[Value]]) -> dict[str, float]:
        """How far the optimum lies outside of each interval, in cube lengths; 0 or 1 of a category."""
        told = {}
        for (name, dimension), at, near in zip(self.space.items(), *self._optimum, strict=True):
            if isinstance(dimension, Categorical):
                told[name] = float(dimension.decode(at) not in interval[name])
                continue
            low, high = (dimension.encode(end) for end in interval[name])
            away = float(max(low - at, at - high))
            told[name] = max(away, 0.0) if away > near else 0.0
        return told

    def told(self, interval: Mapping[str, Sequence[Value]], level: float) -> dict[str, dict[str, Any]]:
        """Of each interval: whether it covers the optimum; of a number its width, and the interval score.

        Score: width + 2 / (1 - level) times how far the optimum lies outside (Gneiting and Raftery 2007, eq. 43), both
        in cube lengths.
        """
        missed = self.missed(interval)
        ends = {n: d.encode_all(interval[n]) for n, d in self.space.items() if not isinstance(d, Categorical)}
        width = {name: float(high - low) for name, (low, high) in ends.items()}
        return {
            "covered": {name: away == 0 for name, away in missed.items()},
            "width": width,
            "interval_score": {name: wide + 2 / (1 - level) * missed[name] for name, wide in width.items()},
        }


@dataclass(frozen=True)
class Replay:
    """A table, what it is asked, and what scores the answer."""

    problem: Problem
    table: Table
    truth: Truth

    @staticmethod
    def of(file: StudyFile) -> Replay:
        """Raises BadInput as `read_table`; where the target has no rows, or no proxy is cheaper than it."""
        table, target = recorded_table(file), Scale(file.scale.target)
        assert file.search_space is not None
        truth = Truth.of(file.search_space, table, target)
        cheaper = [s for s in table.scales if table.cost_at(s) < table.cost_at(target) and file.scale.is_proxy(s)]
        if not cheaper:
            raise BadInput(
                f"scale.proxies: rows at a scale cheaper than the target ({target}) are needed, the table has none"
                f"{'' if file.scale.proxies is None else ' that the file names'}; name other proxies"
            )
        return Replay(recorded(file, cheaper)(table.cost), table, truth)

    def run(self, method: Method, seed: int, budget: float) -> dict[str, Any]:
        """Spend a budget (target runs) on rows; an entry of the `--json` contract."""
        problem, unit = self.problem, self.table.cost_at(self.problem.target)
        rows = self._rows([problem.target] if method.direct else problem.proxies)
        prices = np.array([self._price(row) for row in rows])
        places = {id(row.proposal): i for i, row in enumerate(rows)}
        seen: list[Observation] = []
        trace: list[dict[str, Any]] = []
        thought, spent, answer = [], 0.0, None
        while True:
            rest = budget * unit - spent
            affordable = [rows[i].proposal for i in np.flatnonzero(prices <= SLACK * rest)]
            chosen: list[Proposal] = []
            if affordable:
                start = time.perf_counter()
                chosen = method.propose(problem, seen, (), seed=seed, budget=rest, count=1, among=affordable)
                thought.append(time.perf_counter() - start)
            if seen:  # after the next proposal, which is timed: both need the same fit
                answer = method.recommend(problem, seen, seed=seed) if any(not o.diverged for o in seen) else None
                trace.append({"target_runs": spent / unit, "trials": len(seen), **self.truth.score(answer)})
            if not chosen:
                break
            i = places[id(chosen[0])]
            run = rows[i].left.pop(0)
            prices[i] = self._price(rows[i])
            spent += run.cost
            seen.append(Observation(chosen[0].params, run.scale, run.loss, run.cost))
        known = method.known(problem, seen, seed=seed, level=0.9) if answer else None
        half = method.known(problem, seen, seed=seed, level=0.5) if answer else None
        return {
            "seed": seed,
            "trace": trace,
            "recommendation": answer and dict(answer),
            "interval": {name: list(ends) for name, ends in known.interval.items()} if known else {},
            **(self.truth.told(known.interval, 0.9) if known else {"covered": {}}),
            "covered_half": self.truth.told(half.interval, 0.5)["covered"] if half else {},
            "predicted_regret": known.expected_regret if known else None,
            "seconds_per_proposal": statistics.median(thought) if thought else None,
        }

    def _rows(self, scales: Sequence[Scale]) -> list[_Setting]:
        settings: dict[Any, _Setting] = {}
        for run in self.table.runs:
            if run.scale in scales:
                key = (run.scale, *run.params.items())
                base = Proposal(self.problem.to_base(run.params, run.scale), run.scale)
                settings.setdefault(key, _Setting(base, [])).left.append(run)
        return list(settings.values())

    def _price(self, setting: _Setting) -> float:
        """What its next row must fit: its cost, and that of its scale, which is what methods plan with."""
        return max(setting.left[0].cost, self.table.cost_at(setting.proposal.scale)) if setting.left else math.inf


@dataclass(frozen=True)
class _Setting:
    """Hyperparameters at a scale, base coordinates, and its rows that are not taken yet."""

    proposal: Proposal
    left: list[Run]
