"""What masking must know of a tokenizer: which ids are special, which stand for [MASK], [PAD], [UNK], which are real."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError

ORDINARY, UNKNOWN, SPECIAL = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tables over ids. ``size`` is one more than the largest id; ids at or above it are refused.

    Attributes:
        kind: (V,) uint8: ``ORDINARY``; ``UNKNOWN`` ([UNK]: content, but never masked, for there is nothing to learn
            from it); ``SPECIAL`` (never masked, moved or drawn: special tokens, and holes in the numbering).
        ordinary: (N,) int64, the ids that a random replacement may be.
        sentinels: ids of T5-like sentinels in the order of their use; empty where there are none.
    """

    size: int
    mask: int | None
    pad: int
    kind: Tensor
    ordinary: Tensor
    sentinels: tuple[int, ...] = ()
    bos: int | None = None
    eos: int | None = None
    by_name: dict[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """Read a Hugging Face tokenizer (fast or slow: only its tables are used)."""
        by_name = tokenizer.get_vocab()
        size = max(by_name.values()) + 1
        kind = torch.full((size,), SPECIAL, dtype=torch.uint8)
        kind[list(by_name.values())] = ORDINARY
        kind[[i for i in tokenizer.all_special_ids if i < size]] = SPECIAL
        unknown = tokenizer.unk_token_id
        others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id)
        # Tokenizers of the GPT-2 family give one token as bos, eos and unk alike; that one stays special.
        if unknown is not None and unknown not in others:
            kind[unknown] = UNKNOWN
        sentinels = sorted(
            (name for name in by_name if name.startswith("<extra_id_") and name[10:-1].isdigit()),
            key=lambda name: int(name[10:-1]),
        )
        kind[[by_name[name] for name in sentinels]] = SPECIAL
        ordinary = (kind == ORDINARY).nonzero().flatten()
        if not len(ordinary):
            raise MaskwiseError("the tokenizer has no ordinary token", got=f"{size} ids, all special")
        pad = tokenizer.pad_token_id
        if pad is None:
            raise MaskwiseError("the tokenizer has no padding token", do="set tokenizer.pad_token")
        return cls(
            size=size, mask=tokenizer.mask_token_id, pad=pad, kind=kind, ordinary=ordinary,
            sentinels=tuple(by_name[name] for name in sentinels),
            bos=_first(tokenizer.cls_token_id, tokenizer.bos_token_id),
            eos=_first(tokenizer.sep_token_id, tokenizer.eos_token_id), by_name=by_name,
        )  # fmt: skip

    def to(self, device: torch.device) -> Vocabulary:
        """The same tables on another device."""
        if self.kind.device == device:
            return self
        return replace(self, kind=self.kind.to(device), ordinary=self.ordinary.to(device))

    def require_mask(self) -> int:
        if self.mask is None:
            raise MaskwiseError(
                "the tokenizer has no mask token",
                do="use a masked-language-model tokenizer, or tokenizer.add_special_tokens({'mask_token': '[MASK]'})",
            )
        return self.mask


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)
