"""Claims about a study: ask, tell, optimize, recommend, resume. The objective is a bowl whose optimum is known."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

import tuner
from objectives.ridge import RandomFeatures
from tuner.errors import BadInput
from tuner.ledger import Ledger
from tuner.objective import ObjectiveSource
from tuner.opening import create_study, open_study
from tuner.record import DIVERGED, FAILED, FINISHED, LOST, RUNNING
from tuner.scale import Scale
from tuner.space import Categorical, Float
from tuner.studyfile import read
from tuner.trial import Evidence, Result

LR = Float(1e-4, 1e-1, log=True)
TARGET = Scale(width=256)
PROXIES = [Scale(width=32), Scale(width=64)]
RUN = 1 / 64  # target runs of a run at width 32


def squared_width(params, scale):
    return float(scale["width"]) ** 2


def bowl(params, scale, seed):
    return 1 + math.log(params["lr"] / 1e-2) ** 2 / 10 + 4 / scale["width"]


def made(**changed):
    asked = {"space": {"lr": LR}, "target": TARGET, "proxies": PROXIES, "cost": squared_width}
    return create_study(**{**asked, **changed})


def states(study):
    return [entry.state for entry in study.entries]


class Calls:
    """A bowl that first does what its script says, raise or return that loss; it keeps what it was called with."""

    def __init__(self, *script):
        self.script, self.seen = iter(script), []

    def __call__(self, params, scale, seed):
        self.seen.append((dict(params), scale, seed))
        what = next(self.script, None)
        if isinstance(what, Exception):
            raise what
        return bowl(params, scale, seed) if what is None else what


# ---- the loop


def test_the_python_of_the_readme_finds_the_optimum_it_speaks_of(capsys):
    readme = Path(__file__).parents[1] / "README.md"
    code, *_ = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    said: dict = {}
    exec(code, said)
    rec, best = said["rec"], 3e-3 * 32**-0.2
    low, high = rec.interval["lr"]
    assert low <= rec.params["lr"] <= high
    assert str(rec.params) in capsys.readouterr().out
    # a central interval of 90 % misses one time in ten, which one depends on how a machine rounds: three deviations
    middle, reach = math.log(high * low) / 2, math.log(high / low) / 2
    assert abs(math.log(best) - middle) < 3 / 1.645 * reach
    # the middle of the range, which needs no run at all, misses the optimum by a factor of 2.1
    assert abs(math.log(rec.params["lr"] / best)) < math.log(10**-2.5 / best)


def test_a_trial_is_inside_the_ranges_at_a_proxy_with_a_seed_of_its_own():
    study = made()
    trials = [study.ask() for _ in range(3)]
    assert states(study) == [RUNNING] * 3
    assert {t.scale for t in trials} <= set(PROXIES)
    assert all(LR.low <= t.params["lr"] <= LR.high for t in trials)
    assert len({t.seed for t in trials}) == len({t.params["lr"] for t in trials}) == 3
    assert all(t.seed >= 0 for t in trials)


def test_the_objective_gets_raw_values_and_the_engine_base_values():
    calls = Calls()
    study = made(proxies=[Scale(width=64)], base=Scale(width=32), parametrization="mup-adam")
    study.optimize(calls, 2 / 16)
    for (params, _, _), observation in zip(calls.seen, study.observations, strict=True):
        assert params["lr"] == pytest.approx(observation.params["lr"] / 2, rel=1e-11)  # twice the base's width
        assert LR.low <= observation.params["lr"] <= LR.high


def test_an_objective_given_at_creation_is_the_one_that_runs():
    calls = Calls()
    made(objective=calls).optimize(budget=RUN)
    assert len(calls.seen) == 1


def test_an_objective_given_to_optimize_goes_before_the_studys():
    first, second = Calls(), Calls()
    made(objective=first).optimize(second, RUN)
    assert (len(first.seen), len(second.seen)) == (0, 1)


def test_workers_train_the_objective_given_to_optimize(bowl):
    folders = (str(bowl().parent),)
    study = made(objective=ObjectiveSource("bowl:Broken", {}, folders))
    study.optimize(ObjectiveSource("bowl:Bowl", {}, folders), 2 * RUN, workers=1)
    assert states(study) == [FINISHED] * 2


def test_two_workers_spend_the_budget_on_stacked_trials():
    objective = RandomFeatures(noise=0.0)
    study = made(space=None, objective=objective, cost=None)
    assert study.optimize(budget=4 * RUN, workers=2) == "budget"
    assert states(study) == [FINISHED] * 4
    for entry in study.entries:  # the oracle: the closed form
        assert entry.loss == objective.risk(entry.trial.params["ridge"], entry.trial.scale["width"])
    study.close()


def test_a_callback_is_told_after_each_change():
    told = []
    made().optimize(bowl, 2 * RUN, callbacks=[lambda study: told.append(states(study))])
    assert told == [[RUNNING], [FINISHED], [FINISHED, RUNNING], [FINISHED, FINISHED]]


def test_a_tolerance_stops_the_search_when_the_regret_is_below_it():
    study = made()
    assert study.optimize(bowl, 20 * RUN, tolerance=1e6) == "tolerance"
    assert study.transfer().allowed.name == "the tolerance"
    with pytest.raises(BadInput, match="tolerance: must be a relative regret"):
        study.optimize(bowl, 20 * RUN, tolerance=-1)
    assert study.transfer().allowed.name == "the tolerance"  # nothing of what was refused is kept
    assert len(study.entries) == 2  # twice the hyperparameters, at least
    assert study.optimize(bowl, 20 * RUN, tolerance="noise") == "noise"
    assert study.transfer().allowed.name == "a run's noise"


def test_noise_stops_the_search_when_one_run_could_not_tell():
    def noisy(params, scale, seed):
        return bowl(params, scale, seed) + 0.1 * np.random.default_rng(seed).standard_normal()

    study = made()
    assert study.optimize(noisy, 60 * RUN, tolerance="noise") == "noise"
    assert study.spent() < 60 * RUN * study.target_cost
    rec = study.recommend()
    assert rec.expected_regret < rec.noise


# ---- the budget


@pytest.mark.parametrize("runs", [1, 1.999, 2, 3.5])
def test_a_budget_is_spent_to_the_last_affordable_run_and_never_overspent(runs):
    study = made()
    study.optimize(bowl, runs * RUN)
    assert study.spent() <= runs * RUN * study.target_cost
    assert len(study.entries) == int(runs)


def test_three_tenths_afford_three_runs_of_a_tenth():
    study = made(cost=lambda params, scale: 1.0 if scale == TARGET else 0.1)
    study.optimize(bowl, 0.3)
    assert len(study.entries) == 3


def test_a_budget_counts_what_an_earlier_call_spent():
    study = made()
    study.optimize(bowl, 2 * RUN)
    study.optimize(bowl, 2 * RUN)
    assert len(study.entries) == 2
    study.optimize(bowl, 3 * RUN)
    assert len(study.entries) == 3


def test_a_retry_is_charged_and_must_fit_the_budget():
    calls = Calls(RuntimeError("1"), RuntimeError("2"))
    study = made()
    study.optimize(calls, 2 * RUN)
    assert states(study) == [FAILED, FAILED]
    assert study.spent() == 2 * RUN * study.target_cost


def test_a_budget_that_affords_no_run_says_what_one_costs():
    study = made()
    with pytest.raises(ValueError, match=r"must afford a run, of 0.0156 target runs at least, got 0.015; raise it"):
        study.optimize(bowl, 0.015)
    assert study.entries == []


def test_a_study_with_runs_is_not_refused_a_budget_that_is_spent():
    study = made()
    study.optimize(bowl, 2 * RUN)
    assert study.optimize(bowl, RUN / 2) == "budget"
    assert len(study.entries) == 2


@pytest.mark.parametrize(
    ("cost", "why"),
    [
        (lambda params, scale: 1 / 0, "it broke (ZeroDivisionError: division by zero)"),
        (lambda params, scale: -1.0, "must be a finite number above zero, got -1.0"),
        (lambda params, scale: math.nan, "must be a finite number above zero, got nan"),
    ],
)
def test_a_cost_that_breaks_for_some_settings_is_one_line_and_writes_no_trial(cost, why):
    def priced(params, scale):
        return cost(params, scale) if params["lr"] != study_middle else float(scale["width"] ** 2)

    study_middle = made().problem.space.middle["lr"]
    study = made(cost=priced)
    with pytest.raises(BadInput, match=re.escape(f"cost: at width 32 {why}" if "broke" in why else f"cost: {why}")):
        study.optimize(bowl, 3 * RUN)
    assert study.entries == []


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf])
def test_a_budget_is_a_finite_number_above_zero(budget):
    with pytest.raises(ValueError, match=f"budget: must be a finite number of target runs above zero, got {budget}"):
        made().optimize(bowl, budget)


# ---- what blows up and what breaks


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_a_diverged_run_that_the_engine_sees(loss):
    study = made()
    study.optimize(Calls(None, loss, None), 3 * RUN)
    assert states(study) == [FINISHED, DIVERGED, FINISHED]
    assert [o.diverged for o in study.observations] == [False, True, False]
    assert math.isfinite(study.recommend().loss)


def test_a_trial_that_raises_is_tried_again_as_it_was_and_no_observation():
    calls = Calls(None, RuntimeError("no disk"))
    study = made()
    study.optimize(calls, 4 * RUN)
    assert states(study) == [FINISHED, FAILED, FINISHED, FINISHED]
    assert calls.seen[2] == calls.seen[1]
    assert study.entries[2].retry_of == 1
    assert study.entries[2].attempt == 2
    assert study.entries[1].error.startswith("RuntimeError: no disk\n")
    assert len(study.observations) == 3


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_trial_is_tried_again_at_most_that_often_and_then_another_is_made(retries):
    calls = Calls(*[RuntimeError("always")] * (retries + 1))
    study = made(retries=retries)
    study.optimize(calls, (retries + 2) * RUN)
    assert states(study) == [FAILED] * (retries + 1) + [FINISHED]
    assert all(seen == calls.seen[0] for seen in calls.seen[:-1])
    assert calls.seen[-1][0]["lr"] != calls.seen[0][0]["lr"]


def test_failures_do_not_move_the_answer():
    """The trials that finish are the same ones in the same order, so the engine is asked the same."""
    smooth, rough = made(), made()
    smooth.optimize(bowl, 3 * RUN)
    rough.optimize(Calls(RuntimeError(), None, RuntimeError(), RuntimeError(), None, None), 6 * RUN)
    assert rough.observations == smooth.observations
    assert rough.recommend() == smooth.recommend()


def test_an_objective_that_always_breaks_stops_the_study_and_says_how():
    calls = Calls(*[RuntimeError("no data")] * 99)
    study = made(retries=1)
    with pytest.raises(ValueError, match="the first 3 trials broke, the last by RuntimeError: no data; correct it"):
        study.optimize(calls, 1.0)
    assert len(calls.seen) == 3 * 2  # each of three at both of its attempts
    with pytest.raises(ValueError, match="recommend: a finished trial is needed, 3 broke, the last by RuntimeError"):
        study.recommend()
    study.optimize(bowl, study.spent() / study.target_cost + RUN)  # mended, it goes on
    assert FINISHED in states(study)


def test_recommend_needs_a_finished_trial():
    with pytest.raises(ValueError, match="a finished trial is needed, the record has 0 trials; run trials until one"):
        made().recommend()


# ---- tell


def test_tell_charges_what_it_is_told_or_what_the_study_says():
    study = made()
    study.tell(study.ask(), loss=1.0)
    study.tell(study.ask(), loss=1.0, cost=7.0)
    study.tell(study.ask(), error="killed")
    assert [e.cost for e in study.entries] == [1024.0, 7.0, 1024.0]
    assert study.spent() == 2055.0


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "exactly one of loss and error is needed, got loss=None, error=None"),
        ({"loss": 1.0, "error": "x"}, "exactly one of loss and error is needed, got loss=1.0, error='x'"),
        ({"loss": 1.0, "cost": 0.0}, "cost must be a finite number above zero, got 0.0; leave it out if unknown"),
        ({"loss": 1.0, "cost": math.nan}, "cost must be a finite number above zero, got nan"),
        ({"loss": 1.0, "seconds": -1.0}, "seconds must be a finite number above zero, got -1.0"),
        ({"loss": "1"}, "loss must be a number, got '1'; tell NaN if the training diverged"),
    ],
)
def test_a_bad_outcome_is_refused_and_the_trial_runs_on(told, message):
    study = made()
    trial = study.ask()
    with pytest.raises(ValueError, match=message):
        study.tell(trial, **told)
    assert states(study) == [RUNNING]


def test_a_trial_is_told_once_and_only_where_it_runs():
    study = made()
    trial = study.ask()
    study.tell(trial, loss=0.0)
    assert study.entries[0].loss == 0.0
    with pytest.raises(ValueError, match="trial 0 is not running here; tell each asked trial once"):
        study.tell(trial, loss=1.0)
    assert study.entries[0].loss == 0.0


def test_pending_trials_reach_the_engine_in_base_coordinates():
    study = made(parametrization="mup-adamw", target=Scale(width=256), proxies=[Scale(width=32), Scale(width=64)])
    asked = [study.ask() for _ in range(3)]
    waiting = study.pending
    assert [p.scale for p in waiting] == [t.scale for t in asked]
    for proposal, trial in zip(waiting, asked, strict=True):
        assert proposal.params["lr"] == pytest.approx(trial.params["lr"] * trial.scale["width"] / 32)
    study.tell(asked[0], loss=1.0)
    assert study.pending == waiting[1:]


# ---- seconds


def test_in_seconds_a_run_costs_what_it_took_and_the_target_what_the_law_says():
    study = made(cost="seconds")
    for _ in range(2):
        study.tell(study.ask(), loss=1.0, cost=2.5)
    assert study.spent() == 5.0
    assert study.target_cost == pytest.approx(2.5 * 256 / 32)  # one scale timed: in proportion to the width


def test_in_seconds_optimize_spends_the_budget_of_the_law():
    study = made(cost="seconds")
    study.optimize(lambda params, scale, seed: Result(bowl(params, scale, seed), seconds=3.0), 0.25)
    assert {e.cost for e in study.entries} == {3.0}
    assert study.spent() / study.target_cost <= 0.25 * (1 + 1e-9)


def test_in_seconds_what_was_never_timed_is_charged_by_the_law():
    """Before any run, the law knows no second: what broke or was lost then must not stay in its made-up unit."""
    study = made(cost="seconds")
    broken, timed, waiting = study.ask(), study.ask(), study.ask()
    study.tell(broken, error="killed")
    study.tell(timed, loss=1.0, seconds=0.5)
    assert waiting.scale == timed.scale == broken.scale
    assert study.spent() == pytest.approx(3 * 0.5)


# ---- verification


def test_a_verification_is_recorded_once_never_feeds_the_engine_and_is_on_top_of_the_search():
    calls = Calls()
    study = made()
    study.optimize(calls, 3 * RUN)
    before, spent, rec = study.observations, study.spent(), study.recommend()
    entry = study.verify(rec.params, calls)
    assert (entry.trial.scale, dict(entry.trial.params), entry.purpose) == (TARGET, rec.params, "verification")
    assert entry.loss == bowl(rec.params, TARGET, 0)
    assert study.verify(rec.params, calls) == entry
    assert len(calls.seen) == 4
    assert (study.observations, study.spent(), study.recommend()) == (before, spent, rec)
    assert study.ledger(rec.params).as_json("budget") == {
        "search": {"cost": spent, "target_runs": 3 * RUN},
        "verification": {"cost": 65536.0, "loss": entry.loss},
        "stopped": "budget",
    }


def test_a_verification_that_breaks_is_tried_again_and_then_given_up():
    study = made(retries=1)
    study.tell(study.ask(), loss=1.0)
    entry = study.verify({"lr": 0.01}, Calls(*[RuntimeError("no memory")] * 9))
    assert (entry.state, entry.attempt) == (FAILED, 2)
    assert study.ledger({"lr": 0.01}) == Ledger(65536.0, 1024.0, 2 * 65536.0)
    assert study.verify({"lr": 0.01}, Calls(RuntimeError("once"))).state == FINISHED


# ---- resume


def test_a_resumed_study_goes_on_as_if_it_had_never_stopped(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    whole = made()
    whole.optimize(bowl, 5 * RUN)
    for runs in (2, 4, 5):
        with made(storage=url) as part:
            part.optimize(bowl, runs * RUN)
            told = [(e.trial, e.state, e.loss, e.cost) for e in part.entries]
    assert told == [(e.trial, e.state, e.loss, e.cost) for e in whole.entries]


def test_evidence_is_kept_and_heeded_after_resuming(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with made(storage=url) as study:
        study.optimize(bowl, 3 * RUN)
        study.add_evidence(Evidence("sharpness", "undetermined", "1.3"))
        study.add_evidence(Evidence("coordinate check", "pass", "32 slopes"))
        assert "sharpness: undetermined; 1.3" in study.recommend().reasons
        study.add_evidence(Evidence("sharpness", "pass", "1.1"))
        assert "sharpness: pass; 1.1" in study.recommend().reasons
    with made(storage=url) as study:
        assert [str(each) for each in study.record.evidence] == [
            "sharpness: pass; 1.1",
            "coordinate check: pass; 32 slopes",
        ]
        assert study.transfer().reasons[-1] == "coordinate check: pass; 32 slopes"


@pytest.mark.parametrize("retries", [0, 2])
def test_a_trial_in_flight_is_lost_charged_and_run_again(tmp_path, retries):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with made(storage=url, retries=retries) as study:
        lost = study.ask()
    with made(storage=url, retries=retries) as study:
        assert states(study) == [LOST]
        assert study.spent() == 1024.0
        again = study.ask()
        assert (again.params, again.scale, again.seed) == (lost.params, lost.scale, lost.seed)
        assert again.number != lost.number
        with pytest.raises(ValueError, match=f"trial {lost.number} is not running here"):
            study.tell(lost, loss=1.0)
        study.tell(again, loss=1.0)
        assert states(study) == [LOST, FINISHED]
        assert study.entries[1].retry_of == lost.number


def test_a_trial_that_takes_its_coordinator_down_is_given_up(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    attempts = []
    for _ in range(4):
        with made(storage=url, retries=2) as study:
            attempts.append(study.ask())
    assert len({t.params["lr"] for t in attempts[:3]}) == 1
    assert attempts[3].params != attempts[0].params


def test_ranges_widen_on_resume_and_old_trials_stay(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with made(storage=url) as study:
        study.tell(study.ask(), loss=1.0)
        old = study.entries
    with made(storage=url, space={"lr": Float(1e-5, 1.0, log=True)}) as study:
        assert study.entries == old
        study.tell(study.ask(), loss=1.0)
    with pytest.raises(ValueError, match="ranges may only widen"):
        made(storage=url)  # narrower than the record by now


DIFFERENT = {
    "target": (
        {"target": Scale(width=512)},
        "resume: target was {'width': 256} when .*, got {'width': 512}; restore it",
    ),
    "proxies": ({"proxies": PROXIES[:1]}, "resume: proxies was"),
    "base": ({"base": Scale(width=64)}, "resume: base was {'width': 32}"),
    "parametrization": ({"parametrization": "mup-adam"}, "resume: parametrization was {'preset': 'none'"),
    "exponents": ({"exponents": {"lr": {"width": -1}}}, "resume: parametrization was"),
    "seed": ({"seed": 1}, "resume: seed was 0 when the study was created, got 1; restore it or give .* a new name"),
    "cost": ({"cost": "seconds"}, "resume: cost was 'function'"),
    "objective": ({"objective": ObjectiveSource("objectives.ridge:RandomFeatures")}, "the objective"),
    "narrower": ({"space": {"lr": Float(1e-3, 1e-1, log=True)}}, "resume: space.lr was .*; ranges may only widen"),
    "linear": ({"space": {"lr": Float(1e-4, 1e-1)}}, "resume: space.lr was"),
    "categorical": ({"space": {"lr": Categorical((1e-3, 1e-2))}}, "resume: space.lr was"),
    "one more": ({"space": {"lr": LR, "wd": Float(0, 1)}}, "resume: space.wd was None"),
    "another": ({"space": {"wd": Float(0, 1)}}, "resume: space.lr was .* got None"),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A study of one trial: its file's bytes, and what is in it."""
    path = tmp_path_factory.mktemp("study") / "study.db"
    with made(storage=f"sqlite:///{path}") as study:
        study.tell(study.ask(), loss=1.0)
        known = study.entries, study.record.spec
    return path.read_bytes(), known


@pytest.mark.parametrize(("changed", "message"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_anything_else_that_differs_from_the_record_is_refused_and_changes_nothing(
    tmp_path, recorded, changed, message
):
    content, before = recorded
    (tmp_path / "study.db").write_bytes(content)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with pytest.raises(ValueError, match=message):
        made(storage=url, **changed)
    with made(storage=url) as study:
        assert (study.entries, study.record.spec) == before


def test_trials_that_something_else_made_are_refused(tmp_path):
    import optuna

    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(study_name="study", storage=url).add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(ValueError, match="'study' has trials the tuner did not make; give the study a new name"):
        made(storage=url)


# ---- creation


def gone_wrong(**attributes):
    """An objective with these attributes."""
    return type("Objective", (), {"__call__": lambda self, params, scale, seed: 1.0, **attributes})()


BAD = {
    "no proxy": ({"proxies": []}, "at least one proxy is needed, got none; add a smaller scale"),
    "proxy as dear": ({"proxies": [TARGET]}, r"every proxy must cost less than the target \(width 256\), got one at"),
    "other axes": (
        {"proxies": [Scale(depth=2)]},
        r"must name the target's axes \['width'\], got \['depth'\]; name all",
    ),
    "base of other axes": (
        {"base": Scale(width=2, depth=2)},
        r"must name the target's axes \['width'\], got \['depth', ",
    ),
    "axis in the space": ({"space": {"width": LR}}, "space: 'width' is an axis of the target's scale too"),
    "no space": ({"space": None}, "space is needed, there is no objective; give space"),
    "empty space": ({"space": {}}, "at least one hyperparameter is needed"),
    "no cost": ({"cost": None}, 'cost is needed, there is no objective; give cost, or cost="seconds"'),
    "no cost of its own": ({"cost": "flops", "objective": bowl}, "cost is needed, the objective has none; give cost"),
    "unknown cost": ({"cost": "euro"}, "cost: must be .*, got 'euro'; correct it"),
    "cost zero": ({"cost": lambda p, s: 0.0}, "cost: must be a finite number above zero, got 0.0 at width 32"),
    "cost nan": ({"cost": lambda p, s: math.nan}, "cost: must be a finite number above zero, got nan"),
    "cost a text": ({"cost": lambda p, s: "1"}, "cost: must be a finite number above zero, got '1' at width 32"),
    "cost that breaks": (
        {"cost": lambda p, s: p["wd"]},
        "cost: at width 32 it broke .KeyError: 'wd'.; correct the scale or the cost",
    ),
    "target no scale": ({"target": {"width": 256}}, "scale: must be a Scale, got {'width': 256}; write for example"),
    "seed below zero": ({"seed": -1}, "study: seed must be a whole number, at least 0, got -1; correct it"),
    "retries a half": ({"retries": 0.5}, "study: retries must be a whole number, at least 0, got 0.5; correct it"),
    "no name": ({"name": ""}, "study: name must be a text, got ''; give it one"),
    "exponent a text": (
        {"exponents": {"lr": {"width": "x"}}},
        "exponents.lr.width: must be a finite number, got 'x'; correct it",
    ),
    "a preset that is no name": (
        {"objective": gone_wrong(parametrization=3)},
        "parametrization: an objective names a preset, got 3; correct its attribute",
    ),
    "a space that is none": (
        {"space": None, "objective": gone_wrong(space=3)},
        "space: must map names to Float, Int or Categorical, got 3; correct it",
    ),
    "preset": ({"parametrization": "mup-adamm"}, "no preset is named 'mup-adamm'; did you mean 'mup-adam"),
    "exponent's name": ({"exponents": {"lrr": {"width": 1}}}, "no hyperparameter or role 'lrr'; did you mean 'lr'?"),
    "exponent's axis": (
        {"exponents": {"lr": {"widht": 1}}},
        "exponents.lr: the scale has no axis 'widht'; did you mean",
    ),
    "applied twice": (
        {"parametrization": "mup-adam", "objective": gone_wrong(parametrization="mup-adamw")},
        "the objective applies 'mup-adamw' itself, the study configures 'mup-adam'; leave",
    ),
    "applied and moved": (
        {"exponents": {"lr": {"width": 1}}, "objective": gone_wrong(parametrization="mup-adamw")},
        "the objective applies 'mup-adamw' itself",
    ),
    "not its own": (
        {"objective": gone_wrong(space={"wd": LR}, cost=squared_width)},
        "the objective has no hyperparameter 'lr'; known: 'wd'",
    ),
    "one left out": (
        {"objective": gone_wrong(space={"lr": LR, "wd": LR}, cost=squared_width)},
        "the objective's hyperparameter 'wd' is missing; add it or leave",
    ),
}


@pytest.mark.parametrize(("changed", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_study_is_one_line_and_nothing_is_written(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        made(storage=f"sqlite:///{tmp_path / 'study.db'}", **changed)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_objective_that_applies_a_parametrization_needs_a_study_that_leaves_it_to_it():
    objective = gone_wrong(parametrization="mup-adamw")
    with pytest.raises(ValueError, match="the objective applies 'mup-adamw' itself, the study configures 'none'"):
        made().optimize(objective, RUN)
    study = made(objective=objective)
    assert study.problem.parametrization.exponents == {}
    study.optimize(budget=RUN)


def test_an_objective_is_needed():
    with pytest.raises(ValueError, match="an objective is needed, got none; pass one here or to create_study"):
        made().optimize()


def test_the_base_is_the_cheapest_proxy_unless_given():
    assert made(proxies=PROXIES[::-1]).problem.base == Scale(width=32)
    assert made(base=Scale(width=48)).problem.base == Scale(width=48)


def test_a_proxy_given_twice_is_one():
    assert made(proxies=[*PROXIES, *PROXIES]).problem.proxies == tuple(PROXIES)


def test_a_study_file_makes_the_study_it_says(bowl):
    with open_study(read(bowl())) as study:
        assert (study.problem.target, study.problem.proxies) == (TARGET, tuple(PROXIES))
        assert study.target_cost == 65536.0
        study.optimize(budget=2 * RUN)
    with open_study(read(bowl()), read_only=True) as study:
        assert states(study) == [FINISHED] * 2


def test_in_memory_a_study_file_touches_no_record(bowl):
    path = bowl()
    with open_study(read(path), in_memory=True) as study:
        study.optimize(budget=RUN)
    assert sorted(p.name for p in path.parent.iterdir()) == ["bowl.py", "study.toml"]


def test_seeds_of_studies_make_different_trials():
    asked = [made(seed=seed).ask() for seed in (0, 1)]
    assert all(a.params != b.params and a.seed != b.seed for a, b in itertools.pairwise(asked))


def test_a_study_under_way_can_be_read_but_not_written(tmp_path):
    storage = f"sqlite:///{tmp_path / 's.db'}"
    given = {
        "space": {"lr": tuner.Float(1e-4, 1e-1, log=True)},
        "target": tuner.Scale(width=64),
        "proxies": [tuner.Scale(width=16)],
        "cost": lambda params, scale: float(scale["width"]),
        "storage": storage,
    }
    with tuner.create_study(**given) as writer:
        trial = writer.ask()
        with tuner.create_study(**given, read_only=True) as reader:
            assert [e.state for e in reader.entries] == ["running"]
            with pytest.raises(ValueError, match="opened for reading"):
                reader.ask()
        writer.tell(trial, loss=1.0)
        assert [e.state for e in writer.entries] == ["finished"]


def test_a_stacked_group_that_breaks_once_costs_one_attempt_and_the_study_goes_on():
    class Stacks(Calls):
        broke = False

        def train_many(self, trials):
            if not self.broke:
                self.broke = True
                raise MemoryError("no room for four")
            return [Result(1.0, 8 * RUN * study.target_cost) for _ in trials]

    study = made(retries=1)
    study.optimize(Stacks(*[1.0] * 99), 40 * RUN)  # a tenth of it is a stack of four
    assert [e.state for e in study.entries].count(FAILED) == 4
    assert all(e.attempt == 2 for e in study.entries if e.retry_of is not None)
    assert len(study.observations) >= 4


def test_a_timescale_that_cannot_be_is_refused_before_anything_is_written(tmp_path):
    asked = {
        "space": {"lr": tuner.Float(1e-3, 1e-1, log=True)},
        "target": tuner.Scale(width=64),
        "proxies": [tuner.Scale(width=16)],
        "cost": lambda params, scale: scale["width"],
        "storage": f"sqlite:///{tmp_path}/study.db",
    }
    with pytest.raises(tuner.BadInput, match="timescale: needs one hyperparameter of role lr and one"):
        tuner.create_study(**asked, timescale=True)
    with pytest.raises(tuner.BadInput, match="timescale: must be True, False or None, got 'no'"):
        tuner.create_study(**asked, timescale="no")
    tuner.create_study(**asked).close()  # the record knows of no such study
