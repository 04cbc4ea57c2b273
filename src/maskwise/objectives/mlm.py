"""Masked language modelling and its variants: of entities, causal, by diffusion, of span borders.

The vocabulary head is applied at targets only. Families without a known head
(``families.ENCODERS``) use the model's own logits, which is slower and gives the same loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskwise.attention import NAME, separate
from maskwise.errors import MaskwiseError
from maskwise.families import ENCODERS, adapter_of, masked_logits, prediction_head, width_of
from maskwise.masking import IGNORE, AnnotatedBatch, MaskedBatch, Masker
from maskwise.masking.corruptions import corruption
from maskwise.masking.corruptions.base import mask_only
from maskwise.masking.diffusion import Noising, Rates
from maskwise.masking.diffusion import check as check_masking
from maskwise.masking.gather import Pieces, Rows, device_of, gather
from maskwise.masking.masker import MaskingSettings
from maskwise.masking.policies import UnitKind, policy
from maskwise.masking.schedules import schedule
from maskwise.objectives.base import (
    Batch,
    Inputs,
    Masking,
    Objective,
    Outcome,
    Work,
    check_all_asked,
    counted,
    encoded,
    model_inputs,
    target_places,
    unrounded,
    weighted,
)
from maskwise.objectives.chunks import Chunks, output_of, too_many
from maskwise.weights import encoder_weights, head_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class MaskedLanguageModelling(Objective):
    """Cross-entropy of the original token at every position with a label.

    Formula: sum over targets of −log p(original token | corrupted row).
    Inputs: a ``MaskedBatch`` (or a dict of model inputs with ``labels``).
    Requirements: a model with an MLM head.
    Source: Devlin et al. 2019, section 3.1.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    compiled: Callable[[PreTrainedModel, Tensor, Tensor], Tensor] | None = None
    """``head_losses`` after ``torch.compile``, or None."""

    chunks: Chunks = Chunks()
    """Computes the losses where logits would be too many for memory."""

    tells_right: bool = False
    """Whether outcomes have ``right``; the head is then not compiled."""

    def forward(self, batch: Batch) -> Outcome:
        losses, where, right = self.answers(batch)
        return Outcome.of(losses, where)._replace(right=right)

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss (M,) float32 and place (M, 2) of every target, in the order of the rows."""
        return self.answers(batch)[:2]

    def answers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses and places as in ``token_losses``, and (M,) bool whether the likeliest token is
        correct, or None unless ``tells_right``."""
        where = target_places(batch)
        row, column = where.unbind(1)
        truth = batch["labels"][row, column]
        inputs = self.inputs(batch)
        if self.tells_right or prediction_head(self.model) is None:
            logits = masked_logits(self.model, inputs, row, column)
            right = logits.argmax(-1) == truth if self.tells_right else None
            return cross_entropy(unrounded(logits), truth, reduction="none"), where, right
        states_MH = adapter_of(self.model.config).states(self.model, inputs)[row, column]
        return self.losses_of(states_MH, truth), where, None

    def losses_of(self, states_MH: Tensor, truth: Tensor) -> Tensor:
        """(M,) float32: losses of targets from the encoder's states at their places."""
        family = adapter_of(self.model.config)
        if family.ends_in_output and too_many(len(truth), self.model.config.vocab_size):
            return self.chunks(*output_of(self.model, states_MH), truth)
        compute = self.compiled or head_losses
        return compute(self.model, states_MH, truth)

    def compile_head(self) -> None:
        """Compile the head and the loss, if the head is known."""
        if prediction_head(self.model) is not None:
            # The number of targets is another one at every step.
            self.compiled = torch.compile(head_losses, dynamic=True)
            self.chunks = Chunks(compiled=True)

    def inputs(self, batch: Batch) -> Inputs:
        """The model's inputs of a batch."""
        return model_inputs(self.model, batch)

    def work(self, tokens: float, targets: float) -> Work:
        own, tied = head_weights(self.model)
        return Work(encoder_weights(self.model) * tokens, own * targets, tied * targets)


def head_losses(model: PreTrainedModel, states_MH: Tensor, truth: Tensor) -> Tensor:
    """(M,) float32: losses of targets from the encoder's states at their places."""
    head = prediction_head(model)
    assert head is not None
    return cross_entropy(unrounded(head(model, states_MH)), truth, reduction="none")


class EntityMaskedLanguageModelling(MaskedLanguageModelling):
    """Masked language modelling of tokens in salient spans only, each with probability 0.5.

    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1. Their spans are not public; any
        span layer will do: ``policy: guided(layer="phrase")``.
    """

    masking: ClassVar[Masking] = {
        "policy": "guided",
        "ratio": 0.5,
        "budget": "bernoulli",
        "min_targets": 0,
    }


# Causal
# -------------------------------------------------------------------------------------------

# Only in this objective's passes is the model's attention causal (``attention.Documents``), so it
# can precede masked language modelling, alternate with it, or be one of several objectives.


class NextTokens(Masker):
    """Batches without masks: the label of each place is the next token of its text.

    >>> from maskwise.text import encode, train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> masker = NextTokens(tokenizer, **CausalLanguageModelling.masking)
    >>> batch = masker(encode(tokenizer, ["the cat sat"]))
    >>> tokenizer.convert_ids_to_tokens(batch.labels[batch.labels >= 0].tolist())
    ['the', 'cat', 'sat']
    """

    def __call__(self, rows: Rows | Pieces | AnnotatedBatch, **when: object) -> MaskedBatch:
        """As ``Masker``, at any step; special tokens and [UNK] are not targets."""
        source = gather(rows, self.vocabulary)
        text = source.piece if source.apart else source.row[source.piece]
        # The first token of the next text does not follow from this one.
        follows = source.eligible[1:] & (text[1:] == text[:-1])
        labels = np.full(len(source.input_ids), IGNORE, np.int64)
        labels[:-1][follows] = source.input_ids[1:][follows]
        truth = torch.from_numpy(labels.reshape(source.shape))
        batch = MaskedBatch.unmasked(source, truth, int(follows.sum()))
        batch.vocabulary = self.vocabulary
        return batch.to(device_of(rows) or "cpu")


class CausalLanguageModelling(MaskedLanguageModelling):
    """Cross-entropy of every next token, with causal attention.

    Formula: sum over places i of −log p(token i + 1 | tokens up to i of the same text).
    Inputs: a ``MaskedBatch`` of ``NextTokens`` (or a dict of model inputs with such ``labels``).
    Requirements: a family whose attention maskwise replaces (``families.Adapter.separates``).
    Source: Touchent and de la Clergerie 2026 (arXiv:2605.12438), for its place in the training.
    """

    masking: ClassVar[Masking] = {"ratio": 0.0, "min_targets": 0, "corruption": "mask-only"}
    batches = NextTokens
    inherits: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.check_model(model.config)
        separate(model)
        attention = model.config._attn_implementation
        if attention != NAME:
            what = "objective clm cannot make this attention causal"
            do = "load the model with attn_implementation sdpa or eager"
            raise MaskwiseError(what, got=attention, do=do)

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        own = [name for name, value in masking.items() if cls.masking.get(name) != value]
        if own:
            do = "remove masking from its arm"
            raise MaskwiseError("objective clm does not mask", got=", ".join(own), do=do)
        return None

    @classmethod
    def check_model(cls, config: PreTrainedConfig) -> None:
        if not adapter_of(config).separates:
            allowed = ", ".join(name for name, family in ENCODERS.items() if family.separates)
            what = "objective clm needs an attention that can be made causal"
            raise MaskwiseError(what, got=config.model_type, allowed=allowed)

    def inputs(self, batch: Batch) -> Inputs:
        inputs = model_inputs(self.model, batch)
        if "documents" not in inputs:  # each row is one text
            ids = inputs["input_ids"]
            present = inputs.get("attention_mask", torch.ones_like(ids))
            # 0 for tokens and −1 for padding: the whole row is one document.
            one = present.to(ids.dtype) - 1
            inputs = adapter_of(self.model.config).apart(self.model, inputs, one)
        return {**inputs, "documents": replace(inputs["documents"], causal=True)}


# Diffusion: a random rate per row, weighted as a likelihood
# -------------------------------------------------------------------------------------------

# The sum of weighted losses is divided by the number of *eligible* tokens, so the loss of a step
# estimates the bound on −log p(text), in nats a token. ``masking.diffusion`` makes the batches and
# their weights.

OPTIONS = {"budget": "exact", "fill": "none", "visits": "random"}
"""Settings of which masked diffusion has only some values, with their defaults."""


class MaskedDiffusion(MaskedLanguageModelling):
    """Weighted cross-entropy of masked tokens: a bound on −log p(text), in nats for each eligible
    token.

    Formula: Σ weight · −log p(token | what is visible) / number of eligible tokens. The weight is 1
        / (t · p(t)) for rates t of density p, or 1 / (n · P(n)) where the number n of masked tokens
        is drawn.
    Inputs: a ``MaskedBatch`` of ``masking.Noising``, which has the weights.
    Requirements: a model with an MLM head, and a tokenizer with a mask token.
    Source: Sahoo et al. 2024 (MDLM, arXiv 2406.07524); Nie et al. 2025 (LLaDA, arXiv 2502.09992).
    """

    batches = Noising
    masking: ClassVar[Masking] = {
        "ratio": "uniform(0, 1)",
        "budget": "exact",
        "corruption": "mask-only",
        "min_targets": 0,
    }

    @classmethod
    def settings(cls, common: Masking, own: Masking) -> dict[str, Any]:
        """The defaults of masked language modelling are replaced by this objective's."""
        chosen = {**common, **own}
        # A recipe always has these settings, so its defaults count as not set.
        for name, value in cls.masking.items():
            default = MaskingSettings.model_fields[name].default
            if chosen.get(name, default) == default:
                chosen[name] = value
        return chosen

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        check_all_asked("diffusion", masking)
        shown = corruption(masking["corruption"])
        if shown != mask_only():
            what = "objective diffusion shows every chosen token as [MASK]"
            raise MaskwiseError(what, got=shown, do="leave masking.corruption out")
        units = policy(masking["policy"])
        options = {name: masking.get(name, value) for name, value in OPTIONS.items()}
        check_masking(units, **options)
        rates = schedule(masking["ratio"])
        no_bound = "its loss is no bound on the likelihood"
        # A schedule may change in the run; its beginning, middle and end are enough to see that.
        if not all(Rates(rates, step, 100).complete for step in (0, 50, 99)):
            return f"ratio {rates} is masked language modelling at fixed rates: {no_bound}"
        if units.reads_text:
            return f"policy {masking['policy']} looks at the text that it hides: {no_bound}"
        return None

    def forward(self, batch: MaskedBatch) -> Outcome:  # type: ignore[override]
        losses, where, right = self.answers(batch)
        total = weighted(losses, batch.loss_weight, *where.unbind(1)).sum()
        return Outcome(total, counted(batch.counted or 0, losses), losses.detach(), where, right)


# Borders of spans
# -------------------------------------------------------------------------------------------

LONGEST = 20
"""Positions in a span with their own embedding; later ones share the last."""


class SpanBoundary(Objective):
    """Masked language modelling plus the span-boundary loss of every masked token.

    Formula: sum over targets x_i of a span s…e of −log p(x_i | h_i) − log p(x_i | f(h_{s−1},
        h_{e+1}, place i − s)), f two layers with GELU and LayerNorm; both use the model's own
        prediction head.
    Inputs: a ``MaskedBatch``; a span is a run of targets, so every masked token must be one. Where
        a span begins or ends its row, the row's first or last token is its border.
    Requirements: a model with an MLM head that ``families.ENCODERS`` knows.
    Source: Joshi et al. 2020 (SpanBERT, arXiv 1907.10529), section 3.2.
    """

    masking: ClassVar[Masking] = {"policy": "span", "budget": "expected"}

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        if prediction_head(model) is None:
            what = "objective sbo needs a model whose prediction head is known"
            raise MaskwiseError(what, got=type(model).__name__)
        wide = width_of(model)
        self.model = model
        self.place = nn.Embedding(LONGEST, wide)
        # The scale of transformers' own embeddings; torch's default of 1 would drown the borders.
        nn.init.normal_(self.place.weight, std=0.02)
        layers = [nn.Linear(3 * wide, wide), nn.GELU(), nn.LayerNorm(wide)]
        self.head = nn.Sequential(*layers, nn.Linear(wide, wide), nn.GELU(), nn.LayerNorm(wide))

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        check_all_asked("sbo", masking)
        if policy(masking["policy"]).unit_kind != UnitKind.TOKEN:
            return None
        what = f"objective sbo with policy {masking['policy']} has hardly any spans"
        return f"{what}: each token is predicted from its two neighbours"

    def forward(self, batch: MaskedBatch) -> Outcome:
        labels = batch["labels"]
        where = target_places(batch)
        at = where.unbind(1)
        truth = labels[at]
        hidden = encoded(self.model, batch)
        before, after, place = (each[at] for each in borders(labels != IGNORE))
        row = at[0]
        around = [hidden[row, before], hidden[row, after], self.place(place.clamp(max=LONGEST - 1))]
        from_borders = self.head(torch.cat(around, 1))
        plain = head_losses(self.model, hidden[at], truth)
        # Both losses count, but policies learn from the plain one, as with other objectives.
        losses = plain + head_losses(self.model, from_borders, truth)
        return Outcome.of(losses, where)._replace(losses=plain.detach())

    def chance(self, vocabulary: int, rows: int) -> float:
        return 2 * super().chance(vocabulary, rows)

    def work(self, tokens: float, targets: float) -> Work:
        """The prediction head runs twice for each target."""
        body, head, _ = super().work(tokens, targets)
        own, tied = head_weights(self.model)
        return Work(body, head + 2 * own * targets, 2 * tied * targets)


def borders(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each target of a (B, L) mask: the columns before and after its run, its place in it."""
    length = target.shape[1]
    column = torch.arange(length, device=target.device).expand(target.shape)
    last_free = torch.where(target, -1, column).cummax(1).values
    next_free = torch.where(target, length, column).flip(1).cummin(1).values.flip(1)
    return last_free.clamp(min=0), next_free.clamp(max=length - 1), column - last_free - 1
