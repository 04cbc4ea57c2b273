"""Mask batches of tokens for masked language modelling. ``Masker`` is the main class.

Suggested reading order: the top of ``masker`` (terms), ``batch`` (input and output), ``units``,
``select`` (which units are masked), the rest of ``masker``, then any file of ``policies/`` and
``corruptions/``. ``gather`` reads rows. Masking runs in numpy. It imports only small modules of the
package, such as ``errors`` and ``keys``.
"""

from maskwise.masking import schedules
from maskwise.masking.batch import IGNORE, AnnotatedBatch, MaskedBatch
from maskwise.masking.collator import MaskingCollator, StepBatchSampler, SteppedDataset
from maskwise.masking.corruptions import CORRUPTIONS
from maskwise.masking.diffusion import Noising, corrupt
from maskwise.masking.gather import Pieces, Rows, gather
from maskwise.masking.masker import Masker
from maskwise.masking.policies import POLICIES, Policy, UnitKind
from maskwise.masking.schedules import SCHEDULES
from maskwise.masking.vocabulary import Vocabulary

__all__ = [
    "CORRUPTIONS",
    "IGNORE",
    "POLICIES",
    "SCHEDULES",
    "AnnotatedBatch",
    "MaskedBatch",
    "Masker",
    "MaskingCollator",
    "Noising",
    "Pieces",
    "Policy",
    "Rows",
    "StepBatchSampler",
    "SteppedDataset",
    "UnitKind",
    "Vocabulary",
    "corrupt",
    "gather",
    "schedules",
]
