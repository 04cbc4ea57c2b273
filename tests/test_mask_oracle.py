"""Masks of random texts are those of a specification in plain Python, to the last token."""

from __future__ import annotations

import warnings
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mask_oracle import LOW_64, Text, TextDraws, chosen_of, shown_of, units_of
from maskwise.masking import Masker
from maskwise.testing import LAYERS, RowMaker, small_vocabulary

VOCABULARY = small_vocabulary()
ORDINARY = VOCABULARY.ordinary.tolist()
ROWS = RowMaker(VOCABULARY, {"weight": LAYERS["weight"]})


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row of words of 1 to 5 tokens, some of them with an [UNK], between [CLS] and [SEP]."""
    lengths = draw(st.lists(st.sampled_from((1, 1, 2, 3, 5)), max_size=14))
    unknown = draw(st.lists(st.integers(0, 19), max_size=2))
    example_id = draw(st.integers(-(2**63), 2**63 - 1))
    return ROWS.row(lengths, example_id=example_id, unknown=unknown)


@st.composite
def maskings(draw: st.DrawFn) -> dict[str, Any]:
    policy = draw(st.sampled_from(("token", "whole-word", "span", "weighted")))
    budget = draw(st.sampled_from(("expected", "exact", "bernoulli")))
    fills = budget != "bernoulli" or policy == "token"
    return {
        "policy": policy,
        "budget": budget,
        "corruption": draw(st.sampled_from(("bert", "mask-only", "replace", "delete"))),
        "ratio": draw(st.sampled_from((0.02, 0.05, 0.1, 0.15, 0.25, 0.4, 0.5, 0.9, 1.0))),
        "seed": draw(st.integers(-(2**40), 2**40)),
        "min_targets": draw(st.sampled_from((0, 1, 3))) if fills else None,
    }


@settings(max_examples=200, deadline=None)
@given(
    given_rows=st.lists(rows(), min_size=1, max_size=4),
    masking=maskings(),
    epoch=st.sampled_from((None, 0, 3, 2**33)),
    step=st.integers(0, 9),
)
def test_masks_are_those_of_the_specification(
    given_rows: list[dict[str, Any]], masking: dict[str, Any], epoch: int | None, step: int
) -> None:
    named = {name: value for name, value in masking.items() if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = Masker(VOCABULARY, **named)(given_rows, epoch=epoch, step=step)
    for number, row in enumerate(given_rows):
        ids = row["input_ids"]
        text = Text(
            ids=ids[1:-1],
            eligible=[bool(VOCABULARY.eligible[token]) for token in ids[1:-1]],
            words=list(row["word_ids"][1:-1]),
        )
        draws = TextDraws(row["example_id"] & LOW_64, seed=masking["seed"], epoch=epoch, step=step)
        units = units_of(masking["policy"], text, draws)
        weights = None
        if masking["policy"] == "weighted":
            given_weights = row["weight"][1:-1]
            weights = {
                unit: sum(given_weights[place] for place in places) / len(places)
                for unit, places in units.items()
            }
        chosen = chosen_of(
            units,
            draws,
            ratio=masking["ratio"],
            budget=masking["budget"],
            min_targets=1 if masking["min_targets"] is None else masking["min_targets"],
            weights=weights,
            of_tokens=masking["policy"] == "token",
        )
        masked = sorted(place for unit in chosen for place in units[unit])
        selected = [place for place, is_one in enumerate(batch.selected[number].tolist()) if is_one]
        assert [place - 1 for place in selected] == masked
        shown = shown_of(
            masking["corruption"], text.ids, masked, draws, mask=VOCABULARY.mask, ordinary=ORDINARY
        )
        expected = [ids[0], *shown, ids[-1]]
        assert batch.input_ids[number].tolist()[: len(expected)] == expected
