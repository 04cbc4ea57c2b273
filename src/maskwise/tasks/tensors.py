"""Rows as tensors, and batches of them by index arithmetic: what all kinds of tasks share.

Sequences lie behind one another without padding, and a batch is one gather. Training batches are
made of rows of similar length, from windows of a few steps, which halves the padding; which rows
meet is still a function of (seed, step). A task is tokenised once in a process for each tokenizer
and length.

Cost: the Rust tokenizer's, once.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import fold
from maskwise.masking.batch import IGNORE, moved
from maskwise.objectives import Classification, Objective
from maskwise.tasks.metrics import LOST
from maskwise.tasks.task import SPLITS, Answers, Task, Tuned
from maskwise.training import TrainingSettings, permutation
from maskwise.training.data import by_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW_STEPS = 16
"""The rows of so many steps are sorted by length together."""
CHOICE = 0xC401CE
"""Sets the draws of training batches apart from all other draws."""
EVAL_TOKENS = 8192
"""Padded tokens of one batch of evaluation."""
MOST_CUT = 0.05
"""Share of rows that may be longer than what a model reads, without a word about it."""


@dataclass(frozen=True, eq=False)
class Flat:
    """N sequences behind one another: ids and token types (T,), starts (N + 1,), the padding id,
    how many were cut.
    """

    ids: Tensor
    types: Tensor
    starts: Tensor
    pad: int
    cut: int = 0

    @classmethod
    def of(cls, encodings: Sequence[Encoding], pad: int) -> Flat:
        """What the tokenizer gives, as tensors."""
        ids, types = (
            torch.from_numpy(np.fromiter(chain.from_iterable(column), dtype=np.int64))
            for column in ((e.ids for e in encodings), (e.type_ids for e in encodings))
        )
        return cls(ids, types, edges([len(e.ids) for e in encodings]), pad)

    @property
    def lengths(self) -> Tensor:
        """(N,) tokens of every sequence."""
        return self.starts.diff()

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) where the tokens of rows stand, and which are real."""
        return places_of(self.starts, rows)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """(B, L) input_ids, attention_mask and, if there are pairs, token_type_ids."""
        at, real = self.at(rows)
        inputs = {
            "input_ids": torch.where(real, self.ids[at], self.pad),
            "attention_mask": real.long(),
        }
        if self.types.any():
            inputs["token_type_ids"] = torch.where(real, self.types[at], 0)
        return inputs


O = TypeVar("O", bound=Objective)


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
        """(N,) tokens that a row costs."""
        return self.flat.lengths

    @abstractmethod
    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Model inputs and labels of rows."""

    def training_batch(self, rows: Tensor, draws: Tensor) -> dict[str, Tensor]:
        """The same for a step of training. ``draws`` (B,) are random integers ≥ 0, for kinds that
        choose something.
        """
        return self.batch(rows)


class Data(Trainable, Generic[O]):
    """One split as tensors, and how an objective answers it."""

    @property
    def lost(self) -> int:
        """Items that cannot be answered, whatever a model says."""
        return 0

    def notes(self) -> list[str]:
        """What was cut of this split, in lines, for records to say."""
        flat, rows = self.flat, len(self.flat.lengths)
        much = flat.cut > MOST_CUT * rows
        return [f"rows cut at {flat.lengths.max()} tokens: {flat.cut} of {rows}"] if much else []

    @abstractmethod
    def answers(self, objective: O, device: torch.device) -> Answers:
        """What a trained objective answers to every item, in the order of the items."""


def batches(data: Flat | Data, device: torch.device) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Rows of similar length and their batch on a device, each of about ``EVAL_TOKENS`` padded
    tokens.
    """
    for rows in by_width(data.lengths, EVAL_TOKENS):
        yield rows, moved(data.batch(rows), device)


@dataclass(frozen=True, eq=False)
class Encoded(Data[Classification]):
    """Classes of rows or of words, or scores of rows: N rows, T tokens in all, W words in all.

    Attributes:
        targets: (N,) class of a row, or its standardised score, (N, K) its labels, or (T,) class of
            a token; −100 where there is nothing to predict.
        place: (W,) the token that answers for a word, −1 for a lost word; None if rows are
            answered.
    """

    targets: Tensor
    place: Tensor | None = None

    @property
    def lost(self) -> int:
        """Words that cannot be answered."""
        return 0 if self.place is None else int((self.place < 0).sum())

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What ``Flat.batch`` gives, and labels (B,) or (B, L)."""
        inputs = self.flat.batch(rows)
        if self.place is None:
            return {**inputs, "labels": self.targets[rows]}
        at, real = self.flat.at(rows)
        return {**inputs, "labels": torch.where(real, self.targets[at], IGNORE)}

    def answers(self, objective: Classification, device: torch.device) -> Tensor:
        """The most probable class of every row (N,) or word (W,), −2 (``LOST``) for lost words; or
        the score.
        """
        scores = self.targets.is_floating_point()
        answers = torch.full_like(self.targets, LOST)  # (N,), or (T,) where words are answered
        for rows, batch in batches(self, device):
            logits = objective.logits(batch).float().cpu()
            best = logits.squeeze(-1) if scores else logits.argmax(-1)
            if self.targets.ndim == 2:  # a label is given where it is more probable than not
                best = (logits > 0).to(answers.dtype)
            if self.place is None:
                answers[rows] = best
            else:
                at, real = self.flat.at(rows)
                answers[at[real]] = best[real]
        return (
            answers
            if self.place is None
            else torch.where(self.place < 0, LOST, answers[self.place])
        )


class TaskSource:
    """Training batches of a task, for the loop: all rows in a new order every epoch, every batch
    full.

    The stream of rows is the epochs' permutations one behind the other, so a batch may span two
    epochs and none is smaller than the others.
    """

    ahead = 1

    def __init__(self, data: Trainable, settings: TrainingSettings):
        self.data, self.settings = data, settings
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
        """(steps, batch_size, 2) of a window: similar lengths together, the batches then in random
        order.
        """
        size, batch_size = len(self.data), self.settings.batch_size
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

    def batches(self, step: int, *, rank: int, ranks: int) -> list[dict[str, Tensor]]:
        """The micro-batches of ``step`` for ``rank``: a function of (seed, step)."""
        parts = self._planned(step).view(self.settings.accumulate, ranks, -1, 2)[:, rank]
        return [self.data.training_batch(part[:, 0], self._draws(part)) for part in parts]

    def _draws(self, part: Tensor) -> Tensor:
        """(B,) a random integer for each row, a function of (seed, epoch, row)."""
        return torch.tensor(
            [fold(self.settings.seed, epoch, row, CHOICE) for row, epoch in part.tolist()]
        )

    def facts(self, batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        lengths = torch.cat([b["attention_mask"].sum(1).double() for b in batches])
        positions = sum(b["attention_mask"].numel() for b in batches)
        squares = float((lengths**2).sum())
        return {"tokens": float(lengths.sum()), "squares": squares, "positions": float(positions)}

    def summarise(self, sums: Mapping[str, float]) -> dict[str, Any]:
        return {
            "tokens": int(sums["tokens"]),
            "padding": 1 - sums["tokens"] / max(1.0, sums["positions"]),
        }


# Tokenising


def encode(task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> dict[str, Data]:
    """Every split as tensors; kept in the process, for the next seed's fine-tuning.

    Args:
        task: of a kind that is fine-tuned.
        tokenizer: a fast one.
        max_length: rows are cut to so many tokens, special ones included; contexts of questions are
            read in windows of so many.

    Raises:
        MaskwiseError: a slow tokenizer, one without padding, or a length without room for text.
    """
    check_length(task, tokenizer, max_length)
    return _encoded(
        task, tokenizer_state(tokenizer, words=task.kind.words), padding_id(tokenizer), max_length
    )


def warn_of_cuts(task: Task, data: Mapping[str, Data]) -> list[str]:
    """What was cut of each split, in lines; a warning says it, too."""
    notes = [f"{split}: {note}" for split, part in data.items() for note in part.notes()]
    if notes:
        warnings.warn(f"{task.name}: {'; '.join(notes)}", stacklevel=2)
    return notes


@dataclass(frozen=True)
class Cutter:
    """A tokenizer for tasks: its Rust part, which cuts rows at ``max_length`` tokens, and the
    padding id.
    """

    backend: Tokenizer
    pad: int
    max_length: int

    @classmethod
    def of(cls, state: str, pad: int, max_length: int) -> Cutter:
        """Without padding; "[MASK]" in a text is text."""
        backend = Tokenizer.from_str(state)
        backend.encode_special_tokens = True
        backend.enable_truncation(max_length)
        return cls(backend, pad, max_length)

    def flat(self, texts: Sequence[str | tuple[str, ...]]) -> Flat:
        """One sequence for each text, or pair of texts."""
        encodings = self.backend.encode_batch(texts)
        return replace(Flat.of(encodings, self.pad), cut=count_cut(encodings))


def count_cut(encodings: Sequence[Encoding]) -> int:
    """How many of these were too long for their tokenizer."""
    return sum(bool(encoding.overflowing) for encoding in encodings)


@lru_cache(maxsize=8)
def _encoded(task: Task, state: str, pad: int, max_length: int) -> dict[str, Data]:
    kind = task.kind
    assert isinstance(kind, Tuned), "frozen kinds have no tensors to train on"
    return {split: kind.encode(task, split, Cutter.of(state, pad, max_length)) for split in SPLITS}


def check_length(task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Whether rows of this length have room for text.

    Raises:
        MaskwiseError: they do not; a slow tokenizer, or one without padding.
    """
    padding_id(tokenizer)
    paired, tokens = task.kind.least_tokens(task)
    least = tokenizer.num_special_tokens_to_add(pair=paired) + tokens
    if max_length < least:
        raise MaskwiseError(
            "max_length leaves no room for text", got=max_length, allowed=f"≥ {least}"
        )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if not getattr(tokenizer, "is_fast", False):
        raise MaskwiseError("tasks need a fast tokenizer", got=type(tokenizer).__name__)
    if tokenizer.pad_token_id is None:
        raise MaskwiseError("the tokenizer has no padding token", do="set tokenizer.pad_token")
    return int(tokenizer.pad_token_id)


def tokenizer_state(tokenizer: PreTrainedTokenizerBase, *, words: bool = False) -> str:
    """All that the tokenizer's work depends on, as JSON, without padding and truncation.

    Args:
        words: it will be given single words of running text. Byte-level and metaspace tokenizers
            write a word after a space otherwise than one without, and in running text nearly every
            word follows a space, so here every given word does.
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
    """(B, L) where the members of rows stand that begin at ``starts`` (N + 1,), and which are real;
    padding is 0.
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
    """(N, H) float32 embeddings of texts, by an encoder without a head: the mean over the last
    layer's real tokens, special ones included, as sentence-transformers has it, or the first
    token's.

    Args:
        max_length: longer texts are cut at so many tokens, special ones included.
        pooling: "mean" or "cls".

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
        states, real = (
            network(**inputs).last_hidden_state.float(),
            inputs["attention_mask"].unsqueeze(-1),
        )
        pooled = states[:, 0] if pooling == "cls" else (states * real).sum(1) / real.sum(1)
        vectors[rows] = pooled.cpu()
    return vectors
