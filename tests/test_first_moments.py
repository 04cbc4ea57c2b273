"""A command that meets a fault in its first moments goes on, or begins again, by the same command.

In a copy of this process, something happens right after one of the command's operations on the
output folder (a folder made, a lock or a file opened for writing, a renaming, a removal): the
process dies without any clean-up (``os._exit``); or the operation itself fails, as on a full disk.
Then the same command runs to the end, and its results must be those of a command without a fault.
"""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from maskwise.base.folders import file_hash
from maskwise.jobs import pools
from processes import PATIENCE, SamePool, forked
from test_supervised import recipe as learning
from tiny import maskwise, read_lines, write_inputs

KILLED = 9
WRITES = ("mkdir", "replace", "rename", "symlink")
REMOVALS = ("unlink", "rmdir")
for name in ("studies.run", "studies.single", "learning.lesson", "report", "annotate.run"):
    import_module(f"maskwise.{name}")  # here, and not in each copy of this process


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    (folder / "learn").mkdir()
    learning(folder / "learn")
    return folder


def commands(inputs: Path) -> dict[str, list[Any]]:
    short = ["training.steps=4", "training.eval_every=2", "training.save_every=2"]
    recipe = inputs / "recipe.yaml"
    task = inputs / "task.jsonl"
    adapting = ["--steps", 2, "--runs", 2, "finetune.steps=2", "training.precision=no"]
    adapting += ["corpus.held_out=0.2"]
    tuning = ["--runs", 2, "steps=2", "precision=no"]
    return {
        "pretrain": ["pretrain", recipe, *short],
        "finetune": ["finetune", "bundled:encoder", "--task", task, *tuning],
        "learn": ["learn", inputs / "learn" / "learn.yaml", "learning.supervised.training.steps=4"],
        "annotate": ["annotate", inputs / "corpus.jsonl", "--with", "words"],
        "study": ["study", recipe, *short, "study.seeds=1", "finetune.seeds=1", "finetune.steps=2"],
        "adapt": ["adapt", "bundled:encoder", inputs / "corpus.jsonl", "--task", task, *adapting],
    }


def fault_at(out: Path, place: int, fault: str, *arguments: Any) -> int:
    """Run a command that meets a fault at one of its operations on the folder.

    Args:
        place: the number of the operation, from 1; 0 for no fault.
        fault: "kill" to die right after the operation, or "full" to let it fail.

    Returns:
        The number of operations.
    """
    count = 0
    os_open, io_open = os.open, io.open

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def writes(path: Any, *rest: Any) -> bool:
            if not isinstance(path, str | os.PathLike) or str(out) not in os.fspath(path):
                return False
            if function is os_open:
                return bool(rest[0] & os.O_CREAT)
            return function is not io_open or bool({*"wax"} & {*str(rest[:1])})

        def call(path: Any, *rest: Any, **more: Any) -> Any:
            nonlocal count
            if not writes(path, *rest):
                return function(path, *rest, **more)
            if fault == "full" and count + 1 == place:
                count += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
            result = function(path, *rest, **more)
            # What fails by itself, such as a folder whose parent is missing, changes nothing.
            count += 1
            if fault == "kill" and count == place:
                os._exit(KILLED)
            return result

        return call

    for name in WRITES if fault == "full" else WRITES + REMOVALS:
        setattr(os, name, counted(getattr(os, name)))
    os.open, io.open = counted(os_open), counted(io_open)
    if fault == "kill":
        # It removes files by names relative to an open folder.
        shutil.rmtree = counted(shutil.rmtree)
    pools.ENGINES["local"] = SamePool  # workers would do their operations elsewhere
    code = maskwise(*arguments, "--out", out)
    assert code == 0 or (fault == "full" and code in (1, 2)), code
    return count


def met(out: Path, place: int, fault: str, *arguments: Any) -> bool:
    """Whether a command in a copy of this process met its fault, and said so in one line."""
    context = multiprocessing.get_context("fork")
    said = out.with_name(f"{out.name}-said.txt")

    def child() -> None:
        quiet = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        met = fault_at(out, place, fault, *arguments) >= place
        os._exit(0 if met else 1)

    process = context.Process(target=child)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode in (0, 1, KILLED)
    assert "Traceback" not in said.read_text()
    return process.exitcode == (KILLED if fault == "kill" else 0)


def results(out: Path) -> dict[str, Any]:
    """Weights, layers, records and verdicts of a folder, without times."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        assert not name.endswith(".partial"), name
        if "resume" in name or ("stages" in path.parts and path.suffix != ".safetensors"):
            continue
        if path.suffix in (".safetensors", ".parquet"):
            found[name] = file_hash(path)
        elif path.name == "records.jsonl":
            found[name] = list(map(timeless, read_lines(path)))
        elif path.name == "summary.json":
            found[name] = timeless(json.loads(path.read_text()).get("contrasts"))
    assert found
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if "seconds" not in k and k != "model"}
    if isinstance(value, list):
        return list(map(timeless, value))
    return value


def check(
    name: str, inputs: Path, folder: Path, places: range | list[int], fault: str = "kill"
) -> int:
    """Let a command meet faults at these places, and run it again. Returns how many it met."""
    arguments = commands(inputs)[name]
    whole = folder / "whole"
    forked(fault_at, whole, 0, "", *arguments)()
    expected = results(whole)
    count = 0
    for place in places:
        out = folder / f"{fault}-{place}"
        if not met(out, place, fault, *arguments):
            break
        count += 1
        forked(fault_at, out, 0, "", *arguments)()
        assert results(out) == expected, f"{name}: {fault} at operation {place}"
    return count


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "fault", "places"),
    [
        ("pretrain", "kill", [3]),
        pytest.param("finetune", "kill", [2, 9], marks=pytest.mark.slow),
        pytest.param("learn", "kill", [2], marks=pytest.mark.slow),
        ("annotate", "kill", [2, 4]),
        ("pretrain", "full", [5]),
        ("annotate", "full", [3]),
    ],
)
def test_a_command_that_meets_a_fault_at_once_can_be_repeated(
    name: str, fault: str, places: list[int], inputs: Path, tmp_path: Path
) -> None:
    assert check(name, inputs, tmp_path, places, fault) == len(places)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("fault", ["kill", "full"])
@pytest.mark.parametrize("name", ["pretrain", "finetune", "learn", "annotate", "study", "adapt"])
def test_a_command_that_meets_a_fault_anywhere_at_its_beginning_can_be_repeated(
    name: str, fault: str, inputs: Path, tmp_path: Path
) -> None:
    places = range(1, 41) if fault == "kill" else range(1, 41, 3)
    count = check(name, inputs, tmp_path, places, fault)
    print(f"{name}: {count} places, {fault}")
    assert count > 3


# --- real signals


def struck(out: Path, changes: int, number: int, *arguments: Any) -> int | None:
    """Run a command, and send it a signal when the content of its folder has changed so often.

    Returns:
        The exit code; negative if the signal killed the process.
    """
    context = multiprocessing.get_context("fork")
    said = out.with_name(f"{out.name}-said.txt")

    def child() -> None:
        quiet = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        pools.ENGINES["local"] = SamePool
        os._exit(maskwise(*arguments, "--out", out))

    process = context.Process(target=child)
    process.start()
    seen: list[tuple[str, int]] = []
    while process.is_alive():
        now = content_of(out)
        if now != seen:
            seen = now
            changes -= 1
        if changes < 0:
            os.kill(process.pid or 0, number)
            break
        time.sleep(0.001)
    process.join(PATIENCE)
    assert "Traceback" not in said.read_text(), said.read_text()
    return process.exitcode


def content_of(out: Path) -> list[tuple[str, int]]:
    """The names and sizes of all files and folders below a folder."""
    found = []
    # Files and folders may be renamed or removed at this moment.
    for folder, _, names in os.walk(out):
        found.append((folder, 0))
        for name in names:
            path = os.path.join(folder, name)
            with suppress(OSError):
                found.append((path, os.stat(path).st_size))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("name", ["pretrain", "finetune", "learn", "annotate", "study", "adapt"])
def test_a_command_that_gets_ten_signals_ends_with_the_same_results(
    name: str, inputs: Path, tmp_path: Path
) -> None:
    arguments = commands(inputs)[name]
    forked(fault_at, tmp_path / "whole", 0, "", *arguments)()
    out = tmp_path / "struck"
    draw = random.Random(name)
    codes = []
    for number in (signal.SIGKILL, signal.SIGTERM) * 5:
        # Annotation has few steps, and is soon done.
        changes = draw.randrange(3 if name == "annotate" else 9)
        codes.append(struck(out, changes, number, *arguments))
    print(name, codes)
    # A signal may come before its handler is installed.
    assert set(codes) <= {-signal.SIGKILL, -signal.SIGTERM, 143, 0} and any(codes)
    forked(fault_at, out, 0, "", *arguments)()
    assert results(out) == results(tmp_path / "whole")
