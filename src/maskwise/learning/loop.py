"""Learn a masking policy from labelled texts or by the meta-gradient.

From labelled texts (Ye et al. 2021, arXiv 2104.08840, section 3): texts are split into windows of
as many tokens as the policy reads at once. A policy with a span head predicts at which tokens of a
window the labelled spans begin and end. A policy with a token head predicts which tokens are
labelled. The loss is the cross-entropy. ``maskwise.training.train`` trains the policy.

By the meta-gradient: ``learn_policy`` runs the outer loop, with evaluation, early stopping and
resuming. ``maskwise.learning.meta`` defines a single step of this loop.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from maskwise.devices import TensorDict, Tensors
from maskwise.draws import Array
from maskwise.errors import MaskwiseError
from maskwise.families import adapter_of
from maskwise.learning.annotator import TextWindows, flat_of, read_windows
from maskwise.learning.examples import Examples
from maskwise.learning.gradients import Losses, values_of
from maskwise.learning.labels import Marked
from maskwise.learning.meta import Diverged, MetaLearner, MetaProgress, Slopes, set_values
from maskwise.learning.relaxation import Overflow, RelaxedDenoising
from maskwise.learning.scorer import COLUMNS, PolicyModel
from maskwise.learning.settings import MetaSettings
from maskwise.masking import Vocabulary
from maskwise.masking.batch import IGNORE, moved
from maskwise.models import load_task_model, task_config
from maskwise.objectives import Loss, Objective
from maskwise.tasks.task import Task
from maskwise.tasks.tensors import TaskSource, Trainable
from maskwise.training import TrainingSettings, train
from maskwise.training.checkpoint import RESUME, Metrics
from maskwise.training.engine import new_accelerator
from maskwise.training.log import ProgressBar
from maskwise.training.loop import Training
from maskwise.training.ranks import Ranks
from maskwise.weights import share_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        in_word = pieces.columns["word_ids"][token] >= 0
        inside[place] = torch.from_numpy(in_word)
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
    quiet: bool = True,
) -> tuple[Training, Counter[str]]:
    """Train a policy to find the labels in texts. The policy is changed in place.

    Args:
        dev_texts: texts for evaluation. Their loss is logged every ``training.eval_every`` steps.
        folder: the folder for metrics and for checkpoints; if None, nothing is written.
        quiet: whether to hide the progress bar.

    Returns:
        The result of the training run, and the number of dropped labels, keyed by reason.

    Raises:
        MaskwiseError: the training texts have no labels, or ``train`` fails.
    """
    data = LabelledWindows.of(train_texts, policy)
    objective = FindSpans(policy)
    dev = None
    if any(each.spans for each in dev_texts):
        dev = LabelledWindows.of(dev_texts, policy)

    def curve(step: int, ranks: Ranks) -> list[dict[str, object]]:
        if dev is None:
            return []
        return [{"masks": "labels of dev", "loss": mean_loss(objective, dev, ranks)}]

    # A batch must not have more rows than there are windows, and its size must be a multiple of
    # ``accumulate``.
    size = min(training.batch_size, len(data))
    size = max(size - size % training.accumulate, training.accumulate)
    settings = training.model_copy(update={"batch_size": size})
    source = TaskSource(data, settings)
    done = train(
        objective,
        source,
        settings,
        folder=folder,
        evaluate=curve,
        title="policy",
        quiet=quiet,
    )
    policy.eval()
    return done, data.counts


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


# By the meta-gradient
# -------------------------------------------------------------------------------------------


def new_learner(
    settings: MetaSettings,
    *,
    policy: PolicyModel,
    task: Task,
    texts: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: TrainingSettings,
    length: int,
    max_length: int,
) -> MetaLearner:
    """Build a meta-gradient learner for ``learn_policy``.

    Args:
        settings: the settings of the meta-gradient.
        policy: a policy with a token head.
        task: the task. The policy learns from train rows and is evaluated on dev rows.
        texts: the texts in which contexts (texts to mask) are searched if the rows of the task have
            none of their own.
        model: the masked language model that is trained with the policy's masks, pre-trained or
            new. Its weights change.
        tokenizer: the model's tokenizer.
        training: the settings of the model's ordinary training steps.
        length: the maximum number of tokens in a context.
        max_length: the maximum number of tokens in a row of the task.

    Raises:
        MaskwiseError: the task has no loss, the task does not fit the model, or no row of the task
            has a context.
    """
    if policy.config.head != "tokens":
        raise MaskwiseError(
            "the meta-gradient needs a policy that scores tokens",
            got=policy.config.head,
            do="set learning.policy.head: tokens, or learning.method: supervised",
        )
    losses = losses_of(model, task, tokenizer, seed=settings.seed)
    sizes = {"length": min(length, policy.config.length), "max_length": max_length}
    train = Examples.of(task, "train", tokenizer, texts=texts, **sizes)
    dev = Examples.of(task, "dev", tokenizer, texts=texts, **sizes)
    # Creating the accelerator connects torchrun's processes. Only its device is used.
    untracked = training.model_copy(update={"trackers": ()})
    device = new_accelerator(untracked, None).device
    return MetaLearner(
        losses.to(device),
        policy.to(device),
        train,
        dev,
        settings,
        training,
    )


def losses_of(
    model: PreTrainedModel, task: Task, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> Losses:
    """Build the two losses of a model: of masked tokens, and of a task.

    If the task needs a head of its own, the head is put on the model's encoder.

    Raises:
        MaskwiseError: the task has no loss, the task does not fit the model's architecture, or the
            tokenizer has neither a mask token nor a sentinel.
    """
    kind = task.kind
    family = adapter_of(model.config).kind
    if kind.objective is None:
        raise MaskwiseError(
            "a policy is learned from a loss, but this kind of task has no loss",
            got=kind.name,
            do="use a task on which models are fine-tuned",
        )
    if kind.family != family:
        raise MaskwiseError(
            f"a task of kind {kind.name} is not for this model",
            got=f"an {family}",
            do="use kind=generation for an encoder–decoder, and a different kind for an encoder",
        )
    task_model = model
    if not kind.pretrained_head:
        config = task_config(model.config, task.config())
        task_model = load_task_model(None, config, head=kind.head, seed=seed)
        share_encoder(model, task_model)
    vocabulary = Vocabulary.of(tokenizer)
    mask = vocabulary.mask
    # A model with sentinels was pre-trained with sentinels in place of masked text, even if its
    # tokenizer has [MASK], too.
    if family != "encoder" and vocabulary.sentinels:
        mask = next(iter(vocabulary.sentinels))
    if mask is None:
        raise MaskwiseError(
            "the tokenizer has no mask token and no sentinel",
            do="set tokenizer.sentinels, or use a tokenizer with [MASK]",
        )
    return Losses(RelaxedDenoising(model, mask), kind.objective(task_model))


def learn_policy(
    learner: MetaLearner,
    folder: Path | None = None,
    *,
    quiet: bool = False,
    title: str = "learning a policy",
) -> MetaProgress:
    """Run the outer loop until the last step, an early stop, or divergence.

    Learning stops early if the gain on dev does not improve for ``patience`` evaluations. If an
    interrupted call is repeated, it resumes from the last evaluation.

    Args:
        learner: the learner. At the end, its policy has the parameters of the average with the best
            gain on dev, or the initial parameters if no gain was above 0.
        folder: the folder for ``metrics.jsonl`` and the checkpoint; if None, nothing is written.
        quiet: whether to hide the progress bar.
        title: the title of the progress bar.

    Returns:
        The progress at the end.
    """
    s = learner.settings
    # All ranks resume, but only the first rank writes.
    writes = learner.rank == 0
    log = None
    if folder:
        learner.load(folder / RESUME)
        if writes:
            log = folder / "metrics.jsonl"
    now = learner.now
    metrics = Metrics(log, keep_until=now.step)
    progress = ProgressBar(
        title,
        total=s.steps,
        start=now.step,
        hidden=quiet or not writes,
    )
    began = time.perf_counter()
    outers = []
    if now.step == 0:
        now.overshoot = learner.overshoot()
    with progress.bar:
        while now.step < s.steps and not now.stopped:
            try:
                line = learner.step()
                outers.append(line["outer"])
                seconds = round(time.perf_counter() - began, 3)
                _write(metrics, {"kind": "meta", "step": now.step, **line, "seconds": seconds})
                progress.advance()
                if now.step % s.eval_every and now.step < s.steps:
                    continue
                mean = float(np.mean(outers))
                gain = learner.gain_of(learner.average)
                _write(metrics, _evaluated(learner, mean, gain))
                progress.note(outer=mean, gain=gain)
                learner.slopes = Slopes()
                outers = []
                if folder and writes:
                    learner.save(folder / RESUME)
            except (Diverged, Overflow) as reason:
                # An overflow may happen on this rank alone. If this rank stopped without an error,
                # the other ranks would wait for it forever.
                if isinstance(reason, Overflow) and learner.ranks > 1:
                    raise
                now.stopped = f"diverged: {reason}"
    metrics.close()
    set_values(learner.policy, learner.best)
    return now


def _write(metrics: Metrics, line: Mapping[str, object]) -> None:
    known = {}
    for name, value in line.items():
        # JSON has no NaN. For example, ``answers`` is NaN if no row has an answer. NaN is the only
        # value that differs from itself.
        if value == value:
            known[name] = value
    metrics.write(known)


def _evaluated(learner: MetaLearner, outer: float, gain: float) -> dict[str, object]:
    """After an evaluation, update the best policy and decide whether to stop.

    Args:
        outer: the mean outer loss of the steps since the last evaluation.
        gain: the gain of the average policy on dev, in nats.

    Returns:
        A record for the log.
    """
    s = learner.settings
    now = learner.now
    now.waited += 1
    if gain > now.gain:
        now.best = now.step
        now.gain = gain
        now.waited = 0
        learner.best = values_of(learner.average)
    if now.first is None:
        now.first = outer
    if outer > s.worse * now.first:
        rise = f"from {now.first:.3g} to {outer:.3g} by step {now.step}"
        now.stopped = f"diverged: the task loss rose {rise}"
    elif s.patience and now.waited >= s.patience:
        now.stopped = f"no better gain on dev since step {now.best}"
    return {
        "kind": "dev",
        "step": now.step,
        "gain": gain,
        "best": now.best,
        "agreement": learner.slopes.agreement(),
    }
