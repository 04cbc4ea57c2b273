"""Evaluate a checkpoint on tasks: fine-tune it with several seeds, or use it as a frozen encoder.

Fine-tuning uses the training loop with the objective of the task. The seed determines the new head,
the row order and dropout. The number of steps is fixed beforehand. Only the weights after the last
step are scored on test, because the best of several test scores would be biased upwards. With
``eval_every``, the weights with the best dev score are scored on test instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from maskwise.base.constants import LOWER_IS_BETTER
from maskwise.base.devices import best_device
from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.base.folders import write_lines
from maskwise.models.decoders import is_decoder
from maskwise.models.families import check_fit, check_room, evaluating
from maskwise.models.loading import load_task_model, task_config, weights_of
from maskwise.objectives.base import Objective
from maskwise.results.measurements import Measurement, unit_of
from maskwise.tasks.loading import load_task
from maskwise.tasks.metrics import bootstrap_interval, compact, error_of_items
from maskwise.tasks.settings import FinetuneSettings, Score, TaskRecord
from maskwise.tasks.task import CORPUS, Answers, Task
from maskwise.tasks.tensors import (
    Data,
    Flat,
    TaskSource,
    check_length,
    embed,
    encode_texts,
    padding_id,
    task_tensors,
    warn_of_cuts,
)
from maskwise.text import load_tokenizer
from maskwise.training.best import Best
from maskwise.training.checkpoint import save_checkpoint
from maskwise.training.log import Evaluate, NotFinite
from maskwise.training.loop import train
from maskwise.training.ranks import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# The name of the file with the answers to all test rows; each seed has its own file.
PREDICTIONS = "predictions.jsonl"
# The learning-rate search tries the learning rate times each of these factors.
TRIAL_FACTORS = (1 / 3, 1.0, 3.0)
# The seed of the learning-rate search. It differs from every seed whose score is reported.
TRIAL_SEED = 1 << 40


class TaskStart(NamedTuple):
    """The model that is fine-tuned: a checkpoint, a configuration that changes it, or both.

    Without a checkpoint, the weights are random.
    """

    checkpoint: str | Path | None
    config: PreTrainedConfig | None = None


def rows_of(record: TaskRecord) -> Iterator[Measurement]:
    """Yield the mean score on test, that on dev, and the scores in further metrics."""
    metric = record["metric"]
    kept = ("interval", "item_sd", "item_sums", "item_sizes")
    test = Measurement(
        kind="task",
        measure=record["task"],
        value=record["score"],
        metric=metric,
        unit=unit_of(metric),
        higher_is_better=metric not in LOWER_IS_BETTER,
        chance=record["majority"],
        items=record["test_items"],
        item_error=record.get("item_error"),
        facts={
            "fine_tuning": record["fine_tuning"],
            **{key: value for key, value in record.items() if key in kept},
        },
    )
    yield test
    dev = [each for each in record["dev"] if each is not None]
    if dev:
        facts = {"fine_tuning": dev}
        mean = float(np.mean(dev))
        yield replace(test, split="dev", value=mean, items=None, item_error=None, facts=facts)
    for name, value in record["others"].items():
        if value is not None:
            yield replace(
                test,
                split="further",
                metric=name,
                value=value,
                unit=unit_of(name),
                higher_is_better=name not in LOWER_IS_BETTER,
                chance=None,
                item_error=None,
                facts={},
            )


def evaluate_tasks(
    checkpoint: str | Path,
    specs: Sequence[str | Task],
    *,
    settings: FinetuneSettings | None = None,
    seeds: int | None = None,
) -> list[TaskRecord]:
    """Evaluate a checkpoint on tasks, and write no files.

    Args:
        checkpoint: a folder or hub id with its tokenizer.
        specs: tasks, or sources as in ``load_task``. All tasks are loaded and checked before any
            training starts.
        settings: the fine-tuning settings.
        seeds: the number of fine-tuning runs per task, by default ``settings.seeds``. A task that
            keeps the encoder frozen, such as sentence-embedding, runs once.

    Returns:
        One record for each task. ``score`` is the mean over seeds on the metric's own scale ([0, 1]
        or [−1, 1]). ``fine_tuning`` and ``dev`` are lists with one score per seed. ``others`` maps
        further metrics to their means over seeds, on test.

    Raises:
        MaskwiseError: the checkpoint or a task does not exist, two tasks have the same name, the
            model cannot learn a task, or ``seeds`` is below 1.

    >>> spec = "trivia(kind='sentence-embedding', train_rows=50)"
    >>> (record,) = evaluate_tasks("bundled:encoder", [spec])
    >>> record["task"], record["metric"], len(record["fine_tuning"])
    ('trivia-embedding', 'accuracy', 1)
    """
    settings = settings or FinetuneSettings()
    runs = settings.seeds if seeds is None else whole_number("seeds", seeds, least=1)
    tasks, tokenizer = tasks_of(checkpoint, specs, settings)
    return [
        task_record(
            checkpoint,
            task,
            tokenizer=tokenizer,
            settings=settings,
            seeds=range(runs),
        )
        for task, _ in tasks.values()
    ]


def tasks_of(
    checkpoint: str | Path, specs: Sequence[str | Task], settings: FinetuneSettings
) -> tuple[dict[str, tuple[Task, str]], PreTrainedTokenizerBase]:
    """Load all tasks and the tokenizer of a checkpoint, and check that they fit.

    Returns:
        Each task and its spec, keyed by the name of the task; and the tokenizer.

    Raises:
        MaskwiseError: as for ``evaluate_tasks``.
    """
    tasks: dict[str, tuple[Task, str]] = {}
    for spec in specs:
        task = spec if isinstance(spec, Task) else load_task(spec)
        if task.name in tasks:
            raise MaskwiseError(
                f"two tasks are called {task.name!r}",
                got=str(spec),
                do='rename one of them: …(name="…")',
            )
        tasks[task.name] = task, str(spec)
    tokenizer = load_tokenizer(str(checkpoint), needs_mask=False)
    for task, _ in tasks.values():
        check_length(task, tokenizer, settings.max_length)
        if task.kind.check_model:
            task.kind.check_model(task_config(checkpoint, {}))
    return tasks, tokenizer


def task_record(
    checkpoint: str | Path | None,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerBase,
    settings: FinetuneSettings,
    seeds: Iterable[int],
    config: PreTrainedConfig | None = None,
    folder: Path | None = None,
) -> TaskRecord:
    """Evaluate one checkpoint on one task with several seeds.

    Args:
        seeds: the seed of each run. Only the first seed is used if no part of a run is random.
        folder: the parent of the ``seed-N`` folders, or None to write nothing.

    The other arguments are those of ``finetune``.
    """

    start = TaskStart(checkpoint, config)

    def run(settings: FinetuneSettings, seed: int) -> Score:
        place = folder and folder / f"seed-{seed}"
        return tune(start, task, tokenizer=tokenizer, settings=settings, seed=seed, folder=place)

    settings = settings_for(task, settings, start)
    trials = trials_of(task, settings)
    tried = {rate: run(trial, TRIAL_SEED) for rate, trial in trials.items()}
    if tried:
        settings = trials[best_rate(task, tried)]
    scores = [run(settings, seed) for seed in scored_seeds(seeds, task, start)]
    return record_of(task, scores, tried)


def scored_seeds(seeds: Iterable[int], task: Task, start: TaskStart) -> list[int]:
    """Return the seeds that differ in their scores: the first if no part of a run is random."""
    every = [*seeds]
    return every[:1] if task.frozen and start.checkpoint else every


def settings_for(task: Task, settings: FinetuneSettings, start: TaskStart) -> FinetuneSettings:
    """Return the settings, with a learning rate that fits the size of the model if none is set."""
    model = start.config or start.checkpoint
    if settings.learning_rate is None and model is not None and not task.frozen:
        return settings.fitting(weights_of(task_config(model, {})))
    return settings


def idle_settings(
    settings: FinetuneSettings, tasks: Iterable[Task], *, runs: int | None = None
) -> list[str]:
    """Return the settings that differ from their defaults, and that none of the tasks reads.

    A frozen encoder is not fine-tuned, so it reads only ``max_length`` (and ``seeds``, which is the
    number of runs of a random one).

    Args:
        runs: the number of runs of a model that is not random, if somebody gives it. All runs of a
            frozen encoder are equal, so there is only one.
    """
    if any(not task.frozen for task in tasks):
        return []
    idle = [*settings.model_dump(exclude_defaults=True, exclude={"max_length", "seeds"})]
    return [*idle, "runs"] if runs is not None and runs > 1 else idle


def record_of(task: Task, scores: Sequence[Score], tried: Mapping[float, Score]) -> TaskRecord:
    """Return the record of one or several runs of a task.

    Args:
        task: the task.
        scores: the scores of the runs.
        tried: those of the trials of a search for the learning rate, keyed by the rate.
    """
    diverged = chain.from_iterable(
        score["notes"] for score in tried.values() if score["dev"] is None
    )
    first = scores[0]
    by_seed = [score["score"] for score in scores]
    record: TaskRecord = {
        "task": task.name,
        "task_kind": task.kind.name,
        "metric": task.metric,
        "majority": first["majority"],
        "test_items": task.test_items,
        "lost_words": first["lost_words"],
        "notes": [*task.remarks, *diverged, *first["notes"]],
        "score": sum(by_seed) / len(by_seed),
        "fine_tuning": by_seed,
        "dev": [score["dev"] for score in scores],
        "others": {},
    }
    for name in first["others"]:
        record["others"][name] = fmean(score["others"][name] for score in scores)
    if tried:
        record["tried"] = {f"{rate:g}": dev for rate, dev in _dev_of(tried).items()}
    if first["counts"] is not None:
        counts = np.array([score["counts"] for score in scores])
        if task.kind.item_interval:
            # ``counts`` has the shape (seeds, rows, 2), and one entry is the numerator and the
            # denominator of a row's score. For a written answer, this entry is (score, 1).
            means = list(map(fmean, counts[:, :, 0].T.tolist()))
            record["interval"] = list(bootstrap_interval(means))
            record["item_sd"] = pstdev(means)
        clusters = [row.key for row in task.splits["test"]]
        record["item_error"] = error_of_items(counts.mean(0), clusters)
    sums, sizes = np.sum([score["items"] for score in scores], axis=0).T
    record["item_sums"] = compact(sums)
    record["item_sizes"] = compact(sizes)
    if len(set(record["item_sizes"])) == 1:
        record["item_sizes"] = record["item_sizes"][:1]
    return record


def trials_of(task: Task, settings: FinetuneSettings) -> dict[float, FinetuneSettings]:
    """Return the settings of each trial of a search for the learning rate, keyed by the rate.

    There are none if nothing is searched.

    Raises:
        MaskwiseError: the task has no dev rows.
    """
    if not settings.search_rate or task.frozen or settings.learning_rate is None:
        return {}
    if not task.splits["dev"]:
        raise MaskwiseError(
            f"the search for a learning rate needs dev rows, and task {task.name} has none",
            do="give the task dev rows, or remove finetune.search_rate",
        )
    # By default, a small learning rate gets more steps. In the search, all rates get the same
    # number of steps, so that their dev scores can be compared.
    steps = settings.training(task, seed=0).steps
    trials = {}
    for factor in TRIAL_FACTORS:
        rate = float(f"{factor * settings.learning_rate:.2g}")
        trials[rate] = settings.model_copy(update={"steps": steps, "learning_rate": rate})
    return trials


def best_rate(task: Task, tried: Mapping[float, Score]) -> float:
    """Return the learning rate with the best dev score.

    Args:
        task: the task.
        tried: the results of the trials, keyed by the rate.

    Raises:
        NotFinite: every rate has diverged.
    """
    dev = _dev_of(tried)
    if not dev:
        raise NotFinite(
            f"every learning rate that was tried on task {task.name} diverges",
            got=", ".join(f"{rate:g}" for rate in tried),
            do="set a lower finetune.learning_rate",
        )
    pick = min if task.metric in LOWER_IS_BETTER else max
    return pick(dev, key=dev.__getitem__)


def _dev_of(tried: Mapping[float, Score]) -> dict[float, float]:
    """Return the dev score of each rate that has not diverged."""
    dev = {rate: score["dev"] for rate, score in tried.items()}
    return {rate: score for rate, score in dev.items() if score is not None}


def tune(
    start: TaskStart,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerBase,
    settings: FinetuneSettings,
    seed: int,
    folder: Path | None = None,
    checkpoints: bool = True,
) -> Score:
    """Fine-tune once: with one of the seeds, or to try a learning rate (``TRIAL_SEED``).

    A trial writes no files. If it diverges, this is its result: it has a note and no dev score. The
    other arguments are those of ``finetune``.
    """
    trial = seed == TRIAL_SEED
    try:
        return finetune(
            start.checkpoint,
            task,
            tokenizer=tokenizer,
            settings=settings,
            seed=seed,
            config=start.config,
            folder=None if trial else folder,
            checkpoints=checkpoints,
        )
    except NotFinite as error:
        if not trial:
            raise
        note = f"learning rate {settings.learning_rate:g} diverged and was dropped: {error.what}"
        return cast("Score", {"dev": None, "notes": [note]})


def finetune(
    checkpoint: str | Path | None,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerBase,
    settings: FinetuneSettings,
    seed: int,
    config: PreTrainedConfig | None = None,
    folder: Path | None = None,
    checkpoints: bool = True,
) -> Score:
    """Fine-tune a checkpoint on a task and score it once.

    Args:
        checkpoint: a folder or hub id, or None for random weights.
        task: the data and the metric.
        tokenizer: the checkpoint's tokenizer.
        settings: the fine-tuning settings.
        seed: the seed of the new weights, the row order and dropout.
        config: the configuration of a model with random weights, or the configuration to use in
            place of the checkpoint's.
        folder: the folder for ``metrics.jsonl``, training states, ``checkpoint/`` (in transformers'
            format) and, for generation, ``predictions.jsonl``; or None to write nothing.
        checkpoints: whether to write more than ``predictions.jsonl``. The same call then goes on
            from the last state, which the caller removes when it has written the result.

    Returns:
        The scores, such as ``score`` (on test), ``dev`` (None without dev rows) and ``lost_words``
        (the number of test items whose tokens were cut off or are missing; these items count as
        wrong). A task with a frozen encoder has 0 steps and writes no checkpoint.

    Raises:
        MaskwiseError: the checkpoint does not exist or does not fit the tokenizer or
            ``max_length``, or a loss or an answer is not finite.
    """
    began = time.perf_counter()
    max_length = settings.max_length
    network = load_network(
        checkpoint, task, tokenizer, config=config, max_length=max_length, seed=seed
    )
    steps = lost = 0
    majority = task.majority
    if task.frozen:
        check_length(task, tokenizer, max_length)
        torch.nn.Module.to(network, best_device())
        read = {
            split: [*chain.from_iterable(row.texts for row in rows)]
            for split, rows in task.splits.items()
        }
        read[CORPUS] = [*task.kind.corpus]
        texts = {
            name: encode_texts(each, tokenizer, max_length=max_length)
            for name, each in read.items()
            if each
        }
        notes = warn_of_cuts(task, {split: flat.notes("texts") for split, flat in texts.items()})
        answers, chosen = _frozen_answers(task, texts, partial(embed, network))
        notes += chosen
    else:
        training = settings.training(task, seed=seed)
        data = task_tensors(task, tokenizer, max_length=max_length)
        objective = task.objective(network)
        notes = warn_of_cuts(task, {split: part.notes() for split, part in data.items()})
        if majority is None:
            majority = data["test"].chance(data["train"])
        best = Best(training.steps, every=settings.eval_every) if settings.eval_every else None
        evaluate: Evaluate | None = None
        if best is not None:
            evaluate = partial(on_dev, task, objective, data["dev"], best)
        trains = time.perf_counter()
        done = train(
            objective,
            TaskSource(data["train"], training),
            training,
            folder=folder if checkpoints else None,
            learners={} if best is None else {"best": best},
            title=f"{task.name} {seed}",
            evaluate=evaluate,
        )
        # The time of earlier calls, if this one resumed the training.
        began -= max(0.0, done["seconds"] - (time.perf_counter() - trains))
        if best is not None:
            best.load_best()
        answers = {split: answers_of(objective, data[split]) for split in ("dev", "test")}
        steps = done["steps"]
        lost = data["test"].lost
        if folder is not None and checkpoints:
            save_checkpoint(folder / "checkpoint", network, tokenizer)
    test = answers["test"]
    if task.kind.item_interval and folder is not None:
        write_lines(folder / PREDICTIONS, task.predictions("test", test))
    counts = task.row_counts("test", test)
    dev = None
    if "dev" in answers:
        dev = task.finite_score("dev", answers["dev"])
    return {
        "task": task.name,
        "metric": task.metric,
        "score": task.finite_score("test", test),
        "dev": dev,
        "others": {name: task.finite_score("test", test, name) for name in task.other_metrics()},
        "majority": majority,
        "test_items": task.test_items,
        "lost_words": lost,
        "steps": steps,
        "seconds": time.perf_counter() - began,
        "seed": seed,
        "notes": notes,
        "counts": None if counts is None else counts.tolist(),
        "items": task.item_sums("test", test).tolist(),
    }


def load_network(
    checkpoint: str | Path | None,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: PreTrainedConfig | None,
    max_length: int,
    seed: int,
) -> PreTrainedModel:
    """Load a checkpoint, or random weights of ``config``, with a new head for a task.

    If both are given, ``config`` replaces the configuration of the checkpoint.

    Raises:
        MaskwiseError: neither ``checkpoint`` nor ``config`` is given, or the model does not fit the
            task, the tokenizer or ``max_length``.
    """
    start = config or checkpoint
    if start is None:
        raise MaskwiseError("finetune needs a checkpoint, or a config for random weights")
    config = task_config(start, task.config())
    if task.kind.check_model:
        task.kind.check_model(config)
    check_fit(config, len(tokenizer), do="give the tokenizer that the checkpoint was trained with")
    check_room(config, max_length, what="max_length")
    if is_decoder(config):
        # Heads for sequences read a decoder's last token: the last one that is not this id.
        config.get_text_config().pad_token_id = padding_id(tokenizer)
    return load_task_model(checkpoint, config, head=task.kind.head, seed=seed)


def _frozen_answers(
    task: Task, texts: Mapping[str, Flat], embedder: Callable[..., Tensor]
) -> tuple[Mapping[str, Answers], list[str]]:
    """Return the answers of a frozen encoder, and a note if the pooling was chosen on dev."""
    assert task.kind.answers is not None
    tried = {}
    for pooling in task.poolings:
        vectors = {split: embedder(flat, pooling=pooling) for split, flat in texts.items()}
        tried[pooling] = task.kind.answers(task, vectors)
    if len(tried) == 1:
        return tried[task.pooling], []
    dev = {name: task.finite_score("dev", answers["dev"]) for name, answers in tried.items()}
    best = max(dev, key=dev.__getitem__)
    scores = ", ".join(f"{name} {score:.3f}" for name, score in dev.items())
    return tried[best], [f"pooling {best}, chosen on dev ({scores})"]


def on_dev(
    task: Task, objective: Objective, data: Data, best: Best, done: int, ranks: Ranks
) -> list[dict[str, object]]:
    """Score a model on dev, for the training loop, and compare the score with the best so far."""
    score = task.finite_score("dev", answers_of(objective, data))
    best.compare(done, score if task.metric in LOWER_IS_BETTER else -score)
    return [{"dev": score}]


@torch.inference_mode()
def answers_of(objective: Objective, data: Data) -> Answers:
    """Return a fine-tuned model's answers, one per item: classes, scores, choices or texts."""
    with evaluating(objective):
        return data.answers(objective, next(objective.parameters()).device)
