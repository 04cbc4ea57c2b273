"""The bound of masked diffusion: at most so many nats does a model need for a text that is
uncovered in a random order.

Every held-out piece is masked ``draws`` times, at rates that are spread evenly over (0, 1), and a
number of tokens is drawn with the weight L/n (``masking.diffusion``). This is an upper bound on
−log p(piece) of a model that uncovers one token after the other in a random order, whatever it was
trained on: a masked language model of 15 % has one too, and a high one. The policy of a training
does not enter, since the order here is random.

A standard error says how sure the mean is, over pieces: both the masks that were drawn and the
texts that were read. Figures per token compare models with one tokenizer; those per byte of the
text compare all that spell it out: nothing is [UNK], and none drops capitals.

Cost: ``draws`` forward passes of the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskwise.constants import DIFFUSION
from maskwise.errors import MaskwiseError
from maskwise.masking.diffusion import Noising
from maskwise.objectives import MaskedLanguageModelling
from maskwise.training.data import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEED = 0xB0DD


def spread(count: int, *, of: int) -> Tensor:
    """(min(count, of),) the numbers of rows, evenly spread."""
    count = min(count, of)
    return torch.arange(count) * of // max(1, count)


class BoundOfText(NamedTuple):
    """What a model needs for a text, in nats.

    Attributes:
        nats: the bound, of all pieces together.
        error: its standard error.
        tokens: that were predicted. [UNK] and special tokens are not.
        pieces: that the text was cut into.
        unknown: tokens that are [UNK].
        unigram: nats of a model that knows only how frequent each token is; None where that is not
            known.
    """

    nats: float
    error: float
    tokens: int
    pieces: int
    unknown: int
    unigram: float | None

    @property
    def per_token(self) -> float:
        return self.nats / self.tokens


class Bound:
    """The bound of one text, with masks that never change.

    Args:
        held_out: rows that are never trained on; each of their pieces is a text by itself.
        tokenizer: theirs.
        chosen: the numbers of the rows to use.
        log_unigram: (V,) of the training text, where it is known.
        draws: how often each piece is masked.
        batch_size: rows at once.

    Raises:
        MaskwiseError: a tokenizer without a mask token; a text in which nothing can be predicted.
    """

    def __init__(
        self,
        held_out: Rows,
        tokenizer: PreTrainedTokenizerBase,
        chosen: Tensor,
        *,
        log_unigram: Tensor | None = None,
        draws: int = 4,
        batch_size: int = 64,
    ):
        noising = Noising(tokenizer, seed=SEED)
        self.draws, self.batches = draws, []
        self.unknown, self.unigram = 0, None if log_unigram is None else 0.0
        tokens = []
        for number, part in enumerate(chosen.split(batch_size)):
            pieces = held_out.batch(part)
            for draw in range(draws):
                # The draws of a row stand side by side, and so are spread over all rates.
                place = (np.arange(len(part)) + number * batch_size) * draws + draw
                self.batches.append((number, noising(pieces, epoch=0, step=draw, place=place)))
            source = self.batches[-1][1].source
            tokens.append(source.eligible_P)
            ids = source.input_ids[source.eligible]
            self.unknown += int((source.input_ids == tokenizer.unk_token_id).sum())
            if log_unigram is not None:
                assert self.unigram is not None
                self.unigram -= float(log_unigram[torch.from_numpy(ids)].double().sum())
        self.tokens_P = np.concatenate(tokens) if tokens else np.zeros(0, np.int64)
        self.first = np.cumsum([0, *map(len, tokens)])
        if not self.tokens_P.sum():
            do = "give a text that the model's tokenizer knows, and more of it"
            raise MaskwiseError(
                "no held-out token can be predicted", got=f"{self.unknown} × [UNK]", do=do
            )

    @classmethod
    def among(
        cls,
        masks: Sequence[str],
        held_out: Rows,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rows: int,
        log_unigram: Tensor | None = None,
    ) -> Bound | None:
        """The bound of so many rows, evenly spread, where ``diffusion`` is among the held-out
        masks.
        """
        chosen = spread(rows, of=len(held_out))
        return (
            cls(held_out, tokenizer, chosen, log_unigram=log_unigram)
            if DIFFUSION in masks
            else None
        )

    def __call__(self, objective: MaskedLanguageModelling) -> BoundOfText:
        """Measure a model, in evaluation mode and where it is."""
        device = next(objective.parameters()).device
        nats_P = np.zeros(len(self.tokens_P))
        for number, batch in self.batches:
            losses, where = objective.token_losses(batch.to(device))
            row, column = where.cpu().unbind(1)
            assert batch.loss_weight is not None
            weighted = (losses.detach().cpu().double() * batch.loss_weight[row, column]).numpy()
            piece = batch.source.piece.reshape(batch.source.shape)[row.numpy(), column.numpy()]
            first, last = self.first[number : number + 2]
            nats_P[first:last] += np.bincount(piece, weighted, last - first) / self.draws
        total, tokens = float(nats_P.sum()), int(self.tokens_P.sum())
        rest, pieces = nats_P - total / tokens * self.tokens_P, len(nats_P)
        error = (
            math.sqrt(float((rest**2).sum()) * pieces / (pieces - 1)) if pieces > 1 else math.nan
        )
        return BoundOfText(total, error, tokens, pieces, self.unknown, self.unigram)
