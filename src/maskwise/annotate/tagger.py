"""Annotate parts of speech and salient spans with a spaCy pipeline, bundled or installed.

Salient spans are names, dates and numbers. One pass of the pipeline over a text finds the parts of
speech and the salient spans. The bundled pipeline (data/tagger-en, with a model card) has a tagger
and an entity recogniser on an encoder with two convolutions. If only parts of speech are wanted,
the recogniser does not run.

Every text is accepted. SpaCy cannot hash surrogate characters, so they become U+FFFD. SpaCy's
arrays grow with the longest text (4.5 GB for 10 MB). Long texts are therefore cut at the end of a
paragraph, line, sentence or word. SpaCy's tokenizer may need minutes for a single word of a
thousand characters. Such words are therefore cut, too. White space has no part of speech.

Cost: almost all time is spent in spaCy (``benchmarks/annotate.py``), half of it in matrix products.
Numpy's BLAS computes these products, because spaCy's BLIS needs almost three times as long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from maskwise.base.constants import UPOS
from maskwise.base.errors import MaskwiseError, first_line, require_library
from maskwise.base.folders import bundled_file
from maskwise.base.specs import Call, parse_call, user_path
from maskwise.masking.segments import Array, changes
from maskwise.text.conll import POS
from maskwise.text.layers import CharSpans, Found, Layer, digest
from maskwise.text.words import LETTER, Flags, classify, codes_of

VERSION = "salient-2"
SALIENT = Layer("spans", ("name", "date", "number"))
NONE, NAME, DATE, NUMBER = range(4)


_DAY = r"[0-3]?\d(?:st|nd|rd|th)?"
_YEAR = r"(?:1\d{3}|20\d\d)"
_FULL = (
    r"January|February|March|April|May|June|July|August|September|October|November|December"
    r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?"
)
_WEEKDAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_DATES = (
    rf"(?:{_WEEKDAY},?[ ])?{_DAY}[ ](?:of[ ])?(?:{_FULL})(?:,?[ ]{_YEAR})?",  # 3 May 1999
    # May 3, 1999; May 1999
    rf"(?:{_WEEKDAY},?[ ])?(?:{_FULL})[ ](?:{_DAY}(?:,?[ ]{_YEAR})?|{_YEAR})(?!\d)",
    r"\d{4}-\d\d-\d\d|\d{1,2}/\d{1,2}/\d{2,4}",
    rf"{_YEAR}(?:[-–]\d{{2,4}}|['’]?s)?(?![\d,]*\d|[.]\d)",  # 1999, 1999–2001, 1990s
    r"\d{1,2}(?:st|nd|rd|th)[- ](?:century|centuries)",
    r"\d{1,4}[ ](?:BCE?|CE|AD)\b",
    r"\d{1,2}:\d\d(?:[ ]?[ap]\.?m\b\.?)?|\d{1,2}[ ]?[ap]\.?m\b\.?",
    rf"{_WEEKDAY}s?|(?:January|February|April|June|July|September|October|November|December)",
)
_SCALE = r"(?:[ ](?:hundred|thousand|million|billion|trillion))?"
_AMOUNT = r"\d(?:[\d,.]*\d)?"
_NUMBERS = (rf"[$€£¥][ ]?{_AMOUNT}{_SCALE}", rf"{_AMOUNT}(?:[ ]?%|[ ]per[ ]?cent\b|{_SCALE})")
# Looking ahead for the first letters makes the search three times as fast.
_BEGIN = r"(?=[\d$€£¥]|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun)"
_FORMS = re.compile(
    rf"(?=[\d$€£¥jfmasondtw])(?<![\w.,/-]){_BEGIN}"
    rf"(?:(?P<date>{'|'.join(_DATES)})|(?P<number>{'|'.join(_NUMBERS)}))(?!\w)",
    re.IGNORECASE,
)
# Patterns that join two names into one: Al-Zaman, AT&T, University of the Arts.
_JOINTS = re.compile(r"(?<=\w)(?:[-–&]|[ ]&[ ]|[ ]of(?:[ ]the)?[ ])(?=\w)")
_OPENERS = np.array(list(map(ord, ".!?:;…\"“”‘'([")), dtype=np.uint32)


TOKEN = np.dtype(
    [
        ("start", np.int32),
        ("end", np.int32),
        ("tag", np.int16),
        ("entity", np.int16),
        ("title", np.bool_),
        ("lower", np.bool_),
        ("one", np.bool_),
    ]
)
"""A token that is not white space. ``start`` and ``end`` are its character offsets. ``tag`` is the
code of its tag in `UPOS`, counted from 1; 0 means that the token has no universal tag. ``entity``
is NAME, DATE or NUMBER inside an entity, else NONE. ``title``: whether the token begins with a
capital. ``lower``: whether all its letters are in lower case. ``one``: whether the token is the
word "one", which is rarely a number worth masking."""


def _tagged(tokens: Array, *tags: str) -> Flags:
    """Return (T,) bool: whether each token has one of these tags."""
    return np.isin(tokens["tag"], [_CODES[tag] for tag in tags])


def _within(tokens: Array, match: re.Match[str]) -> slice:
    """Return the slice of the tokens that overlap a match."""
    first = int(tokens["end"].searchsorted(match.start(), "right"))
    return slice(first, int(tokens["start"].searchsorted(match.end())))


def salient_spans(text: str, tokens: Array) -> CharSpans:
    """Find the salient spans of a text. The value of a span is NAME, DATE or NUMBER.

    - A name is a run of entities and proper nouns. Universal Dependencies do not tag "Japanese" as
      a proper noun, nor "United" in "United States". Therefore capitalised adjectives, nouns and
      verbs count as proper nouns, too, except at the start of a sentence. A proper noun in lower
      case is a name only if the whole text is in lower case, if the words before and after it are
      proper nouns, or if the entity recogniser finds it.
    - Dates and numbers are found by patterns, by the entity recogniser and by the tag NUM.

    Tags are needed because they find names that the small entity recogniser misses. The recogniser
    is needed because it finds names in lower case. The rules were tuned on data that no reported
    score uses (scripts/train_tagger/README.md).
    """
    start = tokens["start"]
    end = tokens["end"]
    if not len(start):
        return CharSpans.of((), SALIENT)
    codes = codes_of(text)
    lines = np.cumsum(codes == ord("\n"))
    # For each token but the first, the position of the last character of the token before it.
    before = end[:-1] - 1
    # No span crosses the end of a line, so a token on a new line begins a new span.
    breaks = np.ones(len(start), dtype=bool)
    breaks[1:] = lines[start[1:]] > lines[before]
    # The first word of a sentence is capitalised even if it is not a name.
    opens = breaks.copy()
    opens[1:] |= np.isin(codes[before], _OPENERS)

    kind = tokens["entity"].copy()
    kind[(kind == NONE) & _tagged(tokens, "NUM") & ~tokens["one"]] = NUMBER
    proper = _tagged(tokens, "PROPN")
    title = tokens["title"]
    small = tokens["lower"] & title.any()
    # A proper noun in lower case counts only between two others, as in "Charles de Gaulle".
    sure = np.pad(proper & ~small, 1)
    proper = sure[1:-1] | (proper & sure[:-2] & sure[2:])
    content = _tagged(tokens, "ADJ", "NOUN", "VERB")
    kind[proper | (content & title & ~opens)] = NAME
    # The number of the match of each token keeps two adjacent dates or amounts apart.
    form = np.zeros(len(kind), dtype=np.int64)
    for number, match in enumerate(_FORMS.finditer(text), start=1):
        inside = _within(tokens, match)
        kind[inside] = DATE if match.lastgroup == "date" else NUMBER
        form[inside] = number
    for match in _JOINTS.finditer(text):
        inside = _within(tokens, match)
        left = kind[max(inside.start - 1, 0)]
        right = kind[min(inside.stop, len(kind) - 1)]
        if left == right == NAME:
            kind[inside] = NAME

    begin = np.flatnonzero(breaks | changes(kind, form))
    last = np.append(begin[1:], len(kind)) - 1
    start = start[begin]
    end = end[last]
    kind = kind[begin]
    is_salient = kind != NONE
    # Taggers may tag emoji or stray punctuation as PROPN. Spans without a letter or digit are
    # therefore dropped.
    first_class = classify(text)[start]
    for span in np.flatnonzero(is_salient & (first_class != LETTER)):
        is_salient[span] = any(map(str.isalnum, text[start[span] : end[span]]))
    return CharSpans(start[is_salient], end[is_salient], kind[is_salient])


PIECE_CHARACTERS = 5_000
WORD_CHARACTERS = 1_000
BATCH = 32
"""Number of texts that spaCy processes at once. With 64 or more texts, the arrays outgrow the
processor's cache, and annotating takes a third longer."""
MAX_NEW_WORDS = 200_000
"""Number of new words after which the pipeline is loaded again. SpaCy caches every word that it has
seen, and loading clears this cache (about 100 MB by then). SpaCy's memory zones would clear it,
too, but they made annotating a third slower."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG_WORD = re.compile(rf"\S{{{WORD_CHARACTERS}}}")
_BORDERS = ("\n\n", "\n", ". ", " ")
_CODES = {tag: code for code, tag in enumerate(UPOS, 1)}
# Universal Dependencies named coordinating conjunctions CONJ before version 2.
_CODES["CONJ"] = _CODES["CCONJ"]
# The types of entities in OntoNotes that are not names.
_KINDS = {
    **dict.fromkeys(("DATE", "TIME"), DATE),
    **dict.fromkeys(("CARDINAL", "ORDINAL", "QUANTITY", "PERCENT", "MONEY"), NUMBER),
}
_UNUSED = [
    "parser",
    "senter",
    "lemmatizer",
    "trainable_lemmatizer",
    "textcat",
    "textcat_multilabel",
]
_ENTITIES = ["ner", "entity_ruler"]


NO_MODEL = (".md", ".pyc")
"""Extensions of files that do not affect the tags of a pipeline."""


class SpacyPipeline:
    """An annotator with the layers "pos" (17 universal parts of speech), "salient", or both.

    Args:
        layers: the names of the layers. Both layers need only one pass; "pos" alone is faster.
        model: the name of an installed spaCy pipeline, or its folder; None for the bundled
            pipeline.

    Raises:
        MaskwiseError: the pipeline is not installed, cannot be loaded, or has no universal tags.
    """

    def __init__(self, layers: Sequence[str] = ("pos", "salient"), *, model: str | None = None):
        require_library("spacy", use=layers[0])
        self.name = layers[0]
        known = {"pos": POS, "salient": SALIENT}
        self.layers = {name: known[name] for name in layers}
        self.folder = _folder(model)
        # Whether it is the bundled pipeline, which is for English.
        self.english = model is None

    @cached_property
    def version(self) -> str:
        """A hash of the pipeline's files, of spaCy's version and of the rules in this module.

        The model card is left out of the hash.
        """
        named: list[object] = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.suffix not in NO_MODEL:
                named += [path.relative_to(self.folder).as_posix(), path]
        return digest("spacy", 2, version("spacy"), VERSION, sorted(self.layers), *named)

    def annotate(self, texts: list[str]) -> list[Found]:
        """Return the layers of each text; see `Annotator`."""
        pieces = []
        begins_of_texts = []
        for text in texts:
            begins = []
            for begin, end in _pieces(text):
                begins.append(begin)
                pieces.append(_SURROGATE.sub("\ufffd", text[begin:end]))
            begins_of_texts.append(begins)
        if len(self.nlp.vocab) > self._words_at_load + MAX_NEW_WORDS:
            # `nlp` is a cached property, so the next access loads the pipeline again.
            del self.nlp
        docs = self.nlp.pipe(pieces, batch_size=BATCH)
        found = []
        for text, begins in zip(texts, begins_of_texts, strict=True):
            tokens = self._tokens(begins, docs)
            layers = {}
            if "pos" in self.layers:
                tagged = tokens[tokens["tag"] > 0]
                layers["pos"] = CharSpans(
                    tagged["start"].copy(), tagged["end"].copy(), tagged["tag"].copy()
                )
            if "salient" in self.layers:
                layers["salient"] = salient_spans(text, tokens)
            found.append(layers)
        return found

    def _tokens(self, begins: Sequence[int], docs: Iterator[Any]) -> Array:
        """Return the T tokens of a text as an array (T,) of `TOKEN`.

        Args:
            begins: the position of each piece of the text.
            docs: spaCy's documents. The next ``len(begins)`` documents are the pieces of this text.
        """
        rows = []
        for begin, doc in zip(begins, docs):
            for token in doc:
                # SpaCy also makes tokens of white space.
                if token.is_space:
                    continue
                start = begin + token.idx
                entity = token.ent_type_
                rows.append(
                    (
                        start,
                        start + len(token),
                        _CODES.get(self._tag_of(token), 0),
                        _KINDS.get(entity, NAME) if entity else NONE,
                        token.is_title or token.is_upper,
                        token.is_lower,
                        token.lower_ == "one",
                    )
                )
        return np.array(rows, dtype=TOKEN)

    @cached_property
    def nlp(self) -> Any:
        """The spaCy pipeline, loaded at the first access."""
        import spacy
        from thinc.api import Model, NumpyOps

        unused = list(_UNUSED)
        if "salient" not in self.layers:
            unused += _ENTITIES
        try:
            nlp = spacy.load(self.folder, exclude=unused)
        # Components of third-party packages may raise any exception.
        except Exception as error:
            raise MaskwiseError(
                f"cannot load the spaCy pipeline in {self.folder}: {first_line(error)}",
            ) from error
        self._words_at_load = len(nlp.vocab)
        # Numpy's BLAS is faster than BLIS. The ops for a GPU or for Apple's library stay.
        ops = NumpyOps(use_blis=False)
        for _, component in nlp.pipeline:
            # Rule-based components have no model.
            if hasattr(component, "model") and isinstance(component.model, Model):
                for node in component.model.walk():
                    if type(node.ops) is NumpyOps:
                        node.ops = ops
        return nlp

    @cached_property
    def _tag_of(self) -> attrgetter[str]:
        """A function that returns the universal tag of a token.

        Most pipelines store this tag in ``pos_``, but some store it in ``tag_``.
        """
        probe = self.nlp("The old house stands in Paris.")
        if any(token.pos_ for token in probe):
            return attrgetter("pos_")
        tags = {token.tag_ for token in probe}
        if tags & {"DET", "NOUN", "PROPN", "PUNCT"}:
            return attrgetter("tag_")
        raise MaskwiseError(
            f"the spaCy pipeline {self.folder.name} gives no universal parts of speech",
            got=f"tags {sorted(tags)[:5]}",
            do="use a pipeline with a tagger and an attribute ruler, such as en_core_web_sm",
        )


def pos(*, model: str | None = None, salient: bool = False) -> SpacyPipeline:
    """Annotate parts of speech.

    Args:
        model: a spaCy pipeline of the language of the texts: its folder, or the name of an
            installed package, such as "de_core_news_sm". By default, the bundled one, for English.
        salient: whether the same pass annotates salient spans, too.
    """
    if salient:
        return SpacyPipeline(model=model)
    return SpacyPipeline(("pos",), model=model)


def salient(*, model: str | None = None) -> SpacyPipeline:
    """Annotate salient spans: names, dates, numbers.

    Args:
        model: as for ``pos``; it must recognise names.
    """
    return SpacyPipeline(("salient",), model=model)


def one_pass(specs: Sequence[str]) -> list[str]:
    """Merge "pos" and "salient" into one ``pos(salient=True)`` if their arguments are equal."""
    calls = list(map(parse_call, specs))
    joined = []
    for call in calls:
        other = {"pos": "salient", "salient": "pos"}.get(call.name, "")
        if Call(other, kwargs=call.kwargs) not in calls:
            joined.append(call.written)
        elif call.name == "pos":
            joined.append(str(Call("pos", kwargs=call.kwargs | {"salient": True})))
    return joined


def _folder(model: str | None) -> Path:
    """Return the folder of a pipeline.

    Raises:
        MaskwiseError: the pipeline is not installed.
    """
    if model is None:
        return bundled_file("tagger-en")
    path = user_path(model)
    package = None
    # ``find_spec`` raises for some names, such as "__main__".
    with suppress(ValueError, ImportError):
        if model.isidentifier():
            package = find_spec(model)
    if package and package.origin:
        # A spaCy package has the pipeline in a subfolder NAME-VERSION.
        for file in Path(package.origin).parent.glob("*/config.cfg"):
            path = file.parent
    if not (path / "config.cfg").is_file():
        raise MaskwiseError(
            f"no spaCy pipeline {model!r} is installed",
            do=f"install it with: python -m spacy download {model}; or give the folder of a "
            "pipeline",
        )
    return path


PART_CHARACTERS = 100_000


def text_parts(text: str) -> list[tuple[int, int]]:
    """Return the (start, end) of the parts, cut at line breaks or spaces, in which a text is
    annotated and counted, so that a long text needs little memory.
    """
    return list(cut_text(text, 0, len(text), most=PART_CHARACTERS, borders=("\n", " ")))


def cut_text(
    text: str,
    start: int,
    stop: int,
    *,
    most: int,
    borders: Sequence[str],
) -> Iterator[tuple[int, int]]:
    """Cut ``text[start:stop]`` into parts; yield the (start, end) of each part.

    Args:
        text: the text.
        start, stop: the characters to cut.
        most: the maximum number of characters in a part.
        borders: strings at which to cut, best first. A part ends after the last occurrence of the
            best border in the part's second half. If there is no border, the part is cut after
            exactly ``most`` characters.
    """
    while stop - start > most:
        end = start + most
        for border in borders:
            at = text.rfind(border, start + most // 2, end)
            if at >= 0:
                end = at + len(border)
                break
        yield start, end
        start = end
    yield start, stop


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) of pieces of a text for spaCy.

    A piece has at most `PIECE_CHARACTERS`, and a word is cut after `WORD_CHARACTERS`.
    """
    start = 0
    if len(max(text.split(), key=len, default="")) >= WORD_CHARACTERS:
        for match in _LONG_WORD.finditer(text):
            yield from cut_text(text, start, match.end(), most=PIECE_CHARACTERS, borders=_BORDERS)
            start = match.end()
    yield from cut_text(text, start, len(text), most=PIECE_CHARACTERS, borders=_BORDERS)
