"""Show texts with coloured parts, and the results of annotators, on a terminal or an HTML page.

A text is a list of ``Stretch``. Texts are escaped in HTML, and control characters are not printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypedDict

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from maskwise.base.constants import shade
from maskwise.base.errors import visible
from maskwise.base.folders import write_page

if TYPE_CHECKING:
    from maskwise.annotate.kept import Store
    from maskwise.annotate.run import AnnotationSummary
    from maskwise.annotate.tally import LayerSummary
    from maskwise.text.documents import Document
    from maskwise.text.layers import CharSpans, Layer


class Stretch(NamedTuple):
    """A part of a text with a style.

    Attributes:
        text: the part of the text.
        style: a style in rich's syntax, "… FOREGROUND on BACKGROUND"; "" for unstyled text.
        note: an annotation to print after the text: "→replacement" or "/label".
        plain: the format of the text on terminals without colours, such as "[{}]".
    """

    text: str
    style: str = ""
    note: str = ""
    plain: str = "{}"

    @property
    def css(self) -> str:
        front, _, background = self.style.rpartition(" on ")
        # The colour follows attributes such as "bold".
        colour = front.split()[-1]
        return f"background: {background}; color: {colour}"


def draw(stretches: Iterable[Stretch], *, colours: bool = True) -> Text:
    """Format stretches as a line for the terminal."""
    line = Text()
    for stretch in stretches:
        # Leading white space is not coloured, because it would look like a block.
        body = stretch.text.lstrip()
        line.append(stretch.text[: len(stretch.text) - len(body)])
        body = visible(body)
        if colours:
            line.append(body, stretch.style)
        else:
            line.append(stretch.plain.format(body))
        if stretch.note:
            style = "dim"
            if stretch.note.startswith("→"):
                style = "italic #cc3f7a"
            line.append(visible(stretch.note), style=style)
    return line


EXAMPLES = 3
EXAMPLE_CHARACTERS = 600
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
"""Background colours of labels, in the order of the labels. Black text is legible on all of them.
"""
COVERING = ("words", "sentence")
"""Annotation layers that are not shown, because they cover every word."""


TableRow: TypeAlias = tuple[str, str, str, list[str]]
"""A label, the number of its spans, their share of all spans, and their most common texts."""


class LayerView(TypedDict):
    """A table about an annotation layer, with a row for each label."""

    annotator: str
    headline: str
    rows: list[TableRow]


class Example(NamedTuple):
    """The beginning of a document, with the spans of one layer."""

    document: str
    layer: str
    kind: str
    stretches: list[Stretch]


def examples(store: Store, documents: Iterable[Document]) -> list[Example]:
    """Return the first documents, each once for every layer that is not in ``COVERING``."""
    first = list(islice(documents, EXAMPLES))
    annotated = store.annotate([document.text for document in first])
    shown = []
    for document, spans in zip(first, annotated):
        for name, layer in store.layers.items():
            if name not in COVERING:
                stretches = _stretches(document.text, spans[name], layer)
                shown.append(Example(document.name, name, layer.kind, stretches))
    return shown


def _stretches(text: str, spans: CharSpans, layer: Layer) -> list[Stretch]:
    stretches = []
    end = 0
    size = min(len(text), EXAMPLE_CHARACTERS)
    values = [0] * len(spans.start)
    if spans.value is not None:
        values = spans.value.tolist()
    greatest = max(values, default=0) or 1.0
    plain = "[{}]" if layer.kind == "spans" else "{}"
    bounds = zip(spans.start.tolist(), spans.end.tolist(), values)
    for number, (start, stop, value) in enumerate(bounds):
        if stop > size:
            break
        style = ""
        label = ""
        if layer.kind == "weight":
            style = _on(shade(value / greatest))
            label = f"{value:.3g}"
        elif spans.value is None:
            # Colours alternate, so that adjacent spans can be distinguished.
            style = _on(PALETTE[number % 2])
        elif value:
            # The value 0 means that the span has no label.
            style = _on(PALETTE[(value - 1) % len(PALETTE)])
            label = layer.labels[value - 1]
        stretches.append(Stretch(text[end:start]))
        note = label and f"/{label}"
        stretches.append(Stretch(text[start:stop], style, note, plain))
        end = stop
    tail = text[end:size]
    if size < len(text):
        tail += "…"
    stretches.append(Stretch(tail))
    return [stretch for stretch in stretches if stretch.text]


def _on(colour: str) -> str:
    return f"#000000 on {colour}"


def render_layers(
    summary: AnnotationSummary, shown: Sequence[Example], *, colours: bool
) -> RenderableType:
    """Return a table for each layer (counts, most common texts), and the first document."""
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
        if example.document != shown[0].document:
            break
        stretches = example.stretches
        # The shade of a colour shows the weight, so the number is omitted.
        if colours and example.kind == "weight":
            stretches = [stretch._replace(note="") for stretch in stretches]
        parts.append(Text(f"{example.layer} in {example.document}", style="bold"))
        parts.append(Padding(draw(stretches, colours=colours), (0, 0, 1, 2)))
    return Group(*parts)


def write_layers(summary: AnnotationSummary, shown: Sequence[Example], path: Path) -> None:
    """Write the tables and all examples as an HTML page."""
    write_page(path, "layers.html.j2", summary=summary, layers=_layers(summary), shown=shown)


def _layers(summary: AnnotationSummary) -> list[LayerView]:
    """Return the table of each layer."""
    layers: list[LayerView] = []
    for annotator, entry in summary["annotators"].items():
        for name, layer in entry["layers"].items():
            headline = _headline(name, layer)
            layers.append({"annotator": annotator, "headline": headline, "rows": _rows(layer)})
    return layers


def _headline(name: str, layer: LayerSummary) -> str:
    line = f"{name}: {layer['spans']:,} on {layer['share_of_words']:.1%} of the words"
    if "weight" not in layer:
        return line
    weight = layer["weight"]
    ends = f"{weight['least']:.3g} to {weight['greatest']:.3g}"
    return f"{line}; weight {ends}, mean {weight['mean']:.3g}"


def _rows(layer: LayerSummary) -> list[TableRow]:
    """Return a row for each label. For spans, a second row lists texts of 3 or more words."""
    rows = []
    for label, count in layer.get("labels", {}).items():
        shown = []
        long = []
        for text, times in layer["top"][label]:
            # Line breaks in a text would break the row.
            words = " ".join(str(text).split())
            shown.append(f"{words} {times:,}")
            if words.count(" ") > 1:
                long.append(shown[-1])
        share = count / max(1, layer["spans"])
        rows.append((label, f"{count:,}", f"{share:.1%}", shown))
        if layer["kind"] == "spans" and long:
            rows.append(("of 3 words or more", "", "", long))
    return rows
