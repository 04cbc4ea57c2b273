"""Measures of held-out text: the loss on fixed masks, the bound of masked diffusion, and the
pseudo-perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from maskwise.base.constants import NATS, NEXT_TOKEN, Kind
from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.base.specs import Call
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
    predictable,
    pseudo_perplexity,
)
from maskwise.evaluation.settings import ROWS, checked_ratios, fixed_policies
from maskwise.models.decoders import is_causal
from maskwise.objectives.denoising import predicting
from maskwise.results.measurements import Measurement
from maskwise.text import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

HELD_OUT, BOUND = "heldout", "bound"


@dataclass(frozen=True)
class FixedMasks(TextMeasure):
    """The loss on held-out text with fixed masks.

    Attributes:
        ratios: the masking ratios. One number is read as one ratio.
        masks: names of policies, ``diffusion`` for the bound of masked diffusion, and
            ``next-token``; None for next tokens of a decoder, and otherwise for single tokens and,
            if the tokenizer finds words, whole words.
        rows: the maximum number of rows.
    """

    name = HELD_OUT
    counted = "rows"
    model_kind: ClassVar[Kind | None] = None
    ratios: tuple[float, ...] = (0.15, 0.40)
    masks: tuple[str, ...] | None = None
    rows: int = ROWS

    def __post_init__(self) -> None:
        whole_number("rows of heldout", self.rows, least=1)
        object.__setattr__(self, "ratios", checked_ratios("ratios of heldout", self.ratios))
        if self.masks is not None:
            masks = self.masks if isinstance(self.masks, tuple | list) else (self.masks,)
            # A word without quotes was read as a call.
            names = [mask.written if isinstance(mask, Call) else mask for mask in masks]
            if not names:
                raise MaskwiseError("heldout needs masks", got=masks, do="give masks=('token',)")
            fixed_policies(names)
            object.__setattr__(self, "masks", tuple(names))

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        folder: Path | None = None,
    ) -> list[Measurement]:
        objective = predicting(model)
        masks = self._masks(model.config)
        rows = self.text.rows.laid(objective.reads(self.text.rows.layout, model.config))
        bound = diffusion_bound(
            masks,
            rows,
            tokenizer,
            rows=self.rows,
            log_unigram=self.text.log_unigram,
        )
        found: list[Measurement] = []
        for ratio in self.ratios:
            maskers = fixed_maskers(
                tokenizer,
                masks=masks,
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
            # What has no ratio is measured only once, not for each ratio.
            bound = None
            masks = [*fixed_policies(masks)]
        return found

    def _masks(self, config: PreTrainedConfig) -> Sequence[str]:
        """Return the masks, after a check that the text has the layers that they need."""
        layers = self.text.rows.pieces.columns
        if self.masks is None:
            if is_causal(config):
                return (NEXT_TOKEN,)
            # Words need character offsets, which slow tokenizers do not return.
            return ("token", "whole-word") if "word_ids" in layers else ("token",)
        masks = predictable(self.masks, config, setting="masks")
        for name, made in fixed_policies(masks).items():
            missing = sorted(set(made.layers()) - layers.keys())
            if "word_ids" in missing:
                raise MaskwiseError(
                    f"heldout: masks {name} need words, which a slow tokenizer cannot find",
                    do="give masks=('token',), or convert the tokenizer to a tokenizer.json",
                )
            if missing:
                raise MaskwiseError(
                    f"heldout: masks {name} need a layer that this text does not have",
                    got=", ".join(missing),
                    do="give masks that need no layer, such as masks=('token', 'whole-word')",
                )
        return masks


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
    """The masked-diffusion bound of held-out text, in nats and bits per token, and in bits per byte
    if the size of the text is known.

    Attributes:
        draws: how often each row is masked.
        rows: the maximum number of rows. If the size of the text is known, all rows are read.
    """

    name = BOUND
    counted = "rows"
    draws: int = 8
    rows: int = ROWS

    def __post_init__(self) -> None:
        whole_number("draws of bound", self.draws, least=1)
        whole_number("rows of bound", self.rows, least=1)

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
    facts = {}
    if text.never_masked:
        # The bound ignores these tokens, but the bytes include their characters. Bits per byte
        # would be too low.
        reason = "tokens that are never masked" + (", so no value per byte" if size else "")
        facts["skipped"] = {reason: text.never_masked}
    elif size:
        scales["bits per byte"] = size * math.log(2)
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
    counted = "rows"
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
