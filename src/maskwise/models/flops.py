"""FLOPs of training, counted by one formula.

Arms with different ratios, lengths, models or objectives can thus be compared, and the MFU of a run
is known. Without a frozen encoder, a training step costs

    FLOPs = 6 · body · tokens + 6 · head · targets + 3 · scores

``body`` is the number of weights in the matrices of the encoder, without its embeddings, which are
looked up. ``head`` is that of the prediction head with its vocabulary matrix, even if this matrix
is tied to the embeddings. The head runs on masked tokens (targets) only, so a higher masking ratio
costs more. (Where ``families.prediction_head`` returns None, it runs on all tokens.)
``Objective.work`` defines which weights are applied to which tokens: sentence contrast reads a text
twice, and replaced-token detection also runs a generator.

Each weight takes 2 FLOPs per token in the forward pass and 4 in the backward pass: 2 for the
gradient of its input and 2 for the gradient of the weight. The factor 6 is smaller in three cases.
It is 2 for a frozen encoder, which runs forward only. It is 4 for weights that are not updated but
through which gradients pass: a vocabulary matrix tied to a frozen encoder, and the weights that
LoRA leaves unchanged. It is 2 for the teacher of a student, and for probes: forward passes with
which a sampler tests the objectives between which it chooses.

``scores`` are the FLOPs of attention in the forward pass. For each pair of tokens in which one
attends to the other, a layer takes 2 · H for the score and 2 · H for the weighted sum, where H is
the width of all heads. Tokens attend only within their document, so the pairs are counted in each
document of a packed row: length² in a full layer, fewer in a layer with a sliding window, and half
as many where a token attends only to itself and to earlier tokens (``attended_pairs``). The
backward pass takes twice as many FLOPs. In DeBERTa, ``scores`` include the products for relative
positions: every layer projects a table of positions, once a step on each rank, and multiplies each
token by each row of it (``_relative``).

On rows without padding, this is what ``torch.utils.flop_counter`` counts for every known family
(``families.ENCODERS``), except that torch also counts the later tokens of causal attention and the
tokens outside of windows (tests/test_flops.py). The FLOPs of families with attention of another
form (``OTHER_ATTENTION``) are not known, and counted as 0. Not counted: special tokens in
``tokens``, padding, recomputation, additions such as those of biases and norms, the optimiser and
evaluation.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from torch import nn

from maskwise.masking.batch import Lengths
from maskwise.models.families import adapter_of, encoder_of, output_layer, window_of
from maskwise.models.weights import blocks_of, parts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from maskwise.masking.draws import Array

CROSSED = re.compile(r"(encoder_attn|EncDecAttention|cross_attn)\.[kv](_proj)?\.")
"""Matches the names of key and value parameters of cross-attention in BART, T5 and T5Gemma."""

APART = re.compile(
    r"(^|\.)(pos_(key_|query_|q_)?proj"  # DeBERTa: by these, positions are multiplied (_relative)
    # No objective reads what these are for: poolers (of one token of a text), ESM's contacts, the
    # global attention of Longformer and LED, and LUKE's entities.
    r"|pooler|contact_head|\w+_global|(w2e|e2w|e2e)_query|entity_embeddings|entity_predictions)\."
)
"""Matches the names of parameters by which tokens are not multiplied."""

OTHER_ATTENTION = ("funnel", "reformer")
"""Families whose FLOPs are not known: the blocks of Funnel have fewer and fewer positions, and
tokens of Reformer attend within buckets. As full attention on all tokens, they were 1.54 and 0.90
times what torch counts for small models."""

FORMULA = 3
"""The number of the formula, which results of trainings record. Formula 1, of results without a
number, left out attention. Formula 2 left out the relative positions of DeBERTa, counted weights
that are not used (``APART``) and I-BERT's embeddings, and took the windows of Longformer and LED
for full attention."""

NO_TEXTS = Lengths(np.zeros(0, np.int64), np.zeros(0, np.int64))


class Work(NamedTuple):
    """The number of multiplications in a forward pass.

    Attributes:
        body: multiplications by the weights of the encoder.
        head: multiplications in heads, decoders and generators, which are trained even if the
            encoder is frozen.
        tied: multiplications by the output matrix, if this matrix is also the embedding matrix of
            the encoder.
        scores: multiplications in the encoder's attention, which has no weights.
        forward: multiplications of a model that is read without gradients, such as a teacher.
    """

    body: float = 0
    head: float = 0
    tied: float = 0
    scores: float = 0
    forward: float = 0

    @property
    def all(self) -> float:
        return sum(self)

    def times(self, factor: float) -> Work:
        """Return the work of ``factor`` times as many tokens or targets."""
        return Work(*(factor * part for part in self))

    def plus(self, other: Work) -> Work:
        """Return the sum of this work and another."""
        return Work(*(one + two for one, two in zip(self, other)))


def trained(work: Work, *, frozen: bool = False, held: float = 0.0) -> int:
    """Return the FLOPs of a forward and a backward pass.

    Args:
        work: the multiplications in the forward pass.
        frozen: whether the encoder is frozen, so that it has no backward pass.
        held: the share of the encoder's weights that are frozen although gradients pass through
            them, as with LoRA.
    """
    if frozen:
        read = work.body + work.scores + work.forward
        return int(2 * read + 6 * work.head + 4 * work.tied)
    # Frozen weights need no gradient, which saves 2 of 6 FLOPs per multiplication.
    spared = held * work.body
    if held:
        spared += work.tied
    return int(6 * work.all - 4 * work.forward - 2 * spared)


class Countable(Protocol):
    """An objective whose work can be counted."""

    model: PreTrainedModel

    def work(self, tokens: float, targets: float) -> Work: ...

    def attention(self, lengths: Lengths) -> Work: ...


class Flops:
    """The FLOPs of batches of an objective.

    Args:
        objective: the objective. Its weights are counted only once, because counting them takes as
            long as a small step.
        frozen: whether only the heads are trained.

    Attributes:
        known: whether the FLOPs are known. If not, they are 0.
    """

    def __init__(self, objective: Countable, *, frozen: bool = False):
        self.objective = objective
        self.known = objective.model.config.model_type not in OTHER_ATTENTION
        self.frozen = frozen
        self.per_token = objective.work(1, 0)
        self.per_target = objective.work(0, 1)
        self.held = held_share(objective.model)

    def work(self, tokens: float, targets: float, lengths: Lengths = NO_TEXTS) -> Work:
        """Return the work of a forward pass.

        Args:
            tokens, targets: as in ``Objective.work``.
            lengths: the lengths of the texts, for the attention.
        """
        weights = self.per_token.times(tokens).plus(self.per_target.times(targets))
        return weights.plus(self.objective.attention(lengths))

    def trained(self, tokens: float, targets: float, lengths: Lengths = NO_TEXTS) -> int:
        """Return the FLOPs of training. The arguments are those of ``work``."""
        if not self.known:
            return 0
        return trained(self.work(tokens, targets, lengths), frozen=self.frozen, held=self.held)

    def forward(self, tokens: float, targets: float, lengths: Lengths = NO_TEXTS) -> int:
        """Return the FLOPs of a forward pass. The arguments are those of ``work``."""
        return int(2 * self.work(tokens, targets, lengths).all) if self.known else 0


# Weights
# ------------------------------------------------------------------------------------------------


def multiplied_weights(module: nn.Module, *, held: bool = False) -> int:
    """Return the number of weights in the matrices of a module by which tokens are multiplied.

    Embeddings are looked up, so they are not counted.

    Args:
        module: the module.
        held: whether to count only weights that are not trained.
    """
    tables = {part.weight for part in parts(module, nn.Embedding)}
    # I-BERT has a class of its own for embeddings.
    own = (part for part in module.modules() if type(part).__name__ == "QuantEmbedding")
    tables |= {part.get_parameter("weight") for part in own}
    count = 0
    for name, weight in module.named_parameters():
        left_out = weight in tables or (held and weight.requires_grad) or APART.search(name)
        # Vectors, such as biases, are only added, or multiplied element by element.
        if weight.ndim > 1 and not left_out:
            count += weight.numel()
    return count


def encoder_weights(model: PreTrainedModel, *, held: bool = False) -> float:
    """Return by how many weights a token is multiplied in the encoder, as ``multiplied_weights``.

    The layers of ALBERT share their weights, by which a token is multiplied in each layer.
    """
    encoder = encoder_of(model)
    once = multiplied_weights(encoder, held=held)
    groups = getattr(model.config, "num_hidden_groups", None)
    if groups is None:
        return once
    shared = sum(multiplied_weights(block, held=held) for block in blocks_of(encoder))
    return once + shared * (model.config.num_hidden_layers / groups - 1)


def held_share(model: PreTrainedModel) -> float:
    """Return the share of ``encoder_weights`` that LoRA does not train; 0 without LoRA."""
    return encoder_weights(model, held=True) / max(1, encoder_weights(model))


def head_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Return how many weights of the prediction head are (not tied, tied) to embeddings."""
    # Tensors can be in a set, because the hash of a tensor is its identity.
    inside = set(encoder_of(model).parameters())
    if adapter_of(model.config).kind == "encoder-decoder":
        inside.update(model.get_decoder().parameters())
    head = 0
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and weight not in inside and not APART.search(name):
            head += weight.numel()
    output = output_layer(model)
    if output is None or output.get_parameter("weight") not in inside:
        return head, 0
    return head, output.get_parameter("weight").numel()


def decoder_weights(model: PreTrainedModel) -> tuple[int, int]:
    """Return the numbers of decoder weights by which (each target, each encoder token) is
    multiplied.

    Encoder tokens are multiplied by the key and value weights of cross-attention. Embeddings are
    not counted.
    """
    decoder = model.get_decoder()
    crossed = 0
    for name, weight in decoder.named_parameters():
        if weight.ndim > 1 and CROSSED.search(name):
            crossed += weight.numel()
    return multiplied_weights(decoder) - crossed, crossed


# Attention
# ------------------------------------------------------------------------------------------------


def attended_pairs(length_P: Array, *, reach: int | None = None, causal: bool = False) -> float:
    """Return the number of pairs of tokens in which the first attends to the second.

    Args:
        length_P: (P,) int64, the lengths of documents. Tokens attend only within documents.
        reach: the largest distance at which a token attends to another; None for no limit.
        causal: whether a token attends only to itself and to earlier tokens.

    >>> length_P = np.array([3, 4])
    >>> attended_pairs(length_P), attended_pairs(length_P, reach=1)
    (25.0, 17.0)
    >>> attended_pairs(np.array([4]), causal=True)
    10.0
    """
    length_P = length_P.astype(np.float64)
    most_P = length_P - 1
    if reach is not None:
        most_P = most_P.clip(max=reach)
    # The first tokens of a document have fewer tokens before them.
    earlier_P = most_P * length_P - most_P * (most_P + 1) / 2
    sides = 1 if causal else 2
    return float((length_P + sides * earlier_P).sum())


def encoder_attention(config: PreTrainedConfig, length_P: Array, *, causal: bool = False) -> float:
    """Return the number of multiplications in an encoder's attention, per forward pass.

    Args:
        config: the configuration of the model.
        length_P: (P,) int64, the lengths of the documents.
        causal: whether tokens attend only to themselves and to earlier tokens.
    """
    # T5Gemma has a separate configuration for its encoder.
    if "encoder" in config.sub_configs:
        config = config.encoder
    layers = getattr(config, "num_hidden_layers", 0)
    # ModernBERT and T5Gemma alternate full and sliding attention. The window does not include the
    # token itself.
    window, sliding = window_of(config)
    reaches = [window] * sliding + [None] * (layers - sliding)
    both_sides = getattr(config, "attention_window", None)  # of Longformer and LED
    if both_sides is not None:
        of_layers = both_sides if isinstance(both_sides, list) else [both_sides] * layers
        reaches = [size // 2 for size in of_layers]
    pairs_of_layers = 0.0
    for reach, count in Counter(reaches).items():
        pairs_of_layers += count * attended_pairs(length_P, reach=reach, causal=causal)
    return 2.0 * _width(config) * pairs_of_layers + _relative(config, length_P)


def _relative(config: PreTrainedConfig, length_P: Array) -> float:
    """Return the number of multiplications for the relative positions of DeBERTa, of all versions.

    In each layer, a table of positions is projected to keys (c2p: content to position) and to
    queries (p2c), once for all tokens. Then each token is multiplied by all rows of the table.
    """
    if not getattr(config, "relative_attention", False) or not length_P.sum():
        return 0.0
    reach = config.max_relative_positions
    if reach < 1:
        reach = config.max_position_embeddings
    if config.model_type == "deberta":
        # The first version reads only the part of its table that the row needs.
        reach = min(reach, int(length_P.max()))
    elif getattr(config, "position_buckets", -1) > 0:
        reach = config.position_buckets
    read = {"c2p", "p2c"}.intersection(config.pos_att_type or ())
    tables = len(read)
    if getattr(config, "share_att_key", False):
        tables = 2  # then both projections are made, also if one is not read
    each = len(read) * float(length_P.sum()) + tables * config.hidden_size
    return float(config.num_hidden_layers * 2 * reach * _width(config) * each)


def decoder_attention(config: PreTrainedConfig, lengths: Lengths) -> float:
    """Return the number of multiplications in a decoder's attention, to itself and to the text that
    the encoder reads, per forward pass.
    """
    if "decoder" in config.sub_configs:
        config = config.decoder
        layers = config.num_hidden_layers
    else:
        # The names of T5 and BART.
        layers = getattr(config, "num_decoder_layers", None) or config.decoder_layers
    window, sliding = window_of(config)
    own = (layers - sliding) * attended_pairs(lengths.written, causal=True)
    # Here the window includes the token itself.
    own += sliding * attended_pairs(lengths.written, reach=max(0, window - 1), causal=True)
    crossed = layers * float(lengths.read @ lengths.written)
    return 2.0 * _width(config) * (own + crossed)


def _width(config: PreTrainedConfig) -> int:
    """Return the number of heads times the width of a head; 0 for models without attention."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0
    own = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    # MobileBERT attends with a smaller width.
    whole = getattr(config, "true_hidden_size", config.hidden_size)
    return int(heads) * int(own or whole // heads)
