"""The training loop, the order of the data, and checkpoints.

Start reading at ``loop``: its function ``train`` is used for pre-training and for fine-tuning. This
package may import from ``objectives``, ``masking`` and the layers below ``masking``. It reads
corpora only through the protocol ``Rows``.
"""

from maskwise.draws import permutation
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
