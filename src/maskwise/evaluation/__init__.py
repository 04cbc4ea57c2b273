"""What a checkpoint is judged by without fine-tuning, whose seeds are noise: held-out loss on fixed
masks, pseudo-perplexity, cloze facts and minimal pairs; and whether a corpus holds the test items,
or the right answers. Imports
``training`` and below, and the readers of ``tasks``."""

from maskwise.evaluation.evaluate import (
    Data,
    EvaluationSettings,
    evaluate,
    evaluate_checkpoint,
    load_sets,
)
from maskwise.evaluation.overlap import (
    Overlap,
    answers_in,
    coverage_record,
    masked_answers,
    overlap,
    overlap_record,
)
from maskwise.evaluation.scoring import HeldOut, fixed_maskers

__all__ = [
    "Data",
    "EvaluationSettings",
    "HeldOut",
    "Overlap",
    "answers_in",
    "coverage_record",
    "evaluate",
    "evaluate_checkpoint",
    "fixed_maskers",
    "load_sets",
    "masked_answers",
    "overlap",
    "overlap_record",
]
