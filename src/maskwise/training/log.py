"""Training logs: lines in ``metrics.jsonl``, trackers, and a progress bar.

Between two lines, losses are collected as tensors on the device, and counts are collected on the
host. To write a line, the host waits for the device; a loss or gradient that is not finite then
ends the run. docs/files.md documents the fields of a line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from maskwise.devices import matmul_rate, peak_memory
from maskwise.errors import MaskwiseError
from maskwise.folders import finite
from maskwise.masking.policies.base import Facts, Learner
from maskwise.objectives import Objective
from maskwise.objectives.base import Work, trained
from maskwise.training.arms import Arms
from maskwise.training.checkpoint import Metrics, Totals
from maskwise.training.data import Source, Step
from maskwise.training.engine import Engine, Update
from maskwise.weights import attention_work, held_share

Evaluate = Callable[[int], Sequence[Facts]]
"""Takes the number of completed updates, and returns lines of metrics."""

MOST_SKIPPED = 20
"""The largest number of consecutive updates that may be skipped; after more, a model does not
recover."""

EMPTY_STEPS = 50
"""A run that has had no target after this many steps is stopped, if targets were expected."""
SURE_TARGETS = 10
"""If this many targets were expected, having none is no coincidence."""


class NotFinite(MaskwiseError):
    """A loss or gradient is not a finite number."""


class Log:
    """The log of one run; a context manager that closes its file and its progress bar.

    Args:
        engine: the run's engine.
        source: the source of the batches, which summarises their facts.
        learners: the learners, whose facts are added to each line.
        title: the title of the progress bar.
        quiet: whether to hide the progress bar.
    """

    def __init__(
        self,
        engine: Engine,
        source: Source,
        learners: Mapping[str, Learner],
        *,
        title: str,
        quiet: bool,
    ):
        self.engine = engine
        self.settings = engine.settings
        self.source = source
        self.learners = learners
        self.totals = engine.totals.model_copy(deep=True)
        self.began = time.perf_counter() - self.totals.seconds
        self.window: list[Update] = []
        # A saved state has the sums over all ranks, so only the first rank continues them.
        if not engine.first:
            self.totals.losses = []
            self.totals.sums = {}
        self.skipped_in_a_row = 0
        path = engine.folder / "metrics.jsonl" if engine.folder and engine.first else None
        self.metrics = Metrics(path, keep_until=engine.start)
        self.meter = Meter(
            engine.objective,
            engine.device,
            engine.accelerator.mixed_precision,
            ranks=engine.ranks,
            frozen=self.settings.freeze == "encoder",
            known=path is not None,
        )
        self.progress = Progress(
            title,
            self.settings.steps,
            engine.start,
            hidden=quiet or not engine.first,
        )

    def __enter__(self) -> Log:
        self.progress.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.bar.stop()
        self.metrics.close()

    def add(self, update: Update, step: Step) -> None:
        """Accumulate one update and the facts of its batches, without waiting for the device."""
        self.window.append(update)
        self.meter.add(step)
        sums = self.totals.sums
        counts = {"targets": update.targets, "counted": update.counted, **step.facts}
        for name, value in counts.items():
            sums[name] = sums.get(name, 0.0) + value

    def line(self, done: int) -> None:
        """Write a line about what was accumulated; every rank calls this.

        Raises:
            NotFinite: a loss or gradient on any rank is not finite, unless its update was skipped.
            MaskwiseError: there has been no target so far.
        """
        losses, sums = self._read(done)
        totals = self.totals
        last = self.window[-1]
        self.window = []
        totals.losses = []
        totals.sums = dict.fromkeys(totals.sums, 0.0)
        # Metrics cover exactly the steps since the last line, even after a resume.
        facts = self.source.summarise(sums)
        # Without targets, for example when a ratio has fallen to 0, there is no loss.
        mean = math.fsum(losses) / sums["counted"] if sums["targets"] else None
        if mean is not None:
            totals.loss = mean
        totals.tokens += int(facts.get("tokens", 0))
        totals.targets += int(sums["targets"])
        totals.seconds = time.perf_counter() - self.began
        asked = facts.get("scheduled_ratio", 1.0) * sums.get("eligible", math.inf)
        if done >= EMPTY_STEPS and not totals.targets and asked >= SURE_TARGETS:
            raise MaskwiseError(
                f"not one target in the first {done} steps: there is nothing to learn from",
                got="0 targets",
                do="look at the masks: maskwise inspect",
            )
        line: dict[str, Any] = {
            "loss": mean,
            "targets": int(sums["targets"]),
            **facts,
            "tokens": totals.tokens,
            "lr": last.rate,
            "grad_norm": finite(float(last.norm)),
        }
        if self.settings.on_nan == "skip":
            line["skipped"] = totals.skipped
        speed = self.meter.read(left=self.settings.steps - done)
        learned = {}
        for learner in self.learners.values():
            for name, value in learner.facts().items():
                learned[f"{learner.arm} {name}".lstrip()] = value
        self.metrics.write(
            {
                "kind": "train",
                "step": done,
                **line,
                **learned,
                "speed": speed,
                "seconds": round(totals.seconds, 3),
            }
        )
        self._track("train", {**line, **speed}, done)
        if "sources" in facts:
            self._track("train/source", facts["sources"], done)
        mfu = f", MFU {100 * speed['mfu']:.0f} %" if "mfu" in speed else ""
        rate = f"{speed['tokens_per_second']:,.0f} tokens/s{mfu}, {speed['memory_gib']:.1f} GiB"
        self.progress.note(
            rate, loss=totals.loss, ratio=facts.get("ratio"), padding=facts.get("padding")
        )

    def _read(self, done: int) -> tuple[list[float], dict[str, float]]:
        """Return losses and sums since the last line, over all ranks; waits for the device.

        Raises:
            NotFinite: see ``line``.
        """
        losses = list(self.totals.losses)
        sums = dict(self.totals.sums)
        values: list[Tensor] = []
        sizes = []
        for update in self.window:
            values += [*update.losses, update.norm]
            sizes.append(len(update.losses) + 1)
        parts: list[list[float]] = []
        wrong = {}
        for part in torch.stack(values).cpu().split(sizes):
            wrong[f"{len(parts):09}"] = not part.isfinite().all()
            parts.append(part.tolist())
        # All ranks skip an update that is not finite on one of the ranks.
        bad = self.engine.summed(wrong).values()
        first = done - len(self.window) + 1
        for step, (update, part, unsound) in enumerate(zip(self.window, parts, bad), start=first):
            if not unsound:
                self.skipped_in_a_row = 0
                losses += part[:-1]
                continue
            self.skipped_in_a_row += 1
            if self.settings.on_nan != "skip" or self.skipped_in_a_row > MOST_SKIPPED:
                raise not_finite(part, step=step, rate=update.rate)
            sums["targets"] -= update.targets
            sums["counted"] -= update.counted
            self.totals.skipped += 1
        # Each rank has its own losses; only their sum is logged.
        if self.engine.ranks > 1:
            losses = [self.engine.summed({"loss": math.fsum(losses)})["loss"]]
        return losses, self.engine.summed(sums)

    def judged(self, done: int, evaluate: Evaluate, *, write: bool = True) -> bool:
        """Evaluate after ``done`` updates and write the lines; return whether a line has
        ``enough``."""
        # The training speed does not include evaluation time.
        with self.meter.paused():
            lines = self.engine.evaluated(lambda: list(evaluate(done)))
        for line in lines if write else ():
            self.metrics.write({"kind": "eval", "step": done, **line})
            self._track(f"eval/{line.get('masks', 'task')}", line, done)
        return any(line.get("enough") for line in lines)

    def _track(self, prefix: str, line: Facts, done: int) -> None:
        """Send the numbers in a line to the trackers, which accept nothing else."""
        numbers = {f"{prefix}/{k}": v for k, v in line.items() if isinstance(v, int | float)}
        self.engine.accelerator.log(numbers, step=done)

    def so_far(self) -> Totals:
        """The current totals, including what ``read`` has collected since the last line."""
        return self.totals.model_copy(update={"seconds": time.perf_counter() - self.began})

    def read(self, done: int) -> None:
        """Read the losses since the last line, for ``so_far``; every rank calls this.

        Raises:
            NotFinite: see ``line``.
        """
        if self.window:
            losses, sums = self._read(done)
            # These are sums over all ranks, so only the first rank keeps them for the next line.
            self.window = []
            self.totals.losses = losses if self.engine.first else []
            self.totals.sums = sums if self.engine.first else dict.fromkeys(sums, 0.0)


def not_finite(values: Sequence[float], *, step: int, rate: float) -> NotFinite:
    """Return the error for an update that is not finite.

    Args:
        values: the losses of the update's micro-batches, then the gradient norm.
        step: the step of the update.
        rate: the learning rate.
    """
    *losses, norm = values
    unsound = [loss for loss in losses if not math.isfinite(loss)]
    what = f"the {'loss' if unsound else 'gradient'} is not finite at step {step}"
    got: object = unsound[0] if unsound else norm
    if all(map(math.isfinite, values)):
        what = f"the loss or gradient of another process is not finite at step {step}"
        got = "finite values here"
    do = f"lower the learning rate ({rate:.3g} at this step), or set training.on_nan: skip"
    return NotFinite(what, got=got, do=do)


class Progress:
    """A progress bar over steps, with the rate and the time left; hidden without a terminal.

    Args:
        title: the text to the left of the bar.
        total: the number of steps in the run.
        start: the number of steps before this call, if the run is resumed.
        hidden: whether to show nothing.
    """

    def __init__(self, title: str, total: int, start: int = 0, *, hidden: bool = False):
        console = Console(stderr=True)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=hidden or not console.is_terminal,
        )
        self.task = self.bar.add_task(
            title,
            total=total,
            completed=start,
            note="",
            rate="",
        )

    def advance(self) -> None:
        self.bar.advance(self.task)

    def note(self, rate: str = "", **values: float | None) -> None:
        """Show the speed, by default in steps per second, and those ``values`` that are known."""
        speed = self.bar.tasks[self.task].speed
        if speed and not rate:
            rate = f"{speed:.1f} steps/s"
        known = [f"{name} {value:.3g}" for name, value in values.items() if value is not None]
        self.bar.update(
            self.task,
            note="  ".join(known),
            rate=rate,
        )


# Training speed: tokens per second and model FLOPs utilisation (MFU)
# -------------------------------------------------------------------------------------------

# MFU = the model's FLOPs per second / FLOPs per second in a large matrix product
#
# Only useful work is counted: weights outside the embeddings for every token of the text, heads for
# every target (``Objective.work``), and attention within documents (Σ length²). Padding and
# recomputation are not counted. The denominator is measured on the device, once per process and
# precision; on a busy machine the measured value is too low.


class Meter:
    """Measures a training run between two lines of metrics.

    Args:
        objective: the objective that is trained.
        device: the device of this process.
        precision: "bf16" or "no".
        ranks: the total number of processes.
        frozen: whether the encoder is not trained.
        known: whether to measure the rate of matrix products, which takes a second or less.
    """

    def __init__(
        self,
        objective: Objective,
        device: torch.device,
        precision: str,
        *,
        ranks: int,
        frozen: bool,
        known: bool,
    ):
        self.objective = objective
        self.device = device
        self.ranks = ranks
        self.frozen = frozen
        # The work of an objective without a transformers model is unknown.
        counted = known and hasattr(objective, "model")
        self.rate = matmul_rate(device, precision) if counted else None
        self.held = held_share(objective.model) if counted else 0.0
        self.per_arm: dict[str, tuple[int, int]] = {}
        self._start()

    def _start(self) -> None:
        self.tokens = self.flops = 0.0
        self.steps = 0
        self.began = time.perf_counter()

    def add(self, step: Step) -> None:
        """Count a step, as this rank saw it."""
        self.steps += 1
        tokens = step.facts.get("tokens", 0.0)
        self.tokens += tokens
        if self.rate is None:
            return
        arm = ""
        objective = self.objective
        if isinstance(objective, Arms):
            arm = step.batches[0].arm
            objective = objective.arm(arm)
        # Counting weights takes as long as a small step, so the counts are cached.
        if arm not in self.per_arm:
            per_token = self._trained(objective.work(1, 0), held=self.held)
            per_target = self._trained(objective.work(0, 1), held=self.held)
            self.per_arm[arm] = per_token, per_target
        per_token, per_target = self.per_arm[arm]
        config = self.objective.model.config
        attention = Work(attention_work(config, tokens, step.facts.get("squares", 0.0)))
        self.flops += per_token * tokens + per_target * step.targets + self._trained(attention)

    def _trained(self, work: Work, *, held: float = 0.0) -> int:
        return trained(work, frozen=self.frozen, held=held)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time that is spent in this context."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def read(self, *, left: int) -> dict[str, float]:
        """The figures since the last call, after the host has waited for the device.

        Args:
            left: the number of remaining steps.

        Returns:
            ``tokens_per_second`` over all ranks, ``mfu`` (0 to 1, if known), ``memory_gib`` (this
            process's peak, on its accelerator if it has one) and ``seconds_left`` (without
            evaluations).
        """
        # The host has just read the losses, so all steps are finished.
        seconds = time.perf_counter() - self.began
        figures = {"tokens_per_second": round(self.ranks * self.tokens / seconds, 1)}
        if self.rate:
            figures["mfu"] = round(self.flops / seconds / self.rate, 4)
        figures["memory_gib"] = round(peak_memory(self.device) / 2**30, 3)
        figures["seconds_left"] = round(seconds / max(1, self.steps) * left, 1)
        self._start()
        return figures
