"""A command and its function in Python have the same options, with the same defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import maskwise as mw
from maskwise.cli import runs, views
from maskwise.studies.adapt import Request, default_runs

REPEATED = {"task": "tasks", "contrast": "contrasts", "column": "columns", "limit": "time"}
"""Options that a command may repeat, or whose name Python has; and their names in Python."""
COMMAND_ONLY = {"context", "dry_run", "timing", "as_json"}
"""What to print, and plans."""
PYTHON_ONLY = {"executor"}
"""Objects."""


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a function by option; what is empty or missing is None."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        if default is inspect.Parameter.empty or default == ():
            default = None
        if isinstance(default, tuple):
            default = ",".join(default)
        found[REPEATED.get(name, name)] = default
    return found


@pytest.mark.parametrize(
    ("command", "function", "only"),
    [
        (runs.adapt, mw.adapt, set()),
        # A page is written by a method of what the function returns.
        (views.compare, mw.compare, {"out"}),
    ],
)
def test_a_command_has_the_options_of_its_function(command, function, only):
    here, there = options_of(command), options_of(function)
    assert here.keys() - COMMAND_ONLY - only == there.keys() - PYTHON_ONLY
    for name in here.keys() & there.keys():
        assert here[name] == there[name], name


def test_a_request_has_the_defaults_of_adapt():
    given = options_of(mw.adapt)
    for field in fields(Request):
        default = field.default if isinstance(field.default, int | float | str) else None
        if field.name in given and field.name not in ("arms", "seeds"):
            assert given[field.name] == default, field.name
    request = Request("model", "texts", Path("out"))
    assert ",".join(request.arms) == given["arms"]
    # A number of runs and their seeds are one field.
    assert given["runs"] is given["seeds"] is None and request.seeds == default_runs(None)
