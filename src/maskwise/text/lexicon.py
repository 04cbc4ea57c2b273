"""Words and sentence templates of invented worlds, shared by all worlds."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

import yaml

from maskwise.folders import bundled_file

ATTRIBUTES = ("job", "city", "year", "university", "employer")
"""Attributes of a person that questions can ask for. All but the job are named entities."""
SAME_WORDS = {
    "trade": "job",
    "place": "city",
    "time": "year",
    "school": "university",
    "firm": "employer",
}
"""Slots (words in braces) of sentences that state no fact about the person, such as ``trade`` in
"{friend} saw a {trade}", and the attribute whose words fill the slot."""
TAGS = (*ATTRIBUTES, *SAME_WORDS, "name", "friend", "adjective", "noun", "verb", "other")
"""Labels of words in the layer ``tag``: facts about the person, the slots in ``SAME_WORDS``, and
kinds of other words."""

Piece = tuple[str, str]
"""A word of a text, and the name of the slot that the word fills, or "" outside slots."""


@cache
def language() -> dict[str, Any]:
    """Return the contents of worlds.yaml: sentence templates, words and parts of names."""
    text = bundled_file("worlds.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


@cache
def lexicon() -> dict[str, list[str]]:
    """Return the words of all worlds, keyed by slot. An invented name is in one list only."""
    # The seed is constant, so all worlds share these words. Therefore a model that was trained in
    # one world can be trained further in another.
    draw = random.Random("words of invented worlds")
    words = {kind: text.split() for kind, text in language()["words"].items()}
    words["noun"] += words["cause"]
    words["year"] = [str(year) for year in range(1900, 1960)]
    used = set(chain.from_iterable(words.values()))
    parts = language()["names"]
    openings = parts["openings"].split()
    middles = parts["middles"].split()
    for kind, (count, endings) in parts["endings"].items():
        names: list[str] = []
        while len(names) < count:
            name = draw.choice(openings) + draw.choice(middles) + draw.choice(endings)
            if name not in used:
                used.add(name)
                names.append(name.capitalize())
        words[kind] = names
    for other, kind in SAME_WORDS.items():
        words[other] = words[kind]
    return words


def filled(templates: Sequence[str], person: Mapping[str, str], draw: random.Random) -> list[Piece]:
    """Fill the slots of templates with a person's attributes, or else with random words."""
    pieces = []
    for word in " ".join(templates).split():
        kind = ""
        if word.startswith("{"):
            kind = word[1:-1]
            word = person.get(kind) or draw.choice(lexicon()[kind])
        pieces.append((word, kind))
    return pieces
