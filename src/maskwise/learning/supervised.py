"""A policy that learns from labels, and how well it then finds what it should.

The loss is the cross-entropy of the places where labelled spans begin and end, over the words of a window; of a head
for tokens, that of the labelled tokens. The loop is that of all trainings: a labelled text is a row, the policy an
objective.

A policy is judged on texts that it has not learned from. For answers: does its best span equal the answer to a question
that it has not seen (exact match, F1), and how many answers are among its best spans, when it may name as many of each
text as there are salient spans in it? The salient spans are counted beside it. For every kind of label: how much of
its weight lies on labelled words, beside their share of all words.

Source: Ye et al. 2021 (arXiv 2104.08840), section 3; the metrics of Rajpurkar et al. 2016.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from maskwise.annotate.learned import Windows, read_windows, score_words
from maskwise.annotate.registry import annotator
from maskwise.errors import MaskwiseError
from maskwise.keys import Array
from maskwise.learning.labels import Marked
from maskwise.learning.scorer import COLUMNS, PolicyModel
from maskwise.masking.batch import IGNORE
from maskwise.objectives import Objective, Outcome
from maskwise.segments import listed
from maskwise.tasks.metrics import normalise, same_words, shared_words
from maskwise.tasks.tensors import Flat, TaskSource, Trainable
from maskwise.training import TrainingSettings, train
from maskwise.training.loop import Training

CUT, LONG = "labels that a window cuts", "labels longer than the longest span"


class FindSpans(Objective):
    """Cross-entropy of the first and of the last token of every labelled span, over the words of a window.

    Formula: −Σ n log softmax(logits), n the number of labelled spans that begin (end) at a token.
    Inputs: ``input_ids``, ``attention_mask`` and ``inside`` (B, L), and ``labels`` (B, L, C): n, −100 for none; C is 1
    for a head for tokens and 2 for one for spans.
    Requirements: a ``PolicyModel``.
    """

    def __init__(self, policy: PolicyModel):
        super().__init__()
        self.policy = policy

    def forward(self, batch: Mapping[str, Tensor]) -> Outcome:
        logits = self.policy(batch["input_ids"], batch["attention_mask"]).float()
        logits = logits.reshape(batch["labels"].shape)
        chance = logits.masked_fill(~batch["inside"].unsqueeze(-1), -torch.inf).log_softmax(1)
        known = batch["labels"] != IGNORE
        return Outcome(-(chance[known] * batch["labels"][known]).sum(), known.sum())


@dataclass(frozen=True, eq=False)
class LabelledWindows(Trainable):
    """N windows of texts with a label each at least: what a policy is trained on.

    Attributes:
        targets: (T, C) how many labelled spans begin (end) at each token; of a head for tokens, whether one covers it.
        inside: (T,) bool, the tokens of words.
        counts: labels that were left out, by reason.
    """

    targets: Tensor
    inside: Tensor
    counts: Counter[str]

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """The inputs of ``FindSpans``."""
        at, real = self.flat.at(rows)
        targets = torch.where(real.unsqueeze(-1), self.targets[at], 0.0)
        labels = torch.where(targets > 0, targets, float(IGNORE))
        return {**self.flat.batch(rows), "labels": labels, "inside": real & self.inside[at]}

    @classmethod
    def of(cls, marked: Sequence[Marked], policy: PolicyModel) -> Self:
        """The windows of texts that have a label.

        Raises:
            MaskwiseError: not one label is left.
        """
        windows, counts = read_windows([each.text for each in marked], policy), Counter[str]()
        spans = policy.config.head == "spans"
        if windows is None:
            raise MaskwiseError("there is no text to learn a policy from")
        targets = np.zeros((int(windows.pieces.offsets[-1]), COLUMNS[policy.config.head]), np.float32)
        for first, last in _labelled_words(windows, marked):
            if windows.piece[first] != windows.piece[last]:
                counts[CUT] += 1
            elif spans and last - first >= policy.config.longest:
                counts[LONG] += 1
            elif spans:
                targets[windows.open[first], 0] += 1
                targets[windows.close[last], 1] += 1
            else:
                targets[windows.open[first] : windows.close[last] + 1] = 1
        return cls(*_flat(windows, targets), counts)


def _labelled_words(windows: Windows, marked: Sequence[Marked]) -> Array:
    """(S, 2): the first and the last word of every labelled span."""
    edges = np.searchsorted(windows.text, np.arange(len(marked) + 1))
    found = []
    for number, each in enumerate(marked):
        own = slice(edges[number], edges[number + 1])
        if each.spans and own.start < own.stop:
            start, end = np.array(each.spans).T
            first = np.searchsorted(windows.end[own], start, side="right")
            last = np.searchsorted(windows.start[own], end) - 1
            found.append(np.stack([first, last], 1)[last >= first] + own.start)
    return np.concatenate([np.zeros((0, 2), np.int64), *found])


def _flat(windows: Windows, targets_T: Array) -> tuple[Flat, Tensor, Tensor]:
    """The windows that have a label, framed by special tokens, with the targets and the tokens of words."""
    pieces, frame = windows.pieces, windows.pieces.frame
    labelled = np.add.reduceat(targets_T.sum(1), pieces.offsets[:-1]) > 0
    kept = np.flatnonzero(labelled)
    if not len(kept):
        raise MaskwiseError("not one label is left in the windows of the policy", do="raise learning.policy.length")
    size = np.diff(pieces.offsets)[kept]
    lead, trail = int(frame.first >= 0), int(frame.last >= 0)
    starts = np.concatenate(([0], np.cumsum(size + lead + trail)))
    place, token = listed(starts[:-1] + lead, size), listed(pieces.offsets[kept], size)
    ids = np.full(starts[-1], frame.last, np.int64)
    if lead:
        ids[starts[:-1]] = frame.first
    ids[place] = pieces.columns["input_ids"][token]
    targets = np.zeros((starts[-1], targets_T.shape[1]), np.float32)
    targets[place] = targets_T[token]
    inside = np.zeros(starts[-1], bool)
    inside[place] = pieces.columns["word_ids"][token] >= 0
    tensors = [torch.from_numpy(values) for values in (ids, starts, targets, inside)]
    return Flat(tensors[0], torch.zeros_like(tensors[0]), tensors[1], frame.pad), tensors[2], tensors[3]


def learn_supervised(
    policy: PolicyModel, train_texts: Sequence[Marked], *, training: TrainingSettings,
    dev_texts: Sequence[Marked] = (), folder: Path | None = None, quiet: bool = True,
    watch: Callable[[PolicyModel], list[list[float]]] | None = None,
) -> tuple[Training, Counter[str]]:  # fmt: skip
    """Train a policy, in place, to find what is labelled.

    Args:
        dev_texts: on which its loss is logged every ``training.eval_every`` steps.
        folder: of metrics, and of states to go on from.
        watch: what is logged of the policy beside that loss, as ``weights``.

    Returns:
        What the training was, and the labels that were left out, by reason.

    Raises:
        MaskwiseError: nothing to learn from; see also ``train``.
    """
    data = LabelledWindows.of(train_texts, policy)
    objective = FindSpans(policy)
    dev = LabelledWindows.of(dev_texts, policy) if any(each.spans for each in dev_texts) else None

    def curve(step: int) -> list[dict[str, object]]:
        shown = {"weights": watch(policy)} if watch else {}
        return [] if dev is None else [{"masks": "labels of dev", "loss": mean_loss(objective, dev), **shown}]

    size = min(training.batch_size, len(data))
    settings = training.model_copy(update={"batch_size": size - size % training.accumulate or training.accumulate})
    done = train(
        objective,
        TaskSource(data, settings),
        settings,
        folder=folder,
        evaluate=curve,
        title="policy",
        quiet=quiet,
    )
    policy.eval()
    return done, data.counts


@torch.no_grad()
def mean_loss(objective: FindSpans, data: LabelledWindows) -> float:
    """Nats a target over all windows."""
    device = next(objective.parameters()).device
    total = targets = 0.0
    for rows in torch.arange(len(data)).split(64):
        out = objective({name: value.to(device) for name, value in data.batch(rows).items()})
        total, targets = total + float(out.loss), targets + float(out.targets)
    return total / max(1.0, targets)


# How good a policy is -----------------------------------------------------------------------------------------------


def judge(policy: PolicyModel, marked: Sequence[Marked], *, salient: bool = True) -> dict[str, Any]:
    """What a policy finds of what is labelled, in texts that it has not learned from.

    Args:
        salient: also count the salient spans, by the tagger that ships.

    Returns:
        ``texts``, ``questions``; ``weight_on_labels``, the share of its weight on labelled words, beside
        ``labelled_words``, their share of all. With questions: ``exact_match`` and ``f1`` of the best span; ``recall``,
        the share of questions of which an answer is among as many spans as the text has salient ones, ``covered``, the
        share of which one lies wholly in such spans, ``spans`` how many these are a text and ``words`` how many words
        they hold; ``covered_in_as_many_words``, where they may hold no more words than the salient ones; and the same
        of the salient spans under ``salient``.
    """
    texts = [each.text for each in marked]
    counts: list[int] | None = None
    given: list[list[tuple[int, int]]] = []
    if salient and any(each.questions for each in marked):
        found = [layers["salient"] for layers in annotator("salient").annotate(texts)]
        given = [list(zip(spans.start.tolist(), spans.end.tolist())) for spans in found]
        counts = [max(1, len(spans)) for spans in given]
    scores = score_words(policy, texts, spans=max(counts or [1]))
    weight = inside = words = 0.0
    best: list[list[tuple[int, int]]] = []
    for number, each in enumerate(marked):
        own, spans = scores.words(number), scores.best(number)
        start, end = scores.start[own], scores.end[own]
        labelled = np.zeros(len(start), bool)
        for begin, stop in each.spans:
            labelled |= (start < stop) & (end > begin)
        weight += float(scores.weight[own][labelled].sum())
        inside, words = inside + float(labelled.sum()), words + len(start)
        order = np.argsort(-scores.score[spans], kind="stable")[: counts[number] if counts else 1] + spans.start
        places = scores.start[scores.first[order]], scores.end[scores.last[order]]
        best.append(list(zip(places[0].tolist(), places[1].tolist())))
    measures: dict[str, Any] = {
        "texts": len(texts), "questions": sum(len(each.questions) for each in marked),
        "weight_on_labels": weight / max(words, 1.0), "labelled_words": inside / max(words, 1.0),
    }  # fmt: skip
    if not measures["questions"]:
        return measures
    first = [each.text[slice(*spans[0])] if spans else "" for each, spans in zip(marked, best)]
    items = [(answers, answer) for each, answer in zip(marked, first) for answers in each.questions]
    measures["exact_match"] = float(np.mean([same_words(answers, answer) for answers, answer in items]))
    measures["f1"] = float(np.mean([shared_words(answers, answer) for answers, answer in items]))
    measures |= found_among(marked, best)
    if counts:
        measures["salient"] = found_among(marked, given)
        rooms = [sum(len(each.text[a:b].split()) for a, b in own) for each, own in zip(marked, given)]
        measures["covered_in_as_many_words"] = found_among(
            marked, [_within(each.text, own, room) for each, own, room in zip(marked, best, rooms)]
        )["covered"]
    return measures


def found_among(marked: Sequence[Marked], spans: Sequence[Sequence[tuple[int, int]]]) -> dict[str, float]:
    """Which questions have an answer among the spans of their text; see ``judge``.

    >>> marked = [Marked("Ada met Bo Li.", ((8, 13),), (("Bo Li",),))]
    >>> found_among(marked, [[(0, 3), (8, 13)]])["recall"], found_among(marked, [[(8, 10)]])["covered"]
    (1.0, 0.0)
    """
    hits, covered, words = [], [], 0
    for each, own in zip(marked, spans, strict=True):
        said = {normalise(each.text[start:end]) for start, end in own}
        shown = np.zeros(len(each.text) + 1, bool)
        for start, end in own:
            shown[start:end] = True
            words += len(each.text[start:end].split())
        for answers in each.questions:
            hits.append(bool(said & {normalise(answer) for answer in answers}))
            folded = {answer.strip().casefold() for answer in answers}
            lowered = [(s, e) for s, e in each.spans if each.text[s:e].casefold() in folded]
            covered.append(any(shown[s:e].all() for s, e in lowered))
    return {
        "recall": float(np.mean(hits)), "covered": float(np.mean(covered)),
        "spans": sum(map(len, spans)) / max(1, len(spans)), "words": words / max(1, len(spans)),
    }  # fmt: skip


def _within(text: str, spans: Sequence[tuple[int, int]], words: int) -> list[tuple[int, int]]:
    """The first spans that hold so many words together, at most; one that does not fit is left out."""
    kept = []
    for start, end in spans:
        size = len(text[start:end].split())
        if size <= words:
            kept.append((start, end))
            words -= size
    return kept
