"""More positions: a model that reads longer rows than before.

Families with a table of positions get a longer table. Rotary families compute their positions, from
a base that may be raised, or with distances that are scaled down. DeBERTa-v3 keeps its buckets of
relative positions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from maskwise.base.errors import MaskwiseError, finite_number, require_known, whole_number
from maskwise.changes.base import Change, Changed
from maskwise.models.families import POSITIONS, most_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

OF_TABLES = ("copy", "interpolate")
OF_ROTARY = ("linear", "yarn")
"""Transformers' dynamic scaling is none of them: it begins beyond ``max_position_embeddings``,
which is the new length."""
UNSCALED = (None, "default", "dynamic")
"""Types of rotary positions whose distances are not scaled at the lengths that a model reads."""
ROPE = "rope_parameters"


class Positions(Change):
    """Let a model read longer rows, such as ``positions(1024)``.

    A longer table of positions repeats the old one (``copy``; rows that were short enough before
    give the same states) or is interpolated from it. For rotary positions, either their base is
    raised, or distances are scaled by one of transformers' formulas; layers with sliding attention
    stay as they are. Without both, the model reads distances that it has never seen.

    Args:
        most: the number of tokens of the longest row.
        rope_base: the base of rotary positions, such as 160000, which is higher than before.
        scaling: "copy" (the default) or "interpolate" for a table of positions; "linear" or "yarn"
            for rotary positions, unless they are scaled already.

    Source: for copies, Beltagy et al., Longformer, 2020; linear: Chen et al., Extending Context
    Window of Large Language Models via Positional Interpolation, 2023; yarn: Peng et al., 2023.
    """

    def __init__(self, most: int, rope_base: float | None = None, scaling: str | None = None):
        self.most = whole_number("positions", most, least=2)
        self.rope_base = rope_base
        self.scaling = scaling
        if rope_base is not None:
            finite_number("rope_base", rope_base, least=2)
            if scaling is not None:
                raise MaskwiseError(
                    "positions: rope_base and scaling are two ways to the same end",
                    got=f"rope_base={rope_base}, scaling={scaling}",
                    do="leave out one of them",
                )
        if scaling is not None:
            require_known("scaling", scaling, (*OF_TABLES, *OF_ROTARY))

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Changed:
        before = most_tokens(model.config)
        config = copy.deepcopy(model.config)
        if not isinstance(getattr(config, POSITIONS, None), int):
            raise self._refused(model, "no number of positions in its configuration")
        if self.most <= before:
            raise MaskwiseError(
                "positions makes rows longer, not shorter", got=self.most, allowed=f"> {before}"
            )
        # If this field is −1, DeBERTa computes its buckets from the number of positions.
        relative = getattr(config, "relative_attention", False)
        if relative and config.max_relative_positions < 1:
            config.max_relative_positions = getattr(config, POSITIONS)
        setattr(config, POSITIONS, getattr(config, POSITIONS) + self.most - before)
        ropes = [*_ropes(config)]
        if ropes and self.scaling in OF_TABLES:
            raise self._refused(model, "rotary positions", OF_ROTARY)
        for rope in ropes:
            self._rescale(rope, before)
        state = model.state_dict()
        # A new model computes from its configuration what is not among the weights, such as the
        # frequencies of rotary positions.
        with torch.device(model.device):
            made: PreTrainedModel = type(model)._from_config(config, dtype=model.dtype)
        grown = made.state_dict()
        tables = [name for name in state if grown[name].shape != state[name].shape]
        if bool(tables) == bool(ropes) and (tables or not relative):
            raise self._refused(model, "neither a table of positions nor rotary positions")
        wrong = self.scaling in OF_ROTARY or self.rope_base is not None
        if tables and wrong:
            raise self._refused(model, "a table of positions", OF_TABLES)
        if not (tables or ropes) and (wrong or self.scaling):
            raise self._refused(model, "relative positions", ("None",))
        for name in tables:
            state[name] = self._longer(state[name], before, len(grown[name]))
        made.load_state_dict(state, assign=model.device.type == "meta")
        made.tie_weights()
        tokenizer.model_max_length = max(self.most, tokenizer.model_max_length)
        what = f"rows of {self.most:,} tokens instead of {before:,}"
        return Changed(made.eval(), {"what": what, "positions": [before, self.most]})

    def _rescale(self, rope: dict[str, Any], before: int) -> None:
        """Change the settings of rotary positions in place."""
        kind = rope.get("rope_type")
        computed = kind in ("yarn", "longrope") and not rope.get("factor")
        if computed or (kind == "dynamic" and "alpha" in rope):
            raise MaskwiseError(
                "positions: this model computes its rotary frequencies in a way that no other fits",
                got=f"rope_type={kind}",
                do="leave out positions",
            )
        if kind == "dynamic" and self.scaling is None:
            raise MaskwiseError(
                "positions: the rotary frequencies of this model depend on its number of positions",
                got=f"rope_type={kind}, rope_base={self.rope_base}",
                do=f"give scaling, one of {', '.join(OF_ROTARY)}, and no rope_base",
            )
        if self.rope_base is not None:
            base = rope["rope_theta"]
            if self.rope_base <= base:
                raise MaskwiseError(
                    "positions: for longer rows, the base of rotary positions is raised",
                    got=f"rope_base={self.rope_base}",
                    allowed=f"> {base}, the base of this model",
                )
            rope["rope_theta"] = float(self.rope_base)
        if self.scaling is not None:
            if kind not in UNSCALED:
                raise MaskwiseError(
                    "positions: the rotary positions of this model are scaled already or not plain",
                    got=f"rope_type={kind}, scaling={self.scaling}",
                    do="leave out scaling; or change the model as it was before they were scaled",
                )
            rope["rope_type"] = self.scaling
            rope["factor"] = self.most / before
            if self.scaling == "yarn":
                rope["original_max_position_embeddings"] = before

    def _longer(self, table: Tensor, before: int, size: int) -> Tensor:
        """Return a table (``size``, H) from one with ``before`` positions behind other rows."""
        others = len(table) - before
        old = table[others:]
        if self.scaling == "interpolate":
            new = interpolate(old.T[None], size - others, mode="linear", align_corners=True)[0].T
        else:
            new = old[torch.arange(size - others, device=old.device) % before]
        return torch.cat([table[:others], new])

    def _refused(
        self, model: PreTrainedModel, why: str, allowed: tuple[str, ...] = ()
    ) -> MaskwiseError:
        return MaskwiseError(
            f"positions: {type(model).__name__} has {why}",
            got=f"rope_base={self.rope_base}, scaling={self.scaling}",
            allowed=f"scaling={', '.join(allowed)}" if allowed else None,
            do=None if allowed else "leave out positions",
        )


def _ropes(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """Yield the settings of rotary positions, without those of sliding attention."""
    rope = getattr(config, ROPE, None) or {}
    if "rope_theta" in rope:
        yield rope
    elif "full_attention" in rope:
        yield rope["full_attention"]
