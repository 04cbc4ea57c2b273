"""Former names: until maskwise 0.2, they work, or say what they are called now."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any


def former_names(
    module: str, renamed: Mapping[str, str], *, works: Mapping[str, Callable[[], Any]] | None = None
) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module whose names have changed.

    Args:
        module: the name of the module.
        renamed: what to use instead of a former name, in the words of the error.
        works: functions that return what a former name stands for.
    """
    works = works or {}

    def find(name: str) -> Any:
        if name in works:
            return works[name]()
        if name in renamed:
            raise AttributeError(f"{module}.{name} is now {renamed[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


class FormerName:
    """A former name of a method or an attribute. It works, with a warning.

    Args:
        new: the name that it has now.
    """

    def __init__(self, new: str):
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.says = f"{owner.__name__}.{name} is now {owner.__name__}.{self.new}"

    def __get__(self, owner: object, kind: type) -> Any:
        if owner is None:
            return self
        warnings.warn(
            f"{self.says}; the old name goes with maskwise 0.2", DeprecationWarning, stacklevel=2
        )
        return getattr(owner, self.new)
