"""Policies whose units come from the text: tokens, words, or the runs of a layer.

Weights come from layers or counts. ``Learned`` reads the layers that ``learning.annotator`` makes
by running the model of a learned policy once over a corpus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from maskwise.errors import MaskwiseError, finite_number, require_known
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking.batch import AnnotatedBatch, Names
from maskwise.masking.policies.base import (
    CutPolicy,
    Moment,
    Policy,
    UnitKind,
    layer_of,
    units_by,
    weigh,
)
from maskwise.masking.units import Units, runs
from maskwise.segments import first_of, first_within
from maskwise.specs import Call


@dataclass(frozen=True)
class Token(Policy):
    """Random tokens, as in the first BERT: every eligible token is a unit.

    Selects: single tokens of equal weight.
    Guarantee: ``exact`` and ``expected`` both select exactly the budget; ``bernoulli`` selects each
        token independently.
    Cost: one key per token.
    Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1.
    """

    unit_kind = UnitKind.TOKEN
    reads_text = False

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        return Units.single(batch)


@dataclass(frozen=True)
class WholeWord(Policy):
    """Whole words: a unit is a run of tokens with the same number in the layer ``word_ids``.

    Selects: words of equal weight, whatever their number of tokens.
    Guarantee: never half a word, and never a word with an [UNK] token. ``exact``: at most the
        budget, which favours short words in short rows. ``expected``: the budget on average, with
        nearly equal probabilities.
    Cost: one pass to find the words; O(B·L), whereas the usual collator is O(B·L²).
    Source: the whole-word checkpoints of google-research/bert (May 2019).
    """

    unit_kind = UnitKind.WORD

    def layers(self) -> Names:
        return ("word_ids",)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        return runs(batch, batch.layer("word_ids"))


@dataclass(frozen=True)
class SpanLayer(Policy):
    """Marked spans: units are runs of equal numbers ≥ 0 in a layer, and words or tokens elsewhere.

    Selects: marked spans. At ``rest_weight=0`` the masker's ``fill`` decides about the other words
        or tokens: ``none`` (salient span masking as published), ``random`` (equal budgets),
        ``skip-row``. At 1 all units have the same weight (PMI phrases). With
        ``rest="none"`` the ratio is a share of the *marked* tokens alone (emlm: ``ratio=0.5,
        budget="bernoulli"``).
    Guarantee: never half a span. ``exact``: at most the budget, so a span longer than the budget is
        never selected (such as a sentence in a short row). ``expected`` selects such a span with
        probability budget / length; ``bernoulli`` selects each span independently.
    Cost: the same as for whole words.
    Source: Guu et al. 2020 (REALM, arXiv 2002.08909), section 3.4, for salient spans; Levine et al.
        2021 (PMI-Masking, arXiv 2010.01825) for phrases.
    """

    layer: str = "salient"
    rest: str = "word"
    rest_weight: float = 0.0

    unit_kind = UnitKind.LAYER

    def __post_init__(self) -> None:
        require_known("rest of policy span-layer", self.rest, ("word", "token", "none"))

    def layers(self) -> Names:
        if self.rest == "none":
            return (self.layer,)
        return (self.layer, *layer_of(self.rest))

    def judged_on(self) -> Names:
        """Add masks of the marked spans: if spans use the budget, the model learns nothing else."""
        return (*super().judged_on(), self.layer)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        marked = batch.layer(self.layer)
        if self.rest == "none":
            return runs(batch, marked)
        rest = np.arange(len(marked))
        if self.rest == "word":
            rest = batch.layer("word_ids")
        units = runs(batch, marked_or_rest(marked, rest))
        if self.rest_weight == 1:
            return units
        return weigh(units, np.where(marked >= 0, 1.0, self.rest_weight))


def marked_or_rest(marked: Array, rest: Array) -> Array:
    """(T,) ids of the marked spans and, outside the spans, ids of the rest; negative if no id."""
    # Even and odd numbers keep a span apart from a word of the same number next to it.
    return np.where(marked >= 0, marked * 2, rest * 2 + 1)


def salient(rest: str = "word") -> SpanLayer:
    """Mask salient spans (names, dates) from the layer ``salient``; ``fill`` decides on the rest.

    Source: Guu et al. 2020 (REALM, arXiv 2002.08909), section 3.4.
    """
    return SpanLayer("salient", rest)


def phrase(rest: str = "word") -> SpanLayer:
    """Mask phrases from the layer ``phrase`` and, with equal weight, other words (PMI-Masking).

    Source: Levine et al. 2021 (arXiv 2010.01825).
    """
    return SpanLayer("phrase", rest, 1.0)


def sentence() -> SpanLayer:
    """Mask whole sentences from the layer ``sentence``."""
    return SpanLayer("sentence", "none")


@dataclass(frozen=True)
class Guided(Policy):
    """Single tokens of marked spans.

    Selects: tokens of the spans of a layer, with equal weight; the ratio is a share of the *marked*
        tokens.
    Guarantee: as for single tokens. ``bernoulli`` at ``min_targets=0`` is emlm as published: each
        marked token is masked independently with probability 0.5, and nothing else is masked.
    Cost: the same as for single tokens.
    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1.
    """

    layer: str = "salient"

    unit_kind = UnitKind.TOKEN

    def layers(self) -> Names:
        return (self.layer,)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        marked = batch.layer(self.layer) >= 0
        return Units.single(batch, np.flatnonzero(batch.eligible & marked))


@dataclass(frozen=True)
class Weighted(CutPolicy):
    """Scores as weights: a unit's weight is the mean score of its tokens, raised to a power.

    Selects: tokens, words, or the runs of any layer, by weighted sampling without replacement. A
        power above 1 sharpens the weights, and 0 makes them equal; a weight of 0 stays 0, and only
        ``fill="random"`` selects such a unit.
    Guarantee: as for its units. Because no unit is drawn twice, the probability of inclusion is not
        proportional to the weight where the budget is large. ``bernoulli`` selects with probability
        min(1, ratio × weight), so weights should average 1.
    Cost: a logarithm and a slower sort; about twice the cost of the unweighted policy.
    Source: for the sampling, Efraimidis & Spirakis 2006; for the weights of ``informative``, Sadeq
        et al. 2022 (arXiv 2210.11771); for those of ``difference``, Wilf et al. 2023 (arXiv
        2305.14577).
    """

    layer: str = "weight"
    units: str = "word"
    power: float = 1.0

    def layers(self) -> Names:
        return (self.layer, *super().layers())

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        units = weigh(units_by(batch, self.units), batch.layer(self.layer, scores=True))
        if self.power == 1 or units.weight is None:
            return units
        # 0 to the power 0 would be 1, but weight 0 stays 0 whatever the power.
        weight = np.zeros_like(units.weight)
        np.power(
            units.weight,
            self.power,
            out=weight,
            where=units.weight > 0,
        )
        return units.weighted(weight)


def informative(units: str = "word", power: float = 1.0) -> Weighted:
    """Prefer words that predict their context, using the layer ``informativeness`` (InforMask).

    Source: Sadeq et al. 2022 (arXiv 2210.11771).
    """
    return Weighted("informativeness", units, power)


def difference(units: str = "word", power: float = 1.0) -> Weighted:
    """Prefer words typical of the corpus, using the layer ``difference`` (Difference-Masking).

    Source: Wilf et al. 2023 (arXiv 2305.14577).
    """
    return Weighted("difference", units, power)


@dataclass(frozen=True)
class Frequency(CutPolicy):
    """Rare or frequent tokens: a token has the weight max(count, floor) to the power ``power``.

    A unit has the mean weight of its tokens. The layer ``frequency`` holds the count of each token.

    Selects: units, by weighted sampling without replacement; power −0.5 favours rare tokens, and
        0.5 favours frequent tokens.
    Guarantee: as for its units. ``bernoulli`` does not rescale the weights, which are small for
        negative powers.
    Cost: one power per token; otherwise as for ``weighted``.
    Source: Zhang et al. 2023 (Weighted Sampling for Masked Language Modeling, arXiv 2302.14225).
    """

    power: float = -0.5
    units: str = "word"
    floor: float = 10.0

    def __post_init__(self) -> None:
        if self.floor <= 0:
            raise MaskwiseError(
                "floor of policy frequency is not valid", got=self.floor, allowed="above 0"
            )

    def layers(self) -> Names:
        return ("frequency", *super().layers())

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        count_T = batch.layer("frequency", scores=True)
        weight_T = np.maximum(count_T.astype(np.float64), self.floor) ** self.power
        return weigh(units_by(batch, self.units), weight_T)


LAST = 1e-12
"""This weight is so small that its units come after all units of weight 1, whatever is drawn."""

_TAKE = re.compile(r"weights|spans|top-[1-9]\d*")


@dataclass(frozen=True)
class Learned(Policy):
    """A policy made by ``maskwise learn``: it weights words or chooses spans.

    Without a folder, it is the policy that a study run learns before training, as described by the
    recipe's ``learning``.

    Selects: ``weights``: words, by weighted sampling without replacement up to any budget,
        sharpened by ``power``. With ``explore``, the policy draws only ⌈(1 − explore) × ratio ×
        words⌉ of the words; the rest of the budget goes to other words at random, so every word
        may be masked.
        ``spans``: the best spans of each window, weighted by their scores.
        ``top-N``: one span per piece, drawn by score from its N best spans (1: always the best).
        Words outside the spans have weight 0: only ``fill="random"`` selects them.
    Guarantee: as for words; never half a span. ``top-N``: at most one span, if the span fits the
        budget (with ``expected``, a longer span may be selected by chance). At a ratio of 1 every
        span fits, and then ``fill="none"`` masks nothing else.
    Cost: the same as for ``weighted``; the scores are computed once, with the corpus.
    Source: Ye et al. 2021 (arXiv 2104.08840), section 3. Their policy may draw from five spans that
        overlap; the spans here do not overlap.
    """

    folder: str = ""
    take: str = "weights"
    power: float = 1.0
    explore: float = 0.0

    def __post_init__(self) -> None:
        if not _TAKE.fullmatch(self.take):
            raise MaskwiseError(
                "take of policy learned is not valid",
                got=self.take,
                allowed="weights, spans, top-1, top-5, …",
            )
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
        """The layer of weights; its name has the folder, since a corpus may have several layers."""
        return f"learned {self.folder}".rstrip()

    def layers(self) -> Names:
        if self.take == "weights":
            return (self.layer, "word_ids")
        return (f"{self.layer}_span", f"{self.layer}_score", "word_ids")

    def annotators(self) -> Names:
        return (str(Call("learned", (self.folder,), {"layer": self.layer})),)

    def cut(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> Units:
        missing = [name for name in self.layers() if name not in batch.layers]
        if missing and missing != ["word_ids"]:
            call = f"maskwise.encode(tokenizer, texts, layers={[*self.annotators()]})"
            raise MaskwiseError(
                f"the layer {missing[0]!r} of policy learned is missing",
                got=f"layers {sorted(batch.layers)}",
                do=f"make the rows with {call}",
            )
        if self.take == "weights":
            units = Weighted(self.layer, "word", self.power).cut(batch, keys, moment)
            return self._split_budget(units, keys, moment) if self.explore else units
        marked = batch.layer(f"{self.layer}_span")
        score = batch.layer(f"{self.layer}_score", scores=True)
        spans_and_words = runs(batch, marked_or_rest(marked, batch.layer("word_ids")))
        units = weigh(spans_and_words, np.where(marked >= 0, score, 0.0))
        if self.take == "spans":
            return units
        # Draw one of the best units of each piece; this unit gets weight 1, all other units 0.
        assert units.weight is not None
        best = _first(units, -units.weight, int(self.take.removeprefix("top-")))
        race = _race(units, best, keys)
        winner = _first(units, race, 1)
        weight = np.zeros(len(race))
        weight[winner] = np.isfinite(race[winner])
        return units.weighted(weight)

    def _split_budget(self, units: Units, keys: Keys, moment: Moment) -> Units:
        """Draw a share of the budget by weight, and put the drawn units first."""
        assert moment.ratio is not None
        # The tolerance keeps a rounding error from adding a word: 3.0000000000000004 is three.
        share_P = np.ceil((1 - self.explore) * moment.ratio * units.count - 1e-9)
        race = _race(units, np.arange(len(units.piece)), keys)
        drawn = first_within(units.piece, race, share_P.astype(np.int64))
        # Units of weight 0 arrive at infinity, but in a short piece may still be among the first.
        drawn &= np.isfinite(race)
        return units.weighted(np.where(drawn, 1.0, LAST))


def _race(units: Units, among: Array, keys: Keys) -> Array:
    """(U,) arrival times in a weighted draw without replacement; infinite for weight 0."""
    assert units.weight is not None
    race = np.full(len(units.weight), np.inf)
    among = among[units.weight[among] > 0]
    draw = keys.uniform(Purpose.ACCEPT, units.piece[among], units.number[among])
    race[among] = -np.log(draw) / units.weight[among]
    return race


def _first(units: Units, key: Array, count: int) -> Array:
    """The ``count`` units of each piece with the smallest keys; the first in the text on a tie."""
    order = np.lexsort((units.number, key, units.piece))
    return order[first_of(units.count, np.full(len(units.count), count))]
