"""Constants and small functions that several packages share.

This module imports no other module of maskwise, so every module may import it.
"""

import math
import os
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

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
"""The reserved name of the arm without (further) pre-training."""

BY_LENGTH = "by-length"
"""The measure of the same tokens in rows of several lengths. Its metrics end with the length."""

WRITES_END = "writes_end"
"""The field of a configuration that says that a model of masked diffusion writes its end token."""

MEAN_OVER_TASKS = "mean over tasks"
"""The measure of quality against compute that averages tasks with a common unit."""

FIXED = "at these settings"
TUNED = "each arm tuned"
"""What a verdict is about: arms at the settings of the recipe, or arms with a search for settings.
"""

MOST_SEEDS = 1000
"""The largest number of runs per arm. It is limited, because a plan has all runs in memory."""

MOST_PRIMARY = 6
"""The largest number of comparisons of arms that a study decides. With more comparisons, ten runs
could not decide any, because of Holm's correction."""

FRESH_RUN = 10_000
"""After a search for settings, a new run with the best settings is compared with other arms,
because the best run of the search was best partly by luck. This number is added to its seed."""

PLATEAU_NATS = 0.3
"""A model has learned little more than word frequencies if its held-out loss is less than this
number, in nats, below the loss of guessing by token frequencies."""

Kind: TypeAlias = Literal["encoder", "encoder-decoder"]
"""The kind of a model."""

NATS = "nats"
"""The metric of tasks that are answered in words: the mean loss, in nats, per token of the correct
answers."""

ASSUMED_MARGINS = {NATS: 0.05, "score": 0.005}
"""The largest differences that do not matter where a study has no margin: a loss 5 % of a
perplexity higher, and half a point of a score."""

IMBALANCED = 0.6
"""If the share of the most frequent class is larger, macro F1 is reported, too."""
COMPUTED = ("0.1.0", "7")
"""Version of the results, which is a part of every stage name. The last number rises if a code
change alters the results of unchanged settings. What changed so far (see CHANGELOG): 2: held-out
loss and multi-label tasks; 3: macro F1 of truncated words, and steps of tried learning rates;
4: labels missing in train, and rows of the sampler's probes; 5: fine-tuning draws all weights
outside the encoder anew; 6: dropout of attention in padded rows on CPUs; 7: a text is held out and
masked by its content."""


def accuracy_misleads(metric: str | None, share: float | None) -> bool:
    """Return whether to report macro F1, too. ``share`` is that of the most frequent label."""
    return metric == "accuracy" and (share or 0) > IMBALANCED


OVERLAP_SHARE = 0.01
"""The model may have memorised the answers if at least this share of a task's test items is in the
corpus."""


OVERLAP_ADVICE = (
    "Look at the test items that share most of their words with the corpus ({examples}): remove "
    "from the corpus what it has of them, or leave out the task, which may reward memorisation."
)


def overlap_matters(line: Mapping[str, Any]) -> bool:
    """Return whether enough test items stand in the corpus to affect the score.

    Args:
        line: the record of ``evaluation.overlap``. Older records do not say of how many items the
            corpus has half of the words.
    """
    return bool(line.get("covered", line["overlapping"]) >= OVERLAP_SHARE * line["items"])


def overlap_words(line: Mapping[str, Any]) -> str:
    """Return what is known of the words that the test items of a task share with the corpus.

    >>> facts = {"task": "ud-pos", "items": 600, "overlapping": 21}
    >>> overlap_words(facts)
    '21 of 600 test items of ud-pos share 13 words in a row, or all their words, with the corpus'
    >>> overlap_words(facts | {"covered": 3, "run_words": 14, "run": "array of …"})[85:]
    'corpus; of 3, half of the words or more are there; the longest run, 14 words: “array of …”'
    """
    shares = "shares" if line["overlapping"] == 1 else "share"
    words = (
        f"{line['overlapping']:,} of {line['items']:,} test items of {line['task']} {shares} "
        f"{line.get('n', 13)} words in a row, or all their words, with the corpus"
    )
    if "covered" not in line:
        return words
    return (
        f"{words}; of {line['covered']:,}, half of the words or more are there; the longest run, "
        f"{line['run_words']:,} words: “{line['run']}”"
    )


COSTS = {
    "steps": "steps",
    "tokens": "tokens read",
    "targets": "targets (tokens to predict)",
    "flops": "FLOPs",
}
"""The measures of training cost and their labels."""

LOWER_IS_BETTER = (NATS,)
"""Task metrics for which lower values are better."""
CORRELATIONS = ("spearman", "pearson", "matthews")
"""Metrics that are multiplied by 100 in reports, but have no percent sign, because correlations are
no shares."""


GAIN = "gain over random masks on dev, nats"
"""The label of a learned policy's gain, on its model card and in ``maskwise learn``."""

DIFFUSION = "diffusion"
"""The name of the held-out masks of masked diffusion. Their loss, a bound, can be compared between
arms that mask different units (tokens, words, …)."""
NEXT_TOKEN = "next-token"
"""The name of the held-out loss of next tokens, which stands beside those of fixed masks."""
WITHOUT_RATIO = (DIFFUSION, NEXT_TOKEN)
"""Held-out losses that have no masking ratio, and whose targets are the same for all arms."""


def rank_here() -> int:
    """Return the rank of this process under torchrun, or 0 without torchrun.

    Only rank 0 prepares data, writes files and prints.
    """
    return int(os.environ.get("RANK", "0"))


def ranks_here() -> int:
    """Return the number of processes that torchrun has started, or 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def variables_of_rank(rank: int, count: int) -> dict[str, str]:
    """Return the variables by which a process knows its rank, of ``count`` on one machine."""
    counts = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    return counts | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))


def cards_here() -> list[str]:
    """Return the ids of this process's CUDA devices, as in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return named.split(",")[:count]


def cores_here() -> int:
    """Return the number of CPU cores that this process may use.

    A scheduler, a container or ``taskset`` may leave it fewer cores than the machine has.
    """
    # macOS and Windows have no such function.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def jobs_here(processes: int = 1) -> int:
    """Return the number of tasks to run at once, if each has ``processes`` devices: CUDA devices,
    or CPU cores.
    """
    return max(1, (len(cards_here()) or cores_here()) // processes)


def share_of_card(jobs: int | None, cards: float) -> float:
    """Return the share of a GPU for each of ``jobs`` tasks on ``cards`` GPUs, or 0 without GPUs.

    >>> share_of_card(8, 2.0), share_of_card(3, 2.0), share_of_card(None, 2.0), share_of_card(8, 0)
    (0.25, 0.5, 1.0, 0.0)
    """
    if not cards:
        return 0.0
    on_fullest_card = math.ceil((jobs or 1) / cards)
    return 1 / on_fullest_card


ORANGE = (0xE6, 0x9F, 0x00)


def shade(share: float) -> str:
    """Return an HTML colour between white (share 0) and orange (share 1)."""
    share = min(1.0, max(0.0, share))
    red, green, blue = (round(255 - share * (255 - part)) for part in ORANGE)
    return f"#{red:02x}{green:02x}{blue:02x}"


ONLY_RESIDUES = frozenset("EFILPQ")
"""Letters of amino acids that mean nothing in DNA. A vocabulary with all of them may be of
proteins."""

POLICY_TAGGERS = ("pos", "salient")
"""The annotators that measure a learned policy."""


def is_rate(field: str) -> bool:
    """Return whether a field of a configuration is a rate of dropout or of dropped layers."""
    # ESM's ``token_dropout`` is no rate: it says how embeddings are scaled.
    return "drop" in field and field != "token_dropout"
