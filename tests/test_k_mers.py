"""Masked words of overlapping k-mers can be read off their neighbours, and ``check`` says so."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskwise as mw
from maskwise.recipe import read_recipe
from maskwise.studies.forecast import check
from maskwise.text import train_tokenizer
from tiny import write_inputs, write_lines

LETTERS = 200


def sequences(k: int, *, count: int = 40, step: int = 1) -> list[str]:
    """Random DNA as words of k letters, each ``step`` letters after the one before."""
    draw = random.Random(0)
    texts = []
    for _ in range(count):
        letters = "".join(draw.choices("ACGT", k=LETTERS))
        texts.append(" ".join(letters[at : at + k] for at in range(0, LETTERS - k + 1, step)))
    return texts


def readable(k: int, policy: str) -> float:
    """The share of masked k-mers all letters of which stand in visible ones."""
    texts = sequences(k)
    tokenizer = train_tokenizer(texts, kind="k-mer", k=k, vocab_size=5000, lowercase=False)
    masker = mw.Masker(tokenizer, policy=policy, ratio=0.15, corruption="mask-only")
    found = []
    for row in masker(mw.encode(tokenizer, texts), epoch=0).selected.numpy():
        masked = row[1 : LETTERS - k + 2]
        seen = np.zeros(LETTERS, bool)
        for at in np.flatnonzero(~masked):
            seen[at : at + k] = True
        found += [seen[at : at + k].all() for at in np.flatnonzero(masked)]
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("k", "policy", "least", "most"),
    [
        (3, "token", 0.92, 0.95),
        (3, "whole-word", 0.92, 0.95),
        (3, "span(p=0.2)", 0.09, 0.16),
        (3, "span(min_words=3)", 0, 0.01),
        (6, "token", 0.98, 1),
        (6, "span(p=0.2)", 0.37, 0.45),
        (6, "span(min_words=6)", 0, 0.01),
    ],
)
def test_what_the_page_says_of_overlapping_k_mers(
    k: int, policy: str, least: float, most: float
) -> None:
    assert least <= readable(k, policy) <= most


def doubts(folder: Path, texts: list[str], *arms: str) -> list[dict[str, Any]]:
    path = write_lines(folder / "dna.jsonl", [{"text": text} for text in texts])
    policies = ", ".join(f"a{n}: {{masking.policy: '{arm}'}}" for n, arm in enumerate(arms))
    changes = [f"corpus.source={path}", f"study.arms={{{policies}}}", "tokenizer.vocab_size=300"]
    recipe = read_recipe(str(write_inputs(folder)), [*changes, "tasks=[]", "corpus.length=64"])
    return [each for each in check(recipe, timing=False)["doubts"] if "-mers" in each["what"]]


def test_check_warns_once_of_arms_whose_masks_hide_nothing(tmp_path: Path) -> None:
    (doubt,) = doubts(tmp_path, sequences(3), "token", "whole-word", "span(min_words=3)")
    assert "3-mers" in doubt["what"] and "a0, a1 can" in doubt["what"]
    advised = doubt["do"].partition("masking.policy=")[2]
    assert doubts(tmp_path, sequences(3), advised, "span(min_words=4)") == []


def test_check_warns_of_no_other_words(tmp_path: Path) -> None:
    assert doubts(tmp_path, sequences(3, step=3), "token") == []
    texts = [f"the cat {number} sat on the mat of the hat" for number in range(60)]
    assert doubts(tmp_path, texts, "token") == []
