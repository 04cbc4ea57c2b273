"""UL2's corruption: T5's sentinels, and before the text a token that tells the kind of denoising."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import Keys
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.corruptions.base import Corrupted
from maskwise.masking.corruptions.lengths import present, run_starts
from maskwise.masking.corruptions.t5 import T5
from maskwise.masking.units import Units
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

    def corrupt(
        self, batch: AnnotatedBatch, chosen: Tensor, units: Units, keys: Keys, vocabulary: Vocabulary
    ) -> Corrupted:
        shown = super().corrupt(batch, chosen, units, keys, vocabulary)
        names = torch.tensor([vocabulary.by_name[name] for name in self.modes], device=chosen.device)
        masked_B1 = chosen.any(1, keepdim=True)
        if not bool(masked_B1.any()):
            return shown
        # The mode goes where the text begins, behind special tokens in front of it; the rest moves by one.
        at = torch.arange(shown.input_ids.shape[1] + 1, device=chosen.device)
        front_B1 = ((batch.place < 0) & present(batch)).sum(1, keepdim=True).clamp_(max=len(at) - 1)
        source = at.expand(len(chosen), -1) - ((at > front_B1) & masked_B1).long()
        source = source.clamp_(max=len(at) - 2)
        assert shown.attention_mask is not None
        inside = at < shown.attention_mask.sum(1, keepdim=True) + masked_B1
        moved = {name: value.gather(1, source) for name, value in shown.extras.items()}
        ids = shown.input_ids.gather(1, source).masked_fill_(~inside, vocabulary.pad)
        mode = torch.where(masked_B1, names[mode_of(batch, chosen)].unsqueeze(1), ids.gather(1, front_B1))
        return replace(
            shown, input_ids=ids.scatter_(1, front_B1, mode), attention_mask=inside.long(), extras=moved
        )


def mode_of(batch: AnnotatedBatch, chosen: Tensor) -> Tensor:
    """(B,) int64: 0 for R, 1 for S, 2 for X."""
    runs, masked, text = run_starts(chosen).sum(1), chosen.sum(1), batch.content.sum(1)
    last = (chosen & (batch.place == text.unsqueeze(1) - 1)).any(1)
    extreme = (masked >= 12 * runs) | (masked >= 0.3 * text)
    return torch.where((runs == 1) & last, 1, torch.where(extreme, 2, 0))
