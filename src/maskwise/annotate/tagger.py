"""Parts of speech and salient spans by a spaCy pipeline: the one that ships, or an installed one.

One pass over the text gives both layers. The shipped pipeline (data/tagger-en, with its card) is
small: a tagger and an entity recogniser on one encoder of two convolutions. ``pos`` alone leaves
the recogniser out.

No text stops it: surrogates, which spaCy cannot hash, are replaced by U+FFFD, and long texts are
cut at the end of a paragraph, a line, a sentence or a word, because spaCy's arrays are as large as
the longest texts (4.5 GB for one of 10 MB); so are words of a thousand characters and more, over
which its tokenizer may take minutes. White space has no part of speech.

Cost: nearly all is spaCy's own; ``benchmarks/annotate.py`` measures it. Matrix products, half of
that, use numpy's BLAS in place of spaCy's BLIS, which takes nearly three times as long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskwise.constants import UPOS
from maskwise.errors import MaskwiseError, first_line
from maskwise.segments import changes
from maskwise.specs import Call, parse_call
from maskwise.text.labelled import POS
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.words import LETTER, classify

VERSION = "salient-2"
SALIENT = Layer("spans", ("name", "date", "number"))
NONE, NAME, DATE, NUMBER = range(4)

Flags = NDArray[np.bool_]
Ints = NDArray[np.int32]
Codes = NDArray[np.int16]

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
# Looking ahead for how one can begin makes the search three times as fast.
_BEGIN = r"(?=[\d$€£¥]|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun)"
_FORMS = re.compile(
    rf"(?=[\d$€£¥jfmasondtw])(?<![\w.,/-]){_BEGIN}"
    rf"(?:(?P<date>{'|'.join(_DATES)})|(?P<number>{'|'.join(_NUMBERS)}))(?!\w)",
    re.IGNORECASE,
)
# What a name may go on over, if both sides are names: Al-Zaman, AT&T, University of the Arts.
_JOINTS = re.compile(r"(?<=\w)(?:[-–&]|[ ]&[ ]|[ ]of(?:[ ]the)?[ ])(?=\w)")
_OPENERS = np.array([ord(c) for c in ".!?:;…\"“”‘'(["], dtype=np.uint32)


class Tokens(NamedTuple):
    """The T tokens of a text, without white space.

    Attributes:
        start, end: (T,) characters.
        tag: (T,) codes of `UPOS`, 0 for none.
        entity: (T,) NAME, DATE or NUMBER in an entity of that kind, else NONE.
        title, lower: (T,) written So or SO; so.
        one: (T,) the word "one", which says little as a number.
    """

    start: Ints
    end: Ints
    tag: Codes
    entity: Codes
    title: Flags
    lower: Flags
    one: Flags

    def tagged(self, *tags: str) -> Flags:
        """(T,) which have one of these tags."""
        return np.isin(self.tag, [_CODES[tag] for tag in tags])

    def within(self, match: re.Match[str]) -> slice:
        """The tokens that the match covers or cuts."""
        first = int(self.end.searchsorted(match.start(), "right"))
        return slice(first, int(self.start.searchsorted(match.end())))


def salient_spans(text: str, tokens: Tokens) -> CharSpans:
    """The salient spans of a text, with the codes of `SALIENT`.

    A *name* is an entity or a proper noun, joined where they touch; so is a capitalised adjective,
    noun or verb that does not open its sentence ("Japanese", the "United" of "United States"):
    English writes names that way, and Universal Dependencies tag their parts by what they are. A
    proper noun in lower case is not a name, unless the whole text is in lower case or the entity
    recogniser says so. Written-out dates and amounts are found by their form, other numbers by
    their tag. If they compete, form goes before tag.

    Tags find names that a small entity recogniser has never met, entities those in lower case.
    Tuned on data that no score is reported on (scripts/train_tagger/README.md).
    """
    start = tokens.start
    end = tokens.end
    if not len(start):
        return CharSpans.of((), SALIENT)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lines = np.cumsum(codes == ord("\n"))
    breaks = np.ones(len(start), dtype=bool)  # no span crosses the end of a line
    breaks[1:] = lines[start[1:]] > lines[end[:-1] - 1]
    opens = breaks.copy()  # may stand at the start of a sentence, where a capital says nothing
    opens[1:] |= np.isin(codes[end[:-1] - 1], _OPENERS)

    kind = tokens.entity.copy()
    kind[(kind == NONE) & tokens.tagged("NUM") & ~tokens.one] = NUMBER
    proper = tokens.tagged("PROPN")
    small = tokens.lower & tokens.title.any()
    # a proper noun in lower case counts only inside of a name ("de Gaulle")
    sure = np.pad(proper & ~small, 1)
    proper = sure[1:-1] | (proper & sure[:-2] & sure[2:])
    content = tokens.tagged("ADJ", "NOUN", "VERB")
    title = tokens.title
    kind[proper | (content & title & ~opens)] = NAME
    form = np.zeros(len(kind), dtype=np.int64)  # the number of the date or amount around a token
    for number, match in enumerate(_FORMS.finditer(text), start=1):
        inside = tokens.within(match)
        kind[inside] = DATE if match.lastgroup == "date" else NUMBER
        form[inside] = number
    for match in _JOINTS.finditer(text):
        inside = tokens.within(match)
        before = kind[max(inside.start - 1, 0)]
        after = kind[min(inside.stop, len(kind) - 1)]
        if before == after == NAME:
            kind[inside] = NAME

    begin = np.flatnonzero(breaks | changes(kind, form))
    last = np.append(begin[1:], len(kind)) - 1
    is_salient = kind[begin] != NONE
    # a tagger may call emoji and stray marks PROPN; they are not names
    for at in np.flatnonzero(is_salient & (classify(text)[start[begin]] != LETTER)):
        is_salient[at] = any(map(str.isalnum, text[start[begin[at]] : end[last[at]]]))
    begin = begin[is_salient]
    return CharSpans(start[begin], end[last[is_salient]], kind[begin])


SHIPPED = Path(__file__).parent.parent / "data" / "tagger-en"
PIECE_CHARACTERS = 5_000
WORD_CHARACTERS = 1_000
BATCH = 32
"""Texts at once; with 64 and more the arrays outgrow the processor's cache: a third slower."""
MAX_NEW_WORDS = 200_000
"""spaCy caches every word; after this many new ones (about 100 MB) it is loaded again. Its memory
zones keep no cache: annotating took a third longer with them.
"""
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG_WORD = re.compile(rf"\S{{{WORD_CHARACTERS}}}")
_BORDERS = ("\n\n", "\n", ". ", " ")
# before 2017
_CODES = {tag: code for code, tag in enumerate(UPOS, 1)} | {"CONJ": UPOS.index("CCONJ") + 1}
# Entity types of OntoNotes that are no names.
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
_COLUMNS = ["IDX", "LENGTH", "IS_SPACE", "IS_TITLE", "IS_UPPER", "IS_LOWER", "LOWER", "ENT_TYPE"]


NO_MODEL = (".md", ".pyc")
"""Files of a pipeline's folder that no tag depends on."""


class SpacyPipeline:
    """The layers "pos" (17 universal tags) and "salient" (names, dates, numbers), or one of them.

    Args:
        layers: which of the two. Tags alone are faster; both come in one pass.
        model: an installed spaCy pipeline, or its folder; None: the shipped one.

    Raises:
        MaskwiseError: a pipeline that is not installed, cannot be loaded, or gives no universal
            tags.
    """

    imports: ClassVar = ("spacy",)
    """Modules that its workers take seconds to import."""

    def __init__(self, layers: Sequence[str] = ("pos", "salient"), *, model: str | None = None):
        self.name = layers[0]
        self.layers = {name: {"pos": POS, "salient": SALIENT}[name] for name in layers}
        self.folder = _folder(model)

    @cached_property
    def version(self) -> str:
        """Changes with any file of the pipeline but its card, with spaCy, and with the rules."""
        named: list[object] = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.suffix not in NO_MODEL:
                named += [path.relative_to(self.folder).as_posix(), path]
        return digest("spacy", 2, version("spacy"), VERSION, sorted(self.layers), *named)

    def annotate(self, texts: list[str]) -> list[dict[str, CharSpans]]:
        """For each text its layers; see `Annotator`."""
        cuts = [list(_pieces(text)) for text in texts]
        pieces: list[str] = []
        for text, cut in zip(texts, cuts, strict=True):
            pieces += [_SURROGATE.sub("\ufffd", text[begin:end]) for begin, end in cut]
        if len(self.nlp.vocab) > self._words_at_load + MAX_NEW_WORDS:
            del self.nlp  # and load it again
            self.__dict__.pop("_direct", None)  # holds a component of the old one
        tables = self._tables(pieces)
        found = []
        for text, cut in zip(texts, cuts, strict=True):
            tokens = self._tokens([(begin, *next(tables)) for begin, _ in cut])
            layers = {}
            if "pos" in self.layers:
                tagged = tokens.tag > 0
                layers["pos"] = CharSpans(
                    tokens.start[tagged], tokens.end[tagged], tokens.tag[tagged]
                )
            if "salient" in self.layers:
                layers["salient"] = salient_spans(text, tokens)
            found.append(layers)
        return found

    def _tables(self, pieces: Sequence[str]) -> Iterator[tuple[NDArray[np.uint64], Codes]]:
        """For each piece of text its T tokens: (T, `_COLUMNS`), and (T,) codes of tags."""
        from spacy.util import minibatch

        if self._direct is None:
            for doc in self.nlp.pipe(pieces, batch_size=BATCH):
                yield doc.to_array(_COLUMNS), self._coded(doc.to_array(self._column), _CODES)
            return
        tagger, codes = self._direct
        docs = self.nlp.pipe(pieces, batch_size=BATCH, disable=[tagger.name])
        for batch in minibatch(docs, BATCH):
            for doc, predicted in zip(batch, tagger.predict(batch)):
                yield doc.to_array(_COLUMNS), codes[predicted] if len(doc) else codes[:0]

    def _tokens(self, tables: Sequence[tuple[int, NDArray[np.uint64], Codes]]) -> Tokens:
        """The tokens of a text from those of its pieces, each with its first character."""
        for begin, table, _ in tables:
            table[:, 0] += np.uint64(begin)
        every = np.concatenate([table for _, table, _ in tables])
        inked = every[:, 2] == 0  # white space has no tag
        place, length, _, title, upper, lower, form, entity = every[inked].T
        start = place.astype(np.int32)
        return Tokens(
            start,
            start + length.astype(np.int32),
            np.concatenate([codes for _, _, codes in tables])[inked],
            self._coded(entity, _KINDS, other=NAME),
            (title | upper) > 0,
            lower > 0,
            form == self.nlp.vocab.strings["one"],
        )

    def _coded(
        self, symbols: NDArray[np.uint64], codes: Mapping[str, int], *, other: int = 0
    ) -> Codes:
        """spaCy's numbers of names → our codes; 0 for the empty name."""
        numbers, place = np.unique(symbols, return_inverse=True)
        names = [self.nlp.vocab.strings[int(number)] for number in numbers]
        coded = [codes.get(name, other) if name else 0 for name in names]
        return np.array(coded, dtype=np.int16)[place]

    @cached_property
    def nlp(self) -> Any:
        """The spaCy pipeline, loaded when it is first needed."""
        import spacy

        unused = _UNUSED if "salient" in self.layers else _UNUSED + _ENTITIES
        try:
            nlp = spacy.load(self.folder, exclude=unused)
        except Exception as error:  # whatever its components raise
            what = f"cannot load the spaCy pipeline in {self.folder}: {first_line(error)}"
            raise MaskwiseError(what) from error
        self._words_at_load = len(nlp.vocab)
        _multiply_by_numpy(nlp)
        return nlp

    @cached_property
    def _direct(self) -> tuple[Any, Codes] | None:
        """The component that predicts the tags, and the code of each of its classes.

        None if other components may change tags. Tags that are read from its output need not be
        written into every token, which saves a seventh of the time.
        """
        factories = self.nlp.pipe_factories
        names = [name for name, factory in factories.items() if factory == "morphologizer"]
        if not names or not set(factories.values()) <= {"tok2vec", "morphologizer", "ner"}:
            return None
        tagger = self.nlp.get_pipe(names[0])
        tags = [tagger.cfg["labels_pos"][label] for label in tagger.labels]
        return tagger, self._coded(np.array(tags, dtype=np.uint64), _CODES)

    @cached_property
    def _column(self) -> str:
        """Where the pipeline has universal tags: POS, or TAG as some that were trained on UD."""
        probe = self.nlp("The old house stands in Paris.")
        if any(token.pos_ for token in probe):
            return "POS"
        tags = {token.tag_ for token in probe}
        if tags & {"DET", "NOUN", "PROPN", "PUNCT"}:
            return "TAG"
        what = f"spaCy pipeline {self.folder.name} gives no universal parts of speech"
        do = "take one with a tagger and an attribute ruler, such as en_core_web_sm"
        raise MaskwiseError(what, got=f"tags {sorted(tags)[:5]}", do=do)


def pos(*, model: str | None = None, salient: bool = False) -> SpacyPipeline:
    """Parts of speech; with ``salient`` the salient spans too, in the same pass."""
    return SpacyPipeline(("pos", "salient") if salient else ("pos",), model=model)


def salient(*, model: str | None = None) -> SpacyPipeline:
    """Salient spans: names, dates, numbers."""
    return SpacyPipeline(("salient",), model=model)


def one_pass(specs: Sequence[str]) -> list[str]:
    """The same annotators, "pos" and "salient" of one pipeline joined: ``pos(salient=True)``."""
    calls = [parse_call(spec) for spec in specs]
    joined = []
    for call in calls:
        twin = Call("salient" if call.name == "pos" else "pos", kwargs=call.kwargs)
        if call.name not in ("pos", "salient") or twin not in calls:
            joined.append(call.written)
        elif call.name == "pos":
            joined.append(str(Call("pos", kwargs=call.kwargs | {"salient": True})))
    return joined


def _multiply_by_numpy(nlp: Any) -> None:
    """Use numpy's matrix product in place of BLIS; a GPU and Apple's library keep their own."""
    from thinc.api import Model, NumpyOps

    ops = NumpyOps(use_blis=False)
    for _, component in nlp.pipeline:
        # rule-based components have no model
        if hasattr(component, "model") and isinstance(component.model, Model):
            for node in component.model.walk():
                if type(node.ops) is NumpyOps:
                    node.ops = ops


def _folder(model: str | None) -> Path:
    """The folder of a pipeline.

    Raises:
        MaskwiseError: it is not installed.
    """
    if model is None:
        return SHIPPED
    path = Path(model).expanduser()
    package = None
    with suppress(ValueError, ImportError):  # "__main__" is a name that has no package
        package = find_spec(model) if model.isidentifier() else None
    if package and package.origin:
        # a package of spaCy's has the pipeline in a folder NAME-VERSION
        for file in Path(package.origin).parent.glob("*/config.cfg"):
            path = file.parent
    if not (path / "config.cfg").is_file():
        do = f"install it with: python -m spacy download {model}; or give the folder of a pipeline"
        raise MaskwiseError(f"no spaCy pipeline {model!r} is installed", do=do)
    return path


def cut_text(
    text: str, start: int, stop: int, *, most: int, borders: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """Cut a stretch of a text into parts of at most ``most`` characters.

    A part ends after the last border in its second half, of the first kind that is there; else
    anywhere.
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
    """Cut a text into pieces up to `PIECE_CHARACTERS`, and words up to `WORD_CHARACTERS`."""
    start = 0
    if len(max(text.split(), key=len, default="")) >= WORD_CHARACTERS:
        for match in _LONG_WORD.finditer(text):
            yield from cut_text(text, start, match.end(), most=PIECE_CHARACTERS, borders=_BORDERS)
            start = match.end()
    yield from cut_text(text, start, len(text), most=PIECE_CHARACTERS, borders=_BORDERS)
