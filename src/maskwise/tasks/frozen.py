"""Judge sentence embeddings: the encoder stays as it is, nothing is fine-tuned, nothing is random.

- zero-shot similarity: the cosine of two sentences' embeddings against people's scores (STS);
- sentence embedding: logistic regression on embeddings, with the strength of its penalty chosen on dev, on
  SentEval's grid. (SentEval itself cuts MR, CR, SUBJ and MPQA into ten folds; here they are cut once, by hash.)

An embedding is the mean over the last layer's real tokens, special ones included, as sentence-transformers has
it, or the first token's ("cls").

Cost: one forward pass over every text; the regressions are scikit-learn's.

Source: Conneau & Kiela 2018 (SentEval), section 3.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.tasks.data import Task
from maskwise.tasks.metrics import METRICS, UNSEEN
from maskwise.tasks.rows import METRICS_OF
from maskwise.tasks.tensors import Encoded, batches, flat, private_copy

PENALTIES = tuple(2.0**power for power in range(-2, 4))
"""SentEval's grid of C, the inverse of the penalty."""


@torch.inference_mode()
def embed(model: Any, texts: list[str], tokenizer: Any, *, max_length: int, pooling: str = "mean") -> Tensor:
    """(N, H) float32 embeddings of texts, by an encoder without a head."""
    backend = private_copy(tokenizer)
    backend.enable_truncation(max_length)
    found = flat(backend.encode_batch(texts), tokenizer.pad_token_id)
    if not int(found.starts.diff().min()):
        raise MaskwiseError("a text without any token cannot be embedded", got="an empty text")
    nothing = torch.zeros(len(texts))
    model.eval()
    out = torch.empty(len(texts), model.config.hidden_size)
    for rows, batch in batches(Encoded(found, nothing, nothing), model.device):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states, real = model(**inputs).last_hidden_state.float(), inputs["attention_mask"].unsqueeze(-1)
        out[rows] = (states[:, 0] if pooling == "cls" else (states * real).sum(1) / real.sum(1)).cpu()
    return out


def judge(model: Any, task: Task, tokenizer: Any, *, max_length: int) -> dict[str, Any]:
    """``score`` on test, ``dev`` (None without dev rows) and ``others``, the further metrics on test."""
    how: dict[str, Any] = {"max_length": max_length, "pooling": task.pooling}
    texts = {split: [row[side] for row in rows for side in ("text", "pair") if row[side] is not None]
             for split, rows in task.splits.items()}  # fmt: skip
    vectors = {split: embed(model, each, tokenizer, **how) for split, each in texts.items() if each}
    answer = _cosines if task.kind == "zero-shot-similarity" else _regressed
    given = answer(task, vectors)
    scores = {
        metric: {split: METRICS[metric](_gold(task, split), given[split]) for split in given}
        for metric in METRICS_OF[task.kind]
    }
    others = {metric: found["test"] for metric, found in scores.items() if metric != task.metric}
    return {"score": scores[task.metric]["test"], "dev": scores[task.metric].get("dev"), "others": others}


def _cosines(task: Task, vectors: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {
        split: torch.cosine_similarity(vectors[split][::2], vectors[split][1::2]).double().numpy()
        for split in ("dev", "test") if split in vectors
    }  # fmt: skip


def _regressed(task: Task, vectors: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    """The answers of the regression that is best on dev; of equally good ones the more strongly penalised."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    features = {split: _features(task, split, vectors[split]).double().numpy() for split in vectors}
    gold = {split: _gold(task, split) for split in features}
    tried = []
    for penalty in PENALTIES:
        with warnings.catch_warnings():
            # An embedding that is not scaled may need more steps; the score moves no more by then.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(C=penalty, max_iter=300).fit(features["train"], gold["train"])
        tried.append((METRICS[task.metric](gold["dev"], fitted.predict(features["dev"])), fitted))
    best = max(tried, key=lambda pair: pair[0])[1]
    return {split: best.predict(features[split]) for split in ("dev", "test")}


def _features(task: Task, split: str, vectors: Tensor) -> Tensor:
    """(N, H) of texts; of pairs u and v [|u − v|, u · v], as SentEval has it."""
    if all(row["pair"] is None for row in task.splits[split]):
        return vectors
    u, v = vectors[::2], vectors[1::2]
    return torch.cat([(u - v).abs(), u * v], dim=1)


def _gold(task: Task, split: str) -> NDArray[Any]:
    rows = task.splits[split]
    if task.kind == "zero-shot-similarity":
        return np.array([row["score"] for row in rows])
    code = {label: number for number, label in enumerate(task.labels)}
    return np.array([code.get(row["label"], UNSEEN) for row in rows])
