"""log p(token | the rest) for every token, masked one at a time: the pseudo-log-likelihood.

A row of n tokens makes n copies, each with one token masked. All copies are built by index arithmetic, in
batches of copies of similar width, and the vocabulary head runs only where the mask is.

In words of several pieces, a piece is easy to guess from the pieces behind it ("##rates" gives "Soc" away),
which makes long rare words look likely. ``within_word`` masks those too: all pieces of the word from the
target on, so that a word's score is the chain rule from left to right (Kauf & Ivanova 2023,
"PLL-word-l2r"; Salazar et al. 2020 is the plain one).

Cost: one forward pass of the row per token; some 0.1 ms at the size of the quick start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskwise.masking.annotated import AnnotatedBatch
from maskwise.models import masked_logits

TOKENS = 16384
"""Positions in one forward pass."""
TIE = 1e-4
"""Nats below which two scores are equal: more than rounding, far less than any preference."""
LONG, UNKNOWN = "longer than the model", "unknown characters"


def log_probabilities(
    model: Any, batch: AnnotatedBatch, *, mask: int, within_word: bool = False, tokens: int = TOKENS
) -> Tensor:
    """(B, L) float32: log p of every eligible token while it is masked; 0 elsewhere.

    Special tokens, padding and [UNK] are not scored.

    Args:
        model: a masked language model in evaluation mode.
        batch: rows padded on the right; with ``word_ids`` if ``within_word``.
        mask: the id of [MASK].
        within_word: also hide the pieces of the same word behind the target.
        tokens: positions in one forward pass.
    """
    width_B = _widths(batch)
    row_T, column_T = batch.eligible.nonzero().unbind(1)
    found_BL = torch.zeros(batch.input_ids.shape)
    words_BL = batch.layer("word_ids", policy="pseudo-log-likelihood") if within_word else None
    for part in by_width(width_B[row_T], tokens):
        row, column = row_T[part], column_T[part]
        width = int(width_B[row].max())
        ids, place = batch.input_ids[row, :width], torch.arange(width)
        hidden = place == column.unsqueeze(1)
        if words_BL is not None:
            words = words_BL[row, :width]
            own = words.gather(1, column.unsqueeze(1))
            hidden |= (words == own) & (own >= 0) & (place > column.unsqueeze(1))
        shown = torch.where(hidden, mask, ids)
        attention = place < width_B[row].unsqueeze(1)
        log_p = predictions(model, shown, attention, torch.arange(len(row)), column)
        truth = ids.gather(1, column.unsqueeze(1)).to(log_p.device)
        found_BL[row, column] = log_p.gather(1, truth).squeeze(1).cpu()
    return found_BL


def predictions(model: Any, ids: Tensor, attention: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """log p (M, V) float32 at the places (row, column), each (M,), of rows ``ids`` (N, L); on the model's device."""
    device = next(model.parameters()).device
    inputs = {"input_ids": ids.to(device), "attention_mask": attention.long().to(device)}
    return masked_logits(model, inputs, row.to(device), column.to(device)).float().log_softmax(-1)


def by_width(width: Tensor, tokens: int) -> Iterator[Tensor]:
    """Indices of rows of similar width, the widest first, at most ``tokens`` positions together."""
    order = width.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        count = max(1, tokens // max(1, int(width[order[start]])))
        yield order[start : start + count]
        start += count


def _widths(batch: AnnotatedBatch) -> Tensor:
    rows, length = batch.input_ids.shape
    return torch.full((rows,), length) if batch.attention_mask is None else batch.attention_mask.sum(1)
