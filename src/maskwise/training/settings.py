"""The settings of training runs and of models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from maskwise.base.effects import (
    Count,
    Nothing,
    NotNegative,
    Only,
    OrOff,
    Positive,
    Rounding,
    Settings,
    Several,
    Share,
    Speed,
    Weights,
    Whole,
    effect_of,
    within,
    without_unset,
)
from maskwise.base.errors import MaskwiseError
from maskwise.training.rates import Curve

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from maskwise.changes import Change
    from maskwise.models.lora import Lora

Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingSettings(Settings, allow_inf_nan=False):
    """The settings of a training run, for pre-training or for fine-tuning."""

    steps: Weights[Whole] = 1000
    """Number of optimiser updates. The schedules of masking and of the learning rate end with the
    last update. 0 trains nothing: the model is measured as it was loaded and changed."""

    batch_size: Weights[Count] = 32
    """Rows per update, over all ranks and micro-batches."""

    accumulate: Rounding[Count] = 1
    """Micro-batches per update. This number changes memory use but not the result, because all
    targets have the same weight. There are two exceptions. ``cse`` compares rows only within a
    micro-batch. ``rtd`` weights its detection loss by the share of masked tokens in each
    micro-batch."""

    group_by_length: Weights[bool] = False
    """Whether batches have rows of similar length. This saves padding if every row is one
    document."""

    optimizer: Weights[Literal["adamw", "muon"]] = "adamw"
    """``muon`` uses Muon for the matrices in the layers and AdamW for all other parameters."""

    learning_rate: Weights[Positive] = 5e-4
    """Highest learning rate of AdamW."""

    muon_learning_rate: Annotated[Weights[Positive], Only("optimizer", ("muon",))] = 0.02
    """Highest learning rate of Muon; used only with ``optimizer: muon``."""

    betas: Weights[tuple[Beta, Beta]] = (0.9, 0.98)
    """AdamW's decay rates for the running means of gradients and of squared gradients."""

    weight_decay: Annotated[Weights[OrOff[NotNegative]], Only("freeze", but=("old-rows",))] = 0.01
    """Decoupled weight decay of matrices. Biases, norms and other vectors have no weight decay."""

    warmup: Weights[OrOff[Share]] = 0.06
    """Share of the steps, at the beginning, in which the learning rate rises from 0."""

    decay: Weights[Curve] = "linear"
    """How the learning rate falls to 0. ``linear``, ``cosine`` and ``1-sqrt`` fall from the first
    step on (or later, see ``decay_share``) and are multiplied by the warm-up. Therefore the highest
    rate is slightly below ``learning_rate``. ``wsd`` (warm-up, stable, decay) stays at
    ``learning_rate``, and falls as 1 − √ in the last tenth of the steps. ``constant`` does not
    fall.
    """

    decay_share: Annotated[Weights[float | None], Only("decay", but=("constant",))] = Field(
        None, gt=0, le=1
    )
    """Share of the steps, at the end, in which the learning rate falls. If None, all steps; for
    ``wsd``, a tenth of the steps."""

    lag: Weights[OrOff[int]] = Field(0, ge=0, le=1)
    """Delay, in updates, before masking policies that learn from the losses of every step, such as
    pos-weighted, learn from the losses of a step: 0 or 1. With 0, each step must wait for the
    losses of the step before. On an accelerator, this wait is as long as masking and copying a
    batch."""

    freeze: Weights[Literal["none", "encoder", "old-rows"]] = "none"
    """``encoder`` trains only the heads, on a frozen encoder without dropout. ``old-rows`` trains
    only the rows of new tokens (``model.changes``) in the embeddings, the output layer and its
    bias, without weight decay."""

    clip: Weights[OrOff[NotNegative]] = 1.0
    """Maximum norm of the gradient of all parameters. Larger gradients are scaled down. 0 turns
    this off."""

    precision: Rounding[Literal["auto", "no", "bf16"]] = "auto"
    """``auto`` uses bf16 autocast on hardware that trains faster in bf16: GPUs with bf16
    multiplication, and, for models at least 192 wide, processors with AMX, and processors with
    AVX-512 on which bf16 was measured to be faster. ``no`` uses float32, but GPUs multiply in TF32.
    """

    residual: Annotated[Rounding[Literal["fp32", "bf16"]], Only("precision", but=("no",))] = "fp32"
    """The number format of the states between layers and of the norms, where training computes in
    bf16. With autocast alone they are float32. ``bf16`` halves the memory that they move and store;
    norms still compute means and variances in float32. It has no effect where ``precision: auto``
    chooses float32.
    """

    activation_checkpointing: Rounding[bool] = False
    """Whether to store only the inputs of each layer of the encoder, and to recompute activations
    in the backward pass. This needs a third more computation but much less memory. The result is
    the same."""

    compile: Rounding[bool] = False
    """Whether to compile the layers and the head with ``torch.compile``. The first steps take a
    minute longer."""

    shard: Rounding[bool] = False
    """Whether several processes share weights, gradients and optimiser states, so that each process
    stores only a part (FSDP2). Otherwise each process stores a copy (DDP). ``accelerate launch
    --use_fsdp`` has the same effect."""

    seed: Weights[int] = 0
    """Seed of new weights, of the order of rows, of dropout and, in pre-training, of masks."""

    log_every: Nothing[Count] = 20
    """Steps between lines of metrics."""

    eval_every: Nothing[OrOff[Whole]] = 0
    """Steps between evaluations. With 0, the model is evaluated only at the end."""

    patience: Weights[int | None] = Field(None, ge=1)
    """Number of successive evaluations without improvement after which training ends; None for no
    limit. With a number, the checkpoint is that of the best evaluation. The evaluations (see
    ``eval_every``) then read half of the held-out documents, and the others judge the model."""

    lengths: Weights[Several[Annotated[float, Field(gt=0, le=1)]] | None] = None
    """Shares of the steps after which training also ends, such as ``[0.25, 0.5, 1]``; None for all
    steps only. The learning rate must stay high until a decay at the end (``decay: wsd``). For each
    length, a decay branches off, and the checkpoint is that with the lowest loss on half of the
    held-out documents. The others judge the model."""

    save_every: Nothing[OrOff[int | None]] = Field(None, ge=0)
    """Steps between training states, from which a run can resume. If None, a state is saved every
    ten minutes, or more rarely where that would take more than a hundredth of the time. With 0, a
    state is saved only after Ctrl-C, SIGTERM or SIGUSR1, which clusters send before they end a
    job."""

    keep: Annotated[Nothing[Count], Only("save_every", but=(0,))] = 2
    """Number of training states to keep. Older states are used if the newest is damaged."""

    on_nan: Nothing[Literal["stop", "skip"]] = "stop"
    """What to do if a loss or gradient is not finite. ``stop`` ends the run with an error that
    names the step. ``skip`` skips the update. A held-out loss that is not finite ends the run. If
    no value is infinite or NaN, both give the same weights."""

    workers: Annotated[Speed[OrOff[Whole]], Only("/corpus.stream", (True,))] = 1
    """Number of processes per rank that tokenise a stream (``corpus.stream``). With 0, the training
    process tokenises the stream. The result is the same."""

    trackers: Nothing[Several[str]] = ()
    """Accelerate's trackers, such as ``tensorboard``, ``trackio`` or ``wandb``, which must be
    installed; ``all`` for those that are. [Trackers](studies.md#trackers) says what they show."""

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_unset(self, dump, "patience", "lengths")

    @field_validator("lengths")
    @classmethod
    def _rising(cls, lengths: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if lengths is not None and (lengths[-1:] != (1,) or sorted({*lengths}) != [*lengths]):
            raise MaskwiseError(
                "lengths rise to all steps",
                got=list(lengths),
                allowed="shares of the steps in rising order, the last one 1",
            )
        return lengths

    @property
    def chooses(self) -> bool:
        """Whether held-out documents choose the weights that are kept."""
        return self.patience is not None or self.lengths is not None

    @property
    def ends(self) -> list[int]:
        """The number of steps of each of the ``lengths``.

        >>> TrainingSettings(steps=30, lengths=(0.001, 0.5, 1)).ends
        [1, 15, 30]
        """
        return [max(1, round(length * self.steps)) for length in self.lengths or ()]

    @classmethod
    def that_change(cls, *effects: str) -> set[str]:
        """Return the names of the settings that declare one of these effects (see ``effects``).

        >>> sorted(TrainingSettings.that_change("rounding"))[:2]
        ['accumulate', 'activation_checkpointing']
        """
        fields = cls.model_fields.items()
        return {name for name, field in fields if effect_of(field) in effects}

    def micro_rows(self, ranks: int) -> int:
        """Return the number of rows in a micro-batch on one rank.

        Raises:
            MaskwiseError: the rows of a batch cannot be divided equally.
        """
        rows, rest = divmod(self.batch_size, self.accumulate * ranks)
        if rest:
            raise MaskwiseError(
                "batch_size must be a multiple of accumulate × processes",
                got=f"{self.batch_size} for {self.accumulate} × {ranks}",
            )
        return rows


ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
"""The names that configurations use for attention dropout, the dropout of attention weights."""


@cache
def attention_dropout(architecture: str) -> tuple[str, float] | None:
    """Return the field of attention dropout and its default; None if there is no such field.

    For example, T5 has no such field, because it has one rate for all dropout.
    """
    # This imports transformers.
    from maskwise.models.loading import config_of

    try:
        plain = config_of({"model_type": architecture})
    except ValueError:
        # The name is wrong. Building the model will raise an error that explains this.
        return None
    return attention_dropout_of(plain)


def attention_dropout_of(config: PreTrainedConfig) -> tuple[str, float] | None:
    """Return the field of attention dropout and its value; None if there is no such field."""
    for field in ATTENTION_DROPOUT:
        if hasattr(config, field):
            return field, float(getattr(config, field))
    return None


class ModelSettings(Settings):
    """The ``model`` section of a recipe: a new model or a pre-trained model.

    >>> ModelSettings(architecture="bert", settings={"num_hidden_layers": 2}).unigram_bias
    True
    """

    pretrained: Weights[str | None] = None
    """The name of a pre-trained model: a folder, a hub id, ``bundled:encoder``, or ``package:NAME``
    for an installed package. None for a new model."""
    architecture: Annotated[Weights[str], Only("pretrained", (None,))] = "modernbert"
    """The architecture of a new model: transformers' ``model_type``, such as bert or t5."""
    settings: Weights[dict[str, Any]] = {}
    """Fields of a new model's configuration, such as hidden_size. Of a pre-trained model, only
    rates of dropout can be changed, such as hidden_dropout_prob; for more positions, see
    model.changes."""
    unigram_bias: Weights[bool] = True
    """Initialise the output bias of a new head with log frequencies of tokens in the training
    text."""
    adapter: Weights[str | None] = None
    """``lora(rank=16)`` trains only the heads and low-rank updates of the encoder's linear layers.
    This needs the package peft. Checkpoints contain the weights with the updates added."""

    changes: Annotated[Weights[Several[str]], Only("pretrained", but=(None,))] = ()
    """Changes of a pre-trained model before its training, in the order in
    which they are made: ``new-tokens(500)`` makes the 500 words that save most pieces in the
    training text tokens, ``new-tokens('words.txt')`` those of a file, ``trim-tokens()`` keeps the
    tokens that occur in the training text, ``trim-tokens(8000)`` the most frequent ones,
    ``positions(1024)`` reads longer rows, ``layers(3)`` keeps three layers, and ``bidirectional()``
    lets the tokens of a decoder see later ones (docs/change.md)."""

    attention_dropout: Weights[OrOff[float | None]] = Field(None, ge=0, lt=1)
    """Dropout rate of attention weights. If None, the rate is 0 for a new model, and the rate of
    the checkpoint for a pre-trained model. The fast GPU kernels for documents of variable length
    need a rate of 0."""

    _lora: Lora | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _parse(self) -> Self:
        if self.adapter is not None:
            # This imports torch.
            from maskwise.models.lora import lora

            with within("adapter", self.adapter):
                self._lora = lora(self.adapter)
        with within("changes", self.changes):
            steps = self.steps
            if self.adapter and any(change.adds_tokens for change in steps):
                raise MaskwiseError(
                    "model.adapter freezes the embeddings, so new tokens would not be trained",
                    got=self.adapter,
                    do="remove one of them",
                )
        return self

    @property
    def steps(self) -> list[Change]:
        """The setting ``changes``, parsed."""
        if not self.changes:
            return []
        # This imports torch.
        from maskwise.changes import change_of

        return [change_of(spec) for spec in self.changes]

    @property
    def lora(self) -> Lora | None:
        """The setting ``adapter``, parsed; None without one."""
        # A copy of these settings may have no adapter.
        return self._lora if self.adapter else None

    @field_validator("settings")
    @classmethod
    def _truth(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Replace ``yes``, ``no``, ``on`` and ``off`` by booleans. No setting has such a value."""
        words = {"yes": True, "on": True, "no": False, "off": False}
        return {key: words.get(str(setting), setting) for key, setting in value.items()}

    @model_validator(mode="before")
    @classmethod
    def _one_list(cls, raw: object) -> object:
        if isinstance(raw, dict) and "new_tokens" in raw:
            changes = as_changes(raw).get("changes", [])
            raise MaskwiseError(
                "changes of a model are named in one list",
                got="model.new_tokens",
                do=f"write model.changes: {json.dumps(changes)}",
            )
        return raw

    @model_validator(mode="after")
    def _one_rate(self) -> ModelSettings:
        if self.attention_dropout is None:
            return self
        for name in ATTENTION_DROPOUT:
            if name in self.settings:
                raise MaskwiseError(
                    "attention dropout is set twice",
                    got=f"attention_dropout and settings.{name}",
                )
        return self

    @property
    def changed_dropout(self) -> float | None:
        """The attention dropout if it differs from the default of the model; otherwise None."""
        usual = attention_dropout(self.architecture)
        if self.pretrained or usual is None:
            return self.attention_dropout
        field, default = usual
        rate = self.attention_dropout or 0.0
        if field in self.settings or rate == default:
            return None
        return rate

    def named(self) -> dict[str, Any]:
        """Return the settings that are part of the name of a stage (a step of a study).

        ``adapter`` is left out, because only training stages depend on it. Attention dropout is
        included only if it differs from the architecture's default, because this setting did not
        exist when older studies were recorded. ``changes`` are included only if there are some.
        """
        left_out = {"attention_dropout", "adapter"}
        if not self.changes:
            left_out.add("changes")
        plain: dict[str, Any] = self.model_dump(mode="json", exclude=left_out)
        if self.pretrained and self.settings:
            # Older versions ignored these settings, but had them in the name. Under another key,
            # they change the name, and stages without them keep theirs.
            plain |= {"settings": {}, "changed": plain["settings"]}
        if self.changed_dropout is not None:
            plain["attention_dropout"] = self.changed_dropout
        return plain

    @classmethod
    def from_name(cls, plain: Mapping[str, Any]) -> ModelSettings:
        """Return the settings from which ``named`` returned ``plain``."""
        plain = dict(plain)
        if "changed" in plain:
            plain["settings"] = plain.pop("changed")
        if plain.get("pretrained") or "architecture" not in plain:
            return cls(**plain)
        usual = attention_dropout(plain["architecture"])
        if usual is not None and usual[0] not in plain["settings"]:
            rate = plain.get("attention_dropout", usual[1])
            # Recipes usually have None, which means 0 for a new model, so replace 0 by None.
            plain["attention_dropout"] = rate or None
        return cls(**plain)


def as_changes(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a recorded study, in which new tokens had a setting of their own.

    >>> as_changes({"pretrained": "bundled:encoder", "new_tokens": 500})
    {'pretrained': 'bundled:encoder', 'changes': ['new-tokens(500)']}
    """
    kept = {key: value for key, value in model.items() if key != "new_tokens"}
    words = model.get("new_tokens")
    return kept if words is None else kept | {"changes": [f"new-tokens({words!r})"]}
