"""The shipped tagger against gold annotations, and its speed beside bare spaCy, in one run.

**Parts of speech**: the share of gold words with the right tag. With *gold tokens* the pipeline is
given the words; *from raw text* it has to cut the text itself, and a gold word has the tag of the
token that holds its first character. ``raw_f1`` is stricter, as in the CoNLL shared tasks: a token
counts if both its borders and its tag are right (EWT writes "!!!!" and "____" as one word, spaCy as
many).

**Salient spans** by overlap: a gold name is found if a predicted span holds one of its characters
(recall), a predicted span is right if it holds a character of a gold name (precision); ``exact_f1``
asks for the same borders. The gold sets have no dates and numbers. So under ``names``, the
headline, predicted dates and numbers count as neither right nor wrong, and a gold name that only
they touch is missed; under ``all`` they are spans as others are.

Texts of gold sets that are tokens only are joined by `join_tokens`, one sentence each.

    python benchmarks/annotate.py > annotate.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conll import entities, join_tokens, read_columns
from rich.console import Console
from threadpoolctl import threadpool_limits

from maskwise.annotate.run import annotate_corpus
from maskwise.annotate.tagger import NAME, SpacyPipeline
from maskwise.bench import in_turn, surroundings
from maskwise.constants import UPOS
from maskwise.folders import bundled_file
from maskwise.text.documents import bundled_path, read_documents
from maskwise.text.labelled import (
    POS,
    GoldDocument,
    read_conllu,
    read_records,
)
from maskwise.text.layers import CharSpans

SHIPPED = bundled_file("tagger-en")
GOLD = Path(__file__).parents[2] / "shared" / "data"
TAGGED = {"UD-EWT test": "ud_english_ewt/en_ewt-ud-test.conllu.gz"}
NAMED: dict[str, tuple[str, int, int]] = {  # file, column of the token, column of the tag
    "WikiGold": ("ner_wikigold/wikigold.conll.txt.gz", 0, 1),
    "WNUT-17 test": ("ner_wnut17/test.conll", 0, 1),
    "UNER-EWT test": ("ner_uner_ewt/en_ewt-ud-test.iob2.gz", 1, 2),
}
Name = tuple[int, int]


def bench_annotate(
    *, data: Path = GOLD, batches: int = 10, batch_texts: int = 128, copies: int = 2
) -> dict[str, Any]:
    """Accuracy of the shipped pipeline on the gold sets that ``data`` holds, and words per second.

    Args:
        data: folder with the files of `TAGGED` and `NAMED`; those that it lacks are named in
            "missing". Tagging is measured on the bundled sample of EWT's test part in any case.
        batches: of the bundled Wikipedia texts, timed.
        batch_texts: texts per batch.
        copies: of the bundled Wikipedia texts (1.1 million words each), for the wall time of one
            process and of two; 0 leaves that out. The figures are of use on an idle machine only.

    Returns:
        "pos", "salient", "speed" and "processes": lists of dicts; "missing"; "tagger": its bytes
        and version; "hardware".
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        both = SpacyPipeline()
        tagged = {n: list(read_conllu(data / f)) for n, f in TAGGED.items() if (data / f).is_file()}
        tagged["bundled sample of UD-EWT test"] = _bundled()
        tagged |= {f"{name}, in lower case": _lower(gold) for name, gold in tagged.items()}
        named = {
            n: _names(data / f, *columns)
            for n, (f, *columns) in NAMED.items()
            if (data / f).is_file()
        }
        return {
            "pos": [{"data": name} | tag_accuracy(both, gold) for name, gold in tagged.items()],
            "salient": [
                {"data": name, "spans": how}
                | overlap_scores([text for text, _ in gold], [n for _, n in gold], find)
                for name, gold in named.items()
                for how, find in (
                    ("salient", both.annotate),
                    ("entities alone", partial(_entities, both)),
                )
            ],
            "speed": _speed(batches, batch_texts),
            "processes": _processes(copies) if copies else [],
            "missing": [n for n in [*TAGGED, *NAMED] if n not in tagged and n not in named],
            "tagger": {
                "bytes": sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()),
                "version": both.version,
            },
            "hardware": surroundings(("spacy", "thinc", "numpy", "maskwise")),
        }
    finally:
        torch.set_num_threads(threads)


def tag_accuracy(pipeline: SpacyPipeline, gold: Sequence[GoldDocument]) -> dict[str, Any]:
    """Shares (0 to 1) of gold words with the right tag; the module says how they are counted."""
    found = [layers["pos"] for layers in pipeline.annotate([document.text for document in gold])]
    words = right = exact = tokens = 0
    for document, spans in zip(gold, found):
        start, end, code = document.layers["pos"]
        at = np.searchsorted(spans.end, start, "right").clip(max=max(len(spans.end) - 1, 0))
        same = (
            (np.asarray(spans.value)[at] == code) & (spans.start[at] <= start)
            if len(spans.end)
            else start < 0
        )
        words, tokens, right = (
            words + len(start),
            tokens + len(spans.start),
            right + int(same.sum()),
        )
        if len(spans.end):
            exact += int((same & (spans.start[at] == start) & (spans.end[at] == end)).sum())
    given = sum(map(int, (_right_with_gold_tokens(pipeline, document) for document in gold)))
    scores = {
        "gold_tokens": given / words,
        "raw": right / words,
        "raw_f1": 2 * exact / (words + tokens),
    }
    return {"words": words} | {name: round(score, 4) for name, score in scores.items()}


def _right_with_gold_tokens(pipeline: SpacyPipeline, document: GoldDocument) -> int:
    from spacy.tokens import Doc

    nlp, spans, text = pipeline.nlp, document.layers["pos"], document.text
    words = [text[a:b] for a, b in zip(spans.start, spans.end)]
    doc = Doc(nlp.vocab, words=words, spaces=[text[b : b + 1] == " " for b in spans.end])
    return sum(
        token.pos_ == POS.labels[code - 1] for token, code in zip(nlp(doc), np.asarray(spans.value))
    )


def overlap_scores(
    texts: Sequence[str],
    gold: Sequence[Sequence[Name]],
    find: Callable[[list[str]], list[dict[str, CharSpans]]],
) -> dict[str, Any]:
    """Recall, precision and exact F1 (0 to 1) of salient spans, by the definitions of the module.

    Args:
        texts: N texts.
        gold: the names of each: (start, end) in characters, in order.
        find: makes the layer "salient" of texts.
    """
    found = [layers["salient"] for some in _parts(texts, 256) for layers in find(some)]
    scores: dict[str, Any] = {"gold": sum(map(len, gold))}
    for view, of_kinds in (("names", [NAME]), ("all", range(4))):
        kept = [[span[:2] for span in _rows(f) if span[2] in of_kinds] for f in found]
        pairs = list(zip(kept, gold))
        spans = sum(map(len, kept))
        recall = sum(_touching(names, some) for some, names in pairs) / max(1, scores["gold"])
        precision = sum(_touching(some, names) for some, names in pairs) / max(1, spans)
        exact = sum(len(set(some) & set(names)) for some, names in pairs) / max(
            1, spans + scores["gold"]
        )
        values = {"recall": recall, "precision": precision, "exact_f1": 2 * exact}
        scores[view] = {"spans": spans} | {name: round(value, 4) for name, value in values.items()}
    return scores


def _rows(spans: CharSpans) -> list[tuple[int, int, int]]:
    return list(zip(spans.start.tolist(), spans.end.tolist(), np.asarray(spans.value).tolist()))


def _touching(these: Sequence[Name], those: Sequence[Name]) -> int:
    """How many of these overlap any of those; both in order, each without overlap."""
    if not these or not those:
        return 0
    start, end = np.array(these).T
    other_start, other_end = np.array(those).T
    return int(
        (np.searchsorted(other_end, start, "right") < np.searchsorted(other_start, end)).sum()
    )


def _entities(pipeline: SpacyPipeline, texts: list[str]) -> list[dict[str, CharSpans]]:
    """What the entity recogniser finds by itself."""
    rows = (
        [(e.start_char, e.end_char, NAME) for e in doc.ents] for doc in pipeline.nlp.pipe(texts)
    )
    return [{"salient": CharSpans.of(row, pipeline.layers["salient"])} for row in rows]


def _names(path: Path, token: int, tag: int) -> list[tuple[str, list[Name]]]:
    gold = []
    for tokens, tags in read_columns(path, token=token, tag=tag):
        text, offsets = join_tokens(tokens)
        gold.append((text, [(offsets[a][0], offsets[b - 1][1]) for a, b, _ in entities(tags)]))
    return gold


def _bundled() -> list[GoldDocument]:
    documents = []
    for number, row in enumerate(read_records(bundled_path("ud_ewt_pos"))):
        if row["split"] == "test":
            text, offsets = join_tokens(row["tokens"])
            spans = [(*offset, UPOS.index(tag) + 1) for offset, tag in zip(offsets, row["tags"])]
            documents.append(GoldDocument(str(number), text, {"pos": CharSpans.of(spans, POS)}))
    return documents


def _lower(gold: Iterable[GoldDocument]) -> list[GoldDocument]:
    lowered = (document._replace(text=document.text.lower()) for document in gold)
    return [low for low, document in zip(lowered, gold) if len(low.text) == len(document.text)]


def _speed(batches: int, batch_texts: int) -> list[dict[str, Any]]:
    """Words per second of processor time; "times_bare": how many times those of bare spaCy with the
    same layers.
    """
    texts = [document.text for document in read_documents(bundled_path("wikipedia"))][
        : batches * batch_texts
    ]
    parts = _parts(texts, batch_texts)
    calls: dict[str, Callable[[int], int]] = {}
    peers: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        for layers in (["pos"], ["pos", "salient"]):
            what = " and ".join(layers)
            # Each has a pipeline of its own, for spaCy is faster on words that it has met before.
            bare, tuned, ours = _bare(layers), SpacyPipeline(layers).nlp, SpacyPipeline(layers)
            own = {
                f"bare spaCy, {what}": partial(_drain, bare, parts),
                f"bare spaCy with numpy's matrix product, {what}": partial(_drain, tuned, parts),
                f"the annotator, {what}": partial(_annotated, ours, parts),
                f"maskwise annotate, {what}": partial(_through_files, layers, folder, parts),
            }
            calls |= own
            peers |= dict.fromkeys(own, f"bare spaCy, {what}")
        seconds = in_turn(calls, batches=len(parts), check=_check, turn=2)
    words = float(np.median([sum(len(text.split()) for text in part) for part in parts]))
    return [
        {
            "name": name,
            "words_per_second": round(words / spent),
            "times_bare": round(seconds[peers[name]] / spent, 3),
        }
        for name, spent in seconds.items()
    ]


def _parts(texts: Sequence[str], size: int) -> list[list[str]]:
    return [list(texts[first : first + size]) for first in range(0, len(texts), size)]


def _bare(layers: list[str]) -> Any:
    """The shipped pipeline as spaCy loads it."""
    import spacy

    return spacy.load(SHIPPED, exclude=[] if "salient" in layers else ["ner"])


def _drain(nlp: Any, parts: list[list[str]], number: int) -> int:
    return sum(len(doc) for doc in nlp.pipe(parts[number], batch_size=32))


def _annotated(pipeline: SpacyPipeline, parts: list[list[str]], number: int) -> int:
    return len(pipeline.annotate(parts[number]))


def _through_files(annotators: list[str], folder: str, parts: list[list[str]], number: int) -> int:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        return int(annotate_corpus(parts[number], annotators, Path(out) / "made", jobs=1)["words"])


def _processes(copies: int) -> list[dict[str, Any]]:
    """Wall seconds of the whole command for parts of speech, from its start to its end, with one
    process and two.
    """
    texts = [document.text for document in read_documents(bundled_path("wikipedia"))]
    # `annotate` leaves out repeated texts, so every copy begins with its number.
    many = [f"Copy {number}. {text}" for number in range(copies) for text in texts]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        with corpus.open("w", encoding="utf-8") as file:
            for text in many:
                file.write(json.dumps({"text": text}) + "\n")
        for jobs in (1, 2):
            out = str(Path(folder) / str(jobs))
            command = [
                "annotate",
                str(corpus),
                "--with",
                "pos",
                "--out",
                out,
                "--jobs",
                str(jobs),
                "--json",
            ]
            began = time.perf_counter()
            ran = subprocess.run(
                [sys.executable, "-c", "from maskwise.cli import main; main()", *command],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            )
            seconds = time.perf_counter() - began
            words = int(json.loads(ran.stdout)["words"])
            rows.append({"processes": jobs, "words": words, "seconds": round(seconds, 2)})
    return [row | {"times_one": round(rows[0]["seconds"] / row["seconds"], 3)} for row in rows]


def _check(name: str, number: int, result: Any) -> None:
    assert result, f"{name} found nothing"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=GOLD, help="folder of the gold sets")
    parser.add_argument("--batches", type=int, default=10, help="batches of texts that are timed")
    parser.add_argument(
        "--copies", type=int, default=2, help="of the text for one and two processes; 0: none"
    )
    given = parser.parse_args()
    result = {
        "bench": "annotate",
        **bench_annotate(data=given.data, batches=given.batches, copies=given.copies),
    }
    Console().print_json(data=result)


if __name__ == "__main__":
    main()
