"""Layers over the text: parts of speech, salient spans, phrases and weights, as spans of
characters.

They are made once for each corpus and laid on the tokens of any tokenizer (``text.layers``). May
import ``text`` and what stands below it."""
