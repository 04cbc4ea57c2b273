"""The contexts of questions as a corpus: `python scripts/contexts.py FILE.json[.gz] … > contexts.jsonl`.

FILE is in SQuAD's format (SQuADShifts, XQuAD). Each context is a document once, whatever asks about it, and none of the
questions is in the corpus.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from maskwise.text.labelled import read_text

for name in sys.argv[1:]:
    articles = json.loads(read_text(Path(name)))["data"]
    contexts = dict.fromkeys(part["context"] for article in articles for part in article["paragraphs"])
    for number, text in enumerate(contexts):
        sys.stdout.write(json.dumps({"id": f"{Path(name).name} {number}", "text": text}) + "\n")
