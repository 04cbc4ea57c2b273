"""The outer loop: update a policy so that pre-training with its masks lowers the loss of a task.

    for every outer step
        score the contexts of a batch of examples with the policy, and draw relaxed masks
        take inner steps of the model: pre-training with the masks, then the task   (meta_gradient)
        update the policy by the gradient of the task loss after these steps
        take ordinary training steps of the model, or reset the model

All random draws are functions of (seed, step, example). A resumed run is therefore bit-identical to
an uninterrupted run, and the result does not depend on the number of ranks. A step is noisy,
because it has few examples and only one mask per example. A moving average of the policy is
therefore evaluated and saved.
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
"""The number of draws (context and mask) for each dev example in an evaluation."""


class Point(BaseModel):
    """The progress of meta-learning, as saved in ``state.json``.

    Attributes:
        step: the number of completed outer steps.
        best: the step with the best average policy on dev; 0 for the initial policy.
        gain: the gain of the best policy, from ``MetaLearner.gain_of``.
        waited: the number of evaluations since the best evaluation.
        first: the mean outer loss before the first evaluation.
        stopped: the reason for an early stop, or None.
        overshoot: a warning about a step size, from ``MetaLearner.overshoot``, or None.
    """

    step: int = 0
    best: int = 0
    gain: float = 0.0
    waited: int = 0
    first: float | None = None
    stopped: str | None = None
    overshoot: str | None = None


class Slopes:
    """Measures the agreement of gradients: ‖mean‖² divided by the mean of ‖gradient‖²."""

    def __init__(self) -> None:
        self.total: list[Tensor] = []
        self.squares = 0.0
        self.count = 0

    def add(self, gradient: Sequence[Tensor]) -> None:
        # Sums are updated in place, because copies of all gradients would need too much memory.
        if not self.total:
            self.total = [torch.zeros_like(part) for part in gradient]
        for total, part in zip(self.total, gradient, strict=True):
            total += part
        self.squares += self._square(gradient)
        self.count += 1

    def agreement(self) -> float:
        """Return 1 for equal gradients, about 1 / count for pure noise, and NaN if all are 0."""
        if not self.squares:
            return math.nan
        return self._square(self.total) / (self.count * self.squares)

    def _square(self, gradient: Sequence[Tensor]) -> float:
        return sum(float(wide(part).square().sum()) for part in gradient)


class Diverged(Exception):
    """Raised if a loss or a gradient in the outer loop is not finite."""


class Part(NamedTuple):
    """The masked examples of an inner step, and their total budget over all ranks."""

    rows: Array
    masked: Masked
    budget: Tensor


class MetaLearner:
    """A policy, the model that is trained with its masks, and the progress of learning.

    Args:
        losses: the two losses of the model.
        policy: maps input_ids (B, L) and attention_mask (B, L) to logits (B, L).
        train, dev: the examples for learning and for evaluation.
        settings: see ``MetaSettings``.
        training: the optimiser, learning rate and gradient clipping for the model's ordinary steps.

    Attributes:
        average: the moving average of the policy. Evaluations use the average.
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
        # The learning rate is constant, because a decay would continue after a reset of the model.
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
            A record for the log. ``outer``: the task loss after the inner steps. ``inner``: the
            loss of masked tokens with the first mask. ``grad_norm``: the norm of the policy's
            gradient. ``entropy``: the entropy of the policy's weights in nats. ``answers``: the
            share of the policy's weight on correct answers.

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
        # The agreement uses clipped gradients: Adam's updates are averages over past gradients.
        self.slopes.add(gradients)
        self.adam.step()
        # The decay is lower at first, because otherwise the initial policy would dominate.
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
        """Return this rank's examples in batch ``number``; ``order`` selects a shuffled order."""
        seed = fold(self.settings.seed, order, 0xE0)
        rows, _ = shuffled(len(self.train), number, self.settings.batch_size, seed=seed)
        return rows.numpy()[self.rank :: self.ranks]

    def _masked(self, scorer: Scorer, examples: Examples, rows: Array, *, key: int) -> Masked:
        return masked_by(scorer, examples, rows, self.settings, key=key, device=self.device)

    def _task_loss(self, rows: Array) -> Loss:
        """Return the task loss over the rows of all ranks, as a function of the parameters."""
        batch = self.train.task(rows, self.device)
        labels = batch["labels"]
        count = torch.tensor(len(labels))
        # Integer labels (B, L) have a target per token. Float labels (B, K) have a target per row.
        if labels.dim() > 1 and not labels.is_floating_point():
            count = torch.count_nonzero(labels != IGNORE)
        return self.losses.of(batch, self._total(count))

    def _inner_steps(self, parts: Sequence[Part]) -> list[InnerStep]:
        """Return the inner steps in order. Gradients flow from their masks to the policy."""
        steps = []
        for part in parts:
            mask = part.masked.choice.mask(part.masked.logit_U)
            loss = self.losses.of(part.masked.inputs, part.budget)
            steps.append(InnerStep(loss, self.settings.mask_rate, mask))
            if self.settings.task_rate:
                steps.append(InnerStep(self._task_loss(part.rows), self.settings.task_rate))
        return steps

    def _train_model(self, parts: Sequence[Part]) -> None:
        """Take ordinary training steps of the model, with the same masks and on the task."""
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
        """Clear the states of the model's optimisers, as for a new model."""
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
        """Return the mean gain of a policy over random masks on dev examples, in nats.

        The gain is the task loss after an inner step with random masks, minus the task loss after
        an inner step with the policy's masks. Both steps start from the initial model, with the
        same contexts and the same random draws.
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
        """Return an inner step of pre-training with hard masks from a scorer."""
        masked = self._masked(scorer, examples, rows, key=key)
        loss = self.losses.of(masked.inputs, masked.choice.budget)
        return InnerStep(loss, self.settings.mask_rate, masked.choice.hard())

    def overshoot(self) -> str | None:
        """Return a warning if an inner step with random masks raises its own loss, else None.

        Such a step is too long: its gradient does not predict the loss after the step. The policy
        would then learn masks that keep the model from diverging, instead of useful masks.
        """
        rows = self._rows(0, order=0)
        denoising = self._hard_step(even, self.train, rows, key=fold(self.settings.seed, 0xD0))
        task = self.losses.of(self.train.task(rows, self.device))
        steps = {"mask_rate": denoising, "task_rate": InnerStep(task, self.settings.task_rate)}
        for name, step in steps.items():
            theta, before = descended(self.start, step)
            with torch.no_grad():
                after = float(step.loss(theta, step.mask))
            # Every comparison with NaN is false, so ``not <=`` counts NaN as a rise.
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
        """Resume from a checkpoint. If the checkpoint is missing or damaged, do nothing.

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
        # Optimiser states are empty if a reset came just before the checkpoint.
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
