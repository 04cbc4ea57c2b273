"""Rules with reasons of their own: docs/decisions/0013-how-we-keep-it-simple.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "maskwise"


@pytest.mark.parametrize("word", ["AutoModel", "RANK$"])
def test_one_module_alone_loads_models_and_one_reads_the_rank(word: str) -> None:
    pattern = re.compile(rf"\b{word}")
    named = [
        path.name for path in sorted(PACKAGE.rglob("*.py")) if any(map(pattern.match, _words(path)))
    ]
    assert len(named) == 1, named


def test_a_type_has_one_meaning() -> None:
    homes: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            alias = isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation)
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(path.name)
            elif alias:
                homes.setdefault(ast.unparse(node.target), []).append(path.name)
    twice = {name: found for name, found in homes.items() if len(found) > 1}
    assert not twice


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
