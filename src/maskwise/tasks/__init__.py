"""What a checkpoint is judged by: labelled rows (readers, rows, data), their tensors (encode), metrics, and
fine-tuning with the one loop (finetune). Imports ``training`` and below, and ``corpus`` for the bundled
data."""

from maskwise.tasks.data import BUNDLED_TASKS, Task, load_task
from maskwise.tasks.encode import Encoded, TaskSource, encode
from maskwise.tasks.finetune import FinetuneSettings, answers, finetune, majority_score, score
from maskwise.tasks.metrics import METRICS

__all__ = [
    "BUNDLED_TASKS", "METRICS", "Encoded", "FinetuneSettings", "Task", "TaskSource", "answers", "encode",
    "finetune", "load_task", "majority_score", "score",
]  # fmt: skip
