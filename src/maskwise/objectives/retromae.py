"""Pre-training for retrieval: the vector of a text has to be enough to write the text (RetroMAE).

The encoder reads masked text. A decoder of one layer predicts every token from the vector of the
text and from few of the other tokens, which are drawn anew for each token. It can do so only if the
vector has the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from maskwise.base.devices import moved
from maskwise.base.errors import MaskwiseError, finite_number
from maskwise.masking import IGNORE, MaskedBatch
from maskwise.masking.batch import Lengths
from maskwise.masking.settings import Masking
from maskwise.models.families import picked, prediction_head, width_of
from maskwise.models.flops import Work, attended_pairs, head_weights, multiplied_weights
from maskwise.objectives.base import Loss, check_all_asked, encoded, target_places
from maskwise.objectives.denoising import places
from maskwise.objectives.mlm import MaskedLanguageModelling, losses_alone, read_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RetroMae(MaskedLanguageModelling):
    """Masked language modelling, and every token of a text from its vector and few other tokens.

    ``masked`` is the share of the other tokens that the decoder does not see. The decoder is not
    part of the checkpoint; it is saved beside it, so that training can go on.

    Formula: Σ over targets of −log p(original token | masked row) + (targets / tokens) · Σ over
        tokens i of −log p(x_i | s, x_j for each visible j ≠ i), where s is the state of [CLS] in
        the masked row, and each j is visible to i with probability 1 − ``masked``. The training
        loop divides the sum by the number of targets, so each term is a mean.
    Inputs: a ``MaskedBatch`` in which every masked token has a label (``predict: 1``).
    Requirements: an encoder whose rows have one text after [CLS]. Both terms use its prediction
        head. In the paper, the encoder masks 30 % of the tokens. Its positions are those of the
        encoder, and its code hides whole words from the decoder; here, positions are sinusoids,
        which no family lacks, and single tokens are hidden.
    Source: Xiao et al. 2022 (RetroMAE, arXiv 2205.12035), sections 3.1 to 3.3 (enhanced decoding).
    """

    alone = False
    layout = "document"

    def __init__(self, model: PreTrainedModel, *, masked: float = 0.5):
        super().__init__(model)
        finite_number("masked of objective retromae", masked, least=0, most=1)
        if prediction_head(model) is None:
            raise MaskwiseError(
                "objective retromae needs a model whose head can be called alone",
                got=type(model).__name__,
            )
        self.masked = masked
        width = width_of(model)
        narrow = model.get_input_embeddings().get_parameter("weight").shape[1]
        self.heads = int(model.config.num_attention_heads)
        self.widen = nn.Identity() if narrow == width else nn.Linear(narrow, width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        # The vector is normalised by the encoder, so the other tokens are normalised, too.
        self.word_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.wide = nn.Linear(width, 4 * width)
        self.back = nn.Linear(4 * width, width)

    @classmethod
    def check(cls, masking: Masking) -> None:
        check_all_asked("retromae", masking)

    def forward(self, batch: MaskedBatch) -> Loss:  # type: ignore[override]
        labels = batch["labels"]
        where = target_places(batch)
        at = where.unbind(1)
        states_BLH = encoded(self.model, batch)
        (losses,) = read_states(self.model, picked(states_BLH, *at), labels[at], losses_alone)
        ids = torch.where(labels == IGNORE, batch["input_ids"], labels)
        written = self.decoded(states_BLH[:, 0], ids, batch["attention_mask"])
        text = moved(torch.from_numpy(np.flatnonzero(batch.line.predicted)), ids.device)
        (again,) = read_states(
            self.model, written.flatten(0, 1)[text], ids.flatten()[text], losses_alone
        )
        loss = self.loss(batch, losses, where, None)
        share = len(where) / max(1, len(text))
        return loss._replace(total=loss.total + share * again.sum())

    def decoded(self, vector_BH: Tensor, ids: Tensor, present: Tensor | None) -> Tensor:
        """(B, L, H): the decoder's states for all tokens of the original text ``ids`` (B, L)."""
        rows, length = ids.shape
        first = vector_BH.unsqueeze(1)
        place = places(length, first, scale=1)
        words = self.model.get_input_embeddings().get_parameter("weight")[ids]
        words = self.word_norm(self.widen(words)) + place
        asked = first + place
        # The vector takes the place of [CLS].
        read = torch.cat([first, words[:, 1:].to(first.dtype)], dim=1)
        seen = seen_by_decoder(rows, length, self.masked, ids.device)
        if present is not None:
            seen = seen & (present.unsqueeze(1) > 0)
        seen[:, :, 0] = True
        parts = (self.query(asked), *self.key_value(read).chunk(2, dim=-1))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=seen.unsqueeze(1))
        states = self.norms[0](asked + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norms[1](states + self.back(gelu(self.wide(states))))

    def work(self, tokens: float, targets: float) -> Work:
        """Return the work for a batch: encoder and decoder on all tokens, and the head on targets
        and, behind the decoder, on all tokens.
        """
        decoder = multiplied_weights(self) - multiplied_weights(self.model)
        own, tied = head_weights(self.model)
        again = Work(head=(decoder + own) * tokens, tied=tied * tokens)
        return super().work(tokens, targets).plus(again)

    def attention(self, lengths: Lengths) -> Work:
        """Return the multiplications in the attention of encoder and decoder."""
        decoder = 2 * width_of(self.model) * attended_pairs(lengths.read)
        return super().attention(lengths).plus(Work(head=decoder))


def seen_by_decoder(rows: int, length: int, masked: float, device: torch.device) -> Tensor:
    """(B, L, L) bool: whether the decoder sees token j when it predicts token i; never itself."""
    seen = torch.rand(rows, length, length, device=device) >= masked
    return seen & ~torch.eye(length, dtype=torch.bool, device=device)
