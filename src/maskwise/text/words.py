"""Words: where they begin in a text, and which word every token belongs to.

Words are found in the *text*, never in the tokens. Gaps between offsets turn a sentence into one
word with byte-level and metaspace tokenizers, and a tokenizer's own ``word_ids`` are its
pre-tokens, which with ``Metaspace(split=False)`` are whole sentences again. So one scan over the
characters says where words begin, and character offsets say which of them a token shows: every
tokenizer gets the same words.

The rule for characters, which equals BERT's pre-tokenizer on ordinary text:

- a run of letters, digits and marks is a word, so "don't" is three (don ' t); kana and hangul form
  runs;
- every punctuation mark, every symbol and every ideograph is a word of its own;
- so is every letter of Thai, Lao, Khmer, Myanmar and their kin: they are written without spaces,
  the text shows no words, and a letter is as good a unit as a token (BERT makes one word of a whole
  sentence);
- combining marks, joiners, variation selectors, skin tones and other invisible characters continue
  the character before them; emoji joined by ZWJ and pairs of flag letters are one word;
- white space, no-break and zero-width spaces included, belongs to no word.

The rule is finer than BERT's at non-ASCII symbols ("20€" is two words, as "20$" is), in the scripts
named above, at spaces that BERT deletes (form feed, zero width), and where BERT's Unicode tables
are old. It is coarser only where BERT leaves a mark alone behind a punctuation mark.

The rule for tokens: a token that covers several words glues them, since the word in which it ends
goes on with the next token. The pieces of one character (byte fallback) stay together, and a lone
space or "▁" joins the word right behind it; other white-space tokens belong to no word (−1).

Cost: numpy over all characters and tokens of a batch of texts at once, about 50 ns a character and
    0.2 µs a token
(tokenising takes 1 µs). A character is looked up in Unicode's tables once in a process.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskwise.errors import MaskwiseError, first_line, unknown_name

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

VERSION = f"words-1-unicode-{unicodedata.unidata_version}"
"""Part of the key of stored annotations: another rule or another Unicode table is another layer."""

SPACE, BLANK, EXTEND, JOINER, TONE, FLAG, LETTER, ALONE, SYMBOL, UNSEEN = range(10)
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2FA1F),
    (0x30000, 0x3FFFD),
)
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF)),
    *((0x1A20, 0x1AAF), (0xA9E0, 0xA9FF), (0xAA60, 0xAADF)),
)
# filled as characters are met: a corpus has few
_classes = np.full(0x110000, UNSEEN, dtype=np.uint8)

Classes = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


def word_starts(kinds: Classes) -> Flags:
    """(C,) true where a word of the text begins, from the classes of its characters (`classify`)."""
    kinds = kinds.copy()
    extend = (kinds == EXTEND) | (kinds == JOINER)
    before = _class_before(kinds, extend)
    if (extend | (kinds == TONE)).any():
        extend |= (kinds == TONE) & (before == SYMBOL)
        orphan = extend & is_white(before)  # a mark with nothing to stand on is a letter
        kinds[orphan] = LETTER
        extend &= ~orphan
        before = _class_before(kinds, extend)
    starts = ~is_white(kinds) & ~extend & ~((kinds == LETTER) & (before == LETTER))
    if (kinds == JOINER).any():
        joined = (kinds[1:] == SYMBOL) & (before[1:] == SYMBOL) & (kinds[:-1] == JOINER)
        starts[1:] &= ~joined
    if (kinds == FLAG).any():  # regional indicators pair off from the left
        flag, place = kinds == FLAG, np.arange(len(kinds))
        last_other = np.maximum.accumulate(np.where(flag, -1, place))
        starts &= ~(flag & ((place - last_other) % 2 == 0))
    return starts


def words_in(kinds: Classes) -> tuple[Ints, Ints]:
    """Where words begin and end: before the first white space behind them, or where the next one
    begins.
    """
    start, white, size = (
        np.flatnonzero(word_starts(kinds)),
        np.flatnonzero(is_white(kinds)),
        len(kinds),
    )
    return start, np.minimum(
        np.append(start[1:], size), np.append(white, size)[np.searchsorted(white, start)]
    )


def word_rule(value: str) -> str:
    """Check how words are found: ``auto`` (the rule of this page), ``spaces``, ``token`` or
    ``regex:PATTERN``.

    Raises:
        MaskwiseError: another rule, or a pattern that is none or matches nothing at all.
    """
    if value in ("auto", "spaces", "token"):
        return value
    name, _, pattern = value.partition(":")
    if name != "regex" or not pattern:
        raise unknown_name("rule for words", value, ("auto", "spaces", "token", "regex:PATTERN"))
    try:
        empty = re.compile(pattern).fullmatch("")
    except re.error as error:
        raise MaskwiseError(f"corpus.words: the pattern is none: {error}", got=pattern) from None
    if empty:
        raise MaskwiseError(
            "corpus.words: the pattern matches an empty word", got=pattern, do="use + instead of *"
        )
    return value


def classified(text: str, rule: str) -> tuple[Classes, Flags]:
    """The classes of all characters (C,), and where words begin (C,), by a rule for words."""
    kinds = classify(text)
    if rule == "spaces":
        kinds = np.where(is_white(kinds), kinds, LETTER).astype(np.uint8)
    if not rule.startswith("regex:"):
        return kinds, word_starts(kinds)
    found, starts = np.full(len(kinds), SPACE, np.uint8), np.zeros(len(kinds), bool)
    for match in re.finditer(rule.removeprefix("regex:"), text):
        found[match.start() : match.end()] = LETTER
        starts[match.start()] = True
    found[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) == ord("\n")] = SPACE
    return found, starts


def _class_before(kinds: Classes, extend: Flags) -> Classes:
    """(C,) the class of the last character before each that does not extend another; SPACE at the
    start.
    """
    padded = np.concatenate(([SPACE], kinds)).astype(np.uint8)
    if not extend.any():
        return padded[:-1]
    place = np.where(np.concatenate(([False], extend)), 0, np.arange(len(padded)))
    return padded[np.maximum.accumulate(place)[:-1]]


def is_white(kinds: Classes) -> Flags:
    """(C,) true for characters that belong to no word."""
    return kinds <= BLANK


def classify(text: str) -> Classes:
    """(C,) the class of every character."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds = _classes[codes]
    if (kinds == UNSEEN).any():
        for code in np.unique(codes[kinds == UNSEEN]):
            _classes[code] = _class_of(int(code))
        kinds = _classes[codes]
    return kinds


def _class_of(code: int) -> int:
    char, category = chr(code), unicodedata.category(chr(code))
    # zero-width space: the word border of scripts without spaces
    if char == "\u200b" or char.isspace():
        return BLANK if category == "Zs" else SPACE
    if char == "\u200d":
        return JOINER
    if 0x1F3FB <= code <= 0x1F3FF:
        return TONE
    if 0x1F1E6 <= code <= 0x1F1FF:
        return FLAG
    if category in ("Mn", "Mc", "Me", "Cf", "Cc"):
        return EXTEND
    if any(low <= code <= high for low, high in _IDEOGRAPHS):
        return ALONE
    if category[0] in "LN":
        unspaced = category[0] == "L" and any(low <= code <= high for low, high in _UNSPACED)
        return ALONE if unspaced else LETTER
    # unassigned code points: mostly newer emoji
    return ALONE if category[0] == "P" or code < 128 else SYMBOL


def word_ids(
    text: str, offsets: ArrayLike, *, special: ArrayLike | None = None
) -> NDArray[np.int32]:
    """The word of every token of one text, numbered 0, 1, 2 … in order; −1 for tokens that belong
    to none.

    Args:
        text: the text as the tokenizer got it.
        offsets: (L, 2) character offsets into it, end exclusive, as fast tokenizers return them.
        special: (L,) true for tokens that are not content ([CLS], [SEP], padding). Without it,
            tokens at (0,
            0) are taken for special; that is wrong only for a "▁" that the tokenizer put before the
                text.

    Returns:
        (L,) int32.

    Raises:
        MaskwiseError: for offsets that do not fit the text.

    >>> word_ids("don't", [[0, 0], [0, 2], [2, 3], [3, 4], [4, 5], [0, 0]]).tolist()
    [-1, 0, 0, 1, 2, -1]
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
        first: (T,) the first visible character of each token; of a lone blank, that of the word
            behind it; of other white space, where it begins; −1 for special and empty tokens.
        last: (T,) the last character.
        inked: (T,) bool, whether it shows a visible character, or is a blank that joins the word
            behind it.
        word_of: (C,) the word of a character; of white space, the one before.
    """

    lengths: Ints
    base: Ints
    first: Ints
    last: Ints
    inked: Flags
    word_of: Ints


def place_tokens(
    texts: Sequence[str], offsets: Ints, lengths: Ints, *, special: Flags, rule: str = "auto"
) -> Placed:
    """Where the tokens of `word_ids_of_batch` stand, from its arguments; ``rule``: how words are
    found.
    """
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
    kinds, starts = classified("".join(text + "\n" for text in texts), rule)
    word_of = np.cumsum(starts, dtype=np.int64)  # of a character; of white space, the one before
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
    # Offsets may overlap (pieces of one character): "the word the last token ended in" is a running
    # maximum.
    ended_in = np.maximum.accumulate(word_of[placed.last[at]])
    opens = np.ones(len(at), dtype=bool)
    opens[1:] = (word_of[placed.first[at[1:]]] > ended_in[:-1]) | (np.diff(at) > 1)
    number = np.cumsum(opens) - 1
    text_begins = np.searchsorted(at, np.cumsum(lengths) - lengths).clip(max=len(at) - 1)
    result = np.full(len(placed.first), -1, dtype=np.int32)
    result[at] = number - np.repeat(number[text_begins], lengths)[at]
    return result


def _stands_before_word(kinds: NDArray[np.uint8], start: Ints, end: Ints, at_ink: Flags) -> Flags:
    """Which tokens, if white, are one blank or nothing at all, with the next token's word right
    behind.
    """
    lone = (end == start) | ((end == start + 1) & (kinds[start] == BLANK))
    lone[:-1] &= at_ink[1:] & (start[1:] == end[:-1])
    # not the last byte of a wide space
    lone[1:] &= (start[1:] != start[:-1]) | (end[1:] != end[:-1])
    lone[-1:] = False
    return lone


def _next_ink(kinds: NDArray[np.uint8]) -> Ints:
    """(C,) for every character the first at or behind it that is not white; C where there is none."""
    place = np.where(is_white(kinds), len(kinds), np.arange(len(kinds)))
    return np.minimum.accumulate(place[::-1])[::-1]


def flat_offsets(encodings: Sequence[Encoding]) -> tuple[Ints, Ints]:
    """Offsets (T, 2) and lengths (N,) of the `tokenizers.Encoding`s of N texts."""
    lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
    numbers = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
    return np.fromiter(numbers, dtype=np.int64, count=2 * int(lengths.sum())).reshape(
        -1, 2
    ), lengths


@contextmanager
def tokenizing() -> Iterator[None]:
    """Turn a panic of the tokenizer's Rust code into a ``MaskwiseError``, as of a pattern that
    backtracks for ever.
    """
    try:
        yield
    except BaseException as error:  # panics are no Exceptions, and their class has no public name
        if type(error).__name__ != "PanicException":
            raise
        do = "simplify the pattern of its pre-tokenizer, or give shorter texts"
        raise MaskwiseError(
            "the tokenizer failed on these texts", got=first_line(error), do=do
        ) from None


def text_id(text: str) -> int:
    """A stable 63-bit name for a text: blake2b of its UTF-8 bytes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that are no content wherever they stand. [UNK] is content: it stands for a word of the
    text.
    """
    return sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
