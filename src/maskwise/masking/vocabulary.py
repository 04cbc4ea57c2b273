"""What masking must know of a tokenizer: which ids are special, which stand for [MASK], [PAD], [UNK], which
are real.

Read once, as tables over ids, so that nothing is asked of the tokenizer while masking (asking it row by row
is where the usual collator spends most of its time).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tables over ids. ``size`` is one more than the largest id; ids at or above it are refused.

    Attributes:
        content: (V,) bool; False for special tokens and for holes in the numbering: never masked, moved or
            drawn.
        eligible: (V,) bool, content that may be masked: all but [UNK], from which there is nothing to learn.
        ordinary: (N,) int64, the eligible ids in order: what a random replacement may be.
        sentinels: ids of T5-like sentinels in the order of their use; empty where there are none.
    """

    size: int
    mask: int | None
    pad: int
    content: Tensor
    eligible: Tensor
    ordinary: Tensor
    sentinels: tuple[int, ...] = ()
    bos: int | None = None
    eos: int | None = None
    by_name: dict[str, int] = field(default_factory=dict, repr=False)
    _copies: dict[torch.device, Vocabulary] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """Read a Hugging Face tokenizer (fast or slow: only its tables are used).

        Raises:
            MaskwiseError: no padding token, or nothing but special tokens.
        """
        by_name = tokenizer.get_vocab()
        size = max(by_name.values()) + 1
        content = torch.zeros(size, dtype=torch.bool)
        content[list(by_name.values())] = True
        sentinels = sorted(
            (name for name in by_name if name.startswith("<extra_id_") and name[10:-1].isdigit()),
            key=lambda name: int(name[10:-1]),
        )
        # Reserved tokens may be marked special in the added tokens alone, with no role of their own.
        added = getattr(tokenizer, "added_tokens_decoder", {})
        reserved = [i for i, token in added.items() if getattr(token, "special", False)]
        special = {*tokenizer.all_special_ids, *reserved, *(by_name[name] for name in sentinels)}
        unknown = tokenizer.unk_token_id
        others = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            tokenizer.mask_token_id,
        )
        # Tokenizers of the GPT-2 family give one token as bos, eos and unk alike; that one stays special.
        if unknown not in others:
            special.discard(unknown)
        content[[i for i in special if i < size]] = False
        eligible = content.clone()
        if unknown is not None:
            eligible[unknown] = False
        ordinary = eligible.nonzero().flatten()
        if not len(ordinary):
            raise MaskwiseError("the tokenizer has no ordinary token", got=f"{size} ids, all special")
        if tokenizer.pad_token_id is None:
            raise MaskwiseError("the tokenizer has no padding token", do="set tokenizer.pad_token")
        return cls(
            size=size,
            mask=tokenizer.mask_token_id,
            pad=tokenizer.pad_token_id,
            content=content,
            eligible=eligible,
            ordinary=ordinary,
            sentinels=tuple(by_name[name] for name in sentinels),
            bos=_first(tokenizer.cls_token_id, tokenizer.bos_token_id),
            eos=_first(tokenizer.sep_token_id, tokenizer.eos_token_id),
            by_name=by_name,
        )

    @cached_property
    def kind(self) -> Tensor:
        """(V,) uint8: 0 for what is no content, 1 for content that is not eligible, 2 for eligible ids."""
        return self.content.byte() + self.eligible

    @cached_property
    def sentinel(self) -> Tensor:
        """(S,) int64: ``sentinels`` as a tensor."""
        return torch.tensor(self.sentinels, dtype=torch.int64, device=self.content.device)

    def to(self, device: torch.device) -> Vocabulary:
        """The same tables on another device; copied there once."""
        if self.content.device == device:
            return self
        if device not in self._copies:
            tables = {name: getattr(self, name).to(device) for name in ("content", "eligible", "ordinary")}
            self._copies[device] = replace(self, **tables, _copies={})
        return self._copies[device]

    def require_mask(self) -> int:
        if self.mask is None:
            raise MaskwiseError(
                "the tokenizer has no mask token",
                do="use a masked-language-model tokenizer, or "
                "tokenizer.add_special_tokens({'mask_token': '[MASK]'})",
            )
        return self.mask


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)
