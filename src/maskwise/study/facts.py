"""What a study's files say beside its numbers: study.json, the machine, the seconds, sentences with masks."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskwise import __version__
from maskwise.annotate.store import Store
from maskwise.constants import REFERENCE
from maskwise.masking.policies import policy
from maskwise.masking.policies.learned import GroupWeighted
from maskwise.masking.schedules import schedule
from maskwise.show import show_masks
from maskwise.study.learning import make_masker
from maskwise.study.phases import Design
from maskwise.study.plan import Run, arms_of, reference_words
from maskwise.study.stages import prepare_stage, tokenizer_of
from maskwise.study.work import Prepared
from maskwise.tasks import load_task
from maskwise.text import read_documents, tokenise

SAMPLES, SAMPLE_TOKENS, SAMPLE_CHARACTERS = 4, 64, 100
"""Documents whose beginnings are shown in the report, how much of them, and how long they are at least."""


STOPPING_BIAS = (
    "Arms were dropped when they were behind: the arms that are left look better than they are, for they were chosen "
    "by the same runs that are reported, and dropped arms have few runs. Repeat with new seeds before you believe it."
)


def describe(recipe: Any, design: Design) -> dict[str, Any]:
    """study.json, as far as it is known."""
    arms = {}
    for name, overrides in recipe.study.arms.items():
        links = recipe.arm(name, seed=0).links()
        masking = links[-1].masking
        mine = [run for run in design.runs if run.arm == name and run.pretrained]
        arms[name] = {
            "policy": masking.policy, "ratio": str(schedule(masking.ratio)), "overrides": overrides,
            "units": policy(masking.policy).unit_kind, "tokenizer": tokenizer_of(prepare_stage(links[0])),
            "judged_on": list(design.kinds(name)),
            **({"sampler": links[-1].sampler} if links[-1].objectives else {}),
            "setting": design.settings[name],
            "runs": {str(r.seed): f"stages/{r.pretrained.name}" for r in mine if r.pretrained and r.fraction == 1},
        }  # fmt: skip
    reference = reference_words(recipe) if REFERENCE in arms_of(recipe, design.contents) else None
    loaded, study = [load_task(spec) for spec in recipe.tasks], recipe.study
    return {
        "name": recipe.name, "description": recipe.description, "maskwise": __version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": versions(),
        "hardware": hardware(), "recipe": recipe.model_dump(mode="json"), "recipe_yaml": recipe.to_yaml(),
        "baseline": recipe.baseline, "reference": reference, "seeds": list(study.seed_list),
        "arms": arms, "seconds": None,
        "contrasts": [list(pair) for pair in study.pairs],
        "match": {"by": study.match, "arms": design.planned}, "companions": list(study.companions),
        "search": study.search.model_dump(mode="json") if study.search else None,
        "stopping": STOPPING_BIAS if study.stop_hopeless else None,
        "tasks": {task.name: {**task.facts(), "majority": task.majority} for task in loaded},
    }  # fmt: skip


def versions() -> dict[str, str]:
    """What numbers may depend on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine, in a few words."""
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "memory_gib": round(memory[0] / 2**20, 1) if memory else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def timings(design: Design, stages: Path) -> list[dict[str, Any]]:
    """Seconds of every stage, once for every run that stands on it."""
    lines = []
    for phase, runs in (("main", design.runs), ("choice", design.others)):
        for run in runs:
            for stage in run.stages:
                result = stage.result(stages)
                if result:
                    facts = {"phase": phase, "kind": stage.kind, "stage": stage.name}
                    lines.append({**run.who, "fraction": run.fraction, **facts, "seconds": result["seconds"]})
    return lines


def samples(recipe: Any, runs: Sequence[Run], stages: Path) -> dict[str, Any]:
    """Beginnings of documents with what each arm masks in the middle of training (with its first seed).

    A policy that learns has the weights of the end of that run; where they are not known, its arm is left out.
    """
    first: dict[str, Run] = {}
    for run in runs:
        if run.arm != REFERENCE and run.prepared.result(stages):
            first.setdefault(run.arm, run)
    shown: dict[str, Any] = {}
    texts: dict[str, list[tuple[str, str, dict[str, list[Any]]]]] = {}
    for arm, run in first.items():
        one = recipe.arm(arm, seed=run.seed).links()[-1]
        folder = run.prepared.folder(stages)
        data = Prepared.open(folder / "data")
        masker = make_masker(one.masking.model_dump(), data.tokenizer, seed=run.seed)
        weights = None
        if isinstance(masker.policy, GroupWeighted):
            weights = _last_weights(run.pretrained.folder(stages)) if run.pretrained else None
            if weights is None:
                continue
            masker.policy.take(weights)
        if run.prepared.name not in texts:
            texts[run.prepared.name] = list(_beginnings(one, data.tokenizer, folder))
        total, rows = one.training.steps, []
        for document, text, layers in texts[run.prepared.name]:
            found = show_masks(
                masker,
                data.tokenizer,
                text,
                step=total // 2,
                total_steps=total,
                max_length=_width(one),
                layers=layers,
            )
            row = {"document": document, "pieces": [piece.as_dict() for piece in found.pieces]}
            rows.append(row if weights is None else row | {"learnt": True})
        shown[arm] = rows
    return shown


def _width(recipe: Any) -> int:
    return min(recipe.corpus.length, SAMPLE_TOKENS)


def _last_weights(folder: Path) -> dict[str, float] | None:
    """What a policy had learnt at the end of a run."""
    lines = (json.loads(line) for line in reversed(_lines(str(folder / "metrics.jsonl"))))
    return next((line["weights"] for line in lines if "weights" in line), None)


def _beginnings(
    recipe: Any, tokenizer: Any, prepared: Path
) -> Iterator[tuple[str, str, dict[str, list[Any]]]]:
    """(id, text, layers of its first tokens): the layers are those that the corpus was annotated with."""
    corpus, found = recipe.corpus, 0
    store = Store(prepared / "layers") if corpus.layers else None
    for document in read_documents(corpus.source, text_field=corpus.text_field, limit=corpus.limit):
        if len(document.text) > SAMPLE_CHARACTERS:
            [tokens] = tokenise([document], tokenizer, layers=store)
            cut = tokenizer(
                document.text, return_special_tokens_mask=True, truncation=True, max_length=_width(recipe)
            )
            inside = np.array(cut["special_tokens_mask"]) == 0
            layers = {}
            for name, values in tokens.layers.items():
                layers[name] = np.full(len(inside), -1, dtype=values.dtype)
                layers[name][inside] = values[: inside.sum()]
            yield document.id, document.text, {name: values.tolist() for name, values in layers.items()}
            found += 1
        if found == SAMPLES:
            break
