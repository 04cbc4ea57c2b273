"""The line: a batch of rows as one flat array of tokens, which policies and corruptions read.

A batch has B rows of L tokens. The rows are joined to the *line*, one flat array of T = B·L tokens.
The line is cut into P *pieces*. A piece is one document, or one part of a document, in a row; a
packed row has several pieces. One flat array needs no loop over rows or pieces, and a packed row
costs no more than a row of one document.

The last letters of a name show the shape of an array: ``ratio_P`` has one number per piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.masking.draws import Array, Draws, Purpose
from maskwise.masking.segments import (
    counts_within,
    listed,
    offsets,
    owners,
    rank_within,
    sums_within,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from maskwise.masking.vocabulary import Vocabulary

Columns: TypeAlias = dict[str, Array]
"""Arrays with a value for each token, keyed by name."""
Names: TypeAlias = tuple[str, ...]


class Frame(NamedTuple):
    """Ids of special tokens: before a text, after a piece (−1 if there is none), and padding."""

    first: int
    last: int
    pad: int

    def room(self, length: int) -> int:
        """Return the number of tokens in the longest piece that fits in a row."""
        return length - (self.first >= 0) - (self.last >= 0)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Frame:
        """Return the ids of [CLS] (or <bos>), [SEP] (or the end-of-sequence token) and padding."""
        first = _known(tokenizer.cls_token_id)
        # GPT-2 has a <bos> that it writes nowhere. Gemma writes it before each text.
        if first < 0 and tokenizer.bos_token_id in tokenizer("")["input_ids"]:
            first = tokenizer.bos_token_id
        last = _known(tokenizer.sep_token_id, tokenizer.eos_token_id)
        # No token attends to padding, so any id will do.
        pad = max(0, _known(tokenizer.pad_token_id, last))
        return cls(first, last, pad)


def _known(*ids: int | None) -> int:
    """Return the first id that is not None, or −1."""
    return next((token for token in ids if token is not None), -1)


@dataclass(eq=False)
class Line:
    """B rows of L tokens, cut into P pieces, with annotation layers, as flat numpy arrays.

    Attributes:
        shape: (B, L), the number of rows and the number of tokens in each row.
        input_ids: (T,) int64, the token ids.
        attention_mask: (T,) int64, 0 for padding and 1 for other tokens; None if no row is padded.
        content: (T,) bool, the tokens that are neither padding nor special.
        eligible: (T,) bool, the tokens that may be masked: all content tokens except [UNK].
        begin: (P,) int64, the position of the first token of each piece in the line. A piece
            includes its special tokens and never crosses rows.
        example_id: (P,) int64, the permanent id of each piece. The random draws for the mask of a
            piece are computed from this id.
        layers: the annotation layers by name, such as ``word_ids``. A layer has one number per
            token, (T,). Where a token has no value, whole numbers are negative, and floats are 0.
        extras: (T,) arrays by name, such as ``token_type_ids``, that only the model reads.
        plan: the maximum number of tokens in a packed row; None for no limit.
        apart: whether tokens may attend only to tokens of their own piece.
        silent: (T,) bool, the tokens that the user's own labels or loss_mask exclude from all
            targets; None if the rows have neither.
        kept: (T,) bool, the tokens that ``keep`` excludes from masking; None without it.
    """

    shape: tuple[int, int]
    input_ids: Array
    attention_mask: Array | None
    content: Array
    eligible: Array
    begin: Array
    example_id: Array
    layers: Columns = field(default_factory=dict)
    extras: Columns = field(default_factory=dict)
    plan: int | None = None
    apart: bool = False
    silent: Array | None = None
    kept: Array | None = None

    @classmethod
    def of_pieces(
        cls,
        columns: Mapping[str, Array],
        lengths_P: Array,
        row_P: Array,
        *,
        example_id: Array,
        length: int,
        frame: Frame,
        apart: bool = True,
    ) -> Line:
        """Put pieces in rows: [first] piece [last] [first] piece [last] … padding.

        All tokens of the pieces are content and eligible; see ``read_with``.

        Args:
            columns: arrays (N,) of the tokens of all pieces, keyed by name: ``input_ids`` and
                layers. At special tokens and padding, layers are −1, or 0 if they are floats.
            lengths_P: (P,) int64, the number of tokens in each piece.
            row_P: (P,) int64, ascending: the row of each piece.
            example_id: (P,) int64, the permanent id of each piece.
            length: L, the number of tokens in a row.
            frame: the ids of special tokens.
            apart: whether every piece is a text of its own, with ``first`` before it. If not, all
                pieces of a row form one text, and ``first`` is only at its beginning.

        Raises:
            MaskwiseError: the pieces do not fit into their rows.
        """
        first, last, pad = frame
        rows = int(row_P.max(initial=-1)) + 1
        shape = (rows, length)
        pieces_B = counts_within(row_P, rows)
        opened_P = np.full(len(row_P), first >= 0)
        if not apart:
            opened_P &= rank_within(pieces_B) == 0
        framed_P = lengths_P + opened_P + (last >= 0)
        end_P = row_P * length + sums_within(framed_P, pieces_B)
        begin_P = end_P - framed_P
        if (end_P > (row_P + 1) * length).any():
            raise MaskwiseError(
                "pieces do not fit into their rows", allowed=f"{length} tokens per row"
            )
        at = listed(begin_P + opened_P, lengths_P)

        def placed(values: Array, fill: int) -> Array:
            line = np.full(rows * length, fill, values.dtype)
            line[at] = values
            return line

        layers = dict(columns)
        ids = placed(layers.pop("input_ids").astype(np.int64, copy=False), pad)
        if first >= 0:
            ids[begin_P[opened_P]] = first
        if last >= 0:
            ids[end_P - 1] = last
        for name, values in layers.items():
            real = values.dtype.kind in "fb"
            layers[name] = placed(values if real else values.astype(np.int64), 0 if real else -1)
        text = np.zeros(rows * length, bool)
        text[at] = True
        present = np.zeros(rows * length, np.int64)
        present[listed(begin_P, framed_P)] = 1
        return cls(
            shape,
            ids,
            None if present.all() else present,
            content=text,
            eligible=text,
            begin=begin_P,
            example_id=example_id,
            layers=layers,
            plan=length,
            apart=apart,
        )

    @classmethod
    def joined(cls, lines: Sequence[Line]) -> Line:
        """Concatenate the rows of corpus lines (``of_pieces``) of the same length and layers."""
        if not lines:
            raise MaskwiseError("no lines to join", do="pass at least one")
        first = lines[0]
        if len(lines) == 1:
            return first
        rows = np.array([line.shape[0] for line in lines])
        tokens_before = offsets(rows * first.shape[1])
        begins = [line.begin + before for line, before in zip(lines, tokens_before)]
        padded = any(line.attention_mask is not None for line in lines)
        return replace(
            first,
            shape=(int(rows.sum()), first.shape[1]),
            input_ids=np.concatenate([line.input_ids for line in lines]),
            attention_mask=np.concatenate([line.present for line in lines]).astype(np.int64)
            if padded
            else None,
            content=np.concatenate([line.content for line in lines]),
            eligible=np.concatenate([line.eligible for line in lines]),
            begin=np.concatenate(begins),
            example_id=np.concatenate([line.example_id for line in lines]),
            layers={
                name: np.concatenate([line.layers[name] for line in lines]) for name in first.layers
            },
        )

    def read_with(self, vocabulary: Vocabulary) -> Line:
        """Leave out the tokens of the text that this vocabulary calls special, [UNK] or excluded.

        Raises:
            MaskwiseError: an id is outside the vocabulary, or there are no rows.
        """
        if not self.shape[0]:
            raise MaskwiseError("there are no rows to mask", got="no pieces")
        kind = kinds(self.input_ids, vocabulary)
        return replace(self, content=self.content & (kind > 0), eligible=self.eligible & (kind > 1))

    def columns(self) -> Columns:
        """Return the rows as (B, L) arrays, keyed by name, as a masker and a model read them.

        Returns:
            "input_ids", "attention_mask", the layers and the extras, (B, L). In packed rows, words
            are numbered from 0 in every row. "example_id" is (B,) if every row has one piece, else
            (B, L): special tokens have the id of their piece, and padding has −1.
        """
        layers = dict(self.layers)
        example_id = self.example_id
        if self.packed:
            # Only its id tells to which of two pieces a special token between them belongs.
            each = np.where(self.present, example_id.repeat(self._widths), -1)
            example_id = each.reshape(self.shape)
            # A slow tokenizer finds no words.
            if "word_ids" in layers:
                layers["word_ids"] = self._words_of_rows()
        flat = {
            "input_ids": self.input_ids,
            "attention_mask": self.present.astype(np.int64),
            **layers,
            **self.extras,
        }
        columns = {name: values.reshape(self.shape) for name, values in flat.items()}
        return {**columns, "example_id": example_id}

    def _words_of_rows(self) -> Array:
        """(T,) int64: word numbers that begin at 0 in each row and not in each piece."""
        words = self.layers["word_ids"]
        # The words of a piece are numbered from 0, so their count is the largest number plus one.
        words_P = np.maximum.reduceat(words, self.begin) + 1
        before_P = sums_within(words_P, counts_within(self.row, self.shape[0])) - words_P
        return np.where(words >= 0, words + before_P.repeat(self._widths), -1)

    @property
    def pieces(self) -> int:
        """P, the number of pieces."""
        return len(self.begin)

    @cached_property
    def edges(self) -> Array:
        """(P + 1,) int64: the position of the first token of each piece, and T as last item."""
        edges = np.empty(len(self.begin) + 1, np.int64)
        edges[:-1] = self.begin
        edges[-1] = len(self.input_ids)
        return edges

    @cached_property
    def lengths(self) -> Array:
        """(P,) int64: the number of content tokens in each piece, whatever the padding."""
        return self.count(self.content)

    @cached_property
    def _widths(self) -> Array:
        """(P,) int64: the number of places of each piece, with special tokens and padding."""
        return self.edges[1:] - self.edges[:-1]

    @cached_property
    def piece(self) -> Array:
        """(T,) int64: the index of each token's piece."""
        return owners(self._widths)

    @cached_property
    def row(self) -> Array:
        """(P,) int64: the index of each piece's row."""
        if not self.shape[1]:
            return np.arange(self.pieces)
        return self.begin // self.shape[1]

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one piece."""
        return self.pieces > self.shape[0]

    @cached_property
    def present(self) -> Array:
        """(T,) bool: the tokens that are not padding."""
        if self.attention_mask is None:
            return np.ones(len(self.input_ids), bool)
        return self.attention_mask != 0

    @cached_property
    def predicted(self) -> Array:
        """(T,) bool: the content tokens about which a model may be asked."""
        return self.content if self.silent is None else self.content & ~self.silent

    @cached_property
    def movable(self) -> Array:
        """(T,) bool: the content tokens beside which a corruption may insert others."""
        return self.predicted if self.kept is None else self.predicted & ~self.kept

    @cached_property
    def content_at(self) -> Array:
        """(C,) int64: the positions of the content tokens."""
        return np.flatnonzero(self.content)

    @cached_property
    def eligible_at(self) -> Array:
        """(E,) int64: the positions of the tokens that may be masked."""
        return np.flatnonzero(self.eligible)

    @cached_property
    def eligible_P(self) -> Array:
        """(P,) int64: the number of tokens of each piece that may be masked."""
        return self.count(self.eligible)

    @cached_property
    def first(self) -> Array:
        """(P,) int64: the position of the first content token of each piece.

        If a piece has no content tokens, this is the position of its first token.
        """
        content = self.content
        if len(content):
            # A shortcut for the common case: every piece begins with content, or with one special
            # token and then content.
            first_P = self.begin + ~content[self.begin]
            if (first_P < self.edges[1:]).all() and content[first_P].all():
                return first_P
        at = self.content_at
        before = at.searchsorted(self.edges)
        # If the last pieces have no content, their index is the length of ``at``. The appended 0
        # prevents an IndexError.
        first_P = np.append(at, 0)[before[:-1]]
        return np.where(before[1:] > before[:-1], first_P, self.begin)

    def draw(self, draws: Draws, purpose: Purpose, at: Array) -> Array:
        """(N,) int32: a random draw for each token at the ascending positions ``at``."""
        count_P = self.count_at(at)
        return draws.draw_each(purpose, count_P, self.place(at, count_P))

    def place(self, at: Array, count_P: Array | None = None) -> Array:
        """(N,) int64: positions of tokens, counted from the first content token of their piece.

        Args:
            at: (N,) int64, ascending positions of the tokens in the line.
            count_P: (P,) int64, ``count_at(at)``, for those who know it already.
        """
        return at - self.first.repeat(self.count_at(at) if count_P is None else count_P)

    def count(self, values: Array) -> Array:
        """(P,) int64: the sum of ``values`` (T,) in each piece."""
        # numpy's reduceat fails on an empty line.
        if not len(values):
            return np.zeros(self.pieces, np.int64)
        return np.add.reduceat(
            values,
            self.begin,
            dtype=np.int64,
        )

    def count_at(self, at: Array) -> Array:
        """(P,) int64: how many of the ascending positions ``at`` are in each piece."""
        before = at.searchsorted(self.edges)
        return before[1:] - before[:-1]

    def layer(self, name: str, *, scores: bool = False) -> Array:
        """Return the layer ``name``, (T,).

        Raises:
            MaskwiseError: the layer is missing, or ``scores`` is False and the layer holds floats.
        """
        # A policy may also read what the model reads, such as ``token_type_ids``.
        values = self.layers.get(name, self.extras.get(name))
        if values is None:
            raise MaskwiseError(
                f"the layer {name!r} is missing",
                got=f"layers {sorted(self.layers)}",
                do=f"{_how_to_make(name)}; "
                "transformers' Trainer keeps the column only with remove_unused_columns=False; "
                "in a recipe, name the annotators in corpus.layers",
            )
        # Rounding floats to ids could merge units. With bools, False would count as a value.
        if values.dtype.kind in "fb" and len(values) and not scores:
            raise MaskwiseError(
                f"the layer {name!r} must be whole numbers",
                got=str(values.dtype),
                do="use integers, with −1 for tokens that have no value",
            )
        return values

    @contextmanager
    def read_only(self) -> Iterator[Line]:
        """Give a copy that shares all arrays, which nobody can change until the block ends."""
        line = object.__new__(type(self))
        held = vars(line)
        held.update(vars(self), layers={**self.layers}, extras={**self.extras})
        frozen = []
        for arrays in (held, line.layers, line.extras):
            for name, values in arrays.items():
                if isinstance(values, np.ndarray) and values.flags.writeable:
                    values = arrays[name] = values.view()
                    values.setflags(write=False)
                    frozen.append(values)
        yield line
        # Tensors of the batch share these arrays, and torch warns of arrays that are read-only.
        for values in frozen:
            values.setflags(write=True)

    def tensor(self, values: Array) -> Tensor:
        """Return an array (T,) of the line, such as ``line.content`` or ``line.layer("pos")``, as a
        (B, L) tensor, which shares its memory.
        """
        import torch

        return torch.from_numpy(values.reshape(self.shape))


# The annotators that write a layer by a rule, and those that must read a whole corpus before.
_BY_RULE = {
    "pos": "pos",
    "prompt": "prompt",
    "salient": "salient",
    "sentence": "sentences",
    "words": "words",
}
_BY_CORPUS = {
    "difference": "difference",
    "frequency": "frequency",
    "informativeness": "informativeness",
    "phrase": "phrases",
}


def _how_to_make(layer: str) -> str:
    """Return how a user gets rows with a layer."""
    layers = ""
    before = ""
    if layer in _BY_RULE:
        layers = f", layers=[{_BY_RULE[layer]!r}]"
    elif layer in _BY_CORPUS:
        maker = _BY_CORPUS[layer]
        before = f"run maskwise.annotate.run.annotate_corpus(FILE, [{maker!r}], FOLDER), and "
        layers = """, layers=['stored("FOLDER")']"""
    elif layer != "word_ids":
        return f"give the rows a column {layer!r} with a number for each token"
    return (
        f"{before}make the rows with maskwise.encode(tokenizer, texts{layers}), or map "
        "maskwise.annotate_rows over a data set"
    )


def kinds(ids: Array, vocabulary: Vocabulary) -> Array:
    """(T,) uint8: the ``Vocabulary.kind`` of each token.

    Raises:
        MaskwiseError: an id is outside the vocabulary.
    """
    # One pass finds both bounds: read without signs, a negative id is a large number.
    if ids.view(np.uint64).max(initial=0) >= vocabulary.size:
        least = int(ids.min())
        whole_number(
            "an id in input_ids",
            least if least < 0 else int(ids.max()),
            least=0,
            most=vocabulary.size - 1,
            do="use the tokenizer that made these rows",
        )
    return vocabulary.kind.take(ids)
