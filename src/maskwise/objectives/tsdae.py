"""Sentence embeddings by denoising: a decoder restores a text from one vector of its remains.

The decoder shares the encoder's embeddings and is not part of the checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskwise.errors import MaskwiseError
from maskwise.families import width_of
from maskwise.masking import MaskedBatch
from maskwise.objectives.base import (
    Masking,
    Objective,
    Outcome,
    Work,
    encoded,
    target_places,
    unrounded,
)
from maskwise.weights import encoder_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DenoisingAutoencoder(Objective):
    """Cross-entropy of every token of a text, given one vector of it with 60 % of tokens deleted.

    Formula: sum over tokens t of −log p(x_t | x_<t, s), s the state of [CLS] (or the mean state) of
        the corrupted text, which is all that the decoder's cross-attention sees.
    Inputs: a ``MaskedBatch`` of the corruption ``delete``; labels (B, L'), the whole text, then
        −100.
    Requirements: an encoder, one text a row. The published decoder is as deep as the encoder and
        shares its weights, which only some families support; here it has ``layers`` of its own and
        shares the embeddings.
    Source: Wang et al. 2021 (TSDAE, arXiv 2104.06979), section 3.
    """

    in_place = False
    inherits = False
    layout = "document"
    masking: ClassVar[Masking] = {
        "policy": "token",
        "ratio": 0.6,
        "corruption": "delete",
        "budget": "bernoulli",
    }

    def __init__(self, model: PreTrainedModel, *, layers: int = 1, pooling: str = "cls"):
        super().__init__()
        if layers < 1 or pooling not in ("cls", "mean"):
            got = f"layers {layers}, pooling {pooling}"
            allowed = "layers ≥ 1; pooling cls or mean"
            raise MaskwiseError("objective tsdae", got=got, allowed=allowed)
        self.model = model
        self.pooling = pooling
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
        self.decoder = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
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
            got = f"corruption {shown}"
            raise MaskwiseError("objective tsdae deletes tokens", got=got, allowed="delete")

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        states_BLH = encoded(self.model, batch)
        if self.pooling == "cls":
            sentence_BH = states_BLH[:, 0]
        else:
            real = batch["attention_mask"].unsqueeze(-1).to(states_BLH.dtype)
            sentence_BH = (states_BLH * real).sum(1) / real.sum(1).clamp(min=1)
        length = labels.shape[1]
        before = self.embeddings[labels[:, :-1].clamp(min=0)]
        # The decoder sees each token one place late, after a learned start.
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
        """The encoder for each token read, the decoder and the vocabulary for each token written.

        Keys and values of cross-attention are computed once a text, and left out.
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
