"""Join the tokens of gold annotations into running text, for benchmarks and scripts."""

from __future__ import annotations

from collections.abc import Iterable

_NO_SPACE_BEFORE = frozenset(
    [*".,;:!?)]}%'", "''", "n't", "'s", "’s", "'m", "'re", "'ve", "'ll", "'d"]
)
_NO_SPACE_BEHIND = frozenset([*"([{$£#@", "``"])


def join_tokens(tokens: Iterable[str]) -> tuple[str, list[tuple[int, int]]]:
    """Join tokens by the usual rules of English punctuation.

    Returns:
        The text, and the character offsets (start, end) of each token.

    >>> join_tokens(["It", "is", "n't", "(", "yet", ")", "."])[0]
    "It isn't (yet)."
    """
    text = ""
    offsets = []
    before = "("
    quoted = False
    for token in tokens:
        closes = token == '"' and quoted
        glued = closes or before in _NO_SPACE_BEHIND or token.lower() in _NO_SPACE_BEFORE
        if token == '"':
            quoted = not quoted
        if text and not glued:
            text += " "
        offsets.append((len(text), len(text) + len(token)))
        text += token
        # There is no space after an opening quotation mark.
        before = "(" if token == '"' and quoted else token
    return text, offsets
