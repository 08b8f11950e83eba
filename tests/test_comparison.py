"""Claims about the live comparison: every run is charged, answers are scored on fresh seeds, the table adds up."""

import io
import json

import pytest
from rich.console import Console

from tuner.comparison import FRESH, compare_live
from tuner.report.terminal import comparison
from tuner.studyfile import read

FILE = """
[study]
name = "ridge"
[objective]
call = "objectives.ridge:RandomFeatures"
[scale]
target = { width = 512 }
proxies = { width = [64, 128] }
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    path = tmp_path_factory.mktemp("compare") / "study.toml"
    path.write_text(FILE)
    said = []
    names = ["transfer", "random", "copy"]
    told = compare_live(read(path), names, range(2), budget=0.2, direct=3, answers=3, workers=2, said=said.append)
    assert [p.name for p in path.parent.iterdir()] == ["study.toml"]  # no record is made
    return told, said


def test_no_method_exceeds_its_budget(compared):
    for name, limit in (("transfer", 0.2), ("random", 3.0), ("copy", 0.2)):
        for entry in compared[0][name]["seeds"]:
            assert entry["trace"][-1]["target_runs"] <= limit * (1 + 1e-9)
            assert [line["trials"] for line in entry["trace"]] == list(range(1, len(entry["trace"]) + 1))


def test_answers_are_scored_by_fresh_runs_and_the_best_has_no_regret(compared):
    finals = []
    for told in compared[0].values():
        for entry in told["seeds"]:
            assert len(entry["fresh_losses"]) == FRESH
            last = entry["trace"][-1]
            assert last["loss"] == pytest.approx(sum(entry["fresh_losses"]) / FRESH)
            finals.append(last)
    everything = [line for told in compared[0].values() for entry in told["seeds"] for line in entry["trace"]]
    assert min(line["regret"] for line in everything if line["regret"] is not None) == 0.0
    assert all(line["regret"] >= 0 for line in finals)


def test_a_copy_is_shown_at_the_proxy_that_favours_it(compared):
    told, said = compared
    assert told["copy"]["variant"] in ("copy @ width 64", "copy @ width 128")
    assert sum("copy @" in line for line in said) == 4
    assert [told[name]["verification"] for name in ("transfer", "random", "copy")] == [1.0, 0.0, 1.0]


def test_the_table_names_every_method_and_json_holds_all(compared):
    told = compared[0]
    assert json.loads(json.dumps(told)) == told
    console = Console(file=io.StringIO(), width=160)
    console.print(comparison(told))
    text = console.file.getvalue()
    assert all(name in text for name in ("transfer", "random", "copy @ width"))
    assert "cost to reach" in text
