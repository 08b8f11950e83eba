"""Methods side by side on live training: each spends its budget, and what it would recommend on the way is scored.

A score is the mean loss of fresh runs at the target, on seeds that no search has seen and that all methods share. It is
not charged: it measures the answer. Regret is the score minus the best score of the whole comparison.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from tuner.engine import Problem
from tuner.execution import Serial, WorkerPool
from tuner.methods import Method, method
from tuner.opening import open_study
from tuner.scale import Scale
from tuner.space import Params
from tuner.study import STACK
from tuner.studyfile import StudyFile
from tuner.trial import Observation, Result, Trial, trial_seed

FRESH = 5  # seeds of a score
FRESH_FROM = 1_000_000_007  # where they start: far from the hashes that seed a search
STEPS = 3  # answers scored along a search: at a quarter, half and all of its budget; of a copy, the last alone


@dataclass(frozen=True)
class Step:
    """What a method would answer after `trials` runs that cost `target_runs`; None while every run diverged."""

    trials: int
    target_runs: float
    params: Params | None


@dataclass(frozen=True)
class Search:
    """One method, one seed: the cost after each trial, and the answers along the way."""

    name: str
    seed: int
    spent: tuple[float, ...]
    steps: tuple[Step, ...]
    seconds_per_proposal: float


def compare_live(
    file: StudyFile,
    names: Sequence[str],
    seeds: Sequence[int],
    budget: float,
    direct: int,
    workers: int,
    said: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Run every method for every seed, score, and return the `--json` contract's "methods".

    Args:
        budget: target runs of a method that searches below the target. direct: target runs of one that does not.
        said: called with a line after each finished search.
    """
    if file.objective.cost == "seconds":
        raise ValueError("compare: cost must be known before a run, got 'seconds'; give the objective a cost function")
    jobs = [(file, name, seed, budget, direct) for name in _expanded(file, names) for seed in seeds]
    searches: list[Search] = []
    pool = ProcessPoolExecutor(workers, mp_context=get_context("forkserver"))
    try:
        for done in as_completed([pool.submit(_search, *job) for job in jobs]):
            search = done.result()
            searches.append(search)
            said(f"{search.name}, seed {search.seed}: {len(search.spent)} trials, {search.spent[-1]:.3f} target runs")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    searches.sort(key=lambda search: search.seed)
    scores = _scores(file, searches, workers, said)
    return _favoured(_told(searches, scores), names)


def _expanded(file: StudyFile, names: Sequence[str]) -> list[str]:
    """A copy becomes one search a proxy, "copy @ width 64"; the best of them is kept in the end."""
    proxies = file.scale.proxy_scales()
    for name in names:
        method(name, **({"scale": proxies[0]} if name.startswith("copy") else {}))  # a wrong name is refused here
    return [
        full for name in names for full in ([f"{name} @ {p}" for p in proxies] if name.startswith("copy") else [name])
    ]


def _made(problem: Problem, full: str) -> Method:
    name, _, where = full.partition(" @ ")
    if not where:
        return method(name)
    return method(name, scale=next(p for p in problem.proxies if str(p) == where))


def _search(file: StudyFile, name: str, seed: int, budget: float, direct: int) -> Search:
    """Spend a budget; runs in a process of its own, without a record."""
    import torch

    torch.set_num_threads(1)
    with open_study(file, in_memory=True) as study:
        assert study.source is not None
        chosen, problem, unit = _made(study.problem, name), study.problem, study.target_cost
        runner = Serial(study.source.load())
        left = (direct if chosen.direct else budget) * unit
        marks = [] if " @ " in name else [left / 2**k for k in reversed(range(STEPS))]
        seen: list[Observation] = []
        spent, steps = [0.0], []
        stack = 1 if chosen.direct else STACK
        thought = []
        while True:
            start = time.perf_counter()
            proposals = chosen.propose(problem, seen, [], seed=seed, budget=left - spent[-1] * unit, count=stack)
            thought.append(time.perf_counter() - start)
            if not proposals:
                break
            for observation in _trained(runner, problem, proposals, seed, len(seen)):
                seen.append(observation)
                spent.append(spent[-1] + observation.cost / unit)
            if marks and spent[-1] * unit >= marks[0] * (1 - 1e-9):
                marks = [m for m in marks if m > spent[-1] * unit]
                steps.append(_step(chosen, problem, seen, seed, spent[-1]))
        if not steps or steps[-1].trials < len(seen):
            steps.append(_step(chosen, problem, seen, seed, spent[-1]))
    return Search(name, seed, tuple(spent[1:]), tuple(steps), statistics.median(thought))


def _trained(runner: Serial, problem: Problem, proposals: Sequence[Any], seed: int, first: int) -> list[Observation]:
    """Train proposals; a failure ends the comparison with its text, because it would bend every number."""
    trials = []
    for i, p in enumerate(proposals):
        raw = problem.parametrization.to_raw(problem.space, p.params, p.scale, problem.base)
        trials.append(Trial(first + i, raw, p.scale, trial_seed(seed, first + i)))
    outcomes = runner.submit(trials).result()
    return [
        Observation(p.params, p.scale, _loss(outcome), _cost(outcome) or problem.cost(p.params, p.scale))
        for p, outcome in zip(proposals, outcomes, strict=True)
    ]


def _loss(outcome: Any) -> float:
    if not isinstance(outcome, Result):
        raise ValueError(f"compare: a trial failed: {outcome.error}; mend the objective")
    return math.inf if outcome.diverged else float(outcome.loss)


def _cost(outcome: Any) -> float | None:
    """What the run says it cost, if it does."""
    cost: float | None = outcome.cost
    return cost


def _step(chosen: Method, problem: Problem, seen: Sequence[Observation], seed: int, spent: float) -> Step:
    if all(o.diverged for o in seen):
        return Step(len(seen), spent, None)
    return Step(len(seen), spent, chosen.recommend(problem, seen, seed=seed))


# Scoring


def _key(params: Params) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _scores(
    file: StudyFile, searches: Sequence[Search], workers: int, said: Callable[[str], None]
) -> dict[tuple[tuple[str, Any], ...], list[float]]:
    """Losses at the target on the fresh seeds, of every distinct answer."""
    answers = {_key(s.params): s.params for search in searches for s in search.steps if s.params is not None}
    said(f"scoring {len(answers)} answers on {FRESH} fresh seeds at the target")
    with open_study(file, in_memory=True) as study:
        assert study.source is not None
        source, target = study.source, study.problem.target
    with WorkerPool(source, workers) as pool:
        running = {key: pool.submit(_fresh(params, target)) for key, params in answers.items()}
        return {key: [_loss(outcome) for outcome in future.result()] for key, future in running.items()}


def _fresh(params: Params, target: Scale) -> list[Trial]:
    return [Trial(i, params, target, FRESH_FROM + i) for i in range(FRESH)]


def _told(
    searches: Sequence[Search], scores: Mapping[tuple[tuple[str, Any], ...], list[float]]
) -> dict[str, list[dict[str, Any]]]:
    """Each search as an entry of the contract: a trace with one line a trial, the answers' regrets carried forward.

    "answers" holds the lines at which an answer was scored.
    """
    means = {key: float(np.mean(losses)) for key, losses in scores.items()}
    best = min(filter(math.isfinite, means.values()), default=None)
    told: dict[str, list[dict[str, Any]]] = {}
    for search in searches:
        steps = {s.trials: _regret(None if s.params is None else means[_key(s.params)], best) for s in search.steps}
        trace, regret = [], _regret(None, best)
        for trials, spent in enumerate(search.spent, 1):
            regret = steps.get(trials, regret)
            trace.append({"target_runs": spent, "trials": trials, **regret})
        last = search.steps[-1].params
        fresh = None if last is None else [x if math.isfinite(x) else None for x in scores[_key(last)]]
        entry = {"seed": search.seed, "trace": trace, "recommendation": last, "fresh_losses": fresh}
        unknown = {"interval": None, "covered": None, "seconds_per_proposal": search.seconds_per_proposal}
        answers = [trace[trials - 1] for trials in steps]
        told.setdefault(search.name, []).append({**entry, **unknown, "answers": answers})
    return told


def _regret(loss: float | None, best: float | None) -> dict[str, float | None]:
    known: dict[str, float | None] = {
        "loss": None,
        "regret": None,
        "relative_regret": None,
        "smooth_relative_regret": None,
    }
    if loss is None or best is None or not math.isfinite(loss):
        return known
    return {
        **known,
        "loss": loss,
        "regret": loss - best,
        "relative_regret": (loss - best) / abs(best) if best else None,
    }


def _favoured(told: Mapping[str, list[dict[str, Any]]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Methods with their summary; of a copy's proxies the one whose final median regret is least."""
    methods: dict[str, dict[str, Any]] = {}
    for name in names:
        variants = [full for full in told if full.partition(" @ ")[0] == name]
        full = min(variants, key=lambda v: _quantile(told[v], 0.5))
        final = {"median": _finite(_quantile(told[full], 0.5)), "p90": _finite(_quantile(told[full], 0.9))}
        summary = {"relative_regret": final, "smooth_relative_regret": {"median": None, "p90": None}, "coverage": {}}
        direct = " @ " not in full and method(name).direct
        methods[name] = {"variant": full, "direct": direct, "seeds": told[full], "summary": summary}
    return methods


def _quantile(entries: Sequence[dict[str, Any]], level: float) -> float:
    """Over seeds, of the final relative regret; a diverged answer counts as infinite."""
    last = [entry["trace"][-1]["relative_regret"] for entry in entries]
    return float(np.quantile([math.inf if r is None else r for r in last], level, method="inverted_cdf"))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
