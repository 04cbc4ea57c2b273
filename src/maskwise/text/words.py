"""Find the words of a text, and the word of each token.

Words are found in the *text*, not in the tokens, so a text has the same words with every tokenizer.
One scan over the characters finds words, and character offsets map tokens to words. A tokenizer's
``word_ids`` are not used: they number pre-tokens, and with ``Metaspace(split=False)``, a pre-token
is a whole sentence.

On ordinary text, these rules find the same words as BERT's pre-tokenizer:

- A run of letters, digits and marks is a word, so "don't" has three words (don ' t). A run of kana
  or hangul is a word, too.
- Each punctuation mark, each symbol and each ideograph is a word.
- Each letter of Thai, Lao, Khmer, Myanmar and related scripts is a word (in BERT, a sentence is one
  word).
- Combining marks, joiners, variation selectors, skin tones and control characters continue the
  character before them. Emoji joined by ZWJ and pairs of flag letters are one word.
- White space, including no-break and zero-width spaces, belongs to no word.

A user may choose another rule (`word_rule`), such as a segmenter of a language.

The rules find more words than BERT at non-ASCII symbols (in BERT, "20€" is one word and "20$" two),
in Thai and related scripts, at spaces that BERT deletes (form feed, zero width), and where BERT's
Unicode tables are outdated. They find fewer only where a combining mark follows punctuation.

A token that covers several words joins these words. If the token ends inside a word, the next token
belongs to the joined word, too. All tokens of one character (byte fallback) belong to one word. A
lone space or "▁" belongs to the next word; other white-space tokens belong to no word (−1).

Cost: about 50 ns per character and 0.2 µs per token (tokenising takes 1 µs per token).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskwise.base.errors import MaskwiseError, first_line, option, plural, unknown_name
from maskwise.masking.arrays import flags, whole_numbers
from maskwise.masking.segments import Array, changes, offsets, rank_within
from maskwise.text.segmenters import (
    RULES,
    SEGMENTERS,
    Segmenter,
    names_segmenter,
    segmented_words,
    segmenter,
)

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

VERSION = f"words-1-unicode-{unicodedata.unidata_version}"
"""Versions of these rules and of Unicode. If they change, stored annotations are made again."""

SPACE, BLANK, EXTEND, JOINER, TONE, FLAG, LETTER, ALONE, SYMBOL, UNSEEN = range(10)
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2FA1F),
    (0x30000, 0x3FFFD),
)
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x1950, 0x19DF),
    (0x1A20, 0x1AAF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF),
)
# A class is looked up when its character first occurs, because unicodedata is slow.
_classes = np.full(0x110000, UNSEEN, dtype=np.uint8)

WordRule: TypeAlias = "str | Segmenter"
"""A word rule by its name (`word_rule`), or a function from a text to its words."""

Classes = NDArray[np.uint8]
CodePoints = NDArray[np.uint32]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]
Ints32 = NDArray[np.int32]


def codes_of(text: str) -> CodePoints:
    """Return the code points (C,) of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def join_texts(texts: Sequence[str]) -> tuple[str, Ints]:
    """Join N texts, each followed by a line break. Also return the offset (N,) of each text.

    No word and no run of marks crosses a line break, so no word spans two texts.
    """
    sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)) + 1
    return "\n".join([*texts, ""]), offsets(sizes)


def classify(text: str) -> Classes:
    """Return the class of each character, (C,), from ``SPACE`` to ``SYMBOL``."""
    codes = codes_of(text)
    kinds = _classes[codes]
    unseen = kinds == UNSEEN
    if unseen.any():
        for code in np.unique(codes[unseen]):
            _classes[code] = _class_of(int(code))
        kinds = _classes[codes]
    return kinds


def _class_of(code: int) -> int:
    char = chr(code)
    category = unicodedata.category(char)
    # Scripts without spaces may mark word boundaries with zero-width spaces.
    if char == "\u200b" or char.isspace():
        if category == "Zs":
            return BLANK
        return SPACE
    if char == "\u200d":
        return JOINER
    if 0x1F3FB <= code <= 0x1F3FF:
        return TONE
    if 0x1F1E6 <= code <= 0x1F1FF:
        return FLAG
    if category in ("Mn", "Mc", "Me", "Cf", "Cc"):
        return EXTEND
    if _in_ranges(code, _IDEOGRAPHS):
        return ALONE
    if category[0] == "L" and _in_ranges(code, _UNSPACED):
        return ALONE
    if category[0] in "LN":
        return LETTER
    if category[0] == "P" or code < 128:
        return ALONE
    # Unassigned code points, which are mostly newer emoji, are treated as symbols.
    return SYMBOL


def _in_ranges(code: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(low <= code <= high for low, high in ranges)


def is_white(kinds: Classes) -> Flags:
    """Return a flag for each character, (C,): true for white space."""
    return kinds <= BLANK


def word_starts(kinds: Classes) -> Flags:
    """Return a flag for each class in ``kinds``, (C,): true where a word begins."""
    kinds = kinds.copy()
    joiner = kinds == JOINER
    tone = kinds == TONE
    extend = joiner | (kinds == EXTEND)
    before = _class_before(kinds, extend)
    # Most texts have no marks or skin tones, so this second pass is usually skipped.
    if extend.any() or tone.any():
        extend |= tone & (before == SYMBOL)
        # A mark without a character to extend (after white space) counts as a letter.
        orphan = extend & is_white(before)
        kinds[orphan] = LETTER
        extend &= ~orphan
        before = _class_before(kinds, extend)
    inside_letters = (kinds == LETTER) & (before == LETTER)
    starts = ~is_white(kinds) & ~extend & ~inside_letters
    if joiner.any():
        # Emoji that are joined by ZWJ form one word, unless the joiner became a letter above.
        symbols = (kinds[1:] == SYMBOL) & (before[1:] == SYMBOL)
        starts[1:] &= ~(symbols & (kinds[:-1] == JOINER))
    flag = kinds == FLAG
    if flag.any():
        # Flag letters form pairs from the left: every second letter continues a word.
        place = np.arange(len(kinds))
        last_other = np.maximum.accumulate(np.where(flag, -1, place))
        second = (place - last_other) % 2 == 0
        starts &= ~(flag & second)
    return starts


def _class_before(kinds: Classes, extend: Flags) -> Classes:
    """Return, for each character, the class of the last earlier character without ``extend``."""
    # The first character has no earlier character, so its class is SPACE.
    padded = np.concatenate(([SPACE], kinds)).astype(np.uint8)
    before = padded[:-1].copy()
    # Few characters extend another, so only those after them need a look further back.
    place = np.flatnonzero(extend)
    # The first of each run of such characters; ``place − index`` changes where a run begins.
    run = np.maximum.accumulate(np.where(changes(place - np.arange(len(place))), place, 0))
    after = place + 1 < len(kinds)
    before[place[after] + 1] = padded[run[after]]
    return before


def words_in(kinds: Classes, starts: Flags | None = None) -> tuple[Ints, Ints]:
    """Return the starts and the ends (exclusive) of all words, as two arrays.

    Args:
        kinds: the class of each character, (C,).
        starts: (C,) true where a word begins; by default, `word_starts`.
    """
    start = np.flatnonzero(word_starts(kinds) if starts is None else starts)
    white = np.append(np.flatnonzero(is_white(kinds)), len(kinds))
    next_white = white[white.searchsorted(start)]
    next_start = np.append(start[1:], len(kinds))
    return start, np.minimum(next_start, next_white)


def needs_offsets(rule: WordRule) -> bool:
    """Return whether words are found by the offsets of tokens. Other rules read the text first."""
    return rule in ("auto", "token")


def word_rule(value: str) -> str:
    """Check and return a word rule: ``auto``, ``spaces``, ``token``, ``regex:PATTERN`` or the name
    of a segmenter (`maskwise.text.segmenters`).

    Raises:
        MaskwiseError: the rule is unknown, or the pattern is not valid or matches an empty word.
    """
    if value in RULES:
        return value
    name, _, pattern = value.partition(":")
    if name != "regex" and names_segmenter(value):
        segmenter(value)
        return value
    if name != "regex" or not pattern:
        rules = (*RULES, "regex:PATTERN", *SEGMENTERS)
        raise unknown_name("word rule", value, rules)
    try:
        for text in ("", "ab cd"):
            list(_matches(pattern, text))
    except re.error as error:
        raise MaskwiseError(f"corpus.words: invalid pattern: {error}", got=pattern) from None
    return value


def ready_rule(rule: WordRule) -> WordRule:
    """Check a word rule, and return it with a segmenter in place of its name.

    Raises:
        MaskwiseError: as for `word_rule`, or the rule is no text and no function.
    """
    if not isinstance(rule, str):
        if not callable(rule):
            raise MaskwiseError(
                "words is not valid",
                got=repr(rule),
                allowed="the name of a word rule, or a function from a text to its words",
            )
        return rule
    if names_segmenter(word_rule(rule)):
        return segmenter(rule)
    return rule


def _matches(pattern: str, text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each match; an empty match raises a `MaskwiseError`."""
    for match in re.finditer(pattern, text):
        if not match[0]:
            raise MaskwiseError(
                "corpus.words: the pattern matches an empty word",
                got=pattern,
                do="use + instead of *; \\b and \\B alone match no character",
            )
        yield match.span()


def _classified(
    joined: str, rule: WordRule, texts: Sequence[str], base: Ints
) -> tuple[Classes, Flags]:
    """Return the class of each character, (C,), and a flag, (C,), true where a word begins."""
    kinds = classify(joined)
    if callable(rule) or rule.startswith("regex:"):
        # A lone space belongs to the word behind it, as in ordinary text.
        found = np.where(kinds == BLANK, kinds, np.uint8(SPACE))
        starts = np.zeros(len(kinds), bool)
        # Texts are read one at a time, because a word must not depend on neighbouring texts.
        for text, origin in zip(texts, base.tolist()):
            places = (
                segmented_words(rule, text)
                if callable(rule)
                else _matches(rule.removeprefix("regex:"), text)
            )
            for start, end in places:
                found[origin + start : origin + end] = LETTER
                starts[origin + start] = True
        found[codes_of(joined) == ord("\n")] = SPACE
        return found, starts
    if rule == "spaces":
        kinds = np.where(is_white(kinds), kinds, LETTER).astype(np.uint8)
    return kinds, word_starts(kinds)


def word_ids(text: str, offsets: ArrayLike, *, special: ArrayLike | None = None) -> Ints32:
    """Return the word number of each token, (L,) int32, from 0; −1 for tokens without a word.

    Args:
        text: the text exactly as it was passed to the tokenizer.
        offsets: (L, 2) character offsets into the text, end exclusive, as from fast tokenizers.
        special: (L,) true for tokens that are not content ([CLS], [SEP], padding). By default, all
            tokens with the offsets (0, 0) are special. The default is wrong only for a "▁" that
            the tokenizer adds before the text.

    Raises:
        MaskwiseError: offsets do not fit the text, or ``special`` has another length.

    >>> word_ids("don't", [[0, 0], [0, 2], [2, 3], [3, 4], [4, 5], [0, 0]]).tolist()
    [-1, 0, 0, 1, 2, -1]
    """
    if not isinstance(text, str):
        raise MaskwiseError("the text must be a string", got=type(text).__name__)
    spans = whole_numbers("offsets", offsets)
    if not spans.size:
        spans = spans.reshape(0, 2)
    spans = whole_numbers("offsets", spans, shape=(None, 2))
    start, end = spans.T
    if special is None:
        is_special = (start == 0) & (end == 0)
    else:
        is_special = flags("special", special, shape=(len(spans),))
    fits = (start >= 0) & (start <= end) & (end <= len(text))
    if not fits.all():
        raise MaskwiseError(
            "the offsets do not fit the text",
            do="pass the text exactly as it was tokenised",
        )
    placed = place_tokens([text], spans, np.array([len(spans)]), special=is_special)
    return number_words(placed)


class Placed(NamedTuple):
    """Positions of the T tokens of N texts in the joined text of C characters (`join_texts`).

    Attributes:
        lengths: (N,) the number of tokens in each text.
        base: (N,) the position of each text in the joined text.
        first: (T,) the position of the first visible character of each token. For a lone space,
            the start of the next word. For other white space, the start of the white space. For
            a special or empty token, −1.
        last: (T,) the position of the last character of each token.
        inked: (T,) true for tokens with a visible character, and for a lone space before a word.
        word_of: (C,) the number of the word of each character; white space has the number of the
            previous word.
    """

    lengths: Ints
    base: Ints
    first: Ints
    last: Ints
    inked: Flags
    word_of: Ints


def place_tokens(
    texts: Sequence[str],
    offsets: Ints,
    lengths: Ints,
    *,
    special: Flags | None = None,
    rule: WordRule = "auto",
) -> Placed:
    """Map the T tokens of N texts to characters and words, in one pass.

    Args:
        texts: N texts.
        offsets: (T, 2) character offsets, text after text, each relative to its own text.
        lengths: (N,) the number of tokens in each text; they sum to T.
        special: (T,) true for tokens that are not content; by default all tokens are content.
        rule: the word rule (`ready_rule`), except ``token``.
    """
    content = np.ones(len(offsets), dtype=bool)
    if special is not None:
        content = ~special
    joined, base = join_texts(texts)
    shift = base.repeat(lengths)
    start = offsets[:, 0] + shift
    end = offsets[:, 1] + shift
    kinds, starts = _classified(joined, rule, texts, base)
    place = np.where(is_white(kinds), len(kinds), np.arange(len(kinds)))
    next_visible = np.minimum.accumulate(place[::-1])[::-1]

    # A token is visible, a lone space before a word, other white space, or empty.
    first = next_visible[start]
    visible = content & (first < end)
    at_word = visible & (first == start)
    blank = content & ~visible & _joins_next_word(kinds, start, end, at_word)
    nothing = ~content | (start >= end)
    first = np.where(visible, first, start)
    first[nothing] = -1
    first[blank] = end[blank]
    last = np.where(blank, end, end - 1)
    word_of = starts.cumsum(dtype=np.int64)
    return Placed(lengths, base, first, last, visible | blank, word_of)


def _joins_next_word(kinds: Classes, start: Ints, end: Ints, at_word: Flags) -> Flags:
    """Return a flag for each token, (T,): true for a lone space right before a word.

    Args:
        at_word: (T,) true for tokens that begin with a visible character.
    """
    one_blank = (end == start + 1) & (kinds[start] == BLANK)
    # A "▁" that the tokenizer added covers no character, so start equals end.
    lone = one_blank | (end == start)
    lone[:-1] &= at_word[1:] & (start[1:] == end[:-1])
    # Byte fallback splits a wide space into tokens with equal offsets; none is a lone space.
    lone[1:] &= changes(start, end)[1:]
    lone[-1:] = False
    return lone


def number_words(placed: Placed) -> Ints32:
    """Return the word number of each token, (T,), from 0 in each text; −1 for no word."""
    lengths = placed.lengths
    result = np.full(len(placed.first), -1, dtype=np.int32)
    inked = np.flatnonzero(placed.inked)
    if not len(inked):
        return result
    # Tokens may overlap, so this is the last word of all tokens so far.
    ends_in = np.maximum.accumulate(placed.word_of[placed.last[inked]])
    begins_in = placed.word_of[placed.first[inked]]
    opens = np.ones(len(inked), dtype=bool)
    # A white-space token between two parts of a word separates them.
    opens[1:] = (begins_in[1:] > ends_in[:-1]) | (np.diff(inked) > 1)
    number = opens.cumsum() - 1
    # For texts without inked tokens at the end, the index would be out of range.
    first_inked = inked.searchsorted(offsets(lengths)).clip(max=len(inked) - 1)
    first_number = np.repeat(number[first_inked], lengths)
    result[inked] = number - first_number[inked]
    return result


def _first_of_texts(values: Ints, lengths: Ints) -> Ints:
    """Return the value (N,) of each text's first token; 0 for a text without tokens."""
    padded = np.append(values, 0)
    return padded[offsets(lengths)]


def words_of_tokens(
    texts: Sequence[str],
    offsets: Ints,
    lengths: Ints,
    *,
    rule: WordRule,
    special: Flags | None = None,
) -> tuple[Placed, Ints32]:
    """Return the tokens' places by the rule ``auto``, and their words (T,) by any rule.

    Annotation layers are always aligned by the rule ``auto``. The arguments are those of
    `place_tokens`.
    """
    placed = place_tokens(texts, offsets, lengths, special=special)
    if rule == "token":
        content = np.ones(len(offsets), bool) if special is None else ~special
        before = content.cumsum(dtype=np.int64) - content
        numbers = before - _first_of_texts(before, lengths).repeat(lengths)
        return placed, np.where(content, numbers, -1).astype(np.int32)
    if rule == "auto":
        return placed, number_words(placed)
    return placed, number_words(place_tokens(texts, offsets, lengths, special=special, rule=rule))


def flat_offsets(encodings: Sequence[Encoding]) -> tuple[Ints, Ints]:
    """Return the offsets (T, 2) of all tokens, and the number of tokens (N,) of each text."""
    lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
    pairs = chain.from_iterable(encoding.offsets for encoding in encodings)
    count = 2 * int(lengths.sum())
    numbers = np.fromiter(chain.from_iterable(pairs), dtype=np.int64, count=count)
    return numbers.reshape(-1, 2), lengths


def no_offsets() -> str:
    """Say what to do without the places of tokens in a text."""
    return (
        "use a model whose tokenizer has a tokenizer.json; one that exists only in Python trains "
        "in pretrain and in studies without tasks, with masking.policy=token and without "
        "corpus.layers, or with words that are found before it reads them: corpus.words=spaces, "
        f"regex:… or a segmenter (in inspect and export, {option('words')})"
    )


def require_offsets(tokenizer: PreTrainedTokenizerBase, *, layers: bool, words: WordRule) -> None:
    """Reject a slow tokenizer, which has no character offsets, if offsets are needed.

    With a word rule other than ``auto`` and ``token``, a slow tokenizer reads each word alone
    (`tokenised_by_words`), so the words are known.

    Raises:
        MaskwiseError: the tokenizer is slow or no tokenizer, or the word rule is unknown.
    """
    if isinstance(words, str):
        word_rule(words)
    if not hasattr(tokenizer, "is_fast"):
        raise MaskwiseError("a loaded tokenizer is needed", got=repr(tokenizer))
    if tokenizer.is_fast:
        return
    if not needs_offsets(words):
        require_words_alone(tokenizer)
    elif layers:
        raise MaskwiseError(
            "corpus.layers need a fast tokenizer, for its character offsets",
            got=type(tokenizer).__name__,
            do=no_offsets(),
        )


def require_words_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless a slow tokenizer makes the same tokens of words alone as of words in a text.

    Tokenizers that mark the space before a word do not.
    """
    read: Any = tokenizer.tokenize
    apart = [token for word in ("a", "b", ",") for token in read(word)]
    if read("a b,") != apart:
        raise MaskwiseError(
            "this slow tokenizer writes a word in a text otherwise than alone, so it cannot read "
            "words one by one",
            got=f"{type(tokenizer).__name__}: {read('a b,')} and {apart}",
            do="use a model whose tokenizer has a tokenizer.json",
        )


def tokenised_by_words(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rule: WordRule
) -> tuple[Ints, Ints, Ints]:
    """Tokenise the words of N texts one by one, for a tokenizer that gives no offsets.

    Text outside words is tokenised, too.

    Returns:
        The ids (T,); the offsets (T, 2), which are those of the word of each token; and the
        numbers of tokens (N,).
    """
    joined, base = join_texts(texts)
    begin, end = words_in(*_classified(joined, rule, texts, base))
    first_word = begin.searchsorted([*base.tolist(), len(joined)]).tolist()
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    lengths = []
    known: dict[str, list[int]] = {}
    read: Any = tokenizer
    for text, origin, own in zip(texts, base.tolist(), pairwise(first_word)):
        words = slice(*own)
        borders = np.stack([begin[words], end[words]], axis=1) - origin
        cuts = [0, *borders.ravel().tolist(), len(text)]
        before = len(ids)
        # Words and the text between them alternate.
        for start, stop in pairwise(cuts):
            part = text[start:stop].strip()
            if not part:
                continue
            if part not in known:
                tokens = read.tokenize(part, split_special_tokens=True)
                known[part] = read.convert_tokens_to_ids(tokens)
            ids += known[part]
            places += [(start, stop)] * len(known[part])
        lengths.append(len(ids) - before)
    _warn_of_other_tokens(tokenizer, texts, ids, lengths)
    spans_T = np.array(places, dtype=np.int64).reshape(-1, 2)
    return np.array(ids, dtype=np.int64), spans_T, np.array(lengths, dtype=np.int64)


COMPARED_TEXTS, MOST_OTHERWISE = 16, 0.25
"""Texts that are also read whole, and the share of them that may then have other tokens."""


def _warn_of_other_tokens(
    tokenizer: Any, texts: Sequence[str], ids: Sequence[int], lengths: Sequence[int]
) -> None:
    """Warn if many texts have other tokens when the tokenizer reads them whole.

    A model that was trained on whole texts has not seen the tokens of words alone.
    """
    compared = len(texts[:COMPARED_TEXTS])
    whole, sizes = slow_columns(tokenizer, texts[:compared], numbered=False)
    same = 0
    end = begin = 0
    for size, length in zip(sizes.tolist(), lengths):
        tokens = whole["input_ids"][end : end + size].tolist()
        same += tokens == list(ids[begin : begin + length])
        end += size
        begin += length
    if compared - same > MOST_OTHERWISE * compared:
        warnings.warn(
            f"{compared - same} of the first {plural(compared, 'text')} have other tokens if "
            f"{type(tokenizer).__name__} reads them whole than word by word, as here, and a model "
            "that was trained with it knows those of whole texts; find words as it does itself",
            stacklevel=2,
        )


def slow_columns(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, numbered: bool
) -> tuple[dict[str, Array], Ints]:
    """Tokenise N texts with a slow tokenizer, and return columns (T,) and lengths (N,).

    Args:
        numbered: whether each token is a word. If not, there is no column "word_ids".
    """
    ids = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        verbose=False,
        # If a text contains the name of a special token, the name is plain text.
        split_special_tokens=True,
    )["input_ids"]
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    columns: dict[str, Array] = {"input_ids": np.fromiter(chain.from_iterable(ids), np.int32)}
    if numbered:
        columns["word_ids"] = rank_within(lengths).astype(np.int32)
    return columns, lengths


@contextmanager
def tokenizing() -> Iterator[None]:
    """Turn a failure of the tokenizer's Rust code into a `MaskwiseError`."""
    try:
        yield
    except BaseException as error:
        # A panic is not an `Exception`, and its class has no public name. Other failures, such as a
        # vocabulary without its unknown token, are plain `Exception`s.
        if type(error) is Exception:
            raise MaskwiseError(
                "the tokenizer cannot read these texts",
                got=first_line(error),
                do="check the file of the tokenizer: its vocabulary must have its unknown token",
            ) from None
        if type(error).__name__ != "PanicException":
            raise
        raise MaskwiseError(
            "the tokenizer failed on these texts",
            got=first_line(error),
            do="simplify the pattern of the tokenizer's pre-tokenizer, or cut the texts",
        ) from None


def text_id(text: str) -> int:
    """Return a stable 63-bit id of a text: the blake2b hash of its UTF-8 bytes.

    A text is its content. Two texts are the same if they have this id, wherever they stand and
    whatever they are called; white space, case and the form of letters count.
    """
    return _bytes_id(text.encode(errors="surrogatepass"))


def tokens_id(ids: Ints) -> int:
    """Return a stable 63-bit id of a row of token ids."""
    # The byte order is fixed, so that ids, and thus masks, are equal on all machines.
    return _bytes_id(ids.astype("<i8").tobytes())


def _bytes_id(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def piece_id(text: int, begin: int) -> int:
    """Return the id of a piece, from which its masks are computed.

    Args:
        text: the id of the text, of which the first piece has the same id.
        begin: the place of the first token of the piece among the tokens of the text.
    """
    return text_id(f"{text}\0{begin}") if begin else text


ROLES = ("unk", "bos", "eos", "pad", "mask", "cls", "sep")
"""The roles of special tokens in a tokenizer."""


def special_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the names of the tokenizer's special tokens, such as "[MASK]", without duplicates."""
    names: list[str] = []
    # An object with the ids of special tokens is enough to cut pieces.
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return names
    for role in ROLES:
        number = getattr(tokenizer, f"{role}_token_id", None)
        name = None if number is None else tokenizer.convert_ids_to_tokens(number)
        if isinstance(name, str) and name not in names:
            names.append(name)
    return names


def texts_with(names: Sequence[str], texts: Iterable[str]) -> int:
    """Count the texts that contain one of the names."""
    return sum(any(name in text for name in names) for text in texts)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of special tokens without [UNK], because [UNK] replaces a word of the text."""
    return sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
