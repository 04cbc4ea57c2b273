"""Values that stand where a recipe has settings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import maskwise as mw
from maskwise.recipe import read_recipe
from refusals import Refusal

ARMS: dict[str, Any] = {"a": {}, "b": {"masking.ratio": 0.3}}
DO = "settings of the form {name: value}"


def read(settings: dict[str, Any], folder: Path) -> object:
    return read_recipe({"study": {"arms": ARMS}, "tasks": ["sst2"], **settings})


def refused(name: str, settings: dict[str, Any], *facts: str, advice: Any = None) -> Refusal:
    return Refusal(f"layers-{name}", partial(read, settings), facts, advice)


def check(_: Path, **given: Any) -> object:
    return mw.check("quick-start", timing=False, **given)


def circular() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["training"] = found
    return found


TWO: dict[str, Any] = {"phases": [{}, {}]}

ROWS = [
    refused("name", {"name": {"x": 1}}, "name.x", "name is a value"),
    refused("dotted name", {"name.x.y": 1}, "name.x.y", "name is a value"),
    *(
        refused(f"phase of an arm {value!r}", {"study.arms.c.phases": [value]}, "arm 'c'", DO)
        for value in ("x", 3, ["y"])
    ),
    refused("phase of a point", {"study.search.grid": {"phases": [[1], [2]]}}, "phases.0", DO),
    refused(
        "one phase of an arm",
        {**TWO, "study.arms.c": {"phases.1": "x"}},
        "arm 'c'",
        "phases.1",
        DO,
        advice=partial(read, {**TWO, "study.arms.c": {"phases.1": {"masking.ratio": 0.3}}}),
    ),
    Refusal(
        "layers-key of overrides", partial(check, texts=["a"], overrides={3: 3}), ("3", "setting")
    ),
    Refusal(
        "layers-overrides in themselves", partial(check, overrides=circular()), ("nested", "fewer")
    ),
    Refusal("layers-text in itself", partial(check, texts=[circular()]), ("row 0", "JSON")),
    Refusal(
        "layers-arm without a name",
        lambda _: read_recipe("quick-start", ["study.arms.=null"]),
        ("arm", "''", "study.arms.NAME"),
    ),
    Refusal(
        "layers-number of a phase",
        lambda _: read_recipe(TWO, [f"phases.{'9' * 5000}.masking.ratio=0.1"]),
        ("no such entry", "0, 1"),
    ),
]
