"""Train a policy on labelled texts, and evaluate how well it finds the labels.

The loss is the cross-entropy of the first and last tokens of labelled spans over the words of a
window; a head for tokens has one cross-entropy over labelled tokens. ``maskwise.training.train``
runs the loop: a window is a row, the policy an objective.

``judge`` evaluates on held-out texts. Answers: exact match and F1 of the best span, and the recall
of as many best spans as the text has salient spans. All labels: the share of the policy's weight on
labelled words, compared with their share of all words.

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
from maskwise.masking.batch import IGNORE, moved
from maskwise.objectives import Objective, Outcome
from maskwise.tasks.metrics import normalise, same_words, shared_words
from maskwise.tasks.tensors import TaskSource, Trainable
from maskwise.training import TrainingSettings, train
from maskwise.training.loop import Training

Spans: TypeAlias = list[tuple[int, int]]
CUT = "labels that a window cuts"
LONG = "labels longer than the longest span"


class FindSpans(Objective):
    """Cross-entropy of the first and the last token of labelled spans, over the words of a window.

    Formula: −Σ n log softmax(logits), where n labelled spans begin (end) at a token.
    Inputs: ``input_ids``, ``attention_mask`` and ``inside`` (B, L), and ``labels`` (B, L, C): n, or
        −100 for 0. A head for tokens has C = 1, a head for spans C = 2 (begin, end).
    Requirements: a ``PolicyModel``.
    """

    def __init__(self, policy: PolicyModel):
        super().__init__()
        self.policy = policy

    def forward(self, batch: Mapping[str, Tensor]) -> Outcome:
        labels_BLC = batch["labels"]
        logits = self.policy(batch["input_ids"], batch["attention_mask"]).float()
        logits_BLC = logits.reshape(labels_BLC.shape)
        # Special tokens and padding compete for no probability: scores are read at words only.
        outside = ~batch["inside"].unsqueeze(-1)
        log_p_BLC = logits_BLC.masked_fill(outside, -torch.inf).log_softmax(1)
        known = labels_BLC != IGNORE
        loss = -(log_p_BLC[known] * labels_BLC[known]).sum()
        return Outcome(loss, known.sum())


@dataclass(frozen=True, eq=False)
class LabelledWindows(Trainable):
    """N windows of texts with at least one label each, as training data of a policy.

    Attributes:
        targets: (T, C) how many labelled spans begin (end) at each token; for a head for tokens, 1
            where a labelled span covers the token.
        inside: (T,) bool, the tokens of words.
        counts: dropped labels, by reason.
    """

    targets: Tensor
    inside: Tensor
    counts: Counter[str]

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the inputs of ``FindSpans``."""
        at, real = self.flat.at(rows)
        targets = torch.where(real.unsqueeze(-1), self.targets[at], 0.0)
        labels = torch.where(targets > 0, targets, float(IGNORE))
        batch = self.flat.batch(rows)
        batch["labels"] = labels
        batch["inside"] = real & self.inside[at]
        return batch

    @classmethod
    def of(cls, marked: Sequence[Marked], policy: PolicyModel) -> Self:
        """Cut labelled texts into windows, and keep the windows that have a label.

        Raises:
            MaskwiseError: no text, or no label is left.
        """
        windows = read_windows([each.text for each in marked], policy)
        if windows is None:
            raise MaskwiseError("there is no text to learn a policy from")
        pieces = windows.pieces
        config = policy.config
        counts = Counter[str]()
        tokens = int(pieces.offsets[-1])
        targets_TC = np.zeros((tokens, COLUMNS[config.head]), np.float32)
        for first, last in _labelled_words(windows, marked):
            begin = windows.open[first]
            end = windows.close[last]
            if windows.piece[first] != windows.piece[last]:
                counts[CUT] += 1
            elif config.head == "tokens":
                targets_TC[begin : end + 1] = 1
            elif last - first >= config.longest:
                counts[LONG] += 1
            else:
                targets_TC[begin, 0] += 1
                targets_TC[end, 1] += 1
        totals_P = np.add.reduceat(targets_TC.sum(1), pieces.offsets[:-1])
        labelled = np.flatnonzero(totals_P > 0)
        if not len(labelled):
            what = "not one label is left in the windows of the policy"
            raise MaskwiseError(what, do="raise learning.policy.length")
        flat, place, token = flat_of(pieces, labelled)
        # Special tokens belong to no word, so they keep targets of 0.
        targets = torch.zeros(len(flat.ids), targets_TC.shape[1])
        targets[place] = torch.from_numpy(targets_TC[token])
        inside = torch.zeros(len(flat.ids), dtype=torch.bool)
        inside[place] = torch.from_numpy(pieces.columns["word_ids"][token] >= 0)
        return cls(flat, targets, inside, counts)


def _labelled_words(windows: Windows, marked: Sequence[Marked]) -> Array:
    """(S, 2) the first and the last word of every labelled span that touches a word."""
    edges = np.searchsorted(windows.text, np.arange(len(marked) + 1))
    found = [np.zeros((0, 2), np.int64)]
    for number, each in enumerate(marked):
        words = slice(edges[number], edges[number + 1])
        # A text may have no word in a window, because its words are longer than the window.
        if each.spans and words.start < words.stop:
            start, end = np.array(each.spans).T
            first = np.searchsorted(windows.end[words], start, side="right")
            last = np.searchsorted(windows.start[words], end) - 1
            pairs = np.stack([first, last], 1)[last >= first]
            found.append(pairs + words.start)
    return np.concatenate(found)


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
    """Train a policy in place to find the labels of texts.

    Args:
        dev_texts: the loss on them is logged every ``training.eval_every`` steps.
        folder: for metrics and checkpoints to resume from.
        watch: its result is logged with the loss on dev, as ``weights``.

    Returns:
        The figures of the training, and the labels that were dropped, by reason.

    Raises:
        MaskwiseError: nothing to learn from; see also ``train``.
    """
    data = LabelledWindows.of(train_texts, policy)
    objective = FindSpans(policy)
    dev = None
    if any(each.spans for each in dev_texts):
        dev = LabelledWindows.of(dev_texts, policy)

    def curve(step: int) -> list[dict[str, object]]:
        if dev is None:
            return []
        line: dict[str, object] = {"masks": "labels of dev", "loss": mean_loss(objective, dev)}
        if watch:
            line["weights"] = watch(policy)
        return [line]

    # A task may have fewer labelled windows than a batch, and ``accumulate`` must divide the batch.
    size = min(training.batch_size, len(data))
    size = max(size - size % training.accumulate, training.accumulate)
    settings = training.model_copy(update={"batch_size": size})
    source = TaskSource(data, settings)
    done = train(
        objective, source, settings, folder=folder, evaluate=curve, title="policy", quiet=quiet
    )
    policy.eval()
    return done, data.counts


@torch.no_grad()
def mean_loss(objective: FindSpans, data: LabelledWindows) -> float:
    """Return the mean loss over all windows, in nats per target."""
    device = next(objective.parameters()).device
    total = targets = 0.0
    for rows in torch.arange(len(data)).split(64):
        out = objective(moved(data.batch(rows), device))
        total += float(out.loss)
        targets += float(out.targets)
    return total / max(1.0, targets)


# Evaluation
# -------------------------------------------------------------------------------------------


def judge(policy: PolicyModel, marked: Sequence[Marked]) -> dict[str, Any]:
    """Evaluate a policy on held-out labelled texts.

    Returns:
        ``texts`` and ``questions``, counts. ``weight_on_labels``, the share of the policy's weight
        on labelled words, and ``labelled_words``, their share of all words. With questions:
        ``exact_match`` and ``f1`` of the best span; the measures of ``found_among`` for as many
        best spans as the text has salient spans; ``salient``, these measures of the salient spans;
        ``covered_in_as_many_words``, with no more words in the best spans than in the salient ones.
    """
    texts = [each.text for each in marked]
    questions = sum(len(each.questions) for each in marked)
    salient: list[Spans] = [[]] * len(texts)
    if questions:
        salient = []
        for layers in annotator("salient").annotate(texts):
            found = layers["salient"]
            salient.append(list(zip(found.start.tolist(), found.end.tolist())))
    counts = [max(1, len(spans)) for spans in salient]

    weight = labelled_words = words = 0.0
    best: list[Spans] = []
    exact: list[float] = []
    f1: list[float] = []
    scored = score_words(policy, texts, spans=max(counts, default=1))
    for each, scores, count in zip(marked, scored, counts, strict=True):
        labelled = np.zeros(len(scores.start), bool)
        for start, end in each.spans:
            labelled |= (scores.start < end) & (scores.end > start)
        weight += float(scores.weight[labelled].sum())
        labelled_words += float(labelled.sum())
        words += len(labelled)
        # Every window gave ``max(counts)`` spans; the text keeps its best ones over all windows.
        order = np.argsort(-scores.score, kind="stable")[:count]
        chosen = [(start, end) for start, end in scores.spans[order].tolist()]
        best.append(chosen)
        answer = ""
        if chosen:
            start, end = chosen[0]
            answer = each.text[start:end]
        exact += [same_words(rights, answer) for rights in each.questions]
        f1 += [shared_words(rights, answer) for rights in each.questions]
    # Weights average 1, so their sum is the number of words.
    measures: dict[str, Any] = {
        "texts": len(texts),
        "questions": questions,
        "weight_on_labels": weight / max(words, 1.0),
        "labelled_words": labelled_words / max(words, 1.0),
    }
    if not questions:
        return measures
    measures["exact_match"] = float(np.mean(exact))
    measures["f1"] = float(np.mean(f1))
    measures |= found_among(marked, best)
    measures["salient"] = found_among(marked, salient)
    shorter = []
    for each, spans, baseline in zip(marked, best, salient, strict=True):
        shorter.append(_within(each.text, spans, words=_words_in(each.text, baseline)))
    measures["covered_in_as_many_words"] = found_among(marked, shorter)["covered"]
    return measures


def found_among(marked: Sequence[Marked], spans: Sequence[Spans]) -> dict[str, float]:
    """Measure how many questions have an answer among the spans of their text.

    Returns:
        ``recall``, the share of questions with an answer that equals a span; ``covered``, the share
        with an answer whose characters all lie in spans; ``spans`` and ``words``, means per text.

    >>> marked = [Marked("Ada met Bo Li.", ((8, 13),), (("Bo Li",),))]
    >>> found_among(marked, [[(0, 3), (8, 13)]])["recall"]
    1.0
    >>> found_among(marked, [[(8, 10)]])["covered"]
    0.0
    """
    hits: list[bool] = []
    covered: list[bool] = []
    words = 0
    for each, text_spans in zip(marked, spans, strict=True):
        exact = set()
        shown = np.zeros(len(each.text) + 1, bool)
        for start, end in text_spans:
            exact.add(normalise(each.text[start:end]))
            shown[start:end] = True
        words += _words_in(each.text, text_spans)
        inside = set()
        for start, end in each.spans:
            if shown[start:end].all():
                inside.add(each.text[start:end].casefold())
        for answers in each.questions:
            hits.append(not exact.isdisjoint(map(normalise, answers)))
            # ``occurrences`` finds labels in any case, so answers are compared without case too.
            folded = {answer.strip().casefold() for answer in answers}
            covered.append(not inside.isdisjoint(folded))
    return {
        "recall": float(np.mean(hits)),
        "covered": float(np.mean(covered)),
        "spans": sum(map(len, spans)) / len(spans),
        "words": words / len(spans),
    }


def _words_in(text: str, spans: Spans) -> int:
    return sum(len(text[start:end].split()) for start, end in spans)


def _within(text: str, spans: Spans, *, words: int) -> Spans:
    """Keep the first spans with at most ``words`` words in total; skip those that do not fit."""
    kept = []
    for span in spans:
        size = _words_in(text, [span])
        if size <= words:
            kept.append(span)
            words -= size
    return kept
