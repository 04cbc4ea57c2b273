"""What the page shows of the masks of every arm: sentences as the model reads them, and answers
that are masked.
"""

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

SAMPLES, SAMPLE_TOKENS, SAMPLE_CHARACTERS = 4, 64, 100
"""Documents whose beginnings are shown in the report, how much of them, and how long they are at
least.
"""


MOMENTS = 5
"""At so many moments of a training, evenly, each text is shown: in another pass each, and so with
another draw.
"""


def samples(runs: Sequence[Run], stages: Path) -> dict[str, list[Plain]]:
    """Beginnings of documents with what each arm masks over its training (with its first seed).

    A policy that learns has the weights of the end of that run; where they are not known, its arm
    is left out.
    """
    shown: dict[str, list[Plain]] = {}
    for run, link, data, masker in _maskers(runs, stages):
        learnt = {"learnt": True} if isinstance(masker.policy, GroupWeighted) else {}
        steps, length = link.training.steps, min(link.corpus.length, SAMPLE_TOKENS)
        layers_folder = run.prepared.folder(stages) / "layers"
        shown[run.arm] = []
        for document, layers in _beginnings(link, data.tokenizer, layers_folder, length):
            moments: list[Plain] = []
            for number, step in enumerate(
                np.linspace(0, steps - 1, MOMENTS).round().astype(int).tolist()
            ):
                seen = show_masks(
                    masker,
                    data.tokenizer,
                    document.text,
                    layers=layers,
                    max_length=length,
                    step=step,
                    total_steps=steps,
                    epoch=number,
                )
                pieces = [piece.as_dict() for piece in seen.pieces]
                moments.append({"step": step, "ratio": round(seen.ratio, 4), "pieces": pieces})
            middle = moments[MOMENTS // 2]["pieces"]
            shown[run.arm].append(
                {"document": document.id, "pieces": middle, "moments": moments, **learnt}
            )
    return shown


def masked_records(recipe: Recipe, runs: Sequence[Run], stages: Path) -> list[Record]:
    """How often each arm masks the right answers of each task that has texts for answers, in the
    middle of training.
    """
    records: list[Record] = []
    for run, link, data, masker in _maskers(runs, stages) if recipe.tasks else ():
        if isinstance(data.training, Stream):  # it is not read again to be counted
            continue
        for task in (load_task(of_run(spec, run.seed)) for spec in recipe.tasks):
            if rights := [*chain.from_iterable(task.rights())]:
                steps = link.training.steps
                masked = masked_answers(
                    data.training,
                    masker,
                    data.tokenizer,
                    rights,
                    step=steps // 2,
                    total_steps=steps,
                )
                who: Record = {
                    "kind": "coverage",
                    "arm": run.arm,
                    "task": task.name,
                    "corpus": link.corpus.title,
                }
                records.append(
                    {
                        **who,
                        "occurrences": masked.occurrences,
                        "whole": masked.whole,
                        "part": masked.part,
                    }
                )
    return records


def _maskers(runs: Sequence[Run], stages: Path) -> Iterator[tuple[Run, Recipe, Prepared, Masker]]:
    """The first run of every arm, its last training, the text of that, and what masks it.

    Arms without masks, whose objectives bring their own, or whose learned weights are not kept have
    nothing to show.
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
        if masker.policy.learner() is not None and not isinstance(masker.policy, GroupWeighted):
            continue
        if isinstance(masker.policy, GroupWeighted):
            metrics = run.pretrained.folder(stages) / "metrics.jsonl" if run.pretrained else None
            weights = (
                [line["weights"] for line in read_lines(metrics) if "weights" in line]
                if metrics
                else []
            )
            if not weights:
                continue
            masker.policy.take(weights[-1])
        yield run, link, data, masker


def _beginnings(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, layers: Path, length: int
) -> Iterator[tuple[Document, dict[str, list[int]]]]:
    """The first long documents of a corpus, with its layers over their first ``length`` tokens."""
    long = (
        document for document in recipe.corpus.documents() if len(document.text) > SAMPLE_CHARACTERS
    )
    documents = list(islice(long, SAMPLES))
    made: Layered | None = None
    if specs := recipe.corpus.annotators:
        made = Live(specs) if recipe.corpus.stream else Store(layers)
    for document, tokens in zip(documents, tokenise(documents, tokenizer, layers=made)):
        cut = tokenizer(
            document.text, return_special_tokens_mask=True, truncation=True, max_length=length
        )
        inside = np.array(cut["special_tokens_mask"]) == 0
        framed = {}
        for name, values in tokens.layers.items():
            framed[name] = np.full(len(inside), -1, dtype=values.dtype)
            framed[name][inside] = values[: inside.sum()]
        yield document, {name: values.tolist() for name, values in framed.items()}
