"""Write pairs.jsonl.gz of maskwise-data: English minimal pairs, made from a few templates.

    python scripts/build_evaluation.py

The grammatical phenomena are those of BLiMP (Warstadt et al. 2020), but the sentences are new. The
words are common, so small vocabularies contain them. Every template uses its words in turn, without
randomness. A second run therefore writes the same bytes. The sentences of a pair differ in one word
or in word order. If they differ in one word, both words also occur in correct sentences of other
pairs. A model can therefore not prefer one of them in general.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import typer

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "packages/maskwise-data/src/maskwise_data" / "pairs.jsonl.gz"

NOUNS = [
    ("river", "rivers"),
    ("church", "churches"),
    ("school", "schools"),
    ("village", "villages"),
    ("team", "teams"),
    ("book", "books"),
    ("song", "songs"),
    ("bridge", "bridges"),
]
PEOPLE = [
    ("king", "kings", "him"),
    ("queen", "queens", "her"),
    ("father", "fathers", "him"),
    ("mother", "mothers", "her"),
    ("brother", "brothers", "him"),
    ("sister", "sisters", "her"),
    ("man", "men", "him"),
    ("woman", "women", "her"),
    ("boy", "boys", "him"),
    ("girl", "girls", "her"),
]
VERBS = [("was", "were"), ("is", "are"), ("has been", "have been")]
ENDS = ["very old", "known in the country", "built by the family", "on the list"]
PLACES = ["in the city", "near the town", "of the old state"]
PLURAL_PLACES = ["in the cities", "near the towns", "of the old states"]
Pair = tuple[str, str, str]

# Correct sentences, each followed by the same sentence with an error.
AGREEMENT = [
    ("The {one} {singular} {end}.", "The {one} {plural} {end}."),
    ("The {many} {plural} {end}.", "The {many} {singular} {end}."),
]
DISTANT_AGREEMENT = [
    ("The {one} {places} {singular} new.", "The {one} {places} {plural} new."),
    ("The {many} {place} {plural} new.", "The {many} {place} {singular} new."),
]
WORD_ORDER = [
    ("The {one} {place} was old.", "The {place} {one} was old."),
    ("It was the first {one} in the world.", "It was first the {one} in the world."),
    ("There are many {many} {place}.", "There are {many} many {place}."),
    ("He was born near the {one}.", "He was born the near {one}."),
]


def filled(name: str, templates: list[tuple[str, str]], **words: str) -> Iterator[Pair]:
    for good, bad in templates:
        yield name, good.format(**words), bad.format(**words)


def agreement() -> Iterator[Pair]:
    """Yield pairs for subject–verb agreement: "the river was", "the rivers were"."""
    for number, (one, many) in enumerate(NOUNS):
        words = {"one": one, "many": many, "end": ENDS[number % 4]}
        for singular, plural in VERBS:
            yield from filled("agreement", AGREEMENT, singular=singular, plural=plural, **words)


def distant_agreement() -> Iterator[Pair]:
    """Yield pairs for agreement with a noun of the other number between subject and verb."""
    name = "agreement-across-noun"
    for words in nouns():
        for singular, plural in VERBS[:2]:
            yield from filled(name, DISTANT_AGREEMENT, singular=singular, plural=plural, **words)


def nouns() -> Iterator[dict[str, str]]:
    """Yield a noun and a place, in both numbers."""
    for number, (one, many) in enumerate(NOUNS):
        place, places = PLACES[number % 3], PLURAL_PLACES[number % 3]
        yield {"one": one, "many": many, "place": place, "places": places}


def determiner_noun() -> Iterator[Pair]:
    """Yield pairs for determiner–noun agreement: "this river", "these rivers"."""
    frames = [
        "He saw {} in the north.",
        "They wrote about {} in the year.",
        "She went to {} with her family.",
    ]
    name = "determiner-noun"
    for number, (one, many) in enumerate(NOUNS):
        frame = frames[number % 3]
        for singular, plural in (("this", "these"), ("that", "those")):
            yield name, frame.format(f"{singular} {one}"), frame.format(f"{plural} {one}")
            yield name, frame.format(f"{plural} {many}"), frame.format(f"{singular} {many}")


def anaphor() -> Iterator[Pair]:
    """Yield pairs for the gender and number of reflexive pronouns: "the king … himself"."""
    frames = [
        "The {} gave {} a new name.",
        "The {} found {} a new home.",
        "The {} saw {} in the water.",
    ]
    for number, (one, many, own) in enumerate(PEOPLE):
        other = {"him": "her", "her": "him"}[own]
        for frame in (frames[number % 3], frames[(number + 1) % 3]):
            good, plural = frame.format(one, f"{own}self"), frame.format(many, "themselves")
            yield "anaphor-gender", good, frame.format(one, f"{other}self")
            yield "anaphor-number", good, frame.format(one, "themselves")
            yield "anaphor-number", plural, frame.format(many, f"{own}self")


def word_order() -> Iterator[Pair]:
    """Yield pairs in which the wrong sentence has the same words in an ungrammatical order."""
    for words in nouns():
        yield from filled("word-order", WORD_ORDER, **words)


def main() -> None:
    """Write the file."""
    makers = (agreement, distant_agreement, determiner_noun, anaphor, word_order)
    lines = [
        {"sentence_good": good, "sentence_bad": bad, "phenomenon": name}
        for make in makers
        for name, good, bad in make()
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    TARGET.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    typer.run(main)
