"""The table of a running study: arms × seeds and the time left; plain lines without a terminal.

It reads nothing but files, so it also knows stages that run on other machines.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from maskwise.errors import duration
from maskwise.recipe.overrides import Plain
from maskwise.study.forecast import Forecast
from maskwise.study.plan import Plan
from maskwise.study.stages import Stage

RUNNING = {"prepare": "text", "pretrain": "0 %", "learn": "policy", "finetune": "tasks"}
"""The cell of a running stage by kind; other kinds show their name."""
LEGEND = Text(
    "text: preparing it · 45 %: pre-training · tasks: fine-tuning · 1/3: stages done", "dim"
)
TAIL_BYTES = 1 << 18
"""Read from the end of metrics.jsonl, twice a second; a line with many weights is long, too."""


class LiveTable:
    """Shows a plan while it runs.

    Args:
        plan: the plan that runs.
        stages: the folder of the stages.
        jobs: how many stages run at once.
        quiet: show nothing.
    """

    def __init__(self, plan: Plan, stages: Path, *, jobs: int = 1, quiet: bool):
        self.plan = plan
        self.stages = stages
        self.jobs = jobs
        self.quiet = quiet
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, refresh_per_second=2, transient=True)
        # Logs of batch jobs get plain lines.
        self.shows = self.console.is_terminal and not quiet
        self.began = time.perf_counter()
        self.named = {stage.name: stage for stage in plan.stages()}
        self.cells: dict[tuple[str, int], dict[str, Stage]] = {}
        for run in plan.runs:  # a row may hold several runs of a seed
            cell = self.cells.setdefault((run.row, run.seed), {})
            cell |= {stage.name: stage for stage in run.stages}
        self.forecast = Forecast(self.named)
        self.finished: set[str] = set()
        self.since: dict[str, float] = {}  # when running stages were first seen
        self.lines: dict[str, Plain] = {}  # their last lines of training
        self.errors: Collection[str] = ()
        for name in self.named:
            self.done(name)
        self.printed = len(self.finished)

    def __enter__(self) -> LiveTable:
        if self.shows:
            self.live.start()
        elif not self.quiet:
            self.console.print(self.summary())
        return self

    def __exit__(self, *_: object) -> None:
        if self.shows:
            self.live.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if not self.quiet:
            self.console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)

    def done(self, name: str) -> None:
        """Note that a stage is done, if it is."""
        result = self.named[name].result(self.stages)
        if result is not None:
            self.finished.add(name)
            self.forecast.add(name, result["seconds"])

    def update(self, running: Collection[str], errors: Collection[str]) -> None:
        """Draw the new state; without a terminal, print a line for each tenth of the work."""
        now = time.perf_counter()
        total = len(self.named)
        self.since = {name: self.since.get(name, now) for name in running}
        self.errors = errors
        # Ten lines are enough for a log, however many stages there are.
        tenth = len(self.finished) * 10 // total > self.printed * 10 // total
        if self.quiet or not (self.shows or tenth):
            return
        self.printed = len(self.finished)
        self.lines = {name: self.last_line(name) for name in running}
        if self.shows:
            self.live.update(Group(self.summary(), self._table(), LEGEND))
        else:
            self.console.print(self.summary())

    def last_line(self, name: str) -> Plain:
        """The last line of metrics that a training has written; empty before the first."""
        try:
            with (self.named[name].folder(self.stages) / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return {}
        # Lines of evaluations come between those of training.
        for line in reversed(lines):
            with suppress(ValueError):  # the first line may be cut, and the last half written
                found: Plain = json.loads(line)
                if found["kind"] == "train":
                    return found
        return {}

    def summary(self) -> Text:
        left, sure = self.left()
        speed = sum(line["tokens"] / line["seconds"] for line in self.lines.values() if line)
        parts = [f"{len(self.finished)} of {len(self.named)} stages"]
        if self.errors:
            parts.append(f"{len(self.errors)} failed")
        parts.append(duration(time.perf_counter() - self.began))
        if speed:
            parts.append(f"{speed:,.0f} tokens/s")
        if left and (sure or self.finished):
            parts.append(f"{'about' if sure else 'more than'} {duration(left)} left")
        purpose = "" if self.plan.purpose == "main" else f"{self.plan.purpose}: "
        return Text(purpose + ", ".join(parts), no_wrap=True)

    def left(self) -> tuple[float, bool]:
        """Seconds until the end, and whether the time of every stage is known."""
        for name, line in self.lines.items():
            if line:
                self.forecast.running(name, line["seconds"] / line["step"])
        total = 0.0
        sure = True
        now = time.perf_counter()
        for name in self.named:
            if name in self.finished or name in self.errors:
                continue
            whole = self.forecast.seconds(name)
            if whole is None:
                sure = False
            # A resumed training has done steps that are older than this process.
            elif self.lines.get(name):
                total += whole * (1 - self._share(name))
            else:
                total += max(0.0, whole - (now - self.since.get(name, now)))
        # Workers that share cores are as fast as they were when the times were taken.
        return total / (len(self.since) or self.jobs), sure

    def _share(self, name: str) -> float:
        """The share of its steps that a training has done."""
        return min(1.0, self.lines[name]["step"] / self.named[name].what["training"]["steps"])

    def _table(self) -> Table:
        seeds = sorted({seed for _, seed in self.cells})
        table = Table("arm", box=None, padding=(0, 2, 0, 0))
        for seed in seeds:
            table.add_column(f"seed {seed}", no_wrap=True)
        for row in dict.fromkeys(row for row, _ in self.cells):
            table.add_row(Text(row), *(self.cell(row, seed) for seed in seeds))
        return table

    def cell(self, row: str, seed: int) -> Text:
        """The state of the runs of a row with a seed."""
        stages = self.cells.get((row, seed), {})
        if not stages.keys().isdisjoint(self.errors):
            return Text("failed", "red")
        for name, stage in stages.items():
            if self.lines.get(name):
                return Text(f"{self._share(name):.0%}".replace("%", " %"), "cyan")
            if name in self.since:
                return Text(RUNNING.get(stage.kind, stage.kind), "cyan")
        done = len(stages.keys() & self.finished)
        if done == len(stages):
            return Text("done", "green")
        return Text(f"{done}/{len(stages)}", "dim")
