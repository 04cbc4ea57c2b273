"""Rows: plans that assign pieces (parts of documents, pieces.py) to rows.

A plan has only the indices of pieces. The tokens are stored once, even if the same pieces are used
in several layouts, or are split into training and held-out rows.

Making a plan takes about 1 µs for each piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskwise.base.errors import MaskwiseError, finite_number, plural, require_known
from maskwise.masking.draws import Array
from maskwise.masking.line import Line
from maskwise.masking.segments import best_fit, listed, owners
from maskwise.text.documents import Document
from maskwise.text.pieces import (
    Ints,
    Pieces,
    read_columns,
    write_columns,
)

if TYPE_CHECKING:
    # torch takes two seconds to import, and reading documents does not need it.
    from torch import Tensor

LAYOUTS = ("packed", "joined", "document")
# Number of tokens that are planned or counted together.
WINDOW_TOKENS = 1 << 20


@dataclass(eq=False)
class Rows:
    """N rows of `length` tokens: pieces, and a plan that assigns pieces to rows.

    Attributes:
        pieces: all pieces of the corpus, also those that these rows do not use.
        order: the indices of the pieces, row by row.
        first: (N + 1,) int64; row r has the pieces ``order[first[r]:first[r + 1]]``.
        layout: "packed", "joined" or "document" (see `of`).
    """

    pieces: Pieces
    order: Ints
    first: Ints
    layout: str

    @classmethod
    def of(cls, pieces: Pieces, layout: str = "packed", *, chosen: Ints | None = None) -> Rows:
        """Plan rows of all pieces, or only of the ``chosen`` pieces.

        Args:
            pieces: P pieces.
            layout: "packed" puts several pieces in a row, each between special tokens, and tokens
                attend only to their own piece; "joined" makes one text of the pieces in a row;
                "document" puts one piece in each row.
            chosen: (P',) the indices of the chosen pieces, ascending.

        Raises:
            MaskwiseError: the layout is unknown, or a number is not the index of a piece.
        """
        require_known("layout", layout, LAYOUTS)
        if chosen is None:
            chosen = np.arange(len(pieces))
        chosen = _numbers("piece", chosen, below=len(pieces))
        if layout == "document":
            return cls(pieces, chosen, np.arange(len(chosen) + 1), layout)
        opening, closing, _ = pieces.frame
        cost = np.diff(pieces.offsets)[chosen] + (closing >= 0)
        space = pieces.length
        if layout == "packed":
            cost += opening >= 0
        else:
            # A joined row is one text, so it has only one token such as [CLS].
            space -= opening >= 0
        # Each window is planned separately. Pieces of a row are thus close to each other in the
        # corpus, and the time is linear in the size of the corpus.
        window_of_piece = cost.cumsum() // WINDOW_TOKENS
        borders = np.flatnonzero(np.diff(window_of_piece)) + 1
        if pieces.sources is not None:
            # A row has pieces of one source only, because the share of a source is a share of rows.
            between_sources = np.flatnonzero(np.diff(pieces.sources[chosen])) + 1
            borders = np.union1d(borders, between_sources)
        order = []
        sizes = [np.zeros(1, np.int64)]
        for window, costs in zip(np.split(chosen, borders), np.split(cost, borders)):
            row = best_fit(costs, space)
            # A stable sort keeps the pieces of a row in the order of the corpus.
            order.append(window[row.argsort(kind="stable")])
            sizes.append(np.bincount(row))
        first = np.cumsum(np.concatenate(sizes))
        return cls(pieces, np.concatenate(order), first, layout)

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def length(self) -> int:
        """L, the number of tokens in a row."""
        return self.pieces.length

    @property
    def lengths(self) -> Ints:
        """The number of tokens in each row, (N,) int64, without special tokens."""
        sizes = np.diff(self.pieces.offsets)[self.order]
        ends = np.cumsum(np.append(0, sizes))
        return np.diff(ends[self.first])

    @property
    def tokens(self) -> int:
        """The number of tokens that are not padding, including special tokens."""
        pieces = len(self.order)
        texts = pieces
        if self.layout == "joined":
            texts = len(self)
        opening, closing, _ = self.pieces.frame
        return int(self.lengths.sum()) + texts * (opening >= 0) + pieces * (closing >= 0)

    @property
    def documents(self) -> Ints:
        """The places (``Document.place``) of all documents in the rows, (D,), sorted."""
        return np.unique(self.pieces.documents[self.order])

    def by_source(self, count: int) -> list[int]:
        """Return the number of rows from each of ``count`` sources, in the order of the sources."""
        sources = self.pieces.sources
        if sources is None:
            sources = np.zeros(len(self.pieces), np.int16)
        first_piece = self.order[self.first[:-1]]
        return np.bincount(sources[first_piece], minlength=count).tolist()

    def line(self, rows: Sequence[int] | Array | Tensor) -> Line:
        """Return B rows as a line, the input of a ``Masker``.

        Args:
            rows: (B,) the indices of the rows.

        Raises:
            MaskwiseError: a number is not the index of a row.
        """
        pieces = self.pieces
        piece, count = self._pieces_of(rows)
        lengths = pieces.offsets[piece + 1] - pieces.offsets[piece]
        tokens = listed(pieces.offsets[piece], lengths)
        return Line.of_pieces(
            {name: column[tokens] for name, column in pieces.columns.items()},
            lengths,
            owners(count),
            example_id=pieces.example_ids[piece],
            length=pieces.length,
            frame=pieces.frame,
            apart=self.layout != "joined",
        )

    def _pieces_of(self, rows: Sequence[int] | Array | Tensor) -> tuple[Ints, Ints]:
        """Return the indices of the pieces of rows, and the number of pieces of each row."""
        at = _numbers("row", rows, below=len(self))
        begin = self.first[at]
        count = self.first[at + 1] - begin
        return self.order[listed(begin, count)], count

    def example_ids(self, rows: Sequence[int] | Array | Tensor) -> Ints:
        """Return the example ids of the pieces of rows, in their order."""
        piece, _ = self._pieces_of(rows)
        return self.pieces.example_ids[piece]

    def tensors(self, rows: Sequence[int] | Array | Tensor) -> dict[str, Tensor]:
        """Return B rows as (B, L) tensors; see ``Line.columns``."""
        import torch

        columns = self.line(rows).columns()
        return {name: torch.from_numpy(values) for name, values in columns.items()}

    def laid(self, layout: str) -> Rows:
        """Plan the same pieces in a different layout. The ids and masks of pieces stay the same."""
        if layout == self.layout:
            return self
        return Rows.of(self.pieces, layout, chosen=np.sort(self.order))

    def holding(self, example_ids: Ints) -> Ints:
        """Return the indices, ascending, of the rows with at least one of these pieces."""
        names = self.pieces.example_ids[self.order]
        places = np.flatnonzero(np.isin(names, example_ids))
        return np.unique(self.first.searchsorted(places, side="right") - 1)

    def unigram_counts(self, vocab_size: int) -> Ints:
        """Return the count of each token in the text, (V,), without special tokens and padding.

        Raises:
            MaskwiseError: a token is outside the vocabulary.
        """
        total = np.zeros(vocab_size, dtype=np.int64)
        offsets = self.pieces.offsets
        ids = self.pieces.columns["input_ids"]
        # Tokens are counted in windows, because the corpus may be larger than memory.
        step = max(1, WINDOW_TOKENS // self.length)
        for start in range(0, len(self.order), step):
            part = self.order[start : start + step]
            tokens = listed(offsets[part], offsets[part + 1] - offsets[part])
            counts = np.bincount(ids[tokens])
            require_in_vocabulary(len(counts) - 1, vocab_size)
            total[: len(counts)] += counts
        return total

    def save(self, folder: Path) -> None:
        """Write the plan to a new folder, without the pieces."""
        folder.mkdir()
        write_columns(folder, [{"order": self.order, "first": self.first}], {"layout": self.layout})

    @classmethod
    def load(cls, folder: Path, pieces: Pieces) -> Rows:
        """Open a plan that `save` wrote, memory-mapped."""
        columns, about = read_columns(folder, "order")
        return cls(pieces, **columns, layout=about["layout"])


def _numbers(what: str, values: Sequence[int] | Array | Tensor, *, below: int) -> Ints:
    """Return indices of rows or pieces as an array; raise an error if one is out of range."""
    numbers = np.asarray(values).reshape(-1)
    if not numbers.size:
        return numbers.astype(np.int64)
    # Numpy would truncate fractions, and count negative numbers from the end.
    if numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= below:
        raise MaskwiseError(
            f"there is no {what} with this number", got=values, allowed=f"0 to {below - 1}"
        )
    return numbers.astype(np.int64, copy=False)


def require_in_vocabulary(largest: int, vocab_size: int) -> None:
    """Raise a `MaskwiseError` if the largest token id of a text is outside the vocabulary."""
    if largest >= vocab_size:
        raise MaskwiseError(
            "a token id is outside the vocabulary",
            got=largest,
            allowed=f"< {vocab_size}",
            do="use the tokenizer that made the tokens",
        )


def split(pieces: Pieces, *, held_out: float, layout: str = "packed") -> tuple[Rows, Rows]:
    """Split documents by their places (``Document.place``), and return training and held-out rows.

    Args:
        pieces: the pieces of the corpus.
        held_out: the share of the documents that is held out.
        layout: the layout of the training rows and of the held-out rows.

    Raises:
        MaskwiseError: the share is not between 0 and 1, or leaves no training documents or no
            held-out documents.
    """
    finite_number("held_out", held_out, least=0, most=1)
    out = pieces.documents < held_out_below(held_out)
    sides = []
    for name, side in (("training", ~out), ("held-out", out)):
        if not side.any():
            do = "use a different share"
            if 0 < held_out < 1:
                # With this many documents, each side has one with a probability of 95 %.
                enough = math.ceil(3 / min(held_out, 1 - held_out))
                do = (
                    f"give about {enough:,} documents or more, or {do}; with "
                    "corpus.text_per=line, each line of a .txt file is a document, and in a FASTA "
                    "file each header (>NAME) begins one"
                )
            documents = len(np.unique(pieces.documents))
            what = f"corpus.held_out={held_out} leaves no {name} documents"
            # Whatever the share is, one document cannot be on both sides.
            if documents < 2:
                what = "some documents are held out from training, and this text has too few"
            raise MaskwiseError(what, got=plural(documents, "document"), do=do)
        sides.append(Rows.of(pieces, layout, chosen=np.flatnonzero(side)))
    training, held = sides
    return training, held


def holds_out(document: Document, share: float) -> bool:
    """Return whether a document is held out from training, if this share of all documents is."""
    return document.place < held_out_below(share)


def held_out_below(share: float) -> int:
    """Return a threshold. A document is held out if its place (``Document.place``) is below it."""
    # Places are uniform below 2⁶³.
    return int(share * 2**63)


def is_dev(place: int) -> bool:
    """Return whether a held-out document with this place (``Document.place``) is a dev document.

    Dev documents choose the best state of a training (``training.patience``) or its length
    (``training.lengths``). The places of the others, which judge it, are odd. The last bit does not
    depend on the share that is held out.
    """
    return place % 2 == 0


def dev_and_verdict(held_out: Rows) -> tuple[Rows, Rows]:
    """Split held-out rows by document into dev rows and rows for the verdict (``is_dev``).

    Raises:
        MaskwiseError: one of the two has no document.
    """
    pieces = np.sort(held_out.order)
    place = held_out.pieces.documents[pieces]
    dev = place % 2 == 0
    if dev.all() or not dev.any():
        raise MaskwiseError(
            "training.patience and training.lengths need held-out documents to choose by, and "
            "others to judge by",
            got=f"{plural(len(np.unique(place)), 'held-out document')}, all for one of them",
            do="hold out more (corpus.held_out), give more text, or remove them",
        )
    dev_rows = Rows.of(held_out.pieces, held_out.layout, chosen=pieces[dev])
    verdict_rows = Rows.of(held_out.pieces, held_out.layout, chosen=pieces[~dev])
    return dev_rows, verdict_rows
