"""Copies between the host and an accelerator that nobody waits for.

A copy waits for what was started before it on the same stream, which is a whole step. Batches
therefore go to the device on a stream of their own, and sums come back into pinned memory, where
they are read a step later.
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
    """A stream for copies to a device, beside that of its work."""

    def __init__(self, device: torch.device | str):
        self.stream: Any = torch.cuda.Stream(device)

    def send(self, make: Callable[[], Result]) -> tuple[Result, object]:
        """Call a function whose copies go this way; returns its result, and a mark of its end."""
        with torch.cuda.stream(self.stream):
            result = make()
            return result, self.stream.record_event()

    def receive(self, sent: object, mark: Any) -> None:
        """Let the work that follows wait for what was sent; the host does not."""
        current = torch.cuda.current_stream()
        current.wait_event(mark)
        for tensor in tensors_of(sent):
            # Otherwise its memory is used again as soon as the host forgets it.
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
    """Start to copy a tensor to the host; returns a function that waits for it."""
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
    """Mark the end of the work so far; returns a function with which the host waits for it."""
    event = torch.cuda.Event()
    event.record()
    wait: Callable[[], None] = event.synchronize
    return wait
