"""Studies of transfer: the diagonal and the rest of a table of policies by tasks, and its heat
map.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maskwise.errors import MaskwiseError
from maskwise.files import Record, Study
from maskwise.recipe import read_recipe
from maskwise.report import write_report
from maskwise.study.plan import learned_from
from maskwise.study.verdict import summarise
from report_fixture import old_selection
from tiny import find_recipe, learning_study, maskwise, read_lines

LEARNED = {"from-a": "a", "from-b": "b", "from-c": "c"}
# By arm, the scores on a, b and c: a and b are related, c stands alone.
SCORES = {
    "random": (0.10, 0.20, 0.30),
    "from-a": (0.60, 0.50, 0.30),
    "from-b": (0.40, 0.70, 0.30),
    "from-c": (0.10, 0.20, 0.90),
}


def records(seeds: int) -> list[Record]:
    """Scores with a small shift by seed and arm, so that pairs differ."""
    return [
        {
            "kind": "score",
            "arm": arm,
            "seed": seed,
            "task": task,
            "metric": "exact-match",
            "score": score + 0.01 * ((seed * 3 + place) % 4),
        }
        for place, (arm, scores) in enumerate(SCORES.items())
        for seed in range(seeds)
        for task, score in zip("abc", scores, strict=True)
    ]


def study(seeds: int, **more: Any) -> Study:
    arms: Any = {
        arm: {"policy": "token", "ratio": "constant(0.15)", "overrides": {}} for arm in SCORES
    }
    return {
        "baseline": "random",
        "arms": arms,
        "seeds": list(range(seeds)),
        "tasks": {task: {} for task in "abc"},
        "contrasts": [("own-task", "random"), ("other-tasks", "random")],
        "learned": LEARNED,
        **more,
    }


def test_the_diagonal_and_the_rest_by_hand() -> None:
    flat = [
        {**record, "score": dict(zip("abc", SCORES[record["arm"]]))[record["task"]]}
        for record in records(2)
    ]
    summary = summarise(flat, study(2))  # type: ignore[arg-type]
    rows = {(row["arm"], row["outcome"]): row for row in summary["contrasts"]}
    assert rows["own-task", "tasks"]["natural"]["mean"] == pytest.approx((0.5 + 0.5 + 0.6) / 3)
    rest = ((0.4 + 0.1) / 2 - 0.1, (0.5 + 0.2) / 2 - 0.2, (0.3 + 0.3) / 2 - 0.3)
    assert rows["other-tasks", "tasks"]["natural"]["mean"] == pytest.approx(sum(rest) / 3)
    assert rows["other-tasks", "c"]["mean"] == pytest.approx(0)
    assert [key for key, row in rows.items() if row["primary"]] == [
        ("own-task", "tasks"),
        ("other-tasks", "tasks"),
    ]


def test_cells_have_intervals_and_no_test() -> None:
    summary = summarise(records(6), study(6))
    cells = {(cell["arm"], cell["task"]): cell for cell in summary["transfer"]}
    assert len(cells) == 9 and all(cell["n"] == 6 for cell in cells.values())
    related, alone = cells["from-a", "b"], cells["from-a", "c"]
    assert related["low"] > 0.2 and alone["low"] < 0 < alone["high"]
    assert {row["arm"] for row in summary["contrasts"]} == {"own-task", "other-tasks"}
    own = summary["contrasts"][0]
    # six runs cannot decide two contrasts
    assert own["p"] == pytest.approx(2 / 64) and own["verdict"] == "open"
    assert "compute" not in [flag["code"] for flag in own["flags"]]  # it is several arms
    assert "learned from the task itself" in own["sentence"]


def test_a_run_that_failed_is_left_out_of_both_sides() -> None:
    kept = [r for r in records(3) if (r["arm"], r["seed"]) != ("from-b", 1)]
    kept.append(
        {"kind": "failure", "arm": "from-b", "seed": 1, "stage": "finetune-0", "error": "diverged"}
    )
    summary = summarise(kept, study(3))
    assert {(row["arm"], row["n"]) for row in summary["contrasts"] if row["primary"]} == {
        ("own-task", 2),
        ("other-tasks", 2),
    }


def test_rules_are_applied_to_the_arms_behind_a_name() -> None:
    """What arms chose, and whether they are at the floor, holds for what is made of them."""
    chosen: Any = [old_selection(arm) for arm in SCORES]
    searched = study(8, search={"grid": {}, "seeds": [1000, 1001]})
    own = summarise([*records(8), *chosen], searched)["contrasts"][0]
    assert (own["arm"], own["verdict"]) == ("own-task", "decided")
    chosen[-1] = old_selection("from-c", 0.002)
    own = summarise([*records(8), *chosen], searched)["contrasts"][0]
    assert (own["verdict"], own["flags"][0]["code"]) == ("open", "settings-differ")


def test_every_task_must_be_learned_from() -> None:
    """It was refused after all the work, with another reason."""
    arms = (
        "{random: {}, from-jobs: {masking.policy: learned}, from-causes: {masking.policy: "
        "learned, learning.task: X}}"
    )
    recipe = read_recipe(find_recipe("transfer"))
    third = arms.replace("X", f'"{recipe.tasks[2]}"')
    with pytest.raises(MaskwiseError, match="each of the study's tasks"):
        learned_from(read_recipe(find_recipe("transfer"), [f"study.arms={third}"]))


def test_the_recipe_says_what_each_arm_learned_from() -> None:
    recipe = read_recipe(find_recipe("transfer"))
    learned = learned_from(recipe)
    assert (
        list(learned) == ["from-jobs", "from-universities", "from-causes"]
        and len(set(learned.values())) == 3
    )
    assert recipe.study.pairs == [("own-task", "random"), ("other-tasks", "random")]
    one = read_recipe(
        find_recipe("transfer"), ["study.arms={random: {}, from-jobs: {masking.policy: learned}}"]
    )
    with pytest.raises(MaskwiseError, match="needs two tasks or more"):
        learned_from(one)
    with pytest.raises(MaskwiseError, match="own-task"):
        read_recipe(find_recipe("transfer"), ["study.arms.own-task={}"])


WORLD = "factworld(people=40, fillers=1, friends=false, biographies=2, seed='run')"
UNIVERSITIES = WORLD.replace("seed", "asked='university', seed")
COMPARED = f"""learning:
  method: supervised
  supervised: {{training: {{steps: 5}}}}
  policy: {{settings: {{hidden_size: 8}}}}
study:
  seeds: 2
  transfer: true
  baseline: random
  arms:
    random: {{}}
    from-jobs: {{masking.policy: learned}}
    from-universities: {{masking.policy: learned, learning.task: "{UNIVERSITIES}"}}
"""
RECIPE = learning_study(WORLD, WORLD, UNIVERSITIES, rest=COMPARED)


def test_a_whole_study_in_miniature_draws_the_table(tmp_path: Path) -> None:
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(RECIPE)
    assert maskwise("study", path, "--out", out, "--jobs", 1) == 0
    arms = {
        record["arm"] for record in read_lines(out / "records.jsonl") if record["kind"] == "score"
    }
    assert "own-task" not in arms, "records hold what was measured, and nothing that is made of it"
    page = write_report(out).read_text(encoding="utf-8")
    assert page.count('class="number own"') == 2 and "Does a policy learned for one task" in page


def test_a_cell_of_a_task_in_nats_is_above_0_where_the_policy_helps(tmp_path: Path) -> None:
    nats = [
        {**record, "metric": "nats"} if record["task"] == "a" else record for record in records(6)
    ]
    summary = summarise(nats, study(6))  # type: ignore[arg-type]
    cells = {(cell["arm"], cell["task"]): cell for cell in summary["transfer"]}
    helps = {
        (cell["arm"], cell["task"]): cell for cell in summarise(records(6), study(6))["transfer"]
    }
    harmed, helped = cells["from-a", "a"], helps["from-a", "a"]
    assert harmed["mean"] == pytest.approx(-helped["mean"]) and harmed["low"] == pytest.approx(
        -helped["high"]
    )
    assert cells["from-a", "b"] == helps["from-a", "b"]
