"""One stage at a time: damaged files, full disks, texts that teach nothing. Nothing ends in a
traceback.
"""

from __future__ import annotations

import errno
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskwise.annotate.run import annotate_corpus
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import damage, write_json
from maskwise.recipe import Recipe, read_recipe
from maskwise.studies import Stage, run_stage, work
from maskwise.studies.stages import (
    DONE,
    KINDS,
    evaluate_stage,
    finetune_stage,
    overlap_stage,
    prepare_stage,
    pretrain_stage,
    recipe_of,
)
from maskwise.studies.store import StageStore
from maskwise.tasks import load_task
from maskwise.text import train_tokenizer
from tiny import flip, load_json, maskwise, write_inputs, write_lines

SHORT = [
    "training.steps=4",
    "training.log_every=2",
    "training.save_every=0",
    "training.eval_every=0",
]


@pytest.fixture
def source(tmp_path):
    return write_inputs(tmp_path / "inputs")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"3", b"\xff\xfe\x00", b"[" * 5000])
def test_a_stage_with_damaged_files_is_one_that_is_not_done(content, tmp_path):
    stage = Stage("overlap", {"corpus": {}, "task": "x"})
    store = StageStore(tmp_path)
    folder = store.folder(stage)
    folder.mkdir()
    (folder / "stage.json").write_text(json.dumps(stage.as_dict()))
    (folder / DONE).write_text('{"seconds": 2.0}')
    assert store.result(stage) == {"seconds": 2.0} and [*store.stages()] == [stage]
    (folder / DONE).write_bytes(content)
    assert store.result(stage) is None
    (folder / "stage.json").write_bytes(content)
    assert not [*store.stages()]


def test_damage_that_another_process_has_found_is_waited_for(source, tmp_path, monkeypatch):
    """A process that looked at the same time took the damaged stage for a finished one."""
    store = StageStore(tmp_path)
    stage = prepare_stage(read_recipe(source))
    write_json(store.folder(stage) / DONE, {"seconds": 1.0})
    held = store.lock(stage)
    waited = []

    def finds(seconds: float) -> None:
        waited.append(seconds)
        (store.folder(stage) / DONE).unlink()
        held.release()

    monkeypatch.setattr("maskwise.studies.store.time.sleep", finds)
    store.unmake(stage)
    assert waited and store.result(stage) is None


def test_damaged_text_is_made_anew(source, tmp_path):
    stage = prepare_stage(read_recipe(source))
    before = run_stage(stage, StageStore(tmp_path))
    data = StageStore(tmp_path).folder(stage) / "data"
    largest = max(filter(Path.is_file, data.rglob("*")), key=lambda path: path.stat().st_size)
    whole = flip(largest, at=0.5)
    assert StageStore(tmp_path).damage(stage)
    after = run_stage(stage, StageStore(tmp_path))
    assert damage(data) is None and largest.read_bytes() == whole
    assert after | {"seconds": 0} == before | {"seconds": 0}


@pytest.fixture
def edit(source):
    """Change the words of a file of the study, and not its size."""

    def change(name: str) -> None:
        path = source.parent / name
        path.write_text(path.read_text().replace("ba", "zu").replace("ke", "xe"))

    return change


def test_a_text_that_changes_after_the_plan_is_not_taken_for_the_planned_one(
    source, edit, tmp_path, monkeypatch
):
    """Runs that read a file before and after an edit were compared as pairs."""
    recipe = read_recipe(source)
    store = StageStore(tmp_path / "stages")
    stages = [prepare_stage(recipe), overlap_stage(recipe, *task_of(recipe))]
    whole = (source.parent / "corpus.jsonl").read_text()
    edit("corpus.jsonl")
    for stage in stages:
        with pytest.raises(MaskwiseError, match=r"corpus\.jsonl has changed since"):
            run_stage(stage, store)
        assert store.result(stage) is None
    (source.parent / "corpus.jsonl").write_text(whole)
    assert run_stage(stages[1], store)["record"]
    # While the text is read.
    write_rows = work.write_rows

    def slowly(*given: Any, **more: Any) -> Any:
        data = write_rows(*given, **more)
        edit("corpus.jsonl")
        return data

    monkeypatch.setattr(work, "write_rows", slowly)
    with pytest.raises(MaskwiseError, match=r"corpus\.jsonl has changed since"):
        run_stage(stages[0], store)
    assert store.result(stages[0]) is None


def task_of(recipe: Recipe) -> tuple[str, str]:
    """The first task of a recipe, and the hash of its rows."""
    return recipe.tasks[0], load_task(recipe.tasks[0]).fingerprint


def test_a_task_that_changes_after_the_plan_is_not_taken_for_the_planned_one(
    source, edit, tmp_path
):
    recipe = read_recipe(source)
    task, content = task_of(recipe)
    text = prepare_stage(recipe)
    stages = [
        overlap_stage(recipe, task, content),
        finetune_stage(recipe, task, content, prepared=text, pretrained=None),
        Stage("learn", {"task": task, "task_content": content}, (text.name,)),
    ]
    edit("task.jsonl")
    for stage in stages:
        with pytest.raises(MaskwiseError, match=r"task\.jsonl.* has changed since"):
            run_stage(stage, StageStore(tmp_path / "stages"))


def test_an_evaluation_file_that_changes_after_the_plan_is_refused(source, tmp_path):
    items = tmp_path / "pairs.jsonl"
    pair = {"sentence_good": "The cat sat.", "sentence_bad": "The sat cat."}
    write_lines(items, [pair])
    measures = [f"pairs({str(items)!r})"]
    recipe = read_recipe(source, [f"evaluation.measures={json.dumps(measures)}"])
    stage = evaluate_stage(recipe, prepare_stage(recipe), None)
    write_lines(items, [{**pair, "sentence_bad": "Sat the cat."}])
    with pytest.raises(MaskwiseError, match="pairs has changed since"):
        run_stage(stage, StageStore(tmp_path / "stages"))


def test_a_stream_that_changes_after_its_beginning_was_prepared_is_not_trained_on(
    source, edit, tmp_path
):
    recipe = read_recipe(source, [*SHORT, "corpus.stream=true"])
    store = StageStore(tmp_path / "stages")
    text = prepare_stage(recipe)
    run_stage(text, store)
    edit("corpus.jsonl")
    with pytest.raises(MaskwiseError, match=r"corpus\.jsonl has changed since"):
        run_stage(pretrain_stage(recipe, text), store)


def train(recipe: Recipe, stages: Path) -> dict[str, Any]:
    """Prepare the text of a recipe and train on it; a training that fails keeps no checkpoint."""
    prepared = prepare_stage(recipe)
    run_stage(prepared, StageStore(stages))
    training = pretrain_stage(recipe, prepared)
    try:
        return run_stage(training, StageStore(stages))
    except MaskwiseError:
        assert not (StageStore(stages).folder(training) / "checkpoint").exists()
        raise


def test_text_in_which_a_policy_finds_nothing_is_refused_before_training(tmp_path):
    """Proteins have no spaces: a whole sequence is one word, longer than any budget."""
    draw = random.Random(0)
    lines = [{"text": "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=90))} for _ in range(99)]
    corpus = write_lines(tmp_path / "proteins.jsonl", lines)
    more = [*SHORT, f"corpus.source={corpus}", "corpus.length=128"]
    path = write_inputs(tmp_path)
    assert train(read_recipe(path, more), tmp_path)["targets"] > 0
    with pytest.raises(MaskwiseError, match="finds no words in this text"):
        train(read_recipe(path, [*more, "masking.policy=whole-word"]), tmp_path)


def test_a_training_without_a_single_target_keeps_no_checkpoint(source, tmp_path, monkeypatch):
    """The look before training sees eight batches only."""
    monkeypatch.setattr("maskwise.studies.pretraining.require_targets", lambda *source: None)
    with pytest.raises(MaskwiseError, match="no token was masked during training"):
        train(read_recipe(source, [*SHORT, "masking.ratio=constant(0)"]), tmp_path)


@pytest.mark.parametrize("word, said", [("abc", False), ("αβγ", True)])
def test_unknown_tokens_are_said_above_a_percent(word, said, source, tmp_path, capfd):
    known, written = ([f"{each * 3} is number {n}" for n in range(60)] for each in ("abc", word))
    corpus = write_lines(tmp_path / "corpus.jsonl", [{"text": line} for line in written])
    train_tokenizer(known, vocab_size=200).save_pretrained(tmp_path / "tokenizer")
    more = [f"corpus.source={corpus}", f"tokenizer={{name: {tmp_path / 'tokenizer'}}}"]
    assert maskwise("pretrain", source, *SHORT, *more, "--out", tmp_path / "out") == 0
    assert ("% of the tokens of" in capfd.readouterr().err) == said


def test_a_full_disk_is_one_line_and_hides_no_other_error(source, tmp_path, monkeypatch):
    stage, write = prepare_stage(read_recipe(source)), Path.write_bytes
    full: list[str] = []

    def write_bytes(path: Path, content: bytes) -> int:
        if any(name in path.name for name in full):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    def fail(*_: object) -> None:
        raise MaskwiseError("the text is bad")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    for name in ("stage.json", DONE):
        full[:] = [name]
        with pytest.raises(MaskwiseError, match=f"cannot write .*{name}; got No space left"):
            run_stage(stage, StageStore(tmp_path))
        assert StageStore(tmp_path).result(stage) is None
    full[:] = ["error.txt"]
    monkeypatch.setitem(KINDS, "prepare", replace(KINDS["prepare"], run=fail))
    with pytest.raises(MaskwiseError, match="the text is bad"):
        run_stage(stage, StageStore(tmp_path))


def test_a_stage_holds_the_settings_of_its_training(source):
    recipe = read_recipe(
        source, ["objective={atd: , mlm: {masking: {ratio: 0.3}}}", "masking.budget=expected"]
    )
    stage = pretrain_stage(recipe, prepare_stage(recipe))
    again = recipe_of(Stage.from_dict(json.loads(json.dumps(stage.as_dict()))))
    parts = ("model", "masking", "objectives", "sampler", "training", "evaluation")
    assert [getattr(again, part) for part in parts] == [getattr(recipe, part) for part in parts]
    assert list(again.objectives) == ["atd", "mlm"]


def test_pretraining_asks_nothing_of_fine_tuning_and_notices_a_damaged_recipe(
    source, tmp_path, capfd
):
    out = tmp_path / "out"
    # finetune.max_length is 32
    run = ("pretrain", source, *SHORT, "corpus.length=16", "--out", out)
    assert maskwise(*run) == 0
    (out / DONE).write_text("{")
    assert maskwise(*run) == 0 and load_json(out / DONE)["steps"] == 4  # made anew
    for content in (b"\xff\x00", b"", b"- a", b"training: ["):
        (out / "recipe.yaml").write_bytes(content)
        capfd.readouterr()
        # The identity of the folder says what was trained.
        assert maskwise(*run) == 0
        capfd.readouterr()
        assert maskwise(*run, "masking.ratio=0.4") == 2
        [said] = capfd.readouterr().err.splitlines()
        assert "other values of masking.ratio" in said


def test_a_run_that_never_took_a_step_leaves_no_folder(source, tmp_path):
    out = tmp_path / "out"
    assert maskwise("pretrain", source, *SHORT, "training.batch_size=4096", "--out", out) == 2
    assert not out.exists()


def test_a_run_that_fails_after_a_long_preparation_keeps_its_text(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("maskwise.base.folders.KEPT_SECONDS", 0)
    fails = ("pretrain", source, *SHORT, "training.batch_size=4096", "--out", out)
    assert maskwise(*fails) == 2
    [text] = out.glob("stages/prepare-*")
    written = (text / DONE).stat().st_mtime_ns
    # Another text replaces it, and the same text is not prepared again.
    assert maskwise(*fails, "corpus.length=16") == 2
    [other] = out.glob("stages/prepare-*")
    assert other.name != text.name
    assert maskwise(*fails) == 2
    [text] = out.glob("stages/prepare-*")
    assert (text / DONE).stat().st_mtime_ns > written
    written = (text / DONE).stat().st_mtime_ns
    assert maskwise("pretrain", source, *SHORT, "training.batch_size=4", "--out", out) == 0
    assert (text / DONE).stat().st_mtime_ns == written


def test_a_text_is_named_by_the_stored_annotations_that_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may have annotations of several corpora: those of others do not rename a stage."""
    monkeypatch.chdir(tmp_path)
    texts = [f"a cat and {n % 7} dogs saw {n} owls" for n in range(200)]
    for name, lines in (("a", texts), ("part", texts[:80]), ("b", [f"B {n}" for n in range(90)])):
        Path(f"{name}.txt").write_text("\n".join(lines))

    def name(corpus: str) -> str:
        given = [f"corpus.source={corpus}.txt", "corpus.layers=[stored('kept')]"]
        weighted = "masking.policy=weighted(layer='frequency')"
        return prepare_stage(read_recipe("quick-start", [*given, weighted])).name

    annotate_corpus("a.txt", ["frequency"], "kept")
    whole, part = name("a"), name("part")
    annotate_corpus("part.txt", ["frequency"], "kept")
    own = name("part")
    assert own != part, "these weights were fitted to the part"
    for corpus in ("a", "b"):
        annotate_corpus(f"{corpus}.txt", ["frequency"], "kept")
        assert (name("a"), name("part")) == (whole, own)


def test_a_process_that_sees_new_annotations_names_a_text_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest call is the same as before, and the text has annotations of its own now."""
    monkeypatch.chdir(tmp_path)
    texts = [f"a cat and {n % 7} dogs saw {n} owls" for n in range(200)]
    for name, lines in (("a", texts), ("part", texts[:80]), ("b", [f"B {n}" for n in range(90)])):
        Path(f"{name}.txt").write_text("\n".join(lines))
    given = ["corpus.source=part.txt", "corpus.layers=[stored('kept')]"]
    given.append("masking.policy=weighted(layer='frequency')")
    names = []
    for corpora in ("ab", ["part", "b"]):
        for corpus in corpora:
            annotate_corpus(f"{corpus}.txt", ["frequency"], "kept")
        names.append(prepare_stage(read_recipe("quick-start", given)).name)
    assert names[0] != names[1]
