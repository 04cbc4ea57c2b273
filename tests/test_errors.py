"""Errors: one line, short whatever they quote, their parts as attributes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.tasks import load_task


def test_a_long_list_of_names_is_cut_between_two_names():
    names = [f"setting_{number}" for number in range(100)]
    said = str(unknown_name("setting", "x", names))
    shown = said.partition("allowed: ")[2].partition(";")[0].replace(" …", "").split(", ")
    assert "…" in said and len(shown) > 40
    assert {name for part in shown for name in part.split()} <= {*names}


LONG = "x y\n" * 2000


@pytest.mark.parametrize(
    "error",
    [
        MaskwiseError(
            f"the label {LONG!r} of a task", got=LONG, allowed=[LONG], do=f"leave {LONG} out"
        ),
        unknown_name(f"argument of {LONG}", LONG, ["a", LONG], do=LONG),
        MaskwiseError("a number", got=10**5000),
    ],
)
def test_a_message_is_one_short_line_whatever_it_quotes(error: MaskwiseError) -> None:
    assert len(str(error)) < 2000 and "\n" not in str(error)


def test_the_parts_of_an_error_are_whole_and_the_message_is_cut_in_the_middle() -> None:
    error = MaskwiseError(f"the label {'a' * 5000} is no number", got=1.5, allowed=[1], do=LONG)
    assert (error.got, error.allowed, error.do) == (1.5, [1], LONG) and len(error.what) > 5000
    assert str(error).startswith("the label aaa") and "aaa is no number; got 1.5" in str(error)


@pytest.mark.parametrize("label", ["a" * 5000, "word " * 1000])
def test_a_long_label_makes_no_long_error(tmp_path: Path, label: str) -> None:
    rows = [{"text": f"text {n}", "label": label} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(MaskwiseError) as caught:
        load_task(tmp_path / "rows.jsonl")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("split", [{"a": 1}, ["train"], 3, None])
def test_a_split_that_is_no_text_is_refused(tmp_path: Path, split: object) -> None:
    rows = [{"text": f"text {n}", "label": "ab"[n % 2], "split": split} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(MaskwiseError) as caught:
        load_task(tmp_path / "rows.jsonl")
    assert "train" in str(caught.value.allowed)
