"""Learn masking policies from the answers of a task (supervised) or from its loss (meta).

A learned policy is a model that scores how much each token or span of a text should be masked.
``relaxation`` converts scores to differentiable masks. ``gradients`` differentiates through steps
of pre-training. ``supervised`` and ``meta`` have the objectives with which ``training.train``
trains a policy. During pre-training, the policy's model does not run: ``annotator`` scores the
corpus beforehand, and masking reads the stored scores. This package may import ``training``,
``tasks`` and the packages below these two.
"""

from maskwise.annotate import register
from maskwise.text.layers import Annotator


def learned(folder: str = "", *, layer: str = "learned", spans: int = 5) -> Annotator:
    """Annotate words and spans with the scores of a learned policy (``PolicyAnnotator``)."""
    # This module imports torch.
    from maskwise.learning.annotator import PolicyAnnotator

    return PolicyAnnotator(folder, layer=layer, spans=spans)


register("learned", learned)
