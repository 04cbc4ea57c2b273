"""The examples in docstrings run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import maskwise

PACKAGE = Path(maskwise.__file__).parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def name_of(path: Path) -> str:
    """``…/maskwise/masking/__init__.py`` → ``maskwise.masking``."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )


WITH_EXAMPLES = [
    name_of(path)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
WITHOUT = {"__version__"}
"""Public names that need no example."""


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in an empty folder. What an example prints may be shortened with three dots."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert tried and not failed


def has_example(name: str) -> bool:
    """Whether the docstring of a public name shows an example, or that of a method or function in
    it.
    """
    public = getattr(maskwise, name)
    parts = vars(public).values() if inspect.isclass(public) or inspect.ismodule(public) else []
    own = [part for part in parts if str(getattr(part, "__module__", "")).startswith("maskwise")]
    return any(re.search(r"^\s*>>> ", each.__doc__ or "", re.MULTILINE) for each in [public, *own])


@pytest.mark.parametrize("name", sorted(set(maskwise.__all__) - WITHOUT))
def test_every_public_name_has_an_example(name: str) -> None:
    assert has_example(name)
