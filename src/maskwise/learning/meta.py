"""The outer loop: a policy is changed so that what it masks helps a model with a task.

    for every outer step
        contexts of some examples are masked as the policy says, and the choice is relaxed
        the model takes inner steps: of pre-training under the mask, of the task      (gradients.meta_gradient)
        the policy takes a step down the gradient of the task's loss after them
        the model moves on by ordinary steps of its own, or is what it was again

Everything random is a function of (seed, step, example), so that a run that was stopped goes on bit
for bit, and ranks that share a batch do what one would. What is judged and kept is an average of
the policy over its steps: each step is noisy, because it sees a few examples and one mask of
theirs.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

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
    moved,
    slope_of,
)
from maskwise.learning.settings import MetaSettings
from maskwise.training import TrainingSettings
from maskwise.training.checkpoint import changes
from maskwise.training.optim import Optimizers, load_state, state_of

STATE, STATE_TENSORS = "state.json", "state.safetensors"


@dataclass
class Point:
    """Where the learning stands.

    Attributes:
        step: outer steps made.
        best: the step whose average policy was best on dev; 0: the policy of the beginning.
        gain: how good that one was (``MetaLearner.judge``).
        waited: judgements since then.
        first: mean outer loss between the first two judgements.
        mask_rate, task_rate: sizes of the inner steps.
        stopped: why the learning ended before its time; None where it did not.
        overshoot: which inner step is too long (``MetaLearner.overshoot``); None where none is.
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
    """Whether gradients point the same way: the share of their mean square that is the square of
    their mean.
    """

    def __init__(self) -> None:
        self.total: list[Tensor] = []
        self.squares, self.count = 0.0, 0

    def add(self, gradient: Sequence[Tensor]) -> None:
        self.total = (
            [a + b for a, b in zip(self.total, gradient, strict=True)]
            if self.total
            else [*gradient]
        )
        self.squares += sum(float(part.double().square().sum()) for part in gradient)
        self.count += 1

    def agreement(self) -> float:
        """1: all are the same; about 1 / their number: they are noise. NaN where all are 0."""
        whole = sum(float(part.double().square().sum()) for part in self.total)
        return whole / (self.count * self.squares) if self.squares else math.nan


class MetaLearner:
    """A policy, the model that it is learned with, and where the learning stands.

    Args:
        losses: of the model.
        policy: (input_ids (B, L), attention_mask (B, L)) → logits (B, L).
        train, dev: examples to learn from, and to judge by.
        settings: see ``MetaSettings``.
        training: how the model moves on by itself: optimiser, rates, clip.

    Attributes:
        average: the average policy, which is judged; the best of it is in ``policy`` when ``learn``
            has ended.
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
        self.losses = losses
        self.policy = policy
        self.train = train
        self.dev = dev
        self.settings = settings
        started = dist.is_initialized()
        self.rank = dist.get_rank() if started else 0
        self.ranks = dist.get_world_size() if started else 1
        if settings.batch_size % self.ranks:
            got = f"{settings.batch_size} for {self.ranks}"
            raise MaskwiseError(
                "learning.meta.batch_size must be a multiple of the processes", got=got
            )
        if self.ranks > 1 and settings.gradient != "finite-difference":
            do = "take finite-difference, or one process"
            raise MaskwiseError("this gradient is for one process", got=settings.gradient, do=do)
        losses.eval()
        policy.eval()
        self.device = next(losses.parameters()).device
        self.average = copy.deepcopy(policy)
        self.clip = training.clip or math.inf
        self.best = values_of(policy)
        constant = {"decay": "constant", "warmup": 0.0, "steps": settings.steps}
        self.optimizers = Optimizers(losses, training.model_copy(update=constant))
        self.optimizers.set_rate(0)
        self.adam = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
        self.slopes = Slopes()
        self.now = Point(mask_rate=settings.mask_rate, task_rate=settings.task_rate)
        for number in range(settings.warm):
            self._descend(self._task(self._rows(number, 2))(dict(losses.named_parameters()), None))
        self._forget()
        self.start = losses.parameters_now()

    # One outer step
    # -----------------------------------------------------------------------------------------------

    def step(self) -> dict[str, float]:
        """Make an outer step.

        Returns:
            What is logged: ``outer``, the task's loss after the inner steps; ``inner``, the loss
            under the first mask; ``grad_norm`` of the policy; ``entropy`` of its weights, nats;
            ``answers``, the share of the weight on right answers; ``mask_rate`` and ``task_rate``.

        Raises:
            Diverged: a loss or gradient that is not finite.
        """
        s, number = self.settings, self.now.step
        for group in self.adam.param_groups:
            group["lr"] = s.learning_rate * (1 - number / s.steps)
        parts = [self._rows(number * s.inner_steps + k, 0) for k in range(s.inner_steps)]
        masked = [
            masked_by(
                self.policy, self.train, rows, s, key=fold(s.seed, number, k), device=self.device
            )
            for k, rows in enumerate(parts)
        ]
        budgets = [self._total(m.choice.budget) for m in masked]
        outer_rows = self._rows(number, 1) if s.outer == "other" else np.concatenate(parts)
        outer = self._task(outer_rows)
        self.policy.zero_grad()
        masks = [m.choice.mask(m.logit_U) for m in masked]
        steps = self._inner(parts, masked, budgets, masks)
        result = meta_gradient(
            self.losses.parameters_now(), steps, outer, backend=s.gradient, agree=self._agree
        )
        result.backward(steps, retain_graph=s.entropy > 0)
        if s.learn_rates:
            self._learn_rates(result.rates)
        entropy = torch.stack([m.choice.entropy(m.logit_U) for m in masked]).mean()
        if s.entropy:
            (-s.entropy / self.ranks * entropy).backward()
        gradients = _gradients(self.policy)
        self._agree(gradients)
        norm = float(nn.utils.clip_grad_norm_(self.policy.parameters(), s.clip or math.inf))
        if not (math.isfinite(result.outer) and math.isfinite(norm)):
            raise Diverged(
                f"outer loss {result.outer:.3g} and gradient {norm:.3g} at step {number + 1}"
            )
        self.slopes.add(gradients)
        self.adam.step()
        self._follow()
        if s.reset_every and (number + 1) % s.reset_every == 0:
            self._reset()
        else:
            self._move(parts, masked, budgets)
        self.now.step += 1
        return {
            "outer": result.outer,
            "inner": result.inner[0],
            "grad_norm": norm,
            "entropy": float(entropy.detach()),
            "answers": float(torch.cat([m.answers() for m in masked]).nanmean()),
            "mask_rate": self.now.mask_rate,
            "task_rate": self.now.task_rate,
        }

    def _rows(self, number: int, order: int) -> Array:
        """This rank's examples of a batch: the epochs' permutations one behind the other, in one of
        two orders.
        """
        size, batch_size = len(self.train), self.settings.batch_size
        place = np.arange(number * batch_size, (number + 1) * batch_size)
        seed = fold(self.settings.seed, order, 0xE0)
        rows = []
        for epoch in np.unique(place // size).tolist():
            inside = place[place // size == epoch] % size
            rows.append(permutation(size, seed=seed, epoch=epoch).numpy()[inside])
        return np.concatenate(rows)[self.rank :: self.ranks]

    def _task(self, rows: Array) -> Loss:
        """The task's loss over these rows and those of the other ranks."""
        batch = self.train.task(rows, self.device)
        labels = batch["labels"]
        # a row of several labels (floats) counts once
        inside = labels.dim() > 1 and not labels.is_floating_point()
        count = torch.count_nonzero(labels != -100) if inside else len(labels)
        return self.losses.of(batch, self._total(torch.as_tensor(count)))

    def _inner(
        self,
        parts: Sequence[Array],
        masked: Sequence[Masked],
        budgets: Sequence[Tensor],
        masks: Sequence[Tensor],
    ) -> list[InnerStep]:
        steps = []
        for rows, m, budget, mask in zip(parts, masked, budgets, masks, strict=True):
            steps.append(InnerStep(self.losses.of(m.inputs, budget), self.now.mask_rate, mask))
            if self.now.task_rate:
                steps.append(InnerStep(self._task(rows), self.now.task_rate))
        return steps

    def _learn_rates(self, slopes: Sequence[float]) -> None:
        """Change the logarithm of each rate by a tenth of its slope, and by no more than a tenth."""
        pair = 2 if self.now.task_rate else 1
        for place, name in enumerate(("mask_rate", "task_rate")[:pair]):
            rate = getattr(self.now, name)
            slope = rate * sum(slopes[place::pair])
            setattr(self.now, name, rate * math.exp(-0.1 * math.tanh(slope)))

    def _follow(self) -> None:
        """Let the average take in the policy of now; at first it follows more closely."""
        keep = min(self.settings.average, (1 + self.now.step) / (10 + self.now.step))
        with torch.no_grad():
            for mean, value in zip(
                self.average.parameters(), self.policy.parameters(), strict=True
            ):
                mean.lerp_(value, 1 - keep)

    def _move(
        self, parts: Sequence[Array], masked: Sequence[Masked], budgets: Sequence[Tensor]
    ) -> None:
        """Ordinary steps of the model: of pre-training under the same masks, and of the task."""
        theta: Parameters = dict(self.losses.named_parameters())
        for rows, m, budget in zip(parts, masked, budgets, strict=True):
            self._descend(
                self.losses.of(m.inputs, budget)(theta, m.choice.hard())
                + self._task(rows)(theta, None)
            )

    def _descend(self, loss: Tensor) -> None:
        """An ordinary step of the model."""
        loss.backward()
        self._agree(_gradients(self.losses))
        nn.utils.clip_grad_norm_(self.losses.parameters(), self.clip)
        self.optimizers.step()
        self.optimizers.zero_grad()

    def _reset(self) -> None:
        set_values(self.losses, self.start)
        self._forget()

    def _forget(self) -> None:
        for member in self.optimizers.members:
            member.state.clear()

    # Ranks
    # --------------------------------------------------------------------------------------------------------

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

    # Judging
    # ------------------------------------------------------------------------------------------------------

    def judge(self, policy: nn.Module, *, draws: int = 2) -> float:
        """By how many nats a step under a policy is better for the task than a step under random
        masks.

        On dev, with the model of the beginning, and with the same contexts and draws at every
        judgement, so that judgements can be compared. An order of units is drawn for both, so that
        chance favours neither.
        """
        gains = 0.0
        count = min(len(self.dev), self.settings.dev_examples)
        for draw in range(draws):
            for rows in torch.arange(count).split(self.settings.batch_size):
                outer = self.losses.of(self.dev.task(rows.numpy(), self.device))
                for scorer, sign in ((policy, -1), (even, 1)):
                    step = self._hard(scorer, self.dev, rows.numpy(), key=fold(0xDE, draw))
                    after, _ = _descended(self.start, [step])
                    with torch.no_grad():
                        gains += sign * float(outer(after, None)) * len(rows)
        return gains / (draws * count)

    @torch.no_grad()
    def _hard(self, scorer: Scorer, examples: Examples, rows: Array, *, key: int) -> InnerStep:
        """A step of pre-training under the choice of a scorer."""
        m = masked_by(scorer, examples, rows, self.settings, key=key, device=self.device)
        return InnerStep(
            self.losses.of(m.inputs, m.choice.budget), self.now.mask_rate, m.choice.hard()
        )

    def overshoot(self) -> str | None:
        """Which inner step raises the very loss that it should lower, on the first examples under
        random masks.

        Such a step is so long that its gradient says nothing about where it ends: the policy would
        be rewarded for masks that keep the model from running wild, whatever they teach.
        """
        rows = self._rows(0, 0)
        denoising = self._hard(even, self.train, rows, key=fold(self.settings.seed, 0xD0))
        task = InnerStep(
            self.losses.of(self.train.task(rows, self.device)), self.settings.task_rate
        )
        for name, step in (("mask_rate", denoising), ("task_rate", task)):
            theta, before = _descended(self.start, [step])
            with torch.no_grad():
                after = float(step.loss(theta, step.mask))
            if not after <= before:
                return (
                    f"a step of {name} {step.rate:g} raises its own loss, from {before:.2f} "
                    f"to {after:.2f}"
                )
        return None

    # States to resume from
    # ----------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write all that the learning needs to go on."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "policy": dict(self.policy.named_parameters()),
            "average": dict(self.average.named_parameters()),
            "best": self.best,
            "model": dict(self.losses.named_parameters()),
            "adam": state_of([self.adam]),
            "optimizers": state_of(self.optimizers.members),
        }
        tensors = {}
        for group, members in groups.items():
            for name, tensor in members.items():
                tensors[f"{group}/{name}"] = tensor.detach().contiguous()

        def fill(target: Path) -> None:
            save_file(tensors, target / STATE_TENSORS)
            what = {"settings": self.settings.model_dump(mode="json"), "now": vars(self.now)}
            (target / STATE).write_text(json.dumps(what))

        write_folder(folder, fill)

    def load(self, folder: Path) -> None:
        """Go on from what ``save`` wrote; where there is nothing, or it is damaged, begin anew.

        Raises:
            MaskwiseError: it is of a learning with other settings.
        """
        state = read_json(folder / STATE)
        if state is None or damage(folder):
            return
        changed = changes(state["settings"], self.settings.model_dump(mode="json"))
        if changed:
            what = f"{folder} is of a learning with other settings"
            raise MaskwiseError(what, got=changed, do="give a new folder")
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in load_file(folder / STATE_TENSORS).items():
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = tensor
        self.best = groups["best"]
        set_values(self.policy, groups["policy"])
        set_values(self.average, groups["average"])
        set_values(self.losses, groups["model"])
        load_state(self.optimizers.members, groups.get("optimizers", {}))
        adam = groups.get("adam", {})  # older learnings have one number less in front
        load_state(
            [self.adam], {name if name.count("/") > 1 else f"0/{name}": adam[name] for name in adam}
        )
        self.now = Point(**{field.name: state["now"][field.name] for field in fields(Point)})


class Diverged(Exception):
    """The outer loop can learn nothing more; the text says why."""


# Parameters
# -------------------------------------------------------------------------------------------------------


def _descended(theta: Parameters, steps: Sequence[InnerStep]) -> tuple[Parameters, float]:
    """The parameters after inner steps, and the loss before the first; no rank but this one has a
    part in it.
    """
    now = theta
    losses = []
    for step in steps:
        loss, slope, _ = slope_of(step.loss, now, step.mask)
        now = moved(now, slope, -step.rate)
        losses.append(loss)
    return now, losses[0]


def values_of(module: nn.Module) -> Parameters:
    """A copy of a module's parameters by name."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def set_values(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(values[name])


def _gradients(module: nn.Module) -> list[Tensor]:
    return [value.grad for value in module.parameters() if value.grad is not None]
