"""Layers of texts that are annotated as they are read, where nothing was stored before: the texts of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from maskwise.annotate.registry import annotator
from maskwise.annotate.shard import spans_of_texts
from maskwise.errors import MaskwiseError
from maskwise.text.layers import Annotator, CharSpans, Layer


class Live:
    """The layers of several annotators, made of any texts.

    It is sent to other processes as the names of the annotators; each process builds them once.

    Args:
        specs: names of annotators, with arguments.

    Raises:
        MaskwiseError: an unknown annotator, or one that has to read the whole corpus first.

    >>> live = Live(["words"])
    >>> live.annotate(["Owls fly."])[0]["words"].start.tolist()
    [0, 5, 8]
    """

    def __init__(self, specs: Sequence[str]):
        self.specs = tuple(specs)
        for spec, maker in zip(self.specs, self.makers):
            require_live(spec, maker)

    def __getstate__(self) -> dict[str, Any]:
        return {"specs": self.specs}

    @cached_property
    def makers(self) -> list[Annotator]:
        """The annotators."""
        return [annotator(spec) for spec in self.specs]

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Name → layer, of all annotators."""
        return {name: layer for maker in self.makers for name, layer in maker.layers.items()}

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """The spans of every text, by layer; a text on which an annotator fails has none."""
        spans: list[dict[str, CharSpans]] = [{} for _ in texts]
        for maker in self.makers:
            for mine, own in zip(spans, spans_of_texts(maker, texts)):
                mine.update(own)
        return spans


def require_live(spec: str, maker: Annotator) -> None:
    """
    Raises:
        MaskwiseError: an annotator that has to read the whole corpus first.
    """
    if not getattr(maker, "fitted", True):
        name, option = maker.name, "vocabulary" if maker.name == "phrases" else "table"
        do = f"count in a part of it (maskwise annotate PART --with {name} --out DIR) and name what was counted: "
        do += f'{name}({option}="DIR/fitted/{name}-…"); or leave out corpus.stream'
        raise MaskwiseError(f"layers of {spec} need the whole corpus, and a stream is not read beforehand", do=do)
