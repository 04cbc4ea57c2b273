"""What corruptions that change lengths share: stable compaction, and the targets of encoder-decoder models.

Each row first becomes a line of candidates (its tokens, and before each of them perhaps something new); a
bool says which of them stand; ``Compaction`` moves these to the front. One cumulative sum and one scatter; no
loop over rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskwise.arrays import places, raw, tensor
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
        place = keep.cumsum(1)
        if behind is not None:
            place += behind
        count_B1 = place[:, -1:].clone() if keep.shape[1] else place.new_zeros(len(keep), 1)
        self.width = int(count_B1.max()) if keep.numel() else 0
        # What is not kept all goes to one column at the end, which is cut off.
        self._place = place.sub_(1).masked_fill_(~keep, self.width)
        self.attention_mask = (torch.arange(self.width, device=keep.device) < count_B1).long()

    def __call__(self, values: Tensor, fill: int) -> Tensor:
        """(B, X) candidates to (B, W), padded with ``fill``."""
        out = values.new_full((len(values), self.width + 1), fill)
        return out.scatter_(1, self._place, values)[:, : self.width].contiguous()


def interleaved(before: Tensor, at: Tensor) -> Tensor:
    """(B, L) and (B, L) to (B, 2L): what stands before each token, and the token."""
    return torch.stack((before, at), 2).flatten(1)


def present(batch: AnnotatedBatch) -> Tensor:
    """(B, L) bool: everything but padding."""
    return torch.ones_like(batch.content) if batch.attention_mask is None else batch.attention_mask != 0


def run_starts(chosen: Tensor) -> Tensor:
    """(B, L) bool: the first token of each run of chosen tokens. So touching spans are one."""
    start = chosen.clone()
    start[:, 1:] &= ~chosen[:, :-1]
    return start


def carried(batch: AnnotatedBatch, move: Compaction, *, twice: bool = False) -> dict[str, Tensor]:
    """The extras of the tokens at their new places; what is new has those of the token behind it."""
    kept = {name: value for name, value in batch.extras.items() if name != "position_ids"}
    return {name: move(interleaved(value, value) if twice else value, 0) for name, value in kept.items()}


def whole_text(batch: AnnotatedBatch, chosen: Tensor, eos: int | None) -> Tensor:
    """Labels (B, L) or (B, L + 1): the row as it was, and ``eos`` if it does not end so; padding is −100."""
    there, active = present(batch), chosen.any(1, keepdim=True)
    labels = torch.where(there & active, batch.input_ids, IGNORE)
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
    count = (chosen if leads is None else chosen.to(torch.uint8) + leads).cumsum(1)
    total = count[:, -1:].clone() if ids.shape[1] else count.new_zeros(len(ids), 1)
    width = int(total.max()) if total.numel() else 0
    labels = ids.new_full((len(ids), width + len(tail)), IGNORE)
    flat, row_starts = labels.view(-1), torch.arange(len(ids), device=ids.device) * labels.shape[1] - 1
    place = count.add_(row_starts.unsqueeze(1)).view(-1)
    where = tensor(places(raw(chosen)))
    flat[place[where]] = ids.reshape(-1)[where]
    if leads is not None:
        where = tensor(places(raw(leads)))
        flat[place[where] - chosen.reshape(-1)[where].long()] = lead
    for offset, values in enumerate(tail):
        labels.scatter_(1, total + offset, torch.where(total > 0, values, IGNORE))
    return labels
