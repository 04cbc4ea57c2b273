"""Tasks: named, labelled rows in three splits, from the bundled data, a file, a folder or the hub.

A task says what a checkpoint is judged by, so what is left out or moved is fixed and said:

- classes are those of *train*. A test row with a class that train does not have stays, and counts as wrong;
- a row without a label (empty, or −1) is skipped and counted;
- without a test split, or with one that has no labels, dev is the test; without dev, 15 % of train is dev;
- a single file is cut 70/15/15. All cuts go by a hash of the text, so equal texts stay on one side, and a row
  stays where it is when others are added.
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

from maskwise.corpus import bundled_path
from maskwise.errors import MaskwiseError, unknown_name
from maskwise.specs import parse_call
from maskwise.tasks.metrics import METRICS
from maskwise.tasks.readers import READERS, Record, ending_of, read_hub, read_records
from maskwise.tasks.rows import KINDS, Fields, Kind, Row, class_names, counted, find_fields, kind_of, make_row

SPLITS = ("train", "dev", "test")
BUNDLED_TASKS = {
    "banking77": "banking77",
    "clinc150": "clinc150",
    "ud-pos": "ud_ewt_pos",
    "ud-relations": "ud_ewt_pos",
}
_LABELS_OF = {"ud-pos": "tags", "ud-relations": "relations"}
_WITH_OPTIONS = re.compile(r"(?P<spec>.+?)\((?P<options>.*)\)$")
_SPLIT_OF = {"train": "train", **dict.fromkeys(("dev", "validation", "valid", "val"), "dev"), "test": "test"}
_BIO = re.compile(r"O$|[BIES]-.")


@dataclass(frozen=True, eq=False)
class Task:
    """What a checkpoint is judged by.

    Attributes:
        name: for records and reports.
        kind: one of ``KINDS``.
        metric: a name in ``metrics.METRICS``.
        labels: the classes of train, sorted; a class is its place here.
        splits: train, dev and test; rows are {"text", "pair" (or None), "label"} or {"tokens", "tags"}.
        skipped: "split: reason" → rows left out.
    """

    name: str
    kind: Kind
    metric: str
    labels: tuple[str, ...]
    splits: Mapping[str, list[Row]]
    skipped: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that a score depends on: kind, metric, classes and rows."""
        content = [self.kind, self.metric, self.labels, [self.splits[split] for split in SPLITS]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def test_items(self) -> int:
        """How many things the score is over: rows, or words."""
        return sum(len(row["tags"]) if "tags" in row else 1 for row in self.splits["test"])

    def facts(self) -> dict[str, Any]:
        """What study.json says of a task."""
        return {
            "metric": self.metric,
            "kind": self.kind,
            "classes": len(self.labels),
            "test_items": self.test_items,
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
        sequences = self.kind == "sequence-classification"
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
    text_field: str | None = None,
    pair_field: str | None = None,
    label_field: str | None = None,
    metric: str | None = None,
    train_rows: int | None = None,
    name: str | None = None,
) -> Task:
    """A task from almost anything.

    Args:
        spec: one of

            - a bundled name: banking77, clinc150, ud-pos, ud-relations;
            - a file, cut 70/15/15: .jsonl, .csv or .tsv with a header, .conllu, .conll, .iob2 (all also .gz),
              .parquet. Where every record has a ``split``, that decides;
            - a folder with ``train.*`` and ``dev.*`` (or ``validation.*``) and/or ``test.*``;
            - ``hf:ID`` or ``hf:ID:CONFIG`` for ``datasets.load_dataset``;
            - any of these with arguments of this function behind it: ``ud-pos(train_rows=300)``.
        kind: one of ``KINDS``; found from the columns if not given (a list of tokens, or a text).
        text_field, pair_field, label_field: the columns; looked for among the usual names if not given.
        metric: a name in ``METRICS``; else entity-f1 for BIO tags, accuracy for everything else.
        train_rows: see ``Task.with_train_rows``.
        name: what records call it; else made from ``spec``.

    Raises:
        MaskwiseError: if there is nothing there, it cannot be read, has no labels or only one class, tokens
            and tags differ in number, or a split is empty.
    """
    options = _WITH_OPTIONS.match(str(spec))
    if options and not Path(spec).exists():
        return _load_with(options["spec"], options["options"])
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind of task", kind, KINDS)
    if metric is not None and metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    spec, where = str(spec), f"task {str(spec)!r}"
    found = _records(spec)
    given = Fields(text_field, pair_field, label_field or _LABELS_OF.get(spec))
    first = next((records[0] for records in found.values() if records), {})
    of_kind = cast(Kind, kind) if kind else kind_of(first, given)
    skipped: Counter[str] = Counter()
    splits: dict[str, list[Row]] = {}
    for split, records in found.items():
        fields = find_fields(of_kind, records[0], given, where) if records else given
        places = (f"row {number} of {split} of {where}" for number in range(1, len(records) + 1))
        made = [make_row(of_kind, record, fields, place) for record, place in zip(records, places)]
        skipped.update(f"{split}: {row}" for row in made if isinstance(row, str))
        splits[split] = [row for row in made if not isinstance(row, str)]
    splits = _three(splits)
    for split in SPLITS:
        if not splits[split]:
            do = "label more rows (empty and −1 mean: not labelled)" if skipped else "more rows are needed"
            got = f"skipped {counted(skipped)}" if skipped else None
            raise MaskwiseError(f"the {split} split of {where} is empty", got=got, do=do)
    labels = class_names(of_kind, splits["train"], where, skipped)
    task = Task(name or _short_name(spec), of_kind, _metric(metric, of_kind, labels), labels, splits, skipped)
    return task.with_train_rows(train_rows)


def _load_with(spec: str, options: str) -> Task:
    """A task with arguments written behind its name."""
    given = parse_call(f"task({options})").kwargs
    allowed = [name for name in inspect.signature(load_task).parameters if name != "spec"]
    for name in given:
        if name not in allowed:
            raise unknown_name(f"argument of task {spec!r}", name, allowed)
    return load_task(spec, **given)


def _records(spec: str) -> dict[str, list[Record]]:
    """Raw records by split; "all" where there is only one file without splits."""
    if spec.startswith("hf:"):
        return _by_split(spec, read_hub(spec))
    path = bundled_path(BUNDLED_TASKS[spec]) if spec in BUNDLED_TASKS else Path(spec).expanduser()
    if path.is_dir():
        files = {file.name.split(".")[0]: file for file in sorted(path.iterdir()) if ending_of(file)}
        return _by_split(spec, {n: read_records(files[n]) for n in files if n in _SPLIT_OF})
    if not path.is_file():
        if "/" not in spec and "." not in spec:
            raise unknown_name("task", spec, BUNDLED_TASKS)
        raise MaskwiseError(f"task file {spec!r} does not exist", do="give a file, a folder or hf:ID")
    records = read_records(path)
    if not records or not all("split" in record for record in records):
        return {"all": records}
    named: dict[str, list[Record]] = {}
    for record in records:
        if record["split"] not in _SPLIT_OF:
            raise unknown_name(f"split in {spec}", record["split"], _SPLIT_OF)
        named.setdefault(record["split"], []).append(record)
    return _by_split(spec, named)


def _by_split(spec: str, named: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Under our names, in their order; other splits are left out."""
    found = {_SPLIT_OF[name]: records for name, records in named.items() if name in _SPLIT_OF}
    if "train" not in found:
        allowed = f"train with dev (validation) and/or test; of files: {', '.join(READERS)}"
        raise MaskwiseError(
            f"no training split in {spec}", got=", ".join(named) or "nothing", allowed=allowed
        )
    return {split: found[split] for split in SPLITS if split in found}


def _metric(metric: str | None, kind: Kind, labels: tuple[str, ...]) -> str:
    bio = kind == "token-classification" and all(_BIO.match(label) for label in labels)
    if metric == "entity-f1" and not bio:
        raise MaskwiseError("entity-f1 needs tags such as O, B-x, I-x", got=", ".join(labels[:5]))
    return metric or ("entity-f1" if bio else "accuracy")


def _three(splits: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """train, dev and test, by the rules at the top of this file."""
    if "all" in splits:
        rows = splits["all"]
        return {s: _between(rows, *cut) for s, cut in zip(SPLITS, ((0, 0.7), (0.7, 0.85), (0.85, 1)))}
    train, dev, test = (splits.get(split, []) for split in SPLITS)
    if not test:
        dev, test = [], dev
    if not dev:
        train, dev = _between(train, 0, 0.85), _between(train, 0.85, 1)
    return {"train": train, "dev": dev, "test": test}


def _between(rows: list[Row], low: float, high: float) -> list[Row]:
    return [row for row in rows if low <= _place(row) < high]


def _place(row: Row) -> float:
    """A number in [0, 1) that is a function of the text."""
    text = "\t".join(row["tokens"]) if "tokens" in row else row["text"]
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def _short_name(spec: str) -> str:
    if spec.startswith("hf:"):
        return spec.removeprefix("hf:").replace("/", "-").replace(":", "-")
    return Path(spec).name.split(".")[0]
