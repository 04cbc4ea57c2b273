"""Corruptions that replace spans by sentinels: ``t5`` and ``ul2``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskwise.draws import Array, Draws
from maskwise.errors import MaskwiseError
from maskwise.masking.corruptions.base import (
    Edit,
    Masked,
    Moving,
    last_content,
    removed_text,
    whole_text,
)
from maskwise.masking.line import Line
from maskwise.masking.select import Choice
from maskwise.masking.vocabulary import Vocabulary
from maskwise.segments import rank_within


@dataclass(frozen=True)
class T5(Moving):
    """Replace the k-th run of selected tokens by the k-th sentinel. Adjacent spans form one run.

        inputs:  Thank you <extra_id_0> me to your party <extra_id_1> week.
        targets: <extra_id_0> for inviting <extra_id_1> last <extra_id_2>

    Each piece of a packed row begins with the first sentinel.

    Targets: with ``spans``, each sentinel and the tokens that it replaced, a last sentinel, and the
        end-of-sequence token if ``eos`` is True and the tokenizer has this token. With ``full``,
        the whole piece.
    Source: Raffel et al. 2020 (T5, arXiv 1910.10683), figure 2 and section 3.1.4.

    Raises:
        MaskwiseError: a piece has too many spans for the tokenizer's sentinels. A tokenizer with n
            sentinels allows n − 1 spans, because the target ends with one more sentinel.
    """

    target: str = "spans"
    eos: bool = True

    targets = ("spans", "full")

    @property
    def writes(self) -> str | None:
        return "sentinels" if self.target == "spans" else "full"

    def check(self, vocabulary: Vocabulary) -> None:
        if not vocabulary.sentinels:
            added = "{'additional_special_tokens': [f'<extra_id_{i}>' for i in range(100)]}"
            raise MaskwiseError(
                "the tokenizer has no sentinel tokens",
                allowed="tokens named <extra_id_0>, <extra_id_1>, …",
                do=f"use a T5 tokenizer, or tokenizer.add_special_tokens({added})",
            )

    def corrupt(self, line: Line, choice: Choice, draws: Draws, vocabulary: Vocabulary) -> Masked:
        chosen = choice.tokens
        sentinel = vocabulary.sentinel
        starts = choice.starts
        runs_P = line.count(starts)
        if runs_P.max(initial=0) >= len(sentinel):
            raise MaskwiseError(
                "a text has more masked spans than the tokenizer has sentinels",
                got=int(runs_P.max()),
                allowed=f"at most {len(sentinel) - 1}",
                do="use longer spans (policy t5-span), a lower ratio or shorter texts",
            )
        lead = line.input_ids.copy()
        lead[starts] = sentinel.take(rank_within(runs_P))
        # A sentinel takes the place of the first token of its run, so it is not inserted. Only mode
        # tokens are inserted.
        stay = line.present & ~chosen | starts
        mode_P = self._modes(choice, vocabulary)
        if mode_P is None:
            edit = Edit(line, stay)
            inputs = edit(lead)
        else:
            opens = np.zeros(len(stay), bool)
            opens[line.first[runs_P > 0]] = True
            edit = Edit(line, stay, opens)
            inputs = edit(lead, mode_P.take(line.piece))
        eos = vocabulary.eos if self.eos else None
        if self.target == "full":
            return edit.shown(inputs, *whole_text(choice, eos))
        labels = removed_text(choice, starts, lead, sentinel.take(runs_P), eos)
        return edit.shown(inputs, *labels)

    def _modes(self, choice: Choice, vocabulary: Vocabulary) -> Array | None:
        """(P,) int64: ids to insert before the text of masked pieces; None to insert nothing."""
        return None


@dataclass(frozen=True)
class Ul2(T5):
    """Corrupt as ``t5``, and insert a mode token before each masked text (UL2).

    The mode token tells the model how the piece was masked. The mode is computed from the mask, so
    any masking policy may be used. The mode is S (sequential) if the only masked span is at the end
    of the text. Otherwise the mode is X (extreme) if spans have at least 12 tokens on average or if
    at least 30 % of the text is masked, as in the paper. Otherwise the mode is R (regular). A piece
    without selected tokens gets no mode token.

    Targets: the same as for ``t5``.
    Source: Tay et al. 2023 (UL2, arXiv 2205.05131), sections 3.1.2 and 3.1.3.
    """

    modes: tuple[str, str, str] = ("[R]", "[S]", "[X]")

    def check(self, vocabulary: Vocabulary) -> None:
        super().check(vocabulary)
        missing = set(self.modes) - vocabulary.by_name.keys()
        if missing or len(self.modes) != 3:
            added = "{'additional_special_tokens': ['[R]', '[S]', '[X]']}"
            raise MaskwiseError(
                "corruption ul2 needs three mode tokens that the tokenizer knows",
                got=f"{self.modes}, missing {sorted(missing)}",
                do=f"call tokenizer.add_special_tokens({added}), or name three tokens of the "
                "tokenizer: modes=('[NLU]', '[S2S]', '[NLG]')",
            )

    def _modes(self, choice: Choice, vocabulary: Vocabulary) -> Array:
        modes = np.array([*map(vocabulary.by_name.get, self.modes)])
        return modes.take(mode_of(choice))


def mode_of(choice: Choice) -> Array:
    """(P,) int64: the UL2 mode of each piece: 0 for R, 1 for S, 2 for X."""
    line = choice.line
    runs_P = line.count(choice.starts)
    masked_P = line.count(choice.tokens)
    last_P = np.append(choice.tokens, False)[last_content(line)]
    extreme_P = (masked_P >= 12 * runs_P) | (masked_P >= 0.3 * line.count(line.content))
    return np.where((runs_P == 1) & last_P, 1, extreme_P * 2)
