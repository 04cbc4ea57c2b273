"""Fine-tune a checkpoint on a task and score it: the loop of pre-training with another objective.

What is random in a fine-tuning (the new head, the order, dropout) is a function of its seed; the checkpoint
and the task are not. The number of steps is fixed beforehand and the last state is scored, once: picking the
best of several evaluations on test is how small effects are made. The dev score is for choosing settings.

Cost: with a tiny model, some seconds on one core; tokenised tasks are kept in the process, so that the second
fine-tuning on a task begins at once.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.utils import logging

from maskwise.errors import MaskwiseError
from maskwise.keys import fold
from maskwise.objectives.classification import Classification
from maskwise.tasks.data import Task
from maskwise.tasks.encode import Encoded, TaskSource, encode
from maskwise.tasks.metrics import LOST, METRICS, UNSEEN
from maskwise.training import TrainingSettings, train
from maskwise.training.checkpoints import write_folder
from maskwise.training.model import check_fit

EVAL_TOKENS = 8192
"""Padded tokens of one batch of evaluation."""

_AUTO = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


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
    """Tokens; longer rows are cut, and words cut off count as wrong."""

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
        ``task``, ``metric``, ``score`` (on test), ``dev``, ``majority``, ``test_items``, ``lost_words`` (of
        test), ``steps``, ``seconds``, ``seed``.

    Raises:
        MaskwiseError: no checkpoint, one that does not fit the tokenizer or max_length, a loss that is not
            finite.
    """
    began = time.perf_counter()
    settings = settings.model_copy(update={"seed": seed})
    data = encode(task, tokenizer, max_length=max_length)
    model = _classifier(model_folder, task, tokenizer, config=config, max_length=max_length, seed=seed)
    objective = Classification(model)
    source = TaskSource(data["train"], settings)
    done = train(objective, source, settings, folder=folder, title=f"{task.name} {seed}", quiet=quiet)
    scores = {split: score(task, data[split], answers(objective, data[split])) for split in ("dev", "test")}
    if folder is not None:
        with _no_advice():
            write_folder(
                folder / "checkpoint",
                lambda at: (model.save_pretrained(at), tokenizer.save_pretrained(at)),
            )
    return {
        "task": task.name, "metric": task.metric, "score": scores["test"], "dev": scores["dev"],
        "majority": majority_score(task), "test_items": task.test_items, "lost_words": data["test"].lost,
        "steps": done["steps"], "seconds": time.perf_counter() - began, "seed": seed,
    }  # fmt: skip


@torch.inference_mode()
def answers(objective: Classification, data: Encoded) -> Tensor:
    """The most probable class of every row (N,) or word (W,), in float32; −2 (``LOST``) for lost words."""
    objective.eval()
    device = next(objective.parameters()).device
    by_token = data.place is not None
    out = torch.full((len(data.ids) if by_token else len(data),), LOST)
    for rows in _by_length(data.lengths):
        batch = data.batch(rows)
        logits = objective.logits({name: value.to(device) for name, value in batch.items()})
        best = logits.argmax(-1).cpu()
        if by_token:
            real = batch["attention_mask"].bool()
            at = data.starts[rows].unsqueeze(1) + torch.arange(real.shape[1])
            out[at[real]] = best[real]
        else:
            out[rows] = best
    return out if data.place is None else torch.where(data.place < 0, LOST, out[data.place])


def score(task: Task, data: Encoded, answer: Tensor) -> float:
    """The task's metric of answers to the rows of ``data``."""
    if task.metric != "entity-f1":
        return METRICS[task.metric](data.gold.numpy(), answer.numpy())
    assert data.word_starts is not None
    # An answer that could not be given is O; a tag that train does not have is an entity of its own kind.
    names = [*task.labels, "O", "B-unseen by train"]
    gold, given = ([names[i] for i in x.tolist()] for x in (data.gold, answer))
    return METRICS["entity-f1"](gold, given, data.word_starts[:-1].numpy())


def majority_score(task: Task) -> float:
    """The score on test of always answering the commonest class (of rows, or of words) of train."""
    train, test = (_classes_of(task, split) for split in ("train", "test"))
    most = Counter(train).most_common(1)[0][0]  # of equally common ones the first met
    if task.metric == "entity-f1":
        starts = np.cumsum([0, *(len(row["tags"]) for row in task.splits["test"])])[:-1]
        return METRICS["entity-f1"](test, [most] * len(test), starts)
    code = {label: number for number, label in enumerate(task.labels)}
    return METRICS[task.metric]([code.get(label, UNSEEN) for label in test], [code[most]] * len(test))


def _classes_of(task: Task, split: str) -> list[str]:
    rows = task.splits[split]
    return [row["label"] for row in rows] if "label" in rows[0] else [t for row in rows for t in row["tags"]]


def _by_length(lengths: Tensor) -> list[Tensor]:
    """Rows in batches of similar length, each of about ``EVAL_TOKENS`` padded tokens."""
    order = lengths.argsort(descending=True, stable=True)
    batches = []
    while len(order):
        size = max(1, EVAL_TOKENS // int(lengths[order[0]]))
        batches.append(order[:size])
        order = order[size:]
    return batches


def _classifier(
    model_folder: str | Path | None, task: Task, tokenizer: Any, *, config: Any, max_length: int, seed: int
) -> PreTrainedModel:
    """The checkpoint with a new head, or random weights; a function of the seed."""
    if (model_folder is None) == (config is None):
        raise MaskwiseError(
            "finetune needs a checkpoint, or a config to start from at random: one of the two"
        )
    names = dict(enumerate(task.labels))
    labels = {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}
    auto = _AUTO[task.kind]
    with _no_advice(), torch.random.fork_rng():
        try:
            if config is None:
                config = AutoConfig.from_pretrained(str(model_folder), **labels)
            else:
                config = type(config).from_dict({**config.to_dict(), **labels})
            if hasattr(config, "classifier_pooling"):
                config.classifier_pooling = "mean"  # ModernBERT; masked modelling has taught [CLS] nothing
            _check_fit(config, tokenizer, max_length)
            torch.manual_seed(fold(seed, 0x4EAD))
            if model_folder is None:
                return auto.from_config(config)
            # A checkpoint that was fine-tuned before may have a head of another size: it gets a new one.
            load = {"config": config, "dtype": torch.float32, "ignore_mismatched_sizes": True}
            return auto.from_pretrained(model_folder, **load)
        except MaskwiseError:
            raise
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            where = f"for {task.kind} from {str(model_folder or config.model_type)!r}"
            raise MaskwiseError(f"cannot load a model {where}: {first}") from None


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Loading warns that the head is new and should be trained: that is what happens next."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _check_fit(config: Any, tokenizer: Any, max_length: int) -> None:
    check_fit(config, len(tokenizer), do="give the tokenizer that the checkpoint was trained with")
    room = getattr(config, "max_position_embeddings", None) or max_length
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        room -= config.pad_token_id + 1  # they count positions from there
    if max_length > room:
        raise MaskwiseError(
            "max_length is more than the model's positions", got=max_length, allowed=f"≤ {room}"
        )
