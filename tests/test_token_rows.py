"""Corpora of token ids: the same rows, words and masks as those of their texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from maskwise.base.errors import MaskwiseError
from maskwise.recipe import read_recipe
from maskwise.studies.adapt import Request
from maskwise.studies.adapt.draft import Texts, draft_of
from maskwise.studies.checks import check_inputs
from maskwise.studies.stages import prepare_stage
from maskwise.text import (
    Pieces,
    Prepared,
    Stream,
    load_tokenizer,
    read_documents,
    read_pieces,
    tokenise,
    train_tokenizer,
)
from maskwise.text.settings import CorpusSettings
from tiny import maskwise, write_inputs

LENGTH = 32


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real texts; an article has punctuation, numbers and names."""
    return [document.text[:700] for document in read_documents("bundled:wikipedia", limit=60)]


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tokenizer(
    request: pytest.FixtureRequest, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerFast:
    made = train_tokenizer(texts, kind=request.param, vocab_size=400)
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(folder)
    return load_tokenizer(str(folder))


def save_npy(path: Path, rows: list[list[int]]) -> Path:
    longest = max(map(len, rows))
    # Rows of an array are padded with the id of [PAD].
    np.save(path.with_suffix(".npy"), [row + [0] * (longest - len(row)) for row in rows])
    return path.with_suffix(".npy")


def save_npz(path: Path, rows: list[list[int]]) -> Path:
    whole = np.load(save_npy(path, rows))
    mask = np.ones_like(whole)
    np.savez(path.with_suffix(".npz"), input_ids=whole, attention_mask=mask)
    return path.with_suffix(".npz")


def save_parquet(path: Path, rows: list[list[int]]) -> Path:
    table = pa.table({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    pq.write_table(table, path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def save_lines(path: Path, rows: list[list[int]]) -> Path:
    path = path.with_suffix(".jsonl")
    # A line is an object or a list.
    lines = [
        json.dumps({"input_ids": row} if number % 2 else row) for number, row in enumerate(rows)
    ]
    path.write_text("\n".join(lines))
    return path


def save_dataset(path: Path, rows: list[list[int]]) -> Path:
    Dataset.from_dict({"input_ids": rows}).save_to_disk(path)
    return path


SAVE = {
    save.__name__: save for save in (save_npy, save_npz, save_parquet, save_lines, save_dataset)
}


def corpus_of(source: Path, tokenizer: PreTrainedTokenizerFast, **more: Any) -> CorpusSettings:
    settings = {"source": str(source), "tokens": tokenizer.name_or_path, "length": LENGTH}
    return CorpusSettings(**settings, **more)


def pieces_of(corpus: CorpusSettings, tokenizer: PreTrainedTokenizerFast) -> Pieces:
    tokens = tokenise(corpus.documents(), tokenizer, words=corpus.words)
    return read_pieces(tokens, tokenizer=tokenizer, length=LENGTH)


@pytest.mark.parametrize("save", SAVE)
def test_rows_of_ids_are_the_pieces_of_their_texts(
    save: str, tokenizer: PreTrainedTokenizerFast, texts: list[str], tmp_path: Path
) -> None:
    assert tokenizer.pad_token_id == 0
    source = SAVE[save](tmp_path / "rows", tokenizer(texts)["input_ids"])
    pieces = pieces_of(corpus_of(source, tokenizer), tokenizer)
    whole = read_pieces(
        tokenise(read_documents(texts), tokenizer), tokenizer=tokenizer, length=LENGTH
    )
    for name in ("input_ids", "word_ids"):
        assert pieces.columns[name].tolist() == whole.columns[name].tolist()
    assert pieces.offsets.tolist() == whole.offsets.tolist()
    assert pieces.counts["documents"] == len(texts)


def test_words_and_layers_are_found_in_the_decoded_text(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    source = save_lines(tmp_path / "rows", tokenizer(["The cat, 20 cats."] * 2)["input_ids"])
    [row] = [*corpus_of(source, tokenizer).documents()]
    assert "".join(row.text.lower().split()) == "thecat,20cats." and row.name == "rows.jsonl#1"
    by_spaces = pieces_of(corpus_of(source, tokenizer, words="spaces"), tokenizer)
    # Word pieces do not say whether a space was before a punctuation mark.
    joined = "##" not in "".join(tokenizer.get_vocab())
    assert by_spaces.columns["word_ids"].max() == (3 if joined else 5)
    by_rule = pieces_of(corpus_of(source, tokenizer), tokenizer)
    assert by_rule.columns["word_ids"].max() == 5


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([5, 401], ("rows.jsonl#3", "not in the vocabulary", "401")),
        ([5, -1], ("rows.jsonl#3", "not in the vocabulary", "-1")),
        ([5, 1.5], ("rows.jsonl#3", "no row of token ids")),
        ([[5], [6, 7]], ("rows.jsonl#3", "no row of token ids")),
        ("a text", ("rows.jsonl#3", "no row of token ids", "a text")),
        ("MASK", ("rows.jsonl#3", "masked already")),
    ],
    ids=["large", "negative", "fraction", "ragged", "text", "mask"],
)
def test_a_bad_row_is_refused_with_its_number(
    row: Any, said: tuple[str, ...], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    if row == "MASK":
        row = [5, tokenizer.mask_token_id]
    rows = [*tokenizer(["one text", "another text"])["input_ids"], row]
    source = save_lines(tmp_path / "rows", rows)
    with pytest.raises(MaskwiseError) as caught:
        [*corpus_of(source, tokenizer).documents()]
    assert all(part in str(caught.value) for part in said) and "\n" not in str(caught.value)


def test_empty_rows_and_copies_are_counted(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = tokenizer(["one text", "one text", ""])["input_ids"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, [], {"other": 1}])))
    documents = corpus_of(tmp_path / "rows.jsonl", tokenizer).documents()
    assert len([*documents]) == 1
    assert documents.skipped == {"empty": 2, "repeated text": 1, "no text field": 1}


def test_adapt_says_that_it_needs_texts(tmp_path: Path) -> None:
    request = Request("bundled:encoder", "rows.jsonl", tmp_path, overrides=("corpus.tokens=x",))
    with pytest.raises(MaskwiseError, match="needs texts"):
        draft_of(request, Texts(request.texts, request.out))


def test_ids_of_another_tokenizer_and_new_words_are_refused(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], tmp_path: Path
) -> None:
    source = save_lines(tmp_path / "rows", tokenizer(texts)["input_ids"])
    start = [
        f"corpus.source={source}",
        f"corpus.tokens={tokenizer.name_or_path}",
        "model={pretrained: bundled:encoder}",
        "tokenizer={}",
        "tasks=[]",
    ]
    with pytest.raises(MaskwiseError, match="another tokenizer"):
        check_inputs(read_recipe(write_inputs(tmp_path), start))
    with pytest.raises(MaskwiseError, match="another tokenizer"):
        pieces_of(corpus_of(source, tokenizer), load_tokenizer("bundled:encoder"))
    more = [*start, "model.changes=new-tokens(3)"]
    with pytest.raises(MaskwiseError, match=r"model\.changes"):
        check_inputs(read_recipe(write_inputs(tmp_path), more))


def test_a_stream_of_ids_has_the_rows_of_the_same_file(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], tmp_path: Path
) -> None:
    source = save_parquet(tmp_path / "rows", tokenizer(texts)["input_ids"])
    corpus = corpus_of(source, tokenizer, stream=True, held_out=0.2)
    Prepared.begin(tmp_path / "data", corpus, tokenizer)
    data = Prepared.open(tmp_path / "data")
    assert isinstance(data.training, Stream)
    [shards] = data.training.sources.values()
    blocks = [data.training.maker(chunk) for chunk in shards[0].chunks(500)]
    parts = [data.held_out.pieces, *(block.pieces for block in blocks if block)]
    streamed = {int(name) for part in parts for name in part.example_ids}
    whole = pieces_of(corpus_of(source, tokenizer), tokenizer)
    assert streamed == {*whole.example_ids.tolist()} and len(parts) > 3


def test_pretrain_and_study_read_ids(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], tmp_path: Path
) -> None:
    source = save_npz(tmp_path / "rows", tokenizer(texts)["input_ids"])
    recipe = write_inputs(tmp_path)
    ids = [f"corpus.source={source}", f"corpus.tokens={tokenizer.name_or_path}", "tokenizer={}"]
    short = ["training.steps=2", "training.eval_every=2", "masking.policy=whole-word"]
    names = prepare_stage(read_recipe(recipe, ids)).what["tokenizer"]
    assert names["name"] == tokenizer.name_or_path
    assert maskwise("pretrain", recipe, *ids, *short, "--out", tmp_path / "run") == 0
    command = ("study", recipe, *ids, *short, "study.seeds=1", "--out", tmp_path / "study")
    assert maskwise(*command) == 0


def test_a_mix_may_have_several_files_of_ids(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], tmp_path: Path
) -> None:
    make: Callable[[Path, list[list[int]]], Path] = save_lines
    one = make(tmp_path / "one", tokenizer(texts[:20])["input_ids"])
    two = make(tmp_path / "two", tokenizer(texts[20:40])["input_ids"])
    corpus = CorpusSettings(
        source={str(one): 1, str(two): 2}, tokens=tokenizer.name_or_path, length=LENGTH
    )
    pieces = pieces_of(corpus, tokenizer)
    assert pieces.sources is not None and {*pieces.sources.tolist()} == {0, 1}
