"""Models to train: one from a configuration, or a pre-trained one. Never with remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.keys import fold


def new_config(architecture: str, tokenizer: Any, length: int, **fields: Any) -> Any:
    """A configuration that fits a tokenizer and a row length.

    Args:
        architecture: a transformers ``model_type`` with an MLM head, such as bert or modernbert.
        fields: anything the configuration takes, such as hidden_size.

    Raises:
        MaskwiseError: an unknown architecture, or a field that its configuration does not have.
    """
    if architecture not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise unknown_name("architecture", architecture, MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    plain = AutoConfig.for_model(architecture)
    strange = [name for name in fields if not hasattr(plain, name)]
    if strange:
        known = [name for name in plain.to_dict() if not name.startswith("_")]
        raise unknown_name(f"{architecture} model setting", strange[0], known)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    for name, other in (("bos", "cls"), ("eos", "sep")):
        own = getattr(tokenizer, f"{name}_token_id")
        special[f"{name}_token_id"] = special[f"{other}_token_id"] if own is None else own
    # RoBERTa-like models count positions from pad + 1.
    positions = length + (
        tokenizer.pad_token_id + 1 if architecture in ("roberta", "xlm-roberta", "mpnet") else 0
    )
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": max(positions, 8)}
    given = {**sizes, **special, **fields}
    return AutoConfig.for_model(architecture, **{k: v for k, v in given.items() if v is not None})


def load_config(folder: str | Path) -> Any:
    """The configuration of a pre-trained model, from a folder or a hub id."""
    return _load(AutoConfig, folder)


def load_model(folder: str | Path) -> PreTrainedModel:
    """A pre-trained masked language model, from a folder or a hub id."""
    return _load(AutoModelForMaskedLM, folder)


def _load(auto: Any, folder: str | Path) -> Any:
    try:
        return auto.from_pretrained(folder)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise MaskwiseError(f"cannot load a masked language model from {str(folder)!r}: {first}") from None


def check_fit(config: Any, tokens: int, *, do: str) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings; ``do`` says what to do about it."""
    if tokens > config.vocab_size:
        got, allowed = f"{tokens} tokens", f"≤ {config.vocab_size}"
        raise MaskwiseError("tokenizer and model do not fit", got=got, allowed=allowed, do=do)


def check_start(config: Any, tokens: int) -> None:
    """Refuse a configuration that no model can be built from, or that the tokenizer does not fit. Costs no memory.

    Raises:
        MaskwiseError: in one line, what transformers or torch say of it.
    """
    check_fit(config, tokens, do="use the model's own tokenizer, or a larger vocab_size")
    try:
        with torch.device("meta"):
            AutoModelForMaskedLM.from_config(config)
    except Exception as error:  # assertions, divisions, look-ups: whatever an architecture checks itself by
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MaskwiseError(f"these model settings make no {config.model_type} model: {first}") from None


def new_model(config: Any, *, seed: int, log_unigram: Tensor | None = None) -> PreTrainedModel:
    """A model with fresh weights.

    Args:
        seed: of the initialisation.
        log_unigram: (V,) start values of the output bias. Without them a model spends its first thousand
            steps learning how frequent each token is.
    """
    torch.manual_seed(fold(seed, 0x1217))
    model = AutoModelForMaskedLM.from_config(config)
    head = model.get_output_embeddings()
    if log_unigram is not None and getattr(head, "bias", None) is not None:
        with torch.no_grad():
            head.bias[: len(log_unigram)] = log_unigram
    return model
