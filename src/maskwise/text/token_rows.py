"""Corpora of token ids: rows of numbers that a tokenizer made earlier, without their texts.

A row is a document. Its tokens are kept as they are; special tokens are left out, because rows get
their own. The text of a row is the decoded text of its tokens, so words, annotation layers and near
copies are found as in texts. A row is known by its tokens and not by this text, which another row
may have, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskwise.base.errors import MaskwiseError, counted
from maskwise.text.documents import EMPTY, NO_TEXT
from maskwise.text.encoding import Surfaces
from maskwise.text.opening import Skip
from maskwise.text.pieces import tokenizer_key
from maskwise.text.source import RowTokens
from maskwise.text.tokenizers import load_tokenizer
from maskwise.text.words import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenRows:
    """Reads rows of token ids as documents. It can be sent to another process.

    Attributes:
        tokenizer: the name of the tokenizer that made the ids, as for ``load_tokenizer``.

    >>> _, tokens = TokenRows("bundled:encoder").read("rows.npy#1", [2, 312, 3])
    >>> tokens.ids.tolist()
    [312]
    """

    tokenizer: str

    def read(self, name: str, value: object) -> tuple[str, RowTokens] | Skip:
        """Return the text and the tokens of a row, without special tokens.

        Raises:
            MaskwiseError: the value is no row of ids, an id is outside of the vocabulary, or a
                token is masked already.
        """
        if value is None:
            return Skip(NO_TEXT)
        known = _known(self.tokenizer)
        try:
            ids = np.asarray(value)
        # Lists of different lengths are no array.
        except ValueError:
            ids = np.zeros((), object)
        if ids.size == 0 and ids.ndim == 1:
            return Skip(EMPTY)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise MaskwiseError(
                f"{name} is no row of token ids",
                got=str(value)[:40],
                allowed="a list of whole numbers",
            )
        inside = (ids >= 0) & (ids < len(known.used))
        inside[inside] = known.used[ids[inside]]
        if not inside.all():
            raise MaskwiseError(
                f"{name} has a token id that is not in the vocabulary of {self.tokenizer}",
                got=int(ids[~inside][0]),
                allowed=f"0 to {len(known.used) - 1:,}",
                do="set corpus.tokens to the tokenizer that made the ids",
            )
        if (ids == known.mask).any():
            raise MaskwiseError(
                f"{name} has mask tokens, so it is masked already",
                got=counted({"mask token": int((ids == known.mask).sum())}),
                do="give the rows before they are masked",
            )
        kept = ids[~np.isin(ids, known.special)].astype(np.int64)
        if not len(kept):
            return Skip(EMPTY)
        text, offsets = known.surfaces.read(kept)
        # A row may begin inside a character, whose bytes alone are no text.
        whole = re.sub("[\udc80-\udcff]", "\ufffd", text)
        return whole, RowTokens(kept, offsets, known.key)

    def require(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise a `MaskwiseError` if a model reads these ids with another tokenizer."""
        if _known(self.tokenizer).key != tokenizer_key(tokenizer):
            raise MaskwiseError(
                "the token ids of this corpus are of another tokenizer than that of the model",
                got=f"corpus.tokens={self.tokenizer}",
                do="give a model with this tokenizer, or the texts",
            )


class _Known(NamedTuple):
    """What is known of a tokenizer: which ids it uses, (V,), and others."""

    used: NDArray[np.bool_]
    special: list[int]
    mask: int
    surfaces: Surfaces
    key: str


@cache
def _known(name: str) -> _Known:
    tokenizer = load_tokenizer(name, needs_mask=False)
    numbers = [*tokenizer.get_vocab().values()]
    used = np.zeros(max(numbers) + 1, bool)
    used[numbers] = True
    mask = -1 if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    return _Known(used, special_ids(tokenizer), mask, Surfaces(tokenizer), tokenizer_key(tokenizer))
