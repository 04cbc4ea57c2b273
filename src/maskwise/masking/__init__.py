"""The heart: policy × schedule × corruption → masked batches. Imports only ``errors``, ``specs`` and ``keys``.

Read in this order: ``annotated`` (the first noun), ``units``, ``select`` (the one routine), ``masker`` (the story),
``masked`` (the second noun); then any file of ``policies/`` and ``corruptions/``.
"""

from maskwise.masking import schedules
from maskwise.masking.annotated import AnnotatedBatch
from maskwise.masking.collator import MaskingCollator, StepBatchSampler, SteppedDataset
from maskwise.masking.corruptions import CORRUPTIONS
from maskwise.masking.masked import IGNORE, MaskedBatch
from maskwise.masking.masker import Masker
from maskwise.masking.policies import POLICIES, Policy
from maskwise.masking.schedules import SCHEDULES
from maskwise.masking.units import UnitKind
from maskwise.masking.vocabulary import Vocabulary

__all__ = [
    "CORRUPTIONS", "IGNORE", "POLICIES", "SCHEDULES", "AnnotatedBatch", "MaskedBatch", "Masker", "MaskingCollator",
    "Policy", "StepBatchSampler", "SteppedDataset", "UnitKind", "Vocabulary", "schedules",
]  # fmt: skip
