"""Policies that are learned from a task: from its answers (supervised) or its loss (meta).

A learned policy is a model that scores tokens. ``relaxation`` turns scores into masks that
gradients can pass through, ``gradients`` computes the gradient through steps of pre-training, and
``meta`` is the outer loop. May import from ``training``, ``tasks`` and the layers below them.
Masking only reads the layer of scores that a policy has written.
"""
