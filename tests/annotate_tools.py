"""Annotators for tests: functions of texts that worker processes can import."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from maskwise.text.layers import CharSpans, Layer, digest


def capitals(texts):
    """Words that begin with a capital."""
    return [[match.span() for match in re.finditer(r"\b[A-Z]\w*", text)] for text in texts]


def lengths(texts):
    """Every word weighs its letters."""
    return [[(*m.span(), float(len(m[0]))) for m in re.finditer(r"\w+", text)] for text in texts]


def vowels(texts):
    """Words by whether they begin with a vowel; the label None is none."""
    find = re.compile(r"[a-z]+").finditer
    return [
        [(*m.span(), "vowel" if m[0][0] in "aeiou" else None) for m in find(text)] for text in texts
    ]


def slow(texts):
    time.sleep(float(os.environ.get("SLOW", "0")))
    return capitals(texts)


def chokes(texts):
    if any("poison" in text for text in texts):
        raise RuntimeError("cannot digest\nthis")
    return capitals(texts)


def kills(texts):
    if any("poison" in text for text in texts):
        os._exit(9)
    return capitals(texts)


def always(texts):
    raise RuntimeError("no such dictionary")


def offline(texts):
    raise ConnectionError("the server is away")


def outside(texts):
    return [[(0, len(text) + 1)] for text in texts]


def overlapping(texts):
    return [[(0, 4), (2, 6)] for _ in texts]


def too_few(texts):
    return []


class Rare:
    """Fitted: words that the corpus has once."""

    name = "rare"
    layers = {"rare": Layer("spans")}
    fits = 0

    def __init__(self, *, floor: int = 1, words: str | None = None):
        self.floor, self.words = (
            floor,
            None if words is None else set(Path(words, "words").read_text().split()),
        )

    @property
    def fitted(self):
        return self.words is not None

    @property
    def version(self):
        return digest("rare", self.floor, sorted(self.words or ()))

    def fit(self, texts, folder):
        type(self).fits += 1
        count: dict[str, int] = {}
        for text in texts:
            for word in text.split():
                count[word] = count.get(word, 0) + 1
        (folder / "words").write_text(
            " ".join(word for word, times in count.items() if times <= self.floor)
        )
        return f"rare(floor={self.floor}, words={str(folder)!r})"

    def annotate(self, texts):
        assert self.words is not None
        found = [
            [m.span() for m in re.finditer(r"\S+", text) if m[0] in self.words] for text in texts
        ]
        return [{"rare": CharSpans.of(spans, self.layers["rare"])} for spans in found]


def dies(texts):
    if any("owl" in text for text in texts):
        os._exit(3)
    return capitals(texts)
