"""study.json: what a study is, and what its folder remembers of earlier ones."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from maskwise import __version__
from maskwise.constants import REFERENCE
from maskwise.files import ArmFacts, Look, Study
from maskwise.folders import read_json
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

RESULTS = ("records.jsonl", PREDICTIONS, "timings.jsonl", "samples.json", "summary.json", "report.html")
"""What a finished study writes; another study in the folder removes it."""


def describe(recipe: Recipe, design: Design) -> Study:
    """study.json, as far as it is known."""
    arms: dict[str, ArmFacts] = {}
    for name, overrides in recipe.study.arms.items():
        links = recipe.arm(name, seed=0, more=design.settings[name]).links()  # as it was chosen
        masking = links[-1].masking
        kinds = {policy(name).unit_kind for name in links[-1].masked_by or [masking.policy]}
        trained = {str(r.seed): r.pretrained for r in design.runs if r.arm == name and r.fraction == 1}
        arms[name] = {
            "policy": masking.policy, "ratio": str(schedule(masking.ratio)), "overrides": overrides,
            "units": kinds.pop() if len(kinds) == 1 else UnitKind.MIXTURE,
            "tokenizer": tokenizer_of(prepare_stage(links[0])),
            "judged_on": list(design.kinds(name)),
            "setting": design.settings[name],
            "runs": {seed: f"stages/{stage.name}" for seed, stage in trained.items() if stage},
        }  # fmt: skip
        if links[-1].objectives:
            arms[name]["sampler"] = links[-1].sampler
    reference = reference_words(recipe) if REFERENCE in arms_of(recipe, design.contents) else None
    loaded, study = [load_task(spec) for spec in recipe.tasks], recipe.study
    search = study.search
    described: Study = {
        "name": recipe.name, "description": recipe.description, "maskwise": __version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": versions(),
        "hardware": hardware(), "recipe": recipe.model_dump(mode="json"), "recipe_yaml": recipe.to_yaml(),
        "baseline": recipe.baseline or "", "reference": reference, "seeds": list(study.seed_list),
        "arms": arms, "seconds": None, "contrasts": study.pairs,
        "match": {"by": study.match, "arms": design.planned}, "companions": list(study.companions),
        "margin": study.margin, "looks": list(study.looks) if study.looks else None, "helps": study.helps,
        "share": study.share,
        "gate": study.gate,
        "search": {"grid": search.grid, "seeds": list(search.seeds), "by": search.by} if search else None,
        "tasks": {task.name: {**task.facts(), "majority": task.majority} for task in loaded},
    }  # fmt: skip
    if study.transfer:
        described["learned"] = learned_from(recipe)
    return described


def versions() -> dict[str, str]:
    """What numbers may depend on: Python and the libraries."""
    libraries = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def hardware() -> Plain:
    """The machine, in a few words."""
    return {
        "cpu": cpu_name(), "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip


def so_far(out: Path, study: Study) -> Study:
    """When this very study began, how long it has run, and at how many runs it had a verdict.

    Results of another study are removed.
    """
    before = read_json(out / "study.json") or {}
    known: Study = {"started": study["started"], "seconds": None}
    if _same_question(before, study):
        looked: list[Look] = [*before.get("looked", [])]
        look, now = _look(before), _look(study)
        if (out / "summary.json").is_file() and look not in (*looked, now):
            looked.append(look)
        known |= {"looked": looked} if looked else {}
    if before.get("recipe") == study["recipe"] and {"started", "seconds"} <= before.keys():
        return known | {"started": before["started"], "seconds": before["seconds"]}
    for name in RESULTS if before else ():
        (out / name).unlink(missing_ok=True)
    return known


def _look(study: Mapping[str, Any]) -> Look:
    """What a verdict on this study rests on."""
    asked = [pair for pair in study.get("contrasts", ()) if pair != study.get("gate")]
    seeds: list[int] = study["seeds"]
    return {"runs": len(seeds), "seeds": seeds, "contrasts": len(asked), "looks": study.get("looks")}


def _same_question(before: Mapping[str, Any], study: Study) -> bool:
    """Whether an earlier study in the folder differs in seeds and comparisons alone."""
    old, new = ({**recipe} for recipe in (before.get("recipe") or {}, study["recipe"]))
    arms, others = ((recipe.pop("study", None) or {}).get("arms", {}) for recipe in (old, new))
    same = all(old.get(part) == new.get(part) for part in new if part not in ("name", "description"))
    return same and "seeds" in before and any(arms[name] == others.get(name) for name in arms)
