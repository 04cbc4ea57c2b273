"""The command line. Every command is a function with typed arguments.

This module registers the commands. For bad input it prints a one-line error and exits with code 2.
The module ``runs`` has the commands that write a folder, ``views`` has the commands that only read,
and ``terminal`` has common options and output. Commands import the library when they run, so
``--help`` is fast.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import re
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from signal import SIGINT
from typing import Annotated, Any, NoReturn

import typer
from rich.padding import Padding
from rich.text import Text

from maskwise import __version__
from maskwise.base.constants import rank_here
from maskwise.base.errors import (
    MaskwiseError,
    OtherProcessFailed,
    command_line,
    shell_word,
    shell_words,
    shortened,
    tidy_warnings,
)
from maskwise.base.plugins import mistake_of
from maskwise.base.printing import (
    err_console,
    flush,
    is_read,
    json_text,
    let_go,
    open_streams,
    out_console,
    results_only,
    say,
)
from maskwise.base.signals import ASKED, CODES, KEPT, AskedToLeave, SignalWatch
from maskwise.cli import runs, views
from maskwise.cli.progress import status
from maskwise.jobs.pools import ended_by, one_line
from maskwise.jobs.torchrun import fails_first

app = typer.Typer(
    name="maskwise",
    pretty_exceptions_enable=False,
    # In Markdown, a line break in a docstring is a space.
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
FIRST_STEPS = {
    'maskwise inspect "Marie Curie was born in Warsaw in 1867."': "show masks, without any "
    "training",
    "maskwise check my_texts.txt": "show what a study would train on your text, how long it would "
    "take, and warnings",
    "maskwise new my_texts.txt my_labels.csv": "write a recipe for your text and your labels",
    "maskwise study my_texts.yaml --out runs/mine": "compare ways to mask, and write a verdict "
    "and a page",
    "maskwise adapt bundled:encoder my_texts.txt --task my_labels.csv": "find out whether further "
    "training of a model helps",
    "maskwise list recipes": "list recipes; also policies, schedules, objectives, tasks, …",
}


def begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Pre-train masked language models well: choose what to mask, and learn which choice is worth
    it.
    """
    if version:
        say(f"maskwise {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is not None:
        return
    say("maskwise compares ways to mask text in pre-training and further training.\n")
    say("Where to begin", "bold")
    for command, purpose in FIRST_STEPS.items():
        say(f"  {command}", "cyan")
        out_console.print(Padding(Text(purpose, "dim"), (0, 0, 0, 6)))
    # typer's type of the context is that of any command, with or without subcommands.
    commands = context.command.commands  # type: ignore[attr-defined]
    names = ", ".join(name for name, command in commands.items() if not command.hidden)
    say(f"\nCommands: {names}. All commands have --help.")


app.callback(invoke_without_command=True)(begin)
for command in (
    views.check,
    runs.new,
    runs.adapt,
    runs.study,
    runs.pretrain,
    runs.finetune,
    runs.learn,
    runs.annotate,
    runs.export,
    runs.convert,
    runs.change,
    views.evaluate,
    views.generate,
    views.inspect,
    status,
    views.report,
    views.compare,
):
    app.command()(results_only()(command))
app.command("list")(results_only()(views.list_names))

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EBADF)
"""Errors of the operating system for failed writes, such as on a full disk."""

NO_MEMORY = "out of memory"
MORE_MEMORY = "use less text, shorter rows or smaller batches, or a machine with more memory"

RESUMED = ("study", "adapt", "pretrain", "finetune", "learn", "annotate")
"""Commands that resume interrupted work."""

INTERRUPTED = 128 + SIGINT
"""Exit code after Ctrl-C, as in shells."""


@command_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    The exit code is 2 for bad input (with a one-line error), 130 after Ctrl-C, 143 after SIGTERM
    and 138 after SIGUSR1. After a signal, the process ends, also if this function was called from
    Python.

    Args:
        arguments: the arguments of the command line; None for ``sys.argv``.
    """
    _collect_rarely()
    watch = SignalWatch([*ASKED, SIGINT], partial(_say_goodbye, arguments))
    open_streams()
    tidy_warnings()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # By default, huggingface_hub prints a line for every failed attempt.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    given = sys.argv[1:] if arguments is None else arguments
    try:
        try:
            code = app(args=given, standalone_mode=False, prog_name="maskwise")
            flush()
        finally:
            # What fails after a signal may fail because of it.
            watch.stay()
            if arguments is not None:
                watch.close()
    except (KeyboardInterrupt, typer.Abort):
        # After Ctrl-C, some versions of typer raise an exception, and others return the code.
        code = INTERRUPTED
    except SystemExit as end:
        code = end.code
        # typer exits with 1 if the reader of what it prints itself has gone.
        if isinstance(end.__context__, BrokenPipeError):
            if not is_read(sys.stdout):
                let_go(sys.stdout)
                code = 0
        elif not isinstance(end, AskedToLeave) and not _is_of_typer(end):
            _fail(str(ended_by(end)))
    except MaskwiseError as error:
        _fail(str(error), quotes=isinstance(error, OtherProcessFailed))
    except OSError as error:
        if error.filename is None and error.errno not in DISK:
            _crash(error)
        if error.filename is None:
            let_go(sys.stdout)
        what = shortened(error.filename or "the output could not be written")
        _fail(f"{what}: {error.strerror}")
    except MemoryError as error:
        # Libraries say how much they asked for.
        parts = (NO_MEMORY, shortened(str(error)), MORE_MEMORY)
        _fail("; ".join(filter(None, parts)))
    except Exception as error:
        # torch raises a RuntimeError of its own.
        if "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error):
            _fail(f"{NO_MEMORY}; {shortened(str(error))}; {MORE_MEMORY}")
        # typer does not export the class of usage errors, which have this method.
        if not hasattr(error, "format_message"):
            _crash(error)
        _fail(_usage_words(error, given))
    if code in CODES:
        _say_goodbye(arguments, code)
    # Libraries look at the code when Python exits, and some take no bool.
    sys.exit(int(code) if isinstance(code, int) else 0)


def _is_of_typer(end: SystemExit) -> bool:
    """Return whether typer itself ends the program, as it does when a shell asks to complete."""
    *_, (frame, _line) = traceback.walk_tb(end.__traceback__)
    return frame.f_globals["__name__"].startswith("typer.")


def _say_goodbye(arguments: Sequence[str] | None, code: int) -> None:
    """Say that a signal ends the command, and what is kept."""
    if rank_here():
        return
    # A terminal shows ^C.
    ended = "\ninterrupted" if code == INTERRUPTED else f"ended by {CODES[code]}"
    err_console.print(f"{ended}; {_kept(arguments)}", soft_wrap=True)
    # A progress bar may have hidden it.
    err_console.show_cursor()


def _collect_rarely() -> None:
    """Look for garbage less often than by default, and not when Python exits.

    torch and transformers make objects that stay until then. To go through them again and again
    takes a third of the time of a short command.
    """
    gc.set_threshold(10_000, 100, 10)
    atexit.register(gc.freeze)


def _kept(arguments: Sequence[str] | None) -> str:
    """Return a sentence that says what an interrupted command saved, and how to continue."""
    if arguments is None:
        arguments = sys.argv[1:]
    again = shell_words(["maskwise", *arguments])
    if not arguments or arguments[0] not in RESUMED or "--dry-run" in arguments:
        return f"nothing is left half-written; run the command again: {again}"
    kept = KEPT.format(work="command")
    # Under torchrun, the arguments are only a part of the command.
    if "WORLD_SIZE" not in os.environ:
        kept += f": {again}"
    return kept


SECTIONS = {"finetune": "finetune.", "export": "masking."}
"""The sections whose settings some commands take without the name of the section."""


def _usage_words(error: Any, given: Sequence[str]) -> str:
    """Return the words of a usage error, with the help of an option that is missing.

    A setting that is written as an option is shown as it is given.
    """
    words = str(error.format_message())
    unknown = getattr(error, "option_name", "")
    # An option that lacks its value has a name, too, and no possibilities.
    if unknown and error.ctx and hasattr(error, "possibilities"):
        if unknown == "--dry-run":
            return f"{error.message}; maskwise check shows the plan of a recipe, or of files"
        setting = _setting_of(unknown.lstrip("-").replace("-", "_"), error.ctx.command)
        if setting is None:
            return words
        value = _value_of(unknown, given)
        singular = unknown.removesuffix("s")
        near = f"did you mean {singular}? " if singular in error.possibilities else ""
        return f"{error.message}; {near}settings are given as {shell_word(f'{setting}={value}')}"
    missing = getattr(error, "param", None)
    explained = getattr(missing, "help", None)
    if error.message or not explained:
        return words
    lines = [f"{words.removesuffix('.')}: {explained}"]
    # typer stops at the first option that is missing.
    names = {word.partition("=")[0] for word in given}
    for other in error.ctx.command.params:
        is_option = other.required and other.param_type_name == "option"
        if is_option and other is not missing and names.isdisjoint(other.opts):
            lines.append(f"Missing option '{other.opts[0]}': {other.help}")
    return " ".join(lines)


def _value_of(option: str, given: Sequence[str]) -> str:
    """Return the value of an option as an override writes it; "…" if it has none."""
    for word, after in zip(given, [*given[1:], "…"], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            value = value if equals else after
            # A comma or a quotation mark would end the text.
            return value if re.fullmatch(r"[\w.…-]*", value) else json_text(value)
    return "…"


def _setting_of(name: str, command: Any) -> str | None:
    """Return a setting of a command with the name of an option that it lacks, or None."""
    if not {"overrides", "settings", "more"} & {each.name for each in command.params}:
        return None
    from maskwise.recipe.described import recipe_keys

    if name in ("runs", "seed", "seeds"):
        name = "seeds" if command.name == "study" else "seed"
    section = SECTIONS.get(command.name, "")
    known = [key for key in recipe_keys() if key.startswith(section)]
    if f"{name}s" in known:
        return f"{name}s"
    found = [key for key in known if name in (key, key.rpartition(".")[2])]
    # Most settings that are asked for are of training.
    first = "study." if name == "seeds" else "training."
    for key in sorted(found, key=lambda key: not key.startswith(first)):
        return key.removeprefix(section)
    return None


def _fail(line: str, *, quotes: bool = False) -> NoReturn:
    """Exit with code 2 and an error in one line.

    Args:
        line: the error.
        quotes: whether it is the error of another process of torchrun.
    """
    # Of the processes of torchrun, one prints the error.
    if fails_first(quotes=quotes):
        say(f"maskwise: {_which()}{' '.join(line.split())}", "red", to=err_console)
    sys.exit(2)


def _crash(error: Exception) -> NoReturn:
    """Exit with code 1 and the traceback of an unexpected error, as Python does.

    An error in the code of a plug-in is one line, and the code is 2. Of the processes of torchrun,
    one prints it, and the others a line.
    """
    if mistake := mistake_of(error):
        _fail(str(mistake))
    if fails_first(quotes=False):
        raise error
    say(f"maskwise: {_which()}failed, too: {one_line(error)}", "red", to=err_console)
    sys.exit(1)


def _which() -> str:
    return f"process {rank_here()}: " if rank_here() else ""


__all__ = ["app", "main"]
