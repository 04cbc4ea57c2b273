"""Make a closed-book test from a file in SQuAD's format, for the study D1 of PLAN.md.

    python scripts/closed_book.py new_wiki_v1.0.json.gz --out trivia

Every paragraph is a text of the corpus (``OUT/contexts.jsonl``), with the answers to test questions
as its ``spans``. Questions are split by article, so that no policy and no model learns from an
article of the test: ``OUT/closed`` has questions and answers, ``OUT/open`` also has the paragraphs
of training and dev questions, from which a policy can learn.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from maskwise.folders import write_lines
from maskwise.text.opening import opened

SPLITS = {"train": 0.6, "dev": 0.1, "test": 0.3}
"""Shares of the articles."""
ORDER_SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("squad", type=Path, help="SQuAD's JSON, also .gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most-test", type=int, default=2000, help="test questions at most")
    given = parser.parse_args()
    with opened(given.squad) as file:
        articles = json.load(file)["data"]
    random.Random(ORDER_SEED).shuffle(articles)
    contexts: list[dict[str, object]] = []
    questions: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    for number, article in enumerate(articles):
        split = split_of(number / len(articles))
        for place, paragraph in enumerate(article["paragraphs"]):
            asked = set()
            for question in paragraph["qas"]:
                answers = [answer["text"] for answer in question["answers"]]
                row = {"question": question["question"], "answers": sorted(set(answers))}
                questions[split].append(row | {"context": paragraph["context"]})
                # One answer of a question is marked: the commonest is the first of SQuAD's list.
                first = question["answers"][0]
                asked.add((first["answer_start"], first["answer_start"] + len(first["text"])))
            spans = sorted(asked) if split == "test" else []
            name = f"{article['title']} {number} {place}"
            contexts.append({"id": name, "text": paragraph["context"], "spans": disjoint(spans)})
    random.Random(ORDER_SEED).shuffle(questions["test"])
    questions["test"] = questions["test"][: given.most_test]
    write_lines(given.out / "contexts.jsonl", contexts)
    for split, rows in questions.items():
        closed = [{key: row[key] for key in ("question", "answers")} for row in rows]
        write_lines(given.out / "closed" / f"{split}.jsonl", closed)
        if split != "test":
            write_lines(given.out / "open" / f"{split}.jsonl", rows)
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in questions.items())
    print(f"{len(contexts)} paragraphs of {len(articles)} articles; questions: {counts}")


def split_of(share: float) -> str:
    """The split of an article, by its position in the shuffled list."""
    edge = 0.0
    for split, size in SPLITS.items():
        edge += size
        if share < edge:
            return split
    return "test"


def disjoint(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans without those that overlap an earlier one."""
    kept: list[tuple[int, int]] = []
    for start, end in spans:
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


if __name__ == "__main__":
    main()
