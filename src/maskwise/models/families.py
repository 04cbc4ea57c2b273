"""Model families: an ``Adapter`` describes the differences between transformers' model families.

An adapter finds the encoder of a model, and knows the first position index of the family. Each
known family, such as bert, has an entry in ``ENCODERS`` or ``ENCODER_DECODERS``.

The prediction head needs no entry: it is the model itself, whose encoder hands on the states of
targets (``prediction_head``).
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from maskwise.base.constants import Kind
from maskwise.base.devices import Tensors
from maskwise.base.errors import MaskwiseError, refuse_version
from maskwise.models.attention import NAME, REPLACED, DocumentIds, separate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Head = Callable[[Tensor], Tensor]
"""A function from hidden states (M, H) to logits (M, V)."""

Inputs: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Adapter:
    """A family of encoders. Labels are aligned with the input tokens.

    Attributes:
        counts_from_pad: whether the first position index is the padding id plus 1, as in RoBERTa.
        pad: the padding id that a family's code assumes, whatever its configuration says.
        separates: whether ``maskwise.models.attention`` can keep the documents of a packed row
            apart.
    """

    kind: ClassVar[Kind] = "encoder"

    counts_from_pad: bool = False
    pad: int | None = None
    separates: bool = False

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        """Return the encoder of a model."""
        return model.base_model

    def states(self, model: PreTrainedModel, inputs: Tensors) -> Tensor:
        """(B, L, H): the input of the prediction head, a hidden state for each label."""
        return self.aligned(self.encoder(model)(**inputs).last_hidden_state, inputs)

    def aligned(self, found: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """(B, L, …): states or logits, each at the token that it predicts."""
        return found

    def apart(self, model: PreTrainedModel, inputs: Tensors, documents: Tensor) -> Inputs:
        """Return model inputs with which tokens attend only within the ``documents`` (B, L).

        Positions begin anew in every document, unless the inputs have ``position_ids``.
        """
        separate(model)
        read = DocumentIds(documents)
        positions = inputs.get("position_ids")
        if positions is None:
            positions = read.positions + self.first_position(model.config)
        return {
            **without_inputs(inputs, "attention_mask"),
            "position_ids": positions,
            "documents": read,
        }

    def first_position(self, config: PreTrainedConfig) -> int:
        """Return the position index of the first token in a row."""
        if not self.counts_from_pad:
            return 0
        pad = config.pad_token_id or 0 if self.pad is None else self.pad
        return pad + 1


@dataclass(frozen=True)
class Decoder(Adapter):
    """A decoder that sees later tokens. Its head predicts the next token, as it was trained to.

    So a masked token is predicted from the position before it; the first one of a text, from its
    own.
    """

    def aligned(self, found: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        before = torch.cat([found[:, :1], found[:, :-1]], dim=1)
        documents = inputs.get("documents")
        if documents is None:
            return before
        return torch.where((documents.positions == 0).unsqueeze(-1), found, before)

    def apart(self, model: PreTrainedModel, inputs: Tensors, documents: Tensor) -> Inputs:
        apart = super().apart(model, inputs, documents)
        # Its layers still say that they are causal.
        return {**apart, "documents": replace(apart["documents"], causal=False)}


@dataclass(frozen=True)
class Esm(Adapter):
    """ESM-1b and ESM-2, which scale embeddings by the share of mask tokens (``token_dropout``)."""

    def apart(self, model: PreTrainedModel, inputs: Tensors, documents: Tensor) -> Inputs:
        encoder = self.encoder(model)
        hooks = encoder._forward_pre_hooks.values()
        if model.config.token_dropout and _scale_by_document not in hooks:
            encoder.register_forward_pre_hook(_scale_by_document, with_kwargs=True)
        return super().apart(model, inputs, documents)

    def first_position(self, config: PreTrainedConfig) -> int:
        """Return 0 for rotary positions. Learned positions begin after the padding id."""
        if config.position_embedding_type == "rotary":
            return 0
        return super().first_position(config)


ESM_MASKED = 0.15 * 0.8
"""The share of mask tokens in ESM's pre-training. ESM scales the embeddings of a text as if this
share of its tokens were masked."""


def _scale_by_document(
    encoder: Any, given: tuple[Any, ...], named: Inputs
) -> tuple[tuple[None], Inputs] | None:
    """Scale ESM's embeddings by the share of mask tokens in each document and not in the row.

    This hook runs before the encoder's forward pass. It replaces ``input_ids`` by scaled
    ``inputs_embeds``, which transformers does not scale again.
    """
    documents = named.get("documents")
    if documents is None:
        return None
    # EsmForMaskedLM passes the tokens by position, and maskwise passes them by name.
    ids = given[0] if given else named["input_ids"]
    table = encoder.embeddings
    masked = ids == table.mask_token_id
    # Document d is counted in column d + 1, because padding has the number −1.
    column = documents.ids + 1
    zeros = torch.zeros(len(ids), ids.shape[1] + 1, device=ids.device)
    sizes = zeros.scatter_add(1, column, torch.ones_like(ids, dtype=zeros.dtype))
    masks = zeros.scatter_add(1, column, masked.to(zeros.dtype))
    share = (masks / sizes).gather(1, column)
    scale = (1 - ESM_MASKED) / (1 - share)
    words = table.word_embeddings(ids).masked_fill(masked.unsqueeze(-1), 0.0)
    scaled = (words * scale.unsqueeze(-1)).to(words.dtype)
    embedded = table(inputs_embeds=scaled, position_ids=named["position_ids"])
    return (None,), {**without_inputs(named, "input_ids"), "inputs_embeds": embedded}


TEMPORARY = (
    "forward",
    "_is_accelerate_prepared",
    "_original_forward",
    "drops",
    "generation_config",
    "p",
    "precision",
    "read_head",
    "training",
)
"""The attributes of modules that may be changed for a while. ``p`` is the rate of a dropout layer;
Accelerate sets ``forward`` and ``_original_forward``."""


@contextlib.contextmanager
def patched(
    module: nn.Module, names: Collection[str] = TEMPORARY, *, trained: bool = True
) -> Iterator[None]:
    """A context in which models may be changed. Afterwards they are as before, also after an error.

    Everything that maskwise changes in models for a while is changed in such a context: the
    attention implementation (``attention.separate``), the ``TEMPORARY`` attributes of modules, the
    hooks of ``Adapter.apart``, and which parameters are trained. Weights stay as they are.

    Args:
        module: a model, or a module that contains models, such as an objective.
        names: the attributes to restore.
        trained: whether to restore which parameters are trained.

    >>> layer = nn.Dropout(0.1)
    >>> with patched(layer):
    ...     layer.p = 0.5
    >>> layer.p
    0.1
    """
    parts = list(module.modules())
    attributes = []
    for part in parts:
        attributes.append({name: vars(part)[name] for name in names if name in vars(part)})
    weights = [(each, each.requires_grad) for each in module.parameters() if trained]
    attention = [(config, config._attn_implementation) for config in _configs(parts)]
    try:
        yield
    finally:
        for part, before in zip(parts, attributes, strict=True):
            for name in names:
                vars(part).pop(name, None)
            vars(part).update(before)
            for number, hook in [*part._forward_pre_hooks.items()]:
                if hook is _scale_by_document:
                    del part._forward_pre_hooks[number], part._forward_pre_hooks_with_kwargs[number]
        for parameter, requires_grad in weights:
            parameter.requires_grad = requires_grad
        # Setting the attention of a configuration also sets that of its parts, so parts come later.
        for config, implementation in attention:
            if config._attn_implementation != implementation:
                config._attn_implementation = implementation


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A context in which models are in evaluation mode. Afterwards they are as before.

    Attention is that of training, so that scores before and after the end of a training run are
    computed alike, and the host does not wait for masks.

    >>> layer = nn.Dropout(0.1)
    >>> with evaluating(layer):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    with patched(module):
        module.eval()
        separate_all(module)
        yield


def separate_all(module: nn.Module) -> None:
    """Replace the attention of all models in a module whose family supports it (``separate``)."""
    from transformers import PreTrainedModel

    for part in module.modules():
        if isinstance(part, PreTrainedModel) and adapter_of(part.config).separates:
            separate(part)


def _configs(parts: Iterable[nn.Module]) -> list[Any]:
    """Return the different configurations of modules, each before its parts."""
    found: dict[int, Any] = {}
    for part in parts:
        config: Any = vars(part).get("config")
        if hasattr(config, "_attn_implementation"):
            found.setdefault(id(config), config)
            for name in config.sub_configs:
                inner = getattr(config, name)
                if inner is not None:
                    found.setdefault(id(inner), inner)
    return list(found.values())


@contextlib.contextmanager
def _positions(part: nn.Module, documents: DocumentIds | None) -> Iterator[None]:
    """A context in which the positions of an encoder or decoder begin at 0 in every document.

    BART's position table accepts the positions of one row only, so that all rows are passed as one
    long row. T5 has no position table and needs no change.
    """
    table = getattr(part, "embed_positions", None)
    if documents is None or table is None:
        yield
        return
    shape = documents.ids.shape
    line = {"position_ids": documents.positions.flatten()}

    def add_positions(_: object, inputs: object, named: Inputs) -> tuple[object, Any]:
        return inputs, {**named, **line}

    def in_rows(_: object, _inputs: object, output: Tensor) -> Tensor:
        return output.view(*shape, -1)

    before = table.register_forward_pre_hook(add_positions, with_kwargs=True)
    after = table.register_forward_hook(in_rows)
    try:
        yield
    finally:
        before.remove()
        after.remove()


@dataclass(frozen=True)
class EncoderDecoder(Adapter):
    """A family of encoder–decoders. The decoder reads the labels, shifted by one.

    Attributes:
        starts_with: the special token that starts the decoder's text in new models.
        rotary: whether encoder and decoder have the argument ``position_ids``, for rotary
            embeddings.
    """

    kind = "encoder-decoder"

    starts_with: Literal["pad", "eos", "bos"] = "pad"
    rotary: bool = False

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        return model.get_encoder()

    def states(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
        """(B, L', H): the decoder's hidden states for ``decoder_input_ids`` (B, L').

        If inputs have ``documents`` and ``decoder_documents``, tokens attend only within documents.
        """
        read = inputs.get("documents")
        written = inputs.get("decoder_documents")
        encoder = self.encoder(model)
        decoder = model.get_decoder()
        with _positions(encoder, read):
            encoded = encoder(
                input_ids=inputs["input_ids"],
                attention_mask=inputs.get("attention_mask"),
                **{name: inputs[name] for name in ("global_attention_mask",) if name in inputs},
                **self._named(read),
            )
        with _positions(decoder, written):
            decoded = decoder(
                input_ids=inputs["decoder_input_ids"],
                encoder_hidden_states=encoded.last_hidden_state,
                encoder_attention_mask=inputs.get("attention_mask"),
                use_cache=False,
                **self._named(written),
            )
        return decoded.last_hidden_state

    def _named(self, documents: DocumentIds | None) -> Inputs:
        """Return the arguments that make an encoder or decoder attend within ``documents``."""
        if documents is None:
            return {}
        if self.rotary:
            return {"documents": documents, "position_ids": documents.positions}
        return {"documents": documents}


def without_inputs(inputs: Tensors, *names: str) -> dict[str, Tensor]:
    """Return a copy of the inputs without some names."""
    return {name: value for name, value in inputs.items() if name not in names}


ROBERTA = Adapter(counts_from_pad=True, separates=True)

ENCODERS: Mapping[str, Adapter] = {
    "bert": Adapter(separates=True),
    "deberta-v2": Adapter(),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "mpnet": Adapter(counts_from_pad=True, pad=1),
    "albert": Adapter(separates=True),
    "distilbert": Adapter(),
    "electra": Adapter(separates=True),
    "modernbert": Adapter(separates=True),
    "eurobert": Adapter(separates=True),
    "nomic_bert": Adapter(separates=True),
    "esm": Esm(counts_from_pad=True, separates=True),
    "esmc": Adapter(separates=True),
    "data2vec-text": Adapter(counts_from_pad=True),
    "ibert": Adapter(counts_from_pad=True),
    "longformer": Adapter(counts_from_pad=True),
    "luke": Adapter(counts_from_pad=True),
    "roberta-prelayernorm": Adapter(counts_from_pad=True),
    "xlm-roberta-xl": Adapter(counts_from_pad=True),
    "xmod": Adapter(counts_from_pad=True),
}
"""The known encoder families, by ``config.model_type``."""

ENCODER_DECODERS: Mapping[str, EncoderDecoder] = {
    "bart": EncoderDecoder(starts_with="eos", separates=True),
    "t5": EncoderDecoder(separates=True),
    "mt5": EncoderDecoder(separates=True),
    "umt5": EncoderDecoder(separates=True),
    "t5gemma": EncoderDecoder(starts_with="bos", rotary=True, separates=True),
}
"""The known encoder–decoder families, by ``config.model_type``."""

SEPARATING_DECODERS = frozenset(
    (
        *("apertus", "arcee", "cohere", "ernie4_5", "exaone4", "gemma", "gemma2"),
        *("gemma3_text", "glm", "gpt2", "gpt_neox", "granite", "helium", "hunyuan_v1_dense"),
        *("llama", "mistral", "mixtral", "olmo", "olmo2", "phi"),
        *("phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
    )
)
"""The families of decoders for which ``Adapter.separates`` was tried."""


def adapter_of(config: PreTrainedConfig) -> Adapter:
    """Return the adapter of a model's family, or the default adapter if the family is unknown.

    Raises:
        MaskwiseError: the installed transformers computes this family wrongly.
    """
    if config.model_type == "umt5":
        # Its decoder takes cross-attention for causal, and reads only the beginning of the text.
        refuse_version("transformers", ("5.17.0",), fixed="5.18", use="umt5")
    if config.is_encoder_decoder:
        return ENCODER_DECODERS.get(config.model_type, EncoderDecoder())
    kind = Adapter if getattr(config, "is_causal", True) else Decoder
    usual = kind(separates=config.model_type in SEPARATING_DECODERS)
    return ENCODERS.get(config.model_type, usual)


def require_kind(config: PreTrainedConfig, kind: Kind, *, use: str, do: str | None = None) -> None:
    """Raise ``MaskwiseError`` unless a model is of the given kind.

    An encoder must attend in both directions.

    Args:
        config: the configuration of the model.
        kind: the required kind.
        use: what the model is needed for, as the beginning of the error message.
        do: the advice in the error message; by default, an example of a fitting architecture.
    """
    found = adapter_of(config).kind
    if found == kind:
        require_both_directions(config, use=use)
        return
    if do is None:
        do = "use bert or modernbert, for example, or objective: denoise"
        if kind == "encoder-decoder":
            do = "use bart or t5, for example, or objective: mlm"
    raise MaskwiseError(
        f"{use} needs an {kind}", got=f"{config.model_type}, which is an {found}", do=do
    )


def require_both_directions(config: PreTrainedConfig, *, use: str) -> None:
    """Raise ``MaskwiseError`` if an encoder is set to attend to earlier tokens only."""
    for name in ("is_decoder", "causal"):  # XLM has the latter
        if getattr(config, name, False) and not config.is_encoder_decoder:
            raise MaskwiseError(
                f"{use} needs attention in both directions",
                got=f"{config.model_type} with {name}: true, which attends to earlier tokens only",
                do=f"set {name} to false in its configuration, or use another model",
            )


def require_separable(config: PreTrainedConfig, *, use: str, do: str | None = None) -> None:
    """Raise ``MaskwiseError`` unless maskwise's attention can take the place of an encoder's.

    Args:
        config: the configuration of the model. Its attention may not be chosen yet.
        use: what needs this attention, as the beginning of the error message.
        do: the advice if the family has another attention.
    """
    require_kind(config, "encoder", use=use, do=do)
    if not adapter_of(config).separates:
        raise MaskwiseError(
            f"{use} needs a family whose attention maskwise can replace",
            got=config.model_type,
            allowed=", ".join(name for name, family in ENCODERS.items() if family.separates),
            do=do,
        )
    attention = config._attn_implementation
    if attention not in (None, *REPLACED, NAME):
        raise MaskwiseError(
            f"{use} needs an attention that maskwise can replace",
            got=attention,
            allowed=", ".join(REPLACED),
            do="load the model with attn_implementation sdpa",
        )


def start_token(config: PreTrainedConfig) -> int:
    """Return the id of the token that starts the decoder's text.

    Raises:
        MaskwiseError: the configuration has no start token.
    """
    start = getattr(config, "decoder_start_token_id", None)
    if start is None and config.model_type == "t5gemma":
        start = config.bos_token_id
    if start is None:
        usual = "T5 starts with the padding token, BART with </s>"
        raise MaskwiseError(
            f"this {config.model_type} model has no start token for its decoder",
            do=f"set decoder_start_token_id in its config.json ({usual})",
        )
    return int(start)


def decoder_inputs(
    config: PreTrainedConfig, labels: Tensor, documents: Tensor | None = None
) -> Tensor:
    """(B, L') int64: the decoder's input, which is the start token and all targets but the last.

    Args:
        config: the configuration of the model.
        labels: (B, L') int64, the targets.
        documents: (B, L') int64, the document of each target in packed rows. Each document begins
            with the start token.

    Raises:
        MaskwiseError: the configuration has no start token, or the targets are longer than the
            decoder's positions.
    """
    start = start_token(config)
    room = most_tokens(config, written=True)
    longest = labels.shape[1]
    if documents is not None and longest > room:
        # The longest document is computed only if needed, because the host must wait for it.
        longest = int(DocumentIds(documents).positions.max()) + 1
    if longest > room:
        raise MaskwiseError(
            "targets are longer than the decoder's positions",
            got=longest,
            allowed=f"≤ {room}",
            do="lower corpus.length, or use a corruption whose targets are only the masked spans",
        )
    shifted = labels.new_full(labels.shape, start)
    shifted[:, 1:] = labels[:, :-1]
    if documents is not None:
        # Every document of a packed row begins with a start token.
        shifted[:, 1:].masked_fill_(documents[:, 1:] != documents[:, :-1], start)
    # Embeddings accept no negative ids, so ignored labels are replaced by padding.
    padding = config.pad_token_id or 0
    return shifted.masked_fill_(shifted < 0, padding)


def encoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the encoder of a model."""
    return adapter_of(model.config).encoder(model)


def width_of(model: PreTrainedModel) -> int:
    """Return H, the hidden size of a model."""
    return int(model.config.hidden_size)


CALLED_WHOLE = ("encoder-decoder", "fsmt", "perceiver", "prophetnet")
"""Families of transformers whose encoder, decoder and head cannot be called one after another."""


def prediction_head(model: PreTrainedModel) -> Head | None:
    """Return the prediction head of a language model, or None if it is unknown.

    The head is a shallow copy of the model that shares all weights, and whose encoder (and decoder)
    hands on the states that it is given. All layers after the encoder are computed by the model's
    own code. The head is unknown if this code is not of transformers.
    """
    foreign = not type(model).forward.__module__.startswith("transformers.")
    if foreign or model.config.model_type in CALLED_WHOLE:
        return None
    parts = model._modules
    hollow = [name for name, part in parts.items() if part is model.base_model]
    # T5's encoder and decoder have no module in common.
    hollow = hollow or ["encoder", "decoder"]
    if not parts.keys() >= {*hollow}:
        return None
    head = _without_hooks(model)
    head._modules = dict(parts)
    for name in hollow:
        head._modules[name] = _without_hooks(parts[name], forward=_hand_on)

    def logits(states_MH: Tensor) -> Tensor:
        return head(input_ids=states_MH.unsqueeze(0), return_dict=True).logits.squeeze(0)

    return logits


def _without_hooks(module: Any, **replaced: object) -> Any:
    """Return a shallow copy of a module, as its class defines it but for ``replaced``."""
    plain = copy.copy(module)
    vars(plain).pop("forward", None)
    vars(plain).update(replaced)
    plain._forward_hooks = OrderedDict()
    plain._forward_pre_hooks = OrderedDict()
    return plain


class _States(tuple[Tensor]):
    """What an encoder or a decoder returns, with states and nothing else."""

    last_hidden_state = property(lambda self: self[0])

    def __getattr__(self, name: str) -> None:
        return None


def _hand_on(
    input_ids: Any = None, *_: object, encoder_hidden_states: Any = None, **others: object
) -> _States:
    """The forward method of an encoder or a decoder that returns the states that it is given."""
    return _States((input_ids if encoder_hidden_states is None else encoder_hidden_states,))


def output_layer(model: PreTrainedModel) -> nn.Module | None:
    """Return the layer whose weight (V, H) makes logits of states, or None without a head."""
    if model.config.model_type == "deberta-v2" and hasattr(model, "lm_predictions"):
        # With ``legacy=False``, the head multiplies by the embeddings. For transformers, the output
        # layer is the one before.
        return model.get_input_embeddings()
    return model.get_output_embeddings()


def masked_logits(
    model: PreTrainedModel, inputs: dict[str, Tensor], row: Tensor, column: Tensor
) -> Tensor:
    """Return the logits (M, V) at the positions (``row``, ``column``), both (M,).

    With a known head, logits are computed only at these positions. At a masking ratio of 15 %, the
    head would otherwise waste 85 % of its work.
    """
    head = prediction_head(model)
    if head is None:
        logits = adapter_of(model.config).aligned(model(**inputs).logits, inputs)
        return picked(logits, row, column)
    states = adapter_of(model.config).states(model, inputs)
    return head(picked(states, row, column))


def picked(states_BLH: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """(M, H): the states at M different places (``row``, ``column``)."""
    # On a GPU, the backward pass of indexing with two tensors sorts the indices first.
    place = row * states_BLH.shape[1] + column
    return states_BLH.flatten(0, 1).index_select(0, place)


POSITIONS = "max_position_embeddings"
"""The field that most configurations have for the number of positions."""
UNLIMITED = 1 << 29
"""For models without a limit, ``most_tokens`` returns at least this number."""


def most_tokens(config: PreTrainedConfig, *, written: bool = False) -> int:
    """Return the maximum number of tokens in a row, including special tokens.

    Args:
        config: the configuration of the model.
        written: whether the row is written by the decoder of an encoder–decoder.
    """
    # LED's encoder reads longer texts than its decoder writes.
    part = "decoder" if written else "encoder"
    given = None
    for name in (POSITIONS, f"max_{part}_position_embeddings"):
        given = given or getattr(config, name, None)
    try:
        positions = int(given or 2 * UNLIMITED)
    except (TypeError, ValueError):
        raise MaskwiseError(
            "the model's max_position_embeddings is not a number", got=given
        ) from None
    return positions - adapter_of(config).first_position(config)


def positions_of(model: nn.Module) -> int | None:
    """Return the maximum number of tokens in a text; None if the model has no table of positions.

    Models with rotary or relative positions also read longer texts.
    """
    tables = ("position_embeddings", "embed_positions", "position_embedding")
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, POSITIONS):
        return None
    for name, part in model.named_modules():
        if isinstance(part, nn.Embedding) and name.endswith(tables):
            return most_tokens(config)
    return None


def check_positions(longest: int, room: int | None, *, read: int) -> None:
    """Raise ``MaskwiseError`` if a text of a batch is longer than the model's table of positions.

    Args:
        longest: the number of tokens of the longest text that the model reads or writes.
        room: the result of ``positions_of``.
        read: the number of tokens of the longest text before masking.
    """
    if room is None or longest <= room:
        return
    do = f"make the rows with encode(…, max_length={room}, split=True), or cut them before"
    if read <= room:
        do = (
            "make shorter rows, because this corruption makes texts longer: encode(…, "
            f"max_length={room - (longest - read)}, split=True)"
        )
    raise MaskwiseError(
        "a row is longer than the model's positions",
        got=f"{longest} tokens",
        allowed=f"≤ {room}",
        do=do,
    )


def window_of(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the window in tokens and the number of layers with sliding attention, or (0, 0)."""
    layers = getattr(config, "layer_types", None) or []
    sliding = layers.count("sliding_attention")
    window = config.sliding_window if sliding else 0
    return window or 0, sliding


def check_fit(config: PreTrainedConfig, tokens: int, *, do: str) -> None:
    """Raise ``MaskwiseError`` if a tokenizer has more tokens than a model has embeddings."""
    if not isinstance(config.vocab_size, int) or tokens > config.vocab_size:
        raise MaskwiseError(
            "tokenizer and model do not match",
            got=f"{tokens} tokens",
            allowed=f"≤ {config.vocab_size}",
            do=do,
        )


def check_room(
    config: PreTrainedConfig,
    length: int,
    *,
    what: str,
    written: bool = False,
    do: str | None = None,
) -> None:
    """Raise ``MaskwiseError`` if rows of ``length`` tokens exceed the model's positions."""
    room = most_tokens(config, written=written)
    if length > room:
        raise MaskwiseError(
            f"{what} is more than the model's positions", got=length, allowed=f"≤ {room}", do=do
        )
