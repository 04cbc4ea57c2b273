"""What annotators found, for people: counts, the commonest spans, and texts in colours; on a terminal or as one
HTML page that needs no network. Texts are escaped, and cannot steer the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from maskwise.annotate.store import Store
from maskwise.errors import MaskwiseError
from maskwise.text.documents import Document
from maskwise.text.layers import CharSpans, Layer

EXAMPLES, EXAMPLE_CHARACTERS = 3, 600
PALETTE = (
    "#e69f00", "#56b4e9", "#7bd3b8", "#f0e442", "#a9c4ee", "#f2a37a", "#dba4c6", "#cccccc", "#b5a6e0",
    "#9fd694", "#e8c4a0", "#8fd0d6", "#f3b6b6", "#c9d36a", "#d0b38a", "#a8a8f0", "#e0e0a8",
)  # fmt: skip
"""Of labels, in their order; black text is legible on all."""
PLAIN = ("words", "sentence")
"""Layers that cover everything, and are not drawn."""


class Piece(NamedTuple):
    """A stretch of a text: what it is called, and its colour ("" for none)."""

    text: str
    label: str = ""
    colour: str = ""


class Example(NamedTuple):
    """One text under one layer."""

    id: str
    layer: str
    kind: str
    pieces: list[Piece]


def examples(store: Store, documents: Iterable[Document]) -> list[Example]:
    """The beginnings of the first documents, under every layer that does not cover everything."""
    some = [*islice(documents, EXAMPLES)]
    found = store.annotate([document.text for document in some])
    return [
        Example(document.id, name, layer.kind, _pieces(document.text, spans[name], layer))
        for document, spans in zip(some, found)
        for name, layer in store.layers.items()
        if name not in PLAIN
    ]


def _pieces(text: str, spans: CharSpans, layer: Layer) -> list[Piece]:
    pieces, end = [], 0
    size = min(len(text), EXAMPLE_CHARACTERS)
    values = () if spans.value is None else spans.value.tolist()
    strongest = max(values, default=1.0)
    for number, (start, stop) in enumerate(zip(spans.start.tolist(), spans.end.tolist())):
        if stop > size:
            break
        pieces.append(Piece(text[end:start]))
        code = values[number] if values else 0
        if layer.kind == "weight":
            share = max(0.0, code) / (strongest or 1.0)
            pieces.append(Piece(text[start:stop], f"{code:.3g}", _shade(share)))
        elif spans.value is None:
            pieces.append(Piece(text[start:stop], "", PALETTE[number % 2]))
        elif code:
            label = layer.labels[code - 1]
            pieces.append(Piece(text[start:stop], label, PALETTE[(code - 1) % len(PALETTE)]))
        else:
            pieces.append(Piece(text[start:stop]))
        end = stop
    tail = text[end:size] + ("…" if size < len(text) else "")
    return [piece for piece in [*pieces, Piece(tail)] if piece.text]


def _shade(share: float) -> str:
    """From white to orange."""
    red, green, blue = (round(255 - share * (255 - full)) for full in (0xE6, 0x9F, 0x00))
    return f"#{red:02x}{green:02x}{blue:02x}"


def render_terminal(
    summary: Mapping[str, Any], shown: Iterable[Example], *, colours: bool = True
) -> RenderableType:
    """Counts per layer, the commonest, and the first document (spans in brackets where there are no colours)."""
    parts: list[RenderableType] = []
    for _, name, layer in _layers(summary):
        parts.append(Text(_headline(name, layer), style="bold"))
        if rows := [*_rows(layer)]:
            table = Table("", "number", "share", "commonest", box=None, padding=(0, 2, 0, 0))
            for label, count, share, top in rows:
                table.add_row(Text(label), count, share, Text(visible(", ".join(top[:8]))))
            parts.append(Padding(table, (0, 0, 0, 2)))
        parts.append(Text())
    shown = [*shown]
    for example in shown:
        if example.id != shown[0].id:
            break
        line = Text()
        for piece in example.pieces:
            text, label = visible(piece.text), piece.label
            if colours and piece.colour:
                line.append(text, style=f"#000000 on {piece.colour}")
                label = "" if example.kind == "weight" else label
            else:
                line.append(f"[{text}]" if piece.colour and example.kind == "spans" else text)
            if label:
                line.append(f"/{label}", style="dim")
        parts += [Text(f"{example.layer} in {example.id}", style="bold"), Padding(line, (0, 0, 1, 2))]
    return Group(*parts)


def render_html(summary: Mapping[str, Any], shown: Iterable[Example], path: Path) -> None:
    """One self-contained page.

    Raises:
        MaskwiseError: a path that cannot be written.
    """
    layers = [
        {"annotator": spec, "headline": _headline(name, layer), "rows": [*_rows(layer)]}
        for spec, name, layer in _layers(summary)
    ]
    environment = Environment(loader=PackageLoader("maskwise", "report"), autoescape=True)
    page = environment.get_template("layers.html.j2").render(summary=summary, layers=layers, shown=[*shown])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise MaskwiseError(f"cannot write {path}", got=error.strerror) from None


def _layers(summary: Mapping[str, Any]) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    for spec, found in summary["annotators"].items():
        for name, layer in found["layers"].items():
            yield spec, name, layer


def _headline(name: str, layer: Mapping[str, Any]) -> str:
    line = f"{name}: {layer['spans']:,} on {layer['share_of_words']:.1%} of the words"
    if "weight" not in layer:
        return line
    weight = layer["weight"]
    return f"{line}; weight {weight['least']:.3g} to {weight['greatest']:.3g}, mean {weight['mean']:.3g}"


def _rows(layer: Mapping[str, Any]) -> Iterable[tuple[str, str, str, list[str]]]:
    """(label, number, share, the commonest texts); of phrases also the commonest of three words and more."""
    for label, count in layer.get("labels", {}).items():
        top = [(" ".join(text.split()), f"{times:,}") for text, times in layer["top"][label]]
        share = f"{count / max(1, layer['spans']):.1%}"
        yield label, f"{count:,}", share, [" ".join(pair) for pair in top]
        long = [" ".join(pair) for pair in top if pair[0].count(" ") > 1]
        if layer["kind"] == "spans" and long:
            yield "of 3 words or more", "", "", long


def visible(text: str) -> str:
    """Without control characters."""
    return "".join(char if char.isprintable() or char in "\n\t" else "·" for char in text)
