"""Fewer layers: a model that keeps some layers of another, as the start of a student."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

import torch
from torch import nn

from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.changes.base import Change, Changed
from maskwise.models.families import adapter_of, encoder_of
from maskwise.models.weights import blocks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


PER_LAYER = ("layer_types", "attention_window", "no_rope_layers")
"""Fields of configurations that may be lists with a value for each layer."""

PLACES = ("layer_idx", "layer_id", "layer_number")
"""Attributes of modules that say which layer they belong to."""

COUNTED = ("esmc",)
"""Families whose layers scale their output by the number of layers."""


class KeptLayers(Change):
    """Keep some layers of an encoder or decoder, such as ``layers(3)`` or ``layers('0, 2, 5')``.

    All other weights stay. A model with fewer layers has to be trained, for example by the
    objective ``distil``.

    Args:
        kept: the number of layers, spread evenly from the first to the last; or the numbers of the
            layers, from 0, in ascending order.

    Source: Sanh et al., DistilBERT, 2019, section 2, where a student has every second layer.
    """

    def __init__(self, kept: int | str):
        self.kept = kept
        if isinstance(kept, int):
            whole_number("layers", kept, least=1)
        elif not re.fullmatch(r"\d+(, *\d+)*", kept):
            raise MaskwiseError("layers reads numbers of layers", got=kept, allowed="'0, 2, 5'")

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Changed:
        config = copy.deepcopy(model.config)
        before = int(getattr(config, "num_hidden_layers", 0))
        blocks = blocks_of(encoder_of(model))
        is_list = adapter_of(config).kind == "encoder" and len(blocks) == before
        if not is_list or config.model_type in COUNTED:
            raise MaskwiseError(
                "layers needs an encoder or decoder whose layers have their own weights, and "
                "compute the same whatever their number",
                got=config.model_type,
                do="leave out layers",
            )
        kept = self._numbers(before)
        config.num_hidden_layers = len(kept)
        for name in PER_LAYER:
            stored = config.attribute_map.get(name, name)
            # Mamba's configuration computes this list from the number of layers.
            value = vars(config).get(stored)
            if isinstance(value, list):
                setattr(config, stored, [value[number] for number in kept])
        with torch.device(model.device):
            made: PreTrainedModel = type(model)._from_config(config, dtype=model.dtype)
        empty = model.device.type == "meta"
        inside = {weights for block in blocks for weights in block.parameters()}
        others = {name: each.data for name, each in model.named_parameters() if each not in inside}
        # ESM predicts contacts from the attention of all layers, so this head begins anew.
        others = {name: each for name, each in others.items() if "contact_head" not in name}
        made.load_state_dict(others, strict=False, assign=empty)
        for block, number in zip(blocks_of(encoder_of(made)), kept, strict=True):
            try:
                block.load_state_dict(blocks[number].state_dict(), assign=empty)
            except RuntimeError:
                raise self._differs(config.model_type) from None
            if _settings_of(block) != _settings_of(blocks[number]):
                raise self._differs(config.model_type)
        made.tie_weights()
        listed = ", ".join(map(str, kept))
        what = f"{len(kept)} of {before} layers are kept ({listed})"
        return Changed(made.eval(), {"what": what, "layers": kept})

    def _differs(self, family: str) -> MaskwiseError:
        return MaskwiseError(
            f"layers: the layers of {family} differ, and one would compute something else in its "
            "new place",
            got=self.kept,
            do="keep layer 0, and in the place of each other layer one that computes the same; or "
            "leave out layers",
        )

    def _numbers(self, before: int) -> list[int]:
        """Return the numbers of the layers that are kept, in ascending order."""
        if isinstance(self.kept, int):
            last = min(self.kept, before + 1) - 1
            kept = [round(number * (before - 1) / max(1, last)) for number in range(last + 1)]
        else:
            kept = [int(number) for number in self.kept.split(",")]
        if kept != sorted({*kept}) or kept[-1] >= before:
            raise MaskwiseError(
                "layers keeps layers that exist, each once, in ascending order",
                got=self.kept,
                allowed=f"1 to {before}, or numbers from 0 to {before - 1}",
            )
        return kept


def _settings_of(block: nn.Module) -> list[tuple[str, str, object]]:
    """Return the numbers and words by which the modules of a layer compute."""
    found: list[tuple[str, str, object]] = []
    for path, module in block.named_modules():
        for name, value in vars(module).items():
            plain = value is None or isinstance(value, bool | int | float | str)
            if plain and name not in PLACES and name != "training":
                found.append((path, name, value))
    return found
