"""Studies of transfer: the diagonal and the rest of a table of policies by tasks, and its heat
map.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest

from invented import world, write_worlds
from maskwise.errors import MaskwiseError
from maskwise.files import Record, Study
from maskwise.recipe import read_recipe
from maskwise.study.plan import learned_from
from maskwise.verdict import summarise
from report_fixture import shared_selection
from tiny import find_recipe, learning_study, maskwise, records_of

LEARNED = {"from-a": "a", "from-b": "b", "from-c": "c"}
# By arm, the scores on a, b and c: a and b are related, c stands alone.
SCORES = {
    "random": (0.10, 0.20, 0.30),
    "from-a": (0.60, 0.50, 0.30),
    "from-b": (0.40, 0.70, 0.30),
    "from-c": (0.10, 0.20, 0.90),
}


def records(seeds: int, *, shift: float = 0.01) -> list[Record]:
    """Scores with a small shift by seed and arm, so that pairs differ."""
    found: list[Record] = []
    for seed, (place, arm), (which, task) in product(
        range(seeds), enumerate(SCORES), enumerate("abc")
    ):
        score = SCORES[arm][which] + shift * ((seed * 3 + place) % 4)
        common: Record = {"kind": "task", "arm": arm, "seed": seed, "measure": task}
        found.append(common | {"metric": "exact-match", "value": score})
    return found


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


def cells(summary: Any) -> dict[tuple[str, str], Any]:
    return {(cell["arm"], cell["task"]): cell for cell in summary["transfer"]}


def test_the_diagonal_and_the_rest_by_hand():
    summary = summarise(records(2, shift=0), study(2))
    rows = {(row["arm"], row["outcome"]): row for row in summary["contrasts"]}
    own, others = (rows[name, "tasks"] for name in ("own-task", "other-tasks"))
    assert own["natural"]["mean"] == pytest.approx((0.5 + 0.5 + 0.6) / 3)
    rest = ((0.4 + 0.1) / 2 - 0.1, (0.5 + 0.2) / 2 - 0.2, (0.3 + 0.3) / 2 - 0.3)
    assert others["natural"]["mean"] == pytest.approx(sum(rest) / 3)
    assert rows["other-tasks", "c"]["mean"] == pytest.approx(0)
    assert [row for row in rows.values() if row["primary"]] == [own, others]


def test_cells_have_intervals_and_no_test():
    summary = summarise(records(6), study(6))
    found = cells(summary)
    assert len(found) == 9 and {cell["n"] for cell in found.values()} == {6}
    related, alone = found["from-a", "b"], found["from-a", "c"]
    assert related["low"] > 0.2 and alone["low"] < 0 < alone["high"]
    assert {row["arm"] for row in summary["contrasts"]} == {"own-task", "other-tasks"}
    own = summary["contrasts"][0]
    # six runs cannot decide two contrasts
    assert own["p"] == pytest.approx(2 / 64) and own["verdict"] == "open"
    assert "compute" not in [flag["code"] for flag in own["flags"]]  # it is several arms
    assert "learned from the task itself" in own["sentence"]
    # A cell of a task in nats is above 0 where the policy helps.
    nats: list[Any] = records(6)
    for record in nats:
        if record["measure"] == "a":
            record["metric"] = "nats"
    harmed, helped = cells(summarise(nats, study(6))), found["from-a", "a"]
    assert harmed["from-a", "a"]["mean"] == pytest.approx(-helped["mean"])
    assert harmed["from-a", "a"]["low"] == pytest.approx(-helped["high"])
    assert harmed["from-a", "b"] == related


def test_a_run_that_failed_is_left_out_of_both_sides():
    lost = {"arm": "from-b", "seed": 1}
    kept: list[Any] = [line for line in records(3) if not lost.items() <= line.items()]
    kept.append({"kind": "failure", **lost, "stage": "finetune-0", "error": "diverged"})
    rows = [row for row in summarise(kept, study(3))["contrasts"] if row["primary"]]
    assert [(row["arm"], row["n"]) for row in rows] == [("own-task", 2), ("other-tasks", 2)]


def test_rules_are_applied_to_the_arms_behind_a_name():
    """What arms chose, and whether they are at the floor, holds for what is made of them."""
    chosen: Any = [shared_selection(arm) for arm in SCORES]
    searched = study(8, search={"grid": {}})
    own = summarise([*records(8), *chosen], searched)["contrasts"][0]
    assert (own["arm"], own["verdict"]) == ("own-task", "decided")
    chosen[-1] = shared_selection("from-c", 0.002)
    own = summarise([*records(8), *chosen], searched)["contrasts"][0]
    assert (own["verdict"], own["flags"][0]["code"]) == ("open", "settings-differ")


def test_the_recipe_says_what_each_arm_learned_from(tmp_path, monkeypatch):
    path = find_recipe("transfer")
    write_worlds(tmp_path, path, 0)
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(path)
    learned = learned_from(recipe)
    assert list(learned) == ["from-jobs", "from-universities", "from-causes"]
    assert len(set(learned.values())) == 3
    assert recipe.study.pairs == [("own-task", "random"), ("other-tasks", "random")]
    one = "random: {}, from-jobs: {masking.policy: learned}"
    third = f"masking.policy: learned, learning.task: {json.dumps(recipe.tasks[2])}"
    for arms, said in (
        (one, "needs at least two tasks"),
        (f"{one}, from-causes: {{{third}}}", "for every task an arm that learns"),
    ):
        with pytest.raises(MaskwiseError, match=said):
            learned_from(read_recipe(path, [f"study.arms={{{arms}}}"]))
    with pytest.raises(MaskwiseError, match="own-task"):
        read_recipe(path, ["study.arms.own-task={}"])


ABOUT = "people=40, fillers=1, friends=false, biographies=2"
WORLD = world(f"factworld({ABOUT})", 0, 1)
UNIVERSITIES = world(f"factworld({ABOUT}, asked='university')", 0, 1).task(name="universities")
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
RECIPE = learning_study(WORLD, WORLD.task(), UNIVERSITIES, rest=COMPARED)


def test_a_whole_study_in_miniature_draws_the_table(tmp_path):
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(RECIPE)
    assert maskwise("study", path, "--out", out, "--jobs", 1) == 0
    arms = {record["arm"] for record in records_of(out, "task")}
    assert "own-task" not in arms, "records hold what was measured, and nothing that is made of it"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('class="number own"') == 2 and "Does a policy learned for one task" in page
