"""The only place that prints, and the logger ``maskwise``.

Progress and notes go to the logger ``maskwise`` at the level INFO, and from there to stderr:

    logging.getLogger("maskwise").setLevel(logging.WARNING)     # hides progress and notes
    logging.getLogger("maskwise").addHandler(my_handler)        # sends them elsewhere, too

Texts, names and paths are data of users and of strangers. ``Terminal`` replaces their control
characters, and never parses them as markup. If the reader of a stream has gone, as in
``maskwise list policies | head``, the rest of the output is dropped, and the work goes on: its
exit code still says whether it succeeded.
"""

from __future__ import annotations

import io
import json
import logging
import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from maskwise.base.errors import is_visible, visible

LINE_SECONDS = 60.0
"""Seconds between two plain lines of progress if stderr is not a terminal."""


_RESULTS: list[IO[str]] = []
"""The real stdout in ``results_only``."""


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

    @property
    def file(self) -> IO[str]:
        if _RESULTS and self._file is None and not self.stderr:
            return _RESULTS[-1]
        return super().file

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

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


@contextmanager
def results_only() -> Iterator[None]:
    """A context in which only maskwise prints to stdout. Prints of others go to stderr.

    A plug-in may print, and a program that reads the JSON of a command must not find this in it.
    """
    before = sys.stdout
    _RESULTS.append(before)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = before
        _RESULTS.pop()


def say(text: str, style: str = "", *, to: Console | None = None) -> None:
    """Print a line without wrapping it, by default to stdout."""
    (to or out_console).print(text, style=style, soft_wrap=True)


def warn(text: str, style: str = "yellow") -> None:
    """Print a line to stderr."""
    say(text, style, to=err_console)


class ToStderr(logging.Handler):
    """Print log records to stderr, above a progress bar if there is one. Warnings are red."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "red" if record.levelno >= logging.WARNING else ""
        say(self.format(record), style, to=err_console)


LOGGER = logging.getLogger("maskwise")
# A level that the user has set, before or after this module is imported, stays.
if LOGGER.level == logging.NOTSET:
    LOGGER.setLevel(logging.INFO)
if not LOGGER.handlers:
    LOGGER.addHandler(ToStderr())
# Otherwise every line would appear twice where the root logger has a handler.
LOGGER.propagate = False


def note(lines: Iterable[str]) -> None:
    """Log lines at the level INFO."""
    for line in lines:
        LOGGER.info("%s", line)


def shows_progress() -> bool:
    """Return whether progress is shown, which is logged at the level INFO."""
    return LOGGER.isEnabledFor(logging.INFO)


@contextmanager
def quietly() -> Iterator[None]:
    """Hide progress and notes, of work that is a part of larger work with its own progress."""
    before = LOGGER.level
    LOGGER.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        LOGGER.setLevel(before)


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
    """Print a value as JSON to stdout, in ASCII if the encoding of stdout lacks a character."""
    # rich would wrap and colour lines.
    stdout = out_console.file
    text = json_text(value, indent=1)
    try:
        text.encode(getattr(stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        # The stream itself would write \xeb, which is no JSON.
        text = "".join(char if char.isascii() else json.dumps(char)[1:-1] for char in text)
    try:
        stdout.write(text + "\n")
    except BrokenPipeError:
        let_go(stdout)


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
