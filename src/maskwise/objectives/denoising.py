"""Denoising: an encoder–decoder reads a corrupted text and writes the masked or the whole text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig

from maskwise.attention import Documents
from maskwise.errors import MaskwiseError
from maskwise.families import Kind, adapter_of, decoder_inputs
from maskwise.masking import MaskedBatch
from maskwise.masking.corruptions import corruption
from maskwise.objectives.base import Batch, Masking, Work, model_inputs
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.weights import decoder_weights, encoder_weights, head_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


READ = ("input_ids", "attention_mask", "documents")
"""Inputs of the encoder."""


class Denoising(MaskedLanguageModelling):
    """Cross-entropy of every token to write, given the corrupted text and the tokens before it.

    Formula: sum over targets of −log p(target | corrupted text, targets before it).
    Inputs: a ``MaskedBatch`` of a corruption whose labels are a text (``infill``, ``t5``,
        ``delete``, or any with
    ``target='full'``); or a mapping of model inputs with ``labels`` (B, L'), such as the batches of
    a task whose answers are written. The decoder begins with the model's own start token.
    Requirements: an encoder–decoder.
    Source: Lewis et al. 2020 (BART, arXiv 1910.13461); Raffel et al. 2020 (T5, arXiv 1910.10683).

    >>> import torch
    >>> from transformers import T5Config, T5ForConditionalGeneration
    >>> size = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2}
    >>> config = T5Config(**size, num_layers=1, decoder_start_token_id=0)
    >>> batch = {"input_ids": torch.tensor([[3, 4, 1]]), "labels": torch.tensor([[5, 1, -100]])}
    >>> outcome = Denoising(T5ForConditionalGeneration(config))(batch)
    >>> int(outcome.targets), outcome.where.tolist()
    (2, [[0, 0], [0, 1]])
    """

    kind: ClassVar[Kind] = "encoder-decoder"
    in_place: ClassVar[bool] = False

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        shown = masking.get("corruption", "bert")
        if corruption(shown).writes is None:
            what = "objective denoise needs a corruption whose targets are a text to write"
            allowed = "infill, infill(target='spans'), t5, delete, ul2, or any with target='full'"
            raise MaskwiseError(what, got=f"corruption {shown}", allowed=allowed)
        return None

    @classmethod
    def reads(cls, layout: str, config: PreTrainedConfig) -> str:
        return "document" if layout == "joined" else super().reads(layout, config)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        inputs = model_inputs(self.model, batch)
        known = {name: inputs[name] for name in READ if name in inputs}
        # Packed rows: every document is written by itself, too.
        written = None
        if isinstance(batch, MaskedBatch) and batch.written is not None:
            written = batch.written
            read = known["documents"].ids
            known["decoder_documents"] = Documents(written, read=read, ends=batch.ends[1])
        ids = decoder_inputs(self.model.config, batch["labels"], written)
        return {**known, "decoder_input_ids": ids}

    def work(self, tokens: float, targets: float) -> Work:
        """The encoder, and the decoder's keys and values of cross-attention, for each token read;
        decoder and head for each target."""
        writes, crossed = decoder_weights(self.model)
        own, tied = head_weights(self.model)
        # The decoder is trained even where the encoder is frozen, so it counts as a head.
        head = (writes + own) * targets + crossed * tokens
        return Work(encoder_weights(self.model) * tokens, head, tied * targets)


@torch.inference_mode()
def generated(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    *,
    most: int,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """The tokens that an encoder–decoder generates by beam search, with special ones and padding.

    The checkpoint's ``generation_config`` is not used. With early stopping a confident model would
    generate nothing: its other beams, all unlikely, end first, and two that end stop a search with
    two beams.

    Args:
        inputs: input_ids and attention_mask (B, L).
        most: new tokens.
        length_penalty: exponent of the length that divides a beam's score.
    """
    names = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "pad_token_id")
    ids = {name: getattr(model.config, name, None) for name in names}
    writer: Any = model  # mypy does not know ``generate``
    writer.generation_config = GenerationConfig(
        **ids,
        num_beams=beams,
        max_new_tokens=most,
        length_penalty=length_penalty,
        early_stopping=False,
        do_sample=False,
    )
    return writer.generate(**inputs).tolist()


def predicting(model: Any) -> MaskedLanguageModelling:
    """The objective whose loss evaluates a language model: it predicts masked text."""
    if adapter_of(model.config).kind == "encoder-decoder":
        return Denoising(model)
    return MaskedLanguageModelling(model)
