"""What a row of the table of refusals is; the rows stand in ``refusals_*.py``, by subject."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def cases(
    name: str,
    call: Callable[[Any], object],
    *given: Any,
    facts: Iterable[str] = (),
    good: Callable[[], object] | None = None,
) -> list[Refusal]:
    """One row for each value that a call refuses: a value alone, or a tuple of it and its facts.

    ``facts`` are stated in every line, and ``good`` is what the line advises.
    """
    found = []
    for number, case in enumerate(given):
        value, *own = case if isinstance(case, tuple) else (case,)
        advice = None if good is None else lambda _: good()
        row = Refusal(
            f"{name} {number}" + "".join(f", {fact}" for fact in own[:1]),
            lambda _, value=value: call(value),
            (*facts, *own),
            advice,
        )
        found.append(row)
    return found
