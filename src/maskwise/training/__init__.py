"""The training loop, the order of the data, and checkpoints.

Start reading at ``loop``: its function ``train`` is used for pre-training and for fine-tuning. This
package may import from ``objectives``, ``masking`` and the layers below ``masking``. It reads
corpora only through the protocol ``Rows``.
"""

from maskwise.base.plugins import on_first_use

__getattr__ = on_first_use(
    __name__,
    {
        "MaskedSource": "data",
        "Source": "data",
        "Step": "data",
        "log_frequencies": "data",
        "look_ahead": "data",
        "leave": "engine",
        "train": "loop",
        "TrainingSettings": "settings",
    },
)
