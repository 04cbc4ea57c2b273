"""The tables that say where things live, and which types a text passes on its way to its loss."""

from __future__ import annotations

import re
import runpy
from importlib import import_module
from pathlib import Path

import pytest

from maskwise.masking import Masker
from maskwise.masking.policies import When
from maskwise.objectives import MaskedLanguageModelling
from maskwise.text import Rows, read_documents, read_pieces, tokenise
from training_tools import model, tokenizer

ROOT = Path(__file__).resolve().parent.parent
PLACE = re.compile(r"`([\w/]+)\.py`: ((?:`[\w.]+`(?:, )?)+)")


def places() -> list[tuple[str, str]]:
    """The modules and names that CONTRIBUTING.md and the table of pairs say to read."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| to change how")[2].partition("\n\n")[0]
    pairs = ROOT / "docs/decisions/0027-what-belongs-together.md"
    found = []
    for path, names in PLACE.findall(table + pairs.read_text(encoding="utf-8")):
        module = f"maskwise.{path.replace('/', '.')}"
        found += [(module, name) for name in re.findall(r"`([\w.]+)`", names)]
    return found


@pytest.mark.parametrize(("module", "name"), places())
def test_what_the_table_of_places_names_exists(module: str, name: str) -> None:
    found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)


def test_the_table_of_places_is_read() -> None:
    assert len(places()) >= 20


def steps() -> list[tuple[list[str], list[str]]]:
    """The functions and the types of each step in decision 18."""
    page = (ROOT / "docs/decisions/0018-from-text-to-loss.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d \| (.+?) \| (.+?) \|$", page, flags=re.MULTILINE)
    return [(re.findall(r"`([\w.]+)`", of), re.findall(r"`(\w+)`", made)) for of, made in rows]


def test_a_text_passes_the_types_of_decision_18_on_its_way_to_its_loss(tmp_path: Path) -> None:
    """Run the way from a file to a loss, and compare the types that come out of each step."""
    path = tmp_path / "texts.txt"
    path.write_text("w1 w2 w3 w4 w5 w6 w7 w8 w9 " * 4, encoding="utf-8")
    reader = tokenizer()
    documents = read_documents(path)
    document = next(iter(documents))
    tokens = tokenise(documents, reader)
    pieces = read_pieces(tokens, tokenizer=reader, length=16)
    rows = Rows.of(pieces, "packed")
    line = rows.line([0, 1])
    masker = Masker(reader, ratio=0.5)
    cut: list[object] = []
    chosen: list[object] = []

    def observed(function, kept):
        def call(*arguments, **more):
            kept.append(function(*arguments, **more))
            return kept[-1]

        return call

    masker.cut = observed(masker.cut, cut)
    shown, choice = masker.corrupted(line.read_with(masker.vocabulary), When(epoch=0))
    chosen.append(choice)
    batch = shown.batch(choice, masker.vocabulary.pad)
    loss = MaskedLanguageModelling(model("bert"))(batch)
    made = [[document], [pieces], [rows], [line], cut, chosen, [shown, batch], [loss]]
    types = [[type(value).__name__ for value in values] for values in made]
    for (functions, _), names in zip(steps(), types, strict=True):
        print(", ".join(functions), "→", ", ".join(names))
    assert types == [named for _, named in steps()]


def test_the_outline_says_what_each_file_is_about() -> None:
    outline = runpy.run_path(str(ROOT / "scripts" / "outline.py"))["outline"]
    files = dict(outline())
    assert len(files) == len(list((ROOT / "src" / "maskwise").rglob("*.py")))
    assert [path for path, about in files.items() if len(about) < 15] == []
    assert {*dict(outline("masking/"))} == {path for path in files if path.startswith("masking/")}
