"""Workers and the stages they do: a failure takes down only what needs it; a lost worker or node
changes no number.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import maskwise as mw
from maskwise.base import folders
from maskwise.base.constants import jobs_here
from maskwise.base.errors import MaskwiseError, Truncated
from maskwise.base.printing import LOGGER
from maskwise.jobs import pools
from maskwise.jobs.pools import (
    ENGINES,
    Failure,
    LocalPool,
    Once,
    Pool,
    RayPool,
    ThisProcess,
    open_pool,
)
from maskwise.recipe import Recipe
from maskwise.studies import Plan, Run, Stage, scheduler
from maskwise.studies import store as store_module
from maskwise.studies.costs import work_of
from maskwise.studies.scheduler import StudyProgress, execute
from maskwise.studies.stages import KINDS, StageKind, add_kind
from maskwise.studies.store import StageStore
from processes import (
    PATIENCE,
    Loaded,
    runs,
    wait_for,
    worker_card,
    worker_length,
    worker_letters,
    worker_task,
    worker_tokenises,
    worker_waits,
    workers,
)
from tiny import flip, maskwise, start, write_inputs, write_lines

LOST = Failure("the node is gone", passing=True)
WRONG = Failure("the loss is not finite", passing=False)


class Scripted(Pool):
    """A pool that does a task by writing done.json, unless the script has a failure for it."""

    script: dict[str, list[Failure]]
    busy: list[str]
    log: list[str]
    places = 2

    def __init__(self, *, jobs: int | None, gpu: bool, processes: int): ...

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        [(name, stage, *_)] = arguments
        word = stage["what"]["word"]
        self.log.append(word)
        failures = self.script.get(word, [])
        if failures:
            future.set_exception(failures.pop(0))
        else:
            if word in self.busy:
                self.busy.remove(word)
                future.set_result(None)
                return future
            finish(function.keywords["store"].folder(name))
            future.set_result({"seconds": 1.0})
        return future

    def close(self) -> None:
        self.log.append("closed")


def finish(folder: Path, seconds: float = 1.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "done.json").write_text(json.dumps({"seconds": seconds, "measurements": []}))


def make(kind: str, word: str, *needs: Stage, steps: int = 100) -> Stage:
    what = {"word": word} | (
        {"training": {"steps": steps, "batch_size": 8}} if kind == "pretrain" else {}
    )
    return Stage(kind, what, tuple(need.name for need in needs))


@pytest.fixture
def plan():
    """One text, two runs with a task each."""
    text = make("prepare", "text")
    runs = []
    for arm in "ab":
        trained = make("pretrain", arm, text)
        task = make("finetune", f"task of {arm}", text, trained)
        runs.append(Run(arm, 0, Recipe(), (text, trained), tasks={"task": task}))
    return Plan(tuple(runs))


@pytest.fixture
def scripted(monkeypatch):
    Scripted.script, Scripted.busy, Scripted.log = {}, [], []
    monkeypatch.setitem(ENGINES, "scripted", Scripted)
    monkeypatch.setattr(scheduler, "PAUSE_SECONDS", 0.01)
    return Scripted


def do(plan: Plan, stages: Path, **more: Any) -> dict[str, str]:
    """Errors by the word of a stage."""
    stages.mkdir(exist_ok=True)
    words = {stage.name: stage.what["word"] for stage in plan.stages()}
    settings = {"jobs": None, "retries": 2, "engine": "scripted"} | more
    errors = execute(plan.stages(), StageStore(stages), plan, **settings)
    return {words[name]: error for name, error in errors.items()}


# The loop
# ----------------------------------------------------------------------------


def test_what_is_needed_comes_first_and_fails_what_needs_it(plan, tmp_path, scripted):
    assert do(plan, tmp_path / "whole") == {}
    log = scripted.log
    assert log[0] == "text" and log[-1] == "closed" and len(log) == 6
    assert all(log.index(arm) < log.index(f"task of {arm}") for arm in "ab")
    log.clear()
    scripted.script = {"a": [WRONG]}
    assert do(plan, tmp_path / "part") == dict.fromkeys(("a", "task of a"), WRONG.error)
    assert sorted(log) == ["a", "b", "closed", "task of b", "text"]


@pytest.mark.parametrize("lost, tried, fails", [(1, 2, False), (2, 3, False), (3, 3, True)])
def test_what_may_pass_is_tried_again(plan, tmp_path, scripted, lost, tried, fails):
    scripted.script = {"a": [LOST] * lost, "b": [WRONG]}
    errors = do(plan, tmp_path, retries=2)
    assert scripted.log.count("a") == tried and scripted.log.count("b") == 1
    assert ("a" in errors, "task of a" in errors, "b" in errors) == (fails, fails, True)


def test_a_text_that_all_need_ends_the_study_in_one_line(plan, tmp_path, scripted):
    scripted.script = {"text": [LOST, WRONG]}
    with pytest.raises(MaskwiseError, match=r"^the loss is not finite$"):
        do(plan, tmp_path, retries=1)
    assert scripted.log == ["text", "text", "closed"]


def test_done_elsewhere_and_not_seen_here_is_a_failure(plan, tmp_path, scripted, monkeypatch):
    monkeypatch.setattr(folders, "LATE_SECONDS", 0.0)
    monkeypatch.setattr("test_engines.finish", lambda folder: None)
    with pytest.raises(MaskwiseError, match="its folder is not visible on this machine"):
        do(plan, tmp_path, retries=0)


def test_a_stage_that_another_process_ends_meanwhile_is_not_run_again(
    plan, tmp_path, scripted, monkeypatch
):
    """The result was looked for before the lock, and a process may end in between."""
    _, a, *_ = plan.stages()
    is_run = StageStore.is_run

    def ends(store: StageStore, stage: Stage) -> bool:
        if stage == a:
            finish(store.folder(a))
        return is_run(store, stage)

    monkeypatch.setattr(StageStore, "is_run", ends)
    assert do(plan, tmp_path) == {}
    assert "a" not in scripted.log and "task of a" in scripted.log


@pytest.mark.parametrize("killed", [False, True])
def test_a_stage_that_another_process_runs_is_left_to_it(
    plan, tmp_path, scripted, monkeypatch, killed
):
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 0.01)
    store = StageStore(tmp_path)
    _, a, *_ = plan.stages()
    begun = threading.Event()

    def elsewhere() -> None:
        held = store.lock(a)
        assert held
        begun.set()
        wait_for(lambda: "task of b" in scripted.log)
        if not killed:
            finish(store.folder(a))
        held.release()

    other = threading.Thread(target=elsewhere)
    other.start()
    begun.wait(PATIENCE)
    assert store.is_run(a) and store.lock(a) is None
    assert do(plan, tmp_path) == {}
    other.join()
    assert ("a" in scripted.log) == killed and "task of a" in scripted.log


def test_a_lock_that_only_another_user_may_open_is_named(
    plan, tmp_path, scripted, monkeypatch, capfd
):
    """What another user's killed process left in a shared folder was waited for silently."""
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 0.01)
    store = StageStore(tmp_path)
    _, a, *_ = plan.stages()
    store.lock(a).release()
    lock, looks = store.folder(a) / ".lock", []
    is_locked, access = store_module.is_locked, os.access

    def held(path: Path) -> bool:
        looks.append(path)
        if looks.count(lock) == 3:
            finish(store.folder(a))
        return path == lock or is_locked(path)

    monkeypatch.setattr(store_module, "is_locked", held)
    monkeypatch.setattr(os, "access", lambda path, mode: path != lock and access(path, mode))
    assert do(plan, tmp_path) == {} and looks.count(lock) == 3
    [said] = [line for line in capfd.readouterr().err.splitlines() if str(lock) in line]
    assert a.name in said


def test_a_stage_that_another_process_has_just_locked_is_asked_for_again(
    plan, tmp_path, scripted, monkeypatch
):
    """A worker finds the lock after the main process has found none."""
    stage = plan.stages()[0]
    store = StageStore(tmp_path)
    held = store.lock(stage)
    task = stage.name, stage.as_dict(), KINDS[stage.kind], None
    assert held and scheduler.do_stage(task, store=store) is None
    held.release()
    scripted.busy = ["text", "b"]
    assert do(plan, tmp_path) == {} and scripted.log.count("text") == 2


def test_a_machine_that_computes_otherwise_is_refused(plan, tmp_path, monkeypatch):
    stage = plan.stages()[0]
    task = stage.name, stage.as_dict(), KINDS[stage.kind], None
    monkeypatch.setattr("maskwise.studies.stages.numerics", lambda: ("other versions",))
    with pytest.raises(MaskwiseError, match="use machines with the same versions"):
        scheduler.do_stage(task, store=StageStore(tmp_path))


@pytest.mark.parametrize(
    "address, says",
    [("127.0.0.1:1", "no Ray cluster at RAY_ADDRESS"), ("nonsense", "RAY_ADDRESS"), (None, "pip")],
)
def test_no_cluster_and_no_ray_are_one_line(monkeypatch, address, says):
    monkeypatch.setenv("RAY_ADDRESS", address or "local")
    if address is None:
        monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MaskwiseError, match=says) as error:
        open_pool(engine="ray", jobs=1)
    assert "\n" not in str(error.value)


class NoCluster:
    """Ray on a machine without a cluster."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def init(self, **settings: Any) -> None:
        self.calls.append(settings)
        if settings["address"] != "local":
            raise ConnectionError("no cluster\nmore")


def test_a_named_cluster_that_does_not_answer_is_not_replaced_by_a_local_one(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listens:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listens.getsockname()[1]}")
        ray = NoCluster()
        with pytest.raises(MaskwiseError, match="no Ray cluster at RAY_ADDRESS") as error:
            pools._join(ray, 1)
    assert len(ray.calls) == 1 and "\n" not in str(error.value)


def test_only_cores_that_a_process_may_use_are_counted(monkeypatch):
    """A job of a scheduler with two cores of a node of 64 started 64 workers."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(pools.PARALLEL, "true")
    ray = NoCluster()
    pools._join(ray, None)
    assert ray.calls[-1]["num_cpus"] == jobs_here() == 2
    with pools.LocalPool(jobs=None) as pool:
        assert pool.places == pool.threads_of_tokenizers == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert jobs_here() == 64 and jobs_here(4) == 16 and jobs_here(99) == 1


# The pools
# ----------------------------------------------------------------------------


@pytest.mark.process
def test_a_worker_that_dies_is_a_failure_and_is_replaced(monkeypatch, capfd, recwarn):
    monkeypatch.setattr(pools, "PATIENCE_SECONDS", PATIENCE)
    found = {}
    with LocalPool(jobs=1) as pool:
        for task in ("first", "die", "raise", "lock", "warn", "warn", "threads", "last"):
            future = pool.submit(worker_task, task)
            found[task] = future.exception(PATIENCE) or future.result()
        [worker] = pool.workers.values()
    assert found["die"].args == ("the worker process died (exit code 7)", True)
    error, passing = found["raise"].args
    assert error.startswith("KeyError: 'two\\nlines' (") and "processes.py:" in error
    assert not passing and "pickle" in found["lock"].error
    first, last = found["first"], found["last"]
    assert first[0] == "first" and last[0] == "last" and first[1] != last[1]
    assert first[2] == ["1", "1"] and found["threads"] == 1
    assert worker.process.returncode == 128 + signal.SIGTERM  # it ended by itself
    # Two tasks warned.
    assert [str(one.message) for one in recwarn] == ["rows are truncated"]
    assert not capfd.readouterr().err


@pytest.mark.process
def test_a_warning_of_several_workers_is_said_once(capfd, recwarn):
    with LocalPool(jobs=2) as pool:
        futures = [pool.submit(worker_task, task) for task in ("warn", "warn", "first", "warn")]
        workers = {future.result(PATIENCE)[1] for future in futures}
    assert len(workers) == 2
    assert [(str(one.message), one.category) for one in recwarn] == [
        ("rows are truncated", Truncated)
    ]
    assert not capfd.readouterr().err


@pytest.mark.process
def test_a_killed_worker_fails_its_own_task_only(tmp_path):
    """As the kernel kills the largest process if memory runs out."""
    with LocalPool(jobs=2) as pool:
        names = [tmp_path / "one", tmp_path / "two"]
        one, two = [pool.submit(worker_waits, name) for name in names]
        wait_for(lambda: all(name.exists() for name in names))
        os.kill(int(names[0].read_text()), signal.SIGKILL)
        assert str(one.exception(PATIENCE)) == "the worker process died (exit code -9)"
        assert pool.submit(worker_length, "seven").result(PATIENCE) == 5
        assert not two.done()


@pytest.mark.process
def test_an_idle_worker_that_was_killed_is_replaced():
    with LocalPool(jobs=1) as pool:
        _, before, _ = pool.submit(worker_task, "first").result(PATIENCE)
        pool.workers[0].process.kill()
        pool.workers[0].process.wait()
        _, after, _ = pool.submit(worker_task, "second").result(PATIENCE)
        assert before != after


@pytest.mark.process
@pytest.mark.parametrize(("stubborn", "code"), [(False, 128 + signal.SIGTERM), (True, -9)])
def test_a_closed_pool_ends_its_workers_in_the_middle_of_tasks(
    stubborn, code, tmp_path, monkeypatch
):
    monkeypatch.setattr(pools, "PATIENCE_SECONDS", 0.2 if stubborn else 20.0)
    pool = LocalPool(jobs=1)
    future = pool.submit(partial(worker_waits, stubborn=stubborn), tmp_path / "started")
    queued = pool.submit(worker_length, "never")
    wait_for((tmp_path / "started").exists)
    pool.close()
    [worker] = pool.workers.values()
    assert worker.process.returncode == code
    assert f"(exit code {code})" in str(future.exception(PATIENCE)) and queued.cancelled()


@pytest.mark.process
def test_what_is_slow_to_load_is_loaded_once_in_a_worker():
    with LocalPool(jobs=1) as pool:
        often, once = Loaded(), Once(Loaded())
        assert [pool.submit(often, n).result(PATIENCE) for n in (1, 2)] == [(1, 1), (2, 2)]
        assert [pool.submit(once, n).result(PATIENCE) for n in (1, 2)] == [(1, 3), (2, 3)]


@pytest.mark.process
def test_results_come_with_their_tasks_and_a_failure_ends_them():
    with open_pool(jobs=2) as pool:
        assert sorted(pool.results(worker_length, (str(10**n) for n in range(9)))) == [
            (str(10**n), n + 1) for n in range(9)
        ]
        with pytest.raises(
            MaskwiseError, match=r"^TypeError: object of type 'int' has no len\(\) \(.*\)$"
        ):
            list(pool.results(worker_length, [3]))
        assert len(pool.workers) == 2
        with pytest.raises(
            MaskwiseError, match=r"^die: .* died \(exit code 7\); if memory ran out"
        ):
            list(pool.results(worker_task, ["die"]))


@pytest.mark.process
@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [
        pytest.param(None, 2, ["0", "1"], marks=pytest.mark.slow),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
        pytest.param("3", 1, ["3"], marks=pytest.mark.slow),
    ],
)
def test_workers_share_the_cards_evenly(visible, count, names, monkeypatch):
    """Four stages at once on two cards, or on one."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert LocalPool(jobs=None, gpu=True).places == jobs_here() == count
    with open_pool(jobs=4, gpu=True) as pool:
        futures = [pool.submit(worker_card, 0) for _ in range(4)]
        assert {future.result(PATIENCE) for future in futures} <= set(names)
        used = [pool.workers[number].environment for number in sorted(pool.workers)]
        found = [environment["CUDA_VISIBLE_DEVICES"] for environment in used]
    # A worker that ended its task may have got the next one, before another was needed.
    assert found == (names * 4)[: len(found)]
    # Workers of other commands, and of machines without cards, see what their parent sees.
    with open_pool(jobs=1) as pool:
        assert pool.submit(worker_card, 0).result(PATIENCE) == visible


@pytest.mark.parametrize(
    ("cards", "given", "gpus", "places"),
    [(2, None, 1, 2), (2, 1, 1, 1), (2, 8, 1 / 4, 8), (2, 3, 1 / 2, 3), (1, 6, 1 / 6, 6)],
)
def test_stages_on_ray_share_the_cards_as_local_ones_do(cards, given, gpus, places, monkeypatch):
    """With a stand-in for Ray, which keeps what a task asks for."""
    asked = []

    def remote(**options):
        asked.append((options["num_cpus"], options["num_gpus"]))
        return lambda function: SimpleNamespace(remote=function)

    resources = {"CPU": 16.0, "GPU": cards}
    ray = SimpleNamespace(
        is_initialized=lambda: True, cluster_resources=lambda: resources, remote=remote
    )
    monkeypatch.setattr(pools, "_quiet_ray", lambda: ray)
    assert RayPool(jobs=given, gpu=True).places == places
    # Other commands ask for no card, and a cluster may have none.
    RayPool(jobs=given)
    del resources["GPU"]
    assert RayPool(jobs=8, gpu=True).places == 8
    assert asked == [(1, gpus), (1, 0), (1, 0)]
    # A local pool puts equally many on its fullest card.
    local = Counter(index % cards for index in range(places))
    assert round(1 / gpus) == max(local.values())


IMPORTS = """
import time
print("importing", flush=True)
time.sleep(3600)
def function(task): ...
"""
PARENT = """
from importlib import import_module
from maskwise.jobs.pools import LocalPool
import time
LocalPool(jobs=1).submit(import_module, "slow_to_import")
time.sleep(3600)
"""


@pytest.mark.process
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_worker_that_still_imports_leaves_with_its_parent(tmp_path, how):
    """No ``if __name__ == "__main__":`` in the parent, either."""
    (tmp_path / "slow_to_import.py").write_text(IMPORTS)
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py")]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert parent.stderr.readline() == "importing\n"  # the worker says it
    [worker] = workers(parent.pid)
    parent.send_signal(how)
    parent.wait()
    began = time.monotonic()
    wait_for(lambda: not runs(worker))
    assert PATIENCE < 60 or time.monotonic() - began < 60  # it imports for an hour


@pytest.mark.slow  # every worker that dies is one more that imports torch
@pytest.mark.process
@pytest.mark.parametrize("name", ["local", "ray"])
def test_every_pool_keeps_the_promises(name, monkeypatch):
    """``eval`` is a function that every process knows."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    found = {}
    with open_pool(engine=name, jobs=1) as pool:
        for task in (
            "__import__('torch').get_num_threads(), __import__('os').environ['OMP_NUM_THREADS'],"
            "__import__('os').environ['RAYON_NUM_THREADS']",
            "{}['two\\nlines']",
            "open('/nowhere/at/all')",
            "__import__('os')._exit(7)",
            "__import__('os').kill(__import__('os').getpid(), 9)",
            "1 + 1",
        ):
            future = pool.submit(eval, task)
            failure = future.exception(PATIENCE)
            found[task] = (None if failure else future.result(), failure)
    if name == "ray":
        pool.ray.shutdown()
    results, failures = zip(*found.values(), strict=True)
    assert results == ((1, "1", "1"), None, None, None, None, 2)
    assert [failure and failure.passing for failure in failures] == [
        None,
        False,
        True,
        True,
        True,
        None,
    ]
    assert all("\n" not in failure.error for failure in failures if failure)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.process
def test_only_the_preparation_of_a_text_starts_threads_of_tokenizers(monkeypatch):
    monkeypatch.delenv(pools.PARALLEL, raising=False)
    with LocalPool(jobs=3) as pool:
        for many, started in ((False, 0), (True, 3), (False, 0)):
            task = partial(worker_tokenises, many=many)
            assert pool.submit(task).result(PATIENCE) == started


def test_an_executor_lends_its_process_with_one_thread_for_tokenizers(monkeypatch):
    monkeypatch.setenv(pools.PARALLEL, "true")
    with open_pool(engine=ThreadPoolExecutor(1)) as pool:
        assert (
            pool.submit(eval, f"__import__('os').environ[{pools.PARALLEL!r}]").result(PATIENCE)
            == "false"
        )
    assert os.environ[pools.PARALLEL] == "true"


# Executors of the user's
# ----------------------------------------------------------------------------


class Jobs:
    """An executor with the interface of submitit: its futures announce no end, and are asked."""

    def __init__(self, lose: int = 0) -> None:
        self.lose = lose
        self.cancelled: list[bool] = []

    def submit(self, function: Any, *arguments: Any) -> Any:
        self.lose -= 1
        asked = iter([False, True])
        lost = self.lose >= 0

        def result() -> Any:
            if lost:
                raise RuntimeError("Job 7 has no output\nstate: NODE_FAIL")
            return function(*arguments)

        return SimpleNamespace(
            done=lambda: next(asked, True),
            result=result,
            cancel=lambda: self.cancelled.append(True),
        )


@pytest.mark.parametrize("open_executor", [Jobs, ThreadPoolExecutor])
def test_an_executor_runs_stages(open_executor, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "do_stage", finish_stage)
    monkeypatch.setattr(pools, "POLL_SECONDS", 0.01)
    assert do(plan, tmp_path, engine=open_executor(), jobs=2) == {}
    assert all(StageStore(tmp_path).result(stage) for stage in plan.stages())


def finish_stage(task: Any, *, store: StageStore, **more: Any) -> dict[str, float]:
    """A stage that only writes done.json, whose name another process can load."""
    finish(store.folder(task[0]))
    return {"seconds": 1.0}


def test_a_job_that_is_lost_is_tried_again(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "do_stage", finish_stage)
    monkeypatch.setattr(scheduler, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(pools, "POLL_SECONDS", 0.01)
    assert do(plan, tmp_path / "one", engine=Jobs(lose=2), jobs=1) == {}
    with pytest.raises(MaskwiseError, match=r"RuntimeError: Job 7 has no output$"):
        do(plan, tmp_path / "two", engine=Jobs(lose=3), jobs=1)


def test_errors_of_tasks_and_of_an_executor_are_told_apart():
    with ThreadPoolExecutor(3) as threads, open_pool(engine=threads) as pool:
        assert pool.places == 3
        assert pool.submit(worker_length, "seven").result(PATIENCE) == 5
        wrong = pool.submit(worker_task, "raise").exception(PATIENCE)
        assert isinstance(wrong, Failure) and not wrong.passing and "KeyError" in wrong.error
    # An executor that its owner has shut down.
    with open_pool(engine=threads) as pool:
        lost = pool.submit(worker_length, "seven").exception(PATIENCE)
        assert isinstance(lost, Failure) and lost.passing and "shutdown" in lost.error


def test_a_task_that_is_told_to_end_is_a_failure_that_may_pass():
    """A worker of an executor that gets SIGTERM raises SystemExit in its task."""
    with ThreadPoolExecutor(1) as threads, open_pool(engine=threads) as pool:
        future = pool.submit(sys.exit, 143)
        assert pool.ended([future], timeout=20) == {future}
        with pytest.raises(Failure) as caught:
            future.result()
    assert caught.value.passing and "SystemExit" in caught.value.error


def test_a_worker_that_cannot_start_is_a_failure_that_may_pass(monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("subprocess.Popen", refuse)
    with LocalPool(jobs=1) as pool:
        lost = pool.submit(len, "abc").exception(PATIENCE)
    assert isinstance(lost, Failure) and lost.passing and "Cannot allocate" in lost.error


def test_a_closed_pool_cancels_jobs_and_leaves_the_executor_open():
    executor = Jobs()
    with open_pool(engine=executor) as pool:
        pool.submit(worker_length, "seven")
    assert executor.cancelled == [True]
    with ThreadPoolExecutor(1) as threads:
        open_pool(engine=threads).close()
        assert threads.submit(len, "seven").result() == 5


def test_threads_run_one_task_at_a_time_with_one_thread_each():
    """The random state of torch belongs to the process."""
    import torch

    before = torch.get_num_threads()
    with ThreadPoolExecutor(4) as threads, open_pool(engine=threads) as pool:
        futures = [pool.submit(worker_alone, number) for number in range(8)]
        assert [future.result(PATIENCE) for future in futures] == [(1, 1)] * 8
    assert torch.get_num_threads() == before


def worker_alone(_: int) -> tuple[int, int]:
    """The number of tasks that run now, and of threads of torch."""
    import torch

    BUSY.append(1)
    time.sleep(0.005)
    count = len(BUSY)
    BUSY.pop()
    return count, torch.get_num_threads()


BUSY: list[int] = []


def test_an_engine_and_an_executor_are_refused(recipe, tmp_path):
    with pytest.raises(MaskwiseError, match="an engine or an executor"):
        mw.study(recipe, out=tmp_path / "out", engine="ray", executor=Jobs())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # it starts a process for each task
@pytest.mark.process
@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_submitit_runs_tasks(cluster, tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.AutoExecutor(tmp_path, cluster=cluster)
    executor.update_parameters(timeout_min=5)
    with open_pool(engine=executor, jobs=2) as pool:
        assert dict(pool.results(len, ["a", "seven"])) == {"a": 1, "seven": 5}
        with pytest.raises(MaskwiseError, match="has no len"):
            list(pool.results(len, [3]))


# The table
# ----------------------------------------------------------------------------


def test_the_time_left_is_what_like_stages_took(plan, tmp_path):
    text, a, task_a, b, task_b = plan.stages()
    finish(StageStore(tmp_path).folder(text), 5.0)
    finish(StageStore(tmp_path).folder(a), 40.0)
    table = StudyProgress(plan, StageStore(tmp_path), jobs=1)
    lines = [{"kind": "train", "step": n, "seconds": n} for n in (10, 25)]
    StageStore(tmp_path).folder(b).mkdir()
    write_lines(
        StageStore(tmp_path).folder(b) / "metrics.jsonl", [*lines, {"kind": "eval", "step": 25}]
    )
    table.first_seen = {b.name: time.perf_counter()}
    table.lines = {b.name: table.store.last_line(b)}
    assert table.left() == (75.0, False)  # 75 steps; nothing is known of tasks
    assert "2 of 5 stages" in str(table.summary())
    finish(StageStore(tmp_path).folder(task_a), 8.0)
    table.forecast.look(task_a.name)
    assert table.left() == (83.0, True)
    assert str(table.line_of(b.name)) == "  b, seed 0: pretrain 25 %"
    table.errors = {task_b.name: "failed"}
    assert table.left() == (75.0, True)
    assert "3 of 5 stages, 1 failed" in str(table.summary())
    # The learning of a policy has steps of its own.
    for learning in ({"supervised": {"training": {"steps": 50}}}, {"meta": {"steps": 50}}):
        table.named[b.name] = Stage("learn", {"training": {"seed": 0}, "learning": learning})
        assert str(table.line_of(b.name)) == "  b, seed 0: learn 50 %"


# A kind of stage
# ----------------------------------------------------------------------------

TOY = StageKind(
    "toy-kind",
    worker_letters,
    output="letters",
    size=("letters",),
    title="counting letters of {word}",
)


def watched(stage: Stage, store: StageStore) -> dict[str, Any]:
    LOGGER.info("a note of %s", stage.what["word"])
    if stage.what["word"] == "bad":
        raise KeyError("bad")
    return {"locked": store.is_run(stage)}


WATCHED = StageKind("watched", watched)


def test_a_new_kind_of_stage_is_one_object(tmp_path, monkeypatch):
    """Workers get the kind with the stage. The second stage reads what the first one wrote."""
    monkeypatch.setitem(KINDS, TOY.name, TOY)
    first = Stage(TOY.name, {"word": "mask", "letters": 4})
    second = Stage(TOY.name, {"word": "wise", "letters": 4}, (first.name,))
    plan = Plan((Run("a", 0, Recipe(), (first, second)),))
    store = StageStore(tmp_path)
    assert not execute([first, second], store, plan, jobs=1, engine="local", retries=0)
    assert store.result(second)["letters"] == "maskwise" and list(store.stages()) != []
    assert store.damage(second) is None
    flip(store.output(first) / "all.txt", at=0.5)
    assert store.damage(first) and not store.damage(second)
    assert KINDS[TOY.name].work(first) == "counting letters of mask"
    assert work_of(first) == (("start", 1), ("step", 4), ("judge", 1))
    with pytest.raises(MaskwiseError, match="a kind of stage with this name already; got toy-kind"):
        add_kind(replace(TOY, title="another"))


@pytest.mark.parametrize("engine, shown", [(ThisProcess(), True), ("local", False)])
def test_a_stage_in_this_process_is_locked_and_shows_its_own_progress(
    engine, shown, tmp_path, monkeypatch, capfd
):
    monkeypatch.setitem(KINDS, WATCHED.name, WATCHED)
    stage = Stage("watched", {"word": "fine"})
    plan = Plan((Run("a", 0, Recipe(), (stage,)),))
    assert not execute([stage], StageStore(tmp_path), plan, engine=engine)
    assert StageStore(tmp_path).result(stage)["locked"]
    said = capfd.readouterr().err
    assert ("a note of fine" in said) == shown and ("0 of 1 stages" in said) == (not shown)


def test_what_a_stage_raises_in_this_process_ends_the_call(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, WATCHED.name, WATCHED)
    stages = [Stage("watched", {"word": word}) for word in ("fine", "bad", "later")]
    plan = Plan((Run("a", 0, Recipe(), (*stages,)),))
    store = StageStore(tmp_path)
    with pytest.raises(KeyError, match="bad"):
        execute(stages, store, plan, engine=ThisProcess())
    assert [store.result(stage) is not None for stage in stages] == [True, False, False]
    assert "KeyError" in (store.folder(stages[1]) / "error.txt").read_text()
    assert not store.is_run(stages[1])


# Whole studies
# ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    assert maskwise("study", recipe, STEPS, "--out", out, "--jobs", 1) == 0
    return out


STEPS = "training.steps=400"
"""Some seconds for each run, so that there is a middle."""


def unfinished(out: Path) -> set[Path]:
    """Stages that have a state to resume from, and no end."""
    folders = {
        path.parents[2] for path in out.glob("stages/pretrain-*/resume/step-*/manifest.json")
    }
    return {folder for folder in folders if not (folder / "done.json").exists()}


def same(out: Path, finished: Path) -> bool:
    return (out / "records.jsonl").read_bytes() == (finished / "records.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.process
def test_a_killed_worker_changes_no_number(finished, recipe, tmp_path):
    out = tmp_path / "out"
    study = start("study", recipe, STEPS, "--out", out, "--jobs", 1, "--retries", 1)
    wait_for(lambda: unfinished(out) or study.poll() is not None)
    [worker] = workers(study.pid)
    os.kill(worker, signal.SIGKILL)
    _, err = study.communicate(timeout=PATIENCE)
    assert study.returncode == 0 and "exit code -9); trying again (1 of 1)" in err
    assert same(out, finished)


@pytest.mark.slow
@pytest.mark.process
def test_a_lost_node_changes_no_number(finished, recipe, tmp_path, monkeypatch):
    """Two nodes with a core each; one is killed while both pre-train."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args=node | {"include_dashboard": False}
    )
    try:
        second = cluster.add_node(**node)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        out = tmp_path / "out"
        study = start("study", recipe, STEPS, "--out", out, "--engine", "ray")
        wait_for(lambda: len(unfinished(out)) > 1 or study.poll() is not None)
        cluster.remove_node(second, allow_graceful=False)
        printed, err = study.communicate(timeout=PATIENCE)
    finally:
        cluster.shutdown()
    assert study.returncode == 0 and "raylet" not in printed
    assert "a worker or its machine was lost" in err and "trying again (1 of 2)" in err
    assert same(out, finished)


def test_a_warning_keeps_a_category_that_this_process_can_import() -> None:
    """A class that only a worker can import would make the whole answer unreadable."""

    class OfPlugIn(Truncated):
        pass

    assert pools._known_here(OfPlugIn) is Truncated
    assert pools._known_here(DeprecationWarning) is DeprecationWarning


def test_a_result_that_cannot_be_read_here_is_a_failure() -> None:
    """Such as an object of a module that only the worker can import."""
    unread = pools.read_answer(b"cnosuchmodule\nThing\n.").failure
    assert unread is not None
    assert re.search("cannot be read.*nosuchmodule", str(unread))
