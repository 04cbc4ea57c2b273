"""Model weights: their blocks, and checks of their number and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from maskwise.base.devices import memory
from maskwise.base.errors import MaskwiseError
from maskwise.models.families import encoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUIET = 0.1
"""The initial weight of the layer norm in a new prediction head. With a weight of 1, the noise of a
random head made the loss of a sentence encoder 0.4 nats worse than that of guessing by token
frequencies (benchmarks/recipes/continual-minilm.yaml)."""

PARTS = (
    "labels",
    "layers",
    "experts",
    "groups",
    "group_num",
    "blocks",
    "block_sizes",
    "block_repeats",
    "networks",
    "ngram",
)
"""Configuration fields whose names end like this are numbers of parts of a model."""
MOST_PARTS = 10_000
MOST_LABELS = 1_000_000

Module = TypeVar("Module", bound=nn.Module)


def check_counts(fields: Mapping[str, Any]) -> None:
    """Raise ``MaskwiseError`` if a configuration asks for more than ``MOST_PARTS`` of any part, or
    for fewer than none.

    Nested configurations are checked, too. Without this check, transformers would try to build a
    billion layers, and would build a model without layers for -1.
    """
    for name, value in fields.items():
        if isinstance(value, Mapping):
            check_counts(value)
        if not name.endswith(PARTS):
            continue
        most = MOST_LABELS if name.endswith("labels") else MOST_PARTS
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not 0 <= number <= most:
                raise MaskwiseError(
                    f"a model cannot have this {name}", got=value, allowed=f"0 to {most:,}"
                )


class Size(NamedTuple):
    """The size of a model: the number of its weights, and the bytes of its buffers."""

    weights: int
    buffers: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Size:
        """Return the size of a model, which may be on the meta device."""
        return cls(model.num_parameters(), sum(buffer.nbytes for buffer in model.buffers()))


def check_size(size: Size) -> None:
    """Raise ``MaskwiseError`` if a model in float32 does not fit into this machine's memory."""
    needed = 4 * size.weights + size.buffers
    here = memory()
    if here is not None and needed > here:
        raise MaskwiseError(
            "the model does not fit into memory",
            got=f"{size.weights:,} weights, {needed / 1e9:,.0f} GB",
            allowed=f"{here / 1e9:,.0f} GB",
            do="make it smaller",
        )


def check_finite(weights: Mapping[str, Tensor], name: object) -> None:
    """Raise ``MaskwiseError`` if weights are NaN or infinite. This takes 0.1 s per gigabyte."""
    for key, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # Minimum and maximum are checked, because a sum may overflow and ``isfinite`` needs memory.
        extremes = torch.stack(tensor.aminmax())
        if not extremes.isfinite().all():
            raise MaskwiseError(
                f"the weights of {str(name)!r} are not finite",
                got=key,
                do="use a different checkpoint, because the training of this one diverged",
            )


def quieten(model: PreTrainedModel, new: list[str]) -> None:
    """Set new layer-norm weights to ``QUIET``, so that a new head predicts almost its bias.

    Args:
        model: the model, which is changed in place.
        new: the names of the weights that were initialised at random.
    """
    with torch.no_grad():
        for name in new:
            if name.endswith("weight") and model.get_parameter(name).ndim == 1:
                model.get_parameter(name).fill_(QUIET)


def share_encoder(model: PreTrainedModel, other: PreTrainedModel) -> None:
    """Make two models share one encoder: the module of ``other``, with the weights of ``model``.

    Raises:
        MaskwiseError: ``model`` lacks weights of the encoder, as with LoRA, which renames them, or
            is itself an encoder.
    """
    old = encoder_of(model)
    encoder = encoder_of(other)
    # ``strict=False``, because one of the models may have a pooler.
    missing = encoder.load_state_dict(old.state_dict(), strict=False).missing_keys
    for key in missing:
        if "pooler" not in key:
            raise MaskwiseError(f"the model lacks a weight of the encoder: {key}")
    for name, module in model.named_modules():
        if module is old and name:
            model.set_submodule(name, encoder)
            model.tie_weights()
            return
    raise MaskwiseError(f"the encoder is not a part of the model: {type(model).__name__}")


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of all models in a module: the layers in each outermost ``ModuleList``."""
    from transformers import PreTrainedModel

    blocks = chain.from_iterable(map(_listed, parts(module, PreTrainedModel)))
    return list(dict.fromkeys(blocks))


def _listed(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _listed(child)


def parts(module: nn.Module, kind: type[Module]) -> list[Module]:
    """Return all submodules of a class, including the module itself."""
    return [part for part in module.modules() if isinstance(part, kind)]
