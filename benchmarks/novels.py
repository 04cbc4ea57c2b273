"""Cut novels (ELTeC, one JSON line each) into unlabelled text and passages labelled by their novel.

python benchmarks/novels.py eltec_eng-00.jsonl.gz OUT
"""

import gzip
import json
import random
import sys
from collections import Counter
from pathlib import Path

OUT = Path(sys.argv[2])
(OUT / "novels").mkdir(parents=True, exist_ok=True)
rng = random.Random(0)
splits = {"train": [], "test": []}
documents = 0
with gzip.open(OUT / "novels.jsonl.gz", "wt") as corpus:
    for line in gzip.open(sys.argv[1], "rt"):
        novel = json.loads(line)
        passages, words = [], []
        for paragraph in novel["text"].split("\n"):
            words += paragraph.split()
            if len(words) >= 30:
                passages.append(words)
                words = []
        fit = [i for i, passage in enumerate(passages) if len(passage) <= 60]
        drawn = set()
        for i in rng.sample(fit, len(fit)):
            if len(drawn) < 30 and not {i - 1, i + 1} & drawn:
                drawn.add(i)
        order = sorted(drawn)
        rng.shuffle(order)
        for n, i in enumerate(order):
            splits["train" if n < 10 else "test"].append(
                {"text": " ".join(passages[i]), "label": novel["title"]}
            )
        part = []
        for i, passage in enumerate([*passages, None]):
            if passage is None or i in drawn:
                if part:
                    corpus.write(json.dumps({"text": "\n".join(part)}) + "\n")
                    documents += 1
                part = []
            else:
                part.append(" ".join(passage))
for split, rows in splits.items():
    rng.shuffle(rows)
    with open(OUT / "novels" / f"{split}.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
print(
    {k: len(v) for k, v in splits.items()},
    documents,
    len(Counter(r["label"] for r in splits["test"])),
)
