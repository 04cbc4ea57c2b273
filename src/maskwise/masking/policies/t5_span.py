"""T5's noise spans: how many and how long is settled first, then where; two of them never touch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose, unit_interval
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy
from maskwise.masking.select import sort_rows
from maskwise.masking.units import Units


_SURE = 1e6  # the weight of noise, so that ``bernoulli`` takes it all


@dataclass(frozen=True)
class T5Span(Policy):
    """Noise spans, as weighted units, between gaps of weight 0: partition and selection are one joint draw.

    n noise tokens make round(n / mean_span) spans; the n tokens, and the rest of the row, are cut evenly at random
    into that many pieces of at least one token, which alternate around a ring; the ring is opened at a random place.
    The published code always opens it before a gap, so that rows begin unmasked and end masked; here every position
    is masked equally often, at the price of one span in two parts in some rows.

    Selects: spans of ``mean_span`` tokens on average. n comes from the ratio in force, or from ``ratio`` if given.
    Guarantee: the budget to the token in all three modes; gaps between spans (but where the ring is opened).
    Cost: two sorts; O(B·L).
    Source: Raffel et al. 2020 (T5, arXiv 1910.10683), section 3.1.4; ``random_spans_noise_mask`` in its code.
    """

    mean_span: float = 3.0
    ratio: float | None = None

    units_name = "span"

    def __post_init__(self) -> None:
        if self.mean_span < 1:
            raise MaskwiseError("policy t5-span: mean_span is a number of tokens", got=self.mean_span, allowed="≥ 1")
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise MaskwiseError("policy t5-span: ratio", got=self.ratio, allowed="0 to 1")

    def ratios(self, ratio_B: Tensor, keys: Keys, moment: Moment) -> Tensor:
        return ratio_B if self.ratio is None else torch.full_like(ratio_B, self.ratio)

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        noise_B = noise_tokens(batch, keys, moment)
        return noise_units(batch, keys, noise_B, (noise_B / self.mean_span).round(), rotate_B=torch.ones_like(noise_B))


def noise_tokens(batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Tensor:
    """(B,) int64: the budget as ``select`` rounds it, so that the noise uses it up to the token."""
    assert moment.ratio is not None, "the masker says the ratios"
    eligible_B = batch.eligible.sum(1)
    wanted_B = eligible_B * moment.ratio
    rounded_B = torch.minimum((wanted_B + keys.row_uniform(Purpose.ROUND)).long(), eligible_B)
    return torch.maximum(rounded_B, ((wanted_B >= 0.5) & (eligible_B > 0)).long())


def noise_units(batch: AnnotatedBatch, keys: Keys, noise_B: Tensor, spans_B: Tensor, *, rotate_B: Tensor) -> Units:
    """Weighted units with ``noise_B`` tokens in ``spans_B`` spans, and the gaps between them with weight 0.

    Args:
        noise_B, spans_B: (B,); spans are kept between 1 and what noise and gaps allow.
        rotate_B: (B,); where 0 the ring is opened before its first gap, so that the row ends with noise.
    """
    device, width = noise_B.device, batch.input_ids.shape[1]
    eligible_B = batch.eligible.sum(1)
    spans_B = torch.minimum(torch.minimum(spans_B.long(), noise_B), eligible_B - noise_B).clamp_(min=1)
    index = torch.arange(width, dtype=torch.int32, device=device)
    draw = keys.draw(Purpose.PARTITION, index)
    # The cuts of the noise use the draws from the front, those of the rest the ones behind them.
    inner = (noise_B - 1).clamp(min=0)
    cut_noise = index < inner.unsqueeze(1)
    cut_gap = ~cut_noise & (index < (inner + eligible_B - noise_B - 1).unsqueeze(1))
    noise_length = _cut(draw, cut_noise, spans_B, noise_B, start_B=torch.zeros_like(inner))
    gap_length = _cut(draw, cut_gap, spans_B, eligible_B - noise_B, start_B=inner)
    ends = torch.stack((gap_length, noise_length), 2).flatten(1).cumsum(1)
    ring = torch.zeros(len(ends), width + 1, dtype=torch.int64, device=device)
    ring = ring.scatter_add_(1, ends.clamp_(max=width), torch.ones_like(ends)).cumsum(1)
    phase = unit_interval(keys.draw(Purpose.PARTITION, torch.tensor([-1], dtype=torch.int32, device=device)))
    start_B1 = (phase * eligible_B.unsqueeze(1)).long() * (rotate_B > 0).unsqueeze(1)
    rank = batch.eligible.cumsum(1).sub_(1).clamp_(min=0)
    piece = ring.gather(1, (rank + start_B1) % eligible_B.clamp(min=1).unsqueeze(1))
    units = Units.runs(batch, piece.masked_fill(~batch.eligible, -1))
    return units.weighted(piece % 2 * _SURE, policy="t5-span")


def _cut(draw: Tensor, mine: Tensor, parts_B: Tensor, total_B: Tensor, *, start_B: Tensor) -> Tensor:
    """(B, K) int64 lengths: ``total_B`` cut at ``parts_B`` − 1 places, all choices alike; place j is behind token j.

    Args:
        draw, mine: (B, L); the places of a row and their draws stand where ``mine`` is True, from ``start_B`` on.
    """
    never = torch.iinfo(draw.dtype).max
    draw = torch.where(mine, draw, never)
    last = sort_rows(draw).gather(1, (parts_B - 2).clamp(min=0).unsqueeze(1))
    chosen = (draw <= last) & mine & (parts_B > 1).unsqueeze(1)
    row, place = chosen.nonzero(as_tuple=True)
    part = chosen.cumsum(1)[row, place]
    ends = torch.zeros(len(draw), int(parts_B.max()) + 1 if len(draw) else 1, dtype=torch.int64, device=draw.device)
    ends += total_B.unsqueeze(1)
    ends[:, 0] = 0
    ends[row, part] = place - start_B[row] + 1
    return ends.diff(dim=1)
