"""Where the rows of a task are: a file, a folder with splits, the hub; and what known data sets do without a header.

A folder's files are told apart by the words of their names: ``train.tsv``, ``sts-dev.csv``, ``SICK_trial.txt``,
``en_ewt-ud-test.iob2.gz``, ``train-v1.1.json``. What a few well-known sets do not say by names of columns
is in ``_HEADLESS`` and ``_CLASS_FILES``, so that their users only give the folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.tasks.readers import READERS, Record, ending_of, read_hub, read_records, read_text, read_tsv
from maskwise.text import bundled_path

SPLITS = ("train", "dev", "test")
BUNDLED_TASKS = {
    "banking77": "banking77",
    "clinc150": "clinc150",
    "trivia": "trivia",
    "ud-pos": "ud_ewt_pos",
    "ud-relations": "ud_ewt_pos",
    "wikigold": "wikigold",
    "wnut17": "wnut17",
}
SPLIT_OF = {"train": "train", **dict.fromkeys(("dev", "validation", "valid", "val"), "dev"), "test": "test"}
_WORDS = {**SPLIT_OF, "trial": "dev"}  # SemEval's word, in names of files

# (a test of the path, names of columns): tables without a header.
_HEADLESS = (
    (re.compile(r"(?i)(^|.*/)cola/(train|dev)\.tsv(\.gz)?$"), ("source", "label", "mark", "sentence")),
    (
        re.compile(r"(?i)(^|.*/)sts-(train|dev|test)\.(csv|tsv)(\.gz)?$"),
        ("genre", "file", "year", "id", "score", "sentence1", "sentence2"),
    ),
)
# SentEval: one file a class, one sentence a line.
_CLASS_FILES = ({"pos", "neg"}, {"objective", "subjective"})


def read_splits(spec: str, *, header: bool) -> dict[str, list[Record]]:
    """Raw records by split; under "all" where there are no splits."""
    if spec.startswith("hf:"):
        return _by_split(spec, read_hub(spec))
    path = bundled_path(BUNDLED_TASKS[spec]) if spec in BUNDLED_TASKS else Path(spec).expanduser()
    if path.is_dir():
        return _read_folder(spec, path, header=header)
    if not path.is_file():
        if "/" not in spec and "." not in spec:
            raise unknown_name("task", spec, BUNDLED_TASKS)
        raise MaskwiseError(f"task file {spec!r} does not exist", do="give a file, a folder or hf:ID")
    records = _read_file(path, header=header)
    if not records or not all("split" in record for record in records):
        return {"all": records}
    named: dict[str, list[Record]] = {}
    for record in records:
        if record["split"] not in SPLIT_OF:
            raise unknown_name(f"split in {spec}", record["split"], SPLIT_OF)
        named.setdefault(record["split"], []).append(record)
    return _by_split(spec, named)


def _read_file(path: Path, *, header: bool = True) -> list[Record]:
    names = next((names for known, names in _HEADLESS if known.match(path.absolute().as_posix())), None)
    if names and header:
        return [
            {names[int(place) - 1]: cell for place, cell in record.items() if int(place) <= len(names)}
            for record in read_tsv(path, header=False)
        ]
    if ending_of(path) is None and path.name.lower().removesuffix(".gz").endswith(".txt"):
        return read_tsv(path, header=header)  # SICK, MRPC
    return read_records(path, header=header)


def _read_folder(spec: str, folder: Path, *, header: bool) -> dict[str, list[Record]]:
    classes = _class_files(folder)
    if classes:
        lines = {name: read_text(path, or_latin1=True).splitlines() for name, path in classes.items()}
        return {"all": [{"text": line, "label": name} for name, texts in lines.items() for line in texts]}
    files = _split_files(folder)
    readable = [file for file in sorted(folder.iterdir()) if file.is_file() and ending_of(file)]
    if not files and len(readable) == 1:
        return {"all": _read_file(readable[0], header=header)}
    return _by_split(spec, {split: _read_file(path, header=header) for split, path in files.items()})


def _class_files(folder: Path) -> dict[str, Path]:
    """SentEval's files by class, such as rt-polarity.pos and rt-polarity.neg."""
    ends = {
        path.name.removesuffix(".gz").rpartition(".")[2].lower(): path for path in sorted(folder.iterdir())
    }
    return {end: ends[end] for wanted in _CLASS_FILES if wanted <= set(ends) for end in sorted(wanted)}


def _split_files(folder: Path) -> dict[str, Path]:
    """The file of every split: by its exact name, or by a word of its name."""
    exact: dict[str, list[Path]] = {}
    loose: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        name = file.name.lower().removesuffix(".gz")
        if not file.is_file() or not (ending_of(file) or name.endswith(".txt")):
            continue
        if name.split(".")[0] in SPLIT_OF:
            exact.setdefault(SPLIT_OF[name.split(".")[0]], []).append(file)
        words = {_WORDS[word] for word in re.split(r"[^a-z]+", name) if word in _WORDS}
        if len(words) == 1 and "mismatched" not in name:  # MNLI is judged on the matched texts
            loose.setdefault(words.pop(), []).append(file)
    for split, files in (found := {**loose, **exact}).items():
        if len(files) > 1:
            got, do = ", ".join(file.name for file in files), "keep one of them in the folder"
            raise MaskwiseError(f"two files for {split} in {folder}", got=got, do=do)
    return {split: files[0] for split, files in found.items()}


def _by_split(spec: str, named: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Under our names, in their order; other splits are left out."""
    found = {SPLIT_OF[name]: records for name, records in named.items() if name in SPLIT_OF}
    if not found:
        allowed = f"train with dev (validation) and/or test; of files: {', '.join(READERS)}"
        raise MaskwiseError(
            f"no training split in {spec}", got=", ".join(named) or "nothing", allowed=allowed
        )
    return {split: found[split] for split in SPLITS if split in found}
