"""Claims about where trials run. Pools here are real processes; objectives live in a module written for the test."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import until

from tuner.execution import Serial, WorkerPool, run_group
from tuner.objective import ObjectiveSource
from tuner.scale import Scale
from tuner.trial import Failure, Result, Trial

TOY = '''
import ctypes, os, signal, sys, time
from pathlib import Path
from tuner.trial import Result

loads = 0

def slope(params, scale, seed):
    return 2.0 * params["lr"]

number = 3

class Toy:
    """Does what `params["do"]` says; otherwise the loss is the learning rate."""

    def __init__(self, folder="."):
        global loads
        loads += 1
        self.folder = Path(folder)

    def __call__(self, params, scale, seed):
        getattr(self, params.get("do", "nothing"))(seed)
        return Result(params["lr"], cost=float(scale["width"]))

    def nothing(self, seed): pass
    def raises(self, seed): raise RuntimeError("no luck")
    def leaves(self, seed): os._exit(seed)
    def killed(self, seed): os.kill(os.getpid(), signal.SIGKILL)
    def segfaults(self, seed): ctypes.string_at(0)
    def quits(self, seed): sys.exit("bad flag")
    def sleeps(self, seed):
        path = self.folder / f"{os.getpid()}.pid"
        path.touch()
        time.sleep(60)
    def interrupted(self, seed):
        os.kill(os.getpid(), signal.SIGINT)

def report(home):
    import multiprocessing, torch
    assert torch.get_num_threads() == 1 and os.environ["OMP_NUM_THREADS"] == "1", torch.get_num_threads()
    assert multiprocessing.get_start_method() == home, multiprocessing.get_start_method()
    return Result(os.getpid(), cost=loads + 1)

class Reporter(Toy):
    def __init__(self, home):
        super().__init__()
        self.home = home

    def __call__(self, params, scale, seed):
        return report(self.home)

class Refuses:
    def __init__(self):
        raise FileNotFoundError("no data")
'''


def trial(lr=0.1, seed=0, number=0, width=8, **params):
    return Trial(number, {"lr": lr, **params}, Scale(width=width), seed)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Names what the module `toy` of this test's folder has, for this test only."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    yield lambda name, **args: ObjectiveSource(f"toy:{name}", args, (str(tmp_path),))
    sys.modules.pop("toy", None)


def sleeping(folder, count=2):
    """The pids of that many workers that say they sleep."""
    return until(lambda: len(found := [int(path.stem) for path in folder.glob("*.pid")]) == count and found)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- objectives named by data ----


def test_a_class_is_instantiated_and_a_function_is_taken_as_it_is(toy):
    assert toy("slope").load()({"lr": 0.5}, Scale(width=8), 0) == 1.0
    assert str(toy("Toy", folder="here").load().folder) == "here"
    assert toy("Toy.nothing").load().__name__ == "nothing"


@pytest.mark.parametrize(
    ("call", "args", "message"),
    [
        ("toy", {}, "a name is 'module:attribute', got 'toy'"),
        ("toy:", {}, "a name is 'module:attribute', got 'toy:'"),
        (
            "toyz:Toy",
            {},
            r"'toyz' cannot be imported \(ModuleNotFoundError: No module named 'toyz'; searched /.*install",
        ),
        ("toy:Toi", {}, "'toy:Toi' names nothing, 'Toi' is not there; did you mean 'Toy'"),
        ("toy:Toy.slepes", {}, "did you mean 'sleeps'"),
        ("toy:Toy", {"width": 3}, r"refuses args {'width': 3} \(TypeError: .*unexpected keyword argument 'width'\)"),
        ("toy:slope", {"width": 3}, "args need a class, 'toy:slope' is a function; remove args"),
        ("toy:number", {}, "'toy:number' must be callable as .* got a int"),
    ],
)
def test_a_name_that_gives_no_objective_is_refused_in_one_line(toy, call, args, message):
    with pytest.raises(ValueError, match=message) as refusal:
        ObjectiveSource(call, args, toy("").folders).load()
    assert "\n" not in str(refusal.value)


def test_a_module_that_breaks_while_imported_says_how(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken_toy.py").write_text("import no_such_thing\n")
    (tmp_path / "crooked_toy.py").write_text("def f(:\n")
    with pytest.raises(ValueError, match=r"No module named 'no_such_thing'.*install what it needs"):
        ObjectiveSource("broken_toy:f", {}, (str(tmp_path),)).load()
    with pytest.raises(ValueError, match=r"SyntaxError.*correct the module"):
        ObjectiveSource("crooked_toy:f", {}, (str(tmp_path),)).load()


# ---- one group ----


def test_outcomes_keep_the_order_of_trials_and_a_failure_stays_with_its_own():
    def train(params, scale, seed):
        if params["lr"] > 0.5:
            raise MemoryError("too wide") if seed else RuntimeError("no\nluck")
        return params["lr"]

    first, second, third, fourth = run_group(train, [trial(0.1), trial(0.9), trial(0.2), trial(0.9, seed=1)])
    assert (first.loss, third.loss) == (0.1, 0.2)
    assert first.cost is None
    assert first.seconds >= 0
    assert second.error.startswith("RuntimeError: no luck\nTraceback")
    assert fourth.error.startswith("MemoryError: too wide\n")


def test_a_long_traceback_is_kept_by_its_end():
    def deep(n):
        if n == 0:
            raise ValueError("x" * 5000)
        deep(n - 1)

    (failure,) = run_group(lambda params, scale, seed: deep(300), [trial()])
    assert failure.error.startswith("ValueError: xxx")
    assert len(failure.error) < 4100


def test_sys_exit_ends_a_trial_and_ctrl_c_ends_the_group():
    def leaves(params, scale, seed):
        sys.exit("bad flag")

    def interrupted(params, scale, seed):
        raise KeyboardInterrupt

    (failure,) = run_group(leaves, [trial()])
    assert failure.error.startswith("SystemExit: bad flag")
    with pytest.raises(KeyboardInterrupt):
        run_group(interrupted, [trial()])


@pytest.mark.parametrize(
    ("returned", "law"),
    [
        (None, "returns its loss as a float or Result, got a NoneType"),
        ("0.3", "got a str"),
        (True, "got a bool"),
        (Result([1.0]), "got a list"),
        (Result(1.0, cost=0.0), "Result.cost must be a finite number above zero, got 0.0"),
        (Result(1.0, cost=float("nan")), "must be a finite number above zero, got nan"),
        (Result(1.0, cost="1"), "must be a finite number above zero, got '1'"),
    ],
)
def test_a_return_that_breaks_the_law_is_a_failure_that_states_it(returned, law):
    (failure,) = run_group(lambda params, scale, seed: returned, [trial()])
    assert isinstance(failure, Failure)
    assert law in failure.error


def test_a_diverged_loss_is_a_result_and_what_the_objective_measured_is_kept():
    (result,) = run_group(lambda params, scale, seed: float("nan"), [trial()])
    assert result.diverged
    (result,) = run_group(lambda params, scale, seed: Result(1, cost=2, seconds=3.0), [trial()])
    assert result == Result(1.0, cost=2.0, seconds=3.0)


class Stacked:
    def __call__(self, params, scale, seed):
        return -1.0

    def train_many(self, trials):
        time.sleep(0.02)
        if trials[0].params["lr"] > 0.5:
            raise RuntimeError("no luck")
        return [Result(t.params["lr"]) for t in trials if t.seed == 0]


def test_a_group_is_stacked_where_the_objective_can_and_shares_its_time():
    outcomes = run_group(Stacked(), [trial(0.1), trial(0.2)])
    assert [one.loss for one in outcomes] == [0.1, 0.2]
    assert outcomes[0].seconds == outcomes[1].seconds >= 0.01
    assert run_group(Stacked(), [trial(0.1)])[0].loss == -1.0


def test_a_stacked_call_that_raises_or_loses_a_trial_costs_its_group_one_attempt():
    outcomes = run_group(Stacked(), [trial(0.9), trial(0.2)])
    assert [one.error.partition("\n")[0] for one in outcomes] == ["RuntimeError: no luck"] * 2
    outcomes = run_group(Stacked(), [trial(0.1), trial(0.2, seed=1)])
    assert all("one Result a trial, got 1 for 2 trials" in one.error for one in outcomes)


def test_a_trial_is_not_changed_by_an_objective_that_changes_its_params():
    one = trial()
    run_group(lambda params, scale, seed: params.pop("lr"), [one])
    assert one.params == {"lr": 0.1}


def test_serial_hands_back_finished_futures(toy):
    with Serial(toy("slope")) as here:
        future = here.submit([trial(0.1), trial(0.2)])
        assert here.capacity == 1
        assert future.done()
        assert [one.loss for one in future.result()] == [0.2, 0.4]


# ---- worker processes ----


def test_importing_execution_imports_no_torch():
    code = "import sys, tuner.execution; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_workers_give_outcomes_in_order_and_outcomes_of_any_trial_never_raise(toy):
    with WorkerPool(toy("Toy"), 2) as pool:
        assert pool.capacity == 2
        futures = [pool.submit([trial(n, number=n), trial(n + 0.5, do="raises"), trial(n)]) for n in range(4)]
        for n, future in enumerate(futures):
            first, second, third = future.result()
            assert (first.loss, first.cost, third.loss) == (n, 8.0, n)
            assert second.error.startswith("RuntimeError: no luck\n")
        assert pool.submit([trial(do="quits")]).result()[0].error.startswith("SystemExit: bad flag")
        assert pool.submit([]).result() == []


def test_a_worker_loads_its_objective_once_and_has_one_thread_its_own_start_method_and_no_ctrl_c(toy):
    with WorkerPool(toy("Reporter", home=multiprocessing.get_context().get_start_method()), 1) as pool:
        (first,), (second,) = [pool.submit([trial()]).result() for _ in range(2)]
    assert (first.loss, first.cost) == (second.loss, second.cost) == (first.loss, 2.0)
    with WorkerPool(toy("Toy"), 1) as pool:
        assert pool.submit([trial(do="interrupted")]).result()[0].loss == 0.1


@pytest.mark.parametrize(
    ("do", "seed", "death"),
    [
        ("killed", 0, "signal 9, Killed; often for want of memory)"),
        ("segfaults", 0, "signal 11, "),
        ("leaves", 3, "exit code 3"),
        ("leaves", 0, "exit code 0"),
    ],
)
def test_a_worker_that_dies_fails_its_own_group_only(toy, do, seed, death):
    with WorkerPool(toy("Toy"), 2) as pool:
        good, queued = [pool.submit([trial(n)] * 20) for n in range(2)]
        bad, later = pool.submit([trial(do=do, seed=seed)] * 2), pool.submit([trial(0.2)])
        assert [one.error.startswith(f"the worker process died ({death}") for one in bad.result()] == [True] * 2
        assert [len(group.result()) for group in (good, queued)] == [20] * 2
        assert later.result()[0].loss == 0.2
        assert pool.submit([trial(0.3)]).result()[0].loss == 0.3


def test_a_worker_killed_while_idle_is_replaced(toy):
    with WorkerPool(toy("Reporter", home=multiprocessing.get_context().get_start_method()), 1) as pool:
        pid = int(pool.submit([trial()]).result()[0].loss)
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: not alive(pid), 10)
        (result,) = pool.submit([trial()]).result()
        assert result.loss != pid


def test_leaving_waits_for_what_was_submitted_and_an_exception_kills_it(toy, tmp_path):
    with WorkerPool(toy("Toy"), 1) as pool:
        futures = [pool.submit([trial(n)]) for n in range(3)]
    assert [future.result()[0].loss for future in futures] == [0, 1, 2]

    pool = WorkerPool(toy("Toy", folder=str(tmp_path)), 2).__enter__()
    futures = [pool.submit([trial(do="sleeps")]) for _ in range(3)]
    pids = sleeping(tmp_path)
    start = time.monotonic()
    pool.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert time.monotonic() - start < 2
    assert not any(map(alive, pids))
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit([trial()])


def test_submit_does_not_wait(toy, tmp_path):
    pool = WorkerPool(toy("Toy", folder=str(tmp_path)), 1).__enter__()
    start = time.monotonic()
    for _ in range(50):
        pool.submit([trial(do="sleeps")])
    elapsed = time.monotonic() - start
    pool.__exit__(RuntimeError, RuntimeError(), None)
    assert elapsed < 0.5


def test_what_no_worker_can_be_sent_or_can_make_is_refused_in_one_line(toy):
    with pytest.raises(
        ValueError, match=r"cannot be sent this one .*; name it as 'module:attribute', or train in this"
    ):
        WorkerPool(lambda params, scale, seed: 0.0, 1)
    with pytest.raises(ValueError, match="at least one is needed, got 0"):
        WorkerPool(toy("Toy"), 0)
    with pytest.raises(ValueError, match="inside its `with` block only"):
        WorkerPool(toy("Toy"), 1).submit([trial()])
    with pytest.raises(ValueError, match="did you mean 'Toy'"), WorkerPool(toy("Toi"), 1):
        pass
    with pytest.raises(ValueError, match="FileNotFoundError: no data"), WorkerPool(toy("Refuses"), 1):
        pass


def test_an_objective_source_travels():
    source = ObjectiveSource("toy:Toy", {"folder": "."}, ("/a",))
    assert pickle.loads(pickle.dumps(source)) == source


# ---- the coordinator's own end ----

SCRIPT = """
import sys, time
from tuner.execution import WorkerPool
from tuner.objective import ObjectiveSource
from tuner.scale import Scale
from tuner.trial import Trial

def train(params, scale, seed):
    return params["lr"]

def main():
    source = train if {own} else ObjectiveSource("toy:Toy", {{"folder": sys.argv[1]}}, (sys.argv[1],))
    with WorkerPool(source, 2) as pool:
        print("open", flush=True)
        trial = Trial(0, {{"lr": 0.1, "do": "{do}"}}, Scale(width=8), 0)
        print(*(future.result() for future in [pool.submit([trial]), pool.submit([trial])]))

{guard}main()
"""
TORCH = "def set_num_threads(number): pass"
GUARD = "if __name__ == '__main__': "


@pytest.fixture
def coordinator(toy, tmp_path):
    """Starts a script that is a coordinator, in a session of its own; `torch` is a stand-in for it, if given."""
    started = []

    def start(do="nothing", guard=GUARD, own=False, torch=TORCH):
        if torch:
            (tmp_path / "torch.py").write_text(torch)
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(do=do, guard=guard, own=own))
        command = [sys.executable, "-W", "error", str(script), str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def family(process):
    """Processes of the coordinator's session: itself, workers, the server they are forked from, helpers."""
    stats = [path.read_text().rpartition(")") for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [int(head.split()[0]) for head, _, tail in stats if int(tail.split()[3]) == process.pid]


def test_a_killed_coordinator_leaves_no_process_behind(coordinator, tmp_path):
    process = coordinator(do="sleeps", torch=None)
    workers = sleeping(tmp_path)
    assert set(workers) < set(family(process))
    process.kill()
    process.wait()
    assert until(lambda: not any(map(alive, workers)), 5)
    assert until(lambda: not family(process), 5)


def end_by_ctrl_c(process):
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the family
    _, errors = process.communicate(timeout=10)
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert errors.count("Traceback") == 1, errors


def test_ctrl_c_ends_a_coordinator_and_its_workers_at_once(coordinator, tmp_path):
    process = coordinator(do="sleeps")
    assert sleeping(tmp_path)
    end_by_ctrl_c(process)
    assert until(lambda: not family(process), 5)


def test_ctrl_c_ends_a_coordinator_whose_workers_are_still_starting(coordinator, tmp_path):
    slow = "import pathlib, time; pathlib.Path(__file__).with_name('1.pid').touch(); time.sleep(1)"
    process = coordinator(torch=f"{slow}\n{TORCH}")
    assert sleeping(tmp_path, 1)
    end_by_ctrl_c(process)
    assert until(lambda: not family(process), 5)


def test_a_guarded_script_may_train_its_own_function_and_an_unguarded_one_is_told_to_guard(coordinator):
    out, errors = coordinator(own=True).communicate(timeout=30)
    assert out.count("Result(loss=0.1") == 2
    assert errors == ""
    process = coordinator(own=True, guard="")
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "exit code 1) while starting; a worker imports this script" in errors.splitlines()[-1]
    assert "open" not in out
