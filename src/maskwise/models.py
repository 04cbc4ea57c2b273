"""Build and load models; the only module that names transformers' model classes.

Code in a checkpoint is never executed: neither remote code nor pickled weights. A checkpoint that
lacks weights of its encoder is refused, because transformers would silently initialise the missing
weights. Weights are loaded in float32, because training in half precision fails silently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from maskwise.errors import MaskwiseError, first_line, require_known, unknown_name, whole_number
from maskwise.families import (
    EncoderDecoder,
    Kind,
    adapter_of,
    check_fit,
    encoder_of,
    require_kind,
    start_token,
)
from maskwise.folders import FilesState, files_state
from maskwise.keys import fold
from maskwise.starts import Start, find_start, find_weights, resolve_start
from maskwise.weights import check_counts, check_finite, check_size, quieten

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_HEAD = "the checkpoint has no MLM head: a new one is made; warm it with training.freeze: encoder"
"""The warning if a new head is trained together with the encoder."""

AutoClass: TypeAlias = Any
"""One of transformers' auto classes, which have no common type."""

Fields: TypeAlias = dict[str, Any]
"""Fields of a configuration."""

LANGUAGE_MODELS: Mapping[Kind, AutoClass] = {
    "encoder": AutoModelForMaskedLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}
"""The classes for pre-training."""

ARCHITECTURES: Mapping[Kind, Mapping[str, str]] = {
    "encoder": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "encoder-decoder": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
"""The classes for pre-training, keyed by kind and ``model_type``."""
_USES: Mapping[Kind, str] = {"encoder": "masked language modelling", "encoder-decoder": "denoising"}

TASK_MODELS: Mapping[str, AutoClass] = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "multiple-choice": AutoModelForMultipleChoice,
    "masked-lm": AutoModelForMaskedLM,
    "embedding": AutoModel,
    "seq2seq": AutoModelForSeq2SeqLM,
}
"""The classes for tasks, keyed by head: ``masked-lm`` is the MLM head, ``embedding`` no head."""

TASK_KINDS: Mapping[str, tuple[Kind, str]] = {
    "embedding": ("encoder", "an embedding of texts"),
    "masked-lm": ("encoder", "a task that is answered at masks"),
    "seq2seq": ("encoder-decoder", "a task that generates"),
}
"""The kind of model that a head needs, and how errors describe the use of this head."""


def new_config(
    architecture: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    kind: Kind = "encoder",
    **fields: Any,
) -> PreTrainedConfig:
    """A configuration that fits a tokenizer and a row length.

    Args:
        architecture: a transformers ``model_type`` with an MLM head, such as bert or modernbert, or
            of an encoder–decoder, such as bart or t5.
        kind: the kind of model that is needed.
        fields: anything the configuration takes, such as hidden_size.

    Raises:
        MaskwiseError: an unknown architecture, an architecture of a different kind, or a field that
            the configuration does not have.
    """
    if architecture in CONFIG_MAPPING:
        require_kind(AutoConfig.for_model(architecture), kind, use=_USES[kind])
    require_known("architecture", architecture, ARCHITECTURES[kind])
    check_counts(fields)
    plain = AutoConfig.for_model(architecture)
    for name in fields:
        if not hasattr(plain, name):
            known = [name for name in plain.to_dict() if not name.startswith("_")]
            raise unknown_name(f"{architecture} model setting", name, known)
    family = adapter_of(plain)
    given = _ids_of(tokenizer)
    if hasattr(plain, "mask_token_id"):  # ESM reads it; its default may be a different token
        given["mask_token_id"] = tokenizer.mask_token_id
    plain.pad_token_id = tokenizer.pad_token_id
    # Some families fail with very few positions.
    positions = max(length + family.first_position(plain), 8)
    if isinstance(family, EncoderDecoder):
        # Targets with only masked spans have a separator per span, so may be longer than the text.
        positions *= 2
        given["decoder_start_token_id"] = given[f"{family.starts_with}_token_id"]
        if hasattr(plain, "forced_eos_token_id"):  # BART's default is </s> in BART's vocabulary
            given["forced_eos_token_id"] = given["eos_token_id"]
    if hasattr(plain, "max_position_embeddings"):
        given["max_position_embeddings"] = positions
    for part in plain.sub_configs:  # T5Gemma configures its encoder and its decoder separately
        fields[part] = {**_ids_of(tokenizer), **fields.get(part, {})}
    given |= fields
    set_fields = {name: value for name, value in given.items() if value is not None}
    try:
        return AutoConfig.for_model(architecture, **set_fields)
    except Exception as error:  # configurations validate themselves, and may raise anything
        raise MaskwiseError(f"cannot build the {architecture} model as set: {error}") from None


def _ids_of(tokenizer: PreTrainedTokenizerBase) -> Fields:
    """The fields of a configuration that follow from its tokenizer."""
    first = tokenizer.bos_token_id
    last = tokenizer.eos_token_id
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "bos_token_id": tokenizer.cls_token_id if first is None else first,
        "eos_token_id": tokenizer.sep_token_id if last is None else last,
    }


def config_of(fields: Fields) -> PreTrainedConfig:
    """Make a configuration from the fields of its ``to_dict``.

    Raises:
        ValueError: an unknown ``model_type``, or too many layers or classes.
    """
    check_counts(fields)
    return AutoConfig.for_model(**fields)


def share_encoder(model: PreTrainedModel, other: PreTrainedModel) -> None:
    """Share one encoder between two models: ``other``'s module, with the weights of ``model``."""
    # Not strict, because only a task's model may have a pooler.
    encoder_of(other).load_state_dict(encoder_of(model).state_dict(), strict=False)
    setattr(model, model.base_model_prefix, encoder_of(other))
    model.tie_weights()


def check_start(config: PreTrainedConfig, tokens: int) -> None:
    """Check that a model can be built from a configuration, without allocating memory.

    Raises:
        MaskwiseError: the model cannot be built; too many tokens or weights; no start token.
    """
    check_fit(config, tokens, do="use the model's own tokenizer, or a larger vocab_size")
    if adapter_of(config).kind == "encoder-decoder":
        start_token(config)
    check_size(empty_model(config))


def empty_model(config: PreTrainedConfig, auto: AutoClass = None) -> PreTrainedModel:
    """A model on the meta device; ``auto`` as for ``build_model``.

    Raises:
        MaskwiseError: no model can be built from the configuration.
    """
    try:
        with torch.device("meta"):
            return (auto or language_model(config)).from_config(config, trust_remote_code=False)
    except Exception as error:  # wrong settings may raise anything, even ZeroDivisionError
        raise MaskwiseError(
            f"cannot build the {config.model_type} model as set: {first_line(error)}"
        ) from None


def weights_of(config: PreTrainedConfig) -> int:
    """The number of weights in a language model, without allocating the weights."""
    return empty_model(config).num_parameters()


def language_model(config: PreTrainedConfig) -> AutoClass:
    """Transformers' class for a language model with this configuration."""
    return LANGUAGE_MODELS[adapter_of(config).kind]


def build_model(config: PreTrainedConfig, auto: AutoClass = None) -> PreTrainedModel:
    """A model with weights from torch's current generator.

    Args:
        auto: the class of the model; if None, the class for language models.
    """
    check_size(empty_model(config, auto))
    return (auto or language_model(config)).from_config(config, trust_remote_code=False)


def new_model(
    config: PreTrainedConfig, *, seed: int, log_unigram: Tensor | None = None
) -> PreTrainedModel:
    """A language model with fresh weights.

    Args:
        seed: the initialisation seed.
        log_unigram: (V,) the initial output bias. Without it, a model spends its first thousand
            steps on learning token frequencies.

    Raises:
        MaskwiseError: no model can be built from the configuration, or it does not fit into memory.
    """
    # Fresh weights depend on the seed alone.
    torch.manual_seed(fold(seed, 0x1217))
    model = build_model(config)
    _start_bias(model, log_unigram)
    return model


def _start_bias(model: PreTrainedModel, log_unigram: Tensor | None) -> None:
    if log_unigram is None:
        return
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is None and hasattr(model, "lm_head"):  # ESM's bias is in the head
        bias = getattr(model.lm_head, "bias", None)
    if bias is None and hasattr(model, "final_logits_bias"):  # BART's bias (1, V) is not trained
        bias = model.get_buffer("final_logits_bias")[0]
        # Tokens that only the decoder writes, such as separators, get the mean bias.
        log_unigram = torch.where(log_unigram == log_unigram.min(), log_unigram.mean(), log_unigram)
    if bias is not None:
        with torch.no_grad():
            bias[: len(log_unigram)] = log_unigram


def load_config(name: Start, *, kind: Kind | None = "encoder") -> PreTrainedConfig:
    """The configuration of a pre-trained model of ``kind`` (any if None); see ``find_start``."""
    if kind is not None:
        require_known("kind of model", kind, _USES)
    config = _read_config(name)
    if kind:
        require_kind(config, kind, use=f"{_USES[kind]} with {str(name)!r}")
    return config


def load_model(
    name: Start,
    *,
    kind: Kind | None = "encoder",
    seed: int | None = None,
    log_unigram: Tensor | None = None,
    config: PreTrainedConfig | None = None,
) -> PreTrainedModel:
    """A pre-trained language model, in float32.

    Args:
        name: as for ``starts.find_start``.
        kind: the kind of model; if None, any kind.
        seed: the seed for a new head; if None, checkpoints without a head are refused.
        log_unigram: (V,) the initial output bias of a new head.
        config: replaces the checkpoint's configuration.

    Raises:
        MaskwiseError: nothing to load; a different kind of model; a damaged checkpoint; neither a
            head nor a seed.
    """
    if seed is not None:
        seed = whole_number("seed", seed)
    auto = language_model(load_config(name, kind=kind))
    with without_advice(), torch.random.fork_rng():
        torch.manual_seed(fold(seed or 0, 0x1217))
        how = {} if config is None else {"config": config}
        model, lacking = _load_whole(auto, name, **how)
    if lacking and seed is None:
        raise MaskwiseError(
            f"{str(name)!r} has no MLM head, and a random head cannot predict",
            do="train one first: maskwise pretrain with training.freeze=encoder",
        )
    if lacking:
        _start_bias(model, log_unigram)
        quieten(model, lacking)
    return model


def has_head(name: str) -> bool:
    """Whether a checkpoint has a prediction head."""
    # Cached, keyed by the files' state: reading is slow, and a study's checks ask for every arm.
    return _has_head(name, files_state(Path(resolve_start(name))))


@cache
def _has_head(name: str, state: FilesState) -> bool:
    auto = language_model(load_config(name, kind=None))
    with without_advice():
        return not _lacking(auto, name, find_weights(name))


def task_config(start: Start | PreTrainedConfig, labels: Fields) -> PreTrainedConfig:
    """The configuration of a checkpoint, or a given configuration, with a task's labels."""
    if isinstance(start, PreTrainedConfig):
        config = type(start).from_dict({**start.to_dict(), **labels})
    else:
        config = _read_config(start, **labels)
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean"  # ModernBERT's [CLS] is untrained
    return config


def load_task_model(
    name: Start | None, config: PreTrainedConfig, *, head: str, seed: int
) -> PreTrainedModel:
    """A checkpoint in float32 with a task head; the head is new if none of that size is stored.

    Args:
        name: as for ``starts.find_start``; None for random weights.
        config: see ``task_config``.
        head: a key of ``TASK_MODELS``.
        seed: the seed for new weights.

    Raises:
        MaskwiseError: the family has no such head; a damaged or incomplete checkpoint.
    """
    auto = TASK_MODELS[head]
    if head in TASK_KINDS:
        kind, use = TASK_KINDS[head]
        require_kind(config, kind, use=use)
    with without_advice(), torch.random.fork_rng():
        torch.manual_seed(fold(seed, 0x4EAD))
        if name is None:
            return build_model(config, auto)
        return _load_whole(auto, name, config=config)[0]


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Silence transformers' progress bars and warnings about new heads; maskwise has its own."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _load_whole(auto: AutoClass, name: Start, **how: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model with a complete encoder, and the names of other weights that are missing."""
    where = find_weights(name)
    lacking = _lacking(auto, name, where, **how)
    model = _weights(auto, name, where, dtype=torch.float32, **how)[0]
    state = model.state_dict()
    for key in lacking:
        if key.endswith("bias"):  # some families leave biases of a new head uninitialised
            state[key].zero_()
    check_finite(state, name)
    return model, lacking


def _lacking(auto: AutoClass, name: Start, where: str, **how: Any) -> list[str]:
    """The names of the weights outside of the encoder that a checkpoint lacks.

    Reads only names and shapes, because the configuration may describe a model of any size.

    Raises:
        MaskwiseError: the encoder lacks weights, shapes differ from the configuration, or the model
            does not fit into memory.
    """
    # The context also applies to tensors that a model computes itself, such as position ids.
    with torch.device("meta"):
        model, info = _weights(auto, name, where, device_map="meta", **how)
    # An encoder–decoder is pre-trained as a whole, with its head.
    kind = adapter_of(model.config).kind
    body = encoder_of(model) if kind == "encoder" else model
    # Tied weights have two names, so tensors are compared instead of names.
    encoder = set(body.state_dict(keep_vars=True).values())
    inside = {key for key, t in model.state_dict(keep_vars=True).items() if t in encoder}
    missing = set(info["missing_keys"])
    do = "use a complete checkpoint"
    # A pooler is in the encoder, but belongs to the head: masked language models have none.
    holes = sorted(key for key in inside & missing if "pooler" not in key.split("."))
    if holes:
        raise MaskwiseError(
            f"{str(name)!r} lacks weights of its {kind}",
            got=f"no {holes[0]}, {len(holes)} in all",
            do=do,
        )
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        if key in inside or auto in LANGUAGE_MODELS.values():
            raise MaskwiseError(
                f"the weights of {str(name)!r} do not fit its config.json",
                got=f"{key} of {tuple(stored)} for {tuple(wanted)}",
                do=do,
            )
    check_size(model)
    return sorted(missing)


@torch.inference_mode(False)  # in inference mode, models on the meta device cannot tie weights
def _weights(
    auto: AutoClass, name: Start, where: str, **how: Any
) -> tuple[PreTrainedModel, Fields]:
    how |= {"output_loading_info": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
    with _loading(name):
        return auto.from_pretrained(where, trust_remote_code=False, **how)


def _read_config(name: Start, **fields: Any) -> PreTrainedConfig:
    where = find_start(name)
    with _loading(name):
        check_counts(PreTrainedConfig.get_config_dict(where)[0])
        return AutoConfig.from_pretrained(where, trust_remote_code=False, **fields)


@contextlib.contextmanager
def _loading(name: Start) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged files raise errors from json, safetensors, transformers
        raise MaskwiseError(
            f"cannot load a model from {str(name)!r}: {first_line(error)}"
        ) from None
