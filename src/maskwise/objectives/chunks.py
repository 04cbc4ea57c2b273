"""Logits in chunks, so that all logits of a batch are never in memory together.

The logits of M targets over V tokens, a copy of them in single precision and the gradients of both
need 12 · M · V bytes: 12 GB for 20,000 targets and 50,000 tokens. With many targets, the head and
the loss are therefore computed for one chunk of targets after another. A chunk keeps only the
hidden states at its targets, and its logits are computed again in the backward pass
(``torch.utils.checkpoint``). This adds a third to the multiplications of the head.

torch's ``linear_cross_entropy`` (2.13, without reduction) works in a similar way, but rounds losses
to bfloat16 and knows no head with more than one layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
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
        return compute(states_MH, truth_M)
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
