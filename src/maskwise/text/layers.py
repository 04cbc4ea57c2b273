"""What an annotator is: texts in, spans of characters out, and a version that names all it depends on.

Everything that is known about a text (parts of speech, names, phrases, how informative a word is) comes as
layers over its *characters*; only align.py turns them into layers over tokens, the same way for every
tokenizer. So an annotator never sees a tokenizer, is run once per corpus, and its output is stored under
the hash of the text and its ``version``.

Workers rebuild an annotator from a plain string such as ``pos(model="en_core_web_sm")`` (registry.py has the
table of names): nothing is pickled.

Some need to see the whole corpus first (phrases, frequency, …): they are `Fitted`. ``fit`` saves what it
learnt in a folder and returns the string of the annotator that reads it, and that one annotates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from maskwise.errors import MaskwiseError

Kind = Literal["categorical", "spans", "weight"]


@dataclass(frozen=True)
class Layer:
    """What a layer says.

    - ``categorical``: one of ``labels`` per word, as a part of speech. Values are int16 codes.
    - ``spans``: pieces of text that belong together, as a name; with ``labels`` each has a code, else no value.
    - ``weight``: a float32 per word or span.

    Code 0 is "none" everywhere; code i + 1 is ``labels[i]``.
    """

    kind: Kind
    labels: tuple[str, ...] = ()

    @property
    def dtype(self) -> type[np.generic] | None:
        """Of the values; None for a layer that has none."""
        if self.kind == "weight":
            return np.float32
        return np.int16 if self.kind == "categorical" or self.labels else None


class CharSpans(NamedTuple):
    """S spans over one text: sorted, without overlap, none empty; by characters of the original text."""

    start: NDArray[np.int32]  # (S,)
    end: NDArray[np.int32]  # (S,), exclusive
    value: NDArray[Any] | None = None  # (S,) int16 codes or float32; None where the layer has no values

    @classmethod
    def of(cls, spans: Iterable[Sequence[Any]], layer: Layer) -> CharSpans:
        """From (start, end) or (start, end, value) in any order; a value is a label's code or a weight."""
        found = sorted(spans, key=lambda span: span[0])
        start = np.array([span[0] for span in found], dtype=np.int32)
        end = np.array([span[1] for span in found], dtype=np.int32)
        if layer.dtype is None:
            return cls(start, end)
        return cls(start, end, np.array([span[2] for span in found], dtype=layer.dtype))


class Annotator(Protocol):
    """Makes one or more layers. Its output for a text depends on that text alone, never on its neighbours."""

    @property
    def name(self) -> str:
        """Under which it stands in the table, such as "pos"."""
        ...

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Name → layer, under the names that policies read: "pos", "salient", "phrase", "sentence", …"""
        ...

    @property
    def version(self) -> str:
        """Hash (`digest`) of everything that its output depends on: settings, rules, weights, vocabulary."""
        ...

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """For each text its spans by layer. An empty text, and one that is all noise, is no error.

        A long text comes in parts, unless the class says ``whole_texts = True``: it looks texts up."""
        ...


@runtime_checkable
class Fitted(Annotator, Protocol):
    """An annotator that counts over the whole corpus before it can annotate.

    If the corpus has nothing for it, it may say so in a line under ``notice`` (None: nothing to say), and give
    empty layers; or refuse in `fit`, which ends the run.
    """

    @property
    def fitted(self) -> bool:
        """Whether it has what it needs, as it was built from what a fit had saved. If not, its ``version``
        covers its settings, and `annotate` is not to be called."""
        ...

    def fit(self, texts: Iterable[str], folder: Path) -> str:
        """Read all texts once (in bounded memory), save what was learnt into the empty ``folder``.

        Returns:
            The string of the annotator that reads the folder, as ``phrases(vocabulary="/out/fitted/phrases")``.
            That one is fitted, and its ``version`` is the hash of the *contents* of the folder, not its path.
        """
        ...


def digest(*parts: object) -> str:
    """16 hex digits over the parts: bytes as they are, paths by their content, else by ``str``."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        else:
            content = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def check_spans(spans: CharSpans, layer: Layer, size: int, *, name: str = "layer") -> None:
    """Refuse what cannot be laid on a text of ``size`` characters.

    Raises:
        MaskwiseError: spans out of order, overlapping, empty or outside the text; values of another number or
            type than the layer has, or codes without a label.
    """
    start, end, value = spans
    ordered = (start < end).all() and (start[1:] >= end[:-1]).all()
    if len(start) != len(end) or (len(start) and not (ordered and start[0] >= 0 and end[-1] <= size)):
        raise MaskwiseError(
            f"{name}: spans must be sorted, not overlap and lie in the text of {size} characters"
        )
    if (value is None) != (layer.dtype is None) or (value is not None and len(value) != len(start)):
        raise MaskwiseError(
            f"{name}: a {layer.kind} layer needs one value per span", got=f"{len(start)} spans"
        )
    if value is not None and (
        value.dtype != layer.dtype or (layer.kind == "weight" and not np.isfinite(value).all())
    ):
        raise MaskwiseError(f"{name}: values must be finite and {np.dtype(layer.dtype)}", got=value.dtype)
    if value is not None and layer.kind != "weight" and len(value):
        low, high = int(value.min()), int(value.max())
        if low < 0 or high > len(layer.labels):
            raise MaskwiseError(
                f"{name}: a code without a label", got=f"{low}…{high}", allowed=f"0…{len(layer.labels)}"
            )
