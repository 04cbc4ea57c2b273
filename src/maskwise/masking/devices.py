"""How a batch gets to the device that trains on it: nothing makes the host wait.

Whatever has as many entries as there are targets or documents is found on the host, which would otherwise have to ask
the accelerator how many there are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PINNING = ("cuda",)
"""Kinds of device to which memory is copied without waiting if it is pinned."""


def widest(values: Tensor) -> Tensor:
    """Values in double precision on a processor and in single precision elsewhere: Apple's GPUs have no other."""
    return values.double() if values.is_cpu else values.float()


def moved(value: Any, device: torch.device | str) -> Any:
    """A tensor, or a tuple or dict of them, on a device; None stays None.

    To a CUDA device it goes from pinned memory: the host need not wait until it is there.
    """
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(moved(each, device) for each in value)
    if value is None:
        return None
    pinned = value.pin_memory() if torch.device(device).type in PINNING and value.is_cpu else value
    return pinned.to(device, non_blocking=True)


def ends_of(ids_BL: Tensor | None) -> Tensor | None:
    """(D + 1,) int32: where runs of equal numbers begin in the line of all rows, and where the last one ends.

    >>> ends_of(torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]])).tolist()
    [0, 2, 3, 4, 8]
    """
    if ids_BL is None:
        return None
    starts = torch.ones_like(ids_BL, dtype=torch.bool)
    starts[:, 1:] = ids_BL[:, 1:] != ids_BL[:, :-1]
    at = starts.flatten().nonzero().flatten()
    return torch.cat((at, at.new_tensor([ids_BL.numel()]))).int()
