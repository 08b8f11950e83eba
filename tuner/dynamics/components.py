"""How much of a loss is the same at two widths: kappa-hat(n) of the fast-transfer paper.

A truncation kappa_i for each value nu_i of a hyperparameter splits the change of the loss in a top-kappa part, which
should be the same at both widths, and a residual, which should not depend on the hyperparameter. Then the two widths
share their optimum although their losses differ. Found by minimising (Ghosh, Wu and Bietti 2025, algorithms 1 and 2)

    J = mean_i |phi_n^kappa_i(nu_i) - phi_N^kappa_i(nu_i)| + tau1 Lip(phi_n^-kappa) + tau2 Lip(phi_N^-kappa)

by coordinate descent from the middle, for the pair of taus with the smallest sum whose top-kappa curves are convex and
have their minima where the losses have theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tuner.trial import Evidence

Array = NDArray[np.float64]

TAUS = tuple(np.geomspace(0.01, 10.0, 7))  # in units of the hyperparameter's coordinate
SWEEPS = 50
STAYS = np.log(2.0)  # nats: a step of the grids on which optima of two widths are compared, and called the same


@dataclass(frozen=True)
class Kappa:
    """A split that shows why the optimum stays.

    Args:
        kappa: (g,) components counted, at each value of the hyperparameter.
        top, residual: (2, g) the curves of the smaller and the larger width.
        taus: what was needed to find it.
        bound: t_n, an upper end of the optimum gap (Proposition B.8), in the hyperparameter's coordinate; infinite
            where a curve has no curvature to hold it.
    """

    kappa: NDArray[np.intp]
    top: Array
    residual: Array
    taus: tuple[float, float]
    bound: float


def kappa_hat(at: Array, small: Array, large: Array, bent: float = 0.2, away: float | None = None) -> Kappa | None:
    """The split of two widths, or None: no low-rank explanation was found, which says something too.

    Args:
        at: (g,) increasing values of the hyperparameter, in the coordinate that transfers (its natural logarithm).
        small, large: (g, n + 1) and (g, N + 1) `Decomposition.totals` of the runs there.
        bent: share of interior points at which a top-kappa curve may be concave.
        away: how far its minimum may lie from the loss's; None: one step of the grid.

    Raises:
        ValueError: fewer than three values, totals of another number, or runs that diverged among them.
    """
    g = len(at)
    if g < 3 or len(small) != g or len(large) != g or (np.diff(at) <= 0).any():
        raise ValueError(
            f"kappa_hat: at least 3 increasing values with totals each are needed, got {g} with {len(small)} and "
            f"{len(large)}; add runs"
        )
    if not (np.isfinite(small).all() and np.isfinite(large).all()):
        raise ValueError("kappa_hat: totals must be finite, got runs that diverged; leave their values out")
    away = float(np.diff(at).max()) * 1.001 if away is None else away
    whole = np.array([small[:, -1], large[:, -1]])
    most = min(small.shape[1], large.shape[1]) - 1
    tops = np.stack([small[:, : most + 1], large[:, : most + 1]])  # (2, g, most + 1)
    for taus in sorted(product(TAUS, TAUS), key=sum):
        kappa = _descended(at, tops, whole, taus)
        top = tops[:, np.arange(g), kappa]
        aside = np.abs(at[top.argmin(1)] - at[whole.argmin(1)]).max()
        if _bent(at, top) <= bent and aside <= away:
            return Kappa(kappa, top, whole - top, (float(taus[0]), float(taus[1])), _bound(at, top, whole))
    return None


def shared(found: Kappa | None) -> Evidence:
    """`kappa_hat` of two widths as evidence of transfer: for it where a split holds the optimum to within STAYS.

    Where it does not it says nothing.
    """
    if found is None:
        return Evidence("top-kappa loss", "undetermined", "no low-rank part of the loss explains both widths' optimum")
    counted = f"{np.median(found.kappa):g} components of the loss hold both widths' optimum, "
    if not np.isfinite(found.bound):
        return Evidence("top-kappa loss", "undetermined", counted + "without a bound on its move")
    verdict = "pass" if found.bound <= STAYS else "undetermined"
    return Evidence("top-kappa loss", verdict, counted + f"which moves by at most {found.bound:.3g} nats")


def _descended(at: Array, tops: Array, whole: Array, taus: tuple[float, float]) -> NDArray[np.intp]:
    """Coordinate descent on J from the middle of every coordinate."""
    g, most = len(at), tops.shape[2] - 1
    kappa, gaps, steps = np.full(g, most // 2), np.abs(tops[0] - tops[1]), np.diff(at)
    for _ in range(SWEEPS):
        before = kappa.copy()
        for i in range(g):
            rest = (whole - tops[:, np.arange(g), kappa])[:, :, None].repeat(most + 1, 2)  # (2, g, choices)
            rest[:, i] = whole[:, i, None] - tops[:, i]
            steepest = (np.abs(np.diff(rest, axis=1)) / steps[:, None]).max(1)
            kappa[i] = int((gaps[i] / g + taus[0] * steepest[0] + taus[1] * steepest[1]).argmin())
        if (kappa == before).all():
            break
    return kappa


def _second(at: Array, curves: Array) -> Array:
    """Second derivatives at interior points of curves (2, g)."""
    slopes = np.diff(curves, axis=1) / np.diff(at)
    found: Array = 2 * np.diff(slopes, axis=1) / (at[2:] - at[:-2])
    return found


def _bent(at: Array, top: Array) -> float:
    return float((_second(at, top) < 0).mean(1).max())


def _bound(at: Array, top: Array, whole: Array) -> float:
    """t_n = 2 (sup |phi_n^k - phi_N^k| / mu)^1/2 + sum of Lip(residual) / mu(phi), with mu the least curvature."""
    held, bowls = _second(at, top).min(1).max(), _second(at, whole).min(1)
    if held <= 0 or (bowls <= 0).any():
        return float("inf")
    steepest = np.abs(np.diff(whole - top, axis=1) / np.diff(at)).max(1)
    return float(2 * np.sqrt(np.abs(top[0] - top[1]).max() / held) + (steepest / bowls).sum())
