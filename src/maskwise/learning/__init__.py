"""Policies that are learned from a task: by its answers (supervised), or by what masking does to
its loss (meta).

A learned policy is a model that scores tokens. ``relaxation`` makes masks of scores that let
gradients through, ``gradients`` follows them through steps of pre-training, and ``meta`` is the
outer loop. Imports ``training``, ``tasks`` and what stands below them; masking only reads the layer
of scores that a policy has made.
"""
