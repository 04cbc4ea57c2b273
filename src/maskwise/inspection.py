"""Show what a policy masks in a text, token by token (``maskwise inspect``, reports).

Importing torch and transformers takes seconds, so they are imported only for a tokenizer from the
hub.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from maskwise.annotate.registry import SPANS, ByText, Span, annotator, read_marks
from maskwise.errors import MaskwiseError
from maskwise.folders import write_page
from maskwise.masking import IGNORE, Masker
from maskwise.masking.corruptions import PermuteSentences, corruption
from maskwise.masking.gather import gather
from maskwise.masking.policies import GroupWeighted, Moment, policy
from maskwise.show import Stretch, draw, visible
from maskwise.specs import split_calls
from maskwise.text import encode, read_documents, require_documents
from maskwise.text.layers import CharSpans, Layered, annotated
from maskwise.text.opening import require_utf8
from maskwise.text.readers import known_ending
from maskwise.text.tokenizers import light_tokenizer, usual_tokenizer
from maskwise.text.words import flat_offsets

FastTokenizer: TypeAlias = Any
"""A fast tokenizer of transformers, or a ``LightTokenizer``."""
Layers: TypeAlias = dict[str, list[Any]]
STYLES = {
    "shown": "",
    "masked": "bold #000000 on #e69f00",
    "random": "bold #ffffff on #cc3f7a",
    "kept": "bold #000000 on #56b4e9",
}
BRACKETS = {"shown": "{}", "masked": "[{}]", "random": "[{}]", "kept": "[={}]"}
LEGEND = {"masked": "masked", "random": "another token", "kept": "chosen, shown unchanged"}

MAX_TEXTS = 5
MAX_CHARACTERS = 600
"""Limits for a file: the number of texts that are shown, and the number of characters of each."""
TEXT_LAYERS = ("word_ids", "sentence", "frequency")
"""Layers that every text has."""
ANNOTATED = ("pos", "salient")
"""Layers that an annotator of the same name makes if a text has no marks. Other layers need marks.
"""
WEIGHT_LAYERS = ("weight", "informativeness", "difference")
"""Layers whose weights are read from marks, [[word|2.5]]; unmarked tokens have the weight 1."""


class Piece(NamedTuple):
    """A token of the text.

    Attributes:
        text: its characters, including the white space before the token.
        state: ``shown`` (not selected), ``masked``, ``random`` (replaced by another
            token), ``kept`` (selected, but unchanged).
        shown: the token that the model reads in its place, if this is a random token; else "".
    """

    text: str
    state: str
    shown: str = ""

    def as_dict(self) -> dict[str, str]:
        facts = self._asdict()
        if not self.shown:
            del facts["shown"]
        return facts


@dataclass(frozen=True)
class Inspected:
    """A text as masked by one policy.

    Attributes:
        text: the text.
        pieces: the text, token by token.
        ratio: the share of the text's tokens that were selected.
        whole, parts: the number of words that were selected as a whole, and only in part.
        source, target: the input and labels of a sequence-to-sequence model; "" for an encoder.
        policy, corruption, tokenizer: the settings, as they were written.
    """

    text: str
    pieces: list[Piece]
    ratio: float
    whole: int
    parts: int
    source: str = ""
    target: str = ""
    policy: str = ""
    corruption: str = ""
    tokenizer: str = ""

    def as_dict(self) -> dict[str, Any]:
        facts = {
            "policy": self.policy,
            "corruption": self.corruption,
            "tokenizer": self.tokenizer,
            "text": self.text,
            "ratio": self.ratio,
            "whole_words": self.whole,
            "words_in_part": self.parts,
            "pieces": [piece.as_dict() for piece in self.pieces],
        }
        optional = {"source": self.source, "target": self.target, "note": self.note}
        for name, fact in optional.items():
            if fact:
                facts[name] = fact
        return facts

    @property
    def note(self) -> str:
        """A reason and a remedy if no token is selected; else ""."""
        if any(piece.state != "shown" for piece in self.pieces):
            return ""
        return "nothing is masked: no unit fits; use a larger --ratio or a longer text"

    @property
    def headline(self) -> str:
        words = f"words: {self.whole} whole, {self.parts} in part"
        return f"{100 * self.ratio:.1f} % of the tokens; {words}; corruption {self.corruption}"

    @property
    def stretches(self) -> list[Stretch]:
        stretches = []
        for text, state, shown in self.pieces:
            note = shown and f"→{shown}"
            stretches.append(Stretch(text, STYLES[state], note, BRACKETS[state]))
        return stretches


def show_masks(
    masker: Masker,
    tokenizer: FastTokenizer,
    text: str,
    *,
    layers: Layers,
    step: int,
    total_steps: int,
    epoch: int = 0,
    max_length: int | None = None,
) -> Inspected:
    """Mask one text and report what happened to each of its tokens.

    Args:
        layers: layers of the text's tokens, keyed by name, except for words.
        step, total_steps: the position in the schedule.
        epoch: the number of the pass over the text; each pass draws different masks.
        max_length: the maximum number of tokens; the rest of the text is dropped.
    """
    row = {**encode(tokenizer, [text], max_length=max_length)[0], **layers}
    # A LightTokenizer never truncates; both it and transformers accept these settings.
    cut = {"truncation": max_length is not None, "max_length": max_length}
    [encoding] = tokenizer([text], **cut).encodings
    batch = gather([row], masker.vocabulary)
    masked, choice = masker.corrupted(batch, Moment(step, total_steps, epoch))
    corruption = masker.corruption
    # A permuted token is shown at a different position, so it cannot be compared at its own.
    in_place = corruption.keeps_length and not isinstance(corruption, PermuteSentences)
    chosen_state = "masked"
    if isinstance(corruption, PermuteSentences) and corruption.inner is None:
        chosen_state = "kept"
    pieces = []
    end = 0
    for place, (start, stop) in enumerate(encoding.offsets):
        if stop <= start or not batch.content[place]:
            continue
        state = "shown"
        replacement = ""
        if choice.tokens[place]:
            state = chosen_state
            if in_place:
                token = int(masked.input_ids[place])
                if token == batch.input_ids[place]:
                    state = "kept"
                elif token != masker.vocabulary.mask:
                    state = "random"
                    replacement = str(tokenizer.convert_ids_to_tokens(token))
        # Tokens that share a character (byte fallback) have the same offsets: show only the first.
        if stop > end:
            pieces.append(Piece(text[min(end, start) : stop], state, replacement))
            end = stop
    source = target = ""
    if not in_place:
        source = _decode(tokenizer, masked.input_ids)
        target = _decode(tokenizer, masked.labels[masked.labels != IGNORE])
    words = np.array(row["word_ids"], dtype=np.int64)
    in_word = words >= 0
    sizes = np.bincount(words[in_word])
    selected = np.bincount(words[in_word], choice.tokens[in_word])
    touched = int((selected > 0).sum())
    whole = int((selected == sizes)[sizes > 0].sum())
    # A text without eligible tokens has the ratio 0.
    ratio = int(choice.tokens.sum()) / max(1, int(batch.eligible.sum()))
    return Inspected(text, pieces, ratio, whole, touched - whole, source, target)


def _decode(tokenizer: FastTokenizer, ids: Iterable[int]) -> str:
    kept = [int(number) for number in ids if number != tokenizer.pad_token_id]
    return str(tokenizer.decode(kept, clean_up_tokenization_spaces=False))


def inspect_text(
    text: str,
    policies: str,
    settings: Mapping[str, Any],
    *,
    tokenizer: str | None = None,
    step: int = 0,
    total_steps: int = 1000,
) -> list[Inspected]:
    """Mask a text (or the first texts of a file) under each policy.

    Args:
        text: a text, in which spans may be marked ([[Warsaw]], [[1867|3]]), or the name of a file.
        policies: the policies, separated by commas.
        settings: the masker's settings.
        tokenizer: a folder or hub id; if None, letters for FASTA, or the bundled tokenizer.
        step, total_steps: the position in the schedule.

    Raises:
        MaskwiseError: there is no text, a name is unknown, or a plain text lacks the layers of a
            policy.
    """
    shown_as = settings.get("corruption", "bert")
    texts = [read_marks(marked) for marked in _texts(text)]
    specs = split_calls(policies)
    if not specs:
        raise MaskwiseError("no policy is given", got=repr(policies), do="try: token,whole-word")
    has_marks = any(spans for _, spans in texts)
    # Missing layers are refused before the tokenizer is loaded, which may take a download.
    needed, annotators = _needed_layers(specs, shown_as, marked=has_marks)
    # The output names the tokenizer, which explains unexpected tokens.
    used = tokenizer or usual_tokenizer(text)
    loaded = light_tokenizer(used)
    maskers = {spec: Masker(loaded, policy=spec, **settings) for spec in specs}
    inspected = []
    for plain, spans in texts:
        layers = text_layers(loaded, plain, spans, needed)
        makers = annotators
        if has_marks and not spans:
            makers = [*annotators, *(name for name in ANNOTATED if name in needed)]
        for name in makers:
            layers |= annotated_layers(annotator(name), loaded, plain)
        for spec, masker in maskers.items():
            shown = show_masks(
                masker, loaded, plain, layers=layers, step=step, total_steps=total_steps
            )
            written = {"policy": spec, "corruption": shown_as, "tokenizer": used}
            inspected.append(replace(shown, **written))
    return inspected


def _needed_layers(
    specs: Sequence[str], shown_as: str, *, marked: bool
) -> tuple[list[str], list[str]]:
    """Return the layers that the text and its marks provide, and the annotators for other layers.

    Raises:
        MaskwiseError: a policy needs a layer that a text without marks does not have, or needs
            groups where the layer has spans.
    """
    users = {}
    # For a text without marks, annotators of the same names make these layers.
    annotator_of = {} if marked else dict(zip(ANNOTATED, ANNOTATED))
    for spec in specs:
        rule = policy(spec)
        for layer in rule.layers():
            users[layer] = f"policy {spec}"
        for name in rule.annotators():
            for layer in annotator(name).layers:
                annotator_of[layer] = name
        if isinstance(rule, GroupWeighted) and rule.layer == "salient" and not marked:
            what = f"policy {spec} needs a layer of groups, but {rule.layer!r} has spans"
            raise MaskwiseError(what, do="use layer='pos', or the policy salient for spans")
    mover = corruption(shown_as)
    if isinstance(mover, PermuteSentences):
        users.setdefault(mover.layer, f"corruption {shown_as}")
    needed = []
    annotators = {}
    for layer, user in users.items():
        if layer in annotator_of:
            annotators[annotator_of[layer]] = layer
        elif marked or layer in TEXT_LAYERS:
            needed.append(layer)
        else:
            do = "mark spans in it: 'born in [[Warsaw]] in [[1867]]', or with a weight: [[1867|3]]"
            raise MaskwiseError(f"{user} needs the layer {layer!r}, but this text has none", do=do)
    return needed, list(annotators)


def text_layers(
    tokenizer: FastTokenizer, text: str, spans: Sequence[Span], needs: Iterable[str]
) -> Layers:
    """Return the layers (L,) that policies need, keyed by name, except words (see `encode`)."""
    [encoding] = tokenizer([text]).encodings
    layers: Layers = {}
    for name in needs:
        if name == "word_ids":
            continue
        if name == "frequency":
            # One text is too short to estimate frequencies, so they are counted in the sample.
            counts = Counter[int]()
            sample = read_documents("bundled:wikipedia", limit=200)
            for known in tokenizer([document.text for document in sample]).encodings:
                counts.update(known.ids)
            layers[name] = [counts[token] for token in encoding.ids]
        elif name == "sentence":
            layers |= annotated_layers(annotator("sentences"), tokenizer, text)
        else:
            marked = {text: {name: CharSpans.of(spans, SPANS)}}
            maker = ByText("marks", {name: SPANS}, marked.__getitem__, "")
            layers |= annotated_layers(maker, tokenizer, text)
            if name in WEIGHT_LAYERS:
                # An unmarked token has the number −1, and the last weight is the weight 1.
                weights = np.array([*(span.weight for span in spans), 1.0])
                layers[name] = weights[layers[name]].tolist()
    return layers


def annotated_layers(maker: Layered, tokenizer: FastTokenizer, text: str, **cut: object) -> Layers:
    """Return an annotator's layers (L,) by name; ``cut`` has settings to truncate the text."""
    encodings = tokenizer([text], **cut).encodings
    special = np.array(encodings[0].special_tokens_mask, dtype=bool)
    offsets, lengths = flat_offsets(encodings)
    columns = annotated([maker], [text], offsets, lengths, special=special)
    del columns["word_ids"]
    return {name: values.tolist() for name, values in columns.items()}


def _texts(text: str) -> list[str]:
    """Return the text itself or, if it names a file, the beginnings of the file's first texts."""
    # The name of a missing file is an error, not a text.
    looks_like_file = known_ending(Path(text)) is not None
    # Unlike Path.is_file, os.path.isfile accepts a string of any length.
    is_corpus = os.path.isfile(text) or os.path.isdir(text)
    if (looks_like_file and "\n" not in text) or is_corpus:
        documents = require_documents(read_documents(text))
        texts = []
        for document in islice(documents, MAX_TEXTS):
            one_line = " ".join(document.text.split())
            texts.append(one_line[:MAX_CHARACTERS])
        return texts
    if not text.strip():
        raise MaskwiseError("there is no text to mask", got="an empty text")
    require_utf8(text)
    return [text]


def render_masks(inspected: Iterable[Inspected], *, colours: bool = True) -> RenderableType:
    """Draw texts with selected tokens in colour (or in brackets), and with their replacements."""
    legend = Text()
    for state, label in LEGEND.items():
        name = f" {label} "
        if not colours:
            name = BRACKETS[state].format(label)
        legend.append(name, style=STYLES[state]).append("  ")
    parts: list[RenderableType] = [legend.append("\n")]
    inspected = list(inspected)
    if inspected:
        parts.append(Text(f"tokenizer: {inspected[0].tokenizer}\n", style="dim"))
    for entry in inspected:
        parts.append(Text.assemble((entry.policy, "bold"), f"   {entry.headline}"))
        parts.append(Padding(draw(entry.stretches, colours=colours), (0, 0, 1, 2)))
        if entry.note:
            parts.append(Padding(Text(entry.note, style="dim"), (0, 0, 1, 2)))
        lines = []
        if entry.target:
            lines = [("reads", entry.source), ("writes", entry.target)]
        group = [Text.assemble((f"{who:8}", "dim"), visible(words)) for who, words in lines]
        # An empty group gets no empty line below it.
        parts.append(Padding(Group(*group), (0, 0, int(bool(lines)), 2)))
    return Group(*parts)


def write_masks(inspected: Sequence[Inspected], path: Path) -> None:
    """Write what ``render_masks`` shows as an HTML page; see ``write_page``."""
    legend = [Stretch(label, STYLES[state]) for state, label in LEGEND.items()]
    write_page(path, "masks.html.j2", inspected=inspected, legend=legend)
