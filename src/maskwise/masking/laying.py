"""Masked pieces become rows of torch tensors: in the places that the tokens had, or laid anew where lengths changed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import IGNORE, AnnotatedBatch, MaskedBatch
from maskwise.masking.corruptions import Corrupted
from maskwise.masking.select import Selection
from maskwise.segments import first_within, rank_within


def some_labels(labels: Array, candidate: Array, batch: AnnotatedBatch, share: float, keys: Keys) -> Array:
    """Labels (T,) with −100 but at a random ``share`` of each piece's *eligible* tokens, all of them candidates.

    Pieces with fewer candidates than that keep all; a piece with a candidate keeps at least one while share > 0.
    Keys of its own settle which ones, so the mask itself is the same with or without. This is the ablation of
    Ankner et al. 2023 (arXiv 2305.15096, section 4): corrupt at p(t), take the loss on a share that does not change.
    """
    at = np.flatnonzero(candidate & (labels != IGNORE))
    every = np.arange(len(batch.begin))
    rounding_P = keys.uniform(Purpose.PREDICT, every, np.full(len(every), -1, np.int32))
    wanted_P = np.maximum((batch.eligible_P * share + rounding_P).astype(np.int64), 1) * (share > 0)
    asked = at[first_within(batch.piece[at], batch.draw(keys, Purpose.PREDICT, at), wanted_P)]
    kept = np.full_like(labels, IGNORE)
    kept[asked] = labels[asked]
    return kept


def lay_out(
    batch: AnnotatedBatch,
    shown: Corrupted,
    choice: Selection,
    ratio_P: Array,
    weight_T: Array | None,
    pad: int,
) -> MaskedBatch:
    """Rows of what is shown and what must be produced; ``weight_T`` multiplies the loss of each token (diffusion)."""
    ratio = torch.from_numpy(ratio_P)
    if shown.lengths is not None:
        return _laid_anew(batch, shown, choice, ratio, pad)

    def rows(line: Array) -> Tensor:
        return torch.from_numpy(line.reshape(batch.shape))

    weight, counted = None, None
    if weight_T is not None:
        weight, counted = rows(weight_T), len(batch.eligible_at)
    attention = None if batch.attention_mask is None else rows(batch.attention_mask)
    extras = {name: rows(value) for name, value in batch.extras.items()}
    targets = int(np.count_nonzero(shown.labels != IGNORE))
    return MaskedBatch(
        rows(shown.input_ids), rows(shown.labels), attention, batch, ratio, extras, weight, choice, targets=targets,
        counted=counted,
    )  # fmt: skip


def _laid_anew(
    batch: AnnotatedBatch,
    shown: Corrupted,
    choice: Selection,
    ratio: Tensor,
    pad: int,
) -> MaskedBatch:
    """Each row is its pieces one after the other, as long as they are now; and so are its targets."""
    assert shown.lengths is not None
    every = np.arange(len(batch.begin))

    def in_rows(lengths_P: Array) -> tuple[Array, Array]:
        """The tokens of each row (B,), and the piece of each token (N,)."""
        return np.bincount(batch.row, lengths_P, batch.shape[0]).astype(np.int64), np.repeat(every, lengths_P)

    length_B, piece = in_rows(shown.lengths)
    columns = {"input_ids": shown.input_ids, "piece": piece, **shown.extras}
    if shown.label_lengths is None:
        columns["labels"] = shown.labels
    cut = 0
    if batch.plan is not None and int(length_B.max(initial=0)) > batch.plan:
        # What stands behind the plan goes, but for a special token that closes the row: it takes the last place.
        rank, closed_B = rank_within(length_B), ~shown.text.take(length_B.cumsum() - 1)
        kept = rank < np.repeat(batch.plan - closed_B, length_B)
        kept |= rank == np.repeat(np.where(closed_B, length_B - 1, -1), length_B)
        cut = len(kept) - int(kept.sum())
        columns = {name: values[kept] for name, values in columns.items()}
        length_B = np.minimum(length_B, batch.plan)
    fills = {"input_ids": pad, "piece": -1, "labels": IGNORE}
    laid = {name: _padded(values, length_B, fills.get(name, 0)) for name, values in columns.items()}
    of_label = piece = laid.pop("piece")
    if shown.label_lengths is not None:
        label_B, of_target = in_rows(shown.label_lengths)
        laid["labels"], of_label = (_padded(x, label_B, f) for x, f in ((shown.labels, IGNORE), (of_target, -1)))
    tensors = {name: torch.from_numpy(values) for name, values in laid.items()}
    return MaskedBatch(
        tensors.pop("input_ids"), tensors.pop("labels"), torch.from_numpy((piece >= 0).astype(np.int64)),
        batch, ratio, tensors, None, choice, piece, cut,
        writes=shown.label_lengths is not None,
        laid_labels=None if shown.label_lengths is None else of_label,
        targets=int(np.count_nonzero(laid["labels"] != IGNORE)),
    )  # fmt: skip


def _padded(line: Array, length_B: Array, fill: int) -> Array:
    """(N,) numbers to (B, W), the next ``length_B`` of them in each row, padded at the end."""
    laid = np.full((len(length_B), int(length_B.max(initial=0))), fill, line.dtype)
    laid[np.arange(laid.shape[1]) < length_B[:, None]] = line
    return laid
