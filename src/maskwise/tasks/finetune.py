"""Fine-tune a checkpoint on a task and score it: the loop of pre-training with another objective.

Kinds that leave the encoder as it is (``frozen``) come the same way and give the same record, without training.

What is random in a fine-tuning (the new head, the order, dropout) is a function of its seed; the checkpoint
and the task are not. The number of steps is fixed beforehand and the last state is scored, once: picking the
best of several evaluations on test is how small effects are made. The dev score is for choosing settings.

Cost: with a tiny model, some seconds on one core; tokenised tasks are kept in the process, so that the second
fine-tuning on a task begins at once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel

from maskwise.errors import MaskwiseError
from maskwise.folders import write_folder
from maskwise.models import check_fit, check_room, load_task_model, task_config, without_advice
from maskwise.tasks.data import Task
from maskwise.tasks.frozen import judge
from maskwise.tasks.kinds import TRAINED, answers, check_length, encode, majority_score, other_scores, score
from maskwise.tasks.tensors import TaskSource
from maskwise.training import TrainingSettings, train
from maskwise.training.machine import best_device


class FinetuneSettings(BaseModel):
    """How every checkpoint of a study is fine-tuned. The defaults are for the quick start's tiny models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: float = Field(5.0, gt=0)
    """Passes over the training rows; not used when ``steps`` is given."""

    steps: int | None = Field(None, ge=1)
    """Optimiser updates, whatever the size of the task."""

    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    """Peak rate of AdamW. Base-sized models want 2e-5 to 5e-5."""

    muon_learning_rate: float = Field(0.003, gt=0)
    """Peak rate of Muon; used with ``optimizer: muon`` only."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0."""

    weight_decay: float = Field(0.01, ge=0)
    precision: Literal["auto", "no", "bf16"] = "auto"
    max_length: int = Field(64, ge=3)
    """Tokens; longer rows are cut, and words cut off count as wrong. Contexts of questions are read in windows."""

    seeds: int = Field(3, ge=1)
    """Fine-tunings per checkpoint and task; their mean is one score (methods, section 5)."""

    def training(self, task: Task, *, seed: int) -> TrainingSettings:
        """Settings of one fine-tuning."""
        rows = len(task.splits["train"])
        shared = self.model_dump(exclude={"epochs", "steps", "max_length", "seeds"})
        steps = self.steps or max(1, round(self.epochs * rows / self.batch_size))
        return TrainingSettings(steps=steps, seed=seed, log_every=max(1, steps // 20), **shared)


def finetune(
    model_folder: str | Path | None,
    task: Task,
    *,
    tokenizer: Any,
    settings: TrainingSettings,
    seed: int,
    max_length: int = 64,
    config: Any = None,
    folder: Path | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Fine-tune and score once.

    Args:
        model_folder: a checkpoint (or hub id); None to start from random weights of ``config``.
        task: what to judge by.
        tokenizer: the checkpoint's.
        settings: see ``FinetuneSettings.training``; ``seed`` replaces its seed.
        seed: of the new head (without a checkpoint: of all weights), the order and dropout.
        max_length: rows are cut to so many tokens.
        folder: where metrics.jsonl and checkpoint/ (an ordinary transformers folder) go; None keeps nothing.

    Returns:
        ``task``, ``metric``, ``score`` (on test), ``dev`` (None without dev rows), ``others`` (further metrics on
        test), ``majority``, ``test_items``, ``lost_words`` (items of test that cannot be answered), ``steps``,
        ``seconds``, ``seed``. Frozen kinds have 0 steps, and no checkpoint is written.

    Raises:
        MaskwiseError: no checkpoint, one that does not fit the tokenizer or max_length, a loss that is not
            finite.
    """
    began = time.perf_counter()
    network = load_network(model_folder, task, tokenizer, config=config, max_length=max_length, seed=seed)
    facts = {"task": task.name, "metric": task.metric, "majority": majority_score(task), "seed": seed}
    if task.frozen:
        check_length(task, tokenizer, max_length)
        model: Any = network
        model.to(best_device())
        found = judge(network, task, tokenizer, max_length=max_length)
        facts |= {**found, "lost_words": 0, "steps": 0}
    else:
        settings = settings.model_copy(update={"seed": seed})
        data = encode(task, tokenizer, max_length=max_length)
        objective = TRAINED[task.kind].objective(network)
        source = TaskSource(data["train"], settings)
        done = train(objective, source, settings, folder=folder, title=f"{task.name} {seed}", quiet=quiet)
        given = {split: answers(objective, data[split]) for split in ("dev", "test")}
        scores = {split: score(task, data[split], answer) for split, answer in given.items()}
        facts |= {"score": scores["test"], "dev": scores["dev"], "steps": done["steps"]}
        facts |= {"others": other_scores(task, data["test"], given["test"]), "lost_words": data["test"].lost}
        if folder is not None:
            with without_advice():
                write_folder(
                    folder / "checkpoint",
                    lambda at: (network.save_pretrained(at), tokenizer.save_pretrained(at)),
                )
    return {**facts, "test_items": task.test_items, "seconds": time.perf_counter() - began}


def load_network(
    model_folder: str | Path | None, task: Task, tokenizer: Any, *, config: Any, max_length: int, seed: int
) -> PreTrainedModel:
    """The checkpoint with a new head for a task (none if it stays frozen), or random weights of ``config``; a
    function of the seed.

    Raises:
        MaskwiseError: no checkpoint, or not one of the two; one that does not fit the tokenizer or max_length.
    """
    if (model_folder is None) == (config is None):
        raise MaskwiseError(
            "finetune needs a checkpoint, or a config to start from at random: one of the two"
        )
    kind = TRAINED.get(task.kind)
    head, labels = (kind.head, kind.config(task)) if kind else ("embedding", {})
    config = task_config(config if model_folder is None else model_folder, labels)
    _check_fit(config, tokenizer, max_length)
    return load_task_model(model_folder, config, head=head, seed=seed)


def _check_fit(config: Any, tokenizer: Any, max_length: int) -> None:
    check_fit(config, len(tokenizer), do="give the tokenizer that the checkpoint was trained with")
    check_room(config, max_length, what="max_length")
