"""Examples to learn a policy from: a context, which is masked, and a row of a task, which uses it.

The context of a row is its own if it has one (a paragraph, or the text that is classified).
Closed-book questions have none: their contexts are the texts of a corpus that hold an answer and
share the rarest words with the question.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import Array, Keys, fold
from maskwise.learning.relaxation import Choice, choose
from maskwise.learning.settings import MetaSettings
from maskwise.masking import AnnotatedBatch, Vocabulary, gather
from maskwise.tasks.task import Row, Task
from maskwise.tasks.tensors import Data, encode, warn_of_cuts
from maskwise.text import encode as encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORD = re.compile(r"\w+")
NEARLY = 0.8
"""Contexts score at least this share of the best one of their question."""


def occurrences(answer: str, text: str) -> list[tuple[int, int]]:
    """The (start, end) of an answer in a text as whole words, in any case.

    >>> occurrences("Art", "The art of Bart: Art!")
    [(4, 7), (17, 20)]
    """
    answer = answer.strip()
    if not answer:
        return []
    before = r"(?<!\w)" if answer[0].isalnum() else ""
    after = r"(?!\w)" if answer[-1].isalnum() else ""
    pattern = before + re.escape(answer) + after
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]


def find_contexts(
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    texts: Sequence[str],
    *,
    most: int = 4,
) -> list[list[int]]:
    """For every question, the texts with an answer that share the rarest words with it.

    Args:
        answers: all right answers of every question, in any case.
        most: texts for each question; of equally good ones the first.

    Returns:
        Places in ``texts``, none for a question that no text answers.

    >>> texts = ["Ann is a baker.", "Bob is a baker.", "Ann likes Bob."]
    >>> find_contexts(["what is Bob?", "who is Eve?"], [["baker"], ["a queen"]], texts)
    [[1], []]
    """
    words = [set(_WORD.findall(text.casefold())) for text in texts]
    holders: dict[str, list[int]] = {}
    for place, own in enumerate(words):
        for word in own:
            holders.setdefault(word, []).append(place)
    contexts = []
    for question, rights in zip(questions, answers, strict=True):
        rarity = {}
        for word in dict.fromkeys(_WORD.findall(question.casefold())):
            if word in holders:
                rarity[word] = math.log((1 + len(texts)) / (1 + len(holders[word])))
        telling = set[int]()
        for right in rights:
            # only texts with the rarest word of an answer are searched
            parts = [holders.get(word, []) for word in _WORD.findall(right.casefold())]
            candidates = min(parts, key=len, default=[])
            telling.update(place for place in candidates if occurrences(right, texts[place]))
        score = {}
        for place in sorted(telling):
            score[place] = sum(rarity[word] for word in rarity if word in words[place])
        best = max(score.values(), default=0)
        good = [place for place in score if best > 0 and score[place] >= NEARLY * best]
        contexts.append(good[:most])
    return contexts


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples of a task, each with the contexts that it can be learned from.

    Attributes:
        contexts: rows of C contexts for a masker, and under ``answer`` whether a token is in an
            answer: to evaluate a policy, never to learn from.
        starts: (N + 1,) the contexts of example n are ``starts[n]`` to ``starts[n + 1]``.
        rows: (N,) the row of ``data`` for each example.
        data: the task's rows as tensors.
        without: rows of the task that were left out because they have no context.
        vocabulary: of the tokenizer.
    """

    contexts: Sequence[Mapping[str, Any]]
    starts: Array
    rows: Array
    data: Data
    without: int
    vocabulary: Vocabulary

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(
        cls,
        task: Task,
        split: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        texts: Sequence[str] = (),
        length: int = 128,
        max_length: int = 64,
        most: int = 4,
    ) -> Examples:
        """The examples of a split.

        Args:
            texts: searched for contexts, if the task's rows have none.
            length: tokens of a context, special ones included; longer ones are cut.
            max_length: tokens of a row of the task.
            most: contexts for each example.

        Raises:
            MaskwiseError: no row has a context.
        """
        rows = task.splits[split]
        own = [context_of(row) for row in rows]
        rights = [rights_of(row) for row in rows]
        if None in own:
            places = find_contexts([row.texts[0] for row in rows], rights, texts, most=most)
        else:
            number = {str(text): place for place, text in enumerate(dict.fromkeys(own))}
            places = [[number[str(text)]] for text in own]
            texts = list(number)
        kept = [n for n, found in enumerate(places) if found]
        if not kept:
            what = "no text tells an answer to any row of the task"
            got = f"{len(rows)} rows of {task.name}, {len(texts)} texts"
            raise MaskwiseError(what, got=got, do="learn from a corpus that tells them")

        order: list[int] = []
        answers: dict[int, list[str]] = {}
        for n in kept:
            order += places[n]
            for place in places[n]:
                answers.setdefault(place, []).extend(rights[n])
        used = sorted(answers)  # a context that several rows share is read once
        encoded = encode_texts(tokenizer, [texts[place] for place in used], max_length=length)
        contexts = {}
        for place, row in zip(used, encoded):
            inside = answers_in(tokenizer, texts[place], answers[place], row["word_ids"])
            contexts[place] = {**row, "answer": inside}
        data = encode(task, tokenizer, max_length=max_length)[split]
        warn_of_cuts(task, {split: data})
        return cls(
            contexts=[contexts[place] for place in order],
            starts=np.cumsum([0, *(len(places[n]) for n in kept)]),
            rows=np.array(kept, np.int64),
            data=data,
            without=len(rows) - len(kept),
            vocabulary=Vocabulary.of(tokenizer),
        )

    def batch(self, examples: Array, *, seed: int) -> tuple[AnnotatedBatch, Tensor]:
        """One context of each example, and (B, L) bool: its answers.

        Args:
            examples: (B,) in [0, N).
            seed: with the example, decides which of its contexts it gets.
        """
        first = self.starts[examples]
        count = self.starts[examples + 1] - first
        draws = np.array([fold(seed, example, 0xC0) for example in examples.tolist()])
        chosen = first + draws % count
        # Two examples may share a context; each has draws of its own.
        rows = []
        for c, n in zip(chosen.tolist(), examples.tolist(), strict=True):
            rows.append({**self.contexts[c], "example_id": fold(c, n)})
        batch = gather(rows, self.vocabulary)
        answer = batch.layers.pop("answer").reshape(batch.shape) > 0
        return batch, torch.from_numpy(answer)

    def task(self, examples: Array, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The task's rows of these examples, as a batch of its objective."""
        batch = self.data.batch(torch.from_numpy(self.rows[examples]))
        return {name: value.to(device) for name, value in batch.items()}


def context_of(row: Row) -> str | None:
    """The text of a row that can be masked: its context, or the text that is classified."""
    own = given_context(row)
    if own is None and not hasattr(row, "answers"):
        return " ".join(row.texts)
    return own


def given_context(row: Row) -> str | None:
    """The context of a row, if its kind of task has one."""
    context: str | None = getattr(row, "context", None)
    return context


def rights_of(row: Row) -> Sequence[str]:
    """The right answers of a row, if they are texts."""
    answers: Sequence[str] = getattr(row, "answers", row.rights)
    return answers


def answers_in(
    tokenizer: PreTrainedTokenizerBase, text: str, rights: list[str], word_ids: Sequence[int]
) -> Array:
    """(L,) int8: 1 at tokens of the context that are part of a right answer."""
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    begin, end = np.array(encoded["offset_mapping"])[: len(word_ids)].T
    inside = np.zeros(len(word_ids), bool)
    for right in dict.fromkeys(rights):
        for start, stop in occurrences(right, text):
            inside |= (begin < stop) & (start < end)
    return (inside & (np.asarray(word_ids) >= 0)).astype(np.int8)


# Masked by a policy
# -------------------------------------------------------------------------------------------

Scorer: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A policy: from ``input_ids`` and ``attention_mask`` (B, L) to logits (B, L)."""


@dataclass(frozen=True, eq=False)
class Masked:
    """Contexts with a policy's scores, and the choice by them.

    Attributes:
        inputs: ``input_ids`` and ``attention_mask`` (B, L), without masks.
        answer: (B, L) bool, the tokens of right answers.
        choice: of units.
        logit_U: (U,) the units' scores, with a graph.
    """

    inputs: Mapping[str, Tensor]
    answer: Tensor
    choice: Choice
    logit_U: Tensor

    def answers(self) -> Tensor:
        """(B,) the share of each row's weight that lies on answers; NaN where the row has none."""
        with torch.no_grad():
            share_BL = self.choice.spread(self.choice.shares(self.logit_U) / self.choice.length_U)
            return torch.where(self.answer.any(1), (share_BL * self.answer).sum(1), torch.nan)


def masked_by(
    policy: Scorer,
    examples: Examples,
    rows: Array,
    settings: MetaSettings,
    *,
    key: int,
    device: torch.device | str = "cpu",
) -> Masked:
    """One context of each example, scored and masked by a policy; ``key`` decides all draws."""
    batch, answer = examples.batch(rows, seed=key)
    attention = torch.from_numpy(batch.present.astype(np.int64)).view(batch.shape)
    inputs = {
        "input_ids": batch.tensor("input_ids").to(device),
        "attention_mask": attention.to(device),
    }
    logit_BL = policy(inputs["input_ids"], inputs["attention_mask"]) / settings.temperature
    keys = Keys(batch.example_id, seed=key, epoch=None)
    choice = choose(batch, logit_BL, settings.ratio, keys, units=settings.units)
    return Masked(inputs, answer.to(device), choice, choice.unit_logits(logit_BL))


def even(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The policy without preferences."""
    return torch.zeros(input_ids.shape, device=input_ids.device)
