"""A study: ask / tell / optimize / recommend over a stored record.

Everything a study knows is its record; `propose` and `recommend` are functions of that. Opening it again resumes it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from types import TracebackType
from typing import Any, Literal

from tuner.breakeven import Assumptions, BreakEven
from tuner.callback import Callback, Callbacks
from tuner.cluster import Borrowed, Cluster
from tuner.engine import recommend
from tuner.errors import BadInput, is_number
from tuner.execution import Serial, WorkerPool
from tuner.ledger import Ledger
from tuner.methods import Method, method
from tuner.objective import Objective, ObjectiveSource, loaded, one_line
from tuner.parametrization import applied
from tuner.problem import SLACK, Problem
from tuner.record import DIVERGED, FAILED, FINISHED, LOST, RUNNING, Entry, Record
from tuner.runs import Run
from tuner.scale import CostLaw, Scale
from tuner.space import Params
from tuner.theorem import NOISE, Allowed, Sizes
from tuner.transfer import Transfer, judge
from tuner.trial import Evidence, Failure, Observation, Proposal, Recommendation, Result, Trial, trial_seed

Cost = Callable[[Params, Scale], float] | Literal["seconds"]
MEASURED = "measured from the runs"  # whose constants a break-even has
STACK = 4  # trials of one scale that train together, where the objective can stack them
PATIENCE = 2.0  # seconds between two looks at how much could run
BLIND = 0.1  # of the budget that is left: what trials proposed together, not knowing of one another, cost at most
HOPELESS = 3  # trials that broke at every attempt, and none that did not: the objective is at fault


def checked_budget(budget: float) -> float:
    """A budget in target runs. Raises BadInput unless it is finite and above zero."""
    if not (is_number(budget) and 0 < budget < math.inf):
        raise BadInput(f"budget: must be a finite number of target runs above zero, got {budget!r}; correct it")
    return float(budget)


def check_affords(budget: float, least: float) -> None:
    """Raises BadInput unless a budget covers the cheapest run, both in target runs."""
    if checked_budget(budget) * SLACK < least:
        raise BadInput(f"budget: must afford a run, of {least:.3g} target runs at least, got {budget}; raise it")


def priced(cost: Callable[[Params, Scale], float], params: Params, scale: Scale) -> float:
    """What a cost function says of a run. Raises BadInput where it breaks, or says nothing above zero."""
    try:
        found = cost(params, scale)
    except Exception as error:
        raise BadInput(f"cost: at {scale} it broke ({one_line(error)}); correct the scale or the cost") from error
    if not (is_number(found) and 0 < found < math.inf):
        raise BadInput(f"cost: must be a finite number above zero, got {found!r} at {scale}; correct it")
    return float(found)


class Study:
    """One tuning effort. Made by `create_study` or `open_study`; a context manager that releases the record's lock.

    Attributes:
        problem: what is asked, in base coordinates.
        record: what happened, in raw ones.
        method: what proposes; the tuner itself, unless something else is set to be compared with it.
        source: what names the objective by data, if anything does: workers make their own from it.
        unit: of cost, "FLOPs" or "seconds"; empty where a function of the user's says what a run costs.
        dropped: why -> how many rows of its table are not in it.
        tolerance: relative regret that the verdict puts up with; None: the noise of one run.
        thought: seconds that each proposal took, fit included, since the study was opened.
    """

    def __init__(
        self,
        record: Record,
        asked: Callable[[Callable[[Params, Scale], float]], Problem],
        cost: Cost,
        seed: int,
        objective: Objective | None,
        source: ObjectiveSource | None,
        retries: int,
        unit: str,
    ) -> None:
        self.record, self.problem, self.seed, self.retries = record, asked(self.cost), seed, retries
        self.source, self._objective, self._cost, self.unit = source, objective, cost, unit
        self.method: Method = method("transfer")
        self.thought: list[float] = []
        self.dropped: Mapping[str, int] = {}
        self.tolerance: float | None = None
        self._seen: tuple[list[Entry] | None, list[Observation]] = None, []
        self._told: tuple[list[Entry] | None, tuple[Recommendation, Transfer] | None] = None, None
        self._law_of: tuple[list[Entry] | None, CostLaw] = None, CostLaw(0.0, {})
        if not record.read_only:
            self._lose("the coordinator died")

    def _lose(self, why: str, but: Collection[int] = ()) -> None:
        """Mark running trials lost: they are charged, and made again."""
        for entry in self.entries:
            if entry.state == RUNNING and entry.trial.number not in but:
                self.record.fail(entry.trial.number, Failure(f"lost: {why}"), entry.cost, LOST)

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the record; the study can then be opened again, here or elsewhere."""
        self.record.close()

    # What is known

    @property
    def entries(self) -> list[Entry]:
        """Every trial of the record, by number."""
        return self.record.entries()

    @property
    def observations(self) -> list[Observation]:
        """Finished and diverged runs of the search, and recorded ones, in base coordinates."""
        entries = self.entries
        if entries is not self._seen[0]:  # once for every state of the record
            runs = [self._observation(e) for e in entries if e.state in (FINISHED, DIVERGED) and e.feeds]
            self._seen = entries, runs
        return self._seen[1]

    def _observation(self, entry: Entry) -> Observation:
        params, scale = entry.trial.params, entry.trial.scale
        loss = math.inf if entry.loss is None else entry.loss
        return Observation(self.problem.to_base(params, scale), scale, loss, entry.cost)

    @property
    def pending(self) -> list[Proposal]:
        """Runs under way, in base coordinates; and those that broke, so that they are not proposed again."""
        running = [e for e in self.entries if e.state == RUNNING and e.purpose == "search"]
        waiting = [self._observation(e) for e in [*running, *self._broken]]
        return [Proposal(o.params, o.scale) for o in waiting]

    @property
    def all_diverged(self) -> bool:
        """Whether runs finished, and none of them with a finite loss."""
        return bool(self.observations) and all(run.diverged for run in self.observations)

    @property
    def target_cost(self) -> float:
        """Cost of one run at the target, at the middle of the space: the unit "target runs"."""
        return self.cost(self._middle, self.problem.target)

    @cached_property
    def _middle(self) -> Params:
        return self.problem.space.middle

    def cost(self, params: Params, scale: Scale) -> float:
        """Cost of a run, base hyperparameters; with cost="seconds", the law learned from the trials so far."""
        return self._raw_cost(self.problem.to_raw(params, scale), scale)

    def _raw_cost(self, raw: Params, scale: Scale) -> float:
        return priced(self._cost, raw, scale) if callable(self._cost) else self._law()(scale)

    def _law(self) -> CostLaw:
        """Seconds of a run at a scale; fitted once for every state of the record."""
        entries = self.entries
        if entries is not self._law_of[0]:
            timed = [e for e in entries if e.state == FINISHED and e.seconds > 0]
            unknown = CostLaw(0.0, dict.fromkeys(self.problem.target, 1.0))
            law = CostLaw.fit([e.trial.scale for e in timed], [e.seconds for e in timed]) if timed else unknown
            self._law_of = entries, law
        return self._law_of[1]

    def spent(self, purpose: str = "search") -> float:
        """Cost charged so far, that of failed, lost and running trials included."""
        return sum(self.charge(e) for e in self.entries if e.purpose == purpose)

    def charge(self, entry: Entry) -> float:
        """What an entry costs; in seconds, a run that was not timed costs what the law says now."""
        timed = callable(self._cost) or entry.seconds > 0
        return entry.cost if timed else self._law()(entry.trial.scale)

    def add(self, runs: Sequence[Run]) -> None:
        """Write runs that were made elsewhere: they teach, and no budget pays for them. Those it has are not added.

        Raises:
            BadInput: the record has others, or one of these has a hyperparameter that the space has not.
        """
        for run in runs:
            self.problem.space.check(run.params)
        left = list(runs)
        for entry in self.entries:
            if entry.purpose == "recorded":
                loss = math.inf if entry.loss is None else entry.loss
                run = Run(entry.trial.params, entry.trial.scale, loss, entry.cost)
                if run not in left:
                    raise BadInput(f"resume: the table no longer has {run}; restore it or give the study a new name")
                left.remove(run)
        self.record.add(self.problem.space, left)

    # ask and tell

    def ask(self) -> Trial:
        """The next trial to run, written to the record as running.

        Raises:
            BadInput: the study is closed, or was opened for reading.
        """
        return self._next(math.inf, 1)[0]

    def _next(self, budget: float, count: int) -> list[Trial]:
        """Up to `count` trials of one scale within a cost: those waiting for a retry first."""
        for e in self._broken:
            cost = self._raw_cost(e.trial.params, e.trial.scale)
            if e.attempt <= max(self.retries, e.state == LOST) and cost <= SLACK * budget:
                return [self._started(e.trial.params, e.trial.scale, e.trial.seed, e.attempt + 1, e)]
        start = time.perf_counter()
        proposals = self.method.propose(
            self.problem, self.observations, self.pending, seed=self.seed, budget=budget, count=count
        )
        self.thought.append(time.perf_counter() - start)
        costs = accumulate(self.cost(p.params, p.scale) for p in proposals)
        proposals = proposals[: max(1, sum(cost <= BLIND * budget for cost in costs))]
        first = len(self.entries)
        seeds = [trial_seed(self.seed, first + i) for i in range(count)]
        return [
            self._started(self.problem.to_raw(p.params, p.scale), p.scale, seed)
            for p, seed in zip(proposals, seeds, strict=False)
        ]

    @property
    def _broken(self) -> list[Entry]:
        """Failed and lost trials of the search that were not tried again."""
        entries = [e for e in self.entries if e.purpose == "search"]
        retried = {e.retry_of for e in entries}
        return [e for e in entries if e.state in (FAILED, LOST) and e.trial.number not in retried]

    def _started(
        self,
        raw: Params,
        scale: Scale,
        seed: int,
        attempt: int = 1,
        retry: Entry | None = None,
        purpose: str = "search",
    ) -> Trial:
        cost = self._raw_cost(raw, scale)
        retry_of = None if retry is None else retry.trial.number
        space = self.problem.space
        return self.record.start(
            space, raw, scale, seed, cost=cost, purpose=purpose, attempt=attempt, retry_of=retry_of
        )

    def tell(
        self,
        trial: Trial,
        loss: float | None = None,
        cost: float | None = None,
        seconds: float | None = None,
        error: str | None = None,
    ) -> None:
        """Write a trial's outcome: a loss (NaN or infinite: it diverged), or the error that broke it.

        Args:
            cost: in the study's unit; None: what the study's cost says.

        Raises:
            BadInput: the trial is not running in this study, neither or both of loss and error are given, or a cost
                that is not a finite number above zero.
        """
        entry = next((e for e in self.entries if e.trial.number == trial.number and e.state == RUNNING), None)
        if entry is None:
            raise BadInput(f"tell: trial {trial.number} is not running here; tell each asked trial once")
        if (loss is None) == (error is None):
            raise BadInput(f"tell: exactly one of loss and error is needed, got loss={loss!r}, error={error!r}")
        if loss is not None and not is_number(loss):
            raise BadInput(f"tell: loss must be a number, got {loss!r}; tell NaN if the training diverged")
        for name, value in (("cost", cost), ("seconds", seconds)):
            if value is not None and not (is_number(value) and 0 < value < math.inf):
                raise BadInput(
                    f"tell: {name} must be a finite number above zero, got {value!r}; leave it out if unknown"
                )
        if self._cost == "seconds":
            cost = seconds = cost or seconds  # one and the same
        charged, seconds = float(cost or entry.cost), float(seconds or 0.0)
        if error is not None:
            self.record.fail(trial.number, Failure(error, seconds), charged)
        else:
            self.record.finish(trial.number, Result(float(loss or 0.0), charged, seconds), charged)

    def _tell(self, trial: Trial, outcome: Result | Failure) -> None:
        if isinstance(outcome, Failure):
            self.tell(trial, error=outcome.error, seconds=outcome.seconds or None)  # 0: nobody knows how long
        else:
            self.tell(trial, outcome.loss, outcome.cost if callable(self._cost) else None, outcome.seconds)

    # optimize

    def optimize(
        self,
        objective: Any = None,
        budget: float = 0.25,
        *,
        workers: int = 0,
        executor: Executor | Cluster | None = None,
        tolerance: float | Literal["noise"] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> str:
        """Run trials until the budget is spent.

        Args:
            objective: `(params, scale, seed) -> float | Result`; None: the one the study was created with.
            budget: of the whole search, in target runs; what an earlier call spent counts. Runs are planned to fit
                it; one that reports a higher cost than planned may still exceed it.
            workers: processes; 0: run in this one. With an executor: groups of trials that it has at once, at least 1.
            executor: what runs trials in place of processes of ours: a `tuner.cluster.Cluster`, which knows its
                capacity, or any `concurrent.futures.Executor`.
            tolerance: stop when the expected regret, relative to the loss, is below it; "noise": when it is below the
                standard deviation of one run at the target, which could not tell.
            callbacks: each is called with the study after each change of the record, here in the coordinator. One that
                breaks is warned of and told nothing more.

        Returns:
            Why it stopped: "budget", "tolerance" or "noise".

        Raises:
            BadInput: a budget that affords no run, a bad objective, or the first trials all broke.
        """
        checked_budget(budget) if self.entries else self.check_budget(budget)
        if tolerance not in (None, "noise") and not (is_number(tolerance) and float(tolerance) > 0):
            raise BadInput(f'tolerance: must be a relative regret above zero or "noise", got {tolerance!r}; correct it')
        if tolerance is not None:
            self.tolerance, self._told = 0.0 if tolerance == "noise" else float(tolerance), (None, None)
        runner, objective = self._runner(objective, workers, executor)
        stack = STACK if hasattr(objective, "train_many") and not self.method.direct else 1
        asked = {entry.trial.number for entry in self.entries if entry.state == RUNNING}  # by hand, and still out
        try:
            with runner:
                return self._search(runner, budget, stack, tolerance, Callbacks(callbacks))
        except BaseException:
            with suppress(BadInput):  # the record may be what broke
                self._lose("the search was broken off", asked)
            raise

    def check_budget(self, budget: float) -> None:
        """Raises BadInput unless a budget in target runs affords one run, by what is known of costs."""
        scales = [self.problem.target] if self.method.direct else self.problem.proxies
        least = min(self.cost(self._middle, scale) for scale in scales)
        check_affords(budget, least / self.target_cost)

    def _search(self, runner: Any, budget: float, stack: int, tolerance: float | str | None, told: Callback) -> str:
        running: dict[Future[list[Result | Failure]], list[Trial]] = {}
        checked, why = 0.0, "budget"
        while True:
            if tolerance is not None and len(self.observations) >= 1.2 * checked:
                checked = len(self.observations)
                settled = "noise" if tolerance == "noise" else "tolerance"
                why = settled if self._settled(tolerance) else "budget"
            while why == "budget" and (free := runner.capacity - len(running)) > 0:
                trials = self._next(budget * self.target_cost - self.spent(), stack * free)
                if not trials:
                    break
                for group in (trials[i : i + stack] for i in range(0, len(trials), stack)):
                    running[runner.submit(group)] = group
                told(self)
            if not running:
                return why
            for done in _finished(running, runner):
                for trial, outcome in zip(running.pop(done), done.result(), strict=True):
                    self._tell(trial, outcome)
                told(self)
            self._refuse_hopeless()

    def _refuse_hopeless(self) -> None:
        """An objective that cannot run would break trial after trial until the budget is spent."""
        broken = [e for e in self._broken if e.state == FAILED and e.attempt > self.retries]
        if len(broken) >= HOPELESS and not self.observations:
            raise BadInput(f"objective: the first {len(broken)} trials broke, {_last(broken)}; correct it and go on")

    def _settled(self, tolerance: float | str) -> bool:
        if len(self.observations) < 2 * len(self.problem.space) or self.all_diverged:
            return False
        rec = recommend(self.problem, self.observations, seed=self.seed)
        return rec.expected_regret < (rec.noise if tolerance == "noise" else float(tolerance) * abs(rec.loss))

    def _runner(self, given: Any, workers: int, executor: Executor | Cluster | None) -> tuple[Any, Any]:
        """Where trials run, and the objective; it must not apply a parametrization that the study applies too."""
        objective: Any = self._objective if given is None else loaded(given)
        if objective is None:
            raise BadInput("optimize: an objective is needed, got none; pass one here or to create_study")
        declared = getattr(objective, "parametrization", None)
        if declared is not None and self.problem.parametrization != applied(declared):
            raise BadInput(
                f"parametrization: the objective applies {declared!r} itself, the study configures "
                f"{self.problem.parametrization.name!r}; create the study with objective=, which leaves scaling to it"
            )
        named = (self.source if given is None else given) or objective
        if isinstance(executor, Executor):
            return Borrowed(named, executor, workers), objective
        if executor is not None:
            return executor.runner(named), objective
        return WorkerPool(named, workers) if workers else Serial(objective), objective

    # The answer

    def recommend(self) -> Recommendation:
        """The best hyperparameters at the target, raw, with what is known of them, and whether transfer holds.

        Raises:
            BadInput: no finished run with a finite loss.
        """
        answer, told = self._answered()
        return replace(answer, verdict=told.verdict, reasons=(*told.reasons, *answer.reasons))

    def transfer(self) -> Transfer:
        """Whether transfer holds here: gaps, rates, the verdict and its reasons."""
        if not self.observations or self.all_diverged:
            why = f"all {len(self.observations)} runs that finished diverged: lower the ranges of the space"
            if not self.observations:
                why = "no run has finished: nothing can be said of transfer"
            reasons = (why, *map(str, self.record.evidence))
            return Transfer("undetermined", reasons, Allowed(math.nan, NOISE), Sizes.of(self.problem))
        return self._answered()[1]

    def _answered(self) -> tuple[Recommendation, Transfer]:
        """Once for every state of the record."""
        if not self.observations:
            broken = [e for e in self._broken if e.state == FAILED]
            why = f"{len(broken)} broke, {_last(broken)}" if broken else f"the record has {len(self.entries)} trials"
            raise BadInput(f"recommend: a finished trial is needed, {why}; run trials until one finishes")
        entries, known = self._told
        if entries is not self.entries or known is None:
            answer = recommend(self.problem, self.observations, seed=self.seed)
            known = answer, self._judged(answer)
            self._told = self.entries, known
        return known

    def _judged(self, answer: Recommendation) -> Transfer:
        seed, tolerance, evidence = self.seed, self.tolerance, self.record.evidence
        return judge(self.problem, self.observations, answer, seed=seed, tolerance=tolerance, evidence=evidence)

    def add_evidence(self, found: Evidence) -> None:
        """Let the verdict take into account what was measured beside the runs; the record keeps it.

        It takes the place of what has the same name. Raises BadInput where the record cannot be written.
        """
        self.record.add_evidence(found)
        self._told = None, None

    def break_even(self, budget: float = 0.25, assumed: Assumptions | None = None) -> BreakEven:
        """What a search of a budget (target runs) buys from below, and the same cost directly; where they cross.

        By the constants that the runs show; where these do not show them yet, or on request, by what is assumed.

        Raises:
            BadInput: a bad budget, or one that affords no run; no proxy that is smaller than the target.
        """
        checked_budget(budget)
        sizes, why = Sizes.of(self.problem, self.observations), ""
        if assumed is None and self.observations:
            told = self.transfer()
            if told.law is not None:
                doubt = (
                    f"; but the verdict is undetermined: {told.reasons[0]}" if told.verdict == "undetermined" else ""
                )
                return BreakEven.of(self.problem, told.law, sizes, budget, told.allowed, f"{MEASURED}{doubt}")
            why = f", because {told.reasons[0]}"
        assumed = assumed or Assumptions()
        law, said = assumed.law(self.problem, sizes), f"assumed: {assumed}{why}"
        return BreakEven.of(self.problem, law, sizes, budget, Allowed(assumed.noise, NOISE), said, unit="relative")

    def verify(
        self,
        params: Params,
        objective: Any = None,
        *,
        workers: int = 0,
        executor: Executor | Cluster | None = None,
        seed: int | None = None,
    ) -> Entry:
        """Train raw hyperparameters at the target once; where the record has such a run already, return that."""
        self.problem.space.check(params)
        if (known := self.verification(params)) is not None:
            return known
        seed = self.seed if seed is None else seed
        runner, _ = self._runner(objective, workers, executor)
        with runner:
            for attempt in range(1, self.retries + 2):
                trial = self._started(params, self.problem.target, seed, attempt, purpose="verification")
                outcome = runner.submit([trial]).result()[0]
                self._tell(trial, outcome)
                if isinstance(outcome, Result):
                    break
        return self.entries[trial.number]

    def verification(self, params: Params) -> Entry | None:
        """The finished verification run of these raw hyperparameters, if there is one."""
        done = [e for e in self.entries if e.purpose == "verification" and e.state in (FINISHED, DIVERGED)]
        return next((e for e in done if dict(e.trial.params) == dict(params)), None)

    def ledger(self, params: Params) -> Ledger:
        """The bill, and what the verification of these raw hyperparameters measured."""
        entry = self.verification(params)
        paid = self.spent(), self.spent("verification")
        return Ledger(self.target_cost, *paid, entry is not None, None if entry is None else entry.loss, self.unit)


def _finished(running: Mapping[Future[Any], Any], runner: Any) -> set[Future[Any]]:
    """Groups that have finished, as soon as there are any; none as soon as more could run than now."""
    capacity = runner.capacity
    while not (done := wait(running, PATIENCE, FIRST_COMPLETED).done) and runner.capacity <= capacity:
        pass
    return done


def _last(broken: list[Entry]) -> str:
    """How the last of them broke, in one line."""
    return f"the last by {(broken[-1].error or 'an unknown cause').splitlines()[0]}"
