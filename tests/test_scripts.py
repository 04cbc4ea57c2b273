"""Scripts that write the data of studies in benchmarks/PLAN.md."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

from maskwise.recipe import read_recipe
from tiny import find_recipe

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def _run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_questions_are_split_by_article_and_test_answers_are_marked(tmp_path, monkeypatch):
    articles = []
    for number in range(10):
        text = f"The lamp of town {number} burns at night."
        answer = {"text": f"town {number}", "answer_start": 12}
        asked = [{"question": f"Where is lamp {number}?", "answers": [answer, answer]}]
        paragraph = {"context": text, "qas": asked}
        articles.append({"title": f"lamp {number}", "paragraphs": [paragraph]})
    squad = tmp_path / "squad.json"
    squad.write_text(json.dumps({"data": articles}))
    out = _run("closed_book.py", squad, "--out", tmp_path / "trivia")
    assert "6 train, 1 dev, 3 test" in out
    contexts = _lines(tmp_path / "trivia" / "contexts.jsonl")
    marked = [row["text"][start:end] for row in contexts for start, end in row["spans"]]
    test = _lines(tmp_path / "trivia" / "closed" / "test.jsonl")
    assert sorted(marked) == sorted(row["answers"][0] for row in test)
    learned_from = _lines(tmp_path / "trivia" / "open" / "train.jsonl")
    assert not set(marked) & {row["answers"][0] for row in learned_from}
    monkeypatch.chdir(tmp_path)
    assert read_recipe(find_recipe("trivia-own")).name == "trivia-own"


def test_labelled_passages_of_novels_are_not_in_the_text(tmp_path):
    lines = []
    for title in ("One", "Two"):
        paragraphs = [" ".join([f"{title.lower()}{n}"] * 35) for n in range(90)]
        lines.append(json.dumps({"title": title, "text": "\n".join(paragraphs)}))
    novels = tmp_path / "novels.jsonl.gz"
    with gzip.open(novels, "wt") as file:
        file.write("\n".join(lines))
    _run("novels.py", novels, "--out", tmp_path / "out")
    train = _lines(tmp_path / "out" / "novels" / "train.jsonl")
    test = _lines(tmp_path / "out" / "novels" / "test.jsonl")
    assert (len(train), len(test)) == (20, 40)
    text = "\n".join(row["text"] for row in _lines(tmp_path / "out" / "novels.jsonl"))
    for row in [*train, *test]:
        assert row["text"] not in text
    assert len(text.split("\n")) == 2 * 90 - 60
