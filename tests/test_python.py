"""Studies from Python: a recipe as a dict, texts and labels from memory, and the result object."""

from __future__ import annotations

import html
import json
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf

import maskwise as mw
from maskwise.base.constants import FRESH_RUN
from maskwise.base.errors import MaskwiseError, Truncated, command_line
from maskwise.base.folders import OutputFolder, read_lines
from maskwise.base.printing import LOGGER
from maskwise.cli.terminal import print_check
from maskwise.recipe.setting_layers import parse_override
from maskwise.report import changes_of
from maskwise.studies.adapt import Adaptation
from maskwise.studies.inputs import file_of_rows, overrides_of, task_specs, text_source
from maskwise.studies.stages import without_places
from maskwise.tasks import load_task
from maskwise.text import read_documents, train_tokenizer
from report_fixture import (
    CLEAR,
    failure_record,
    heldout_record,
    make_study,
    run_facts,
    study_of,
    with_unigram,
    write_study,
)
from tiny import write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The settings of a tiny recipe, its texts and its labelled rows."""
    folder = tmp_path_factory.mktemp("inputs")
    recipe = yaml.safe_load(write_inputs(folder).read_text())
    texts = [line["text"] for line in read_lines(folder / "corpus.jsonl")]
    rows = list(read_lines(folder / "task.jsonl"))
    del recipe["corpus"]["source"], recipe["tasks"]
    return recipe, texts, rows


@pytest.fixture(scope="module")
def result(inputs, tmp_path_factory):
    recipe, texts, rows = inputs
    out = tmp_path_factory.mktemp("study") / "out"
    frame = pd.DataFrame(rows)
    return mw.study(recipe, out=out, texts=texts, tasks={"letters": frame})


def test_a_study_of_rows_in_memory(result, inputs):
    table = result.to_dataframe()
    scores = table[(table.kind == "task") & (table.split == "test")]
    assert set(scores.measure) == {"letters"}
    assert sorted(zip(scores.arm, scores.seed)) == [
        (arm, seed) for arm in ("no-pretraining", "token-15", "words-30") for seed in (0, 1)
    ]
    assert result.verdicts == {("words-30", "token-15"): "not comparable"}
    assert result.failures == []
    assert result.headline in str(result)
    assert result.page().is_file()


def test_the_files_of_rows_are_inside_the_study_and_name_their_content(result, inputs):
    _, texts, _ = inputs
    [source] = result.folder.glob("data/texts-*.jsonl")
    assert [line["text"] for line in read_lines(source)] == texts
    assert result.study["recipe"]["corpus"]["source"] == str(source)


def test_the_same_call_trains_nothing_again(result, inputs, monkeypatch):
    recipe, texts, rows = inputs
    monkeypatch.setattr("maskwise.studies.work.pretrain", None)
    again = mw.study(recipe, out=result.folder, texts=iter(texts), tasks={"letters": rows})
    assert again.records == result.records


def test_the_place_of_rows_is_not_part_of_a_study(result, inputs, tmp_path, monkeypatch):
    recipe, texts, rows = inputs
    monkeypatch.setattr("maskwise.studies.work.pretrain", None)
    monkeypatch.setattr("maskwise.studies.work.runs_of_task", None)
    given = {"texts": texts, "tasks": {"letters": rows}}
    # The same folder, spelt in another way and from another working folder.
    monkeypatch.chdir(result.folder.parent)
    again = mw.study(recipe, out=result.folder.name, **given)
    assert again.records == result.records
    # Another study with the same rows has the same stages.
    cache = {"study.cache": str(result.folder / "stages")}
    other = mw.study(recipe, out=tmp_path / "other", overrides=cache, **given)
    assert other.records == result.records


def test_rows_have_one_name_in_all_spellings_of_their_folder(tmp_path, monkeypatch):
    rows = {"letters": ROWS}
    made = []
    monkeypatch.chdir(tmp_path)
    for out in ("out", tmp_path / "out"):
        changes = overrides_of((), [f"text {i}" for i in range(9)], rows, Path(out))
        made.append(without_places(json.dumps(changes)))
    assert made[0] == made[1] and "out/" not in made[0]


@pytest.mark.slow
def test_an_executor_of_the_user_gives_the_same_numbers(result, inputs, tmp_path):
    recipe, texts, rows = inputs
    tasks = {"letters": pd.DataFrame(rows)}
    with ThreadPoolExecutor(2) as threads:
        out = tmp_path / "out"
        other = mw.study(recipe, out=out, texts=texts, tasks=tasks, executor=threads)
    assert other.to_dataframe().equals(result.to_dataframe())


def test_a_result_is_read_from_its_folder(result):
    read = mw.StudyResult.read(result.folder)
    assert read.summary == result.summary
    assert read.to_dataframe().equals(result.to_dataframe())


def test_the_best_arm_is_saved_for_transformers(result, tmp_path, caplog, monkeypatch):
    from transformers import AutoModelForMaskedLM

    table = result.to_dataframe()
    scores = table[(table.outcome == "letters") & (table.arm != "no-pretraining")]
    means = scores.groupby("arm").value.mean()
    assert means[result.best_arm] == means.max()
    monkeypatch.setattr(LOGGER, "propagate", True)
    folder = result.save_best(tmp_path / "model")
    assert AutoModelForMaskedLM.from_pretrained(folder).config.model_type == "bert"
    # Log and card say which run it is.
    assert f"{folder} has the model of arm {result.best_arm}, seed 0" in caplog.text
    card = (folder / "README.md").read_text()
    for name, value in {"arm": result.best_arm, "seed of the run": 0}.items():
        assert card.count(f"\n| {name} | `{value}` |\n") == 1
    # A model that was saved before is replaced; other files are not.
    result.save_best(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(MaskwiseError, match="something else"):
        result.save_best(tmp_path / "mine")


def test_a_notebook_shows_the_verdicts_with_markup_escaped(result):
    marked = replace(result, summary={**result.summary, "headline": "<script>1</script>"})
    shown = marked._repr_html_()
    assert "<td>words-30</td><td>token-15</td><td>not comparable</td>" in shown
    assert "&lt;script&gt;1" in shown and "<script>" not in shown


def test_study_is_the_function_also_once_its_room_is_imported():
    from maskwise import studies, study

    assert mw.study is study is studies.study


def test_a_printed_result_has_intervals_and_reasons(result):
    row = result.contrasts[0]
    flag = {"code": "x", "sentence": "the reason", "facts": {}}
    marked = replace(
        result, summary={**result.summary, "contrasts": [{**row, "flags": [flag]}, row]}
    )
    shown = str(marked)
    assert f"· {row['arm']}: the reason" not in shown and "· the reason" in shown
    assert all(f"→ {line}" in shown for line in result.summary["advice"])


def test_a_check_of_rows_from_memory_names_no_temporary_path(inputs):
    recipe, texts, rows = inputs
    settings = {"timing": False, "texts": texts}
    found = mw.check(recipe, tasks={"letters": rows}, **settings)
    assert "/maskwise-" not in json.dumps(found.record["tasks"]) + str(found)
    assert "/data/texts" not in json.dumps(found.record, default=str)
    with pytest.raises(MaskwiseError, match=r"letters-\w{8}\.jsonl") as error:
        mw.check(recipe, tasks={"letters": [{"text": "a"}]}, **settings)
    assert "/maskwise-" not in str(error.value)


def test_problems_and_information_of_a_check_are_apart(inputs, capsys):
    recipe, texts, rows = inputs
    found = mw.check(recipe, tasks={"letters": rows}, texts=texts, timing=False)
    doubts = [{"what": "2 rows were left out", "do": ""}, {"what": "5 steps", "do": "raise them"}]
    notes = ["copies were not counted"]
    found = replace(found, record={**found.record, "doubts": doubts, "notes": notes})
    assert found.doubts == ["5 steps: raise them"]
    assert found.notes == ["2 rows were left out", "copies were not counted"]
    said = ["? 5 steps: raise them", "· 2 rows were left out", "· copies were not counted"]
    assert str(found).splitlines()[-3:] == said
    print_check(lambda tell: found.record, as_json=False)
    printed = capsys.readouterr().out.splitlines()
    assert {"? 5 steps", "  → raise them", "· 2 rows were left out"} <= {*printed}


def test_equal_arms_are_named(inputs):
    recipe, texts, rows = inputs
    arms = {
        "one": {},
        "two": {"masking.policy": "whole-word"},
        "three": {"masking.policy": "token"},
        "four": {"masking.ratio": "constant(0.15)"},
        "five": {"masking.ratio": "constant(0.16)"},
    }
    study = {**recipe["study"], "arms": arms, "contrasts": [["two", "one"]]}
    equal = {**recipe, "masking": {"policy": "token", "ratio": 0.15}, "study": study}
    found = mw.check(equal, tasks={"letters": rows}, texts=texts, timing=False)
    lines = [note for note in found.notes if "equal settings" in note]
    assert [line.partition(" have")[0] for line in lines] == [
        "arms one and three",
        "arms one and four",
    ]


# Rows from memory
# ----------------------------------------------------------------------------

ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


@pytest.mark.parametrize(
    "rows",
    [ROWS, iter(ROWS), pd.DataFrame(ROWS), Dataset.from_list(ROWS)],
    ids=["dicts", "iterator", "frame", "dataset"],
)
def test_rows_of_all_kinds_are_the_same_file(rows, tmp_path):
    path = file_of_rows(rows, tmp_path, name="rows")
    assert list(read_lines(path)) == ROWS
    assert path == file_of_rows(ROWS, tmp_path, name="rows")


def test_texts_and_series_are_texts(tmp_path):
    path = file_of_rows(pd.Series(["a", "b"]), tmp_path, name="texts")
    assert list(read_lines(path)) == [{"text": "a"}, {"text": "b"}]


def test_values_of_pandas_are_json(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b"], "day": pd.to_datetime(["2026-01-01", None])})
    frame["score"] = [0.5, float("nan")]
    lines = list(read_lines(file_of_rows(frame, tmp_path, name="rows")))
    assert lines[0] == {"text": "a", "day": "2026-01-01T00:00:00", "score": 0.5}
    assert lines[1]["score"] is None


def test_sources_stay_as_they_are(tmp_path):
    assert text_source("hf:wikitext", tmp_path) == "hf:wikitext"
    assert text_source(tmp_path / "a.txt", tmp_path) == str(tmp_path / "a.txt")
    assert task_specs(["trivia", "ud-pos(train_rows=9)"], tmp_path) == [
        "trivia",
        "ud-pos(train_rows=9)",
    ]


def test_rows_by_split_keep_their_splits(tmp_path):
    parts = {
        name: Dataset.from_list([{"text": f"{name} {i}", "label": i % 2} for i in range(4)])
        for name in ("train", "validation", "test")
    }
    [spec] = task_specs({"letters": DatasetDict(parts)}, tmp_path)
    task = load_task(spec)
    assert task.name == "letters"
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 4,
        "dev": 4,
        "test": 4,
    }


def test_the_name_of_a_task_may_have_options(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(40)]
    [spec] = task_specs({"letters(train_rows=5)": rows}, tmp_path)
    task = load_task(spec)
    assert (task.name, len(task.splits["train"])) == ("letters", 5)


def test_overrides_are_those_of_the_command_line(tmp_path):
    changes = overrides_of({"training.steps": 9, "study.arms": {"a": None}}, None, None, tmp_path)
    assert changes == ["training.steps=9", 'study.arms={"a": null}']
    assert overrides_of(["a=1"], None, None, tmp_path) == ["a=1"]


@pytest.mark.parametrize("call", ["check", "study"])
def test_the_column_of_texts_is_found_as_in_adapt(call, inputs, tmp_path, caplog):
    """A data frame of another language or shop has no column ``text``."""
    recipe, texts, rows = inputs
    frame = pd.DataFrame({"Nr": range(len(texts)), "Kommentar": texts})
    given = {"texts": frame, "tasks": {"letters": rows}}
    if call == "check":
        found = str(mw.check(recipe, **given, timing=False))
    else:
        caplog.set_level("INFO", logger="maskwise")
        assert mw.study(recipe, **given, out=tmp_path / "out").verdicts
        found = caplog.text
    assert "'Kommentar'" in found


def _refused_calls(inputs):
    recipe, texts, rows = inputs
    tasks = {"letters": rows}
    alone = {key: value for key, value in recipe.items() if key != "study"}
    small = [f"a text {number}" for number in range(3)]
    return {
        "study": partial(mw.study, {**recipe, "traning": {}}, texts=texts, tasks=tasks),
        "no arms": partial(mw.study, alone, texts=texts, tasks=tasks),
        "no effect": partial(
            mw.study, recipe, texts=texts, tasks=tasks, overrides={"training.seed": 3}
        ),
        "no labels": partial(mw.study, recipe, texts=texts, tasks={"letters": small}),
        "no rows": partial(mw.study, recipe, texts=texts, tasks={"letters": []}),
        "learn": partial(mw.learn, recipe, texts=texts, tasks=tasks),
        "finetune": partial(mw.finetune, "bundled:encoder", tasks, overrides={"seeds": 2}),
        "adapt": partial(mw.adapt, "bundled:encoder", small, keep=small),
        "adapt arms": partial(mw.adapt, "bundled:encoder", texts, tasks=tasks, arms=["x"]),
    }


CALLS = [*_refused_calls((dict[str, object](), [], []))]


@pytest.mark.parametrize("call", CALLS)
def test_a_refused_call_leaves_no_rows_behind(call, inputs, tmp_path):
    out = tmp_path / "runs" / "out"
    with pytest.raises(MaskwiseError):
        _refused_calls(inputs)[call](out=out)
    assert [*tmp_path.iterdir()] == []


def _errors_from_python(inputs, result, tmp_path):
    """Calls that are refused, keyed by what their messages name."""
    recipe, texts, rows = inputs
    tasks = {"letters": rows}
    out = result.folder
    model = "bundled:encoder"
    few = [f"a text {number}" for number in range(3)]
    check = partial(mw.check, recipe, texts=texts, tasks=tasks, timing=False)
    adapt = partial(mw.adapt, model, texts, out=tmp_path / "out", tasks=tasks)
    changed = {"training.steps": 9}
    done = tmp_path / "tuned"
    with OutputFolder(done, "finetune", "maskwise finetune other").used({"model": "0a1b"}):
        (done / "records.jsonl").write_text('{"model": "other", "task": "x", "dev": []}')
    return [
        ("out=", partial(mw.study, recipe, out=out, texts=texts, tasks=tasks, overrides=changed)),
        ("out=", partial(mw.finetune, model, tasks, out=done)),
        ("spread", partial(check, spread=-1)),
        ("spread", partial(check, spread="nowhere")),
        ("spread", partial(check, detect=1.5)),
        (
            "text_field",
            partial(mw.check, recipe, texts=[{"text": None, "body": "a"}] * 9, tasks=tasks),
        ),
        ("runs", partial(mw.finetune, model, tasks, out=done, overrides={"seeds": 2})),
        ("texts", partial(mw.evaluate, model)),
        ("texts", partial(mw.evaluate, model, text_field="body")),
        ("texts", partial(mw.evaluate, model, ["heldout"])),
        ("tasks", partial(mw.adapt, model, few, out=tmp_path / "out")),
        ("arms", partial(adapt, arms=["token-15", "token-15"])),
        ("steps", partial(adapt, overrides=changed)),
        ("patience", partial(adapt, overrides={"training.patience": 2})),
        ("runs", partial(adapt, overrides={"study.seeds": 2})),
        ("time", partial(adapt, time="5x")),
        ("replay", partial(adapt, replay=2.0)),
        ("replay", partial(adapt, replay=0.2, keep="none")),
        ("keep", partial(mw.adapt, model, "mine.txt", out=tmp_path / "out", keep="mine.txt")),
        ("step", partial(_changing_mask)),
    ]


def _changing_mask():
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    mw.Masker(tokenizer, ratio="linear-decay(0.3)").at(epoch=0)


def test_errors_in_python_name_arguments_and_no_options(result, inputs, tmp_path):
    for named, call in _errors_from_python(inputs, result, tmp_path):
        with pytest.raises(MaskwiseError) as error:
            call()
        said = str(error.value)
        assert re.search(rf"\b{named}", said) and not re.search(r"(^|\W)--\w", said), said
        # A command names the options.
        with command_line(), pytest.raises(MaskwiseError, match=r"(^|\W)--\w"):
            call()


def test_a_call_that_is_refused_leaves_the_rows_of_an_earlier_one(result, inputs):
    recipe, texts, rows = inputs
    before = sorted(result.folder.rglob("*.jsonl"))
    for given in (texts, texts[1:]):
        with pytest.raises(MaskwiseError):
            mw.study({**recipe, "traning": {}}, out=result.folder, texts=given)
    with pytest.raises(MaskwiseError, match=r"corpus\.source"):
        mw.study(recipe, out=result.folder, texts=texts[1:], tasks={"letters": rows})
    assert sorted(result.folder.rglob("*.jsonl")) == before


@pytest.mark.parametrize("door", ["study", "check", "learn", "adapt", "evaluate", "finetune"])
def test_warnings_of_a_call_are_single_lines_without_our_code(door, inputs, tmp_path):
    recipe, _, _ = inputs
    shown = []

    def rows():
        for _ in range(2):
            shown.append(warnings.formatwarning(Truncated("cut"), Truncated, "jobs.py", 218))
        yield 1

    given = {"tasks": {"letters": rows()}} if door == "finetune" else {"texts": rows()}
    place = {} if door in ("check", "evaluate") else {"out": tmp_path / "out"}
    first = recipe if door in ("study", "check", "learn") else "bundled:encoder"
    usual = warnings.formatwarning
    with pytest.raises(MaskwiseError, match="neither a text nor a dict"):
        getattr(mw, door)(first, **given, **place)
    # Each is said once.
    assert shown == ["Warning: cut\n", ""] and warnings.formatwarning is usual


def test_rows_are_not_written_into_a_folder_of_other_files(inputs, tmp_path):
    recipe, texts, rows = inputs
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl").write_text("{}")
    with pytest.raises(MaskwiseError, match="something else"):
        mw.study(recipe, out=tmp_path, texts=texts, tasks={"letters": rows})
    assert [path.name for path in tmp_path.rglob("*.jsonl")] == ["mine.jsonl"]


def test_a_saved_model_does_not_replace_a_folder_with_other_files(result, tmp_path):
    folder = result.save_best(tmp_path / "model")
    (folder / "notes.txt").write_text("mine")
    result.save_best(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(MaskwiseError, match="something else"):
        result.save_best(tmp_path / "web")


def test_names_outside_the_basic_plane_stay(tmp_path):
    [change] = overrides_of({}, "texts/\N{GRINNING FACE}.txt", None, tmp_path)
    assert parse_override(change) == ("corpus.source", "texts/\N{GRINNING FACE}.txt")


def test_the_name_of_a_task_in_a_file_may_have_options(tmp_path):
    assert task_specs({"faq(kind='retrieval')": "my.csv"}, tmp_path) == [
        "my.csv(kind='retrieval', name='faq')"
    ]
    assert task_specs({"faq": "my.csv(label='stars')"}, tmp_path) == [
        "my.csv(label='stars', name='faq')"
    ]


def test_missing_values_of_all_types_are_null(tmp_path):
    frame = pd.DataFrame({"text": ["a"], "day": [pd.NaT], "score": np.array([np.nan], np.float32)})
    path = file_of_rows(frame, tmp_path, name="rows")
    assert path.read_text() == '{"text": "a", "day": null, "score": null}\n'
    assert path.stat().st_mode & 0o044


# Other commands
# ----------------------------------------------------------------------------


def test_evaluate_reads_texts_from_memory():
    texts = ["Marie Curie was born in Warsaw in 1867."] * 8
    records = mw.evaluate("bundled:encoder", texts=texts)
    assert {line["measure"] for line in records} == {"token", "whole-word"}
    assert json.dumps(records)


def test_load_task_is_public():
    assert mw.load_task("trivia").name == "trivia"


def test_check_says_what_a_study_would_do_and_writes_nothing(inputs, tmp_path, monkeypatch):
    recipe, texts, rows = inputs
    monkeypatch.chdir(tmp_path)
    found = mw.check(recipe, texts=texts, tasks={"letters": rows}, timing=False)
    assert found.record["corpus"]["documents"] == len(texts)
    assert list(found.record["arms"]) == ["token-15", "words-30"]
    assert any("letters" in line for line in str(found).splitlines())
    # Two pairs cannot decide.
    assert found.record["contrasts"][0]["runs"] == 2
    assert list(tmp_path.iterdir()) == []


def test_check_of_one_training(inputs):
    recipe, texts, _ = inputs
    alone = {key: value for key, value in recipe.items() if key not in ("study", "finetune")}
    found = mw.check(alone, texts=texts, timing=False)
    assert found.record["contrasts"] == [] and found.seconds is None


# Adapt
# ----------------------------------------------------------------------------


@pytest.mark.slow
def test_adapt_takes_texts_and_labels_from_memory(inputs, tmp_path):
    _, texts, rows = inputs
    given = {
        "out": tmp_path / "out",
        "tasks": {"letters": rows},
        "steps": 4,
        "runs": 1,
        "overrides": {
            "finetune.steps": 4,
            "corpus.held_out": 0.2,
            "training.batch_size": 4,
            "evaluation.rows": 4,
        },
    }
    with ThreadPoolExecutor(1) as threads:
        submitted = []
        executor = SimpleNamespace(
            submit=lambda *task: submitted.append(task) or threads.submit(*task)
        )
        adapted = mw.adapt("bundled:encoder", texts, executor=executor, jobs=1, **given)
    assert len(submitted) == len([*(adapted.folder / "stages").glob("*/done.json")]) > 3
    # Scores after four steps, and so the doubt that is named, differ between versions of libraries.
    assert adapted.answer and adapted.answer in str(adapted)
    # A dump of 1,500 characters told nobody anything.
    assert len(repr(adapted)) < 300 + 3 * len(str(tmp_path)) and "answer" not in repr(adapted)
    assert adapted.next_step.python in str(adapted) and "mw.adapt(" in adapted.next_step.python
    assert html.escape(adapted.next_step.python) in adapted._repr_html_()
    assert adapted.helps is None
    assert set(adapted.to_dataframe().arm) == {"words-30", "no-pretraining"}
    assert (adapted.model / "model.safetensors").is_file()
    assert (adapted.sentence_model / "modules.json").is_file()
    read = mw.StudyResult.read(tmp_path / "out")
    assert type(read) is type(adapted)
    names = ("answer", "details", "helps", "arm", "model", "sentence_model", "next_step")
    for name in (*names, "forgotten"):
        assert getattr(read, name) == getattr(adapted, name)
    recipe = yaml.safe_load((tmp_path / "out" / "adapt.yaml").read_text())
    assert recipe["tasks"] == [f"{next(adapted.folder.glob('data/letters-*'))}(name='letters')"]


def test_adapt_refuses_what_takes_too_long_and_runs_nothing(inputs, tmp_path, monkeypatch):
    _, texts, rows = inputs
    plan = {"least_seconds": 1e5, "unknown": [], "limit": None}
    plan["limit"] = {"steps": 160, "seconds": 50.0, "bounded": True}
    monkeypatch.setattr(Adaptation, "plan", lambda _: plan)
    with pytest.raises(MaskwiseError, match=r"longer than .*steps.160.*50 s"):
        mw.adapt(
            "bundled:encoder",
            texts,
            tasks={"letters": rows},
            time="1m",
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out" / "study.json").exists()


def test_the_best_arm_of_losses_that_are_not_comparable_is_asked_for(result, tmp_path):
    study = make_study(runs=6, tasks=0)
    study["arms"]["token-30"] |= {"units": "word", "judged_on": ["whole-word"]}
    records = [
        line
        for arm, loss in (("token-15", 3.0), ("token-30", 3.5))
        for masks in ("token", "whole-word")
        for seed in range(6)
        for line in with_unigram(heldout_record(arm, seed, masks, loss + 0.01 * seed))
    ]
    read = mw.StudyResult.read(write_study(tmp_path, study, records + run_facts(study)))
    with pytest.raises(MaskwiseError, match=r"not comparable.*arm=…"):
        read.save_best(tmp_path / "best")
    # Any arm can be saved by its name.
    assert (result.save_best(tmp_path / "model", arm="words-30") / "config.json").is_file()
    with pytest.raises(MaskwiseError, match="arm"):
        result.save_best(tmp_path / "model", arm="words-3")


def test_a_gate_and_a_contrast_of_one_pair_are_two_verdicts(tmp_path):
    """With a search, the gate has default settings. Their verdicts of another day are compared."""
    study, records = study_of(CLEAR)
    pair = ["token-30", "token-15"]
    study["gate"] = {"contrast": pair, "closes": [pair]}
    equal = {"token-15": 0.5, "token-30": 0.5}
    compared = [
        line
        | {"value": equal[line["arm"]] + 0.001 * line["seed"], "seed": line["seed"] + FRESH_RUN}
        for line in records
        if line["kind"] == "task" and line["arm"] in equal
    ]
    gate = [line | {"role": "gate"} for line in records if line["kind"] == "task"]
    study["seeds"] = [seed + FRESH_RUN for seed in study["seeds"]]
    folder = write_study(tmp_path, study, compared + gate + run_facts(study))
    summary = mw.StudyResult.read(folder).summary
    rows = [row for row in summary["contrasts"] if row["primary"]]
    assert [(bool(row.get("gate")), row["verdict"]) for row in rows] == [
        (True, "decided"),
        (False, "open"),
    ]
    (folder / "summary.json").write_text(json.dumps(summary | {"rules": 1}))
    assert len(changes_of(folder)) == 1


def test_a_result_lists_the_runs_that_failed(tmp_path):
    study = make_study(runs=1)
    failures = [failure_record("token-15", 0), failure_record("token-30", 0)]
    read = mw.StudyResult.read(write_study(tmp_path, study, failures))
    assert "2 runs failed" in read.headline
    assert "failed: token-30, seed 0: disk full" in str(read)
    assert "failed: token-30, seed 0: disk full" in read._repr_html_()


def test_texts_keep_their_ids_when_rows_or_columns_are_added(tmp_path):
    """Splits and masks depend on the ids."""
    texts = [f"text number {n}" for n in range(5)]
    grown = ["another one", *texts]
    table = [{"text": text, "source": "mail"} for text in texts]
    ids = []
    for n, rows in enumerate((texts, grown, table)):
        documents = read_documents(text_source(rows, tmp_path / str(n)))
        ids.append([document.id for document in documents][-5:])
    assert ids[0] == ids[1] == ids[2] and len({*ids[0]}) == 5
    own = [{"id": f"mail-{n}", "text": text} for n, text in enumerate(texts)]
    assert next(iter(read_documents(text_source(own, tmp_path / "own")))).name == "mail-0"


def test_data_sets_in_memory_have_the_classes_that_those_of_the_hub_have(tmp_path):
    tags = Features(
        {
            "tokens": ListOf(Value("string")),
            "tags": ListOf(ClassLabel(names=["O", "B-LOC"])),
        }
    )
    rows = [{"tokens": ["in", f"city{n}"], "tags": [0, 1]} for n in range(60)]
    part = Dataset.from_list(rows, features=tags)
    (spec,) = task_specs({"places": DatasetDict(train=part, test=part)}, tmp_path)
    task = load_task(spec)
    assert {*task.labels} == {"O", "B-LOC"} and task.metric == "entity-f1"


def test_a_split_that_the_hub_leaves_out_is_left_out_of_a_data_set_in_memory(tmp_path):
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(40)]
    part = Dataset.from_list(rows)
    splits = DatasetDict(train=part, test=part, unsupervised=part)
    with pytest.warns(UserWarning, match="films: the split 'unsupervised' is left out"):
        (spec,) = task_specs({"films": splits}, tmp_path)
    assert load_task(spec).test_items == 40


def test_a_task_may_have_the_name_of_a_data_set_on_the_hub(tmp_path):
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(60)]
    (spec,) = task_specs({"glue/sst2": rows}, tmp_path)
    assert load_task(spec).name == "glue/sst2"


def test_rows_of_a_task_may_have_options_beside_them(tmp_path: Path) -> None:
    rows = [{"Description": f"text {number}", "Library": str(number % 2)} for number in range(30)]
    options = {"label": "Library", "text": "Description"}
    [beside] = task_specs({"library": (rows, options)}, tmp_path)
    [within] = task_specs({"library(label='Library', text='Description')": rows}, tmp_path)
    assert beside == within
    assert mw.load_task(beside).name == "library"


def test_overrides_in_python_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    given = {"training.steps": np.int64(3), "finetune.learning_rate": np.array([0.5])}
    assert overrides_of(given, None, None, tmp_path) == [
        "training.steps=3",
        "finetune.learning_rate=[0.5]",
    ]
