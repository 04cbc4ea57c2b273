"""The files of a study: study.json (what it is, and what its folder remembers of earlier calls),
records.jsonl (every number measured), timings and written answers.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
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
from maskwise.study.plan import Plan, Run, baseline_of, learned_from, reference_words, stages_of
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
"""The files of a finished study; another study in the folder removes them."""


# study.json
# --------------------------------------------------------------------------------------------


def describe(recipe: Recipe, design: Design) -> Study:
    """study.json, as far as it is known."""
    study = recipe.study
    search = study.search
    gate = study.gate
    tasks = [load_task(spec) for spec in recipe.tasks]
    reference = reference_words(baseline_of(recipe)) if REFERENCE in design.arms else None
    # The report reads these keys; the whole recipe is kept beside them.
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
        "arms": {name: _arm_facts(name, design) for name in study.arms},
        "seconds": None,
        "contrasts": study.primary,
        "match": {"by": study.match, "arms": {}},
        "companions": list(study.companions),
        "margin": study.margin,
        "looks": list(study.looks) if study.looks else None,
        "helps": study.helps,
        "share": study.share,
        "gate": {"contrast": gate.contrast, "closes": study.closed} if gate else None,
        "search": {"grid": search.grid, "own": search.own, "by": search.by} if search else None,
        "tasks": {task.name: {**task.facts(), "majority": task.majority} for task in tasks},
    }
    if study.transfer:
        described["learned"] = learned_from(recipe)
    return described


def _arm_facts(name: str, design: Design) -> ArmFacts:
    recipe = design.recipe
    # Seeds that chose different settings may have trained with different masks.
    chains = [recipe.arm(name, seed=0, more=more).links() for more in design.settings_of(name)]
    lasts = [links[-1] for links in chains]
    units = set[UnitKind]()
    masks = list[str]()
    for last in lasts:
        units |= {policy(spec).unit_kind for spec in last.masked_by or [last.masking.policy]}
        masks += last.judged_on()
    runs = {}
    for run in design.runs:
        if run.arm == name and run.compared and run.pretrained:
            runs[str(run.seed)] = f"stages/{run.pretrained.name}"
    facts: ArmFacts = {
        "policy": _alternatives(last.masking.policy for last in lasts),
        "ratio": _alternatives(str(schedule(last.masking.ratio)) for last in lasts),
        "overrides": recipe.study.arms[name],
        "units": units.pop() if len(units) == 1 else UnitKind.MIXTURE,
        "tokenizer": _alternatives(tokenizer_of(prepare_stage(links[0])) for links in chains),
        "judged_on": list(dict.fromkeys(masks)),
        "runs": runs,
    }
    if lasts[0].objectives:
        facts["sampler"] = _alternatives(last.sampler for last in lasts)
    return facts


def _alternatives(values: Iterable[str]) -> str:
    """Different values of one fact: "token", or "token or span"."""
    return " or ".join(dict.fromkeys(values))


def versions() -> dict[str, str]:
    """Python and the libraries that numbers may depend on."""
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


# Earlier calls
# --------------------------------------------------------------------------------------------


def so_far(out: Path, study: Study) -> Study:
    """When this very study began, how long it has run, and the verdicts it had before.

    Results of another study are removed.
    """
    before = read_json(out / "study.json") or {}
    known: Study = {"started": study["started"], "seconds": None}
    if _same_question(before, study):
        looked: list[Look] = [*before.get("looked", [])]
        look = _look(before)
        now = _look(study)
        changed = look != now
        if _decides_otherwise(before, study):
            look["settings_changed"] = changed = True
        # A study that was stopped before its verdict has not looked at its results.
        judged = (out / "summary.json").is_file() and not before.get("pending")
        if judged and changed and look not in looked:
            looked.append(look)
        if looked:
            known["looked"] = looked
    if before.get("recipe") == study["recipe"] and {"started", "seconds"} <= before.keys():
        return known | {"started": before["started"], "seconds": before["seconds"]}
    for name in RESULTS if before else ():
        (out / name).unlink(missing_ok=True)
    return known


def _same_question(before: Mapping[str, Any], study: Study) -> bool:
    """Whether an earlier study in the folder differs in its study settings alone."""
    old = before.get("recipe") or {}
    new = study["recipe"]
    parts = new.keys() - {"name", "description", "study"}
    if "seeds" not in before or any(old.get(part) != new[part] for part in parts):
        return False
    arms, others = (_settings(recipe).get("arms", {}) for recipe in (old, new))
    return any(arms[name] == others.get(name) for name in arms)


def _settings(recipe: Mapping[str, Any]) -> Plain:
    return recipe.get("study") or {}


def _look(study: Mapping[str, Any]) -> Look:
    """The runs and tests of a verdict on this study."""
    gate = study.get("gate")
    # A gate without runs of its own is not one of the tests that share the error. Older studies
    # have the pair alone.
    apart = gate["contrast"] if isinstance(gate, dict) and not study.get("search") else gate
    asked = [pair for pair in study.get("contrasts", ()) if pair != apart]
    seeds: list[int] = study["seeds"]
    looks = study.get("looks")
    return {"runs": len(seeds), "seeds": seeds, "contrasts": len(asked), "looks": looks}


def _decides_otherwise(before: Mapping[str, Any], study: Study) -> bool:
    """Whether settings have changed by which the same runs may get another verdict."""
    old = _settings(before["recipe"])
    new = _settings(study["recipe"])
    return any(old.get(key) != new.get(key) for key in ("margin", "gate", "search", "match"))


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

    def added_to(self, study: Study) -> Study:
        """study.json with the folders of the other trainings."""
        for arm, folders in self.runs.items():
            study["arms"][arm]["runs"] = folders | study["arms"][arm]["runs"]
        return study


def others_of(out: Path, study: Study, design: Design) -> Others:
    """What ``out`` holds of seeds that the design does not run.

    Raises:
        MaskwiseError: it holds a study of another recipe.
    """
    before = read_json(out / "study.json")
    if not before:
        return Others()
    if before.get("recipe") != study["recipe"]:
        raise MaskwiseError(
            f"--out {out} holds a study of another recipe, to which these seeds cannot be added",
            got=before.get("name"),
            do="give a new folder",
        )
    judged = design.recipe.study.judged_seeds
    # Runs of a search keep the study's seeds, compared runs have seeds of their own.
    own = {*design.seeds, *(judged[seed] for seed in design.seeds)}
    records = [line for line in read_lines(out / "records.jsonl") if line.get("seed") not in own]
    timings = [line for line in read_lines(out / "timings.jsonl") if line["seed"] not in own]
    runs = {arm: facts["runs"] for arm, facts in before["arms"].items()}
    answers = list(read_lines(out / PREDICTIONS))
    return Others(records, timings, answers, runs)  # type: ignore[arg-type]


def pending(study: Study, records: Iterable[Record]) -> list[int]:
    """The seeds of runs to be compared of which there is no record yet."""
    # A failed run has a record, too: it is missing from verdicts, and not pending.
    done = {record["seed"] for record in records if "seed" in record and "role" not in record}
    return [seed for seed in study["seeds"] if seed not in done]


# records.jsonl
# --------------------------------------------------------------------------------------------


def collect(
    runs: Iterable[Run], stages: Path, errors: Mapping[str, str], *, more: Iterable[Record] = ()
) -> list[Record]:
    """Every number measured, as records in a fixed order, without timings.

    Args:
        runs: those to be reported.
        stages: the folder of all stages.
        errors: why stages failed, by name.
        more: records of the study itself.
    """
    records: list[Any] = list(more)
    for run in runs:
        results = {stage: stage.result(stages) for stage in run.stages}
        # A search for test items that failed makes no comparison invalid, so it is no record.
        missing = [s for s in results if results[s] is None and s.kind != "overlap"]
        if missing:
            name = missing[0].name
            error = errors.get(name, "not finished")
            records.append({"kind": "failure", **run.who, "stage": name, "error": error})
        trained = [results[stage] for stage in run.trainings]
        if trained and all(trained):
            records.append({"kind": "cost", **run.who, **_spent(trained)})
        for stage, result in results.items():
            if not result:
                continue
            lines = RECORDS.get(stage.kind, _nothing)(result)
            if stage.kind == "overlap":  # of a text and a task, whatever run asked
                records += lines
                continue
            # One diverged task does not hide what the run measured otherwise.
            sound = [line for line in lines if _finite(line)]
            records += [{"kind": line["kind"], **run.who, **line} for line in sound]
            if len(sound) < len(lines):
                error = "a score or loss is not a finite number: the training or fine-tuning"
                failure = {"kind": "failure", **run.who, "stage": stage.name}
                records.append(failure | {"error": f"{error} diverged"})
    # Runs of another block of seeds may have made the same record of a text and a task.
    distinct = {json.dumps(record, sort_keys=True): record for record in records}
    return [distinct[text] for text in sorted(distinct, key=lambda t: (_place(distinct[t]), t))]


def _nothing(result: Plain) -> list[Plain]:
    return []


def _learned(result: Plain) -> list[Plain]:
    """How the learning of a policy went, and how much of its weight is on answers, in texts not
    learned from.
    """
    kept = ("method", "gain", "best_step", "stopped", "overshoot", "tries")
    record = {key: result[key] for key in kept if result.get(key) is not None}
    found = result.get("held_out") or {}
    record |= {key: found[key] for key in ("weight_on_labels", "labelled_words") if key in found}
    return [{"kind": "policy", **record}]


def _score(result: Plain) -> list[Plain]:
    # The order of the keys is that of recorded studies.
    kept = ["task", "metric", "score", "fine_tuning", "dev", "others"]
    if "item_sd" in result:
        kept += ["majority", "interval", "item_sd"]
    kept.append("item_error")
    return [{"kind": "score", **{key: result[key] for key in kept if key in result}}]


RECORDS: dict[str, Callable[[Plain], list[Plain]]] = {
    "learn": _learned,
    "evaluate": lambda result: result["records"],
    "finetune": _score,
    "overlap": lambda result: [result[key] for key in ("record", "coverage") if key in result],
}
"""By kind of stage, the records that its result makes."""


def _spent(trained: Iterable[Plain | None]) -> Plain:
    """What the trainings of a run spent together."""
    spent: Counter[str] = Counter()
    objectives: Counter[str] = Counter()
    for result in filter(None, trained):
        spent.update({key: result[key] for key in ("steps", "tokens", "targets", "flops")})
        if "objectives" in result:
            spent["probe_flops"] += result["probe_flops"]
            for name, facts in result["objectives"].items():
                objectives[name] += facts["steps"]
    return {**spent, "objectives": dict(objectives)} if objectives else dict(spent)


def _finite(line: Plain) -> bool:
    """Whether all measurements are numbers; a dev score may be missing: not every task has dev
    rows.
    """
    measured = [line[key] for key in ("score", "loss", "value") if key in line]
    measured += line.get("fine_tuning", [])
    measured += [value for value in line.get("dev", []) if value is not None]
    return all(value is not None and math.isfinite(value) for value in measured)


def _place(record: Mapping[str, Any]) -> tuple[str | float, ...]:
    what = record.get("task") or record.get("masks") or record.get("name") or ""
    detail = record.get("metric", ""), record.get("ratio", 0.0), record.get("corpus", "")
    who = record.get("arm", ""), record.get("seed", -1), -record.get("fraction", 1.0)
    return record["kind"], *who, what, *detail


def failed_searches(design: Design, errors: Mapping[str, str]) -> Iterator[Record]:
    """The runs that are missing because every point of their search failed."""
    for (arm, seed), trials in design.failed.items():
        names = stages_of([Plan(tuple(trials))])
        reason = next((errors[name] for name in names if name in errors), "no finite score")
        error = f"no point of its search succeeded: {reason}"
        judged = design.recipe.study.judged_seeds[seed]
        yield {"kind": "failure", "arm": arm, "seed": judged, "stage": "search", "error": error}


# Other files
# --------------------------------------------------------------------------------------------


def answers(runs: Iterable[Run], stages: Path, before: Iterable[Plain] = ()) -> list[Plain]:
    """The answers written for every test row of generation tasks, by arm and seed, of the first
    fine-tuning.

    Args:
        before: the rows of other seeds.
    """
    rows = {_row_key(row): row for row in before}
    for run in runs:
        for stage in run.tasks.values():
            task = (stage.result(stages) or {}).get("task", "")
            # One fine-tuning is enough to read; scores have them all.
            for file in sorted(stage.folder(stages).glob(f"seed-*/{PREDICTIONS}"))[:1]:
                for line in read_lines(file):
                    row = {"task": task, "input": line["input"], "gold": line["gold"]}
                    row = rows.setdefault(_row_key(row), row | {"answers": {}})
                    row["answers"].setdefault(run.arm, {})[str(run.seed)] = line["answer"]
    return list(rows.values())


def _row_key(row: Plain) -> tuple[str, str, str]:
    return row["task"], row["input"], str(row["gold"])


def timings(design: Design, stages: Path) -> Iterator[Plain]:
    """Seconds of every stage, once for every run that needs it."""
    for purpose, runs in (("main", design.runs), ("choice", design.others)):
        for run in runs:
            for stage in run.stages:
                result = stage.result(stages)
                if result:
                    facts = {"purpose": purpose, "kind": stage.kind, "stage": stage.name}
                    seconds = result["seconds"]
                    yield {**run.who, "fraction": run.fraction, **facts, "seconds": seconds}
