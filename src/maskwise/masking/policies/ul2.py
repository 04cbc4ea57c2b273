"""UL2's denoisers: each row is masked by one of several kinds of T5 spans, or at its end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from maskwise.arrays import raw, tensor
from maskwise.errors import MaskwiseError
from maskwise.keys import Keys, Purpose, below
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy
from maskwise.masking.policies.t5_span import noise_tokens, noise_units
from maskwise.masking.units import UnitKind, Units

R, S, X = ((3, 0.15), (8, 0.15)), ((0, 0.25),), ((3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5))


@dataclass(frozen=True)
class Ul2(Policy):
    """Each row draws a denoiser (mean span, ratio) evenly by hash; mean span 0 is the end of the row
    (S-denoiser).

    It brings its own ratios, which replace the masker's. The corruption ``ul2`` puts the mode tokens.

    Selects: T5 spans: regular (3 or 8 tokens, 15 %), the last quarter, extreme (50 %, or 64 tokens).
    Guarantee: the row's budget to the token in all three modes.
    Cost: that of ``t5-span``: all denoisers are one draw.
    Source: Tay et al. 2023 (UL2, arXiv 2205.05131), section 3.1.2 and its table of seven denoisers.
    """

    denoisers: tuple[tuple[float, float], ...] = R + S + X

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.TOKEN_SPAN

    def __post_init__(self) -> None:
        fine = all(len(d) == 2 and (d[0] == 0 or d[0] >= 1) and 0 <= d[1] <= 1 for d in self.denoisers)
        if not self.denoisers or not fine:
            allowed = "pairs of mean span (≥ 1, or 0 for the end of the row) and ratio"
            raise MaskwiseError("policy ul2: denoisers", got=self.denoisers, allowed=allowed)

    def _drawn(self, keys: Keys, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean spans and ratios of the rows, both (B,) float64."""
        # Not the row's draw that ``mixture`` uses, of which this policy may be a member.
        draw = raw(keys.draw(Purpose.MIXTURE, torch.tensor([-1], dtype=torch.int32, device=device)))[:, 0]
        number_B = below(draw, len(self.denoisers))
        mean, ratio = (raw(column) for column in _columns(self.denoisers, device))
        return tensor(mean.take(number_B)), tensor(ratio.take(number_B))

    def ratios(self, ratio_B: Tensor, keys: Keys, moment: Moment) -> Tensor:
        return self._drawn(keys, ratio_B.device)[1]

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        mean_B, _ = self._drawn(keys, batch.input_ids.device)
        noise_B = noise_tokens(batch, keys, moment)
        spans_B = torch.where(mean_B > 0, noise_B / mean_B.clamp(min=1), 1.0).round()
        return noise_units(batch, keys, noise_B, spans_B, rotate_B=mean_B)


@lru_cache(maxsize=32)
def _columns(denoisers: tuple[tuple[float, float], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean spans and ratios as tensors, made once."""
    mean, ratio = torch.tensor(denoisers, dtype=torch.float64, device=device).T.contiguous()
    return mean, ratio
