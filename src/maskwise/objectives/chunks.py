"""Logits and their gradients in little memory.

**In place**: on a processor, the log-probabilities of M targets over V tokens are written over the
logits, and the gradient over the log-probabilities (``token_losses``).

**In chunks**: all logits of a batch are never in memory together (``in_chunks``). The logits of M
targets over V tokens, a copy of them in single precision and the gradients of both need
12 · M · V bytes: 12 GB for 20,000 targets and 50,000 tokens. With many targets, the head and the
loss are therefore computed for one chunk of targets after another. A chunk keeps only the
hidden states at its targets, and its logits are computed again in the backward pass
(``torch.utils.checkpoint``). This adds a third to the multiplications of the head.

**In few shapes**: in bfloat16 on a processor, every new number of targets needs new kernels, which
take tens of milliseconds and megabytes, and are kept. Some targets are added, so that few numbers
occur, and what is computed for them is dropped.

torch's ``linear_cross_entropy`` (2.13, without reduction) works in a similar way, but rounds losses
to bfloat16 and knows no head with more than one layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint

ENTRIES = 1 << 26
"""The number of logits in a chunk: 256 MiB in single precision. Smaller batches are not split."""

SHARE = 1 / 40
"""The share of a GPU's memory that a chunk may take in single precision, if it is more. On a large
card, most batches are one chunk, so nothing is computed twice, and less is left for the host to
do."""

ReadStates: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""A function of hidden states (M, H) and correct tokens (M,), which returns tensors (M,)."""


def in_chunks(
    compute: ReadStates, states_MH: Tensor, truth_M: Tensor, *, vocabulary: int
) -> tuple[Tensor, ...]:
    """Return ``compute(states_MH, truth_M)``, computed in chunks if there are many targets.

    Args:
        compute: the head and the loss. It must treat each target on its own, and its gradient must
            not depend on random draws.
        states_MH: the hidden states at the targets.
        truth_M: the correct tokens.
        vocabulary: V, the number of logits of a target.
    """
    targets = max(1, entries(states_MH.device) // vocabulary)
    if len(truth_M) <= targets:
        return _in_few_shapes(compute, states_MH, truth_M)
    parts = []
    for states, truth in zip(states_MH.split(targets), truth_M.split(targets), strict=True):
        part = checkpoint(
            _with_own_casts,
            compute,
            states,
            truth,
            use_reentrant=False,
            # Saving the state of the random generators takes time.
            preserve_rng_state=False,
        )
        parts.append(part)
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def _in_few_shapes(compute: ReadStates, states_MH: Tensor, truth_M: Tensor) -> tuple[Tensor, ...]:
    """Return ``compute(states_MH, truth_M)``, in bfloat16 on a processor for few values of M."""
    device = states_MH.device.type
    count = len(truth_M)
    more = rounded_up(count) - count
    if device != "cpu" or not torch.is_autocast_enabled(device) or not more:
        return compute(states_MH, truth_M)
    found = compute(pad(states_MH, (0, 0, 0, more)), pad(truth_M, (0, more)))
    return tuple(each[:count] for each in found)


def rounded_up(count: int) -> int:
    """Round a number up by at most a sixteenth, to one of 16 numbers in each octave.

    >>> [rounded_up(count) for count in (0, 31, 33, 222, 3763)]
    [0, 31, 34, 224, 3840]
    """
    step = 1 << max(0, count.bit_length() - 5)
    return -(-count // step) * step


def entries(device: torch.device) -> int:
    """Return the number of logits in a chunk on a device."""
    if device.type != "cuda":
        return ENTRIES
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(ENTRIES, int(SHARE * memory / 4))


def _with_own_casts(compute: ReadStates, states: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
    """Compute a chunk with its own copies of weights in the precision of autocast.

    Autocast would otherwise share one copy between the chunks, and sum their gradients in bfloat16.
    The gradients of separate copies are summed in the precision of the weights.
    """
    device = states.device.type
    with torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    ):
        return compute(states, truth)


# In place
# -------------------------------------------------------------------------------------------

ROOM = 1 << 18
"""The number of entries of the gradient that are computed at once: 1 MiB in single precision, which
fits into a processor's cache."""


def token_losses(logits_MV: Tensor, truth_M: Tensor) -> Tensor:
    """(M,): −log p of each correct token. On a processor, the logits are overwritten.

    Losses and gradients have the same bits as those of ``cross_entropy``, which writes three more
    arrays as large as the logits.
    """
    if logits_MV.device.type != "cpu" or torch.compiler.is_compiling():
        return cross_entropy(logits_MV, truth_M, reduction="none")
    losses: Tensor = _CrossEntropy.apply(logits_MV.contiguous(), truth_M)
    return losses


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy that overwrites its input, the logits (M, V)."""

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, truth_M: Tensor) -> Tensor:
        torch.log_softmax(logits_MV, -1, out=logits_MV)
        # log p differs from the logits by a constant for each target. It therefore has the same
        # softmax, and the same derivatives of all orders.
        ctx.save_for_backward(logits_MV, truth_M)
        return -logits_MV.gather(1, truth_M.unsqueeze(1)).squeeze(1)

    @staticmethod
    def backward(ctx: Any, slope_M: Tensor) -> tuple[Tensor, None]:
        log_p_MV, truth_M = ctx.saved_tensors
        if torch.is_grad_enabled():
            # The gradient will be differentiated, too.
            p_MV = log_p_MV.softmax(-1)
            wrong_MV = p_MV.scatter_add(1, truth_M.unsqueeze(1), -torch.ones_like(p_MV[:, :1]))
            return wrong_MV * slope_M.unsqueeze(1), None
        log_p_MV = log_p_MV.detach()
        if torch._C._autograd._get_current_graph_task_keep_graph():
            # A later backward pass will read the log-probabilities again.
            log_p_MV = log_p_MV.clone()
        _into_gradient(log_p_MV, truth_M, slope_M)
        return log_p_MV, None


def _into_gradient(log_p_MV: Tensor, truth_M: Tensor, slope_M: Tensor) -> None:
    """Replace log-probabilities by the gradient with respect to the logits, some rows at a time."""
    rows = max(1, ROOM // log_p_MV.shape[1])
    zero = torch.zeros_like(log_p_MV[:rows])
    parts = zip(log_p_MV.split(rows), truth_M.split(rows), slope_M.split(rows), strict=True)
    for log_p, truth, slope in parts:
        column = truth.unsqueeze(1)
        # The gradient with respect to log p is 0 in all other columns.
        of_log_p = zero[: len(truth)].scatter_(1, column, -slope.unsqueeze(1))
        torch._log_softmax_backward_data(of_log_p, log_p, -1, log_p.dtype, out=log_p)
        of_log_p.scatter_(1, column, 0.0)
