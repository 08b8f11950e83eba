"""Trials where people look for them: TensorBoard, MLflow, Weights & Biases (one extra each).

    with MLflow("sqlite:///mlruns.db") as tracker:
        study.optimize(train, budget=0.25, callbacks=[tracker])

A tracker logs a trial when it has ended, and the answer when it is closed, on a thread of its own: a server that is
slow costs the study nothing, one that breaks is warned of and left alone. A study resumed logs what is not there yet
(what Weights & Biases wrote offline it cannot know: that is written again, with the same id).
"""

from __future__ import annotations

import math
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from tuner.errors import BadInput
from tuner.execution import within
from tuner.objective import one_line
from tuner.record import DIVERGED, FINISHED, RUNNING, Entry
from tuner.space import Value

if TYPE_CHECKING:
    from tuner.study import Study

ANSWER = 10.0  # seconds that a server has to answer at the start
PATIENCE = 30.0  # seconds that a tracker has for what is left when it is closed


@dataclass(frozen=True)
class Line:
    """What is logged of a trial, or of the answer.

    Args:
        study, name: of the study, and of the line in it: "trial-00012" or "answer".
        number: of the trial, from 0.
        params: raw hyperparameters, and the scale.
        metrics: numbers, all finite.
        state: of the trial; of the answer, its verdict.
    """

    study: str
    name: str
    number: int
    params: Mapping[str, Value]
    metrics: Mapping[str, float]
    state: str

    @staticmethod
    def of_trial(study: Study, entry: Entry, spent: float) -> Line:
        found = {"cost": entry.cost, "target_runs": spent, "seconds": entry.seconds}
        metrics = found if entry.loss is None else {"loss": entry.loss, **found}
        trial = entry.trial
        name = f"trial-{trial.number:05d}"
        return Line(study.record.name, name, trial.number, {**trial.params, **trial.scale}, metrics, entry.state)

    @staticmethod
    def of_answer(study: Study) -> Line:
        found = study.recommend()
        metrics = {"loss": found.loss, "loss_sd": found.loss_sd, "expected_regret": found.expected_regret}
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        params = {**found.params, **study.problem.target}
        return Line(study.record.name, "answer", len(study.entries), params, finite, found.verdict)


class Tracker(ABC):
    """A callback of `Study.optimize`; a context manager that logs the answer on leaving, and waits for what is left."""

    def __init__(self) -> None:
        self._study: Study | None = None
        self._known: set[int] = set()
        self._lines: SimpleQueue[Line | None] = SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=f"tuner-{type(self).__name__}", daemon=True)

    @abstractmethod
    def log(self, line: Line) -> None:
        """Write a line, unless it is there; called on the tracker's thread."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __call__(self, study: Study) -> None:
        """Log the trials that have ended since. Raises what broke the tracker, or BadInput outside of its `with`."""
        if self._thread.ident is None:
            raise BadInput("tracker: it logs inside its `with` block only; write `with MLflow(...) as tracker`")
        self._study = study
        self._put_ended(study)
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _put_ended(self, study: Study) -> None:
        spent, target = 0.0, study.target_cost
        for entry in study.entries:
            spent += study.charge(entry) / target
            if entry.state != RUNNING and entry.trial.number not in self._known:
                self._known.add(entry.trial.number)
                self._lines.put(Line.of_trial(study, entry, spent))

    def __exit__(self, kind: object, *exception: object) -> None:
        if self._study is not None and self._thread.is_alive():
            self._put_ended(self._study)
            if kind is None and any(not run.diverged for run in self._study.observations):  # not at a Ctrl-C
                self._lines.put(Line.of_answer(self._study))
        self._lines.put(None)
        self._thread.join(PATIENCE)
        name = type(self).__name__
        if self._thread.is_alive():
            left = self._lines.qsize()
            warnings.warn(f"{name} has not answered for {PATIENCE:g} s; {left} lines are not logged", stacklevel=2)
        if self._error is not None:
            warnings.warn(f"{name} broke ({one_line(self._error)}); not all is logged", stacklevel=2)

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self.log(line)
            except Exception as error:
                self._error = error
                return


class TensorBoard(Tracker):
    """Event files in a folder: a run a trial, of hyperparameters and metrics; the study's is their course.

    Raises:
        BadInput: no `tensorboard`; a folder that cannot be made.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        with _needed("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._folder, self._writer = Path(folder), SummaryWriter
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"tensorboard: {folder!r} cannot be made: {error.strerror}; choose another folder") from None

    def log(self, line: Line) -> None:
        course = self._folder / line.study
        if (course / line.name).exists() and line.name != "answer":
            return
        with self._writer(str(course)) as writer:
            writer.add_hparams(dict(line.params), dict(line.metrics), run_name=line.name)
            for name, value in line.metrics.items() if line.name != "answer" else ():
                writer.add_scalar(f"{name} of trials", value, line.number)


class MLflow(Tracker):
    """An experiment a study, a run a trial.

    Args:
        uri: of the tracking server or database, such as sqlite:///mlruns.db.

    Raises:
        BadInput: no `mlflow`; a server that does not answer.
    """

    def __init__(self, uri: str) -> None:
        super().__init__()
        with _needed("mlflow"):
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
        self._metric, self._param = Metric, Param
        self._secret: str | None = None
        try:
            self._secret = urlsplit(uri).password
            self._client = within(ANSWER, lambda: _reached(MlflowClient(uri)))
        except Exception as error:
            raise BadInput(f"mlflow: {self._hidden(one_line(error))}; correct its URI or start the server") from None

    def _hidden(self, told: str) -> str:
        return told.replace(self._secret, "***") if self._secret else told

    def log(self, line: Line) -> None:
        try:
            self._log(line)
        except Exception as error:
            raise RuntimeError(self._hidden(one_line(error))) from None

    def _log(self, line: Line) -> None:
        client = self._client
        known = client.get_experiment_by_name(line.study)
        experiment = client.create_experiment(line.study) if known is None else known.experiment_id
        named = f"run_name = '{line.name}' and attributes.status != 'RUNNING'"  # a coordinator died while it wrote that
        if line.name != "answer" and client.search_runs([experiment], named, max_results=1):
            return
        run = client.create_run(experiment, run_name=line.name, tags={"state": line.state}).info.run_id
        metrics = [self._metric(name, value, 0, line.number) for name, value in line.metrics.items()]
        params = [self._param(name, str(value)) for name, value in line.params.items()]
        client.log_batch(run, metrics, params)
        client.set_terminated(run, "FINISHED" if _ended_well(line) else "FAILED")


class WandB(Tracker):
    """A group a study, a run a trial; offline where WANDB_MODE says so.

    Raises:
        BadInput: no `wandb`; online without a key, or with one that its server does not take.
    """

    def __init__(self, project: str) -> None:
        super().__init__()
        with _needed("wandb"):
            import wandb
        self._wandb, self._project = wandb, project
        if wandb.setup().settings.mode in ("offline", "disabled"):
            return
        try:
            known = within(ANSWER, lambda: wandb.login(prompt=False))  # our thread is not one to ask a person
        except Exception as error:
            known, why = False, one_line(error)
        else:
            why = "no key is known here"
        if not known:
            raise BadInput(f"wandb: {why}; run `wandb login`, or set WANDB_MODE=offline and `wandb sync` later")

    def log(self, line: Line) -> None:
        run = self._wandb.init(
            project=self._project,
            group=line.study,
            name=line.name,
            id=f"{line.study}-{line.name}",  # the same when a study is resumed
            resume="allow",
            reinit="create_new",
            config={**line.params, "state": line.state},
            settings=self._wandb.Settings(silent=True, console="off"),
        )
        if not run.resumed or line.name == "answer":
            run.log(dict(line.metrics))
        run.finish(0 if _ended_well(line) else 1)


def _ended_well(line: Line) -> bool:
    return line.name == "answer" or line.state in (FINISHED, DIVERGED)


def _reached(client: Any) -> Any:
    client.search_experiments(max_results=1)
    return client


@contextmanager
def _needed(extra: str) -> Iterator[None]:
    """Inside, a package of an extra is imported: BadInput that names the extra where it is not installed."""
    try:
        yield
    except ImportError as error:
        raise BadInput(f"{extra}: {one_line(error)}; install the extra {extra}") from error


TRACKERS: Mapping[str, Callable[[str], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def tracker(text: str) -> Tracker:
    """Of the command line's NAME=WHERE. Raises BadInput of what cannot be."""
    name, _, where = text.partition("=")
    if name not in TRACKERS or not where:
        known = ", ".join(f"{n}=..." for n in TRACKERS)
        raise BadInput(f"track: must be one of {known}, got {name!r}; write for example tensorboard=runs")
    return TRACKERS[name](where)
