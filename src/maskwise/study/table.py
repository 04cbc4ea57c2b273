"""What a study is doing, live: arms × seeds, with the time left. Plain lines where nobody looks.

The time left is what like stages took: seconds for a step of pre-training, for a task's fine-tuning, for a text. While
some kind has not been seen yet, it says "more than". Files are all it reads, so it knows as much of stages on other
machines as of those on this one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from maskwise.study.plan import Plan
from maskwise.study.stages import Stage

WORDS = {"prepare": "text", "pretrain": "0 %", "finetune": "tasks"}
"""Of a cell whose stage runs; other kinds by their own name."""
LEGEND = Text("text: preparing it · 45 %: pre-training · tasks: fine-tuning · 1/3: stages done", "dim")

TAIL_BYTES = 8192
"""Of metrics.jsonl, which may be long: it is looked at twice a second."""


class LiveTable:
    """Shows a plan while it runs.

    Args:
        plan: what is being done.
        stages: the folder of the stages.
        quiet: show nothing.
    """

    def __init__(self, plan: Plan, stages: Path, *, quiet: bool):
        self.plan, self.stages, self.quiet = plan, stages, quiet
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, refresh_per_second=2, transient=True)
        self.shows = self.console.is_terminal and not quiet
        self.began = time.perf_counter()
        self.named = {stage.name: stage for stage in plan.stages()}
        self.cells: dict[tuple[str, int], dict[str, Stage]] = {}
        for run in plan.runs:  # a row may hold several runs of a seed
            self.cells.setdefault((run.row, run.seed), {}).update({stage.name: stage for stage in run.stages})
        self.seconds: dict[str, float] = {}  # of the stages that are done
        self.since: dict[str, float] = {}  # when those that run were first seen
        for name in self.named:
            self.done(name)
        self.told = len(self.seconds)

    def __enter__(self) -> LiveTable:
        if self.shows:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shows:
            self.live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)

    def update(self, running: Iterable[str], errors: dict[str, str]) -> None:
        """Draw the state anew; without a terminal, a line for each tenth of the work."""
        now, total = time.perf_counter(), len(self.named)
        self.since = {name: self.since.get(name, now) for name in running}
        tenth = len(self.seconds) * 10 // total > self.told * 10 // total
        if self.quiet or not (self.shows or tenth):
            return
        self.told = len(self.seconds)
        lines = {name: self._metrics(name) for name in running}
        if self.shows:
            self.live.update(Group(self._summary(lines, errors), self._table(lines, errors), LEGEND))
        else:
            self.console.print(self._summary(lines, errors))

    def done(self, name: str) -> None:
        """A stage may be done: look."""
        found = self.named[name].result(self.stages)
        if found is not None:
            self.seconds[name] = found["seconds"]

    def _metrics(self, name: str) -> dict[str, Any]:
        """The last line of training that a run has written; empty before the first."""
        try:
            with (self.named[name].folder(self.stages) / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = [json.loads(line) for line in file.read().splitlines()[1:]]
        except (OSError, ValueError):
            return {}
        return next((line for line in reversed(lines) if line["kind"] == "train"), {})

    def _summary(self, lines: dict[str, dict[str, Any]], errors: dict[str, str]) -> Text:
        left, sure = self._left(lines, errors)
        speed = sum(line["tokens"] / line["seconds"] for line in lines.values() if line)
        parts = [
            f"{len(self.seconds)} of {len(self.named)} stages",
            f"{len(errors)} failed" if errors else "",
            _clock(time.perf_counter() - self.began),
            f"{speed:,.0f} tokens/s" if speed else "",
            f"{'about' if sure else 'more than'} {_clock(left)} left" if left else "",
        ]
        phase = "" if self.plan.phase == "main" else f"{self.plan.phase}: "
        return Text(phase + ", ".join(part for part in parts if part), no_wrap=True)

    def _left(self, lines: dict[str, dict[str, Any]], errors: dict[str, str]) -> tuple[float, bool]:
        """Seconds, and whether every kind of stage has been seen."""
        pace: dict[tuple[str, ...], list[float]] = {}
        for name, spent in self.seconds.items():
            pace.setdefault(_like(self.named[name]), []).append(spent / _size(self.named[name]))
        for name, line in lines.items():
            if line:
                pace.setdefault(_like(self.named[name]), [line["seconds"] / line["step"]])
        left, sure = 0.0, True
        for name, stage in self.named.items():
            seen = pace.get(_like(stage))
            if name in self.seconds or name in errors:
                continue
            if seen is None:
                sure = False
                continue
            whole = sum(seen) / len(seen) * _size(stage)
            if lines.get(name):
                left += whole * (1 - self._share(name, lines[name]))
            else:
                spent = time.perf_counter() - self.since[name] if name in self.since else 0.0
                left += max(0.0, whole - spent)
        return left / max(1, len(self.since)), sure

    def _share(self, name: str, line: dict[str, Any]) -> float:
        return min(1.0, line["step"] / _size(self.named[name]))

    def _table(self, lines: dict[str, dict[str, Any]], errors: dict[str, str]) -> Table:
        rows = dict.fromkeys(row for row, _ in self.cells)
        seeds = sorted({seed for _, seed in self.cells})
        table = Table("arm", box=None, padding=(0, 2, 0, 0))
        for seed in seeds:
            table.add_column(f"seed {seed}", no_wrap=True)
        for row in rows:
            table.add_row(
                Text(row), *(self._cell(self.cells.get((row, seed), {}), lines, errors) for seed in seeds)
            )
        return table

    def _cell(
        self, stages: dict[str, Stage], lines: dict[str, dict[str, Any]], errors: dict[str, str]
    ) -> Text:
        if any(name in errors for name in stages):
            return Text("failed", "red")
        for name, stage in stages.items():
            if name in lines:
                share = f"{self._share(name, lines[name]):.0%}".replace("%", " %")
                return Text(share if lines[name] else WORDS.get(stage.kind, stage.kind), "cyan")
        done = sum(name in self.seconds for name in stages)
        return Text("done", "green") if done == len(stages) else Text(f"{done}/{len(stages)}", "dim")


def _like(stage: Stage) -> tuple[str, ...]:
    """Stages with the same answer take a like time for their size."""
    return stage.kind, str(stage.what.get("task"))


def _size(stage: Stage) -> float:
    return float(stage.what["training"]["steps"]) if stage.kind == "pretrain" else 1.0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
