"""What a study is doing, live: arms × seeds, with the time left. Plain lines where nobody looks.

The time left is what ``forecast`` knows of like stages; while it knows nothing of some, the table
says "more than". Files are all that the table reads, so it knows as much of stages on other
machines as of those on this one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
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
"""What a cell says while a stage runs; other kinds have their own name."""
LEGEND = Text(
    "text: preparing it · 45 %: pre-training · tasks: fine-tuning · 1/3: stages done", "dim"
)

TAIL_BYTES = 1 << 18
"""How much of metrics.jsonl is read, twice a second: the file may be long, and a line with many
weights, too.
"""


class LiveTable:
    """Shows a plan while it runs.

    Args:
        plan: what is being done.
        stages: the folder of the stages.
        jobs: how many stages are done at once.
        quiet: show nothing.
    """

    def __init__(self, plan: Plan, stages: Path, *, jobs: int = 1, quiet: bool):
        self.plan, self.stages, self.jobs, self.quiet = plan, stages, jobs, quiet
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, refresh_per_second=2, transient=True)
        self.shows = self.console.is_terminal and not quiet
        self.began = time.perf_counter()
        self.named = {stage.name: stage for stage in plan.stages()}
        self.cells: dict[tuple[str, int], dict[str, Stage]] = {}
        for run in plan.runs:  # a row may hold several runs of a seed
            self.cells.setdefault((run.row, run.seed), {}).update(
                {stage.name: stage for stage in run.stages}
            )
        self.forecast = Forecast(self.named)
        self.seconds: dict[str, float] = {}  # of the stages that are done
        self.since: dict[str, float] = {}  # when those that run were first seen
        for name in self.named:
            self.done(name)
        self.printed = len(self.seconds)

    def __enter__(self) -> LiveTable:
        if self.shows:
            self.live.start()
        elif not self.quiet:
            self.console.print(self._summary({}, {}))
        return self

    def __exit__(self, *_: object) -> None:
        if self.shows:
            self.live.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if not self.quiet:
            self.console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)

    def update(self, running: Iterable[str], errors: Mapping[str, str]) -> None:
        """Draw the state anew; without a terminal, print a line for each tenth of the work."""
        now, total = time.perf_counter(), len(self.named)
        self.since = {name: self.since.get(name, now) for name in running}
        tenth = len(self.seconds) * 10 // total > self.printed * 10 // total
        if self.quiet or not (self.shows or tenth):
            return
        self.printed = len(self.seconds)
        lines = {name: self._metrics(name) for name in running}
        if self.shows:
            self.live.update(
                Group(self._summary(lines, errors), self._table(lines, errors), LEGEND)
            )
        else:
            self.console.print(self._summary(lines, errors))

    def done(self, name: str) -> None:
        """Look whether a stage is done."""
        result = self.named[name].result(self.stages)
        if result is not None:
            self.seconds[name] = result["seconds"]
            self.forecast.add(name, result["seconds"])

    def _metrics(self, name: str) -> Plain:
        """The last line of training that a run has written; empty before the first."""
        try:
            with (self.named[name].folder(self.stages) / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return {}
        for line in reversed(lines):
            with suppress(ValueError):  # the first line may be cut, and the last half written
                found: Plain = json.loads(line)
                if found["kind"] == "train":
                    return found
        return {}

    def _summary(self, lines: Mapping[str, Plain], errors: Mapping[str, str]) -> Text:
        left, sure = self._left(lines, errors)
        speed = sum(line["tokens"] / line["seconds"] for line in lines.values() if line)
        parts = [
            f"{len(self.seconds)} of {len(self.named)} stages",
            f"{len(errors)} failed" if errors else "",
            duration(time.perf_counter() - self.began),
            f"{speed:,.0f} tokens/s" if speed else "",
            f"{'about' if sure else 'more than'} {duration(left)} left"
            if left and (sure or self.seconds)
            else "",
        ]
        purpose = "" if self.plan.purpose == "main" else f"{self.plan.purpose}: "
        return Text(purpose + ", ".join(part for part in parts if part), no_wrap=True)

    def _left(self, lines: Mapping[str, Plain], errors: Mapping[str, str]) -> tuple[float, bool]:
        """Seconds until the end with as many stages at once as now, and whether every kind of stage
        has been seen.
        """
        speeds: dict[str | None, float] = {}  # seconds of a step of what runs
        for name, line in lines.items():
            if line:
                speeds.setdefault(self.forecast.key(name), line["seconds"] / line["step"])
        left = 0.0
        sure = True
        now = time.perf_counter()
        for name, stage in self.named.items():
            if name in self.seconds or name in errors:
                continue
            whole = self.forecast.seconds(name)
            speed = speeds.get(self.forecast.key(name))
            if whole is None and speed is not None:
                whole = speed * stage.what["training"]["steps"]
            if whole is None:
                sure = False
            elif lines.get(name):
                left += whole * (1 - self._share(name, lines[name]))
            else:
                left += max(0.0, whole - (now - self.since.get(name, now)))
        return left / (len(self.since) or self.jobs), sure

    def _share(self, name: str, line: Plain) -> float:
        return min(1.0, line["step"] / self.named[name].what["training"]["steps"])

    def _table(self, lines: Mapping[str, Plain], errors: Mapping[str, str]) -> Table:
        rows = dict.fromkeys(row for row, _ in self.cells)
        seeds = sorted({seed for _, seed in self.cells})
        table = Table("arm", box=None, padding=(0, 2, 0, 0))
        for seed in seeds:
            table.add_column(f"seed {seed}", no_wrap=True)
        for row in rows:
            cells = (self._cell(self.cells.get((row, seed), {}), lines, errors) for seed in seeds)
            table.add_row(Text(row), *cells)
        return table

    def _cell(
        self, stages: Mapping[str, Stage], lines: Mapping[str, Plain], errors: Mapping[str, str]
    ) -> Text:
        if any(name in errors for name in stages):
            return Text("failed", "red")
        for name, stage in stages.items():
            if name in lines:
                line = lines[name]
                share = f"{self._share(name, line):.0%}".replace("%", " %") if line else None
                return Text(share or RUNNING.get(stage.kind, stage.kind), "cyan")
        done = sum(name in self.seconds for name in stages)
        return (
            Text("done", "green") if done == len(stages) else Text(f"{done}/{len(stages)}", "dim")
        )
