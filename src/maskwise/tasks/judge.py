"""Judge a checkpoint by tasks: fine-tuned on each with several seeds, or as it is where the kind of
task says so.

Fine-tuning is the loop of pre-training with another objective. What is random in it (the new head,
the order, dropout) is a function of its seed; the checkpoint and the task are not. The number of
steps is fixed beforehand and the last state is scored, once: picking the best of several
evaluations on test is how small effects are made. With ``eval_every`` the state that is best on dev
is scored instead; dev alone chooses, and test is still scored once. The dev score is for choosing
settings.

Cost: with a tiny model, some seconds on one core for each fine-tuning.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from maskwise.constants import LOWER_IS_BETTER
from maskwise.errors import MaskwiseError
from maskwise.families import check_fit, check_room
from maskwise.folders import file_hash, read_lines, require_own, write_lines
from maskwise.models import load_task_model, task_config, weights_of
from maskwise.objectives import Objective
from maskwise.tasks.finetuning import FinetuneSettings
from maskwise.tasks.loading import load_task
from maskwise.tasks.metrics import bootstrap_interval, error_of_items
from maskwise.tasks.task import Answers, Frozen, Task, Tuned
from maskwise.tasks.tensors import Data, TaskSource, check_length, embed, encode, warn_of_cuts
from maskwise.text import load_tokenizer
from maskwise.training import TrainingSettings, train
from maskwise.training.engine import best_device, save_checkpoint
from maskwise.training.log import NotFinite

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

RECORDS = "records.jsonl"
PREDICTIONS = "predictions.jsonl"
"""The file with what was answered to every test row."""


TRIAL_FACTORS = (1 / 3, 1.0, 3.0)
TRIAL_SEED = 1 << 40
"""The seed of fine-tunings by which a learning rate is searched; none of them is reported."""


class Judged(TypedDict):
    """What is known of one checkpoint and one task, judged once or more often.

    ``others`` are further metrics on test, ``lost_words`` items of test that cannot be answered.
    """

    task: str
    metric: str
    score: float
    others: dict[str, float]
    majority: float | None
    test_items: int
    lost_words: int
    notes: list[str]


class Score(Judged):
    """One checkpoint judged once by one task."""

    dev: float | None
    steps: int
    seconds: float
    seed: int
    items: list[float] | None
    """The score of every test item, where the kind of task gives them (``Kind.item_scores``)."""
    counts: list[list[float]] | None
    """What every test row adds above and below the line of the score, where it has one
    (``Kind.row_counts``).
    """


class TaskRecord(Judged):
    """One checkpoint judged by one task with all seeds: what studies keep and ``finetune`` prints."""

    task_kind: str
    fine_tuning: list[float]
    dev: list[float | None]
    interval: NotRequired[list[float]]
    """What the score could have been with other test items: a 95 % bootstrap interval over them."""
    item_error: NotRequired[float]
    """The standard error of the score over test items: whole sentences and documents are resampled.
    """
    item_sd: NotRequired[float]
    """The standard deviation over the test items of their scores (the means over seeds)."""
    tried: NotRequired[dict[str, float]]
    """The scores on dev of the learning rates that were tried (``search_rate``); the best one was
    taken.
    """
    model: NotRequired[str]
    made_of: NotRequired[str]
    """A hash of checkpoint, task, settings and seeds: the same record need not be made again."""


def evaluate_tasks(
    checkpoint: str | Path,
    specs: Sequence[str | Task],
    *,
    settings: FinetuneSettings | None = None,
    seeds: int | None = None,
    out: Path | None = None,
    quiet: bool = True,
) -> list[TaskRecord]:
    """Judge a checkpoint by tasks.

    Args:
        checkpoint: a folder or hub id with its tokenizer.
        specs: as for ``load_task``, or tasks. All are loaded and checked before the first is
            trained.
        settings: of every fine-tuning.
        seeds: fine-tunings of each task; ``settings.seeds`` if not given. Frozen kinds run once:
            nothing is random.
        out: where ``records.jsonl`` is, whole after every task, and ``TASK/seed-N/checkpoint``;
            None keeps nothing. A task whose record is there, of the same checkpoint, rows, settings
            and seeds, is not judged again.

    Returns:
        One record for each task. ``score`` is the mean over seeds, in the metric's own unit ([0, 1]
        or [−1, 1]); ``fine_tuning`` and ``dev`` are by seed, ``others`` means of the further
        metrics on test.

    Raises:
        MaskwiseError: no checkpoint, no such task, two tasks of one name, a task whose rows do not
            fit.

    >>> (record,) = evaluate_tasks("bundled:encoder", ["trivia(kind='sentence-embedding', train_rows=50)"])
    >>> record["task"], record["metric"], len(record["fine_tuning"])
    ('trivia-embedding', 'accuracy', 1)
    """
    settings = settings or FinetuneSettings()
    if out is not None:
        require_own(out, RECORDS, what="an earlier finetune")
    tasks = [spec if isinstance(spec, Task) else load_task(spec) for spec in specs]
    for place, task in enumerate(tasks):
        if task.name in [other.name for other in tasks[:place]]:
            do = 'give one another name: …(name="…")'
            raise MaskwiseError(f"two tasks are called {task.name!r}", got=str(specs[place]), do=do)
    tokenizer = load_tokenizer(str(checkpoint), needs_mask=False)
    for task in tasks:
        check_length(task, tokenizer, settings.max_length)
        if isinstance(task.kind, Tuned):
            task.kind.check_model(task_config(checkpoint, {}))
    by_seed = range(seeds or settings.seeds)
    made_of: dict[str, str] = {}
    finished: dict[str, TaskRecord] = {}
    if out is not None:
        made_of = _made_of(checkpoint, tasks, settings, len(by_seed))
        for line in read_lines(out / RECORDS):
            name = line.get("task", "")
            if name in made_of and line.get("made_of") == made_of[name]:
                finished[name] = cast(TaskRecord, line)
        write_lines(out / RECORDS, finished.values())  # from now on the folder is known as ours
    for task in tasks:
        if task.name in finished:
            continue
        record = task_record(
            checkpoint,
            task,
            tokenizer=tokenizer,
            settings=settings,
            seeds=by_seed,
            folder=out / task.name if out else None,
            quiet=quiet,
        )
        finished[task.name] = {**record, "model": str(checkpoint)}
        if out is not None:
            finished[task.name]["made_of"] = made_of[task.name]
            write_lines(out / RECORDS, finished.values())
    return [finished[task.name] for task in tasks]


def _made_of(
    checkpoint: str | Path, tasks: Sequence[Task], settings: FinetuneSettings, seeds: int
) -> dict[str, str]:
    """By task, a hash of what its record depends on. Of a checkpoint on the hub that is its name."""
    files = sorted(path for path in Path(checkpoint).glob("*") if path.is_file())
    hashes = [(path.name, file_hash(path)) for path in files]
    content = [str(checkpoint), hashes, settings.model_dump(mode="json"), seeds]
    hashed = {}
    for task in tasks:
        text = json.dumps([*content, task.fingerprint])
        hashed[task.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return hashed


def task_record(
    checkpoint: str | Path | None,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerBase,
    settings: FinetuneSettings,
    seeds: Iterable[int],
    config: PreTrainedConfig | None = None,
    folder: Path | None = None,
    checkpoints: bool = True,
    quiet: bool = True,
) -> TaskRecord:
    """The record of one checkpoint and one task; see ``finetune``.

    Args:
        seeds: one fine-tuning each; only the first counts where nothing is random: a frozen kind
            and a checkpoint.
        folder: where ``seed-N`` go; None keeps nothing.
        checkpoints: False: of each, nothing but its predictions is kept.
    """
    seeds = list(seeds)[: 1 if task.frozen and checkpoint else None]
    if settings.learning_rate is None and not task.frozen:
        start = config if checkpoint is None else task_config(checkpoint, {})
        settings = settings.fitting(weights_of(start)) if start is not None else settings

    def tuned(settings: FinetuneSettings, seed: int, folder: Path | None) -> Score:
        return finetune(
            checkpoint,
            task,
            tokenizer=tokenizer,
            settings=settings.training(task, seed=seed),
            seed=seed,
            max_length=settings.max_length,
            config=config,
            folder=folder,
            checkpoints=checkpoints,
            quiet=quiet,
            patience=settings.patience,
        )

    tried: dict[float, float] = {}
    diverged: list[str] = []
    usual = settings.learning_rate
    if settings.search_rate and usual and not task.frozen:
        if not task.splits["dev"]:
            do = "give it dev rows, or leave finetune.search_rate out"
            raise MaskwiseError(
                f"a learning rate is searched on dev, and task {task.name} has none", do=do
            )
        # the same for every rate, though a small one would ask for more
        steps = settings.training(task, seed=0).steps
        settings = settings.model_copy(update={"steps": steps})
        for factor in TRIAL_FACTORS:
            rate = float(f"{factor * usual:.2g}")
            trial = settings.model_copy(update={"learning_rate": rate})
            try:
                tried[rate] = tuned(trial, TRIAL_SEED, None)["dev"] or 0.0
            except NotFinite as error:
                diverged.append(f"learning rate {rate:g} was tried and left out: {error.what}")
                if len(diverged) == len(TRIAL_FACTORS):
                    raise
        best = (min if task.metric in LOWER_IS_BETTER else max)(tried, key=lambda rate: tried[rate])
        settings = settings.model_copy(update={"learning_rate": best})
    scores = [tuned(settings, seed, folder / f"seed-{seed}" if folder else None) for seed in seeds]
    first, by_seed = scores[0], [score["score"] for score in scores]
    others = {name: fmean(score["others"][name] for score in scores) for name in first["others"]}
    notes = [*task.remarks, *diverged, *first["notes"]]
    record: TaskRecord = {
        "task": task.name,
        "task_kind": task.kind.name,
        "metric": task.metric,
        "majority": first["majority"],
        "test_items": task.test_items,
        "lost_words": first["lost_words"],
        "notes": notes,
        "score": sum(by_seed) / len(by_seed),
        "fine_tuning": by_seed,
        "dev": [score["dev"] for score in scores],
        "others": others,
    }
    if tried:
        record["tried"] = {f"{rate:g}": dev for rate, dev in tried.items()}
    if items := [score["items"] for score in scores if score["items"] is not None]:
        means = [fmean(each) for each in zip(*items, strict=True)]
        record["interval"], record["item_sd"] = list(bootstrap_interval(means)), pstdev(means)
    if counts := [score["counts"] for score in scores if score["counts"] is not None]:
        clusters = [row.key for row in task.splits["test"]]
        record["item_error"] = error_of_items(np.mean(counts, axis=0), clusters)
    return record


def finetune(
    checkpoint: str | Path | None,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings,
    seed: int,
    max_length: int = 64,
    config: PreTrainedConfig | None = None,
    folder: Path | None = None,
    checkpoints: bool = True,
    quiet: bool = True,
    patience: int | None = None,
) -> Score:
    """Fine-tune and score once.

    Args:
        checkpoint: a folder or hub id; None to start from random weights of ``config``.
        task: what to judge by.
        tokenizer: the checkpoint's.
        settings: see ``FinetuneSettings.training``; ``seed`` replaces its seed.
        patience: see ``FinetuneSettings``.
        seed: of the new head (without a checkpoint: of all weights), the order and dropout.
        max_length: rows are cut to so many tokens.
        folder: where metrics.jsonl, checkpoint/ (an ordinary transformers folder) and, of answers
            in words, predictions.jsonl go; None keeps nothing.
        checkpoints: False: nothing but the predictions is kept.

    Returns:
        ``score`` on test, ``dev`` (None without dev rows), ``lost_words`` (items of test that
        cannot be answered). Frozen kinds have 0 steps, and no checkpoint is written.

    Raises:
        MaskwiseError: no checkpoint, one that does not fit the tokenizer or max_length, a loss or
            an answer that is not finite.
    """
    began = time.perf_counter()
    network = load_network(
        checkpoint, task, tokenizer, config=config, max_length=max_length, seed=seed
    )
    kept = folder if checkpoints else None
    kind, steps, lost, majority = task.kind, 0, 0, task.majority
    notes: list[str] = []
    answers: dict[str, Answers]
    if isinstance(kind, Frozen):
        check_length(task, tokenizer, max_length)
        torch.nn.Module.to(network, best_device())
        embedder = partial(embed, network, tokenizer=tokenizer, max_length=max_length)
        answers, notes = _frozen_answers(kind, task, embedder)
    else:
        assert isinstance(kind, Tuned)
        settings = settings.model_copy(update={"seed": seed})
        # the best state is in memory alone, so one that was stopped begins again
        if settings.eval_every:
            settings = settings.model_copy(update={"save_every": 0})
        data, objective = encode(task, tokenizer, max_length=max_length), kind.objective(network)
        notes, majority = warn_of_cuts(task, data), kind.chance(task, data)
        source = TaskSource(data["train"], settings)
        best = (
            Best(task, objective, data["dev"], patience=patience) if settings.eval_every else None
        )
        done = train(
            objective,
            source,
            settings,
            folder=kept,
            title=f"{task.name} {seed}",
            quiet=quiet,
            evaluate=best,
        )
        if best and best.state:
            objective.load_state_dict(best.state)
        answers = {split: answer(objective, data[split]) for split in ("dev", "test")}
        steps, lost = done["steps"], data["test"].lost
        if kept is not None:
            save_checkpoint(kept / "checkpoint", network, tokenizer)
    items = kind.item_scores(task, "test", answers["test"])
    counts = kind.row_counts(task, "test", answers["test"])
    if folder is not None and (lines := kind.predictions(task, "test", answers["test"])):
        write_lines(folder / PREDICTIONS, lines)
    return {
        "task": task.name,
        "metric": task.metric,
        "score": _finite(task, "test", answers["test"], task.metric),
        "dev": _finite(task, "dev", answers["dev"], task.metric) if "dev" in answers else None,
        "others": {
            name: _finite(task, "test", answers["test"], name) for name in kind.further(task)
        },
        "majority": majority,
        "test_items": task.test_items,
        "lost_words": lost,
        "steps": steps,
        "seconds": time.perf_counter() - began,
        "seed": seed,
        "notes": notes,
        "items": None if items is None else items.tolist(),
        "counts": None if counts is None else counts.tolist(),
    }


def _frozen_answers(
    kind: Frozen[Any], task: Task, embedder: Callable[..., Tensor]
) -> tuple[dict[str, Answers], list[str]]:
    """The answers by the task's pooling, or by the better one on dev, and a note that says which
    that was.
    """
    texts = {
        split: [text for row in rows for text in row.texts] for split, rows in task.splits.items()
    }
    tried: dict[str, dict[str, Answers]] = {}
    for pooling in task.poolings:
        vectors = {split: embedder(each, pooling=pooling) for split, each in texts.items() if each}
        tried[pooling] = dict(kind.answers(task, vectors))
    if len(tried) == 1:
        return tried[task.pooling], []
    dev = {
        name: _finite(task, "dev", answers["dev"], task.metric) for name, answers in tried.items()
    }
    best = max(dev, key=dev.__getitem__)
    scores = ", ".join(f"{name} {score:.3f}" for name, score in dev.items())
    return tried[best], [f"pooling {best}, chosen on dev ({scores})"]


class Best:
    """Scores an objective on dev whenever it is called, and keeps the state that was best.

    Args:
        data: the dev rows.
        patience: so many calls without a better score are ``enough``; None: they never are.
    """

    def __init__(self, task: Task, objective: Objective, data: Data, *, patience: int | None):
        self.task, self.objective, self.data, self.patience = task, objective, data, patience
        self.state: dict[str, Tensor] = {}
        self._score, self._waited = -math.inf, 0
        self._sign = -1 if task.metric in LOWER_IS_BETTER else 1

    def __call__(self, done: int) -> list[dict[str, Any]]:
        score = _finite(self.task, "dev", answer(self.objective, self.data), self.task.metric)
        self._waited += 1
        if self._sign * score > self._score:
            self._score, self._waited = self._sign * score, 0
            self.state = {
                name: value.cpu().clone() for name, value in self.objective.state_dict().items()
            }
        return [{"dev": score, "enough": self._waited == self.patience}]


def _finite(task: Task, split: str, answers: Answers, metric: str) -> float:
    score = task.score(split, answers, metric)
    if not math.isfinite(score):
        what, do = (
            f"the {metric} of task {task.name!r} on {split} is no number",
            "is the checkpoint damaged?",
        )
        raise MaskwiseError(what, got=f"{score}: the model's answers are not finite", do=do)
    return score


@torch.inference_mode()
def answer(objective: Objective, data: Data) -> Answers:
    """What a fine-tuned model answers: a class, score, choice or text for every item."""
    objective.eval()
    return data.answers(objective, next(objective.parameters()).device)


def load_network(
    checkpoint: str | Path | None,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    config: PreTrainedConfig | None,
    max_length: int,
    seed: int,
) -> PreTrainedModel:
    """The checkpoint with a new head for a task (none if it stays frozen), or random weights of
    ``config``; a function of the seed.

    Raises:
        MaskwiseError: no checkpoint, or not one of the two; one that does not fit the tokenizer or
            max_length.
    """
    start = config if checkpoint is None else checkpoint
    if start is None or (checkpoint and config):
        raise MaskwiseError(
            "finetune needs a checkpoint, or a config to start from at random: one of the two"
        )
    kind = task.kind
    labels = kind.config(task) if isinstance(kind, Tuned) else {}
    config = task_config(start, labels)
    if isinstance(kind, Tuned):
        kind.check_model(config)
    check_fit(config, len(tokenizer), do="give the tokenizer that the checkpoint was trained with")
    check_room(config, max_length, what="max_length")
    return load_task_model(checkpoint, config, head=kind.head, seed=seed)
