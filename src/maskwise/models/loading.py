"""Build and load models. Only this module uses transformers' model classes.

Functions import transformers, and the module does not, because it takes almost as long to import as
torch, and a command that refuses a recipe does not need it.

Code in a checkpoint (remote code or pickled weights) is never executed. If weights of the encoder
are missing in a checkpoint, it is refused, because transformers would silently use random weights.
Weights are loaded in float32, because training in half precision can fail silently.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from maskwise.base.constants import is_rate
from maskwise.base.devices import remembered, versions
from maskwise.base.errors import (
    MaskwiseError,
    finite_number,
    first_line,
    require_known,
    unknown_name,
    whole_number,
)
from maskwise.base.folders import FilesState, files_state
from maskwise.masking.draws import fold
from maskwise.models.decoders import is_causal, is_decoder, require_sees_later
from maskwise.models.families import (
    ENCODER_DECODERS,
    ENCODERS,
    POSITIONS,
    Decoder,
    EncoderDecoder,
    Kind,
    adapter_of,
    check_fit,
    encoder_of,
    output_layer,
    require_both_directions,
    require_kind,
    start_token,
)
from maskwise.models.starts import CONFIG, Start, find_start, find_weights, resolve_start
from maskwise.models.weights import Size, check_counts, check_finite, check_size, quieten

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

NO_HEAD = "the checkpoint has no MLM head; warm up the new head with training.freeze: encoder"
"""The warning if a new head is trained together with the encoder."""

LISTS_OF_IDS = (
    *("bad_words_ids", "force_words_ids", "forced_decoder_ids", "sequence_bias"),
    *("suppress_tokens", "begin_suppress_tokens"),
)
"""Fields of transformers' configuration for writing text."""

AutoClass: TypeAlias = Any
"""One of transformers' auto classes, which have no common type."""

Fields: TypeAlias = dict[str, Any]
"""The fields of a configuration, by name."""

LANGUAGE_MODELS: Mapping[Kind, str] = {"encoder": "masked-lm", "encoder-decoder": "seq2seq"}
"""The heads for pre-training, by the kind of model."""

USED_BY_ALL = {"chunk_size_feed_forward", "tie_word_embeddings", "is_encoder_decoder"}
"""The fields of transformers' base configuration that a setting of a model may change."""

UNDECLARED = {
    "deberta-v2": (
        *("position_buckets", "share_att_key", "norm_rel_ebd", "embedding_size"),
        *("conv_kernel_size", "conv_groups", "conv_act"),
    ),
}
"""Fields that the code of a family reads although its class of configurations has no default for
them. DeBERTa-v3 has most of these in its config.json."""

_USES: Mapping[Kind, str] = {"encoder": "masked language modelling", "encoder-decoder": "denoising"}

TASK_MODELS: Mapping[str, str] = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "embedding": "AutoModel",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
"""The names of transformers' auto classes, keyed by head; ``embedding`` means no head."""

TASK_KINDS: Mapping[str, tuple[Kind, str]] = {
    "embedding": ("encoder", "an embedding of texts"),
    "masked-lm": ("encoder", "a task that is answered at masks"),
    "seq2seq": ("encoder-decoder", "a task that generates"),
}
"""The kind of model that a head needs, and a description of its use for error messages."""


def auto_class(head: str) -> AutoClass:
    """Return transformers' auto class of models with a head, which is a key of ``TASK_MODELS``."""
    import transformers

    return getattr(transformers, TASK_MODELS[head])


def architectures(kind: Kind) -> Mapping[str, str]:
    """Return the names of the model classes for pre-training, keyed by ``model_type``."""
    from transformers.models.auto import modeling_auto

    if kind == "encoder":
        return modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES


def new_config(
    architecture: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    kind: Kind = "encoder",
    **fields: Any,
) -> PreTrainedConfig:
    """Return a configuration that fits a tokenizer and a row length.

    Args:
        architecture: transformers' ``model_type`` of an encoder with an MLM head, such as bert or
            modernbert, of an encoder–decoder, such as bart or t5, or of a decoder, such as llama,
            which counts as an encoder and is trained by objective ``clm`` alone.
        kind: the required kind of model.
        fields: fields of the configuration, such as hidden_size.

    Raises:
        MaskwiseError: the architecture is unknown or of a different kind, or the configuration does
            not have a field.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if architecture in CONFIG_MAPPING:
        require_kind(AutoConfig.for_model(architecture), kind, use=_USES[kind])
    decodes = architecture in CONFIG_MAPPING and is_decoder(AutoConfig.for_model(architecture))
    if not (decodes and kind == "encoder"):
        require_known("architecture", architecture, architectures(kind))
    check_counts(fields)
    plain = AutoConfig.for_model(architecture)
    _require_fields(plain, fields)
    family = adapter_of(plain)
    given = _ids_of(tokenizer)
    if family.pad is not None and tokenizer.pad_token_id != family.pad:
        raise MaskwiseError(
            f"a new {architecture} needs a tokenizer whose padding token has the id {family.pad}",
            got=tokenizer.pad_token_id,
            do="set tokenizer.name to that of a published model of this family, or use another "
            "model.architecture, such as roberta",
        )
    if hasattr(plain, "mask_token_id"):  # ESM reads this id, whose default may be another token
        given["mask_token_id"] = tokenizer.mask_token_id
    plain.pad_token_id = tokenizer.pad_token_id
    # Some families fail with very few positions.
    positions = max(length + family.first_position(plain), 8)
    if isinstance(family, EncoderDecoder):
        # Targets may be longer than the text, because every masked span adds a separator.
        positions *= 2
        given["decoder_start_token_id"] = given[f"{family.starts_with}_token_id"]
        if hasattr(plain, "forced_eos_token_id"):  # the default is </s> in BART's vocabulary
            given["forced_eos_token_id"] = given["eos_token_id"]
    if hasattr(plain, POSITIONS):
        given[POSITIONS] = positions
    for name in ("max_encoder_position_embeddings", "max_decoder_position_embeddings"):
        if hasattr(plain, name):  # LED's encoder pads texts to its window, so it keeps its default
            given[name] = max(getattr(plain, name), positions)
    size = {} if fields.get("vocab_size") is None else {"vocab_size": fields["vocab_size"]}
    halves: dict[str, Mapping[str, Any]] = {}
    for part in plain.sub_configs:  # T5Gemma configures its encoder and its decoder separately
        own = fields.get(part, {})
        if not isinstance(own, Mapping):
            raise MaskwiseError(
                f"model setting {part} of {architecture} must be a mapping of settings", got=own
            )
        config = getattr(plain, part)
        if config is not None:  # as that of ESM may be
            _require_fields(config, own)
            halves[part] = own
        fields[part] = {**_ids_of(tokenizer), **size, **own}
    given |= fields
    set_fields = {name: value for name, value in given.items() if value is not None}
    try:
        made = AutoConfig.for_model(architecture, **set_fields)
    except Exception as error:  # configurations validate their fields, and may raise anything
        raise MaskwiseError(f"cannot build the {architecture} model: {error}") from None
    require_kind(made, kind, use=_USES[kind])
    for part, own in halves.items():
        _require_effect(made, part, own)
    return made


def _require_effect(made: PreTrainedConfig, part: str, fields: Mapping[str, Any]) -> None:
    """Raise ``MaskwiseError`` if the whole model has overwritten fields of its encoder or decoder.

    T5Gemma does so with rates of dropout, for example.
    """
    for name, value in fields.items():
        found = getattr(getattr(made, part), name)
        # A mapping, such as that of rotary embeddings, is completed.
        if found == value or isinstance(value, Mapping):
            continue
        do = f"leave out model.settings.{part}.{name}"
        if hasattr(made, name):
            do = f"set model.settings.{name}, which holds for encoder and decoder"
        raise MaskwiseError(
            f"model setting {part}.{name} of {made.model_type} has no effect",
            got=value,
            allowed=found,
            do=do,
        )


def _require_fields(config: PreTrainedConfig, fields: Mapping[str, Any]) -> None:
    """Raise ``MaskwiseError`` unless a model of this configuration uses all these fields."""
    from transformers import PreTrainedConfig

    # Every configuration has these fields, and maskwise does not use them or sets them itself.
    unused = set(PreTrainedConfig().to_dict()) - USED_BY_ALL
    undeclared = UNDECLARED.get(config.model_type, ())
    for name in fields:
        if name in undeclared:
            continue
        if name.startswith("_") or name in unused or not hasattr(config, name):
            known = []
            for field in {**config.to_dict(), **dict.fromkeys(undeclared)}:
                if not field.startswith("_") and field not in unused:
                    known.append(field)
            raise unknown_name(f"{config.model_type} model setting", name, known)


def known_fields(architecture: str, names: Iterable[str]) -> set[str]:
    """Return those of the names that are settings of an architecture; all of them for one that
    transformers does not know.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(architecture)
    except ValueError:
        return {*names}
    known = set()
    for name in names:
        with contextlib.suppress(MaskwiseError):
            _require_fields(config, {name: None})
            known.add(name)
    return known


def with_fields(config: PreTrainedConfig, fields: Fields) -> PreTrainedConfig:
    """Return the configuration of a pre-trained model with changed rates of dropout and of dropped
    layers. All other fields would need other weights, or would make the trained weights
    meaningless.

    Args:
        config: the configuration of the pre-trained model.
        fields: the fields to change. The parts of a model in two parts, such as T5Gemma, are
            changed alike.

    Raises:
        MaskwiseError: the model has no such field, or a field cannot be changed.
    """
    _require_fields(config, fields)
    changed = copy.deepcopy(config)
    rates = [name for name in config.to_dict() if is_rate(name)]
    for name, value in fields.items():
        if not is_rate(name):
            do = f"remove model.settings.{name}, or train a new model (model.pretrained=null)"
            if name == POSITIONS:
                do = f'for longer rows, model.changes=["positions({value})"]'
            raise MaskwiseError(
                f"a pre-trained model cannot change its {name}",
                got=value,
                allowed=f"rates of dropout ({', '.join(rates)})",
                do=do,
            )
        finite_number(f"model.settings.{name}", value, least=0, most=1)
        # A nested configuration of ESM may be None.
        parts = [getattr(changed, part) for part in changed.sub_configs]
        for part in filter(None, [changed, *parts]):
            if hasattr(part, name):
                setattr(part, name, value)
    return changed


def _ids_of(tokenizer: PreTrainedTokenizerBase) -> Fields:
    """Return the fields of a configuration that a tokenizer determines."""
    first = tokenizer.bos_token_id
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "bos_token_id": tokenizer.cls_token_id if first is None else first,
        "eos_token_id": end_token(tokenizer),
    }


def end_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id with which a text that a model writes ends; None without one."""
    last: int | None = tokenizer.eos_token_id
    return tokenizer.sep_token_id if last is None else last


def config_of(fields: Fields) -> PreTrainedConfig:
    """Make a configuration from the result of ``to_dict``.

    Raises:
        ValueError: the ``model_type`` is unknown, or there are too many layers or classes.
    """
    from transformers import AutoConfig

    check_counts(fields)
    return AutoConfig.for_model(**fields)


def check_start(config: PreTrainedConfig, tokens: int, *, loaded: bool) -> None:
    """Check, without allocating memory, that a model can be built and embeds ``tokens`` tokens.

    Args:
        config: the configuration of the model.
        tokens: the number of tokens of the tokenizer.
        loaded: whether the weights are loaded (``model.pretrained``); False for a new model.

    Raises:
        MaskwiseError: it cannot be built, is too large, or lacks embeddings, a start token, or
            (XMOD) a language.
    """
    do = "remove vocab_size from model.settings; a new model gets the size of its tokenizer"
    if loaded:
        do = (
            "remove tokenizer from the recipe, so that the model's own is read; if tokens were "
            "added to it, call model.resize_token_embeddings(len(tokenizer)), save both by "
            "save_pretrained, and start from that folder"
        )
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        if hasattr(part, "vocab_size"):
            check_fit(part, tokens, do=do)
    if adapter_of(config).kind == "encoder-decoder":
        start_token(config)
    if config.model_type == "xmod" and config.default_language not in config.languages:
        where = "in its config.json" if loaded else "by model.settings.default_language"
        raise MaskwiseError(
            "a model of xmod has layers for each language, and does not know which to use",
            got=f"default_language: {config.default_language}",
            allowed=", ".join(config.languages),
            do=f"set one of them {where}, or use xlm-roberta",
        )
    check_size(size_of(config))


def empty_model(config: PreTrainedConfig, auto: AutoClass = None) -> PreTrainedModel:
    """Return a model on the meta device, without memory for its weights.

    Raises:
        MaskwiseError: the model cannot be built from the configuration.
    """
    try:
        auto = auto or language_model(config)
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # wrong settings may raise anything, even ZeroDivisionError
        raise MaskwiseError(
            f"cannot build the {config.model_type} model: {first_line(error)}"
        ) from None


def size_of(config: PreTrainedConfig) -> Size:
    """Return the size of a language model, without allocating memory.

    The sizes of transformers' models are kept on this machine (``devices.remembered``), because
    their code takes two seconds to import, and commands such as ``check`` do not need it otherwise.

    Raises:
        MaskwiseError: the model cannot be built from the configuration.
    """

    def measure() -> list[int]:
        return [*Size.of(empty_model(config))]

    if not type(config).__module__.startswith("transformers."):  # its code may change
        return Size(*measure())
    about = {"config": config.to_json_string(use_diff=False), "versions": versions()}
    size, _ = remembered("size", about, measure)
    return Size(*size)


def weights_of(config: PreTrainedConfig) -> int:
    """Return the number of weights in a language model, without allocating memory."""
    return size_of(config).weights


def language_model(config: PreTrainedConfig) -> AutoClass:
    """Return transformers' class of language models for this configuration."""
    return auto_class(language_head(config))


def language_head(config: PreTrainedConfig) -> str:
    """Return the head of language models with this configuration, a key of ``TASK_MODELS``."""
    return "causal-lm" if is_decoder(config) else LANGUAGE_MODELS[adapter_of(config).kind]


def build_model(config: PreTrainedConfig, auto: AutoClass = None) -> PreTrainedModel:
    """Return a model with random weights, drawn from torch's default generator.

    Args:
        auto: the class of the model; if None, the class of language models.
    """
    check_size(Size.of(empty_model(config, auto)))
    return (auto or language_model(config)).from_config(config, trust_remote_code=False)


def new_model(
    config: PreTrainedConfig, *, seed: int, log_unigram: Tensor | None = None
) -> PreTrainedModel:
    """Return a language model with new weights.

    Args:
        seed: the seed of the weights.
        log_unigram: (V,) the log frequencies of tokens, as the initial output bias. Without this
            bias, a model spends its first thousand steps on learning token frequencies.

    Raises:
        MaskwiseError: the model cannot be built, or does not fit into memory.
    """
    # Torch's generator is seeded here, so that new weights depend only on ``seed``.
    torch.manual_seed(fold(seed, 0x1217))
    model = build_model(config)
    _start_bias(model, log_unigram)
    return model


def _start_bias(model: PreTrainedModel, log_unigram: Tensor | None) -> None:
    if log_unigram is None:
        return
    bias = _output_bias(model)
    if bias is None and hasattr(model, "final_logits_bias"):  # BART's bias (1, V) is not trained
        bias = model.get_buffer("final_logits_bias")[0]
        # Tokens that do not occur, such as separators of the decoder, get the mean bias.
        log_unigram = torch.where(log_unigram == log_unigram.min(), log_unigram.mean(), log_unigram)
    if bias is not None:
        with torch.no_grad():
            bias[: len(log_unigram)] = log_unigram


def _output_bias(model: PreTrainedModel) -> Tensor | None:
    """Return the bias (V,) of the output layer."""
    parts = [output_layer(model)]
    # ESM has the bias in its head, and so has DeBERTa-v2 with ``legacy=False``.
    parts += [
        getattr(each, "lm_head", None) for each in (model, getattr(model, "lm_predictions", None))
    ]
    biases = (getattr(part, "bias", None) for part in parts)
    return next((bias for bias in biases if bias is not None), None)


def add_tokens(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Give a masked language model new tokens, in place.

    The rows of a new token, in the embeddings, the output layer and its bias, are the means of the
    rows of its pieces. Its logit is therefore the mean of their logits.

    Args:
        pieces: for each new id, the ids of the tokens into which the word was cut before.

    Raises:
        MaskwiseError: the model is no encoder with an output layer, or transformers cannot give it
            more tokens.
    """
    require_kind(model.config, "encoder", use="new-tokens")
    size = max(pieces) + 1
    why = ""
    try:
        tables = _enlarged(model, size)
    except Exception as error:  # some families do not support it, and raise anything
        tables = []
        why = f": {first_line(error)}"
    if not tables or any(len(table) < size for table in tables):
        raise MaskwiseError(
            "new-tokens: this model cannot have more tokens",
            got=type(model).__name__ + why,
            do="leave out new-tokens",
        )
    new = torch.tensor([*pieces])
    with torch.no_grad():
        # Tied weights are one tensor, which is changed once.
        for table in tables:
            means = [table[list(ids)].mean(dim=0) for ids in pieces.values()]
            table[new] = torch.stack(means)
    _repeat_bias(model)


def keep_tokens(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Cut the rows of all tokens but some from a model, in place.

    Args:
        ids: for each new id, the id of before. Ids in the configuration are changed, too; those of
            tokens that are cut become None.

    Raises:
        MaskwiseError: transformers cannot give this model fewer tokens.
    """
    tables = vocabulary_tables(model)
    refused = MaskwiseError(
        "this model cannot have fewer tokens",
        got=type(model).__name__,
        do="take a model whose embeddings and output layer have a row for each token",
    )
    fits = max(ids) < min(map(len, tables))
    if not fits or output_layer(model) is not model.get_output_embeddings():
        raise refused
    # BART and its relatives add this to the logits. transformers resizes it, too.
    of_logits = getattr(model, "final_logits_bias", None)
    if of_logits is not None:
        tables.append(of_logits[0])
    rows = torch.tensor(ids)
    with torch.no_grad():
        for table in tables:
            table[: len(ids)] = table[rows]
    model.resize_token_embeddings(len(ids), mean_resizing=False)
    _repeat_bias(model)
    if any(len(table) != len(ids) for table in vocabulary_tables(model)):
        raise refused
    number_of = {before: after for after, before in enumerate(ids)}
    for config in (model.config, getattr(model, "generation_config", None)):
        _renumber(config, number_of)
    # RoBERTa counts its positions from the id of the padding token.
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if padding in number_of:
            setattr(module, "padding_idx", number_of[padding])  # noqa: B010 (no field of Module)


def _renumber(config: Any, number_of: Mapping[int, int]) -> None:
    """Change the ids of tokens in a configuration and in those of its parts, in place."""
    for name, value in [*vars(config).items()] if config else ():
        if hasattr(value, "model_type"):
            _renumber(value, number_of)
        elif name in LISTS_OF_IDS and value:
            raise MaskwiseError(
                "the configuration for writing text names tokens by their ids",
                got=f"{name}={value}",
                do=f"remove {name} from generation_config.json",
            )
        elif name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, number_of.get(value))
        elif name.endswith("_token_id") and isinstance(value, list):
            setattr(config, name, [number_of[number] for number in value if number in number_of])


def check_more_tokens(config: PreTrainedConfig, size: int) -> None:
    """Raise ``MaskwiseError`` unless a model can have ``size`` tokens. This needs no memory."""
    add_tokens(empty_model(config), {size - 1: (0,)})


def _enlarged(model: PreTrainedModel, size: int) -> list[Tensor]:
    """Give a model at least ``size`` tokens; return its ``vocabulary_tables``, or [] if it cannot
    have them.
    """
    output = output_layer(model)
    # Models with more rows than the tokenizer has tokens keep their size.
    if size > len(_table(model.get_input_embeddings())):
        if output is not model.get_output_embeddings():
            return []  # transformers would enlarge another layer
        model.resize_token_embeddings(size, mean_resizing=False)
    if output is None:
        return []
    _repeat_bias(model)
    return vocabulary_tables(model)


def vocabulary_tables(model: PreTrainedModel) -> list[Tensor]:
    """Return the weights that have a row for each token: of the embeddings, the output layer, and
    its bias. Tied weights are one tensor, which is listed once.
    """
    tables = [_table(model.get_input_embeddings())]
    output = output_layer(model)
    if output is not None:
        tables.append(_table(output))
    bias = _output_bias(model)
    if bias is not None:
        tables.append(bias)
    return [*dict.fromkeys(tables)]


def _table(layer: nn.Module) -> Tensor:
    """Return the weights (V, …) of the embeddings or of the output layer."""
    return layer.get_parameter("weight")


def _repeat_bias(model: PreTrainedModel) -> None:
    """Make the biases of the output layer and of the head around it equal, where a family has both,
    or give that of the head the length of the layer, where it has only this one.

    transformers resizes one of them in some families. If the weights of a model are not tied, it
    reads both from a checkpoint, but saves one if they are one tensor.
    """
    output: nn.Module | None = model.get_output_embeddings()
    if output is None:
        return
    for part in model.modules():
        own = part._parameters.get("bias")
        if own is None or part._modules.get("decoder") is not output:
            continue
        bias = output._parameters.get("bias")
        if bias is None:
            bias = own
            size = len(_table(output))
            if size != len(own):
                more = own.new_zeros(max(0, size - len(own)))
                bias = nn.Parameter(torch.cat([own.detach()[:size], more]))
        elif not model.config.tie_word_embeddings:
            bias = nn.Parameter(bias.detach().clone())
        part.bias = bias


def load_config(name: Start, *, kind: Kind | None = "encoder") -> PreTrainedConfig:
    """Return the configuration of a pre-trained model. ``kind`` is the required kind, if any."""
    if kind is not None:
        require_known("kind of model", kind, _USES)
    config = _read_config(name)
    if kind:
        require_kind_and_head(config, kind, name=name)
    return config


def require_kind_and_head(config: PreTrainedConfig, kind: Kind, *, name: Start) -> None:
    """Raise ``MaskwiseError`` unless a checkpoint is a language model of this kind."""
    require_kind(config, kind, use=f"{_USES[kind]} with {str(name)!r}")
    require_head(config, kind, name=name)


def require_head(config: PreTrainedConfig, kind: Kind, *, name: Start) -> None:
    """Raise ``MaskwiseError`` unless transformers has a language model of this kind and family."""
    family = config.model_type
    if family in architectures(kind) or isinstance(adapter_of(config), Decoder):
        return
    if family in architectures("encoder-decoder"):
        raise MaskwiseError(
            f"{str(name)!r} is the encoder of an encoder–decoder, which has no MLM head",
            got=f"{family} with is_encoder_decoder: false",
            do="use the whole model with objective: denoise, or an encoder such as bert",
        )
    head = {"encoder": "MLM head", "encoder-decoder": "head that writes text"}[kind]
    known = ENCODERS if kind == "encoder" else ENCODER_DECODERS
    raise MaskwiseError(
        f"{str(name)!r} has no {head}",
        got=family,
        allowed=", ".join(known),
        do="use a model of one of these families",
    )


def load_model(
    name: Start,
    *,
    kind: Kind | None = "encoder",
    seed: int | None = None,
    log_unigram: Tensor | None = None,
    config: PreTrainedConfig | None = None,
    changed: Callable[[PreTrainedModel], PreTrainedModel] | None = None,
    causal: bool = False,
) -> PreTrainedModel:
    """Load a pre-trained language model in float32.

    Args:
        name: the name of the model, see ``starts.find_start``.
        kind: the required kind of model; None for any kind.
        seed: the seed of a new head. If None, a checkpoint without a head is refused.
        log_unigram: (V,) the log frequencies of tokens, as the initial output bias of a new head.
        config: the configuration to use instead of the checkpoint's configuration.
        changed: a function that changes the model of the checkpoint, before a new head starts.
        causal: whether a decoder may read earlier tokens only.

    Raises:
        MaskwiseError: the name cannot be loaded, the model is of a different kind, the checkpoint
            is damaged, or the checkpoint has no head and ``seed`` is None.
    """
    if seed is not None:
        seed = whole_number("seed", seed)
    auto = language_model(load_config(name, kind=kind))
    with without_advice(), torch.random.fork_rng():
        torch.manual_seed(fold(seed or 0, 0x1217))
        model, lacking = _load_whole(auto, name, config=config)
        if changed is not None:
            model = changed(model)
    if is_decoder(model.config) and not (causal and is_causal(model.config)):
        require_sees_later(model)
    if lacking and seed is None:
        raise MaskwiseError(
            f"{str(name)!r} has no MLM head, so it cannot predict tokens",
            do="train a head first: maskwise pretrain with training.freeze=encoder",
        )
    if lacking:
        _start_bias(model, log_unigram)
        quieten(model, lacking)
    return model


class AsSaved(NamedTuple):
    """A model as its folder has it.

    Attributes:
        model: the model in float32, of the class that saved it, so with all of its heads.
        lacking: the names of weights that the folder does not have, such as those of a pooler.
        dtype: the precision of the weights in the folder.
    """

    model: PreTrainedModel
    lacking: list[str]
    dtype: torch.dtype


def load_as_saved(name: Start) -> AsSaved:
    """Load a model with the class that saved it.

    Raises:
        MaskwiseError: the name cannot be loaded, or its class is none of transformers.
    """
    import transformers

    config = _read_config(name)
    saved = (config.architectures or ["none"])[0]
    auto = getattr(transformers, saved, None)
    if auto is None:
        raise MaskwiseError(
            f"{str(name)!r} does not say of which class of transformers it is",
            got=saved,
            allowed='such as "architectures": ["BertForMaskedLM"] in config.json',
        )
    with without_advice():
        model, lacking = _load_whole(auto, name)
    dtype = config.dtype
    if not isinstance(dtype, torch.dtype):
        dtype = getattr(torch, dtype or "float32")
    return AsSaved(model.eval(), lacking, dtype)


def has_head(name: str) -> bool:
    """Return whether a checkpoint has a prediction head."""
    # Reading is slow, so results are cached. The key has the state of the files, which may change.
    return _has_head(name, files_state(Path(resolve_start(name))))


@cache
def _has_head(name: str, state: FilesState) -> bool:
    config = load_config(name, kind=None)
    if is_causal(config):
        return False  # it predicts next tokens only
    auto = language_model(config)
    with without_advice():
        return not _lacking(auto, name, find_weights(name))


def task_config(start: Start | PreTrainedConfig, labels: Fields) -> PreTrainedConfig:
    """Return a configuration (the given one or a checkpoint's) with the labels of a task."""
    from transformers import PreTrainedConfig

    if isinstance(start, PreTrainedConfig):
        config = type(start).from_dict({**start.to_dict(), **labels})
    else:
        config = _read_config(start, **labels)
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean"  # because ModernBERT's [CLS] was never trained
    return config


def load_task_model(
    name: Start | None, config: PreTrainedConfig, *, head: str, seed: int
) -> PreTrainedModel:
    """Load a checkpoint in float32 with a task head.

    All weights outside the encoder are new: the head of the task and, where the family has one, the
    pooler. They depend only on ``seed`` and on the configuration, and not on what else the
    checkpoint holds. If a checkpoint kept its own pooler, for example, then it would be compared on
    unequal terms with a checkpoint of the same encoder that has none, as after masked language
    modelling. Heads that were trained with the encoder are used as they are: those of the heads
    ``masked-lm``, ``seq2seq`` and ``embedding``.

    Args:
        name: the name of the checkpoint, see ``starts.find_start``; None for random weights.
        config: the configuration from ``task_config``.
        head: a key of ``TASK_MODELS``.
        seed: the seed of new weights.

    Raises:
        MaskwiseError: the model has no such head, or the checkpoint is damaged or incomplete.
    """
    auto = auto_class(head)
    if head in TASK_KINDS:
        kind, use = TASK_KINDS[head]
        require_kind(config, kind, use=use)
    require_both_directions(config, use="a task")
    with without_advice(), torch.random.fork_rng():
        torch.manual_seed(fold(seed, 0x4EAD))
        if name is None:
            model = build_model(config, auto)
        else:
            model = _load_whole(auto, name, config=config)[0]
        if isinstance(adapter_of(config), Decoder):
            require_sees_later(model)
        if head in TASK_KINDS:
            return model
        torch.manual_seed(fold(seed, 0x4EAD))
        return _with_new_head(model)


def _with_new_head(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same encoder in a model whose other weights are drawn anew.

    The new weights are drawn from torch's default generator. The given model is no longer usable,
    because the new model takes its tensors.
    """
    body = _body_of(model)
    kept = {
        key: tensor.data
        for key, tensor in model.state_dict(keep_vars=True).items()
        if tensor in body
    }
    # To transformers, a state without some weights is a file without them.
    auto: AutoClass = type(model)
    fresh, info = auto.from_pretrained(
        None,
        config=model.config,
        state_dict=kept,
        dtype=torch.float32,
        output_loading_info=True,
    )
    _zero_biases(fresh, info["missing_keys"])
    return fresh


def _body_of(model: PreTrainedModel) -> set[Tensor]:
    """Return the weights of an encoder without its pooler, or those of an encoder–decoder.

    In some families, such as BERT, the pooler is a part of the encoder's module. Masked language
    models have no pooler, so no checkpoint that maskwise trains has one. The head of an
    encoder–decoder that writes text was trained with it, and belongs to it. The head of a task,
    such as BART's for classification, does not.

    Tensors are returned and not names, because tied weights have two names.
    """
    if adapter_of(model.config).kind != "encoder":
        if model.get_output_embeddings() is not None:
            return set(model.state_dict(keep_vars=True).values())
        parts = [model.get_encoder(), model.get_decoder()]
        return {tensor for part in parts for tensor in part.state_dict(keep_vars=True).values()}
    state = encoder_of(model).state_dict(keep_vars=True)
    return {tensor for key, tensor in state.items() if "pooler" not in key.split(".")}


def _zero_biases(model: PreTrainedModel, new: Iterable[str]) -> None:
    """Set new biases to 0, because some families leave the biases of a new head uninitialised."""
    state = model.state_dict()
    for key in new:
        if key.endswith("bias"):
            state[key].zero_()


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """A context without transformers' progress bars and warnings about new heads."""
    from transformers.utils import logging

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
    """Load a model whose encoder must be complete; return it and the names of missing weights."""
    where = find_weights(name)
    lacking = _lacking(auto, name, where, **how)
    model = _weights(auto, name, where, dtype=torch.float32, **how)[0]
    _zero_biases(model, lacking)
    check_finite(model.state_dict(), name)
    return model, lacking


def _lacking(auto: AutoClass, name: Start, where: str, **how: Any) -> list[str]:
    """Return the names of the weights outside the encoder that a checkpoint does not have.

    Only names and shapes are read, because the model may be too large for the memory.

    Raises:
        MaskwiseError: weights of the encoder are missing, shapes differ from the configuration, or
            the model does not fit into memory.
    """
    # ``device_map`` alone does not affect tensors that a model computes (positions).
    with torch.device("meta"):
        model, info = _weights(auto, name, where, device_map="meta", **how)
    # All weights of a pre-trained encoder–decoder are required, including the head.
    body = _body_of(model)
    inside = {key for key, t in model.state_dict(keep_vars=True).items() if t in body}
    missing = set(info["missing_keys"])
    do = "use a complete checkpoint"
    holes = sorted(inside & missing)
    if holes:
        raise MaskwiseError(
            f"{str(name)!r} lacks weights of its {adapter_of(model.config).kind}",
            got=f"no {holes[0]}; {len(holes)} weights are missing in all",
            do=do,
        )
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        if key in inside or auto in map(auto_class, ("causal-lm", *LANGUAGE_MODELS.values())):
            raise MaskwiseError(
                f"the weights of {str(name)!r} do not fit its config.json",
                got=f"{key} of shape {tuple(stored)} instead of {tuple(wanted)}",
                do=do,
            )
    check_size(Size.of(model))
    return sorted(missing)


@torch.inference_mode(False)  # in inference mode, models on the meta device cannot tie weights
def _weights(
    auto: AutoClass, name: Start, where: str, **how: Any
) -> tuple[PreTrainedModel, Fields]:
    how |= {"output_loading_info": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
    with _loading(name):
        return auto.from_pretrained(where, trust_remote_code=False, **how)


def _read_config(name: Start, **fields: Any) -> PreTrainedConfig:
    from transformers import AutoConfig, PreTrainedConfig

    where = find_start(name)
    with _loading(name):
        if _is_no_object(Path(where, CONFIG)):
            raise TypeError(f"its {CONFIG} has no JSON object")
        check_counts(PreTrainedConfig.get_config_dict(where)[0])
        return AutoConfig.from_pretrained(where, trust_remote_code=False, **fields)


def _is_no_object(file: Path) -> bool:
    """Return whether a file has JSON of another kind. About other damage, transformers is clear."""
    try:
        return not isinstance(json.loads(file.read_bytes()), dict)
    except (OSError, ValueError, RecursionError):
        return False


@contextlib.contextmanager
def _loading(name: Start) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged files raise errors of json, safetensors, transformers
        what = f"cannot load a model from {str(name)!r}: {first_line(error)}"
        do = None
        # An older model on the hub has its weights in pytorch_model.bin only.
        if isinstance(error, OSError) and "model.safetensors" in str(error):
            do = "if its weights are pickled, convert it: maskwise convert OLD NEW"
        raise MaskwiseError(what, do=do) from None
