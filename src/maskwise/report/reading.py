"""Reads a study folder, or the folder of one pre-training run, into plain data for the page.

Everything but study.json (of a study) or metrics.jsonl (of a run) may be missing or half written: a page
about a study that is still running is a smaller page. Only a folder that is neither is refused.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError

REFERENCE = "no-pretraining"


@dataclass
class Folder:
    """What was found. `curves` are metrics lines, each with "arm" and "seed" added."""

    kind: str  # "study" or "run"
    name: str
    study: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    done: dict[str, Any] = field(default_factory=dict)
    recipe_yaml: str = ""

    @property
    def arms(self) -> list[str]:
        return list(self.study.get("arms") or ([self.name] if self.kind == "run" else []))

    @property
    def reference(self) -> str:
        """What the models without (further) training are called; their records have the arm ``REFERENCE``."""
        return str(self.study.get("reference") or "no pre-training")

    @property
    def baseline(self) -> str | None:
        return self.study.get("baseline")


def read_folder(folder: Path) -> Folder:
    """Raises MaskwiseError if `folder` is neither a study nor a run, or its main file is damaged."""
    if not folder.is_dir():
        raise MaskwiseError(
            "there is no such folder", got=str(folder), do="give the --out folder of a study or run"
        )
    if (folder / "study.json").is_file():
        return _read_study(folder)
    if (folder / "metrics.jsonl").is_file():
        name, recipe = folder.resolve().name, folder / "recipe.yaml"
        return Folder(
            kind="run",
            name=name,
            curves=[line | {"arm": name, "seed": 0} for line in _lines(folder / "metrics.jsonl")],
            samples=_json(folder / "samples.json", dict) or {},
            done=_json(folder / "done.json", dict) or {},
            recipe_yaml=recipe.read_text("utf-8", errors="replace") if recipe.is_file() else "",
        )
    raise MaskwiseError(
        "this folder holds neither a study nor a pre-training run",
        got=str(folder),
        allowed="a folder with study.json or metrics.jsonl",
        do="give the --out folder of maskwise study or maskwise pretrain",
    )


def summary_of(folder: Path) -> dict[str, Any]:
    """summary.json of a study. Raises MaskwiseError where there is none, or it is damaged."""
    found = read_folder(folder)
    if found.kind != "study":
        raise MaskwiseError("a single run has no verdicts", got=str(folder), do="give the folder of a study")
    if not (folder / "summary.json").is_file():
        do = "give the same maskwise study command again: it goes on where it stopped"
        raise MaskwiseError("this study has not been summed up", got=str(folder), do=do)
    return _json(folder / "summary.json", dict, needed=True)


def _read_study(folder: Path) -> Folder:
    study = _json(folder / "study.json", dict, needed=True)
    if not isinstance(study.get("arms"), dict):
        raise MaskwiseError(
            "study.json names no arms", got=str(folder / "study.json"), do="run the study again"
        )
    curves = []
    for arm, facts in study["arms"].items():
        for seed, stage in (facts.get("runs") or {}).items():
            place = folder / str(stage)
            # Stages may be links to a shared folder, so names are compared, not where they lead.
            if Path(os.path.normpath(place)).is_relative_to(os.path.normpath(folder)):
                curves += [line | {"arm": arm, "seed": int(seed)} for line in _lines(place / "metrics.jsonl")]
    return Folder(
        kind="study",
        name=str(study.get("name") or folder.resolve().name),
        study=study,
        records=[line for line in _lines(folder / "records.jsonl") if _is_record(line)],
        timings=_lines(folder / "timings.jsonl"),
        summary=_json(folder / "summary.json", dict) or {},
        samples=_json(folder / "samples.json", dict) or {},
        curves=curves,
        recipe_yaml=str(study.get("recipe_yaml") or ""),
    )


def _json(path: Path, kind: type, *, needed: bool = False) -> Any:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        if needed:
            raise MaskwiseError(f"{path} cannot be read", got=str(error), do="run the study again") from error
        return None
    if not isinstance(content, kind):
        if needed:
            raise MaskwiseError(f"{path} holds no {kind.__name__}", do="run the study again")
        return None
    return content


def _lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a line that is cut (the run goes on, or was killed) is left out."""
    found = []
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


def _is_record(line: dict[str, Any]) -> bool:
    """What has a kind, and an arm unless it is about the texts alone."""
    return line.get("kind") == "overlap" or ("kind" in line and "arm" in line)


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
