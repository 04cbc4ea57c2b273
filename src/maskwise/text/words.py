"""The word layer: which word of the text every token belongs to.

Words are found in the *text*, never in the tokens: gaps between offsets turn a sentence into one word with
byte-level and metaspace tokenizers, and a tokenizer's own ``word_ids`` are its pre-tokens, which with
``Metaspace(split=False)`` are again whole sentences. So one scan over the characters says where words begin
(characters.py has the rule), and character offsets say which of them a token shows. Every tokenizer gets the
same words this way.

A token that covers several words glues them: the word it ends in goes on with the next token. The pieces of
one character (byte fallback) stay together, and a lone space or "▁" joins the word right behind it; other
white-space tokens belong to no word (−1).

Cost: numpy over all characters and tokens of a batch of texts at once, 0.2 µs per token; tokenising takes 1
µs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskwise.errors import MaskwiseError
from maskwise.text.characters import BLANK, classify, is_white, word_starts

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


def word_ids(text: str, offsets: ArrayLike, *, special: ArrayLike | None = None) -> NDArray[np.int32]:
    """The word of every token of one text, numbered 0, 1, 2 … in order; −1 for tokens that belong to none.

    Args:
        text: the text as the tokenizer got it.
        offsets: (L, 2) character offsets into it, end exclusive, as fast tokenizers return them.
        special: (L,) true for tokens that are not content ([CLS], [SEP], padding). Without it, tokens at (0,
            0) are taken for special; that is wrong only for a "▁" that the tokenizer put before the text.

    Returns:
        (L,) int32.

    Raises:
        MaskwiseError: for offsets that do not fit the text.
    """
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    flags = (spans == 0).all(1) if special is None else np.asarray(special, dtype=bool)
    return word_ids_of_batch([text], spans, np.array([len(spans)]), special=flags)


def word_ids_of_batch(
    texts: Sequence[str], offsets: Ints, lengths: Ints, *, special: Flags
) -> NDArray[np.int32]:
    """`word_ids` of N texts with T tokens together, in one pass.

    Args:
        texts: N texts.
        offsets: (T, 2), the tokens of one text after the other, each relative to its own text.
        lengths: (N,) tokens per text; they sum to T.
        special: (T,) true for tokens that are not content.

    Returns:
        (T,) int32; every text is numbered from 0.
    """
    return number_words(place_tokens(texts, offsets, lengths, special=special))


class Placed(NamedTuple):
    """Where T tokens of N texts stand. The texts are joined to one, with a line break behind each.

    Attributes:
        lengths: (N,) tokens per text.
        base: (N,) where in the joined text each text begins.
        first: (T,) the first visible character of each token; of a lone blank, that of the word behind it; of
            other white space, where it begins; −1 for special and empty tokens.
        last: (T,) the last character.
        inked: (T,) bool, whether it shows a visible character, or is a blank that joins the word behind it.
        word_of: (C,) the word of a character; of white space, the one before.
    """

    lengths: Ints
    base: Ints
    first: Ints
    last: Ints
    inked: Flags
    word_of: Ints


def place_tokens(texts: Sequence[str], offsets: Ints, lengths: Ints, *, special: Flags) -> Placed:
    """Where the tokens of `word_ids_of_batch` stand, from its arguments."""
    sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    if len(offsets) != lengths.sum() or len(special) != len(offsets):
        got = f"{len(offsets)} offsets, {len(special)} flags, {lengths.sum()} tokens"
        raise MaskwiseError("every token needs one pair of offsets and one special flag", got=got)
    start, end = offsets.T
    if not ((start >= 0) & (start <= end) & (end <= np.repeat(sizes, lengths))).all():
        what = "offsets that do not fit the text they are said to belong to"
        raise MaskwiseError(what, do="pass the text exactly as the tokenizer got it")

    # All texts as one, with a line break, which separates anything, behind each.
    base = np.cumsum(sizes + 1) - sizes - 1
    start, end = start + np.repeat(base, lengths), end + np.repeat(base, lengths)
    kinds = classify("".join(text + "\n" for text in texts))
    word_of = np.cumsum(word_starts(kinds), dtype=np.int64)  # of a character; of white space, the one before
    next_ink = _next_ink(kinds)

    first, last = next_ink[start], end - 1  # first visible character, last character
    ink = ~special & (first < end)
    bare = ~special & ~ink & _stands_before_word(kinds, start, end, ink & (first == start))
    first = np.where(ink, first, np.where(bare, end, np.where(special | (start == end), -1, start)))
    return Placed(lengths, base, first, np.where(bare, end, last), ink | bare, word_of)


def number_words(placed: Placed) -> NDArray[np.int32]:
    """(T,) the word of every token, every text numbered from 0; −1 for tokens that belong to none."""
    lengths, word_of = placed.lengths, placed.word_of
    at = np.flatnonzero(placed.inked)
    if not len(at):
        return np.full(len(placed.first), -1, dtype=np.int32)
    # Offsets may overlap (pieces of one character): "the word the last token ended in" is a running maximum.
    ended_in = np.maximum.accumulate(word_of[placed.last[at]])
    opens = np.ones(len(at), dtype=bool)
    opens[1:] = (word_of[placed.first[at[1:]]] > ended_in[:-1]) | (np.diff(at) > 1)
    number = np.cumsum(opens) - 1
    text_begins = np.searchsorted(at, np.cumsum(lengths) - lengths).clip(max=len(at) - 1)
    result = np.full(len(placed.first), -1, dtype=np.int32)
    result[at] = number - np.repeat(number[text_begins], lengths)[at]
    return result


def _stands_before_word(kinds: NDArray[np.uint8], start: Ints, end: Ints, at_ink: Flags) -> Flags:
    """Which tokens, if white, are one blank or nothing at all, with the next token's word right behind."""
    lone = (end == start) | ((end == start + 1) & (kinds[start] == BLANK))
    lone[:-1] &= at_ink[1:] & (start[1:] == end[:-1])
    lone[1:] &= (start[1:] != start[:-1]) | (end[1:] != end[:-1])  # not the last byte of a wide space
    lone[-1:] = False
    return lone


def _next_ink(kinds: NDArray[np.uint8]) -> Ints:
    """(C,) for every character the first at or behind it that is not white; C where there is none."""
    place = np.where(is_white(kinds), len(kinds), np.arange(len(kinds)))
    return np.minimum.accumulate(place[::-1])[::-1]


def flat_offsets(encodings: Sequence[Any]) -> tuple[Ints, Ints]:
    """Offsets (T, 2) and lengths (N,) of the `tokenizers.Encoding`s of N texts."""
    lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
    numbers = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
    return np.fromiter(numbers, dtype=np.int64, count=2 * int(lengths.sum())).reshape(-1, 2), lengths


def text_id(text: str) -> int:
    """A stable 63-bit name for a text: blake2b of its UTF-8 bytes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def special_ids(tokenizer: Any) -> list[int]:
    """Ids that are no content wherever they stand. [UNK] is content: it stands for a word of the text."""
    return sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})


def encode(
    tokenizer: Any, texts: Sequence[str], *, max_length: int | None = None, ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Texts → rows for a `Masker`, special tokens added: lists under "input_ids", "attention_mask" and
    "word_ids", and an int under "example_id".

    Args:
        tokenizer: a fast transformers tokenizer.
        texts: one row each.
        max_length: tokens per row, special ones included; longer rows are cut behind their text, and a word
            that the cut goes through gets −1, for half a word is not to be masked.
        ids: the example ids; without them each is a hash of its text (`text_id`).

    Raises:
        MaskwiseError: for a slow tokenizer, anything but texts, too few ids, or a `max_length` without room.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise MaskwiseError(
            "words need a fast tokenizer, for its character offsets", got=type(tokenizer).__name__
        )
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise MaskwiseError("texts must be a list of strings", got=type(texts).__name__)
    if ids is not None and len(ids) != len(texts):
        raise MaskwiseError("every text needs one id", got=f"{len(ids)} ids for {len(texts)} texts")
    if not texts:
        return []
    encodings = tokenizer(list(texts), truncation=False, padding=False, verbose=False).encodings
    offsets, lengths = flat_offsets(encodings)
    tokens = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
    added = [np.array(encoding.special_tokens_mask, dtype=bool) for encoding in encodings]
    special = np.concatenate(added) | np.isin(np.concatenate(tokens), special_ids(tokenizer))
    words = np.split(word_ids_of_batch(texts, offsets, lengths, special=special), np.cumsum(lengths)[:-1])
    names = [text_id(text) for text in texts] if ids is None else [int(name) for name in ids]
    rows = []
    for token, frame, word, name in zip(tokens, added, words, names):
        keep, word = _cut(frame, word, max_length)
        row = {"input_ids": token[keep].tolist(), "attention_mask": [1] * int(keep.sum())}
        rows.append({**row, "word_ids": word[keep].tolist(), "example_id": name})
    return rows


def _cut(frame: Flags, word: NDArray[np.int32], limit: int | None) -> tuple[Flags, NDArray[np.int32]]:
    """Which tokens a row of at most `limit` keeps (special ones and the first of the text), and its words."""
    keep = np.ones(len(frame), dtype=bool)
    if limit is None or len(frame) <= limit:
        return keep, word
    content, room = np.flatnonzero(~frame), limit - int(frame.sum())
    if room < 1:
        raise MaskwiseError("max_length leaves no room for text", got=limit, allowed=f"> {int(frame.sum())}")
    keep[content[room:]] = False
    lost = word[content[room]]
    return keep, np.where((word == lost) & (lost >= 0), -1, word).astype(np.int32)
