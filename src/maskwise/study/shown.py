"""Show the masks of every arm: texts as the model reads them, and how often answers are masked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskwise.annotate.shard import Live
from maskwise.annotate.store import Store
from maskwise.constants import REFERENCE
from maskwise.evaluation import masked_answers
from maskwise.files import Record
from maskwise.folders import read_lines
from maskwise.inspection import show_masks
from maskwise.masking import Masker
from maskwise.masking.policies.online import GroupWeighted
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.plan import Run
from maskwise.study.work import open_text
from maskwise.tasks import load_task
from maskwise.text import Document, Prepared, Stream, tokenise
from maskwise.text.layers import Layered
from maskwise.text.worlds import of_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SAMPLES = 4
"""Documents whose beginnings are shown."""
SAMPLE_TOKENS = 64
MIN_CHARACTERS = 100
"""Shorter documents are not shown."""
MOMENTS = 5
"""Steps of a training at which each text is shown, each in another epoch and so with new masks."""


def samples(runs: Sequence[Run], stages: Path) -> dict[str, list[Plain]]:
    """Mask the beginnings of some documents as each arm does over its training.

    Returns:
        The samples of each arm, with its first seed. A policy that learns has its final weights.
    """
    shown: dict[str, list[Plain]] = {}
    for run, link, data, masker in _maskers(runs, stages):
        steps = link.training.steps
        length = min(link.corpus.length, SAMPLE_TOKENS)
        layers_folder = run.prepared.folder(stages) / "layers"
        shown[run.arm] = []
        for document, layers in _beginnings(link, data.tokenizer, layers_folder, length):
            moments: list[Plain] = []
            shown_steps = np.linspace(0, steps - 1, MOMENTS).round().astype(int)
            for epoch, step in enumerate(shown_steps.tolist()):
                seen = show_masks(
                    masker,
                    data.tokenizer,
                    document.text,
                    layers=layers,
                    max_length=length,
                    step=step,
                    total_steps=steps,
                    epoch=epoch,
                )
                pieces = [piece.as_dict() for piece in seen.pieces]
                moments.append({"step": step, "ratio": round(seen.ratio, 4), "pieces": pieces})
            middle = moments[MOMENTS // 2]["pieces"]
            sample = {"document": document.id, "pieces": middle, "moments": moments}
            if isinstance(masker.policy, GroupWeighted):
                sample["learnt"] = True
            shown[run.arm].append(sample)
    return shown


def masked_records(recipe: Recipe, runs: Sequence[Run], stages: Path) -> list[Record]:
    """Count how often each arm masks the right answers of a task, in the middle of training."""
    records: list[Record] = []
    if not recipe.tasks:
        return records
    for run, link, data, masker in _maskers(runs, stages):
        # Reading a whole stream again would take too long.
        if isinstance(data.training, Stream):
            continue
        for spec in recipe.tasks:
            task = load_task(of_run(spec, run.seed))
            rights = [*chain.from_iterable(task.rights())]
            # Only answers that are texts can be found in the rows.
            if not rights:
                continue
            steps = link.training.steps
            masked = masked_answers(
                data.training, masker, data.tokenizer, rights, step=steps // 2, total_steps=steps
            )
            records.append(
                {
                    "kind": "coverage",
                    "arm": run.arm,
                    "task": task.name,
                    "corpus": link.corpus.title,
                    "occurrences": masked.occurrences,
                    "whole": masked.whole,
                    "part": masked.part,
                }
            )
    return records


def _maskers(runs: Sequence[Run], stages: Path) -> Iterator[tuple[Run, Recipe, Prepared, Masker]]:
    """Yield the first run of every arm with its last training, its text, and its masker.

    Arms are left out if they mask nothing, if their objectives mask by themselves, or if the
    weights of their policy are unknown.
    """
    first: dict[str, Run] = {}
    for run in runs:
        if run.arm != REFERENCE and run.prepared.result(stages):
            first.setdefault(run.arm, run)
    for run in first.values():
        link = run.recipe.links()[-1]
        if link.masking.policy not in link.masked_by:
            continue
        data = open_text(run.prepared.folder(stages))
        masker = link.masking.masker(data.tokenizer, seed=run.seed)
        if isinstance(masker.policy, GroupWeighted) and run.pretrained:
            metrics = read_lines(run.pretrained.folder(stages) / "metrics.jsonl")
            weights = [line["weights"] for line in metrics if "weights" in line]
            # A run that has just begun has no line with weights yet.
            if not weights:
                continue
            masker.policy.take(weights[-1])
        elif masker.policy.learner() is not None:
            continue
        yield run, link, data, masker


def _beginnings(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, layers: Path, length: int
) -> Iterator[tuple[Document, dict[str, list[int]]]]:
    """Yield the first long documents of a corpus with the layers of their first tokens.

    Args:
        layers: the folder of the stored layers.
        length: tokens of each document, including special tokens.
    """
    texts = recipe.corpus.documents()
    long_texts = (document for document in texts if len(document.text) > MIN_CHARACTERS)
    documents = list(islice(long_texts, SAMPLES))
    annotated: Layered | None = None
    specs = recipe.corpus.annotators
    if specs:
        annotated = Live(specs) if recipe.corpus.stream else Store(layers)
    for document, tokens in zip(documents, tokenise(documents, tokenizer, layers=annotated)):
        cut = tokenizer(
            document.text, return_special_tokens_mask=True, truncation=True, max_length=length
        )
        inside = np.array(cut["special_tokens_mask"]) == 0
        framed = {}
        # Layers have no values for special tokens.
        for name, values in tokens.layers.items():
            whole = np.full(len(inside), -1, dtype=values.dtype)
            whole[inside] = values[: inside.sum()]
            framed[name] = whole.tolist()
        yield document, framed
