"""Run the stages of a plan in a pool of workers, each as soon as the stages it needs are done.

If a stage fails, only the stages that need it fail, too. A failure that may pass (``jobs.Failure``)
is retried after a pause from the last saved state, so a retry changes no number. All state is in
the folders of the stages, so the same command resumes after any interruption.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
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
"""How often a stage is retried by default."""
PAUSE_SECONDS = 2.0
"""Before the first retry; doubled for each further retry."""


class Task(TypedDict):
    """The message to a worker: a stage as plain values, and the name it must have there, too."""

    name: str
    stage: Plain


def execute(
    todo: list[Stage],
    stages: Path,
    plan: Plan,
    *,
    jobs: int | None,
    quiet: bool,
    engine: str,
    retries: int,
) -> dict[str, str]:
    """Run stages.

    Args:
        todo: stages that are not done.
        stages: the folder of all stages.
        plan: the plan that they belong to.
        jobs: stages at once; None: as many as there are cores (or GPUs).
        engine: a name in ``jobs.ENGINES``.
        retries: how often a stage is retried if its failure may pass.

    Returns:
        The error of each stage that failed, or that needs a stage that failed, by name.

    Raises:
        MaskwiseError: a text that every run needs cannot be prepared; an engine that is unknown or
            cannot start.
    """
    require_engine(engine)
    errors: dict[str, str] = {}
    if not todo:
        return errors
    # Workers may have another working folder.
    stages = stages.resolve()
    # If one of these fails, every run fails.
    needed_by_all = set.intersection(*(set(run.stages) for run in plan.runs))
    waiting = {stage.name: stage for stage in todo}
    running: dict[Future[Plain], Stage] = {}
    tries = dict.fromkeys(waiting, 0)
    not_before = dict.fromkeys(waiting, 0.0)
    function = partial(do_stage, stages=str(stages))
    pool = open_pool(function, engine=engine, jobs=jobs, gpu=True)
    table = LiveTable(plan, stages, jobs=pool.places, quiet=quiet)
    with pool, table:
        while waiting or running:
            unfinished = {*waiting, *(stage.name for stage in running.values())}
            for name, stage in list(waiting.items()):
                broken = [need for need in stage.needs if need in errors]
                if broken:
                    errors[name] = errors[broken[0]]
                    del waiting[name]
                    continue
                ready = unfinished.isdisjoint(stage.needs)
                paused = time.monotonic() < not_before[name]
                # Stages are not queued in the pool, so that stages of the first runs start first.
                if ready and not paused and len(running) < pool.places:
                    running[pool.submit(to_task(stage))] = waiting.pop(name)
            # Every stage that is left waits for its retry.
            if not running:
                time.sleep(0.1)
                continue
            ended, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in ended:
                stage = running.pop(future)
                name = stage.name
                failure = _failure(future, stages / name)
                if failure is None:
                    table.done(name)
                    continue
                tries[name] += 1
                if failure.passing and tries[name] <= retries:
                    again = f"trying again ({tries[name]} of {retries})"
                    table.say(f"{name} failed: {failure.error}; {again}")
                    not_before[name] = time.monotonic() + PAUSE_SECONDS * 2 ** (tries[name] - 1)
                    waiting[name] = stage
                elif stage.kind == "prepare" and stage in needed_by_all:
                    raise MaskwiseError(failure.error)
                else:
                    table.say(f"{name} failed: {failure.error}")
                    errors[name] = failure.error
            # The time limit of ``wait`` redraws the table twice a second, also if no stage ends.
            table.update({stage.name for stage in running.values()}, errors)
    return errors


def _failure(future: Future[Plain], folder: Path) -> Failure | None:
    """Return the failure of a stage that has ended; None if it is done."""
    try:
        future.result()
    except Failure as failure:
        return failure
    if appears(folder / DONE):
        return None
    return Failure(
        "it is done, and its folder is not seen here; give --out a folder that all machines share",
        passing=True,
    )


def do_stage(task: Task, *, stages: str) -> Plain:
    """Do one stage in a worker.

    Args:
        stages: the folder of all stages.

    Raises:
        MaskwiseError: the worker's libraries or numerics give the stage another name.
        FileNotFoundError: a stage that it needs is not visible on this machine.
    """
    stage = Stage.from_dict(task["stage"])
    folder = Path(stages)
    if stage.name != task["name"]:
        raise MaskwiseError(
            "this machine has other versions of maskwise or its libraries, or another bf16",
            do="use like machines",
        )
    # A shared file system may show the files of another machine with a delay.
    for need in stage.needs:
        if not appears(folder / need / DONE):
            raise FileNotFoundError(f"{folder / need / DONE} is not seen here")
    with only_copy(stage.folder(folder)):
        return run_stage(stage, folder)


@contextmanager
def only_copy(folder: Path) -> Iterator[None]:
    """Wait until no other process works in a stage's folder."""
    # A lost node may still be alive and train. The second copy of its stage waits for it, then
    # finds it done or resumes from its last state. The lock ends with its process.
    folder.mkdir(parents=True, exist_ok=True)
    held = locked(folder / ".lock", wait=-1)
    try:
        yield
    finally:
        held.release()


def to_task(stage: Stage) -> Task:
    return {"name": stage.name, "stage": stage.as_dict()}
