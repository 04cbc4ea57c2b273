"""One step of a small model, before a study trains a family that maskwise does not know.

Any family with the right head can be trained, but some need more inputs than tokens, other lengths
of rows, or more positions than their configuration says. Their first step, in the first stage of a
study, would end in a traceback.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import torch

from maskwise.base.errors import MaskwiseError, first_line
from maskwise.masking import IGNORE
from maskwise.models.families import ENCODER_DECODERS, ENCODERS, adapter_of, most_tokens
from maskwise.models.loading import build_model, empty_model, without_advice
from maskwise.objectives.denoising import predicting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEPTHS = (
    *("num_hidden_layers", "num_layers", "num_decoder_layers"),
    *("encoder_layers", "decoder_layers"),
)
"""Fields of a configuration that are numbers of layers; one layer is enough for a trial."""
FEW_TOKENS = 64
"""The vocabulary of a trial, unless a special token has a larger id."""
MOST_WEIGHTS = 100_000_000
"""Larger models are not tried, because this would take many seconds."""
LONGEST_BACKWARD = 512
"""Longer rows are only read, because gradients of full attention would need gigabytes."""


def check_step(config: PreTrainedConfig, length: int) -> None:
    """Raise ``MaskwiseError`` if a model of an unknown family cannot take a step of training.

    A model with random weights, with one layer and few tokens where possible, reads a full row and
    a half of one. The known families and large models are not tried.

    Args:
        config: the configuration of the model.
        length: the number of tokens in a full row.
    """
    known = ENCODERS if adapter_of(config).kind == "encoder" else ENCODER_DECODERS
    if config.model_type in known:
        return
    why = _failure(_Key(config), length)
    if isinstance(why, MaskwiseError):
        raise why.with_traceback(None)
    if why:
        raise MaskwiseError(
            f"a model of {config.model_type} cannot be trained on rows of {length} tokens",
            got=f"{type(why).__name__}: {first_line(why)}",
            allowed=", ".join(known),
            do="use a model of one of these families, which maskwise knows, or another "
            "corpus.length if the error is about sizes",
        )


class _Key:
    """A configuration by which results are cached: equal configurations are equal keys."""

    def __init__(self, config: PreTrainedConfig):
        self.config = config
        self.content = config.to_json_string(use_diff=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)


@cache
def _failure(key: _Key, length: int) -> Exception | None:
    """Return the error of a step, or None if a small or a whole model takes it.

    A family may not have small models, so that the error of a whole model counts.
    """
    why = None
    for config in (_small(key.config), copy.deepcopy(key.config)):
        try:
            if empty_model(config).num_parameters() <= MOST_WEIGHTS:
                _step(config, length)
            return None
        except Exception as error:  # transformers' models may raise anything
            why = error
    return why


def _small(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy with one layer and few tokens, as far as it has the usual fields for both."""
    small = copy.deepcopy(config)
    special = [FEW_TOKENS - 1]
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int):
            special.append(value)
    wanted = {"vocab_size": min(max(special) + 1, getattr(config, "vocab_size", 0) or 0)}
    for name, value in {**dict.fromkeys(DEPTHS, 1), **wanted}.items():
        if isinstance(getattr(small, name, None), int):
            # In some families, the number follows from other fields, and cannot be set.
            with suppress(NotImplementedError, AttributeError):
                setattr(small, name, value)
    return small


def _step(config: PreTrainedConfig, length: int) -> None:
    """Take a step with random weights; on rows that are long, only its forward pass.

    It is taken on the CPU: after an error in a kernel of a GPU, a process cannot use the GPU.
    """
    pad = config.pad_token_id or 0
    # One token only, because a family may embed fewer tokens than its configuration says.
    ids = torch.full((2, length), 1 if pad != 1 else 2)
    ids[1, length // 2 :] = pad
    labels = ids.masked_fill(ids == pad, IGNORE)
    if adapter_of(config).kind != "encoder":
        # The targets of many corruptions are shorter than the row.
        labels = labels[:, : most_tokens(config, written=True)]
    batch = {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": labels}
    with without_advice(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        objective = predicting(build_model(config)).train()
        with torch.set_grad_enabled(length <= LONGEST_BACKWARD):
            loss = objective(batch)
            if length <= LONGEST_BACKWARD:
                loss.total.backward()
