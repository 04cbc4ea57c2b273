"""Build the model that ``ModelSettings`` describe: its configuration, or the model with weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from maskwise.base.constants import Kind
from maskwise.base.errors import MaskwiseError
from maskwise.changes import changed_model
from maskwise.models.decoders import is_decoder
from maskwise.models.families import check_fit, require_kind
from maskwise.models.loading import (
    empty_model,
    load_config,
    load_model,
    new_config,
    new_model,
    require_kind_and_head,
    with_fields,
)
from maskwise.text.changed import Origins
from maskwise.training.settings import ModelSettings, attention_dropout_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


def config_from(
    settings: ModelSettings, tokenizer: PreTrainedTokenizerFast, length: int, *, kind: Kind
) -> PreTrainedConfig:
    """Return the configuration of the pre-trained model, or a new one for ``length`` tokens.

    Raises:
        MaskwiseError: attention dropout is set, but the architecture has no such setting; or a
            setting cannot be changed in a pre-trained model.
    """
    if settings.pretrained:
        config = with_fields(_config_of_start(settings, kind), settings.settings)
    else:
        config = new_config(
            settings.architecture,
            tokenizer,
            length,
            kind=kind,
            **settings.settings,
        )
    if settings.changed_dropout is not None:
        usual = attention_dropout_of(config)
        if usual is None:
            raise MaskwiseError(
                f"{config.model_type} has no separate attention dropout",
                do="remove model.attention_dropout",
            )
        # T5Gemma's layers read nested configurations, so set these too. A nested configuration
        # of ESM may be None.
        parts = [getattr(config, name) for name in config.sub_configs]
        for part in filter(None, [config, *parts]):
            setattr(part, usual[0], settings.changed_dropout)
    return config


def _config_of_start(settings: ModelSettings, kind: Kind) -> PreTrainedConfig:
    """Return the configuration of the pre-trained model, which is of this kind or may become so.

    A change may make it so, and a decoder is trained by objectives that refuse what they cannot
    train (``objectives.base.require_fitting_head``).
    """
    assert settings.pretrained is not None
    config = load_config(settings.pretrained, kind=None)
    if not settings.changes and not is_decoder(config):
        require_kind_and_head(config, kind, name=settings.pretrained)
    return config


def changed_config(
    settings: ModelSettings, tokenizer: PreTrainedTokenizerFast, length: int, *, kind: Kind
) -> PreTrainedConfig | None:
    """Return the configuration if a checkpoint's own is not enough; otherwise None.

    The result is None for a pre-trained model whose configuration these settings do not change.
    """
    if settings.pretrained and not settings.settings and settings.attention_dropout is None:
        return None
    return config_from(settings, tokenizer, length, kind=kind)


def empty_model_from(settings: ModelSettings, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model without memory for its weights, which is enough to count the weights."""
    network = empty_model(config)
    if settings.lora:
        settings.lora.add(network, seed=0)
    return network


def model_from(
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    *,
    kind: Kind,
    seed: int,
    log_unigram: Tensor,
    origins: Sequence[Origins] = (),
    causal: bool = False,
) -> PreTrainedModel:
    """Return the model to train.

    Args:
        tokenizer: the tokenizer.
        length: the number of tokens in a row.
        kind: the required kind of model.
        seed: the seed of new weights.
        log_unigram: (V,) log frequencies of tokens, for the bias of a new head.
        origins: for each of ``model.changes`` that changes tokens, from which rows theirs are made.
        causal: whether a decoder may read earlier tokens only.
    """
    bias = log_unigram if settings.unigram_bias else None
    config = config_from(settings, tokenizer, length, kind=kind)
    if settings.pretrained:
        network = load_model(
            settings.pretrained,
            kind=None,
            seed=seed,
            log_unigram=bias,
            config=config,
            changed=partial(
                changed_model, changes=settings.steps, origins=origins, tokenizer=tokenizer
            ),
            causal=causal,
        )
        require_kind(network.config, kind, use="training")
        check_fit(network.config, len(tokenizer), do="set tokenizer.name to the model's tokenizer")
    else:
        network = new_model(config, seed=seed, log_unigram=bias)
    if settings.lora:
        settings.lora.add(network, seed=seed)
    return network
