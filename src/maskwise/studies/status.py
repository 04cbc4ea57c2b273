"""What is finished, running, failed and left in the folder of a study, and which files can go.

Everything is read from the folders of the stages, so another process may run the study meanwhile.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from itertools import chain
from pathlib import Path

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import OutputFolder, read_json
from maskwise.recipe.yamls import Plain
from maskwise.studies.costs import Forecast, share_of, total
from maskwise.studies.records import PLAN, read_plan, stage_of
from maskwise.studies.stages import CHECKPOINT, KINDS
from maskwise.studies.store import StageStore
from maskwise.training.checkpoint import saved_step

STATES = ("finished", "running", "failed", "left")
"""States of a stage. A stage that is left may wait for a stage that failed."""


def status_of(out: Path) -> Plain:
    """Return the state of a study.

    Returns:
        ``name``: the name of the study. ``processes``: those that work on it now. ``counts``: the
        number of stages in each of ``STATES``. ``planned_all``: whether the stages are all that the
        study will run (a search decides on further runs). ``seconds_done`` and ``seconds_left``:
        the work of finished stages, and of the others, as ``Forecast`` predicts it (None if it is
        unknown).
        ``pending``: the seeds without records. ``stages``: for each stage its ``name``, ``kind``,
        ``work``, ``run``, ``state``, ``seconds`` (None if unfinished), ``share`` (of the steps of a
        running training; None if unknown) and ``error`` (of a failed stage).

    Raises:
        MaskwiseError: there is no study in the folder.
    """
    study, planned, planned_all = _read(out)
    store = StageStore.of_last_call(out)
    known = {name: stage_of(facts) for name, facts in planned.items()}
    forecast = Forecast(known, store)
    stages = []
    left: list[float | None] = []
    for name, facts in planned.items():
        result = store.result(name)
        line = {} if result else store.last_line(name)
        status = _stage_status(store, name, facts, result)
        if status["state"] == "running":
            status["share"] = share_of(known[name], line) or None
        stages.append(status)
        if status["state"] == "running":
            left.append(forecast.left(name, line))
        elif status["state"] == "left":
            # Steps after the last saved state are repeated.
            left.append(forecast.left(name, line, step=saved_step(store.folder(name))))
    return {
        "name": study.get("name", ""),
        "processes": OutputFolder(out).users(),
        "counts": {state: [s["state"] for s in stages].count(state) for state in STATES},
        "planned_all": planned_all,
        "seconds_done": round(sum(stage["seconds"] or 0.0 for stage in stages), 1),
        "seconds_left": total(left),
        "pending": study.get("pending", []),
        "stages": stages,
    }


def _read(out: Path) -> tuple[Plain, dict[str, Plain], bool]:
    """Read study.json and the list of planned stages."""
    plan = read_plan(out)
    study = read_json(out / "study.json")
    if plan is None or study is None:
        if not out.is_dir():
            raise MaskwiseError(
                "there is no such folder",
                got=str(out),
                do="give the folder (--out) of maskwise study or maskwise adapt",
            )
        missing = "study.json" if study is None else f"stages/{PLAN}"
        raise MaskwiseError(
            "this is not the folder of a study",
            got=f"{out}, without a readable {missing}",
            do="give the folder (--out) of maskwise study or maskwise adapt; if it is one, the "
            "same command writes this file",
        )
    return study, plan["stages"], plan["all"]


def _stage_status(store: StageStore, name: str, facts: Plain, result: Plain | None) -> Plain:
    error = None
    if result is not None:
        state = "finished"
    elif store.is_run(name):
        state = "running"
    else:
        error = _error(store.folder(name))
        state = "left" if error is None else "failed"
    return {
        "name": name,
        "kind": facts["kind"],
        "work": facts["work"],
        "run": facts["run"],
        "state": state,
        "seconds": result and result["seconds"],
        "share": None,
        "error": error,
    }


def _error(folder: Path) -> str | None:
    """Return the error of a failed stage in one line; None if the stage has not failed."""
    with suppress(OSError):
        lines = (folder / "error.txt").read_text("utf-8", errors="replace").strip().splitlines()
        if lines:
            # Those of maskwise say all in their message.
            return re.sub(r"^maskwise(\.\w+)+: ", "", lines[-1])
    return None


# Checkpoints of finished runs
# --------------------------------------------------------------------------------------------


def drop_checkpoints(out: Path, *, dry_run: bool = False) -> Plain:
    """Remove the checkpoints of finished runs, which take most of the disk space of a study.

    The results, the logs and the texts stay, so the study stays finished and its page complete. A
    checkpoint is kept if a stage that is not finished needs it, or if it is in a folder that
    several studies share.

    Args:
        out: the folder of the study.
        dry_run: whether to remove nothing.

    Returns:
        ``removed``: the folders, relative to ``out``; ``bytes``: their size; ``kept``: for each
        other checkpoint of the study, why it is kept.

    Raises:
        MaskwiseError: a process works on the study, the study has further runs, or the adapted
            model was not saved yet.
    """
    folder = OutputFolder(out)
    _read(out)
    with folder.alone():
        study, planned, planned_all = _read(out)
        store = StageStore.of_last_call(out)
        users = folder.users() or [name for name in planned if store.is_run(name)]
        if users:
            raise MaskwiseError(
                f"{out} is in use, and its checkpoints may be needed",
                got=", ".join(users),
                do="wait until the study ends",
            )
        if not planned_all or study.get("pending"):
            raise MaskwiseError(
                f"the study in {out} has not run all that it plans",
                do="run the same maskwise study command first; later runs may start from these "
                "checkpoints",
            )
        if (out / "adapt.yaml").is_file() and not (out / "adapted.json").is_file():
            raise MaskwiseError(
                f"maskwise adapt has not saved its model in {out} yet",
                do="run the same maskwise adapt command first",
            )
        kept = {}
        removed = []
        for name, facts in planned.items():
            if KINDS[facts["kind"]].output != CHECKPOINT:
                continue
            path = store.output(name)
            if not path.is_dir():
                continue
            reason = _needed(store, name, planned)
            if reason:
                kept[name] = reason
            else:
                removed.append(path)
        files = chain.from_iterable(path.rglob("*") for path in removed)
        sizes = [file.stat() for file in files if file.is_file()]
        # The chosen length of a training shares its bytes with the part that ended there.
        size = sum({(each.st_dev, each.st_ino): each.st_size for each in sizes}.values())
        if not dry_run:
            for path in removed:
                shutil.rmtree(path)
    return {
        "removed": [str(path.relative_to(out)) for path in removed],
        "bytes": size,
        "kept": kept,
    }


def _needed(store: StageStore, name: str, planned: dict[str, Plain]) -> str | None:
    """Return why the checkpoint of a stage is kept; None if nothing needs it."""
    if store.result(name) is None:
        return "its training is not finished"
    if not store.folder(name).is_relative_to(store.own):
        return "other studies share it"
    for other, facts in planned.items():
        if name in facts["needs"] and store.result(other) is None:
            return f"{other} needs it"
    for stage in store.stages():
        # Another study may have set study.cache to this folder.
        if stage.name not in planned and name in stage.needs:
            return f"{stage.name}, which this study does not plan, needs it"
    return None
