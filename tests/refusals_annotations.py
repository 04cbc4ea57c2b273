"""Annotators and spans of the user that do not fit their texts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from maskwise.annotate.kept import Store
from maskwise.annotate.registry import annotator
from maskwise.annotate.run import annotate_corpus
from maskwise.recipe import read_recipe
from refusals import Refusal

TEXTS = [f"The owl eats ice quietly. Number {n}!" for n in range(40)]


def made(folder: Path, *wanted: str, **how: Any) -> object:
    return annotate_corpus(how.pop("texts", TEXTS), wanted, folder / "out", **how)


def other_texts(folder: Path) -> object:
    made(folder, "words")
    return Store(folder / "out").annotate([*TEXTS, TEXTS[3] + " "])


def unread(folder: Path) -> object:
    """An annotator that is none, and a corpus that is not worth to be read."""
    (folder / "texts.csv").write_text('text\n"never closed\n')
    return made(folder, "wordz", texts=folder / "texts.csv")


def given(spans: Any, labels: tuple[str, ...], folder: Path) -> object:
    line = {"text": "Owls don't fly.", "spans": spans}
    (folder / "x.jsonl").write_text(json.dumps(line))
    return annotator(f"spans({str(folder / 'x.jsonl')!r}, labels={labels!r})")


FUNCTIONS = {
    "annotate_tools:outside": ("overlap", "text of"),
    "annotate_tools:overlapping": ("overlap",),
    "annotate_tools:too_few": ("one list of spans per text",),
    "annotate_tools:nothing": ("nothing",),
    "annotate_toolz:capitals": ("annotate_toolz",),
    "capitals": ("allowed: module:function",),
    ":capitals": ("allowed: module:function",),
    "annotate_tools:lengths": ("span",),
    "annotate_tools:vowels(kind='categorical')": ("spans, categorical",),
    "annotate_tools:vowels(kind='categorical', labels=('other',))": ("label", "got vowel"),
    "annotate_tools:always": ("of a shard", "no such dictionary"),
    "annotate_tools:offline": ("server is away",),
}
WANTED: list[tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]] = [
    (("wordz",), {}, ("did you mean 'words'",)),
    (("words", "words"), {}, ("two annotators", "'words'")),
    ((), {}, ("annotators",)),
    (("words",), {"engine": "spark"}, ("engine", "'spark'")),
    (("words(3)",), {}, ("annotator words",)),
    (("gold('nowhere.conllu')",), {}, ("nowhere.conllu",)),
    (("stored('nowhere')",), {}, ("nowhere", "annotations")),
]
BIRD = ("bird",)
SPANS: list[tuple[Any, tuple[str, ...]]] = [
    ([[0, 99, "bird"]], BIRD),
    ([[0, 4, "cat"]], BIRD),
    ([[0]], BIRD),
    ([[0, 3, None]], BIRD),
    ([[0, 3, ["bird"]]], BIRD),
    ([[0, 3]], BIRD),
    ([[0, 4, "bird", "x"]], ()),
    ([{"start": 0, "end": 3}], ()),
    ([5], ()),
    (5, ()),
]
ROWS = [
    *(
        Refusal(f"annotate by {name}", partial(made, functions=[name]), facts)
        for name, facts in FUNCTIONS.items()
    ),
    *(
        Refusal(
            f"annotate with {wanted} {how}", lambda at, w=wanted, h=how: made(at, *w, **h), facts
        )
        for wanted, how, facts in WANTED
    ),
    *(
        Refusal(
            f"given spans {spans}",
            partial(given, spans, labels),
            ("x.jsonl#1",),
            partial(given, [[0, 4, *labels]], labels),
        )
        for spans, labels in SPANS
    ),
    *(
        Refusal(
            f"layers of a recipe {layers}",
            lambda _, x=layers: read_recipe("quick-start", [f"corpus.layers={x}"]),
            facts,
        )
        for layers, facts in (
            ("[wordz]", ("corpus.layers", "did you mean 'words'")),
            ("[words, words]", ("two annotators", "'words'")),
        )
    ),
    Refusal("annotate before the texts are read", unread, ("did you mean 'words'",)),
    Refusal(
        "annotations of other texts",
        other_texts,
        ("different texts", "the 40 texts"),
        lambda folder: Store(folder / "out").annotate(TEXTS),
    ),
    Refusal(
        "a function as an annotator of a recipe",
        lambda _: annotator('function("os:getcwd")'),
        ("'function'",),
    ),
]
