"""What masking must know of a tokenizer: which ids are special, which stand for [MASK], [PAD],
[UNK], which are real.

Read once, as tables over ids, so that nothing is asked of the tokenizer while masking (asking it
row by row is where the usual collator spends most of its time).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenizer: TypeAlias = "PreTrainedTokenizerBase | Vocabulary"
"""What a masker is built for."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tables over ids. ``size`` is one more than the largest id; ids at or above it are refused.

    Attributes:
        content: (V,) bool; False for special tokens and for holes in the numbering: never masked,
            moved or drawn.
        eligible: (V,) bool, content that may be masked: all but [UNK], from which there is nothing
            to learn.
        sentinels: ids of T5-like sentinels in the order of their use; empty where there are none.
    """

    size: int
    mask: int | None
    pad: int
    content: Array
    eligible: Array
    sentinels: tuple[int, ...] = ()
    bos: int | None = None
    eos: int | None = None
    by_name: dict[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Read a Hugging Face tokenizer (fast or slow: only its tables are used).

        Raises:
            MaskwiseError: no tokenizer, no padding token, or nothing but special tokens.
        """
        if isinstance(tokenizer, type) or not hasattr(tokenizer, "all_special_ids"):
            got = repr(tokenizer) if isinstance(tokenizer, str) else type(tokenizer).__name__
            do = "load it first: transformers.AutoTokenizer.from_pretrained(NAME)"
            allowed = "a transformers tokenizer, or a Vocabulary"
            raise MaskwiseError("a masker needs a tokenizer", got=got, allowed=allowed, do=do)
        by_name = tokenizer.get_vocab()
        size = max(by_name.values()) + 1
        content = np.zeros(size, bool)
        content[list(by_name.values())] = True
        sentinels = sorted(
            (name for name in by_name if name.startswith("<extra_id_") and name[10:-1].isdigit()),
            key=lambda name: int(name[10:-1]),
        )
        # Reserved tokens may be marked special in the added tokens alone, with no role of their
        # own.
        added = getattr(tokenizer, "added_tokens_decoder", {})
        reserved = [i for i, token in added.items() if getattr(token, "special", False)]
        special = {*tokenizer.all_special_ids, *reserved, *(by_name[name] for name in sentinels)}
        unknown = tokenizer.unk_token_id
        roles = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
        # Tokenizers of the GPT-2 family give one token as bos, eos and unk alike; that one stays
        # special.
        if unknown not in [getattr(tokenizer, role) for role in roles]:
            special.discard(unknown)
        content[[i for i in special if i < size]] = False
        eligible = content.copy()
        if unknown is not None:
            eligible[unknown] = False
        if not eligible.any():
            raise MaskwiseError(
                "the tokenizer has no ordinary token", got=f"{size} ids, all special"
            )
        if tokenizer.pad_token_id is None:
            raise MaskwiseError("the tokenizer has no padding token", do="set tokenizer.pad_token")
        return cls(
            size=size,
            mask=tokenizer.mask_token_id,
            pad=tokenizer.pad_token_id,
            content=content,
            eligible=eligible,
            sentinels=tuple(by_name[name] for name in sentinels),
            bos=_first(tokenizer.cls_token_id, tokenizer.bos_token_id),
            eos=_first(tokenizer.sep_token_id, tokenizer.eos_token_id),
            by_name=by_name,
        )

    @cached_property
    def ordinary(self) -> Array:
        """(N,) int64, the eligible ids in order: what a random replacement may be."""
        return np.flatnonzero(self.eligible)

    @cached_property
    def kind(self) -> Array:
        """(V,) uint8: 0 for what is no content, 1 for content that is not eligible, 2 for eligible
        ids.
        """
        return self.content.astype(np.uint8) + self.eligible

    @cached_property
    def sentinel(self) -> Array:
        """(S,) int64: ``sentinels`` as an array."""
        return np.array(self.sentinels, np.int64)

    def require_mask(self) -> int:
        if self.mask is None:
            do = (
                "use a masked-language-model tokenizer, or "
                "tokenizer.add_special_tokens({'mask_token': '[MASK]'})"
            )
            raise MaskwiseError("the tokenizer has no mask token", do=do)
        return self.mask


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)
