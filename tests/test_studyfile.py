"""Claims about the study file: what is read is what is written, and every error is one line with law, value, remedy."""

import re

import pytest

from tuner.scale import Scale
from tuner.space import Categorical, Float, Int
from tuner.studyfile import read

WHOLE = """
[study]
name = "llm"
storage = "sqlite:///runs/llm.db"
seed = 3
[objective]
call = "objectives.mlp:DigitsMLP"
args = { parametrization = "mup-adamw", steps = 5 }
cost = "seconds"
[space]
lr = { low = 1e-4, high = 3e-2, log = true }
batch_size = { low = 32, high = 4096, log = true, type = "int" }
schedule = { choices = ["cosine", "constant", 3, 0.5, true] }
wd = { low = 0, high = 1.0, role = "weight_decay" }
[scale]
target = { width = 1024, depth = 4, tokens = 5e10 }
proxies = { width = [32, 64], depth = 2, tokens = { low = 2e9, high = 8e9 } }
base = { width = 64, depth = 2, tokens = 2e9 }
[parametrization]
preset = "mup-adamw"
exponents = { lr = { depth = -0.5 } }
[budget]
target_runs = 1
tolerance = 0.001
retries = 0
verify = false
"""

LEAST = """
[study]
name = "llm"
[objective]
call = "train:loss"
[scale]
target = { width = 1024 }
proxies = { width = [32, 64] }
"""


@pytest.fixture
def written(tmp_path):
    """Reads a text as a study file."""

    def parse(text):
        (tmp_path / "study.toml").write_text(text)
        return read(tmp_path / "study.toml")

    return parse


def test_every_key_of_the_contract_is_read(written, tmp_path):
    file = written(WHOLE)
    assert (file.study.name, file.study.seed) == ("llm", 3)
    assert (file.objective.call, file.objective.cost) == ("objectives.mlp:DigitsMLP", "seconds")
    assert file.objective.args == {"parametrization": "mup-adamw", "steps": 5}
    assert dict(file.search_space) == {
        "lr": Float(1e-4, 3e-2, log=True),
        "batch_size": Int(32, 4096, log=True),
        "schedule": Categorical(("cosine", "constant", 3, 0.5, True)),
        "wd": Float(0, 1.0, role="weight_decay"),
    }
    assert list(map(type, file.search_space["schedule"].choices)) == [str, str, int, float, bool]
    assert (file.parametrization.preset, file.parametrization.exponents) == ("mup-adamw", {"lr": {"depth": -0.5}})
    assert file.budget.model_dump() == {"target_runs": 1.0, "tolerance": 0.001, "retries": 0, "verify": False}


def test_lists_ranges_and_single_values_multiply(written):
    proxies = written(WHOLE).scale.proxy_scales()
    assert len(proxies) == 2 * 1 * 3
    assert set(proxies) == {Scale(width=w, depth=2, tokens=t) for w in (32, 64) for t in (2e9, 4e9, 8e9)}


def test_an_axis_only_the_target_names_stays_there(written):
    file = written(LEAST.replace("width = 1024", "width = 1024, depth = 4"))
    assert set(file.scale.proxy_scales()) == {Scale(width=32, depth=4), Scale(width=64, depth=4)}


def test_what_is_left_out_has_its_default(written, tmp_path):
    file = written(LEAST)
    assert file.search_space is None
    assert file.storage == f"sqlite:///{tmp_path}/llm.db"
    assert (file.objective.cost, file.objective.args, file.study.seed) == ("flops", {}, 0)
    assert (file.parametrization.preset, file.parametrization.exponents, file.scale.base) == (None, {}, None)
    assert file.budget.model_dump() == {"target_runs": 0.25, "tolerance": None, "retries": 2, "verify": True}


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("sqlite:///runs/llm.db", "sqlite:///{}/runs/llm.db"),
        ("sqlite:////var/llm.db", "sqlite:////var/llm.db"),
        ("postgresql://host/db", "postgresql://host/db"),
    ],
)
def test_a_relative_sqlite_file_is_beside_the_study_file(written, tmp_path, given, means):
    file = written(LEAST.replace('name = "llm"', f'name = "llm"\nstorage = "{given}"'))
    assert file.storage == means.format(tmp_path)


def test_a_study_file_is_found_from_any_folder(written, tmp_path, monkeypatch):
    written(LEAST)
    monkeypatch.chdir(tmp_path)
    assert read("study.toml").storage == f"sqlite:///{tmp_path}/llm.db"


LINES = {  # what replaces which line of LEAST, or is added, and what is said then
    "typo of a section": ("[objective]", "[objectve]", "unknown key 'objectve'; did you mean 'objective'?"),
    "typo of a key": ('name = "llm"', 'name = "llm"\nsede = 1', "unknown key 'study.sede'; did you mean 'seed'?"),
    "typo in a range": (
        None,
        "[space]\nlr = { low = 1, hihg = 2 }",
        "unknown key 'space.lr.hihg'; did you mean 'high'?",
    ),
    "typo in the budget": (
        None,
        "[budget]\ntarget_run = 1",
        "unknown key 'budget.target_run'; did you mean 'target_runs'",
    ),
    "path": ("[study]", "path = 1\n[study]", "unknown key 'path'; known: 'study'"),
    "no name": ('name = "llm"', "", "'study.name' is missing; add it"),
    "no objective": ('[objective]\ncall = "train:loss"', "", "[objective] or [runs] is missing; add what"),
    "recorded runs": (None, '[runs]\npath = "x.csv"', "'runs.cost' is missing; add it"),
    "section not a table": ('[study]\nname = "llm"', "study = 3", "study: must be a table, got 3; correct it"),
    "range not a table": (None, "[space]\nlr = 3", "space.lr: must be a table, got 3; correct it"),
    "target not a table": ("{ width = 1024 }", "1024", "scale.target: must be a table, got 1024; correct it"),
    "low a string": (
        None,
        "[space]\nlr = { low = 'a', high = 1 }",
        "space.lr.low: must be a number, got 'a'; correct it",
    ),
    "high a boolean": (None, "[space]\nlr = { low = 0, high = true }", "space.lr.high: must be a number, got True"),
    "budget a boolean": (None, "[budget]\ntarget_runs = true", "budget.target_runs: must be a number, got True"),
    "budget a string": (
        None,
        "[budget]\ntolerance = '0.1'",
        "budget.tolerance: must be a relative regret above zero, or",
    ),
    "log choices": (
        None,
        "[space]\nlr = { choices = [1, 2], log = true }",
        "space.lr: log and type are of a range; leave them out beside choices",
    ),
    "record in memory": (
        'name = "llm"',
        'name = "llm"\nstorage = "sqlite:///:memory:"',
        "study: storage must be on disk, so that the study can be resumed; name a file or leave it out",
    ),
    "no high": (None, "[space]\nlr = { low = 0 }", "space.lr: give either low and high, or choices, got {'low': 0}"),
    "low and choices": (
        None,
        "[space]\nlr = { low = 0, choices = [1, 2] }",
        "space.lr: give either low and high, or ch",
    ),
    "choice a list": (
        None,
        "[space]\nlr = { choices = [1, [2]] }",
        "space.lr.choices.1: must be a string, a number or a",
    ),
    "one choice": (None, "[space]\nlr = { choices = [1] }", "space.lr: Categorical: at least two choices are needed"),
    "low above high": (
        None,
        "[space]\nlr = { low = 2, high = 1 }",
        "space.lr: Float: low must be below high, got low=2",
    ),
    "log at zero": (
        None,
        "[space]\nlr = { low = 0, high = 1, log = true }",
        "space.lr: Float: a log range must stay above",
    ),
    "infinite bound": (None, "[space]\nlr = { low = 0, high = inf }", "space.lr: Float: bounds must be finite"),
    "fraction of an int": (
        None,
        "[space]\nb = { low = 0.5, high = 2, type = 'int' }",
        "space.b: Int: bounds must be int",
    ),
    "unknown type": (None, "[space]\nb = { low = 0, high = 2, type = 'integer' }", "'float' or 'int', got 'integer'"),
    "proxy a string": ("[32, 64]", "'a'", "scale.proxies.width: must be a number, a list of numbers, or { low = ..,"),
    "proxy in a list": ("[32, 64]", "[32, 'a']", "scale.proxies.width: must be a number, a list of numbers, or { low"),
    "half a range": (
        "[32, 64]",
        "{ low = 32 }",
        "scale.proxies.width: a range has exactly low and high, got {'low': 32}",
    ),
    "seed negative": (
        'name = "llm"',
        'name = "llm"\nseed = -1',
        "study.seed: Input should be greater than or equal to 0",
    ),
    "seed a fraction": (
        'name = "llm"',
        'name = "llm"\nseed = 0.5',
        "study.seed: Input should be a valid integer, got 0.5",
    ),
    "name empty": ('"llm"', '""', "study.name: String should have at least 1 character, got ''"),
    "budget zero": (None, "[budget]\ntarget_runs = 0", "budget.target_runs: Input should be greater than 0, got 0"),
    "budget nan": (None, "[budget]\ntarget_runs = nan", "budget.target_runs: Input should be greater than 0, got nan"),
    "retries negative": (
        None,
        "[budget]\nretries = -1",
        "budget.retries: Input should be greater than or equal to 0, got",
    ),
    "verify a string": (None, "[budget]\nverify = 'no'", "budget.verify: Input should be a valid boolean, got 'no'"),
    "cost unknown": ('call = "train:loss"', 'call = "train:loss"\ncost = "euro"', "'flops' or 'seconds', got 'euro'"),
    "not TOML": ("[study]", "[study", "study.toml' is not TOML: "),
}


@pytest.mark.parametrize(("old", "new", "said"), LINES.values(), ids=LINES.keys())
def test_a_bad_study_file_is_one_line_that_says_what_is_wrong(written, old, new, said):
    assert old is None or old in LEAST
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        written(LEAST + new if old is None else LEAST.replace(old, new)).search_space  # noqa: B018
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"study file: 'nowhere.toml' cannot be read: No such file.*; check the path"):
        read("nowhere.toml")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "study.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not TOML"):
        read(tmp_path / "study.toml")


@pytest.mark.parametrize(
    ("proxies", "message"),
    [
        ("{}", r"scale.proxies: at least one axis is needed, got none; write for example \{ width = \[64\] \}"),
        ("{ width = { low = 64, high = 32 } }", "a range needs 0 < low < high, got low=64, high=32; correct it"),
        ("{ width = [0] }", "width must be a finite number above zero, got 0; correct it"),
    ],
)
def test_proxies_that_are_no_scales_are_refused(written, proxies, message):
    file = written(LEAST.replace("{ width = [32, 64] }", proxies))
    with pytest.raises(ValueError, match=message):
        file.scale.proxy_scales()
