"""Training logs: lines of ``metrics.jsonl``, trackers, and a progress bar.

Between two lines everything is accumulated: losses as tensors on the device, counts on the host. At
a line the host waits for the device, and a loss or gradient that is not finite ends the run.
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
from maskwise.training.checkpoint import Totals
from maskwise.training.data import Source, Step
from maskwise.training.engine import Engine, Update
from maskwise.training.learners import Learner
from maskwise.training.speed import Meter

Evaluate = Callable[[int], Sequence[Mapping[str, object]]]
"""From the number of updates done to lines of metrics."""

MOST_SKIPPED = 20
"""Updates in a row that may be skipped; a model with more does not recover."""

EMPTY_STEPS = 50
"""A run without any target after these steps is stopped, if it asked for enough of them."""
SURE_TARGETS = 10
"""With this many targets expected, having none is not chance."""


class NotFinite(MaskwiseError):
    """A loss or gradient that is not a finite number."""


class Log:
    """The log of one run; a context that closes its file and its bar.

    Args:
        engine: what trains.
        source: its facts are summed and summarised.
        learners: their facts are added to each line.
        title: of the progress bar.
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
        if not engine.first:  # sums over all ranks in a saved state belong to the first one
            self.totals.losses = []
            self.totals.sums = {}
        self.skipped_in_a_row = 0
        path = engine.folder / "metrics.jsonl" if engine.folder and engine.first else None
        self.metrics = Metrics(path, keep_until=engine.start)
        lost = (self.totals.lines or 0) - self.metrics.lines
        if path and lost > 0:
            lines = f"{lost} of {self.totals.lines} lines"
            engine.say(f"{path} has lost {lines}: curves will have a gap")
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
        # Without targets, as where a ratio has fallen to 0, there is no loss.
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
            prefix = f"{learner.arm} " if learner.arm else ""
            learned |= {f"{prefix}{name}": value for name, value in learner.facts().items()}
        late = {"speed": speed, "seconds": round(totals.seconds, 3)}
        self._write({"kind": "train", "step": done, **line, **learned, **late})
        shares = {f"source/{name}": share for name, share in line.get("sources", {}).items()}
        self._track("train", {**line, **speed, **shares}, done)
        mfu = f", MFU {100 * speed['mfu']:.0f} %" if "mfu" in speed else ""
        rate = f"{speed['tokens_per_second']:,.0f} tokens/s{mfu}, {speed['memory_gib']:.1f} GiB"
        shown = {"loss": totals.loss, "ratio": facts.get("ratio"), "padding": facts.get("padding")}
        self.progress.note(rate, **shown)

    def _read(self, done: int) -> tuple[list[float], dict[str, float]]:
        """Losses and sums since the last line, over all ranks; here the host waits for the device.

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
        # All ranks skip an update that is not finite on one of them.
        wrong = {f"{n:09}": not all(map(math.isfinite, part)) for n, part in enumerate(parts)}
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
        # Every rank has other losses; only their sum is logged.
        if self.engine.ranks > 1:
            losses = [self.engine.summed({"loss": math.fsum(losses)})["loss"]]
        return losses, self.engine.summed(sums)

    def judged(self, done: int, evaluate: Evaluate, *, write: bool = True) -> bool:
        """Evaluate after ``done`` updates and write the lines; whether one says ``enough``."""
        # Evaluation would lower the speed of training.
        with self.meter.paused():
            lines = self.engine.evaluated(lambda: list(evaluate(done)))
        for line in lines if write else ():
            self._write({"kind": "eval", "step": done, **line})
            self._track(f"eval/{line.get('masks', 'task')}", line, done)
        return any(line.get("enough") for line in lines)

    def _track(self, prefix: str, line: Mapping[str, object], done: int) -> None:
        """Send the numbers of a line to the trackers, which take nothing else."""
        numbers = {f"{prefix}/{k}": v for k, v in line.items() if isinstance(v, int | float)}
        self.engine.accelerator.log(numbers, step=done)

    def so_far(self) -> Totals:
        """The totals of this moment, with what ``read`` has accumulated since the last line."""
        return self.totals.model_copy(update={"seconds": time.perf_counter() - self.began})

    def read(self, done: int) -> None:
        """Read what came after the last line for ``so_far``; every rank calls this.

        Raises:
            NotFinite: see ``line``.
        """
        if self.window:
            losses, sums = self._read(done)
            # These are sums over all ranks now, so only the first keeps them for the next line.
            self.window = []
            self.totals.losses = losses if self.engine.first else []
            self.totals.sums = sums if self.engine.first else dict.fromkeys(sums, 0.0)

    def _write(self, line: Mapping[str, object]) -> None:
        self.metrics.write(line)
        self.totals.lines = self.metrics.lines


def not_finite(values: Sequence[float], *, step: int, rate: float) -> NotFinite:
    """The error for an update with these losses and, last, its gradient norm."""
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
        path: the file; None writes nothing.
        keep_until: lines of later steps are dropped, because a resumed run writes them again; a new
            run (0) starts with an empty file.

    Attributes:
        lines: their number.
    """

    def __init__(self, path: Path | None, *, keep_until: int = 0):
        self.path = path
        self.lines = 0
        if path is None:
            return
        kept = read_lines(path) if keep_until else []
        kept = [line for line in kept if _step(line) <= keep_until]
        write_lines(path, kept)
        with writing(path):  # unbuffered, because a buffer is written again when the disk is full
            self.file = path.open("ab", buffering=0)
        self.lines = len(kept)

    def write(self, line: Mapping[str, object]) -> None:
        if self.path is None:
            return
        rest = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with writing(self.path):
            while rest:  # a nearly full disk takes a part, and then raises
                rest = rest[self.file.write(rest) :]
        self.lines += 1

    def close(self) -> None:
        if self.path:
            self.file.close()


class Progress:
    """A bar over steps with rate and time left; hidden without a terminal.

    Args:
        title: at its left.
        total: steps in all.
        start: steps done before.
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
