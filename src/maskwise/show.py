"""Texts in colours, on a terminal or on one HTML page; and which layers annotators found in them.

A text is a list of stretches. Texts are escaped on the page, and cannot steer the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from maskwise.constants import shade
from maskwise.folders import write_page

if TYPE_CHECKING:
    from maskwise.annotate.run import Summary
    from maskwise.annotate.shard import LayerSummary
    from maskwise.annotate.store import Store
    from maskwise.text.documents import Document
    from maskwise.text.layers import CharSpans, Layer


class Stretch(NamedTuple):
    """A stretch of a text and its style.

    Attributes:
        style: as in rich, "… FOREGROUND on BACKGROUND"; "" for plain text.
        sign, note: what follows it: "→" and what is read instead, or "/" and a label.
        plain: its format without colours.
    """

    text: str
    style: str = ""
    sign: str = ""
    note: str = ""
    plain: str = "{}"

    @property
    def css(self) -> str:
        front, _, background = self.style.rpartition(" on ")
        return f"background: {background}; color: {front.split()[-1]}"


NOTE_STYLES = {"→": "italic #cc3f7a", "/": "dim", "": ""}


def draw(stretches: Iterable[Stretch], *, colours: bool = True) -> Text:
    """Format stretches as a line for the terminal."""
    line = Text()
    for stretch in stretches:
        body = stretch.text.lstrip()
        line.append(stretch.text[: len(stretch.text) - len(body)])
        body = visible(body)
        if colours:
            line.append(body, stretch.style)
        else:
            line.append(stretch.plain.format(body))
        if stretch.note:
            line.append(f"{stretch.sign}{visible(stretch.note)}", style=NOTE_STYLES[stretch.sign])
    return line


def visible(text: str) -> str:
    """Replace control characters, which could steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "·" for char in text)


EXAMPLES, EXAMPLE_CHARACTERS = 3, 600
PALETTE = (
    "#e69f00",
    "#56b4e9",
    "#7bd3b8",
    "#f0e442",
    "#a9c4ee",
    "#f2a37a",
    "#dba4c6",
    "#cccccc",
    "#b5a6e0",
    "#9fd694",
    "#e8c4a0",
    "#8fd0d6",
    "#f3b6b6",
    "#c9d36a",
    "#d0b38a",
    "#a8a8f0",
    "#e0e0a8",
)
"""Colours of labels, in their order; black text is legible on all."""
COVERING = ("words", "sentence")
"""Layers that cover every word, and are not drawn."""


class Example(NamedTuple):
    """One text under one layer."""

    id: str
    layer: str
    kind: str
    stretches: list[Stretch]


def examples(store: Store, documents: Iterable[Document]) -> list[Example]:
    """The beginnings of the first documents, under every layer that does not cover everything."""
    first = [*islice(documents, EXAMPLES)]
    return [
        Example(document.id, name, layer.kind, _stretches(document.text, spans[name], layer))
        for document, spans in zip(first, store.annotate([document.text for document in first]))
        for name, layer in store.layers.items()
        if name not in COVERING
    ]


def _stretches(text: str, spans: CharSpans, layer: Layer) -> list[Stretch]:
    stretches, end = [], 0
    size = min(len(text), EXAMPLE_CHARACTERS)
    values = [0] * len(spans.start) if spans.value is None else spans.value.tolist()
    greatest = max(values, default=0) or 1.0
    plain = "[{}]" if layer.kind == "spans" else "{}"
    bounds = zip(spans.start.tolist(), spans.end.tolist(), values)
    for number, (start, stop, value) in enumerate(bounds):
        if stop > size:
            break
        colour, label = "", ""
        if layer.kind == "weight":
            colour, label = shade(value / greatest), f"{value:.3g}"
        elif spans.value is None:
            colour = PALETTE[number % 2]
        elif value:
            colour, label = PALETTE[(value - 1) % len(PALETTE)], layer.labels[value - 1]
        style = f"#000000 on {colour}" if colour else ""
        stretches += [Stretch(text[end:start]), Stretch(text[start:stop], style, "/", label, plain)]
        end = stop
    tail = text[end:size] + ("…" if size < len(text) else "")
    return [stretch for stretch in [*stretches, Stretch(tail)] if stretch.text]


def render_layers(
    summary: Summary, shown: Sequence[Example], *, colours: bool = True
) -> RenderableType:
    """Draw counts per layer, the most common texts, and the first document."""
    parts: list[RenderableType] = []
    for layer in _layers(summary):
        parts.append(Text(layer["headline"], style="bold"))
        if layer["rows"]:
            table = Table("", "number", "share", "commonest", box=None, padding=(0, 2, 0, 0))
            for label, count, share, top in layer["rows"]:
                table.add_row(Text(label), count, share, Text(visible(", ".join(top[:8]))))
            parts.append(Padding(table, (0, 0, 0, 2)))
        parts.append(Text())
    for example in shown:
        if example.id != shown[0].id:
            break
        stretches = example.stretches
        if colours and example.kind == "weight":  # the colour is the number
            stretches = [stretch._replace(note="") for stretch in stretches]
        parts.append(Text(f"{example.layer} in {example.id}", style="bold"))
        parts.append(Padding(draw(stretches, colours=colours), (0, 0, 1, 2)))
    return Group(*parts)


def write_layers(summary: Summary, shown: Sequence[Example], path: Path) -> None:
    """Write the page of ``render_layers``; see ``write_page``."""
    write_page(path, "layers.html.j2", summary=summary, layers=_layers(summary), shown=shown)


def _layers(summary: Summary) -> list[dict[str, Any]]:
    """The annotator, headline and rows of each layer."""
    return [
        {"annotator": spec, "headline": _headline(name, layer), "rows": [*_rows(layer)]}
        for spec, entry in summary["annotators"].items()
        for name, layer in entry["layers"].items()
    ]


def _headline(name: str, layer: LayerSummary) -> str:
    line = f"{name}: {layer['spans']:,} on {layer['share_of_words']:.1%} of the words"
    if "weight" not in layer:
        return line
    least, greatest, mean = (layer["weight"][part] for part in ("least", "greatest", "mean"))
    return f"{line}; weight {least:.3g} to {greatest:.3g}, mean {mean:.3g}"


def _rows(layer: LayerSummary) -> Iterator[tuple[str, str, str, list[str]]]:
    """(label, number, share, top texts); of phrases also the top ones of three words and more."""
    for label, count in layer.get("labels", {}).items():
        tops = [(" ".join(str(text).split()), times) for text, times in layer["top"][label]]
        shown = [f"{text} {times:,}" for text, times in tops]
        yield label, f"{count:,}", f"{count / max(1, layer['spans']):.1%}", shown
        long = [line for line, (text, _) in zip(shown, tops) if text.count(" ") > 1]
        if layer["kind"] == "spans" and long:
            yield "of 3 words or more", "", "", long
