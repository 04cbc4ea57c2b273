"""T5's sentinels: each chosen span becomes a sentinel, and the target says what each stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwise.arrays import numbers, places, raw, tensor, where
from maskwise.errors import MaskwiseError
from maskwise.keys import Keys
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.corruptions.base import Corrupted, Corruption, require_target
from maskwise.masking.corruptions.lengths import (
    Compaction,
    carried,
    present,
    removed_text,
    run_starts,
    whole_text,
)  # fmt: skip
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Vocabulary


@dataclass(frozen=True)
class T5(Corruption):
    """The k-th run of chosen tokens becomes the k-th sentinel; touching spans are one run.

        inputs:  Thank you <extra_id_0> me to your party <extra_id_1> week.
        targets: <extra_id_0> for inviting <extra_id_1> last <extra_id_2>

    Targets: ``spans``: as above, then [eos] where the tokenizer has one and ``eos`` is True; ``full``: the
        whole row.
    Source: Raffel et al. 2020 (T5, arXiv 1910.10683), figure 2 and section 3.1.4.

    Raises:
        MaskwiseError: a row with more spans than the tokenizer has sentinels (the last one only closes the
            target).
    """

    target: str = "spans"
    eos: bool = True

    def __post_init__(self) -> None:
        require_target("t5", self.target, "spans", "full")

    @property
    def keeps_length(self) -> bool:
        return False

    def check(self, vocabulary: Vocabulary) -> None:
        if not vocabulary.sentinels:
            added = "{'additional_special_tokens': [f'<extra_id_{i}>' for i in range(100)]}"
            raise MaskwiseError(
                "the tokenizer has no sentinel tokens",
                allowed="tokens named <extra_id_0>, <extra_id_1>, …",
                do=f"use a T5 tokenizer, or tokenizer.add_special_tokens({added})",
            )

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Tensor, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        starts = run_starts(chosen)
        at, sentinel = places(raw(starts)), raw(vocabulary.sentinel)
        row, runs_B = at // max(chosen.shape[1], 1), raw(starts).sum(1)
        if len(runs_B) and int(runs_B.max()) >= len(sentinel):
            raise MaskwiseError(
                "a row has more masked spans than the tokenizer has sentinels",
                got=int(runs_B.max()),
                allowed=f"at most {len(sentinel) - 1}",
                do="use longer spans (policy t5-span), a lower ratio or shorter rows",
            )
        lead = sentinel.take(numbers(len(at), at) - (runs_B.cumsum(0) - runs_B).take(row))
        shown = batch.input_ids.clone()
        raw(shown.view(-1))[at] = lead
        mode_B = self.mode(batch, chosen, vocabulary)
        here, gap_B = raw(present(batch)), None
        if mode_B is not None:  # where the text begins, behind special tokens in front of it
            front = numbers(chosen.shape[1], at) < raw(batch.first)[:, None]
            gap_B = where(runs_B > 0, (front & here).sum(1), -1)
        move = Compaction(tensor(here & ~raw(chosen) | raw(starts)), gap_B)
        ids = move(shown, vocabulary.pad)
        if mode_B is not None and gap_B is not None:
            masked = places(runs_B > 0)
            raw(ids)[masked, gap_B.take(masked)] = raw(mode_B).take(masked)
        eos = vocabulary.eos if self.eos else None
        if self.target == "full":
            labels = whole_text(batch, chosen, eos)
        else:
            tail = [tensor(sentinel.take(runs_B)).unsqueeze(1)]
            tail += [] if eos is None else [torch.full_like(tail[0], eos)]
            labels = removed_text(batch.input_ids, chosen, starts, tensor(lead), tail)
        return Corrupted(ids, labels, move.attention_mask, carried(batch, move))

    def mode(self, batch: AnnotatedBatch, chosen: Tensor, vocabulary: Vocabulary) -> Tensor | None:
        """(B,) ids that go before the text of rows where something was chosen; None for nothing."""
        return None
