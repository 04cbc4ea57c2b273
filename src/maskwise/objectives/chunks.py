"""Cross-entropy over a large vocabulary in chunks of targets: logits are never whole in memory.

Logits of M targets over V tokens, with their copy in single precision and both gradients, take 12
bytes times M times V: 12 GB for 20,000 targets of 50,000 tokens. Here the logits of a chunk are
made, used and dropped, and made again in the backward pass, which costs a third more
multiplications in the output layer.

torch's ``linear_cross_entropy`` (2.13) does the same without a reduction, but rounds the losses to
bfloat16; here losses, and sums over chunks, have single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear

from maskwise.families import prediction_head
from maskwise.objectives.base import unrounded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENTRIES = 1 << 26
"""Logits of a chunk, 256 MiB in single precision. With fewer in all there are no chunks."""

Part: TypeAlias = Callable[..., tuple[Tensor, ...]]


def too_many(targets: int, tokens: int) -> bool:
    """Whether the logits of so many targets over so many tokens are computed in chunks."""
    return targets * tokens > ENTRIES


def output_of(model: PreTrainedModel, states_MH: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the output layer multiplies (M, H), its weight (V, H) and its bias (V,).

    For families whose head ``ends_in_output``.

    Args:
        states_MH: what the head is given.
    """
    layer: Any = model.get_output_embeddings()
    if hasattr(model, "final_logits_bias"):
        # BART's head is this layer, and a bias that is not trained.
        bias: Any = model.final_logits_bias
        return states_MH, layer.weight, bias[0]
    head = prediction_head(model)
    assert head is not None
    # The layer passes on what the steps before it have computed.
    layer.forward = _unchanged
    try:
        before_MH = head(model, states_MH)
    finally:
        del layer.forward
    return before_MH, layer.weight, layer.bias


def _unchanged(states: Tensor) -> Tensor:
    return states


def losses_of(
    states_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, truth_M: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses (M,) of a chunk, and the logarithms (M,) of the sums of their exponentials."""
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
    """The gradients of a chunk for states, weight and bias.

    Args:
        total_M: from ``losses_of``.
        slope_M: the gradients of the losses.
    """
    logits_MV = unrounded(linear(states_MH, weight_VH, bias_V))
    share_MV = (logits_MV - total_M[:, None]).exp()
    right_MV = torch.zeros_like(share_MV).scatter_(1, truth_M[:, None], 1.0)
    slope_MV = (share_MV - right_MV) * slope_M[:, None]
    rounded_MV = slope_MV.to(states_MH.dtype)
    return rounded_MV @ weight_VH, rounded_MV.mT @ states_MH, slope_MV.sum(0)


class Chunks:
    """The losses of targets in chunks.

    Args:
        compiled: whether the work of a chunk is compiled, which leaves out most of its memory
            traffic.
    """

    def __init__(self, *, compiled: bool = False):
        self.losses_of: Part = losses_of
        self.slopes_of: Part = slopes_of
        if compiled:
            self.losses_of = torch.compile(losses_of, dynamic=True)
            self.slopes_of = torch.compile(slopes_of, dynamic=True)

    def __call__(
        self, states_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, truth_M: Tensor
    ) -> Tensor:
        """(M,) losses in single precision (double for double states).

        Args:
            states_MH: what the output layer multiplies.
            weight_VH, bias_V: of the output layer.
            truth_M: the right tokens.
        """
        device = states_MH.device.type
        dtype = states_MH.dtype
        # Inside of a function of its own, autocast does not see the products.
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        losses: Tensor = _InChunks.apply(states_MH, weight_VH, bias_V, truth_M, dtype, self)
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
        chunks: Chunks,
    ) -> Tensor:
        ctx.dtype = dtype
        ctx.chunks = chunks
        losses = []
        totals = []
        with torch.autocast(states_MH.device.type, enabled=False):
            weight, bias = _cast(dtype, weight_VH, bias_V)
            rows = _rows(weight_VH)
            for states, truth in zip(states_MH.split(rows), truth_M.split(rows), strict=True):
                loss, total = chunks.losses_of(states.to(dtype), weight, bias, truth)
                losses.append(loss)
                totals.append(total)
        ctx.save_for_backward(states_MH, weight_VH, bias_V, truth_M, torch.cat(totals))
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope_M: Tensor) -> tuple[Tensor | None, ...]:
        states_MH, weight_VH, bias_V, truth_M, total_M = ctx.saved_tensors
        of_states = torch.empty_like(states_MH)
        # Sums over chunks keep the precision of the weights.
        of_weight = torch.zeros_like(weight_VH)
        of_bias = None if bias_V is None else torch.zeros_like(bias_V)
        with torch.autocast(states_MH.device.type, enabled=False):
            weight, bias = _cast(ctx.dtype, weight_VH, bias_V)
            rows = _rows(weight_VH)
            columns = (states_MH, truth_M, total_M, slope_M, of_states)
            for part in zip(*(column.split(rows) for column in columns), strict=True):
                states, truth, total, slope, into = part
                own, of_weights, of_biases = ctx.chunks.slopes_of(
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
    """Targets of a chunk."""
    return max(1, ENTRIES // len(weight_VH))
