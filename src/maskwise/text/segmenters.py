"""Segmenters: functions that find the words of a text, for scripts without spaces between words.

A segmenter returns the words of a text as strings, in the order of the text and as they stand in
it. White space and marks between words may be left out. ``corpus.words: jieba`` and
``encode(…, words="jieba")`` find words by a segmenter of this table; in Python, a function may be
given instead of a name.

Scripts that write no spaces between words are found by their code points, so that a user can be
told which segmenter the text needs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import version
from typing import Any, TypeAlias

from maskwise.base.errors import (
    MaskwiseError,
    install_command,
    located,
    require_library,
    shortened,
)
from maskwise.base.plugins import Table, mistake_of
from maskwise.base.specs import build, parse_call

Segmenter: TypeAlias = Callable[[str], Iterable[str]]
"""A function from a text to its words."""


def jieba() -> Segmenter:
    """Chinese, by the words of jieba's dictionary."""

    def words(text: str) -> Iterable[str]:
        found: Iterable[str] = _jieba()(text)
        return found

    return words


@cache
def _jieba() -> Any:
    require_library("jieba", use="the segmenter jieba")
    import logging

    import jieba

    # It reports on stderr how long its dictionary took to load.
    jieba.setLogLevel(logging.WARNING)
    return jieba.Tokenizer().lcut


def fugashi() -> Segmenter:
    """Japanese, by MeCab with the dictionary unidic-lite."""

    def words(text: str) -> Iterable[str]:
        # MeCab reads a NUL as the end of the text.
        for part in re.split("\0", text):
            for word in _fugashi()(part):
                yield word.surface

    return words


@cache
def _fugashi() -> Any:
    for module in LIBRARIES["fugashi"]:
        require_library(module, use="the segmenter fugashi")
    import fugashi
    import unidic_lite

    # Another installed dictionary would find other words.
    return fugashi.Tagger(f'-d "{unidic_lite.DICDIR}"')


def pythainlp(engine: str = "newmm") -> Segmenter:
    """Thai, by PyThaiNLP.

    Args:
        engine: a name of PyThaiNLP's, such as newmm, longest or attacut.
    """

    def words(text: str) -> Iterable[str]:
        found: Iterable[str] = _pythainlp()(text, engine=engine, join_broken_num=False)
        return found

    return words


@cache
def _pythainlp() -> Any:
    require_library("pythainlp", use="the segmenter pythainlp")
    from pythainlp.tokenize import word_tokenize

    return word_tokenize


_BUILT_IN: dict[str, Callable[..., Segmenter]] = {
    "jieba": jieba,
    "fugashi": fugashi,
    "pythainlp": pythainlp,
}
SEGMENTERS = Table("segmenter", "maskwise.segmenters", _BUILT_IN)
"""Functions that make segmenters, by their names in recipes."""

RULES = ("auto", "spaces", "token")
"""Values of ``corpus.words`` that name no segmenter."""
_NAME = re.compile(r"[A-Za-z][\w-]*(\(.*\))?", re.DOTALL)


def names_segmenter(value: str) -> bool:
    """Return whether a text is the name of a known segmenter, perhaps with arguments."""
    # An unknown name is looked up in the metadata of all installed packages, which takes 10 ms.
    if value in RULES:
        return False
    return bool(_NAME.fullmatch(value)) and value.partition("(")[0].strip() in SEGMENTERS


def segmenter(spec: str) -> Segmenter:
    """Build a segmenter from its name. Its library is loaded with the first text.

    Raises:
        MaskwiseError: the name is unknown, or the segmenter has no such argument.
    """
    made: Segmenter = build("segmenter", spec, SEGMENTERS)
    return made


LIBRARIES = {
    "jieba": ("jieba",),
    "fugashi": ("fugashi", "unidic_lite"),
    "pythainlp": ("pythainlp",),
}
"""The libraries of segmenters."""


def segmenter_version(spec: str) -> str:
    """Return the names and versions of the packages by which a segmenter finds words.

    Raises:
        MaskwiseError: a library is not installed.
    """
    name = parse_call(spec).name
    for module in LIBRARIES.get(name, ()):
        require_library(module, use=f"the segmenter {name}")
    found = [f"{module} {version(module)}" for module in LIBRARIES.get(name, ())]
    return " ".join(found) or SEGMENTERS.package(name)


def segmented_words(find: Segmenter, text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each word that a segmenter finds in a text.

    Raises:
        MaskwiseError: the segmenter fails, or returns something else than the words of the text.
    """
    try:
        found = find(text)
        # A string would be read as a list of its characters.
        listed = isinstance(found, Iterable) and not isinstance(found, str | bytes)
        words = list(found) if listed else []
    except MaskwiseError:
        raise
    # The function is a user's or a library's, and may raise anything.
    except Exception as error:
        raise mistake_of(error) or MaskwiseError(
            f"the segmenter failed at the text {shortened(text)}",
            got=located(error),
        ) from error
    if not listed:
        raise MaskwiseError(
            "a segmenter must return a list of words",
            got=f"{type(found).__name__} {shortened(found)}",
            do="return TEXT.split() if the words are separated by spaces"
            if isinstance(found, str)
            else "return the words of the text, in order",
        )
    end = 0
    for word in words:
        if not isinstance(word, str):
            raise MaskwiseError(
                "a segmenter must return the words of a text",
                got=type(word).__name__,
                allowed="strings, in the order of the text",
            )
        bare = word.strip()
        if not bare:
            continue
        start = text.find(bare, end)
        if start < 0:
            raise MaskwiseError(
                "a segmenter returned a word that is not in the rest of the text",
                got=f"{bare!r}, with the rest {shortened(text[end:])}",
                do="return parts of the text, in order and without overlap, and without a change "
                "of case or form",
            )
        _require_nothing_between(text[end:start], f"before {bare!r}")
        end = start + len(bare)
        yield start, end
    _require_nothing_between(text[end:], "at the end of the text")


def _require_nothing_between(between: str, where: str) -> None:
    if any(map(str.isalnum, between)):
        raise MaskwiseError(
            f"a segmenter left out letters or digits {where}",
            got=shortened(between.strip()),
            do="return all words, as parts of the text and in order; only white space and marks "
            "may be left out",
        )


# Scripts
# ------------------------------------------------------------------------------------------------

SCRIPTS = {
    "Chinese characters": "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]",
    "kana": "[\u3041-\u30ff\u31f0-\u31ff]",
    "Thai": "[\u0e00-\u0e7f]",
    "Lao": "[\u0e80-\u0eff]",
    "Burmese": "[\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f]",
    "Khmer": "[\u1780-\u17ff]",
}
"""Patterns of the characters of scripts that write no spaces between words."""
_PATTERNS = {name: re.compile(pattern) for name, pattern in SCRIPTS.items()}
LEAST_SHARE = 0.02
"""The share of a text's letters from which a script is worth a segmenter."""
LEAST_KANA = 0.05
"""The share of kana from which a text with Chinese characters is Japanese."""


def unspaced(texts: Iterable[str]) -> dict[str, float]:
    """Return the scripts that write no spaces between words, with their shares of all letters.

    >>> unspaced(["日本語の文です。", "and English"])
    {'Japanese': 0.4117647058823529}
    """
    counts = Counter[str]()
    letters = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        for name, pattern in _PATTERNS.items():
            counts[name] += sum(map(str.isalpha, "".join(pattern.findall(text))))
    han, kana = counts.pop("Chinese characters", 0), counts.pop("kana", 0)
    counts["Japanese" if kana > LEAST_KANA * (han + kana) else "Chinese"] = han + kana
    shares = {name: count / max(1, letters) for name, count in counts.items()}
    return {name: share for name, share in shares.items() if share >= LEAST_SHARE}


FITTING = {"Chinese": "jieba", "Japanese": "fugashi", "Thai": "pythainlp"}
"""The segmenters of scripts."""


def segmenter_advice(script: str) -> str:
    """Say how to find the words of a script.

    >>> segmenter_advice("Lao")
    'set corpus.words to a segmenter of yours (docs/plug-ins.md)'
    """
    name = FITTING.get(script)
    if name is None:
        return "set corpus.words to a segmenter of yours (docs/plug-ins.md)"
    command = install_command(name)
    installing = f" ({command})" if command else ""
    return f"set corpus.words={name}{installing}"
