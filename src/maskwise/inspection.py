"""See the masks: what a policy masks in a text, token by token (``maskwise inspect``, reports).

Only numpy, rich and tokenizers are imported; torch and transformers if a model or a tokenizer from
the hub is asked for.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text
from tokenizers import Tokenizer

from maskwise.annotate.given import Span, read_marks, sentence_spans, span_layer
from maskwise.annotate.registry import annotator
from maskwise.errors import MaskwiseError
from maskwise.folders import write_page
from maskwise.keys import Array
from maskwise.masking import IGNORE, Masker, Vocabulary
from maskwise.masking.corruptions import PermuteSentences, corruption
from maskwise.masking.gather import gather
from maskwise.masking.policies import GroupWeighted, Moment, policy
from maskwise.show import Stretch, draw, visible
from maskwise.specs import split_calls
from maskwise.starts import find_start
from maskwise.text import encode, load_tokenizer, read_documents, require_documents
from maskwise.text.layers import align
from maskwise.text.tokenizers import MOST_TOKENS
from maskwise.text.words import flat_offsets, number_words, place_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOME_MORE = 16  # tokens that a model may write beyond the target
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
"""Layers of any text."""
ANNOTATED = {"pos": "categorical", "salient": "spans"}
"""Layers with an annotator of the same name, used for texts without marks. Others need marks."""
WEIGHT_LAYERS = ("weight", "informativeness", "difference")
"""Read from marks: [[word|2.5]]; unmarked tokens weigh 1."""
SPECIAL = ("unk", "bos", "eos", "pad", "mask", "cls", "sep")


class LightTokenizer:
    """A tokenizer.json with the part of transformers' interface that masking reads."""

    is_fast = True

    def __init__(self, backend: Tokenizer, names: Mapping[str, str]):
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.added_tokens_decoder = backend.get_added_tokens_decoder()
        self.all_special_ids = [i for i, t in self.added_tokens_decoder.items() if t.special]
        self.unk_token = names.get("unk")
        for role in SPECIAL:
            number = backend.token_to_id(names.get(role) or "")
            setattr(self, f"{role}_token_id", number)

    @classmethod
    def read(cls, folder: Path) -> LightTokenizer | None:
        """Read a folder of ``save_pretrained``; None if transformers must read or refuse it."""
        try:
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            names = {role: config.get(f"{role}_token") for role in SPECIAL}
            # Older versions write a dict with the settings of the token.
            plain = {r: n["content"] if isinstance(n, dict) else n for r, n in names.items() if n}
            made = cls(Tokenizer.from_file(str(folder / "tokenizer.json")), plain)
            largest = max([*made.get_vocab().values(), *made([""]).encodings[0].ids])
        except Exception:  # tokenizers raises nothing narrower
            return None
        roles = [getattr(made, f"{role}_token_id") for role in ("unk", "pad", "mask")]
        return None if None in roles or largest >= MOST_TOKENS else made

    def get_vocab(self) -> dict[str, int]:
        return self.backend.get_vocab(with_added_tokens=True)

    def __call__(self, texts: list[str], **settings: object) -> SimpleNamespace:
        return SimpleNamespace(encodings=self.backend.encode_batch(texts))

    def decode(self, ids: list[int], **settings: object) -> str:
        return self.backend.decode(ids, skip_special_tokens=False)

    def convert_ids_to_tokens(self, number: int) -> str | None:
        return self.backend.id_to_token(number)


class Piece(NamedTuple):
    """A token of the text.

    Attributes:
        text: as in the text, with the white space before it.
        state: ``shown`` (not selected), ``masked``, ``random`` (replaced by another
            token), ``kept`` (selected, but unchanged).
        shown: what the model reads instead; empty where it reads the text itself.
    """

    text: str
    state: str
    shown: str = ""

    def as_dict(self) -> dict[str, str]:
        return {name: value for name, value in self._asdict().items() if value or name != "shown"}


class Shown(NamedTuple):
    """One masked text.

    Attributes:
        pieces: the text, token by token.
        ratio: the share of its tokens that were selected.
        whole, parts: how many words were selected as a whole, and how many in part.
        source, target: what a sequence-to-sequence model would read and write ("" otherwise).
        written: what a given model writes; None without one.
    """

    pieces: list[Piece]
    ratio: float
    whole: int
    parts: int
    source: str = ""
    target: str = ""
    written: str | None = None


def show_masks(
    masker: Masker,
    tokenizer: Any,
    text: str,
    *,
    step: int = 0,
    total_steps: int | None = None,
    epoch: int = 0,
    max_length: int | None = None,
    layers: dict[str, list[Any]] | None = None,
    model: PreTrainedModel | None = None,
) -> Shown:
    """Mask one text and report what happened to each of its tokens.

    Args:
        masker: a masker.
        tokenizer: a fast tokenizer of transformers, or a ``LightTokenizer``.
        step, total_steps: where the schedule stands.
        epoch: the pass over the text; each draws other masks.
        max_length: the most tokens to keep.
        layers: further layers of the tokens, by name.
        model: an encoder–decoder that writes what it reads.
    """
    row = {**encode(tokenizer, [text], max_length=max_length)[0], **(layers or {})}
    cut = {"truncation": max_length is not None, "max_length": max_length}
    [encoding] = tokenizer([text], **cut).encodings
    batch = gather([row], masker.vocabulary)
    shown, choice = masker.corrupted(batch, Moment(step, total_steps, epoch))
    # A permuted token is shown elsewhere.
    permutes = isinstance(masker.corruption, PermuteSentences)
    in_place = masker.corruption.keeps_length and not permutes
    chosen_state = "masked"
    if permutes and getattr(masker.corruption, "inner", None) is None:
        chosen_state = "kept"
    pieces, end = [], 0
    for place, (start, stop) in enumerate(encoding.offsets):
        if stop <= start or not batch.content[place]:
            continue
        state, instead = "shown", ""
        if choice.tokens[place]:
            state = chosen_state
            now = int(shown.input_ids[place]) if in_place else None
            if now == batch.input_ids[place]:
                state = "kept"
            elif now not in (None, masker.vocabulary.mask):
                state, instead = "random", str(tokenizer.convert_ids_to_tokens(now))
        if stop > end:
            pieces.append(Piece(text[min(end, start) : stop], state, instead))
            end = stop
    source, target, written = "", "", None
    labels = shown.labels[shown.labels != IGNORE]
    if not in_place:
        source, target = _decode(tokenizer, shown.input_ids), _decode(tokenizer, labels)
    if model is not None:
        written = _written(model, tokenizer, shown.input_ids, len(shown.labels) + SOME_MORE)
    # Which words have all of their tokens selected, and which have some.
    words = np.array(row["word_ids"])
    _, word, tokens = np.unique(words[words >= 0], return_inverse=True, return_counts=True)
    taken = np.bincount(word, choice.tokens[words >= 0], len(tokens))
    whole, touched = int((taken == tokens).sum()), int((taken > 0).sum())
    ratio = int(choice.tokens.sum()) / max(1, int(batch.eligible.sum()))
    return Shown(pieces, ratio, whole, touched - whole, source, target, written)


def _written(model: PreTrainedModel, tokenizer: Any, ids: Array, most: int) -> str:
    """What a model writes for a corrupted text."""
    import torch

    from maskwise.objectives.denoising import generated

    read = torch.from_numpy(ids).unsqueeze(0)
    inputs = {"input_ids": read, "attention_mask": torch.ones_like(read)}
    (written,) = generated(model, inputs, most=most)
    return _decode(tokenizer, written[1:])  # without the decoder's start token


def _decode(tokenizer: Any, ids: Iterable[int]) -> str:
    kept = [int(i) for i in ids if i != tokenizer.pad_token_id]
    return str(tokenizer.decode(kept, clean_up_tokenization_spaces=False))


@dataclass(frozen=True)
class Inspected:
    """One text under one policy."""

    policy: str
    corruption: str
    text: str
    shown: Shown

    def as_dict(self) -> dict[str, Any]:
        shown = self.shown
        optional = {"source": shown.source, "target": shown.target, "note": self.note}
        found = {
            "policy": self.policy,
            "corruption": self.corruption,
            "text": self.text,
            "ratio": shown.ratio,
            "whole_words": shown.whole,
            "words_in_part": shown.parts,
            "pieces": [piece.as_dict() for piece in shown.pieces],
            **{name: fact for name, fact in optional.items() if fact},
        }
        return found if shown.written is None else found | {"written": shown.written}

    @property
    def note(self) -> str:
        """Why nothing is selected, and what to do; else ""."""
        if any(piece.state != "shown" for piece in self.shown.pieces):
            return ""
        return "nothing is chosen: no unit fits; a larger --ratio or a longer text would help"

    @property
    def headline(self) -> str:
        words = f"words: {self.shown.whole} whole, {self.shown.parts} in part"
        share = 100 * self.shown.ratio
        return f"{share:.1f} % of the tokens; {words}; corruption {self.corruption}"

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
        tokenizer: a folder or hub id; None: the model's, or that of the bundled encoder.
        model: an encoder–decoder, a folder or hub id, that writes what it reads.

    Raises:
        MaskwiseError: no text, an unknown name, a policy whose layers a plain text does not have; a
            model that does not write, or a corruption that gives it nothing to write.
    """
    network = None
    corrupted = settings.get("corruption") or "bert"
    if model:
        tools, network = _load(model, tokenizer)
        usual = "t5" if Vocabulary.of(tools).sentinels else "infill"
        corrupted = settings.get("corruption") or usual
        from maskwise.objectives import Denoising

        Denoising.check({"corruption": corrupted})
    texts = [read_marks(each) for each in _texts(text)]
    specs = split_calls(policies)
    given, makers = _needed_layers(specs, corrupted, marked=any(spans for _, spans in texts))
    if not model:
        tools = _tokenizer(tokenizer) if tokenizer else _bundled_tokenizer()
    settings = {**settings, "corruption": corrupted}
    maskers = {spec: Masker(tools, policy=spec, **settings) for spec in specs}
    inspected = []
    for plain, spans in texts:
        layers = text_layers(tools, plain, spans, given)
        for maker in makers:
            layers |= _annotated_layers(maker, tools, plain)
        when: dict[str, Any] = {"step": step, "total_steps": total_steps}
        when |= {"layers": layers, "model": network}
        for spec, masker in maskers.items():
            shown = show_masks(masker, tools, plain, **when)
            inspected.append(Inspected(spec, corrupted, plain, shown))
    return inspected


def _load(model: str, tokenizer: str | None) -> tuple[Any, PreTrainedModel]:
    """A model that writes, and its tokenizer; these take seconds to import."""
    from maskwise.families import check_fit
    from maskwise.models import load_model

    network = load_model(model, kind="encoder-decoder").eval()
    tools = load_tokenizer(tokenizer or model, needs_mask=False)
    check_fit(network.config, len(tools), do="leave --tokenizer out")
    return tools, network


def _tokenizer(name: str) -> Any:
    return LightTokenizer.read(Path(find_start(name))) or load_tokenizer(name, needs_mask=False)


def _bundled_tokenizer() -> LightTokenizer:
    """The tokenizer of the bundled encoder, with the tokens that T5's and UL2's corruptions
    need.
    """
    tokenizer = LightTokenizer.read(Path(find_start("bundled:encoder")))
    assert tokenizer is not None
    sentinels = [f"<extra_id_{number}>" for number in range(100)]
    tokenizer.backend.add_special_tokens([*sentinels, "[R]", "[S]", "[X]"])
    return tokenizer


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
    for spec in specs:
        made = policy(spec)
        users |= dict.fromkeys(made.layers(), f"policy {spec}")
        for maker in made.annotators():
            makers |= dict.fromkeys(annotator(maker).layers, maker)
        if isinstance(made, GroupWeighted) and ANNOTATED.get(made.layer) == "spans" and not marked:
            what = f"policy {spec} needs a layer of groups, and {made.layer!r} is one of spans"
            raise MaskwiseError(what, do="take layer='pos', or the policy salient for these spans")
    shown = corruption(corrupted)
    if isinstance(shown, PermuteSentences):
        users.setdefault(shown.layer, f"corruption {corrupted}")
    for layer, user in users.items():
        if not marked and layer not in (*TEXT_LAYERS, *ANNOTATED, *makers):
            do = "mark spans in it: 'born in [[Warsaw]] in [[1867]]', or with a weight: [[1867|3]]"
            raise MaskwiseError(f"{user} needs the layer {layer!r}, and this text has none", do=do)
    given = [layer for layer in users if layer not in makers]
    return given, list(dict.fromkeys(makers.values()))


def text_layers(
    tokenizer: Any, text: str, spans: Sequence[Span], needs: Iterable[str]
) -> dict[str, list[Any]]:
    """The layers (L,) that policies need: sentences, token counts in bundled text, marked spans."""
    [encoding] = tokenizer([text]).encodings
    layers: dict[str, list[Any]] = {}
    for name in needs:
        if name == "sentence":
            layers[name] = span_layer(text, sentence_spans(text), encoding.offsets)
        elif name == "frequency":
            texts = [document.text for document in read_documents("bundled:wikipedia", limit=200)]
            counts = Counter(token for known in tokenizer(texts).encodings for token in known.ids)
            layers[name] = [counts[token] for token in encoding.ids]
        elif name in ANNOTATED and not spans:
            layers |= _annotated_layers(name, tokenizer, text)
        elif name in WEIGHT_LAYERS:
            weights = [*(span.weight for span in spans), 1.0]  # the last, at −1: unmarked tokens
            layers[name] = [weights[n] for n in span_layer(text, spans, encoding.offsets)]
        elif name != "word_ids":
            layers[name] = span_layer(text, spans, encoding.offsets)
    return layers


def _annotated_layers(spec: str, tokenizer: Any, text: str) -> dict[str, list[Any]]:
    made, encodings = annotator(spec), tokenizer([text]).encodings
    special = np.array(encodings[0].special_tokens_mask, dtype=bool)
    placed = place_tokens([text], *flat_offsets(encodings), special=special)
    aligned = align(made.annotate([text]), made.layers, placed, number_words(placed))
    return {name: values.tolist() for name, values in aligned.items()}


def _texts(text: str) -> list[str]:
    """The text itself, or the beginnings of the first texts of the file that it names."""
    named = "\n" not in text and Path(text).suffix in (".txt", ".jsonl", ".gz", ".parquet")
    if named or os.path.isfile(text):  # unlike Path.is_file, this takes any text
        documents = require_documents(read_documents(text))
        return [" ".join(document.text.split())[:600] for document in islice(documents, MAX_TEXTS)]
    if not text.strip():
        raise MaskwiseError("no text to mask", got="an empty text")
    return [text]


def render_masks(inspected: Iterable[Inspected], *, colours: bool = True) -> RenderableType:
    """Draw texts with their selected tokens coloured, or in brackets, and what is read instead."""
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
        texts = [Text.assemble((f"{who:8}", "dim"), visible(words)) for who, words in lines]
        parts.append(Padding(Group(*texts), (0, 0, int(bool(texts)), 2)))
    return Group(*parts)


def write_masks(inspected: Sequence[Inspected], path: Path) -> None:
    """Write the page of ``render_masks``; see ``write_page``."""
    legend = [Stretch(label, STYLES[state]) for state, label in LEGEND.items()]
    write_page(path, "masks.html.j2", inspected=inspected, legend=legend)
