"""One place prints: no control character of data reaches a terminal, and a stream that nobody reads
is no error.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

import maskwise
from maskwise.base.errors import MaskwiseError, visible
from maskwise.base.printing import (
    LOGGER,
    Terminal,
    json_text,
    note,
    open_streams,
    print_json,
    quietly,
    shows_progress,
)
from maskwise.cli import main
from maskwise.cli.terminal import print_table
from maskwise.training.log import ProgressBar
from processes import PATIENCE

ROOT = Path(maskwise.__file__).parent
HOSTILE = "\x1b[2J\x07\x9b31m\u202e\u2028\x7f"
"""Clears the screen, rings, colours, reverses a line, and separates lines."""
RAW = {char for char in HOSTILE if not char.isprintable()}


def printing(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that print, or that make a console."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            # The methods of the one terminal are fine.
            ours = name.startswith(("out_console.", "err_console.", "self.console.", "console."))
            if name.split(".")[-1] in ("print", "echo", "secho", "Console") and not ours:
                yield node.lineno
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"):
            yield node.lineno


def test_only_one_module_prints() -> None:
    found = []
    for path in ROOT.rglob("*.py"):
        if path.name != "printing.py":
            lines = printing(ast.parse(path.read_text(encoding="utf-8")))
            found += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
    allowed = {"cli/__init__.py": 3, "cli/terminal.py": 1}
    counts = dict.fromkeys(allowed, 0)
    for place in found:
        file = place.partition(":")[0]
        assert file in allowed, f"{place} prints; use maskwise.base.printing"
        counts[file] += 1
    # The command line asks whether stdout is read, and lets go of it; a table in a pipe is printed
    # by a wider terminal.
    assert all(counts[file] <= most for file, most in allowed.items()), found


def test_a_control_character_does_not_narrow_the_column_of_a_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(("", "masks"), [("a\x1b[31m", "token")])
    assert "a·[31m  token" in capsys.readouterr().out


def test_every_character_that_is_not_printable_is_judged() -> None:
    """Only spaces, marks and joiners remain; letters of every script do."""
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        category = unicodedata.category(char)
        if category in ("Cc", "Cs", "Zl", "Zp") and char not in "\n\t":
            assert visible(char) == "·"
        elif category[0] in "LNPS":
            assert visible(char) == char
    assert visible("👩\u200d🔬 naïve\u00a0日本\u3000") == "👩\u200d🔬 naïve\u00a0日本\u3000"
    assert not RAW & set(visible(HOSTILE))


def test_json_keeps_what_a_terminal_must_not_print() -> None:
    value = {"name": HOSTILE + "caf\udce9", "tag": "\U000e0041"}
    text = json_text(value, indent=1)
    assert json.loads(text) == value
    assert not RAW & set(text) and text.isascii()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"café": "Zoë 日本 👩"}
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    open_streams()
    print_json(value)
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)
    assert json.loads(text) == value and text.isascii() is (encoding != "utf-8")


def test_errors_and_warnings_are_clean() -> None:
    error = MaskwiseError(f"a{HOSTILE}b", got=HOSTILE, allowed=HOSTILE, do=HOSTILE)
    assert not RAW & set(str(error))


def test_markup_in_names_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(width=80).print("[/] [red]x")
    assert capsys.readouterr().out == "[/] [red]x\n"
    # A bar with such a title does not fail.
    with ProgressBar("[/]", 3).bar:
        pass


def test_a_line_a_minute_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("maskwise.training.log.LINE_SECONDS", 0.0)
    for hidden in (False, True):
        progress = ProgressBar("learning [x]", 10, 2, hidden=hidden)
        progress.advance()
        shown = capsys.readouterr().err
        assert shown.startswith("learning [x]: step 3 of 10") is not hidden


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("title", ["token 0.15", "mometas over mlm, clm, cse and a long name"])
def test_a_bar_never_cuts_steps_and_time(
    width: int, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 80 columns, a note cut "4/400" to "…", and the time left to "0…"."""
    console = Terminal(width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr("maskwise.training.log.err_console", console)
    progress = ProgressBar(title, 400)
    for _ in range(4):
        progress.advance()
    progress.note("1,592 tokens/s, 0.5 GiB", loss=6.15, ratio=0.151, padding=0.0107)
    with console.capture() as capture:
        console.print(progress.bar.get_renderable())
    [line] = capture.get().splitlines()
    assert "4/400" in line and re.search(r"\d:\d\d:\d\d|-:--:--", line)
    assert ("loss 6.15" in line) is (width >= 60)
    assert len(line) <= width


# Streams
# ---------------------------------------------------------------------------------------------


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash; ``$M`` is maskwise."""
    command = f"{sys.executable} -m maskwise"
    return subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "M": command, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


COMMANDS = (
    "list policies",
    *(
        pytest.param(command, marks=pytest.mark.slow)
        for command in ("", "--help", "--version", "list recipes --json", "study --help")
    ),
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.process
def test_a_closed_pipe_ends_quietly_with_0(command: str) -> None:
    # ``false`` ends at once, and the loop waits until nobody reads the pipe any more.
    done = run(f"(sleep 1; exec $M {command}) | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "command",
    [
        "list policies",
        pytest.param("--version", marks=pytest.mark.slow),
        pytest.param("list recipes --json", marks=pytest.mark.slow),
    ],
)
@pytest.mark.process
def test_a_closed_stream_is_no_traceback(command: str) -> None:
    done = run(f"$M {command} >&-")
    assert (done.returncode, done.stderr) == (0, "")
    done = run(f"$M {command} 2>&-")
    assert done.returncode == 0 and done.stdout
    done = run("$M list nothing >&- 2>&-")
    assert done.returncode == 2


@pytest.mark.process
def test_a_reader_of_progress_that_leaves_does_not_stop_the_work(tmp_path: Path) -> None:
    """The work goes on, and so does its exit code."""
    page = tmp_path / "page.html"
    done = run(f"($M inspect Curie --html {page} | true; exit ${{PIPESTATUS[0]}}) 2>&1")
    assert done.returncode in (0, 2) and "Traceback" not in done.stdout


@pytest.mark.process
def test_a_full_disk_is_one_line() -> None:
    done = run("$M list policies > /dev/full")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "could not be written" in done.stderr


@pytest.mark.process
def test_an_encoding_without_these_letters() -> None:
    done = run("PYTHONIOENCODING=ascii $M list schedules")
    assert done.returncode == 0 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error", [MemoryError(), MemoryError("8 GiB"), RuntimeError("x: can't allocate memory: y")]
)
def test_no_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("maskwise.cli.views.describe_table", fail)
    with pytest.raises(SystemExit) as end:
        main(["list", "policies"])
    line = capsys.readouterr().err
    assert end.value.code == 2
    assert line.count("\n") == 1 and "out of memory" in line and str(error) in line


# The logger
# ----------------------------------------------------------------------------


def test_notes_go_to_stderr_and_to_handlers_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    LOGGER.addHandler(handler)
    try:
        note(["100 % [red] of it \x1b[31m"])
    finally:
        LOGGER.removeHandler(handler)
    assert heard == ["100 % [red] of it \x1b[31m"]
    # A terminal must not get control characters.
    assert capsys.readouterr().err == "100 % [red] of it ·[31m\n"


def test_a_higher_level_hides_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with quietly():
        assert not shows_progress()
        note(["hidden"])
        LOGGER.warning("shown")
    assert shows_progress()
    assert capsys.readouterr().err == "shown\n"


def test_a_level_of_the_user_is_not_lowered() -> None:
    LOGGER.setLevel(logging.ERROR)
    try:
        with quietly():
            assert LOGGER.level == logging.ERROR
        assert LOGGER.level == logging.ERROR
    finally:
        LOGGER.setLevel(logging.INFO)


def test_a_level_that_is_set_before_the_import_stays() -> None:
    code = (
        "import logging; logging.getLogger('maskwise').setLevel('ERROR');"
        "from maskwise.base.printing import LOGGER; print(LOGGER.level)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{logging.ERROR}\n"
