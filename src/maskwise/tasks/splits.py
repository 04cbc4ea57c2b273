"""Divide the rows of a task among train, dev and test.

If files do not define the splits, a hash of each row's text decides its split. Rows with equal
texts are therefore in the same split, and a row keeps its split when other rows are added. For
questions, the text that several questions share is hashed. The same hash splits the labels from
which a masking policy is learned, because a policy must not see the test rows of a task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeVar

from maskwise.base.errors import MaskwiseError, counted, plural
from maskwise.text.groups import check_groups

SPLITS = ("train", "dev", "test")
ALL = "all"
"""The name of the only split of files that define no splits."""
TEST_SHARE = 0.15
"""The share of the rows of one file that are test rows, and of those that are dev rows."""
# Columns for the text that several questions may share, and columns for their answers.
CONTEXT, ANSWERS = ("context", "paragraph", "passage"), ("answers", "answer")
# Rows are split by article only if there are at least this many articles. With fewer articles, a
# split could be empty.
MANY_ARTICLES = 20
T = TypeVar("T")
# (The text whose hash decides the split, the row), for each row.
Keyed: TypeAlias = Sequence[tuple[str, T]]


# The text that decides the split of a row
# -------------------------------------------------------------------------------------------


def place_in_splits(key: str) -> float:
    """Hash a text to a number in [0, 1), which decides the split of its row."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def shared_names(records: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
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


# Splits
# -------------------------------------------------------------------------------------------


def splits_of(
    splits: Mapping[str, Keyed[T]], place: str
) -> tuple[dict[str, list[T]], tuple[str, ...]]:
    """Split keyed rows into train, dev and test by the rules in the docstring of ``loading``.

    Returns:
        The rows of each split, and notes on how the splits were made.
    """
    train, dev, test = (splits.get(split, []) for split in SPLITS)
    if ALL in splits or (train and not dev and not test):
        what = "only train has labels"
        whole = train
        if ALL in splits:
            what = "one file"
            whole = splits[ALL]
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


def only_test(splits: Mapping[str, Keyed[T]]) -> tuple[dict[str, list[T]], tuple[str, ...]]:
    """Choose test rows for kinds without training: the first non-empty of test, dev, all, train.

    Returns:
        The rows of each split, and a note if another split serves as test.
    """
    filled = [name for name in ("test", "dev", ALL, "train") if splits.get(name)]
    source = filled[0] if filled else "test"
    test = _between(splits.get(source, []))
    if source == "test":
        return {"train": [], "dev": _between(splits.get("dev", [])), "test": test}, ()
    note = "test is all rows" if source == ALL else f"test is {source}"
    return {"train": [], "dev": [], "test": test}, (note,)


def dropped(skipped: Mapping[str, int]) -> str:
    """Write counts of dropped rows as "3 × train: no label", or "3 × no label" without splits."""
    return counted({reason.removeprefix(f"{ALL}: "): rows for reason, rows in skipped.items()})


def _between(keyed: Keyed[T], low: float = 0, high: float = 1) -> list[T]:
    return [row for key, row in keyed if low <= place_in_splits(key) < high]


def task_groups_note(
    splits: Mapping[str, Keyed[T]], parts: Mapping[str, Sequence[T]], column: str, place: str
) -> str:
    """Say how groups of rows were split.

    Args:
        splits: the rows of each split of the files, with the keys of their groups.
        parts: the rows of train, dev and test.
        column: the column with the groups.
        place: the files, for messages.

    Raises:
        MaskwiseError: two splits of the files have rows of one group; or test was cut from one
            split, and there are few groups, or its share differs much from 15 %.
    """
    what = f"{place}: split_by={column}"
    homes: dict[str, set[str]] = {}
    for split, keyed in splits.items():
        for key, _ in keyed:
            homes.setdefault(key, set()).add(split)
    # A row without a group has another key, such as its text.
    groups = {key for key in homes if key.startswith(f"{column}=")}
    torn = [key for key, in_ in homes.items() if key in groups and len(in_) > 1]
    if torn:
        raise MaskwiseError(
            f"{what}: {plural(len(torn), 'group')} in two splits of the files",
            got=f"{torn[0]} in {' and '.join(sorted(homes[torn[0]]))}",
            do="remove the column split, so that the rows are split by their groups",
        )
    rows = sum(map(len, parts.values()))
    share = len(parts["test"]) / max(1, rows)
    made_here = sum(map(bool, splits.values())) == 1 and bool(parts["train"])
    check_groups(
        len(homes),
        share,
        wanted=TEST_SHARE if made_here else None,
        what=what,
        part="of the rows are test rows",
        noun="column",
        setting="split_by",
        do="add a column split (train, dev, test)",
    )
    alone = sum(key not in groups for keyed in splits.values() for key, _ in keyed)
    said = f"{len(groups):,} groups, {share:.0%} of the rows are test"
    return f"{said}; {plural(alone, 'row')} without a value in {column}" if alone else said
