"""Masks of every arm of a study, for its page."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from maskwise.annotate.kept import Store
from maskwise.annotate.run import Live
from maskwise.base.errors import Truncated
from maskwise.masking import Masker
from maskwise.masking.policies.online import GroupWeighted
from maskwise.masks.inspection import show_masks
from maskwise.objectives import ObjectiveSettings
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.studies.plan import Run
from maskwise.studies.records import last_logged
from maskwise.studies.store import StageStore
from maskwise.studies.work import open_prepared
from maskwise.text import Prepared
from maskwise.text.encoding import encode
from maskwise.text.layers import Layered
from maskwise.text.words import needs_offsets

SAMPLES = 4
"""Number of sample documents on the page."""
SAMPLE_TOKENS = 64
"""Number of tokens shown from the beginning of a document."""
MIN_CHARACTERS = 100
"""Minimum number of characters of a sample document."""
MOMENTS = 5
"""Maximum number of training steps for which masks are shown. Each step is masked as in another
epoch, so the masks differ even if the masking ratio is constant."""


def samples(runs: Sequence[Run], store: StageStore) -> dict[str, list[Plain]]:
    """Show how the first run of every arm masks some documents at several training steps.

    A masking policy that learns during training is shown with its final weights.

    Returns:
        For every arm, a list of samples: a document, its masked text in the middle of training
        (``pieces``), and its masked text at all shown steps (``moments``).
    """
    shown: dict[str, list[Plain]] = {}
    for run, link, data, masker in maskers(runs, store):
        # Without words, a slow tokenizer does not tell which characters a token has.
        if not data.tokenizer.is_fast and needs_offsets(link.corpus.words):
            continue
        steps = link.training.steps
        length = min(link.corpus.length, SAMPLE_TOKENS)
        specs = link.corpus.layers
        annotated: list[Layered] = []
        if specs:
            stored = store.folder(run.prepared) / "layers"
            annotated = [Live(specs) if link.corpus.stream else Store(stored).latest()]
        texts = link.corpus.documents()
        long_texts = (document for document in texts if len(document.text) > MIN_CHARACTERS)
        # A short training has fewer steps than are shown of a long one.
        shown_steps = np.unique(np.linspace(0, steps - 1, MOMENTS).round().astype(int))
        shown[run.arm] = []
        for document in islice(long_texts, SAMPLES):
            text = document.text
            with warnings.catch_warnings():
                # The page shows only the beginnings of a few texts.
                warnings.simplefilter("ignore", Truncated)
                [row] = encode(
                    data.tokenizer,
                    [text],
                    max_length=length,
                    layers=annotated,
                    words=link.corpus.words,
                )
            moments: list[Plain] = []
            for epoch, step in enumerate(shown_steps.tolist()):
                seen = show_masks(
                    masker,
                    data.tokenizer,
                    text,
                    row=row,
                    max_length=length,
                    step=step,
                    total_steps=steps,
                    epoch=epoch,
                    words=link.corpus.words,
                )
                pieces = [piece.as_dict() for piece in seen.pieces]
                moments.append({"step": step, "ratio": round(seen.ratio, 4), "pieces": pieces})
            middle = moments[len(moments) // 2]["pieces"]
            sample = {"document": document.name, "pieces": middle, "moments": moments}
            if isinstance(masker.policy, GroupWeighted):
                sample["learnt"] = True
            shown[run.arm].append(sample)
    return shown


def maskers(
    runs: Sequence[Run], store: StageStore
) -> Iterator[tuple[Run, Recipe, Prepared, Masker]]:
    """Yield the first run of every arm, and the recipe, text and masker of its last phase.

    An arm is skipped if it masks nothing, if its objectives ignore the masking policy, or if the
    weights of its masking policy are unknown.
    """
    first: dict[str, Run] = {}
    for run in runs:
        if run.trained and store.result(run.prepared):
            first.setdefault(run.arm, run)
    for run in first.values():
        link = run.recipe.links()[-1]
        if link.masking.policy not in link.masked_by or not link.training.steps:
            continue
        data = open_prepared(store.folder(run.prepared))
        # With several objectives, samples show the masks of those that use the recipe's masking.
        chosen = ObjectiveSettings(objective="mlm") if link.objectives else link.only
        kind = chosen.kind
        masking = kind.value_of(link.masking_of(chosen))
        masker = kind.maker(data.tokenizer, seed=run.seed, masking=masking)
        assert isinstance(masker, Masker)
        if isinstance(masker.policy, GroupWeighted) and run.pretrained:
            weights = last_logged(run.pretrained, store, "weights")
            # A run that has just started has not logged weights yet.
            if not weights:
                continue
            masker.policy.take(weights)
        elif masker.policy.learns:
            continue
        yield run, link, data, masker
