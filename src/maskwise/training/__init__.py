"""The loop, data order and checkpoints. ``loop`` is the story; one function pre-trains and fine-tunes.

Imports ``objectives``, ``masking`` and below; knows corpora only by the protocol ``Blocks``.
"""

from maskwise.masking.collator import permutation
from maskwise.training.loop import Source, train
from maskwise.training.machine import leave
from maskwise.training.settings import TrainingSettings
from maskwise.training.source import MaskedSource, log_frequencies

__all__ = [
    "MaskedSource", "Source", "TrainingSettings", "leave", "log_frequencies", "permutation", "train",
]  # fmt: skip
