"""Constants and small functions that several packages share.

This module imports none of them, so any module may import it.
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
"""The arm of checkpoints without (further) pre-training. No other arm may have this name."""

OWN_TASK = "own-task"
"""In a study of transfer: for every task, the arm whose policy was learned from this task."""
OTHER_TASKS = "other-tasks"
"""In a study of transfer: for every task, the mean of the arms with policies from other tasks."""

FIXED = "at these settings"
TUNED = "each arm tuned"
"""The scopes of a verdict."""

CONTROL = "-control"
"""The suffix of positive controls: studies that are void unless their oracle wins
(``study.gate``)."""

MOST_PRIMARY = 6
"""The largest number of primary contrasts of a study: after Holm's correction for more contrasts,
ten runs could not decide any of them."""

FRESH_RUN = 10_000
"""Added to the seed of a search to get the seed of the run that is compared. The best run of a grid
is not compared itself, because it won partly by luck."""

PLATEAU_NATS = 0.3
"""A model whose held-out loss is less than this below the unigram loss knows little more than word
frequencies."""

NATS = "nats"
"""The metric of tasks that are answered in words: mean nats per token of the right answers."""

IMBALANCED = 0.6
"""Above this share of one class, accuracy says little and macro F1 is reported too."""


def accuracy_misleads(metric: str | None, share: float | None) -> bool:
    """Whether to report macro F1 too; ``share`` is the share of the most frequent label."""
    return metric == "accuracy" and (share or 0) > IMBALANCED


OVERLAP_SHARE = 0.01
"""If the corpus has at least this share of a task's test items, its score may be due to memory."""


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
"""Metrics of tasks that are better when they are lower."""
CORRELATIONS = ("spearman", "pearson", "matthews")
"""Metrics shown times 100 without a percent sign: a correlation is not a share."""


GAIN = "gain over random masks on dev, nats"
"""The label of a learned policy's gain, on its card and in ``maskwise learn``."""

DIFFUSION = "diffusion"
"""The held-out masks of masked diffusion, whose bound can compare arms with different units."""


def rank_here() -> int:
    """The rank of this process under torchrun, else 0. Only rank 0 prepares, writes and prints."""
    return int(os.environ.get("RANK", "0"))


def ranks_here() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def cards_here() -> list[str]:
    """The CUDA devices of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return named.split(",")[:count]


def jobs_here() -> int:
    """How many stages of a study run at once on this machine: one per CUDA device, or per core."""
    return len(cards_here()) or os.cpu_count() or 1


def share_of_card(jobs: int | None, cards: float) -> float:
    """The share of a GPU for each of ``jobs`` tasks, spread evenly over ``cards``; 0 without GPUs.

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
    """A colour in HTML: white at the share 0, the full colour at 1."""
    share = min(1.0, max(0.0, share))
    red, green, blue = (round(255 - share * (255 - part)) for part in full)
    return f"#{red:02x}{green:02x}{blue:02x}"
