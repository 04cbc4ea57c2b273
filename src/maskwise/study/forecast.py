"""Forecast a study: the stages it runs, the time it takes, and its likely problems.

A study compares arms (ways to pre-train) and consists of stages, such as pre-training. ``dry_run``
plans a study. ``outlook_of`` computes what ``maskwise check`` prints: it also counts the tokens and
targets of a sample of the text. Both write nothing except the cache of measured times.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from maskwise.constants import CORRELATIONS, NATS, accuracy_misleads, jobs_here
from maskwise.errors import MaskwiseError, counted, plural
from maskwise.folders import read_json
from maskwise.models import weights_of
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.samplers import sampler
from maskwise.study.checks import (
    MOST_UNKNOWN,
    UNKNOWN_ADVICE,
    check_study,
    cut_share,
    row_sizes,
    start_of,
)
from maskwise.study.costs import (
    LEAST_VOCABULARY,
    Forecast,
    counts_over,
    phases_of,
    plateau_targets,
    summary,
)
from maskwise.study.design import Design
from maskwise.study.plan import stages_of
from maskwise.study.pretraining import masked_source
from maskwise.study.records import describe, require_same_study
from maskwise.study.single import with_own_seed
from maskwise.study.stages import named
from maskwise.study.starter import recipe_for
from maskwise.study.store import StageStore
from maskwise.study.timing import Samples, TextSample, time_stages, time_words
from maskwise.study.unread import names_in_pretraining, names_in_study, refuse_unread
from maskwise.tasks import Task, load_task
from maskwise.tasks.task import all_classes
from maskwise.tasks.tensors import MOST_CUT
from maskwise.text.pieces import UNKNOWN
from maskwise.text.worlds import of_run

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

COUNTED_STEPS = 4
"""To count the targets (masked tokens) of a run, the batches of this many steps are masked."""
FEW_TARGETS = 32
"""Below this number of targets the gradient of a step is mostly noise."""
FEW_TEST_ITEMS = 200
FEW_HELD_OUT = 32
MOST_PASSES = 8
"""Above this number of passes over a text, overfitting is likely."""
SAFE_TIMES = 1.5
"""Factor between the predicted and the recommended number of steps. The prediction is inexact."""


# A dry run
# ------------------------------------------------------------------------------------------------


def dry_run(
    recipe: Recipe,
    out: Path,
    *,
    jobs: int | None = None,
    engine: str = "local",
    cache: Path | None = None,
    seeds: Sequence[int] | None = None,
    samples: Samples | None = None,
) -> Plain:
    """List what ``run_study`` with the same arguments would do, without training or writing.

    Two decisions are not known yet. In place of the settings that a search (``study.search``) will
    choose, the forecast uses the first settings of the grid. In place of the numbers of steps that
    ``study.match`` will compute, it uses ``training.steps`` of the recipe.

    Args:
        samples: samples on which stages with unknown times are timed; if None, they are not timed.

    Returns:
        ``plans``: for each plan its purpose, its number of runs, and its number of unfinished
        stages. ``phases``: the cost of each training phase (``costs.phases_of``). ``stages``,
        ``unknown`` and ``seconds``: see ``costs.summary``. ``memory_gib``: the peak memory of one
        process, or None if it is unknown. ``contrasts``: for each contrast, whether the planned
        runs can decide it (``prospects_of``). ``doubts``: warnings about the recipe and its files.
        ``notes``: these warnings, and what is not known before the study runs.

    Raises:
        MaskwiseError: input that ``run_study`` rejects.
    """
    # Imported here because workers import this module, and scipy takes a second to import.
    from maskwise.study.prospects import prospects_of

    block, notes = check_study(recipe, out, engine=engine, seeds=seeds)
    jobs = jobs or jobs_here()
    store = StageStore.of_study(recipe, out, cache)
    design = Design(recipe, store, seeds=block, forecast=True)
    study = describe(recipe, design)
    require_same_study(out, read_json(out / "study.json") or {}, study, block=seeds is not None)
    plans = list(design.plans())
    planned = stages_of(plans)
    # Stages of other recipes in these folders may have the same work, so their times are known.
    forecast = Forecast(named(store.stages()) | planned, store)
    todo = [name for name in planned if name not in forecast.finished]
    if samples and None in map(forecast.seconds, todo):
        time_stages(plans, forecast, samples)
    left = {name: forecast.seconds(name) for name in todo}
    listed = []
    new = set(left)
    # A stage that several plans need is counted for the first of these plans, which runs it.
    for plan in plans:
        own = new.intersection(named(plan.stages()))
        listed.append({"purpose": plan.purpose, "runs": len(plan.runs), "to_do": len(own)})
        new -= own
    return {
        "name": recipe.name,
        "out": str(out),
        "jobs": jobs,
        "plans": listed,
        "phases": list(phases_of(design.runs, left)),
        **summary(planned, left, jobs),
        "memory_gib": forecast.memory_gib(),
        "contrasts": prospects_of(recipe),
        "doubts": notes,
        "notes": notes + list(design.open_questions()),
    }


# maskwise check
# ------------------------------------------------------------------------------------------------


class Outlook:
    """Collects facts about a recipe, lines of text with these facts, and warnings.

    Attributes:
        arms: for each arm, the recipe of its last training phase; empty for a recipe without arms.
        first: the recipe whose text, model and steps are reported: the last phase of the first arm.
        facts: the sections of facts that ``outlook_of`` returns, keyed by name.
        lines: pairs (name, text); every text states some of the facts in words.
        doubts: warnings as {"what": text, "do": advice}.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.arms = {name: recipe.arm(name, seed=0).links()[-1] for name in recipe.study.arms}
        self.first = next(iter(self.arms.values()), recipe.links()[-1])
        self.facts: Plain = {"name": recipe.name}
        self.lines: list[tuple[str, str]] = []
        self.doubts: list[Plain] = []

    def say(self, name: str, line: str, facts: Plain) -> None:
        """Add a line of text; ``line`` is a format string whose fields are facts."""
        self.lines.append((name, line.format(**facts)))

    def doubt(self, what: str, do: str = "", **facts: object) -> None:
        """Add a warning and advice; both are format strings whose fields are facts."""
        self.doubts.append({"what": what.format(**facts), "do": do.format(**facts)})

    def text(self, sample: TextSample) -> None:
        """Count documents, rows, tokens and unknown tokens."""
        corpus = self.first.corpus
        counts = sample.rows.pieces.counts
        tokens = max(1, counts.get("tokens", sample.rows.tokens))
        # Counts of the sample are scaled to the whole text.
        held_out = len(sample.data.held_out)
        rows = sample.scale * (len(sample.rows) + held_out)
        if sample.scale > 1:
            # The few held-out rows of a sample may be another share of its rows.
            held_out = round(rows * corpus.held_out)
        facts: Plain = {
            "title": corpus.title,
            "documents": sample.documents,
            "characters": sample.characters,
            "whole": sample.whole,
            "skipped": dict(sample.skipped),
            "rows": round(rows - held_out),
            "held_out_rows": held_out,
            "length": corpus.length,
            "tokens": round(tokens * sample.scale),
            "unknown": counts.get(UNKNOWN, 0) / tokens,
            "vocabulary": len(sample.data.tokenizer),
        }
        self.facts["corpus"] = facts
        line = "{title}: {documents:,} documents, {characters:,} characters"
        if not sample.whole:
            line = "{title}: at least {documents:,} documents, {characters:,} characters"
        self.say("text", line, facts)
        line = "about {rows:,} training and {held_out_rows:,} held-out rows of {length} tokens; "
        self.say("rows", line + "{tokens:,} tokens; {unknown:.1%} [UNK]", facts)
        if facts["unknown"] > MOST_UNKNOWN:
            what = "{unknown:.1%} of the tokens are unknown to the tokenizer, and are never masked"
            self.doubt(what, UNKNOWN_ADVICE, **facts)
        if held_out < FEW_HELD_OUT and not corpus.stream:
            what = "with {held_out_rows} held-out rows, the held-out loss is inexact"
            self.doubt(what, "use more text, or raise corpus.held_out", **facts)
        if sample.skipped:
            what = "{documents:,} documents were kept, and these were left out: {left_out}"
            advice = "inspect these places if there are many"
            self.doubt(what, advice, left_out=counted(sample.skipped), **facts)

    def model(self, sample: TextSample) -> PreTrainedConfig:
        """Describe the model, and return its configuration."""
        start = self.first.model.pretrained
        _, config = start_of(self.first)
        # A newly trained tokenizer may have fewer tokens than requested, such as the letters only.
        if start is None:
            config.vocab_size = len(sample.data.tokenizer)
        weights = weights_of(config)
        facts: Plain = {
            "start": start,
            "type": config.model_type,
            "weights": weights,
            "vocabulary": config.vocab_size,
        }
        self.facts["model"] = facts
        line = "{type}, new: "
        if start:
            line = "{type}, continued from {start}: "
        line += "{millions:.1f} M weights, vocabulary {vocabulary:,}"
        self.say("model", line, facts | {"millions": weights / 1e6})
        return config

    def training(self, sample: TextSample, config: PreTrainedConfig) -> None:
        """Count targets, passes over the text, and the steps until the loss leaves its plateau."""
        first = self.first
        how = first.training
        arms = {}
        for name, link in (self.arms or {self.recipe.name: first}).items():
            try:
                counts = _targets(link, sample, config)
            # An arm cannot be trained if, for example, the text has fewer rows than a batch.
            except MaskwiseError as error:
                self.doubt("arm {name} cannot be trained: {error}", name=name, error=error)
                continue
            arms[name] = counts
            targets = counts["targets_per_step"]
            if targets is not None and targets < FEW_TARGETS:
                self.doubt(
                    "arm {arm} has {targets_per_step:.0f} targets per step",
                    "raise training.batch_size, corpus.length or the ratio",
                    arm=name,
                    **counts,
                )
        self.facts["arms"] = arms
        facts: Plain = {"steps": how.steps, "passes": None, "plateau_steps": None}
        line = "{steps:,} steps, "
        if sample.whole or not first.corpus.stream:
            rows = max(1, self.facts["corpus"]["rows"])
            facts["passes"] = how.steps * how.batch_size / rows
            line += "{passes:.1f} passes over the text"
        else:
            line += "on a stream, whose number of rows is unknown"
        known = [arm["targets_per_step"] for arm in arms.values()]
        fewest = min((targets for targets in known if targets is not None), default=0)
        vocabulary = len(sample.data.tokenizer)
        # How long a model learns only word frequencies (the plateau) was measured only for new
        # encoders with word pieces.
        new = first.model.pretrained is None and first.kind == "encoder"
        if new and vocabulary >= LEAST_VOCABULARY and fewest > 0:
            facts["plateau_steps"] = round(plateau_targets(vocabulary) / fewest)
            line += "; about {plateau_steps:,} until the loss is below that of word frequencies"
        self.facts["training"] = facts
        self.say("training", line, facts)
        if (facts["passes"] or 0) > MOST_PASSES:
            self.doubt(
                "training makes {passes:.0f} passes over the text, and may overfit",
                "use more text, or lower training.steps",
                **facts,
            )
        safe = SAFE_TIMES * (facts["plateau_steps"] or 0)
        if how.steps < safe:
            self.doubt(
                "{steps} steps may be too few: about the first {plateau_steps} steps teach a new "
                "model little more than word frequencies",
                "set training.steps={safe} to be safe, or use a pretrained model "
                "(model.pretrained)",
                safe=10 * math.ceil(safe / 10),
                **facts,
            )

    def tasks(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Count rows, labels and truncated rows of the tasks."""
        tasks = {}
        for spec in of_run(self.recipe.tasks, 0):
            task = load_task(spec)
            facts = tasks[task.name] = _task_facts(task, self.first, tokenizer)
            parts = [f"{count:,} {split}" for split, count in facts["rows"].items()]
            if task.found:
                parts[0] += f" of {task.found:,} (train_rows)"
            line = ", ".join(parts)
            if facts["classes"]:
                line += ", {classes} labels"
            if facts["most"]:
                line += ", the most frequent {most:.1%}"
            if task.majority is not None:
                line += "; guessing gives {majority:.3f} {metric}"
            self.say(f"task {task.name}", "{kind}: " + line, facts)
            self._doubt_task(facts | {"task": task.name})
            for note in facts.get("notes", []):
                self.doubt("{task}: {note}", task=task.name, note=note)
        self.facts["tasks"] = tasks

    def _doubt_task(self, facts: Plain) -> None:
        if accuracy_misleads(facts["metric"], facts["most"]):
            self.doubt(
                "{most:.1%} of the rows of {task} have the same label, so accuracy says little",
                "the page also shows macro F1; to decide by it, set metric='macro-f1'",
                **facts,
            )
        if facts["test_items"] < FEW_TEST_ITEMS and facts["metric"] != NATS:
            self.doubt(
                "{task} has only {test_items} test items, which makes a score uncertain by "
                "±{error:.0f} points",
                "use a larger test set, or ignore small differences",
                # In points, the standard error of a share of 1/2 is 50 / √n, and that of a
                # correlation of 0 is 100 / √n.
                error=(100 if facts["metric"] in CORRELATIONS else 50) / facts["test_items"] ** 0.5,
                **facts,
            )
        if facts["cut"] > MOST_CUT:
            self.doubt(
                "{cut:.0%} of the rows of {task} are longer than {max_length} tokens and are "
                "truncated",
                "raise finetune.max_length: the longest row has {longest:,} tokens",
                **facts,
            )
        if facts["skipped"]:
            self.doubt(
                "left out of {task}: {left_out}",
                "inspect these rows if there are many",
                left_out=counted(facts["skipped"]),
                **facts,
            )

    def plan(self, plan: Plain) -> None:
        """Report what the planned runs can decide and how long they take."""
        # Imported here for the same reason as in ``dry_run``.
        from maskwise.study.prospects import prospect_lines

        prospects = plan["contrasts"]
        self.facts["contrasts"] = prospects
        self.lines += [("contrasts", line) for line in prospect_lines(prospects)]
        short = [prospect for prospect in prospects if not prospect["decidable"]]
        if short:
            self.doubt(
                "{runs} runs of each arm cannot decide {contrasts}",
                "set study.seeds={fewest}, or list fewer study.contrasts",
                runs=short[0]["runs"],
                contrasts=plural(len(short), "contrast"),
                fewest=max(prospect["fewest_runs"] for prospect in short),
            )
        for counts in plan["stages"].values():
            # Finished stages are counted, too, because other studies may have run shared stages.
            counts["stages"] = counts.pop("to_do") + counts.pop("done")
        parts = []
        runs = {}
        for line in plan["plans"]:
            runs[line["purpose"]] = line["runs"]
            if self.arms:
                parts.append(f"{plural(line['runs'], 'run')} ({line['purpose']})")
        parts.append(time_words(plan))
        self.lines.append(("time", ", ".join(parts)))
        kept = ("jobs", "stages", "unknown", "seconds", "memory_gib")
        self.facts["time"] = {"runs": runs, **{key: plan[key] for key in kept}}


def outlook_of(subject: str, overrides: Sequence[str] = (), *, timing: bool = True) -> Plain:
    """Report what a recipe would train, how long this takes, and its likely problems.

    Args:
        subject: the name or file of a recipe; or a corpus or a file of labels, for which
            ``starter`` writes a recipe.
        overrides: ``key=value`` settings.
        timing: whether to time stages that were not timed here before.

    Returns:
        Sections of facts: ``corpus``, ``model``, ``training``, ``arms``, ``tasks``, ``contrasts``
        and ``time``. ``doubts``: warnings with ``what`` and ``do``. ``recipe``: the recipe as YAML,
        with every default filled in. ``lines``: the facts in words.

    Raises:
        MaskwiseError: the recipe cannot be run.
    """
    read = partial(recipe_for, subject)
    recipe = read(overrides)
    alone = not recipe.study.arms
    refuse_unread(
        recipe,
        overrides,
        read=read,
        names=names_in_pretraining if alone else names_in_study,
        command="pretrain" if alone else "study",
    )
    if alone:
        recipe = with_own_seed(recipe)
    outlook = Outlook(recipe)
    study = recipe
    # The time of a recipe without arms is forecast as that of a study with one run.
    if not outlook.arms:
        single = recipe.study.model_copy(update={"arms": {recipe.name: {}}, "seeds": 1})
        study = recipe.model_copy(update={"study": single})
    with tempfile.TemporaryDirectory(prefix="maskwise-") as name:
        samples = Samples(outlook.first, Path(name))
        timed_on = None
        if timing:
            timed_on = samples
        plan = dry_run(study, samples.folder / "study", samples=timed_on)
        for note in plan["doubts"]:
            outlook.doubt("{note}", note=note)
        sample = samples.first
        outlook.text(sample)
        outlook.training(sample, outlook.model(sample))
        outlook.tasks(sample.data.tokenizer)
        outlook.plan(plan)
    found = {"recipe": recipe.to_yaml(), "doubts": outlook.doubts, "lines": outlook.lines}
    return outlook.facts | found


def _targets(link: Recipe, sample: TextSample, config: PreTrainedConfig) -> Plain:
    """Count the mean targets and tokens of a training step.

    The counts are None, and ``why`` is the reason, if the objective changes between steps, or if a
    masking policy is learned first.
    """
    why = ""
    masks = f"{link.masking.policy} {link.masking.ratio}"
    only = None
    if link.learns:
        why = "its policy is learned first"
    elif link.objectives:
        masks = link.sampler
        steps = link.training.steps
        only = sampler(link.sampler, list(link.objectives), steps=steps).only()
        if only is None:
            why = "its sampler chooses an objective at each step"
    if why:
        keys = ("targets_per_step", "tokens_per_step", "share", "tokens_per_unit")
        return {"masks": masks, **dict.fromkeys(keys), "why": why}
    counts = counts_over(masked_source(sample.data, link, config, arm=only), COUNTED_STEPS)
    return {
        "masks": masks,
        "targets_per_step": counts.targets / counts.steps,
        "tokens_per_step": counts.tokens / counts.steps,
        "share": counts.targets / max(1, counts.tokens),
        "tokens_per_unit": counts.eligible / counts.units if counts.units else None,
    }


def _task_facts(task: Task, link: Recipe, tokenizer: PreTrainedTokenizerBase) -> Plain:
    most_tokens = link.finetune.max_length
    labels = Counter(all_classes(task.splits["train"]))
    sizes = row_sizes(task, tokenizer)
    return {
        **task.facts(),
        "rows": {split: len(rows) for split, rows in task.splits.items()},
        "found": task.found or len(task.splits["train"]),
        "labels": dict(labels.most_common(12)),
        "most": max(labels.values(), default=0) / max(1, labels.total()),
        "majority": task.majority,
        "skipped": dict(task.skipped),
        "cut": cut_share(sizes, most_tokens),
        "longest": max(sizes, default=0),
        "max_length": most_tokens,
    }
