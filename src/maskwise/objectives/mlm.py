"""Masked language modelling and its variants: entity masking, diffusion, and span boundaries.

The vocabulary head is applied only at targets. Families without a known head
(``families.ENCODERS``) use the model's own logits, which is slower but gives the same loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from maskwise.errors import MaskwiseError
from maskwise.families import adapter_of, masked_logits, prediction_head, width_of
from maskwise.masking import IGNORE, MaskedBatch
from maskwise.masking.corruptions import corruption, mask_only
from maskwise.masking.diffusion import Noising, Rates
from maskwise.masking.diffusion import check as check_masking
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
from maskwise.weights import encoder_weights, head_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Part: TypeAlias = Callable[..., Any]


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

    compiled: Mapping[Part, Part] = MappingProxyType({})
    """Compiled versions of ``head_losses``, ``losses_of`` and ``slopes_of``, if they exist."""

    tells_right = False
    """Whether outcomes have ``right``; in that case the compiled head is not used."""

    def forward(self, batch: Batch) -> Outcome:
        losses, where, right = self.answers(batch)
        return Outcome.of(losses, where)._replace(right=right)

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss (M,) float32 and the place (M, 2) of every target, in row order."""
        return self.answers(batch)[:2]

    def answers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses and places as in ``token_losses``, and (M,) bool, whether the likeliest token is
        correct (None unless ``tells_right``)."""
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
        """(M,) float32: the targets' losses, from the encoder's states at their places."""
        family = adapter_of(self.model.config)
        if family.ends_in_output and len(truth) * self.model.config.vocab_size > ENTRIES:
            weights = output_of(self.model, states_MH)
            return in_chunks(*weights, truth, compiled=self.compiled)
        compute = self.compiled.get(head_losses, head_losses)
        losses: Tensor = compute(self.model, states_MH, truth)
        return losses

    def compile_head(self) -> None:
        """Compile the head and the loss, if the head is known."""
        if prediction_head(self.model) is not None:
            parts: list[Part] = [head_losses, losses_of, slopes_of]
            # The number of targets varies from step to step.
            self.compiled = dict(zip(parts, map(partial(torch.compile, dynamic=True), parts)))

    def inputs(self, batch: Batch) -> Inputs:
        """The model's inputs from a batch."""
        return model_inputs(self.model, batch)

    def work(self, tokens: float, targets: float) -> Work:
        own, tied = head_weights(self.model)
        return Work(encoder_weights(self.model) * tokens, own * targets, tied * targets)


def head_losses(model: PreTrainedModel, states_MH: Tensor, truth: Tensor) -> Tensor:
    """(M,) float32: the targets' losses, from the encoder's states at their places."""
    head = prediction_head(model)
    assert head is not None
    return cross_entropy(unrounded(head(model, states_MH)), truth, reduction="none")


class EntityMaskedLanguageModelling(MaskedLanguageModelling):
    """Masked language modelling in which only tokens of salient spans are masked, each with
    probability 0.5.

    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1. Their spans are not public, but
        any span layer can be used: ``policy: guided(layer="phrase")``.
    """

    masking = {
        "policy": "guided",
        "ratio": 0.5,
        "budget": "bernoulli",
        "min_targets": 0,
    }


# Diffusion: a random rate per row, weighted as a likelihood
# -------------------------------------------------------------------------------------------

# The sum of weighted losses is divided by the number of *eligible* tokens, so the loss of a step
# estimates the bound on −log p(text), in nats per token. ``masking.diffusion`` makes the batches
# and their weights.


class MaskedDiffusion(MaskedLanguageModelling):
    """Weighted cross-entropy of masked tokens: a bound on −log p(text), in nats per eligible token.

    Formula: Σ weight · −log p(token | visible tokens) / number of eligible tokens. The weight is
        1 / (t · p(t)) if rates t are drawn with density p, and 1 / (n · P(n)) if the number n of
        masked tokens is drawn.
    Inputs: a ``MaskedBatch`` from ``masking.Noising``, which includes the weights.
    Requirements: a model with an MLM head, and a tokenizer with a mask token.
    Source: Sahoo et al. 2024 (MDLM, arXiv 2406.07524); Nie et al. 2025 (LLaDA, arXiv 2502.09992).
    """

    batches = Noising
    masking = {
        "ratio": "uniform(0, 1)",
        "budget": "exact",
        "corruption": "mask-only",
        "min_targets": 0,
    }

    @classmethod
    def settings(cls, common: Masking, own: Masking) -> dict[str, Any]:
        """Replace the defaults of masked language modelling with this objective's defaults."""
        chosen = {**common, **own}
        # A recipe always contains these settings, so a default value counts as not set.
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
            raise MaskwiseError(
                "objective diffusion shows every chosen token as [MASK]",
                got=shown,
                do="leave masking.corruption out",
            )
        units = policy(masking["policy"])
        check_masking(
            units,
            budget=masking.get("budget", "exact"),
            fill=masking.get("fill", "none"),
            visits=masking.get("visits", "random"),
        )
        rates = schedule(masking["ratio"])
        no_bound = "its loss is not a bound on the likelihood"
        # A schedule may change during the run; checking its beginning, middle and end is enough.
        if not all(Rates(rates, step, 100).complete for step in (0, 50, 99)):
            return f"ratio {rates} is masked language modelling at fixed rates: {no_bound}"
        if units.reads_text:
            return f"policy {masking['policy']} looks at the text that it hides: {no_bound}"
        return None

    def forward(self, batch: MaskedBatch) -> Outcome:  # type: ignore[override]
        losses, where, right = self.answers(batch)
        total = weighted(losses, batch.loss_weight, *where.unbind(1)).sum()
        return Outcome(total, counted(batch.counted or 0, losses), losses.detach(), where, right)


# Span boundaries
# -------------------------------------------------------------------------------------------

LONGEST = 20
"""How many positions in a span have their own embedding; later positions share the last one."""


class SpanBoundary(Objective):
    """Masked language modelling plus the span-boundary loss for every masked token.

    Formula: sum over targets x_i in a span s…e of −log p(x_i | h_i) − log p(x_i | f(h_{s−1},
        h_{e+1}, place i − s)), where f is two layers with GELU and LayerNorm. Both terms use the
        model's own prediction head.
    Inputs: a ``MaskedBatch``; a span is a run of targets, so every masked token must be a target.
        If a span begins or ends its row, its border is the row's first or last token.
    Requirements: a model with an MLM head that ``families.ENCODERS`` covers.
    Source: Joshi et al. 2020 (SpanBERT, arXiv 1907.10529), section 3.2.
    """

    masking = {"policy": "span", "budget": "expected"}

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        if prediction_head(model) is None:
            raise MaskwiseError(
                "objective sbo needs a model whose prediction head is known",
                got=type(model).__name__,
            )
        wide = width_of(model)
        self.model = model
        self.place = nn.Embedding(LONGEST, wide)
        # The scale of transformers' own embeddings; with torch's default of 1, the borders would
        # hardly count.
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
        # Both losses count, but policies learn from the plain loss, as with other objectives.
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
    """For each target in a (B, L) mask: the columns before and after its run, and its place in the
    run."""
    length = target.shape[1]
    column = torch.arange(length, device=target.device).expand(target.shape)
    last_free = torch.where(target, -1, column).cummax(1).values
    next_free = torch.where(target, length, column).flip(1).cummin(1).values.flip(1)
    return last_free.clamp(min=0), next_free.clamp(max=length - 1), column - last_free - 1


# Logits in chunks
# -------------------------------------------------------------------------------------------

# With a large vocabulary, cross-entropy is computed in chunks of targets. The logits of M targets
# over V tokens, with their copy in single precision and both gradients, take 12 bytes times M times
# V: 12 GB for 20,000 targets and 50,000 tokens. Here the logits of a chunk are freed after use and
# computed again in the backward pass, which adds a third to the output layer's multiplications.
# torch's ``linear_cross_entropy`` (2.13) does the same without a reduction, but rounds the losses
# to bfloat16; here losses, and sums over chunks, are in single precision.

ENTRIES = 1 << 26
"""Number of logits in a chunk, 256 MiB in single precision. Fewer logits are not split."""


def output_of(model: PreTrainedModel, states_MH: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The output layer's input (M, H), weight (V, H) and bias (V,).

    Only for families whose head ``ends_in_output``.

    Args:
        states_MH: the head's input.
    """
    layer: Any = model.get_output_embeddings()
    if hasattr(model, "final_logits_bias"):
        # BART's head consists of this layer and a bias that is not trained.
        bias: Any = model.final_logits_bias
        return states_MH, layer.weight, bias[0]
    head = prediction_head(model)
    assert head is not None
    # For this one call, the output layer returns its input, the result of the layers before it.
    layer.forward = lambda states_MH: states_MH
    try:
        before_MH = head(model, states_MH)
    finally:
        del layer.forward
    return before_MH, layer.weight, layer.bias


def losses_of(
    states_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, truth_M: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses (M,) of a chunk, and the log-sum-exp (M,) of its logits."""
    logits_MV = unrounded(linear(states_MH, weight_VH, bias_V))
    total_M = logits_MV.logsumexp(-1)
    return total_M - logits_MV.gather(-1, truth_M[:, None]).squeeze(-1), total_M


def slopes_of(
    states_MH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    truth_M: Tensor,
    total_M: Tensor,
    slope_M: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a chunk with respect to states, weight and bias.

    Args:
        total_M: from ``losses_of``.
        slope_M: the gradients with respect to the losses.
    """
    logits_MV = unrounded(linear(states_MH, weight_VH, bias_V))
    share_MV = (logits_MV - total_M[:, None]).exp()
    right_MV = torch.zeros_like(share_MV).scatter_(1, truth_M[:, None], 1.0)
    slope_MV = (share_MV - right_MV) * slope_M[:, None]
    rounded_MV = slope_MV.to(states_MH.dtype)
    return rounded_MV @ weight_VH, rounded_MV.mT @ states_MH, slope_MV.sum(0)


def in_chunks(
    states_MH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    truth_M: Tensor,
    *,
    compiled: Mapping[Part, Part] = MappingProxyType({}),
) -> Tensor:
    """(M,) losses in single precision (in double precision if the states are double).

    Args:
        states_MH: the output layer's input.
        weight_VH, bias_V: the output layer's weight and bias.
        truth_M: the correct tokens.
        compiled: compiled versions of ``losses_of`` and ``slopes_of``, which save most of the
            memory traffic for a chunk.
    """
    device = states_MH.device.type
    dtype = states_MH.dtype
    # ``_InChunks`` turns autocast off, so it needs the dtype.
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    losses: Tensor = _InChunks.apply(states_MH, weight_VH, bias_V, truth_M, dtype, compiled)
    return losses


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        truth_M: Tensor,
        dtype: torch.dtype,
        compiled: Mapping[Part, Part],
    ) -> Tensor:
        ctx.dtype = dtype
        ctx.compiled = compiled
        compute = compiled.get(losses_of, losses_of)
        losses = []
        totals = []
        with torch.autocast(states_MH.device.type, enabled=False):
            weight, bias = _cast(dtype, weight_VH, bias_V)
            rows = _rows(weight_VH)
            for states, truth in zip(
                states_MH.split(rows),
                truth_M.split(rows),
                strict=True,
            ):
                loss, total = compute(states.to(dtype), weight, bias, truth)
                losses.append(loss)
                totals.append(total)
        ctx.save_for_backward(states_MH, weight_VH, bias_V, truth_M, torch.cat(totals))
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope_M: Tensor) -> tuple[Tensor | None, ...]:
        states_MH, weight_VH, bias_V, truth_M, total_M = ctx.saved_tensors
        of_states = torch.empty_like(states_MH)
        # Sums over chunks have the same precision as the weights.
        of_weight = torch.zeros_like(weight_VH)
        of_bias = None if bias_V is None else torch.zeros_like(bias_V)
        compute = ctx.compiled.get(slopes_of, slopes_of)
        with torch.autocast(states_MH.device.type, enabled=False):
            weight, bias = _cast(ctx.dtype, weight_VH, bias_V)
            rows = _rows(weight_VH)
            columns = (states_MH, truth_M, total_M, slope_M, of_states)
            for part in zip(*(column.split(rows) for column in columns), strict=True):
                states, truth, total, slope, into = part
                own, of_weights, of_biases = compute(
                    states.to(ctx.dtype), weight, bias, truth, total, slope
                )
                into.copy_(own)
                of_weight += of_weights
                if of_bias is not None:
                    of_bias += of_biases
        return of_states, of_weight, of_bias, None, None, None


def _cast(
    dtype: torch.dtype, weight_VH: Tensor, bias_V: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    return weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)


def _rows(weight_VH: Tensor) -> int:
    """The number of targets in a chunk."""
    return max(1, ENTRIES // len(weight_VH))
