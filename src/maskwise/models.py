"""Models: how each family is built, loaded, read and counted. The only file that names transformers' model classes.

What differs from family to family stands in an ``Adapter``: where the encoder is, where its prediction head is and how
positions are counted. A family of encoders is one line of ``ENCODERS``; another *kind* of model, such as an
encoder–decoder, is a subclass. An encoder that has no line still works: its own logits are taken at every place, which
is slower and gives the same loss.

Nothing that came with a checkpoint is ever run: no remote code, no pickled weights. One that lacks weights of its
encoder is refused, because transformers would fill the holes with random numbers and go on. Weights are always loaded
in float32: transformers takes the stored type, and training in half precision goes wrong quietly.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
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
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.keys import fold
from maskwise.starts import find_start, find_weights

Head = Callable[[Any, Tensor], Tensor]
"""From a model and its hidden states (M, H) to logits (M, V)."""

Kind = Literal["encoder", "encoder-decoder"]

QUIET = 0.1
"""Start of the weight of a new head's layer norm. At 1 a random head says noise, as loudly as a trained one speaks: 0.4
nats above word frequencies on a sentence encoder (recipes/continual-minilm.yaml)."""

NO_HEAD = "the checkpoint has no MLM head: a new one is made; warm it with training.freeze: encoder"
"""What users are told where a new head is trained together with the encoder."""


@dataclass(frozen=True)
class Adapter:
    """A family of encoders: a label belongs to the input token at the same place.

    Attributes:
        head: the prediction head; None where it is not known, and the model's own logits are taken.
        counts_from_pad: the first position has the number pad + 1, as in RoBERTa.
    """

    kind: ClassVar[Kind] = "encoder"
    auto: ClassVar[Any] = AutoModelForMaskedLM

    head: Head | None = None
    counts_from_pad: bool = False

    def encoder(self, model: Any) -> nn.Module:
        """The part of a model that reads: what is frozen, evaluated, and saved for others."""
        return model.base_model

    def first_position(self, pad: int | None) -> int:
        """The number of a row's first position."""
        return (pad or 0) + 1 if self.counts_from_pad else 0


class EncoderDecoder(Adapter):
    """BART, T5 and their like: labels are a sequence of their own, which the decoder also reads, one place later."""

    kind = "encoder-decoder"
    auto = AutoModelForSeq2SeqLM

    def encoder(self, model: Any) -> nn.Module:
        return model.get_encoder()


ENCODERS: Mapping[str, Adapter] = {
    "bert": Adapter(lambda m, h: m.cls(h)),
    "deberta-v2": Adapter(lambda m, h: m.cls(h)),
    "roberta": Adapter(lambda m, h: m.lm_head(h), counts_from_pad=True),
    "xlm-roberta": Adapter(lambda m, h: m.lm_head(h), counts_from_pad=True),
    "camembert": Adapter(counts_from_pad=True),
    "mpnet": Adapter(lambda m, h: m.lm_head(h), counts_from_pad=True),
    "albert": Adapter(lambda m, h: m.predictions(h)),
    "distilbert": Adapter(
        lambda m, h: m.vocab_projector(m.vocab_layer_norm(m.activation(m.vocab_transform(h))))
    ),
    "electra": Adapter(lambda m, h: m.generator_lm_head(m.generator_predictions(h))),
    "modernbert": Adapter(lambda m, h: m.decoder(m.head(h))),
}
"""The encoders that differ from ``Adapter()``, by ``config.model_type``."""

TASK_MODELS: Mapping[str, Any] = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "multiple-choice": AutoModelForMultipleChoice,
    "embedding": AutoModel,
}
"""What a task puts on an encoder; ``embedding`` is the encoder alone."""


def adapter_of(config: Any) -> Adapter:
    """What maskwise knows of a model's family."""
    if getattr(config, "is_encoder_decoder", False):
        return EncoderDecoder()
    return ENCODERS.get(config.model_type, Adapter())


def require_kind(config: Any, kind: Kind, *, use: str) -> None:
    """Refuse a model of another kind than ``use`` works with."""
    if adapter_of(config).kind != kind:
        got = f"{config.model_type}, which is an {adapter_of(config).kind}"
        raise MaskwiseError(
            f"{use} needs an {kind}", got=got, do="take bert, roberta or modernbert, for example"
        )


def encoder_of(model: Any) -> nn.Module:
    """The part of a model that turns tokens into hidden states."""
    return adapter_of(model.config).encoder(model)


def width_of(model: Any) -> int:
    """H, the width of a model's hidden states."""
    return int(model.config.hidden_size)


def prediction_head(model: Any) -> Head | None:
    """The prediction head of a masked language model, or None where maskwise does not know it."""
    if model.config.model_type == "deberta-v2" and not hasattr(model, "cls"):  # its newer, unfactored head
        return None
    return adapter_of(model.config).head


def masked_logits(model: Any, inputs: dict[str, Tensor], row: Tensor, column: Tensor) -> Tensor:
    """Logits (M, V) at the places (row, column), both (M,).

    The vocabulary head is the widest layer: at 15 % masking, running it on every place wastes seven eighths of it.
    """
    head = prediction_head(model)
    if head is None:
        return model(**inputs).logits[row, column]
    return head(model, encoder_of(model)(**inputs).last_hidden_state[row, column])


def takes_token_types(model: nn.Module) -> bool:
    """Whether a model reads ``token_type_ids``: tokenizers also offer them to models that know none."""
    return "token_type_ids" in inspect.signature(model.forward).parameters


def most_tokens(config: Any) -> int:
    """How many tokens a row may have, special ones included; very many where nothing limits them."""
    try:
        positions = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
    except (TypeError, ValueError):
        got = config.max_position_embeddings
        raise MaskwiseError("max_position_embeddings of the model is no number", got=got) from None
    return positions - adapter_of(config).first_position(config.pad_token_id)


def check_fit(config: Any, tokens: int, *, do: str) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings; ``do`` says what to do about it."""
    if not isinstance(config.vocab_size, int) or tokens > config.vocab_size:
        got, allowed = f"{tokens} tokens", f"≤ {config.vocab_size}"
        raise MaskwiseError("tokenizer and model do not fit", got=got, allowed=allowed, do=do)


def check_room(config: Any, length: int, *, what: str) -> None:
    """Refuse rows that are longer than the positions of a model; ``what`` names the setting."""
    room = most_tokens(config)
    if length > room:
        raise MaskwiseError(f"{what} is more than the model's positions", got=length, allowed=f"≤ {room}")


def encoder_weights(model: Any) -> int:
    """Weights that work for every token: the encoder's, without its embeddings."""
    return multiplied_weights(encoder_of(model))


def head_weights(model: Any) -> tuple[int, int]:
    """Weights of the prediction head, which work for every target: (its own, those tied to the embeddings)."""
    in_encoder = {id(p) for p in encoder_of(model).parameters()}
    out = model.get_output_embeddings()
    tied = out.weight.numel() if out is not None and id(out.weight) in in_encoder else 0
    return sum(p.numel() for p in model.parameters() if id(p) not in in_encoder), tied


def multiplied_weights(module: nn.Module) -> int:
    """Weights of a module without those that are only looked up."""
    tables = (m for m in module.modules() if isinstance(m, nn.Embedding))
    looked_up = {id(p): p.numel() for m in tables for p in m.parameters()}
    return sum(p.numel() for p in module.parameters()) - sum(looked_up.values())


def new_config(architecture: str, tokenizer: Any, length: int, **fields: Any) -> PreTrainedConfig:
    """A configuration that fits a tokenizer and a row length.

    Args:
        architecture: a transformers ``model_type`` with an MLM head, such as bert or modernbert.
        fields: anything the configuration takes, such as hidden_size.

    Raises:
        MaskwiseError: an unknown architecture, an encoder–decoder, or a field that the configuration does not have.
    """
    if architecture in CONFIG_MAPPING:
        require_kind(AutoConfig.for_model(architecture), "encoder", use="masked language modelling")
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
    positions = length + adapter_of(plain).first_position(tokenizer.pad_token_id)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": max(positions, 8)}
    given = {**sizes, **special, **fields}
    try:
        return AutoConfig.for_model(architecture, **{k: v for k, v in given.items() if v is not None})
    except Exception as error:  # configurations check themselves, with errors of many kinds
        raise MaskwiseError(f"these model settings make no {architecture} model: {error}") from None


def check_start(config: Any, tokens: int) -> None:
    """Refuse a configuration that no model can be built from, or that the tokenizer does not fit. Costs no memory.

    Raises:
        MaskwiseError: in one line, what transformers or torch say of it; more weights than this machine can hold.
    """
    check_fit(config, tokens, do="use the model's own tokenizer, or a larger vocab_size")
    check_memory(config)


def empty_model(config: Any, auto: Any = AutoModelForMaskedLM) -> PreTrainedModel:
    """A model without memory, to count the weights of.

    Raises:
        MaskwiseError: no model can be built from the configuration.
    """
    try:
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # assertions, divisions, look-ups: whatever an architecture checks itself by
        what = f"these model settings make no {config.model_type} model: {_first_line(error)}"
        raise MaskwiseError(what) from None


def build_model(config: Any, auto: Any = AutoModelForMaskedLM) -> PreTrainedModel:
    """A model with weights drawn from torch's generator as it is; errors come before the memory is asked for."""
    check_memory(config, auto)
    return auto.from_config(config, trust_remote_code=False)


def new_model(config: Any, *, seed: int, log_unigram: Tensor | None = None) -> PreTrainedModel:
    """A masked language model with fresh weights.

    Args:
        seed: of the initialisation.
        log_unigram: (V,) start values of the output bias. Without them a model spends its first thousand
            steps learning how frequent each token is.

    Raises:
        MaskwiseError: no model can be built from the configuration, or this machine cannot hold it.
    """
    torch.manual_seed(fold(seed, 0x1217))
    model = build_model(config)
    _start_bias(model, log_unigram)
    return model


def check_memory(config: Any, auto: Any = AutoModelForMaskedLM) -> None:
    """Refuse a model that cannot be built, or whose float32 weights exceed the memory of this machine. (Training takes
    four times that.)"""
    weights = sum(p.numel() for p in empty_model(config, auto).parameters())
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * weights > here:
        got, allowed = f"{weights:,} weights, {weights / 2.5e8:,.0f} GB", f"{here / 1e9:,.0f} GB"
        raise MaskwiseError(
            "the model does not fit into memory", got=got, allowed=allowed, do="make it smaller"
        )


def _start_bias(model: PreTrainedModel, log_unigram: Tensor | None) -> None:
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if log_unigram is not None and bias is not None:
        with torch.no_grad():
            bias[: len(log_unigram)] = log_unigram


def load_config(name: str | Path) -> PreTrainedConfig:
    """The configuration of a pre-trained encoder; ``name`` as for ``starts.find_start``."""
    config = _load(AutoConfig, name)
    require_kind(config, "encoder", use=f"masked language modelling with {str(name)!r}")
    return config


def load_model(
    name: str | Path, *, seed: int | None = None, log_unigram: Tensor | None = None
) -> PreTrainedModel:
    """A pre-trained masked language model, in float32.

    An encoder that comes without a masked-language-model head gets a new one if that is to be trained (``seed``), and
    is refused where the head would be used as it is.

    Args:
        name: as for ``starts.find_start``.
        seed: of a new head, for a checkpoint that has none. None: such a checkpoint is refused.
        log_unigram: (V,) start values of a new head's output bias.

    Raises:
        MaskwiseError: nothing to load; an encoder–decoder; a checkpoint that is damaged or not whole; no head, and no
            seed for one.
    """
    load_config(name)
    with without_advice(), torch.random.fork_rng():
        torch.manual_seed(fold(seed or 0, 0x1217))
        model, lacking = _load_whole(AutoModelForMaskedLM, name, dtype=torch.float32)
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
        return not _load_whole(AutoModelForMaskedLM, name, device_map="meta")[1]


def task_config(start: str | Path | PreTrainedConfig, labels: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of a checkpoint (or another one) with what a task says of its classes."""
    if isinstance(start, PreTrainedConfig):
        config = type(start).from_dict({**start.to_dict(), **labels})
    else:
        config = _load(AutoConfig, start, **labels)
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean"  # ModernBERT; masked modelling has taught [CLS] nothing
    return config


def load_task_model(
    name: str | Path | None, config: PreTrainedConfig, *, head: str, seed: int
) -> PreTrainedModel:
    """A checkpoint with a new head for a task (also in place of one of another size), in float32, or random weights.

    Args:
        name: as for ``starts.find_start``; None for random weights.
        config: see ``task_config``.
        head: a key of ``TASK_MODELS``.
        seed: of the weights that are new.

    Raises:
        MaskwiseError: the family has no such head; a checkpoint that is damaged, or whose encoder is not whole.
    """
    auto = TASK_MODELS[head]
    if head == "embedding":  # an encoder–decoder would give the states of its decoder
        require_kind(config, "encoder", use="an embedding of texts")
    with without_advice(), torch.random.fork_rng():
        torch.manual_seed(fold(seed, 0x4EAD))
        if name is None:
            return build_model(config, auto)
        check_memory(config, auto)
        return _load_whole(auto, name, config=config, dtype=torch.float32)[0]


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


def _load_whole(auto: Any, name: str | Path, **how: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model whose encoder is whole, and the names of the weights outside of it that the checkpoint lacks."""
    how |= {"output_loading_info": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
    model, info = _load(auto, name, find=find_weights, **how)
    encoder = {id(tensor) for tensor in encoder_of(model).state_dict(keep_vars=True).values()}
    inside = {key for key, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in encoder}
    missing = set(info["missing_keys"])
    # A pooler stands inside of the encoder and belongs to the head: masked language models have none.
    holes = sorted(key for key in inside & missing if "pooler" not in key.split("."))
    if holes:
        what = f"{str(name)!r} lacks weights of its encoder"
        raise MaskwiseError(what, got=f"no {holes[0]}, {len(holes)} in all", do="take a whole checkpoint")
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        if key in inside or auto is AutoModelForMaskedLM:
            what = f"the weights of {str(name)!r} do not fit its config.json"
            sizes = f"{tuple(stored)} for {tuple(wanted)}"
            raise MaskwiseError(what, got=f"{key} of {sizes}", do="take a whole checkpoint")
    return model, sorted(missing)


def _load(auto: Any, name: str | Path, *, find: Callable[[str | Path], str] = find_start, **how: Any) -> Any:
    where = find(name)
    try:
        return auto.from_pretrained(where, trust_remote_code=False, **how)
    except Exception as error:  # a damaged file raises those of json, safetensors and transformers
        raise MaskwiseError(f"cannot load a model from {str(name)!r}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _quieten(model: PreTrainedModel, lacking: list[str]) -> None:
    """Let a new head begin near its bias: ``QUIET``. ``lacking``: names of the weights that are new."""
    with torch.no_grad():
        for name in lacking:
            if name.endswith("weight") and (weight := model.get_parameter(name)).ndim == 1:  # of a norm
                weight.fill_(QUIET)
