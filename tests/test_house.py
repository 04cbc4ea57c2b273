"""Rules with reasons of their own: docs/decisions/0013-how-we-keep-it-simple.md."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
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


COMMANDS = "adapt change check compare convert evaluate finetune learn pretrain study"
IN_TWO_MODULES = {
    **dict.fromkeys(COMMANDS.split(), "a command, and the functions that do its work"),
    "annotate_rows": "maskwise.annotate_rows takes names of layers, too",
    "encode": "as annotate_rows",
    "figure": "a number as text, in the terminal and on a page",
    "short": "as figure",
    "mixture": "of policies and of ratios: names in recipes",
    "salient": "the annotator and the policy that reads its layer: names in recipes",
}
"""Names that two modules may define, and why."""


def test_a_name_has_one_meaning() -> None:
    homes: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            name = ""
            if isinstance(node, ast.ClassDef) or (
                isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            ):
                name = node.name
            elif isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation):
                name = ast.unparse(node.target)
            if name:
                homes.setdefault(name, set()).add(str(path.relative_to(PACKAGE)))
    twice = {name: found for name, found in homes.items() if len(found) > 1}
    assert twice.keys() == IN_TWO_MODULES.keys(), twice


IN_SEVERAL_PACKAGES = {
    "base": "the class from which the members of a package derive",
    "checks": "what refuses inputs: of a study, and of plug-ins",
    "comparison": "of two arms: what a recipe says about it, and what came of it",
    "loading": "how models are loaded, and tasks",
    "reading": "how the files of tasks are read, and those of a run for its page",
    "rows": "of tokens: how pieces share them, and those on which the checks of plug-ins mask",
    "run": "how the work of a command is run: study, annotate",
    "settings": "the settings of a package: a section of a recipe",
    "stream": "a stream of text: how it is read, and how a training takes rows of it",
    "tables": "of cells: how they are read, and how a page shows them",
}
"""Names that modules of several packages may have, and the one thing that each of them means."""


def test_the_name_of_a_module_has_one_meaning() -> None:
    names = Counter(path.stem for path in PACKAGE.rglob("*.py") if path.stem[0] != "_")
    assert {name for name, times in names.items() if times > 1} == IN_SEVERAL_PACKAGES.keys()


SWALLOWED = {
    "_load": "no work that stops after a signal runs while a module is imported",
    "_end": "the exception is that of a worker",
}
"""Functions that may handle ``SystemExit`` without a look at ``AskedToLeave``."""


def test_a_signal_is_not_taken_for_sys_exit() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        code = path.read_text(encoding="utf-8")
        # To parse all files takes a second.
        for function in ast.walk(ast.parse(code)) if "SystemExit" in code else ():
            if isinstance(function, ast.FunctionDef) and function.name not in SWALLOWED:
                found += [f"{path.name}: {function.name}" for _ in _swallowing(function)]
    assert not found


def _swallowing(function: ast.FunctionDef) -> Iterator[ast.Try]:
    """The ``try`` statements that handle ``SystemExit``, and do not tell a signal from it."""
    for node in ast.walk(function):
        if isinstance(node, ast.Try):
            words = [{*_names(handler)} for handler in node.handlers]
            if any("SystemExit" in each for each in words) and "AskedToLeave" not in set().union(
                *words
            ):
                yield node


def _names(tree: ast.AST) -> list[str]:
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]


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
