"""Predicting only some of what was corrupted: the mask follows one schedule, the loss another.

The ablation of Ankner et al. 2023 (arXiv 2305.15096, section 4): corrupt at p(t), take the loss on a share of
the row that does not change. Whoever is kept is settled by keys of its own, so the mask itself is the same
with or without.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskwise.arrays import raw, sort_rows, tensor
from maskwise.keys import Keys, Purpose, unit_interval
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.masked import IGNORE


def predict_some(labels: Tensor, chosen: Tensor, batch: AnnotatedBatch, share: float, keys: Keys) -> Tensor:
    """Labels (B, L) with −100 but at a random ``share`` of each row's *eligible* tokens, all of them ``chosen``.

    Rows with fewer labels than that keep all of them; a row with a label keeps at least one while share > 0.
    """
    candidate = (labels != IGNORE) & chosen
    if share >= 1 or not candidate.any():
        return labels if share > 0 else torch.full_like(labels, IGNORE)
    rounding = torch.tensor([-1], dtype=torch.int32, device=labels.device)
    draw_B = unit_interval(keys.draw(Purpose.PREDICT, rounding)).squeeze(1)
    count_B = (batch.eligible.sum(1) * share + draw_B).long().clamp_(min=1 if share else 0)
    count_B = torch.minimum(count_B, candidate.sum(1))
    never = torch.iinfo(torch.int32).max
    key = torch.where(candidate, keys.draw(Purpose.PREDICT, batch.place), never)
    last = tensor(sort_rows(raw(key))).gather(1, (count_B - 1).clamp_(min=0).unsqueeze(1))
    return torch.where((key <= last) & (count_B > 0).unsqueeze(1), labels, IGNORE)
