"""How a learning of the outer loop runs: judged on dev, kept, stopped, gone on with; and what it is
built from.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from maskwise.errors import MaskwiseError
from maskwise.families import adapter_of
from maskwise.learning.examples import Examples
from maskwise.learning.gradients import Losses
from maskwise.learning.meta import Diverged, MetaLearner, Point, Slopes, set_values, values_of
from maskwise.learning.relaxation import Overflow, RelaxedDenoising
from maskwise.learning.scorer import PolicyModel
from maskwise.learning.settings import MetaSettings
from maskwise.masking import Vocabulary
from maskwise.models import load_task_model, share_encoder, task_config
from maskwise.objectives import Objective
from maskwise.tasks.task import Task
from maskwise.training import TrainingSettings
from maskwise.training.engine import new_accelerator
from maskwise.training.log import Metrics, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_CONTEXT = "rows of train of which no text tells an answer"
Watch: TypeAlias = Callable[[Any], list[list[float]]]
"""From a policy to the weights that it gives the words of some texts."""


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
        task: its train rows are learned from, its dev rows judge.
        texts: where contexts are looked for, if the rows have none of their own.
        model: what the policy is to help: a pre-trained model, or one with fresh weights. It is
            changed.
        training: how the model moves on by itself, where it does.
        length: most tokens of a context.
        max_length: tokens of a row of the task.
        folder, quiet, watch, title: as for ``learn_policy``.

    Returns:
        What ``learn_policy`` returns, and how many rows of train were left out, by reason.

    Raises:
        MaskwiseError: a task without a loss, or that does not fit the model; no context for any of
            its rows.
    """
    if policy.config.head != "tokens":
        do = "learn it with method: supervised, or take head: tokens"
        raise MaskwiseError(
            "the meta-gradient needs a policy that scores tokens", got=policy.config.head, do=do
        )
    losses = losses_of(model, task, tokenizer, seed=settings.seed)
    # what the policy reads at once, also when it is used
    shorter = min(length, policy.config.length)
    examples = partial(
        Examples.of, task, tokenizer=tokenizer, texts=texts, length=shorter, max_length=max_length
    )
    train = examples(split="train")
    dev = examples(split="dev")
    accelerator = new_accelerator(training, None)
    losses.to(accelerator.device)
    policy.to(accelerator.device)
    learner = MetaLearner(losses, policy, train, dev, settings, training)
    left_out = +Counter({NO_CONTEXT: train.without})
    return learn_policy(learner, folder, quiet=quiet, watch=watch, title=title), left_out


def losses_of(
    model: PreTrainedModel, task: Task, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> Losses:
    """The two losses of a model. A task with a head of its own gets a new one, and its model the
    encoder of this one.

    Raises:
        MaskwiseError: a task that is not tuned, or not for such a model; a tokenizer without a mask
            or sentinel.
    """
    kind = task.kind
    family = adapter_of(model.config).kind
    if kind.objective is None:
        do = "take the kind that is fine-tuned"
        raise MaskwiseError(
            "a policy is learned from a loss, and this task has none", got=kind.name, do=do
        )
    if kind.family != family:
        do = "take kind=generation for an encoder–decoder, and another one for an encoder"
        raise MaskwiseError(
            f"a task of kind {kind.name} is not for this model", got=f"an {family}", do=do
        )
    judged: PreTrainedModel = model
    if not kind.pretrained_head:
        config = task_config(model.config, task.config())
        judged = load_task_model(None, config, head=kind.head, seed=seed)
        share_encoder(model, judged)
    vocabulary = Vocabulary.of(tokenizer)
    sentinel = next(iter(vocabulary.sentinels), None)
    # A model that learned from sentinels knows nothing of [MASK], even where the tokenizer has one.
    mask = vocabulary.mask if family == "encoder" or sentinel is None else sentinel
    if mask is None:
        do = "set tokenizer.sentinels, or take a tokenizer with [MASK]"
        raise MaskwiseError(
            "nothing can stand for a masked token", got="no mask token and no sentinel", do=do
        )
    objective: Objective = kind.objective(judged)
    return Losses(RelaxedDenoising(model, mask), objective)


def learn_policy(
    learner: MetaLearner,
    folder: Path | None = None,
    *,
    quiet: bool = False,
    watch: Watch | None = None,
    title: str = "learning a policy",
) -> Point:
    """Learn until the steps are made, nothing gets better on dev, or the outer loss diverges.

    A learning that was stopped goes on from its last judgement.

    Args:
        learner: its policy is the best average when this returns; the policy of the beginning where
            none was better.
        folder: where ``metrics.jsonl`` and the state to resume from go; None keeps nothing.
        quiet: no progress bar.
        watch: what is logged of the average policy at every judgement, as ``weights``.
        title: what the progress bar says.

    Returns:
        Where the learning ended: the best step, what its policy was worth on dev, why it stopped
        early, and which of its inner steps was too long, if so.
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
                if now.step % s.eval_every == 0 or now.step == s.steps:
                    mean = float(np.mean(outers))
                    gain = _judge(learner, mean)
                    agreement = learner.slopes.agreement()
                    judged = {
                        "kind": "dev",
                        "step": now.step,
                        "gain": gain,
                        "best": now.best,
                        "agreement": agreement,
                    }
                    if watch and first:
                        judged["weights"] = watch(learner.average)
                    _write(metrics, judged)
                    progress.note(outer=mean, gain=gain)
                    learner.slopes = Slopes()
                    outers = []
                    if resume and first:
                        learner.save(resume)
            except (Diverged, Overflow) as reason:
                if isinstance(reason, Overflow) and learner.ranks > 1:
                    raise  # the other ranks, whose rows may not overflow, wait for this one
                now.stopped = f"diverged: {reason}"
                break
    metrics.close()
    set_values(learner.policy, learner.best)
    return now


def _write(metrics: Metrics, line: Mapping[str, object]) -> None:
    """Write a line without its NaN, which JSON does not have."""
    metrics.write(
        {
            key: value
            for key, value in line.items()
            if not (isinstance(value, float) and math.isnan(value))
        }
    )


def _judge(learner: MetaLearner, outer: float) -> float:
    """Judge the average policy, and keep it if it is the best; see whether to go on.

    Args:
        outer: mean outer loss since the last judgement.

    Returns:
        What the policy is worth on dev.
    """
    s, now = learner.settings, learner.now
    gain = learner.judge(learner.average)
    now.waited += 1
    if gain > now.gain:
        now.best = now.step
        now.gain = gain
        now.waited = 0
        learner.best = values_of(learner.average)
    if now.first is None:
        now.first = outer
    if outer > s.worse * now.first:
        now.stopped = (
            f"diverged: the outer loss rose from {now.first:.3g} to {outer:.3g} by step {now.step}"
        )
    elif s.patience and now.waited >= s.patience:
        now.stopped = f"nothing better on dev since step {now.best}"
    return gain
