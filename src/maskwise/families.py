"""Families: the differences between kinds of models, as one ``Adapter`` each.

An adapter knows where the encoder and the prediction head are, and how positions are counted. A
family is one line of ``ENCODERS`` or ``ENCODER_DECODERS``. A model without a line works too: its
own logits are taken at every place, which is slower and gives the same loss.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from maskwise.attention import Documents, separate
from maskwise.errors import MaskwiseError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Head = Callable[[Any, Tensor], Tensor]
"""From a model and its hidden states (M, H) to logits (M, V)."""

Kind = Literal["encoder", "encoder-decoder"]

_CROSSED = re.compile(r"(encoder_attn|EncDecAttention)\.[kv](_proj)?\.")
"""Parameters that make keys and values of cross-attention, in BART's and T5's names."""

MOST_PARTS = {
    "labels": 1_000_000,
    "layers": 1000,
    "experts": 10_000,
    "groups": 1000,
    "group_num": 1000,
    "blocks": 1000,
    "block_sizes": 1000,
    "block_repeats": 1000,
    "networks": 1000,
    "ngram": 1000,
}
"""The largest numbers in a configuration, by the endings of its fields' names."""


@dataclass(frozen=True)
class Adapter:
    """A family of encoders: a label belongs to the input token at the same place.

    Attributes:
        head: the prediction head; None: unknown, take the model's own logits.
        counts_from_pad: whether positions begin at pad + 1, as in RoBERTa.
        separates: whether its attention can keep documents of a packed row apart (``attention``).
    """

    kind: ClassVar[Kind] = "encoder"

    head: Head | None = None
    counts_from_pad: bool = False
    separates: bool = False

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        """The part of a model that reads a text."""
        return model.base_model

    def states(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, L, H): the input of the prediction head, at the places of the labels."""
        return self.encoder(model)(**inputs).last_hidden_state

    def apart(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], documents: Tensor
    ) -> dict[str, Any]:
        """The inputs (B, L) with which ``documents`` (B, L) of packed rows are read one by one."""
        separate(model)
        read = Documents(documents)
        positions = read.positions + self.first_position(model.config.pad_token_id)
        return {**without(inputs, "attention_mask"), "position_ids": positions, "documents": read}

    def first_position(self, pad: int | None) -> int:
        """The index of a row's first position."""
        return (pad or 0) + 1 if self.counts_from_pad else 0


@contextlib.contextmanager
def _positions(part: nn.Module, documents: Documents | None) -> Iterator[None]:
    """Let the positions of an encoder or decoder start over with every document.

    BART counts positions by itself, in a table that takes those of one row; here all rows are
    given as one. T5's attention knows only distances, and needs no such table.
    """
    table = getattr(part, "embed_positions", None)
    if documents is None or table is None:
        yield
        return
    shape = documents.ids.shape
    line = {"position_ids": documents.positions.flatten()}
    before = table.register_forward_pre_hook(
        lambda _, inputs, named: (inputs, named | line), with_kwargs=True
    )
    after = table.register_forward_hook(lambda _, _inputs, output: output.view(*shape, -1))
    try:
        yield
    finally:
        before.remove()
        after.remove()


@dataclass(frozen=True)
class EncoderDecoder(Adapter):
    """A family of encoder–decoders: the decoder reads the labels, shifted by one.

    Attributes:
        starts_with: the token that a new model's decoder begins with.
    """

    kind = "encoder-decoder"

    starts_with: Literal["pad", "eos"] = "pad"

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        return model.get_encoder()

    def states(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
        """(B, L', H) of the decoder from ``decoder_input_ids`` (B, L').

        With ``documents`` and ``decoder_documents``, documents are read and written one by one.
        """
        written = inputs.get("decoder_documents")
        encoder = self.encoder(model)
        decoder = model.get_decoder()
        with _positions(encoder, inputs.get("documents")):
            encoded = encoder(**without(inputs, "decoder_input_ids", "decoder_documents"))
        # Transformers passes it on to every attention layer.
        apart = {} if written is None else {"documents": written}
        with _positions(decoder, written):
            return decoder(
                input_ids=inputs["decoder_input_ids"],
                encoder_hidden_states=encoded.last_hidden_state,
                encoder_attention_mask=inputs.get("attention_mask"),
                use_cache=False,
                **apart,
            ).last_hidden_state


def without(inputs: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    """The inputs except some names."""
    return {name: value for name, value in inputs.items() if name not in names}


def chain(*names: str) -> Head:
    """The head that calls these modules of a model one after the other."""

    def head(model: Any, states: Tensor) -> Tensor:
        for name in names:
            states = getattr(model, name)(states)
        return states

    return head


def _bart(model: Any, states: Tensor) -> Tensor:
    return model.lm_head(states) + model.final_logits_bias


def _t5(model: Any, states: Tensor) -> Tensor:
    if model.config.scale_decoder_outputs:  # where the head is tied to the embeddings
        states = states * model.model_dim**-0.5
    return model.lm_head(states)


ROBERTA = Adapter(chain("lm_head"), counts_from_pad=True, separates=True)

ENCODERS: Mapping[str, Adapter] = {
    "bert": Adapter(chain("cls"), separates=True),
    "deberta-v2": Adapter(chain("cls")),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "mpnet": Adapter(chain("lm_head"), counts_from_pad=True),
    "albert": Adapter(chain("predictions"), separates=True),
    "distilbert": Adapter(
        chain("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector")
    ),
    "electra": Adapter(chain("generator_predictions", "generator_lm_head"), separates=True),
    "modernbert": Adapter(chain("head", "decoder"), separates=True),
    "eurobert": Adapter(chain("lm_head"), separates=True),
    "nomic_bert": Adapter(chain("cls"), separates=True),
    "esm": Adapter(chain("lm_head")),
    "esmc": Adapter(chain("lm_head")),
}
"""The encoders that differ from ``Adapter()``, by ``config.model_type``."""

ENCODER_DECODERS: Mapping[str, EncoderDecoder] = {
    "bart": EncoderDecoder(_bart, starts_with="eos", separates=True),
    "t5": EncoderDecoder(_t5, separates=True),
}
"""The encoder–decoders with a known head, by ``config.model_type``."""


def adapter_of(config: PreTrainedConfig) -> Adapter:
    """What maskwise knows of a model's family."""
    if getattr(config, "is_encoder_decoder", False):
        return ENCODER_DECODERS.get(config.model_type, EncoderDecoder())
    return ENCODERS.get(config.model_type, Adapter())


def require_kind(config: PreTrainedConfig, kind: Kind, *, use: str, do: str | None = None) -> None:
    """Raise unless a model has the kind that ``use`` needs; ``do`` replaces the usual advice."""
    if adapter_of(config).kind != kind:
        got = f"{config.model_type}, which is an {adapter_of(config).kind}"
        usual = {
            "encoder": "take bert or modernbert, for example, or objective: denoise",
            "encoder-decoder": "take bart or t5, for example, or objective: mlm",
        }
        raise MaskwiseError(f"{use} needs an {kind}", got=got, do=do or usual[kind])


def start_token(config: PreTrainedConfig) -> int:
    """The token that the decoder begins with.

    Raises:
        MaskwiseError: the configuration names none.
    """
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        what = f"this {config.model_type} model has no start token for its decoder"
        usual = "T5 starts with the padding token, BART with </s>"
        do = f"set decoder_start_token_id in its config.json ({usual})"
        raise MaskwiseError(what, do=do)
    return int(start)


def decoder_inputs(
    config: PreTrainedConfig, labels: Tensor, documents: Tensor | None = None
) -> Tensor:
    """(B, L') int64: the decoder's input, which is the start token and the targets, shifted by one.

    Args:
        documents: (B, L') int64, the document of each target, if a row has several; each begins
            with the start token.

    Raises:
        MaskwiseError: the configuration names no start token; targets longer than the decoder's
            positions.
    """
    start = start_token(config)
    room = most_tokens(config)
    longest = labels.shape[1]
    if documents is not None and longest > room:  # otherwise no host has to wait for this
        longest = int(Documents(documents).positions.max()) + 1
    if longest > room:
        what = "targets are longer than the decoder's positions"
        do = "lower corpus.length, or take targets of masked spans only"
        raise MaskwiseError(what, got=longest, allowed=f"≤ {room}", do=do)
    shifted = labels.new_full(labels.shape, start)
    shifted[:, 1:] = labels[:, :-1]
    if documents is not None:
        # Each document of a packed row begins with its own start token.
        shifted[:, 1:].masked_fill_(documents[:, 1:] != documents[:, :-1], start)
    return shifted.masked_fill_(shifted < 0, config.pad_token_id or 0)


def encoder_of(model: PreTrainedModel) -> nn.Module:
    """The part of a model that turns tokens into hidden states."""
    return adapter_of(model.config).encoder(model)


def width_of(model: PreTrainedModel) -> int:
    """H, the width of a model's hidden states."""
    return int(model.config.hidden_size)


def prediction_head(model: PreTrainedModel) -> Head | None:
    """The prediction head of a masked language model, or None if it is not known."""
    # DeBERTa's newer head is another one.
    if model.config.model_type == "deberta-v2" and not hasattr(model, "cls"):
        return None
    return adapter_of(model.config).head


def masked_logits(
    model: PreTrainedModel, inputs: dict[str, Tensor], row: Tensor, column: Tensor
) -> Tensor:
    """Logits (M, V) at the places (row, column), both (M,).

    At 15 % masking, the vocabulary head at every place would waste seven eighths of its work.
    """
    head = prediction_head(model)
    if head is None:
        return model(**inputs).logits[row, column]
    return head(model, adapter_of(model.config).states(model, inputs)[row, column])


UNLIMITED = 1 << 29
"""A row's tokens in models without a limit, at least."""


def most_tokens(config: PreTrainedConfig) -> int:
    """The most tokens of a row, including special ones; about ``UNLIMITED`` without a limit."""
    try:
        positions = int(getattr(config, "max_position_embeddings", 0) or 2 * UNLIMITED)
    except (TypeError, ValueError):
        got = config.max_position_embeddings
        raise MaskwiseError("max_position_embeddings of the model is no number", got=got) from None
    return positions - adapter_of(config).first_position(config.pad_token_id)


def check_fit(config: PreTrainedConfig, tokens: int, *, do: str) -> None:
    """Raise if a tokenizer has more tokens than the model has embeddings; ``do`` is the advice."""
    if not isinstance(config.vocab_size, int) or tokens > config.vocab_size:
        what = "tokenizer and model do not fit"
        allowed = f"≤ {config.vocab_size}"
        raise MaskwiseError(what, got=f"{tokens} tokens", allowed=allowed, do=do)


def check_room(config: PreTrainedConfig, length: int, *, what: str) -> None:
    """Raise if rows are longer than the positions of a model; ``what`` names the setting."""
    room = most_tokens(config)
    if length > room:
        what = f"{what} is more than the model's positions"
        raise MaskwiseError(what, got=length, allowed=f"≤ {room}")


def check_counts(fields: Mapping[str, Any]) -> None:
    """Raise if a configuration, or one nested in it, has more parts than ``MOST_PARTS``.

    Transformers builds them before anything can be compared: a billion classes are a dictionary of
    gigabytes, and a billion layers never end.
    """
    for name, value in fields.items():
        if isinstance(value, Mapping):
            check_counts(value)
        numbers = value if isinstance(value, list) else [value]
        largest = max((number for number in numbers if isinstance(number, int)), default=0)
        for ending, most in MOST_PARTS.items():
            if name.endswith(ending) and largest > most:
                what = f"a model cannot have this {name}"
                raise MaskwiseError(what, got=value, allowed=f"≤ {most:,}")


def check_size(model: PreTrainedModel) -> None:
    """Raise if a model's float32 weights exceed this machine's memory."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    size = 4 * weights + sum(buffer.nbytes for buffer in model.buffers())
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > here:
        what = "the model does not fit into memory"
        got = f"{weights:,} weights, {size / 1e9:,.0f} GB"
        raise MaskwiseError(what, got=got, allowed=f"{here / 1e9:,.0f} GB", do="make it smaller")


def check_finite(weights: Mapping[str, Tensor], name: object) -> None:
    """Raise if weights are NaN or infinite, as after divergence; takes .1 s for a gigabyte."""
    for key, tensor in weights.items():
        floats = tensor.is_floating_point() and tensor.numel()
        if floats and not torch.stack(tensor.aminmax()).isfinite().all():
            do = "take another checkpoint: the training of this one diverged"
            raise MaskwiseError(f"the weights of {str(name)!r} are not finite", got=key, do=do)


def encoder_weights(model: PreTrainedModel) -> int:
    """Weights that multiply each token: the encoder's, without its embeddings."""
    return multiplied_weights(encoder_of(model))


def attention_work(config: PreTrainedConfig, tokens: float, squares: float) -> float:
    """Multiplications of an encoder's attention within documents, in a forward pass.

    2 · H for each layer and each pair of tokens that attend to each other: the scores, and the
    weighted sums. In a sliding layer a token attends to at most its window; for documents of mixed
    lengths this is a slight overestimate.

    Args:
        tokens: that are read.
        squares: Σ length² over their documents.
    """
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    # ModernBERT alternates full and sliding attention.
    sliding = kinds.count("sliding_attention")
    window = tokens * (2 * (getattr(config, "sliding_window", None) or 0) + 1)
    pairs = (len(kinds) - sliding) * squares + sliding * min(squares, window)
    return 2.0 * config.hidden_size * pairs


def head_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Weights that multiply each target: the prediction head's, and those tied to embeddings."""
    parts = [encoder_of(model)]
    if adapter_of(model.config).kind == "encoder-decoder":
        parts.append(model.get_decoder())
    inside = {id(p) for part in parts for p in part.parameters()}
    own = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    out = model.get_output_embeddings()
    tied = out is not None and id(out.weight) in inside
    return own, out.weight.numel() if tied else 0


def decoder_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Weights of a decoder, without embeddings, that multiply (each target, each token read).

    The latter make the keys and values of cross-attention.
    """
    decoder = model.get_decoder()
    crossed = sum(p.numel() for name, p in decoder.named_parameters() if _CROSSED.search(name))
    return multiplied_weights(decoder) - crossed, crossed


def multiplied_weights(module: nn.Module) -> int:
    """Weights of a module without its embeddings, which are looked up."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return sum(p.numel() for p in module.parameters() if id(p) not in tables)
