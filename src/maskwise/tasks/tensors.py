"""Task rows as tensors, and batches of such rows.

Sequences are concatenated without padding, so one gather makes a batch. The rows of a training
batch are a function of (seed, step). Within a window of a few steps, rows of similar length share a
batch, which halves the padding. In each process, a task is tokenised only once for each tokenizer
and length.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

# A model's inputs, and labels.
Batch: TypeAlias = dict[str, Tensor]
# The number of steps whose rows are sorted by length together.
WINDOW_STEPS = 16
CHOICE = 0xC401CE  # makes draws of targets differ from other draws with the same seed
# The number of padded tokens in an evaluation batch.
EVAL_TOKENS = 8192
MOST_CUT = 0.05  # the share of rows that may be cut without a note


@dataclass(frozen=True, eq=False)
class Flat:
    """N concatenated sequences.

    Attributes:
        ids, types: (T,) token ids and token types.
        starts: (N + 1,) the index of each sequence's first token, and T.
        pad: the padding id.
        cut: how many sequences were cut.
    """

    ids: Tensor
    types: Tensor
    starts: Tensor
    pad: int
    cut: int = 0

    @classmethod
    def of(cls, encodings: Sequence[Encoding], pad: int) -> Flat:
        """Concatenate a tokenizer's encodings."""
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        types = chain.from_iterable(encoding.type_ids for encoding in encodings)
        return cls(_tensor(ids), _tensor(types), edges(list(map(len, encodings))), pad)

    @property
    def lengths(self) -> Tensor:
        """(N,) the number of tokens in each sequence."""
        return self.starts.diff()

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, L) the indices of the rows' tokens, and which of them are not padding."""
        return places_of(self.starts, rows)

    def batch(self, rows: Tensor) -> Batch:
        """Return (B, L) input_ids, attention_mask and, if there are pairs, token_type_ids."""
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
        """(N,) the number of tokens in each row."""
        return self.flat.lengths

    @abstractmethod
    def batch(self, rows: Tensor) -> Batch:
        """Return the model inputs and labels for some rows."""

    def training_batch(self, planned: Tensor, seed: int) -> Batch:
        """Return a batch for (B, 2) rows with their epochs; targets may be drawn anew per epoch."""
        return self.batch(planned[:, 0])


@dataclass(frozen=True, eq=False)
class Data(Trainable):
    """One split as tensors, with a method that gets a model's answers.

    Attributes:
        lost: the number of items that no model can answer, because their tokens were cut off.
    """

    lost: int = field(default=0, kw_only=True)

    def notes(self) -> list[str]:
        """Note how many rows were cut, for records."""
        rows = len(self.flat.lengths)
        if self.flat.cut <= MOST_CUT * rows:
            return []
        return [f"rows cut at {self.flat.lengths.max()} tokens: {self.flat.cut} of {rows}"]

    def chance(self, train: Data) -> float | None:
        """Return the baseline if it depends on the tokens in train; otherwise None."""
        return None

    @abstractmethod
    def answers(self, objective: Any, device: torch.device) -> Answers:
        """Return a trained objective's answer to each item."""


def batches(data: Flat | Data, device: torch.device) -> Iterator[tuple[Tensor, Batch]]:
    """Yield row numbers and their batch: similar lengths, about ``EVAL_TOKENS`` padded tokens."""
    for rows in by_width(data.lengths, EVAL_TOKENS):
        yield rows, moved(data.batch(rows), device)


@dataclass(frozen=True, eq=False)
class Encoded(Data):
    """The classes or scores of N rows, or the classes of their W words; T tokens in all.

    Attributes:
        targets: (N,) each row's class or standardised score, (N, K) each row's labels, or (T,) each
            token's class; −100 where there is nothing to predict.
        place: (W,) the index of the token that predicts each word's class, or −1 for a lost word;
            None if rows are classified.
    """

    targets: Tensor
    place: Tensor | None = None

    def batch(self, rows: Tensor) -> Batch:
        """Return the inputs of ``Flat.batch``, and labels (B,), (B, K) or (B, L)."""
        if self.place is None:
            labels = self.targets[rows]
        else:
            at, real = self.flat.at(rows)
            labels = torch.where(real, self.targets[at], IGNORE)
        return {**self.flat.batch(rows), "labels": labels}

    def answers(self, objective: Classification, device: torch.device) -> Tensor:
        """Return each row's class, labels or score, or each word's class (maybe ``LOST``)."""
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


def draws_of(planned: Tensor, seed: int) -> Tensor:
    """Return (B,) random integers ≥ 0 for (B, 2) rows with their epochs."""
    draws = [fold(seed, epoch, row, CHOICE) for row, epoch in planned.tolist()]
    return torch.tensor(draws)


def shuffled(size: int, part: int, length: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return (length,) the rows, and the epochs, in a part of all epochs' joined permutations."""
    position = torch.arange(part * length, (part + 1) * length)
    epoch = position // size
    rows = []
    for number in epoch.unique().tolist():
        order = permutation(size, seed=seed, epoch=number)
        rows.append(order[position[epoch == number] % size])
    return torch.cat(rows), epoch


class TaskSource:
    """The training batches for a task: all rows, in a new order in every epoch.

    The permutations of the epochs are concatenated, so every batch is full and may span two epochs.
    """

    ahead = 1

    def __init__(self, data: Trainable, settings: TrainingSettings):
        self.data = data
        self.settings = settings
        self._window: tuple[int, Tensor] = (-1, torch.empty(0))

    def planned(self, step: int) -> Tensor:
        """Return (batch_size, 2) the rows for a step, each with its epoch."""
        window, place = divmod(step, WINDOW_STEPS)
        if self._window[0] != window:
            self._window = (window, self._plan(window))
        return self._window[1][place]

    def _plan(self, window: int) -> Tensor:
        """Return (steps, batch_size, 2) the rows and epochs for a window."""
        seed = self.settings.seed
        batch_size = self.settings.batch_size
        rows, epoch = shuffled(len(self.data), window, WINDOW_STEPS * batch_size, seed=seed)
        by_length = self.data.lengths[rows].argsort(stable=True)
        plan = torch.stack([rows, epoch], dim=1)[by_length].view(WINDOW_STEPS, batch_size, 2)
        # Without the permutation, each window would begin with its short rows.
        return plan[permutation(WINDOW_STEPS, seed=seed, epoch=window)]

    def batches(self, step: int, *, rank: int, ranks: int) -> list[Batch]:
        """Return a rank's micro-batches for a step."""
        parts = self.planned(step).view(self.settings.accumulate, ranks, -1, 2)[:, rank]
        return [self.data.training_batch(part, self.settings.seed) for part in parts]

    def facts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Count the tokens, squared lengths and padded positions of batches."""
        masks = [batch["attention_mask"] for batch in batches]
        lengths = torch.cat([mask.sum(1).double() for mask in masks])
        return {
            "tokens": float(lengths.sum()),
            "squares": float((lengths**2).sum()),
            "positions": float(sum(map(torch.numel, masks))),
        }

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Turn ``facts`` that were summed over steps into figures for the log."""
        padding = 1 - sums["tokens"] / max(1.0, sums["positions"])
        return {"tokens": int(sums["tokens"]), "padding": padding}


# Tokenising


def encode(task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> dict[str, Data]:
    """Turn each split into tensors, and cache them for the next seed.

    Args:
        task: a task of a kind that is fine-tuned.
        tokenizer: a fast tokenizer.
        max_length: the most tokens in a row, with special tokens. Longer rows are cut, but contexts
            of questions are read in windows.

    Raises:
        MaskwiseError: a slow tokenizer, no padding token, or a length that leaves no room for text.
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
    """Note how many rows of each split were cut, and warn about each task once per process."""
    notes: list[str] = []
    for split, part in data.items():
        notes += [f"{split}: {note}" for note in part.notes()]
    if notes:
        # Python shows equal warnings from the same line of code only once.
        warnings.warn(f"{task.name}: {'; '.join(notes)}", stacklevel=2)
    return notes


@dataclass(frozen=True)
class Cutter:
    """A tokenizer for tasks: the Rust tokenizer, which cuts rows, and the padding id."""

    backend: Tokenizer
    pad: int
    max_length: int

    @classmethod
    def of(cls, state: str, pad: int, max_length: int) -> Cutter:
        """Build a tokenizer without padding from its JSON."""
        backend = Tokenizer.from_str(state)
        # A "[MASK]" written in the data is ordinary text.
        backend.encode_special_tokens = True
        backend.enable_truncation(max_length)
        return cls(backend, pad, max_length)

    def flat(self, texts: Sequence[str | tuple[str, ...]]) -> Flat:
        """Encode each text or pair of texts as one sequence."""
        encodings = self.backend.encode_batch(texts)
        return replace(Flat.of(encodings, self.pad), cut=count_cut(encodings))

    def rows(self, rows: Rows) -> Flat:
        """Encode each row, which has one or two texts, as one sequence."""
        texts: list[str | tuple[str, ...]] = []
        for row in rows:
            texts.append(row.texts if len(row.texts) > 1 else row.texts[0])
        return self.flat(texts)


def count_cut(encodings: Sequence[Encoding]) -> int:
    """Count the texts that were cut."""
    return sum(bool(encoding.overflowing) for encoding in encodings)


def check_length(task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Check that a task's rows fit a tokenizer and a length.

    Raises:
        MaskwiseError: a slow tokenizer, no padding token, or a length that leaves no room for text.
    """
    padding_id(tokenizer)
    several = any(len(row.texts) > 1 for row in task.splits["train"])
    paired, tokens = task.kind.least_tokens or (several, 1 + several)
    least = tokenizer.num_special_tokens_to_add(pair=paired) + tokens
    if max_length < least:
        raise MaskwiseError(
            "max_length leaves no room for text", got=max_length, allowed=f"≥ {least}"
        )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return a tokenizer's padding id; refuse a slow tokenizer, or one without padding."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise MaskwiseError("tasks need a fast tokenizer", got=type(tokenizer).__name__)
    if tokenizer.pad_token_id is None:
        raise MaskwiseError("the tokenizer has no padding token", do="set tokenizer.pad_token")
    return int(tokenizer.pad_token_id)


def tokenizer_state(tokenizer: PreTrainedTokenizerBase, *, words: bool = False) -> str:
    """Return the tokenizer's state as JSON, without padding and truncation.

    Args:
        tokenizer: a fast tokenizer.
        words: whether each text is a list of words from running text.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"padding": None, "truncation": None}
    if not words or not state["pre_tokenizer"]:
        return json.dumps(state)
    # Byte-level and metaspace tokenizers encode a word differently after a space. In running text,
    # nearly every word follows a space, so each word gets a space here.
    steps = state["pre_tokenizer"].get("pretokenizers", [state["pre_tokenizer"]])
    for step in steps:
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = True
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "always"
    return json.dumps(state)


def places_of(starts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, L) the indices of the rows' members, and which of them are not padding.

    Row n begins at ``starts[n]`` and ends before ``starts[n + 1]``. Padding has the index 0.
    """
    length = starts.diff()[rows]
    column = torch.arange(int(length.max()))
    real = column < length.unsqueeze(1)
    at = starts[rows].unsqueeze(1) + column
    return torch.where(real, at, 0), real


def edges(lengths: Sequence[int]) -> Tensor:
    """Return (N + 1,) the first index of each part, given the parts' lengths, and the end."""
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
    """Embed texts with an encoder that has no head, (N, H) float32.

    Args:
        network: the encoder.
        texts: the texts.
        tokenizer: the encoder's tokenizer.
        max_length: the most tokens in a text, with special tokens; longer texts are cut.
        pooling: "mean" over the last layer, including special tokens, as in sentence-transformers;
            or "cls", the first token.

    Raises:
        MaskwiseError: a text without any token, or an embedding that is not finite.
    """
    flat = Cutter.of(tokenizer_state(tokenizer), padding_id(tokenizer), max_length).flat(texts)
    if not int(flat.lengths.min()):
        raise MaskwiseError("a text without any token cannot be embedded", got="an empty text")
    network.eval()
    vectors = torch.empty(len(texts), network.config.hidden_size)
    for rows, batch in batches(flat, network.device):
        attention = batch["attention_mask"]
        output = network(input_ids=batch["input_ids"], attention_mask=attention)
        states = output.last_hidden_state.float()
        if pooling == "cls":
            pooled = states[:, 0]
        else:
            real = attention.unsqueeze(-1)
            pooled = (states * real).sum(1) / real.sum(1)
        vectors[rows] = pooled.cpu()
    # Rankings and classifiers would treat NaN as wrong answers.
    if not vectors.isfinite().all():
        what = "the model's embeddings are not finite numbers"
        raise MaskwiseError(what, do="is the checkpoint damaged?")
    return vectors
