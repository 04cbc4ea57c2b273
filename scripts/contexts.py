"""Turn a file of contexts and questions into a corpus and a task.

    python scripts/contexts.py FILE.json[.gz] --out FOLDER

FILE has SQuAD's format, like the files of SQuADShifts and XQuAD. FOLDER/contexts.jsonl is the
corpus, with each context once. FOLDER/questions.json is the task, with the same articles and their
questions in SQuAD's format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from maskwise.base.folders import write_json, write_lines
from maskwise.text.opening import read_text


def main(file: Path, out: Annotated[Path, typer.Option()], articles: int | None = None) -> None:
    """Write the corpus and the task.

    Args:
        articles: the number of articles to use; by default all.
    """
    used = json.loads(read_text(file))["data"][:articles]
    contexts = dict.fromkeys(part["context"] for article in used for part in article["paragraphs"])
    documents = (
        {"id": f"{file.name} {number}", "text": text} for number, text in enumerate(contexts)
    )
    write_lines(out / "contexts.jsonl", documents)
    write_json(out / "questions.json", {"data": used})


if __name__ == "__main__":
    typer.run(main)
