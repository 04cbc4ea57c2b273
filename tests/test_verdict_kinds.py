"""By which held-out masks an arm is judged, and what happens where there are none."""

from __future__ import annotations

from typing import Any

import pytest

from maskwise.errors import MaskwiseError
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
        heldout(arm, seed, masks, loss) for arm in "ab" for seed in (0, 1) for masks, loss in losses.items()
    ]
    summary = summarise(records, study)
    assert not summary["arms"]["a"]["plateau"] and summary["arms"]["a"]["gap_nats"] == pytest.approx(1.7)
    primary = [row["outcome"] for row in summary["contrasts"] if row["primary"]]
    assert primary == ["heldout:whole-word"]


def test_a_recipe_whose_arms_nothing_would_judge_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("evaluation: {masks: [whole-word]}\nstudy: {arms: {a: {}, b: {masking.ratio: 0.3}}}\n")
    with pytest.raises(MaskwiseError, match="arm 'a' would be judged by nothing"):
        read_recipe(path)
    assert isinstance(read_recipe(path, ["evaluation.masks=[token]"]), Recipe)
