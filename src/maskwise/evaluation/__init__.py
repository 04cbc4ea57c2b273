"""Evaluate checkpoints without fine-tuning.

Held-out loss on fixed masks, pseudo-perplexity, the masked-diffusion bound, cloze facts and minimal
pairs are each a `Measure`. ``overlap`` finds test items in a corpus, and ``copies`` near copies
of held-out documents. This package may import ``training`` and the layers below it.
"""

from maskwise.base.plugins import on_first_use

__getattr__ = on_first_use(
    __name__,
    {
        "EvaluationSettings": "settings",
        "TokenisedText": "evaluate",
        "evaluate_checkpoint": "evaluate",
        "load_measures": "evaluate",
        "Measure": "measure",
        "overlap_record": "measures.overlap",
        "HeldOut": "scoring",
        "fixed_maskers": "scoring",
    },
)
