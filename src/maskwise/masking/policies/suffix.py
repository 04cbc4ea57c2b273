"""The end of the row: a prefix language model's task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwise.keys import Keys
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy
from maskwise.masking.policies.t5_span import noise_tokens, noise_units
from maskwise.masking.units import UnitKind, Units


@dataclass(frozen=True)
class Suffix(Policy):
    """One unit: as many tokens as the budget has, at the end of the row.

    Selects: always the same tokens of a row, given the ratio; a ratio such as ``uniform(0.1, 0.9)`` varies
        it.
    Guarantee: the budget to the token in all three modes.
    Cost: that of ``t5-span``.
    Source: the prefix LM of Raffel et al. 2020, section 3.2.3; the S-denoiser of UL2 (arXiv 2205.05131),
        section 3.1.
    """

    ratio: float | None = None

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.TOKEN_SPAN

    def ratios(self, ratio_B: Tensor, keys: Keys, moment: Moment) -> Tensor:
        return ratio_B if self.ratio is None else torch.full_like(ratio_B, self.ratio)

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        noise_B = noise_tokens(batch, keys, moment)
        return noise_units(batch, keys, noise_B, torch.ones_like(noise_B), rotate_B=torch.zeros_like(noise_B))
