"""Update a masking policy so that pre-training with its masks lowers the loss of a task.

An example is a row of the task with a context (a text to mask, see ``examples``). The outer loop:

    for every outer step
        score the tokens in the contexts of a batch of examples with the policy
        draw masks by these scores; the masks are relaxed, which means differentiable
        take inner steps of the model: pre-training with the masks, then the task   (meta_gradient)
        update the policy by the gradient of the task loss after the inner steps
        take ordinary training steps of the model, or reset the model to its initial weights

Every random draw is a function of (seed, step, example). Therefore a resumed run is bit-identical
to an uninterrupted run, and the result does not depend on the number of ranks. The gradient of an
outer step is noisy, because a batch has few examples and each example has only one mask. Therefore
the policy's moving average is evaluated and saved instead of the policy itself.
"""

from __future__ import annotations

import copy
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskwise.constants import rank_here, ranks_here
from maskwise.devices import TensorDict, Tensors
from maskwise.draws import Array, fold
from maskwise.errors import MaskwiseError
from maskwise.folders import damage, read_json, write_folder
from maskwise.learning.examples import Examples, MaskedContexts, Scorer, even, masked_by
from maskwise.learning.gradients import (
    InnerStep,
    Losses,
    LossFunction,
    Parameters,
    descended,
    meta_gradient,
    values_of,
    wide,
)
from maskwise.learning.scorer import PolicyModel
from maskwise.learning.settings import MetaSettings
from maskwise.masking.batch import IGNORE
from maskwise.tasks.tensors import shuffled
from maskwise.training import TrainingSettings
from maskwise.training.checkpoint import changes
from maskwise.training.optim import Optimizers, load_state, state_of

STATE = "state.json"
STATE_TENSORS = "state.safetensors"
DRAWS = 2
"""The number of times that an evaluation draws a context and a mask for each dev example."""


class MetaProgress(BaseModel):
    """The progress of meta-learning, as saved in ``state.json``.

    Attributes:
        step: the number of completed outer steps.
        best: the number of steps after which the average policy had the best gain on dev; 0 if no
            gain was above 0, so that the initial policy is the best.
        gain: the best gain on dev in nats, from ``MetaLearner.gain_of``.
        waited: the number of evaluations after the evaluation with the best gain.
        first: the mean outer loss of the steps before the first evaluation; None before that.
        stopped: the reason why learning stopped early, or None.
        overshoot: the warning from ``MetaLearner.overshoot`` that an inner step is too large, or
            None.
    """

    step: int = 0
    best: int = 0
    gain: float = 0.0
    waited: int = 0
    first: float | None = None
    stopped: str | None = None
    overshoot: str | None = None


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


class Diverged(Exception):
    """Raised if a loss or a gradient in the outer loop is not finite."""


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


class MetaLearner:
    """A policy, the model that is trained with the policy's masks, and the progress of learning.

    Args:
        losses: the model, with its pre-training loss and its task loss.
        policy: maps input_ids (B, L) and attention_mask (B, L) to logits (B, L).
        train, dev: the examples for learning and for evaluation.
        settings: see ``MetaSettings``.
        training: the optimiser, learning rate and gradient clipping for the model's ordinary steps.

    Attributes:
        average: the moving average of the policy, which is used in evaluations.
        best: the parameters of the average that had the best gain on dev so far.
        start: the model's parameters after the ``settings.warm`` steps on the task. A reset
            restores these parameters.
    """

    def __init__(
        self,
        losses: Losses,
        policy: PolicyModel,
        train: Examples,
        dev: Examples,
        settings: MetaSettings,
        training: TrainingSettings,
    ):
        self.losses = losses.eval()
        self.policy = policy.eval()
        self.train = train
        self.dev = dev
        self.settings = settings
        self.rank = rank_here()
        self.ranks = ranks_here()
        if settings.batch_size % self.ranks:
            raise MaskwiseError(
                "learning.meta.batch_size must be a multiple of the number of processes",
                got=f"batch_size {settings.batch_size} for {self.ranks} processes",
            )
        self.device = next(losses.parameters()).device
        self.average = copy.deepcopy(policy)
        self.best = values_of(policy)
        self.clip = training.clip or math.inf
        # The model may be reset after every step, but a decay of the learning rate would not start
        # again. Therefore the learning rate is constant.
        constant = {"decay": "constant", "warmup": 0.0, "steps": settings.steps}
        self.optimizers = Optimizers(losses, training.model_copy(update=constant))
        self.optimizers.set_rate(0)
        self.adam = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
        self.slopes = Slopes()
        self.now = MetaProgress()
        theta: Parameters = dict(losses.named_parameters())
        for number in range(settings.warm):
            loss = self._task_loss(self._rows(number, order=2))
            self._descend(loss(theta, None))
        self._clear_optimizers()
        self.start = values_of(losses)

    # One outer step
    # ---------------------------------------------------------------------------------------

    def step(self) -> dict[str, float]:
        """Take an outer step.

        Returns:
            A record for the log. ``outer``: the task loss after the inner steps. ``inner``: the
            pre-training loss in the first inner step, before the update. ``grad_norm``: the norm of
            the policy's gradient before clipping. ``entropy``: the mean entropy, in nats, of the
            policy's weights in a context. ``answers``: the share of the policy's weight that is on
            tokens of correct answers.

        Raises:
            Diverged: a loss or a gradient is not finite.
        """
        s = self.settings
        number = self.now.step
        for group in self.adam.param_groups:
            group["lr"] = s.learning_rate * (1 - number / s.steps)
        parts = []
        entropies = []
        for k in range(s.inner_steps):
            rows = self._rows(number * s.inner_steps + k, order=0)
            masked = self._masked(self.policy, self.train, rows, key=fold(s.seed, number, k))
            parts.append(InnerBatch(rows, masked, self._total(masked.choice.budget)))
            entropies.append(masked.choice.entropy(masked.logit_U.detach()))
        outer = self._task_loss(np.concatenate([part.rows for part in parts]))
        self.policy.zero_grad()
        steps = self._inner_steps(parts)
        theta = values_of(self.losses)
        result = meta_gradient(theta, steps, outer, agree=self._agree)
        result.backward(steps)
        gradients = _gradients(self.policy)
        self._agree(gradients)
        norm = float(nn.utils.clip_grad_norm_(self.policy.parameters(), s.clip or math.inf))
        if not (math.isfinite(result.outer) and math.isfinite(norm)):
            raise Diverged(
                f"the task loss is {result.outer:.3g} and the norm of the policy's gradient is "
                f"{norm:.3g} at step {number + 1}"
            )
        # The gradients are clipped here. Their agreement is measured after clipping, because Adam
        # averages the clipped gradients.
        self.slopes.add(gradients)
        self.adam.step()
        # With a constant decay, the initial policy would dominate the average for many steps.
        # Therefore the decay rises from 0.1 to ``s.average``.
        keep = min(s.average, (1 + number) / (10 + number))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.policy.parameters()):
                mean.lerp_(value, 1 - keep)
        if s.reset_every and (number + 1) % s.reset_every == 0:
            set_values(self.losses, self.start)
            self._clear_optimizers()
        else:
            self._train_model(parts)
        self.now.step += 1
        answers = torch.cat([part.masked.answers() for part in parts])
        return {
            "outer": result.outer,
            "inner": result.inner[0],
            "grad_norm": norm,
            "entropy": float(torch.stack(entropies).mean()),
            "answers": float(answers.nanmean()),
        }

    def _rows(self, number: int, *, order: int) -> Array:
        """Return (B,) this rank's train examples in batch ``number`` of the shuffled ``order``."""
        seed = fold(self.settings.seed, order, 0xE0)
        rows, _ = shuffled(len(self.train), number, self.settings.batch_size, seed=seed)
        return rows.numpy()[self.rank :: self.ranks]

    def _masked(
        self, scorer: Scorer, examples: Examples, rows: Array, *, key: int
    ) -> MaskedContexts:
        return masked_by(scorer, examples, rows, self.settings, key=key, device=self.device)

    def _task_loss(self, rows: Array) -> LossFunction:
        """Return a function of the parameters: the mean task loss over the rows of all ranks."""
        batch = self.train.task(rows, self.device)
        count = torch.count_nonzero(batch["labels"] != IGNORE)
        return self.losses.of(batch, self._total(count))

    def _inner_steps(self, parts: Sequence[InnerBatch]) -> list[InnerStep]:
        """Return the inner steps in order. Their masks pass gradients on to the policy."""
        steps = []
        for part in parts:
            mask = part.masked.choice.mask(part.masked.logit_U)
            loss = self.losses.of(part.masked.inputs, part.budget)
            steps.append(InnerStep(loss, self.settings.mask_rate, mask))
            if self.settings.task_rate:
                steps.append(InnerStep(self._task_loss(part.rows), self.settings.task_rate))
        return steps

    def _train_model(self, parts: Sequence[InnerBatch]) -> None:
        """For each part, take a training step of the model on pre-training loss plus task loss."""
        theta: Parameters = dict(self.losses.named_parameters())
        for part in parts:
            denoising = self.losses.of(part.masked.inputs, part.budget)
            task = self._task_loss(part.rows)
            self._descend(denoising(theta, part.masked.choice.hard()) + task(theta, None))

    def _descend(self, loss: Tensor) -> None:
        """Take an ordinary training step of the model, which lowers ``loss``."""
        loss.backward()
        self._agree(_gradients(self.losses))
        nn.utils.clip_grad_norm_(self.losses.parameters(), self.clip)
        self.optimizers.step()
        self.optimizers.zero_grad()

    def _clear_optimizers(self) -> None:
        """Clear the states (such as momentum) of the model's optimisers."""
        for member in self.optimizers.members:
            member.state.clear()

    def _agree(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over all ranks, in place."""
        if self.ranks > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def _total(self, number: Tensor) -> Tensor:
        """Return the sum of ``number`` over all ranks."""
        total = number.detach().clone().float()
        self._agree([total])
        return total

    # Evaluation
    # ---------------------------------------------------------------------------------------

    def gain_of(self, policy: nn.Module) -> float:
        """Return how much better a policy's masks are than random masks: the mean gain in nats.

        The gain of a dev example is its task loss after an inner step with random masks, minus its
        task loss after an inner step with the policy's masks. Both inner steps start from the
        parameters ``start`` and use the same contexts and random draws.
        """
        gains = 0.0
        count = min(len(self.dev), self.settings.dev_examples)
        for draw in range(DRAWS):
            for batch in torch.arange(count).split(self.settings.batch_size):
                rows = batch.numpy()
                outer = self.losses.of(self.dev.task(rows, self.device))
                for scorer, sign in ((policy, -1), (even, 1)):
                    step = self._hard_step(scorer, self.dev, rows, key=fold(0xDE, draw))
                    after, _ = descended(self.start, step)
                    with torch.no_grad():
                        gains += sign * float(outer(after, None)) * len(rows)
        return gains / (DRAWS * count)

    @torch.no_grad()
    def _hard_step(self, scorer: Scorer, examples: Examples, rows: Array, *, key: int) -> InnerStep:
        """Return an inner step of pre-training with hard masks (0 or 1, without a gradient)."""
        masked = self._masked(scorer, examples, rows, key=key)
        loss = self.losses.of(masked.inputs, masked.choice.budget)
        return InnerStep(loss, self.settings.mask_rate, masked.choice.hard())

    def overshoot(self) -> str | None:
        """Return a warning if an inner step raises the loss that it should lower, else None.

        The inner steps, one with random masks and one on the task, start from ``start``. A step
        that raises its loss is too long, because its gradient does not predict the loss after the
        step. The policy would then learn masks that keep the model from diverging, instead of masks
        that help with the task.
        """
        rows = self._rows(0, order=0)
        denoising = self._hard_step(even, self.train, rows, key=fold(self.settings.seed, 0xD0))
        task = self.losses.of(self.train.task(rows, self.device))
        steps = {"mask_rate": denoising, "task_rate": InnerStep(task, self.settings.task_rate)}
        for name, step in steps.items():
            theta, before = descended(self.start, step)
            with torch.no_grad():
                after = float(step.loss(theta, step.mask))
            # Comparisons with NaN are false. Therefore ``not after <= before`` is also true if the
            # loss is NaN, but ``after > before`` would not be.
            if not after <= before:
                size = f"{name}={step.rate:g}"
                rise = f"from {before:.2f} to {after:.2f}"
                return f"an inner step of size {size} raises the loss that it should lower, {rise}"
        return None

    # Checkpoints
    # ---------------------------------------------------------------------------------------

    def _modules(self) -> dict[str, nn.Module]:
        return {"policy": self.policy, "average": self.average, "model": self.losses}

    def save(self, folder: Path) -> None:
        """Write a checkpoint to resume from."""
        groups = {
            "best": self.best,
            "adam": state_of([self.adam]),
            "optimizers": state_of(self.optimizers.members),
        }
        for name, module in self._modules().items():
            groups[name] = values_of(module)
        tensors = {}
        for group, members in groups.items():
            for name, tensor in members.items():
                tensors[f"{group}/{name}"] = tensor.contiguous()

        def fill(target: Path) -> None:
            save_file(tensors, target / STATE_TENSORS)
            state = {
                "settings": self.settings.model_dump(mode="json"),
                "now": self.now.model_dump(),
            }
            (target / STATE).write_text(json.dumps(state))

        write_folder(folder, fill)

    def load(self, folder: Path) -> None:
        """Load the state from a checkpoint. If it is missing or damaged, do nothing.

        Raises:
            MaskwiseError: the checkpoint has different settings.
        """
        state = read_json(folder / STATE)
        if state is None or damage(folder):
            return
        changed = changes(state["settings"], self.settings.model_dump(mode="json"))
        if changed:
            raise MaskwiseError(
                f"{folder} was written with different learning settings",
                got=changed,
                do="give a new folder",
            )
        groups = defaultdict[str, TensorDict](dict)
        for path, tensor in load_file(folder / STATE_TENSORS).items():
            group, _, name = path.partition("/")
            groups[group][name] = tensor
        self.best = groups["best"]
        for name, module in self._modules().items():
            set_values(module, groups[name])
        # A reset clears the optimiser states. If a reset came just before the checkpoint, the
        # checkpoint has no such states.
        load_state(self.optimizers.members, groups["optimizers"])
        load_state([self.adam], groups["adam"])
        self.now = MetaProgress(**state["now"])


def set_values(module: nn.Module, values: Tensors) -> None:
    """Copy values into a module's parameters."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(values[name])


def _gradients(module: nn.Module) -> list[Tensor]:
    return [value.grad for value in module.parameters() if value.grad is not None]
