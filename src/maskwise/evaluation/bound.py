"""The bound of masked diffusion: an upper bound on the nats of a text in a random order.

Every held-out piece is masked ``draws`` times, at rates spread evenly over (0, 1). Losses are
weighted by L/n (``masking.diffusion``), which bounds −log p(piece) of a model that reveals one
token after the other in random order, whatever it was trained on. The standard error is over
pieces, so it includes the noise of masks and of texts. Figures per token compare models with the
same tokenizer; figures per byte compare all models whose tokens spell the whole text.
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
    """Return at most ``count`` row numbers below ``of``, evenly spread."""
    count = min(count, of)
    return torch.arange(count) * of // max(1, count)


class BoundOfText(NamedTuple):
    """The bound of a text, in nats.

    Attributes:
        nats: of all pieces together.
        error: the standard error of ``nats``.
        tokens: predicted tokens, without [UNK] and special ones.
        pieces: of the text.
        unknown: tokens that are [UNK].
        unigram: nats by the frequency of every token; None if the frequencies are not known.
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


def diffusion_bound(
    masks: Sequence[str],
    held_out: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int,
    log_unigram: Tensor | None = None,
) -> Bound | None:
    """Prepare the bound of some rows, evenly spread, if ``diffusion`` is a held-out mask."""
    if DIFFUSION not in masks:
        return None
    return Bound(held_out, tokenizer, spread(rows, of=len(held_out)), log_unigram=log_unigram)


class Bound:
    """The bound of one text, with masks that never change.

    Args:
        held_out: rows that are never trained on. Each of their pieces is a text.
        tokenizer: theirs.
        chosen: the numbers of the rows to use.
        log_unigram: (V,) of the training text, if known.
        draws: masks of each piece.
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
        self.draws = draws
        self.batches = []
        self.unknown = 0
        self.unigram = None if log_unigram is None else 0.0
        tokens = [np.zeros(0, np.int64)]
        for number, part in enumerate(chosen.split(batch_size)):
            pieces = held_out.batch(part)
            for draw in range(draws):
                # The draws of a row are neighbours, and so are spread over all rates.
                place = (np.arange(len(part)) + number * batch_size) * draws + draw
                self.batches.append((number, noising(pieces, epoch=0, step=draw, place=place)))
            source = self.batches[-1][1].source
            tokens.append(source.eligible_P)
            self.unknown += int((source.input_ids == tokenizer.unk_token_id).sum())
            if log_unigram is not None and self.unigram is not None:
                ids = torch.from_numpy(source.input_ids[source.eligible])
                self.unigram -= float(log_unigram[ids].double().sum())
        self.tokens_P = np.concatenate(tokens)
        self.first = np.cumsum([len(part) for part in tokens])
        if not self.tokens_P.sum():
            do = "give a text that the model's tokenizer knows, and more of it"
            got = f"{self.unknown} × [UNK]"
            raise MaskwiseError("no held-out token can be predicted", got=got, do=do)

    def __call__(self, objective: MaskedLanguageModelling) -> BoundOfText:
        """Measure a model, in evaluation mode and on its device."""
        device = next(objective.parameters()).device
        nats_P = np.zeros(len(self.tokens_P))
        for number, batch in self.batches:
            losses, where = objective.token_losses(batch.to(device))
            row, column = where.cpu().unbind(1)
            assert batch.loss_weight is not None
            weight = batch.loss_weight[row, column]
            weighted = losses.detach().cpu().double() * weight
            piece_BL = batch.source.piece.reshape(batch.source.shape)
            piece = piece_BL[row.numpy(), column.numpy()]
            first, last = self.first[number : number + 2]
            nats = np.bincount(piece, weighted.numpy(), last - first)
            nats_P[first:last] += nats / self.draws
        total = float(nats_P.sum())
        tokens = int(self.tokens_P.sum())
        pieces = len(nats_P)
        error = math.nan
        if pieces > 1:
            # The delta method: nats per token is a ratio of two sums over pieces.
            residual_P = nats_P - total / tokens * self.tokens_P
            error = math.sqrt(float((residual_P**2).sum()) * pieces / (pieces - 1))
        return BoundOfText(total, error, tokens, pieces, self.unknown, self.unigram)
