"""The tuner's two questions, as pure functions of the record: what to run next, and what is best at the target.

Everything here is in base coordinates but the answer, which is raw at the target; randomness comes from the seed and
the number of runs alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import qmc
from torch import Tensor

from tuner.acquisition import Knowledge
from tuner.errors import BadInput
from tuner.outlier import absurd, borne_out, too_low
from tuner.parametrization import REGULARISERS
from tuner.posterior import SCREEN, answers, candidates, fit_of, generator_of, one_thread, power_of_two
from tuner.problem import SLACK, Problem
from tuner.scale import Scale, by_scale
from tuner.space import Categorical, Params, Value
from tuner.surrogate.fit import Fit
from tuner.surrogate.mean import undrifted
from tuner.surrogate.optimum import Moments, Points
from tuner.trial import LEVEL, TAILS, Observation, Proposal, Recommendation

Array = NDArray[np.float64]

RUNS = 64  # points near where the optimum of a proxy may be
WALL = 6.0  # height above the bottom of a valley, in standard deviations of a run, that is still in it
BATCHES = (1, 2, 4)  # runs at one scale that are weighed together
LOOKAHEAD = BATCHES[-1]
POOL = 512  # points that the scales of a path share
DRAWS = 512  # of the optimum's location
ENOUGH = 64  # runs that what is left should at least be planned for
SCALES_JUDGED = 3  # that a verdict needs: two optima can be joined by a line, a third bears out that it goes on
RUNS_JUDGED = 3  # with a finite loss at each of them: as many as a parabola has coefficients
BEYOND = 0.3  # root mean square over hyperparameters, cube lengths: an answer that far from every run is a guess
ANSWER = 320  # points near the optimum, of the answer: its interval ends lie on them


@one_thread
def propose(
    problem: Problem,
    observations: Sequence[Observation],
    pending: Sequence[Proposal] = (),
    *,
    seed: int = 0,
    budget: float = math.inf,
    count: int = 1,
    among: Sequence[Proposal] | None = None,
) -> list[Proposal]:
    """The next runs to make, all of one scale, each chosen knowing those before it are under way.

    Args:
        observations: finished runs. pending: runs under way.
        budget: cost that is left; no run that exceeds it is proposed.
        count: how many runs at most.
        among: the only runs that can be made; None: any of the space at any proxy.

    Returns:
        Between 0 and `count` proposals; none when no proxy fits the budget.
    """
    number, budget = len(observations) + len(pending), SLACK * budget
    if number < _first_runs(problem) or not any(not o.diverged for o in observations):
        return _design(problem, number, seed, budget, count, among)
    fitted = fit_of(problem, observations, seed)
    generator = generator_of(seed, number)
    with torch.no_grad():
        points = candidates(problem, fitted, problem.target, generator)
        owed = _owed(problem, [*borne_out(problem, observations), *pending], budget, among)
        return _most_taught(problem, fitted, points, list(pending), generator, budget, owed, count, among)


@one_thread
def recommend(
    problem: Problem, observations: Sequence[Observation], *, seed: int = 0, level: float = LEVEL
) -> Recommendation:
    """What is best at the target, from the finished runs; where the optimum lies with probability `level`.

    Raises:
        BadInput: no run with a finite loss.
    """
    fitted, generator = _known(problem, observations, seed)
    answer = _answer(problem, fitted, generator, level)
    return replace(answer, reasons=(*answer.reasons, *_doubted(problem, observations), *_bound_to_data(problem)))


@one_thread
def best(problem: Problem, observations: Sequence[Observation], *, seed: int = 0) -> dict[str, Value]:
    """The hyperparameters that `recommend` names, without what is known of them."""
    fitted, generator = _known(problem, observations, seed)
    with torch.no_grad():
        points = answers(problem, fitted, generator, ANSWER)
        return problem.to_raw(_chosen(problem, points), problem.target)


def _known(problem: Problem, observations: Sequence[Observation], seed: int) -> tuple[Fit, torch.Generator]:
    if all(o.diverged for o in observations):
        raise BadInput(
            f"recommend: at least one run with a finite loss is needed, got {len(observations)} runs, all diverged; "
            "lower the ranges of the space or run more trials"
        )
    return fit_of(problem, observations, seed), generator_of(seed, len(observations))


# What to run


def _first_runs(problem: Problem) -> int:
    """Space-filling runs before the surrogate is asked."""
    return len(problem.space) + 2


def _design(
    problem: Problem, number: int, seed: int, budget: float, count: int, among: Sequence[Proposal] | None
) -> list[Proposal]:
    """The next points of a scrambled Sobol sequence, at the cheapest proxy; the nearest that can be made."""
    points = qmc.Sobol(len(problem.space), rng=np.random.default_rng(seed)).random(power_of_two(number + count))
    scales = problem.proxies if among is None else list(dict.fromkeys(run.scale for run in among))
    chosen: list[Proposal] = []
    for point in points[number : number + count]:
        params = problem.space.decode(point)
        scale = min(scales, key=lambda s: problem.cost(params, s))
        budget -= problem.cost(params, scale)
        there = None if among is None else [run for run in among if run.scale == scale and run not in chosen]
        if budget < 0 or there == []:
            break
        chosen.append(Proposal(params, scale) if there is None else problem.nearest(point, there))
    return chosen


def _owed(
    problem: Problem,
    runs: Sequence[Observation | Proposal],
    budget: float,
    among: Sequence[Proposal] | None,
) -> dict[Scale, float]:
    """What must be kept of a budget for the runs that the verdict still needs (`tuner.transfer`), scale by scale.

    Without them a search ends with an answer and no word on whether to trust it. Nothing where the budget is too small.
    """
    if math.isinf(budget):  # a search without an end
        return {}
    cheap = sorted(problem.proxies, key=problem.run_cost)[:SCALES_JUDGED]
    made = Counter(run.scale for run in runs if not (isinstance(run, Observation) and run.diverged))
    left = Counter(run.scale for run in among) if among is not None else None
    missing = {scale: RUNS_JUDGED - made[scale] for scale in cheap if made[scale] < RUNS_JUDGED}
    if left is not None:
        missing = {scale: min(count, left[scale]) for scale, count in missing.items() if left[scale]}
    owed = {scale: count * problem.run_cost(scale) for scale, count in missing.items()}
    return owed if len(cheap) == SCALES_JUDGED and sum(owed.values()) <= budget else {}


def _most_taught(
    problem: Problem,
    fitted: Fit,
    points: Array,
    pending: list[Proposal],
    generator: torch.Generator,
    budget: float,
    owed: Mapping[Scale, float],
    count: int,
    among: Sequence[Proposal] | None,
) -> list[Proposal]:
    """The greedy batch of the scale with the best rate of knowledge to cost; what is owed elsewhere is kept."""
    target = Moments(fitted, problem.inputs(points, problem.target))
    under_way = Moments(fitted, problem.located(pending)) if pending else None
    best: tuple[float, list[Proposal], Iterator[_Taken]] = (-1.0, [], iter(()))
    for inputs, choices in _options(problem, fitted, generator, among):
        runs = Moments(fitted, inputs)
        costs = np.array([problem.cost(choice.params, choice.scale) for choice in choices])
        know = Knowledge.of(target, runs, under_way)
        free = budget - sum(kept for scale, kept in owed.items() if scale != choices[0].scale)
        greedy = _greedy(know, np.where(_in_valley(runs), costs, np.inf), free)
        if first := list(islice(greedy, LOOKAHEAD)):
            rate = max(_rate(know, first[:size]) for size in BATCHES if size <= len(first))
            best = max(best, (rate, choices, chain(first, greedy)), key=lambda batch: batch[0])
    _, choices, taken = best
    return [choices[run.index] for run in islice(taken, count)]


def _options(
    problem: Problem, fitted: Fit, generator: torch.Generator, among: Sequence[Proposal] | None
) -> Iterator[tuple[Tensor, list[Proposal]]]:
    """Runs at each scale near where its optimum may be, and where they lie; of a scale with few runs to make, all."""

    def near(scale: Scale) -> Array:
        return candidates(problem, fitted, scale, generator, rounds=2, count=RUNS)[SCREEN:]

    if among is None:
        for scale in problem.proxies:
            points = near(scale)
            yield problem.inputs(points, scale), [Proposal(problem.space.decode(x), scale) for x in points]
        return
    for scale, members in by_scale(run.scale for run in among).items():
        points = problem.space.encode_all([among[i].params for i in members])
        if len(members) > 2 * RUNS:
            kept = np.unique(cdist(near(scale), points).argmin(1))
            points, members = points[kept], [members[i] for i in kept]
        yield problem.inputs(points, scale), [among[i] for i in members]


def _in_valley(runs: Moments) -> NDArray[np.bool_]:
    """Runs whose predicted loss is the best of their scale, but for a few standard deviations of a run's noise, (b,).

    By the surrogate alone, runs far up the walls would teach most, because it takes the shape of the walls for granted:
    with it wrong by a little, they mislead.
    """
    mean = runs.mean.numpy()
    inside: NDArray[np.bool_] = mean - mean.min() <= WALL * np.sqrt(runs.noise.numpy())
    return inside


@dataclass(frozen=True)
class _Taken:
    """A run of a greedy batch: which, how it shifts the target's mean given those before it, and what it counts."""

    index: int
    shifts: Array
    cost: float


def _greedy(know: Knowledge, costs: Array, budget: float) -> Iterator[_Taken]:
    """Runs at one scale, each the one with the best knowledge gradient per cost given those before it.

    However little it costs, a run counts as a small share of what is left: each takes thought, and a search of a
    thousand of the cheapest is none that anybody waits for.
    """
    least = 0.0 if math.isinf(budget) else budget / ENOUGH
    while (possible := np.isfinite(costs) & (costs <= budget)).any():
        best = know.best(np.where(possible, np.maximum(costs, least), np.inf))
        yield _Taken(best, know.shifts[best], max(costs[best], least))
        budget, know = budget - costs[best], know.given(best)


def _rate(know: Knowledge, batch: Sequence[_Taken]) -> float:
    return know.joint(np.array([run.shifts for run in batch])) / sum(run.cost for run in batch)


# What is best


def _chosen(problem: Problem, points: Points) -> dict[str, Value]:
    """Base hyperparameters where the posterior mean is lowest."""
    return problem.space.decode(problem.frame.split(points.inputs)[0][int(points.mean.argmin())].numpy())


def _answer(problem: Problem, fitted: Fit, generator: torch.Generator, level: float) -> Recommendation:
    with torch.no_grad():
        points = answers(problem, fitted, generator, ANSWER)
        best = int(points.mean.argmin())
        drawn, member = points.draws(DRAWS, generator)
        losses = points.losses(drawn, member)
        where = problem.frame.split(points.inputs)[0][drawn.argmin(1)].numpy()
        drift = {axis: _drift(problem, fitted, axis, generator) for axis in problem.axes}
    params, loss = _chosen(problem, points), float(losses[:, best].mean())
    return Recommendation(
        params=problem.to_raw(params, problem.target),
        interval=_interval(problem, params, where, level),
        loss=loss,
        loss_sd=float(losses[:, best].std()),
        expected_regret=float((losses[:, best] - losses.gather(1, drawn.argmin(1)[:, None])[:, 0]).mean().clamp(min=0)),
        noise=fitted.processes.data.deviation(loss, float(fitted.weights @ points.noise[:, best].sqrt())),
        drift={
            name: {axis: drift[axis][name] for axis in problem.axes if name in drift[axis]} for name in problem.space
        },
        reasons=tuple(_beyond_the_runs(problem, fitted, points.inputs[best])),
    )


def _doubted(problem: Problem, observations: Sequence[Observation]) -> Iterator[str]:
    """That a run was left out, or taken for one that diverged."""
    if (i := too_low(problem, observations)) is not None:
        run = observations[i]
        params = ", ".join(f"{name} {value}" for name, value in problem.to_raw(run.params, run.scale).items())
        yield (
            f"the loss {run.loss:g} at {run.scale} ({params}) is far below all that runs near it reached: taken for a "
            "slip of the record and left out; correct it, or run it again"
        )
    most = absurd(observations)
    if high := sum(most < run.loss < math.inf for run in observations):
        yield f"losses above {most:.3g}, far beyond what the others differ by, count as diverged: here {high}"


def _bound_to_data(problem: Problem) -> Iterator[str]:
    """That a hyperparameter regularises, which no parametrization carries across scale."""
    names = [name for name in problem.space if problem.space.role(name) in REGULARISERS]
    if names and problem.axes:
        yield (
            f"{', '.join(names)}: how much is best depends on how large the model is for its data, and no "
            f"parametrization carries it over {', '.join(problem.axes)}; only the runs speak for it"
        )


def _beyond_the_runs(problem: Problem, fitted: Fit, answer: Tensor) -> Iterator[str]:
    """That no run with a finite loss lies near an answer (d + a,), the drift taken out."""
    middle, data = fitted.middle, fitted.processes.data
    runs = data.inputs[~data.diverged]
    away = undrifted(problem.frame, middle.value["drift"], torch.cat([answer[None], runs]))[0]
    away = (away[1:] - away[0])[:, problem.frame.numeric]
    if not away.shape[1]:
        return
    nearest = away[away.square().mean(1).argmin()].abs()
    if float(nearest.square().mean().sqrt()) > BEYOND:
        names = [name for name, numeric in zip(problem.space, problem.frame.numeric, strict=True) if numeric]
        yield (
            f"no run was made near the answer: the nearest is {float(nearest.max()):.2f} of the range away in "
            f"{names[int(nearest.argmax())]}, the drift taken out; run a proxy there before you trust it"
        )


def _interval(problem: Problem, params: Params, where: Array, level: float) -> dict[str, tuple[Value, ...]]:
    """The central `level` of the draws of the optimum's location (draws, d), raw at the target; contains `params`."""
    interval: dict[str, tuple[Value, ...]] = {}
    for j, (name, dimension) in enumerate(problem.space.items()):
        if isinstance(dimension, Categorical):
            interval[name] = _likely([dimension.decode(float(u)) for u in where[:, j]], params[name], level)
            continue
        ends = [dimension.decode(float(u)) for u in np.quantile(where[:, j], [(1 - level) / 2, (1 + level) / 2])]
        widened = sorted([*ends, float(params[name])])
        interval[name] = tuple(
            problem.parametrization.to_raw(problem.space, {name: end}, problem.target, problem.base)[name]
            for end in (widened[0], widened[-1])
        )
    return interval


def _likely(drawn: list[Value], chosen: Value, level: float) -> tuple[Value, ...]:
    """The fewest choices that hold a share `level` of the draws, most likely first, and the recommended one."""
    counts = sorted(((drawn.count(v), repr(v), v) for v in {*drawn, chosen}), reverse=True)
    kept, held = [], 0
    for count, _, value in counts:
        if held < level * len(drawn):
            kept.append(value)
        held += count
    return tuple(kept if chosen in kept else [*kept, chosen])


def _drift(
    problem: Problem, fitted: Fit, axis: str, generator: torch.Generator
) -> dict[str, tuple[float, float, float]]:
    """d ln(raw optimum) / d ln(axis) between its reach and the target, the other axes at the target: mean, 90 %.

    Of hyperparameters whose range is above zero. Read from joint draws of the landscape at the two scales, not from
    Delta: g moves the optimum too.
    """
    reach = max((p[axis] for p in problem.proxies), key=lambda n: abs(math.log(n / problem.target[axis])))
    scales = [Scale({**problem.target, axis: reach}), problem.target]
    sets = [problem.inputs(candidates(problem, fitted, scale, generator, rounds=2), scale) for scale in scales]
    drawn, _ = Points(fitted, torch.cat(sets)).draws(DRAWS, generator)
    optima = [
        problem.frame.split(inputs)[0][part.argmin(1)].numpy()
        for inputs, part in zip(sets, drawn.split([len(s) for s in sets], 1), strict=True)
    ]
    nats = math.log(problem.target[axis] / reach)
    drift = {}
    for j, (name, dimension) in enumerate(problem.space.items()):
        if isinstance(dimension, Categorical) or (not dimension.log and dimension.low <= 0):
            continue  # no logarithm to speak of
        low_end, high_end = (np.log([float(dimension.decode(u)) for u in optima[k][:, j]]) for k in (0, 1))
        gamma = problem.parametrization.exponent(problem.space, name, axis, problem.target)
        slope = gamma + (high_end - low_end) / nats
        low, high = np.quantile(slope, TAILS)
        drift[name] = (float(slope.mean()), float(low), float(high))
    return drift


# What people look at


@one_thread
def outlook(problem: Problem, observations: Sequence[Observation], *, seed: int = 0) -> float | None:
    """About the loss that `recommend` would predict, from a coarser look; None before the first fit."""
    if len(observations) < _first_runs(problem) or all(o.diverged for o in observations):
        return None
    fitted, generator = fit_of(problem, observations, seed), generator_of(seed, len(observations))
    with torch.no_grad():
        points = Points(fitted, problem.inputs(candidates(problem, fitted, problem.target, generator), problem.target))
        return float(points.losses(*points.draws(DRAWS, generator))[:, int(points.mean.argmin())].mean())


@one_thread
def landscape(
    problem: Problem, observations: Sequence[Observation], points: Array, scale: Scale, *, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Posterior of the noise-free loss at base cube points (c, d) of a scale: mean and central 90 %, (c,) each."""
    fitted = fit_of(problem, observations, seed)
    with torch.no_grad():
        known = Points(fitted, problem.inputs(points, scale))
        losses = known.losses(*known.draws(DRAWS, generator_of(seed, len(observations)))).numpy()
    low, high = np.quantile(losses, TAILS, axis=0)
    return losses.mean(0), low, high


@one_thread
def optimum_path(
    problem: Problem, observations: Sequence[Observation], scales: Sequence[Scale], *, seed: int = 0
) -> Array:
    """Draws of the optimum's location at each scale, base cube coordinates: (scales, draws, d).

    All scales share one set of points and the draws' random numbers, so that the path is no rougher than the posterior.
    """
    fitted = fit_of(problem, observations, seed)
    generator = generator_of(seed, len(observations))
    with torch.no_grad():
        pool = np.vstack([candidates(problem, fitted, scale, generator, rounds=2) for scale in scales])
        kept = pool[torch.randperm(len(pool), generator=generator)[:POOL].numpy()]
        where = []
        for scale in scales:
            again = generator_of(seed, len(observations))
            drawn, _ = Points(fitted, problem.inputs(kept, scale)).draws(DRAWS, again)
            where.append(kept[drawn.argmin(1).numpy()])
    return np.stack(where)
