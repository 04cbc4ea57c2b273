"""Layers of texts: parts of speech, salient spans, phrases and weights, as spans of characters.

Layers are made once for each corpus and aligned with the tokens of any tokenizer (``text.layers``).
May import from ``text``, ``models`` and the layers below them.
"""
