"""Build a closed-book test from a file in SQuAD's format, for D1 and D7 of benchmarks/PLAN.md.

    python scripts/closed_book.py new_wiki_v1.0.json.gz --out trivia

``OUT/contexts.jsonl`` is the corpus. Each paragraph is a text, and ``spans`` marks the answers to
test questions. All questions about an article are in the same split. No policy and no model can
therefore learn from questions about test articles. ``OUT/closed`` has questions and answers.
``OUT/open`` also has the paragraphs of training and dev questions, from which a masking policy can
learn.

To compare corpora, ``OUT/right.jsonl`` has the paragraphs of the dev and test questions only, and
``OUT/other.jsonl`` those of other articles. ``OUT/apart`` is ``OUT/closed`` without the questions
about these other articles, and ``OUT/pilot`` the same with one half of the dev questions as
dev and the other half as test questions.

To part topics, names and facts, two more files have the texts of ``OUT/right.jsonl`` with false
answers: each answer to a question about an article is replaced, everywhere in this article, by one
answer of the same kind (number of words, digits, capital). In ``OUT/shuffled.jsonl`` these are
answers about other articles of ``right.jsonl``, so most of the same answers are in the corpus, but
in wrong places. In ``OUT/foreign.jsonl`` they are answers about the articles of ``other.jsonl``.
"""

from __future__ import annotations

import json
import random
import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import typer

from maskwise.base.folders import write_lines
from maskwise.text.opening import opened

SPLITS = {"train": 2, "other": 4, "dev": 1, "test": 3}
"""Tenths of the articles in the splits. ``OUT/closed`` trains on the first two."""
ORDER_SEED = 0


def main(squad: Path, out: Annotated[Path, typer.Option()], most_test: int = 2000) -> None:
    """Write the corpus and the questions.

    Args:
        squad: a file in SQuAD's format, also .gz.
        most_test: the maximum number of test questions.
    """
    with opened(squad) as file:
        articles = json.load(file)["data"]
    random.Random(ORDER_SEED).shuffle(articles)
    contexts = {split: [] for split in SPLITS}
    questions = {split: [] for split in SPLITS}
    answers_about = {split: defaultdict(set) for split in SPLITS}
    for number, article in enumerate(articles):
        split = split_of(10 * number / len(articles))
        for place, paragraph in enumerate(article["paragraphs"]):
            asked = set()
            for question in paragraph["qas"]:
                answers = [answer["text"] for answer in question["answers"]]
                row = {"question": question["question"], "answers": sorted(set(answers))}
                questions[split].append(row | {"context": paragraph["context"]})
                answers_about[split][article["title"]].update(answers)
                # Only the first answer in SQuAD's list is marked.
                first = question["answers"][0]
                asked.add((first["answer_start"], first["answer_start"] + len(first["text"])))
            spans = disjoint(sorted(asked)) if split == "test" else []
            name = f"{article['title']} {number} {place}"
            contexts[split].append({"id": name, "text": paragraph["context"], "spans": spans})
    random.Random(ORDER_SEED).shuffle(questions["test"])
    questions["test"] = questions["test"][:most_test]
    # Dev chooses learning rates, so its answers must be where those of the test questions are.
    right = contexts["dev"] + contexts["test"]
    write_lines(out / "right.jsonl", right)
    write_lines(out / "other.jsonl", contexts["other"])
    about_right = answers_about["dev"] | answers_about["test"]
    for file, donors in (("shuffled", about_right), ("foreign", answers_about["other"])):
        write_lines(out / f"{file}.jsonl", with_false_answers(right, about_right, donors))
    paragraphs = contexts["train"] + contexts["other"] + right
    write_lines(out / "contexts.jsonl", paragraphs)
    about_other = questions.pop("other")
    write_questions(out / "apart", questions)
    # A pilot that chooses a learning rate sees no test question.
    halves = {"dev": questions["dev"][::2], "test": questions["dev"][1::2]}
    write_questions(out / "pilot", {"train": questions["train"]} | halves)
    questions["train"] += about_other
    write_questions(out / "closed", questions)
    write_lines(out / "open" / "train.jsonl", questions["train"])
    write_lines(out / "open" / "dev.jsonl", questions["dev"])
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in questions.items())
    print(f"{len(paragraphs)} paragraphs of {len(articles)} articles; questions: {counts}")


def split_of(tenths: float) -> str:
    """Return the split of an article, by its position in the shuffled list."""
    return list(SPLITS)[bisect(list(accumulate(SPLITS.values())), tenths)]


def write_questions(out: Path, questions: dict[str, list[dict]]) -> None:
    """Write the questions and answers of each split, without their paragraphs."""
    for split, rows in questions.items():
        closed = [{key: row[key] for key in ("question", "answers")} for row in rows]
        write_lines(out / f"{split}.jsonl", closed)


def with_false_answers(
    paragraphs: list[dict], about: Mapping[str, set[str]], donors: Mapping[str, set[str]]
) -> list[dict]:
    """Return the paragraphs with one false answer in all places of each answer of their article.

    Args:
        paragraphs: rows whose ``id`` is the title of the article and two numbers.
        about: the answers to all questions about each article, by its title.
        donors: answers that replace them, by the title of their article; not those of the article
            itself. Within an article, each of a kind is used before one is used again.
    """
    rng = random.Random(ORDER_SEED)
    patterns = {title: occurrences_of(answers) for title, answers in about.items()}
    false = {}
    for title, answers in about.items():
        pool = defaultdict(list)
        for donor_title, strings in donors.items():
            for donor in strings if donor_title != title else ():
                if not patterns[title].search(donor):
                    pool[kind_of(donor)].append(donor)
        everything = sorted({donor for kind in pool.values() for donor in kind})
        false[title] = {}
        left = {}
        for answer in sorted(answers):
            kind = kind_of(answer)
            if not left.get(kind):
                left[kind] = sorted(set(pool[kind])) or everything.copy()
                rng.shuffle(left[kind])
            false[title][answer] = left[kind].pop()
    rows = []
    for row in paragraphs:
        title = row["id"].rsplit(" ", 2)[0]
        replace = false[title]
        text = patterns[title].sub(lambda found, by=replace: by[found[0]], row["text"])
        rows.append({"id": row["id"], "text": text})
    return rows


def occurrences_of(answers: set[str]) -> re.Pattern:
    """Return a pattern of these answers as whole words, longer ones first."""
    longest_first = sorted(answers, key=lambda answer: (-len(answer), answer))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")


def kind_of(answer: str) -> tuple[int, bool, bool]:
    """Return the number of words up to 8, and whether there are digits and a capital in front."""
    digits = any(character.isdigit() for character in answer)
    return min(len(answer.split()), 8), digits, answer[:1].isupper()


def disjoint(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the spans that do not overlap an earlier span."""
    kept = []
    for start, end in spans:
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


if __name__ == "__main__":
    typer.run(main)
