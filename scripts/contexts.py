"""Turn questions about contexts into a corpus and a task:
`python scripts/contexts.py FILE.json[.gz] --out FOLDER`.

FILE is in SQuAD's format (SQuADShifts, XQuAD). FOLDER/contexts.jsonl has each context once, as a
document without questions; FOLDER/questions.json has the same articles with their questions, in
SQuAD's format.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from maskwise.folders import write_json, write_lines
from maskwise.text.labelled import read_text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--articles", type=int, help="use only the first articles, this many")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    articles = json.loads(read_text(given.file))["data"][: given.articles]
    contexts = dict.fromkeys(
        part["context"] for article in articles for part in article["paragraphs"]
    )
    documents = (
        {"id": f"{given.file.name} {number}", "text": text} for number, text in enumerate(contexts)
    )
    write_lines(given.out / "contexts.jsonl", documents)
    write_json(given.out / "questions.json", {"data": articles})


if __name__ == "__main__":
    main()
