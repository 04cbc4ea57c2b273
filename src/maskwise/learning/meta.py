"""The outer loop: a policy is changed so that its masks help a model with a task.

    for every outer step
        contexts of some examples are masked by the policy, and the choice is relaxed
        the model takes inner steps: of pre-training under the mask, of the task    (meta_gradient)
        the policy takes a step down the gradient of the task's loss after them
        the model takes ordinary steps of its own, or is reset

Everything random is a function of (seed, step, example), so a resumed run continues bit for bit,
and ranks that share a batch compute the same as one. An average of the policy over its steps is
evaluated and kept: each step is noisy, because it sees a few examples and one mask of each.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskwise.errors import MaskwiseError
from maskwise.folders import damage, read_json, write_folder
from maskwise.keys import Array, fold, permutation
from maskwise.learning.examples import Examples, Masked, Scorer, even, masked_by
from maskwise.learning.gradients import (
    InnerStep,
    Loss,
    Losses,
    Parameters,
    meta_gradient,
    shifted,
    slope_of,
    values_of,
    wide,
)
from maskwise.learning.settings import MetaSettings
from maskwise.training import TrainingSettings
from maskwise.training.checkpoint import changes
from maskwise.training.optim import Optimizers, load_state, state_of

STATE, STATE_TENSORS = "state.json", "state.safetensors"


@dataclass
class Point:
    """The progress of a learning.

    Attributes:
        step: outer steps made.
        best: the step with the best average policy on dev; 0: the initial policy.
        gain: the gain of that one (``MetaLearner.gain_of``).
        waited: evaluations since then.
        first: mean outer loss up to the first evaluation.
        mask_rate, task_rate: sizes of the inner steps.
        stopped: why the learning ended early; None if it did not.
        overshoot: which inner step is too long (``MetaLearner.overshoot``); None if none is.
    """

    step: int = 0
    best: int = 0
    gain: float = 0.0
    waited: int = 0
    first: float | None = None
    mask_rate: float = 0.0
    task_rate: float = 0.0
    stopped: str | None = None
    overshoot: str | None = None


class Slopes:
    """Whether gradients agree: the share of the square of their mean in their mean square."""

    def __init__(self) -> None:
        self.total: list[Tensor] = []
        self.squares = 0.0
        self.count = 0

    def add(self, gradient: Sequence[Tensor]) -> None:
        if not self.total:
            self.total = [torch.zeros_like(part) for part in gradient]
        self.total = [a + b for a, b in zip(self.total, gradient, strict=True)]
        self.squares += self._square(gradient)
        self.count += 1

    def agreement(self) -> float:
        """1: all are the same; about 1 / their number: they are noise. NaN if all are 0."""
        if not self.squares:
            return math.nan
        return self._square(self.total) / (self.count * self.squares)

    def _square(self, gradient: Iterable[Tensor]) -> float:
        return sum(float(wide(part).square().sum()) for part in gradient)


class Diverged(Exception):
    """The outer loop can learn nothing more; the text says why."""


class Part(NamedTuple):
    """The examples of one inner step, masked by the policy, and their budget over all ranks."""

    rows: Array
    masked: Masked
    budget: Tensor


class MetaLearner:
    """A policy, the model that it is learned with, and the progress of the learning.

    Args:
        losses: of the model.
        policy: (input_ids (B, L), attention_mask (B, L)) → logits (B, L).
        train, dev: examples to learn from, and to evaluate on.
        settings: see ``MetaSettings``.
        training: of the model's own steps: optimiser, rates, clip.

    Attributes:
        average: the average policy, which is evaluated.
        best: the parameters of the best average so far.
    """

    def __init__(
        self,
        losses: Losses,
        policy: nn.Module,
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
        started = dist.is_initialized()
        self.rank = dist.get_rank() if started else 0
        self.ranks = dist.get_world_size() if started else 1
        if settings.batch_size % self.ranks:
            what = "learning.meta.batch_size must be a multiple of the processes"
            raise MaskwiseError(what, got=f"{settings.batch_size} for {self.ranks}")
        if self.ranks > 1 and settings.gradient != "finite-difference":
            do = "take finite-difference, or one process"
            raise MaskwiseError("this gradient is for one process", got=settings.gradient, do=do)
        self.device = next(losses.parameters()).device
        self.average = copy.deepcopy(policy)
        self.best = values_of(policy)
        self.clip = training.clip or math.inf
        # The model's rate stays constant: it may be reset at any step.
        constant = {"decay": "constant", "warmup": 0.0, "steps": settings.steps}
        self.optimizers = Optimizers(losses, training.model_copy(update=constant))
        self.optimizers.set_rate(0)
        self.adam = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
        self.slopes = Slopes()
        self.now = Point(mask_rate=settings.mask_rate, task_rate=settings.task_rate)
        for number in range(settings.warm):
            loss = self._task(self._rows(number, 2))
            self._descend(loss(dict(losses.named_parameters()), None))
        self._forget()
        self.start = values_of(losses)

    # One outer step
    # ---------------------------------------------------------------------------------------

    def step(self) -> dict[str, float]:
        """Make an outer step.

        Returns:
            Figures for the log: ``outer``, the task's loss after the inner steps; ``inner``, the
            loss under the first mask; ``grad_norm`` of the policy; ``entropy`` of its weights,
            nats; ``answers``, the share of the weight on right answers; ``mask_rate`` and
            ``task_rate``.

        Raises:
            Diverged: a loss or gradient that is not finite.
        """
        s, number = self.settings, self.now.step
        for group in self.adam.param_groups:
            group["lr"] = s.learning_rate * (1 - number / s.steps)
        parts = []
        for k in range(s.inner_steps):
            rows = self._rows(number * s.inner_steps + k, 0)
            masked = self._masked(self.policy, self.train, rows, key=fold(s.seed, number, k))
            parts.append(Part(rows, masked, self._total(masked.choice.budget)))
        rows = np.concatenate([part.rows for part in parts])
        if s.outer == "other":
            rows = self._rows(number, 1)
        outer = self._task(rows)
        self.policy.zero_grad()
        # The masks hold the policy's graph; the inner steps are differentiated up to them.
        masks = [part.masked.choice.mask(part.masked.logit_U) for part in parts]
        steps = self._inner(parts, masks)
        result = meta_gradient(
            values_of(self.losses), steps, outer, backend=s.gradient, agree=self._agree
        )
        result.backward(steps, retain_graph=s.entropy > 0)
        if s.learn_rates:
            self._learn_rates(result.rates)
        entropies = [part.masked.choice.entropy(part.masked.logit_U) for part in parts]
        entropy = torch.stack(entropies).mean()
        if s.entropy:
            (-s.entropy / self.ranks * entropy).backward()
        gradients = _gradients(self.policy)
        self._agree(gradients)
        norm = float(nn.utils.clip_grad_norm_(self.policy.parameters(), s.clip or math.inf))
        if not (math.isfinite(result.outer) and math.isfinite(norm)):
            what = f"outer loss {result.outer:.3g} and gradient {norm:.3g} at step {number + 1}"
            raise Diverged(what)
        # Before Adam scales them: its steps say nothing about whether gradients agree.
        self.slopes.add(gradients)
        self.adam.step()
        # the average follows more closely at first
        keep = min(s.average, (1 + number) / (10 + number))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.policy.parameters()):
                mean.lerp_(value, 1 - keep)
        if s.reset_every and (number + 1) % s.reset_every == 0:
            set_values(self.losses, self.start)
            self._forget()
        else:
            self._move(parts)
        self.now.step += 1
        return {
            "outer": result.outer,
            "inner": result.inner[0],
            "grad_norm": norm,
            "entropy": float(entropy.detach()),
            "answers": float(torch.cat([part.masked.answers() for part in parts]).nanmean()),
            "mask_rate": self.now.mask_rate,
            "task_rate": self.now.task_rate,
        }

    def _rows(self, number: int, order: int) -> Array:
        """This rank's examples of a batch, from the epochs of one of several orders."""
        size = len(self.train)
        batch_size = self.settings.batch_size
        place = np.arange(number * batch_size, (number + 1) * batch_size)
        seed = fold(self.settings.seed, order, 0xE0)
        rows = []
        for epoch in np.unique(place // size).tolist():
            inside = place[place // size == epoch] % size
            rows.append(permutation(size, seed=seed, epoch=epoch).numpy()[inside])
        return np.concatenate(rows)[self.rank :: self.ranks]

    def _masked(self, scorer: Scorer, examples: Examples, rows: Array, *, key: int) -> Masked:
        return masked_by(scorer, examples, rows, self.settings, key=key, device=self.device)

    def _task(self, rows: Array) -> Loss:
        """The task's loss over these rows and those of the other ranks."""
        batch = self.train.task(rows, self.device)
        labels = batch["labels"]
        count = torch.tensor(len(labels))
        if labels.dim() > 1 and not labels.is_floating_point():  # floats: several labels of a row
            count = torch.count_nonzero(labels != -100)
        return self.losses.of(batch, self._total(count))

    def _inner(self, parts: Sequence[Part], masks: Sequence[Tensor]) -> list[InnerStep]:
        steps = []
        for part, mask in zip(parts, masks, strict=True):
            loss = self.losses.of(part.masked.inputs, part.budget)
            steps.append(InnerStep(loss, self.now.mask_rate, mask))
            if self.now.task_rate:
                steps.append(InnerStep(self._task(part.rows), self.now.task_rate))
        return steps

    def _learn_rates(self, slopes: Sequence[float]) -> None:
        """Change the logarithm of each rate by a tenth of its slope, and by at most a tenth."""
        names = ("mask_rate", "task_rate")[: 2 if self.now.task_rate else 1]
        for place, name in enumerate(names):
            rate = getattr(self.now, name)
            slope = rate * sum(slopes[place :: len(names)])
            setattr(self.now, name, rate * math.exp(-0.1 * math.tanh(slope)))

    def _move(self, parts: Sequence[Part]) -> None:
        """Ordinary steps of the model: of pre-training under the same masks, and of the task."""
        theta: Parameters = dict(self.losses.named_parameters())
        for part in parts:
            loss = self.losses.of(part.masked.inputs, part.budget)
            hard = part.masked.choice.hard()
            self._descend(loss(theta, hard) + self._task(part.rows)(theta, None))

    def _descend(self, loss: Tensor) -> None:
        """An ordinary step of the model."""
        loss.backward()
        self._agree(_gradients(self.losses))
        nn.utils.clip_grad_norm_(self.losses.parameters(), self.clip)
        self.optimizers.step()
        self.optimizers.zero_grad()

    def _forget(self) -> None:
        for member in self.optimizers.members:
            member.state.clear()

    def _agree(self, tensors: Iterable[Tensor]) -> None:
        """Add up tensors over all ranks, in place."""
        if self.ranks > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def _total(self, own: Tensor) -> Tensor:
        """A number of this rank, added up over all."""
        total = own.detach().clone().float()
        self._agree([total])
        return total

    # Evaluation
    # ---------------------------------------------------------------------------------------

    def gain_of(self, policy: nn.Module, *, draws: int = 2) -> float:
        """The nats by which a step under a policy helps the task more than one under random masks.

        On dev, with the initial model and the same contexts and draws every time. An order of units
        is drawn for both, so that chance favours neither.
        """
        gains = 0.0
        count = min(len(self.dev), self.settings.dev_examples)
        for draw in range(draws):
            for batch in torch.arange(count).split(self.settings.batch_size):
                rows = batch.numpy()
                outer = self.losses.of(self.dev.task(rows, self.device))
                for scorer, sign in ((policy, -1), (even, 1)):
                    step = self._hard(scorer, self.dev, rows, key=fold(0xDE, draw))
                    after, _ = _descended(self.start, [step])
                    with torch.no_grad():
                        gains += sign * float(outer(after, None)) * len(rows)
        return gains / (draws * count)

    @torch.no_grad()
    def _hard(self, scorer: Scorer, examples: Examples, rows: Array, *, key: int) -> InnerStep:
        """A step of pre-training under the choice of a scorer."""
        masked = self._masked(scorer, examples, rows, key=key)
        loss = self.losses.of(masked.inputs, masked.choice.budget)
        return InnerStep(loss, self.now.mask_rate, masked.choice.hard())

    def overshoot(self) -> str | None:
        """Which inner step raises its own loss, on the first examples under random masks.

        The gradient of such a long step says nothing about its end: the policy would be rewarded
        for masks that keep the model from diverging, whatever they teach.
        """
        rows = self._rows(0, 0)
        denoising = self._hard(even, self.train, rows, key=fold(self.settings.seed, 0xD0))
        task = self.losses.of(self.train.task(rows, self.device))
        steps = {"mask_rate": denoising, "task_rate": InnerStep(task, self.settings.task_rate)}
        for name, step in steps.items():
            theta, before = _descended(self.start, [step])
            with torch.no_grad():
                after = float(step.loss(theta, step.mask))
            if not after <= before:
                rise = f"from {before:.2f} to {after:.2f}"
                return f"a step of {name} {step.rate:g} raises its own loss, {rise}"
        return None

    # States to resume from
    # ---------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write a state to resume from."""
        groups = {
            "policy": values_of(self.policy),
            "average": values_of(self.average),
            "best": self.best,
            "model": values_of(self.losses),
            "adam": state_of([self.adam]),
            "optimizers": state_of(self.optimizers.members),
        }
        tensors = {}
        for group, members in groups.items():
            for name, tensor in members.items():
                tensors[f"{group}/{name}"] = tensor.contiguous()

        def fill(target: Path) -> None:
            save_file(tensors, target / STATE_TENSORS)
            facts = {"settings": self.settings.model_dump(mode="json"), "now": vars(self.now)}
            (target / STATE).write_text(json.dumps(facts))

        write_folder(folder, fill)

    def load(self, folder: Path) -> None:
        """Resume from what ``save`` wrote; begin anew if there is nothing, or it is damaged.

        Raises:
            MaskwiseError: the state of a learning with other settings.
        """
        state = read_json(folder / STATE)
        if state is None or damage(folder):
            return
        changed = changes(state["settings"], self.settings.model_dump(mode="json"))
        if changed:
            what = f"{folder} is of a learning with other settings"
            raise MaskwiseError(what, got=changed, do="give a new folder")
        groups: dict[str, dict[str, Tensor]] = {"adam": {}, "optimizers": {}}
        for name, tensor in load_file(folder / STATE_TENSORS).items():
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = tensor
        self.best = groups["best"]
        set_values(self.policy, groups["policy"])
        set_values(self.average, groups["average"])
        set_values(self.losses, groups["model"])
        load_state(self.optimizers.members, groups["optimizers"])
        load_state([self.adam], groups["adam"])
        self.now = Point(**state["now"])


def _descended(theta: Parameters, steps: Sequence[InnerStep]) -> tuple[Parameters, float]:
    """The parameters after inner steps of this rank alone, and the loss before the first."""
    now = theta
    losses = []
    for step in steps:
        loss, slope, _ = slope_of(step.loss, now, step.mask)
        now = shifted(now, slope, -step.rate)
        losses.append(loss)
    return now, losses[0]


def set_values(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into a module's parameters."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(values[name])


def _gradients(module: nn.Module) -> list[Tensor]:
    return [value.grad for value in module.parameters() if value.grad is not None]
