"""A checkpoint on many tasks of any kind, in one call, with one record a task."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError
from maskwise.tasks.data import load_task
from maskwise.tasks.finetune import FinetuneSettings, finetune
from maskwise.tasks.kinds import check_length
from maskwise.text import load_tokenizer


def evaluate_tasks(
    checkpoint: str | Path,
    specs: Sequence[str],
    *,
    settings: FinetuneSettings | None = None,
    seeds: int | None = None,
    out: Path | None = None,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """Judge a checkpoint by tasks: fine-tuned with each seed, or as it is where the kind of task says so.

    Args:
        checkpoint: a folder or hub id with its tokenizer.
        specs: as for ``load_task``. All are loaded and checked before the first is trained.
        settings: of every fine-tuning.
        seeds: fine-tunings a task; ``settings.seeds`` if not given. Frozen kinds run once: nothing is random.
        out: where ``records.jsonl`` is, whole after every task, and ``TASK/seed-N/checkpoint``; None keeps nothing.

    Returns:
        One record a task: ``task``, ``task_kind``, ``metric``, ``score`` (the mean over seeds), ``fine_tuning`` and
        ``dev`` (by seed), ``others`` (further metrics, means), ``majority``, ``test_items``, ``lost_words``,
        ``notes`` (how splits were made), ``model``.

    Raises:
        MaskwiseError: no checkpoint, no such task, two tasks of one name, a task whose rows do not fit.
    """
    settings = settings or FinetuneSettings()
    if out is not None and out.exists() and not out.is_dir():
        raise MaskwiseError("--out is a file", got=str(out), do="give a folder")
    if out is not None and out.is_dir() and any(out.iterdir()) and not (out / "records.jsonl").is_file():
        raise MaskwiseError(f"--out {out} holds something else", do="give a new folder")
    tasks = [load_task(spec) for spec in specs]
    for place, task in enumerate(tasks):
        if task.name in [other.name for other in tasks[:place]]:
            do = 'give one another name: …(name="…")'
            raise MaskwiseError(f"two tasks are called {task.name!r}", got=specs[place], do=do)
    tokenizer = load_tokenizer(str(checkpoint), needs_mask=False)
    for task in tasks:
        check_length(task, tokenizer, settings.max_length)
    records: list[dict[str, Any]] = []
    _write(out, records)
    for task in tasks:
        runs = [
            finetune(
                checkpoint, task, tokenizer=tokenizer, settings=settings.training(task, seed=seed), seed=seed,
                max_length=settings.max_length, folder=out / task.name / f"seed-{seed}" if out else None, quiet=quiet,
            )
            for seed in range(1 if task.frozen else seeds or settings.seeds)
        ]  # fmt: skip
        facts = {key: runs[0][key] for key in ("task", "metric", "majority", "test_items", "lost_words")}
        scores = [run["score"] for run in runs]
        others = {name: _mean([run["others"][name] for run in runs]) for name in runs[0]["others"]}
        facts |= {"task_kind": task.kind, "model": str(checkpoint), "notes": list(task.notes)}
        facts |= {"score": _mean(scores), "fine_tuning": scores, "dev": [run["dev"] for run in runs]}
        records.append({**facts, "others": others})
        _write(out, records)
    return records


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _write(out: Path | None, records: list[dict[str, Any]]) -> None:
    """Whole or not at all."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f".records.{os.getpid()}.partial"
    partial.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    partial.replace(out / "records.jsonl")
