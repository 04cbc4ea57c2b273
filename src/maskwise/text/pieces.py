"""Pieces: a corpus as flat tokens on disk.

A *piece* is as much of a document as fits one row, cut between words. Pieces are cut once, are the
same in every layout and on either side of a held-out split, and are never copied again: a corpus is
one flat column of tokens (and of every layer) with the offsets of its pieces, and a batch picks the
pieces of its rows (rows.py plans these). So a piece keeps its name, and therefore its masks,
wherever it lies. The price is some padding in packed rows, a few per cent, because pieces are not
cut to fit.

Documents are read in windows of about a million tokens, and what is on disk is memory-mapped: the
memory needed grows neither with the corpus that is prepared nor with the corpus that is read, and
processes share its pages.

Cost: numpy over tokens, and a Python step of about 1 µs for each piece.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskwise import folders
from maskwise.errors import MaskwiseError
from maskwise.segments import changes, counts_within, framed, sums_within
from maskwise.text.documents import batches
from maskwise.text.layers import digest
from maskwise.text.readers import whole_name
from maskwise.text.tokenizers import Tokens
from maskwise.text.words import text_id

# torch and transformers take two seconds: reading documents does not wait for them
if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Array = NDArray[Any]
Ints = NDArray[np.int64]

FORMAT = 2  # 1 held rows; its files are refused
WINDOW_TOKENS = 1 << 20  # so many are worked on together: some 50 MB
MOST_TOKENS = (1 << 15) - 1  # of a piece: the numbers of its words are int16
LONG_WORDS, NO_TOKENS = "words longer than a row", "documents without tokens"
UNKNOWN = "unknown tokens"


class Frame(NamedTuple):
    """Special tokens around pieces: `first` opens a text, `last` closes every piece; −1 for none."""

    first: int
    last: int
    pad: int

    def room(self, length: int) -> int:
        """Tokens of the longest piece that fits a row."""
        return length - (self.first >= 0) - (self.last >= 0)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Frame:
        """[CLS] … [SEP], or what the tokenizer has in their place."""
        known = [tokenizer.sep_token_id, tokenizer.eos_token_id, -1]
        last = next(number for number in known if number is not None)
        first, pad = tokenizer.cls_token_id, tokenizer.pad_token_id
        return cls(-1 if first is None else first, last, max(last, 0) if pad is None else pad)


class PieceBatch(NamedTuple):
    """The P pieces of B rows, T tokens together: what a `Masker` takes.

    Attributes:
        columns: name → (T,): "input_ids", "word_ids" (counted from 0 in every piece; −1 for none)
            and other layers, one piece behind the other, without special tokens.
        lengths: (P,) tokens of each piece.
        example_ids: (P,) int64, the name of each piece.
        rows: (P,) int64, ascending: the row of the batch that a piece goes into.
        length: L, tokens of a row.
        frame: the special tokens around the pieces.
        apart: whether each piece is a text of its own, opened by ``frame.first``, or a row is one
            text.
    """

    columns: dict[str, Array]
    lengths: Ints
    example_ids: Ints
    rows: Ints
    length: int
    frame: Frame
    apart: bool = True

    def laid_out(self) -> dict[str, Array]:
        """The rows as (B, L) arrays: [first] piece [last] [first] piece [last] … padding; one
        [first] a row if joined.

        Returns:
            "input_ids", "attention_mask" and the layers (−1, or 0 where they have no sign, on
            special tokens and padding): (B, L); words are counted from 0 in every row.
            "example_id": (B,) if every row has one piece, else (B, L), −1 on special tokens and
            padding.
        """
        laid = framed(
            self.lengths, self.rows, length=self.length, frame=self.frame, apart=self.apart
        )
        pieces_B = counts_within(self.rows, laid.shape[0])
        several = len(self.rows) > laid.shape[0]
        layers = dict(self.columns)
        lines = {
            "input_ids": laid.ids(layers.pop("input_ids")),
            "attention_mask": laid.present() > 0,
        }
        if several and "word_ids" in layers:
            words = layers["word_ids"].astype(np.int64)
            first = np.cumsum(self.lengths) - self.lengths
            words_P = np.maximum.reduceat(words, first) + 1
            before_P = sums_within(words_P, pieces_B) - words_P
            layers["word_ids"] = np.where(words >= 0, words + np.repeat(before_P, self.lengths), -1)
        for name, values in layers.items():
            lines[name] = laid.column(values)
        if several:
            lines["example_id"] = laid.column(np.repeat(self.example_ids, self.lengths))
        columns = {name: line.reshape(laid.shape) for name, line in lines.items()}
        if not several:
            columns["example_id"] = self.example_ids
        return columns

    def tensors(self) -> dict[str, Tensor]:
        """`laid_out` as tensors, whole numbers as int64: for whatever wants rows rather than
        pieces.
        """
        import torch

        arrays = self.laid_out()
        return {
            k: torch.from_numpy(v if v.dtype.kind == "f" else v.astype(np.int64))
            for k, v in arrays.items()
        }


@dataclass(eq=False)
class Pieces:
    """P pieces with T tokens together, in memory or memory-mapped; `read_pieces` makes them.

    Attributes:
        columns: name → (T,): "input_ids" int32, "word_ids" int16 (counted from 0 in every piece, −1
            for none; not there if the tokenizer is slow) and other layers, one piece behind the
            other.
        offsets: (P + 1,) int64; piece p holds the tokens from ``offsets[p]`` to ``offsets[p + 1]``.
        example_ids: (P,) int64, the name of a piece for ever.
        documents: (P,) int64, hash of the name of its (whole) document.
        frame, length: the special tokens of a row, and its L tokens, for which the pieces were cut.
        counts: documents read, pieces and tokens made, unknown tokens, and what was left out or is
            not eligible.
        tokenizer: the key of the tokenizer that made the tokens (`tokenizer_key`); "" if it is not
            known.
        sources: (P,) int16, ascending: the number of the corpus that each piece is from; None where
            there is only one.
    """

    columns: dict[str, Array]
    offsets: Ints
    example_ids: Ints
    documents: Ints
    frame: Frame
    length: int
    counts: Counter[str] = field(default_factory=Counter)
    tokenizer: str = ""
    sources: Array | None = None

    def __len__(self) -> int:
        return len(self.example_ids)

    def save(self, path: str | Path) -> Path:
        """Write one Arrow IPC file, a row for each piece; docs/data.md has the format."""
        columns: dict[str, pa.Array] = {
            name: pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(values))
            for name, values in self.columns.items()
        }
        columns |= {"example_id": pa.array(self.example_ids), "document": pa.array(self.documents)}
        if self.sources is not None:
            columns["source"] = pa.array(self.sources)
        about = {"frame": self.frame._asdict(), "length": self.length, "counts": self.counts}
        return write_arrow(Path(path), columns, {**about, "tokenizer": self.tokenizer})

    @classmethod
    def load(cls, path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> Pieces:
        """Open what `save` wrote, memory-mapped.

        Args:
            path: the file.
            tokenizer: with which its tokens and their layers are to be read.

        Raises:
            MaskwiseError: the file is missing, damaged, holds no pieces, or was made with another
                tokenizer.
        """
        columns, about = read_arrow(Path(path))
        made, key = about["tokenizer"], tokenizer_key(tokenizer)
        if made and key and made != key:
            what = f"the tokens and layers in {path} are another tokenizer's"
            raise MaskwiseError(
                what, got=made, allowed=key, do="prepare the corpus again, with this tokenizer"
            )
        names, documents = (columns.pop(name).to_numpy() for name in ("example_id", "document"))
        sources = columns.pop("source").to_numpy() if "source" in columns else None
        offsets = columns["input_ids"].offsets.to_numpy()
        tokens = {
            name: column.values.to_numpy(zero_copy_only=True) for name, column in columns.items()
        }
        frame, counts = Frame(**about["frame"]), Counter(about["counts"])
        return cls(tokens, offsets, names, documents, frame, about["length"], counts, made, sources)


def read_pieces(
    tokens: Iterable[Tokens],
    *,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    out: str | Path | None = None,
) -> Pieces:
    """Documents, as `tokenise` yields them, cut into pieces for rows of ``length`` tokens.

    A word that is longer than a row gets −1 (it is not eligible), is cut anywhere and is counted.
    An example id is a hash of the document's name and of the index of the piece's first token.

    Args:
        tokens: the documents.
        tokenizer: for its special tokens: cls (if any) before a row, sep or eos behind every piece.
        length: L, special tokens included.
        out: write to this file, window by window, and return what is in it memory-mapped. Without
            it the pieces are held in memory, about 6 bytes a token.

    Raises:
        MaskwiseError: a length without room, layers that not all documents have, no tokens, a file
            that cannot be written.

    >>> from maskwise.text import Document, Rows, tokenise, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> documents = [Document("a", "the cat sat"), Document("b", "on the mat")]
    >>> pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=10)
    >>> tokenizer.batch_decode(Rows.of(pieces, "packed").tensors([0])["input_ids"])
    ['[CLS] the cat sat [SEP] [CLS] on the mat [SEP]']
    """
    frame, key = Frame.of(tokenizer), tokenizer_key(tokenizer)
    if not 1 <= frame.room(length) <= MOST_TOKENS:
        what = "length leaves no room for text, or is too long"
        raise MaskwiseError(what, got=length, allowed="3 to 32,768")
    counts, path = Counter[str](), Path(out) if out else None
    scratch = path and path.with_name(f".{path.name}.columns.partial")
    if scratch:  # what a process left that was killed
        shutil.rmtree(scratch, ignore_errors=True)
    columns = _Columns(scratch)
    layers: list[str] = []
    try:
        for window in batches(
            tokens, WINDOW_TOKENS, measure=lambda document: len(document.input_ids) + 1
        ):
            layers = layers or list(window[0].columns())
            flat = _flat(window, layers)
            columns.append(_cut(window, flat, counts, room=frame.room(length), tokenizer=tokenizer))
        if not counts["pieces"]:
            got = f"{counts['documents']} documents"
            raise MaskwiseError(
                "the corpus has no tokens", got=got, do="check the corpus and its text field"
            )
        whole = columns.joined()
        sizes, names, documents = (
            whole.pop(name) for name in ("lengths", "example_ids", "documents")
        )
        offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        sources = whole.pop("sources")
        several = sources if len(sources) and sources[-1] else None
        pieces = Pieces(whole, offsets, names, documents, frame, length, counts, key, several)
        return pieces if path is None else Pieces.load(pieces.save(path))
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _cut(
    window: list[Tokens],
    columns: dict[str, Array],
    counts: Counter[str],
    *,
    room: int,
    tokenizer: Any,
) -> dict[str, Array]:
    """Documents → pieces of at most ``room`` tokens, cut between words, as columns of tokens and of
    pieces.

    Half a word must not be masked: a word that is longer than a row gets −1 and is cut anywhere.
    (So may be tokens that had −1 before.) ``counts`` are added to.
    """
    lengths = np.array([len(document.input_ids) for document in window], dtype=np.int64)
    ends = np.cumsum(lengths)
    total = int(lengths.sum())
    words = columns.get("word_ids", np.full(total, -1, dtype=np.int32))
    opens = changes(words, np.repeat(np.arange(len(window)), lengths))
    run = np.cumsum(opens) - 1
    long = (np.bincount(run)[run] > room) & (words >= 0)
    words = np.where(long, -1, words)

    # Where a piece may begin, and for every token the last such place up to it.
    may_begin = opens | (words < 0)
    last_border = np.maximum.accumulate(np.where(may_begin, np.arange(total), 0))
    begins: list[int] = []
    owners: list[int] = []
    example_ids: list[int] = []
    for owner, (start, end) in enumerate(zip((ends - lengths).tolist(), ends.tolist())):
        begin = start
        while begin < end:
            begins.append(begin)
            owners.append(owner)
            example_ids.append(text_id(f"{window[owner].document_id}\0{begin - start}"))
            begin = int(last_border[begin + room]) if end - begin > room else end
    borders = np.array([*begins, total], dtype=np.int64)
    sizes = borders[1:] - borders[:-1]
    if "word_ids" in columns:  # counted from 0 in every piece
        fresh = changes(words, np.repeat(np.arange(len(sizes)), sizes)) & (words >= 0)
        number = sums_within(fresh, sizes) - 1
        columns["word_ids"] = np.where(words >= 0, number, -1).astype(np.int16)
    documents = np.array(
        [text_id(whole_name(document.document_id)) for document in window], dtype=np.int64
    )
    sources = np.array([document.source for document in window], dtype=np.int16)
    counts.update({"documents": len(window), "pieces": len(begins), "tokens": total})
    unknown_id = getattr(tokenizer, "unk_token_id", None)
    rare = {
        NO_TOKENS: lengths == 0,
        LONG_WORDS: long & opens,
        UNKNOWN: columns["input_ids"] == unknown_id,
    }
    for reason, found in rare.items():
        if np.any(found):
            counts[reason] += int(np.sum(found))
    return {
        **columns,
        "lengths": sizes.astype(np.int32),
        "example_ids": np.array(example_ids, dtype=np.int64),
        "documents": documents[owners],
        "sources": sources[owners],
    }


def _flat(window: list[Tokens], names: list[str]) -> dict[str, Array]:
    """The columns of all documents, one document behind the other."""
    for document in window:
        if list(document.columns()) != names:
            got = f"{list(document.columns())} in {document.document_id!r}"
            raise MaskwiseError("every document needs the same layers", got=got, allowed=names)
    columns = {
        name: np.concatenate([document.columns()[name] for document in window]) for name in names
    }
    # Arrow keeps truth values as bits, which cannot be mapped.
    return {
        name: values.astype(np.int8) if values.dtype == bool else values
        for name, values in columns.items()
    }


class _Columns:
    """Columns that grow window by window: in memory, or in a folder as raw files, which may be
    larger than memory.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.parts: list[dict[str, Array]] = []

    def append(self, part: dict[str, Array]) -> None:
        if self.folder:
            with folders.writing(self.folder.parent):
                self.folder.mkdir(parents=True, exist_ok=True)
                for name, column in part.items():
                    with open(self.folder / str([*part].index(name)), "ab") as file:
                        # Not tofile: a short column stays in C's buffer, and a full disk is never
                        # heard of.
                        file.write(np.ascontiguousarray(column).data)
            # a view would keep all
            part = {name: np.empty(0, column.dtype) for name, column in part.items()}
        self.parts.append(part)

    def joined(self) -> dict[str, Array]:
        """Every column whole. Parts are let go one by one: memory holds little more than the
        columns.
        """
        names = list(self.parts[0])
        if self.folder is None:
            return {name: np.concatenate([part.pop(name) for part in self.parts]) for name in names}
        types = {name: column.dtype for name, column in self.parts[0].items()}
        return {
            name: np.memmap(self.folder / str(place), types[name], "r")
            for place, name in enumerate(names)
        }


def tokenizer_key(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Hash of a tokenizer's vocabulary, which says what its ids mean; "" for what has none."""
    vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    return digest(json.dumps(sorted(vocabulary.items()))) if vocabulary else ""


def write_arrow(path: Path, columns: dict[str, pa.Array], about: dict[str, Any]) -> Path:
    """One Arrow IPC file with one record batch, whole or not at all."""
    schema = pa.schema(
        [(name, column.type) for name, column in columns.items()],
        {"maskwise": json.dumps({"format": FORMAT, **about})},
    )
    partial = path.with_name(f".{path.name}.partial")
    with folders.writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                writer.write_batch(
                    pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def read_arrow(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of a file that `write_arrow` wrote, memory-mapped, and what it says of them."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        about = json.loads((reader.schema.metadata or {})[b"maskwise"])
        batch = reader.get_batch(0)
        batch.validate()
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        what = f"{path} does not hold pieces, or is damaged"
        raise MaskwiseError(what, got=str(error) or None, do="prepare the corpus again") from error
    if about.get("format") != FORMAT:
        what = f"{path} is of another format"
        raise MaskwiseError(
            what, got=about.get("format"), allowed=FORMAT, do="prepare the corpus again"
        )
    return dict(zip(batch.schema.names, batch.columns)), about
