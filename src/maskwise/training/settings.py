"""The settings of a training run, each with its unit and its effect on other settings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from maskwise.errors import MaskwiseError
from maskwise.families import Kind, check_fit
from maskwise.models import (
    Fields,
    config_of,
    empty_model,
    load_config,
    load_model,
    new_config,
    new_model,
)
from maskwise.weights import lora

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Beta = Annotated[float, Field(ge=0, lt=1)]


NOTHING: dict[str, JsonValue] = {"changes": "nothing"}
"""Marks a setting that does not change the weights, so the names of stages leave it out. (A run
that has finished has the same weights under any ``on_nan``.)
"""
ROUNDING: dict[str, JsonValue] = {"changes": "rounding"}
"""Marks a setting that changes speed or memory, but changes weights only by rounding."""


NEWER: dict[str, JsonValue] = {"changes": "weights unless default"}
"""Marks a setting that is newer than recorded studies. The names of stages leave it out while it
has its default, so that recorded stages keep their names."""


class TrainingSettings(BaseModel):
    """Settings of one training run; the same for pre-training and for fine-tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(1000, ge=1)
    """Optimiser updates. Schedules for the ratio and the learning rate span exactly these updates.
    """

    batch_size: int = Field(32, ge=1)
    """Rows per update, over all ranks and micro-batches."""

    accumulate: int = Field(1, ge=1, json_schema_extra=ROUNDING)
    """Micro-batches per update. Changes memory use but not the result, because every target has the
    same weight. There are two exceptions: ``cse`` contrasts a twin only with its micro-batch, and
    ``rtd`` weights its detector with the share of masked tokens in each micro-batch."""

    group_by_length: bool = False
    """Make batches from rows of similar length; if rows are single documents, there is less
    padding."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon``: Muon for the matrices in the blocks, and AdamW for all other parameters."""

    learning_rate: float = Field(5e-4, gt=0)
    """AdamW's peak rate."""

    muon_learning_rate: float = Field(0.02, gt=0)
    """Muon's peak rate; used only with ``optimizer: muon``."""

    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """AdamW's decay rates for the running means of the gradient and of its square."""

    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay; not applied to biases, norms and other vectors."""

    warmup: float = Field(0.06, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0."""

    decay: Literal["linear", "cosine", "1-sqrt", "wsd", "constant"] = "linear"
    """How the learning rate falls to 0. ``linear``, ``cosine`` and ``1-sqrt`` fall over all steps
    (see ``decay_share``) and are multiplied by the warm-up, so the highest rate is slightly below
    the peak. ``wsd`` (warm-up, stable, decay) stays at the peak and then falls as 1 − √ over the
    last tenth of the steps.
    """

    decay_share: float | None = Field(None, gt=0, le=1)
    """Share of the steps, at the end, over which the rate falls; before that, it stays at the peak.
    If None, all steps, or a tenth for ``wsd``."""

    lag: int = Field(0, ge=0, le=1, json_schema_extra=NEWER)
    """Number of updates before a policy that learns from losses uses them. With 1, no step waits
    for the previous step's losses; on an accelerator, this wait takes as long as masking and
    copying a batch."""

    freeze: Literal["none", "encoder"] = "none"
    """``encoder``: train only the heads, on a frozen encoder without dropout."""

    clip: float = Field(1.0, ge=0)
    """Maximum gradient norm, over all parameters; 0 turns clipping off."""

    precision: Literal["auto", "no", "bf16"] = Field("auto", json_schema_extra=ROUNDING)
    """``auto``: bf16 autocast on hardware where it makes training faster (GPUs with bf16
    multiplication, processors with AMX). ``no``: float32, whose products GPUs round to TF32.
    """

    activation_checkpointing: bool = Field(False, json_schema_extra=ROUNDING)
    """Keep only the inputs of each block, and recompute the activations in the backward pass. This
    takes a third more work but much less memory. The result is the same."""

    compile: bool = Field(False, json_schema_extra=ROUNDING)
    """Compile the blocks and the head with ``torch.compile``; the first steps take a minute longer.
    """

    shard: bool = Field(False, json_schema_extra=ROUNDING)
    """With several processes, each process keeps a shard of weights, gradients and optimiser states
    (FSDP2) instead of a copy (DDP). ``accelerate launch --use_fsdp`` has the same effect."""

    seed: int = 0
    """Seed for the initial weights, the order, dropout, and (in pre-training) the masks."""

    log_every: int = Field(20, ge=1, json_schema_extra=NOTHING)
    """Steps between lines of metrics."""

    eval_every: int = Field(0, ge=0, json_schema_extra=NOTHING)
    """Steps between evaluations; with 0, only at the end."""

    save_every: int = Field(0, ge=0, json_schema_extra=NOTHING)
    """Steps between states to resume from; with 0, no states are saved. A state includes the sums
    since the last line of metrics.
    """

    keep: int = Field(2, ge=1, json_schema_extra=NOTHING)
    """How many of the newest states are kept, in case the newest state is damaged."""

    on_nan: Literal["stop", "skip"] = Field("stop", json_schema_extra=NOTHING)
    """What happens if a loss or gradient is not finite. ``stop``: an error names the step.
    ``skip``: the update is skipped."""

    workers: int = Field(1, ge=0, json_schema_extra=NOTHING)
    """Processes per rank that tokenise a stream ahead of time (``corpus.stream``); with 0, the
    training process tokenises it. Does not change the result."""

    trackers: tuple[str, ...] = Field((), json_schema_extra=NOTHING)
    """Accelerate's trackers, such as ``tensorboard`` or ``wandb``; each must be installed."""

    @classmethod
    def that_change(cls, *effects: str) -> set[str]:
        """The settings that have one of these marks.

        >>> sorted(TrainingSettings.that_change("rounding"))[:2]
        ['accumulate', 'activation_checkpointing']
        """
        found = set()
        for name, field in cls.model_fields.items():
            # A field without a mark changes weights.
            mark = field.json_schema_extra
            if isinstance(mark, dict) and mark.get("changes") in effects:
                found.add(name)
        return found

    def micro_rows(self, ranks: int) -> int:
        """The number of rows in a micro-batch on one rank."""
        return self.batch_size // (self.accumulate * ranks)


ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
"""The configuration fields for attention dropout, the dropout of attention weights."""


@cache
def attention_dropout(architecture: str) -> tuple[str, float] | None:
    """The field for attention dropout and its default; None if the architecture has no such field.

    T5, for example, has a single rate for all its dropout.
    """
    try:
        plain = config_of({"model_type": architecture})
    except ValueError:
        # Building the model raises an error that explains what is wrong with the name.
        return None
    return attention_dropout_of(plain)


def attention_dropout_of(config: PreTrainedConfig) -> tuple[str, float] | None:
    """The field for attention dropout in a configuration, and its value; None if there is none."""
    for field in ATTENTION_DROPOUT:
        if hasattr(config, field):
            return field, float(getattr(config, field))
    return None


class ModelSettings(BaseModel):
    """A recipe's ``model`` section: a new model from a configuration, or a pre-trained model.

    >>> ModelSettings(architecture="bert", settings={"num_hidden_layers": 2}).unigram_bias
    True
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pretrained: str | None = None
    """A folder, hub id, ``bundled:encoder`` or ``package:NAME`` (installed); None for new weights.
    """
    architecture: str = "modernbert"
    """Name of a new model's architecture in transformers, such as bert or t5."""
    settings: Fields = {}
    """Fields of the architecture's configuration, such as hidden_size."""
    unigram_bias: bool = True
    """Initialise a new head's output bias with the tokens' log-frequencies in the training text."""
    adapter: str | None = None
    """``lora(rank=16)``: instead of all weights, train the heads and low-rank updates of the
    encoder's linear layers (needs peft; see ``lora.Lora``). Checkpoints contain merged weights."""

    @field_validator("adapter")
    @classmethod
    def _known_adapter(cls, value: str | None) -> str | None:
        if value is not None:
            lora(value)
        return value

    attention_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of attention weights. If None, the rate is 0 for a new model and the checkpoint's
    rate for a pre-trained model. The fast GPU kernels for documents of variable length do not
    support this dropout."""

    @field_validator("settings")
    @classmethod
    def _truth(cls, value: Fields) -> Fields:
        """Read ``yes`` and ``no`` as booleans, because no setting has these words as a value."""
        words = {"yes": True, "on": True, "no": False, "off": False}
        return {key: words.get(str(setting), setting) for key, setting in value.items()}

    @model_validator(mode="after")
    def _one_rate(self) -> ModelSettings:
        if self.pretrained or self.attention_dropout is None:
            return self
        usual = attention_dropout(self.architecture)
        if usual is not None and usual[0] in self.settings:
            raise MaskwiseError(
                "attention dropout is given twice",
                got=f"attention_dropout and settings.{usual[0]}",
            )
        return self

    @property
    def changed_dropout(self) -> float | None:
        """The attention dropout, if it differs from that of the architecture or the checkpoint."""
        usual = attention_dropout(self.architecture)
        if self.pretrained or usual is None:
            return self.attention_dropout
        field, default = usual
        rate = self.attention_dropout or 0.0
        if field in self.settings or rate == default:
            return None
        return rate

    def named(self) -> dict[str, JsonValue]:
        """The settings in a stage's name, without ``adapter``, which only training stages have.

        Attention dropout is included only if it is not the architecture's default: before this
        setting existed, studies were recorded with the default.
        """
        plain: dict[str, JsonValue] = self.model_dump(
            mode="json", exclude={"attention_dropout", "adapter"}
        )
        if self.changed_dropout is not None:
            plain["attention_dropout"] = self.changed_dropout
        return plain

    @classmethod
    def from_name(cls, plain: Mapping[str, Any]) -> ModelSettings:
        """The inverse of ``named``: if a name omits the rate, it is the architecture's default."""
        plain = dict(plain)
        if plain.get("pretrained") or "architecture" not in plain:
            return cls(**plain)
        usual = attention_dropout(plain["architecture"])
        if usual is not None and usual[0] not in plain["settings"]:
            rate = plain.get("attention_dropout", usual[1])
            # None, as in most recipes, means 0.
            plain["attention_dropout"] = rate or None
        return cls(**plain)

    def config(
        self, tokenizer: PreTrainedTokenizerBase, length: int, *, kind: Kind
    ) -> PreTrainedConfig:
        """The pre-trained model's configuration, or a new one for rows of ``length``.

        Raises:
            MaskwiseError: attention dropout is set, but the configuration does not support it.
        """
        if self.pretrained:
            config = load_config(self.pretrained, kind=kind)
        else:
            config = new_config(
                self.architecture,
                tokenizer,
                length,
                kind=kind,
                **self.settings,
            )
        if self.changed_dropout is not None:
            usual = attention_dropout_of(config)
            if usual is None:
                raise MaskwiseError(
                    f"{config.model_type} has no separate attention dropout",
                    do="leave out model.attention_dropout",
                )
            # T5Gemma's layers read the configurations of their own parts. ESM's part may be None.
            parts = [getattr(config, name) for name in config.sub_configs]
            for part in filter(None, [config, *parts]):
                setattr(part, usual[0], self.changed_dropout)
        return config

    def empty(self, config: PreTrainedConfig) -> PreTrainedModel:
        """The model to train, but without memory for its weights; it is used to count them."""
        network = empty_model(config)
        if self.adapter:
            lora(self.adapter).add(network, seed=0)
        return network

    def model(
        self,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        *,
        kind: Kind,
        seed: int,
        log_unigram: Tensor,
    ) -> PreTrainedModel:
        """The model to train; ``log_unigram`` is as for ``new_model``."""
        bias = log_unigram if self.unigram_bias else None
        config = self.config(tokenizer, length, kind=kind)
        if self.pretrained:
            network = load_model(
                self.pretrained, kind=kind, seed=seed, log_unigram=bias, config=config
            )
            check_fit(
                network.config, len(tokenizer), do="set tokenizer.name to the model's tokenizer"
            )
        else:
            network = new_model(config, seed=seed, log_unigram=bias)
        if self.adapter:
            lora(self.adapter).add(network, seed=seed)
        return network
