"""Scores from elsewhere are judged like those of a study."""

from __future__ import annotations

import csv
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import maskwise as mw
from maskwise.base.constants import REFERENCE
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_lines
from maskwise.report import summary_of, write_comparison
from maskwise.report.charts import score_charts
from maskwise.report.drawing import arm_colours
from maskwise.report.reading import read_folder
from maskwise.results.estimates import SPREADS, reasons, shown, with_minus
from maskwise.verdict.flags import FLAGS
from maskwise.verdict.sentences import OF_RECIPES
from processes import processor_seconds
from tiny import maskwise as command

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
COLUMNS = ("arm", "baseline", "outcome", "n", "mean", "low", "high", "p", "p_adjusted", "verdict")
BETTER = {"replicate": "pretraining", "baseline": "b"}


def table(runs: int = 6, gain: float = 0.1, **more: Any) -> list[dict[str, Any]]:
    """Scores of two arms on one task, of which "a" is always better."""
    rows = []
    for seed in range(runs):
        for arm, score in (("b", 0.5), ("a", 0.5 + gain)):
            run = {"arm": arm, "seed": seed, "task": "t", "score": score + seed / 100}
            rows.append(run | more)
    return rows


def two_tasks(**more: Any) -> list[dict[str, Any]]:
    """The same scores on two tasks, t and u."""
    return [*table(**more), *table(task="u", **more)]


@pytest.mark.parametrize(
    ("study", "losses"),
    [
        ("decay-replication", False),
        ("format-and-policy", False),
        ("headlines-2026-11-22", True),
        ("mrd-2026-11-20", False),
        ("learn-meta-2026-11-22", False),
    ],
)
def test_recorded_studies_are_judged_alike_from_their_scores(
    study: str, losses: bool, tmp_path: Path
) -> None:
    facts = json.loads((RESULTS / study / "study.json").read_text())
    path = tmp_path / "scores.csv"
    tasks = set()
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arm", "seed", "task", "score"])
        for line in read_lines(RESULTS / study / "records.jsonl"):
            score = line["kind"] == "task" and line["split"] == "test"
            compared = score and line["arm"] != REFERENCE
            if compared and "role" not in line:
                rows.writerow([line["arm"], line["seed"], line["measure"], line["value"]])
                tasks.add(line["measure"])
    found = mw.compare(
        path,
        replicate="pretraining",
        baseline=facts["baseline"],
        contrasts=[(arm, other) for arm, other in facts["contrasts"]],
        lower=sorted(tasks) if losses else (),
    )
    recorded = summary_of(RESULTS / study)
    rows_of = [
        [tuple(row[name] for name in COLUMNS) for row in each["contrasts"] if row["primary"]]
        for each in (found.summary, recorded)
    ]
    assert rows_of[0] == rows_of[1] and rows_of[0]


def test_the_time_of_judging_grows_with_the_table_and_not_faster() -> None:
    """For 1,000 tasks it was four times that for 500, because each task read the whole table."""
    seconds = {}
    for tasks in (20, 500, 1000):
        rows = []
        for number in range(tasks):
            rows += [row | {"task": f"t{number}"} for row in table()]
        seconds[tasks] = processor_seconds(partial(mw.compare, rows, **BETTER), times=2)
    assert seconds[1000] < 3 * seconds[500]


def test_a_table_may_be_long_wide_a_frame_or_a_folder(tmp_path: Path) -> None:
    long = mw.compare(table(), **BETTER)
    wide = [{"Model": row["arm"], "run": row["seed"], "t": row["score"]} for row in table()]
    frame = pd.DataFrame(wide)
    frame.to_csv(tmp_path / "wide.csv", index=False, sep=";")
    for row in table():
        folder = tmp_path / "runs" / row["arm"] / f"seed-{row['seed']}"
        folder.mkdir(parents=True)
        result = {"eval_t": row["score"], "eval_runtime": 3.0, "eval_samples": 10, "epoch": 3.0}
        (folder / "all_results.json").write_text(json.dumps(result))
    for scores in (wide, frame, tmp_path / "wide.csv", str(tmp_path / "runs")):
        found = mw.compare(scores, **BETTER)
        assert found.summary["contrasts"] == long.summary["contrasts"]
    assert long.summary["verdict"] == "decided"
    data = long.to_dataframe()
    assert len(data) == 12 and set(data.outcome) == {"t"}


@pytest.mark.parametrize("wide", [False, True])
def test_each_arm_may_have_a_file_of_its_own(wide: bool, tmp_path: Path, capsys: Any) -> None:
    rows = [{**row, "arm": {"a": "v1.5", "b": "b"}[row["arm"]]} for row in two_tasks()]
    frame = pd.DataFrame(rows)
    if wide:
        frame = frame.pivot(index=["arm", "seed"], columns="task", values="score").reset_index()
    own = {arm: part.drop(columns="arm") for arm, part in frame.groupby("arm")}
    own["v1.5"].to_csv(tmp_path / "v1.5.csv", index=False)
    own["b"].to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    files = [tmp_path / "v1.5.csv", str(tmp_path / "b.jsonl")]
    found = mw.compare(files, **BETTER)
    assert found.summary["contrasts"] == mw.compare(rows, **BETTER).summary["contrasts"]
    assert "the file's name" in found.notes[0] and set(found.study["arms"]) == {"v1.5", "b"}
    asked = ("--baseline", "b", "--replicate", "pretraining", "--json")
    assert command("compare", *files, *asked) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "decided" and said["notes"] == found.notes


def test_nothing_of_a_table_is_left_out_silently() -> None:
    rows = [
        {
            "arm": row["arm"],
            "seed": row["seed"],
            "accuracy": row["score"],
            "f1": 50 + at,
            "note": "x",
        }
        for at, row in enumerate(table())
    ]
    found = mw.compare(rows, **BETTER)
    assert {row["outcome"] for row in found.summary["contrasts"]} == {"tasks", "accuracy", "f1"}
    notes = " ".join(found.notes)
    assert "not read: note" in notes and "f1 are read as per cent" in notes
    one = mw.compare(rows, **BETTER, columns={"score": "accuracy"})
    assert "not read: f1, note" in " ".join(one.notes)


GAPS = [None, "", float("nan"), "NaN", float("-inf"), ..., "-", "n/a", "OOM", "0,61", "61.0 %"]


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("at", [0, 5])
def test_a_run_without_a_score_hides_no_task(gap: Any, at: int) -> None:
    """A column with a gap, or a word, was not read, and the other tasks decided without it."""
    rows = [
        {"arm": row["arm"], "seed": row["seed"], "mnli": 0.4 + place / 99, "sst2": row["score"]}
        for place, row in enumerate(table())
    ]
    rows[at]["mnli"] = gap
    if gap is ...:
        del rows[at]["mnli"]
    with pytest.raises(MaskwiseError) as raised:
        mw.compare(rows, **BETTER)
    assert {"mnli", repr(rows[at]["arm"])} <= {*raised.value.what.split()}
    # Each other column is a task.
    rows[at]["mnli"] = 0.7
    rows[1] |= {"note": "again"}
    with pytest.raises(MaskwiseError, match="on note is not a finite number"):
        mw.compare(rows, **BETTER)


def test_what_a_pair_is_decides_what_is_said() -> None:
    said = {
        kind: mw.compare(table(), replicate=kind, baseline="b").summary["headline"]
        for kind in ("pretraining", "finetuning")
    }
    assert "these checkpoints" in said["finetuning"]
    assert "these checkpoints" not in said["pretraining"]


def test_a_row_that_repeats_another_is_counted_once_and_said() -> None:
    found = mw.compare(table() + table(2), **BETTER)
    assert found.records == mw.compare(table(), **BETTER).records
    assert any(note.startswith("4 rows repeat another row") for note in found.notes)
    run_twice = [{**row, "job": job} for row in table() for job in (1, 2)]
    with pytest.raises(MaskwiseError, match="two scores on t"):
        mw.compare(run_twice, **BETTER)


def test_columns_are_known_by_exact_names_in_any_case() -> None:
    spelt = {"arm": "Model", "seed": "run", "task": "Dataset", "score": "value"}
    others = {"metric": "acc", "set_type": "dev", "learning_rate": 4e-5}
    rows = [{spelt[key]: value for key, value in row.items()} | others for row in table()]
    found = mw.compare(rows, **BETTER)
    assert found.records == mw.compare(table(), **BETTER).records
    assert "Model, run, Dataset, value are arm, seed, task and score" in str(found)
    assert "not read: metric, set_type, learning_rate" in str(found)
    for key, name in spelt.items():
        if key != "task":
            unknown = [
                {f"{name}_name" if at == name else at: row[at] for at in row} for row in rows
            ]
            with pytest.raises(MaskwiseError, match=f"no column for the {key}"):
                mw.compare(unknown, **BETTER)
            assert mw.compare(unknown, **BETTER, columns={key: f"{name}_name"}).records


def test_runs_that_learned_nothing_are_not_taken_for_a_worse_arm() -> None:
    """One run of "a" is at guessing, which is the whole lead of "b" over it."""
    rows = table(10, gain=0.02)
    for row in rows:
        row["score"] += 0.3
        if (row["arm"], row["seed"]) == ("a", 3):
            row["score"] = 0.5
    [row] = mw.compare(rows, **BETTER, chance={"t": 0.5}).summary["contrasts"][:1]
    [flag] = [flag for flag in row["flags"] if flag["code"] == "collapsed"]
    facts = flag["facts"]
    assert (facts["arms"], facts["collapsed"], facts["runs"]) == (["a"], 1, 10)
    assert facts["lead"] < 0 and facts["leads"] == "b is not ahead"
    rows[7]["score"] = 0.9
    again = mw.compare(rows, **BETTER, chance={"t": 0.5}).summary
    assert all(flag["code"] != "collapsed" for row in again["contrasts"] for flag in row["flags"])


def test_a_loss_is_never_taken_for_a_score(tmp_path: Path) -> None:
    """Losses beside scores decided for the worse arm."""
    rows = [{**row, "eval_loss": 1 - row["score"]} for row in table()]
    wide = [{key: value for key, value in row.items() if key != "task"} for row in rows]
    found = mw.compare(wide, **BETTER)
    assert found.summary["verdict"] == "decided" and [*found.study["tasks"]] == ["score"]
    assert "Columns that are not read: eval_loss." in found.notes
    both = mw.compare(wide, **BETTER, lower=["eval_loss"])
    assert [*both.study["tasks"]] == ["score", "eval_loss"]
    for row in rows:
        path = tmp_path / row["arm"] / f"seed-{row['seed']}" / "all_results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"eval_accuracy": row["score"], "eval_loss": row["eval_loss"]}))
    assert [*mw.compare(tmp_path, **BETTER).study["tasks"]] == ["accuracy"]
    named = {"columns": {"score": "eval_loss"}}
    assert [*mw.compare(tmp_path, **BETTER, **named, lower=["loss"]).study["tasks"]] == ["loss"]
    only = [{"arm": row["arm"], "seed": row["seed"], "loss": 1.5} for row in rows]
    for bad, more in (
        (only, {}),
        (tmp_path, named),
        ([{**row, "task": "nll"} for row in rows], {}),
    ):
        with pytest.raises(MaskwiseError, match="lower"):
            mw.compare(bad, **BETTER, **more)


GRID = [(arm, seed) for arm in ("b", "a") for seed in range(6)]


def score_of(arm: str, seed: int) -> float:
    return 0.5 + 0.1 * (arm == "a") + seed / 100


def results_in(folder: Path, results_of: Any) -> None:
    """Write results of two arms; ``results_of`` returns those of a run, or a text of a file."""
    for arm, seed in GRID:
        path = folder / arm / f"seed-{seed}" / "all_results.json"
        path.parent.mkdir(parents=True)
        found = results_of(arm, seed)
        path.write_text(found if isinstance(found, str) else json.dumps(found))


def test_one_score_of_a_folder_is_read_and_one_of_several_is_named(tmp_path: Path) -> None:
    """MRPC's two scores and their mean were three tasks; a time was averaged with scores."""
    of_trainer = {"eval_loss": 0.4, "eval_steps_per_second": 0.9, "epoch": 3.0}
    results_in(tmp_path / "one", lambda arm, seed: {"eval_f1": score_of(arm, seed)} | of_trainer)
    results_in(
        tmp_path / "two",
        lambda arm, seed: {"eval_accuracy": 0.5, "predict_f1": score_of(arm, seed)} | of_trainer,
    )
    one = mw.compare(tmp_path / "one", **BETTER)
    assert [*one.study["tasks"]] == ["f1"]
    assert "not read: eval_loss, eval_steps_per_second, epoch" in " ".join(one.notes)
    with pytest.raises(
        MaskwiseError, match="several scores; got eval_accuracy, predict_f1"
    ) as said:
        mw.compare(tmp_path / "two", **BETTER)
    assert "--column score=eval_accuracy" in str(said.value.do)
    two = mw.compare(tmp_path / "two", **BETTER, columns={"score": "predict_f1"})
    assert two.summary["contrasts"] == one.summary["contrasts"]
    for columns in ({"score": "f2"}, {"seed": "seed"}):
        with pytest.raises(MaskwiseError):
            mw.compare(tmp_path / "two", **BETTER, columns=columns)


def test_runs_of_a_folder_without_results_are_named(tmp_path: Path) -> None:
    results_in(tmp_path, lambda arm, seed: {"eval_accuracy": score_of(arm, seed)})
    for arm in "ab":
        (tmp_path / arm / "seed-6").mkdir()
    found = mw.compare(tmp_path, **BETTER)
    assert any({"a/seed-6,", "b/seed-6."} <= {*note.split()} for note in found.notes)


@pytest.mark.parametrize("also", ["steps", "Epoch", "learning_rate", "weights"])
def test_settings_of_runs_are_no_scores(also: str) -> None:
    """A column of epochs was averaged with the scores."""
    rows = [
        {"arm": row["arm"], "seed": row["seed"], "accuracy": row["score"], also: 3.0}
        for row in table()
    ]
    found = mw.compare(rows, **BETTER)
    assert [*found.study["tasks"]] == ["accuracy"]
    assert f"Columns that are not read: {also}." in found.notes
    # Without a known name of a score, each column that is not about runs is a task.
    tasks = [{"sst2": row.pop("accuracy"), **row} for row in rows]
    assert ({*mw.compare(tasks, **BETTER).study["tasks"]} == {"sst2"}) is (also != "weights")
    with pytest.raises(MaskwiseError, match="no column of scores"):
        mw.compare([{"arm": a, "seed": n, "epoch": 3} for a, n in GRID], **BETTER)


def test_a_single_run_of_each_arm_has_all_its_scores() -> None:
    rows = [{"arm": arm, "seed": 0, "lr": 0.1, "sst2": 0.8, "rte": 0.6} for arm in "ab"]
    assert [*mw.compare(rows, **BETTER).study["tasks"]] == ["sst2", "rte"]


def test_a_score_of_1_is_a_share() -> None:
    """All items right; and 1 per cent where others are above."""
    rows = table(gain=0.45)
    assert max(row["score"] for row in rows) == 1
    found = mw.compare(rows, **BETTER)
    assert [line["value"] for line in found.records] == [row["score"] for row in rows]
    assert not any("per cent" in note for note in found.notes)
    beside = [
        {**row, "score": 100 * row["score"]} if row["task"] == "u" else row
        for row in two_tasks(gain=0.45)
    ]
    with pytest.raises(MaskwiseError, match="on t are shares or per cent; those on u"):
        mw.compare(beside, **BETTER)
    mixed = [{**row, "score": 100 * row["score"]} for row in rows]
    for small in (0.9, 1.0):
        mixed[0]["score"] = small
        with pytest.raises(MaskwiseError, match="shares and per cent"):
            mw.compare(mixed, **BETTER)
    mixed[0]["score"] = 1.1
    assert mw.compare(mixed, **BETTER).records[0]["value"] == 1.1 / 100
    with pytest.raises(MaskwiseError, match="share or per cent"):
        mw.compare(mixed, **BETTER, chance={"t": 1})
    assert mw.compare(rows, **BETTER, chance={"t": 1}).study["tasks"]["t"]["majority"] == 1


def test_guessing_is_in_per_cent_if_the_scores_are() -> None:
    """With ``chance=50``, no arm seemed to be better than guessing, nor with 1 per cent."""
    rows = [{**row, "score": 100 * row["score"]} for row in table()]
    found = mw.compare(rows, **BETTER, chance={"t": 40})
    assert found.study["tasks"]["t"]["majority"] == 0.4
    assert found.summary["verdict"] == "decided"
    assert any("40 % on t" in note for note in found.notes)
    for chance, instead in ((0.4, "40"), (1, "100"), (0.0067, "0.67")):
        with pytest.raises(MaskwiseError, match="share or per cent") as caught:
            mw.compare(rows, **BETTER, chance={"t": chance})
        assert f"give {instead}; for {chance:g} %, give the scores as shares" in caught.value.do
    shares = mw.compare(table(), **BETTER, chance={"t": 0.0067})
    assert shares.study["tasks"]["t"]["majority"] == 0.0067


def test_a_column_of_per_cent_has_no_task_that_is_read_as_shares() -> None:
    """Scores of at most 1 % on one task were read as shares: a lead of 17.5 points."""
    rows = [*two_tasks()]
    for row in rows:
        row["score"] *= 100 if row["task"] == "t" else 1
    with pytest.raises(MaskwiseError, match="on u are shares or per cent; those on t"):
        mw.compare(rows, **BETTER)
    mw.compare(rows, **BETTER, lower=["u"])
    own = {(row["arm"], row["seed"]): {"arm": row["arm"], "seed": row["seed"]} for row in rows}
    for row in rows:
        own[row["arm"], row["seed"]][row["task"]] = row["score"]
    wide = mw.compare([*own.values()], **BETTER)
    assert wide.summary["verdict"] == "decided"
    assert "The scores on u are read as shares." in wide.notes
    # Scores of 0 are 0 in both.
    for row in rows:
        row["score"] *= row["task"] == "t"
    mw.compare(rows, **BETTER)


def test_no_task_is_nearly_full_if_its_number_of_items_is_not_known() -> None:
    """A thousand items were assumed, and scores of .9996 said to be full."""
    scores = {"a": [0.9996, 0.9997], "b": [0.9991, 0.9992]}
    rows = [
        {"arm": arm, "seed": seed, "t": few[seed % 2], "u": few[seed % 3 % 2]}
        for arm, few in scores.items()
        for seed in range(7)
    ]
    for table_ in (rows, [{**row, "u": 0.5 + row["seed"] / 99} for row in rows]):
        found = mw.compare(table_, **BETTER)
        flags = [flag for row in found.summary["contrasts"] for flag in row["flags"]]
        assert "test item" not in json.dumps([flags, found.summary["advice"]])
    best = [{"arm": row["arm"], "seed": row["seed"], "t": 1.0} for row in rows]
    full = mw.compare(best, **BETTER).summary["contrasts"]
    assert any(flag["code"] == "ceiling" for row in full for flag in row["flags"])


def test_no_masks_are_advised_on_if_only_scores_are_known() -> None:
    found = mw.compare(table(gain=0.0), **BETTER)
    codes = {flag["code"] for row in found.summary["contrasts"] for flag in row["flags"]}
    assert "identical" in codes
    assert "mask" not in " ".join(found.summary["advice"])


def test_a_margin_is_said_in_points() -> None:
    """A margin of 1, meant as one point, made every difference one that does not matter."""
    found = mw.compare(table(gain=0.001), **BETTER, margin=0.01)
    assert found.study["margin"] == 0.01 and "±1 points" in " ".join(found.notes)


def test_the_interval_within_a_margin_is_in_its_unit_and_not_in_sds() -> None:
    """An uneven task turns the plain mean around, and points were called SDs: −0.0 to 0.0."""
    rng = np.random.default_rng(41)
    scores = 0.7 + rng.normal(0, [0.002, 0.02], (2, 8, 2))
    rows = [
        {"arm": arm, "seed": seed, "steady": run[0], "uneven": run[1]}
        for arm, runs in zip("ab", scores)
        for seed, run in enumerate(runs)
    ]
    [row, *_] = mw.compare(rows, **BETTER, margin=0.05).summary["contrasts"]
    assert row["verdict"] == "no difference that matters"
    assert shown(row).unit == SPREADS
    low, high = (100 * row["equivalence"][end] for end in ("low", "high"))
    # The lead is that of the side which is ahead in SDs.
    low, high = (low, high) if row["mean"] > 0 else (-high, -low)
    ends = with_minus(f"{low:.1f} to {high:.1f}")
    assert f"% interval, {ends} score points, lies within ±5 (" in row["sentence"]
    assert f"b's lead: {shown(row).ends(ahead=True)} {SPREADS};" in row["sentence"]


def test_few_pairs_decide_nothing_and_say_how_many_would() -> None:
    found = mw.compare(table(runs=5), **BETTER)
    assert found.summary["verdict"] == "open" and "at least 6 pairs" in " ".join(found.notes)
    enough = mw.compare(table(runs=8), **BETTER)
    assert "SDs of the paired differences" in " ".join(enough.notes)


def arm_of(arm: str, gain: float, seeds: range) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "seed": seed, "task": "t", "score": 0.5 + gain + 0.01 * (seed % 4)}
        for seed in seeds
    ]


def test_pairs_are_counted_for_each_contrast_and_not_by_all_seeds_of_a_table(
    tmp_path: Path,
) -> None:
    """20 seeds of an arm that is in no contrast were 20 pairs, which could decide."""
    few = [*arm_of("a", 0.1, range(5)), *arm_of("b", 0, range(5)), *arm_of("c", 0, range(20))]
    found = mw.compare(few, **BETTER, contrasts=[("a", "b")])
    assert found.summary["planned"]["runs"] == 5
    notes = " ".join(found.notes)
    assert "with 5 pairs" in notes and "at least 6 pairs" in notes and "20" not in notes
    found.save(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "5 pre-training runs of each arm" in page and "20 pre-training runs" not in page
    # Two contrasts with 6 pairs each were 12 pairs.
    apart = [*arm_of("a", 0.1, range(6)), *arm_of("b", 0, range(6))]
    apart += [*arm_of("c", 0.1, range(6, 12)), *arm_of("d", 0, range(6, 12))]
    found = mw.compare(apart, **BETTER, contrasts=[("a", "b"), ("c", "d")])
    assert "with 6 pairs" in " ".join(found.notes) and "12 pairs" not in " ".join(found.notes)
    assert found.summary["verdict"] == "open"


def test_contrasts_with_too_few_pairs_are_named_beside_others() -> None:
    rows = [*arm_of("a", 0.1, range(5)), *arm_of("b", 0, range(5))]
    rows += [*arm_of("c", 0.1, range(5, 15)), *arm_of("d", 0, range(5, 15))]
    found = mw.compare(rows, **BETTER, contrasts=[("a", "b"), ("c", "d")])
    [note] = [note for note in found.notes if "No decision" in note]
    assert "a and b with 5 pairs" in note and "c and d" not in note and "at least 6" in note
    decided = {row["arm"]: row["verdict"] for row in found.summary["contrasts"] if row["primary"]}
    assert decided == {"a": "open", "c": "decided"}


def test_items_have_an_interval_and_no_verdict() -> None:
    rng = np.random.default_rng(0)
    rows = []
    differences = rng.normal(0.1, 1.0, 400)
    for item, difference in enumerate(differences):
        rows.append({"arm": "b", "seed": f"q{item}", "task": "t", "score": 0.0})
        rows.append({"arm": "a", "seed": f"q{item}", "task": "t", "score": difference})
    found = mw.compare(rows, replicate="items", baseline="b")
    mean, half = differences.mean(), 1.96 * differences.std(ddof=1) / 20
    lead = f"95 % interval of a's lead: −{half - mean:.3f} to {mean + half:.3f}; 400 items"
    assert f"a is ahead of b on t by {mean:.3f} ({lead})" in found.summary["headline"]
    behind = mw.compare(rows, replicate="items", baseline="a").summary["headline"]
    lead = f"95 % interval of b's lead: −{mean + half:.3f} to {half - mean:.3f}; 400 items"
    assert f"b is behind a on t by {mean:.3f} ({lead})" in behind
    assert found.summary["verdict"] is None and not found.verdicts
    equal = mw.compare([{**row, "score": 0.5} for row in rows], replicate="items", baseline="b")
    assert "ahead" not in equal.summary["headline"].partition("(")[0]
    numbered = [{**row, "arm": f"{row['arm']}-0.5"} for row in rows]
    named = mw.compare(numbered, replicate="items", baseline="b-0.5").summary["headline"]
    assert named.startswith("a-0.5 is ahead of b-0.5 on t by")
    with pytest.raises(MaskwiseError, match="at least 30"):
        mw.compare(rows[:40], replicate="items", baseline="b")
    with pytest.raises(MaskwiseError, match="no page"):
        found.save("anywhere")


@pytest.mark.parametrize("different", [0, 1, 9, 10])
def test_arms_that_differ_on_few_items_have_no_interval(different: int) -> None:
    """Thirty equal items had one of 0 to 0."""
    rows = [
        {"arm": arm, "seed": f"q{item}", "task": "t", "score": float(right)}
        for item in range(40)
        for arm, right in (("b", item % 2), ("a", item % 2 or item < 2 * different))
    ]
    said = mw.compare(rows, baseline="b", replicate="items").summary["headline"]
    assert ("95 %" in said) == (different == 10)
    assert (f"{different} of 40 items" in said) == (different < 10)
    assert " 0.000 to 0.000" not in said


def test_six_contrasts_are_taken() -> None:
    arms = [{**row, "arm": f"a{number}"} for number in range(6) for row in table(8)[1::2]]
    found = mw.compare([*arms, *table(8)[::2]], **BETTER)
    assert found.summary["planned"]["contrasts"] == 6 and found.summary["verdict"] == "decided"


def test_equal_results_are_printed(tmp_path: Path, capsys: Any) -> None:
    """One file under two names."""
    found = mw.compare(table(gain=0.0), **BETTER)
    (flag,) = (
        flag
        for row in found.summary["contrasts"]
        for flag in row["flags"]
        if row["primary"] and flag["code"] == "identical"
    )
    assert flag["sentence"] in str(found)
    pd.DataFrame(table(gain=0.0)).to_csv(tmp_path / "scores.csv", index=False)
    options = ["--baseline", "b", "--replicate", "pretraining"]
    assert command("compare", tmp_path / "scores.csv", *options) == 0
    assert flag["sentence"] in " ".join(capsys.readouterr().out.split())


def test_no_number_of_runs_is_said_without_a_margin() -> None:
    """A sentence, "About 18 runs would decide", invited readers to add them to the table."""
    noise = [0.02, -0.01, 0.03, -0.02, 0.01, 0.025]
    rows = table(gain=0.0)
    for row in rows:
        row["score"] += noise[row["seed"]] * (row["arm"] == "a")
    for margin in (None, 0.02):
        found = mw.compare(rows, **BETTER, margin=margin)
        (row,) = (row for row in found.summary["contrasts"] if row["primary"])
        assert row["verdict"] == "open" and (row["runs_to_decide"] is None) == (margin is None)
        assert "new-study" in found.summary["advice_codes"]
        (line,) = (line for line in found.summary["advice"] if "new table" in line)
        assert line in str(found) and "study.seeds" not in line
        assert (f"{row['runs_to_decide']} runs" in line) == (margin is not None)


FRAME = pd.DataFrame(table())


class Polars:
    """What a frame of polars has."""

    def to_dicts(self) -> list[dict[str, Any]]:
        return table()


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param(FRAME.set_index(["arm", "seed", "task"]).score, id="series"),
        pytest.param(FRAME.set_index(["arm", "seed", "task"]).score.rename(None), id="no-name"),
        pytest.param(FRAME.set_index(["arm", "seed"]), id="frame-with-index"),
        pytest.param(FRAME.set_index("seed", drop=False), id="index-and-column"),
        pytest.param(FRAME.pivot(index=["arm", "seed"], columns="task", values="score"), id="wide"),
        pytest.param(pa.Table.from_pandas(FRAME), id="arrow"),
        pytest.param(Polars(), id="polars"),
        pytest.param(FRAME.to_dict("list"), id="dict-of-lists"),
        pytest.param({name: FRAME[name].to_numpy() for name in FRAME}, id="dict-of-arrays"),
        pytest.param(tuple(table()), id="tuple-of-dicts"),
        pytest.param((row for row in table()), id="generator"),
    ],
)
def test_a_table_in_memory_has_rows_or_columns_with_names(scores: Any) -> None:
    found, usual = (mw.compare(each, **BETTER) for each in (scores, table()))
    assert found.summary["contrasts"] == usual.summary["contrasts"]
    assert len(found.records) == len(usual.records)


def test_a_seed_is_what_is_spelt() -> None:
    """1 and "1" are one run."""
    rows = table()
    mixed = [{**row, "seed": str(row["seed"])} if row["arm"] == "a" else row for row in rows]
    assert mw.compare(mixed, **BETTER).summary["verdict"] == "decided"


@pytest.mark.parametrize("spelling", ["--{}", "-", "{}٣", "{}.0", "run {}"])
def test_a_seed_that_is_no_whole_number_is_a_name(spelling: str) -> None:
    rows = [{**row, "seed": spelling.format(row["seed"]) + "x" * row["seed"]} for row in table()]
    found = mw.compare(rows, **BETTER)
    assert found.study["seeds"] == [*range(6)]
    assert found.summary["verdict"] == "decided"


def test_a_seed_may_have_more_digits_than_python_reads() -> None:
    rows = [{**row, "seed": "1" * 4400 + str(row["seed"])} for row in table()]
    assert mw.compare(rows, **BETTER).summary["verdict"] == "decided"


def test_the_command_prints_verdicts_and_writes_a_page(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "scores.csv"
    pd.DataFrame(table()).rename(columns={"seed": "job"}).to_csv(path, index=False)
    given = ("--baseline", "b", "--replicate", "finetuning", "--column", "seed=job")
    assert command("compare", path, *given, "--out", tmp_path / "out", "--chance", "t=0.1") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "decided" in printed and "report.html" in printed
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        "study.json",
        "records.jsonl",
        "summary.json",
        "report.html",
    }
    # The folder is like that of a study, and is written again, but no other folder is.
    assert command("report", tmp_path / "out") == 0
    assert "these checkpoints" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert command("compare", path, *given, "--out", tmp_path / "out") == 0
    assert command("compare", path, *given, "--out", tmp_path) == 2
    assert command("compare", path, *given, "--contrast", "a") == 2
    assert command("compare", path, *given, "--chance", "t=low") == 2
    capsys.readouterr()
    assert command("compare", path, *given, "--json") == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "decided"


@pytest.mark.parametrize("replicate", ["finetuning", "pretraining"])
def test_the_page_of_a_comparison_speaks_of_no_study_and_of_its_own_replicate(
    replicate: str, tmp_path: Path
) -> None:
    """It called fine-tunings of one checkpoint pre-training runs that a study had named before."""
    mw.compare(table(), **(BETTER | {"replicate": replicate})).save(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    body = re.sub("<(script|style).*?</\\1>", "", page[page.index("<main>") :], flags=re.DOTALL)
    assert not re.search("study|recipe|ways to train", body)
    assert ("one pre-training run" in body) is (replicate == "pretraining")
    assert ("one fine-tuning" in body) is (replicate == "finetuning")


def test_scores_have_no_model_to_save(tmp_path: Path) -> None:
    """It ended in KeyError: 'runs'."""
    mw.compare(table(), **BETTER).save(tmp_path / "out")
    with pytest.raises(MaskwiseError, match="no checkpoints to save"):
        mw.StudyResult.read(tmp_path / "out").save_best(tmp_path / "model")


def test_a_folder_of_a_comparison_may_have_the_page_of_two_studies(tmp_path: Path) -> None:
    """``maskwise report cmp1 cmp2`` wrote it there, and compare then refused its own folder."""
    found = mw.compare(table(), **BETTER)
    for name in ("one", "two", "two"):
        found.save(tmp_path / name)
        write_comparison(tmp_path / "one", tmp_path / name)
    (tmp_path / "two" / "mine.txt").write_text("mine")
    with pytest.raises(MaskwiseError, match="other files"):
        found.save(tmp_path / "two")


def test_a_score_without_a_known_measure_is_called_score_on_the_page(tmp_path: Path) -> None:
    """The chart and its caption had the measure None."""
    mw.compare(table(), **BETTER).save(tmp_path / "out")
    folder = read_folder(tmp_path / "out")
    [chart] = score_charts(folder, arm_colours(folder.arms, "b"))
    assert chart["metric"] == "score"
    assert "None" not in json.dumps(chart["spec"])


def test_a_missing_option_is_explained(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scores.csv"
    pd.DataFrame(table()).to_csv(path, index=False)
    assert command("compare", path, "--baseline", "b") == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "'--replicate'" in line and "pretraining, finetuning or items" in line


def test_the_repr_of_a_comparison_is_its_headline() -> None:
    """A notebook showed all records and the summary as one line."""
    found = mw.compare(table(), replicate="pretraining", baseline="b")
    assert repr(found) == f"<ComparedScores: {found.summary['headline']}>"


def test_an_arm_may_be_called_like_a_setting() -> None:
    """Advice to change a recipe is left out by its code, and not by its words."""
    rows = [
        {"arm": arm, "seed": seed, "task": "t", "score": score + seed / 100 + noise * (seed % 2)}
        for arm, score, noise in (("study.v2", 0.8, 0.001), ("bert", 0.7, 0.0))
        for seed in range(6)
    ]
    found = mw.compare(rows, baseline="bert", replicate="pretraining").summary["advice"]
    assert found[0].startswith("Use study.v2 rather than bert: ")


def test_advice_that_names_settings_of_a_study_is_known_by_its_code() -> None:
    assert {flag.code for flag in FLAGS if "study." in flag.advice} <= OF_RECIPES


def test_reasons_name_the_arms_that_their_sentences_do_not_name() -> None:
    def row(arm: str, amount: str) -> dict[str, Any]:
        sentence = f"other test items could reverse the result, by {amount}"
        return {"arm": arm, "flags": [{"sentence": sentence, "facts": {}}]}

    first, second = reasons([row("more", "3.1 points"), row("t", "2.0 points")])
    assert first.startswith("more: ") and second.startswith("t: ")


def test_names_of_scores_may_be_in_any_script() -> None:
    rows = [{"arm": a, "seed": n, "точность": score_of(a, n)} for a, n in GRID]
    assert [*mw.compare(rows, **BETTER).study["tasks"]] == ["точность"]
    with pytest.raises(MaskwiseError, match="on host is not a finite number") as caught:
        mw.compare([{**row, "host": "x"} for row in rows], **BETTER)
    assert "remove it, or name the one that has" in str(caught.value.do)
    assert mw.compare(
        [{**row, "host": "x"} for row in rows], **BETTER, columns={"score": "точность"}
    )
