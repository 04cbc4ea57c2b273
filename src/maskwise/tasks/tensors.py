"""Rows of texts and of words as tensors; then batches by index arithmetic.

Words of token classification are the words of the *data*, given to the tokenizer one by one; the tag stands
on the first piece of each. A word whose first piece was cut off, or that has no piece at all, cannot be
answered: it is counted in ``lost`` and scored as wrong, for leaving it out would reward short rows and coarse
tokenizers.

Byte-level and metaspace tokenizers write a word after a space otherwise than one without. In running text
nearly every word follows a space, so in a private copy of the tokenizer every given word does.

Cost: the Rust tokenizer's, once; a batch is one gather. Training batches are made of rows of similar length,
from windows of a few steps, which halves the padding; which rows meet is still a function of (seed, step).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.masking.masked import IGNORE
from maskwise.tasks.data import Task
from maskwise.tasks.metrics import LOST, UNSEEN
from maskwise.tasks.rows import SCORES, Row
from maskwise.training import TrainingSettings, permutation

WINDOW_STEPS = 16
"""Rows of so many steps are sorted by length together."""

EVAL_TOKENS = 8192
"""Padded tokens of one batch of evaluation."""


class Data(Protocol):
    """One split as tensors: N rows to train on."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> Tensor:
        """(N,) tokens that a row costs."""

    @property
    def lost(self) -> int:
        """Items that cannot be answered, whatever a model says."""

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Model inputs and labels of rows."""

    def answers(self, objective: Any, device: torch.device) -> Any:
        """What a trained objective says to every item."""


@dataclass(frozen=True, eq=False)
class Flat:
    """N sequences behind one another: ids and token types (T,), starts (N + 1,), the padding id."""

    ids: Tensor
    types: Tensor
    starts: Tensor
    pad: int

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) where the tokens of rows stand, and which are real."""
        start, length = self.starts[rows], self.starts.diff()[rows]
        column = torch.arange(int(length.max()))
        real = column < length.unsqueeze(1)
        return torch.where(real, start.unsqueeze(1) + column, 0), real

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """(B, L) input_ids, attention_mask and, if there are pairs, token_type_ids."""
        at, real = self.at(rows)
        out = {"input_ids": torch.where(real, self.ids[at], self.pad), "attention_mask": real.long()}
        if self.types.any():
            out["token_type_ids"] = torch.where(real, self.types[at], 0)
        return out


@dataclass(frozen=True, eq=False)
class Encoded:
    """Classes of rows or of words, or scores of rows: N rows, T tokens in all, W words in all.

    Attributes:
        flat: the sequences.
        targets: (N,) class of a row, or its standardised score, or (T,) class of a token; −100 where there is
            nothing to predict.
        gold: (N,) or (W,) what is scored: the class, −1 (``UNSEEN``) where train does not have it; or the score.
        place: (W,) the token that answers for a word, −1 for a lost word; None if rows are answered.
        word_starts: (N + 1,) where each row begins in ``gold``; None if rows are answered.
    """

    flat: Flat
    targets: Tensor
    gold: Tensor
    place: Tensor | None = None
    word_starts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.flat.starts) - 1

    @property
    def lengths(self) -> Tensor:
        return self.flat.starts.diff()

    @property
    def lost(self) -> int:
        """Words that cannot be answered."""
        return 0 if self.place is None else int((self.place < 0).sum())

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What ``Flat.batch`` gives, and labels (B,) or (B, L)."""
        out = self.flat.batch(rows)
        if self.place is None:
            return {**out, "labels": self.targets[rows]}
        at, real = self.flat.at(rows)
        return {**out, "labels": torch.where(real, self.targets[at], IGNORE)}

    def answers(self, objective: Any, device: torch.device) -> Tensor:
        """The most probable class of every row (N,) or word (W,), −2 (``LOST``) for lost words; or the score."""
        by_token, scores = self.place is not None, self.targets.is_floating_point()
        out = torch.full((len(self.flat.ids) if by_token else len(self),), LOST)
        out = out.float() if scores else out
        for rows, batch in batches(self, device):
            logits = objective.logits(batch).cpu()
            best = logits.float().squeeze(-1) if scores else logits.argmax(-1)
            if by_token:
                at, real = self.flat.at(rows)
                out[at[real]] = best[real]
            else:
                out[rows] = best
        return out if self.place is None else torch.where(self.place < 0, LOST, out[self.place])


def batches(data: Any, device: torch.device) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Rows of similar length and their batch on a device, each of about ``EVAL_TOKENS`` padded tokens."""
    order = data.lengths.argsort(descending=True, stable=True)
    while len(order):
        size = max(1, EVAL_TOKENS // max(1, int(data.lengths[order[0]])))
        rows, order = order[:size], order[size:]
        yield rows, {name: value.to(device) for name, value in data.batch(rows).items()}


class TaskSource:
    """Training batches of a task, for the loop: all rows in a new order every epoch, every batch full.

    The stream of rows is the epochs' permutations one behind the other, so a batch may span two epochs and
    none is smaller than the others.
    """

    def __init__(self, data: Data, settings: TrainingSettings):
        self.data, self.settings = data, settings
        self._window: tuple[int, Tensor] = (-1, torch.empty(0))

    def rows(self, step: int) -> Tensor:
        """(batch_size,) the rows of a step."""
        window, place = divmod(step, WINDOW_STEPS)
        if self._window[0] != window:
            self._window = (window, self._plan(window))
        return self._window[1][place]

    def _plan(self, window: int) -> Tensor:
        """(steps, batch_size) rows of a window: similar lengths together, the batches then in random
        order."""
        size, seed, batch_size = len(self.data), self.settings.seed, self.settings.batch_size
        first = window * WINDOW_STEPS * batch_size
        position = torch.arange(first, first + WINDOW_STEPS * batch_size)
        epoch = position // size
        parts = [
            permutation(size, seed=seed, epoch=e)[position[epoch == e] % size]
            for e in epoch.unique().tolist()
        ]
        stream = torch.cat(parts)
        stream = stream[self.data.lengths[stream].argsort(stable=True)].view(WINDOW_STEPS, batch_size)
        return stream[permutation(WINDOW_STEPS, seed=seed, epoch=window)]

    def batches(self, step: int, *, rank: int, ranks: int, device: torch.device) -> list[dict[str, Tensor]]:
        """The micro-batches of ``step`` for ``rank``: a function of (seed, step)."""
        mine = self.rows(step).view(self.settings.accumulate, ranks, -1)[:, rank]
        return [{name: value.to(device) for name, value in self.data.batch(part).items()} for part in mine]

    def facts(self, batches: list[dict[str, Tensor]]) -> dict[str, float]:
        return {"tokens": float(sum(int(b["attention_mask"].sum()) for b in batches))}

    def summarise(self, sums: Mapping[str, float]) -> dict[str, Any]:
        return {"tokens": int(sums["tokens"])}


def encode_rows(task: Task, rows: list[Row], backend: Tokenizer, pad: int) -> Encoded:
    """Texts, or pairs of them, with a class or a score."""
    texts = [row["text"] if row["pair"] is None else (row["text"], row["pair"]) for row in rows]
    data = flat(backend.encode_batch(texts), pad)
    if task.kind in SCORES:
        known = torch.tensor([row["score"] for row in task.splits["train"]], dtype=torch.float64)
        gold = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
        return Encoded(data, ((gold - known.mean()) / known.std(correction=0)).float(), gold)
    code = {label: number for number, label in enumerate(task.labels)}
    gold = torch.tensor([code.get(row["label"], UNSEEN) for row in rows])
    return Encoded(data, torch.where(gold < 0, IGNORE, gold), gold)


def encode_words(task: Task, rows: list[Row], backend: Tokenizer, pad: int) -> Encoded:
    """Lists of words with a class each."""
    code = {label: number for number, label in enumerate(task.labels)}
    found = backend.encode_batch([row["tokens"] for row in rows], is_pretokenized=True)
    data = flat(found, pad)
    gold = torch.tensor([code.get(tag, UNSEEN) for row in rows for tag in row["tags"]])
    word_starts = edges([len(row["tokens"]) for row in rows])
    # Words are numbered in their row; special tokens have none, which numpy reads as nan.
    word = np.array(list(chain.from_iterable(e.word_ids for e in found)), dtype=np.float64)
    has_word = torch.from_numpy(~np.isnan(word))
    word_T = torch.from_numpy(np.nan_to_num(word, nan=-1)).long()
    row_T = torch.repeat_interleave(torch.arange(len(rows)), data.starts.diff())
    running_T = torch.where(has_word, word_starts[row_T] + word_T, -1)
    is_first = has_word & (running_T != running_T.roll(1))
    is_first[0] = has_word[0]
    first = is_first.nonzero().flatten()
    place = torch.full((len(gold),), -1)
    place[running_T[first]] = first
    targets = torch.full((len(data.ids),), IGNORE)
    targets[first] = torch.where(gold < 0, IGNORE, gold)[running_T[first]]
    return Encoded(data, targets, gold, place, word_starts)


def flat(found: Sequence[Any], pad: int) -> Flat:
    """What the tokenizer found, as tensors."""
    ids, types = (torch.from_numpy(np.fromiter(chain.from_iterable(x), dtype=np.int64)) for x in (
        (e.ids for e in found), (e.type_ids for e in found)
    ))  # fmt: skip
    return Flat(ids, types, edges([len(e.ids) for e in found]), pad)


def edges(lengths: Sequence[int]) -> Tensor:
    """(N + 1,) where parts of these lengths begin, and the end."""
    return torch.tensor([0, *lengths]).cumsum(0)


def private_copy(tokenizer: Any, *, split_words: bool = False) -> Tokenizer:
    """The tokenizer without padding and truncation, to which "[MASK]" in a text is text.

    Raises:
        MaskwiseError: a slow tokenizer, one without padding.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise MaskwiseError("tasks need a fast tokenizer", got=type(tokenizer).__name__)
    if tokenizer.pad_token_id is None:
        raise MaskwiseError("the tokenizer has no padding token", do="set tokenizer.pad_token")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if split_words:
        steps = state["pre_tokenizer"] or {}
        for step in steps.get("pretokenizers", [steps]):
            if step.get("type") == "ByteLevel":
                step["add_prefix_space"] = True
            if step.get("type") == "Metaspace":
                step["prepend_scheme"] = "always"
    backend = Tokenizer.from_str(json.dumps(state))
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend
