"""The policy that was learned from a task before: units and weights come from the layers that such a policy has made.

The model that scores texts is far from here: ``learning.annotator`` runs it once over a corpus. The policy names the
annotator that its layers come from, so that a recipe needs to say no more than the policy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.policies.base import Moment, Policy, UnitKind, weigh
from maskwise.masking.policies.given import Weighted
from maskwise.masking.runs import runs
from maskwise.masking.units import Units
from maskwise.segments import first_of, first_within
from maskwise.specs import Call

LAST = 1e-12
"""A weight that comes after all of weight 1, whatever the draw."""

_TAKE = re.compile(r"weights|spans|top-[1-9]\d*")


@dataclass(frozen=True)
class Learned(Policy):
    """What ``maskwise learn`` made: words by their weights, the best ``spans``, or one span a piece (``top-1``, …).

    Selects: ``weights``: words, by weighted sampling without replacement up to any budget, sharpened by ``power``. The
        share ``explore`` of each piece's budget is left to chance: the policy draws ⌈(1 − explore) × ratio × words⌉ of
        the words, and what then remains is spent on any others, where it would be the same few words in every text.
        ``spans``: the best spans of each window, weighted by their scores. ``top-N``: one span of each piece, drawn
        from its N best by score (1: always the best). Words outside of spans weigh 0: they are for ``fill="random"``.
    Guarantee: as for words; never half a span. ``top-N``: one span at most, if it fits the budget (``expected``: or by
        chance). A ratio of 1 lets every span fit, and then ``fill="none"`` masks nothing else.
    Cost: that of ``weighted``; the scores were made once, with the corpus.
    Without a folder: the policy that a run of a study learns before it trains, as the recipe's ``learning`` says.
    Source: Ye et al. 2021 (arXiv 2104.08840), section 3. Theirs may draw from five spans that overlap; these do not.
    """

    folder: str = ""
    take: str = "weights"
    power: float = 1.0
    explore: float = 0.0

    def __post_init__(self) -> None:
        if not _TAKE.fullmatch(self.take):
            allowed = "weights, spans, top-1, top-5, …"
            raise MaskwiseError("policy learned: take", got=self.take, allowed=allowed)
        if not 0 <= self.explore <= 1:
            raise MaskwiseError("policy learned: explore", got=self.explore, allowed="0 to 1, a share of the budget")
        if (self.power != 1 or self.explore) and self.take != "weights":
            got = f"take={self.take}, power={self.power}, explore={self.explore}"
            raise MaskwiseError("policy learned: power and explore are for take=weights", got=got)

    @property
    def splits_budget(self) -> bool:
        return self.explore > 0

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.WORD if self.take == "weights" else UnitKind.LAYER

    @property
    def layer(self) -> str:
        """The name of the layer of weights; a corpus may carry the layers of several policies."""
        return f"learned {self.folder}".rstrip()

    def layers(self) -> tuple[str, ...]:
        if self.take == "weights":
            return (self.layer, "word_ids")
        return (f"{self.layer}_span", f"{self.layer}_score", "word_ids")

    def annotators(self) -> tuple[str, ...]:
        return (str(Call("learned", (self.folder,), {"layer": self.layer})),)

    def units(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        if self.take == "weights":
            units = Weighted(self.layer, "word", self.power).units(batch, keys, moment)
            return self._split_budget(units, keys, moment) if self.explore else units
        marked = batch.layer(f"{self.layer}_span", policy="learned")
        score = batch.layer(f"{self.layer}_score", policy="learned", scores=True)
        words = batch.layer("word_ids", policy="learned")
        # Even numbers are spans and odd ones the rest; what is −1 in both stays negative.
        units = runs(batch, np.where(marked >= 0, marked * 2, words * 2 + 1))
        units = weigh(units, np.where(marked >= 0, score, 0.0), policy="learned")
        return units if self.take == "spans" else self._drawn(units, keys)

    def _drawn(self, units: Units, keys: Keys) -> Units:
        """The same units, of which one in each piece weighs 1 and all others 0."""
        assert units.weight is not None
        best = _first(units, -units.weight, int(self.take.removeprefix("top-")))
        best = best[units.weight[best] > 0]
        race = _race(units, best, keys)
        winner = _first(units, race, 1)
        weight = np.zeros(len(race))
        weight[winner] = np.isfinite(race[winner])
        return units.weighted(weight)

    def _split_budget(self, units: Units, keys: Keys, moment: Moment) -> Units:
        """The same units, of which so many as the policy's share of the budget come before all others."""
        assert units.weight is not None and moment.ratio is not None, "words have weights, and the masker gives ratios"
        share_P = np.ceil((1 - self.explore) * moment.ratio * units.count - 1e-9)  # 3.0000000000000004 words are three
        race = _race(units, np.flatnonzero(units.weight > 0), keys)
        drawn = first_within(units.piece, race, share_P.astype(np.int64)) & np.isfinite(race)
        return units.weighted(np.where(drawn, 1.0, LAST))


def _race(units: Units, among: Array, keys: Keys) -> Array:
    """(U,) when each unit arrives, in the order of a weighted draw without replacement; the others never do."""
    assert units.weight is not None
    race = np.full(len(units.weight), np.inf)
    race[among] = -np.log(keys.uniform(Purpose.ACCEPT, units.piece[among], units.number[among])) / units.weight[among]
    return race


def _first(units: Units, key: Array, count: int) -> Array:
    """The ``count`` units of each piece with the smallest keys; ties by their order."""
    order = np.lexsort((units.number, key, units.piece))
    return order[first_of(units.count, np.full(len(units.count), count))]
