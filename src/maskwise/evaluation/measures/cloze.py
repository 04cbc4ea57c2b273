"""Cloze questions about facts as in LAMA (Petroni et al. 2019), for any vocabulary.

A fact has a relation (such as "born in"), a subject, an answer, and a sentence with one [MASK]. If
the relation has a template, the sentence is the template with the subject inserted. Otherwise, it
is the record's ``masked_sentences``, or the first of its ``evidences``. Templates are JSON lines
``{"relation", "template": "[X] was born in [Y] ."}`` in ``relations.jsonl`` next to the file.

The answer is ranked in two ways:

- Among **the answers of the relation** (hits@1, hits@10, mrr). If there are many, they are split
  into groups of, by default, up to 20. For a candidate of k tokens, the sentence has k [MASK]s. Its
  score is log p by the chain rule from left to right: when a token is predicted, the earlier tokens
  of the candidate are visible, and the later tokens are masked.
- Among **the whole vocabulary** (open-hits@1, …), as in LAMA, if the answer is a single token. Only
  models with the same tokenizer can be compared, because others have different single tokens.

Other correct answers to the same question are removed from the ranking. Tied answers share their
mean rank. ``chance`` is the score if answers are ranked by frequency, without the question.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from maskwise.base.errors import MaskwiseError
from maskwise.base.specs import user_path
from maskwise.evaluation.measure import Measure
from maskwise.evaluation.scoring import TOKENS, predictions
from maskwise.evaluation.sets import (
    LONG,
    TIE,
    UNKNOWN,
    evenly,
    name_of_set,
    read_set,
    require_scored,
)
from maskwise.masking.vocabulary import Vocabulary
from maskwise.models.families import most_tokens
from maskwise.results.measurements import Measurement
from maskwise.text.source import read_records
from maskwise.text.tables import FieldValues
from maskwise.training.data import by_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MASK = "[MASK]"
TEMPLATES = "relations.jsonl"
# Defaults: the number of facts from a file, and the number of answers in a ranking.
ITEMS, CANDIDATES = 200, 20
NOT_ONE_MASK = "not exactly one [MASK]"
ONE_ANSWER = "the only answer of its relation"
WRITTEN = "a special token in the sentence"

Pieces = tuple[int, ...]
# A position: (the tokens of a row, a column in the row).
Place = tuple[Pieces, int]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Fact(NamedTuple):
    """A question: ``text`` has a [MASK] for ``answer``; ``others`` are further correct answers."""

    relation: str
    subject: str
    answer: str
    text: str
    others: tuple[str, ...] = ()

    @property
    def rights(self) -> tuple[str, ...]:
        """All correct answers."""
        return (self.answer, *self.others)


@dataclass(frozen=True)
class Cloze(Measure):
    """A cloze set.

    Attributes:
        name: the name in records.
        facts: the questions.
        total: the number of facts in the file.
        skipped: the number of facts skipped during reading, keyed by reason.
        candidates: the maximum number of answers in a ranking.
    """

    name: str
    facts: tuple[Fact, ...]
    total: int
    skipped: Mapping[str, int]
    candidates: int = CANDIDATES

    @classmethod
    def read(
        cls,
        path: Path,
        items: int | None = ITEMS,
        candidates: int = CANDIDATES,
        templates: str | None = None,
    ) -> Cloze:
        """Read at most ``items`` evenly spaced facts from a file.

        Args:
            path: JSON lines with ``obj_label``, and ``masked_sentences``, ``evidences``, or
                ``sub_label`` and a relation (``predicate_id`` or ``relation``) with a template.
            items: the number of facts, or None for all facts.
            candidates: the maximum number of answers in a ranking.
            templates: a file of templates. The default is ``relations.jsonl`` next to ``path``, if
                this file exists.

        Raises:
            MaskwiseError: the file cannot be read, is empty, lacks a column, or has an empty text.
        """
        # With two candidates, three answers would be split into 2 + 1. One answer is always first.
        if candidates < 3:
            raise MaskwiseError("too few candidates in a cloze set", got=candidates, allowed="≥ 3")
        name = name_of_set(path)
        known = _templates(path, templates)
        facts = []
        # A fact that is not sampled may have a further correct answer to a sampled question.
        right: dict[str, set[str]] = {}
        for number, record in enumerate(read_set(path), start=1):
            fact = _fact(record, known, name, f"row {number} of {path}")
            facts.append(fact)
            right.setdefault(fact.text, set()).add(fact.answer)
        asked = []
        skipped = Counter[str]()
        for fact in evenly(facts, items):
            if fact.text.count(MASK) == 1:
                others = right[fact.text] - {fact.answer}
                asked.append(fact._replace(others=tuple(sorted(others))))
            else:
                skipped[NOT_ONE_MASK] += 1
        require_scored(len(asked), skipped, f"facts {name!r}")
        return cls(name, tuple(asked), len(facts), skipped, candidates)

    def texts(self) -> list[tuple[str, ...]]:
        return [(fact.text.replace(MASK, fact.answer),) for fact in self.facts]

    def part(self, count: int) -> Cloze:
        return replace(self, facts=(*evenly([*self.facts], count),))

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        folder: Path | None = None,
    ) -> list[Measurement]:
        """Score a model, and return one row for each metric.

        A fact is skipped if its answer has an unknown token, its sentence is too long, or its
        relation has no other answer.

        Raises:
            MaskwiseError: no fact can be scored.
        """
        vocabulary = Vocabulary.of(tokenizer)
        skipped = Counter(self.skipped)
        ranks = []
        chance = []
        ranks_open: list[float] = []
        chance_open = []
        room = most_tokens(model.config)
        by_relation: dict[str, list[Fact]] = {}
        for fact in self.facts:
            by_relation.setdefault(fact.relation, []).append(fact)
        for _, facts in sorted(by_relation.items()):
            for part in questions_of(facts, self.candidates, tokenizer, room, skipped):
                scores, ranks_of_part = candidate_scores(model, part, vocabulary)
                ranks_open += ranks_of_part
                for question, row in zip(part, scores):
                    ranks.append(rank_of(row, question.gold, question.right))
                    # Candidates are sorted by frequency, so these scores rank them by frequency.
                    falling = -np.arange(float(len(row)))
                    chance.append(rank_of(falling, question.gold, question.right))
                    if len(question.pieces) == 1:
                        chance_open.append(question.frequency)
        require_scored(len(ranks), skipped, f"facts {self.name!r}")
        rows = self._rows("", ranks, chance, skipped)
        if ranks_open:
            rows += self._rows("open-", ranks_open, chance_open, skipped)
        return rows

    def _rows(
        self,
        prefix: str,
        ranks: Sequence[float],
        chance: Sequence[float],
        skipped: Mapping[str, int],
    ) -> list[Measurement]:
        both = np.array([ranks, chance])
        metrics = {"hits@1": both <= 1, "hits@10": both <= 10, "mrr": 1 / both}
        rows = []
        for metric, values in metrics.items():
            value, by_frequency = values.mean(1).tolist()
            row = Measurement(
                measure=self.name,
                metric=prefix + metric,
                value=value,
                chance=by_frequency,
                items=len(ranks),
                facts={"of": self.total, "skipped": dict(skipped)},
            )
            rows.append(row)
        return rows


# Reading


def _templates(path: Path, given: str | None) -> dict[str, str]:
    file = user_path(given) if given else path.parent / TEMPLATES
    if not file.is_file():
        if given:
            raise MaskwiseError(f"there is no template file {given!r}")
        return {}
    templates = {}
    for line in read_records(file):
        if not {"relation", "template"} <= line.keys():
            raise MaskwiseError(
                f"{file} is no file of templates", got=", ".join(line), allowed="relation, template"
            )
        templates[str(line["relation"])] = str(line["template"])
    return templates


def _fact(record: FieldValues, templates: Mapping[str, str], name: str, where: str) -> Fact:
    answer = record.get("obj_label")
    subject = _text(record.get("sub_label"))
    columns = ", ".join(map(str, record))
    if not isinstance(answer, str) or not answer.strip():
        raise MaskwiseError(
            f"{where} has no answer",
            got=repr(answer) if "obj_label" in record else columns,
            allowed="a text in the column obj_label",
        )
    relation = _text(record.get("predicate_id")) or _text(record.get("relation")) or name
    text = _sentence(record)
    if subject and templates.get(relation):
        text = templates[relation].replace("[X]", subject).replace("[Y]", MASK)
    if not text:
        raise MaskwiseError(
            f"{where} has no sentence",
            got=columns,
            allowed="the column masked_sentences or evidences",
            do="add a sentence, or a template for its relation in relations.jsonl next to the file",
        )
    return Fact(relation, subject, answer.strip(), text)


def _sentence(record: FieldValues) -> str:
    """Join the masked sentences, as in LAMA, or return the first evidence; "" without either."""
    sentences = record.get("masked_sentences")
    evidences = record.get("evidences")
    if isinstance(sentences, list):
        return " ".join(filter(None, map(_text, sentences)))
    if isinstance(evidences, list) and evidences and isinstance(evidences[0], dict):
        return _text(evidences[0].get("masked_sentence"))
    return sentences if isinstance(sentences, str) else ""


def _text(value: object) -> str:
    return "" if value is None else str(value)


# Scoring


class Question(NamedTuple):
    """A fact as tokens.

    Attributes:
        left, right_side: the tokens before and after the mask.
        candidates: the tokens of each answer in the ranking, by decreasing frequency.
        gold: the index of the fact's answer in ``candidates``.
        right: the indices of all correct answers in ``candidates``.
        tokens: the ids of all correct answers with a single token, including answers that are not
            candidates.
        frequency: the answer's rank, from 1, among all answers of the relation by frequency.
    """

    left: list[int]
    right_side: list[int]
    candidates: Sequence[Pieces]
    gold: int
    right: set[int]
    tokens: set[int]
    frequency: float

    @property
    def pieces(self) -> Pieces:
        """The tokens of the answer."""
        return self.candidates[self.gold]


def questions_of(
    facts: Sequence[Fact],
    candidates: int,
    tokenizer: PreTrainedTokenizerBase,
    room: int,
    skipped: Counter[str],
) -> Iterator[list[Question]]:
    """Tokenise the facts of one relation, and yield the questions of each ranking.

    Args:
        facts: the facts of one relation.
        candidates: the maximum number of answers in a ranking.
        tokenizer: the model's tokenizer.
        room: the model's maximum number of tokens.
        skipped: a counter of skipped facts for each reason; it is updated.
    """
    texts = []
    spaced = []
    for fact in facts:
        left, right_side = fact.text.split(MASK)
        # The space before [MASK] belongs to the answer, because byte-level tokenizers join a word
        # with the space before it.
        texts.append(left.removesuffix(" ") + tokenizer.mask_token + right_side)
        spaced.append(left.endswith(" "))
    rows = tokenizer(texts, verbose=False)["input_ids"]
    words = sorted(set(chain.from_iterable(fact.rights for fact in facts)))
    without_space = _pieces(words, "", tokenizer)
    with_space = _pieces(words, "x ", tokenizer)
    # The tokens of each answer, without and with a leading space. All candidates in a sentence use
    # the same version.
    answers = dict(zip(words, zip(without_space, with_space)))
    longest = max(len(pieces) for fact in facts for pieces in answers[fact.answer])
    # The mask has to be read as a special token, so a special token that a sentence writes is, too.
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    unusable = special | {tokenizer.unk_token_id}
    usual = sum(map(special.__contains__, tokenizer("")["input_ids"])) + 1
    kept = []
    for fact, row, space in zip(facts, rows, spaced):
        answer = answers[fact.answer]
        own = answer[space]
        if not own or not unusable.isdisjoint(own):
            skipped[UNKNOWN] += 1
        elif sum(map(special.__contains__, row)) != usual:
            skipped[WRITTEN] += 1
        elif len(row) + longest - 1 > room:
            skipped[LONG] += 1
        else:
            kept.append((fact, row, space, answer))
    counts = Counter(answer for *_, answer in kept)
    if len(counts) < 2:
        skipped[ONE_ANSWER] += len(kept)
        return
    order = sorted(counts, key=lambda answer: (-counts[answer], answer[1]))
    numbers = dict(zip(order, range(len(order)), strict=True))
    # Part p has the answers p, p + parts, …, so each part has both frequent and rare answers.
    parts = math.ceil(len(order) / candidates)
    shown = [list(zip(*order[part::parts])) for part in range(parts)]
    questions = defaultdict[int, list[Question]](list)
    for fact, row, space, answer in kept:
        at = row.index(tokenizer.mask_token_id)
        number = numbers[answer]
        part = number % parts
        right = {answers[text] for text in fact.rights}
        ranked = [numbers[other] for other in right if other in numbers]
        also = {other // parts for other in ranked if other % parts == part}
        tokens = {other[space][0] for other in right if len(other[space]) == 1}
        # The rank does not count more frequent answers that are correct, too.
        frequency = 1 + number - bisect_left(sorted(ranked), number)
        question = Question(
            row[:at],
            row[at + 1 :],
            shown[part][space],
            number // parts,
            also,
            tokens,
            frequency,
        )
        questions[part].append(question)
    for part in range(parts):
        yield questions[part]


def _pieces(answers: list[str], before: str, tokenizer: PreTrainedTokenizerBase) -> list[Pieces]:
    """Tokenise answers after the text ``before``."""
    texts = [before + answer for answer in answers]
    pieces = []
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
    for encoding in encoded.encodings:
        tokens = []
        for token, (_, end) in zip(encoding.ids, encoding.offsets):
            # The tokens of ``before`` are dropped, except a token for its final space alone.
            if end >= len(before):
                tokens.append(token)
        pieces.append(tuple(tokens))
    return pieces


def candidate_scores(
    model: PreTrainedModel, questions: Sequence[Question], vocabulary: Vocabulary
) -> tuple[Floats, list[float]]:
    """Score the candidates in each sentence, and rank single-token answers in the vocabulary.

    Returns:
        The log p (N, C) of each candidate, and the rank of each single-token answer among all
        tokens except [UNK] and special tokens.
    """
    mask = vocabulary.require_mask()
    scores = np.zeros((len(questions), len(questions[0].candidates)))
    # Candidates with the same first tokens need the same rows. The model reads each row only once.
    asked: dict[Place, list[tuple[int, int, int]]] = {}
    for number, question in enumerate(questions):
        for candidate, pieces in enumerate(question.candidates):
            for step, piece in enumerate(pieces):
                shown = [*pieces[:step], *[mask] * (len(pieces) - step)]
                row = (*question.left, *shown, *question.right_side)
                place = (row, len(question.left) + step)
                asked.setdefault(place, []).append((number, candidate, piece))
    ranks = []
    for place, log_p in _log_p(model, list(asked)):
        words = log_p[: vocabulary.size]
        for number, candidate, piece in asked[place]:
            scores[number, candidate] += log_p[piece]
            question = questions[number]
            if candidate == question.gold and len(question.pieces) == 1:
                ranks.append(rank_of(words, piece, question.tokens, vocabulary.eligible))
    return scores, ranks


def _log_p(model: PreTrainedModel, places: Sequence[Place]) -> Iterator[tuple[Place, Floats]]:
    """Yield each place, and the log p (V,) of all tokens at this place."""
    widths = torch.tensor([len(row) for row, _ in places])
    columns = torch.tensor([column for _, column in places])
    for part in by_width(widths, TOKENS):
        some = [places[number] for number in part.tolist()]
        ids = pad_sequence([torch.tensor(row) for row, _ in some], batch_first=True)
        real = torch.arange(ids.shape[1]) < widths[part].unsqueeze(1)
        log_p = predictions(model, ids, real, torch.arange(len(some)), columns[part])
        yield from zip(some, log_p.double().cpu().numpy())


def rank_of(scores: Floats, gold: int, right: set[int], among: Bools | None = None) -> float:
    """Return the rank, from 1, of candidate ``gold`` by its score (C,).

    It is compared only with wrong candidates (not in ``right``) and, if given, those in ``among``.
    """
    wrong = np.ones(len(scores), dtype=bool) if among is None else among.copy()
    wrong[list(right)] = False
    gain = scores[wrong] - scores[gold]
    better = int((gain >= TIE).sum())
    tied = int((abs(gain) < TIE).sum())
    return 1 + better + tied / 2
