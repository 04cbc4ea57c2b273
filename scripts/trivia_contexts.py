"""Find questions whose answers occur in a corpus: `python scripts/trivia_contexts.py
QUESTIONS.jsonl CORPUS --out FOLDER`.

QUESTIONS (also .gz) has `question` and `answer`, as in OpenTriviaQA; CORPUS is a file or folder of
texts. For each question, paragraphs are kept that contain its answer and share its rarest words: at
least two rare ones, because a short answer may occur anywhere. FOLDER/contexts.jsonl has each such
paragraph once, as a document without questions; FOLDER/questions.jsonl has the questions in train,
dev and test splits, with all questions about an article in the same split.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from maskwise.folders import write_lines
from maskwise.learning.examples import find_contexts
from maskwise.learning.labels import FUNCTION_WORDS
from maskwise.text import read_documents
from maskwise.text.opening import opened
from maskwise.text.words import text_id

SPLITS = {"train": 0.6, "dev": 0.1, "test": 0.3}
NO_ANSWERS = FUNCTION_WORDS | {
    "true",
    "false",
    "yes",
    "none",
    "all",
    "all of these",
    "none of these",
}
RARE = 0.002
"""The largest share of paragraphs that contain a rare word."""
SHORTEST, LONGEST = 20, 120
"""Words of a paragraph. Headings are shorter."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", type=Path)
    parser.add_argument("corpus")
    parser.add_argument(
        "--rare", type=int, default=2, help="words that a question and its context share"
    )
    parser.add_argument(
        "--limit", type=int, help="use only the first texts of the corpus, this many"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with opened(given.questions) as lines:
        rows = [json.loads(line) for line in lines]
    articles, texts = zip(*paragraphs(given.corpus, given.limit), strict=True)
    questions = [row["question"] for row in rows]
    places = find_contexts(questions, [[row["answer"]] for row in rows], texts, most=2)
    frequency = Counter(word for text in texts for word in words(text))
    rare = {word for word, count in frequency.items() if count <= RARE * len(texts)}
    kept = [
        n
        for n, own in enumerate(places)
        if own
        and rows[n]["answer"].casefold() not in NO_ANSWERS
        and len(rare & words(questions[n]) & words(texts[own[0]])) >= given.rare
    ]
    used = sorted({place for n in kept for place in places[n]})
    write_lines(
        given.out / "contexts.jsonl", ({"id": f"{articles[p]} {p}", "text": texts[p]} for p in used)
    )
    asked = ({**rows[n], "split": split_of(articles[places[n][0]])} for n in kept)
    write_lines(given.out / "questions.jsonl", asked)
    print(f"{len(kept)} of {len(rows)} questions, {len(used)} of {len(texts)} paragraphs")


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def paragraphs(corpus: str, limit: int | None) -> Iterator[tuple[str, str]]:
    """The name of every article and one paragraph of it."""
    for document in read_documents(corpus, limit=limit):
        for text in document.text.split("\n"):
            if SHORTEST <= len(text.split()) <= LONGEST:
                yield document.id, text


def split_of(article: str) -> str:
    """The split of all questions about an article."""
    place, edge = text_id(article) / 2**63, 0.0
    for split, share in SPLITS.items():
        edge += share
        if place < edge:
            return split
    return "test"


if __name__ == "__main__":
    main()
