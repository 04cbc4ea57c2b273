"""Texts in colours: what a policy masks in them (``maskwise inspect``), and which layers annotators
found in them (``maskwise annotate``). Both are lists of stretches, drawn on a terminal or as one
HTML page that needs no network.

Texts are escaped on the page, and cannot steer the terminal.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from maskwise.annotate.given import Span, read_marks, sentence_spans, span_layer
from maskwise.annotate.registry import annotator
from maskwise.annotate.run import Summary
from maskwise.annotate.shard import LayerSummary
from maskwise.annotate.store import Store
from maskwise.constants import shade
from maskwise.errors import MaskwiseError
from maskwise.folders import write_page
from maskwise.masking import Masker, Vocabulary
from maskwise.masking.corruptions import corruption
from maskwise.masking.policies import GroupWeighted, policy
from maskwise.show import Shown, show_masks
from maskwise.specs import split_calls
from maskwise.text import load_tokenizer, read_documents, require_documents, train_tokenizer
from maskwise.text.documents import Document
from maskwise.text.layers import CharSpans, Layer, align
from maskwise.text.words import flat_offsets, number_words, place_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Stretch(NamedTuple):
    """A stretch of a text and how it is drawn.

    Attributes:
        style: as rich has it, "… FOREGROUND on BACKGROUND"; "" for plain text.
        sign, note: what stands behind it: "→" and what is read instead, or "/" and a label.
        plain: how it looks where there are no colours.
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
    """Stretches as a line for the terminal."""
    line = Text()
    for stretch in stretches:
        body = stretch.text.lstrip()
        line.append(stretch.text[: len(stretch.text) - len(body)])
        body = visible(body)
        line.append(*((body, stretch.style) if colours else (stretch.plain.format(body),)))
        if stretch.note:
            line.append(f"{stretch.sign}{visible(stretch.note)}", style=NOTE_STYLES[stretch.sign])
    return line


def visible(text: str) -> str:
    """A text without control characters: it must not steer the terminal that shows it."""
    return "".join(char if char.isprintable() or char in "\n\t" else "·" for char in text)


# Masks
# -----------------------------------------------------------------------------------------------------

STYLES = {
    "shown": "",
    "masked": "bold #000000 on #e69f00",
    "random": "bold #ffffff on #cc3f7a",
    "kept": "bold #000000 on #56b4e9",
}
BRACKETS = {"shown": "{}", "masked": "[{}]", "random": "[{}]", "kept": "[={}]"}
LEGEND = {"masked": "masked", "random": "another token", "kept": "chosen, shown unchanged"}

MAX_TEXTS = 5
TEXT_LAYERS = ("word_ids", "sentence", "frequency")
"""The layers that any text has."""
ANNOTATED = {"pos": "categorical", "salient": "spans"}
"""Layers that an annotator of the same name finds in a text without marks, and their kinds. All
others are marked.
"""
WEIGHT_LAYERS = ("weight", "informativeness", "difference")
"""Read from marks: [[word|2.5]]; what is not marked weighs 1."""


@dataclass(frozen=True)
class Inspected:
    """One text under one policy."""

    policy: str
    corruption: str
    text: str
    shown: Shown

    def as_dict(self) -> dict[str, Any]:
        shown = self.shown
        optional = {
            "source": shown.source or None,
            "target": shown.target or None,
            "written": shown.written,
            "note": self.note or None,
        }
        return {
            "policy": self.policy,
            "corruption": self.corruption,
            "text": self.text,
            "ratio": shown.ratio,
            "whole_words": shown.whole,
            "words_in_part": shown.parts,
            "pieces": [piece.as_dict() for piece in shown.pieces],
            **{name: fact for name, fact in optional.items() if fact is not None},
        }

    @property
    def note(self) -> str:
        """Why there is nothing to see, and what to do; "" where there is something."""
        if any(piece.state != "shown" for piece in self.shown.pieces):
            return ""
        return "nothing is chosen: no unit fits; a larger --ratio or a longer text would help"

    @property
    def headline(self) -> str:
        words = f"words: {self.shown.whole} whole, {self.shown.parts} in part"
        return (
            f"{100 * self.shown.ratio:.1f} % of the tokens; {words}; corruption {self.corruption}"
        )

    @property
    def stretches(self) -> list[Stretch]:
        return [
            Stretch(piece.text, STYLES[piece.state], "→", piece.shown, BRACKETS[piece.state])
            for piece in self.shown.pieces
        ]


def inspect_text(
    text: str,
    policies: str,
    settings: Mapping[str, Any],
    *,
    tokenizer: str | None = None,
    model: str | None = None,
    step: int = 0,
    total_steps: int = 1000,
) -> list[Inspected]:
    """Mask a text (or the first texts of a file) under each policy.

    Args:
        text: a text, in which spans may be marked ([[Warsaw]], [[1867|3]]), or the name of a file.
        policies: separated by commas.
        settings: the masker's; a corruption of None is one that suits the model.
        tokenizer: a folder or hub id; None: the model's, or a small one of our own.
        model: an encoder–decoder, a folder or hub id, that shall write what it reads.

    Raises:
        MaskwiseError: no text, an unknown name, a policy whose layers a plain text does not have; a
            model that does not write, or a corruption that gives it nothing to write.
    """
    network = None
    corrupted = settings.get("corruption") or "bert"
    tools: PreTrainedTokenizerBase | None = None
    if model:  # only then: models and objectives take seconds to import
        from maskwise.families import check_fit
        from maskwise.models import load_model
        from maskwise.objectives import Denoising

        network = load_model(model, kind="encoder-decoder").eval()
        tools = load_tokenizer(tokenizer or model, needs_mask=False)
        check_fit(network.config, len(tools), do="leave --tokenizer out")
        usual = "t5" if Vocabulary.of(tools).sentinels else "infill"
        corrupted = settings.get("corruption") or usual
        Denoising.check({"corruption": corrupted})
    texts = [read_marks(each) for each in _texts(text)]
    specs = split_calls(policies)
    marked = any(spans for _, spans in texts)
    given, makers = _needed_layers(specs, corrupted, marked=marked)
    if tools is None:
        tools = load_tokenizer(tokenizer, needs_mask=False) if tokenizer else _small_tokenizer()
    maskers = {
        spec: Masker(tools, policy=spec, **{**settings, "corruption": corrupted}) for spec in specs
    }
    inspected = []
    for plain, spans in texts:
        layers = text_layers(tools, plain, spans, given)
        for maker in makers:
            layers |= _annotated_layers(maker, tools, plain)
        for spec, masker in maskers.items():
            shown = show_masks(
                masker,
                tools,
                plain,
                step=step,
                total_steps=total_steps,
                layers=layers,
                model=network,
            )
            inspected.append(Inspected(spec, corrupted, plain, shown))
    return inspected


def _needed_layers(
    specs: Sequence[str], corrupted: str, *, marked: bool
) -> tuple[list[str], list[str]]:
    """The layers that the text itself must give, and the annotators that make the others.

    Raises:
        MaskwiseError: a layer that a text without marks does not have, or one of spans where groups
            are needed.
    """
    users: dict[str, str] = {}
    makers: dict[str, str] = {}
    grouped = set()
    for spec in specs:
        made = policy(spec)
        for layer in made.layers():
            users[layer] = f"policy {spec}"
        for maker in made.annotators():
            for layer in annotator(maker).layers:
                makers[layer] = maker
        if isinstance(made, GroupWeighted):
            grouped.add(made.layer)
    own_layer = getattr(corruption(corrupted), "layer", None)
    if own_layer:
        users.setdefault(own_layer, f"corruption {corrupted}")
    for layer, user in users.items():
        if not marked and layer not in (*TEXT_LAYERS, *ANNOTATED, *makers):
            do = "mark spans in it: 'born in [[Warsaw]] in [[1867]]', or with a weight: [[1867|3]]"
            raise MaskwiseError(f"{user} needs the layer {layer!r}, and this text has none", do=do)
        if layer in grouped and ANNOTATED.get(layer) == "spans":
            what = f"{user} needs a layer of groups, and {layer!r} is one of spans"
            raise MaskwiseError(what, do="take layer='pos', or the policy salient for these spans")
    given = [layer for layer in users if layer not in makers]
    return given, list(dict.fromkeys(makers.values()))


def text_layers(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span], needs: Iterable[str]
) -> dict[str, list[Any]]:
    """The layers that policies need, (L,) each: sentences, token counts in the bundled text, and
    marked spans.
    """
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    layers: dict[str, list[Any]] = {}
    for name in needs:
        if name == "sentence":
            layers[name] = span_layer(text, sentence_spans(text), offsets)
        elif name == "frequency":
            texts = _bundled_texts()
            known = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            counts = Counter(token for ids in known for token in ids)
            layers[name] = [counts[token] for token in encoded["input_ids"]]
        elif name in ANNOTATED and not spans:
            layers |= _annotated_layers(name, tokenizer, text)
        elif name in WEIGHT_LAYERS:
            # the last, at −1: of all other tokens
            weights = [*(span.weight for span in spans), 1.0]
            layers[name] = [weights[number] for number in span_layer(text, spans, offsets)]
        elif name != "word_ids":
            layers[name] = span_layer(text, spans, offsets)
    return layers


def _annotated_layers(
    spec: str, tokenizer: PreTrainedTokenizerBase, text: str
) -> dict[str, list[Any]]:
    made, encodings = annotator(spec), tokenizer([text]).encodings or []
    special = np.array(encodings[0].special_tokens_mask, dtype=bool)
    placed = place_tokens([text], *flat_offsets(encodings), special=special)
    laid = align(made.annotate([text]), made.layers, placed, number_words(placed))
    return {name: values.tolist() for name, values in laid.items()}


def _bundled_texts() -> list[str]:
    return [document.text for document in read_documents("bundled:wikipedia", limit=200)]


def _texts(text: str) -> list[str]:
    """The text itself, or the beginnings of the first texts of the file that it names."""
    named = "\n" not in text and Path(text).suffix in (".txt", ".jsonl", ".gz", ".parquet")
    if named or os.path.isfile(text):  # unlike Path.is_file, this takes any text
        documents = require_documents(read_documents(text))
        return [" ".join(document.text.split())[:600] for document in islice(documents, MAX_TEXTS)]
    if not text.strip():
        raise MaskwiseError("no text to mask", got="an empty text")
    return [text]


def _small_tokenizer() -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer of 4,096 pieces from the bundled text: half a second, no download."""
    tokenizer = train_tokenizer(_bundled_texts(), vocab_size=4096, lowercase=False)
    # What the corruptions of T5 and UL2 write.
    names = [*(f"<extra_id_{number}>" for number in range(100)), "[R]", "[S]", "[X]"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    return tokenizer


def render_masks(inspected: Iterable[Inspected], *, colours: bool = True) -> RenderableType:
    """Texts with their chosen tokens coloured (or in brackets); behind an arrow what is read
    instead.
    """
    legend = Text()
    for state, label in LEGEND.items():
        name = f" {label} " if colours else BRACKETS[state].format(label)
        legend.append(name, style=STYLES[state]).append("  ")
    parts: list[RenderableType] = [legend.append("\n")]
    for entry in inspected:
        shown = entry.shown
        parts.append(Text.assemble((entry.policy, "bold"), f"   {entry.headline}"))
        parts.append(Padding(draw(entry.stretches, colours=colours), (0, 0, 1, 2)))
        if entry.note:
            parts.append(Padding(Text(entry.note, style="dim"), (0, 0, 1, 2)))
        lines = []
        if shown.target:
            lines += [("reads", shown.source), ("writes", shown.target)]
        if shown.written is not None:
            lines.append(("model", shown.written or "(nothing)"))
        told = [Text.assemble((f"{who:8}", "dim"), visible(words)) for who, words in lines]
        parts.append(Padding(Group(*told), (0, 0, int(bool(told)), 2)))
    return Group(*parts)


def write_masks(inspected: Sequence[Inspected], path: Path) -> None:
    """The page of ``render_masks``; see ``write_page``."""
    legend = [Stretch(label, STYLES[state]) for state, label in LEGEND.items()]
    write_page(path, "masks.html.j2", inspected=inspected, legend=legend)


# Layers
# ----------------------------------------------------------------------------------------------------

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
"""Layers that cover everything, and are not drawn."""


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
    values = () if spans.value is None else spans.value.tolist()
    greatest = max(values, default=0.0) or 1.0
    for number, (start, stop) in enumerate(zip(spans.start.tolist(), spans.end.tolist())):
        if stop > size:
            break
        colour, label, value = "", "", values[number] if values else 0
        if layer.kind == "weight":
            colour, label = shade(value / greatest), f"{value:.3g}"
        elif spans.value is None:
            colour = PALETTE[number % 2]
        elif value:
            colour, label = PALETTE[(value - 1) % len(PALETTE)], layer.labels[value - 1]
        style, plain = (
            f"#000000 on {colour}" if colour else "",
            "[{}]" if layer.kind == "spans" else "{}",
        )
        stretches += [Stretch(text[end:start]), Stretch(text[start:stop], style, "/", label, plain)]
        end = stop
    tail = text[end:size] + ("…" if size < len(text) else "")
    return [stretch for stretch in [*stretches, Stretch(tail)] if stretch.text]


def render_layers(
    summary: Summary, shown: Sequence[Example], *, colours: bool = True
) -> RenderableType:
    """Counts per layer, the commonest, and the first document (spans in brackets where there are no
    colours).
    """
    parts: list[RenderableType] = []
    for _, name, layer in _layers(summary):
        parts.append(Text(_headline(name, layer), style="bold"))
        if rows := [*_rows(layer)]:
            table = Table("", "number", "share", "commonest", box=None, padding=(0, 2, 0, 0))
            for label, count, share, top in rows:
                table.add_row(Text(label), count, share, Text(visible(", ".join(top[:8]))))
            parts.append(Padding(table, (0, 0, 0, 2)))
        parts.append(Text())
    for example in shown:
        if example.id != shown[0].id:
            break
        stretches = example.stretches
        if colours and example.kind == "weight":  # the colour says it
            stretches = [stretch._replace(note="") for stretch in stretches]
        line = draw(stretches, colours=colours)
        parts += [
            Text(f"{example.layer} in {example.id}", style="bold"),
            Padding(line, (0, 0, 1, 2)),
        ]
    return Group(*parts)


def write_layers(summary: Summary, shown: Sequence[Example], path: Path) -> None:
    """The page of ``render_layers``; see ``write_page``."""
    layers = [
        {"annotator": spec, "headline": _headline(name, layer), "rows": [*_rows(layer)]}
        for spec, name, layer in _layers(summary)
    ]
    write_page(path, "layers.html.j2", summary=summary, layers=layers, shown=shown)


def _layers(summary: Summary) -> Iterable[tuple[str, str, LayerSummary]]:
    for spec, entry in summary["annotators"].items():
        for name, layer in entry["layers"].items():
            yield spec, name, layer


def _headline(name: str, layer: LayerSummary) -> str:
    line = f"{name}: {layer['spans']:,} on {layer['share_of_words']:.1%} of the words"
    if "weight" not in layer:
        return line
    weight = layer["weight"]
    return (
        f"{line}; weight {weight['least']:.3g} to {weight['greatest']:.3g}, mean "
        f"{weight['mean']:.3g}"
    )


def _rows(layer: LayerSummary) -> Iterable[tuple[str, str, str, list[str]]]:
    """(label, number, share, the commonest texts); of phrases also the commonest of three words and
    more.
    """
    for label, count in layer.get("labels", {}).items():
        top = [(" ".join(str(text).split()), f"{times:,}") for text, times in layer["top"][label]]
        share = f"{count / max(1, layer['spans']):.1%}"
        yield label, f"{count:,}", share, [" ".join(pair) for pair in top]
        long = [" ".join(pair) for pair in top if pair[0].count(" ") > 1]
        if layer["kind"] == "spans" and long:
            yield "of 3 words or more", "", "", long
