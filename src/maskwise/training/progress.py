"""A progress bar with rate and time left; silent where nobody looks."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """A bar over steps.

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

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def advance(self) -> None:
        self.bar.advance(self.task)

    def note(self, **values: float | None) -> None:
        """Show a few numbers behind the bar, those that are known."""
        speed = self.bar.tasks[self.task].speed
        text = "  ".join(f"{name} {value:.3g}" for name, value in values.items() if value is not None)
        self.bar.update(self.task, note=text, rate=f"{speed:.1f} steps/s" if speed else "")
