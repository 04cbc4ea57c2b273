"""Annotate texts with layers: parts of speech, salient spans, phrases and word weights.

Layers are computed once for each corpus, and can be aligned with any tokenizer (``text.layers``).
This package may import ``text``, ``models`` and all packages below these two.
"""
