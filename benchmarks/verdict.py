"""The verdict and the gaps where the truth is a closed form: random-feature ridge regression.

    OMP_NUM_THREADS=1 python -m benchmarks.verdict --seeds 20

Searches from widths 256 to 2048 (psi2 = 4 to 32) for width 8192 (psi2 = 128), each of 1 target run. Of the gaps a, b
and c of every proxy: how many of the 90 % intervals hold the truth, and the median ratio of their ends.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

import tuner
from objectives.ridge import RandomFeatures
from tuner.engine import recommend
from tuner.execution import settle_in
from tuner.theorem import Span
from tuner.transfer import Transfer, judge

TARGET = tuner.Scale(width=8192)
PROXIES = tuple(tuner.Scale(width=width) for width in (256, 512, 1024, 2048))


def judged(seed: int, budget: float, noise: float) -> tuple[Transfer, int]:
    objective = RandomFeatures(noise=noise)
    with tuner.create_study(objective=objective, target=TARGET, proxies=PROXIES, seed=seed) as study:
        study.optimize(objective, budget)
        answer = recommend(study.problem, study.observations, seed=seed)
        return judge(study.problem, study.observations, answer, seed=seed), len(study.observations)


def truths(width: float) -> tuple[float, float, float]:
    """a, b and c of a width."""
    objective = RandomFeatures()
    (here, loss), (there, best) = objective.optimum(width), objective.optimum(TARGET["width"])
    return loss - best, abs(math.log(here / there)), objective.risk(here, TARGET["width"]) - best


def holds(span: Span, truth: float) -> bool:
    return span.low <= truth <= span.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=float, default=1.0, help="target runs")
    parser.add_argument("--noise", type=float, default=RandomFeatures.noise, help="deviation of a run")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("forkserver"), initializer=settle_in) as pool:
        jobs = [pool.submit(judged, seed, chosen.budget, chosen.noise) for seed in range(chosen.seeds)]
        found = [job.result() for job in jobs]
    print("| width | gap | truth | covered | ends, ratio | searches |\n|---|---|---|---|---|---|")
    for proxy in PROXIES:
        gaps = [gap for told, _ in found for gap in told.gaps if gap.scale == proxy]
        for name, part, truth in zip("abc", ("loss", "optimum", "regret"), truths(proxy["width"]), strict=True):
            spans = [getattr(gap, part) for gap in gaps]
            covered = np.mean([holds(span, truth) for span in spans])
            ratio = np.median([span.high / max(span.low, 1e-12) for span in spans])
            print(f"| {proxy['width']:g} | {name} | {truth:.3g} | {covered:.2f} | {ratio:.2g} | {len(spans)} |")
    verdicts = Counter(told.verdict for told, _ in found)
    paces = Counter(told.pace for told, _ in found)
    print(f"\nverdicts {dict(verdicts)}; beta / alpha {dict(paces)}; {np.median([n for _, n in found]):g} trials")
    for told, _ in found:
        if told.verdict == "undetermined":
            print(f"undetermined: {told.reasons[0]}")


if __name__ == "__main__":
    main()
