"""Errors: one line, short whatever they quote, their parts as attributes."""

from __future__ import annotations

import pytest

from maskwise.base.errors import MaskwiseError, in_percent, unknown_name
from maskwise.results.estimates import outcome_labels, outcome_words
from maskwise.verdict.flags import rate


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


def test_shares_in_per_cent_have_no_noise_and_no_exponent() -> None:
    """100 × 0.29 is 28.999999999999996, and 1e-07 was 1e-05 %."""
    for hundredths in range(10_001):
        assert in_percent(hundredths / 100) == str(hundredths)
        assert in_percent(hundredths / 10_000) == f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")
    assert outcome_words("heldout:token@1e-07").endswith(" 0.00001 %")
    labels = outcome_labels(["heldout:token", "heldout:token@1e-07", "heldout:token@0.29"])
    assert labels["heldout:token"].endswith(" 0.00001 and 29 %")
    assert (rate(1e-8), rate(0.289), rate(0.999)) == ("0.000001 %", "29 %", "100 %")
