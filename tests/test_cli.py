"""Claims about the command line: what goes where, which status, and nothing left behind by bad input."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tuner.cli import main
from tuner.opening import open_study
from tuner.studyfile import read


def tuner(*arguments):
    """The command, in this process."""
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


PRINTING = """
print("a module that talks")


class Printing(Bowl):
    def __call__(self, params, scale, seed):
        print("step 1, loss 2.3")
        return super().__call__(params, scale, seed)
"""
CONTRACT = {"target", "recommendation", "interval", "loss", "expected_regret", "verdict", "reasons", "spent", "trials"}


def test_run_tells_one_object_of_the_contract_and_predict_the_same_without_a_ledger(bowl):
    path = bowl()
    ran = tuner("run", path, "--workers", 0, "--json")
    assert ran.exit_code == 0, ran.stderr
    told = json.loads(ran.stdout)  # one object and nothing else
    assert ran.stdout.count("\n") == 1
    assert CONTRACT | {"ledger"} <= set(told)
    assert told["target"] == {"width": 256}
    assert told["spent"] == {"cost": 3 * 32.0**2, "target_runs": 3 / 64}
    assert told["trials"] == 3
    assert set(told["loss"]) == {"mean", "sd"}
    low, high = told["interval"]["lr"]
    assert low <= told["recommendation"]["lr"] <= high
    assert told["verdict"] in {"transfer", "corrected", "direct", "undetermined"}
    ledger = told.pop("ledger")
    assert ledger["search"] == told["spent"]
    assert ledger["verification"]["cost"] == 256.0**2
    assert ledger["verification"]["loss"] > 1 + 4 / 256  # the bottom of the bowl
    assert ledger["stopped"] == "budget"

    predicted = tuner("predict", path, "--json")
    assert predicted.exit_code == 0, predicted.stderr
    assert json.loads(predicted.stdout) == told

    again = tuner("run", path, "--workers", 0, "--json")  # all is spent: nothing is run, the same is told
    assert json.loads(again.stdout) == {**told, "ledger": ledger}
    assert files(path.parent) == ["bowl.db", "bowl.py", "study.toml"]


def test_a_search_in_which_everything_diverged_has_a_bill_a_verdict_and_no_answer(bowl):
    ran = tuner("run", bowl(("bowl:Bowl", "bowl:Diverging")), "--workers", 0, "--json")
    assert ran.exit_code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert (told["verdict"], told["recommendation"], told["trials"]) == ("undetermined", {}, 3)
    assert told["ledger"]["verification"] is None
    assert "all 3 runs that finished diverged: lower the ranges of the space" in ran.stderr


@pytest.mark.parametrize("workers", ["0", "1"])
def test_what_training_prints_is_not_on_standard_output(bowl, workers):
    path = bowl()
    module = path.parent / "bowl.py"
    module.write_text(module.read_text() + PRINTING)
    path.write_text(path.read_text().replace("bowl:Bowl", "bowl:Printing"))
    command = [sys.executable, "-m", "tuner.cli", "run", str(path), "--workers", workers, "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=path.parent)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["trials"] == 3
    assert "step 1, loss" in ran.stderr


def test_without_json_standard_output_is_empty_and_the_answer_is_on_standard_error(bowl):
    ran = tuner("run", bowl(), "--workers", 0, "--budget", 2 / 64, "--no-verify")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout == ""
    assert "Recommended at width 256" in ran.stderr
    assert "verification" not in ran.stderr


def test_a_verification_that_breaks_is_told_and_the_answer_stands(bowl):
    path = bowl(("bowl:Bowl", "bowl:Broken"))
    with open_study(read(path)) as study:
        study.tell(study.ask(), loss=1.0)
    ran = tuner("run", path, "--workers", 0, "--json", "--budget", 1 / 64)
    assert ran.exit_code == 0, ran.stderr
    assert "the verification broke: RuntimeError: no data here" in ran.stderr
    assert json.loads(ran.stdout)["ledger"]["verification"] == {"cost": 3 * 256.0**2, "loss": None}  # every attempt


def test_break_even_is_told_from_assumptions_before_any_run_and_from_the_runs_once_they_show_it(bowl):
    path = bowl(("[32, 64]", "[16, 24, 32]"), ("0.046875", "0.3"))
    before = files(path.parent)
    assumed = tuner("breakeven", path, "--json", "--budget", 2, "--assume", "alpha=0.4")
    assert assumed.exit_code == 0, assumed.stderr
    assert files(path.parent) == before
    told = json.loads(assumed.stdout)
    assert told["origin"].startswith("assumed: ")
    assert told["constants"]["alpha"] == {"median": 0.4, "interval": [0.4, 0.4]}
    assert told["constants"]["r"] == pytest.approx(2)
    assert [(p["scale"]["width"], p["cost"], p["runs"]) for p in told["proxies"]] == [
        (width, pytest.approx((width / 256) ** 2), pytest.approx(2 * (256 / width) ** 2)) for width in (16, 24, 32)
    ]
    assert told["best_proxy"]["width"] in (16, 24, 32)
    for row in told["proxies"]:
        assert row["regret"]["median"] == pytest.approx(row["bias"]["median"] + row["search_error"]["median"], rel=0.3)
    assert "direct tuning loses less" in assumed.stderr
    ran = tuner("run", path, "--workers", 0, "--no-verify", "--json")
    assert ran.exit_code == 0, ran.stderr
    found = tuner("breakeven", path, "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["origin"].startswith("measured from the runs")
    assert json.loads(found.stdout)["budget"] == 0.3  # the study file's


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["predict", "-h"], ["compare", "-h"], ["--version"]]
)
def test_help_needs_no_torch(arguments):
    script = (
        "import sys\n"
        "from tuner.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit as left: assert not left.code\n"
        "assert not {'torch', 'optuna', 'numpy'} & set(sys.modules), 'too much is imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_import_tuner_needs_no_torch():
    script = "import sys, tuner; tuner.Float, tuner.Scale; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- bad input


BAD_FILES = {  # what of the study file is replaced; then law, value and remedy
    "unknown key": (("target_runs", "target_run"), "unknown key 'budget.target_run'; did you mean 'target_runs'?"),
    "low above high": (
        ("[scale]", "[space]\nlr = { low = 2, high = 1 }\n[scale]"),
        "space.lr: Float: low must be below high, got low=2, high=1; widen the range",
    ),
    "low is high": (
        ("[scale]", "[space]\nlr = { low = 1, high = 1 }\n[scale]"),
        "space.lr: Float: low must be below high, got low=1, high=1; widen the range",
    ),
    "log at zero": (
        ("[scale]", "[space]\nlr = { low = 0, high = 1, log = true }\n[scale]"),
        "space.lr: Float: a log range must stay above zero, got low=0; raise low or set log=false",
    ),
    "not its hyperparameter": (
        ("[scale]", "[space]\nlrr = { low = 0, high = 1 }\n[scale]"),
        "space: the objective has no hyperparameter 'lrr'; did you mean 'lr'?",
    ),
    "target below": (
        ("width = 256", "width = 48"),
        "every proxy must cost less than the target (width 48), got one at width 64; raise the target or drop that pr",
    ),
    "target is a proxy": (("width = 256", "width = 64"), "every proxy must cost less than the target (width 64)"),
    "no proxies": (("[32, 64]", "[]"), "at least one proxy is needed, got none; add a smaller scale"),
    "width zero": (("[32, 64]", "[0, 64]"), "Scale: width must be a finite number above zero, got 0; correct it"),
    "another axis": (
        ("width = 256", "widht = 256"),
        "every scale must name the target's axes ['widht'], got ['widht',",
    ),
    "no such module": (
        ("bowl:Bowl", "bwol:Bowl"),
        "objective: 'bwol' cannot be imported (ModuleNotFoundError: No module",
    ),
    "no such attribute": (
        ("bowl:Bowl", "bowl:Bowel"),
        "'bowl:Bowel' names nothing, 'Bowel' is not there; did you mean",
    ),
    "no module": (("bowl:Bowl", "Bowl"), "a name is 'module:attribute', got 'Bowl'; write for example"),
    "not callable": (
        ("bowl:Bowl", "bowl:number"),
        "must be callable as (params, scale, seed), got a int; name a function",
    ),
    "bad args": (
        ('"bowl:Bowl"', '"bowl:Bowl"\nargs = { slep = 1 }'),
        "'bowl:Bowl' refuses args {'slep': 1} (TypeError: Bowl.__init__() got an unexpected keyword argument 'slep')",
    ),
    "needs a file": (
        ("bowl:Bowl", "bowl:Needy"),
        "'bowl:Needy' refuses args {} (FileNotFoundError: no data); give it what it needs",
    ),
    "no URL": (
        ('name = "bowl"', 'name = "bowl"\nstorage = "bowl"'),
        "must be a database URL, got 'bowl'; write sqlite:///",
    ),
    "no folder": (
        ('name = "bowl"', 'name = "bowl"\nstorage = "sqlite:///there/b.db"'),
        "there' does not exist; create it or change the URL",
    ),
    "no database": (
        ('name = "bowl"', 'name = "bowl"\nstorage = "sqlite:///bowl.py"'),
        "cannot be opened: file is not a database; check the URL and its permissions",
    ),
    "no driver": (
        ('name = "bowl"', 'name = "bowl"\nstorage = "postgresql+pg8000://host/db"'),
        "install the database's driver, or use sqlite:///study.db",
    ),
    "preset": (
        ("[budget]", "[parametrization]\npreset = 'mup'\n[budget]"),
        "no preset is named 'mup'; did you mean 'mup-sgd'?",
    ),
    "budget": (("0.046875", "-1"), "budget.target_runs: Input should be greater than 0, got -1; correct it"),
    "recorded runs": (("[budget]", "[runs]\npath = 'x.csv'\n[budget]"), "'runs.cost' is missing; add it"),
    "no such table": (
        ("[budget]", "[runs]\npath = 'x.csv'\ncost = 'flops'\n[budget]"),
        "[space] is needed with [runs]",
    ),
    "not TOML": (("[budget]", "[budget"), "is not TOML"),
}


def refused(done, folder, before, said):
    """Status 2, exactly one line, which says that; and no new file."""
    assert done.exit_code == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert files(folder) == before


@pytest.mark.parametrize("command", ["run", "predict", "breakeven"])
@pytest.mark.parametrize(("replaced", "said"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_study_file_is_one_line_status_2_and_no_litter(bowl, command, replaced, said):
    path = bowl(replaced)
    before = files(path.parent)
    done = tuner(command, path, "--json")
    if command == "predict" and "has no study" in done.stderr:  # which comes before what only a study would know
        said = "has no study 'bowl'; make it with tuner run"
    if command == "breakeven" and "there" in said:
        return  # where a record will be is not looked at before there is one
    refused(done, path.parent, before, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--budget", "0"], "budget: must be a finite number of target runs above zero, got 0.0; correct it"),
        (["run", "--budget=-1"], "budget: must be a finite number of target runs above zero, got -1.0; correct it"),
        (["run", "--budget", "nan"], "budget: must be a finite number of target runs above zero, got nan; correct it"),
        (["run", "--budget", "inf"], "budget: must be a finite number of target runs above zero, got inf; correct it"),
        (["run", "--budget", "0.001"], "must afford a run, of 0.0156 target runs at least, got 0.001; raise it"),
        (["run", "--budget", "much"], "'much' is not a valid float; see tuner --help"),
        (["run", "--workers", "-1"], "-1 is not in the range x>=0; see tuner --help"),
        (["run", "--bugdet", "1"], "No such option '--bugdet'"),
        (["predict"], "has no study 'bowl'; make it with tuner run"),
        (["report"], "has no study 'bowl'; make it with tuner run"),
        (["compare", "-o", "page.html"], "a page is drawn of recorded runs"),
        (["compare", "--seeds", "3"], "seeds: must be A:B with A below B, got '3'; write for example 0:5"),
        (["compare", "--seeds", "3:3"], "seeds: must be A:B with A below B, got '3:3'; write for example 0:5"),
        (["compare", "--seeds", "a:b"], "seeds: must be A:B with A below B, got 'a:b'; write for example 0:5"),
        (["compare", "--seeds=-1:2"], "seeds: must be A:B with A below B, got '-1:2'; write for example 0:5"),
        (["compare", "--budget", "nan"], "budget: must be a finite number of target runs above zero, got nan"),
        (["rnu"], "No such command 'rnu'"),
        (["breakeven", "--budget", "0"], "budget: must be a finite number of target runs above zero, got 0.0"),
        (["breakeven", "--assume", "alpha"], "assume: must be one of alpha, ratio, gap"),
        (["breakeven", "--assume", "alfa=1"], "each once, = and a number, got 'alfa=1'; write for example alpha=0.5"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_bad_argument_is_one_line_status_2_and_no_litter(bowl, arguments, said):
    path = bowl()
    before = files(path.parent)
    refused(tuner(arguments[0], path, *arguments[1:]), path.parent, before, said)


def test_a_missing_study_file_is_named(tmp_path):
    path = tmp_path / "nowhere.toml"
    refused(tuner("run", path), tmp_path, [], f"'{path}' cannot be read: No such file or directory; check the path")


@pytest.mark.parametrize("command", ["run", "predict"])
def test_a_study_file_that_disagrees_with_its_record_is_refused(bowl, command):
    path = bowl()
    with open_study(read(path)) as study:
        study.tell(study.ask(), loss=1.0)
    bowl(("width = 256", "width = 512"))
    said = (
        "resume: target was {'width': 256} when the study was created, got {'width': 512}; "
        "restore it or give the study a new name"
    )
    refused(tuner(command, path), path.parent, ["bowl.db", "bowl.py", "study.toml"], said)


def test_an_objective_that_always_breaks_is_status_2_with_its_error(bowl):
    done = tuner("run", bowl(("bowl:Bowl", "bowl:Broken")), "--workers", 0, "--budget", 1)
    assert done.exit_code == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "error: objective: the first 3 trials broke, the last by RuntimeError: no data here; correct it"
    )


def test_without_a_command_the_help_is_shown():
    assert tuner().exit_code == 2
    assert "Commands:" in tuner().stderr
