"""Takes a sample of a recipe's text, and times a few real steps of every stage on it.

``maskwise check`` times what ``forecast`` does not know yet, and keeps it there.

Cost: some seconds for each kind of training and each task; ``SECONDS`` in all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from maskwise.annotate.run import annotate_corpus
from maskwise.annotate.store import Store
from maskwise.errors import MaskwiseError
from maskwise.evaluation import evaluate
from maskwise.recipe import Recipe
from maskwise.study.forecast import Forecast
from maskwise.study.plan import Plan
from maskwise.study.pretraining import learning
from maskwise.study.stages import Stage
from maskwise.study.starter import look_at
from maskwise.tasks import load_task
from maskwise.tasks.judge import answer, load_network
from maskwise.tasks.tensors import TaskSource, embed, encode
from maskwise.text import Prepared, Rows, load_tokenizer, tokenise
from maskwise.text.documents import Document
from maskwise.text.prepared import first_characters
from maskwise.text.worlds import of_run
from maskwise.training import train
from maskwise.training.engine import best_device
from maskwise.training.speed import peak_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLE_CHARACTERS = 600_000
"""How much of a text is prepared to be counted."""
SECONDS = 25.0
"""After so long nothing more is timed; what is left is unknown."""
STEPS, STEP_SECONDS = 12, 6.0
"""Steps of a training that are timed, or as many as fit into so many seconds (at least 2)."""
ITEMS = 48
"""Rows of a task that are answered, or of held-out text that are evaluated."""
TRIED_RATES = 3
"""Extra fine-tunings of ``finetune.search_rate``."""
START_SECONDS = 8.0
"""What a study takes beside its stages: workers that import torch."""

Entry = dict[str, float]
"""What ``Forecast.keep`` takes."""


# Samples
# -------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """A prepared sample of a recipe's text.

    Attributes:
        scale: the size of the whole text relative to the sample.
        seconds: to prepare it, for each character.
        documents, characters: of the whole text, or of the part that was read.
        whole: whether all of it was read.
        skipped: reason → count of what was left out of that part.
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
        """The training rows of the sample; a stream is sampled like a corpus."""
        assert isinstance(self.data.training, Rows)
        return self.data.training


def take_sample(link: Recipe, folder: Path) -> Sample:
    """Prepare a sample of the text of a training, and read on for some seconds."""
    link = link.unlearned()
    documents = link.corpus.documents()
    sample = [*first_characters(documents, SAMPLE_CHARACTERS)]
    size = sum(len(document.text) for document in sample)
    whole = size < SAMPLE_CHARACTERS
    # Other work on the machine does not count.
    began = time.process_time()
    data = _prepared(link, sample, folder, whole=whole)
    seconds = (time.process_time() - began) / max(1, size)
    if whole or link.corpus.stream:
        return Sample(data, 1.0, seconds, len(sample), size, whole, documents.skipped)
    seen = look_at(link.corpus.documents())
    scale = seen.characters / max(1, size)
    return Sample(data, scale, seconds, seen.documents, seen.characters, seen.whole, seen.skipped)


def _prepared(link: Recipe, sample: list[Document], folder: Path, *, whole: bool) -> Prepared:
    """Some documents, or the whole text, in the rows of a training."""
    corpus = link.corpus
    if link.tokenizer_name:
        tokenizer = load_tokenizer(link.tokenizer_name, needs_mask=link.kind == "encoder")
    else:
        tokenizer = link.tokenizer.tokenizer(sample)
    store = None
    if corpus.annotators:
        layers = folder / "layers"
        annotate_corpus(corpus.documents(), corpus.annotators, layers, limit=len(sample), jobs=1)
        store = Store(layers)
    # A part of a text may leave a side empty that the whole text would not.
    for share in [corpus.held_out] if whole else [corpus.held_out, 0.2, 0.45]:
        try:
            return Prepared.make(
                folder / f"{share}",
                tokenise(sample, tokenizer, layers=store),
                tokenizer,
                length=corpus.length,
                layout=corpus.row_layout,
                held_out=share,
            )
        except MaskwiseError as error:
            failure = error
    raise failure


class Samples:
    """Samples of the texts of all trainings: steps are timed in rows of their own length.

    Args:
        first: the training whose text ``sample`` was taken from.
        folder: for samples in other rows, or with another tokenizer.
    """

    def __init__(self, first: Recipe, sample: Sample, folder: Path):
        self.folder = folder
        self.seconds = sample.characters * sample.seconds
        self.made = {self._key(first.unlearned()): sample.data}

    def of(self, link: Recipe) -> Prepared:
        """A sample in the rows of a training."""
        link = link.unlearned()
        key = self._key(link)
        if key not in self.made:
            some = [*first_characters(link.corpus.documents(), SAMPLE_CHARACTERS // 4)]
            folder = self.folder / f"sample-{len(self.made)}"
            self.made[key] = _prepared(link, some, folder, whole=False)
        return self.made[key]

    def _key(self, link: Recipe) -> tuple[object, ...]:
        corpus = link.corpus
        tokenizer = link.tokenizer_name or link.tokenizer
        return (corpus.length, corpus.row_layout, corpus.layers, tokenizer)


# Times
# -------------------------------------------------------------------------------------------


def time_stages(plans: Iterable[Plan], samples: Samples, forecast: Forecast) -> None:
    """Time what a forecast does not know yet, the trainings first."""
    works: dict[str, tuple[Stage, Recipe]] = {}
    for run in chain.from_iterable(plan.runs for plan in plans):
        links = run.recipe.links()
        trained = {stage.name: link for stage, link in zip(run.trainings, links)}
        for stage in run.stages:
            # What follows a training is timed with the recipe of the last one.
            works.setdefault(stage.name, (stage, trained.get(stage.name, links[-1])))
    end = time.perf_counter() + SECONDS
    # Trainings take most of a study, so they are timed while there is time.
    for kind in ("pretrain", "finetune", "evaluate", "prepare", "overlap"):
        for name, (stage, link) in works.items():
            if stage.kind != kind or forecast.seconds(name) is not None:
                continue
            if kind == "prepare":
                # Preparing the sample was timed already, and scales with the characters.
                forecast.keep(name, {"seconds": samples.seconds})
            elif kind == "overlap":  # words are counted, not tokenised
                forecast.keep(name, {"seconds": samples.seconds / 2})
            elif time.perf_counter() < end:
                # Such as a sample with too few rows: the time stays unknown.
                with _one_thread(), suppress(MaskwiseError):
                    forecast.keep(name, _TIMERS[kind](stage, link, samples.of(link)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """The number of threads of a study's workers, unless there is an accelerator."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if best_device().type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _now() -> float:
    """Seconds of this process: other work on the machine does not count."""
    return time.process_time() if best_device().type == "cpu" else time.perf_counter()


class _Clock:
    """Times steps: passed to ``train`` as its evaluation after every step.

    Attributes:
        ticks: when it was made, and when each step ended.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ticks = [_now()]

    def __call__(self, step: int) -> list[dict[str, Any]]:
        self.ticks.append(_now())
        late = len(self.ticks) > 2 and time.perf_counter() - self.began > STEP_SECONDS
        return [{"enough": late or len(self.ticks) > STEPS}]

    @property
    def step(self) -> float:
        """Seconds of a step: the median of all but the first, which warms up."""
        each = [b - a for a, b in zip(self.ticks, self.ticks[1:])]
        return median(each[1:] or each)

    @property
    def warm_up(self) -> float:
        """Seconds by which the first step took longer, such as those of a compilation."""
        return max(0.0, self.ticks[1] - self.ticks[0] - self.step)


def _network(link: Recipe, data: Prepared) -> PreTrainedModel:
    """The model of a training, as it begins."""
    return link.model.model(
        data.tokenizer,
        data.training.length,
        kind=link.kind,
        seed=link.training.seed,
        log_unigram=torch.zeros(len(data.tokenizer)),
    )


def _time_training(stage: Stage, link: Recipe, data: Prepared) -> Entry:
    began = _now()
    network = _network(link, data)
    made = learning(network, data, link)
    start = _now() - began
    clock = _Clock()
    # Evaluating after every step lets the clock tick; saving would add to a step.
    few: dict[str, object] = {"steps": STEPS, "eval_every": 1, "log_every": 1, "save_every": 0}
    few |= {"keep_best": False, "on_nan": "skip", "trackers": ()}
    settings = link.training.model_copy(update=few)
    train(made.objective, made.source, settings, learners=made.learners, evaluate=clock, quiet=True)
    return {
        "start": start + clock.warm_up,
        "step": clock.step,
        "judge": _time_heldout(link, data, network),
        "memory_gib": peak_memory(best_device()) / 2**30,
    }


def _time_heldout(link: Recipe, data: Prepared, network: Any) -> float:
    """Seconds of one held-out evaluation, scaled from a few rows."""
    rows = link.evaluation.rows or len(data.held_out)
    few = min(ITEMS, len(data.held_out), rows)
    settings = link.evaluation.model_copy(
        update={
            "rows": few,
            "ratios": link.evaluation.ratios[:1],
            "pairs": (),
            "cloze": (),
            "pseudo_perplexity": 0,
        }
    )
    began = _now()
    evaluate(network, data, settings)
    return (_now() - began) * rows / few


def _time_evaluation(stage: Stage, link: Recipe, data: Prepared) -> Entry:
    network = _network(link, data)
    torch.nn.Module.to(network, best_device())
    each = _time_heldout(link, data, network)
    return {"seconds": 1.0 + len(link.evaluation.ratios) * each}


def _time_task(stage: Stage, link: Recipe, data: Prepared) -> Entry:
    settings = link.finetune
    tokenizer = data.tokenizer
    task = load_task(of_run(stage.what["task"], 0))
    config = None
    if not link.model.pretrained:
        config = link.model.config(tokenizer, data.training.length, kind=link.kind)
    # Labels are balanced by the first rows of train, so more of them are kept.
    few = {name: rows[:ITEMS] for name, rows in task.splits.items()}
    small = replace(task, splits=few | {"train": task.splits["train"][: 4 * ITEMS]})
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
        each = (_now() - began) / max(1, len(few["test"]))
        return {"seconds": seconds + each * sum(map(len, task.splits.values()))}
    tensors = encode(small, tokenizer, max_length=length)
    clock = _Clock()
    how = settings.fitting(network.num_parameters()).training(task, seed=0)
    objective = task.kind.objective(network)
    short = how.model_copy(update={"steps": STEPS, "eval_every": 1, "log_every": 1})
    train(objective, TaskSource(tensors["train"], short), short, evaluate=clock, quiet=True)
    began = _now()
    answer(objective, tensors["test"])
    each = (_now() - began) / len(few["test"])
    # Dev rows are answered at every evaluation and at the end.
    evaluations = 1 + (how.steps // how.eval_every if how.eval_every else 0)
    answers = evaluations * (len(task.splits["dev"]) + len(task.splits["test"]))
    seconds += how.steps * clock.step + answers * each
    fine_tunings = settings.seeds + (TRIED_RATES if settings.search_rate else 0)
    memory = peak_memory(best_device()) / 2**30
    return {"seconds": fine_tunings * seconds, "memory_gib": memory}


_TIMERS: dict[str, Callable[[Stage, Recipe, Prepared], Entry]] = {
    "pretrain": _time_training,
    "finetune": _time_task,
    "evaluate": _time_evaluation,
}
