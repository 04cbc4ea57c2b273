"""Annotate one shard (a group of documents), and return the bytes of one file for each annotator.

To bound memory, annotators get long documents in parts of at most `PART_CHARACTERS` characters, cut
at line breaks or spaces. Annotators with ``whole_texts`` get whole documents. If an annotator fails
on a text, the text gets no spans from this annotator and is counted as a failure. The run ends if
an annotator fails on all texts of a shard, or if a file, the network or memory is the cause.

`Live` annotates the texts of a stream, without a store on disk.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from maskwise.annotate.registry import annotator
from maskwise.annotate.store import to_parquet
from maskwise.annotate.tagger import cut_text
from maskwise.errors import MaskwiseError, located
from maskwise.segments import offsets
from maskwise.text.documents import Document
from maskwise.text.layers import (
    Annotator,
    CharSpans,
    Fitted,
    Found,
    Layer,
    Layers,
    joined_spans,
    no_spans,
    spans_found,
)

PART_CHARACTERS = 100_000
BORDERS = ("\n", " ")
SURE_FAILURES = 8
"""If an annotator fails on all texts of a shard, the run ends only if the shard has at least this
many texts."""


class ShardTask(NamedTuple):
    """A shard to annotate: its index in the corpus, its documents, and the annotators to run."""

    number: int
    documents: list[Document]
    annotators: tuple[str, ...]

    def __str__(self) -> str:
        first = self.documents[0].name
        last = self.documents[-1].name
        return f"shard {self.number} (documents {first!r} to {last!r})"


# Users' functions are allowed here, because run.py has already checked that the user named them.
# Each process builds an annotator only once, because an annotator may load a model.
_annotator = cache(partial(annotator, functions=True))


def forget() -> None:
    """Clear the cache of annotators, because a file that an annotator reads may have changed."""
    _annotator.cache_clear()


def annotate_shard(task: ShardTask) -> list[bytes]:
    """Annotate a shard, and return the bytes of one file for each annotator.

    Raises:
        MaskwiseError: spans do not fit the text, or an annotator fails on all texts.
    """
    texts = [document.text for document in task.documents]
    files = []
    for spec in task.annotators:
        maker = _annotator(spec)
        failures = Counter[str]()
        spans = spans_of(maker, texts, failures)
        files.append(to_parquet(task.documents, spans, maker.layers, failures))
    return files


class Live:
    """Annotate any texts with several annotators, without a store.

    Only ``specs`` is pickled. Each process builds the annotators itself, once.

    Args:
        specs: the annotators, as strings such as ``pos(model="en_core_web_sm")``.

    Raises:
        MaskwiseError: an annotator is unknown, or must read the whole corpus first.

    >>> live = Live(["words"])
    >>> live.annotate(["Owls fly."])[0]["words"].start.tolist()
    [0, 5, 8]
    """

    def __init__(self, specs: Sequence[str]):
        self.specs = tuple(specs)
        for spec, maker in zip(self.specs, self._makers, strict=True):
            require_live(spec, maker)

    def __getstate__(self) -> dict[str, Any]:
        return {"specs": self.specs}

    @cached_property
    def _makers(self) -> list[Annotator]:
        return list(map(annotator, self.specs))

    @property
    def layers(self) -> Layers:
        """The layers of all annotators, keyed by name."""
        layers: dict[str, Layer] = {}
        for maker in self._makers:
            layers |= maker.layers
        return layers

    def annotate(self, texts: list[str]) -> list[Found]:
        """Return the spans of each text, keyed by layer.

        If an annotator fails on a text, its layers have no spans in this text.

        Raises:
            MaskwiseError: an annotator fails on all texts.
        """
        spans: list[Found] = [{} for _ in texts]
        for maker in self._makers:
            found = spans_of(maker, texts, Counter())
            for all_layers, new_layers in zip(spans, found, strict=True):
                all_layers |= new_layers
        return spans


def require_live(spec: str, maker: Annotator) -> None:
    """Check that an annotator can annotate a stream.

    Raises:
        MaskwiseError: the annotator must be fitted to the whole corpus first.
    """
    if not isinstance(maker, Fitted) or maker.fitted:
        return
    option = "table"
    if maker.name == "phrases":
        option = "vocabulary"
    raise MaskwiseError(
        f"the annotator {spec} must read the whole corpus first, but the corpus is a stream",
        do=f"count in a part of the corpus (maskwise annotate PART --with {maker.name} --out DIR) "
        f'and name the result: {maker.name}({option}="DIR/fitted/{maker.name}-…"); or leave out '
        f"corpus.stream",
    )


# Annotating texts
# -------------------------------------------------------------------------------------------


def spans_of(
    maker: Annotator,
    texts: Sequence[str],
    failures: Counter[str],
) -> list[Found]:
    """Return the spans of each text, keyed by layer.

    Args:
        failures: a counter of failed texts, keyed by error. New failures are added.

    Raises:
        MaskwiseError: spans do not fit the text, or the annotator fails on all texts.
    """
    try:
        return _annotate(maker, texts)
    except MaskwiseError:
        raise
    except Exception:
        # One bad text must not stop the run, so the texts are annotated one by one.
        found = []
        for text in texts:
            found += _try_alone(maker, text, failures)
    if failures.total() == len(texts) >= SURE_FAILURES:
        raise MaskwiseError(
            f"{maker.name} failed on all {len(texts)} texts of a shard",
            got=next(iter(failures)),
            do="fix the annotator and run the same command again; finished files are kept",
        )
    return found


def _try_alone(maker: Annotator, text: str, failures: Counter[str]) -> list[Found]:
    """Annotate one text. If the annotator fails, count the failure and return no spans."""
    try:
        return _annotate(maker, [text])
    except MaskwiseError:
        raise
    except Exception as error:
        # Without folders, the files of a shard are equal on all machines.
        line = located(error, folders=False)
        # A text does not cause such an error. Therefore the shard must not be stored as finished.
        if isinstance(error, OSError | MemoryError):
            raise MaskwiseError(
                f"the annotator {maker.name} failed",
                got=line,
                do="run the same command again, which resumes",
            ) from error
        failures[line] += 1
        return [no_spans(maker.layers)]


def _annotate(maker: Annotator, texts: Sequence[str]) -> list[Found]:
    """Annotate texts in parts, check the spans, and join the spans of all parts of a text."""
    most = PART_CHARACTERS
    # Annotators need not have ``whole_texts``, because the protocol `Annotator` does not have it.
    if hasattr(maker, "whole_texts") and maker.whole_texts:
        most = sys.maxsize
    parts = []
    counts = []
    for text in texts:
        cuts = list(cut_text(text, 0, len(text), most=most, borders=BORDERS))
        parts += [text[start:end] for start, end in cuts]
        counts.append(len(cuts))
    found = spans_found(maker, parts)
    joined = []
    end = 0
    for count in counts:
        own = slice(end, end + count)
        end = own.stop
        begins = offsets(np.array(list(map(len, parts[own]))))
        whole = {}
        for name in maker.layers:
            spans = [layers[name] for layers in found[own]]
            starts, ends, values = joined_spans(spans, begins)
            whole[name] = CharSpans(starts.astype(np.int32), ends.astype(np.int32), values)
        joined.append(whole)
    return joined
