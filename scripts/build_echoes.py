"""Make the bundled data set ``echoes``: texts that say everything twice, so it is known what can be
learned.

A text is a sequence of invented words, drawn uniformly, followed by the same sequence again. A
model that has learned to look at the other copy knows every word that is unmasked there; nothing
else can be predicted.

    python scripts/build_echoes.py   # writes echoes.jsonl.gz of maskwise-data, always the same
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import typer

TEXTS, WORDS, LENGTH = 3000, 200, 31
"""How many texts; different words; words of a text, said twice (64 tokens with [CLS] and [SEP])."""
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "packages/maskwise-data/src/maskwise_data" / "echoes.jsonl.gz"


def main() -> None:
    """Write the file."""
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
