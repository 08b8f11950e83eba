"""Claims about the live comparison: every run is charged, answers are scored on fresh seeds, the table adds up."""

import io
import json

import pytest
from rich.console import Console

from objectives.ridge import RandomFeatures
from tuner.comparison import FRESH, FRESH_FROM, compare_live
from tuner.report.terminal import comparison
from tuner.scale import Scale
from tuner.studyfile import read

RIDGE = RandomFeatures()

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
            target, params = Scale(width=512), entry["recommendation"]
            assert entry["fresh_losses"] == [RIDGE(params, target, FRESH_FROM + i).loss for i in range(FRESH)]
            last = entry["trace"][-1]
            assert last["loss"] == pytest.approx(sum(entry["fresh_losses"]) / FRESH)
            finals.append(last)
    everything = [line for told in compared[0].values() for entry in told["seeds"] for line in entry["trace"]]
    assert min(line["regret"] for line in everything if line["regret"] is not None) == 0.0
    assert all(line["regret"] >= 0 for line in finals)


def test_every_run_is_charged_what_it_costs(compared):
    at_target = RIDGE.cost({}, Scale(width=512))
    told = compared[0]
    for entry in told["random"]["seeds"]:
        assert [line["target_runs"] for line in entry["trace"]] == [1.0, 2.0, 3.0]
    proxy = RIDGE.cost({}, Scale(width=int(told["copy"]["variant"].split()[-1]))) / at_target
    for entry in told["copy"]["seeds"]:
        spent = [line["target_runs"] for line in entry["trace"]]
        assert spent == pytest.approx([proxy * (i + 1) for i in range(len(spent))])
    for entry in told["transfer"]["seeds"]:
        low, high = entry["interval"]["ridge"]
        assert low <= entry["recommendation"]["ridge"] <= high


FLAKY = """
from bowl import Bowl
class Once(Bowl):
    broken = False
    def __call__(self, params, scale, seed):
        if not Once.broken:
            Once.broken = True
            raise RuntimeError("no memory")
        return super().__call__(params, scale, seed)
"""


def test_a_run_that_breaks_is_charged_and_tried_again(bowl):
    path = bowl(("bowl:Bowl", "flaky:Once"))
    (path.parent / "flaky.py").write_text(FLAKY)
    told = compare_live(read(path), ["random"], range(1), budget=1, direct=3, answers=1, workers=1)
    (entry,) = told["random"]["seeds"]
    assert [line["target_runs"] for line in entry["trace"]] == [2.0, 3.0]  # the first attempt is in the bill


def test_a_budget_that_affords_no_run_is_refused(bowl):
    with pytest.raises(ValueError, match=r"must afford a run, of 0.0156 target runs at least, got 0.001; raise it"):
        compare_live(read(bowl()), ["transfer"], range(1), budget=0.001, direct=1, answers=1, workers=1)


def test_a_search_whose_runs_all_break_has_no_answer_and_the_others_stand(bowl):
    path = bowl(("bowl:Bowl", "bowl:Broken"))
    said = []
    told = compare_live(read(path), ["random"], range(1), budget=1, direct=9, answers=1, workers=1, said=said.append)
    (entry,) = told["random"]["seeds"]
    assert (entry["trace"], entry["recommendation"]) == ([], None)
    assert "RuntimeError: no data here" in entry["error"]
    assert any("no data here" in line for line in said)
    Console(file=io.StringIO()).print(comparison(told))


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
