"""Policies that read units from the text: tokens, words, or the runs of a layer.

A unit is a group of tokens that are masked together. A layer has one number per token, such as the
number of the token's word, or a weight. Weights come from layers or from token counts.
``LearnedPolicy`` reads layers that were written by the annotator in ``learning.annotator``, which
runs the model of a learned policy over a corpus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from maskwise.base.errors import MaskwiseError, finite_number, require_known
from maskwise.base.specs import Call
from maskwise.masking.draws import Array, Draws, Purpose
from maskwise.masking.line import Line, Names
from maskwise.masking.policies.base import (
    CutPolicy,
    Policy,
    UnitKind,
    When,
    layer_of,
    units_by,
    weigh,
)
from maskwise.masking.segments import first_members, first_within
from maskwise.masking.units import Units, runs


@dataclass(frozen=True)
class Token(Policy):
    """Single random tokens, as in the first BERT.

    Selects: single tokens of equal weight.
    Guarantee: with the budgets ``exact`` and ``expected``, exactly the budget is selected. With
        ``bernoulli``, each token is selected independently.
    Cost: one random number per token.
    Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1.
    """

    unit_kind = UnitKind.TOKEN
    has_zero_weights = False
    reads_text = False

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        return Units.single(line)


@dataclass(frozen=True)
class WholeWord(Policy):
    """Whole words: tokens with the same number in the layer ``word_ids`` are masked together.

    Selects: words of equal weight, whatever their number of tokens.
    Guarantee: words stay whole, and words with an [UNK] token stay visible. ``exact`` never exceeds
        the budget. Therefore it favours short words in short rows. ``expected`` meets the budget on
        average and selects all words with nearly equal probability.
    Cost: one pass to find the words, O(B·L). The collator of transformers needs O(B·L²).
    Source: the whole-word checkpoints of google-research/bert (2019).
    """

    unit_kind = UnitKind.WORD
    has_zero_weights = False

    def layers(self) -> Names:
        return ("word_ids",)

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        return runs(line, line.layer("word_ids"))


@dataclass(frozen=True)
class SpanLayer(Policy):
    """Marked spans: runs of equal numbers ≥ 0 in a layer. Other words or tokens are units too.

    Selects: marked spans, and other words or tokens (``rest``) with the weight ``rest_weight``.
        With ``rest_weight=0``, other words are masked only if the masker has ``fill="random"``; the
        published salient span masking has ``fill="none"``. With ``rest_weight=1``, all units have
        the same weight (PMI-Masking). With ``rest="none"``, only marked spans are units, and the
        ratio is a share of the *marked* tokens (entity masking as published: ``ratio=0.5,
        budget="bernoulli"``).
    Guarantee: spans stay whole. ``exact`` never exceeds the budget. Therefore it never selects a
        span longer than the budget, such as a sentence in a short row. ``expected`` selects such a
        span with probability budget / length. ``bernoulli`` selects each span independently.
    Cost: the same as for ``whole-word``.
    Source: Guu et al. 2020 (REALM, arXiv 2002.08909), section 3.4, for salient spans; Levine et al.
        2021 (PMI-Masking, arXiv 2010.01825) for phrases.
    """

    layer: str = "salient"
    rest: str = "word"
    rest_weight: float = 0.0

    unit_kind = UnitKind.LAYER
    scales_ratio = True

    def __post_init__(self) -> None:
        require_known("value of rest in policy span-layer", self.rest, ("word", "token", "none"))
        finite_number("argument rest_weight of policy span-layer", self.rest_weight, least=0)

    def layers(self) -> Names:
        if self.rest == "none":
            return (self.layer,)
        return (self.layer, *layer_of(self.rest))

    @property
    def has_zero_weights(self) -> bool:
        return self.rest != "none" and self.rest_weight == 0

    def judged_on(self) -> Names:
        """Add masks of the marked spans, because the model may have learned from them only."""
        return (*super().judged_on(), self.layer)

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        marked = line.layer(self.layer)
        if self.rest == "none":
            return runs(line, marked)
        rest = np.arange(len(marked))
        if self.rest == "word":
            rest = line.layer("word_ids")
        units = runs(line, marked_or_rest(marked, rest))
        if self.rest_weight == 1:
            return units
        return weigh(units, np.where(marked >= 0, 1.0, self.rest_weight))


def marked_or_rest(marked: Array, rest: Array) -> Array:
    """(T,) int64: an id for each marked span and, outside spans, an id for each unit of ``rest``.

    Tokens in neither of them have a negative id.
    """
    # Spans get even ids and other units odd ids, so a span never merges with the word beside it.
    return np.where(marked >= 0, marked * 2, rest * 2 + 1)


def salient(rest: str = "word") -> SpanLayer:
    """Mask salient spans (names, dates) from the layer ``salient``.

    With ``fill="random"``, other words (``rest="word"``) or tokens (``rest="token"``) are masked
    too if a text has too few salient spans.

    Source: Guu et al. 2020 (REALM, arXiv 2002.08909), section 3.4.
    """
    return SpanLayer("salient", rest)


def phrase(rest: str = "word") -> SpanLayer:
    """Mask phrases from the layer ``phrase``, and other words with equal weight (PMI-Masking).

    Source: Levine et al. 2021 (arXiv 2010.01825).
    """
    return SpanLayer("phrase", rest, 1.0)


def sentence() -> SpanLayer:
    """Mask whole sentences from the layer ``sentence``."""
    return SpanLayer("sentence", "none")


@dataclass(frozen=True)
class Guided(Policy):
    """Single tokens inside marked spans.

    Selects: tokens of the spans of a layer, with equal weight. The ratio is a share of the *marked*
        tokens.
    Guarantee: the same as for ``token``. With ``budget="bernoulli"``, ``ratio=0.5`` and
        ``min_targets=0``, this is entity masking (objective ``emlm``) as published: each marked
        token is masked independently with probability 0.5, and no other token is masked.
    Cost: the same as for ``token``.
    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1.
    """

    layer: str = "salient"

    unit_kind = UnitKind.TOKEN
    has_zero_weights = False

    def layers(self) -> Names:
        return (self.layer,)

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        marked = line.layer(self.layer) >= 0
        return Units.single(line, np.flatnonzero(line.eligible & marked))


@dataclass(frozen=True)
class Weighted(CutPolicy):
    """Words (or other units) with a higher score in a layer are masked more often.

    Selects: tokens, words, or the runs of a layer, by weighted sampling without replacement. The
        weight of a unit is the mean score of its tokens, raised to a power. A power above 1 makes
        the weights more different, and a power of 0 makes all positive weights equal. Units of
        weight 0 are selected only with ``fill="random"``.
    Guarantee: units stay whole. The probability that a unit is selected grows with its weight, but
        is proportional to the weight only with a small budget, because no unit is drawn twice. With
        ``bernoulli``, the probability is min(1, ratio × weight), so the mean weight should be 1;
        the masker warns if it is not.
    Cost: about twice the cost of the unweighted policy, for a logarithm and a slower sort.
    Source: Efraimidis & Spirakis 2006 (sampling); Sadeq et al. 2022 (arXiv 2210.11771; weights of
        ``informative``); Wilf et al. 2023 (arXiv 2305.14577; weights of ``difference``).
    """

    layer: str = "weight"
    units: str = "word"
    power: float = 1.0

    def __post_init__(self) -> None:
        finite_number("argument power of policy weighted", self.power)

    def layers(self) -> Names:
        return (self.layer, *super().layers())

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        units = weigh(units_by(line, self.units), line.layer(self.layer, scores=True))
        if self.power == 1 or units.weight is None:
            return units
        # Weights of 0 stay 0. ``np.power`` would turn them into 1 if the power is 0, and into
        # infinity if the power is negative.
        weight = np.zeros_like(units.weight)
        np.power(
            units.weight,
            self.power,
            out=weight,
            where=units.weight > 0,
        )
        return units.weighted(weight)


def informative(units: str = "word", power: float = 1.0) -> Weighted:
    """Prefer words that predict their context (InforMask), by the layer ``informativeness``.

    Source: Sadeq et al. 2022 (arXiv 2210.11771).
    """
    return Weighted("informativeness", units, power)


def difference(units: str = "word", power: float = 1.0) -> Weighted:
    """Prefer words that are typical of the corpus (Difference-Masking), by the layer
    ``difference``.

    Source: Wilf et al. 2023 (arXiv 2305.14577).
    """
    return Weighted("difference", units, power)


@dataclass(frozen=True)
class Frequency(CutPolicy):
    """Rare words are masked more often; with a positive power, frequent words are.

    A token has the weight max(count, floor) ** power. The layer ``frequency`` contains the count of
    each token in the corpus. A unit has the mean weight of its tokens.

    Selects: units, by weighted sampling without replacement. A power of −0.5 favours rare tokens,
        and a power of 0.5 favours frequent tokens.
    Guarantee: units stay whole. With ``bernoulli`` and a negative power, few tokens are masked,
        because the weights are small and are not rescaled.
    Cost: the cost of ``weighted``, plus one power per token.
    Source: Zhang et al. 2023 (Weighted Sampling for Masked Language Modeling, arXiv 2302.14225).
    """

    power: float = -0.5
    units: str = "word"
    floor: float = 10.0

    has_zero_weights = False
    scales_ratio = True

    def __post_init__(self) -> None:
        finite_number("argument power of policy frequency", self.power)
        finite_number("argument floor of policy frequency", self.floor)
        if self.floor <= 0:
            raise MaskwiseError(
                "argument floor of policy frequency is not valid", got=self.floor, allowed="above 0"
            )

    def layers(self) -> Names:
        return ("frequency", *super().layers())

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        count_T = line.layer("frequency", scores=True)
        weight_T = np.maximum(count_T.astype(np.float64), self.floor) ** self.power
        return weigh(units_by(line, self.units), weight_T)


LAST = 1e-12
"""A weight so small that units of this weight are selected after all units of weight 1."""

_TAKE = re.compile(r"weights|spans|top-[1-9]\d*")


@dataclass(frozen=True)
class LearnedPolicy(Policy):
    """A policy learned by ``maskwise learn``: a model that weights words or chooses spans.

    ``folder`` contains the learned policy. If ``folder`` is empty, a study learns the policy before
    training, with the settings ``learning`` of the recipe.

    Selects: with ``take="weights"``, words, by weighted sampling without replacement. Weights are
        raised to ``power``. With ``explore``, only ⌈(1 − explore) × ratio × words⌉ words are drawn
        by weight, and the rest of the budget is used for other words at random, so that every word
        may be masked.
        With ``take="spans"``, the best spans of each window of text, weighted by their scores.
        With ``take="top-N"``, one span per piece, drawn by score from the N best spans of the
        piece. With both kinds of spans, words outside spans are masked only with ``fill="random"``.
    Guarantee: words and spans stay whole. ``top-N`` selects at most one span. With ``exact``, a
        span longer than the budget is not selected; with ``expected`` it may be. With a ratio of 1,
        every span fits into the budget, and with ``fill="none"`` no other token is masked.
    Cost: the same as for ``weighted``. Scores are computed once and stored with the corpus.
    Source: Ye et al. 2021 (arXiv 2104.08840), section 3. Their five best spans may overlap, but the
        spans here do not overlap.
    """

    folder: str = ""
    take: str = "weights"
    power: float = 1.0
    explore: float = 0.0

    scales_ratio = True

    def __post_init__(self) -> None:
        if not _TAKE.fullmatch(self.take):
            raise MaskwiseError(
                "argument take of policy learned is not valid",
                got=self.take,
                allowed="weights, spans, or top-N with a number N, such as top-5",
            )
        finite_number("power of policy learned", self.power)
        finite_number("explore of policy learned", self.explore, least=0, most=1)
        if (self.power != 1 or self.explore) and self.take != "weights":
            raise MaskwiseError("policy learned: power and explore need take=weights", got=self)

    @property
    def splits_budget(self) -> bool:
        return self.explore > 0

    @property
    def unlearned(self) -> bool:
        return not self.folder

    @property
    def unit_kind(self) -> UnitKind:
        return UnitKind.WORD if self.take == "weights" else UnitKind.LAYER

    @property
    def layer(self) -> str:
        """The name of the layer of weights.

        The name contains the folder, because a corpus may have layers of several learned policies.
        """
        return f"learned {self.folder}".rstrip()

    def layers(self) -> Names:
        if self.take == "weights":
            return (self.layer, "word_ids")
        return (f"{self.layer}_span", f"{self.layer}_score", "word_ids")

    def annotators(self) -> Names:
        return (str(Call("learned", (self.folder,), {"layer": self.layer})),)

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        missing = [name for name in self.layers() if name not in line.layers]
        if missing and missing != ["word_ids"]:
            call = f"maskwise.encode(tokenizer, texts, layers={[*self.annotators()]})"
            raise MaskwiseError(
                f"the layer {missing[0]!r} of policy learned is missing",
                got=f"layers {sorted(line.layers)}",
                do=f"make the rows with {call}",
            )
        if self.take == "weights":
            units = Weighted(self.layer, "word", self.power).cut(line, draws, when)
            return self._split_budget(units, draws, when) if self.explore else units
        marked = line.layer(f"{self.layer}_span")
        score = line.layer(f"{self.layer}_score", scores=True)
        spans_and_words = runs(line, marked_or_rest(marked, line.layer("word_ids")))
        units = weigh(spans_and_words, np.where(marked >= 0, score, 0.0))
        if self.take == "spans":
            return units
        # Draw one of the N best units of each piece. The drawn unit gets the weight 1, and all
        # other units of the piece get 0.
        assert units.weight is not None
        best = _first(units, -units.weight, int(self.take.removeprefix("top-")))
        race = _race(units, best, draws)
        winner = _first(units, race, 1)
        weight = np.zeros(len(race))
        weight[winner] = np.isfinite(race[winner])
        return units.weighted(weight)

    def _split_budget(self, units: Units, draws: Draws, when: When) -> Units:
        """Draw units for a share of the budget by weight. The drawn units are selected first."""
        assert when.ratio is not None
        # The tolerance prevents a rounding error from adding a word: 3.0000000000000004 is three.
        share_P = np.ceil((1 - self.explore) * when.ratio * units.count - 1e-9)
        race = _race(units, np.arange(len(units.piece)), draws)
        drawn = first_within(units.piece, race, share_P.astype(np.int64))
        # In a piece with few units of positive weight, units of weight 0 were drawn too.
        drawn &= np.isfinite(race)
        return units.weighted(np.where(drawn, 1.0, LAST))


def _race(units: Units, among: Array, draws: Draws) -> Array:
    """(U,) float64: sort keys for a weighted draw without replacement, the smallest key first.

    Units that are not in ``among``, (N,) indices of units, and units of weight 0 have an infinite
    key.
    """
    assert units.weight is not None
    race = np.full(len(units.weight), np.inf)
    among = among[units.weight[among] > 0]
    draw = draws.uniform(Purpose.ACCEPT, units.piece[among], units.number[among])
    race[among] = -np.log(draw) / units.weight[among]
    return race


def _first(units: Units, key: Array, count: int) -> Array:
    """Return the indices of the ``count`` units with the smallest keys in each piece.

    Of units with equal keys, those with the smaller numbers come first.
    """
    order = np.lexsort((units.number, key, units.piece))
    return order[first_members(units.count, np.full(len(units.count), count))]
