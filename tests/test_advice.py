"""What an error advises can be done: options exist, settings are named, and names are suggested."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

import maskwise as mw
from maskwise.annotate.run import annotate_corpus
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import write_folder
from maskwise.masking import StepBatchSampler
from maskwise.masking.settings import Masking
from maskwise.recipe import Recipe, read_recipe
from maskwise.recipe.explained import groups_in
from maskwise.text import load_tokenizer
from tiny import maskwise


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("files")
    (folder / "my_texts.txt").write_text("\n".join(f"Owl {n} flies." for n in range(30)))
    rows = "\n".join(f"Owl {n} flies.,{'ab'[n % 2]}" for n in range(30))
    (folder / "my_labels.csv").write_text(f"text,label\n{rows}\n")
    (folder / "my.yaml").write_text("extends: quick-start\n")
    annotate_corpus(["Owls fly."], ["words"], folder / "layers")
    return folder


COMMANDS = {
    "pretrain my.yaml --steps 5": "given as training.steps=5",
    "pretrain my.yaml --learning-rate=1e-3": "given as training.learning_rate=1e-3",
    "study my.yaml --runs 6": "given as study.seeds=6",
    "study my.yaml --only-seeds 9": "study.seeds=9",
    "study my.yaml --task trivia": "given as tasks=trivia",
    # The whole argument, in quotation marks for YAML and for the shell.
    "study my.yaml --task my_labels.csv(label='label')": r"""
        "tasks=\"my_labels.csv(label='label')\""
    """.strip(),
    "pretrain my.yaml --dry-run": "maskwise check shows the plan",
    "new my_texts.txt --dry-run": "maskwise check shows the plan",
    "finetune bundled:encoder --task trivia --learning-rate 1e-3": "given as learning_rate=1e-3",
    "export my_texts.txt --ratio 0.3": "given as ratio=0.3",
    "adapt bundled:encoder my_texts.txt my_labels.csv": "--task my_labels.csv",
    "finetune bundled:encoder --task trivia my_labels.csv": "--task my_labels.csv",
    "new bundled:encoder my_texts.txt": "maskwise adapt bundled:encoder my_texts.txt",
    "new my_texts.txt training.step=4": "did you mean 'steps'?",
    "finetune layers --task trivia": "a folder of annotations, and no model",
    "finetune bundled:encoder --task trivia lr=3": "did you mean 'learning_rate'?",
    "generate bundled:encoder --prompt [MASK*x]": "allowed: [MASK], or [MASK*5]",
    "generate bundled:encoder --prompt [MASK]_[MASK*-1]": "got [MASK*-1]",
    "inspect my_texts.txt --html my.yaml": "my.yaml is no page",
    "inspect my_texts.txt --ratio 15%": "write 0.15",
    "inspect my_texts.txt --policy whole^word": "did you mean 'whole-word'?",
    "study my.yaml tasks=[trivia,trivia]": "a task is named twice",
    "study my.yaml study.contrasts=[a,b]": "write [[a, b]]",
    "study my.yaml study.gate=[a]": "allowed: [oracle, baseline]",
    "study my.yaml --out": "requires an argument",
    # Both are missing, and both are said.
    "compare my_labels.csv": "The arm that others are compared with. Missing option '--replicate'",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_refused_command_says_what_to_do(
    command: str, files: Path, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    monkeypatch.chdir(files)
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    arguments = command.split()
    writes = arguments[0] in ("study", "pretrain", "finetune", "adapt", "export")
    if writes and arguments[-1] != "--out":
        arguments += ["--out", str(tmp_path / "out")]
    assert maskwise(*arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert COMMANDS[command] in line
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_check_takes_the_labels_that_it_asks_for(files: Path, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.chdir(files)
    for labels in (["my_labels.csv"], ["--task", "my_labels.csv"]):
        command = ["check", "bundled:encoder", "bundled:wikipedia", *labels, "--no-timing"]
        assert maskwise(*command) == 0
        assert "my_labels" in capfd.readouterr().out


STUDY = "study: {arms: {a: {}, b: {masking.ratio: 0.3}}}\n"
RECIPES = {
    "seeds: 4\n" + STUDY: "did you mean finetune.seeds or study.seeds?",
    "study: {arms: {a: {}, b: {ratio: 0.3}}}": "did you mean 'masking.ratio'?",
    "study: {arms: {a: {}, b: {trainig.steps: 3}}}": "did you mean 'training.steps'?",
    "phases: [{}, {trainig.steps: 5}]": "did you mean 'training.steps'?",
    "study: {arms: {0.15: {}, 30: {masking.ratio: 0.3}}}": "the names of arms have no dots",
}


@pytest.mark.parametrize("text", RECIPES)
def test_a_refused_recipe_says_what_to_write(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(MaskwiseError) as refused:
        read_recipe(tmp_path / "mine.yaml")
    said = str(refused.value)
    assert RECIPES[text] in said
    assert said.count("did you mean") <= 1 and "intermediate" not in said


def _lists(settings: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The settings that are lists of single values: name, type and value."""
    for name, field in settings.model_fields.items():
        # ``corpus.source`` is a text or a mix.
        for item in _items(field.annotation) if name != "source" else ():
            yield prefix + name, field.rebuild_annotation(), item
        for group in groups_in(field.annotation):
            yield from _lists(group, f"{prefix}{name}.")


def _items(kind: Any) -> Iterator[Any]:
    """The types of the items of the tuples of any length in a type."""
    parts = get_args(kind)
    if parts[1:] == (...,):
        item = next(iter(get_args(parts[0])), parts[0])
        # Pairs, phases and values of any kind are not single values.
        if item in (str, int, float) and get_origin(parts[0]) in (None, Annotated):
            yield item
    elif get_origin(kind) is not tuple:
        for part in parts:
            yield from _items(part)


LISTS = {name: (kind, item) for name, kind, item in _lists(Recipe)}


def test_the_lists_of_a_recipe_are_found() -> None:
    assert {"tasks", "corpus.layers", "evaluation.ratios", "study.secondary"} <= LISTS.keys()
    assert {"masking.exclude", "training.trackers", "study.interim_looks"} <= LISTS.keys()


@pytest.mark.parametrize("name", LISTS)
def test_one_value_is_read_as_a_list_of_one(name: str) -> None:
    kind, item = LISTS[name]
    value = {str: "one", int: 10, float: 0.5}[item]
    reader = TypeAdapter(kind)
    read = []
    for given in (value, [value]):
        try:
            read.append(reader.validate_python(given))
        except ValidationError as error:
            read.append([line["type"] for line in error.errors()])
    # A number may also be a count (study.seeds).
    assert read[0] == read[1] or read[0] == value
    assert "tuple_type" not in read[0] if isinstance(read[0], list) else True


def test_errors_in_python_name_the_setting_and_no_rows() -> None:
    with pytest.raises(MaskwiseError, match=r"policy.*did you mean 'whole-word'"):
        Masking.of(policy="whole word")
    with pytest.raises(MaskwiseError, match=r"ratio.*write 0\.15"):
        Masking.of(ratio="15%")
    rows = mw.encode(load_tokenizer("bundled:encoder"), ["Owls fly at night."] * 9)
    with pytest.raises(MaskwiseError, match=re.escape("pass len(dataset)")) as refused:
        StepBatchSampler(rows, batch_size=2)  # type: ignore[arg-type]
    assert len(str(refused.value)) < 120


def test_a_page_replaces_pages_only(tmp_path: Path, capfd: Any) -> None:
    page = tmp_path / "page.html"
    for _ in range(2):
        assert maskwise("inspect", "Owls fly.", "--html", str(page)) == 0
    page.write_text("notes")
    assert maskwise("inspect", "Owls fly.", "--html", str(page)) == 2
    assert page.read_text() == "notes"


def test_annotations_are_no_model(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", lambda folder: (folder / "config.json").write_text("{}"))
    (tmp_path / "model" / "manifest.json").write_text("{}")
    with pytest.raises(MaskwiseError, match="no readable manifest"):
        mw.finetune(tmp_path / "model", "trivia", out=tmp_path / "out")
