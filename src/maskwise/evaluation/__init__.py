"""Evaluate checkpoints without fine-tuning.

Held-out loss on fixed masks, pseudo-perplexity, the masked-diffusion bound, cloze facts and minimal
pairs are each a `Measure`. ``overlap`` finds test items in a corpus, and ``copies`` near copies
of held-out documents. This package may import ``training`` and the layers below it.
"""

from maskwise.evaluation.evaluate import (
    EvaluationSettings,
    TokenisedText,
    evaluate,
    evaluate_checkpoint,
    load_measures,
)
from maskwise.evaluation.measure import Measure
from maskwise.evaluation.overlap import overlap_record
from maskwise.evaluation.scoring import HeldOut, fixed_maskers

__all__ = [
    "EvaluationSettings",
    "HeldOut",
    "Measure",
    "TokenisedText",
    "evaluate",
    "evaluate_checkpoint",
    "fixed_maskers",
    "load_measures",
    "overlap_record",
]
