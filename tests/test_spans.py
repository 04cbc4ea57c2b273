"""Spans given by hand, sentences by punctuation, and the layers that inspect makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from maskwise.annotate.registry import MarkedSpan, read_marks, sentence_spans
from maskwise.base.errors import MaskwiseError
from maskwise.masks.inspection import inspect_text


@pytest.mark.parametrize(
    ("marked", "plain", "spans"),
    [
        ("no marks", "no marks", []),
        ("in [[Warsaw]].", "in Warsaw.", [MarkedSpan(3, 9)]),
        (
            "[[Marie Curie]], [[1867|3]]",
            "Marie Curie, 1867",
            [MarkedSpan(0, 11), MarkedSpan(13, 17, 3.0)],
        ),
        ("a [[b]][[c|0.5]]", "a bc", [MarkedSpan(2, 3), MarkedSpan(3, 4, 0.5)]),
        ("open [[ stays", "open [[ stays", []),
        ("[[]] and a|b", "[[]] and a|b", []),
    ],
)
def test_marks(marked: str, plain: str, spans: list[MarkedSpan]) -> None:
    assert read_marks(marked) == (plain, spans)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('He said "no." Then left', ['He said "no."', "Then left"]),
        ("version 1.5 is out", ["version 1.5 is out"]),
        ("这是。那是。", ["这是。", "那是。"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [text[span.start : span.stop] for span in sentence_spans(text)] == sentences


def look(text: str, policies: str, **settings: Any) -> list[Any]:
    return inspect_text(text, policies, {"ratio": 0.3, "corruption": "mask-only", **settings})


def test_marked_spans_are_masked_and_nothing_else() -> None:
    found = look("[[Marie Curie]] was born in [[Warsaw]] in 1867.", "salient", ratio=1.0)[0]
    assert (
        "".join(piece.text for piece in found.pieces if piece.state == "masked")
        == "Marie Curie Warsaw"
    )
    assert found.text == "Marie Curie was born in Warsaw in 1867."


def test_weights_and_sentences_and_frequencies() -> None:
    text = "The cat sat on the [[mat|50000]] today. It slept there all day."
    weighted, sentence, frequent = look(text, "weighted,sentence,frequency", budget="expected")
    assert "mat" in "".join(p.text for p in weighted.pieces if p.state == "masked")
    states = [
        {p.state for p in sentence.pieces[:8]},
        {p.state for p in sentence.pieces[-4:]},
    ]
    assert all(len(state) == 1 for state in states)  # a sentence goes as a whole
    assert 0 < frequent.ratio < 1


def test_a_text_without_marks_says_how_to_mark() -> None:
    with pytest.raises(MaskwiseError, match=r"phrase needs the layer 'phrase'.*\[\[Warsaw\]\]"):
        look("Marie Curie was born in Warsaw.", "token,phrase")
    # what the shipped tagger finds
    found = look("Marie Curie was born in Warsaw.", "salient", ratio=1.0)[0]
    assert "".join(p.text for p in found.pieces if p.state == "masked") == "Marie Curie Warsaw"
