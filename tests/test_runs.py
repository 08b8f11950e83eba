"""Recorded runs: a table of a formula whose optimum is known, read, misread, predicted from and replayed."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from tuner.cli import main
from tuner.methods import method
from tuner.opening import open_study, recorded_table
from tuner.replay import Quadratic, Replay
from tuner.scale import Scale
from tuner.studyfile import read

STUDY = """
[study]
name = "table"
[runs]
path = "runs.csv"
cost = "6 * width ** 2"
[space]
lr = {{ low = 1e-4, high = 1e-1, log = true }}
{more}
[scale]
target = {{ width = 512 }}
{scale}
[budget]
target_runs = 0.3
"""

COLUMNS = ["width", "lr", "loss"]


def loss(lr, width):
    """Best at lr = 0.1 / width ** 0.5; the loss there falls as width ** -0.4."""
    return 1 + width**-0.4 + 0.05 * math.log(lr * width**0.5 / 0.1) ** 2


def rows(widths=(32, 64, 128, 512), count=13):
    return [(w, float(lr), loss(lr, w)) for w in widths for lr in np.geomspace(1e-4, 1e-1, count).round(9)]


def written(folder, table=None, columns=COLUMNS, more="", scale="", **replaced):
    """A table and its study file."""
    text = STUDY.format(more=more, scale=scale)
    for old, new in replaced.items():
        text = text.replace(*new) if isinstance(new, tuple) else text.replace(old, new)
    with open(folder / "runs.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *(rows() if table is None else table)])
    path = folder / "table.toml"
    path.write_text(text)
    return path


def table_of(path):
    return recorded_table(read(path))


def refused(path):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        table_of(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# Reading


def test_rows_are_runs_by_the_columns_of_the_study_file(tmp_path):
    table = table_of(written(tmp_path))
    assert len(table.runs) == 52
    first = table.runs[0]
    assert (first.params, first.scale, first.cost) == ({"lr": 1e-4}, Scale(width=32), 6 * 32**2)
    assert first.loss == pytest.approx(loss(1e-4, 32))
    assert table.scales == tuple(Scale(width=w) for w in (32, 64, 128, 512))


def test_parquet_reads_like_csv(tmp_path):
    path = written(tmp_path)
    plain = table_of(path)
    columns = dict(zip(COLUMNS, map(list, zip(*rows(), strict=True)), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "runs.parquet")
    path.write_text(path.read_text().replace("runs.csv", "runs.parquet"))
    assert table_of(path).runs == plain.runs


def test_missing_cells_and_values_outside_the_space_are_dropped_and_counted(tmp_path):
    table = table_of(
        written(tmp_path, [*rows(), ("", 1e-3, 2.0), (64, "", 2.0), (64, 1e-3, ""), (64, 0.5, 2.0), (64, 0, 2)])
    )
    assert len(table.runs) == 52
    assert table.dropped == {"with a missing value": 3, "outside the space": 2}


def test_losses_that_are_not_finite_or_said_so_diverged(tmp_path):
    more = [(64, 2e-3, "nan"), (64, 3e-3, "inf"), (64, 4e-3, 99.0)]
    path = written(tmp_path, [*rows(), *more], replaced=('cost = "6', 'diverged = "loss > 10"\ncost = "6'))
    assert [run.loss for run in table_of(path).runs[-3:]] == [math.inf] * 3


def test_a_table_where_everything_diverged_has_a_verdict_and_no_answer(tmp_path):
    path = written(tmp_path, [(w, lr, "inf") for w, lr, _ in rows()])
    ran = CliRunner().invoke(main, ["predict", str(path), "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert (told["verdict"], told["recommendation"], told["loss"]["mean"]) == ("undetermined", {}, None)
    assert told["reasons"] == ["all 52 runs that finished diverged: lower the ranges of the space"]
    assert "Nothing can be recommended at width 512: undetermined" in ran.stderr


def test_where_keeps_rows_without_counting_the_others_as_dropped(tmp_path):
    path = written(tmp_path, replaced=('cost = "6', 'where = "width < 100"\ncost = "6'))
    table = table_of(path)
    assert {run.scale["width"] for run in table.runs} == {32, 64}
    assert not table.dropped


def test_scales_within_a_hundredth_are_one(tmp_path):
    near = [(w * 1.004, lr, y) for w, lr, y in rows((512,))]
    table = table_of(written(tmp_path, [*rows((32, 64)), *near], scale="proxies = { width = [32.2, 64] }"))
    assert {run.scale["width"] for run in table.runs} == {32.2, 64, 512}


def test_choices_and_integers_of_a_table(tmp_path):
    more = 'schedule = { choices = ["cosine", "2"] }\nbatch = { low = 8, high = 64, type = "int", log = true }'
    table = [
        (*row, kind, batch) for row in rows() for kind, batch in (("cosine", 16), ("2", "32.0"), ("odd", 8), ("2", 8.5))
    ]
    read_in = table_of(written(tmp_path, table, [*COLUMNS, "schedule", "batch"], more))
    assert {(run.params["schedule"], run.params["batch"]) for run in read_in.runs} == {("cosine", 16), ("2", 32)}
    assert read_in.dropped == {"with a value that the space cannot have": 104}


def test_a_choice_is_matched_as_it_is_written(tmp_path):
    more = 'kind = { choices = ["true", "01", "1e3"] }\nflag = { choices = [true, false] }'
    table = [
        (*row, kind, flag)
        for row in rows()
        for kind, flag in (("True", "false"), ("01", "TRUE"), ("1e3", "0"), ("1", 1))
    ]
    read_in = table_of(written(tmp_path, table, [*COLUMNS, "kind", "flag"], more))
    said = {(run.params["kind"], run.params["flag"]) for run in read_in.runs}
    assert said == {("true", False), ("01", True), ("1e3", False)}


def test_a_run_that_the_file_says_diverged_needs_no_loss(tmp_path):
    table = [*((*row, "ok") for row in rows()), (64, 3e-2, "", "crashed"), (64, 2e-2, "", "ok")]
    said = ('cost = "6', 'diverged = "status == \'crashed\'"\ncost = "6')
    read_in = table_of(written(tmp_path, table, [*COLUMNS, "status"], replaced=said))
    assert read_in.runs[-1].params == {"lr": 3e-2}
    assert read_in.runs[-1].loss == math.inf
    assert read_in.dropped == {"with a missing value": 1}


def test_a_condition_without_a_value_drops_the_row_and_counts_it(tmp_path):
    table = [*((*row, 1) for row in rows()), (64, 3e-2, 1.0, "")]
    read_in = table_of(
        written(tmp_path, table, [*COLUMNS, "kept"], replaced=('cost = "6', 'where = "kept > 0"\ncost = "6'))
    )
    assert len(read_in.runs) == 52
    assert read_in.dropped == {"with a missing value": 1}


def test_the_cost_of_a_scale_without_rows_is_the_expression_or_a_law(tmp_path):
    below = rows((32, 64, 128))
    exact = table_of(written(tmp_path, below))
    assert exact.cost_at(Scale(width=512)) == 6 * 512**2
    law = table_of(
        written(
            tmp_path,
            [(*row, 6 * row[0] ** 2) for row in below],
            [*COLUMNS, "flops"],
            replaced=('"6 * width ** 2"', '"flops"'),
        )
    )
    assert law.cost_at(Scale(width=512)) == pytest.approx(6 * 512**2, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"replaced": ("cost = ", 'loss = "los"\ncost = ')}, "runs.loss: 'los': the table has no column 'los'"),
        ({"replaced": ("6 * width", "6 * widht")}, "did you mean 'width'"),
        ({"replaced": ("6 * width ** 2", "width.real")}, "no column and no expression"),
        ({"replaced": ("6 * width ** 2", "0 * width")}, "a finite number above zero, '0 * width' is 0.0 in row 1"),
        ({"replaced": ("6 * width ** 2", "-width")}, "above zero"),
        ({"replaced": ("runs.csv", "none.csv")}, "cannot be read: No such file"),
        ({"table": rows((32,), 4)}, "at least 5 usable rows are needed, got 4"),
        ({"table": [(w, 1e-3, y) for w, _, y in rows()]}, "space.lr: a hyperparameter must vary, every"),
        ({"table": [*rows(), (-3, 1e-3, 2.0)]}, "row 53: Scale: width must be a finite number above zero, got -3"),
        ({"table": [*rows(), (64, 1e-3, "much")]}, "runs.loss: must be a number, got 'much' in row 53"),
        ({"columns": ["width", "rate", "loss"]}, "runs: the table has no column 'lr'"),
        ({"columns": ["width", "lr", "loss", "loss"]}, "has 'loss' twice"),
        ({"columns": ["width;lr;loss"], "table": []}, "must have commas between its columns"),
        ({"scale": "proxies = { widht = [32] }"}, "scale.proxies: the target has no axis 'widht'; did you"),
        ({"scale": "base = { depth = 2 }"}, "scale.base: the target has no axis 'depth'"),
    ],
)  # fmt: skip
def test_bad_tables_are_one_line(tmp_path, change, said):
    assert said in refused(written(tmp_path, **change))


def test_a_table_is_read_in_bounded_memory(tmp_path):
    import tracemalloc

    path = written(tmp_path, replaced=("cost = ", 'where = "width < 100"\ncost = '))
    with open(tmp_path / "runs.csv", "a") as file:
        file.writelines("4096,0.001,2.5\n" for _ in range(50_000))
    tracemalloc.start()
    assert len(table_of(path).runs) == 26
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_a_file_that_is_no_table_is_refused(tmp_path):
    path = written(tmp_path)
    (tmp_path / "runs.csv").write_bytes(b"")
    assert "has no header" in refused(path)
    (tmp_path / "runs.csv").write_bytes(b"width,lr,loss\n\xff\xfe\n")
    assert "is not CSV in UTF-8" in refused(path)
    path.write_text(path.read_text().replace("runs.csv", "runs.parquet"))
    for broken in (b"PAR1 but not really", b""):
        (tmp_path / "runs.parquet").write_bytes(broken)
        assert "is not Parquet" in refused(path)


# Asking


def called(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_predict_answers_from_the_smaller_rows_alone(tmp_path):
    path = written(tmp_path, [*rows((32, 64, 128)), (64, "", 1.0)])
    done = called("predict", path, "--json")
    assert done.exit_code == 0
    assert "dropped 1 rows with a missing value" in done.stderr
    told = json.loads(done.stdout)
    low, high = told["interval"]["lr"]
    assert low <= 0.1 * 512**-0.5 <= high
    assert low <= told["recommendation"]["lr"] <= high
    assert abs(told["loss"]["mean"] - (1 + 512**-0.4)) < 3 * told["loss"]["sd"]
    assert told["trials"] == 39
    assert told["spent"]["cost"] == pytest.approx(13 * 6 * (32**2 + 64**2 + 128**2))
    assert told["verdict"] == "undetermined"
    assert not list(tmp_path.glob("*.db"))


def test_replay_never_reads_the_target_while_proposing(tmp_path):
    honest = Replay.of(read(written(tmp_path))).run(method("transfer"), 0, 0.03)
    upside_down = [*rows((32, 64, 128)), *((w, lr, 9 - y) for w, lr, y in rows((512,)))]
    lied = Replay.of(read(written(tmp_path, upside_down))).run(method("transfer"), 0, 0.03)
    assert honest["recommendation"] == lied["recommendation"]
    assert [line["target_runs"] for line in honest["trace"]] == [line["target_runs"] for line in lied["trace"]]
    assert honest["trace"][-1]["regret"] < lied["trace"][-1]["regret"]


def test_replay_says_what_the_contract_asks(tmp_path):
    told = json.loads(called("replay", written(tmp_path), "--seeds", "1:3", "--budget", "0.022", "--json").stdout)
    assert [entry["seed"] for entry in told["seeds"]] == [1, 2]
    for entry in told["seeds"]:
        spent = [line["target_runs"] for line in entry["trace"]]
        assert spent == sorted(spent)
        assert spent[-1] <= 0.022
        assert [line["trials"] for line in entry["trace"]] == list(range(1, len(spent) + 1))
        assert entry["trace"][-1]["relative_regret"] == pytest.approx(
            entry["trace"][-1]["regret"] / min(loss(lr, 512) for _, lr, _ in rows((512,)))
        )
        assert set(entry["covered"]) == {"lr"}
        assert entry["seconds_per_proposal"] > 0
    assert set(told["summary"]) == {"relative_regret", "smooth_relative_regret", "coverage"}


def test_replay_says_what_it_dropped(tmp_path):
    done = called("replay", written(tmp_path, [*rows(), (64, "", 1.0)]), "--budget", "0.004", "--json")
    assert "dropped 1 rows with a missing value" in done.stderr
    assert len(json.loads(done.stdout)["seeds"][0]["trace"]) == 1


def test_replicates_are_taken_one_at_a_time(tmp_path):
    twice = [row for row in rows((32, 512), 3) for _ in range(2)]
    replay = Replay.of(read(written(tmp_path, twice)))
    trace = replay.run(method("transfer"), 0, 1.0)["trace"]
    assert len(trace) == 6


def test_compare_on_a_table_runs_every_method(tmp_path):
    names = "transfer,optuna-tpe,optuna-gp,random,copy,copy-raw"
    done = called(
        "compare",
        written(tmp_path),
        "--methods",
        names,
        "--direct",
        "3",
        "--budget",
        "0.02",
        "--json",
        "-o",
        tmp_path / "page.html",
    )
    assert done.exit_code == 0
    told = json.loads(done.stdout)["methods"]
    assert list(told) == names.split(",")
    for name in ("optuna-tpe", "optuna-gp", "random"):
        assert [line["target_runs"] for line in told[name]["seeds"][0]["trace"]] == [1, 2, 3]
    assert told["copy"]["variant"].startswith("copy @ width")
    page = (tmp_path / "page.html").read_text()
    drawn = json.loads(page.partition('id="figures">')[2].partition("</script>")[0])
    named = {trace.get("name") for trace in drawn[0]["data"]} - {None}
    assert named == {entry["variant"] for entry in told.values()}
    assert drawn[0]["layout"]["xaxis"]["type"] == drawn[0]["layout"]["yaxis"]["type"] == "log"


@pytest.mark.parametrize(
    ("args", "change", "said"),
    [
        (("replay",), {"table": rows((32, 64, 128))}, "rows at width 512 are needed to score"),
        (("compare",), {"table": rows((32, 64, 128))}, "rows at width 512 are needed to score"),
        (("replay",), {"scale": "proxies = { width = [48] }"}, "that the file names"),
        (("replay",), {"table": rows((512, 1024))}, "at a scale cheaper than the target"),
        (("replay", "--budget", "0.001"), {}, "must afford a run"),
        (("run",), {}, "has no [objective] to train"),
        (("predict",), {"table": []}, "at least 5 usable rows are needed, got 0"),
        (("predict",), {"table": rows((512,))}, "a row at a scale other than the target"),
        (("predict",), {"replaced": ("[space]", "[spaec]")}, "unknown key 'spaec'"),
    ],
)  # fmt: skip
def test_what_a_table_cannot_answer_is_one_line_and_status_2(tmp_path, args, change, said):
    done = called(args[0], written(tmp_path, **change), *args[1:])
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert not done.stdout


# Scoring


def test_the_quadratic_finds_its_own_minimum():
    rng = np.random.default_rng(0)
    at, curvature = np.array([0.3, 0.6]), np.array([[2.0, 0.5], [0.5, 1.0]])
    points = rng.random((30, 2))
    losses = 1.7 + 0.5 * np.einsum("ni,ij,nj->n", points - at, curvature, points - at)
    found = Quadratic.fit(points, losses)
    assert found is not None
    np.testing.assert_allclose(found.at, at, atol=1e-9)
    np.testing.assert_allclose(found.curvature, curvature, atol=1e-8)
    assert found.value == pytest.approx(1.7)
    assert found.regret(np.array([0.5, 0.5])) == pytest.approx(0.5 * np.array([0.2, -0.1]) @ curvature @ [0.2, -0.1])


def test_no_quadratic_where_rows_are_few_or_show_no_minimum():
    points = np.random.default_rng(1).random((7, 2))
    assert Quadratic.fit(points, points.sum(1)) is None
    many = np.random.default_rng(1).random((30, 2))
    assert Quadratic.fit(many, -np.square(many).sum(1)) is None
    assert Quadratic.fit(np.repeat(many[:3], 10, 0), np.ones(30)) is None


def test_regret_is_that_of_the_nearest_row_and_replicates_are_averaged(tmp_path):
    table = [*rows((32, 64)), (512, 1e-3, 2.0), (512, 1e-2, 1.0), (512, 1e-2, 1.2), (512, 1e-1, 3.0)]
    truth = Replay.of(read(written(tmp_path, table))).truth
    assert truth.score({"lr": 1.1e-2})["regret"] == 0
    assert truth.score({"lr": 8e-2})["regret"] == pytest.approx(1.9)
    assert truth.score({"lr": 8e-4})["relative_regret"] == pytest.approx(0.9 / 1.1)
    assert truth.score({"lr": 1e-2})["smooth_relative_regret"] is None
    assert truth.told({"lr": (3.3e-2, 5e-2)}, 0.9)["covered"] == {"lr": False}
    beside = truth.told({"lr": (3e-2, 5e-2)}, 0.9)  # half a grid step, half a decade, from the best row
    assert beside["covered"] == {"lr": True}


def test_the_interval_score_is_the_width_and_twenty_times_the_miss(tmp_path):
    table = [*rows((32, 64)), (512, 1e-3, 2.0), (512, 1e-2, 1.0), (512, 1e-1, 3.0)]  # the range: three decades
    truth = Replay.of(read(written(tmp_path, table))).truth
    held, missed = (truth.told({"lr": ends}, 0.9) for ends in ((5e-3, 5e-2), (1e-1, 1.0)))
    assert held["interval_score"]["lr"] == pytest.approx(1 / 3)
    assert missed["interval_score"]["lr"] == pytest.approx(1 / 3 + 20 * 1 / 3)
    assert missed["width"]["lr"] == pytest.approx(1 / 3)


def test_scales_within_a_percent_are_one_named_or_not(tmp_path):
    table = [(w * (1 + 0.003 * (i % 3)), lr, loss) for w in (32, 64, 512) for i, (_, lr, loss) in enumerate(rows((w,)))]
    found = Replay.of(read(written(tmp_path, table)))
    assert len(found.table.scales) == 3


def test_a_flag_is_a_truth_value_however_it_is_written(tmp_path):
    def diverged(cells, flag):
        table = [(*row, cell) for row, cell in zip(rows((32,)), cells * 7, strict=False)]
        path = written(tmp_path, table, [*COLUMNS, "failed"])
        path.write_text(path.read_text().replace("[space]", f'diverged = "{flag}"\n[space]'))
        return sum(math.isinf(run.loss) for run in recorded_table(read(path)).runs)

    count = diverged(["True", "False"], "failed")
    assert count > 0
    assert diverged(["True", "False"], "failed == 'True'") == count
    assert diverged(["1", "0"], "failed") == count
    assert diverged(["1", "0"], "failed == '1'") == count
    with pytest.raises(ValueError, match="must be true or false"):
        diverged(["yes", "no"], "failed")


def test_a_cost_that_cannot_be_computed_is_refused_not_dropped(tmp_path):
    path = written(tmp_path, rows((32, 64)))
    text = path.read_text()
    cost = next(line for line in text.splitlines() if line.startswith("cost"))
    path.write_text(text.replace(cost, 'cost = "width ** 200"'))
    assert "finite number above zero" in refused(path)


def test_choices_that_differ_in_case_are_two(tmp_path):
    table = [(*row, "aA"[i % 2]) for i, row in enumerate(rows((32, 64, 512)))]
    path = written(tmp_path, table, [*COLUMNS, "kind"], 'kind = { choices = ["a", "A"] }')
    assert {run.params["kind"] for run in recorded_table(read(path)).runs} == {"a", "A"}


def test_a_replay_pays_for_replicates_what_each_of_them_costs(tmp_path):
    """A budget is not overspent where replicates of a setting differ in cost."""
    table = [(w, lr, loss, c) for w, lr, loss in rows((32, 512)) for c in ((1, 6, 1) if w == 32 else (10,))]
    path = written(tmp_path, table, [*COLUMNS, "price"])
    text = path.read_text()
    cost = next(line for line in text.splitlines() if line.startswith("cost"))
    path.write_text(text.replace(cost, 'cost = "price"'))
    spent = Replay.of(read(path)).run(method("copy-smallest"), 0, 1.5)["trace"][-1]["target_runs"]
    assert 0 < spent <= 1.5


# With live training


def test_recorded_runs_seed_a_live_study_and_are_not_paid_for(tmp_path, monkeypatch):
    from conftest import BOWL

    (tmp_path / "bowl.py").write_text(BOWL)
    path = written(tmp_path, [(w, lr, 1 + math.log(lr / 1e-2) ** 2 / 10 + 4 / w) for w, lr, _ in rows((32, 64))])
    text = path.read_text().replace("[space]", '[objective]\ncall = "bowl:Bowl"\n[space]')
    path.write_text(text.replace("[scale]", "[scale]\nproxies = { width = [32, 64] }").replace("0.3", "0.02"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with open_study(read(path)) as study:
        assert len(study.observations) == 26
        assert study.spent() == 0
        study.optimize(None, 0.016)
        assert 0 < study.spent() <= 0.016 * study.target_cost
        count = len(study.entries)
        assert all(e.purpose == "recorded" for e in study.entries[:26])
    with open_study(read(path)) as again:
        assert len(again.entries) == count
    with open(tmp_path / "runs.csv", "a") as file:
        file.write("32,0.05,1.5\n")
    with open_study(read(path)) as longer:
        assert len(longer.entries) == count + 1
    (tmp_path / "runs.csv").write_text((tmp_path / "runs.csv").read_text().replace("0.0001", "0.0002"))
    with pytest.raises(ValueError, match="the table no longer has"):
        open_study(read(path))


def test_an_interval_that_ends_at_an_integer_s_bound_holds_a_minimiser_beyond_it(tmp_path):
    more = 'batch = { low = 1, high = 8, type = "int" }'
    table = [
        (w, lr, 1 + w**-0.4 + 0.001 * math.log(lr / 5e-3) ** 2 + 0.0002 * (b - 12) ** 2, b)
        for w in (32, 512) for lr in (1e-3, 2e-3, 5e-3, 1e-2, 2e-2) for b in range(1, 9)
    ]  # fmt: skip
    truth = Replay.of(read(written(tmp_path, table, [*COLUMNS, "batch"], more))).truth
    assert truth.smooth is not None
    assert truth.told({"lr": (1e-3, 1e-2), "batch": (1, 8)}, 0.9)["covered"] == {"lr": True, "batch": True}
    assert truth.told({"lr": (1e-3, 1e-2), "batch": (1, 7)}, 0.9)["covered"]["batch"] is False


def test_the_study_file_of_the_readme_is_one(tmp_path):
    text = (Path(__file__).parent.parent / "README.md").read_text().partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "sweep.toml").write_text(text)
    file = read(tmp_path / "sweep.toml")
    with open(tmp_path / "sweep.csv", "w") as table:
        table.write("params,tokens,lr,batch_size,optimizer,loss\n")
        table.writelines(
            f"{p:g},{d:g},{lr},64,adamw,{3 - lr}\n" for p in (1e8, 2e8) for d in (2e9, 4e9) for lr in (1e-3, 2e-3)
        )
    with pytest.raises(ValueError, match="batch_size: a hyperparameter must vary"):
        recorded_table(file)


def test_a_page_that_cannot_be_written_is_refused_before_any_search(tmp_path):
    done = called("compare", written(tmp_path), "--methods", "random", "-o", tmp_path / "nowhere" / "page.html")
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr
