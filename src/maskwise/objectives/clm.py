"""Causal language modelling over an encoder: each token from those before it, in attention that
sees no others.

The model stays what it is, with the head that it has; only in the passes of this objective is its
attention causal (``attention.Documents``). So it can come before masked language modelling, between
two phases of it, or beside it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from maskwise.attention import NAME, separate
from maskwise.errors import MaskwiseError
from maskwise.families import ENCODERS, adapter_of
from maskwise.masking import IGNORE, MaskedBatch, Masker
from maskwise.masking.gather import device_of, gather
from maskwise.objectives.base import Masking, model_inputs
from maskwise.objectives.mlm import MaskedLanguageModelling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class NextTokens(Masker):
    """A masker that masks nothing: the label of each place is the token after it in its text.

    >>> from maskwise.text import encode, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> batch = NextTokens(tokenizer, **CausalLanguageModelling.masking)(encode(tokenizer, ["the cat sat"]))
    >>> tokenizer.convert_ids_to_tokens(batch.labels[batch.labels >= 0].tolist())
    ['the', 'cat', 'sat']
    """

    def __call__(self, rows: Any, **when: Any) -> MaskedBatch:
        """As ``Masker``, without regard to the step; special tokens and [UNK] are no targets."""
        source, device = gather(rows, self.vocabulary), device_of(rows)
        text = source.piece if source.apart else source.row[source.piece]
        follows = source.eligible[1:] & (text[1:] == text[:-1])
        labels = np.full(len(source.input_ids), IGNORE, np.int64)
        labels[:-1][follows] = source.input_ids[1:][follows]
        truth = torch.from_numpy(labels.reshape(source.shape))
        batch = MaskedBatch.unmasked(source, truth, int(follows.sum()))
        batch.vocabulary = self.vocabulary
        return batch if device is None else batch.to(device)


class CausalLanguageModelling(MaskedLanguageModelling):
    """Cross-entropy of every next token, with attention to what stands before it alone.

    Formula: sum over places i of −log p(token i + 1 | tokens up to i of the same text).
    Inputs: a ``MaskedBatch`` of ``NextTokens`` (or a dict of model inputs with such ``labels``).
    Requirements: a family whose attention maskwise reaches (``families.Adapter.separates``).
    Source: Touchent and de la Clergerie 2026 (arXiv:2605.12438), for the way into an encoder's
        training.
    """

    masking: ClassVar[Masking] = {"ratio": 0.0, "min_targets": 0, "corruption": "mask-only"}
    batches = NextTokens
    inherits: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.check_model(model.config)
        separate(model)
        if (attention := model.config._attn_implementation) != NAME:
            do = "load the model with attn_implementation sdpa or eager"
            raise MaskwiseError(
                "objective clm cannot make this attention causal", got=attention, do=do
            )

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        if own := [name for name, value in masking.items() if cls.masking.get(name) != value]:
            raise MaskwiseError(
                "objective clm masks nothing", got=", ".join(own), do="give its arm no masking"
            )
        return None

    @classmethod
    def check_model(cls, config: PreTrainedConfig) -> None:
        if not adapter_of(config).separates:
            allowed = ", ".join(name for name, family in ENCODERS.items() if family.separates)
            what = "objective clm needs an attention that can be made causal"
            raise MaskwiseError(what, got=config.model_type, allowed=allowed)

    def inputs(self, batch: MaskedBatch | dict[str, Tensor]) -> dict[str, Any]:
        inputs = model_inputs(self.model, batch)
        known = inputs.get("documents")
        if known is None:  # a row is one text
            present, ids = inputs.get("attention_mask"), inputs["input_ids"]
            one = torch.zeros_like(ids) if present is None else present.to(ids.dtype) - 1
            inputs = adapter_of(self.model.config).apart(self.model, inputs, one)
        return {**inputs, "documents": replace(inputs["documents"], causal=True)}
