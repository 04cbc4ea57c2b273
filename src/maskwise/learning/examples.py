"""Examples for the meta-gradient: a row of a task, and a context, which is a text to mask.

A good masking policy masks the words that help with the row: when a model has learned to predict
these words in the context, its loss on the row is lower. In a question with a paragraph, the
paragraph is the context. In a classification task, the text to classify is the context. A
closed-book question has no paragraph. Its contexts are texts from a corpus that contain one of its
answers and its rarest words, unless its file gives the text that it was written about.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from maskwise.base.devices import TensorDict, Tensors, moved
from maskwise.base.errors import MaskwiseError
from maskwise.learning.relaxation import RelaxedChoice, choose
from maskwise.learning.settings import MetaSettings
from maskwise.masking import Line, Vocabulary, gather
from maskwise.masking.draws import Array, Draws, fold
from maskwise.tasks.kinds.questions import ChoiceRow, MarkedRow, Windows
from maskwise.tasks.task import Row, Task
from maskwise.tasks.tensors import Data, task_tensors, warn_of_cuts
from maskwise.text.encoding import encode as encode_texts
from maskwise.text.encoding import token_offsets
from maskwise.text.words import classify, words_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEARLY = 0.8
"""The minimum score of a context, as a share of the best score of a context of the same question.
The score of a text is the sum of the rarities of the question's words that the text contains."""


def occurrences(answer: str, text: str) -> list[tuple[int, int]]:
    """Return the (start, end) character offsets of an answer in a text.

    The answer must consist of whole words of the text. Case is ignored.

    >>> occurrences("Art", "The art of Bart: Art!")
    [(4, 7), (17, 20)]
    """
    starts, ends = map(set, words_in(classify(text)))
    found = []
    # With a lookahead, matches may overlap: "of" in "Bart of Art of Art" ends no search.
    for match in re.finditer(f"(?=({re.escape(answer.strip())}))", text, re.IGNORECASE):
        start, end = match.span(1)
        # An empty answer is found everywhere, also between two words.
        if start < end and start in starts and end in ends:
            found.append((start, end))
    return found


def _words(text: str) -> list[str]:
    """Return the words of a text, without symbols. Case is folded."""
    text = text.casefold()
    words = map(text.__getitem__, map(slice, *words_in(classify(text))))
    return [word for word in words if word[0].isalnum()]


def find_contexts(
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    texts: Sequence[str],
    *,
    most: int = 4,
) -> list[list[int]]:
    """For each question, find the texts that contain an answer and the question's rarest words.

    Args:
        questions: the questions.
        answers: the correct answers to each question. Case is ignored.
        texts: the texts to search.
        most: the maximum number of texts per question. If more texts are suitable, the first ones
            in ``texts`` are used.

    Returns:
        For each question, indices into ``texts``. The list is empty if no text contains an answer
        and a word of the question.

    >>> texts = ["Ann is a baker.", "Bob is a baker.", "Ann likes Bob."]
    >>> find_contexts(["what is Bob?", "who is Eve?"], [["baker"], ["a queen"]], texts)
    [[1], []]
    """
    words = [set(_words(text)) for text in texts]
    texts_with = defaultdict[str, list[int]](list)
    for place, text_words in enumerate(words):
        for word in text_words:
            texts_with[word].append(place)
    contexts = []
    for question, rights in zip(questions, answers, strict=True):
        rarity = {}
        for word in dict.fromkeys(_words(question)):
            if word in texts_with:
                share = (1 + len(texts)) / (1 + len(texts_with[word]))
                rarity[word] = math.log(share)
        with_answer = set[int]()
        for right in rights:
            # Regular expressions are slow, so they search only texts with the answer's rarest word.
            parts = [texts_with.get(word, []) for word in _words(right)]
            candidates = min(parts, key=len, default=[])
            for place in candidates:
                if occurrences(right, texts[place]):
                    with_answer.add(place)
        scores = {}
        for place in sorted(with_answer):
            shared = [rarity[word] for word in rarity if word in words[place]]
            # A text with an answer is no context if it shares no word with the question. A word of
            # all texts is shared, too, and its rarity is 0.
            if shared:
                scores[place] = sum(shared)
        least = NEARLY * max(scores.values(), default=0)
        good = [place for place, score in scores.items() if score >= least]
        contexts.append(good[:most])
    return contexts


def contexts_of(rows: Sequence[Row], texts: Sequence[str]) -> tuple[list[list[int]], Sequence[str]]:
    """Return the contexts of a task's rows.

    Args:
        rows: the rows of the task.
        texts: the texts in which contexts are searched for rows without a context of their own.

    Returns:
        For each row, the indices of its contexts; and the list of all contexts.
    """
    # Several rows may have the same context, which is listed once.
    place_of: dict[str, int] = {}
    places: list[list[int]] = []
    without = []
    for number, row in enumerate(rows):
        context = context_of(row)
        if context is None:
            without.append(number)
            places.append([])
        else:
            place = place_of.setdefault(context, len(place_of))
            places.append([place])
    if not without:
        return places, list(place_of)
    questions = [rows[number].texts[-1] for number in without]
    answers = [rows[number].rights for number in without]
    for number, found in zip(without, find_contexts(questions, answers, texts), strict=True):
        places[number] = [len(place_of) + place for place in found]
    return places, [*place_of, *texts]


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples of a task, each with its contexts.

    Attributes:
        contexts: C tokenised contexts. The column ``answer`` is 1 at the tokens of answers. It is
            used only to evaluate policies, not to learn them.
        starts: (N + 1,) the index of each example's first context; the last element is C.
        rows: (N,) the index of each example's row in ``data``. Of a context that is split into
            windows, this is the first window with the answer, or else the first window.
        data: all rows of the split as tensors.
        without: the number of rows that are no examples because no context was found.
        vocabulary: the tokenizer's vocabulary.
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
        length: int,
        max_length: int,
    ) -> Examples:
        """Build the examples of a split of a task.

        Args:
            task: the task.
            split: the name of the split, such as "train".
            tokenizer: the tokenizer of the model.
            texts: the texts in which contexts are searched; see ``contexts_of``.
            length: the maximum number of tokens in a context, including special tokens. Longer
                contexts are cut.
            max_length: the maximum number of tokens in a row of the task. Longer rows are cut.

        Raises:
            MaskwiseError: no row has a context.
        """
        rows = task.splits[split]
        places, texts = contexts_of(rows, texts)
        counts = np.array(list(map(len, places)))
        kept = np.flatnonzero(counts)
        if not len(kept):
            raise MaskwiseError(
                "no text contains an answer to a question of the task and a word of the question",
                got=f"{len(rows)} questions of {task.name} ({split}), {len(texts)} texts",
                do="use a corpus that contains the answers",
            )

        answers = defaultdict[int, list[str]](list)
        for task_row, found in zip(rows, places, strict=True):
            for place in found:
                answers[place] += task_row.rights
        # Several rows may share a context. Each context is tokenised only once.
        used = sorted(answers)
        encoded = encode_texts(tokenizer, [texts[place] for place in used], max_length=length)
        contexts = {}
        for place, row in zip(used, encoded):
            inside = answers_in(
                tokenizer,
                texts[place],
                answers[place],
                row["word_ids"],
            )
            contexts[place] = {**row, "answer": inside}
        data = task_tensors(task, tokenizer, max_length=max_length)[split]
        warn_of_cuts(task, {split: data.notes()})
        numbers = kept
        if isinstance(data, Windows):
            numbers = data.first_of(kept)
        return cls(
            contexts=[contexts[place] for place in chain.from_iterable(places)],
            starts=np.cumsum([0, *counts[kept]]),
            rows=numbers,
            data=data,
            without=len(rows) - len(kept),
            vocabulary=Vocabulary.of(tokenizer),
        )

    def drawn(self, examples: Array, *, seed: int) -> Array:
        """Return (B,) the index of a random context of each example, as in ``batch``."""
        first = self.starts[examples]
        count = self.starts[examples + 1] - first
        draws = np.array([fold(seed, number, 0xC0) for number in examples.tolist()])
        return first + draws % count

    def batch(self, examples: Array, *, seed: int) -> tuple[Line, Tensor]:
        """Choose one context at random for each example.

        Args:
            examples: (B,) the indices of the examples.
            seed: the seed. The choice depends on the seed and the example, not on the batch.

        Returns:
            The contexts, and (B, L) bool: whether each token is part of an answer.
        """
        rows = []
        chosen = self.drawn(examples, seed=seed)
        for c, n in zip(chosen.tolist(), examples.tolist(), strict=True):
            # The masks are a function of this id. Two examples may share a context, so the id
            # depends on the example, too.
            rows.append({**self.contexts[c], "example_id": fold(c, n)})
        line = gather(rows, self.vocabulary)
        answer = line.layers.pop("answer").reshape(line.shape) > 0
        return line, torch.from_numpy(answer)

    def task(self, examples: Array, device: torch.device | str) -> TensorDict:
        """Return the task rows of these examples as a batch for the task's loss."""
        rows = torch.from_numpy(self.rows[examples])
        return moved(self.data.batch(rows), device)


def context_of(row: Row) -> str | None:
    """Return the text to mask that a row itself contains; None for a closed-book question."""
    if isinstance(row, ChoiceRow | MarkedRow) and row.context:
        return row.context
    if row.passage:
        return row.passage
    if row.rights:
        return None
    return " ".join(row.texts)


def answers_in(
    tokenizer: PreTrainedTokenizerBase, text: str, rights: list[str], word_ids: Sequence[int]
) -> Array:
    """Return (L,) int8: 1 at tokens that are part of a correct answer, 0 at other tokens.

    Args:
        text: the text of a context.
        rights: the correct answers.
        word_ids: (L,) the word of each token of the context; negative outside words.
    """
    # The context may have been cut to L tokens, but these offsets are not cut.
    begin, end = token_offsets(tokenizer, text)[: len(word_ids)].T
    inside = np.zeros(len(word_ids), bool)
    for right in dict.fromkeys(rights):
        for start, stop in occurrences(right, text):
            inside |= (begin < stop) & (start < end)
    # The policy gives no weight to tokens outside words, because such tokens are never masked.
    inside &= np.asarray(word_ids) >= 0
    return inside.astype(np.int8)


# Masked by a policy
# -------------------------------------------------------------------------------------------

Scorer: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A policy: maps ``input_ids`` and ``attention_mask`` (B, L) to logits (B, L)."""


@dataclass(frozen=True, eq=False)
class MaskedContexts:
    """Contexts, a policy's scores, and the masks that were drawn by these scores.

    A unit is masked as a whole: a token or a word. The contexts have U units.

    Attributes:
        inputs: ``input_ids`` and ``attention_mask`` (B, L) of the unmasked contexts.
        answer: (B, L) bool, whether each token is part of a correct answer.
        choice: which units are masked.
        logit_U: (U,) the policy's scores of the units, with their autograd graph.
    """

    inputs: Tensors
    answer: Tensor
    choice: RelaxedChoice
    logit_U: Tensor

    def answers(self) -> Tensor:
        """Return (B,) the share of each row's masking weight that is on tokens of answers.

        The share is NaN for rows without an answer.
        """
        with torch.no_grad():
            # The weight of a unit is divided equally among its tokens. A row then sums to 1.
            share_U = self.choice.shares(self.logit_U) / self.choice.length_U
            on_answers_B = (self.choice.spread(share_U) * self.answer).sum(1)
            return torch.where(self.answer.any(1), on_answers_B, torch.nan)


def masked_by(
    policy: Scorer,
    examples: Examples,
    rows: Array,
    settings: MetaSettings,
    *,
    key: int,
    device: torch.device | str,
) -> MaskedContexts:
    """Choose a context for each example, score its tokens with a policy, and draw its mask.

    Args:
        policy: the policy that scores tokens.
        examples: the examples of the split.
        rows: (B,) the indices of the examples in the batch.
        settings: the temperature, the masking ratio and the unit of masking.
        key: the seed of the context and the mask. Equal keys give equal draws.
        device: the device of the result.
    """
    batch, answer = examples.batch(rows, seed=key)
    present = batch.present.astype(np.int64)
    attention = torch.from_numpy(present).view(batch.shape)
    inputs = {
        "input_ids": batch.tensor(batch.input_ids).to(device),
        "attention_mask": attention.to(device),
    }
    logit_BL = policy(inputs["input_ids"], inputs["attention_mask"]) / settings.temperature
    draws = Draws(batch.example_id, seed=key, epoch=None)
    choice = choose(batch, logit_BL, settings.ratio, draws, units=settings.units)
    return MaskedContexts(
        inputs,
        answer=answer.to(device),
        choice=choice,
        logit_U=choice.unit_logits(logit_BL),
    )


def even(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the same score for all tokens. This policy masks at random and is the baseline."""
    return torch.zeros(input_ids.shape, device=input_ids.device)
