"""A sentence embedding by denoising: a decoder must write the whole text from one vector of a text
with gaps.

It runs once for each text, in parallel over its tokens; the vocabulary matrix is that of the
embeddings, and is multiplied only where there is a target. The decoder drops out when the
checkpoint becomes an ordinary encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskwise.errors import MaskwiseError
from maskwise.families import encoder_weights, width_of
from maskwise.masking import MaskedBatch
from maskwise.objectives.base import (
    Masking,
    Objective,
    Outcome,
    Work,
    counted,
    encoded,
    target_places,
    unrounded,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DenoisingAutoencoder(Objective):
    """Cross-entropy of every token of the text, given one vector of the text with 60 % of its
    tokens deleted.

    Formula: sum over tokens t of −log p(x_t | x_<t, s), s the state of [CLS] (or the mean of all
        states) over the text with gaps, which is all that the decoder's cross-attention sees.
    Inputs: a ``MaskedBatch`` of the corruption ``delete``; labels (B, L'), the whole text, −100
        behind it.
    Requirements: an encoder, one text a row. The published decoder is as deep as the encoder and
        shares its weights; only some families can do that, so that here it has ``layers`` of its
        own and shares the embeddings alone.
    Source: Wang et al. 2021 (TSDAE, arXiv 2104.06979), section 3: 60 % deleted, [CLS], tied
        decoder.
    """

    in_place, inherits, layout = False, False, "document"
    masking: ClassVar[Masking] = {
        "policy": "token",
        "ratio": 0.6,
        "corruption": "delete",
        "budget": "bernoulli",
    }

    def __init__(self, model: PreTrainedModel, *, layers: int = 1, pooling: str = "cls"):
        super().__init__()
        if layers < 1 or pooling not in ("cls", "mean"):
            got, allowed = f"layers {layers}, pooling {pooling}", "layers ≥ 1; pooling cls or mean"
            raise MaskwiseError("objective tsdae", got=got, allowed=allowed)
        self.model, self.pooling = model, pooling
        width, narrow = width_of(model), int(self.embeddings.shape[1])
        self.start = nn.Parameter(torch.zeros(width))
        layer = nn.TransformerDecoderLayer(
            width,
            int(model.config.num_attention_heads),
            2 * width,
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
        self.widen = nn.Identity() if narrow == width else nn.Linear(narrow, width)
        self.narrow = nn.Identity() if narrow == width else nn.Linear(width, narrow)

    @property
    def embeddings(self) -> Tensor:
        """(V, E) the encoder's own embeddings of its vocabulary."""
        table = self.model.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        return table

    @classmethod
    def check(cls, masking: Masking) -> None:
        """It writes the text that was deleted from, and nothing else."""
        shown = str(masking.get("corruption", "delete"))
        if shown not in ("delete", "delete(target='full')"):
            raise MaskwiseError(
                "objective tsdae deletes tokens", got=f"corruption {shown}", allowed="delete"
            )

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        states_BLH = encoded(self.model, batch)
        if self.pooling == "cls":
            sentence_BH = states_BLH[:, 0]
        else:
            real = batch["attention_mask"].unsqueeze(-1).to(states_BLH.dtype)
            sentence_BH = (states_BLH * real).sum(1) / real.sum(1).clamp(min=1)
        vocabulary = self.embeddings
        before = vocabulary[labels[:, :-1].clamp(min=0)]
        first = self.start.to(states_BLH.dtype).expand(len(labels), 1, -1)
        told_BLH = torch.cat([first, self.widen(before)], dim=1) + places(labels.shape[1], first)
        mask = nn.Transformer.generate_square_subsequent_mask(labels.shape[1], device=labels.device)
        written = self.decoder(
            told_BLH, sentence_BH.unsqueeze(1), tgt_mask=mask.to(told_BLH.dtype), tgt_is_causal=True
        )
        row, column = target_places(batch).unbind(1)
        logits_MV = unrounded(self.narrow(written[row, column]) @ vocabulary.T)
        losses = cross_entropy(logits_MV, labels[row, column], reduction="none")
        return Outcome(losses.sum(), counted(len(losses), labels))

    def work(self, tokens: float, targets: float) -> Work:
        """The encoder for every token that it reads, the decoder and the vocabulary for every token
        that is written.

        Keys and values of what the decoder attends to are made once for each text, and are left
        out.
        """
        own = sum(p.numel() for p in self.decoder.parameters() if p.ndim == 2)
        once = sum(2 * self.start.numel() ** 2 for _ in self.decoder.layers)
        vocabulary = self.embeddings.numel()
        return Work(encoder_weights(self.model) * tokens, (own - once + vocabulary) * targets)


def places(length: int, like: Tensor) -> Tensor:
    """(L, H) sines and cosines, which tell the decoder where a token stands (Vaswani et al. 2017,
    section 3.5).
    """
    width = like.shape[-1]
    at = torch.arange(length, device=like.device, dtype=torch.float32).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2, device=like.device) * (-9.21034 / width))
    table: Any = torch.zeros(length, width, device=like.device)
    table[:, 0::2], table[:, 1::2] = torch.sin(at * rate), torch.cos(at * rate)[:, : width // 2]
    return (0.1 * table).to(like.dtype)
