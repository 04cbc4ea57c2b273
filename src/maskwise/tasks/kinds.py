"""What each kind of task is, in one table: its model, its tensors, its objective and its lowest score.

A kind that leaves the encoder as it is has no line here; it is a function in ``frozen``.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from maskwise.errors import MaskwiseError
from maskwise.objectives.choice import MultipleChoice
from maskwise.objectives.classification import Classification
from maskwise.objectives.regression import Regression
from maskwise.objectives.spans_qa import SpanQuestionAnswering
from maskwise.tasks.choices import encode_choices
from maskwise.tasks.data import SPLITS, Task
from maskwise.tasks.metrics import METRICS, UNSEEN
from maskwise.tasks.rows import METRICS_OF, SCORES
from maskwise.tasks.tensors import Data, encode_rows, encode_words, private_copy
from maskwise.tasks.windows import Windows, encode_questions


@dataclass(frozen=True)
class Trained:
    """A kind that is fine-tuned.

    Attributes:
        head: what is put on the encoder, a key of ``models.TASK_MODELS``.
        objective: the loss over such a model.
        config: what its configuration must say.
    """

    head: str
    objective: Callable[[nn.Module], Classification]
    config: Callable[[Task], Mapping[str, Any]] = lambda task: {}


def _classes(task: Task) -> Mapping[str, Any]:
    names = dict(enumerate(task.labels))
    return {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}


TRAINED: Mapping[str, Trained] = {
    "sequence-classification": Trained("sequence-classification", Classification, _classes),
    "token-classification": Trained("token-classification", Classification, _classes),
    "similarity": Trained(
        "sequence-classification", Regression,
        lambda task: {"num_labels": 1, "problem_type": "regression"},
    ),
    "question-answering": Trained(
        "question-answering", SpanQuestionAnswering, lambda task: {"num_labels": 2}
    ),
    "multiple-choice": Trained("multiple-choice", MultipleChoice),
}  # fmt: skip

_CACHE: OrderedDict[tuple[str, str, int], dict[str, Data]] = OrderedDict()
_CACHE_SIZE = 8


def check_length(task: Task, tokenizer: Any, max_length: int) -> None:
    """Whether rows of this length have room for text.

    Raises:
        MaskwiseError: they do not; a slow tokenizer, or one without padding.
    """
    backend = private_copy(tokenizer)
    asked = task.kind in ("question-answering", "multiple-choice")
    paired = asked or any(row.get("pair") is not None for row in task.splits["train"])
    texts = (2 if paired else 1) * (4 if task.kind == "question-answering" else 1)
    least = backend.num_special_tokens_to_add(is_pair=paired) + texts
    if max_length < least:
        raise MaskwiseError("max_length leaves no room for text", got=max_length, allowed=f"≥ {least}")


def encode(task: Task, tokenizer: Any, *, max_length: int) -> dict[str, Data]:
    """Every split as tensors; cached in the process by what the task and the tokenizer are.

    Args:
        task: what to encode, of a kind in ``TRAINED``.
        tokenizer: a fast tokenizer. max_length: rows are cut to so many tokens, special ones included;
            contexts of questions are read in windows of so many.

    Raises:
        MaskwiseError: a slow tokenizer, one without padding, or a length without room for text.
    """
    check_length(task, tokenizer, max_length)
    backend, pad = (
        private_copy(tokenizer, split_words=task.kind == "token-classification"),
        tokenizer.pad_token_id,
    )
    key = (task.fingerprint, hashlib.sha256(backend.to_str().encode()).hexdigest(), max_length)
    if key not in _CACHE:
        backend.enable_truncation(max_length)
        _CACHE[key] = {split: _encode(task, split, backend, pad, max_length) for split in SPLITS}
        while len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    return _CACHE[key]


def _encode(task: Task, split: str, backend: Any, pad: int, max_length: int) -> Data:
    rows = task.splits[split]
    if task.kind == "question-answering":
        return encode_questions(rows, backend, pad, max_length=max_length)
    if task.kind == "multiple-choice":
        return encode_choices(rows, backend, pad)
    make = encode_words if task.kind == "token-classification" else encode_rows
    return make(task, rows, backend, pad)


@torch.inference_mode()
def answers(objective: Any, data: Data) -> Any:
    """What the model answers, in float32: a class, score, choice or text for every item."""
    objective.eval()
    return data.answers(objective, next(objective.parameters()).device)


def score(task: Task, data: Any, answer: Any, *, metric: str | None = None) -> float:
    """The task's metric (or another) of answers to the rows of ``data``."""
    metric = metric or task.metric
    if isinstance(data, Windows):
        return METRICS[metric]([row["answers"] for row in data.rows], answer)
    if metric != "entity-f1":
        return METRICS[metric](data.gold.numpy(), answer.numpy())
    # An answer that could not be given is O; a tag that train does not have is an entity of its own kind.
    names = [*task.labels, "O", "B-unseen by train"]
    gold, given = ([names[i] for i in x.tolist()] for x in (data.gold, answer))
    return METRICS["entity-f1"](gold, given, data.word_starts[:-1].numpy())


def other_scores(task: Task, data: Any, answer: Any) -> dict[str, float]:
    """The further metrics of the kind, such as exact match beside F1."""
    others = [name for name in METRICS_OF[task.kind] if name not in (task.metric, "entity-f1")]
    return {name: score(task, data, answer, metric=name) for name in others}


def majority_score(task: Task) -> float:
    """The score on test of who has not read it.

    Always the commonest class (of rows, or of words) of train; its commonest answer; of choices one at random;
    of similarities any constant, which is 0.
    """
    test = task.splits["test"]
    if task.kind in SCORES:
        return 0.0
    if task.kind == "multiple-choice":
        return float(np.mean([1 / len(row["choices"]) for row in test]))
    if task.kind == "question-answering":
        most = Counter(row["answers"][0] for row in task.splits["train"]).most_common(1)[0][0]
        return METRICS[task.metric]([row["answers"] for row in test], [most] * len(test))
    train, gold = (_classes_of(task, split) for split in ("train", "test"))
    most = Counter(train).most_common(1)[0][0]  # of equally common ones the first met
    if task.metric == "entity-f1":
        starts = np.cumsum([0, *(len(row["tags"]) for row in test)])[:-1]
        return METRICS["entity-f1"](gold, [most] * len(gold), starts)
    code = {label: number for number, label in enumerate(task.labels)}
    return METRICS[task.metric]([code.get(label, UNSEEN) for label in gold], [code[most]] * len(gold))


def _classes_of(task: Task, split: str) -> list[str]:
    rows = task.splits[split]
    return [row["label"] for row in rows] if "label" in rows[0] else [t for row in rows for t in row["tags"]]
