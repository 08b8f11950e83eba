"""AdamW, Lion and Mars: what `tuner predict` says of the larger widths from the stars of the two smaller ones.

    TUNER_TABLES=... OMP_NUM_THREADS=1 python -m benchmarks.stars

A star varies one hyperparameter at a time around one setting, so it shows where each optimum lies if the others stay
there, and nothing of how they move each other. Rows: one Chinchilla length, widths 512 and 768; five hyperparameters.
Beside each answer stands the best of the larger width's own star among rows that differ in that hyperparameter alone,
with the next best value of it, between which the star cannot tell more. A hyperparameter is called identified where its
interval is at most half of the range, and the range is that of all rows.
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

from tuner.opening import open_study, recorded_table
from tuner.runs import Run
from tuner.scale import Scale
from tuner.studyfile import StudyFile, read

SPACES = {
    "adamw": ("lr = { low = 2e-3, high = 3.2e-2, log = true }", "weight_decay = { low = 0.0, high = 0.2 }"),
    "lion": ("lr = { low = 5e-4, high = 8e-3, log = true }", "weight_decay = { low = 0.4, high = 1.0 }"),
    "mars": ("lr = { low = 4e-3, high = 3.2e-2, log = true }", "weight_decay = { low = 0.0, high = 0.2 }"),
}
STUDY = """[study]
name = "{optimizer}"
[runs]
path = "{tables}/optimizer_sweeps.csv"
cost = "flops"
diverged = "diverged"
where = "optimizer == '{optimizer}' and chinchilla == 1{where}"
[space]
{space}
batch_size = {{ low = 128, high = 1024, log = true, type = "int" }}
warmup = {{ low = 500, high = 4000, log = true, type = "int" }}
beta2 = {{ low = 0.9, high = 0.99 }}
[scale]
target = {{ width = {target} }}
[parametrization]
preset = "sp-adamw"
"""
IDENTIFIED = 0.5


def study_file(folder: Path, optimizer: str, target: int, where: str) -> StudyFile:
    path = folder / f"{optimizer}_{target}.toml"
    tables, space = os.environ.get("TUNER_TABLES", ""), "\n".join(SPACES[optimizer])
    path.write_text(STUDY.format(optimizer=optimizer, tables=tables, where=where, space=space, target=target))
    return read(path)


def arm(runs: list[Run], name: str) -> str:
    """Of the runs that share all but one hyperparameter with the best: its best value and the next."""
    best = min(runs, key=lambda run: run.loss)
    others = dict(best.params)
    along = [run for run in runs if math.isfinite(run.loss) and {**run.params, name: None} == {**others, name: None}]
    losses = {run.params[name]: run.loss for run in sorted(along, key=lambda run: -run.loss)}  # of replicates the best
    first, *rest = sorted(losses, key=lambda value: losses[value])
    return f"{first:g}" + (f" (then {rest[0]:g}, {losses[rest[0]] - losses[first]:+.4f})" if rest else "")


def main() -> None:
    print(
        "| optimizer, width | hyperparameter | answer (90 %) | share of the range | identified | its own star's best |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for optimizer, target in (("adamw", 1024), ("adamw", 1536), ("lion", 1024), ("mars", 1024)):
            folder = Path(name)
            table = recorded_table(study_file(folder, optimizer, target, ""))
            own = [run for run in table.runs if run.scale == Scale(width=target)]
            with open_study(study_file(folder, optimizer, target, " and width <= 768")) as study:
                rec = study.recommend()
                rows = len(study.observations)
            space = study.problem.space
            best = min(run.loss for run in own)
            print(
                f"| **{optimizer}, {target}** | {rows} rows below | loss {rec.loss:.3f} sd {rec.loss_sd:.3f} | | "
                f"{'; '.join(rec.reasons[1:])} | loss {best:.3f} |"
            )
            for one, (low, high) in rec.interval.items():
                wide = float(space[one].encode(high) - space[one].encode(low))
                told = [
                    f"{optimizer}, {target}", one, f"{rec.params[one]:.3g} ({low:.3g} .. {high:.3g})", f"{wide:.2f}",
                    "yes" if wide <= IDENTIFIED else "no", arm(own, one),
                ]  # fmt: skip
                print(f"| {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
