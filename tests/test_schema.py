"""The JSON Schema of recipes agrees with the recipes that there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from maskwise.base.errors import MaskwiseError
from maskwise.recipe import read_recipe, shipped
from maskwise.recipe.described import SCHEMA_FILE, declared, recipe_schema
from maskwise.studies.from_files import new_recipe
from maskwise.tasks import load_task
from maskwise.text import read_documents
from tiny import maskwise, write_lines

ROOT = Path(__file__).parents[1]
RECIPES = [*shipped().values(), *sorted((ROOT / "benchmarks" / "recipes").glob("*.yaml"))]
SCHEMA = recipe_schema()


def faults(recipe: dict[str, Any]) -> list[str]:
    """Return the dotted names of what the schema refuses."""
    found = jsonschema.Draft202012Validator(SCHEMA).iter_errors(recipe)
    return [".".join(map(str, error.absolute_path)) for error in found]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_fits_the_schema(path: Path) -> None:
    assert not faults(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("recipe", "where"),
    [
        ({"trainning": {}}, ""),
        ({"training": {"step": 5}}, "training"),
        ({"training": {"steps": "many"}}, "training.steps"),
        ({"corpus": {"held_out": 0.7}}, "corpus.held_out"),
        ({"corpus": {"layout": "packt"}}, "corpus.layout"),
        ({"objective": {"mlm": {"maskin": {}}}}, "objective"),
        ({"extends": 5}, "extends"),
    ],
)
def test_a_recipe_that_is_refused_does_not_fit(recipe: dict[str, Any], where: str) -> None:
    assert faults(recipe) == [where]


@pytest.mark.parametrize(
    "recipe",
    [
        {"training.steps": 5, "masking": {"ratio": "linear(0.3, 0.15)"}},
        {"objective": {"mlm": None, "mlm-40": "mlm", "cse": {"masking": {"ratio": 0.4}}}},
        {"study": {"gate": ["a", "b"], "arms": {"a": {}, "b": {"masking.ratio": 0.3}}}},
    ],
)
def test_every_way_to_write_a_setting_fits(recipe: dict[str, Any]) -> None:
    assert not faults(recipe)


def test_every_key_has_its_description() -> None:
    groups = [SCHEMA, *SCHEMA["$defs"].values()]
    keys = [key for group in groups for key in group["properties"].items()]
    assert all(group["description"] for group in groups)
    # A section is described by its class.
    texts = [key for _, key in keys if "$ref" not in json.dumps(key)]
    assert texts and all(key["description"] for key in texts)
    assert {name.rpartition(".")[2] for name in declared()} <= {name for name, _ in keys}


def test_editors_find_the_schema_of_a_new_recipe_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    write_lines(Path("texts.jsonl"), [{"text": f"This is text {n} of many."} for n in range(80)])
    new_recipe("texts.jsonl", target=Path("mine.yaml"))
    there = here.rename(tmp_path / "there") / "mine.yaml"
    first = there.read_text(encoding="utf-8").splitlines()[0]
    # Editors read a relative path from the folder of the recipe.
    before, schema = first.split("=")
    assert before == "# yaml-language-server: $schema" and not Path(schema).is_absolute()
    assert json.loads((there.parent / schema).read_text(encoding="utf-8")) == SCHEMA
    monkeypatch.chdir(there.parent)
    assert read_recipe(there).corpus.source == "texts.jsonl"


def test_the_schema_of_a_recipe_is_no_text_and_no_label_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"This is text {n} of many." for n in range(80)]
    rows = [{"text": text, "label": f"{len(text)}{n % 2}"} for n, text in enumerate(texts)]
    write_lines(Path("texts.jsonl"), rows)
    before = load_task(".", kind="sequence-classification")
    new_recipe(".", target=Path("mine.yaml"))
    assert [document.text for document in read_documents(".")] == texts
    assert load_task(".", kind="sequence-classification").splits == before.splits


def test_without_its_schema_there_is_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(Path("texts.jsonl"), [{"text": f"This is text {n} of many."} for n in range(80)])
    Path(SCHEMA_FILE).mkdir()
    for _ in range(2):
        with pytest.raises(MaskwiseError, match=SCHEMA_FILE):
            new_recipe("texts.jsonl")
    Path(SCHEMA_FILE).rmdir()
    new_recipe("texts.jsonl")


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert maskwise("list", "schema") == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
