"""Near copies across the split: held-out documents that a training document almost equals.

A model may know such a document by heart, so the held-out loss is too low. Exact copies are left
out when a corpus is read (documents.py).

Two texts are near copies if the Jaccard similarity of their sets of `SHINGLE` consecutive words is
at least `SIMILAR`, as in Lee et al. 2022, "Deduplicating Training Data Makes Language Models
Better". A near copy of a document thus has at least `SIMILAR` of its shingles, and therefore one of
any 20 % of them. Only documents with one of the rarest 20 % are compared, and no pair is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from maskwise.annotate.counts import hashes_of, lower_case
from maskwise.evaluation.measures.word_runs import HashFilter, runs_or_whole
from maskwise.text.documents import Document, batches, first_characters
from maskwise.text.words import codes_of

SHINGLE = 5
SIMILAR = 0.8
SAMPLE_CHARACTERS = 1 << 24
BATCH_CHARACTERS = 1 << 18
EXAMPLES = 2
LONGEST_WORD = 20
"""If words have more characters on average, the text has no words, as proteins do, and its
shingles consist of characters."""

Shingles = NDArray[np.uint64]


@dataclass(frozen=True)
class Copies:
    """Counts of near copies in the beginning of a corpus.

    Attributes:
        held_out: the number of held-out documents.
        training: the number of training documents.
        near: the number of held-out documents with a near copy among the training documents.
        whole: whether these are all documents of the corpus.
        examples: the names of some held-out documents and their near copies.
    """

    held_out: int
    training: int
    near: int
    whole: bool
    examples: list[tuple[str, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of held-out documents with a near copy."""
        return self.near / max(1, self.held_out)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def near_copies(documents: Iterable[Document], holds_out: Callable[[Document], bool]) -> Copies:
    """Count the held-out documents that have a near copy in training.

    Args:
        documents: the documents of a corpus, of which the first `SAMPLE_CHARACTERS` are read.
        holds_out: says whether a document is held out.

    >>> texts = ["one two three four five six seven", "One two three four five six, seven."]
    >>> documents = [Document("a", texts[0] * 9), Document("b", texts[0] * 9 + " eight")]
    >>> near_copies(documents, lambda document: document.name == "b").examples
    [('b', 'a')]
    """
    reading = iter(documents)
    sample = [*first_characters(reading, SAMPLE_CHARACTERS)]
    whole = next(reading, None) is None
    sides: dict[bool, list[tuple[str, Shingles]]] = {True: [], False: []}
    for document, shingles in zip(sample, shingles_of(document.text for document in sample)):
        sides[holds_out(document)].append((document.name, shingles))
    found = [*_found(sides[True], sides[False])]
    return Copies(len(sides[True]), len(sides[False]), len(found), whole, found[:EXAMPLES])


def _found(
    held_out: list[tuple[str, Shingles]], training: list[tuple[str, Shingles]]
) -> Iterator[tuple[str, str]]:
    """Yield the name of each held-out document with a near copy, and that of the first copy."""
    if not held_out or not training:
        return
    all_shingles = np.concatenate([shingles for _, shingles in training])
    owner = np.repeat(np.arange(len(training)), [len(shingles) for _, shingles in training])
    # Of the shingles in training, nearly all occur in no held-out document.
    wanted = HashFilter(np.concatenate([shingles for _, shingles in held_out]))
    likely = wanted.likely(all_shingles)
    all_shingles, owner = all_shingles[likely], owner[likely]
    order = np.argsort(all_shingles)
    all_shingles, owner = all_shingles[order], owner[order]
    for name, shingles in held_out:
        own = np.unique(shingles)
        begin = all_shingles.searchsorted(own)
        end = all_shingles.searchsorted(own, side="right")
        # A near copy has a share SIMILAR of the shingles, so it has at least one of any set that is
        # larger than the rest. The set of the rarest ones has the fewest documents to compare.
        rarest = np.argsort(end - begin)[: len(own) - int(SIMILAR * len(own)) + 1]
        holders = [owner[i:j] for i, j in zip(begin[rarest], end[rarest])]
        for place in np.unique(np.concatenate(holders)):
            other, others = training[place]
            if similarity(own, np.unique(others)) >= SIMILAR:
                yield name, other
                break


def shingles_of(texts: Iterable[str]) -> Iterator[Shingles]:
    """Yield the hashes of all runs of `SHINGLE` words of each text, in text order.

    A shorter text is one run. The case of letters, punctuation and white space make no difference.
    """
    for batch in batches(texts, BATCH_CHARACTERS):
        words = hashes_of(batch)
        of_texts = np.split(words.key, words.sizes.cumsum()[:-1])
        for number, text in enumerate(batch):
            if len(text) > LONGEST_WORD * len(of_texts[number]):
                of_texts[number] = codes_of(lower_case(text)).astype(np.uint64)
        sizes = np.array(list(map(len, of_texts)))
        hashes, lengths = runs_or_whole(np.concatenate(of_texts), sizes, SHINGLE)
        ends = sizes.cumsum()
        for begin, end in zip(ends - sizes, ends):
            yield hashes[begin:end][lengths[begin:end] > 0]


def similarity(some: Shingles, others: Shingles) -> float:
    """Return the Jaccard similarity of two sets, given as arrays without repetitions."""
    common = len(np.intersect1d(some, others, assume_unique=True))
    return common / max(1, len(some) + len(others) - common)
