"""Policies that are learned from a task: from its answers (supervised) or its loss (meta).

A learned policy is a model that scores tokens. ``relaxation`` makes masks of scores that gradients
can pass, ``gradients`` follows them through steps of pre-training, and ``meta`` is the outer loop.
Imports ``training``, ``tasks`` and what they build on; masking only reads the layer of scores that
a policy has made.
"""
