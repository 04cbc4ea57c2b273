"""The files of a study: study.json, records.jsonl, timings.jsonl and answers of generation tasks.

study.json describes the study. It also stores the running time of earlier calls in the same folder,
and on which runs they computed verdicts: a later verdict on other runs would be a repeated test.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

from maskwise import __version__
from maskwise.annotate.kept import kept_annotators
from maskwise.base.devices import hardware, versions
from maskwise.base.errors import MaskwiseError, option
from maskwise.base.folders import finite, read_json, read_lines, write_json
from maskwise.base.specs import different_settings, find, leaves
from maskwise.evaluation.settings import as_measures
from maskwise.masking.policies import UnitKind
from maskwise.recipe import Recipe, read_recipe
from maskwise.recipe.described import declared
from maskwise.recipe.setting_layers import placed
from maskwise.recipe.yamls import Plain
from maskwise.results.files import ArmFacts, Gate, Look, Record, Search, Study
from maskwise.results.measurements import SPLITS, Measurement, pending_seeds
from maskwise.samplers import SAMPLERS
from maskwise.samplers.base import Sampler
from maskwise.studies.design import Design
from maskwise.studies.plan import Plan, Run, baseline_of, reference_words, stages_of
from maskwise.studies.stages import (
    DONE,
    KINDS,
    STAGE,
    Stage,
    prepare_stage,
    tokenizer_of,
    without_places,
)
from maskwise.studies.store import StageStore
from maskwise.tasks.finetuning import PREDICTIONS
from maskwise.tasks.loading import load_task
from maskwise.training.settings import as_changes

FREE = ("speed", "nothing")
"""Effects of settings that change no result and nothing that is concluded from results."""

RESULTS = (
    "records.jsonl",
    "samples.json",
    "timings.jsonl",
    "summary.json",
    PREDICTIONS,
    "report.html",
)
"""The result files of a study. They are written anew if the study gets other seeds or arms."""
PLAN = "plan.json"
"""The list of planned stages, in ``stages/``."""


def has_results(out: Path) -> bool:
    """Return whether the folder of a study has results, or finished stages from which they come."""
    return any((out / name).exists() for name in RESULTS) or any(out.glob(f"stages/*/{DONE}"))


# study.json
# --------------------------------------------------------------------------------------------


def describe(recipe: Recipe, design: Design) -> Study:
    """Return the content of study.json, as far as the runs of the study are planned."""
    study = recipe.study
    untrained = [arm for arm in design.arms if arm not in study.arms]
    gate: Gate | None = None
    if study.gate:
        gate = {"contrast": study.gate.contrast, "closes": study.closed}
    search: Search | None = None
    if study.search:
        search = {"grid": study.search.grid, "own": study.search.own, "by": study.search.by}
    tasks = map(load_task, baseline_of(recipe).tasks)
    # The report reads these keys instead of the recipe, whose format changes more often.
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
        "untrained": {arm: reference_words(baseline_of(recipe)) for arm in untrained},
        "seeds": list(study.compared_seeds.values()),
        "arms": {name: _arm_facts(name, design) for name in study.arms},
        "seconds": None,
        "contrasts": study.primary,
        # In files, null means that the tasks decide.
        "outcome": None if study.outcome == "tasks" else study.outcome,
        "match": {"by": study.equal_by, "arms": {}},
        "margin": study.margin,
        "looks": list(study.interim_looks) if study.interim_looks else None,
        "gate": gate,
        "search": search,
        "tasks": {task.name: {**task.facts(), "majority": task.majority} for task in tasks},
        "inputs": design.inputs,
    }
    if design.store.shared:
        described["shared_stages"] = str(design.store.shared)
    if study.secondary:
        described["secondary"] = list(study.secondary)
    return described


def _arm_facts(name: str, design: Design) -> ArmFacts:
    recipe = design.recipe
    units = set()
    masks: dict[str, None] = {}
    policies = []
    ratios = []
    tokenizers = []
    samplers = []
    learns = False
    # A search may choose other settings for each seed, so the runs of an arm may mask differently.
    for setting in design.settings_of(name):
        links = recipe.arm(name, seed=recipe.study.first_seed, more=setting).links()
        last = links[-1]
        masked_by = last.masked_by.values() or [last.masking.values["policy"]]
        units |= {policy.unit_kind for policy in masked_by}
        masks |= dict.fromkeys(last.judged_on())
        learns |= any(policy.learns or policy.unlearned for policy in masked_by)
        policies.append(last.masking.policy)
        ratios.append(str(last.masking.values["ratio"]))
        tokenizers.append(tokenizer_of(prepare_stage(links[0])))
        if last.objectives:
            samplers.append(last.sampler)
            _, sampler = find("sampler", last.sampler, SAMPLERS)
            learns |= sampler.update is not Sampler.update
    unit = UnitKind.MIXTURE
    if len(units) == 1:
        unit = units.pop()
    runs = {}
    for run in design.runs:
        if run.arm == name and run.compared and run.pretrained:
            folder = design.store.folder(run.pretrained)
            runs[str(run.seed)] = _place_in(design.store.own.parent, folder)
    facts: ArmFacts = {
        "policy": _alternatives(policies),
        "ratio": _alternatives(ratios),
        "overrides": recipe.study.arms[name],
        "units": unit,
        "tokenizer": _alternatives(tokenizers),
        "judged_on": list(masks),
        "runs": runs,
    }
    if any(
        change.changes_tokens
        for setting in design.settings_of(name)
        for change in recipe.arm(name, seed=recipe.study.first_seed, more=setting).model.steps
    ):
        facts["extended"] = True
    if samplers:
        facts["sampler"] = _alternatives(samplers)
    if learns:
        facts["learns"] = True
    return facts


def _place_in(out: Path, folder: Path) -> str:
    """Return a path relative to the folder of a study; that of a shared stage is absolute."""
    return str(folder.relative_to(out) if folder.is_relative_to(out) else folder)


def _alternatives(values: Iterable[str]) -> str:
    """Join distinct values with "or", such as "token or span"."""
    return " or ".join(dict.fromkeys(values))


# Earlier calls
# --------------------------------------------------------------------------------------------


def so_far(out: Path, before: Plain, study: Study) -> Study:
    """Return the start, running time, machines and earlier verdicts of the study in a folder.

    If seeds, arms or other settings in the section ``study`` have changed, the files of results are
    removed, because they are computed anew from the finished stages, which stay.

    Args:
        out: the folder, which ``require_same_study`` has checked.
        before: the content of study.json from the last call; empty on the first call.
        study: the content of study.json for this call.
    """
    known: Study = {"started": study["started"], "seconds": None}
    if _same_question(before, study):
        looked: list[Look] = [*before.get("looked", [])]
        look = _look(before)
        if _decides_otherwise(before, study):
            look["settings_changed"] = True
        # A study that was interrupted before its verdict has not tested anything.
        summary = read_json(out / "summary.json")
        judged = summary is not None and "pending" not in summary
        if judged and look != _look(study) and look not in looked:
            looked.append(look)
        if looked:
            known["looked"] = looked
    if _same_inputs(before, study):
        machines = [*before.get("earlier_hardware", ()), before["hardware"]]
        others = [machine for machine in machines if machine != study["hardware"]]
        if others:
            known["earlier_hardware"] = others
        return known | {"started": before["started"], "seconds": before["seconds"]}
    if before:
        if "looked" in known:
            # If this process is killed here, the next call must still know of the verdict.
            write_json(out / "study.json", before | {"looked": known["looked"]})
        for name in RESULTS:
            (out / name).unlink(missing_ok=True)
    return known


def _same_question(former: Plain, study: Study) -> bool:
    """Return whether two studies differ only in their ``study`` section, and share arms.

    Arms with the same name must have the same settings, and files the same content.
    """
    if "seeds" not in former:
        return False
    if any(not name.startswith("study.") for name in _changed(former, study)):
        return False
    before, after = _arms_in(former), _arms_in(study)
    shared = before.keys() & after.keys()
    same = (_arm_means(before, name) == _arm_means(after, name) for name in shared)
    return bool(shared) and all(same) and _reads_same_files(former, study)


def _arm_means(arms: Plain, name: str) -> Plain:
    return _meaning({"study": {"arms": {name: arms[name]}}})


def _reads_same_files(former: Plain, study: Study) -> bool:
    """Return whether the files that an earlier call has read have the same content now."""
    return _other_files(former, study) is None


def _other_files(former: Plain, study: Study) -> str | None:
    """Say how the files that an earlier call has read differ now; None if they do not.

    With other arms, a study reads other files, too, so the hash is that of the earlier recipe.
    """
    if not former.get("inputs") or former["inputs"] == study["inputs"]:
        return None
    try:
        recipe = read_recipe(recorded(former.get("recipe") or {}))
        # The hash of a file that is not there would be that of its name.
        recipe.corpus.parts()
        design = Design(recipe, StageStore(Path("stages")))
        same = design.inputs == former["inputs"]
    except MaskwiseError as error:
        # A file that was moved may have the same content, but nobody can tell.
        return f"what the earlier call read is not as it was: {error.what}"
    return None if same else "other files, or another version of maskwise"


def _look(study: Study | Plain) -> Look:
    """Return the seeds, the number of contrasts and the planned looks of a study's verdict."""
    seeds = study["seeds"]
    return {
        "runs": len(seeds),
        "seeds": seeds,
        "contrasts": len(_asked(study)),
        "looks": study.get("looks"),
    }


def _decides_otherwise(before: Plain, study: Study) -> bool:
    """Return whether settings changed that affect the verdict on the same runs."""
    recipe: Plain = study["recipe"]
    old = before["recipe"]["study"]
    new = recipe["study"]
    for key in ("outcome", "margin", "gate", "search"):
        if old.get(key) != new.get(key):
            return True
    if _equal_by(before) != _equal_by(study):
        return True
    for key in ("baseline", "secondary"):
        if before.get(key) != study.get(key):
            return True
    return sorted(_asked(before)) != sorted(_asked(study))


def _equal_by(study: Study | Plain) -> str:
    match = study.get("match")
    return str(match["by"]) if match else "steps"


def _asked(study: Study | Plain) -> list[list[str]]:
    """List the contrasts that share the error rate, with the arms of each pair sorted by name."""
    gate = study.get("gate")
    # Without a search, the gate may be one of the contrasts. It is left out, because it is tested
    # at the full error rate.
    separate = [*gate["contrast"]] if gate and not study.get("search") else None
    return [sorted(pair) for pair in study.get("contrasts", ()) if [*pair] != separate]


class StudyFiles:
    """Writes study.json, which other calls and other processes write, too.

    Call it when no other process writes the files of the study.

    Args:
        recipe: the recipe of the study.
        design: the plans of this call.
        out: the study's folder. ``require_same_study`` has checked it.
        block: whether this call runs a part of the seeds.

    Attributes:
        seconds: the running time of the study; None if it is not known yet.
        stages: facts about the planned stages, keyed by name.
        planned_all: whether no further plan follows.
    """

    def __init__(self, recipe: Recipe, design: Design, out: Path, *, block: bool):
        self.recipe = recipe
        self.design = design
        self.out = out
        self.block = block
        self.seconds: float | None = None
        self.stages: dict[str, Plain] = {}
        self.planned_all = False
        # study.json lists what the search chose for every seed, including seeds of other blocks.
        for line in self.others().records:
            if line["kind"] == "selection" and line["chosen"]:
                design.chosen[line["arm"], line["search_seed"]] = line["chosen"]

    def others(self) -> Others:
        """Read the results of the seeds that this call does not run."""
        if not self.block:
            return Others([], [], [], {})
        return others_of(self.out, read_json(self.out / "study.json") or {}, self.design)

    def add(self, plan: Plan) -> None:
        """Add a plan to ``stages``."""
        for run in reversed(plan.runs):
            for stage in run.stages:
                self.stages[stage.name] = {
                    # The forecast of ``maskwise status`` needs all settings.
                    **stage.as_dict(),
                    "work": KINDS[stage.kind].work(stage),
                    "run": run.title,
                }

    def write_study(self, records: Sequence[Record]) -> Study:
        """Write study.json and the list of planned stages, and return the content of study.json.

        Args:
            records: the records of this call; empty before they are collected.
        """
        self._write_plan()
        before = read_json(self.out / "study.json") or {}
        others = self.others()
        study = describe(self.recipe, self.design)
        known = so_far(self.out, before, study)
        # Another process may have run for a longer time.
        times = [each for each in (self.seconds, known["seconds"]) if each is not None]
        self.seconds = max(times, default=None)
        known["seconds"] = self.seconds
        # Before records are collected, those of earlier calls count. If they were of another
        # question, ``so_far`` has removed them.
        lines: Iterable[Record] = [*others.records, *records]
        if not records:
            lines = cast(Iterable[Record], read_lines(self.out / "records.jsonl"))
        known["pending"] = pending_seeds(study, lines)
        study = others.added_to(study | known)
        write_json(self.out / "study.json", study)
        return study

    def _write_plan(self) -> None:
        path = self.out / "stages" / PLAN
        before = read_plan(self.out) or {"all": False, "stages": {}}
        # An earlier call, or another process, has planned as much already. At the end, arms and
        # seeds that the study no longer has are left out.
        known = before["stages"].keys()
        ended = self.planned_all and not self.block
        enough = self.stages.keys() == known if ended else self.stages.keys() <= known
        if before["all"] and enough:
            return
        listed = before["stages"] if self.block else {}
        plan = {"all": self.planned_all, "stages": listed | self.stages}
        if plan != before:
            write_json(path, plan)


def read_plan(out: Path) -> Plain | None:
    """Read the list of planned stages of a study; None if it is missing or damaged."""
    plan = read_json(out / "stages" / PLAN) or {}
    with suppress(KeyError, TypeError, AttributeError):
        known = (
            stage_of(facts).kind in KINDS and {"work", "run"} <= facts.keys()
            for facts in plan["stages"].values()
        )
        if all(known) and "all" in plan:
            return plan
    return None


def stage_of(facts: Plain) -> Stage:
    """Return a stage from its facts in the list of planned stages."""
    return Stage.from_dict({name: facts[name] for name in ("kind", "what", "needs", "how")})


class Others(NamedTuple):
    """Results of the seeds that this call does not run, read from the study's folder.

    Attributes:
        records: lines of records.jsonl, including lines without a seed.
        timings: lines of timings.jsonl.
        answers: rows of the file with the answers of generation tasks, for all seeds.
        runs: the folders of the last training stages, keyed by arm and then by seed.
    """

    records: Sequence[Record]
    timings: Sequence[Plain]
    answers: Sequence[Plain]
    runs: Mapping[str, dict[str, str]]

    def added_to(self, study: Study) -> Study:
        """Add ``runs`` to the content of study.json."""
        for arm, folders in self.runs.items():
            study["arms"][arm]["runs"] = folders | study["arms"][arm]["runs"]
        return study


def require_same_study(out: Path, before: Plain, study: Study, *, block: bool = False) -> None:
    """Raise an error if a folder contains results of a different study, which would be lost.

    Two studies are the same if they differ only in settings that change no result (titles, logs and
    speed), or in their ``study`` section, such as in seeds, contrasts or further arms: all finished
    stages of common runs are then used again.

    Args:
        out: the folder.
        before: the content of study.json in ``out``; empty if the file is missing.
        study: the content of study.json for this call.
        block: whether this call adds seeds to the records in the folder, which must then be of
            exactly this recipe.

    Raises:
        MaskwiseError: the recipe, or the content of a file that it reads, is different; an older
            version made the stages; or records would be removed whose stages are not here.
    """
    for stage in out.glob(f"stages/*/{STAGE}"):
        read_json(stage, usable=True)
        kept_annotators(stage.parent / "layers")
    if not before or _same_inputs(before, study):
        return
    if not block and not has_results(out):
        return
    changed = _changed(before, study)
    if not block and changed and _same_question(before, study):
        removed = _arms_in(before).keys() - _arms_in(study).keys()
        _require_stages(out, before, changed, removed=removed)
        return
    others = []
    if changed:
        others.append(f"other values of {', '.join(changed)}")
    files = _other_files(before, study)
    if files:
        others.append(files)
    # A setting of logs may choose states, such as the interval of evaluations with a patience.
    different = different_settings(_recipe_in(before), _recipe_in(study))
    got = " and ".join(others) or f"other values of {', '.join(different)}"
    lost = "results of a different study"
    if before.get("name") not in ("", None, study["name"]):
        lost += f" ({before['name']})"
    do = "give a new folder"
    if any(out.glob(f"stages/*/{DONE}")):
        do = f"{do}; with study.cache={out}/stages, it uses the finished stages that both share"
    raise MaskwiseError(f"{option('out', out)} contains {lost}", got=got, do=do)


def _require_stages(
    out: Path, before: Plain, changed: Sequence[str], *, removed: Collection[str]
) -> None:
    """Raise an error if records would be removed that no stages in reach could give again.

    Args:
        out: the folder.
        before: the content of study.json in ``out``.
        changed: the settings for which the records are removed.
        removed: the arms that the study has no longer, of which nothing is computed anew.
    """
    store = StageStore.of_last_call(out)
    timed = set()
    lost = set()
    for line in read_lines(out / "timings.jsonl"):
        if line["arm"] in removed:
            continue
        timed.add(line["seed"])
        if store.result(line["stage"]) is None:
            lost.add(line["seed"])
    for record in read_lines(out / "records.jsonl"):
        seed = record.get("seed")
        if seed is None or seed in timed or record["kind"] in ("failure", "selection"):
            continue
        if record.get("arm") in removed:
            continue
        runs = (arm["runs"].get(str(seed)) for arm in before["arms"].values())
        if not any((out / run / DONE).exists() for run in runs if run):
            lost.add(seed)
    if lost:
        seeds = ", ".join(map(str, sorted(lost)))
        raise MaskwiseError(
            f"{option('out', out)} has records of runs whose stages are not here, and they cannot "
            "be computed anew",
            got=f"seeds {seeds}, and other values of {', '.join(changed)}",
            do=f"copy the stages of these runs to {out / 'stages'}, or give a new folder",
        )


def require_same_inputs(out: Path, before: Plain, study: Study, users: Sequence[str]) -> None:
    """Raise an error if other processes run a different study in a folder.

    Args:
        out: the folder.
        before: the content of study.json in ``out``.
        study: the content of study.json for this call.
        users: the other processes.
    """
    if not _same_inputs(before, study):
        changed = _changed(before, study)
        raise MaskwiseError(
            f"another study is running in {out}",
            got=f"{', '.join(users)}, with other values of {', '.join(changed) or 'its files'}",
            do="wait until it ends, or give another folder",
        )


def _same_inputs(before: Plain, study: Study) -> bool:
    """Return whether two studies have the same results: the same settings, apart from titles and
    those of logs and speed, and files with the same content."""
    return before.get("inputs") == study["inputs"] and not _changed(before, study)


def _changed(before: Plain, study: Study) -> list[str]:
    """List the settings in which the recipes of two studies differ, if they change results."""
    old, new = (_meaning(_recipe_in(each)) for each in (before, study))
    return [name for name in old | new if old.get(name, ...) != new.get(name, ...)]


def _meaning(recipe: Plain) -> Plain:
    """Return the settings of a recipe that change results, keyed by dotted name.

    Every arm and phase has a key of its own, whose value is {}.
    """
    effects = declared()
    found: Plain = {}
    for name, value in leaves(_numbered(recipe)):
        place, setting = placed(name)
        if place:
            found[".".join(place)] = {}
        # The interval of evaluations chooses states, if the recipe has a patience or lengths.
        chooses = bool(setting) and setting.endswith("training.eval_every")
        if setting and (chooses or effects.get(setting) not in FREE):
            found[name] = value
    return found


def _numbered(settings: Any) -> Any:
    """Return settings in which lists of settings, such as phases, are keyed by number."""
    if isinstance(settings, dict):
        return {key: _numbered(value) for key, value in settings.items()}
    if isinstance(settings, list) and settings and all(isinstance(one, dict) for one in settings):
        return {str(number): _numbered(one) for number, one in enumerate(settings)}
    return settings


def _recipe_in(study: Study | Plain) -> Plain:
    """Return the recipe of a study; its files of rows are named by their content alone."""
    return recorded(json.loads(without_places(json.dumps(study.get("recipe") or {}))))


FORMER_RULES = (
    *("companions", "helps", "looks", "match", "min_helped", "noise", "share"),
    *("stop_hopeless", "transfer"),
)
"""Keys of ``study`` in earlier records: rules by which runs are no longer judged."""
FORMER_SECTIONS = ("intermediate", "objectives")


def recorded(recipe: Plain) -> Plain:
    """Return the recipe of a recorded study, as recipes are written now.

    Rules by which its runs are no longer judged are left out, and so are former sections that are
    empty.
    """
    recipe = {key: value for key, value in recipe.items() if value or key not in FORMER_SECTIONS}
    evaluation, study = recipe.get("evaluation"), recipe.get("study")
    if recipe.get("model"):
        recipe = recipe | {"model": as_changes(recipe["model"])}
    if evaluation:
        recipe = recipe | {"evaluation": as_measures(evaluation)}
    if study:
        known = {key: value for key, value in study.items() if key not in FORMER_RULES}
        known["arms"] = {arm: _arm_of_now(given) for arm, given in known.get("arms", {}).items()}
        recipe = recipe | {"study": known}
    return recipe


def _arm_of_now(arm: Plain) -> Plain:
    """Return the settings of a recorded arm, with new tokens in the list of changes."""
    model = as_changes({"new_tokens": arm.get("model.new_tokens")})
    kept = {key: value for key, value in arm.items() if key != "model.new_tokens"}
    return kept | {f"model.{key}": value for key, value in model.items()}


def _arms_in(study: Study | Plain) -> Plain:
    """Return the arms of the recipe of a study, by name."""
    compared: Plain = _recipe_in(study).get("study") or {}
    return compared.get("arms") or {}


def others_of(out: Path, before: Plain, design: Design) -> Others:
    """Read the results of seeds that the design does not run.

    Args:
        out: the study's folder.
        before: the content of study.json in ``out``.
        design: the design of this call.
    """
    judged = design.recipe.study.compared_seeds
    # In a study with a search, the search runs have the seeds in the recipe, and the compared runs
    # have other seeds.
    own = {*design.seeds, *(judged[seed] for seed in design.seeds)}
    records = [line for line in read_lines(out / "records.jsonl") if line.get("seed") not in own]
    return Others(
        records=cast(list[Record], records),
        timings=[line for line in read_lines(out / "timings.jsonl") if line["seed"] not in own],
        answers=list(read_lines(out / PREDICTIONS)),
        runs={arm: facts["runs"] for arm, facts in before.get("arms", {}).items()},
    )


# records.jsonl
# --------------------------------------------------------------------------------------------


def collect(
    runs: Iterable[Run],
    store: StageStore,
    errors: Mapping[str, str],
    *,
    more: Iterable[Record] = (),
) -> list[Record]:
    """Return all measurements of the runs as records in a fixed order, without timings.

    Args:
        runs: the runs to report.
        store: the folders of stages.
        errors: error messages of failed stages, keyed by stage name.
        more: additional records, which belong to the study and not to a run.
    """
    records: list[Any] = list(more)
    for run in runs:
        results = {}
        reported = set[str | None]()
        for stage in run.stages:
            results[stage] = store.result(stage)
            error = errors.get(stage.name)
            # Stages that need a failed stage have the same error, which is reported once.
            if not results[stage] and KINDS[stage.kind].of_run and error not in reported:
                reported.add(error)
                records.append(failure_of(run, stage, errors))
        trained = [results[stage] for stage in run.trainings]
        if trained and all(trained):
            records.append({"kind": "cost", **run.who, **_spent(trained)})
            losses = last_logged(run.trainings[-1], store, "probe_losses")
            if losses:
                records.append({"kind": "objectives", **run.who, "losses": losses})
        for stage, result in results.items():
            if not result:
                continue
            kind = KINDS[stage.kind]
            if not kind.of_run:
                records += kind.facts(result)
                continue
            records += [{"kind": line["kind"], **run.who, **line} for line in kind.facts(result)]
            measured = result["measurements"] if kind.measures else []
            rows = [Measurement.of({**line, **run.who}) for line in measured]
            # If fine-tuning diverged on one task, the other measurements of the run remain valid.
            lost = {_what(row) for row in rows if not _is_finite(row)}
            sound = [row for row in rows if _what(row) not in lost]
            records += [row.line() for row in sound]
            if len(sound) < len(rows):
                error = "a score or loss is not a finite number; training or fine-tuning diverged"
                records.append(failure_of(run, stage, {stage.name: error}))
    # The overlap of a text and a task may have been recorded already, in a call with other seeds.
    distinct = {}
    for record in records:
        text = json.dumps(record, sort_keys=True)
        distinct[_place(record), text] = record
    return [distinct[key] for key in sorted(distinct)]


def failure_of(run: Run, stage: Stage, errors: Mapping[str, str]) -> Record:
    """Return the failure record of a run that lacks the result of a stage."""
    error = errors.get(stage.name, "not finished")
    return {"kind": "failure", **run.who, "stage": stage.name, "error": error}


def _spent(trained: Sequence[Plain | None]) -> Plain:
    """Sum the costs of the training stages of a run."""
    spent = Counter[str]()
    objectives = Counter[str]()
    formulas = set()
    for result in filter(None, trained):
        # The result of a choice between lengths has no costs.
        if "flops" in result:
            formulas.add(result.get("flops_formula", 1))
        quantities = ("steps", "tokens", "targets", "flops", "probe_flops")
        spent.update({key: result[key] for key in quantities if key in result})
        for name, facts in result.get("objectives", {}).items():
            objectives[name] += facts["steps"]
    total: Plain = dict(spent)
    if formulas - {1}:
        total["flops_formulas"] = sorted(formulas)
    # The last phase, whose checkpoint is evaluated.
    if trained and trained[-1] and "best_step" in trained[-1]:
        total |= {key: trained[-1][key] for key in ("best_step", "planned_steps")}
    if objectives:
        total["objectives"] = dict(objectives)
    return total


class Chosen(TypedDict):
    """The steps at which the runs of an arm had their best states, and the most planned steps."""

    steps: list[int]
    of: int


def chosen_steps(records: Iterable[Record]) -> dict[str, Chosen]:
    """Return when compared runs had their best states, by arm, of arms whose runs choose."""
    found: dict[str, Chosen] = {}
    for line in records:
        if line["kind"] != "cost" or "best_step" not in line or "role" in line:
            continue
        arm = found.setdefault(line["arm"], {"steps": [], "of": 0})
        arm["steps"].append(line["best_step"])
        arm["of"] = max(arm["of"], line["planned_steps"])
    return found


def last_logged(training: Stage, store: StageStore, key: str) -> Plain | None:
    """Return the last value that a training logged under a key; None if there is none."""
    value = None
    for line in read_lines(store.folder(training) / "metrics.jsonl"):
        value = line.get(key, value)
    return value


def _what(row: Measurement) -> tuple[object, ...]:
    """Return what the rows of one measurement have in common: those of test, dev and the like."""
    return row.kind, row.measure, row.ratio


def _is_finite(row: Measurement) -> bool:
    """Return whether a measurement, and the scores of its fine-tuning seeds, are finite numbers."""
    return None not in finite([row.value, *row.facts.get("fine_tuning", [])])


def _place(record: Record) -> tuple[str | float, ...]:
    """Return the sort key of a record."""
    what = record.get("measure") or record.get("task") or ""
    split = SPLITS.index(record.get("split", "test"))
    detail = record.get("ratio", 0.0), split, record.get("metric") or "", record.get("corpus", "")
    who = record.get("arm", ""), record.get("seed", -1)
    return record["kind"], *who, what, *detail


def failed_searches(design: Design, errors: Mapping[str, str]) -> Iterator[Record]:
    """Yield a failure record for every arm and seed whose search runs all failed.

    Such an arm and seed has no compared run. The record has the seed of this missing run.
    """
    for (arm, seed), trials in design.failed.items():
        reasons = [errors[name] for name in stages_of([Plan(tuple(trials))]) if name in errors]
        reason = next(iter(reasons), "no finite score")
        error = f"no point of its search succeeded: {reason}"
        judged = design.recipe.study.compared_seeds[seed]
        yield {"kind": "failure", "arm": arm, "seed": judged, "stage": "search", "error": error}
