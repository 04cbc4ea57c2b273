"""Refusals of labelled files."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskwise.base.errors import MaskwiseError, command_line
from maskwise.recipe import read_recipe
from maskwise.studies.adapt.title_pairs import write_pairs
from maskwise.studies.inputs import task_specs
from maskwise.tasks import FinetuneSettings, evaluate_tasks, finetune, load_task, task_tensors
from maskwise.tasks.finetuning import task_record
from maskwise.text import read_documents
from maskwise.text.settings import CorpusSettings
from refusals import Refusal, cases
from test_tasks import TOKENIZERS, tiny_config, topics
from tiny import load_rows, maskwise


def _table(folder: Path) -> Path:
    """A table whose labels are in a column that nobody could guess."""
    file = folder / "docs.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("Description", "Doc ID", "Library"))
        for number in range(40):
            rows.writerow((f"a text about thing {number}", number, ("numpy", "scipy")[number % 2]))
    return file


def _follow(folder: Path) -> None:
    """Give the argument that the error names."""
    with command_line(), pytest.raises(MaskwiseError) as caught:
        load_task(str(_table(folder)), text="Description")
    argument = shlex.split(str(caught.value).partition("--task ")[2].partition(";")[0])[0]
    assert load_task(argument).labels == ("numpy", "scipy")


def _of_rows(*options: dict[str, str]) -> Callable[[Path], object]:
    """Load a task of rows in Python, with options beside them."""
    rows = [
        {"Description": f"a thing {n}", "Doc ID": n, "Library": ("numpy", "scipy")[n % 2]}
        for n in range(40)
    ]
    given = {"library": (rows, *options) if options else rows}
    return lambda folder: [load_task(spec) for spec in task_specs(given, folder)]


ARGUMENTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("bankin77", {}, ("did you mean 'banking77'",)),
    ("banking77", {"kind": "regresion"}, ("kind", "'regresion'", "did you mean 'regression'")),
    ("banking77", {"metric": "f1"}, ("metric", "sequence-classification", "got f1", "accuracy")),
    ("banking77", {"pooling": "max"}, ("pooling", "'max'")),
    ("banking77", {"pooling": "cls"}, ("pooling", "no effect", "sequence-classification")),
    ("ud-pos", {"metric": "entity-f1"}, ("entity-f1", "tags")),
    ("banking77", {"label": "intnt"}, ("label", "'intnt'")),
    ("banking77", {"train_rows": 3}, ("train_rows",)),
    ("banking77(test_rows=0)", {}, ("test_rows",)),
    ("ud-pos(trainrows=3)", {}, ("task 'ud-pos'", "train_rows")),
    ("ud-pos(40)", {}, ("'ud-pos(40)'", "train_rows=300")),
    ("ud-pos(kind=parts_of-speech)", {}, ("kind", "'parts_of-speech'")),
    ("ud-pos(train_rows=many)", {}, ("train_rows", "'ud-pos'", "got 'many'")),
]
PAIR = {"text": "text", "pair": "second"}
UNREAD: list[tuple[str, str, Any, dict[str, str]]] = [
    ("multi-label", "pair", "second", {}),
    ("cloze-qa", "pair", "second", {}),
    ("token-classification", "pair", "second", {}),
    ("retrieval", "label", "labels", PAIR),
    ("retrieval", "train_rows", 5, PAIR),
    ("zero-shot-similarity", "train_rows", 5, PAIR),
]


def of_every_kind(folder: Path, **options: Any) -> object:
    """Load rows that have the columns of each kind of task."""
    rows = []
    for n in range(60):
        texts = {"text": f"text {n}", "second": f"other {n}", "tokens": ["a", f"b{n}"]}
        answers = {"labels": ["x", "y"][: n % 3], "tags": ["x", "y"], "answer": f"c{n}"}
        rows.append({**texts, "question": f"who {n}", **answers, "score": n / 7})
    return load_rows(folder, rows, **options)


def of_one_score(train_rows: int, folder: Path) -> object:
    """Load rows of which one has another score."""
    rows = []
    for n in range(200):
        split = "train" if n >= 40 else "dev" if n % 2 else "test"
        rows.append({"text": f"text {n}", "score": 0.5 if n == 50 else 0, "split": split})
    return load_rows(folder, rows, kind="regression", train_rows=train_rows)


def of_columns(folder: Path, **options: Any) -> object:
    """Load rows whose label is in a column that is inside another."""
    rows = [{"text": f"a {n}", "meta": {"topic": "xy"[n % 2]}} for n in range(60)]
    return load_rows(folder, rows, **options)


def start(**more: Any) -> dict[str, Any]:
    """A tokenizer, and the config of a model of 32 positions."""
    words = TOKENIZERS["wordpiece"]()
    config = tiny_config(words)
    config.vocab_size = more.pop("vocab_size", config.vocab_size)
    return {"tokenizer": words, "config": config, **more}


def tuned(folder: Path, *, model: str | None = None, longest: int = 64, **more: Any) -> object:
    settings = FinetuneSettings(steps=1, max_length=longest)
    checkpoint = None if model is None else folder / model
    return finetune(checkpoint, topics(30), **start(**more), settings=settings, seed=0)


def searched(_: Path, **splits: Any) -> object:
    """Search a rate for a task with other splits."""
    task = topics(120)
    settings = FinetuneSettings(steps=1, max_length=32, search_rate=True)
    given = replace(task, splits={**task.splits, **splits})
    return task_record(None, given, **start(seeds=[0]), settings=settings)


def encoded(max_length: int, tokenizer: Any = None, pad: str = "[PAD]") -> object:
    words = tokenizer or TOKENIZERS["wordpiece"]()
    words.pad_token = pad
    return task_tensors(topics(30), words, max_length=max_length)


def _sequences(folder: Path) -> Path:
    file = folder / "family.fasta"
    words = [document.text for document in read_documents("bundled:families", limit=300)]
    file.write_text("".join(f">{n}\n{text}\n" for n, text in enumerate(words)))
    return file


def _new(folder: Path) -> None:
    """Run the command that the error names."""
    with command_line(), pytest.raises(MaskwiseError) as caught:
        write_pairs(CorpusSettings(source=str(folder / "family.fasta")), folder)
    command = shlex.split(str(caught.value).partition("maskwise ")[2].partition(";")[0])
    assert command[0] == "new"
    assert maskwise(*command, "--out", folder / "family.yaml") == 0
    assert read_recipe(folder / "family.yaml").study.arms


ROWS = [
    *(
        Refusal(f"task {spec} {options}", lambda _, s=spec, o=options: load_task(s, **o), facts)
        for spec, options, facts in ARGUMENTS
    ),
    *(
        Refusal(
            f"task of {kind} with {name}",
            partial(of_every_kind, kind=kind, **columns, **{name: value}),
            (name, "no effect", kind),
            partial(of_every_kind, kind=kind, **columns),
        )
        for kind, name, value, columns in UNREAD
    ),
    Refusal(
        "task of training rows with one score",
        partial(of_one_score, 2),
        ("train_rows=2", "scores", "got only '0.0'"),
        partial(of_one_score, 159),
    ),
    *cases(
        "seeds of evaluate_tasks",
        lambda seeds: evaluate_tasks("bundled:encoder", ["trivia(kind='retrieval')"], seeds=seeds),
        *((seeds, str(seeds)) for seeds in (0, -1, 1.5)),
        facts=["seeds"],
    ),
    Refusal(
        "task of a column inside another",
        partial(of_columns, label="topic"),
        ("meta, meta.topic, text", "did you mean 'meta.topic'"),
        partial(of_columns, label="meta.topic"),
    ),
    Refusal(
        "task of one of two columns that are not there",
        partial(of_columns, label="meta.topic", text="a|b"),
        ("text column", "'a|b'"),
        partial(of_columns, label="meta.topic", text="a|text"),
    ),
    *cases(
        "encode a task",
        lambda given: encoded(*given),
        ((2,), "room for text", "got 2"),
        ((8, None, None), "padding token"),
        ((8, SimpleNamespace()), "fast tokenizer"),
        good=lambda: encoded(8),
    ),
    Refusal("fine-tune nothing", partial(tuned, config=None), ("checkpoint", "config")),
    Refusal(
        "fine-tune no model", partial(tuned, model="absent", config=None), ("no model", "absent")
    ),
    Refusal("fine-tune fewer tokens", partial(tuned, vocab_size=20), ("tokenizer", "model", "20")),
    Refusal(
        "fine-tune longer rows than positions",
        tuned,
        ("positions", "got 64", "32"),
        partial(tuned, longest=32),
    ),
    Refusal("search a rate without dev", partial(searched, dev=()), ("dev", "mine"), searched),
    Refusal(
        "sequences without a task",
        lambda folder: write_pairs(CorpusSettings(source=str(_sequences(folder))), folder),
        ("maskwise new", "family.fasta", "proteins.md"),
        _new,
    ),
    Refusal(
        "labels in a column of any name",
        lambda folder: load_task(str(_table(folder)), text="Description"),
        ("docs.csv", "Doc ID", "Library", "label='Library'", "text='Description'"),
        _follow,
    ),
    Refusal(
        "labels in a column of any name, of rows in Python",
        _of_rows({"text": "Description"}),
        ("tasks={'library': (rows, {'text': 'Description', 'label': 'Library'})}",),
        _of_rows({"text": "Description", "label": "Library"}),
    ),
]
