"""Behind ``maskwise inspect`` and ``list``: a text under several policies, and what names there are."""

from __future__ import annotations

import inspect as python_inspect
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from maskwise.annotate.given import Span, read_marks, sentence_spans, span_layer
from maskwise.annotate.registry import ANNOTATORS, annotator
from maskwise.errors import MaskwiseError
from maskwise.masking import CORRUPTIONS, POLICIES, SCHEDULES, Masker
from maskwise.masking.corruptions import corruption
from maskwise.masking.policies import policy
from maskwise.objectives import OBJECTIVES
from maskwise.recipe import shipped
from maskwise.samplers import SAMPLERS
from maskwise.show import Shown, show_masks
from maskwise.specs import arguments_of, split_calls
from maskwise.tasks import BUNDLED_TASKS, load_task
from maskwise.text import load_tokenizer, read_documents, require_documents, train_tokenizer
from maskwise.text.layers import align
from maskwise.text.words import flat_offsets, number_words, place_tokens

STYLES = {
    "shown": "", "masked": "bold #000000 on #e69f00", "random": "bold #ffffff on #cc3f7a",
    "kept": "bold #000000 on #56b4e9",
}  # fmt: skip
BRACKETS = {"shown": "{}", "masked": "[{}]", "random": "[{}]", "kept": "[={}]"}
"""How the states look where there are no colours."""

MAX_TEXTS = 5
TEXT_LAYERS = ("word_ids", "sentence", "frequency")
"""The layers that any text has."""
FOUND_LAYERS = {"pos": "pos", "salient": "salient"}
"""Layers that an annotator finds in a text without marks, and which one; all others are spans that are marked in it."""


@dataclass(frozen=True)
class Inspected:
    """One text under one policy."""

    policy: str
    text: str
    shown: Shown

    def as_dict(self) -> dict[str, Any]:
        pieces = [piece.as_dict() for piece in self.shown.pieces]
        facts = {"source": self.shown.source, "target": self.shown.target} if self.shown.target else {}
        counts = {"whole_words": self.shown.whole, "words_in_part": self.shown.parts}
        found = {"policy": self.policy, "text": self.text, "ratio": self.shown.ratio}
        return {**found, **counts, "pieces": pieces, **facts, **({"note": self.note} if self.note else {})}

    @property
    def note(self) -> str:
        """Why there is nothing to see, and what to do; "" where there is something."""
        if any(piece.state != "shown" for piece in self.shown.pieces):
            return ""
        return (
            "nothing is chosen: no unit fits; a larger --ratio, --budget expected or a longer text would help"
        )


def inspect_text(
    text: str,
    policies: str,
    settings: Mapping[str, Any],
    *,
    tokenizer: str | None = None,
    step: int = 0,
    total_steps: int = 1000,
) -> list[Inspected]:
    """Mask a text (or the first texts of a file) under each policy; ``settings`` are the masker's.

    Raises:
        MaskwiseError: no text, an unknown name, a policy whose layers a plain text does not have.
    """
    texts, specs = [read_marks(one) for one in _texts(text)], split_calls(policies)
    needs = {layer: f"policy {spec}" for spec in specs for layer in policy(spec).layers()}
    if layer := getattr(corruption(settings["corruption"]), "layer", None):
        needs.setdefault(layer, f"corruption {settings['corruption']}")
    for layer, who in needs.items():
        if layer not in (*TEXT_LAYERS, *FOUND_LAYERS) and not any(spans for _, spans in texts):
            raise MaskwiseError(
                f"{who} needs the layer {layer!r}, and this text has none",
                do="mark spans in it: 'born in [[Warsaw]] in [[1867]]', or with a weight: [[1867|3]]",
            )
    tools = load_tokenizer(tokenizer, needs_mask=False) if tokenizer else _small_tokenizer()
    maskers = {spec: Masker(tools, policy=spec, **settings) for spec in specs}
    found = []
    for one, spans in texts:
        layers = text_layers(tools, one, spans, needs)
        for spec, masker in maskers.items():
            shown = show_masks(masker, tools, one, step=step, total_steps=total_steps, layers=layers)
            found.append(Inspected(spec, one, shown))
    return found


WEIGHT_LAYERS = ("weight", "informativeness", "difference")
"""Read from marks: [[word|2.5]]; what is not marked weighs 1."""


def text_layers(
    tokenizer: Any, text: str, spans: Sequence[Span], needs: Iterable[str]
) -> dict[str, list[Any]]:
    """The layers that policies need, (L,) each: sentences, token counts in the bundled text, and marked spans."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    layers: dict[str, list[Any]] = {}
    for name in needs:
        if name == "sentence":
            layers[name] = span_layer(text, sentence_spans(text), offsets)
        elif name == "frequency":
            counts = _bundled_counts(tokenizer)
            layers[name] = [counts[token] for token in encoded["input_ids"]]
        elif name in FOUND_LAYERS and not spans:
            layers |= _found_layers(FOUND_LAYERS[name], tokenizer, text)
        elif name in WEIGHT_LAYERS:
            weights = [
                *(span.weight for span in spans),
                1.0,
            ]  # the last one, at −1, is that of all other tokens
            layers[name] = [weights[number] for number in span_layer(text, spans, offsets)]
        elif name != "word_ids":
            layers[name] = span_layer(text, spans, offsets)
    return layers


def _found_layers(spec: str, tokenizer: Any, text: str) -> dict[str, list[Any]]:
    made, encodings = annotator(spec), tokenizer([text]).encodings
    special = np.array(encodings[0].special_tokens_mask, dtype=bool)
    placed = place_tokens([text], *flat_offsets(encodings), special=special)
    laid = align(made.annotate([text]), made.layers, placed, number_words(placed))
    return {name: values.tolist() for name, values in laid.items()}


def _bundled_counts(tokenizer: Any) -> Counter[int]:
    texts = [document.text for document in read_documents("bundled:wikipedia", limit=200)]
    return Counter(token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids)


def _texts(text: str) -> list[str]:
    """The text itself, or the beginnings of the first texts of the file that it names."""
    named = "\n" not in text and Path(text).suffix in (".txt", ".jsonl", ".gz", ".parquet")
    if named or os.path.isfile(text):  # unlike Path.is_file, this takes any text
        documents = require_documents(read_documents(text))
        return [" ".join(document.text.split())[:600] for document in islice(documents, MAX_TEXTS)]
    if not text.strip():
        raise MaskwiseError("no text to mask", got="an empty text")
    return [text]


def _small_tokenizer() -> Any:
    """A WordPiece tokenizer of 4,096 pieces from the bundled text: half a second, no download."""
    texts = [document.text for document in read_documents("bundled:wikipedia", limit=200)]
    tokenizer = train_tokenizer(texts, vocab_size=4096, lowercase=False)
    # What the corruptions of T5 and UL2 write.
    names = [*(f"<extra_id_{number}>" for number in range(100)), "[R]", "[S]", "[X]"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    return tokenizer


def render_terminal(found: list[Inspected], *, colours: bool = True) -> RenderableType:
    """The texts with their chosen tokens coloured (or in brackets); behind an arrow what is read instead."""
    parts: list[RenderableType] = [_legend(colours)]
    for entry in found:
        words = f"words: {entry.shown.whole} whole, {entry.shown.parts} in part"
        parts.append(
            Text.assemble(
                (entry.policy, "bold"), f"   {100 * entry.shown.ratio:.1f} % of the tokens; {words}"
            )
        )
        line = Text()
        for piece in entry.shown.pieces:
            body = visible(piece.text.lstrip())
            line.append(piece.text[: len(piece.text) - len(piece.text.lstrip())])
            line.append(body if colours else BRACKETS[piece.state].format(body), style=STYLES[piece.state])
            if piece.shown:
                line.append(f"→{visible(piece.shown)}", style="italic #cc3f7a")
        parts.append(Padding(line, (0, 0, 1, 2)))
        if entry.note:
            parts.append(Padding(Text(entry.note, style="dim"), (0, 0, 1, 2)))
        if entry.shown.target:
            reads, writes = visible(entry.shown.source), visible(entry.shown.target)
            parts.append(Padding(Text.assemble(("reads   ", "dim"), reads), (0, 0, 0, 2)))
            parts.append(Padding(Text.assemble(("writes  ", "dim"), writes), (0, 0, 1, 2)))
    return Group(*parts)


def visible(text: str) -> str:
    """Without control characters: a text must not steer the terminal that shows it."""
    return "".join(char if char.isprintable() or char in "\n\t" else "·" for char in text)


def _legend(colours: bool) -> Text:
    pieces: list[Any] = []
    for state, label in (
        ("masked", "masked"),
        ("random", "another token"),
        ("kept", "chosen, shown unchanged"),
    ):
        pieces += [(f" {label} " if colours else BRACKETS[state].format(label), STYLES[state]), "  "]
    return Text.assemble(*pieces, "\n")


def render_html(found: list[Inspected], path: Path) -> None:
    """One self-contained page; every text is escaped.

    Raises:
        MaskwiseError: a path that cannot be written.
    """
    environment = Environment(loader=PackageLoader("maskwise", "report"), autoescape=True)
    page = environment.get_template("masks.html.j2").render(found=found)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise MaskwiseError(f"cannot write {path}", got=error.strerror) from None


# Names for ``maskwise list``

TABLES: dict[str, Callable[[], Mapping[str, Any]]] = {
    "policies": lambda: POLICIES,
    "annotators": lambda: ANNOTATORS,
    "schedules": lambda: SCHEDULES,
    "corruptions": lambda: CORRUPTIONS,
    "objectives": lambda: OBJECTIVES,
    "samplers": lambda: SAMPLERS,
    "tasks": lambda: BUNDLED_TASKS,
    "recipes": shipped,
}


def describe_table(what: str) -> list[tuple[str, str, str]]:
    """(name, arguments, first line of the documentation) of every member."""
    describe = _describe_task if what == "tasks" else _describe
    return [(name, *describe(name, member)) for name, member in TABLES[what]().items()]


def _describe_task(name: str, file: str) -> tuple[str, str]:
    task = load_task(name)
    rows = f"{len(task.splits['train']):,} rows to learn from, {task.test_items:,} items to test"
    return "", f"{task.kind.name}, {len(task.labels)} classes, {rows}"


def _describe(name: str, member: Any) -> tuple[str, str]:
    if isinstance(member, Path):
        lines = [line.lstrip("# ") for line in member.read_text().splitlines() if line.startswith("#")]
        return "", lines[0] if lines else ""
    return arguments_of(member), (python_inspect.getdoc(member) or "").split("\n")[0]
