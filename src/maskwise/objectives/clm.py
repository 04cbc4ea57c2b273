"""Causal language modelling with an encoder: predict each token from those before it.

Only in this objective's passes is the model's attention causal (``attention.Documents``), so it can
precede masked language modelling, alternate with it, or be one of several objectives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from maskwise.attention import NAME, separate
from maskwise.errors import MaskwiseError
from maskwise.families import ENCODERS, adapter_of
from maskwise.masking import IGNORE, MaskedBatch, Masker
from maskwise.masking.gather import device_of, gather
from maskwise.objectives.base import Batch, Masking, model_inputs
from maskwise.objectives.mlm import MaskedLanguageModelling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class NextTokens(Masker):
    """Batches without masks: the label of each place is the next token of its text.

    >>> from maskwise.text import encode, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> masker = NextTokens(tokenizer, **CausalLanguageModelling.masking)
    >>> batch = masker(encode(tokenizer, ["the cat sat"]))
    >>> tokenizer.convert_ids_to_tokens(batch.labels[batch.labels >= 0].tolist())
    ['the', 'cat', 'sat']
    """

    def __call__(self, rows: Any, **when: Any) -> MaskedBatch:
        """As ``Masker``, at any step; special tokens and [UNK] are not targets."""
        source = gather(rows, self.vocabulary)
        text = source.piece if source.apart else source.row[source.piece]
        # The first token of the next text does not follow from this one.
        follows = source.eligible[1:] & (text[1:] == text[:-1])
        labels = np.full(len(source.input_ids), IGNORE, np.int64)
        labels[:-1][follows] = source.input_ids[1:][follows]
        truth = torch.from_numpy(labels.reshape(source.shape))
        batch = MaskedBatch.unmasked(source, truth, int(follows.sum()))
        batch.vocabulary = self.vocabulary
        return batch.to(device_of(rows) or "cpu")


class CausalLanguageModelling(MaskedLanguageModelling):
    """Cross-entropy of every next token, with causal attention.

    Formula: sum over places i of −log p(token i + 1 | tokens up to i of the same text).
    Inputs: a ``MaskedBatch`` of ``NextTokens`` (or a dict of model inputs with such ``labels``).
    Requirements: a family whose attention maskwise replaces (``families.Adapter.separates``).
    Source: Touchent and de la Clergerie 2026 (arXiv:2605.12438), for its place in the training.
    """

    masking: ClassVar[Masking] = {"ratio": 0.0, "min_targets": 0, "corruption": "mask-only"}
    batches = NextTokens
    inherits: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.check_model(model.config)
        separate(model)
        attention = model.config._attn_implementation
        if attention != NAME:
            what = "objective clm cannot make this attention causal"
            do = "load the model with attn_implementation sdpa or eager"
            raise MaskwiseError(what, got=attention, do=do)

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        own = [name for name, value in masking.items() if cls.masking.get(name) != value]
        if own:
            do = "remove masking from its arm"
            raise MaskwiseError("objective clm does not mask", got=", ".join(own), do=do)
        return None

    @classmethod
    def check_model(cls, config: PreTrainedConfig) -> None:
        if not adapter_of(config).separates:
            allowed = ", ".join(name for name, family in ENCODERS.items() if family.separates)
            what = "objective clm needs an attention that can be made causal"
            raise MaskwiseError(what, got=config.model_type, allowed=allowed)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        inputs = model_inputs(self.model, batch)
        if "documents" not in inputs:  # each row is one text
            ids = inputs["input_ids"]
            present = inputs.get("attention_mask", torch.ones_like(ids))
            # 0 for tokens and −1 for padding: the whole row is one document.
            one = present.to(ids.dtype) - 1
            inputs = adapter_of(self.model.config).apart(self.model, inputs, one)
        return {**inputs, "documents": replace(inputs["documents"], causal=True)}
