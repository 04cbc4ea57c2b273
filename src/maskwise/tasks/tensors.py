"""Task rows as tensors, and batches of such rows.

Sequences are stored concatenated, without padding, and a padded batch is built by indexing. The
rows of a training batch are a function of (seed, step). The rows of 16 steps, a window, are sorted
by length before they are divided into batches. This halves the padding. A process tokenises a task
only once for each tokenizer and length.
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

from maskwise.base.errors import MaskwiseError, Truncated
from maskwise.masking.batch import IGNORE, moved
from maskwise.masking.draws import fold, permutation
from maskwise.models.families import evaluating
from maskwise.models.loading import end_token
from maskwise.objectives.base import Classification, pooled
from maskwise.tasks.metrics import LOST
from maskwise.tasks.splits import SPLITS
from maskwise.tasks.task import Answers, Task, TaskRows
from maskwise.text.words import tokenizing
from maskwise.training.data import by_width, present_tokens
from maskwise.training.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Inputs of a model, and labels.
TaskBatch: TypeAlias = dict[str, Tensor]
# The number of steps in a window. The rows of a window are sorted by length.
WINDOW_STEPS = 16
# A part of the hash for random targets. It separates them from other hashes of the same seed.
CHOICE = 0xC401CE
# The number of tokens in an evaluation batch, including padding.
EVAL_TOKENS = 8192
# The largest share of rows that may be cut without a note in the record.
MOST_CUT = 0.05


@dataclass(frozen=True, eq=False)
class Flat:
    """N concatenated sequences.

    Attributes:
        ids, types: (T,) token ids and token types.
        starts: (N + 1,) the index of each sequence's first token, and T.
        pad: the padding id.
        cut: the number of sequences that were cut.
    """

    ids: Tensor
    types: Tensor
    starts: Tensor
    pad: int
    cut: int = 0

    @classmethod
    def of(cls, encodings: Sequence[Encoding], pad: int) -> Flat:
        """Concatenate encodings from a fast tokenizer."""
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        types = chain.from_iterable(encoding.type_ids for encoding in encodings)
        return cls(_tensor(ids), _tensor(types), edges(list(map(len, encodings))), pad)

    def closed(self, last: int) -> Flat:
        """Return the sequences with the token ``last`` after each of them."""
        count = len(self.lengths)
        added = self.starts[1:] + torch.arange(count)
        own = torch.ones(len(self.ids) + count, dtype=torch.bool)
        own[added] = False
        ids = torch.full((len(own),), last)
        types = torch.zeros_like(ids)
        ids[own], types[own] = self.ids, self.types
        starts = self.starts + torch.arange(count + 1)
        return replace(self, ids=ids, types=types, starts=starts)

    @property
    def lengths(self) -> Tensor:
        """(N,) the number of tokens in each sequence."""
        return self.starts.diff()

    def notes(self, what: str = "rows") -> list[str]:
        """Return a note for records if many sequences, which the note calls ``what``, were cut."""
        longest = int(self.lengths.max()) if self.cut else 0
        return note_of_cuts(what, self.cut, len(self.lengths), longest)

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices (B, L) of the rows' tokens, and a mask that is False at padding."""
        return places_of(self.starts, rows)

    def batch(self, rows: Tensor) -> TaskBatch:
        """Return input_ids, attention_mask and, for pairs, token_type_ids, all (B, L)."""
        at, real = self.at(rows)
        inputs = {
            "input_ids": torch.where(real, self.ids[at], self.pad),
            "attention_mask": real.long(),
        }
        if self.types.any():
            inputs["token_type_ids"] = torch.where(real, self.types[at], 0)
        return inputs


def note_of_cuts(what: str, cut: int, count: int, limit: int) -> list[str]:
    """Return a note if more than the share ``MOST_CUT`` of ``count`` texts is cut."""
    return [f"{what} cut at {limit} tokens: {cut} of {count}"] if cut > MOST_CUT * count else []


def _tensor(numbers: Iterable[int]) -> Tensor:
    return torch.from_numpy(np.fromiter(numbers, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Trainable(ABC):
    """N rows that can be batched for training. ``flat`` holds their sequences of tokens."""

    flat: Flat

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def lengths(self) -> Tensor:
        """(N,) the number of tokens in each row."""
        return self.flat.lengths

    @abstractmethod
    def batch(self, rows: Tensor) -> TaskBatch:
        """Return the model inputs and labels for some rows."""

    def training_batch(self, planned: Tensor, seed: int) -> TaskBatch:
        """Return a batch for (row, epoch) pairs (B, 2). Only random targets depend on the epoch."""
        return self.batch(planned[:, 0])


@dataclass(frozen=True, eq=False)
class Data(Trainable):
    """One split as tensors, with a method that computes a model's answers.

    Attributes:
        lost: the number of items that no model can answer: their tokens are cut off or missing.
    """

    lost: int = field(default=0, kw_only=True)

    def notes(self) -> list[str]:
        """Return notes for records, such as the number of cut rows."""
        return self.flat.notes()

    def chance(self, train: Data) -> float | None:
        """Return the score of a guess from the token frequencies in train; None for most kinds."""
        return None

    @abstractmethod
    def answers(self, objective: Any, device: torch.device) -> Answers:
        """Return the answers of a trained objective's model, one per item."""


def batches_by_length(
    data: Flat | Data, device: torch.device
) -> Iterator[tuple[Tensor, TaskBatch]]:
    """Yield (row indices, batch) for rows of similar length, about ``EVAL_TOKENS`` tokens each."""
    for rows in by_width(data.lengths, EVAL_TOKENS):
        yield rows, moved(data.batch(rows), device)


@dataclass(frozen=True, eq=False)
class Encoded(Data):
    """N rows with T tokens. Each row has a class, a score or labels, or each word has a class.

    Attributes:
        targets: (N,) the class or standardised score of each row, (N, K) the labels of each row, or
            (T,) the class of each token. −100 marks tokens without a target.
        place: (W,) in tagging, the index of the token that predicts each word's class; −1 if this
            token was cut off or is missing. None for other kinds.
    """

    targets: Tensor
    place: Tensor | None = None

    def batch(self, rows: Tensor) -> TaskBatch:
        """Return the inputs from ``Flat.batch``, and labels (B,), (B, K) or (B, L)."""
        if self.place is None:
            labels = self.targets[rows]
        else:
            at, real = self.flat.at(rows)
            labels = torch.where(real, self.targets[at], IGNORE)
        return {**self.flat.batch(rows), "labels": labels}

    def answers(self, objective: Classification, device: torch.device) -> Tensor:
        """Return each row's class, labels or score, or each word's class (``LOST`` if cut off)."""
        answers = torch.full_like(self.targets, LOST)
        for rows, batch in batches_by_length(self, device):
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
    """Return (B,) random integers ≥ 0, a function of the seed and the (row, epoch) pairs (B, 2)."""
    draws = [fold(seed, epoch, row, CHOICE) for row, epoch in planned.tolist()]
    return torch.tensor(draws)


def shuffled(size: int, part: int, length: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows and their epochs, both (length,), of one part of an endless sequence.

    The sequence has one permutation of all ``size`` rows per epoch, and is cut into equal parts.
    """
    position = torch.arange(part * length, (part + 1) * length)
    epoch = position // size
    rows = []
    for number in epoch.unique().tolist():
        order = permutation(size, seed=seed, epoch=number)
        rows.append(order[position[epoch == number] % size])
    return torch.cat(rows), epoch


class TaskSource:
    """Training batches of a task, with a new order of the rows in every epoch.

    The permutations of the epochs are concatenated. Every batch is therefore full, and may span two
    epochs.
    """

    def __init__(self, data: Trainable, settings: TrainingSettings):
        self.data = data
        self.settings = settings
        self._window: tuple[int, Tensor] = (-1, torch.empty(0))

    def ahead(self, step: int) -> bool:
        """Return True: the batches of a task do not depend on losses."""
        return True

    def planned(self, step: int) -> Tensor:
        """Return the (row, epoch) pairs (batch_size, 2) of a step."""
        window, place = divmod(step, WINDOW_STEPS)
        if self._window[0] != window:
            self._window = (window, self._plan(window))
        return self._window[1][place]

    def _plan(self, window: int) -> Tensor:
        """Return the (row, epoch) pairs (steps, batch_size, 2) of a window of steps."""
        seed = self.settings.seed
        batch_size = self.settings.batch_size
        rows, epoch = shuffled(len(self.data), window, WINDOW_STEPS * batch_size, seed=seed)
        by_length = self.data.lengths[rows].argsort(stable=True)
        plan = torch.stack([rows, epoch], dim=1)[by_length].view(WINDOW_STEPS, batch_size, 2)
        # Without this permutation, every window would begin with the shortest rows.
        return plan[permutation(WINDOW_STEPS, seed=seed, epoch=window)]

    def batches(self, step: int, *, rank: int, ranks: int) -> list[TaskBatch]:
        """Return a process's micro-batches for a step."""
        parts = self.planned(step).view(self.settings.accumulate, ranks, -1, 2)[:, rank]
        return [self.data.training_batch(part, self.settings.seed) for part in parts]

    def facts(self, batches: Sequence[TaskBatch]) -> dict[str, float]:
        """Return sums over the rows of batches: tokens, and tokens with padding."""
        masks = [present for batch in batches for present in present_tokens(batch)]
        return {
            "tokens": float(sum(int(mask.sum()) for mask in masks)),
            "positions": float(sum(map(torch.numel, masks))),
        }

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Convert sums of ``facts`` over steps to the number of tokens and the share of padding."""
        padding = 1 - sums["tokens"] / max(1.0, sums["positions"])
        return {"tokens": int(sums["tokens"]), "padding": padding}


# Tokenising


def task_tensors(
    task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> dict[str, Data]:
    """Convert each split to tensors, and cache the tensors for further seeds.

    Args:
        task: a task of a kind that is fine-tuned.
        tokenizer: a fast tokenizer.
        max_length: the maximum number of tokens in a row, including special tokens. Longer rows are
            cut. The long context of a question is split into several windows instead.

    Raises:
        MaskwiseError: ``check_length`` refuses the tokenizer or the length.
    """
    check_length(task, tokenizer, max_length)
    state = tokenizer_state(tokenizer, words=task.kind.words)
    return _encoded(task, state, padding_id(tokenizer), end_token(tokenizer), max_length)


@lru_cache(maxsize=8)
def _encoded(
    task: Task, state: str, pad: int, last: int | None, max_length: int
) -> dict[str, Data]:
    encode_split = task.kind.encode
    assert encode_split is not None, "frozen kinds have no tensors to train on"
    encoded = {}
    for split in SPLITS:
        with tokenizing():
            cutter = replace(Cutter.of(state, pad, max_length), last=last)
            encoded[split] = encode_split(task, split, cutter)
    return encoded


def warn_of_cuts(task: Task, found: Mapping[str, Sequence[str]]) -> list[str]:
    """Warn about cut rows (``Truncated``), and return the notes for records.

    Args:
        task: the task.
        found: the notes on each split (``Data.notes``).
    """
    notes = [f"{split}: {note}" for split, part in found.items() for note in part]
    if notes:
        warnings.warn(f"{task.name}: {'; '.join(notes)}", Truncated, stacklevel=2)
    return notes


@dataclass(frozen=True)
class Cutter:
    """A tokenizer (``backend``) that cuts rows at ``max_length`` tokens, its padding id, and the id
    with which a text that a model writes ends (None without one).
    """

    backend: Tokenizer
    pad: int
    max_length: int
    last: int | None = None

    @classmethod
    def of(cls, state: str, pad: int, max_length: int) -> Cutter:
        """Build the tokenizer from its JSON (see ``tokenizer_state``)."""
        backend = Tokenizer.from_str(state)
        # The characters "[MASK]" in the data are ordinary text, not the special token.
        backend.encode_special_tokens = True
        backend.enable_truncation(max_length)
        return cls(backend, pad, max_length)

    def flat(self, texts: Sequence[str | tuple[str, ...]]) -> Flat:
        """Encode each text or pair of texts as one sequence."""
        encodings = self.backend.encode_batch(texts)
        cut = sum(were_cut(self.backend, texts, encodings))
        return replace(Flat.of(encodings, self.pad), cut=cut)

    def rows(self, rows: TaskRows) -> Flat:
        """Encode each row, with its one or two texts, as one sequence."""
        texts: list[str | tuple[str, ...]] = []
        for row in rows:
            texts.append(row.texts if len(row.texts) > 1 else row.texts[0])
        return self.flat(texts)


def were_cut(
    backend: Tokenizer,
    texts: Sequence[str | tuple[str, ...]],
    encodings: Sequence[Encoding],
    **options: bool,
) -> list[bool]:
    """Return for each text whether ``backend``, which cuts long texts, has cut its encoding.

    Tokenizers 0.23.1 and 0.23.2 report no overflow. Texts that reach the limit are therefore
    encoded again, with room for one more token.

    Args:
        options: the arguments of ``encode_batch``.
    """
    before = backend.truncation
    assert before is not None, "the tokenizer must cut long texts"
    limit = before["max_length"]
    full = [number for number, encoding in enumerate(encodings) if len(encoding) >= limit]
    backend.enable_truncation(**before | {"max_length": limit + 1})
    longer = backend.encode_batch([texts[number] for number in full], **options)
    backend.enable_truncation(**before)
    cut = [False] * len(encodings)
    for number, encoding in zip(full, longer, strict=True):
        cut[number] = len(encoding) > limit
    return cut


def check_length(task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Check that rows of a task fit a tokenizer and a length.

    Raises:
        MaskwiseError: the tokenizer is not a fast tokenizer or has no padding token, or the length
            leaves no room for text.
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
    """Return the padding id of a fast tokenizer; raise an error for any other tokenizer.

    Decoders often have none. No token attends to padding, so the end token will do.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise MaskwiseError("tasks need a fast tokenizer", got=type(tokenizer).__name__)
    found = tokenizer.pad_token_id
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        raise MaskwiseError("the tokenizer has no padding token", do="set tokenizer.pad_token")
    return int(found)


def tokenizer_state(tokenizer: PreTrainedTokenizerBase, *, words: bool = False) -> str:
    """Return the tokenizer's state as JSON, without padding and truncation.

    Args:
        tokenizer: a fast tokenizer.
        words: whether texts are lists of words. Each word is then encoded with a space before it.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"padding": None, "truncation": None}
    if not words or not state["pre_tokenizer"]:
        return json.dumps(state)
    # Byte-level and metaspace tokenizers encode a word differently after a space. Nearly every word
    # of the pre-training text follows a space, so each word of a list gets a space, too.
    steps = state["pre_tokenizer"].get("pretokenizers", [state["pre_tokenizer"]])
    for step in steps:
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = True
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "always"
    return json.dumps(state)


def places_of(starts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices (B, L) into concatenated rows, and a mask (B, L) that is False at padding.

    Row n has the indices from ``starts[n]`` to ``starts[n + 1]`` − 1. Padding has the index 0.
    """
    length = starts.diff()[rows]
    column = torch.arange(int(length.max()))
    real = column < length.unsqueeze(1)
    at = starts[rows].unsqueeze(1) + column
    return torch.where(real, at, 0), real


def edges(lengths: Sequence[int]) -> Tensor:
    """Return (N + 1,) the first index of each of N parts with these lengths, and their sum."""
    return torch.tensor([0, *lengths]).cumsum(0)


# Embeddings


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> Flat:
    """Encode texts for ``embed``.

    Args:
        texts: N texts.
        tokenizer: the encoder's tokenizer.
        max_length: the maximum number of tokens in a text, including special tokens. Longer texts
            are cut.

    Raises:
        MaskwiseError: a text has no tokens.
    """
    cutter = Cutter.of(tokenizer_state(tokenizer), padding_id(tokenizer), max_length)
    with tokenizing():
        flat = cutter.flat(texts)
    if not int(flat.lengths.min()):
        raise MaskwiseError("a text without any token cannot be embedded", got="an empty text")
    return flat


@torch.inference_mode()
def embed(network: PreTrainedModel, flat: Flat, *, pooling: str = "mean") -> Tensor:
    """Return the embeddings (N, H) of N texts, in float32.

    Args:
        network: an encoder without a head.
        flat: the texts (``encode_texts``).
        pooling: see ``objectives.base.pooled``.

    Raises:
        MaskwiseError: an embedding is not finite.
    """
    vectors = torch.empty(len(flat.lengths), network.config.hidden_size)
    with evaluating(network):
        for rows, batch in batches_by_length(flat, network.device):
            attention = batch["attention_mask"]
            output = network(input_ids=batch["input_ids"], attention_mask=attention)
            states = output.last_hidden_state.float()
            vectors[rows] = pooled(states, attention, pooling).cpu()
    # Without this check, an embedding that is NaN would silently count as a wrong answer.
    if not vectors.isfinite().all():
        what = "the model's embeddings are not finite numbers"
        raise MaskwiseError(what, do="check whether the checkpoint is damaged")
    return vectors
