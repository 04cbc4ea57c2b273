"""Labelled files that cannot be read as a task: the facts in the one line that says why not."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from maskwise.tasks import load_task
from maskwise.text.conll import read_conllu
from refusals import Refusal
from test_odd_labels import NAMED, rows, table, written
from test_tasks import rows_of
from test_tasks_kinds import COLUMNS, PLAIN, choice_rows
from tiny import in_every_split


def loaded(name: str, content: Any, folder: Path, **options: Any) -> object:
    path = folder / name if content is None else written(folder, name, content)
    return load_task(path, **options)


def asked(**record: Any) -> list[dict[str, Any]]:
    return in_every_split([record] * 50)


SPANS = [[{"start": 0, "end": n + 1, "label": "X"}] for n in range(5)]
HEADLINE = rows(label=list("ab"), split=["train", "test"])
TSV = "".join(f"{2012 + n % 2}\tyes\ttext {n}\t{n % 3}\n" for n in range(90))
WRITTEN = [{"text": f"t {n}", "essence": f"e{n}"} for n in range(40)]
WRITE = {"kind": "generation", "label": "essence"}
OTHERS = [
    *({"question": f"who {n}", "answer": "a"} for n in range(40)),
    {"query": "who", "reply": "a"},
]
SQUAD: dict[str, Any] = {"data": [{"paragraphs": [{"qas": []}]}]}
SITUATION: dict[str, Any] = {"data": [{"paragraphs": [{"situation": "S.", "qas": []}]}]}
CONLLU = "\tcats\tcat\tNOUN\t_\t_\t0\troot\t_\t_\n\n"
CHOICE = {"question": "q", "choices": ["x", "y"]}
DOCS = "\n".join(f"{n},a text about {n % 3},lib {n % 3},{1990 + n % 9}" for n in range(60))
# The name of a file, what it has, options of the task, and facts.
FILES: list[tuple[Any, ...]] = [
    ("empty.csv", "", {}, "has no rows"),
    ("only a header.csv", "text,label\n", {}, "has no rows"),
    (
        "few.csv",
        table("text,label", *(f"text {n},{'ab'[n % 2]}" for n in range(4))),
        {},
        "4 rows with 4 different texts",
    ),
    (
        "one text.csv",
        table("text,label", *(f"the same,{'ab'[n % 2]}" for n in range(60))),
        {},
        "60 rows with 1 different text",
    ),
    (
        "labels in test only.jsonl",
        rows(label=["a", "b", None], split=["test", "test", "train"]),
        {},
        "train",
        "20 × train: no label",
    ),
    ("spans.jsonl", rows(spans=SPANS), {}, "row 1", "'start': 0", "tokens and tags"),
    ("lists as spans.jsonl", rows(entities=[[[0, 5, "X"]], [[0, 6, "Y"]]]), {}, "row 1", "tokens"),
    ("spans in a column of labels.jsonl", rows(labels=SPANS), {}, "row 1", "tokens and tags"),
    (
        "an object.jsonl",
        rows(label=[{"name": "a"}, {"name": "b"}]),
        {},
        "row 1",
        "label='label.name'",
    ),
    (
        "pandas.json",
        pd.DataFrame(rows(label=["a", "b"])).to_json(),
        {},
        "text",
        "label",
        "orient='records'",
    ),
    (
        "indented.json",
        json.dumps({"train": [["a text", "a"]], "test": [["a text", "b"]]}, indent=1),
        {},
        "train, test",
        "JSON lines",
    ),
    (
        "no header.tsv",
        table(*(f"{n % 2}\ta text with the number {n}" for n in range(60))),
        {},
        "'0'",
        "FILE(text=2,label=1)",
    ),
    (
        "Excel.csv",
        table("sep=;", "text;label", *(f"text {n};{n % 2}" for n in range(60))),
        {},
        "sep=;",
    ),
    ("a.jsonl", [{"text": "a"}] * 9, {}, "label", "got text", "add a column"),
    ("a.jsonl", rows_of(100, classes=1), {}, "two classes", "got only 'c0'"),
    ("a.jsonl", rows(label=["a", "a", ""]), {}, "20 × no label", "two classes", "got only 'a'"),
    ("a.jsonl", rows_of(100, label=-1), {}, "empty", "100 × no label"),
    (
        "a.jsonl",
        [{**row, "label": f"{n}x"} for n, row in enumerate(rows_of(100))],
        {},
        "classes",
        "6",
    ),
    ("a.jsonl", b'{"text": "caf\xe9", "label": "b"}\n', {}, "UTF-8", "byte 13"),
    ("a.jsonl", [{"tokens": ["a", "b"], "tags": ["X"]}], {}, "got 2 and 1"),
    ("a.jsonl", [{"tokens": ["a", "b"], "tags": [["X", "Y"], "Z"]}], {}, "one tag", "X"),
    ("a.jsonl", rows_of(2, classes=2), {}, "split", "empty", "got 2 rows", "more rows"),
    ("a.csv", "text,label\na,b,c\n", {}, "row 2 of", "3 columns", "allowed: 2 columns"),
    ("a.csv", 'text,label\na,b,c\n"d"e,f\n', {}, "row 2 of", "3 columns"),
    ("a.csv", "a,b\n1,2\n3\n", {}, "complete the row"),
    ("a.csv", "a,b\n1,2\n3,4,5\n", {}, "quotation marks"),
    ("a.tsv", "a\tb\n" + "x\t1\n" * 9 + "x\ty\t1\n", {}, "3 columns; allowed: 2", "replace tabs"),
    (
        "a.csv",
        'text,label\n"a\nb",c\n' + "d,e\n" * 40 + '"f,g\n' + "h,i\n" * 40,
        {},
        "row 43",
        "closed",
    ),
    ("a.parquet", b"text", {}, "Parquet"),
    ("a.jsonl.gz", gzip.compress(b"x" * 1000, mtime=0)[:-20], {}, "cannot read"),
    ("a.xlsx", b"x", {}, "extension", ".jsonl"),
    ("a.jsonl", rows_of(9, split="trian"), {}, "split", "'trian'", "did you mean 'train'"),
    ("a.jsonl", rows(label=["a", "b"], split=["train", "test", ""]), {}, "split", "''; allowed: "),
    ("a.jsonl", rows_of(9, split="test"), {}, "no training split"),
    (
        "a.jsonl",
        rows(label=["a", "b"], split=["train", "dev", "validation", "test"]),
        {},
        "two names",
        "split",
    ),
    *(
        ("a.jsonl", rows(label=["a", "b"], split=[it]), {}, "train")
        for it in ({"a": 1}, ["train"], 3, None)
    ),
    *(("a.jsonl", rows(label=label), {}, "two classes") for label in ("a" * 5000, "word " * 1000)),
    ("a.conll", "word\n", {}, "line 1 of", "columns"),
    ("a.jsonl", None, {}, "does not exist"),
    *(
        ("a.csv", NAMED.replace("text with", "täxt with").encode(encoding), {}, f"-f {name} ")
        for encoding, name in (("utf-16", "UTF-16"), ("latin-1", "LATIN1"))
    ),
    ("a.csv", f"Doc ID,Description,Library,year\n{DOCS}\n", {}, "label='Library'"),
    ("a.jsonl", rows(label=list("01234")), {"kind": "regression", "classes": 7}, "has no classes"),
    (
        "a.jsonl",
        rows(label=list("ab"), author=[["a", "b"]]),
        {"split_by": "author"},
        "groups by author",
    ),
    ("a.tsv", TSV, {"text": 3, "label": 9}, "label column", "'9'"),
    ("a.tsv", TSV, {"text": 3, "label": 4, "where": "year=1"}, "'year'"),
    # Questions, choices, pairs and written answers.
    (
        "a.jsonl",
        asked(context="a b", question="q", answers=["zzz"]),
        {},
        "row 1 of",
        "context",
        "got zzz",
    ),
    ("a.jsonl", asked(context="", question="q", answers=["a"]), {}, "the context is not text"),
    ("a.jsonl", asked(question="q", choices=["x"], answer=0), {}, "two choices", "got 1"),
    ("a.jsonl", asked(**CHOICE, answer=7), {}, "the 2 choices", "got 7"),
    ("a.jsonl", asked(**CHOICE), {}, "no label column"),
    (
        "a.jsonl",
        asked(sentence1="a", sentence2="b", score="high"),
        {},
        "score",
        "number",
        "got high",
    ),
    ("a.jsonl", asked(sentence1="a", sentence2="b", score=2), {}, "scores", "got only '2.0'"),
    ("a.jsonl", asked(text="a", score=2), {"kind": "similarity"}, "no pair column"),
    ("a.jsonl", asked(context="a", question="q", answers=[]), {}, "50 × train: no answer"),
    (
        "a.jsonl",
        asked(question="who", answer=None),
        {"kind": "generation"},
        "50 × train: no answer",
    ),
    (
        "a.jsonl",
        asked(question="who"),
        {"kind": "generation"},
        "label column",
        "got question",
        "output, target",
    ),
    ("a.jsonl", asked(question=" ", answers=["a"]), {"kind": "cloze-qa"}, "question", "got ' '"),
    (
        "a.jsonl",
        asked(question="who?", reply="a"),
        {"kind": "cloze-qa"},
        "label",
        "got question, reply",
    ),
    *(
        ("a.jsonl", choice_rows(answers, choices), {}, f"the 3 choices; got {got};")
        for answers, choices, got in (
            ([0, 1, 2, 3], PLAIN, 3),
            (["1", "2", "3", "4"], COLUMNS, 4),
            ([1, 2, 3, 4], PLAIN, 4),
            # The upper case of this letter has two characters.
            ([0, 1, "ß"], PLAIN, "ß"),
        )
    ),
    ("a.jsonl", choice_rows([0, 1, -1], PLAIN), {}, "missing='-1'"),
    ("a.json", json.dumps(SQUAD), {}, "an object without '"),
    ("a.json", json.dumps(SITUATION), {}, "an object without '"),
    ("a.jsonl", WRITTEN, {"card": "nq"}, "card", "'nq'"),
    ("a.jsonl", WRITTEN, {"card": "xsum"}, "'document'", "allowed: essence, text"),
    ("a.jsonl", WRITTEN, {**WRITE, "beams": 0}, "beams", "got 0; allowed: a whole number ≥ 1"),
    ("a.jsonl", WRITTEN, {**WRITE, "max_target": 2}, "max_target", "got 2"),
    ("a.jsonl", WRITTEN, {**WRITE, "metric": "matthews"}, "metric", "generation", "got matthews"),
    ("a.jsonl", WRITTEN, {**WRITE, "beams": "two"}, "beams", "got 'two'"),
    ("a.jsonl", WRITTEN, {"label": "essence", "beams": 2}, "sequence-classification", "'beams'"),
    ("a.jsonl", OTHERS, {}, "row 41 of", "'question'", "got query, reply"),
    ("a.jsonl", OTHERS, {"card": "nq-open"}, "'question'", "allowed: query, reply"),
]
ROWS = [
    *(
        Refusal(f"labels {n}: {name} {facts[0]}", partial(loaded, name, content, **options), facts)
        for n, (name, content, options, *facts) in enumerate(FILES)
    ),
    *(
        Refusal(
            f"words of CoNLL-U with the number {number}",
            lambda at, row=f"{number}{CONLLU}": [*read_conllu(written(at, "a.conllu", row))],
            ("CoNLL-U", "numbered"),
        )
        for number in ("one", "1-3", "3-2")
    ),
    Refusal(
        "labels: a line that is not JSON",
        partial(loaded, "a.jsonl", '{"text": "a", "label": "b"}\nnot json\n'),
        ("line 2 of", "JSON"),
    ),
    Refusal(
        "labels: a data set that is not on the hub",
        lambda _: load_task("open-trivia-qa"),
        ("'open-trivia-qa'", "folder"),
    ),
]
