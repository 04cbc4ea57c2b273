"""Whether a text is English, by its most frequent words."""

from __future__ import annotations

from collections.abc import Iterable

ENGLISH = frozenset(
    ("the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "on", "with", "by", "this")
)
ENGLISH_SHARE = 0.15
"""A text is taken for English if at least this share of its words are in ``ENGLISH``. The share is
.2 to .35 in English prose, and less than .05 in other languages."""
OTHER_SHARE = 0.05
"""With a share below this one, a text is in another language, or no prose."""
FEWEST_WORDS = 50
"""The language of fewer words is not known."""


def english_share(text: str) -> float:
    """Return the share of the words of a text that are among the most frequent English words.

    >>> english_share("The cat sat in the garden.")
    0.5
    """
    words = text.lower().split()
    return sum(word in ENGLISH for word in words) / max(1, len(words))


def other_language(texts: Iterable[str]) -> bool:
    """Return whether texts are not English; False if they have too few words to know.

    >>> other_language(["Der Hund schläft im Garten."] * 20), other_language(["Der Hund"])
    (True, False)
    """
    text = "\n".join(texts)
    return len(text.split()) >= FEWEST_WORDS and english_share(text) < OTHER_SHARE
