"""A command that is killed in its first moments goes on, or begins again, by the same command.

In a copy of this process, the command dies without any clean-up (``os._exit``) right after one of
its operations on the output folder: a folder made, a lock or a file opened for writing, a renaming.
Then the same command runs to the end, and its results must be those of a command that was never
killed.
"""

from __future__ import annotations

import builtins
import io
import json
import multiprocessing
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from maskwise.folders import file_hash
from processes import PATIENCE, forked
from test_supervised import recipe as learning
from tiny import maskwise, read_lines, write_inputs

KILLED = 9
OPERATIONS = ("mkdir", "replace", "rename")
for name in ("study.run", "study.single", "learning.run", "report", "annotate.run"):
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
    adapting = ["training.steps=2", "finetune.steps=2", "study.seeds=2", "training.precision=no"]
    tuning = ["--seeds", 2, "steps=2", "precision=no"]
    return {
        "pretrain": ["pretrain", recipe, *short],
        "finetune": ["finetune", "bundled:encoder", "--task", task, *tuning],
        "learn": ["learn", inputs / "learn" / "learn.yaml", "learning.supervised.training.steps=4"],
        "annotate": ["annotate", inputs / "corpus.jsonl", "--with", "words"],
        "study": ["study", recipe, *short, "study.seeds=1", "finetune.seeds=1", "finetune.steps=2"],
        "adapt": ["adapt", "bundled:encoder", inputs / "corpus.jsonl", "--task", task, *adapting],
    }


def die_after(out: Path, most: int, *arguments: Any) -> int:
    """Run a command; exit after ``most`` operations on the folder. Returns their number."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **more: Any) -> Any:
            nonlocal count
            if not isinstance(path, str | os.PathLike) or str(out) not in os.fspath(path):
                return function(path, *rest, **more)
            result = function(path, *rest, **more)
            reads = function in (io.open, builtins.open) and not {*"wax"} & {*str(rest[:1])}
            if not (reads or (function is os_open and not rest[0] & os.O_CREAT)):
                count += 1
                if count == most:
                    os._exit(KILLED)
            return result

        return call

    os_open = os.open
    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    os.open = counted(os_open)
    io.open = counted(io.open)
    code = maskwise(*arguments, "--out", out)
    assert code == 0, code
    return count


def killed(out: Path, most: int, *arguments: Any) -> bool:
    """Whether a command in a copy of this process died after so many operations."""
    context = multiprocessing.get_context("fork")

    def child() -> None:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        die_after(out, most, *arguments)
        os._exit(0)

    process = context.Process(target=child)
    process.start()
    process.join(PATIENCE)
    return process.exitcode == KILLED


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


def check(name: str, inputs: Path, folder: Path, points: range | list[int]) -> int:
    """Kill a command at these points, and run it again. Returns how often it was killed."""
    arguments = commands(inputs)[name]
    whole = folder / "whole"
    forked(die_after, whole, 0, *arguments)()
    expected = results(whole)
    deaths = 0
    for point in points:
        out = folder / f"killed-{point}"
        if not killed(out, point, *arguments):
            break
        deaths += 1
        forked(die_after, out, 0, *arguments)()
        assert results(out) == expected, f"{name}, killed after {point} operations"
    return deaths


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "points"),
    [("pretrain", [3]), ("finetune", [2, 9]), ("learn", [2]), ("annotate", [2, 4])],
)
def test_a_command_that_is_killed_at_once_can_be_repeated(
    name: str, points: list[int], inputs: Path, tmp_path: Path
) -> None:
    assert check(name, inputs, tmp_path, points) == len(points)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("name", ["pretrain", "finetune", "learn", "annotate", "study", "adapt"])
def test_a_command_that_is_killed_anywhere_at_its_beginning_can_be_repeated(
    name: str, inputs: Path, tmp_path: Path
) -> None:
    assert check(name, inputs, tmp_path, range(1, 31)) > 8
