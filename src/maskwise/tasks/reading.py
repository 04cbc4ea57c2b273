"""Read the records of each split of a task from files, a folder or the hub.

The name of a file contains the name of its split: ``train.tsv``, ``mine-dev.csv``,
``en_ewt-ud-test.iob2.gz``, ``train-v1.1.json``. A card says how published files are read whose
names or tables do not follow such rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypeAlias, TypedDict

import yaml

from maskwise.base.errors import MaskwiseError, require_known, unknown_name
from maskwise.base.folders import FilesState, files_state
from maskwise.tasks.columns import has_field, label_of
from maskwise.tasks.splits import ALL, SPLITS
from maskwise.text import bundled_path
from maskwise.text.source import (
    LABELS,
    ending_of,
    inside,
    paths,
    read_hub,
    read_records,
    source_path,
)
from maskwise.text.tables import FieldValues

BUNDLED_TASKS = {
    "banking77": "banking77",
    "clinc150": "clinc150",
    "trivia": "trivia",
    "ud-pos": "ud_ewt_pos",
    "ud-relations": "ud_ewt_pos",
    "wikigold": "wikigold",
    "wnut17": "wnut17",
}
"""The files of the bundled tasks, by the names of the tasks."""
WHAT_THEY_ARE = {
    "banking77": "sequence-classification, 20 classes, 1,200 training rows, 800 test items",
    "clinc150": "sequence-classification, 20 classes, 1,200 training rows, 600 test items",
    "trivia": "sequence-classification, 10 classes, 1,000 training rows, 700 test items",
    "ud-pos": "token-classification, 17 classes, 1,500 training rows, 8,016 test items",
    "ud-relations": "token-classification, 36 classes, 1,500 training rows, 8,016 test items",
    "wikigold": "token-classification, 5 classes, 1,316 training rows, 5,833 test items",
    "wnut17": "token-classification, 13 classes, 1,500 training rows, 23,394 test items",
}
"""What the bundled tasks are. It is written here, because loading all of them takes seconds."""
SPLIT_OF = {
    "train": "train",
    **dict.fromkeys(("dev", "validation", "valid", "val"), "dev"),
    "test": "test",
}
BySplit: TypeAlias = dict[str, list[FieldValues]]


# Cards
# -------------------------------------------------------------------------------------------


class Card(TypedDict):
    """A published task from cards.yaml, where the fields are described.

    ``options`` are arguments of ``load_task``.
    """

    title: str
    source: str
    licence: str
    options: dict[str, Any]
    hub: NotRequired[str]
    files: NotRequired[dict[str, str]]
    columns: NotRequired[list[str]]
    folders: NotRequired[list[str]]


CARDS: Mapping[str, Card] = yaml.safe_load(
    Path(__file__).with_name("cards.yaml").read_text(encoding="utf-8")
)
"""Published tasks, keyed by name, with their files and their arguments for ``load_task``."""


class Layout(NamedTuple):
    """What the files of a task do not say themselves.

    Attributes:
        header: whether tables begin with the names of their columns.
        columns: the names of the columns of tables without a header, which are separated by tabs.
        files: a pattern for the names of the files of each split.
    """

    header: bool = True
    columns: Sequence[str] = ()
    files: Mapping[str, str] = {}


def card_of_folder(folder: Path) -> str | None:
    """Return the card that lists a folder's name, if the folder has files of this card."""
    for name, card in CARDS.items():
        known = folder.absolute().name.lower() in card.get("folders", ())
        if known and folder.is_dir() and _files_named(folder, card.get("files", {})):
            return name
    return None


# Splits of a source
# -------------------------------------------------------------------------------------------


def read_splits(spec: str, layout: Layout) -> BySplit:
    """Read the records of each split. If there are no splits, return all records under "all".

    Args:
        spec: a source, as in ``load_task``, without arguments.
        layout: how its files are written.

    Raises:
        MaskwiseError: the source does not exist, has no training split, or has two files for the
            same split.
    """
    if spec.startswith("hf:"):
        return _by_split(spec, read_hub(spec))
    path = _path(spec)
    if path.is_dir():
        return _read_folder(spec, path, layout)
    if path.is_file():
        return _by_column(spec, _read_file(path, layout))
    if "/" not in spec and "." not in spec:
        known = [*BUNDLED_TASKS, *CARDS]
        raise unknown_name("task", spec, known, do="or give a file or a folder that exists")
    raise MaskwiseError(
        f"task file {spec!r} does not exist",
        got=str(path.absolute()),
        do="give a file, a folder or hf:ID",
    )


def state_of_files(spec: str) -> FilesState:
    """Return the name, modification time and size of each file of a task."""
    return files_state(_path(spec))


def is_bundled(spec: str) -> bool:
    """Return whether a source is part of maskwise, so that its rows never change."""
    return spec in BUNDLED_TASKS or spec.startswith("bundled:")


def _path(spec: str) -> Path:
    if spec in BUNDLED_TASKS:
        return bundled_path(BUNDLED_TASKS[spec])
    return source_path(spec)


def _read_folder(spec: str, folder: Path, layout: Layout) -> BySplit:
    named = _files_named(folder, layout.files)
    if named:
        by_split: BySplit = {}
        for split, paths in named.items():
            by_split[split] = []
            for path in paths:
                by_split[split] += _read_file(path, layout)
        return by_split
    readable = [path for path in _files(folder) if ending_of(path, LABELS)]
    by_name = _files_by_name(folder, readable)
    if not by_name and len(readable) == 1:
        return {ALL: _read_file(readable[0], layout)}
    if not by_name:
        raise MaskwiseError(
            f"no file in {folder} is named after a split",
            got=", ".join(path.name for path in _files(folder)) or "no files",
            allowed=f"train with dev (validation) and/or test, in files: {', '.join(LABELS)}",
        )
    return _by_split(spec, {split: _read_file(path, layout) for split, path in by_name.items()})


def _read_file(path: Path, layout: Layout) -> list[FieldValues]:
    if layout.columns and layout.header:
        # Some rows of STS-B have more cells than columns.
        rows = read_records(path, header=False, usual="\t")
        return [dict(zip(layout.columns, row.values())) for row in rows]
    # A card may name tables whose extension is .txt.
    usual = "\t" if layout.files and not ending_of(path, LABELS) else None
    return read_records(path, header=layout.header, usual=usual)


def _files(folder: Path) -> list[Path]:
    # Hidden files are no labels, such as the schema of a recipe or macOS's "._train.csv".
    return [path for path in sorted(folder.glob("[!.]*")) if path.is_file()]


def _files_named(folder: Path, patterns: Mapping[str, str]) -> dict[str, list[Path]]:
    """Return the files of each split by the patterns of a card."""
    found: dict[str, list[Path]] = {}
    for split, pattern in patterns.items():
        for path in _files(folder):
            if fnmatch(path.name, pattern) and (ending_of(path, LABELS) or ".txt" in pattern):
                found.setdefault(split, []).append(path)
    return found


def _files_by_name(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Return the file of each split. ``train.csv`` takes precedence over ``mine-train.csv``."""
    exact: dict[str, list[Path]] = {}
    loose: dict[str, list[Path]] = {}
    for file in files:
        name = file.name.lower()
        split = SPLIT_OF.get(name.split(".")[0])
        if split:
            exact.setdefault(split, []).append(file)
        words = {SPLIT_OF[word] for word in re.split(r"[^a-z]+", name) if word in SPLIT_OF}
        if len(words) == 1:
            loose.setdefault(words.pop(), []).append(file)
    found = {}
    for split, candidates in {**loose, **exact}.items():
        if len(candidates) > 1:
            raise MaskwiseError(
                f"there are two files for {split} in {folder}",
                got=", ".join(file.name for file in candidates),
                do="keep one of them in the folder",
            )
        found[split] = candidates[0]
    return found


def _by_column(spec: str, records: list[FieldValues]) -> BySplit:
    """Divide the records of one file by its column ``split``, if there is one."""
    if not any("split" in record for record in records):
        return {ALL: records}
    by_name: BySplit = {}
    for record in records:
        # In JSON, this cell may be a list, which cannot be a key.
        split = str(record.get("split", ""))
        require_known(f"split in {spec}:", split, SPLIT_OF)
        by_name.setdefault(split, []).append(record)
    return _by_split(spec, by_name)


def _by_split(spec: str, by_name: BySplit) -> BySplit:
    """Rename the splits to train, dev and test, and drop other splits."""
    known = [name for name in by_name if name in SPLIT_OF]
    splits = {SPLIT_OF[name]: by_name[name] for name in known}
    if len(splits) < len(known):
        raise MaskwiseError(
            f"{spec} has two names for the same split",
            got=", ".join(known),
            do="use only one name for each split, and merge its rows",
        )
    if not splits:
        raise MaskwiseError(
            f"there is no training split in {spec}",
            got=", ".join(by_name) or "nothing",
            allowed=f"train with dev (validation) and/or test, in files: {', '.join(LABELS)}",
        )
    return {split: splits[split] for split in SPLITS if split in splits}


# Records
# -------------------------------------------------------------------------------------------


def merged_record(records: Sequence[FieldValues]) -> FieldValues:
    """Return one record with every column of the records, and the first value of each column.

    JSON lines may leave out empty columns, so the first record may lack some columns.
    """
    whole = dict(records[0])
    for record in records:
        if not record.keys() <= whole.keys():
            # New columns come last; existing columns keep their position and value.
            whole = {**whole, **record, **whole}
    return whole


def records_where(records: list[FieldValues], where: str, place: str) -> list[FieldValues]:
    """Return the records that meet the condition ``where``, which is "column=value"."""
    column, sign, value = str(where).partition("=")
    if not sign or not isinstance(where, str):
        raise MaskwiseError("where must be 'column=value'", got=where)
    require_field(records, column, f"column of {place}:")
    wanted = label_of(value)
    found = []
    for record in records:
        cell = inside(record, column)
        label = label_of(cell)
        # JSON's true is called True in Python.
        if label == wanted or (isinstance(cell, bool) and str(label).lower() == wanted):
            found.append(record)
    return found


def require_field(records: Sequence[FieldValues], field: str, what: str) -> None:
    """Raise a `MaskwiseError` if there are records, and none has a field, or path."""
    if records and not any(has_field(record, field) for record in records):
        known = chain.from_iterable(map(paths, records))
        raise unknown_name(what, field, set(known))
