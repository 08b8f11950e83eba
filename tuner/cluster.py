"""Where trials run on machines of others: any `concurrent.futures.Executor`, or a Dask cluster (extra `cluster`).

    with Cluster("tcp://scheduler:8786") as cluster:
        study.optimize(budget=0.25, executor=cluster)

On a Dask worker a group trains in a process of its own, as it does in `tuner.execution.WorkerPool`: one that is killed,
or runs out of memory, costs its group one attempt and leaves the worker alone. So does a machine that is lost: what it
was training is not run again behind the coordinator's back, but told as broken, charged, and tried again. A machine
that cannot start a training, or has another tuner, gets no more groups, and costs none an attempt. What nobody waits
for any more (Ctrl-C, a coordinator that died) is killed within `LOOK` seconds.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import util
from queue import Empty, LifoQueue
from typing import Any, Self

from tuner.errors import BadInput
from tuner.execution import Outcome, Worker, run_group, sent, start_server, within
from tuner.objective import Objective, ObjectiveSource, loaded, one_line
from tuner.record import versions
from tuner.trial import Failure, Trial

ANSWER = 5.0  # seconds that a scheduler has to answer
ROUNDING = 1e-9
LOOK = 0.5  # seconds between two looks at whether a group is still wanted, and two attempts to start a training


@dataclass(frozen=True)
class Unable:
    """What a worker answers that cannot train: its address, and why."""

    address: str
    why: str


class Borrowed:
    """Groups on somebody else's executor, up to `capacity` at once; those still waiting at the end are cancelled."""

    def __init__(self, objective: ObjectiveSource | Objective, executor: Executor, capacity: int) -> None:
        self.capacity, self._executor = max(1, capacity), executor
        self._objective = pickle.dumps(objective) if isinstance(objective, ObjectiveSource) else objective
        self._tasks: set[Future[list[Outcome]]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        for task in list(self._tasks):
            task.cancel()

    def submit(self, trials: Sequence[Trial]) -> Future[list[Outcome]]:
        try:
            task = self._executor.submit(_run, self._objective, list(trials))
        except RuntimeError as error:  # shut down, or broken by a process that died
            raise BadInput(f"executor: it takes no more work ({one_line(error)}); make a new one and go on") from error
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        outcomes = Future[list[Outcome]]()
        task.add_done_callback(partial(_settle, outcomes, trials))
        return outcomes


def _run(objective: bytes | Objective, trials: list[Trial]) -> list[Outcome]:
    return run_group(_made(objective) if isinstance(objective, bytes) else objective, trials)


@lru_cache(4)
def _made(objective: bytes) -> Objective:
    """Once in a process: what it reads is read once."""
    return loaded(pickle.loads(objective))


def _settle(outcomes: Future[list[Outcome]], trials: Sequence[Trial], task: Any) -> None:
    """With a task's outcomes; what broke it is a Failure of every member, which no seconds are charged for."""
    try:  # the result is fetched here, and its machine may be gone
        outcomes.set_result(task.result())
    except BadInput as error:
        outcomes.set_exception(error)
    except (CancelledError, asyncio.CancelledError):
        law = "executor: it cancelled a running group, as a cluster does whose scheduler is gone"
        outcomes.set_exception(BadInput(f"{law}; start it and run the study again"))
    except BaseException as error:
        outcomes.set_result([Failure(one_line(error))] * len(trials))


# ---- Dask ----


class Cluster:
    """A Dask cluster, connected while inside `with`.

    Args:
        address: of its scheduler, as tcp://host:8786. file: that the scheduler wrote, in place of an address.
        resources: what a group occupies on a worker that has it, such as {"GPU": 1}.

    Raises:
        BadInput: neither or both are given; on entering, no `distributed`, or a scheduler that does not answer.
    """

    def __init__(
        self, address: str | None = None, *, file: str | None = None, resources: Mapping[str, float] | None = None
    ) -> None:
        if (address is None) == (file is None):
            raise BadInput(f"scheduler: an address or a file is needed, got {address!r} and {file!r}; give one")
        for name, amount in (resources or {}).items():
            if not amount > 0:
                raise BadInput(f"resources: {name} must be above zero, got {amount}; correct it")
        self.where, self.resources = str(file if address is None else address), dict(resources or {})
        self._given = {"address": address, "scheduler_file": file}

    def __enter__(self) -> Self:
        try:
            from distributed import Client
            from distributed.comm.addressing import resolve_address
        except ImportError as error:
            raise BadInput(f"scheduler: {one_line(error)}; install the extra cluster") from error
        if (file := self._given["scheduler_file"]) is not None and not os.path.isfile(file):
            raise BadInput(f"scheduler: the file {file!r} does not exist; start the scheduler with --scheduler-file")
        try:
            if (address := self._given["address"]) is not None:
                resolve_address(address)
            reach = partial(Client, timeout=ANSWER, set_as_default=False, name="tuner", **self._given)
            self.client = within(ANSWER + 1, reach)  # what takes the connection and says nothing holds a client up
        except (OSError, ValueError, TypeError) as error:
            raise BadInput(
                f"scheduler: {self.where!r} did not answer within {ANSWER:g} s ({one_line(error)}); start it, or "
                "correct the address"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close(ANSWER)

    def slots(self) -> dict[str, int]:
        """Address of a worker -> groups that it can train at once, now."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        running = {address: w for address, w in workers.items() if w.get("status", "running") == "running"}
        return {address: slots for address, worker in running.items() if (slots := self._slots(worker))}

    def _slots(self, worker: Mapping[str, Any]) -> int:
        has = [worker["resources"].get(name, 0) / amount for name, amount in self.resources.items()]
        return int(min([worker["nthreads"], *has]) + ROUNDING)

    def runner(self, objective: ObjectiveSource | Objective) -> Spread:
        """Raises BadInput where the objective cannot be sent."""
        if isinstance(objective, ObjectiveSource):  # a worker's current folder is another
            objective = replace(objective, folders=tuple(map(os.path.abspath, objective.folders)))
        return Spread(self, sent(objective))


class Spread:
    """Groups on the workers of a cluster, as many as it has slots; at least one, which waits for a worker to come."""

    def __init__(self, cluster: Cluster, objective: bytes) -> None:
        self._cluster, self._objective = cluster, objective
        self._tasks: set[Any] = set()
        self._unable: dict[str, str] = {}  # address -> why

    @property
    def capacity(self) -> int:
        return max(1, sum(self._able().values()))

    def _able(self) -> dict[str, int]:
        """Slots of the workers that can train, for all that is known. Raises BadInput where none of them can."""
        self._check()
        slots = self._cluster.slots()
        self._unable = {address: why for address, why in self._unable.items() if address in slots}
        able = {address: n for address, n in slots.items() if address not in self._unable}
        if slots and not able:
            address, why = next(iter(self._unable.items()))
            raise BadInput(f"{why}; so said the worker {address}" + (f", and {len(slots) - 1} more" * (len(slots) > 1)))
        return able

    def _check(self) -> None:
        if self._cluster.client.status != "running":
            raise BadInput(f"scheduler: {self._cluster.where!r} is gone; start it and run the same command again")

    def __enter__(self) -> Self:
        """Where workers are there already, one must be able to train. Raises BadInput if none is."""
        while self._able():
            try:
                unable = self._sent(_unable, versions()["transfer-tuner"]).result()
            except Exception as error:
                raise BadInput(
                    f"scheduler: a worker cannot run ours ({one_line(error)}); install the tuner that is here on the "
                    "scheduler's and the workers' machines"
                ) from error
            if unable is None:
                break
            self._set_aside(unable)
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        for task in list(self._tasks):
            task.cancel()

    def submit(self, trials: Sequence[Trial]) -> Future[list[Outcome]]:
        outcomes = Future[list[Outcome]]()
        self._hand_over(list(trials), outcomes)
        return outcomes

    def _hand_over(self, trials: list[Trial], outcomes: Future[list[Outcome]]) -> None:
        name = f"tuner-{uuid.uuid4().hex}"
        task = self._sent(_train, versions()["transfer-tuner"], trials, name)
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, name, trials, outcomes))

    def _done(self, name: str, trials: list[Trial], outcomes: Future[list[Outcome]], task: Any) -> None:
        from distributed import Event

        self._tasks.discard(task)
        fetched = Future[Any]()  # once: its machine may be gone a moment later
        try:
            fetched.set_result(task.result())
        except BaseException as error:
            fetched.set_exception(error)
        answer = None if fetched.exception() else fetched.result()
        if not isinstance(answer, Unable):
            _settle(outcomes, trials, fetched)
        else:
            self._set_aside(answer)
            try:
                self._hand_over(trials, outcomes)
            except BaseException as error:
                outcomes.set_exception(error)
        with suppress(Exception):  # the connection is gone, and with it what is to be tidied up
            Event(name, self._cluster.client).clear()  # not before: until the result is here it may be run again

    def _set_aside(self, unable: Unable) -> None:
        self._unable = {**self._unable, unable.address: unable.why}  # another thread may be reading it

    def _sent(self, function: Callable[..., Any], *args: Any) -> Any:
        self._check()
        cluster, call = self._cluster, partial(function, self._objective, *args)
        among = {"workers": list(self._able()), "allow_other_workers": True} if self._unable else {}
        return cluster.client.submit(call, pure=False, retries=0, resources=cluster.resources or None, **among)


# What follows runs on a worker of the cluster


_idle: dict[bytes, LifoQueue[Worker]] = {}  # objective -> processes that have it loaded


def _unable(objective: bytes, version: str) -> Unable | None:
    """Why nothing can be trained here; None if it can."""
    started = _started(objective, version)
    if isinstance(started, Unable):
        return started
    _back(objective, started)
    return None


def _started(objective: bytes, version: str) -> Worker | Unable:
    """A process with the objective loaded, at the second attempt at the latest: a first one may be killed by chance."""
    from distributed import get_worker

    address, here = get_worker().address, versions()["transfer-tuner"]
    if here != version:
        return Unable(address, f"scheduler: its tuner is {here}, the coordinator's {version}; install the same on both")
    for wait in (LOOK, 0.0):
        worker = _idle_one(objective)
        try:
            worker.ready()
            return worker
        except BadInput as error:
            why = str(error)
            time.sleep(wait)
    return Unable(address, why)


def _train(objective: bytes, version: str, trials: list[Trial], name: str) -> list[Outcome] | Unable:
    """A group, once: Dask runs a task of a lost worker again by itself, which no budget would see."""
    from distributed import Event, get_worker

    begun, finished = Event(name), threading.Event()
    if begun.is_set():
        raise RuntimeError("the cluster lost the worker that trained it")
    started = _started(objective, version)
    if isinstance(started, Unable):
        return started
    worker: Worker = started
    begun.set()
    here = get_worker()
    key = here.get_current_task()

    def look() -> None:
        while not finished.wait(LOOK):
            task = here.state.tasks.get(key)
            if task is None or task.state == "cancelled":
                worker.kill()
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        outcomes = worker.run(trials)
    finally:
        finished.set()
    _back(objective, worker)
    return outcomes


def _idle_one(objective: bytes) -> Worker:
    try:
        return _idle.setdefault(objective, LifoQueue()).get_nowait()
    except Empty:
        return _fresh(objective)


def _fresh(objective: bytes) -> Worker:
    # Dask starts its workers as daemons, to which multiprocessing allows no children. Ours leave with their parent by
    # themselves (`tuner.execution.settle_in`).
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    start_server()
    worker = Worker(objective)
    util.Finalize(None, worker.kill, exitpriority=10)  # before multiprocessing waits for its children
    return worker


def _back(objective: bytes, worker: Worker) -> None:
    if worker.retired:
        worker.bury()
    else:
        _idle.setdefault(objective, LifoQueue()).put(worker)
