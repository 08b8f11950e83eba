"""Where the mean is lowest: by descent, for among scattered points none is near a minimum in many dimensions."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from tuner.surrogate.fit import Fit
from tuner.surrogate.frame import DTYPE
from tuner.surrogate.mean import undrifted

DESCENT = {"maxiter": 60, "ftol": 1e-7, "maxcor": 20}


def minima(fit: Fit, logs: Tensor) -> Tensor:
    """Where each member's mean is lowest at a scale, logs (a,): cube points (m, d).

    Found at the target and moved by the drift; g, which moves it too, is left to who looks around these points.
    """
    frame, drift = fit.processes.frame, fit.processes.value["drift"]
    at = frame.summed(_minima(fit))[:, None]
    there = undrifted(frame, drift, torch.cat([_minima(fit)[:, None], logs.expand(len(at), 1, -1)], -1))
    return frame.parted(2 * at - there)[:, 0].clamp(0.0, 1.0)


@lru_cache(4)
def _minima(fit: Fit) -> Tensor:
    """At the target. Descends from the lowest of the places that a member holds to be like its runs' (drift undone),
    with the bottom of its bowl among them; categories stay those of the start.
    """
    processes, frame = fit.processes, fit.processes.frame
    with torch.no_grad():
        like = undrifted(frame, processes.value["drift"], processes.data.inputs)  # (m, n, d)
        bottoms = torch.where(frame.numeric, processes.value["bottom"][:, None], like)  # one for every run's categories
        places = frame.parted(torch.cat([like, bottoms], 1)).clamp(0.0, 1.0)
        start = places[torch.arange(len(places)), _means(fit, places).argmin(1)]
    return _descended(lambda x: _means(fit, x[:, None]).sum(), start, frame.numeric)


def lowest(fit: Fit, start: Tensor) -> Tensor:
    """Of the mean of all members, from a start: cube points (d,) both."""
    return _descended(lambda x: fit.weights @ _means(fit, x)[:, 0], start[None], fit.processes.frame.numeric)[0]


def _means(fit: Fit, x: Tensor) -> Tensor:
    """Each member's mean at the target, at points (c, d) or at its own (m, c, d): (m, c)."""
    processes = fit.processes
    inputs = torch.cat([x, x.new_zeros(*x.shape[:-1], processes.frame.axes)], -1)
    return processes.mean(inputs, processes.cross(inputs))


def _descended(value: Callable[[Tensor], Tensor], start: Tensor, free: Tensor) -> Tensor:
    """From points (k, d) along the free coordinates, inside the cube; `value` is what falls, a sum over the points."""

    def falling(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = start.clone()
        x[:, free] = torch.from_numpy(flat).reshape(len(start), -1)
        with torch.enable_grad():
            total = value(x.requires_grad_())
            (slope,) = torch.autograd.grad(total, x)
        return float(total), slope[:, free].flatten().numpy()

    if not free.any():
        return start
    first = start[:, free].flatten().numpy()
    found = minimize(falling, first, jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * len(first), options=DESCENT)
    end = start.clone()
    end[:, free] = torch.from_numpy(found.x).reshape(len(start), -1).to(DTYPE)
    return end
