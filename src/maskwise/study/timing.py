"""Time the stages of a study (pieces of work such as pre-training) on a sample of its text.

Training stages are timed for a few steps. A stage is timed only if the ``Forecast`` knows no time
for it. The timing takes a few seconds for each kind of training and each task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from maskwise.annotate.run import annotate_corpus
from maskwise.annotate.store import Store
from maskwise.devices import best_device, memory, peak_memory
from maskwise.errors import MaskwiseError, duration
from maskwise.evaluation import EvaluationSettings, evaluate
from maskwise.families import width_of
from maskwise.objectives import Objective
from maskwise.recipe import Recipe
from maskwise.recipe.overrides import Plain
from maskwise.study.costs import Forecast, Rates, evaluations
from maskwise.study.plan import Plan
from maskwise.study.pretraining import learning, network_of
from maskwise.study.stages import Stage
from maskwise.study.starter import look_at
from maskwise.tasks import load_task
from maskwise.tasks.judge import answer, load_network
from maskwise.tasks.tensors import TaskSource, embed, encode
from maskwise.text import Prepared, Rows, load_tokenizer, tokenise
from maskwise.text.documents import Document
from maskwise.text.settings import first_characters
from maskwise.training import train
from maskwise.training.ranks import Ranks
from maskwise.weights import blocks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLE_CHARACTERS = 600_000
"""The number of characters of a text sample."""
CHECK_SECONDS = 60.0
"""Seconds after which no more trainings are timed; their times are then unknown."""
STEPS, STEP_SECONDS = 12, 6.0
"""The number of timed steps of a training stage. If they take longer than ``STEP_SECONDS``, fewer
steps are timed, but at least two."""
COMPILED_STEPS = 6
"""The least number of timed steps if the model is compiled. The first two or three of them compile
for new shapes of batches, which takes many times as long as a step."""
ITEMS = 48
"""The number of timed rows of a task, or of held-out rows."""
TRIED_RATES = 3
"""With ``finetune.search_rate``, this number of additional fine-tuning runs try learning rates."""

SHORT = {
    "steps": STEPS,
    "eval_every": 1,
    "log_every": 1,
    "save_every": 0,
    "on_nan": "skip",
    "trackers": (),
}
"""Settings of a timed training. The training is evaluated after every step, and this "evaluation"
is a ``_Clock``. Nothing is saved, because saving would add to the time of a step."""


# Samples
# -------------------------------------------------------------------------------------------


class TextSample(NamedTuple):
    """A prepared sample of a recipe's text.

    Attributes:
        scale: the number of characters of the whole text, divided by that of the sample.
        seconds: the time to prepare the whole text, in seconds.
        documents, characters: counts of the whole text, or of the part that was read to count it.
        whole: whether the whole text was read to count it.
        skipped: the number of skipped documents in the part that was read, keyed by reason.
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
        """The training rows of the sample, even if its text is a stream."""
        assert isinstance(self.data.training, Rows)
        return self.data.training


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
        self.prepared: dict[tuple[object, ...], Prepared] = {}

    @cached_property
    def first(self) -> TextSample:
        """The sample of ``link``. Its text is counted for a few seconds at most."""
        corpus = self.link.corpus
        documents = corpus.documents()
        some = [*first_characters(documents, SAMPLE_CHARACTERS)]
        size = sum(len(document.text) for document in some)
        whole = size < SAMPLE_CHARACTERS
        # The time of other processes on the machine is not part of the processor time.
        began = time.process_time()
        data = self._prepare(self.link, some, whole=whole)
        seconds = (time.process_time() - began) / max(1, size)
        if whole or corpus.stream:
            return TextSample(data, 1.0, seconds * size, len(some), size, whole, documents.skipped)
        seen = look_at(corpus.documents())
        characters = seen.characters
        return TextSample(
            data,
            characters / size,
            seconds * characters,
            seen.documents,
            characters,
            seen.whole,
            seen.skipped,
        )

    def of(self, link: Recipe) -> Prepared:
        """Return a sample of a training phase's text, prepared as its rows."""
        link = link.unlearned()
        known = self.prepared.get(_rows_of(link))
        if known:
            return known
        # A quarter of the size is enough to time steps; only the first sample is counted.
        some = [*first_characters(link.corpus.documents(), SAMPLE_CHARACTERS // 4)]
        return self._prepare(link, some, whole=False)

    def _prepare(self, link: Recipe, sample: list[Document], *, whole: bool) -> Prepared:
        """Prepare documents as the rows of a training phase.

        Args:
            link: the recipe of the training phase.
            sample: the documents.
            whole: whether these are all documents of the text.
        """
        corpus = link.corpus
        folder = self.folder / f"sample-{len(self.prepared)}"
        if link.tokenizer_name:
            tokenizer = load_tokenizer(
                link.tokenizer_name, needs_mask=link.kind == "encoder", needs_words=False
            )
        else:
            tokenizer = link.tokenizer.tokenizer(sample)
        store = None
        if corpus.annotators:
            layers = folder / "layers"
            annotate_corpus(
                corpus.documents(), corpus.annotators, layers, limit=len(sample), jobs=1
            )
            store = Store(layers)
        # A sample may be too short for held-out rows. Larger shares are then held out.
        shares = [corpus.held_out] if whole else [corpus.held_out, 0.2, 0.45]
        for share in shares:
            try:
                self.prepared[_rows_of(link)] = data = Prepared.make(
                    folder / f"{share}",
                    tokenise(sample, tokenizer, layers=store, words=corpus.words),
                    tokenizer,
                    length=corpus.length,
                    layout=corpus.row_layout,
                    held_out=share,
                )
                return data
            except MaskwiseError as error:
                failure = error
        raise failure


def _rows_of(link: Recipe) -> tuple[object, ...]:
    """Return the settings on which the rows of a sample depend."""
    corpus = link.corpus
    tokenizer = link.tokenizer_name or link.tokenizer
    return corpus.length, corpus.row_layout, corpus.layers, tokenizer


# Times
# -------------------------------------------------------------------------------------------


def time_stages(plans: Iterable[Plan], forecast: Forecast, samples: Samples) -> None:
    """Time the stages whose seconds are unknown, and store their rates in the forecast."""
    # A text may be too short for a single training row.
    if not len(samples.first.rows):
        return
    works: dict[Stage, Recipe] = {}
    for plan in plans:
        for run in plan.runs:
            links = run.recipe.links()
            trained = dict(zip(run.trainings, links))
            for stage in run.stages:
                # Stages after training use the model of the last phase.
                works.setdefault(stage, trained.get(stage, links[-1]))
    end = time.perf_counter() + CHECK_SECONDS
    for kind, timer in TIMERS.items():
        for stage, link in works.items():
            if stage.kind != kind or forecast.seconds(stage.name) is not None:
                continue
            # A single unknown time makes the total unknown. Stages of other kinds take little time,
            # so they are timed even after the limit.
            if kind in ("pretrain", "finetune") and time.perf_counter() > end:
                continue
            # If the sample has too few rows for a stage, its time stays unknown.
            with _one_thread(), suppress(MaskwiseError):
                forecast.keep(stage.name, timer(stage, link, samples))


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
    if plan["seconds"] is None:
        kinds = ", ".join(plan["unknown"])
        return f"unknown, because no similar stage was timed on this machine yet: {kinds}"
    words = f"about {duration(plan['seconds'])} with {plan['jobs']} stages at once"
    if plan["memory_gib"] is not None:
        words += f", {plan['memory_gib']:.1f} GiB of memory for each"
    return words


def _now() -> float:
    """Return the seconds of a clock, to be subtracted from a later reading."""
    # Processor time excludes other processes on the machine. It also excludes the work of a GPU, so
    # with a GPU the elapsed time is measured.
    if best_device().type == "cpu":
        return time.process_time()
    return time.perf_counter()


class _Clock:
    """Times the steps of a training with the settings ``SHORT``.

    Args:
        compiled: whether the model is compiled.

    Attributes:
        ticks: readings of the clock: one at the start, and one after each step.
    """

    def __init__(self, *, compiled: bool = False) -> None:
        # Compilers run as other processes, whose work ``_now`` does not count.
        self.now = time.perf_counter if compiled else _now
        self.least = COMPILED_STEPS if compiled else 2
        self.began = time.perf_counter()
        self.ticks = [self.now()]

    def __call__(self, step: int, ranks: Ranks) -> list[Plain]:
        self.ticks.append(self.now())
        late = len(self.ticks) > self.least and time.perf_counter() - self.began > STEP_SECONDS
        return [{"enough": late or len(self.ticks) > STEPS}]

    @property
    def step(self) -> float:
        """The median seconds of a step."""
        seconds = np.diff(self.ticks).tolist()
        # Leave out the first step, which is slower: it allocates memory and perhaps compiles.
        return median(seconds[1:] or seconds)

    @property
    def warm_up(self) -> float:
        """The extra seconds of the first steps, such as for compilation."""
        slow = self.ticks[: self.least]
        return max(0.0, slow[-1] - slow[0] - (len(slow) - 1) * self.step)


def _network(link: Recipe, data: Prepared) -> PreTrainedModel:
    """Build the model of a training phase, with zeros as the bias of a new head."""
    return network_of(link, data, torch.zeros(len(data.tokenizer)))


def _require_memory(link: Recipe, objective: Objective) -> None:
    """Raise an error if a step needs more memory than this machine has (see docs/scaling.md)."""
    training = link.training
    here = memory()
    if here is None or best_device().type != "cpu" or training.activation_checkpointing:
        return
    tokens = training.batch_size // training.accumulate * link.corpus.length
    size = 4 * 34 * tokens * width_of(objective.model) * len(blocks_of(objective))
    if size > here:
        raise MaskwiseError(
            "a step does not fit into memory",
            got=f"about {size / 1e9:,.0f} GB",
            do="raise training.accumulate",
        )


def _time_training(stage: Stage, link: Recipe, samples: Samples) -> Rates:
    data = samples.of(link)
    began = _now()
    network = _network(link, data)
    # A sample has few held-out rows, so fewer are reserved; samplers measure losses on the others.
    small = link.model_copy(update={"evaluation": _short(link.evaluation)})
    made = learning(network, data, small)
    _require_memory(link, made.objective)
    start = _now() - began
    short = link.training.model_copy(update=SHORT)
    clock = _Clock(compiled=short.compile)
    train(made.objective, made.source, short, learners=made.learners, evaluate=clock, quiet=True)
    judge = _time_heldout(link, data, network)
    if short.compile:
        # The first evaluation compiles, and the others do not.
        first = judge
        judge = _time_heldout(link, data, network)
        start += max(0.0, first - judge)
    return {
        "start": start + clock.warm_up,
        "step": clock.step,
        "judge": judge,
        "memory_gib": peak_memory(best_device()) / 2**30,
    }


def _short(evaluation: EvaluationSettings) -> EvaluationSettings:
    """Return the settings for at most ``ITEMS`` held-out rows and one masking ratio."""
    unused = {"pairs": (), "cloze": (), "measures": (), "pseudo_perplexity": 0}
    rows = min(ITEMS, evaluation.rows)
    return evaluation.model_copy(update={"rows": rows, "ratios": evaluation.ratios[:1], **unused})


def _time_heldout(link: Recipe, data: Prepared, network: PreTrainedModel) -> float:
    """Time a held-out evaluation on a few rows, and scale the time to all rows."""
    settings = _short(link.evaluation)
    few = min(settings.rows, len(data.held_out))
    began = _now()
    evaluate(network, data, settings)
    return (_now() - began) * link.evaluation.rows / few


def _time_evaluation(stage: Stage, link: Recipe, samples: Samples) -> Rates:
    data = samples.of(link)
    network = _network(link, data)
    torch.nn.Module.to(network, best_device())
    ratio_seconds = _time_heldout(link, data, network)
    # Loading the checkpoint takes about a second.
    return {"seconds": 1.0 + len(link.evaluation.ratios) * ratio_seconds}


def _time_task(stage: Stage, link: Recipe, samples: Samples) -> Rates:
    data = samples.of(link)
    settings = link.finetune
    tokenizer = data.tokenizer
    task = load_task(stage.what["task"])
    config = link.model.changed_config(tokenizer, data.training.length, kind=link.kind)
    # Keep more rows for training, because every class needs a few of them.
    few = {name: rows[:ITEMS] for name, rows in task.splits.items()}
    few["train"] = task.splits["train"][: 4 * ITEMS]
    small = replace(task, splits=few)
    length = settings.max_length
    began = _now()
    network = load_network(
        link.model.pretrained, small, tokenizer, config=config, max_length=length, seed=0
    )
    seconds = _now() - began
    if task.kind.objective is None:
        torch.nn.Module.to(network, best_device())
        texts = list(chain.from_iterable(row.texts for row in few["test"]))
        began = _now()
        for pooling in task.poolings:
            embed(network, texts, tokenizer, max_length=length, pooling=pooling)
        row_seconds = (_now() - began) / max(1, len(few["test"]))
        rows = sum(map(len, task.splits.values()))
        return {"seconds": seconds + rows * row_seconds}
    tensors = encode(small, tokenizer, max_length=length)
    how = settings.fitting(network.num_parameters()).training(task, seed=0)
    objective = task.kind.objective(network)
    short = how.model_copy(update=SHORT)
    clock = _Clock(compiled=short.compile)
    train(objective, TaskSource(tensors["train"], short), short, evaluate=clock, quiet=True)
    began = _now()
    answer(objective, tensors["test"])
    row_seconds = (_now() - began) / len(few["test"])
    # Dev rows are answered at every evaluation, and test rows only once. The forecast counts test
    # rows as often as dev rows, because a time that is too long does less harm than a time that is
    # too short.
    rows = len(task.splits["dev"]) + len(task.splits["test"])
    answers = rows * evaluations(how.steps, how.eval_every)
    seconds += how.steps * clock.step + answers * row_seconds
    fine_tunings = settings.seeds
    if settings.search_rate:
        fine_tunings += TRIED_RATES
    memory = peak_memory(best_device()) / 2**30
    return {"seconds": fine_tunings * seconds, "memory_gib": memory}


TIMERS: dict[str, Callable[[Stage, Recipe, Samples], Rates]] = {
    # Training takes most of a study's time, so training stages are timed first.
    "pretrain": _time_training,
    "finetune": _time_task,
    "evaluate": _time_evaluation,
    # The preparation of the sample was timed already, and scaled to the characters of the text.
    "prepare": lambda stage, link, samples: {"seconds": samples.first.seconds},
    # To split a text into words takes about half as long as to tokenise it.
    "overlap": lambda stage, link, samples: {"seconds": samples.first.seconds / 2},
}
