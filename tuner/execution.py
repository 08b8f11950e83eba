"""Where trials run: in this process (`Serial`) or in worker processes of this machine (`WorkerPool`).

A group is a list of trials of one scale. `submit` takes a group and hands back a future of one outcome a trial, in
order: a Result, or a Failure that says what broke. A failing trial never raises here and never touches another group:
one that takes its worker down (killed, out of memory, segmentation fault) costs its own group one attempt.

A worker is one process with one thread for torch and its own pipe, so workers share no lock that a dying one could
keep. They are forked from a server that has imported torch: the first is up in seconds, its replacement in hundredths.
They leave when their coordinator does, however it ends; Ctrl-C reaches the coordinator alone.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import connection
from queue import LifoQueue
from typing import Any, Self

from tuner.errors import BadInput, is_number
from tuner.objective import Objective, ObjectiveSource, loaded, one_line
from tuner.trial import Failure, Result, Trial

Outcome = Result | Failure

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
TRACE = 2000  # characters of a traceback worth keeping: its end
GRACE = 5.0  # seconds a worker that hung up has to leave by itself
IDLE = 300.0  # seconds after which a worker with nothing to do leaves, with its memory; another starts fast


# ---- one group ----


def run_group(objective: Objective, trials: Sequence[Trial]) -> list[Outcome]:
    """Trains trials of one scale, stacked where the objective can; one outcome a trial, in order.

    A member that breaks is a Failure of its own; a stacked call that raises is a Failure of every member.
    """
    train_many = getattr(objective, "train_many", None)
    if len(trials) > 1 and train_many is not None:
        return _stacked(train_many, trials)
    return [_single(objective, trial) for trial in trials]


def _single(objective: Objective, trial: Trial) -> Outcome:
    start = time.perf_counter()
    try:
        returned = objective(dict(trial.params), trial.scale, trial.seed)
    except (Exception, SystemExit) as error:  # a training script may call sys.exit: that ends a trial, not a study
        return Failure(_told(error), time.perf_counter() - start)
    return _checked(returned, time.perf_counter() - start)


def _stacked(train_many: Callable[[Sequence[Trial]], Sequence[Result]], trials: Sequence[Trial]) -> list[Outcome]:
    start = time.perf_counter()
    try:
        returned, error = list(train_many(list(trials))), ""
    except (Exception, SystemExit) as raised:
        returned, error = [], _told(raised)
    share = (time.perf_counter() - start) / len(trials)
    if not error and len(returned) != len(trials):
        error = f"train_many returns one Result a trial, got {len(returned)} for {len(trials)} trials; return them all"
    return [Failure(error, share)] * len(trials) if error else [_checked(one, share) for one in returned]


def _told(error: BaseException) -> str:
    return f"{one_line(error)[:TRACE]}\n{''.join(traceback.format_exception(error))[-TRACE:]}"


def _checked(returned: Any, seconds: float) -> Outcome:
    """What an objective returned, as a Result with its seconds; a Failure if it breaks a law of Result."""
    result = returned if isinstance(returned, Result) else Result(returned)
    if not is_number(result.loss):
        kind = type(result.loss).__name__
        return Failure(f"an objective returns its loss as a float or Result, got a {kind}; return float(loss)", seconds)
    for name, value in (("cost", result.cost), ("seconds", result.seconds)):
        if value is not None and not (is_number(value) and math.isfinite(value) and value > 0):
            law = f"Result.{name} must be a finite number above zero"
            return Failure(f"{law}, got {value!r}; correct it or leave it None", seconds)
    cost = None if result.cost is None else float(result.cost)
    return Result(float(result.loss), cost, seconds if result.seconds is None else float(result.seconds))


def within(seconds: float, ask: Callable[[], Any]) -> Any:
    """What it returns or raises; TimeoutError where it takes longer, and it is left to its own."""
    found: Future[Any] = Future()

    def run() -> None:
        try:
            found.set_result(ask())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return found.result(seconds)
    except TimeoutError:
        if found.done():  # it is what was raised
            raise
        raise TimeoutError(f"no answer within {seconds:g} s") from None


# ---- in this process ----


class Serial:
    """Runs each group at once, in this process: `submit` returns when the group is finished."""

    capacity = 1

    def __init__(self, objective: ObjectiveSource | Objective) -> None:
        self._objective = loaded(objective)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is left running."""

    def submit(self, trials: Sequence[Trial]) -> Future[list[Outcome]]:
        future: Future[list[Outcome]] = Future()
        future.set_result(run_group(self._objective, trials))
        return future


# ---- in worker processes ----


class WorkerPool:
    """Runs up to `capacity` groups at once, each in a process of its own; further groups wait.

    Inside `with`, one worker is known to work; the others start when they are needed. Leaving it waits for the groups
    that were submitted; leaving it by an exception (Ctrl-C too) kills them.

    Raises:
        BadInput: fewer than one worker; an objective that cannot be sent to a worker, or that cannot be made there.
    """

    def __init__(self, objective: ObjectiveSource | Objective, workers: int) -> None:
        if workers < 1:
            raise BadInput(f"workers: at least one is needed, got {workers}; give the number of processes")
        self.capacity = workers
        self._workers = [Worker(sent(objective)) for _ in range(workers)]
        self._idle: LifoQueue[Worker] = LifoQueue()  # last in, first out: a warm worker before one never started
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        try:
            start_server()
            self._workers[-1].start()
        except BaseException:
            self._workers[-1].kill()
            self._workers[-1].bury()
            raise
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(self.capacity, "tuner-group")
        return self

    def submit(self, trials: Sequence[Trial]) -> Future[list[Outcome]]:
        if self._threads is None:
            raise BadInput(
                "a WorkerPool takes groups inside its `with` block only; write `with WorkerPool(...) as pool`"
            )
        return self._threads.submit(self._run, list(trials))

    def _run(self, trials: list[Trial]) -> list[Outcome]:
        worker = self._idle.get()  # as many threads as workers: one is free
        try:
            return worker.run(trials)
        finally:
            self._idle.put(worker)

    def __exit__(self, kind: object, *exception: object) -> None:
        assert self._threads is not None
        try:
            self._threads.shutdown(wait=kind is None, cancel_futures=kind is not None)
        finally:  # a Ctrl-C while waiting kills what it waits for
            for worker in self._workers:
                worker.kill()
            self._threads.shutdown(cancel_futures=True)
            for worker in self._workers:
                worker.bury()


class Worker:
    """The coordinator's end of one worker; one thread at a time runs groups on it, another may kill it."""

    _bookkeeping = threading.Lock()  # multiprocessing's own, of started and finished children, is not thread-safe

    def __init__(self, objective: bytes) -> None:
        self._objective = objective
        self._process: Any = None  # a ForkServerProcess, while there is one
        self.retired = False

    def run(self, trials: list[Trial]) -> list[Outcome]:
        start = time.perf_counter()
        try:
            self._hand_over(trials)
            outcomes: list[Outcome] = self._receive()
            return outcomes
        except BadInput as refusal:
            error = str(refusal)
        except (EOFError, OSError):
            error = self.bury()
        return [Failure(error, (time.perf_counter() - start) / max(len(trials), 1))] * len(trials)

    def _hand_over(self, trials: list[Trial]) -> None:
        """Send a group until a process says that it has it: one that died while idle costs the group nothing."""
        if self._process is not None:
            try:
                self._pipe.send(trials)
                self._receive()
                return
            except (EOFError, OSError):
                self.bury()
        self.start()
        self._pipe.send(trials)
        self._receive()

    def ready(self) -> None:
        """With a process; a fresh one where there is none. Raises BadInput as `start`."""
        if self._process is None:
            self.start()

    def start(self) -> None:
        """A fresh process, its objective loaded. Raises BadInput when either cannot be."""
        context = multiprocessing.get_context("forkserver")
        with self._bookkeeping:
            if self.retired:
                raise BadInput("the worker pool is closed")
            self._pipe, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._objective), name="tuner-worker")
            with theirs:
                process.start()
            self._process = process  # after its start: an interrupted one has nothing to kill
        try:
            refusal = self._receive()
        except (EOFError, OSError):
            raise BadInput(
                f"{self.bury()} while starting; a worker imports this script: what starts a study in it belongs"
                " under `if __name__ == '__main__':`"
            ) from None
        if refusal:
            self.bury()
            raise BadInput(refusal)

    def _receive(self) -> Any:
        # The pipe alone would not tell: a child that the objective started may hold its other end.
        connection.wait([self._pipe, self._process.sentinel])
        if not self._pipe.poll():
            raise EOFError
        return self._pipe.recv()

    def kill(self) -> None:
        """Ends the process, whatever it does, and for good."""
        with self._bookkeeping:
            self.retired = True
            if self._process is not None:
                self._process.kill()

    def bury(self) -> str:
        """Clears away a process that hung up or was killed; says how it ended."""
        if self._process is None:
            return ""
        connection.wait([self._process.sentinel], GRACE)
        with self._bookkeeping:
            self._process.kill()
            self._process.join()
            code, self._process = self._process.exitcode, None
        self._pipe.close()
        if code >= 0:
            return f"the worker process died (exit code {code})"
        hint = "; often for want of memory" if code == -signal.SIGKILL else ""
        return f"the worker process died (signal {-code}, {signal.strsignal(-code)}{hint})"


def sent(objective: ObjectiveSource | Objective) -> bytes:
    try:
        return pickle.dumps(objective)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise BadInput(
            f"objective: a worker process cannot be sent this one ({one_line(error)}); name it as 'module:attribute',"
            " or train in this process"
        ) from error


_starting = threading.Lock()  # what a process inherits is set for all its threads


def start_server() -> None:
    """The process that workers are forked from, holding what they inherit: torch, one thread a library, no Ctrl-C."""
    with _starting:
        _start_server()


def _start_server() -> None:
    from multiprocessing import forkserver, resource_tracker  # not on Windows, where `Serial` works

    resource_tracker.ensure_running()  # now: its start unblocks Ctrl-C
    outside = {name: os.environ[name] for name in ONE_THREAD if name in os.environ}
    os.environ.update(ONE_THREAD)  # libraries read it once, when loaded
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.set_forkserver_preload(["torch", __name__])
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name in ONE_THREAD:
            del os.environ[name]
        os.environ.update(outside)


def _serve(pipe: connection.Connection, objective: bytes) -> None:
    """A worker's life: load the objective once, say so, then a group at a time."""
    settle_in()
    try:
        train = loaded(pickle.loads(objective))
    except Exception as error:
        pipe.send(str(error) if isinstance(error, BadInput) else f"objective: {one_line(error)}; correct its module")
        return
    with suppress(EOFError, OSError):  # the coordinator hung up
        pipe.send(None)
        while pipe.poll(IDLE):
            trials = pipe.recv()
            pipe.send(None)  # a group is ours from here on
            pipe.send(run_group(train, trials))


def settle_in() -> None:
    """First thing in a process of ours: leave with the coordinator, let Ctrl-C reach it alone, one thread for torch."""
    threading.Thread(target=_leave_with_coordinator, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # again, as threads below: the server may be older than us
    multiprocessing.set_start_method(None, force=True)  # the platform's, for the objective's own: a DataLoader's, say
    os.environ.update(ONE_THREAD)
    import torch  # the coordinator need not

    torch.set_num_threads(1)


def _leave_with_coordinator() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
