"""Cloze facts out of files in LAMA's format (Petroni et al. 2019).

A fact is a sentence with one [MASK] and the answer that stood there. Its sentence is the relation's template
with the subject put in, where a template is known; else ``masked_sentences``, or the first of its
``evidences``. Templates are JSON lines ``{"relation", "template": "[X] was born in [Y] ."}``, looked for in
``relations.jsonl`` beside the file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from maskwise.errors import MaskwiseError
from maskwise.evaluation.sources import name_of, read_set, require_scored, some
from maskwise.tasks.readers import Record, read_records

MASK = "[MASK]"
TEMPLATES = "relations.jsonl"
ITEMS, CANDIDATES = 200, 20
"""Facts of a file that are used, and answers that each is ranked among, if the spec does not say."""
NOT_ONE_MASK = "not exactly one [MASK]"


class Fact(NamedTuple):
    """What is asked: ``text`` has one [MASK], for which ``answer`` stood."""

    relation: str
    subject: str
    answer: str
    text: str


@dataclass(frozen=True)
class Facts:
    """A cloze set.

    Attributes:
        name: for records.
        facts: N facts. total: how many the file holds.
        skipped: reason → facts left out when the file was read.
        candidates: answers that a fact is ranked among, at most: relations with more are cut into parts.
    """

    name: str
    facts: tuple[Fact, ...]
    total: int
    skipped: Mapping[str, int]
    candidates: int = CANDIDATES

    def texts(self) -> list[str]:
        """For the overlap check: the sentences with their answers."""
        return [fact.text.replace(MASK, fact.answer) for fact in self.facts]

    def content(self) -> str:
        """A hash of all that a score depends on."""
        return hashlib.sha256(json.dumps([self.name, self.facts, self.candidates]).encode()).hexdigest()[:16]


def read_facts(
    path: Path, items: int | None = ITEMS, candidates: int = CANDIDATES, templates: str | None = None
) -> Facts:
    """Facts from a file; at most ``items`` of them, evenly spread.

    Args:
        path: JSON lines with ``obj_label``, and ``masked_sentences``, ``evidences``, or ``sub_label`` and a
            relation (``predicate_id`` or ``relation``) that has a template.
        items: how many to use; None: all.
        candidates: answers of its relation that a fact is ranked among, at most.
        templates: a file of templates; else ``relations.jsonl`` beside ``path``, if there is one.

    Raises:
        MaskwiseError: an empty or unreadable file, a missing column, or a fact that is no text.
    """
    if candidates < 3:  # with two, a part of an odd number would hold one, which is always right
        raise MaskwiseError("a fact is ranked among candidates", got=candidates, allowed="≥ 3")
    records, known = read_set(path), _templates(path, templates)
    skipped: Counter[str] = Counter()
    facts = []
    for number, record in enumerate(some(records, items), start=1):
        fact = _fact(record, known, name_of(path), f"row {number} of {path}")
        if fact.text.count(MASK) == 1:
            facts.append(fact)
        else:
            skipped[NOT_ONE_MASK] += 1
    require_scored(len(facts), skipped, f"facts {name_of(path)!r}")
    return Facts(name_of(path), tuple(facts), len(records), skipped, candidates)


def _templates(path: Path, given: str | None) -> dict[str, str]:
    file = Path(given).expanduser() if given else path.parent / TEMPLATES
    if not file.is_file():
        if given:
            raise MaskwiseError(f"no file of templates {given!r}")
        return {}
    lines = read_records(file)
    strange = next((line for line in lines if not {"relation", "template"} <= line.keys()), None)
    if strange is not None:
        raise MaskwiseError(
            f"{file} holds no templates", got=", ".join(strange), allowed="relation, template"
        )
    return {str(line["relation"]): str(line["template"]) for line in lines}


def _fact(record: Record, templates: Mapping[str, str], name: str, where: str) -> Fact:
    answer, subject = record.get("obj_label"), record.get("sub_label", "")
    if not isinstance(answer, str) or not answer.strip():
        got = repr(answer) if "obj_label" in record else ", ".join(map(str, record))
        raise MaskwiseError(f"{where} has no answer", got=got, allowed="a text under obj_label")
    relation = str(record.get("predicate_id", record.get("relation", name)))
    template = templates.get(relation)
    asked = template.replace("[X]", str(subject)).replace("[Y]", MASK) if template and subject else ""
    text = asked or _sentence(record)
    if not text:
        do = "or a template of its relation in relations.jsonl beside the file"
        raise MaskwiseError(
            f"{where} asks nothing",
            got=", ".join(map(str, record)),
            allowed="masked_sentences, evidences",
            do=do,
        )
    return Fact(relation, str(subject), answer.strip(), text)


def _sentence(record: Record) -> str:
    """The masked sentences joined, as LAMA does; of evidences the first."""
    sentences: Any = record.get("masked_sentences")
    if isinstance(sentences, list):
        return " ".join(map(str, sentences))
    evidences = record.get("evidences")
    if isinstance(evidences, list) and evidences and isinstance(evidences[0], dict):
        return str(evidences[0].get("masked_sentence", ""))
    return sentences if isinstance(sentences, str) else ""
