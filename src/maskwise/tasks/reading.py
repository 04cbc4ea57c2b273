"""Read the records of each split of a task from files, a folder or the hub.

The name of a file contains the name of its split: ``train.tsv``, ``sts-dev.csv``,
``SICK_trial.txt``, ``en_ewt-ud-test.iob2.gz``, ``train-v1.1.json``. For a few published tables
without a header, this module lists the columns.

If files do not define the splits, a hash of each row's text decides its split. Rows with equal
texts are therefore in the same split, and a row keeps its split when other rows are added. For
questions, the text that several questions share is hashed. The same hash splits the labels from
which a masking policy is learned, because a policy must not see the test rows of a task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NotRequired, TypeAlias, TypedDict, TypeVar

import yaml

from maskwise.errors import MaskwiseError, plural, require_known, unknown_name
from maskwise.folders import FilesState, files_state
from maskwise.tasks.columns import Names, label_of, place_of
from maskwise.tasks.task import SPLITS
from maskwise.text import bundled_path
from maskwise.text.documents import source_path
from maskwise.text.labelled import (
    READERS,
    Record,
    ending_of,
    read_cells,
    read_hub,
    read_records,
)

BUNDLED_TASKS = {
    "banking77": "banking77",
    "clinc150": "clinc150",
    "trivia": "trivia",
    "ud-pos": "ud_ewt_pos",
    "ud-relations": "ud_ewt_pos",
    "wikigold": "wikigold",
    "wnut17": "wnut17",
}


# Arguments of ``load_task``.
TableOptions: TypeAlias = dict[str, Any]


class Card(TypedDict):
    """A published task from cards.yaml.

    ``options`` are arguments of ``load_task``. ``files`` maps each split to a pattern for the names
    of its files, if these names do not contain the split.
    """

    title: str
    source: str
    licence: str
    options: TableOptions
    hub: NotRequired[str]
    files: NotRequired[dict[str, str]]


CARDS: Mapping[str, Card] = yaml.safe_load(
    Path(__file__).with_name("cards.yaml").read_text(encoding="utf-8")
)
"""Published tasks, keyed by name, with their files and their arguments for ``load_task``."""
_SPLIT_OF = {
    "train": "train",
    **dict.fromkeys(("dev", "validation", "valid", "val"), "dev"),
    "test": "test",
}
# The split for each word that a file name may contain. SemEval calls dev "trial".
_WORDS = {**_SPLIT_OF, "trial": "dev"}
# Columns of published tables without a header, keyed by a pattern for the paths of the tables.
_WITHOUT_HEADER = {
    r"(?i)(^|.*/)cola/(train|dev)\.tsv(\.gz)?$": ("source", "label", "mark", "sentence"),
    r"(?i)(^|.*/)sts-(train|dev|test)\.(csv|tsv)(\.gz)?$": (
        "genre",
        "file",
        "year",
        "id",
        "score",
        "sentence1",
        "sentence2",
    ),
}
# Columns for the text that several questions may share, and columns for their answers.
CONTEXT, ANSWERS = ("context", "paragraph", "passage"), ("answers", "answer")
# Rows are split by article only if there are at least this many articles. With fewer articles, a
# split could be empty.
MANY_ARTICLES = 20
T = TypeVar("T")
BySplit: TypeAlias = dict[str, list[Record]]
# (The text whose hash decides the split, the row), for each row.
Keyed: TypeAlias = Sequence[tuple[str, T]]


def read_splits(
    spec: str, *, header: bool = True, files: Mapping[str, str] | None = None
) -> BySplit:
    """Read the records of each split. If there are no splits, return all records under "all".

    Args:
        spec: a source, as in ``load_task``, without arguments.
        header: whether tables begin with the names of their columns.
        files: a pattern for the file names of each split, for folders whose file names do not
            contain the split.

    Raises:
        MaskwiseError: the source does not exist, has no training split, or has two files for the
            same split.
    """
    if spec.startswith("hf:"):
        return _by_split(spec, read_hub(spec))
    path = _path(spec)
    if path.is_dir():
        return _read_folder(spec, path, header, files or {})
    if not path.is_file():
        if "/" not in spec and "." not in spec:
            known = [*BUNDLED_TASKS, *CARDS]
            raise unknown_name("task", spec, known, do="or give a file or a folder that exists")
        raise MaskwiseError(
            f"task file {spec!r} does not exist",
            got=str(path.absolute()),
            do="give a file, a folder or hf:ID",
        )
    records = _read_file(path, header)
    if not any("split" in record for record in records):
        return {"all": records}
    by_name: BySplit = {}
    for record in records:
        # In JSON, this cell may be a list, which cannot be a key.
        split = str(record.get("split", ""))
        require_known(f"split in {spec}", split, _SPLIT_OF)
        by_name.setdefault(split, []).append(record)
    return _by_split(spec, by_name)


def state_of(spec: str) -> FilesState:
    """Return the name, modification time and size of each file of a task."""
    return files_state(_path(spec))


def _path(spec: str) -> Path:
    if spec in BUNDLED_TASKS:
        return bundled_path(BUNDLED_TASKS[spec])
    return source_path(spec)


def _read_file(path: Path, header: bool) -> list[Record]:
    where = path.absolute().as_posix()
    for pattern, names in _WITHOUT_HEADER.items():
        if header and re.match(pattern, where):
            # STS-B's .csv files are separated by tabs. Some rows have more cells than columns.
            rows = read_cells(path, header=False, usual="\t")
            return [dict(zip(names, row.values())) for row in rows]
    # SICK and MRPC are tables, although their file extension is .txt.
    if ending_of(path) is None and path.name.lower().removesuffix(".gz").endswith(".txt"):
        return read_cells(path, header=header)
    return read_records(path, header=header)


def _read_folder(spec: str, folder: Path, header: bool, files: Mapping[str, str]) -> BySplit:
    there = [path for path in sorted(folder.iterdir()) if path.is_file()]
    readable = [path for path in there if ending_of(path)]
    named: BySplit = {}
    for split, pattern in files.items():
        for path in readable:
            if fnmatch(path.name, pattern):
                named.setdefault(split, []).extend(_read_file(path, header))
    if named:
        return named
    by_split = _split_files(folder, there)
    if not by_split and len(readable) == 1:
        return {"all": _read_file(readable[0], header)}
    return _by_split(spec, {split: _read_file(path, header) for split, path in by_split.items()})


def _split_files(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Return the file of each split. ``train.csv`` takes precedence over ``sick-train.csv``."""
    exact: dict[str, list[Path]] = {}
    loose: dict[str, list[Path]] = {}
    for file in files:
        name = file.name.lower().removesuffix(".gz")
        if not (ending_of(file) or name.endswith(".txt")):
            continue
        split = _SPLIT_OF.get(name.split(".")[0])
        if split:
            exact.setdefault(split, []).append(file)
        words = {_WORDS[word] for word in re.split(r"[^a-z]+", name) if word in _WORDS}
        # MNLI has a matched and a mismatched test set; the usual score is on the matched set.
        if len(words) == 1 and "mismatched" not in name:
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


def _by_split(spec: str, by_name: BySplit) -> BySplit:
    """Rename the splits to train, dev and test, and drop other splits."""
    known = [name for name in by_name if name in _SPLIT_OF]
    splits = {_SPLIT_OF[name]: by_name[name] for name in known}
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
            allowed=f"train with dev (validation) and/or test, in files: {', '.join(READERS)}",
        )
    return {split: splits[split] for split in SPLITS if split in splits}


def merged(records: Sequence[Record]) -> Record:
    """Return one record with every column of the records, and the first value of each column.

    JSON lines may leave out empty columns, so the first record may lack some columns.
    """
    whole = dict(records[0])
    for record in records:
        if not record.keys() <= whole.keys():
            # New columns come last; existing columns keep their position and value.
            whole = {**whole, **record, **whole}
    return whole


def records_where(records: list[Record], where: str, place: str) -> list[Record]:
    """Return the records that meet the condition ``where``, which is "column=value"."""
    column, sign, value = where.partition("=")
    if not sign:
        raise MaskwiseError("where must be 'column=value'", got=where)
    if records and column not in merged(records):
        raise unknown_name(f"column of {place}", column, map(str, merged(records)))
    wanted = label_of(value)
    return [record for record in records if label_of(record.get(column)) == wanted]


# Splitting


def shared_names(records: Sequence[Mapping[str, object]]) -> Names:
    """Return the columns whose text decides the split of a question, in order of precedence.

    If there are at least ``MANY_ARTICLES`` article titles, the title decides. Otherwise, the
    context decides.
    """
    titles = {str(record.get("article_title") or "") for record in records}
    if len(titles - {""}) >= MANY_ARTICLES:
        return ("article_title", *CONTEXT)
    return CONTEXT


def shared_text(record: Mapping[str, object], names: Sequence[str]) -> str:
    """Return the text that decides the split of a question, or "" if the record is no question."""
    if any(name in record for name in ("question", *ANSWERS)):
        for name in names:
            value = record.get(name)
            if isinstance(value, str) and value:
                return " ".join(value.split())
    return ""


TEST_SHARE = 0.15
"""The share of the rows of one file that are test rows, and of those that are dev rows."""
FEWEST_GROUPS = 20
"""With fewer groups, the sizes of the splits are far from the wanted sizes too often."""


def group_key(record: Mapping[str, object], column: str | None) -> str:
    """Return the text that decides the split of all rows of a group; "" for a row without one."""
    if column is None:
        return ""
    value = record.get(column)
    if value is None or value != value or not str(value).strip():
        return ""
    return f"{column}={value}"


def groups_note(splits: Mapping[str, Keyed[T]], parts: Mapping[str, Sequence[T]], what: str) -> str:
    """Say how groups of rows were split.

    Args:
        splits: the rows of each split of the files, with the keys of their groups.
        parts: the rows of train, dev and test.
        what: the beginning of messages.

    Raises:
        MaskwiseError: there are few groups, two splits of the files have rows of one group, or the
            share of the test rows differs much from 15 %.
    """
    homes: dict[str, set[str]] = {}
    for split, keyed in splits.items():
        for key, _ in keyed:
            homes.setdefault(key, set()).add(split)
    torn = [key for key, found in homes.items() if len(found) > 1]
    if torn:
        raise MaskwiseError(
            f"{what}: {plural(len(torn), 'group')} in two splits of the files",
            got=f"{torn[0]} in {' and '.join(sorted(homes[torn[0]]))}",
            do="remove the column split, so that the rows are split by their groups",
        )
    if len(homes) < FEWEST_GROUPS:
        raise MaskwiseError(
            f"{what}: too few groups to split",
            got=plural(len(homes), "group"),
            allowed=f"≥ {FEWEST_GROUPS}",
            do="name a finer column, or remove split_by",
        )
    rows = sum(map(len, parts.values()))
    share = len(parts["test"]) / max(1, rows)
    made_here = len(splits) == 1 and bool(parts["train"])
    if made_here and not TEST_SHARE / 2 <= share <= 2 * TEST_SHARE:
        raise MaskwiseError(
            f"{what}: the test groups have {share:.0%} of the rows",
            allowed=f"{TEST_SHARE / 2:.1%} to {2 * TEST_SHARE:.0%}",
            do="name a finer column, or give a column split",
        )
    return f"{len(homes):,} groups, {share:.0%} of the rows are test"


def splits_of(splits: Mapping[str, Keyed[T]], place: str) -> tuple[dict[str, list[T]], Names]:
    """Split keyed rows into train, dev and test by the rules in the docstring of ``loading``.

    Returns:
        The rows of each split, and notes on how the splits were made.
    """
    train, dev, test = (splits.get(split, []) for split in SPLITS)
    if "all" in splits or (train and not dev and not test):
        what = "only train has labels"
        whole = train
        if "all" in splits:
            what = "one file"
            whole = splits["all"]
        parts = {
            "train": _between(whole, 0, 0.7),
            "dev": _between(whole, 0.7, 1 - TEST_SHARE),
            "test": _between(whole, 1 - TEST_SHARE, 1),
        }
        return parts, (f"{what}, split 70/15/15",)
    notes = []
    if "train" not in splits:
        if not (dev and test):
            raise MaskwiseError(
                f"there is no training split in {place}",
                got=", ".join(splits),
                allowed="train with dev (validation) and/or test, or dev with test",
            )
        train = dev
        dev = []
        notes.append("no train split: dev is train")
    if not test:
        test = dev
        dev = []
        notes.append("no labelled test split: dev is test")
    parts = {"train": _between(train), "dev": _between(dev), "test": _between(test)}
    if not dev:
        parts["train"] = _between(train, 0, 0.85)
        parts["dev"] = _between(train, 0.85, 1)
        notes.append("dev is 15 % of train")
    return parts, tuple(notes)


def only_test(splits: Mapping[str, Keyed[T]]) -> tuple[dict[str, list[T]], Names]:
    """Choose test rows for kinds without training: the first non-empty of test, dev, all, train.

    Returns:
        The rows of each split, and a note if another split serves as test.
    """
    filled = [name for name in ("test", "dev", "all", "train") if splits.get(name)]
    source = filled[0] if filled else "test"
    test = _between(splits.get(source, []))
    if source == "test":
        return {"train": [], "dev": _between(splits.get("dev", [])), "test": test}, ()
    note = "test is all rows" if source == "all" else f"test is {source}"
    return {"train": [], "dev": [], "test": test}, (note,)


def _between(keyed: Keyed[T], low: float = 0, high: float = 1) -> list[T]:
    return [row for key, row in keyed if low <= place_of(key) < high]
