"""Choose the hyperparameters of a network too large to tune, from cheap runs of smaller ones.

Names are loaded on first use, so that `import tuner` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner import mup as mup
    from tuner.errors import BadInput as BadInput
    from tuner.opening import create_study as create_study
    from tuner.scale import Scale as Scale
    from tuner.space import Categorical as Categorical
    from tuner.space import Float as Float
    from tuner.space import Int as Int
    from tuner.space import SearchSpace as SearchSpace
    from tuner.study import Study as Study
    from tuner.trial import Observation as Observation
    from tuner.trial import Recommendation as Recommendation
    from tuner.trial import Result as Result
    from tuner.trial import Trial as Trial

_HOME = {
    "BadInput": "errors",
    "Float": "space",
    "Int": "space",
    "Categorical": "space",
    "SearchSpace": "space",
    "Scale": "scale",
    "Trial": "trial",
    "Result": "trial",
    "Observation": "trial",
    "Recommendation": "trial",
    "Study": "study",
    "create_study": "opening",
}

__all__ = sorted([*_HOME, "mup"])


def __getattr__(name: str) -> Any:
    if name == "mup":
        return import_module("tuner.mup")
    if name not in _HOME:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    value = getattr(import_module(f"tuner.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
