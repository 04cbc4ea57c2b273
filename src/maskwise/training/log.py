"""Training logs: lines of ``metrics.jsonl``, trackers, and a progress bar.

Between two lines, losses are collected as tensors on the device and counts on the host. To write a
line the host waits for the device, and a loss or gradient that is not finite ends the run.
docs/files.md documents the fields of a line.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.folders import finite, read_lines, write_lines, writing
from maskwise.masking.policies.base import Learner
from maskwise.training.checkpoint import Totals
from maskwise.training.data import Source, Step
from maskwise.training.engine import Engine, Update
from maskwise.training.speed import Meter

Evaluate = Callable[[int], Sequence[Mapping[str, object]]]
"""Takes the number of completed updates, and returns lines of metrics."""

MOST_SKIPPED = 20
"""Updates in a row that may be skipped; after more, a model does not recover."""

EMPTY_STEPS = 50
"""A run without any target after this many steps is stopped, if targets were expected."""
SURE_TARGETS = 10
"""If this many targets were expected, having none is not chance."""


class NotFinite(MaskwiseError):
    """A loss or gradient that is not a finite number."""


class Log:
    """The log of one run; a context manager that closes its file and its progress bar.

    Args:
        engine: the engine of the run.
        source: summarises the facts of its batches.
        learners: their facts are added to each line.
        title: the title of the progress bar.
        quiet: show no progress bar.
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
        # A saved state has the sums of all ranks, so only the first rank continues them.
        if not engine.first:
            self.totals.losses = []
            self.totals.sums = {}
        self.skipped_in_a_row = 0
        path = engine.folder / "metrics.jsonl" if engine.folder and engine.first else None
        self.metrics = Metrics(path, keep_until=engine.start)
        lost = (self.totals.lines or 0) - self.metrics.lines
        if path and lost > 0:
            lines = f"{lost} of {self.totals.lines} lines"
            engine.say(f"{path} has lost {lines}, so curves will have a gap")
        self.meter = Meter(
            engine.objective,
            engine.device,
            engine.accelerator.mixed_precision,
            ranks=engine.ranks,
            frozen=self.settings.freeze == "encoder",
            known=path is not None,
        )
        hidden = quiet or not engine.first
        self.progress = Progress(title, self.settings.steps, engine.start, hidden=hidden)

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
        """Write a line of what was accumulated; every rank calls this.

        Raises:
            NotFinite: a loss or gradient is not finite on any rank, unless its update was skipped.
            MaskwiseError: not one target so far.
        """
        last = self.window[-1]
        losses, sums = self._read(done)
        totals = self.totals
        self.window = []
        totals.losses = []
        totals.sums = dict.fromkeys(totals.sums, 0.0)
        # Metrics cover exactly the steps since the last line, also after a resume.
        facts = self.source.summarise(sums)
        # Without targets, as when a ratio has fallen to 0, there is no loss.
        mean = math.fsum(losses) / sums["counted"] if sums["targets"] else None
        if mean is not None:
            totals.loss = mean
        totals.tokens += int(facts.get("tokens", 0))
        totals.targets += int(sums["targets"])
        totals.seconds = time.perf_counter() - self.began
        asked = facts.get("scheduled_ratio", 1.0) * sums.get("eligible", math.inf)
        if done >= EMPTY_STEPS and not totals.targets and asked >= SURE_TARGETS:
            what = f"not one target in the first {done} steps: there is nothing to learn from"
            raise MaskwiseError(what, got="0 targets", do="look at the masks: maskwise inspect")
        line: dict[str, Any] = {"loss": mean, "targets": int(sums["targets"]), **facts}
        line["tokens"] = totals.tokens
        line["lr"] = last.rate
        line["grad_norm"] = finite(float(last.norm))
        if self.settings.on_nan == "skip":
            line["skipped"] = totals.skipped
        speed = self.meter.read(left=self.settings.steps - done)
        learned: dict[str, object] = {}
        for learner in self.learners.values():
            for name, value in learner.facts().items():
                learned[f"{learner.arm} {name}".lstrip()] = value
        late = {"speed": speed, "seconds": round(totals.seconds, 3)}
        self._write({"kind": "train", "step": done, **line, **learned, **late})
        shares = {f"source/{name}": share for name, share in line.get("sources", {}).items()}
        self._track("train", {**line, **speed, **shares}, done)
        mfu = f", MFU {100 * speed['mfu']:.0f} %" if "mfu" in speed else ""
        rate = f"{speed['tokens_per_second']:,.0f} tokens/s{mfu}, {speed['memory_gib']:.1f} GiB"
        shown = {"loss": totals.loss, "ratio": facts.get("ratio"), "padding": facts.get("padding")}
        self.progress.note(rate, **shown)

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
        parts = [part.tolist() for part in torch.stack(values).cpu().split(sizes)]
        wrong: dict[str, float] = {}
        for number, part in enumerate(parts):
            wrong[f"{number:09}"] = not all(map(math.isfinite, part))
        # All ranks skip an update that is not finite on one of them.
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
        # Each rank has losses of its own; only their sum is logged.
        if self.engine.ranks > 1:
            losses = [self.engine.summed({"loss": math.fsum(losses)})["loss"]]
        return losses, self.engine.summed(sums)

    def judged(self, done: int, evaluate: Evaluate, *, write: bool = True) -> bool:
        """Evaluate after ``done`` updates, write the lines, and return if one has ``enough``."""
        # The time of an evaluation must not count for the speed of training.
        with self.meter.paused():
            lines = self.engine.evaluated(lambda: list(evaluate(done)))
        for line in lines if write else ():
            self._write({"kind": "eval", "step": done, **line})
            self._track(f"eval/{line.get('masks', 'task')}", line, done)
        return any(line.get("enough") for line in lines)

    def _track(self, prefix: str, line: Mapping[str, object], done: int) -> None:
        """Send the numbers of a line to the trackers, which accept nothing else."""
        numbers = {f"{prefix}/{k}": v for k, v in line.items() if isinstance(v, int | float)}
        self.engine.accelerator.log(numbers, step=done)

    def so_far(self) -> Totals:
        """The current totals, with what ``read`` has collected since the last line."""
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

    def _write(self, line: Mapping[str, object]) -> None:
        self.metrics.write(line)
        self.totals.lines = self.metrics.lines


def not_finite(values: Sequence[float], *, step: int, rate: float) -> NotFinite:
    """Return the error for an update.

    Args:
        values: the losses of its micro-batches, then the gradient norm.
        step: the step of the update.
        rate: the learning rate.
    """
    *losses, norm = values
    unsound = [loss for loss in losses if not math.isfinite(loss)]
    what = f"the {'loss' if unsound else 'gradient'} is not finite at step {step}"
    got: object = unsound[0] if unsound else norm
    if all(map(math.isfinite, values)):
        what = f"the loss or gradient of another process is not finite at step {step}"
        got = "finite ones here"
    do = f"lower the learning rate ({rate:.3g} at this step), or set training.on_nan: skip"
    return NotFinite(what, got=got, do=do)


class Metrics:
    """Lines of JSON in a file.

    Args:
        path: the file; None: write nothing.
        keep_until: lines of later steps are dropped, because a resumed run writes them again; a new
            run (0) starts with an empty file.

    Attributes:
        lines: the number of lines.
    """

    def __init__(self, path: Path | None, *, keep_until: int = 0):
        self.path = path
        self.lines = 0
        if path is None:
            return
        kept = read_lines(path) if keep_until else []
        kept = [line for line in kept if _step(line) <= keep_until]
        write_lines(path, kept)
        # Unbuffered: on a full disk, a buffer would be written again on closing.
        with writing(path):
            self.file = path.open("ab", buffering=0)
        self.lines = len(kept)

    def write(self, line: Mapping[str, object]) -> None:
        if self.path is None:
            return
        rest = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with writing(self.path):
            # A nearly full disk accepts a part of the line before it raises an error.
            while rest:
                rest = rest[self.file.write(rest) :]
        self.lines += 1

    def close(self) -> None:
        if self.path:
            self.file.close()


class Progress:
    """A bar over steps with rate and time left; hidden without a terminal.

    Args:
        title: the text to its left.
        total: the steps of the run.
        start: the steps before this call, if the run is resumed.
        hidden: show nothing.
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
        self.task = self.bar.add_task(title, total=total, completed=start, note="", rate="")

    def advance(self) -> None:
        self.bar.advance(self.task)

    def note(self, rate: str = "", **values: float | None) -> None:
        """Show the speed, by default in steps per second, and some values if they are known."""
        speed = self.bar.tasks[self.task].speed
        if speed and not rate:
            rate = f"{speed:.1f} steps/s"
        known = [f"{name} {value:.3g}" for name, value in values.items() if value is not None]
        self.bar.update(self.task, note="  ".join(known), rate=rate)


def _step(line: Mapping[str, object]) -> float:
    step = line.get("step", 0)
    return step if isinstance(step, int) else math.inf
