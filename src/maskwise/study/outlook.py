"""``maskwise check``: report what a recipe would do and warn of likely problems.

Tokens, [UNK], units and targets are counted on a prepared sample of the text. The rest follows from
the recipe, the tasks and the model's configuration. Times come from a few real steps (``timing``).
Nothing is written except the cache of times. Cost: less than 30 seconds.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from maskwise.constants import accuracy_misleads
from maskwise.errors import MaskwiseError, counted, duration, plural
from maskwise.models import weights_of
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.checks import MOST_UNKNOWN, UNKNOWN_ADVICE, start_of
from maskwise.study.costs import counts_over
from maskwise.study.forecast import dry_run
from maskwise.study.pretraining import masked_source
from maskwise.study.single import with_own_seed
from maskwise.study.starter import recipe_for
from maskwise.study.statistics import prospect_lines
from maskwise.study.timing import Sample, Samples, time_stages
from maskwise.tasks import Task, load_task
from maskwise.tasks.tensors import MOST_CUT
from maskwise.text.pieces import UNKNOWN
from maskwise.text.worlds import of_run

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

COUNTED_STEPS = 4
"""How many steps, spread evenly over a run, have their batches masked to count targets."""
FEW_TARGETS = 32
"""Below this number of targets the gradient of a step is mostly noise."""
FEW_TEST_ITEMS = 200
MEASURED_ROWS = 1000
"""The largest number of rows of a split whose tokens are counted."""
MOST_PASSES = 8
"""Above this number of passes over a text, overfitting is likely."""

PLATEAU_TARGETS, PLATEAU_POWER = 72_000, 0.17
"""The number of targets until a small new model with the quick-start settings beats the unigram
loss by 0.3 nats, for a vocabulary of ``PLATEAU_VOCABULARY``, and the exponent of its growth with
the vocabulary. Fitted on the bundled Wikipedia with 512 to 2,048 words (benchmarks/first_contact.py
plateau); accurate within a factor of 2. Not valid for letters: some protein families took 1,000
steps, others more than twice the prediction."""
PLATEAU_VOCABULARY = 1024
LEAST_VOCABULARY = 256
SAFE_TIMES = 1.5


class Doubt(NamedTuple):
    """A possible problem with a study.

    Attributes:
        test: returns whether the facts have the problem.
        what, do: the warning and the advice, as format strings over the facts.
    """

    test: Callable[[Plain], object]
    what: str
    do: str


CORPUS_DOUBTS = (
    Doubt(
        lambda corpus: corpus["unknown"] > MOST_UNKNOWN,
        "{unknown:.1%} of the tokens are unknown to the tokenizer, and are never masked",
        UNKNOWN_ADVICE,
    ),
    Doubt(
        lambda corpus: corpus["skipped"],
        "left out of the text: {left_out}",
        "inspect these places if there are many",
    ),
)
ARM_DOUBTS = (
    Doubt(
        lambda arm: arm["targets_per_step"] < FEW_TARGETS,
        "arm {arm} has {targets_per_step:.0f} targets per step",
        "raise training.batch_size, corpus.length or the ratio",
    ),
)
TRAINING_DOUBTS = (
    Doubt(
        lambda training: (training["passes"] or 0) > MOST_PASSES,
        "training makes {passes:.0f} passes over the text, and may overfit",
        "use more text, or lower training.steps",
    ),
    Doubt(
        lambda training: training["steps"] < SAFE_TIMES * (training["plateau_steps"] or 0),
        "{steps} steps may be too few to leave the plateau of word frequencies, which takes about "
        "{plateau_steps}",
        "set training.steps={safe} to be safe, or use a pretrained model (model.pretrained)",
    ),
)
TASK_DOUBTS = (
    Doubt(
        lambda task: accuracy_misleads(task["metric"], task["most"]),
        "{most:.0%} of the rows of {task} have the same label, so accuracy says little",
        "the page also shows macro F1; to decide by it, set metric='macro-f1'",
    ),
    Doubt(
        lambda task: task["test_items"] < FEW_TEST_ITEMS,
        "{task} is evaluated on {test_items} items, which alone makes a score uncertain by "
        "±{error:.0f} points",
        "use a larger test set, or ignore small differences",
    ),
    Doubt(
        lambda task: task["cut"] > MOST_CUT,
        "{cut:.0%} of the rows of {task} are longer than {max_length} tokens and are truncated",
        "raise finetune.max_length: the longest row has {longest:,} tokens",
    ),
    Doubt(
        lambda task: task["skipped"],
        "left out of {task}: {left_out}",
        "inspect these rows if there are many",
    ),
)


class Outlook:
    """Collects the facts about a recipe, the lines that print them, and warnings.

    Attributes:
        arms: for each arm, the recipe of its last phase; empty for a recipe without arms.
        first: the recipe of the phase whose text, model and steps are reported.
        facts, lines, doubts: as ``outlook_of`` returns them.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.arms = {name: recipe.arm(name, seed=0).links()[-1] for name in recipe.study.arms}
        self.first = next(iter(self.arms.values()), recipe.links()[-1])
        self.facts: Plain = {"name": recipe.name}
        self.lines: list[tuple[str, str]] = []
        self.doubts: list[Plain] = []

    def say(self, name: str, line: str, facts: Plain) -> None:
        self.lines.append((name, line.format(**facts)))

    def doubt(self, what: str, do: str = "") -> None:
        self.doubts.append({"what": what, "do": do})

    def check(self, doubts: Iterable[Doubt], facts: Plain) -> None:
        for doubt in doubts:
            if doubt.test(facts):
                self.doubt(doubt.what.format(**facts), doubt.do.format(**facts))

    def text(self, sample: Sample) -> None:
        """Count documents, rows, tokens and unknown tokens."""
        corpus = self.first.corpus
        counts = sample.rows.pieces.counts
        tokens = max(1, counts.get("tokens", sample.rows.tokens))
        facts: Plain = {
            "title": corpus.title,
            "documents": sample.documents,
            "characters": sample.characters,
            "whole": sample.whole,
            "skipped": dict(sample.skipped),
            # Counts of the sample are scaled to the whole text.
            "rows": round(len(sample.rows) * sample.scale),
            "held_out_rows": round(len(sample.data.held_out) * sample.scale),
            "length": corpus.length,
            "tokens": round(tokens * sample.scale),
            "unknown": counts.get(UNKNOWN, 0) / tokens,
            "vocabulary": len(sample.data.tokenizer),
        }
        self.facts["corpus"] = facts
        left_out = counted(sample.skipped)
        line = "{title}: {documents:,} documents, {characters:,} characters"
        if not sample.whole:
            line = "{title}: at least {documents:,} documents, {characters:,} characters"
            left_out += f" (in the first {sample.documents:,} documents)"
        self.say("text", line, facts)
        line = "{rows:,} of {length} tokens, {held_out_rows:,} held out; about {tokens:,} tokens; "
        self.say("rows", line + "{unknown:.1%} [UNK]", facts)
        self.check(CORPUS_DOUBTS, facts | {"left_out": left_out})

    def model(self, sample: Sample) -> PreTrainedConfig:
        """Describe the model, and return its configuration."""
        start = self.first.model.pretrained
        _, config = start_of(self.first)
        # A trained tokenizer, such as one of letters, may have fewer tokens than requested.
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

    def training(self, sample: Sample, config: PreTrainedConfig) -> None:
        """Count targets, passes over the text and the steps that the plateau takes."""
        first = self.first
        how = first.training
        arms = {}
        for name, link in (self.arms or {self.recipe.name: first}).items():
            try:
                counts = _targets(link, sample, config)
            # For example, the text may have fewer rows than a batch.
            except MaskwiseError as error:
                self.doubt(f"arm {name} cannot be trained: {error}")
                continue
            if counts is not None:
                arms[name] = counts
                self.check(ARM_DOUBTS, counts | {"arm": name})
        self.facts["arms"] = arms
        facts: Plain = {"steps": how.steps, "passes": None, "plateau_steps": None}
        line = "{steps:,} steps, "
        if sample.whole or not first.corpus.stream:
            rows = max(1, self.facts["corpus"]["rows"])
            facts["passes"] = how.steps * how.batch_size / rows
            line += "{passes:.1f} passes over the text"
        else:
            line += "on a stream, which is not counted"
        fewest = min((arm["targets_per_step"] for arm in arms.values()), default=0)
        vocabulary = len(sample.data.tokenizer)
        # The plateau was measured for new encoders on word pieces only.
        new = first.model.pretrained is None and first.kind == "encoder"
        if new and vocabulary >= LEAST_VOCABULARY and fewest > 0:
            facts["plateau_steps"] = round(plateau_targets(vocabulary) / fewest)
            line += "; about {plateau_steps:,} to leave the plateau"
        self.facts["training"] = facts
        self.say("training", line, facts)
        safe = 10 * math.ceil(SAFE_TIMES * (facts["plateau_steps"] or 0) / 10)
        self.check(TRAINING_DOUBTS, facts | {"safe": safe})

    def tasks(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Count rows, labels and truncated rows of the tasks."""
        tasks = {}
        for spec in of_run(self.recipe.tasks, 0):
            task = load_task(spec)
            facts = _task_facts(task, self.first, tokenizer)
            tasks[task.name] = facts
            counts = {split: f"{count:,}" for split, count in facts["rows"].items()}
            if task.found:
                counts["train"] += f" of {task.found:,}"
            line = ", ".join(f"{count} {split}" for split, count in counts.items())
            if facts["classes"]:
                line += ", {classes} labels"
            if facts["most"]:
                line += ", the most frequent {most:.0%}"
            if task.majority is not None:
                line += "; guessing gives {majority:.3f} {metric}"
            self.say(f"task {task.name}", "{kind}: " + line, facts)
            # The standard error of a share near one half, in points.
            error = 50 / facts["test_items"] ** 0.5
            more = {"task": task.name, "error": error, "left_out": counted(task.skipped)}
            self.check(TASK_DOUBTS, facts | more)
            for note in facts.get("notes", []):
                self.doubt(f"{task.name}: {note}")
        self.facts["tasks"] = tasks

    def plan(self, plan: Plain) -> None:
        """Report what the planned runs can decide, and how long they take.

        Args:
            plan: the result of ``dry_run``.
        """
        prospects = plan["contrasts"]
        self.facts["contrasts"] = prospects
        self.lines += [("contrasts", line) for line in prospect_lines(prospects)]
        short = [prospect for prospect in prospects if not prospect["decidable"]]
        if short:
            contrasts = plural(len(short), "contrast")
            fewest = max(prospect["fewest_runs"] for prospect in short)
            what = f"{short[0]['runs']} runs of each arm cannot decide {contrasts}"
            self.doubt(what, f"set study.seeds={fewest}, or list fewer study.contrasts")
        for counts in plan["stages"].values():
            # Shared stages of other studies may be done.
            counts["stages"] = counts.pop("to_do") + counts.pop("done")
        parts = []
        runs = {}
        for line in plan["plans"]:
            runs[line["purpose"]] = line["runs"]
            if self.arms:
                parts.append("{runs} runs ({purpose})".format(**line))
        if plan["seconds"] is None:
            parts.append(f"unknown: no similar {', '.join(plan['unknown'])} was timed here yet")
        else:
            parts.append(f"about {duration(plan['seconds'])} with {plan['jobs']} stages at once")
            if plan["memory_gib"] is not None:
                parts.append(f"{plan['memory_gib']:.1f} GiB for each")
        self.lines.append(("time", ", ".join(parts)))
        kept = ("jobs", "stages", "unknown", "seconds", "memory_gib")
        self.facts["time"] = {"runs": runs, **{key: plan[key] for key in kept}}


def outlook_of(subject: str, overrides: Sequence[str] = (), *, timing: bool = True) -> Plain:
    """Report what a recipe, or the recipe for a file, would do.

    Args:
        subject: the name or file of a recipe; or a corpus or a file of labels, for which
            ``starter`` writes a recipe.
        overrides: ``key=value`` settings.
        timing: whether to time stages that were not timed here before.

    Returns:
        ``corpus``, ``model``, ``training``, ``arms``, ``tasks``, ``contrasts``, ``time``,
        ``doubts`` (warnings with ``what`` and ``do``), ``recipe`` (with every default filled in),
        and ``lines``: the same facts in words.

    Raises:
        MaskwiseError: a recipe that ``run_study`` refuses.
    """
    recipe = recipe_for(subject, overrides)
    if not recipe.study.arms:
        recipe = with_own_seed(recipe)
    outlook = Outlook(recipe)
    study = recipe
    # A recipe without arms is timed as a study of one run.
    if not outlook.arms:
        single = recipe.study.model_copy(update={"arms": {recipe.name: {}}, "seeds": 1})
        study = recipe.model_copy(update={"study": single})
    with tempfile.TemporaryDirectory(prefix="maskwise-") as name:
        samples = Samples(outlook.first, Path(name))
        probe = None
        if timing:
            probe = partial(time_stages, samples=samples)
        plan = dry_run(study, samples.folder / "study", probe=probe)
        for note in plan["doubts"]:
            outlook.doubt(note)
        sample = samples.first
        outlook.text(sample)
        outlook.training(sample, outlook.model(sample))
        outlook.tasks(sample.data.tokenizer)
        outlook.plan(plan)
    found = {"recipe": recipe.to_yaml(), "doubts": outlook.doubts, "lines": outlook.lines}
    return outlook.facts | found


def plateau_targets(vocabulary: int) -> float:
    """Estimate the targets until a small new model beats the unigram loss by 0.3 nats."""
    return PLATEAU_TARGETS * (vocabulary / PLATEAU_VOCABULARY) ** PLATEAU_POWER


# Counts
# ------------------------------------------------------------------------------------------------


def _targets(link: Recipe, sample: Sample, config: PreTrainedConfig) -> Plain | None:
    """Count the mean targets and tokens of a training step.

    None for several objectives, which take turns, and for a policy that is not learned yet.
    """
    if link.objectives or link.learns:
        return None
    counts = counts_over(masked_source(sample.data, link, config), COUNTED_STEPS)
    tokens_per_unit = None
    if counts.units:
        tokens_per_unit = counts.eligible / counts.units
    return {
        "masks": f"{link.masking.policy} {link.masking.ratio}",
        "targets_per_step": counts.targets / counts.steps,
        "tokens_per_step": counts.tokens / counts.steps,
        "share": counts.targets / max(1, counts.tokens),
        "tokens_per_unit": tokens_per_unit,
    }


def _task_facts(task: Task, link: Recipe, tokenizer: PreTrainedTokenizerBase) -> Plain:
    most_tokens = link.finetune.max_length
    labels = Counter(chain.from_iterable(row.classes for row in task.splits["train"]))
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


def row_sizes(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Count the tokens of a sample of a task's rows; empty if long rows are read in windows."""
    if task.kind.windows:
        return []
    texts = []
    for split in ("train", "test"):
        rows = task.splits.get(split, ())
        # Files may be sorted, so rows are sampled evenly.
        every = -(-len(rows) // MEASURED_ROWS) or 1
        texts += [row.texts for row in rows[::every]]
    # Tasks without fine-tuning embed every text alone.
    if task.frozen:
        texts = [(text,) for text in chain.from_iterable(texts)]
    sizes = []
    for parts in texts:
        if 1 <= len(parts) <= 2:
            # By default the tokenizer warns of rows that are too long for the model.
            sizes.append(len(tokenizer(*parts, verbose=False)["input_ids"]))
    return sizes


def cut_share(sizes: Sequence[int], most_tokens: int) -> float:
    """Return the share of rows with more tokens than a model reads."""
    return sum(size > most_tokens for size in sizes) / max(1, len(sizes))
