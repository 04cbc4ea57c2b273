"""Learn a masking policy from labelled texts.

Texts are split into windows of as many tokens as the policy reads at once. A policy with a span
head predicts at which tokens of a window the labelled spans begin and end. A policy with a token
head predicts which tokens are labelled. The loss is the cross-entropy. ``training.train`` trains
the policy.

Source: Ye et al. 2021 (arXiv 2104.08840), section 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from maskwise.base.constants import ranks_here
from maskwise.base.devices import TensorDict, Tensors
from maskwise.base.errors import MaskwiseError
from maskwise.learning.annotator import TextWindows, flat_of, read_windows
from maskwise.learning.labels import Marked
from maskwise.learning.scorer import COLUMNS, PolicyModel
from maskwise.masking.batch import IGNORE, moved
from maskwise.masking.draws import Array
from maskwise.objectives.base import Loss, Objective
from maskwise.tasks.tensors import TaskSource, Trainable
from maskwise.training.loop import Training, train
from maskwise.training.ranks import Ranks
from maskwise.training.settings import TrainingSettings

CUT = "labels cut by the end of a window"
LONG = "labels longer than the longest span"


class FindSpans(Objective):
    """The cross-entropy of the labels of a policy, which are tokens or spans.

    Formula: −Σ n · log softmax(logits). The softmax is over the tokens of a window that belong to
        words. For a span head, n is the number of labelled spans that begin at a token (first
        logit) or end at it (second logit). For a token head, n is 1 at a labelled token.
    Inputs: ``input_ids``, ``attention_mask`` and ``inside`` (B, L), and ``labels`` (B, L, C).
        ``inside`` is true at the tokens of words. ``labels`` contains n, or −100 where n is 0. C is
        1 for a token head, and 2 for a span head.
    Requirements: a ``PolicyModel``.
    """

    def __init__(self, policy: PolicyModel):
        super().__init__()
        self.policy = policy

    def forward(self, batch: Tensors) -> Loss:
        labels_BLC = batch["labels"]
        logits = self.policy(batch["input_ids"], batch["attention_mask"]).float()
        logits_BLC = logits.reshape(labels_BLC.shape)
        # Only words can be labelled, so special tokens and padding get the probability 0.
        outside = ~batch["inside"].unsqueeze(-1)
        log_p_BLC = logits_BLC.masked_fill(outside, -torch.inf).log_softmax(1)
        known = labels_BLC != IGNORE
        loss = -(log_p_BLC[known] * labels_BLC[known]).sum()
        return Loss(loss, known.sum())


@dataclass(frozen=True, eq=False)
class LabelledWindows(Trainable):
    """The training data of a policy: windows of texts with T tokens, each with at least one label.

    Attributes:
        targets: (T, C) the value n of ``FindSpans`` for each token.
        inside: (T,) bool, whether each token belongs to a word.
        counts: the number of dropped labels, keyed by reason.
    """

    targets: Tensor
    inside: Tensor
    counts: Counter[str]

    def batch(self, rows: Tensor) -> TensorDict:
        """Return the inputs for ``FindSpans``."""
        at, real = self.flat.at(rows)
        targets = torch.where(real.unsqueeze(-1), self.targets[at], 0.0)
        labels = torch.where(targets > 0, targets, float(IGNORE))
        batch = self.flat.batch(rows)
        batch["labels"] = labels
        batch["inside"] = real & self.inside[at]
        return batch

    @classmethod
    def of(cls, marked: Sequence[Marked], policy: PolicyModel) -> Self:
        """Split labelled texts into windows, and drop windows without a label.

        Raises:
            MaskwiseError: there is no text, or no window has a label.
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
        # White space inside a label may be a token, which belongs to no word.
        in_word_T = pieces.columns["word_ids"] >= 0
        targets_TC[~in_word_T] = 0
        totals_T = targets_TC.sum(1)
        totals_P = np.add.reduceat(totals_T, pieces.offsets[:-1])
        labelled = np.flatnonzero(totals_P > 0)
        if not len(labelled):
            raise MaskwiseError(
                "no label is left in the policy's windows",
                do="raise learning.policy.length or learning.policy.longest",
            )
        flat, place, token = flat_of(pieces, labelled)
        # Special tokens do not belong to any word, so their targets remain 0.
        targets = torch.zeros(len(flat.ids), targets_TC.shape[1])
        targets[place] = torch.from_numpy(targets_TC[token])
        inside = torch.zeros(len(flat.ids), dtype=torch.bool)
        inside[place] = torch.from_numpy(in_word_T[token])
        return cls(flat, targets, inside, counts)


def _labelled_words(windows: TextWindows, marked: Sequence[Marked]) -> Array:
    """Return (S, 2) the indices of the first and last word of each labelled span with a word."""
    text_numbers = np.arange(len(marked) + 1)
    edges = np.searchsorted(windows.text, text_numbers)
    found = [np.zeros((0, 2), np.int64)]
    for number, each in enumerate(marked):
        words = slice(edges[number], edges[number + 1])
        # Words that are longer than a window are dropped, so a text may have no words.
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
) -> tuple[Training, Counter[str]]:
    """Train a policy to find the labels in texts. The policy is changed in place.

    Args:
        dev_texts: texts for evaluation. Their loss is logged every ``training.eval_every`` steps.
        folder: the folder for metrics and for checkpoints; if None, nothing is written.

    Returns:
        The result of the training run, and the number of dropped labels, keyed by reason.

    Raises:
        MaskwiseError: the training texts have no labels, or ``train`` fails.
    """
    data = LabelledWindows.of(train_texts, policy)
    objective = FindSpans(policy)
    dev = None
    # Without a label in dev that fits into a window, there is no loss to log.
    with suppress(MaskwiseError):
        dev = LabelledWindows.of(dev_texts, policy)

    def curve(step: int, ranks: Ranks) -> list[dict[str, object]]:
        if dev is None:
            return []
        return [{"masks": "labels of dev", "loss": mean_loss(objective, dev, ranks)}]

    settings = with_batches_of(len(data), training)
    source = TaskSource(data, settings)
    done = train(
        objective,
        source,
        settings,
        folder=folder,
        evaluate=curve,
        title="policy",
    )
    policy.eval()
    return done, data.counts


def with_batches_of(windows: int, training: TrainingSettings) -> TrainingSettings:
    """Return settings whose batches have no more rows than there are windows, if possible.

    Each micro-batch of each rank has as many rows.

    >>> with_batches_of(25, TrainingSettings(batch_size=32, accumulate=4)).batch_size
    24
    """
    parts = training.accumulate * ranks_here()
    size = min(training.batch_size, windows)
    size = max(size - size % parts, parts)
    return training.model_copy(update={"batch_size": size})


@torch.no_grad()
def mean_loss(objective: FindSpans, data: LabelledWindows, ranks: Ranks) -> float:
    """Return the mean loss over all windows, in nats per target. The ranks divide the work."""
    device = next(objective.parameters()).device
    parts = torch.arange(len(data)).split(64)

    def sums(part: int) -> list[float]:
        out = objective(moved(data.batch(parts[part]), device))
        return [float(out.total), float(out.divisor)]

    total = targets = 0.0
    for loss, count in ranks.divided([2] * len(parts), sums):
        total += float(loss)
        targets += float(count)
    return total / max(1.0, targets)
