"""What a recipe would do, before it does it: ``maskwise check``. Facts first, then every doubt with
what to do.

A sample of the text is prepared as a study prepares the whole, and everything is counted on it:
tokens, [UNK], units, targets. Of the rest the recipe, the tasks and the model's configuration tell
enough. Times are those of a few real steps (``timing``). Nothing is written but the cache of times.

Cost: below 30 seconds; reading, some seconds for a megabyte of sample, and what is timed.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maskwise.constants import accuracy_misleads
from maskwise.errors import MaskwiseError, counted, duration
from maskwise.keys import Keys
from maskwise.masking import Masker
from maskwise.masking.policies import Moment
from maskwise.models import weights_of
from maskwise.recipe import Recipe, read_recipe, shipped
from maskwise.recipe.overrides import Plain
from maskwise.study.checks import MOST_UNKNOWN, check_inputs, start_of
from maskwise.study.costs import over_a_run
from maskwise.study.design import Design
from maskwise.study.forecast import Forecast, wall
from maskwise.study.prospects import prospect_lines, prospects_of
from maskwise.study.starter import look_at, name_of, starter
from maskwise.study.timing import START_SECONDS, time_stages, works_of
from maskwise.study.work import masked_source
from maskwise.tasks import Task, load_task
from maskwise.tasks.tensors import MOST_CUT
from maskwise.text import Prepared, Rows, load_tokenizer, tokenise
from maskwise.text.documents import Document
from maskwise.text.pieces import UNKNOWN
from maskwise.text.prepared import first_characters

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

SAMPLE_CHARACTERS = 600_000
"""How much of a text is prepared to be counted."""
COUNTED_STEPS = 4
"""Steps, evenly over a run, whose batches are masked to count targets."""
FEW_TARGETS = 32
"""Targets of a step below which its gradient is mostly noise."""
FEW_TEST_ITEMS = 200
LOOKED_AT, MOST_TOKENS_A_WORD = 200, 30
"""Rows of a split that are measured, and tokens of a word above which its rule finds no words."""
MOST_PASSES = 8
"""Passes over a text above which it is rather learned by heart."""

PLATEAU_TARGETS, PLATEAU_POWER = 72_000, 0.17
"""Targets after which a small new model with the quick start's settings leaves the loss of word
frequencies by 0.3 nats, with a vocabulary of ``PLATEAU_VOCABULARY``; larger ones take more, by this
power. Fitted on the bundled Wikipedia with 512 to 2,048 words (benchmarks/first_contact.py
plateau). Of letters nothing is known: some families of proteins left it in 1,000 steps, and others
did not in twice what this rule says."""
PLATEAU_VOCABULARY, LEAST_VOCABULARY = 1024, 256
SAFE_TIMES = 1.5
"""The rule above is right within a factor of 2, so that so many times its steps are wanted."""


class Look(NamedTuple):
    """A sample of a recipe's text, prepared.

    Attributes:
        scale: how many times the sample the whole text is.
        seconds: that preparing took, for each character.
        documents, characters: of the whole text, or of what was seen of it.
        whole: whether all of it was seen.
        skipped: reason → count of what was left out of that.
    """

    data: Prepared
    scale: float
    seconds: float
    documents: int
    characters: int
    whole: bool
    skipped: Mapping[str, int]

    @property
    def rows(self) -> Rows:
        """The rows of the sample that would be trained on; also a stream's, which is sampled as a
        corpus is.
        """
        assert isinstance(self.data.training, Rows)
        return self.data.training


def outlook_of(subject: str, overrides: Sequence[str] = (), *, timing: bool = True) -> Plain:
    """What a recipe, or the recipe for a file, would do.

    Args:
        subject: a recipe by name or file; or a corpus or a file of labels, for which ``starter``
            writes one.
        overrides: ``key=value`` settings.
        timing: whether to time what was not timed here before.

    Returns:
        ``corpus``, ``model``, ``training``, ``arms``, ``tasks``, ``time``, ``doubts`` (each with
        ``what`` and ``do``), ``recipe`` (with every default filled in), and ``lines``: the same in
        words.

    Raises:
        MaskwiseError: what a study itself would refuse.
    """
    recipe = recipe_for(subject, overrides)
    notes = check_inputs(recipe)
    arms = {name: recipe.arm(name, seed=0).links()[-1] for name in recipe.study.arms}
    first = next(iter(arms.values()), recipe.links()[-1])
    _, config = start_of(first)
    tasks = [load_task(spec) for spec in recipe.tasks]
    doubts: list[Plain] = [{"what": note, "do": ""} for note in notes]
    with tempfile.TemporaryDirectory(prefix="maskwise-") as name:
        look = _look(first, Path(name) / "data")
        corpus = _corpus(first, look)
        if first.model.pretrained is None:  # a tokenizer of letters knows fewer words than it may
            config.vocab_size = corpus["vocabulary"]
        model: Plain = {"start": first.model.pretrained, "type": config.model_type}
        model |= {"weights": weights_of(config), "vocabulary": config.vocab_size}
        counts: dict[str, Plain | None] = {}
        for arm, link in (arms or {recipe.name: first}).items():
            try:
                counts[arm] = _targets(link, look, config)
            except MaskwiseError as error:  # such as a text that is shorter than a batch
                doubts.append({"what": f"arm {arm} cannot be trained: {error}", "do": ""})
        times = _times(
            recipe, first, look, Path(name), timing=timing and len(counts) == max(1, len(arms))
        )
    facts: Plain = {
        "name": recipe.name,
        "corpus": corpus,
        "model": model,
        "arms": {arm: count for arm, count in counts.items() if count},
        "tasks": {task.name: _task(task, first, look.data.tokenizer) for task in tasks},
        "time": times,
        "recipe": recipe.to_yaml(),
    }
    facts["training"] = _training(recipe, first, facts)
    facts["contrasts"] = prospects_of(recipe) if recipe.study.arms else []
    doubts += _doubts(recipe, first, facts)
    return facts | {"doubts": doubts, "lines": list(_lines(recipe, facts))}


def recipe_for(subject: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or file; or the one that ``maskwise study --new`` would write for a
    file.

    Raises:
        MaskwiseError: neither a recipe nor a file that can be read.
    """
    path = Path(subject)
    is_recipe = subject in shipped() or path.suffix.lower() in (".yaml", ".yml")
    if is_recipe or not (path.exists() or subject.startswith(("hf:", "bundled:"))):
        return read_recipe(subject, overrides)
    with tempfile.TemporaryDirectory(prefix="maskwise-") as folder:
        written = Path(folder) / f"{name_of(subject)}.yaml"
        written.write_text(starter(subject), encoding="utf-8")
        return read_recipe(written, overrides)


# The text
# ------------------------------------------------------------------------------------------------------


def _look(link: Recipe, folder: Path) -> Look:
    """Prepare a sample of the text of a training, and look at the rest."""
    link = link.unlearned()
    corpus, documents = link.corpus, link.corpus.documents()
    sample = [*first_characters(documents, SAMPLE_CHARACTERS)]
    size = sum(len(document.text) for document in sample)
    skipped = dict(documents.skipped)
    total, count, whole = size, len(sample), size < SAMPLE_CHARACTERS
    if not whole and not corpus.stream:
        seen = look_at(corpus.documents())
        total, count, whole, skipped = (
            seen.characters,
            seen.documents,
            seen.whole,
            dict(seen.skipped),
        )
    began = time.process_time()
    data = _prepared(link, sample, folder, whole=whole)
    seconds = (time.process_time() - began) / max(1, size)
    return Look(data, total / max(1, size), seconds, count, total, whole, skipped)


def _prepared(link: Recipe, sample: list[Document], folder: Path, *, whole: bool) -> Prepared:
    """Some documents, or the whole text, in the rows of a training."""
    corpus, name = link.corpus, link.tokenizer_name
    tokenizer = (
        load_tokenizer(name, needs_mask=link.kind == "encoder")
        if name
        else link.tokenizer.tokenizer(sample)
    )
    store = None
    if corpus.annotators:
        from maskwise.annotate.run import annotate_corpus
        from maskwise.annotate.store import Store

        annotate_corpus(
            corpus.documents(), corpus.annotators, folder / "layers", limit=len(sample), jobs=1
        )
        store = Store(folder / "layers")
    # A part of a text may leave a side empty that the whole text would not.
    shares = [corpus.held_out] if whole else [corpus.held_out, 0.2, 0.45]
    for share in shares:
        try:
            tokens = tokenise(sample, tokenizer, layers=store)
            return Prepared.make(
                folder / f"{share}",
                tokens,
                tokenizer,
                length=corpus.length,
                layout=corpus.row_layout,
                held_out=share,
            )
        except MaskwiseError as error:
            failure = error
    raise failure


def _corpus(link: Recipe, look: Look) -> Plain:
    data, rows, counts = look.data, look.rows, look.rows.pieces.counts
    tokens = max(1, counts.get("tokens", rows.tokens))
    words = rows.pieces.columns.get("word_ids")
    number = None
    if words is not None:
        ids = np.asarray(words)
        number = int((np.diff(ids, prepend=-1) != 0)[ids >= 0].sum())
        number = number if tokens < MOST_TOKENS_A_WORD * number else None  # letters without blanks
    scaled = lambda value: round(value * look.scale)  # noqa: E731
    return {
        "title": link.corpus.title,
        "documents": look.documents,
        "characters": look.characters,
        "whole": look.whole,
        "skipped": dict(look.skipped),
        "rows": scaled(len(rows)),
        "held_out_rows": scaled(len(data.held_out)),
        "length": link.corpus.length,
        "tokens": scaled(tokens),
        "unknown": counts.get(UNKNOWN, 0) / tokens,
        "words": None if number is None else scaled(number),
        "vocabulary": len(data.tokenizer),
        "tokens_per_word": None if not number else round(tokens / number, 3),
    }


# What is trained, and on what
# ------------------------------------------------------------------------------------


def _targets(link: Recipe, look: Look, config: PreTrainedConfig) -> Plain | None:
    """What one step of a training is, in the mean of some steps; None where several objectives take
    turns.
    """
    if link.objectives or link.learns:
        return None
    source = masked_source(look.data, link, config)
    steps = over_a_run(link.training.steps, COUNTED_STEPS)
    targets = tokens = units = chosen = 0.0
    for step in steps:
        batches = source.batches(step, rank=0, ranks=1)
        targets += sum(batch.targets for batch in batches)
        tokens += source.facts(batches)["tokens"]
    masker = source.masker
    if isinstance(masker, Masker) and len(look.rows):
        from maskwise.masking.gather import gather

        pieces = look.rows.batch(np.arange(min(16, len(look.rows))))
        batch = gather(pieces, masker.vocabulary)
        keys = Keys(batch.example_id, seed=0, epoch=0, step=steps[0])
        length = masker.choose(batch, keys, Moment(steps[0], link.training.steps, 0))[
            0
        ].units.length
        units, chosen = float(len(length)), float(length.sum())
    count = len(steps)
    return {
        "masks": f"{link.masking.policy} {link.masking.ratio}",
        "targets_per_step": targets / count,
        "tokens_per_step": tokens / count,
        "share": targets / max(1.0, tokens),
        "tokens_per_unit": chosen / units if units else None,
    }


def _task(task: Task[Any], link: Recipe, tokenizer: PreTrainedTokenizerBase) -> Plain:
    facts: Plain = dict(task.facts())
    texts = [
        row.texts for split in ("train", "test") for row in task.splits.get(split, ())[:LOOKED_AT]
    ]
    if task.frozen:  # every text by itself
        texts = [(text,) for parts in texts for text in parts]
    sizes = []
    if not task.kind.windows:
        sizes = [len(tokenizer(*parts)["input_ids"]) for parts in texts if 1 <= len(parts) <= 2]
    cut = [size for size in sizes if size > link.finetune.max_length]
    labels = Counter(name for row in task.splits["train"] for name in getattr(row, "classes", ()))
    most = max(labels.values(), default=0) / max(1, labels.total())
    return {
        **facts,
        "rows": {split: len(rows) for split, rows in task.splits.items()},
        "labels": dict(labels.most_common(12)),
        "most": most,
        "majority": task.majority,
        "skipped": dict(task.skipped),
        "cut": len(cut) / max(1, len(sizes)),
        "longest": max(sizes, default=0),
        "max_length": link.finetune.max_length,
    }


def _training(recipe: Recipe, first: Recipe, facts: Plain) -> Plain:
    """Passes over the text, and the steps after which a new model leaves the plateau."""
    how, rows = first.training, max(1, facts["corpus"]["rows"])
    known = facts["corpus"]["whole"] or not first.corpus.stream
    passes = how.steps * how.batch_size / rows if known else None
    training: Plain = {"steps": how.steps, "passes": passes, "plateau_steps": None}
    each = [arm["targets_per_step"] for arm in facts["arms"].values()]
    new, vocabulary = (
        first.model.pretrained is None and first.kind == "encoder",
        facts["corpus"]["vocabulary"],
    )
    if new and vocabulary >= LEAST_VOCABULARY and each and min(each) > 0:
        training["plateau_steps"] = round(plateau_targets(vocabulary) / min(each))
    return training


def plateau_targets(vocabulary: int) -> float:
    """Targets after which a small new model with so many words leaves the loss of word frequencies
    by 0.3 nats.
    """
    return PLATEAU_TARGETS * (vocabulary / PLATEAU_VOCABULARY) ** PLATEAU_POWER


# Time
# ------------------------------------------------------------------------------------------------------------


def _times(recipe: Recipe, first: Recipe, look: Look, folder: Path, *, timing: bool) -> Plain:
    """Seconds of work by kind of stage, and until the end with as many stages at once as there are
    cores.

    Args:
        first: the recipe of the training whose text ``look`` has prepared.
        folder: for samples in other rows.
    """
    jobs = os.cpu_count() or 1
    if not recipe.study.arms:
        recipe = recipe.model_copy(
            update={
                "study": recipe.study.model_copy(update={"arms": {recipe.name: {}}, "seeds": 1})
            }
        )
    design = Design(recipe, folder / "stages", forecast=True)
    plans = list(design.plans())
    works = works_of(run for plan in plans for run in plan.runs)
    todo = {stage.name: stage for plan in plans for stage in plan.stages()}
    forecast = Forecast(todo)
    samples = {_cut(first.unlearned()): look.data}

    def sample(link: Recipe) -> Prepared:
        """Steps are timed in rows of their own length, and with their own tokenizer."""
        link = link.unlearned()
        cut = _cut(link)
        if cut not in samples:
            some = [*first_characters(link.corpus.documents(), SAMPLE_CHARACTERS // 4)]
            samples[cut] = _prepared(link, some, folder / f"sample-{len(samples)}", whole=False)
        return samples[cut]

    if timing and len(look.rows):
        time_stages(works, sample, forecast, characters=look.characters, prepared=look.seconds)
    seconds = {name: forecast.seconds(name) for name in todo}
    kinds: dict[str, Plain] = {}
    for name, stage in todo.items():
        entry = kinds.setdefault(stage.kind, {"stages": 0, "seconds": 0.0})
        entry["stages"] += 1
        each = seconds[name]
        entry["seconds"] = (
            None if each is None or entry["seconds"] is None else entry["seconds"] + each
        )
    unknown = [kind for kind, entry in kinds.items() if entry["seconds"] is None]
    return {
        "jobs": jobs,
        "runs": {plan.purpose: len(plan.runs) for plan in plans},
        "stages": kinds,
        "unknown": unknown,
        "seconds": None if unknown else round(START_SECONDS + wall(todo, seconds, jobs), 1),
        "memory_gib": forecast.memory_gib(),
    }


def _cut(link: Recipe) -> tuple[object, ...]:
    """What the time of a step on the rows of a sample depends on."""
    corpus = link.corpus
    return (corpus.length, corpus.row_layout, corpus.layers, link.tokenizer_name or link.tokenizer)


# Words
# -----------------------------------------------------------------------------------------------------------


def _doubts(recipe: Recipe, first: Recipe, facts: Plain) -> Iterator[Plain]:
    """Everything that may make a study useless, with what to do."""
    corpus, training = facts["corpus"], facts["training"]

    def doubt(what: str, do: str) -> Plain:
        return {"what": what, "do": do}

    if corpus["unknown"] > MOST_UNKNOWN:
        do = (
            "take a tokenizer that knows its characters: tokenizer.kind=bpe, or a larger "
            "tokenizer.vocab_size"
        )
        yield doubt(
            f"{corpus['unknown']:.1%} of the tokens are unknown to the tokenizer, and are "
            f"never masked",
            do,
        )
    if corpus["skipped"]:
        seen = "" if corpus["whole"] else f" (in the first {corpus['documents']:,} documents)"
        yield doubt(
            f"left out of the text: {counted(corpus['skipped'])}{seen}",
            "look at these places if they are many",
        )
    for name, arm in facts["arms"].items():
        if arm["targets_per_step"] < FEW_TARGETS:
            what = f"arm {name} has {arm['targets_per_step']:.0f} targets a step"
            yield doubt(what, "raise training.batch_size, corpus.length or the ratio")
    if (training["passes"] or 0) > MOST_PASSES:
        what = (
            f"the text is read {training['passes']:.0f} times, and will rather be learned by heart"
        )
        yield doubt(what, "give more text, or lower training.steps")
    if (needed := training["plateau_steps"]) and training["steps"] < SAFE_TIMES * needed:
        hardly = "hardly" if training["steps"] < needed else "may not"
        what = (
            f"{training['steps']} steps {hardly} leave the plateau of word frequencies: it "
            f"takes about {needed}"
        )
        safe = 10 * math.ceil(SAFE_TIMES * needed / 10)
        do = f"training.steps={safe}, to be safe, or a start that is trained: model.pretrained"
        yield doubt(what, do)
    for name, task in facts["tasks"].items():
        if accuracy_misleads(task["metric"], task["most"]):
            what = f"{task['most']:.0%} of the rows of {name} have one label: accuracy says little"
            yield doubt(
                what, "macro F1 stands beside it on the page; to judge by it, metric='macro-f1'"
            )
        if task["test_items"] < FEW_TEST_ITEMS:
            error = 50 / task["test_items"] ** 0.5
            what = (
                f"{name} is judged on {task['test_items']} items: a score is ± {error:.0f} "
                f"points from them alone"
            )
            yield doubt(what, "give more rows to test, or do not read small differences")
        if task["cut"] > MOST_CUT:
            what = (
                f"{task['cut']:.0%} of the rows of {name} are longer than "
                f"{task['max_length']} tokens, and are cut"
            )
            yield doubt(what, f"raise finetune.max_length: the longest has {task['longest']:,}")
        if task["skipped"]:
            yield doubt(
                f"left out of {name}: {counted(task['skipped'])}",
                "look at these rows if they are many",
            )
        for note in task.get("notes", []):
            yield doubt(f"{name}: {note}", "")
    runs, prospects = len(recipe.study.seed_list), facts["contrasts"]
    if short := [prospect for prospect in prospects if not prospect["decidable"]]:
        what = (
            f"{runs} runs of each arm cannot decide {len(short)} contrast{'s' * (len(short) > 1)}"
        )
        fewest = max(prospect["fewest_runs"] for prospect in short)
        yield doubt(what, f"study.seeds={fewest}, or fewer study.contrasts")


def _lines(recipe: Recipe, facts: Plain) -> Iterator[tuple[str, str]]:
    corpus, model, training, times = (facts[key] for key in ("corpus", "model", "training", "time"))
    more = "" if corpus["whole"] else "at least "
    yield (
        "text",
        f"{corpus['title']}: {more}{corpus['documents']:,} documents, "
        f"{corpus['characters']:,} characters",
    )
    words = (
        ""
        if corpus["words"] is None
        else f", {corpus['words']:,} words of {corpus['tokens_per_word']:.2f} tokens"
    )
    yield (
        "rows",
        (
            f"{corpus['rows']:,} of {corpus['length']} tokens, {corpus['held_out_rows']:,} "
            f"held out; "
            f"about {corpus['tokens']:,} "
            f"tokens{words}; {corpus['unknown']:.1%} [UNK]"
        ),
    )
    start = f"goes on from {model['start']}" if model["start"] else "new"
    yield (
        "model",
        f"{model['type']}, {start}: {model['weights'] / 1e6:.1f} M weights, vocabulary "
        f"{model['vocabulary']:,}",
    )
    plateau = (
        ""
        if training["plateau_steps"] is None
        else f"; about {training['plateau_steps']:,} to leave the plateau"
    )
    passes = training["passes"]
    over = (
        "on a stream, which is not counted"
        if passes is None
        else f"{passes:.1f} passes over the text"
    )
    yield "training", f"{training['steps']:,} steps, {over}{plateau}"
    for name, task in facts["tasks"].items():
        rows = ", ".join(f"{count:,} {split}" for split, count in task["rows"].items())
        labels = f", {task['classes']} labels" if task["classes"] else ""
        most = f", the commonest {task['most']:.0%}" if task["most"] else ""
        majority = (
            ""
            if task["majority"] is None
            else f"; knowing nothing gives {task['majority']:.3f} {task['metric']}"
        )
        yield f"task {name}", f"{task['kind']}: {rows}{labels}{most}{majority}"
    for line in prospect_lines(facts["contrasts"]):
        yield "contrasts", line
    counts = ", ".join(f"{count} runs ({purpose})" for purpose, count in times["runs"].items())
    runs = f"{counts}, " if recipe.study.arms else ""
    if times["seconds"] is None:
        yield (
            "time",
            f"{runs}unknown: nothing like {', '.join(times['unknown'])} was timed here yet",
        )
    else:
        memory = (
            ""
            if times["memory_gib"] is None
            else f", {times['memory_gib']:.1f} GiB for each of them"
        )
        yield (
            "time",
            f"{runs}about {duration(times['seconds'])} with {times['jobs']} stages at once{memory}",
        )
