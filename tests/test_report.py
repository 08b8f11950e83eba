"""The report: one page that needs nothing else, whatever the study looks like."""

import json
import math
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from browser import CHROMIUM, QUIET
from plotly.offline import get_plotlyjs

import tuner
from tuner.engine import landscape, optimum_path
from tuner.errors import BadInput
from tuner.report.figures import View, history_panels, loss_panels, path_panels
from tuner.report.page import page, write
from tuner.report.words import number
from tuner.runs import Run

EVIL = "</script><script>alert('<b>')</script>"


class Page(HTMLParser):
    """What a browser would load and read: resources, scripts, islands, and the text outside of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.resources, self.scripts, self.islands, self.text, self.tags = [], [], {}, "", []
        self._script = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.resources += [v for k, v in attrs if k in ("src", "href", "action", "data", "poster", "srcset")]
        if tag == "script":
            self._script = attributes

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.text += data
        elif self._script.get("type") == "application/json":
            self.islands[self._script["id"]] = json.loads(data)
        else:
            self.scripts.append(data)


def bowl(params, scale, seed):
    """Optimum at lr 0.01, the loss falls with width; too large a rate diverges."""
    away = math.log(params["lr"] / 0.01)
    return math.inf if away > 2 else 1.0 + 2.0 / scale["width"] + 0.1 * away**2 + 1e-3 * math.sin(seed)


def small(**more):
    return tuner.create_study(
        **{
            "space": {"lr": tuner.Float(1e-4, 1.0, log=True)},
            "target": tuner.Scale(width=64),
            "proxies": [tuner.Scale(width=8), tuner.Scale(width=16)],
            "cost": lambda params, scale: math.prod(scale.values()) ** 2,
            "name": "a <study>",
            **more,
        }
    )


def run(study, objective, count):
    for _ in range(count):
        trial = study.ask()
        study.tell(trial, objective(trial.params, trial.scale, trial.seed))


@pytest.fixture(scope="module")
def searched():
    """Six trials, one broken with markup in its message, and a verification run."""
    with small() as study:
        run(study, bowl, 5)
        study.tell(study.ask(), error=f"RuntimeError: {EVIL}")
        study.verify(study.recommend().params, bowl)
        yield study


@pytest.fixture(scope="module")
def text(searched):
    return page(searched)


@pytest.fixture(scope="module")
def read(text):
    return Page(text)


def test_the_page_holds_plotly_once_and_asks_nobody_for_anything(text, read):
    assert text.count(get_plotlyjs()) == 1
    assert [r for r in read.resources if not r.startswith("data:")] == []
    assert "default-src 'none'" in text


def test_the_islands_hold_every_trial_and_the_answer(searched, read):
    trials = read.islands["trials"]
    assert [t["number"] for t in trials] == [e.trial.number for e in searched.entries]
    assert [t["loss"] for t in trials] == [e.loss for e in searched.entries]
    assert read.islands["answer"]["recommendation"] == searched.recommend().params


def test_there_is_a_place_for_every_figure(read):
    assert len(read.islands["figures"]) == read.tags.count("figure") == 4  # loss, path, regret, predicted loss


def test_the_answer_comes_first_and_in_numbers(searched, read):
    rec = searched.recommend()
    for value in (rec.params["lr"], rec.loss, rec.expected_regret, *rec.interval["lr"]):
        assert number(value) in read.text
    assert rec.verdict in read.text
    assert "The verification run measured" in read.text
    assert "direct tuning with 16 runs" in read.text


def test_optima_that_are_nowhere_apart_have_a_page():
    """Of names: the distance of two optima in nats is zero, which no log axis shows."""
    study = tuner.create_study(
        space={"schedule": tuner.Categorical(["cosine", "constant"])},
        target=tuner.Scale(width=256),
        proxies=[tuner.Scale(width=w) for w in (16, 32, 64)],
        cost=lambda params, scale: scale["width"],
    )
    with study:
        runs = [
            Run({"schedule": name}, scale, 1 + scale["width"] ** -0.5 + worse + 1e-3 * k, scale["width"])
            for scale in study.problem.proxies
            for name, worse in (("cosine", 0.0), ("constant", 0.1))
            for k in range(3)
        ]
        study.record.add(study.problem.space, runs)
        assert study.transfer().law is not None
        assert "beta" in page(study)


def test_markup_in_what_a_trial_says_is_only_text(read):
    error = next(t["error"] for t in read.islands["trials"] if t["state"] == "failed")
    assert EVIL in error
    ours = [(Path(tuner.__file__).parent / "report" / name).read_text() for name in ("figures.js", "page.js")]
    assert read.scripts == [get_plotlyjs(), *ours]
    assert "a <study>" in read.text


def test_a_study_whose_runs_all_diverged_says_so():
    with small() as study:
        run(study, lambda *_: math.nan, 4)
        read = Page(page(study))
    assert "all 4 finished runs diverged" in read.text
    assert read.islands["answer"] is None
    assert len(read.islands["trials"]) == 4


def test_a_study_without_a_trial_has_a_page():
    with small() as study:
        read = Page(page(study))
    assert "no run has finished yet" in read.text
    assert read.islands["trials"] == []


def test_a_study_under_way_shows_its_running_trials():
    with small() as study:
        run(study, bowl, 2)
        study.ask()
        read = Page(page(study))
    assert "1 running" in read.text
    assert "No verification run of these values yet." in read.text
    assert read.islands["trials"][-1]["state"] == "running"


@pytest.fixture(scope="module")
def wide():
    """Two axes, a category with markup, an integer, a linear range, exponents; a few huge losses."""
    space = {
        "lr": tuner.Float(1e-3, 1e-1, log=True),
        "batch_size": tuner.Int(8, 64, log=True),
        "schedule": tuner.Categorical(("cosine", "<i>flat</i>")),
        "dropout": tuner.Float(0.0, 0.5),
    }

    def objective(params, scale, seed):
        away = math.log(params["lr"] * scale["width"] / 0.2)
        return 1e9 if seed % 5 == 0 else 1 + away**2 + params["dropout"] + (params["schedule"] != "cosine")

    target = tuner.Scale(width=64, depth=8)
    proxies = [tuner.Scale(width=w, depth=d) for w in (8, 16) for d in (1, 2)]
    with small(space=space, target=target, proxies=proxies, parametrization="mup-adam") as study:
        run(study, objective, 6)
        yield View.of(study)


def test_several_axes_and_a_category_have_a_panel_each_that_plotly_accepts(wide):
    panels, names = [*loss_panels(wide), *path_panels(wide)], list(wide.problem.space)
    assert [panel.title for panel in panels[:4]] == names
    assert {p.title for p in panels[4:]} == {f"{name} over {axis}" for name in names for axis in ("width", "depth")}
    for panel in [*panels, *history_panels(wide)]:
        go.Figure({"data": panel.data, "layout": panel.layout})
        assert "<i>" not in json.dumps([panel.data, panel.layout])


def test_a_huge_loss_stretches_no_axis_and_is_still_marked(wide):
    assert max(wide.losses) == 1e9
    for panel in loss_panels(wide):
        low, high = panel.layout["yaxis"]["range"]
        assert high < 100
        beyond = [t for t in panel.data if t.get("marker", {}).get("symbol") == "triangle-up-open"]
        assert all(low < y < high for trace in beyond for y in trace["y"])
        assert beyond


def test_a_trial_stands_where_the_parametrization_moves_it_to_at_the_target(wide):
    trial = wide.entries[0].trial
    moved = trial.params["lr"] * trial.scale["width"] / wide.problem.target["width"]
    xs = [x for trace in loss_panels(wide)[0].data for x in trace["x"]]
    assert any(x == pytest.approx(moved, rel=1e-9) for x in xs)


def test_the_landscape_at_the_answer_is_its_prediction(searched):
    """Both are means of 512 draws of one posterior: they differ by less than 5 of their standard errors."""
    rec, p = searched.recommend(), searched.problem
    points = p.space.encode(rec.params)[None]
    mean, low, high = landscape(p, searched.observations, points, p.target, seed=searched.seed)
    assert mean[0] == pytest.approx(rec.loss, abs=5 * rec.loss_sd * math.sqrt(2 / 512))
    assert low[0] < mean[0] < high[0]


def test_the_path_of_the_optimum_passes_the_known_optimum(searched):
    """`bowl` has its minimum at lr 0.01 at every width."""
    p = searched.problem
    draws = optimum_path(p, searched.observations, [p.proxies[0], p.target], seed=searched.seed)
    assert draws.shape == (2, 512, 1)
    low, high = np.quantile(draws[..., 0], [0.01, 0.99], axis=1)
    truth = p.space["lr"].encode(0.01)
    assert (low < truth).all()
    assert (truth < high).all()


def test_a_page_is_written_whole_and_replaces_the_last(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with small() as study:
        study.ask()
        write(study, path)
    assert len(Page(path.read_text(encoding="utf-8")).islands["trials"]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("where", ["missing/report.html", "."])
def test_a_path_that_cannot_be_written_is_one_line_and_leaves_nothing(searched, tmp_path, where):
    with pytest.raises(ValueError, match=r"^report: .*; (choose another path|name an \.html file)$"):
        write(searched, tmp_path / where)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_the_old_page(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    told = []

    def cost(params, scale):  # the study is sound until the page asks what its target costs
        return 1 / 0 if told else math.prod(scale.values())

    with small(cost=cost) as study:
        told.append("broken")
        with pytest.raises(BadInput, match="ZeroDivisionError"):
            write(study, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("value", "text"), [(1.2e-5, "1.2e-5"), (0.023034, "0.02303"), (3.164e10, "3.164e10"), (16384, "16384"), ("a", "a")]
)
def test_numbers_are_for_people(value, text):
    assert number(value) == text


# In a browser

LOGGED = ["--virtual-time-budget=10000", "--enable-logging=stderr"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_draws_every_figure_of_a_study_without_an_error_and_asks_nobody(tmp_path):
    """Of a study whose verdict has figures: what the browser logs, and the document as it stands afterwards."""
    with small(proxies=[tuner.Scale(width=w) for w in (8, 16, 32)]) as study:
        runs = [(0.01 * math.exp(0.5 * (k % 4 - 1.5)), study.problem.proxies[k // 4], k) for k in range(12)]
        study.add([Run({"lr": lr}, scale, bowl({"lr": lr}, scale, k), 1.0) for lr, scale, k in runs])
        assert study.transfer().losses
        write(study, tmp_path / "report.html")
    profile, page_ = f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path}/report.html"
    command = [CHROMIUM, *QUIET, *LOGGED, profile, "--dump-dom", page_]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    drawn = Page(shown.stdout)
    assert len(drawn.islands["figures"]) == drawn.tags.count("figure") == 7
    assert shown.stdout.count("js-plotly-plot") >= 7
    said = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert said == []  # errors of scripts, and every request that the policy refused
