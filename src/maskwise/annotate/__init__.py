"""Layers over the text: words here, and whatever else is known about every token, aligned from character
offsets and never from re-tokenised text. May import errors, keys and corpus. `words` and `characters` import
errors only, for corpus uses them; so a module that imports corpus is not to be imported on this page."""

from maskwise.annotate.words import encode, word_ids

__all__ = ["encode", "word_ids"]
