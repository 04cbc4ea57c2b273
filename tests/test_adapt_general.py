"""adapt and general text: what the arms forget of it, and an arm that trains on a share of it."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

import maskwise as mw
from maskwise.base.errors import MaskwiseError
from maskwise.evaluation.evaluate import evaluate_checkpoint, load_measures
from maskwise.evaluation.measures.text_loss import TextLoss
from maskwise.recipe import Recipe, read_recipe
from maskwise.studies.adapt import Request
from maskwise.studies.adapt.draft import Texts, draft_of
from maskwise.studies.adapt.forgotten import forgotten_of, forgotten_words
from maskwise.studies.checks import check_inputs
from maskwise.tasks import load_task
from maskwise.text import read_documents
from maskwise.text.rows import holds_out
from maskwise.verdict import summarise
from tiny import WORDS, load_json, maskwise, read_lines, records_of, write_inputs, write_lines

ENGLISH = ["the", "of", "and", "to", "in", "is", "that", "for", "it", "was"]
HELD_OUT = ("corpus.held_out=0.3",)
OPTIONS = ["--jobs", 1, "finetune.steps=2", "training.batch_size=4", "evaluation.rows=4"]
SMALL = {"training.batch_size": 4, "evaluation.rows": 4, "corpus.length": 32}


@pytest.fixture
def files(tmp_path):
    """A text, an English text, general text, and labelled rows."""
    draw = random.Random(0)

    def sentences(words: list[str]) -> str:
        parts = (" ".join(draw.choices(words, k=7)).capitalize() for _ in range(4))
        return ". ".join(parts) + "."

    sources = {"own": WORDS[:40], "english": ENGLISH + WORDS[:20], "general": WORDS[40:]}
    for name, words in sources.items():
        lines = [{"text": sentences(words)} for _ in range(120)]
        write_lines(tmp_path / f"{name}.jsonl", lines)
    write_lines(tmp_path / "body.jsonl", [{"body": sentences(WORDS[:40])} for _ in range(60)])
    rows = [{"text": sentences(WORDS[:40])[:40], "label": number % 2} for number in range(60)]
    write_lines(tmp_path / "task.jsonl", rows)
    return tmp_path


def drafted(files: Path, text: str = "own", **more: Any) -> Recipe:
    for name in ("control", "keep"):
        if isinstance(more.get(name), Path):
            more[name] = str(more[name])
    task = str(files / "task.jsonl")
    source = str(files / f"{text}.jsonl")
    request = Request("bundled:encoder", source, files / "out", (task,), **more)
    return draft_of(request, Texts(source, files)).recipe


def measure_of(recipe: Recipe) -> TextLoss:
    """The measure with masks of single tokens; that with whole words has the same documents."""
    _, measure, *more = load_measures(recipe.evaluation).values()
    assert isinstance(measure, TextLoss) and measure.masks == "token"
    for other in more:
        assert isinstance(other, TextLoss) and other.masks == "whole-word"
        assert other.documents == measure.documents
    return measure


@pytest.mark.usefixtures("small_encoder")
def test_english_text_is_followed_by_a_look_at_wikipedia(files):
    measure = measure_of(drafted(files, "english"))
    known = {document.text[:4000] for document in read_documents("bundled:wikipedia")}
    assert measure.name == "general text" and {*measure.documents} <= known
    assert not drafted(files, "english", keep="none").evaluation.measures
    # Whole words are measured if an arm trains with them.
    assert len(load_measures(drafted(files, "english").evaluation)) == 3
    tokens = drafted(files, "english", arms=("token-15",))
    assert [*load_measures(tokens.evaluation)] == ["heldout", "general text"]
    # The language of the invented words is not known.
    assert not drafted(files).evaluation.measures
    assert len(measure_of(drafted(files, keep=files / "general.jsonl")).documents) == 120


@pytest.mark.parametrize("trained", [{"replay": 0.2}, {"control": True}, {}])
def test_the_loss_is_measured_on_text_that_no_arm_trains_on(trained, files):
    general = files / "general.jsonl"
    asked = {"control": general} if "control" in trained else trained
    recipe = drafted(files, keep=general, overrides=HELD_OUT, **asked)
    measured = {*measure_of(recipe).documents}
    seen = set()
    for name in recipe.study.arms:
        for document in recipe.arm(name, seed=0).corpus.training_documents():
            seen.add(document.text)
    assert not measured & seen
    held_out = {each.text for each in read_documents(str(general)) if holds_out(each, 0.3)}
    assert measured == held_out if trained else len(measured) == 120


@pytest.mark.parametrize("rule", ["corpus.group_field=author", "corpus.text_per=line"])
def test_general_text_is_held_out_by_the_rules_of_the_arms(rule, files):
    """It was held out by its documents, and arms trained on those of other groups."""
    general = files / "general.jsonl"
    rows = [{**line, "author": f"a{n // 6}"} for n, line in enumerate(read_lines(general))]
    write_lines(general, rows)
    if "text_per" in rule:
        general = files / "general.txt"
        blocks = (row["text"].replace(". ", ".\n") for row in rows)
        general.write_text("\n\n".join(blocks))
    recipe = drafted(files, keep=general, replay=0.2, overrides=(*HELD_OUT, rule))
    measured = {*measure_of(recipe).documents}
    mixed = recipe.arm("words-30-replay", seed=0).corpus
    assert len(measured) > 20
    trained = [document.text for document in mixed.training_documents()]
    assert trained and not any(one in other for one in trained for other in measured)


def test_no_arm_trains_on_the_general_text_that_is_measured_in_a_stream_or_under_another_name(
    files,
):
    general = files / "general.jsonl"
    renamed = write_lines(files / "renamed.jsonl", read_lines(general)[::-1])
    recipe = drafted(
        files,
        keep=general,
        replay=0.2,
        overrides=(*HELD_OUT, "corpus.stream=true", "corpus.shuffle=0.1"),
    )
    measured = {*measure_of(recipe).documents}
    mixed = recipe.arm("words-30-replay", seed=0).corpus
    for corpus in (mixed, mixed.model_copy(update={"source": str(renamed)})):
        trained = {document.text for document in corpus.training_documents()}
        assert measured and trained and not measured & trained


def test_replay_mixes_a_share_of_general_text(files):
    recipe = drafted(files, keep=files / "general.jsonl", replay=0.2, overrides=HELD_OUT)
    plain, mixed = (recipe.arm(name, seed=0) for name in ("words-30", "words-30-replay"))
    shares = mixed.corpus.shares([1, 1])
    assert [round(share, 6) for share in shares.values()] == [0.8, 0.2]
    assert [Path(source).name for source in shares] == ["own.jsonl", "general.jsonl"]
    assert mixed.model_copy(update={"corpus": plain.corpus}) == plain
    # The arm is not tested.
    assert recipe.study.pairs == [("words-30", "no-pretraining")]


@pytest.mark.usefixtures("small_encoder")
@pytest.mark.parametrize(("text", "keep"), [("own", "body"), ("body", "general")])
def test_replay_mixes_texts_whose_fields_have_other_names(text, keep, files):
    overrides = ("corpus.held_out=0.4",)
    general = files / f"{keep}.jsonl"
    recipe = drafted(files, text, keep=general, replay=0.2, overrides=overrides)
    mixed = recipe.arm("words-30-replay", seed=0).corpus
    assert {document.source for document in mixed.training_documents()} == {0, 1}
    measured = {document.text for document in read_documents(str(general))}
    assert {*measure_of(recipe).documents} <= measured


BAD = {
    "share": (["--replay", "1.5", "--keep", "general.jsonl"], "--replay is the share"),
    "nothing to mix": (["--replay", "0.2"], "there is none"),
    "off": (["--replay", "0.2", "--keep", "none"], "there is none"),
    "itself": (["--keep", "own.jsonl"], "--keep is the text itself"),
    "missing": (["--keep", "nowhere.txt"], "nowhere.txt"),
    "fields": (
        ["--replay", "0.2", "--keep", "general.jsonl", "corpus.text_field=body"],
        "no field corpus.text_field",
    ),
    "few": (
        ["--replay", "0.2", "--keep", "general.jsonl", "corpus.held_out=0.001"],
        "too few",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_general_text_that_cannot_be_used_is_one_line(name, files, monkeypatch, capfd):
    options, said = BAD[name]
    monkeypatch.chdir(files)
    before = [*files.rglob("*")]
    # Without a task, one is made of the texts, and written before the general text is read.
    for task in (["--task", "task.jsonl"], []):
        command = ["adapt", "bundled:encoder", "own.jsonl", *task, "--out", "runs/out"]
        assert maskwise(*command, *options) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert said in line
        assert [*files.rglob("*")] == before


def test_a_model_without_a_head_is_asked_for_passages_by_their_titles(files, monkeypatch):
    monkeypatch.setattr("maskwise.studies.adapt.draft.has_head", lambda model: False)
    recipe = drafted(files, keep=files / "general.jsonl")
    assert not recipe.evaluation.measures and recipe.study.secondary == ("general-text",)
    first, second = map(load_task, recipe.tasks)
    assert (second.name, second.kind.name) == ("general-text", "retrieval")
    texts = {document.text for document in read_documents(str(files / "general.jsonl"))}
    for row in second.splits["test"]:
        assert any(row.passage in text for text in texts)
    replaced = drafted(files, keep=files / "general.jsonl", overrides=("tasks=[banking77]",))
    assert replaced.tasks == ("banking77",) and not replaced.study.secondary
    # The lengths of these texts do not change the fine-tuning on the user's task.
    plain = drafted(files, keep="none")
    assert recipe.finetune == plain.finetune and first.name == "task"


def records_with(loss: dict[str, list[float]]) -> list[dict[str, Any]]:
    records = []
    for arm, losses in loss.items():
        for seed, value in enumerate(losses):
            line = {"kind": "evaluation", "arm": arm, "seed": seed, "measure": "general text"}
            line |= {
                "metric": "nats",
                "unit": "nats",
                "items": 9,
                "chance": 9.0,
                "higher_is_better": False,
            }
            records.append({**line, "value": value})
            score = {"kind": "task", "measure": "t", "metric": "accuracy", "value": 0.5}
            records.append({**score, "arm": arm, "seed": seed})
    return records


OF_ADAPT: Any = {
    "arms": {"words-30": {"policy": "token", "ratio": "constant(0.3)", "overrides": {}}},
    "untrained": {"no-pretraining": "the unchanged model"},
    "tasks": {"t": {}},
}


@pytest.mark.parametrize(
    ("rise", "finding"),
    [(0.2, "more"), (0.0, "less"), (-0.2, "better"), (0.05, "open")],
)
def test_an_interval_is_compared_with_the_margin(rise, finding, tmp_path):
    noise = [-0.01, 0.01, 0.0, 0.005, -0.005, 0.002]
    losses = {"words-30": [3 + rise + each for each in noise], "no-pretraining": [3.0] * 6}
    write_lines(tmp_path / "records.jsonl", records_with(losses))
    study = {**OF_ADAPT, "seeds": [*range(6)]}
    write_lines(tmp_path / "study.json", [study])
    (found,) = forgotten_of(tmp_path)
    assert found["finding"] == finding
    assert found["low"] == pytest.approx(rise - 0.01) and found["high"] == pytest.approx(
        rise + 0.01
    )
    words = forgotten_words([found])
    assert "not tested" in words and "decided" not in words and "words-30" in words


def test_too_few_runs_have_no_interval(tmp_path):
    losses = {"words-30": [3.2] * 5, "no-pretraining": [3.0] * 5}
    write_lines(tmp_path / "records.jsonl", records_with(losses))
    study = {**OF_ADAPT, "seeds": [*range(5)]}
    write_lines(tmp_path / "study.json", [study])
    (found,) = forgotten_of(tmp_path)
    assert (found["low"], found["finding"]) == (None, "open")
    assert "%" not in forgotten_words([found])
    assert forgotten_words([]) == ""


def test_a_secondary_task_does_not_count(tmp_path):
    """It is reported, and changes neither the primary outcome nor the verdict."""
    scores = {"a": (0.5, 0.9), "b": (0.6, 0.1)}
    records = []
    for arm, means in scores.items():
        for task, mean in zip(("own", "other"), means):
            line = {"kind": "task", "arm": arm, "measure": task, "metric": "accuracy"}
            records += [
                {**line, "seed": n, "value": mean + 0.01 * n * (arm == "a")} for n in range(6)
            ]
    facts = {"policy": "token", "ratio": "0.15", "overrides": {}}
    study: Any = {"baseline": "a", "seeds": [*range(6)], "arms": {"a": facts, "b": facts}}
    study |= {"contrasts": [("b", "a")], "tasks": {"own": {}, "other": {}}}
    alone = [line for line in records if line["measure"] == "own"]
    expected = summarise(alone, {**study, "tasks": {"own": {}}})["contrasts"]
    found = summarise(records, {**study, "secondary": ["other"]})["contrasts"]
    rows = {row["outcome"]: row for row in found}
    assert rows["other"]["verdict"] is None and rows["other"]["mean"] < -0.7
    assert rows["tasks"]["flags"] == expected[0]["flags"]
    for key in ("mean", "low", "high", "p", "verdict", "better", "natural"):
        assert rows["tasks"].get(key) == expected[0].get(key)


def test_a_file_called_tasks_needs_another_name(tmp_path):
    recipe = write_inputs(tmp_path)
    file = (tmp_path / "task.jsonl").rename(tmp_path / "tasks.jsonl")
    with pytest.raises(MaskwiseError, match="cannot be called 'tasks'") as caught:
        check_inputs(read_recipe(recipe, [f"tasks=['{file}']"]))
    advised = caught.value.do.partition(": ")[2].replace("…, ", "").replace("…", "mine")
    assert advised == f'{file}(name="mine")'
    check_inputs(read_recipe(recipe, [f"tasks=['{advised}']"]))


@pytest.mark.usefixtures("small_encoder")
def test_the_loss_on_a_text_is_a_measure_of_evaluate(files):
    general = str(files / "general.jsonl")
    measure = f"text-loss({general!r}, name='mine')"
    (record,) = evaluate_checkpoint("bundled:encoder", [measure], text=None)
    (again,) = evaluate_checkpoint("bundled:encoder", [measure], text=None)
    assert record == again
    assert (record.measure, record.metric, record.higher_is_better) == ("mine", "nats", False)
    assert (record.items or 0) > 50 and record.value > 1


def test_the_loss_on_a_text_is_measured_with_the_kind_of_masks_that_is_asked(files):
    general = str(files / "general.jsonl")
    token, words = (TextLoss.read(general, masks=masks) for masks in ("token", "whole-word"))
    # The name of a stage depends on the content; single tokens were the only masks before.
    assert token.content() == TextLoss.read(general).content() != words.content()
    former = {name: value for name, value in vars(token).items() if name != "masks"}
    as_json = json.dumps(former).encode()
    assert token.content() == hashlib.sha256(as_json).hexdigest()[:16]
    measures = [f"text-loss({general!r}, masks={masks!r})" for masks in ("token", "whole-word")]
    losses = [evaluate_checkpoint("bundled:encoder", [one], text=None)[0] for one in measures]
    # The pieces of a whole word are no help to each other.
    assert losses[1].value > losses[0].value + 0.5
    with pytest.raises(MaskwiseError, match="whole-word"):
        TextLoss.read(general, masks="spans")


@pytest.mark.slow
def test_adapt_says_what_was_forgotten(files, capfd):
    out = files / "out"
    command = ["adapt", "bundled:encoder", files / "own.jsonl", "--task", files / "task.jsonl"]
    command += ["--keep", files / "general.jsonl", "--replay", 0.5, "--steps", 2, "--runs", 1]
    command += ["--out", out, "corpus.held_out=0.2", "corpus.length=32", *OPTIONS]
    assert maskwise(*command, "--dry-run") == 0
    assert "words-30-replay" in capfd.readouterr().out
    assert maskwise(*command, "--json") == 0
    said = json.loads(capfd.readouterr().out)
    asked = [(each["arm"], each["masks"]) for each in said["forgotten"]]
    both = ("words-30", "words-30-replay")
    assert asked == [(arm, masks) for masks in ("token", "whole-word") for arm in both]
    lines = records_of(out, "evaluation")
    values = {(line["measure"], line["arm"]): line["value"] for line in lines}
    for each in said["forgotten"]:
        measure = each["outcome"].split(":")[1]
        change = values[measure, each["arm"]] - values[measure, "no-pretraining"]
        assert each["mean"] == pytest.approx(change)
    changes = {each["mean"] for each in said["forgotten"] if each["arm"] == "words-30"}
    assert len(changes) == 2
    words = load_json(out / "adapted.json")["forgotten"]
    assert words and words in said["answer"] and words in (out / "report.html").read_text()
    rows = load_json(out / "summary.json")["contrasts"]
    (row,) = [row for row in rows if row["outcome"] == "evaluation:general text:nats"]
    assert row["verdict"] is None and not row["primary"]


@pytest.mark.usefixtures("small_encoder")
def test_general_text_may_be_in_memory(files, tmp_path):
    texts = [line["text"] for line in read_lines(files / "general.jsonl")]
    adapted = mw.adapt(
        "bundled:encoder",
        str(files / "own.jsonl"),
        tasks=str(files / "task.jsonl"),
        keep=texts,
        replay=0.3,
        out=tmp_path / "memory",
        steps=2,
        runs=1,
        jobs=1,
        overrides={"finetune.steps": 2, "corpus.held_out": 0.2, **SMALL},
    )
    assert {each["arm"] for each in adapted.forgotten} == {"words-30", "words-30-replay"}
    assert next(adapted.folder.glob("data/keep-*.jsonl"))
