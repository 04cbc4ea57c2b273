"""The work on one shard: texts and strings in, the bytes of files out, wherever it is done.

Long documents go to annotators in parts of at most `PART_CHARACTERS`, cut at line breaks or blanks: a 10 MB
text takes no more memory than ten documents. Only those that look texts up (``whole_texts``) get them whole. A
text that an annotator chokes on gets no spans, and is counted; where it chokes on all, or a file, the network or
the memory fails, the run ends.

Cost: a process loads an annotator once; `maskwise bench annotate` says what comes on top of annotating.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from maskwise.annotate.registry import annotator
from maskwise.annotate.store import to_parquet
from maskwise.annotate.summary import shard_facts
from maskwise.errors import MaskwiseError
from maskwise.text.documents import Document
from maskwise.text.layers import Annotator, CharSpans, check_spans

PART_CHARACTERS = 100_000
MANY = 8
"""Texts of a shard that all fail: it is not the texts."""


class Task(NamedTuple):
    """A shard, its place in the corpus, and the annotators (as strings) whose layers it lacks."""

    number: int
    documents: list[tuple[str, str]]
    annotators: tuple[str, ...]


def annotate_shard(task: Task) -> list[bytes]:
    """One file for each annotator.

    Raises:
        MaskwiseError: an annotator whose spans do not fit the text.
    """
    shard = [Document(*document) for document in task.documents]
    whole_cuts = [[(0, len(document.text))] for document in shard]
    part_cuts = [_parts(document.text) for document in shard]
    files = []
    for spec in task.annotators:
        made = _annotator(spec)
        cuts = whole_cuts if getattr(made, "whole_texts", False) else part_cuts
        parts = [document.text[start:end] for document, some in zip(shard, cuts) for start, end in some]
        failures: dict[str, int] = {}
        found = _annotate(made, parts, failures)
        for text, spans in zip(parts, found, strict=True):
            for name, layer in made.layers.items():
                check_spans(spans[name], layer, len(text), name=f"{spec}: {name} of {text[:40]!r}…")
        facts = shard_facts(parts, found, made.layers) | {"documents": len(shard), "failures": failures}
        rest = iter(found)
        whole = [_join([next(rest) for _ in some], some, made) for some in cuts]
        files.append(to_parquet(shard, whole, made.layers, facts))
    return files


_annotator = cache(partial(annotator, functions=True))  # who asked has said whether functions may run


def forget() -> None:
    """Build annotators anew: by their strings alone it cannot be seen that a file they read is another one."""
    _annotator.cache_clear()


def _annotate(made: Annotator, texts: list[str], failures: dict[str, int]) -> list[dict[str, CharSpans]]:
    """Spans of every text; texts that fail are counted by their error."""
    try:
        return made.annotate(texts)
    except MaskwiseError:
        raise
    except Exception:  # a library's own: one text must not end the work on a million others
        found = [_one(made, text, failures) for text in texts]
        if sum(failures.values()) == len(texts) >= MANY:
            what = f"{made.name} failed on all {len(texts)} texts of a shard"
            do = "mend it; what was finished is kept"
            raise MaskwiseError(what, got=next(iter(failures)), do=do) from None
        return found


def _one(made: Annotator, text: str, failures: dict[str, int]) -> dict[str, CharSpans]:
    try:
        return made.annotate([text])[0]
    except MaskwiseError:
        raise
    except (OSError, MemoryError) as error:  # not the text's: it would be kept as done
        line, do = f"{type(error).__name__}: {error}", "the same command goes on from here"
        raise MaskwiseError(f"{made.name} failed", got=line, do=do) from error
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        failures[line] = failures.get(line, 0) + 1
        return {name: CharSpans.of([], layer) for name, layer in made.layers.items()}


def _parts(text: str) -> list[tuple[int, int]]:
    """Where to cut a text: behind the last line break, else blank, of each stretch; else anywhere."""
    cuts, start = [], 0
    while len(text) - start > PART_CHARACTERS:
        end = start + PART_CHARACTERS
        for mark in ("\n", " "):
            at = text.rfind(mark, start + PART_CHARACTERS // 2, end)
            if at >= 0:
                end = at + 1
                break
        cuts.append((start, end))
        start = end
    return [*cuts, (start, len(text))]


def _join(
    parts: Sequence[dict[str, CharSpans]], cuts: Sequence[tuple[int, int]], made: Annotator
) -> dict[str, CharSpans]:
    if len(parts) == 1:
        return parts[0]
    whole = {}
    for name in made.layers:
        sides = [[getattr(part[name], side) for part in parts] for side in CharSpans._fields]
        start, end = (
            np.concatenate([side + np.int32(cut[0]) for side, cut in zip(some, cuts)]) for some in sides[:2]
        )
        whole[name] = CharSpans(start, end, None if sides[2][0] is None else np.concatenate(sides[2]))
    return whole
