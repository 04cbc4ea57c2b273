"""What corruptions that change lengths share: stable compaction, and the targets of encoder-decoder models.

Each row first becomes a line of candidates (its tokens, and before each of them perhaps something new); a
bool says which of them stand; ``Compaction`` moves these to the front. One cumulative sum and one scatter; no
loop over rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskwise.arrays import Array, copy, integers, numbers, places, raw, running_count, tensor, where
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.masked import IGNORE


class Compaction:
    """Moves the candidates that are kept to the front of their rows, in order.

    Args:
        keep: (B, X) bool.
        behind: (B, X) bool, candidates behind a gap of one place that is left free; None: no gap.

    Attributes:
        attention_mask: (B, W) int64, W the length of the longest row.
    """

    def __init__(self, keep: Tensor, behind: Tensor | None = None):
        place = running_count(raw(keep))
        if behind is not None:
            place += raw(behind)
        count_B1 = place[:, -1:] if keep.shape[1] else place.sum(1)[:, None]
        self.width = int(count_B1.max()) if keep.numel() else 0
        self._from = places(raw(keep))
        self._to = (place + _before(len(keep), self.width, place)).reshape(-1).take(self._from)
        self.attention_mask = tensor(integers(numbers(self.width, place) < count_B1))

    def __call__(self, values: Tensor, fill: int) -> Tensor:
        """(B, X) candidates to (B, W), padded with ``fill``."""
        out = values.new_full((len(values), self.width), fill)
        raw(out.view(-1))[self._to] = raw(values).reshape(-1).take(self._from)
        return out


def _before(rows: int, width: int, like: Array) -> Array:
    """(B, 1) int64: the flat place before each row's first, to which counts from 1 are added."""
    return (numbers(rows, like) * width - 1)[:, None]


def interleaved(before: Tensor, at: Tensor) -> Tensor:
    """(B, L) and (B, L) to (B, 2L): what stands before each token, and the token."""
    both = at.new_empty(*at.shape, 2)
    raw(both)[:, :, 0], raw(both)[:, :, 1] = raw(before), raw(at)
    return both.flatten(1)


def present(batch: AnnotatedBatch) -> Tensor:
    """(B, L) bool: everything but padding."""
    return torch.ones_like(batch.content) if batch.attention_mask is None else batch.attention_mask != 0


def run_starts(chosen: Tensor) -> Tensor:
    """(B, L) bool: the first token of each run of chosen tokens. So touching spans are one."""
    start = copy(raw(chosen))
    start[:, 1:] &= ~raw(chosen)[:, :-1]
    return tensor(start)


def carried(batch: AnnotatedBatch, move: Compaction, *, twice: bool = False) -> dict[str, Tensor]:
    """The extras of the tokens at their new places; what is new has those of the token behind it."""
    kept = {name: value for name, value in batch.extras.items() if name != "position_ids"}
    return {name: move(interleaved(value, value) if twice else value, 0) for name, value in kept.items()}


def whole_text(batch: AnnotatedBatch, chosen: Tensor, eos: int | None) -> Tensor:
    """Labels (B, L) or (B, L + 1): the row as it was, and ``eos`` if it does not end so; padding is −100."""
    there, active = present(batch), tensor(raw(chosen).any(1)).unsqueeze(1)
    labels = tensor(where(raw(there) & raw(active), raw(batch.input_ids), IGNORE))
    if eos is None or not labels.shape[1]:
        return labels
    if not bool(there[:, 0].all()):  # padded on the left; a decoder begins at the first label
        labels = Compaction(there & active)(labels, IGNORE)
        labels = torch.nn.functional.pad(labels, (0, there.shape[1] - labels.shape[1]), value=IGNORE)
    count_B1 = there.sum(1, keepdim=True)
    ended = (labels.gather(1, (count_B1 - 1).clamp(min=0)) == eos) | ~active
    if bool(ended.all()):
        return labels
    longer = labels.new_full((len(labels), labels.shape[1] + 1), IGNORE)
    longer[:, :-1] = labels
    return longer.scatter_(1, count_B1, torch.where(ended, IGNORE, eos))


def removed_text(
    ids: Tensor, chosen: Tensor, leads: Tensor | None, lead: Tensor, tail: list[Tensor]
) -> Tensor:
    """Labels (B, W): the chosen tokens, a lead before each run of them, and ``tail`` at the end.

    Args:
        ids: (B, L).
        leads: (B, L) bool, before which tokens a lead stands; None for nowhere.
        lead: (K,) the leads in order of rows, or one for all ().
        tail: (B, 1) ids each; rows without anything chosen have none.
    """
    there = raw(chosen)
    count = running_count(there)
    if leads is not None:
        count += running_count(raw(leads))
    total = tensor(integers(count[:, -1:] if ids.shape[1] else count.sum(1)[:, None]))
    width = int(total.max()) if total.numel() else 0
    labels = ids.new_full((len(ids), width + len(tail)), IGNORE)
    flat, place = raw(labels.view(-1)), (count + _before(len(ids), labels.shape[1], count)).reshape(-1)
    at = places(there)
    flat[place.take(at)] = raw(ids).reshape(-1).take(at)
    if leads is not None:
        at = places(raw(leads))
        flat[place.take(at) - integers(there.reshape(-1).take(at))] = raw(lead)
    for offset, values in enumerate(tail):
        labels.scatter_(1, total + offset, torch.where(total > 0, values, IGNORE))
    return labels
