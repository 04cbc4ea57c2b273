"""Pieces: a corpus as flat columns of tokens, in memory or memory-mapped.

A *piece* is as much of a document as fits in one row, cut between words. Pieces are cut once and
do not depend on the layout of rows or on the held-out split, so their names (and masks) never
change. They are not cut to fill rows, which costs a few per cent of padding when rows are packed.

Cost: numpy over tokens, and about 1 µs of Python for each piece. Documents are read in windows of
about a million tokens, so memory does not grow with the corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskwise import folders
from maskwise.errors import MaskwiseError
from maskwise.segments import changes, counts_within, framed, sums_within
from maskwise.text.documents import batches
from maskwise.text.layers import digest
from maskwise.text.readers import whole_name
from maskwise.text.tokenizers import Tokens
from maskwise.text.words import text_id

# torch and transformers take two seconds to import; reading documents needs neither
if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Array = NDArray[Any]
Ints = NDArray[np.int64]

# 1 and 2 were Arrow files
FORMAT = 3
INDEX = "columns.json"
# columns with a value for each piece; others have one for each token
OF_PIECES = ("example_id", "document", "source")
# processed together, in some 50 MB
WINDOW_TOKENS = 1 << 20
# of a piece, because word numbers are int16
MOST_TOKENS = (1 << 15) - 1
LONG_WORDS = "words longer than a row"
NO_TOKENS = "documents without tokens"
UNKNOWN = "unknown tokens"


class Frame(NamedTuple):
    """Ids of special tokens: `first` opens a text, `last` closes every piece; −1 for none."""

    first: int
    last: int
    pad: int

    def room(self, length: int) -> int:
        """Return the tokens of the longest piece that fits in a row."""
        return length - (self.first >= 0) - (self.last >= 0)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Frame:
        """Return the ids of [CLS], [SEP] (or the end-of-sequence token) and padding."""
        last = _first_known(tokenizer.sep_token_id, tokenizer.eos_token_id, -1)
        first = _first_known(tokenizer.cls_token_id, -1)
        return cls(first, last, _first_known(tokenizer.pad_token_id, max(last, 0)))


def _first_known(*ids: int | None) -> int:
    return next(number for number in ids if number is not None)


class PieceBatch(NamedTuple):
    """The P pieces of B rows with T tokens in total: the input of a `Masker`.

    Attributes:
        columns: name → (T,): "input_ids", "word_ids" (from 0 in every piece; −1 for none) and
            other layers, piece after piece, without special tokens.
        lengths: (P,) tokens of each piece.
        example_ids: (P,) int64, the permanent name of each piece.
        rows: (P,) int64, ascending: the row of each piece in the batch.
        length: L, tokens of a row.
        frame: special tokens around the pieces.
        apart: whether each piece is a text of its own, opened by ``frame.first``; otherwise a row
            is one text.
    """

    columns: dict[str, Array]
    lengths: Ints
    example_ids: Ints
    rows: Ints
    length: int
    frame: Frame
    apart: bool = True

    def laid_out(self) -> dict[str, Array]:
        """Return the rows as (B, L) arrays: [first] piece [last] [first] piece [last] … padding.

        Returns:
            "input_ids", "attention_mask" and the layers, (B, L); on special tokens and padding
            layers are −1 (floats 0), and words are numbered from 0 in every row. "example_id" is
            (B,) if every row has one piece, else (B, L).
        """
        layout = framed(
            self.lengths, self.rows, length=self.length, frame=self.frame, apart=self.apart
        )
        lines = {
            "input_ids": layout.ids(self.columns["input_ids"]),
            "attention_mask": layout.present(),
        }
        layers = {name: values for name, values in self.columns.items() if name != "input_ids"}
        several = len(self.rows) > layout.shape[0]
        if several:
            layers["example_id"] = np.repeat(self.example_ids, self.lengths)
            if "word_ids" in layers:
                layers["word_ids"] = self._words_of_rows(layout.shape[0])
        lines |= {name: layout.column(values) for name, values in layers.items()}
        columns = {name: line.reshape(layout.shape) for name, line in lines.items()}
        if not several:
            columns["example_id"] = self.example_ids
        return columns

    def _words_of_rows(self, rows: int) -> Ints:
        """Return (T,) word numbers that continue from one piece of a row to the next."""
        words = self.columns["word_ids"].astype(np.int64)
        # the number of words in the pieces before, in the same row
        words_P = np.maximum.reduceat(words, np.cumsum(self.lengths) - self.lengths) + 1
        before_P = sums_within(words_P, counts_within(self.rows, rows)) - words_P
        return np.where(words >= 0, words + np.repeat(before_P, self.lengths), -1)

    def tensors(self) -> dict[str, Tensor]:
        """Return `laid_out` as tensors."""
        import torch

        return {name: torch.from_numpy(values) for name, values in self.laid_out().items()}


@dataclass(eq=False)
class Pieces:
    """P pieces with T tokens in total; `read_pieces` makes them.

    Attributes:
        columns: name → (T,): "input_ids" int32, "word_ids" int16 (from 0 in every piece, −1 for
            none; missing for a slow tokenizer) and other layers, piece after piece.
        offsets: (P + 1,) int64; piece p has the tokens from ``offsets[p]`` to ``offsets[p + 1]``.
        example_ids: (P,) int64, the permanent name of each piece.
        documents: (P,) int64, hash of the name of its (whole) document.
        frame, length: special tokens and L tokens of the rows for which the pieces were cut.
        counts: documents, pieces, tokens, unknown tokens, and what was left out or not eligible.
        tokenizer: the key of the tokenizer (`tokenizer_key`); "" if unknown.
        sources: (P,) int16, ascending: the number of each piece's corpus; None if there is one.
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

    @classmethod
    def load(
        cls, folder: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Pieces:
        """Open what `read_pieces` wrote, memory-mapped.

        Args:
            folder: its ``out``.
            tokenizer: the tokenizer for which its ids will be used.

        Raises:
            MaskwiseError: the folder is missing or damaged, or was made with another tokenizer.
        """
        folder = Path(folder)
        columns, about = read_columns(folder)
        with undamaged(folder / INDEX):
            pieces = cls._of({**columns}, about)
        for name, values in columns.items():
            if name in OF_PIECES:
                require_length(folder, values, len(pieces.offsets) - 1)
            elif name != "offsets":
                require_length(folder, values, int(pieces.offsets[-1]))
        key = tokenizer_key(tokenizer)
        if pieces.tokenizer and key and pieces.tokenizer != key:
            raise MaskwiseError(
                f"the tokens and layers in {folder} are another tokenizer's",
                got=pieces.tokenizer,
                allowed=key,
                do="prepare the corpus again, with this tokenizer",
            )
        return pieces

    @classmethod
    def _of(cls, columns: dict[str, Array], about: Mapping[str, Any]) -> Pieces:
        offsets, names, documents, sources = (columns.pop(name) for name in ("offsets", *OF_PIECES))
        return cls(
            columns,
            offsets,
            names,
            documents,
            Frame(*about["frame"]),
            about["length"],
            Counter(about["counts"]),
            about["tokenizer"],
            sources if sources[-1] else None,
        )


def read_pieces(
    tokens: Iterable[Tokens],
    *,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    out: str | Path | None = None,
) -> Pieces:
    """Cut documents, as `tokenise` yields them, into pieces for rows of ``length`` tokens.

    A word that is longer than a row is cut anywhere, gets −1 (it is not eligible) and is counted.
    An example id is a hash of the document's name and of the index of the piece's first token.

    Args:
        tokens: the documents.
        tokenizer: for its special tokens.
        length: L, special tokens included.
        out: a folder to write, window by window; the pieces are returned memory-mapped. Without it
            they are held in memory, about 6 bytes a token.

    Raises:
        MaskwiseError: a length without room, layers that not all documents have, no tokens, a
            folder that cannot be written.

    >>> from maskwise.text import Document, Rows, tokenise, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> documents = [Document("a", "the cat sat"), Document("b", "on the mat")]
    >>> pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=10)
    >>> tokenizer.batch_decode(Rows.of(pieces, "packed").tensors([0])["input_ids"])
    ['[CLS] the cat sat [SEP] [CLS] on the mat [SEP]']
    """
    frame = Frame.of(tokenizer)
    if not 1 <= frame.room(length) <= MOST_TOKENS:
        what = "length leaves no room for text, or is too long"
        raise MaskwiseError(what, got=length, allowed="3 to 32,768")
    counts = Counter[str]()
    key = tokenizer_key(tokenizer)
    about = {"frame": frame, "length": length, "counts": counts, "tokenizer": key}
    windows = _windows(tokens, counts, room=frame.room(length), unknown=tokenizer.unk_token_id)
    if out:
        folders.write_folder(Path(out), lambda partial: write_columns(partial, windows, about))
        return Pieces.load(out)
    parts = list(windows)
    columns = {}
    for name in list(parts[0]):
        # popped, so that memory never holds everything twice
        columns[name] = np.concatenate([part.pop(name) for part in parts])
    return Pieces._of(columns, about)


def _windows(
    tokens: Iterable[Tokens], counts: Counter[str], *, room: int, unknown: int | None
) -> Iterator[dict[str, Array]]:
    """Yield the columns of the pieces, some documents at a time."""
    layers: list[str] = []
    for window in batches(
        tokens, WINDOW_TOKENS, measure=lambda document: len(document.input_ids) + 1
    ):
        # columns are joined by name, so all documents must have the same
        parts = [document.columns() for document in window]
        layers = layers or [*parts[0]]
        for document, part in zip(window, parts):
            if [*part] != layers:
                got = f"{[*part]} in {document.document_id!r}"
                raise MaskwiseError("every document needs the same layers", got=got, allowed=layers)
        columns = {}
        for name in layers:
            columns[name] = np.concatenate([part[name] for part in parts])
        before = counts["tokens"]
        first_window = not counts["documents"]
        cut = _cut(window, columns, counts, room)
        cut["offsets"] += before
        if not first_window:
            # its first offset is the last one of the window before
            cut["offsets"] = cut["offsets"][1:]
        missing = int((columns["input_ids"] == unknown).sum())
        if missing:
            counts[UNKNOWN] += missing
        yield columns | cut
    if not counts["pieces"]:
        got = f"{counts['documents']} documents"
        do = "check the corpus and its text field"
        raise MaskwiseError("the corpus has no tokens", got=got, do=do)


def _cut(
    window: list[Tokens], columns: dict[str, Array], counts: Counter[str], room: int
) -> dict[str, Array]:
    """Cut documents into pieces of at most ``room`` tokens, between words.

    Word numbers in ``columns`` are counted anew in every piece; ``counts`` are added to.
    """
    lengths = np.array([len(document.input_ids) for document in window], dtype=np.int64)
    total = int(lengths.sum())
    owner_T = np.repeat(np.arange(len(window)), lengths)
    words = columns.get("word_ids", np.full(total, -1, dtype=np.int32))
    opens = changes(words, owner_T)
    word_T = np.cumsum(opens) - 1
    # half a word must not be masked, so longer words are not eligible
    long = (np.bincount(word_T)[word_T] > room) & (words >= 0)
    words = np.where(long, -1, words)

    # for each token the last place at or before it where a piece may begin
    may_begin = opens | (words < 0)
    border_T = np.maximum.accumulate(np.where(may_begin, np.arange(total), 0))
    begins: list[int] = []
    owners: list[int] = []
    example_ids: list[int] = []
    start = 0
    for owner, size in enumerate(lengths.tolist()):
        begin = start
        end = start + size
        while begin < end:
            begins.append(begin)
            owners.append(owner)
            example_ids.append(text_id(f"{window[owner].document_id}\0{begin - start}"))
            if end - begin <= room:
                break
            begin = int(border_T[begin + room])
        start = end
    offsets = np.array([*begins, total], dtype=np.int64)
    if "word_ids" in columns:
        # numbered from 0 in every piece, as if each were a text of its own
        sizes = np.diff(offsets)
        fresh = changes(words, np.repeat(np.arange(len(sizes)), sizes)) & (words >= 0)
        number = sums_within(fresh, sizes) - 1
        columns["word_ids"] = np.where(words >= 0, number, -1).astype(np.int16)

    # rare cases are counted only if they occur, so that reports stay short
    counts.update({"documents": len(window), "pieces": len(begins), "tokens": total})
    for reason, number in ((NO_TOKENS, (lengths == 0).sum()), (LONG_WORDS, (long & opens).sum())):
        if number:
            counts[reason] += int(number)
    # parts of a long document have its name, so that they stay on one side of a split
    names = [text_id(whole_name(document.document_id)) for document in window]
    sources = [document.source for document in window]
    return {
        "offsets": offsets,
        "example_id": np.array(example_ids, dtype=np.int64),
        "document": np.array(names, dtype=np.int64)[owners],
        "source": np.array(sources, dtype=np.int16)[owners],
    }


def tokenizer_key(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Hash a tokenizer's vocabulary, which gives ids their meaning; "" if it has none."""
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return ""
    return digest(json.dumps(sorted(tokenizer.get_vocab().items())))


def write_columns(
    folder: Path, parts: Iterable[Mapping[str, Array]], about: Mapping[str, object]
) -> None:
    """Write columns that come in parts: a file of raw values for each, and last their index."""
    types: dict[str, str] = {}
    with ExitStack() as stack:
        files = []
        for part in parts:
            for place, (name, values) in enumerate(part.items()):
                if name not in types:
                    types[name] = values.dtype.str
                    # numbered, because layers may have any name
                    files.append(stack.enter_context((folder / f"{place}.bin").open("wb")))
                # not `tofile`, whose buffer hides a full disk
                files[place].write(np.ascontiguousarray(values).data)
    # the index comes last: without it the folder is not readable
    index = {"format": FORMAT, "columns": types, **about}
    (folder / INDEX).write_text(json.dumps(index))


def read_columns(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Open what `write_columns` wrote, memory-mapped.

    Raises:
        MaskwiseError: the folder is missing, damaged or of another format.
    """
    about = folders.read_json(folder / INDEX) or {}
    if about.get("format") != FORMAT:
        what = f"{folder} does not hold pieces of this version"
        raise MaskwiseError(
            what, got=about.get("format"), allowed=FORMAT, do="prepare the corpus again"
        )
    columns = {}
    with undamaged(folder / INDEX):
        types = [*about.pop("columns").items()]
    for place, (name, dtype) in enumerate(types):
        path = folder / f"{place}.bin"
        with undamaged(path):
            # plain arrays, because a memmap is slower to index
            columns[name] = np.asarray(np.memmap(path, dtype, "r"))
    return columns, about


def unknown_share(counts: Mapping[str, int]) -> float:
    """The share of a text's tokens that its tokenizer does not know."""
    return counts.get(UNKNOWN, 0) / max(1, counts.get("tokens", 0))


def require_known_tokens(counts: Mapping[str, int], title: str) -> None:
    """
    Raises:
        MaskwiseError: most tokens of a text are unknown to its tokenizer.
    """
    share = unknown_share(counts)
    if share > 0.5:
        raise MaskwiseError(
            f"{share:.0%} of the tokens of {title} are unknown to the tokenizer",
            got=f"{counts[UNKNOWN]:,} × [UNK]",
            allowed="at most half",
            do="take a tokenizer that knows its letters, or a new one: tokenizer.kind: letter, "
            "or bpe",
        )


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Turn errors of a file that is missing, or lacks something, into one line."""
    try:
        yield
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        what = f"{path} is damaged"
        raise MaskwiseError(what, got=str(error), do="prepare the corpus again") from error


def require_length(folder: Path, column: Array, length: int) -> None:
    """Raise if a column of a folder is shorter or longer than it was."""
    if len(column) != length:
        what = f"{folder} is damaged: a column is not whole"
        raise MaskwiseError(what, got=len(column), allowed=length, do="prepare the corpus again")
