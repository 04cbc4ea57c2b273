"""Execute the stages of a plan in a pool of workers, in topological order.

A plan is a list of runs, and a run consists of stages, such as pre-training. If a stage fails, the
stages that need its result fail with the same error, and all others continue. If the failure may be
temporary (``jobs.Failure.passing``), the stage is retried after a pause. A retry resumes from the
last saved state and has the same result. All state is in the folders of the stages, so the same
command resumes after any interruption. Several processes may execute the same plan: each takes
stages that no other process runs, and waits for the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.text import Text

from maskwise.base.constants import rank_here
from maskwise.base.errors import MaskwiseError, duration, option
from maskwise.base.folders import appears, require_file
from maskwise.base.printing import LINE_SECONDS, LOGGER, err_console, quietly, shows_progress
from maskwise.base.signals import held
from maskwise.jobs.pools import Failure, Where, open_pool
from maskwise.jobs.torchrun import launch
from maskwise.recipe.yamls import Plain
from maskwise.studies.costs import Forecast, Seconds, share_of, until_end
from maskwise.studies.plan import Plan, Run
from maskwise.studies.stages import DONE, KINDS, TEXT, Stage, StageKind, add_kind, named
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.training.tracking import Tracked, tracked_as

RETRIES = 2
"""Default number of retries of a stage."""
PAUSE_SECONDS = 2.0
"""Pause in seconds before the first retry. Every further pause is twice as long."""
CLOSED_LOCK = (
    "waiting for %s, which another user runs or has left unfinished: %s may not be opened; if "
    "nobody runs it, use another folder of shared stages, or have its owner remove the stage"
)
LOOK_SECONDS = 1.0
"""How often to look whether a stage that another process runs is finished."""


Task = tuple[str, Plain, StageKind, Tracked | None]
"""A message to a worker: the name of a stage, its fields, its kind, which the worker may not know,
and what trackers are told of it. The worker computes the name from the fields again. If the two
names differ, its libraries differ from those of the main process."""


def execute(
    todo: list[Stage],
    store: StageStore,
    plan: Plan,
    *,
    jobs: int | None = None,
    engine: Where = "local",
    retries: int = RETRIES,
    processes: int = 1,
    finished: Callable[[Stage], object] = lambda stage: None,
) -> dict[str, str]:
    """Execute stages.

    Ranks of torchrun that train together all call this with the same stages, in this process. The
    first rank locks stages and writes files, and the call ends on the others when they see them.

    Args:
        todo: the unfinished stages.
        store: the folders of stages.
        plan: the plan that contains the stages.
        jobs: the number of stages that run in parallel; None for the number of GPUs of this
            machine, or of cores if it has no GPU, divided by ``processes``.
        engine: a name in ``jobs.ENGINES``, an executor, or this process.
        retries: the maximum number of retries after a failure that may be temporary.
        processes: the number of processes that train each model together.
        finished: a function to call with each stage that has ended well.

    Returns:
        The error messages of stages that failed or need a failed stage, keyed by stage name.

    Raises:
        MaskwiseError: a text that every run needs cannot be prepared, or the engine is unknown or
            cannot start.
        Exception: a stage that runs in this process failed.
    """
    errors: dict[str, str] = {}
    if not todo:
        return errors
    if rank_here():
        for stage in todo:
            run_stage(stage, store)
            require_file(store.folder(stage) / DONE)
        return errors
    # If a stage that every run needs fails, there is nothing left to do.
    needed_by_all = set.intersection(*(set(run.stages) for run in plan.runs))
    waiting = named(todo)
    running: dict[Future[Plain | None], Stage] = {}
    elsewhere: set[str] = set()
    named_locks: set[str] = set()
    tries = dict.fromkeys(waiting, 0)
    not_before = dict.fromkeys(waiting, 0.0)
    pool = open_pool(engine=engine, jobs=jobs, gpu=True, processes=processes)
    if not pool.here:
        # Workers may have a different working directory.
        store = store.resolved()
    function = partial(do_stage, store=store, alone=pool.here, processes=processes)
    progress = StudyProgress(plan, store, jobs=pool.places, hidden=pool.here)
    # After a signal, workers save their states before this process ends.
    with nullcontext() if pool.here else held(), pool, progress:
        while waiting or running:
            unfinished = waiting.keys() | named(running.values())
            for name, stage in [*waiting.items()]:
                broken = [need for need in stage.needs if need in errors]
                if broken:
                    errors[name] = errors[broken[0]]
                    del waiting[name]
                    continue
                ready = unfinished.isdisjoint(stage.needs)
                # Submit a stage only if a worker is free. If stages waited in the pool, a stage of
                # an earlier run that becomes ready later would have to wait behind them.
                free = len(running) < pool.places or name in elsewhere
                if not ready or not free or time.monotonic() < not_before[name]:
                    continue
                elsewhere.discard(name)
                # A process that ends in between writes its result before it releases the stage.
                is_elsewhere = store.is_run(stage)
                if store.result(stage) is not None:
                    progress.forecast.look(name)
                    del waiting[name]
                elif is_elsewhere:
                    elsewhere.add(name)
                    if name not in named_locks and (lock := store.closed_lock(stage)):
                        named_locks.add(name)
                        LOGGER.warning(CLOSED_LOCK, name, lock)
                    not_before[name] = time.monotonic() + LOOK_SECONDS
                elif len(running) < pool.places:
                    kind = KINDS[stage.kind]
                    told = (
                        progress.runs[name].tracked(store.own.parent, stage)
                        if kind.on_ranks
                        else None
                    )
                    task = (name, stage.as_dict(), kind, told)
                    running[pool.submit(function, task)] = waiting.pop(name)
            # Nothing runs if all remaining stages are run by other processes, or in the pause
            # before a retry.
            if not running:
                progress.update(elsewhere, errors)
                time.sleep(0.1)
                continue
            for future in pool.ended(running, timeout=0.5):
                stage = running.pop(future)
                name = stage.name
                failure = _failure(future, store.folder(stage))
                if failure is None and future.result() is None:
                    # Another process has locked the stage meanwhile.
                    waiting[name] = stage
                    continue
                if failure is None:
                    progress.forecast.look(name)
                    finished(stage)
                    continue
                tries[name] += 1
                if failure.passing and tries[name] <= retries:
                    again = f"trying again ({tries[name]} of {retries})"
                    LOGGER.warning("%s failed: %s; %s", name, failure.error, again)
                    not_before[name] = time.monotonic() + PAUSE_SECONDS * 2 ** (tries[name] - 1)
                    waiting[name] = stage
                elif KINDS[stage.kind].output == TEXT and stage in needed_by_all:
                    raise MaskwiseError(failure.error)
                else:
                    LOGGER.warning("%s failed: %s", name, failure.error)
                    errors[name] = failure.error
            # ``ended`` returns after at most 0.5 seconds, so the display is updated twice a second.
            progress.update([*named(running.values()), *elsewhere], errors)
    return errors


def _failure(future: Future[Plain | None], folder: Path) -> Failure | None:
    """Return why a stage that has ended failed; None if it is finished, or run elsewhere."""
    try:
        result = future.result()
    except Failure as failure:
        return failure
    if result is None or appears(folder / DONE):
        return None
    return Failure(
        "a worker finished the stage, but its folder is not visible on this machine; use a folder "
        f"({option('out')}) on a file system that all machines share",
        passing=True,
    )


def do_stage(
    task: Task, *, store: StageStore, alone: bool = False, processes: int = 1
) -> Plain | None:
    """Execute one stage in a worker, unless another process runs it.

    Args:
        task: the name, the fields and the kind of the stage, and what trackers are told.
        store: the folders of stages.
        alone: whether the stage shows its own progress, because it runs in the process of the
            command. Otherwise, that process shows the progress of all stages.
        processes: the number of processes that do the stage together, if it trains a model.

    Returns:
        The result of the stage; None if another process runs it.

    Raises:
        MaskwiseError: the stage has a different name on this machine, because library versions or
            the precision differ from those of the main process.
        FileNotFoundError: the result of a needed stage is not visible on this machine.
    """
    name, plain, kind, _ = task
    add_kind(kind)
    stage = Stage.from_dict(plain)
    if stage.name != name:
        raise MaskwiseError(
            "the machine of a worker has other versions of maskwise or its libraries than this "
            "machine, or another precision (bf16 or fp32)",
            do="use machines with the same versions and hardware",
        )
    # On a shared file system, files from other machines may appear with a delay.
    for need in stage.needs:
        done = store.folder(need) / DONE
        if not appears(done):
            raise FileNotFoundError(f"{done} is not visible on this machine")
    # A machine that lost its connection may still be training. The retry on another machine then
    # finds a lock, and later a finished stage, or one to resume.
    held = store.lock(stage)
    if held is None:
        return None
    try:
        if processes > 1 and kind.on_ranks:
            return launch(processes, _do, task, store, alone)
        return _do(task, store, alone)
    finally:
        held.release()


def _do(task: Task, store: StageStore, alone: bool) -> Plain:
    """Execute one stage, in this process or as one of those that do it together."""
    _, plain, kind, told = task
    add_kind(kind)
    with nullcontext() if alone else quietly(), tracked_as(told):
        return run_stage(Stage.from_dict(plain), store)


# Progress display
# ---------------------------------------------------------------------------------------------


class StudyProgress:
    """Display finished stages, running stages and the remaining time of a plan.

    The state is read from the folders of the stages, because stages may run on other machines.

    Args:
        plan: the plan that is executed.
        store: the folders of stages.
        jobs: the number of stages that run in parallel.
        hidden: whether to display nothing, because stages show their own progress.
    """

    def __init__(
        self,
        plan: Plan,
        store: StageStore,
        *,
        jobs: int,
        hidden: bool = False,
    ):
        self.plan = plan
        self.store = store
        self.jobs = jobs
        self.hidden = hidden
        self.live = Live(console=err_console, refresh_per_second=2, transient=True)
        # If there is no terminal, as in a batch job, plain lines are printed.
        self.shows = err_console.is_terminal and shows_progress() and not hidden
        self.began = time.perf_counter()
        self.printed_at = self.began
        self.named = named(plan.stages())
        # A stage that several runs need is displayed as a part of the first of them.
        self.runs: dict[str, Run] = {}
        for run in reversed(plan.runs):
            self.runs |= dict.fromkeys(named(run.stages), run)
        self.forecast = Forecast(self.named, store)
        self.first_seen: dict[str, float] = {}
        self.lines: dict[str, Plain] = {}
        self.errors: Collection[str] = ()

    def __enter__(self) -> StudyProgress:
        if self.shows:
            self.live.start()
        elif not self.hidden:
            LOGGER.info("%s", self.summary())
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def update(self, running: Collection[str], errors: Collection[str]) -> None:
        """Redraw the display; if there is no terminal, print a line every minute."""
        now = time.perf_counter()
        self.first_seen = {name: self.first_seen.get(name, now) for name in running}
        self.errors = errors
        due = self.shows or now - self.printed_at >= LINE_SECONDS
        if self.hidden or not shows_progress() or not due:
            return
        self.printed_at = now
        self.lines = {name: self.store.last_line(name) for name in running}
        if self.shows:
            self.live.update(Group(self.summary(), *map(self.line_of, running)))
        else:
            LOGGER.info("%s", self.summary())

    def line_of(self, name: str) -> Text:
        """Return the display line of a running stage: its run, its kind and its progress."""
        stage = self.named[name]
        line = f"  {self.runs[name].title}: {stage.kind}"
        # The number of steps of a fine-tuning depends on its rows.
        if self.lines[name] and KINDS[stage.kind].steps(stage):
            line += f" {100 * share_of(stage, self.lines[name]):.0f} %"
        return Text(line, "cyan", no_wrap=True)

    def summary(self) -> Text:
        """Return the summary line: finished and failed stages, elapsed and remaining time."""
        left, complete = self.left()
        parts = [f"{len(self.forecast.finished)} of {len(self.named)} stages"]
        if self.errors:
            parts.append(f"{len(self.errors)} failed")
        parts.append(duration(time.perf_counter() - self.began))
        # If some times are unknown, the sum is a lower bound. Before the first stage has finished,
        # it is far too low to be shown.
        if left and complete:
            parts.append(f"about {duration(left)} left")
        elif left and self.forecast.finished:
            parts.append(f"more than {duration(left)} left")
        line = ", ".join(parts)
        if self.plan.purpose != "main":
            line = f"{self.plan.purpose}: {line}"
        return Text(line, no_wrap=True)

    def left(self) -> tuple[float, bool]:
        """Forecast the remaining seconds.

        Returns:
            The seconds, and whether they include the time of every stage.
        """
        now = time.perf_counter()
        left: Seconds = {}
        # Running stages have a worker already.
        for name in dict.fromkeys([*self.first_seen, *self.named]):
            if name in self.forecast.finished or name in self.errors:
                continue
            line = self.lines.get(name, {})
            seconds = self.forecast.left(name, line)
            if not line and seconds is not None:
                seconds = max(0.0, seconds - now + self.first_seen.get(name, now))
            left[name] = seconds
        seconds = until_end(self.named, left, self.jobs)
        return seconds, None not in left.values()
