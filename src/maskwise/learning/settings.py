"""The ``learning`` section of a recipe: how a policy is learned from a task."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from maskwise.training import TrainingSettings

Plain: TypeAlias = dict[str, Any]
"""Settings as JSON values."""


class MetaSettings(BaseModel):
    """How a policy is learned by the meta-gradient.

    >>> MetaSettings(steps=100).batch_size
    32
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(60, ge=1)
    """Outer steps: updates of the policy."""

    tries: int = Field(1, ge=1)
    """Number of policies that are learned, with different initial weights and orders; the policy
    that is best on dev is used. If one step reveals little about the task, a try may converge to
    words that do not help.
    """

    batch_size: int = Field(32, ge=1)
    """Examples per inner step."""

    warm: int = Field(5, ge=0)
    """Ordinary steps on the task before the first outer step. They teach the model the format of
    answers; otherwise masks would be rewarded for teaching it."""

    inner_steps: int = Field(1, ge=1, le=16)
    """Pairs of inner steps before the outer loss: a step under a mask, then a step on the task."""

    mask_rate: float = Field(0.02, ge=0)
    """Size of an inner step of masked pre-training; 0 leaves the policy without a gradient. A step
    that is too long raises its own loss and misleads the policy; ``maskwise learn`` warns about
    such steps.
    """

    task_rate: float = Field(0.05, ge=0)
    """Size of an inner step on the task; 0 for no such steps."""

    units: Literal["token", "word"] = "word"
    """Masking units during learning."""

    ratio: float = Field(0.15, gt=0, lt=1)
    """Share of a context's tokens that are masked during learning."""

    temperature: float = Field(1.0, gt=0)
    """Divides the scores during learning; above 1, masks are drawn more evenly."""

    learning_rate: float = Field(0.01, gt=0)
    """The policy's learning rate (Adam), which decays linearly to 0. A rate of 0.3 suits a table of
    words, and 1e-3 suits an encoder.
    """

    clip: float = Field(0.0, ge=0)
    """Maximum norm of the policy's gradient; 0 turns clipping off."""

    average: float = Field(0.95, ge=0, lt=1)
    """Decay of the policy's moving average, which is evaluated and saved; with 0, the policy itself
    is used.
    """

    reset_every: int = Field(1, ge=0)
    """Outer steps between resets of the model to its initial weights. With 1 the model is never
    trained; with 0 it is never reset. A model without resets memorises the answers in train within
    tens of steps, and then no mask helps.
    """

    eval_every: int = Field(10, ge=1)
    """Outer steps between evaluations on dev, and between checkpoints."""

    dev_examples: int = Field(256, ge=1)
    """Maximum number of dev examples in an evaluation; the first examples are used."""

    patience: int | None = Field(None, ge=1)
    """Stop after this number of evaluations without improvement."""

    worse: float = Field(2.0, gt=1)
    """Stop when the mean outer loss between two evaluations exceeds this multiple of its initial
    value.
    """

    seed: int = 0
    """Seed for the order of examples, the contexts and the masks."""


class PolicySettings(BaseModel):
    """A policy's model: an encoder with a head.

    >>> PolicySettings(architecture="modernbert", settings={"hidden_size": 128}).length
    64
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "light"
    """``light`` (an embedding of a token and its neighbours), or the name of an architecture in
    transformers, for a new encoder.
    """

    pretrained: str | None = None
    """A pre-trained encoder to use instead: a folder, hub id or ``bundled:encoder``. The policy
    then uses this encoder's tokenizer.
    """

    settings: Plain = {}
    """Fields of the encoder's configuration; ``light`` has the fields hidden_size and window."""

    head: Literal["tokens", "spans"] | None = None
    """What the policy scores. If None, spans for ``supervised`` and tokens for ``meta``."""

    length: int = Field(64, ge=4)
    """Maximum number of tokens in a window of text, including special tokens."""

    longest: int = Field(10, ge=1)
    """Maximum number of words in a span."""


class SupervisedSettings(BaseModel):
    """How a policy is learned from labelled answers.

    >>> SupervisedSettings(training={"steps": 50}).training.batch_size
    32
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    training: TrainingSettings = TrainingSettings(steps=300, learning_rate=3e-3)
    """Settings for training the policy; the run provides the seed."""


class LearningSettings(BaseModel):
    """How a policy is learned from a task, before a model is trained under it.

    >>> LearningSettings(method="supervised").policy.architecture
    'light'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["supervised", "meta"] = "supervised"
    """``supervised``: from the task's answers. ``meta``: from how masking affects the task's
    loss."""

    task: str | None = None
    """The task, as in ``tasks``. If None, the first of the recipe's ``tasks``."""

    policy: PolicySettings = PolicySettings()
    supervised: SupervisedSettings = SupervisedSettings()
    meta: MetaSettings = MetaSettings()
