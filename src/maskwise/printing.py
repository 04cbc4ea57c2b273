"""The only place that prints.

Texts, names and paths are data of users and of strangers. ``Terminal`` replaces their control
characters, and never parses them as markup. If the reader of a stream has gone, as in
``maskwise list policies | head``, the rest of the output is dropped, and the work goes on: its
exit code still says whether it succeeded.
"""

from __future__ import annotations

import io
import json
import os
import select
import sys
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from maskwise.errors import is_visible, visible

LINE_SECONDS = 60.0
"""Seconds between two plain lines of progress if stderr is not a terminal."""


class Terminal(Console):
    """A console that prints texts as they are, except for their control characters.

    Args:
        stderr: whether to print to stderr instead of stdout.
        more: further arguments of rich's ``Console``.

    >>> Terminal(width=40).print("[red] \\x1b[31m")
    [red] ·[31m
    """

    def __init__(self, *, stderr: bool = False, **more: Any):
        # Texts of users must not be parsed as markup, and numbers have no colours.
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **more)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # Segments of rich's own control codes move the cursor, such as in progress bars.
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self: Console) -> None:
        # By default, rich ends the program with exit code 1, which means that a run failed.
        let_go(self.file)


out_console = Terminal()
err_console = Terminal(stderr=True)


def say(text: str, style: str = "", *, to: Console | None = None) -> None:
    """Print a line without wrapping it, by default to stdout."""
    (to or out_console).print(text, style=style, soft_wrap=True)


def warn(text: str, style: str = "yellow") -> None:
    """Print a line to stderr."""
    say(text, style, to=err_console)


def print_notes(lines: Iterable[str]) -> None:
    """Print lines to stderr, without a colour."""
    for line in lines:
        say(line, to=err_console)


def json_text(value: object, *, indent: int | None = None) -> str:
    """Write a value as JSON that any file can hold and any terminal can print.

    Characters that a terminal must not print are escaped, so a program that reads the JSON gets
    them unchanged.

    >>> print(json_text({"name": "caf\\udce9 Zoë"}))
    {"name": "caf\\udce9 Zoë"}
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    if text.isprintable():
        return text
    return "".join(char if is_visible(char) else json.dumps(char)[1:-1] for char in text)


def print_json(value: object) -> None:
    """Print a value as JSON to stdout."""
    # rich would wrap and colour lines.
    try:
        sys.stdout.write(json_text(value, indent=1) + "\n")
    except BrokenPipeError:
        let_go(sys.stdout)


def flush() -> None:
    """Write what the buffer of stdout still contains."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        let_go(sys.stdout)


def open_streams() -> None:
    """Make stdout and stderr accept every text.

    A closed stream is replaced by the null device. Python sets it to None, and the next file that
    is opened would get its number, and with it the output of libraries in C. Characters that the
    encoding of a stream lacks are escaped. typer, which prints help, has consoles of its own.
    """
    Console.on_broken_pipe = Terminal.on_broken_pipe  # type: ignore[method-assign]
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, null)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def let_go(stream: IO[str]) -> None:
    """Redirect a stream to the null device, because Python flushes streams at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_read(stream: IO[str]) -> bool:
    """Return whether a pipe still has a reader. Files and terminals always have one."""
    # Windows has no ``poll``.
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(stream, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))
