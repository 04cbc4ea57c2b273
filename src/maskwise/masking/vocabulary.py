"""The vocabulary: tables over ids, read once from a tokenizer.

The tables record which ids are ordinary tokens and which ids are special. The usual collator asks
the tokenizer about each row, which takes most of the collator's time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.keys import Array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenizer: TypeAlias = "PreTrainedTokenizerBase | Vocabulary"
"""The types from which a masker reads its vocabulary."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tables over ids. ``size`` is one more than the largest id; larger ids are refused.

    Attributes:
        mask, pad, bos, eos: ids of special tokens; None if the tokenizer has no such token.
        content: (V,) bool; False for special tokens and unused ids, which are never masked, moved
            or drawn.
        eligible: (V,) bool, content except [UNK], which teaches nothing as a target.
        sentinels: ids of T5-like sentinels in the order of their use.
        by_name: the id of each token, keyed by token.
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
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Read a Hugging Face tokenizer (fast or slow: only its tables are used).

        Raises:
            MaskwiseError: not a tokenizer, no padding token, or nothing but special tokens.
        """
        if isinstance(tokenizer, Vocabulary):
            return tokenizer
        if isinstance(tokenizer, type) or not hasattr(tokenizer, "all_special_ids"):
            raise MaskwiseError(
                "a masker needs a tokenizer",
                got=repr(tokenizer),
                allowed="a transformers tokenizer, or a Vocabulary",
                do="load it first: transformers.AutoTokenizer.from_pretrained(NAME)",
            )
        by_name = tokenizer.get_vocab()
        size = max(by_name.values()) + 1
        sentinels = []
        for name, number in by_name.items():
            found = re.fullmatch(r"<extra_id_(\d+)>", name)
            if found:
                sentinels.append((int(found[1]), number))
        sentinel_ids = tuple(dict(sorted(sentinels)).values())
        special = {*tokenizer.all_special_ids, *sentinel_ids}
        # Reserved tokens without a role are special only in the table of added tokens.
        for number, token in tokenizer.added_tokens_decoder.items():
            if token.special:
                special.add(number)
        unknown = tokenizer.unk_token_id
        bos = tokenizer.bos_token_id
        eos = tokenizer.eos_token_id
        pad = tokenizer.pad_token_id
        mask = tokenizer.mask_token_id
        # In texts [UNK] is an unknown word, so it is content. But tokenizers of the GPT-2 family
        # have one token for bos, eos and unk, which stays special.
        if unknown not in (bos, eos, pad, mask):
            special.discard(unknown)
        content = np.zeros(size, bool)
        content[list(by_name.values())] = True
        # Added tokens may have ids that the vocabulary does not list.
        numbers = np.array([*special], np.int64)
        content[numbers[numbers < size]] = False
        eligible = content.copy()
        if unknown is not None:
            eligible[unknown] = False
        if not eligible.any():
            raise MaskwiseError(
                "the tokenizer has no ordinary token",
                got=f"{size} ids, all special",
            )
        if pad is None:
            raise MaskwiseError("the tokenizer has no padding token", do="set tokenizer.pad_token")
        return cls(
            size=size,
            mask=mask,
            pad=pad,
            content=content,
            eligible=eligible,
            sentinels=sentinel_ids,
            bos=bos if tokenizer.cls_token_id is None else tokenizer.cls_token_id,
            eos=eos if tokenizer.sep_token_id is None else tokenizer.sep_token_id,
            by_name=by_name,
        )

    @cached_property
    def ordinary(self) -> Array:
        """(N,) int64, the eligible ids in order: the possible random replacements."""
        return np.flatnonzero(self.eligible)

    @cached_property
    def kind(self) -> Array:
        """(V,) uint8: 2 for eligible ids, 1 for content that is not eligible, 0 for other ids."""
        return self.content.astype(np.uint8) + self.eligible

    @cached_property
    def sentinel(self) -> Array:
        """(S,) int64: ``sentinels`` as an array."""
        return np.array(self.sentinels, np.int64)

    def require_mask(self) -> int:
        """The id of the mask token.

        Raises:
            MaskwiseError: the tokenizer has no mask token.
        """
        if self.mask is None:
            do = (
                "use a masked-language-model tokenizer, or "
                "tokenizer.add_special_tokens({'mask_token': '[MASK]'})"
            )
            if self.sentinels:
                do = "use policy='t5-span' with corruption='t5', which needs only sentinels"
            raise MaskwiseError("the tokenizer has no mask token", do=do)
        return self.mask
