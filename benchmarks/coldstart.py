"""Seconds until a fresh process has answered: ours, and importing what people have already; in turns, in one run.

    python -m benchmarks.coldstart --repeats 5

`tuner predict` reads a table of 200 rows and fits it. A package that is not installed is left out.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ROWS = 200
STUDY = """[study]
name = "sweep"
[runs]
path = "sweep.csv"
cost = "width ** 2"
[space]
lr = { low = 1e-4, high = 1e-1, log = true }
weight_decay = { low = 1e-3, high = 1.0, log = true }
[scale]
target = { width = 1024 }
[parametrization]
preset = "sp-adamw"
"""


def sweep(folder: Path) -> Path:
    """A study file beside its table, of runs of a bowl whose optimum drifts."""
    rng = np.random.default_rng(0)
    lines = ["lr,weight_decay,width,loss"]
    for row in range(ROWS):
        width, lr, decay = (32, 64, 128, 256)[row % 4], 10 ** rng.uniform(-4, -1), 10 ** rng.uniform(-3, 0)
        away = math.log(lr / (0.3 / width)) ** 2 + math.log(decay / 0.1) ** 2
        lines.append(f"{lr},{decay},{width},{2 + 4 / width + 0.02 * away + 0.005 * rng.standard_normal()}")
    (folder / "sweep.csv").write_text("\n".join(lines) + "\n")
    (folder / "sweep.toml").write_text(STUDY)
    return folder / "sweep.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        cli = ["-m", "tuner.cli"]
        commands = {
            "python -c pass": ["-c", "pass"],
            "import tuner": ["-c", "import tuner"],
            "tuner --help": [*cli, "--help"],
            f"tuner predict, {ROWS} rows": [*cli, "predict", str(sweep(Path(folder))), "--json"],
            **{f"import {name}": ["-c", f"import {name}"] for name in ("optuna", "torch", "botorch")},
            "import ax": ["-c", "from ax.api.client import Client"],
        }
        commands = {
            name: line for name, line in commands.items() if "import" not in name or find_spec(name.split()[-1])
        }
        took: dict[str, list[float]] = {name: [] for name in commands}
        for repeat in range(repeats + 1):  # the first fills the disk's cache
            for name, line in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *line], check=True, capture_output=True)
                if repeat:
                    took[name].append(time.perf_counter() - start)
    print("| command | seconds |\n|---|---|")
    for name, seconds in took.items():
        print(f"| {name} | {np.median(seconds):.2f} ({min(seconds):.2f} .. {max(seconds):.2f}) |")


if __name__ == "__main__":
    main()
