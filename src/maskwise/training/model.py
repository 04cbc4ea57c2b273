"""Models to train: one from a configuration, or a pre-trained one. Never with remote code.

A pre-trained one is always loaded in float32, whatever it is stored in (transformers takes the stored type, and
training in half precision goes wrong quietly). Many an encoder comes without a masked-language-model head: it gets a
new one if that is to be trained, and is refused where the head would be used as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.keys import fold
from maskwise.starts import find_start

QUIET = 0.1
"""Start of the weight of a new head's layer norm. At 1 a random head says noise, as loudly as a trained one speaks: 0.4
nats above word frequencies on a sentence encoder (recipes/continual-minilm.yaml)."""

NO_HEAD = "the checkpoint has no MLM head: a new one is made; warm it with training.freeze: encoder"
"""What users are told where a new head is trained together with the encoder."""


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
    positions = length + first_position(architecture, tokenizer.pad_token_id)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": max(positions, 8)}
    given = {**sizes, **special, **fields}
    try:
        return AutoConfig.for_model(architecture, **{k: v for k, v in given.items() if v is not None})
    except Exception as error:  # configurations check themselves, with errors of many kinds
        raise MaskwiseError(f"these model settings make no {architecture} model: {error}") from None


def load_config(name: str | Path) -> Any:
    """The configuration of a pre-trained model; ``name`` as for ``starts.find_start``."""
    return _load(AutoConfig, name)


def load_model(
    name: str | Path, *, seed: int | None = None, log_unigram: Tensor | None = None
) -> PreTrainedModel:
    """A pre-trained masked language model, in float32.

    Args:
        name: as for ``starts.find_start``.
        seed: of a new head, for a checkpoint that has none. None: such a checkpoint is refused.
        log_unigram: (V,) start values of a new head's output bias.

    Raises:
        MaskwiseError: nothing to load; an encoder that is not whole; no head, and no seed for one.
    """
    with without_advice(), torch.random.fork_rng():
        torch.manual_seed(fold(seed or 0, 0x1217))
        model, lacking = _load_counted(name, dtype=torch.float32)
    if lacking and seed is None:
        what = f"{str(name)!r} has no MLM head, and a random one says nothing"
        raise MaskwiseError(what, do="train one first: maskwise pretrain with training.freeze=encoder")
    if lacking:
        _start_bias(model, log_unigram)
        _quieten(model, lacking)
    return model


@cache
def has_head(name: str) -> bool:
    """Whether a checkpoint can fill masks as it is. Reads the names of its weights only."""
    with without_advice():
        return not _load_counted(name, device_map="meta")[1]


def _load_counted(name: str | Path, **how: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model, and the weights of its head that the checkpoint lacks."""
    model, info = _load(AutoModelForMaskedLM, name, output_loading_info=True, **how)
    encoder = {f"{model.base_model_prefix}.{key}" for key in model.base_model.state_dict()}
    holes = sorted(encoder & set(info["missing_keys"]))
    if holes:
        what = f"{str(name)!r} lacks weights of its encoder"
        raise MaskwiseError(what, got=f"no {holes[0]}, {len(holes)} in all", do="take a whole checkpoint")
    return model, sorted(info["missing_keys"])


def _load(auto: Any, name: str | Path, **how: Any) -> Any:
    where = find_start(name)
    try:
        return auto.from_pretrained(where, **how)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise MaskwiseError(f"cannot load a masked language model from {str(name)!r}: {first}") from None


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Loading draws a bar, and warns of a head that is new: what becomes of it is said elsewhere, in one line."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def freeze_encoder(model: Any) -> None:
    """From now on only what stands outside ``model.base_model`` is trained.

    An output matrix that is tied to the embeddings is theirs, and stays as it is; its bias is the head's.
    """
    for parameter in model.base_model.parameters():
        parameter.requires_grad_(False)


def check_fit(config: Any, tokens: int, *, do: str) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings; ``do`` says what to do about it."""
    if tokens > config.vocab_size:
        got, allowed = f"{tokens} tokens", f"≤ {config.vocab_size}"
        raise MaskwiseError("tokenizer and model do not fit", got=got, allowed=allowed, do=do)


def first_position(architecture: str, pad: int) -> int:
    """The number of a row's first position: RoBERTa-like models count from pad + 1."""
    return pad + 1 if architecture in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0


def most_tokens(config: Any) -> int:
    """How many tokens a row may have, special ones included; very many where nothing limits them."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
    return positions - first_position(config.model_type, config.pad_token_id)


def check_room(config: Any, length: int, *, what: str) -> None:
    """Refuse rows that are longer than the positions of a model; ``what`` names the setting."""
    room = most_tokens(config)
    if length > room:
        raise MaskwiseError(f"{what} is more than the model's positions", got=length, allowed=f"≤ {room}")


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
    _start_bias(model, log_unigram)
    return model


def _start_bias(model: PreTrainedModel, log_unigram: Tensor | None) -> None:
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if log_unigram is not None and bias is not None:
        with torch.no_grad():
            bias[: len(log_unigram)] = log_unigram


def _quieten(model: PreTrainedModel, lacking: list[str]) -> None:
    """Let a new head begin near its bias: ``QUIET``. ``lacking``: names of the weights that are new."""
    with torch.no_grad():
        for name in lacking:
            if name.endswith("weight") and (weight := model.get_parameter(name)).ndim == 1:  # of a norm
                weight.fill_(QUIET)
