"""Mask batches of tokens for masked language modelling. ``Masker`` is the main class.

Suggested reading order: the top of ``masker`` (terms), ``line`` (rows as one flat array),
``units``, ``select`` (which units are masked), ``batch`` (the output), the rest of ``masker``, then
any file of ``policies/`` and ``corruptions/``. ``gather`` reads a user's rows, and ``contract``
checks policies and corruptions of other packages. Masking runs in numpy. It imports only small
modules of the package, such as ``errors`` and ``draws``.
"""

from maskwise.masking import schedules
from maskwise.masking.batch import IGNORE, MaskedBatch
from maskwise.masking.collator import MaskingCollator, StepBatchSampler, SteppedDataset
from maskwise.masking.corruptions import CORRUPTIONS
from maskwise.masking.diffusion import Noising, corrupt
from maskwise.masking.gather import UserRows, gather
from maskwise.masking.line import Line
from maskwise.masking.masker import Masker
from maskwise.masking.policies import POLICIES, Policy, UnitKind
from maskwise.masking.schedules import SCHEDULES
from maskwise.masking.vocabulary import Vocabulary

__all__ = [
    "CORRUPTIONS",
    "IGNORE",
    "POLICIES",
    "SCHEDULES",
    "Line",
    "MaskedBatch",
    "Masker",
    "MaskingCollator",
    "Noising",
    "Policy",
    "StepBatchSampler",
    "SteppedDataset",
    "UnitKind",
    "UserRows",
    "Vocabulary",
    "corrupt",
    "gather",
    "schedules",
]
