"""The rows of a model for the tokens of a changed tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maskwise.base.errors import MaskwiseError
from maskwise.models.families import most_tokens
from maskwise.models.loading import add_tokens, keep_tokens
from maskwise.text.changed import Origins

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN = 24
"""About how many tokens a model reads before and after their ids change, to compare its results."""


def change_tokens(model: PreTrainedModel, rows: Origins) -> None:
    """Give a model the rows of a changed tokenizer, in place.

    Raises:
        MaskwiseError: the model cannot have these tokens (``keep_tokens``, ``add_tokens``), or
            computes something else for those that are kept.
    """
    if rows.kept is not None:
        ids = [*rows.kept]
        size = len(model.get_input_embeddings().get_parameter("weight"))
        most = min(SHOWN, most_tokens(model.config))
        shown = ids[:: max(1, len(ids) // most)][:most]
        before = _computed(model, shown)
        if before.shape[-1] == size:
            before = before[..., ids]
        keep_tokens(model, ids)
        after = _computed(model, [ids.index(number) for number in shown])
        if before.shape != after.shape or not torch.allclose(before, after, atol=1e-4):
            raise MaskwiseError(
                "this model computes something else after its tokens have new ids",
                got=type(model).__name__,
                do="leave out the change of its tokens",
            )
    if rows.pieces:
        add_tokens(model, rows.pieces)


@torch.no_grad()
def _computed(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Return what the whole model computes for a row of tokens: its logits, or its states."""
    row = torch.tensor([ids])
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = row
    found: Tensor = model(**inputs, return_dict=False)[0]
    return found
