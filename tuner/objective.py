"""An objective named by data, `module:attribute` and arguments: a study file and a worker each make their own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuner.errors import BadInput
from tuner.scale import Scale
from tuner.space import Params, suggestion
from tuner.trial import Result

Objective = Callable[[Params, Scale, int], float | Result]


def named(call: str, folders: Sequence[str] = ()) -> Any:
    """What `module:attribute` names; `folders` are importable from here on.

    Raises:
        BadInput: a malformed name, a module that cannot be imported, or an attribute it does not have.
    """
    module, _, path = call.partition(":")
    if not module or not path:
        raise BadInput(f"objective: a name is 'module:attribute', got {call!r}; write for example 'train:Digits'")
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        where = f"searched {', '.join(folders)} and the Python path" if folders else "searched the Python path"
        remedy = (
            "correct the name, or install what it needs" if isinstance(error, ImportError) else "correct the module"
        )
        raise BadInput(f"objective: {module!r} cannot be imported ({one_line(error)}; {where}); {remedy}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            known = [name for name in dir(found) if not name.startswith("_") and callable(getattr(found, name, None))]
            raise BadInput(f"objective: {call!r} names nothing, {part!r} is not there; {suggestion(part, known)}")
        found = getattr(found, part)
    return found


@dataclass(frozen=True)
class ObjectiveSource:
    """An objective named by data, so that a worker can make its own.

    Args:
        call: "module:attribute"; a class is instantiated.
        args: keyword arguments of the class.
        folders: made importable first, such as the study file's.
    """

    call: str
    args: Mapping[str, Any] = field(default_factory=dict)
    folders: tuple[str, ...] = ()

    def load(self) -> Objective:
        """The objective. Raises BadInput when the name, the arguments or what they make is no objective."""
        found = named(self.call, self.folders)
        if isinstance(found, type):
            try:
                found = found(**self.args)
            except Exception as error:
                remedy = "correct args" if isinstance(error, (TypeError, ValueError)) else "give it what it needs"
                raise BadInput(
                    f"objective: {self.call!r} refuses args {dict(self.args)} ({one_line(error)}); {remedy}"
                ) from error
        elif self.args:
            raise BadInput(f"objective: args need a class, {self.call!r} is a {type(found).__name__}; remove args")
        if not callable(found):
            raise BadInput(
                f"objective: {self.call!r} must be callable as (params, scale, seed), got a {type(found).__name__};"
                " name a function, or a class with __call__"
            )
        objective: Objective = found
        return objective


def loaded(objective: ObjectiveSource | Objective) -> Objective:
    return objective.load() if isinstance(objective, ObjectiveSource) else objective


def one_line(error: BaseException) -> str:
    """An exception as one line: its type and its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
