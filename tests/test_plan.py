"""What a study runs: chains of stages, shared between arms and studies; searching, matching,
dropping, dry runs.

Stages are done here, in this process, one after the other: the engines have tests of their own.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskwise.constants import FRESH_RUN, REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.folders import write_json
from maskwise.models import empty_model, new_config
from maskwise.objectives import MaskedLanguageModelling
from maskwise.recipe import Recipe, read_recipe
from maskwise.report.reading import read_folder
from maskwise.study import Run, dry_run, make_plan, run, run_stage, run_study
from maskwise.study.design import Design, _scores, choose
from maskwise.study.records import collect, describe, pending
from maskwise.study.stages import Stage
from maskwise.study.work import RUNNERS
from tiny import check_refused, compare, load_json, maskwise, read_lines, records_of, write_inputs

QUICK = ["training.steps=10", "training.save_every=0", "training.eval_every=0", "finetune.seeds=1"]


def replace_engine(patch: pytest.MonkeyPatch, work: Callable[[Stage, Path], object]) -> list[str]:
    """Do stages here, by ``work``; returns a list that gets the names of those that were done."""
    names: list[str] = []

    def execute(todo: list[Stage], stages: Path, plan: Any, **more: Any) -> dict[str, str]:
        errors: dict[str, str] = {}
        for stage in todo:
            broken = [errors[need] for need in stage.needs if need in errors]
            try:
                if broken:
                    raise MaskwiseError(broken[0])
                work(stage, stages)
                names.append(stage.name)
            except MaskwiseError as error:
                errors[stage.name] = str(error)
        return errors

    patch.setattr("maskwise.study.run.execute", execute)
    return names


@pytest.fixture(autouse=True)
def done(monkeypatch) -> list[str]:
    return replace_engine(monkeypatch, run_stage)


@pytest.fixture
def fake(monkeypatch, done) -> list[str]:
    """Trainings that are only said to be done."""
    return replace_engine(monkeypatch, pretend)


def pretend(stage: Stage, stages: Path) -> None:
    """The loss is lower the nearer the learning rate is to 0.01 (even seeds) or 0.02 (odd ones)."""
    if stage.kind == "prepare":
        run_stage(stage, stages)
        return
    result: dict[str, Any] = {"seconds": 1.0}
    if stage.kind == "pretrain":
        training = stage.what["training"]
        if training["learning_rate"] > 1:
            raise MaskwiseError("the loss is not finite")
        result |= {"steps": training["steps"], "tokens": 1, "targets": 1, "flops": 1}
    else:
        training = load_json(stages / stage.needs[1] / "stage.json")["what"]["training"]
        best = 0.01 if training["seed"] % 2 == 0 else 0.02
        loss = 5 + abs(training["learning_rate"] - best) + 1e-7 * training["seed"]
        line = {"kind": "heldout", "loss": loss, "ratio": 0.15, "unigram": 6.0, "targets": 9}
        result["records"] = [line | {"masks": kind} for kind in MASKS]
    write_json(stage.folder(stages) / "stage.json", stage.as_dict())
    write_json(stage.folder(stages) / "done.json", result)


MASKS = ("token", "whole-word")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def kinds(names: list[str]) -> dict[str, int]:
    found = [name.split("-")[0] for name in names]
    return {kind: found.count(kind) for kind in dict.fromkeys(found)}


# Stages that are shared
# ----------------------------------------------------------------------------


def test_two_studies_with_a_common_first_stage_run_it_once(tmp_path, done):
    write_inputs(tmp_path / "in")
    source, more = tmp_path / "in" / "recipe.yaml", [*QUICK, "tasks=[]", "study.seeds=1"]
    shared = tmp_path / "shared"
    run_study(read_recipe(source, more), tmp_path / "a", cache=shared, quiet=True)
    assert kinds(done) == {"prepare": 1, "pretrain": 2, "evaluate": 2}
    done.clear()
    # The second goes on from the very checkpoints of the first.
    again = [*more, "intermediate.training.steps=5", "intermediate.masking.ratio=0.4"]
    second = run_study(read_recipe(source, again), tmp_path / "b", cache=shared, quiet=True)
    assert kinds(done) == {"pretrain": 2, "evaluate": 2} and not second["failures"]
    assert len(list(shared.glob("prepare-*"))) == 1 and len(list(shared.glob("pretrain-*"))) == 4
    done.clear()
    third = run_study(read_recipe(source, again), tmp_path / "all there", cache=shared, quiet=True)
    assert not done and third["seconds"] == 0.0
    corpus = tmp_path / "in" / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("a", "e", 1))  # one character
    os.utime(corpus, ns=(1, 1))
    run_study(read_recipe(source, again), tmp_path / "c", cache=shared, quiet=True)
    assert kinds(done) == {"prepare": 1, "pretrain": 4, "evaluate": 2}
    done.clear()
    # another question trains nothing again
    more_masks = [*again, "evaluation.ratios=[0.15, 0.3, 0.4]"]
    run_study(read_recipe(source, more_masks), tmp_path / "c", cache=shared, quiet=True)
    assert kinds(done) == {"evaluate": 2}
    assert (tmp_path / "c" / "stages" / done[0]).is_symlink()


def test_the_shared_folder_may_come_from_the_environment_or_the_recipe(
    recipe, tmp_path, monkeypatch, done
):
    small = [*QUICK, "tasks=[]", "study.seeds=1", "study.arms={a: {}}"]
    monkeypatch.setenv("MASKWISE_STAGES", str(tmp_path / "env"))
    compare(recipe, small, tmp_path / "a")
    compare(recipe, [*small, f"study.cache={tmp_path / 'said'}"], tmp_path / "b")
    assert kinds(done) == {"prepare": 2, "pretrain": 2, "evaluate": 2}
    assert len(list((tmp_path / "env").iterdir())) == len(list((tmp_path / "said").iterdir())) == 3


def test_arms_with_a_second_stage_share_the_first_and_the_text_of_evaluation(recipe, tmp_path):
    write_inputs(tmp_path / "other")
    arms = {
        "both": {},
        "first only": {"intermediate": "none"},
        "late": {"intermediate.masking.ratio": 0.5},
    }
    more = [
        f"study.arms={json.dumps(arms)}",
        "study.seeds=1",
        "intermediate.training.steps=5",
        f"intermediate.corpus.source={tmp_path / 'other' / 'corpus.jsonl'}",
        "intermediate.corpus.limit=40",
    ]
    whole = read_recipe(recipe, more)
    assert read_recipe(_written(whole, tmp_path)) == whole
    plan = make_plan(whole)
    both, only, late, reference = plan.runs
    assert both.trainings[0] == only.trainings[0] == late.trainings[0]
    assert both.trainings[1].needs[1] == both.trainings[0].name
    # All are evaluated on the same text, with the tokenizer of the first.
    [name] = {run.evaluated.needs[0] for run in plan.runs if run.evaluated}
    [text] = [stage for stage in plan.stages() if stage.name == name]
    assert text.needs == (both.chain[0].name,) and text.what["corpus"]["limit"] == 40
    assert reference.arm == REFERENCE and reference.chain == (both.chain[0],)


def test_a_chain_trains_on_from_its_checkpoint(recipe, tmp_path, done):
    more = [
        *QUICK,
        "tasks=[]",
        "study.seeds=1",
        "training.learning_rate=1e-9",
        "intermediate.training.steps=3",
    ]
    out = tmp_path / "out"
    result = compare(recipe, [*more, "study.arms={a: {}, b: {intermediate: none}}"], out)
    assert not result["failures"]
    by_arm = {}
    for record in read_lines(out / "records.jsonl"):
        if record["kind"] == "heldout" and record["masks"] == "token":
            by_arm.setdefault(record["arm"], []).append(record["loss"])
    # it had learnt nothing, and learnt nothing more
    assert by_arm["a"] == pytest.approx(by_arm["b"], abs=1e-4)
    costs = {r["arm"]: r["steps"] for r in read_lines(out / "records.jsonl") if r["kind"] == "cost"}
    assert costs == {"a": 13, "b": 10}


def test_pretrain_runs_both_stages(recipe, tmp_path):
    assert (
        maskwise(
            "pretrain", recipe, *QUICK, "intermediate.training.steps=4", "--out", tmp_path / "out"
        )
        == 0
    )
    assert (tmp_path / "out" / "phase-0" / "checkpoint" / "model.safetensors").is_file()
    assert load_json(tmp_path / "out" / "done.json")["steps"] == 4


def _written(recipe: Any, folder: Path) -> Path:
    (folder / "written.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    return folder / "written.yaml"


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
    choice = choose(scores)
    assert (choice.place, choice.tied) == (place, tied)
    assert [mean is None for mean in choice.means] == [one is None for one in scores]


def test_a_task_that_each_seed_has_other_rows_of_is_one_outcome(tmp_path):
    stage = Stage("finetune", {"task": "world(seed=50)"})
    write_json(
        stage.folder(tmp_path) / "done.json", {"dev": [5.0, 5.2], "metric": "nats", "seconds": 1}
    )
    tasks = {"world(seed='run')": stage}
    scores = _scores(Run("a", 0, Recipe(), (), tasks=tasks), tmp_path, ())
    assert scores == {"world(seed='run')": pytest.approx(-5.1)}  # fewer nats are better


RATES = "study.search={grid: {training.learning_rate: [1e+30, 1e-9, 1e-2, 2e-2]}}"


def trained_with(out: Path, arm: str) -> dict[str, float]:
    """The learning rate of the reported run of every seed."""
    found = {}
    for seed, folder in load_json(out / "study.json")["arms"][arm]["runs"].items():
        training = load_json(out / folder / "stage.json")["what"]["training"]
        assert training["seed"] == int(seed)
        found[seed] = training["learning_rate"]
    return found


def test_every_seed_chooses_for_every_arm_and_a_new_run_is_compared(recipe, tmp_path, fake):
    more = [*QUICK, "tasks=[]", "study.seeds=2", RATES]
    out = tmp_path / "out"
    result = compare(recipe, more, out)
    assert kinds(fake)["pretrain"] == 2 * 2 * 3 + 2 * 2 and not result["failures"]  # four diverged
    records = read_lines(out / "records.jsonl")
    chosen = {}
    for record in records:
        if record["kind"] != "selection":
            continue
        assert record["by"] == "held-out" and record["tied"] is False
        assert record["seed"] == record["search_seed"] + FRESH_RUN
        chosen[record["arm"], record["search_seed"]] = record["chosen"]["training.learning_rate"]
        scores = [candidate["score"] for candidate in record["candidates"]]
        assert scores[0] is None and record["candidates"][0]["scores"] is None
        assert max(scores[1:]) == scores[2 + record["search_seed"]]
        masks = "token" if record["arm"] == "token-15" else "whole-word"
        assert set(record["candidates"][2]["scores"]) == {f"heldout:{masks}@0.15"}
    assert chosen == {
        ("token-15", 0): 0.01,
        ("token-15", 1): 0.02,
        ("words-30", 0): 0.01,
        ("words-30", 1): 0.02,
    }
    # Nothing of the grid is reported: it is in the records of no run, and in timings it is a
    # choice.
    assert {record["seed"] for record in records} == {10_000, 10_001}
    assert load_json(out / "study.json")["seeds"] == [10_000, 10_001]
    for arm in ("token-15", "words-30"):
        assert trained_with(out, arm) == {"10000": 0.01, "10001": 0.02}
    purposes = {(line["purpose"], line["seed"]) for line in read_lines(out / "timings.jsonl")}
    assert purposes == {("choice", 0), ("choice", 1), ("main", 10_000), ("main", 10_001)}
    before = (out / "records.jsonl").read_bytes()
    fake.clear()
    compare(recipe, more, out)
    assert (out / "records.jsonl").read_bytes() == before and not fake


def test_an_arm_whose_search_fails_with_a_seed_lacks_that_run(recipe, tmp_path, fake):
    """It is not compared at the settings as written, which nobody chose."""
    search = (
        "{grid: {training.learning_rate: [1e-2, 2e-2]}, own: {b: {training.learning_rate: "
        "[10.0, 20.0]}}}"
    )
    arms = "study.arms={a: {}, b: {}}"
    more = [
        *QUICK,
        "tasks=[]",
        "study.seeds=2",
        arms,
        f"study.search={search}",
        "study.companions=[0.5]",
    ]
    out = tmp_path / "out"
    result = compare(recipe, more, out)
    failures = {(record["arm"], record["seed"], record["stage"]) for record in result["failures"]}
    assert failures == {("b", 10_000, "search"), ("b", 10_001, "search")}
    assert all("the loss is not finite" in record["error"] for record in result["failures"])
    records = read_lines(out / "records.jsonl")
    assert {record["arm"] for record in records if record["kind"] == "cost"} == {"a"}
    choices = {(r["arm"], r["seed"]): r["chosen"] for r in records if r["kind"] == "selection"}
    assert choices["b", 10_000] is None and choices["a", 10_000] == {"training.learning_rate": 0.01}


def test_a_grid_whose_points_are_all_alike_is_said_to_be_tied(recipe, tmp_path, fake):
    more = [*QUICK, "tasks=[]", "study.seeds=1", "study.search={grid: {masking.ratio: [0.2, 0.4]}}"]
    compare(recipe, more, tmp_path / "out")
    choices = records_of(tmp_path / "out", "selection")
    assert [(r["chosen"], r["tied"]) for r in choices] == [({"masking.ratio": 0.2}, True)] * 2


def test_a_gate_compares_runs_of_its_own_at_the_settings_as_written(recipe, tmp_path, fake):
    gate = "study.gate={contrast: [words-30, token-15], closes: [[token-15, words-30]]}"
    contrasts = "study.contrasts=[[token-15, words-30], [words-30, token-15]]"
    more = [*QUICK, "tasks=[]", "study.seeds=2", RATES, gate, contrasts]
    out = tmp_path / "out"
    compare(recipe, more, out)
    study = load_json(out / "study.json")
    pairs = [["token-15", "words-30"], ["words-30", "token-15"]]
    assert (
        study["gate"] == {"contrast": pairs[1], "closes": pairs[:1]} and study["contrasts"] == pairs
    )
    costs = records_of(out, "cost")
    assert {(r["seed"], r.get("role")) for r in costs} == {
        (0, "gate"),
        (1, "gate"),
        (10_000, None),
        (10_001, None),
    }
    plain = read_recipe(recipe, [*QUICK, "tasks=[]", "study.seeds=2", gate, contrasts])
    [only] = Design(plain, tmp_path).plans()
    assert not any(run.role for run in only.runs)  # without a search they are the ordinary runs
    assert len(only.runs) == 4


def test_a_pair_may_be_the_gate_and_a_contrast_of_searched_arms(recipe, tmp_path, fake):
    gate = ["study.gate=[words-30, token-15]", "study.contrasts=[[words-30, token-15]]"]
    read = read_recipe(recipe, [*QUICK, "tasks=[]", "study.seeds=6", RATES, *gate])
    result = run_study(read, tmp_path / "out", quiet=True)
    rows = [row for row in result["contrasts"] if row["primary"]]
    assert [(row.get("gate", False), row["scope"], row["n"]) for row in rows] == [
        (True, "at these settings", 6),
        (False, "each arm tuned", 6),
    ]
    # Runs of the gate are not pooled with others on the page.
    pooled = read_folder(tmp_path / "out").of_kind("heldout")
    assert {record["seed"] for record in pooled} == set(range(FRESH_RUN, FRESH_RUN + 6))
    for record in read_lines(tmp_path / "out" / "records.jsonl"):
        assert record.get("role") == ("gate" if record.get("seed", FRESH_RUN) < FRESH_RUN else None)


def test_gates_say_what_they_close(recipe):
    both = [
        "study.contrasts=[[token-15, words-30], [words-30, token-15]]",
        "study.gate=[words-30, token-15]",
    ]
    # Without a search the gate's own pair is the same test; with one, it is another question.
    assert read_recipe(recipe, both).study.closed == [("token-15", "words-30")]
    searched = read_recipe(recipe, [*both, RATES]).study
    assert (
        searched.closed
        == searched.pairs[1:]
        == [("token-15", "words-30"), ("words-30", "token-15")]
    )
    assert read_recipe(recipe).study.closed == []


def test_the_run_that_is_compared_has_a_world_of_its_own(recipe, tmp_path):
    """Everything that the seed decides is new: settings are not judged on the people that they were
    chosen on.
    """
    world = "corpus.source=\"factworld(people=40, seed='run')\""
    more = [*QUICK, "tasks=[]", "study.seeds=[3]", world, "study.arms={a: {}}", RATES]
    design = Design(read_recipe(recipe, more), tmp_path, forecast=True)
    plans = {plan.purpose: plan.runs for plan in design.plans()}
    worlds = {
        name: {run.prepared.what["corpus"]["source"] for run in runs}
        for name, runs in plans.items()
    }
    assert worlds == {
        "search": {"factworld(people=40, seed=3)"},
        "main": {"factworld(people=40, seed=10003)"},
    }


def test_matched_arms_have_the_length_that_suits_what_they_chose(recipe, tmp_path, fake):
    """A larger batch has more targets a step, so it is given fewer steps: also in the run that is
    compared.
    """
    points = "[{training.batch_size: 8, training.learning_rate: 0.01}, "
    points += "{training.batch_size: 16, training.learning_rate: 0.02}]"
    more = [
        *QUICK,
        "tasks=[]",
        "study.seeds=2",
        f"study.search={{grid: {points}}}",
        "study.match=targets",
        "study.companions=[0.5]",
    ]
    out = tmp_path / "out"
    compare(recipe, more, out)
    costs = [
        r
        for r in read_lines(out / "records.jsonl")
        if r["kind"] == "cost" and r["arm"] == "token-15"
    ]
    steps = {(r["seed"], r.get("fraction")): r["steps"] for r in costs}
    assert steps == {(10_000, None): 10, (10_000, 0.5): 5, (10_001, None): 5, (10_001, 0.5): 2}


def test_arms_are_described_as_they_were_chosen(recipe, tmp_path):
    """Headlines and the units that losses are compared by are those of what was trained."""
    search = "study.search={grid: {masking.ratio: [0.2, 0.4]}}"
    read = read_recipe(recipe, [*QUICK, search])
    design = Design(read, tmp_path)
    written = describe(read, design)["arms"]["token-15"]
    assert (written["policy"], written["ratio"], written["judged_on"]) == (
        "token",
        "constant(0.15)",
        ["token"],
    )
    design.chosen["token-15", 0] = {"masking.ratio": 0.4, "masking.policy": "whole-word"}
    design.chosen["token-15", 1] = {"masking.ratio": 0.2}
    facts = describe(read, design)["arms"]["token-15"]
    assert set(facts["policy"].split(" or ")) == {"whole-word", "token"}
    assert set(facts["ratio"].split(" or ")) == {"constant(0.4)", "constant(0.2)"}
    assert set(facts["judged_on"]) == {"whole-word", "token"} and facts["units"] == "mixture"


def test_a_search_by_tasks_looks_at_dev(recipe, tmp_path, done):
    grid = "[{training.learning_rate: 0.005}, {training.learning_rate: 0.01}]"
    more = [*QUICK, "study.seeds=[9]", f"study.search={{grid: {grid}}}", "study.arms={a: {}}"]
    compare(recipe, more, tmp_path / "out")
    records = read_lines(tmp_path / "out" / "records.jsonl")
    [record] = [r for r in records if r["kind"] == "selection"]
    [task] = record["candidates"][0]["scores"]
    devs = []
    for folder in (tmp_path / "out" / "stages").glob("finetune-*"):
        devs += load_json(folder / "done.json")["dev"]
    assert record["by"] == "dev" and {c["scores"][task] for c in record["candidates"]} <= set(devs)
    # The reference has nothing to choose, and is a new start too.
    assert {(r["arm"], r["seed"]) for r in records if r["kind"] == "score"} == {
        ("a", 10_009),
        (REFERENCE, 10_009),
    }


# Blocks of seeds
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("search", [[], [RATES, "study.gate=[words-30, token-15]"]])
def test_blocks_of_seeds_make_the_study_that_one_run_makes(recipe, tmp_path, fake, search):
    read = read_recipe(recipe, [*QUICK, "tasks=[]", "study.seeds=6", *search])
    whole = tmp_path / "whole"
    run_study(read, whole, quiet=True)
    first, second = tmp_path / "first", tmp_path / "second"
    half = run_study(read, first, quiet=True, seeds=(3, 4, 5))
    offset = FRESH_RUN if search else 0
    study = load_json(first / "study.json")
    assert study["pending"] == [offset, offset + 1, offset + 2]
    assert study["seeds"] == [seed + offset for seed in range(6)]
    assert half["contrasts"] == [] and half["pending"] == {"planned": 6, "done": 3}
    # Elsewhere there are the files that were committed, and no stages.
    second.mkdir()
    for name in ("study.json", "records.jsonl", "timings.jsonl", "samples.json", "summary.json"):
        (second / name).write_bytes((first / name).read_bytes())
    run_study(read, second, quiet=True, seeds=(1, 0, 2))
    assert (second / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    found, wanted = (load_json(folder / "study.json") for folder in (second, whole))
    assert "pending" not in found and found["arms"] == wanted["arms"] and "looked" not in found
    summaries = [load_json(folder / "summary.json") for folder in (second, whole)]
    assert summaries[0] == summaries[1] and summaries[0]["contrasts"]
    assert len(read_lines(second / "timings.jsonl")) == len(read_lines(whole / "timings.jsonl"))
    before = (second / "records.jsonl").read_bytes()
    run_study(read, second, quiet=True, seeds=(2,))  # once more: replaced, not added
    assert (second / "records.jsonl").read_bytes() == before


def test_seeds_that_are_not_planned_and_other_recipes_are_refused(recipe, tmp_path, fake, capfd):
    out = tmp_path / "out"
    read = read_recipe(recipe, [*QUICK, "tasks=[]", "study.seeds=[100, 101, 102]"])
    with pytest.raises(MaskwiseError) as foreign:
        run_study(read, out, quiet=True, seeds=(101, 103))
    assert (foreign.value.got, foreign.value.allowed) == ([103], "any of 100, 101, 102")
    assert not out.exists()
    run_study(read, out, quiet=True, seeds=(100,))
    other = read_recipe(
        recipe, [*QUICK, "tasks=[]", "study.seeds=[100, 101, 102]", "training.steps=11"]
    )
    before = (out / "records.jsonl").read_bytes()
    with pytest.raises(MaskwiseError, match="study of a different recipe"):
        run_study(other, out, quiet=True, seeds=(101,))
    assert (out / "records.jsonl").read_bytes() == before
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("not a study")
    with pytest.raises(MaskwiseError, match="contains something else"):
        run_study(read, notes, quiet=True, seeds=(100,))
    common = ["study", recipe, *QUICK, "tasks=[]", "study.seeds=[100, 101, 102]", "--out", out]
    assert maskwise(*common, "--seeds", "101-102", "--dry-run", "--json") == 0
    trainings = json.loads(capfd.readouterr().out)["stages"]["pretrain"]
    assert (trainings["done"], trainings["to_do"]) == (0, 4)
    for wrong in ("100,107", "all", "102-100", "100-101-102", "-1", "0-99999999999", ""):
        assert maskwise(*common, f"--seeds={wrong}", "--dry-run") == 2


def test_a_dry_run_counts_the_runs_of_a_search(recipe, tmp_path):
    more = [*QUICK, "study.seeds=2", "study.companions=[0.5]", "study.gate=[words-30, token-15]"]
    more.append("study.search={grid: {training.learning_rate: [0.1, 0.2, 0.3]}}")
    found = dry_run(read_recipe(recipe, more), tmp_path / "out")
    runs = {line["purpose"]: line["runs"] for line in found["plans"]}
    # arms × points × seeds; arms and reference, and two for the gate; shorter runs of arms
    assert runs == {"search": 2 * 3 * 2, "main": 2 * 3 + 2 * 2, "companions": 2 * 2}
    assert found["stages"]["pretrain"]["to_do"] == 12 + 4 + 4 + 4
    half = dry_run(read_recipe(recipe, more), tmp_path / "out", seeds=(1,))
    assert {line["purpose"]: line["runs"] for line in half["plans"]} == {
        name: runs[name] // 2 for name in runs
    }


def test_a_search_for_test_items_that_fails_is_told_and_takes_no_run_down(
    recipe, tmp_path, done, monkeypatch
):
    def failing(*_: Any) -> Any:
        raise MaskwiseError("no search today")

    monkeypatch.setitem(RUNNERS, "overlap", failing)
    result = compare(recipe, [*QUICK, "study.seeds=1"], tmp_path / "out")
    assert [failure["error"] for failure in result["failures"]] == ["no search today"]
    kinds = {record["kind"] for record in read_lines(tmp_path / "out" / "records.jsonl")}
    assert "score" in kinds and "failure" not in kinds


def test_what_cannot_be_chosen_by_is_refused_before_any_work(recipe, tmp_path, done):
    """Losses of different vocabularies, whichever setting makes them; and tasks without dev
    rows.
    """
    rows = [
        {"text": f"{a} b", "text_pair": f"b {a}", "score": s}
        for a, s in zip("abcd", (0.1, 0.4, 0.2, 0.9))
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frozen = f'tasks=["{pairs}(kind=\\"zero-shot-similarity\\")"]'
    sizes = "grid: {tokenizer.vocab_size: [80, 120]}"
    rates = "grid: {training.learning_rate: [0.1, 0.2]}"
    for said, *more in (
        ("cannot choose between tokenizers", "tasks=[]", f"study.search={{{sizes}}}"),
        ("cannot choose between tokenizers", f"study.search={{{sizes}, by: held-out}}"),
        (
            "cannot choose between tokenizers",
            "tasks=[]",
            "study.search={grid: {corpus.limit: [20, 40]}}",
        ),
        ("study.search chooses by dev rows", frozen, f"study.search={{{rates}}}"),
        # An arm without masks of its own would tie at every point.
        ("cannot compare settings", "objective=clm", f"study.search={{{rates}, by: held-out}}"),
    ):
        with pytest.raises(MaskwiseError, match=said):
            compare(recipe, more, tmp_path / "out")
        assert not (tmp_path / "out").exists() and not done
    for more in (
        ["tokenizer.name=null", f"study.search={{{sizes}}}"],
        [frozen, f"study.search={{{rates}, by: held-out}}"],
    ):
        assert dry_run(read_recipe(recipe, more), tmp_path / "out")["plans"]


def test_matched_arms_may_try_several_texts(recipe, tmp_path, fake):
    """The texts of all points are prepared first. A point whose text was not there yet would have
    the steps as written, and the same call again would train other runs.
    """
    search = "study.search={grid: {corpus.held_out: [0.1, 0.3]}}"
    asked = [*QUICK, "tasks=[]", "study.match=targets", search, "study.seeds=1"]
    compare(recipe, asked, tmp_path / "out")
    stages = len(fake)
    assert [name.split("-")[0] for name in fake[:2]] == ["prepare", "prepare"]
    compare(recipe, asked, tmp_path / "out")
    assert len(fake) == stages


def test_a_score_that_is_no_number_costs_its_pair_only(recipe, tmp_path, done):
    """A model that diverged at its last step: the run is a failure, all others are judged, and the
    page says so.
    """
    out, more = tmp_path / "out", [*QUICK, "study.seeds=3"]
    compare(recipe, more, out)
    study = load_json(out / "study.json")
    lost = study["arms"]["words-30"]["runs"]["1"].split("/")[1]
    for folder in (out / "stages").glob("*-*"):
        if lost not in load_json(folder / "stage.json")["needs"]:
            continue
        result = load_json(folder / "done.json")
        if "score" in result:
            result |= {"score": math.nan, "fine_tuning": [math.nan]}
        else:
            result["records"][0]["loss"] = math.inf
        (folder / "done.json").write_text(json.dumps(result))
    found = compare(recipe, more, out)
    assert {(r["arm"], r["seed"]) for r in found["failures"]} == {("words-30", 1)} and len(
        found["failures"]
    ) == 2
    records = read_lines(out / "records.jsonl")
    assert not [
        r for r in records if r["kind"] == "score" and (r["arm"], r["seed"]) == ("words-30", 1)
    ]
    assert "NaN" not in (out / "records.jsonl").read_text() + (out / "summary.json").read_text()
    [row] = [row for row in found["contrasts"] if row["outcome"] == "tasks"]
    assert row["n"] == 2
    assert found["arms"]["words-30"]["failures"] == 1
    assert "not a finite number" in (out / "report.html").read_text()


def test_a_point_that_diverged_is_never_chosen(recipe, tmp_path, fake):
    """Rates above 1 fail; here the loss of one below is no number."""
    search = "study.search={grid: {training.learning_rate: [0.01, 0.5]}}"
    more = [*QUICK, "tasks=[]", "study.seeds=[8]", search, "study.arms={a: {}}"]
    out = tmp_path / "out"
    compare(recipe, more, out)
    for folder in (out / "stages").glob("evaluate-*"):
        before = load_json(folder / "stage.json")["needs"][1]
        trained = load_json(out / "stages" / before / "stage.json")["what"]["training"]
        if (trained["learning_rate"], trained["seed"]) == (0.01, 8):
            result = load_json(folder / "done.json")
            result["records"][0]["loss"] = math.nan
            (folder / "done.json").write_text(json.dumps(result))
    compare(recipe, more, out)
    [record] = records_of(out, "selection")
    assert record["chosen"] == {"training.learning_rate": 0.5}
    assert [point["score"] is None for point in record["candidates"]] == [True, False]
    assert trained_with(out, "a") == {"10008": 0.5}


# Matching
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["targets", "flops"])
def test_arms_spend_what_the_baseline_spends(recipe, tmp_path, by, done):
    arms = "study.arms={low: {masking.ratio: 0.15}, high: {masking.ratio: 0.45}}"
    more = [
        *QUICK,
        "tasks=[]",
        "study.seeds=1",
        "training.steps=30",
        arms,
        f"study.match={by}",
        "evaluation.rows=4",
    ]
    out = tmp_path / "out"
    compare(recipe, more, out)
    cost = {r["arm"]: r for r in read_lines(out / "records.jsonl") if r["kind"] == "cost"}
    assert load_json(out / "study.json")["match"]["by"] == by
    assert cost["low"]["steps"] == 30 and cost["high"]["steps"] < 30
    assert cost["high"][by] == pytest.approx(cost["low"][by], rel=0.06)  # whole steps, other rows
    if by == "targets":
        assert cost["high"]["steps"] == pytest.approx(10, abs=1)


def test_weights_of_body_and_head():
    class Tokenizer:
        pad_token_id, cls_token_id, sep_token_id, bos_token_id, eos_token_id = 0, 2, 3, None, None

        def __len__(self) -> int:
            return 100

    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    work = MaskedLanguageModelling(empty_model(new_config("bert", Tokenizer(), 32, **sizes))).work(
        1, 1
    )
    # attention, two dense, two norms
    layer = 4 * (8 * 8 + 8) + (8 * 16 + 16) + (16 * 8 + 8) + 2 * 16
    assert work.body == layer + 16  # and the norm of the embeddings
    # transform, norm, bias; decoder
    assert work.head == (8 * 8 + 8) + 16 + 100 and work.tied == 8 * 100


# Companions, dropping, dry runs
# ----------------------------------------------------------------------------


def test_companions_are_shorter_runs_of_their_own(recipe, tmp_path, done):
    more = [*QUICK, "tasks=[]", "study.seeds=2", "study.companions=[0.5, 0.2]", "training.steps=20"]
    out = tmp_path / "out"
    compare(recipe, [*more, "study.arms={a: {masking.ratio: 'linear(0.4, 0.1)'}}"], out)
    costs = records_of(out, "cost")
    assert [(r["seed"], r.get("fraction"), r["steps"]) for r in costs] == [
        (0, None, 20),
        (0, 0.5, 10),
        (0, 0.2, 4),
        (1, None, 20),
        (1, 0.5, 10),
        (1, 0.2, 4),
    ]
    ratio = {r.get("fraction", 1): r["targets"] / r["tokens"] for r in costs if r["seed"] == 0}
    assert ratio[0.5] == pytest.approx(ratio[1], rel=0.1)  # the schedule ran over their own length
    assert {
        r.get("fraction") for r in read_lines(out / "records.jsonl") if r["kind"] == "heldout"
    } == {
        None,
        0.5,
        0.2,
    }
    assert {line["fraction"] for line in read_lines(out / "timings.jsonl")} == {1.0, 0.5, 0.2}
    runs = load_json(out / "study.json")["arms"]["a"]["runs"]
    assert len(runs) == 2


def test_an_interruption_in_any_phase_changes_no_record(recipe, tmp_path, done, monkeypatch):
    """All at once: a search, two stages of training, matching, companions; stopped after every
    third stage.
    """
    search = "study.search={grid: {training.learning_rate: [1e-3, 1e-2]}}"
    more = [
        *QUICK,
        search,
        "study.seeds=1",
        "study.companions=[0.5]",
        "intermediate.training.steps=4",
        "study.match=targets",
    ]
    whole, one = read_recipe(recipe, more), tmp_path / "one"
    run_study(whole, one, quiet=True)
    complete = list(done)
    engine = run.execute

    def three(todo: Any, stages: Path, plan: Any, **options: Any) -> dict[str, str]:
        errors = engine(todo[:3], stages, plan, **options)
        if len(todo) > 3:
            raise KeyboardInterrupt
        return errors

    monkeypatch.setattr("maskwise.study.run.execute", three)
    done.clear()
    stops = 0
    while True:
        try:
            run_study(whole, tmp_path / "two", quiet=True)
            break
        except KeyboardInterrupt:
            stops += 1
            assert not (tmp_path / "two" / "records.jsonl").exists()
    assert stops >= 5 and sorted(done) == sorted(complete)
    records = [(tmp_path / name / "records.jsonl").read_bytes() for name in ("one", "two")]
    assert records[0] == records[1]
    found = {record["kind"] for record in read_lines(one / "records.jsonl")}
    assert found == {"selection", "cost", "heldout", "score", "overlap"}


def test_a_dry_run_writes_nothing_and_knows_what_is_there(recipe, tmp_path, done, capfd):
    more = [*QUICK, "study.seeds=1"]
    out, shared = tmp_path / "out", tmp_path / "shared"
    found = dry_run(read_recipe(recipe, more), out, jobs=2, cache=shared)
    assert found["seconds"] is None and set(found["unknown"]) == set(found["stages"])
    assert {k: v["to_do"] for k, v in found["stages"].items()} == {
        "prepare": 1,
        "pretrain": 2,
        "evaluate": 2,
        "finetune": 3,
        "overlap": 1,
    }
    assert not list(tmp_path.iterdir())
    run_study(read_recipe(recipe, more), out, cache=shared, quiet=True)
    nothing = dry_run(read_recipe(recipe, more), out, cache=shared)
    assert nothing["seconds"] == 0 and all(
        kind["to_do"] == 0 for kind in nothing["stages"].values()
    )
    twice = [*more, "study.seeds=3", "study.companions=[0.5]"]
    found = dry_run(read_recipe(recipe, twice), tmp_path / "new", jobs=1, cache=shared)
    assert {k: (v["done"], v["to_do"]) for k, v in found["stages"].items()} == {
        "prepare": (1, 0),
        "pretrain": (2, 10),
        "evaluate": (2, 10),
        "finetune": (3, 12),
        "overlap": (1, 0),
    }
    timed = [load_json(p)["seconds"] for p in shared.glob("pretrain-*/done.json")]
    # Four trainings take the median of the finished ones, and six of half the steps take half of
    # either one's time.
    least, most = min(timed), max(timed)
    seconds = found["stages"]["pretrain"]["seconds"]
    middle = sum(timed) / 2
    assert 4 * middle + 3 * least - 0.1 <= seconds <= 4 * middle + 3 * most + 0.1
    assert found["seconds"] >= found["stages"]["pretrain"]["seconds"]
    command = ["study", recipe, *twice, "--out", tmp_path / "new", "--stages", shared, "--dry-run"]
    assert maskwise(*command) == 0
    assert "Nothing was written" in capfd.readouterr().out and not (tmp_path / "new").exists()


# Bad input
# ----------------------------------------------------------------------------


def test_an_outcome_may_name_its_ratio_also_where_there_is_only_one():
    for ratios in ("[0.15]", "[0.15, 0.4]"):
        settings = [f"evaluation.ratios={ratios}", "study.outcome=heldout:token@0.15"]
        assert make_plan(read_recipe("quick-start", settings)).runs


@pytest.mark.parametrize("outcome", ["heldout:token@0.2", "' '", "heldout:token sentinels"])
def test_an_outcome_that_is_not_measured_is_refused_before_any_work(outcome):
    recipe = read_recipe("quick-start", [f"study.outcome={outcome}"])
    with pytest.raises(MaskwiseError, match=r"unknown outcome in study\.outcome"):
        make_plan(recipe)


@pytest.mark.parametrize(
    "override, said",
    [
        ("study.contrasts=[[words-30, token-51]]", "did you mean 'token-15'"),
        ("study.contrasts=[[words-30]]", "study.contrasts.0.1 is missing"),
        ("study.contrasts=[[words-30, words-30]]", "two different arms"),
        ("study.seeds={token-15: [0, 1], words-30: [2]}", "allowed: a whole number or a list"),
        (
            "study.search={grid: {training.learning_rate: [1, 2]}, seeds: [1, 7]}",
            "unknown setting",
        ),
        (
            "study.gate={contrast: [words-30, token-15], closes: [[a, b]]}",
            "not a primary contrast",
        ),
        ("study.gate=[words-30]", "study.gate"),
        ("study.gate=[words-30, words-30]", "two different arms"),
        (
            "study.search={grid: {training.learning_rte: [1, 2]}}",
            "did you mean 'training.learning_rate'",
        ),
        ("study.search={gird: {}}", "did you mean 'study.search.grid'"),
        (
            "study.search={grid: {training.learning_rate: [1, 2]}, own: {c: {masking.ratio: "
            "[0.1]}}}",
            "search.own 'c'",
        ),
        (
            "study.search={grid: {training.learning_rate: [1, 2]}, own: {a: 3}}",
            "study.search.own.a: not a grid; got 3",
        ),
        ("study.search={grid: {training.learning_rate: [1]}}", "offers no choice"),
        ("study.search={grid: {training.learning_rate: 1}}", "allowed: a list"),
        ("study.search={grid: {evaluation.rows: [1, 2]}}", "cannot change evaluation.rows"),
        ("study.match=target", "targets"),
        ("study.companions=[0.5, 1.0]", "study.companions.1; got 1.0; allowed: < 1"),
        ("study.stop_hopeless={after: 3}", "unknown setting"),
        ("study.match=seconds", "allowed: steps, targets, flops"),
        ("study.contrasts=3", "study.contrasts; got 3; allowed: a list"),
        (
            "study.seeds=100000000000",
            "study.seeds; got 100000000000; allowed: ≤ 1000",
        ),
        ("study.seeds=1000000", "allowed: ≤ 1000"),
        ("study.arms.x.evaluation.rows=3", "cannot change evaluation.rows"),
        ("study.arms.x.study.seeds=3", "cannot change study.seeds"),
        ("intermediate.model.architecture=bert", "intermediate cannot change model.architecture"),
        ("intermediate.training.stepz=3", "did you mean 'training.steps'"),
        ("intermediate.corpus.length=64", "≤ corpus.length = 32"),
        ("study.arms.x.intermediate.training.seed=3", "cannot change training.seed"),
    ],
)
def test_bad_studies_are_refused_when_they_are_read(recipe, override, said, tmp_path, capfd):
    check_refused(recipe, override, said, tmp_path / "out")


def test_more_than_six_contrasts_are_refused(recipe):
    arms = "study.arms={" + ", ".join(f"a{i}: {{masking.ratio: 0.{i + 1}}}" for i in range(8)) + "}"
    with pytest.raises(MaskwiseError, match="got 7; allowed: at most 6"):
        read_recipe(recipe, [arms])
    assert read_recipe(recipe, [arms, "study.contrasts=[[a1, a2]]"]).study.pairs == [("a1", "a2")]


def test_companions_and_choices_make_no_seed_done():
    companion = {"kind": "score", "arm": "a", "seed": 0, "fraction": 0.5}
    records = [companion, {"kind": "score", "arm": "a", "seed": 1}]
    assert pending({"seeds": [0, 1, 2]}, records) == [0, 2]


def test_independent_failures_of_a_run_are_all_reported(tmp_path):
    """The first failure hid the second one; a stage after a failed one is not reported."""
    stages = [Stage(kind, {}, ()) for kind in ("pretrain", "evaluate", "finetune")]
    run = SimpleNamespace(stages=stages, trainings=[], who={"arm": "a", "seed": 0})
    errors = {stages[0].name: "x", stages[1].name: "x", stages[2].name: "y"}
    found = collect([run], tmp_path, errors)
    assert {each["error"]: each["stage"] for each in found} == {
        "x": stages[0].name,
        "y": stages[2].name,
    }
