"""The rows of a task's files, by split: bundled data, a file, a folder, the hub, or an invented
world.

A folder's files are told apart by the words of their names: ``train.tsv``, ``sts-dev.csv``,
``SICK_trial.txt``, ``en_ewt-ud-test.iob2.gz``, ``train-v1.1.json``. What a few well-known sets do
not say by names of columns is in ``_WITHOUT_HEADER`` and ``_CLASS_FILES``, so that their users only
give the folder.

Rows are cut into train, dev and test by a hash of a text, so that they stay where they are.
Questions about one text stay together, in a task as in the labels of a policy: no policy may learn
from what a task of the file is tested by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.folders import looked_in
from maskwise.tasks.cards import CARDS
from maskwise.tasks.task import SPLITS, place_of
from maskwise.text import bundled_path
from maskwise.text.labelled import (
    READERS,
    Record,
    ending_of,
    read_hub,
    read_records,
    read_text,
    read_tsv,
)
from maskwise.text.readers import lines_of
from maskwise.text.worlds import read_world

BUNDLED_TASKS = {
    "banking77": "banking77",
    "clinc150": "clinc150",
    "trivia": "trivia",
    "ud-pos": "ud_ewt_pos",
    "ud-relations": "ud_ewt_pos",
    "wikigold": "wikigold",
    "wnut17": "wnut17",
}
_SPLIT_OF = {
    "train": "train",
    **dict.fromkeys(("dev", "validation", "valid", "val"), "dev"),
    "test": "test",
}
_WORDS = {**_SPLIT_OF, "trial": "dev"}  # SemEval's word, in names of files
_WITHOUT_HEADER = (
    (
        re.compile(r"(?i)(^|.*/)cola/(train|dev)\.tsv(\.gz)?$"),
        ("source", "label", "mark", "sentence"),
    ),
    (
        re.compile(r"(?i)(^|.*/)sts-(train|dev|test)\.(csv|tsv)(\.gz)?$"),
        ("genre", "file", "year", "id", "score", "sentence1", "sentence2"),
    ),
)
"""Tables without a header: which paths, and the names of their columns."""
_CLASS_FILES = ({"pos", "neg"}, {"objective", "subjective"})
"""SentEval: one file a class, one sentence a line."""
CONTEXT, ANSWERS = ("context", "paragraph", "passage"), ("answers", "answer")
"""Columns of a text that several questions may share, and of what is to be found in it."""
MANY_ARTICLES = 20
"""Fewer might all fall on one side of a cut."""
T = TypeVar("T")


def read_splits(
    spec: str, *, header: bool = True, files: Mapping[str, str] = MappingProxyType({})
) -> dict[str, list[Record]]:
    """Raw records by split; under "all" where there are no splits.

    Args:
        spec: as for ``load_task``, without arguments behind it.
        header: whether tables begin with the names of their columns.
        files: of a folder, the pattern of the names of each split's files, where their words do not
            tell.

    Raises:
        MaskwiseError: there is nothing, no training split, or two files for one split.
    """
    if world := read_world(spec):
        return world.questions()
    if spec.startswith("hf:"):
        return _by_split(spec, read_hub(spec))
    path = _path(spec)
    if path.is_dir():
        return _read_folder(spec, path, header=header, files=files)
    if not path.is_file():
        if "/" not in spec and "." not in spec:
            raise unknown_name("task", spec, [*BUNDLED_TASKS, *CARDS])
        do = "give a file, a folder or hf:ID"
        raise MaskwiseError(f"task file {spec!r} does not exist", got=looked_in(path), do=do)
    records = _read_file(path, header=header)
    if not records or not all("split" in record for record in records):
        return {"all": records}
    by_name: dict[str, list[Record]] = {}
    for record in records:
        split = str(record["split"])  # JSON may hold a list or an object here
        if split not in _SPLIT_OF:
            raise unknown_name(f"split in {spec}", split, _SPLIT_OF)
        by_name.setdefault(split, []).append(record)
    return _by_split(spec, by_name)


def state_of(spec: str) -> list[tuple[str, int, int]]:
    """Name, time and size of the files that ``read_splits`` reads; none of an invented world."""
    path = _path(spec).absolute()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]


def _path(spec: str) -> Path:
    return bundled_path(BUNDLED_TASKS[spec]) if spec in BUNDLED_TASKS else Path(spec).expanduser()


def _read_file(path: Path, *, header: bool) -> list[Record]:
    where = path.absolute().as_posix()
    names = next((names for pattern, names in _WITHOUT_HEADER if pattern.match(where)), None)
    if names and header:  # STS-B's rows may be longer than the named columns
        return [
            {
                names[int(place) - 1]: cell
                for place, cell in record.items()
                if int(place) <= len(names)
            }
            for record in read_tsv(path, header=False)
        ]
    if ending_of(path) is None and path.name.lower().removesuffix(".gz").endswith(".txt"):
        return read_tsv(path, header=header)  # SICK, MRPC
    return read_records(path, header=header)


def _read_folder(
    spec: str, folder: Path, *, header: bool, files: Mapping[str, str]
) -> dict[str, list[Record]]:
    there = [path for path in sorted(folder.iterdir()) if path.is_file()]
    readable = [path for path in there if ending_of(path)]
    named = {
        split: [path for path in readable if fnmatch(path.name, pattern)]
        for split, pattern in files.items()
    }
    if any(named.values()):
        return {
            split: [record for path in paths for record in _read_file(path, header=header)]
            for split, paths in named.items()
            if paths
        }
    by_ending = {path.name.removesuffix(".gz").rpartition(".")[2].lower(): path for path in there}
    for classes in _CLASS_FILES:
        if classes <= set(by_ending):
            lines = {
                name: lines_of(read_text(by_ending[name], or_latin1=True))
                for name in sorted(classes)
            }
            return {
                "all": [
                    {"text": line, "label": name} for name, texts in lines.items() for line in texts
                ]
            }
    split_files = _split_files(folder, there)
    if not split_files and len(readable) == 1:
        return {"all": _read_file(readable[0], header=header)}
    return _by_split(
        spec, {split: _read_file(path, header=header) for split, path in split_files.items()}
    )


def _split_files(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """The file of every split: by its exact name, or by a word of its name."""
    exact: dict[str, list[Path]] = {}
    loose: dict[str, list[Path]] = {}
    for file in files:
        name = file.name.lower().removesuffix(".gz")
        if not (ending_of(file) or name.endswith(".txt")):
            continue
        if name.split(".")[0] in _SPLIT_OF:
            exact.setdefault(_SPLIT_OF[name.split(".")[0]], []).append(file)
        words = {_WORDS[word] for word in re.split(r"[^a-z]+", name) if word in _WORDS}
        if len(words) == 1 and "mismatched" not in name:  # MNLI is judged on the matched texts
            loose.setdefault(words.pop(), []).append(file)
    by_split = {**loose, **exact}
    for split, candidates in by_split.items():
        if len(candidates) > 1:
            got, do = ", ".join(file.name for file in candidates), "keep one of them in the folder"
            raise MaskwiseError(f"two files for {split} in {folder}", got=got, do=do)
    return {split: candidates[0] for split, candidates in by_split.items()}


def _by_split(spec: str, by_name: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Under our names, in their order; other splits are left out."""
    known = [name for name in by_name if name in _SPLIT_OF]
    splits = {_SPLIT_OF[name]: by_name[name] for name in known}
    if len(splits) < len(known):
        do = "keep one name for each, and merge its rows"
        raise MaskwiseError(f"{spec} has two names for one split", got=", ".join(known), do=do)
    if not splits:
        allowed = f"train with dev (validation) and/or test; of files: {', '.join(READERS)}"
        raise MaskwiseError(
            f"no training split in {spec}", got=", ".join(by_name) or "nothing", allowed=allowed
        )
    return {split: splits[split] for split in SPLITS if split in splits}


# Cutting


def shared_names(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The columns of what a whole file of questions is cut by: articles, if there are many, and
    contexts.
    """
    titles = {
        title
        for record in records
        if isinstance(title := record.get("article_title"), str) and title
    }
    return ("article_title", *CONTEXT) if len(titles) >= MANY_ARTICLES else CONTEXT


def shared_text(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """What keeps a question on one side of a cut: the first of these columns that it has; "" of
    what has no answers.
    """
    if not any(name in record for name in ANSWERS):
        return ""
    return next(
        (value for name in names if isinstance(value := record.get(name), str) and value), ""
    )


def splits_of(
    splits: Mapping[str, Sequence[tuple[str, T]]], place: str
) -> tuple[dict[str, list[T]], tuple[str, ...]]:
    """train, dev and test of rows with their keys, by the rules of ``loading``, and what was done."""
    train, dev, test = (splits.get(split, []) for split in SPLITS)
    if "all" in splits or (train and not dev and not test):
        cuts = zip(SPLITS, ((0, 0.7), (0.7, 0.85), (0.85, 1)), strict=True)
        what = "one file" if "all" in splits else "train alone has labels"
        return {split: _between(splits.get("all", train), *cut) for split, cut in cuts}, (
            f"{what}, cut 70/15/15",
        )
    notes = []
    if "train" not in splits:
        if not (dev and test):
            allowed = "train with dev (validation) and/or test, or dev with test"
            raise MaskwiseError(
                f"no training split in {place}", got=", ".join(splits), allowed=allowed
            )
        train, dev = dev, []
        notes.append("no train: dev is train")
    if not test:
        dev, test = [], dev
        notes.append("no labelled test: dev is test")
    parts = {"train": _between(train), "dev": _between(dev), "test": _between(test)}
    if not dev:
        parts |= {"train": _between(train, 0, 0.85), "dev": _between(train, 0.85, 1)}
        notes.append("dev is 15 % of train")
    return parts, tuple(notes)


def only_test(
    splits: Mapping[str, Sequence[tuple[str, T]]], place: str
) -> tuple[dict[str, list[T]], tuple[str, ...]]:
    """Nothing is learned, so nothing need be kept apart: the first of these that has rows is the
    test.
    """
    source = next((name for name in ("test", "dev", "all", "train") if splits.get(name)), "test")
    dev = splits.get("dev", []) if source == "test" else []
    notes = (
        () if source == "test" else (f"test is {source}" + (" rows" if source == "all" else ""),)
    )
    return {"train": [], "dev": _between(dev), "test": _between(splits.get(source, []))}, notes


def _between(keyed: Sequence[tuple[str, T]], low: float = 0, high: float = 1) -> list[T]:
    return [row for key, row in keyed if low <= place_of(key) < high]
