"""Draw random words of a text that may become tokens: a control for chosen words.

This is a part of D13 (benchmarks/PLAN.md).

    python scripts/random_words.py bundled:encoder TEXT --words 500 --seeds 8 --out OUT

``OUT/SEED.txt`` has the words of one seed, for
``model.changes: new-tokens('OUT/{seed}.txt')``. They are drawn from the candidates of
``new-tokens(500)``, which takes those that save most pieces. Documents
that are held out (``--held-out``, as ``corpus.held_out``) are not read.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from maskwise.base.folders import write_whole
from maskwise.text import load_tokenizer, read_documents
from maskwise.text.new_words import candidate_words
from maskwise.text.rows import holds_out


def main(
    model: str,
    text: str,
    out: Annotated[Path, typer.Option()],
    words: Annotated[int, typer.Option()] = 500,
    seeds: Annotated[int, typer.Option()] = 8,
    held_out: Annotated[float, typer.Option()] = 0.02,
) -> None:
    """Write a file of words for each seed."""
    documents = (each for each in read_documents(text) if not holds_out(each, held_out))
    found = candidate_words(documents, load_tokenizer(model))
    # Byte-level BPE has a word with and without the space before it, which is one line of a file.
    candidates = sorted({word.text for word in found})
    out.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        drawn = random.Random(seed).sample(candidates, words)
        write_whole(out / f"{seed}.txt", "".join(f"{word}\n" for word in sorted(drawn)))
    print(f"{words} of {len(candidates)} candidates for each of {seeds} seeds")


if __name__ == "__main__":
    typer.run(main)
