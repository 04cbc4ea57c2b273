"""Outcomes of small studies, computed by hand."""

from __future__ import annotations

import math
from statistics import mean, variance
from typing import Any

import numpy as np
import pytest

from maskwise.verdict import judge
from maskwise.verdict.outcomes import Outcomes, finite_pairs, subtracted
from verdict_tools import differing, table_of

FAILED = {"kind": "failure", "arm": "a", "seed": 2, "stage": "finetune-1", "error": "lost"}
B = [0.5, 0.52, 0.51, 0.55, 0.5, 0.54, 0.53]
A = [0.55, 0.56, 0.58, 0.59, 0.57, 0.6, 0.56]


def task_line(task: str, arm: str, seed: int, value: float) -> dict[str, Any]:
    return {
        "kind": "task",
        "arm": arm,
        "seed": seed,
        "measure": task,
        "metric": "f1",
        "value": value,
    }


def test_a_seed_that_lacks_a_task_is_left_out_of_the_others() -> None:
    """The arm's run with seed 2 failed on the second task alone."""
    second = [task_line("t1", "b", seed, value) for seed, value in enumerate(B)]
    second += [task_line("t1", "a", seed, value) for seed, value in enumerate(A) if seed != 2]
    tasks = {"t0": {"metric": "f1"}, "t1": {"metric": "f1"}}
    table = table_of({"b": B, "a": A}, more=[*second, FAILED], tasks=tasks)
    kept = [seed for seed in range(7) if seed != 2]
    for outcome in ("t0", "t1", "tasks"):
        assert table.paired_seeds(outcome, "a", "b") == kept
        assert np.isfinite(table.runs(outcome, "b")).all()
        differences, _, _ = table.differences(outcome, "a", "b")
        assert finite_pairs(differences).shape[1] == 6
    (verdict,) = (one for one in judge(table, table) if one.primary)
    assert verdict.n == 6 and verdict.natural
    expected = mean(A[seed] - B[seed] for seed in kept)
    assert verdict.natural["mean"] == pytest.approx(expected)


@pytest.mark.parametrize(("items", "least"), [(None, 1 / 1000), (20, 1 / 20), (1000, 1 / 1000)])
def test_the_unit_of_a_task_is_the_pooled_sd_within_arms_or_one_item(
    items: int | None, least: float
) -> None:
    tasks = {"t0": {"metric": "f1", "test_items": items}, "t1": {"metric": "f1"}}
    runs = {"b": B, "a": A, "start": [0.1, 0.9, 0.3, 0.3, 0.3, 0.3, 0.3]}
    table = table_of(runs, {"b": A, "a": B, "start": B}, tasks=tasks)
    # The start is no trained arm.
    pooled = math.sqrt((6 * variance(B) + 6 * variance(A)) / 12)
    assert table.sds["t0"] == pytest.approx(max(pooled, least))
    assert table.has_least_sd("t0") == (pooled < least)
    differences, least_sds, scores = table.differences("tasks", "a", "b")
    unit = max(pooled, least)
    assert differences[0] == pytest.approx([(a - b) / unit for a, b in zip(A, B)])
    assert differences[1] == pytest.approx([(b - a) / pooled for a, b in zip(A, B)])
    assert least_sds == pytest.approx([least / unit, 0.001 / pooled])
    assert scores == pytest.approx([0.6 / unit, 0.6 / pooled])


def test_a_single_run_of_each_arm_has_no_unit() -> None:
    table = table_of({"b": [0.5], "a": [0.6]}, {"b": [0.3], "a": [0.2]})
    assert math.isnan(table.sds["t0"]) and table.scales["tasks"].unit == "score"
    assert table.mean_gain("tasks", "a", "b") == pytest.approx(0.0)


def test_gains_of_losses_have_the_other_sign() -> None:
    table = table_of({"b": [3.0, 3.1], "a": [2.9, 3.2]}, metric="nats")
    assert table.gains("t0", "a", "b") == pytest.approx([0.1, -0.1])
    assert table.mean("t0", "a") == pytest.approx(3.05)
    assert table.mean_gain("t0", "a", "b") == 0.0
    assert table.largest("t0", "a", "b") == 3.2


def test_a_difference_that_is_only_rounding_is_0() -> None:
    assert subtracted(np.array([0.1 + 0.2, 0.31]), np.array([0.3, 0.3])).tolist() == [
        0.0,
        pytest.approx(0.01),
    ]
    table = table_of({"b": [0.3] * 6, "a": [0.1 + 0.2] * 6})
    assert table.gains("t0", "a", "b").tolist() == [0.0] * 6


def test_the_floor_is_the_start_of_the_same_seed_or_its_mean() -> None:
    start = {"b": B, "a": A, "start": [0.2, 0.3, 0.4]}
    floor = table_of(start).floor("t0")
    assert floor is not None and floor == pytest.approx([0.2, 0.3, 0.4, 0.3, 0.3, 0.3, 0.3])
    # A start that is a pre-trained model has learned something: the floor is guessing.
    recipe = {"model": {"pretrained": "some/model"}}
    tasks = {"t0": {"metric": "accuracy", "majority": 0.25}}
    floor = table_of(start, metric="accuracy", recipe=recipe, tasks=tasks).floor("t0")
    assert floor is not None and floor.tolist() == [0.25] * 7
    assert table_of(start, recipe=recipe).floor("t0") is None


def test_the_arms_with_the_most_runs_are_complete() -> None:
    lost = [FAILED | {"stage": "pretrain-1"}]
    lines = [task_line("t0", "a", seed, value) for seed, value in enumerate(A) if seed != 2]
    table = table_of({"b": B, "c": B}, more=[*lines, *lost], arms={arm: {} for arm in "bca"})
    mean = pytest.approx(sum(B) / len(B))
    assert [*table.means("t0")] == ["b", "c"] and table.means("t0") == {"b": mean, "c": mean}
    assert table.means("t0", over="b") == {"b": 0, "c": 0}


def heldout(arm: str, ratio: float, split: str, value: float, *, seed: int = 0) -> dict[str, Any]:
    return {
        "kind": "heldout",
        "arm": arm,
        "seed": seed,
        "measure": "token",
        "ratio": ratio,
        "metric": "nats",
        "unit": "nats",
        "higher_is_better": False,
        "split": split,
        "value": value,
    }


def test_the_gap_of_an_arm_is_its_largest_below_word_frequencies() -> None:
    lines = []
    for ratio, loss, unigram in ((0.15, 5.0, 6.0), (0.4, 5.5, 6.9)):
        lines += [heldout("a", ratio, "test", loss), heldout("a", ratio, "unigram", unigram)]
    table = table_of(differing([1]), more=lines)
    assert table.gap_nats("a") == pytest.approx(1.4)
    assert table.gap_nats("b") is None
    assert table.mean("heldout:token", "a") == pytest.approx(5.25)


LOSSES = [5.7, 5.8, 5.6, 5.9, 5.75, 5.65]
FREQUENCIES = [6.1, 6.2, 6.15, 6.1, 6.12, 6.05]


def losses_of(arms: dict[str, dict[str, Any]], *, tasks: dict[str, Any]) -> Outcomes:
    """A study from scratch in which arm "a" is compared with "start", by held-out losses alone."""
    lines = []
    for seed, (loss, unigram) in enumerate(zip(LOSSES, FREQUENCIES, strict=True)):
        for number, arm in enumerate(arms):
            lines.append(heldout(arm, 0.15, "test", loss + number, seed=seed))
            lines.append(heldout(arm, 0.15, "unigram", unigram, seed=seed))
    facts = {"policy": "token", "ratio": "", "overrides": {}}
    described: Any = {
        "baseline": "b",
        "seeds": [*range(6)],
        "arms": {arm: facts | own for arm, own in arms.items()},
        "untrained": {"start": "word frequencies"},
        "contrasts": [["a", "start"]],
        "outcome": "heldout:token@0.15",
        "tasks": tasks,
    }
    return Outcomes(lines, described)


def test_without_tasks_a_model_from_scratch_is_compared_with_word_frequencies() -> None:
    table = losses_of({"a": {}, "b": {}}, tasks={})
    assert table.runs("heldout:token", "start").tolist() == FREQUENCIES
    (verdict,) = judge(table, table)
    assert verdict.primary and verdict.decision == "decided" and verdict.n == 6
    gains = [unigram - loss for unigram, loss in zip(FREQUENCIES, LOSSES, strict=True)]
    assert table.mean_gain("heldout:token", "a", "start") == pytest.approx(mean(gains))


def test_with_tasks_the_untrained_model_has_no_held_out_loss() -> None:
    table = losses_of({"a": {}, "b": {}}, tasks={"t0": {"metric": "f1"}})
    assert not np.isfinite(table.runs("heldout:token", "start")).any()


def test_word_frequencies_of_several_tokenizers_are_not_compared() -> None:
    """Those of the first arm would stand for all."""
    arms = {"a": {"tokenizer": "1"}, "b": {"tokenizer": "2"}}
    table = losses_of(arms, tasks={})
    assert table.incomparable("a", "start", "heldout:token") == "different-tokenizers"
    alike = losses_of({"a": {"tokenizer": "1"}, "b": {"tokenizer": "1"}}, tasks={})
    assert alike.incomparable("a", "start", "heldout:token") is None
