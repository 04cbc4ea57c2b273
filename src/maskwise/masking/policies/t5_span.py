"""T5's noise spans: how many and how long is settled first, then where; two of them never touch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwise.arrays import raw, sort_rows, tensor
from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy
from maskwise.masking.units import Units

_SURE = 1e6  # the weight of noise, so that ``bernoulli`` takes it all


@dataclass(frozen=True)
class T5Span(Policy):
    """Noise spans, as weighted units, between gaps of weight 0: partition and selection are one joint draw.

    n noise tokens make round(n / mean_span) spans; the n tokens, and the rest of the row, are cut evenly at
    random into that many pieces of at least one token, which alternate around a ring; the ring is opened at a
    random place. The published code always opens it before a gap, so that rows begin unmasked and end masked;
    here every position is masked equally often, at the price of one span in two parts in some rows.

    Selects: spans of ``mean_span`` tokens on average. n comes from the ratio in force, or from ``ratio`` if
        given.
    Guarantee: the budget to the token in all three modes; gaps between spans (but where the ring is opened).
    Cost: two sorts; O(B·L).
    Source: Raffel et al. 2020 (T5, arXiv 1910.10683), section 3.1.4; ``random_spans_noise_mask`` in its code.
    """

    mean_span: float = 3.0
    ratio: float | None = None

    units_name = "token span"

    def __post_init__(self) -> None:
        if self.mean_span < 1:
            raise MaskwiseError("policy t5-span: mean_span, in tokens", got=self.mean_span, allowed="≥ 1")
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise MaskwiseError("policy t5-span: ratio", got=self.ratio, allowed="0 to 1")

    def ratios(self, ratio_B: Tensor, keys: Keys, moment: Moment) -> Tensor:
        return ratio_B if self.ratio is None else torch.full_like(ratio_B, self.ratio)

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        noise_B = noise_tokens(batch, keys, moment)
        spans_B = (noise_B / self.mean_span).round()
        return noise_units(batch, keys, noise_B, spans_B, rotate_B=torch.ones_like(noise_B))


def noise_tokens(batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Tensor:
    """(B,) int64: the budget as ``select`` rounds it, so that the noise uses it up to the token."""
    assert moment.ratio is not None, "the masker says the ratios"
    eligible_B = batch.eligible.sum(1)
    wanted_B = eligible_B * moment.ratio
    rounded_B = torch.minimum((wanted_B + keys.row_uniform(Purpose.ROUND)).long(), eligible_B)
    floor_B = eligible_B.clamp(max=moment.min_targets).masked_fill_(wanted_B < 0.5, 0)
    return torch.maximum(rounded_B, floor_B)


def noise_units(
    batch: AnnotatedBatch, keys: Keys, noise_B: Tensor, spans_B: Tensor, *, rotate_B: Tensor
) -> Units:
    """Weighted units with ``noise_B`` tokens in ``spans_B`` spans, and the gaps between them with weight 0.

    Args:
        noise_B, spans_B: (B,); spans are kept between 1 and what noise and gaps allow.
        rotate_B: (B,); where 0 the ring is opened before its first gap, so that the row ends with noise.
    """
    noise, spans = noise_B.unsqueeze(1), spans_B.long().unsqueeze(1)
    total = batch.eligible.sum(1, keepdim=True)
    gaps = total - noise
    spans = torch.minimum(torch.minimum(spans, noise), gaps).clamp_(min=1)
    noise_end, gap_end = _cut(keys, noise, gaps, spans, width=batch.input_ids.shape[1])
    # Around the ring: gap 0, noise 0, gap 1, noise 1, …; each piece ends where the next begins.
    noise_begin = gap_end.clone()
    noise_begin[:, 1:] += noise_end[:, :-1]
    noise_end += gap_end
    opening_B = keys.row_uniform(Purpose.PARTITION) * (rotate_B > 0)
    start = (opening_B.unsqueeze(1) * total).long()
    begins_noisy = (noise_begin <= start).sum(1, keepdim=True) - (noise_end <= start).sum(1, keepdim=True)
    border = torch.cat((noise_begin, noise_end), 1).sub_(start)
    border += total * (border <= 0)
    ring = torch.zeros(len(total), batch.input_ids.shape[1] + 1, dtype=torch.int64, device=total.device)
    rank = batch.eligible.cumsum(1).sub_(1).clamp_(min=0)
    piece = ring.scatter_(1, border, 1).cumsum(1).gather(1, rank)
    number = torch.arange(border.shape[1] + 1, dtype=torch.int32, device=total.device)
    length = torch.zeros(len(total), len(number), dtype=torch.int64, device=total.device)
    length.scatter_add_(1, piece, batch.eligible.long())
    noisy = ((number + begins_noisy) & 1).bool() & (noise > 0) | (gaps == 0)
    return Units(batch.eligible, piece, length, weight=noisy.double().mul_(_SURE))


def _cut(keys: Keys, noise: Tensor, gaps: Tensor, spans: Tensor, *, width: int) -> tuple[Tensor, Tensor]:
    """Where pieces end, both (B, K): ``noise`` and ``gaps`` (B, 1) tokens cut into ``spans`` pieces each.

    The places 1 … noise − 1 and 1 … gaps − 1 have a draw each; the spans − 1 smallest of both are the ends of
    pieces, so that all choices are alike. The last end, and those of pieces that do not exist, is the total.
    """
    index = torch.arange(width, dtype=torch.int32, device=noise.device)
    most, never = int(spans.max()) if len(spans) else 1, torch.iinfo(torch.int32).max
    draw = keys.draw(Purpose.PARTITION, index)
    before = (noise - 1).clamp_(min=0)  # noise has the first draws, gaps the next
    behind = index >= before
    first = tensor(sort_rows(raw(draw.masked_fill(behind, never))))[:, :most]
    later = tensor(sort_rows(raw(draw.masked_fill_(~behind | (index >= before + gaps - 1), never))))[:, :most]
    # The hash is invertible: draws tell which places they are of.
    place = keys.index_of(Purpose.PARTITION, torch.cat((first, later), 1)).long() + 1
    missing = index[:most] >= spans - 1
    noise_end = torch.where(missing, noise, place[:, :most])
    gap_end = torch.where(missing, gaps, place[:, most:] - before)
    return tensor(sort_rows(raw(noise_end))), tensor(sort_rows(raw(gap_end)))
