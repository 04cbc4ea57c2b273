"""The ``learning`` section of a recipe: how a policy is learned from a task."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from maskwise.tasks import FinetuneSettings
from maskwise.training import TrainingSettings


class MetaSettings(BaseModel):
    """How a policy is learned by the meta-gradient.

    >>> MetaSettings(steps=100, gradient="exact").batch_size
    32
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(60, ge=1)
    """Outer steps: updates of the policy."""

    tries: int = Field(1, ge=1)
    """Number of policies that are learned, with different initial weights and orders; the best on
    dev is used. If one step reveals little about the task, a try may converge to words that do not
    help.
    """

    batch_size: int = Field(32, ge=1)
    """Examples per inner step."""

    warm: int = Field(5, ge=0)
    """Ordinary steps on the task before the first outer step. They teach the model the format of
    answers, so that no mask is rewarded for doing so."""

    inner_steps: int = Field(1, ge=1, le=16)
    """Pairs of inner steps before the outer loss: one step under a mask, then one of the task."""

    mask_rate: float = Field(0.02, ge=0)
    """Size of an inner step of masked pre-training; 0 leaves the policy without a gradient. A step
    that is too long raises its own loss and misleads the policy; ``maskwise learn`` warns about it.
    """

    task_rate: float = Field(0.05, ge=0)
    """Size of an inner step of the task; 0 for no such step."""

    learn_rates: bool = False
    """Whether to learn both step sizes, by the gradient of their logarithms."""

    outer: Literal["same", "other"] = "same"
    """Examples of the outer loss: the same as in the inner steps, or as many others."""

    gradient: Literal["exact", "finite-difference"] = "finite-difference"
    """How the meta-gradient is computed."""

    draws: Literal[8] = 8
    """Without effect; kept because it is part of the names of recorded stages."""

    units: Literal["token", "word"] = "word"
    """Units of masking while learning."""

    ratio: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens of a context that are masked while learning."""

    temperature: float = Field(1.0, gt=0)
    """Divides the scores while learning; above 1, masks are drawn more evenly."""

    learning_rate: float = Field(0.01, gt=0)
    """Learning rate of the policy (Adam), decaying linearly to 0. 0.3 suits a table of words, 1e-3
    an encoder.
    """

    clip: float = Field(0.0, ge=0)
    """Maximum norm of the policy's gradient; 0 does not clip."""

    entropy: float = Field(0.0, ge=0)
    """Bonus for spreading weight over units: nats of outer loss per nat of entropy."""

    average: float = Field(0.95, ge=0, lt=1)
    """Decay of the moving average of the policy, which is evaluated and saved; 0 saves the last
    policy.
    """

    reset_every: int = Field(1, ge=0)
    """Outer steps between resets of the model to its start; 1 never trains it, 0 never resets it. A
    model without resets memorises the answers of train within tens of steps, and then no mask
    helps.
    """

    eval_every: int = Field(10, ge=1)
    """Outer steps between evaluations on dev, and between checkpoints."""

    dev_examples: int = Field(256, ge=1)
    """Maximum number of dev examples of an evaluation: the first ones."""

    patience: int | None = Field(None, ge=1)
    """Stop after this number of evaluations without improvement."""

    worse: float = Field(2.0, gt=1)
    """Stop when the mean outer loss between two evaluations exceeds this multiple of its initial
    value.
    """

    seed: int = 0
    """Seed of the order, contexts and masks."""

    @field_validator("gradient", mode="before")
    @classmethod
    def _no_reinforce(cls, gradient: object) -> object:
        # Older recipes name it, and pydantic's own error would not say that it was removed.
        if gradient == "reinforce":
            raise ValueError("reinforce was removed; use exact or finite-difference")
        return gradient


class PolicySettings(BaseModel):
    """The model of a policy: an encoder with a head.

    >>> PolicySettings(architecture="modernbert", settings={"hidden_size": 128}).length
    64
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "light"
    """``light`` (an embedding of a token and its neighbours), or an architecture of transformers
    for a new encoder.
    """

    pretrained: str | None = None
    """A pre-trained encoder instead: a folder, hub id or ``bundled:encoder``. The policy takes its
    tokenizer.
    """

    settings: dict[str, Any] = {}
    """Fields of the encoder's configuration; ``light`` has hidden_size and window."""

    head: Literal["tokens", "spans"] | None = None
    """What the policy scores. None: spans if the labels are answers, else tokens."""

    length: int = Field(64, ge=4)
    """Maximum tokens of a window of text, including special tokens."""

    longest: int = Field(10, ge=1)
    """Maximum words of a span."""


class SupervisedSettings(BaseModel):
    """How a policy is learned from labelled words or spans.

    >>> SupervisedSettings(training={"steps": 50}).training.batch_size
    32
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Literal["answers", "target-words", "classifier"] | None = None
    """``answers``: right answers in their contexts. ``target-words``: the content words that a
    target shares with its source. ``classifier``: words without which a classifier is less sure.
    None: whatever the task provides.
    """

    training: TrainingSettings = TrainingSettings(steps=300, learning_rate=3e-3)
    """Training of the policy; the run provides its seed."""

    finetune: FinetuneSettings = FinetuneSettings()
    """Fine-tuning of the classifier from the recipe's model; its seeds are not used."""

    drop: float = Field(0.05, gt=0, lt=1)
    """A word is labelled if the right class loses at least this much probability without it."""


class LearningSettings(BaseModel):
    """How a policy is learned from a task, before a model is trained under it.

    >>> LearningSettings(method="supervised").policy.architecture
    'light'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["supervised", "meta"] = "supervised"
    """``supervised``: from labels of the task. ``meta``: from the effect of masking on its loss."""

    task: str | None = None
    """The task, as in ``tasks``. None: the first of these."""

    policy: PolicySettings = PolicySettings()
    supervised: SupervisedSettings = SupervisedSettings()
    meta: MetaSettings = MetaSettings()
