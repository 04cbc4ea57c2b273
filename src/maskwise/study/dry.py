"""What a study would do, and how long that may take; nothing is written and nothing is trained.

Times come from like stages that are in the folders already (of this study, or shared), or from the
few steps that ``maskwise check`` has timed here (``forecast``). Where there are none, that is said
rather than guessed.

What a search or a matching will decide is not known yet: the runs that follow a search are counted
at the first point of the grid, and those that are matched at the steps as written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from maskwise.folders import read_json
from maskwise.jobs import require_engine
from maskwise.models import empty_model
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.checks import check_inputs, require_study_folder, start_of
from maskwise.study.costs import expected
from maskwise.study.design import Design
from maskwise.study.forecast import Forecast, wall
from maskwise.study.plan import Run
from maskwise.study.run import block_of, shared_folder
from maskwise.study.stages import STAGE, Stage


def dry_run(
    recipe: Recipe,
    out: Path,
    *,
    jobs: int | None = None,
    engine: str = "local",
    cache: Path | None = None,
    seeds: Sequence[int] | None = None,
) -> Plain:
    """What ``run_study`` with the same arguments would do.

    Returns:
        ``plans``: of each, its purpose, runs, and stages to do. ``phases``: the trainings of a run
            in order, with the
        arms that share them, and what each costs (``_phases``). ``stages``: by kind ``done``,
        ``to_do`` and ``seconds`` (of work, None where no like stage was timed). ``seconds``: until
        the end with ``jobs`` at once, None if not known. ``unknown``: kinds without a time.
        ``contrasts``: what each can tell (``prospects``). ``notes``: what may still change.

    Raises:
        MaskwiseError: bad input, as ``run_study`` itself raises it.
    """
    from maskwise.study.prospects import (
        prospects_of,
    )  # here, because workers import this room and need no scipy

    require_engine(engine)
    require_study_folder(out, block=seeds is not None)
    seeds = block_of(recipe, seeds)
    notes = check_inputs(recipe)
    at_once = jobs or os.cpu_count() or 1
    with _view(out / "stages", shared_folder(recipe, cache)) as stages:
        design = Design(recipe, stages, seeds=seeds, forecast=True)
        plans = list(design.plans())
        named = {stage.name: stage for plan in plans for stage in plan.stages()}
        there = {stage.name: stage for stage in _known(stages)}
        forecast = Forecast(there | named)
        for name, stage in there.items():
            if result := stage.result(stages):
                forecast.add(name, result["seconds"])
        to_do = {name: stage for name, stage in named.items() if stage.result(stages) is None}
    listed, seen = [], set[str]()
    for plan in plans:
        new = {stage.name for stage in plan.stages() if stage.name in to_do} - seen
        seen |= new
        listed.append({"purpose": plan.purpose, "runs": len(plan.runs), "to_do": len(new)})
    seconds = {name: forecast.seconds(name) for name in to_do}
    kinds: dict[str, Plain] = {}
    for kind in dict.fromkeys(stage.kind for stage in named.values()):
        left = [seconds[name] for name, stage in to_do.items() if stage.kind == kind]
        work = None if None in left else round(sum(s for s in left if s is not None), 1)
        done = sum(stage.kind == kind for stage in named.values()) - len(left)
        kinds[kind] = {"done": done, "to_do": len(left), "seconds": work}
    unknown = [kind for kind, facts in kinds.items() if facts["seconds"] is None]
    return {
        "name": recipe.name,
        "out": str(out),
        "jobs": at_once,
        "plans": listed,
        "phases": list(_phases(design, seconds)),
        "stages": kinds,
        "seconds": None if unknown else wall(to_do, seconds, at_once),
        "unknown": unknown,
        "contrasts": prospects_of(recipe, out),
        "notes": notes + list(_notes(recipe, design)),
    }


def _phases(design: Design, seconds: Mapping[str, float | None]) -> Iterator[Plain]:
    """Every training of the whole runs: its ``phase`` (from 0) and ``arms``, of which it is one;
    then for one run its ``steps``, ``batch_size``, ``length``, ``tokens`` at most and ``flops``; at
    last its ``runs``, how many of them are ``to_do``, and their ``seconds`` of work (None where no
    like stage was timed).
    """
    shared: dict[tuple[int, str], list[Run]] = {}
    owners: dict[str, Recipe] = {}
    for run in design.runs:
        for number, stage in enumerate(run.trainings if run.compared else ()):
            shared.setdefault((number, stage.name), []).append(run)
            owners[stage.name] = run.recipe
    alike: dict[tuple[int, tuple[str, ...]], list[Stage]] = {}
    for (number, name), runs in shared.items():
        stage = next(stage for stage in runs[0].trainings if stage.name == name)
        alike.setdefault((number, tuple(run.arm for run in runs)), []).append(stage)
    for (number, arms), stages in sorted(alike.items(), key=lambda entry: entry[0][0]):
        own = owners[stages[0].name]
        link, how = own.links()[number], stages[0].what["training"]
        settings = link.training.model_copy(update={"steps": how["steps"]})
        cost = expected(
            link.model_copy(update={"training": settings}), empty_model(start_of(own)[1])
        )
        left = [seconds[stage.name] for stage in stages if stage.name in seconds]
        yield {
            "phase": number,
            "arms": list(arms),
            "steps": how["steps"],
            "batch_size": how["batch_size"],
            "length": link.corpus.length,
            **cost,
            "runs": len(stages),
            "to_do": len(left),
            "seconds": None if None in left else round(sum(s for s in left if s is not None), 1),
        }


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


def _known(stages: Path) -> Iterator[Stage]:
    """The stages in a folder, as far as their files can be read."""
    for folder in stages.iterdir():
        plain = read_json(folder / STAGE)
        with suppress(TypeError, KeyError):  # it is damaged, or another version wrote it
            yield Stage.from_dict(plain or {})


def _notes(recipe: Recipe, design: Design) -> Iterator[str]:
    undone = sum(choice["chosen"] is None for choice in design.choices)
    if undone:
        what = (
            f"{undone} of {len(design.choices)} searches (one for each arm and seed) are not done"
        )
        yield f"{what}: the settings of the runs that follow are not known yet"
    if any(run.prepared.what["corpus"].get("stream") for run in design.runs):
        yield (
            "the text is a stream: nothing of it is counted beforehand, and no more than its "
            "beginning is prepared"
        )
    if recipe.study.match != "steps" and design.budget is None:
        yield (
            f"steps will be matched by {recipe.study.match} when the texts are prepared; "
            f"counted as written"
        )
