"""The table of annotators, and one made from a string. A new annotator adds its line here.

Heavy libraries (spaCy, torch) are imported when they are first used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from maskwise.annotate.difference import Difference
from maskwise.annotate.given import Function, gold, prompt, sentences, spans, words
from maskwise.annotate.phrases import Phrases
from maskwise.annotate.store import Store
from maskwise.annotate.tagger import pos, salient
from maskwise.annotate.weights import Frequency, Informativeness
from maskwise.errors import MaskwiseError
from maskwise.specs import Call, build
from maskwise.text.layers import Annotator
from maskwise.text.worlds import WORLDS


def learned(folder: str = "", *, layer: str = "learned", spans: int = 5) -> Annotator:
    """Annotate the layers of a learned policy; see ``maskwise.learning.annotator.Learned``."""
    module = import_module("maskwise.learning.annotator")
    made: Annotator = module.Learned(folder, layer=layer, spans=spans)
    return made


ANNOTATORS: dict[str, Callable[..., Annotator]] = {
    "words": words,
    "sentences": sentences,
    "prompt": prompt,
    "pos": pos,
    "salient": salient,
    "phrases": Phrases,
    "frequency": Frequency,
    "informativeness": Informativeness,
    "difference": Difference,
    "learned": learned,
    "gold": gold,
    "spans": spans,
    "stored": Store,
    **WORLDS,
}


def annotator(spec: str | Call, *, functions: bool = False) -> Annotator:
    """Build an annotator from a string such as ``pos(model="en_core_web_sm")``.

    >>> spans = annotator("words").annotate(["Owls fly."])[0]["words"]
    >>> spans.start.tolist(), spans.end.tolist()
    ([0, 5, 8], [4, 8, 9])

    Args:
        spec: a name of `ANNOTATORS`, with arguments.
        functions: allow ``function("module:name")`` too, which runs the user's code.

    Raises:
        MaskwiseError: an unknown name, or arguments that it does not take.
    """
    table = dict(ANNOTATORS)
    if functions:
        table["function"] = Function
    built: Annotator = build("annotator", spec, table)
    return built


def check_names(annotators: Sequence[Annotator]) -> None:
    """Refuse two annotators that make the same layer."""
    owner: dict[str, str] = {}
    for each in annotators:
        for name in each.layers:
            if name in owner:
                got = f"{owner[name]} and {each.name}"
                do = "ask for one of them"
                raise MaskwiseError(f"two annotators make the layer {name!r}", got=got, do=do)
            owner[name] = each.name
