"""How many answers of a task occur in the training text, and how often does each arm mask them?

    python benchmarks/masked_answers.py OUT > answers.json

OUT is the folder of a study whose tasks have answers in words. For each arm and task, ``standing``
is the share of test items with a right answer in a training document, word by word. ``occurrences``
counts the right answers in 1,024 rows of the training text of the first seed. The rows are masked
once, as in the middle of training, and ``whole`` and ``part`` count the answers of which all tokens
or some tokens are masked. Streams, which were read once, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from command import run
from transformers import PreTrainedTokenizerBase

from maskwise.base.folders import read_json
from maskwise.evaluation.measures.overlap import occurring
from maskwise.evaluation.measures.word_runs import runs_in
from maskwise.masking import Masker
from maskwise.recipe import read_recipe
from maskwise.studies.design import Design
from maskwise.studies.samples import maskers
from maskwise.studies.store import StageStore
from maskwise.tasks import load_task
from maskwise.text import Rows, Stream

ROWS = 1024
ROWS_AT_ONCE = 64
MOST_TOKENS = 16
"""Answers with more tokens are ignored."""


class MaskedAnswers(NamedTuple):
    """The numbers of answers in rows, of those masked as a whole, and of those masked in part."""

    occurrences: int
    whole: int
    part: int


def masked_answers(
    rows: Rows,
    masker: Masker,
    tokenizer: PreTrainedTokenizerBase,
    rights: Iterable[str],
    *,
    step: int = 0,
    total_steps: int | None = None,
) -> MaskedAnswers:
    """Mask evenly spaced rows of a corpus once, and count the answers that are masked."""
    by_length = hashes_of(tokenizer, rights)
    places = np.linspace(0, len(rows) - 1, min(ROWS, len(rows)))
    numbers = np.unique(places.astype(np.int64))
    total = np.zeros(3, dtype=np.int64)
    for first in range(0, len(numbers), ROWS_AT_ONCE):
        some = rows.line(numbers[first : first + ROWS_AT_ONCE])
        batch = masker(some, step=step, total_steps=total_steps, epoch=0)
        ids = batch.line.input_ids
        words = batch.line.layers.get("word_ids")
        # An answer must begin and end at a word edge: "art" does not occur in "part".
        edge_T = np.ones(len(ids) + 1, dtype=bool)
        if words is not None:
            edge_T[1:-1] = (words[1:] != words[:-1]) | (words[1:] < 0)
        # The number of masked tokens in an answer is a difference of cumulative numbers.
        selected = batch.selected.numpy().ravel()
        masked_T = np.concatenate(([0], np.cumsum(selected)))
        for length, hashes, _ in runs_in(ids, [len(ids)], by_length):
            at = np.flatnonzero(np.isin(hashes, by_length[length]))
            at = at[edge_T[at] & edge_T[at + length]]
            masked = masked_T[at + length] - masked_T[at]
            total += (len(at), (masked == length).sum(), (masked > 0).sum())
    return MaskedAnswers(*total.tolist())


def hashes_of(
    tokenizer: PreTrainedTokenizerBase, rights: Iterable[str]
) -> dict[int, list[np.uint64]]:
    """Return the hashes of the answers, keyed by the number of tokens."""
    by_length: dict[int, list[np.uint64]] = {}
    for right in dict.fromkeys(rights):
        # Many tokenizers encode a word differently at the start of a text and after a space.
        texts = [right, f" {right}"]
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            if len(ids) <= MOST_TOKENS:
                for length, hashes, _ in runs_in(np.array(ids), [len(ids)], [len(ids)]):
                    by_length.setdefault(length, []).extend(hashes)
    return by_length


def main(out: Path) -> list[dict[str, object]]:
    """Count the answers of every arm and task of a study."""
    study = read_json(out / "study.json") or {}
    recipe = read_recipe(study["recipe"])
    store = StageStore.of_last_call(out)
    design = Design(recipe, store)
    *_, last = design.plans()
    lines: list[dict[str, object]] = []
    for one, link, data, masker in maskers(last.runs, store):
        if isinstance(data.training, Stream):
            continue
        for spec in one.recipe.tasks:
            task = load_task(spec)
            rights = task.rights()
            if not rights:
                continue
            # An answer of any length counts, and for more than 13 words, 13 in a row are enough.
            standing = occurring(link.corpus.training_documents(), rights, least=1)[0]
            steps = link.training.steps
            masked = masked_answers(
                data.training,
                masker,
                data.tokenizer,
                chain.from_iterable(rights),
                step=steps // 2,
                total_steps=steps,
            )
            line = {"arm": one.arm, "task": task.name, "standing": float(standing.mean())}
            lines.append(line | masked._asdict())
    return lines


if __name__ == "__main__":
    run(main, __doc__)
