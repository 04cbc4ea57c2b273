"""Training logs: lines in ``metrics.jsonl``, trackers and a progress bar.

Between two lines, losses are collected as tensors on the device, and counts as numbers on the host.
The host waits for the device only when a line is written. Losses and gradients are checked at the
same time. If one of them is not finite, the run ends. docs/files.md describes the fields of a line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from rich.cells import cell_len
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column
from torch import Tensor

from maskwise.base.devices import peak_memory, peak_rate
from maskwise.base.errors import MaskwiseError, duration
from maskwise.base.folders import finite
from maskwise.base.printing import LINE_SECONDS, LOGGER, err_console, shows_progress
from maskwise.models.flops import Flops
from maskwise.objectives.base import Objective
from maskwise.training.checkpoint import Metrics, Totals
from maskwise.training.data import Source, Step
from maskwise.training.engine import Engine, Update
from maskwise.training.learners import Facts, Learner
from maskwise.training.ranks import Ranks
from maskwise.training.several import SeveralObjectives
from maskwise.training.stream import StreamedRows
from maskwise.training.tracking import track

Evaluate = Callable[[int, Ranks], Sequence[Facts]]
"""A function from the number of completed updates to lines of metrics, which are the same on all
ranks. The ranks may divide its work."""

MOST_SKIPPED = 20
"""The maximum number of consecutive updates that are skipped. After more, a model does not
recover, so the run ends."""

EMPTY_STEPS = 50
"""The number of steps after which a run is stopped if it had no target."""
SURE_TARGETS = 10
"""A run without targets is stopped only if ratio × tokens is at least this number."""


class NotFinite(MaskwiseError):
    """A loss or gradient is not a finite number."""


class NeverFinite(NotFinite):
    """The first loss is not finite, when no weight has changed yet, or none of a run is."""


class Log:
    """The log of one run. As a context manager, it closes the file and the progress bar at the end.

    Args:
        engine: the engine of the run.
        source: the source of the batches, which summarises their statistics.
        learners: the learners. What their method ``facts`` returns is added to each line.
        streams: the streams. How far each of them was read is added to each line.
        title: the title of the progress bar.
    """

    def __init__(
        self,
        engine: Engine,
        source: Source,
        learners: Mapping[str, Learner],
        streams: Iterable[StreamedRows],
        *,
        title: str,
    ):
        self.engine = engine
        self.settings = engine.settings
        self.source = source
        self.learners = learners
        self.streams = [*streams]
        self.totals = engine.totals.model_copy(deep=True)
        self.began = time.perf_counter() - self.totals.seconds
        self.window: list[Update] = []
        self.last: Update | None = None
        # The sums in a training state are over all ranks. Sums of all ranks are added later, so
        # only the first rank may keep them.
        if not engine.first:
            self.totals.losses = []
            self.totals.sums = {}
        self.skipped_in_a_row = 0
        path = engine.folder / "metrics.jsonl" if engine.folder and engine.first else None
        self.metrics = Metrics(path, keep_until=engine.start, judged=engine.judged)
        self.meter = Meter(
            engine.objective,
            engine.device,
            ranks=engine.ranks,
            frozen=self.settings.freeze == "encoder",
            rate=peak_rate(engine.device, engine.accelerator.mixed_precision),
        )
        self.progress = ProgressBar(
            title,
            engine.end,
            engine.start,
            hidden=not (engine.first and shows_progress()),
        )

    def __enter__(self) -> Log:
        self.progress.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.bar.stop()
        self.metrics.close()

    def add(self, update: Update, step: Step) -> None:
        """Add one update and the statistics of its batches, without waiting for the device."""
        self.window.append(update)
        self.last = update
        flops = self.meter.add(step)
        sums = self.totals.sums
        counts = {
            "targets": update.targets,
            "counted": update.counted,
            "flops": flops,
            **step.facts,
        }
        for name, value in counts.items():
            sums[name] = sums.get(name, 0.0) + value

    def line(self, done: int) -> None:
        """Write a line of metrics for the updates since the last line.

        Every rank must call this method.

        Raises:
            NotFinite: a loss or gradient on any rank is not finite, and the update was not skipped.
            MaskwiseError: there was no target so far, although the ratio was high enough.
        """
        assert self.last is not None, "there was no update"
        last = self.last
        losses, sums = self._read(done)
        totals = self.totals
        self.window = []
        totals.losses = []
        totals.sums = dict.fromkeys(totals.sums, 0.0)
        # ``sums`` are over the steps since the last line, even if the run was resumed in between.
        facts = self.source.summarise(sums)
        # There may be no targets, for example if the ratio has fallen to 0.
        mean = math.fsum(losses) / sums["counted"] if sums["targets"] else None
        if mean is not None:
            totals.loss = mean
        totals.tokens += int(facts.get("tokens", 0))
        totals.targets += int(sums["targets"])
        totals.flops += int(sums["flops"])
        totals.seconds = time.perf_counter() - self.began
        asked = facts.get("scheduled_ratio", 1.0) * sums.get("eligible", math.inf)
        if done >= EMPTY_STEPS and not totals.targets and asked >= SURE_TARGETS:
            raise MaskwiseError(
                f"the first {done} steps had no token to predict, so nothing can be learned",
                got="0 targets",
                do="look at the masks with maskwise inspect",
            )
        line: dict[str, Any] = {
            "loss": mean,
            "targets": int(sums["targets"]),
            **facts,
            "tokens": totals.tokens,
            "lr": last.rate,
            "grad_norm": float(last.norm),
        }
        if self.settings.on_nan == "skip":
            line["skipped"] = totals.skipped
        speed = self.meter.read(left=self.engine.end - done)
        learned: dict[str, object] = {}
        for stream in self.streams:
            learned["stream"] = stream.facts(done)
        for learner in self.learners.values():
            for name, value in learner.facts().items():
                learned[f"{learner.objective} {name}".lstrip()] = value
        facts_of_line = {
            "kind": "train",
            "step": done,
            **line,
            **learned,
            "speed": speed,
            "seconds": round(totals.seconds, 3),
        }
        self.metrics.write(finite(facts_of_line))
        self._track("train", {**line, **speed}, done)
        if "sources" in facts:
            self._track("train/source", facts["sources"], done)
        mfu = f", MFU {100 * speed['mfu']:.0f} %" if "mfu" in speed else ""
        rate = f"{speed['tokens_per_second']:,.0f} tokens/s{mfu}, {speed['memory_gib']:.1f} GiB"
        self.progress.note(
            rate, loss=totals.loss, ratio=facts.get("ratio"), padding=facts.get("padding")
        )

    def _read(self, done: int) -> tuple[list[float], dict[str, float]]:
        """Wait for the device, and return the losses and sums since the last line, over all ranks.

        Raises:
            NotFinite: as in ``line``.
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
        # There is no update in the window if ``read`` was called after the last one.
        for part in torch.stack(values).cpu().split(sizes) if values else ():
            wrong[f"{len(parts):09}"] = not part.isfinite().all()
            parts.append(part.tolist())
        # If an update is not finite on one rank, all ranks skip this update.
        bad = self.engine.summed(wrong).values()
        first = done - len(self.window) + 1
        for step, (update, part, unsound) in enumerate(zip(self.window, parts, bad), start=first):
            if not unsound:
                self.skipped_in_a_row = 0
                losses += part[:-1]
                continue
            self.skipped_in_a_row += 1
            if self.settings.on_nan != "skip" or self.skipped_in_a_row > MOST_SKIPPED:
                raise not_finite(
                    part, step=step, rate=update.rate, skipped=self.skipped_in_a_row - 1
                )
            sums["targets"] -= update.targets
            sums["counted"] -= update.counted
            self.totals.skipped += 1
        # The losses of other ranks are not collected; only the sum over ranks is logged.
        if self.engine.ranks > 1:
            losses = [self.engine.summed({"loss": math.fsum(losses)})["loss"]]
        return losses, self.engine.summed(sums)

    def evaluated(self, done: int, evaluate: Evaluate) -> bool:
        """Evaluate the model and log the lines. Return whether one has a true value ``enough``.

        Args:
            done: the number of completed updates.
            evaluate: the function that evaluates the model.

        Raises:
            NotFinite: a held-out loss is not finite, even with ``on_nan: skip``.
        """
        lines = self._evaluated(done, evaluate)
        for line in lines:
            self.metrics.write({"kind": "eval", "step": done, **finite(line)})
            self._track(f"eval/{line.get('masks', 'task')}", line, done)
        _require_finite(lines, done)
        return any(line.get("enough") for line in lines)

    def evaluated_again(self, done: int, evaluate: Evaluate) -> None:
        """Evaluate a run that is resumed after its last step. Its lines are in the log already.

        Raises:
            NotFinite: as in ``evaluated``.
        """
        _require_finite(self._evaluated(done, evaluate), done)

    def _evaluated(self, done: int, evaluate: Evaluate) -> list[Facts]:
        # The time of evaluations is not part of the training speed.
        with self.meter.paused():
            return self.engine.evaluated(lambda ranks: list(evaluate(done, ranks)))

    def _track(self, prefix: str, line: Facts, done: int) -> None:
        """Send the numbers in a line to the trackers, which accept only numbers."""
        numbers = {f"{prefix}/{k}": v for k, v in line.items() if isinstance(v, int | float)}
        track(self.engine.trackers, numbers, done)

    def so_far(self) -> Totals:
        """Return the totals, with the losses and sums that ``read`` stored."""
        return self.totals.model_copy(update={"seconds": time.perf_counter() - self.began})

    def read(self, done: int) -> None:
        """Store the losses and sums since the last line, for ``so_far``.

        Every rank must call this method.

        Raises:
            NotFinite: as in ``line``.
        """
        if self.window:
            losses, sums = self._read(done)
            # The results are over all ranks, and the next line adds those of all ranks, so only the
            # first rank stores them.
            self.window = []
            self.totals.losses = losses if self.engine.first else []
            self.totals.sums = sums if self.engine.first else dict.fromkeys(sums, 0.0)


def not_finite(values: Sequence[float], *, step: int, rate: float, skipped: int = 0) -> NotFinite:
    """Return the error for an update that is not finite.

    Args:
        values: the losses of the micro-batches, then the gradient norm.
        step: the step of the update.
        rate: the learning rate.
        skipped: the number of updates just before it that were not finite and were skipped.
    """
    *losses, norm = values
    unsound = [loss for loss in losses if not math.isfinite(loss)]
    what = f"the {'loss' if unsound else 'gradient'} is not finite at step {step}"
    got: object = unsound[0] if unsound else norm
    if all(map(math.isfinite, values)):
        what = f"the loss or gradient of another process is not finite at step {step}"
        got = "finite values in this process"
    do = f"lower the learning rate ({rate:.3g} at this step), or set training.on_nan: skip"
    if skipped:
        what += f", after {skipped} updates in a row that were not finite and were skipped"
        do = f"lower the learning rate ({rate:.3g} at this step), or look at the text"
    if step == 1 and unsound:
        do = "no weight has changed yet, so look at the objective, the checkpoint and the precision"
        return NeverFinite(what, got=got, do=do)
    return NotFinite(what, got=got, do=do)


def _require_finite(lines: Sequence[Facts], done: int) -> None:
    """Raise ``NotFinite`` if a held-out loss is NaN or infinite."""
    for line in lines:
        loss = line.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            what = f"a held-out loss is not finite at step {done}"
            raise NotFinite(what, got=loss, do="lower training.learning_rate")


TIME_WIDTH = 7
"""The width of the time left, such as 1:02:03."""


class ProgressBar:
    """A progress bar over steps, with speed and remaining time.

    If stderr is not a terminal, as in a batch job, a plain line is printed every minute.

    Args:
        title: the text to the left of the bar.
        total: the number of steps in the run.
        start: the number of steps before the run was resumed; 0 for a new run.
        hidden: whether to hide the bar and the lines.
    """

    def __init__(self, title: str, total: int, start: int = 0, *, hidden: bool = False):
        shown = err_console.is_terminal and not hidden
        self.lines = not hidden and not shown
        self.began = self.printed_at = time.perf_counter()
        self.start = start
        width = err_console.width
        named = min(cell_len(title), width // 4)
        bar = min(40, width // 8)
        # What the title, the bar, the steps, the time left and four gaps leave free.
        self.room = width - named - bar - 2 * len(str(total)) - 1 - TIME_WIDTH - 4
        # Titles contain names of users, which must not be parsed as markup.
        self.bar = Bar(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(width=named, no_wrap=True, overflow="ellipsis"),
            ),
            BarColumn(bar_width=bar),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}", markup=False),
            console=err_console,
            disable=not shown,
        )
        self.task = self.bar.add_task(
            title,
            total=total,
            completed=start,
            note="",
            shown="",
        )

    def advance(self) -> None:
        self.bar.advance(self.task)
        now = time.perf_counter()
        if self.lines and now - self.printed_at >= LINE_SECONDS:
            self.printed_at = now
            LOGGER.info("%s", self.line(now))

    def line(self, now: float) -> str:
        """Return the plain line: the title, the steps, the note and the remaining time."""
        task = self.bar.tasks[self.task]
        done = round(task.completed)
        total = round(task.total or 0)
        left = (now - self.began) / max(1, done - self.start) * (total - done)
        parts = [f"{task.description}: step {done} of {total}", task.fields["note"]]
        return ", ".join(filter(None, (*parts, f"about {duration(left)} left")))

    def note(self, rate: str = "", **values: float | None) -> None:
        """Show values beside the bar, the first of them, as far as the terminal has room.

        Args:
            rate: the speed, as text; default: steps per second.
            values: further values by name; None is not shown.
        """
        speed = self.bar.tasks[self.task].speed
        if speed and not rate:
            rate = f"{speed:.1f} steps/s"
        known = [f"{name} {value:.3g}" for name, value in values.items() if value is not None]
        shown = accumulate([*known, rate], "{}  {}".format)
        fitting = [text for text in shown if len(text) <= self.room]
        self.bar.update(
            self.task,
            note="  ".join(known),
            shown=fitting[-1] if fitting else "",
        )


# Training speed
# -------------------------------------------------------------------------------------------

# Model FLOPs utilisation (MFU) = FLOPs per second of the model / FLOPs per second by the data sheet
# of the GPU. For processors and other GPUs, it is not known.
#
# The numerator counts only useful work: the weights for the tokens of the text and the targets, and
# attention within documents (``maskwise.models.flops``). Padding and recomputation do not count.


class Meter:
    """Counts the FLOPs of steps, and measures speed and memory between two lines of metrics.

    Args:
        objective: the objective in training.
        device: the device of this process.
        ranks: the number of processes.
        frozen: whether the encoder is frozen.
        rate: the FLOP/s of the device, for the MFU; None if they are not known.
    """

    def __init__(
        self,
        objective: Objective,
        device: torch.device,
        *,
        ranks: int,
        frozen: bool,
        rate: float | None,
    ):
        self.objective = objective
        self.device = device
        self.ranks = ranks
        self.frozen = frozen
        # Work can be counted only for objectives with a transformers model.
        self.counts = hasattr(objective, "model")
        self.rate = rate if self.counts else None
        self.by_objective: dict[str, Flops] = {}
        self._start()

    def _start(self) -> None:
        self.tokens = self.flops = 0.0
        self.steps = 0
        self.began = time.perf_counter()

    def add(self, step: Step) -> int:
        """Add the work of this rank in a step, and return its FLOPs."""
        self.steps += 1
        tokens = step.facts.get("tokens", 0.0)
        self.tokens += tokens
        if not self.counts:
            return 0
        name = ""
        objective = self.objective
        if isinstance(objective, SeveralObjectives):
            name = step.batches[0].objective
            objective = objective.named(name)
        if name not in self.by_objective:
            self.by_objective[name] = Flops(objective, frozen=self.frozen)
        work = self.by_objective[name]
        if not work.known:
            self.rate = None
        flops = work.trained(tokens, step.targets, step.lengths)
        self.flops += flops
        return flops

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time is not part of the training time."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def read(self, *, left: int) -> dict[str, float]:
        """Return the measurements since the last call.

        Before the call, read the losses, so that the host has waited for all steps.

        Args:
            left: the number of remaining steps.

        Returns:
            ``tokens_per_second`` over all ranks, ``mfu`` (0 to 1, if known), ``memory_gib`` (peak
            memory of this process, on its accelerator or in RAM) and ``seconds_left`` (without
            evaluations).
        """
        seconds = time.perf_counter() - self.began
        figures = {"tokens_per_second": round(self.ranks * self.tokens / seconds, 1)}
        if self.rate:
            figures["mfu"] = round(self.flops / seconds / self.rate, 4)
        figures["memory_gib"] = round(peak_memory(self.device) / 2**30, 3)
        figures["seconds_left"] = round(seconds / max(1, self.steps) * left, 1)
        self._start()
        return figures
