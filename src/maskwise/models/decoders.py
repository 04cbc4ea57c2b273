"""Decoders that see later tokens: encoders whose head predicts the next token.

Transformers computes attention in both directions in most families of decoders if their
configuration has ``is_causal: false`` (since version 5.2; some families later). No table says which
families these are: a model counts if the state of its first token depends on its last token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskwise.base.errors import MaskwiseError, first_line
from maskwise.models.families import Decoder, adapter_of, encoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

READ_BY = "5.2"
"""The first version of transformers that reads ``is_causal``."""
TOKENS = 12
"""The length of the rows that show what a model sees."""
SMALL_VOCABULARY = 64
ADVICE = "update transformers, or use another family"


def is_decoder(config: PreTrainedConfig) -> bool:
    """Return whether a family of models predicts next tokens, and masked tokens in no class."""
    from transformers.models.auto import modeling_auto

    known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return (
        config.model_type in known
        and config.model_type not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not config.is_encoder_decoder
    )


def is_causal(config: PreTrainedConfig) -> bool:
    """Return whether a model is a decoder that reads earlier tokens only."""
    return is_decoder(config) and not isinstance(adapter_of(config), Decoder)


def require_sees_later(model: PreTrainedModel) -> None:
    """Raise ``MaskwiseError`` unless the first token of a decoder depends on its last one."""
    if isinstance(adapter_of(model.config), Decoder) and _moved(model)[0]:
        return
    raise MaskwiseError(
        f"{type(model).__name__} reads earlier tokens only",
        got=f"is_causal: {getattr(model.config, 'is_causal', True)}, transformers {_version()}",
        allowed=f"is_causal: false, which transformers reads since {READ_BY} in most families",
        do="in a recipe, model.changes: bidirectional(); alone, maskwise change MODEL OUT --with "
        f"'bidirectional()'. If this is done: {ADVICE}",
    )


def require_attention_alone(model: PreTrainedModel) -> None:
    """Raise ``MaskwiseError`` if tokens see others by other means than attention.

    Recurrent layers and convolutions read from left to right, whatever attention does.
    """
    with _without_attention(model):
        moved = _moved(model, at=0, shown=slice(1, None))
    if moved.any():
        raise MaskwiseError(
            f"{type(model).__name__} reads other tokens by more than transformers' attention, such "
            "as recurrent layers, which may read earlier tokens only",
            got=model.config.model_type,
            allowed="a model in which this attention alone reads other tokens",
            do="use another family",
        )


def small_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of a model of the same family with few layers and tokens."""
    fields = config.to_dict()
    fields |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    fields |= {"vocab_size": SMALL_VOCABULARY, "num_hidden_layers": 2}
    if fields.get("layer_types"):
        # One layer of each kind.
        fields["layer_types"] = [*dict.fromkeys(fields["layer_types"])]
        fields["num_hidden_layers"] = len(fields["layer_types"])
    try:
        return type(config).from_dict(fields)
    except Exception as error:  # configurations validate their fields, and may raise anything
        raise MaskwiseError(
            f"cannot build a small {config.model_type} model, to see what it reads",
            got=first_line(error),
            do="use another family",
        ) from None


@torch.no_grad()
def _moved(model: PreTrainedModel, *, at: int = -1, shown: slice = slice(0, -1)) -> Tensor:
    """Return whether the states of the ``shown`` tokens change with the token ``at`` a place."""
    size = min(model.config.vocab_size, SMALL_VOCABULARY)
    ids = torch.arange(size - TOKENS - 1, size - 1).repeat(2, 1).to(model.device)
    ids[1, at] = size - 1
    training = model.training
    model.eval()
    states = encoder_of(model)(input_ids=ids, use_cache=False).last_hidden_state
    model.train(training)
    return (states[0] != states[1]).any(-1)[shown]


@contextmanager
def _without_attention(model: PreTrainedModel) -> Iterator[None]:
    """A context in which attention returns 0."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    name = "maskwise-none"

    def nothing(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any):
        # (B, H, L, D) becomes (B, L, H, D). Values may be narrower than queries.
        return query.new_zeros(*query.transpose(1, 2).shape[:3], value.shape[-1]), None

    AttentionInterface.register(name, nothing)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    usual = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def _version() -> str:
    import transformers

    return transformers.__version__
