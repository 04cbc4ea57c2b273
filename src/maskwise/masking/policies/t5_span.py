"""T5's noise spans: how many and how long is settled first, then where; two of them never touch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwise.arrays import (
    Array,
    beside,
    copy,
    floats,
    int32,
    integers,
    minimum,
    numbers,
    raw,
    running_count,
    sort_rows,
    tensor,
    where,
)  # fmt: skip
from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy
from maskwise.masking.units import UnitKind, Units

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

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.TOKEN_SPAN

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
    eligible = raw(batch.eligible)
    noise, total = raw(noise_B)[:, None], eligible.sum(1)[:, None]
    gaps, width = total - noise, eligible.shape[1]
    spans = minimum(minimum(raw(spans_B.long())[:, None], noise), gaps).clip(min=1)
    noise_end, gap_end = _cut(keys, noise, gaps, spans, numbers(width, noise))
    # Around the ring: gap 0, noise 0, gap 1, noise 1, …; each piece ends where the next begins.
    noise_begin = copy(gap_end)
    noise_begin[:, 1:] += noise_end[:, :-1]
    noise_end = noise_end + gap_end
    opening_B = raw(keys.row_uniform(Purpose.PARTITION)) * raw(rotate_B > 0)
    start = integers(opening_B[:, None] * total)
    begins_noisy = (noise_begin <= start).sum(1)[:, None] - (noise_end <= start).sum(1)[:, None]
    ring = torch.zeros(len(total), width + 2, dtype=torch.bool, device=batch.eligible.device)
    row = numbers(len(total), noise)[:, None]
    for border in (noise_begin - start, noise_end - start):  # the first token stands at 1
        raw(ring)[row, 1 + border + total * (border <= 0)] = True
    piece = running_count(raw(ring)).reshape(-1).take(running_count(eligible) + row * (width + 2))
    number = numbers(2 * noise_begin.shape[1] + 1, noise)
    some, whole = noise > 0, gaps == 0
    noisy, chosen = (((n + begins_noisy) & 1 > 0) & some | whole for n in (number, piece))
    weight = tensor(floats(noisy) * _SURE)
    return Units(batch.eligible, tensor(piece), weight=weight, settled=tensor(chosen & eligible))


def _cut(keys: Keys, noise: Array, gaps: Array, spans: Array, column: Array) -> tuple[Array, Array]:
    """Where pieces end, both (B, K): ``noise`` and ``gaps`` (B, 1) tokens cut into ``spans`` pieces each.

    The places 1 … noise − 1 and 1 … gaps − 1 have a draw each; the spans − 1 smallest of both are the ends of
    pieces, so that all choices are alike. The last end, and those of pieces that do not exist, is the total.
    """
    most, never = int(spans.max()) if len(spans) else 1, (1 << 31) - 1
    draw, index = raw(keys.draw(Purpose.PARTITION, tensor(int32(column)))), int32(column)
    before = (noise - 1).clip(min=0)  # noise has the first draws, gaps the next
    behind = index >= before
    near = max(most, int(before.max())) if len(before) else most
    first = sort_rows(where(behind, never, draw)[:, :near])[:, :most]
    later = sort_rows(where(behind & (index < before + gaps - 1), draw, never))[:, :most]
    # The hash is invertible: draws tell which places they are of.
    place = integers(raw(keys.index_of(Purpose.PARTITION, tensor(beside(first, later))))) + 1
    beyond = column[: first.shape[1]] >= spans - 1
    return (
        sort_rows(where(beyond, noise, place[:, : first.shape[1]])),
        sort_rows(where(beyond, gaps, place[:, first.shape[1] :] - before)),
    )
