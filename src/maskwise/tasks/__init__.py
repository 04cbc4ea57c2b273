"""Evaluate checkpoints on labelled tasks.

``reading``, ``columns``, ``splits`` and ``loading`` read data. ``classes``, ``questions``,
``written`` and ``embeddings`` define the kinds of tasks. ``tensors`` makes batches, ``metrics``
scores answers, ``settings`` has the settings of fine-tuning, and ``finetuning`` fine-tunes. This
package may import ``text``, ``training`` and the packages that ``training`` may import.
"""

from maskwise.tasks.finetuning import (
    FineTuning,
    Score,
    TaskRecord,
    TaskStart,
    evaluate_tasks,
    finetune,
    task_record,
)
from maskwise.tasks.loading import KINDS, load_task
from maskwise.tasks.metrics import METRICS
from maskwise.tasks.reading import BUNDLED_TASKS, CARDS
from maskwise.tasks.settings import FinetuneSettings
from maskwise.tasks.task import Task
from maskwise.tasks.tensors import TaskSource, encode

__all__ = [
    "BUNDLED_TASKS",
    "CARDS",
    "KINDS",
    "METRICS",
    "FineTuning",
    "FinetuneSettings",
    "Score",
    "Task",
    "TaskRecord",
    "TaskSource",
    "TaskStart",
    "encode",
    "evaluate_tasks",
    "finetune",
    "load_task",
    "task_record",
]
