"""Rehearse a study: its own stages, with little text and few steps, through ``run_stage``.

What fails in a study fails here. A small stage is run, and again with more of each thing that its
seconds grow with, such as steps. The seconds of the whole stage are those of a line through both.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from rich.progress import track

from maskwise.base.devices import begin_peak_memory, best_device, memory, peak_memory
from maskwise.base.errors import MaskwiseError, PlugInError
from maskwise.base.printing import err_console, quietly, shows_progress
from maskwise.evaluation.evaluate import load_measures
from maskwise.evaluation.measure import TextMeasure
from maskwise.evaluation.measures.heldout import PseudoPerplexity
from maskwise.evaluation.measures.spelling import WordLoss
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.models.families import width_of
from maskwise.models.weights import blocks_of
from maskwise.studies.costs import READ, Forecast, StageRates, work_of
from maskwise.studies.from_files import for_some_seconds
from maskwise.studies.plan import Plan, stages_of
from maskwise.studies.stages import KINDS, Stage, recipe_of
from maskwise.studies.store import StageStore
from maskwise.studies.work import (
    checkpoint_of,
    open_prepared,
    run_stage,
    start_of_task,
    starting_from,
)
from maskwise.tasks.finetuning import TRIAL_FACTORS, settings_for
from maskwise.tasks.loading import load_task
from maskwise.tasks.settings import FinetuneSettings
from maskwise.text.rows import holds_out
from maskwise.text.settings import CorpusSettings, Prepared
from maskwise.text.stream import COUNTED_CHARACTERS
from maskwise.training.building import config_from, empty_model_from
from maskwise.training.log import NeverFinite

SAMPLE_CHARACTERS, OVERLAP_CHARACTERS = 600_000, 150_000
"""The number of characters of a text, and of one in which test items are searched."""
LEAST_CHARACTERS, TOKEN_CHARACTERS = 200_000, 200
"""The least number of characters if the tokenizer is new, and the number for each of its tokens."""
SHARES = (0.2, 0.45)
"""The share of the beginning of a text that is held out, for enough rows; the second if the first
leaves none.
"""
STEPS, ROWS, ITEMS = (3, 9, 27, 81), (12, 48, 192, 768), (48, 192, 768)
"""Numbers of steps, of held-out rows or of test items, and of rows of a task: at first, and then
until the difference of the seconds is clear."""
FEW_ITEMS = (1, 4, 16)
"""The same numbers of rows or documents each of whose tokens takes a forward pass."""
CLEAR, CLEAR_SECONDS = 0.5, 5.0
"""A difference is clear from this share of the seconds on, or from these seconds."""
BUDGET_SECONDS, BUDGET = 60.0, 0.05
"""After the longer of these seconds and this share of the study, sizes are tried no further."""
STREAM_CHUNK = 1 / 32
"""The largest ``corpus.shuffle`` of a rehearsal, so that each step reads its share of a stream."""
CHOICE_SECONDS = 0.01
"""The seconds of a choice, which is not rehearsed."""

ValuePath: TypeAlias = tuple[str, ...]
OtherValues: TypeAlias = dict[ValuePath, object]
"""Values of a stage's ``what`` or ``how``, keyed by the names that lead to them."""

ALONE: OtherValues = {
    ("training", "patience"): None,
    ("training", "lengths"): None,
    ("save_every",): 0,
    ("eval_every",): 0,
    ("trackers",): [],
}
"""A training without states, trackers and evaluations, but for that of the end."""


class Thing(NamedTuple):
    """A thing that the seconds of a stage grow with.

    Attributes:
        path: the names that lead to its number.
        sizes: the numbers to try.
        whole: the number of the whole stage.
        rate: the rate that it is a part of (``costs.work_of``); "" for the first.
    """

    path: ValuePath
    sizes: tuple[int, ...]
    whole: float
    rate: str = ""


class Small(NamedTuple):
    """How a stage is made small: what its seconds grow with, other changes, and how often the
    whole stage repeats its work.
    """

    things: list[Thing]
    changes: OtherValues
    times: int = 1


class TextCounts(NamedTuple):
    """Counts of a text, or of the part that was read to count it.

    Attributes:
        longest: the characters and the name of the longest document.
        whole: whether the whole text was read.
        skipped: the number of skipped documents, keyed by reason.
        held_out: the number of characters in held-out documents.
    """

    documents: int
    characters: int
    longest: tuple[int, str]
    whole: bool
    skipped: Mapping[str, int]
    held_out: int


class TextPart(NamedTuple):
    """The beginning of a text.

    Attributes:
        documents, characters: its size.
        limit: its number of documents from each source; None if it is the whole text.
        counts: those of the whole text.
    """

    documents: int
    characters: int
    limit: int | None
    counts: TextCounts

    @property
    def times(self) -> float:
        """The size of the whole text, divided by that of the part."""
        return 1.0 if self.limit is None else self.counts.characters / self.characters

    @property
    def things(self) -> list[Thing]:
        """The documents, if the part is less than the text."""
        if self.limit is None:
            return []
        sizes = self.limit, max(1, self.limit // 4)
        return [Thing(("corpus", "limit"), sizes, self.limit * self.times)]


def changed(stage: Stage, changes: OtherValues) -> Stage:
    """Return a stage with other values in ``how``, if they are there, or else in ``what``.

    >>> changed(Stage("pretrain", {"training": {"steps": 9}}), {("training", "steps"): 3}).what
    {'training': {'steps': 3}}
    """
    what, how = deepcopy(stage.what), deepcopy(stage.how)
    for (*outer, last), value in changes.items():
        group = how
        for name in outer:
            group = group.get(name, {})
        if last not in group:
            group = what
            for name in outer:
                group = group.setdefault(name, {})
        group[last] = value
    return replace(stage, what=what, how=how)


class Rehearsal:
    """The small stages of a study, which are run in a temporary folder.

    Args:
        folder: the folder.

    Attributes:
        whole: the whole stages, keyed by name.
        seconds: the seconds of all small stages.
    """

    def __init__(self, folder: Path):
        self.store = StageStore(folder / "stages")
        self.whole: dict[str, Stage] = {}
        self.seconds = 0.0
        self._small: dict[str, Stage | MaskwiseError] = {}
        # Stages with one name may differ in how often they evaluate, and on how many rows.
        self._took: dict[Stage, float] = {}
        self._counts: dict[str, TextCounts] = {}
        self._warm: set[object] = set()

    # Texts
    # ---------------------------------------------------------------------------------------

    def counts_of(self, corpus: CorpusSettings) -> TextCounts:
        """Count a text for a few seconds at most, once."""
        key = repr([corpus.sources, *(getattr(corpus, name) for name in (*READ, "stream"))])
        if key not in self._counts:
            self._counts[key] = _counts_of(corpus)
        return self._counts[key]

    def part_of(self, corpus: CorpusSettings, characters: int = SAMPLE_CHARACTERS) -> TextPart:
        """Find the beginning of a text, and count the text."""
        beginning = corpus.documents().beginning(characters)
        sizes = [(document.source, len(document.text)) for document in beginning]
        counts = self.counts_of(corpus)
        limit = None
        if not beginning.whole:
            limit = max(Counter(source for source, _ in sizes).values())
        return TextPart(len(sizes), sum(size for _, size in sizes), limit, counts)

    def part_of_stage(self, stage: Stage) -> TextPart:
        """Return the beginning of the text that a stage prepares."""
        made = stage.what.get("tokenizer")
        characters = SAMPLE_CHARACTERS
        if made and not made["name"] and "changes" not in stage.what:
            enough = max(LEAST_CHARACTERS, TOKEN_CHARACTERS * made["vocab_size"])
            characters = min(characters, enough)
        return self.part_of(CorpusSettings(**stage.what["corpus"]), characters)

    def prepared(self, text: str) -> Prepared:
        """Open the small text in place of a prepared one, by its name."""
        return open_prepared(self.store.folder(self.stand_in(text)))

    def held_out_rows(self, text: str) -> float:
        """Return the number of held-out rows of a prepared text, by its name."""
        rows = self.store.result(self.stand_in(text)) or {}
        corpus = CorpusSettings(**self.whole[text].what["corpus"])
        part = self.part_of_stage(self.whole[text])
        if part.limit is None or corpus.stream:
            return math.inf if corpus.stream else float(rows["held_out_rows"])
        # The share of documents may be far from that of characters, if they are few.
        share = part.counts.held_out / part.counts.characters or corpus.held_out
        return part.times * share * float(rows["rows"] + rows["held_out_rows"])

    # Small stages
    # ---------------------------------------------------------------------------------------

    def stand_in(self, name: str) -> Stage:
        """Return the small stage in place of a whole one. It is finished.

        Raises:
            MaskwiseError: it failed.
        """
        stage = self.whole[name]
        if stage.kind == "choose":
            # The parts of a training are rehearsed as trainings of their own.
            return self.stand_in(stage.needs[-1])
        if name not in self._small:
            try:
                self._small[name] = self._first(stage)
            except MaskwiseError as error:
                self._small[name] = error
        small = self._small[name]
        if isinstance(small, MaskwiseError):
            raise small
        return small

    def _first(self, stage: Stage) -> Stage:
        """Run the smallest stage in place of a whole one, with a part of its text held out."""
        how = self._how(stage)
        small = self._sized(stage, how)
        if stage.kind == "pretrain":
            self._require_memory(small)
        if stage.kind != "prepare" or not how.things:
            self._run(small)
            return small
        for share in SHARES:
            held_out = max(share, stage.setting("corpus.held_out"))
            small = changed(small, {("corpus", "held_out"): held_out})
            try:
                self._run(small)
                return small
            except MaskwiseError as error:
                failure = error
        raise failure

    def _how(self, stage: Stage) -> Small:
        return HOW[stage.kind](self, stage)

    def _sized(self, stage: Stage, how: Small) -> Stage:
        """Return the smallest stage in place of a whole one."""
        needs = tuple(self.stand_in(need).name for need in stage.needs)
        numbers = {thing.path: thing.sizes[0] for thing in how.things}
        return changed(replace(stage, needs=needs), {**how.changes, **numbers})

    def _run(self, stage: Stage) -> float:
        """Run a small stage, and return its seconds."""
        if stage in self._took:
            return self._took[stage]
        kind = stage.kind, stage.what.get("task")
        # The first stage of a kind is slower, because it imports modules, and does not count.
        for _ in range(1 if kind in self._warm else 2):
            shutil.rmtree(self.store.folder(stage), ignore_errors=True)
            clock = _clock_of(stage)
            began = clock()
            # Warnings about a part of a text are not those of the study.
            with _one_thread(), quietly(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run_stage(stage, self.store)
            self._took[stage] = clock() - began
            self.seconds += self._took[stage]
        self._warm.add(kind)
        return self._took[stage]

    def _require_memory(self, small: Stage) -> None:
        """Raise an error if a step needs more memory than this machine has (docs/scaling.md)."""
        recipe = starting_from(checkpoint_of(small, self.store), recipe_of(small))
        training = recipe.training
        here = memory()
        if here is None or best_device().type != "cpu" or training.activation_checkpointing:
            return
        if training.freeze == "encoder":
            # Without gradients, the encoder keeps no activations.
            return
        data = open_prepared(self.store.folder(small.needs[0]))
        length = data.held_out.length
        config = config_from(recipe.model, data.tokenizer, length, kind=recipe.kind)
        network = empty_model_from(recipe.model, config)
        tokens = training.batch_size // training.accumulate * length
        size = 4 * 34 * tokens * width_of(network) * len(blocks_of(network))
        if size > here:
            raise MaskwiseError(
                "a step does not fit into memory",
                got=f"about {size / 1e9:,.0f} GB",
                do="raise training.accumulate",
            )

    def rates(self, stage: Stage, budget: float) -> StageRates:
        """Return the rates of a whole stage.

        Args:
            stage: the stage.
            budget: the seconds of the rehearsal after which sizes are tried no further.

        Raises:
            MaskwiseError: a small stage failed.
        """
        if stage.kind == "choose":
            return {"seconds": CHOICE_SECONDS}
        begin_peak_memory(best_device())
        small = self.stand_in(stage.name)
        seconds = self._run(small)
        how = self._how(stage)
        (first, _), *_ = counts = work_of(stage)
        rates = dict.fromkeys(dict(counts), 0.0) | {first: seconds}
        for path, (few, *more), whole, rate in how.things:
            each = 0.0
            for size in more:
                try:
                    difference = self._run(changed(small, {path: size})) - seconds
                except MaskwiseError:
                    # A part may be too small although a larger one was not.
                    each = seconds / few
                    break
                each = max(0.0, difference / (size - few))
                if abs(difference) > min(CLEAR * seconds, CLEAR_SECONDS) or self.seconds > budget:
                    break
            rates[first] -= each * few
            rates[rate or first] += each * whole / max(1, dict(counts)[rate or first])
        rates[first] = max(0.0, rates[first]) * how.times
        rates["memory_gib"] = peak_memory(best_device()) / 2**30
        return rates


def _counts_of(corpus: CorpusSettings) -> TextCounts:
    documents = corpus.documents()
    reading = iter(documents)
    count = characters = held_out = 0
    for document in for_some_seconds(reading):
        size = len(document.text)
        count += 1
        characters += size
        if holds_out(document, corpus.held_out):
            held_out += size
    whole = next(reading, None) is None
    skipped = dict(documents.skipped)
    return TextCounts(count, characters, documents.longest, whole, skipped, held_out)


def _clock_of(stage: Stage) -> Callable[[], float]:
    """Return the clock by which a stage is timed.

    Processor time has no work of other processes of this machine, but also none of a GPU, of a
    compiler, or of the processes that read a stream.
    """
    apart = stage.setting("training.compile") or stage.how.get("workers")
    if best_device().type == "cpu" and not apart:
        return time.process_time
    return time.perf_counter


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread on a CPU, as the workers of a study do."""
    before = torch.get_num_threads()
    if best_device().type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# How each kind of stage is made small
# -------------------------------------------------------------------------------------------


def _up_to(most: float, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes below a number, and this number if it is not larger than all of them.

    >>> _up_to(30, (12, 48, 192)), _up_to(8, (12, 48, 192)), _up_to(1, (12, 48, 192))
    ((12, 30), (2, 8), (1,))
    """
    most = max(1, int(min(most, sizes[-1])))
    below = [size for size in sizes if size < most] or [max(1, most // 4)]
    return tuple(dict.fromkeys([*below, most]))


def _text(rehearsal: Rehearsal, stage: Stage) -> Small:
    part = rehearsal.part_of_stage(stage)
    corpus = CorpusSettings(**stage.what["corpus"])
    if not corpus.stream:
        return Small(part.things, {})
    read = min(part.counts.characters, COUNTED_CHARACTERS)
    sizes = part.characters, part.characters // 4
    chunk: OtherValues = {("corpus", "shuffle"): min(corpus.shuffle, STREAM_CHUNK)}
    return Small([Thing(("characters",), sizes, read)], chunk)


def _training(rehearsal: Rehearsal, stage: Stage) -> Small:
    kind = KINDS["pretrain"]
    steps = kind.steps(stage) or 1
    text = stage.needs[0]
    rows = min(stage.setting("evaluation.rows"), rehearsal.held_out_rows(text))
    most = min(rows, len(rehearsal.prepared(text).held_out))
    judged = rows * kind.evaluations(stage)
    # Only a stream has workers.
    alone = ALONE if rehearsal.whole[text].setting("corpus.stream") else ALONE | {("workers",): 0}
    return Small(
        [
            Thing(("training", "steps"), _up_to(steps, STEPS), steps, "step"),
            Thing(("evaluation", "rows"), _up_to(most, ROWS), judged, "judge"),
        ],
        alone | {("part",): None},
    )


def _learning(rehearsal: Rehearsal, stage: Stage) -> Small:
    kind = KINDS["learn"]
    part = rehearsal.part_of(CorpusSettings(**stage.what["corpus"]))
    steps = kind.steps(stage) or 1
    meta = stage.what["learning"].get("meta")
    if meta is None:
        inside = ("learning", "supervised", "training")
        training = Thing((*inside, "steps"), _up_to(steps, STEPS), steps, "step")
        alone: OtherValues = {(*inside, *names[-1:]): value for names, value in ALONE.items()}
        return Small([training, *part.things], alone)
    of_meta = ("learning", "meta")
    tries = meta["tries"]
    judged = meta["dev_examples"]
    things = [
        Thing((*of_meta, "steps"), _up_to(steps, STEPS), tries * steps, "step"),
        Thing(
            (*of_meta, "dev_examples"),
            _up_to(judged, ROWS),
            tries * judged * kind.evaluations(stage),
            "judge",
        ),
    ]
    changes = {"tries": 1, "patience": None, "eval_every": max(STEPS)}
    return Small(
        [*things, *part.things], {(*of_meta, name): each for name, each in changes.items()}
    )


def _measures(rehearsal: Rehearsal, stage: Stage) -> Small:
    text = stage.needs[0]
    held_out = rehearsal.held_out_rows(text)
    here = len(rehearsal.prepared(text).held_out)
    if "documents" in stage.what:
        # The other half of the documents chose the best state.
        held_out /= 2
    things = []
    for name, measure in load_measures(EvaluationSettings(**stage.what["evaluation"])).items():
        whole: float = measure.size()
        most = whole
        if isinstance(measure, TextMeasure) and not isinstance(measure, WordLoss):
            whole = min(whole, held_out)
            most = min(whole, here)
        sizes = FEW_ITEMS if isinstance(measure, PseudoPerplexity | WordLoss) else ROWS
        things.append(Thing(("items", name), _up_to(most, sizes), whole))
    return Small(things, {("documents",): None})


def _task(rehearsal: Rehearsal, stage: Stage) -> Small:
    task = load_task(stage.what["task"])
    dev, test = (len(task.splits[name]) for name in ("dev", "test"))
    parts = bool(dev) + bool(test)
    changes: OtherValues = {("finetune", "seeds"): 1}
    if task.frozen:
        every = len(task.splits["train"]) + dev + test
        sizes = _up_to(max(dev, test), ITEMS)
        # Training rows are embedded, too, four times as many.
        return Small([Thing(("rows",), sizes, every / (4 + parts))], changes)
    settings = FinetuneSettings(**stage.what["finetune"])
    needs = tuple(rehearsal.stand_in(need).name for need in stage.needs)
    start, _ = start_of_task(replace(stage, needs=needs), rehearsal.store)
    settings = settings_for(task, settings, start)
    steps = settings.training(task, seed=0).steps
    answered = dev + test
    if settings.eval_every:
        answered += math.ceil(steps / settings.eval_every) * dev
    alone = {"search_rate": False, "eval_every": 0, "epochs": None}
    changes |= {("finetune", name): value for name, value in alone.items()}
    return Small(
        [
            Thing(("finetune", "steps"), _up_to(steps, STEPS), steps),
            Thing(("rows",), _up_to(max(dev, test), ITEMS), answered / parts),
        ],
        changes,
        settings.seeds + (len(TRIAL_FACTORS) if settings.search_rate else 0),
    )


def _overlap(rehearsal: Rehearsal, stage: Stage) -> Small:
    corpus = CorpusSettings(**stage.what["corpus"])
    return Small(rehearsal.part_of(corpus, OVERLAP_CHARACTERS).things, {})


HOW: dict[str, Callable[[Rehearsal, Stage], Small]] = {
    "prepare": _text,
    "pretrain": _training,
    "learn": _learning,
    "evaluate": _measures,
    "finetune": _task,
    "overlap": _overlap,
}


# A rehearsal
# -------------------------------------------------------------------------------------------


def rehearse(
    plans: Iterable[Plan], forecast: Forecast, rehearsal: Rehearsal, *, every: bool = False
) -> dict[str, str]:
    """Rehearse the stages whose seconds are unknown, and store their rates in the forecast.

    Args:
        every: whether to rehearse also those whose seconds are known. The first error is raised.

    Returns:
        Why stages could not be rehearsed, keyed by their kinds.
    """
    untimed: dict[str, str] = {}
    waiting: dict[object, dict[str, Stage]] = {}
    plans = [*plans]
    for plan in plans:
        for run in plan.runs:
            for number, stage in enumerate(run.stages):
                rehearsal.whole[stage.name] = stage
                known = stage.name in forecast.finished or forecast.known(stage.name) is not None
                if known and not every:
                    continue
                # The texts of the runs of an arm, such as worlds, differ as their seeds do.
                group = run.arm, number, forecast.key(stage.name, content=False)
                waiting.setdefault(group, {})[stage.name] = stage
    for alike in track(
        [*waiting.values()],
        description="Rehearsing",
        console=err_console,
        transient=True,
        disable=not shows_progress(),
    ):
        # Stages of several arms may have the same work.
        if not every and None not in map(forecast.known, alike):
            continue
        seconds = sum(seconds or 0.0 for seconds in map(forecast.seconds, stages_of(plans)))
        stage = next(iter(alike.values()))
        try:
            rates = rehearsal.rates(stage, max(BUDGET_SECONDS, BUDGET * seconds))
        except (PlugInError, NeverFinite):
            # Neither the user's code nor the first loss gets better with more text.
            raise
        except MaskwiseError as error:
            # A part of the text or of the items may be too small for a stage.
            if every:
                raise
            untimed.setdefault(stage.kind, str(error))
            continue
        for name in alike:
            forecast.keep(name, rates)
    return untimed
