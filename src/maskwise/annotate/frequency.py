"""How often each word stands in the corpus, as a layer of weights: for the policy ``frequency``, which takes a
power of it, or for any weighted one.

Cost: 9 million words counted in 10 s; 250 MB.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from maskwise.annotate.counts import Flags, Vocabulary, Words, blocks
from maskwise.annotate.word_weights import WordWeights


class Frequency(WordWeights):
    """The layer ``frequency``: the count of every word, in lower case, punctuation too. Unseen words have 0.

    Args:
        table: the folder that an earlier fit has filled. Without it the annotator is to be fitted.
    """

    name = "frequency"

    def __init__(self, *, table: str | None = None):
        super().__init__(table)

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Count all words: words.parquet with word and weight (the count), by falling count."""
        seen = Vocabulary()
        for words in blocks(texts):
            seen.add(words, np.ones(len(words.key), dtype=bool))
        order = np.argsort(-seen.table.counts, kind="stable")
        keys, counts = seen.table.keys[order], seen.table.counts[order]
        facts = {
            "words": seen.table.total,
            "distinct": len(keys),
            "counts_too_low_by_at_most": seen.table.lost,
        }
        return self._save(folder, {"word": seen.names(keys), "weight": counts.astype(np.float64)}, facts)

    def kept(self, words: Words) -> Flags:
        return np.ones(len(words.key), dtype=bool)
