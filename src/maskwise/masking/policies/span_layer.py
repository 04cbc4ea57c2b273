"""Spans that somebody marked: entities, phrases, sentences, or any other layer over the text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from maskwise.errors import MaskwiseError
from maskwise.keys import Keys
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy, layer_of
from maskwise.masking.units import UnitKind, Units


@dataclass(frozen=True)
class SpanLayer(Policy):
    """Units are runs of one number ≥ 0 in a layer; around them words or tokens, of ``rest_weight``.

    Selects: marked spans. At ``rest_weight=0`` the rest is masked only where the masker's ``fill`` says so:
        ``none`` (salient span masking as published), ``random`` (equal budgets), ``skip-row``; at 1 the rest
        is masked as readily as the spans (PMI phrases). With ``rest="none"`` the ratio is a share of the
        *marked* tokens alone (emlm: ``ratio=0.5, budget="bernoulli"``).
    Guarantee: never half a span. ``exact``: at most the budget: a span longer than that is never chosen (a
        sentence in a short row); ``expected``: even then with probability budget / length; ``bernoulli``:
        each by itself.
    Cost: that of whole words.
    Source: Guu et al. 2020 (REALM, arXiv 2002.08909), section 3.4, for salient spans; Levine et al. 2021
        (PMI-Masking, arXiv 2010.01825) for phrases.
    """

    layer: str = "salient"
    rest: str = "word"
    rest_weight: float = 0.0

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.LAYER

    def __post_init__(self) -> None:
        if self.rest not in ("word", "token", "none"):
            raise MaskwiseError("policy span-layer: rest", got=self.rest, allowed="word, token, none")

    def layers(self) -> tuple[str, ...]:
        return (self.layer, *(layer_of(self.rest) if self.rest != "none" else ()))

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        marked = batch.layer(self.layer, policy="span-layer")
        if self.rest == "none":
            return Units.runs(batch, marked)
        rest = batch.place if self.rest == "token" else batch.layer("word_ids", policy="span-layer")
        # Even numbers are spans and odd ones the rest; what is −1 in both stays negative.
        units = Units.runs(batch, torch.where(marked >= 0, marked * 2, rest * 2 + 1))
        if self.rest_weight == 1:
            return units
        return units.weighted(torch.where(marked >= 0, 1.0, self.rest_weight), policy="span-layer")


def salient(rest: str = "word") -> SpanLayer:
    """Salient spans (names, dates and the like) from the layer ``salient``; ``fill`` decides on the rest."""
    return SpanLayer("salient", rest)


def phrase(rest: str = "word") -> SpanLayer:
    """Phrases from the layer ``phrase`` and, as readily, the words outside them (PMI-Masking)."""
    return SpanLayer("phrase", rest, 1.0)


def sentence() -> SpanLayer:
    """Whole sentences from the layer ``sentence``."""
    return SpanLayer("sentence", "none")


@dataclass(frozen=True)
class Guided(Policy):
    """Single tokens, of marked spans alone.

    Selects: tokens of the spans of a layer, all alike; the ratio is a share of the *marked* tokens.
    Guarantee: that of single tokens; ``bernoulli`` at ``min_targets=0`` is emlm as published: each marked token by
        itself with probability 0.5, and nothing else.
    Cost: that of single tokens.
    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1.
    """

    layer: str = "salient"

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.TOKEN

    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        marked = batch.layer(self.layer, policy="guided") >= 0
        return Units(batch.eligible & marked, None, place=batch.place)
