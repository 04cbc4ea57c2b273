"""Read the files of a study or a pre-training run for the page.

A study needs study.json, and a run needs metrics.jsonl. All other files may be missing or
incomplete, as in a study that is still running.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from maskwise.base.constants import LOWER_IS_BETTER
from maskwise.base.errors import MaskwiseError, shortened
from maskwise.base.folders import finite, read_json, read_lines
from maskwise.results.files import RULES, Record, Study, Summary
from maskwise.results.measurements import (
    Measurement,
    measurements,
    pending_seeds,
    refuse_earlier,
)
from maskwise.verdict import summarise
from maskwise.verdict.outcomes import Outcomes

if TYPE_CHECKING:
    from pydantic import TypeAdapter

LogLine: TypeAlias = dict[str, Any]
"""A JSON object from a file; docs/files.md describes the keys."""
Measured: TypeAlias = dict[tuple[str, Any], list[Measurement]]
"""The measurements of runs, keyed by measure."""
RowKey: TypeAlias = tuple[str, str, str, bool]
"""The arm, the baseline and the outcome of a row, and whether it is a gate: with a search, a pair
may be both."""
NO_STUDY: Study = {
    "name": "",
    "description": "",
    "maskwise": "",
    "started": "",
    "seconds": None,
    "versions": {},
    "hardware": {},
    "recipe": {},
    "recipe_yaml": "",
    "baseline": "",
    "untrained": {},
    "seeds": [],
    "arms": {},
    "tasks": {},
    "contrasts": [],
}
NO_SUMMARY: Summary = {
    "baseline": "",
    "matched_by": None,
    "arms": {},
    "contrasts": [],
    "verdict": None,
    "headline": "",
    "advice": [],
    "advice_codes": [],
    "overlap": [],
    "efficiency": {"points": []},
    "guessed": [],
    "losses": [],
}
REQUIRED = {
    "task": {"arm", "seed", "measure", "value"},
    "heldout": {"arm", "seed", "measure", "value", "ratio"},
    "evaluation": {"arm", "seed", "measure", "value", "metric"},
    "cost": {"arm", "seed"},
    "policy": {"arm", "seed"},
    "failure": {"arm", "seed", "stage", "error"},
    "selection": {"arm", "by", "chosen", "candidates"},
    "overlap": {"task", "corpus", "items", "overlapping"},
}
"""Required keys for each kind of record. Records that lack one, or with a value of another type
than that of ``files.Record``, are left out."""
MAY_BE_NULL = {"seed", "value", "metric", "chosen"}
RUN_AGAIN = "run the study again"


@dataclass
class Folder:
    """The content of the folder of a study or a run.

    Attributes:
        kind: "study" or "run". A single run is represented as a study with one arm and one seed.
        name: the name of the study or the folder.
        study: the content of study.json.
        records: the lines of records.jsonl.
        incomplete: the number of lines that lack required keys or have values of wrong types, and
            are left out.
        summary: the verdicts by today's rules.
        unjudged: why the records cannot be judged; otherwise "".
        judged_by: the version of the rules in summary.json; None without summary.json.
        decisions: what summary.json decided, keyed by row (``RowKey``).
        samples: masked texts, keyed by arm.
        curves: the lines of all metrics.jsonl files, with the arm and seed of their run.
        steps: the number of optimiser steps of a finished single run.
        adapted: the content of adapted.json; {} for other studies than those of ``maskwise adapt``.
    """

    kind: str
    name: str
    study: Study = field(default_factory=lambda: NO_STUDY)
    records: list[LogLine] = field(default_factory=list)
    incomplete: int = 0
    summary: Summary = field(default_factory=lambda: NO_SUMMARY)
    unjudged: str = ""
    judged_by: object = None
    decisions: dict[RowKey, str] = field(default_factory=dict)
    samples: dict[str, list[LogLine]] = field(default_factory=dict)
    curves: list[LogLine] = field(default_factory=list)
    steps: int | None = None
    adapted: LogLine = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        return list(self.study["arms"]) if self.kind == "study" else [self.name]

    @property
    def reference(self) -> str:
        """The name of the model without (further) training."""
        return next(iter(self.untrained.values()), "the untrained model")

    @property
    def untrained(self) -> dict[str, str]:
        """The arm that is not trained, and how the page calls it; {} if it was not measured."""
        return self.study["untrained"]

    def label(self, arm: str) -> str:
        """Return the name of an arm on the page."""
        return self.untrained.get(arm, arm)

    def of_kind(self, kind: str) -> list[LogLine]:
        """List the records of one kind, without the runs of a gate.

        These runs have other settings than the compared runs.
        """
        return [line for line in self.records if line["kind"] == kind and "role" not in line]

    @cached_property
    def measured(self) -> list[Measurement]:
        """The measurements of the compared runs."""
        tasks = cast(dict[str, LogLine], self.study["tasks"])
        found = measurements(self.records, tasks)
        return [row for row in found if not row.role]

    def numbers(self, kind: str, *, split: str = "test") -> Measured:
        """Return the measurements of one kind. Numbers that are not finite are left out.

        Args:
            kind: "task", "heldout" or "evaluation".
            split: "test", or another split (``Measurement``).

        Returns:
            The measurements, keyed by measure and metric (or, for held-out losses, masking ratio).
        """
        runs = defaultdict[tuple[str, Any], list[Measurement]](list)
        for row in self.measured:
            if row.kind == kind and row.split == split and finite(row.value) is not None:
                detail = row.ratio if kind == "heldout" else row.metric
                runs[row.measure, detail].append(row)
        return dict(runs)

    def task(self, name: str) -> LogLine:
        """Return the facts of a task, such as its metric and the number of classes."""
        return cast(LogLine, self.study["tasks"].get(name, {}))

    def lower_is_better(self, task: str) -> bool:
        """Return whether lower is better in the metric of a task."""
        return self.task(task).get("metric") in LOWER_IS_BETTER


def read_folder(folder: Path, summary: Summary | None = None) -> Folder:
    """Read all files of a study or run that exist, and judge the study by today's rules.

    No sentence of summary.json is read, because the page explains the rules of today.

    Args:
        folder: the folder of the study or run.
        summary: the verdicts by today's rules; None to judge the records.

    Raises:
        MaskwiseError: ``folder`` is neither a study nor a run, or its main file is damaged.
    """
    if (folder / "study.json").is_file():
        return _read_study(folder, summary)
    if (folder / "shown.json").is_file():
        raise MaskwiseError(
            "this folder holds a learned policy, and its page exists already",
            got=str(folder),
            do=f"open {folder / 'report.html'}",
        )
    if (folder / "metrics.jsonl").is_file():
        return _read_run(folder)
    what = "this folder holds neither a study nor a pre-training run"
    if folder.is_file():
        what = "this is a file, not a folder"
    elif not folder.is_dir():
        what = "there is no such folder"
    raise MaskwiseError(
        what,
        got=str(folder),
        allowed="a folder with study.json or metrics.jsonl",
        do="give the --out folder of maskwise study or maskwise pretrain",
    )


def summary_of(folder: Path) -> Summary:
    """Return the verdicts of a study by today's rules, from study.json and records.jsonl.

    Nothing is written: summary.json stays as the study was judged when it ran.

    Raises:
        MaskwiseError: the folder holds a single run, or records that are missing or damaged.
    """
    folder = Path(folder)
    read = read_folder(folder)
    if read.kind != "study":
        raise MaskwiseError(
            "a single run has no verdicts", got=str(folder), do="give the folder of a study"
        )
    if read.summary is NO_SUMMARY:
        raise MaskwiseError(
            read.unjudged or "this study has no records yet",
            got=str(folder),
            do="repeat the maskwise study command, which resumes the study",
        )
    return read.summary


def changes_of(folder: Path) -> list[str]:
    """Say how today's verdicts differ from those in summary.json, if other rules reached those.

    If the records cannot be judged, the result says why.
    """
    read = read_folder(Path(folder))
    if read.unjudged:
        return [f"{folder}: the records cannot be judged: {read.unjudged}"]
    if read.judged_by in (None, RULES) or read.summary is NO_SUMMARY:
        return []
    lines = [f"{folder}: {judged_words(read.judged_by)}"]
    for row in read.summary["contrasts"]:
        was = read.decisions.get(_key(row), "not judged")
        if row["primary"] and was != row["verdict"]:
            what = f"{row['arm']} against {row['baseline']}{', the gate' * bool(row.get('gate'))}"
            lines.append(f"  {what}: was {was}, is {row['verdict']}")
    return lines


def judged_words(rules: object) -> str:
    """Say that the verdicts in summary.json follow other rules than those that are shown.

    Args:
        rules: the version of the rules in summary.json.
    """
    return (
        f"The verdicts in summary.json were reached by version {rules} of the rules. The verdicts "
        f"here were computed anew from the records, by the rules of today (version {RULES})."
    )


def judged(study: Study, records: list[LogLine]) -> tuple[Summary, str]:
    """Judge the records of a study.

    Returns:
        summary: the verdicts by today's rules; ``NO_SUMMARY`` if there are none.
        reason: why records cannot be judged; otherwise "".
    """
    lines = cast(list[Record], records)
    if not study["seeds"] or not lines:
        return NO_SUMMARY, ""
    try:
        return summarise(lines, {**study, "pending": pending_seeds(study, lines)}), ""
    except MaskwiseError as error:
        return NO_SUMMARY, str(error)
    except KeyError as error:
        return NO_SUMMARY, f"study.json or records.jsonl lacks the key {error}"


def read_outcomes(folder: Path) -> Outcomes | None:
    """Read the outcomes of a study's compared runs; None if the folder has no records.

    Raises:
        MaskwiseError: study.json has a value of another type, or see ``Outcomes``.
    """
    records, _ = _records_in(folder)
    if not records or not (folder / "study.json").is_file():
        return None
    return Outcomes(cast(list[Record], records), _study_in(folder))


def _study_in(folder: Path) -> Study:
    """Return the content of study.json, in which nulls are left out."""
    path = folder / "study.json"
    # A null stands for a missing key, but a study has arms.
    own = {key: value for key, value in _needed(path).items() if value is not None or key == "arms"}
    _require_types(own, path)
    if "looks" in own:
        # Sentences count runs with them.
        own["looks"] = [*map(int, own["looks"])]
    return cast(Study, {**NO_STUDY, **own})


def _records_in(folder: Path) -> tuple[list[LogLine], int]:
    """Return the lines of records.jsonl, and the number of lines that are left out."""
    records = []
    incomplete = 0
    for line in read_lines(folder / "records.jsonl"):
        # Scores were lines of kind "score": a line of kind "task" lacks a key, but is not that old.
        if line.get("kind") != "task":
            refuse_earlier(line)
        required = REQUIRED.get(str(line.get("kind")))
        if required is None:
            continue
        known = {key: value for key, value in line.items() if value is not None}
        needed = required - MAY_BE_NULL
        complete = required <= line.keys() and needed <= known.keys()
        if complete and not any(_misfits(known, Record)):
            records.append(line)
        else:
            incomplete += 1
    return records, incomplete


def _read_study(folder: Path, summary: Summary | None) -> Folder:
    study = _study_in(folder)
    arms = study["arms"]
    records, incomplete = _records_in(folder)
    curves = []
    for arm, facts in arms.items():
        for seed, stage in facts.get("runs", {}).items():
            # Paths of shared stages are absolute. Ignore other paths outside of the folder. Links
            # are not resolved here, because stages may be links to another disk.
            inside = Path(os.path.normpath(folder / stage)).is_relative_to(os.path.normpath(folder))
            if Path(stage).is_absolute() or inside:
                curves += _curves(folder / stage, arm, int(seed))
    unjudged = ""
    if summary is None:
        summary, unjudged = judged(study, records)
    stored = read_json(folder / "summary.json") or {}
    saved = read_json(folder / "adapted.json") or {}
    return Folder(
        kind="study",
        name=study["name"] or folder.resolve().name,
        study=study,
        records=records,
        incomplete=incomplete,
        summary=summary,
        unjudged=unjudged,
        judged_by=stored.get("rules"),
        decisions=_decisions(stored),
        samples=read_json(folder / "samples.json") or {},
        curves=curves,
        adapted=saved,
    )


def _read_run(folder: Path) -> Folder:
    name = folder.resolve().name
    recipe = folder / "recipe.yaml"
    done = read_json(folder / "done.json") or {}
    study: Study = {**NO_STUDY, "seconds": done.get("seconds")}
    if recipe.is_file():
        study["recipe_yaml"] = recipe.read_text("utf-8", errors="replace")
    return Folder(
        kind="run",
        name=name,
        study=study,
        samples=read_json(folder / "samples.json") or {},
        curves=_curves(folder, name, 0),
        steps=done.get("steps"),
    )


def _key(row: Mapping[str, Any]) -> RowKey:
    pair = str(row.get("arm")), str(row.get("baseline"))
    return *pair, str(row.get("outcome")), bool(row.get("gate"))


def _decisions(stored: LogLine) -> dict[RowKey, str]:
    """Return what summary.json decided, keyed by row."""
    rows = stored.get("contrasts")
    decisions = {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("verdict"):
            decisions[_key(row)] = str(row["verdict"])
    return decisions


def _require_types(study: LogLine, path: Path) -> None:
    wrong = next(chain(_misfits(study, Study, sparse=True), _impossible(study)), None)
    if wrong is not None:
        raise MaskwiseError(f"{path} is damaged", got=wrong, do=RUN_AGAIN)


SPELT_SEED = re.compile(r"0|-?[1-9][0-9]*")
"""A seed as Python writes it."""


def _misfits(value: LogLine, kind: Any, *, sparse: bool = False) -> Iterator[str]:
    """Yield what has another type than a type of ``files`` says, such as "seeds: '0-5'".

    Args:
        value: a JSON object.
        kind: the type.
        sparse: whether groups may lack keys or have nulls for them, except the facts of an arm,
            without which there is no page.
    """
    # Imported here because pages of other programs' scores and lists of policies need no pydantic.
    from pydantic import ValidationError

    # A pair is a list in JSON. Names of files may have bytes that are not UTF-8.
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    try:
        _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        for misfit in error.errors(include_url=False):
            place, given, wrong = misfit["loc"], misfit["input"], misfit["type"]
            keys = [key for key in place if isinstance(key, str)]
            of_key = keys[-1:] == [*place[-1:]]
            missing = of_key and wrong == "missing"
            if (missing or (of_key and given is None)) and sparse and keys[:1] != ["arms"]:
                continue
            # Other programs write whole numbers as 4.0.
            whole = isinstance(given, float) and given.is_integer() and given >= 0
            if whole and wrong == "int_type":
                continue
            if missing:
                yield f"{'.'.join(keys[:-1])} without {keys[-1]}"
            elif wrong == "greater_than_equal":
                yield f"{'.'.join(keys)}: {given}, which is no number ≥ 0"
            else:
                yield f"{'.'.join(keys)}: {shortened(repr(given))}"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _impossible(study: LogLine) -> Iterator[str]:
    """Yield texts that are no seeds or no time, and numbers of runs that are no plan."""
    for facts in study.get("arms", {}).values():
        for seed in facts.get("runs", {}):
            if not SPELT_SEED.fullmatch(seed):
                yield f"the seed {shortened(repr(seed))}"
    looks = study.get("looks")
    seeds = study.get("seeds")
    for key in ("seeds", "pending", "contrasts"):
        for value, times in Counter(map(str, study.get(key) or ())).items():
            if times > 1:
                yield f"{key}: {value}, which is written {times} times"
    if looks is not None and (sorted({*looks}) != looks or min(looks, default=1) < 1):
        yield f"looks: {looks}, which are no rising numbers of runs"
    elif looks is not None and seeds and len(seeds) not in looks:
        yield f"looks: {looks}, which lack the number of seeds, {len(seeds)}"
    started = study.get("started")
    try:
        if started:
            datetime.fromisoformat(started)
    except ValueError:
        yield f"started: {shortened(repr(started))}"


def _needed(path: Path) -> LogLine:
    content = read_json(path)
    if content is None:
        raise MaskwiseError(
            f"{path} cannot be read: the file is incomplete or damaged", do=RUN_AGAIN
        )
    return content


def _curves(folder: Path, arm: str, seed: int) -> list[LogLine]:
    curves = []
    for line in read_lines(folder / "metrics.jsonl"):
        if "step" in line:
            # Losses that are not finite are left out of the charts.
            known = {key: value for key, value in finite(line).items() if value is not None}
            curves.append({**known, "arm": arm, "seed": seed})
    return curves


def values_by_arm(runs: Iterable[Measurement]) -> dict[str, list[float]]:
    """Return the values of runs, keyed by arm."""
    values = defaultdict[str, list[float]](list)
    for row in runs:
        values[row.arm].append(row.value)
    return dict(values)


def in_points(values: Iterable[float], metric: str) -> bool:
    """Return whether scores are shown × 100, in points: if all are between -1 and 1, and higher is
    better.
    """
    return metric not in LOWER_IS_BETTER and all(abs(value) <= 1 for value in values)


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if len(values) else None
