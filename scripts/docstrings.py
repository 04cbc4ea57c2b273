"""Build a corpus of package documentation, and a task: which part of a package has a function?

This is the text of D18 (benchmarks/PLAN.md).

    pip install --no-deps numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1 \\
        networkx==3.6.1 sympy==1.14.0
    python scripts/docstrings.py --out OUT

``OUT/parts`` is the task: summaries (first paragraphs) of functions and classes, labelled with the
part of a package that has them, such as ``scipy.stats``; 12 training rows and 50 test rows of each
part. A summary that several parts have has no one answer, and is left out of the task.
``OUT/docstrings.jsonl`` is the corpus: the whole docstrings of all others, of all parts. No
docstring of the corpus has a summary of the task. Modules are read and not imported.

The data of D18 were written by an earlier version, which took a docstring that two parts have word
by word for one of the last part: two summaries of D18 have two answers (``numpy.fft`` and
``scipy.fft`` share both).

The six packages have the 3-clause BSD licence. Do not add OUT to the repository.
"""

from __future__ import annotations

import ast
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from maskwise.base.folders import write_lines

PACKAGES = ("networkx", "numpy", "pandas", "scipy", "sklearn", "sympy")
LEAST_CHARACTERS = 200
"""Shorter docstrings are left out, because they hardly say more than their summary."""
SUMMARY = range(20, 201)
"""Lengths of summaries of the task, in characters."""
TRAIN_ROWS, TEST_ROWS = 12, 50
"""Numbers of labelled rows of each part. Parts with fewer summaries are left out."""


class Docstring(NamedTuple):
    """The docstring of a function or class, and the part of a package that has it."""

    part: str
    text: str

    @property
    def summary(self) -> str:
        paragraph, *_ = self.text.split("\n\n")
        return re.sub(r"\s+", " ", paragraph).strip()


def main(out: Annotated[Path, typer.Option()]) -> None:
    """Write the corpus and the task."""
    rng = random.Random(0)
    summaries_of = dict[str, str]()
    parts_of = defaultdict[str, set[str]](set)
    for docstring in docstrings_of(PACKAGES):
        summaries_of[docstring.text] = docstring.summary
        parts_of[docstring.summary].add(docstring.part)
    by_part = defaultdict[str, list[str]](list)
    for summary, parts in sorted(parts_of.items()):
        if len(parts) == 1 and len(summary) in SUMMARY:
            by_part[next(iter(parts))].append(summary)
    train, test = list[dict[str, str]](), list[dict[str, str]]()
    for part, summaries in sorted(by_part.items()):
        if len(summaries) < TRAIN_ROWS + TEST_ROWS:
            continue
        drawn = rng.sample(summaries, TRAIN_ROWS + TEST_ROWS)
        rows = [{"text": summary, "label": part} for summary in drawn]
        train += rows[:TRAIN_ROWS]
        test += rows[TRAIN_ROWS:]
    rng.shuffle(train)
    rng.shuffle(test)
    labelled = {row["text"] for row in [*train, *test]}
    texts = [{"text": text} for text, its in summaries_of.items() if its not in labelled]
    rng.shuffle(texts)
    write_lines(out / "docstrings.jsonl", texts)
    write_lines(out / "parts" / "train.jsonl", train)
    write_lines(out / "parts" / "test.jsonl", test)
    names = sorted({row["label"] for row in train})
    print(f"{len(texts)} texts; {len(train)} summaries to train on, {len(test)} to test")
    print(f"{len(names)} parts: {', '.join(names)}")


def docstrings_of(packages: tuple[str, ...]) -> Iterator[Docstring]:
    """Yield the docstrings of public functions and classes, without tests and copied packages."""
    for package in packages:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{package} is not installed; see the top of scripts/docstrings.py")
        folder = Path(spec.origin).parent
        for module in sorted(folder.rglob("*.py")):
            names = module.relative_to(folder).with_suffix("").parts
            if names[0].startswith("_") or {"tests", "testing", "conftest", "externals"} & {*names}:
                continue
            for node in ast.walk(ast.parse(module.read_bytes())):
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                    text = ast.get_docstring(node) or ""
                    if len(text) >= LEAST_CHARACTERS:
                        yield Docstring(f"{package}.{names[0]}", text)


if __name__ == "__main__":
    typer.run(main)
