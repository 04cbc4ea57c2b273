"""Families: what differs from one kind of model to the next, and nothing of how models are built or
loaded.

What differs stands in an ``Adapter``: where the encoder is, where the prediction head is and what
it reads, how positions are counted. A family of encoders is one line of ``ENCODERS``, one of
encoder–decoders one line of ``ENCODER_DECODERS``. A model that has no line still works: its own
logits are taken at every place, which is slower and gives the same loss.
"""

from __future__ import annotations

import contextlib
import inspect
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
"""Parameters of cross-attention that work for the tokens of the encoder, in BART's and T5's names.
"""


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
"""What a configuration may say of the number of something, by how the names of its fields end."""


@dataclass(frozen=True)
class Adapter:
    """A family of encoders: a label belongs to the input token at the same place.

    Attributes:
        head: the prediction head; None where it is not known, and the model's own logits are taken.
        counts_from_pad: the first position has the number pad + 1, as in RoBERTa.
        separates: whether its attention can keep the documents of a packed row apart
            (``attention``).
    """

    kind: ClassVar[Kind] = "encoder"

    head: Head | None = None
    counts_from_pad: bool = False
    separates: bool = False

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        """The part of a model that reads: what is frozen, evaluated, and saved for others."""
        return model.base_model

    def states(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, L, H): what the prediction head reads, at the places of the labels."""
        return self.encoder(model)(**inputs).last_hidden_state

    def apart(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], documents: Tensor
    ) -> dict[str, Any]:
        """The inputs (B, L) of packed rows whose ``documents`` (B, L) are read one by one; see
        ``attention``.
        """
        separate(model)
        read = Documents(documents)
        positions = read.positions + self.first_position(model.config.pad_token_id)
        return {**without(inputs, "attention_mask"), "position_ids": positions, "documents": read}

    def first_position(self, pad: int | None) -> int:
        """The number of a row's first position."""
        return (pad or 0) + 1 if self.counts_from_pad else 0


@contextlib.contextmanager
def _positions(part: nn.Module, documents: Documents | None) -> Iterator[None]:
    """Let the table of positions of an encoder or decoder start over with every document.

    BART counts positions by itself, in a table that takes those of one row alone: here of all rows,
    one behind the other. T5 has no such table: its attention knows distances alone.
    """
    table = getattr(part, "embed_positions", None)
    if documents is None or table is None:
        yield
        return
    shape, line = documents.ids.shape, {"position_ids": documents.positions.flatten()}
    hooks = (
        table.register_forward_pre_hook(
            lambda _, inputs, named: (inputs, named | line), with_kwargs=True
        ),
        table.register_forward_hook(lambda _, _inputs, output: output.view(*shape, -1)),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class EncoderDecoder(Adapter):
    """BART, T5 and their like: labels are a sequence of their own, which the decoder also reads,
    one place later.

    Attributes:
        starts_with: the token that a new model's decoder begins with.
    """

    kind = "encoder-decoder"

    starts_with: Literal["pad", "eos"] = "pad"

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        return model.get_encoder()

    def states(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
        """(B, L', H) of the decoder; ``inputs`` hold ``decoder_input_ids`` (B, L').

        Where they also hold ``documents`` and ``decoder_documents``, every document is read, and
        written, by itself.
        """
        read, written = inputs.get("documents"), inputs.get("decoder_documents")
        texts = without(inputs, "decoder_input_ids", "decoder_documents")
        with _positions(self.encoder(model), read):
            encoded = self.encoder(model)(**texts).last_hidden_state
        apart = {} if written is None else {"documents": written}
        with _positions(model.get_decoder(), written):
            return model.get_decoder()(
                input_ids=inputs["decoder_input_ids"],
                encoder_hidden_states=encoded,
                encoder_attention_mask=inputs.get("attention_mask"),
                use_cache=False,
                **apart,
            ).last_hidden_state


def without(inputs: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    """The inputs but for those with some names."""
    return {name: value for name, value in inputs.items() if name not in names}


def _scaled(model: Any, states: Tensor) -> Tensor:
    """The head of T5: where it is tied to the embeddings, states are made smaller first."""
    return model.lm_head(
        states * model.model_dim**-0.5 if model.config.scale_decoder_outputs else states
    )


ENCODERS: Mapping[str, Adapter] = {
    "bert": Adapter(lambda m, h: m.cls(h), separates=True),
    "deberta-v2": Adapter(lambda m, h: m.cls(h)),
    "roberta": Adapter(lambda m, h: m.lm_head(h), counts_from_pad=True, separates=True),
    "xlm-roberta": Adapter(lambda m, h: m.lm_head(h), counts_from_pad=True, separates=True),
    "camembert": Adapter(lambda m, h: m.lm_head(h), counts_from_pad=True, separates=True),
    "mpnet": Adapter(lambda m, h: m.lm_head(h), counts_from_pad=True),
    "albert": Adapter(lambda m, h: m.predictions(h), separates=True),
    "distilbert": Adapter(
        lambda m, h: m.vocab_projector(m.vocab_layer_norm(m.activation(m.vocab_transform(h))))
    ),
    "electra": Adapter(
        lambda m, h: m.generator_lm_head(m.generator_predictions(h)), separates=True
    ),
    "modernbert": Adapter(lambda m, h: m.decoder(m.head(h)), separates=True),
    "eurobert": Adapter(lambda m, h: m.lm_head(h), separates=True),
    "nomic_bert": Adapter(lambda m, h: m.cls(h), separates=True),
    "esm": Adapter(lambda m, h: m.lm_head(h)),
    "esmc": Adapter(lambda m, h: m.lm_head(h)),
}
"""The encoders that differ from ``Adapter()``, by ``config.model_type``."""

ENCODER_DECODERS: Mapping[str, EncoderDecoder] = {
    "bart": EncoderDecoder(
        lambda m, h: m.lm_head(h) + m.final_logits_bias, starts_with="eos", separates=True
    ),
    "t5": EncoderDecoder(_scaled, separates=True),
}
"""Those whose head maskwise knows, by ``config.model_type``; the others give their own logits."""


def adapter_of(config: PreTrainedConfig) -> Adapter:
    """What maskwise knows of a model's family."""
    if getattr(config, "is_encoder_decoder", False):
        return ENCODER_DECODERS.get(config.model_type, EncoderDecoder())
    return ENCODERS.get(config.model_type, Adapter())


def require_kind(config: PreTrainedConfig, kind: Kind, *, use: str, do: str | None = None) -> None:
    """Refuse a model of another kind than ``use`` works with; ``do`` is what to do then, if not the
    usual.
    """
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
        do = (
            "set decoder_start_token_id in its config.json (T5 starts with the padding token, "
            "BART with </s>)"
        )
        raise MaskwiseError(
            f"this {config.model_type} model has no start token for its decoder", do=do
        )
    return int(start)


def decoder_inputs(
    config: PreTrainedConfig, labels: Tensor, documents: Tensor | None = None
) -> Tensor:
    """(B, L') int64: what the decoder reads, which is its targets one place later, behind its start
    token.

    Args:
        documents: (B, L') int64, the document of each target, where a row has several: each begins
            with that token.

    Raises:
        MaskwiseError: the configuration names no start token; targets longer than the decoder's
            positions.
    """
    start, room, longest = start_token(config), most_tokens(config), labels.shape[1]
    # looked at only here: on an accelerator the host has to wait for it
    if documents is not None and longest > room:
        longest = int(Documents(documents).positions.max()) + 1
    if longest > room:
        do = "lower corpus.length, or take targets of masked spans only"
        raise MaskwiseError(
            "targets are longer than the decoder's positions",
            got=longest,
            allowed=f"≤ {room}",
            do=do,
        )
    shifted = labels.new_full(labels.shape, start)
    shifted[:, 1:] = labels[:, :-1]
    if documents is not None:
        shifted[:, 1:].masked_fill_(documents[:, 1:] != documents[:, :-1], start)
    return shifted.masked_fill_(shifted < 0, config.pad_token_id or 0)


def encoder_of(model: PreTrainedModel) -> nn.Module:
    """The part of a model that turns tokens into hidden states."""
    return adapter_of(model.config).encoder(model)


def width_of(model: PreTrainedModel) -> int:
    """H, the width of a model's hidden states."""
    return int(model.config.hidden_size)


def prediction_head(model: PreTrainedModel) -> Head | None:
    """The prediction head of a masked language model, or None where maskwise does not know it."""
    # its newer, unfactored head
    if model.config.model_type == "deberta-v2" and not hasattr(model, "cls"):
        return None
    return adapter_of(model.config).head


def masked_logits(
    model: PreTrainedModel, inputs: dict[str, Tensor], row: Tensor, column: Tensor
) -> Tensor:
    """Logits (M, V) at the places (row, column), both (M,).

    The vocabulary head is the widest layer: at 15 % masking, running it on every place wastes seven
    eighths of it.
    """
    head = prediction_head(model)
    if head is None:
        return model(**inputs).logits[row, column]
    return head(model, adapter_of(model.config).states(model, inputs)[row, column])


def takes_token_types(model: nn.Module) -> bool:
    """Whether a model reads ``token_type_ids``: tokenizers also offer them to models that know
    none.
    """
    return "token_type_ids" in inspect.signature(model.forward).parameters


UNLIMITED = 1 << 29
"""Tokens of a row that no positions limit, at least."""


def most_tokens(config: PreTrainedConfig) -> int:
    """How many tokens a row may have, special ones included; ``UNLIMITED`` or nearly, where nothing
    limits them.
    """
    try:
        positions = int(getattr(config, "max_position_embeddings", 0) or 2 * UNLIMITED)
    except (TypeError, ValueError):
        got = config.max_position_embeddings
        raise MaskwiseError("max_position_embeddings of the model is no number", got=got) from None
    return positions - adapter_of(config).first_position(config.pad_token_id)


def check_fit(config: PreTrainedConfig, tokens: int, *, do: str) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings; ``do`` says what to do
    about it.
    """
    if not isinstance(config.vocab_size, int) or tokens > config.vocab_size:
        got, allowed = f"{tokens} tokens", f"≤ {config.vocab_size}"
        raise MaskwiseError("tokenizer and model do not fit", got=got, allowed=allowed, do=do)


def check_room(config: PreTrainedConfig, length: int, *, what: str) -> None:
    """Refuse rows that are longer than the positions of a model; ``what`` names the setting."""
    room = most_tokens(config)
    if length > room:
        raise MaskwiseError(
            f"{what} is more than the model's positions", got=length, allowed=f"≤ {room}"
        )


def check_counts(fields: Mapping[str, Any]) -> None:
    """Refuse a configuration with more parts of a kind than any model has (``MOST_PARTS``).

    Transformers builds them one by one before anything can be compared: a billion classes are a
    dictionary of gigabytes, and a billion layers never end.

    Raises:
        MaskwiseError: a number in these fields, or in a configuration inside of them, is too large.
    """
    for name, value in fields.items():
        if isinstance(value, Mapping):
            check_counts(value)
        numbers = value if isinstance(value, list) else [value]
        largest = max((number for number in numbers if isinstance(number, int)), default=0)
        for ending, most in MOST_PARTS.items():
            if name.endswith(ending) and largest > most:
                raise MaskwiseError(
                    f"a model cannot have this {name}", got=value, allowed=f"≤ {most:,}"
                )


def check_size(model: PreTrainedModel) -> None:
    """Refuse a model whose float32 weights do not fit into this machine's memory. (Training takes
    four times that.)
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    size = 4 * weights + sum(buffer.nbytes for buffer in model.buffers())
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > here:
        got, allowed = f"{weights:,} weights, {size / 1e9:,.0f} GB", f"{here / 1e9:,.0f} GB"
        raise MaskwiseError(
            "the model does not fit into memory", got=got, allowed=allowed, do="make it smaller"
        )


def check_finite(weights: Mapping[str, Tensor], name: object) -> None:
    """Refuse weights that are NaN or infinite, as a training that diverged leaves them. Costs .1 s
    for a gigabyte.
    """
    for key, tensor in weights.items():
        if tensor.is_floating_point() and tensor.numel():
            ends = torch.stack(tensor.aminmax())
            if not ends.isfinite().all():
                do = "take another checkpoint: the training of this one diverged"
                raise MaskwiseError(f"the weights of {str(name)!r} are not finite", got=key, do=do)


def encoder_weights(model: PreTrainedModel) -> int:
    """Weights that work for every token: the encoder's, without its embeddings."""
    return multiplied_weights(encoder_of(model))


def attention_work(config: PreTrainedConfig, tokens: float, squares: float) -> float:
    """Multiplications of an encoder's attention in a forward pass, where tokens see their own
    document only.

    2 · H for every layer and every pair of tokens of which one sees the other: the scores, and the
    sums they weigh. A sliding layer has at most its window for every token; of documents of mixed
    lengths that is a little too many.

    Args:
        tokens: that are read.
        squares: Σ length² over their documents.
    """
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = tokens * (2 * (getattr(config, "sliding_window", None) or 0) + 1)
    pairs = sum(min(squares, window) if kind == "sliding_attention" else squares for kind in kinds)
    return 2.0 * config.hidden_size * pairs


def head_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Weights of the prediction head, which work for every target: (its own, those tied to the
    embeddings).
    """
    inside = {
        id(p) for part in (encoder_of(model), decoder_of(model)) if part for p in part.parameters()
    }
    out = model.get_output_embeddings()
    tied = out.weight.numel() if out is not None and id(out.weight) in inside else 0
    return sum(p.numel() for p in model.parameters() if id(p) not in inside), tied


def decoder_of(model: PreTrainedModel) -> nn.Module | None:
    """The part of a model that writes; None for an encoder."""
    return model.get_decoder() if adapter_of(model.config).kind == "encoder-decoder" else None


def decoder_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Weights of a decoder without its embeddings: (those that work for every target, those for
    every token read).

    The latter make the keys and values of cross-attention.
    """
    decoder = decoder_of(model)
    assert decoder is not None, "an encoder has no decoder"
    crossed = sum(p.numel() for name, p in decoder.named_parameters() if _CROSSED.search(name))
    return multiplied_weights(decoder) - crossed, crossed


def multiplied_weights(module: nn.Module) -> int:
    """Weights of a module without those that are only looked up."""
    tables = (m for m in module.modules() if isinstance(m, nn.Embedding))
    looked_up = {id(p): p.numel() for m in tables for p in m.parameters()}
    return sum(p.numel() for p in module.parameters()) - sum(looked_up.values())
