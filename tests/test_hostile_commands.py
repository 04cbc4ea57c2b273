"""Hostile command lines: each is refused in one line, or does what it says, and leaves no traces.

``scripts/hostile_commands.py`` makes and runs them. A few run here, and all of them among the slow
tests.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from maskwise.cli import app

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "hostile_commands.py"
FEW = 36


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def run(script, numbers: range) -> None:
    counts, bad = script["run_all"](numbers)
    assert not bad, "\n".join(bad)
    # Some commands are good in spite of everything, or test that commands end well, too.
    assert counts["exit 0"] and counts["exit 2"] > counts["exit 0"], counts


@pytest.mark.process  # a study and a training make its files, so it has no time limit of seconds
def test_a_hostile_command_is_refused_or_does_what_it_says(script):
    run(script, range(FEW))


@pytest.mark.slow
def test_all_hostile_commands(script):
    run(script, range(FEW, script["COMMANDS"]))


def test_a_number_always_makes_the_same_command(script):
    command = script["command"]
    made = [command(number) for number in range(500)]
    assert made == [command(number) for number in range(500)]
    assert {words[0] for words in made if words} >= {*script["NAMES"]}


def test_every_command_is_tried(script):
    commands = {each.name or each.callback.__name__ for each in app.registered_commands}
    assert {*script["NAMES"]} == commands


BEFORE = {"a.txt": (3, 1)}


@pytest.mark.parametrize(
    ("code", "err", "after", "said"),
    [
        (2, "maskwise: no such file\n", BEFORE, ""),
        (2, "Looking …\nmaskwise: no such file\n", BEFORE, ""),
        (2, "no such file\n", BEFORE, "the last line is"),
        (2, "maskwise: \n", BEFORE, "the last line is"),
        (2, "maskwise: one\nmaskwise: two\n", BEFORE, "the last line is"),
        (2, "maskwise: one\nmore\n", BEFORE, "the last line is"),
        (2, "maskwise: \x1b[31m\n", BEFORE, "prints"),
        (2, "Traceback (most recent call last):\nmaskwise: one\n", BEFORE, "code in stderr"),
        (0, "/a/b.py:3: UserWarning: old\n", BEFORE, "code in stderr"),
        (2, "maskwise: one\n", {**BEFORE, "out/study.json": (1, 1)}, "and leaves"),
        (2, "maskwise: one\n", {**BEFORE, "out/stages/a/done.json": (1, 1)}, ""),
        (2, "maskwise: one\n", {"a.txt": (4, 1)}, "and changes"),
        (2, "maskwise: one\n", {}, "and changes"),
        (0, "", {**BEFORE, "out/study.json": (1, 1)}, ""),
        (0, "", {**BEFORE, ".out.3.partial": (1, 1)}, "leaves"),
        (1, "failed: token-15, seed 0\n", BEFORE, ""),
        (1, "", BEFORE, "exit code 1"),
        (130, "", BEFORE, "exit code 130"),
    ],
)
def test_what_is_wrong_is_seen(code, err, after, said, script):
    found = script["wrong_with"](["study"], code, "", err, BEFORE, after)
    assert bool(found) == bool(said) and re.search(said, found)


def test_a_dry_run_that_leaves_a_file_is_seen(script):
    after = {**BEFORE, "out/study.json": (1, 1)}
    assert "dry run" in script["wrong_with"](["study", "--dry-run"], 0, "", "", BEFORE, after)
