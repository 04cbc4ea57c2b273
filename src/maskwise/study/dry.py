"""What a study would do, and how long that may take; nothing is written and nothing is trained.

Times come from like stages that are in the folders already (of this study, or shared; ``live.Pace``). Where there are
none, that is said rather than guessed. What a search or a matching will decide is not known yet: such runs are counted
at the first point of the grid, or at the steps as written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from maskwise.folders import read_json
from maskwise.jobs import require_engine
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.checks import check_inputs, require_study_folder
from maskwise.study.live import Pace
from maskwise.study.phases import Design
from maskwise.study.run import shared_folder
from maskwise.study.stages import Stage


def dry_run(
    recipe: Recipe, out: Path, *, jobs: int | None = None, engine: str = "local", cache: Path | None = None
) -> Plain:
    """What ``run_study`` with the same arguments would do.

    Returns:
        ``phases``: of each, its name, runs, and stages to do. ``stages``: by kind ``done``, ``to_do`` and ``seconds``
        (of work, None where no like stage was timed). ``seconds``: until the end with ``jobs`` at once, None if not
        known. ``unknown``: kinds without a time. ``notes``: what may still change.

    Raises:
        MaskwiseError: bad input, as ``run_study`` itself raises it.
    """
    require_engine(engine)
    require_study_folder(out)
    notes = check_inputs(recipe)
    at_once = jobs or os.cpu_count() or 1
    with _view(out / "stages", shared_folder(recipe, cache)) as stages:
        design = Design(recipe, stages)
        plans = list(design.phases())
        pace = _timed(stages)
        named = {stage.name: stage for plan in plans for stage in plan.stages()}
        to_do = {name: stage for name, stage in named.items() if stage.result(stages) is None}
    phases, seen = [], set[str]()
    for plan in plans:
        new = {stage.name for stage in plan.stages() if stage.name in to_do} - seen
        seen |= new
        phases.append({"phase": plan.phase, "runs": len(plan.runs), "to_do": len(new)})
    seconds = {name: pace.seconds(stage) for name, stage in to_do.items()}
    kinds: dict[str, Plain] = {}
    for kind in dict.fromkeys(stage.kind for stage in named.values()):
        left = [seconds[name] for name, stage in to_do.items() if stage.kind == kind]
        work = None if None in left else round(sum(s for s in left if s is not None), 1)
        done = sum(stage.kind == kind for stage in named.values()) - len(left)
        kinds[kind] = {"done": done, "to_do": len(left), "seconds": work}
    unknown = [kind for kind, facts in kinds.items() if facts["seconds"] is None]
    return {
        "name": recipe.name, "out": str(out), "jobs": at_once, "phases": phases, "stages": kinds,
        "seconds": None if unknown else _wall(to_do, seconds, at_once), "unknown": unknown,
        "notes": notes + list(_notes(recipe, design)),
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


def _timed(stages: Path) -> Pace:
    """What the stages in a folder took, as far as their files can be read."""
    pace = Pace()
    for folder in stages.iterdir():
        plain = read_json(folder / "stage.json")
        with suppress(TypeError, KeyError):  # it is damaged, or another version wrote it
            stage = Stage.from_dict(plain or {})
            if result := stage.result(stages):
                pace.add(stage, result["seconds"])
    return pace


def _wall(to_do: Mapping[str, Stage], seconds: Mapping[str, float | None], jobs: int) -> float:
    """Seconds at best: all jobs are busy all the time, but never less than the longest chain of stages."""
    ends: dict[str, float] = {}
    for name, stage in to_do.items():  # needed ones come first
        ends[name] = (seconds[name] or 0.0) + max((ends.get(need, 0.0) for need in stage.needs), default=0.0)
    return round(max([sum(s or 0.0 for s in seconds.values()) / jobs, *ends.values()]), 1)


def _notes(recipe: Recipe, design: Design) -> Iterator[str]:
    if any(choice["chosen"] is None for choice in design.choices):
        yield "the search is not done: the settings of its arms are not known yet"
    if recipe.study.match != "steps" and design.budget is None:
        yield f"steps will be matched by {recipe.study.match} when the texts are prepared; counted as written"
