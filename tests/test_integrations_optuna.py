"""Claims about the Optuna sampler: Optuna's own conformance suites, unmodified, and ours against the engine."""

import math
import re
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState

from tuner import engine
from tuner.errors import BadInput
from tuner.integrations.optuna import TransferSampler, _Known
from tuner.parametrization import preset
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.space import Float, SearchSpace
from tuner.trial import Observation

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = {"lr": FloatDistribution(1e-4, 1e-1, log=True), "width": IntDistribution(32, 256, log=True)}
PROXIES, TARGET = tuple(Scale(width=w) for w in (32, 64, 128, 256)), Scale(width=2048)


class TestConformance(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return TransferSampler


def loss(lr, width):
    """The best rate goes as 1 / width; it is 0.02 at width 32."""
    return 1 + 4 / width + 0.1 * math.log(lr * width / 0.64) ** 2


def objective(trial):
    lr, width = trial.suggest_float("lr", 1e-4, 1e-1, log=True), trial.suggest_int("width", 32, 256, log=True)
    trial.set_user_attr("cost", width**2)
    return loss(lr, width)


def added(study, lr, width, state=TrialState.COMPLETE, **attributes):
    value = loss(lr, width) if state == TrialState.COMPLETE else None
    study.add_trial(
        optuna.create_trial(
            state=state,
            value=value,
            params={"lr": lr, "width": width},
            distributions=SPACE,
            user_attrs={"cost": width**2, **attributes},
        )
    )


def recorded(sampler, count=6):
    study = optuna.create_study(sampler=sampler)
    for k in range(count):
        added(study, 0.002 * 1.7**k, 64 if k % 3 else 32)
    return study


def test_small_trials_find_the_optimum_of_a_width_that_never_ran():
    sampler = TransferSampler({"width": 2048}, "mup-adam", seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=20)
    widths = [trial.params["width"] for trial in study.trials]
    assert widths[0] == 32  # before anything is known
    assert set(widths) <= {32, 64, 128, 256}
    answer = sampler.recommend(study)
    assert loss(answer.params["lr"], 2048) - loss(0.64 / 2048, 2048) < 0.01  # a factor e away loses 0.1
    assert answer.interval["lr"][0] <= 0.64 / 2048 <= answer.interval["lr"][1]
    assert answer.reasons


def test_the_same_record_and_seed_give_the_engine_s_proposal():
    """What Optuna adds is the raw value of it."""
    sampler = TransferSampler({"width": 2048}, "mup-adam", cost=lambda scale: scale["width"] ** 2, seed=3)
    study = recorded(sampler)
    rule = preset("mup-adam")
    space = SearchSpace({"lr": Float(1e-4, 1e-1, log=True)})
    problem = Problem(space, TARGET, PROXIES, PROXIES[0], rule, lambda params, scale: scale["width"] ** 2)
    runs = [
        Observation(problem.to_base({"lr": t.params["lr"]}, scale), scale, t.value, scale["width"] ** 2)
        for t in study.trials
        for scale in [Scale(width=t.params["width"])]
    ]
    [asked] = engine.propose(problem, runs, seed=3)
    found = study.ask(SPACE).params
    assert found["width"] == asked.scale["width"]
    assert found["lr"] == pytest.approx(problem.to_raw(asked.params, asked.scale)["lr"])


def test_maximising_is_minimising_the_other_sign():
    down, up = TransferSampler({"width": 2048}, seed=0), TransferSampler({"width": 2048}, seed=0)
    first, second = recorded(down), optuna.create_study(direction="maximize", sampler=up)
    for t in first.trials:
        second.add_trial(
            optuna.create_trial(value=-t.value, params=t.params, distributions=SPACE, user_attrs=t.user_attrs)
        )
    assert first.ask(SPACE).params == second.ask(SPACE).params
    assert down.recommend(first).params == up.recommend(second).params


def test_a_pruned_or_diverged_trial_is_a_run_that_diverged_and_a_broken_one_is_not_made_again():
    def seen(*states):
        sampler = TransferSampler({"width": 2048}, seed=0)
        study = recorded(sampler)
        for state, attributes in states:
            added(study, 0.09, 32, state, **attributes)
        known = _Known.of(study, ("width",))
        losses = [
            run.loss
            for run in sampler._observations(study, sampler._asked.problem(known.space, sampler._price(known)), known)
        ]
        return losses[6:], len(known.under_way)

    assert seen((TrialState.FAIL, {})) == ([], 1)
    assert seen((TrialState.FAIL, {"diverged": True}), (TrialState.PRUNED, {})) == ([math.inf, math.inf], 0)
    assert seen((TrialState.PRUNED, {"cost": None})) == ([math.inf], 0)


@pytest.mark.parametrize("broken", ["nan", "raises", "raises before it suggests"])
def test_what_breaks_is_not_proposed_again_and_ends_no_study(broken):
    sampler = TransferSampler({"width": 2048}, seed=0)
    study = recorded(sampler)

    def breaks(trial):
        if broken == "raises before it suggests":
            raise RuntimeError("data not found")
        objective(trial)
        if broken == "raises":
            raise RuntimeError("disk full")
        return math.nan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        study.optimize(breaks, n_trials=3, catch=RuntimeError)
    study.optimize(objective, n_trials=1)
    assert study.trials[-1].state == TrialState.COMPLETE
    asked = [t.params["lr"] for t in study.trials[6:] if t.params]
    assert len(set(asked)) == len(asked)
    assert sampler.recommend(study).params


def test_trials_of_other_workers_that_run_are_pending_whether_they_are_known_yet_or_not():
    """Three workers have begun, none has asked for a parameter: the third proposes as if the others had."""
    sampler = TransferSampler({"width": 2048}, "mup-adam", seed=0)
    study = recorded(sampler)
    trials = [study.ask() for _ in range(3)]
    third = trials[2].suggest_float("lr", 1e-4, 1e-1, log=True)
    trials[2].suggest_int("width", 32, 256, log=True)
    known = _Known.of(study, ("width",), trials[1].number)
    assert (len(known.under_way), known.older) == (1, 1)
    others = [t.suggest_float("lr", 1e-4, 1e-1, log=True) for t in trials[:2]]
    assert len({third, *others}) == 3


def test_workers_of_one_storage_agree_without_a_seed(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    recorded(TransferSampler(), 1)
    asked = []
    for _ in range(2):
        study = optuna.create_study(
            study_name="shared", storage=url, sampler=TransferSampler({"width": 2048}), load_if_exists=True
        )
        if not study.trials:
            for k in range(6):
                added(study, 0.002 * 1.7**k, 64 if k % 3 else 32)
        space = study.sampler.infer_relative_search_space(study, study.trials[-1])
        trial = study._storage.get_trial(study._storage.create_new_trial(study._study_id))
        asked.append(study.sampler.sample_relative(study, trial, space))
        study.tell(trial.number, state=TrialState.FAIL)
    assert asked[0] == asked[1]


def test_only_runs_that_the_ranges_allow_are_proposed():
    """muP divides the rate by the width: at 256 the low end, 0.004, is 0.0005, which the range does not allow."""
    sampler = TransferSampler({"width": 2048}, "mup-adam", cost=lambda scale: scale["width"] ** 2, seed=0)
    study = optuna.create_study(sampler=sampler)

    def narrow(trial):
        return loss(trial.suggest_float("lr", 4e-3, 1e-1, log=True), trial.suggest_int("width", 32, 256, log=True))

    study.optimize(narrow, n_trials=14)
    runs = [(t.params["lr"], t.params["width"]) for t in study.trials]
    assert sum(lr == 4e-3 for lr, _ in runs) <= 1
    assert len(set(runs)) == len(runs)


def test_seconds_of_trials_that_broke_or_were_pruned_are_no_cost_of_their_scale():
    sampler = TransferSampler({"width": 2048}, cost="duration", seed=0)
    study = optuna.create_study(sampler=sampler)
    now = datetime(2026, 1, 1)
    for k, (width, state, seconds) in enumerate(
        [(32, TrialState.COMPLETE, 10.0)] * 4 + [(256, TrialState.FAIL, 0.5), (256, TrialState.PRUNED, 0.5)]
    ):
        trial = optuna.create_trial(
            state=state,
            value=loss(0.01 + 0.001 * k, width) if state == TrialState.COMPLETE else None,
            params={"lr": 0.01 + 0.001 * k, "width": width},
            distributions=SPACE,
        )
        trial.datetime_start, trial.datetime_complete = now, now + timedelta(seconds=seconds)
        study.add_trial(trial)
    known = _Known.of(study, ("width",))
    price = sampler._price(known)
    assert price({}, Scale(width=32)) == pytest.approx(10.0)
    assert price({}, Scale(width=64)) == pytest.approx(20.0)  # nothing known of its growth: in proportion


def test_base_and_roles_reach_the_parametrization():
    sampler = TransferSampler({"width": 2048}, "mup-adam", base={"width": 64}, roles={"eta": "lr"}, seed=0)
    study = optuna.create_study(sampler=sampler)
    space = {"eta": SPACE["lr"], "width": SPACE["width"]}
    for k in range(5):
        study.add_trial(
            optuna.create_trial(
                value=1.0 + k, params={"eta": 0.01, "width": 128}, distributions=space, user_attrs={"cost": 1.0}
            )
        )
    known = _Known.of(study, ("width",))
    [run, *_] = sampler._observations(study, sampler._asked.problem(space, sampler._price(known)), known)
    assert run.params["eta"] == pytest.approx(0.02)  # muP: 0.02 at width 64 is 0.01 at 128
    with pytest.raises(BadInput, match="roles: no hyperparameter 'lr'"):
        TransferSampler({"width": 2048}, roles={"lr": "lr"})._asked.problem(space, sampler._price(known))


def test_runs_at_the_target_itself_are_heeded():
    sampler = TransferSampler({"width": 2048}, seed=0)
    study = recorded(sampler)
    study.enqueue_trial({"lr": 3e-4, "width": 2048})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Optuna, of a value outside of its range
        study.optimize(objective, n_trials=1)
    known = _Known.of(study, ("width",))
    runs = sampler._observations(study, sampler._asked.problem(known.space, sampler._price(known)), known)
    assert runs[-1].scale == TARGET
    assert sampler.recommend(study).params


def test_several_axes_are_few_enough_to_be_weighed():
    target = {"width": 8192, "depth": 64, "tokens": 1e11}
    sampler = TransferSampler(target, cost=lambda scale: math.prod(scale.values()))
    space = {
        "lr": SPACE["lr"],
        "width": IntDistribution(128, 4096, log=True),
        "depth": IntDistribution(2, 32),
        "tokens": FloatDistribution(1e8, 1e10, log=True),
    }
    problem = sampler._asked.problem(space, sampler._asked.given)
    assert problem.base == Scale(width=128, depth=2, tokens=1e8)
    assert len(problem.proxies) == 27


def test_an_axis_of_choices_keeps_their_kind():
    sampler = TransferSampler({"width": 512}, cost=lambda scale: scale["width"] ** 2, seed=0)
    study = optuna.create_study(sampler=sampler)

    def chosen(trial):
        width = trial.suggest_categorical("width", [64, 128, 512])
        assert type(width) is int
        assert width < 512
        return loss(trial.suggest_float("lr", 1e-4, 1e-1, log=True), width) + trial.suggest_int("step", 2, 8, step=3)

    study.optimize(chosen, n_trials=8)
    assert {t.params["step"] for t in study.trials} <= {2, 5, 8}
    assert sampler.recommend(study).params["step"] == 2


@pytest.mark.parametrize(
    ("sampler", "attributes", "message"),
    [
        (TransferSampler({"width": 2048}), {"cost": None}, "cost' of trial 3 must be .* above zero, got None"),
        (TransferSampler({"width": 2048}), {"cost": -1.0}, "got -1.0; set it before a trial ends"),
        (TransferSampler({"width": 2048}, cost=lambda scale: 0.0), {}, "must be a finite number above zero, got 0.0"),
        (TransferSampler({"width": 2048}, cost=lambda scale: scale["widht"]), {}, "it broke .KeyError"),
        (TransferSampler({"depth": 24}), {}, "target: 'depth' must be a parameter of every trial"),
        (TransferSampler({"width": 32}), {}, "a scale that costs less than the target"),
        (
            TransferSampler({"width": 2048}, roles={"lrr": "lr"}),
            {},
            "roles: no hyperparameter 'lrr'; did you mean 'lr'",
        ),
    ],
)
def test_what_cannot_be_is_one_line_and_a_sampler_that_is_corrected_goes_on(sampler, attributes, message):
    study = recorded(sampler, 3)
    added(study, 0.01, 64, **attributes)
    before = [(t.number, t.state, t.value, t.params) for t in study.trials]
    with pytest.raises(BadInput, match=message):
        study.optimize(objective, n_trials=1)
    assert [(t.number, t.state, t.value, t.params) for t in study.trials[:4]] == before
    assert [t.state for t in study.trials[4:]] == [TrialState.FAIL]
    study.sampler = TransferSampler({"width": 2048}, cost=lambda scale: scale["width"] ** 2)
    study.optimize(objective, n_trials=1)
    assert study.trials[-1].state == TrialState.COMPLETE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 128}, "target: must map axes to values, got 128"),
        ({"cost": 3}, "cost: must be the name it is told by"),
        ({"parametrization": "mup-adan"}, "mup-adam"),
    ],
)
def test_what_cannot_be_given_is_refused_at_once(arguments, message):
    with pytest.raises(BadInput, match=message):
        TransferSampler(**arguments)


def test_a_range_may_widen_and_a_narrower_one_or_another_hyperparameter_is_refused_before_training():
    study, trained = recorded(TransferSampler({"width": 2048}, seed=0)), []

    def changed(low, high, *more):
        def run(trial):
            for name in more:
                trial.suggest_float(name, 0, 1)
            lr, width = trial.suggest_float("lr", low, high, log=True), trial.suggest_int("width", 32, 256, log=True)
            trained.append(lr)
            trial.set_user_attr("cost", width**2)
            return loss(lr, width)

        return run

    study.optimize(changed(1e-5, 1e-1), n_trials=1)
    assert len(trained) == 1
    with pytest.raises(BadInput, match=r"space: 'lr' was Float.* a range may only widen"):
        study.optimize(changed(0.09, 0.091), n_trials=1)
    with pytest.raises(BadInput, match="space: 'momentum' is new, the study's first trial had lr, width"):
        study.optimize(changed(1e-5, 1e-1, "momentum"), n_trials=1)
    assert len(trained) == 1
    study.optimize(changed(1e-5, 1e-1), n_trials=1)
    assert len(trained) == 2


def test_a_study_without_trials_has_no_answer():
    sampler = TransferSampler({"width": 2048})
    with pytest.raises(BadInput, match="recommend: a finished trial is needed"):
        sampler.recommend(optuna.create_study(sampler=sampler))


def test_the_readme_s_study_finds_the_optimum_it_speaks_of(capsys):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "integrations.optuna" in block]
    said: dict = {}
    exec(code, said)
    assert abs(math.log(said["sampler"].recommend(said["study"]).params["lr"] * 2048 / 0.64)) < 0.5
    assert "lr" in capsys.readouterr().out
