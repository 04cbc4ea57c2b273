"""The corruption that replaces spans by sentinels."""

from __future__ import annotations

from dataclasses import dataclass

from maskwise.base.errors import MaskwiseError
from maskwise.masking.corruptions.base import (
    Edit,
    Masked,
    Moving,
    removed_text,
    whole_text,
)
from maskwise.masking.draws import Draws
from maskwise.masking.line import Line
from maskwise.masking.segments import rank_within
from maskwise.masking.select import Choice
from maskwise.masking.vocabulary import Vocabulary


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

    shows_mask = False
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
        # A sentinel takes the place of the first token of its run.
        edit = Edit(line, line.present & ~chosen | starts)
        inputs = edit(lead)
        eos = vocabulary.eos if self.eos else None
        if self.target == "full":
            return edit.shown(inputs, *whole_text(choice, eos))
        labels = removed_text(choice, starts, lead, sentinel.take(runs_P), eos)
        return edit.shown(inputs, *labels)
