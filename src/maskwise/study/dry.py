"""What a study would do, and how long that may take; nothing is written and nothing is trained.

Times come from stages of the same kind and settings that are in the folders already (of this study, or shared). Where
there are none, that is said rather than guessed. What a search or a matching will decide is not known yet: such runs
are counted at the first point of the grid, or at the steps as written.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from maskwise.jobs import require_engine
from maskwise.study.checks import check_folder, check_inputs
from maskwise.study.phases import Design
from maskwise.study.runner import shared_folder
from maskwise.study.stages import Stage


def dry_run(
    recipe: Any, out: Path, *, jobs: int | None = None, engine: str = "local", cache: Path | None = None
) -> dict[str, Any]:
    """What ``run_study`` with the same arguments would do.

    Returns:
        ``phases``: of each, its name, runs, and stages to do. ``stages``: by kind ``done``, ``to_do`` and ``seconds``
        (of work, None where no like stage was timed). ``seconds``: until the end with ``jobs`` at once, None if not
        known. ``unknown``: kinds without a time. ``notes``: what may still change.

    Raises:
        MaskwiseError: bad input, as of the study itself.
    """
    require_engine(engine)
    check_folder(out)
    known = check_inputs(recipe)
    at_once = jobs or os.cpu_count() or 1
    with _view(out / "stages", shared_folder(recipe, cache)) as stages:
        design = Design(recipe, stages)
        plans = list(design.phases())
        timed = _timed(stages)
        named = {stage.name: stage for plan in plans for stage in plan.stages()}
        to_do = {name: stage for name, stage in named.items() if stage.result(stages) is None}
        phases, seen = [], set[str]()
        for plan in plans:
            new = [stage.name for stage in plan.stages() if stage.name in to_do and stage.name not in seen]
            seen.update(new)
            phases.append({"phase": plan.phase, "runs": len(plan.runs), "to_do": len(new)})
    seconds = {name: _guess(stage, timed) for name, stage in to_do.items()}
    kinds: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(stage.kind for stage in named.values()):
        names = [name for name, stage in named.items() if stage.kind == kind]
        left = [seconds[name] for name in names if name in to_do]
        work = None if None in left else round(sum(s for s in left if s is not None), 1)
        kinds[kind] = {"done": len(names) - len(left), "to_do": len(left), "seconds": work}
    unknown = [kind for kind, facts in kinds.items() if facts["seconds"] is None]
    return {
        "name": recipe.name, "out": str(out), "jobs": at_once, "phases": phases, "stages": kinds,
        "seconds": None if unknown else _wall(to_do, seconds, at_once), "unknown": unknown,
        "notes": known + list(_notes(recipe, design, to_do.values())),
    }  # fmt: skip


@contextmanager
def _view(own: Path, shared: Path | None) -> Iterator[Path]:
    """A folder elsewhere that shows the stages of both, for as long as it is open."""
    with tempfile.TemporaryDirectory(prefix="maskwise-") as name:
        folder = Path(name)
        for source in (own, shared):
            for stage in source.glob("*-*/") if source and source.is_dir() else ():
                if not (folder / stage.name).is_symlink():
                    (folder / stage.name).symlink_to(stage.resolve(), target_is_directory=True)
        yield folder


def _timed(stages: Path) -> dict[str, list[float]]:
    """Seconds for one unit of work, by what makes stages alike."""
    found: dict[str, list[float]] = defaultdict(list)
    for folder in stages.iterdir():
        try:
            stage = Stage.from_dict(json.loads((folder / "stage.json").read_text(encoding="utf-8")))
            result = stage.result(stages)
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if result and "seconds" in result:
            found[_like(stage)].append(result["seconds"] / _size(stage))
    return found


def _like(stage: Stage) -> str:
    """What two stages must share for the time of one to tell that of the other."""
    keys = {"prepare": ("corpus",), "finetune": ("task", "finetune"), "evaluate": ("evaluation",)}
    keys["overlap"] = ("corpus",)
    same = {key: stage.what.get(key) for key in keys.get(stage.kind, ("model",))}
    training = stage.what.get("training", {})
    return json.dumps(
        [stage.kind, same, training.get("optimizer"), training.get("precision")], sort_keys=True
    )


def _size(stage: Stage) -> float:
    """Rows of a training; other stages are one piece."""
    training = stage.what.get("training") if stage.kind == "pretrain" else None
    return training["steps"] * training["batch_size"] if training else 1


def _guess(stage: Stage, timed: dict[str, list[float]]) -> float | None:
    known = timed.get(_like(stage))
    return median(known) * _size(stage) if known else None


def _wall(to_do: dict[str, Stage], seconds: dict[str, float | None], jobs: int) -> float:
    """At best: all jobs busy all the time, but never less than the longest chain of stages."""
    ends: dict[str, float] = {}
    for name, stage in to_do.items():  # needed ones come first
        ends[name] = (seconds[name] or 0.0) + max((ends.get(need, 0.0) for need in stage.needs), default=0.0)
    return round(max([sum(s or 0.0 for s in seconds.values()) / jobs, *ends.values()]), 1)


def _notes(recipe: Any, design: Design, to_do: Iterable[Stage]) -> Iterator[str]:
    waiting = {stage.kind for stage in to_do}
    search, by = recipe.study.search, recipe.study.match
    if search and any(
        choice["kind"] == "selection" and choice["chosen"] is None for choice in design.choices
    ):
        yield "the search is not done: the settings of its arms are not known yet"
    if by != "steps" and design.budget is None:
        yield f"steps will be matched by {by} when the texts are prepared; counted as written"
    if recipe.study.stop_hopeless and "pretrain" in waiting:
        yield "arms may be dropped on the way"
