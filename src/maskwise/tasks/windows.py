"""Questions about a context as tensors: the context in overlapping windows, each behind its question.

A context that does not fit is cut into windows that share a quarter of their room with the next, so that an answer
of up to so many tokens stands whole in one of them. Training marks the answer where it stands whole and [CLS]
elsewhere; at the end the best-scored span of all windows of a question is its answer.

Cost: the Rust tokenizer's, once. The best of all spans of a batch is one max over (B, L, 30) sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from maskwise.tasks.rows import Row
from maskwise.tasks.tensors import Flat, batches, flat

MAX_ANSWER_TOKENS = 30
MAX_QUESTION_TOKENS = 64
"""Both as in BERT's SQuAD code; of short windows a question gets at most half."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Q questions in N windows of T tokens in all.

    Attributes:
        flat: the sequences.
        targets: (N, 2) places of the first and last token of the answer; (0, 0) where it is not.
        question: (N,) whose window it is.
        begin, end: (T,) the characters of the context that a token covers; −1 outside of the context.
        rows: the questions.
    """

    flat: Flat
    targets: Tensor
    question: Tensor
    begin: Tensor
    end: Tensor
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.flat.starts) - 1

    @property
    def lengths(self) -> Tensor:
        return self.flat.starts.diff()

    @property
    def lost(self) -> int:
        """Questions whose answer is marked in none of their windows."""
        has = torch.zeros(len(self.rows), dtype=torch.bool)
        has[self.question[self.targets.any(1)]] = True
        return int((~has).sum())

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What ``Flat.batch`` gives, and labels (B, 2)."""
        return {**self.flat.batch(rows), "labels": self.targets[rows]}

    def answers(self, objective: Any, device: torch.device) -> list[str]:
        """The text of the best span of every question, over all of its windows."""
        best, first, last = torch.full((len(self),), -math.inf), *torch.zeros(2, len(self), dtype=torch.long)
        for rows, batch in batches(self, device):
            at, real = self.flat.at(rows)
            context = (real & (self.begin[at] >= 0)).to(device)
            logits = objective.logits(batch).float().masked_fill(~context.unsqueeze(-1), -math.inf)
            value, start, end = best_spans(*logits.unbind(-1))
            best[rows] = value.cpu()
            first[rows], last[rows] = (self.flat.starts[rows] + place.cpu() for place in (start, end))
        # By question, the best window first: then the first of every question is its answer.
        order = np.lexsort((-best.numpy(), self.question.numpy()))
        chosen = torch.from_numpy(order[np.unique(self.question.numpy()[order], return_index=True)[1]])
        return self.texts(first[chosen], last[chosen])

    def texts(self, first: Tensor, last: Tensor) -> list[str]:
        """The text between two tokens (Q,) of every question's context."""
        places = zip(self.rows, self.begin[first].tolist(), self.end[last].tolist())
        return [row["context"][max(0, begin) : max(0, end)].strip() for row, begin, end in places]


def best_spans(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and last place (B,) of the span with the greatest start + end (B, L), of up to 30 tokens."""
    reach = torch.nn.functional.pad(end, (0, MAX_ANSWER_TOKENS - 1), value=-math.inf)
    sums = start.unsqueeze(-1) + reach.unfold(1, MAX_ANSWER_TOKENS, 1)
    value, place = sums.flatten(1).max(1)
    first = place // MAX_ANSWER_TOKENS
    return value, first, first + place % MAX_ANSWER_TOKENS


def encode_questions(rows: list[Row], backend: Tokenizer, pad: int, *, max_length: int) -> Windows:
    """Windows of at most ``max_length`` tokens, special ones included."""
    room = max_length - backend.num_special_tokens_to_add(is_pair=True)
    backend.no_truncation()
    questions = _cut([row["question"] for row in rows], backend, min(MAX_QUESTION_TOKENS, room // 2))
    backend.enable_truncation(max_length, stride=room // 4, strategy="only_second")
    pairs = [(question, row["context"]) for question, row in zip(questions, rows)]
    by_row = [[first, *first.overflowing] for first in backend.encode_batch(pairs)]
    found = list(chain.from_iterable(by_row))
    data = flat(found, pad)
    question = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(part) for part in by_row]))
    offsets = np.concatenate([np.array(e.offsets, dtype=np.int64) for e in found])
    sequence = np.concatenate([np.array(e.sequence_ids, dtype=np.float64) for e in found])  # None is nan
    begin, end = (torch.from_numpy(np.where(sequence == 1, offsets[:, side], -1)) for side in (0, 1))
    return Windows(data, _targets(rows, data, question, begin, end), question, begin, end, rows)


def _cut(questions: list[str], backend: Tokenizer, limit: int) -> list[str]:
    """Questions of at most so many tokens."""
    found = backend.encode_batch(questions, add_special_tokens=False)
    return [text[: e.offsets[limit - 1][1]] if len(e) > limit else text for text, e in zip(questions, found)]


def _targets(rows: list[Row], data: Flat, question: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """(N, 2) where a window has as much of the first right answer as any window of its question has."""
    window_T = torch.repeat_interleave(torch.arange(len(question)), data.starts.diff())
    starts = torch.tensor([row["starts"][0] for row in rows])
    ends = starts + torch.tensor([len(row["answers"][0]) for row in rows])
    mine_T = question[window_T]
    inside_T = (begin >= 0) & (begin < ends[mine_T]) & (end > starts[mine_T])
    count_N = torch.zeros(len(question), dtype=torch.long).index_add_(0, window_T, inside_T.long())
    most_Q = torch.zeros(len(rows), dtype=torch.long).scatter_reduce_(0, question, count_N, "amax")
    whole_N = (count_N > 0) & (count_N == most_Q[question])
    column_T = torch.arange(len(window_T)) - data.starts[window_T]
    # Tokens of an answer are neighbours: the first is where counting begins, the last so many later.
    far = torch.where(inside_T, column_T, len(window_T))
    first_N = torch.full((len(question),), len(window_T)).scatter_reduce_(0, window_T, far, "amin")
    both = torch.stack([first_N, first_N + count_N - 1], dim=1)
    return torch.where(whole_N.unsqueeze(1), both, 0)
