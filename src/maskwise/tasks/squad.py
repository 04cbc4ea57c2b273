"""Exact match and F1 of answers as text, with the normalisation of SQuAD's official script.

Lower case; ASCII punctuation is removed; the words *a*, *an*, *the* are removed; white space is one space. Against
several right answers the best counts. Two answers of which nothing is left ("the", "!") are equal by exact match
and have an F1 of 0, as in the official script of version 1.1.

Source: Rajpurkar et al. 2016; evaluate-v1.1.py.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """What is compared: "The  Cat's!" and "cats" are equal."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(gold: Sequence[Sequence[str]], answer: Sequence[str]) -> float:
    """Share of answers that equal one of their right answers, in [0, 1].

    Args:
        gold: for every item all right answers. answer: one text an item.
    """
    hits = [
        any(normalise(text) == normalise(right) for right in rights) for rights, text in zip(gold, answer)
    ]
    return sum(hits) / len(hits)


def word_f1(gold: Sequence[Sequence[str]], answer: Sequence[str]) -> float:
    """Mean F1 of the words that an answer shares with the right answer it is nearest to, in [0, 1]."""
    best = [max(_overlap(text, right) for right in rights) for rights, text in zip(gold, answer)]
    return sum(best) / len(best)


def _overlap(answer: str, right: str) -> float:
    given, wanted = normalise(answer).split(), normalise(right).split()
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted)) if shared else 0.0
