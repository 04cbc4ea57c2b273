"""What a training says of itself: lines of ``metrics.jsonl``, trackers, and a progress bar.

Between two lines everything is summed up: losses as tensors on the device, counts on the host. A
line is where the host waits for the device, and where a loss or gradient that is not finite ends
the run. docs/files.md says which fields a line has.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from maskwise.errors import MaskwiseError
from maskwise.folders import finite, read_lines, write_lines, writing
from maskwise.training.data import Source, Step
from maskwise.training.engine import Engine, Update
from maskwise.training.learners import Learner
from maskwise.training.speed import Meter
from maskwise.training.states import Totals

Evaluate = Callable[[int], Sequence[Mapping[str, object]]]
"""From the number of updates done to lines of metrics."""

MOST_SKIPPED = 20
"""So many updates in a row may be left out; a model that gives nothing finite for longer does not
come back.
"""


EMPTY_STEPS, SURE_TARGETS = 50, 10
"""A run that has had no target by then is stopped, unless so few were asked for that chance may
have left none.
"""


class NotFinite(MaskwiseError):
    """A loss or gradient that is not a finite number."""


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
        self,
        engine: Engine,
        source: Source,
        learners: Mapping[str, Learner],
        *,
        title: str,
        quiet: bool,
    ):
        self.engine, self.source, self.learners = engine, source, learners
        self.totals = engine.totals.model_copy()
        self.began = time.perf_counter() - self.totals.seconds
        self.window: list[Update] = []
        # What was summed up, over all ranks, when a state was saved between two lines; the first
        # rank holds it.
        self.losses = list(self.totals.losses) if engine.first else []
        self.sums = dict(self.totals.sums) if engine.first else {}
        self.skipped_in_a_row = 0
        path = engine.folder / "metrics.jsonl" if engine.folder and engine.first else None
        self.metrics = Metrics(path, keep_until=engine.start)
        if path and self.totals.lines is not None and self.metrics.lines < self.totals.lines:
            lost = self.totals.lines - self.metrics.lines
            engine.say(
                f"{path} has lost {lost} of {self.totals.lines} lines: curves will have a gap"
            )
        s = engine.settings
        self.meter = Meter(
            engine.objective,
            engine.device,
            engine.accelerator.mixed_precision,
            ranks=engine.ranks,
            frozen=s.freeze == "encoder",
            known=path is not None,
        )
        self.progress = Progress(
            title, engine.settings.steps, engine.start, hidden=quiet or not engine.first
        )

    def __enter__(self) -> Log:
        self.progress.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.bar.stop()
        self.metrics.close()

    def add(self, update: Update, step: Step) -> None:
        """Take in one update and what its source says of its batches. Does not wait for the device."""
        self.window.append(update)
        self.meter.add(step)
        counts = {"targets": update.targets, "counted": update.counted}
        for name, value in {**counts, **step.facts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def line(self, done: int) -> None:
        """Write what was summed up since the last line; every rank calls this.

        Raises:
            NotFinite: a loss or gradient is not finite, on any rank, unless its update was skipped.
        """
        last = self.window[-1]
        losses, sums = self._read(done)
        self.window, self.losses, self.sums = [], [], dict.fromkeys(self.sums, 0.0)
        # Where the ratio has fallen to 0 there may be nothing to predict: no loss, which is not 0.
        mean = math.fsum(losses) / sums["counted"] if sums["targets"] else None
        facts, targets = self.source.summarise(sums), int(sums["targets"])
        line = {"loss": mean, "targets": targets, **facts}
        totals = self.totals
        totals.loss = totals.loss if mean is None else mean
        totals.tokens += int(facts.get("tokens", 0))
        totals.targets += targets
        asked = facts.get("scheduled_ratio", 1.0) * sums.get("eligible", math.inf)
        if done >= EMPTY_STEPS and not totals.targets and asked >= SURE_TARGETS:
            what = f"not one target in the first {done} steps: there is nothing to learn from"
            raise MaskwiseError(what, got="0 targets", do="look at the masks: maskwise inspect")
        totals.seconds = time.perf_counter() - self.began
        line |= {"tokens": totals.tokens, "lr": last.rate, "grad_norm": finite(float(last.norm))}
        if self.engine.settings.on_nan == "skip":
            line["skipped"] = totals.skipped
        learnt = {k: v for learner in self.learners.values() for k, v in learner.facts().items()}
        speed = self.meter.read(left=self.engine.settings.steps - done)
        late = {"speed": speed, "seconds": round(totals.seconds, 3)}
        self._write({"kind": "train", "step": done, **line, **learnt, **late})
        tracked = {
            f"train/{k}": v for k, v in {**line, **speed}.items() if isinstance(v, int | float)
        }
        tracked |= {
            f"train/source/{name}": share for name, share in line.get("sources", {}).items()
        }
        self.engine.accelerator.log(tracked, step=done)
        share = f", MFU {100 * speed['mfu']:.0f} %" if "mfu" in speed else ""
        rate = f"{speed['tokens_per_second']:,.0f} tokens/s{share}, {speed['memory_gib']:.1f} GiB"
        self.progress.note(
            rate, loss=totals.loss, ratio=facts.get("ratio"), padding=facts.get("padding")
        )

    def _read(self, done: int) -> tuple[list[float], dict[str, float]]:
        """Losses and sums of facts since the last line, over all ranks; here the host waits for the
        device.

        Raises:
            NotFinite: see ``line``.
        """
        sums, losses, sizes = (
            dict(self.sums),
            list(self.losses),
            [len(u.losses) for u in self.window],
        )
        values = [value for update in self.window for value in (*update.losses, update.norm)]
        own = [
            part.tolist() for part in torch.stack(values).cpu().split([size + 1 for size in sizes])
        ]
        wrong = [float(not all(map(math.isfinite, each))) for each in own]
        wrong = list(self.engine.summed({f"{n:09}": bad for n, bad in enumerate(wrong)}).values())
        for number, (update, bad) in enumerate(zip(self.window, wrong, strict=True)):
            *parts, norm = own[number]
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if bad else 0
            if not bad:
                losses += parts
                continue
            if self.engine.settings.on_nan != "skip" or self.skipped_in_a_row > MOST_SKIPPED:
                unsound = next((part for part in parts if not math.isfinite(part)), None)
                step = done - len(self.window) + number + 1
                what = "gradient" if unsound is None else "loss"
                raise NotFinite(
                    f"the {what} is not finite at step {step}",
                    got=norm if unsound is None else unsound,
                    do=f"lower the learning rate ({update.rate:.3g} at this step), or set "
                    f"training.on_nan: skip",
                )
            sums["targets"] -= update.targets
            sums["counted"] -= update.counted
            self.totals.skipped += 1
        if self.engine.ranks > 1:
            losses = [self.engine.summed({"loss": math.fsum(losses)})["loss"]]
        return losses, self.engine.summed(sums)

    def judged(self, done: int, evaluate: Evaluate, *, write: bool = True) -> bool:
        """Evaluate after ``done`` updates, and write what comes out; whether it is enough."""
        with self.meter.paused():
            lines = self.engine.evaluated(lambda: list(evaluate(done)))
        for line in lines if write else ():
            self.evaluation(done, line)
        return any(bool(line.get("enough")) for line in lines)

    def evaluation(self, done: int, line: Mapping[str, object]) -> None:
        """Write one line of an evaluation."""
        self._write({"kind": "eval", "step": done, **line})
        tracked = {f"eval/{line.get('masks', 'task')}/{k}": v for k, v in line.items()}
        self.engine.accelerator.log(tracked, step=done)

    def so_far(self) -> Totals:
        """The totals of this moment, with what was read since the last line (``read``)."""
        now = {
            "seconds": time.perf_counter() - self.began,
            "losses": list(self.losses),
            "sums": dict(self.sums),
        }
        return self.totals.model_copy(update=now)

    def read(self, done: int) -> None:
        """Read what came after the last line, so that ``so_far`` has it; every rank calls this.

        Raises:
            NotFinite: see ``line``.
        """
        if self.window:
            losses, sums = self._read(done)
            # They are sums over all ranks now, so one rank keeps them for the next line.
            kept = (losses, sums) if self.engine.first else ([], dict.fromkeys(sums, 0.0))
            self.window, (self.losses, self.sums) = [], kept

    def _write(self, line: Mapping[str, object]) -> None:
        self.metrics.write(line)
        self.totals.lines = self.metrics.lines


class Metrics:
    """Lines of JSON in a file.

    Args:
        path: the file; None writes nothing.
        keep_until: lines of later steps are dropped first. On resuming from a state they will be
            written again; a fresh run (0) starts with an empty file.

    Attributes:
        lines: their number.
    """

    def __init__(self, path: Path | None, *, keep_until: int = 0):
        self.path, self.lines = path, 0
        if path is None:
            return
        kept = (
            [line for line in read_lines(path) if _step(line) <= keep_until] if keep_until else []
        )
        write_lines(path, kept)
        with writing(path):  # without a buffer, which would be written again where the disk is full
            self.file = path.open("ab", buffering=0)
        self.lines = len(kept)

    def write(self, line: Mapping[str, object]) -> None:
        if self.path:
            with writing(self.path):
                rest = (json.dumps(line, ensure_ascii=False) + "\n").encode()
                # on a disk that is nearly full only a part is written, and the next try fails
                while rest:
                    rest = rest[self.file.write(rest) :]
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
        """Show how fast it is (if not said, the steps per second) and behind the bar a few numbers
        that are known.
        """
        speed = self.bar.tasks[self.task].speed
        text = "  ".join(
            f"{name} {value:.3g}" for name, value in values.items() if value is not None
        )
        self.bar.update(
            self.task, note=text, rate=rate or (f"{speed:.1f} steps/s" if speed else "")
        )


def _step(line: Mapping[str, object]) -> float:
    step = line.get("step", 0)
    return step if isinstance(step, int) else math.inf
