"""Measures of held-out text: the loss on fixed masks, the bound of masked diffusion, and the
pseudo-perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from maskwise.constants import NATS
from maskwise.errors import whole_number
from maskwise.evaluation.measure import TextMeasure
from maskwise.evaluation.scoring import (
    PSEUDO_PERPLEXITY,
    Bound,
    BoundOfText,
    HeldOut,
    HeldOutLoss,
    diffusion_bound,
    evenly_spaced,
    fixed_maskers,
    pseudo_perplexity,
)
from maskwise.families import Kind
from maskwise.measurements import Measurement
from maskwise.objectives import predicting
from maskwise.text import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELD_OUT, BOUND = "heldout", "bound"
ROWS = 256
"""The default of the maximum number of held-out rows."""


@dataclass(frozen=True)
class FixedMasks(TextMeasure):
    """The loss on held-out text with fixed masks.

    Attributes:
        ratios: the masking ratios.
        masks: names of policies, and ``diffusion`` for the bound of masked diffusion.
        rows: the maximum number of rows.
    """

    name = HELD_OUT
    model_kind: ClassVar[Kind | None] = None
    ratios: tuple[float, ...] = (0.15, 0.40)
    masks: tuple[str, ...] = ("token", "whole-word")
    rows: int = ROWS

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        folder: Path | None = None,
    ) -> list[Measurement]:
        objective = predicting(model)
        rows = self.text.rows.laid(objective.reads(self.text.rows.layout, model.config))
        bound = diffusion_bound(
            self.masks,
            rows,
            tokenizer,
            rows=self.rows,
            log_unigram=self.text.log_unigram,
        )
        found: list[Measurement] = []
        for ratio in self.ratios:
            maskers = fixed_maskers(
                tokenizer,
                masks=self.masks,
                ratio=ratio,
                kind=objective.kind,
                length=rows.length,
            )
            losses = HeldOut(
                rows,
                maskers,
                self.text.log_unigram,
                rows=self.rows,
                tokenizer=tokenizer,
                bound=bound,
            )
            for loss in losses(objective):
                found += _of_loss(loss)
            # The bound has its own ratios. It is measured only once, not for each ratio.
            bound = None
        return found


def _of_loss(loss: HeldOutLoss) -> Iterator[Measurement]:
    """Yield a loss, and that of word frequencies alone, if it is known."""
    facts: Mapping[str, Any] = {}
    if "per_byte" in loss:
        facts = {"per_byte": loss["per_byte"]}
    test = Measurement(
        kind="heldout",
        measure=loss["masks"],
        value=loss["loss"],
        metric=NATS,
        unit=NATS,
        higher_is_better=False,
        ratio=loss["ratio"],
        items=loss["targets"],
        item_error=loss.get("error"),
        facts=facts,
    )
    yield test
    if loss["unigram"] is not None:
        yield replace(test, split="unigram", value=loss["unigram"], item_error=None, facts={})


@dataclass(frozen=True)
class DiffusionBound(TextMeasure):
    """The masked-diffusion bound of held-out text, in nats and bits per token and bits per byte.

    Attributes:
        draws: how often each row is masked.
        rows: the maximum number of rows. If the size of the text is known, all rows are read.
    """

    name = BOUND
    draws: int = 8
    rows: int = ROWS

    def __post_init__(self) -> None:
        whole_number("draws of bound", self.draws, least=1)

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        folder: Path | None = None,
    ) -> list[Measurement]:
        objective = predicting(model)
        text = self.text
        rows = text.rows.laid(objective.reads(text.rows.layout, model.config))
        # Bits per byte are nats of the whole text, so all rows are needed.
        chosen = torch.arange(len(rows)) if text.bytes else evenly_spaced(self.rows, of=len(rows))
        whole = Bound(rows, tokenizer, chosen, log_unigram=text.log_unigram, draws=self.draws)
        return bound_rows(whole(objective), text.bytes)


def bound_rows(text: BoundOfText, size: int) -> list[Measurement]:
    """Return nats per token and bits per token; if ``size`` (in bytes) is not 0, bits per byte."""
    scales = {"nats per token": text.tokens, "bits per token": text.tokens * math.log(2)}
    # The bound ignores [UNK], but the bytes include its characters. Bits per byte would be too low.
    if size and not text.unknown:
        scales["bits per byte"] = size * math.log(2)
    facts = {}
    if text.unknown:
        facts["skipped"] = {"[UNK] tokens, so no value per byte": text.unknown}
    rows = []
    for metric, scale in scales.items():
        row = Measurement(
            measure=BOUND,
            metric=metric,
            unit=metric,
            value=text.nats / scale,
            higher_is_better=False,
            chance=None if text.unigram is None else text.unigram / scale,
            items=text.tokens,
            item_error=text.error / scale if math.isfinite(text.error) else None,
            facts=facts,
        )
        rows.append(row)
    return rows


@dataclass(frozen=True)
class PseudoPerplexity(TextMeasure):
    """The pseudo-perplexity of held-out text: every token costs a forward pass.

    Attributes:
        rows: the maximum number of rows.
    """

    name = PSEUDO_PERPLEXITY
    rows: int = 32

    def __post_init__(self) -> None:
        whole_number("rows of pseudo-perplexity", self.rows, least=1)

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        folder: Path | None = None,
    ) -> list[Measurement]:
        alone = documents_alone(self.text.rows)
        some = alone.tensors(evenly_spaced(self.rows, of=len(alone)))
        return pseudo_perplexity(model, tokenizer, some, self.text.log_unigram)


def documents_alone(rows: Rows) -> Rows:
    """Return the rows for pseudo-perplexity, in which each document has rows of its own."""
    return rows.laid("document" if rows.layout == "packed" else rows.layout)
