"""Six strangers with files of their own, made without knowledge of the code: what check says, and a
first study.

Marked slow: the studies train. Each path is one command and no YAML.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import WORDS, maskwise, write_lines

ENGLISH = (
    "the",
    "of",
    "and",
    "is",
    "to",
    "in",
    "that",
    "it",
    "was",
    "for",
    "on",
    "with",
    "his",
    "they",
    "this",
)


def sentence(draw: random.Random, words: tuple[str, ...], size: int = 12) -> str:
    return " ".join(draw.choices([*words, *WORDS[:30]], k=size)).capitalize() + "."


def lines_and_tsv(folder: Path, draw: random.Random) -> tuple[Path, list[Path]]:
    (folder / "sentences.txt").write_text("\n".join(sentence(draw, ENGLISH) for _ in range(600)))
    rows = [f"{sentence(draw, ENGLISH)}\t{'yes' if n % 2 else 'no'}" for n in range(200)]
    (folder / "answers.tsv").write_text("sentence\tanswer\n" + "\n".join(rows))
    return folder / "sentences.txt", [folder / "answers.tsv"]


def long_documents_and_jsonl(folder: Path, draw: random.Random) -> tuple[Path, list[Path]]:
    (folder / "books").mkdir()
    for number in range(30):
        text = "\n\n".join(" ".join(sentence(draw, ENGLISH) for _ in range(20)) for _ in range(5))
        (folder / "books" / f"{number}.txt").write_text(text)
    write_lines(
        folder / "task.jsonl",
        [{"text": sentence(draw, ENGLISH), "label": n % 3} for n in range(200)],
    )
    return folder / "books", [folder / "task.jsonl"]


def semicolons_and_numbers(folder: Path, draw: random.Random) -> tuple[Path, list[Path]]:
    texts, _ = lines_and_tsv(folder, draw)
    with (folder / "prices.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Beschreibung", "Preis"])
        writer.writerows(
            [sentence(draw, ENGLISH), f"{draw.uniform(1, 90):.2f}".replace(".", ",")]
            for _ in range(200)
        )
    return texts, [folder / "prices.csv"]


PATHS = [lines_and_tsv, long_documents_and_jsonl, semicolons_and_numbers]


@pytest.mark.slow
@pytest.mark.parametrize("make", PATHS, ids=lambda make: make.__name__)
def test_from_own_files_to_an_estimate_and_a_verdict(
    make: Callable[..., tuple[Path, list[Path]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts, tasks = make(tmp_path, random.Random(0))
    assert maskwise("new", texts, *tasks) == 0
    (recipe,) = tmp_path.glob("*.yaml")
    capfd.readouterr()
    assert maskwise("check", recipe, "--json") == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["corpus"]["unknown"] < 0.01 and facts["time"]["seconds"] > 0
    assert facts["corpus"]["documents"] >= 30 and all(
        arm["targets_per_step"] > 20 for arm in facts["arms"].values()
    )
    short = [
        "training.steps=4",
        "training.eval_every=0",
        "study.seeds=2",
        "finetune.steps=2",
        "evaluation.rows=8",
    ]
    assert maskwise("study", recipe, *short, "--out", tmp_path / "out", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert (
        not found["failures"] and found["headline"] and (tmp_path / "out" / "report.html").exists()
    )


@pytest.mark.slow
def test_an_encoder_and_three_hundred_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts, tasks = lines_and_tsv(tmp_path, random.Random(0))
    assert (
        maskwise("adapt", "bundled:encoder", texts, "--task", tasks[0], "--dry-run", "--json") == 0
    )
    assert json.loads(capfd.readouterr().out)["stages"]["pretrain"]["to_do"] == 6
