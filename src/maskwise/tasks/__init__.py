"""What a checkpoint is judged by: labelled rows (files, columns, loading, task), their tensors,
metrics, the kinds of tasks (a class each, in classes, tags, questions, closedbook, generation and
embeddings), and the judging itself. Imports ``training`` and below, and ``text``."""

from maskwise.tasks.cards import CARDS
from maskwise.tasks.embeddings import evaluator_task
from maskwise.tasks.files import BUNDLED_TASKS
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
    "evaluator_task",
    "finetune",
    "load_task",
    "task_record",
]
