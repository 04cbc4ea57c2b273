"""A signal ends commands and workers, wherever it arrives, with its code and in few words."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, field_validator
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import PreTokenizer

import maskwise as mw
from maskwise import cli
from maskwise.base import signals
from maskwise.base.folders import locked, write_folder, write_whole
from maskwise.base.signals import LEFT, held, leave_if_asked, temporary_folder
from maskwise.evaluation import HeldOut
from maskwise.jobs.pools import LocalPool
from processes import PATIENCE, in_group, runs, wait_for, worker_waits
from test_training import lines, run, same
from tiny import maskwise

FORK = multiprocessing.get_context("fork")
NUMBERS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
NOTICED = 2 * signals.WATCH_SECONDS
"""Seconds in which a signal that is not held would end the work."""
PROMPT = PATIENCE / 2
"""Work that does not end after a signal takes twice as many seconds."""

pytestmark = pytest.mark.process


def arrive(number: int = signal.SIGTERM, seconds: float = 1.0) -> None:
    """Get a signal in the middle of a call, and stay in it for a while."""
    os.kill(os.getpid(), number)
    for _ in range(round(100 * seconds)):
        time.sleep(0.01)


# Where exceptions are swallowed or become others


def in_a_validator() -> None:
    class Settings(BaseModel):
        value: int

        @field_validator("value")
        @classmethod
        def _check(cls, value: int) -> int:
            arrive()
            return value

    Settings(value=1)


def in_del() -> None:
    class Deleted:
        def __del__(self) -> None:
            arrive()

    Deleted()


def in_a_weak_reference() -> None:
    class Referred: ...

    referred = Referred()
    reference = weakref.ref(referred, lambda _: arrive())
    del referred
    assert reference() is None


def in_rust() -> None:
    class Splits:
        def pre_tokenize(self, text: Any) -> None:
            arrive()

    tokenizer = Tokenizer(WordLevel({"a": 0}, "a"))
    tokenizer.pre_tokenizer = PreTokenizer.custom(Splits())
    tokenizer.encode("a")


def in_code_that_catches_all() -> None:
    try:
        arrive()
    except BaseException:
        time.sleep(PATIENCE)


# Where Python waits


def soon() -> None:
    pid = os.getpid()
    threading.Timer(0.2, lambda: os.kill(pid, signal.SIGTERM)).start()


def in_sleep() -> None:
    soon()
    time.sleep(PATIENCE)


def in_wait_for_a_process() -> None:
    process = subprocess.Popen(["sleep", str(PATIENCE)])
    soon()
    process.wait()


def in_wait_for_a_future() -> None:
    soon()
    Future[None]().result()


def in_wait_for_a_queue() -> None:
    soon()
    queue.Queue[None]().get()


def in_wait_for_a_thread_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    soon()
    lock.acquire()


def in_wait_for_a_file_lock() -> None:
    fcntl.flock(os.open("lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)
    soon()
    locked(Path("lock"), wait=-1)


def in_c() -> None:
    """The main thread handles no signal until the call returns."""
    soon()
    time.sleep(0.1)
    large = np.ones((6000, 6000))
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        large = large @ large


PLACES = [
    *(in_a_validator, in_del, in_a_weak_reference, in_rust, in_code_that_catches_all),
    *(in_sleep, in_wait_for_a_process, in_wait_for_a_future, in_wait_for_a_queue),
    *(in_wait_for_a_thread_lock, in_wait_for_a_file_lock, in_c),
]


def ended(
    work: Callable[[], object], folder: Path, *, then: Callable[[int], object] = id
) -> tuple[int | None, str, float]:
    """Run work as a command, in a copy of this process that is in a folder of its own.

    Args:
        then: called with the number of the process after it began.

    Returns:
        The exit code, what it printed, and the seconds.
    """
    said = folder / "said.txt"

    def child() -> None:
        os.setsid()
        os.chdir(folder)
        quiet = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        cli.app = lambda **_: work()
        os._exit(maskwise("list", "policies"))

    began = time.monotonic()
    process = FORK.Process(target=child)
    process.start()
    then(process.pid or 0)
    process.join(PATIENCE)
    return process.exitcode, said.read_text(), time.monotonic() - began


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_ends_a_command_wherever_it_arrives(
    place: Callable[[], object], tmp_path: Path
) -> None:
    code, said, seconds = ended(place, tmp_path)
    assert code == 143 and seconds < PROMPT
    assert said.startswith("ended by SIGTERM; nothing is left half-written")
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", NUMBERS)
def test_each_signal_has_its_code(number: int, tmp_path: Path) -> None:
    code, said, _ = ended(lambda: arrive(number), tmp_path)
    assert code == 128 + number
    word = "interrupted" if number == signal.SIGINT else signal.Signals(number).name
    assert word in said and "Traceback" not in said


def test_what_fails_after_a_signal_is_no_error_of_the_user(tmp_path: Path) -> None:
    """Such as the end of a worker that got the signal, too."""

    def fails() -> None:
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError

    code, said, _ = ended(fails, tmp_path)
    assert code == 143 and "Error" not in said


def test_held_work_is_finished_first(tmp_path: Path) -> None:
    def saves() -> None:
        with held():
            arrive(signal.SIGUSR1, NOTICED)
            # The time limit of a job.
            arrive(signal.SIGTERM, NOTICED)
            with held():
                Path("inner").write_text("")
            Path("saved").write_text("")
        Path("later").write_text("")

    assert ended(saves, tmp_path)[0] == 138
    assert {path.name for path in tmp_path.iterdir()} == {"said.txt", "inner", "saved"}


def test_a_second_signal_of_a_kind_ends_held_work_unless_it_comes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon_again = 0.5
    monkeypatch.setattr(signals, "AGAIN_SECONDS", soon_again)

    def saves() -> None:
        with held():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            Path("goes on").write_text("")
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                time.sleep(0.1)
                os.kill(os.getpid(), signal.SIGTERM)

    code, _, seconds = ended(saves, tmp_path)
    assert code == 143 and soon_again <= seconds < soon_again + PROMPT
    assert (tmp_path / "goes on").exists()


def test_work_that_holds_looks_for_signals(tmp_path: Path) -> None:
    def looks() -> None:
        with held():
            leave_if_asked()
            os.kill(os.getpid(), signal.SIGTERM)
            leave_if_asked()
            time.sleep(PATIENCE)

    code, _, seconds = ended(looks, tmp_path)
    assert code == 143 and seconds < PROMPT


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["the command", "all processes"])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_worker_that_ends_is_no_failure_of_its_task(
    number: int, send: Callable[[int, int], None], tmp_path: Path
) -> None:
    begun = tmp_path / "begun"

    def waits() -> None:
        with LocalPool(jobs=1) as pool:
            list(pool.results(worker_waits, [str(begun)]))

    def signalled(pid: int) -> None:
        wait_for(begun.exists)
        send(pid, number)

    code, said, _ = ended(waits, tmp_path, then=signalled)
    assert code == 128 + number
    assert said.strip().count("\n") == 0 and "run the command again" in said
    wait_for(lambda: not runs(int(begun.read_text())))


@pytest.mark.parametrize("step", [4, 12])
def test_an_evaluation_that_a_signal_ends_is_repeated(step: int, tmp_path: Path) -> None:
    """In the middle of a run, and at its end."""
    whole, _ = run(tmp_path / "whole", eval_every=2)
    judge = HeldOut.__call__
    evaluated: list[int] = []

    def interrupted(self: HeldOut, *given: Any) -> Any:
        evaluated.append(1)
        if 2 * len(evaluated) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return judge(self, *given)

    def trains() -> None:
        HeldOut.__call__ = interrupted  # type: ignore[method-assign]
        run(tmp_path / "cut", eval_every=2)

    code, said, _ = ended(trains, tmp_path)
    assert code == 143 and f"SIGTERM: saved the state of step {step} " in said
    steps = [line["step"] for line in lines(tmp_path / "cut") if line["kind"] == "eval"]
    assert steps == list(range(2, step, 2))
    resumed, facts = run(tmp_path / "cut", eval_every=2)
    assert facts["resumed_at"] == step and same(whole, resumed)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_children_end_with_the_command(tmp_path: Path) -> None:
    groups: list[int] = []

    def waits() -> None:
        process = subprocess.Popen(["sleep", str(PATIENCE)])
        soon()
        process.wait()

    assert ended(waits, tmp_path, then=groups.append)[0] == 143
    wait_for(lambda: not in_group(groups[0]))


def test_no_file_is_left_half_written(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "new").write_text("2")
        (folder / "more").mkdir()
        arrive()

    def writes() -> None:
        write_whole(Path("whole"), "1")
        write_folder(Path("folder"), fill)

    write_folder(tmp_path / "folder", lambda folder: (folder / "old").write_text("1"))
    assert ended(writes, tmp_path)[0] == 143
    assert {path.name for path in tmp_path.iterdir()} == {"said.txt", "whole", "folder"}
    assert (tmp_path / "folder" / "old").exists()


def test_a_signal_between_two_renamings_loses_no_folder(tmp_path: Path) -> None:
    def writes() -> None:
        rename = Path.rename

        def slow(self: Path, target: Path) -> Path:
            arrive(seconds=NOTICED)
            return rename(self, target)

        Path.rename = slow  # type: ignore[assignment,method-assign]
        write_folder(Path("folder"), lambda folder: (folder / "new").write_text("2"))

    write_folder(tmp_path / "folder", lambda folder: (folder / "old").write_text("1"))
    assert ended(writes, tmp_path)[0] == 143
    assert {path.name for path in tmp_path.iterdir()} == {"said.txt", "folder"}
    assert (tmp_path / "folder" / "new").exists()


def test_nobody_has_to_read_the_last_words(tmp_path: Path) -> None:
    """The pipe to a pager is full, and the main thread waits in its middle of a write."""

    def writes() -> None:
        _, full = os.pipe()
        os.dup2(full, 2)
        soon()
        while True:
            sys.stderr.write("x" * 1000)

    code, _, seconds = ended(writes, tmp_path)
    assert code == 143 and seconds < PROMPT


def test_a_library_may_take_over_what_python_writes_of_signals(tmp_path: Path) -> None:
    """As asyncio does."""

    def takes() -> None:
        signal.set_wakeup_fd(-1)
        arrive()

    assert ended(takes, tmp_path)[0] == 143


def test_a_fork_handles_signals_as_before(tmp_path: Path) -> None:
    def forks() -> None:
        process = FORK.Process(target=time.sleep, args=(PATIENCE,))
        process.start()
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join()
        assert process.exitcode == -signal.SIGTERM
        raise SystemExit(7)

    code, said, _ = ended(forks, tmp_path)
    assert code == 2 and "ended the program; got SystemExit: 7" in said


def test_signals_that_a_shell_ignores_are_ignored(tmp_path: Path) -> None:
    def ignores() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert ended(ignores, tmp_path)[0] == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_python_ctrl_c_stays_an_exception() -> None:
    assert maskwise("list", "policies") == 0
    assert signals._watch is None
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# Calls in Python


CALL = """
import os, signal, sys, time
from maskwise.base.printing import note
from maskwise.base.signals import resumable

if "own" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: print("of the user"))

@resumable(note)
def work():
    os.kill(os.getpid(), signal.SIGTERM)
    if "own" not in sys.argv:
        time.sleep(60)
    print("went on")

work()
assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
"""


def test_a_signal_says_how_to_resume_a_call_in_python() -> None:
    """It ended without a word. A handler of the user's is not replaced."""
    ended = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "")
    assert "SIGTERM" in ended.stderr and "the same call resumes" in ended.stderr
    owned = subprocess.run([sys.executable, "-c", CALL, "own"], capture_output=True, text=True)
    assert (owned.returncode, owned.stdout) == (0, "of the user\nwent on\n")


@pytest.mark.parametrize("call", ["study", "adapt", "finetune", "learn"])
def test_an_interrupted_call_in_python_says_how_to_resume(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        # The watch of the call is there while it works, and not after it.
        assert signals._watch is not None
        raise KeyboardInterrupt

    monkeypatch.setattr("maskwise.base.folders.OutputFolder.require", interrupt)
    monkeypatch.setattr("maskwise.studies.run.run_study", interrupt)
    given: dict[str, Any] = {
        "study": {"recipe": "quick-start"},
        "adapt": {"model": "bundled:encoder", "texts": "bundled:wikipedia"},
        "finetune": {"model": "bundled:encoder", "tasks": {"a": [{"text": "b", "label": "c"}]}},
        "learn": {"recipe": "quick-start", "texts": ["a text"]},
    }[call]
    with pytest.raises(KeyboardInterrupt) as caught:
        getattr(mw, call)(out=tmp_path / "out", **given)
    assert any("the same call resumes" in said for said in caught.value.__notes__)
    assert signals._watch is None


def test_a_temporary_folder_is_left_to_signals_only_while_it_is_there() -> None:
    before = {*LEFT}
    with temporary_folder() as folder:
        assert LEFT - before == {folder} and folder.is_dir()
    assert before == LEFT and not folder.exists()
    with pytest.raises(ZeroDivisionError), temporary_folder() as folder:
        _ = 1 / 0
    assert before == LEFT and not folder.exists()
