"""Units that the text gives: tokens, words, the runs of a layer; weights from layers or counts.

``Learned`` reads the layers of a policy that was learned before; ``learning.annotator`` runs its
model once over a corpus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskwise.errors import MaskwiseError, finite_number, whole_number
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import AnnotatedBatch
from maskwise.masking.gather import read_numbers
from maskwise.masking.policies.base import (
    CutPolicy,
    Moment,
    Policy,
    UnitKind,
    layer_of,
    units_by,
    weigh,
)
from maskwise.masking.select import require_known
from maskwise.masking.units import Units, check_weights, runs
from maskwise.segments import first_of, first_within
from maskwise.specs import Call


@dataclass(frozen=True)
class Token(Policy):
    """Random tokens, as in the first BERT: every eligible token is a unit.

    Selects: single tokens, all alike.
    Guarantee: ``exact`` and ``expected`` are the same, the budget to the token; ``bernoulli``: each
        by itself.
    Cost: one key a token.
    Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1.
    """

    unit_kind = UnitKind.TOKEN
    reads_text = False

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        return Units.single(batch)


@dataclass(frozen=True)
class WholeWord(Policy):
    """All tokens of a word or none: a unit is a run of tokens with one number in the layer
    ``word_ids``.

    Selects: words, all alike, whatever their number of tokens.
    Guarantee: never half a word. ``exact``: at most the budget, which favours short words in short
        rows;
        ``expected``: the budget on average, words nearly even; a word with an [UNK] token is never
            chosen.
    Cost: one pass to find the words; O(B·L), where the usual collator is O(B·L²).
    Source: the whole-word checkpoints of google-research/bert (May 2019).
    """

    unit_kind = UnitKind.WORD

    def layers(self) -> tuple[str, ...]:
        return ("word_ids",)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        return runs(batch, batch.layer("word_ids"))


@dataclass(frozen=True)
class SpanLayer(Policy):
    """Spans that somebody marked: units are runs of one number ≥ 0 in a layer, and around them
    words or tokens.

    Selects: marked spans. At ``rest_weight=0`` the rest is masked only where the masker's ``fill``
        says so: ``none`` (salient span masking as published), ``random`` (equal budgets),
        ``skip-row``; at 1 the rest is masked as readily as the spans (PMI phrases). With
        ``rest="none"`` the ratio is a share of the *marked* tokens alone (emlm: ``ratio=0.5,
        budget="bernoulli"``).
    Guarantee: never half a span. ``exact``: at most the budget: a span longer than that is never
        chosen (a sentence in a short row); ``expected``: even then with probability budget /
        length; ``bernoulli``: each by itself.
    Cost: that of whole words.
    Source: Guu et al. 2020 (REALM, arXiv 2002.08909), section 3.4, for salient spans; Levine et al.
        2021 (PMI-Masking, arXiv 2010.01825) for phrases.
    """

    layer: str = "salient"
    rest: str = "word"
    rest_weight: float = 0.0

    unit_kind = UnitKind.LAYER

    def __post_init__(self) -> None:
        require_known("rest of policy span-layer", self.rest, ("word", "token", "none"))

    def layers(self) -> tuple[str, ...]:
        return (self.layer, *(layer_of(self.rest) if self.rest != "none" else ()))

    def judged_on(self) -> tuple[str, ...]:
        """Also masks of the marked spans: if they fill the budget, nothing else is ever learned."""
        return (*super().judged_on(), self.layer)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        marked = batch.layer(self.layer)
        if self.rest == "none":
            return runs(batch, marked)
        words = np.arange(len(marked)) if self.rest == "token" else batch.layer("word_ids")
        units = runs(batch, marked_or_rest(marked, words))
        if self.rest_weight == 1:
            return units
        return weigh(units, np.where(marked >= 0, 1.0, self.rest_weight))


def marked_or_rest(marked: Array, rest: Array) -> Array:
    """(T,) ids of marked spans (even) and of the rest (odd); negative where both are."""
    return np.where(marked >= 0, marked * 2, rest * 2 + 1)


def salient(rest: str = "word") -> SpanLayer:
    """Salient spans (names, dates and the like) from the layer ``salient``; ``fill`` decides on the
    rest.
    """
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
    Guarantee: that of single tokens; ``bernoulli`` at ``min_targets=0`` is emlm as published: each
        marked token by itself with probability 0.5, and nothing else.
    Cost: that of single tokens.
    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1.
    """

    layer: str = "salient"

    unit_kind = UnitKind.TOKEN

    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        marked = batch.layer(self.layer) >= 0
        return Units.single(batch, np.flatnonzero(batch.eligible & marked))


@dataclass(frozen=True)
class Weighted(CutPolicy):
    """Any score as a weight: a unit's weight is the mean of a layer over its tokens, to the power
    ``power``.

    Selects: ``token``, ``word``, or the runs of any layer, by weighted sampling without
        replacement. A power above 1 sharpens, 0 is even; weight 0 stays 0 and is masked only by
        ``fill="random"``.
    Guarantee: as for its units. Units are taken in an order drawn by weight; inclusion is not
        proportional to weight where the budget is large (no unit is taken twice). ``bernoulli``:
        probability min(1, ratio × weight), so weights should average 1.
    Cost: a logarithm and a slower sort; about twice the unweighted policy.
    Source: Efraimidis & Spirakis 2006 for the sampling; for the weights of ``informative`` Sadeq et
        al. 2022 (arXiv 2210.11771), of ``difference`` Wilf et al. 2023 (arXiv 2305.14577).
    """

    layer: str = "weight"
    units: str = "word"
    power: float = 1.0

    def layers(self) -> tuple[str, ...]:
        return (self.layer, *super().layers())

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        units = weigh(units_by(batch, self.units), batch.layer(self.layer, scores=True))
        if self.power == 1 or units.weight is None:
            return units
        weight = np.zeros_like(units.weight)  # 0 stays 0, whatever the power
        np.power(units.weight, self.power, out=weight, where=units.weight > 0)
        return units.weighted(weight)


def informative(units: str = "word", power: float = 1.0) -> Weighted:
    """Words that tell much of those around them, by the layer ``informativeness`` (InforMask)."""
    return Weighted("informativeness", units, power)


def difference(units: str = "word", power: float = 1.0) -> Weighted:
    """Words that set a corpus apart from a general one, by the layer ``difference``
    (Difference-Masking).
    """
    return Weighted("difference", units, power)


@dataclass(frozen=True)
class Frequency(CutPolicy):
    """Rare tokens more often (or less): a token weighs max(count, floor) to the power ``power``.

    A unit weighs the mean of its tokens. Counts come from ``counts`` (V,), a tensor, an array or a
    list over ids, or else from the layer ``frequency`` (the count of each token, as a column of the
    rows).

    Selects: units by weighted sampling without replacement; power −0.5 favours rare tokens, 0.5
        frequent ones.
    Guarantee: as for its units; ``bernoulli`` takes weights as they are, which for negative powers
        are small.
    Cost: a power a token, then as ``weighted``.
    Source: Zhang et al. 2023 (Weighted Sampling for Masked Language Modeling, arXiv 2302.14225).
    """

    power: float = -0.5
    units: str = "word"
    floor: float = 10.0
    counts: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.floor <= 0:
            raise MaskwiseError("floor of policy frequency", got=self.floor, allowed="above 0")
        if self.counts is not None:
            counts = read_numbers("counts", self.counts)
            if counts.ndim != 1:
                allowed = "one number per id"
                raise MaskwiseError("counts of policy frequency", got=counts.shape, allowed=allowed)
            check_weights(counts, "counts of policy frequency")
            object.__setattr__(self, "counts", counts)

    def layers(self) -> tuple[str, ...]:
        return (*(("frequency",) if self.counts is None else ()), *super().layers())

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        if self.counts is None:
            count_T = batch.layer("frequency", scores=True)
        else:
            largest = int(batch.input_ids.max(initial=-1))
            whole_number("the largest id", largest, most=len(self.counts) - 1)
            count_T = self.counts.take(batch.input_ids)
        weight_T = np.maximum(count_T.astype(np.float64), self.floor) ** self.power
        return weigh(units_by(batch, self.units), weight_T)


LAST = 1e-12
"""A weight that comes after all of weight 1, whatever the draw."""

_TAKE = re.compile(r"weights|spans|top-[1-9]\d*")


@dataclass(frozen=True)
class Learned(Policy):
    """What ``maskwise learn`` made: words by their weights, the best ``spans``, or one span a piece
    (``top-1``, …).

    Selects: ``weights``: words, by weighted sampling without replacement up to any budget,
        sharpened by ``power``. The share ``explore`` of each piece's budget is left to chance: the
        policy draws ⌈(1 − explore) × ratio × words⌉ of the words, and what then remains is spent on
        any others, where it would be the same few words in every text.
        ``spans``: the best spans of each window, weighted by their scores. ``top-N``: one span of
            each piece, drawn
        from its N best by score (1: always the best). Words outside of spans weigh 0: they are for
        ``fill="random"``.
    Guarantee: as for words; never half a span. ``top-N``: one span at most, if it fits the budget
        (``expected``: or by chance). A ratio of 1 lets every span fit, and then ``fill="none"``
        masks nothing else.
    Cost: that of ``weighted``; the scores were made once, with the corpus.
    Without a folder: the policy that a run of a study learns before it trains, as the recipe's
    ``learning`` says.
    Source: Ye et al. 2021 (arXiv 2104.08840), section 3. Theirs may draw from five spans that
        overlap; these do not.
    """

    folder: str = ""
    take: str = "weights"
    power: float = 1.0
    explore: float = 0.0

    def __post_init__(self) -> None:
        if not _TAKE.fullmatch(self.take):
            allowed = "weights, spans, top-1, top-5, …"
            raise MaskwiseError("policy learned: take", got=self.take, allowed=allowed)
        finite_number("explore of policy learned", self.explore, least=0, most=1)
        if (self.power != 1 or self.explore) and self.take != "weights":
            raise MaskwiseError("policy learned: power and explore need take=weights", got=self)

    @property
    def splits_budget(self) -> bool:
        return self.explore > 0

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.WORD if self.take == "weights" else UnitKind.LAYER

    @property
    def layer(self) -> str:
        """The layer of weights; a corpus may carry those of several policies."""
        return f"learned {self.folder}".rstrip()

    def layers(self) -> tuple[str, ...]:
        if self.take == "weights":
            return (self.layer, "word_ids")
        return (f"{self.layer}_span", f"{self.layer}_score", "word_ids")

    def annotators(self) -> tuple[str, ...]:
        return (str(Call("learned", (self.folder,), {"layer": self.layer})),)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        if self.take == "weights":
            units = Weighted(self.layer, "word", self.power).cut(batch, keys, moment)
            return self._split_budget(units, keys, moment) if self.explore else units
        marked = batch.layer(f"{self.layer}_span")
        score = batch.layer(f"{self.layer}_score", scores=True)
        units = runs(batch, marked_or_rest(marked, batch.layer("word_ids")))
        units = weigh(units, np.where(marked >= 0, score, 0.0))
        if self.take == "spans":
            return units
        # Draw one of the best units of each piece; it weighs 1, all others 0.
        assert units.weight is not None
        best = _first(units, -units.weight, int(self.take.removeprefix("top-")))
        race = _race(units, best, keys)
        winner = _first(units, race, 1)
        weight = np.zeros(len(race))
        weight[winner] = np.isfinite(race[winner])
        return units.weighted(weight)

    def _split_budget(self, units: Units, keys: Keys, moment: Moment) -> Units:
        """Put the policy's share of the budget, drawn by weight, before all other units."""
        assert moment.ratio is not None
        # 3.0000000000000004 words are three
        share_P = np.ceil((1 - self.explore) * moment.ratio * units.count - 1e-9)
        race = _race(units, np.arange(len(units.piece)), keys)
        drawn = first_within(units.piece, race, share_P.astype(np.int64)) & np.isfinite(race)
        return units.weighted(np.where(drawn, 1.0, LAST))


def _race(units: Units, among: Array, keys: Keys) -> Array:
    """(U,) arrival times in a weighted draw without replacement; weight 0 never arrives."""
    assert units.weight is not None
    race = np.full(len(units.weight), np.inf)
    among = among[units.weight[among] > 0]
    draw = keys.uniform(Purpose.ACCEPT, units.piece[among], units.number[among])
    race[among] = -np.log(draw) / units.weight[among]
    return race


def _first(units: Units, key: Array, count: int) -> Array:
    """The ``count`` units of each piece with the smallest keys; ties by their order."""
    order = np.lexsort((units.number, key, units.piece))
    return order[first_of(units.count, np.full(len(units.count), count))]
