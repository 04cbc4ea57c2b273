"""Uncertainty from the choice of test items, computed from sums per item of both arms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from maskwise.tasks.metrics import METRICS, compact, error_of_items
from maskwise.tasks.task import JACKKNIFE_GROUPS
from maskwise.verdict.items import contributions, errors_on_rows, paired_item_errors, together
from maskwise.verdict.outcomes import Outcomes
from maskwise.verdict.statistics import estimated
from report_fixture import codes, facts_of, make_study, primary_rows, score_record, summary_of
from tiny import load_rows, maskwise, read_lines, write_inputs

RNG = np.random.default_rng(5)


# Sums of items
# ----------------------------------------------------------------------------


def sums_of(task: Any, answers: Any) -> tuple[np.ndarray, float, float]:
    """The contributions of items, their mean and its standard error."""
    sums, sizes = task.item_sums("test", answers).T
    each = contributions({"item_sums": compact(sums), "item_sizes": compact(sizes)})
    return each, float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each)))


def classes(folder: Any, metric: str, *, repeated: int = 1) -> tuple[Any, Any]:
    """A task of three classes, whose texts occur several times in the test set, and answers."""
    rows = []
    for number in range(900):
        split = ("train", "dev", "test")[number % 3]
        text = f"text {split} {number // (3 * repeated)}"
        rows.append({"text": text, "label": "abc"[RNG.integers(3)], "split": split})
    task = load_rows(folder, rows, kind="sequence-classification", metric=metric)
    gold = task.gold("test")
    right = RNG.random(len(gold)) < 0.6
    return task, np.where(right, gold, (gold + 1) % 3)


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", "matthews"])
def test_sums_of_items_give_the_score_and_its_error(metric, tmp_path):
    task, answers = classes(tmp_path, metric)
    each, mean, error = sums_of(task, answers)
    score = task.score("test", answers)
    assert mean == pytest.approx(score, abs=2e-3)
    if metric == "accuracy":
        assert mean == pytest.approx(score, abs=1e-9) and len(each) == 300
    else:
        assert len(each) == JACKKNIFE_GROUPS
    gold = task.gold("test")
    drawn = [RNG.integers(0, len(gold), len(gold)) for _ in range(1000)]
    resampled = np.std([METRICS[metric](gold[some], answers[some]) for some in drawn])
    assert error == pytest.approx(resampled, rel=0.15)


def test_a_correlation_has_an_error_too(tmp_path):
    rows = []
    for number in range(900):
        split = ("train", "dev", "test")[number % 3]
        rows.append({"text": f"text {number}", "label": RNG.normal(), "split": split})
    task = load_rows(tmp_path, rows, kind="regression")
    gold = task.gold("test")
    answers = 0.6 * gold + 0.8 * RNG.normal(size=len(gold))
    _, mean, error = sums_of(task, answers)
    assert mean == pytest.approx(task.score("test", answers), abs=5e-3)
    assert error == pytest.approx((1 - mean**2) / math.sqrt(len(gold)), rel=0.25)


def test_rows_with_the_same_text_are_one_item(tmp_path):
    task, answers = classes(tmp_path, "accuracy", repeated=4)
    each, mean, error = sums_of(task, answers)
    assert len(each) == 75 and mean == pytest.approx(task.score("test", answers), abs=1e-9)
    counts = task.row_counts("test", answers)
    keys = [row.key for row in task.splits["test"]]
    assert error == pytest.approx(error_of_items(counts, keys), rel=0.1)


def test_entities_have_an_error_too(tmp_path):
    rows = []
    for number in range(600):
        tags = [str(tag) for tag in RNG.choice(["O", "B-x", "B-y"], size=6)]
        words = [f"w{number}", *"abcde"]
        split = ("train", "dev", "test")[number % 3]
        rows.append({"tokens": words, "ner_tags": tags, "split": split})
    task = load_rows(tmp_path, rows, metric="entity-f1")
    gold = task.gold("test")
    answers = np.where(RNG.random(len(gold)) < 0.8, gold, (gold + 1) % 3)
    _, mean, error = sums_of(task, answers)
    assert mean == pytest.approx(task.score("test", answers), abs=1e-3)
    keys = [row.key for row in task.splits["test"]]
    bootstrap = error_of_items(task.row_counts("test", answers), keys)
    assert error == pytest.approx(bootstrap, rel=0.1)


# The paired difference of two arms
# ----------------------------------------------------------------------------

RUNS = 8
ITEMS = 400


def records(gain: float, *, shared: float, seed: int = 0, tasks: int = 1) -> list[dict[str, Any]]:
    """Scores of two arms on items, with three fine-tuning seeds in each of eight runs.

    The difficulty of an item has a part that both arms share (``shared``) and a part of each arm.
    """
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(tasks):
        common = rng.normal(size=ITEMS)
        for arm, lead in (("token-15", 0.0), ("token-30", gain)):
            own = rng.normal(size=ITEMS)
            ease = math.sqrt(shared) * common + math.sqrt(1 - shared) * own
            chance = 0.6 + lead + 0.1 * np.clip(ease, -3, 3)
            for run in range(RUNS):
                right = rng.binomial(3, np.clip(chance, 0, 1))
                line = score_record(arm, run, f"task-{number}", right.sum() / 3 / ITEMS)
                lines.append(line | {"item_sums": right.tolist(), "item_sizes": [3]})
    return lines


def paired_row(lines: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    (row,) = primary_rows(summary_of({"token-15": [], "token-30": []}, more=lines, **changes))
    return row


@pytest.fixture
def of_two_arms(monkeypatch):
    """A study of two arms with eight runs and one task."""
    changes = {"seeds": [*range(RUNS)]}
    return lambda *args, **more: paired_row(records(*args, **more), **changes)


def half(row: dict[str, Any]) -> float:
    return row["items"]["alone"]


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.95])
def test_the_error_is_that_of_the_difference_over_other_test_sets(shared, of_two_arms):
    """Simulated test sets: the standard deviation of the mean difference is the recorded one."""
    rows = [of_two_arms(0.02, shared=shared, seed=seed) for seed in range(120)]
    spread = np.std([row["natural"]["mean"] for row in rows], ddof=1)
    error = np.mean([half(row) for row in rows]) / 1.96
    assert all(row["items"]["paired"] for row in rows)
    assert error == pytest.approx(spread, rel=0.2)


def test_other_items_could_reverse_a_lead_only_if_the_arms_differ_by_item(of_two_arms):
    flagged = of_two_arms(0.012, shared=0.0, seed=3)
    clear = of_two_arms(0.012, shared=1.0, seed=3)
    assert flagged["items"]["paired"] and clear["items"]["paired"]
    assert "items" in codes(flagged) and "items" not in codes(clear)
    assert not facts_of(flagged, "items")["assumed"]


def test_without_sums_the_error_is_assumed_and_said_to_be(of_two_arms):
    lines = records(0.012, shared=1.0, seed=3)
    for line in lines:
        if line["arm"] == "token-30" and line["seed"] == 2:
            del line["item_sums"], line["item_sizes"]
    row = paired_row(lines, seeds=[*range(RUNS)])
    assert "paired" not in row["items"] and "items" in codes(row)
    assert facts_of(row, "items")["assumed"]
    assert half(row) > 2 * half(of_two_arms(0.012, shared=1.0, seed=3))


@pytest.mark.parametrize(("same", "factor"), [(False, math.sqrt(2)), (True, 1.0)])
def test_several_tasks_are_independent_unless_they_have_the_same_rows(same, factor):
    """On the same rows, the differences of a row are added, so errors can be correlated."""
    one, other = records(0.0, shared=0.0), []
    for line in one:
        other.append({**line, "measure": "task-1"})
    facts = {"metric": "accuracy", "majority": 0.05, "test_items": ITEMS}
    tasks = {f"task-{i}": facts | {"test_texts": "x" * (1 + i * (not same))} for i in range(2)}
    single = paired_row(one, seeds=[*range(RUNS)])
    both = paired_row(one + other, seeds=[*range(RUNS)], tasks=tasks)
    assert half(both) == pytest.approx(half(single) / factor, rel=1e-6)


def test_a_failed_run_is_left_out_of_the_items_too():
    lines = [
        line for line in records(0.0, shared=0.0) if (line["arm"], line["seed"]) != ("token-30", 4)
    ]
    lost = {"kind": "failure", "arm": "token-30", "seed": 4, "stage": "x", "error": "disk full"}
    row = paired_row([*lines, lost], seeds=[*range(RUNS)])
    assert row["n"] == RUNS - 1 and row["items"]["paired"]


# Runs and items together
# ----------------------------------------------------------------------------


def drawn(
    rng: np.random.Generator, *, of_runs: float, of_items: float, runs: int = RUNS, size: int = 200
) -> tuple[dict[str, Any], np.ndarray, dict[int, np.ndarray]]:
    """A study without a true difference: an estimate, and the differences of runs and of items."""
    shifts = of_runs * rng.normal(size=(runs, 1)) + of_items * rng.normal(size=size)
    each = shifts + 0.4 * rng.normal(size=(runs, size))
    return estimated(each.mean(axis=1)), each.mean(axis=1), dict(enumerate(each))


@pytest.mark.parametrize(("of_runs", "of_items"), [(0.02, 0.0), (0.02, 0.4), (0.0, 0.4)])
def test_the_interval_covers_other_runs_and_other_items(of_runs, of_items):
    rng = np.random.default_rng(4)
    covered = over_runs = 0
    for _ in range(400):
        test, runs, items = drawn(rng, of_runs=of_runs, of_items=of_items)
        error, single = errors_on_rows([items])
        low, high = together(test, runs, error=error, single=single)
        assert low <= test["low"] and high >= test["high"]
        covered += low <= 0 <= high
        over_runs += test["low"] <= 0 <= test["high"]
    assert covered / 400 > 0.93
    assert (over_runs / 400 > 0.93) == (not of_items)


def test_noise_of_single_runs_on_items_is_not_counted_twice():
    """It is in the error over items and in that over runs; items of their own are all of it."""
    rng = np.random.default_rng(5)
    _, _, items = drawn(rng, of_runs=0.0, of_items=0.0, size=2000)
    error, single = errors_on_rows([items])
    assert single == pytest.approx(error, rel=0.1)
    _, _, items = drawn(rng, of_runs=0.0, of_items=1.0, size=2000)
    error, single = errors_on_rows([items])
    assert single < error / 2
    own = {run: each[: 100 + run] for run, each in items.items()}
    error, single = errors_on_rows([own])
    assert single == pytest.approx(error)


def test_a_lead_that_neither_source_reverses_alone_may_be_reversed_by_both():
    rng = np.random.default_rng(0)
    said = []
    for seed in range(60):
        lines = records(0.02, shared=0.3, seed=seed)
        lift = dict(enumerate(0.016 * rng.normal(size=RUNS)))
        for line in lines:
            if line["arm"] == "token-30":
                line["value"] += lift[line["seed"]]
        row = paired_row(lines, seeds=[*range(RUNS)])
        lead, items = row["natural"], row["items"]
        runs_exclude = lead["low"] * lead["high"] > 0
        both_exclude = items["low"] * items["high"] > 0
        alone = abs(lead["mean"]) <= items["alone"]
        assert ("items" in codes(row)) == (alone or (runs_exclude and not both_exclude))
        said.append((runs_exclude, both_exclude, alone))
    assert (True, False, False) in said and (True, True, False) in said


def test_with_too_few_runs_for_a_test_there_is_no_interval():
    lines = [line for line in records(0.02, shared=0.5) if line["seed"] < 5]
    row = paired_row(lines, seeds=[*range(5)])
    assert row["items"]["low"] is None and row["items"]["alone"] > 0


# Runs with test items of their own
# ----------------------------------------------------------------------------

PAIR = ("token-30", "token-15")
LEADS = (("token-15", 0.0), ("token-30", 0.01))
OF_ONE = dict.fromkeys(range(RUNS), 0)
OF_TWO = {run: int(run > 2) for run in range(RUNS)}
OF_EACH = {run: run for run in range(RUNS)}


def records_on(sets: dict[int, int], sizes: list[int], seed: int = 0) -> list[dict[str, Any]]:
    """Scores of two arms, whose runs answer the test sets ``sets``, of the given sizes.

    The arms differ by item, in the same way in every run on the item.
    """
    rng = np.random.default_rng(seed)
    lines = []
    for arm in PAIR:
        chances = [np.clip(0.5 + 0.2 * rng.normal(size=size), 0, 1) for size in sizes]
        for run, number in sets.items():
            right = rng.binomial(3, chances[number])
            line = score_record(arm, run, "task-0", right.mean() / 3)
            lines.append(line | {"item_sums": right.tolist(), "item_sizes": [3]})
    return lines


@pytest.mark.parametrize(
    ("sets", "sizes"),
    [
        pytest.param(OF_ONE, [60], id="one set"),
        pytest.param(OF_EACH, [*range(40, 80, 5)], id="each its own"),
        pytest.param(OF_EACH, [60] * RUNS, id="each its own, of one size"),
        pytest.param(OF_TWO, [60, 90], id="two sets"),
    ],
)
def test_the_error_is_that_over_other_test_sets_also_if_runs_have_other_items(sets, sizes):
    study = make_study(runs=RUNS, tasks=1)
    means, errors = [], []
    for seed in range(150):
        table = Outcomes(records_on(sets, sizes, seed), study)
        means.append(table.mean_gain("task-0", *PAIR))
        errors.append(paired_item_errors(table, ["task-0"], PAIR)[0])
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means, ddof=1), rel=0.15)


def test_errors_of_runs_with_other_items_are_added_as_those_of_independent_draws():
    sizes = [*range(40, 80, 5)]
    lines = records_on(OF_EACH, sizes)
    own = []
    for run, size in OF_EACH.items():
        ours, theirs = (next(x for x in lines if (x["arm"], x["seed"]) == (a, run)) for a in PAIR)
        by_item = np.subtract(ours["item_sums"], theirs["item_sums"]) / 3
        own.append(np.std(by_item, ddof=1) / math.sqrt(sizes[size]))
    row = paired_row(lines, seeds=[*range(RUNS)])
    assert row["items"]["paired"]
    assert half(row) == pytest.approx(1.96 * math.hypot(*own) / RUNS)


def test_on_the_same_rows_tasks_are_added_also_if_each_run_has_its_own():
    lines = records_on(OF_EACH, [*range(40, 80, 5)])
    more = [line | {"measure": "task-1"} for line in lines]
    facts = {"metric": "accuracy", "majority": 0.05, "test_items": 60, "test_texts": "x"}
    both = paired_row(lines + more, seeds=[*range(RUNS)], tasks={"task-0": facts, "task-1": facts})
    assert half(both) == pytest.approx(half(paired_row(lines, seeds=[*range(RUNS)])))


@pytest.mark.parametrize("spec", ["facts/{seed}.jsonl(name='task-0')", "facts(seed='run')"])
def test_an_assumed_error_falls_with_the_number_of_runs_that_have_their_own_items(spec):
    """More runs then help, and no advice says otherwise."""
    scores = {arm: [0.5 + lead + 0.001 * run for run in range(RUNS)] for arm, lead in LEADS}
    shared = summary_of(scores, recipe={"tasks": ["facts.jsonl"]})
    own = summary_of(scores, recipe={"tasks": [spec]})
    rows = [primary_rows(summary)[0] for summary in (shared, own)]
    assert half(rows[0]) == pytest.approx(math.sqrt(RUNS) * half(rows[1]))
    assert all("items" in codes(row) and facts_of(row, "items")["assumed"] for row in rows)
    assert ["test set" in " ".join(summary["advice"]) for summary in (shared, own)] == [True, False]


@pytest.mark.parametrize(
    ("specs", "own"),
    [
        (["facts", "facts/{seed}.jsonl"], [False, True]),
        (["facts/{seed}.jsonl", "facts"], [True, False]),
        (["facts/{seed}.jsonl"], [False, False]),
        (None, [False, False]),
    ],
)
def test_the_recipe_says_which_tasks_have_a_file_for_each_run(specs, own):
    table = Outcomes([], make_study(tasks=2, recipe={"tasks": specs}))
    assert [table.has_items_per_run(task) for task in ("task-0", "task-1")] == own


@pytest.mark.slow
def test_a_study_records_sums_of_items(tmp_path):
    recipe = write_inputs(tmp_path / "inputs")
    out = tmp_path / "out"
    assert maskwise("study", recipe, "study.seeds=1", "--out", out, "--jobs", 1) == 0
    lines = read_lines(out / "records.jsonl")
    scores = [line for line in lines if line["kind"] == "task" and line["split"] == "test"]
    assert len(scores) == 3
    for line in scores:
        assert line["item_sizes"] == [2] and len(line["item_sums"]) == 10
        assert sum(line["item_sums"]) / 20 == pytest.approx(line["value"])
