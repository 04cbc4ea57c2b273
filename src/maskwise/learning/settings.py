"""The ``learning`` section of a recipe: how a masking policy is learned from a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from maskwise.base.effects import (
    Count,
    NotNegative,
    Only,
    OrOff,
    Positive,
    Settings,
    Weights,
    Whole,
)
from maskwise.base.errors import MaskwiseError, require_known, whole_number
from maskwise.training.settings import TrainingSettings

Plain: TypeAlias = dict[str, Any]
"""Settings as JSON values."""

OF_THE_MODEL = (
    *("optimizer", "learning_rate", "muon_learning_rate", "betas", "weight_decay", "clip"),
    "compile",
)
"""The settings ``training`` of the recipe that the meta-gradient uses, for the ordinary steps of
the model. The other settings do not affect the policy: the rate is constant, and the numbers of
steps and rows are those of ``MetaSettings``."""


LIGHT = "light"
"""The architecture of a small encoder of maskwise's own (``scorer.LightEncoder``)."""


def light_settings(given: Mapping[str, object]) -> dict[str, int]:
    """Return the settings of a light encoder, with defaults for those that are not given.

    >>> light_settings({"window": 1})
    {'hidden_size': 64, 'window': 1}

    Raises:
        MaskwiseError: a setting is unknown, or its value is not allowed.
    """
    settings = {"hidden_size": 64, "window": 5}
    for name, value in given.items():
        require_known("light encoder setting", name, settings)
        settings[name] = whole_number(f"{name} of a light encoder", value, least=1)
    if settings["window"] % 2 == 0:
        raise MaskwiseError(
            "a light encoder needs an odd window",
            got=settings["window"],
            allowed="1, 3, 5, … tokens",
        )
    return settings


class MetaSettings(Settings, allow_inf_nan=False):
    """Settings of learning by the meta-gradient.

    In each outer step, a copy of the model takes inner steps: a few training steps with the
    policy's masks and on the task. Then the policy is updated to lower the task loss after the
    inner steps. An evaluation measures on dev how much more the policy's masks help than random
    masks (the gain).

    >>> MetaSettings(steps=100).batch_size
    32
    """

    steps: Weights[Count] = 60
    """Number of updates of the policy (outer steps)."""

    tries: Weights[Count] = 1
    """Number of policies to learn, with different initial weights and orders of examples. The
    policy whose masks help most on the dev examples is used. With a noisy gradient, some policies
    learn to mask words that do not help. Several tries make it likely that one policy is good.
    """

    batch_size: Weights[Count] = 32
    """Number of examples (task rows with a text to mask) per inner step."""

    warm: Weights[Whole] = 5
    """Number of training steps of the model on the task before the first update of the policy. In
    these steps, the model learns the format of answers. Otherwise, the policy would prefer masks
    that teach the format.
    """

    inner_steps: Weights[int] = Field(1, ge=1, le=16)
    """Number of pairs of inner steps, which precede each update of the policy. A pair is a training
    step of the model with the policy's masks, then a step on the task.
    """

    mask_rate: Weights[NotNegative] = 0.02
    """Step size of the inner steps with the policy's masks. With 0, the policy has no gradient.
    With a step size that is too large, a step raises the loss that it should lower, and the policy
    is misled. ``maskwise learn`` then shows a warning.
    """

    task_rate: Weights[OrOff[NotNegative]] = 0.05
    """Step size of the inner steps on the task. With 0, there are no such steps."""

    units: Weights[Literal["token", "word"]] = "word"
    """What is masked as a whole during learning: each token, or each word."""

    ratio: Weights[float] = Field(0.15, gt=0, lt=1)
    """Share of the tokens that are masked during learning."""

    temperature: Weights[Positive] = 1.0
    """The policy's scores are divided by this number during learning. Values above 1 make masks
    more random.
    """

    learning_rate: Weights[Positive] = 0.01
    """Learning rate of the policy at its first update. The rate decays linearly to 0. The optimiser
    is AdamW without weight decay. A suitable rate is 0.3 for a light encoder with a window of 1,
    and 1e-3 for a transformer.
    """

    clip: Weights[OrOff[NotNegative]] = 0.0
    """Maximum norm of the policy's gradient. With 0, gradients are not clipped."""

    average: Weights[OrOff[float]] = Field(0.95, ge=0, lt=1)
    """Decay of the moving average of the policy's parameters. This average is evaluated and saved
    in place of the policy. With 0, the average equals the policy.
    """

    reset_every: Weights[OrOff[Whole]] = 1
    """Number of updates of the policy after which the model is reset to its weights before the
    first update. With 1, the model is reset after every update. With 0, it is never reset. It then
    memorises the answers of the train rows within tens of updates, and no mask helps any more.
    """

    eval_every: Weights[Count] = 10
    """Number of updates of the policy between evaluations on dev, and between checkpoints."""

    dev_examples: Weights[Count] = 256
    """Maximum number of dev examples in an evaluation. The first examples of dev are used."""

    patience: Weights[int | None] = Field(None, ge=1)
    """Number of successive evaluations without improvement after which learning stops; None for no
    limit.
    """

    worse: Weights[float] = Field(2.0, gt=1)
    """Learning stops if the mean task loss between two evaluations is more than this many times the
    mean task loss before the first evaluation. Both are measured after the inner steps.
    """

    seed: Weights[int] = 0
    """Seed for the order of examples, the choice of their texts, and the masks. In a recipe, it is
    ignored; the seed of the run is used.
    """


class PolicySettings(Settings):
    """The model of a policy: an encoder with a head that scores tokens or spans.

    >>> PolicySettings(architecture="modernbert", settings={"hidden_size": 128}).length
    64
    """

    architecture: Annotated[Weights[str], Only("pretrained", (None,))] = "light"
    """Architecture of a new encoder: ``light`` (embeddings and a convolution over neighbours), or a
    ``model_type`` of transformers.
    """

    pretrained: Weights[str | None] = None
    """A pre-trained encoder, used in place of a new one: a folder, a hub id or ``bundled:encoder``.
    The policy then uses this encoder's tokenizer.
    """

    settings: Annotated[Weights[Plain], Only("pretrained", (None,))] = {}
    """Fields of a new encoder's configuration. ``light`` has ``hidden_size`` and ``window``."""

    head: Weights[Literal["tokens", "spans"] | None] = None
    """Whether the policy scores tokens or spans. The default is spans for ``supervised`` and tokens
    for ``meta``.
    """

    length: Weights[int] = Field(64, ge=4)
    """Maximum number of tokens that the policy scores at once, including special tokens. Longer
    texts are split.
    """

    longest: Weights[Count] = 10
    """Maximum number of words in a span."""

    @model_validator(mode="after")
    def _light_settings(self) -> Self:
        if self.architecture == LIGHT and not self.pretrained:
            light_settings(self.settings)
        return self


class PolicyTraining(TrainingSettings):
    """The training settings of a policy, with defaults of their own.

    These are defaults of the fields, not of the whole section. Otherwise, a recipe that sets one of
    them would get the defaults of pre-training for all others.

    >>> PolicyTraining(batch_size=8).steps
    300
    """

    steps: Weights[Count] = 300
    """Number of optimiser updates of the policy."""

    learning_rate: Weights[Positive] = 3e-3
    """Highest learning rate of AdamW."""


class SupervisedSettings(Settings):
    """Settings of learning from labelled answers.

    >>> SupervisedSettings(training={"steps": 50}).training.learning_rate
    0.003
    """

    training: PolicyTraining = PolicyTraining()
    """Training settings of the policy: those of ``training``, but with 300 steps and a learning
    rate of 3e-3 as defaults. Its ``seed`` is ignored; the seed of the run is used."""


class LearningSettings(Settings):
    """Settings of learning a policy from a task, before a model is pre-trained with this policy.

    >>> LearningSettings(method="supervised").policy.architecture
    'light'
    """

    method: Weights[Literal["supervised", "meta"]] = "supervised"
    """``supervised`` learns to find the task's answers in texts. ``meta`` learns masks that lower
    the task's loss, by the meta-gradient.
    """

    task: Weights[str | None] = None
    """The task to learn from. The default is the first task in the recipe's ``tasks``."""

    policy: PolicySettings = PolicySettings()
    supervised: Annotated[SupervisedSettings, Only("method", ("supervised",))] = (
        SupervisedSettings()
    )
    meta: Annotated[MetaSettings, Only("method", ("meta",))] = MetaSettings()

    @property
    def head(self) -> str:
        """What the policy scores: that of ``policy.head``, or the default of the method."""
        return self.policy.head or {"supervised": "spans", "meta": "tokens"}[self.method]
