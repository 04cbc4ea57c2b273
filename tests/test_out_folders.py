"""Folders for results: nobody's results are lost, and every recipe has a folder of its own."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import OutputFolder
from maskwise.cli.terminal import out_folder
from maskwise.recipe import read_recipe
from maskwise.studies import dry_run
from maskwise.studies.records import RESULTS
from maskwise.studies.single import run_finetune
from maskwise.tasks import finetuning
from maskwise.text.source import READERS, SOURCE
from test_finetune_again import TASKS, Tuner
from tiny import load_json, maskwise, read_lines, write_inputs


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    assert maskwise("study", recipe, "study.seeds=1", "--out", out, "--jobs", 1) == 0
    return out


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["training.steps=41"], "training.steps"),
        (["tasks=[]", "corpus.limit=50"], "corpus.limit"),
        (["study.arms={other: {masking.ratio: 0.5}}"], "study.arms"),
    ],
)
def test_a_study_in_the_folder_of_another_is_refused(change, named, recipe, finished, capfd):
    before = contents(finished)
    assert set(RESULTS) - {"predictions.jsonl"} <= {path.name for path in before}
    study = ["study", recipe, "study.seeds=1", *change, "--out", finished, "--jobs", 1]
    for options in ([], ["--dry-run"], ["--only-seeds", "0"]):
        assert maskwise(*study, *options) == 2
        (line,) = capfd.readouterr().err.strip().splitlines()
        assert str(finished) in line and named in line and "new folder" in line
    after = contents(finished)
    # The lock file names the process.
    assert {p: c for p, c in after.items() if p.name != ".lock"} == {
        p: c for p, c in before.items() if p.name != ".lock"
    }


def test_other_files_of_the_same_recipe_are_another_study(recipe, finished, tmp_path, capfd):
    inputs = shutil.copytree(recipe.parent, tmp_path / "inputs")
    out = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    own = inputs / "recipe.yaml"
    own.write_text(own.read_text().replace(str(recipe.parent), str(inputs)))
    study = load_json(out / "study.json")
    text = json.dumps(study).replace(str(recipe.parent), str(inputs))
    (out / "study.json").write_text(text)
    with (inputs / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"id": "more", "text": "One more text. " * 9}) + "\n")
    with pytest.raises(MaskwiseError, match=r"different study.*other files"):
        dry_run(read_recipe(own, ["study.seeds=1"]), out, jobs=1)


def test_a_moved_file_is_not_called_another_content(recipe, finished, tmp_path, capfd):
    inputs = shutil.copytree(recipe.parent, tmp_path / "inputs")
    out = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    own = inputs / "recipe.yaml"
    text = (out / "study.json").read_text().replace(str(recipe.parent), str(inputs))
    (out / "study.json").write_text(text)
    own.write_text(own.read_text().replace(str(recipe.parent), str(inputs)))
    (inputs / "corpus.jsonl").rename(inputs / "moved.jsonl")
    moved = read_recipe(own, ["study.seeds=1", f"corpus.source={inputs / 'moved.jsonl'}"])
    with pytest.raises(MaskwiseError, match=r"different study.*corpus\.source") as caught:
        dry_run(moved, out, jobs=1)
    assert "corpus.jsonl' does not exist" in caught.value.got
    assert "other files" not in str(caught.value)


def test_the_same_study_with_more_seeds_and_arms_goes_on(recipe, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    plan = dry_run(read_recipe(recipe), out, jobs=1)
    assert sum(kind["done"] for kind in plan["stages"].values())
    more = read_recipe(recipe, ["study.seeds=1", "study.arms.words-15={masking.ratio: 0.15}"])
    assert sum(kind["done"] for kind in dry_run(more, out, jobs=1)["stages"].values())


def test_a_folder_without_results_may_be_begun_anew(recipe, finished, tmp_path):
    """A study that failed before its first result has left nothing that could be lost."""
    out = tmp_path / "out"
    (out / "stages").mkdir(parents=True)
    shutil.copy(finished / "study.json", out)
    shutil.copy(finished / ".identity.json", out)
    assert dry_run(read_recipe(recipe, ["training.steps=41"]), out, jobs=1)["plans"]


def test_fine_tuning_keeps_the_records_of_another_model(tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "finetune", Tuner())
    given = {"overrides": ["steps=2"], "seeds": 1, "out": tmp_path}
    run_finetune("bundled:encoder", TASKS[:1], **given)
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(MaskwiseError, match="finetune bundled:encoder, with other"):
        run_finetune("bundled:seq2seq", TASKS[:1], **given)
    assert (tmp_path / "records.jsonl").read_bytes() == before
    run_finetune("bundled:encoder", TASKS, **given)
    assert len(read_lines(tmp_path / "records.jsonl")) == 2


def test_default_folders_are_named_after_what_is_read():
    named = {
        ("quick-start", ""): "runs/quick-start",
        ("my recipes/first try.yaml", ""): "runs/first-try",
        ("texts/mine.jsonl.gz", "adapt"): "runs/adapt-mine",
        ("hf:user/corpus(split='train')", "annotate"): "runs/annotate-corpus",
        ("bundled:encoder", "finetune"): "runs/finetune-encoder",
        ("my.corpus.v2.jsonl", "adapt"): "runs/adapt-my-corpus-v2",
        ("BAAI/bge-base-en-v1.5", "finetune"): "runs/finetune-bge-base-en-v1-5",
        ("a.b.yaml", ""): "runs/a-b",
        ("runs/one/checkpoint", "finetune"): "runs/finetune-one",
        ("../..", "annotate"): "runs/annotate",
        ("Żółw.txt", "annotate"): "runs/annotate-Żółw",
    }
    for (source, command), folder in named.items():
        assert out_folder(None, source, command=command) == Path(folder)
    assert out_folder(Path("mine"), "quick-start") == Path("mine")


def test_every_kind_of_file_is_named_without_its_extension():
    endings = {*READERS, ".yaml", ".yml", ".jsonl.gz", ".CSV"}
    # Files of code, such as add.c and add.h, differ by nothing but their extension.
    endings -= {*SOURCE}
    assert out_folder(None, "lib/add.h", command="adapt") == Path("runs/adapt-add-h")
    for ending in endings:
        assert out_folder(None, f"v1.2{ending}", command="adapt") == Path("runs/adapt-v1-2"), ending


@pytest.mark.parametrize("place", ["file.txt", "file.txt/stages", "file.txt/a/b"])
def test_shared_stages_below_a_file_are_refused_before_anything_is_written(
    place, recipe, tmp_path, capfd
):
    (tmp_path / "file.txt").write_text("mine")
    out = tmp_path / "out"
    assert maskwise("study", recipe, "--stages", tmp_path / place, "--out", out) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("maskwise: the folder of shared stages ") and not out.exists()


def test_a_study_without_out_has_a_folder_of_its_own(recipe, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert maskwise("study", recipe, "--dry-run", "--json") == 0
    assert json.loads(capfd.readouterr().out)["out"] == "runs/recipe"


@pytest.mark.parametrize("worked", [False, True])
def test_a_failure_removes_a_new_folder_only_if_nothing_was_done(worked, tmp_path):
    """With shared stages, results are in the folder and stages are not."""
    out = tmp_path / "out"
    with pytest.raises(MaskwiseError), OutputFolder(out, "study").used({}):
        (out / "study.json").write_text("{}")
        if worked:
            (out / "records.jsonl").write_text("{}\n")
        raise MaskwiseError("the disk is full")
    assert out.exists() == worked


def test_a_process_that_is_refused_does_not_use_the_folder_any_more(tmp_path, monkeypatch):
    """To those that waited for it, it seemed to run another study."""
    out = tmp_path / "out"
    with OutputFolder(out, "study").used({}):
        (out / "records.jsonl").touch()
    alone = OutputFolder.alone
    users = []

    @contextmanager
    def seen(folder):
        try:
            with alone(folder):
                yield
        finally:
            users.append(folder.own.exists())

    def refuse(users):
        raise MaskwiseError("another recipe")

    monkeypatch.setattr(OutputFolder, "alone", seen)
    folder = OutputFolder(out, "study")
    with pytest.raises(MaskwiseError, match="another recipe"), folder.used({}, refuse):
        pass
    assert users and not any(users)


def test_files_that_a_killed_process_had_begun_are_removed(tmp_path):
    out = tmp_path / "out"
    left = [out / ".records.jsonl.1.partial", out / "stages" / ".plan.json.1.partial"]
    # A process that is killed ends no context.
    with suppress(KeyboardInterrupt), OutputFolder(out, "study").used({}):
        raise KeyboardInterrupt
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    with OutputFolder(out, "study").used({}):
        assert not [path for path in left if path.exists()]
