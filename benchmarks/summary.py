"""What `benchmarks.recorded --output` measured: all methods on all problems, and calibration.

    python -m benchmarks.summary results/llm.json results/gpt2.json ... --figure benchmarks/figures/calibration.svg

Regrets are in percent of the best loss, by the quadratic where the problem has one, else by the nearest row: median
(quartiles) over seeds. "Behind" names a rival whose median is below that of `transfer` by more than the spread: the
interquartile ranges of the two, in quadrature.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.recorded import lost

Entries = Sequence[Mapping[str, Any]]
Results = Mapping[str, Mapping[str, Entries]]  # problem -> method -> a search a seed
TAIL = 1e-5  # relative regrets below are drawn there


def merged(paths: Sequence[Path]) -> dict[str, dict[str, Entries]]:
    """Of files that hold other problems, methods or seeds; where two hold the same search, the later one's."""
    told: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for path in paths:
        for problem, methods in json.loads(path.read_text()).items():
            for name, method in methods.items():
                searches = told.setdefault(problem, {}).setdefault(name, {})
                searches.update({entry["seed"]: entry for entry in method["seeds"]})
    return {p: {name: list(s.values()) for name, s in methods.items()} for p, methods in told.items()}


def regrets(entries: Entries) -> np.ndarray:
    """Final relative regrets, percent; infinite where there is no answer."""
    return np.array([lost(entry["trace"][-1]) for entry in entries])


def middle(entries: Entries) -> tuple[float, float, float]:
    low, median, high = np.quantile(regrets(entries), [0.25, 0.5, 0.75], method="nearest")
    return median, low, high


def field_table(results: Results) -> Iterator[str]:
    names = list(dict.fromkeys(name for methods in results.values() for name in methods))
    yield f"| problem | {' | '.join(names)} | behind |"
    yield f"|---|{'---|' * (len(names) + 1)}"
    for problem, methods in results.items():
        cells = [cell(methods[name]) if name in methods else "" for name in names]
        yield f"| {problem} | {' | '.join(cells)} | {', '.join(behind(methods))} |"


def cell(entries: Entries) -> str:
    median, low, high = middle(entries)
    return f"{median:.3g} ({low:.3g} .. {high:.3g})"


def behind(methods: Mapping[str, Entries]) -> Iterator[str]:
    ours, low, high = middle(methods["transfer"])
    for name, entries in methods.items():
        theirs, below, above = middle(entries)
        spread = math.hypot(high - low, above - below) if math.isfinite(high) else 0.0
        if theirs < ours - spread:
            yield name


def calibration_table(results: Results) -> Iterator[str]:
    yield "| problem | searches | 50 % covered | 90 % covered | width | score | predicted regret % | realised |"
    yield "|---|---|---|---|---|---|---|---|"
    everything = {name: told_by(methods) for name, methods in results.items()}
    pairs = {name: predicted_and_realised(entries) for name, entries in everything.items()}
    for problem, entries in everything.items():
        yield line(problem, entries, pairs[problem])
    yield line("all", [e for entries in everything.values() for e in entries], np.concatenate(list(pairs.values())))


def told_by(methods: Mapping[str, Entries]) -> Entries:
    """Searches of the tuner that ended with an interval."""
    return [entry for entry in methods["transfer"] if entry["covered"]]


def line(problem: str, entries: Entries, pairs: np.ndarray) -> str:
    half, most = (share(entries, key) for key in ("covered_half", "covered"))
    width, score = (np.concatenate([list(e[key].values()) for e in entries]) for key in ("width", "interval_score"))
    medians = [f"{m:.3g}" for m in np.nanmedian(pairs, 0)]
    told = [
        problem,
        f"{len(entries)}",
        f"{half:.2f}",
        f"{most:.2f}",
        f"{np.median(width):.2f}",
        f"{np.mean(score):.2f}",
    ]
    return f"| {' | '.join([*told, *medians])} |"


def share(entries: Entries, key: str) -> float:
    return float(np.mean([held for entry in entries for held in entry[key].values()]))


def predicted_and_realised(entries: Entries) -> np.ndarray:
    """(searches, 2) relative regrets of one problem, percent. The best loss is told by any answer that was not it."""
    scored = (row for entry in entries for row in entry["trace"] if row["regret"])
    best = next((row["regret"] / row["relative_regret"] for row in scored), math.nan)
    return np.array([[100 * e["predicted_regret"] / best, lost(e["trace"][-1])] for e in entries]).reshape(-1, 2)


def figure(results: Results, path: Path) -> None:
    """Coverage of each problem at 50 and 90 %, and predicted against realised regret."""
    shown, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
    colours = plt.get_cmap("tab20")
    for k, (problem, methods) in enumerate(results.items()):
        known = told_by(methods)
        held = [share(known, "covered_half"), share(known, "covered")]
        left.plot([0.5, 0.9], held, "o-", color=colours(k % 20), alpha=0.7, label=problem)
        pairs = np.maximum(predicted_and_realised(known) / 100, TAIL)
        right.loglog(*pairs.T, "o", color=colours(k % 20), alpha=0.6, ms=4)
    left.plot([0.4, 1], [0.4, 1], color="grey", lw=1, ls="--")
    left.set(
        xlabel="stated probability", ylabel="share of intervals that hold the optimum", xlim=(0.4, 1), ylim=(0, 1.03)
    )
    left.set_xticks([0.5, 0.9])
    right.plot([TAIL, 1], [TAIL, 1], color="grey", lw=1, ls="--")
    right.set(xlabel="predicted relative regret", ylabel="realised")
    shown.legend(loc="outside right center", fontsize=7)
    shown.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path)
    chosen = parser.parse_args()
    results = merged(chosen.results)
    print("\n".join(field_table(results)), end="\n\n")
    print("\n".join(calibration_table(results)))
    if chosen.figure:
        figure(results, chosen.figure)


if __name__ == "__main__":
    main()
