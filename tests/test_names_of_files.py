"""Every name that a file system allows is read, or named in one clean line; files that are read at
once are bounded.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from maskwise.base.errors import MaskwiseError, is_visible
from maskwise.base.folders import read_json, stem_of, write_folder, write_json
from maskwise.base.specs import split_options, user_path
from maskwise.cli import main
from maskwise.cli.terminal import out_folder
from maskwise.recipe import read_recipe
from maskwise.studies.from_files import name_of, recipe_for
from maskwise.studies.stages import fingerprint
from maskwise.tasks import load_task
from maskwise.text import read_documents
from maskwise.text.opening import read_whole
from maskwise.text.source import READERS, SOURCE, read_records

TEXT = "The cat sat on the mat and it was glad.\n\nThe dog ran to the house, for it was cold.\n"
LABELS = "text,label\n" + "".join(
    f"row {n} is {word},{word}\n" for n in range(60) for word in ("good", "bad")
)
NAMES = {
    "latin-1": os.fsdecode(b"caf\xe9"),
    "home": "~nobody-of-this-name",
    "office": "~$mine",
    "line separator": "a\u2028b",
    "line feed": "a\nb",
    "clears the screen": "\x1b[2J",
    "c1": "a\x9bb",
    "hyphen": "-rf",
    "space": "my text",
    "brackets": "a(1)",
    "markup": "[red]",
    "braces": "{x}",
    "quote": 'it\'s "mine"',
    "yaml": ": # &a *b !c %d",
    "emoji": "👩\u200d🔬",
    "long": "x" * 240,
    "reverses": "a\u202eb",
}


@pytest.fixture(params=NAMES.values(), ids=[*NAMES])
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return request.param


def command(*arguments: str) -> int:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    code = end.value.code
    assert isinstance(code, int)
    return code


def is_clean(text: str) -> bool:
    return all(map(is_visible, text))


def test_a_text_is_read_whatever_its_name(name: str) -> None:
    Path(f"{name}.txt").write_text(TEXT)
    documents = read_documents(f"{name}.txt")
    assert len([*documents]) == 2 and not documents.skipped
    for document in documents:
        assert document.name.encode()


def test_labels_are_read_whatever_their_name(name: str) -> None:
    Path(f"{name}.csv").write_text(LABELS)
    assert load_task(f"{name}.csv").labels == ("bad", "good")


def test_a_new_recipe_can_be_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, labels = f"./{name}.txt", f"./{name}.csv"
    Path(text).write_text(TEXT)
    Path(labels).write_text(LABELS)
    assert command("new", text, labels) == 0
    written = [path for path in Path().iterdir() if path.suffix == ".yaml"]
    assert len(written) == 1 and not written[0].name.startswith(("-", "~"))
    recipe = read_recipe(written[0])
    assert Path(str(recipe.corpus.source)) == Path(text)
    assert [Path(split_options(task)[0]) for task in recipe.tasks] == [Path(labels)]
    shown = capsys.readouterr()
    assert is_clean(shown.out + shown.err)
    # The recipe of a recipe: what a study writes into its folder reads back, too.
    again = Path("again.yaml")
    again.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(again).corpus.source == recipe.corpus.source


def test_the_recipe_of_a_file_names_only_this_file(name: str) -> None:
    Path(f"{name}.txt").write_text(TEXT)
    with pytest.raises(MaskwiseError) as error:
        recipe_for(f"./{name}.txt", ["training.steps=never"])
    line = str(error.value)
    assert "training.steps" in line and "/tmp" not in line and ".yaml" not in line
    assert is_clean(line) and "\n" not in line


@pytest.mark.parametrize("ending", [".yaml", ".txt", ".csv", ".png", ""])
def test_a_file_that_is_missing_is_one_clean_line(
    name: str, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = f"./{name}{ending}"
    for arguments in (["check", missing], ["new", missing], ["report", missing]):
        assert command(*arguments) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and is_clean(line), arguments


def test_a_name_that_no_file_system_allows(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["check"], ["study"], ["report"], ["evaluate"], ["annotate"], ["status"]):
        assert command(*arguments, "x" * 5000 + ".txt") == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and len(line) < 2000
    assert split_options("x" * 5000 + "(a=1)") == ("x" * 5000, "a=1")


@pytest.mark.parametrize(
    "arguments", [["check", "quick-start"], ["study"], ["study", "quick-start"]]
)
def test_a_setting_may_be_longer_than_a_name_of_a_file(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Other commands than ``study NAME`` refused it: ``File name too long``."""
    wrong = f"description={'why ' * 90}", "training.step=5"
    assert command(*arguments, *wrong, "--out", str(tmp_path / "out")) == 2
    line = capsys.readouterr().err
    assert "unknown setting of training: 'step'" in line and line.count("\n") == 1


def test_a_folder_has_a_hash_whatever_the_names_of_its_files(tmp_path: Path) -> None:
    """A file of a folder whose name is not UTF-8 ended commands with a traceback."""
    hashes = []
    for place, name in enumerate((b"bad\xff.txt", b"bad\xfe.txt", "bad\xff.txt".encode())):
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / os.fsdecode(name)).write_text(TEXT)
        hashes.append(fingerprint(str(folder)))
    assert len({*hashes}) == 3


def test_a_tilde_is_a_home_only_if_no_file_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/a.txt") == tmp_path / "a.txt"
    (tmp_path / "~root").write_text("")
    assert user_path("~root") == Path("~root")


def test_json_holds_every_name(tmp_path: Path) -> None:
    value = {"name": "".join(NAMES.values())}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_files_of_a_folder_have_the_permissions_of_the_user(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        for name in ("a.json", "model.safetensors"):
            (folder / name).write_text("{}")
        (folder / "model.safetensors").chmod(0o600)

    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "new", fill)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    assert modes == {0o640}


# What is read at once
# ---------------------------------------------------------------------------------------------


def test_a_small_file_reserves_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(LABELS)
    tracemalloc.start()
    try:
        read_records(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 64 << 20


@pytest.fixture
def bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file whose content is larger than what may be read at once."""
    monkeypatch.setattr("maskwise.text.opening.LARGEST_FILE", 1 << 20)
    monkeypatch.setattr("maskwise.text.opening.PART_BYTES", 1 << 16)
    path = tmp_path / "bomb.csv.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"text,label\n" + b"a,b\n" * (1 << 20))
    assert path.stat().st_size < 1 << 16
    return path


def memory_of(read: Callable[[], object]) -> int:
    """The most bytes that a reading takes."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_labels_that_unpack_to_huge_ones_are_refused(bomb: Path) -> None:
    def refused(read: Callable[[Any], object]) -> None:
        with pytest.raises(MaskwiseError, match=r"bomb\.csv\.gz has more than 1 MiB"):
            read(bomb)

    for read in (read_whole, read_records, load_task):
        assert memory_of(partial(refused, read)) < 16 << 20


def test_an_array_that_is_too_large_is_not_said_to_be_no_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskwise.text.opening.LARGEST_FILE", 1 << 20)
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(["a text"] * (1 << 17)))
    with pytest.raises(MaskwiseError, match=r"texts\.json has more than 1 MiB") as refused:
        count(path)
    assert "not JSON" not in str(refused.value)


def count(path: Path) -> int:
    return sum(1 for _ in read_documents(str(path), keep_repeated=True))


@pytest.mark.parametrize("quote", [pytest.param("", marks=pytest.mark.slow), '"'])
def test_a_table_of_texts_is_read_in_parts(quote: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + f"{quote}a text{quote},b\n" * (1 << 15))
    counted = []
    assert memory_of(lambda: counted.append(count(path))) < 4 << 20
    assert counted == [1 << 15]


OPEN = '"' + "a\n" * 2000


@pytest.mark.parametrize(
    ("text", "ending"), [("a" * 50_000, ".csv"), ("a" * 50_000, ".tsv"), (OPEN, ".csv")]
)
def test_a_cell_without_an_end_is_refused(
    text: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold the rest of a huge file."""
    monkeypatch.setattr("maskwise.text.tables.LONGEST_CELL", 1000)
    before = csv.field_size_limit(1000)
    path = tmp_path / f"open{ending}"
    separator = "," if ending == ".csv" else "\t"
    path.write_text(separator.join(["text", 'label\n"a"', f'"b"\n{text}']))
    try:
        with pytest.raises(MaskwiseError, match=r"open\.[ct]sv is not a table"):
            count(path)
    finally:
        csv.field_size_limit(before)


def sequences(path: Path) -> Iterator[tuple[str, str]]:
    for document in read_documents(str(path)):
        yield document.name, document.text


def test_a_very_long_line_of_fasta_is_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole chromosome may stand in one line. Headers begin lines, and not parts of lines."""
    path = tmp_path / "a.fasta"
    letters = "MKV" * 40
    path.write_text(f">one\n{letters}\n>two {'x' * 100}>three\nMK\n;{'y' * 90}\nVA\n")
    whole = [*sequences(path)]
    monkeypatch.setattr("maskwise.text.source.LONGEST_LINE", 16)
    parts = [*sequences(path)]
    assert [text for _, text in parts] == [text for _, text in whole] == [letters, "MKVA"]
    assert parts[0][0] == "one" and parts[1][0].startswith("two xxx")
    monkeypatch.setattr("maskwise.text.source.LONGEST_TEXT", 32)
    assert "".join(text for _, text in sequences(path)) == letters + "MKVA"


def test_a_recipe_that_is_no_recipe_is_not_parsed_for_hours(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("a b c\n" * (1 << 20))
    with pytest.raises(MaskwiseError, match="maskwise new"):
        read_recipe(path)


def test_ids_of_json_lines_are_clean_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    evil = "\x1b[2J\x9b\u202e"
    line = json.dumps({"id": evil, "text": "Marie Curie was born in Warsaw."})
    path.write_text(line + "\n")
    assert command("annotate", str(path), "--with", "words", "--out", str(tmp_path / "out")) == 0
    shown = capsys.readouterr()
    assert is_clean(shown.out + shown.err)


def test_a_colon_in_the_name_of_a_file_is_not_a_prefix(tmp_path: Path, monkeypatch) -> None:
    """The part before the colon was lost."""
    monkeypatch.chdir(tmp_path)
    Path("a:b.txt").write_text("Some text.\n" * 3)
    for name in ("a:b.txt", "./a:b.txt"):
        assert name_of(name) == "a-b"
        assert out_folder(None, name, command="adapt") == Path("runs/adapt-a-b")
    assert name_of("a:c.txt") == "c"  # no such file: a prefix


@pytest.mark.parametrize("ending", sorted(READERS.keys() - {*SOURCE}))
def test_folders_are_named_without_the_extensions_of_files_that_are_read(ending: str) -> None:
    assert stem_of(f"my.corpus{ending}") == stem_of(f"my.corpus{ending}.gz") == "my.corpus"
