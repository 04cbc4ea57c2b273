"""The learning part of a recipe: how a policy is learned from a task."""

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
    """How many policies are learned, from other weights and in other orders; the best on dev is
    kept. Where one step tells little of a task, one learning may end at words that do not help, and
    the next one at those that do.
    """

    batch_size: int = Field(32, ge=1)
    """Examples of each inner step."""

    warm: int = Field(5, ge=0)
    """Ordinary steps of the task that the model takes before all others. It then knows what an
    answer looks like, and no mask is rewarded for telling it that."""

    inner_steps: int = Field(1, ge=1, le=16)
    """Pairs of a step under a mask and a step of the task, one after the other, before the outer
    loss.
    """

    mask_rate: float = Field(0.02, ge=0)
    """Size of an inner step of masked pre-training. 0 gives the policy no gradient at all. Where it
    is so long that it raises the loss that it should lower, the policy learns something else;
    ``maskwise learn`` says so.
    """

    task_rate: float = Field(0.05, ge=0)
    """Size of an inner step of the task; 0: there is none."""

    learn_rates: bool = False
    """Whether both sizes are learned too, each by the gradient of its logarithm."""

    outer: Literal["same", "other"] = "same"
    """The examples of the outer loss: those of the inner steps, or as many others."""

    gradient: Literal["exact", "finite-difference"] = "finite-difference"
    """How the meta-gradient is computed."""

    draws: Literal[8] = 8
    """Without effect; part of the names of stages that were recorded."""

    units: Literal["token", "word"] = "word"
    """What is masked together while learning."""

    ratio: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens of a context that is masked while learning."""

    temperature: float = Field(1.0, gt=0)
    """Scores are divided by it while learning: above 1 masks are drawn more evenly than the policy
    says.
    """

    learning_rate: float = Field(0.01, gt=0)
    """Step size of the policy (Adam), falling to 0 over the steps. A table of words wants 0.3, an
    encoder 1e-3.
    """

    clip: float = Field(0.0, ge=0)
    """Largest norm of the policy's gradient; 0 for none."""

    entropy: float = Field(0.0, ge=0)
    """How much a policy is rewarded for spreading its weight over units: nats of outer loss for a
    nat of entropy.
    """

    average: float = Field(0.95, ge=0, lt=1)
    """How much the average of the policy keeps at each step. The average is what is judged and
    kept; 0: the last.
    """

    reset_every: int = Field(1, ge=0)
    """Outer steps after which the model is what it was at the start again; 1: it never moves, 0: it
    is never reset. A model that moves on knows the answers of train by heart within some tens of
    steps, and then no mask can help.
    """

    eval_every: int = Field(10, ge=1)
    """Outer steps between two judgements of the policy on dev examples, and between two states to
    resume from.
    """

    dev_examples: int = Field(256, ge=1)
    """So many dev examples judge the policy, the first of them."""

    patience: int | None = Field(None, ge=1)
    """So many judgements without a better one end the learning."""

    worse: float = Field(2.0, gt=1)
    """The outer loss has diverged where its mean between two judgements is so many times that of
    the first steps.
    """

    seed: int = 0
    """Decides order, contexts and masks."""

    @field_validator("gradient", mode="before")
    @classmethod
    def _no_reinforce(cls, gradient: object) -> object:
        if gradient == "reinforce":
            raise ValueError("reinforce is gone; take exact, or finite-difference")
        return gradient


class PolicySettings(BaseModel):
    """The model that a policy is: an encoder with a head.

    >>> PolicySettings(architecture="modernbert", settings={"hidden_size": 128}).length
    64
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = "light"
    """``light`` (an embedding of a token and its neighbours), or an architecture of transformers
    for a new encoder.
    """

    pretrained: str | None = None
    """An encoder to begin with instead: a folder, hub id or ``bundled:encoder``. Its tokenizer is
    the policy's.
    """

    settings: dict[str, Any] = {}
    """Fields of the encoder's configuration: hidden_size and window of a light one."""

    head: Literal["tokens", "spans"] | None = None
    """What is scored. None: spans where labels are answers, else tokens."""

    length: int = Field(64, ge=4)
    """Tokens that the policy reads at once, special ones included."""

    longest: int = Field(10, ge=1)
    """Words of the longest span."""


class SupervisedSettings(BaseModel):
    """How a policy is learned from labels: which words or spans it should find.

    >>> SupervisedSettings(training={"steps": 50}).training.batch_size
    32
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Literal["answers", "target-words", "classifier"] | None = None
    """``answers``: where the right answers stand in a context. ``target-words``: the content words
    of a target that stand in its source. ``classifier``: words without which a classifier is less
    sure. None: what the task has.
    """

    training: TrainingSettings = TrainingSettings(steps=300, learning_rate=3e-3)
    """The training of the policy; its seed is the run's."""

    finetune: FinetuneSettings = FinetuneSettings()
    """How the classifier is trained, from the recipe's model; its seeds are not used."""

    drop: float = Field(0.05, gt=0, lt=1)
    """A word is labelled if the classifier gives the right class so much less probability without
    it.
    """


class LearningSettings(BaseModel):
    """How a policy is learned from a task, before a model is trained under it.

    >>> LearningSettings(method="supervised").policy.architecture
    'light'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["supervised", "meta"] = "supervised"
    """By labels that the task gives, or by what masking does to the task's loss."""

    task: str | None = None
    """What is learned from: as in ``tasks``, of which it is the first if nothing is said."""

    policy: PolicySettings = PolicySettings()
    supervised: SupervisedSettings = SupervisedSettings()
    meta: MetaSettings = MetaSettings()
