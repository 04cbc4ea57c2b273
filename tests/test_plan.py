"""What a study runs: chains of stages, shared between arms and studies; searching, matching, dropping, dry runs.

Stages are done here, in this process, one after the other: the engines have tests of their own.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from maskwise.constants import REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.folders import write_json
from maskwise.models import empty_model, new_config
from maskwise.objectives import MaskedLanguageModelling
from maskwise.recipe import read_recipe
from maskwise.study import dry_run, make_plan, run, run_stage, run_study
from maskwise.study.description import describe
from maskwise.study.design import Design, choose
from maskwise.study.plan import Run
from maskwise.study.stages import Stage
from maskwise.study.work import RUNNERS
from tiny import check_refused, maskwise, read_lines, write_inputs

QUICK = ["training.steps=10", "training.save_every=0", "training.eval_every=0", "finetune.seeds=1"]


@pytest.fixture(autouse=True)
def done(monkeypatch) -> list[str]:
    """Replaces the engine; the names of the stages that were done."""
    names: list[str] = []

    def execute(todo: Any, stages: Path, plan: Any, **more: Any) -> dict[str, str]:
        errors: dict[str, str] = {}
        for stage in todo:
            broken = next((need for need in stage.needs if need in errors), None)
            try:
                assert not broken, errors[str(broken)]
                run_stage(stage, stages)
                names.append(stage.name)
            except (MaskwiseError, AssertionError) as error:
                errors[stage.name] = str(error)
        return errors

    monkeypatch.setattr("maskwise.study.run.execute", execute)
    return names


@pytest.fixture
def fake(monkeypatch, done) -> list[str]:
    """Trainings that are only said to be done: the loss is lower the nearer the learning rate is to 0.01."""

    def execute(todo: Any, stages: Path, plan: Any, **more: Any) -> dict[str, str]:
        errors: dict[str, str] = {}
        for stage in todo:
            if stage.kind == "prepare":
                run_stage(stage, stages)
                continue
            folder, result = stage.folder(stages), {"seconds": 1.0}
            training = stage.what.get("training")
            if training and training["learning_rate"] > 1:
                errors[stage.name] = "the loss is not finite"
            if any(need in errors for need in stage.needs) or stage.name in errors:
                errors.setdefault(stage.name, "something it needs failed")
                continue
            if training:
                result |= {"steps": training["steps"], "tokens": 1, "targets": 1, "flops": 1}
            else:
                trained = json.loads((stages / stage.needs[1] / "stage.json").read_text())["what"]["training"]
                loss = 5 + abs(trained["learning_rate"] - 0.01) + 1e-4 * trained["seed"] ** 2
                masks = [{"masks": kind, "ratio": 0.15, "unigram": 6.0, "targets": 9} for kind in MASKS]
                result["records"] = [{"kind": "heldout", "loss": loss, **line} for line in masks]
            folder.mkdir()
            (folder / "stage.json").write_text(json.dumps(stage.as_dict()))
            (folder / "done.json").write_text(json.dumps(result))
            done.append(stage.name)
        return errors

    monkeypatch.setattr("maskwise.study.run.execute", execute)
    return done


MASKS = ("token", "whole-word")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def kinds(names: list[str]) -> dict[str, int]:
    found = [name.split("-")[0] for name in names]
    return {kind: found.count(kind) for kind in dict.fromkeys(found)}


# Stages that are shared ------------------------------------------------------------------------------------


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
    more_masks = [*again, "evaluation.ratios=[0.15, 0.3, 0.4]"]  # another question trains nothing again
    run_study(read_recipe(source, more_masks), tmp_path / "c", cache=shared, quiet=True)
    assert kinds(done) == {"evaluate": 2}
    assert (tmp_path / "c" / "stages" / done[0]).is_symlink()


def test_the_shared_folder_may_come_from_the_environment_or_the_recipe(recipe, tmp_path, monkeypatch, done):
    small = [*QUICK, "tasks=[]", "study.seeds=1", "study.arms={a: {}}"]
    monkeypatch.setenv("MASKWISE_STAGES", str(tmp_path / "env"))
    run_study(read_recipe(recipe, small), tmp_path / "a", quiet=True)
    run_study(read_recipe(recipe, [*small, f"study.cache={tmp_path / 'said'}"]), tmp_path / "b", quiet=True)
    assert kinds(done) == {"prepare": 2, "pretrain": 2, "evaluate": 2}
    assert len(list((tmp_path / "env").iterdir())) == len(list((tmp_path / "said").iterdir())) == 3


def test_a_second_stage_takes_what_it_leaves_out_from_the_first(recipe, tmp_path):
    write_inputs(tmp_path / "other")
    arms = {
        "both": {},
        "first only": {"intermediate": "none"},
        "hard": {"masking.ratio": 0.4},
        "late": {"intermediate.masking.ratio": 0.5},
    }
    more = [
        f"study.arms={json.dumps(arms)}", "study.seeds=1", "intermediate.training.steps=5",
        f"intermediate.corpus.source={tmp_path / 'other' / 'corpus.jsonl'}", "intermediate.corpus.limit=40",
    ]  # fmt: skip
    whole = read_recipe(recipe, more)
    links = {name: whole.arm(name, seed=3).links() for name in arms}
    assert [len(links[name]) for name in arms] == [2, 1, 2, 2]
    first, second = links["both"]
    assert (first.training.steps, second.training.steps) == (40, 5)
    assert second.corpus.limit == 40 and second.corpus.length == first.corpus.length
    assert second.training.learning_rate == first.training.learning_rate
    assert second.training.seed != first.training.seed == 3
    assert [link.masking.ratio for link in links["hard"]] == [0.4, 0.4]
    assert [link.masking.ratio for link in links["late"]] == [0.15, 0.5]
    assert read_recipe(_written(whole, tmp_path)) == whole
    runs = {run.arm: run for run in make_plan(whole).runs}
    assert runs["both"].trainings[0] == runs["first only"].trainings[0] == runs["late"].trainings[0]
    assert len(runs["both"].trainings) == 2 and runs["both"].trainings[1].needs[1] == runs["both"].trainings[0].name
    # All are judged on the same text, with the tokenizer of the first.
    assert len({run.evaluated.needs[0] for run in runs.values() if run.evaluated}) == 1
    text = {stage.name: stage for stage in make_plan(whole).stages()}[runs["first only"].evaluated.needs[0]]
    assert text.needs == (runs["both"].chain[0].name,) and text.what["corpus"]["limit"] == 40
    assert runs[REFERENCE].chain == (runs["both"].chain[0],)


def test_a_chain_trains_on_from_its_checkpoint(recipe, tmp_path, done):
    more = [
        *QUICK,
        "tasks=[]",
        "study.seeds=1",
        "training.learning_rate=1e-9",
        "intermediate.training.steps=3",
    ]
    out = tmp_path / "out"
    result = run_study(read_recipe(recipe, [*more, "study.arms={a: {}, b: {intermediate: none}}"]), out, quiet=True)
    assert not result["failures"]
    by_arm = {}
    for record in read_lines(out / "records.jsonl"):
        if record["kind"] == "heldout" and record["masks"] == "token":
            by_arm.setdefault(record["arm"], []).append(record["loss"])
    assert by_arm["a"] == pytest.approx(by_arm["b"], abs=1e-4)  # it had learnt nothing, and learnt nothing more
    costs = {r["arm"]: r["steps"] for r in read_lines(out / "records.jsonl") if r["kind"] == "cost"}
    assert costs == {"a": 13, "b": 10}


def test_pretrain_runs_both_stages(recipe, tmp_path):
    assert maskwise("pretrain", recipe, *QUICK, "intermediate.training.steps=4", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "first" / "checkpoint" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / "done.json").read_text())["steps"] == 4


def _written(recipe: Any, folder: Path) -> Path:
    (folder / "written.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    return folder / "written.yaml"


# Choosing --------------------------------------------------------------------------------------------------

GRID = [{"lr": 1}, {"lr": 2}, {"lr": 3}]


@pytest.mark.parametrize(
    "scores, chosen, border",
    [
        ([{"a": [1, 1]}, {"a": [3, 3]}, {"a": [2, 2]}], 1, False),
        ([{"a": [1, 1]}, {"a": [2, 2]}, {"a": [3, 3]}], 2, True),
        ([{"a": [2, 2]}, {"a": [2, 2]}, {"a": [2, 2]}], 1, False),  # a tie: the first inside the grid
        ([None, {"a": [1, 1]}, {"a": [0, 0]}], 1, False),  # the first failed
        ([None, None, None], None, False),
        # A task with large numbers does not outvote the other: both are standardised.
        ([{"a": [0, 0], "b": [0.2, 0.2]}, {"a": [1, 1], "b": [0.3, 0.3]}, {"a": [100, 100], "b": [0, 0]}], 1, False),
    ],
)  # fmt: skip
def test_the_best_point_of_a_grid(scores, chosen, border):
    choice = choose(GRID, scores)
    assert (choice.place, choice.border) == (chosen, border)
    assert [mean is None for mean in choice.means] == [one is None for one in scores]


def test_dev_seeds_with_rows_of_their_own_are_seeds_of_one_task(tmp_path):
    """Else each would be an outcome by itself, of one seed, and the standard error of every point 0."""
    runs = []
    for seed in (50, 51):
        stage = Stage("finetune", {"task": f"world(seed={seed})"})
        write_json(stage.folder(tmp_path) / "done.json", {"dev": [0.1 * seed], "metric": "accuracy", "seconds": 1})
        runs.append(Run("a", seed, chain=(), prepared=stage, pretrained=None, evaluated=None,
                        tasks={"world(seed='run')": stage}, overlaps=()))  # fmt: skip
    scores = Design._scores(SimpleNamespace(stages=tmp_path), runs)  # type: ignore[arg-type]
    assert scores == {"world(seed='run')": pytest.approx([5.0, 5.1])}


def test_every_arm_keeps_the_best_point_of_its_own_search(recipe, tmp_path, fake):
    search = "study.search={grid: {training.learning_rate: [1e+30, 1e-9, 1e-2, 2e-2]}, seeds: [50, 51]}"
    more = [*QUICK, "tasks=[]", "study.seeds=2", search]
    out = tmp_path / "out"
    result = run_study(read_recipe(recipe, more), out, quiet=True)
    assert kinds(fake)["pretrain"] == 2 * 2 * 3 + 2 * 2 and not result["failures"]  # four diverged
    records = read_lines(out / "records.jsonl")
    found = {record["arm"]: record for record in records if record["kind"] == "selection"}
    assert set(found) == {"token-15", "words-30"}
    for record in found.values():
        assert record["by"] == "held-out" and record["seeds"] == [50, 51] and record["border"] is False
        assert record["chosen"] == {"training.learning_rate": 0.01}
        assert [c["setting"]["training.learning_rate"] for c in record["candidates"]] == [
            1e30,
            1e-9,
            0.01,
            0.02,
        ]
        means = [candidate["mean"] for candidate in record["candidates"]]
        assert means[0] is None and means[2] > max(means[1], means[3])
    ours, theirs = (found[arm]["candidates"][2]["scores"] for arm in ("token-15", "words-30"))
    assert set(ours) == {"heldout:token@0.15"} and set(theirs) == {"heldout:whole-word@0.15"}
    assert ours["heldout:token@0.15"] == pytest.approx([-5.25, -5.2601])
    assert {record["seed"] for record in records if record["kind"] != "selection"} == {0, 1}
    arms = json.loads((out / "study.json").read_text())["arms"]
    stage = json.loads((out / arms["words-30"]["runs"]["0"] / "stage.json").read_text())
    assert stage["what"]["training"]["learning_rate"] == 0.01 == arms["words-30"]["setting"]["training.learning_rate"]
    before = (out / "records.jsonl").read_bytes()
    run_study(read_recipe(recipe, more), out, quiet=True)
    assert (out / "records.jsonl").read_bytes() == before


def test_arms_are_described_as_they_were_chosen(recipe, tmp_path):
    """Headlines and the units that losses are compared by were those of the recipe, not of what was trained."""
    read = read_recipe(recipe, [*QUICK, "study.search={grid: {masking.ratio: [0.2, 0.4]}, seeds: [50, 51]}"])
    design = Design(read, tmp_path)
    design.settings["token-15"] = {"masking.ratio": 0.4, "masking.policy": "whole-word"}
    facts = describe(read, design)["arms"]["token-15"]
    assert (facts["policy"], facts["ratio"]) == ("whole-word", "constant(0.4)")
    assert facts["judged_on"] == ["whole-word"] and facts["units"] == "whole-word"


def test_a_search_by_tasks_looks_at_dev(recipe, tmp_path, done):
    grid = "[{training.learning_rate: 0.005}, {training.learning_rate: 0.01}]"
    more = [*QUICK, "study.seeds=1", f"study.search={{grid: {grid}, seeds: [9]}}", "study.arms={a: {}}"]
    run_study(read_recipe(recipe, more), tmp_path / "out", quiet=True)
    [record] = [r for r in read_lines(tmp_path / "out" / "records.jsonl") if r["kind"] == "selection"]
    [task] = record["candidates"][0]["scores"]
    devs = []
    for folder in (tmp_path / "out" / "stages").glob("finetune-*"):
        devs += json.loads((folder / "done.json").read_text())["dev"]
    assert record["by"] == "dev" and {c["scores"][task][0] for c in record["candidates"]} <= set(devs)


def test_a_search_for_test_items_that_fails_is_told_and_takes_no_run_down(recipe, tmp_path, done, monkeypatch):
    def failing(*_: Any) -> Any:
        raise MaskwiseError("no search today")

    monkeypatch.setitem(RUNNERS, "overlap", failing)
    result = run_study(read_recipe(recipe, [*QUICK, "study.seeds=1"]), tmp_path / "out", quiet=True)
    assert [failure["error"] for failure in result["failures"]] == ["no search today"]
    kinds = {record["kind"] for record in read_lines(tmp_path / "out" / "records.jsonl")}
    assert "score" in kinds and "failure" not in kinds


def test_what_cannot_be_chosen_by_is_refused_before_any_work(recipe, tmp_path, done):
    """Losses of different vocabularies, whichever setting makes them; and tasks without dev rows."""
    rows = [{"text": f"{a} b", "text_pair": f"b {a}", "score": s} for a, s in zip("abcd", (0.1, 0.4, 0.2, 0.9))]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frozen = f'tasks=["{pairs}(kind=\\"zero-shot-similarity\\")"]'
    sizes = "grid: {tokenizer.vocab_size: [80, 120]}"
    rates = "grid: {training.learning_rate: [0.1, 0.2]}"
    for said, *more in (
        ("cannot choose between tokenizers", "tasks=[]", f"study.search={{{sizes}}}"),
        ("cannot choose between tokenizers", f"study.search={{{sizes}, by: held-out}}"),
        ("cannot choose between tokenizers", "tasks=[]", "study.search={grid: {corpus.limit: [20, 40]}}"),
        ("study.search goes by dev rows", frozen, f"study.search={{{rates}}}"),
    ):
        with pytest.raises(MaskwiseError, match=said):
            run_study(read_recipe(recipe, more), tmp_path / "out", quiet=True)
        assert not (tmp_path / "out").exists() and not done
    for more in (
        ["tokenizer.name=null", f"study.search={{{sizes}}}"],
        [frozen, f"study.search={{{rates}, by: held-out}}"],
    ):
        assert dry_run(read_recipe(recipe, more), tmp_path / "out")["plans"]


def test_matched_arms_have_one_text_at_all_points_of_a_search(recipe, tmp_path, done):
    """A point whose text was not there yet had the steps as written; the same call again trained other runs."""
    rates, texts = "{training.learning_rate: [0.1, 0.2]}", "{corpus.limit: [20, 40]}"
    for grid, more in ((texts, []), (rates, ["masking.policy=learned", "learning={method: meta}"])):
        with pytest.raises(MaskwiseError, match=r"study.match targets wants one text for arm 'token-15'"):
            asked = ["study.match=targets", f"study.search={{grid: {grid}}}", *more]
            run_study(read_recipe(recipe, asked), tmp_path / "out", quiet=True)
        assert not done
    asked = ["study.match=targets", f"study.search={{grid: {rates}}}"]
    assert dry_run(read_recipe(recipe, asked), tmp_path / "out")["plans"]


def test_a_score_that_is_no_number_costs_its_pair_only(recipe, tmp_path, done):
    """A model that diverged at its last step: the run is a failure, all others are judged, and the page says so."""
    out, more = tmp_path / "out", [*QUICK, "study.seeds=3"]
    run_study(read_recipe(recipe, more), out, quiet=True)
    study = json.loads((out / "study.json").read_text())
    lost = study["arms"]["words-30"]["runs"]["1"].split("/")[1]
    for folder in (out / "stages").glob("*-*"):
        if lost not in json.loads((folder / "stage.json").read_text())["needs"]:
            continue
        result = json.loads((folder / "done.json").read_text())
        if "score" in result:
            result |= {"score": math.nan, "fine_tuning": [math.nan]}
        else:
            result["records"][0]["loss"] = math.inf
        (folder / "done.json").write_text(json.dumps(result))
    found = run_study(read_recipe(recipe, more), out, quiet=True)
    assert {(r["arm"], r["seed"]) for r in found["failures"]} == {("words-30", 1)} and len(found["failures"]) == 2
    records = read_lines(out / "records.jsonl")
    assert not [r for r in records if r["kind"] == "score" and (r["arm"], r["seed"]) == ("words-30", 1)]
    assert "NaN" not in (out / "records.jsonl").read_text() + (out / "summary.json").read_text()
    [row] = [row for row in found["contrasts"] if row["outcome"] == "tasks"]
    assert row["n"] == 2
    assert found["arms"]["words-30"]["failures"] == 1
    assert "not a finite number" in (out / "report.html").read_text()


def test_a_point_that_diverged_is_never_chosen(recipe, tmp_path, fake):
    """Rates above 1 fail; here the loss of one below is no number."""
    search = "study.search={grid: {training.learning_rate: [0.01, 0.5]}, seeds: [9]}"
    more = [*QUICK, "tasks=[]", "study.seeds=1", search, "study.arms={a: {}}"]
    out = tmp_path / "out"
    run_study(read_recipe(recipe, more), out, quiet=True)
    for folder in (out / "stages").glob("evaluate-*"):
        before = json.loads((folder / "stage.json").read_text())["needs"][1]
        trained = json.loads((out / "stages" / before / "stage.json").read_text())["what"]["training"]
        if (trained["learning_rate"], trained["seed"]) == (0.01, 9):
            result = json.loads((folder / "done.json").read_text())
            result["records"][0]["loss"] = math.nan
            (folder / "done.json").write_text(json.dumps(result))
    run_study(read_recipe(recipe, more), out, quiet=True)
    [record] = [r for r in read_lines(out / "records.jsonl") if r["kind"] == "selection"]
    assert record["chosen"] == {"training.learning_rate": 0.5}
    assert [point["mean"] is None for point in record["candidates"]] == [True, False]


# Matching --------------------------------------------------------------------------------------------------


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
    run_study(read_recipe(recipe, more), out, quiet=True)
    cost = {r["arm"]: r for r in read_lines(out / "records.jsonl") if r["kind"] == "cost"}
    said = json.loads((out / "study.json").read_text())["match"]
    assert said["by"] == by and said["arms"]["high"]["steps"] == cost["high"]["steps"]
    assert cost["low"]["steps"] == 30 and cost["high"]["steps"] < 30
    assert cost["high"][by] == pytest.approx(cost["low"][by], rel=0.06)  # whole steps, other rows
    if by == "targets":
        assert cost["high"]["steps"] == pytest.approx(10, abs=1)


def test_weights_of_body_and_head():
    class Tokenizer:
        pad_token_id, cls_token_id, sep_token_id, bos_token_id, eos_token_id = 0, 2, 3, None, None

        def __len__(self) -> int:
            return 100

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    work = MaskedLanguageModelling(empty_model(new_config("bert", Tokenizer(), 32, **sizes))).work(1, 1)
    layer = 4 * (8 * 8 + 8) + (8 * 16 + 16) + (16 * 8 + 8) + 2 * 16  # attention, two dense, two norms
    assert work.body == layer + 16  # and the norm of the embeddings
    assert work.head == (8 * 8 + 8) + 16 + 100 and work.tied == 8 * 100  # transform, norm, bias; decoder


# Companions, dropping, dry runs ----------------------------------------------------------------------------


def test_companions_are_shorter_runs_of_their_own(recipe, tmp_path, done):
    more = [*QUICK, "tasks=[]", "study.seeds=2", "study.companions=[0.5, 0.2]", "training.steps=20"]
    out = tmp_path / "out"
    run_study(read_recipe(recipe, [*more, "study.arms={a: {masking.ratio: 'linear(0.4, 0.1)'}}"]), out, quiet=True)
    costs = [r for r in read_lines(out / "records.jsonl") if r["kind"] == "cost"]
    assert [(r["seed"], r.get("fraction"), r["steps"]) for r in costs] == [
        (0, None, 20), (0, 0.5, 10), (0, 0.2, 4), (1, None, 20), (1, 0.5, 10), (1, 0.2, 4)
    ]  # fmt: skip
    ratio = {r.get("fraction", 1): r["targets"] / r["tokens"] for r in costs if r["seed"] == 0}
    assert ratio[0.5] == pytest.approx(ratio[1], rel=0.1)  # the schedule ran over their own length
    assert {r.get("fraction") for r in read_lines(out / "records.jsonl") if r["kind"] == "heldout"} == {
        None,
        0.5,
        0.2,
    }
    assert {line["fraction"] for line in read_lines(out / "timings.jsonl")} == {1.0, 0.5, 0.2}
    runs = json.loads((out / "study.json").read_text())["arms"]["a"]["runs"]
    assert len(runs) == 2


def test_an_interruption_in_any_phase_changes_no_record(recipe, tmp_path, done, monkeypatch):
    """All at once: a search, two stages of training, matching, companions; stopped after every third stage."""
    search = "study.search={grid: {training.learning_rate: [1e-3, 1e-2]}, seeds: [50]}"
    more = [
        *QUICK, search, "study.seeds=1", "study.companions=[0.5]", "intermediate.training.steps=4",
        "study.match=targets",
    ]  # fmt: skip
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
        "prepare": 1, "pretrain": 2, "evaluate": 2, "finetune": 3, "overlap": 1
    }  # fmt: skip
    assert not list(tmp_path.iterdir())
    run_study(read_recipe(recipe, more), out, cache=shared, quiet=True)
    nothing = dry_run(read_recipe(recipe, more), out, cache=shared)
    assert nothing["seconds"] == 0 and all(kind["to_do"] == 0 for kind in nothing["stages"].values())
    twice = [*more, "study.seeds=3", "study.companions=[0.5]"]
    found = dry_run(read_recipe(recipe, twice), tmp_path / "new", jobs=1, cache=shared)
    assert {k: (v["done"], v["to_do"]) for k, v in found["stages"].items()} == {
        "prepare": (1, 0), "pretrain": (2, 10), "evaluate": (2, 10), "finetune": (3, 12), "overlap": (1, 0)
    }  # fmt: skip
    timed = [json.loads(p.read_text())["seconds"] for p in shared.glob("pretrain-*/done.json")]
    assert found["stages"]["pretrain"]["seconds"] == pytest.approx((4 + 6 / 2) * sum(timed) / 2, abs=0.2)
    assert found["seconds"] >= found["stages"]["pretrain"]["seconds"]
    capfd.readouterr()
    assert maskwise("study", recipe, *twice, "--out", tmp_path / "new", "--stages", shared, "--dry-run", "--json") == 0
    assert json.loads(capfd.readouterr().out)["stages"] == found["stages"]
    assert maskwise("study", recipe, *twice, "--out", tmp_path / "new", "--stages", shared, "--dry-run") == 0
    assert "Nothing was written" in capfd.readouterr().out and not (tmp_path / "new").exists()


# Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, said",
    [
        ("study.contrasts=[[words-30, token-51]]", "did you mean 'token-15'"),
        ("study.contrasts=[[words-30]]", "pairs of arms"),
        ("study.contrasts=[[words-30, words-30]]", "two different arms"),
        ("study.seeds={token-15: [0, 1], words-30: [2]}", "paired by seed"),
        ("study.search={grid: {training.learning_rate: [1, 2]}, seeds: [1, 7]}", "are seeds of the study"),
        ("study.search={grid: {training.learning_rte: [1, 2]}}", "did you mean 'training.learning_rate'"),
        ("study.search={gird: {}}", "did you mean 'study.search.grid'"),
        (
            "study.search={grid: {training.learning_rate: [1, 2]}, own: {c: {masking.ratio: [0.1]}}}",
            "search.own 'c'",
        ),
        ("study.search={grid: {training.learning_rate: [1, 2]}, own: {a: 3}}", "study.search.own.a; got 3"),
        ("study.search={grid: {training.learning_rate: [1]}}", "nothing to choose from"),
        ("study.search={grid: {training.learning_rate: 1}}", "a list of values"),
        ("study.search={grid: {evaluation.rows: [1, 2]}}", "cannot change evaluation.rows"),
        ("study.match=target", "targets"),
        ("study.companions=[0.5, 1.0]", "shares of the steps"),
        ("study.stop_hopeless={after: 3}", "study.stop_hopeless is no longer a setting"),
        ("study.match=seconds", "study.match: seconds is no longer a setting"),
        ("study.contrasts=3", "pairs of arms; got 3"),
        ("study.seeds=100000000000", "study.seeds: a number of runs; got 100000000000; allowed: ≤ 1000"),
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


# Recipes that extend others --------------------------------------------------------------------------------


def test_a_recipe_extends_another(recipe, tmp_path):
    (tmp_path / "base.yaml").write_text(recipe.read_text())
    own = {"extends": "base.yaml", "training.steps": 7, "model": {"settings": {"hidden_size": 8}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    found, base = read_recipe(tmp_path / "own.yaml"), read_recipe(tmp_path / "base.yaml")
    assert found.name == "own" and found.training.steps == 7 and found.training.batch_size == 8
    assert found.model.settings == {**base.model.settings, "hidden_size": 8} and found.study == base.study
    own["study"] = {"arms": {"ratio-0.2": {"masking.ratio": 0.2}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    assert list(read_recipe(tmp_path / "own.yaml").study.arms) == ["ratio-0.2"]  # replaced, not added to
    (tmp_path / "base.yaml").write_text("extends: own.yaml")
    with pytest.raises(MaskwiseError, match="in a circle"):
        read_recipe(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text("extends: quick-strat")
    with pytest.raises(MaskwiseError, match="unknown recipe 'quick-strat'"):
        read_recipe(tmp_path / "own.yaml")
