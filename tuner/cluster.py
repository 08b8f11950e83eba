"""Where trials run on machines of others: any `concurrent.futures.Executor`, or a Dask cluster (extra `cluster`).

    with Cluster("tcp://scheduler:8786") as cluster:
        study.optimize(budget=0.25, executor=cluster)

On a Dask worker a group trains in a process of its own, as it does in `tuner.execution.WorkerPool`: one that is killed,
or runs out of memory, costs its group one attempt and leaves the worker alone. So does a machine that is lost: what it
was training is not run again behind the coordinator's back, but told as broken, charged, and tried again. What nobody
waits for any more (Ctrl-C, a coordinator that died) is killed within `LOOK` seconds.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from multiprocessing import util
from queue import Empty, LifoQueue
from typing import Any, Self

from tuner.errors import BadInput
from tuner.execution import Outcome, Worker, run_group, sent, start_server, within
from tuner.objective import Objective, ObjectiveSource, loaded, one_line
from tuner.trial import Failure, Trial

ANSWER = 5.0  # seconds that a scheduler has to answer
ROUNDING = 1e-9
LOOK = 0.5  # seconds between two looks at whether a group is still wanted


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
        return _outcomes(task, trials)


def _run(objective: bytes | Objective, trials: list[Trial]) -> list[Outcome]:
    return run_group(_made(objective) if isinstance(objective, bytes) else objective, trials)


@lru_cache(4)
def _made(objective: bytes) -> Objective:
    """Once in a process: what it reads is read once."""
    return loaded(pickle.loads(objective))


def _outcomes(task: Any, trials: Sequence[Trial]) -> Future[list[Outcome]]:
    """A task's outcomes; what broke it is a Failure of every member, which no seconds are charged for."""
    outcomes = Future[list[Outcome]]()

    def done(task: Any) -> None:
        try:  # the result is fetched here, and its machine may be gone
            outcomes.set_result(task.result())
        except BadInput as error:
            outcomes.set_exception(error)
        except (CancelledError, asyncio.CancelledError):
            law = "executor: it cancelled a running group, as a cluster does whose scheduler is gone"
            outcomes.set_exception(BadInput(f"{law}; start it and run the study again"))
        except BaseException as error:
            outcomes.set_result([Failure(one_line(error))] * len(trials))

    task.add_done_callback(done)
    return outcomes


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

    def slots(self) -> int:
        """Groups that its workers can train at once, now."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return sum(self._slots(worker) for worker in workers if worker.get("status", "running") == "running")

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

    @property
    def capacity(self) -> int:
        self._check()
        return max(1, self._cluster.slots())

    def __enter__(self) -> Self:
        """Where a worker is there already, one must be able to make the objective. Raises BadInput if it is not."""
        if self._cluster.slots():
            try:
                refusal = self._sent(_refusal).result()
            except Exception as error:
                raise BadInput(
                    f"scheduler: a worker cannot run ours ({one_line(error)}); install the tuner that is here on the "
                    "scheduler's and the workers' machines"
                ) from error
            if refusal:
                raise BadInput(refusal)
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        for task in list(self._tasks):
            task.cancel()

    def submit(self, trials: Sequence[Trial]) -> Future[list[Outcome]]:
        self._check()
        name = f"tuner-{uuid.uuid4().hex}"
        task = self._sent(_train, list(trials), name)
        self._tasks.add(task)
        outcomes = _outcomes(task, trials)
        task.add_done_callback(partial(self._done, name))  # after that: until the result is here it may be run again
        return outcomes

    def _done(self, name: str, task: Any) -> None:
        from distributed import Event

        self._tasks.discard(task)
        with suppress(Exception):  # the connection is gone, and with it what is to be tidied up
            Event(name, self._cluster.client).clear()

    def _sent(self, function: Callable[..., Any], *args: Any) -> Any:
        cluster = self._cluster
        return cluster.client.submit(
            partial(function, self._objective, *args), pure=False, retries=0, resources=cluster.resources or None
        )

    def _check(self) -> None:
        if self._cluster.client.status != "running":
            raise BadInput(f"scheduler: {self._cluster.where!r} is gone; start it and run the same command again")


# What follows runs on a worker of the cluster


_idle: dict[bytes, LifoQueue[Worker]] = {}  # objective -> processes that have it loaded


def _refusal(objective: bytes) -> str:
    """Why the objective cannot be made here; nothing if it can."""
    worker = _idle_one(objective)
    try:
        worker.ready()
    except BadInput as error:
        return str(error)
    _back(objective, worker)
    return ""


def _train(objective: bytes, trials: list[Trial], name: str) -> list[Outcome]:
    """A group, once: Dask runs a task of a lost worker again by itself, which no budget would see."""
    from distributed import Event, get_worker

    begun, worker, finished = Event(name), _idle_one(objective), threading.Event()
    if begun.is_set():
        raise RuntimeError("the cluster lost the worker that trained it")
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
