"""Masked language modelling and its variants: entity masking, diffusion, and span boundaries.

The prediction head is applied only to the hidden states of targets. If maskwise does not know the
head of a model (``families.ENCODERS``), logits are computed at all positions. The loss is the same,
but slower to compute.
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
from maskwise.families import adapter_of, masked_logits, picked, prediction_head, width_of
from maskwise.masking import IGNORE, MaskedBatch
from maskwise.masking.corruptions import corruption, mask_only
from maskwise.masking.diffusion import Noising, Rates
from maskwise.masking.diffusion import check as check_masking
from maskwise.masking.policies import UnitKind, policy
from maskwise.masking.schedules import schedule
from maskwise.objectives.base import (
    Batch,
    Inputs,
    Loss,
    Masking,
    Objective,
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
    Inputs: a ``MaskedBatch``, or a dict of model inputs with ``labels``.
    Requirements: a model with an MLM head.
    Source: Devlin et al. 2019, section 3.1.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    compiled: Mapping[Part, Part] = MappingProxyType({})
    """The functions of the head and their compiled versions; empty without ``compile_head``."""

    tells_right = False
    """Whether outcomes include ``right``. If True, the compiled head is not used."""

    def forward(self, batch: Batch) -> Loss:
        losses, where, right = self.answers(batch)
        return Loss.of(losses, where)._replace(right=right)

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the losses (M,) float32 and the positions (M, 2) of all targets, row by row."""
        return self.answers(batch)[:2]

    def answers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the losses and positions of all targets, and ``right`` as in ``Loss``."""
        where = target_places(batch)
        row, column = where.unbind(1)
        truth = batch["labels"][row, column]
        inputs = self.inputs(batch)
        if self.tells_right or prediction_head(self.model) is None:
            logits = masked_logits(self.model, inputs, row, column)
            right = logits.argmax(-1) == truth if self.tells_right else None
            return cross_entropy(unrounded(logits), truth, reduction="none"), where, right
        states = adapter_of(self.model.config).states(self.model, inputs)
        return self.losses_of(picked(states, row, column), truth), where, None

    def losses_of(self, states_MH: Tensor, truth: Tensor) -> Tensor:
        """(M,) float32: the loss of each target, from the hidden states at the targets."""
        family = adapter_of(self.model.config)
        if family.ends_in_output and len(truth) * self.model.config.vocab_size > ENTRIES:
            weights = output_of(self.model, states_MH)
            return in_chunks(*weights, truth, compiled=self.compiled)
        compute = self.compiled.get(head_losses, head_losses)
        return compute(self.model, states_MH, truth)

    def compile_head(self) -> None:
        """Compile the head and the loss, if the head is known."""
        if prediction_head(self.model) is not None:
            parts: list[Part] = [head_losses, losses_of, slopes_of]
            # Shapes are dynamic, because the number of targets varies from step to step.
            self.compiled = dict(zip(parts, map(partial(torch.compile, dynamic=True), parts)))

    def inputs(self, batch: Batch) -> Inputs:
        """Return the model's inputs from a batch."""
        return model_inputs(self.model, batch)

    def work(self, tokens: float, targets: float) -> Work:
        own, tied = head_weights(self.model)
        return Work(encoder_weights(self.model) * tokens, own * targets, tied * targets)


def head_losses(model: PreTrainedModel, states_MH: Tensor, truth: Tensor) -> Tensor:
    """(M,) float32: the loss of each target, from the hidden states at the targets."""
    head = prediction_head(model)
    assert head is not None
    return cross_entropy(unrounded(head(model, states_MH)), truth, reduction="none")


class EntityMaskedLanguageModelling(MaskedLanguageModelling):
    """Masked language modelling on salient spans. Each token of a span is masked with p = 0.5.

    Source: Wu et al. 2022 (MOMETAS, arXiv 2210.10293), section 3.1. Their spans are not public. Any
        layer of spans can be used, as in ``policy: guided(layer="phrase")``.
    """

    masking = {
        "policy": "guided",
        "ratio": 0.5,
        "budget": "bernoulli",
        "min_targets": 0,
    }


# Masked diffusion
# -------------------------------------------------------------------------------------------

# The sum of weighted losses is divided by the number of *eligible* tokens, so the loss estimates
# the bound on −log p(text) in nats per token. ``masking.diffusion`` computes the loss weights.


class MaskedDiffusion(MaskedLanguageModelling):
    """Weighted cross-entropy of masked tokens: a bound on −log p(text), in nats per eligible token.

    Formula: Σ weight · −log p(token | visible tokens) / number of eligible tokens. The weight is
        1 / (t · p(t)) if rates t are drawn with density p, and 1 / (n · P(n)) if the number n of
        masked tokens is drawn with probability P.
    Inputs: a ``MaskedBatch`` from ``masking.Noising``, which includes the loss weights.
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
    def check(cls, masking: Masking) -> str | None:
        check_all_asked("diffusion", masking)
        shown = corruption(masking["corruption"])
        if shown != mask_only():
            raise MaskwiseError(
                "objective diffusion must replace every selected token by [MASK]",
                got=shown,
                do="remove masking.corruption from the recipe",
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
        # Schedules may change during the run, so check the beginning, the middle and the end.
        if not all(Rates(rates, step, 100).complete for step in (0, 50, 99)):
            return f"with ratio {rates}, the masking rates are fixed: {no_bound}"
        if units.reads_text:
            return f"policy {masking['policy']} depends on the text that it hides: {no_bound}"
        return None

    def forward(self, batch: MaskedBatch) -> Loss:  # type: ignore[override]
        losses, where, right = self.answers(batch)
        total = weighted(losses, batch.loss_weight, *where.unbind(1)).sum()
        return Loss(total, counted(batch.counted or 0, losses), losses.detach(), where, right)


# Span boundaries
# -------------------------------------------------------------------------------------------

LONGEST = 20
"""The number of position embeddings. In longer spans, later positions have the last embedding."""


class SpanBoundary(Objective):
    """Masked language modelling, and prediction of each masked token from the borders of its span.

    Formula: sum over targets x_i in a span from s to e of
        −log p(x_i | h_i) − log p(x_i | f(h_{s−1}, h_{e+1}, position i − s)). The function f has two
        layers with GELU and LayerNorm. Both terms use the model's prediction head.
    Inputs: a ``MaskedBatch``. A span is a run of targets, so every masked token must be a target.
        If a span begins or ends a row, its own first or last token is the border.
    Requirements: a model of a family with a known head (``families.ENCODERS``).
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
        # Use the scale of transformers' embeddings. With torch's default of 1, the position would
        # have more influence than the hidden states.
        nn.init.normal_(self.place.weight, std=0.02)
        layers = [nn.Linear(3 * wide, wide), nn.GELU(), nn.LayerNorm(wide)]
        self.head = nn.Sequential(*layers, nn.Linear(wide, wide), nn.GELU(), nn.LayerNorm(wide))

    @classmethod
    def check(cls, masking: Masking) -> str | None:
        check_all_asked("sbo", masking)
        if policy(masking["policy"]).unit_kind != UnitKind.TOKEN:
            return None
        what = f"objective sbo with policy {masking['policy']} has hardly any spans"
        return f"{what}: each token is predicted from the two tokens beside it"

    def forward(self, batch: MaskedBatch) -> Loss:
        labels = batch["labels"]
        where = target_places(batch)
        at = where.unbind(1)
        truth = labels[at]
        hidden = encoded(self.model, batch)
        before, after, place = (each[at] for each in borders(labels != IGNORE))
        row = at[0]
        around = [hidden[row, before], hidden[row, after], self.place(place.clamp(max=LONGEST - 1))]
        from_borders = self.head(torch.cat(around, 1))
        plain = head_losses(self.model, picked(hidden, *at), truth)
        # The model is trained on both losses. Policies that learn from losses get only the MLM
        # loss, as from other objectives.
        losses = plain + head_losses(self.model, from_borders, truth)
        return Loss.of(losses, where)._replace(each=plain.detach())

    def chance(self, vocabulary: int, rows: int) -> float:
        return 2 * super().chance(vocabulary, rows)

    def work(self, tokens: float, targets: float) -> Work:
        """Return the work for a batch. The prediction head is applied twice to each target."""
        body, head, _ = super().work(tokens, targets)
        own, tied = head_weights(self.model)
        return Work(body, head + 2 * own * targets, 2 * tied * targets)


def borders(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the borders of runs of targets, given (B, L) bools that mark the targets.

    Returns:
        Three (B, L) int64 tensors: the column before the run of each target, the column after the
        run, and the position of the target in the run.
    """
    length = target.shape[1]
    column = torch.arange(length, device=target.device).expand(target.shape)
    last_free = torch.where(target, -1, column).cummax(1).values
    next_free = torch.where(target, length, column).flip(1).cummin(1).values.flip(1)
    return last_free.clamp(min=0), next_free.clamp(max=length - 1), column - last_free - 1


# Logits in chunks
# -------------------------------------------------------------------------------------------

# With a large vocabulary, cross-entropy is computed for one chunk of targets after another. The
# logits of M targets over V tokens, a copy of them in single precision and the gradients of both
# need 12 · M · V bytes: 12 GB for 20,000 targets and 50,000 tokens. Here, the logits of a chunk are
# freed after use and computed again in the backward pass. This adds a third to the multiplications
# of the output layer. torch's ``linear_cross_entropy`` (2.13, without reduction) works in the same
# way, but rounds losses to bfloat16. Here losses and sums over chunks are in single precision.

ENTRIES = 1 << 26
"""The number of logits in a chunk: 256 MiB in single precision. Smaller batches are not split."""


def output_of(model: PreTrainedModel, states_MH: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the input (M, H), the weight (V, H) and the bias (V,) of the output layer.

    This works only for families with ``ends_in_output``. ``states_MH`` is the input of the head.
    """
    layer: Any = model.get_output_embeddings()
    if hasattr(model, "final_logits_bias"):
        # BART's head is the output layer and a bias that is not trained.
        bias: Any = model.final_logits_bias
        return states_MH, layer.weight, bias[0]
    head = prediction_head(model)
    assert head is not None
    # For one call, make the output layer return its input, which is the result of earlier layers.
    layer.forward = lambda states_MH: states_MH
    try:
        before_MH = head(model, states_MH)
    finally:
        del layer.forward
    return before_MH, layer.weight, layer.bias


def losses_of(
    states_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, truth_M: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the losses (M,) of a chunk and the log-sum-exp (M,) of its logits."""
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
    """Return the gradients of a chunk with respect to states, weight and bias.

    Args:
        total_M: the log-sum-exp of the logits of each target, from ``losses_of``.
        slope_M: the gradient with respect to each loss.
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
    """(M,): the loss of each target, in single precision (double if the states are double).

    Args:
        states_MH: the input of the output layer.
        weight_VH, bias_V: the weight and the bias of the output layer.
        truth_M: the correct tokens.
        compiled: compiled versions of ``losses_of`` and ``slopes_of``, which save most of the
            memory traffic of a chunk.
    """
    device = states_MH.device.type
    dtype = states_MH.dtype
    # ``_InChunks`` turns autocast off, so pass the dtype of autocast.
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return _InChunks.apply(states_MH, weight_VH, bias_V, truth_M, dtype, compiled)


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
        # Sum over chunks in the precision of the weights, not in that of autocast.
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
