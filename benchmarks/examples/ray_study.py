"""A search algorithm in Ray Tune (extra `ray`)."""

import math

import ray
from ray import tune

from tuner.integrations.ray import TransferSearcher


def train(config):
    away = math.log(config["lr"] * config["width"] / 0.64)
    tune.report({"loss": 1 + 4 / config["width"] + 0.1 * away**2, "cost": config["width"] ** 2})


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    searcher = TransferSearcher({"width": 2048}, "mup-adam", metric="loss", mode="min")
    space = {"lr": tune.loguniform(1e-4, 1e-1), "width": tune.lograndint(32, 257)}
    settings = tune.TuneConfig(search_alg=searcher, num_samples=10, max_concurrent_trials=1)
    tune.Tuner(train, param_space=space, tune_config=settings).fit()
    print(searcher.recommend().params)
