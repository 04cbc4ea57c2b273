"""The shape of the house: when it grows out of shape, a test says so.

``python tests/test_house.py`` prints every measure beside its bound. The numbers serve reading. Where one of them makes
the code worse, move it here and say why in the commit.
"""

from __future__ import annotations

import ast
import heapq
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "maskwise"


@dataclass(frozen=True)
class Measure:
    """One property of the source, and its bound.

    Args:
        value: takes nothing and returns the figure of today.
        most: the figure may not be above this; None where only ``least`` counts.
        least: the figure may not be below this; None where only ``most`` counts.
        where: takes nothing and returns the places that a reader of a failure wants to see.
    """

    name: str
    value: Callable[[], float]
    most: float | None = None
    least: float | None = None
    where: Callable[[], list[str]] = list

    @property
    def satisfied(self) -> bool:
        """Whether today's figure keeps the bound."""
        value = self.value()
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)


# --- reading the source -------------------------------------------------------------------------------------------


@cache
def sources() -> dict[str, str]:
    """The text of every module, by its dotted name."""
    return {name_of(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of every module, by its dotted name."""
    return {name: ast.parse(text) for name, text in sources().items()}


def name_of(path: Path) -> str:
    """``src/maskwise/masking/__init__.py`` → ``maskwise.masking``."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@cache
def lengths() -> dict[str, int]:
    """Lines of every module."""
    return {name: len(text.splitlines()) for name, text in sources().items()}


def imported(name: str, tree: ast.Module) -> set[str]:
    """The modules of maskwise that a module imports, also inside functions."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                modules.add(deeper if deeper in sources() else node.module)
    return {module for module in modules if module in sources() and module != name}


@cache
def importers() -> dict[str, set[str]]:
    """For every module, the modules that import it."""
    table: dict[str, set[str]] = {name: set() for name in sources()}
    for name, tree in trees().items():
        for module in imported(name, tree):
            table[module].add(name)
    return table


# --- the measures -------------------------------------------------------------------------------------------------


def single_importers() -> list[str]:
    """The modules that exactly one other module imports."""
    return [name for name, users in importers().items() if len(users) == 1]


def named(word: str) -> list[str]:
    """The modules whose code says a word: names and literals count, comments and docstrings do not."""
    pattern = re.compile(rf"\b{word}")
    return [name for name, tree in trees().items() if any(pattern.match(said) for said in _words(tree))]


def _words(tree: ast.Module) -> list[str]:
    documentation = {id(node.body[0].value) for node in ast.walk(tree) if _documented(node)}  # type: ignore[attr-defined]
    words = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            words.append(node.id)
        elif isinstance(node, ast.Attribute):
            words.append(node.attr)
        elif isinstance(node, ast.alias):
            words.append(node.name.rpartition(".")[2])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            words.append(node.value)
    return words


def _documented(node: ast.AST) -> bool:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None


def fragments() -> list[str]:
    """The docstrings, also those under a constant or a field, that begin with "Of": they are no sentences."""
    places = []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                text = node.value.value
                if isinstance(text, str) and re.match(r"\s*Of\b", text):
                    places.append(f"{name}:{node.lineno}")
    return places


CITATION = re.compile(r"methods, section|\bmethods\.md|known\.md|\bfindings?,? \d|review, section")


def foreign_citations() -> list[str]:
    """Lines of the source that cite notes which are not in the repository."""
    lines = (
        (name, number, line) for name, text in sources().items() for number, line in enumerate(text.splitlines(), 1)
    )
    return [f"{name}:{number}" for name, number, line in lines if CITATION.search(line)]


# --- "go to definition" -------------------------------------------------------------------------------------------

Place = tuple[str, str]
"""A definition: the module, and its name there."""

JOURNEYS = [
    [("maskwise.cli", "study"), ("maskwise.recipe", "Recipe"), ("maskwise", "MaskingSettings")],
    [("maskwise.cli", "study"), ("maskwise.study", "run_stage"), ("maskwise", "MaskingSettings")],
    [("maskwise", "MaskingSettings"), ("maskwise.masking", "Masker"), ("maskwise.masking", "select")],
    [("maskwise.masking", "Masker"), ("maskwise.masking", "MaskedBatch")],
]  # fmt: skip
"""Where ``masking.ratio=0.3`` goes: the command reads it, the recipe checks it, a process that does a stage of the
study takes it and builds a masker of it, ``select`` spends it, and the masked batch tells it. The first member of a
pair is the room in which the definition lies."""


@cache
def scope(module: str) -> dict[str, ast.stmt | tuple[str, str | None]]:
    """What the names of a module mean: a definition in it, or a name in another module (None: the module itself)."""
    names: dict[str, ast.stmt | tuple[str, str | None]] = {}
    for node in ast.walk(trees()[module]):
        if isinstance(node, ast.ImportFrom) and node.module in sources():
            names |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                alias.asname: (alias.name, None) for alias in node.names if alias.asname and alias.name in sources()
            }
    for node in trees()[module].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return names


def resolve(module: str, name: str, steps: int = 8) -> tuple[str, str | None] | None:
    """Where a name of a module is defined, through imports that only pass it on."""
    if f"{module}.{name}" in sources():
        return f"{module}.{name}", None
    meaning = scope(module).get(name)
    if not isinstance(meaning, tuple):
        return None if meaning is None else (module, name)
    if meaning[1] is None or not steps:
        return meaning
    return resolve(meaning[0], meaning[1], steps - 1)


@cache
def mentions(place: Place) -> frozenset[Place]:
    """The definitions that a definition names: in calls, in annotations, in bases, in tables."""
    module, name = place
    node = scope(module)[name]
    assert isinstance(node, ast.AST)
    places = set()
    for part in ast.walk(node):
        target = None
        if isinstance(part, ast.Name):
            target = resolve(module, part.id)
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            base = resolve(module, part.value.id)
            target = resolve(base[0], part.attr) if base and base[1] is None else None
        if target and target[1] and target != place:
            places.add((target[0], target[1]))
    return frozenset(places)


def way(start: Place, end: Place) -> list[Place]:
    """The way from one definition to another that opens the fewest files; empty where there is none.

    A step is what an editor's "go to definition" does on a name inside the definition that is open. A value that is
    handed on as a dict of strings, or under the type ``Any``, has no such way.
    """
    heap: list[tuple[int, list[Place]]] = [(1, [start])]
    seen = set()
    while heap:
        files, places = heapq.heappop(heap)
        if places[-1] == end:
            return places
        if places[-1] not in seen:
            seen.add(places[-1])
            for place in sorted(mentions(places[-1]) - seen):
                heapq.heappush(heap, (files + (place[0] != places[-1][0]), [*places, place]))
    return []


def defined(room: str, name: str) -> Place | None:
    """The definition of that name in a room."""
    modules = [m for m in sources() if m == room or m.startswith(f"{room}.")]
    return next(((m, name) for m in modules if isinstance(scope(m).get(name), ast.FunctionDef | ast.ClassDef)), None)


@cache
def files_of_ratio() -> tuple[str, ...] | None:
    """The files that ``ratio`` passes between the command line and the masked batch; None where the way is lost."""
    files: dict[str, None] = {}
    for stops in JOURNEYS:
        for start, end in pairwise(stops):
            places = (defined(*start), defined(*end))
            steps = way(*places) if all(places) else []  # type: ignore[arg-type]
            if not steps:
                return None
            files |= {module: None for module, _ in steps}
    return tuple(files)


def reading_order() -> list[Path]:
    """The five files that README tells a newcomer to read."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Reading the code")[2].partition("\n## ")[0]
    return [ROOT / link for link in re.findall(r"\]\((src/[^)]+\.py)\)", section)]


def lines_to_read() -> int:
    """Lines of the five files."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in reading_order())


def total() -> int:
    """Lines of source, blank lines and comments included."""
    return sum(lengths().values())


MEASURES = [
    Measure("lines in the longest file", lambda: max(lengths().values()), most=450,
            where=lambda: sorted((f"{n:4} {name}" for name, n in lengths().items() if n > 450), reverse=True)),
    Measure("mean lines a file", lambda: round(total() / len(lengths()), 1), least=170),
    Measure("files", lambda: len(lengths()), most=205),
    Measure("lines of source", total, most=41_850),
    Measure("modules with a single importer, %", lambda: round(100 * len(single_importers()) / len(lengths()), 1),
            most=32, where=single_importers),
    Measure("Any per 1,000 lines", lambda: round(1000 * sum(len(re.findall(r"\bAny\b", text))
            for text in sources().values()) / total(), 1), most=12),
    Measure("files in the reading order", lambda: len(reading_order()), most=5, least=5),
    Measure("lines of the reading order", lines_to_read, most=845,
            where=lambda: [str(path.relative_to(ROOT)) for path in reading_order()]),
    Measure("files from the command to the mask", lambda: len(files_of_ratio() or ()) or math.inf, most=10,
            where=lambda: list(files_of_ratio() or ["the way is lost"])),
    Measure("lines that cite foreign notes", lambda: len(foreign_citations()), most=0,
            where=foreign_citations),
    Measure("docstrings that begin with Of", lambda: len(fragments()), most=0, where=fragments),
    Measure("modules that say AutoModel", lambda: len(named("AutoModel")), most=1,
            where=lambda: named("AutoModel")),
    Measure("modules that read RANK", lambda: len(named("RANK$")), most=1, where=lambda: named("RANK$")),
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_the_house_keeps_its_shape(measure: Measure) -> None:
    bound = f"at most {measure.most}" if measure.most is not None else f"at least {measure.least}"
    assert measure.satisfied, f"{measure.name}: {measure.value()}, {bound}; {measure.where()}"


def test_the_measures_see_what_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a package of three modules, every figure is known."""
    package = tmp_path / "src" / "maskwise"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Of nothing."""\n')
    (package / "low.py").write_text('"""RANK and AutoModel in words."""\nLIMIT = 3\n"""Of a limit."""\n')
    (package / "high.py").write_text(
        "import os\nfrom typing import Any\nfrom transformers import AutoModelForMaskedLM\n"
        'def f(x: Any) -> str:\n    from maskwise.low import LIMIT\n    return os.environ["RANK"]\n'
        "def g() -> str:\n    return f(LIMIT)\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", package)
    caches = (sources, trees, lengths, importers, scope, mentions, files_of_ratio)
    try:
        for cached in caches:
            cached.cache_clear()
        assert lengths() == {"maskwise": 1, "maskwise.high": 8, "maskwise.low": 3}
        assert single_importers() == ["maskwise.low"] and fragments() == ["maskwise:1", "maskwise.low:3"]
        assert named("AutoModel") == ["maskwise.high"] == named("RANK$")
        limit = ("maskwise.low", "LIMIT")
        assert way(("maskwise.high", "g"), limit) == [("maskwise.high", "g"), limit]
        assert way(("maskwise.high", "f"), limit) == []  # imported there, never used
        assert files_of_ratio() is None
    finally:
        for cached in caches:
            cached.cache_clear()


def report() -> str:
    """The table of every measure, for people."""
    lines = [f"{'measure':36} {'today':>8}  {'bound':12} kept"]
    for each in MEASURES:
        bounds = [
            f"≥ {each.least:g}" if each.least is not None else "",
            f"≤ {each.most:g}" if each.most is not None else "",
        ]
        state = "yes" if each.satisfied else "FAILS"
        lines.append(f"{each.name:36} {each.value():>8g}  {' '.join(filter(None, bounds)):12} {state}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
    if "-v" in sys.argv:
        for each in MEASURES:
            print(f"\n{each.name}:", *each.where(), sep="\n  ")
