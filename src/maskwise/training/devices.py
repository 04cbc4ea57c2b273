"""Copies between the host and an accelerator that block neither of them.

A copy waits for all work that was started before it on the same stream, here for a whole step. So
batches are copied on a separate stream, and sums are copied to pinned memory and read a step later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from maskwise.masking import batch

Result = TypeVar("Result")


def copies_aside(device: torch.device | str) -> bool:
    """Whether a device copies pinned memory while it computes."""
    return torch.device(device).type in batch.PINNING


class Lane:
    """A stream for copies to a device, separate from the stream of its work."""

    def __init__(self, device: torch.device | str):
        self.stream: Any = torch.cuda.Stream(device)

    def send(self, make: Callable[[], Result]) -> tuple[Result, object]:
        """Call a function that copies on this stream; return its result and an event at its end."""
        with torch.cuda.stream(self.stream):
            result = make()
            return result, self.stream.record_event()

    def receive(self, sent: object, mark: Any) -> None:
        """Make the work that follows on the device wait for a copy; the host does not wait."""
        current = torch.cuda.current_stream()
        current.wait_event(mark)
        for tensor in tensors_of(sent):
            # Otherwise the memory could be reused while the device still reads it.
            tensor.record_stream(current)


def tensors_of(value: object) -> Iterator[Tensor]:
    """The tensors of batches in lists, and of dicts and tuples in these."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, batch.MaskedBatch):
        yield from tensors_of(vars(value))
    elif isinstance(value, Mapping):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each)


def coming_back(tensor: Tensor) -> Callable[[], Tensor]:
    """Start to copy a tensor to the host, and return a function that waits for it."""
    if not copies_aside(tensor.device):
        here = tensor.cpu()
        return lambda: here
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    there.copy_(tensor, non_blocking=True)
    wait = new_event()

    def arrived() -> Tensor:
        wait()
        return there

    return arrived


def new_event() -> Callable[[], None]:
    """Record an event after all work so far, and return a function that waits for it."""
    event = torch.cuda.Event()
    event.record()
    wait: Callable[[], None] = event.synchronize
    return wait
