"""A command and its function in Python have the same options, defaults and bounds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import maskwise as mw
from maskwise.base.errors import MaskwiseError
from maskwise.cli import runs, views
from maskwise.studies.adapt import Request
from maskwise.verdict.statistics import ALPHA, fewest_runs

NAMED = {
    "task": "tasks",
    "contrast": "contrasts",
    "column": "columns",
    "text": "texts",
    "limit": "time",
    "only_seeds": "seeds",
    "subject": "recipe",
}
"""Options that a command may repeat, or that have another name; and their names in Python."""
NOT_SHARED = {"context", "dry_run", "timing", "as_json", "executor"}
"""What to print, plans, and objects."""


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a function by option; what is empty or missing is None."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        if default is inspect.Parameter.empty or default in ((), ""):
            default = None
        if isinstance(default, tuple):
            default = ",".join(default)
        found[NAMED.get(name, name)] = default
    return found


@pytest.mark.parametrize(
    ("command", "function", "only"),
    [
        (runs.adapt, mw.adapt, set()),
        # A page is written by a method of what the function returns.
        (views.compare, mw.compare, {"out"}),
        # Python reads texts and tables that are no files, and a recipe's overrides name the others.
        (runs.study, mw.study, {"retries", "stages", "texts", "tasks"}),
        (runs.learn, mw.learn, {"texts", "tasks"}),
        (runs.finetune, mw.finetune, set()),
        (views.evaluate, mw.evaluate, set()),
        (views.check, mw.check, {"more", "texts", "overrides"}),
    ],
)
def test_a_command_has_the_options_of_its_function(command, function, only):
    here, there = options_of(command), options_of(function)
    assert here.keys() ^ there.keys() <= only | NOT_SHARED
    for name in here.keys() & there.keys():
        assert here[name] == there[name], name


def bounded() -> Iterator[tuple[Callable[..., Any], str, int]]:
    """The options of commands that have a least value, as their functions in Python have them."""
    for command, function in (
        (runs.adapt, mw.adapt),
        (runs.study, mw.study),
        (runs.learn, mw.learn),
        (runs.finetune, mw.finetune),
    ):
        there = options_of(function)
        for name, hint in get_type_hints(command, include_extras=True).items():
            least = getattr(getattr(hint, "__metadata__", [None])[0], "min", None)
            if least is not None and name in there:
                yield function, name, least


@pytest.mark.parametrize(
    ("function", "name", "least"),
    [pytest.param(*each, id=f"{each[0].__name__}-{each[1]}") for each in bounded()],
)
def test_a_function_has_the_bounds_of_its_command(function, name, least, tmp_path):
    """What a command refuses as too small, its function refuses by name before it reads a file."""
    given: dict[str, Any] = {"out": tmp_path / "out", name: least - 1}
    for each, parameter in inspect.signature(function).parameters.items():
        if parameter.default is inspect.Parameter.empty and each != "out":
            given[each] = "bundled:encoder"
    with pytest.raises(MaskwiseError, match=rf"^{name} .*got {least - 1}"):
        function(**given)
    assert not (tmp_path / "out").exists()


def test_a_request_has_the_defaults_of_adapt():
    given = options_of(mw.adapt)
    for field in fields(Request):
        default = field.default if isinstance(field.default, int | float | str) else None
        if field.name in given and field.name not in ("arms", "seeds"):
            assert given[field.name] == default, field.name
    request = Request("model", "texts", Path("out"))
    assert ",".join(request.arms) == given["arms"]
    # A number of runs and their seeds are one field.
    assert given["runs"] is given["seeds"] is None and request.seeds == fewest_runs(ALPHA)
