"""study.json: what a study is, and what its folder remembers of earlier ones."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from maskwise import __version__
from maskwise.constants import REFERENCE
from maskwise.errors import MaskwiseError
from maskwise.files import ArmFacts, Look, Record, Study
from maskwise.folders import read_json, read_lines
from maskwise.masking.policies import UnitKind, policy
from maskwise.masking.schedules import schedule
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.design import Design
from maskwise.study.plan import arms_of, learned_from, reference_words
from maskwise.study.stages import prepare_stage, tokenizer_of
from maskwise.tasks import load_task
from maskwise.tasks.judge import PREDICTIONS
from maskwise.training.speed import cpu_name

RESULTS = (
    "records.jsonl",
    PREDICTIONS,
    "timings.jsonl",
    "samples.json",
    "summary.json",
    "report.html",
)
"""What a finished study writes; another study in the folder removes it."""


def describe(recipe: Recipe, design: Design) -> Study:
    """study.json, as far as it is known."""
    arms: dict[str, ArmFacts] = {}
    for name, overrides in recipe.study.arms.items():
        # As it was chosen: seeds that chose different settings may have trained with different
        # masks.
        chains = [
            recipe.arm(name, seed=0, more=setting).links() for setting in design.settings_of(name)
        ]
        lasts = [links[-1] for links in chains]
        policies = chain.from_iterable(last.masked_by or [last.masking.policy] for last in lasts)
        kinds = {policy(spec).unit_kind for spec in policies}
        trained = {
            str(run.seed): run.pretrained for run in design.runs if run.arm == name and run.compared
        }
        arms[name] = {
            "policy": _each(last.masking.policy for last in lasts),
            "ratio": _each(str(schedule(last.masking.ratio)) for last in lasts),
            "overrides": overrides,
            "units": kinds.pop() if len(kinds) == 1 else UnitKind.MIXTURE,
            "tokenizer": _each(tokenizer_of(prepare_stage(links[0])) for links in chains),
            "judged_on": list(
                dict.fromkeys(chain.from_iterable(last.judged_on() for last in lasts))
            ),
            "runs": {seed: f"stages/{stage.name}" for seed, stage in trained.items() if stage},
        }
        if lasts[0].objectives:
            arms[name]["sampler"] = _each(last.sampler for last in lasts)
    reference = reference_words(recipe) if REFERENCE in arms_of(recipe, design.contents) else None
    loaded, study = [load_task(spec) for spec in recipe.tasks], recipe.study
    search = study.search
    gate = study.gate
    described: Study = {
        "name": recipe.name,
        "description": recipe.description,
        "maskwise": __version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "hardware": hardware(),
        "recipe": recipe.model_dump(mode="json"),
        "recipe_yaml": recipe.to_yaml(),
        "baseline": recipe.baseline or "",
        "reference": reference,
        "seeds": list(study.judged_seeds.values()),
        "arms": arms,
        "seconds": None,
        "contrasts": study.primary,
        "match": {"by": study.match, "arms": design.planned},
        "companions": list(study.companions),
        "margin": study.margin,
        "looks": list(study.looks) if study.looks else None,
        "helps": study.helps,
        "share": study.share,
        "gate": {"contrast": gate.contrast, "closes": study.closed} if gate else None,
        "search": {"grid": search.grid, "own": search.own, "by": search.by} if search else None,
        "tasks": {task.name: {**task.facts(), "majority": task.majority} for task in loaded},
    }
    if study.transfer:
        described["learned"] = learned_from(recipe)
    return described


def _each(values: Iterable[str]) -> str:
    """Different values of one fact: "token", or "token or span"."""
    return " or ".join(dict.fromkeys(values))


def versions() -> dict[str, str]:
    """What numbers may depend on: Python and the libraries."""
    libraries = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def hardware() -> Plain:
    """The machine, in a few words."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def so_far(out: Path, study: Study) -> Study:
    """When this very study began, how long it has run, and at how many runs it had a verdict.

    Results of another study are removed.
    """
    before = read_json(out / "study.json") or {}
    known: Study = {"started": study["started"], "seconds": None}
    if _same_question(before, study):
        looked: list[Look] = [*before.get("looked", [])]
        look, now = _look(before), _look(study)
        judged = (out / "summary.json").is_file() and not before.get("pending")
        if judged and look not in (*looked, now):
            looked.append(look)
        known |= {"looked": looked} if looked else {}
    if before.get("recipe") == study["recipe"] and {"started", "seconds"} <= before.keys():
        return known | {"started": before["started"], "seconds": before["seconds"]}
    for name in RESULTS if before else ():
        (out / name).unlink(missing_ok=True)
    return known


class Others(NamedTuple):
    """What the folder of a study holds of seeds that are not run now.

    Attributes:
        records: lines of records.jsonl, those of no seed included.
        timings: lines of timings.jsonl.
        answers: the rows of predictions.
        runs: by arm, the folder of the training by seed.
    """

    records: Sequence[Record] = ()
    timings: Sequence[Plain] = ()
    answers: Sequence[Plain] = ()
    runs: Mapping[str, dict[str, str]] = {}


def require_same_recipe(out: Path, study: Study) -> None:
    """Refuse to add runs to a study of another recipe.

    Raises:
        MaskwiseError: the folder holds one.
    """
    before = read_json(out / "study.json")
    if before and before.get("recipe") != study["recipe"]:
        what = f"--out {out} holds a study of another recipe, to which these seeds cannot be added"
        raise MaskwiseError(what, got=before.get("name"), do="give a new folder")


def others_of(out: Path, design: Design) -> Others:
    """What ``out`` holds of seeds that the design does not run."""
    before = read_json(out / "study.json")
    if not before:
        return Others()
    judged = design.recipe.study.judged_seeds
    own = {*design.seeds, *(judged[seed] for seed in design.seeds)}

    def kept(name: str) -> list[Any]:
        return [line for line in read_lines(out / name) if line.get("seed") not in own]

    runs = {arm: facts["runs"] for arm, facts in before["arms"].items()}
    return Others(
        kept("records.jsonl"), kept("timings.jsonl"), [*read_lines(out / PREDICTIONS)], runs
    )


def with_runs_of(others: Others, study: Study) -> Study:
    """study.json with the folders of trainings of seeds that are not run now."""
    for arm, folders in others.runs.items():
        study["arms"][arm]["runs"] = folders | study["arms"][arm]["runs"]
    return study


def pending(study: Study, records: Iterable[Record]) -> list[int]:
    """The seeds of runs to be compared of which there is no record yet."""
    done = {record["seed"] for record in records if "seed" in record and "role" not in record}
    return [seed for seed in study["seeds"] if seed not in done]


def _look(study: Mapping[str, Any]) -> Look:
    """What a verdict on this study rests on."""
    gate = study.get("gate")
    # A gate without runs of its own is not one of the tests that share the error. Older studies
    # have the pair alone.
    apart = gate["contrast"] if isinstance(gate, dict) and not study.get("search") else gate
    asked = [pair for pair in study.get("contrasts", ()) if pair != apart]
    seeds: list[int] = study["seeds"]
    return {
        "runs": len(seeds),
        "seeds": seeds,
        "contrasts": len(asked),
        "looks": study.get("looks"),
    }


def _same_question(before: Mapping[str, Any], study: Study) -> bool:
    """Whether an earlier study in the folder differs in seeds and comparisons alone."""
    old, new = ({**recipe} for recipe in (before.get("recipe") or {}, study["recipe"]))
    arms, others = ((recipe.pop("study", None) or {}).get("arms", {}) for recipe in (old, new))
    same = all(
        old.get(part) == new.get(part) for part in new if part not in ("name", "description")
    )
    return same and "seeds" in before and any(arms[name] == others.get(name) for name in arms)
