"""One checkpoint in, records out: everything that can be measured without fine-tuning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from maskwise.errors import MaskwiseError
from maskwise.evaluation.cloze import score_facts
from maskwise.evaluation.facts import Facts, read_facts
from maskwise.evaluation.heldout import HeldOut, fixed_maskers, spread
from maskwise.evaluation.pairs import Pairs, read_pairs, score_pairs
from maskwise.evaluation.scoring import log_probabilities
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.evaluation.sources import load
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.vocabulary import Vocabulary
from maskwise.models import check_fit, load_model
from maskwise.objectives import MaskedLanguageModelling
from maskwise.text import Rows
from maskwise.training import log_frequencies
from maskwise.training.machine import best_device

PSEUDO_PERPLEXITY = "pseudo-perplexity"


class Data(Protocol):
    """What a prepare stage leaves (``study.work.Prepared``)."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def training(self) -> Rows | None: ...
    @property
    def held_out(self) -> Rows | None: ...


def load_sets(settings: EvaluationSettings) -> dict[str, Facts | Pairs]:
    """The cloze sets and minimal pairs of the settings, by name.

    Read them when a recipe is read: a bad file is then one line at once, and ``content()`` of a set is what a
    stage's name should hold.

    Raises:
        MaskwiseError: a file that is missing or cannot be used, or two sets of one name.
    """
    sets: dict[str, Facts | Pairs] = {}
    for reader, specs in ((read_facts, settings.cloze), (read_pairs, settings.pairs)):
        for spec in specs:
            found = load(spec, reader)
            if found.name in (*sets, PSEUDO_PERPLEXITY):
                raise MaskwiseError(f"two evaluation sets are called {found.name!r}", do="rename a file")
            sets[found.name] = found
    return sets


@torch.inference_mode()
def evaluate(
    checkpoint: str | Path | nn.Module, data: Data, settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """Measure one checkpoint.

    Args:
        checkpoint: a folder or hub id, measured on the accelerator if there is one; or a masked language model,
            measured where it is.
        data: its tokenizer, the training rows (None: not known; then ``unigram`` is None), held-out rows
            (None: nothing is measured on them).
        settings: what to measure.

    Returns:
        For every ratio and kind of mask ``{"kind": "heldout", "masks", "ratio", "loss", "unigram",
        "targets"}``; for everything else ``{"kind": "evaluation", "name", "metric", "value", "items",
        "chance", "higher_is_better", …}``, where (name, metric) is unique.

    Raises:
        MaskwiseError: a checkpoint or file that cannot be read, a tokenizer that does not fit, or a file of
            which no item can be scored.
    """
    sets = load_sets(settings)
    model: Any = checkpoint
    if not isinstance(checkpoint, nn.Module):
        model = load_model(checkpoint)
        model.to(best_device())
    check_fit(model.config, len(data.tokenizer), do="use the model's own tokenizer")
    was_training = model.training
    model.eval()
    records = []
    if data.held_out is not None:
        records += _held_out(model, data, settings)
    for found in sets.values():
        score: Any = score_facts if isinstance(found, Facts) else score_pairs
        records += score(model, data.tokenizer, found)
    model.train(was_training)
    return records


def _held_out(model: Any, data: Any, settings: EvaluationSettings) -> list[dict[str, Any]]:
    log_unigram, objective = None, MaskedLanguageModelling(model)
    if data.training is not None:
        counts = torch.from_numpy(data.training.unigram_counts(len(data.tokenizer)))
        log_unigram = log_frequencies(counts)
    records = []
    for ratio in settings.ratios:
        maskers = fixed_maskers(data.tokenizer, masks=settings.masks, ratio=ratio)
        held_out = HeldOut(data.held_out, maskers, log_unigram, rows=settings.rows)
        records += [{"kind": "heldout", **line} for line in held_out(objective)]
    if settings.pseudo_perplexity:
        rows = data.held_out.tensors(spread(settings.pseudo_perplexity, of=len(data.held_out)))
        records += pseudo_perplexity(model, data.tokenizer, rows, log_unigram)
    return records


def pseudo_perplexity(
    model: Any, tokenizer: Any, rows: Any, log_unigram: Tensor | None = None
) -> list[dict[str, Any]]:
    """exp of the mean of −log p over the tokens of some rows, each masked alone.

    Two records: ``token`` is the plain one (Salazar et al. 2020); ``within-word`` also hides the pieces behind
    the target in its word (Kauf & Ivanova 2023). Both are per token, so only models with the same tokenizer
    can be compared. ``chance`` is the perplexity of a model that knows only frequencies.

    Args:
        rows: what ``AnnotatedBatch.of`` takes, with ``word_ids``; in packed rows the model sees what it sees
            in training: the documents beside.
        log_unigram: (V,) of the training text, if known.
    """
    batch = AnnotatedBatch.of(rows, Vocabulary.of(tokenizer))
    count = int(batch.eligible.sum())
    if not count:
        raise MaskwiseError("no held-out token can be scored", do="use more held-out text")
    chance = None
    if log_unigram is not None:
        chance = math.exp(-float(log_unigram[batch.input_ids[batch.eligible]].double().mean()))
    lines = []
    for metric, within_word in (("token", False), ("within-word", True)):
        log_p = log_probabilities(model, batch, mask=tokenizer.mask_token_id, within_word=within_word)
        value = math.exp(-float(log_p.double().sum()) / count)
        facts = {"value": value, "items": count, "chance": chance, "higher_is_better": False}
        lines.append({"kind": "evaluation", "name": PSEUDO_PERPLEXITY, "metric": metric, **facts})
    return lines
