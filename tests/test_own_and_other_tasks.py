"""``benchmarks/own_and_other_tasks.py``: policies on the task they learned from, and on others."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import own_and_other_tasks
import pytest
from ledger import RESULTS, read_ledger
from own_and_other_tasks import cells, pooled_sd, sides
from pandas import DataFrame

from invented import write_worlds
from maskwise.base.errors import MaskwiseError
from maskwise.recipe import read_recipe
from maskwise.results.measurements import measurements, table_of
from tiny import find_recipe

pytestmark = pytest.mark.script

LEARNED = {"from-a": "a", "from-b": "b", "from-c": "c"}
# By arm, the scores on a, b and c: a and b are related, c stands alone.
SCORES = {
    "random": (0.10, 0.20, 0.30),
    "from-a": (0.60, 0.50, 0.30),
    "from-b": (0.40, 0.70, 0.30),
    "from-c": (0.10, 0.20, 0.90),
}
RECORD = [
    "from-jobs=factworld-job",
    "from-universities=factworld-university",
    "from-causes=causalworld",
]


def scores(seeds: int, *, shift: float = 0.01) -> dict[str, DataFrame]:
    """Scores with a small shift by seed and arm, so that pairs differ."""
    found = {}
    for which, task in enumerate("abc"):
        arms = {}
        for place, arm in enumerate(SCORES):
            score = SCORES[arm][which]
            arms[arm] = [score + shift * ((seed * 3 + place) % 4) for seed in range(seeds)]
        found[task] = DataFrame(arms)
    return found


def compared(found: dict[str, DataFrame], learned: dict[str, str] = LEARNED) -> list[Any]:
    same = dict.fromkeys(found, 0.1)
    return sides(found, learned, "random", sds=same, items=dict.fromkeys(found, 0.01))


def test_the_diagonal_and_the_rest_by_hand() -> None:
    own, others = compared(scores(2, shift=0))
    assert own["natural"]["mean"] == pytest.approx((0.5 + 0.5 + 0.6) / 3)
    rest = ((0.4 + 0.1) / 2 - 0.1, (0.5 + 0.2) / 2 - 0.2, (0.3 + 0.3) / 2 - 0.3)
    assert others["natural"]["mean"] == pytest.approx(sum(rest) / 3)
    # Two policies of one task are averaged.
    found = scores(2, shift=0)
    for of_task in found.values():
        of_task["again"] = of_task["from-b"]
    own = compared(found, {**LEARNED, "again": "a"})[0]
    assert own["natural"]["mean"] == pytest.approx(((0.6 + 0.4) / 2 - 0.1 + 0.5 + 0.6) / 3)


def test_six_runs_cannot_decide_two_contrasts() -> None:
    own = compared(scores(6))[0]
    assert (own["n"], own["p"], own["p_adjusted"]) == (6, 2 / 64, 4 / 64)
    found = {(cell["arm"], cell["task"]): cell for cell in cells(scores(6), LEARNED, "random")}
    assert len(found) == 9 and {cell["n"] for cell in found.values()} == {6}
    related, alone = found["from-a", "b"], found["from-a", "c"]
    assert related["low"] > 0.2 and alone["low"] < 0 < alone["high"]


def test_a_run_that_failed_is_left_out_of_both_sides() -> None:
    found = scores(3)
    for of_task in found.values():
        of_task.loc[1, "from-b"] = float("nan")
    assert [row["n"] for row in compared(found)] == [2, 2]


def test_the_recorded_study_comes_to_what_its_ledger_says() -> None:
    """Its lines were judged in the study itself, by the versions that had these two as arms."""
    found = own_and_other_tasks.main(RESULTS / "transfer-2026-11-22", "random", RECORD)
    lines = read_ledger()
    for arm, row in zip(("own-task", "other-tasks"), found["sides"]):
        line = lines["transfer-2026-11-22", arm, "random", "tasks", False]
        said = (line["n"], line["difference"], line["low"], line["high"], line["p"])
        numbers = (row["n"], row["mean"], row["low"], row["high"], row["p_adjusted"])
        assert numbers == pytest.approx(said, rel=1e-5)
    # The points of benchmarks/RESULTS.md.
    natural = [[row["natural"][name] for name in ("mean", "low", "high")] for row in found["sides"]]
    assert natural[0] == pytest.approx([0.148, 0.112, 0.199], abs=6e-4)
    assert natural[1] == pytest.approx([-0.005, -0.035, 0.014], abs=6e-4)


def test_losses_are_gains_where_they_fall() -> None:
    lines: list[Any] = []
    for seed, (arm, nats) in product(range(3), (("random", 3.0), ("from-a", 2.5))):
        line = {"kind": "task", "arm": arm, "seed": seed, "measure": "a", "metric": "nats"}
        lines.append({**line, "value": nats + 0.1 * seed})
    found = own_and_other_tasks.scores_of(table_of(measurements(lines, {"a": {}})))
    (cell,) = cells(found, {"from-a": "a"}, "random")
    assert cell["mean"] == pytest.approx(0.5)
    assert pooled_sd(found["a"], 1e-3) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("learned", "said"),
    [
        (["from-jobs=factworld-job"], "every task needs an arm"),
        (["from-jobs=jobs"], "unknown task 'jobs'"),
        (["jobs=factworld-job"], "unknown arm 'jobs'"),
    ],
)
def test_what_was_learned_must_be_known(learned: list[str], said: str) -> None:
    with pytest.raises(MaskwiseError, match=said):
        own_and_other_tasks.main(RESULTS / "transfer-2026-11-22", "random", learned)


def test_the_recipe_has_an_arm_for_each_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = find_recipe("transfer")
    write_worlds(tmp_path, path, 0)
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(path)
    sources = {
        recipe.arm(name, seed=0).learned_task for name in recipe.study.arms if name != "random"
    }
    assert sources == {spec.replace("{seed}", "0") for spec in recipe.tasks}
    assert recipe.study.pairs == []
