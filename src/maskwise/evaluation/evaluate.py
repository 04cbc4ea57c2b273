"""One checkpoint in, records out: everything that can be measured without fine-tuning.

``evaluate`` is what studies call; ``evaluate_checkpoint`` is ``maskwise evaluate``, for any
checkpoint with a masked-language-model head, on any text and any sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import nn
from transformers.utils import logging

from maskwise.constants import DIFFUSION
from maskwise.errors import MaskwiseError, unknown_name
from maskwise.evaluation.bound import Bound, BoundOfText, spread
from maskwise.evaluation.cloze import Cloze
from maskwise.evaluation.scoring import (
    DAMAGED,
    PSEUDO_PERPLEXITY,
    HeldOut,
    HeldOutLoss,
    Measurement,
    fixed_maskers,
    pseudo_perplexity,
)
from maskwise.evaluation.sets import Pairs, TestSet, load_set
from maskwise.families import check_fit, most_tokens, require_kind
from maskwise.masking.policies import policy
from maskwise.models import load_model
from maskwise.objectives import predicting
from maskwise.text import (
    Rows,
    load_tokenizer,
    read_documents,
    read_pieces,
    require_documents,
    tokenise,
)
from maskwise.training import log_frequencies
from maskwise.training.engine import best_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOUND = "bound"
MEASURES = ("heldout", PSEUDO_PERPLEXITY, BOUND, "cloze", "pairs")
BOUND_DRAWS = 8
"""How often each piece of the text is masked for the bound if it is not said how often."""
PERPLEXITY_ROWS = 32
"""Rows for the pseudo-perplexity if it is not said how many."""
LONGEST = 128
"""Tokens of a row of the text, if the model can take as many."""


class EvaluationSettings(BaseModel):
    """What is measured of a checkpoint beside its tasks; the same for every arm of a study.

    ``ratio: 0.15`` is accepted for ``ratios: [0.15]``.

    >>> EvaluationSettings(ratios=0.15, pairs="bundled:pairs").pairs
    ('bundled:pairs',)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratios: tuple[float, ...] = (0.15, 0.40)
    """Ratios of the fixed masks. The first one is also that of the curve during training."""
    masks: tuple[str, ...] = ("token", "whole-word")
    """Kinds of fixed masks: names of policies; and ``diffusion``, the bound of masked diffusion."""
    rows: int = Field(256, ge=1)
    """At most this many held-out rows for the loss."""
    pseudo_perplexity: int = Field(0, ge=0)
    """Held-out rows for the pseudo-perplexity, which costs a forward pass per token; 0: none."""
    bound: int = Field(0, ge=0)
    """How often each held-out row is masked for the bound in bits, per token and per byte; 0: none.
    """
    cloze: tuple[str, ...] = ()
    """Cloze sets: files in LAMA's format, with options behind: ``facts.jsonl(items=500)``."""
    pairs: tuple[str, ...] = ()
    """Sets of minimal pairs: ``bundled:pairs``, or files in BLiMP's format."""

    @model_validator(mode="before")
    @classmethod
    def _one_ratio(cls, raw: object) -> object:
        if not isinstance(raw, dict) or "ratio" not in raw:
            return raw
        if "ratios" in raw:
            raise MaskwiseError("evaluation has both ratio and ratios", do="keep ratios")
        rest = {key: value for key, value in raw.items() if key != "ratio"}
        return {**rest, "ratios": raw["ratio"]}

    @field_validator("ratios", "cloze", "pairs", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return value if isinstance(value, list | tuple) else (value,)

    @field_validator("ratios")
    @classmethod
    def _in_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or len(set(value)) < len(value) or not all(0 < ratio < 1 for ratio in value):
            raise MaskwiseError(
                "evaluation.ratios", got=list(value), allowed="different numbers in 0 < r < 1"
            )
        return value

    @field_validator("masks")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != DIFFUSION:
                policy(name)
        return value


class Counted(Protocol):
    """Text whose tokens were counted."""

    def unigram_counts(self, vocab_size: int) -> NDArray[np.int64]: ...


class Data(Protocol):
    """What is known of a corpus: what a study prepares, or a text of the user's (then also its
    length in bytes).
    """

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def training(self) -> Counted | None: ...
    @property
    def held_out(self) -> Rows | None: ...


@dataclass(frozen=True)
class _Text:
    tokenizer: PreTrainedTokenizerBase
    held_out: Rows | None
    training: None = None
    bytes: int = 0


class HeldOutRecord(HeldOutLoss):
    """``HeldOutLoss`` among the records of a checkpoint."""

    kind: Literal["heldout"]


def load_sets(settings: EvaluationSettings) -> dict[str, TestSet]:
    """The cloze sets and minimal pairs of the settings, by name.

    Read them when a recipe is read: a bad file is then one line at once, and ``content()`` of a set
    is what a stage's name should hold.

    Raises:
        MaskwiseError: a file that is missing or cannot be used, or two sets of one name.
    """
    loaded = [load_set(spec, Cloze.read) for spec in settings.cloze]
    sets: dict[str, TestSet] = {}
    for test_set in (*loaded, *(load_set(spec, Pairs.read) for spec in settings.pairs)):
        if test_set.name in (*sets, PSEUDO_PERPLEXITY, BOUND):
            raise MaskwiseError(
                f"two evaluation sets are called {test_set.name!r}", do="rename a file"
            )
        sets[test_set.name] = test_set
    return sets


@torch.inference_mode()
def evaluate(
    checkpoint: str | Path | PreTrainedModel, data: Data, settings: EvaluationSettings
) -> list[HeldOutRecord | Measurement]:
    """Measure one checkpoint.

    Args:
        checkpoint: a folder or hub id, measured on the accelerator if there is one; or a masked
            language model, measured where it is.
        data: its tokenizer, the training rows (None: not known; then ``unigram`` is None), held-out
            rows (None: nothing is measured on them).
        settings: what to measure.

    Returns:
        A ``HeldOutRecord`` for every ratio and kind of mask, and a ``Measurement`` for everything
        else.

    Raises:
        MaskwiseError: a checkpoint or file that cannot be read, a tokenizer that does not fit, or a
            file of which no item can be scored.
    """
    sets = load_sets(settings)
    if not isinstance(checkpoint, str | Path):
        model = checkpoint
    else:
        model = load_model(checkpoint, kind=None)
        nn.Module.to(model, best_device())
    if sets or settings.pseudo_perplexity or settings.bound:
        require_kind(model.config, "encoder", use="filling masks one at a time")
    check_fit(model.config, len(data.tokenizer), do="use the model's own tokenizer")
    was_training = model.training
    model.eval()
    records: list[HeldOutRecord | Measurement] = []
    if data.held_out is not None:
        records += _held_out(model, data, settings)
    for test_set in sets.values():
        records += test_set.score(model, data.tokenizer)
    model.train(was_training)
    for record in records:
        value = record["loss"] if record["kind"] == "heldout" else record["value"]
        if not math.isfinite(value):
            raise MaskwiseError(f"a measure of {_name(record)} is no number", got=value, do=DAMAGED)
    return records


def _name(record: Mapping[str, object]) -> str:
    return f"{record.get('masks') or record['name']} ({record.get('metric', 'held-out loss')})"


def _held_out(
    model: PreTrainedModel, data: Data, settings: EvaluationSettings
) -> list[HeldOutRecord | Measurement]:
    assert data.held_out is not None
    log_unigram, objective = None, predicting(model)
    if data.training is not None:
        counts = torch.from_numpy(data.training.unigram_counts(len(data.tokenizer)))
        log_unigram = log_frequencies(counts)
    records: list[HeldOutRecord | Measurement] = []
    rows = data.held_out.laid(objective.reads(data.held_out.layout, model.config))
    bound = Bound.among(
        settings.masks, rows, data.tokenizer, rows=settings.rows, log_unigram=log_unigram
    )
    for ratio in settings.ratios:
        maskers = fixed_maskers(
            data.tokenizer,
            masks=settings.masks,
            ratio=ratio,
            kind=objective.kind,
            length=rows.length,
        )
        held_out = HeldOut(
            rows, maskers, log_unigram, rows=settings.rows, tokenizer=data.tokenizer, bound=bound
        )
        records += [{"kind": "heldout", **line} for line in held_out(objective)]
        bound = None  # one is enough: its rates are all of them
    if settings.bound:
        size = getattr(data, "bytes", 0)  # of the whole text
        chosen = torch.arange(len(rows)) if size else spread(settings.rows, of=len(rows))
        measured = Bound(
            rows, data.tokenizer, chosen, log_unigram=log_unigram, draws=settings.bound
        )(objective)
        records += bound_records(measured, size)
    if settings.pseudo_perplexity:
        alone = documents_alone(data.held_out)
        some = alone.tensors(spread(settings.pseudo_perplexity, of=len(alone)))
        records += pseudo_perplexity(model, data.tokenizer, some, log_unigram)
    return records


def documents_alone(rows: Rows) -> Rows:
    """The rows by which pseudo-perplexity is measured: each piece by itself, where several stand in
    a row.
    """
    return rows.laid("document" if rows.layout == "packed" else rows.layout)


def bound_records(text: BoundOfText, size: int) -> list[Measurement]:
    """Nats and bits for each token and, of a text of ``size`` bytes that holds no [UNK], bits for
    each byte.
    """
    scales = {"nats per token": text.tokens, "bits per token": text.tokens * math.log(2)}
    if size and not text.unknown:
        scales["bits per byte"] = size * math.log(2)
    records: list[Measurement] = [
        {
            "kind": "evaluation",
            "name": BOUND,
            "metric": metric,
            "value": text.nats / scale,
            "items": text.tokens,
            "chance": None if text.unigram is None else text.unigram / scale,
            "higher_is_better": False,
            "error": text.error / scale,
        }
        for metric, scale in scales.items()
    ]
    for record in records if text.unknown else ():
        record["skipped"] = {"[UNK] tokens, so no figure per byte": text.unknown}
    return records


def settings_of(measures: Sequence[str]) -> EvaluationSettings:
    """Settings from words: ``pairs:FILE``, ``cloze:FILE``, ``pseudo-perplexity`` or
    ``pseudo-perplexity:ROWS``, ``bound`` or ``bound:DRAWS``, ``heldout``."""
    specs: dict[str, list[str]] = {name: [] for name in MEASURES}
    for measure in measures:
        name, _, spec = measure.partition(":")
        if name not in specs:
            raise unknown_name("measure", name, MEASURES)
        if name in ("cloze", "pairs") and not spec:
            raise MaskwiseError(
                f"{name} needs a file", do=f"say {name}:FILE, or pairs:bundled:pairs"
            )
        if name == "heldout" and spec:
            raise MaskwiseError("heldout takes nothing behind it", got=repr(spec))
        if name in (PSEUDO_PERPLEXITY, BOUND) and spec and not (spec.isdecimal() and int(spec)):
            counts = (
                "ROWS takes a number of rows"
                if name != BOUND
                else "DRAWS takes a number of masks for each row"
            )
            raise MaskwiseError(f"{name}:{counts}", got=spec, allowed="≥ 1")
        specs[name].append(spec)
    rows = [int(spec or PERPLEXITY_ROWS) for spec in specs[PSEUDO_PERPLEXITY]]
    draws = [int(spec or BOUND_DRAWS) for spec in specs[BOUND]]
    return EvaluationSettings(
        bound=max(draws, default=0),
        pseudo_perplexity=max(rows, default=0),
        cloze=tuple(specs["cloze"]),
        pairs=tuple(specs["pairs"]),
    )


def evaluate_checkpoint(
    model: str, measures: Sequence[str], *, text: str | None = None, text_field: str = "text"
) -> list[HeldOutRecord | Measurement]:
    """The records of a checkpoint.

    Args:
        model: a folder or hub id.
        measures: see ``settings_of``.
        text: a corpus that the model was not trained on, for held-out loss and pseudo-perplexity.

    Raises:
        MaskwiseError: nothing to measure, or anything of it that cannot be read.
    """
    settings = settings_of(measures)
    load_sets(settings)  # a bad file is said before a model is loaded
    if text is None and (settings.pseudo_perplexity or settings.bound or "heldout" in measures):
        what = "held-out loss, the bound and pseudo-perplexity need a text"
        raise MaskwiseError(what, do="give --text FILE")
    if not measures and text is None:
        raise MaskwiseError(
            "nothing to measure", do="give --with pairs:bundled:pairs, or --text FILE"
        )
    logging.disable_progress_bar()
    network = load_model(model, kind=None)
    nn.Module.to(network, best_device())
    tokenizer = load_tokenizer(model, needs_mask=False, needs_words=False)
    held_out, size = None, 0
    if text is not None:
        documents = require_documents(read_documents(text, text_field=text_field))
        length = min(LONGEST, most_tokens(network.config))
        pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=length)
        held_out, size = (
            Rows.of(pieces, "document"),
            sum(len(each.text.encode()) for each in documents),
        )
    return evaluate(network, _Text(tokenizer, held_out, bytes=size), settings)
