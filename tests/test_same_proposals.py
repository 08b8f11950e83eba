"""Claims about hosts: the same problem, seed and losses give the same trials, whoever runs them.

Every proposal is the engine's, a function of problem, record, seed and budget. Of these, hosts differ in what follows,
unless they are told alike, as here:

| what            | a study of ours                      | the adapters (Optuna, Ax, Ray)                         |
|-----------------|--------------------------------------|--------------------------------------------------------|
| first trial     | the first of the design              | the same; Optuna, which knows no ranges yet, draws one |
| proxies         | those that are listed                | rungs of the axes' ranges, a factor of 2 apart or less |
| base            | the cheapest proxy, unless given     | the smallest rung of every axis, unless given          |
| ranges          | of base values; raw ones may leave   | of base values; no run whose raw values leave is made  |
| hyperparameters | in the order of the space            | in that of the parameters; Optuna: of the first trial  |
| cost            | a function, or a law of the seconds  | a function, or a law of what runs report               |
| budget          | none of ask(); one of optimize()     | none                                                   |
| several at once | a batch of one scale                 | one by one, each knowing those under way               |
| what broke      | is tried again                       | is not made again                                      |
| default seed    | 0                                    | 0; Optuna: from the study's name                       |
| losses          | as they are told                     | the same; Ax: to the ten decimals that it saves        |

A budget counts a run as a 64th of what is left at least, keeps back what the verdict needs, and affords no dearer run:
the one here is where none of this changes the first trials. A Dask cluster of one slot is in `test_cluster`.
"""

import logging
import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest

import tuner
from tuner.integrations.optuna import TransferSampler
from tuner.scale import Scale

optuna.logging.set_verbosity(optuna.logging.WARNING)

COUNT, SEED, RULE, TARGET = 10, 5, "mup-adam", {"width": 1024}
PROXIES = [Scale(width=width) for width in (32, 64, 128, 256)]
BUDGET = 1.0  # target runs: a 64th of it is less than the cheapest run; the first trials leave what the dearest costs


def loss(lr, heads, width):
    """Best at lr 0.64 / width and 4 heads; it diverges a factor of 3 above that rate."""
    if lr * width > 3 * 0.64:
        return math.nan
    return round(1 + 4 / width + 0.1 * math.log(lr * width / 0.64) ** 2 + 0.05 * math.log(heads / 4) ** 2, 10)


def cost(scale):
    return float(scale["width"])


def study(seed=SEED):
    return tuner.create_study(
        space={"lr": tuner.Float(1e-4, 1e-1, log=True), "heads": tuner.Int(1, 16, log=True)},
        target=Scale(TARGET),
        proxies=PROXIES,
        parametrization=RULE,
        cost=lambda params, scale: cost(scale),
        seed=seed,
    )


@pytest.fixture(scope="module")
def asked():
    """Raw hyperparameters and scales of the trials of a study that is asked and told."""
    found = []
    with study() as ours:
        for _ in range(COUNT):
            trial = ours.ask()
            found.append({**trial.params, **trial.scale})
            ours.tell(trial, loss(**found[-1]))
    return found


def optimised(**where):
    with study() as ours:
        ours.optimize(lambda params, scale, seed: loss(**params, **scale), BUDGET, **where)
        return [{**entry.trial.params, **entry.trial.scale} for entry in ours.entries[:COUNT]]


def here(first):
    return optimised()


def on_a_thread(first):
    with ThreadPoolExecutor(1) as pool:
        return optimised(executor=pool)


def in_optuna(first, storage=None):
    def objective(trial):
        lr, heads = trial.suggest_float("lr", 1e-4, 1e-1, log=True), trial.suggest_int("heads", 1, 16, log=True)
        found = loss(lr, heads, trial.suggest_int("width", 32, 256, log=True))
        if math.isnan(found):
            raise optuna.TrialPruned
        return found

    sampler = TransferSampler(TARGET, RULE, cost=cost, seed=SEED)
    theirs = optuna.create_study(sampler=sampler, storage=storage)
    theirs.enqueue_trial(first)
    theirs.optimize(objective, n_trials=COUNT)
    return [trial.params for trial in theirs.trials]


def in_optuna_on_a_database(first):
    return in_optuna(first, "sqlite://")


def in_ax(first):
    pytest.importorskip("ax", reason="no ax-platform: install the extra ax")
    from ax.api.client import Client
    from ax.api.configs import RangeParameterConfig
    from ax.generation_strategy.generation_strategy import GenerationStrategy
    from ax.utils.common.logger import set_ax_logger_levels

    from tuner.integrations.ax import TransferNode

    set_ax_logger_levels(logging.ERROR)
    client = Client()
    ranges = {"lr": ((1e-4, 1e-1), "float"), "heads": ((1, 16), "int"), "width": ((32, 256), "int")}
    client.configure_experiment([RangeParameterConfig(name, *of, scaling="log") for name, of in ranges.items()])
    client.configure_optimization(objective="-loss")
    node = TransferNode(TARGET, RULE, cost=cost, seed=SEED)
    client.set_generation_strategy(GenerationStrategy(nodes=[node]))
    found = []
    for _ in range(COUNT):
        [(index, params)] = client.get_next_trials(max_trials=1).items()
        found.append(params)
        told = loss(**params)
        client.complete_trial(index, raw_data={"loss": math.inf if math.isnan(told) else told})
    return found


def in_ray(first):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        tune = pytest.importorskip("ray.tune", reason="no Ray: install the extra ray")
    from tuner.integrations.ray import TransferSearcher

    searcher = TransferSearcher(TARGET, RULE, cost=cost, seed=SEED)
    space = {"lr": tune.loguniform(1e-4, 1e-1), "heads": tune.lograndint(1, 17), "width": tune.lograndint(32, 257)}
    assert searcher.set_search_properties("loss", "min", space)
    found = []
    for k in range(COUNT):
        found.append(searcher.suggest(str(k)))
        searcher.on_trial_complete(str(k), {"loss": loss(**found[-1])})
    return found


AX = pytest.param(in_ax, marks=pytest.mark.filterwarnings("ignore"))  # of its own storage


@pytest.mark.parametrize("host", [here, on_a_thread, in_optuna, in_optuna_on_a_database, AX, in_ray])
def test_every_host_makes_the_same_trials(host, asked):
    found = host(asked[0])
    assert len(found) == COUNT
    for theirs, ours in zip(found, asked, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-9)
        assert {name: type(value) for name, value in theirs.items()} == {n: type(value) for n, value in ours.items()}


def test_what_they_agree_on_is_a_search(asked):
    """At several widths, through a run that diverged; and another seed makes another."""
    assert len({trial["width"] for trial in asked}) > 1
    assert any(math.isnan(loss(**trial)) for trial in asked)
    assert sum(map(cost, asked)) + max(map(cost, PROXIES)) <= BUDGET * cost(TARGET)
    with study(SEED + 1) as other:
        assert other.ask().params["lr"] != asked[0]["lr"]
