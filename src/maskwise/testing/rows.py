"""Invented rows, on which the checks mask: no annotator is needed.

Among them are rows that break careless code: without text, of one token, with special tokens in the
middle. Their layers are computed from the numbers of their words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from maskwise.masking.draws import Array
from maskwise.masking.vocabulary import Vocabulary

LayersOfWords: TypeAlias = Mapping[str, Callable[[Array], Array]]
"""For each layer, a function from the numbers of words, (T,), to the values of their tokens."""

LAYERS: dict[str, Callable[[Array], Array]] = {
    "salient": lambda word: np.where(word % 5 == 1, word // 5, -1),
    "phrase": lambda word: np.where(word % 7 > 3, word // 7, -1),
    "sentence": lambda word: word // 6,
    "pos": lambda word: np.where(word % 6 != 2, word % 17, -1),
    "weight": lambda word: (word * 7 % 4) / 2,
    "informativeness": lambda word: (word * 5 % 7) / 3,
    "difference": lambda word: (word * 3 % 5) ** 2 / 2,
    "frequency": lambda word: 1.0 + word * 13 % 50,
}
"""The layers of maskwise's own annotators, as invented rows have them."""


def any_layer(word: Array) -> Array:
    """Return whole numbers ≥ 0, which can be read as marks of spans, as groups or as scores."""
    return word // 2 % 5


@lru_cache(maxsize=1)
def small_vocabulary() -> Vocabulary:
    """Return sixty ordinary tokens after five special ones, with T5's sentinels at the end."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ordinary = [f"w{number}" for number in range(60)]
    sentinels = [f"<extra_id_{number}>" for number in range(120)]
    names = [*special, *ordinary, *sentinels]
    ids = np.arange(len(names))
    eligible = (ids >= 5) & (ids < 65)
    return Vocabulary(
        len(names),
        mask=4,
        pad=0,
        content=eligible | (ids == 1),
        eligible=eligible,
        sentinels=tuple(range(65, len(names))),
        by_name={name: number for number, name in enumerate(names)},
    )


@dataclass(frozen=True)
class RowMaker:
    """Makes rows of random tokens.

    Attributes:
        vocabulary: the vocabulary of the tokens.
        layers: the layers of the rows, beside ``word_ids``.
    """

    vocabulary: Vocabulary
    layers: LayersOfWords

    def row(
        self,
        words: Sequence[int],
        *,
        example_id: int = 0,
        unknown: Sequence[int] = (),
        framed: bool = True,
    ) -> dict[str, Any]:
        """Make a row of words.

        Args:
            words: the number of tokens of each word; 0 makes a special token, such as [SEP].
            example_id: the id of the row, from which its tokens are drawn, too.
            unknown: places among the tokens of the text that are [UNK].
            framed: whether a special token is before the text, and one after it.
        """
        known = self.vocabulary
        content_only = np.flatnonzero(known.content & ~known.eligible)
        first, last = self._frame()
        rng = np.random.default_rng([abs(example_id), *words])
        ids: list[int] = []
        word_ids: list[int] = []
        for number, tokens in enumerate(words):
            if tokens:
                drawn = rng.integers(0, len(known.ordinary), tokens)
                ids += known.ordinary[drawn].tolist()
                word_ids += [number] * tokens
            elif last is not None:
                ids.append(last)
                word_ids.append(-1)
        for place in unknown:
            if place < len(ids) and word_ids[place] >= 0 and len(content_only):
                ids[place] = int(content_only[0])
        if framed and first is not None and last is not None:
            ids = [first, *ids, last]
            word_ids = [-1, *word_ids, -1]
        word = np.array(word_ids, np.int64)
        made: dict[str, Any] = {"input_ids": ids, "example_id": example_id, "word_ids": word_ids}
        for name, values_of in self.layers.items():
            values = values_of(word)
            outside = 0.0 if values.dtype.kind == "f" else -1
            made[name] = np.where(word >= 0, values, outside).tolist()
        return made

    def _frame(self) -> tuple[int | None, int | None]:
        """Return a special token to begin a text with, and one to end it; None if there is none."""
        known = self.vocabulary
        used = {known.pad, known.mask, *known.sentinels}
        special = [token for token in np.flatnonzero(~known.content).tolist() if token not in used]
        if not special:
            return None, None
        return special[0], special[min(1, len(special) - 1)]

    def random(
        self, count: int, *, seed: int = 0, words: int = 12, most: int = 4
    ) -> list[dict[str, Any]]:
        """Make rows of ``words`` words of one to ``most`` tokens."""
        rng = np.random.default_rng(seed)
        return [
            self.row(rng.integers(1, most + 1, words).tolist(), example_id=1000 * seed + number)
            for number in range(count)
        ]

    def awkward(self) -> dict[str, dict[str, Any]]:
        """Make rows that break careless code, by what is odd about them."""
        row = self.row
        return {
            "an ordinary row": row([1, 3, 2, 1, 1, 4, 1, 2], example_id=1),
            "no content": row([], example_id=2),
            "nothing at all": row([], example_id=3, framed=False),
            "one token": row([1], example_id=4),
            "one token, no frame": row([1], example_id=5, framed=False),
            "one long word": row([12], example_id=6),
            "only unknown": row([1, 1], unknown=[0, 1], example_id=7),
            "unknown inside a word": row([3, 3, 1], unknown=[1], example_id=8),
            "many unknown": row([1] * 24, unknown=range(0, 24, 2), example_id=12),
            "specials in the middle": row([2, 1, 0, 3, 1, 0, 0, 1], example_id=9),
            "all special": row([0, 0, 0], example_id=10),
            "short words": row([1] * 15, example_id=11),
            "a high id": row([2, 2, 1, 1], example_id=(1 << 62) + 5),
            "a negative id": row([2, 2, 1, 1], example_id=-7),
        }
