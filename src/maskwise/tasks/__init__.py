"""Evaluation on labelled tasks: reading data (files, columns, loading), kinds of tasks (classes,
questions, written, embeddings), tensors, metrics, and fine-tuning (finetuning, judge). May import
from ``training`` and the layers below it, and from ``text``."""

from maskwise.tasks.files import BUNDLED_TASKS, CARDS
from maskwise.tasks.finetuning import FinetuneSettings
from maskwise.tasks.judge import Score, TaskRecord, evaluate_tasks, finetune, task_record
from maskwise.tasks.loading import KINDS, load_task
from maskwise.tasks.metrics import METRICS
from maskwise.tasks.task import Task
from maskwise.tasks.tensors import TaskSource, encode

__all__ = [
    "BUNDLED_TASKS",
    "CARDS",
    "KINDS",
    "METRICS",
    "FinetuneSettings",
    "Score",
    "Task",
    "TaskRecord",
    "TaskSource",
    "encode",
    "evaluate_tasks",
    "finetune",
    "load_task",
    "task_record",
]
