"""Fine-tune a checkpoint with the seeds of a study's run 200, and print a line a task.

    PYTHONPATH=CODE/src:CODE/packages/maskwise-data/src python finetune.py FOLDER PRECISION TASK …

Runs with the code of d41c3e4c (26 November 2026), of 200f1091 (30 November) and of those between.
"""

import json
import sys

import torch

from maskwise.tasks.loading import load_task
from maskwise.text.tokenizers import load_tokenizer

try:  # until daa37182
    from maskwise.tasks.judge import FinetuneSettings, task_record
except ImportError:
    from maskwise.tasks.finetuning import task_record
    from maskwise.tasks.settings import FinetuneSettings

torch.set_num_threads(1)
checkpoint, precision, *tasks = sys.argv[1:]
settings = FinetuneSettings(seeds=3, precision=precision)
for spec in tasks:
    record = task_record(
        checkpoint,
        load_task(spec),
        tokenizer=load_tokenizer(checkpoint),
        settings=settings,
        seeds=range(200000, 200003),
    )
    line = {"task": spec, "fine_tuning": record["fine_tuning"], "dev": record["dev"]}
    print(json.dumps({"checkpoint": checkpoint, "precision": precision, **line}), flush=True)  # noqa: T201
