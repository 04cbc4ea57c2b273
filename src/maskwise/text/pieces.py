"""Tokenise documents and cut them into pieces, stored as flat columns in memory or on disk.

A *piece* is a part of a document that fits in one row and is cut between words. It keeps its
id, and thus its masks, if the layout of rows or the held-out split changes. The price is a few per
cent of padding in packed rows, because no piece is cut just to fill a row.

In a corpus, "[MASK]" is plain text. Truncation and padding of tokenizer files are ignored. Almost
all time is spent in the Rust tokenizer. Documents are read in batches, so memory does not grow with
the corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from maskwise.base import folders
from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.masking.line import Frame
from maskwise.masking.segments import Array, changes, owners, sums_within
from maskwise.text.documents import (
    BATCH_CHARACTERS,
    Document,
    batches,
)
from maskwise.text.layers import Columns, Layered, align, digest
from maskwise.text.source import RowTokens
from maskwise.text.words import (
    Ints,
    WordRule,
    flat_offsets,
    needs_offsets,
    piece_id,
    ready_rule,
    require_offsets,
    slow_columns,
    special_names,
    texts_with,
    tokenised_by_words,
    tokenizing,
    words_of_tokens,
)

# transformers takes two seconds to import, and reading documents does not need it.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

INDEX = "columns.json"
# A piece must have fewer tokens than this, because its word numbers are int16.
LONGEST_ROW = 1 << 15
LONG_WORDS = "words longer than a row"
NO_TOKENS = "documents without tokens"
UNKNOWN = "unknown tokens"
SPECIAL = "documents with names of special tokens, which are read as text"


class Tokens(NamedTuple):
    """N documents with T tokens in total, without special tokens.

    Attributes:
        documents: the documents.
        lengths: (N,) int64, the number of tokens in each document.
        columns: (T,) arrays, keyed by name: "input_ids" int32, "word_ids" int32 (from 0 in every
            document, −1 for no word; missing for a slow tokenizer) and annotation layers.
    """

    documents: Sequence[Document]
    lengths: Ints
    columns: Columns


def tokenise(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerFast,
    *,
    batch_size: int = 256,
    layers: Layered | None = None,
    places: bool = False,
    words: WordRule = "auto",
    encode: Callable[[list[str]], Sequence[Encoding]] | None = None,
) -> Iterator[Tokens]:
    """Yield the tokens and words of documents, a batch at a time, without special tokens.

    Args:
        documents: names and texts.
        tokenizer: a tokenizer. If it is slow (without character offsets), no words are found.
        batch_size: the maximum number of documents that go through the tokenizer together.
        layers: an annotator or a store of annotations, whose layers are aligned with the tokens.
        places: whether to add the columns "start" and "end", the offsets of each token's visible
            characters in its document.
        words: the word rule: auto, spaces, token (each token is a word), regex:PATTERN, the name of
            a segmenter, or a function from a text to its words. Except by the rules auto and token,
            a slow tokenizer reads each word alone.
        encode: tokenises texts with a fast tokenizer, without special tokens. By default, a copy of
            the tokenizer does. Copies of large tokenizers take a third of a second.

    Raises:
        MaskwiseError: the tokenizer is slow, but the layers or the word rule need offsets.
    """
    require_offsets(tokenizer, layers=places or layers is not None, words=words)
    rule = ready_rule(words)
    if tokenizer.is_fast and encode is None:
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        # If a text contains the name of a special token, the name is plain text.
        backend.encode_special_tokens = True
        encode = partial(backend.encode_batch, add_special_tokens=False)
    key: str | None = None
    for batch in batches(documents, BATCH_CHARACTERS, measure=_characters, most=batch_size):
        texts = [document.text for document in batch]
        if encode is None and needs_offsets(rule):
            columns, lengths = slow_columns(tokenizer, texts, numbered=rule == "token")
            yield Tokens(batch, lengths, columns)
            continue
        given = [document.tokens for document in batch if document.tokens is not None]
        if given:
            if key is None:
                key = tokenizer_key(tokenizer)
            input_ids, offsets, lengths = _given_tokens(given, key)
        elif encode is None:
            ids, offsets, lengths = tokenised_by_words(tokenizer, texts, rule)
            input_ids = ids.astype(np.int32)
        else:
            with tokenizing():
                encodings = encode(texts)
            input_ids = np.fromiter(
                chain.from_iterable(encoding.ids for encoding in encodings), np.int32
            )
            offsets, lengths = flat_offsets(encodings)
        placed, word_ids = words_of_tokens(texts, offsets, lengths, rule=rule)
        columns = {"input_ids": input_ids, "word_ids": word_ids}
        if layers is not None:
            columns |= align(layers.annotate(texts), layers.layers, placed, word_ids)
        if places:
            base = placed.base.repeat(lengths)
            columns |= {"start": placed.first - base, "end": placed.last + 1 - base}
        yield Tokens(batch, lengths, columns)


def _given_tokens(rows: Sequence[RowTokens], key: str) -> tuple[Array, Ints, Ints]:
    """Return the ids (T,), offsets (T, 2) and lengths (N,) of rows that are tokens already.

    Raises:
        MaskwiseError: they are tokens of another tokenizer than that with this hash.
    """
    for row in rows:
        if row.tokenizer != key:
            raise MaskwiseError(
                "this corpus has token ids, and another tokenizer is to read them",
                do="use the tokenizer of corpus.tokens, and a model that has it",
            )
    ids = np.concatenate([row.ids for row in rows]).astype(np.int32)
    offsets = np.concatenate([row.offsets for row in rows])
    return ids, offsets, np.array([len(row.ids) for row in rows])


def _characters(document: Document) -> int:
    """Return the number of characters of a document; raise an error if it is no document."""
    if not isinstance(document, Document) or not isinstance(document.text, str):
        raise MaskwiseError("this is not a document", got=document, allowed="Document(NAME, TEXT)")
    return len(document.text)


@dataclass(eq=False)
class Pieces:
    """P pieces with T tokens in total, made by `read_pieces`.

    Attributes:
        columns: (T,) arrays, keyed by name: "input_ids" int32, "word_ids" int16 (from 0 in every
            piece, −1 for no word; missing for a slow tokenizer) and annotation layers.
        offsets: (P + 1,) int64; piece p has the tokens ``offsets[p]:offsets[p + 1]``.
        example_ids: (P,) int64, the permanent id of each piece, from which masks are computed.
        documents: (P,) int64, the place of each piece's document (``Document.place``), by which it
            is held out or not.
        frame: the special tokens that are added to pieces in a row.
        length: L, the maximum number of tokens in a row.
        counts: the numbers of documents, pieces, tokens, unknown tokens, documents without tokens
            and words that are too long to be masked.
        tokenizer: a hash of the tokenizer (`tokenizer_key`); "" if unknown.
        sources: (P,) int16, ascending: the index of the corpus of each piece; None if there is only
            one corpus.
    """

    columns: Columns
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
        """Open a folder that `read_pieces` wrote, memory-mapped and without a check for damage.

        Args:
            folder: the folder that was passed to `read_pieces` as ``out``.
            tokenizer: the tokenizer that will be used with the pieces. An error is raised if
                another tokenizer made them.

        Raises:
            MaskwiseError: the folder has no pieces of this version, or the tokenizer differs.
        """
        pieces = cls._of(*read_columns(Path(folder), "example_id"))
        key = tokenizer_key(tokenizer)
        if pieces.tokenizer and key and pieces.tokenizer != key:
            raise MaskwiseError(
                f"the tokens in {folder} were made by a tokenizer with a different hash",
                got=pieces.tokenizer,
                allowed=key,
                do="prepare the corpus again, with this tokenizer",
            )
        return pieces

    @classmethod
    def _of(cls, columns: Columns, about: Mapping[str, Any]) -> Pieces:
        sources: Array | None = columns.pop("source")
        # Source numbers ascend from 0, so there is only one source if the last number is 0.
        if sources is not None and not sources[-1]:
            sources = None
        return cls(
            offsets=columns.pop("offsets"),
            example_ids=columns.pop("example_id"),
            documents=columns.pop("document"),
            columns=columns,
            frame=Frame(*about["frame"]),
            length=about["length"],
            counts=Counter(about["counts"]),
            tokenizer=about["tokenizer"],
            sources=sources,
        )


def read_pieces(
    tokens: Iterable[Tokens],
    *,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    out: str | Path | None = None,
) -> Pieces:
    """Cut documents, as `tokenise` yields them, into pieces for rows of ``length`` tokens.

    A word that is longer than a row is cut anywhere and counted. Its tokens get the word number −1,
    so that policies over words never mask them. The example id of a piece follows from its text and
    from the index of its first token (``words.piece_id``).

    Args:
        tokens: the documents.
        tokenizer: the tokenizer that made the tokens, for its special tokens.
        length: L, the number of tokens in a row, including special tokens.
        out: a folder to write batch by batch and to memory-map. By default, the pieces are kept in
            memory (about 6 bytes per token).

    Raises:
        MaskwiseError: the length leaves no room for text, there are no tokens, or the folder cannot
            be written.

    >>> from maskwise.text import Document, Rows, tokenise, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    >>> documents = [Document("a", "the cat sat"), Document("b", "on the mat")]
    >>> pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=10)
    >>> tokenizer.batch_decode(Rows.of(pieces, "packed").tensors([0])["input_ids"])
    ['[CLS] the cat sat [SEP] [CLS] on the mat [SEP]']
    """
    frame = Frame.of(tokenizer)
    length = whole_number("length", length)
    if not 1 <= frame.room(length) < LONGEST_ROW:
        raise MaskwiseError(
            "length leaves no room for text, or is too long",
            got=length,
            allowed=f"3 to {LONGEST_ROW:,}",
        )
    counts = Counter[str]()
    about = {
        "frame": frame,
        "length": length,
        "counts": counts,
        "tokenizer": tokenizer_key(tokenizer),
    }
    windows = _windows(tokens, counts, frame.room(length), tokenizer)
    if out:
        known = "columns.json" in folders.manifest_hashes(Path(out))
        folders.OutputFolder(Path(out), "pieces", known=known).require()
        folders.write_folder(Path(out), lambda partial: write_columns(partial, windows, about))
        return Pieces.load(out)
    parts = list(windows)
    columns = {}
    for name in list(parts[0]):
        # `pop` frees each part, so that the corpus is never in memory twice.
        columns[name] = np.concatenate([part.pop(name) for part in parts])
    return Pieces._of(columns, about)


def _windows(
    tokens: Iterable[Tokens],
    counts: Counter[str],
    room: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[Columns]:
    """Yield the columns of the pieces, a batch of documents at a time."""
    names = special_names(tokenizer)
    unknown = tokenizer.unk_token_id
    for window in tokens:
        before = counts["tokens"]
        is_first = not counts["documents"]
        columns = _cut(window, counts, room, unknown)
        with_names = texts_with(names, (document.text for document in window.documents))
        if with_names:
            counts[SPECIAL] += with_names
        columns["offsets"] += before
        if not is_first:
            # The first offset of a batch is also the last offset of the previous batch.
            columns["offsets"] = columns["offsets"][1:]
        yield columns
    if not counts["pieces"]:
        raise MaskwiseError(
            "the corpus has no tokens",
            got=f"{counts['documents']} documents",
            do="check the corpus and its text field",
        )


def _cut(window: Tokens, counts: Counter[str], room: int, unknown: int | None) -> Columns:
    """Cut documents into pieces of at most ``room`` tokens, between words.

    Words are numbered from 0 in each piece. The numbers of documents, pieces, tokens and unusual
    cases are added to ``counts``.
    """
    lengths = window.lengths
    total = int(lengths.sum())
    # A slow tokenizer finds no words, so its pieces are cut anywhere.
    words = window.columns.get("word_ids", np.full(total, -1, dtype=np.int32))
    words, border_T, long_words = borders(words, lengths, room)
    begins = []
    example_ids = []
    documents = []
    sources = []
    start = 0
    for document, size in zip(window.documents, lengths.tolist()):
        place = document.place
        for begin in starts_of(border_T, start, start + size, room):
            begins.append(begin)
            example_ids.append(piece_id(document.id, begin - start))
            documents.append(place)
            sources.append(document.source)
        start += size
    offsets = np.array([*begins, total], dtype=np.int64)
    sizes = np.diff(offsets)
    first_token_of_word = changes(words, owners(sizes)) & (words >= 0)
    number_T = sums_within(first_token_of_word, sizes) - 1

    counts.update({"documents": len(lengths), "pieces": len(begins), "tokens": total})
    unusual = {
        NO_TOKENS: int((lengths == 0).sum()),
        LONG_WORDS: long_words,
        UNKNOWN: int((window.columns["input_ids"] == unknown).sum()),
    }
    # An unusual case is counted only if it occurs, to keep reports short.
    counts.update({reason: number for reason, number in unusual.items() if number})
    columns = dict(window.columns)
    if "word_ids" in columns:
        columns["word_ids"] = np.where(words >= 0, number_T, -1).astype(np.int16)
    return {
        **columns,
        "offsets": offsets,
        "example_id": np.array(example_ids, dtype=np.int64),
        "document": np.array(documents, dtype=np.int64),
        "source": np.array(sources, dtype=np.int16),
    }


def borders(words: Array, lengths: Ints, room: int) -> tuple[Array, Ints, int]:
    """Find the places where documents may be cut into parts of at most ``room`` tokens.

    Args:
        words: (T,) the word number of each token, −1 for no word.
        lengths: (N,) the number of tokens in each document; they sum to T.
        room: the maximum number of tokens in a part.

    Returns:
        The word numbers (T,), −1 also for words longer than ``room``; for each token, the last
        position at or before it where a part may begin, (T,); and the number of words that are too
        long.
    """
    opens = changes(words, owners(lengths))
    word_T = opens.cumsum() - 1
    # A word that is longer than a row is not masked at all, because half a word must not be masked.
    size_T = np.bincount(word_T)[word_T]
    long = (size_T > room) & (words >= 0)
    kept = np.where(long, -1, words)
    may_begin = opens | (kept < 0)
    border_T = np.maximum.accumulate(np.where(may_begin, np.arange(len(words)), 0))
    return kept, border_T, int((long & opens).sum())


def starts_of(border_T: Ints, begin: int, end: int, room: int) -> Iterator[int]:
    """Yield the first token of each part of the document of the tokens ``begin`` to ``end``."""
    while begin < end:
        yield begin
        if end - begin <= room:
            return
        begin = int(border_T[begin + room])


def tokenizer_key(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return a hash of a tokenizer's vocabulary, or "" without a tokenizer or vocabulary."""
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return ""
    return digest(json.dumps(sorted(tokenizer.get_vocab().items())))


def unknown_share(counts: Mapping[str, int]) -> float:
    """Return the share of unknown tokens among all tokens."""
    return counts.get(UNKNOWN, 0) / max(1, counts.get("tokens", 0))


# A folder of columns has an index, and a file of raw values for each column. Raw values can be
# written in parts, unlike .npy files.
# -------------------------------------------------------------------------------------------


def write_columns(
    folder: Path, parts: Iterable[Mapping[str, Array]], about: Mapping[str, object]
) -> None:
    """Write columns part by part: a file of raw values for each column, then the index."""
    types: dict[str, str] = {}
    with ExitStack() as stack:
        files = []
        for part in parts:
            for place, (name, values) in enumerate(part.items()):
                if name not in types:
                    types[name] = values.dtype.str
                    # Files are numbered, because a layer may have any name.
                    files.append(stack.enter_context((folder / f"{place}.bin").open("wb")))
                # On a full disk, ``ndarray.tofile`` would raise no error.
                files[place].write(np.ascontiguousarray(values).data)
    # The index is written last: a folder without an index counts as missing.
    folders.write_json(folder / INDEX, {"columns": types, **about})


def read_columns(folder: Path, wanted: str) -> tuple[Columns, dict[str, Any]]:
    """Open a folder that `write_columns` wrote, memory-mapped; return the columns and ``about``.

    Args:
        wanted: a column that the folder must have.

    Raises:
        MaskwiseError: the folder is missing or damaged, or was written by another version.
    """
    about = folders.read_json(folder / INDEX, usable=True) or {}
    types = about.pop("columns", {})
    if wanted not in types:
        raise MaskwiseError(
            f"{folder} is not a folder of prepared text",
            got=f"columns {', '.join(types)}",
            allowed=f"a column {wanted}",
            do="prepare the corpus again",
        )
    columns = {}
    for place, (name, dtype) in enumerate(types.items()):
        file = folder / f"{place}.bin"
        try:
            # Columns are plain arrays, because indexing a memmap is slower.
            columns[name] = np.asarray(np.memmap(file, dtype, "r"))
        except (OSError, ValueError) as error:
            raise MaskwiseError(
                f"{file} is damaged", got=str(error), do="prepare the corpus again"
            ) from None
    return columns, about
