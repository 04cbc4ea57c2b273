"""A text is its content: what it is called and where it stands decides neither its side of the
split nor its masks.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

import maskwise as mw
from maskwise.annotate.kept import Store
from maskwise.annotate.run import annotate_corpus
from maskwise.masking import Masker
from maskwise.masking.settings import Masking
from maskwise.masks.export import export_masks
from maskwise.studies.checks import groups_note
from maskwise.text import read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.text.rows import Rows
from maskwise.text.settings import CorpusSettings
from tiny import WORDS, write_lines

LENGTH = 16
HELD_OUT = 0.3

DRAW = random.Random(0)
TEXTS = [" ".join(DRAW.choices(WORDS, k=DRAW.randrange(1, 40))) for _ in range(200)]

Known = dict[str, tuple[bool, list[int]]]
"""Of each text, whether it is held out, and the ids of its pieces, on which its masks depend."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=300)


def known(corpus: CorpusSettings, tokenizer: PreTrainedTokenizerFast) -> Known:
    held_out = [*corpus.held_out_documents()]
    documents = [*held_out, *corpus.training_documents()]
    tokens = [*tokenise(documents, tokenizer)]
    pieces = read_pieces(tokens, tokenizer=tokenizer, length=LENGTH)
    ends = np.concatenate([batch.lengths for batch in tokens]).cumsum()
    owner = ends.searchsorted(pieces.offsets[:-1], side="right")
    return {
        document.text: (number < len(held_out), pieces.example_ids[owner == number].tolist())
        for number, document in enumerate(documents)
    }


def as_txt(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path = path.with_suffix(".txt")
    path.write_text("".join(row["text"] + "\n" for row in rows))
    return path


def as_jsonl(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    return write_lines(path.with_suffix(".jsonl"), rows)


def as_csv(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path = path.with_suffix(".csv")
    names = [*rows[0]]
    lines = [names, *([row[name] for name in names] for row in rows)]
    path.write_text("".join(",".join(cells) + "\n" for cells in lines))
    return path


def as_fasta(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path = path.with_suffix(".fasta")
    path.write_text(
        "".join(f">{n}\n{row['text'].replace(' ', '')}\n" for n, row in enumerate(rows))
    )
    return path


def changed(rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Rows in another order, without some, with new ones, and some twice."""
    draw = random.Random(seed)
    rest = draw.sample([*rows], k=draw.randrange(len(rows) // 2, len(rows)))
    new = [dict(rest[0], text=f"new {seed} {n}") for n in range(draw.randrange(9))]
    rest = [*new, *rest, *draw.sample(rest, k=5)]
    return rest if seed % 2 else draw.sample(rest, k=len(rest))


@pytest.mark.parametrize("write", [as_txt, as_jsonl, as_csv, as_fasta])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1 << 32), name=st.text("abc-_ é", min_size=1, max_size=9))
def test_a_text_that_stays_keeps_its_side_and_its_masks(
    write: Callable[..., Path],
    seed: int,
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rows = [{"text": text, "id": f"{n}"} for n, text in enumerate(TEXTS[:40])]
    folder = tmp_path_factory.mktemp("texts")
    how: dict[str, Any] = {"held_out": HELD_OUT}
    if write is as_txt:
        how["text_per"] = "line"
    before = known(CorpusSettings(source=str(write(folder / "a", rows)), **how), tokenizer)
    moved = changed(rows, seed)
    for number, row in enumerate(moved):
        row["id"] = f"{seed} {number}"
    half = len(moved) // 2
    (folder / "more").mkdir()
    write(folder / "more" / f"a{name}", moved[:half])
    write(folder / "more" / f"b{name}", moved[half:])
    after = known(CorpusSettings(source=str(folder / "more"), **how), tokenizer)
    stayed = before.keys() & after.keys()
    assert len(stayed) >= 20
    assert {text: before[text] for text in stayed} == {text: after[text] for text in stayed}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_group_keeps_its_side_and_each_text_its_masks(
    seed: int, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [{"text": text, "author": f"a{n % 25}"} for n, text in enumerate(TEXTS[:60])]
    folder = tmp_path_factory.mktemp("texts")
    how: dict[str, Any] = {"held_out": HELD_OUT, "group_field": "author"}
    source = str(as_jsonl(folder / "a", rows))
    before = known(CorpusSettings(source=source, **how), tokenizer)
    source = str(as_csv(folder / "b", changed(rows, seed)))
    after = known(CorpusSettings(source=source, **how), tokenizer)
    stayed = before.keys() & after.keys()
    assert {text: before[text] for text in stayed} == {text: after[text] for text in stayed}
    # The pieces are those of the texts alone.
    alone = known(CorpusSettings(source=source), tokenizer)
    assert [ids for _, ids in after.values()] == [alone[text][1] for text in after]


def sides(corpus: CorpusSettings) -> dict[str, bool]:
    held_out = {document.text for document in corpus.held_out_documents()}
    return {document.text: document.text in held_out for document in corpus.documents()}


def test_a_text_of_two_groups_keeps_the_side_of_its_first_line_and_is_counted(tmp_path) -> None:
    rows = [{"text": text, "author": f"a{n % 30}"} for n, text in enumerate(TEXTS[:120])]
    how: dict[str, Any] = {"held_out": HELD_OUT, "group_field": "author"}
    plain = CorpusSettings(source=str(as_jsonl(tmp_path / "plain", rows)), **how)
    assert "several groups" not in groups_note(plain, "author")
    # Two texts of three groups, one twice in its own group, and one without a group, too.
    torn = [
        *({"text": rows[n]["text"], "author": f"a{n + more}"} for n in (0, 1) for more in (7, 9)),
        dict(rows[2]),
        {"text": rows[3]["text"], "author": None},
    ]
    after = CorpusSettings(source=str(as_jsonl(tmp_path / "after", [*rows, *torn])), **how)
    assert sides(after) == sides(plain)
    assert "3 texts in several groups" in groups_note(after, "author")
    # As many in a mix, whose second part repeats the first.
    parts = (as_jsonl(tmp_path / "one", [*rows, *torn[:3]]), as_jsonl(tmp_path / "two", torn))
    mix = CorpusSettings(source=tuple(map(str, parts)), **how)
    assert sides(mix) == sides(plain)
    assert "3 texts in several groups" in groups_note(mix, "author")


def test_equal_texts_of_two_sources_of_a_mix_are_one_text(tokenizer, tmp_path) -> None:
    rows = [{"text": text, "id": f"{n}"} for n, text in enumerate(TEXTS)]
    one = str(as_jsonl(tmp_path / "one", rows[:120]))
    two = str(as_csv(tmp_path / "two", rows[80:]))
    whole = known(
        CorpusSettings(source=str(as_jsonl(tmp_path / "all", rows)), held_out=0.3), tokenizer
    )
    for sources in ((one, two), (two, one)):
        mix = CorpusSettings(source=sources, held_out=0.3)
        assert known(mix, tokenizer) == whole
        assert len([*mix.documents()]) == len({*TEXTS})
    # Of two corpora, none holds out what the other trains on.
    assert sides(CorpusSettings(source=one, held_out=0.3)).items() <= sides(mix).items()


def test_a_row_of_token_ids_is_known_by_its_ids(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [dict.fromkeys(["text"], text) for text in TEXTS]
    ids: list[list[int]] = [tokenizer(row["text"])["input_ids"] for row in rows]

    def of(path: Path, rows: list[list[int]]) -> Known:
        longest = max(map(len, rows)) + 3
        np.save(path, [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
        tokens = str(tmp_path / "tokenizer")
        corpus = CorpusSettings(source=str(path), tokens=tokens, length=LENGTH, held_out=0.3)
        return known(corpus, tokenizer)

    before = of(tmp_path / "a.npy", ids)
    moved = random.Random(1).sample(ids, k=150)
    # Without the special tokens around them, they are the same rows.
    bare = [row[1:-1] for row in moved]
    after = of(tmp_path / "b.npy", [[9, 8, 7], *bare])
    stayed = before.keys() & after.keys()
    assert len(stayed) >= 140
    assert {text: before[text] for text in stayed} == {text: after[text] for text in stayed}
    # The masks are those of the rows that a user gives.
    given = mw.annotate_rows({"input_ids": [row for row in bare if len(row) < 12]}, tokenizer)
    first = {ids[0] for _, ids in before.values()}
    assert {*given["example_id"]} <= first


def test_rows_of_other_ids_are_other_rows_whatever_their_text(tmp_path) -> None:
    tokenizer = train_tokenizer(TEXTS, kind="bpe", vocab_size=400)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    # Each is half a character, which is decoded as a sign for characters that cannot be read.
    halves = tokenizer.convert_tokens_to_ids(["Ã", "Ä"])
    source = str(write_lines(tmp_path / "rows.jsonl", [{"input_ids": [half]} for half in halves]))
    corpus = CorpusSettings(source=source, tokens=str(tmp_path / "tokenizer"))
    one, other = corpus.documents()
    assert one.text == other.text and one.id != other.id


def test_a_stream_has_the_sides_and_masks_of_the_corpus(tokenizer, tmp_path) -> None:
    rows = [{"text": text, "id": f"{n}"} for n, text in enumerate(TEXTS)]
    (tmp_path / "some").mkdir()
    as_jsonl(tmp_path / "some" / "rows", rows[:90])
    as_jsonl(tmp_path / "rows", [*rows[60:], *rows[:2]])
    corpus = CorpusSettings(source=str(as_csv(tmp_path / "whole", rows)), held_out=0.3)
    source = str(tmp_path / "**" / "rows.jsonl")
    stream = CorpusSettings(source=source, held_out=0.3, stream=True)
    assert known(stream, tokenizer) == known(corpus, tokenizer)
    assert len([*stream.documents()]) == len(rows) + 32


def test_texts_are_masked_as_in_a_corpus_by_encode_and_export(tokenizer, tmp_path) -> None:
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)
    how = {"policy": "whole-word", "ratio": 0.4}
    masker = Masker(tokenizer, **how)
    pieces = read_pieces(
        tokenise(read_documents(TEXTS), tokenizer), tokenizer=tokenizer, length=LENGTH
    )
    rows = Rows.of(pieces, "document")
    wanted = masker(rows.line(range(len(rows))), epoch=3)
    encoded = mw.encode(tokenizer, TEXTS, max_length=LENGTH, split=True)
    assert [row["example_id"] for row in encoded] == pieces.example_ids.tolist()
    assert len(encoded) > len(TEXTS)
    found = masker(encoded, epoch=3)
    assert found["input_ids"].tolist() == wanted["input_ids"].tolist()
    assert found["labels"].tolist() == wanted["labels"].tolist()

    # An export has the rows of each line of the text, also where it is repeated.
    source = str(as_jsonl(tmp_path / "texts", [{"text": text} for text in [*TEXTS, TEXTS[0]]]))
    facts = export_masks(
        source,
        tmp_path / "masks",
        tokenizer=str(folder),
        masking=Masking.of(**how),
        epochs=[3],
        max_length=LENGTH,
    )
    assert facts["documents"] == len(TEXTS) + 1
    exported = pq.read_table(tmp_path / "masks" / "epoch-3.parquet").to_pylist()
    again = len(mw.encode(tokenizer, TEXTS[:1], max_length=LENGTH, split=True))
    for row, ids, labels in zip(
        [*exported[:-again]], wanted["input_ids"].tolist(), wanted["labels"].tolist(), strict=True
    ):
        size = sum(row["attention_mask"])
        assert row["input_ids"][:size] == ids[:size] and row["labels"][:size] == labels[:size]
    assert exported[-again:] == exported[:again]


@pytest.mark.parametrize("kind", ["block", "json", "fasta"])
def test_the_parts_of_a_long_text_share_its_side(kind, tmp_path, monkeypatch) -> None:
    for module in ("documents", "source"):
        monkeypatch.setattr(f"maskwise.text.{module}.LONGEST_TEXT", 60)
    texts = ["\n".join(TEXTS[n : n + 3]) for n in range(0, 60, 3)]

    def corpus(name: str, texts: list[str]) -> CorpusSettings:
        if kind == "fasta":
            lines = [f">{n} {name}\n{text.replace(' ', '')}\n" for n, text in enumerate(texts)]
            (tmp_path / f"{name}.fasta").write_text("".join(lines))
            return CorpusSettings(source=str(tmp_path / f"{name}.fasta"), held_out=0.4)
        if kind == "json":
            source = str(
                write_lines(tmp_path / f"{name}.jsonl", [{"text": each} for each in texts])
            )
            return CorpusSettings(source=source, held_out=0.4)
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts))
        return CorpusSettings(source=str(tmp_path / f"{name}.txt"), held_out=0.4, text_per="block")

    before = corpus("a", texts)
    documents = [*before.documents()]
    places = {document.place for document in documents}
    assert len(places) == len(texts) < len(documents)
    assert 0 < sum(sides(before).values()) < len(documents)
    after = corpus("b", ["A new text.", *texts[::-1]])
    assert sides(before).items() <= sides(after).items()


def test_annotations_are_of_texts_whatever_they_are_called(tmp_path) -> None:
    as_jsonl(tmp_path / "a", [{"text": text} for text in TEXTS])
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    annotate_corpus(tmp_path / "a.jsonl", ["words"], tmp_path / "out")
    again = annotate_corpus(tmp_path / "b.jsonl", ["words"], tmp_path / "out")
    assert again["made"] == 0
    assert Store(tmp_path / "out").annotate(TEXTS[5:6])[0]["words"].start[0] == 0
    assert again["documents"] == len({*TEXTS})


def test_a_name_that_no_file_could_hold_loses_no_text(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "\ud800", "text": "A cat."}) + "\n")
    assert [document.text for document in read_documents(tmp_path / "a.jsonl")] == ["A cat."]
