"""Pairs of title and text: the task of ``adapt`` for users who have none.

The task is to find the text that belongs to a title. Only documents that are held out from training
give pairs, so a larger share of a small corpus is held out for them. The corpus is read twice: for
the pairs, and for texts that occur in the training text as well.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskwise.base.errors import MaskwiseError, option, shell_words
from maskwise.evaluation.measures.overlap import BATCH_CHARACTERS, LEAST, Finder
from maskwise.recipe.yamls import Plain
from maskwise.studies.adapt.request import PAIRS
from maskwise.studies.inputs import file_of_rows
from maskwise.text.rows import held_out_below, is_dev
from maskwise.text.settings import CorpusSettings
from maskwise.text.source import shards_of
from maskwise.text.tokenizers import LETTERS, usual_tokenizer

MOST_PAIRS, LEAST_PAIRS = 500, 20
"""Maximum and minimum number of pairs of title and text in a retrieval task."""

PAIRS_SHARE, MOST_SHARE = 0.2, 0.45
"""Pairs of title and text are held out from training. At most ``PAIRS_SHARE`` of the documents are
held out for ``MOST_PAIRS`` pairs, and at most ``MOST_SHARE`` for ``LEAST_PAIRS`` pairs."""

_SENTENCE = re.compile(r"(?<=[.!?…。])\s+")


def write_pairs(
    corpus: CorpusSettings,
    folder: Path,
    *,
    name: str = PAIRS,
    choose_share: bool = True,
    of_verdict: bool = False,
) -> tuple[Path, CorpusSettings]:
    """Write a retrieval task: find the text that belongs to a title.

    The title is the field ``title`` of a document. In a document without a title, the first
    sentence is the title, and the rest is the text. Only documents that are held out from training
    give pairs, and pairs that nevertheless occur in the training text are dropped, as far as the
    overlap check sees them.

    Args:
        corpus: the text that the arms are trained on.
        folder: the folder of the file, whose name has a hash of the pairs.
        name: the beginning of the name.
        choose_share: whether to hold out as many documents as the task needs: enough for
            ``MOST_PAIRS`` pairs, but at most ``PAIRS_SHARE`` of the documents, unless fewer than
            ``LEAST_PAIRS`` pairs would be left. Otherwise ``corpus.held_out`` is kept.
        of_verdict: whether to leave out documents that choose the best state of a training.

    Returns:
        The path of the file with the pairs, and the corpus with the share to hold out.

    Raises:
        MaskwiseError: too few texts have a title or a second sentence.
    """
    below = MOST_SHARE if choose_share else corpus.held_out
    pairs = _first_pairs(corpus, below=below, of_verdict=of_verdict)
    shares = [corpus.held_out]
    if choose_share:
        shares = [max(corpus.held_out, _share_for(pairs))]
        while shares[-1] < MOST_SHARE:
            shares.append(round(min(MOST_SHARE, shares[-1] + 0.05), 3))
    fewest = _shares_needed(corpus, pairs, shares)
    for number, share in enumerate(shares):
        end = held_out_below(share)
        lines = [
            pair.record for pair, few in zip(pairs, fewest) if pair.place < end and few <= number
        ]
        if len(lines) >= LEAST_PAIRS:
            break
    corpus = corpus.model_copy(update={"held_out": share})
    if len(lines) < LEAST_PAIRS:
        do = f"give {option('task', 'FILE', python='tasks')}"
        if not choose_share:
            do += f", or hold out more than {corpus.held_out:g} of the documents (corpus.held_out)"
        if usual_tokenizer(str(corpus.source)) == LETTERS:
            new = shell_words(("maskwise", "new", corpus.source))
            do += f"; or, for new models of sequences without a task: {new}"
            do += "; for a model that exists: docs/proteins.md"
        raise MaskwiseError(
            "there is no task to evaluate on, and too few texts have a title or a second sentence "
            "to make a task from texts that are held out from training",
            got=f"{len(lines)} texts that do not occur in the training text",
            allowed=f"≥ {LEAST_PAIRS}",
            do=do,
        )
    return file_of_rows(lines, folder, name=name), corpus


class _Pair(NamedTuple):
    """A pair, its number in the corpus, and the hash that decides whether it is held out."""

    place: int
    number: int
    record: Plain


def _first_pairs(corpus: CorpusSettings, *, below: float, of_verdict: bool = False) -> list[_Pair]:
    """Return the pairs that are held out first if the share grows, in the order of the corpus.

    Args:
        below: the largest share of the documents that may be held out.
        of_verdict: see ``write_pairs``.
    """
    end = held_out_below(below)
    enough = held_out_below(corpus.held_out)
    # A heap of the ``MOST_PAIRS`` pairs with the lowest hashes. Python's heaps begin with the
    # lowest item, so hashes are negative.
    heap: list[tuple[int, int, Plain]] = []
    for number, (place, record) in enumerate(_pairs(corpus)):
        if place >= end or (of_verdict and is_dev(place)):
            continue
        # Every number is unique, so records are never compared.
        heappush(heap, (-place, number, record))
        if len(heap) > MOST_PAIRS:
            heappop(heap)
        # Of a large corpus, only the beginning is read.
        if len(heap) == MOST_PAIRS and -heap[0][0] < enough:
            break
    pairs = [_Pair(-place, number, record) for place, number, record in heap]
    return sorted(pairs, key=lambda pair: pair.number)


def _share_for(pairs: Sequence[_Pair]) -> float:
    """Return the share of the documents to hold out for ``MOST_PAIRS`` pairs."""
    if len(pairs) < MOST_PAIRS:
        return PAIRS_SHARE
    last = max(pair.place for pair in pairs)
    return min(PAIRS_SHARE, math.ceil(1000 * (last + 1) / 2**63) / 1000)


def _shares_needed(
    corpus: CorpusSettings, pairs: Sequence[_Pair], shares: Sequence[float]
) -> NDArray[np.int64]:
    """Return for each pair the first of some shares with which the training text lacks its texts.

    The corpus is read once, for all shares.

    Args:
        shares: shares of held-out documents, in ascending order.

    Returns:
        Indices of ``shares``; ``len(shares)`` for pairs that are trained on with every share.
    """
    finder = Finder([(pair.record["query"], pair.record["passage"]) for pair in pairs], least=LEAST)
    ends = list(map(held_out_below, shares))
    needed = np.zeros(len(pairs), dtype=np.int64)
    if not pairs:
        return needed
    # Texts by the number of shares with which they are trained on.
    texts: dict[int, list[str]] = {number: [] for number in range(1, len(shares) + 1)}
    characters = dict.fromkeys(texts, 0)
    for document in corpus.documents():
        number = bisect_right(ends, document.place)
        if number:
            texts[number].append(document.text)
            characters[number] += len(document.text)
            if characters[number] >= BATCH_CHARACTERS:
                needed[finder.found_in(texts[number]) & (needed < number)] = number
                texts[number], characters[number] = [], 0
    for number, last in texts.items():
        needed[finder.found_in(last) & (needed < number)] = number
    return needed


def _pairs(corpus: CorpusSettings) -> Iterator[tuple[int, Plain]]:
    """Yield for each pair the hash that decides whether its document is held out, and the pair."""
    for part in corpus.parts():
        # The same records, of which each is called by its title, if it has one.
        fields = part.fields._replace(id="title")
        shards = shards_of(part.name, fields, stream=corpus.stream)
        for document, titled in zip(part, replace(part, shards=shards, fields=fields), strict=True):
            title = titled.name if titled.name != document.name else ""
            text = document.text
            if not title or title == text:
                title, _, text = _SENTENCE.sub("\0", text.strip(), count=1).partition("\0")
            if len(title) > 5 and len(text) > 50:
                yield document.place, {"query": title[:300], "passage": text[:1500]}
