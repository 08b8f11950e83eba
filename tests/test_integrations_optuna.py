"""Claims about the Optuna sampler: Optuna's own conformance suites, unmodified, and ours against the engine."""

import math
import re
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState

from tuner import engine
from tuner.errors import BadInput
from tuner.integrations.optuna import TransferSampler
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


def test_a_failed_trial_is_nothing_and_a_pruned_or_diverged_one_a_run_that_diverged():
    def seen(*states):
        sampler = TransferSampler({"width": 2048}, seed=0)
        study = recorded(sampler)
        for state, attributes in states:
            added(study, 0.09, 32, state, **attributes)
        space = sampler.infer_relative_search_space(study, None)
        return [run.loss for run in sampler._runs(sampler._problem(study, space), study, space)][6:]

    assert seen((TrialState.FAIL, {})) == []
    assert seen((TrialState.FAIL, {"diverged": True}), (TrialState.PRUNED, {})) == [math.inf, math.inf]
    assert seen((TrialState.PRUNED, {"cost": None})) == [math.inf]


def test_trials_of_other_workers_that_run_are_pending_whether_they_are_known_yet_or_not():
    """Three workers ask before any suggests: each gets a run of its own, as a batch of three is."""
    sampler = TransferSampler({"width": 2048}, "mup-adam", seed=0)
    study = recorded(sampler)
    trials = [study.ask() for _ in range(3)]
    asked = [(t.suggest_float("lr", 1e-4, 1e-1, log=True), t.suggest_int("width", 32, 256, log=True)) for t in trials]
    assert len({lr for lr, _ in asked}) == 3


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
        (TransferSampler({"width": 2048}), {"cost": None}, "user attribute 'cost', must be .* above zero, got None"),
        (TransferSampler({"width": 2048}), {"cost": -1.0}, "got -1.0; set it"),
        (TransferSampler({"width": 2048}, cost=lambda scale: 0.0), {}, "must be a number above zero, got 0.0"),
        (TransferSampler({"depth": 24}), {}, "target: 'depth' must be a parameter of every trial"),
        (TransferSampler({"width": 32}), {}, "a scale that costs less than the target"),
    ],
)
def test_what_cannot_be_is_one_line_and_the_record_is_as_it_was(sampler, attributes, message):
    study = recorded(sampler, 3)
    added(study, 0.01, 64, **attributes)
    before = [(t.number, t.state, t.value, t.params) for t in study.trials]
    with pytest.raises(BadInput, match=message):
        study.optimize(objective, n_trials=1)
    assert [(t.number, t.state, t.value, t.params) for t in study.trials[:4]] == before
    assert [t.state for t in study.trials[4:]] == [TrialState.FAIL]


def test_a_space_that_changes_in_mid_study_is_refused():
    study = recorded(TransferSampler({"width": 2048}))
    wider = {**SPACE, "lr": FloatDistribution(1e-5, 1e-1, log=True)}
    study.add_trial(
        optuna.create_trial(
            value=1.0, params={"lr": 1e-3, "width": 32}, distributions=wider, user_attrs={"cost": 1024.0}
        )
    )
    with pytest.raises(BadInput, match=r"space: 'lr' was Float.*keep its range"):
        study.ask().suggest_float("lr", 1e-4, 1e-1, log=True)


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
