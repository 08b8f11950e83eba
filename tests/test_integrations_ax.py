"""Claims about the Ax node: it proposes what the engine does, keeps what is fixed, and survives being saved."""

import logging
import math
import warnings

import pytest

from tuner.errors import BadInput

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ax.api.client import Client
        from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig
        from ax.generation_strategy.generation_strategy import GenerationStrategy
        from ax.utils.common.logger import set_ax_logger_levels
except ImportError:
    pytest.skip("no ax-platform: install the extra ax", allow_module_level=True)

from tuner import engine
from tuner.integrations.ax import SAVED, TransferNode
from tuner.parametrization import preset
from tuner.problem import Problem
from tuner.scale import Scale
from tuner.space import Float, SearchSpace
from tuner.trial import Observation

set_ax_logger_levels(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore")  # of its own storage

LR = RangeParameterConfig("lr", (1e-4, 1e-1), "float", scaling="log")
WIDTH = RangeParameterConfig("width", (32, 256), "int", scaling="log")
PROXIES = tuple(Scale(width=w) for w in (32, 64, 128, 256))


def loss(lr, width):
    """The best rate goes as 1 / width; it is 0.02 at width 32."""
    return 1 + 4 / width + 0.1 * math.log(lr * width / 0.64) ** 2


def made(node, *parameters, objective="-loss"):
    client = Client(random_seed=0)
    client.configure_experiment([LR, WIDTH, *parameters])
    client.configure_optimization(objective=objective)
    client.set_generation_strategy(GenerationStrategy(nodes=[node]))
    return client


def added(client, lr, width, **told):
    raw = {"loss": loss(lr, width), "cost": float(width**2), **told}
    client.complete_trial(client.attach_trial({"lr": lr, "width": width}), raw_data=raw)


def recorded(node, count=6):
    client = made(node)
    for k in range(count):
        added(client, 0.002 * 1.7**k, 64 if k % 3 else 32)
    return client


def test_small_trials_find_the_optimum_of_a_width_that_never_ran():
    node = TransferNode({"width": 2048}, "mup-adam")
    client = made(node)
    for _ in range(14):
        for index, params in client.get_next_trials(max_trials=1).items():
            told = {"loss": loss(params["lr"], params["width"]), "cost": float(params["width"] ** 2)}
            client.complete_trial(index, raw_data=told)
    answer = node.recommend(client)
    assert loss(answer.params["lr"], 2048) - loss(0.64 / 2048, 2048) < 0.01  # a factor e away loses 0.1


def test_the_same_record_and_seed_give_the_engine_s_proposal_and_again_after_saving(tmp_path):
    client = recorded(TransferNode({"width": 2048}, "mup-adam", seed=3))
    client.save_to_json_file(str(tmp_path / "study.json"))
    space, cost = SearchSpace({"lr": Float(1e-4, 1e-1, log=True)}), lambda params, scale: scale["width"] ** 2
    problem = Problem(space, Scale(width=2048), PROXIES, PROXIES[0], preset("mup-adam"), cost)
    runs = [
        Observation(problem.to_base({"lr": lr}, scale), scale, round(loss(lr, width), SAVED), width**2)
        for k in range(6)
        for lr, width in [(0.002 * 1.7**k, 64 if k % 3 else 32)]
        for scale in [Scale(width=width)]
    ]
    [asked] = engine.propose(problem, runs, seed=3)
    [found] = client.get_next_trials(max_trials=1).values()
    [again] = Client.load_from_json_file(str(tmp_path / "study.json")).get_next_trials(max_trials=1).values()
    assert found["width"] == again["width"] == asked.scale["width"]
    assert found["lr"] == again["lr"] == pytest.approx(problem.to_raw(asked.params, asked.scale)["lr"])


def test_what_is_fixed_stays_and_several_candidates_differ():
    client = recorded(TransferNode({"width": 2048}))
    found = client.get_next_trials(max_trials=2, fixed_parameters={"width": 128}).values()
    assert {params["width"] for params in found} == {128}
    assert len({params["lr"] for params in found}) == 2


def test_a_trial_that_failed_is_not_made_again_and_one_stopped_early_diverged():
    node = TransferNode({"width": 2048})
    client = recorded(node)
    [(index, params)] = client.get_next_trials(max_trials=1).items()
    client.mark_trial_failed(index)
    [(index, other)] = client.get_next_trials(max_trials=1).items()
    assert other["lr"] != params["lr"]
    client.attach_data(index, {"loss": 1.0})  # an early loss, which ranks nothing
    client.mark_trial_early_stopped(index)
    node.update_generator_state(client._experiment, client._experiment.lookup_data())
    assert [run.loss for run in node._told.observations][6:] == [math.inf]
    assert node._broken == [params]


def test_a_choice_and_an_objective_that_is_maximised():
    node = TransferNode({"width": 2048}, cost=lambda scale: scale["width"] ** 2)
    client = made(node, ChoiceParameterConfig("kind", ["a", "b"], "str", is_ordered=False), objective="score")
    for _ in range(7):
        for index, p in client.get_next_trials(max_trials=1).items():
            client.complete_trial(index, raw_data={"score": -loss(p["lr"], p["width"]) - (p["kind"] == "a")})
    answer = node.recommend(client)
    assert answer.params["kind"] == "b"
    assert answer.loss > 0
    with pytest.raises(BadInput, match="cannot be saved"):
        client._to_json_snapshot()


@pytest.mark.parametrize(
    ("node", "told", "message"),
    [
        (TransferNode({"width": 2048}), {"cost": -1.0}, "the metric 'cost' of a completed trial must be"),
        (TransferNode({"width": 2048}, "none", "flops"), {}, "the metric 'flops' .* got None"),
        (TransferNode({"depth": 24}), {}, "target: 'depth' must be a parameter"),
        (TransferNode({"width": 32}), {}, "a scale that costs less than the target"),
    ],
)
def test_what_cannot_be_is_one_line_and_makes_no_trial(node, told, message):
    client = recorded(node, 2)
    added(client, 0.01, 64, **told)
    with pytest.raises(BadInput, match=message):
        client.get_next_trials(max_trials=1)
    assert len(client._experiment.trials) == 3
