"""What corruptions that change lengths share: stable compaction, and the targets of encoder-decoder models.

Each row first becomes a line of candidates (its tokens, and before each of them perhaps something new); a
bool says which of them stand; ``Compaction`` moves these to the front: a count and a scatter; no loop over rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskwise.arrays import Array, copy, integers, numbers, places, raw, tensor
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.masked import IGNORE


class Compaction:
    """Moves the candidates that are kept to the front of their rows, in order.

    Args:
        keep: (B, X) bool.
        gap_B: (B,) int64, the new place that is left free in each row; negative: none.

    Attributes:
        attention_mask: (B, W) int64, W the length of the longest row.
    """

    def __init__(self, keep: Tensor, gap_B: Array | None = None):
        count_B = raw(keep).sum(1)
        if gap_B is not None:
            count_B += gap_B >= 0
        self.width = int(count_B.max()) if keep.numel() else 0
        column = numbers(self.width, count_B)
        filled = column < count_B[:, None]
        self.attention_mask = tensor(integers(filled))
        if gap_B is not None:
            filled ^= column == gap_B[:, None]
        # Both are in the order of rows and places, so the n-th of one goes to the n-th of the other.
        self._from, self._to = places(raw(keep)), places(filled)

    def __call__(self, values: Tensor, fill: int) -> Tensor:
        """(B, X) candidates to (B, W), padded with ``fill``."""
        out = values.new_full((len(values), self.width), fill)
        raw(out.view(-1))[self._to] = raw(values).reshape(-1).take(self._from)
        return out


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
    labels = batch.input_ids.clone()
    raw(labels.view(-1))[places(~(raw(there) & raw(active)))] = IGNORE
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
    there, total_B = raw(chosen), raw(chosen).sum(1)
    if leads is None:
        text = raw(ids).take(places(there))
    else:
        # Only where something stands: a lead and a token for each place, then those of them that are there.
        total_B += raw(leads).sum(1)
        at = places(there | raw(leads))
        tokens, stands = (tensor(raw(x).take(at)).unsqueeze(1) for x in (ids, chosen))
        led = tensor(raw(leads).take(at)).unsqueeze(1)
        before = torch.empty_like(tokens)
        raw(before)[raw(led)] = raw(lead)
        line, kept = interleaved(before, tokens), interleaved(led, stands)
        text = raw(line.view(-1)).take(places(raw(kept)))
    width, total = int(total_B.max()) if len(ids) else 0, tensor(total_B).unsqueeze(1)
    labels = ids.new_full((len(ids), width + len(tail)), IGNORE)
    raw(labels.view(-1))[places(numbers(width + len(tail), total_B) < total_B[:, None])] = text
    for offset, values in enumerate(tail):
        labels.scatter_(1, total + offset, torch.where(total > 0, values, IGNORE))
    return labels
