"""What a checkpoint is judged by: labelled rows (readers, layouts, rows, questions, data), their tensors (tensors,
windows, choices), metrics, and what is done with them: fine-tuning with the one loop (kinds, finetune), nothing
at all (frozen), or many tasks in one call (evaluate). Imports ``training`` and below, and ``corpus``."""

from maskwise.tasks.data import Task, load_task
from maskwise.tasks.evaluate import evaluate_tasks
from maskwise.tasks.finetune import FinetuneSettings, finetune
from maskwise.tasks.kinds import answers, encode, majority_score, score
from maskwise.tasks.layouts import BUNDLED_TASKS
from maskwise.tasks.metrics import METRICS
from maskwise.tasks.rows import KINDS
from maskwise.tasks.tensors import Encoded, TaskSource

__all__ = [
    "BUNDLED_TASKS", "KINDS", "METRICS", "Encoded", "FinetuneSettings", "Task", "TaskSource", "answers", "encode",
    "evaluate_tasks", "finetune", "load_task", "majority_score", "score",
]  # fmt: skip
