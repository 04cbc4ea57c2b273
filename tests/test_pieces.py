"""Pieces and rows: how documents are cut, stored and packed, and prepared folders."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from maskwise.errors import MaskwiseError
from maskwise.text import (
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
from maskwise.text.pieces import FORMAT
from maskwise.text.words import text_id

LAYOUTS = ["packed", "joined", "document"]


@pytest.fixture(scope="module")
def real() -> tuple[list[Tokens], PreTrainedTokenizerFast]:
    """Real documents and their tokenizer."""
    documents = list(read_documents("bundled:wikipedia", limit=150))
    tokenizer = train_tokenizer((document.text for document in documents), vocab_size=600)
    return list(tokenise(documents, tokenizer)), tokenizer


@pytest.fixture(scope="module")
def whole(real) -> Pieces:
    return read_pieces(real[0], tokenizer=real[1], length=64)


class Frames:
    """The attributes of a tokenizer that `read_pieces` reads."""

    unk_token_id = 1

    def __init__(self, cls: Any = 2, sep: Any = 3, pad: Any = 0, eos: Any = None):
        self.cls_token_id = cls
        self.sep_token_id = sep
        self.pad_token_id = pad
        self.eos_token_id = eos


def document(name: str, *word_lengths: int, first: int = 100) -> Tokens:
    """A document of words of these lengths (negative: tokens of no word), with distinct ids."""
    words: list[int] = []
    number = 0
    for length in word_lengths:
        words += [number if length > 0 else -1] * abs(length)
        number += length > 0
    ids = np.arange(first, first + len(words), dtype=np.int32)
    return Tokens(name, ids, np.array(words, dtype=np.int32))


def cut(documents: list[Tokens], *, length: int = 8, **more: Any) -> Pieces:
    return read_pieces(documents, tokenizer=Frames(), length=length, **more)


def table(some: Rows) -> dict[str, list]:
    """All rows as lists."""
    columns = some.batch(range(len(some))).laid_out()
    return {name: column.tolist() for name, column in columns.items()}


def by_name(some: Pieces) -> dict[int, tuple[list[int], list[int]]]:
    """Example id → ids and words of the piece, in order."""
    ids, words = (
        np.split(some.columns[name], some.offsets[1:-1]) for name in ("input_ids", "word_ids")
    )
    return {
        name: (i.tolist(), w.tolist()) for name, i, w in zip(some.example_ids.tolist(), ids, words)
    }


# ---- pieces


def test_joined_rows_in_full() -> None:
    documents = [
        document("a", 1, 2, 1),
        document("b", 3, 3, first=200),
        document("c", 1, first=300),
        document("d"),
    ]
    some = Rows.of(cut(documents), "joined")
    a, c, b = (text_id(f"{name}\0000") for name in "acb")
    assert table(some) == {
        "input_ids": [[2, 100, 101, 102, 103, 3, 300, 3], [2, 200, 201, 202, 203, 204, 205, 3]],
        "word_ids": [[-1, 0, 1, 1, 2, -1, 3, -1], [-1, 0, 0, 0, 1, 1, 1, -1]],
        "attention_mask": [[1] * 8] * 2,
        "example_id": [[-1, a, a, a, a, -1, c, -1], [-1, b, b, b, b, b, b, -1]],
    }
    assert len(some) == 2 and some.length == 8 and some.tokens == 16
    assert some.lengths.tolist() == [5, 6]
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
    some = Rows.of(cut(documents, length=9))
    a, b, c = (text_id(f"{name}\0000") for name in "abc")
    assert table(some) == {
        "input_ids": [[2, 100, 101, 102, 103, 3, 2, 300, 3], [2, 200, 201, 3, 0, 0, 0, 0, 0]],
        "word_ids": [[-1, 0, 1, 1, 2, -1, -1, 3, -1], [-1, 0, 0, -1, -1, -1, -1, -1, -1]],
        "attention_mask": [[1] * 9, [1] * 4 + [0] * 5],
        "example_id": [[-1, a, a, a, a, -1, -1, c, -1], [-1, b, b, *[-1] * 6]],
    }
    assert len(some) == 2 and some.tokens == 13


def test_document_rows_in_full() -> None:
    some = Rows.of(cut([document("a", 2, 2, 2, 1), document("b", 1)], length=7), "document")
    assert table(some) == {
        "input_ids": [
            [2, 100, 101, 102, 103, 3, 0],  # the third word would not fit whole
            [2, 104, 105, 106, 3, 0, 0],
            [2, 100, 3, 0, 0, 0, 0],
        ],
        "word_ids": [
            [-1, 0, 0, 1, 1, -1, -1],
            [-1, 0, 0, 1, -1, -1, -1],
            [-1, 0, -1, -1, -1, -1, -1],
        ],
        "attention_mask": [[1] * 6 + [0], [1] * 5 + [0] * 2, [1] * 3 + [0] * 4],
        "example_id": [text_id("a\0000"), text_id("a\0004"), text_id("b\0000")],
    }
    assert some.tokens == 14


def test_example_ids_never_change() -> None:
    assert cut([document("56564559", 1)]).example_ids.tolist() == [2896569359265565149]


def test_a_word_longer_than_a_row_is_not_eligible() -> None:
    some = cut([document("a", 1, 9, 1, 4)], length=7)
    assert table(Rows.of(some, "document"))["word_ids"] == [
        [-1, 0, -1, -1, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1, -1],
        [-1, 0, 1, 1, 1, 1, -1],
    ]
    assert some.counts["words longer than a row"] == 1
    assert some.columns["input_ids"].tolist() == list(range(100, 115))


@pytest.mark.parametrize(
    ("frames", "ids", "tokens"),
    [
        (Frames(cls=None, sep=None, eos=1), [100, 101, 1, 0], 3),
        (Frames(cls=None, sep=None, pad=None), [100, 101, 0, 0], 2),
    ],
)
def test_other_frames(frames: Any, ids: list[int], tokens: int) -> None:
    some = Rows.of(read_pieces([document("a", 1, 1)], tokenizer=frames, length=4))
    assert table(some)["input_ids"] == [ids] and some.tokens == tokens


def test_unknown_tokens_are_counted() -> None:
    known, unknown = document("a", 1, 1), document("b", 1, 1, first=1)  # ids 1 and 2; 1 is [UNK]
    counts = cut([known, unknown]).counts
    assert (counts["unknown tokens"], counts["tokens"]) == (1, 4)
    assert "unknown tokens" not in cut([known]).counts


def test_tokens_without_words(tmp_path: Path) -> None:
    """A slow tokenizer has no offsets: pieces are cut anywhere, and there is no layer of words."""
    slow = Tokens("a", np.arange(100, 107, dtype=np.int32), None)
    some = cut([slow], length=7, out=tmp_path / "pieces")
    assert table(Rows.of(some))["input_ids"] == [
        [2, 100, 101, 102, 103, 104, 3],
        [2, 105, 106, 3, 0, 0, 0],
    ]
    assert set(some.columns) == {"input_ids"}


words_of_documents = st.lists(
    st.lists(st.integers(-3, 9).filter(bool), max_size=12), min_size=1, max_size=12
).filter(any)


@settings(max_examples=150, deadline=None)
@given(words_of_documents, st.integers(4, 14), st.sampled_from(LAYOUTS))
def test_pieces_lose_nothing_and_are_cut_between_words(
    lengths: list[list[int]], length: int, layout: str
) -> None:
    documents = [document(str(n), *words, first=1000 * (n + 1)) for n, words in enumerate(lengths)]
    some = Rows.of(cut(documents, length=length), layout)
    word_of = {}
    for each in documents:
        for i, word in zip(each.input_ids.tolist(), each.word_ids.tolist()):
            word_of[i] = (each.document_id, word)
    size_of = Counter(word_of.values())
    columns = some.batch(range(len(some))).laid_out()
    for row in range(len(some)):
        ids, words = columns["input_ids"][row], columns["word_ids"][row]
        expected: list[int] = []
        for piece in some.order[some.first[row] : some.first[row + 1]].tolist():
            begin, end = some.pieces.offsets[piece : piece + 2]
            expected += [2] * (layout == "packed" or not expected)
            expected += [*some.pieces.columns["input_ids"][begin:end].tolist(), 3]
        size = len(expected)
        assert ids.tolist() == expected + [0] * (length - size)
        assert columns["attention_mask"][row].sum() == size
        assert (words[np.isin(ids, [0, 2, 3])] == -1).all()
        shown = words[words >= 0].tolist()
        assert shown == sorted(shown) and set(shown) == set(range(len(set(shown))))
        same = [word_of[i] for i in ids[words >= 0].tolist()]
        assert [a == b for a, b in pairwise(shown)] == [a == b for a, b in pairwise(same)]
    # every piece is in one row, and every token in one piece, in its place
    assert sorted(some.order.tolist()) == list(range(len(some.pieces)))
    restored = [ids for ids, _ in by_name(some.pieces).values()]
    assert [i for ids in restored for i in ids] == [*word_of]
    for before, after in pairwise(restored):
        last, following = word_of[before[-1]], word_of[after[0]]
        fits_in_a_row = size_of[last] <= length - 2
        assert last[1] < 0 or not fits_in_a_row or following != last
        # a piece ends only where the next word would not fit
        more = 1 if following[1] < 0 else size_of[following]
        assert following[0] != last[0] or len(before) + more > length - 2
    for _, words_of_piece in by_name(some.pieces).values():
        numbers = {word for word in words_of_piece if word >= 0}
        assert numbers == set(range(len(numbers)))


def test_layers_ride_along(tmp_path: Path) -> None:
    one = document("a", 2, 1)._replace(
        layers={"pos": np.array([5, 5, 7], np.int8), "score/a": np.array([0.5, 0, 1])}
    )
    two = document("b", 1)._replace(
        layers={"pos": np.array([9], np.int8), "score/a": np.array([0.25])}
    )
    some = cut([one, two], out=tmp_path / "pieces")
    assert some.columns["pos"].dtype == np.int8
    batch = Rows.of(some).tensors([0])
    assert batch["pos"].tolist() == [[-1, 5, 5, 7, -1, -1, 9, -1]]
    assert batch["score/a"].tolist() == [[0, 0.5, 0, 1, 0, 0, 0.25, 0]]


@pytest.mark.parametrize("window", [1, 1 << 20])
@pytest.mark.parametrize("filed", [False, True])
def test_documents_need_the_same_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, filed: bool
) -> None:
    monkeypatch.setattr(pieces, "WINDOW_TOKENS", window)
    one = document("a", 1)._replace(layers={"pos": np.array([5])})
    with pytest.raises(MaskwiseError, match="same layers") as raised:
        cut([one, document("c", 1)], out=tmp_path / "pieces" if filed else None)
    assert "in 'c'" in raised.value.got and "pos" in raised.value.allowed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [2, 40_000])
def test_lengths_without_room(length: int) -> None:
    with pytest.raises(MaskwiseError) as raised:
        cut([document("a", 1)], length=length)
    assert raised.value.got == length


@pytest.mark.parametrize("documents", [[], [document("a")]])
@pytest.mark.parametrize("filed", [False, True])
def test_no_tokens(documents: list[Tokens], filed: bool, tmp_path: Path) -> None:
    with pytest.raises(MaskwiseError, match="the corpus has no tokens"):
        cut(documents, out=tmp_path / "pieces" if filed else None)
    assert not list(tmp_path.iterdir())


# ---- files


def test_written_window_by_window_equals_held_in_memory(
    real, whole: Pieces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, tokenizer = real
    monkeypatch.setattr(pieces, "WINDOW_TOKENS", 5000)
    out = tmp_path / "new" / "pieces"
    filed = read_pieces(iter(tokens), tokenizer=tokenizer, length=64, out=out)
    assert [path.name for path in out.parent.iterdir()] == ["pieces"]
    for some in (filed, Pieces.load(out, tokenizer=tokenizer)):
        assert [*by_name(some).items()] == [*by_name(whole).items()] and len(some) > 10
        assert (some.frame, some.length, some.counts) == (whole.frame, 64, whole.counts)
        assert (some.documents == whole.documents).all() and some.sources is None
        for name, column in whole.columns.items():
            mapped = some.columns[name]
            assert mapped.dtype == column.dtype
            assert not mapped.flags.owndata and not mapped.flags.writeable


def test_memory_does_not_grow_with_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "WINDOW_TOKENS", 2_000)

    def peak(documents: int) -> int:
        ids = np.full(1_000, 7, dtype=np.int32)
        words = np.arange(1_000, dtype=np.int32)
        made = (Tokens(str(n), ids.copy(), words.copy()) for n in range(documents))
        tracemalloc.start()
        cut(made, length=1_000, out=tmp_path / f"{documents}")
        bytes_held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_held

    _, few, more = peak(2), peak(100), peak(1_100)  # the first one imports
    assert more - few < 1_000 * 1_000  # bytes, for a million tokens


def test_folders_without_pieces(tmp_path: Path) -> None:
    out = tmp_path / "pieces"
    cut([document("a", 1)], out=out)
    index = json.loads((out / "columns.json").read_text())

    def refused(what: str) -> None:
        with pytest.raises(MaskwiseError, match=what) as raised:
            Pieces.load(out)
        assert "\n" not in str(raised.value) and "prepare the corpus again" in raised.value.do

    (out / "0.bin").write_bytes(b"abc")
    refused("0.bin is damaged")
    (out / "0.bin").unlink()
    refused("0.bin is damaged")
    for content in (json.dumps({**index, "format": 2}), "no json"):
        (out / "columns.json").write_text(content)
        refused("pieces does not hold pieces of this version")


@pytest.mark.parametrize("place", range(6))
def test_a_column_that_was_cut_is_refused(tmp_path: Path, place: int) -> None:
    out = str(tmp_path / "pieces")
    whole = cut([document("a", 1, 3), document("b", 2, 2)], length=4, out=out)
    path = Path(out) / f"{place}.bin"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // len(whole.example_ids)])
    with pytest.raises(MaskwiseError, match="is damaged") as raised:
        Pieces.load(out)
    assert raised.value.got


@pytest.mark.parametrize("index", [{}, {"columns": 5}, {"columns": {"offsets": 5}}])
def test_an_index_without_columns_is_refused(tmp_path: Path, index: dict[str, Any]) -> None:
    out = tmp_path / "pieces"
    cut([document("a", 1)], out=out)
    (out / "columns.json").write_text(json.dumps({"format": FORMAT, **index}))
    with pytest.raises(MaskwiseError, match="is damaged"):
        Pieces.load(out)


def test_a_plan_that_was_cut_is_refused(tmp_path: Path) -> None:
    made = cut([document("a", 3, 3), document("b", 2, 2)], length=5)
    Rows.of(made).save(tmp_path / "rows")
    order = tmp_path / "rows" / "0.bin"
    order.write_bytes(order.read_bytes()[:8])
    with pytest.raises(MaskwiseError) as raised:
        Rows.load(tmp_path / "rows", made)
    assert (raised.value.got, raised.value.allowed) == (1, len(made))


def test_a_full_disk_leaves_the_old_folder(
    whole: Pieces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pieces"
    cut([document("a", 1)], out=out)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(MaskwiseError, match="No space left"):
        cut([document("b", 1)], out=tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["pieces"]
    assert len(Pieces.load(out)) == 1


# ---- rows


@pytest.mark.parametrize("length", [64, 256])
def test_real_text_is_packed_tightly(real, length: int) -> None:
    tokens, tokenizer = real
    some = Rows.of(read_pieces(tokens, tokenizer=tokenizer, length=length))
    assert len(some.pieces.columns["input_ids"]) == sum(len(one.input_ids) for one in tokens)
    assert some.tokens / (len(some) * length) > 0.97


def test_plans_are_made_in_windows(whole: Pieces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "WINDOW_TOKENS", 5000)
    some = Rows.of(whole)
    assert sorted(some.order.tolist()) == list(range(len(whole)))
    assert (np.diff(some.first) > 0).all() and some.tokens / (len(some) * 64) > 0.9
    # no piece is far from its neighbours in the corpus
    distances = [np.ptp(part) for part in np.split(some.order, some.first[1:-1])]
    assert max(distances) * 40 < 2 * 5000


def test_batches_are_independent_copies(whole: Pieces) -> None:
    some = Rows.of(whole)
    before = whole.columns["input_ids"].copy()
    batch = some.tensors(np.arange(5))
    for tensor in batch.values():
        tensor.zero_()
    assert (whole.columns["input_ids"] == before).all()
    assert set(batch) == {"input_ids", "attention_mask", "word_ids", "example_id"}
    for number in (len(some), -1):
        with pytest.raises(MaskwiseError, match="no such row") as raised:
            some.batch([0, number])
        assert raised.value.got == number


def test_unigram_counts(real, whole: Pieces, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, tokenizer = real
    monkeypatch.setattr(rows, "WINDOW_TOKENS", 5000)
    expected = np.bincount(
        np.concatenate([one.input_ids for one in tokens]), minlength=len(tokenizer)
    )
    assert Rows.of(whole).unigram_counts(len(tokenizer)).tolist() == expected.tolist()
    with pytest.raises(MaskwiseError, match="outside the vocabulary"):
        Rows.of(whole).unigram_counts(50)


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_split_is_by_document(real, whole: Pieces, layout: str) -> None:
    tokens, tokenizer = real
    training, held_out = split(whole, held_out=0.2, layout=layout)
    sides = [set(side.documents.tolist()) for side in (training, held_out)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(whole.documents.tolist())
    assert 0.1 < len(sides[1]) / len(tokens) < 0.3
    assert sorted([*training.order, *held_out.order]) == list(range(len(whole)))
    assert training.pieces is held_out.pieces is whole and training.layout == layout
    # a side does not depend on the other documents, and a larger share includes a smaller one
    _, half = split(read_pieces(tokens[::2], tokenizer=tokenizer, length=64), held_out=0.2)
    assert set(half.documents.tolist()) <= sides[1]
    assert sides[1] < set(split(whole, held_out=0.4)[1].documents.tolist())


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.0, "share of the documents"),
        (1.0, "share of the documents"),
        (1e-9, "leaves the held-out side empty"),
        (1 - 1e-9, "leaves the training side empty"),
    ],
)
def test_split_refuses(whole: Pieces, share: float, message: str) -> None:
    with pytest.raises(MaskwiseError, match=message):
        split(whole, held_out=share)


def test_another_layout_of_the_same_pieces(whole: Pieces) -> None:
    packed, _ = split(whole, held_out=0.2)
    alone = packed.laid("document")
    assert alone.layout == "document" and len(alone) == len(packed.order) > len(packed)
    assert alone.order.tolist() == sorted(packed.order.tolist()) and alone.pieces is packed.pieces
    assert packed.laid("packed") is packed
    names = packed.batch([3, 5]).example_ids
    found = alone.batch(alone.holding(names)).example_ids
    assert sorted(found.tolist()) == sorted(names.tolist())
    assert packed.holding(names).tolist() == [3, 5]
    with pytest.raises(MaskwiseError, match="did you mean 'packed'"):
        packed.laid("pakced")


# ---- prepared folders


def prepared(folder: Path, tokens: list[Tokens], tokenizer: Any) -> Prepared:
    return Prepared.make(folder, tokens, tokenizer, length=64, layout="packed", held_out=0.2)


def test_a_prepared_corpus_comes_back(real, whole: Pieces, tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", *real)
    names = ["held_out", "manifest.json", "pieces", "tokenizer", "training"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == names
    again = Prepared.open(tmp_path / "data")
    sides = zip((again.training, again.held_out), split(whole, held_out=0.2), strict=True)
    for side, expected in sides:
        assert table(side) == table(expected) and side.layout == "packed"
        assert not side.order.flags.owndata  # mapped
    assert len(data.training) == len(again.training) and len(again.tokenizer) == len(real[1])


@pytest.mark.parametrize("name", ["pieces/0.bin", "training/0.bin", "tokenizer/tokenizer.json"])
def test_one_flipped_bit_is_noticed(real, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    prepared(folder, real[0][:40], real[1])
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    (folder / "manifest.json").touch()  # another process opens it
    with pytest.raises(MaskwiseError, match="data is damaged") as raised:
        Prepared.open(folder)
    assert raised.value.got == f"{name} is damaged" and "\n" not in str(raised.value)
    if name.startswith("tokenizer"):  # which stages also read by itself
        with pytest.raises(MaskwiseError, match="has changed since it was written"):
            load_tokenizer(str(folder / "tokenizer"))


def test_what_is_no_prepared_corpus(tmp_path: Path) -> None:
    with pytest.raises(MaskwiseError, match="is damaged; got no readable manifest"):
        Prepared.open(tmp_path / "nothing")
