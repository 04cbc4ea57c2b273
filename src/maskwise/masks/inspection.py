"""Show the masks of a masking policy in a text, token by token (``maskwise inspect``, reports).

Torch and transformers take seconds to import. They are therefore imported only for tokenizers from
a folder or the hub.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

# With ``learning``, the annotator ``learned`` is known.
import maskwise.learning  # noqa: F401
from maskwise.annotate.registry import SPANS, ByText, MarkedSpan, annotator, annotators, read_marks
from maskwise.base.errors import MaskwiseError, shortened, visible
from maskwise.base.folders import write_page
from maskwise.base.specs import split_calls
from maskwise.masking import IGNORE, Masker
from maskwise.masking.corruptions import PermuteSentences, corruption
from maskwise.masking.gather import gather
from maskwise.masking.moment import refuse_steps
from maskwise.masking.policies import GroupWeighted, When, policy
from maskwise.masking.settings import Masking
from maskwise.masks.show import Stretch, draw
from maskwise.text import read_documents, require_documents
from maskwise.text.encoding import encode, places_of_tokens
from maskwise.text.layers import CharSpans, Layered
from maskwise.text.opening import require_utf8
from maskwise.text.source import ending_of
from maskwise.text.tokenizers import light_tokenizer, usual_tokenizer
from maskwise.text.words import WordRule, needs_offsets, word_rule

FastTokenizer: TypeAlias = Any
"""A fast tokenizer of transformers, or a ``LightTokenizer``."""
RowOfInput: TypeAlias = dict[str, Any]
STYLES = {
    "shown": "",
    "masked": "bold #000000 on #e69f00",
    "random": "bold #ffffff on #cc3f7a",
    "kept": "bold #000000 on #56b4e9",
}
BRACKETS = {"shown": "{}", "masked": "[{}]", "random": "[{}]", "kept": "[={}]"}
LEGEND = (
    Stretch("masked", STYLES["masked"], plain=BRACKETS["masked"]),
    Stretch("word", STYLES["random"], "→another token", BRACKETS["random"]),
    Stretch("chosen, shown unchanged", STYLES["kept"], plain=BRACKETS["kept"]),
)

TOTAL_STEPS = 1000
SHOWN_TEXTS = 5
MAX_CHARACTERS = 600
"""If the text is a file: the number of its texts by default, and of characters in each text."""
TEXT_LAYERS = ("word_ids", "sentence", "frequency")
"""Annotation layers (values of tokens) that are computed from any text, without marks in it."""
ANNOTATED = ("pos", "salient")
"""Annotation layers that come from the annotator of the same name if the text has no marks."""
WEIGHT_LAYERS = ("weight", "informativeness", "difference")
"""Annotation layers of weights, from marks such as [[word|2.5]]. Other tokens have weight 1."""


class Piece(NamedTuple):
    """A token of the text.

    Attributes:
        text: the characters of the token, including white space before the token.
        state: ``shown`` (not selected), ``masked``, ``random`` (replaced by a random token) or
            ``kept`` (selected, but unchanged).
        shown: the random token that replaces this token, or "".
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
    """A text and its masks from one policy.

    Attributes:
        text: the text.
        pieces: the tokens of the text.
        ratio: the share of selected tokens among the eligible tokens, which may be masked.
        whole_words, words_in_part: the number of words whose tokens were all selected, and the
            number of words of which only some tokens were selected.
        source, target: the input and the labels of a sequence-to-sequence model, as text; "" for
            an encoder.
        policy, corruption, tokenizer: the settings, as the user wrote them.
        eligible: the number of tokens that may be masked.
        unknown: the number of tokens that the tokenizer does not know.
    """

    text: str
    pieces: list[Piece]
    ratio: float
    whole_words: int
    words_in_part: int
    source: str = ""
    target: str = ""
    policy: str = ""
    corruption: str = ""
    tokenizer: str = ""
    eligible: int = 1
    unknown: int = 0

    def as_dict(self) -> dict[str, Any]:
        pieces = [piece.as_dict() for piece in self.pieces]
        facts = {**vars(self), "pieces": pieces, "note": self.note}
        del facts["eligible"], facts["unknown"]
        for name in ("source", "target", "note"):
            if not facts[name]:
                del facts[name]
        return facts

    @property
    def note(self) -> str:
        """A message if no token is selected, with the reason and a remedy; otherwise ""."""
        if any(piece.state != "shown" for piece in self.pieces):
            return ""
        if self.unknown > self.eligible or not self.eligible:
            most = "most tokens are" if self.eligible else "every token is"
            return (
                f"nothing is masked: {most} unknown to the tokenizer, or special, and such "
                "tokens are never masked; use a tokenizer for this alphabet (--tokenizer)"
            )
        return (
            "nothing is masked: the text has too few tokens or marked spans for this ratio; use a "
            "larger --ratio, a longer text or another --seed"
        )

    @property
    def headline(self) -> str:
        words = f"words: {self.whole_words} whole, {self.words_in_part} in part"
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
    row: RowOfInput,
    step: int,
    total_steps: int,
    epoch: int = 0,
    max_length: int | None = None,
    words: WordRule = "auto",
) -> Inspected:
    """Mask one text, and return the state of each token.

    Args:
        row: the result of ``encode`` for this text and ``max_length``, with annotation layers.
        step, total_steps: the training step for which the masking ratio is computed.
        epoch: the number of the epoch. Every epoch has different masks.
        max_length: the maximum number of tokens. Longer texts are cut.
        words: the rule by which ``encode`` made the row, for a tokenizer without offsets.
    """
    line = gather([row], masker.vocabulary)
    masked, choice = masker.corrupted(line, When(step, total_steps, epoch))
    corruption = masker.corruption
    # If tokens are permuted, input and output cannot be compared position by position.
    in_place = corruption.keeps_length and not isinstance(corruption, PermuteSentences)
    chosen_state = "masked"
    if isinstance(corruption, PermuteSentences) and corruption.inner is None:
        chosen_state = "kept"
    if tokenizer.is_fast:
        # A LightTokenizer accepts these settings, but does not truncate.
        cut = {
            "truncation": max_length is not None,
            "max_length": max_length,
            # As in ``encode``, names of special tokens in a text are plain text.
            "split_special_tokens": True,
        }
        [encoding] = tokenizer([text], **cut).encodings
        places = encoding.offsets
    else:
        places = places_of_tokens(tokenizer, text, line.content, words=words)
    pieces = []
    end = 0
    for place, (start, stop) in enumerate(places):
        if stop <= start or not line.content[place]:
            continue
        state = "shown"
        replacement = ""
        if choice.tokens[place]:
            state = chosen_state
            if in_place:
                token = int(masked.input_ids[place])
                if token == line.input_ids[place]:
                    state = "kept"
                elif token != masker.vocabulary.mask:
                    state = "random"
                    replacement = _shown(tokenizer, token)
        # With byte fallback, several tokens have the same offsets, and only the first is shown.
        if stop > end:
            pieces.append(Piece(text[min(end, start) : stop], state, replacement))
            end = stop
    source = target = ""
    if not in_place:
        source = _decode(tokenizer, masked.input_ids)
        target = _decode(tokenizer, masked.labels[masked.labels != IGNORE])
    numbers = np.array(row["word_ids"], dtype=np.int64)
    in_word = numbers >= 0
    sizes = np.bincount(numbers[in_word])
    selected = np.bincount(numbers[in_word], choice.tokens[in_word])
    touched = int((selected > 0).sum())
    whole = int((selected == sizes)[sizes > 0].sum())
    # ``max`` avoids a division by 0 in a text without eligible tokens.
    eligible = int(line.eligible.sum())
    ratio = int(choice.tokens.sum()) / max(1, eligible)
    return Inspected(
        text,
        pieces,
        ratio,
        whole,
        touched - whole,
        source,
        target,
        eligible=eligible,
        unknown=int(line.content.sum()) - eligible,
    )


def _shown(tokenizer: FastTokenizer, token: int) -> str:
    """Return a token as text: a byte-level vocabulary has its bytes as other characters."""
    text = _decode(tokenizer, [token]).strip()
    # A token may be a part of a character, or a control character.
    if not text or "\ufffd" in text or not text.isprintable():
        return str(tokenizer.convert_ids_to_tokens(token))
    return text


def _decode(tokenizer: FastTokenizer, ids: Iterable[int]) -> str:
    kept = [int(number) for number in ids if number != tokenizer.pad_token_id]
    return str(tokenizer.decode(kept, clean_up_tokenization_spaces=False))


def inspect_text(
    text: str,
    policies: str,
    settings: Mapping[str, Any],
    *,
    tokenizer: str | None = None,
    step: int | None = None,
    total_steps: int | None = None,
    words: str = "auto",
    texts: int | None = None,
) -> list[Inspected]:
    """Mask a text, or the first texts of a file, with each policy.

    Args:
        text: the name of a file, or a text. Spans may be marked: [[Warsaw]], or [[1867|3]] with
            weight 3.
        policies: the policies, separated by commas.
        settings: the arguments of ``Masker``.
        tokenizer: a folder or hub id. By default, each letter of a FASTA file is a token, and other
            texts use the bundled tokenizer.
        step, total_steps: the training step for which the masking ratio is computed; by default 0
            of ``TOTAL_STEPS``.
        words: what a word is, as for ``encode``.
        texts: how many texts of a file, by default ``SHOWN_TEXTS``. Of each, the first
            ``MAX_CHARACTERS`` characters are used.

    Raises:
        MaskwiseError: there is no text, ``texts`` is given for a text that is no file, a name is
            unknown, or a policy needs an annotation layer that the text does not have.
    """
    shown_as = settings.get("corruption", "bert")
    marked_texts = [read_marks(marked) for marked in _texts(text, texts)]
    specs = split_calls(policies)
    if not specs:
        raise MaskwiseError("no policy is given", got=repr(policies), do="try: token,whole-word")
    has_marks = any(spans for _, spans in marked_texts)
    # Missing layers are found before the tokenizer is loaded, because it may be downloaded.
    needed, annotators = _needed_layers(specs, shown_as, marked=has_marks)
    # The output names the tokenizer, because unexpected tokens usually come from it.
    used = tokenizer or usual_tokenizer(text)
    # A slow tokenizer shows the characters of its tokens only if words are found before it reads.
    loaded = light_tokenizer(used, needs_words=needs_offsets(word_rule(words)))
    used_by = {spec: Masking.used({"policy": spec, **settings}) for spec in specs}
    # Of several policies, some may not use a setting that the others do.
    used_by_one = {name for own in used_by.values() for name in own}
    idle = {name: value for name, value in settings.items() if name not in used_by_one}
    maskers = {spec: Masker(loaded, **own, **idle) for spec, own in used_by.items()}
    refuse_steps(maskers.values(), step=step, total_steps=total_steps)
    step = step or 0
    total_steps = TOTAL_STEPS if total_steps is None else total_steps
    inspected = []
    for plain, spans in marked_texts:
        makers = annotators
        if has_marks and not spans:
            makers = [*annotators, *(name for name in ANNOTATED if name in needed)]
        row = row_of(loaded, plain, spans, needed, makers, words=words)
        for spec, masker in maskers.items():
            shown = show_masks(
                masker, loaded, plain, row=row, step=step, total_steps=total_steps, words=words
            )
            written = {"policy": spec, "corruption": shown_as, "tokenizer": used}
            inspected.append(replace(shown, **written))
    return inspected


def _needed_layers(
    specs: Sequence[str], shown_as: str, *, marked: bool
) -> tuple[list[str], list[str]]:
    """Return the needed layers that come from the text or its marks, and annotators for the others.

    Raises:
        MaskwiseError: a policy needs a layer that this text does not have, or a policy needs one
            label per word but its layer has spans.
    """
    users = {}
    # Without marks in the text, these layers come from the annotators of the same names.
    annotator_of = {} if marked else dict(zip(ANNOTATED, ANNOTATED))
    for spec in specs:
        rule = policy(spec)
        for layer in rule.layers():
            users[layer] = f"policy {spec}"
        for name in rule.annotators():
            for layer in annotator(name).layers:
                annotator_of[layer] = name
        if isinstance(rule, GroupWeighted) and rule.layer == "salient" and not marked:
            what = f"policy {spec} needs a label for each word, but {rule.layer!r} has spans"
            raise MaskwiseError(what, do="use layer='pos', or the policy salient for spans")
    for layer in corruption(shown_as).layers():
        users.setdefault(layer, f"corruption {shown_as}")
    needed = []
    annotators = {}
    for layer, user in users.items():
        if layer in annotator_of:
            annotators[annotator_of[layer]] = layer
        elif marked or layer in TEXT_LAYERS:
            needed.append(layer)
        else:
            do = (
                "mark spans in it: 'born in [[Warsaw]] in [[1867]]', or with a weight: [[1867|3]]; "
                "in a recipe, corpus.layers names the annotator that writes the layer"
            )
            raise MaskwiseError(f"{user} needs the layer {layer!r}, but this text has none", do=do)
    return needed, list(annotators)


def row_of(
    tokenizer: FastTokenizer,
    text: str,
    spans: Sequence[MarkedSpan],
    needs: Collection[str],
    others: Sequence[str],
    *,
    words: str = "auto",
) -> RowOfInput:
    """Encode a text as a row for a ``Masker``.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        spans: the spans that are marked in the text.
        needs: the layers that come from the text or its marks.
        others: the annotators of the other layers.
        words: what a word is, as for ``encode``.
    """
    makers: list[str | Layered] = []
    for name in needs:
        if name == "sentence":
            makers.append("sentences")
        elif name not in TEXT_LAYERS:
            marked = {text: {name: CharSpans.of(spans, SPANS)}}
            makers.append(ByText("marks", {name: SPANS}, marked.__getitem__, ""))
    [row] = encode(tokenizer, [text], layers=annotators([*makers, *others]), words=words)
    # Tokens outside spans have the span number −1, which is the index of the last weight, 1.
    weights = [*(span.weight for span in spans), 1.0]
    for name in WEIGHT_LAYERS:
        if name in needs:
            row[name] = [weights[number] for number in row[name]]
    if "frequency" in needs:
        # A single text is too short for counting, so tokens are counted in a bundled sample.
        counts = Counter[int]()
        sample = read_documents("bundled:wikipedia", limit=200)
        for known in tokenizer([document.text for document in sample]).encodings:
            counts.update(known.ids)
        row["frequency"] = [counts[token] for token in row["input_ids"]]
    return row


def _texts(text: str, count: int | None) -> list[str]:
    """Return the text in a list or, if it is a file name, the beginnings of ``count`` texts."""
    # If a file such as "missing.txt" does not exist, the name is an error and not a text.
    looks_like_file = ending_of(Path(text)) is not None
    # Unlike Path.is_file, os.path.isfile accepts a string of any length.
    is_corpus = os.path.isfile(text) or os.path.isdir(text)
    if (looks_like_file and "\n" not in text) or is_corpus:
        documents = require_documents(read_documents(text))
        texts = []
        for document in islice(documents, SHOWN_TEXTS if count is None else count):
            one_line = " ".join(document.text.split())
            texts.append(one_line[:MAX_CHARACTERS])
        return texts
    if count is not None:
        raise MaskwiseError(
            "a number of texts is given for one text",
            got=f"{count} and {shortened(text)}",
            allowed="a number with a file of texts",
            do="leave the number out",
        )
    if not text.strip():
        raise MaskwiseError("there is no text to mask", got="an empty text")
    require_utf8(text)
    return [text]


def render_masks(inspected: Iterable[Inspected], *, colours: bool) -> RenderableType:
    """Return texts for a terminal, with selected tokens in colour or brackets."""
    legend = Text("  ").join(draw([entry], colours=colours) for entry in LEGEND)
    parts: list[RenderableType] = [legend.append("\n")]
    inspected = list(inspected)
    if inspected:
        parts.append(Text(f"tokenizer: {inspected[0].tokenizer}\n", style="dim"))
    for entry in inspected:
        parts.append(Text.assemble((entry.policy, "bold"), f"   {entry.headline}"))
        parts.append(Padding(draw(entry.stretches, colours=colours), (0, 0, 1, 2)))
        if entry.note:
            parts.append(Padding(Text(entry.note, style="dim"), (0, 0, 1, 2)))
        if entry.target:
            lines = (("reads", entry.source), ("writes", entry.target))
            group = [Text.assemble((f"{who:8}", "dim"), visible(words)) for who, words in lines]
            parts.append(Padding(Group(*group), (0, 0, 1, 2)))
    return Group(*parts)


def write_masks(inspected: Sequence[Inspected], path: Path) -> None:
    """Write the texts as an HTML page, with selected tokens in colour."""
    write_page(path, "masks.html.j2", inspected=inspected, legend=LEGEND)
