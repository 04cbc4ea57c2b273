"""Annotate texts with parts of speech, salient spans, phrases and word weights.

Such an annotation is called a layer. Layers are computed once for each corpus. They store character
offsets and can therefore be aligned with any tokenizer (``text.layers``). This package may import
``text``, ``models`` and all packages below these two.
"""

from maskwise.annotate.registry import register

__all__ = ["register"]
