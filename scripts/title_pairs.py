"""Write a retrieval task: find the article of the bundled Wikipedia that has a title.

    python scripts/title_pairs.py --out pairs.jsonl

Dev and test have articles that a study with ``corpus.held_out: 0.2`` does not train on; train has
others. The text of an article is cut, and keeps its first words, which often repeat the title
(benchmarks/PLAN.md, D23 and D24).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from maskwise.base.folders import bundled_file, write_lines
from maskwise.text.documents import Document
from maskwise.text.opening import opened
from maskwise.text.rows import held_out_below

HELD_OUT = 0.2
TRAIN, DEV, TEST = 800, 100, 500
"""Numbers of pairs of each split."""
CHARACTERS = 400
"""The longest text: most fit into a row of 128 tokens."""


def main(out: Annotated[Path, typer.Option()]) -> None:
    """Write the task."""
    end = held_out_below(HELD_OUT)
    held_out: list[dict[str, str]] = []
    trained: list[dict[str, str]] = []
    with opened(bundled_file("wikipedia.jsonl.gz")) as file:
        for record in map(json.loads, file):
            document = Document(record["title"], record["text"])
            pairs = held_out if document.place < end else trained
            pairs.append({"query": record["title"], "passage": record["text"][:CHARACTERS]})
    splits = {"train": trained[:TRAIN], "dev": held_out[:DEV], "test": held_out[DEV:][:TEST]}
    lines = [{"split": split, **pair} for split, pairs in splits.items() for pair in pairs]
    write_lines(out, lines)
    print(", ".join(f"{len(pairs)} {split}" for split, pairs in splits.items()))


if __name__ == "__main__":
    typer.run(main)
