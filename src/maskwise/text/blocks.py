"""Blocks: a packed corpus on disk, N rows of L tokens, ready for the training loop.

The columns of one Arrow IPC file, memory-mapped: opening a corpus of any size is instant, several processes
share its pages, and a batch copies only its rows. Any Arrow reader can open the file; the row format is in
docs/data.md.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from maskwise.errors import MaskwiseError
from maskwise.text.layers import digest
from maskwise.text.rows import WINDOW_TOKENS, Array, Frame, Pieces, lay_out

if TYPE_CHECKING:  # torch takes two seconds: who only reads documents does not wait for it
    from torch import Tensor

FORMAT = 1
_RAGGED = ("example_ids", "documents")  # one entry per segment, not per row
_FIXED = ("input_ids", "word_ids", "segment", "sizes", "segments", *_RAGGED)


@dataclass(eq=False)
class Blocks:
    """N rows of `length` tokens: [CLS] piece [SEP] piece [SEP] … padding.

    Attributes:
        columns: name → array. (N, L): "input_ids" int32; "word_ids" int32, counted from 0 in every row;
            "segment" int16, the number of the piece in its row; other layers; all but the first −1 on special
            tokens and padding. (N,): "sizes" (tokens that are not padding), "segments" (pieces). One entry
            per piece: "example_ids" and "documents" (hash of the document's name), both int64.
        frame: the special tokens around the pieces.
        layout: "packed" or "document" (one piece per row).
        counts: documents read, pieces made, and what was left out or not eligible, with the reason.
        tokenizer: the key of the tokenizer that made the tokens (`tokenizer_key`); "" if it is not known.
    """

    columns: dict[str, Array]
    frame: Frame
    layout: str
    counts: Counter[str] = field(default_factory=Counter)
    tokenizer: str = ""

    def __post_init__(self) -> None:
        counts = self.columns["segments"].astype(np.int64)
        self.first_segment = np.cumsum(counts) - counts

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def length(self) -> int:
        """L, tokens per row."""
        return self.input_ids.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.columns["sizes"].sum(dtype=np.int64))

    @property
    def input_ids(self) -> Array:
        """(N, L) int32."""
        return self.columns["input_ids"]

    @property
    def word_ids(self) -> Array:
        """(N, L) int32."""
        return self.columns["word_ids"]

    @property
    def segment(self) -> Array:
        """(N, L) int16."""
        return self.columns["segment"]

    @property
    def segment_ids(self) -> Array:
        """(P,) int64: the example ids of all segments; those of row r begin at ``first_segment[r]``."""
        return self.columns["example_ids"]

    @property
    def layers(self) -> dict[str, Array]:
        """Layers beside the words, by name."""
        return {name: column for name, column in self.columns.items() if name not in _FIXED}

    def batch(self, rows: Sequence[int] | Array | Tensor) -> dict[str, Tensor]:
        """B rows as a masker and a model want them.

        Returns:
            "input_ids", "attention_mask", "word_ids" and other layers: (B, L), whole numbers as int64.
            "example_id": (B,) int64 if every row has one segment, else (B, L), −1 on special tokens and
            padding.
        """
        at = np.asarray(rows, dtype=np.int64).reshape(-1)
        outside = at[(at < 0) | (at >= len(self))]
        if len(outside):
            raise MaskwiseError("no such row", got=int(outside[0]), allowed=f"0 to {len(self) - 1}")
        segment, first = self.segment[at].astype(np.int64), self.first_segment[at]
        names = self.segment_ids[first]
        if (self.columns["segments"][at] > 1).any():
            names = np.where(segment >= 0, self.segment_ids[first[:, None] + np.maximum(segment, 0)], -1)
        shown = {"input_ids": self.input_ids, "word_ids": self.word_ids, **self.layers}
        batch = {name: _tensor(column[at]) for name, column in shown.items()}
        attention = np.arange(self.length) < self.columns["sizes"][at][:, None]
        return {**batch, "attention_mask": _tensor(attention.astype(np.int64)), "example_id": _tensor(names)}

    def split(self, *, held_out: float) -> tuple[Blocks, Blocks]:
        """(train, held out): a document goes, whole, to the side that the hash of its name says.

        Rows are laid out anew, for packed rows hold several documents; pieces and their example ids stay.

        Raises:
            MaskwiseError: for a share outside 0 … 1, or one that leaves a side empty.
        """
        if not 0 < held_out < 1:
            raise MaskwiseError(
                "held_out must be a share of the documents", got=held_out, allowed="0 < held_out < 1"
            )
        sides: tuple[Columns, Columns] = (Columns(), Columns())
        for pieces in self._pieces():
            out = is_held_out(pieces.documents, held_out)
            for side, chosen in zip(sides, (~out, out)):
                some = pieces.where(chosen)
                side.append(lay_out(some, self.frame, length=self.length, layout=self.layout))
        blocks = []
        for side in sides:
            columns = side.joined()
            counts = {"documents": len(np.unique(columns["documents"])), "pieces": len(columns["documents"])}
            blocks.append(Blocks(columns, self.frame, self.layout, Counter(counts), self.tokenizer))
        if not all(blocks):
            hashes = np.unique(self.columns["documents"])
            empty = "held-out" if blocks[0] else "training"
            do = "give more documents: each goes, whole, to one side"
            if len(hashes) > 1:
                between = (float(hashes[0]) + float(hashes[-1])) / 2**64  # a document on either side
                do += f"; or take another share, such as {between:.3f}"
            what = f"corpus.held_out={held_out} leaves the {empty} side empty"
            raise MaskwiseError(what, got=f"{len(hashes)} document{'s' * (len(hashes) > 1)}", do=do)
        return blocks[0], blocks[1]

    def relaid(self, layout: str) -> Blocks:
        """The same pieces in another layout, in memory; their example ids stay."""
        columns = Columns()
        for pieces in self._pieces():
            columns.append(lay_out(pieces, self.frame, length=self.length, layout=layout))
        return Blocks(columns.joined(), self.frame, layout, self.counts, self.tokenizer)

    def _pieces(self) -> Iterator[Pieces]:
        """The pieces of the rows, a window of rows at a time."""
        step = max(1, WINDOW_TOKENS // self.length)
        token_columns = ["input_ids", "word_ids", *self.layers]
        for start in range(0, len(self), step):
            rows = slice(start, start + step)
            first, number = self.first_segment[rows], self.columns["segments"][rows]
            inside = self.segment[rows] >= 0
            here = slice(int(first[0]), int(first[-1]) + int(number[-1]))
            owner = (first[:, None] - first[0] + self.segment[rows])[inside]
            columns = {name: self.columns[name][rows][inside] for name in token_columns}
            lengths = np.bincount(owner, minlength=here.stop - here.start)
            yield Pieces(columns, lengths, self.columns["example_ids"][here], self.columns["documents"][here])

    def save(self, path: str | Path) -> Path:
        """One Arrow IPC file; it appears under its name when it is complete."""
        path = Path(path)
        offsets = pa.array(np.append(self.first_segment, len(self.segment_ids)), pa.int64())
        arrays = {}
        for name, column in self.columns.items():
            values = pa.array(np.ascontiguousarray(column).reshape(-1))
            if name in _RAGGED:
                values = pa.LargeListArray.from_arrays(offsets, values)
            elif column.ndim == 2:
                values = pa.FixedSizeListArray.from_arrays(values, self.length)
            arrays[name] = values
        about = {
            "format": FORMAT,
            "frame": self.frame._asdict(),
            "layout": self.layout,
            "counts": self.counts,
            "tokenizer": self.tokenizer,
        }
        fields = [(name, array.type) for name, array in arrays.items()]
        schema = pa.schema(fields, {"maskwise": json.dumps(about)})
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                writer.write_batch(pa.RecordBatch.from_arrays(list(arrays.values()), schema=schema))
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            do = "is there room on the disk, and is the folder yours?"
            raise MaskwiseError(f"cannot write blocks to {path}: {error}", do=do) from error
        return path

    @classmethod
    def load(cls, path: str | Path, *, tokenizer: Any = None) -> Blocks:
        """Opens what `save` wrote, memory-mapped.

        Args:
            path: the file.
            tokenizer: with which its tokens and their layers are to be read.

        Raises:
            MaskwiseError: if the file is missing, damaged, not blocks, or made with another tokenizer.
        """
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            about = json.loads((reader.schema.metadata or {})[b"maskwise"])
            batch = reader.get_batch(0)
            batch.validate()
        except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
            do = "pack the corpus again"
            what = f"{path} does not hold blocks, or is damaged"
            raise MaskwiseError(what, got=str(error) or None, do=do) from error
        if about.get("format") != FORMAT:
            raise MaskwiseError(f"{path} is of another format", got=about.get("format"), allowed=FORMAT)
        made, key = about.get("tokenizer", ""), tokenizer_key(tokenizer)
        if made and key and made != key:
            do = "prepare the corpus again, with this tokenizer"
            raise MaskwiseError(
                f"the tokens and layers in {path} are another tokenizer's", got=made, allowed=key, do=do
            )
        columns = {}
        for name, array in zip(batch.schema.names, batch.columns):
            flat = array.values if pa.types.is_nested(array.type) else array
            fixed = pa.types.is_fixed_size_list(array.type)
            values = flat.to_numpy(zero_copy_only=True)
            columns[name] = values.reshape(-1, array.type.list_size) if fixed else values
        return cls(columns, Frame(**about["frame"]), about["layout"], Counter(about["counts"]), made)


def tokenizer_key(tokenizer: Any) -> str:
    """Hash of a tokenizer's vocabulary, which says what its ids mean; "" for what has none."""
    vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    return digest(json.dumps(sorted(vocabulary.items()))) if vocabulary else ""


class Columns:
    """Columns that grow window by window: in memory, or in a folder, where they may be larger than memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.parts: list[dict[str, Array]] = []

    def append(self, part: dict[str, Array]) -> None:
        if self.folder:
            for place, column in enumerate(part.values()):
                with open(self.folder / str(place), "ab") as file:
                    column.tofile(file)
            part = {name: column[:0] for name, column in part.items()} if self.parts else part
        self.parts.append(part)

    def joined(self) -> dict[str, Array]:
        """Every column whole. Parts are let go one by one: memory holds little more than the columns."""
        shapes = {name: column.shape[1:] for name, column in self.parts[0].items()}
        if self.folder is None:
            return {name: np.concatenate([part.pop(name) for part in self.parts]) for name in shapes}
        types = {name: column.dtype for name, column in self.parts[0].items()}
        files = {
            name: np.memmap(self.folder / str(place), types[name], "r") for place, name in enumerate(shapes)
        }
        return {name: np.asarray(file).reshape(-1, *shapes[name]) for name, file in files.items()}


def is_held_out(names: Any, share: float) -> Any:
    """Which documents go to the held-out side: by their names' hashes (`text_id`), an int or an array of them."""
    return names < int(share * 2**63)


def _tensor(array: Array) -> Tensor:
    import torch

    whole = np.issubdtype(array.dtype, np.integer)
    return torch.from_numpy(array.astype(np.int64) if whole else array.copy())
