"""Learn masking policies from a task: from its answers (supervised) or its loss (meta).

A learned policy is a model that scores tokens or spans. ``relaxation`` converts scores to
differentiable masks, ``gradients`` differentiates through steps of pre-training, and ``meta`` is
the outer loop. Masking does not run the model, but reads the scores that ``annotator`` wrote. This
package may import ``training``, ``tasks`` and the layers below them.
"""
