"""Whether a tokenizer is that of a model, by content.

The embeddings of a model belong to the tokens with which it was trained. Of two tokenizers of one
size, each may give the ids another meaning, and training then goes on without a word. So not the
sizes are compared, but the ids of the tokens, and how texts are read. Vocabularies may have further
tokens, and capitals and accents may be read differently, because this moves no id.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from maskwise.base.errors import MaskwiseError
from maskwise.models.starts import Start, cached_folder, resolve_start
from maskwise.text.tokenizers import has_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = 200
"""The number of texts that both tokenizers read."""
CHARACTERS = 1000
"""The part of each text that they read."""
WORDS = 8
"""The number of words that are compared at a time."""
ALIKE = 0.9
"""The least share of tokens that both must have, and of the parts of texts that both must read
alike. Tokenizers in Python and in Rust, or of two versions of transformers, differ in a few signs.
"""


def own_tokenizer(start: Start) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer in the folder of a model, or in the hub's cache on this machine.

    Nothing is downloaded. None if the model has no tokenizer here, or one that cannot be read.
    """
    folder = Path(resolve_start(start))
    if not folder.is_dir():
        folder = Path(cached_folder(str(folder)) or folder)
    if not (folder.is_dir() and has_tokenizer(folder)):
        return None
    try:
        return load_tokenizer(str(folder), needs_mask=False, needs_words=False)
    except MaskwiseError:
        return None


def other_ids(given: Mapping[str, int], own: Mapping[str, int]) -> str | None:
    """Return in which ids a vocabulary differs from that of a model; None if it belongs to it.

    >>> other_ids({"the": 1, "cat": 2, "new": 3}, {"the": 1, "cat": 2, "[unused]": 4})
    "2 of 3 tokens are the model's"
    >>> other_ids({"the": 1, "cat": 2, "new": 3}, {"the": 1, "cat": 2})
    >>> other_ids({"the": 1, "cat": 2}, {"the": 2, "cat": 1})
    "2 of 2 tokens have other ids than in the model, such as 'cat': 2, not 1"
    """
    shared = sorted(given.keys() & own.keys())
    moved = [token for token in shared if given[token] != own[token]]
    if moved:
        first = max(moved, key=len)
        return (
            f"{len(moved):,} of {len(shared):,} tokens have other ids than in the model, such as "
            f"{first!r}: {given[first]}, not {own[first]}"
        )
    smaller = min(len(given), len(own))
    if len(shared) >= ALIKE * smaller:
        return None
    return f"{len(shared):,} of {smaller:,} tokens are the model's"


def other_reading(
    tokenizer: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, texts: Iterable[str]
) -> str | None:
    """Return in how many parts of texts two tokenizers read different tokens; None if in few.

    Parts with a token that only one of them has are left out.
    """
    common = {*tokenizer.get_vocab().values()} & {*own.get_vocab().values()}

    def compared(parts: list[str]) -> list[tuple[str, bool]]:
        """Return the parts whose tokens both have, and whether they are read alike."""
        # An empty list is no batch for some tokenizers.
        ids = [parts and each(parts, add_special_tokens=False)["input_ids"] for each in both]
        return [
            (part, mine == others)
            for part, mine, others in zip(parts, *ids)
            if common.issuperset([*mine, *others])
        ]

    both = (tokenizer, own)
    parts = []
    for text in islice(texts, TEXTS):
        words = text[:CHARACTERS].split()
        # Whether a text begins with a space is a setting, which moves no id.
        parts += [" " + " ".join(words[at : at + WORDS]) for at in range(0, len(words), WORDS)]
    read = compared(parts)
    odd = [_plain(part) for part, alike in read if not alike]
    odd = [part.strip() for part, alike in compared(odd) if not alike]
    if len(odd) <= (1 - ALIKE) * len(read):
        return None
    return f"{len(odd):,} of {len(read):,} parts of texts are read otherwise, such as {odd[0]!r}"


def _plain(text: str) -> str:
    """Return a text without capitals and accents."""
    letters = unicodedata.normalize("NFKD", text.lower())
    return "".join(sign for sign in letters if not unicodedata.combining(sign))
