"""Time the stages of a study (pieces of work such as pre-training) on a sample of its text.

Training stages are timed for a few steps. A stage is timed only if the ``Forecast`` knows no time
for it. The timing takes a few seconds for each kind of training and each task.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import track

from maskwise.annotate.kept import Store
from maskwise.annotate.run import annotate_corpus
from maskwise.base.devices import begin_peak_memory, best_device, memory, peak_memory
from maskwise.base.errors import MaskwiseError, PlugInError, duration, plural
from maskwise.base.printing import err_console, quietly, shows_progress
from maskwise.base.signals import temporary_folder
from maskwise.evaluation.evaluate import evaluate, load_measures
from maskwise.evaluation.measure import Measure, TextMeasure
from maskwise.evaluation.measures.heldout import PseudoPerplexity
from maskwise.evaluation.measures.overlap import overlap_record
from maskwise.evaluation.measures.spelling import WordLoss
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.masking.settings import MaskingSettings
from maskwise.models.families import width_of
from maskwise.models.loading import task_config, weights_of
from maskwise.models.weights import blocks_of
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.studies.checks import text_of
from maskwise.studies.costs import Forecast, StageRates
from maskwise.studies.from_files import for_some_seconds
from maskwise.studies.plan import Plan
from maskwise.studies.pretraining import network_of, pretrain
from maskwise.studies.stages import CHECKPOINT, Stage
from maskwise.studies.work import extended, lesson_of, scored_by, write_rows
from maskwise.tasks.finetuning import finetune
from maskwise.tasks.loading import load_task
from maskwise.text import Prepared, Rows, load_tokenizer
from maskwise.text.documents import Documents
from maskwise.text.new_words import Extended, wanted_words
from maskwise.text.rows import holds_out
from maskwise.text.settings import CorpusSettings
from maskwise.text.stream import COUNTED_CHARACTERS, HELD_OUT_CHARACTERS
from maskwise.text.tokenizers import SAMPLE_CHARACTERS as TOKENIZER_CHARACTERS
from maskwise.training.building import changed_config, config_from, empty_model_from
from maskwise.training.checkpoint import save_checkpoint
from maskwise.training.log import Evaluate, NeverFinite
from maskwise.training.ranks import Ranks

SAMPLE_CHARACTERS, OVERLAP_CHARACTERS = 600_000, 150_000
"""The number of characters of a text sample, and of that in which test items are searched."""
LEAST_CHARACTERS, TOKEN_CHARACTERS = 200_000, 200
"""The least number of characters of a text sample if its tokenizer is new, and the number of
characters for each token of this tokenizer."""
STEPS, STEP_SECONDS = 6, 6.0
"""The number of timed steps of a training stage. If they take longer than ``STEP_SECONDS``, fewer
steps are timed, but at least two."""
COMPILED_STEPS = 6
"""The least number of timed steps if the model is compiled. The first two or three of them compile
for new shapes of batches, which takes many times as long as a step."""
UNUSUAL, UNUSUAL_COMPILED = 1, 2
"""The number of fastest and of slowest steps that do not count, of those after the first."""
ITEMS = 48
"""The number of timed rows of a task, or of held-out rows."""
FEW_ROWS, FEW_DOCUMENTS = 4, 8
"""The number of timed rows for the pseudo-perplexity, each of whose tokens takes a forward pass,
and of documents for the loss of words."""
OPENING = 0.01
"""Seconds to read and write the files of a stage."""
FROZEN_SECONDS = 0.5
"""If a frozen encoder answers ``ITEMS`` rows in less time, it is timed with four times as many."""
TRIED_RATES = 3
"""With ``finetune.search_rate``, this number of additional fine-tuning runs try learning rates."""

SHORT = {
    "steps": STEPS,
    "eval_every": 1,
    "log_every": 1,
    "save_every": 0,
    "trackers": (),
}
"""Settings of a timed training. The training is evaluated after every step, and this "evaluation"
is a ``Clock``. Nothing is saved, because saving would add to the time of a step."""


# Samples
# -------------------------------------------------------------------------------------------


class TextSample(NamedTuple):
    """A prepared sample of a recipe's text.

    Attributes:
        scale: the number of characters of the whole text, divided by that of the sample.
        sampled: the number of documents of the sample.
        documents, characters: counts of the whole text, or of the part that was read to count it.
        longest: the characters and the name of the longest document of this text or part.
        whole: whether the whole text was read to count it.
        skipped: the number of skipped documents in the part that was read, keyed by reason.
        held_out: the share of the characters that is held out.
        vocabulary_seconds: a function that times the tokenizer when it is first called, and
            forecasts its seconds for the whole text, or for the part of a stream that is read
            before training.
        times: the number of characters of this text or part, divided by that of the sample.
        row_seconds: a function that times the rows when it is first called, and forecasts the
            seconds to prepare so many times the sample.
    """

    data: Prepared
    scale: float
    sampled: int
    documents: int
    characters: int
    longest: tuple[int, str]
    whole: bool
    skipped: Mapping[str, int]
    held_out: float
    vocabulary_seconds: Callable[[], float]
    times: float
    row_seconds: Callable[[float], float]

    @property
    def rows(self) -> Rows:
        """The training rows of the sample, even if its text is a stream."""
        assert isinstance(self.data.training, Rows)
        return self.data.training

    @property
    def prepare_seconds(self) -> float:
        """The forecast for the rows that are prepared before training."""
        return self.row_seconds(self.times)

    @property
    def one_row_seconds(self) -> float:
        """The seconds to prepare a row, which a stream does during training."""
        rows = max(1, len(self.rows) + len(self.data.held_out))
        return (self.row_seconds(1) - self.row_seconds(0)) / rows

    @property
    def held_out_rows(self) -> int:
        """The number of held-out rows of the whole text."""
        held_out = len(self.data.held_out)
        if self.scale == 1:
            return held_out
        # The few held-out rows of a sample may be another share of its rows.
        return round(self.scale * (len(self.rows) + held_out) * self.held_out)


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


class Samples:
    """Prepares samples of a recipe's text for all training phases.

    Phases with the same tokenizer, row length and layout share a sample.

    Args:
        link: the recipe of the training phase whose text is counted.
        folder: the folder for the samples.
    """

    def __init__(self, link: Recipe, folder: Path):
        self.link = link.unlearned()
        self.folder = folder
        self.prepared: dict[tuple[object, ...], TextSample] = {}
        self.seen: dict[str, TextCounts] = {}

    @property
    def first(self) -> TextSample:
        """The sample of ``link``. Its text is counted for a few seconds at most."""
        return self.of(self.link)

    def of(self, link: Recipe) -> TextSample:
        """Return a sample of a training phase's text, prepared as its rows."""
        link = link.unlearned()
        key = text_of(link)
        if key not in self.prepared:
            self.prepared[key] = self._sample(link)
        return self.prepared[key]

    def seconds(self, stage: Stage, link: Recipe) -> float:
        """Forecast the seconds of a stage that prepares the text of a training phase."""
        if not stage.needs:
            sample = self.of(link)
            return sample.vocabulary_seconds() + sample.prepare_seconds
        if len(stage.needs) > 1:
            link = self._scored(link)
        return self.of(link).prepare_seconds

    def _scored(self, link: Recipe) -> Recipe:
        """Return the recipe with an untrained policy in place of the one that its run learns."""
        folder = self.folder / f"policy-{len(self.prepared)}"
        lesson = lesson_of(link, folder)
        start = lesson.learning.policy.pretrained
        tokenizer = load_tokenizer(start) if start else self.of(link).data.tokenizer
        lesson.new_policy(tokenizer, seed=0).save_pretrained(folder)
        return link.model_copy(update={"corpus": scored_by(folder, link.corpus)})

    def _seen(self, corpus: CorpusSettings) -> TextCounts:
        """Count a text for a few seconds at most."""
        fields = (corpus.text_field, corpus.text_per, corpus.group_field, corpus.tokens)
        key = repr((corpus.sources, corpus.limit, corpus.held_out, corpus.stream, *fields))
        if key not in self.seen:
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
            self.seen[key] = TextCounts(
                count, characters, documents.longest, whole, dict(documents.skipped), held_out
            )
        return self.seen[key]

    def _sample(self, link: Recipe) -> TextSample:
        """Prepare the beginning of a text as the rows of a training phase."""
        corpus = link.corpus
        wanted = SAMPLE_CHARACTERS
        if text_of(link) != text_of(self.link):
            # A quarter of the size is enough to time steps; only the first sample is counted.
            wanted //= 4
        elif not link.tokenizer_name:
            enough = max(LEAST_CHARACTERS, TOKEN_CHARACTERS * link.tokenizer.vocab_size)
            wanted = min(wanted, enough)
        sample = corpus.documents().beginning(wanted)
        sizes = [len(document.text) for document in sample]
        size = max(1, sum(sizes))
        skipped: Mapping[str, int] = sample.skipped
        counts = (len(sizes), size, sample.longest, sample.whole, skipped)
        scale = 1.0
        held_out = corpus.held_out
        read = prepared = size
        if not sample.whole:
            seen = self._seen(corpus)
            # The share of documents may be far from that of characters, if they are few.
            held_out = seen.held_out / seen.characters or held_out
            read = prepared = max(size, seen.characters)
            if corpus.stream:
                # Training reads a stream, so only its beginning is prepared.
                prepared = min(read, COUNTED_CHARACTERS + HELD_OUT_CHARACTERS)
            else:
                scale = seen.characters / size
                counts = seen[:-1]
        made, vocabulary_seconds = _tokenizer_of(link, size, min(read, TOKENIZER_CHARACTERS))
        data, row_seconds = self._rows(link, sample, made)
        return TextSample(
            data,
            scale,
            len(sizes),
            *counts,
            held_out=held_out,
            vocabulary_seconds=vocabulary_seconds,
            times=prepared / size,
            row_seconds=row_seconds,
        )

    def _rows(
        self, link: Recipe, sample: Documents, made: Extended
    ) -> tuple[Prepared, Callable[[float], float]]:
        """Prepare documents as the rows of a training phase.

        Args:
            link: the recipe of the training phase.
            sample: the documents.
            made: the tokenizer and its new tokens.

        Returns:
            The rows, and a function that forecasts the seconds to prepare so many times the text.
        """
        corpus = link.corpus
        folder = self.folder / f"sample-{len(self.prepared)}"
        tokenizer, new_tokens = made

        def annotated(name: str, limit: int | None = None) -> Store | None:
            if not corpus.layers:
                return None
            annotate_corpus(sample, corpus.layers, folder / name, limit=limit, jobs=1)
            return Store(folder / name).latest()

        def written(name: str, share: float, layers: Store | None) -> Prepared:
            settings = corpus.model_copy(update={"held_out": share})
            return write_rows(
                folder / name, sample, tokenizer, settings, layers=layers, new_tokens=new_tokens
            )

        # The time of other processes on the machine is not part of the processor time.
        # The first call is slower, because it imports modules, and its time is not counted.
        annotated("first-layers", 1)
        began = time.process_time()
        layers = annotated("layers")
        annotating = time.process_time() - began

        @cache
        def measured() -> tuple[float, float]:
            began = time.process_time()
            annotated("second-layers", 1)
            loading = time.process_time() - began
            began = time.process_time()
            written("again", share, layers)
            writing = time.process_time() - began
            return loading, max(0.0, annotating - loading) + writing

        def forecast(times: float) -> float:
            loading, seconds = measured()
            return loading + seconds * times

        # A sample is short, so larger shares are held out, for enough rows to time evaluations.
        shares = [corpus.held_out] if sample.whole else [max(0.2, corpus.held_out), 0.45]
        for share in shares:
            try:
                return written(f"{share}", share, layers), forecast
            except MaskwiseError as error:
                failure = error
        raise failure


def _tokenizer_of(link: Recipe, size: int, whole: int) -> tuple[Extended, Callable[[], float]]:
    """Load or train the tokenizer of a training phase.

    Args:
        link: the recipe of the training phase.
        size: the number of characters to train on.
        whole: the number of characters on which the stage trains.

    Returns:
        The tokenizer with its new tokens, and a function that forecasts the seconds of the stage.
    """
    settings = link.tokenizer.model_copy(update={"name": link.tokenizer_name})

    def made(characters: int) -> Extended:
        documents = link.corpus.documents().beginning(characters)
        tokenizer = settings.tokenizer(documents)
        if link.model.new_tokens is None:
            return Extended(tokenizer, {})
        words = wanted_words(link.model.new_tokens)
        try:
            return extended(words, documents, tokenizer)
        except MaskwiseError:
            # The beginning of the sample may have no word in enough documents.
            if characters == size:
                raise
            return Extended(tokenizer, {})

    def seconds_of(characters: int) -> float:
        began = time.process_time()
        made(characters)
        return time.process_time() - began

    # The first call is slower, because it imports modules, and its time is not counted.
    return made(size), cache(partial(_scaled, seconds_of, max(1, size // 2), whole))


# Times
# -------------------------------------------------------------------------------------------


def time_stages(plans: Iterable[Plan], forecast: Forecast, samples: Samples) -> dict[str, str]:
    """Time the stages whose seconds are unknown, and store their rates in the forecast.

    Returns:
        Why stages could not be timed, keyed by their kinds.
    """
    untimed: dict[str, str] = {}
    # A text may be too short for a single training row.
    if not len(samples.first.rows):
        return untimed
    plans = [*plans]
    turns = turns_of(plans)
    waiting: dict[object, tuple[Stage, Recipe, list[str]]] = {}
    for stage, link in links_of(plans).items():
        name = stage.name
        if name in forecast.finished or forecast.known(name) is not None:
            continue
        # The texts of the runs of an arm, such as those of worlds, differ as their seeds do.
        alike = turns[stage], forecast.key(name, content=False)
        waiting.setdefault(alike, (stage, link, []))[2].append(name)
    for stage, link, names in track(
        [*waiting.values()],
        description="Timing",
        console=err_console,
        transient=True,
        disable=not shows_progress(),
    ):
        # Stages of several arms may have the same work.
        if None not in map(forecast.known, names):
            continue
        # If the sample has too few rows for a stage, its time stays unknown. Warnings about the
        # rows of a sample are not those of the study.
        with _one_thread(), _too_short(stage.kind, untimed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The peak of one stage is not that of those before, or of the user's program.
            begin_peak_memory(best_device())
            rates = TIMERS[stage.kind](stage, link, samples)
            for name in names:
                forecast.keep(name, rates)
    return untimed


@contextmanager
def _too_short(kind: str, untimed: dict[str, str]) -> Iterator[None]:
    """Leave a time unknown if a sample of the text or of the items is too short to work with.

    Args:
        kind: what is timed.
        untimed: the dict to which the reason is added.
    """
    try:
        yield
    except (PlugInError, NeverFinite):
        # Neither the user's code nor the first loss gets better with more text.
        raise
    except MaskwiseError as error:
        untimed.setdefault(kind, str(error))


def links_of(plans: Iterable[Plan]) -> dict[Stage, Recipe]:
    """Return the stages of plans, each with the recipe of a training phase whose model it uses."""
    found: dict[Stage, Recipe] = {}
    for plan in plans:
        for run in plan.runs:
            links = run.recipe.links()
            trained = {stage: link for stages, link in zip(run.phases, links) for stage in stages}
            # Stages after training use the model of the last phase.
            link = links[-1]
            of_run = {}
            for stage in reversed(run.stages):
                # A policy is learned for the training that comes after it.
                link = trained.get(stage, link)
                of_run[stage] = link
            for stage in run.stages:
                found.setdefault(stage, of_run[stage])
    return found


def turns_of(plans: Iterable[Plan]) -> dict[Stage, tuple[str, int]]:
    """Return the arm of each stage, and its place among the stages of a run."""
    found: dict[Stage, tuple[str, int]] = {}
    for plan in plans:
        for run in plan.runs:
            for number, stage in enumerate(run.stages):
                found.setdefault(stage, (run.arm, number))
    return found


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


def time_words(plan: Plain) -> str:
    """State how long a study takes and how much memory a stage needs, as a dry run predicts."""
    about = "more than" if plan["unknown"] else "about"
    words = (
        f"{about} {duration(plan['least_seconds'])} with {plural(plan['jobs'], 'stage')} at once"
    )
    if plan["unknown"]:
        why = plan["untimed"]
        kinds = [f"{kind} ({why[kind]})" if kind in why else kind for kind in plan["unknown"]]
        words += f", because the time of some stages is unknown: {', '.join(kinds)}"
    if plan["memory_gib"] is not None:
        words += f", {plan['memory_gib']:.1f} GiB of memory for each"
    if plan["processes"] > 1:
        words += f"; this is if one process trains each model: {plan['processes']} that train it "
        words += "together were not timed"
    return words


def _now() -> float:
    """Return the seconds of a clock, to be subtracted from a later reading."""
    # Processor time excludes other processes on the machine. It also excludes the work of a GPU, so
    # with a GPU the elapsed time is measured.
    if best_device().type == "cpu":
        return time.process_time()
    return time.perf_counter()


class Clock:
    """Times the steps and the evaluations of a training, and ends it early (`training.log.Watch`).

    Args:
        compiled: whether the model is compiled.

    Attributes:
        ticks: readings of the clock: one when the model is loaded, and one after each step.
        judged: the seconds of each evaluation, all of them after the last step.
    """

    settings = SHORT

    def __init__(self, *, compiled: bool = False) -> None:
        # Compilers run as other processes, whose work ``_now`` does not count.
        self.now = time.perf_counter if compiled else _now
        self.least = COMPILED_STEPS if compiled else 2
        self.unusual = UNUSUAL_COMPILED if compiled else UNUSUAL
        self.began = self.now()
        self.ticks: list[float] = []
        self.judged: list[float] = []

    def __call__(self, evaluate: Evaluate | None) -> Evaluate:
        wall = time.perf_counter()
        self.ticks = [self.now()]

        def tick(step: int, ranks: Ranks) -> list[Plain]:
            self.ticks.append(self.now())
            late = len(self.ticks) > self.least and time.perf_counter() - wall > STEP_SECONDS
            if not late and len(self.ticks) <= STEPS:
                return []
            # The first evaluation is slower, like the first step.
            for _ in range(2 if evaluate else 0):
                assert evaluate is not None
                began = self.now()
                evaluate(step, ranks)
                self.judged.append(self.now() - began)
            return [{"enough": True}]

        return tick

    @property
    def step(self) -> float:
        """The mean seconds of a step, without unusual ones."""
        seconds = np.diff(self.ticks).tolist()
        # Leave out the first step, which is slower: it allocates memory and perhaps compiles.
        seconds = sorted(seconds[1:] or seconds)
        # The rows of fine-tuning differ in length, so a median of few steps is less exact.
        unusual = min(self.unusual, (len(seconds) - 1) // 2)
        return mean(seconds[unusual : len(seconds) - unusual])

    @property
    def warm_up(self) -> float:
        """The extra seconds of the first steps, such as for compilation."""
        slow = self.ticks[: self.least]
        return max(0.0, slow[-1] - slow[0] - (len(slow) - 1) * self.step)

    @property
    def loading(self) -> float:
        """The seconds until the model was loaded."""
        return self.ticks[0] - self.began

    @property
    def rest(self) -> float:
        """The seconds until now that were neither loading nor steps nor evaluations."""
        return self.now() - self.ticks[-1] - sum(self.judged)


def _require_memory(link: Recipe, data: Prepared) -> None:
    """Raise an error if a step needs more memory than this machine has (see docs/scaling.md)."""
    training = link.training
    here = memory()
    if here is None or best_device().type != "cpu" or training.activation_checkpointing:
        return
    if training.freeze == "encoder":
        # Without gradients, the encoder keeps no activations.
        return
    config = config_from(link.model, data.tokenizer, link.corpus.length, kind=link.kind)
    network = empty_model_from(link.model, config)
    tokens = training.batch_size // training.accumulate * link.corpus.length
    size = 4 * 34 * tokens * width_of(network) * len(blocks_of(network))
    if size > here:
        raise MaskwiseError(
            "a step does not fit into memory",
            got=f"about {size / 1e9:,.0f} GB",
            do="raise training.accumulate",
        )


def _time_training(stage: Stage, link: Recipe, samples: Samples) -> StageRates:
    """Run the stage with a sample of the text, and stop it after a few steps."""
    data = samples.of(link).data
    _require_memory(link, data)
    # A sample has few held-out rows, so fewer are reserved; samplers measure losses on the others.
    evaluation = _short(link.evaluation)
    # A sample may have too few held-out documents to choose by some and to judge by others.
    training = link.training.model_copy(update={"patience": None, "lengths": None})
    small = link.model_copy(update={"evaluation": evaluation, "training": training})
    if link.learns:
        # The sample has no scores of a policy that is not learned yet.
        masking = MaskingSettings(**link.masking.model_dump() | {"policy": "whole-word"})
        small = small.model_copy(update={"masking": masking})
    clock = Clock(compiled=link.training.compile)
    with temporary_folder() as folder:
        with quietly():
            pretrain(data, small, folder=folder, watch=clock)
        rest = clock.rest
    first, later = clock.judged
    rows = min(evaluation.rows, len(data.held_out))
    most = _judged_rows(link, samples)
    return {
        "start": clock.loading + clock.warm_up + max(0.0, first - later) + rest,
        "step": _with_reading(clock.step, link, samples),
        "judge": later * most / rows,
        "memory_gib": peak_memory(best_device()) / 2**30,
    }


def _with_reading(step: float, link: Recipe, samples: Samples) -> float:
    """Return the seconds of a step if the rows of a stream are prepared meanwhile."""
    if not link.corpus.stream:
        return step
    reading = link.training.batch_size * samples.of(link).one_row_seconds
    workers = link.training.workers
    return max(step, reading / workers) if workers else step + reading


def _judged_rows(link: Recipe, samples: Samples) -> int:
    """Return the number of held-out rows that an evaluation reads."""
    return max(1, min(link.evaluation.rows, samples.of(link).held_out_rows))


def _short(evaluation: EvaluationSettings) -> EvaluationSettings:
    """Return the settings for at most ``ITEMS`` held-out rows and one masking ratio."""
    rows = min(ITEMS, evaluation.rows)
    return evaluation.model_copy(
        update={"rows": rows, "ratios": evaluation.ratios[:1], "measures": ()}
    )


def _time_evaluation(stage: Stage, link: Recipe, samples: Samples) -> StageRates:
    """Take each measure with some of its rows or items, and scale its seconds to all of them."""
    data = samples.of(link).data
    measures = [*load_measures(link.evaluation).values()]
    texts: list[str] = []
    if any(isinstance(measure, WordLoss) for measure in measures):
        corpus = link.corpus
        some = [*islice(corpus.held_out_documents(), FEW_DOCUMENTS)]
        some = some or [*islice(corpus.documents(), FEW_DOCUMENTS)]
        texts = [document.text for document in some]
    # A checkpoint is loaded in about the time in which its model is made. The first call is slower,
    # because it imports modules.
    for _ in range(2):
        began = _now()
        network = network_of(link, data, torch.zeros(len(data.tokenizer)))
        torch.nn.Module.to(network, best_device())
    seconds = OPENING + _now() - began

    def seconds_of(measure: Measure, count: int) -> float:
        began = _now()
        # Some items may be longer than the model, and the others unknown.
        with _too_short("measure", {}):
            evaluate(network, data, [measure.part(count)], texts=texts)
        return _now() - began

    # Measures have numbers of rows of their own; ``evaluation.rows`` is of the fixed masks.
    held_out = samples.of(link).held_out_rows
    if stage.what.get("documents") == "verdict":
        # The other half of the documents chose the best state.
        held_out //= 2
    # The first evaluation is slower. The processes of a study have evaluated trainings before.
    for measure in measures[:1]:
        seconds_of(measure, 1)
    for measure in measures:
        most, few = measure.size(), ITEMS
        if isinstance(measure, WordLoss):
            few = len(texts)
        elif isinstance(measure, PseudoPerplexity):
            few = FEW_ROWS
        elif isinstance(measure, TextMeasure):
            # More rows than are read would be timed only to be subtracted.
            most, few = min(most, max(1, held_out)), min(ITEMS, len(data.held_out))
        seconds += _scaled(partial(seconds_of, measure), min(few, most), most)
    return {"seconds": seconds}


def _scaled(seconds_of: Callable[[int], float], few: int, rows: int) -> float:
    """Forecast the seconds of work on some rows from those of a few rows and of a quarter of them.

    A part of the seconds does not depend on the number of rows, such as the fit of a classifier.
    """
    if rows == few:
        return seconds_of(few)
    quarter = max(1, few // 4)
    short = seconds_of(quarter)
    long = seconds_of(few)
    # Without a difference, such as for a single row, all seconds are those of the rows.
    row_seconds = long / max(1, few)
    if few > quarter:
        row_seconds = min(row_seconds, max(0.0, long - short) / (few - quarter))
    return long + row_seconds * (rows - few)


def _time_task(stage: Stage, link: Recipe, samples: Samples) -> StageRates:
    """Run a fine-tuning with few rows, and stop it after a few steps."""
    if link.model.new_tokens is None:
        return _time_fine_tuning(stage, link, samples, link.model.pretrained)
    # The pre-trained model has no rows for the new tokens.
    data = samples.of(link).data
    network = network_of(link, data, torch.zeros(len(data.tokenizer)))
    with temporary_folder() as folder:
        checkpoint = folder / CHECKPOINT
        save_checkpoint(checkpoint, network, data.tokenizer)
        return _time_fine_tuning(stage, link, samples, str(checkpoint))


def _time_fine_tuning(
    stage: Stage, link: Recipe, samples: Samples, checkpoint: str | None
) -> StageRates:
    """Run a fine-tuning of a checkpoint, or of new weights, with few rows and steps."""
    data = samples.of(link).data
    tokenizer = data.tokenizer
    task = load_task(stage.what["task"])
    config = changed_config(link.model, tokenizer, data.training.length, kind=link.kind)
    settings = link.finetune
    start = config or link.model.pretrained
    if start is not None and not task.frozen:
        settings = settings.fitting(weights_of(task_config(start, {})))

    def timed(items: int) -> tuple[Clock, float]:
        """Run with so many rows; return the clock, and the seconds after the last step."""
        few = {name: rows[:items] for name, rows in task.splits.items()}
        # Keep more rows for training, because every class needs a few of them.
        few["train"] = task.splits["train"][: 4 * items]
        clock = Clock()
        with quietly():
            finetune(
                checkpoint,
                replace(task, splits=few),
                tokenizer=tokenizer,
                settings=settings,
                seed=0,
                config=config,
                watch=clock,
            )
        return clock, clock.rest

    clock, rest = timed(ITEMS)

    sizes = {name: len(task.splits[name]) for name in ("dev", "test")}
    if task.frozen:
        # A frozen encoder also embeds the training rows.
        sizes["train"] = len(task.splits["train"])
        # With a small model, the difference between a few rows and a quarter of them is noise.
        few = ITEMS if rest > FROZEN_SECONDS else 4 * ITEMS
        most = {"dev": few, "test": few, "train": 4 * few}
        read = sum(min(most[name], size) for name, size in sizes.items())
        rows = round(few * sum(sizes.values()) / read)
        return {"seconds": clock.loading + _scaled(lambda items: timed(items)[1], few, rows)}
    how = settings.training(task, seed=0)
    # At the end, dev rows and test rows are answered, and before it dev rows at every evaluation.
    answered = sum(sizes.values())
    if how.eval_every:
        answered += math.ceil(how.steps / how.eval_every) * sizes["dev"]
    answers = rest * answered / sum(min(ITEMS, size) for size in sizes.values())
    seconds = clock.loading + clock.warm_up + how.steps * clock.step + answers
    fine_tunings = settings.seeds
    if settings.search_rate:
        fine_tunings += TRIED_RATES
    memory = peak_memory(best_device()) / 2**30
    return {"seconds": fine_tunings * seconds, "memory_gib": memory}


def _time_learning(stage: Stage, link: Recipe, samples: Samples) -> StageRates:
    """Learn a policy from a part of the text, and stop after a few steps."""
    first = samples.first
    corpus = link.corpus
    if first.scale > 1:
        corpus = corpus.model_copy(update={"limit": first.sampled})
    assert link.learning is not None, "only recipes with a learning section learn a policy"
    meta = link.learning.meta.model_copy(update={"tries": 1})
    learning = link.learning.model_copy(update={"meta": meta})
    small = link.model_copy(update={"corpus": corpus, "learning": learning})
    clock = Clock()
    with temporary_folder() as folder:
        with quietly():
            lesson_of(small, folder).learn(watch=clock)
        rest = clock.rest
    slow, later = clock.judged
    # The whole text is searched for answers.
    around = (clock.loading + rest) * first.scale
    tries = link.learning.meta.tries if link.learning.method == "meta" else 1
    return {
        "start": tries * (clock.warm_up + max(0.0, slow - later)) + around,
        "step": tries * clock.step,
        "judge": tries * later,
        "memory_gib": peak_memory(best_device()) / 2**30,
    }


def _time_overlap(stage: Stage, link: Recipe, samples: Samples) -> StageRates:
    corpus = CorpusSettings(**stage.what["corpus"])
    task = load_task(stage.what["task"])
    few = sum(1 for _ in corpus.documents().beginning(OVERLAP_CHARACTERS))

    def seconds_of(documents: int) -> float:
        began = _now()
        overlap_record(islice(corpus.training_documents(), documents), task, corpus=corpus.title)
        return _now() - began

    return {"seconds": OPENING + _scaled(seconds_of, few, samples.of(link).documents)}


TIMERS: dict[str, Callable[[Stage, Recipe, Samples], StageRates]] = {
    "pretrain": _time_training,
    "learn": _time_learning,
    "choose": lambda stage, link, samples: {"seconds": OPENING},
    "finetune": _time_task,
    "evaluate": _time_evaluation,
    "prepare": lambda stage, link, samples: {"seconds": samples.seconds(stage, link)},
    "overlap": _time_overlap,
}
