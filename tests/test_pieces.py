"""Pieces and rows: how documents are cut, stored and packed, and prepared folders."""

from __future__ import annotations

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
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from masking_tools import masker
from maskwise.base.errors import MaskwiseError
from maskwise.masking.segments import Array
from maskwise.text import (
    Document,
    Pieces,
    Prepared,
    Rows,
    Tokens,
    load_tokenizer,
    read_documents,
    read_pieces,
    rows,
    split,
    tokenise,
    train_tokenizer,
)
from maskwise.text.words import piece_id, text_id
from tiny import flip

LAYOUTS = ["packed", "joined", "document"]


@pytest.fixture(scope="module")
def real() -> tuple[list[Tokens], PreTrainedTokenizerFast]:
    """Real documents and their tokenizer."""
    documents = list(read_documents("bundled:wikipedia", limit=150))
    tokenizer = train_tokenizer((document.text for document in documents), vocab_size=600)
    return list(tokenise(documents, tokenizer, batch_size=9)), tokenizer


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
        self.bos_token_id = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        assert not text
        return {"input_ids": []}


def document(name: str, *word_lengths: int, first: int = 100, **layers: Array) -> Tokens:
    """A document of words of these lengths (negative: tokens of no word), with distinct ids."""
    words: list[int] = []
    number = 0
    for length in word_lengths:
        words += [number if length > 0 else -1] * abs(length)
        number += length > 0
    ids = np.arange(first, first + len(words), dtype=np.int32)
    columns = {"input_ids": ids, "word_ids": np.array(words, dtype=np.int32), **layers}
    return Tokens([Document(name, name)], np.array([len(words)]), columns)


def cut(documents: list[Tokens], *, length: int = 8, **more: Any) -> Pieces:
    return read_pieces(documents, tokenizer=Frames(), length=length, **more)


def table(some: Rows) -> dict[str, list]:
    """All rows as lists."""
    columns = some.line(range(len(some))).columns()
    return {name: column.tolist() for name, column in columns.items()}


def by_name(some: Pieces) -> dict[int, tuple[list[int], list[int]]]:
    """Example id → ids and words of the piece, in order."""
    found = {}
    for name, begin, end in zip(some.example_ids.tolist(), some.offsets, some.offsets[1:]):
        ids, words = (some.columns[column][begin:end] for column in ("input_ids", "word_ids"))
        found[name] = (ids.tolist(), words.tolist())
    return found


# ---- pieces


def test_joined_rows_in_full() -> None:
    documents = [
        document("a", 1, 2, 1),
        document("b", 3, 3, first=200),
        document("c", 1, first=300),
        document("d"),
    ]
    some = Rows.of(cut(documents), "joined")
    a, c, b = map(text_id, "acb")
    assert table(some) == {
        "input_ids": [[2, 100, 101, 102, 103, 3, 300, 3], [2, 200, 201, 202, 203, 204, 205, 3]],
        "word_ids": [[-1, 0, 1, 1, 2, -1, 3, -1], [-1, 0, 0, 0, 1, 1, 1, -1]],
        "attention_mask": [[1] * 8] * 2,
        "example_id": [[*[a] * 6, c, c], [b] * 8],
    }
    assert len(some) == 2 and some.length == 8 and some.tokens == 16
    assert some.lengths.tolist() == [5, 6]
    counts = {"documents": 4, "pieces": 3, "tokens": 11, "documents without tokens": 1}
    assert some.pieces.counts == counts
    line = some.line(torch.tensor([1, 0]))
    ids = [2, *range(200, 206), 3, 2, 100, 101, 102, 103, 3, 300, 3]
    assert line.input_ids.tolist() == ids and line.attention_mask is None
    words = [-1, 0, 0, 0, 1, 1, 1, -1, -1, 0, 1, 1, 2, -1, 0, -1]
    assert line.layers["word_ids"].tolist() == words
    assert line.content.tolist() == line.eligible.tolist() == [word >= 0 for word in words]
    assert line.begin.tolist() == [0, 8, 14] and line.example_id.tolist() == [b, a, c]
    assert line.row.tolist() == [0, 1, 1] and line.shape == (2, 8) and not line.apart
    assert some.tensors([1])["example_id"].tolist() == [b]
    assert all(tensor.dtype == torch.int64 for tensor in some.tensors([0, 1]).values())


def test_packed_rows_in_full(tmp_path: Path) -> None:
    """Each piece is a text of its own, with both of its special tokens; other layers are kept."""
    pos, score = np.array([5, 5, 7, 7], np.int8), np.array([0.5, 0, 1, 1])
    documents = [
        document("a", 1, 2, 1, **{"pos": pos, "score/a": score}),
        document("b", 2, first=200, **{"pos": pos[:2], "score/a": score[:2]}),
        document("c", 1, first=300, **{"pos": pos[:1], "score/a": score[:1]}),
    ]
    some = Rows.of(cut(documents, length=9, out=tmp_path / "pieces"))
    a, b, c = map(text_id, "abc")
    assert table(some) == {
        "input_ids": [[2, 100, 101, 102, 103, 3, 2, 300, 3], [2, 200, 201, 3, 0, 0, 0, 0, 0]],
        "word_ids": [[-1, 0, 1, 1, 2, -1, -1, 3, -1], [-1, 0, 0, -1, -1, -1, -1, -1, -1]],
        "attention_mask": [[1] * 9, [1] * 4 + [0] * 5],
        "example_id": [[*[a] * 6, *[c] * 3], [*[b] * 4, *[-1] * 5]],
        "pos": [[-1, 5, 5, 7, 7, -1, -1, 5, -1], [-1, 5, 5, *[-1] * 6]],
        "score/a": [[0, 0.5, 0, 1, 1, 0, 0, 0.5, 0], [0, 0.5, *[0] * 7]],
    }
    assert len(some) == 2 and some.tokens == 13 and some.pieces.columns["pos"].dtype == np.int8


CORRUPTIONS = [
    "bert",
    "mask-only",
    "replace(target='full')",
    "replace(target='detect')",
    "infill",
    "infill(target='spans')",
    "t5",
    "t5(target='full')",
    "delete",
    "delete(target='detect')",
    "insert",
    "insert(target='detect')",
]


@pytest.mark.parametrize("layout", ["packed", "joined"])
@pytest.mark.parametrize("policy", ["token", "whole-word", "span"])
def test_rows_as_tensors_are_masked_as_pieces_are(layout: str, policy: str) -> None:
    """Each special token stays with its own piece, also when tokens are inserted or deleted."""
    sizes = np.random.default_rng(0).integers(1, 4, (40, 9))
    documents = [document(str(n), *sizes[n, : 1 + n % 9], first=5 + n) for n in range(40)]
    some = Rows.of(cut(documents, length=32), layout)
    for corruption in CORRUPTIONS:
        made = masker(policy, corruption, ratio=0.3, min_targets=0, budget="bernoulli")
        pieces = made(some.line(range(len(some))), epoch=0)
        tensors = made(some.tensors(range(len(some))), epoch=0)
        assert pieces.targets > 9, corruption
        assert torch.equal(pieces.segment_ids, tensors.segment_ids), corruption
        assert torch.equal(pieces.input_ids, tensors.input_ids), corruption
        assert torch.equal(pieces.labels, tensors.labels), corruption


def test_document_rows_in_full() -> None:
    """The third word of "a" does not fit whole; that of "c" is longer than a row: not eligible."""
    documents = [document("a", 2, 2, 2, 1), document("b", 1), document("c", 1, 9, 1, 4)]
    some = Rows.of(cut(documents, length=7), "document")
    names = [piece_id(text_id(name), begin) for name, begin in zip("aabccc", [0, 4, 0, 0, 5, 10])]
    assert table(some) == {
        "input_ids": [
            [2, 100, 101, 102, 103, 3, 0],
            [2, 104, 105, 106, 3, 0, 0],
            [2, 100, 3, 0, 0, 0, 0],
            [2, 100, 101, 102, 103, 104, 3],
            [2, 105, 106, 107, 108, 109, 3],
            [2, 110, 111, 112, 113, 114, 3],
        ],
        "word_ids": [
            [-1, 0, 0, 1, 1, -1, -1],
            [-1, 0, 0, 1, -1, -1, -1],
            [-1, 0, -1, -1, -1, -1, -1],
            [-1, 0, -1, -1, -1, -1, -1],
            [-1] * 7,
            [-1, 0, 1, 1, 1, 1, -1],
        ],
        "attention_mask": [[1] * 6 + [0], [1] * 5 + [0] * 2, [1] * 3 + [0] * 4, *[[1] * 7] * 3],
        "example_id": names,
    }
    assert some.tokens == 35 and some.pieces.counts["words longer than a row"] == 1


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


@pytest.mark.parametrize(
    ("template", "special", "frame"),
    [
        ("<bos> $A <eos>", {"bos_token": "<bos>", "eos_token": "<eos>"}, (1, 2, 0)),
        ("<bos> $A", {"bos_token": "<bos>"}, (1, -1, 0)),
        ("$A <eos>", {"eos_token": "<eos>"}, (-1, 2, 0)),
        ("$A", {"bos_token": "<eos>", "eos_token": "<eos>"}, (-1, 2, 0)),
    ],
)
def test_a_text_begins_with_the_token_that_the_tokenizer_writes(
    template: str, special: dict[str, str], frame: tuple[int, int, int]
) -> None:
    """The templates are those of Gemma, Llama, T5 and GPT-2."""
    names = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "the": 4, "cat": 5}
    backend = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    written = [(name, names[name]) for name in ("<bos>", "<eos>")]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=written)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", **special)
    tokens = tokenise([Document("a", "the cat")], tokenizer)
    pieces = read_pieces(tokens, tokenizer=tokenizer, length=6)
    assert pieces.frame == frame
    if template != "$A":
        [ids] = Rows.of(pieces).tensors([0])["input_ids"].tolist()
        assert [i for i in ids if i] == tokenizer("the cat")["input_ids"]


def test_ids_never_change_and_unknown_tokens_are_counted() -> None:
    known, unknown = document("The cat sat.", 1), document("b", 1, 1, first=1)  # 1 is [UNK]
    assert cut([known]).example_ids.tolist() == [2701552697791839326]
    assert cut([known, unknown]).counts["unknown tokens"] == 1
    assert "unknown tokens" not in cut([known]).counts


def test_tokens_without_words(tmp_path: Path) -> None:
    """A slow tokenizer has no offsets: pieces are cut anywhere, and there is no layer of words."""
    slow = document("a", 7)
    del slow.columns["word_ids"]
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
    for [made], _, columns in documents:
        for i, word in zip(columns["input_ids"].tolist(), columns["word_ids"].tolist()):
            word_of[i] = (made.name, word)
    size_of = Counter(word_of.values())
    columns = some.line(range(len(some))).columns()
    for ids, words in zip(columns["input_ids"], columns["word_ids"]):
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


@pytest.mark.parametrize(
    ("documents", "length", "message"),
    [
        ([document("a", 1)], 2, "length leaves no room .* got 2;"),
        ([document("a", 1)], 40_000, "length leaves no room .* got 40000;"),
        ([], 8, "the corpus has no tokens"),
        ([document("a")], 8, "the corpus has no tokens"),
    ],
)
def test_what_makes_no_pieces(
    documents: list[Tokens], length: int, message: str, tmp_path: Path
) -> None:
    for out in (None, tmp_path / "pieces"):
        with pytest.raises(MaskwiseError, match=message):
            cut(documents, length=length, out=out)
    assert not list(tmp_path.iterdir())


# ---- files


def test_written_batch_by_batch_equals_held_in_memory(real, whole: Pieces, tmp_path: Path) -> None:
    tokens, tokenizer = real
    assert len(tokens) > 10
    out = tmp_path / "new" / "pieces"
    filed = read_pieces(iter(tokens), tokenizer=tokenizer, length=64, out=out)
    assert [path.name for path in out.parent.iterdir()] == ["pieces"]
    for some in (filed, Pieces.load(out, tokenizer=tokenizer)):
        assert [*by_name(some).items()] == [*by_name(whole).items()]
        assert (some.frame, some.length, some.counts) == (whole.frame, 64, whole.counts)
        assert (some.documents == whole.documents).all() and some.sources is None
        for name, column in whole.columns.items():
            mapped = some.columns[name]
            assert mapped.dtype == column.dtype
            assert not mapped.flags.owndata and not mapped.flags.writeable


@pytest.mark.slow
def test_memory_does_not_grow_with_what_is_written(tmp_path: Path) -> None:
    def peak(documents: int) -> int:
        made = (document(str(n), *[1] * 1_000) for n in range(documents))
        tracemalloc.start()
        cut(made, length=1_000, out=tmp_path / f"{documents}")
        bytes_held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_held

    _, few, more = peak(2), peak(100), peak(1_100)  # the first one imports
    assert more - few < 1_000 * 1_000  # bytes, for a million tokens


def test_pieces_without_their_index_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "pieces"
    cut([document("a", 1)], out=out)
    (out / "columns.json").write_text("no json")
    with pytest.raises(MaskwiseError, match="is not a folder of prepared text") as raised:
        Pieces.load(out)
    assert "\n" not in str(raised.value) and "prepare the corpus again" in raised.value.do


@pytest.mark.parametrize("damage", ["missing", "cut", "of a plan"])
def test_damaged_pieces_are_refused_by_name(damage: str, tmp_path: Path) -> None:
    out = tmp_path / "pieces"
    some = cut([document("a", 1)], out=out)
    if damage == "missing":
        (out / "0.bin").unlink()
    elif damage == "cut":
        (out / "0.bin").write_bytes(b"abc")
    else:
        out = tmp_path / "plan"
        Rows.of(some).save(out)
    for folder in (out, tmp_path / "nowhere"):
        with pytest.raises(MaskwiseError) as raised:
            Pieces.load(folder)
        assert str(folder) in raised.value.what and "prepare the corpus again" in raised.value.do


# ---- rows


@pytest.mark.parametrize("numbers", [[5], [-1], [0.5], [True], "a", [[0, 9]], torch.tensor([7])])
def test_rows_and_pieces_of_other_numbers_are_refused(numbers: Any) -> None:
    some = cut([document("a", 1), document("b", 2)])
    for use in (Rows.of(some).line, lambda chosen: Rows.of(some, chosen=chosen)):
        with pytest.raises(MaskwiseError) as raised:
            use(numbers)
        assert raised.value.allowed.startswith("0 to ")


def test_no_rows_and_lists_of_rows() -> None:
    some = cut([document("a", 1), document("b", 2)])
    assert Rows.of(some).line([]).shape == (0, 8)
    for layout in LAYOUTS:
        assert Rows.of(some, layout, chosen=[1]).line([0]).content.sum() == 2


@pytest.mark.parametrize("length", [64, 256])
def test_real_text_is_packed_tightly(real, length: int) -> None:
    tokens, tokenizer = real
    some = Rows.of(read_pieces(tokens, tokenizer=tokenizer, length=length))
    assert len(some.pieces.columns["input_ids"]) == sum(one.lengths.sum() for one in tokens)
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
    before = whole.columns["input_ids"].copy()
    batch = Rows.of(whole).tensors(np.arange(5))
    for tensor in batch.values():
        tensor.zero_()
    assert (whole.columns["input_ids"] == before).all()
    assert set(batch) == {"input_ids", "attention_mask", "word_ids", "example_id"}


def test_unigram_counts(real, whole: Pieces, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, tokenizer = real
    monkeypatch.setattr(rows, "WINDOW_TOKENS", 5000)
    ids = np.concatenate([one.columns["input_ids"] for one in tokens])
    expected = np.bincount(ids, minlength=len(tokenizer))
    assert Rows.of(whole).unigram_counts(len(tokenizer)).tolist() == expected.tolist()
    with pytest.raises(MaskwiseError, match="outside the vocabulary"):
        Rows.of(whole).unigram_counts(50)


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_split_is_by_document(real, whole: Pieces, layout: str) -> None:
    tokens, tokenizer = real
    training, held_out = split(whole, held_out=0.2, layout=layout)
    sides = [set(side.documents.tolist()) for side in (training, held_out)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(whole.documents.tolist())
    assert 0.1 < len(sides[1]) / 150 < 0.3
    assert sorted([*training.order, *held_out.order]) == list(range(len(whole)))
    assert training.pieces is held_out.pieces is whole and training.layout == layout
    # a side does not depend on the other documents, and a larger share includes a smaller one
    _, half = split(read_pieces(tokens[::2], tokenizer=tokenizer, length=64), held_out=0.2)
    assert set(half.documents.tolist()) <= sides[1]
    assert sides[1] < set(split(whole, held_out=0.4)[1].documents.tolist())


@pytest.mark.parametrize(("share", "side"), [(1e-9, "held-out"), (1 - 1e-9, "training")])
def test_split_refuses(whole: Pieces, share: float, side: str) -> None:
    with pytest.raises(MaskwiseError, match=f"leaves no {side} documents"):
        split(whole, held_out=share)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "0.1"])
def test_a_share_is_from_0_to_1(whole: Pieces, share: Any) -> None:
    with pytest.raises(MaskwiseError) as raised:
        split(whole, held_out=share)
    assert raised.value.allowed == "a number from 0 to 1"


def test_another_layout_of_the_same_pieces(whole: Pieces) -> None:
    packed, _ = split(whole, held_out=0.2)
    alone = packed.laid("document")
    assert alone.layout == "document" and len(alone) == len(packed.order) > len(packed)
    assert alone.order.tolist() == sorted(packed.order.tolist()) and alone.pieces is packed.pieces
    assert packed.laid("packed") is packed
    names = packed.line([3, 5]).example_id
    found = alone.line(alone.holding(names)).example_id
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
    for side, expected in zip((again.training, again.held_out), split(whole, held_out=0.2)):
        assert table(side) == table(expected) and side.layout == "packed"
        assert not side.order.flags.owndata  # mapped
    assert len(data.training) == len(again.training) and len(again.tokenizer) == len(real[1])


@pytest.mark.parametrize("name", ["pieces/0.bin", "training/0.bin", "tokenizer/tokenizer.json"])
def test_one_flipped_bit_is_noticed(real, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    prepared(folder, real[0][:4], real[1])
    flip(folder / name, at=0.5)
    (folder / "manifest.json").touch()  # another process opens it
    with pytest.raises(MaskwiseError, match="data is damaged") as raised:
        Prepared.open(folder)
    assert raised.value.got == f"{name} is damaged" and "\n" not in str(raised.value)
    if name.startswith("tokenizer"):  # which stages also read by itself
        with pytest.raises(MaskwiseError, match="has changed since it was written"):
            load_tokenizer(str(folder / "tokenizer"))
    with pytest.raises(MaskwiseError, match="is damaged; got no readable manifest"):
        Prepared.open(tmp_path / "nothing")


def test_files_of_others_are_not_replaced_by_pieces(tmp_path):
    (tmp_path / "to.txt").write_text("mine")
    with pytest.raises(MaskwiseError, match="contains something else"):
        cut([document("a", 1)], out=tmp_path)
    assert (tmp_path / "to.txt").read_text() == "mine"


def test_a_length_from_numpy_can_be_saved(tmp_path):
    some = cut([document("a", 1)], length=np.int64(9), out=tmp_path / "pieces")
    assert some.length == 9 and len(Pieces.load(tmp_path / "pieces")) == len(some)
