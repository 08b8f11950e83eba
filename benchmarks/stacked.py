"""How much faster trials train together, as one stack, than one by one.

For each objective and width: trials a second of a stack of K over trials a second of K runs one after the other, both
timed in the same repeat, so that a busy machine slows both; median, smallest and largest ratio of the repeats.

    python -m benchmarks.stacked [--members 8] [--repeats 5] [--steps 100]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from objectives.mlp import DigitsMLP, TeacherMLP
from objectives.training import TrainedObjective
from objectives.transformer import CharTransformer
from tuner.scale import Scale
from tuner.trial import Trial

CASES: list[tuple[type[TrainedObjective], tuple[int, ...]]] = [
    (DigitsMLP, (16, 64, 256)),
    (TeacherMLP, (16, 64, 256)),
    (CharTransformer, (32, 64)),
]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(objective: TrainedObjective, trials: Sequence[Trial], repeats: int) -> list[tuple[float, float]]:
    """(trials a second one by one, trials a second stacked), one pair a repeat, after a pair that is not counted."""

    def one_by_one() -> None:
        for trial in trials:
            objective(trial.params, trial.scale, trial.seed)

    pairs = [
        (len(trials) / seconds(one_by_one), len(trials) / seconds(lambda: objective.train_many(trials)))
        for _ in range(repeats + 1)
    ]
    return pairs[1:]


def line(objective: TrainedObjective, width: int, members: int, repeats: int) -> str:
    middle = objective.space.middle
    trials = [Trial(k, middle, Scale(width=width), seed=k) for k in range(members)]
    pairs = measure(objective, trials, repeats)
    ratios = sorted(stacked / alone for alone, stacked in pairs)
    alone, stacked = (median(pair[i] for pair in pairs) for i in (0, 1))
    spread = f"{median(ratios):6.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
    return f"{type(objective).__name__:16} {width:5} {alone:10.2f} {stacked:10.2f}   {spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--members", type=int, default=8, help="K, trials in a stack")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="steps of each run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"K = {args.members}, {args.steps} steps, {args.repeats} repeats, 1 thread, torch {torch.__version__}")
    print(f"{'objective':16} {'width':>5} {'alone /s':>10} {'stacked /s':>10}   ratio [smallest, largest]")
    for family, widths in CASES:
        for width in widths:
            print(line(family(steps=args.steps), width, args.members, args.repeats), flush=True)


if __name__ == "__main__":
    main()
