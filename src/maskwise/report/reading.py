"""Reads a study folder, or the folder of one pre-training run, into typed records for the page.

Everything but study.json (of a study) or metrics.jsonl (of a run) may be missing or half written: a
page about a study that is still running is a smaller page. Only a folder that is neither is
refused. All defence stands here: what is read has every key that its type names, numbers that are
not finite are left out, and so are records without their number. The other files of this room trust
it.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, cast

from maskwise.errors import MaskwiseError
from maskwise.files import Record, Study, Summary
from maskwise.folders import read_json, read_lines


class Line(TypedDict, total=False):
    """A line of metrics.jsonl, with the arm and the seed of its run."""

    kind: str
    arm: str
    seed: int
    step: int
    seconds: float
    loss: float
    padding: float
    speed: dict[str, float]
    tokens: int
    ratio: float
    scheduled_ratio: float
    masks: str
    unigram: float
    weights: dict[str, float]
    arm_steps: dict[str, int]
    probabilities: dict[str, float]
    probe_losses: dict[str, float]
    probe_step: int
    probe_seconds: float
    reliability: float
    notes: list[str]


class Timing(TypedDict):
    """A line of timings.jsonl."""

    purpose: str
    kind: str
    arm: str
    seed: int
    fraction: float
    seconds: float


class Piece(TypedDict, total=False):
    """A token of a sample: the text of the document, and what the model saw of it."""

    text: str
    state: str
    shown: str


class Moment(TypedDict):
    """A sample as it is masked at one step of the training."""

    step: int
    ratio: float
    pieces: list[Piece]


class Sample(TypedDict, total=False):
    document: str
    pieces: list[Piece]
    """In the middle of the training."""
    moments: list[Moment]
    """Over the training; studies made before the end of November 2026 have none."""
    learnt: bool
    """Whether the policy masks with the weights that it had at the end of the run."""


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
    "reference": None,
    "seeds": [],
    "arms": {},
    "tasks": {},
    "contrasts": [],
    "match": None,
    "search": None,
}
NO_SUMMARY: Summary = {
    "baseline": "",
    "matched_by": None,
    "arms": {},
    "contrasts": [],
    "verdict": None,
    "headline": "",
    "advice": [],
    "overlap": [],
    "tasks": {},
    "efficiency": {"points": [], "crossings": []},
}
REQUIRED = {
    "score": {"arm", "seed", "task", "score"},
    "heldout": {"arm", "seed", "masks", "ratio", "loss"},
    "evaluation": {"arm", "seed", "name", "metric", "value"},
    "cost": {"arm", "seed"},
    "policy": {"arm", "seed"},
    "failure": {"arm", "seed", "stage", "error"},
    "selection": {"arm", "by", "chosen", "candidates"},
    "overlap": {"task", "corpus", "items", "overlapping"},
    "coverage": {"task", "corpus"},
}


Numbers: TypeAlias = dict[tuple[str, Any], dict[str, dict[int, float]]]
"""Measure → arm → seed → number."""
MEASURES = {
    "score": ("task", "metric", "score"),
    "heldout": ("masks", "ratio", "loss"),
    "evaluation": ("name", "metric", "value"),
}
"""By kind of record, the two keys that name a measure, and the key of its number."""

OLD_EFFECTS = {"voids": "invalid", "caps": "notes", "said": "notes"}
"""The effects of earlier rules; what capped a verdict is not in its sentence, and is a note."""


@dataclass
class Folder:
    """What a folder holds. ``kind`` is "study" or "run"; a single run is one arm with one seed, of
    an empty study.
    """

    kind: str
    name: str
    study: Study = field(default_factory=lambda: NO_STUDY)
    records: list[Record] = field(default_factory=list)
    summary: Summary = field(default_factory=lambda: NO_SUMMARY)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    curves: list[Line] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    steps: int | None = None
    """The steps of a single run that has finished."""
    seconds: float | None = None
    recipe_yaml: str = ""
    unread: int = 0
    """Lines of records.jsonl that are cut, damaged or without what their kind needs."""

    @property
    def arms(self) -> list[str]:
        return list(self.study["arms"]) if self.kind == "study" else [self.name]

    @property
    def reference(self) -> str:
        """What the models without (further) training are called; their records have the arm
        ``REFERENCE``.
        """
        return self.study["reference"] or "no pre-training"

    @property
    def whole(self) -> list[Record]:
        """The records without those of companion runs and of runs for a gate, which are not pooled
        with the others.
        """
        return [
            record
            for record in self.records
            if record.get("fraction", 1) == 1 and "role" not in record
        ]

    def numbers(self, kind: str, value: str = "") -> Numbers:
        """What whole runs were measured by, in one kind of record.

        Args:
            value: what to read in place of the number that runs are compared by: another key, or
                another metric.
        """
        name, detail, usual = MEASURES[kind]
        table: Numbers = defaultdict(lambda: defaultdict(dict))
        for record in self.whole:
            line = cast(dict[str, Any], record)
            number = {**line.get("others", {}), **line}.get(value or usual)
            if line["kind"] == kind and number is not None:
                table[line[name], line.get(detail)][line["arm"]][line["seed"]] = number
        return table

    def runs(self) -> dict[str, dict[int, list[Line]]]:
        """The curves by arm and seed."""
        runs: dict[str, dict[int, list[Line]]] = defaultdict(lambda: defaultdict(list))
        for line in self.curves:
            runs[line["arm"]][line["seed"]].append(line)
        return runs


def read_folder(folder: Path) -> Folder:
    """Everything that is there.

    Raises:
        MaskwiseError: ``folder`` is neither a study nor a run, or its main file is damaged.
    """
    if not folder.is_dir():
        do = "give the --out folder of a study or run"
        raise MaskwiseError("there is no such folder", got=str(folder), do=do)
    if (folder / "study.json").is_file():
        return _read_study(folder)
    if (folder / "shown.json").is_file():
        do = f"open {folder / 'report.html'}"
        raise MaskwiseError(
            "this folder holds a learned policy, which has a page of its own",
            got=str(folder),
            do=do,
        )
    if (folder / "metrics.jsonl").is_file():
        return _read_run(folder)
    raise MaskwiseError(
        "this folder holds neither a study nor a pre-training run",
        got=str(folder),
        allowed="a folder with study.json or metrics.jsonl",
        do="give the --out folder of maskwise study or maskwise pretrain",
    )


def summary_of(folder: Path) -> Summary:
    """summary.json of a study.

    Raises:
        MaskwiseError: there is none, or it is damaged.
    """
    folder = Path(folder)
    if read_folder(folder).kind != "study":
        raise MaskwiseError(
            "a single run has no verdicts", got=str(folder), do="give the folder of a study"
        )
    if not (folder / "summary.json").is_file():
        do = "give the same maskwise study command again: it goes on where it stopped"
        raise MaskwiseError("this study has not been summed up", got=str(folder), do=do)
    return cast(Summary, _needed(folder / "summary.json"))


def _read_study(folder: Path) -> Folder:
    study = cast(Study, NO_STUDY | cast(Study, _needed(folder / "study.json")))
    if not isinstance(study["arms"], dict) or not all(
        isinstance(arm, dict) for arm in study["arms"].values()
    ):
        raise MaskwiseError(
            "study.json names no arms", got=str(folder / "study.json"), do="run the study again"
        )
    curves = []
    for arm, facts in study["arms"].items():
        for seed, stage in facts.get("runs", {}).items():
            # Stages may be links to a shared folder, so names are compared, not where they lead.
            if Path(os.path.normpath(folder / stage)).is_relative_to(os.path.normpath(folder)):
                curves += _curves(folder / stage, arm, int(seed))
    records = [record for line in read_lines(folder / "records.jsonl") if (record := _record(line))]
    return Folder(
        kind="study",
        name=study["name"] or folder.resolve().name,
        study=study,
        records=records,
        unread=_lines_in(folder / "records.jsonl") - len(records),
        summary=_summary(read_json(folder / "summary.json") or {}),
        samples=cast(dict[str, list[Sample]], read_json(folder / "samples.json") or {}),
        curves=curves,
        timings=[
            # as it was called until November 2026
            cast(Timing, {"purpose": line.get("phase"), **line})
            for line in read_lines(folder / "timings.jsonl")
            if "seconds" in line
        ],
        seconds=study["seconds"],
        recipe_yaml=study["recipe_yaml"],
    )


def _summary(content: dict[str, Any]) -> Summary:
    """A summary with all its keys. One of earlier rules keeps its words; its reasons are read as
    flags.
    """
    if "rules" not in content:
        for row in content.get("contrasts", []):
            told = [reason for reason in row.get("reasons", []) if reason["effect"] != "tests"]
            row["flags"] = [
                reason | {"effect": OLD_EFFECTS[reason["effect"]], "facts": {}} for reason in told
            ]
        content["efficiency"] = {
            "crossings": [],
            "points": content.get("efficiency", {}).get("points", []),
        }
    return cast(Summary, NO_SUMMARY | cast(Summary, content))


def _read_run(folder: Path) -> Folder:
    name, recipe = folder.resolve().name, folder / "recipe.yaml"
    done = read_json(folder / "done.json") or {}
    return Folder(
        kind="run",
        name=name,
        samples=cast(dict[str, list[Sample]], read_json(folder / "samples.json") or {}),
        curves=_curves(folder, name, 0),
        steps=done.get("steps"),
        seconds=done.get("seconds"),
        recipe_yaml=recipe.read_text("utf-8", errors="replace") if recipe.is_file() else "",
    )


def _lines_in(path: Path) -> int:
    """How many lines of a file say anything; 0 where there is no file."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _needed(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if content is None:
        raise MaskwiseError(
            f"{path} cannot be read: it was cut or damaged", do="run the study again"
        )
    return content


def _curves(folder: Path, arm: str, seed: int) -> list[Line]:
    lines = [_finite(line) for line in read_lines(folder / "metrics.jsonl")]
    for line in lines:
        speed = line.get("speed")
        if not isinstance(speed, dict) or not all(
            isinstance(value, int | float) for value in speed.values()
        ):
            line.pop("speed", None)
    return [cast(Line, line | {"arm": arm, "seed": seed}) for line in lines if "step" in line]


def _record(line: dict[str, Any]) -> Record | None:
    """The line without numbers that are not finite; None if it then lacks what a record of its kind
    must have.
    """
    kept = _finite(line)
    return (
        cast(Record, kept)
        if REQUIRED.get(kept.get("kind", ""), {"no such kind"}) <= kept.keys()
        else None
    )


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """Without numbers that are not finite, also in the objects inside."""
    inner = {
        key: _finite(value) if isinstance(value, dict) else value for key, value in line.items()
    }
    return {k: v for k, v in inner.items() if not (isinstance(v, float) and not math.isfinite(v))}
