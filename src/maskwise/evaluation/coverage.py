"""When a second pre-training can help: do a task's right answers stand in the corpus, and does the policy mask them?

Answers are looked for in documents word by word, whatever the case (see ``overlap``), and in rows token by token, for
the masks are on tokens. Short answers ("one") stand anywhere: a high share of them says little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from maskwise.evaluation.overlap import N, standing_in
from maskwise.masking import Masker
from maskwise.text import Document, Rows

ROWS = 1024
"""Rows of which masks are drawn."""
_AT_ONCE = 64
_LONGEST = 16  # tokens
_BASE = np.uint64(0x9E3779B97F4A7C15)


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


def answers_in(documents: Iterable[str | Document], rights: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """(N,) for which items one of the right answers stands in a document. Of an answer of more than 13 words, so many
    in a row are enough.

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
    """The record of one corpus and one task: how many items have a right answer that stands in the corpus."""
    standing = int(answers_in(documents, rights).sum())
    return {"kind": "coverage", "task": task, "corpus": corpus, "items": len(rights), "standing": standing}


def masked_answers(
    rows: Rows,
    masker: Masker,
    tokenizer: Any,
    rights: Iterable[str],
    *,
    step: int = 0,
    total_steps: int | None = None,
) -> Masked:
    """How often a masker masks the answers that stand in rows, in one epoch of ``ROWS`` rows spread over all.

    Args:
        rights: right answers; those of more than 16 tokens are left out.
        step, total_steps: where the schedule of the ratio stands.
    """
    by_length = _by_length(tokenizer, rights)
    numbers = np.unique(np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(np.int64))
    total = np.zeros(3, dtype=np.int64)
    for first in range(0, len(numbers), _AT_ONCE):
        batch = masker(rows.batch(numbers[first : first + _AT_ONCE]), step=step, total_steps=total_steps, epoch=0)
        ids, words = batch.source.input_ids, batch.source.layers.get("word_ids")
        starts_T = np.ones(len(ids) + 1, dtype=bool)  # where a word begins, or the line ends
        if words is not None:
            starts_T[1:-1] = (words[1:] != words[:-1]) | (words[1:] < 0)
        masked_T = np.concatenate(([0], np.cumsum(batch.selected.numpy().ravel())))
        for length, wanted in by_length.items():
            at = np.flatnonzero(np.isin(_hashes(ids, length), wanted))
            at = at[starts_T[at] & starts_T[at + length]]
            masked = masked_T[at + length] - masked_T[at]
            total += (len(at), (masked == length).sum(), (masked > 0).sum())
    return Masked(*total.tolist())


def _by_length(tokenizer: Any, rights: Iterable[str]) -> dict[int, NDArray[np.uint64]]:
    """Hashes of answers by their number of tokens, as they are written at the beginning and inside of a text."""
    texts = [text for right in dict.fromkeys(rights) for text in (right, f" {right}")]
    by_length: dict[int, set[int]] = {}
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []:
        if 0 < len(ids) <= _LONGEST:
            by_length.setdefault(len(ids), set()).add(int(_hashes(np.array(ids), len(ids))[0]))
    return {length: np.array(sorted(hashes), dtype=np.uint64) for length, hashes in by_length.items()}


def _hashes(ids: NDArray[np.int64], length: int) -> NDArray[np.uint64]:
    """(T − length + 1,) a hash of every ``length`` tokens in a row."""
    count = max(0, len(ids) - length + 1)
    total = np.zeros(count, dtype=np.uint64)
    for place in range(length):
        total = total * _BASE + ids[place : place + count].astype(np.uint64) + np.uint64(1)
    return total
