"""Denoising: an encoder–decoder reads a corrupted text and writes what was masked, or the whole
text.

The vocabulary head runs only where there is a target, and the losses of a batch are summed over its
targets alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig

from maskwise.attention import Documents
from maskwise.errors import MaskwiseError
from maskwise.families import (
    Kind,
    adapter_of,
    decoder_inputs,
    decoder_weights,
    encoder_weights,
    head_weights,
)
from maskwise.masking import MaskedBatch
from maskwise.masking.corruptions import corruption
from maskwise.objectives.base import Masking, Work, model_inputs
from maskwise.objectives.mlm import MaskedLanguageModelling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class Denoising(MaskedLanguageModelling):
    """Cross-entropy of every token that the decoder is to write, given the corrupted text and the
    tokens before it.

    Formula: sum over targets of −log p(target | corrupted text, targets before it).
    Inputs: a ``MaskedBatch`` of a corruption whose labels are a text (``infill``, ``t5``,
        ``delete``, or any with
    ``target='full'``); or a mapping of model inputs with ``labels`` (B, L'), such as the batches of
    a task whose answers are written. The decoder begins with the model's own start token.
    Requirements: an encoder–decoder.
    Source: Lewis et al. 2020 (BART, arXiv 1910.13461); Raffel et al. 2020 (T5, arXiv 1910.10683).

    >>> import torch
    >>> from transformers import T5Config, T5ForConditionalGeneration
    >>> config = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
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
            what = (
                "objective denoise needs a corruption whose targets are a text for the "
                "decoder to write"
            )
            allowed = "infill, infill(target='spans'), t5, delete, ul2, or any with target='full'"
            raise MaskwiseError(what, got=f"corruption {shown}", allowed=allowed)
        return None

    @classmethod
    def reads(cls, layout: str, config: PreTrainedConfig) -> str:
        return "document" if layout == "joined" else super().reads(layout, config)

    def inputs(self, batch: MaskedBatch | dict[str, Tensor]) -> dict[str, Any]:
        read, written = model_inputs(self.model, batch), getattr(batch, "written", None)
        known: dict[str, Any] = {
            name: read[name]
            for name in ("input_ids", "attention_mask", "documents")
            if name in read
        }
        if written is not None:
            ends = getattr(batch, "ends", (None, None))[1]
            known["decoder_documents"] = Documents(written, read=known["documents"].ids, ends=ends)
        return {
            **known,
            "decoder_input_ids": decoder_inputs(self.model.config, batch["labels"], written),
        }

    def work(self, tokens: float, targets: float) -> Work:
        """The encoder for each token that it reads; decoder and head for each target; and the keys
        and values of cross-attention for each token read, which are the decoder's."""
        writes, crossed = decoder_weights(self.model)
        own, tied = head_weights(self.model)
        return Work(
            encoder_weights(self.model) * tokens,
            writes * targets + crossed * tokens + own * targets,
            tied * targets,
        )


@torch.inference_mode()
def generated(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    *,
    most: int,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """What an encoder–decoder writes for texts by beam search: their tokens, special ones and
    padding included.

    What the checkpoint's own ``generation_config`` says is not used. There is no early stopping, by
    which a sure model writes nothing: its other beams, all of them unlikely, end first, and two
    that ended would be enough for a search with two beams.

    Args:
        inputs: input_ids and attention_mask (B, L).
        most: tokens of an answer.
        length_penalty: the power of the length by which a beam's score is divided.
    """
    names = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "pad_token_id")
    ids = {name: getattr(model.config, name, None) for name in names}
    writer: Any = model  # its generate has no type that mypy sees
    writer.generation_config = GenerationConfig(
        **ids,
        num_beams=beams,
        max_new_tokens=most,
        length_penalty=length_penalty,
        early_stopping=False,
        do_sample=False,
    )
    tokens: list[list[int]] = writer.generate(**inputs).tolist()
    return tokens


def predicting(model: Any) -> MaskedLanguageModelling:
    """The objective by whose loss a language model is judged: it predicts what is masked."""
    return (
        Denoising if adapter_of(model.config).kind == "encoder-decoder" else MaskedLanguageModelling
    )(model)
