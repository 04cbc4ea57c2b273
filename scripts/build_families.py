"""Build the bundled data set ``families``: invented protein families with a known structure.

    python scripts/build_families.py   # writes families.jsonl.gz of maskwise-data, always the same

A family is an alignment of sequences. In a conserved column, 9 of 10 sequences have the same
letter, the consensus. In a free column, letters are drawn by the natural frequencies of amino
acids. In a pair of distant columns, a rule of the family determines the letter in one column from
the letter in the other. Sequences lose or gain a few letters, which shifts their columns. A model
can learn letter frequencies, families and pairs.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import typer

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
FREQUENCY = [
    8.3,
    1.4,
    5.5,
    6.7,
    3.9,
    7.1,
    2.3,
    5.9,
    5.8,
    9.7,
    2.4,
    4.1,
    4.7,
    3.9,
    5.5,
    6.6,
    5.3,
    6.9,
    1.1,
    2.9,
]
"""Percentage of each letter in Swiss-Prot, rounded."""
FAMILIES, SEQUENCES = 16, 160
ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "packages/maskwise-data/src/maskwise_data" / "families.jsonl.gz"


def family(draw: random.Random) -> list[str]:
    """Return the sequences of one family."""
    length = draw.randint(44, 60)
    consensus = draw.choices(LETTERS, FREQUENCY, k=length)
    kinds = draw.choices(["conserved", "free", "first"], [0.5, 0.3, 0.2], k=length)
    partner = {}
    later = [i for i in range(length) if kinds[i] == "free"]
    for first in (i for i in range(length) if kinds[i] == "first"):
        far = [i for i in later if i > first + 8 and i not in partner]
        if far:
            partner[draw.choice(far)] = first
    rule = dict(zip(LETTERS, draw.sample(LETTERS, len(LETTERS))))
    sequences = []
    for _ in range(SEQUENCES):
        letters = []
        for column in range(length):
            if column in partner:
                letters.append(rule[letters[partner[column]]])
            elif kinds[column] == "conserved" and draw.random() < 0.9:
                letters.append(consensus[column])
            else:
                letters.append(draw.choices(LETTERS, FREQUENCY)[0])
        for _ in range(draw.choice((0, 0, 1, 2))):
            place = draw.randrange(len(letters))
            if draw.random() < 0.5:
                del letters[place]
            else:
                letters.insert(place, draw.choices(LETTERS, FREQUENCY)[0])
        sequences.append("".join(letters))
    return sequences


def main() -> None:
    """Write the data set."""
    draw = random.Random(17)
    lines = []
    for number in range(FAMILIES):
        for place, text in enumerate(family(draw)):
            lines.append(json.dumps({"id": f"family {number}, {place}", "text": text}))
    draw.shuffle(lines)
    OUT.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), 9, mtime=0))
    print(f"{OUT}: {len(lines)} sequences, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    typer.run(main)
