"""Models: how they are built and loaded. The only file that names transformers' model classes; what
differs from family to family stands in ``families``.

Nothing that came with a checkpoint is ever run: no remote code, no pickled weights. One that lacks
weights of its encoder is refused, because transformers would fill the holes with random numbers and
go on. Weights are always loaded in float32: transformers takes the stored type, and training in
half precision goes wrong quietly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, field_validator
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

from maskwise.errors import MaskwiseError, first_line, unknown_name, whole_number
from maskwise.families import (
    EncoderDecoder,
    Kind,
    adapter_of,
    check_counts,
    check_finite,
    check_fit,
    check_size,
    encoder_of,
    require_kind,
    start_token,
)
from maskwise.keys import fold
from maskwise.starts import find_start, find_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUIET = 0.1
"""Start of the weight of a new head's layer norm. At 1 a random head says noise, as loudly as a
trained one speaks: 0.4 nats above word frequencies on a sentence encoder
(benchmarks/recipes/continual-minilm.yaml)."""

NO_HEAD = "the checkpoint has no MLM head: a new one is made; warm it with training.freeze: encoder"
"""What users are told where a new head is trained together with the encoder."""

LANGUAGE_MODELS: Mapping[Kind, Any] = {
    "encoder": AutoModelForMaskedLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}
"""What is pre-trained."""

_ARCHITECTURES: Mapping[Kind, Any] = {
    "encoder": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "encoder-decoder": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
_USES: Mapping[Kind, str] = {"encoder": "masked language modelling", "encoder-decoder": "denoising"}

TASK_MODELS: Mapping[str, Any] = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "multiple-choice": AutoModelForMultipleChoice,
    "masked-lm": AutoModelForMaskedLM,
    "embedding": AutoModel,
    "seq2seq": AutoModelForSeq2SeqLM,
}
"""What a task puts on an encoder: ``masked-lm`` is the head that it was pre-trained with,
``embedding`` none; ``seq2seq`` is an encoder–decoder as it is."""


class ModelSettings(BaseModel):
    """The model part of a recipe: a model from a configuration, or a pre-trained one to go on with.

    >>> ModelSettings(architecture="bert", settings={"num_hidden_layers": 2}).unigram_bias
    True
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pretrained: str | None = None
    """A folder, hub id, ``bundled:encoder`` or ``package:NAME`` (an installed one). None: fresh
    weights.
    """
    architecture: str = "modernbert"
    settings: dict[str, Any] = {}
    """Fields of the architecture's configuration, such as hidden_size."""
    unigram_bias: bool = True
    """Start the output bias of a new head at the log-frequencies of the training text."""

    @field_validator("settings")
    @classmethod
    def _truth(cls, value: dict[str, Any]) -> dict[str, Any]:
        """No type says here that ``no`` is meant as a truth value; and no setting of a model is a
        word like it.
        """
        words = {"yes": True, "on": True, "no": False, "off": False}
        return {key: words.get(str(setting), setting) for key, setting in value.items()}

    def config(
        self, tokenizer: PreTrainedTokenizerBase, length: int, *, kind: Kind
    ) -> PreTrainedConfig:
        """The configuration: the pre-trained model's, or a new one for rows of ``length``."""
        if self.pretrained:
            return load_config(self.pretrained, kind=kind)
        return new_config(self.architecture, tokenizer, length, kind=kind, **self.settings)

    def model(
        self,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        *,
        kind: Kind,
        seed: int,
        log_unigram: Tensor,
    ) -> PreTrainedModel:
        """The model that a training begins with; ``log_unigram`` as for ``new_model``."""
        bias = log_unigram if self.unigram_bias else None
        if not self.pretrained:
            return new_model(self.config(tokenizer, length, kind=kind), seed=seed, log_unigram=bias)
        network = load_model(self.pretrained, kind=kind, seed=seed, log_unigram=bias)
        check_fit(network.config, len(tokenizer), do="set tokenizer.name to the model's own")
        return network


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
        kind: of model that is wanted.
        fields: anything the configuration takes, such as hidden_size.

    Raises:
        MaskwiseError: an unknown architecture, one of another kind, or a field that the
            configuration does not have.
    """
    if architecture in CONFIG_MAPPING:
        require_kind(AutoConfig.for_model(architecture), kind, use=_USES[kind])
    if architecture not in _ARCHITECTURES[kind]:
        raise unknown_name("architecture", architecture, _ARCHITECTURES[kind])
    check_counts(fields)
    plain = AutoConfig.for_model(architecture)
    strange = [name for name in fields if not hasattr(plain, name)]
    if strange:
        known = [name for name in plain.to_dict() if not name.startswith("_")]
        raise unknown_name(f"{architecture} model setting", strange[0], known)
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")
    }
    for name, other in (("bos", "cls"), ("eos", "sep")):
        own = getattr(tokenizer, f"{name}_token_id")
        special[f"{name}_token_id"] = special[f"{other}_token_id"] if own is None else own
    sizes = {"vocab_size": len(tokenizer)}
    if hasattr(plain, "max_position_embeddings"):
        positions = length + adapter_of(plain).first_position(tokenizer.pad_token_id)
        # Targets of masked spans have a separator for each span, and so may be longer than the
        # text.
        sizes["max_position_embeddings"] = max(positions, 8) * (
            2 if kind == "encoder-decoder" else 1
        )
    if isinstance(family := adapter_of(plain), EncoderDecoder):
        special["decoder_start_token_id"] = special[f"{family.starts_with}_token_id"]
        if hasattr(plain, "forced_eos_token_id"):  # BART's has the number of *its* </s>
            special["forced_eos_token_id"] = special["eos_token_id"]
    given = {**sizes, **special, **fields}
    try:
        return AutoConfig.for_model(
            architecture, **{k: v for k, v in given.items() if v is not None}
        )
    except Exception as error:  # configurations check themselves, with errors of many kinds
        raise MaskwiseError(f"these model settings make no {architecture} model: {error}") from None


def config_of(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration whose ``to_dict`` gave these fields, ``model_type`` among them.

    Raises:
        ValueError: no architecture of that name, or more layers or classes than any model has.
    """
    check_counts(fields)
    return AutoConfig.for_model(**fields)


def share_encoder(model: PreTrainedModel, other: PreTrainedModel) -> None:
    """Make one encoder of two: both models' is the module of ``other``, with the weights of
    ``model``.
    """
    # A model of a task may have a pooler, of which a language model knows nothing.
    encoder_of(other).load_state_dict(encoder_of(model).state_dict(), strict=False)
    setattr(model, model.base_model_prefix, encoder_of(other))
    model.tie_weights()


def check_start(config: PreTrainedConfig, tokens: int) -> None:
    """Refuse a configuration that no model can be built from, or that the tokenizer does not fit.
    Costs no memory.

    Raises:
        MaskwiseError: in one line, what transformers or torch say of it; no start token for a
            decoder; more weights than this machine can hold.
    """
    check_fit(config, tokens, do="use the model's own tokenizer, or a larger vocab_size")
    if adapter_of(config).kind == "encoder-decoder":
        start_token(config)
    check_size(empty_model(config))


def empty_model(config: PreTrainedConfig, auto: Any = None) -> PreTrainedModel:
    """A model without memory, to count the weights of; ``auto`` as for ``build_model``.

    Raises:
        MaskwiseError: no model can be built from the configuration.
    """
    try:
        with torch.device("meta"):
            return (auto or language_model(config)).from_config(config, trust_remote_code=False)
    # assertions, divisions, look-ups: whatever an architecture checks itself by
    except Exception as error:
        what = f"these model settings make no {config.model_type} model: {first_line(error)}"
        raise MaskwiseError(what) from None


def weights_of(config: PreTrainedConfig) -> int:
    """How many weights a language model of this configuration has; nothing is allocated."""
    return sum(parameter.numel() for parameter in empty_model(config).parameters())


def language_model(config: PreTrainedConfig) -> Any:
    """The class of transformers that pre-trains models of this kind."""
    return LANGUAGE_MODELS[adapter_of(config).kind]


def build_model(config: PreTrainedConfig, auto: Any = None) -> PreTrainedModel:
    """A model with weights drawn from torch's generator as it is; errors come before the memory is
    asked for.

    Args:
        auto: its class; None: that of a language model.
    """
    check_size(empty_model(config, auto))
    return (auto or language_model(config)).from_config(config, trust_remote_code=False)


def new_model(
    config: PreTrainedConfig, *, seed: int, log_unigram: Tensor | None = None
) -> PreTrainedModel:
    """A language model with fresh weights.

    Args:
        seed: of the initialisation.
        log_unigram: (V,) start values of the output bias. Without them a model spends its first
            thousand steps learning how frequent each token is.

    Raises:
        MaskwiseError: no model can be built from the configuration, or this machine cannot hold it.
    """
    torch.manual_seed(fold(seed, 0x1217))
    model = build_model(config)
    _start_bias(model, log_unigram)
    return model


def _start_bias(model: PreTrainedModel, log_unigram: Tensor | None) -> None:
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is None:  # ESM keeps it beside the output embeddings
        bias = getattr(getattr(model, "lm_head", None), "bias", None)
    # BART's, (1, V), is fixed
    if log_unigram is not None and bias is None and hasattr(model, "final_logits_bias"):
        bias = model.get_buffer("final_logits_bias")[0]
        # The decoder also writes tokens that no text has, such as separators: they begin as an
        # average word does.
        log_unigram = torch.where(log_unigram == log_unigram.min(), log_unigram.mean(), log_unigram)
    if log_unigram is not None and bias is not None:
        with torch.no_grad():
            bias[: len(log_unigram)] = log_unigram


def load_config(name: str | Path, *, kind: Kind | None = "encoder") -> PreTrainedConfig:
    """The configuration of a pre-trained model; ``name`` as for ``starts.find_start``.
    ``kind=None``: of any kind.
    """
    if kind is not None and kind not in _USES:
        raise unknown_name("kind of model", kind, _USES)
    config = _read_config(name)
    if kind:
        require_kind(config, kind, use=f"{_USES[kind]} with {str(name)!r}")
    return config


def load_model(
    name: str | Path,
    *,
    kind: Kind | None = "encoder",
    seed: int | None = None,
    log_unigram: Tensor | None = None,
) -> PreTrainedModel:
    """A pre-trained language model, in float32.

    An encoder that comes without a masked-language-model head gets a new one if that is to be
    trained (``seed``), and is refused where the head would be used as it is.

    Args:
        name: as for ``starts.find_start``.
        kind: the kind of model that is wanted; None: any.
        seed: of a new head, for a checkpoint that has none. None: such a checkpoint is refused.
        log_unigram: (V,) start values of a new head's output bias.

    Raises:
        MaskwiseError: nothing to load; another kind of model; a damaged checkpoint; no head and no
            seed.
    """
    if seed is not None:
        seed = whole_number("seed", seed)
    auto = language_model(load_config(name, kind=kind))
    with without_advice(), torch.random.fork_rng():
        torch.manual_seed(fold(seed or 0, 0x1217))
        model, lacking = _load_whole(auto, name)
    if lacking and seed is None:
        what = f"{str(name)!r} has no MLM head, and a random one says nothing"
        raise MaskwiseError(
            what, do="train one first: maskwise pretrain with training.freeze=encoder"
        )
    if lacking:
        _start_bias(model, log_unigram)
        _quieten(model, lacking)
    return model


@cache
def has_head(name: str) -> bool:
    """Whether a checkpoint can fill masks as it is."""
    auto = language_model(load_config(name, kind=None))
    with without_advice():
        return not _lacking(auto, name, find_weights(name))


def task_config(
    start: str | Path | PreTrainedConfig, labels: Mapping[str, Any]
) -> PreTrainedConfig:
    """The configuration of a checkpoint (or another one) with what a task says of its classes."""
    if isinstance(start, PreTrainedConfig):
        config = type(start).from_dict({**start.to_dict(), **labels})
    else:
        config = _read_config(start, **labels)
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean"  # ModernBERT; masked modelling has taught [CLS] nothing
    return config


def load_task_model(
    name: str | Path | None, config: PreTrainedConfig, *, head: str, seed: int
) -> PreTrainedModel:
    """A checkpoint with a new head for a task (also in place of one of another size), in float32,
    or random weights.

    Args:
        name: as for ``starts.find_start``; None for random weights.
        config: see ``task_config``.
        head: a key of ``TASK_MODELS``.
        seed: of the weights that are new.

    Raises:
        MaskwiseError: the family has no such head; a checkpoint that is damaged, or whose encoder
            is not whole.
    """
    auto = TASK_MODELS[head]
    if head == "embedding":  # an encoder–decoder would give the states of its decoder
        require_kind(config, "encoder", use="an embedding of texts")
    if head == "masked-lm":
        require_kind(config, "encoder", use="a task that is answered at masks")
    if head == "seq2seq":
        require_kind(config, "encoder-decoder", use="a task that generates")
    with without_advice(), torch.random.fork_rng():
        torch.manual_seed(fold(seed, 0x4EAD))
        if name is None:
            return build_model(config, auto)
        return _load_whole(auto, name, config=config)[0]


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Loading draws a bar, and warns of a head that is new: what becomes of it is said elsewhere,
    in one line.
    """
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _load_whole(auto: Any, name: str | Path, **how: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model whose encoder is whole, and the names of the weights outside of it that the
    checkpoint lacks.
    """
    where = find_weights(name)
    lacking = _lacking(auto, name, where, **how)
    model = _weights(auto, name, where, dtype=torch.float32, **how)[0]
    state = model.state_dict()
    for key in lacking:
        if key.endswith("bias"):  # of a new head, which some families leave as the memory was
            state[key].zero_()
    check_finite(state, name)
    return model, lacking


def _lacking(auto: Any, name: str | Path, where: str, **how: Any) -> list[str]:
    """The names of the weights outside of the encoder that a checkpoint lacks.

    Reads names and shapes only, and allocates nothing: a configuration may name any size.

    Raises:
        MaskwiseError: the encoder lacks weights, shapes differ from the configuration, or memory is
            too small.
    """
    # for what a model computes when it is made, such as the numbers of its positions
    with torch.device("meta"):
        model, info = _weights(auto, name, where, device_map="meta", **how)
    # All of an encoder–decoder is pre-trained, its head as well.
    body = encoder_of(model) if adapter_of(model.config).kind == "encoder" else model
    encoder = {id(tensor) for tensor in body.state_dict(keep_vars=True).values()}
    inside = {
        key for key, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in encoder
    }
    missing = set(info["missing_keys"])
    # A pooler stands inside of the encoder and belongs to the head: masked language models have
    # none.
    holes = sorted(key for key in inside & missing if "pooler" not in key.split("."))
    if holes:
        what = f"{str(name)!r} lacks weights of its {adapter_of(model.config).kind}"
        raise MaskwiseError(
            what, got=f"no {holes[0]}, {len(holes)} in all", do="take a whole checkpoint"
        )
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        if key in inside or auto in LANGUAGE_MODELS.values():
            what = f"the weights of {str(name)!r} do not fit its config.json"
            got = f"{key} of {tuple(stored)} for {tuple(wanted)}"
            raise MaskwiseError(what, got=got, do="take a whole checkpoint")
    check_size(model)
    return sorted(missing)


@torch.inference_mode(False)  # in which a model without memory cannot tie its weights
def _weights(
    auto: Any, name: str | Path, where: str, **how: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    how |= {"output_loading_info": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
    with _loading(name):
        return auto.from_pretrained(where, trust_remote_code=False, **how)


def _read_config(name: str | Path, **fields: Any) -> PreTrainedConfig:
    where = find_start(name)
    with _loading(name):
        check_counts(PreTrainedConfig.get_config_dict(where)[0])
        return AutoConfig.from_pretrained(where, trust_remote_code=False, **fields)


@contextlib.contextmanager
def _loading(name: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file raises those of json, safetensors and transformers
        raise MaskwiseError(
            f"cannot load a model from {str(name)!r}: {first_line(error)}"
        ) from None


def _quieten(model: PreTrainedModel, lacking: list[str]) -> None:
    """Let a new head begin near its bias: ``QUIET``. ``lacking``: names of the weights that are
    new.
    """
    with torch.no_grad():
        for name in lacking:
            # of a norm
            if name.endswith("weight") and (weight := model.get_parameter(name)).ndim == 1:
                weight.fill_(QUIET)
