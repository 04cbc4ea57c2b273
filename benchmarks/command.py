"""Helpers of the benchmarks: the command line, memory, and processor time."""

from __future__ import annotations

import functools
import json
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def run(main: Callable[..., object], about: str | None) -> None:
    """Run ``main`` as a command, and print the result as JSON.

    An error in the user's input ends it with one line and exit code 2.

    Args:
        main: a function whose parameters become arguments and options.
        about: the text of ``--help``.
    """
    # This import is not at the top, because a machine on which gpu.py runs may lack typer.
    import typer

    @functools.wraps(main)
    def printed(*args: object, **options: object) -> None:
        with in_one_line():
            result = main(*args, **options)
        if result is not None:
            sys.stdout.write(json.dumps(result, indent=1) + "\n")

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=about)(printed)
    app()


@contextmanager
def in_one_line() -> Iterator[None]:
    """A context in which an error in the user's input ends the process with one line."""
    # On a machine with a GPU, gpu.py sets the path of maskwise first.
    from maskwise.base.errors import MaskwiseError

    try:
        yield
    except (MaskwiseError, FileNotFoundError, NotADirectoryError) as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {error}\n")
        raise SystemExit(2) from None


def memory(name: str) -> float:
    """Return the memory of this process in MiB, from /proc (only on Linux).

    Args:
        name: "VmHWM" for the peak memory, or "VmRSS" for the current memory. "VmRSS" also resets
            the peak.
    """
    if name == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def worked() -> float:
    """Return the processor seconds of this process and its finished children."""
    seconds = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        use = resource.getrusage(who)
        seconds += use.ru_utime + use.ru_stime
    return seconds
