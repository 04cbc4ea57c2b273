"""Build a corpus of novels, and a task: from which novel is a passage? (benchmarks/PLAN.md, D9.)

    python scripts/novels.py eltec_eng-00.jsonl.gz --out OUT

The file has a JSON object for each novel, with ``title`` and ``text`` (a paragraph on each line).
``OUT/novels`` is the task. It has passages of 30 to 60 words, labelled with the title: 10 training
passages and 20 test passages of each novel. A novel with few short passages has fewer rows, of
training first: one of D9's is a class without test rows. No two passages are adjacent.
``OUT/novels.jsonl`` is the corpus. It has the text between these passages.
"""

from __future__ import annotations

import json
import random
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from maskwise.base.folders import write_lines
from maskwise.text.opening import opened

SHORTEST, LONGEST = 30, 60
"""Minimum and maximum number of words in a labelled passage."""
TRAIN_ROWS, TEST_ROWS = 10, 20
"""Numbers of passages of each novel."""


def main(novels: Path, out: Annotated[Path, typer.Option()]) -> None:
    """Write the corpus and the task."""
    rng = random.Random(0)
    train = []
    test = []
    texts = []
    with opened(novels) as file:
        for line in file:
            novel = json.loads(line)
            passages = passages_of(novel["text"])
            drawn = draw(passages, rng)
            texts += [{"text": text} for text in between(passages, set(drawn))]
            rng.shuffle(drawn)
            rows = [{"text": passages[place], "label": novel["title"]} for place in drawn]
            train += rows[:TRAIN_ROWS]
            test += rows[TRAIN_ROWS:]
    rng.shuffle(train)
    rng.shuffle(test)
    write_lines(out / "novels.jsonl", texts)
    write_lines(out / "novels" / "train.jsonl", train)
    write_lines(out / "novels" / "test.jsonl", test)
    print(f"{len(texts)} texts; {len(train)} passages to train on, {len(test)} to test")


def passages_of(text: str) -> list[str]:
    """Return passages: consecutive paragraphs, joined until they have ``SHORTEST`` words."""
    passages = []
    words = []
    for paragraph in text.split("\n"):
        words += paragraph.split()
        if len(words) >= SHORTEST:
            passages.append(" ".join(words))
            words = []
    return passages


def draw(passages: list[str], rng: random.Random) -> list[int]:
    """Return the indices of the passages to label, no two of them adjacent."""
    short = [n for n, passage in enumerate(passages) if len(passage.split()) <= LONGEST]
    drawn = set()
    for place in rng.sample(short, len(short)):
        if len(drawn) < TRAIN_ROWS + TEST_ROWS and not {place - 1, place + 1} & drawn:
            drawn.add(place)
    return sorted(drawn)


def between(passages: list[str], drawn: set[int]) -> list[str]:
    """Return the texts between the labelled passages."""
    texts = []
    for taken, places in groupby(range(len(passages)), key=lambda place: place in drawn):
        if not taken:
            texts.append("\n".join(passages[place] for place in places))
    return texts


if __name__ == "__main__":
    typer.run(main)
