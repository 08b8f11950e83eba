"""Ray Tune's parameter space as Optuna's distributions, and values back as Ray's own.

A range of Ray's ends before an integer's upper bound, unless it is quantised; quantised values are multiples of q.
Optuna has no logarithmic range with steps: the step is then taken in rounding, but of an axis, whose rungs are
geometric anyhow, the logarithm is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.search.sample import Categorical, Integer, LogUniform, Quantized, Uniform
from ray.tune.search.variant_generator import parse_spec_vars

from tuner.errors import BadInput
from tuner.integrations.asked import Space, searchable
from tuner.space import rounded


@dataclass(frozen=True)
class Domains:
    """What is searched; constants that are no axis are Ray's affair.

    Args:
        steps: parameter -> what its values are multiples of, where it is quantised.
    """

    space: Space
    steps: Mapping[str, float]

    @staticmethod
    def of(config: Mapping[str, Any], axes: tuple[str, ...]) -> Domains:
        """Raises BadInput of what is nested, of a grid, a function or a normal distribution, and of empty ranges."""
        _, found, grids = parse_spec_vars(dict(config))
        for path, domain in [*found, *grids]:
            if len(path) > 1 or not isinstance(_sampler(domain), (Uniform, LogUniform)):
                name, kind = "/".join(map(str, path)), type(_sampler(domain)).__name__.strip("_")
                raise BadInput(
                    f"param_space: what is searched must be a range or tune.choice at its top level, got {name!r} from "
                    f"{kind}; change it"
                )
        domains = {path[0]: domain for path, domain in found}
        wanted = {n: domains.get(n, Categorical([v])) for n, v in config.items() if n in domains or n in axes}
        steps = {n: d.get_sampler().q for n, d in wanted.items() if isinstance(d.get_sampler(), Quantized)}
        return Domains({n: _distribution(n, d, n in axes) for n, d in wanted.items()}, steps)

    def rounded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Values as Ray has them."""
        return {n: _multiple(v, self.steps[n]) if n in self.steps else v for n, v in params.items()}


def _distribution(name: str, domain: Any, axis: bool) -> BaseDistribution:
    try:
        found = _ranged(domain, axis)
    except ValueError as error:
        raise BadInput(f"param_space: {name!r} is no range ({error}); correct it") from error
    if not (axis or found.single() or searchable(found)):
        raise BadInput(f"param_space: choices of {name!r} must be text, numbers or booleans, got {found}; name them")
    return found


def _ranged(domain: Any, axis: bool) -> BaseDistribution:
    if isinstance(domain, Categorical):
        return CategoricalDistribution(domain.categories)
    step = getattr(domain.get_sampler(), "q", None)
    log = isinstance(_sampler(domain), LogUniform) and not (axis and step)
    if isinstance(domain, Integer):
        step = int(step or 1)
        low, high = -(-domain.lower // step) * step, (domain.upper - (step == 1)) // step * step
        return IntDistribution(low, high, log=log, step=1 if log else step)
    return FloatDistribution(domain.lower, domain.upper, log=log, step=None if log else step)


def _sampler(domain: Any) -> Any:
    sampler = domain.get_sampler()
    return sampler.sampler if isinstance(sampler, Quantized) else sampler


def _multiple(value: float, step: float) -> float:
    found = round(value / step) * step
    return int(found) if isinstance(value, int) else rounded(found)
