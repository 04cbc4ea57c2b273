"""Find questions whose answers occur in a corpus.

    python scripts/trivia_contexts.py QUESTIONS.jsonl CORPUS --out FOLDER

QUESTIONS (also .gz) has `question` and `answer`, as in OpenTriviaQA. CORPUS is a file or folder of
texts. A short answer may occur anywhere. A paragraph therefore belongs to a question only if it
contains the answer and at least two rare words of the question. FOLDER/contexts.jsonl has each such
paragraph once, without questions. FOLDER/questions.jsonl has the questions in train, dev and test
splits. All questions about an article are in the same split.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import typer

from maskwise.base.folders import write_lines
from maskwise.learning.examples import find_contexts
from maskwise.text import read_documents
from maskwise.text.source import read_records
from maskwise.text.words import text_id

SPLITS = {"train": 0.6, "dev": 0.1, "test": 0.3}
FUNCTION_WORDS = """
a about above after again against all also am an and any are as at be because been before being
below between both but by can could did do does doing down during each few for from further had
has have having he her here hers him his how i if in into is it its itself just may me might more
most must my no nor not now of off on once one only or other our out over own same shall she
should so some such than that the their them then there these they this those through to too under
until up upon us very was we were what when where which while who whom whose why will with would
you your
"""
NO_ANSWERS = set(FUNCTION_WORDS.split()) | {
    "true",
    "false",
    "yes",
    "none",
    "all",
    "all of these",
    "none of these",
}
RARE = 0.002
"""Maximum share of paragraphs that contain a rare word."""
SHORTEST, LONGEST = 20, 120
"""Minimum and maximum number of words in a paragraph. Headings are shorter."""


def main(
    questions_file: Annotated[Path, typer.Argument(metavar="QUESTIONS")],
    corpus: str,
    out: Annotated[Path, typer.Option()],
    rare_words: Annotated[int, typer.Option("--rare")] = 2,
    limit: int | None = None,
) -> None:
    """Write the contexts and the questions.

    Args:
        rare_words: the minimum number of rare words that a question and its context share.
        limit: the maximum number of texts of the corpus.
    """
    rows = read_records(questions_file)
    articles, texts = zip(*paragraphs(corpus, limit), strict=True)
    questions = [row["question"] for row in rows]
    places = find_contexts(questions, [[row["answer"]] for row in rows], texts, most=2)
    frequency = Counter(word for text in texts for word in words(text))
    rare = {word for word, count in frequency.items() if count <= RARE * len(texts)}
    kept = [
        n
        for n, own in enumerate(places)
        if own
        and rows[n]["answer"].casefold() not in NO_ANSWERS
        and len(rare & words(questions[n]) & words(texts[own[0]])) >= rare_words
    ]
    used = sorted({place for n in kept for place in places[n]})
    write_lines(
        out / "contexts.jsonl", ({"id": f"{articles[p]} {p}", "text": texts[p]} for p in used)
    )
    asked = ({**rows[n], "split": split_of(articles[places[n][0]])} for n in kept)
    write_lines(out / "questions.jsonl", asked)
    print(f"{len(kept)} of {len(rows)} questions, {len(used)} of {len(texts)} paragraphs")


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def paragraphs(corpus: str, limit: int | None) -> Iterator[tuple[str, str]]:
    """Yield the name of an article and one of its paragraphs, for all paragraphs."""
    for document in read_documents(corpus, limit=limit):
        for text in document.text.split("\n"):
            if SHORTEST <= len(text.split()) <= LONGEST:
                yield document.name, text


def split_of(article: str) -> str:
    """Return the split of all questions about an article."""
    names = list(SPLITS)
    return names[bisect(list(accumulate(SPLITS.values())), text_id(article) / 2**63)]


if __name__ == "__main__":
    typer.run(main)
