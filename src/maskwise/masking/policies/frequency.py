"""Rare tokens more often (or less): weights from how often each token occurs in the corpus."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import Keys
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy, kind_of, layer_of, pieces
from maskwise.masking.units import UnitKind, Units


@dataclass(frozen=True)
class Frequency(Policy):
    """A token weighs max(count, floor) to the power ``power``; a unit weighs the mean of its tokens.

    Counts come from ``counts`` (V,), a tensor over ids given in Python, or else from the layer ``frequency``
    (the count of each token, as a column of the rows).

    Selects: units by weighted sampling without replacement; power −0.5 favours rare tokens, 0.5 frequent
        ones.
    Guarantee: as for its units; ``bernoulli`` takes weights as they are, which for negative powers are small.
    Cost: a power a token, then as ``weighted``.
    Source: Zhang et al. 2023 (Weighted Sampling for Masked Language Modeling, arXiv 2302.14225).
    """

    power: float = -0.5
    units_of: str = "word"
    floor: float = 10.0
    counts: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def unit_kind(self) -> UnitKind:
        return kind_of(self.units_of)

    def __post_init__(self) -> None:
        if self.floor <= 0:
            raise MaskwiseError("policy frequency: the least count", got=self.floor, allowed="above 0")

    def layers(self) -> tuple[str, ...]:
        return (*(("frequency",) if self.counts is None else ()), *layer_of(self.units_of))

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        if self.counts is None:
            count_BL = batch.layer("frequency", policy="frequency")
        elif len(self.counts) <= int(batch.input_ids.max()):
            allowed = f"one count for each id, at least {int(batch.input_ids.max()) + 1}"
            raise MaskwiseError("policy frequency: too few counts", got=len(self.counts), allowed=allowed)
        else:
            count_BL = self.counts.to(batch.input_ids.device)[batch.input_ids]
        weight_BL = count_BL.double().clamp_(min=self.floor).pow_(self.power)
        return pieces(batch, self.units_of, policy="frequency").weighted(weight_BL, policy="frequency")


def frequency(
    power: float = -0.5, units: str = "word", floor: float = 10.0, counts: Tensor | None = None
) -> Frequency:
    """Units of ``token``, ``word`` or any layer, weighted by the corpus frequency of their tokens."""
    return Frequency(power, units, floor, counts)
