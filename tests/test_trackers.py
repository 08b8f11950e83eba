"""Claims about trackers: what they log is read back by their own libraries, offline; a broken one stops no study."""

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tuner
from tuner.callback import Callbacks
from tuner.errors import BadInput
from tuner.integrations import trackers
from tuner.integrations.trackers import Line, MLflow, TensorBoard, Tracker, WandB, tracker
from tuner.scale import Scale

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the trackers' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def study(storage=None, seed=0):
    return tuner.create_study(
        space={"lr": tuner.Float(1e-4, 1e-1, log=True), "kind": tuner.Categorical(("a", "b"))},
        target=Scale(width=256),
        proxies=[Scale(width=32), Scale(width=64)],
        cost=lambda params, scale: scale["width"] ** 2,
        storage=storage,
        name="bowl",
        seed=seed,
    )


def train(params, scale, seed):
    """Diverges at high rates."""
    rate = math.log(params["lr"] / 1e-2)
    return math.nan if rate > 0.5 else 1 + rate**2 / 10 + 4 / scale["width"]


def expected(found):
    """name -> (loss or None, parameters), of every trial."""
    return {
        f"trial-{e.trial.number:05d}": (e.loss, {**e.trial.params, **e.trial.scale}) for e in found.entries
    }  # fmt: skip


def searched(watcher, storage=None, budget=0.13):
    """Searches under a tracker; the trials."""
    with study(storage) as found:
        with watcher:
            found.optimize(train, budget=budget, callbacks=[watcher])
        assert len(found.entries) > 4
        assert {e.state for e in found.entries} == {"finished", "diverged"}
        return expected(found), found.recommend()


# ---- what is read back


def test_tensorboard_has_a_run_a_trial(tmp_path):
    pytest.importorskip("tensorboard", reason="no tensorboard: install the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(name):
        events = EventAccumulator(str(tmp_path / "bowl" / name))
        events.Reload()
        return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}

    trials, answer = searched(TensorBoard(str(tmp_path)))
    assert {path.name for path in (tmp_path / "bowl").iterdir() if path.is_dir()} == {*trials, "answer"}
    for name, (loss, _) in trials.items():
        assert read(name).get("loss") == (None if loss is None else pytest.approx(loss))
    assert read("answer")["loss"] == pytest.approx(answer.loss)


def test_mlflow_has_a_run_a_trial_and_a_resumed_study_logs_the_rest_alone(tmp_path):
    pytest.importorskip("mlflow", reason="no mlflow: install the extra mlflow")
    from mlflow import MlflowClient

    uri, storage = f"sqlite:///{tmp_path}/mlruns.db", f"sqlite:///{tmp_path}/study.db"
    first, _ = searched(MLflow(uri), storage)
    trials, answer = searched(MLflow(uri), storage, budget=0.2)
    assert len(trials) > len(first)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("bowl").experiment_id])
    named = [run.info.run_name for run in runs]
    assert sorted(named) == sorted([*trials, "answer", "answer"])
    for run in runs:
        if run.info.run_name in trials:
            loss, params = trials[run.info.run_name]
            assert run.data.metrics.get("loss") == loss
            assert run.data.params == {name: str(value) for name, value in params.items()}
    assert answer.loss in {run.data.metrics["loss"] for run in runs if run.info.run_name == "answer"}


def test_wandb_writes_its_runs_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="no wandb: install the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    trials, _ = searched(WandB("project"), budget=0.1)
    found = {path.name.split("-", 3)[3] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert found == {f"bowl-{name}" for name in [*trials, "answer"]}


def test_wandb_online_without_a_key_is_refused_and_asks_nobody(tmp_path):
    pytest.importorskip("wandb", reason="no wandb: install the extra wandb")
    code = "from tuner.integrations.trackers import WandB; WandB('project')"
    outside = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**outside, "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "BadInput: wandb: no key is known here; run `wandb login`" in told.stderr


def test_the_command_line_tracks_a_run(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="no tensorboard: install the extra tensorboard")
    (tmp_path / "track_bowl.py").write_text(
        "from tuner.space import Float, SearchSpace\n"
        "class Bowl:\n"
        "    space = SearchSpace({'lr': Float(1e-4, 1e-1, log=True)})\n"
        "    def cost(self, params, scale): return float(scale['width'])\n"
        "    def __call__(self, params, scale, seed): return 1 + params['lr']\n"
    )
    (tmp_path / "study.toml").write_text(
        '[study]\nname = "bowl"\n[objective]\ncall = "track_bowl:Bowl"\n'
        "[scale]\ntarget = { width = 256 }\nproxies = { width = [32] }\n[budget]\ntarget_runs = 0.5\n"
    )
    command = [sys.executable, "-m", "tuner.cli", "run", str(tmp_path / "study.toml"), "--workers", "0", "--json"]
    told = subprocess.run([*command, "--track", f"tensorboard={tmp_path}/tb"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    runs = {path.name for path in (tmp_path / "tb" / "bowl").iterdir() if path.is_dir()}
    trials = json.loads(told.stdout)["trials"] + 1  # the verification too
    assert runs == {"answer", *(f"trial-{number:05d}" for number in range(trials))}


# ---- what breaks


class Breaks(Tracker):
    def log(self, line):
        raise ConnectionError("gone")


class Hangs(Tracker):
    def __init__(self):
        super().__init__()
        self.free = threading.Event()

    def log(self, line):
        self.free.wait()


def test_a_tracker_that_breaks_is_warned_of_once_and_stops_no_study():
    with pytest.warns(UserWarning, match="Breaks broke .*gone") as told:
        trials, _ = searched(Breaks())
    assert len([warning for warning in told if "broke" in str(warning.message)]) == 1
    assert len(trials) > 4


def test_a_tracker_that_hangs_is_left(monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    hangs = Hangs()
    with pytest.warns(UserWarning, match="has not answered for 0.2 s; .* lines are not logged"):
        searched(hangs)
    hangs.free.set()


class Keeps(Tracker):
    def __init__(self):
        super().__init__()
        self.names = []

    def log(self, line):
        self.names.append(line.name)


def left_by_ctrl_c(tracker, found):
    with tracker:
        found.optimize(train, budget=0.05, callbacks=[tracker])
        raise KeyboardInterrupt


def test_a_search_that_is_broken_off_has_its_trials_logged_and_computes_no_answer():
    keeps = Keeps()
    with study() as found:
        with pytest.raises(KeyboardInterrupt):
            left_by_ctrl_c(keeps, found)
        assert keeps.names == list(expected(found))


def test_a_tracker_outside_of_its_block_says_so():
    with study() as found, pytest.warns(UserWarning, match="inside its `with` block only"):
        found.optimize(train, budget=0.05, callbacks=[Keeps()])


def test_a_callback_that_breaks_is_told_nothing_more():
    calls = []

    def breaks(study):
        calls.append(study)
        raise ValueError("no")

    told = Callbacks([breaks, lambda study: calls.append(None)])
    with pytest.warns(UserWarning, match=r"callback breaks broke \(ValueError: no\)"):
        told("study")
    told("study")
    assert calls == ["study", None, None]


@pytest.mark.parametrize("text", ["tensorboard", "tensorboard=", "aim=x", ""])
def test_a_tracker_that_is_none_is_refused(text):
    with pytest.raises(BadInput, match=r"^track: must be one of tensorboard=\.\.\., mlflow="):
        tracker(text)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    pytest.importorskip("tensorboard", reason="no tensorboard: install the extra tensorboard")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be made"):
        TensorBoard(str(tmp_path / "file"))


def test_a_password_is_never_told(monkeypatch):
    pytest.importorskip("mlflow", reason="no mlflow: install the extra mlflow")
    monkeypatch.setattr(trackers, "ANSWER", 1.0)
    for uri in ("postgresql://tuner:s3cret@127.0.0.1:1/mlflow", "nonsense://tuner:s3cret@host/db"):
        with pytest.raises(BadInput, match=r"^mlflow: .*; correct its URI or start the server$") as refusal:
            MLflow(uri)
        assert "s3cret" not in str(refusal.value)


def test_what_is_logged_is_finite():
    with study() as found:
        found.optimize(train, budget=0.13)
        lines = [Line.of_trial(found, entry, 0.0) for entry in found.entries]
    assert all(math.isfinite(value) for line in lines for value in line.metrics.values())
    assert any("loss" not in line.metrics for line in lines)
    assert not Path("runs").exists()
