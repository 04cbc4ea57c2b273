"""Salient spans: the names, dates and numbers of a text, as masked by salient span masking (REALM, 2020).

A *name* is what the tagger takes for an entity or a proper noun, joined where they touch; so is a capitalised
adjective, noun or verb that does not open its sentence ("Japanese", the "United" of "United States"): English
writes names that way, and Universal Dependencies tag their parts by what they are. A proper noun in lower case is
not taken for a name, unless the whole text is in lower case or the entity recogniser says so. Written-out dates and
amounts are found by their form, other numbers by their tag. Where they compete, form goes before tag.

Why all of these: tags find names that a small entity recogniser has never met, entities those that stand in
lower case. Tuned on data that no score is reported on (scripts/train_tagger/README.md).

Cost: a dozen numpy passes over the tokens of a text, and two regular expressions over its characters.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from maskwise.text.layers import CharSpans, Layer
from maskwise.text.words import LETTER, classify

VERSION = "salient-2"
SALIENT = Layer("spans", ("name", "date", "number"))
NONE, NAME, DATE, NUMBER = range(4)

Flags = NDArray[np.bool_]
Ints = NDArray[np.int32]

_DAY, _YEAR = r"[0-3]?\d(?:st|nd|rd|th)?", r"(?:1\d{3}|20\d\d)"
_FULL = (
    r"January|February|March|April|May|June|July|August|September|October|November|December"
    r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?"
)
_WEEKDAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_DATES = (
    rf"(?:{_WEEKDAY},?[ ])?{_DAY}[ ](?:of[ ])?(?:{_FULL})(?:,?[ ]{_YEAR})?",  # 3 May 1999
    rf"(?:{_WEEKDAY},?[ ])?(?:{_FULL})[ ](?:{_DAY}(?:,?[ ]{_YEAR})?|{_YEAR})(?!\d)",  # May 3, 1999; May 1999
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
    text: str, start: Ints, end: Ints, *, proper: Flags, numeral: Flags, content: Flags, title: Flags,
    lower: Flags, entity: NDArray[np.int16],
) -> CharSpans:  # fmt: skip
    """The salient spans of a text, with the codes of `SALIENT`, from its T tokens without white space.

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
    form = np.zeros(len(kind), dtype=np.int64)  # the number of the date or amount that a token is part of
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
    found = kind[begin] != NONE
    # A tagger has to say something of emoji and stray marks, and it may say PROPN; they are no names.
    for at in np.flatnonzero(found & (classify(text)[start[begin]] != LETTER)):
        found[at] = any(map(str.isalnum, text[start[begin[at]] : end[last[at]]]))
    begin, last = begin[found], last[found]
    return CharSpans(start[begin], end[last], kind[begin])


def _without_lower(proper: Flags, lower: Flags) -> Flags:
    """Proper nouns, but for those in lower case ("league"), unless they stand inside of a name ("de Gaulle")."""
    sure = np.pad(proper & ~lower, 1)
    return sure[1:-1] | (proper & sure[:-2] & sure[2:])


def _tokens_within(match: re.Match[str], start: Ints, end: Ints) -> slice:
    """The tokens that the match covers or cuts."""
    return slice(int(end.searchsorted(match.start(), "right")), int(start.searchsorted(match.end())))
