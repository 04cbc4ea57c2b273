"""Learning by the meta-gradient: its parts, its evaluations, its end, how it resumes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.families import adapter_of
from maskwise.learning.examples import Examples
from maskwise.learning.gradients import Losses, values_of
from maskwise.learning.meta import Diverged, MetaLearner, Point, Slopes, set_values
from maskwise.learning.relaxation import Overflow, RelaxedDenoising
from maskwise.learning.scorer import PolicyModel
from maskwise.learning.settings import MetaSettings
from maskwise.masking import Vocabulary
from maskwise.models import load_task_model, share_encoder, task_config
from maskwise.tasks.task import Task
from maskwise.training import TrainingSettings
from maskwise.training.engine import new_accelerator
from maskwise.training.log import Metrics, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Watch: TypeAlias = Callable[[Any], list[list[float]]]
"""From a policy to its weights of the words of some texts."""


def learn_meta(
    settings: MetaSettings,
    *,
    policy: PolicyModel,
    task: Task,
    texts: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: TrainingSettings,
    length: int,
    max_length: int = 64,
    folder: Path | None = None,
    quiet: bool = False,
    watch: Watch | None = None,
    title: str = "learning a policy",
) -> tuple[Point, Counter[str]]:
    """Learn a policy by the meta-gradient.

    Args:
        policy: a scorer of tokens; it becomes the learned one.
        task: its train rows are learned from, its dev rows evaluate.
        texts: where contexts are looked for, if the rows have none of their own.
        model: a pre-trained model, or one with fresh weights, for which the policy is learned. It
            is changed.
        training: of the model's own steps.
        length: most tokens of a context.
        max_length: tokens of a row of the task.
        folder, quiet, watch, title: as for ``learn_policy``.

    Returns:
        The end of the learning, and the number of train rows that were left out, by reason.

    Raises:
        MaskwiseError: a task without a loss, or that does not fit the model; no context for any of
            its rows.
    """
    if policy.config.head != "tokens":
        what = "the meta-gradient needs a policy that scores tokens"
        do = "learn it with method: supervised, or take head: tokens"
        raise MaskwiseError(what, got=policy.config.head, do=do)
    losses = losses_of(model, task, tokenizer, seed=settings.seed)
    sizes = {"length": min(length, policy.config.length), "max_length": max_length}
    train = Examples.of(task, "train", tokenizer, texts=texts, **sizes)
    dev = Examples.of(task, "dev", tokenizer, texts=texts, **sizes)
    device = new_accelerator(training, None).device
    learner = MetaLearner(losses.to(device), policy.to(device), train, dev, settings, training)
    left_out = +Counter({"rows of train whose answers are in no text": train.without})
    return learn_policy(learner, folder, quiet=quiet, watch=watch, title=title), left_out


def losses_of(
    model: PreTrainedModel, task: Task, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> Losses:
    """The two losses of a model; a task with a head of its own gets a new one on the same encoder.

    Raises:
        MaskwiseError: a task that is not tuned, or not for such a model; a tokenizer without a mask
            or sentinel.
    """
    kind = task.kind
    family = adapter_of(model.config).kind
    if kind.objective is None:
        what = "a policy is learned from a loss, and this task has none"
        raise MaskwiseError(what, got=kind.name, do="take the kind that is fine-tuned")
    if kind.family != family:
        what = f"a task of kind {kind.name} is not for this model"
        do = "take kind=generation for an encoder–decoder, and another one for an encoder"
        raise MaskwiseError(what, got=f"an {family}", do=do)
    judged: PreTrainedModel = model
    if not kind.pretrained_head:
        config = task_config(model.config, task.config())
        judged = load_task_model(None, config, head=kind.head, seed=seed)
        share_encoder(model, judged)
    vocabulary = Vocabulary.of(tokenizer)
    mask = vocabulary.mask
    # A model that learned from sentinels knows nothing of [MASK], even if the tokenizer has one.
    if family != "encoder" and vocabulary.sentinels:
        mask = next(iter(vocabulary.sentinels))
    if mask is None:
        do = "set tokenizer.sentinels, or take a tokenizer with [MASK]"
        raise MaskwiseError("the tokenizer has no mask token and no sentinel", do=do)
    return Losses(RelaxedDenoising(model, mask), kind.objective(judged))


def learn_policy(
    learner: MetaLearner,
    folder: Path | None = None,
    *,
    quiet: bool = False,
    watch: Watch | None = None,
    title: str = "learning a policy",
) -> Point:
    """Learn until the steps are made, dev stops improving, or the outer loss diverges.

    A learning that was stopped resumes from its last evaluation.

    Args:
        learner: its policy becomes the best average, or the initial policy if none was better.
        folder: of ``metrics.jsonl`` and the state to resume from; None keeps nothing.
        quiet: no progress bar.
        watch: logged for the average policy at every evaluation, as ``weights``.
        title: of the progress bar.
    """
    s = learner.settings
    first = learner.rank == 0
    resume = folder / "resume" if folder else None
    if resume:
        learner.load(resume)
    now = learner.now
    metrics = Metrics(folder / "metrics.jsonl" if folder and first else None, keep_until=now.step)
    progress = Progress(title, s.steps, now.step, hidden=quiet or not first)
    began = time.perf_counter()
    outers: list[float] = []
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
                evaluated = _evaluated(learner, mean)
                if watch and first:
                    evaluated["weights"] = watch(learner.average)
                _write(metrics, evaluated)
                progress.note(outer=mean, gain=evaluated["gain"])
                learner.slopes = Slopes()
                outers = []
                if resume and first:
                    learner.save(resume)
            except (Diverged, Overflow) as reason:
                if isinstance(reason, Overflow) and learner.ranks > 1:
                    raise  # the other ranks, whose rows may not overflow, wait for this one
                now.stopped = f"diverged: {reason}"
    metrics.close()
    set_values(learner.policy, learner.best)
    return now


def _write(metrics: Metrics, line: Mapping[str, object]) -> None:
    """Write a line without its NaN, which JSON does not have."""
    known = {key: value for key, value in line.items() if value == value}
    metrics.write(known)


def _evaluated(learner: MetaLearner, outer: float) -> dict[str, Any]:
    """Evaluate the average policy, keep it if it is the best, and decide whether to stop.

    Args:
        outer: mean outer loss since the last evaluation.

    Returns:
        Figures for the log.
    """
    s, now = learner.settings, learner.now
    gain = learner.gain_of(learner.average)
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
        now.stopped = f"diverged: the outer loss rose {rise}"
    elif s.patience and now.waited >= s.patience:
        now.stopped = f"nothing better on dev since step {now.best}"
    agreement = learner.slopes.agreement()
    return {
        "kind": "dev",
        "step": now.step,
        "gain": gain,
        "best": now.best,
        "agreement": agreement,
    }
