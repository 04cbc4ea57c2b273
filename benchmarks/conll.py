"""Files of columns, such as CoNLL-2003's: sentences, running text and the names in them. For
benches and scripts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from maskwise.text.labelled import sentences

_NO_SPACE_BEFORE = frozenset(
    [*".,;:!?)]}%'", "''", "n't", "'s", "’s", "'m", "'re", "'ve", "'ll", "'d"]
)
_NO_SPACE_BEHIND = frozenset([*"([{$£#@", "``"])


def read_columns(
    path: Path, *, token: int = 0, tag: int = -1
) -> Iterator[tuple[list[str], list[str]]]:
    """The (tokens, tags) of every sentence of a file of columns, such as CoNLL-2003's (``.gz``
    allowed).
    """
    for _, rows in sentences(path, columns=2):
        yield [row[token] for row in rows], [row[tag] for row in rows]


def entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first token, behind the last, type) of the entities of BIO or IO tags.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC"])
    [(0, 2, 'PER'), (3, 4, 'LOC')]
    """
    names: list[tuple[int, int, str]] = []
    for i, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        if not kind:
            continue
        if mark == "I" and names and names[-1][1:] == (i, kind):
            names[-1] = (names[-1][0], i + 1, kind)
        else:
            names.append((i, i + 1, kind))
    return names


def join_tokens(tokens: Iterable[str]) -> tuple[str, list[tuple[int, int]]]:
    """Running text from tokens, by the usual rules of English punctuation, and every token's
    characters.

    >>> join_tokens(["It", "is", "n't", "(", "yet", ")", "."])[0]
    "It isn't (yet)."
    """
    parts, offsets, size, before, quoted = list[str](), list[tuple[int, int]](), 0, "(", False
    for token in tokens:
        closes = token == '"' and quoted
        glued = closes or before in _NO_SPACE_BEHIND or token.lower() in _NO_SPACE_BEFORE
        if token == '"':
            quoted = not quoted
        if parts and not glued:
            parts.append(" ")
            size += 1
        parts.append(token)
        offsets.append((size, size + len(token)))
        size += len(token)
        # an opening quotation mark holds on to its word
        before = "(" if token == '"' and quoted else token
    return "".join(parts), offsets
