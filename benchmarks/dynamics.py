"""What runs reveal about themselves, on the transformer and the digits.

    OMP_NUM_THREADS=1 python -m benchmarks.dynamics decomposition    the part of the loss that widths share
    OMP_NUM_THREADS=1 python -m benchmarks.dynamics invariance       curves at equal lr and at equal lr x weight_decay
    OMP_NUM_THREADS=1 python -m benchmarks.dynamics hard             the optimum on the hardest tenth of held-out data
    TUNER_TABLES=... python -m benchmarks.dynamics critical          critical batch sizes of recorded language models
    OMP_NUM_THREADS=1 python -m benchmarks.dynamics overhead         what it costs to watch

The networks are those of the objectives, under mup-adamw, one after the other; learning rates are on a grid of factors
of 2^(1/2). Overhead is seconds of a watched run over seconds of the same run unwatched.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.batch import bottom
from objectives.mlp import DigitsMLP
from objectives.stacked import Network, adamw, initialise
from objectives.training import TrainedObjective, schedule
from objectives.transformer import CharTransformer
from tuner.dynamics import (
    NoiseScale,
    Renewal,
    Sharpness,
    Trajectory,
    Updates,
    critical_batch,
    distance,
    kappa_hat,
    periods,
    regime,
)
from tuner.execution import settle_in
from tuner.scale import Scale

OBJECTIVES = {
    "transformer": (CharTransformer(), (32, 64, 128, 256), 3e-3),
    "digits": (DigitsMLP(), (32, 64, 128, 256), 2e-2),
}
RATES = tuple(2.0 ** (k / 2) for k in range(-4, 5))  # around the objective's middle
LOOKS, DECAY = 40, 0.98
TOP = 8  # components that are counted for every width alike

Watch = Callable[[int, Network], None]
Made = Callable[[Network, torch.optim.Optimizer], Watch]
UNWATCHED: Made = lambda network, optimizer: lambda step, network: None  # noqa: E731


def held_out(objective: TrainedObjective) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(objective.held_out())
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def trained(
    objective: TrainedObjective,
    width: int,
    lr: float,
    decay: float,
    seed: int,
    course: Callable[[int, int], float] = schedule,
    watch: Made = UNWATCHED,
) -> tuple[Network, float]:
    """A network after training, and its seconds; `watch` is made before the first step and called after each."""
    torch.set_num_threads(1)
    scale = Scale(width=width)
    network = objective.network(scale, ())
    initialise(network, [seed], [1.0])
    optimizer = adamw(network, [lr], [decay], objective.rules(scale).betas)
    peaks = [group["lr"] for group in optimizer.param_groups]
    watched, steps = watch(network, optimizer), objective.length(scale)
    began = time.perf_counter()
    for step, (x, y) in enumerate(objective.batches([seed], steps, objective.batch)):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * course(step, steps)
        optimizer.zero_grad()
        objective.losses(network, (x[0], y[0])).backward()
        optimizer.step()
        watched(step, network)
    return network, time.perf_counter() - began


# decomposition


def decomposed(name: str, width: int, lr: float) -> tuple[np.ndarray, float, float, float]:
    """Totals of one run; how far its parts miss the linearised change, and that the change; and overhead."""
    objective = OBJECTIVES[name][0]
    batch, paths = held_out(objective), list[Trajectory]()

    def watch(network: Network, optimizer: torch.optim.Optimizer) -> Watch:
        every = objective.length(Scale(width=width)) // LOOKS
        paths.append(Trajectory(network, lambda m: objective.losses(m, batch), DECAY, every))
        return lambda step, network: paths[0].step()

    _, plain = trained(objective, width, lr, 0.1, 0)
    _, seconds = trained(objective, width, lr, 0.1, 0, watch=watch)
    seen = paths[0].result()
    parts = seen.vectors + seen.components.sum(1)
    missed = float(np.abs(parts - seen.linear).max() / np.abs(seen.linear).max())
    curved = float(seen.linear.sum() / (seen.loss[-1] - seen.loss[0]))
    return seen.totals, missed, curved, seconds / plain


def decomposition(workers: int) -> None:
    with ProcessPoolExecutor(workers, initializer=settle_in) as pool:
        for name, (_, widths, middle) in OBJECTIVES.items():
            rates = [middle * r for r in RATES]
            runs = {(w, lr): pool.submit(decomposed, name, w, lr) for w in widths for lr in rates}
            totals = {w: [runs[w, lr].result()[0] for lr in rates] for w in widths}
            most = max(len(t) for row in totals.values() for t in row)
            table = {w: np.array([np.pad(t, (0, most - len(t)), "edge") for t in row]) for w, row in totals.items()}
            told = [run.result()[1:] for run in runs.values()]
            print(f"\n{name}: parts miss the linearised change by at most {max(t[0] for t in told):.1e}; that is "
                  f"{statistics.median(t[1] for t in told):.2f} of the change; overhead "
                  f"{statistics.median(t[2] for t in told):.2f} ({LOOKS} looks)\n")  # fmt: skip
            print(
                "| width | best lr | phi there | top 8 | residual | residual, spread over lr | kappa, median | bound |"
            )
            print("|---|---|---|---|---|---|---|---|")
            ends = {w: {k: v[:, min(k, v.shape[1] - 1)] for k in (TOP, most - 1)} for w, v in table.items()}
            for w in widths:
                whole, top = ends[w][most - 1], ends[w][TOP]
                best = int(whole.argmin())
                found = None if w == widths[-1] else kappa_hat(np.log(rates), table[w], table[widths[-1]])
                kappa = "-" if found is None else f"{np.median(found.kappa):g}"
                bound = "-" if found is None else f"{found.bound:.2f}"
                rest = whole - top
                spread = f"{np.ptp(rest):.3f} of {np.ptp(whole):.3f}"
                numbers = [f"{v[best]:.3f}" for v in (whole, top, rest)]
                cells = [f"{w}", f"{math.exp(bottom(rates, whole)):.4f}", *numbers, spread, kappa, bound]
                print(f"| {' | '.join(cells)} |", flush=True)


# invariance


PAIRS = tuple((lr, product / lr) for product in (2e-3, 8e-3) for lr in (2e-3, 4e-3, 8e-3))  # (lr, weight_decay)
COURSES = {"constant": lambda step, steps: min((step + 1) / 20, 1.0), "decayed": schedule}
MICRO, LONG = 2, 1600


def curves(course: str, pair: tuple[float, float]) -> np.ndarray:
    """Loss, gradient norm and gradient noise of one run: (3, points), means over stretches of 25 steps."""
    objective = CharTransformer(steps=LONG)
    batch, seen = held_out(objective), list[tuple[float, float, float]]()
    data = objective.batches([10_000], LONG // 25, MICRO * objective.batch)

    def watch(network: Network, optimizer: torch.optim.Optimizer) -> Watch:
        def look(step: int, network: Network) -> None:
            if (step + 1) % 25:
                return
            noise = NoiseScale(network.parameters(), objective.batch, MICRO)
            x, y = next(data)
            network.zero_grad()
            for part in zip(x[0].chunk(MICRO), y[0].chunk(MICRO), strict=True):
                (objective.losses(network, part) / MICRO).backward()
                noise.micro()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None))
            noise.step()
            with torch.no_grad():
                seen.append((float(objective.losses(network, batch)), norm, math.sqrt(max(noise.variance, 0.0))))

        return look

    lr, decay = pair
    trained(objective, 64, lr, decay, 0, COURSES[course], watch)
    return np.array(seen).T


def invariance(workers: int) -> None:
    kinds = ("loss", "gradient norm", "gradient noise")
    with ProcessPoolExecutor(workers, initializer=settle_in) as pool:
        for course in COURSES:
            runs = {pair: pool.submit(curves, course, pair) for pair in PAIRS}
            found = {pair: run.result() for pair, run in runs.items()}
            rates = {pair: [pair[0] * COURSES[course](t, LONG) for t in range(LONG)] for pair in PAIRS}
            turn = {pair: next((t for t in range(LONG) if regime(r[: t + 1], pair[1]) != "lr"), LONG)
                    for pair, r in rates.items()}  # fmt: skip
            print(f"\n{course}: periods renewed {', '.join(f'{periods(r, p[1]):.1f}' for p, r in rates.items())}\n")
            print("| curve | when | apart at equal lr | at equal lr x weight_decay | pairs | regime detected |")
            print("|---|---|---|---|---|---|")
            for k, kind in enumerate(kinds):
                for late in (False, True):
                    same = {"lr": list[float](), "product": list[float]()}
                    for one, other in combinations(PAIRS, 2):
                        kept = _stretch(turn[one], turn[other], late)
                        which = (
                            "lr"
                            if one[0] == other[0]
                            else "product"
                            if math.isclose(one[0] * one[1], other[0] * other[1])
                            else ""
                        )
                        if which and kept.stop - kept.start >= 4:
                            same[which].append(distance(found[one][k, kept], found[other][k, kept]))
                    cells = [f"{statistics.median(v):.3f}" if v else "-" for v in same.values()]
                    when, said = ("after", "lr x weight_decay") if late else ("before", "lr")
                    counted = " ".join(str(len(v)) for v in same.values())
                    print(f"| {kind} | {when} one period | {' | '.join(cells)} | {counted} | {said} |", flush=True)


def _stretch(one: int, other: int, late: bool) -> slice:
    """Points of both curves before both were renewed once, or after."""
    return slice(max(one, other) // 25, LONG // 25) if late else slice(0, min(one, other) // 25)


# hard examples


def each_loss(name: str, width: int, lr: float, seed: int) -> np.ndarray:
    """Held-out loss of every digit, or of every character, after training."""
    objective = OBJECTIVES[name][0]
    network, _ = trained(objective, width, lr, 0.1, seed)
    x, y = held_out(objective)
    with torch.no_grad():
        return F.cross_entropy(network(x).flatten(0, -2), y.flatten(), reduction="none").double().numpy()


def hard(workers: int, seeds: int = 3) -> None:
    """Which tenth is the hardest is told by the widest networks, all rates and seeds."""
    print("| network | width | best lr, all (range over seeds) | hardest tenth (range) | loss of the tenth at either |")
    print("|---|---|---|---|---|")
    with ProcessPoolExecutor(workers, initializer=settle_in) as pool:
        for name, (_, widths, middle) in OBJECTIVES.items():
            rates = [middle * r for r in RATES]
            keys = [(w, lr, seed) for w in widths for lr in rates for seed in range(seeds)]
            runs = {key: pool.submit(each_loss, name, *key) for key in keys}
            losses = {w: np.array([[runs[w, lr, s].result() for lr in rates] for s in range(seeds)]) for w in widths}
            order = losses[widths[-1]].mean((0, 1)).argsort()
            tenth = order[-len(order) // 10 :]
            for w in widths:
                tables = [losses[w].mean(2), losses[w][:, :, tenth].mean(2)]  # (seeds, rates) each
                either = [f"{tables[1].mean(0)[table.mean(0).argmin()]:.3f}" for table in tables]
                cells = [name, f"{w}", *(best_rate(rates, table) for table in tables), " and ".join(either)]
                print(f"| {' | '.join(cells)} |", flush=True)


def best_rate(rates: Sequence[float], table: np.ndarray) -> str:
    """Of the mean over seeds, and its range over them."""
    each = np.exp([bottom(rates, line) for line in table])
    return f"{math.exp(bottom(rates, table.mean(0))):.4f} ({each.min():.4f} .. {each.max():.4f})"


# critical batch


def critical(workers: int) -> None:
    cells: dict[float, dict[float, float]] = {}
    with (Path(os.environ["TUNER_TABLES"]) / "steps_to_target.csv").open() as file:
        for row in csv.DictReader(file):
            cell = cells.setdefault(float(row["params"]), {})
            batch, steps = float(row["batch_size"]), float(row["steps_to_target"])
            cell[batch] = min(steps, cell.get(batch, math.inf))
    print("| parameters | critical batch, sequences (deviation of its logarithm) | fewest steps | misfit of ln steps |")
    print("|---|---|---|---|")
    fits = {size: critical_batch(list(cell), list(cell.values())) for size, cell in sorted(cells.items())}
    for size, fit in fits.items():
        print(f"| {size:.3g} | {fit.batch:.0f} ({fit.deviation:.2f}) | {fit.steps:.0f} | {fit.misfit:.3f} |")
    slope = np.polyfit(np.log(list(fits)), np.log([fit.batch for fit in fits.values()]), 1)[0]
    print(f"\ncritical batch goes as parameters^{slope:.2f}")


# overhead


def overhead(workers: int, repeats: int = 3) -> None:
    """Alone, one after the other: ratios of times in one process."""
    objective = CharTransformer()
    batch = held_out(objective)
    print("| watched | every | seconds, over the same run unwatched (smallest .. largest) |\n|---|---|---|")
    for name, every, made in watchers(objective, batch):
        ratios = []
        for seed in range(repeats):
            plain, watched = (trained(objective, 64, 3e-3, 0.1, seed, watch=w)[1] for w in (UNWATCHED, made))
            ratios.append(watched / plain)
        print(f"| {name} | {every} | {np.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f}) |", flush=True)


def watchers(objective: TrainedObjective, batch: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[str, str, Made]]:
    small = batch[0][: objective.batch], batch[1][: objective.batch]

    def loss(network: nn.Module) -> torch.Tensor:
        return objective.losses(network, batch)

    def few(network: nn.Module) -> torch.Tensor:
        return objective.losses(network, small)

    def stepping(made: Callable[[Network, torch.optim.Optimizer], Any]) -> Made:
        def make(network: Network, optimizer: torch.optim.Optimizer) -> Watch:
            seen = made(network, optimizer)
            return lambda step, network: seen.step()

        return make

    def noisy(network: Network, optimizer: torch.optim.Optimizer) -> Watch:
        noise = NoiseScale(network.parameters(), objective.batch // 2, 2)

        def look(step: int, network: Network) -> None:  # what is added to a step that has micro-batches anyway
            noise.micro()
            noise.micro()
            noise.step()

        return look

    return [
        ("Trajectory", "10 steps", stepping(lambda n, o: Trajectory(n, loss, DECAY, 10))),
        ("Sharpness, on one minibatch", "50 steps", stepping(lambda n, o: Sharpness(n, few, every=50))),
        ("the same, as AdamW sees it", "50 steps", stepping(lambda n, o: Sharpness(n, few, o, every=50))),
        ("NoiseScale, two micro-batches", "step", noisy),
        ("Updates", "10 steps", stepping(lambda n, o: Updates(n, 10))),
        ("Renewal", "step", stepping(lambda n, o: Renewal(o))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shown = {f.__name__: f for f in (decomposition, invariance, hard, critical, overhead)}
    parser.add_argument("what", choices=shown)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    shown[chosen.what](chosen.workers)


if __name__ == "__main__":
    main()
