"""Any score as a weight: learned scores, PMI, similarity, …"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from maskwise.keys import Keys
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy, kind_of, layer_of, pieces
from maskwise.masking.units import UnitKind, Units


@dataclass(frozen=True)
class Weighted(Policy):
    """A unit's weight is the mean of a layer over its tokens, to the power ``power``.

    Selects: ``token``, ``word``, or the runs of any layer, by weighted sampling without replacement. A power
        above 1 sharpens, 0 is even; weight 0 stays 0 and is masked only by ``fill="random"``.
    Guarantee: as for its units. Units are taken in an order drawn by weight; inclusion is not proportional to
        weight where the budget is large (no unit is taken twice). ``bernoulli``: probability min(1, ratio ×
        weight), so weights should average 1.
    Cost: a logarithm and a 64-bit sort a unit; about twice the unweighted policy.
    Source: Efraimidis & Spirakis 2006 for the sampling; for the weights of ``informative`` Sadeq et al. 2022
        (arXiv 2210.11771), of ``difference`` Wilf et al. 2023 (arXiv 2305.14577).
    """

    layer: str = "weight"
    units_of: str = "word"
    power: float = 1.0

    @property
    def unit_kind(self) -> UnitKind:
        return kind_of(self.units_of)

    def layers(self) -> tuple[str, ...]:
        return (self.layer, *layer_of(self.units_of))

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        weight_BL = batch.layer(self.layer, policy="weighted")
        units = pieces(batch, self.units_of, policy="weighted").weighted(weight_BL, policy="weighted")
        if self.power == 1 or units.weight is None:
            return units
        return replace(units, weight=torch.where(units.weight > 0, units.weight**self.power, 0.0))


def weighted(layer: str = "weight", units: str = "word", power: float = 1.0) -> Weighted:
    """Units of ``token``, ``word`` or any layer, weighted by the layer of scores ``layer``."""
    return Weighted(layer, units, power)


def informative(units: str = "word", power: float = 1.0) -> Weighted:
    """Words that tell much of those around them, by the layer ``informativeness`` (InforMask)."""
    return Weighted("informativeness", units, power)


def difference(units: str = "word", power: float = 1.0) -> Weighted:
    """Words that set a corpus apart from a general one, by the layer ``difference`` (Difference-Masking)."""
    return Weighted("difference", units, power)
