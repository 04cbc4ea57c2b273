"""Rows with words and names for a ``Masker``: from texts (``encode``), or from rows of tokens
(``annotate_rows``).

Where the text is there, words are found in it (``words``). Where only tokens are left, as behind
run_mlm's grouping of texts into blocks, the characters that each token shows are put together
again, and the same rule is applied.
Cost: that of the tokenizer; of rows of tokens, a look-up and some array work for each row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError, whole_number
from maskwise.text.readers import is_utf8
from maskwise.text.words import (
    Flags,
    flat_offsets,
    special_ids,
    text_id,
    tokenizing,
    word_ids,
    word_ids_of_batch,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NO_IDS, ONLY_IDS = "input_ids must hold rows of token ids", "whole numbers ≥ 0"


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    max_length: int | None = None,
    ids: Iterable[int] | None = None,
) -> list[dict[str, Any]]:
    """Texts → rows for a `Masker`, special tokens added: lists under "input_ids", "attention_mask"
    and "word_ids", and an int under "example_id".

    Args:
        tokenizer: a fast transformers tokenizer.
        texts: one row each.
        max_length: tokens per row, special ones included; longer rows are cut behind their text,
            and a word that the cut goes through gets −1, for half a word is not to be masked.
        ids: the example ids; without them each is a hash of its text (`text_id`).

    Raises:
        MaskwiseError: for a slow tokenizer, anything but texts, too few ids, or a `max_length`
            without room.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> encode(tokenizer, ["the cat"], ids=[7])[0]["word_ids"]
    [-1, 0, 1, -1]
    """
    require_fast(tokenizer)
    texts = _checked(texts)
    if max_length is not None:
        max_length = whole_number("max_length", max_length, least=1)
    names = [text_id(text) for text in texts]
    if ids is not None:
        if not isinstance(ids, Iterable):
            raise MaskwiseError(
                "every text needs one id", got=repr(ids), allowed="a list of whole numbers"
            )
        names = [
            whole_number("an example id", name, least=-(2**63), most=2**64 - 1) for name in ids
        ]
    if len(names) != len(texts):
        raise MaskwiseError(
            "every text needs one id", got=f"{len(names)} ids for {len(texts)} texts"
        )
    if not texts:
        return []
    with tokenizing():
        encodings = tokenizer(texts, truncation=False, padding=False, verbose=False).encodings
    offsets, lengths = flat_offsets(encodings)
    tokens = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
    added = [np.array(encoding.special_tokens_mask, dtype=bool) for encoding in encodings]
    special = np.concatenate(added) | np.isin(np.concatenate(tokens), special_ids(tokenizer))
    words = np.split(
        word_ids_of_batch(texts, offsets, lengths, special=special), np.cumsum(lengths)[:-1]
    )
    rows = []
    for token, frame, word, name in zip(tokens, added, words, names):
        keep, word = _cut(frame, word, max_length)
        row = {"input_ids": token[keep].tolist(), "attention_mask": [1] * int(keep.sum())}
        rows.append({**row, "word_ids": word[keep].tolist(), "example_id": name})
    return rows


def require_fast(tokenizer: object) -> None:
    """Refuse what is no fast tokenizer: words are found by its character offsets."""
    if isinstance(tokenizer, type) or not getattr(tokenizer, "is_fast", False):
        got = repr(tokenizer) if isinstance(tokenizer, str) else type(tokenizer).__name__
        do = "load one: transformers.AutoTokenizer.from_pretrained(NAME)"
        raise MaskwiseError(
            "words need a fast tokenizer, for its character offsets", got=got, do=do
        )


def _checked(texts: Any) -> list[str]:
    """The texts as a list, if they are texts that a tokenizer can read."""
    what = "texts must be a list of strings"
    if isinstance(texts, str):
        raise MaskwiseError(what, got="one string", do="give [text]")
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise MaskwiseError(what, got=type(texts).__name__)
    found = list(texts)
    for place, text in enumerate(found):
        if not isinstance(text, str):
            raise MaskwiseError(what, got=f"{type(text).__name__} at place {place}")
        if not is_utf8(text):
            do = "replace it: text.encode('utf-8', 'replace').decode()"
            raise MaskwiseError(
                "a text holds half a character (a lone surrogate)", got=f"place {place}", do=do
            )
    return found


def _cut(
    frame: Flags, word: NDArray[np.int32], limit: int | None
) -> tuple[Flags, NDArray[np.int32]]:
    """Which tokens a row of at most `limit` keeps (special ones and the first of the text), and its
    words.
    """
    keep = np.ones(len(frame), dtype=bool)
    if limit is None or len(frame) <= limit:
        return keep, word
    content, room = np.flatnonzero(~frame), limit - int(frame.sum())
    if room < 1:
        raise MaskwiseError(
            "max_length leaves no room for text", got=limit, allowed=f"> {int(frame.sum())}"
        )
    keep[content[room:]] = False
    lost = word[content[room]]
    return keep, np.where((word == lost) & (lost >= 0), -1, word).astype(np.int32)


def annotate_rows(
    batch: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_field: str = "text",
    max_length: int | None = None,
) -> dict[str, Any]:
    """The same batch with "word_ids" and "example_id", for ``datasets.map`` (batched or not), as in
    run_mlm.

    Rows of tokens may be anything: lines, or blocks of a fixed length that were cut out of joined
    texts. Their words are read off the tokens' own characters by the rule of this module. A batch
    without "input_ids" is tokenised first. A word that stands on the border of two blocks is a word
    in each of them.

    Args:
        batch: columns by name. "input_ids" holds a list of token ids for each row (or for the one
            row).
        tokenizer: the fast tokenizer that made the rows.
        text_field: the column of texts, where there is no "input_ids".
        max_length: see ``encode``; not used for rows of tokens.

    Returns:
        All columns of the batch, with "word_ids" (as long as the row, −1 where there is no word)
        and "example_id" (a hash of the row's text or tokens, by which its masks are drawn).

    Raises:
        MaskwiseError: a batch with neither column, rows that are no token ids, or a slow tokenizer.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> rows = annotate_rows({"input_ids": tokenizer(["the cat", "mat"])["input_ids"]}, tokenizer)
    >>> rows["word_ids"]
    [[-1, 0, 1, -1], [-1, 0, -1]]
    """
    if not isinstance(batch, Mapping):
        got, allowed = type(batch).__name__, "a dict of columns"
        raise MaskwiseError("this is no batch of rows", got=got, allowed=allowed)
    columns = dict(batch)
    if "input_ids" not in columns:
        if text_field not in columns:
            do = "name the column of texts with text_field=…"
            got = ", ".join(map(str, columns))
            allowed = f"input_ids or {text_field}"
            raise MaskwiseError(
                "a batch with neither input_ids nor texts", got=got, allowed=allowed, do=do
            )
        texts = columns[text_field]
        rows = encode(
            tokenizer, [texts] if isinstance(texts, str) else texts, max_length=max_length
        )
        made = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
        return columns | (
            {name: column[0] for name, column in made.items()} if isinstance(texts, str) else made
        )
    rows_of_ids = columns["input_ids"]
    if not isinstance(rows_of_ids, list | tuple) and np.ndim(rows_of_ids) == 0:
        raise MaskwiseError(NO_IDS, got=repr(rows_of_ids), allowed=ONLY_IDS)
    alone = len(rows_of_ids) > 0 and not hasattr(rows_of_ids[0], "__len__")
    rows_of_ids = [rows_of_ids] if alone else rows_of_ids
    surfaces = _Surfaces(tokenizer)
    words, names = list[list[int]](), list[int]()
    for ids in rows_of_ids:
        try:
            ids_L = np.asarray(ids)
            fits = ids_L.ndim == 1 and (
                not ids_L.size or (ids_L.dtype.kind in "iu" and int(ids_L.min()) >= 0)
            )
        except (TypeError, ValueError):  # lists in lists, tensors that numpy does not have
            fits = False
        if not fits:
            raise MaskwiseError(NO_IDS, got=str(ids)[:60], allowed=ONLY_IDS)
        words.append(surfaces.words(ids_L.tolist()))
        digest = hashlib.blake2b(ids_L.astype("<i8").tobytes(), digest_size=8).digest()
        names.append(int.from_bytes(digest, "little") >> 1)
    return columns | {
        "word_ids": words[0] if alone else words,
        "example_id": names[0] if alone else names,
    }


class _Surfaces:
    """The characters that each token of a vocabulary shows: what is left of a text where only its
    tokens are known.
    """

    UNKNOWN = "\ufffd"
    """Shown for [UNK]: a symbol, and so a word of its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        require_fast(tokenizer)
        self.tokenizer, self.known = tokenizer, dict[int, bytes]()
        self.special, self.unknown = frozenset(special_ids(tokenizer)), tokenizer.unk_token_id
        backend = tokenizer.backend_tokenizer
        self.byte_level = "ByteLevel" in f"{backend.pre_tokenizer} {backend.decoder}"
        self.continued = getattr(backend.model, "continuing_subword_prefix", None)
        if type(backend.model).__name__ != "WordPiece":
            self.continued = None

    def words(self, ids: Sequence[int]) -> list[int]:
        """The word of every token of a row; −1 for special ones."""
        parts = [b"\n" if token in self.special else self._bytes(token) for token in ids]
        # a row may begin in the middle of a character
        text = b"".join(parts).decode("utf-8", "surrogateescape")
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        escaped = (codes >= 0xDC80) & (codes <= 0xDCFF)
        bytes_of = np.where(escaped, 1, 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000))
        char_of = np.append(np.repeat(np.arange(len(codes)), bytes_of), len(codes))
        end = np.cumsum(np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)))
        start = np.concatenate(([0], end[:-1]))
        ends = np.where(end > start, char_of[np.maximum(end - 1, 0)] + 1, char_of[start])
        special = np.fromiter((token in self.special for token in ids), dtype=bool, count=len(ids))
        return word_ids(text, np.stack([char_of[start], ends], axis=1), special=special).tolist()

    def _bytes(self, token: int) -> bytes:
        if token not in self.known:
            self.known[token] = self._shown(token)
        return self.known[token]

    def _shown(self, token: int) -> bytes:
        name = self.tokenizer.convert_ids_to_tokens(token)
        if not isinstance(name, str) or token == self.unknown:
            return f" {self.UNKNOWN}".encode()
        if self.byte_level:
            table = _byte_table()
            return (
                bytes(table[char] for char in name)
                if all(char in table for char in name)
                else name.encode()
            )
        if self.continued is not None:
            return (
                name.removeprefix(self.continued).encode()
                if name.startswith(self.continued)
                else f" {name}".encode()
            )
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        return name.replace("\u2581", " ").encode()


@cache
def _byte_table() -> dict[str, int]:
    """GPT-2's letters for bytes: printable bytes stand for themselves, the others for letters from
    256 on.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(256 + n): byte for n, byte in enumerate(hidden)
    }
