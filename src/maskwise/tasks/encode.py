"""Rows of a task → tensors, once per task and tokenizer; then batches by index arithmetic.

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

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.masking.masked import IGNORE
from maskwise.tasks.data import SPLITS, Task
from maskwise.tasks.metrics import UNSEEN
from maskwise.tasks.rows import Row
from maskwise.training import TrainingSettings, permutation

WINDOW_STEPS = 16
"""Rows of so many steps are sorted by length together."""

_CACHE: OrderedDict[tuple[str, str, int], dict[str, Encoded]] = OrderedDict()
_CACHE_SIZE = 8


@dataclass(frozen=True, eq=False)
class Encoded:
    """One split as tensors: N rows, T tokens in all, W words in all.

    Attributes:
        ids, types: (T,) token ids and token types (0; 1 in the second text of a pair).
        starts: (N + 1,) where each row begins in ``ids``.
        targets: (N,) class of a row, or (T,) of a token; −100 where there is nothing to predict.
        gold: (N,) or (W,) what is scored: the class, −1 (``UNSEEN``) where train does not have it.
        place: (W,) the token that answers for a word, −1 for a lost word; None in sequence classification.
        word_starts: (N + 1,) where each row begins in ``gold``; None in sequence classification.
        pad: the padding id.
    """

    ids: Tensor
    types: Tensor
    starts: Tensor
    targets: Tensor
    gold: Tensor
    place: Tensor | None
    word_starts: Tensor | None
    pad: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Tensor:
        return self.starts.diff()

    @property
    def lost(self) -> int:
        """Words that cannot be answered."""
        return 0 if self.place is None else int((self.place < 0).sum())

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """(B, L) input_ids, attention_mask and, if there are pairs, token_type_ids; labels (B,) or (B, L)."""
        start, length = self.starts[rows], self.lengths[rows]
        column = torch.arange(int(length.max()))
        real = column < length.unsqueeze(1)
        at = torch.where(real, start.unsqueeze(1) + column, 0)
        out = {"input_ids": torch.where(real, self.ids[at], self.pad), "attention_mask": real.long()}
        if self.types.any():
            out["token_type_ids"] = torch.where(real, self.types[at], 0)
        by_token = self.place is not None
        out["labels"] = torch.where(real, self.targets[at], IGNORE) if by_token else self.targets[rows]
        return out


class TaskSource:
    """Training batches of a task, for the loop: all rows in a new order every epoch, every batch full.

    The stream of rows is the epochs' permutations one behind the other, so a batch may span two epochs and
    none is smaller than the others.
    """

    def __init__(self, data: Encoded, settings: TrainingSettings):
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


def encode(task: Task, tokenizer: Any, *, max_length: int) -> dict[str, Encoded]:
    """Every split as tensors; cached in the process by what the task and the tokenizer are.

    Args:
        task: what to encode.
        tokenizer: a fast tokenizer. max_length: rows are cut to so many tokens, special ones included.

    Raises:
        MaskwiseError: a slow tokenizer, one without padding, or a length without room for text.
    """
    backend = _private_copy(tokenizer, split_words=task.kind == "token-classification")
    if tokenizer.pad_token_id is None:
        raise MaskwiseError("the tokenizer has no padding token", do="set tokenizer.pad_token")
    paired = task.kind == "sequence-classification" and any(
        row["pair"] is not None for row in task.splits["train"]
    )
    least = backend.num_special_tokens_to_add(is_pair=paired) + (2 if paired else 1)
    if max_length < least:
        raise MaskwiseError("max_length leaves no room for text", got=max_length, allowed=f"≥ {least}")
    key = (task.fingerprint, hashlib.sha256(backend.to_str().encode()).hexdigest(), max_length)
    if key not in _CACHE:
        backend.enable_truncation(max_length)
        _CACHE[key] = {
            split: _encode(task, task.splits[split], backend, tokenizer.pad_token_id) for split in SPLITS
        }
        while len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    return _CACHE[key]


def _encode(task: Task, rows: list[Row], backend: Tokenizer, pad: int) -> Encoded:
    code = {label: number for number, label in enumerate(task.labels)}
    if task.kind == "sequence-classification":
        texts = [row["text"] if row["pair"] is None else (row["text"], row["pair"]) for row in rows]
        found = backend.encode_batch(texts)
        gold = torch.tensor([code.get(row["label"], UNSEEN) for row in rows])
        return Encoded(*_flat(found), torch.where(gold < 0, IGNORE, gold), gold, None, None, pad)
    found = backend.encode_batch([row["tokens"] for row in rows], is_pretokenized=True)
    ids, types, starts = _flat(found)
    gold = torch.tensor([code.get(tag, UNSEEN) for row in rows for tag in row["tags"]])
    word_starts = _edges([len(row["tokens"]) for row in rows])
    # Words are numbered in their row; special tokens have none, which numpy reads as nan.
    word = np.array(list(chain.from_iterable(e.word_ids for e in found)), dtype=np.float64)
    has_word = torch.from_numpy(~np.isnan(word))
    word_T = torch.from_numpy(np.nan_to_num(word, nan=-1)).long()
    row_T = torch.repeat_interleave(torch.arange(len(rows)), starts.diff())
    running_T = torch.where(has_word, word_starts[row_T] + word_T, -1)
    is_first = has_word & (running_T != running_T.roll(1))
    is_first[0] = has_word[0]
    first = is_first.nonzero().flatten()
    place = torch.full((len(gold),), -1)
    place[running_T[first]] = first
    targets = torch.full((len(ids),), IGNORE)
    targets[first] = torch.where(gold < 0, IGNORE, gold)[running_T[first]]
    return Encoded(ids, types, starts, targets, gold, place, word_starts, pad)


def _flat(found: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """ids and types (T,), starts (N + 1,)."""
    ids, types = (torch.from_numpy(np.fromiter(chain.from_iterable(x), dtype=np.int64)) for x in (
        (e.ids for e in found), (e.type_ids for e in found)
    ))  # fmt: skip
    return ids, types, _edges([len(e.ids) for e in found])


def _edges(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def _private_copy(tokenizer: Any, *, split_words: bool) -> Tokenizer:
    """The tokenizer without padding and truncation, to which "[MASK]" in a text is text."""
    if not getattr(tokenizer, "is_fast", False):
        raise MaskwiseError("tasks need a fast tokenizer", got=type(tokenizer).__name__)
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
