"""How heavy the source is: no figure of scripts/house.py may rise unseen.

A landing that raises a figure of the table below says so in its commit."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "maskwise"

AT_MOST = {
    "files": 151,
    "nodes": 282_670,
    "nodes_a_code_line": 8.9,
    "ternaries": 316,
    "comprehensions": 745,
    "nested_comprehensions": 2,
    "walruses": 2,
    "tuple_assignments": 30,
    "any": 166,
    "getattr3": 10,
    "fmt_skip": 0,
    "widest": 100,
    "longest_file": 450,
}
AT_LEAST = {"comment_lines_percent": 2.9}


def _house():
    spec = importlib.util.spec_from_file_location("house", ROOT / "scripts" / "house.py")
    assert spec is not None and spec.loader is not None
    house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(house)
    return house


def test_no_figure_rises() -> None:
    figures, _ = _house().measure(PACKAGE)
    risen = {name: figures[name] for name, most in AT_MOST.items() if figures[name] > most}
    fallen = {name: figures[name] for name, least in AT_LEAST.items() if figures[name] < least}
    assert risen | fallen == {}


def test_the_figures_of_a_small_package_are_known(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        '"""Docstring."""\n\n# Why.\nx, y = 1, 2\nz = [a for a in b if (c := a)]\n'
    )
    (tmp_path / "two.py").write_text(
        "from typing import Any\nv: Any = getattr(w, 'k', 1 if w else 2)  # fmt: skip\n"
    )
    figures, _ = _house().measure(tmp_path)
    expected = {
        "files": 2,
        "code": 4,
        "comprehensions": 1,
        "walruses": 1,
        "tuple_assignments": 1,
        "any": 1,
    }
    expected |= {"getattr3": 1, "ternaries": 1, "fmt_skip": 1, "longest_file": 5}
    assert {name: figures[name] for name in expected} == expected


@pytest.mark.parametrize("word", ["AutoModel", "RANK$"])
def test_one_module_alone_loads_models_and_one_reads_the_rank(word: str) -> None:
    pattern = re.compile(rf"\b{word}")
    named = [
        path.name for path in sorted(PACKAGE.rglob("*.py")) if any(map(pattern.match, _words(path)))
    ]
    assert len(named) == 1, named


def _words(path: Path) -> list[str]:
    """Names and strings of the code, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    docstrings = {id(value) for value in statements if isinstance(value, ast.Constant)}
    words = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            words.append(node.id)
        elif isinstance(node, ast.Attribute):
            words.append(node.attr)
        elif isinstance(node, ast.alias):
            words.append(node.name.rpartition(".")[2])
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ):
            words.append(node.value)
    return words
