"""Objectives that predict each token from earlier tokens: denoising and causal language modelling.

``Denoising`` trains an encoder–decoder to generate the masked tokens or the whole text.
``DenoisingAutoencoder`` trains sentence embeddings. The encoder reads a text from which tokens were
deleted and returns one vector. A decoder restores the whole text from this vector. The decoder
shares the encoder's token embeddings and is not saved in checkpoints. ``CausalLanguageModelling``
trains a decoder, or an encoder with causal attention, to predict the next token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from maskwise.base.devices import Tensors
from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.masking import IGNORE, Line, MaskedBatch, Masker
from maskwise.masking.batch import Lengths
from maskwise.masking.corruptions import Delete
from maskwise.masking.gather import UserRows, device_of, gather
from maskwise.masking.settings import Masking
from maskwise.models.attention import DocumentIds
from maskwise.models.decoders import is_causal, is_decoder
from maskwise.models.families import (
    adapter_of,
    decoder_inputs,
    patched,
    picked,
    require_separable,
    width_of,
)
from maskwise.models.flops import (
    Work,
    attended_pairs,
    decoder_attention,
    decoder_weights,
    encoder_attention,
    encoder_weights,
    head_weights,
    multiplied_weights,
)
from maskwise.objectives.base import (
    Batch,
    Inputs,
    Loss,
    Objective,
    encoded,
    model_inputs,
    target_places,
    unrounded,
)
from maskwise.objectives.chunks import in_chunks, token_losses
from maskwise.objectives.mlm import MaskedLanguageModelling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

READ = ("input_ids", "attention_mask", "documents", "global_attention_mask")
"""The encoder's inputs."""


class Denoising(MaskedLanguageModelling):
    """Cross-entropy of every target of a decoder, given the corrupted text and earlier targets.

    Formula: sum over targets of −log p(target | corrupted text, earlier targets).
    Inputs: a ``MaskedBatch`` from a corruption whose labels are a text (``infill``, ``t5``,
        ``delete``, or any corruption with ``target='full'``). Or a dict with the model's inputs and
        ``labels`` (B, L'), such as a batch of a task in which the model generates the answer. The
        decoder's input begins with the start token of the model.
    Requirements: an encoder–decoder.
    Source: Lewis et al. 2020 (BART, arXiv 1910.13461); Raffel et al. 2020 (T5, arXiv 1910.10683).

    >>> import torch
    >>> from transformers import T5Config, T5ForConditionalGeneration
    >>> size = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2}
    >>> config = T5Config(**size, num_layers=1, decoder_start_token_id=0)
    >>> batch = {"input_ids": torch.tensor([[3, 4, 1]]), "labels": torch.tensor([[5, 1, -100]])}
    >>> outcome = Denoising(T5ForConditionalGeneration(config))(batch)
    >>> int(outcome.divisor), outcome.where.tolist()
    (2, [[0, 0], [0, 1]])
    """

    kind = "encoder-decoder"
    in_place = False

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        if masking.corruption.writes is None:
            raise MaskwiseError(
                "objective denoise needs a corruption whose targets are a text",
                got=f"corruption {masking.corruption}",
                allowed="infill, infill(target='spans'), t5, delete, or any corruption with "
                "target='full'",
            )
        return None

    @classmethod
    def reads(cls, layout: str, config: PreTrainedConfig) -> str:
        return "document" if layout == "joined" else super().reads(layout, config)

    def inputs(self, batch: Batch) -> Inputs:
        inputs = model_inputs(self.model, batch)
        known = {name: inputs[name] for name in READ if name in inputs}
        # In packed rows, the decoder must generate each document separately, too.
        written = None
        if isinstance(batch, MaskedBatch) and batch.written is not None:
            written = batch.written
            read = known["documents"].ids
            known["decoder_documents"] = DocumentIds(
                written,
                read=read,
                ends=batch.ends[1],
            )
        ids = decoder_inputs(self.model.config, batch["labels"], written)
        return {**known, "decoder_input_ids": ids}

    def work(self, tokens: float, targets: float) -> Work:
        """Return the work for a batch.

        The encoder, and the key and value layers of cross-attention, process all input tokens. The
        rest of the decoder and the head process all targets.
        """
        writes, crossed = decoder_weights(self.model)
        own, tied = head_weights(self.model)
        # The decoder is trained even if the encoder is frozen, so it counts as a head.
        head = (writes + own) * targets + crossed * tokens
        return Work(encoder_weights(self.model) * tokens, head, tied * targets)

    def attention(self, lengths: Lengths) -> Work:
        """Return the multiplications in the attention of encoder and decoder."""
        read = super().attention(lengths)
        return read.plus(Work(head=decoder_attention(self.model.config, lengths)))


@torch.inference_mode()
def generated(
    model: PreTrainedModel,
    inputs: Tensors,
    *,
    most: int,
    beams: int,
    length_penalty: float,
) -> list[list[int]]:
    """Generate text with an encoder–decoder by beam search.

    The ``generation_config`` of the checkpoint is ignored. Early stopping is off. With early
    stopping and two beams, a search would end as soon as two hypotheses are complete. If the model
    is confident, these are often unlikely, empty texts, which are complete after one step.

    Args:
        model: the encoder–decoder.
        inputs: input_ids and attention_mask (B, L).
        most: the maximum number of new tokens.
        beams: the number of beams.
        length_penalty: the score of a beam is divided by length ** length_penalty.

    Returns:
        The generated ids of each row, with special tokens and padding.
    """
    from transformers import GenerationConfig

    names = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "pad_token_id")
    ids = {name: vars(model.config).get(name) for name in names}
    # ``Any``, because mypy does not know that the model has ``generate``.
    writer: Any = model
    with patched(model):
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
    """Return the objective whose loss evaluates this model: denoising, next tokens or MLM."""
    if adapter_of(model.config).kind == "encoder-decoder":
        return Denoising(model)
    if is_causal(model.config):
        return CausalLanguageModelling(model)
    return MaskedLanguageModelling(model)


class DenoisingAutoencoder(Objective):
    """Cross-entropy of every token of a text, given one vector for the corrupted text (TSDAE).

    Formula: sum over tokens t of −log p(x_t | x_<t, s). The vector s is the hidden state of [CLS]
        in the text from which 60 % of the tokens were deleted. The decoder's cross-attention
        attends only to s.
    Inputs: a ``MaskedBatch`` from the corruption ``delete``. Labels (B, L') are the whole text,
        followed by −100.
    Requirements: an encoder, and one text per row. The published decoder is as deep as the encoder
        and shares the encoder's weights, which only some families support. The decoder here has
        ``layers`` layers and shares only the token embeddings.
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
        """(V, E): the token embeddings of the encoder."""
        return self.model.get_input_embeddings().weight

    @classmethod
    def check(cls, masking: Masking) -> None:
        if masking.corruption != Delete():
            raise MaskwiseError(
                "objective tsdae needs a corruption that deletes tokens",
                got=f"corruption {masking.corruption}",
                allowed="delete",
            )

    def forward(self, batch: MaskedBatch) -> Loss:
        labels = batch["labels"]
        states_BLH = encoded(self.model, batch)
        sentence_BH = states_BLH[:, 0]
        length = labels.shape[1]
        before = self.embeddings[labels[:, :-1].clamp(min=0)]
        # Shift the decoder's input right by one position, after a learned start embedding.
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
        (losses,) = in_chunks(
            self._losses, picked(written, *at), labels[at], vocabulary=len(self.embeddings)
        )
        return Loss.of(losses)

    def _losses(self, states_MH: Tensor, truth: Tensor) -> tuple[Tensor]:
        logits_MV = unrounded(self.narrow(states_MH) @ self.embeddings.T)
        return (token_losses(logits_MV, truth),)

    def work(self, tokens: float, targets: float) -> Work:
        """Return the work for a batch: the encoder on input tokens, decoder and head on targets."""
        own = multiplied_weights(self) - multiplied_weights(self.model)
        head = own - self._once + self.embeddings.numel()
        return Work(encoder_weights(self.model) * tokens, head * targets)

    def attention(self, lengths: Lengths) -> Work:
        """Return the multiplications in the attention of the encoder and of the decoder, whose
        tokens attend to the tokens before them and to one vector.
        """
        of_layer = attended_pairs(lengths.written, causal=True) + float(lengths.written.sum())
        scores = 2 * width_of(self.model) * len(self.decoder.layers) * of_layer
        # The keys and values of the vector are computed once for each text.
        head = scores + self._once * len(lengths.written)
        return super().attention(lengths).plus(Work(head=head))

    @property
    def _once(self) -> int:
        """The number of weights for the keys and values of cross-attention."""
        return 2 * width_of(self.model) ** 2 * len(self.decoder.layers)


def places(length: int, like: Tensor, *, scale: float = 0.1) -> Tensor:
    """(L, H): sinusoidal position embeddings (Vaswani et al. 2017, section 3.5), times ``scale``.

    New token embeddings are small, so that the usual scale would hide them.
    """
    width = like.shape[-1]
    at = torch.arange(length, device=like.device, dtype=torch.float32).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2, device=like.device) * (-9.21034 / width))
    table = torch.zeros(length, width, device=like.device)
    table[:, 0::2] = torch.sin(at * rate)
    table[:, 1::2] = torch.cos(at * rate)[:, : width // 2]
    return (scale * table).to(like.dtype)


# Causal
# -------------------------------------------------------------------------------------------

# Attention is causal only in the forward passes of this objective (``attention.Documents``). A run
# can therefore use this objective before masked language modelling, or alternate between the two.


class NextTokens(Masker):
    """Makes batches without masks: the label at each position is the next token of the same text.

    >>> from maskwise import encode
    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> masker = NextTokens(tokenizer, **CausalLanguageModelling.masking)
    >>> batch = masker(encode(tokenizer, ["the cat sat"]))
    >>> tokenizer.convert_ids_to_tokens(batch.labels[batch.labels >= 0].tolist())
    ['the', 'cat', 'sat']
    """

    def __call__(self, rows: UserRows | Line, **when: object) -> MaskedBatch:
        """Return unmasked rows with labels. Special tokens and [UNK] are no targets.

        Further arguments of ``Masker.__call__``, such as the step, are accepted but ignored.
        """
        line = gather(rows, self.vocabulary)
        text = line.piece if line.apart else line.row[line.piece]
        # The first token of a text is no target, because the token before it is not of this text.
        follows = line.eligible[1:] & (text[1:] == text[:-1])
        labels = np.full(len(line.input_ids), IGNORE, np.int64)
        labels[:-1][follows] = line.input_ids[1:][follows]
        truth = torch.from_numpy(labels.reshape(line.shape))
        return MaskedBatch.unmasked(line, truth, int(follows.sum())).to(device_of(rows))


class CausalLanguageModelling(MaskedLanguageModelling):
    """Cross-entropy of the next token at every position, with causal attention.

    Formula: sum over positions i of −log p(token i + 1 | tokens up to i of the same text).
    Inputs: a ``MaskedBatch`` from ``NextTokens``, or a dict with the model's inputs and the same
        ``labels``.
    Requirements: a decoder, such as Llama or GPT-2; or an encoder of a family whose attention
        maskwise replaces (``families.Adapter.separates``).
    Source: Touchent and de la Clergerie 2026 (arXiv 2605.12438), on causal modelling before MLM.
    """

    causal = True
    masks = False
    # A corruption that needs no mask token, because decoders have none.
    masking = {"ratio": 0.0, "min_targets": 0, "corruption": "replace"}
    batches = NextTokens
    inherits = False

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.check_model(model.config)

    @classmethod
    def check_model(cls, config: PreTrainedConfig) -> None:
        if not is_decoder(config):
            require_separable(config, use="objective clm")

    def attention(self, lengths: Lengths) -> Work:
        """Return the multiplications in the encoder's attention, which is causal here."""
        config = self.model.config
        return Work(scores=encoder_attention(config, lengths.read, causal=True))

    def inputs(self, batch: Batch) -> Inputs:
        inputs = model_inputs(self.model, batch)
        if is_decoder(self.model.config):
            return inputs
        if "documents" not in inputs:
            ids = inputs["input_ids"]
            present = inputs.get("attention_mask", torch.ones_like(ids))
            # Make the whole row one document: 0 for tokens, −1 for padding.
            one = present.to(ids.dtype) - 1
            inputs = adapter_of(self.model.config).apart(self.model, inputs, one)
            if isinstance(batch, MaskedBatch):
                # Without these offsets, the host would wait for the device in every step.
                inputs["documents"].ends = batch.ends[0]
        return {**inputs, "documents": replace(inputs["documents"], causal=True)}
