"""Segmenters of the user, and tokenizers that run in Python."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import maskwise as mw
from maskwise.masks.inspection import inspect_text
from maskwise.recipe import read_recipe
from maskwise.text import load_tokenizer, train_tokenizer
from refusals import Refusal, cases
from test_segmenters import CHINESE, Slow, longest, python_tokenizer

ENGLISH = train_tokenizer(["the cat sat"] * 3, vocab_size=70)


def python_loaded(folder: Path, **how: Any) -> Any:
    return load_tokenizer(python_tokenizer(folder / "model"), **how)


def of_letters(folder: Path, **more: Any) -> object:
    slow = python_loaded(folder, needs_words=False)
    return mw.encode(slow, [CHINESE], words="token", **more)


def inspected(folder: Path, **more: Any) -> object:
    tokenizer = python_tokenizer(folder / "model", subword_tokenizer_type="character")
    return inspect_text(CHINESE, "whole-word", {"ratio": 0.5}, tokenizer=tokenizer, **more)


ROWS = [
    *cases(
        "words by",
        lambda words: mw.encode(ENGLISH, ["the cat sat"], words=words),
        (lambda text: [word.upper() for word in text.split()], "segmenter", "THE"),
        (lambda text: text.split()[1:], "segmenter", "left out", "'cat'"),
        (lambda text: ["the", "sat"], "segmenter", "left out", "'sat'"),
        (lambda text: text.split()[:-1], "segmenter"),
        (lambda text: [(0, 3)], "segmenter", "tuple"),
        (lambda text: text.split()[::-1], "segmenter"),
        (lambda text: 1 / 0, "segmenter", "the cat sat", "refusals_words.py:"),
        (lambda text: " ".join(text.split()), "segmenter"),
        (lambda text: None, "segmenter", "None"),
        (lambda text: [], "segmenter"),
        (lambda text: [text[n : n + 3] for n in range(len(text))], "segmenter"),
        (3, "words", "got 3"),
        good=lambda: mw.encode(ENGLISH, ["the cat sat"], words=str.split),
    ),
    *cases(
        "words of a recipe by",
        lambda words: read_recipe("quick-start", [f"corpus.words={words}"]),
        *("my_module:find", "no-such"),
        facts=["jieba"],
    ),
    Refusal(
        "words of token ids by a segmenter",
        lambda _: mw.annotate_rows({"input_ids": [[5]]}, ENGLISH, words=str.split),
        ("texts",),
        lambda _: mw.annotate_rows({"text": ["the cat"]}, ENGLISH, words=str.split),
    ),
    *cases(
        "a Python tokenizer that marks spaces",
        lambda words: mw.encode(Slow(marks=True), ["the cat"], words=words),
        ("auto", "words='spaces'"),
        (longest, "tokenizer.json"),
    ),
    Refusal(
        "a Python tokenizer for tasks",
        python_loaded,
        ("without tasks",),
        lambda folder: load_tokenizer(str(folder / "model"), needs_words=False),
    ),
    Refusal("a Python tokenizer by auto", inspected, ("words",)),
    Refusal(
        "a Python tokenizer with layers",
        partial(of_letters, layers=["sentences"]),
        ("layers",),
    ),
]
