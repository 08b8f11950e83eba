"""What `tuner predict` says of a language model from every row of the cells that cost less, beside its rows.

    TUNER_TABLES=... OMP_NUM_THREADS=1 python -m benchmarks.below

Regret (smooth) and coverage are those that a replay is scored by; the widths of intervals are shares of the range.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.recorded import LLM_DEV, lost, problem
from tuner.opening import open_study
from tuner.replay import Replay


def main() -> None:
    print("| target | rows | s | predicted loss | best row | regret % | covered: lr, batch | width: lr, batch |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in LLM_DEV:
            file = problem(name, Path(folder))
            replay = Replay.of(file)
            target = replay.problem.target
            where = f"6 * params * tokens < {0.99 * replay.table.cost_at(target)}"
            start = time.perf_counter()
            with open_study(file.model_copy(update={"runs": file.runs.model_copy(update={"where": where})})) as study:  # type: ignore[union-attr]
                rec = study.recommend()
                rows = len(study.observations)
            seconds = time.perf_counter() - start
            best = min(run.loss for run in replay.truth.runs)
            regret = lost(replay.truth.score(rec.params))
            covered = ["yes" if held else "no" for held in replay.truth.told(rec.interval, 0.9)["covered"].values()]
            space = replay.problem.space
            widths = [space[n].encode(high) - space[n].encode(low) for n, (low, high) in rec.interval.items()]
            told = [
                name,
                rows,
                f"{seconds:.0f}",
                f"{rec.loss:.4f} sd {rec.loss_sd:.4f}",
                f"{best:.4f}",
                f"{regret:.3f}",
            ]
            cells = [*map(str, told), ", ".join(covered), ", ".join(f"{width:.2f}" for width in widths)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
