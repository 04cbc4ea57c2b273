"""A policy that learns from labels, and how well it finds what is labelled.

The loss is the cross-entropy of the places where labelled spans begin and end, over the words of a
window; of a head for tokens, that of the labelled tokens. The loop is that of all trainings: a
labelled text is a row, the policy an objective.

A policy is evaluated on texts that it has not learned from. For answers: does its best span equal
the answer to an unseen question (exact match, F1), and how many answers are among its best spans,
as many as there are salient spans in the text? For every kind of label: the share of its weight on
labelled words, next to their share of all words.

Source: Ye et al. 2021 (arXiv 2104.08840), section 3; the metrics of Rajpurkar et al. 2016.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from maskwise.annotate.registry import annotator
from maskwise.errors import MaskwiseError
from maskwise.keys import Array
from maskwise.learning.annotator import Windows, flat_of, read_windows, score_words
from maskwise.learning.labels import Marked
from maskwise.learning.scorer import COLUMNS, PolicyModel
from maskwise.masking.batch import IGNORE
from maskwise.objectives import Objective, Outcome
from maskwise.tasks.metrics import normalise, same_words, shared_words
from maskwise.tasks.tensors import TaskSource, Trainable
from maskwise.training import TrainingSettings, train
from maskwise.training.loop import Training

Spans: TypeAlias = list[tuple[int, int]]
CUT, LONG = "labels that a window cuts", "labels longer than the longest span"


class FindSpans(Objective):
    """Cross-entropy of the first and the last token of labelled spans, over the words of a window.

    Formula: −Σ n log softmax(logits), n the number of labelled spans that begin (end) at a token.
    Inputs: ``input_ids``, ``attention_mask`` and ``inside`` (B, L), and ``labels`` (B, L, C): n,
        −100 for none; C is 1 for a head for tokens and 2 for one for spans.
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
    """N windows of texts with at least one label each: what a policy is trained on.

    Attributes:
        targets: (T, C) how many labelled spans begin (end) at each token; of a head for tokens,
            whether one covers it.
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
        windows = read_windows([each.text for each in marked], policy)
        if windows is None:
            raise MaskwiseError("there is no text to learn a policy from")
        pieces = windows.pieces
        counts = Counter[str]()
        spans = policy.config.head == "spans"
        targets = np.zeros((int(pieces.offsets[-1]), COLUMNS[policy.config.head]), np.float32)
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
        labelled = np.flatnonzero(np.add.reduceat(targets.sum(1), pieces.offsets[:-1]) > 0)
        if not len(labelled):
            what = "not one label is left in the windows of the policy"
            raise MaskwiseError(what, do="raise learning.policy.length")
        flat, place, token = flat_of(pieces, labelled)
        # Special tokens are in no word: they keep targets of 0.
        targets_T = torch.zeros(len(flat.ids), targets.shape[1])
        targets_T[place] = torch.from_numpy(targets[token])
        inside_T = torch.zeros(len(flat.ids), dtype=torch.bool)
        inside_T[place] = torch.from_numpy(pieces.columns["word_ids"][token] >= 0)
        return cls(flat, targets_T, inside_T, counts)


def _labelled_words(windows: Windows, marked: Sequence[Marked]) -> Array:
    """(S, 2) the first and the last word of every labelled span."""
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


def learn_supervised(
    policy: PolicyModel,
    train_texts: Sequence[Marked],
    *,
    training: TrainingSettings,
    dev_texts: Sequence[Marked] = (),
    folder: Path | None = None,
    quiet: bool = True,
    watch: Callable[[PolicyModel], list[list[float]]] | None = None,
) -> tuple[Training, Counter[str]]:
    """Train a policy, in place, to find what is labelled.

    Args:
        dev_texts: its loss on them is logged every ``training.eval_every`` steps.
        folder: of metrics, and of states to resume from.
        watch: logged with that loss, as ``weights``.

    Returns:
        The figures of the training, and the labels that were left out, by reason.

    Raises:
        MaskwiseError: nothing to learn from; see also ``train``.
    """
    data = LabelledWindows.of(train_texts, policy)
    objective = FindSpans(policy)
    dev = LabelledWindows.of(dev_texts, policy) if any(each.spans for each in dev_texts) else None

    def curve(step: int) -> list[dict[str, object]]:
        if dev is None:
            return []
        line: dict[str, object] = {"masks": "labels of dev", "loss": mean_loss(objective, dev)}
        if watch:
            line["weights"] = watch(policy)
        return [line]

    size = min(training.batch_size, len(data))
    size = size - size % training.accumulate or training.accumulate
    settings = training.model_copy(update={"batch_size": size})
    source = TaskSource(data, settings)
    done = train(
        objective, source, settings, folder=folder, evaluate=curve, title="policy", quiet=quiet
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
        total += float(out.loss)
        targets += float(out.targets)
    return total / max(1.0, targets)


# Evaluation
# -------------------------------------------------------------------------------------------


def judge(policy: PolicyModel, marked: Sequence[Marked], *, salient: bool = True) -> dict[str, Any]:
    """Evaluate a policy on labelled texts that it has not learned from.

    Args:
        salient: also count the salient spans, by the tagger that ships.

    Returns:
        ``texts``, ``questions``; ``weight_on_labels``, the share of its weight on labelled words,
        and ``labelled_words``, their share of all. With questions: ``exact_match`` and ``f1`` of
        the best span; the measures of ``found_among`` for as many spans as the text has salient
        ones, and under ``salient`` for those; ``covered_in_as_many_words``, if they may hold no
        more words than the salient ones.
    """
    texts = [each.text for each in marked]
    questions = sum(len(each.questions) for each in marked)
    given: list[Spans] = []
    if salient and questions:
        for layers in annotator("salient").annotate(texts):
            spans = layers["salient"]
            given.append(list(zip(spans.start.tolist(), spans.end.tolist())))
    counts = [max(1, len(spans)) for spans in given] or [1] * len(texts)

    weight = inside = words = 0.0
    best: list[Spans] = []
    exact: list[float] = []
    f1: list[float] = []
    every = score_words(policy, texts, spans=max(counts, default=1))
    for each, scores, count in zip(marked, every, counts, strict=True):
        labelled = np.zeros(len(scores.start), bool)
        for begin, stop in each.spans:
            labelled |= (scores.start < stop) & (scores.end > begin)
        weight += float(scores.weight[labelled].sum())
        inside += float(labelled.sum())
        words += len(labelled)
        order = np.argsort(-scores.score, kind="stable")[:count]
        best.append([(start, end) for start, end in scores.spans[order].tolist()])
        start, end = best[-1][0] if best[-1] else (0, 0)
        for answers in each.questions:
            exact.append(same_words(answers, each.text[start:end]))
            f1.append(shared_words(answers, each.text[start:end]))
    measures: dict[str, Any] = {
        "texts": len(texts),
        "questions": questions,
        "weight_on_labels": weight / max(words, 1.0),
        "labelled_words": inside / max(words, 1.0),
    }
    if not questions:
        return measures
    measures["exact_match"] = float(np.mean(exact))
    measures["f1"] = float(np.mean(f1))
    measures |= found_among(marked, best)
    if given:
        measures["salient"] = found_among(marked, given)
        shorter = [_as_long(each.text, own, other) for each, own, other in zip(marked, best, given)]
        measures["covered_in_as_many_words"] = found_among(marked, shorter)["covered"]
    return measures


def found_among(marked: Sequence[Marked], spans: Sequence[Spans]) -> dict[str, float]:
    """Which questions have an answer among the spans of their text.

    Returns:
        ``recall``, the share of questions with an answer among the spans; ``covered``, with one
        wholly inside of spans; ``spans`` and ``words`` in them, per text.

    >>> marked = [Marked("Ada met Bo Li.", ((8, 13),), (("Bo Li",),))]
    >>> found_among(marked, [[(0, 3), (8, 13)]])["recall"]
    1.0
    >>> found_among(marked, [[(8, 10)]])["covered"]
    0.0
    """
    hits, covered = list[bool](), list[bool]()
    words = 0
    for each, own in zip(marked, spans, strict=True):
        named = {normalise(each.text[start:end]) for start, end in own}
        shown = np.zeros(len(each.text) + 1, bool)
        for start, end in own:
            shown[start:end] = True
        words += _length(each.text, own)
        found = {each.text[s:e].casefold() for s, e in each.spans if shown[s:e].all()}
        for answers in each.questions:
            hits.append(any(normalise(answer) in named for answer in answers))
            covered.append(any(answer.strip().casefold() in found for answer in answers))
    return {
        "recall": float(np.mean(hits)),
        "covered": float(np.mean(covered)),
        "spans": sum(map(len, spans)) / max(1, len(spans)),
        "words": words / max(1, len(spans)),
    }


def _length(text: str, spans: Spans) -> int:
    """The words in spans."""
    return sum(len(text[start:end].split()) for start, end in spans)


def _as_long(text: str, spans: Spans, others: Spans) -> Spans:
    """The first spans that together hold no more words than the others, without those that do not
    fit.
    """
    left = _length(text, others)
    kept = []
    for span in spans:
        size = _length(text, [span])
        if size <= left:
            kept.append(span)
            left -= size
    return kept
