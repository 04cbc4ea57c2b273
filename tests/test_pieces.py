"""Pieces and rows: what is cut, what is stored, which pieces form which row, and a corpus that is
prepared.
"""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from maskwise.errors import MaskwiseError
from maskwise.text import (
    Document,
    Pieces,
    Prepared,
    Rows,
    Tokens,
    load_tokenizer,
    pieces,
    read_documents,
    read_pieces,
    rows,
    split,
    tokenise,
    train_tokenizer,
)
from maskwise.text.words import text_id


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    return list(read_documents("bundled:wikipedia", limit=150))


@pytest.fixture(scope="module")
def tokenizer(sample: list[Document]) -> PreTrainedTokenizerFast:
    return train_tokenizer((document.text for document in sample), vocab_size=600)


@pytest.fixture(scope="module")
def tokens(sample: list[Document], tokenizer: PreTrainedTokenizerFast) -> list[Tokens]:
    return list(tokenise(sample, tokenizer))


class Frames:
    """As much of a tokenizer as `read_pieces` looks at."""

    unk_token_id = 1

    def __init__(
        self, cls: int | None = 2, sep: int | None = 3, pad: int | None = 0, eos: int | None = None
    ):
        self.cls_token_id, self.sep_token_id, self.pad_token_id, self.eos_token_id = (
            cls,
            sep,
            pad,
            eos,
        )


def document(name: str, *word_lengths: int, first: int = 100) -> Tokens:
    """A document of words of so many tokens (negative: tokens that belong to no word), all ids
    different.
    """
    words, number = [], 0
    for length in word_lengths:
        words += [number if length > 0 else -1] * abs(length)
        number += length > 0
    return Tokens(
        name, np.arange(first, first + len(words), dtype=np.int32), np.array(words, dtype=np.int32)
    )


def planned(documents: Any, *, length: int, layout: str = "packed", tokenizer: Any = None) -> Rows:
    return Rows.of(read_pieces(documents, tokenizer=tokenizer or Frames(), length=length), layout)


def laid(some: Rows) -> dict[str, list]:
    """All rows laid out, as lists."""
    return {
        name: column.tolist() for name, column in some.batch(range(len(some))).laid_out().items()
    }


def by_name(some: Pieces) -> dict[int, tuple[list[int], list[int]]]:
    """Example id → ids and words of the piece."""
    ids, words = (
        np.split(some.columns[name], some.offsets[1:-1]) for name in ("input_ids", "word_ids")
    )
    return {
        n: (i.tolist(), w.tolist())
        for n, i, w in zip(some.example_ids.tolist(), ids, words, strict=True)
    }


# ---- pieces


def test_joined_rows_in_full() -> None:
    documents = [
        document("a", 1, 2, 1),
        document("b", 3, 3, first=200),
        document("c", 1, first=300),
        document("d"),
    ]
    some = planned(documents, length=8, layout="joined")
    a, c, b = (text_id(f"{name}\0000") for name in "acb")
    assert laid(some) == {
        "input_ids": [[2, 100, 101, 102, 103, 3, 300, 3], [2, 200, 201, 202, 203, 204, 205, 3]],
        "word_ids": [[-1, 0, 1, 1, 2, -1, 3, -1], [-1, 0, 0, 0, 1, 1, 1, -1]],
        "attention_mask": [[True] * 8] * 2,
        "example_id": [[-1, a, a, a, a, -1, c, -1], [-1, b, b, b, b, b, b, -1]],
    }
    assert len(some) == 2 and some.length == 8 and some.tokens == 16
    assert some.pieces.counts == {
        "documents": 4,
        "pieces": 3,
        "tokens": 11,
        "documents without tokens": 1,
    }
    batch = some.batch(torch.tensor([1, 0]))
    assert batch.columns["input_ids"].tolist() == [*range(200, 206), 100, 101, 102, 103, 300]
    assert batch.columns["word_ids"].tolist() == [0, 0, 0, 1, 1, 1, 0, 1, 1, 2, 0]
    assert batch.lengths.tolist() == [6, 4, 1] and batch.example_ids.tolist() == [b, a, c]
    assert batch.rows.tolist() == [0, 1, 1] and (batch.length, batch.frame) == (8, (2, 3, 0))
    assert some.tensors([1])["example_id"].tolist() == [b]
    assert all(tensor.dtype == torch.int64 for tensor in some.tensors([0, 1]).values())


def test_packed_rows_in_full() -> None:
    """Each piece is a text of its own, with both of its special tokens."""
    documents = [document("a", 1, 2, 1), document("b", 2, first=200), document("c", 1, first=300)]
    some = planned(documents, length=9)
    a, b, c = (text_id(f"{name}\0000") for name in "abc")
    assert laid(some) == {
        "input_ids": [[2, 100, 101, 102, 103, 3, 2, 300, 3], [2, 200, 201, 3, 0, 0, 0, 0, 0]],
        "word_ids": [[-1, 0, 1, 1, 2, -1, -1, 3, -1], [-1, 0, 0, -1, -1, -1, -1, -1, -1]],
        "attention_mask": [[True] * 9, [True] * 4 + [False] * 5],
        "example_id": [[-1, a, a, a, a, -1, -1, c, -1], [-1, b, b, *[-1] * 6]],
    }
    assert len(some) == 2 and some.tokens == 13


def test_document_rows_in_full() -> None:
    some = planned(
        [document("a", 2, 2, 2, 1), document("b", 1, first=200)], length=7, layout="document"
    )
    assert laid(some) == {
        "input_ids": [
            [2, 100, 101, 102, 103, 3, 0],  # the third word would not fit whole
            [2, 104, 105, 106, 3, 0, 0],
            [2, 200, 3, 0, 0, 0, 0],
        ],
        "word_ids": [
            [-1, 0, 0, 1, 1, -1, -1],
            [-1, 0, 0, 1, -1, -1, -1],
            [-1, 0, -1, -1, -1, -1, -1],
        ],
        "attention_mask": [
            [True] * 6 + [False],
            [True] * 5 + [False] * 2,
            [True] * 3 + [False] * 4,
        ],
        "example_id": [text_id("a\0000"), text_id("a\0004"), text_id("b\0000")],
    }
    assert some.tokens == 14


def test_example_ids_never_change() -> None:
    some = read_pieces([document("56564559", 1)], tokenizer=Frames(), length=8)
    assert some.example_ids.tolist() == [2896569359265565149]


def test_a_word_longer_than_a_row_is_not_eligible() -> None:
    some = planned([document("a", 1, 9, 1, 4)], length=7, layout="document")
    assert laid(some)["word_ids"] == [
        [-1, 0, -1, -1, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1, -1],
        [-1, 0, 1, 1, 1, 1, -1],
    ]
    assert some.pieces.counts["words longer than a row"] == 1
    assert some.pieces.columns["input_ids"].tolist() == list(range(100, 115))


def test_other_frames() -> None:
    without_cls = planned(
        [document("a", 1, 1)], tokenizer=Frames(cls=None, sep=None, eos=1), length=4
    )
    assert laid(without_cls)["input_ids"] == [[100, 101, 1, 0]]
    bare = planned([document("a", 1, 1)], tokenizer=Frames(cls=None, sep=None, pad=None), length=4)
    assert laid(bare)["input_ids"] == [[100, 101, 0, 0]] and bare.tokens == 2


def test_unknown_tokens_are_counted() -> None:
    known, unknown = document("a", 1, 1), document("b", 1, 1, first=1)  # ids 1 and 2; 1 is [UNK]
    some = read_pieces([known, unknown], tokenizer=Frames(), length=8)
    assert (some.counts["unknown tokens"], some.counts["tokens"]) == (1, 4)
    assert "unknown tokens" not in read_pieces([known], tokenizer=Frames(), length=8).counts


def test_tokens_without_words(tmp_path: Path) -> None:
    """A slow tokenizer has no offsets: pieces are cut anywhere, and no layer says that there are
    words.
    """
    slow = Tokens("a", np.arange(100, 107, dtype=np.int32), None)
    some = Pieces.load(read_pieces([slow], tokenizer=Frames(), length=7).save(tmp_path / "p.arrow"))
    assert laid(Rows.of(some))["input_ids"] == [
        [2, 100, 101, 102, 103, 104, 3],
        [2, 105, 106, 3, 0, 0, 0],
    ]
    assert set(some.columns) == {"input_ids"}
    with pytest.raises(MaskwiseError, match="same layers"):
        read_pieces([slow, document("b", 1)], tokenizer=Frames(), length=7)


words_of_documents = st.lists(
    st.lists(st.integers(-3, 9).filter(bool), max_size=12), min_size=1, max_size=12
).filter(any)


@settings(max_examples=150, deadline=None)
@given(words_of_documents, st.integers(4, 14), st.sampled_from(["packed", "joined", "document"]))
def test_pieces_lose_nothing_and_are_cut_between_words(
    lengths: list[list[int]], length: int, layout: str
) -> None:
    documents = [document(str(n), *words, first=1000 * (n + 1)) for n, words in enumerate(lengths)]
    some = planned(documents, length=length, layout=layout)
    word_of = {
        i: (d.document_id, w)
        for d in documents
        for i, w in zip(d.input_ids.tolist(), d.word_ids.tolist(), strict=True)
    }
    table = some.batch(range(len(some))).laid_out()
    for row in range(len(some)):
        ids, words, size = (
            table[name][row] for name in ("input_ids", "word_ids", "attention_mask")
        )
        size = int(size.sum())
        held = some.order[some.first[row] : some.first[row + 1]]
        expected: list[int] = []
        for piece in held.tolist():
            begin, end = some.pieces.offsets[piece : piece + 2]
            expected += [2] * (layout == "packed" or not expected)
            expected += [*some.pieces.columns["input_ids"][begin:end].tolist(), 3]
        assert ids.tolist() == expected + [0] * (length - size) and len(expected) == size
        assert (words[np.isin(ids, [0, 2, 3])] == -1).all()
        shown = words[words >= 0]
        assert (np.diff(shown) >= 0).all() and set(shown.tolist()) == set(
            range(len(set(shown.tolist())))
        )
        same = [word_of[i] for i in ids[words >= 0].tolist()]
        assert [a == b for a, b in pairwise(shown.tolist())] == [a == b for a, b in pairwise(same)]
    # Every piece lies in one row, and every token in one piece, in its place.
    assert sorted(some.order.tolist()) == list(range(len(some.pieces)))
    restored = [ids for ids, _ in by_name(some.pieces).values()]
    assert [i for piece in restored for i in piece] == [
        i for d in documents for i in d.input_ids.tolist()
    ]
    for before, after in pairwise(restored):
        name, word = word_of[before[-1]]
        whole = sum(w == (name, word) for w in word_of.values()) <= length - 2
        assert word < 0 or not whole or word_of[after[0]] != (name, word)
        assert (
            word_of[after[0]][0] != name
            or len(before) + 1 + _next_word(after, word_of) > length - 2
        )
    for _, words_of_piece in by_name(some.pieces).values():
        numbers = sorted({word for word in words_of_piece if word >= 0})
        assert numbers == list(range(len(numbers)))


def _next_word(piece: list[int], word_of: dict) -> int:
    """How many more tokens the first word of a piece would have needed than one."""
    first = word_of[piece[0]]
    return 0 if first[1] < 0 else sum(word_of[i] == first for i in piece) - 1


def test_layers_ride_along(tmp_path: Path) -> None:
    one = document("a", 2, 1)._replace(
        layers={
            "pos": np.array([5, 5, 7], np.int8),
            "score": np.array([0.5, 0, 1]),
            "on": np.array([1, 0, 1]) > 0,
        }
    )
    two = document("b", 1)._replace(
        layers={"pos": np.array([9], np.int8), "score": np.array([0.25]), "on": np.array([True])}
    )
    some = Pieces.load(
        read_pieces([one, two], tokenizer=Frames(), length=8).save(tmp_path / "p.arrow")
    )
    batch = Rows.of(some).tensors([0])
    assert batch["pos"].tolist() == [[-1, 5, 5, 7, -1, -1, 9, -1]]
    assert batch["score"].tolist() == [[0, 0.5, 0, 1, 0, 0, 0.25, 0]]
    assert batch["on"].tolist() == [[-1, 1, 0, 1, -1, -1, 1, -1]]
    with pytest.raises(MaskwiseError, match="same layers"):
        read_pieces([one, document("c", 1)], tokenizer=Frames(), length=8)


@pytest.mark.parametrize("out", [False, True])
def test_windows_need_the_same_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: bool
) -> None:
    monkeypatch.setattr(pieces, "WINDOW_TOKENS", 1)
    one = document("a", 1)._replace(layers={"pos": np.array([5])})
    with pytest.raises(MaskwiseError, match=r"same layers; got .*in 'c'; allowed: .*'pos'"):
        path = tmp_path / "p.arrow" if out else None
        read_pieces([one, document("c", 1)], tokenizer=Frames(), length=8, out=path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [2, 40_000])
def test_lengths_without_room(length: int) -> None:
    with pytest.raises(MaskwiseError, match=f"no room for text, or is too long; got {length}"):
        planned([document("a", 1)], length=length)


@pytest.mark.parametrize("documents", [[], [document("a")]])
def test_no_tokens(documents: list[Tokens], tmp_path: Path) -> None:
    for out in (None, tmp_path / "pieces.arrow"):
        with pytest.raises(MaskwiseError, match="the corpus has no tokens"):
            read_pieces(documents, tokenizer=Frames(), length=8, out=out)
    assert not list(tmp_path.iterdir())


# ---- files


def test_save_and_load(
    tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    some = read_pieces(tokens, tokenizer=tokenizer, length=64)
    path = some.save(tmp_path / "new" / "pieces.arrow")
    loaded = Pieces.load(path)
    assert [file.name for file in path.parent.iterdir()] == ["pieces.arrow"]
    for name, column in {
        **some.columns,
        "offsets": some.offsets,
        "names": some.example_ids,
    }.items():
        again = {**loaded.columns, "offsets": loaded.offsets, "names": loaded.example_ids}[name]
        assert (again == column).all() and again.dtype == column.dtype
        assert not again.flags.owndata and not again.flags.writeable  # mapped
    assert (loaded.frame, loaded.length, loaded.counts) == (some.frame, some.length, some.counts)
    assert (
        read_pieces(tokens, tokenizer=tokenizer, length=64).save(tmp_path / "b").read_bytes()
        == path.read_bytes()
    )


def test_memory_does_not_grow_with_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view of no tokens kept every window: 6 bytes of each token of the corpus."""
    monkeypatch.setattr(pieces, "WINDOW_TOKENS", 2_000)

    def held(documents: int) -> int:
        made = (
            Tokens(str(n), np.full(1_000, 7, dtype=np.int32), np.arange(1_000, dtype=np.int32))
            for n in range(documents)
        )
        tracemalloc.start()
        read_pieces(made, tokenizer=Frames(), length=1_000, out=tmp_path / f"{documents}.arrow")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    _, few, more = held(2), held(100), held(1_100)  # the first one imports
    assert more - few < 1_000 * 1_000  # bytes, for a million tokens


def test_written_as_read_equals_held_in_memory(
    tokens: list[Tokens],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = read_pieces(tokens, tokenizer=tokenizer, length=64)
    monkeypatch.setattr(pieces, "WINDOW_TOKENS", 5000)
    filed = read_pieces(iter(tokens), tokenizer=tokenizer, length=64, out=tmp_path / "pieces.arrow")
    assert [file.name for file in tmp_path.iterdir()] == ["pieces.arrow"]
    assert by_name(filed) == by_name(whole) and filed.counts == whole.counts and len(filed) > 10
    assert list(by_name(filed)) == list(by_name(whole))


def test_files_that_hold_no_pieces(
    tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = read_pieces(tokens[:20], tokenizer=tokenizer, length=64).save(tmp_path / "whole.arrow")
    whole = path.read_bytes()
    (tmp_path / "cut.arrow").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.arrow").write_bytes(b"")
    (tmp_path / "text.arrow").write_text("no arrow")
    table = pa.table({"x": [1]})
    with pa.ipc.new_file(tmp_path / "other.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("cut", "empty", "text", "other", "missing"):
        with pytest.raises(MaskwiseError, match=f"{name}.arrow does not hold pieces") as error:
            Pieces.load(tmp_path / f"{name}.arrow")
        assert "\n" not in str(error.value)
    old = table.replace_schema_metadata({"maskwise": json.dumps({"format": 1})})
    with pa.ipc.new_file(tmp_path / "old.arrow", old.schema) as writer:
        writer.write_table(old)
    with pytest.raises(MaskwiseError, match=r"of another format; got 1; allowed: 2"):
        Pieces.load(tmp_path / "old.arrow")


def test_a_full_disk_leaves_the_old_file(
    tokens: list[Tokens],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = read_pieces(tokens[:2], tokenizer=tokenizer, length=64).save(tmp_path / "pieces.arrow")
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(MaskwiseError, match="No space left"):
        read_pieces(tokens[:5], tokenizer=tokenizer, length=64).save(path)
    with pytest.raises(MaskwiseError, match="No space left"):
        read_pieces(tokens[:5], tokenizer=tokenizer, length=64, out=path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [
        "pieces.arrow"
    ]


# ---- rows


def test_real_text_is_packed_tightly(
    tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast
) -> None:
    for length in (64, 256):
        some = planned(tokens, tokenizer=tokenizer, length=length)
        assert len(some.pieces.columns["input_ids"]) == sum(len(one.input_ids) for one in tokens)
        assert some.tokens / (len(some) * length) > 0.97


def test_plans_are_made_in_windows(
    tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "WINDOW_TOKENS", 5000)
    some = planned(tokens, tokenizer=tokenizer, length=64)
    assert (
        sorted(some.order.tolist()) == list(range(len(some.pieces)))
        and (np.diff(some.first) > 0).all()
    )
    assert some.tokens / (len(some) * 64) > 0.9
    # No piece lies far from its neighbours in the corpus.
    assert max(np.ptp(part) for part in np.split(some.order, some.first[1:-1])) * 40 < 2 * 5000


def test_batches_are_independent_copies(
    tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast
) -> None:
    some = planned(tokens, tokenizer=tokenizer, length=64)
    before = some.pieces.columns["input_ids"].copy()
    batch = some.tensors(np.arange(5))
    for tensor in batch.values():
        tensor.zero_()
    assert (some.pieces.columns["input_ids"] == before).all()
    assert set(batch) == {"input_ids", "attention_mask", "word_ids", "example_id"}
    for number in (len(some), -1):
        with pytest.raises(MaskwiseError, match=f"no such row; got {number}"):
            some.batch([0, number])


def test_unigram_counts(
    tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "WINDOW_TOKENS", 5000)
    some = planned(tokens, tokenizer=tokenizer, length=64)
    expected = Counter(i for one in tokens for i in one.input_ids.tolist())
    counts = some.unigram_counts(len(tokenizer))
    assert (
        counts.dtype == np.int64 and {i: n for i, n in enumerate(counts.tolist()) if n} == expected
    )
    with pytest.raises(MaskwiseError, match="outside the vocabulary"):
        some.unigram_counts(50)


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_split_is_by_document(
    tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast, layout: str
) -> None:
    some = read_pieces(tokens, tokenizer=tokenizer, length=64)
    training, held_out = split(some, held_out=0.2, layout=layout)
    sides = [set(side.documents.tolist()) for side in (training, held_out)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(some.documents.tolist())
    assert 0.1 < len(sides[1]) / len(tokens) < 0.3
    assert sorted([*training.order, *held_out.order]) == list(range(len(some)))
    assert training.pieces is held_out.pieces is some and training.layout == layout
    # A document's side does not depend on its neighbours, and a larger share takes in a smaller
    # one.
    _, half = split(read_pieces(tokens[::2], tokenizer=tokenizer, length=64), held_out=0.2)
    assert set(half.documents.tolist()) <= sides[1]
    assert sides[1] < set(split(some, held_out=0.4)[1].documents.tolist())


def test_split_refuses(tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast) -> None:
    some = read_pieces(tokens[:1], tokenizer=tokenizer, length=64)
    for share, message in (
        (0.0, "share of the documents"),
        (1.0, "share"),
        (
            0.5,
            r"^corpus.held_out=0.5 leaves the (held-out|training) side empty; got 1 "
            r"document; give more",
        ),
    ):
        with pytest.raises(MaskwiseError, match=message):
            split(some, held_out=share)


def test_a_split_that_fails_names_a_share_that_does(
    tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast
) -> None:
    some = read_pieces(tokens[:4], tokenizer=tokenizer, length=64)
    for share, side in ((1e-9, "held-out"), (1 - 1e-9, "training")):
        with pytest.raises(MaskwiseError, match=f"the {side} side empty; got 4 documents") as error:
            split(some, held_out=share)
        assert all(split(some, held_out=float(str(error.value).rpartition(" ")[2])))


def test_another_layout_of_the_same_pieces(
    tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast
) -> None:
    packed, _ = split(read_pieces(tokens, tokenizer=tokenizer, length=64), held_out=0.2)
    alone = packed.laid("document")
    assert alone.layout == "document" and len(alone) == len(packed.order) > len(packed)
    assert alone.order.tolist() == sorted(packed.order.tolist()) and alone.pieces is packed.pieces
    assert packed.laid("packed") is packed
    judged = packed.batch([3, 5]).example_ids
    names = alone.batch(alone.holding(judged)).example_ids
    assert sorted(names.tolist()) == sorted(judged.tolist()) and packed.holding(
        judged
    ).tolist() == [3, 5]
    with pytest.raises(MaskwiseError, match="did you mean 'packed'"):
        packed.laid("pakced")


# ---- a prepared corpus


def prepared(folder: Path, tokens: list[Tokens], tokenizer: Any) -> Prepared:
    return Prepared.make(folder, tokens, tokenizer, length=64, layout="packed", held_out=0.2)


def test_a_prepared_corpus_comes_back(
    tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    data = prepared(tmp_path / "data", tokens, tokenizer)
    names = ["held_out.arrow", "manifest.json", "pieces.arrow", "tokenizer", "training.arrow"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == names
    expected = split(read_pieces(tokens, tokenizer=tokenizer, length=64), held_out=0.2)
    again = Prepared.open(tmp_path / "data")
    for side, wanted in zip((again.training, again.held_out), expected, strict=True):
        assert (
            laid(side) == laid(wanted) and side.layout == "packed" and side.tokens == wanted.tokens
        )
        assert not side.order.flags.owndata  # mapped
    assert len(data.training) == len(again.training) and len(again.tokenizer) == len(tokenizer)


@pytest.mark.parametrize("name", ["pieces.arrow", "training.arrow", "tokenizer/tokenizer.json"])
def test_one_flipped_bit_is_noticed(
    tokens: list[Tokens], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "data"
    prepared(folder, tokens[:40], tokenizer)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    (folder / "manifest.json").touch()  # another process opens it
    with pytest.raises(
        MaskwiseError, match=f"data is damaged; got {name} is damaged; run .* again"
    ) as error:
        Prepared.open(folder)
    assert "\n" not in str(error.value)
    if name.startswith("tokenizer"):  # which stages also read by itself
        with pytest.raises(MaskwiseError, match=r"got tokenizer\.json is damaged"):
            load_tokenizer(str(folder / "tokenizer"))


def test_what_is_no_prepared_corpus(tmp_path: Path) -> None:
    with pytest.raises(MaskwiseError, match="is damaged; got no readable manifest"):
        Prepared.open(tmp_path / "nothing")
