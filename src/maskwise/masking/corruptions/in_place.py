"""Corruptions that replace tokens and move none: ``bert``, ``mask-only`` and ``replace``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskwise.base.errors import MaskwiseError, finite_number, require_known
from maskwise.masking.batch import IGNORE
from maskwise.masking.corruptions.base import Corruption, Masked, labels_in_place
from maskwise.masking.draws import Draws, Purpose, below, in_lowest_share, index_within
from maskwise.masking.line import Line
from maskwise.masking.select import Choice
from maskwise.masking.vocabulary import Vocabulary


@dataclass(frozen=True)
class Bert(Corruption):
    """Replace a share ``mask`` of the selected tokens by [MASK] and a share ``random`` by a random
    token. Other selected tokens are unchanged.

    All selected tokens are targets. Whether a token is masked, replaced or unchanged is decided for
    each token independently, or with ``per="unit"`` for all tokens of a unit together (SpanBERT).
    Random tokens are drawn uniformly from the ordinary tokens of the tokenizer.

    Source: Devlin et al. 2019, section 3.1; per unit: Joshi et al. 2020 (SpanBERT), section 3.1.
    """

    mask: float = 0.8
    random: float = 0.1
    per: str = "token"

    def __post_init__(self) -> None:
        finite_number("argument mask of corruption bert", self.mask)
        finite_number("argument random of corruption bert", self.random)
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1 + 1e-9:
            raise MaskwiseError(
                "corruption bert: shares must be ≥ 0 and sum to at most 1",
                got=(self.mask, self.random),
            )
        require_known("value of per in corruption bert", self.per, ("token", "unit"))

    def corrupt(self, line: Line, choice: Choice, draws: Draws, vocabulary: Vocabulary) -> Masked:
        at = np.flatnonzero(choice.tokens)
        original = line.input_ids[at]
        units = choice.units
        by_unit = self.per == "unit" and not units.by_token
        if by_unit:
            number_T = np.zeros_like(line.input_ids)
            number_T[units.tokens] = units.number[units.unit]
            draw = draws.draw_each(Purpose.SHOW, line.count_at(at), number_T[at])
        else:
            draw = line.draw(draws, Purpose.SHOW, at)
        labels = np.full_like(line.input_ids, IGNORE)
        labels[at] = original
        input_ids = line.input_ids.copy()
        input_ids[at] = vocabulary.require_mask()
        # First mask all selected tokens, then restore or replace the few others.
        other = np.flatnonzero(~in_lowest_share(draw, self.mask))
        shown = original[other]
        if self.random:
            draw = draw[other]
            low = self.mask
            high = low + self.random
            random = np.flatnonzero(in_lowest_share(draw, high))
            ordinary = vocabulary.ordinary
            if by_unit:
                # All tokens of a unit have the same draw, but each needs its own random token.
                again = line.draw(draws, Purpose.REPLACE, at[other[random]])
                number = below(again, len(ordinary))
            else:
                # Between ``low`` and ``high`` the draw is uniform, so it also selects the token.
                number = index_within(draw[random], low, high, len(ordinary))
            shown[random] = ordinary[number]
        input_ids[at[other]] = shown
        return Masked(input_ids, labels)


def mask_only() -> Bert:
    """Replace every selected token by [MASK].

    Source: Wettig et al. 2023, who found that [MASK] alone with a ratio of 40 % was better than
    BERT's mix (80 % [MASK], 10 % random, 10 % unchanged) with a ratio of 15 %.
    """
    return Bert(mask=1.0, random=0.0)


@dataclass(frozen=True)
class Replace(Corruption):
    """Replace every selected token by a different random ordinary token.

    The tokenizer needs no mask token.

    Targets: with ``spans``, the original tokens at the selected positions. With ``full``, the whole
        piece. With ``detect``, 1 at replaced tokens and 0 at other tokens of the text
        (replaced-token detection without a generator).
    Source: BERT, which replaces 10 % of the selected tokens in this way; Clark et al. 2020
        (ELECTRA) for detection.
    """

    target: str = "spans"

    shows_mask = False
    targets = ("spans", "full", "detect")

    def corrupt(self, line: Line, choice: Choice, draws: Draws, vocabulary: Vocabulary) -> Masked:
        at = np.flatnonzero(choice.tokens)
        original = line.input_ids[at]
        ordinary = vocabulary.ordinary
        # The original token must not be drawn, so add one to all numbers from its index on.
        draw = line.draw(draws, Purpose.REPLACE, at)
        number = below(draw, max(1, len(ordinary) - 1))
        number += number >= np.searchsorted(ordinary, original)
        input_ids = line.input_ids.copy()
        input_ids[at] = ordinary.take(number, mode="clip")
        return Masked(input_ids, labels_in_place(choice, self.target))
