"""The words of invented worlds and templates of their sentences, the same in every world."""

from __future__ import annotations

import random
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

ATTRIBUTES = ("job", "city", "year", "university", "employer")
"""Attributes of a person that can be asked for. A job is no named entity; the others are."""
SAME_WORDS = dict(zip(("trade", "place", "time", "school", "firm"), ATTRIBUTES))
"""The same words where they are facts about nobody, and the attributes that they are words of."""


@cache
def language() -> dict[str, Any]:
    """Return templates of sentences, words, and the parts of names."""
    path = Path(__file__).parent.parent / "data" / "worlds.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


@cache
def lexicon() -> dict[str, list[str]]:
    """Return the words of all worlds by kind. Names are invented, each for one thing."""
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
    return words | {other: words[kind] for other, kind in SAME_WORDS.items()}
