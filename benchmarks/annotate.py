"""Accuracy of the bundled tagger on gold annotations, and speed of the annotator and bare spaCy.

    python benchmarks/annotate.py > annotate.json

**Parts of speech**: the share of gold words whose predicted tag is correct. With *gold tokens*, the
tagger gets the words of the gold annotation. With *raw text*, the pipeline splits the text into
tokens, and the predicted tag of a gold word is that of the token with its first character.
``raw_f1`` is stricter, as in the CoNLL shared tasks: a token is correct only if its boundaries are,
too. (In EWT, "!!!!" and "____" are one word each; spaCy splits them into many.)

**Salient spans**: recall is the share of gold names that overlap a predicted span. Precision is the
share of predicted spans that overlap a gold name. ``exact_f1`` requires equal boundaries. The gold
sets have no dates or numbers. The main figures, under ``names``, therefore ignore predicted dates
and numbers. The figures under ``all`` count them as predicted names.

Some gold sets have only tokens. `join_tokens` joins the tokens of each sentence to a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import run
from conll import join_tokens
from figures import Figures, in_turn, surroundings
from threadpoolctl import threadpool_limits

from maskwise.annotate.tagger import NAME, SpacyPipeline
from maskwise.base.constants import UPOS
from maskwise.base.folders import bundled_file
from maskwise.tasks.metrics import entities
from maskwise.text.conll import POS, GoldDocument, read_conllu
from maskwise.text.documents import read_documents
from maskwise.text.layers import CharSpans
from maskwise.text.source import bundled_path, read_records

SHIPPED = bundled_file("tagger-en")
GOLD = Path(__file__).parents[2] / "shared" / "data"
TAGGED = "ud_english_ewt/en_ewt-ud-test.conllu.gz"
NAMED = {
    "WikiGold": "ner_wikigold/wikigold.conll.txt.gz",
    "WNUT-17 test": "ner_wnut17/test.conll",
    "UNER-EWT test": "ner_uner_ewt/en_ewt-ud-test.iob2.gz",
}
BATCH_TEXTS = 128
Name = tuple[int, int]


def lowered(gold: Sequence[GoldDocument]) -> list[GoldDocument]:
    """Return the documents in lower case, without those whose length this changes."""
    lower = []
    for document in gold:
        text = document.text.lower()
        if len(text) == len(document.text):
            lower.append(document._replace(text=text))
    return lower


def bundled() -> list[GoldDocument]:
    """Return the bundled sample of EWT's test split."""
    documents = []
    for number, row in enumerate(read_records(bundled_path("ud_ewt_pos"))):
        if row["split"] == "test":
            text, offsets = join_tokens(row["tokens"])
            spans = [(*offset, UPOS.index(tag) + 1) for offset, tag in zip(offsets, row["tags"])]
            documents.append(GoldDocument(str(number), text, {"pos": CharSpans.of(spans, POS)}))
    return documents


def named_set(path: Path) -> tuple[list[str], list[list[Name]]]:
    """Return the texts of a gold set, and the names in each text."""
    texts = []
    gold = []
    for row in read_records(path):
        text, offsets = join_tokens(row["tokens"])
        names = [(offsets[a][0], offsets[b - 1][1]) for a, b, _ in sorted(entities(row["tags"]))]
        texts.append(text)
        gold.append(names)
    return texts, gold


def tag_accuracy(pipeline: SpacyPipeline, gold: Sequence[GoldDocument]) -> Figures:
    """Return the shares (0 to 1) of gold words with the right tag, as defined above."""
    from spacy.tokens import Doc

    found = pipeline.annotate([document.text for document in gold])
    words = tokens = right = exact = given = 0
    for document, layers in zip(gold, found):
        start, end, code = document.layers["pos"]
        spans = layers["pos"]
        words += len(start)
        tokens += len(spans.start)
        if len(spans.end):
            at = np.searchsorted(spans.end, start, "right").clip(max=len(spans.end) - 1)
            same = (spans.value[at] == code) & (spans.start[at] <= start)
            right += int(same.sum())
            exact += int((same & (spans.start[at] == start) & (spans.end[at] == end)).sum())
        text = document.text
        doc = Doc(
            pipeline.nlp.vocab,
            words=[text[a:b] for a, b in zip(start, end)],
            spaces=[text[b : b + 1] == " " for b in end],
        )
        labels = [POS.labels[each - 1] for each in code]
        given += sum(token.pos_ == label for token, label in zip(pipeline.nlp(doc), labels))
    return {
        "words": words,
        "gold_tokens": round(given / words, 4),
        "raw": round(right / words, 4),
        "raw_f1": round(2 * exact / (words + tokens), 4),
    }


def overlap_scores(
    texts: Sequence[str],
    gold: Sequence[Sequence[Name]],
    find: Callable[[list[str]], Iterable[dict[str, CharSpans]]],
) -> Figures:
    """Return recall, precision and exact F1 (0 to 1) of salient spans, as defined above.

    Args:
        texts: N texts.
        gold: the names in each text, as (start, end) in characters, in order.
        find: a function that annotates texts with the layer "salient".
    """
    found = [layers["salient"] for layers in find(list(texts))]
    count = sum(map(len, gold))
    scores = {"gold": count}
    for view, of_kinds in (("names", [NAME]), ("all", range(4))):
        spans = met = right = exact = 0
        for layer, names in zip(found, gold):
            kept = np.isin(layer.value, of_kinds)
            some = list(zip(layer.start[kept].tolist(), layer.end[kept].tolist()))
            spans += len(some)
            met += touching(names, some)
            right += touching(some, names)
            exact += len(set(some) & set(names))
        scores[view] = {
            "spans": spans,
            "recall": round(met / max(1, count), 4),
            "precision": round(right / max(1, spans), 4),
            "exact_f1": round(2 * exact / max(1, spans + count), 4),
        }
    return scores


def touching(these: Sequence[Name], those: Sequence[Name]) -> int:
    """Return the number of spans in ``these`` that overlap at least one span in ``those``."""
    return sum(any(a < d and c < b for c, d in those) for a, b in these)


def speed(batches: int) -> list[Figures]:
    """Return words per second of processor time. "times_bare" is the speed relative to bare spaCy
    with the same layers.
    """
    import spacy

    texts = [document.text for document in read_documents(bundled_path("wikipedia"))]
    parts = [texts[number * BATCH_TEXTS :][:BATCH_TEXTS] for number in range(batches)]
    words = float(np.median([sum(len(text.split()) for text in part) for part in parts]))

    def drain(nlp: Any, number: int) -> int:
        return sum(len(doc) for doc in nlp.pipe(parts[number], batch_size=32))

    def annotated(pipeline: SpacyPipeline, number: int) -> int:
        return len(pipeline.annotate(parts[number]))

    rows = []
    for layers, left_out in ((["pos"], ["ner"]), (["pos", "salient"], [])):
        what = " and ".join(layers)
        # spaCy is faster on words that it has seen before. Each contestant therefore has its own
        # pipeline.
        calls = {
            f"bare spaCy, {what}": partial(drain, spacy.load(SHIPPED, exclude=left_out)),
            f"bare spaCy with numpy's matrix product, {what}": partial(
                drain, SpacyPipeline(layers).nlp
            ),
            f"the annotator, {what}": partial(annotated, SpacyPipeline(layers)),
        }
        seconds = in_turn(calls, batches=batches, turn=2)
        bare = seconds[f"bare spaCy, {what}"]
        for name, spent in seconds.items():
            rate = {"words_per_second": round(words / spent), "times_bare": round(bare / spent, 3)}
            rows.append({"name": name, **rate})
    return rows


def main(data: Path = GOLD, batches: int = 10) -> Figures:
    """Measure the accuracy of the bundled pipeline on the gold sets, and words per second.

    Args:
        data: the folder with the files ``TAGGED`` and ``NAMED``; "missing" lists missing files.
        batches: the number of batches of the bundled Wikipedia texts that are timed.
    """
    torch.set_num_threads(1)
    both = SpacyPipeline()
    files = {"UD-EWT test": TAGGED, **NAMED}
    missing = [name for name, file in files.items() if not (data / file).is_file()]
    tagged = {"bundled sample of UD-EWT test": bundled()}
    if "UD-EWT test" not in missing:
        tagged["UD-EWT test"] = list(read_conllu(data / TAGGED))
    pos = []
    for name, gold in tagged.items():
        pos.append({"data": name} | tag_accuracy(both, gold))
        lower = tag_accuracy(both, lowered(gold))
        pos.append({"data": f"{name}, in lower case"} | lower)
    salient = []
    for name in NAMED:
        if name not in missing:
            scores = overlap_scores(*named_set(data / NAMED[name]), both.annotate)
            salient.append({"data": name} | scores)
    with threadpool_limits(1):
        rates = speed(batches)
    return {
        "bench": "annotate",
        "pos": pos,
        "salient": salient,
        "speed": rates,
        "missing": missing,
        "version": both.version,
        "hardware": {**surroundings(), "spacy": version("spacy"), "thinc": version("thinc")},
    }


if __name__ == "__main__":
    run(main, __doc__)
