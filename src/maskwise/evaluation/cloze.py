"""Does the model know facts? Cloze questions in the manner of LAMA (Petroni et al. 2019), for any vocabulary.

Each answer is ranked twice:

- among **the answers of its relation** (hits@1, hits@10, mrr), 20 at a time unless the set says more: all
  facts, also those whose answer is several tokens. A candidate of k pieces is put as k [MASK]s and scored by
  the chain rule from left to right, log p(piece j | the sentence, pieces before j, masks behind): the
  pseudo-log-likelihood of the answer;
- among **the whole vocabulary** (open-hits@1, …), as LAMA does: facts whose answer is one token. These are
  other facts for another vocabulary, so only models with the same tokenizer can be compared.

Other right answers to the same question do not count against a model. Ties share the middle rank. ``chance``
is what the ranking by frequency gets, which says the relation's commonest answer whatever is asked.

Cost: candidates that begin alike share rows, and equal rows are run once; still, a relation takes a forward
pass per fact and different beginning of a candidate, some two per candidate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskwise.evaluation.facts import MASK, Fact, Facts
from maskwise.evaluation.scoring import LONG, TIE, TOKENS, UNKNOWN, predictions
from maskwise.evaluation.sources import require_scored
from maskwise.masking.vocabulary import Vocabulary
from maskwise.models import most_tokens

Pieces = tuple[int, ...]
ONE_ANSWER = "the only answer of its relation"


def score_facts(model: Any, tokenizer: Any, facts: Facts) -> list[dict[str, Any]]:
    """A record per metric.

    A fact that cannot be scored (its answer has an unknown token, its sentence is longer than the model, its
    relation has no other answer) is left out of ``items`` and counted in ``skipped``.

    Raises:
        MaskwiseError: if no fact is left.
    """
    vocabulary, skipped = Vocabulary.of(tokenizer), Counter(facts.skipped)
    ranks: list[Tensor] = []
    chance: list[Tensor] = []
    open_ranks: list[Tensor] = []
    open_chance: list[Tensor] = []
    for relation in sorted({fact.relation for fact in facts.facts}):
        mine = [fact for fact in facts.facts if fact.relation == relation]
        for asked in _ask(mine, facts.candidates, tokenizer, most_tokens(model.config), skipped):
            scores = candidate_scores(model, asked, mask=tokenizer.mask_token_id)
            by_frequency = ranks_of(asked.frequencies().expand_as(scores), asked.gold, asked.right)
            ranks.append(ranks_of(scores, asked.gold, asked.right))
            chance.append(by_frequency)
            single = (asked.pieces >= 0).sum(1)[asked.gold] == 1
            if single.any():
                open_ranks.append(_open_ranks(model, asked, single, vocabulary))
                open_chance.append(by_frequency[single])
    require_scored(len(ranks), skipped, f"facts {facts.name!r}")
    shared = {"of": facts.total, "skipped": dict(skipped)}
    lines = _records(facts.name, "", torch.cat(ranks), torch.cat(chance), shared)
    if open_ranks:
        lines += _records(facts.name, "open-", torch.cat(open_ranks), torch.cat(open_chance), shared)
    return lines


def _records(
    name: str, prefix: str, rank: Tensor, chance: Tensor, shared: dict[str, Any]
) -> list[dict[str, Any]]:
    metrics = {
        "hits@1": lambda rank: (rank <= 1).double().mean(),
        "hits@10": lambda rank: (rank <= 10).double().mean(),
        "mrr": lambda rank: rank.reciprocal().mean(),
    }
    return [
        {
            "kind": "evaluation", "name": name, "metric": prefix + metric, "value": float(of(rank)),
            "items": len(rank), "chance": float(of(chance)), "higher_is_better": True, **shared,
        }
        for metric, of in metrics.items()
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Asked:
    """The facts of one relation as tensors: N facts, C candidates of at most K pieces.

    Attributes:
        ids: (N, L) sentences with one mask, padded on the right. size: (N,) their tokens.
        place: (N,) where the mask is.
        pieces: (C, K) the candidates, −1 behind their end; in the order of their frequency.
        gold: (N,) the candidate that is asked for.
        right: (N, C) bool, candidates that are right too (of the same subject).
    """

    ids: Tensor
    size: Tensor
    place: Tensor
    pieces: Tensor
    gold: Tensor
    right: Tensor

    def frequencies(self) -> Tensor:
        """(C,) falling scores: candidates come in the order of their frequency, so no two are equal."""
        return -torch.arange(len(self.pieces), dtype=torch.float64)


def _ask(
    facts: list[Fact], candidates: int, tokenizer: Any, room: int, skipped: Counter[str]
) -> Iterator[Asked]:
    """The facts of a relation that can be scored, in parts of at most ``candidates`` answers."""
    sides = [fact.text.partition(MASK)[::2] for fact in facts]
    spaced = [left.endswith(" ") for left, _ in sides]
    # Without the space before the mask: where spaces are parts of tokens, the answer brings its own.
    rows = tokenizer([left.removesuffix(" ") + tokenizer.mask_token + right for left, right in sides])[
        "input_ids"
    ]
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
        yield _asked([one for one in kept if one[2] in answers_here], answers_here, tokenizer)


def _asked(kept: list[tuple[Fact, list[int], Pieces]], answers: list[Pieces], tokenizer: Any) -> Asked:
    number = {answer: place for place, answer in enumerate(answers)}
    gold = torch.tensor([number[answer] for _, _, answer in kept])
    questions: dict[str, int] = {}
    question = torch.tensor([questions.setdefault(fact.text, len(questions)) for fact, _, _ in kept])
    answered = torch.zeros(len(questions), len(answers), dtype=torch.bool)
    answered[question, gold] = True
    ids = _padded([row for _, row, _ in kept], tokenizer.pad_token_id)
    place = (ids == tokenizer.mask_token_id).long().argmax(1)
    size = torch.tensor([len(row) for _, row, _ in kept])
    return Asked(
        ids, size, place, _padded([list(answer) for answer in answers], -1), gold, answered[question]
    )


def _pieces(answers: list[str], spaced: list[bool], tokenizer: Any) -> list[Pieces]:
    """The tokens of answers as they stand in a sentence: byte-level tokens hold the space before a word."""
    texts = [f"x {answer}" if space else answer for answer, space in zip(answers, spaced)]
    found = tokenizer(texts, add_special_tokens=False).encodings
    return [
        tuple(token for token, (_, end) in zip(encoding.ids, encoding.offsets) if not space or end > 2)
        for encoding, space in zip(found, spaced)
    ]


def _padded(rows: list[list[int]], fill: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def candidate_scores(model: Any, asked: Asked, *, mask: int, tokens: int = TOKENS) -> Tensor:
    """(N, C) float64: log p of every candidate in every sentence, left to right; equal rows are run once."""
    candidate_E, piece_E = (asked.pieces >= 0).nonzero().unbind(1)
    whole = asked.pieces[candidate_E]
    step = torch.arange(asked.pieces.shape[1])
    shown = torch.where((step >= piece_E.unsqueeze(1)) & (whole >= 0), mask, whole)
    pattern_PK, of_E = shown.unique(dim=0, return_inverse=True)
    truth_E = asked.pieces[candidate_E, piece_E]
    extra_P = (pattern_PK >= 0).sum(1) - 1
    first_P = ((pattern_PK >= 0) & (pattern_PK != mask)).sum(
        1
    )  # pieces that are shown: the next is asked for
    width = int(asked.size.max() + extra_P.max())
    scores = []
    for part in torch.arange(len(asked.ids)).split(max(1, tokens // (width * len(pattern_PK)))):
        rows, real = _filled(asked, part, pattern_PK, extra_P, width)
        column = (asked.place[part].unsqueeze(1) + first_P).flatten()
        log_p = predictions(model, rows, real, torch.arange(len(rows)), column)
        found = log_p.view(len(part), len(pattern_PK), -1)[:, of_E.to(log_p.device), truth_E.to(log_p.device)]
        summed = torch.zeros(len(part), len(asked.pieces), dtype=torch.float64)
        scores.append(summed.index_add_(1, candidate_E, found.double().cpu()))
    return torch.cat(scores)


def _filled(
    asked: Asked, part: Tensor, pattern_PK: Tensor, extra_P: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Sentences (n · P, width) with every pattern in the place of the mask, and where they are not padding."""
    place = torch.arange(width)
    behind = place - asked.place[part].view(-1, 1, 1)  # (n, 1, W): columns behind the first mask
    extra = extra_P.view(1, -1, 1)
    source = torch.where(behind < 0, place, place - extra).clamp(0, asked.ids.shape[1] - 1)
    shape = (len(part), len(pattern_PK), -1)
    sentence = asked.ids[part].unsqueeze(1).expand(shape).gather(2, source)
    inside = behind.clamp(0, pattern_PK.shape[1] - 1).expand(shape)
    pattern = pattern_PK.unsqueeze(0).expand(shape).gather(2, inside)
    rows = torch.where((behind >= 0) & (behind <= extra), pattern, sentence)
    real = place < asked.size[part].view(-1, 1, 1) + extra
    return rows.flatten(0, 1), real.flatten(0, 1)


def _open_ranks(model: Any, asked: Asked, chosen: Tensor, vocabulary: Vocabulary) -> Tensor:
    """(n,) ranks of one-token answers among all tokens but special ones and [UNK]."""
    real = torch.arange(asked.ids.shape[1]) < asked.size[chosen].unsqueeze(1)
    row = torch.arange(len(real))
    log_p = predictions(model, asked.ids[chosen], real, row, asked.place[chosen])[:, : vocabulary.size].cpu()
    log_p = log_p.double().masked_fill(~vocabulary.eligible, -torch.inf)
    one = ((asked.pieces >= 0).sum(1) == 1).nonzero().squeeze(1)
    right = torch.zeros(log_p.shape, dtype=torch.bool)
    right[:, asked.pieces[one, 0]] = asked.right[chosen][:, one]
    return ranks_of(log_p, asked.pieces[asked.gold[chosen], 0], right)


def ranks_of(scores: Tensor, gold: Tensor, right: Tensor) -> Tensor:
    """(N,) float64: the rank of ``gold`` (N,) in scores (N, C), from 1, among itself and what is not ``right``."""
    own = scores.gather(1, gold.unsqueeze(1))
    tied = (scores - own).abs() < TIE
    better = ((scores > own) & ~tied & ~right).sum(1)
    return 1 + better + (tied & ~right).sum(1).double() / 2
