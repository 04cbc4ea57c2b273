"""adapt with other texts: a control, with which the study can tell whether it is the user's text
that helps.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import maskwise as mw
from maskwise.base.errors import MaskwiseError, command_line
from maskwise.recipe import Recipe
from maskwise.studies.adapt import Request
from maskwise.studies.adapt.answer import answer_sentences
from maskwise.studies.adapt.draft import Texts, draft_of
from maskwise.studies.adapt.saved import save_best
from maskwise.studies.plan import make_plan
from maskwise.verdict import summarise
from test_adapt_general import SMALL
from tiny import WORDS, load_json, maskwise, read_lines, records_of, write_lines

FIRST, OTHER = ("words-30", "no-pretraining"), ("words-30", "words-30-other-text")


@pytest.fixture
def files(tmp_path):
    """A text, another text with another field, and labelled rows."""
    draw = random.Random(0)

    def sentences(words: list[str]) -> str:
        return ". ".join(" ".join(draw.choices(words, k=7)).capitalize() for _ in range(4)) + "."

    own = [{"text": sentences(WORDS[:40])} for _ in range(60)]
    other = [{"body": sentences(WORDS[40:])} for _ in range(60)]
    rows = [{"text": sentences(WORDS[:40])[:40], "label": number % 2} for number in range(60)]
    write_lines(tmp_path / "own.jsonl", own)
    write_lines(tmp_path / "other.jsonl", other)
    write_lines(tmp_path / "task.jsonl", rows)
    return tmp_path


def asked(files: Path, **more: Any) -> Request:
    given: dict[str, Any] = {"control": str(files / "other.jsonl"), **more}
    task = str(files / "task.jsonl")
    return Request("bundled:encoder", str(files / "own.jsonl"), files / "out", (task,), **given)


def drafted(request: Request) -> Recipe:
    return draft_of(request, Texts(request.texts, request.out)).recipe


def test_the_arm_of_a_control_differs_in_its_text_only(files):
    recipe = drafted(asked(files))
    own, other = (recipe.arm(name, seed=3) for name in ("words-30", "words-30-other-text"))
    assert [*recipe.study.arms] == ["words-30", "words-30-other-text"]
    assert own.corpus.source.endswith("own.jsonl") and own.corpus.text_field == "text"
    assert other.corpus.source.endswith("other.jsonl")
    # Its field has another name, which is found.
    assert len([*other.corpus.documents()]) > 20
    assert other.model_copy(update={"corpus": own.corpus}) == own
    # The tests are in a fixed order, so six runs decide both at the full level.
    assert recipe.study.pairs == [FIRST, OTHER] and recipe.study.closed == [OTHER]
    assert asked(files).least_runs == 6
    command = asked(files).invocation().command
    assert "--control" in command and "--runs" not in command


def test_new_words_and_a_control_are_three_questions(files):
    recipe = drafted(asked(files, new_words=5, seeds=7))
    assert recipe.study.gate is None and len(recipe.study.pairs) == 3
    assert asked(files, new_words=5).least_runs == 7


def test_a_new_head_is_the_same_for_both_texts(files, monkeypatch):
    monkeypatch.setattr("maskwise.studies.adapt.draft.has_head", lambda model: False)
    recipe = drafted(asked(files))
    sources = {}
    for name in recipe.study.arms:
        links = recipe.arm(name, seed=0).links()
        sources[name] = [Path(link.corpus.source).name for link in links]
    assert sources["words-30"] == ["own.jsonl", "own.jsonl"]
    assert sources["words-30-other-text"] == ["own.jsonl", "other.jsonl"]
    trained: dict[str, set[str]] = {}
    for stage in make_plan(recipe).stages():
        if stage.kind == "pretrain":
            trained.setdefault(stage.what["training"]["freeze"], set()).add(stage.name)
    assert {freeze: len(names) for freeze, names in trained.items()} == {"encoder": 1, "none": 12}


@pytest.mark.parametrize(
    ("control", "said"),
    [
        ("own.jsonl", "--control is the text itself"),
        ("../{here}/own.jsonl", "--control is the text itself"),
        ("nowhere.txt", "nowhere.txt"),
    ],
)
def test_a_control_that_cannot_be_one_is_one_line(control, said, files, capfd):
    command = ["adapt", "bundled:encoder", files / "own.jsonl", "--task", files / "task.jsonl"]
    control = control.format(here=files.name)
    command += ["--control", files / control, "--out", files / "out"]
    assert maskwise(*command, "--dry-run") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("setting", ["corpus.source=own.jsonl", "model.pretrained=bundled:encoder"])
def test_what_is_an_argument_is_no_setting(setting, files):
    with pytest.raises(MaskwiseError, match=rf"{setting.partition('=')[0]} is the .* argument"):
        drafted(asked(files, overrides=(setting,)))


def test_general_text_is_held_out_whatever_its_path_is(files):
    """The control arm trains on it, and so it does on a copy with another name."""
    shutil.copy(files / "other.jsonl", files / "copy.jsonl")
    for path in ("other.jsonl", f"../{files.name}/other.jsonl", "copy.jsonl"):
        recipe = drafted(asked(files, keep=str(files / path)))
        measures = [each for each in recipe.evaluation.measures if Path(path).name in each]
        assert measures and all("held_out" in each for each in measures), measures


def test_a_copy_of_the_text_is_no_control(files):
    copy = shutil.copy(files / "own.jsonl", files / "copy.jsonl")
    with pytest.raises(MaskwiseError, match="control is the text itself"):
        drafted(asked(files, control=str(copy)))


def test_equal_texts_in_memory_are_one_text(files, tmp_path, monkeypatch):
    """Their files are named by their roles, and are known by their rows."""
    requests = []
    answers = []

    def stop(request: Request) -> None:
        requests.append(request)
        # The files of rows are removed with the call.
        try:
            answers.append([*drafted(request).evaluation.measures])
        except MaskwiseError as error:
            answers.append([error.what])
        raise InterruptedError

    monkeypatch.setattr("maskwise.studies.adapt.Adaptation", stop)
    task = str(files / "task.jsonl")
    own, other = ([line["text"] for line in read_lines(files / "own.jsonl")][n::2] for n in (0, 1))
    for more in ({"control": iter(other), "keep": other}, {"control": own, "keep": other}):
        with pytest.raises(InterruptedError):
            mw.adapt("bundled:encoder", own, tasks=task, out=tmp_path / "out", **more)
    # The names of the files end with a hash of their rows.
    contents = [
        [str(source).rpartition("-")[2] for source in (each.texts, each.control, each.keep)]
        for each in requests
    ]
    (texts, control, keep), (again, itself, other_text) = contents
    assert control == keep != texts and again == itself == texts and other_text == keep
    measures, refused = answers
    assert measures and all("held_out" in measure for measure in measures)
    assert refused == ["control is the text itself"]


def summary_of(recipe: Recipe, own: float, other: float) -> dict[str, Any]:
    """The summary of six runs in which the two arms gain so much over the unchanged model."""
    records = []
    for arm, gain in (("words-30", own), ("words-30-other-text", other), ("no-pretraining", 0)):
        for seed in range(6):
            score = 0.5 + gain + 0.001 * seed * (arm != "no-pretraining")
            line = {"kind": "task", "arm": arm, "measure": "t", "metric": "accuracy"}
            records.append({**line, "seed": seed, "value": score})
    facts = {"policy": "whole-word", "ratio": "0.3", "overrides": {}}
    study: Any = {
        "baseline": "words-30",
        "untrained": {"no-pretraining": "the unchanged model"},
        "seeds": [*range(6)],
        "tasks": {"t": {}},
        "arms": dict.fromkeys(recipe.study.arms, facts),
        "contrasts": recipe.study.primary,
        "gate": {"contrast": FIRST, "closes": recipe.study.closed},
    }
    return {**summarise(records, study), "seconds": 9, "failures": []}


@pytest.mark.parametrize(
    ("own", "other", "verdicts", "said"),
    [
        (0.2, 0.1, ["decided", "decided"], "It was your text:"),
        (0.1, 0.2, ["decided", "decided"], "The other text is better"),
        (0.1, 0.1, ["decided", "open"], "have the same result on the tasks in every run"),
        # Without help of the text, it is not compared with the other one.
        (-0.1, -0.2, ["decided", "not comparable"], "not tested"),
        (-0.0025, -0.2, ["open", "not comparable"], "not tested"),
    ],
)
def test_the_text_is_compared_only_if_it_helps(own, other, verdicts, said, files):
    recipe = drafted(asked(files))
    result = summary_of(recipe, own, other)
    rows = {(row["arm"], row["baseline"]): row for row in result["contrasts"] if row["primary"]}
    assert [rows[FIRST]["verdict"], rows[OTHER]["verdict"]] == verdicts
    for row in rows.values():
        # No test lowers the level of the other.
        assert row["p"] == row["p_adjusted"]
    assert (rows[OTHER]["p"] is None) == (verdicts[1] == "not comparable")
    assert said.lower() in " ".join(answer_sentences(result, recipe)).lower()


def test_without_a_control_the_answer_claims_nothing_about_the_text(files):
    recipe = drafted(asked(files, control=None))
    row = {"primary": True, "outcome": "tasks", "brief": "A.", "outlook": "", "arm": "words-30"}
    for better, claims in (("arm", True), ("baseline", False)):
        result = {"contrasts": [row | {"verdict": "decided", "better": better}], "seconds": 9}
        assert ("control='TEXT'" in " ".join(answer_sentences(result, recipe))) == claims
        with command_line():
            assert ("--control TEXT" in " ".join(answer_sentences(result, recipe))) == claims


def test_the_model_of_a_control_is_not_saved(files):
    out = files / "study"
    records = []
    for arm, score in (("words-30", 0.6), ("words-30-other-text", 0.9), ("no-pretraining", 0.5)):
        line = {"kind": "task", "arm": arm, "measure": "t", "metric": "accuracy"}
        records += [{**line, "seed": seed, "value": score} for seed in range(6)]
    out.mkdir()
    write_lines(out / "records.jsonl", records)
    facts = {"policy": "token", "ratio": "constant(0.3)", "overrides": {}}
    arms = {arm: {**facts, "runs": {}} for arm in OTHER}
    tasks = {"t": {"metric": "accuracy"}}
    study = {"arms": arms, "seeds": [*range(6)], "tasks": tasks}
    study["untrained"] = {"no-pretraining": "the unchanged model"}
    write_lines(out / "study.json", [study])
    with pytest.raises(MaskwiseError, match="no run of words-30 has a checkpoint"):
        save_best(out, {"contrasts": []}, next_step={})


@pytest.mark.slow
def test_adapt_trains_a_control(files, capfd):
    out = files / "out"
    command = ["adapt", "bundled:encoder", files / "own.jsonl", "--task", files / "task.jsonl"]
    command += ["--control", files / "other.jsonl", "--out", out, "--steps", 2, "--runs", 1]
    command += ["--jobs", 1, "finetune.steps=2", "training.batch_size=4", "evaluation.rows=4"]
    command += ["corpus.held_out=0.2", "corpus.length=32"]
    assert maskwise(*command, "--dry-run") == 0
    assert "words-30-other-text" in capfd.readouterr().out
    assert maskwise(*command, "--json") == 0
    said = json.loads(capfd.readouterr().out)
    assert said["adapted"]["arm"] == "words-30"
    assert {line["arm"] for line in records_of(out, "task")} == {*FIRST, OTHER[1]}
    # Both are measured on the held-out rows of the user's text.
    held_out = [
        line
        for line in records_of(out, "heldout")
        if line["measure"] == "token" and line["split"] == "test"
    ]
    assert len({line["items"] for line in held_out}) == 1 and len(held_out) == 3
    assert [row["primary"] for row in load_json(out / "summary.json")["contrasts"]].count(True) == 2


@pytest.mark.usefixtures("small_encoder")
def test_a_control_may_be_texts_in_memory(files, tmp_path):
    texts = [json.loads(line)["text"] for line in (files / "own.jsonl").read_text().splitlines()]
    adapted = mw.adapt(
        "bundled:encoder",
        texts[:30],
        tasks=str(files / "task.jsonl"),
        control=texts[30:],
        out=tmp_path / "memory",
        steps=2,
        runs=1,
        jobs=1,
        overrides={"finetune.steps": 2, "corpus.held_out": 0.2, **SMALL},
    )
    assert set(adapted.to_dataframe().arm) == {*FIRST, OTHER[1]}
    assert next(adapted.folder.glob("data/control-*.jsonl"))
