"""Train the bundled tagger: `python scripts/train_tagger/train_tagger.py DATA OUT [key=value …]`.

DATA has ud_english_ewt/, ner_uner_ewt/ and ner_wnut17/ (origins and licences are in the card,
README.md next to this script). Parts of speech are learned from EWT's training split only; names
from WNUT-17's training split and four fifths of UNER's *dev* split, whose texts are EWT's dev
split. No test sentence is ever read.

A document with only parts of speech, or only names, trains only those; spaCy treats the rest as
missing. Texts are tokenised by spaCy, as at inference, and gold words are aligned to its tokens.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import spacy
from spacy.cli.init_config import fill_config
from spacy.cli.train import train
from spacy.tokens import Doc, DocBin
from spacy.training import Example

from maskwise.tasks.metrics import entities
from maskwise.text.conll import POS, read_conllu
from maskwise.text.opening import read_text
from maskwise.text.source import read_records

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from conll import join_tokens

NAMES = {  # one set of types over both sources
    "PER": "PER",
    "LOC": "LOC",
    "ORG": "ORG",
    "person": "PER",
    "location": "LOC",
    "corporation": "ORG",
    "group": "ORG",
    "product": "MISC",
    "creative-work": "MISC",
}
SOURCES = {
    "UD_English-EWT": "CC BY-SA 4.0",
    "UNER_English-EWT": "CC BY-SA 4.0",
    "WNUT-17": "CC BY 4.0",
}
CHARACTERS = 600  # of a training document: longer ones are cut at a sentence's end
UNER_TRAIN = 0.8
HERE = Path(__file__).parent


def main(data: Path, out: Path, *overrides: str) -> None:
    nlp = spacy.blank("en")
    uner = list(uner_docs(nlp, data / "ner_uner_ewt" / "en_ewt-ud-dev.iob2.gz"))
    kept = int(len(uner) * UNER_TRAIN)
    parts = {
        "train": [
            *ewt_docs(nlp, data / "ud_english_ewt" / "en_ewt-ud-train.conllu.gz"),
            *wnut_docs(nlp, data / "ner_wnut17" / "train.conll.gz"),
            *uner[:kept],
        ],
        "dev": [
            *ewt_docs(nlp, data / "ud_english_ewt" / "en_ewt-ud-dev.conllu.gz"),
            *wnut_docs(nlp, data / "ner_wnut17" / "dev.conll"),
            *uner[kept:],
        ],
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, docs in parts.items():
        print(name, len(docs), "documents", sum(map(len, docs)), "tokens")
        DocBin(docs=docs).to_disk(out / f"{name}.spacy")
    wanted = {f"paths.{name}": str(out / f"{name}.spacy") for name in parts}
    for override in overrides:
        key, _, value = override.partition("=")
        wanted[key] = json.loads(value)
    started = time.process_time()
    fill_config(out / "config.cfg", HERE / "config.cfg")  # with spaCy's defaults
    train(out / "config.cfg", out, overrides=wanted)
    print(f"trained in {time.process_time() - started:.0f} s of processor time")
    write(spacy.load(out / "model-last"), out / "tagger-en")


def write(nlp: spacy.Language, folder: Path) -> None:
    """Write what is needed to use the pipeline, without word lists and paths of this machine."""
    nlp.config["paths"] |= {"train": None, "dev": None}
    nlp.meta |= {
        "name": "tagger",
        "version": "1.0.0",
        "author": "the maskwise authors",
        "license": "CC BY-SA 4.0",
        "description": "Universal parts of speech and names: maskwise's own small pipeline; "
        "README.md is its card",
        "sources": [{"name": name, "license": licence} for name, licence in SOURCES.items()],
        "spacy_version": ">=3.8,<4",
        "performance": {},
    }
    nlp.to_disk(folder, exclude=["vocab"])


@spacy.registry.augmenters("maskwise.small_corpus.v1")
def small_corpus(path: str, lower: float, unknown: float) -> Callable[..., Iterator[Example]]:
    """Augment 200,000 words: some texts in lower case, and some rare words as unknown.

    A word seen n times loses its form with probability unknown / (unknown + n), each time it is
    read; the model then must use its ending, its shape and its neighbours, as for the unknown
    words of other texts.
    """
    counts = Counter(
        t.norm_ for d in DocBin().from_disk(path).get_docs(spacy.blank("en").vocab) for t in d
    )

    def augment(nlp: spacy.Language, example: Example) -> Iterator[Example]:
        if random.random() < lower:
            reference = _in_lower_case(example.reference)
            example = Example(nlp.make_doc(reference.text), reference)
        for token in example.predicted:
            if random.random() < unknown / (unknown + counts[token.norm_]):
                token.norm_ = f"unknown-{random.randrange(5000)}"
        yield example

    return augment


def _in_lower_case(doc: Doc) -> Doc:
    """spaCy's variant would turn missing parts of speech into empty ones, and train on those."""
    tags = [t.pos_ for t in doc] if doc.has_annotation("POS") else None
    named = doc.has_annotation("ENT_IOB")
    ents = [f"{t.ent_iob_}-{t.ent_type_}".rstrip("-") for t in doc] if named else None
    words, spaces = [t.lower_ for t in doc], [bool(t.whitespace_) for t in doc]
    return Doc(doc.vocab, words=words, spaces=spaces, pos=tags, ents=ents)


def ewt_docs(nlp: spacy.Language, path: Path) -> Iterator[Doc]:
    """Documents with parts of speech, split at ends of paragraphs or sentences."""
    for document in read_conllu(path):
        text = document.text
        part = []
        begin = 0
        for start, end, code in zip(*document.layers["pos"]):
            tag = POS.labels[code - 1]
            part.append((int(start), int(end), tag))
            ends = tag == "PUNCT" and text[end : end + 1] in (" ", "\n", "")
            if ends and end - begin > CHARACTERS:
                yield _tagged(nlp, text, part)
                part = []
                begin = end
        if part:
            yield _tagged(nlp, text, part)


def _tagged(nlp: spacy.Language, text: str, rows: list[tuple[int, int, str]]) -> Doc:
    words, tags, spaces = [], [], []
    for i, (start, end, tag) in enumerate(rows):
        gap = text[end : rows[i + 1][0]] if i + 1 < len(rows) else ""
        words.append(text[start:end])
        tags.append(tag)
        spaces.append(gap == " ")
        if gap.strip(" ") or len(gap) > 1:  # a line break is a token of its own, without a tag
            words.append(gap)
            tags.append("")
            spaces.append(False)
    return Doc(nlp.vocab, words=words, spaces=spaces, pos=tags)


def wnut_docs(nlp: spacy.Language, path: Path) -> Iterator[Doc]:
    for row in read_records(path):
        text, offsets = join_tokens(row["tokens"])
        yield _named(nlp, text, offsets, row["tags"])


def uner_docs(nlp: spacy.Language, path: Path) -> Iterator[Doc]:
    texts = re.findall(r"^# text = (.*)$", read_text(path), re.MULTILINE)
    for text, row in zip(texts, read_records(path), strict=True):
        offsets, end = [], 0
        for token in row["tokens"]:
            start = text.index(token, end)
            end = start + len(token)
            offsets.append((start, end))
        yield _named(nlp, text, offsets, row["tags"])


def _named(nlp: spacy.Language, text: str, offsets: list[tuple[int, int]], tags: list[str]) -> Doc:
    doc = nlp.make_doc(text)
    spans = []
    for first, behind, kind in sorted(entities(tags)):
        start, end = offsets[first][0], offsets[behind - 1][1]
        span = doc.char_span(start, end, NAMES[kind], alignment_mode="expand")
        if span is not None:
            spans.append(span)
    doc.set_ents(spacy.util.filter_spans(spans), default="outside")
    return doc


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
