"""What a study is doing, live: a table of arms × seeds, with time left. Plain lines where nobody looks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from maskwise.study.plan import Plan, Run


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
        self.began = time.perf_counter()
        self.total = len(plan.stages())
        self.done_before = self.done = self._count()
        self.shows = self.console.is_terminal and not quiet

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
            self.console.print(line, style="red", highlight=False)

    def update(self, running: set[str], errors: dict[str, str]) -> None:
        """Draw the state anew; without a terminal, a line for each tenth of the work."""
        before, self.done = self.done, self._count()
        if self.shows:
            self.live.update(Group(self._table(running, errors), self._summary(self._parts(running))))
        elif not self.quiet and self.done * 10 // self.total > before * 10 // self.total:
            self.console.print(self._summary())

    def _count(self) -> int:
        return sum(stage.result(self.stages) is not None for stage in self.plan.stages())

    def _parts(self, running: set[str]) -> float:
        """How many stages' worth of work is done in those that run."""
        return sum(self._progress(r) for r in self.plan.runs if r.pretrained and r.pretrained.name in running)

    def _summary(self, parts: float = 0.0) -> Text:
        spent = time.perf_counter() - self.began
        rate = (self.done + parts - self.done_before) / spent if spent else 0.0
        left = f", about {_clock((self.total - self.done - parts) / rate)} left" if self.done and rate else ""
        return Text(f"{self.done} of {self.total} stages, {_clock(spent)}{left}")

    def _table(self, running: set[str], errors: dict[str, str]) -> Table:
        seeds = sorted({run.seed for run in self.plan.runs})
        table = Table(box=None, padding=(0, 2))
        for title in ("arm", *(f"seed {seed}" for seed in seeds)):
            table.add_column(title)
        for arm in dict.fromkeys(run.arm for run in self.plan.runs):
            cells = {run.seed: self._cell(run, running, errors) for run in self.plan.runs if run.arm == arm}
            table.add_row(Text(arm), *(cells.get(seed, "") for seed in seeds))
        return table

    def _cell(self, run: Run, running: set[str], errors: dict[str, str]) -> str:
        if any(stage.name in errors for stage in run.stages):
            return "[red]failed"
        if run.prepared.name in running:
            return "[cyan]preparing the text"
        if run.pretrained and run.pretrained.name in running:
            return f"[cyan]pre-training {self._progress(run):.0%}"
        if any(stage.name in running for stage in run.tasks.values()):
            return "[cyan]fine-tuning"
        done = [stage.result(self.stages) is not None for stage in run.stages]
        return "[green]done" if all(done) else f"[dim]{sum(done)} of {len(done)} stages"

    def _progress(self, run: Run) -> float:
        """How far a pre-training run is, from the last line of its metrics."""
        assert run.pretrained is not None
        try:
            last = (run.pretrained.folder(self.stages) / "metrics.jsonl").read_text().splitlines()[-1]
            return json.loads(last)["step"] / run.pretrained.what["training"]["steps"]
        except (OSError, ValueError, IndexError, KeyError):
            return 0.0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
