"""Kinds that judge sentence embeddings: the encoder stays as it is, nothing is fine-tuned, nothing is random.

An embedding is the mean over the last layer's real tokens, special ones included, as sentence-transformers has
it, or the first token's ("cls").

Cost: one forward pass over every text; the regressions are scikit-learn's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from maskwise.errors import MaskwiseError
from maskwise.tasks.kinds.labels import Classes, ScoredRow, Scores, TextRow
from maskwise.tasks.task import Columns, Frozen, R, Task
from maskwise.tasks.tensors import Flat, batches, private_copy
from maskwise.text.labelled import Record

PENALTIES = tuple(2.0**power for power in range(-2, 4))
"""SentEval's grid of C, the inverse of the penalty."""


class ZeroShotSimilarity(Scores, Frozen[ScoredRow]):
    """The cosine of two sentences' embeddings against people's scores (STS). Nothing is learned from train."""

    name = "zero-shot-similarity"
    suffix = "-zero-shot"
    needs_train = False

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """Never: the same rows can be fine-tuned on."""
        return False

    def answers(
        self, network: PreTrainedModel, task: Task[ScoredRow], tokenizer: PreTrainedTokenizerBase, *, max_length: int
    ) -> Mapping[str, ArrayLike]:  # fmt: skip
        vectors = embed_splits(network, task, tokenizer, max_length=max_length)
        return {
            split: torch.cosine_similarity(both[::2], both[1::2]).double().numpy()
            for split, both in vectors.items()
        }


class SentenceEmbedding(Classes, Frozen[TextRow]):
    """The class of a text (or of two) by logistic regression on embeddings.

    The strength of the penalty is chosen on dev, on SentEval's grid; of equally good ones the strongest. (SentEval
    itself cuts MR, CR, SUBJ and MPQA into ten folds; here they are cut once, by hash.) Majority: the commonest class
    of train. Source: Conneau & Kiela 2018 (SentEval), section 3.
    """

    name = "sentence-embedding"
    suffix = "-embedding"

    def recognises(self, records: Sequence[Record], given: Columns) -> bool:
        """Never: the same rows can be fine-tuned on."""
        return False

    def answers(
        self, network: PreTrainedModel, task: Task[TextRow], tokenizer: PreTrainedTokenizerBase, *, max_length: int
    ) -> Mapping[str, ArrayLike]:  # fmt: skip
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        vectors = embed_splits(network, task, tokenizer, max_length=max_length)
        features = {split: _features(task, split, each).double().numpy() for split, each in vectors.items()}
        tried = []
        for penalty in PENALTIES:
            with warnings.catch_warnings():
                # An embedding that is not scaled may need more steps; the score moves no more by then.
                warnings.simplefilter("ignore", ConvergenceWarning)
                fitted = LogisticRegression(C=penalty, max_iter=300)
                fitted.fit(features["train"], self.gold(task, "train"))
            tried.append((task.score("dev", fitted.predict(features["dev"])), fitted))
        best = max(tried, key=lambda pair: pair[0])[1]
        return {split: best.predict(features[split]) for split in ("dev", "test")}


def _features(task: Task[TextRow], split: str, vectors: Tensor) -> Tensor:
    """(N, H) of texts; of pairs u and v (N, 2 H) [|u − v|, u · v], as SentEval has it."""
    if all(row.pair is None for row in task.splits[split]):
        return vectors
    u, v = vectors[::2], vectors[1::2]
    return torch.cat([(u - v).abs(), u * v], dim=1)


def embed_splits(
    network: PreTrainedModel, task: Task[R], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> dict[str, Tensor]:
    """The embeddings of every split that has rows: of pairs two behind one another."""
    texts = {split: [text for row in rows for text in row.texts] for split, rows in task.splits.items()}
    return {
        split: embed(network, each, tokenizer, max_length=max_length, pooling=task.pooling)
        for split, each in texts.items() if each
    }  # fmt: skip


@torch.inference_mode()
def embed(
    network: PreTrainedModel, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int,
    pooling: str = "mean",
) -> Tensor:  # fmt: skip
    """(N, H) float32 embeddings of texts, by an encoder without a head.

    Args:
        max_length: longer texts are cut at so many tokens, special ones included.
        pooling: "mean" or "cls".

    Raises:
        MaskwiseError: a text without any token, or an encoder that gives no finite numbers.
    """
    backend = private_copy(tokenizer)
    backend.enable_truncation(max_length)
    flat = Flat.of(backend.encode_batch(texts), int(tokenizer.pad_token_id))
    if not int(flat.lengths.min()):
        raise MaskwiseError("a text without any token cannot be embedded", got="an empty text")
    network.eval()
    vectors = torch.empty(len(texts), network.config.hidden_size)
    for rows, batch in batches(flat, network.device):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states, real = network(**inputs).last_hidden_state.float(), inputs["attention_mask"].unsqueeze(-1)
        pooled = states[:, 0] if pooling == "cls" else (states * real).sum(1) / real.sum(1)
        vectors[rows] = pooled.cpu()
    return vectors
