"""Evaluate checkpoints on labelled tasks.

``reading``, ``columns``, ``splits`` and ``loading`` read data. ``classes``, ``questions``,
``written`` and ``embeddings`` define the kinds of tasks. ``tensors`` makes batches, ``metrics``
scores answers, ``settings`` has the settings of fine-tuning, and ``finetuning`` fine-tunes. This
package may import ``text``, ``training`` and the packages that ``training`` may import.
"""

from maskwise.base.plugins import on_first_use

__getattr__ = on_first_use(
    __name__,
    {
        "Score": "finetuning",
        "TaskRecord": "finetuning",
        "evaluate_tasks": "finetuning",
        "finetune": "finetuning",
        "task_record": "finetuning",
        "KINDS": "loading",
        "load_task": "loading",
        "METRICS": "metrics",
        "BUNDLED_TASKS": "reading",
        "CARDS": "reading",
        "FinetuneSettings": "settings",
        "Task": "task",
        "TaskSource": "tensors",
        "task_tensors": "tensors",
    },
)
