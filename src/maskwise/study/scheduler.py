"""Run the stages of a plan in a pool of workers, each as soon as the stages it needs are done.

If a stage fails, only the stages that need it fail, too. A stage whose failure may be temporary
(``jobs.Failure``) is retried after a pause from its last saved state, so a retry changes no number.
All state is in the folders of the stages, so the same command resumes after any interruption.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from maskwise.errors import MaskwiseError, duration
from maskwise.folders import appears, locked
from maskwise.jobs import Failure, open_pool
from maskwise.recipe.overrides import Plain
from maskwise.study.costs import Forecast, Seconds, until_end
from maskwise.study.plan import Plan
from maskwise.study.stages import DONE, Stage, named
from maskwise.study.work import run_stage

RETRIES = 2
"""How often a stage is retried by default."""
PAUSE_SECONDS = 2.0
"""The pause before the first retry, doubled for each further retry."""


Task = tuple[str, Plain]
"""The message to a worker: the name that a stage must have there, too, and its values."""


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
        jobs: the number of stages at once; if None, as many as there are cores (or GPUs).
        engine: a name in ``jobs.ENGINES``.
        retries: how often a stage is retried if its failure may be temporary.

    Returns:
        The errors of the stages that failed or that need a failed stage, keyed by stage name.

    Raises:
        MaskwiseError: a text that every run needs cannot be prepared; an engine that is unknown or
            cannot start.
    """
    errors: dict[str, str] = {}
    if not todo:
        return errors
    # Workers may have a different working folder.
    stages = stages.resolve()
    # If one of these stages fails, every run fails.
    needed_by_all = set.intersection(*(set(run.stages) for run in plan.runs))
    waiting = named(todo)
    running: dict[Future[Plain], Stage] = {}
    tries = dict.fromkeys(waiting, 0)
    not_before = dict.fromkeys(waiting, 0.0)
    function = partial(do_stage, stages=str(stages))
    pool = open_pool(function, engine=engine, jobs=jobs, gpu=True)
    progress = Progress(plan, stages, jobs=pool.places, quiet=quiet)
    with pool, progress:
        while waiting or running:
            unfinished = waiting.keys() | named(running.values())
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
                    running[pool.submit((name, stage.as_dict()))] = waiting.pop(name)
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
                    progress.forecast.look(name)
                    continue
                tries[name] += 1
                if failure.passing and tries[name] <= retries:
                    again = f"trying again ({tries[name]} of {retries})"
                    progress.say(f"{name} failed: {failure.error}; {again}")
                    not_before[name] = time.monotonic() + PAUSE_SECONDS * 2 ** (tries[name] - 1)
                    waiting[name] = stage
                elif stage.kind == "prepare" and stage in needed_by_all:
                    raise MaskwiseError(failure.error)
                else:
                    progress.say(f"{name} failed: {failure.error}")
                    errors[name] = failure.error
            # Because of the timeout of ``wait``, this redraws twice a second even if no stage ends.
            progress.update(named(running.values()), errors)
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
        "the stage is done, but its folder is not visible here; use an --out that all machines "
        "share",
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
    name, plain = task
    stage = Stage.from_dict(plain)
    folder = Path(stages)
    if stage.name != name:
        raise MaskwiseError(
            "this machine has different versions of maskwise or its libraries, or differs in bf16",
            do="use machines with the same versions and hardware",
        )
    # A shared file system may show files from a different machine with a delay.
    for need in stage.needs:
        if not appears(folder / need / DONE):
            raise FileNotFoundError(f"{folder / need / DONE} is not visible here")
    with only_copy(stage.folder(folder)):
        return run_stage(stage, folder)


@contextmanager
def only_copy(folder: Path) -> Iterator[None]:
    """Wait until no other process works in a stage's folder."""
    # A lost node may still be alive and training. The second copy of its stage waits for it, then
    # finds the stage done or resumes from the last state. The lock ends with the process.
    folder.mkdir(parents=True, exist_ok=True)
    held = locked(folder / ".lock", wait=-1)
    try:
        yield
    finally:
        held.release()


# What is shown while a plan runs
# ---------------------------------------------------------------------------------------------


LINE_SECONDS = 60.0
"""The time between two progress lines if there is no terminal."""
TAIL_BYTES = 1 << 18
"""How many bytes are read from the end of metrics.jsonl twice a second. Lines may be long."""


class Progress:
    """Shows how much of a plan is done, how long the rest takes, and which stages run.

    The state is read from the folders of stages, so stages on other machines are shown, too.

    Args:
        plan: the plan that runs.
        stages: the folder of the stages.
        jobs: how many stages run at once.
        quiet: whether to show nothing.
    """

    def __init__(self, plan: Plan, stages: Path, *, jobs: int, quiet: bool):
        self.plan = plan
        self.stages = stages
        self.jobs = jobs
        self.console = Console(stderr=True, quiet=quiet)
        self.live = Live(console=self.console, refresh_per_second=2, transient=True)
        # Logs of batch jobs get plain lines.
        self.shows = self.console.is_terminal and not quiet
        self.began = time.perf_counter()
        self.printed_at = self.began
        self.named = named(plan.stages())
        # If several runs need a stage, it is shown as a part of the first of them.
        self.titles: dict[str, str] = {}
        for run in reversed(plan.runs):
            self.titles |= dict.fromkeys(named(run.stages), run.title)
        self.forecast = Forecast(self.named, stages)
        self.first_seen: dict[str, float] = {}
        self.lines: dict[str, Plain] = {}
        self.errors: Collection[str] = ()

    def __enter__(self) -> Progress:
        if self.shows:
            self.live.start()
        else:
            self.console.print(self.summary(), soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def say(self, line: str) -> None:
        """Print a permanent line above the live lines."""
        self.console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)

    def update(self, running: Collection[str], errors: Collection[str]) -> None:
        """Draw the new state; without a terminal, print a line each minute."""
        now = time.perf_counter()
        self.first_seen = {name: self.first_seen.get(name, now) for name in running}
        self.errors = errors
        due = self.shows or now - self.printed_at >= LINE_SECONDS
        if self.console.quiet or not due:
            return
        self.printed_at = now
        self.lines = {name: self.last_line(name) for name in running}
        if self.shows:
            self.live.update(Group(self.summary(), *map(self.line_of, running)))
        else:
            self.console.print(self.summary(), soft_wrap=True)

    def last_line(self, name: str) -> Plain:
        """Read the last training line in metrics.jsonl; empty before the first."""
        metrics = self.named[name].folder(self.stages) / "metrics.jsonl"
        try:
            with metrics.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return {}
        # Lines of evaluations come between lines of training.
        for line in reversed(lines):
            # The first line may be cut by TAIL_BYTES, and the last line may be half written.
            with suppress(ValueError):
                found: Plain = json.loads(line)
                if found["kind"] == "train":
                    return found
        return {}

    def line_of(self, name: str) -> Text:
        """Return a running stage with its run and the share of its steps that is done."""
        line = f"  {self.titles[name]}: {self.named[name].kind}"
        if self.lines[name]:
            line += f" {100 * self._share(name):.0f} %"
        return Text(line, "cyan", no_wrap=True)

    def summary(self) -> Text:
        """Return the stages that are done and failed, the time so far, and the time left."""
        left, complete = self.left()
        parts = [f"{len(self.forecast.finished)} of {len(self.named)} stages"]
        if self.errors:
            parts.append(f"{len(self.errors)} failed")
        parts.append(duration(time.perf_counter() - self.began))
        # Before any stage has finished, a partial sum would be far too low.
        if left and complete:
            parts.append(f"about {duration(left)} left")
        elif left and self.forecast.finished:
            parts.append(f"more than {duration(left)} left")
        line = ", ".join(parts)
        if self.plan.purpose != "main":
            line = f"{self.plan.purpose}: {line}"
        return Text(line, no_wrap=True)

    def left(self) -> tuple[float, bool]:
        """Forecast the seconds until the end, and tell whether the time of every stage is known."""
        now = time.perf_counter()
        left: Seconds = {}
        # Running stages keep their workers, so they come first.
        for name in dict.fromkeys([*self.first_seen, *self.named]):
            if name in self.forecast.finished or name in self.errors:
                continue
            seconds = self.forecast.seconds(name)
            line = self.lines.get(name)
            # A training tells its own pace, also if it was resumed.
            if line:
                seconds = line["seconds"] * (1 / self._share(name) - 1)
            elif seconds is not None:
                seconds = max(0.0, seconds - now + self.first_seen.get(name, now))
            left[name] = seconds
        return until_end(self.named, left, self.jobs), None not in left.values()

    def _share(self, name: str) -> float:
        """Return the share of its steps that a training stage has done."""
        training = self.named[name].what["training"]
        done: float = self.lines[name]["step"] / training["steps"]
        return min(1.0, done)
