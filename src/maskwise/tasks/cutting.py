"""How the rows of a task are cut into train, dev and test: by a hash of a text, so that rows stay where they are.

Questions about one text stay together, in a task as in the labels of a policy: no policy may learn from what a task of
the same file is tested by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from maskwise.errors import MaskwiseError
from maskwise.tasks.task import SPLITS, place_of

CONTEXT, ANSWERS = ("context", "paragraph", "passage"), ("answers", "answer")
"""Columns of a text that several questions may share, and of what is to be found in it."""
MANY_ARTICLES = 20
"""Fewer might all fall on one side of a cut."""
T = TypeVar("T")


def shared_names(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The columns of what a whole file of questions is cut by: articles, if there are many, and contexts."""
    titles = {title for record in records if isinstance(title := record.get("article_title"), str) and title}
    return ("article_title", *CONTEXT) if len(titles) >= MANY_ARTICLES else CONTEXT


def shared_text(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """What keeps a question on one side of a cut: the first of these columns that it has; "" of what has no answers."""
    if not any(name in record for name in ANSWERS):
        return ""
    return next((value for name in names if isinstance(value := record.get(name), str) and value), "")


def splits_of(splits: Mapping[str, Sequence[tuple[str, T]]], place: str) -> tuple[dict[str, list[T]], tuple[str, ...]]:
    """train, dev and test of rows with their keys, by the rules of ``loading``, and what was done."""
    train, dev, test = (splits.get(split, []) for split in SPLITS)
    if "all" in splits or (train and not dev and not test):
        cuts = zip(SPLITS, ((0, 0.7), (0.7, 0.85), (0.85, 1)), strict=True)
        what = "one file" if "all" in splits else "train alone has labels"
        return {split: _between(splits.get("all", train), *cut) for split, cut in cuts}, (f"{what}, cut 70/15/15",)
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
    parts = {"train": _between(train), "dev": _between(dev), "test": _between(test)}
    if not dev:
        parts |= {"train": _between(train, 0, 0.85), "dev": _between(train, 0.85, 1)}
        notes.append("dev is 15 % of train")
    return parts, tuple(notes)


def only_test(splits: Mapping[str, Sequence[tuple[str, T]]], place: str) -> tuple[dict[str, list[T]], tuple[str, ...]]:
    """Nothing is learned, so nothing need be kept apart: the first of these that has rows is the test."""
    source = next((name for name in ("test", "dev", "all", "train") if splits.get(name)), "test")
    dev = splits.get("dev", []) if source == "test" else []
    notes = () if source == "test" else (f"test is {source}" + (" rows" if source == "all" else ""),)
    return {"train": [], "dev": _between(dev), "test": _between(splits.get(source, []))}, notes


def _between(keyed: Sequence[tuple[str, T]], low: float = 0, high: float = 1) -> list[T]:
    return [row for key, row in keyed if low <= place_of(key) < high]
