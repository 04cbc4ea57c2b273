"""Where words begin in a text, from its characters alone.

The rule, which on ordinary text equals BERT's pre-tokenizer:

- a run of letters, digits and marks is a word, so "don't" is three (don ' t); kana and hangul form runs;
- every punctuation mark, every symbol and every ideograph is its own word;
- so is every letter of Thai, Lao, Khmer, Myanmar and their kin: they are written without spaces, the text
  shows no words, and a unit there is as good as a token (BERT makes one word of a whole sentence);
- combining marks, joiners, variation selectors, skin tones and other invisible characters continue what they
  stand behind; emoji joined by ZWJ and pairs of flag letters are one word;
- white space, no-break and zero-width spaces included, belongs to no word.

It is finer than BERT at non-ASCII symbols ("20€" is two words, as "20$" is), in those scripts, at spaces that
BERT deletes (form feed, zero width), and where BERT's Unicode tables are old; coarser only where BERT leaves
a mark alone behind a punctuation mark.

Cost: a table look-up and a dozen numpy passes, about 50 ns per character; classes are looked up in Unicode's
tables once per character that is met, not per text.
"""

from __future__ import annotations

import unicodedata

import numpy as np
from numpy.typing import NDArray

VERSION = f"words-1-unicode-{unicodedata.unidata_version}"
"""Part of the key of stored annotations: another rule or another Unicode table is another layer."""

SPACE, BLANK, EXTEND, JOINER, TONE, FLAG, LETTER, ALONE, SYMBOL, UNSEEN = range(10)
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F), (0x30000, 0x3FFFD))
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF)),
    *((0x1A20, 0x1AAF), (0xA9E0, 0xA9FF), (0xAA60, 0xAADF)),
)
_classes = np.full(0x110000, UNSEEN, dtype=np.uint8)  # filled as characters are met: a corpus has few

Classes = NDArray[np.uint8]
Flags = NDArray[np.bool_]


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


def _class_before(kinds: Classes, extend: Flags) -> Classes:
    """(C,) the class of the last character before each that does not extend another; SPACE at the start."""
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
    if char == "\u200b" or char.isspace():  # zero-width space: the word border of scripts without spaces
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
    return ALONE if category[0] == "P" or code < 128 else SYMBOL  # unassigned code points: mostly newer emoji
