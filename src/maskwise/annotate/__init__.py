"""Layers of texts: parts of speech, salient spans, phrases and weights, as spans of characters.

They are made once for each corpus and aligned with the tokens of any tokenizer (``text.layers``).
Imports ``text``, ``models`` and what they build on.
"""
