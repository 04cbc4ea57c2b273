"""The loop, data order and checkpoints. ``loop`` is the story; one function pre-trains and
fine-tunes.

Imports ``objectives``, ``masking`` and below; knows corpora only by the protocol ``Rows``.
"""

from maskwise.keys import permutation
from maskwise.training.data import MaskedSource, Source, Step, log_frequencies, look_ahead
from maskwise.training.engine import leave
from maskwise.training.loop import train
from maskwise.training.settings import TrainingSettings

__all__ = [
    "MaskedSource",
    "Source",
    "Step",
    "TrainingSettings",
    "leave",
    "log_frequencies",
    "look_ahead",
    "permutation",
    "train",
]
