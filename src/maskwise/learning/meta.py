"""Update a masking policy so that pre-training with its masks lowers the loss of a task.

An example is a row of the task with a context (a text to mask, see ``examples``). ``learn_policy``
calls ``training.train``, as all training does. At every step:

    MetaSource     chooses a batch of examples
    MetaObjective  draws masks by the policy's scores; they are relaxed, which means differentiable
                   takes inner steps of the model: pre-training with the masks, then the task
                   returns the task loss after these steps, with the meta-gradient as its gradient
    train          updates the policy
    InnerModel     takes an ordinary training step of the model, or resets the model
    PolicyAverage  moves the average of the policy towards the policy

At intervals, the gain of the average on dev decides which policy is kept, and when to stop.

The objective has only the policy as a part, because ``train`` would also update the model. The
model is a learner instead, and learners are saved in training states. The gradient of an outer step
is noisy, because a batch has few examples and each example has only one mask. Therefore the moving
average is evaluated and kept instead of the policy itself.

An outer step with one pair of inner steps costs seven gradients of the model, one after another.
Every random draw is a function of (seed, step, example). Therefore the result depends on the number
of ranks only by rounding.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskwise.base.constants import rank_here, ranks_here
from maskwise.base.devices import TensorDict, Tensors
from maskwise.base.errors import MaskwiseError
from maskwise.learning.examples import Examples, MaskedContexts, Scorer, even, masked_by
from maskwise.learning.gradients import (
    InnerStep,
    Losses,
    LossFunction,
    Parameters,
    descended,
    meta_gradient,
    value_of,
    values_of,
    wide,
)
from maskwise.learning.relaxation import Overflow, RelaxedDenoising
from maskwise.learning.scorer import PolicyModel
from maskwise.learning.settings import MetaSettings
from maskwise.masking import Vocabulary
from maskwise.masking.batch import IGNORE
from maskwise.masking.draws import Array, fold
from maskwise.models.families import adapter_of
from maskwise.models.loading import load_task_model, task_config
from maskwise.models.weights import share_encoder
from maskwise.objectives.base import Loss, Objective
from maskwise.tasks.task import Task
from maskwise.tasks.tensors import shuffled
from maskwise.training.checkpoint import changed_settings
from maskwise.training.learners import Facts, Learner, NumbersByName, Progress
from maskwise.training.log import NotFinite
from maskwise.training.loop import train
from maskwise.training.optim import Optimizers, load_state, state_of
from maskwise.training.ranks import ALONE, Ranks, is_sharded
from maskwise.training.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MetaBatch: TypeAlias = dict[str, Any]
"""A batch of ``MetaSource``."""

DRAWS = 2
"""The number of times that an evaluation draws a context and a mask for each dev example."""


class MetaResult(NamedTuple):
    """The result of learning.

    Attributes:
        best_step: the number of steps after which the average policy had the best gain on dev; 0 if
            no gain was above 0, so that the initial policy is the best.
        gain: the best gain on dev in nats, from ``InnerModel.gain_of``.
        stopped: the reason why learning stopped early, or None.
        overshoot: the warning from ``InnerModel.overshoots`` that an inner step is too large, or
            None.
    """

    best_step: int
    gain: float
    stopped: str | None
    overshoot: str | None


def learn_policy(
    policy: PolicyModel,
    losses: Losses,
    examples: Examples,
    dev: Examples,
    settings: MetaSettings,
    training: TrainingSettings,
    *,
    folder: Path | None = None,
    title: str = "learning a policy",
) -> MetaResult:
    """Learn a policy until the last step, an early stop, or divergence.

    Learning stops early if the gain on dev does not improve for ``patience`` evaluations. If an
    interrupted call is repeated, it resumes from the last evaluation or, after SIGTERM, from the
    last step.

    Args:
        policy: the policy. At the end, it has the parameters of the average with the best gain on
            dev, or its initial parameters if no gain was above 0.
        losses: the masked language model that is trained with the policy's masks, with its two
            losses (``losses_of``). Its weights change.
        examples, dev: the examples for learning and for evaluation.
        settings: the settings of the meta-gradient.
        training: the optimiser, learning rate and gradient clipping for the model's ordinary steps.
        folder: the folder for ``metrics.jsonl`` and training states; if None, nothing is written.
        title: the title of the progress bar.

    Raises:
        MaskwiseError: the policy does not score tokens, or ``train`` fails.
    """
    model = InnerModel(losses, examples, dev, settings, training)
    average = PolicyAverage(policy, settings)
    outer = outer_settings(settings)

    def of_average(step: int, ranks: Ranks) -> list[Facts]:
        return [average.compare(step, model.gain_of(average.policy, ranks))]

    try:
        train(
            MetaObjective(policy, model),
            MetaSource(examples, settings, outer),
            outer,
            folder=folder,
            learners={"model": model, "average": average},
            evaluate=of_average,
            title=title,
        )
    except (NotFinite, Overflow) as error:
        # An overflow may happen on this rank alone. If this rank stopped without an error, the
        # other ranks would wait for it forever.
        if isinstance(error, Overflow) and ranks_here() > 1:
            raise
        average.stopped = f"diverged: {error.what}"
    set_values(policy, average.best)
    return MetaResult(average.best_step, average.gain, average.stopped, model.overshoot)


def outer_settings(settings: MetaSettings) -> TrainingSettings:
    """Return the training settings of the policy."""
    return TrainingSettings(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        warmup=0.0,
        decay="linear",
        clip=settings.clip,
        # Rounding in bfloat16 would hide the difference between two gradients.
        precision="no",
        seed=settings.seed,
        log_every=1,
        eval_every=settings.eval_every,
        save_every=settings.eval_every,
    )


# One outer step
# -------------------------------------------------------------------------------------------


def chosen(examples: Examples, number: int, settings: MetaSettings, *, order: int) -> Array:
    """Return (batch size,) the examples in batch ``number`` of an endless shuffled order."""
    seed = fold(settings.seed, order, 0xE0)
    rows, _ = shuffled(len(examples), number, settings.batch_size, seed=seed)
    return rows.numpy()


class MetaSource:
    """Chooses the examples of each step: another batch for each of its K inner steps.

    A batch has B of them on this rank: ``rows`` (K, B), ``keys`` (K,), the seeds of their contexts
    and masks, and ``task``, all rows of the task as one batch, whose ``labels`` are the targets.

    Args:
        examples: the examples for learning.
        settings: the settings of the meta-gradient.
        training: the training settings of the policy.
    """

    def __init__(self, examples: Examples, settings: MetaSettings, training: TrainingSettings):
        self.examples = examples
        self.settings = settings
        self.training = training

    def ahead(self, step: int) -> bool:
        """Return True: which examples are chosen does not depend on the policy."""
        return True

    def batches(self, step: int, *, rank: int, ranks: int) -> list[MetaBatch]:
        """Return the micro-batches of ``step`` for ``rank``."""
        s = self.settings
        rows = []
        keys = []
        for k in range(s.inner_steps):
            rows.append(chosen(self.examples, step * s.inner_steps + k, s, order=0))
            keys.append(fold(s.seed, step, k))
        parts = ranks * self.training.accumulate
        batches: list[MetaBatch] = []
        for part in range(rank, parts, ranks):
            own_KB = np.stack(rows)[:, part::parts]
            task = self.examples.task(own_KB.flatten(), "cpu")
            batches.append(
                {
                    "rows": torch.from_numpy(own_KB),
                    "keys": torch.tensor(keys),
                    "task": task,
                    "labels": task["labels"],
                }
            )
        return batches

    def facts(self, batches: Sequence[MetaBatch]) -> dict[str, float]:
        """Return the number of tokens in the contexts of all examples."""
        tokens = 0
        for batch in batches:
            for rows, key in zip(batch["rows"].numpy(), batch["keys"].tolist(), strict=True):
                for context in self.examples.drawn(rows, seed=key).tolist():
                    tokens += len(self.examples.contexts[context]["input_ids"])
        return {"tokens": tokens}

    def summarise(self, sums: NumbersByName) -> dict[str, int]:
        """Return the number of tokens."""
        return {"tokens": int(sums["tokens"])}


class InnerBatch(NamedTuple):
    """This rank's examples in one inner step.

    Attributes:
        rows: (B,) the indices of the examples.
        masked: the contexts of these examples, and their masks.
        budget: the number of tokens to mask, summed over all ranks; a scalar.
    """

    rows: Array
    masked: MaskedContexts
    budget: Tensor


class MetaObjective(Objective):
    """The loss of a task after inner steps of a model with the policy's masks.

    Formula: n·J + N·(S − |S|), where J is the mean task loss after the inner steps, n and N are the
        numbers of targets on this rank and on all ranks, S = Σ mask·∂J/∂mask, and |S| is S without
        a gradient. Divided by N and summed over ranks, the value is J, and the gradient is ∂J/∂mask
        times the gradient of the mask.
    Inputs: a batch of ``MetaSource``.
    Requirements: a policy that scores tokens.

    Args:
        policy: maps input_ids (B, L) and attention_mask (B, L) to logits (B, L).
        inner: the model that takes the inner steps.

    Attributes:
        parts: the masked contexts of the last batch.
        inner_loss: the pre-training loss of the last batch in the first inner step, before it.

    Raises:
        MaskwiseError: the policy scores spans.
    """

    def __init__(self, policy: PolicyModel, inner: InnerModel):
        super().__init__()
        if policy.config.head != "tokens":
            raise MaskwiseError(
                "the meta-gradient needs a policy that scores tokens",
                got=policy.config.head,
                do="set learning.policy.head: tokens, or learning.method: supervised",
            )
        self.policy = policy
        self.inner = inner
        self.parts: list[InnerBatch] = []
        self.inner_loss = math.nan
        self.eval()

    def train(self, mode: bool = True) -> MetaObjective:
        """Stay in evaluation mode, because dropout would add noise to the scores."""
        return super().train(False)

    def forward(self, batch: MetaBatch) -> Loss:
        inner = self.inner
        self.parts = []
        rows_KB = batch["rows"].cpu().numpy()
        for rows, key in zip(rows_KB, batch["keys"].tolist(), strict=True):
            masked = inner.masked(self.policy, inner.examples, rows, key=key)
            self.parts.append(InnerBatch(rows, masked, summed(masked.choice.budget)))
        steps = inner.steps(self.parts)
        targets = targets_of(batch)
        all_targets = summed(targets)
        outer = inner.losses.of(batch["task"], all_targets)
        made = meta_gradient(values_of(inner.losses), steps, outer, agree=over_ranks)
        self.inner_loss = made.inner[0]
        surrogate = made.surrogate(steps)
        outer_loss = surrogate.new_tensor(made.outer)
        loss = targets * outer_loss + all_targets * (surrogate - surrogate.detach())
        return Loss(loss, targets)


class InnerModel(Learner):
    """The model that is trained with the policy's masks, as a learner beside the policy.

    After each update of the policy, the model takes an ordinary training step with the masks of
    this update, or is reset. A training state has its weights and its optimisers.

    Args:
        losses: the model, with its pre-training loss and its task loss.
        examples, dev: the examples for learning and for evaluation.
        settings: see ``MetaSettings``.
        training: the optimiser, learning rate and gradient clipping for the model's ordinary steps.

    Attributes:
        initial: the model's parameters after the ``settings.warm`` steps on the task. A reset
            restores these parameters.
        overshoot: the warning of ``overshoots``.
    """

    def __init__(
        self,
        losses: Losses,
        examples: Examples,
        dev: Examples,
        settings: MetaSettings,
        training: TrainingSettings,
    ):
        self.losses = losses.eval()
        self.examples = examples
        self.dev = dev
        self.settings = settings
        self.clip = training.clip or math.inf
        # The model may be reset after every step, but a decay of the learning rate would not start
        # again. Therefore the learning rate is constant.
        constant = {"decay": "constant", "warmup": 0.0, "steps": settings.steps}
        self.optimizers = Optimizers(losses, training.model_copy(update=constant))
        self.optimizers.set_rate(0)
        self.device = torch.device("cpu")
        self.parts: list[InnerBatch] = []
        self.initial: Parameters = {}
        self.overshoot: str | None = None

    def configure(self, objective: MetaObjective) -> None:
        """Move the model to the device of the policy, and take the warm steps on the task.

        Raises:
            MaskwiseError: the policy is sharded.
        """
        if any(map(is_sharded, objective.parameters())):
            raise MaskwiseError(
                "the meta-gradient needs a whole policy on every process",
                do="start accelerate without --use_fsdp",
            )
        self.meta = objective
        self.device = next(objective.parameters()).device
        self.losses.to(self.device)
        for number in range(self.settings.warm):
            rows = chosen(self.examples, number, self.settings, order=2)
            loss = self.task_loss(rows[rank_here() :: ranks_here()])
            self._descend(loss(self._parameters(), None))
        self._clear_optimizers()
        self.initial = values_of(self.losses)
        self.overshoot = self.overshoots()

    def observe(self, batch: MetaBatch, loss: Loss) -> None:
        self.parts += self.meta.parts

    def after(self, now: Progress) -> None:
        parts, self.parts = self.parts, []
        every = self.settings.reset_every
        if every and now.done % every == 0:
            set_values(self.losses, self.initial)
            self._clear_optimizers()
            return
        for part in parts:
            denoising = self.losses.of(part.masked.inputs, part.budget)
            task = self.task_loss(part.rows)
            theta = self._parameters()
            self._descend(denoising(theta, part.masked.choice.hard()) + task(theta, None))

    def state_dict(self) -> TensorDict:
        state = {f"weights/{name}": value for name, value in values_of(self.losses).items()}
        for name, value in state_of(self.optimizers.members).items():
            state[f"optimizers/{name}"] = value
        return state

    def load_state_dict(self, state: Tensors) -> None:
        set_values(self.losses, tensors_under(state, "weights"))
        load_state(self.optimizers.members, tensors_under(state, "optimizers"))

    # One step

    def masked(
        self, scorer: Scorer, examples: Examples, rows: Array, *, key: int
    ) -> MaskedContexts:
        """Return the contexts of examples, masked by the scores of a policy."""
        return masked_by(scorer, examples, rows, self.settings, key=key, device=self.device)

    def steps(self, parts: Sequence[InnerBatch]) -> list[InnerStep]:
        """Return the inner steps in order. Their masks pass gradients on to the policy."""
        steps = []
        for part in parts:
            mask = part.masked.choice.mask(part.masked.logit_U)
            loss = self.losses.of(part.masked.inputs, part.budget)
            steps.append(InnerStep(loss, self.settings.mask_rate, mask))
            if self.settings.task_rate:
                steps.append(InnerStep(self.task_loss(part.rows), self.settings.task_rate))
        return steps

    def task_loss(self, rows: Array) -> LossFunction:
        """Return a function of the parameters: the mean task loss over the rows of all ranks."""
        batch = self.examples.task(rows, self.device)
        return self.losses.of(batch, summed(targets_of(batch)))

    def _parameters(self) -> Parameters:
        return dict(self.losses.named_parameters())

    def _descend(self, loss: Tensor) -> None:
        """Take an ordinary training step of the model, which lowers ``loss``."""
        loss.backward()
        over_ranks(gradients_of(self.losses))
        nn.utils.clip_grad_norm_(self.losses.parameters(), self.clip)
        self.optimizers.step()
        self.optimizers.zero_grad()

    def _clear_optimizers(self) -> None:
        """Clear the states (such as momentum) of the model's optimisers."""
        for member in self.optimizers.members:
            member.state.clear()

    # Evaluation

    def gain_of(self, policy: Scorer, ranks: Ranks = ALONE) -> float:
        """Return how much better a policy's masks are than random masks: the mean gain in nats.

        The gain of a dev example is its task loss after an inner step with random masks, minus its
        task loss after an inner step with the policy's masks. Both inner steps start from the
        parameters ``initial`` and use the same contexts and random draws. The ranks divide the
        work.
        """
        count = min(len(self.dev), self.settings.dev_examples)
        batches = []
        for draw in range(DRAWS):
            for rows in torch.arange(count).split(self.settings.batch_size):
                batches.append((fold(0xDE, draw), rows.numpy()))

        def losses(number: int) -> list[float]:
            key, rows = batches[number]
            task = self.losses.of(self.dev.task(rows, self.device))
            after_steps = []
            for scorer in (policy, even):
                step = self._hard_step(scorer, self.dev, rows, key=key)
                theta, _ = descended(self.initial, step)
                after_steps.append(value_of(task, theta) * len(rows))
            return after_steps

        gains = 0.0
        for by_policy, at_random in ranks.divided([2] * len(batches), losses):
            gains += float(at_random - by_policy)
        return gains / (DRAWS * count)

    @torch.no_grad()
    def _hard_step(self, scorer: Scorer, examples: Examples, rows: Array, *, key: int) -> InnerStep:
        """Return an inner step of pre-training with hard masks (0 or 1, without a gradient)."""
        masked = self.masked(scorer, examples, rows, key=key)
        loss = self.losses.of(masked.inputs, masked.choice.budget)
        return InnerStep(loss, self.settings.mask_rate, masked.choice.hard())

    def overshoots(self) -> str | None:
        """Return a warning if an inner step raises the loss that it should lower, else None.

        The inner steps, one with random masks and one on the task, start from ``initial``. A step
        that raises its loss is too long, because its gradient does not predict the loss after the
        step. The policy would then learn masks that keep the model from diverging, instead of masks
        that help with the task.
        """
        s = self.settings
        rows = chosen(self.examples, 0, s, order=0)[rank_here() :: ranks_here()]
        denoising = self._hard_step(even, self.examples, rows, key=fold(s.seed, 0xD0))
        task = self.losses.of(self.examples.task(rows, self.device))
        steps = {"mask_rate": denoising, "task_rate": InnerStep(task, s.task_rate)}
        for name, step in steps.items():
            theta, before = descended(self.initial, step)
            after = value_of(step.loss, theta, step.mask)
            # Comparisons with NaN are false. Therefore ``not after <= before`` is also true if the
            # loss is NaN, but ``after > before`` would not be.
            if not after <= before:
                size = f"{name}={step.rate:g}"
                rise = f"from {before:.2f} to {after:.2f}"
                return f"an inner step of size {size} raises the loss that it should lower, {rise}"
        return None


class PolicyAverage(Learner):
    """The moving average of the policy, the best average so far, and the measures of learning.

    Each line of metrics has, of the last step: ``inner``, the pre-training loss in the first inner
    step, before the update; ``entropy``, the mean entropy, in nats, of the policy's weights in a
    context; and ``answers``, the share of the policy's weight that is on tokens of correct answers.

    Args:
        policy: the policy that is trained.
        settings: see ``MetaSettings``.

    Attributes:
        policy: the average.
        best: the parameters of the average that had the best gain on dev so far.
        best_step, gain, stopped: see ``MetaResult``.
        first: the mean outer loss of the steps before the first evaluation; NaN before that.
        outer: the sum of the outer losses of the steps since the last evaluation.
    """

    def __init__(self, policy: PolicyModel, settings: MetaSettings):
        self.settings = settings
        self.policy = copy.deepcopy(policy)
        self.best = values_of(policy)
        self.best_step = 0
        self.gain = 0.0
        self.stopped: str | None = None
        self.first = math.nan
        self.outer = 0.0
        self.slopes = Slopes()
        self.sums_42 = torch.zeros(4, 2, dtype=torch.float64)
        self.shown: dict[str, float] = {}

    def configure(self, objective: MetaObjective) -> None:
        self.meta = objective
        self.policy.to(next(objective.parameters()).device)

    def observe(self, batch: MetaBatch, loss: Loss) -> None:
        """Add the sums of a micro-batch, and the numbers by which they are divided."""
        masked = [part.masked for part in self.meta.parts]
        entropies = [each.choice.entropy(each.logit_U.detach()) for each in masked]
        answers = torch.cat([each.answers() for each in masked])
        # Rows without an answer have no share.
        answers = answers[~answers.isnan()]
        self.sums_42 += torch.tensor(
            [
                [float(loss.total.detach()), float(loss.divisor)],
                [self.meta.inner_loss, 1],
                [float(sum(entropies)), len(entropies)],
                [float(answers.sum()), len(answers)],
            ],
            dtype=torch.float64,
        )

    def gradients(self) -> None:
        self.slopes.add(gradients_of(self.meta.policy))

    def offer(self, now: Progress) -> Tensor | None:
        sums, self.sums_42 = self.sums_42, torch.zeros_like(self.sums_42)
        return sums

    def after(self, now: Progress) -> None:
        if not now.done:
            return
        assert now.sums is not None
        sums_4, counts_4 = now.sums.unbind(1)
        outer, *means = (sums_4 / counts_4).tolist()
        self.outer += outer
        # If no row has an answer, the share is NaN, which JSON does not have.
        self.shown = {}
        for name, mean in zip(("inner", "entropy", "answers"), means, strict=True):
            if math.isfinite(mean):
                self.shown[name] = mean
        # With a constant decay, the initial policy would dominate the average for many steps.
        # Therefore the decay rises from 0.1 to ``average``.
        keep = min(self.settings.average, now.done / (9 + now.done))
        with torch.no_grad():
            for average, value in zip(self.policy.parameters(), self.meta.policy.parameters()):
                average.lerp_(value, 1 - keep)

    def facts(self) -> Facts:
        return self.shown

    def compare(self, step: int, gain: float) -> Facts:
        """Update the best policy, and decide whether to stop.

        Args:
            step: the number of completed steps.
            gain: the gain of the average on dev, in nats.

        Returns:
            A line of metrics.
        """
        s = self.settings
        if gain > self.gain:
            self.best_step = step
            self.gain = gain
            self.best = values_of(self.policy)
        outer = self.outer / max(1, self.slopes.count)
        if math.isnan(self.first):
            self.first = outer
        waited = math.ceil((step - self.best_step) / s.eval_every)
        if outer > s.worse * self.first:
            rise = f"from {self.first:.3g} to {outer:.3g} by step {step}"
            self.stopped = f"diverged: the task loss rose {rise}"
        elif s.patience and waited >= s.patience:
            self.stopped = f"no better gain on dev since step {self.best_step}"
        line: dict[str, object] = {"best": self.best_step}
        for name, figure in {"gain": gain, "agreement": self.slopes.agreement()}.items():
            if math.isfinite(figure):
                line[name] = figure
        self.slopes = Slopes()
        self.outer = 0.0
        if self.stopped:
            line |= {"enough": True, "stopped": self.stopped}
        return line

    def state_dict(self) -> TensorDict:
        figures = [self.best_step, self.gain, self.first, self.outer]
        settings = self.settings.model_dump_json()
        state = {
            "figures": torch.tensor(figures, dtype=torch.float64),
            "settings": torch.tensor([*settings.encode()], dtype=torch.uint8),
        }
        groups = {
            "average": values_of(self.policy),
            "best": self.best,
            "slopes": self.slopes.state_dict(),
        }
        for group, tensors in groups.items():
            for name, tensor in tensors.items():
                state[f"{group}/{name}"] = tensor
        return state

    def load_state_dict(self, state: Tensors) -> None:
        """Restore the state.

        Raises:
            MaskwiseError: the state has different settings.
        """
        before = json.loads(bytes(state["settings"].tolist()))
        changed = changed_settings(before, self.settings.model_dump(mode="json"))
        if changed:
            raise MaskwiseError(
                "the folder has a run with different learning settings",
                got=changed,
                do="give a new folder",
            )
        best_step, self.gain, self.first, self.outer = state["figures"].tolist()
        self.best_step = int(best_step)
        self.best = tensors_under(state, "best")
        set_values(self.policy, tensors_under(state, "average"))
        self.slopes.load_state_dict(
            tensors_under(state, "slopes"), next(self.policy.parameters()).device
        )


class Slopes:
    """Measures how well gradients agree in direction: ‖mean gradient‖² / mean of ‖gradient‖²."""

    def __init__(self) -> None:
        self.total: list[Tensor] = []
        self.squares = 0.0
        self.count = 0

    def add(self, gradient: Sequence[Tensor]) -> None:
        # The sum is updated in place, because storing every gradient would need too much memory.
        if not self.total:
            self.total = [torch.zeros_like(part) for part in gradient]
        for total, part in zip(self.total, gradient, strict=True):
            total += part
        self.squares += self._square(gradient)
        self.count += 1

    def agreement(self) -> float:
        """Return 1 for equal gradients, about 1/count for independent noise, NaN if all are 0."""
        if not self.squares:
            return math.nan
        return self._square(self.total) / (self.count * self.squares)

    def _square(self, gradient: Sequence[Tensor]) -> float:
        return sum(float(wide(part).square().sum()) for part in gradient)

    def state_dict(self) -> TensorDict:
        sums = torch.tensor([self.squares, self.count], dtype=torch.float64)
        return {"sums": sums, **{f"{n:06}": part for n, part in enumerate(self.total)}}

    def load_state_dict(self, state: Tensors, device: torch.device) -> None:
        self.squares, count = state["sums"].tolist()
        self.count = int(count)
        self.total = [state[name].to(device) for name in sorted(state) if name != "sums"]


# Tensors
# -------------------------------------------------------------------------------------------


def targets_of(batch: Tensors) -> Tensor:
    """Return the number of targets of a task's batch on this rank, a scalar."""
    return torch.count_nonzero(batch["labels"] != IGNORE)


def over_ranks(tensors: Iterable[Tensor]) -> None:
    """Sum tensors over all ranks, in place."""
    if ranks_here() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def summed(number: Tensor) -> Tensor:
    """Return the sum of a number over all ranks."""
    total = number.detach().clone().float()
    over_ranks([total])
    return total


def gradients_of(module: nn.Module) -> list[Tensor]:
    return [value.grad for value in module.parameters() if value.grad is not None]


def set_values(module: nn.Module, values: Tensors) -> None:
    """Copy values into a module's parameters."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(values[name])


def tensors_under(tensors: Tensors, group: str) -> TensorDict:
    """Return the tensors whose names begin with ``group/``, by the rest of their names."""
    prefix = f"{group}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


# The model
# -------------------------------------------------------------------------------------------


def losses_of(
    model: PreTrainedModel, task: Task, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> Losses:
    """Build the two losses of a model: of masked tokens, and of a task.

    If the task needs a head of its own, the head is put on the model's encoder.

    Raises:
        MaskwiseError: the task has no loss, the task does not fit the model's architecture, or the
            tokenizer has neither a mask token nor a sentinel.
    """
    kind = task.kind
    family = adapter_of(model.config).kind
    if kind.objective is None:
        raise MaskwiseError(
            "a policy is learned from a loss, but this kind of task has no loss",
            got=kind.name,
            do="use a task on which models are fine-tuned",
        )
    if kind.family != family:
        raise MaskwiseError(
            f"a task of kind {kind.name} is not for this model",
            got=f"an {family}",
            do="use kind=generation for an encoder–decoder, and a different kind for an encoder",
        )
    task_model = model
    if not kind.pretrained_head:
        config = task_config(model.config, task.config())
        task_model = load_task_model(None, config, head=kind.head, seed=seed)
        share_encoder(model, task_model)
    vocabulary = Vocabulary.of(tokenizer)
    mask = vocabulary.mask
    # A model with sentinels was pre-trained with sentinels in place of masked text, even if its
    # tokenizer has [MASK], too.
    if family != "encoder" and vocabulary.sentinels:
        mask = next(iter(vocabulary.sentinels))
    if mask is None:
        raise MaskwiseError(
            "the tokenizer has no mask token and no sentinel",
            do="set tokenizer.sentinels, or use a tokenizer with [MASK]",
        )
    return Losses(RelaxedDenoising(model, mask), task.objective(task_model))
