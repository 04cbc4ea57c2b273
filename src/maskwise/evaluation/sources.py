"""Test sets by name: ``bundled:pairs``, a file, and options behind either: ``facts.jsonl(items=500)``."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.specs import parse_call
from maskwise.tasks.readers import Record, read_records

BUNDLED_SETS = ("pairs",)
"""Small sets of our own that come with maskwise; scripts/build_evaluation.py makes them."""
_WITH_OPTIONS = re.compile(r"(?P<source>.+?)\((?P<options>.*)\)$")


def load(spec: str, reader: Callable[..., Any]) -> Any:
    """``reader(path, **options)`` of a spec.

    Raises:
        MaskwiseError: no such file or bundled set, or an option that the reader does not have.
    """
    source, options = spec, {}
    found = _WITH_OPTIONS.match(spec)
    if found and not Path(spec).exists():
        source = found["source"]
        call = parse_call(f"set({found['options']})")
        allowed = list(inspect.signature(reader).parameters)[1:]
        strange = [name for name in call.kwargs if name not in allowed]
        if call.args or strange:
            wrong = strange[0] if strange else str(call.args[0])
            raise unknown_name(f"option of {source!r}", wrong, allowed)
        options = call.kwargs
    return reader(_path(source), **options)


def _path(source: str) -> Path:
    if source.startswith("bundled:"):
        name = source.removeprefix("bundled:")
        if name not in BUNDLED_SETS:
            raise unknown_name("bundled evaluation set", name, BUNDLED_SETS)
        return Path(__file__).parent.parent / "data" / f"{name}.jsonl.gz"
    path = Path(source).expanduser()
    if not path.is_file():
        raise MaskwiseError(
            f"no evaluation file {source!r}", do="give a .jsonl or .tsv file, or bundled:pairs"
        )
    return path


def read_set(path: Path) -> list[Record]:
    """The records of a file; at least one."""
    records = read_records(path)
    if not records:
        raise MaskwiseError(f"evaluation file {path} holds nothing")
    return records


def name_of(path: Path) -> str:
    """``/x/trex.jsonl.gz`` → ``trex``."""
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def some(items: list[Any], count: int | None) -> list[Any]:
    """At most ``count`` items, evenly spread."""
    if count is None or count >= len(items):
        return items
    if count < 1:
        raise MaskwiseError("items must be a number of items", got=count, allowed="≥ 1")
    return [items[place * len(items) // count] for place in range(count)]


def require_scored(kept: int, skipped: Mapping[str, int], where: str) -> None:
    """One clear line where nothing is left to be scored."""
    if not kept:
        why = ", ".join(f"{count} × {reason}" for reason, count in Counter(skipped).most_common())
        raise MaskwiseError(f"no item of {where} can be scored", got=why)
