"""Tokens → blocks: the rows that training reads.

Documents are taken in windows of about a million tokens; a window is cut into pieces and laid out in rows
(rows.py) with numpy, so the memory needed beside the result does not grow with the corpus.

Cost: see `rows`; some millions of tokens per second on one core, far more than a tokenizer gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.text.blocks import Blocks, Columns, tokenizer_key
from maskwise.text.rows import WINDOW_TOKENS, Array, Frame, cut, lay_out
from maskwise.text.tokenizers import Tokens

LAYOUTS = ("packed", "document")
NO_TOKENS = "documents without tokens"


def pack(
    tokens: Iterable[Tokens],
    *,
    tokenizer: Any,
    length: int,
    layout: Literal["packed", "document"] = "packed",
    out: str | Path | None = None,
) -> Blocks:
    """Rows [CLS] piece [SEP] piece [SEP] … of `length` tokens, padded at the end.

    A piece is as much of a document as fits one row, cut between words. A word longer than a row gets −1 (not
    eligible) and is counted. An example id is a hash of the document's name and of the index of the piece's
    first token; it does not depend on the layout.

    Args:
        tokens: documents, as `tokenise` yields them.
        tokenizer: for its special tokens: cls (if any) before a row, sep or eos behind every piece.
        length: L, special tokens included.
        layout: "packed" fills rows with several pieces; "document" puts one piece in each row.
        out: write the blocks to this file, window by window, and return them memory-mapped: for a corpus that
            is larger than memory.

    Raises:
        MaskwiseError: for a length without room, an unknown layout, layers that not all documents have, or no
        tokens.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    frame, key = Frame.of(tokenizer), tokenizer_key(tokenizer)
    if not 1 <= frame.room(length) < 2**15:
        raise MaskwiseError(
            "length leaves no room for text, or is too long", got=length, allowed="3 to 32,768"
        )
    if out is None:
        return _packed(tokens, frame, length, layout, Columns(), key)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as folder:
        _packed(tokens, frame, length, layout, Columns(Path(folder)), key).save(path)
    return Blocks.load(path)


def _packed(
    tokens: Iterable[Tokens], frame: Frame, length: int, layout: str, columns: Columns, key: str
) -> Blocks:
    counts = Counter[str]()
    for window in _windows(tokens):
        lengths = np.array([len(document.input_ids) for document in window], dtype=np.int64)
        names = [document.document_id for document in window]
        pieces, found = cut(names, _flat(window), lengths, room=frame.room(length))
        empty = int((lengths == 0).sum())
        counts += found + Counter({"documents": len(window), "pieces": len(pieces.lengths), NO_TOKENS: empty})
        columns.append(lay_out(pieces, frame, length=length, layout=layout))
    if not counts["pieces"]:
        raise MaskwiseError(
            "no tokens to pack", got=f"{counts['documents']} documents", do="check the corpus"
        )
    return Blocks(columns.joined(), frame, layout, counts, key)


def unigram_counts(blocks: Blocks, vocab_size: int) -> NDArray[np.int64]:
    """(V,) how often every token stands in the text; special tokens and padding are not counted."""
    total = np.zeros(vocab_size, dtype=np.int64)
    step = max(1, WINDOW_TOKENS // blocks.length)
    for start in range(0, len(blocks), step):
        rows = slice(start, start + step)
        found = np.bincount(blocks.input_ids[rows][blocks.segment[rows] >= 0], minlength=vocab_size)
        if len(found) > vocab_size:
            do = "use the tokenizer that made the blocks"
            raise MaskwiseError(
                "token id outside the vocabulary", got=len(found) - 1, allowed=f"< {vocab_size}", do=do
            )
        total += found
    return total


def _windows(tokens: Iterable[Tokens]) -> Iterator[list[Tokens]]:
    window: list[Tokens] = []
    size = 0
    for document in tokens:
        window.append(document)
        size += len(document.input_ids) + 1
        if size >= WINDOW_TOKENS:
            yield window
            window, size = [], 0
    if window:
        yield window


def _flat(window: list[Tokens]) -> dict[str, Array]:
    layers = list(window[0].layers)
    for document in window:
        if list(document.layers) != layers:
            got = f"{list(document.layers)} in {document.document_id!r}"
            raise MaskwiseError("every document needs the same layers", got=got, allowed=layers)
    columns = {
        "input_ids": np.concatenate([document.input_ids for document in window]),
        "word_ids": np.concatenate([document.word_ids for document in window]),
    }
    return {
        **columns,
        **{name: np.concatenate([document.layers[name] for document in window]) for name in layers},
    }
