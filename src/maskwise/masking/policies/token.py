"""Random tokens, as BERT first had them."""

from __future__ import annotations

from dataclasses import dataclass

from maskwise.keys import Keys
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy
from maskwise.masking.units import UnitKind, Units


@dataclass(frozen=True)
class Token(Policy):
    """Every eligible token is a unit of its own.

    Selects: single tokens, all alike.
    Guarantee: ``exact`` and ``expected`` are the same, the budget to the token; ``bernoulli``: each by
        itself.
    Cost: one key a token.
    Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1.
    """

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.TOKEN

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        return Units.tokens(batch)
