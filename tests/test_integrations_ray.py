"""Claims about the Ray searcher: it proposes what the engine and the Optuna sampler do, and Ray Tune runs it."""

import json
import math
import os
import subprocess
import sys
import tempfile
import uuid
import warnings

import optuna
import pytest

from tuner.errors import BadInput

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray import tune
except ImportError:
    pytest.skip("no Ray: install the extra ray", allow_module_level=True)

from tuner import engine
from tuner.integrations.domains import Domains
from tuner.integrations.optuna import TransferSampler
from tuner.integrations.ray import TransferSearcher
from tuner.parametrization import preset
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.space import Float, SearchSpace
from tuner.trial import Observation, Proposal

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = {"lr": tune.loguniform(1e-4, 1e-1), "width": tune.lograndint(32, 257)}
OPTUNA = {
    "lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
    "width": optuna.distributions.IntDistribution(32, 256, log=True),
}
PROXIES = tuple(Scale(width=w) for w in (32, 64, 128, 256))


def loss(lr, width):
    """The best rate goes as 1 / width; it is 0.02 at width 32."""
    return 1 + 4 / width + 0.1 * math.log(lr * width / 0.64) ** 2


def report(params, **told):
    return {"loss": loss(params["lr"], params["width"]), "cost": params["width"] ** 2, **told}


def begun(searcher=None, space=SPACE, mode="min"):
    searcher = searcher or TransferSearcher({"width": 2048}, "mup-adam", seed=3)
    assert searcher.set_search_properties("loss", mode, space)
    return searcher


def told(searcher, count):
    """The parameters of so many completed trials."""
    asked = {f"trial {k}": searcher.suggest(f"trial {k}") for k in range(count)}
    for name, params in asked.items():
        searcher.on_trial_complete(name, report(params))
    return asked


def test_the_same_record_pending_runs_and_seed_give_the_engine_s_proposal():
    searcher = begun()
    record = told(searcher, 5)
    running, broken = searcher.suggest("running"), searcher.suggest("broken")
    searcher.on_trial_complete("broken", error=True)
    cost = lambda params, scale: scale["width"] ** 2  # noqa: E731
    space = SearchSpace({"lr": Float(1e-4, 1e-1, log=True)})
    problem = Problem(space, Scale(width=2048), PROXIES, PROXIES[0], preset("mup-adam"), cost)

    def base(params):
        scale = Scale(width=params["width"])
        return Proposal(problem.to_base({"lr": params["lr"]}, scale), scale)

    runs = [Observation(base(p).params, base(p).scale, loss(**p), p["width"] ** 2) for p in record.values()]
    [asked] = engine.propose(problem, runs, [base(running), base(broken)], seed=3)
    found = searcher.suggest("next")
    assert found["width"] == asked.scale["width"]
    assert found["lr"] == pytest.approx(problem.to_raw(asked.params, asked.scale)["lr"])


def test_it_and_the_optuna_sampler_propose_the_same_from_the_same_record():
    """Complete, diverged, failed and running trials, one after the other."""
    searcher, trials = begun(), []
    state = optuna.trial.TrialState
    for k, end in enumerate([state.COMPLETE] * 3 + [state.PRUNED, state.COMPLETE, state.FAIL, state.RUNNING]):
        params = searcher.suggest(str(k))
        if trials:  # before it knows the ranges, Optuna draws at random
            study = optuna.create_study(sampler=TransferSampler({"width": 2048}, "mup-adam", seed=3))
            study.add_trials(trials)
            assert study.ask(OPTUNA).params == params
        value, cost = (loss(**params), {"cost": params["width"] ** 2}) if end == state.COMPLETE else (None, {})
        trials.append(optuna.create_trial(state=end, value=value, params=params, distributions=OPTUNA, user_attrs=cost))
        if end == state.PRUNED:
            searcher.on_trial_complete(str(k), {"loss": math.nan})
        elif end != state.RUNNING:
            searcher.on_trial_complete(str(k), report(params) if end == state.COMPLETE else {"epoch": 1})


def test_small_trials_find_the_optimum_of_a_width_that_never_ran():
    searcher = begun()
    for k in range(10):
        searcher.on_trial_complete(str(k), report(searcher.suggest(str(k))))
    answer = searcher.recommend()
    assert loss(answer.params["lr"], 2048) - loss(0.64 / 2048, 2048) < 0.01  # a factor e away loses 0.1
    assert answer.verdict in ("transfer", "corrected", "direct", "undetermined")
    assert answer.reasons


def test_what_is_saved_goes_on_as_if_nothing_had_happened(tmp_path):
    searcher = begun(TransferSearcher({"width": 2048}, "mup-adam", cost=lambda scale: scale["width"] ** 2, seed=3))
    told(searcher, 4)
    running = searcher.suggest("running")
    searcher.save(str(tmp_path / "state.pkl"))
    again = TransferSearcher({"width": 2048}, "mup-adam", cost=lambda scale: scale["width"] ** 2, seed=3)
    again.restore(str(tmp_path / "state.pkl"))
    assert again.suggest("running") == running
    for one in (searcher, again):
        one.on_trial_complete("running", report(running))
    assert again.suggest("next") == searcher.suggest("next")
    begun(again)  # as Ray does of a new Tuner
    with pytest.raises(BadInput, match="param_space: it, metric and mode must stay"):
        begun(again, mode="max")


def test_a_trial_that_broke_counts_once_it_ends_well_and_what_was_told_stays():
    searcher = begun()
    params = searcher.suggest("a")
    searcher.on_trial_complete("a")
    assert searcher.suggest("b") != params
    with pytest.raises(BadInput, match="recommend: a finished trial is needed"):
        searcher.recommend()
    searcher.on_trial_complete("a", report(params))  # Ray made it again
    searcher.on_trial_complete("a", error=True)
    assert [run.loss for run in searcher._told.runs] == [loss(**params)]


def test_maximising_is_minimising_the_other_sign():
    down, up = begun(), begun(mode="max")
    for k in range(5):
        params = down.suggest(str(k))
        assert up.suggest(str(k)) == params
        down.on_trial_complete(str(k), report(params))
        up.on_trial_complete(str(k), report(params, loss=-loss(**params)))
    assert up._told.observations == down._told.observations


@pytest.mark.parametrize(
    "domain",
    [
        tune.randint(3, 9),
        tune.lograndint(2, 9),
        tune.qrandint(10, 41, 4),
        tune.qrandint(3, 9, 1),
        tune.qlograndint(8, 64, 8),
        tune.quniform(0.1, 0.9, 0.1),
        tune.qloguniform(0.1, 0.9, 0.1),
        tune.choice([1, "two", 3.5, False]),
    ],
    ids=lambda domain: domain.domain_str,
)
@pytest.mark.parametrize("axis", [False, True])
def test_a_domain_s_values_are_those_that_ray_draws(domain, axis):
    def drawn(sample):
        return {round(v, 9) if isinstance(v, float) else v for v in sample}

    found = Domains.of({"x": domain}, ("x",) if axis else ())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    ours = [found.rounded(study.ask(found.space).params)["x"] for _ in range(400)]
    theirs = domain.sample(size=4000, random_state=0)
    assert drawn(ours) == drawn(theirs)
    assert all(type(v) is type(domain.cast(v)) for v in ours)


def test_quantised_values_choices_and_constants_of_a_study():
    space = {
        "lr": tune.loguniform(1e-4, 1e-1),
        "decay": tune.qloguniform(0.01, 0.5, 0.01),
        "kind": tune.choice(["a", "b"]),
        "width": tune.qlograndint(64, 512, 64),
        "depth": 4,
        "data": {"path": "x"},
        "single": tune.randint(7, 8),
    }
    searcher = begun(TransferSearcher({"width": 4096, "depth": 4}, cost=lambda scale: scale["width"] ** 2), space)
    for k in range(8):
        params = searcher.suggest(str(k))
        assert set(params) == set(space) - {"data"}  # Ray adds it
        assert params["width"] % 64 == 0
        assert params["decay"] == round(params["decay"], 2)
        assert (params["depth"], params["single"]) == (4, 7)
        searcher.on_trial_complete(str(k), {"loss": loss(params["lr"], params["width"]) + (params["kind"] == "a")})
    assert searcher.recommend().params["kind"] == "b"


@pytest.mark.parametrize(
    ("searcher", "space", "message"),
    [
        ({"target": {"depth": 24}}, {}, "target: 'depth' must be a parameter"),
        ({"target": {"width": 32}}, {}, "a scale that costs less than the target"),
        ({"roles": {"lrr": "lr"}}, {}, "roles: no hyperparameter 'lrr'; did you mean 'lr'"),
        ({}, {"model": {"lr": tune.uniform(0, 1)}}, "got 'model/lr' from Uniform"),
        ({}, {"layers": [tune.randint(1, 3)]}, "got 'layers/0' from Uniform"),
        ({}, {"seed": tune.grid_search([1, 2])}, "got 'seed' from Grid"),
        ({}, {"steps": tune.sample_from(lambda config: 2)}, "got 'steps' from CallSampler"),
        ({}, {"x": tune.qrandn(0, 1, 0.5)}, "got 'x' from Normal"),
        ({}, {"x": tune.uniform(2, 1)}, "param_space: 'x' is no range"),
        ({}, {"x": tune.choice([])}, "param_space: 'x' is no range"),
        ({"target": {"width": 2048, "depth": 4}}, {"depth": "four"}, "choices of 'depth' must be numbers above zero"),
        ({"mode": "best"}, {}, "metric: one is needed, and mode min or max, got 'loss', 'best'"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_runs(searcher, space, message):
    made = TransferSearcher(**{"target": {"width": 2048}, **searcher})
    with pytest.raises(BadInput, match=message) as raised:
        made.set_search_properties("loss", None if "mode" in searcher else "min", {**SPACE, **space})
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution:UserWarning")  # Optuna, of the list
def test_choices_that_have_no_name_are_refused():
    with pytest.raises(BadInput, match="choices of 'betas' must be text, numbers or booleans"):
        begun(space={**SPACE, "betas": tune.choice([[0.9, 0.95], [0.9, 0.999]])})


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"loss": "low"}, "loss: must be a number, got 'low'"),
        ({"cost": None}, "the metric 'cost' of a completed trial must be a number above zero, got None"),
        ({"cost": -1.0}, "got -1.0; report it, or give cost= a function"),
    ],
)
def test_what_a_trial_cannot_have_told_is_one_line_and_is_not_taken(result, message):
    searcher = begun()
    params = searcher.suggest("a")
    with pytest.raises(BadInput, match=message):
        searcher.on_trial_complete("a", report(params, **result))
    assert not searcher._told.runs
    searcher.on_trial_complete("a", report(params))
    assert len(searcher._told.runs) == 1


def test_a_searcher_that_knows_nothing_says_what_it_needs():
    with pytest.raises(BadInput, match="param_space: something to search is needed"):
        TransferSearcher().suggest("a")
    with pytest.raises(BadInput, match="metric: one is needed"):
        TransferSearcher().set_search_properties(None, None, SPACE)
    with pytest.raises(BadInput, match="got 'b'; tell it to its own searcher"):
        begun().on_trial_complete("b", {"loss": 1.0})
    with pytest.raises(BadInput, match="target: must map axes to values, got 128"):
        TransferSearcher(128)


def test_without_ray_the_extra_is_named():
    code = "import sys; sys.modules['ray'] = None; import tuner, tuner.cli; import tuner.integrations.ray"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "BadInput: ray: Ray Tune is needed" in done.stderr
    assert "pip install 'transfer-tuner[ray]'" in done.stderr.splitlines()[-1]


STUDY = """
import json, math, pathlib, sys
import ray
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from tuner.integrations.ray import TransferSearcher

folder, begun = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1], "begun")
begun.mkdir()


def train(config):
    assert config["data"] == "digits"
    count = len(list(begun.iterdir()))
    (begun / str(count)).touch()
    if count == 1:
        raise RuntimeError("no data")
    tune.report({"loss": math.nan if count == 2 else config["lr"], "flops": config["width"]})


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2])
searcher = TransferSearcher({"width": 2048}, "mup-adam", cost="flops")
done = tune.Tuner(
    train,
    param_space={"lr": tune.loguniform(1e-4, 1e-1), "width": tune.lograndint(32, 257), "data": "digits"},
    tune_config=tune.TuneConfig(
        metric="loss", mode="min", num_samples=4, search_alg=ConcurrencyLimiter(searcher, 1), reuse_actors=True
    ),
    run_config=tune.RunConfig(storage_path=str(folder), name="study", verbose=0),
).fit()
again = TransferSearcher({"width": 2048}, "mup-adam", cost="flops")
again.restore_from_dir(str(folder / "study"))
print(json.dumps({
    "asked": [{name: run.config[name] for name in ("lr", "width")} for run in done],
    "broke": [run.error is not None for run in done],
    "suggested": list(searcher._suggested.values()),
    "runs": [[run.params, run.loss, run.cost] for run in searcher._told.runs],
    "restored": again.suggest("next") == searcher.suggest("next"),
    "answer": searcher.recommend().params,
}))
ray.shutdown()
"""


def test_ray_tune_runs_it_and_keeps_its_record(tmp_path):
    """The second trial breaks, the third diverges. In a process of its own: Ray leaves some for Python to warn of."""
    kept = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,  # and nothing is left in the home folder
    }
    with tempfile.TemporaryDirectory() as short:  # paths of sockets have at most 107 letters
        command = [sys.executable, "-c", STUDY, str(tmp_path), short]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    asked = said["asked"]
    assert said["broke"] == [False, True, False, False]
    assert asked == said["suggested"]
    assert asked[1] not in (asked[2], asked[3])
    losses = [asked[0]["lr"], math.inf, asked[3]["lr"]]
    assert said["runs"] == [[asked[k], value, asked[k]["width"]] for k, value in zip((0, 2, 3), losses, strict=True)]
    assert said["restored"]
    assert 1e-4 / 64 <= said["answer"]["lr"] <= 1e-1 / 64  # muP: the range at width 32, divided by what 2048 is of it
