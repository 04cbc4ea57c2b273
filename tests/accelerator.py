"""An accelerator without hardware, and who waits for it.

``There`` is a tensor that computes on the processor and says that it is elsewhere: on "meta", the
one device that every build of torch knows and that has no kernels, so that code that asks
``device.type`` takes the path of accelerators. ``Device`` is the dispatch mode that makes such
tensors. It refuses float64, which Apple's GPUs do not have, and counts where the host waits for the
device. Where there is a GPU, the mode counts on its tensors instead.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from threading import local
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from maskwise.base import devices
from maskwise.base.devices import tensors_of
from maskwise.evaluation import evaluate
from maskwise.masks import generate
from maskwise.models import attention
from maskwise.tasks import finetuning
from maskwise.training import data
from maskwise.training.learners import Progress
from maskwise.training.log import Log
from maskwise.training.loop import Exchange

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "meta")

ASKS = {
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "masked_select",
    "_unique2",
    "unique_dim",
    "repeat_interleave",
}
"""Operations whose result the host reads, or whose shape depends on values."""


class There(Tensor):
    """A tensor on the accelerator; ``inner`` has its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        layout = {
            "strides": inner.stride(),
            "storage_offset": inner.storage_offset(),
            "dtype": inner.dtype,
        }
        made = Tensor._make_wrapper_subclass(cls, inner.size(), **layout, device=DEVICE)  # type: ignore[attr-defined]
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """While it is on, tensors are made on the device and moved there and back.

    Attributes:
        waits: how often the host waited, by operation and place.
        pageable: copies to the device from memory that is not pinned, by place.
        free: whether waits are not counted at the moment: a line of metrics is read, or a probe,
            or learners offer what they have collected before that.
        updates: how often weights were updated, as far as the host has asked.
        aside, received: copies on a stream of their own, and tensors that the work was told of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.pageable: Counter[str] = Counter()
        self.pinned: set[int] = set()
        self.free = False
        self.updates = 0
        self.aside: Counter[str] = Counter()
        self.received = 0
        self.on_lane = local()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = tensors_in((*args, *kwargs.values()))
        self._note(name, given, kwargs.get("device"))
        if GPU:
            return func(*args, **kwargs)
        if name in ("pin_memory", "_pin_memory"):  # the former in inference mode
            copy = args[0].clone()
            self.pinned.add(copy.data_ptr())
            return copy
        if name == "is_pinned":
            return args[0].data_ptr() in self.pinned
        if kwargs.get("pin_memory"):
            made = func(*args, **{**kwargs, "pin_memory": False})
            self.pinned.add(made.data_ptr())
            return made
        return computed(func, args, kwargs)

    def _note(self, name: str, given: list[Tensor], asked: torch.device | None) -> None:
        self.updates += name.startswith("_fused_adam")
        if self.free or not given:
            return
        there = any(is_there(each) for each in given)
        goes = there if asked is None else torch.device(asked).type == DEVICE.type
        source, into = given[-1], given[0]
        if name == "_to_copy" and there and not goes:
            self.waits[f"copy to the host, {place()}"] += 1
        aside = name == "copy_" and not is_there(into) and self._is_pinned(into)
        if name == "copy_" and is_there(source) and not is_there(into) and not aside:
            self.waits[f"copy to the host, {place()}"] += 1
        if name == "_to_copy" and goes and not there:
            self.aside[place()] += getattr(self.on_lane, "now", False)
            if not self._is_pinned(source):
                self.pageable[place()] += 1
        if there and name in ASKS:
            self.waits[f"{name}, {place()}"] += 1
        picked = (
            given[1:-1] if name.startswith("index_put") else given[1:] if name == "index" else []
        )
        if any(is_there(each) and each.dtype == torch.bool for each in picked):
            self.waits[f"{name} by a mask, {place()}"] += 1

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.is_pinned() if GPU else tensor.data_ptr() in self.pinned


class FakeLane:
    """A stream beside that of the work, which the mode knows of."""

    def __init__(self, mode: Device):
        self.mode = mode

    def send(self, make: Any) -> Any:
        self.mode.on_lane.now = True
        result = make()
        self.mode.on_lane.now = False
        return result, "mark"

    def receive(self, sent: Any, mark: object) -> None:
        assert mark == "mark"
        self.mode.received += len([*tensors_of(sent)])


def fake_event(mode: Device) -> Any:
    """Who waits for it waits for the device, unless an update was started since."""
    before = mode.updates
    asked_at = place()

    def wait() -> None:
        if mode.updates == before and not mode.free:
            mode.waits[f"for the last update, {asked_at}"] += 1

    return wait


def by_document(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, _ends: Tensor, *_most: int, **options: Any
) -> Tensor:
    """What torch's kernel for documents of different lengths computes: a stand-in that attends
    document by document and takes fewer heads of keys, as the kernel does.
    """
    before, after = options["window_size"]
    grouped = options.get("enable_gqa", False)
    parts = []
    for begin, end in pairwise(ends.tolist()):
        query, key, value = (x[begin:end].transpose(0, 1) for x in (q, k, v))
        near = torch.ones(end - begin, end - begin, dtype=torch.bool, device=q.device)
        if before >= 0:
            near = near.triu(-before)
        if after >= 0:
            near = near.tril(after)
        how = {"attn_mask": near, "scale": options["scale"], "enable_gqa": grouped}
        part = scaled_dot_product_attention(query[None], key[None], value[None], **how)
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


@contextmanager
def ragged_kernel() -> Iterator[Counter[str]]:
    """In this context, the device has ``by_document`` for a kernel. The counter has its calls."""
    calls: Counter[str] = Counter()

    def kernel(*given: Any, **options: Any) -> Tensor:
        calls["varlen_attn"] += 1
        # The host does not read the offsets of the real kernel; the stand-in reads its own copy.
        q, k, v, ends, *more = given
        assert is_there(ends), "the offsets must be on the device"
        return by_document(q, k, v, getattr(ends, "inner", ends), *more, **options)

    def is_possible(query: Tensor, options: Any) -> bool:
        # The real one also needs half precision and no dropout, which these small models lack.
        return options.get("position_bias") is None and not options.get("softcap")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "has_ragged_kernel", lambda device: device.type == DEVICE.type)
        patch.setattr(attention, "_can_be_ragged", is_possible)
        patch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
        yield calls


def is_there(tensor: Tensor) -> bool:
    return isinstance(tensor, There) or (GPU and tensor.device.type == DEVICE.type)


# Operations have and give values, and lists and tuples of them. torch's functions for trees take
# most of the time of an operation.


def tensors_in(values: Sequence[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found


def each_of(values: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(values, (list, tuple)):
        return type(values)([each_of(value, change) for value in values])
    return change(values)


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation whose result is on the device if its inputs are, or if it was asked for
    there.
    """
    tensors = tensors_in((*args, *kwargs.values()))
    given = [each for each in tensors if isinstance(each, There)]
    asked = kwargs.get("device")
    if (
        given
        and func.overloadpacket.__name__ != "copy_"
        and any(each.ndim for each in set(tensors) - set(given))
    ):
        raise RuntimeError(f"{func}: tensors on two devices")
    stays = bool(given) if asked is None else torch.device(asked).type == DEVICE.type
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}

    def on_host(value: Any) -> Any:
        return value.inner if isinstance(value, There) else value

    named = {name: each_of(value, on_host) for name, value in kwargs.items()}
    result = func(*each_of(tuple(args), on_host), **named)
    # what was changed in place stays the tensor that it was
    before = {id(each.inner): each for each in given}

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.dtype == torch.float64:
            raise TypeError(f"{func}: this device has no float64")
        return before[id(value)] if id(value) in before else There(value)

    return each_of(result, there) if stays else result


def place() -> str:
    """The line of maskwise that an operation comes from."""
    frames = [f for f in traceback.extract_stack() if "/src/maskwise/" in f.filename]
    return (
        f"{frames[-1].filename.rpartition('/src/')[2]}:{frames[-1].lineno}" if frames else "a test"
    )


PLAIN_TO = nn.Module.to


def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """``Module.to``: on its way to the device a module keeps tied weights tied, as it does on real
    ones.
    """
    if not args or torch.device(args[0]) != DEVICE:
        return PLAIN_TO(module, *args, **kwargs)
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, value in tensors.items():
                if value is None or isinstance(value, There):
                    continue
                if id(value) not in moved:
                    there = There(value.detach())
                    wanted = isinstance(value, nn.Parameter)
                    moved[id(value)] = nn.Parameter(there, value.requires_grad) if wanted else there
                tensors[name] = moved[id(value)]  # type: ignore[assignment]
    return module


@contextmanager
def accelerator() -> Iterator[Device]:
    """Trainings in this context run on the device; what reads a line of metrics may wait for it."""
    mode, line = Device(), Log.line

    def free(log: Log, done: int) -> None:
        mode.free = True
        line(log, done)
        mode.free = False

    update = Exchange.update

    def closing(exchange: Exchange, learners: Any, now: Progress) -> None:
        mode.free = now.closing
        update(exchange, learners, now)
        mode.free = False

    class Thread(ThreadPoolExecutor):
        """Modes are of one thread."""

        def __init__(self, *args: Any, **more: Any):
            super().__init__(*args, initializer=mode.__enter__, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "line", free)
        patch.setattr(Exchange, "update", closing)
        patch.setattr(data, "ThreadPoolExecutor", Thread)
        if not GPU:
            patch.setattr(Accelerator, "device", property(lambda self: DEVICE))
            patch.setattr(nn.Module, "to", to)
            # whose views have no versions
            patch.setattr(torch._C, "_InferenceMode", lambda _: torch.no_grad())
            for user in (evaluate, generate, finetuning):
                patch.setattr(user, "best_device", lambda: DEVICE)
            patch.setattr(devices, "PINNING", (DEVICE.type,))
            patch.setattr(data, "Lane", lambda device: FakeLane(mode))
            patch.setattr(devices, "new_event", lambda: fake_event(mode))
            patch.setattr(
                sys.modules["torch.optim.adam"],
                "_device_dtype_check_for_fused",
                lambda *_, **__: None,
            )
        with mode:
            yield mode
