"""Documents in, rows out: sources and their faults, tokenizers, packing, files."""

from __future__ import annotations

import gzip
import json
import time

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, ProphetNetTokenizer

from maskwise.errors import MaskwiseError
from maskwise.tasks import load_task
from maskwise.text import (
    Document,
    Tokens,
    bundled_path,
    encode,
    load_tokenizer,
    read_documents,
    require_documents,
    tokenise,
    train_tokenizer,
)
from maskwise.text.labelled import read_conllu
from maskwise.text.pieces import read_pieces
from maskwise.text.rows import split
from maskwise.text.tokenizers import _sample
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
        assert found[:3] == [
            ("7", "The cat sat."),
            ("x.jsonl#11", "a bare string"),
            ("x.jsonl#13", "line 0"),
        ]
        assert documents.read == len(found) == 12
        assert documents.skipped == {
            "not valid UTF-8": 2,
            "not JSON": 1,
            "no text field": 3,
            "empty": 1,
            "binary (NUL characters)": 1,
            "repeated text": 1,
        }
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
    (tmp_path / "a.json.gz").write_bytes(
        gzip.compress(b'{"text": "first"}\n{"text": "second", "id": "2"}')
    )
    pq.write_table(pa.table({"text": ["fourth", None], "other": [1, 2]}), tmp_path / "c.parquet")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "README.md").write_text("not a corpus file")
    documents = read_documents(str(tmp_path))
    assert texts(documents) == ["first", "second", "third", "fourth"]
    assert [document.id for document in documents] == [
        "a.json.gz#1",
        "2",
        "b/x.txt#1",
        "c.parquet#1",
    ]
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
    (folder / "fields.jsonl").write_text('{"body": "x", "meta": {"title": "z"}}\n{"body": "y"}\n')
    return {
        "utf16.txt": "binary file or UTF-16",
        "binary.jsonl": "NUL bytes",
        "latin1.txt": "not UTF-8 text; got 3 bad among its first 4 lines; convert it",
        "cut.jsonl.gz": "cannot read",
        "no.jsonl.gz": "cannot read",
        "no.parquet": "not a Parquet file",
        "column.parquet": "unknown text field .* 'text'; allowed: body; set corpus.text_field",
        "x.docx": r"unknown file extension.* allowed: \.txt",
        "empty": "no corpus file",
        "saved": "cannot load the data set",
        "nothing.txt": "no document in .* got nothing at all",
        "fields.jsonl": "in its field 'text'; got 2 × no text field; allowed: body, meta, "
        "meta.title; set",
        "missing.jsonl": "does not exist",
    }


def test_a_relative_path_that_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (read_documents, load_task):
        with pytest.raises(
            MaskwiseError, match=f"does not exist; got no such path in {tmp_path}; give"
        ):
            list(read("missing.jsonl"))
        with pytest.raises(MaskwiseError, match="does not exist; give"):
            list(read(str(tmp_path / "missing.jsonl")))


def test_faulty_sources_are_refused_in_one_line(tmp_path, monkeypatch):
    for name, message in faulty(tmp_path).items():
        with pytest.raises(MaskwiseError, match=message) as error:
            require_documents(read_documents(tmp_path / name))
        assert "\n" not in str(error.value) and name in str(error.value), name


@pytest.mark.parametrize("name", ["blank.txt", "blank.jsonl"])
def test_a_head_of_blank_lines_is_no_fault(tmp_path, name):
    path = tmp_path / name
    path.write_text("\n" * 70_000 + '{"text": "hello world"}')
    assert len(list(read_documents(path))) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("bundled:wikipedai", "unknown bundled data .* did you mean 'wikipedia'"),
        ("hf:", "malformed data set name"),
        ("hf:a:b:c:d", "malformed data set name"),
        ("hf:/nowhere/at-all", "cannot load data set"),
        (7, "cannot be read from this object; got int"),
        ({"text": "x"}, "cannot be read from this object; got dict"),
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


@pytest.mark.parametrize("name", ["banking77", "clinc150"])
def test_bundled_tasks_have_no_text_twice(name):
    with gzip.open(bundled_path(name), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert {row["split"] for row in rows} == {"train", "dev", "test"}
    assert len({row["text"].casefold() for row in rows}) == len(rows)


def test_documents_of_conllu_without_names_have_ids_of_their_own(tmp_path):
    sentence = "# newdoc\n1\tYes\tyes\tINTJ\t_\t_\t0\troot\t_\t_\n\n"
    (tmp_path / "x.conllu").write_text(sentence * 3)
    ids = [document.id for document in read_conllu(tmp_path / "x.conllu")]
    assert ids == ["x.conllu#0", "x.conllu#1", "x.conllu#2"]


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
    assert (
        ids[0] == made.cls_token_id
        and ids[-1] == made.sep_token_id
        and made.unk_token_id not in ids
    )
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
        assert (
            one.input_ids.tolist()
            == tokenizer(document.text, add_special_tokens=False)["input_ids"]
        )


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
        "no model or tokenizer in .*nope.* save_pretrained": lambda: load_tokenizer(
            str(tmp_path / "nope")
        ),
        "cannot load tokenizer .*broken": lambda: load_tokenizer(str(tmp_path / "broken")),
        "has no mask token; add one": lambda: load_tokenizer(str(tmp_path / "bare")),
        "did you mean 'wordpiece'": lambda: train_tokenizer(TEXTS, kind="wordpeice"),
        "vocab_size is too small for bpe; got 100; allowed: ≥ 261": lambda: train_tokenizer(
            TEXTS, kind="bpe", vocab_size=100
        ),
        "no text to train": lambda: train_tokenizer([" "]),
    }
    for message, call in calls.items():
        with pytest.raises(MaskwiseError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert load_tokenizer(str(tmp_path / "bare"), needs_mask=False).mask_token is None


class Slow:
    """A tokenizer of Python alone, as ESM's is: one letter a token, no offsets."""

    is_fast = False

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_a_slow_tokenizer_gives_tokens_without_words():
    (one,) = tokenise([Document("x", "MKV")], Slow())
    assert one.input_ids.tolist() == [77, 75, 86] and one.word_ids is None
    assert list(one.columns()) == ["input_ids"]
    with pytest.raises(MaskwiseError, match=r"need a fast tokenizer, .*; got Slow; convert it"):
        list(tokenise([Document("x", "MKV")], Slow(), layers=object()))


def test_a_slow_tokenizer_is_loaded_where_no_words_are_needed(tmp_path):
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[X_SEP]", "[MASK]", "m", "##k", "##v", "##m"]
    (tmp_path / "vocab.txt").write_text("\n".join(names))
    ProphetNetTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    slow = load_tokenizer(str(tmp_path), needs_words=False)
    assert not slow.is_fast
    (tokens,) = tokenise([Document("x", "MKVM")], slow)
    assert tokens.input_ids.tolist() == [6, 7, 8, 9]
    with pytest.raises(MaskwiseError, match=r"is slow: it has no offsets; convert it"):
        load_tokenizer(str(tmp_path))


# ---- what is too long


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_an_absurd_word_is_no_reason_to_wait(kind):
    """Training was quadratic in the length of a word: 200,000 letters took 58 seconds."""
    began = time.process_time()
    tokenizer = train_tokenizer(
        ["the cat sat on the mat " * 20, "acgt" * 50_000], kind=kind, vocab_size=300
    )
    assert time.process_time() - began < 10
    assert (
        tokenizer.decode(tokenizer("the cat", add_special_tokens=False)["input_ids"]) == "the cat"
    )


def test_parts_of_a_long_word_are_parts_from_inside():
    tokenizer = train_tokenizer(["ab" * 400] * 3, vocab_size=64)
    # never at a cut
    assert {token[0] for token in tokenizer.get_vocab() if set(token) <= set("ab")} == {"a"}


def test_of_a_large_corpus_a_sample_trains_the_tokenizer(monkeypatch):
    texts = [f"word{number} and more of it" for number in range(2000)]
    total = sum(map(len, texts))
    taken = {}
    for size in (total, total // 10):
        monkeypatch.setattr("maskwise.text.tokenizers.SAMPLE_CHARACTERS", size)
        taken[size] = _sample(texts)
    small = taken[total // 10]
    assert taken[total] == texts
    # what is held does not grow with the corpus
    assert total // 10 - 40 < sum(map(len, small)) <= total // 10
    assert small == sorted(small, key=texts.index) and {text in texts[1500:] for text in small} == {
        True,
        False,
    }
    assert sorted(_sample(texts[::-1])) == sorted(small)


def test_lines_without_end_are_skipped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("maskwise.text.readers.LONGEST_LINE", 50)
    (tmp_path / "a.jsonl").write_text(
        "\n".join(
            [
                '"short one"',
                json.dumps("x" * 50),
                json.dumps("y" * 200),
                '"short two"',
                json.dumps("z" * 99),
            ]
        )
    )
    documents = read_documents(tmp_path / "a.jsonl")
    assert texts(documents) == ["short one", "short two"] and documents.skipped == {
        "line of more than 16 MB": 3
    }
    (tmp_path / "b.txt").write_text("one\n" + "x" * 120 + "\ntwo\n")
    documents = read_documents(tmp_path / "b.txt")
    assert texts(documents) == ["one\ntwo"] and documents.skipped == {"line of more than 16 MB": 1}


def test_long_texts_come_in_parts(tmp_path, monkeypatch):
    for module in ("readers", "documents"):
        monkeypatch.setattr(f"maskwise.text.{module}.LONGEST_TEXT", 20)
    found = list(
        read_documents(
            [{"id": "a", "text": "the cat sat on the mat and ran away"}, "x" * 45, "short"]
        )
    )
    assert found == [
        ("a~1", "the cat sat on the"),
        ("a~2", " mat and ran away"),
        ("1~1", "x" * 20),
        ("1~3", "x" * 5),
        ("2", "short"),
    ]
    (tmp_path / "a.txt").write_text("one line of text\nanother line\nthe third line\n\nlast\n")
    assert [(d.id, d.text) for d in read_documents(tmp_path / "a.txt")] == [
        ("a.txt#1~1", "one line of text"),
        ("a.txt#1~2", "\nanother line"),
        ("a.txt#2", "the third line"),
        ("a.txt#3", "last"),
    ]


def test_repeated_texts_are_known_among_many():
    many = [f"text {number}" for number in range(70_000)]
    documents = read_documents([*many, many[0], many[-1], "new"])
    assert sum(1 for _ in documents) == 70_001 and documents.skipped == {"repeated text": 2}


def test_all_parts_of_a_long_document_are_on_one_side_of_a_held_out_split(tmp_path, monkeypatch):
    for module in ("readers", "documents"):
        monkeypatch.setattr(f"maskwise.text.{module}.LONGEST_TEXT", 40)
    words = "the cat sat on the mat and ran"
    novels = [
        {"id": f"novel-{n}", "text": " ".join(f"{word}{n}" for word in (words * 6).split())}
        for n in range(40)
    ]
    (tmp_path / "blocks.txt").write_text(
        "\n\n".join("\n".join(novel["text"].split()) for novel in novels)
    )
    letters = np.random.default_rng(0).choice(list("ACGT"), (40, 9, 20))
    lines = [f">chr{n}\n" + "\n".join(map("".join, letters[n])) for n in range(40)]
    (tmp_path / "genome.fasta").write_text("\n".join(lines))
    tokenizer = train_tokenizer(
        [novel["text"] for novel in novels] + lines, kind="letter", vocab_size=64
    )
    for source in (novels, tmp_path / "blocks.txt", tmp_path / "genome.fasta"):
        documents = list(read_documents(source))
        assert len(documents) > 80 and len({document.id for document in documents}) == len(
            documents
        )
        pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=64)
        assert len(np.unique(pieces.documents)) == 40
        training, held = split(pieces, held_out=0.3)
        assert len(held) and not np.isin(held.documents, training.documents).any()


def test_the_side_of_an_ordinary_document_is_that_of_its_own_name():
    names = ["a", "a~1", "a~2", "b.txt#1", "b.txt#1.2"]  # the names that users give are no parts
    tokenizer = train_tokenizer(["the cat sat"] * 9, vocab_size=64)
    documents = read_documents(
        [{"id": name, "text": f"the cat sat {number}"} for number, name in enumerate(names)]
    )
    pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=32)
    assert pieces.documents.tolist() == [text_id(name) for name in names]
