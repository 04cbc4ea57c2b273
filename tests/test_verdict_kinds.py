"""By which held-out masks an arm is judged, and what happens where there are none."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from maskwise.errors import MaskwiseError
from maskwise.estimates import shown
from maskwise.masking.policies import policy
from maskwise.recipe import Recipe, read_recipe
from maskwise.study.outcomes import is_loss
from maskwise.study.verdict import summarise
from report_fixture import codes, heldout_record, make_study, primary_rows, score_record


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        ("token", ("token",)),
        ("whole-word", ("whole-word",)),
        ("span", ("whole-word",)),
        ("span(over='token')", ("token",)),
        ("t5-span", ("token",)),
        ("weighted(units='word')", ("whole-word",)),
        ("weighted(units='token')", ("token", "whole-word")),
        ("mixture(whole-word, span)", ("whole-word",)),
        ("mixture(whole-word, token)", ("token", "whole-word")),
    ],
)
def test_a_policy_is_judged_by_its_own_kind_of_mask(spec: str, kinds: tuple[str, ...]) -> None:
    assert policy(spec).judged_on() == kinds


def test_a_mixture_of_words_is_not_on_the_plateau_for_its_token_masks() -> None:
    study = make_study(runs=2, arms={"a": 0.0, "b": 0.0}, tasks=0)
    for facts in study["arms"].values():
        facts |= {"units": "mixture", "judged_on": ["whole-word"]}
    losses = {"token": 6.8, "whole-word": 4.3}
    records = [
        heldout_record(arm, seed, masks, losses[masks], unigram=6.0)
        for arm, seed, masks in product("ab", range(2), losses)
    ]
    summary = summarise(records, study)
    assert summary["arms"]["a"]["gap_nats"] == pytest.approx(1.7)
    assert not any("floor" in codes(row) for row in summary["contrasts"])
    primary = [row["outcome"] for row in primary_rows(summary)]
    assert primary == ["heldout:whole-word"]


def test_a_recipe_whose_arms_nothing_would_judge_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "evaluation: {masks: [whole-word]}\nstudy: {arms: {a: {}, b: {masking.ratio: 0.3}}}\n"
    )
    with pytest.raises(MaskwiseError, match="arm 'a'"):
        read_recipe(path)
    assert isinstance(read_recipe(path, ["evaluation.masks=[token]"]), Recipe)


# Tasks that are answered in words
# -------------------------------------------------------------------------


def in_nats(values: dict[str, float], **more: Any) -> dict[str, Any]:
    """The summary of a study with one task in nats per token, where lower is better."""
    study = make_study(runs=10, arms=values, tasks=1)
    study["tasks"]["task-0"] |= {"metric": "nats", "majority": None}
    records = []
    for arm, seed in product(values, range(10)):
        luck = 0.01 * (seed % 3) + 0.003 * (seed % 2) * (arm == "arm")
        facts = {"metric": "nats", "majority": 5.0, **more}
        records.append(score_record(arm, seed, "task-0", values[arm] + luck, **facts))
    return summarise(records, study)


def test_fewer_nats_are_better() -> None:
    summary = in_nats({"base": 4.0, "arm": 3.5}, item_sd=2.0)
    tasks, alone = summary["contrasts"]
    assert (tasks["outcome"], tasks["better"], tasks["higher_is_better"]) == ("tasks", "arm", True)
    assert tasks["mean"] > 0 and tasks["natural"]["mean"] == pytest.approx(0.4985)
    assert (alone["unit"], alone["verdict"], alone["higher_is_better"]) == ("nats", None, False)
    assert alone["mean"] == pytest.approx(-0.4985)
    assert shown(tasks).unit == shown(alone).unit == "nats" and shown(tasks).mean == pytest.approx(
        0.4985
    )
    # The spread of 400 items: 1.96 · 2 / √400.
    assert alone["items"]["high"] - alone["items"]["low"] == pytest.approx(2 * 1.96 * 2 / 20)


def test_arms_that_know_no_more_than_frequencies_are_void() -> None:
    summary = in_nats({"base": 5.1, "arm": 5.0})
    assert [row["flags"][0]["code"] for row in summary["contrasts"]] == ["chance"] * 2


def test_a_study_of_points_and_nats_has_no_mean_in_either() -> None:
    study = make_study(runs=3, arms={"base": 0.0, "arm": 0.1})
    study["tasks"]["task-1"] |= {"metric": "nats", "majority": None}
    records = []
    for arm, seed in product(("base", "arm"), range(3)):
        gain = 0.1 * (arm == "arm")
        luck = 0.01 * (seed + (arm == "arm") * seed % 2)
        records.append(score_record(arm, seed, "task-0", 0.5 + gain + luck))
        records.append(score_record(arm, seed, "task-1", 4.0 - gain + luck, metric="nats"))
    row = summarise(records, study)["contrasts"][0]
    assert row["mean"] > 0 and "natural" not in row
    assert row["metric"] is None and row["items"] is None
    assert shown(row).unit == "SDs between seeds"


def test_a_loss_is_known_by_its_measure():
    """A set of texts may be called anything."""
    assert not is_loss("evaluation:perplexity-quiz:accuracy")
    assert is_loss("evaluation:pseudo-perplexity:token") and is_loss("heldout:token@0.15")
