"""UL2's corruption: T5's sentinels, and before the text a token that tells the kind of denoising."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwise.arrays import last_true, numbers, raw, tensor, where
from maskwise.errors import MaskwiseError
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.corruptions.lengths import run_starts
from maskwise.masking.corruptions.t5 import T5
from maskwise.masking.vocabulary import Vocabulary


@dataclass(frozen=True)
class Ul2(T5):
    """A mode token before the text of each masked row; the rest as ``t5``. Use it with the policy ``ul2``.

    The mode is read from the mask itself, so that it is true for any policy: S where the one masked span ends
    the text; else X (extreme) where spans are at least 12 tokens long on average or at least 30 % of the text
    is masked, the paper's own definition; else R (regular). A row where nothing was chosen gets none.

    Targets: as ``t5``.
    Source: Tay et al. 2023 (UL2, arXiv 2205.05131), sections 3.1.2 and 3.1.3.
    """

    modes: tuple[str, str, str] = ("[R]", "[S]", "[X]")

    def check(self, vocabulary: Vocabulary) -> None:
        super().check(vocabulary)
        missing = [name for name in self.modes if name not in vocabulary.by_name]
        if missing or len(self.modes) != 3:
            added = "{'additional_special_tokens': ['[R]', '[S]', '[X]']}"
            raise MaskwiseError(
                "corruption ul2 needs three mode tokens that the tokenizer knows",
                got=f"{self.modes}, missing {missing}",
                do=f"tokenizer.add_special_tokens({added}), beside the sentinels, or name its own: "
                "modes=('[NLU]', '[S2S]', '[NLG]')",
            )

    def mode(self, batch: AnnotatedBatch, chosen: Tensor, vocabulary: Vocabulary) -> Tensor:
        names = torch.tensor([vocabulary.by_name[name] for name in self.modes], device=chosen.device)
        return names[mode_of(batch, chosen)]


def mode_of(batch: AnnotatedBatch, chosen: Tensor) -> Tensor:
    """(B,) int64: 0 for R, 1 for S, 2 for X."""
    shown, content = raw(chosen), raw(batch.content)
    if not shown.shape[1]:
        return chosen.sum(1)
    runs_B, masked_B, text_B = raw(run_starts(chosen)).sum(1), shown.sum(1), content.sum(1)
    last_B = shown[numbers(len(shown), shown), last_true(content)]
    extreme_B = (masked_B >= 12 * runs_B) | (masked_B >= 0.3 * text_B)
    return tensor(where((runs_B == 1) & last_B, 1, extreme_B * 2))
