"""A collator without padding, for any trainer: a batch of documents becomes one line.

A line of T tokens is the concatenation of the documents in a batch. The boundaries of documents are
passed as the arguments that transformers' flash attention expects. Other attention implementations
ignore these arguments and would read the line as one text. For them, ``PackedCollator`` adds a mask
that lets each token attend only to its own document. Models that cannot keep documents apart are
refused.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.utils.generic import is_flash_attention_requested

from maskwise.base.errors import MaskwiseError
from maskwise.masking import IGNORE, Masker, MaskingCollator, UserRows
from maskwise.models.attention import NAME
from maskwise.models.families import (
    ENCODERS,
    Esm,
    adapter_of,
    check_positions,
    positions_of,
    require_kind,
    window_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MASKED = ("sdpa", NAME)
"""Attention implementations that accept boolean masks. Eager attention needs masks of floats."""


class PackedCollator:
    """Mask rows, and concatenate them to one line of D documents without padding.

    A call returns ``input_ids``, ``labels`` and ``position_ids`` (1, T), ``cu_seq_lens_q`` and
    ``cu_seq_lens_k`` (D + 1,) int32, and ``max_length_q`` and ``max_length_k``. If the model's
    attention needs a mask, the call also returns an ``attention_mask`` (1, 1, T, T), whose memory
    grows with T². Rows may have the columns ``step`` and ``epoch``, as in ``MaskingCollator``.

    Args:
        masker: the masker. Its corruption must be for encoders, with a label for each token.
        model: the model that will read the lines; only its configuration is used. If None,
            positions start at 0, and the caller must ensure that the model's attention keeps
            documents apart.
        total_steps: the number of optimiser steps in the run; needed if the masking ratio changes.
        pad_to_multiple_of: pad lines to a multiple of this length, such as 128 to compile a model
            for few lengths. The padding is a document of its own, without targets.

    Raises:
        MaskwiseError: the corruption is for decoders, the model cannot keep documents apart, or a
            document is longer than its positions.

    >>> import maskwise as mw
    >>> from transformers import BertConfig, BertForMaskedLM
    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **size))
    >>> collate = PackedCollator(mw.Masker(tokenizer, ratio=0.5), model=model)
    >>> rows = mw.encode(tokenizer, ["the cat", "on the mat"])
    >>> line = collate([{**row, "step": 0, "epoch": 0} for row in rows])
    >>> line["input_ids"].shape, line["position_ids"].tolist(), line["cu_seq_lens_q"].tolist()
    (torch.Size([1, 9]), [[0, 1, 2, 3, 0, 1, 2, 3, 4]], [0, 4, 9])
    >>> line["attention_mask"].shape, bool(model(**line).loss > 0)
    (torch.Size([1, 1, 9, 9]), True)
    """

    def __init__(
        self,
        masker: Masker,
        *,
        model: PreTrainedModel | None = None,
        total_steps: int | None = None,
        pad_to_multiple_of: int | None = None,
    ):
        self.collator = MaskingCollator(
            masker, total_steps=total_steps, pad_to_multiple_of=pad_to_multiple_of
        )
        if masker.corruption.writes is not None:
            raise MaskwiseError(
                "PackedCollator needs a corruption for encoders, with a label for each token",
                got=f"corruption {masker.corruption}",
                do="use bert or mask-only, for example, or MaskingCollator",
            )
        # The model is not kept, because a data loader would copy it to its workers.
        self.blocks = False
        self.room: int | None = None
        self.first_position = 0
        self.window = 0
        if model is None:
            warnings.warn(
                "without model=…, PackedCollator cannot check that attention keeps documents apart",
                stacklevel=2,
            )
            return
        if not isinstance(model, torch.nn.Module):
            raise MaskwiseError("model is not loaded", got=model, allowed="a loaded model, or None")
        # DataParallel and DistributedDataParallel hold the model in ``module``.
        inner: Any = model if hasattr(model, "config") else getattr(model, "module", model)
        if not hasattr(inner, "config"):
            raise MaskwiseError(
                "PackedCollator knows only models of transformers, which have a configuration",
                got=type(model).__name__,
                do="give the model of transformers in it, or model=None",
            )
        config = inner.config
        self.blocks = needs_blocks(config)
        self.first_position = adapter_of(config).first_position(config)
        self.window, _ = window_of(config)
        self.room = positions_of(inner)

    def __call__(self, rows: UserRows) -> dict[str, Any]:
        batch = self.collator.masked(rows)
        if "position_ids" in batch.extras:
            raise MaskwiseError(
                "PackedCollator counts the positions of each document itself",
                got="rows with position_ids",
                do="remove the column, or use MaskingCollator",
            )
        document_BL = torch.from_numpy(batch.piece_ids)
        # Indexing with ``present_BL`` concatenates the rows without their padding.
        present_BL = document_BL >= 0
        columns = {"input_ids": batch.input_ids, "labels": batch.labels, **batch.extras}
        document_T = document_BL[present_BL]
        added = -len(document_T) % (self.collator.pad_to_multiple_of or 1)
        if added:
            # No document of the batch has this number.
            document_T = pad(document_T, (0, added), value=batch.line.pieces)
        padding = {"input_ids": self.collator.masker.vocabulary.pad, "labels": IGNORE}
        line: dict[str, Any] = {}
        for name, column in columns.items():
            values = column[present_BL]
            if added:
                values = pad(values, (0, added), value=padding.get(name, 0))
            line[name] = values.unsqueeze(0)
        _, lengths = document_T.unique_consecutive(return_counts=True)
        read = int(batch.lengths.read.max(initial=0))
        check_positions(read, self.room, read=read)
        # Flash attention needs 32-bit offsets, for queries and for keys, which are equal here.
        ends = pad(lengths.cumsum(0), (1, 0)).int()
        starts_T = ends[:-1].repeat_interleave(lengths)
        positions = torch.arange(len(document_T)) - starts_T
        # The padding may have more tokens than the model has positions.
        positions[len(document_T) - added :] = 0
        positions += self.first_position
        longest = max(lengths.tolist(), default=0)
        line |= {
            "position_ids": positions.unsqueeze(0),
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        if self.blocks:
            line["attention_mask"] = self.mask(document_T)
        return line

    def mask(self, document_T: Tensor) -> Tensor | dict[str, Tensor]:
        """(1, 1, T, T) bool: True where a token attends to another token.

        For models with sliding attention, a dict with one such mask for each kind of layer.
        """
        together = (document_T[:, None] == document_T)[None, None]
        if not self.window:
            return together
        place = torch.arange(len(document_T))
        distance = place[:, None] - place
        near = together & (distance.abs() <= self.window)
        # With a single mask, the sliding layers of ModernBERT would attend beyond their windows.
        return {"full_attention": together, "sliding_attention": near}


def needs_blocks(config: PreTrainedConfig) -> bool:
    """Whether a model with this configuration needs a mask to keep documents apart.

    Raises:
        MaskwiseError: the model cannot keep documents apart.
    """
    require_kind(config, "encoder", use="a line of tokens", do="use MaskingTrainer, which pads")
    attention = config._attn_implementation
    family = adapter_of(config)
    pads = "use MaskingCollator, which pads"
    if not family.separates:
        what = f"{config.model_type} cannot keep the documents of a line apart"
        known = [name for name, other in ENCODERS.items() if other.separates]
        raise MaskwiseError(what, got=config.model_type, allowed=", ".join(known), do=pads)
    # All versions of flash attention accept the boundaries of documents.
    ragged = is_flash_attention_requested(config)
    # ESM multiplies its embeddings by ``attention_mask``, so a block mask would be wrong.
    if isinstance(family, Esm) and (config.token_dropout or not ragged):
        raise MaskwiseError(
            "ESM would scale its embeddings by the mask tokens of the whole line",
            got=f"{attention}, token_dropout {config.token_dropout}",
            allowed="flash_attention_2, token_dropout False",
            do=pads,
        )
    if not ragged and attention not in MASKED:
        raise MaskwiseError(
            "this attention accepts neither the boundaries of documents nor a boolean mask",
            got=attention,
            allowed="sdpa, flash_attention_2",
            do=pads,
        )
    return not ragged
