"""By which held-out masks an arm is judged, and what happens where there are none."""

from __future__ import annotations

from typing import Any

import pytest

from maskwise.errors import MaskwiseError
from maskwise.estimates import shown
from maskwise.masking.policies import policy
from maskwise.recipe import Recipe, read_recipe
from maskwise.study.verdict import summarise


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


def heldout(arm: str, seed: int, masks: str, loss: float) -> dict[str, Any]:
    facts = {"ratio": 0.15, "unigram": 6.0, "targets": 900}
    return {"kind": "heldout", "arm": arm, "seed": seed, "masks": masks, "loss": loss, **facts}


def test_a_mixture_of_words_is_not_on_the_plateau_for_its_token_masks() -> None:
    arms = {
        name: {
            "policy": "mixture",
            "ratio": "0.3",
            "overrides": {},
            "units": "mixture",
            "judged_on": ["whole-word"],
        }
        for name in "ab"
    }
    study = {"baseline": "a", "seeds": [0, 1], "arms": arms, "tasks": {}, "contrasts": [["b", "a"]]}
    losses = {"token": 6.8, "whole-word": 4.3}
    records = [
        heldout(arm, seed, masks, loss)
        for arm in "ab"
        for seed in (0, 1)
        for masks, loss in losses.items()
    ]
    summary = summarise(records, study)
    assert summary["arms"]["a"]["gap_nats"] == pytest.approx(1.7)
    assert not any(flag["code"] == "floor" for row in summary["contrasts"] for flag in row["flags"])
    primary = [row["outcome"] for row in summary["contrasts"] if row["primary"]]
    assert primary == ["heldout:whole-word"]


def test_a_recipe_whose_arms_nothing_would_judge_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "evaluation: {masks: [whole-word]}\nstudy: {arms: {a: {}, b: {masking.ratio: 0.3}}}\n"
    )
    with pytest.raises(MaskwiseError, match="arm 'a' would be judged by nothing"):
        read_recipe(path)
    assert isinstance(read_recipe(path, ["evaluation.masks=[token]"]), Recipe)


# Tasks that are answered in words
# -------------------------------------------------------------------------


def in_nats(values: dict[str, float], *, runs: int = 10, **more: Any) -> dict[str, Any]:
    """The summary of a study with one task in nats per token, where lower is better."""
    facts = {
        "metric": "nats",
        "kind": "generation",
        "majority": None,
        "test_items": 400,
        "higher_is_better": False,
    }
    arms = {
        name: {"policy": "token", "ratio": "0.3", "overrides": {}, "units": "token"}
        for name in values
    }
    pairs = [[name, "base"] for name in values if name != "base"]
    study = {
        "baseline": "base",
        "seeds": [*range(runs)],
        "arms": arms,
        "tasks": {"heads": facts},
        "contrasts": pairs,
    }
    records = [
        {
            "kind": "score",
            "arm": arm,
            "seed": seed,
            "task": "heads",
            "metric": "nats",
            "majority": 5.0,
            "score": value + 0.01 * (seed % 3) + 0.003 * (seed % 2) * (arm == "arm"),
            **more,
        }
        for arm, value in values.items()
        for seed in study["seeds"]
    ]
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
    facts = {
        "metric": "accuracy",
        "kind": "sequence-classification",
        "majority": 0.1,
        "test_items": 400,
        "classes": 10,
    }
    arms = {
        name: {"policy": "token", "ratio": "0.3", "overrides": {}, "units": "token"}
        for name in ("base", "arm")
    }
    nats = facts | {"metric": "nats", "majority": None}
    study = {
        "baseline": "base",
        "seeds": [0, 1, 2],
        "arms": arms,
        "tasks": {"a": facts, "b": nats},
        "contrasts": [["arm", "base"]],
    }
    records = [
        {
            "kind": "score",
            "arm": arm,
            "seed": seed,
            "task": task,
            "metric": metric,
            "score": start + sign * gain + 0.01 * (seed + (arm == "arm") * seed % 2),
        }
        for arm, gain in (("base", 0), ("arm", 0.1))
        for seed in range(3)
        for task, metric, start, sign in (("a", "accuracy", 0.5, 1), ("b", "nats", 4.0, -1))
    ]
    row = summarise(records, study)["contrasts"][0]
    assert (
        row["mean"] > 0 and "natural" not in row and row["metric"] is None and row["items"] is None
    )
    assert shown(row).unit == "spreads between seeds"
