"""A generation node in Ax (extra `ax`): the experiment is its state, and is saved and loaded as ever."""

import math

from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from ax.generation_strategy.generation_strategy import GenerationStrategy

from tuner.integrations.ax import TransferNode


def train(lr, width):
    return 1 + 4 / width + 0.1 * math.log(lr * width / 0.64) ** 2


if __name__ == "__main__":
    node = TransferNode(target={"width": 2048}, parametrization="mup-adam")
    client = Client()
    client.configure_experiment(
        [
            RangeParameterConfig("lr", (1e-4, 1e-1), "float", scaling="log"),
            RangeParameterConfig("width", (32, 256), "int", scaling="log"),
        ]
    )
    client.configure_optimization(objective="-loss")
    client.set_generation_strategy(GenerationStrategy(nodes=[node]))
    for _ in range(12):
        [(index, params)] = client.get_next_trials(max_trials=1).items()
        client.complete_trial(index, raw_data={"loss": train(**params), "cost": params["width"] ** 2})
    print(node.recommend(client).params)
