"""Attention within documents of packed rows, and fast dropout on CPUs.

In packed rows, a token attends only to tokens of its own document, and positions begin at 0 in
every document. ``separate(model)`` registers the function ``attend`` in transformers' registry of
attention functions, and makes the model use it. If the model is called with the argument
``documents=Documents(…)``, ``attend`` keeps these documents apart. Otherwise, ``attend`` returns
the same results as transformers' ``sdpa``, but also supports soft caps, and is faster with dropout
on CPUs.

On CUDA in half precision, without dropout, soft cap or bias, ``torch.nn.attention.varlen`` computes
attention at a cost of Σ length² over the documents (from torch 2.11, and with grouped queries from
2.12). Padded rows use it too: each row is then one document, and its padding another one. In all
other cases, documents are kept apart by a mask, which is computed once per batch for all layers.

On CPUs, dropout uses 16 random bits per number, for four numbers at a time, which takes 1.4 ns per
number. Torch uses 32 bits and 9 ns, which was an eighth of the training time of a small BERT.
Dropout rates are rounded to multiples of 1 / 65,536. Accelerators use torch's fused dropout.

>>> DocumentIds(torch.tensor([[0, 0, 0, 1, 1, -1]])).positions.tolist()
[[0, 1, 2, 0, 1, 0]]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from inspect import unwrap
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "documents"
"""The name of this attention in transformers' registry."""

REPLACED = ("sdpa", "eager")
"""The attention implementations of transformers that ``separate`` replaces."""

HAS_VARLEN = torch.__version__ >= "2.11"
HAS_GROUPED_VARLEN = torch.__version__ >= "2.12"
"""Whether torch's kernel for variable lengths has the arguments ``window_size`` and ``scale``, and
whether it accepts grouped queries. Otherwise, documents are kept apart by a mask."""

DROP_STEPS = 1 << 16
"""On CPUs, dropout rates are multiples of 1 / DROP_STEPS."""

SHORT_ROW = 512
"""On CPUs and in half precision, the gradient of torch's fused attention takes longer than that of
matrix products for rows of up to this many tokens, and less long for much longer ones."""


Options: TypeAlias = dict[str, Any]
"""Keyword arguments of transformers' attention functions."""
MaskKey: TypeAlias = tuple[bool, bool, int | None]
"""The arguments of ``DocumentIds.mask``: cross, causal and window."""


@dataclass(eq=False)
class DocumentIds:
    """The document of each token in a batch.

    Attributes:
        ids: (B, L) int64, the document of each token, ascending along a row; −1 for padding.
        read: (B, K) int64, the document of each token of the encoder's text, for a decoder's
            cross-attention; None in an encoder.
        causal: whether a token attends only to itself and earlier tokens of its document; None for
            what the attention layer says.
        ends: (D + 1,) int32, the offsets of the documents in the flat array of all rows, and B·L.
            The padding of a row counts as a document. If None, ``boundaries`` computes the offsets,
            but the host must wait for them.
    """

    ids: Tensor
    read: Tensor | None = None
    causal: bool | None = None
    ends: Tensor | None = None
    _masks: dict[MaskKey, Tensor] = field(default_factory=dict)

    @property
    def masked_by(self) -> tuple[MaskKey, ...]:
        """The arguments of all masks computed so far, for ``with_masks``."""
        return tuple(self._masks)

    @cached_property
    def positions(self) -> Tensor:
        """(B, L) int64: the position of each token in its document, from 0."""
        length = self.ids.shape[1]
        place = torch.arange(length, device=self.ids.device).expand_as(self.ids)
        starts = torch.ones_like(self.ids, dtype=torch.bool)
        starts[:, 1:] = self.ids[:, 1:] != self.ids[:, :-1]
        start_of_document = (place * starts).cummax(1).values
        return place - start_of_document

    def mask(self, cross: bool = False, causal: bool = False, window: int | None = None) -> Tensor:
        """(B, 1, L, K) bool: True where a token (L) attends to another token (K).

        Masks are cached, so that all layers use the same mask.

        Args:
            cross: whether tokens attend to the tokens of ``read`` (cross-attention).
            causal: whether tokens attend only to themselves and earlier tokens.
            window: tokens attend only to tokens at a distance below ``window``; None for no limit.
        """
        asked = (cross, causal, window)
        if asked in self._masks:
            return self._masks[asked]
        keys = self.read if cross else self.ids
        assert keys is not None, "cross-attention needs the documents of the text that is read"
        reader = self.ids[:, :, None]
        seen = reader == keys[:, None, :]
        # Padding attends to all tokens, because a softmax over no tokens is NaN, like its gradient.
        seen |= reader < 0
        if causal or window is not None:
            place = torch.arange(keys.shape[1], device=keys.device)
            distance = place[:, None] - place
            if causal:
                seen &= distance >= 0
            if window is not None:
                seen &= distance.abs() < window
        mask = seen.unsqueeze(1)
        self._masks[asked] = mask
        return mask

    def with_masks(self, asked: Iterable[MaskKey]) -> DocumentIds:
        """Return a copy with only the masks for the arguments ``asked``, computed if necessary."""
        masks = {}
        for key in asked:
            masks[key] = self.mask(*key)
        return replace(self, _masks=masks)

    def boundaries(self) -> Tensor:
        """Return ``ends``, computed on the first call if it is None."""
        if self.ends is None:
            first = self.positions.flatten() == 0
            starts = first.nonzero().flatten()
            end = starts.new_tensor([self.ids.numel()])
            self.ends = torch.cat((starts, end)).int()
        return self.ends


def separate(model: PreTrainedModel) -> None:
    """Make a model attend only within documents if it is called with the argument ``documents``.

    A model whose attention implementation is not in ``REPLACED`` is not changed.
    """
    if model.config._attn_implementation in REPLACED:
        # transformers is slow to import, but if there is a model, it has been imported already.
        from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, mask_of)
        model.set_attn_implementation(NAME)
        # T5 gives its encoder and its decoder copies of the configuration, which transformers
        # before 5.20 leaves as they are.
        for part in model.modules():
            if isinstance(part, PreTrainedModel) and part.config._attn_implementation in REPLACED:
                part.set_attn_implementation(NAME)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: DocumentIds | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention like transformers' ``sdpa``, within documents if ``documents`` is given.

    Args:
        module: the attention layer.
        query: (B, H, L, D).
        key, value: (B, H, K, D). K differs from L only in cross-attention. With grouped queries,
            H is smaller.
        attention_mask: transformers' mask; ignored if ``documents`` is given.
        documents: the document of each token.
        sliding_window: the number of tokens to each side that a token attends to, including the
            token itself, as in flash attention.
        options: dropout, scaling, position_bias, softcap, is_causal.

    Returns:
        The output, (B, L, H, D), and None instead of the attention weights.
    """
    causal = bool(getattr(module, "is_causal", False))
    if documents is not None:
        if documents.causal is not None:
            causal = documents.causal
        cross = documents.read is not None and not causal
        if sliding_window is not None and not causal:
            # A configured window does not count the token itself. ModernBERT therefore adds 1 to
            # its window before the call, but T5Gemma does not.
            sliding_window = module.config.sliding_window + 1
        # ``_ragged`` cannot do cross-attention, where keys and queries have different offsets.
        fits = HAS_GROUPED_VARLEN or query.shape[1] == key.shape[1]
        if fits and not cross and _can_be_ragged(query, options):
            lines = (query, key, value)
            return _ragged(lines, documents, causal, sliding_window, options), None
        attention_mask = documents.mask(cross, causal, sliding_window)
    elif options.get("softcap") and causal and attention_mask is None:
        # Transformers passes no causal mask if a kernel applies it, but ``_product`` needs a mask.
        read, wanted = query.shape[2], key.shape[2]
        everything = torch.ones(read, wanted, dtype=torch.bool, device=query.device)
        attention_mask = everything.tril(wanted - read)
    if _by_hand(module, query, attention_mask, options):
        from transformers.integrations.sdpa_attention import repeat_kv

        # With grouped queries, keys and values have fewer heads.
        groups = query.shape[1] // key.shape[1]
        key = repeat_kv(key, groups)
        value = repeat_kv(value, groups)
        return _product(query, key, value, attention_mask, options), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def has_ragged_kernel(device: torch.device) -> bool:
    """Return whether torch has a kernel for documents of different lengths on a device."""
    return HAS_VARLEN and device.type == "cuda"


def reads_ragged_rows(model: PreTrainedModel, device: torch.device) -> bool:
    """Return whether padded rows, too, shall be passed to a model as documents.

    A mask costs attention over the padding, and torch's kernels for masks prepare anew for each
    shape of rows. A model that ``separate`` has not changed stays as it is.
    """
    return has_ragged_kernel(device) and model.config._attn_implementation == NAME


def _can_be_ragged(query: Tensor, options: Options) -> bool:
    """Return whether torch's kernel for variable lengths supports this call."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    if not has_ragged_kernel(query.device) or not half:
        return False
    if options.get("dropout") or options.get("softcap"):
        return False
    return options.get("position_bias") is None


def _ragged(
    lines: tuple[Tensor, ...],
    documents: DocumentIds,
    causal: bool,
    window: int | None,
    options: Options,
) -> Tensor:
    """(B, L, H, D): attention by ``varlen_attn``, for which all rows are one line of documents.

    Args:
        lines: query, key and value. Keys and values may have fewer heads than queries.
        documents: the document of each token.
        causal: whether tokens attend only to themselves and earlier tokens.
        window: tokens attend only to tokens at a distance below ``window``; None for no limit.
        options: the options of ``attend``.
    """
    from torch.nn.attention.varlen import varlen_attn

    shape = lines[0].transpose(1, 2).shape
    query, key, value = (_line(x) for x in lines)
    ends = documents.boundaries()
    # The kernel needs an upper bound on document lengths. The longest document would be tighter
    # than the row length, but the host would have to wait for it.
    most = documents.ids.shape[1]
    before = -1
    if window is not None:
        before = window - 1
    after = before
    if causal:
        after = 0
    more: Options = {}
    if query.shape[1] != key.shape[1]:
        more["enable_gqa"] = True
    out: Any = varlen_attn(
        query,
        key,
        value,
        ends,
        ends,
        most,
        most,
        scale=options.get("scaling"),
        window_size=(before, after),
        **more,
    )
    return out.view(shape)


def _line(rows: Tensor) -> Tensor:
    """(B·L, H, D): queries, keys or values (B, H, L, D) as one line, without a copy if possible."""
    line = rows.transpose(1, 2).flatten(0, 1)
    # The kernel reads any strides, but the numbers of a head must be neighbours.
    return line if line.stride(-1) == 1 else line.contiguous()


def _by_hand(module: nn.Module, query: Tensor, mask: Tensor | None, options: Options) -> bool:
    """Return whether to use ``_product``: for soft caps, and on CPUs for fast dropout and for the
    gradients of short rows in half precision.
    """
    if options.get("softcap"):
        return True
    half = query.dtype in (torch.float16, torch.bfloat16)
    short = half and query.requires_grad and query.shape[-2] <= SHORT_ROW
    if query.device.type != "cpu" or not (short or options.get("dropout")):
        return False
    if torch.compiler.is_compiling() or options.get("position_bias") is not None:
        return False
    if mask is not None:
        return mask.dtype == torch.bool
    causal = options.get("is_causal")
    if causal is None:
        # Transformers treats a module without this attribute as causal.
        return hasattr(module, "is_causal") and not module.is_causal
    return not causal


def _product(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Options
) -> Tensor:
    """(B, L, H, D): attention by matrix products, with a soft cap and dropout."""
    queries = query.flatten(0, 1)
    keys = key.flatten(0, 1)
    values = value.flatten(0, 1)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    scores = torch.bmm(queries * scale, keys.mT)
    cap = options.get("softcap")
    if cap:
        scores = torch.tanh(scores / cap) * cap
    if mask is not None:
        # The shares of hidden tokens are 0, so the softmax passes no gradient on to them. (They are
        # not 0 for a token that sees nothing, but nobody reads its output.) So the graph need not
        # know of this fill. The scores must be no view: autograd would copy the gradient of a view
        # that was written to.
        with torch.no_grad():
            # The minimum is finite, because with −inf, a token that attends to no token would be
            # NaN.
            of_heads = scores.view(*query.shape[:3], -1)
            of_heads.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    shares = scores.softmax(-1)
    if options.get("dropout"):
        shares = with_dropout(shares, options["dropout"])
    mixed = torch.bmm(shares.to(values.dtype), values)
    return mixed.view(query.shape).transpose(1, 2)


def mask_of(*sizes: Any, **options: Any) -> Tensor | None:
    """Return transformers' ``sdpa`` mask.

    Transformers would omit a mask without padding, but the host would have to wait for this check.
    """
    if options.get("attention_mask") is not None:
        options |= {"allow_is_bidirectional_skip": False, "allow_is_causal_skip": False}
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*sizes, **options)


def with_dropout(values: Tensor, rate: float) -> Tensor:
    """Apply dropout: set values to 0 with probability ``rate``, and rescale the other values.

    Random numbers come from torch's default generator.

    >>> _ = torch.manual_seed(0)
    >>> kept = with_dropout(torch.ones(1000, 1000), 0.25)
    >>> round(kept.max().item(), 4), round((kept > 0).float().mean().item(), 2)
    (1.3333, 0.75)
    """
    below = round(rate * DROP_STEPS)
    fast = values.device.type == "cpu" and values.is_floating_point() and below < DROP_STEPS
    if not fast:
        return dropout(values, rate)
    if below == 0:
        return values
    return _Dropped.apply(values, below)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, below: int) -> Tensor:
        count = values.numel()
        # One 64-bit random number serves four entries.
        draws = -(-count // 4)
        drawn = torch.empty(draws, dtype=torch.int64).random_(-(1 << 63), None)
        bits = drawn.view(torch.int16)[:count].view(values.shape)
        # The 16-bit numbers are signed, so their minimum is −DROP_STEPS / 2. The comparison is
        # written as numbers, 0 or 1, because a conversion of bools takes as long as a product.
        factor = torch.empty_like(values)
        torch.ge(bits, below - DROP_STEPS // 2, out=factor)
        factor.mul_(DROP_STEPS / (DROP_STEPS - below))
        # The backward pass multiplies by the same factor.
        ctx.save_for_backward(factor)
        return values * factor

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return slope * factor, None


def _drop(layer: nn.Dropout, values: Tensor) -> Tensor:
    """The forward pass of a dropout layer, with ``with_dropout``."""
    return _dropout(values, layer.p, layer.training)


def _dropout(values: Tensor, p: float, training: bool) -> Tensor:
    """A replacement for ``torch.nn.functional.dropout`` that uses ``with_dropout``."""
    if not training:
        return values
    return with_dropout(values, p)


class _Replaced:
    """A Python module with some names replaced."""

    def __init__(self, module: ModuleType, **replaced: object):
        self.__dict__.update(replaced)
        self._module = module

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


def calls(function: FunctionType, name: str) -> bool:
    """Return whether the code of a function contains a name."""
    return name in function.__code__.co_names


def with_globals(function: FunctionType, **names: object) -> FunctionType:
    """Return a function with the same code, but with some other global variables."""
    scope = {**function.__globals__, **names}
    # The compiler would look up global variables in the module of this name.
    scope.pop("__name__", None)
    copy = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _fast_forward(kind: type[nn.Module]) -> FunctionType | None:
    """Return the forward method of a class, with ``with_dropout`` in place of torch's dropout.

    If the method does not call ``nn.functional.dropout``, None is returned.
    """
    # Transformers wraps the method for activation checkpointing.
    forward = unwrap(kind.forward)
    assert isinstance(forward, FunctionType)
    named = all(calls(forward, name) for name in ("nn", "functional", "dropout"))
    if not named or forward.__globals__.get("nn") is not nn:
        return None
    functional = _Replaced(nn.functional, dropout=_dropout)
    return with_globals(forward, nn=_Replaced(nn, functional=functional))


def _calls_torch(layer: nn.Module) -> bool:
    """Return whether a module calls torch's dropout function itself, like a block of BART."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not isinstance(layer, GradientCheckpointingLayer) or layer.gradient_checkpointing:
        return False
    return _fast_forward(type(layer)) is not None


def quicken(module: nn.Module) -> None:
    """Make dropout layers, and blocks that call torch's dropout function, use ``with_dropout``.

    ``families.patched`` undoes the change.
    """
    for layer in module.modules():
        # The instance is changed and not the class, so that other models stay as they are.
        if isinstance(layer, nn.Dropout):
            layer.forward = partial(_drop, layer)  # type: ignore[method-assign]
        elif _calls_torch(layer):
            layer.forward = MethodType(_fast_forward(type(layer)), layer)  # type: ignore
