"""The loss of the same tokens in rows of different lengths: does a longer row help?

A model that reads longer rows than before (``positions``) may gain from them, ignore the additional
text, or be harmed by positions that it does not know. The loss at a position of a row does not tell
these apart, because texts differ at their beginnings and later on. So this measure predicts the
same tokens at the end of longer and longer rows: they stand at the last positions of each length,
and only what is before them differs.

``FarWords`` asks whether a model reads far back: its tokens stand once more in the row, in the
first half of the longest one, so that a row of half the length lacks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import torch

from maskwise.base.constants import BY_LENGTH, NATS
from maskwise.base.devices import moved
from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.evaluation.measure import TextMeasure
from maskwise.masking import IGNORE
from maskwise.masking.draws import Array, fold
from maskwise.masking.line import Frame
from maskwise.masking.vocabulary import Vocabulary
from maskwise.models.families import most_tokens
from maskwise.objectives.denoising import predicting
from maskwise.results.measurements import Measurement
from maskwise.text import read_documents, tokenise
from maskwise.text.words import tokens_id

if TYPE_CHECKING:
    from transformers import (
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )

SHORTEST = 32
"""The minimum number of tokens in a row."""
SHARE = 0.15
"""The share of the tokens at the end of a row that are masked."""
SEED = 0x1E46
TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class ByLength(TextMeasure):
    """The loss of the same masked tokens in rows of 32, 64, … tokens, in nats per token.

    Attributes:
        longest: the number of tokens in the longest row; lengths are its halves, quarters, and so
            on. A model that cannot read a length is measured up to the longest that it reads.
        rows: the maximum number of rows of each length.
        documents: the maximum number of documents, of which those with a row of ``longest`` tokens
            are used.
    """

    name = BY_LENGTH
    counted = "rows"
    reads_documents = True
    needed: ClassVar[str] = ""
    least: ClassVar[int] = SHORTEST
    longest: int = 512
    rows: int = 64
    documents: int = 1000

    def __post_init__(self) -> None:
        whole_number(f"longest of {self.name}", self.longest, least=self.least)
        whole_number(f"rows of {self.name}", self.rows, least=1)
        whole_number(f"documents of {self.name}", self.documents, least=1)

    @property
    def lengths(self) -> list[int]:
        """The lengths of the rows, the shortest first.

        >>> ByLength(200).lengths
        [50, 100, 200]
        """
        halved = [self.longest]
        while halved[-1] // 2 >= SHORTEST:
            halved.append(halved[-1] // 2)
        return halved[::-1]

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        folder: Path | None = None,
    ) -> list[Measurement]:
        frame = Frame.of(tokenizer)
        texts = self.text.first(self.documents)
        end = frame.room(self.shortest)
        eligible = Vocabulary.of(tokenizer).eligible
        whole = []
        for part in long_parts(texts, frame.room(self.longest), tokenizer):
            # As elsewhere, no unknown token is predicted.
            masked = self.masked(part, eligible[part[-end:]])
            if len(masked):
                whole.append((part, masked))
        if not whole:
            half = self.longest // 2
            shorter = f", or shorter rows: {self.name}({half})" if half >= self.least else ""
            raise MaskwiseError(
                f"{self.name}: no document has {self.longest:,} tokens{self.needed}",
                got=f"{len(texts):,} documents",
                do=f"measure longer documents{shorter}",
            )
        chosen = [whole[at * len(whole) // self.rows] for at in range(self.rows)]
        if len(whole) <= self.rows:
            chosen = whole
        found = []
        for length in self.lengths:
            if length > most_tokens(model.config):
                break
            losses = end_losses(model, tokenizer, chosen, length=length, end=end)
            found.append(
                Measurement(
                    measure=self.name,
                    metric=f"nats per token at {length}",
                    unit=NATS,
                    value=float(losses.mean()),
                    higher_is_better=False,
                    items=len(losses),
                    item_error=float(losses.std() / len(losses) ** 0.5),
                )
            )
        return found

    def misfit(self, config: PreTrainedConfig) -> MaskwiseError | None:
        room = most_tokens(config)
        if room >= self.lengths[0]:
            return None
        return MaskwiseError(
            f"{self.name}: this model reads no row of the shortest length",
            got=f"{room:,} tokens",
            allowed=f"≥ {self.lengths[0]:,}",
            do=f"measure shorter rows, or lengthen them: model.changes=positions({self.longest})",
        )

    @property
    def shortest(self) -> int:
        """The number of tokens in the row whose text ends every row; some of it is masked."""
        return self.lengths[0]

    def masked(self, part: Array, eligible: Array) -> Array:
        """Return which of the last tokens of a part are masked, counted from the first of these.

        The choice depends on the end alone, which is the same for every length.

        Args:
            part: the tokens.
            eligible: (E,) bool, whether each of its last E tokens may be masked.
        """
        end = len(eligible)
        order = np.argsort([fold(tokens_id(part[-end:]), SEED, at) for at in range(end)])
        return np.sort(order[eligible[order]][: max(1, round(SHARE * end))])


@dataclass(frozen=True)
class FarWords(ByLength):
    """The loss of tokens that stand once more, far back in the row, in nats per token.

    They are masked at the end of rows of ``longest`` tokens, in whose first half, and nowhere else,
    they stand. Rows of half the length end alike and lack the answer.
    """

    name = "far-words"
    needed = ", of which one near the end stands once more in the first half alone"
    least = 2 * SHORTEST

    @property
    def shortest(self) -> int:
        """The number of tokens in the row whose text ends every row; some of it is masked."""
        return SHORTEST

    @property
    def lengths(self) -> list[int]:
        """Half of the length of the row, and its length."""
        return [self.longest // 2, self.longest]

    def masked(self, part: Array, eligible: Array) -> Array:
        """Return which of the last tokens have their only other place in the first half."""
        half = len(part) // 2
        last, far, near = part[-len(eligible) :], part[:half], part[half:]
        at = [
            place
            for place, token in enumerate(last.tolist())
            if eligible[place] and (near == token).sum() == 1 and (far == token).any()
        ]
        return np.array(at, dtype=np.int64)


def long_parts(
    texts: Iterable[str], size: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Array]:
    """Yield parts (``size``,) of the tokens of each text that is long enough."""
    fast = cast("PreTrainedTokenizerFast", tokenizer)
    for batch in tokenise(read_documents([*texts]), fast):
        ids = np.split(batch.columns["input_ids"], np.cumsum(batch.lengths)[:-1])
        for document in ids:
            for first in range(0, len(document) - size + 1, size):
                yield document[first : first + size]


def end_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parts: list[tuple[Array, Array]],
    *,
    length: int,
    end: int,
) -> Array:
    """Return the losses (M,) of masked tokens among the last ``end`` of each part.

    Args:
        parts: parts of documents, each at least as long as a row, and which of their last ``end``
            tokens are masked.
        length: the number of tokens in a row, with special tokens.
        end: the number of tokens of which some are masked; the same ones for every length.
    """
    frame = Frame.of(tokenizer)
    room = frame.room(length)
    device = next(model.parameters()).device
    before = [frame.first] * (frame.first >= 0)
    behind = [frame.last] * (frame.last >= 0)
    rows, places = [], []
    for number, (part, masked) in enumerate(parts):
        rows.append([*before, *part[-room:].tolist(), *behind])
        first = len(before) + room - end
        places += [(number, first + at) for at in masked.tolist()]
    truth = torch.tensor(rows)
    at = torch.tensor(places).unbind(1)
    labels = torch.full_like(truth, IGNORE)
    labels[at] = truth[at]
    shown = truth.clone()
    shown[at] = int(tokenizer.mask_token_id)
    objective = predicting(model)
    losses = []
    at_once = max(1, TOKENS_AT_ONCE // length)
    for ids, wanted in zip(shown.split(at_once), labels.split(at_once), strict=True):
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": wanted}
        losses.append(objective.token_losses(moved(batch, device))[0].cpu())
    return torch.cat(losses).double().numpy()
