"""Rows of tasks as tensors, and batches of them.

Sequences are concatenated without padding, and a batch is one gather. Training batches hold rows of
similar length, from windows of a few steps, which halves the padding; their rows are a function of
(seed, step). A task is tokenised once per process for each tokenizer and length.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import fold
from maskwise.masking.batch import IGNORE, moved
from maskwise.objectives import Classification
from maskwise.tasks.metrics import LOST
from maskwise.tasks.task import SPLITS, Answers, Rows, Task
from maskwise.training import TrainingSettings, permutation
from maskwise.training.data import by_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Inputs of a model, and labels.
Batch: TypeAlias = dict[str, Tensor]
# Rows of this many steps are sorted by length together.
WINDOW_STEPS = 16
# Separates the draws of training batches from all other draws.
CHOICE = 0xC401CE
# Padded tokens in one batch of evaluation.
EVAL_TOKENS = 8192
# Share of rows that may be cut without a note.
MOST_CUT = 0.05


@dataclass(frozen=True, eq=False)
class Flat:
    """N concatenated sequences.

    Attributes:
        ids, types: (T,) token ids and token types.
        starts: (N + 1,) where sequences begin, and the end.
        pad: the padding id.
        cut: sequences that were cut.
    """

    ids: Tensor
    types: Tensor
    starts: Tensor
    pad: int
    cut: int = 0

    @classmethod
    def of(cls, encodings: Sequence[Encoding], pad: int) -> Flat:
        """The output of a tokenizer as tensors."""
        ids = chain.from_iterable(e.ids for e in encodings)
        types = chain.from_iterable(e.type_ids for e in encodings)
        starts = edges([len(e.ids) for e in encodings])
        return cls(_tensor(ids), _tensor(types), starts, pad)

    @property
    def lengths(self) -> Tensor:
        """(N,) tokens of every sequence."""
        return self.starts.diff()

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) the places of the tokens of rows, and which of them are real."""
        return places_of(self.starts, rows)

    def batch(self, rows: Tensor) -> Batch:
        """(B, L) input_ids, attention_mask and, if there are pairs, token_type_ids."""
        at, real = self.at(rows)
        inputs = {
            "input_ids": torch.where(real, self.ids[at], self.pad),
            "attention_mask": real.long(),
        }
        if self.types.any():
            inputs["token_type_ids"] = torch.where(real, self.types[at], 0)
        return inputs


def _tensor(numbers: Iterable[int]) -> Tensor:
    return torch.from_numpy(np.fromiter(numbers, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Trainable(ABC):
    """N rows that can be batched for training.

    Attributes:
        flat: the sequences.
    """

    flat: Flat

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def lengths(self) -> Tensor:
        """(N,) tokens of every row."""
        return self.flat.lengths

    @abstractmethod
    def batch(self, rows: Tensor) -> Batch:
        """Model inputs and labels of rows."""

    def training_batch(self, rows: Tensor, draws: Tensor) -> Batch:
        """The same for a step of training. ``draws`` (B,) are random integers ≥ 0, for kinds that
        choose among several targets.
        """
        return self.batch(rows)


class Data(Trainable):
    """One split as tensors, and how to read answers off a model."""

    @property
    def lost(self) -> int:
        """Items that no model can answer."""
        return 0

    def notes(self) -> list[str]:
        """Notes on rows that were cut, for records."""
        rows = len(self.flat.lengths)
        if self.flat.cut <= MOST_CUT * rows:
            return []
        return [f"rows cut at {self.flat.lengths.max()} tokens: {self.flat.cut} of {rows}"]

    def chance(self, train: Data) -> float | None:
        """The score of the best guess that ignores the text, where it needs the tokens of train."""
        return None

    @abstractmethod
    def answers(self, objective: Any, device: torch.device) -> Answers:
        """The answer of a trained objective to every item."""


def batches(data: Flat | Data, device: torch.device) -> Iterator[tuple[Tensor, Batch]]:
    """Rows of similar length and their batch on a device, about ``EVAL_TOKENS`` padded tokens."""
    for rows in by_width(data.lengths, EVAL_TOKENS):
        yield rows, moved(data.batch(rows), device)


@dataclass(frozen=True, eq=False)
class Encoded(Data):
    """Classes of rows or of words, or scores of rows: N rows, T tokens in all, W words in all.

    Attributes:
        targets: (N,) the class or the standardised score of a row, (N, K) its labels, or (T,) the
            class of a token; −100 where there is nothing to predict.
        place: (W,) the token that answers for a word, −1 for a lost word; None if rows are
            answered.
    """

    targets: Tensor
    place: Tensor | None = None

    @property
    def lost(self) -> int:
        """Words that cannot be answered."""
        return 0 if self.place is None else int((self.place < 0).sum())

    def batch(self, rows: Tensor) -> Batch:
        """The inputs of ``Flat.batch``, and labels (B,), (B, K) or (B, L)."""
        inputs = self.flat.batch(rows)
        if self.place is None:
            return {**inputs, "labels": self.targets[rows]}
        at, real = self.flat.at(rows)
        return {**inputs, "labels": torch.where(real, self.targets[at], IGNORE)}

    def answers(self, objective: Classification, device: torch.device) -> Tensor:
        """The most probable class of every row (N,) or word (W,), −2 (``LOST``) for lost words; the
        labels (N, K) that are more probable than not; or the score of every row (N,).
        """
        answers = torch.full_like(self.targets, LOST)
        for rows, batch in batches(self, device):
            logits = objective.logits(batch).float().cpu()
            if self.targets.ndim == 2:
                answers[rows] = (logits > 0).to(answers.dtype)
            elif self.targets.is_floating_point():
                answers[rows] = logits.squeeze(-1)
            elif self.place is None:
                answers[rows] = logits.argmax(-1)
            else:
                at, real = self.flat.at(rows)
                answers[at[real]] = logits.argmax(-1)[real]
        if self.place is None:
            return answers
        return torch.where(self.place < 0, LOST, answers[self.place])


class TaskSource:
    """Training batches of a task: all rows in a new order every epoch.

    Every batch is full, because the permutations of the epochs are concatenated, and a batch may
    span two epochs.
    """

    ahead = 1

    def __init__(self, data: Trainable, settings: TrainingSettings):
        self.data = data
        self.settings = settings
        self._window: tuple[int, Tensor] = (-1, torch.empty(0))

    def rows(self, step: int) -> Tensor:
        """(batch_size,) the rows of a step."""
        return self._planned(step)[:, 0]

    def _planned(self, step: int) -> Tensor:
        """(batch_size, 2) the rows of a step, each with its epoch."""
        window, place = divmod(step, WINDOW_STEPS)
        if self._window[0] != window:
            self._window = (window, self._plan(window))
        return self._window[1][place]

    def _plan(self, window: int) -> Tensor:
        """(steps, batch_size, 2) of a window: batches of similar lengths, in random order."""
        size = len(self.data)
        batch_size = self.settings.batch_size
        first = window * WINDOW_STEPS * batch_size
        position = torch.arange(first, first + WINDOW_STEPS * batch_size)
        epoch = position // size
        stream = torch.cat(
            [
                permutation(size, seed=self.settings.seed, epoch=e)[position[epoch == e] % size]
                for e in epoch.unique().tolist()
            ]
        )
        by_length = self.data.lengths[stream].argsort(stable=True)
        plan = torch.stack([stream, epoch], dim=1)[by_length].view(WINDOW_STEPS, batch_size, 2)
        return plan[permutation(WINDOW_STEPS, seed=self.settings.seed, epoch=window)]

    def batches(self, step: int, *, rank: int, ranks: int) -> list[Batch]:
        """The micro-batches of ``step`` for ``rank``: a function of (seed, step)."""
        parts = self._planned(step).view(self.settings.accumulate, ranks, -1, 2)[:, rank]
        return [self.data.training_batch(part[:, 0], self._draws(part)) for part in parts]

    def _draws(self, part: Tensor) -> Tensor:
        """(B,) a random integer for each row, a function of (seed, epoch, row)."""
        seed = self.settings.seed
        return torch.tensor([fold(seed, epoch, row, CHOICE) for row, epoch in part.tolist()])

    def facts(self, batches: Sequence[Batch]) -> dict[str, float]:
        lengths = torch.cat([b["attention_mask"].sum(1).double() for b in batches])
        return {
            "tokens": float(lengths.sum()),
            "squares": float((lengths**2).sum()),
            "positions": float(sum(b["attention_mask"].numel() for b in batches)),
        }

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {
            "tokens": int(sums["tokens"]),
            "padding": 1 - sums["tokens"] / max(1.0, sums["positions"]),
        }


# Tokenising


def encode(task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> dict[str, Data]:
    """Every split as tensors, cached for the next seed.

    Args:
        task: of a kind that is fine-tuned.
        tokenizer: a fast one.
        max_length: tokens of a row, with special ones. Longer rows are cut; contexts of questions
            are read in windows.

    Raises:
        MaskwiseError: a slow tokenizer, one without padding, or a length without room for text.
    """
    check_length(task, tokenizer, max_length)
    state = tokenizer_state(tokenizer, words=task.kind.words)
    return _encoded(task, state, padding_id(tokenizer), max_length)


@lru_cache(maxsize=8)
def _encoded(task: Task, state: str, pad: int, max_length: int) -> dict[str, Data]:
    encode_split = task.kind.encode
    assert encode_split is not None, "frozen kinds have no tensors to train on"
    return {split: encode_split(task, split, Cutter.of(state, pad, max_length)) for split in SPLITS}


def warn_of_cuts(task: Task, data: Mapping[str, Data]) -> list[str]:
    """Notes on the rows of each split that were cut. A task is warned of once in a process."""
    notes: list[str] = []
    for split, part in data.items():
        notes += [f"{split}: {note}" for note in part.notes()]
    if notes:
        _warn_once(f"{task.name}: {'; '.join(notes)}")
    return notes


@lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


@dataclass(frozen=True)
class Cutter:
    """A tokenizer for tasks: its Rust part, which cuts rows, and the padding id."""

    backend: Tokenizer
    pad: int
    max_length: int

    @classmethod
    def of(cls, state: str, pad: int, max_length: int) -> Cutter:
        """A tokenizer without padding, for which "[MASK]" in a text is text."""
        backend = Tokenizer.from_str(state)
        backend.encode_special_tokens = True
        backend.enable_truncation(max_length)
        return cls(backend, pad, max_length)

    def flat(self, texts: Sequence[str | tuple[str, ...]]) -> Flat:
        """One sequence for each text, or pair of texts."""
        encodings = self.backend.encode_batch(texts)
        return replace(Flat.of(encodings, self.pad), cut=count_cut(encodings))

    def rows(self, rows: Rows) -> Flat:
        """One sequence for each row of one or two texts."""
        texts = [row.texts for row in rows]
        return self.flat([both if len(both) > 1 else both[0] for both in texts])


def count_cut(encodings: Sequence[Encoding]) -> int:
    """How many of these were longer than their tokenizer allows."""
    return sum(bool(encoding.overflowing) for encoding in encodings)


def check_length(task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """
    Raises:
        MaskwiseError: a length without room for text; a slow tokenizer, or one without padding.
    """
    padding_id(tokenizer)
    several = any(len(row.texts) > 1 for row in task.splits["train"])
    paired, tokens = task.kind.least_tokens or (several, 1 + several)
    least = tokenizer.num_special_tokens_to_add(pair=paired) + tokens
    if max_length < least:
        what = "max_length leaves no room for text"
        raise MaskwiseError(what, got=max_length, allowed=f"≥ {least}")


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding id of a fast tokenizer; an error for any other one."""
    if not getattr(tokenizer, "is_fast", False):
        raise MaskwiseError("tasks need a fast tokenizer", got=type(tokenizer).__name__)
    if tokenizer.pad_token_id is None:
        raise MaskwiseError("the tokenizer has no padding token", do="set tokenizer.pad_token")
    return int(tokenizer.pad_token_id)


def tokenizer_state(tokenizer: PreTrainedTokenizerBase, *, words: bool = False) -> str:
    """The state of the tokenizer as JSON, without padding and truncation.

    Args:
        words: prepare it for single words of running text. Byte-level and metaspace tokenizers
            encode a word after a space differently, and in running text nearly every word follows
            a space, so every word is given one.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"padding": None, "truncation": None}
    steps = state["pre_tokenizer"] or {}
    for step in steps.get("pretokenizers", [steps]) if words else ():
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = True
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "always"
    return json.dumps(state)


def places_of(starts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L) the places of the members of rows that begin at ``starts`` (N + 1,), and which of them
    are real; padding is 0.
    """
    length = starts.diff()[rows]
    column = torch.arange(int(length.max()))
    real = column < length.unsqueeze(1)
    return torch.where(real, starts[rows].unsqueeze(1) + column, 0), real


def edges(lengths: Sequence[int]) -> Tensor:
    """(N + 1,) where parts of these lengths begin, and the end."""
    return torch.tensor([0, *lengths]).cumsum(0)


# Embeddings


@torch.inference_mode()
def embed(
    network: PreTrainedModel,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    pooling: str = "mean",
) -> Tensor:
    """(N, H) float32 embeddings of texts by an encoder without a head.

    Args:
        max_length: tokens of a text, with special ones; longer texts are cut.
        pooling: "mean" over the last layer, special tokens included, as in sentence-transformers;
            or "cls", the first token.

    Raises:
        MaskwiseError: a text without any token.
    """
    flat = Cutter.of(tokenizer_state(tokenizer), padding_id(tokenizer), max_length).flat(texts)
    if not int(flat.lengths.min()):
        raise MaskwiseError("a text without any token cannot be embedded", got="an empty text")
    network.eval()
    vectors = torch.empty(len(texts), network.config.hidden_size)
    for rows, batch in batches(flat, network.device):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states = network(**inputs).last_hidden_state.float()
        real = inputs["attention_mask"].unsqueeze(-1)
        pooled = states[:, 0] if pooling == "cls" else (states * real).sum(1) / real.sum(1)
        vectors[rows] = pooled.cpu()
    return vectors
