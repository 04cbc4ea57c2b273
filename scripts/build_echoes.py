"""Build the bundled data set ``echoes``, whose texts consist of two copies of a random sequence.

    python scripts/build_echoes.py   # writes echoes.jsonl.gz of maskwise-data, always the same

A text is a sequence of invented words, drawn uniformly, followed by the same sequence. A model can
predict a masked word only from the other copy, if the word is not masked there. The lowest possible
loss is therefore known.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import typer

TEXTS, WORDS, LENGTH = 3000, 200, 31
"""Numbers of texts, of different words, and of words in a sequence. A text has 64 tokens with
[CLS] and [SEP]."""
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "packages/maskwise-data/src/maskwise_data" / "echoes.jsonl.gz"


def main() -> None:
    """Write the data set."""
    draw = random.Random(31)
    syllables = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    words = draw.sample([first + second for first in syllables for second in syllables], WORDS)
    lines = []
    for number in range(TEXTS):
        sequence = draw.choices(words, k=LENGTH)
        lines.append(json.dumps({"id": f"echo {number}", "text": " ".join(sequence * 2)}))
    OUT.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), 9, mtime=0))
    print(f"{OUT}: {len(lines)} texts, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    typer.run(main)
