"""Do the items of a test set, or their right answers, stand in a corpus? And does a policy mask the
answers?

Texts are compared as words: lower case, letters and digits only, so that case, punctuation and line
breaks do not hide a copy. An item overlaps if any n of its words in a row (13, as for GPT-3; Brown
et al. 2020, appendix C) stand in one document; a shorter item if all of it does. Items of fewer
than ``LEAST`` words ("set an alarm") would be found anywhere and mean nothing: they are counted
apart.

Answers are looked for in documents in the same way, but of any length: short ones ("one") stand
anywhere, and a high share of them says little. In rows they are looked for token by token, because
the masks are on tokens.

Cost: 64-bit hashes of n-grams by numpy, about 1 s per million words; memory is that of the items'
hashes and of one batch of documents. (A false hit has a chance of about one in 10⁷ for a billion
words and a thousand items.) Words that a test set has cut ("do n't") are not joined, so its copies
may be missed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
LEAST = 4
"""Words of the shortest item that is looked for."""
EXAMPLES = 5
_WORD = re.compile(r"[^\W_]+")
_BATCH_CHARACTERS = 1 << 20
ROWS = 1024
"""Rows of which masks are drawn."""
_ROWS_AT_ONCE = 64
_MOST_TOKENS = 16
"""Longer answers are not looked for in rows."""
_BASE = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


class HasTexts(Protocol):
    """A task, or a test set: a name, and the texts of every item."""

    @property
    def name(self) -> str: ...
    def texts(self) -> list[tuple[str, ...]]: ...


class OverlapRecord(TypedDict):
    """What a study keeps of ``Overlap``, with a few of the overlapping items."""

    kind: Literal["overlap"]
    task: str
    corpus: str
    items: int
    overlapping: int
    short: int
    documents: int
    n: int
    examples: list[str]


@dataclass(frozen=True)
class Overlap:
    """How much of a test set stands in a corpus.

    Attributes:
        items: how many were given. short: how many of them have too few words to be looked for.
        overlapping: how many stand in the corpus.
        documents: how many were read.
        n: words in a row.
        places: which items overlap.
    """

    items: int
    short: int
    overlapping: int
    documents: int
    n: int
    places: tuple[int, ...]


def overlap(
    documents: Iterable[str | Document], items: Sequence[str | Sequence[str]], *, n: int = N
) -> Overlap:
    """Which items share n words in a row with a document.

    Args:
        documents: texts, or anything with ``text``; read once, one batch in memory.
        items: texts, or several texts each (a question and its context): found if one of them is.
        n: words in a row; shorter texts are looked for whole.

    Raises:
        MaskwiseError: n below ``LEAST``, or no items.
    """
    if n < LEAST:
        raise MaskwiseError(
            "n-grams for an overlap check are too short", got=n, allowed=f"≥ {LEAST}"
        )
    if not len(items):
        raise MaskwiseError("there are no test items to look for")
    parts = [[item] if isinstance(item, str) else list(item) for item in items]
    hits, count, longest = standing_in(documents, parts, n=n, least=LEAST)
    places = tuple(np.flatnonzero(hits).tolist())
    return Overlap(len(parts), int((longest < LEAST).sum()), len(places), count, n, places)


def standing_in(
    documents: Iterable[str | Document], parts: Sequence[Sequence[str]], *, n: int, least: int
) -> tuple[NDArray[np.bool_], int, NDArray[np.int64]]:
    """Which items have a text of at least ``least`` words of which n in a row, or all, stand in a
    document; how many documents there are; the words of every item's longest text."""
    owner_T = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    words, size_T = _words(chain.from_iterable(parts))
    needed_T = np.minimum(size_T, n)
    wanted: dict[int, _Wanted] = {}
    for length, grams, text in _grams(
        words, size_T, sorted(set(needed_T[needed_T >= least].tolist()))
    ):
        of_length = needed_T[text] == length
        wanted[length] = _Wanted(grams[of_length], owner_T[text[of_length]])
    overlapping, count = np.zeros(len(parts), dtype=bool), 0
    texts = (document if isinstance(document, str) else document.text for document in documents)
    for batch in batches(texts, _BATCH_CHARACTERS):
        count += len(batch)
        for length, grams, _ in _grams(*_words(batch), list(wanted)):
            overlapping[wanted[length].owners_of(grams)] = True
    longest = np.zeros(len(parts), dtype=np.int64)
    np.maximum.at(longest, owner_T, size_T)
    return overlapping, count, longest


def overlap_record(
    documents: Iterable[str | Document], task: HasTexts, *, corpus: str, n: int = N
) -> OverlapRecord:
    """The record of one corpus and one task.

    Args:
        documents: the corpus, such as ``text.read_documents(source)``.
        task: a ``tasks.Task`` (its test split is looked for), or a set of ``load_sets``.
        corpus: what the record calls the corpus.

    >>> from types import SimpleNamespace
    >>> task = SimpleNamespace(name="mine", texts=lambda: [("the cat sat on the mat",), ("set an alarm",)])
    >>> record = overlap_record(["Yesterday the cat sat on the mat."], task, corpus="notes")
    >>> record["items"], record["overlapping"], record["short"], record["examples"]
    (2, 1, 1, ['the cat sat on the mat'])
    """
    items = task.texts()
    result = overlap(documents, items, n=n)
    shown = [items[place] for place in result.places[:EXAMPLES]]
    return {
        "kind": "overlap",
        "task": task.name,
        "corpus": corpus,
        "items": result.items,
        "overlapping": result.overlapping,
        "short": result.short,
        "documents": result.documents,
        "n": n,
        "examples": [" / ".join(texts) for texts in shown],
    }


def _words(texts: Iterable[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of the words of all texts, one text after the other (W,), and how many each has (T,)."""
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
    """For each of ``lengths``, rising: it, hashes of so many words in a row within one text, and
    which text.
    """
    text = np.repeat(np.arange(len(sizes)), sizes)
    for length, grams in _in_a_row(words, lengths):
        whole = text[: len(grams)] == text[length - 1 :]
        yield length, grams[whole], text[: len(grams)][whole]


def _in_a_row(values: NDArray[Any], lengths: Collection[int]) -> Iterator[tuple[int, Hashes]]:
    """For each of ``lengths``, rising: it, and hashes (T − length + 1,) of so many values in a row;
    none of longer ones than there are values."""
    terms = mixed(values.astype(np.uint64))
    total = np.zeros_like(terms)
    longest = max(lengths, default=0)
    # a polynomial modulo 2⁶⁴ that grows by a value
    for length in range(1, min(longest, len(terms)) + 1):
        total = total[: len(terms) - length + 1] * _BASE + terms[length - 1 :]
        if length in lengths:
            yield length, total


class _Wanted:
    """The n-grams of items: a table of bits turns nearly all others away, before anything is
    compared.
    """

    def __init__(self, grams: Hashes, owner: NDArray[np.int64]):
        self.grams, self.owner = grams, owner
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
    """How often answers stand in rows, and how often all, or some, of their tokens were masked."""

    occurrences: int
    whole: int
    part: int


def answers_in(
    documents: Iterable[str | Document], rights: Sequence[Sequence[str]]
) -> NDArray[np.bool_]:
    """(N,) for which items one of the right answers stands in a document. Of an answer of more than
    13 words, so many in a row are enough.

    >>> answers_in(["She was a baker in York."], [["the baker", "Baker"], ["bake"]]).tolist()
    [True, False]

    Args:
        documents: texts, or anything with ``text``; read once, one batch in memory.
        rights: the right answers of every item.
    """
    return standing_in(documents, rights, n=N, least=1)[0]


def coverage_record(
    documents: Iterable[str | Document], rights: Sequence[Sequence[str]], *, task: str, corpus: str
) -> CoverageRecord:
    """The record of one corpus and one task: how many items have a right answer that stands in the
    corpus.
    """
    standing = int(answers_in(documents, rights).sum())
    return {
        "kind": "coverage",
        "task": task,
        "corpus": corpus,
        "items": len(rights),
        "standing": standing,
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
    """How often a masker masks the answers that stand in rows, in one epoch of ``ROWS`` rows spread
    over all.

    Args:
        rights: right answers; those of more than 16 tokens are left out.
        step, total_steps: where the schedule of the ratio stands.
    """
    by_length = _by_length(tokenizer, rights)
    numbers = np.unique(np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(np.int64))
    total = np.zeros(3, dtype=np.int64)
    for first in range(0, len(numbers), _ROWS_AT_ONCE):
        some = rows.batch(numbers[first : first + _ROWS_AT_ONCE])
        batch = masker(some, step=step, total_steps=total_steps, epoch=0)
        ids = batch.source.input_ids
        words = batch.source.layers.get("word_ids")
        starts_T = np.ones(len(ids) + 1, dtype=bool)  # where a word begins, or the line ends
        if words is not None:
            starts_T[1:-1] = (words[1:] != words[:-1]) | (words[1:] < 0)
        masked_T = np.concatenate(([0], np.cumsum(batch.selected.numpy().ravel())))
        for length, hashes in _in_a_row(ids, by_length):
            at = np.flatnonzero(np.isin(hashes, by_length[length]))
            at = at[starts_T[at] & starts_T[at + length]]
            masked = masked_T[at + length] - masked_T[at]
            total += (len(at), (masked == length).sum(), (masked > 0).sum())
    return Masked(*total.tolist())


def _by_length(tokenizer: Any, rights: Iterable[str]) -> dict[int, Hashes]:
    """Hashes of answers by their number of tokens, as they are written at the beginning and inside
    of a text.
    """
    texts = []
    for right in dict.fromkeys(rights):
        texts += [right, f" {right}"]
    by_length: dict[int, list[Hashes]] = {}
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []:
        if len(ids) <= _MOST_TOKENS:
            for length, hashes in _in_a_row(np.array(ids), [len(ids)]):
                by_length.setdefault(length, []).append(hashes)
    return {length: np.concatenate(hashes) for length, hashes in by_length.items()}
