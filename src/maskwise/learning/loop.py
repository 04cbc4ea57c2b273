"""Meta-learn a policy: build the learner, run it, evaluate it, stop early, and resume.

The learner itself, one outer step at a time, is in ``maskwise.learning.meta``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

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

Watch: TypeAlias = Callable[[PolicyModel], list[list[float]]]
"""Policy → its weights of the words of some texts, for ``metrics.jsonl``."""


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
    max_length: int = 64,
) -> MetaLearner:
    """Build the learner of a policy by the meta-gradient, for `learn_policy`.

    Args:
        policy: scores tokens.
        task: the policy learns from its train rows; its dev rows evaluate.
        texts: searched for contexts if the rows have none.
        model: the model that the policy should help, pre-trained or new. Its weights change.
        training: of the model's ordinary steps.
        length: maximum tokens of a context.
        max_length: tokens of a row of the task.

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
    # An accelerator sets up the processes of torchrun; here it only names the device.
    device = new_accelerator(training, None).device
    return MetaLearner(losses.to(device), policy.to(device), train, dev, settings, training)


def losses_of(
    model: PreTrainedModel, task: Task, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> Losses:
    """Build the two losses of a model; a task that needs another head gets one on its encoder.

    Raises:
        MaskwiseError: a task that is not fine-tuned, or not with such a model; a tokenizer without
            a mask or sentinel.
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
    task_model = model
    if not kind.pretrained_head:
        config = task_config(model.config, task.config())
        task_model = load_task_model(None, config, head=kind.head, seed=seed)
        share_encoder(model, task_model)
    vocabulary = Vocabulary.of(tokenizer)
    mask = vocabulary.mask
    # A model trained with sentinels has never seen [MASK], even if its tokenizer has one.
    if family != "encoder" and vocabulary.sentinels:
        mask = next(iter(vocabulary.sentinels))
    if mask is None:
        do = "set tokenizer.sentinels, or take a tokenizer with [MASK]"
        raise MaskwiseError("the tokenizer has no mask token and no sentinel", do=do)
    return Losses(RelaxedDenoising(model, mask), kind.objective(task_model))


def learn_policy(
    learner: MetaLearner,
    folder: Path | None = None,
    *,
    quiet: bool = False,
    watch: Watch | None = None,
    title: str = "learning a policy",
) -> Point:
    """Learn until all steps are done, dev stops improving, or the outer loss diverges.

    An interrupted call resumes from its last evaluation.

    Args:
        learner: its policy becomes the best average, or the initial policy if none was better.
        folder: of ``metrics.jsonl`` and the checkpoint; None writes nothing.
        quiet: no progress bar.
        watch: its result for the average policy is logged at every evaluation, as ``weights``.
        title: of the progress bar.
    """
    s = learner.settings
    # All ranks resume, but only the first one writes.
    writes = learner.rank == 0
    log = None
    if folder:
        learner.load(folder / "resume")
        if writes:
            log = folder / "metrics.jsonl"
    now = learner.now
    metrics = Metrics(log, keep_until=now.step)
    progress = Progress(title, s.steps, now.step, hidden=quiet or not writes)
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
                gain = learner.gain_of(learner.average)
                evaluated = _evaluated(learner, mean, gain)
                if watch and writes:
                    evaluated["weights"] = watch(learner.average)
                _write(metrics, evaluated)
                progress.note(outer=mean, gain=gain)
                learner.slopes = Slopes()
                outers = []
                if folder and writes:
                    learner.save(folder / "resume")
            except (Diverged, Overflow) as reason:
                # The rows of other ranks may not overflow: they would wait for this one forever.
                if isinstance(reason, Overflow) and learner.ranks > 1:
                    raise
                now.stopped = f"diverged: {reason}"
    metrics.close()
    set_values(learner.policy, learner.best)
    return now


def _write(metrics: Metrics, line: Mapping[str, object]) -> None:
    # JSON has no NaN, such as the share of answers in rows without one.
    known = {name: value for name, value in line.items() if value == value}
    metrics.write(known)


def _evaluated(learner: MetaLearner, outer: float, gain: float) -> dict[str, object]:
    """Keep the average policy if it is the best so far, and decide whether to stop.

    Args:
        outer: mean outer loss since the last evaluation.
        gain: gain of the average policy on dev.

    Returns:
        Figures for the log.
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
        now.stopped = f"diverged: the outer loss rose {rise}"
    elif s.patience and now.waited >= s.patience:
        now.stopped = f"nothing better on dev since step {now.best}"
    return {
        "kind": "dev",
        "step": now.step,
        "gain": gain,
        "best": now.best,
        "agreement": learner.slopes.agreement(),
    }
