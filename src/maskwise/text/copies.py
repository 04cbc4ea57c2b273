"""Near copies across the split: held-out documents that a training document almost equals.

A model may know such a document by heart, so the held-out loss is too low. Exact copies are left
out when a corpus is read (documents.py).

Two texts are near copies if the Jaccard similarity of their sets of `SHINGLE` consecutive words is
at least `SIMILAR`, as in Lee et al. 2022, "Deduplicating Training Data Makes Language Models
Better". MinHash finds candidates, and their similarity is then computed exactly. Sketches are made
from about 2 MB of text per second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from maskwise.errors import require_library
from maskwise.text.documents import Document
from maskwise.text.words import classify, codes_of, words_in

SHINGLE = 5
SIMILAR = 0.8
SKETCH = 128
"""The number of hash functions of MinHash."""
CANDIDATES = 0.6
"""Pairs of about this similarity are still candidates, so that few pairs above ``SIMILAR`` are
missed."""
SAMPLE_CHARACTERS = 1 << 24
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

    Raises:
        MaskwiseError: the library datasketch is not installed.

    >>> texts = ["one two three four five six seven", "One two three four five six, seven."]
    >>> documents = [Document("a", texts[0] * 9), Document("b", texts[0] * 9 + " eight")]
    >>> near_copies(documents, lambda document: document.id == "b").examples
    [('b', 'a')]
    """
    require_library("datasketch", use="the search for near copies")
    from datasketch import MinHash, MinHashLSH

    empty = MinHash(num_perm=SKETCH, hashfunc=_low_bits)

    def sketch(shingles: Shingles) -> MinHash:
        made = empty.copy()
        made.update_batch(shingles.tolist())
        return made

    sides: dict[bool, list[tuple[str, Shingles]]] = {True: [], False: []}
    characters = 0
    whole = True
    for document in documents:
        if characters >= SAMPLE_CHARACTERS:
            whole = False
            break
        characters += len(document.text)
        sides[holds_out(document)].append((document.id, shingles_of(document.text)))
    index = MinHashLSH(threshold=CANDIDATES, num_perm=SKETCH)
    for number, (_, shingles) in enumerate(sides[True]):
        index.insert(number, sketch(shingles))
    found: dict[int, str] = {}
    for name, shingles in sides[False]:
        for number in index.query(sketch(shingles)):
            if number not in found and similarity(shingles, sides[True][number][1]) >= SIMILAR:
                found[number] = name
    examples = [(sides[True][number][0], found[number]) for number in sorted(found)[:EXAMPLES]]
    return Copies(len(sides[True]), len(sides[False]), len(found), whole, examples)


def _low_bits(shingle: int) -> int:
    """MinHash has its own hash functions of 32 bits."""
    return shingle & 0xFFFFFFFF


def shingles_of(text: str) -> Shingles:
    """Return the hashes of all runs of `SHINGLE` words, sorted and without repetitions.

    A shorter text is one run. The case of letters and white space make no difference.
    """
    text = text.lower()
    start, end = words_in(classify(text))
    if len(text) > LONGEST_WORD * len(start):
        units = codes_of(text).astype(np.uint64)
    else:
        words = [text[i:j].encode("utf-8", "surrogatepass") for i, j in zip(start, end)]
        units = np.array([*map(crc32, words)], np.uint64)
    size = min(SHINGLE, len(units))
    total = np.zeros(len(units) - size + 1, np.uint64)
    for shift in range(size):
        # Products are taken modulo 2⁶⁴.
        total = total * np.uint64(0x9E3779B97F4A7C15) + units[shift : shift + len(total)]
    return np.unique(total ^ (total >> np.uint64(32)))


def similarity(some: Shingles, others: Shingles) -> float:
    """Return the Jaccard similarity of two sets."""
    common = len(np.intersect1d(some, others, assume_unique=True))
    return common / max(1, len(some) + len(others) - common)
