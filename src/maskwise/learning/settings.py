"""The ``learning`` section of a recipe: how a policy is learned from a task."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from maskwise.training import TrainingSettings

Plain: TypeAlias = dict[str, Any]
"""Settings as JSON values."""


class MetaSettings(BaseModel):
    """Settings of learning by the meta-gradient.

    >>> MetaSettings(steps=100).batch_size
    32
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(60, ge=1)
    """Number of outer steps, which are updates of the policy."""

    tries: int = Field(1, ge=1)
    """Number of policies to learn, with different initial weights and orders of examples. The best
    policy on dev is used. Several tries help if the gradient is noisy, because some tries converge
    to words that do not help.
    """

    batch_size: int = Field(32, ge=1)
    """Examples per inner step."""

    warm: int = Field(5, ge=0)
    """Number of ordinary steps on the task before the first outer step. The model learns the format
    of answers in these steps. Without them, the policy would favour masks that teach the format.
    """

    inner_steps: int = Field(1, ge=1, le=16)
    """Number of pairs of inner steps: a step of masked pre-training, then a step on the task."""

    mask_rate: float = Field(0.02, ge=0)
    """Step size of inner steps of masked pre-training. With 0, the policy has no gradient. A step
    size that is too large raises the loss of the step itself and misleads the policy;
    ``maskwise learn`` then warns.
    """

    task_rate: float = Field(0.05, ge=0)
    """Step size of inner steps on the task; with 0, there are no steps on the task."""

    units: Literal["token", "word"] = "word"
    """The unit of masking during learning."""

    ratio: float = Field(0.15, gt=0, lt=1)
    """Masking ratio of contexts during learning."""

    temperature: float = Field(1.0, gt=0)
    """Divisor of the scores during learning. Values above 1 make masks more random."""

    learning_rate: float = Field(0.01, gt=0)
    """Learning rate of the policy (Adam), with linear decay to 0. A suitable rate is 0.3 for a
    light encoder with a window of 1, and 1e-3 for a transformer.
    """

    clip: float = Field(0.0, ge=0)
    """Maximum norm of the policy's gradient; 0 for no clipping."""

    average: float = Field(0.95, ge=0, lt=1)
    """Decay of the policy's moving average. The average is evaluated and saved. With 0, the average
    equals the policy.
    """

    reset_every: int = Field(1, ge=0)
    """Number of outer steps between resets of the model to its initial weights. With 1, the model
    always has its initial weights. With 0, the model is never reset; it then memorises the answers
    in train within tens of steps, and no mask helps.
    """

    eval_every: int = Field(10, ge=1)
    """Number of outer steps between evaluations on dev, and between checkpoints."""

    dev_examples: int = Field(256, ge=1)
    """Maximum number of dev examples in an evaluation: the first examples of dev."""

    patience: int | None = Field(None, ge=1)
    """Number of evaluations without improvement after which learning stops; None for no limit."""

    worse: float = Field(2.0, gt=1)
    """Factor of divergence: learning stops if the mean outer loss between two evaluations exceeds
    its initial value by this factor.
    """

    seed: int = 0
    """Seed of the order of examples, the contexts and the masks."""


class PolicySettings(BaseModel):
    """The model of a policy: an encoder with a head.

    >>> PolicySettings(architecture="modernbert", settings={"hidden_size": 128}).length
    64
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "light"
    """Architecture of a new encoder: ``light`` (embeddings and a convolution over neighbours), or a
    ``model_type`` of transformers.
    """

    pretrained: str | None = None
    """A pre-trained encoder, which replaces ``architecture``: a folder, a hub id or
    ``bundled:encoder``. The policy then has this encoder's tokenizer.
    """

    settings: Plain = {}
    """Fields of the encoder's configuration. ``light`` has ``hidden_size`` and ``window``."""

    head: Literal["tokens", "spans"] | None = None
    """The head of the policy. The default is spans for ``supervised`` and tokens for ``meta``."""

    length: int = Field(64, ge=4)
    """Maximum number of tokens in a window of text, including special tokens."""

    longest: int = Field(10, ge=1)
    """Maximum number of words in a span."""


class SupervisedSettings(BaseModel):
    """Settings of learning from labelled answers.

    >>> SupervisedSettings(training={"steps": 50}).training.batch_size
    32
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    training: TrainingSettings = TrainingSettings(steps=300, learning_rate=3e-3)
    """Training settings of the policy. The seed comes from the run."""


class LearningSettings(BaseModel):
    """Settings of learning a policy from a task, before a model is pre-trained with this policy.

    >>> LearningSettings(method="supervised").policy.architecture
    'light'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["supervised", "meta"] = "supervised"
    """``supervised`` learns from the task's answers; ``meta`` learns by the meta-gradient."""

    task: str | None = None
    """The task. The default is the first task in the recipe's ``tasks``."""

    policy: PolicySettings = PolicySettings()
    supervised: SupervisedSettings = SupervisedSettings()
    meta: MetaSettings = MetaSettings()
