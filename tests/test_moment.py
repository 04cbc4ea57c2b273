"""Masks of a moment: as lists, in data sets and in files, equal to the masks of a call."""

from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import replace
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertTokenizerFast

import maskwise as mw
from masking_tools import masker, random_rows
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import write_folder
from maskwise.cli import main
from maskwise.masking import IGNORE, Masker
from maskwise.masking.policies import policy
from maskwise.masking.schedules import schedule
from maskwise.masks import export
from maskwise.text import load_tokenizer, read_documents
from tiny import unversioned

WORDS = "who what wrote painted the book city a song is was it of in he she and to"
MOMENT = {"step": 30, "total_steps": 100, "epoch": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "token": {},
    "whole-word": {"policy": "whole-word", "ratio": 0.3, "min_targets": 3},
    "span": {"policy": "span", "budget": "exact"},
    "schedule": {"policy": "whole-word", "ratio": "linear(0.4, 0.1)"},
    "draws": {"ratio": "uniform(0.1, 0.5)", "predict": 0.1},
    "function": {"ratio": lambda step, total: 0.1 + step / 200},
    "complement": {"visits": "complement", "ratio": 0.4, "min_targets": 0},
    "salient": {"policy": "salient", "fill": "random"},
    "t5": {"policy": "t5-span(3, 0.2)", "corruption": "t5"},
    "infill": {"policy": "span", "corruption": "infill", "budget": "exact"},
    "replace": {"corruption": "replace"},
}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Rows of the bundled text, of different lengths."""
    tokenizer = load_tokenizer("bundled:encoder")
    texts = [document.text for document in read_documents("bundled:wikipedia", limit=25)]
    return mw.encode(tokenizer, texts, max_length=64, split=True, layers=["salient"])[:60]


def made(name: str, seed: int = 5) -> Masker:
    tokenizer = load_tokenizer("bundled:encoder")
    settings = {"corruption": "bert", **SETTINGS[name]}
    if settings["corruption"] in ("t5", "infill"):
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [f"<extra_id_{number}>" for number in range(40)]}
        )
    return Masker(tokenizer, seed=seed, **settings)


def trimmed(values: torch.Tensor, lengths: list[int]) -> list[list[int]]:
    return [row[:end] for row, end in zip(values.tolist(), lengths, strict=True)]


@pytest.mark.parametrize("name", SETTINGS)
def test_masks_of_a_moment_are_those_of_a_call(name: str, rows: list[dict[str, Any]]) -> None:
    one = made(name)
    live = one(rows, **MOMENT)
    masked = one.map(rows, **MOMENT)
    columns = {key: [row[key] for row in masked] for key in masked[0]}
    ids = columns["input_ids"]
    assert ids == trimmed(live.input_ids, [*map(len, ids)])
    labels = columns["labels"]
    assert labels == trimmed(live.labels, [*map(len, labels)])
    # What was cut off is padding.
    pad = one.vocabulary.pad
    for row, kept in zip(live.input_ids.tolist(), ids):
        assert set(row[len(kept) :]) <= {pad}
    for row, kept in zip(live.labels.tolist(), labels):
        assert set(row[len(kept) :]) <= {IGNORE}
    assert columns["attention_mask"] == [[1] * len(row) for row in ids]
    if one.corruption.keeps_length:
        assert [*map(len, ids)] == [len(row["input_ids"]) for row in rows]
    assert any(label != IGNORE for row in labels for label in row)


@pytest.mark.parametrize("name", ["whole-word", "salient", "t5"])
def test_data_sets_have_the_same_masks(name: str, rows: list[dict[str, Any]]) -> None:
    one = made(name)
    expected = one.map(rows, epoch=1)
    data = datasets.Dataset.from_list(rows)
    assert one.map(data, epoch=1).to_list() == expected
    seen = data.with_transform(one.at(epoch=1))
    assert [seen[number] for number in range(len(rows))] == expected
    # A loader may ask for any rows together.
    some = seen[[4, 30, 7]]
    assert some["labels"] == [expected[number]["labels"] for number in (4, 30, 7)]
    assert one.map(data, epoch=2).to_list() != expected
    assert [*pickle.loads(pickle.dumps(one.at(epoch=1)))(rows)] == expected


def test_a_stored_result_of_datasets_is_not_used_for_other_masks(
    tmp_path: Any, rows: list[dict[str, Any]]
) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
    data = datasets.load_from_disk(tmp_path / "rows")
    for seed in (5, 6, 5):
        one = made("whole-word", seed)
        for epoch in (0, 1):
            assert one.map(data, epoch=epoch).to_list() == one.map(rows, epoch=epoch)


def test_masks_that_cannot_be_known_are_refused(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(MaskwiseError, match="total_steps"):
        made("schedule").map(rows, epoch=0)
    with pytest.raises(MaskwiseError, match="pass step and total_steps"):
        made("schedule").at(epoch=0, step=3)
    with pytest.raises(MaskwiseError, match="pass step and"):
        made("function").at(epoch=0)
    shares = (schedule(lambda step, total: 1 - step / 100), schedule(0.5))
    mixed = replace(policy("mixture(token, span)"), shares=shares)
    with pytest.raises(MaskwiseError, match="pass step and"):
        Masker(load_tokenizer("bundled:encoder"), policy=mixed).at(epoch=0)
    with pytest.raises(MaskwiseError, match="epoch=0"):
        made("token").at()
    for learns in ("type-weighted", "pos-weighted", "learned", "learned(take='spans')"):
        with pytest.raises(MaskwiseError, match="MaskingTrainer"):
            Masker(load_tokenizer("bundled:encoder"), policy=learns).at(epoch=0)
    with pytest.raises(MaskwiseError, match="MaskingTrainer"):
        mw.Noising(load_tokenizer("bundled:encoder")).at(epoch=0)
    # Masks at a step need no epoch.
    at_step = made("schedule").at(step=3, total_steps=10)(rows)
    live = made("schedule")(rows, step=3, total_steps=10)
    assert [len(row["labels"]) for row in at_step] == [len(row["input_ids"]) for row in rows]
    assert sum(x != IGNORE for row in at_step for x in row["labels"]) == live.targets


def test_what_is_no_data_set_of_rows_is_refused(rows: list[dict[str, Any]]) -> None:
    one = made("token")
    data = datasets.Dataset.from_list(rows)
    with pytest.raises(MaskwiseError, match="train"):
        one.map(datasets.DatasetDict(train=data), epoch=0)
    with pytest.raises(MaskwiseError, match="batched=True"):
        data.map(one.at(epoch=0))
    with pytest.raises(MaskwiseError, match="annotate_rows"):
        one.map(datasets.Dataset.from_dict({"text": ["a"]}), epoch=0)
    with pytest.raises(MaskwiseError, match="no rows"):
        one.map([], epoch=0)


def test_a_data_set_that_is_read_as_a_stream_has_the_same_masks(rows: list[dict[str, Any]]) -> None:
    one = made("whole-word")
    data = datasets.Dataset.from_list(rows)
    streamed = one.map(data.to_iterable_dataset(), epoch=1)
    assert [*streamed] == [*one.map(data, epoch=1)]


def test_padded_rows_keep_their_padding_and_packed_rows_warn() -> None:
    one = masker()
    pad = one.vocabulary.pad
    padded = []
    for row in random_rows(4, words=5):
        ids = row["input_ids"]
        more = 60 - len(ids)
        padded.append(
            {
                "input_ids": ids + [pad] * more,
                "attention_mask": [1] * len(ids) + [0] * more,
                "example_id": row["example_id"],
            }
        )
    for row, masked in zip(padded, one.map(padded, epoch=0), strict=True):
        assert len(masked["input_ids"]) == len(masked["labels"]) == 60
        assert masked["attention_mask"] == row["attention_mask"]
    first, second = random_rows(2, words=5)
    both = first["input_ids"] + second["input_ids"]
    names = [1] * len(first["input_ids"]) + [2] * len(second["input_ids"])
    with pytest.warns(UserWarning, match="packed row"):
        one.map([{"input_ids": both, "example_id": names}], epoch=0)


@pytest.fixture
def pairs(tmp_path: Any) -> tuple[BertTokenizerFast, list[dict[str, Any]]]:
    """Questions with answers, tokenised as pairs by a BERT tokenizer."""
    words = WORDS.split(" ")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "##s", "##ed", ".", "?"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    questions = ["who wrote the books ?", "what ?", "who painted the city of song ?"]
    answers = ["he wrote it in a city .", "it is a song .", "she ."]
    encoded = tokenizer(questions, answers)
    rows = [
        {
            "input_ids": encoded["input_ids"][n],
            "token_type_ids": encoded["token_type_ids"][n],
            "attention_mask": encoded["attention_mask"][n],
            "example_id": n,
        }
        for n in range(3)
    ]
    return tokenizer, rows


def test_pairs_keep_their_segments_wherever_they_are_padded(
    pairs: tuple[BertTokenizerFast, list[dict[str, Any]]],
) -> None:
    tokenizer, rows = pairs
    one = Masker(tokenizer, ratio=0.4, corruption="mask-only", seed=1)
    lengths = [len(row["input_ids"]) for row in rows]
    assert len(set(lengths)) == 3 and all(1 in row["token_type_ids"] for row in rows)
    timed = [{**row, "step": 0, "epoch": 0} for row in rows]
    plain = mw.MaskingCollator(one)(timed)
    wide = mw.MaskingCollator(one, pad_to_multiple_of=8)(timed)
    assert wide["input_ids"].shape == (3, 16)
    assert {*wide} == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    masked = one.map(rows, epoch=0)
    for n, (row, length) in enumerate(zip(rows, lengths)):
        for batch in (plain, wide):
            assert batch["token_type_ids"][n, :length].tolist() == row["token_type_ids"]
            assert not batch["token_type_ids"][n, length:].any()
            assert not batch["attention_mask"][n, length:].any()
            assert (batch["input_ids"][n, length:] == tokenizer.pad_token_id).all()
            assert (batch["labels"][n, length:] == IGNORE).all()
            assert batch["labels"][n, :length].tolist() == masked[n]["labels"]
        assert masked[n]["token_type_ids"] == row["token_type_ids"]
        # The tokens between the two texts are special.
        seps = [i for i, token in enumerate(row["input_ids"]) if token == tokenizer.sep_token_id]
        assert all(masked[n]["labels"][place] == IGNORE for place in [0, *seps])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        line = mw.PackedCollator(one)(timed)
    together = [kind for row in rows for kind in row["token_type_ids"]]
    assert line["token_type_ids"][0].tolist() == together
    assert line["input_ids"].shape == (1, sum(lengths))


def test_export_writes_the_masks_of_a_masker(tmp_path: Any, capsys: Any) -> None:
    out = tmp_path / "masks"
    command = ["export", "bundled:wikipedia", "policy=salient", "fill=random"]
    more = ["--tokenizer", "bundled:encoder", "--max-length", "48", "--epochs", "1,4", "--seed"]
    more += ["9", "--limit", "30", "--out", str(out)]
    tokenizer = load_tokenizer("bundled:encoder")
    texts = [document.text for document in read_documents("bundled:wikipedia", limit=30)]
    rows = mw.encode(tokenizer, texts, max_length=48, split=True, layers=["salient"])
    one = Masker(tokenizer, policy="salient", fill="random", seed=9)
    assert run(*command, *more) == 0
    for epoch in (1, 4):
        expected = one.map(rows, epoch=epoch)
        read = pq.read_table(out / f"epoch-{epoch}.parquet").to_pylist()
        assert read == expected
    assert not unversioned(out)
    facts = json.loads((out / "masks.json").read_text())
    assert facts["rows"] == len(rows) and facts["documents"] == 30
    targets = sum(label != IGNORE for row in expected for label in row["labels"])
    assert facts["epochs"]["4"]["targets"] == targets
    out = tmp_path / "folders"
    assert run(*command, *more[:-1], str(out), "--format", "datasets") == 0
    files = [".identity.json", "epoch-1", "epoch-4", "manifest.json", "masks.json"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert datasets.load_from_disk(out / "epoch-4").to_list() == expected


def test_export_makes_the_layer_that_a_corruption_reads(tmp_path: Any, capsys: Any) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("The cat sat. A dog ran home. It rains.\n")
    command = ["export", str(text), "--tokenizer", "bundled:tokenizer", "--max-length", "32"]
    command += ["--epochs", "0", "corruption=permute-sentences", "ratio=0.5"]
    for name, more in (("a", []), ("b", ["--with", "sentences"])):
        assert run(*command, *more, "--out", str(tmp_path / name)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("form", ["parquet", "datasets"])
def test_export_adds_epochs_to_those_of_the_same_masks(
    form: str, tmp_path: Any, capsys: Any
) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("The cat sat on the mat.\nA dog ran home.\n")
    command = ["export", str(text), "--tokenizer", "bundled:encoder", "--max-length", "16"]
    command += ["--format", form]

    def files(folder: Any) -> dict[str, bytes]:
        # ``datasets`` gives every set a random fingerprint.
        paths = [path for path in folder.rglob("*.*") if path.suffix in (".parquet", ".arrow")]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    out, other = tmp_path / "out", tmp_path / "other"
    assert run(*command, "--epochs", "0,3", "--out", str(out)) == 0
    made = {out / name: (out / name).stat().st_mtime_ns for name in files(out)}
    assert run(*command, "--epochs", "2,3", "--out", str(out)) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in made.items()) and made
    assert run(*command, "--epochs", "0,2-3", "--out", str(other)) == 0
    assert files(out) == files(other) and len(files(out)) == 3
    assert json.loads((out / "masks.json").read_text()) == json.loads(
        (other / "masks.json").read_text()
    )
    capsys.readouterr()
    for given, named in (
        (["ratio=0.3"], "masking.ratio"),
        (["--seed", "1"], "masking.seed"),
        (["--limit", "1"], "limit"),
        (["--max-length", "8"], "max_length"),
    ):
        assert run(*command, *given, "--epochs", "4", "--out", str(out)) == 2
        error = capsys.readouterr().err
        assert f"maskwise export {text}" in error and named in error and "new folder" in error
    text.write_text("The cat sat on the mat.\nA dog ran away.\n")
    assert run(*command, "--epochs", "4", "--out", str(out)) == 2
    assert "other rows" in capsys.readouterr().err
    assert files(out) == files(other)


@pytest.mark.parametrize("form", ["parquet", "datasets"])
@pytest.mark.parametrize("changed", [False, True])
def test_an_export_goes_on_where_it_was_interrupted(
    form: str, changed: bool, tmp_path: Any, monkeypatch: Any
) -> None:
    """It began again, for all epochs; and went on with another tokenizer of the same name."""
    monkeypatch.setattr(export, "BATCH_CHARACTERS", 2000)
    command = ["export", "bundled:wikipedia", "--limit", "30", "--tokenizer", "bundled:encoder"]
    command += ["--max-length", "32", "--epochs", "0-1", "--format", form, "--out"]
    made: list[Any] = []
    write = export.write_folder

    def interrupted(place: Any, fill: Any) -> None:
        made.append(place)

        def fill_or_stop(folder: Any) -> None:
            if len(made) == 3:
                raise KeyboardInterrupt
            fill(folder)

        write(place, fill_or_stop)

    monkeypatch.setattr(export, "write_folder", interrupted)
    out = tmp_path / "out"
    assert run(*command, str(out)) == 130
    assert [path.name for path in out.iterdir()] == [".unfinished"]
    assert run(*command, str(out), "ratio=0.3") == 2
    first = len(made)
    if changed:
        monkeypatch.setattr(export, "tokenizer_key", lambda _: "another vocabulary")
    assert run(*command, str(out)) == 0
    # The third part is made again, and the first two are not.
    count = len(made)
    assert run(*command, str(tmp_path / "whole")) == 0
    assert first == 3 and count - first == len(made) - count - (0 if changed else 2)
    files = [
        path for path in (tmp_path / "whole").rglob("*") if path.suffix in (".parquet", ".arrow")
    ]
    for path in files:
        assert (out / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert len(files) == 2 and not (out / ".unfinished").exists()


def test_export_replaces_no_folder_of_another_kind(tmp_path: Any, capsys: Any) -> None:
    write_folder(tmp_path / "model", lambda folder: (folder / "config.json").write_text("{}"))
    command = ["export", "bundled:wikipedia", "--tokenizer", "bundled:encoder", "--limit", "5"]
    assert run(*command, "--out", str(tmp_path / "model")) == 2
    assert "something else" in capsys.readouterr().err
    assert (tmp_path / "model" / "config.json").exists()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["ratio=linear(0.3, 0.1)"], "--total-steps"),
        (["policy=type-weighted"], "MaskingTrainer"),
        (["policy=learned"], "learned('FOLDER')"),
        (["polcy=token"], "policy"),
        (["ratio=null"], "ratio has no value; got None; leave it out"),
        (["masking.exclude=null"], "exclude has no value; got None; leave it out"),
        (["policy=phrase"], "--with"),
        (["--format", "csv"], "parquet"),
        (["--tokenizer", ""], "tokenizer"),
        (["--out", "."], "something else"),
    ],
)
def test_export_refuses_in_one_line(
    given: list[str], named: str, tmp_path: Any, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    usual = ["--tokenizer", "bundled:encoder", "--limit", "5", "--out", "masks"]
    assert run("export", "bundled:wikipedia", *usual, *given) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and named in lines[0]
    assert not (tmp_path / "masks").exists()
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def run(*arguments: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)
