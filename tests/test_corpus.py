"""Documents in, rows out: sources and their faults, tokenizers, packing, files."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from maskwise import encode
from maskwise.base.errors import MaskwiseError
from maskwise.tasks import load_task
from maskwise.text import (
    Document,
    bundled_path,
    load_tokenizer,
    read_documents,
    require_documents,
    tokenise,
    train_tokenizer,
)
from maskwise.text.conll import read_conllu
from maskwise.text.documents import field_note, folder_note
from maskwise.text.pieces import read_pieces
from maskwise.text.rows import split
from maskwise.text.tokenizers import _sample
from processes import processor_seconds

TEXTS = ["The cat sat.", "A dog ran to the mat and sat on it.", "Birds sing!"]


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    return list(read_documents("bundled:wikipedia", limit=150))


@pytest.fixture(scope="module")
def tokenizer(sample) -> PreTrainedTokenizerFast:
    return train_tokenizer((document.text for document in sample), vocab_size=600)


def texts(documents) -> list[str]:
    return [document.text for document in documents]


def named(documents) -> list[tuple[str, str]]:
    return [(document.name, document.text) for document in documents]


# ---- sources


def test_json_lines_skip_and_count_bad_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("maskwise.text.opening.LONGEST_LINE", 50)
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
        *(b'"%s"' % (b"x" * size) for size in (48, 50, 200)),
        *(f'{{"text": "line {number}"}}'.encode() for number in range(10)),
        b'"%s"' % (b"x" * 99),
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    documents = read_documents(tmp_path / "x.jsonl")
    for _ in range(2):  # again, and counted anew
        found = named(documents)
        assert found[:3] == [
            ("7", "The cat sat."),
            ("x.jsonl#11", "a bare string"),
            ("x.jsonl#16", "line 0"),
        ]
        assert documents.read == len(found) == 12
        assert documents.skipped == {
            "not valid UTF-8": 2,
            "not JSON": 1,
            "no text field": 3,
            "empty": 1,
            "binary (NUL characters)": 1,
            "repeated text": 1,
            "line of more than 16 MB": 4,
        }
    assert len(list(read_documents(tmp_path / "x.jsonl", keep_repeated=True))) == 13


def test_text_files_are_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("maskwise.text.opening.LONGEST_LINE", 50)
    long = b"x" * 120
    (tmp_path / "x.txt").write_bytes(
        b"\xef\xbb\xbfone\r\nstill one\r\n\r\n \r\ntwo\r\nbad \xff line\r\n%s\nstill two" % long
    )
    documents = read_documents(tmp_path / "x.txt")
    assert named(documents) == [("x.txt#1", "one\nstill one"), ("x.txt#2", "two\nstill two")]
    assert documents.skipped == {"not valid UTF-8": 1, "line of more than 16 MB": 1}


def test_folders_are_read_in_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("third")
    lines = b'{"text": "first"}\n{"text": "second", "id": "2"}'
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.table({"text": ["fourth", None], "other": [1, 2]}), tmp_path / "c.parquet")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "README.md").write_text("not a corpus file")
    documents = read_documents(str(tmp_path))
    names = ["a.json.gz#1", "2", "b/x.txt#1", "c.parquet#1"]
    assert named(documents) == list(zip(names, ["first", "second", "third", "fourth"]))
    assert documents.skipped == {"no text field": 1}


def test_files_of_a_folder_that_are_not_read_are_counted(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "data.json").write_text('[{"text": "first"}, {"text": "second"}]')
    assert texts(read_documents(folder)) == ["first", "second"]
    assert folder_note(str(folder)) is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "linked.txt").write_text("linked")
    (folder / "notes.txt").write_text("third")
    (folder / "back").symlink_to(folder)
    (folder / "others").symlink_to(tmp_path / "other")
    (folder / "file.txt").symlink_to(tmp_path / "other" / "linked.txt")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    for name in ("a.docx", "b.docx", "c.jsonl.bz2", "LICENSE", ".d.txt", ".e"):
        (folder / name).write_text("x")
    assert texts(read_documents(folder)) == ["linked", "third"]
    note = str(folder_note(str(folder)))
    assert "2 files of texts" in note
    for left in ("2 × linked folder", "1 × broken link", "2 × .docx", "1 × .jsonl.bz2"):
        assert left in note
    for left in ("1 × .json,", "1 × no extension", "1 × hidden"):
        assert left in note
    for number in range(20):
        (folder / f"{number}.x{number}").write_text("x")
    note = str(folder_note(str(folder)))
    assert "17 × other" in note and "1 × .json," in note and "1 × .jsonl.bz2" in note
    # Nothing but files that are not read.
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.docx").write_text("x")
    with pytest.raises(MaskwiseError, match=r"no corpus file.*got 1 × \.docx"):
        read_documents(tmp_path / "none")


def test_a_folder_whose_files_are_all_read_in_another_way_has_no_note(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["one", "two"]})
    rows.save_to_disk(tmp_path / "saved")
    assert folder_note(str(tmp_path / "saved")) is None
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "a.npy", [[1, 2]])
    assert folder_note(str(tmp_path / "rows"), tokens=True) is None
    assert "1 × .npy" in str(folder_note(str(tmp_path / "rows")))


def test_lists_limits_and_fields():
    assert named(read_documents(TEXTS)) == [("0", TEXTS[0]), ("1", TEXTS[1]), ("2", TEXTS[2])]
    rows = [{"body": "x", "url": "u/1"}, {"body": "y", "url": 2}]
    documents = read_documents(rows, text_field="body", id_field="url", limit=1)
    assert named(documents) == named(documents) == [("u/1", "x")]
    for limit in (0, 2.5, "2"):
        with pytest.raises(MaskwiseError, match=r"limit .* whole number"):
            read_documents(TEXTS, limit=limit)


@pytest.mark.parametrize("kind", ["x.jsonl", "x.parquet", "saved", "a list"])
def test_names_are_read_from_nested_fields(kind, tmp_path):
    rows = [{"text": f"text {n}", "meta": {"url": f"u/{n}"}} for n in range(3)]
    source = tmp_path / kind
    if kind == "x.jsonl":
        # A few records may lack their name.
        lines = [{"text": "text without a name"}, *rows]
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif kind == "x.parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    elif kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(source)
    else:
        source = rows
    names = [document.name for document in read_documents(source, id_field="meta.url")]
    assert names[-3:] == ["u/0", "u/1", "u/2"]
    # Nothing but the name depends on the field.
    for field in ("mete.url", "meta.uri", "uri"):
        found = read_documents(source, id_field=field)
        assert [each.id for each in found] == [each.id for each in read_documents(source)]
    assert len(list(read_documents(source))) == len(names)


def test_one_of_several_tables_may_lack_the_names(tmp_path):
    (tmp_path / "a.csv").write_text("text,doi\none,x1\n")
    (tmp_path / "b.csv").write_text("text\ntwo\n")
    assert [document.name for document in read_documents(tmp_path, id_field="doi")] == [
        "x1",
        "b.csv#1",
    ]


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


OF_FILES = {
    "utf16.txt": ("Straße und mehr".encode("utf-16"), "binary file or UTF-16"),
    "binary.jsonl": (bytes(range(256)), "NUL bytes"),
    "latin1.txt": (
        "Straße\nMöwe\nplain\nGrüße".encode("latin-1"),
        "not UTF-8 text; got 3 lines that are not UTF-8 among the first 4; convert it",
    ),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "x"}\n' * 1000)[:-20], "cannot read"),
    "no.jsonl.gz": (b"this is no gzip file", "cannot read"),
    "no.jsonl.zst": (b"this is no zstd file", "cannot read"),
    "no.parquet": (b"this is no parquet file", "not a Parquet file"),
    "x.docx": (b"x", r"unknown file extension.* allowed: \.txt"),
    "recipe.yaml": (b"masking: {}", "is a recipe and not a text.*maskwise check"),
    "latin1.parquet": (None, "not a Parquet file, or is damaged: .*utf-8"),
    "empty": (None, "no corpus file"),
    "saved": (None, "cannot load the data set"),
    "nothing.txt": (b"\n \n", "no document in .* got no text at all"),
    "fields.jsonl": (
        b'{"body": "x", "meta": {"title": "z"}, "text": null}\n{"body": "y"}\n',
        "in its field 'text'; got 2 × no text field; allowed: body, meta.title; set",
    ),
}


def test_a_relative_path_that_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (read_documents, load_task):
        for name in ("missing.jsonl", "/missing"):
            with pytest.raises(MaskwiseError, match="does not exist") as error:
                list(read(name))
            assert error.value.got == str(tmp_path / name)


@pytest.mark.parametrize("name", OF_FILES)
def test_faulty_files_are_refused_in_one_line(name, tmp_path):
    content, message = OF_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    elif name == "latin1.parquet":
        column = pa.array(["Straße".encode("latin-1")]).view(pa.string())
        pq.write_table(pa.table({"text": column}), tmp_path / name)
    else:
        (tmp_path / name).mkdir()
    if name == "saved":
        (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    with pytest.raises(MaskwiseError, match=message) as error:
        require_documents(read_documents(tmp_path / name))
    assert "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl", "list"])
def test_the_longest_texts_are_read_if_no_field_is_called_text(ending, tmp_path):
    rows = [{"nr": f"no {n}", "body": f"the story of day {n}"} for n in range(300)]
    source: Any = rows
    if ending != "list":
        source = tmp_path / f"news.{ending}"
        frame = pd.DataFrame(rows)
        how = {"orient": "records", "lines": True} if ending == "jsonl" else {"index": False}
        getattr(frame, f"to_{ending.removesuffix('l')}")(source, **how)
    documents = read_documents(source)
    assert [each.text for each in documents] == [row["body"] for row in rows]
    assert documents.fields.text == "body" and "'body'" in " ".join(field_note(documents, "text"))
    # A field that somebody names is not replaced, and neither is one called text.
    with pytest.raises(MaskwiseError, match="'story'"):
        require_documents(read_documents(source, text_field="story"))
    named = [row | {"text": "A cat."} for row in rows]
    assert {each.text for each in read_documents(named)} == {"A cat."}


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


def test_a_conllu_file_is_read_in_linear_time(tmp_path):
    """Without "# newdoc", it is one document, which was copied at each of its sentences."""
    row = "1\t{}\t_\tNOUN\t_\t_\t_\t_\t_\t_\n\n"
    seconds = []
    for count in (8_000, 48_000):
        path = tmp_path / "x.conllu"
        path.write_text("".join(row.format(f"Word{n}-of-a-compound") for n in range(count)))
        [document] = read_conllu(path)
        seconds.append(processor_seconds(lambda path=path: [*read_conllu(path)]))
    assert document.layers["pos"].end[-1] == len(document.text)
    assert seconds[1] < 14 * seconds[0]


# ---- tokenizers and tokens


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_trained_tokenizers_are_complete_and_equal(sample, kind, tmp_path):
    made, again = (train_tokenizer(texts(sample), kind=kind, vocab_size=500) for _ in range(2))
    assert made.backend_tokenizer.to_str() == again.backend_tokenizer.to_str() and len(made) == 500
    assert made.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = made("The national team, in 1990.")["input_ids"]
    assert (ids[0], ids[-1]) == (made.cls_token_id, made.sep_token_id)
    assert made.unk_token_id not in ids
    assert made.decode(ids, skip_special_tokens=True).replace(" ", "") == "thenationalteam,in1990."
    made.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("The cat, in 1990!") == made("The cat, in 1990!")


def test_wordpiece_keeps_words_and_common_characters(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert {"the", "of", "and", "##ing", "##e", "e"} <= set(vocabulary)
    assert "##." not in vocabulary  # punctuation is never inside a word


def test_tokenise(sample, tokenizer):
    found = list(tokenise(sample, tokenizer, batch_size=7))
    assert [one for batch in found for one in batch.documents] == sample
    for batch in found:
        lengths = []
        expected = []
        for document in batch.documents:
            ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
            lengths.append(len(ids))
            expected += ids
        ids, words = batch.columns.values()
        assert (ids.tolist(), batch.lengths.tolist()) == (expected, lengths)
        assert ids.dtype == words.dtype == np.int32
        assert (ids == tokenizer.unk_token_id).mean() < 0.03


def test_text_never_becomes_a_control_token(tokenizer):
    documents = [Document("x", "a [MASK] and a [SEP]"), Document("y", "\u200b")]
    (batch,) = tokenise(documents, tokenizer)
    ids = set(batch.columns["input_ids"].tolist())
    assert not ids & {tokenizer.mask_token_id, tokenizer.sep_token_id} and batch.lengths[1] == 0


def test_truncation_and_padding_of_a_tokenizer_file_are_left_out(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(8)
    backend.enable_padding(length=16)
    old = PreTrainedTokenizerFast(
        tokenizer_object=backend, mask_token="[MASK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    documents = [Document("x", " ".join(["the cat sat"] * 20)), Document("y", "the cat")]
    (one,), (two,) = tokenise(documents, old), tokenise(documents, tokenizer)
    assert one.columns["input_ids"].tolist() == two.columns["input_ids"].tolist()
    assert encode(old, ["the cat"])[0]["input_ids"] == tokenizer("the cat")["input_ids"]
    assert backend.truncation is not None  # ours was a copy


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_tokenizer("nope"), "no model or tokenizer in .*nope.* save_pretrained"),
        (lambda: load_tokenizer("broken"), "cannot load tokenizer .*broken"),
        (lambda: load_tokenizer("bare"), "has no mask token; add one"),
        (lambda: load_tokenizer("slow"), "is slow: it has no character offsets"),
        (lambda: train_tokenizer(TEXTS, kind="wordpeice"), "did you mean 'wordpiece'"),
        (
            lambda: train_tokenizer(TEXTS, kind="bpe", vocab_size=100),
            "vocab_size is too small for bpe; got 100; allowed: ≥ 261",
        ),
        (lambda: train_tokenizer([" "]), "no text to train"),
        (lambda: train_tokenizer(["a", None]), "NoneType at place 1"),
        (lambda: train_tokenizer(["a", "\ud800 b"]), "place 1 of the list"),
        (lambda: train_tokenizer(TEXTS, vocab_size="300"), "vocab_size .*got '300'"),
        (lambda: train_tokenizer(TEXTS, vocab_size=300.5), "vocab_size .*got 300.5"),
        # The library ended the process.
        (lambda: train_tokenizer(TEXTS, vocab_size=2**40), "vocab_size .* to 16777216"),
    ],
)
def test_tokenizer_errors(call, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    model = models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)).save_pretrained("bare")
    ByT5Tokenizer().save_pretrained("slow")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(MaskwiseError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert load_tokenizer("bare", needs_mask=False).mask_token is None


# ---- what is too long


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_an_absurd_word_is_no_reason_to_wait(kind):
    """Training was quadratic in the length of a word: 200,000 letters took 58 seconds."""
    began = time.process_time()
    texts = ["the cat sat on the mat " * 20, "acgt" * 50_000]
    tokenizer = train_tokenizer(texts, kind=kind, vocab_size=300)
    assert time.process_time() - began < 10
    ids = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "the cat"


def test_parts_of_a_long_word_are_parts_from_inside():
    tokenizer = train_tokenizer(["ab" * 400] * 3, vocab_size=64)
    # never at a cut
    assert {token[0] for token in tokenizer.get_vocab() if set(token) <= set("ab")} == {"a"}


def test_of_a_large_corpus_a_sample_trains_the_tokenizer(monkeypatch):
    texts = [f"word{number} and more of it" for number in range(2000)]
    assert _sample(texts) == texts
    most = sum(map(len, texts)) // 10
    monkeypatch.setattr("maskwise.text.tokenizers.SAMPLE_CHARACTERS", most)
    small = _sample(texts)
    # what is held does not grow with the corpus
    assert most - 40 < sum(map(len, small)) <= most
    assert small == sorted(small, key=texts.index)
    assert {text in texts[1500:] for text in small} == {True, False}
    assert sorted(_sample(texts[::-1])) == sorted(small)


def test_long_texts_come_in_parts(tmp_path, monkeypatch):
    for module in ("source", "documents"):
        monkeypatch.setattr(f"maskwise.text.{module}.LONGEST_TEXT", 20)
    long = {"id": "a", "text": "the cat sat on the mat and ran away"}
    assert named(read_documents([long, "x" * 45, "short"])) == [
        ("a", "the cat sat on the"),
        ("a", " mat and ran away"),
        ("1", "x" * 20),
        ("1", "x" * 5),
        ("2", "short"),
    ]
    (tmp_path / "a.txt").write_text("one line of text\nanother line\nthe third line\n\nlast\n")
    assert named(read_documents(tmp_path / "a.txt")) == [
        ("a.txt#1", "one line of text"),
        ("a.txt#1", "\nanother line"),
        ("a.txt#2", "the third line"),
        ("a.txt#3", "last"),
    ]


def test_repeated_texts_are_known_among_many():
    many = [f"text {number}" for number in range(70_000)]
    documents = read_documents([*many, many[0], many[-1], "new"])
    assert sum(1 for _ in documents) == 70_001 and documents.skipped == {"repeated text": 2}


@pytest.mark.parametrize("source", ["novels", "blocks.txt", "genome.fasta"])
def test_all_parts_of_a_long_document_are_on_one_side_of_a_held_out_split(
    source, tmp_path, monkeypatch
):
    for module in ("source", "documents"):
        monkeypatch.setattr(f"maskwise.text.{module}.LONGEST_TEXT", 40)
    words = ["the", "cat", "sat", "on", "the", "mat", "and", "ran"] * 6
    novels = [" ".join(f"{word}{n}" for word in words) for n in range(40)]
    blocks = "\n\n".join(novel.replace(" ", "\n") for novel in novels)
    (tmp_path / "blocks.txt").write_text(blocks)
    letters = np.random.default_rng(0).choice(list("ACGT"), (40, 9, 20))
    lines = [f">chr{n}\n" + "\n".join(map("".join, letters[n])) for n in range(40)]
    (tmp_path / "genome.fasta").write_text("\n".join(lines))
    tokenizer = train_tokenizer([*novels, *lines], kind="letter", vocab_size=64)
    documents = list(read_documents(novels if source == "novels" else tmp_path / source))
    assert len({document.id for document in documents}) == len(documents) > 80
    pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=64)
    assert len(np.unique(pieces.documents)) == 40
    training, held = split(pieces, held_out=0.3)
    assert len(held) and not np.isin(held.documents, training.documents).any()
