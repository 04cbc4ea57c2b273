"""Documents in, rows out: sources and their faults, tokenizers, packing, files."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from itertools import pairwise

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from maskwise.errors import MaskwiseError
from maskwise.text import (
    Blocks,
    Document,
    Tokens,
    bundled_path,
    encode,
    load_tokenizer,
    pack,
    read_documents,
    require_documents,
    tokenise,
    train_tokenizer,
    unigram_counts,
)
from maskwise.text.words import text_id

TEXTS = ["The cat sat.", "A dog ran to the mat and sat on it.", "Birds sing!"]


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    return list(read_documents("bundled:wikipedia", limit=150))


@pytest.fixture(scope="module")
def tokenizer(sample) -> PreTrainedTokenizerFast:
    return train_tokenizer((document.text for document in sample), vocab_size=600)


@pytest.fixture(scope="module")
def tokens(sample, tokenizer) -> list[Tokens]:
    return list(tokenise(sample, tokenizer))


def texts(documents) -> list[str]:
    return [document.text for document in documents]


# ---- sources


def test_json_lines_skip_and_count_bad_lines(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"id": 7, "text": "The cat sat."}',  # a byte-order mark
        b'{"id": "a", "text": "caf\xe9"}',
        b"{not json",
        b'{"title": "no text"}',
        b'{"text": null}',
        b'{"text": "  "}',
        b'{"text": "nul \\u0000 inside"}',
        b'{"text": "half a pair \\ud83d"}',
        b'["a list"]',
        b"",
        b'"a bare string"',
        b'{"text": "The cat sat."}',
        *(f'{{"text": "line {number}"}}'.encode() for number in range(10)),
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    documents = read_documents(tmp_path / "x.jsonl")
    for _ in range(2):  # again, and counted anew
        found = list(documents)
        assert found[:3] == [("7", "The cat sat."), ("x.jsonl#11", "a bare string"), ("x.jsonl#13", "line 0")]
        assert documents.read == len(found) == 12
        assert documents.skipped == {
            "not valid UTF-8": 2, "not JSON": 1, "no text field": 3, "empty": 1,
            "binary (NUL characters)": 1, "repeated text": 1,
        }  # fmt: skip
    assert len(list(read_documents(tmp_path / "x.jsonl", keep_repeated=True))) == 13


def test_text_files_are_blocks(tmp_path):
    (tmp_path / "x.txt").write_bytes(
        b"\xef\xbb\xbfone\r\nstill one\r\n\r\n \r\ntwo\r\nbad \xff line\r\nstill two"
    )
    documents = read_documents(tmp_path / "x.txt")
    assert list(documents) == [("x.txt#1", "one\nstill one"), ("x.txt#2", "two\nstill two")]
    assert documents.skipped == {"not valid UTF-8": 1}


def test_folders_are_read_in_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("third")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'{"text": "first"}\n{"text": "second", "id": "2"}'))
    pq.write_table(pa.table({"text": ["fourth", None], "other": [1, 2]}), tmp_path / "c.parquet")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "README.md").write_text("not a corpus file")
    documents = read_documents(str(tmp_path))
    assert texts(documents) == ["first", "second", "third", "fourth"]
    assert [document.id for document in documents] == ["a.json.gz#1", "2", "b/x.txt#1", "c.parquet#1"]
    assert documents.skipped == {"no text field": 1}


def test_lists_limits_and_fields():
    assert list(read_documents(TEXTS)) == [("0", TEXTS[0]), ("1", TEXTS[1]), ("2", TEXTS[2])]
    rows = [{"body": "x", "url": "u/1"}, {"body": "y", "url": 2}]
    documents = read_documents(rows, text_field="body", id_field="url", limit=1)
    assert list(documents) == list(documents) == [("u/1", "x")]


def test_datasets(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "label": [0, 1]})
    rows.save_to_disk(tmp_path / "saved")
    assert texts(read_documents(tmp_path / "saved")) == ["one", "two"]
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "splits")
    assert texts(read_documents(tmp_path / "splits")) == ["one", "two"]
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "train.jsonl").write_text('{"text": "three"}\n')
    documents = read_documents(f"hf:{tmp_path}/local::train")
    assert texts(documents) == texts(documents) == ["three"]


def faulty(folder):
    """Sources that are refused, by what the message must say."""
    (folder / "utf16.txt").write_bytes("Straße und mehr".encode("utf-16"))
    (folder / "binary.jsonl").write_bytes(bytes(range(256)))
    (folder / "latin1.txt").write_bytes("Straße\nMöwe\nplain\nGrüße".encode("latin-1"))
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-20])
    (folder / "no.jsonl.gz").write_bytes(b"this is no gzip file")
    (folder / "no.parquet").write_bytes(b"this is no parquet file")
    pq.write_table(pa.table({"body": ["x"]}), folder / "column.parquet")
    (folder / "x.docx").write_bytes(b"x")
    (folder / "empty").mkdir()
    (folder / "saved").mkdir()
    (folder / "saved" / "dataset_info.json").write_text("{}")
    (folder / "nothing.txt").write_text("\n \n")
    (folder / "fields.jsonl").write_text('{"body": "x"}\n{"body": "y"}\n')
    return {
        "utf16.txt": "binary file, or UTF-16",
        "binary.jsonl": "NUL bytes",
        "latin1.txt": "not UTF-8 text; got 3 bad of its first 4 lines; convert it",
        "cut.jsonl.gz": "cannot read",
        "no.jsonl.gz": "cannot read",
        "no.parquet": "not a Parquet file",
        "column.parquet": "unknown text field .* 'text'; allowed: body",
        "x.docx": r"unknown ending .* allowed: \.txt",
        "empty": "no corpus file in folder",
        "saved": "cannot load the data set",
        "nothing.txt": "no document in .* got nothing at all",
        "fields.jsonl": "got 2 × no text field; the text field is 'text'",
        "missing.jsonl": "does not exist",
    }


def test_faulty_sources_are_refused_in_one_line(tmp_path, monkeypatch):
    for name, message in faulty(tmp_path).items():
        with pytest.raises(MaskwiseError, match=message) as error:
            require_documents(read_documents(tmp_path / name))
        assert "\n" not in str(error.value) and name in str(error.value), name


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("bundled:wikipedai", "unknown bundled data .* did you mean 'wikipedia'"),
        ("hf:", "malformed data set name"),
        ("hf:a:b:c:d", "malformed data set name"),
        ("hf:/nowhere/at-all", "cannot load data set"),
        (7, "cannot be read from this; got int"),
        ({"text": "x"}, "cannot be read from this; got dict"),
        ([], "no document in the list of documents"),
    ],
)
def test_faulty_names_are_refused_in_one_line(source, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MaskwiseError, match=message) as error:
        require_documents(read_documents(source))
    assert "\n" not in str(error.value)


def test_limit_must_be_positive():
    with pytest.raises(MaskwiseError, match="positive"):
        read_documents(TEXTS, limit=0)


def test_require_documents_gives_the_documents_back():
    documents = read_documents(TEXTS)
    assert texts(require_documents(documents)) == TEXTS


def test_bundled_data():
    with gzip.open(bundled_path("wikipedia"), "rt", encoding="utf-8") as file:
        articles = [json.loads(line) for line in file]
    assert len(articles) == 3426 and all(article["id"] and article["text"] for article in articles)
    for name, sizes in {"banking77": (1200, 300, 800), "clinc150": (1200, 300, 600)}.items():
        with gzip.open(bundled_path(name), "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        assert Counter(row["split"] for row in rows) == dict(zip(("train", "dev", "test"), sizes))
        assert len({row["label"] for row in rows}) == 20
        assert (
            len(
                set(Counter((row["split"], row["label"]) for row in rows if row["split"] == "train").values())
            )
            == 1
        )
        assert len({row["text"].casefold() for row in rows}) == len(rows), "a text in two splits"
    with gzip.open(bundled_path("ud_ewt_pos"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert Counter(row["split"] for row in rows) == {"train": 1500, "dev": 300, "test": 600}
    assert all(4 <= len(row["tokens"]) == len(row["tags"]) <= 40 for row in rows)
    assert len({tag for row in rows for tag in row["tags"]}) == 17


# ---- tokenizers and tokens


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_is_deterministic(sample, kind):
    made = [train_tokenizer(texts(sample[:60]), kind=kind, vocab_size=500) for _ in range(3)]
    assert len({one.backend_tokenizer.to_str() for one in made}) == 1
    assert len(made[0]) == 500


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_trained_tokenizer_is_complete(sample, kind, tmp_path):
    made = train_tokenizer(texts(sample), kind=kind, vocab_size=600)
    assert made.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = made("The national team, in 1990.")["input_ids"]
    assert ids[0] == made.cls_token_id and ids[-1] == made.sep_token_id and made.unk_token_id not in ids
    assert made.decode(ids, skip_special_tokens=True).replace(" ", "") == "thenationalteam,in1990."
    made.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("The cat, in 1990!") == made("The cat, in 1990!")


def test_wordpiece_keeps_words_and_common_characters(tokenizer, sample):
    vocabulary = tokenizer.get_vocab()
    assert {"the", "of", "and", "##ing", "##e", "e"} <= set(vocabulary)
    assert "##." not in vocabulary  # punctuation is never inside a word
    ids = np.concatenate([tokens.input_ids for tokens in tokenise(sample, tokenizer)])
    assert (ids == tokenizer.unk_token_id).mean() < 0.01


def test_tokenise(sample, tokenizer):
    found = list(tokenise(sample, tokenizer, batch_size=7))
    assert [one.document_id for one in found] == [document.id for document in sample]
    for one, document in zip(found, sample):
        assert one.input_ids.dtype == one.word_ids.dtype == np.int32
        assert one.input_ids.tolist() == tokenizer(document.text, add_special_tokens=False)["input_ids"]
        # With BERT's pre-tokenizer our words are its own; only at symbols such as "£" they are finer.
        encoding = tokenizer(document.text, add_special_tokens=False).encodings[0]
        ours, theirs = np.diff(one.word_ids) != 0, np.diff(encoding.word_ids) != 0
        for place in np.flatnonzero(ours != theirs):
            (start, _), (_, end) = encoding.offsets[place : place + 2]
            assert ours[place] and not document.text[start:end].isascii(), document.text[start:end]


def test_text_never_becomes_a_control_token(tokenizer):
    one = next(tokenise([Document("x", "a [MASK] and a [SEP]")], tokenizer))
    assert not set(one.input_ids.tolist()) & {tokenizer.mask_token_id, tokenizer.sep_token_id}
    assert next(tokenise([Document("x", "\u200b")], tokenizer)).input_ids.shape == (0,)


def test_truncation_and_padding_of_a_tokenizer_file_are_left_out(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(8)
    backend.enable_padding(length=16)
    old = PreTrainedTokenizerFast(
        tokenizer_object=backend, mask_token="[MASK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    documents = [Document("x", " ".join(["the cat sat"] * 20)), Document("y", "the cat")]
    for one, two in zip(tokenise(documents, old), tokenise(documents, tokenizer)):
        assert one.input_ids.tolist() == two.input_ids.tolist()
    assert encode(old, ["the cat"])[0]["input_ids"] == tokenizer("the cat")["input_ids"]
    assert backend.truncation is not None  # ours was a copy


def test_tokenizer_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    )
    bare.save_pretrained(tmp_path / "bare")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    calls = {
        "no model or tokenizer in .*nope.* save_pretrained": lambda: load_tokenizer(str(tmp_path / "nope")),
        "cannot load tokenizer .*broken": lambda: load_tokenizer(str(tmp_path / "broken")),
        "has no mask token; add one": lambda: load_tokenizer(str(tmp_path / "bare")),
        "did you mean 'wordpiece'": lambda: train_tokenizer(TEXTS, kind="wordpeice"),
        "vocab_size is too small for bpe; got 100; allowed: ≥ 261": lambda: train_tokenizer(
            TEXTS, kind="bpe", vocab_size=100
        ),
        "no text to train": lambda: train_tokenizer([" "]),
        "fast tokenizer": lambda: next(tokenise([Document("x", "y")], object())),
    }
    for message, call in calls.items():
        with pytest.raises(MaskwiseError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert load_tokenizer(str(tmp_path / "bare"), needs_mask=False).mask_token is None


# ---- packing


class Frames:
    """As much of a tokenizer as `pack` looks at."""

    def __init__(self, cls=2, sep=3, pad=0, eos=None):
        self.cls_token_id, self.sep_token_id, self.pad_token_id, self.eos_token_id = cls, sep, pad, eos


def document(name: str, *word_lengths: int, first: int = 100) -> Tokens:
    """A document of words of so many tokens (negative: tokens that belong to no word), all ids different."""
    words, number = [], 0
    for length in word_lengths:
        words += [number if length > 0 else -1] * abs(length)
        number += length > 0
    return Tokens(name, np.arange(first, first + len(words), dtype=np.int32), np.array(words, dtype=np.int32))


def test_packed_rows_in_full():
    made = [
        document("a", 1, 2, 1),
        document("b", 3, 3, first=200),
        document("c", 1, first=300),
        document("d"),
    ]
    blocks = pack(made, tokenizer=Frames(), length=8)
    assert blocks.input_ids.tolist() == [
        [2, 100, 101, 102, 103, 3, 300, 3],
        [2, 200, 201, 202, 203, 204, 205, 3],
    ]
    assert blocks.word_ids.tolist() == [[-1, 0, 1, 1, 2, -1, 3, -1], [-1, 0, 0, 0, 1, 1, 1, -1]]
    assert blocks.segment.tolist() == [[-1, 0, 0, 0, 0, -1, 1, -1], [-1, 0, 0, 0, 0, 0, 0, -1]]
    assert blocks.first_segment.tolist() == [0, 2] and len(blocks) == 2 and blocks.length == 8
    a, c, b = (text_id(f"{name}\0000") for name in "acb")
    assert blocks.segment_ids.tolist() == [a, c, b]
    assert blocks.counts == {"documents": 4, "pieces": 3, "documents without tokens": 1}
    batch = blocks.batch([0, 1])
    assert batch["example_id"].tolist() == [[-1, a, a, a, a, -1, c, -1], [-1, b, b, b, b, b, b, -1]]
    assert blocks.batch(torch.tensor([1]))["example_id"].tolist() == [b]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_document_rows_in_full():
    blocks = pack(
        [document("a", 2, 2, 2, 1), document("b", 1, first=200)],
        tokenizer=Frames(),
        length=7,
        layout="document",
    )
    assert blocks.input_ids.tolist() == [
        [2, 100, 101, 102, 103, 3, 0],  # the third word would not fit whole
        [2, 104, 105, 106, 3, 0, 0],
        [2, 200, 3, 0, 0, 0, 0],
    ]
    batch = blocks.batch([0, 1, 2])
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0], [1] * 5 + [0] * 2, [1] * 3 + [0] * 4]
    assert batch["example_id"].tolist() == [text_id("a\0000"), text_id("a\0004"), text_id("b\0000")]
    assert blocks.tokens == 14


def test_example_ids_never_change():
    blocks = pack([document("56564559", 1)], tokenizer=Frames(), length=8)
    assert blocks.segment_ids.tolist() == [2896569359265565149]


def test_a_word_longer_than_a_row_is_not_eligible():
    blocks = pack([document("a", 1, 9, 1, 4)], tokenizer=Frames(), length=7, layout="document")
    assert blocks.word_ids.tolist() == [
        [-1, 0, -1, -1, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1, -1],
        [-1, 0, 1, 1, 1, 1, -1],
    ]
    assert blocks.counts["words longer than a row"] == 1
    assert blocks.input_ids[blocks.segment >= 0].tolist() == list(range(100, 115))


def test_other_frames():
    without_cls = pack([document("a", 1, 1)], tokenizer=Frames(cls=None, sep=None, eos=1), length=4)
    assert without_cls.input_ids.tolist() == [[100, 101, 1, 0]]
    bare = pack([document("a", 1, 1)], tokenizer=Frames(cls=None, sep=None, pad=None), length=4)
    assert bare.input_ids.tolist() == [[100, 101, 0, 0]] and bare.tokens == 2


words_of_documents = st.lists(
    st.lists(st.integers(-3, 9).filter(bool), max_size=12), min_size=1, max_size=12
).filter(any)


@settings(max_examples=150, deadline=None)
@given(words_of_documents, st.integers(4, 14), st.sampled_from(["packed", "document"]))
def test_packing_loses_nothing_and_cuts_between_words(lengths, length, layout):
    made = [document(str(n), *words, first=1000 * (n + 1)) for n, words in enumerate(lengths)]
    blocks = pack(made, tokenizer=Frames(), length=length, layout=layout)
    word_of = {
        i: (one.document_id, w) for one in made for i, w in zip(one.input_ids.tolist(), one.word_ids.tolist())
    }
    pieces = {}
    for row in range(len(blocks)):
        ids, words, segment = blocks.input_ids[row], blocks.word_ids[row], blocks.segment[row]
        content, size = segment >= 0, int(blocks.columns["sizes"][row])
        assert ids[0] == 2 and ids[size - 1] == 3 and not content[size:].any() and (ids[size:] == 0).all()
        assert (ids[~content][1 : 1 + segment.max() + 1] == 3).all() and (words[~content] == -1).all()
        assert content.sum() + segment.max() + 2 == size
        shown = words[words >= 0]
        assert (np.diff(shown) >= 0).all() and set(shown.tolist()) == set(range(len(set(shown.tolist()))))
        same = [word_of[i] for i in ids[words >= 0].tolist()]
        assert [a == b for a, b in pairwise(shown.tolist())] == [a == b for a, b in pairwise(same)]
        for number in range(segment.max() + 1):
            name = int(blocks.segment_ids[blocks.first_segment[row] + number])
            assert name not in pieces
            pieces[name] = ids[segment == number].tolist()
    # Every token once, in its place; and the pieces do not depend on the layout.
    restored = sorted(pieces.values())
    assert [i for piece in restored for i in piece] == [i for one in made for i in one.input_ids.tolist()]
    for before, after in pairwise(restored):
        name, word = word_of[before[-1]]
        whole = sum(w == (name, word) for w in word_of.values()) <= length - 2
        assert word < 0 or not whole or word_of[after[0]] != (name, word)
        assert word_of[after[0]][0] != name or len(before) + 1 + _next_word(after, word_of) > length - 2
    other = pack(made, tokenizer=Frames(), length=length, layout="document")
    assert (
        dict(
            zip(
                other.segment_ids.tolist(),
                [row[s >= 0].tolist() for row, s in zip(other.input_ids, other.segment)],
            )
        )
        == pieces
    )


def _next_word(piece: list[int], word_of: dict) -> int:
    """How many more tokens the first word of a piece would have needed than one."""
    first = word_of[piece[0]]
    return 0 if first[1] < 0 else sum(word_of[i] == first for i in piece) - 1


def test_real_text_is_packed_tightly(tokens, tokenizer):
    total = sum(len(one.input_ids) for one in tokens)
    for length in (64, 256):
        blocks = pack(tokens, tokenizer=tokenizer, length=length)
        assert int((blocks.segment >= 0).sum()) == total
        assert blocks.tokens / blocks.input_ids.size > 0.97


def test_batches_are_independent_copies(tokens, tokenizer):
    blocks = pack(tokens, tokenizer=tokenizer, length=64)
    before = blocks.input_ids.copy()
    batch = blocks.batch(np.arange(5))
    for tensor in batch.values():
        tensor.zero_()
    assert (blocks.input_ids == before).all()
    assert set(batch) == {"input_ids", "attention_mask", "word_ids", "example_id"}
    with pytest.raises(MaskwiseError, match=f"no such row; got {len(blocks)}"):
        blocks.batch([0, len(blocks)])


def test_layers_ride_along(tmp_path):
    one = document("a", 2, 1)._replace(
        layers={"pos": np.array([5, 5, 7], np.int8), "score": np.array([0.5, 0, 1])}
    )
    two = document("b", 1)._replace(layers={"pos": np.array([9], np.int8), "score": np.array([0.25])})
    blocks = Blocks.load(pack([one, two], tokenizer=Frames(), length=8).save(tmp_path / "b.arrow"))
    batch = blocks.batch([0])
    assert batch["pos"].tolist() == [[-1, 5, 5, 7, -1, 9, -1, -1]]
    assert batch["score"].tolist() == [[0, 0.5, 0, 1, 0, 0.25, 0, 0]]
    with pytest.raises(MaskwiseError, match="same layers"):
        pack([one, document("c", 1)], tokenizer=Frames(), length=8)


def test_unigram_counts(tokens, tokenizer):
    blocks = pack(tokens, tokenizer=tokenizer, length=64)
    expected = Counter(i for one in tokens for i in one.input_ids.tolist())
    counts = unigram_counts(blocks, len(tokenizer))
    assert counts.dtype == np.int64 and {i: n for i, n in enumerate(counts.tolist()) if n} == expected
    with pytest.raises(MaskwiseError, match="outside the vocabulary"):
        unigram_counts(blocks, 50)


# ---- splits and files


def by_example(blocks: Blocks) -> dict[int, tuple]:
    """Example id → the piece's ids and whether each continues a word."""
    found = {}
    for row, segments in enumerate(blocks.columns["segments"]):
        for number in range(segments):
            inside = blocks.segment[row] == number
            words = blocks.word_ids[row][inside]
            relative = tuple(np.where(words >= 0, words - words[words >= 0].min(initial=0), -1).tolist())
            found[int(blocks.segment_ids[blocks.first_segment[row] + number])] = (
                tuple(blocks.input_ids[row][inside].tolist()), relative if number == 0 else len(relative),
            )  # fmt: skip
    return found


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_split_is_by_document(tokens, tokenizer, layout):
    blocks = pack(tokens, tokenizer=tokenizer, length=64, layout=layout)
    train, held_out = blocks.split(held_out=0.2)
    sides = [set(side.columns["documents"].tolist()) for side in (train, held_out)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(blocks.columns["documents"].tolist())
    assert 0.1 < len(sides[1]) / len(tokens) < 0.3
    pieces = {**by_example(train), **by_example(held_out)}
    assert {name: ids for name, (ids, _) in pieces.items()} == {
        name: ids for name, (ids, _) in by_example(blocks).items()
    }
    assert train.counts["documents"] == len(sides[0]) and train.layout == layout
    # A document's side does not depend on its neighbours, and a larger share takes in a smaller one.
    _, half = pack(tokens[::2], tokenizer=tokenizer, length=64, layout=layout).split(held_out=0.2)
    assert set(half.columns["documents"].tolist()) <= sides[1]
    _, more = blocks.split(held_out=0.4)
    assert sides[1] < set(more.columns["documents"].tolist())


def test_split_refuses(tokens, tokenizer):
    blocks = pack(tokens[:1], tokenizer=tokenizer, length=64)
    for share, message in (
        (0.0, "share of the documents"),
        (1.0, "share"),
        (0.5, r"^corpus.held_out=0.5 leaves the (held-out|training) side empty; got 1 document; give more"),
    ):
        with pytest.raises(MaskwiseError, match=message):
            blocks.split(held_out=share)


def test_a_split_that_fails_names_a_share_that_does(tokens, tokenizer):
    blocks = pack(tokens[:4], tokenizer=tokenizer, length=64)
    for share, side in ((1e-9, "held-out"), (1 - 1e-9, "training")):
        with pytest.raises(MaskwiseError, match=f"the {side} side empty; got 4 documents") as error:
            blocks.split(held_out=share)
        assert all(blocks.split(held_out=float(str(error.value).rpartition(" ")[2])))


def test_save_and_load(tokens, tokenizer, tmp_path):
    blocks = pack(tokens, tokenizer=tokenizer, length=64)
    path = blocks.save(tmp_path / "new" / "blocks.arrow")
    loaded = Blocks.load(path)
    assert [file.name for file in path.parent.iterdir()] == ["blocks.arrow"]
    assert loaded.columns.keys() == blocks.columns.keys()
    for name, column in blocks.columns.items():
        assert (loaded.columns[name] == column).all() and loaded.columns[name].dtype == column.dtype
        assert not loaded.columns[name].flags.owndata and not loaded.columns[name].flags.writeable  # mapped
    assert (loaded.frame, loaded.layout, loaded.counts) == (blocks.frame, blocks.layout, blocks.counts)
    for name, tensor in blocks.batch([3, 1]).items():
        assert (loaded.batch([3, 1])[name] == tensor).all()
    assert [len(side) for side in loaded.split(held_out=0.2)] == [
        len(side) for side in blocks.split(held_out=0.2)
    ]
    assert (
        pack(tokens, tokenizer=tokenizer, length=64).save(tmp_path / "again.arrow").read_bytes()
        == path.read_bytes()
    )


def test_pack_to_a_file_equals_pack_in_memory(tokens, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["maskwise.text.pack"], "WINDOW_TOKENS", 5000)
    blocks = pack(tokens, tokenizer=tokenizer, length=64)
    filed = pack(iter(tokens), tokenizer=tokenizer, length=64, out=tmp_path / "blocks.arrow")
    assert [file.name for file in tmp_path.iterdir()] == ["blocks.arrow"]
    for name, column in blocks.columns.items():
        assert (filed.columns[name] == column).all(), name
    assert filed.counts == blocks.counts and len(filed) > 10


def test_files_that_are_no_blocks(tokens, tokenizer, tmp_path):
    whole = pack(tokens[:20], tokenizer=tokenizer, length=64).save(tmp_path / "whole.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.arrow").write_bytes(b"")
    (tmp_path / "text.arrow").write_text("no arrow")
    table = pa.table({"x": [1]})
    with pa.ipc.new_file(tmp_path / "other.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("cut", "empty", "text", "other", "missing"):
        with pytest.raises(MaskwiseError, match=f"{name}.arrow does not hold blocks") as error:
            Blocks.load(tmp_path / f"{name}.arrow")
        assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_old_file(tokens, tokenizer, tmp_path, monkeypatch):
    path = pack(tokens[:2], tokenizer=tokenizer, length=64).save(tmp_path / "blocks.arrow")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(MaskwiseError, match="No space left"):
        pack(tokens[:5], tokenizer=tokenizer, length=64).save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["blocks.arrow"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 2}, "no room for text, or is too long; got 2"),
        ({"length": 40_000}, "too long"),
        ({"length": 8, "layout": "pakced"}, "did you mean 'packed'"),
    ],
)
def test_pack_refuses(arguments, message):
    with pytest.raises(MaskwiseError, match=message):
        pack([document("a", 1)], tokenizer=Frames(), **arguments)


@pytest.mark.parametrize("made", [[], [document("a")]])
def test_nothing_to_pack(made, tmp_path):
    for out in (None, tmp_path / "blocks.arrow"):
        with pytest.raises(MaskwiseError, match="no tokens to pack"):
            pack(made, tokenizer=Frames(), length=8, out=out)
    assert not list(tmp_path.iterdir())


def test_another_layout_of_the_same_pieces(tokens, tokenizer):
    packed, rows = (
        pack(tokens, tokenizer=tokenizer, length=64, layout=name) for name in ("packed", "document")
    )
    again = packed.relaid("document")
    assert again.layout == "document" and len(again) == len(rows) > len(packed)
    first, second = (np.argsort(blocks.segment_ids) for blocks in (again, rows))
    for name, column in rows.columns.items():
        assert (again.columns[name][first] == column[second]).all(), name
