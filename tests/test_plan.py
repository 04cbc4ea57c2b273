"""What a study runs: chains of stages, shared between arms and studies; searching, matching,
dropping, dry runs.

Stages are done here, in this process, one after the other: the engines have tests of their own.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from invented import world
from maskwise.base.constants import FRESH_RUN, REFERENCE
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import write_json
from maskwise.recipe import Recipe, read_recipe
from maskwise.recipe import recipe as recipes
from maskwise.report import write_report
from maskwise.report.reading import read_folder
from maskwise.studies import (
    Run,
    checks,
    design,
    dry_run,
    make_plan,
    run,
    run_stage,
    run_study,
    stages,
)
from maskwise.studies.design import Design, _scores, best_point
from maskwise.studies.forecast import first_of
from maskwise.studies.plan import make_run
from maskwise.studies.records import collect, describe, require_same_study, so_far
from maskwise.studies.stages import KINDS, Stage
from maskwise.studies.store import StageStore
from maskwise.text.settings import CorpusSettings
from tiny import (
    check_refused,
    compare,
    load_json,
    maskwise,
    read_lines,
    records_of,
    write_inputs,
    write_lines,
)

QUICK = ["training.steps=10", "training.save_every=0", "training.eval_every=0"]
SCORED = [*QUICK, "finetune.seeds=1"]


def replace_engine(
    patch: pytest.MonkeyPatch, work: Callable[[Stage, StageStore], object]
) -> list[str]:
    """Do stages here, by ``work``; returns a list that gets the names of those that were done."""
    names: list[str] = []

    def execute(todo: list[Stage], store: StageStore, plan: Any, **more: Any) -> dict[str, str]:
        errors: dict[str, str] = {}
        for stage in todo:
            broken = [errors[need] for need in stage.needs if need in errors]
            try:
                if broken:
                    raise MaskwiseError(broken[0])
                work(stage, store)
                names.append(stage.name)
            except MaskwiseError as error:
                errors[stage.name] = str(error)
        return errors

    patch.setattr("maskwise.studies.run.execute", execute)
    return names


@pytest.fixture(autouse=True)
def done(monkeypatch):
    """No study draws its page, which takes longer than its trainings here."""
    monkeypatch.setattr("maskwise.report.write_report", lambda out, **given: out / "report.html")
    return replace_engine(monkeypatch, run_stage)


@pytest.fixture
def fake(monkeypatch, done):
    """Trainings that are only said to be done."""
    return replace_engine(monkeypatch, pretend)


def pretend(stage: Stage, store: StageStore) -> None:
    """The loss is lower the nearer the learning rate is to 0.01 (even seeds) or 0.02 (odd ones)."""
    if stage.kind == "prepare":
        run_stage(stage, store)
        return
    result: dict[str, Any] = {"seconds": 1.0}
    if stage.kind == "pretrain":
        training = stage.what["training"]
        if training["learning_rate"] > 1:
            raise MaskwiseError("the loss is not finite")
        result |= {"steps": training["steps"], "tokens": 1, "targets": 1, "flops": 1}
    else:
        training = load_json(store.folder(stage.needs[1]) / "stage.json")["what"]["training"]
        best = 0.01 if training["seed"] % 2 == 0 else 0.02
        loss = 5 + abs(training["learning_rate"] - best) + 1e-7 * training["seed"]
        line = {"kind": "heldout", "metric": "nats", "unit": "nats", "higher_is_better": False}
        line |= {"ratio": 0.15, "items": 9}
        values = [{"split": "test", "value": loss}, {"split": "unigram", "value": 6.0}]
        rows = [line | {"measure": kind} | value for kind in MASKS for value in values]
        result["measurements"] = rows
    write_json(store.folder(stage) / "stage.json", stage.as_dict())
    write_json(store.folder(stage) / "done.json", result)


MASKS = ("token", "whole-word")
RATIOS = "evaluation.ratios=[0.15, 0.3, 0.4]"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def quick(recipe: Path, *overrides: str) -> Recipe:
    """The tiny recipe with few steps and without tasks."""
    return read_recipe(recipe, [*QUICK, "tasks=[]", *overrides])


def kinds(names: list[str]) -> dict[str, int]:
    found = [name.split("-")[0] for name in names]
    return {kind: found.count(kind) for kind in dict.fromkeys(found)}


# Stages that are shared
# ----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_studies_with_a_common_first_stage_run_it_once(tmp_path, done):
    source = write_inputs(tmp_path / "in")
    shared = tmp_path / "shared"

    def did(out: str, *overrides: str) -> dict[str, int]:
        done.clear()
        study = quick(source, "study.seeds=1", *overrides)
        assert not run_study(study, tmp_path / out, cache=shared)["failures"]
        return kinds(done)

    assert did("a") == {"prepare": 1, "pretrain": 2, "evaluate": 2}
    # The second goes on from the very checkpoints of the first.
    again = ("phases=[{}, {training.steps: 5, masking.ratio: 0.4}]",)
    assert did("b", *again) == {"pretrain": 2, "evaluate": 2}
    assert did("all there", *again) == {}
    corpus = tmp_path / "in" / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("a", "e", 1))  # one character
    os.utime(corpus, ns=(1, 1))
    assert did("c", *again) == {"prepare": 1, "pretrain": 4, "evaluate": 2}
    # another question trains nothing again
    assert did("d", *again, RATIOS) == {"evaluate": 2}
    assert (shared / done[0]).is_dir() and not (tmp_path / "d" / "stages" / done[0]).exists()
    # The same command without --stages uses them again.
    shutil.move(tmp_path / "d" / "records.jsonl", tmp_path / "records.jsonl")
    done.clear()
    run_study(quick(source, "study.seeds=1", *again, RATIOS), tmp_path / "d")
    assert not done and records_of(tmp_path / "d", "heldout")


def test_the_shared_folder_may_come_from_the_environment_or_the_recipe(
    recipe, tmp_path, monkeypatch, done
):
    monkeypatch.setenv("MASKWISE_STAGES", str(tmp_path / "env"))
    for more in ([], [f"study.cache={tmp_path / 'said'}"]):
        study = quick(recipe, "study.seeds=1", "study.arms={a: {}}", *more)
        run_study(study, tmp_path / f"out-{len(more)}")
    for folder in ("env", "said"):
        assert len(list((tmp_path / folder).iterdir())) == 3


def test_a_chain_trains_on_from_its_checkpoint(recipe, tmp_path, done):
    out = tmp_path / "out"
    arms = "study.arms={a: {}, b: {phases: none}}"
    more = ("training.learning_rate=1e-9", "phases=[{}, {training.steps: 3}]", arms)
    assert not run_study(quick(recipe, "study.seeds=1", *more), out)["failures"]
    by_arm = {"a": [], "b": []}
    for record in records_of(out, "heldout"):
        if record["split"] == "test":
            by_arm[record["arm"]].append(record["value"])
    # it had learnt nothing, and learnt nothing more
    assert by_arm["a"] == pytest.approx(by_arm["b"], abs=1e-4)
    assert {r["arm"]: r["steps"] for r in records_of(out, "cost")} == {"a": 13, "b": 10}


# Choosing
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scores, place, tied",
    [
        ([{"a": 1.0}, {"a": 3.0}, {"a": 2.0}], 1, False),
        ([{"a": 1.0}, {"a": 2.0}, {"a": 3.0}], 2, False),
        ([{"a": 1.0}, {"a": 3.0}, {"a": 3.0}], 1, False),  # the first of equal ones
        ([{"a": 0.0, "b": 2.0}] * 3, 0, True),
        # one task says nothing, the other does
        ([{"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 2.0}], 1, False),
        ([{"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 1.0}], 0, False),  # equal means of different scores
        ([None, {"a": -2.0}, {"a": -3.0}], 1, False),  # the first failed
        ([None, None, None], None, False),
        ([None, {"a": 1.0}], 1, False),  # one point alone is not a tie
        # A task with large numbers does not outvote the other: both are standardised.
        ([{"a": 0.0, "b": 0.2}, {"a": 1.0, "b": 0.3}, {"a": 100.0, "b": 0.0}], 1, False),
    ],
)
def test_the_best_point_of_a_grid(scores, place, tied):
    choice = best_point(scores)
    assert (choice.place, choice.tied) == (place, tied)
    assert [mean is None for mean in choice.means] == [one is None for one in scores]


@pytest.mark.parametrize(
    ("dev", "loss", "scores"),
    [
        # fewer nats are better
        ([5.0, 5.2], 3.0, {"worlds/{seed}.jsonl": pytest.approx(-5.1), "heldout:token@0.15": -3.0}),
        ([5.0, None], 3.0, None),
        ([5.0], None, None),
        ([5.0], math.inf, None),
    ],
)
def test_scores_of_a_point_have_the_names_of_the_recipe_and_are_numbers(
    dev, loss, scores, tmp_path
):
    task = Stage("finetune", {"task": "worlds/50.jsonl"})
    known = [each for each in dev if each is not None]
    score = {"kind": "task", "measure": "worlds", "metric": "nats", "higher_is_better": False}
    on_dev = {**score, "split": "dev", "value": sum(known) / len(known), "fine_tuning": known}
    on_test = {**score, "split": "test", "value": 6.0, "fine_tuning": [6.0] * len(dev)}
    evaluated = Stage("evaluate", {})
    line = {"kind": "heldout", "measure": "token", "ratio": 0.15, "value": loss}
    others = [{**line, "measure": "whole-word"}, {**line, "split": "unigram", "value": 6.0}]
    for stage, result in (
        (task, {"measurements": [on_test, on_dev]}),
        (evaluated, {"measurements": [line, *others]}),
    ):
        write_json(StageStore(tmp_path).folder(stage) / "done.json", result | {"seconds": 1})
    run = Run("a", 0, Recipe(), (), evaluated, tasks={"worlds/{seed}.jsonl": task})
    assert _scores(run, StageStore(tmp_path), ["token"]) == scores


RATES = "study.search={grid: {training.learning_rate: [1e+30, 1e-9, 1e-2, 2e-2]}}"


def test_every_seed_chooses_for_every_arm_and_a_new_run_is_compared(recipe, tmp_path, fake):
    read = quick(recipe, "study.seeds=2", RATES)
    out = tmp_path / "out"
    result = run_study(read, out)
    assert kinds(fake)["pretrain"] == 2 * 2 * 3 + 2 * 2 and not result["failures"]  # four diverged
    chosen = {}
    for record in records_of(out, "selection"):
        seed = record["search_seed"]
        assert record["by"] == "held-out" and record["tied"] is False
        assert record["seed"] == seed + FRESH_RUN
        chosen[record["arm"], seed] = record["chosen"]["training.learning_rate"]
        failed, *others = record["candidates"]
        assert failed["score"] is None and failed["scores"] is None
        scores = [candidate["score"] for candidate in others]
        assert max(scores) == scores[1 + seed]
        masks = "token" if record["arm"] == "token-15" else "whole-word"
        assert set(others[0]["scores"]) == {f"heldout:{masks}@0.15"}
    rates = {0: 0.01, 1: 0.02}
    assert chosen == {(arm, seed): rates[seed] for arm in read.study.arms for seed in rates}
    # Nothing of the grid is reported: it is in the records of no run, and in timings it is a
    # choice.
    records = (out / "records.jsonl").read_bytes()
    assert {record["seed"] for record in read_lines(out / "records.jsonl")} == {10_000, 10_001}
    study = load_json(out / "study.json")
    assert study["seeds"] == [10_000, 10_001]
    for facts in study["arms"].values():
        for seed, folder in facts["runs"].items():
            training = load_json(out / folder / "stage.json")["what"]["training"]
            assert training["seed"] == int(seed)
            assert training["learning_rate"] == rates[int(seed) - FRESH_RUN]
    purposes = {(line["purpose"], line["seed"]) for line in read_lines(out / "timings.jsonl")}
    assert purposes == {("choice", 0), ("choice", 1), ("main", 10_000), ("main", 10_001)}
    fake.clear()
    run_study(read, out)
    assert (out / "records.jsonl").read_bytes() == records and not fake


def test_an_arm_whose_search_fails_with_a_seed_lacks_that_run(recipe, tmp_path, fake):
    """It is not compared at the settings as written, which nobody chose."""
    search = (
        "study.search={grid: {training.learning_rate: [1e-2, 2e-2]}, own: {b: "
        "{training.learning_rate: [10.0, 20.0]}}}"
    )
    more = ("study.seeds=2", "study.arms={a: {}, b: {}}", search)
    out = tmp_path / "out"
    result = run_study(quick(recipe, *more), out)
    failures = {(record["arm"], record["seed"], record["stage"]) for record in result["failures"]}
    assert failures == {("b", 10_000, "search"), ("b", 10_001, "search")}
    assert all("the loss is not finite" in record["error"] for record in result["failures"])
    assert {record["arm"] for record in records_of(out, "cost")} == {"a"}
    choices = {(r["arm"], r["seed"]): r["chosen"] for r in records_of(out, "selection")}
    assert choices["b", 10_000] is None and choices["a", 10_000] == {"training.learning_rate": 0.01}


def test_a_pair_may_be_the_gate_and_a_contrast_of_searched_arms(recipe, tmp_path, fake):
    """The gate compares runs of its own, at the settings as written."""
    gate = ["study.gate=[words-30, token-15]", "study.contrasts=[[words-30, token-15]]"]
    out = tmp_path / "out"
    result = run_study(quick(recipe, "study.seeds=6", RATES, *gate), out)
    rows = [row for row in result["contrasts"] if row["primary"]]
    assert [(row.get("gate", False), row["scope"], row["n"]) for row in rows] == [
        (True, "at these settings", 6),
        (False, "each arm tuned", 6),
    ]
    # Runs of the gate are not pooled with others on the page.
    pooled = read_folder(out).of_kind("heldout")
    assert {record["seed"] for record in pooled} == set(range(FRESH_RUN, FRESH_RUN + 6))
    for record in read_lines(out / "records.jsonl"):
        assert record.get("role") == ("gate" if record.get("seed", FRESH_RUN) < FRESH_RUN else None)


def test_gates_say_what_they_close(recipe):
    both = [
        "study.contrasts=[[token-15, no-pretraining], [words-30, token-15]]",
        "study.gate=[words-30, token-15]",
    ]
    # Without a search the gate's own pair is the same test; with one, it is another question.
    assert read_recipe(recipe, both).study.closed == [("token-15", "no-pretraining")]
    searched = read_recipe(recipe, [*both, RATES]).study
    assert (
        searched.closed
        == searched.pairs[1:]
        == [("token-15", "no-pretraining"), ("words-30", "token-15")]
    )
    assert read_recipe(recipe).study.closed == []


def test_the_run_that_is_compared_has_a_world_of_its_own(recipe, tmp_path):
    """Everything that the seed decides is new: settings are not judged on the people that they were
    chosen on.
    """
    own = world("factworld(people=40)", 0, 3, 10003)
    study = quick(recipe, "study.seeds=[3]", *own.settings, "study.arms={a: {}}", RATES)
    worlds = {}
    for plan in Design(study, StageStore(tmp_path), forecast=True).plans():
        worlds[plan.purpose] = {run.prepared.what["corpus"]["source"] for run in plan.runs}
    assert worlds == {
        "search": {own.of(3).source},
        "main": {own.of(10003).source},
    }


def test_matched_arms_have_the_length_that_suits_what_they_chose(recipe, tmp_path, fake):
    """A larger batch has more targets a step, so it is given fewer steps: also in the run that is
    compared.
    """
    points = "[{training.batch_size: 8, training.learning_rate: 0.01}, "
    points += "{training.batch_size: 16, training.learning_rate: 0.02}]"
    more = ("study.equal_by=targets", f"study.search={{grid: {points}}}")
    out = tmp_path / "out"
    run_study(quick(recipe, "study.seeds=2", *more), out)
    costs = [r for r in records_of(out, "cost") if r["arm"] == "token-15"]
    assert {r["seed"]: r["steps"] for r in costs} == {10_000: 10, 10_001: 5}


def test_arms_are_described_as_they_were_chosen(recipe, tmp_path):
    """Headlines and the units that losses are compared by are those of what was trained."""
    read = read_recipe(recipe, [*SCORED, "study.search={grid: {masking.ratio: [0.2, 0.4]}}"])
    design = Design(read, StageStore(tmp_path))
    written = describe(read, design)["arms"]["token-15"]
    assert (written["policy"], written["ratio"]) == ("token", "constant(0.15)")
    assert written["judged_on"] == ["token"]
    design.chosen["token-15", 0] = {"masking.ratio": 0.4, "masking.policy": "whole-word"}
    design.chosen["token-15", 1] = {"masking.ratio": 0.2}
    facts = describe(read, design)["arms"]["token-15"]
    assert facts["policy"] == "whole-word or token"
    assert facts["ratio"] == "constant(0.4) or constant(0.2)"
    assert set(facts["judged_on"]) == {"whole-word", "token"} and facts["units"] == "mixture"


def test_a_search_by_tasks_looks_at_dev(recipe, tmp_path, done):
    grid = "[{training.learning_rate: 0.005}, {training.learning_rate: 0.01}]"
    more = [*SCORED, "study.seeds=[9]", f"study.search={{grid: {grid}}}", "study.arms={a: {}}"]
    out = tmp_path / "out"
    compare(recipe, more, out)
    [record] = records_of(out, "selection")
    [task] = record["candidates"][0]["scores"]
    devs = []
    for file in out.glob("stages/finetune-*/done.json"):
        rows = load_json(file)["measurements"]
        devs += [row["value"] for row in rows if row["split"] == "dev"]
    assert record["by"] == "dev" and {c["scores"][task] for c in record["candidates"]} <= set(devs)
    # The reference has nothing to choose, and is a new start too.
    who = {(r["arm"], r["seed"]) for r in records_of(out, "task")}
    assert who == {("a", 10_009), (REFERENCE, 10_009)}


# Blocks of seeds
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("search", [[], [RATES, "study.gate=[words-30, token-15]"]])
def test_blocks_of_seeds_make_the_study_that_one_run_makes(recipe, tmp_path, fake, search):
    read = quick(recipe, "study.seeds=6", *search)
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    run_study(read, whole)
    half = run_study(read, first, seeds=(3, 4, 5))
    judged = [seed + (FRESH_RUN if search else 0) for seed in range(6)]
    study = load_json(first / "study.json")
    assert study["pending"] == judged[:3] and study["seeds"] == judged
    assert half["contrasts"] == [] and half["pending"] == {"planned": 6, "done": 3}
    # Elsewhere there are the files that were committed, and no stages.
    shutil.copytree(first, second, ignore=shutil.ignore_patterns("stages"))
    run_study(read, second, seeds=(1, 0, 2))
    records = (whole / "records.jsonl").read_bytes()
    assert (second / "records.jsonl").read_bytes() == records
    found, wanted = (load_json(folder / "study.json") for folder in (second, whole))
    assert found["pending"] == [] and found["arms"] == wanted["arms"] and "looked" not in found
    summaries = [load_json(folder / "summary.json") for folder in (second, whole)]
    assert summaries[0] == summaries[1] and summaries[0]["contrasts"]
    timings = [len(read_lines(folder / "timings.jsonl")) for folder in (second, whole)]
    assert timings[0] == timings[1]
    run_study(read, second, seeds=(2,))  # once more: replaced, not added
    assert (second / "records.jsonl").read_bytes() == records


def test_seeds_that_are_not_planned_and_other_recipes_are_refused(recipe, tmp_path, fake, capfd):
    out = tmp_path / "out"
    seeds = "study.seeds=[100, 101, 102]"
    read = quick(recipe, seeds)
    with pytest.raises(MaskwiseError) as foreign:
        run_study(read, out, seeds=(101, 103))
    assert (foreign.value.got, foreign.value.allowed) == ([103], "any of 100, 101, 102")
    assert not out.exists()
    run_study(read, out, seeds=(100,))
    before = (out / "records.jsonl").read_bytes()
    with pytest.raises(MaskwiseError, match=r"different study.*training\.steps"):
        run_study(quick(recipe, seeds, "training.steps=11"), out, seeds=(101,))
    assert (out / "records.jsonl").read_bytes() == before
    texts = (recipe.parent / "corpus.jsonl").read_text()
    (recipe.parent / "corpus.jsonl").write_text(texts.replace("e", "a", 1))
    with pytest.raises(MaskwiseError, match=r"different study.*other files"):
        run_study(read, out, seeds=(101,))
    assert (out / "records.jsonl").read_bytes() == before
    (recipe.parent / "corpus.jsonl").write_text(texts)
    command = ["study", recipe, *QUICK, "tasks=[]", seeds, "--out", out, "--dry-run", "--json"]
    assert maskwise(*command, "--only-seeds", "101-102") == 0
    trainings = json.loads(capfd.readouterr().out)["stages"]["pretrain"]
    assert (trainings["done"], trainings["to_do"]) == (0, 4)
    for wrong in ("100,107", "all", "102-100", "100-101-102", "-1", "0-99999999999", ""):
        assert maskwise(*command, f"--only-seeds={wrong}") == 2


def study_of(read: Recipe, out: Path) -> Any:
    """The content of study.json of a study that has not begun."""
    return json.loads(json.dumps(describe(read, Design(read, StageStore(out / "stages")))))


SAME = [
    "training.log_every=7",
    "training.save_every=5",
    "study.cache=elsewhere",
    "description=other words",
    "name=other",
    "study.arms.words-30.training.save_every=5",
    "study.arms.token-15.training.log_every=7",
]
OTHER = [
    "training.steps=11",
    "evaluation.rows=8",
    "study.arms.words-30.training.steps=11",
    "corpus.limit=50",
]


@pytest.mark.parametrize("block", [False, True])
def test_settings_that_change_no_result_are_of_the_same_study(recipe, tmp_path, block):
    """An interrupted study was refused with another title, or another interval of its logs."""
    (tmp_path / "stages").mkdir()
    records = write_lines(tmp_path / "records.jsonl", [{"kind": "cost", "seed": 0}])
    before = study_of(quick(recipe), tmp_path)
    for change in SAME:
        study = study_of(quick(recipe, change), tmp_path)
        assert study["recipe"] != before["recipe"], change
        require_same_study(tmp_path, before, study, block=block)
        so_far(tmp_path, before, study)
        assert records.exists(), change
    for change in OTHER:
        with pytest.raises(MaskwiseError, match="different study") as error:
            require_same_study(
                tmp_path, before, study_of(quick(recipe, change), tmp_path), block=block
            )
        assert change.partition("=")[0] in str(error.value)
    # More seeds, with other logs.
    more = study_of(quick(recipe, "study.seeds=[0, 1, 2]", SAME[0]), tmp_path)
    write_lines(tmp_path / "records.jsonl", [])
    if not block:
        require_same_study(tmp_path, before, more)


def test_an_interval_that_chooses_states_is_of_another_study(recipe, tmp_path):
    write_lines(tmp_path / "records.jsonl", [{"kind": "cost", "seed": 0}])
    before = study_of(quick(recipe, "training.patience=2", "training.eval_every=2"), tmp_path)
    other = study_of(quick(recipe, "training.patience=2", "training.eval_every=5"), tmp_path)
    more = study_of(
        quick(recipe, "training.patience=2", "training.eval_every=5", "study.seeds=8"), tmp_path
    )
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(MaskwiseError, match=r"different study.*training\.eval_every"):
        require_same_study(tmp_path, before, more)
    with pytest.raises(MaskwiseError, match=r"different study.*training\.eval_every"):
        require_same_study(tmp_path, before, other)


def test_changed_files_are_of_another_study_whatever_else_changes(recipe, tmp_path):
    """They passed with other seeds, and the verdict on the former files counted as a look."""
    corpus = recipe.parent / "corpus.jsonl"
    whole = corpus.read_text()
    write_lines(tmp_path / "records.jsonl", [])
    arm = "study.arms.words-15={masking.policy: whole-word, masking.ratio: 0.15}"
    before = study_of(quick(recipe, arm), tmp_path)
    changes = ("study.seeds=[0, 1, 2]", "study.arms=token-15,words-15", "description=other words")
    try:
        for text, same in ((whole, True), (whole.replace("e", "a", 1), False)):
            corpus.write_text(text)
            for change in changes:
                study = study_of(quick(recipe, arm, change), tmp_path)
                if same:
                    require_same_study(tmp_path, before, study)
                    continue
                with pytest.raises(MaskwiseError, match=r"different study.*other files"):
                    require_same_study(tmp_path, before, study)
                assert "looked" not in so_far(tmp_path / "new", before, study)
    finally:
        corpus.write_text(whole)


def test_records_without_stages_are_never_removed(recipe, tmp_path, fake):
    """Those of another machine were removed by a call with other seeds and no --only-seeds."""
    first, second, shared = (tmp_path / name for name in ("first", "second", "shared"))
    read = quick(recipe, "study.seeds=[100, 101]")
    run_study(read, first, seeds=(100,))
    shutil.copytree(first, second, ignore=shutil.ignore_patterns("stages"))
    run_study(read, second, seeds=(101,))
    before = (second / "records.jsonl").read_bytes()
    more = quick(recipe, "study.seeds=[100, 101, 102]")
    for lost in ("", "timings.jsonl"):
        (second / lost).unlink() if lost else None
        for call in (dry_run, run_study):
            with pytest.raises(MaskwiseError, match="stages are not here") as error:
                call(more, second, jobs=1)
            assert "100" in str(error.value.got) and str(second) in error.value.what
            assert (second / "records.jsonl").read_bytes() == before
    # With the stages of the other machine, nothing is lost.
    for stage in (first / "stages").glob("*-*"):
        shutil.copytree(stage, second / "stages" / stage.name, dirs_exist_ok=True)
    assert dry_run(more, second, jobs=1)["plans"]
    # Stages in a folder that studies share are here, too.
    run_study(read, tmp_path / "third", cache=shared)
    assert not [*(tmp_path / "third" / "stages").glob("*-*")]
    assert dry_run(more, tmp_path / "third", jobs=1)["plans"]


def test_the_hash_of_inputs_depends_on_every_file(recipe, tmp_path):
    folder = recipe.parent
    (folder / "own.jsonl").write_text((folder / "corpus.jsonl").read_text())
    cloze = {"sub_label": "Owl", "obj_label": "bird", "masked_sentences": ["An owl is a [MASK]."]}
    (folder / "cloze.jsonl").write_text(json.dumps(cloze))
    arms = f"study.arms={{a: {{corpus.source: {folder / 'own.jsonl'}}}}}"
    measures = [f"cloze({str(folder / 'cloze.jsonl')!r})"]
    read = read_recipe(recipe, [arms, f"evaluation.measures={json.dumps(measures)}"])

    def inputs() -> str:
        return Design(read, StageStore(tmp_path)).inputs

    before = inputs()
    # All arms are evaluated on the common corpus, even if each has a corpus of its own.
    for name in ("own", "corpus", "task", "cloze"):
        file = folder / f"{name}.jsonl"
        texts = file.read_text()
        changed = texts.replace('"text": "', '"text": "x', 1).replace("bird", "owl")
        assert changed != texts
        file.write_text(changed)
        # A process reads evaluation sets only once.
        stages._measures.cache_clear()
        assert inputs() != before
        file.write_text(texts)
        stages._measures.cache_clear()
        assert inputs() == before


def test_records_of_other_seeds_are_removed_before_the_work(recipe, tmp_path, fake, monkeypatch):
    """They are computed anew from the stages, which stay."""
    out = tmp_path / "out"
    read = quick(recipe, "study.seeds=[100, 101]")
    run_study(read, out, seeds=(100,))
    stages = sorted((out / "stages").glob("*-*"))

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("maskwise.studies.run.execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(quick(recipe, "study.seeds=[100, 101, 102]"), out)
    assert not (out / "records.jsonl").exists()
    assert sorted((out / "stages").glob("*-*")) == stages


def test_a_dry_run_counts_the_runs_of_a_search(recipe, tmp_path):
    more = [*SCORED, "study.seeds=2", "study.gate=[words-30, token-15]"]
    more.append("study.search={grid: {training.learning_rate: [0.1, 0.2, 0.3]}}")
    found = dry_run(read_recipe(recipe, more), tmp_path / "out")
    runs = {line["purpose"]: line["runs"] for line in found["plans"]}
    # arms × points × seeds; arms and reference, and two for the gate
    assert runs == {"search": 2 * 3 * 2, "main": 2 * 3 + 2 * 2}
    assert found["stages"]["pretrain"]["to_do"] == 12 + 4 + 4


def test_a_search_for_test_items_that_fails_is_told_and_takes_no_run_down(
    recipe, tmp_path, done, monkeypatch
):
    def failing(*_: Any) -> Any:
        raise MaskwiseError("no search today")

    monkeypatch.setitem(KINDS, "overlap", replace(KINDS["overlap"], run=failing))
    result = compare(recipe, [*SCORED, "study.seeds=1"], tmp_path / "out")
    assert [failure["error"] for failure in result["failures"]] == ["no search today"]
    kinds = {record["kind"] for record in read_lines(tmp_path / "out" / "records.jsonl")}
    assert "task" in kinds and "failure" not in kinds


def test_what_cannot_be_chosen_by_is_refused_before_any_work(recipe, tmp_path, done):
    """Losses of different vocabularies, whichever setting makes them; and tasks without dev
    rows.
    """
    pairs = write_lines(
        tmp_path / "pairs.jsonl",
        [{"text": f"{word} b", "text_pair": word, "score": ord(word) / 100} for word in "abcd"],
    )
    frozen = f'tasks=["{pairs}(kind=\\"zero-shot-similarity\\")"]'
    sizes = "grid: {tokenizer.vocab_size: [80, 120]}"
    rates = "grid: {training.learning_rate: [0.1, 0.2]}"
    limits = "study.search={grid: {corpus.limit: [20, 40]}}"
    for said, *more in (
        ("cannot choose between tokenizers", "tasks=[]", f"study.search={{{sizes}}}"),
        ("cannot choose between tokenizers", f"study.search={{{sizes}, by: held-out}}"),
        ("cannot choose between tokenizers", "tasks=[]", limits),
        ("study.search compares dev scores", frozen, f"study.search={{{rates}}}"),
        # An arm without masks of its own would tie at every point.
        (
            "needs held-out losses of arm",
            "objective={tsdae: {}}",
            f"study.search={{{rates}, by: held-out}}",
        ),
        (
            "on its own kind of masks.*got .'span'",
            "evaluation.masks=[span]",
            f"study.search={{{rates}, by: held-out}}",
        ),
    ):
        with pytest.raises(MaskwiseError, match=said):
            compare(recipe, more, tmp_path / "out")
        assert not (tmp_path / "out").exists() and not done
    for more in (
        ["tokenizer.name=null", f"study.search={{{sizes}}}"],
        [frozen, f"study.search={{{rates}, by: held-out}}"],
    ):
        assert dry_run(read_recipe(recipe, more), tmp_path / "out")["plans"]


def test_a_search_does_not_choose_between_output_formats(recipe, tmp_path):
    """The losses of two formats are no list of equal length: a traceback after all search runs."""
    own = ["objective=denoise", "model={architecture: bart}", "evaluation.masks=[token]"]
    own += ["masking.corruption=infill", "study.arms={a: {}, b: {masking.ratio: 0.3}}"]
    own += ["tasks=[]"]

    def plan(second: str) -> object:
        grid = f"study.search={{grid: {{masking.corruption: [infill, {second}]}}}}"
        return dry_run(read_recipe(recipe, [*own, grid]), tmp_path / "out")["plans"]

    assert plan("infill(1)")
    with pytest.raises(MaskwiseError, match=r"output formats of arm 'a'.*got full, sent"):
        plan("t5")


@pytest.mark.slow
def test_matched_arms_may_try_several_texts(recipe, tmp_path, fake):
    """The texts of all points are prepared first. A point whose text was not there yet would have
    the steps as written, and the same call again would train other runs.
    """
    search = "study.search={grid: {corpus.held_out: [0.2, 0.3]}}"
    study = quick(recipe, "study.equal_by=targets", search, "study.seeds=1")
    run_study(study, tmp_path / "out")
    assert [name.split("-")[0] for name in fake[:2]] == ["prepare", "prepare"]
    fake.clear()
    run_study(study, tmp_path / "out")
    assert not fake


def test_a_score_that_is_no_number_costs_its_pair_only(recipe, tmp_path, done):
    """A model that diverged at its last step: the run is a failure, all others are judged, and the
    page says so.
    """
    out, more = tmp_path / "out", [*SCORED, "study.seeds=3"]
    compare(recipe, more, out)
    lost = Path(load_json(out / "study.json")["arms"]["words-30"]["runs"]["1"]).name
    for file in out.glob("stages/*/done.json"):
        if lost not in load_json(file.with_name("stage.json"))["needs"]:
            continue
        result = load_json(file)
        result["measurements"][0]["value"] = math.inf
        file.write_text(json.dumps(result))
    found = compare(recipe, more, out)
    assert [(r["arm"], r["seed"]) for r in found["failures"]] == [("words-30", 1)] * 2
    assert ("words-30", 1) not in {(r["arm"], r["seed"]) for r in records_of(out, "task")}
    assert "NaN" not in (out / "records.jsonl").read_text() + (out / "summary.json").read_text()
    [row] = [row for row in found["contrasts"] if row["outcome"] == "tasks"]
    assert row["n"] == 2 and found["arms"]["words-30"]["failures"] == 1
    assert "not a finite number" in write_report(out).read_text()


def test_an_arm_is_validated_once_however_many_runs_it_has(recipe, tmp_path, monkeypatch):
    validate = recipes.validate
    validated = []

    def counted(settings: Any, *, origin: str, **more: Any) -> Recipe:
        validated.append(origin)
        return validate(settings, origin=origin, **more)

    monkeypatch.setattr(recipes, "validate", counted)
    recipes._validate_once.cache_clear()
    study = read_recipe(recipe, ["study.seeds=3"])
    plans = list(Design(study, StageStore(tmp_path / "stages")).plans())
    # Two arms and the reference, whose recipe is that of the baseline.
    assert len(plans[-1].runs) == 9
    assert sorted(validated) == [f"arm {name!r}" for name in sorted(study.study.arms)]


# Matching
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["targets", "flops"])
def test_arms_spend_what_the_baseline_spends(recipe, tmp_path, by, done):
    arms = "study.arms={low: {masking.ratio: 0.15}, high: {masking.ratio: 0.45}}"
    more = ("study.seeds=1", "training.steps=30", arms, f"study.equal_by={by}", "evaluation.rows=4")
    out = tmp_path / "out"
    run_study(quick(recipe, *more), out)
    cost = {r["arm"]: r for r in records_of(out, "cost")}
    assert load_json(out / "study.json")["match"]["by"] == by
    assert cost["low"]["steps"] == 30 and cost["high"]["steps"] < 30
    assert cost["high"][by] == pytest.approx(cost["low"][by], rel=0.06)  # whole steps, other rows
    if by == "targets":
        assert cost["high"]["steps"] == pytest.approx(10, abs=1)


@pytest.mark.parametrize(
    "steps",
    [
        "study.arms.high.training.steps=9",
        "study.arms.high.phases=[{training.steps: 9}, {}]",
        "study.search={grid: {training.steps: [9, 30]}}",
        "study.search={grid: {training.learning_rate: [1, 2]}, own: {low: {training.steps: [9]}}}",
    ],
)
def test_steps_that_matching_would_overwrite_are_refused(recipe, steps):
    arms = "study.arms={low: {masking.ratio: 0.15}, high: {masking.ratio: 0.45}}"
    more = ("study.seeds=1", "training.steps=30", arms, steps)
    quick(recipe, *more)
    with pytest.raises(MaskwiseError, match=r"training.steps, which study.equal_by=targets"):
        quick(recipe, *more, "study.equal_by=targets")
    # Those of the baseline are what the others are matched to.
    quick(recipe, *more[:3], "study.arms.low.training.steps=9", "study.equal_by=targets")


def test_arms_are_not_matched_by_flops_that_are_not_known(recipe, tmp_path, monkeypatch):
    """Those of Funnel and Reformer were wrong by half and by a tenth."""
    monkeypatch.setattr(StageStore, "result", lambda store, stage: {"seconds": 1.0})
    costs = {"targets": 5.0, "flops": 0.0}
    monkeypatch.setattr(design, "_measured_step", lambda settings, text: costs)
    arms = "study.arms={low: {masking.ratio: 0.15}, high: {masking.ratio: 0.45}}"
    with pytest.raises(MaskwiseError, match=r"'low' are not known.*study\.equal_by=targets"):
        [*Design(quick(recipe, arms, "study.equal_by=flops"), StageStore(tmp_path)).plans()]
    [*Design(quick(recipe, arms, "study.equal_by=targets"), StageStore(tmp_path)).plans()]


# Companions, dropping, dry runs
# ----------------------------------------------------------------------------


@pytest.mark.slow
def test_an_interruption_in_any_phase_changes_no_record(recipe, tmp_path, done, monkeypatch):
    """All at once: a search, two stages of training, matching; stopped after every
    third stage.
    """
    search = "study.search={grid: {training.learning_rate: [1e-3, 1e-2]}}"
    more = ["phases=[{}, {training.steps: 4}]", "study.equal_by=targets"]
    whole = read_recipe(recipe, [*SCORED, search, "study.seeds=1", *more])
    one, two = tmp_path / "one", tmp_path / "two"
    run_study(whole, one)
    complete = sorted(done)
    engine = run.execute

    def three(todo: Any, stages: Path, plan: Any, **options: Any) -> dict[str, str]:
        errors = engine(todo[:3], stages, plan, **options)
        if len(todo) > 3:
            raise KeyboardInterrupt
        return errors

    monkeypatch.setattr("maskwise.studies.run.execute", three)
    done.clear()
    stops = 0
    while not (two / "records.jsonl").exists():
        stops += 1
        with suppress(KeyboardInterrupt):
            run_study(whole, two)
    assert stops > 5 and sorted(done) == complete
    assert (one / "records.jsonl").read_bytes() == (two / "records.jsonl").read_bytes()
    found = {record["kind"] for record in read_lines(one / "records.jsonl")}
    assert found == {"selection", "cost", "heldout", "task", "overlap"}
    assert "Settings chosen for each arm" in write_report(one).read_text(encoding="utf-8")


def test_pairs_have_fine_tuning_seeds_of_their_own(recipe):
    """All runs that were trained had the seeds of run 0, so one lucky seed won every pair."""
    seeds = {}
    for each in make_plan(read_recipe(recipe, [*SCORED, "study.seeds=3"])).runs:
        for stage in each.tasks.values():
            seeds.setdefault(each.seed, set()).add(stage.what.get("seed", 0))
    assert seeds == {0: {0}, 1: {1}, 2: {2}}


def test_a_dry_run_writes_nothing_and_knows_what_is_there(
    recipe, tmp_path, done, capfd, monkeypatch, tmp_path_factory
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    shared = tmp_path / "shared"

    def counted(*overrides: str) -> tuple[Any, dict[str, tuple[int, int]]]:
        study = read_recipe(recipe, [*SCORED, *overrides])
        found = dry_run(study, tmp_path / "new", jobs=1, cache=shared)
        counts = {kind: (each["done"], each["to_do"]) for kind, each in found["stages"].items()}
        return found, counts

    found, counts = counted("study.seeds=1")
    assert found["seconds"] is None and set(found["unknown"]) == set(counts)
    first = {"prepare": 1, "pretrain": 2, "evaluate": 2, "finetune": 3, "overlap": 1}
    assert counts == {kind: (0, count) for kind, count in first.items()}
    assert not list(tmp_path.iterdir())
    run_study(read_recipe(recipe, [*SCORED, "study.seeds=1"]), tmp_path / "out", cache=shared)
    nothing, counts = counted("study.seeds=1")
    assert nothing["seconds"] == 0 and counts == {kind: (n, 0) for kind, n in first.items()}
    # Arms of their own length.
    half = [f"study.arms.half-{n}={{training.steps: {n}}}" for n in (4, 5)]
    found, counts = counted("study.seeds=3", *half)
    left = {"prepare": 0, "pretrain": 10, "evaluate": 10, "finetune": 12, "overlap": 0}
    assert counts == {kind: (done, left[kind]) for kind, done in first.items()}
    timed = [load_json(path)["seconds"] for path in shared.glob("pretrain-*/done.json")]
    # Four trainings take the median of the finished ones; those of half the steps are unknown.
    assert found["unknown"] == ["pretrain"] and min(timed) > 0
    found, _ = counted("study.seeds=3")
    assert found["stages"]["pretrain"]["seconds"] == pytest.approx(2 * sum(timed), abs=0.1)
    assert found["seconds"] >= found["stages"]["pretrain"]["seconds"]
    command = ["study", recipe, *SCORED, "study.seeds=3", "--out", tmp_path / "new", "--stages"]
    command.append(shared)
    assert maskwise(*command, "--dry-run") == 0
    assert "Nothing was written" in capfd.readouterr().out and not (tmp_path / "new").exists()


# Bad input
# ----------------------------------------------------------------------------


def test_an_outcome_may_name_its_ratio_also_where_there_is_only_one():
    for ratios in ("[0.15]", "[0.15, 0.4]"):
        settings = [f"evaluation.ratios={ratios}", "study.outcome=heldout:token@0.15"]
        assert make_plan(read_recipe("quick-start", settings)).runs


def test_the_reference_of_a_model_from_scratch_needs_no_tasks_if_a_contrast_names_it():
    """Word frequencies take its place, and no stage is needed for them."""
    recipe = read_recipe("quick-start", ["study.seeds=1"])
    runs = {run.arm: run for run in make_plan(recipe).runs}
    assert {stage.kind for stage in runs[REFERENCE].chain} == {"prepare"}
    others = make_plan(read_recipe("quick-start", ["study.seeds=1", "study.gate=null"])).runs
    assert {run.arm for run in others} == {"15 %", "30 %"}


@pytest.mark.parametrize(
    "override, said",
    [
        ("study.contrasts=[[words-30, token-51]]", "did you mean 'token-15'"),
        ("study.contrasts=[[words-30]]", "is a pair of arms"),
        ("study.contrasts=[[words-30, words-30]]", "two different arms"),
        ("study.seeds={token-15: [0, 1], words-30: [2]}", "seeds is a value, not a group"),
        (
            "study.search={grid: {training.learning_rate: [1, 2]}, seeds: [1, 7]}",
            "unknown setting",
        ),
        (
            "study.gate={contrast: [words-30, token-15], closes: [[a, b]]}",
            "not a primary contrast",
        ),
        ("study.gate=[words-30]", "study.gate"),
        ("study.contrasts=[[token-15, token-15]]", "two different arms"),
        ("study.gate=[words-30, words-30]", "two different arms"),
        (
            "study.search={grid: {training.learning_rte: [1, 2]}}",
            "did you mean 'learning_rate'",
        ),
        ("study.search={gird: {}}", "did you mean 'grid'"),
        (
            "study.search={grid: {training.learning_rate: [1, 2]}, own: {c: {masking.ratio: "
            "[0.1]}}}",
            "search.own 'c'",
        ),
        (
            "study.search={grid: {training.learning_rate: [1, 2]}, own: {a: 3}}",
            "study.search.own.a: not a grid; got 3",
        ),
        ("study.search={grid: {training.learning_rate: [1]}}", "has a single combination"),
        ("study.search={grid: {training.learning_rate: 1}}", "allowed: a list"),
        ("study.search={grid: {evaluation.rows: [1, 2]}}", "cannot change evaluation.rows"),
        ("study.equal_by=target", "targets"),
        ("study.stop_hopeless={after: 3}", "unknown setting"),
        ("study.equal_by=seconds", "allowed: steps, targets, flops"),
        ("study.contrasts=3", "study.contrasts; got 3; allowed: a list"),
        (
            "study.seeds=100000000000",
            "study.seeds; got 100000000000; allowed: ≤ 1000",
        ),
        ("study.seeds=1000000", "allowed: ≤ 1000"),
        ("study.arms.x.evaluation.rows=3", "cannot change evaluation.rows"),
        ("study.arms.x.study.seeds=3", "cannot change study.seeds"),
        ("phases=[{}, {model.architecture: bert}]", "phases.1 cannot change model.architecture"),
        ("phases=[{}, {training.stepz: 3}]", "did you mean 'steps'"),
        ("phases=[{}, {corpus.length: 64}]", "≤ corpus.length = 32"),
        ("study.arms.x.phases=[{}, {training.seed: 3}]", "cannot change training.seed"),
        (
            "study.arms={a: {masking.ratio: 0.1}, b: {masking.ratio: 0.2}, c: {masking.ratio: 0.3},"
            " d: {masking.ratio: 0.4}, e: {masking.ratio: 0.5}, f: {masking.ratio: 0.6},"
            " g: {masking.ratio: 0.7}, h: {masking.ratio: 0.8}}",
            "got 7; allowed: at most 6",
        ),
    ],
)
def test_bad_studies_are_refused_when_they_are_read(recipe, override, said, tmp_path, capfd):
    check_refused(recipe, override, said, tmp_path / "out")


@pytest.mark.parametrize("start", ["model.pretrained=bundled:encoder", ""])
def test_the_start_is_a_run_that_is_not_trained(recipe, start):
    """It reads the recipe of the baseline, also its searched settings."""
    more = [start, "tokenizer={}"] if start else []
    plan = make_plan(read_recipe(recipe, [*SCORED, "study.seeds=1", *more]))
    starts = [run for run in plan.runs if not run.trained]
    assert [run.arm for run in starts] == ["no-pretraining"] and not starts[0].trainings
    others = [run for run in plan.runs if run.trained]
    assert {run.arm for run in others} == {"token-15", "words-30"}
    assert all(run.trainings for run in others)


def test_independent_failures_of_a_run_are_all_reported(tmp_path):
    """The first failure hid the second one; a stage after a failed one is not reported."""
    stages = [Stage(kind, {}, ()) for kind in ("pretrain", "evaluate", "finetune")]
    run = SimpleNamespace(stages=stages, trainings=[], who={"arm": "a", "seed": 0})
    errors = {stages[0].name: "x", stages[1].name: "x", stages[2].name: "y"}
    found = collect([run], StageStore(tmp_path), errors)
    assert {each["error"]: each["stage"] for each in found} == {
        "x": stages[0].name,
        "y": stages[2].name,
    }


def test_the_outcome_may_be_called_tasks(tmp_path: Path) -> None:
    """As the comment in a new recipe says; in files, null means the same."""
    path = write_inputs(tmp_path)
    recipe = read_recipe(path, ["study.outcome=tasks"])
    assert describe(recipe, Design(recipe, StageStore(tmp_path)))["outcome"] is None
    assert make_plan(recipe).stages() == make_plan(read_recipe(path)).stages()
    with pytest.raises(MaskwiseError, match="there are no tasks"):
        make_plan(read_recipe(path, ["study.outcome=tasks", "tasks=[]"]))


FIRST_PHASE = '[{"corpus.held_out": 0.1, "training.steps": 2}, {}]'


@pytest.mark.parametrize(
    ("override", "key", "got", "allowed"),
    [
        ("study.arms.b={corpus.held_out: 0.05}", "corpus.held_out", "0.05", "0.2 or more"),
        (f"phases={FIRST_PHASE}", "phases.0.corpus.held_out", "0.1", "0.2 or more"),
        ("study.search={grid: {corpus.held_out: [0.1, 0.3]}}", "corpus.held_out", "0.1", "0.2"),
        ("study.arms.b={corpus.group_field: topic}", "corpus.group_field", '"topic"', "null"),
        # The same file under another name.
        (
            "study.arms.b={corpus.source: {here}/sub/../corpus.jsonl, corpus.held_out: 0.1}",
            "corpus.held_out",
            "0.1",
            "0.2 or more",
        ),
    ],
)
def test_no_arm_trains_on_the_documents_that_judge_all(recipe, override, key, got, allowed):
    """All arms are evaluated on the held-out documents of the recipe."""
    read = quick(recipe, override.replace("{here}", str(recipe.parent)))
    with pytest.raises(MaskwiseError) as error:
        checks.check_inputs(read)
    assert f" {key} " in error.value.what and error.value.got == got
    assert str(error.value.allowed).startswith(allowed)


def test_arms_may_hold_out_more_and_split_texts_of_their_own(recipe, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text((recipe.parent / "corpus.jsonl").read_text().lower())
    for own in (
        "corpus.held_out: 0.3",
        f"corpus.source: {other}, corpus.held_out: 0.1",
        "corpus.stream: true",
    ):
        read = quick(recipe, f"study.arms.b={{{own}}}")
        checks.check_inputs(read)
        run = make_run(read, "b", 0, contents={})
        judging = stages.named(run.chain)[run.evaluated.needs[0]]
        held_out = CorpusSettings(**judging.what["corpus"]).held_out_documents()
        trained = {document.text for document in run.recipe.corpus.training_documents()}
        assert trained.isdisjoint(document.text for document in held_out)


@pytest.mark.parametrize("use", ["study.gate=[words-30, token-15]", "study.equal_by=targets"])
def test_what_arms_use_outside_of_the_grid_is_checked(recipe, use):
    """The runs of a gate, and the budget of matched arms, have the settings in the recipe."""
    grid = "study.search={grid: {training.freeze: [none, encoder]}}"
    more = ["study.seeds=7", grid, "training.freeze=old-rows"]
    checks.check_inputs(quick(recipe, *more))
    for check in (checks.check_inputs, checks.check_names):
        with pytest.raises(MaskwiseError, match="freeze=old-rows"):
            check(quick(recipe, *more, use))


def test_only_the_baseline_s_own_settings_are_prepared_for_the_budget(recipe, tmp_path):
    search = "study.search={grid: {corpus.limit: [40, 50]}}"
    study = quick(recipe, "study.equal_by=targets", search, "tokenizer.name=bundled:encoder")
    first = next(Design(study, StageStore(tmp_path), forecast=True).plans())
    limits = [(run.arm, run.prepared.what["corpus"]["limit"]) for run in first.runs]
    assert limits == [
        *[("token-15", limit) for limit in (None, 40, 50)],
        *[("words-30", limit) for limit in (40, 50)],
    ]


def test_secondary_tasks_neither_stop_nor_steer_a_search(recipe, tmp_path):
    rows = [{"text": f"{word} b", "text_pair": word, "score": ord(word) / 100} for word in "abcd"]
    pairs = write_lines(tmp_path / "pairs.jsonl", rows)
    task = str(recipe.parent / "task.jsonl")
    aside = f"{pairs}(kind='zero-shot-similarity', name='aside')"
    more = [f"tasks={json.dumps([task, aside])}", "study.seeds=1", RATES]
    with pytest.raises(MaskwiseError, match="compares dev scores"):
        checks.check_inputs(quick(recipe, *more))
    study = quick(recipe, *more, "study.secondary=[aside]")
    checks.check_inputs(study)
    measured = {}
    for plan in Design(study, StageStore(tmp_path), forecast=True).plans():
        measured[plan.purpose] = {name for run in plan.runs for name in run.tasks}
    assert measured == {"search": {task}, "main": {task, aside}}


def test_no_file_of_a_seed_that_is_not_in_the_study_is_read(recipe, tmp_path):
    """A study with the seeds 3 and 4 needed the files of seed 0, too."""
    for seed in (3, 4):
        for name in ("corpus", "task"):
            text = (recipe.parent / f"{name}.jsonl").read_text()
            (tmp_path / f"{name}-{seed}.jsonl").write_text(text)
    files = [f"corpus.source={tmp_path}/corpus-{{seed}}.jsonl"]
    files += [f"tasks=['{tmp_path}/task-{{seed}}.jsonl']", "study.seeds=[3, 4]", RATES]
    study = read_recipe(recipe, [*SCORED, *files])
    out = tmp_path / "out"
    assert checks.check_study(study, out, engine="local", seeds=None)[0] == (3, 4)
    checks.check_names(study)
    assert first_of(study).corpus.source == str(tmp_path / "corpus-3.jsonl")
    before = Design(study, StageStore(out)).inputs
    with (tmp_path / "task-3.jsonl").open("a") as file:
        file.write('{"text": "more", "label": "a", "split": "test"}\n')
    assert Design(study, StageStore(out)).inputs != before
