"""The outer loop: update a policy so that pre-training under its masks helps a task.

    for every outer step
        the policy scores contexts from a batch of examples, and relaxed masks are drawn
        the model takes inner steps: pre-training under the mask, then the task     (meta_gradient)
        the policy descends the gradient of the task's loss after these steps
        the model takes ordinary steps, or is reset

All randomness is a function of (seed, step, example), so a resumed run continues bit for bit, and
the result does not depend on the number of ranks. Each step is noisy, because it has few examples
with one mask each; therefore a moving average of the policy is evaluated and kept.
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
from maskwise.errors import MaskwiseError
from maskwise.folders import damage, read_json, write_folder
from maskwise.keys import Array, fold
from maskwise.learning.examples import Examples, Masked, Scorer, even, masked_by
from maskwise.learning.gradients import (
    InnerStep,
    Loss,
    Losses,
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
"""How many contexts and masks are drawn for each dev example in an evaluation."""


class Point(BaseModel):
    """The progress of meta-learning, as saved in ``state.json``.

    Attributes:
        step: the number of outer steps so far.
        best: the step whose average policy was best on dev; 0 is the initial policy.
        gain: the gain of the best policy (``MetaLearner.gain_of``).
        waited: the number of evaluations since the best evaluation.
        first: the mean outer loss before the first evaluation.
        stopped: why learning ended early; None if it did not.
        overshoot: a message if an inner step is too long (``MetaLearner.overshoot``), or None.
    """

    step: int = 0
    best: int = 0
    gain: float = 0.0
    waited: int = 0
    first: float | None = None
    stopped: str | None = None
    overshoot: str | None = None


class Slopes:
    """Measure how well gradients agree: ‖mean‖² over the mean of their squared norms."""

    def __init__(self) -> None:
        self.total: list[Tensor] = []
        self.squares = 0.0
        self.count = 0

    def add(self, gradient: Sequence[Tensor]) -> None:
        # Tensors are widened one by one: copying them all would double a large policy's memory.
        if not self.total:
            self.total = [torch.zeros_like(part) for part in gradient]
        for total, part in zip(self.total, gradient, strict=True):
            total += part
        self.squares += self._square(gradient)
        self.count += 1

    def agreement(self) -> float:
        """Return 1 if all gradients are equal, about 1 / count for pure noise, NaN if all are 0."""
        if not self.squares:
            return math.nan
        return self._square(self.total) / (self.count * self.squares)

    def _square(self, gradient: Sequence[Tensor]) -> float:
        return sum(float(wide(part).square().sum()) for part in gradient)


class Diverged(Exception):
    """A loss or a gradient in the outer loop is not finite."""


class Part(NamedTuple):
    """The masked examples for an inner step, and their total budget over all ranks."""

    rows: Array
    masked: Masked
    budget: Tensor


class MetaLearner:
    """A policy, the model that evaluates its masks, and the progress of learning.

    Args:
        losses: the two losses of the model.
        policy: maps input_ids (B, L) and attention_mask (B, L) to logits (B, L).
        train, dev: the examples to learn from and the examples to evaluate on.
        settings: see ``MetaSettings``.
        training: the optimiser, learning rate and gradient clipping for the model's ordinary steps.

    Attributes:
        average: the moving average of the policy, which is evaluated.
        best: the parameters of the best average so far.
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
                got=f"{settings.batch_size} for {self.ranks}",
            )
        self.device = next(losses.parameters()).device
        self.average = copy.deepcopy(policy)
        self.best = values_of(policy)
        self.clip = training.clip or math.inf
        # The learning rate is constant, because a reset of the model would not rewind a decay.
        constant = {"decay": "constant", "warmup": 0.0, "steps": settings.steps}
        self.optimizers = Optimizers(losses, training.model_copy(update=constant))
        self.optimizers.set_rate(0)
        self.adam = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
        self.slopes = Slopes()
        self.now = Point()
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
            Figures for the log: ``outer``, the task's loss after the inner steps; ``inner``, the
            loss under the first mask; ``grad_norm``, the norm of the policy's gradient;
            ``entropy``, the entropy of the policy's weights in nats; ``answers``, the share of its
            weight on correct answers.

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
            parts.append(Part(rows, masked, self._total(masked.choice.budget)))
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
                f"outer loss {result.outer:.3g} and gradient {norm:.3g} at step {number + 1}"
            )
        # Clipped gradients are measured, because Adam's steps do not show whether gradients agree.
        self.slopes.add(gradients)
        self.adam.step()
        # At first the average is over fewer steps, or the initial policy would dominate it.
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
        """Return this rank's examples in a batch; each ``order`` has its own shuffled epochs."""
        seed = fold(self.settings.seed, order, 0xE0)
        rows, _ = shuffled(len(self.train), number, self.settings.batch_size, seed=seed)
        return rows.numpy()[self.rank :: self.ranks]

    def _masked(self, scorer: Scorer, examples: Examples, rows: Array, *, key: int) -> Masked:
        return masked_by(scorer, examples, rows, self.settings, key=key, device=self.device)

    def _task_loss(self, rows: Array) -> Loss:
        """Return the task's loss over these rows and the rows of the other ranks."""
        batch = self.train.task(rows, self.device)
        labels = batch["labels"]
        count = torch.tensor(len(labels))
        # Integers (B, L) label tokens; a row of floats (B, classes) has several labels, one target.
        if labels.dim() > 1 and not labels.is_floating_point():
            count = torch.count_nonzero(labels != IGNORE)
        return self.losses.of(batch, self._total(count))

    def _inner_steps(self, parts: Sequence[Part]) -> list[InnerStep]:
        """Return the inner steps in order; their masks are attached to the policy's graph."""
        steps = []
        for part in parts:
            mask = part.masked.choice.mask(part.masked.logit_U)
            loss = self.losses.of(part.masked.inputs, part.budget)
            steps.append(InnerStep(loss, self.settings.mask_rate, mask))
            if self.settings.task_rate:
                steps.append(InnerStep(self._task_loss(part.rows), self.settings.task_rate))
        return steps

    def _train_model(self, parts: Sequence[Part]) -> None:
        """Train the model with ordinary steps, under the same masks and on the task."""
        theta: Parameters = dict(self.losses.named_parameters())
        for part in parts:
            denoising = self.losses.of(part.masked.inputs, part.budget)
            task = self._task_loss(part.rows)
            self._descend(denoising(theta, part.masked.choice.hard()) + task(theta, None))

    def _descend(self, loss: Tensor) -> None:
        """Take an ordinary training step of the model."""
        loss.backward()
        self._agree(_gradients(self.losses))
        nn.utils.clip_grad_norm_(self.losses.parameters(), self.clip)
        self.optimizers.step()
        self.optimizers.zero_grad()

    def _clear_optimizers(self) -> None:
        """Clear the moments in the model's optimisers, as if the model were new."""
        for member in self.optimizers.members:
            member.state.clear()

    def _agree(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over all ranks, in place."""
        if self.ranks > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def _total(self, number: Tensor) -> Tensor:
        """Return the sum of a number over all ranks."""
        total = number.detach().clone().float()
        self._agree([total])
        return total

    # Evaluation
    # ---------------------------------------------------------------------------------------

    def gain_of(self, policy: nn.Module) -> float:
        """Return how much more a step under the policy lowers the task's loss than a random step.

        The gain is in nats, averaged over dev examples, with the initial model and the same
        contexts every time. Policy masks and random masks share their draws, so chance favours
        neither.
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
        """Return a step of pre-training under a scorer's hard choice."""
        masked = self._masked(scorer, examples, rows, key=key)
        loss = self.losses.of(masked.inputs, masked.choice.budget)
        return InnerStep(loss, self.settings.mask_rate, masked.choice.hard())

    def overshoot(self) -> str | None:
        """Return a message if an inner step raises its own loss on the first examples, which have
        random masks.

        The gradient at the start of such a step does not predict the loss at its end. The policy
        would be rewarded for masks that keep the model from diverging, whatever they teach.
        """
        rows = self._rows(0, order=0)
        denoising = self._hard_step(even, self.train, rows, key=fold(self.settings.seed, 0xD0))
        task = self.losses.of(self.train.task(rows, self.device))
        steps = {"mask_rate": denoising, "task_rate": InnerStep(task, self.settings.task_rate)}
        for name, step in steps.items():
            theta, before = descended(self.start, step)
            with torch.no_grad():
                after = float(step.loss(theta, step.mask))
            # The comparison is negated, so that NaN counts as a rise.
            if not after <= before:
                rise = f"from {before:.2f} to {after:.2f}"
                return f"a step of {name} {step.rate:g} raises its own loss, {rise}"
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
        """Resume from a checkpoint; start from scratch if it is missing or damaged.

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
        # The states are empty if the optimisers were cleared just before the checkpoint.
        load_state(self.optimizers.members, groups["optimizers"])
        load_state([self.adam], groups["adam"])
        self.now = Point(**state["now"])


def set_values(module: nn.Module, values: Tensors) -> None:
    """Copy values into a module's parameters."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(values[name])


def _gradients(module: nn.Module) -> list[Tensor]:
    return [value.grad for value in module.parameters() if value.grad is not None]
