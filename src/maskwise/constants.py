"""Constants that several rooms must agree on, below all of them; the report, which reads files
only, may import it.
"""

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
"""The arm of checkpoints that were never trained, or not further. No other arm may have this name.
"""

OWN_TASK, OTHER_TASKS = "own-task", "other-tasks"
"""What a study of transfer compares beside its arms: for every task the arm whose policy was
learned from it, and the mean of those whose policies were learned from other tasks."""

CONTROL = "-control"
"""How the name of a positive control ends: a study that is void unless its oracle wins
(``study.gate``).
"""

MOST_PRIMARY = 6
"""Primary contrasts of a study. With more, Holm's correction leaves nothing that ten runs could
decide.
"""

FRESH_RUN = 10_000
"""What is added to a seed where a search chose a setting with it: the run that is compared is a new
one, because the best run of a grid was lucky."""

PLATEAU_NATS = 0.3
"""A mean held-out loss less than this below the unigram loss: the model has learnt word frequencies
and little else.
"""

NATS = "nats"
"""The metric of tasks that are answered in words: mean nats for each token of the right answers."""

IMBALANCED = 0.6
"""Above this share of one class accuracy says little, and macro F1 stands beside it."""


def accuracy_misleads(metric: str | None, share: float | None) -> bool:
    """Whether macro F1 must stand beside a score: accuracy, where so large a share of the rows has
    one label.
    """
    return metric == "accuracy" and (share or 0) > IMBALANCED


OVERLAP_SHARE = 0.01
"""From this share of a task's test items in a corpus its score may be one of memory; below it is a
note.
"""


def overlap_matters(overlapping: int, items: int) -> bool:
    """Whether so many of a task's test items stand in a corpus that its score may be one of
    memory.
    """
    return overlapping >= OVERLAP_SHARE * items


def overlap_words(overlapping: int, items: int, task: str) -> str:
    """How many test items of a task stand in a corpus.

    >>> overlap_words(1, 600, "ud-pos")
    '1 of 600 test items of ud-pos also occurs in the corpus'
    """
    occur = "occurs" if overlapping == 1 else "occur"
    return f"{overlapping:,} of {items:,} test items of {task} also {occur} in the corpus"


LOWER_IS_BETTER = (NATS,)
"""Metrics of tasks that are better when they are lower."""
CORRELATIONS = ("spearman", "pearson", "matthews")
"""Written times 100, as the field does, and not as shares: 90 % of a correlation is nothing."""


GAIN = "gain over random masks on dev, nats"
"""What the gain of a learned policy is called, on its card and by ``maskwise learn``."""

DIFFUSION = "diffusion"
"""The held-out masks of the bound of masked diffusion, which compares arms whatever they mask
together.
"""


def rank_here() -> int:
    """The number of this process among those that torchrun started, else 0. Rank 0 prepares, writes
    and speaks.
    """
    return int(os.environ.get("RANK", "0"))


def ranks_here() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


ORANGE, BLUE = (0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9)


def shade(share: float, full: tuple[int, int, int] = ORANGE) -> str:
    """From white at 0 to a full colour, orange, at 1."""
    return "#" + "".join(
        f"{round(255 - min(1.0, max(0.0, share)) * (255 - part)):02x}" for part in full
    )
