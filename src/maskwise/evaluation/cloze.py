"""Does the model know facts? Cloze questions in the manner of LAMA (Petroni et al. 2019), for any
vocabulary.

A fact is a sentence with one [MASK] and the answer that stood there. Its sentence is the relation's
template with the subject put in, where a template is known; else ``masked_sentences``, or the first
of its ``evidences``. Templates are JSON lines ``{"relation", "template": "[X] was born in [Y]
."}``, looked for in ``relations.jsonl`` beside the file.

Each answer is ranked twice:

- among **the answers of its relation** (hits@1, hits@10, mrr), 20 at a time unless the set says
  more: all facts, also those whose answer is several tokens. A candidate of k pieces is put as k
      [MASK]s and scored by
  the chain rule from left to right, log p(piece j | the sentence, pieces before j, masks behind):
  the pseudo-log-likelihood of the answer;
- among **the whole vocabulary** (open-hits@1, …), as LAMA does: facts whose answer is one token.
  These are other facts for another vocabulary, so only models with the same tokenizer can be
  compared.

Other right answers to the same question do not count against a model. Ties share the middle rank.
``chance`` is what the ranking by frequency gets, which says the relation's commonest answer
whatever is questions.

Cost: candidates that begin alike share rows, and equal rows are run once; still, a relation takes a
    forward
pass per fact and different beginning of a candidate, some two per candidate.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.evaluation.scoring import TOKENS, Measurement, predictions
from maskwise.evaluation.sets import (
    LONG,
    TIE,
    UNKNOWN,
    TestSet,
    evenly,
    name_of,
    read_set,
    require_scored,
)
from maskwise.families import most_tokens
from maskwise.masking.vocabulary import Vocabulary
from maskwise.text.labelled import Record, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MASK = "[MASK]"
TEMPLATES = "relations.jsonl"
ITEMS, CANDIDATES = 200, 20
"""Facts of a file that are used, and answers that each is ranked among, if the spec does not say.
"""
NOT_ONE_MASK = "not exactly one [MASK]"
ONE_ANSWER = "the only answer of its relation"

Pieces = tuple[int, ...]


class Fact(NamedTuple):
    """A question: ``text`` has one [MASK], for which ``answer`` stood; ``others`` are right too, by
    the whole file.
    """

    relation: str
    subject: str
    answer: str
    text: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cloze(TestSet):
    """A cloze set.

    Attributes:
        name: for records.
        facts: N facts. total: how many the file holds.
        skipped: reason → facts left out when the file was read.
        candidates: answers that a fact is ranked among, at most: relations with more are cut into
            parts.
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
        """Facts from a file; at most ``items`` of them, evenly spread.

        Args:
            path: JSON lines with ``obj_label``, and ``masked_sentences``, ``evidences``, or
                ``sub_label`` and a relation (``predicate_id`` or ``relation``) that has a template.
            items: how many to use; None: all.
            candidates: answers of its relation that a fact is ranked among, at most.
            templates: a file of templates; else ``relations.jsonl`` beside ``path``, if there is
                one.

        Raises:
            MaskwiseError: an empty or unreadable file, a missing column, or a fact that is no text.
        """
        # with two, a part of an odd number would hold one, which is always right
        if candidates < 3:
            raise MaskwiseError("a fact is ranked among candidates", got=candidates, allowed="≥ 3")
        records, known = read_set(path), _templates(path, templates)
        skipped: Counter[str] = Counter()
        facts = []
        asked, right = (
            {id(record) for record in evenly(records, items)},
            defaultdict[str, set[str]](set),
        )
        for number, record in enumerate(records, start=1):
            wanted = id(record) in asked
            try:
                fact = _fact(record, known, name_of(path), f"row {number} of {path}")
            except MaskwiseError:
                if wanted:
                    raise
                continue
            right[fact.text].add(fact.answer)
            if not wanted:
                continue
            if fact.text.count(MASK) == 1:
                facts.append(fact)
            else:
                skipped[NOT_ONE_MASK] += 1
        facts = [
            fact._replace(others=tuple(sorted(right[fact.text] - {fact.answer}))) for fact in facts
        ]
        require_scored(len(facts), skipped, f"facts {name_of(path)!r}")
        return cls(name_of(path), tuple(facts), len(records), skipped, candidates)

    def texts(self) -> list[tuple[str, ...]]:
        return [(fact.text.replace(MASK, fact.answer),) for fact in self.facts]

    def score(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> list[Measurement]:
        """A record for each metric.

        A fact that cannot be scored (its answer has an unknown token, its sentence is longer than
        the model, its relation has no other answer) is left out of ``items`` and counted in
        ``skipped``.

        Raises:
            MaskwiseError: no fact is left.
        """
        vocabulary, skipped = Vocabulary.of(tokenizer), Counter(self.skipped)
        ranks: list[Tensor] = []
        chance: list[Tensor] = []
        open_ranks: list[Tensor] = []
        open_chance: list[Tensor] = []
        for relation in sorted({fact.relation for fact in self.facts}):
            facts = [fact for fact in self.facts if fact.relation == relation]
            for part in questions_of(
                facts, self.candidates, tokenizer, most_tokens(model.config), skipped
            ):
                scores = candidate_scores(model, part, mask=tokenizer.mask_token_id)
                # Candidates come in the order of their frequency: falling scores, of which no two
                # are equal.
                falling = -torch.arange(len(part.pieces), dtype=torch.float64).expand_as(scores)
                by_frequency = ranks_of(falling, part.gold, part.right)
                ranks.append(ranks_of(scores, part.gold, part.right))
                chance.append(by_frequency)
                single = (part.pieces >= 0).sum(1)[part.gold] == 1
                if single.any():
                    open_ranks.append(_open_ranks(model, part, single, vocabulary))
                    open_chance.append(by_frequency[single])
        require_scored(len(ranks), skipped, f"facts {self.name!r}")
        records = self._records("", torch.cat(ranks), torch.cat(chance), skipped)
        if open_ranks:
            records += self._records(
                "open-", torch.cat(open_ranks), torch.cat(open_chance), skipped
            )
        return records

    def _records(
        self, prefix: str, rank: Tensor, chance: Tensor, skipped: Mapping[str, int]
    ) -> list[Measurement]:
        metrics = {
            "hits@1": lambda rank: (rank <= 1).double().mean(),
            "hits@10": lambda rank: (rank <= 10).double().mean(),
            "mrr": lambda rank: rank.reciprocal().mean(),
        }
        return [
            {
                "kind": "evaluation",
                "name": self.name,
                "metric": prefix + metric,
                "value": float(of(rank)),
                "items": len(rank),
                "chance": float(of(chance)),
                "higher_is_better": True,
                "of": self.total,
                "skipped": dict(skipped),
            }
            for metric, of in metrics.items()
        ]


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
    filled = (
        template.replace("[X]", str(subject)).replace("[Y]", MASK) if template and subject else ""
    )
    text = filled or _sentence(record)
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


@dataclass(frozen=True, eq=False)
class Questions:
    """The facts of one relation as tensors: N facts, C candidates of at most K pieces.

    Attributes:
        ids: (N, L) sentences with one mask, padded on the right. size: (N,) their tokens.
        place: (N,) where the mask is.
        pieces: (C, K) the candidates, −1 behind their end; in the order of their frequency.
        gold: (N,) the right candidate.
        right: (N, C) bool, candidates that are right too (of the same subject).
    """

    ids: Tensor
    size: Tensor
    place: Tensor
    pieces: Tensor
    gold: Tensor
    right: Tensor


def questions_of(
    facts: list[Fact],
    candidates: int,
    tokenizer: PreTrainedTokenizerBase,
    room: int,
    skipped: Counter[str],
) -> Iterator[Questions]:
    """The facts of a relation that can be scored, in parts of at most ``candidates`` answers."""
    sides = [fact.text.partition(MASK)[::2] for fact in facts]
    spaced = [left.endswith(" ") for left, _ in sides]
    # Without the space before the mask: where spaces are parts of tokens, the answer brings its
    # own.
    texts = [left.removesuffix(" ") + tokenizer.mask_token + right for left, right in sides]
    rows = tokenizer(texts, verbose=False)["input_ids"]
    answers = _pieces([fact.answer for fact in facts], spaced, tokenizer)
    longest = max(map(len, answers))
    unusable = {tokenizer.unk_token_id, *tokenizer.all_special_ids}
    kept = []
    for fact, row, answer in zip(facts, rows, answers):
        if not answer or not unusable.isdisjoint(answer) or row.count(tokenizer.mask_token_id) != 1:
            skipped[UNKNOWN] += 1
        elif len(row) + longest - 1 > room:
            skipped[LONG] += 1
        else:
            kept.append((fact, row, answer))
    counts = Counter(answer for _, _, answer in kept)
    if len(counts) < 2:
        skipped[ONE_ANSWER] += len(kept)
        return
    order = sorted(counts, key=lambda answer: (-counts[answer], answer))
    parts = math.ceil(len(order) / candidates)
    for part in range(parts):  # every part gets frequent and rare ones
        answers_here = order[part::parts]
        yield _questions(
            [item for item in kept if item[2] in answers_here], answers_here, tokenizer
        )


def _questions(
    kept: list[tuple[Fact, list[int], Pieces]],
    answers: list[Pieces],
    tokenizer: PreTrainedTokenizerBase,
) -> Questions:
    number = {answer: place for place, answer in enumerate(answers)}
    gold = torch.tensor([number[answer] for _, _, answer in kept])
    texts: dict[str, int] = {}
    question = torch.tensor([texts.setdefault(fact.text, len(texts)) for fact, _, _ in kept])
    answered = torch.zeros(len(texts), len(answers), dtype=torch.bool)
    answered[question, gold] = True
    named = {fact.answer: number[answer] for fact, _, answer in kept}
    for fact, _, _ in kept:
        answered[texts[fact.text], [named[other] for other in fact.others if other in named]] = True
    ids = _padded([row for _, row, _ in kept], tokenizer.pad_token_id)
    place = (ids == tokenizer.mask_token_id).long().argmax(1)
    size = torch.tensor([len(row) for _, row, _ in kept])
    return Questions(
        ids,
        size,
        place,
        _padded([list(answer) for answer in answers], -1),
        gold,
        answered[question],
    )


def _pieces(
    answers: list[str], spaced: list[bool], tokenizer: PreTrainedTokenizerBase
) -> list[Pieces]:
    """The tokens of answers as they stand in a sentence: byte-level tokens hold the space before a
    word.
    """
    texts = [f"x {answer}" if space else answer for answer, space in zip(answers, spaced)]
    encodings = tokenizer(texts, add_special_tokens=False).encodings
    return [
        tuple(
            token for token, (_, end) in zip(encoding.ids, encoding.offsets) if not space or end > 2
        )
        for encoding, space in zip(encodings, spaced)
    ]


def _padded(rows: list[list[int]], fill: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def candidate_scores(
    model: PreTrainedModel, questions: Questions, *, mask: int, tokens: int = TOKENS
) -> Tensor:
    """(N, C) float64: log p of every candidate in every sentence, left to right; equal rows are run
    once.
    """
    candidate_E, piece_E = (questions.pieces >= 0).nonzero().unbind(1)
    whole = questions.pieces[candidate_E]
    step = torch.arange(questions.pieces.shape[1])
    shown = torch.where((step >= piece_E.unsqueeze(1)) & (whole >= 0), mask, whole)
    pattern_PK, of_E = shown.unique(dim=0, return_inverse=True)
    truth_E = questions.pieces[candidate_E, piece_E]
    extra_P = (pattern_PK >= 0).sum(1) - 1
    # As many pieces as are shown: the next one is to be predicted.
    first_P = ((pattern_PK >= 0) & (pattern_PK != mask)).sum(1)
    width = int(questions.size.max() + extra_P.max())
    scores = []
    for part in torch.arange(len(questions.ids)).split(max(1, tokens // (width * len(pattern_PK)))):
        rows, real = _filled(questions, part, pattern_PK, extra_P, width)
        column = (questions.place[part].unsqueeze(1) + first_P).flatten()
        log_p = predictions(model, rows, real, torch.arange(len(rows)), column)
        by_piece = log_p.view(len(part), len(pattern_PK), -1)[
            :, of_E.to(log_p.device), truth_E.to(log_p.device)
        ]
        summed = torch.zeros(len(part), len(questions.pieces), dtype=torch.float64)
        scores.append(summed.index_add_(1, candidate_E, by_piece.cpu().double()))
    return torch.cat(scores)


def _filled(
    questions: Questions, part: Tensor, pattern_PK: Tensor, extra_P: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Sentences (n · P, width) with every pattern in the place of the mask, and where they are not
    padding.
    """
    place = torch.arange(width)
    # (n, 1, W): columns behind the first mask
    behind = place - questions.place[part].view(-1, 1, 1)
    extra = extra_P.view(1, -1, 1)
    source = torch.where(behind < 0, place, place - extra).clamp(0, questions.ids.shape[1] - 1)
    shape = (len(part), len(pattern_PK), -1)
    sentence = questions.ids[part].unsqueeze(1).expand(shape).gather(2, source)
    inside = behind.clamp(0, pattern_PK.shape[1] - 1).expand(shape)
    pattern = pattern_PK.unsqueeze(0).expand(shape).gather(2, inside)
    rows = torch.where((behind >= 0) & (behind <= extra), pattern, sentence)
    real = place < questions.size[part].view(-1, 1, 1) + extra
    return rows.flatten(0, 1), real.flatten(0, 1)


def _open_ranks(
    model: PreTrainedModel, questions: Questions, chosen: Tensor, vocabulary: Vocabulary
) -> Tensor:
    """(n,) ranks of one-token answers among all tokens but special ones and [UNK]."""
    real = torch.arange(questions.ids.shape[1]) < questions.size[chosen].unsqueeze(1)
    row = torch.arange(len(real))
    log_p = predictions(model, questions.ids[chosen], real, row, questions.place[chosen])[
        :, : vocabulary.size
    ].cpu()
    log_p = log_p.double().masked_fill(~torch.from_numpy(vocabulary.eligible), -torch.inf)
    single = ((questions.pieces >= 0).sum(1) == 1).nonzero().squeeze(1)
    right = torch.zeros(log_p.shape, dtype=torch.bool)
    right[:, questions.pieces[single, 0]] = questions.right[chosen][:, single]
    return ranks_of(log_p, questions.pieces[questions.gold[chosen], 0], right)


def ranks_of(scores: Tensor, gold: Tensor, right: Tensor) -> Tensor:
    """(N,) float64: the rank of ``gold`` (N,) in scores (N, C), from 1, among itself and what is
    not ``right``.
    """
    own = scores.gather(1, gold.unsqueeze(1))
    tied = (scores - own).abs() < TIE
    better = ((scores > own) & ~tied & ~right).sum(1)
    return 1 + better + (tied & ~right).sum(1).double() / 2
