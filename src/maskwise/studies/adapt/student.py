"""The student of an adaptation: its folder, and how much faster it reads than its teacher."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch

from maskwise.base.folders import read_json, write_json
from maskwise.models.loading import load_config, load_task_model
from maskwise.recipe.yamls import Plain
from maskwise.studies.adapt.request import STUDENT
from maskwise.studies.checkpoints import origin_of, save_model, trained_run

MEASURED = "student.json"
"""The file with sizes and speeds of the unchanged model and its student."""
ROWS, TIMES = 16, 7
"""The rows of a batch that is read, and how often each model reads it."""


def save_student(out: Path, teacher: str, length: int) -> None:
    """Save the student of the first finished run in ``out``/student, and measure its speed once.

    Args:
        teacher: the unchanged model.
        length: the number of tokens of a row.
    """
    study = read_json(out / "study.json") or {"arms": {}}
    if STUDENT not in study["arms"] or (out / MEASURED).is_file():
        return
    found = trained_run(out, STUDENT)
    if found is None:
        return
    seed, checkpoint = found
    save_model(checkpoint, out / STUDENT, of=origin_of(study["name"], STUDENT, seed))
    write_json(out / MEASURED, speeds(teacher, str(checkpoint), length))


def speeds(teacher: str, student: str, length: int) -> Plain:
    """Return ``layers``, ``weights`` and ``tokens_per_second`` of two encoders, as pairs.

    They read the same rows in turn, on the processor, without heads and gradients. A speed is the
    median of ``TIMES``.
    """
    encoders = [
        load_task_model(name, load_config(name, kind=None), head="embedding", seed=0).eval()
        for name in (teacher, student)
    ]
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(encoders[0].config.vocab_size, (ROWS, length), generator=drawn)
    took: list[list[float]] = [[], []]
    with torch.inference_mode():
        # The first time is slower, and is left out.
        for _ in range(1 + TIMES):
            for encoder, seconds in zip(encoders, took, strict=True):
                began = time.perf_counter()
                encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
                seconds.append(time.perf_counter() - began)
    return {
        "layers": [encoder.config.num_hidden_layers for encoder in encoders],
        "weights": [encoder.num_parameters() for encoder in encoders],
        "tokens_per_second": [ids.numel() / median(seconds[1:]) for seconds in took],
        "row_tokens": length,
    }


def student_words(out: Path) -> str:
    """Return a sentence about size and speed of the student; "" if there is none."""
    measured = read_json(out / MEASURED)
    if measured is None:
        return ""
    layers, weights, tokens = (
        measured[name] for name in ("layers", "weights", "tokens_per_second")
    )
    return (
        f"With {layers[1]} of {layers[0]} layers and {weights[1] / weights[0]:.0%} of the weights, "
        f"it reads {tokens[1] / tokens[0]:.1f} times as many tokens a second (measured in turn, on "
        f"this processor, rows of {measured['row_tokens']} tokens); {out / STUDENT}."
    )
