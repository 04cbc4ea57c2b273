"""Hands the stages of a study to a pool of workers: a stage starts as soon as what it needs is
done.

A stage that fails takes down only those that need it. A failure that may pass (see
``jobs.Failure``) is tried again, after a pause; the stage goes on from its last state, so a retry
changes no number. All that is known is in the folders of the stages: whatever ends this loop, the
same command goes on.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypedDict

from maskwise.errors import MaskwiseError
from maskwise.folders import appears, locked
from maskwise.jobs import Failure, open_pool, require_engine
from maskwise.recipe.overrides import Plain
from maskwise.study.live import LiveTable
from maskwise.study.plan import Plan
from maskwise.study.stages import DONE, Stage
from maskwise.study.work import run_stage

RETRIES = 2
"""How often a stage is tried again, unless said otherwise."""
PAUSE_SECONDS = 2.0
"""Before the first retry; twice as long before each that follows."""


class Task(TypedDict):
    """What a worker is sent: a stage as plain values, and the name that it must have on the other
    side too.
    """

    name: str
    stage: Plain


def execute(
    todo: list[Stage],
    stages: Path,
    plan: Plan,
    *,
    jobs: int | None = None,
    quiet: bool = False,
    engine: str = "local",
    retries: int = RETRIES,
) -> dict[str, str]:
    """Do stages. Returns the errors by stage name, also of those that were not tried for want of
    another.

    Args:
        todo: stages that are not done.
        stages: the folder of all stages.
        plan: what they belong to.
        jobs: how many at once; None: as many as there are cores (or GPUs).
        engine: a name in ``jobs.ENGINES``.
        retries: how often a stage is tried again whose failure may pass.

    Raises:
        MaskwiseError: a text cannot be prepared that every run needs; an engine that is unknown or
            cannot start.
    """
    require_engine(engine)
    errors: dict[str, str] = {}
    if not todo:
        return errors
    stages = stages.resolve()
    needed_by_all = set.intersection(*({stage.name for stage in run.stages} for run in plan.runs))
    table = LiveTable(plan, stages, jobs=jobs or os.cpu_count() or 1, quiet=quiet)
    waiting = {stage.name: stage for stage in todo}
    running: dict[str, Stage] = {}
    tries: dict[str, int] = {}
    not_before: dict[str, float] = {}
    with machine_probe(todo[0], stages) as probe:
        function = partial(do_stage, stages=str(stages))
        pool = open_pool(function, engine=engine, jobs=jobs, probe=probe, gpu=True)
    with pool, table:
        while waiting or running:
            free = pool.idle
            for name, stage in list(waiting.items()):
                broken = next((need for need in stage.needs if need in errors), None)
                if broken:
                    errors[name] = errors[broken]
                    del waiting[name]
                elif (
                    free > 0
                    and time.monotonic() >= not_before.get(name, 0.0)
                    and not any(need in waiting or need in running for need in stage.needs)
                ):
                    running[name] = waiting.pop(name)
                    pool.start(_to_task(stage))
                    free -= 1
            for task, _, failure in pool.finished(timeout=0.5):
                name = task["name"]
                stage = running.pop(name)
                if failure is None and appears(stages / name / DONE):
                    table.done(name)
                    continue
                failure = failure or Failure(
                    "it is done, and its folder is not seen here", passing=True
                )
                count = tries[name] = tries.get(name, 0) + 1
                if failure.passing and count <= retries:
                    table.say(
                        f"{name} failed: {failure.error}; trying again ({count} of {retries})"
                    )
                    not_before[name] = time.monotonic() + PAUSE_SECONDS * 2 ** (count - 1)
                    waiting[name] = stage
                elif stage.kind == "prepare" and name in needed_by_all:
                    raise MaskwiseError(failure.error)
                else:
                    table.say(f"{name} failed: {failure.error}")
                    errors[name] = failure.error
            table.update(set(running), errors)
    return errors


def do_stage(task: Task, *, stages: str) -> Plain:
    """Do one stage; called by workers, perhaps on another machine, perhaps twice at once."""
    stage, folder = Stage.from_dict(task["stage"]), Path(stages)
    mismatch = _mismatch(task)
    if mismatch:
        raise MaskwiseError(mismatch)
    for need in stage.needs:
        if not appears(folder / need / DONE):
            raise FileNotFoundError(f"{folder / need / DONE} is not seen here")
    with only_copy(stage.folder(folder)):
        return run_stage(stage, folder)


@contextmanager
def machine_probe(stage: Stage, stages: Path) -> Iterator[Callable[[], str | None]]:
    """A question for other machines: do they see a file of a new name, and call this stage what we
    call it?

    The file is there as long as this lasts.
    """
    mark = stages / f".mark-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield partial(_problem_of_machine, _to_task(stage), str(mark))
    finally:
        mark.unlink()


@contextmanager
def only_copy(folder: Path) -> Iterator[None]:
    """Wait until no other process works in a stage's folder.

    A node that is given up may still be alive, and its copy of a stage with it. The one that comes
    second waits, and finds the stage done or goes on from its last state. The lock ends with its
    process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # without locks: names hold the process, renames are whole
    held = locked(folder / ".lock", wait=-1)
    try:
        yield
    finally:
        held.release()


def _problem_of_machine(task: Task, mark: str) -> str | None:
    if not appears(Path(mark)):
        return f"it does not see {Path(mark).parent}; give --out a folder that all machines share"
    return _mismatch(task)


def _mismatch(task: Task) -> str | None:
    """What is wrong with a machine that gives a stage another name than the machine that plans."""
    if Stage.from_dict(task["stage"]).name == task["name"]:
        return None
    return "it has other versions of maskwise or its libraries, or another bf16; use like machines"


def _to_task(stage: Stage) -> Task:
    return {"name": stage.name, "stage": stage.as_dict()}
