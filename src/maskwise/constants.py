"""Constants and small functions that several packages share.

This module imports no other module of maskwise, so every module may import it.
"""

import math
import os

UPOS = (
    "ADJ",
    "ADP",
    "ADV",
    "AUX",
    "CCONJ",
    "DET",
    "INTJ",
    "NOUN",
    "NUM",
    "PART",
    "PRON",
    "PROPN",
    "PUNCT",
    "SCONJ",
    "SYM",
    "VERB",
    "X",
)
"""The 17 universal parts of speech, in the order of the layer ``pos``."""

REFERENCE = "no-pretraining"
"""The arm that stands for checkpoints without (further) pre-training; the name is reserved."""

OWN_TASK = "own-task"
"""In a study of transfer: for each task, the arm whose policy was learned from this task."""
OTHER_TASKS = "other-tasks"
"""In a study of transfer: for each task, the mean of the arms with policies from other tasks."""

FIXED = "at these settings"
TUNED = "each arm tuned"
"""The two scopes of a verdict."""

MOST_PRIMARY = 6
"""The largest number of primary contrasts in a study: after Holm's correction for more contrasts,
ten runs could not decide any of the contrasts."""

FRESH_RUN = 10_000
"""Added to a search seed to get the seed of the run that is compared. The best run of a grid is not
compared itself, because it won partly by luck."""

PLATEAU_NATS = 0.3
"""If a model's held-out loss is less than this far below the unigram loss, the model has learned
little more than word frequencies."""

NATS = "nats"
"""The metric for tasks that are answered in words: mean nats per token of the correct answers."""

IMBALANCED = 0.6
"""If one class has more than this share, accuracy says little, so macro F1 is reported too."""


def accuracy_misleads(metric: str | None, share: float | None) -> bool:
    """Whether to report macro F1 too; ``share`` is the share of the most frequent label."""
    return metric == "accuracy" and (share or 0) > IMBALANCED


OVERLAP_SHARE = 0.01
"""If the corpus contains at least this share of a task's test items, the score on the task may be
due to memory."""


def overlap_matters(overlapping: int, items: int) -> bool:
    """Whether the corpus contains enough of a task's test items for memory to explain the score."""
    return overlapping >= OVERLAP_SHARE * items


def overlap_words(overlapping: int, items: int, task: str) -> str:
    """Say how many test items of a task also occur in the corpus.

    >>> overlap_words(1, 600, "ud-pos")
    '1 of 600 test items of ud-pos also occurs in the corpus'
    """
    occur = "occurs" if overlapping == 1 else "occur"
    return f"{overlapping:,} of {items:,} test items of {task} also {occur} in the corpus"


COSTS = {
    "steps": "steps",
    "tokens": "tokens read",
    "targets": "targets (tokens to predict)",
    "flops": "FLOPs",
}
"""The quantities in which the cost of training is measured, with their labels."""

LOWER_IS_BETTER = (NATS,)
"""Task metrics for which lower values are better."""
CORRELATIONS = ("spearman", "pearson", "matthews")
"""Metrics that are multiplied by 100 but have no percent sign: a correlation is not a share."""


GAIN = "gain over random masks on dev, nats"
"""The label for a learned policy's gain, on its card and in ``maskwise learn``."""

DIFFUSION = "diffusion"
"""The held-out masks for masked diffusion; its bound can compare arms with different units."""


def rank_here() -> int:
    """Return the rank under torchrun, else 0. Only rank 0 prepares, writes and prints."""
    return int(os.environ.get("RANK", "0"))


def ranks_here() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def cards_here() -> list[str]:
    """Return this process's CUDA devices, by the names in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return named.split(",")[:count]


def jobs_here() -> int:
    """Return how many stages run at once on this machine: one per CUDA device, or per core."""
    return len(cards_here()) or os.cpu_count() or 1


def share_of_card(jobs: int | None, cards: float) -> float:
    """Return each task's share of a GPU if ``jobs`` tasks share ``cards`` evenly; 0 without GPUs.

    >>> share_of_card(8, 2.0), share_of_card(3, 2.0), share_of_card(None, 2.0), share_of_card(8, 0)
    (0.25, 0.5, 1.0, 0.0)
    """
    if not cards:
        return 0.0
    on_fullest_card = math.ceil((jobs or 1) / cards)
    return 1 / on_fullest_card


ORANGE = (0xE6, 0x9F, 0x00)
BLUE = (0x56, 0xB4, 0xE9)


def shade(share: float, full: tuple[int, int, int] = ORANGE) -> str:
    """Return an HTML colour: white for the share 0, the full colour for the share 1."""
    share = min(1.0, max(0.0, share))
    red, green, blue = (round(255 - share * (255 - part)) for part in full)
    return f"#{red:02x}{green:02x}{blue:02x}"
