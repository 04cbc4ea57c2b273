"""The table of annotators, and one made from a string. A new annotator adds its line here.

Modules with a heavy library (spaCy) import it when they are first used, so this page stays light."""

from __future__ import annotations

from collections.abc import Callable

from maskwise.annotate.annotator import Annotator
from maskwise.annotate.given import Sentences, Words
from maskwise.specs import Call, build

ANNOTATORS: dict[str, Callable[..., Annotator]] = {"words": Words, "sentences": Sentences}


def annotator(spec: str | Call) -> Annotator:
    """``pos(model="en_core_web_sm")`` → the annotator.

    Raises:
        MaskwiseError: an unknown name, or arguments that it does not take.
    """
    made: Annotator = build("annotator", spec, ANNOTATORS)
    return made
