"""What a row of the table of refusals is; the rows stand in ``refusals_*.py``, by subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Refusal:
    """A call that is refused in one line.

    ``call`` gets an empty folder. ``facts`` are values that the line has to state, such as the name
    of a file, a number or a setting, whatever its sentence. ``advice``, if given, gets the same
    folder after the call, follows what the line says to do, and has to work.
    """

    name: str
    call: Callable[[Path], object]
    facts: tuple[str, ...]
    advice: Callable[[Path], object] | None = None
