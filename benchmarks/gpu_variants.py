"""Variants of a training step on a GPU, which ``gpu.py --try`` measures beside the plain step.

A variant is not part of the package: whether it is faster is unknown until a GPU has measured it.
Each one changes the compiled blocks of a model, or how they run, for as long as a ``Trial`` lasts.

- *hash-dropout*: torch.compile draws a number for dropout with ten rounds of Philox. The fused
  kernels of dropout, sum and norm take 294 and 325 µs on an H200, and move 450 MB, for which a copy
  takes 108 µs. Here, a number is a hash of a seed and the position: two products and three shifts.
- *gelu*: the backward kernel of GELU takes 421 µs for 1.2 GB, for which a copy takes 288 µs,
  because it computes erf and exp. Here, the forward pass computes the slope, and saves it instead
  of the input. (What GELU returns is saved by the plain step, too, and is not computed again.)
- *rotary*: the gradients of queries, keys and values are concatenated by a kernel that computes all
  three at every place and then selects one (332 µs; a copy takes 144). Here, the matrix computes
  the first halves of all heads, and then the second halves. A rotation then needs no concatenation
  of halves, and each part of the gradient is written where it belongs.
- *fa3*: FlashAttention 3 in place of 2, for which its package must be built for the card.
- *graphs*: each block is a CUDA graph (``mode="reduce-overhead"``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from types import MethodType
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import torch._dynamo
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch._inductor import ir, lowering
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.nn import attention
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import CheckpointPolicy

from maskwise.masking import MaskedBatch
from maskwise.models.attention import attend
from maskwise.objectives import Objective
from maskwise.training import MaskedSource, TrainingSettings, wrapping
from maskwise.training.data import Step
from maskwise.training.engine import Engine, Update

BUCKET = 64
"""With CUDA graphs, the number of offsets of documents is a multiple of this number."""
WARM = 3
"""Updates whose losses are recorded. The first one compiles the head, and the second one blocks."""
UNTIMED = 2
"""Rounds before the first one that is timed. CUDA graphs are recorded in them."""
MOST_LAYERS = 256
"""The most dropout layers of a model."""
MOST_VERSIONS = 64
"""The most versions of a function that the compiler keeps. Every variant has its own."""


class Variant:
    """A variant of a training step. This class itself is the plain step.

    Attributes:
        name: the name for ``--try``.
        computed: for each family that it is tried on, the milliseconds of a step of gpu.py that
            kernel times and bytes let expect.
        few_shapes: whether it needs offsets of documents of few different lengths.
        own_code: whether blocks are compiled again, though their Python code is the same.
        options: options of torch.compile for the blocks.
    """

    name: ClassVar[str] = "plain"
    computed: ClassVar[Mapping[str, float]] = {}
    few_shapes: ClassVar[bool] = False
    own_code: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Any]] = {}

    def missing(self) -> str:
        """Return why the variant cannot run here; an empty text if it can."""
        return ""

    def change(self, block: nn.Module) -> None:
        """Replace forward methods in a block. ``families.patched`` undoes it."""

    def active(self) -> AbstractContextManager[Any]:
        """Return the context in which a model with this variant is compiled and runs."""
        return nullcontext()

    def before_step(self) -> None:
        """Prepare an update."""


def _replace(block: nn.Module, kind: str, forward: Callable[..., Any]) -> None:
    """Replace the forward method of all layers of a class, which is named, in a block."""
    for layer in block.modules():
        if type(layer).__name__ == kind:
            layer.forward = MethodType(forward, layer)  # type: ignore[method-assign]


# Dropout by a hash
# -------------------------------------------------------------------------------------------


def hash_dropout(values: Tensor, rate: float, start: Tensor, stride: Tensor) -> Tensor:
    """Apply dropout: set values to 0 with probability ``rate``, and rescale the other values.

    Args:
        values: floating-point numbers of any shape.
        rate: the probability.
        start, stride: () int32 random numbers on the same device, of which ``stride`` is odd. The
            same two numbers drop the same places.
    """
    place = torch.arange(values.numel(), dtype=torch.int32, device=values.device)
    # An odd stride gives every place another number, up to 2³² places.
    bits = _hashed(place.view(values.shape) * stride + start)
    # The numbers are signed, so the lowest one is −2³¹.
    stays = bits >= round(rate * 2**32) - 2**31
    return torch.where(stays, values * (1 / (1 - rate)), 0)


def _hashed(bits: Tensor) -> Tensor:
    """Return the hash of each int32 number, by the function lowbias32 of Chris Wellons."""
    bits = bits ^ _shifted(bits, 16)
    bits = bits * 0x7FEB352D
    bits = bits ^ _shifted(bits, 15)
    bits = bits * (0x846CA68B - (1 << 32))
    return bits ^ _shifted(bits, 16)


def _shifted(bits: Tensor, by: int) -> Tensor:
    # A shift of int32 copies the sign.
    return (bits >> by) & ((1 << (32 - by)) - 1)


class HashDropout(Variant):
    """Dropout layers of blocks hash a seed and the position. The seeds change in every update."""

    name = "hash-dropout"
    computed: ClassVar = {"bert": 4.5}
    own_code = True

    def __init__(self) -> None:
        self.layers = 0
        self.seeds: Tensor | None = None

    def change(self, block: nn.Module) -> None:
        for layer in block.modules():
            if not isinstance(layer, nn.Dropout) or not layer.p:
                continue
            if self.seeds is None:
                device = next(block.parameters()).device
                self.seeds = torch.empty(MOST_LAYERS, 2, dtype=torch.int32, device=device)
                self.before_step()
            # All seeds are one tensor, so that few kernels draw them. Each layer reads its own.
            layer.hash_start, layer.hash_stride = self.seeds[self.layers]
            self.layers += 1
            layer.forward = MethodType(_drop, layer)  # type: ignore[method-assign]

    def before_step(self) -> None:
        if self.seeds is not None:
            self.seeds.random_(-(1 << 31), 1 << 31)
            self.seeds[:, 1].bitwise_or_(1)


def _drop(layer: Any, values: Tensor) -> Tensor:
    """The forward pass of a dropout layer, with ``hash_dropout``."""
    if not layer.training:
        return values
    return hash_dropout(values, layer.p, layer.hash_start, layer.hash_stride)


# The slope of GELU
# -------------------------------------------------------------------------------------------


class Gelu(torch.autograd.Function):
    """GELU whose forward pass computes its slope, and saves it in the type of the input."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        wide = values.float()
        below = 0.5 * (1 + torch.erf(wide * math.sqrt(0.5)))
        slope = below + wide * torch.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
        slope = slope.to(values.dtype)
        ctx.save_for_backward(slope)
        # The comparison changes no number. With it, the slope belongs to the forward pass.
        return torch.where(slope == slope, (wide * below).to(values.dtype), slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return gradient * slope


class SavesSlope(CustomGraphPass):
    """Mark slopes in a graph of both passes, so that they are not computed again."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in graph.nodes:
            if node.target is torch.ops.aten.eq.Tensor and node.args[0] is node.args[1]:
                node.args[0].meta["recompute"] = CheckpointPolicy.MUST_SAVE

    def uuid(self) -> str:
        return "the slope of GELU is saved"


class SavedSlope(Variant):
    """The forward pass saves the slope of GELU instead of its input."""

    name = "gelu"
    # 1.6 ms less in the backward pass, which computes neither erf nor exp, and 1.2 ms more in the
    # forward pass, which writes one tensor more
    computed: ClassVar = {"bert": 0.4}
    own_code = True

    def change(self, block: nn.Module) -> None:
        _replace(block, "GELUActivation", _gelu)

    def active(self) -> AbstractContextManager[Any]:
        return inductor.patch(joint_custom_pre_pass=SavesSlope(), force_disable_caches=True)


def _gelu(layer: nn.Module, values: Tensor) -> Tensor:
    found: Tensor = Gelu.apply(values)
    return found


# Rotary embeddings in halves
# -------------------------------------------------------------------------------------------


class PackedRotary(Variant):
    """The matrix of ModernBERT's attention computes the halves of queries and keys apart."""

    name = "rotary"
    computed: ClassVar = {"modernbert": 6.0}
    own_code = True

    def change(self, block: nn.Module) -> None:
        _replace(block, "ModernBertAttention", _attention_in_halves)

    @contextmanager
    def active(self) -> Iterator[None]:
        def in_place(inputs: Any, dim: int = 0) -> Any:
            return ir.TensorBox(ir.ConcatKernel.create(inputs, dim))

        # Each part of a concatenation is written by the kernel that computes it.
        with (
            patch.object(lowering, "pointwise_cat", in_place),
            inductor.patch(force_disable_caches=True),
        ):
            yield


def _attention_in_halves(
    layer: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The forward pass of ModernBERT's attention, with queries and keys in halves."""
    size = layer.head_dim
    bias = layer.Wqkv.bias
    weight = in_halves(layer.Wqkv.weight, size)
    packed = linear(hidden_states, weight, None if bias is None else in_halves(bias, size))
    half = packed.shape[-1] // 6
    # (B, L, H, D / 2) each, and the values (B, L, H, D)
    *halves, value = packed.split([half] * 4 + [2 * half], -1)
    parts = [part.unflatten(-1, (-1, size // 2)) for part in halves]
    # Angles repeat in the second half of a head.
    cos, sin = (each[..., None, : size // 2] for each in position_embeddings)
    query = rotated(*parts[:2], cos, sin)
    key = rotated(*parts[2:], cos, sin)
    out, _ = attend(
        layer,
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.unflatten(-1, (-1, size)).transpose(1, 2),
        attention_mask,
        dropout=layer.attention_dropout if layer.training else 0.0,
        scaling=size**-0.5,
        sliding_window=layer.sliding_window,
        **options,
    )
    return layer.out_drop(layer.Wo(out.flatten(2))), None


def in_halves(weight: Tensor, size: int) -> Tensor:
    """Order the rows of a matrix, or the numbers of a bias, for queries, keys and values.

    Args:
        weight: (3·H·D, …); the rows of queries, of keys and of values, head by head.
        size: D, the size of a head.

    Returns:
        The same rows: the first halves of all heads of queries, their second halves, both of
        keys, and the values as before.
    """
    parts = weight.unflatten(0, (3, -1, 2, size // 2))
    return torch.cat((parts[:2].transpose(1, 2).flatten(0, 3), parts[2].flatten(0, 2)))


def rotated(first: Tensor, second: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return rotated heads (…, D) from their halves (…, D / 2), in the type of the halves."""
    a, b = first.float(), second.float()
    turned = (a * cos - b * sin, b * cos + a * sin)
    return torch.cat([half.to(first.dtype) for half in turned], -1)


# FlashAttention 3, and CUDA graphs
# -------------------------------------------------------------------------------------------


class FlashAttention3(Variant):
    """Torch's attention for documents of different lengths runs FlashAttention 3.

    The compiled code is that of the plain step, which calls an operator of torch.
    """

    name = "fa3"
    # 1.4 and 1.5 times as fast as FlashAttention 2, which is assumed
    computed: ClassVar = {"bert": 3.8, "modernbert": 16.0}

    def missing(self) -> str:
        if not hasattr(attention, "activate_flash_attention_impl"):
            return f"torch {torch.__version__} has one implementation of flash attention"
        if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
            return "FlashAttention 3 needs a GPU of the Hopper generation"
        if find_spec("flash_attn_interface") is None:
            return "flash_attn_interface (FlashAttention 3) is not installed"
        return ""

    @contextmanager
    def active(self) -> Iterator[None]:
        attention.activate_flash_attention_impl("FA3")
        try:
            yield
        finally:
            attention.restore_flash_attention_impl()


class CudaGraphs(Variant):
    """Each compiled block runs as a CUDA graph."""

    name = "graphs"
    computed: ClassVar = {"bert": 2.3, "modernbert": 3.0}
    few_shapes = True
    options: ClassVar = {"mode": "reduce-overhead"}

    def before_step(self) -> None:
        torch.compiler.cudagraph_mark_step_begin()


class FewShapes(MaskedSource):
    """Batches whose offsets of documents have few different lengths."""

    def batches(self, step: int, *, rank: int, ranks: int) -> list[MaskedBatch]:
        made = super().batches(step, rank=rank, ranks=ranks)
        for batch in made:
            ends, written = batch.ends
            # The last offset is repeated, so the documents that are added have no tokens.
            more = -len(ends) % BUCKET
            batch.ends = torch.cat((ends, ends[-1:].expand(more))), written
        return made


VARIANTS: dict[str, type[Variant]] = {
    kind.name: kind for kind in (HashDropout, SavedSlope, PackedRotary, FlashAttention3, CudaGraphs)
}
"""The variants, in the order in which they are measured."""


# A model that trains by a variant
# -------------------------------------------------------------------------------------------


@contextmanager
def changed_blocks(
    change: Callable[[nn.Module], None] = lambda block: None, **options: Any
) -> Iterator[None]:
    """A context in which blocks are changed before they are compiled.

    Args:
        change: a function that changes a block.
        options: options of torch.compile.
    """
    plain = wrapping.compiled_block

    def compiled(block: Any, forward: Any) -> Any:
        change(block)
        with patch.object(torch, "compile", partial(torch.compile, **options)):
            return plain(block, forward)

    with patch.object(wrapping, "compiled_block", compiled):
        yield


@contextmanager
def side_by_side() -> Iterator[None]:
    """A context in which the compiled code of several models is kept at the same time."""
    with (
        patch.object(wrapping, "forget_other_models", lambda model, settings: None),
        torch._dynamo.config.patch(recompile_limit=MOST_VERSIONS),
    ):
        yield


def new_profiler(device: torch.device) -> profile:
    """Return a profiler of the host and of the device."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    # The shapes of matrix products tell which belong to the head.
    return profile(activities=activities, record_shapes=True)


class Trial:
    """A model that trains by a variant of the step. It is compiled when the trial begins.

    All trials of a model have the same weights at first, and the same batches, which are copied to
    the device beforehand. A round is an update with each batch.

    Args:
        variant: the variant.
        objective: the objective with the model.
        source: the batches.
        settings: the settings of training. ``steps`` is the number of batches.
        backend: the name of a backend of torch.compile.

    Attributes:
        losses, norms: the mean loss of the targets and the gradient norm of the first ``WARM``
            updates.
        tokens: the number of tokens of text in a round.
        seconds: the seconds until the first ``WARM`` updates are made, which compile.
        memory: the peak of what it adds to the memory of a GPU, in bytes.
    """

    def __init__(
        self,
        variant: Variant,
        objective: Objective,
        source: MaskedSource,
        settings: TrainingSettings,
        *,
        backend: str = "inductor",
    ):
        self.variant = variant
        if variant.few_shapes:
            source = FewShapes(source.rows, source.masker, source.settings)
        began = time.perf_counter()
        before = torch.cuda.memory_allocated()
        options = dict(variant.options)
        if variant.own_code:
            # Functions share compiled code only if they have the same backend.
            options["backend"] = partial(torch._dynamo.lookup_backend(backend))
        with changed_blocks(variant.change, **options):
            self.engine = Engine(objective, settings)
        self.steps = []
        self.tokens = 0
        for number in range(settings.steps):
            (batch,) = source.batches(number, rank=0, ranks=1)
            self.tokens += batch.tokens
            counted = batch.targets if batch.counted is None else batch.counted
            sums = {"targets": batch.targets, "counted": counted}
            there = [batch.to(self.engine.device)]
            self.steps.append(Step(number, there, batch.targets, {}, counted, sums))
        self.losses = []
        self.norms = []
        with variant.active():
            for number in range(WARM):
                update = self.update(self.steps[number % len(self.steps)])
                self.losses.append(round(float(update.losses[0]) / update.counted, 5))
                self.norms.append(round(float(update.norm), 5))
        self.seconds = time.perf_counter() - began
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        for _ in range(UNTIMED):
            self.round()
        self.memory = torch.cuda.max_memory_allocated() - before

    def update(self, step: Step) -> Update:
        """Make an update. Call it while the variant is active."""
        self.variant.before_step()
        return self.engine.update(step, lambda batch, loss: None)

    def round(self) -> float:
        """Make an update with each batch, and return the seconds of an update."""
        with self.variant.active():
            self.wait()
            began = time.perf_counter()
            for step in self.steps:
                self.update(step)
            self.wait()
            return (time.perf_counter() - began) / len(self.steps)

    def profiled(self, steps: int) -> profile:
        """Return a profiler that has seen some updates."""
        profiler = new_profiler(self.engine.device)
        with self.variant.active():
            self.wait()
            profiler.start()
            for number in range(steps):
                self.update(self.steps[number % len(self.steps)])
            self.wait()
            profiler.stop()
        return profiler

    def wait(self) -> None:
        """Wait for the device."""
        if self.engine.device.type != "cpu":
            torch.accelerator.synchronize()

    def close(self) -> None:
        """Undo the changes of the model."""
        self.engine.close()
