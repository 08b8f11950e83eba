"""Methods side by side: each spends its budget, and what it would recommend on the way is scored.

On a table (tuner/replay.py) the target's rows score. On live training a score is the mean loss of fresh runs at the
target, on seeds that no search has seen and that all methods share. It is not charged: it measures the answer. Regret
is then the score minus the best score of the whole comparison.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from tuner.errors import BadInput
from tuner.execution import WorkerPool, settle_in, start_server
from tuner.methods import Method, copies, method
from tuner.opening import open_study
from tuner.record import DIVERGED, FINISHED, RUNNING
from tuner.replay import Replay
from tuner.scale import Scale
from tuner.space import Params, Value
from tuner.study import Study, check_affords
from tuner.studyfile import StudyFile
from tuner.trial import Failure, Result, Trial

R = TypeVar("R")
FRESH = 5  # seeds of a score
FRESH_FROM = 2**31  # where they start: the seeds of trials are below


@dataclass(frozen=True)
class Step:
    """What a method would answer after `trials` runs; None while none has a finite loss."""

    trials: int
    answer: Params | None


@dataclass(frozen=True)
class Search:
    """One method, one seed: the cost in target runs after each finished trial, and the answers along the way.

    Args:
        proxy: that is copied from; None of other methods.
        interval: what it knows of the last answer. error: what ended it before its budget did.
    """

    name: str
    proxy: Scale | None
    seed: int
    spent: tuple[float, ...]
    steps: tuple[Step, ...]
    interval: Mapping[str, tuple[Value, ...]] | None
    seconds_per_proposal: float
    error: str | None

    @property
    def variant(self) -> str:
        return _variant(self.name, self.proxy)


def compare_live(
    file: StudyFile,
    names: Sequence[str],
    seeds: Sequence[int],
    budget: float,
    direct: int,
    answers: int,
    workers: int,
    said: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Run every method for every seed, score, and return the `--json` contract's "methods".

    Args:
        budget: target runs of a method that searches below the target. direct: target runs of one that does not.
        answers: how many are scored along a search, at all of its budget, half of it, a quarter, ...; of a copy, one.
        said: called with a line after each finished search.

    Raises:
        BadInput: an unknown method, a cost that is only known after a run, or a search whose process died.
    """
    if file.objective is not None and file.objective.cost == "seconds":
        raise BadInput("compare: cost must be known before a run, got 'seconds'; give the objective a cost function")
    names = list(dict.fromkeys(names))
    variants = _variants(names, file.scale.proxy_scales())
    jobs = [(file, name, proxy, seed, budget, direct, answers) for name, proxy in variants for seed in seeds]
    searches: list[Search] = []
    for search in _finished(_search, jobs, workers):
        searches.append(search)
        spent = search.spent[-1] if search.spent else 0.0
        broke = f"; {search.error}" if search.error else ""
        said(f"{search.variant}, seed {search.seed}: {len(search.spent)} trials, {spent:.3f} target runs{broke}")
    searches.sort(key=lambda search: search.seed)
    scores = _scores(file, searches, workers, said)
    return _favoured(_told(searches, scores), names, verification=1.0)


def compare_recorded(
    replay: Replay,
    names: Sequence[str],
    seeds: Sequence[int],
    budget: float,
    direct: int,
    workers: int,
    said: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, dict[str, Any]]:
    """The same on a table, whose target's rows score the answer after every trial.

    Args:
        said: called with the number of searches done, and of all, after each.

    Raises:
        BadInput: an unknown method, a budget that affords no run, or a search whose process died.
    """
    names = list(dict.fromkeys(names))
    least = min(map(replay.table.cost_at, replay.problem.proxies)) / replay.table.cost_at(replay.problem.target)
    check_affords(budget, least)
    jobs = [
        (replay, name, proxy, seed, direct if proxy is None and method(name).direct else budget)
        for name, proxy in _variants(names, replay.problem.proxies)
        for seed in seeds
    ]
    told: dict[str, list[dict[str, Any]]] = {}
    for done, (variant, entry) in enumerate(_finished(_replayed, jobs, workers), 1):
        told.setdefault(variant, []).append(entry)
        said(done, len(jobs))
    for entries in told.values():
        entries.sort(key=lambda entry: entry["seed"])
    return _favoured(told, names, verification=0.0)


def _replayed(replay: Replay, name: str, proxy: Scale | None, seed: int, budget: float) -> tuple[str, dict[str, Any]]:
    return _variant(name, proxy), replay.run(_made(name, proxy), seed, budget)


def _variants(names: Sequence[str], proxies: Sequence[Scale]) -> Iterator[tuple[str, Scale | None]]:
    """A copy is searched at every proxy; the best of them is kept in the end."""
    for name in names:
        _made(name, proxies[0] if copies(name) else None)  # a wrong name is refused here
        yield from ((name, proxy) for proxy in (proxies if copies(name) else [None]))


def _made(name: str, proxy: Scale | None) -> Method:
    return method(name) if proxy is None else method(name, scale=proxy)


def _variant(name: str, proxy: Scale | None) -> str:
    return name if proxy is None else f"{name} @ {proxy}"


def _finished(job: Callable[..., R], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[R]:
    """What the jobs return, as they end, in processes of their own."""
    with _processes(workers) as pool:
        for done in as_completed([pool.submit(job, *args) for args in jobs]):
            yield done.result()


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that an exception (Ctrl-C too) ends at once, whatever they do."""
    start_server()
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, initializer=settle_in) as pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.kill()
            if isinstance(error, BrokenProcessPool):
                raise BadInput("compare: a search's process died, often for want of memory; lower --workers") from None
            raise


def _search(
    file: StudyFile, name: str, proxy: Scale | None, seed: int, budget: float, direct: int, answers: int
) -> Search:
    """Spend a budget; runs in a process of its own, on a study in memory."""
    with open_study(file, in_memory=True, seed=seed) as study:
        study.method = _made(name, proxy)
        limit = direct if study.method.direct else budget
        marks = [limit / 2**k for k in reversed(range(answers if proxy is None else 1))]
        steps: list[Step] = []

        def look(study: Study) -> None:
            spent = study.spent() / study.target_cost
            if any(e.state == RUNNING for e in study.entries) or not marks or spent < marks[0] * (1 - 1e-9):
                return
            marks[:] = [mark for mark in marks if mark > spent]
            steps.append(_step(study))

        study.check_budget(limit)
        error = None
        try:
            study.optimize(None, limit, callbacks=[look])
        except BadInput as refusal:  # its trials break: what it has found till then is its answer
            error = str(refusal)
        spent = accumulate(e.cost / study.target_cost for e in study.entries)
        finished = [s for s, e in zip(spent, study.entries, strict=True) if e.state in (FINISHED, DIVERGED)]
        if not steps or steps[-1].trials < len(finished):
            steps.append(_step(study))
        known = steps[-1].answer and study.method.known(study.problem, study.observations, seed=seed, level=0.9)
        thought = statistics.median(study.thought) if study.thought else math.nan
    return Search(name, proxy, seed, tuple(finished), tuple(steps), known.interval if known else None, thought, error)


def _step(study: Study) -> Step:
    seen = study.observations
    known = any(not o.diverged for o in seen)
    return Step(len(seen), study.method.recommend(study.problem, seen, seed=study.seed) if known else None)


# Scoring


def _key(params: Params) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _scores(
    file: StudyFile, searches: Sequence[Search], workers: int, said: Callable[[str], None]
) -> dict[tuple[tuple[str, Any], ...], list[float]]:
    """Losses at the target on the fresh seeds, of every distinct answer."""
    answers = {_key(s.answer): s.answer for search in searches for s in search.steps if s.answer}
    said(f"scoring {len(answers)} answers on {FRESH} fresh seeds at the target")
    with open_study(file, in_memory=True) as study:
        assert study.source is not None
        source, target = study.source, study.problem.target
    with WorkerPool(source, workers) as pool:
        running = {key: pool.submit(_fresh(params, target)) for key, params in answers.items()}
        scores: dict[tuple[tuple[str, Any], ...], list[float]] = {}
        for key, future in running.items():
            scores[key] = [_loss(outcome, said) for outcome in future.result()]
            said(f"answer {len(scores)} of {len(running)}: mean loss {np.mean(scores[key]):.6g}")
        return scores


def _loss(outcome: Result | Failure, said: Callable[[str], None]) -> float:
    """Infinite where the run diverged or broke."""
    if isinstance(outcome, Failure):
        said(f"a run of the scoring broke: {outcome.error.splitlines()[0]}")
        return math.inf
    return math.inf if outcome.diverged else outcome.loss


def _fresh(params: Params, target: Scale) -> list[Trial]:
    return [Trial(i, params, target, FRESH_FROM + i) for i in range(FRESH)]


def _told(
    searches: Sequence[Search], scores: Mapping[tuple[tuple[str, Any], ...], list[float]]
) -> dict[str, list[dict[str, Any]]]:
    """Each search as an entry of the contract: a trace with one line a trial, the answers' regrets carried forward,
    null before the first.

    "answers" holds the lines at which an answer was scored.
    """
    means = {key: float(np.mean(losses)) for key, losses in scores.items()}
    best = min(filter(math.isfinite, means.values()), default=None)
    told: dict[str, list[dict[str, Any]]] = {}
    for search in searches:
        steps = {s.trials: _regret(means[_key(s.answer)] if s.answer else None, best) for s in search.steps}
        trace, regret = [], _regret(None, best)
        for trials, spent in enumerate(search.spent, 1):
            regret = steps.get(trials, regret)
            trace.append({"target_runs": spent, "trials": trials, **regret})
        last = search.steps[-1].answer
        fresh = None if last is None else [_finite(loss) for loss in scores[_key(last)]]
        told.setdefault(search.variant, []).append(
            {
                "seed": search.seed,
                "trace": trace,
                "recommendation": last and dict(last),
                "interval": {name: list(ends) for name, ends in (search.interval or {}).items()},
                "covered": {},  # nobody knows the optimum
                "seconds_per_proposal": _finite(search.seconds_per_proposal),
                "fresh_losses": fresh,
                "answers": [trace[trials - 1] for trials in steps if trials],
                "error": search.error,
            }
        )
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


def _favoured(
    told: Mapping[str, list[dict[str, Any]]], names: Sequence[str], verification: float
) -> dict[str, dict[str, Any]]:
    """Methods with their summary; of a copy's proxies the one whose final median regret is least.

    "verification": target runs to add to the cost of a search that does not end with a run at the target.
    """
    methods: dict[str, dict[str, Any]] = {}
    for name in names:
        variants = [full for full in told if full.partition(" @ ")[0] == name]
        full = min(variants, key=lambda v: _quantile(told[v], "relative_regret", 0.5))
        direct = not copies(name) and method(name).direct
        methods[name] = {
            "variant": full,
            "verification": 0.0 if direct else verification,
            "seeds": told[full],
            "summary": summary(told[full]),
        }
    return methods


def summary(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds: final regrets, and how often each interval held the optimum."""
    regrets = {
        key: {name: _finite(_quantile(entries, key, level)) for name, level in (("median", 0.5), ("p90", 0.9))}
        for key in ("relative_regret", "smooth_relative_regret")
    }
    known = [entry["covered"] for entry in entries if entry["covered"]]
    coverage = {name: float(np.mean([covered[name] for covered in known])) for name in (known[0] if known else ())}
    return {**regrets, "coverage": coverage}


def _quantile(entries: Sequence[dict[str, Any]], key: str, level: float) -> float:
    """Over seeds, of the final regret; a diverged answer counts as infinite."""
    last = [entry["trace"][-1][key] if entry["trace"] else None for entry in entries]
    return float(np.quantile([math.inf if r is None else r for r in last], level, method="inverted_cdf"))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
