"""Scripts that write the data of studies in benchmarks/PLAN.md."""

from __future__ import annotations

import gzip
import json
import runpy
from pathlib import Path

from maskwise.recipe import read_recipe
from tiny import find_recipe, read_lines

SPLITS = ("train", "dev", "test")
ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"


def test_questions_are_split_by_article_and_test_answers_are_marked(tmp_path, monkeypatch, capsys):
    articles = []
    for number in range(10):
        text = f"The lamp of town {number} burns at night."
        answer = {"text": f"town {number}", "answer_start": 12}
        asked = [{"question": f"Where is lamp {number}?", "answers": [answer, answer]}]
        paragraph = {"context": text, "qas": asked}
        articles.append({"title": f"lamp {number}", "paragraphs": [paragraph]})
    squad = tmp_path / "squad.json"
    squad.write_text(json.dumps({"data": articles}))
    runpy.run_path(str(SCRIPTS / "closed_book.py"))["main"](squad, tmp_path / "trivia")
    assert "6 train, 1 dev, 3 test" in capsys.readouterr().out
    contexts = read_lines(tmp_path / "trivia" / "contexts.jsonl")
    marked = [row["text"][start:end] for row in contexts for start, end in row["spans"]]
    test = read_lines(tmp_path / "trivia" / "closed" / "test.jsonl")
    assert sorted(marked) == sorted(row["answers"][0] for row in test)
    learned_from = read_lines(tmp_path / "trivia" / "open" / "train.jsonl")
    assert not set(marked) & {row["answers"][0] for row in learned_from}
    assert sum(bool(row["spans"]) for row in contexts) == 3
    right = read_lines(tmp_path / "trivia" / "right.jsonl")
    other = read_lines(tmp_path / "trivia" / "other.jsonl")
    assert len(right) == len(other) == 4
    assert all(row in right for row in contexts if row["spans"])
    apart = {
        split: read_lines(tmp_path / "trivia" / "apart" / f"{split}.jsonl") for split in SPLITS
    }
    assert {split: len(rows) for split, rows in apart.items()} == {"train": 2, "dev": 1, "test": 3}
    others = " ".join(row["text"] for row in other)
    rights = " ".join(row["text"] for row in right)
    for split, rows in apart.items():
        for row in rows:
            assert row["answers"][0] not in others
            assert (row["answers"][0] in rights) == (split != "train")
    monkeypatch.chdir(tmp_path)
    for recipe in ("trivia-own", "corpus-and-policy"):
        assert read_recipe(find_recipe(recipe)).name == recipe


def test_labelled_passages_of_novels_are_not_in_the_text(tmp_path):
    lines = []
    for title in ("One", "Two"):
        paragraphs = [" ".join([f"{title.lower()}{n}"] * 35) for n in range(90)]
        lines.append(json.dumps({"title": title, "text": "\n".join(paragraphs)}))
    novels = tmp_path / "novels.jsonl.gz"
    with gzip.open(novels, "wt") as file:
        file.write("\n".join(lines))
    runpy.run_path(str(SCRIPTS / "novels.py"))["main"](novels, tmp_path / "out")
    train = read_lines(tmp_path / "out" / "novels" / "train.jsonl")
    test = read_lines(tmp_path / "out" / "novels" / "test.jsonl")
    assert (len(train), len(test)) == (20, 40)
    text = "\n".join(row["text"] for row in read_lines(tmp_path / "out" / "novels.jsonl"))
    for row in [*train, *test]:
        assert row["text"] not in text
    assert len(text.split("\n")) == 2 * 90 - 60


def test_the_text_of_every_mutant_is_in_the_source_once():
    """A stale mutant is never killed, and only a slow script would notice."""
    source = ROOT / "src" / "maskwise"
    stale = [
        f"{mutant['file']}: {mutant['old']!r}"
        for mutant in json.loads((ROOT / "tests" / "mutants.json").read_text(encoding="utf-8"))
        if (source / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"]) != 1
    ]
    assert not stale
