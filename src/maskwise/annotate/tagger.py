"""Parts of speech and salient spans by a spaCy pipeline: the one that maskwise ships, or any that
is installed.

One pass over the text gives both layers. The shipped pipeline (data/tagger-en, with its card) is
small: a tagger and an entity recogniser on one encoder of two convolutions. ``pos`` alone leaves
    the recogniser out.

Nothing in a text stops it: halves of surrogate pairs, which spaCy cannot hash, are shown to it as
U+FFFD, and long texts are cut at the end of a paragraph, a line, a sentence or a word, whichever
comes first within reach, for spaCy's arrays are as large as the longest texts (4.5 GB for one of 10
MB); so are words of a thousand characters and more, over which its tokenizer may take minutes.
White space has no part of speech.

Cost: nearly all is spaCy's own; ``benchmarks/annotate.py`` measures it. Matrix products, half of
    that, go
through numpy's BLAS instead of the BLIS that comes with spaCy, which takes nearly three times as
long here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from maskwise.constants import UPOS
from maskwise.errors import MaskwiseError, first_line
from maskwise.specs import Call, parse_call
from maskwise.text.labelled import POS
from maskwise.text.layers import CharSpans, Layer, digest
from maskwise.text.words import LETTER, classify

VERSION = "salient-2"
SALIENT = Layer("spans", ("name", "date", "number"))
NONE, NAME, DATE, NUMBER = range(4)

Flags = NDArray[np.bool_]
Ints = NDArray[np.int32]
Tokens = tuple[NDArray[np.uint64], NDArray[np.int16]]

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


def salient_spans(
    text: str,
    start: Ints,
    end: Ints,
    *,
    proper: Flags,
    numeral: Flags,
    content: Flags,
    title: Flags,
    lower: Flags,
    entity: NDArray[np.int16],
) -> CharSpans:
    """The salient spans of a text, with the codes of `SALIENT`, from its T tokens without white
    space.

    A *name* is what the tagger takes for an entity or a proper noun, joined where they touch; so is
    a capitalised adjective, noun or verb that does not open its sentence ("Japanese", the "United"
    of "United States"): English writes names that way, and Universal Dependencies tag their parts
    by what they are. A proper noun in lower case is not taken for a name, unless the whole text is
    in lower case or the entity recogniser says so. Written-out dates and amounts are found by their
    form, other numbers by their tag. Where they compete, form goes before tag.

    Why all of these: tags find names that a small entity recogniser has never met, entities those
    that stand in lower case. Tuned on data that no score is reported on
    (scripts/train_tagger/README.md).

    Args:
        start, end: (T,) int32, characters.
        proper, numeral, content: (T,) tagged PROPN; NUM, but "one" means little; ADJ, NOUN or VERB.
        title, lower: (T,) written So, or SO; so.
        entity: (T,) NAME, DATE or NUMBER in an entity of that kind, else NONE.
    """
    if not len(start):
        return CharSpans.of((), SALIENT)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lines = np.cumsum(codes == ord("\n"))
    breaks = np.ones(len(start), dtype=bool)  # no span crosses the end of a line
    breaks[1:] = lines[start[1:]] > lines[end[:-1] - 1]
    opens = breaks.copy()  # may stand at the start of a sentence, where a capital says nothing
    opens[1:] |= np.isin(codes[end[:-1] - 1], _OPENERS)

    kind = entity.copy()
    kind[(kind == NONE) & numeral] = NUMBER
    kind[_without_lower(proper, lower & title.any()) | (content & title & ~opens)] = NAME
    # the number of the date or amount that a token is part of
    form = np.zeros(len(kind), dtype=np.int64)
    for number, match in enumerate(_FORMS.finditer(text), start=1):
        inside = _tokens_within(match, start, end)
        kind[inside] = DATE if match.lastgroup == "date" else NUMBER
        form[inside] = number
    for match in _JOINTS.finditer(text):
        inside = _tokens_within(match, start, end)
        beside = kind[max(inside.start - 1, 0)], kind[min(inside.stop, len(kind) - 1)]
        if beside == (NAME, NAME):
            kind[inside] = NAME

    first = breaks
    first[1:] |= (kind[1:] != kind[:-1]) | (form[1:] != form[:-1])
    begin = np.flatnonzero(first)
    last = np.append(begin[1:], len(kind)) - 1
    is_salient = kind[begin] != NONE
    # A tagger has to say something of emoji and stray marks, and it may say PROPN; they are no
    # names.
    for at in np.flatnonzero(is_salient & (classify(text)[start[begin]] != LETTER)):
        is_salient[at] = any(map(str.isalnum, text[start[begin[at]] : end[last[at]]]))
    begin, last = begin[is_salient], last[is_salient]
    return CharSpans(start[begin], end[last], kind[begin])


def _without_lower(proper: Flags, lower: Flags) -> Flags:
    """Proper nouns, but for those in lower case ("league"), unless they stand inside of a name ("de
    Gaulle").
    """
    sure = np.pad(proper & ~lower, 1)
    return sure[1:-1] | (proper & sure[:-2] & sure[2:])


def _tokens_within(match: re.Match[str], start: Ints, end: Ints) -> slice:
    """The tokens that the match covers or cuts."""
    return slice(
        int(end.searchsorted(match.start(), "right")), int(start.searchsorted(match.end()))
    )


SHIPPED = Path(__file__).parent.parent / "data" / "tagger-en"
PIECE_CHARACTERS = 5_000
WORD_CHARACTERS = 1_000
BATCH = 32
"""Texts at once; with 64 and more the arrays outgrow the processor's cache, and tagging takes a
third longer.
"""
MAX_NEW_WORDS = 200_000
"""spaCy remembers every word that it has met, which is why it is fast on text; behind so many new
ones (about 100 MB) it is loaded again. Its memory zones, made for this, keep no cache: annotating
took a third longer with them.
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
_PREDICT = {"tok2vec", "morphologizer", "ner"}
"""Factories of components of which none changes what another has found."""
_COLUMNS = ["IDX", "LENGTH", "IS_SPACE", "IS_TITLE", "IS_UPPER", "IS_LOWER", "LOWER", "ENT_TYPE"]


NO_MODEL = (".md", ".pyc")
"""Files of a pipeline's folder that no tag depends on."""


class SpacyPipeline:
    """The layers "pos" (17 universal tags) and "salient" (names, dates, numbers), or one of them.

    Args:
        layers: which of the two. Tags alone come faster; both come in one pass.
        model: a spaCy pipeline by the name under which it is installed, or its folder; None: the
            shipped one.

    Raises:
        MaskwiseError: a pipeline that is not installed, cannot be loaded, or gives no universal
            tags.
    """

    imports: ClassVar = ("spacy",)
    """What its workers take two seconds to import."""

    def __init__(self, layers: Sequence[str] = ("pos", "salient"), *, model: str | None = None):
        self.name = layers[0]
        self.layers: Mapping[str, Layer] = {
            name: {"pos": POS, "salient": SALIENT}[name] for name in layers
        }
        self.folder = _folder(model)

    @cached_property
    def version(self) -> str:
        """Changes with any file of the pipeline (but its card), with spaCy, and with the rules for
        salient spans.
        """
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
        return [self._read(text, cut, tables) for text, cut in zip(texts, cuts, strict=True)]

    def _tables(self, pieces: Iterable[str]) -> Iterator[Tokens]:
        """For each piece of text what spaCy says of its T tokens: (T, `_COLUMNS`), and (T,) codes
        of tags.
        """
        from spacy.util import minibatch

        direct = self._direct
        skipped = [direct[0].name] if direct else []
        docs = self.nlp.pipe(pieces, batch_size=BATCH, disable=skipped)
        if direct is None:
            for doc in docs:
                yield doc.to_array(_COLUMNS), self._coded(doc.to_array(self._column), _CODES)
            return
        tagger, codes = direct
        for batch in minibatch(docs, BATCH):
            for doc, predicted in zip(batch, tagger.predict(batch)):
                yield doc.to_array(_COLUMNS), codes[predicted] if len(doc) else codes[:0]

    def _read(
        self, text: str, cut: list[tuple[int, int]], tables: Iterator[Tokens]
    ) -> dict[str, CharSpans]:
        """The layers of a text, from the tokens of its pieces."""
        rows, tags = [], []
        for begin, _ in cut:
            table, codes = next(tables)
            table[:, 0] += np.uint64(begin)
            rows.append(table)
            tags.append(codes)
        tokens = np.concatenate(rows)
        inked = tokens[:, 2] == 0  # white space has no tag
        place, length, _, title, upper, lower, form, entity = tokens[inked].T
        code = np.concatenate(tags)[inked]
        start = place.astype(np.int32)
        end = start + length.astype(np.int32)
        layers = {}
        if "pos" in self.layers:
            layers["pos"] = CharSpans(start[code > 0], end[code > 0], code[code > 0])
        if "salient" in self.layers:
            layers["salient"] = salient_spans(
                text,
                start,
                end,
                proper=code == _CODES["PROPN"],
                numeral=(code == _CODES["NUM"]) & (form != self.nlp.vocab.strings["one"]),
                content=np.isin(code, [_CODES[name] for name in ("ADJ", "NOUN", "VERB")]),
                title=(title | upper) > 0,
                lower=lower > 0,
                entity=self._coded(entity, _KINDS, other=NAME),
            )
        return layers

    def _coded(
        self, symbols: NDArray[np.uint64], codes: Mapping[str, int], *, other: int = 0
    ) -> NDArray[np.int16]:
        """spaCy's numbers of names → codes of ours; 0 for the empty name."""
        numbers, place = np.unique(symbols, return_inverse=True)
        names = [self.nlp.vocab.strings[int(number)] for number in numbers]
        return np.array([codes.get(name, other) if name else 0 for name in names], dtype=np.int16)[
            place
        ]

    @cached_property
    def nlp(self) -> Any:
        """The spaCy pipeline, loaded when it is first needed."""
        import spacy

        try:
            nlp = spacy.load(
                self.folder, exclude=_UNUSED + _ENTITIES * ("salient" not in self.layers)
            )
        except Exception as error:  # whatever its components raise
            raise MaskwiseError(
                f"cannot load the spaCy pipeline in {self.folder}: {first_line(error)}"
            ) from error
        self._words_at_load = len(nlp.vocab)
        _multiply_by_numpy(nlp)
        return nlp

    @cached_property
    def _direct(self) -> tuple[Any, NDArray[np.int16]] | None:
        """The component whose predictions are the tags, and the code of each, where nothing else
        has a say in them: read from its output, tags need not be written into every token, which is
        a tenth of spaCy's time.
        """
        factories = self.nlp.pipe_factories
        tagger = next(
            (name for name, factory in factories.items() if factory == "morphologizer"), None
        )
        if tagger is None or not set(factories.values()) <= _PREDICT:
            return None
        component = self.nlp.get_pipe(tagger)
        tags = np.array(
            [component.cfg["labels_pos"][label] for label in component.labels], dtype=np.uint64
        )
        return component, self._coded(tags, _CODES)

    @cached_property
    def _column(self) -> str:
        """Where the pipeline has its universal tags: in POS, or in TAG, as some that were trained
        on UD do.
        """
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
    """The same annotators, but "pos" and "salient" of one pipeline as one: ``pos(salient=True)``."""
    calls = [parse_call(spec) for spec in specs]
    both = [
        call
        for call in calls
        if call.name == "pos" and Call("salient", kwargs=call.kwargs) in calls
    ]
    joined = [Call("salient", kwargs=call.kwargs) for call in both]
    return [
        str(Call("pos", kwargs=call.kwargs | {"salient": True})) if call in both else call.written
        for call in calls
        if call not in joined
    ]


def _multiply_by_numpy(nlp: Any) -> None:
    """Take numpy's matrix product where thinc would take that of BLIS: not on a GPU, nor where it
    has Apple's.
    """
    from thinc.api import Model, NumpyOps

    ops = NumpyOps(use_blis=False)
    for _, component in nlp.pipeline:
        model = getattr(component, "model", None)
        for node in model.walk() if isinstance(model, Model) else ():
            if type(node.ops) is NumpyOps:
                node.ops = ops


def _folder(model: str | None) -> Path:
    """Where the files of a pipeline are.

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
        # A package of spaCy's holds a folder NAME-VERSION with the pipeline in it.
        path = next(
            (file.parent for file in Path(package.origin).parent.glob("*/config.cfg")), path
        )
    if not (path / "config.cfg").is_file():
        do = f"install it with: python -m spacy download {model}; or give the folder of a pipeline"
        raise MaskwiseError(f"no spaCy pipeline {model!r} is installed", do=do)
    return path


def cut_text(
    text: str, start: int, stop: int, *, most: int, borders: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """Where to cut a stretch of a text so that no part is longer than ``most`` characters.

    Cuts come after the last border in the second half of a part, the first kind of border that is
    there; else anywhere.
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
    """Where to cut a text so that no piece is longer than `PIECE_CHARACTERS`, and no word than
    `WORD_CHARACTERS`.
    """
    start = 0
    if len(max(text.split(), key=len, default="")) >= WORD_CHARACTERS:
        for match in _LONG_WORD.finditer(text):
            yield from cut_text(text, start, match.end(), most=PIECE_CHARACTERS, borders=_BORDERS)
            start = match.end()
    yield from cut_text(text, start, len(text), most=PIECE_CHARACTERS, borders=_BORDERS)
