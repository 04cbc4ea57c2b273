"""One loop that does stages as soon as what they need is done."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError
from maskwise.study.plan import Plan
from maskwise.study.pool import Pool
from maskwise.study.stages import Stage
from maskwise.study.table import LiveTable
from maskwise.study.work import run_stage


def execute(
    todo: list[Stage],
    stages: Path,
    plan: Plan,
    *,
    jobs: int | None,
    quiet: bool,
    engine: str = "local",
    retries: int = 0,
) -> dict[str, str]:
    """Do stages as soon as what they need is done. Returns the errors by stage name.

    Raises:
        MaskwiseError: when a text cannot be prepared that every run needs.
    """
    errors: dict[str, str] = {}
    waiting = list(todo)
    if not waiting:
        return errors
    missing = {stage.name for stage in waiting}
    everyone = set.intersection(*({stage.name for stage in run.stages} for run in plan.runs))
    table = LiveTable(plan, stages, quiet=quiet)
    pool = Pool(partial(_work, stages=str(stages)), jobs=min(jobs or os.cpu_count() or 1, len(waiting)))
    running: set[str] = set()
    try:
        with table:
            while waiting or running:
                for stage in list(waiting):
                    broken = next((name for name in stage.needs if name in errors), None)
                    if broken:
                        waiting.remove(stage)
                        errors[stage.name] = errors[broken]
                    elif pool.idle and not missing.intersection(stage.needs):
                        waiting.remove(stage)
                        running.add(stage.name)
                        pool.start(stage.as_dict())
                for task, _, error in pool.finished(timeout=0.5):
                    stage = Stage.from_dict(task)
                    running.discard(stage.name)
                    missing.discard(stage.name)
                    if error:
                        errors[stage.name] = error
                        missing.add(stage.name)
                        if stage.kind == "prepare" and stage.name in everyone:
                            raise MaskwiseError(error)
                        table.say(f"{stage.name} failed: {error}")
                table.update(running, errors)
    finally:
        pool.close()
    return errors


def _work(task: dict[str, Any], *, stages: str) -> dict[str, Any]:
    return run_stage(Stage.from_dict(task), Path(stages))
