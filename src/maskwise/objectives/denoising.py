"""Objectives that predict each token from the tokens before it: denoising, and causal modelling.

``Denoising`` trains an encoder–decoder to write the masked text or the whole text.
``DenoisingAutoencoder`` trains an encoder's sentence embeddings: a decoder restores a text from a
single vector of what deletion left of it. This decoder shares the encoder's embeddings and is not
part of the checkpoint. ``CausalLanguageModelling`` makes an encoder's attention causal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from maskwise.attention import NAME, Documents, separate
from maskwise.devices import Tensors
from maskwise.errors import MaskwiseError, whole_number
from maskwise.families import ENCODERS, adapter_of, decoder_inputs, width_of
from maskwise.masking import IGNORE, AnnotatedBatch, MaskedBatch, Masker
from maskwise.masking.corruptions import corruption
from maskwise.masking.gather import Pieces, Rows, device_of, gather
from maskwise.objectives.base import (
    Batch,
    Inputs,
    Masking,
    Objective,
    Outcome,
    Work,
    encoded,
    model_inputs,
    target_places,
    unrounded,
)
from maskwise.objectives.mlm import MaskedLanguageModelling
from maskwise.weights import decoder_weights, encoder_weights, head_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

READ = ("input_ids", "attention_mask", "documents")
"""The encoder's inputs."""


class Denoising(MaskedLanguageModelling):
    """Cross-entropy of every token that the decoder writes, given the corrupted text and the tokens
    before it.

    Formula: sum over targets of −log p(target | corrupted text, targets before it).
    Inputs: a ``MaskedBatch`` from a corruption whose labels are a text (``infill``, ``t5``,
        ``delete``, or any corruption with ``target='full'``); or a mapping with the model's inputs
        and ``labels`` (B, L'), such as a batch from a task whose answers are written. The decoder
        begins with the model's own start token.
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

    kind = "encoder-decoder"
    in_place = False

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        shown = masking.get("corruption", "bert")
        if corruption(shown).writes is None:
            raise MaskwiseError(
                "objective denoise needs a corruption whose targets are a text to write",
                got=f"corruption {shown}",
                allowed="infill, infill(target='spans'), t5, delete, ul2, or any corruption with "
                "target='full'",
            )
        return None

    @classmethod
    def reads(cls, layout: str, config: PreTrainedConfig) -> str:
        return "document" if layout == "joined" else super().reads(layout, config)

    def inputs(self, batch: Batch) -> Inputs:
        inputs = model_inputs(self.model, batch)
        known = {name: inputs[name] for name in READ if name in inputs}
        # In packed rows, the decoder also writes every document separately.
        written = None
        if isinstance(batch, MaskedBatch) and batch.written is not None:
            written = batch.written
            read = known["documents"].ids
            known["decoder_documents"] = Documents(
                written,
                read=read,
                ends=batch.ends[1],
            )
        ids = decoder_inputs(self.model.config, batch["labels"], written)
        return {**known, "decoder_input_ids": ids}

    def work(self, tokens: float, targets: float) -> Work:
        """For each token read, the encoder and the decoder's keys and values for cross-attention;
        for each target, the decoder and the head."""
        writes, crossed = decoder_weights(self.model)
        own, tied = head_weights(self.model)
        # The decoder is trained even if the encoder is frozen, so it counts as a head.
        head = (writes + own) * targets + crossed * tokens
        return Work(encoder_weights(self.model) * tokens, head, tied * targets)


@torch.inference_mode()
def generated(
    model: PreTrainedModel,
    inputs: Tensors,
    *,
    most: int,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """The tokens that an encoder–decoder generates by beam search, with special tokens and padding.

    The checkpoint's ``generation_config`` is not used. There is no early stopping: it would end a
    search with two beams once two hypotheses are complete. With a confident model, these are
    unlikely hypotheses that end at once, so nothing would be generated.

    Args:
        inputs: input_ids and attention_mask (B, L).
        most: the maximum number of new tokens.
        length_penalty: the exponent of the length that divides a beam's score.
    """
    names = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "pad_token_id")
    ids = {name: vars(model.config).get(name) for name in names}
    writer: Any = model  # because mypy does not see ``generate``
    writer.generation_config = GenerationConfig(
        **ids,
        num_beams=beams,
        max_new_tokens=most,
        length_penalty=length_penalty,
        early_stopping=False,
        do_sample=False,
    )
    return writer.generate(**inputs).tolist()


def predicting(model: PreTrainedModel) -> MaskedLanguageModelling:
    """The objective that evaluates a language model by its loss when predicting masked text."""
    if adapter_of(model.config).kind == "encoder-decoder":
        return Denoising(model)
    return MaskedLanguageModelling(model)


class DenoisingAutoencoder(Objective):
    """Cross-entropy of every token of a text, given a single vector of the text after 60 % of its
    tokens have been deleted.

    Formula: sum over tokens t of −log p(x_t | x_<t, s), where s is the state of [CLS] of the
        corrupted text. The decoder's cross-attention sees nothing but s.
    Inputs: a ``MaskedBatch`` from the corruption ``delete``; labels (B, L') are the whole text,
        followed by −100.
    Requirements: an encoder, and one text per row. The published decoder is as deep as the encoder
        and shares its weights, which only some families support. The decoder here has its own
        ``layers`` and shares only the embeddings.
    Source: Wang et al. 2021 (TSDAE, arXiv 2104.06979), section 3.
    """

    in_place = False
    inherits = False
    layout = "document"
    masking = {
        "policy": "token",
        "ratio": 0.6,
        "corruption": "delete",
        "budget": "bernoulli",
    }

    def __init__(self, model: PreTrainedModel, *, layers: int = 1):
        super().__init__()
        whole_number("layers of objective tsdae", layers, least=1)
        self.model = model
        width = width_of(model)
        narrow = self.embeddings.shape[1]
        self.start = nn.Parameter(torch.zeros(width))
        layer = nn.TransformerDecoderLayer(
            width,
            int(model.config.num_attention_heads),
            2 * width,
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerDecoder(
            layer,
            layers,
            norm=nn.LayerNorm(width),
        )
        linear = nn.Identity if narrow == width else nn.Linear
        self.widen = linear(narrow, width)
        self.narrow = linear(width, narrow)

    @property
    def embeddings(self) -> Any:
        """(V, E): the encoder's embeddings of its vocabulary."""
        return self.model.get_input_embeddings().weight

    @classmethod
    def check(cls, masking: Masking) -> None:
        shown = str(masking.get("corruption", "delete"))
        if shown not in ("delete", "delete(target='full')"):
            raise MaskwiseError(
                "objective tsdae deletes tokens",
                got=f"corruption {shown}",
                allowed="delete",
            )

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        states_BLH = encoded(self.model, batch)
        sentence_BH = states_BLH[:, 0]
        length = labels.shape[1]
        before = self.embeddings[labels[:, :-1].clamp(min=0)]
        # The decoder input begins with a learned start and is thus shifted right by one place.
        first = self.start.to(states_BLH.dtype).expand(len(labels), 1, -1)
        shifted_BLH = torch.cat([first, self.widen(before)], dim=1) + places(length, first)
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=labels.device)
        written = self.decoder(
            shifted_BLH,
            sentence_BH.unsqueeze(1),
            tgt_mask=mask.to(shifted_BLH.dtype),
            tgt_is_causal=True,
        )
        at = target_places(batch).unbind(1)
        logits_MV = unrounded(self.narrow(written[at]) @ self.embeddings.T)
        return Outcome.of(cross_entropy(logits_MV, labels[at], reduction="none"))

    def work(self, tokens: float, targets: float) -> Work:
        """The encoder for each token read; the decoder and the vocabulary matrix for each token
        written.

        Keys and values for cross-attention are computed only once per text, so they are left out.
        """
        own = sum(p.numel() for p in self.decoder.parameters() if p.ndim == 2)
        once = 2 * self.start.numel() ** 2 * len(self.decoder.layers)
        head = own - once + self.embeddings.numel()
        return Work(encoder_weights(self.model) * tokens, head * targets)


def places(length: int, like: Tensor) -> Tensor:
    """(L, H) sinusoidal position embeddings (Vaswani et al. 2017, section 3.5)."""
    width = like.shape[-1]
    at = torch.arange(length, device=like.device, dtype=torch.float32).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2, device=like.device) * (-9.21034 / width))
    table = torch.zeros(length, width, device=like.device)
    table[:, 0::2] = torch.sin(at * rate)
    table[:, 1::2] = torch.cos(at * rate)[:, : width // 2]
    return (0.1 * table).to(like.dtype)


# Causal
# -------------------------------------------------------------------------------------------

# The model's attention is causal only in this objective's passes (``attention.Documents``). The
# objective can therefore precede masked language modelling, alternate with it, or be one of several
# objectives.


class NextTokens(Masker):
    """Batches without masks: the label at each place is the next token of the same text.

    >>> from maskwise.text import encode, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> masker = NextTokens(tokenizer, **CausalLanguageModelling.masking)
    >>> batch = masker(encode(tokenizer, ["the cat sat"]))
    >>> tokenizer.convert_ids_to_tokens(batch.labels[batch.labels >= 0].tolist())
    ['the', 'cat', 'sat']
    """

    def __call__(self, rows: Rows | Pieces | AnnotatedBatch, **when: object) -> MaskedBatch:
        """Like ``Masker.__call__``, but the same at every step; special tokens and [UNK] are never
        targets."""
        source = gather(rows, self.vocabulary)
        text = source.piece if source.apart else source.row[source.piece]
        # The first token of the next text cannot be predicted from this text.
        follows = source.eligible[1:] & (text[1:] == text[:-1])
        labels = np.full(len(source.input_ids), IGNORE, np.int64)
        labels[:-1][follows] = source.input_ids[1:][follows]
        truth = torch.from_numpy(labels.reshape(source.shape))
        return MaskedBatch.unmasked(source, truth, int(follows.sum())).to(device_of(rows))


class CausalLanguageModelling(MaskedLanguageModelling):
    """Cross-entropy of the next token at every place, with causal attention.

    Formula: sum over places i of −log p(token i + 1 | tokens up to i of the same text).
    Inputs: a ``MaskedBatch`` from ``NextTokens`` (or a dict with the model's inputs and the same
        ``labels``).
    Requirements: a family whose attention maskwise replaces (``families.Adapter.separates``).
    Source: Touchent and de la Clergerie 2026 (arXiv:2605.12438), for when to use it in training.
    """

    masking = {"ratio": 0.0, "min_targets": 0, "corruption": "mask-only"}
    batches = NextTokens
    inherits = False

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.check_model(model.config)
        separate(model)
        attention = model.config._attn_implementation
        if attention != NAME:
            raise MaskwiseError(
                "objective clm cannot make this attention causal",
                got=attention,
                do="load the model with attn_implementation sdpa or eager",
            )

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        own = [name for name, value in masking.items() if cls.masking.get(name) != value]
        if own:
            raise MaskwiseError(
                "objective clm does not mask",
                got=", ".join(own),
                do="remove masking from its arm",
            )
        return None

    @classmethod
    def check_model(cls, config: PreTrainedConfig) -> None:
        if not adapter_of(config).separates:
            raise MaskwiseError(
                "objective clm needs an attention that can be made causal",
                got=config.model_type,
                allowed=", ".join(name for name, family in ENCODERS.items() if family.separates),
            )

    def inputs(self, batch: Batch) -> Inputs:
        inputs = model_inputs(self.model, batch)
        if "documents" not in inputs:  # each row is one text
            ids = inputs["input_ids"]
            present = inputs.get("attention_mask", torch.ones_like(ids))
            # 0 for tokens and −1 for padding: the whole row is one document.
            one = present.to(ids.dtype) - 1
            inputs = adapter_of(self.model.config).apart(self.model, inputs, one)
        return {**inputs, "documents": replace(inputs["documents"], causal=True)}
