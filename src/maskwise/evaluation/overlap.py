"""Do the items of a test set, or their right answers, occur in a corpus? Does a policy mask them?

Texts are compared as words: lower case, letters and digits only, so that case, punctuation and line
breaks do not hide a copy. An item overlaps if n consecutive words of it (13, as for GPT-3; Brown et
al. 2020, appendix C) occur in one document; a shorter item if all of it does. Items of fewer than
``LEAST`` words ("set an alarm") occur anywhere, and are counted apart. Answers of any length are
looked for in documents in the same way; in rows they are looked for token by token, as masks are.

Cost: 64-bit hashes of n-grams, about 1 s per million words. (The chance of a false hit is about one
in 10⁷ for a billion words and a thousand items.) Words that a test set splits ("do n't") are not
joined, so copies of these may be missed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import mixed
from maskwise.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.text import Document, Rows
from maskwise.text.documents import batches

N = 13
# Words of the shortest item that is looked for.
LEAST = 4
EXAMPLES = 5
_WORD = re.compile(r"[^\W_]+")
_BATCH_CHARACTERS = 1 << 20
# Rows of which masks are drawn.
ROWS = 1024
_ROWS_AT_ONCE = 64
# Longer answers are not looked for in rows.
_MOST_TOKENS = 16
_BASE = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


class HasTexts(Protocol):
    """A task, or a test set: a name, and the texts of every item."""

    @property
    def name(self) -> str: ...
    def texts(self) -> list[tuple[str, ...]]: ...


class OverlapRecord(TypedDict):
    """How many items of a test set occur in a corpus, with a few of them.

    ``short`` items have too few words to be looked for; ``n`` is the number of consecutive words.
    """

    kind: Literal["overlap"]
    task: str
    corpus: str
    items: int
    overlapping: int
    short: int
    documents: int
    n: int
    examples: list[str]


def overlap_record(
    documents: Iterable[str | Document], task: HasTexts, *, corpus: str, n: int = N
) -> OverlapRecord:
    """How many test items share n consecutive words with a document.

    Args:
        documents: the corpus, such as ``text.read_documents(source)``; read once.
        task: a ``tasks.Task`` (its test split is looked for), or a set of ``load_sets``. Of several
            texts of an item (a question and its context) one is enough.
        corpus: its name in the record.
        n: consecutive words; shorter texts are looked for whole.

    Raises:
        MaskwiseError: n below ``LEAST``, or no items.

    >>> from types import SimpleNamespace
    >>> texts = [("the cat sat on the mat",), ("set an alarm",)]
    >>> task = SimpleNamespace(name="mine", texts=lambda: texts)
    >>> record = overlap_record(["Yesterday the cat sat on the mat."], task, corpus="notes")
    >>> record["items"], record["overlapping"], record["short"], record["examples"]
    (2, 1, 1, ['the cat sat on the mat'])
    """
    items = task.texts()
    if n < LEAST:
        what = "n-grams for an overlap check are too short"
        raise MaskwiseError(what, got=n, allowed=f"≥ {LEAST}")
    if not items:
        raise MaskwiseError("there are no test items to look for")
    hits, count, longest = occurring(documents, items, n=n, least=LEAST)
    examples = [items[place] for place in np.flatnonzero(hits)[:EXAMPLES]]
    return {
        "kind": "overlap",
        "task": task.name,
        "corpus": corpus,
        "items": len(items),
        "overlapping": int(hits.sum()),
        "short": int((longest < LEAST).sum()),
        "documents": count,
        "n": n,
        "examples": [" / ".join(texts) for texts in examples],
    }


def occurring(
    documents: Iterable[str | Document], items: Sequence[Sequence[str]], *, n: int, least: int
) -> tuple[NDArray[np.bool_], int, NDArray[np.int64]]:
    """Which items have a text of at least ``least`` words of which n in a row, or all, occur in a
    document; the number of documents; and the words of the longest text of every item.
    """
    owner_T = np.repeat(np.arange(len(items)), [len(texts) for texts in items])
    words, size_T = _words(chain.from_iterable(items))
    longest = np.zeros(len(items), dtype=np.int64)
    np.maximum.at(longest, owner_T, size_T)
    needed_T = np.minimum(size_T, n)
    lengths = np.unique(needed_T[needed_T >= least]).tolist()
    wanted: dict[int, _Wanted] = {}
    for length, grams, text in _grams(words, size_T, lengths):
        of_length = needed_T[text] == length
        wanted[length] = _Wanted(grams[of_length], owner_T[text[of_length]])
    hits = np.zeros(len(items), dtype=bool)
    count = 0
    texts = (document if isinstance(document, str) else document.text for document in documents)
    for batch in batches(texts, _BATCH_CHARACTERS):
        count += len(batch)
        for length, grams, _ in _grams(*_words(batch), lengths):
            hits[wanted[length].owners_of(grams)] = True
    return hits, count, longest


def _words(texts: Iterable[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """(W,) hashes of the words of all texts, and (T,) the number of words of each text."""
    by_text = [_WORD.findall(text.lower()) for text in texts]
    sizes = np.fromiter(map(len, by_text), dtype=np.int64, count=len(by_text))
    # Python's own hash of a string: salted anew in every process, which equality does not see.
    hashes = np.fromiter(
        map(hash, chain.from_iterable(by_text)), dtype=np.int64, count=int(sizes.sum())
    )
    return hashes.view(np.uint64), sizes


def _grams(
    words: Hashes, sizes: NDArray[np.int64], lengths: Sequence[int]
) -> Iterator[tuple[int, Hashes, NDArray[np.int64]]]:
    """For each length, ascending: hashes of that many consecutive words of a text, and the text."""
    text = np.repeat(np.arange(len(sizes)), sizes)
    for length, grams in _in_a_row(words, lengths):
        whole = text[: len(grams)] == text[length - 1 :]
        yield length, grams[whole], text[: len(grams)][whole]


def _in_a_row(values: NDArray[Any], lengths: Collection[int]) -> Iterator[tuple[int, Hashes]]:
    """For each length, ascending: hashes (T − length + 1,) of that many consecutive values."""
    terms = mixed(values.astype(np.uint64))
    total = np.zeros_like(terms)
    longest = max(lengths, default=0)
    # A polynomial modulo 2⁶⁴, which grows by one value at a time.
    for length in range(1, min(longest, len(terms)) + 1):
        total = total[: len(terms) - length + 1] * _BASE + terms[length - 1 :]
        if length in lengths:
            yield length, total


class _Wanted:
    """The n-grams of items. A table of bits rejects nearly all others before any comparison."""

    def __init__(self, grams: Hashes, owner: NDArray[np.int64]):
        self.grams = grams
        self.owner = owner
        self.bits = np.zeros(1 << 22, dtype=bool)
        self.bits[grams >> np.uint64(42)] = True

    def owners_of(self, grams: Hashes) -> NDArray[np.int64]:
        """The items that have one of these n-grams."""
        likely = grams[self.bits[grams >> np.uint64(42)]]
        return self.owner[np.isin(self.grams, likely)]


# Answers


class CoverageRecord(TypedDict):
    """What a study keeps of a corpus and a task."""

    kind: Literal["coverage"]
    task: str
    corpus: str
    items: int
    standing: int


class Masked(NamedTuple):
    """Occurrences of answers in rows, and how many were masked whole, or at least in part."""

    occurrences: int
    whole: int
    part: int


def answers_in(
    documents: Iterable[str | Document], rights: Sequence[Sequence[str]]
) -> NDArray[np.bool_]:
    """(N,) the items with a right answer that occurs in a document. 13 words of a longer answer are
    enough.

    >>> answers_in(["She was a baker in York."], [["the baker", "Baker"], ["bake"]]).tolist()
    [True, False]

    Args:
        documents: texts, or anything with ``text``; read once, one batch in memory.
        rights: the right answers of every item.
    """
    return occurring(documents, rights, n=N, least=1)[0]


def coverage_record(
    documents: Iterable[str | Document], rights: Sequence[Sequence[str]], *, task: str, corpus: str
) -> CoverageRecord:
    """How many items of a task have a right answer that occurs in a corpus."""
    return {
        "kind": "coverage",
        "task": task,
        "corpus": corpus,
        "items": len(rights),
        "standing": int(answers_in(documents, rights).sum()),
    }


def masked_answers(
    rows: Rows,
    masker: Masker,
    tokenizer: Any,
    rights: Iterable[str],
    *,
    step: int = 0,
    total_steps: int | None = None,
) -> Masked:
    """How often a masker masks the answers in rows, in one epoch of ``ROWS`` rows.

    Args:
        rights: right answers; those of more than 16 tokens are left out.
        step, total_steps: for the schedule of the ratio.
    """
    by_length = _by_length(tokenizer, rights)
    numbers = np.unique(np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(np.int64))
    total = np.zeros(3, dtype=np.int64)
    for first in range(0, len(numbers), _ROWS_AT_ONCE):
        some = rows.batch(numbers[first : first + _ROWS_AT_ONCE])
        batch = masker(some, step=step, total_steps=total_steps, epoch=0)
        ids = batch.source.input_ids
        words = batch.source.layers.get("word_ids")
        edge_T = np.ones(len(ids) + 1, dtype=bool)  # where a word begins, or the row ends
        if words is not None:
            edge_T[1:-1] = (words[1:] != words[:-1]) | (words[1:] < 0)
        masked_T = np.concatenate(([0], np.cumsum(batch.selected.numpy().ravel())))
        for length, hashes in _in_a_row(ids, by_length):
            at = np.flatnonzero(np.isin(hashes, by_length[length]))
            at = at[edge_T[at] & edge_T[at + length]]
            masked = masked_T[at + length] - masked_T[at]
            total += (len(at), (masked == length).sum(), (masked > 0).sum())
    return Masked(*total.tolist())


def _by_length(tokenizer: Any, rights: Iterable[str]) -> dict[int, list[np.uint64]]:
    """Hashes of answers by their number of tokens, as written at the start of a text and inside."""
    by_length: dict[int, list[np.uint64]] = {}
    for right in dict.fromkeys(rights):
        texts = [right, f" {right}"]
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            if len(ids) <= _MOST_TOKENS:
                for length, hashes in _in_a_row(np.array(ids), [len(ids)]):
                    by_length.setdefault(length, []).extend(hashes)
    return by_length
