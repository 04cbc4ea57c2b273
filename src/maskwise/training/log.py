"""What a training says of itself: lines of ``metrics.jsonl``, trackers, and a progress bar.

Between two lines everything is summed up: losses as tensors on the device, counts on the host. A line is where the
host waits for the device, and where a loss or gradient that is not finite ends the run. docs/files.md says which
fields a line has.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.folders import read_lines, write_lines, writing
from maskwise.training.data import Source
from maskwise.training.engine import Engine, Totals, Update
from maskwise.training.learners import Learner


class Log:
    """The log of one run; a context that closes its file and its bar.

    Args:
        engine: what trains.
        source: whose facts are summed up and summarised.
        learners: whose facts are added to each line.
        title: what the progress bar says.
        quiet: no progress bar.
    """

    def __init__(
        self, engine: Engine, source: Source, learners: Mapping[str, Learner], *, title: str, quiet: bool
    ):
        self.engine, self.source, self.learners = engine, source, learners
        self.totals = engine.totals.model_copy()
        self.began = time.perf_counter() - self.totals.seconds
        self.losses: list[Tensor] = []
        self.sums: dict[str, float] = {}
        self.last: Update | None = None
        path = engine.folder / "metrics.jsonl" if engine.folder and engine.first else None
        self.metrics = Metrics(path, keep_until=engine.start)
        if path and self.totals.lines is not None and self.metrics.lines < self.totals.lines:
            lost = self.totals.lines - self.metrics.lines
            engine.say(f"{path} has lost {lost} of {self.totals.lines} lines: curves will have a gap")
        self.progress = Progress(title, engine.settings.steps, engine.start, hidden=quiet or not engine.first)

    def __enter__(self) -> Log:
        self.progress.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.bar.stop()
        self.metrics.close()

    def add(self, update: Update, facts: Mapping[str, float]) -> None:
        """Take in one update and what its source says of its batches. Does not wait for the device."""
        self.losses += update.losses
        for name, value in {"targets": update.targets, **facts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.last = update

    def line(self, done: int) -> None:
        """Write what was summed up since the last line; every rank calls this.

        Raises:
            MaskwiseError: a loss or gradient that is not finite, on any rank.
        """
        assert self.last is not None
        own = math.fsum(torch.stack(self.losses).tolist()) if self.losses else 0.0
        sums = self.engine.summed({"loss": own, **self.sums})
        self.losses, self.sums = [], dict.fromkeys(self.sums, 0.0)
        norm = float(self.last.norm)
        for name, value in (("loss", sums["loss"]), ("gradient", norm)):
            if not math.isfinite(value):
                what = f"the {name} is not finite at step {done}"
                raise MaskwiseError(what, got=value, do="lower the learning rate")
        # Where the ratio has fallen to 0 there may be nothing to predict: no loss, which is not 0.
        mean = sums["loss"] / sums["targets"] if sums["targets"] else None
        facts, targets = self.source.summarise(sums), int(sums["targets"])
        line = {"loss": mean, "targets": targets, **facts}
        totals = self.totals
        totals.loss = totals.loss if mean is None else mean
        totals.tokens += int(facts.get("tokens", 0))
        totals.targets += targets
        totals.seconds = time.perf_counter() - self.began
        line |= {"tokens": totals.tokens, "lr": self.last.rate, "grad_norm": norm}
        learnt = {k: v for learner in self.learners.values() for k, v in learner.facts().items()}
        self._write({"kind": "train", "step": done, **line, **learnt, "seconds": round(totals.seconds, 3)})
        tracked = {f"train/{k}": v for k, v in line.items() if v is not None}
        self.engine.accelerator.log(tracked, step=done)
        self.progress.note(loss=totals.loss, ratio=facts.get("ratio"))

    def evaluation(self, done: int, line: Mapping[str, object]) -> None:
        """Write one line of an evaluation."""
        self._write({"kind": "eval", "step": done, **line})
        tracked = {f"eval/{line.get('masks', 'task')}/{k}": v for k, v in line.items()}
        self.engine.accelerator.log(tracked, step=done)

    def so_far(self) -> Totals:
        """The totals of this moment."""
        return self.totals.model_copy(update={"seconds": time.perf_counter() - self.began})

    def _write(self, line: Mapping[str, object]) -> None:
        self.metrics.write(line)
        self.totals.lines = self.metrics.lines


class Metrics:
    """Lines of JSON in a file.

    Args:
        path: the file; None writes nothing.
        keep_until: lines of later steps are dropped first. On resuming from a state they will be written
            again; a fresh run (0) starts with an empty file.

    Attributes:
        lines: their number.
    """

    def __init__(self, path: Path | None, *, keep_until: int = 0):
        self.path, self.lines = path, 0
        if path is None:
            return
        kept = [line for line in read_lines(path) if _step(line) <= keep_until] if keep_until else []
        write_lines(path, kept)
        self.file, self.lines = path.open("a", encoding="utf-8"), len(kept)

    def write(self, line: Mapping[str, object]) -> None:
        if self.path:
            with writing(self.path):
                self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
                self.file.flush()
            self.lines += 1

    def close(self) -> None:
        if self.path:
            self.file.close()


class Progress:
    """A bar over steps with rate and time left; silent where nobody looks.

    Args:
        title: what is going on.
        total: steps in all. start: steps done before.
        hidden: show nothing.
    """

    def __init__(self, title: str, total: int, start: int = 0, *, hidden: bool = False):
        console = Console(stderr=True)
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            console=console, disable=hidden or not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task(title, total=total, completed=start, note="", rate="")

    def advance(self) -> None:
        self.bar.advance(self.task)

    def note(self, **values: float | None) -> None:
        """Show a few numbers behind the bar, those that are known."""
        speed = self.bar.tasks[self.task].speed
        text = "  ".join(f"{name} {value:.3g}" for name, value in values.items() if value is not None)
        self.bar.update(self.task, note=text, rate=f"{speed:.1f} steps/s" if speed else "")


def _step(line: Mapping[str, object]) -> float:
    step = line.get("step", 0)
    return step if isinstance(step, int) else math.inf
