"""Tasks: named, labelled rows in three splits, from the bundled data, a file, a folder or the hub.

A task says what a checkpoint is judged by, so what is left out or moved is fixed and said:

- classes are those of *train*. A test row with a class that train does not have stays, and counts as wrong;
- a row without a label (empty, or −1) is skipped and counted;
- without a test split, or with one that has no labels, dev is the test; without dev, 15 % of train is dev;
  without train, dev is train. ``Task.notes`` and study.json say which of these was done;
- a single file is cut 70/15/15. All cuts go by a hash of the text (of questions: of the context), so equal texts
  stay on one side, and a row stays where it is when others are added;
- what learns nothing from train (zero-shot similarity) is judged on test, else dev, else all rows.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.specs import Call, parse_call
from maskwise.tasks.layouts import SPLITS, read_splits
from maskwise.tasks.metrics import METRICS
from maskwise.tasks.readers import Record
from maskwise.tasks.rows import (
    CLASSES,
    FROZEN,
    KINDS,
    METRICS_OF,
    UNLABELLED,
    Fields,
    Kind,
    Row,
    class_names,
    counted,
    find_fields,
    kind_of,
    make_row,
    texts_of,
)

POOLINGS = ("mean", "cls")
_LABELS_OF = {"ud-pos": "tags", "ud-relations": "relations"}
_WITH_OPTIONS = re.compile(r"(?P<spec>.+?)\((?P<options>.*)\)$")
_BIO = re.compile(r"O$|[BIES]-.")


@dataclass(frozen=True, eq=False)
class Task:
    """What a checkpoint is judged by.

    Attributes:
        name: for records and reports.
        kind: one of ``KINDS``.
        metric: a name in ``metrics.METRICS``.
        labels: the classes of train, sorted; a class is its place here.
        splits: train, dev and test; rows are {"text", "pair" (or None), "label" or "score"}, {"tokens", "tags"},
            or those of ``questions``.
        skipped: "split: reason" → rows left out.
        notes: how the splits were made, where the data did not have all three.
        pooling: what stands for a sentence, in kinds that leave the encoder as it is: mean, or cls.
    """

    name: str
    kind: Kind
    metric: str
    labels: tuple[str, ...]
    splits: Mapping[str, list[Row]]
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pooling: str = "mean"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that a score depends on: kind, metric, classes and rows."""
        content: list[Any] = [self.kind, self.metric, self.labels, [self.splits[s] for s in SPLITS]]
        content += [self.pooling] if self.kind in FROZEN else []
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def test_items(self) -> int:
        """How many things the score is over: rows, or words."""
        return sum(len(row["tags"]) if "tags" in row else 1 for row in self.splits["test"])

    @property
    def frozen(self) -> bool:
        """Whether the encoder is left as it is, so that nothing is trained and nothing random."""
        return self.kind in FROZEN

    def texts(self) -> list[tuple[str, ...]]:
        """The texts of every test row."""
        return [texts_of(row) for row in self.splits["test"]]

    def facts(self) -> dict[str, Any]:
        """What study.json says of a task; ``notes`` only where there are some."""
        return {
            "metric": self.metric,
            "kind": self.kind,
            "classes": len(self.labels),
            "test_items": self.test_items,
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    def with_train_rows(self, count: int | None) -> Task:
        """The same task with at most ``count`` rows to learn from; dev and test stay.

        Where a random start does as well with all rows, few of them show what pre-training is worth. Classes
        of sequences get equally many, and which ones is decided by the hash of the text, so that fewer rows
        are always a part of more.
        """
        rows = self.splits["train"]
        if count is None or count >= len(rows):
            return self
        sequences = self.kind in CLASSES
        least = len(self.labels) if sequences else 1
        if count < least:
            raise MaskwiseError(
                "train_rows is too small", got=count, allowed=f"≥ {least}, one for each class"
            )
        met: Counter[str] = Counter()
        ranked = []
        for place, row in enumerate(sorted(rows, key=_place)):
            label = row["label"] if sequences else ""
            met[label] += 1
            ranked.append((met[label], place, row))
        chosen = [row for _, _, row in sorted(ranked, key=lambda item: item[:2])[:count]]
        return replace(self, splits={**self.splits, "train": chosen})


def load_task(
    spec: str | Path,
    *,
    kind: str | None = None,
    text: str | int | None = None,
    pair: str | int | None = None,
    label: str | int | None = None,
    where: str | None = None,
    metric: str | None = None,
    pooling: str = "mean",
    train_rows: int | None = None,
    name: str | None = None,
) -> Task:
    """A task from almost anything.

    Args:
        spec: one of

            - a bundled name: banking77, clinc150, trivia, ud-pos, ud-relations, wikigold, wnut17;
            - a file, cut 70/15/15: .jsonl, .csv, .tsv, .conllu, .conll, .iob2, SQuAD's .json (all also .gz),
              .parquet. Where every record has a ``split``, that decides;
            - a folder with files for train, dev (or validation) and/or test, or SentEval's with a file a class;
            - ``hf:ID`` or ``hf:ID:CONFIG`` for ``datasets.load_dataset``;
            - any of these with arguments of this function behind it: ``ud-pos(train_rows=300)``.
        kind: one of ``KINDS``; found from the columns if not given, but for those that leave the encoder as it
            is: zero-shot-similarity and sentence-embedding.
        text, pair, label: the columns (see ``rows.Fields``), by name, or in tables without a header by place
            from 1; looked for among the usual names if not given.
        where: "column=value": only rows that have it, such as "year=2014".
        metric: one of ``METRICS_OF[kind]``; else the first of them, entity-f1 for BIO tags, matthews for CoLA.
        pooling: "mean" or "cls": see ``Task``.
        train_rows: see ``Task.with_train_rows``.
        name: what records call it; else made from ``spec``.

    Raises:
        MaskwiseError: if there is nothing there, it cannot be read, has no labels or only one class, tokens
            and tags differ in number, an answer is not in its context, or a split is empty.
    """
    options = _WITH_OPTIONS.match(str(spec))
    if options and not Path(spec).exists():
        return _load_with(options["spec"], options["options"])
    for what, value, known in (
        ("kind of task", kind, KINDS),
        ("metric", metric, METRICS),
        ("pooling", pooling, POOLINGS),
    ):
        if value is not None and value not in known:
            raise unknown_name(what, value, known)
    spec, place = str(spec), f"task {str(spec)!r}"
    columns = [text, pair, label if label is not None else _LABELS_OF.get(spec)]
    header = not any(isinstance(column, int) for column in columns)
    given = Fields(*(None if column is None else str(column) for column in columns))
    found = read_splits(spec, header=header)
    if where is not None:
        found = {split: _only(records, where, place) for split, records in found.items()}
    of_kind = cast(Kind, kind) if kind else kind_of(next((r for r in found.values() if r), []), given)
    skipped: Counter[str] = Counter()
    splits: dict[str, list[Row]] = {}
    fields = given
    for split, records in found.items():
        if split == "test" and records and fields.label and fields.label not in records[0]:
            skipped[f"test: {UNLABELLED}"] = len(records)  # as the benchmarks publish it
            records = []
        fields = find_fields(of_kind, records[0], given, place) if records else fields
        rows = (f"row {number} of {split} of {place}" for number in range(1, len(records) + 1))
        made = [make_row(of_kind, record, fields, row) for record, row in zip(records, rows)]
        skipped.update(f"{split}: {row}" for row in made if isinstance(row, str))
        splits[split] = [row for row in made if not isinstance(row, str)]
    splits, notes = _untaught(splits) if of_kind == "zero-shot-similarity" else _three(splits, place)
    for split in SPLITS if of_kind != "zero-shot-similarity" else ("test",):
        if not splits[split]:
            do = "label more rows (empty and −1 mean: not labelled)" if skipped else "more rows are needed"
            got = f"skipped {counted(skipped)}" if skipped else None
            raise MaskwiseError(f"the {split} split of {place} is empty", got=got, do=do)
    taught = splits["test" if of_kind == "zero-shot-similarity" else "train"]
    labels = class_names(of_kind, taught, place, skipped)
    name = name or _short_name(spec, of_kind)
    metric = _metric(metric, of_kind, labels, cola=Path(spec).name.lower() == "cola")
    task = Task(name, of_kind, metric, labels, splits, skipped, notes, pooling)
    return task.with_train_rows(train_rows)


def _load_with(spec: str, options: str) -> Task:
    """A task with arguments written behind its name."""
    allowed = [name for name in inspect.signature(load_task).parameters if name != "spec"]
    written = f"{spec}({options})"
    try:
        call = parse_call(f"task({options})")
    except MaskwiseError:
        call = None
    if call is None or call.args:
        do = f'did you mean {options}(kind="{spec}")?' if spec in KINDS else "for example (train_rows=300)"
        what = f"cannot read the arguments of task {written!r}"
        raise MaskwiseError(what, allowed=f"name=value, of {', '.join(allowed)}", do=do)
    for name in call.kwargs:
        if name not in allowed:
            raise unknown_name(f"argument of task {spec!r}", name, allowed)
    given: dict[str, Any] = {  # bare words are text
        name: value.written if isinstance(value, Call) else value for name, value in call.kwargs.items()
    }
    if not isinstance(given.get("train_rows", 1), int):
        raise MaskwiseError(f"train_rows of task {spec!r}", got=given["train_rows"], allowed="a whole number")
    return load_task(spec, **given)


def _only(records: list[Record], where: str, place: str) -> list[Record]:
    """The records with a column of some value."""
    column, sign, value = where.partition("=")
    if not sign:
        raise MaskwiseError("where is 'column=value'", got=where)
    if records and column not in records[0]:
        raise unknown_name(f"column of {place}", column, map(str, records[0]))
    return [record for record in records if str(record.get(column)) == value]


def _metric(metric: str | None, kind: Kind, labels: tuple[str, ...], *, cola: bool) -> str:
    bio = kind == "token-classification" and all(_BIO.match(label) for label in labels)
    if metric == "entity-f1" and not bio:
        raise MaskwiseError("entity-f1 needs tags such as O, B-x, I-x", got=", ".join(labels[:5]))
    if metric and metric not in METRICS_OF[kind]:
        raise MaskwiseError(f"no metric for {kind}", got=metric, allowed=", ".join(METRICS_OF[kind]))
    usual = "matthews" if cola and kind in CLASSES else METRICS_OF[kind][0]
    return metric or ("entity-f1" if bio else usual)


Made = tuple[dict[str, list[Row]], tuple[str, ...]]


def _three(splits: dict[str, list[Row]], place: str) -> Made:
    """train, dev and test, by the rules at the top of this file, and what was done."""
    if "all" in splits:
        cuts = zip(SPLITS, ((0, 0.7), (0.7, 0.85), (0.85, 1)), strict=True)
        return {split: _between(splits["all"], *cut) for split, cut in cuts}, ("one file, cut 70/15/15",)
    train, dev, test = (splits.get(split, []) for split in SPLITS)
    notes = []
    if "train" not in splits:
        if not (dev and test):
            allowed = "train with dev (validation) and/or test, or dev with test"
            raise MaskwiseError(f"no training split in {place}", got=", ".join(splits), allowed=allowed)
        train, dev = dev, []
        notes.append("no train: dev is train")
    if not test:
        dev, test = [], dev
        notes.append("no labelled test: dev is test")
    if not dev:
        train, dev = _between(train, 0, 0.85), _between(train, 0.85, 1)
        notes.append("dev is 15 % of train")
    return {"train": train, "dev": dev, "test": test}, tuple(notes)


def _untaught(splits: dict[str, list[Row]]) -> Made:
    """Nothing is learned, so that nothing need be kept apart: the first of these that there is, is the test."""
    source = next((name for name in ("test", "dev", "all", "train") if splits.get(name)), "test")
    dev = splits.get("dev", []) if source == "test" else []
    notes = () if source == "test" else (f"test is {source}" + (" rows" if source == "all" else ""),)
    return {"train": [], "dev": dev, "test": splits.get(source, [])}, notes


def _between(rows: list[Row], low: float, high: float) -> list[Row]:
    return [row for row in rows if low <= _place(row) < high]


def _place(row: Row) -> float:
    """A number in [0, 1) that is a function of the text."""
    text = "\t".join(row["tokens"]) if "tokens" in row else row.get("text") or texts_of(row)[0]
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def _short_name(spec: str, kind: Kind) -> str:
    end = {"zero-shot-similarity": "-zero-shot", "sentence-embedding": "-embedding"}.get(kind, "")
    if spec.startswith("hf:"):
        return spec.removeprefix("hf:").replace("/", "-").replace(":", "-") + end
    return Path(spec).absolute().name.split(".")[0] + end
