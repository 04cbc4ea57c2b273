"""Attention in both directions: an encoder from a decoder."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from maskwise.base.errors import MaskwiseError
from maskwise.changes.base import Change, Changed, TrainingText
from maskwise.models.decoders import (
    READ_BY,
    is_decoder,
    require_attention_alone,
    require_sees_later,
    small_config,
)
from maskwise.models.loading import new_model
from maskwise.text.changed import ChangedTokens, Origins

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

MASK, BLANK = "<mask>", "_"
"""A new mask token, and the text whose row it begins with."""


class Bidirectional(Change):
    """Let the tokens of a decoder see later tokens: ``bidirectional()``.

    Weights stay as they are, so the model has to be trained afterwards (objective ``mntp``). A
    tokenizer without a mask token gets one, whose row begins as that of "_" (as the mean of all
    rows, if it cannot read "_"); without a padding token, it pads with its end token.

    Source: BehnamGhader et al., LLM2Vec: Large Language Models Are Secretly Powerful Text Encoders,
    2024 (arXiv 2404.05961), sections 2.1 and 3.
    """

    def tokens(
        self, tokenizer: PreTrainedTokenizerFast, documents: TrainingText | None
    ) -> ChangedTokens:
        longer = copy.deepcopy(tokenizer)
        pieces = _give_mask(longer)
        facts = {"what": f"{len(pieces)} new mask token", "tokens": [len(tokenizer), len(longer)]}
        return ChangedTokens(longer, Origins(None, pieces), facts)

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Changed:
        config = model.config
        if not is_decoder(config):
            raise MaskwiseError(
                f"bidirectional: {type(model).__name__} is no decoder",
                got=config.model_type,
                allowed="a family of transformers that predicts next tokens, such as llama",
                do="leave out bidirectional",
            )
        config.is_causal = False
        config.read_by = f"transformers>={READ_BY}"
        require_sees_later(model)
        require_attention_alone(model)
        what = f"tokens see later tokens (config.is_causal: false; transformers {READ_BY} or later)"
        return Changed(model, {"what": what})

    def check(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast
    ) -> PreTrainedConfig:
        changed = copy.deepcopy(config)
        if is_decoder(config):
            self(new_model(small_config(config), seed=0), tokenizer)
        else:
            return super().check(changed, tokenizer)
        _give_mask(tokenizer)
        changed.is_causal = False
        changed.vocab_size = max(changed.vocab_size, len(tokenizer))
        return changed


def _give_mask(tokenizer: PreTrainedTokenizerFast) -> dict[int, tuple[int, ...]]:
    """Give a tokenizer a mask token and a padding token, in place.

    Returns:
        The id of a new mask token, and the ids with whose mean its row begins.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.mask_token is not None:
        return {}
    blank = tokenizer(BLANK, add_special_tokens=False)["input_ids"]
    # A tokenizer that cannot read "_" gets the mean of all rows.
    blank = blank or range(len(tokenizer))
    tokenizer.add_special_tokens({"mask_token": MASK})
    return {tokenizer.mask_token_id: tuple(blank)}
