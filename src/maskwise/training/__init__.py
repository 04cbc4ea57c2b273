"""The training loop, the order of the data, and checkpoints. Start reading at ``loop``, whose
function ``train`` both pre-trains and fine-tunes.

May import from ``objectives``, ``masking`` and the layers below them; depends on corpora only
through the protocol ``Rows``.
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
