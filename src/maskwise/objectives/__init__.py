"""Masked batch in, loss out. One file an objective, with its head; a downstream task is an objective too.

Imports ``masking`` and below.
"""

from maskwise.objectives.base import Objective, Outcome
from maskwise.objectives.classification import Classification
from maskwise.objectives.mlm import HEADS, MaskedLanguageModelling

OBJECTIVES = {"mlm": MaskedLanguageModelling}

__all__ = ["HEADS", "OBJECTIVES", "Classification", "MaskedLanguageModelling", "Objective", "Outcome"]
