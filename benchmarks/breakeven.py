"""Where direct tuning overtakes a search from below: predicted from pilot runs, and as recorded runs say.

    TUNER_TABLES=... OMP_NUM_THREADS=1 python -m benchmarks.breakeven --seeds 5

Predicted: a search of the tuner spends 0.5 target runs on proxies, and `tuner.breakeven` takes its constants from that
record. Measured: searches that draw K rows at random at one scale and keep the best, scored by the target's rows, 2,000
draws for each K; from below at the proxy that loses least for its cost, the run at the target paid for. The crossing is
the total from which on the direct search loses less on average; a loss within a run's noise counts as that noise. Of
ridge (width 8192, proxies 256 to 2048) and of bowls (`benchmarks.bowls`, width 256, proxies 16 to 64, another bowl
every seed) the rows are drawn.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np

import tuner
from benchmarks.bowls import Bowl
from benchmarks.recorded import lost, problem
from objectives.ridge import RandomFeatures
from tuner.engine import recommend
from tuner.execution import settle_in
from tuner.methods.transfer import Transfer
from tuner.problem import Problem
from tuner.replay import Replay
from tuner.scale import Scale
from tuner.space import Params, SearchSpace
from tuner.theorem import Sizes, Span
from tuner.transfer import judge
from tuner.trial import Observation

PROBLEMS = ("ridge", "bowl that moves", "bowl that moves far", "429M/22.7B", "268M/25B", "537M/10B", "protein")
PILOT = 0.5  # target runs
DRAWS, TOTALS = 2000, np.geomspace(1.01, 512, 80)
ROWS = 10_000  # of an oracle, at each scale
MOVES = {"bowl that moves": 0.2, "bowl that moves far": 0.8}
ORACLES = ("ridge", *MOVES)
BOWL = Scale(width=256), tuple(Scale(width=w) for w in (16, 32, 64))
RIDGE = Scale(width=8192), tuple(Scale(width=w) for w in (256, 512, 1024, 2048))


@dataclass(frozen=True)
class Truth:
    """Recorded rows: scale -> their losses there, and what each loses at the target, relative; target runs of a run."""

    rows: Mapping[Scale, tuple[np.ndarray, np.ndarray]]
    costs: Mapping[Scale, float]
    target: Scale

    def lost(self, scale: Scale, runs: float, rng: np.random.Generator) -> float:
        """Mean regret of the best of some rows; infinite for less than one."""
        if runs < 1:
            return math.inf
        losses, regrets = self.rows[scale]
        drawn = rng.integers(len(losses), size=(DRAWS, min(int(runs), 4096)))
        return float(regrets[drawn[np.arange(DRAWS), losses[drawn].argmin(1)]].mean())

    @cached_property
    def curves(self) -> np.ndarray:
        """What is lost directly and from below at each total: (totals, 2)."""
        rng, proxies = np.random.default_rng(0), [s for s in self.rows if s != self.target]
        below = [min(self.lost(s, (total - 1) / self.costs[s], rng) for s in proxies) for total in TOTALS]
        return np.column_stack([[self.lost(self.target, total, rng) for total in TOTALS], below])

    def crossing(self, noise: float) -> float:
        directly, below = np.maximum(self.curves, noise).T
        behind, ahead = np.flatnonzero(directly > below), np.flatnonzero(directly < below)
        if not len(ahead) or (len(behind) and behind[-1] > ahead[-1]):
            return math.inf
        return float(TOTALS[0]) if not len(behind) else float(np.append(TOTALS, np.inf)[behind[-1] + 1])


@cache
def recorded(name: str) -> Truth:
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay.of(problem(name, Path(folder)))
    asked, table, truth = replay.problem, replay.table, replay.truth
    rows = {}
    for scale in (*asked.proxies, asked.target):
        runs = [run for run in table.runs if run.scale == scale and math.isfinite(run.loss)]
        answers = [asked.to_raw(asked.to_base(run.params, run.scale), asked.target) for run in runs]
        regrets = [lost(truth.score(answer)) / 100 for answer in answers]
        rows[scale] = np.array([run.loss for run in runs]), np.array(regrets)
    whole = table.cost_at(asked.target)
    return Truth(rows, {scale: table.cost_at(scale) / whole for scale in rows}, asked.target)


class Oracle(Protocol):
    """An objective whose noise-free loss is a formula."""

    space: SearchSpace
    noise: float

    def cost(self, params: Params, scale: Scale) -> float: ...


def oracle(name: str, seed: int) -> tuple[Oracle, Scale, Sequence[Scale], Callable[[Params, float], float]]:
    """With its target, its proxies, and the noise-free loss above the best at a width; a bowl differs with the seed."""
    if name == "ridge":
        ridge = RandomFeatures()
        return ridge, *RIDGE, lambda params, width: ridge.risk(params["ridge"], width) - ridge.optimum(width)[1]
    bowl = Bowl(seed, moves=MOVES[name], noise=0.003)
    return bowl, *BOWL, bowl.excess


def drawn(name: str, seed: int) -> Truth:
    """Settings at random, as a search would draw them, at each scale."""
    objective, target, proxies, excess = oracle(name, seed)
    rng = np.random.default_rng(seed)
    rows, best = {}, RandomFeatures().optimum(target["width"])[1] if name == "ridge" else Bowl.best(target["width"])
    for scale in (*proxies, target):
        params = [objective.space.decode(u) for u in rng.random((ROWS, len(objective.space)))]
        noise = objective.noise * rng.standard_normal(ROWS)
        losses = np.array([excess(p, scale["width"]) for p in params]) + noise
        rows[scale] = losses, np.array([excess(p, target["width"]) for p in params]) / best
    middle = objective.space.middle
    return Truth(rows, {s: objective.cost(middle, s) / objective.cost(middle, target) for s in rows}, target)


@dataclass(frozen=True)
class Pilot(Transfer):
    """The tuner's search, of which only the runs are wanted."""

    seen: list[Observation] = field(default_factory=list)

    def recommend(self, problem: Problem, observations: Sequence[Observation], *, seed: int) -> Params:
        return problem.to_raw(problem.space.middle, problem.target)

    def known(self, problem: Problem, observations: Sequence[Observation], *, seed: int, level: float) -> None:
        self.seen[:] = observations


def predicted(name: str, seed: int) -> tuple[np.ndarray, float, str] | None:
    """Draws of the crossing from a pilot search, the noise as the truth is told, and its verdict; None: no law."""
    if name in ORACLES:
        objective, target, proxies, _ = oracle(name, seed)
        with tuner.create_study(objective=objective, target=target, proxies=proxies, seed=seed) as study:
            study.optimize(objective, PILOT)
            asked, seen = study.problem, list(study.observations)
            return _crossing(asked, seen, seed)
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay.of(problem(name, Path(folder)))
        pilot = Pilot()
        replay.run(pilot, seed, PILOT)
        return _crossing(replay.problem, pilot.seen, seed)


def _crossing(asked: Problem, seen: list[Observation], seed: int) -> tuple[np.ndarray, float, str] | None:
    answer = recommend(asked, seen, seed=seed)
    told = judge(asked, seen, answer, seed=seed)
    if told.law is None:
        return None
    sizes = Sizes.of(asked, seen)
    below = told.law.proxies(sizes, asked.proxies)
    return told.law.break_even(below, answer.noise), answer.noise / abs(answer.loss), told.verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    print("| problem | measured: median over seeds (quartiles) | predicted | ratio | covered | no law | verdicts |")
    print("|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("forkserver"), initializer=settle_in) as pool:
        for name in chosen.problems.split(","):
            jobs = {seed: pool.submit(predicted, name, seed) for seed in range(chosen.seeds)}
            found = {seed: told for seed, job in jobs.items() if (told := job.result()) is not None}
            truths = {seed: drawn(name, seed) if name in ORACLES else recorded(name) for seed in found}
            spans = [Span.of(draws) for draws, _, _ in found.values()]
            measured = [truths[seed].crossing(noise) for seed, (_, noise, _) in found.items()]
            ratios = [s.middle / m if s.middle != m else 1.0 for s, m in zip(spans, measured, strict=True)]
            covered = sum(s.low <= m <= s.high for s, m in zip(spans, measured, strict=True))
            verdicts = " ".join(sorted(v for _, _, v in found.values()))
            cells = [quartiles(measured), quartiles([s.middle for s in spans]), quartiles(ratios)]
            lacking = chosen.seeds - len(spans)
            print(f"| {name} | {' | '.join(cells)} | {covered} of {len(spans)} | {lacking} | {verdicts} |", flush=True)


def quartiles(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], method="nearest")
    return f"{middle:.3g} ({low:.3g} .. {high:.3g})"


if __name__ == "__main__":
    main()
